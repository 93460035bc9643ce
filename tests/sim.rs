//! `shadowvm sim` as its user meets it: seeds of a commit, and long runs in parts.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn sim(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shadowvm"));
    command.arg("sim").args(args).current_dir(folder).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A checkout with a file in `src`, committed.
fn checkout() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "-q"]);
    std::fs::create_dir(dir.path().join("src")).unwrap();
    commit(dir.path(), "first");
    dir
}

fn commit(folder: &Path, text: &str) {
    std::fs::write(folder.join("src/lib.rs"), text).unwrap();
    git(folder, &["add", "src"]);
    git(folder, &["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", text]);
}

fn git(folder: &Path, args: &[&str]) {
    let output = Command::new("git").args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", err(&output));
}

#[test]
fn a_commit_has_seeds_of_its_own_and_the_same_ones_again() {
    let dir = checkout();
    let first_seed = || {
        let output = sim(dir.path(), &["--seeds", "2", "--from-commit", "-o", "json"]);
        assert_eq!(code(&output), 0, "{}", out(&output));
        json(&output)["from"].as_u64().unwrap()
    };
    let seed = first_seed();
    assert!(seed > 0 && seed < 1 << 40, "{seed}");
    assert_eq!(first_seed(), seed);
    commit(dir.path(), "second");
    assert_ne!(first_seed(), seed);
}

#[test]
fn without_a_checkout_there_is_no_seed_of_a_commit_and_no_long_run() {
    let dir = tempfile::tempdir().unwrap();
    let output = sim(dir.path(), &["--seeds", "2", "--from-commit"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("name the first seed by --from S"), "{}", err(&output));
    let output = sim(dir.path(), &["--seeds", "2", "--resume", "kept"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("a long run is one tree's"), "{}", err(&output));
    assert!(!dir.path().join("kept").exists());
}

#[test]
fn a_long_run_goes_on_and_adds_up_to_what_one_run_tells() {
    let dir = checkout();
    let run = |seeds: &str| {
        let output = sim(dir.path(), &["--seeds", seeds, "--resume", "kept", "-o", "json"]);
        assert_eq!(code(&output), 0, "{}", out(&output));
        json(&output)
    };
    assert_eq!(run("30")["parts"], 1);
    let (whole, parts) = (json(&sim(dir.path(), &["--seeds", "60", "-o", "json"])), run("60"));
    assert_eq!(parts["parts"], 2);
    for key in ["seeds", "failovers", "frames_in", "frames_out", "rare", "failures", "from"] {
        assert_eq!(parts[key], whole[key], "{key}");
    }
    let again = run("60");
    assert_eq!((&again["parts"], &again["seconds"]), (&parts["parts"], &parts["seconds"]));
}

#[test]
fn a_long_run_is_refused_on_another_tree() {
    let dir = checkout();
    let run = || sim(dir.path(), &["--seeds", "2", "--resume", "kept"]);
    assert_eq!(code(&run()), 0);
    std::fs::write(dir.path().join("src/lib.rs"), "changed").unwrap();
    let output = run();
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("1 files of src are not as committed"), "{}", err(&output));
    commit(dir.path(), "changed");
    let output = run();
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("of src, here is"), "{}", err(&output));
    let output = sim(dir.path(), &["--seeds", "2", "--resume", "kept", "--from", "5"]);
    assert_eq!(code(&output), 2, "another first seed");
}

#[test]
fn a_case_is_reduced_and_fails_again_by_the_same_rule() {
    let dir = tempfile::tempdir().unwrap();
    let output = sim(dir.path(), &["--seed", "11", "--out", "first"]);
    assert_eq!(code(&output), 0, "{}", out(&output));
    // An oracle that is too strict stands in for a defect: no gateway can send so little.
    let text = std::fs::read_to_string(dir.path().join("first/seed-11.json")).unwrap();
    let mut case: serde_json::Value = serde_json::from_str(&text).unwrap();
    case["scenario"]["cost_max"] = serde_json::json!([0, 20]);
    let strict = dir.path().join("strict.json");
    std::fs::write(&strict, case.to_string()).unwrap();

    let output = sim(dir.path(), &["--replay", "strict.json", "--out", "second"]);
    assert_eq!(code(&output), 1, "{}", err(&output));
    assert!(out(&output).contains("FAIL cost: "), "{}", out(&output));
    let output = sim(dir.path(), &["--replay", "second/seed-11.json"]);
    assert_eq!(code(&output), 1);
    let (told, reduced) = (out(&output), dir.path().join("second/seed-11.json"));
    let reduced: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(reduced).unwrap()).unwrap();
    let failure = reduced["failure"].as_str().unwrap();
    assert_eq!(told.matches(failure).count(), 3, "then, in the log, and now: {told}");
    let conns = |case: &serde_json::Value| case["scenario"]["conns"].as_array().unwrap().len();
    assert!(conns(&case) > 1 && conns(&reduced) == 1, "{told}");

    let capture = std::fs::File::open(dir.path().join("second/seed-11.pcapng")).unwrap();
    let (frames, error) = shadowvm::io::pcap::read(capture);
    assert!(error.is_none(), "{error:?}");
    for link in 0..3 {
        assert!(frames.iter().any(|f| f.interface == link), "link {link} was captured");
    }
    let output = sim(dir.path(), &["--replay", "second/seed-11.pcapng"]);
    assert_eq!(code(&output), 2, "a capture is no case");
}

#[test]
fn the_same_connections_go_through_every_failover() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--crowd", "200", "--failovers", "4", "-o", "json"];
    let output = sim(dir.path(), &args);
    assert_eq!(code(&output), 0, "{} {}", out(&output), err(&output));
    let told = json(&output);
    for (key, value) in [("flow_failovers", 800), ("lost", 0), ("restored", 800)] {
        assert_eq!(told[key], value, "{key}: {told}");
    }
    assert_eq!(code(&sim(dir.path(), &["--crowd", "200"])), 2, "how often it fails is not said");
}
