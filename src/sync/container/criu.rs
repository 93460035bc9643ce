//! One run of CRIU: a checkpoint of a tree that goes on, or a restore; and the probe, which does
//! both for real. What `criu check` says is worth nothing: versions that pass it fail in the dump.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::space::Space;
use super::trial;

/// What this backend was seen to work with.
pub const FIX: &str = "install CRIU 4.2.1 or later (Debian 12 has 3.17, which fails on kernels of \
                       today), and name it by sync.container.criu";
/// CRIU tells what it is about to do, and waits for the word to go on.
const HOOK: &str = "#!/bin/sh
case $CRTOOLS_SCRIPT_ACTION in
pre-dump | post-dump)
    echo $CRTOOLS_SCRIPT_ACTION >SAID && read -r word <GO && [ \"$word\" = go ] ;;
esac
";
/// The gateway holds the traffic, so no packet filter is needed; connections that the server has
/// not accepted yet stay with the source.
const DUMP: &[&str] = &["--leave-running", "--tcp-established", "--skip-in-flight", "--file-locks"];
const RESTORE: &[&str] = &["--tcp-established", "--file-locks", "--restore-detached"];

/// How long a checkpoint may take to end by itself.
const STOP_WAIT_MS: u16 = 3000;

/// Where one checkpoint is written, and its hook waits.
#[derive(Debug)]
pub struct Images {
    dir: PathBuf,
    said: File,
    go: File,
}

impl Images {
    /// Makes `dir` anew.
    pub fn new(dir: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(dir)?,
        }
        let pipe = |name: &str| -> io::Result<File> {
            let path = dir.join(name);
            nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            // Open both ways, so that neither side waits for the other to open it.
            let flags = OFlag::O_NONBLOCK.bits();
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
        };
        let (said, go) = (pipe("said")?, pipe("go")?);
        let name = |name: &str| quoted(&dir.join(name));
        let hook = HOOK.replace("SAID", &name("said")).replace("GO", &name("go"));
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(true).mode(0o700);
        options.open(dir.join("hook"))?.write_all(hook.as_bytes())?;
        Ok(Self { dir: dir.to_owned(), said, go })
    }

    /// What CRIU is about to do, if it has told.
    pub fn said(&mut self) -> String {
        let mut buffer = [0; 256];
        let taken = self.said.read(&mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..taken]).trim().to_owned()
    }

    /// Becomes readable when CRIU tells something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.said.as_fd()
    }

    /// CRIU may go on.
    pub fn go(&mut self) -> io::Result<()> {
        self.go.write_all(b"go\n")
    }

    /// How long the source stood still, in microseconds.
    pub fn frozen_us(&self) -> Option<u64> {
        frozen_us(&fs::read(self.dir.join("stats-dump")).ok()?)
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
    }

    /// Why the last run with this log failed.
    pub fn complaint(&self, log: &str) -> String {
        complaint(&self.dir.join(log))
    }
}

/// A run of CRIU.
#[derive(Debug)]
pub struct Run {
    child: Child,
    process: OwnedFd,
    /// Where a checkpoint waits for the word.
    go: Option<File>,
}

impl Run {
    /// Begins a checkpoint of the tree below `root`, a number inside `space`.
    pub fn dump(criu: &str, images: &Images, space: &Space, root: i32) -> io::Result<Self> {
        let mut command = space.command(criu);
        command.args(["dump", "--tree", &root.to_string(), "--network-lock", "skip"]).args(DUMP);
        command.arg("--action-script").arg(images.dir.join("hook"));
        let mut run = Self::start(common(&mut command, &images.dir, "dump.log"))?;
        run.go = Some(images.go.try_clone()?);
        Ok(run)
    }

    /// Begins a restore in `space`. Processes that CRIU itself starts there get numbers above
    /// `above`, so that none of them has one that the tree needs.
    pub fn restore(criu: &str, images: &Images, space: &Space, above: i32) -> io::Result<Self> {
        let last = "/proc/sys/kernel/ns_last_pid";
        let number = format!("read -r n <{last}; [ $n -ge {above} ] || echo {above} >{last}");
        let mut command = space.command("/bin/sh");
        command.args(["-c", &format!("{number}; exec \"$0\" \"$@\""), criu, "restore"]);
        command.args(RESTORE);
        Self::start(common(&mut command, &images.dir, "restore.log"))
    }

    fn start(command: &mut Command) -> io::Result<Self> {
        // A group of its own: what enters a container is not what runs there.
        let child = command.process_group(0).spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process without a number"))?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, process, go: None })
    }

