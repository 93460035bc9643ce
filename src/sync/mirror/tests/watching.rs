//! What a watch tells is all that a sync looks at, and it is enough.

use std::fs;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::kit::{Bench, edit, look, sync};
use super::trees::{edits, is_idle};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn edits_on_both_sides_are_found_by_the_watches(
        before in edits(30), rounds in prop::collection::vec((edits(12), edits(12)), 1..4),
    ) {
        let bench = Bench::new();
        before.iter().for_each(|change| edit(&bench.a, change));
        let [mut a, mut b] = bench.watched();
        prop_assert!(sync(&mut a, &mut b).is_ok());
        bench.assert_equal();
        for (nth, (of_a, of_b)) in rounds.iter().enumerate() {
            of_a.iter().for_each(|change| edit(&bench.a, change));
            of_b.iter().for_each(|change| edit(&bench.b, change));
            // Roles swap.
            let (source, target, right) = match nth % 2 {
                0 => (&mut a, &mut b, &bench.a),
                _ => (&mut b, &mut a, &bench.b),
            };
            let wanted = look(right);
            let done = sync(source, target);
            prop_assert!(done.is_ok(), "{:?}", done);
            bench.assert_equal();
            prop_assert_eq!(look(right), wanted, "the source was changed");
        }
    }
}

#[test]
fn a_sync_looks_only_at_what_changed_and_an_idle_one_at_nothing() {
    let bench = Bench::new();
    for i in 0..20 {
        fs::create_dir(bench.a.join(format!("d{i}"))).expect("a folder");
        for j in 0..20 {
            fs::write(bench.a.join(format!("d{i}/f{j}")), format!("{i} {j}")).expect("a file");
        }
    }
    let [mut a, mut b] = bench.watched();
    let first = sync(&mut a, &mut b).expect("it works");
    assert_eq!((first.is_full, first.written), (true, 400));
    let idle = sync(&mut a, &mut b).expect("it works");
    assert!(!idle.is_full && is_idle(idle), "{idle:?}");
    assert_eq!(idle.paths, 0, "its own work is doubted: {idle:?}");
    let file = fs::File::options().write(true).open(bench.a.join("d3/f4")).expect("a file");
    file.write_all_at(b"!", 0).expect("a byte");
    let one = sync(&mut a, &mut b).expect("it works");
    assert_eq!((one.is_full, one.written, one.paths), (false, 1, 1), "{one:?}");
    bench.assert_equal();
    let idle = sync(&mut a, &mut b).expect("it works");
    assert_eq!((idle.is_full, idle.paths), (false, 0), "{idle:?}");
}

#[test]
fn what_the_target_did_behind_its_back_is_undone() {
    let bench = Bench::new();
    fs::create_dir_all(bench.a.join("d/e")).expect("folders");
    fs::write(bench.a.join("d/e/f"), b"right").expect("a file");
    let [mut a, mut b] = bench.watched();
    sync(&mut a, &mut b).expect("it works");
    fs::write(bench.b.join("d/e/f"), b"wrong").expect("a file");
    fs::write(bench.b.join("extra"), b"extra").expect("a file");
    let done = sync(&mut a, &mut b).expect("it works");
    assert!(!done.is_full, "{done:?}");
    bench.assert_equal();
    // All of it, which the source's watch says nothing about.
    fs::remove_dir_all(bench.b.join("d")).expect("it goes");
    let done = sync(&mut a, &mut b).expect("it works");
    assert!(!done.is_full && done.written == 1, "{done:?}");
    bench.assert_equal();
}

#[test]
fn a_folder_that_takes_anothers_name_is_not_taken_for_it() {
    // Events tell what was; the name is another folder's by the time that they are heard.
    for _ in 0..20 {
        let bench = Bench::new();
        let [mut a, mut b] = bench.watched();
        sync(&mut a, &mut b).expect("it works");
        fs::create_dir_all(bench.a.join("x/in")).expect("folders");
        fs::rename(bench.a.join("x"), bench.a.join("y")).expect("it moves");
        fs::create_dir(bench.a.join("x")).expect("a folder");
        sync(&mut a, &mut b).expect("it works");
        bench.assert_equal();
        for place in ["x/new", "y/new", "y/in/new"] {
            fs::write(bench.a.join(place), place).expect("a file");
        }
        let done = sync(&mut a, &mut b).expect("it works");
        assert!(!done.is_full && done.written == 3, "{done:?}");
        bench.assert_equal();
    }
}

#[test]
fn folders_that_move_in_and_out_of_the_tree_are_followed() {
    let bench = Bench::new();
    let outside = tempfile::tempdir_in(bench.a.parent().expect("a folder")).expect("a folder");
    fs::create_dir_all(bench.a.join("d/e")).expect("folders");
    fs::write(bench.a.join("d/e/f"), b"1").expect("a file");
    let [mut a, mut b] = bench.watched();
    sync(&mut a, &mut b).expect("it works");
    fs::rename(bench.a.join("d"), outside.path().join("d")).expect("it moves");
    sync(&mut a, &mut b).expect("it works");
    bench.assert_equal();
    // Nothing of it is told any more.
    fs::write(outside.path().join("d/e/f"), b"2").expect("a file");
    assert_eq!(sync(&mut a, &mut b).expect("it works").paths, 0);
    fs::rename(outside.path().join("d"), bench.a.join("back")).expect("it moves");
    sync(&mut a, &mut b).expect("it works");
    bench.assert_equal();
    fs::rename(bench.a.join("back"), bench.a.join("again")).expect("it moves");
    fs::write(bench.a.join("again/e/f"), b"3").expect("a file");
    let done = sync(&mut a, &mut b).expect("it works");
    assert!(!done.is_full, "{done:?}");
    bench.assert_equal();
    fs::write(bench.a.join("again/e/f"), b"4").expect("a file");
    let done = sync(&mut a, &mut b).expect("it works");
    assert_eq!((done.is_full, done.paths, done.written), (false, 1, 1), "{done:?}");
    bench.assert_equal();
}
