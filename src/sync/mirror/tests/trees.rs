//! Whatever two trees are like, one sync makes them equal, and the next one has nothing to do.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use proptest::prelude::*;

use super::kit::{Bench, Edit, age, edit, look, sync, sync_with};
use crate::sync::mirror::end::{Meddle, Place};
use crate::sync::mirror::entry::Rel;
use crate::sync::mirror::message::{Order, Report};

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0u8..4, 1..4)
}

/// Lengths around those of blocks.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 1usize..100, 65_500usize..65_600, Just(131_072), 150_000usize..200_000]
}

pub fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    let one = prop_oneof![
        4 => names().prop_map(Edit::Mkdir),
        6 => (names(), any::<u8>(), length())
            .prop_map(|(at, byte, len)| Edit::Write { at, byte, len }),
        3 => (names(), any::<u8>(), 0u64..300_000)
            .prop_map(|(at, byte, offset)| Edit::Poke { at, byte, offset }),
        1 => (names(), 0u64..200_000).prop_map(|(at, len)| Edit::Cut { at, len }),
        2 => (names(), names()).prop_map(|(at, to)| Edit::Symlink { at, to }),
        1 => names().prop_map(Edit::Fifo),
        2 => (names(), names()).prop_map(|(from, to)| Edit::HardLink { from, to }),
        3 => (names(), names()).prop_map(|(from, to)| Edit::Rename { from, to }),
        2 => names().prop_map(Edit::Remove),
        1 => (names(), 0u32..0o1000).prop_map(|(at, mode)| Edit::Chmod { at, mode }),
        1 => (names(), 0i64..2_000_000_000).prop_map(|(at, secs)| Edit::Age { at, secs }),
        1 => (names(), any::<u8>()).prop_map(|(at, byte)| Edit::Xattr { at, byte }),
    ];
    prop::collection::vec(one, 0..most)
}

