//! A run over many seeds, in parts: what is done is kept in a file, and a later part goes on there.
//!
//! The file names the tree of `src` that was proved; parts of different trees never add up.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::sim::fleet::Summary;

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// `git rev-parse HEAD:src`; nothing if no file is kept.
    pub tree: Option<String>,
    /// What the seeds meant besides: the options that change a run.
    pub options: String,
    /// The first seed.
    pub from: u64,
    /// How many were run, one after the other from the first.
    pub done: u64,
    /// In how many parts.
    pub parts: u32,
    /// Time in all of them (s).
    pub seconds: f64,
    /// What came of them.
    pub summary: Summary,
}

impl Progress {
    /// Nothing done yet.
    pub fn new(tree: Option<String>, options: String, from: u64) -> Self {
        let (done, parts, seconds) = (0, 0, 0.0);
        Self { tree, options, from, done, parts, seconds, summary: Summary::default() }
    }

    /// Goes on with `self` where `path` ends, if it is there and of the same run.
    pub fn resume(self, path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(self),
            Err(e) => return Err(format!("{shown}: {e}")),
        };
        let found: Self = serde_json::from_str(&text)
            .map_err(|e| format!("{shown}: no progress that this version has kept: {e}"))?;
        let name = |tree: &Option<String>| tree.clone().unwrap_or_default();
        if found.tree != self.tree {
            let (old, new) = (name(&found.tree), name(&self.tree));
            return Err(format!("{shown} is of the tree {old} of src, here is {new}: begin anew"));
        }
        if (&found.options, found.from) != (&self.options, self.from) {
            let (from, options) = (found.from, &found.options);
            return Err(format!("{shown} is of another run: from seed {from}, {options}"));
        }
        Ok(found)
    }

    /// Adds seeds that were run.
    pub fn add(&mut self, part: &Summary, seconds: f64) {
        self.done += part.seeds;
        self.seconds += seconds;
        self.summary.add(part);
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let mut file = File::create(&name)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&name, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Progress {
        Progress::new(Some("abc".into()), "all hosts".into(), 7)
    }

    #[test]
    fn what_was_saved_goes_on_and_adds_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("progress");
        let mut run = begun().resume(&path).expect("no file is a beginning");
        let failures = vec![(9, "I1: no".to_owned())];
        let part = Summary { seeds: 10, frames: (3, 4), failures, ..Summary::default() };
        run.add(&part, 1.5);
        run.save(&path).expect("saves");
        let mut again = begun().resume(&path).expect("resumes");
        assert_eq!(again, run);
        again.add(&Summary { seeds: 5, frames: (1, 1), ..Summary::default() }, 0.5);
        assert_eq!((again.done, again.seconds, again.summary.seeds), (15, 2.0, 15));
        assert_eq!((again.summary.frames, again.summary.failures.len()), ((4, 5), 1));
    }

    #[test]
    fn another_tree_another_run_and_another_file_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("progress");
        begun().save(&path).expect("saves");
        let refused = |run: Progress| run.resume(&path).expect_err("it is another's");
        let what = refused(Progress { tree: Some("def".into()), ..begun() });
        assert!(what.ends_with("is of the tree abc of src, here is def: begin anew"), "{what}");
        let what = refused(Progress { from: 8, ..begun() });
        assert!(what.ends_with("is of another run: from seed 7, all hosts"), "{what}");
        refused(Progress { options: "smoltcp".into(), ..begun() });
        fs::write(&path, "{}").expect("writes");
        assert!(refused(begun()).contains("no progress that this version has kept"));
    }
}
