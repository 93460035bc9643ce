//! The mirror as a gateway's helper runs it: two processes and whoever connects them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use shadowvm::sync::mirror::message::VERSION;
use shadowvm::sync::mirror::pair::{Done, EndSetup, MirrorSetup, Pair, Wish};

struct Bed {
    _dir: tempfile::TempDir,
    trees: [PathBuf; 2],
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let trees = ["a", "b"].map(|name| dir.path().join(name));
        trees.iter().for_each(|tree| fs::create_dir(tree).expect("a folder"));
        Self { _dir: dir, trees }
    }

    fn write(&self, which: usize, path: &str, bytes: &[u8]) {
        fs::write(self.trees[which].join(path), bytes).expect("a file");
    }

    fn read(&self, which: usize, path: &str) -> Option<Vec<u8>> {
        fs::read(self.trees[which].join(path)).ok()
    }

    fn pair(&self) -> Pair {
        self.pair_with([end(&self.trees[0]), end(&self.trees[1])])
    }

    fn pair_with(&self, ends: [Vec<String>; 2]) -> Pair {
        let setup = MirrorSetup {
            ends: ends.map(EndSetup::Command),
            exclude: Vec::new(),
            is_watching: true,
            by_content: false,
            is_durable: false,
            timeout_ms: 20_000,
        };
        Pair::new(setup, ["one".into(), "two".into()])
    }
}

/// The command of an end.
fn end(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    vec![env!("CARGO_BIN_EXE_shadowvm").into(), "mirror-end".into(), dir]
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(String::from).to_vec()
}

fn sync(pair: &mut Pair, from: usize) -> Result<Done, String> {
    pair.sync(from, Wish::default(), || false, |_| {})
}

#[test]
fn both_directions_and_only_what_changed() {
    let bed = Bed::new();
    let mut pair = bed.pair();
    pair.warm(|| false);
    for i in 0..50 {
        bed.write(0, &format!("f{i}"), &vec![b'x'; 10_000]);
    }
    let first = sync(&mut pair, 0).expect("it works");
    assert_eq!((first.report.is_full, first.report.written), (true, 50));
    assert_eq!(bed.read(1, "f7"), bed.read(0, "f7"));
    let file = fs::File::options().write(true).open(bed.trees[1].join("f7")).expect("a file");
    file.write_all_at(b"!", 5).expect("a byte");
    // The roles have swapped.
    let back = sync(&mut pair, 1).expect("it works");
    assert_eq!((back.report.is_full, back.report.written), (false, 1));
    assert_eq!(bed.read(0, "f7"), bed.read(1, "f7"));
    assert!(back.sent < 50_000, "{} bytes for one block", back.sent);
    let idle = sync(&mut pair, 1).expect("it works");
    assert!(idle.report.paths == 0 && idle.sent < 1000, "{idle:?}");
}

#[test]
fn after_a_pass_that_looks_at_everything_the_next_one_looks_at_what_changed() {
    let bed = Bed::new();
    let mut pair = bed.pair();
    for i in 0..50 {
        bed.write(0, &format!("f{i}"), &vec![b'x'; 10_000]);
    }
    for text in [b"one", b"two"] {
        let ahead = Wish { is_full: true, is_ahead: true };
        let whole = pair.sync(0, ahead, || false, |_| {}).expect("it works");
        assert!(whole.report.is_full, "{whole:?}");
        bed.write(0, "f7", text);
        let rest = sync(&mut pair, 0).expect("it works");
        assert_eq!((rest.report.is_full, rest.report.written), (false, 1));
        assert_eq!(bed.read(1, "f7").as_deref(), Some(&text[..]));
    }
}