/// A sync that had nothing to do.
pub fn is_idle(report: Report) -> bool {
    (report.written, report.mended, report.removed) == (0, 0, 0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn any_two_trees_become_equal(
        common in edits(30), of_a in edits(30), of_b in edits(30), by_content in any::<bool>(),
    ) {
        let bench = Bench::new();
        for dir in [&bench.a, &bench.b] {
            common.iter().for_each(|change| edit(dir, change));
        }
        of_a.iter().for_each(|change| edit(&bench.a, change));
        of_b.iter().for_each(|change| edit(&bench.b, change));
        let source = look(&bench.a);
        let [mut a, mut b] = bench.places();
        let order = Order { by_content, ..Order::default() };
        prop_assert!(sync_with(&mut a, &mut b, order).is_ok());
        // Size and time are believed the first time, as rsync does.
        let was_lucky = by_content || look(&bench.b) == source;
        if !was_lucky {
            let order = Order { by_content: true, ..Order::default() };
            prop_assert!(sync_with(&mut a, &mut b, order).is_ok());
        }
        bench.assert_equal();
        prop_assert_eq!(look(&bench.a), source, "the source was changed");
        let again = sync(&mut a, &mut b);
        prop_assert!(again.clone().is_ok_and(is_idle), "{:?}", again);
    }
}

#[test]
fn everything_that_a_tree_can_have_arrives() {
    let bench = Bench::new();
    let a = &bench.a;
    fs::create_dir_all(a.join("d/e")).expect("folders");
    fs::write(a.join("d/plain"), b"some text").expect("a file");
    fs::write(a.join("d/empty"), b"").expect("a file");
    fs::hard_link(a.join("d/plain"), a.join("d/e/same")).expect("a name");
    symlink("../plain", a.join("d/e/link")).expect("a link");
    symlink("/nonexistent", a.join("dangling")).expect("a link");
    nix::unistd::mkfifo(&a.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let _socket = std::os::unix::net::UnixListener::bind(a.join("socket")).expect("a socket");
    let sparse = fs::File::create(a.join("sparse")).expect("a file");
    sparse.set_len(50 << 20).expect("a length");
    sparse.write_all_at(b"here", 20 << 20).expect("some bytes");
    for path in ["d/plain", "d/e/link", "d/e", "d", "pipe", "sparse", ""] {
        age(&a.join(path), 1_000_000_000).expect("a time");
    }
    let [mut source, mut target] = bench.places();
    let report = sync(&mut source, &mut target).expect("it works");
    assert_eq!((report.is_full, report.written), (true, 3));
    bench.assert_equal();
    let held = fs::metadata(bench.b.join("sparse")).expect("it is there").blocks() * 512;
    assert!(held < 1 << 20, "the hole is filled: {held} bytes");
    // A byte in the middle of the hole costs a block, and the hole stays.
    sparse.write_all_at(b"!", 40 << 20).expect("a byte");
    let report = sync(&mut source, &mut target).expect("it works");
    assert_eq!((report.written, report.removed), (1, 0));
    bench.assert_equal();
    let held = fs::metadata(bench.b.join("sparse")).expect("it is there").blocks() * 512;
    assert!(held < 1 << 20, "the hole is filled: {held} bytes");
}

#[test]
fn a_file_under_another_name_is_moved_and_not_copied() {
    let bench = Bench::new();
    let [mut source, mut target] = bench.places();
    fs::create_dir(bench.a.join("old")).expect("a folder");
    for name in ["x", "y"] {
        fs::write(bench.a.join("old").join(name), name.repeat(100_000)).expect("a file");
    }
    sync(&mut source, &mut target).expect("it works");
    let inode = |path: &str| fs::metadata(bench.b.join(path)).expect("it is there").ino();
    let before = [inode("old/x"), inode("old/y")];
    fs::rename(bench.a.join("old"), bench.a.join("new")).expect("it moves");
    let report = sync(&mut source, &mut target).expect("it works");
    assert_eq!(report.written, 0, "{report:?}");
    assert_eq!([inode("new/x"), inode("new/y")], before);
    bench.assert_equal();
}

#[test]
fn names_of_one_file_stay_names_of_one_file_and_strangers_part() {
    let bench = Bench::new();
    let [mut source, mut target] = bench.places();
    let write = |path: &str| fs::write(bench.a.join(path), path).expect("a file");
    ["one", "two"].into_iter().for_each(write);
    fs::hard_link(bench.a.join("one"), bench.a.join("uno")).expect("a name");
    sync(&mut source, &mut target).expect("it works");
    bench.assert_equal();
    // The content stays, but now `two` is another name of `one` at the target, by mistake.
    let (one, two) = (bench.b.join("one"), bench.b.join("two"));
    fs::remove_file(&two).expect("it goes");
    fs::hard_link(one, two).expect("a name");
    sync(&mut source, &mut target).expect("it works");
    bench.assert_equal();
    fs::remove_file(bench.a.join("uno")).expect("it goes");
    fs::write(bench.a.join("uno"), b"on its own").expect("a file");
    sync(&mut source, &mut target).expect("it works");
    bench.assert_equal();
}

#[test]
fn no_link_leads_out_of_the_tree() {
    let bench = Bench::new();
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("file"), b"not yours").expect("a file");
    fs::create_dir(bench.a.join("d")).expect("a folder");
    fs::write(bench.a.join("d/file"), b"new").expect("a file");
    // The target has a link where the source has a folder.
    symlink(outside.path(), bench.b.join("d")).expect("a link");
    let [mut source, mut target] = bench.places();
    sync(&mut source, &mut target).expect("it works");
    bench.assert_equal();
    assert_eq!(fs::read(outside.path().join("file")).expect("it is there"), b"not yours");
    // And the source has a link: what is behind it is nobody's.
    fs::remove_dir_all(bench.a.join("d")).expect("it goes");
    symlink(outside.path(), bench.a.join("d")).expect("a link");
    let inside = Rel::new(b"d/file").expect("a good path");
    assert!(source.tree.file(&inside).is_err() && source.tree.entry(&inside).ok() == Some(None));
    sync(&mut source, &mut target).expect("it works");
    assert!(fs::symlink_metadata(bench.b.join("d")).expect("it is there").is_symlink());
    assert_eq!(fs::read(outside.path().join("file")).expect("it is there"), b"not yours");
}

#[test]
fn what_is_excluded_is_left_alone_on_both_sides() {
    let bench = Bench::new();
    for (dir, text) in [(&bench.a, "a"), (&bench.b, "of b")] {
        fs::create_dir_all(dir.join("var/log")).expect("folders");
        fs::write(dir.join("var/log/access"), text).expect("a file");
        fs::write(dir.join("var/data"), text).expect("a file");
    }
    // Only the target has what is around it.
    fs::create_dir_all(bench.b.join("gone/log")).expect("folders");
    fs::write(bench.b.join("gone/file"), b"x").expect("a file");
    let exclude = ["var/log", "gone/log"].map(|p| Rel::new(p.as_bytes()).expect("a good path"));
    let open = |dir| Place::open(dir, &exclude, false).expect("it opens");
    let (mut source, mut target) = (open(&bench.a), open(&bench.b));
    sync(&mut source, &mut target).expect("it works");
    let read = |path: &str| fs::read_to_string(bench.b.join(path)).ok();
    assert_eq!(read("var/log/access").as_deref(), Some("of b"));
    assert_eq!(read("var/data").as_deref(), Some("a"));
    assert!(bench.b.join("gone/log").is_dir() && read("gone/file").is_none());
}

#[test]
fn content_that_hides_behind_size_and_time_is_found_after_the_first_sync() {
    let bench = Bench::new();
    let [mut source, mut target] = bench.places();
    fs::write(bench.a.join("file"), b"right").expect("a file");
    sync(&mut source, &mut target).expect("it works");
    let file = bench.b.join("file");
    let time = fs::metadata(&file).expect("it is there").modified().expect("a time");
    fs::write(&file, b"wrong").expect("it can be written");
    fs::File::options().write(true).open(&file).expect("a file").set_modified(time).expect("set");
    let report = sync(&mut source, &mut target).expect("it works");
    assert_eq!(report.written, 1);
    bench.assert_equal();
}

#[test]
fn a_file_that_changes_while_it_is_read_is_read_again() {
    let bench = Bench::new();
    let [mut source, mut target] = bench.places();
    let path = bench.a.join("file");
    fs::write(&path, b"first").expect("a file");
    let left = std::sync::atomic::AtomicU32::new(2);
    let meddled = path.clone();
    source.meddle = Some(Meddle(Box::new(move |_| {
        use std::sync::atomic::Ordering::Relaxed;
        if left.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
            fs::write(&meddled, b"later").expect("it can be written");
        }
    })));
    sync(&mut source, &mut target).expect("it works");
    bench.assert_equal();
}

