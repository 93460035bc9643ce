//! Thousands of connections at once: a server for them, and the client that holds them all open
//! and asks on each.
//!
//! One thread and one task a connection at both ends. Small answers only: an answer is in memory
//! as a whole. What [`super::server`] can do besides is not needed here.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use super::server::head;
use super::{PIECE_MAX, content, first_wrong};

/// Handshakes that wait to be accepted, as far as the kernel allows.
const BACKLOG: u32 = 65_535;
/// Connections that are being opened at the same time.
const OPENING_MAX: usize = 256;
/// Longest head of a request or an answer, in bytes.
const HEAD_MAX: usize = 1024;

/// Serves `GET /bytes/N` (N at most [`PIECE_MAX`]) on all addresses until the process ends; calls
/// `ready` once it listens.
pub fn serve(addresses: &[SocketAddr], ready: impl FnOnce()) -> io::Result<()> {
    allow_many_files();
    runtime()?.block_on(async {
        let listen = |address: &SocketAddr| {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            socket.set_reuseaddr(true)?;
            socket.bind(*address)?;
            socket.listen(BACKLOG)
        };
        let listeners = addresses.iter().map(listen).collect::<io::Result<Vec<_>>>()?;
        ready();
        let mut doors = JoinSet::new();
        for listener in listeners {
            doors.spawn(accept(listener));
        }
        match doors.join_next().await {
            Some(ended) => ended.map_err(io::Error::other)?,
            None => Ok(()),
        }
    })
}

async fn accept(listener: TcpListener) -> io::Result<()> {
    loop {
        match listener.accept().await {
            // A connection that breaks concerns its client, who sees it.
            Ok((stream, _)) => drop(tokio::spawn(converse(stream))),
            // The client has given up already.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(e),
        }
    }
}

async fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = Vec::with_capacity(128);
    loop {
        asked.clear();
        if read_head(&mut stream, &mut asked).await? == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&asked);
        let path = text.split(' ').nth(1).unwrap_or_default();
        let len = path.strip_prefix("/bytes/").and_then(|len| len.parse().ok());
        let Some(len) = len.filter(|len| *len <= PIECE_MAX) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut answer = head("200 OK", "application/octet-stream", len as u64).into_bytes();
        answer.extend_from_slice(content(0, len));
        stream.write_all(&answer).await?;
    }
}

/// Reads to the end of a head, and maybe beyond; the head's length, 0 at the end of the stream.
async fn read_head(stream: &mut TcpStream, into: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        if let Some(end) = into.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(end + 4);
        }
        if into.len() > HEAD_MAX {
            return Err(io::Error::other("the head has no end"));
        }
        if stream.read_buf(into).await? == 0 {
            return match into.is_empty() {
                true => Ok(0),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
    }
}

/// Many connections of one client, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Crowd {
    runtime: Runtime,
    patience: Duration,
    idle: Vec<TcpStream>,
    asked: JoinSet<io::Result<TcpStream>>,
    /// Why connections were lost, in order; of each reason once, with how often.
    lost: Vec<(String, usize)>,
}

impl Crowd {
    /// Nobody yet; a connection that hears nothing for `patience` is lost.
    pub fn new(patience: Duration) -> io::Result<Self> {
        allow_many_files();
        let (idle, asked, lost) = (Vec::new(), JoinSet::new(), Vec::new());
        Ok(Self { runtime: runtime()?, patience, idle, asked, lost })
    }

    /// Opens `count` connections, to each of `targets` in turn.
    ///
    /// Errors: the first that cannot be opened; those before it are open.
    pub fn open(&mut self, targets: &[SocketAddr], count: usize) -> io::Result<()> {
        let patience = self.patience;
        let idle = &mut self.idle;
        self.runtime.block_on(async {
            let mut opening = JoinSet::new();
            let mut next = targets.iter().cycle().take(count);
            loop {
                while opening.len() < OPENING_MAX
                    && let Some(&target) = next.next()
                {
                    opening.spawn(connect(target, patience));
                }
                match opening.join_next().await {
                    Some(opened) => idle.push(opened.map_err(io::Error::other)??),
                    None => return Ok(()),
                }
            }
        })
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.idle.len() + self.asked.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks on every connection for `bytes` bytes; the answers are taken by [`Self::take`].
    pub fn ask(&mut self, bytes: usize) {
        self.each(move |stream| {
            Box::pin(async move {
                stream.write_all(request(bytes).as_bytes()).await?;
                answer(stream, bytes).await
            })
        });
    }

    fn each<F>(&mut self, work: F)
    where
        F: for<'a> Fn(&'a mut TcpStream) -> Work<'a> + Copy + Send + 'static,
    {
        let patience = self.patience;
        let _guard = self.runtime.enter();
        for mut stream in self.idle.drain(..) {
            self.asked.spawn(async move {
                let silent = |_| io::Error::from(io::ErrorKind::TimedOut);
                timeout(patience, work(&mut stream)).await.map_err(silent)??;
                Ok(stream)
            });
        }
    }