#[test]
fn an_end_that_is_none_is_told_by_its_server_and_the_next_sync_works() {
    let bed = Bed::new();
    bed.write(0, "f", b"text");
    let good = || end(&bed.trees[0]);
    for (wrong, words) in [
        (vec!["/nonexistent/ssh".into()], "No such file"),
        (shell("exit 3"), "exit status: 3"),
        (shell("echo hello, I am no mirror; cat > /dev/null"), "does not start"),
        // Its version is 99.
        (shell("printf '\\004\\000\\000\\000\\001\\143\\000\\000'; cat > /dev/null"), "version 99"),
        (end(&bed.trees[1].join("nowhere")), "nowhere"),
    ] {
        let mut pair = bed.pair_with([good(), wrong]);
        let failed = sync(&mut pair, 0).expect_err(words);
        assert!(failed.contains("two") && failed.contains(words), "{words:?} is not in {failed:?}");
    }
    let mut pair = bed.pair_with([end(&bed.trees[0].join("nowhere")), end(&bed.trees[1])]);
    let failed = sync(&mut pair, 0).expect_err("there is no source");
    assert!(failed.contains("one") && failed.contains("nowhere"), "{failed}");
    fs::create_dir(bed.trees[0].join("nowhere")).expect("a folder");
    sync(&mut pair, 0).expect("now it is there");
}

#[test]
fn an_end_that_says_nothing_is_given_up() {
    let bed = Bed::new();
    // It stands by, with the right version, and then only listens.
    let ready = format!("\\004\\000\\000\\000\\001\\{VERSION:03o}\\000\\000");
    let mute = shell(&format!("printf '{ready}'; cat > /dev/null"));
    let setup = MirrorSetup {
        ends: [EndSetup::Command(end(&bed.trees[0])), EndSetup::Command(mute)],
        exclude: Vec::new(),
        is_watching: true,
        by_content: false,
        is_durable: false,
        timeout_ms: 200,
    };
    let mut pair = Pair::new(setup, ["one".into(), "two".into()]);
    let failed = sync(&mut pair, 0).expect_err("nobody answers");
    assert!(failed.contains("nothing moved"), "{failed}");
    // It does not even stand by: it can be given up at any time.
    let mut pair = bed.pair_with([end(&bed.trees[0]), shell("cat > /dev/null")]);
    let failed = pair.sync(0, Wish::default(), || true, |_| {});
    assert_eq!(failed.expect_err("nobody stands by"), "given up");
}

#[test]
fn a_target_that_is_killed_while_it_writes_leaves_its_file_as_it_was() {
    let bed = Bed::new();
    bed.write(0, "large", &vec![b'n'; 1 << 20]);
    bed.write(1, "large", b"old");
    let dir = bed.trees[1].display();
    let program = env!("CARGO_BIN_EXE_shadowvm");
    // The kernel kills whoever writes a file beyond so many blocks.
    let brief = shell(&format!("ulimit -f 64; exec {program} mirror-end {dir}"));
    let mut pair = bed.pair_with([end(&bed.trees[0]), brief]);
    let failed = sync(&mut pair, 0).expect_err("it is killed");
    assert!(failed.contains("two"), "{failed}");
    assert_eq!(bed.read(1, "large").as_deref(), Some(&b"old"[..]));
    sync(&mut bed.pair(), 0).expect("it works");
    assert_eq!(bed.read(1, "large"), bed.read(0, "large"));
    let left = fs::read_dir(&bed.trees[1]).expect("it opens").count();
    assert_eq!(left, 1, "something unfinished is left");
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_the_others_arrive() {
    let bed = Bed::new();
    bed.write(0, "large", &vec![b'n'; 1 << 20]);
    bed.write(0, "small", b"small");
    let dir = bed.trees[1].display();
    let program = env!("CARGO_BIN_EXE_shadowvm");
    let tight = shell(&format!("trap '' XFSZ; ulimit -f 64; exec {program} mirror-end {dir}"));
    let mut pair = bed.pair_with([end(&bed.trees[0]), tight]);
    let failed = sync(&mut pair, 0).expect_err("one file is too large");
    assert!(failed.contains("large") && failed.contains("two"), "{failed}");
    assert_eq!(bed.read(1, "small").as_deref(), Some(&b"small"[..]));
    assert_eq!(bed.read(1, "large"), None);
}

#[test]
fn a_sync_that_is_given_up_ends_at_once_and_the_next_one_works() {
    let bed = Bed::new();
    bed.write(0, "f", &vec![b'x'; 1 << 20]);
    let mut pair = bed.pair();
    let failed = pair.sync(0, Wish::default(), || true, |_| {});
    // It may have been faster than the first look whether to stop.
    assert!(failed.is_ok() || failed == Err("given up".into()), "{failed:?}");
    sync(&mut pair, 0).expect("it works");
    assert_eq!(bed.read(1, "f"), bed.read(0, "f"));
}
