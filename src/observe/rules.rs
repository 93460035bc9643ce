//! How often each rule of comparison applied, and which header fields differ again and again.
//!
//! Owns the proposals that come of it. They are made, never applied: whether two values may differ
//! is for a person to say.

use std::collections::BTreeMap;

use crate::engine::{Event, Field, RuleName};

/// Fields that are remembered; what comes later is not told apart.
pub const FIELDS_MAX: usize = 64;
/// Connections in which a field has to differ before a rule is proposed.
pub const PROPOSED_FROM: u64 = 3;

/// What a rule did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Values that differed.
    pub values: u64,
    /// Their bytes, as they were shown.
    pub bytes: u64,
}

/// The counts.
#[derive(Debug, Default)]
pub struct Rules {
    hits: BTreeMap<RuleName, Hits>,
    /// Differences by header field.
    fields: BTreeMap<Box<str>, u64>,
}

impl Rules {
    /// Counts one event.
    pub fn record(&mut self, event: &Event) {
        match event {
            Event::MaskHit { rule, len, .. } => {
                let hits = self.hits.entry(rule.clone()).or_default();
                hits.values += 1;
                hits.bytes += u64::from(*len);
            }
            Event::Diverged { divergence, .. } => {
                let Some(Field::Header(name)) = &divergence.field else { return };
                if let Some(times) = self.fields.get_mut(name) {
                    *times += 1;
                } else if self.fields.len() < FIELDS_MAX {
                    self.fields.insert(name.clone(), 1);
                }
            }
            _ => {}
        }
    }

    /// What a rule did.
    pub fn hits(&self, rule: &RuleName) -> Hits {
        self.hits.get(rule).copied().unwrap_or_default()
    }

    /// Header fields in which the servers differ again and again, most often first, with the
    /// number of connections.
    pub fn proposed(&self) -> Vec<(&str, u64)> {
        let recurs = |&(name, times): &(&str, u64)| {
            let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic());
            is_name && times >= PROPOSED_FROM
        };
        let fields = self.fields.iter().map(|(name, times)| (&**name, *times));
        let mut proposed: Vec<_> = fields.filter(recurs).collect();
        proposed.sort_by_key(|&(name, times)| (std::cmp::Reverse(times), name));
        proposed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Divergence, DivergenceKind};
    use crate::observe::tests::flow_key;
    use crate::wire::Offset;

    fn differ(rules: &mut Rules, field: Option<Field>) {
        let (at, kind) = (Offset::START, DivergenceKind::Byte(1, 2));
        let divergence = Divergence { at, kind, field };
        rules.record(&Event::Diverged { flow: flow_key(), divergence });
    }

    #[test]
    fn what_differs_again_and_again_is_proposed() {
        let mut rules = Rules::default();
        for _ in 0..2 {
            differ(&mut rules, Some(Field::Header("etag".into())));
        }
        assert_eq!(rules.proposed(), []);
        for _ in 0..9 {
            differ(&mut rules, Some(Field::Header("x-id".into())));
            differ(&mut rules, Some(Field::Header("".into())));
            differ(&mut rules, Some(Field::Header("no name".into())));
            differ(&mut rules, Some(Field::Body));
            differ(&mut rules, None);
        }
        differ(&mut rules, Some(Field::Header("etag".into())));
        assert_eq!(rules.proposed(), [("x-id", 9), ("etag", 3)]);
        for i in 0..2 * FIELDS_MAX {
            differ(&mut rules, Some(Field::Header(format!("x-{i}").into())));
        }
        assert_eq!(rules.fields.len(), FIELDS_MAX);
    }

    fn named(protocol: &'static str, field: &str) -> RuleName {
        RuleName { protocol, field: field.into() }
    }

    #[test]
    fn each_rule_counts_its_own_hits() {
        let mut rules = Rules::default();
        for len in [29, 3] {
            let (flow, at) = (flow_key(), Offset::START);
            rules.record(&Event::MaskHit { flow, rule: named("http", "date"), at, len });
        }
        assert_eq!(rules.hits(&named("http", "date")), Hits { values: 2, bytes: 32 });
        assert_eq!(rules.hits(&named("http", "etag")), Hits::default());
        assert_eq!(rules.hits(&named("ftp", "date")), Hits::default());
    }
}
