//! The lasting world as a user meets it: made, used, hurt, healed, ended, and nothing stays.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The user that the kernel gives to nobody.
const NOBODY: u32 = 65_534;

/// A world that ends with the test.
struct Lab {
    program: PathBuf,
    dir: PathBuf,
    uid: Option<u32>,
    _folder: tempfile::TempDir,
}

impl Lab {
    /// Made by us, or by another user.
    fn up(uid: Option<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let all = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), all).unwrap();
        // Where we were built may be closed to others.
        let program = folder.path().join("shadowvm");
        std::fs::copy(env!("CARGO_BIN_EXE_shadowvm"), &program).unwrap();
        let dir = folder.path().join("world");
        let lab = Self { program, dir, uid, _folder: folder };
        let output = lab.lab(&["up"]);
        assert!(output.status.success(), "{output:?}");
        assert!(text(&output).contains("exec client -- curl"), "{output:?}");
        lab
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null()).current_dir("/");
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    fn lab_command(&self, args: &[&str]) -> Command {
        let dir = self.dir.to_str().unwrap();
        self.command(&[&["lab", "--dir", dir], args].concat())
    }

    fn lab(&self, args: &[&str]) -> Output {
        self.lab_command(args).output().unwrap()
    }

    /// One client's JSON lines about a download of so many bytes.
    fn download(&self, bytes: &str) -> Output {
        let program = self.program.to_str().unwrap();
        self.lab(&["exec", "client", "--", program, "lab-client", "--bytes", bytes])
    }

    fn status(&self) -> String {
        let socket = self.dir.join("admin.sock");
        let status = self.command(&["status", "--socket", socket.to_str().unwrap()]);
        text(&{ status }.output().unwrap())
    }

    fn wait_status(&self, words: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.status().contains(words) {
            assert!(Instant::now() < until, "waited for `{words}`: {}", self.status());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process that owns the world: the oldest with this command line.
    fn holder(&self) -> Pid {
        let mut pids = processes_naming(&self.dir);
        pids.sort_unstable();
        Pid::from_raw(pids[0])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.lab(&["down"]);
    }
}

/// Processes with a folder in their command line.
fn processes_naming(dir: &Path) -> Vec<i32> {
    let dir = dir.to_str().unwrap().as_bytes();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let names = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(dir.len()).any(|part| part == dir)
    };
    pids.filter(names).collect()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn is_right(line: &str) -> bool {
    line.contains("\"is_right\":true")
}

#[test]
fn a_download_outlives_the_primary_and_the_server_returns() {
    let lab = Lab::up(None);
    let program = lab.program.to_str().unwrap();
    let bytes = ["--bytes", "300000000", "--mark", "30000000"];
    let exec = ["exec", "client", "--", program, "lab-client"];
    let mut client =
        lab.lab_command(&[&exec[..], &bytes].concat()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("mark_bytes"), "{line}");
    assert!(lab.lab(&["fault", "kill9", "a"]).status.success());
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(client.wait().unwrap().success() && is_right(&rest), "{rest}");
    lab.wait_status("primary b");
    assert!(lab.lab(&["fault", "--undo", "kill9", "a"]).status.success());
    lab.wait_status("PROTECTED");
    assert!(is_right(&text(&lab.download("1000000"))));
}

#[test]
fn each_fault_can_be_ended_and_the_pair_is_whole_again() {
    let lab = Lab::up(None);
    for fault in ["linkdown", "cut", "freeze", "delete"] {
        let output = lab.lab(&["fault", fault, "b"]);
        assert!(output.status.success(), "{fault}: {output:?}");
        assert!(is_right(&text(&lab.download("2000000"))), "{fault}");
        let output = lab.lab(&["fault", "--undo", fault, "b"]);
        assert!(output.status.success(), "{fault}: {output:?}");
        lab.wait_status("PROTECTED");
    }
    // The sync command makes the answers right again, so there is nothing to end.
    assert!(lab.lab(&["fault", "wrong-byte", "b"]).status.success());
    assert!(is_right(&text(&lab.download("2000000"))));
    lab.wait_status("PROTECTED");
    assert!(!lab.dir.join("wrong-b").exists());
}

#[test]
fn programs_have_our_streams_and_their_exit_status_is_ours() {
    let lab = Lab::up(None);
    let shell = |script: &str| lab.lab(&["exec", "gateway", "--", "sh", "-c", script]);
    let output = shell("echo out; echo err >&2; exit 7");
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(7), "out\n"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert_eq!(shell("kill -TERM $$").status.code(), Some(128 + 15));
    let devices = text(&shell("cat /proc/net/dev"));
    assert!(["client:", "a:", "b:"].iter().all(|name| devices.contains(name)), "{devices}");
    let output = lab.lab(&["exec", "client", "--", "no-such-program"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-program: No such file"));
}

#[test]
fn a_program_ends_with_its_caller() {
    let lab = Lab::up(None);
    let marker = "731731";
    let mut caller = lab.lab_command(&["exec", "a", "--", "sleep", marker]).spawn().unwrap();
    let sleeps = || {
        let list = lab.lab(&["exec", "a", "--", "sh", "-c", "cat /proc/*/cmdline | tr '\\0' ' '"]);
        text(&list).contains(marker)
    };
    let until = Instant::now() + Duration::from_secs(10);
    while !sleeps() {
        assert!(Instant::now() < until, "it never began");
    }
    caller.kill().unwrap();
    caller.wait().unwrap();
    while sleeps() {
        assert!(Instant::now() < until, "it sleeps on");
    }
}

#[test]
fn one_world_at_a_time_and_none_is_told() {
    let lab = Lab::up(None);
    assert_eq!(lab.lab(&["up"]).status.code(), Some(75));
    assert!(lab.lab(&["down"]).status.success());
    assert_eq!(processes_naming(&lab.dir), Vec::<i32>::new());
    assert!(!lab.dir.exists());
    for verb in [&["down"][..], &["fault", "cut"], &["exec", "client", "--", "true"]] {
        let output = lab.lab(verb);
        assert_eq!(output.status.code(), Some(69), "{verb:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("lab up"), "{output:?}");
    }
}

#[test]
fn nothing_is_left_when_the_holder_is_killed() {
    let lab = Lab::up(None);
    kill(lab.holder(), Signal::SIGKILL).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while lab.dir.exists() || !processes_naming(&lab.dir).is_empty() {
        assert!(Instant::now() < until, "{:?}", processes_naming(&lab.dir));
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = lab.lab(&["up"]);
    assert!(output.status.success(), "a world can be made where one was killed: {output:?}");
}

#[test]
fn an_ordinary_user_has_a_world_too() {
    // Where we are no root ourselves, every test is this one.
    let lab = Lab::up(nix::unistd::geteuid().is_root().then_some(NOBODY));
    assert!(is_right(&text(&lab.download("5000000"))));
    assert!(lab.lab(&["fault", "cut", "a"]).status.success());
    assert!(is_right(&text(&lab.download("5000000"))));
    lab.wait_status("primary b");
    assert!(lab.lab(&["down"]).status.success());
    assert!(!lab.dir.exists());
}
