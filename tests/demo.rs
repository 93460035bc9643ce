//! The demo as a user meets it: each fault tells its story, a wrong byte is noticed, and nothing
//! stays behind, also after SIGKILL.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

const MARK: &str = "SHADOWVM_DEMO_TEST";

/// One demo at a time: they measure times on the same cores.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn demo(mark: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shadowvm"));
    command.arg("demo").args(args).env(MARK, mark).stdin(Stdio::null());
    command
}

/// Processes that were started by the demo with this mark.
fn left_behind(mark: &str) -> Vec<String> {
    let wanted = format!("{MARK}={mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            found.push(format!("{:?}", entry.file_name()));
        }
    }
    found
}

fn links() -> Vec<std::ffi::OsString> {
    let all = std::fs::read_dir("/sys/class/net").expect("sysfs is there").flatten();
    let mut names: Vec<_> = all.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{output:?}"))
}

fn passes(fault: &str) -> Value {
    passes_as(fault, "web", "clone")
}

fn passes_as(fault: &str, scenario: &str, addressing: &str) -> Value {
    let _alone = alone();
    let args = ["--fault", fault, "--scenario", scenario, "--addressing", addressing];
    let args = [&args[..], &["--seconds", "1", "-o", "json"]].concat();
    let output = demo(fault, &args).output();
    let output = output.expect("the program starts");
    let report = report(&output);
    assert!(output.status.success(), "{report}");
    assert_eq!(report["connections_lost"], 0, "{report}");
    assert!(report["bytes_checked"].as_u64().is_some_and(|n| n > 50_000_000), "{report}");
    assert_eq!(left_behind(fault), Vec::<String>::new());
    report
}

#[test]
fn a_killed_primary_is_survived() {
    let report = passes("kill9");
    assert!(report["finding"].as_str().is_some_and(|f| f.starts_with("h1") || f == "h4_flow"));
    assert!(report["sync_ns"].as_u64().is_some());
}

#[test]
fn servers_with_addresses_of_their_own_are_protected_as_well() {
    for addressing in ["vip", "vip-gateway"] {
        let report = passes_as("kill9", "mixed", addressing);
        assert_eq!(report["addressing"], addressing);
        assert_eq!(report["scenario"], "mixed");
        assert!(report["sync_ns"].as_u64().is_some());
    }
}

#[test]
fn ftp_sessions_and_their_transfers_outlive_the_primary() {
    for fault in ["kill9", "cut"] {
        let report = passes_as(fault, "ftp", "clone");
        assert!(report["sync_ns"].as_u64().is_some(), "{report}");
    }
}

#[test]
fn a_lost_carrier_is_survived() {
    assert_eq!(passes("linkdown")["finding"], "h1_carrier");
}

#[test]
fn silence_is_survived() {
    let report = passes("cut");
    assert!(report["finding"].as_str().is_some_and(|f| f == "h2_silence" || f == "h4_flow"));
}

#[test]
fn a_frozen_primary_is_survived() {
    let report = passes("freeze");
    assert!(report["finding"].as_str().is_some_and(|f| f == "h3_stuck" || f == "h4_flow"));
}

#[test]
fn a_wrong_byte_is_never_shown_and_made_right() {
    let report = passes("wrong-byte");
    assert_eq!(report["finding"], Value::Null);
    assert!(report["sync_ns"].as_u64().is_some());
}

#[test]
fn a_slow_backup_does_not_hold_up_the_client() {
    let report = passes("slow");
    assert!(report["unverified_bytes"].as_u64().is_some_and(|n| n > 0), "{report}");
}

#[test]
fn a_byte_that_is_wrong_at_the_client_fails_the_demo() {
    let _alone = alone();
    let args = ["--seconds", "1", "-o", "json", "--plant", "wrong-byte-at-client"];
    let output = demo("plant", &args).output().expect("the program starts");
    let report = report(&output);
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report["problems"].to_string().contains("wrong byte"), "{report}");
}

#[test]
fn the_simulator_says_that_it_is_one() {
    let _alone = alone();
    let output = demo("sim", &["--world", "sim"]).output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let (first, last) = (text.lines().next(), text.lines().last().unwrap_or_default());
    assert!(first.is_some_and(|line| line.contains("SIMULATED")), "{text}");
    assert!(last.contains("SIMULATED"), "{text}");
    // The simulator's own tests say whether all seeds are well; here the verdict has to be theirs.
    assert_eq!(output.status.success(), last.starts_with("PASS"), "{text}");
    assert_eq!(output.status.success(), !text.contains("PROBLEM"), "{text}");
}

#[test]
fn it_speaks_within_a_second_and_leaves_nothing_when_killed() {
    let _alone = alone();
    let links_before = links();
    let start = Instant::now();
    let mut child = demo("killed", &["--seconds", "30"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut lines = lines.map(|line| line.expect("it is text"));
    assert!(lines.next().is_some_and(|line| line.contains("world: ")));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    // In the middle of its work.
    assert!(lines.any(|line| line.contains("keep-alive")));
    assert!(left_behind("killed").len() > 3);
    child.kill().expect("it runs");
    child.wait().expect("it is ours");
    let deadline = Instant::now() + Duration::from_secs(3);
    while !left_behind("killed").is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", left_behind("killed"));
        std::thread::yield_now();
    }
    assert_eq!(links(), links_before);
}
