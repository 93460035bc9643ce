//! The program as a user meets it: exit codes and messages of the real binary.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const GOOD: &str = "[links]\nclient = \"c0\"\na = \"a0\"\nb = \"b0\"\n[service]\n\
    addressing = \"clone\"\naddress = \"192.0.2.10\"\nports = [80]\n[[server]]\nname = \"one\"\n\
    role = \"primary\"\n[[server]]\nname = \"two\"\nrole = \"backup\"\n";

fn shadowvm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shadowvm")).args(args).output().unwrap()
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

fn file(dir: &Path, text: &str) -> String {
    let path = dir.join("shadowvm.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_good_file_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    let output = shadowvm(&["check", &file(dir.path(), GOOD)]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).ends_with(": OK\n"));
}

#[test]
fn a_bad_file_is_refused_by_check_and_run_with_every_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let bad = GOOD.replace("\"clone\"", "\"vip\"").replace("ports", "potrs");
    let path = file(dir.path(), &bad);
    for args in [vec!["check", &path], vec!["run", "-c", &path]] {
        let output = shadowvm(&args);
        assert_eq!(code(&output), 78, "{args:?}");
        let text = err(&output);
        assert!(text.contains("shadowvm.toml:6: service.addressing"), "{text}");
        assert!(text.contains("not supported by this version"), "{text}");
        assert!(text.contains("did you mean `ports`?"), "{text}");
    }
    let output = shadowvm(&["check", "-o", "json", &path]);
    assert_eq!(code(&output), 78);
    let answer: serde_json::Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["problems"][0]["line"], 5);
}

#[test]
fn an_unreadable_file_and_wrong_usage_are_told_apart_from_mistakes() {
    assert_eq!(code(&shadowvm(&["check", "/nonexistent.toml"])), 2);
    assert_eq!(code(&shadowvm(&["run", "-c", "/nonexistent.toml"])), 2);
    assert_eq!(code(&shadowvm(&["frobnicate"])), 2);
    assert_eq!(code(&shadowvm(&["failover", "--wait", "forever"])), 2);
}

#[test]
fn every_client_verb_says_that_no_gateway_answers() {
    let socket = ["--socket", "/nonexistent/admin.sock"];
    for verb in [
        vec!["status"],
        vec!["status", "--check"],
        vec!["status", "--watch"],
        vec!["flows"],
        vec!["failover"],
        vec!["rejoin", "a"],
        vec!["pause"],
        vec!["resume"],
        vec!["sync", "now"],
        vec!["reload"],
    ] {
        let args: Vec<&str> = verb.iter().copied().chain(socket).collect();
        let output = shadowvm(&args);
        assert_eq!(code(&output), 69, "{verb:?}: {}", err(&output));
        assert!(err(&output).contains("shadowvm run"), "{verb:?}: {}", err(&output));
    }
}

#[test]
fn the_socket_is_found_through_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x.sock");
    let path = file(dir.path(), &format!("{GOOD}[admin]\nsocket = {socket:?}\n"));
    let output = shadowvm(&["status", "-c", &path]);
    assert_eq!(code(&output), 69);
    assert!(err(&output).contains(socket.to_str().unwrap()), "{}", err(&output));
}

#[test]
fn the_first_configuration_is_valid_and_can_be_shown() {
    let dir = tempfile::tempdir().unwrap();
    let first = out(&shadowvm(&["config", "init"]));
    let path = file(dir.path(), &first);
    assert_eq!(code(&shadowvm(&["check", &path])), 0);
    let shown = shadowvm(&["config", "show", "-c", &path]);
    assert_eq!(code(&shown), 0);
    let path = file(dir.path(), &out(&shown));
    assert_eq!(code(&shadowvm(&["check", &path])), 0);
}

#[test]
fn every_verb_has_help() {
    let help = out(&shadowvm(&["--help"]));
    for verb in [
        "run", "check", "config", "doctor", "status", "flows", "failover", "rejoin", "pause",
        "resume", "sync", "reload", "demo", "lab", "bench", "sim",
    ] {
        assert!(help.contains(&format!("  {verb} ")), "{verb} is not in the help");
        assert_eq!(code(&shadowvm(&[verb, "--help"])), 0, "{verb}");
    }
    assert!(!help.contains("helper"), "{help}");
}

#[test]
fn doctor_names_a_link_that_is_missing_and_how_to_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = GOOD.replace("c0", "nonexistent0");
    let output = shadowvm(&["doctor", "-c", &file(dir.path(), &missing)]);
    assert_eq!(code(&output), 1);
    let text = out(&output);
    assert!(text.contains("FAIL   link: nonexistent0 does not exist"), "{text}");
    assert!(text.contains("fix: "), "{text}");
    assert!(text.contains("libvirt"), "{text}");
}