    /// Becomes readable when it has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Whether it ended well; none while it runs.
    pub fn ended(&mut self) -> Option<bool> {
        match self.child.try_wait() {
            Ok(status) => status.map(|status| status.success()),
            Err(_) => Some(false),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A checkpoint that is not wanted any more ends by itself when it asks for the word.
        // Killed, it would leave the source's connections mute.
        if let Some(mut go) = self.go.take().filter(|_| self.ended().is_none()) {
            let _ = go.write_all(b"stop\n");
            let mut fds = [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(STOP_WAIT_MS));
        }
        if self.ended().is_none() {
            let group = i32::try_from(self.child.id()).unwrap_or(0);
            let _ = killpg(nix::unistd::Pid::from_raw(group), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Whether this CRIU works on this kernel: a process that holds what servers hold is written and
/// brought back, in namespaces of its own. Its version, or what is wrong.
pub fn probe(criu: &str, dir: &Path) -> Result<String, String> {
    let said = Command::new(criu).arg("--version").stdin(Stdio::null()).output();
    let said = said.map_err(|error| format!("{criu}: {error}"))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.lines().find_map(|line| line.strip_prefix("Version:")).map(str::trim);
    let version = version.ok_or_else(|| format!("{criu} does not tell its version"))?;
    let dir = dir.join("probe");
    let images = Images::new(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let done = trial::run(criu, &dir).map_err(|error| format!("unshare: {error}"))?;
    let verdict = match done.status.success() {
        true => Ok(version.to_owned()),
        false => {
            let log = if dir.join("restore.log").exists() { "restore.log" } else { "dump.log" };
            let mut why = images.complaint(log);
            if why.is_empty() {
                why = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
            }
            Err(format!("{criu} {version} does not work on this kernel: {why}"))
        }
    };
    let _ = fs::remove_dir_all(&dir);
    verdict
}

fn common<'a>(command: &'a mut Command, dir: &Path, log: &str) -> &'a mut Command {
    // A server that was started from a shell belongs to a session whose first process is elsewhere.
    command.args(["--shell-job", "--verbosity=1", "--log-file", log, "--images-dir"]).arg(dir);
    command.stdout(Stdio::null()).stderr(Stdio::null())
}

/// The last errors in a log of CRIU.
fn complaint(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let told = |line: &&str| line.contains("Error") && !line.contains("RLIMIT_NOFILE");
    // The first says most; what follows are its consequences.
    let lines: Vec<&str> = text.lines().filter(told).take(2).collect();
    lines.join("; ")
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// The time that the tasks were frozen, from an image with the statistics of a dump: two magic
/// numbers, a length, and protobuf: field 1 is the dump's, its field 2 that time.
fn frozen_us(image: &[u8]) -> Option<u64> {
    let outer = field(image.get(12..)?, 1)?;
    let dump = field(outer.bytes?, 2)?;
    dump.number
}

/// What a field of a protobuf message is.
struct Value<'a> {
    number: Option<u64>,
    bytes: Option<&'a [u8]>,
}

/// The first field of this number, if it is a varint or has a length.
fn field(mut message: &[u8], wanted: u64) -> Option<Value<'_>> {
    loop {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Value { number: Some(varint(&mut message)?), bytes: None },
            2 => {
                let len = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(len)?;
                message = rest;
                Value { number: None, bytes: Some(bytes) }
            }
            _ => return None,
        };
        if key >> 3 == wanted {
            return Some(value);
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frozen_time_is_found_behind_other_fields() {
        let mut image = vec![0; 8];
        let dump = [0x08, 0x05, 0x10, 0xac, 0x02, 0x18, 0x07];
        image.extend([9, 0, 0, 0, 0x0a, dump.len() as u8]);
        image.extend(dump);
        assert_eq!(frozen_us(&image), Some(300));
        for len in 0..image.len() - 2 {
            assert_eq!(frozen_us(&image[..len]), None, "{len} bytes of it");
        }
    }

    #[test]
    fn a_hook_tells_and_waits() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("it's");
        let mut images = Images::new(&dir).expect("images");
        let run = |action: &str| {
            // By name: beside other tests its file may still be open in a process just forked.
            let mut hook = Command::new("/bin/sh");
            hook.arg(dir.join("hook"))
                .env("CRTOOLS_SCRIPT_ACTION", action)
                .spawn()
                .expect("a shell")
        };
        let status = run("pre-resume").wait().expect("an end");
        assert!(status.success() && images.said().is_empty());
        let mut hook = run("post-dump");
        let mut fds = [PollFd::new(images.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).expect("it speaks");
        assert_eq!(images.said(), "post-dump");
        assert!(hook.try_wait().expect("a child").is_none(), "it does not wait");
        images.go().expect("room");
        assert!(hook.wait().expect("an end").success());
        let mut hook = run("pre-dump");
        images.go.write_all(b"stop\n").expect("room");
        assert!(!hook.wait().expect("an end").success(), "it goes on unasked");
    }
}
