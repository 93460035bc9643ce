//! The program as a user meets it: exit codes and messages of the real binary.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
    let bad = GOOD.replace("\"clone\"", "\"clon\"").replace("ports", "potrs");
    let path = file(dir.path(), &bad);
    for args in [vec!["check", &path], vec!["run", "-c", &path]] {
        let output = shadowvm(&args);
        assert_eq!(code(&output), 78, "{args:?}");
        let text = err(&output);
        assert!(text.contains("shadowvm.toml:6: service.addressing"), "{text}");
        assert!(text.contains("did you mean `clone`?"), "{text}");
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
        vec!["rules"],
        vec!["rules", "suggest"],
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
        "run",
        "check",
        "config",
        "doctor",
        "status",
        "flows",
        "rules",
        "failover",
        "rejoin",
        "pause",
        "resume",
        "sync",
        "reload",
        "demo",
        "lab",
        "bench",
        "sim",
        "diff",
        "pcap",
        "replay",
        "divergences",
    ] {
        assert!(help.contains(&format!("  {verb} ")), "{verb} is not in the help");
        assert_eq!(code(&shadowvm(&[verb, "--help"])), 0, "{verb}");
    }
    assert!(!help.contains("helper") && !help.contains("keeper"), "{help}");
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

/// A running gateway whose interfaces do not exist, so that it needs no privilege.
struct Gateway {
    process: Child,
    log: BufReader<ChildStderr>,
    dir: tempfile::TempDir,
    config: String,
}

impl Gateway {
    fn start(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Self::configure(dir.path(), extra);
        let (process, log) = Self::spawn(&config);
        Self { process, log, dir, config }
    }

    /// The path of its configuration, with `extra` lines.
    fn configure(dir: &Path, extra: &str) -> String {
        let at = |name: &str| dir.join(name);
        let text = format!(
            "{GOOD}[admin]\nsocket = {:?}\n[state]\nfile = {:?}\n[log]\nevents = {:?}\n\
             [evidence]\nwrite = true\ndir = {:?}\n{extra}",
            at("admin.sock"),
            at("state"),
            at("events"),
            at("evidence")
        )
        .replace("c0", "nonexist0")
        .replace("a0", "nonexist1")
        .replace("b0", "nonexist2");
        file(dir, &text)
    }

    /// Starts it and waits until it says that it runs.
    fn spawn(config: &str) -> (Child, BufReader<ChildStderr>) {
        let mut process = Command::new(env!("CARGO_BIN_EXE_shadowvm"))
            .args(["run", "-c", config])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        wait_for(&mut log, "runs on");
        (process, log)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ask(&self, verb: &[&str]) -> Output {
        let args: Vec<&str> = verb.iter().copied().chain(["-c", &self.config]).collect();
        shadowvm(&args)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the log up to a line that has `words`.
fn wait_for(log: &mut impl BufRead, words: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let n = log.read_line(&mut line).unwrap();
        assert!(n > 0, "the log ended without {words:?}:\n{seen}");
        seen.push_str(&line);
        if line.contains(words) {
            return seen;
        }
    }
}

#[test]
fn a_gateway_lives_answers_and_ends_in_good_order() {
    let mut gateway = Gateway::start("");
    let status = gateway.ask(&["status", "-o", "json"]);
    assert_eq!(code(&status), 0, "{}", err(&status));
    let status: serde_json::Value = serde_json::from_str(&out(&status)).unwrap();
    assert_eq!(status["primary"], "one");
    assert_eq!(status["servers"][1]["interface"], "nonexist2");
    let check = gateway.ask(&["status", "--check"]);
    assert_eq!(code(&check), 1);
    assert!(err(&check).starts_with("not protected: "), "{}", err(&check));
    assert_eq!(code(&gateway.ask(&["flows"])), 0);
    assert!(out(&gateway.ask(&["rules"])).contains("date"));
    assert_eq!(code(&gateway.ask(&["rules", "suggest"])), 0);
    assert_eq!(code(&gateway.ask(&["pause"])), 0);
    assert_eq!(code(&gateway.ask(&["resume"])), 0);
    assert_eq!(code(&gateway.ask(&["sync", "now"])), 1);
    assert_eq!(code(&gateway.ask(&["rejoin", "three"])), 2);
    assert_eq!(code(&gateway.ask(&["run"])), 75, "a second one on the same socket");
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.process.wait().unwrap().success());
    assert!(!gateway.path("admin.sock").exists());
    assert!(gateway.path("state").exists(), "the next start needs it");
    let events = std::fs::read_to_string(gateway.path("events")).unwrap();
    let events: Vec<serde_json::Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|e| e["event"] == "command_done" && e["ok"] == true), "{events:?}");
    let times: Vec<u64> = events.iter().map(|e| e["t_ns"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(code(&gateway.ask(&["status"])), 69);
}

/// The lines `Name: value` of a process's or thread's status.
fn kernel_status(path: impl AsRef<Path>) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

#[test]
fn a_running_gateway_has_given_up_what_it_does_not_need_in_every_thread() {
    let gateway = Gateway::start("");
    let ours = kernel_status("/proc/self/status");
    let set = |status: &BTreeMap<String, String>, name: &str| {
        u64::from_str_radix(&status[name], 16).unwrap()
    };
    let kept = 1 << 12 | 1 << 13; // CAP_NET_ADMIN, CAP_NET_RAW
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", gateway.process.id())).unwrap() {
        let status = kernel_status(task.unwrap().path().join("status"));
        let name = &status["Name"];
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        assert_eq!(status["Seccomp"], "2", "{name}: a filter");
        for capabilities in ["CapEff", "CapPrm"] {
            assert_eq!(set(&status, capabilities), set(&ours, "CapPrm") & kept, "{name}");
        }
        assert_eq!((set(&status, "CapInh"), set(&status, "CapAmb")), (0, 0), "{name}");
        if set(&ours, "CapEff") & 1 << 8 != 0 {
            assert_eq!(set(&status, "CapBnd") & !kept, 0, "{name}: CAP_SETPCAP allows it");
        }
        threads += 1;
    }
    assert!(threads >= 3, "the loop, the admin socket and the event log: {threads}");
    let limits = format!("/proc/{}/limits", gateway.process.id());
    let limits = std::fs::read_to_string(limits).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(core.contains(" 0 "), "{core}");
    let status = gateway.ask(&["status"]);
    assert!(out(&status).contains(", sandboxed"), "{}", out(&status));
}

