//! Thousands of connections at once: a server for them, and the client that holds them all open
//! and asks on each.
//!
//! One task a connection at both ends, in one thread, or in several where a process may not have
//! so many open files: each thread then has a table of files of its own. Small answers only: an
//! answer is in memory as a whole. What [`super::server`] can do besides is not needed here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use super::server::head;
use super::{PIECE_MAX, content, first_wrong};

/// Handshakes that wait to be accepted, as far as the kernel allows.
const BACKLOG: u32 = 65_535;
/// Connections that are being opened, or asked in turn, at the same time.
const AT_ONCE_MAX: usize = 256;
/// Connections to one address for which the kernel finds ports quickly: beyond half of all ports it
/// tries that half first, for each connection.
const PORTS_FOUND_MAX: usize = 20_000;
/// Ports of our own choice: the first, and how many. An odd number, so that a second round of two
/// targets asks the other one from the same port.
const PORT_FIRST: u16 = 1024;
const PORTS: usize = 64_511;
/// Longest head of a request or an answer, in bytes.
const HEAD_MAX: usize = 1024;

/// Serves `GET /bytes/N` (N at most [`PIECE_MAX`]) on all addresses to so many connections, until
/// the process ends; calls `ready` once it listens.
pub fn serve(addresses: &[SocketAddr], connections: usize, ready: impl FnOnce()) -> io::Result<()> {
    // Each thread says that it listens, and later why it ended.
    let (tell, told) = channel::<io::Result<()>>();
    let threads = threads_for(connections);
    for _ in 0..threads {
        let (addresses, tell) = (addresses.to_vec(), tell.clone());
        in_a_thread(move || {
            let served = serve_some(&addresses, || {
                let _ = tell.send(Ok(()));
            });
            let _ = tell.send(served);
        })?;
    }
    for _ in 0..threads {
        told.recv().map_err(io::Error::other)??;
    }
    ready();
    told.recv().map_err(io::Error::other)?
}

