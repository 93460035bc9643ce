//! What is wrong with a configuration file, told so that it can be mended without a manual.
//!
//! Owns the form of the message: file, line, key, reason, help. It never decides what is wrong.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line, counted from 1; none if it concerns something that is not there at all.
    pub line: Option<usize>,
    /// Column in characters, counted from 1.
    pub column: Option<usize>,
    /// Full name of the key, such as `compare.hold_soft`; empty for a syntax error.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub help: Option<String>,
    /// The line's text, for the message.
    #[serde(skip)]
    text: String,
    /// Characters to underline.
    #[serde(skip)]
    width: usize,
}

impl Problem {
    /// A mistake at the bytes `at` of `source`.
    pub(super) fn new(source: &str, at: Option<Range<usize>>, key: &str, reason: &str) -> Self {
        let mut problem = Self {
            line: None,
            column: None,
            key: key.to_owned(),
            reason: reason.to_owned(),
            help: None,
            text: String::new(),
            width: 0,
        };
        let Some(at) = at else { return problem };
        let before = source.get(..at.start).unwrap_or(source);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        let rest = source.get(line_start..).unwrap_or("");
        let text = rest.lines().next().unwrap_or("");
        let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
        let marked = source.get(at).unwrap_or("").lines().next().unwrap_or("").chars().count();
        problem.line = Some(before.matches('\n').count() + 1);
        problem.column = Some(column);
        problem.text = text.to_owned();
        problem.width = marked.clamp(1, (text.chars().count() + 1).saturating_sub(column).max(1));
        problem
    }

    /// The same, with what to do.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, file: &Path) -> fmt::Result {
        write!(f, "error: {}", file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if self.key.is_empty() {
            writeln!(f, ": {}", self.reason)?;
        } else {
            writeln!(f, ": {}: {}", self.key, self.reason)?;
        }
        if let (Some(line), Some(column)) = (self.line, self.column) {
            let number = line.to_string();
            let margin = " ".repeat(number.len());
            writeln!(f, " {margin} |")?;
            writeln!(f, " {number} | {}", self.text)?;
            let lead: String = self
                .text
                .chars()
                .take(column - 1)
                .map(|c| if c == '\t' { c } else { ' ' })
                .collect();
            writeln!(f, " {margin} | {lead}{}", "^".repeat(self.width))?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "   = help: {help}")?;
        }
        Ok(())
    }
}

/// Every mistake of one file, in the order of their lines; never empty.
#[derive(Clone, Debug)]
pub struct Problems {
    /// The file.
    pub file: PathBuf,
    /// The mistakes.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.list {
            problem.write(f, &self.file)?;
        }
        let count = self.list.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "{}: {count} {noun}", self.file.display())
    }
}

impl std::error::Error for Problems {}

/// The word of `known` nearest to `word`, if any is near enough to be what was meant.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1) + 1;
    known
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(far, candidate)| far <= limit && far < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance in which a swap of neighbours counts once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_none() {
        let known = ["hold_soft", "hold_hard", "on_lag"];
        assert_eq!(nearest("hold_sfot", known.into_iter()), Some("hold_soft"));
        assert_eq!(nearest("hold-hard", known.into_iter()), Some("hold_hard"));
        assert_eq!(nearest("banana", known.into_iter()), None);
        assert_eq!(nearest("x", ["a"].into_iter()), None);
    }

    #[test]
    fn distance_counts_a_swap_once() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("ports", "potrs"), 1);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn the_message_points_at_the_characters() {
        let source = "[a]\nhöld = 1\n";
        let start = source.find("höld").expect("it is there");
        let problem = Problem::new(source, Some(start..start + 5), "a.höld", "unknown key")
            .help("did you mean `hold`?");
        let all = Problems { file: "f.toml".into(), list: vec![problem] };
        let text = all.to_string();
        let want = "error: f.toml:2: a.höld: unknown key\n   |\n 2 | höld = 1\n   | ^^^^\n   \
                    = help: did you mean `hold`?\nf.toml: 1 problem";
        assert_eq!(text, want);
    }
}
