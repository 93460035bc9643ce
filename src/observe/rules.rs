//! How often each rule of comparison applied, and which header fields differ again and again.
//!
//! Owns the proposals that come of it. They are made, never applied: whether two values may differ
//! is for a person to say.

use std::collections::BTreeMap;

use crate::engine::{Event, Field, RuleName, is_token};

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
    /// Values that clients returned, and a server was told its own for.
    pub replaced: u64,
}

/// The counts.
#[derive(Debug, Default)]
pub struct Rules {
    hits: BTreeMap<RuleName, Hits>,
    /// Differences by header field, and by the cookie that it sets.
    fields: BTreeMap<(Box<str>, Option<Box<str>>), u64>,
}

/// A header field in which the servers differ again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed<'a> {
    /// Its name, lower case.
    pub header: &'a str,
    /// The cookie that it sets.
    pub cookie: Option<&'a str>,
    /// In so many connections.
    pub connections: u64,
}

impl Rules {
    /// Whether `event` is any of its business.
    pub const fn counts(event: &Event) -> bool {
        let is_hit = matches!(event, Event::MaskHit { .. } | Event::ValueReplaced { .. });
        is_hit || matches!(event, Event::Diverged { .. })
    }

    /// Counts one event.
    pub fn record(&mut self, event: &Event) {
        match event {
            Event::ValueReplaced { rule, .. } => {
                self.hits.entry(rule.clone()).or_default().replaced += 1;
            }
            Event::MaskHit { rule, len, .. } => {
                let hits = self.hits.entry(rule.clone()).or_default();
                hits.values += 1;
                hits.bytes += u64::from(*len);
            }
            Event::Diverged { divergence, .. } => {
                let field = match &divergence.field {
                    Some(Field::Header(name)) => (name.clone(), None),
                    Some(Field::Cookie(name)) => ("set-cookie".into(), Some(name.clone())),
                    _ => return,
                };
                if let Some(times) = self.fields.get_mut(&field) {
                    *times += 1;
                } else if self.fields.len() < FIELDS_MAX {
                    self.fields.insert(field, 1);
                }
            }
            _ => {}
        }
    }

    /// What a rule did.
    pub fn hits(&self, rule: &RuleName) -> Hits {
        self.hits.get(rule).copied().unwrap_or_default()
    }

    /// Header fields in which the servers differ again and again, most often first.
    pub fn proposed(&self) -> Vec<Proposed<'_>> {
        let recurs = |proposed: &Proposed<'_>| {
            let is_name = |name: &str| is_token(name.as_bytes());
            let is_known = is_name(proposed.header) && proposed.cookie.is_none_or(is_name);
            is_known && proposed.connections >= PROPOSED_FROM
        };
        let fields = self.fields.iter().map(|((header, cookie), connections)| Proposed {
            header,
            cookie: cookie.as_deref(),
            connections: *connections,
        });
        let mut proposed: Vec<_> = fields.filter(recurs).collect();
        proposed.sort_by_key(|p| (std::cmp::Reverse(p.connections), p.header, p.cookie));
        proposed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Divergence, DivergenceKind, LegId};
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
        let proposed = |rules: &Rules| -> Vec<(String, Option<String>, u64)> {
            let told =
                |p: Proposed<'_>| (p.header.to_owned(), p.cookie.map(str::to_owned), p.connections);
            rules.proposed().into_iter().map(told).collect()
        };
        assert_eq!(proposed(&rules), []);
        for _ in 0..9 {
            differ(&mut rules, Some(Field::Header("x-id".into())));
            differ(&mut rules, Some(Field::Header("".into())));
            differ(&mut rules, Some(Field::Header("no name".into())));
            differ(&mut rules, Some(Field::Cookie("no name".into())));
            differ(&mut rules, Some(Field::Body));
            differ(&mut rules, None);
        }
        differ(&mut rules, Some(Field::Header("etag".into())));
        for _ in 0..5 {
            differ(&mut rules, Some(Field::Cookie("SID".into())));
        }
        let expected = [("x-id", None, 9), ("set-cookie", Some("SID"), 5), ("etag", None, 3)];
        let owned = expected.map(|(h, c, n)| (h.to_owned(), c.map(str::to_owned), n));
        assert_eq!(proposed(&rules), owned);
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
        let hits = Hits { values: 2, bytes: 32, replaced: 0 };
        assert_eq!(rules.hits(&named("http", "date")), hits);
        assert_eq!(rules.hits(&named("http", "etag")), Hits::default());
        assert_eq!(rules.hits(&named("ftp", "date")), Hits::default());
        let (flow, to, at) = (flow_key(), LegId::B, Offset::START);
        let replaced = Event::ValueReplaced { flow, to, rule: named("http", "x y"), at };
        assert!(Rules::counts(&replaced));
        rules.record(&replaced);
        assert_eq!(rules.hits(&named("http", "x y")).replaced, 1);
    }
}
