//! Benches as a user meets them: what they tell, in which form, and what they say when a peer is
//! missing. Nothing here looks at how long anything took.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shadowvm")).arg("bench").args(args).output().unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The names of all rows; each has a value for every round.
fn names(told: &Value, rounds: usize) -> BTreeSet<String> {
    let rows = told["rows"].as_array().unwrap();
    for row in rows {
        let values = row["values"].as_array().unwrap();
        assert_eq!(values.len(), rounds, "{row}");
        assert!(values.iter().all(Value::is_number), "{row}");
    }
    let name = |row: &Value| row["name"].as_str().unwrap().to_owned();
    rows.iter().map(name).collect()
}

#[test]
fn peers_that_are_not_installed_are_named_with_their_package() {
    let args = ["throughput", "--baseline", "haproxy,nginx"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_shadowvm"));
    let output = command.arg("bench").args(args).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let text = String::from_utf8(output.stderr).unwrap();
    for part in ["UNAVAILABLE", "haproxy: ", "package haproxy", "nginx: ", "package nginx-light"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_shadowvm"))
        .args(["bench", "latency", "--real"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(69));
}

#[test]
fn wrong_figures_are_refused() {
    for args in [
        ["throughput", "--runs", "0"],
        ["throughput", "--baseline", "apache"],
        ["throughput", "--seconds", "0"],
        ["latency", "--rate", "0"],
        ["latency", "--connections", "0"],
        ["scale", "--flows", "0"],
        ["scale", "--flows", "1000000"],
    ] {
        assert_eq!(bench(&args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn throughput_tells_every_path_and_work_in_every_round() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let output = Command::new(env!("CARGO_BIN_EXE_shadowvm"))
        .args(["bench", "throughput", "--runs", "2", "--bytes", "1000000", "--seconds", "0.05"])
        .args(["--baseline", "direct,bridge,route,haproxy", "-o", "json", "--html"])
        .arg(&page)
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    let told: Value = serde_json::from_str(&out(&output)).unwrap();
    let names = names(&told, 2);
    for path in ["shadowvm", "direct", "bridge", "route"] {
        assert!(names.contains(&format!("{path}, rate")), "{names:?}");
        assert!(names.contains(&format!("{path}, processor of all programs")), "{names:?}");
    }
    assert!(names.contains("shadowvm, processor in the middle"), "{names:?}");
    assert!(names.contains("shadowvm to bridge, rate"), "{names:?}");
    let groups: BTreeSet<_> =
        told["rows"].as_array().unwrap().iter().map(|row| row["group"].to_string()).collect();
    assert_eq!(groups.len(), 5, "{groups:?}");
    let unavailable = told["unavailable"].to_string();
    assert!(unavailable.contains("haproxy: "), "{unavailable}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("shadowvm to bridge"), "{page}");
}

#[test]
fn latency_tells_quantiles_and_what_is_added() {
    let args = ["latency", "--runs", "2", "--seconds", "0.1", "--rate", "500", "-o", "json"];
    let told: Value = serde_json::from_str(&out(&bench(&args))).unwrap();
    let names = names(&told, 2);
    for name in ["shadowvm, p99.9", "direct, p50", "added to bridge, p99"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    for curve in told["curves"].as_array().unwrap() {
        assert_eq!(curve["count"], 100, "every request is answered and counted: {curve}");
    }
}

#[test]
fn scale_is_told_as_lines_of_values() {
    let csv = out(&bench(&["scale", "--runs", "2", "--flows", "1,1000", "-o", "csv"]));
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!(lines[0], "bench,group,name,unit,round,value");
    // Two packets' rows, one of memory, one ratio; two rounds each.
    assert_eq!(lines.len(), 1 + 4 * 2, "{csv}");
    for line in &lines[1..] {
        let value: f64 = line.rsplit(',').next().unwrap().parse().unwrap();
        assert!(value > 0.0, "{line}");
    }
}

#[test]
fn comparing_alone_is_told_also_without_a_peer() {
    let output = Command::new(env!("CARGO_BIN_EXE_shadowvm"))
        .args(["bench", "compare", "--runs", "1", "--packets", "2000", "-o", "json"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    let told: Value = serde_json::from_str(&out(&output)).unwrap();
    let names = names(&told, 1);
    for name in ["shadowvm from memory, rate", "shadowvm by sockets, processor for a packet"] {
        assert!(names.contains(name), "{name} is not in {names:?}");
    }
    assert!(told["unavailable"].to_string().contains("qemu-system-x86"), "{told}");
}