#[test]
fn a_file_that_never_stands_still_is_named_and_keeps_its_old_version() {
    let bench = Bench::new();
    let [mut source, mut target] = bench.places();
    for (dir, text) in [(&bench.a, "new"), (&bench.b, "older")] {
        fs::write(dir.join("busy"), text).expect("a file");
    }
    let path = bench.a.join("busy");
    source.meddle = Some(Meddle(Box::new(move |_| {
        let mut text = fs::read(&path).expect("it can be read");
        text.push(b'.');
        fs::write(&path, text).expect("it can be written");
    })));
    let failed = sync(&mut source, &mut target).expect_err("it cannot work");
    assert!(failed.contains("busy") && failed.contains("exclude"), "{failed}");
    assert_eq!(fs::read(bench.b.join("busy")).expect("it is there"), b"older");
    // Ahead of another sync it is left to that one, and all else comes.
    fs::write(bench.a.join("quiet"), "new").expect("a file");
    let ahead = Order { is_ahead: true, ..Order::default() };
    sync_with(&mut source, &mut target, ahead).expect("it works");
    assert_eq!(fs::read(bench.b.join("busy")).expect("it is there"), b"older");
    assert_eq!(fs::read(bench.b.join("quiet")).expect("it is there"), b"new");
    source.meddle = None;
    sync(&mut source, &mut target).expect("it works");
    bench.assert_equal();
}