#[test]
fn another_user_keeps_what_a_returning_link_needs_and_who_cannot_become_it_is_told() {
    let ours = kernel_status("/proc/self/status");
    let caps = u64::from_str_radix(&ours["CapEff"], 16).unwrap();
    let may_become = caps & 1 << 6 != 0 && caps & 1 << 7 != 0; // CAP_SETGID, CAP_SETUID
    let run_as = "[run]\nuid = 65534\n";
    if !may_become {
        let dir = tempfile::tempdir().unwrap();
        let refused = shadowvm(&["run", "-c", &Gateway::configure(dir.path(), run_as)]);
        assert_eq!(code(&refused), 77, "{}", err(&refused));
        return;
    }
    let mut gateway = Gateway::start(run_as);
    let status = kernel_status(format!("/proc/{}/status", gateway.process.id()));
    assert_eq!(status["Uid"], "65534\t65534\t65534\t65534");
    assert_eq!(status["Gid"], "65534\t65534\t65534\t65534");
    assert_eq!(status["Groups"], "");
    assert_eq!(u64::from_str_radix(&status["CapEff"], 16).unwrap(), caps & (1 << 12 | 1 << 13));
    assert_eq!(code(&gateway.ask(&["status"])), 0);
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.process.wait().unwrap().success(), "its socket stays; it ends in good order");
}

#[test]
fn without_the_sandbox_there_is_no_filter_and_status_says_so() {
    let gateway = Gateway::start("[security]\nsandbox = false\n");
    let theirs = kernel_status(format!("/proc/{}/status", gateway.process.id()));
    let ours = kernel_status("/proc/self/status");
    assert_eq!(theirs["Seccomp"], ours["Seccomp"]);
    assert_eq!(theirs["NoNewPrivs"], "1");
    assert!(out(&gateway.ask(&["status"])).contains(", no sandbox"));
    let changed = std::fs::read_to_string(&gateway.config).unwrap();
    std::fs::write(&gateway.config, changed.replace("sandbox = false", "sandbox = true")).unwrap();
    let refused = gateway.ask(&["reload"]);
    assert!(err(&refused).contains("security cannot change"), "{}", err(&refused));
}

#[test]
fn reload_takes_what_can_change_and_refuses_the_rest() {
    let mut gateway = Gateway::start("");
    let good = std::fs::read_to_string(&gateway.config).unwrap();
    let write = |text: &str| std::fs::write(&gateway.config, text).unwrap();
    write(&format!("{good}[compare]\nhold_hard = \"200ms\"\n"));
    assert_eq!(code(&gateway.ask(&["reload"])), 0);
    let socket = gateway.path("admin.sock");
    let reload = || shadowvm(&["reload", "--socket", socket.to_str().unwrap()]);
    write(&good.replace("nonexist0", "nonexist9"));
    let restart = reload();
    assert_eq!(code(&restart), 1);
    assert!(err(&restart).contains("links cannot change while running"), "{}", err(&restart));
    write(&good.replace("ports", "potrs"));
    let broken = reload();
    assert_eq!(code(&broken), 78);
    assert!(err(&broken).contains("did you mean `ports`?"), "{}", err(&broken));
    gateway.signal(Signal::SIGHUP);
    let log = wait_for(&mut gateway.log, "the configuration in force stays");
    assert!(log.contains("WARN"), "{log}");
    write(&good);
    gateway.signal(Signal::SIGHUP);
    wait_for(&mut gateway.log, "the new configuration is in force");
}

