//! A run as a file: the whole scenario, not only its seed, so that it stays what it is when seeds
//! come to mean something else; with what was wrong in it, and what happened. Text in and out only.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::scenario::Scenario;

/// A run to be repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What is, or was, wrong in it.
    pub sentence: String,
    /// The commit that it was written at.
    pub commit: String,
    /// What the oracles said then, if they found something.
    pub failure: Option<String>,
    /// Clients stand at server A directly.
    #[serde(default)]
    pub without_gateway: bool,
    /// What is run.
    pub scenario: Scenario,
    /// What happened then.
    #[serde(default)]
    pub log: Vec<String>,
}

impl Case {
    /// Reads a case file.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    /// The file: JSON, a line for each thing that somebody may look for.
    pub fn to_text(&self) -> String {
        let scenario = serde_json::to_value(&self.scenario).unwrap_or_default();
        let fields = [
            ("sentence", json!(self.sentence), 0),
            ("commit", json!(self.commit), 0),
            ("failure", json!(self.failure), 0),
            ("without_gateway", json!(self.without_gateway), 0),
            ("scenario", scenario, 2),
            ("log", json!(self.log), 1),
        ];
        let fields = fields.map(|(name, value, levels)| {
            format!("  {}: {}", json!(name), spread(&value, levels, 2))
        });
        format!("{{\n{}\n}}\n", fields.join(",\n"))
    }
}

/// A value with `levels` of it broken into lines.
fn spread(value: &Value, levels: usize, indent: usize) -> String {
    let inner = |value: &Value| spread(value, levels.saturating_sub(1), indent + 2);
    let (open, close, members): (_, _, Vec<String>) = match value {
        Value::Object(map) if levels > 0 => {
            ("{", "}", map.iter().map(|(k, v)| format!("{}: {}", json!(k), inner(v))).collect())
        }
        Value::Array(array) if levels > 0 => ("[", "]", array.iter().map(inner).collect()),
        _ => return value.to_string(),
    };
    if members.is_empty() {
        return format!("{open}{close}");
    }
    let margin = " ".repeat(indent);
    let members: Vec<String> = members.iter().map(|m| format!("{margin}  {m}")).collect();
    format!("{open}\n{}\n{margin}{close}", members.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_reads_as_it_was_written() {
        for seed in 1..=300 {
            let case = Case {
                sentence: "a sentence with \"quotes\"".into(),
                commit: "abc".into(),
                failure: (seed % 2 == 0).then(|| "I1: no".into()),
                without_gateway: seed % 3 == 0,
                scenario: Scenario::new(seed),
                log: vec!["one".into(), "two".into()],
            };
            assert_eq!(Case::parse(&case.to_text()).as_ref(), Ok(&case), "seed {seed}");
        }
        assert!(Case::parse("{}").is_err());
    }
}
