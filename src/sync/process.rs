//! This very program as a process of the gateway's own, under a hidden verb. It is started before
//! the gateway gives its privileges up, is told things in lines of JSON over one socket, and ends
//! when that socket does.
//!
//! The keeper of evidence (`evidence/keeper.rs`) is one more, by itself: no layer that both may
//! import has anything to do with processes.

use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Serialize;

/// How long a line may take to be taken.
const WRITE_TIMEOUT: Duration = Duration::from_millis(200);

/// The gateway's end of it.
#[derive(Debug)]
pub struct Process {
    stream: UnixStream,
    child: Option<Child>,
}

impl Process {
    /// Starts `program` (this very program) under `verb`. Starts no thread, so it can stand before
    /// everything else.
    pub fn spawn(program: &Path, verb: &str) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(program)
            .arg0("shadowvm")
            .arg(verb)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .current_dir("/")
            // An interrupt at the terminal is the gateway's to handle.
            .process_group(0)
            .spawn()?;
        let mut process = Self::over(ours)?;
        process.child = Some(child);
        Ok(process)
    }

    /// Whoever is at the other end of `stream`.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self { stream, child: None })
    }

    /// Tells it something.
    pub fn tell(&self, message: &impl Serialize) -> io::Result<()> {
        write_line(&self.stream, message)
    }

    /// Its socket once more, for a thread that speaks too.
    pub fn stream(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// What it says.
    pub fn said(&self) -> io::Result<BufReader<UnixStream>> {
        self.stream().map(BufReader::new)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It sees the end of its input, and ends in good order.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

/// One line of JSON.
pub fn write_line(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}
