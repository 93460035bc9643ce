//! The process that alone may write evidence. The gateway itself can make no file
//! (`io/sandbox.rs`); this one is started before anything is given up, is told a directory and its
//! limits once, and counts what is there. Whoever takes over the gateway can fill that directory up
//! to its limits, and do no more.
//!
//! A file comes as its name, its length and its bytes; the answer is one line: nothing, or why not.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::store::{self, Limits, Store};
use crate::io::privileges;

/// The hidden verb under which the program is its own keeper.
pub const VERB: &str = "evidence-keeper";
/// The longest file that is taken.
const FILE_BYTES_MAX: u64 = 4 << 30;
/// Longest line.
const LINE_BYTES_MAX: u64 = 4096;
/// How often files are looked at for their age.
const LOOK_EVERY: Duration = Duration::from_secs(600);

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    id: String,
    len: u64,
}

/// The gateway's end.
#[derive(Debug)]
pub struct Keeper {
    stream: BufReader<UnixStream>,
    process: Option<Child>,
}

impl Keeper {
    /// Starts `program` (this very program) as keeper of `store`.
    pub fn spawn(program: &Path, store: &Store, limits: Limits) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let process = Command::new(program)
            .arg0("shadowvm")
            .arg(VERB)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .current_dir("/")
            // An interrupt at the terminal is the gateway's to handle.
            .process_group(0)
            .spawn()?;
        write_line(&ours, &(store, limits))?;
        Ok(Self { stream: BufReader::new(ours), process: Some(process) })
    }

    /// Has a file kept; why not, if it was not.
    pub fn keep(&mut self, id: &str, file: &[u8]) -> Result<(), String> {
        let order = Order { id: id.to_owned(), len: file.len() as u64 };
        let mut answer = String::new();
        let mut ask = || -> io::Result<String> {
            write_line(self.stream.get_ref(), &order)?;
            self.stream.get_ref().write_all(file)?;
            (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut answer)?;
            Ok(serde_json::from_str(&answer)?)
        };
        match ask() {
            Ok(why) if why.is_empty() => Ok(()),
            Ok(why) => Err(why),
            Err(error) => Err(format!("the process that writes it is gone ({error})")),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It sees the end of its input, and ends.
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Both);
        if let Some(mut process) = self.process.take() {
            let _ = process.wait();
        }
    }
}

/// The keeper's work, until the gateway is gone.
pub fn serve(stream: UnixStream) -> io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let (store, limits): (Store, Limits) = read_line(&mut input)?
        .ok_or_else(|| io::Error::other("nobody says where evidence is kept"))?;
    // What is missing now may be there later; who asks for a file is told.
    let _ = store.make();
    privileges::drop_to(None)?;
    store.tidy(limits, 0);
    loop {
        // Only between two files is a pause no end of one.
        stream.set_read_timeout(Some(LOOK_EVERY))?;
        match input.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(_) => {}
            Err(error) if is_pause(&error) => {
                store.tidy(limits, 0);
                continue;
            }
            Err(error) => return Err(error),
        }
        stream.set_read_timeout(None)?;
        let Some(Order { id, len }) = read_line(&mut input)? else { return Ok(()) };
        if len > FILE_BYTES_MAX || !store::is_id(&id) {
            return Err(io::Error::other("an order that makes no sense"));
        }
        let mut body = (&mut input).take(len);
        let kept = store.make().and_then(|()| {
            store.tidy(limits, len);
            store.write(&id, &mut body, len)
        });
        // What was not taken is passed over.
        io::copy(&mut body, &mut io::sink())?;
        let why = kept.err().map(|error| format!("{}: {error}", store.dir.display()));
        write_line(&stream, &why.unwrap_or_default())?;
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn write_line(mut stream: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read_line<T: for<'a> Deserialize<'a>>(input: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    input.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keeper(dir: &Path, limits: Limits) -> (Keeper, std::thread::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let store = Store { dir: dir.to_owned() };
        write_line(&ours, &(store, limits)).expect("there is room for a line");
        let serving = std::thread::spawn(move || serve(theirs));
        (Keeper { stream: BufReader::new(ours), process: None }, serving)
    }

    #[test]
    fn what_cannot_be_kept_is_told_and_the_next_one_is_taken_again() {
        let dir = tempfile::tempdir().expect("a directory");
        // Another test may change the umask of this process for a moment (admin/socket.rs).
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("it is ours");
        let place = dir.path().join("evidence");
        let limits = Limits { files_max: 2, bytes_max: 1 << 20, age_ms: 1 << 40 };
        let (mut keeper, serving) = keeper(&place, limits);
        for n in 0..3 {
            let id = format!("20260101-00000{n}.000-failover");
            keeper.keep(&id, &vec![n; 300_000]).expect("it is kept");
        }
        let store = Store { dir: place.clone() };
        let kept: Vec<String> = store.list().expect("a list").into_iter().map(|f| f.id).collect();
        assert_eq!(kept, ["20260101-000001.000-failover", "20260101-000002.000-failover"]);
        std::fs::remove_dir_all(&place).expect("it goes");
        std::fs::write(&place, "in the way").expect("a file");
        let why = keeper.keep("20260101-000004.000-failover", &[1; 100_000]).expect_err("no");
        assert!(why.contains("evidence"), "{why}");
        std::fs::remove_file(&place).expect("it goes");
        keeper.keep("20260101-000005.000-failover", b"x").expect("it is kept");
        assert_eq!(store.list().expect("a list").len(), 1);
        drop(keeper);
        serving.join().expect("no panic").expect("it ends in good order");
    }
}
