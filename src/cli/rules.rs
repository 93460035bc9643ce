//! `shadowvm rules`: what the rules of comparison do, and which others could be made.

use std::process::ExitCode;

use super::Format;
use super::door::{DoorArgs, answer, bytes_text, refuse, table};
use crate::admin::client;
use crate::admin::types::Rules;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  shadowvm rules                   each rule, and how often it applied
  shadowvm rules suggest           rules for header fields that differ again and again

HITS are values that the servers said differently and may. What a rule maps clients return: REPLACED
are the times that a server was told its own value in the place of the other server's.

A difference is never let pass by itself: whether two values may differ is yours to say.")]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, clap::Args)]
struct Shown {
    #[command(flatten)]
    door: DoorArgs,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Propose rules for header fields that differ again and again, as configuration
    #[command(after_help = "Example:
  shadowvm rules suggest           look at each, then append what you agree with

Exit status: 0 answered, 69 no gateway answers.")]
    Suggest(Shown),
}

/// Asks and shows.
pub fn run(args: Args) -> ExitCode {
    match args.what {
        None => show(&args.shown, text),
        Some(What::Suggest(shown)) => show(&shown, suggestions),
    }
}

fn show(shown: &Shown, text: fn(&Rules) -> String) -> ExitCode {
    let socket = match shown.door.socket() {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    match client::get::<Rules>(&socket, "/api/v1/rules") {
        Ok(rules) => answer(shown.output, &rules, || text(&rules)),
        Err(error) => refuse(&error),
    }
}

fn text(rules: &Rules) -> String {
    let head = ["PROTOCOL", "FIELD", "NAME", "ACTION", "HITS", "BYTES", "REPLACED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for rule in &rules.rules {
        rows.push(vec![
            rule.protocol.clone(),
            rule.header.clone(),
            rule.name.clone().unwrap_or_else(|| "-".into()),
            rule.action.clone(),
            rule.hits.to_string(),
            bytes_text(rule.bytes),
            rule.replaced.to_string(),
        ]);
    }
    let more = match rules.suggestions.len() {
        0 => String::new(),
        n => format!("{n} more could be made: `shadowvm rules suggest`\n"),
    };
    let pairs = match rules.rules.iter().any(|rule| rule.action == "map") {
        true => format!("{} pairs of values are remembered\n", rules.pairs),
        false => String::new(),
    };
    format!("{}{pairs}{more}", table(&rows))
}

fn suggestions(rules: &Rules) -> String {
    if rules.suggestions.is_empty() {
        return "# no header field differs again and again\n".into();
    }
    let rule = |s: &crate::admin::types::Suggestion| {
        let what = match &s.name {
            Some(name) => format!("name = \"{name}\"\naction = \"map\""),
            // Clients ask with them whether what they have is still the same.
            None if ["etag", "last-modified"].contains(&&*s.header) => "action = \"map\"".into(),
            None => "action = \"mask\"".into(),
        };
        format!(
            "# differed in {} connections\n[[compare.rule]]\nprotocol = \"http\"\nheader = \
             \"{}\"\n{what}\n",
            s.connections, s.header
        )
    };
    rules.suggestions.iter().map(rule).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::admin::types::{Rule, Suggestion};
    use crate::config::Config;

    #[test]
    fn what_is_proposed_is_configuration() {
        let suggestion = |header: &str, name: Option<&str>| Suggestion {
            header: header.into(),
            name: name.map(Into::into),
            connections: 7,
        };
        let rule = Rule {
            protocol: "http".into(),
            header: "date".into(),
            name: None,
            action: "mask".into(),
            hits: 3,
            bytes: 87,
            replaced: 0,
        };
        let proposed = vec![
            suggestion("etag", None),
            suggestion("x-id", None),
            suggestion("set-cookie", Some("S")),
        ];
        let rules = Rules { rules: vec![rule], suggestions: proposed, pairs: 0 };
        assert!(text(&rules).contains("date"), "{}", text(&rules));
        let first = include_str!("../config/example.toml");
        let text = format!("{first}\n{}", suggestions(&rules));
        let config = Config::parse(&text, Path::new("x.toml")).expect("it is valid");
        let engine = config.engine();
        let rules: Vec<_> = engine.rules.http.iter().map(|rule| &**rule.token()).collect();
        assert!(engine.rules.http.iter().any(|rule| rule.header() == "etag" && rule.is_map()));
        assert_eq!(
            rules,
            ["date", "allow", "x-id", "etag", "set-cookie S", "set-cookie S expires"]
        );
    }
}