    /// Asks on every connection, and leaves what is answered in the kernel's hands: no client reads.
    /// [`Self::read`] takes the answers.
    pub fn ask_unread(&mut self, bytes: usize) {
        let Self { runtime, idle, lost, .. } = self;
        runtime.block_on(async {
            let mut kept = Vec::with_capacity(idle.len());
            for mut stream in idle.drain(..) {
                match stream.write_all(request(bytes).as_bytes()).await {
                    Ok(()) => kept.push(stream),
                    Err(error) => note(lost, error.to_string()),
                }
            }
            *idle = kept;
        });
    }

    /// Reads what [`Self::ask_unread`] left.
    pub fn read(&mut self, bytes: usize) {
        self.each(move |stream| Box::pin(answer(stream, bytes)));
    }

    /// Waits for `count` of the answers, or for all that are left; how many connections were lost.
    pub fn take(&mut self, count: usize) -> usize {
        let Self { runtime, idle, asked, lost, .. } = self;
        let before = lost.iter().map(|(_, times)| times).sum::<usize>();
        runtime.block_on(async {
            for _ in 0..count {
                let Some(answer) = asked.join_next().await else { break };
                match answer.unwrap_or_else(|e| Err(io::Error::other(e))) {
                    Ok(stream) => idle.push(stream),
                    Err(error) => note(lost, error.to_string()),
                }
            }
        });
        lost.iter().map(|(_, times)| times).sum::<usize>() - before
    }

    /// Why connections were lost so far, and how many for each reason.
    pub fn lost(&self) -> &[(String, usize)] {
        &self.lost
    }

    /// Closes them all.
    pub fn close(&mut self) {
        self.idle.clear();
    }

    /// Resets them all: their ports can be used again at once.
    pub fn reset(&mut self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        for stream in self.idle.drain(..) {
            // Where it fails the connection closes as usual.
            let _ = setsockopt(&stream, sockopt::Linger, &linger);
        }
    }
}

fn note(lost: &mut Vec<(String, usize)>, reason: String) {
    match lost.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, times)) => *times += 1,
        None => lost.push((reason, 1)),
    }
}

async fn connect(target: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let silent = |_| io::Error::from(io::ErrorKind::TimedOut);
    let stream = timeout(patience, TcpStream::connect(target)).await.map_err(silent)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What is done with one connection.
type Work<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

fn request(bytes: usize) -> String {
    format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: shadowvm\r\n\r\n")
}

/// Takes one answer, every byte of it checked.
async fn answer(stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
    let mut answer = Vec::with_capacity(bytes + 256);
    let head_len = match read_head(stream, &mut answer).await? {
        0 => return Err(io::Error::other("closed early")),
        len => len,
    };
    while answer.len() < head_len + bytes {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(io::Error::other("closed early"));
        }
    }
    let (head, body) = answer.split_at(head_len);
    if !head.starts_with(b"HTTP/1.1 200 ") || body.len() != bytes {
        return Err(io::Error::other("another answer than was asked for"));
    }
    match first_wrong(0, body) {
        Some(at) => Err(io::Error::other(format!("wrong byte at {at}"))),
        None => Ok(()),
    }
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// As many open files as the system lets this process have.
fn allow_many_files() {
    const MANY: u64 = 1 << 20;
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    let Ok((soft, hard)) = limit else { return };
    // Root may have more than the limit; who may not gets what there is.
    if soft < MANY && setrlimit(Resource::RLIMIT_NOFILE, MANY, hard.max(MANY)).is_err() {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn all_are_asked_and_what_is_lost_is_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let (listens, told) = mpsc::channel();
        std::thread::spawn(move || serve(&[address], || listens.send(()).unwrap()));
        told.recv().unwrap();
        let mut crowd = Crowd::new(Duration::from_secs(10)).unwrap();
        crowd.open(&[address], 300).unwrap();
        for bytes in [0, 1, 20_000] {
            crowd.ask(bytes);
            assert_eq!((crowd.take(100), crowd.take(usize::MAX)), (0, 0));
        }
        assert_eq!((crowd.len(), crowd.lost()), (300, &[][..]));
        crowd.ask_unread(PIECE_MAX);
        crowd.read(PIECE_MAX);
        assert_eq!((crowd.take(usize::MAX), crowd.len()), (0, 300));
        crowd.ask(PIECE_MAX + 1);
        assert_eq!(crowd.take(usize::MAX), 300, "the server closes what it does not understand");
        assert_eq!((crowd.len(), crowd.lost()), (0, &[("closed early".into(), 300)][..]));
        crowd.open(&[address], 2).unwrap();
        crowd.reset();
        assert!(crowd.is_empty());
        crowd.open(&[address], 2).unwrap();
        crowd.close();
        assert!(crowd.is_empty());
    }
}
