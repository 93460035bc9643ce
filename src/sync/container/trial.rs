//! The process that the probe of CRIU copies: it holds what servers hold, and waits.
//!
//! It runs in network, pid, mount and ipc namespaces of its own, below a shell that writes it and
//! brings it back; with that shell everything ends.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The hidden argument of the keeper's verb under which the program is that process.
pub const ARGUMENT: &str = "--trial";

/// A probe that takes longer has failed.
const LIMIT_S: &str = "20";
/// $0 is this program, $1 CRIU, $2 the directory.
const SCRIPT: &str = "set -e
ip link set lo up
setsid \"$0\" container-keeper --trial \"$2/said\" </dev/null >/dev/null 2>&1 &
trial=$!
read -r word <\"$2/said\"
\"$1\" dump --tree $trial --shell-job --tcp-established --network-lock skip \\
  --log-file dump.log --images-dir \"$2\"
wait $trial || true
\"$1\" restore --restore-detached --shell-job --tcp-established \\
  --log-file restore.log --images-dir \"$2\"
kill -0 $trial
";

/// Writes and brings back such a process, by this program itself.
pub fn run(criu: &str, dir: &Path) -> io::Result<Output> {
    let mut command = Command::new("timeout");
    command.args(["--signal", "KILL", LIMIT_S, "unshare", "--net", "--pid", "--mount", "--ipc"]);
    command.args(["--fork", "--mount-proc", "--kill-child"]);
    command.args(["/bin/sh", "-c", SCRIPT]).arg(std::env::current_exe()?).arg(criu).arg(dir);
    command.current_dir("/").stdin(Stdio::null()).output()
}

/// The process itself; writes a line to `ready` when it stands.
pub fn stand(ready: &Path) -> io::Result<()> {
    let server = TcpListener::bind("127.0.0.1:80")?;
    let _client = TcpStream::connect(server.local_addr()?)?;
    let _accepted = server.accept()?;
    let _pair = UnixStream::pair()?;
    let _file = fs::File::open("/dev/null")?;
    fs::write(ready, "ready\n")?;
    loop {
        std::thread::park();
    }
}