#[test]
fn after_a_kill_its_children_are_gone_and_the_next_start_takes_over() {
    let mut gateway = Gateway::start("[sync]\nbackend = \"exec\"\ncommand = [\"/bin/true\"]\n");
    let children = format!("/proc/{0}/task/{0}/children", gateway.process.id());
    let children = std::fs::read_to_string(children).unwrap();
    let children: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(children.len(), 2, "the helper, and the keeper of evidence");
    gateway.signal(Signal::SIGKILL);
    gateway.process.wait().unwrap();
    // They hold the log open, so its end is their end.
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut gateway.log, &mut rest).unwrap();
    // A process closes its files a moment before it is a zombie.
    let is_one_gone = |&pid: &i32| kill(Pid::from_raw(pid), None).is_err() || is_zombie(pid);
    let is_gone = || children.iter().all(is_one_gone);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !is_gone() && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
    assert!(is_gone(), "it lives");
    assert!(gateway.path("admin.sock").exists(), "a killed gateway leaves its socket");
    let (process, log) = Gateway::spawn(&gateway.config);
    (gateway.process, gateway.log) = (process, log);
    assert_eq!(code(&gateway.ask(&["status"])), 0);
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

#[test]
fn a_gateway_without_a_place_for_evidence_runs_and_tells_where_it_would_be() {
    let gateway = Gateway::start("");
    let status = gateway.ask(&["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&out(&status)).unwrap();
    let dir = gateway.path("evidence");
    assert_eq!(status["evidence"]["dir"], dir.to_str().unwrap());
    assert_eq!(status["evidence"]["lost"], 0);
    let mode = std::fs::metadata(&dir).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o700);
    let dir = tempfile::tempdir().unwrap();
    let config = Gateway::configure(dir.path(), "");
    std::fs::write(dir.path().join("evidence"), "in the way").unwrap();
    let (process, log) = Gateway::spawn(&config);
    let without = Gateway { process, log, dir, config };
    assert_eq!(code(&without.ask(&["status"])), 0);
}

#[test]
fn evidence_is_listed_read_and_acknowledged_without_a_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let place = ["--dir", dir.path().to_str().unwrap()];
    let ask = |args: &[&str]| shadowvm(&[&["divergences"], args, &place].concat());
    let empty = ask(&["ls"]);
    assert_eq!(code(&empty), 0);
    assert!(out(&empty).contains("nothing has happened"), "{}", out(&empty));
    assert_eq!(code(&ask(&["show", "last"])), 1);
    let id = "20260101-000000.000-failover";
    let path = dir.path().join(format!("{id}.pcapng"));
    std::fs::write(&path, "no capture").unwrap();
    let listed = ask(&["ls"]);
    assert_eq!(code(&listed), 0);
    assert!(out(&listed).contains("unreadable"), "{}", out(&listed));
    let shown = ask(&["show", "2026"]);
    assert_eq!(code(&shown), 2);
    assert!(err(&shown).contains("this is not a capture"), "{}", err(&shown));
    let again = shadowvm(&["replay", "--engine", path.to_str().unwrap()]);
    assert_eq!(code(&again), 2);
    assert!(err(&again).contains("this is not a capture"), "{}", err(&again));
    let copy = dir.path().join("copy");
    assert_eq!(code(&ask(&["export", "last", copy.to_str().unwrap()])), 0);
    assert_eq!(std::fs::read(&copy).unwrap(), b"no capture");
    assert_eq!(code(&ask(&["export", "last", copy.to_str().unwrap()])), 2, "it is there already");
    assert_eq!(out(&ask(&["ack", "--all"])), "1 acknowledged\n");
    assert_eq!(out(&ask(&["ack", "--all"])), "0 acknowledged\n");
    let listed: serde_json::Value =
        serde_json::from_str(&out(&ask(&["ls", "-o", "json"]))).unwrap();
    assert_eq!((&listed[0]["id"], &listed[0]["acked"]), (&id.into(), &true.into()));
    let nowhere = shadowvm(&["divergences", "ls", "--dir", "/nonexistent/evidence"]);
    assert_eq!(code(&nowhere), 0, "nothing has happened yet");
}

#[test]
fn this_build_contains_no_planted_bugs() {
    let output = shadowvm(&["sim", "--planted"]);
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("--features planted-bugs"), "{}", err(&output));
}

#[test]
fn the_simulator_fails_a_run_only_for_a_seed() {
    let output = shadowvm(&["sim", "--seeds", "200", "--from", "7", "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let report: serde_json::Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(report["seeds"], 200);
    assert_eq!(report["failures"], serde_json::json!([]));
}