/// What one thread of [`serve`] does. The kernel deals out the connections among them.
fn serve_some(addresses: &[SocketAddr], ready: impl FnOnce()) -> io::Result<()> {
    runtime()?.block_on(async {
        let listen = |address: &SocketAddr| {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(true)?;
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
    groups: Vec<Sender<Task>>,
    /// The next of our own ports.
    port: Arc<AtomicUsize>,
    /// How many connections are open.
    len: usize,
    /// Why connections were lost, in order; of each reason once, with how often.
    lost: Vec<(String, usize)>,
}

/// What a group is told to do.
type Task = Box<dyn FnOnce(&mut Group) + Send>;

impl Crowd {
    /// Nobody yet, and room for so many; a connection that hears nothing for `patience` is lost.
    pub fn new(connections: usize, patience: Duration) -> io::Result<Self> {
        let group = |_| {
            let (tell, told) = channel::<Task>();
            in_a_thread(move || {
                let Ok(mut group) = Group::new(patience) else { return };
                told.iter().for_each(|task| task(&mut group));
            })?;
            Ok(tell)
        };
        let groups = (0..threads_for(connections)).map(group).collect::<io::Result<_>>()?;
        Ok(Self { groups, port: Arc::default(), len: 0, lost: Vec::new() })
    }

    /// Opens `count` connections, to each of `targets` in turn.
    ///
    /// Errors: the first that cannot be opened; those before it are open.
    pub fn open(&mut self, targets: &[SocketAddr], count: usize) -> io::Result<()> {
        let (targets, groups) = (targets.to_vec(), self.groups.len());
        let has_many = count / targets.len().max(1) > PORTS_FOUND_MAX;
        let port = has_many.then(|| Arc::clone(&self.port));
        let opened = self.each(move |group, index| {
            let share = share(count, groups, index);
            group.open(&targets, share, AT_ONCE_MAX / groups, port.as_ref())
        });
        match opened.len() == groups {
            true => opened.into_iter().collect(),
            false => Err(io::Error::other("a thread of the crowd is gone")),
        }
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks on every connection for `bytes` bytes; the answers are taken by [`Self::take`].
    pub fn ask(&mut self, bytes: usize) {
        self.each(move |group, _| group.ask(bytes));
    }

    /// Asks on every connection for `bytes` bytes and takes the answers, of a few at a time.
    pub fn ask_in_turn(&mut self, bytes: usize) {
        let groups = self.groups.len();
        self.each(move |group, _| group.ask_in_turn(bytes, AT_ONCE_MAX / groups));
    }

    /// Asks on every connection, and leaves what is answered in the kernel's hands: no client reads
    /// before [`Self::read`].
    pub fn ask_unread(&mut self, bytes: usize) {
        self.each(move |group, _| group.ask_unread(bytes));
    }

    /// Reads what [`Self::ask_unread`] left.
    pub fn read(&mut self, bytes: usize) {
        self.each(move |group, _| group.read(bytes));
    }

    /// Waits for `count` of the answers, or for all that are left; how many connections were lost.
    pub fn take(&mut self, count: usize) -> usize {
        let groups = self.groups.len();
        let lost = |all: &[(String, usize)]| all.iter().map(|(_, times)| times).sum::<usize>();
        let before = lost(&self.lost);
        self.each(move |group, index| group.take(share(count, groups, index)));
        lost(&self.lost) - before
    }

    /// Why connections were lost so far, and how many for each reason.
    pub fn lost(&self) -> &[(String, usize)] {
        &self.lost
    }

    /// Closes them all.
    pub fn close(&mut self) {
        self.each(|group, _| group.idle.clear());
    }

    /// Resets them all: their ports can be used again at once.
    pub fn reset(&mut self) {
        self.each(|group, _| group.reset());
    }

    /// Lets every group do the same at the same time.
    fn each<T: Send + 'static>(
        &mut self,
        work: impl Fn(&mut Group, usize) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let start = |(index, tell): (usize, &Sender<Task>)| {
            let (work, (answer, answered)) = (work.clone(), channel());
            let task = move |group: &mut Group| {
                let done = work(group, index);
                let _ = answer.send((done, group.len(), std::mem::take(&mut group.lost)));
            };
            // A group whose thread is gone answers nothing.
            let _ = tell.send(Box::new(task));
            answered
        };
        let answers: Vec<Receiver<_>> = self.groups.iter().enumerate().map(start).collect();
        self.len = 0;
        let mut all = Vec::with_capacity(answers.len());
        for (done, len, lost) in answers.iter().flat_map(Receiver::recv) {
            self.len += len;
            lost.into_iter().for_each(|(reason, times)| note(&mut self.lost, reason, times));
            all.push(done);
        }
        all
    }
}

/// The part of `count` that falls to one of `groups`.
fn share(count: usize, groups: usize, index: usize) -> usize {
    count / groups + usize::from(index < count % groups)
}

/// The connections of one thread.
#[derive(Debug)]
struct Group {
    runtime: Runtime,
    patience: Duration,
    idle: Vec<TcpStream>,
    asked: JoinSet<io::Result<TcpStream>>,
    /// Why connections were lost, in order; of each reason once, with how often.
    lost: Vec<(String, usize)>,
}

impl Group {
    fn new(patience: Duration) -> io::Result<Self> {
        let (idle, asked, lost) = (Vec::new(), JoinSet::new(), Vec::new());
        Ok(Self { runtime: runtime()?, patience, idle, asked, lost })
    }

    fn open(
        &mut self,
        targets: &[SocketAddr],
        count: usize,
        at_once: usize,
        port: Option<&Arc<AtomicUsize>>,
    ) -> io::Result<()> {
        let patience = self.patience;
        let idle = &mut self.idle;
        self.runtime.block_on(async {
            let mut opening = JoinSet::new();
            let mut next = targets.iter().cycle().take(count);
            loop {
                while opening.len() < at_once
                    && let Some(&target) = next.next()
                {
                    opening.spawn(connect(target, port.cloned(), patience));
                }
                match opening.join_next().await {
                    Some(opened) => idle.push(opened.map_err(io::Error::other)??),
                    None => return Ok(()),
                }
            }
        })
    }

    fn len(&self) -> usize {
        self.idle.len() + self.asked.len()
    }

    fn ask(&mut self, bytes: usize) {
        self.each(move |stream| {
            Box::pin(async move {
                stream.write_all(request(bytes).as_bytes()).await?;
                answer(stream, bytes).await
            })
        });
    }

    fn ask_in_turn(&mut self, bytes: usize, at_once: usize) {
        let mut left = std::mem::take(&mut self.idle);
        while !left.is_empty() || !self.asked.is_empty() {
            let more = at_once.max(1).saturating_sub(self.asked.len());
            let rest = left.split_off(left.len().saturating_sub(more));
            let done = std::mem::replace(&mut self.idle, rest);
            self.ask(bytes);
            self.idle = done;
            self.take(1);
        }
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

    fn ask_unread(&mut self, bytes: usize) {
        let Self { runtime, idle, lost, .. } = self;
        runtime.block_on(async {
            let mut kept = Vec::with_capacity(idle.len());
            for mut stream in idle.drain(..) {
                match stream.write_all(request(bytes).as_bytes()).await {
                    Ok(()) => kept.push(stream),
                    Err(error) => note(lost, error.to_string(), 1),
                }
            }
            *idle = kept;
        });
    }

    fn read(&mut self, bytes: usize) {
        self.each(move |stream| Box::pin(answer(stream, bytes)));
    }

    fn take(&mut self, count: usize) {
        let Self { runtime, idle, asked, lost, .. } = self;
        runtime.block_on(async {
            for _ in 0..count {
                let Some(answer) = asked.join_next().await else { break };
                match answer.unwrap_or_else(|e| Err(io::Error::other(e))) {
                    Ok(stream) => idle.push(stream),
                    Err(error) => note(lost, error.to_string(), 1),
                }
            }
        });
    }

    fn reset(&mut self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        for stream in self.idle.drain(..) {
            // Where it fails the connection closes as usual.
            let _ = setsockopt(&stream, sockopt::Linger, &linger);
        }
    }
}

fn note(lost: &mut Vec<(String, usize)>, reason: String, more: usize) {
    match lost.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, times)) => *times += more,
        None => lost.push((reason, more)),
    }
}

async fn connect(
    target: SocketAddr,
    port: Option<Arc<AtomicUsize>>,
    patience: Duration,
) -> io::Result<TcpStream> {
    let silent = |_| io::Error::from(io::ErrorKind::TimedOut);
    let connecting = async {
        let Some(port) = port else { return TcpStream::connect(target).await };
        let mut refused = None;
        for _ in 0..PORTS {
            match connect_from(port.fetch_add(1, Ordering::Relaxed), target).await {
                // That port is taken.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => refused = Some(e),
                Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => refused = Some(e),
                done => return done,
            }
        }
        Err(refused.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
    };
    let stream = timeout(patience, connecting).await.map_err(silent)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects from the `number`th of our own ports.
async fn connect_from(number: usize, target: SocketAddr) -> io::Result<TcpStream> {
    let (socket, any) = match target {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(any, PORT_FIRST + (number % PORTS) as u16))?;
    socket.connect(target).await
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

/// Runs `work` in a thread with a table of open files of its own: the limit holds for each table.
fn in_a_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // With its first runtime tokio opens what all of them share: it has to be in every table.
    drop(runtime()?);
    let (has_table, told) = sync_channel(0);
    thread::Builder::new().name("crowd".into()).spawn(move || {
        let unshared = unshare(CloneFlags::CLONE_FILES);
        let is_done = unshared.is_ok();
        let _ = has_table.send(unshared);
        if is_done {
            work();
        }
    })?;
    told.recv().map_err(io::Error::other)?.map_err(io::Error::from)
}

/// How many threads so many connections need. The kernel does not deal them out evenly.
fn threads_for(connections: usize) -> usize {
    let each = files_allowed() * 3 / 4;
    connections.div_ceil(each.max(1)).max(1)
}

/// As many open files as the system lets one table have.
fn files_allowed() -> usize {
    const MANY: u64 = 1 << 20;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1 };
    // Root may have more than the limit, unless it lacks CAP_SYS_RESOURCE.
    let raised = [hard.max(MANY), hard].into_iter().find(|&limit| {
        soft >= limit || setrlimit(Resource::RLIMIT_NOFILE, limit.min(MANY), limit).is_ok()
    });
    usize::try_from(raised.unwrap_or(soft).min(MANY)).unwrap_or(1)
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
        // More than one thread may hold.
        let most = 2 * files_allowed();
        std::thread::spawn(move || serve(&[address], most, || listens.send(()).unwrap()));
        told.recv().unwrap();
        let mut crowd = Crowd::new(most, Duration::from_secs(10)).unwrap();
        assert!(crowd.groups.len() > 1);
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
