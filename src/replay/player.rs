//! One conversation of a capture said again, to one server or to two at once.
//!
//! What the client said is said when its time has come and what it waited for has been heard: as
//! many whole answers of HTTP or FTP, otherwise as many bytes. What the servers answer is compared
//! as it comes: answer by answer for HTTP and FTP, so that one difference hides no other, as one
//! stream otherwise. A data connection of FTP is a conversation of its own, held with each server
//! at the port that this server named, or where its client waits for this server.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Duration, Instant, sleep, timeout, timeout_at};

use super::cookies::{Cookie, Jar, Returning, cookies, replaced, set_cookie};
use super::desk::{Part, Untaken, Way};
use super::ftp::{Lines, command, shown};
use super::lane::{Lane, Parting};
use super::pieces::{Cutter, Piece};
use super::place::{Kind, Place};
use super::rules::{Rules, SpanReader};
use super::sockets::{Connected, Connection, Sockets};
use super::talks::Side;
use super::version::{AHEAD_BYTES_MAX, TAIL_BYTES, Version};
use super::view::{Window, printable};
use super::voices::End;

/// Bytes read at once.
pub(super) const READ_BYTES: usize = 16 << 10;
/// Bytes that wait to be written to a server before more is said.
const OUT_BYTES_MAX: usize = 256 << 10;

/// What is compared with what: the first version and the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// The primary's answers and the backup's.
    Two([SocketAddr; 2]),
    /// The recorded answers and a server's.
    One(SocketAddr),
}

impl Servers {
    /// The server that gives each version; none for what was recorded.
    pub(super) const fn addresses(self) -> [Option<SocketAddr>; 2] {
        match self {
            Self::Two([first, second]) => [Some(first), Some(second)],
            Self::One(server) => [None, Some(server)],
        }
    }
}

/// One step of a conversation, in the order of cause.
#[derive(Debug)]
pub(super) enum Step {
    /// The client said this, so long after the conversation began.
    Say(Duration, Bytes),
    /// The server answered this.
    Heard(Bytes),
    /// A side said so much that was not captured.
    Hole(Side, u64),
    /// A side said no more.
    Over(Side, End),
}

/// Counts the bytes of a step as waiting until it is taken.
#[derive(Debug)]
pub(super) struct Ticket {
    waiting_bytes: Arc<AtomicU64>,
    len: u64,
}

impl Ticket {
    pub(super) fn new(waiting_bytes: &Arc<AtomicU64>, len: usize) -> Self {
        let len = len as u64;
        waiting_bytes.fetch_add(len, Ordering::Relaxed);
        Self { waiting_bytes: Arc::clone(waiting_bytes), len }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting_bytes.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// What came of one conversation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What differed.
    pub differences: Vec<Parted>,
    /// What kept it from being said to its end.
    pub failure: Option<String>,
    /// Requests answered by both, where the protocol tells.
    pub answers: u64,
    /// Bytes said, and bytes compared.
    pub said_bytes: u64,
    /// See `said_bytes`.
    pub compared_bytes: u64,
    /// Values that differ as the rules allow.
    pub masked: u64,
    /// Cookies that each server was told as it had set them itself, and those that a server has not
    /// set and was told as they were captured.
    pub cookies_followed: u64,
    /// See `cookies_followed`.
    pub cookies_unset: u64,
    /// Nanoseconds that each version's answers took, request by request.
    pub latencies_ns: [Vec<u64>; 2],
}

/// One difference.
#[derive(Debug)]
pub struct Parted {
    /// The request that was answered differently, as far as it is known.
    pub request: Option<String>,
    /// Where and how; places count from the beginning of the answer, or of the stream.
    pub parting: Parting,
    /// What stands there.
    pub field: String,
    /// What surrounds it.
    pub windows: [Window; 2],
}

/// How a conversation is said.
#[derive(Clone)]
pub(super) struct Manner {
    pub(super) servers: Servers,
    pub(super) rules: Rules,
    /// Time is so many times as fast as it was; none for as fast as can be.
    pub(super) factor: Option<f64>,
    /// Longest wait for an answer.
    pub(super) patience: Duration,
    /// The recorded client, and the port of its server.
    pub(super) client: SocketAddr,
    pub(super) port: u16,
    /// Who connects the client.
    pub(super) sockets: Sockets,
    /// Cookies to be followed, if there are any.
    pub(super) jar: Option<Arc<Jar>>,
}

/// Says one conversation.
pub(super) async fn play(
    manner: Manner,
    part: Part,
    mut steps: UnboundedReceiver<(Step, Ticket)>,
) -> Outcome {
    let began = Instant::now();
    let mut stage = match Stage::open(&manner, part).await {
        Ok(stage) => stage,
        Err(failure) => return Outcome { failure: Some(failure), ..Outcome::default() },
    };
    let failure = stage.perform(&manner, began, &mut steps).await.err();
    let is_whole = failure.is_none() && stage.is_exchange_whole();
    if stage.broken.is_none() {
        stage.close_exchange(&manner.rules, is_whole);
    }
    if let Part::Control(desk, _) = &stage.part {
        // Who comes to them may be a little behind.
        let doors = desk.borrow().open_doors();
        tokio::spawn(async move {
            sleep(manner.patience).await;
            drop(doors.iter().map(Untaken::take).collect::<Vec<_>>());
        });
    }
    stage.outcome.failure = stage.broken.or(failure);
    stage.outcome
}

/// A conversation while it is said.
struct Stage {
    part: Part,
    /// The recorded server's port.
    port: u16,
    sockets: [Option<Box<dyn Connection>>; 2],
    /// The client's address with each server.
    own: [Option<SocketAddr>; 2],
    /// What is to be written to each.
    out: [VecDeque<Bytes>; 2],
    versions: [Version; 2],
    /// What the capture has of the answers.
    recorded: Place,
    recorded_bytes: u64,
    /// The client has said all, and so had the server.
    is_client_over: bool,
    is_server_over: bool,
    /// The server had said all before the client had.
    is_server_first: bool,
    /// The answers under way.
    lane: Lane,
    /// Follows what both versions agree on.
    agreed: Place,
    agreed_to: u64,
    /// What keeps the client from speaking or hearing, which no server has done.
    broken: Option<String>,
    request: Vec<u8>,
    /// Where each server is told something of its own.
    cutter: Cutter,
    outcome: Outcome,
}

impl Stage {
    async fn open(manner: &Manner, mut part: Part) -> Result<Self, String> {
        let mut request = Vec::new();
        let kind = match &mut part {
            Part::Alone => Kind::Any,
            Part::Control(_, before) => {
                if let Some(mut before) = before.take() {
                    while before.changed().await.is_ok() {}
                }
                Kind::Control
            }
            Part::Data(data) => {
                request.extend_from_slice(data.command.as_bytes());
                Kind::Data
            }
        };
        let follows = manner.jar.is_some() && kind == Kind::Any;
        let place = || match follows {
            true => Place::new(kind).noting(),
            false => Place::new(kind),
        };
        let version = || Version::new(place());
        let (first, second) = tokio::join!(connect(manner, &part, 0), connect(manner, &part, 1));
        let (first, second) = (first?.unzip(), second?.unzip());
        Ok(Self {
            sockets: [first.0, second.0],
            own: [first.1, second.1],
            out: Default::default(),
            versions: [version(), version()],
            recorded: place(),
            recorded_bytes: 0,
            is_client_over: false,
            is_server_over: false,
            is_server_first: false,
            lane: Lane::new(match kind {
                Kind::Data => SpanReader::Plain,
                Kind::Any | Kind::Control => manner.rules.answers(manner.port),
            }),
            agreed: Place::new(kind),
            agreed_to: 0,
            broken: None,
            request,
            cutter: match kind {
                Kind::Control => Cutter::Doors(Lines::default()),
                _ if follows => Cutter::Cookies(Returning::new()),
                _ => Cutter::Plain,
            },
            part,
            port: manner.port,
            outcome: Outcome::default(),
        })
    }

    async fn perform(
        &mut self,
        manner: &Manner,
        began: Instant,
        steps: &mut UnboundedReceiver<(Step, Ticket)>,
    ) -> Result<(), String> {
        while let Some(step) = self.next_step(manner, steps).await {
            match step {
                Step::Say(after, bytes) => {
                    self.hear_what_was_heard(manner).await?;
                    if let Some(factor) = manner.factor {
                        let due = began + after.div_f64(factor.max(1e-6));
                        while timeout_at(due, self.turn()).await.is_ok() {}
                    }
                    self.say(&bytes, manner).await?;
                }
                Step::Heard(bytes) => {
                    self.recorded.read(Side::Server, &bytes);
                    self.recorded_bytes += bytes.len() as u64;
                    self.learn_cookies(manner);
                    if matches!(manner.servers, Servers::One(_)) {
                        self.hear_recorded(&bytes, manner).await?;
                    }
                }
                Step::Hole(Side::Server, len) => {
                    self.recorded_bytes += len;
                    self.recorded.dialogue().hole(Side::Server);
                    if matches!(manner.servers, Servers::One(_)) {
                        self.lane.push_missing(0, len);
                        let parted_at = self.lane.parting.map(|parting| parting.at[0]);
                        self.versions[0].pass(len, parted_at);
                    }
                }
                Step::Hole(Side::Client, len) => {
                    self.hear_what_was_heard(manner).await?;
                    return Err(format!(
                        "{len} bytes that the client said were not captured; it was said up to them"
                    ));
                }
                Step::Over(Side::Client, how) => self.is_client_over |= how == End::Closed,
                Step::Over(Side::Server, how) => {
                    self.is_server_over |= how == End::Closed;
                    self.is_server_first = self.is_server_over && !self.is_client_over;
                }
            }
        }
        self.hear_what_was_heard(manner).await?;
        self.end(manner).await;
        Ok(())
    }

    /// What was recorded stands for the first version. It waits for the second one as a server
    /// would.
    async fn hear_recorded(&mut self, bytes: &[u8], manner: &Manner) -> Result<(), String> {
        let until = Instant::now() + manner.patience;
        for piece in bytes.chunks(READ_BYTES) {
            while self.lane.held(0) >= AHEAD_BYTES_MAX && self.sockets[1].is_some() {
                if timeout_at(until, self.turn()).await.is_err() {
                    return Err(format!(
                        "the server has not answered within {:?}",
                        manner.patience
                    ));
                }
            }
            self.hear(0, piece);
        }
        Ok(())
    }

    /// The next step; the servers are heard meanwhile.
    async fn next_step(
        &mut self,
        manner: &Manner,
        steps: &mut UnboundedReceiver<(Step, Ticket)>,
    ) -> Option<Step> {
        loop {
            tokio::select! {
                biased;
                step = steps.recv() => return step.map(|(step, _)| step),
                () = self.turn() => self.learn_cookies(manner),
            }
        }
    }

    /// Waits until each server has said as much as the client had heard when it went on.
    async fn hear_what_was_heard(&mut self, manner: &Manner) -> Result<(), String> {
        let until = Instant::now() + manner.patience;
        while !self.is_all_heard() {
            self.learn_cookies(manner);
            if timeout_at(until, self.turn()).await.is_err() {
                let who = match (manner.servers, self.is_heard(0), self.is_heard(1)) {
                    (Servers::One(_), ..) => "the server has not",
                    (_, false, false) => "neither server has",
                    (_, false, true) => "the primary has not",
                    _ => "the backup has not",
                };
                return Err(format!("{who} answered within {:?}", manner.patience));
            }
        }
        self.learn_cookies(manner);
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        if self.is_exchange_whole() {
            self.close_exchange(&manner.rules, true);
        }
        Ok(())
    }

    /// What the servers have set where the recorded one had, as soon as all have said it.
    fn learn_cookies(&mut self, manner: &Manner) {
        let Some(jar) = &manner.jar else { return };
        let places = self.versions.iter().map(|version| &version.place);
        let servers = manner.servers.addresses();
        let live = places.zip(servers).filter_map(|(place, server)| server.map(|_| place));
        // Who is not understood any more sets nothing.
        let heard = live.map(|place| place.answered().unwrap_or(u64::MAX));
        let before = heard.min().unwrap_or(0).min(self.recorded.answered().unwrap_or(u64::MAX));
        let theirs =
            self.versions.each_mut().map(|version| version.place.take_notes(Side::Server, before));
        for (answer, field) in self.recorded.take_notes(Side::Server, before) {
            let Some((name, value)) = set_cookie(&field) else { continue };
            let instead = theirs.each_ref().map(|notes| {
                let mut set = notes.iter().filter(|(number, _)| *number == answer);
                set.find_map(|(_, field)| set_cookie(field).filter(|(other, _)| *other == name))
                    .map(|(_, value)| value.to_vec())
            });
            jar.learn(&Cookie::new(manner.client.ip(), (name, value)), instead);
        }
    }

    /// Whether the capture has an answer to each request so far.
    fn is_exchange_whole(&self) -> bool {
        self.recorded.outstanding() == Some(0)
    }

    fn is_all_heard(&self) -> bool {
        self.is_heard(0) && self.is_heard(1)
    }

    fn is_heard(&self, file: usize) -> bool {
        let version = &self.versions[file];
        if self.sockets[file].is_none() {
            return true;
        }
        match (self.recorded.progress(), version.place.progress()) {
            (Some(recorded), Some(answered)) => answered >= recorded,
            _ => version.bytes >= self.recorded_bytes,
        }
    }

    /// Says it as soon as there is room for it.
    async fn say(&mut self, bytes: &Bytes, manner: &Manner) -> Result<(), String> {
        self.recorded.read(Side::Client, bytes);
        if let Some(why) = self.recorded.dialogue().dead_end() {
            return Err(why.to_owned());
        }
        let pieces = self.cutter.cut(bytes.clone());
        for piece in &pieces {
            if let Piece::Cookies(field) = piece {
                self.wait_for_cookies(field, manner).await;
            }
        }
        self.wait_for_room(manner).await?;
        if self.request.len() < 256 && !matches!(self.part, Part::Data(_)) {
            self.request.extend_from_slice(&bytes[..bytes.len().min(256)]);
        }
        self.agreed.read(Side::Client, bytes);
        self.lane.on_request(bytes);
        self.outcome.said_bytes += bytes.len() as u64;
        let now = Instant::now();
        for file in [0, 1] {
            let version = &mut self.versions[file];
            version.place.read(Side::Client, bytes);
            if self.sockets[file].is_some() {
                version.asked_at.get_or_insert(now);
            }
        }
        for piece in pieces {
            self.put_out(piece, manner)?;
        }
        Ok(())
    }

    /// Another conversation may be about to learn what was set.
    async fn wait_for_cookies(&mut self, field: &[u8], manner: &Manner) {
        let Some(jar) = &manner.jar else { return };
        let returned: Vec<_> =
            cookies(field).map(|pair| Cookie::new(manner.client.ip(), pair)).collect();
        let known = timeout(manner.patience, jar.known(&returned));
        tokio::pin!(known);
        loop {
            tokio::select! {
                _ = &mut known => return,
                () = self.turn() => self.learn_cookies(manner),
            }
        }
    }

    /// Hands a piece to the servers: cookies to each as it has set them, and where its client waits
    /// for it.
    fn put_out(&mut self, piece: Piece, manner: &Manner) -> Result<(), String> {
        let mut doors = [None; 2];
        if let Piece::Door(_, at) = &piece
            && at.ip() == manner.client.ip()
        {
            for file in [0, 1].into_iter().filter(|&file| self.sockets[file].is_some()) {
                let door = self.open_door(file, at.port(), manner);
                doors[file] = Some(door.map_err(|error| format!("waiting for a server: {error}"))?);
            }
        }
        let outcome = &mut self.outcome;
        for file in [0, 1].into_iter().filter(|&file| self.sockets[file].is_some()) {
            let bytes = match (&piece, &manner.jar) {
                (Piece::Plain(bytes), _) => bytes.clone(),
                (Piece::Door(line, at), _) => command(line, doors[file].unwrap_or(*at)).into(),
                (Piece::Cookies(field), None) => field.clone().into(),
                (Piece::Cookies(field), Some(jar)) => {
                    let told = replaced(field, |pair| {
                        let instead = jar.instead(&Cookie::new(manner.client.ip(), pair), file)?;
                        match &instead {
                            Some(_) => outcome.cookies_followed += 1,
                            None => outcome.cookies_unset += 1,
                        }
                        instead
                    });
                    told.into()
                }
            };
            if !bytes.is_empty() {
                self.out[file].push_back(bytes);
            }
        }
        Ok(())
    }

    /// Lets the client wait for a server; where it does is what the server is told.
    fn open_door(&self, file: usize, wanted: u16, manner: &Manner) -> io::Result<SocketAddr> {
        let (Some(own), Some(server)) = (self.own[file], manner.servers.addresses()[file]) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let door = manner.sockets.open_door(own.ip(), wanted, server.ip())?;
        let at = door.address()?;
        if let Part::Control(desk, _) = &self.part {
            desk.send_modify(|desk| desk.open(file, door));
        }
        Ok(at)
    }

    /// Waits until the servers have taken enough of what they were told.
    async fn wait_for_room(&mut self, manner: &Manner) -> Result<(), String> {
        if let Part::Data(data) = &self.part {
            let files = self.sockets.each_ref().map(Option::is_some);
            let mut data = data.clone();
            let begun = data.begun(files);
            tokio::pin!(begun);
            loop {
                tokio::select! {
                    () = &mut begun => break,
                    () = self.turn() => {}
                }
            }
        }
        let is_full =
            |out: &VecDeque<Bytes>| out.iter().map(Bytes::len).sum::<usize>() > OUT_BYTES_MAX;
        let mut until = Instant::now() + manner.patience;
        while self.out.iter().any(is_full) {
            let before = self.out.each_ref().map(VecDeque::len);
            if timeout_at(until, self.turn()).await.is_err() {
                return Err(format!("nothing was taken from the client for {:?}", manner.patience));
            }
            if before != self.out.each_ref().map(VecDeque::len) {
                until = Instant::now() + manner.patience;
            }
        }
        Ok(())
    }

    /// Waits for one thing to happen on a connection, and does what follows.
    async fn turn(&mut self) {
        poll_fn(|cx| self.poll_turn(cx)).await;
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for file in [0, 1] {
            let Some(socket) = &mut self.sockets[file] else { continue };
            if self.lane.held(file) < AHEAD_BYTES_MAX {
                let mut buffer = [0; READ_BYTES];
                let mut buffer = ReadBuf::new(&mut buffer);
                if let Poll::Ready(read) = Pin::new(socket).poll_read(cx, &mut buffer) {
                    match (read, buffer.filled()) {
                        (Ok(()), bytes @ [_, ..]) => self.hear(file, bytes),
                        (Ok(()), []) => self.close(file),
                        (Err(error), _) => self.fail(file, &error),
                    }
                    return Poll::Ready(());
                }
            }
            let Some(socket) = &mut self.sockets[file] else { continue };
            if let Some(bytes) = self.out[file].front_mut()
                && let Poll::Ready(written) = Pin::new(socket).poll_write(cx, bytes)
            {
                match written {
                    Ok(len) => bytes.advance(len),
                    Err(error) => self.fail(file, &error),
                }
                if self.out[file].front().is_some_and(Bytes::is_empty) {
                    self.out[file].pop_front();
                }
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// A server's reset is its end; what is ours is not.
    fn fail(&mut self, file: usize, error: &io::Error) {
        if error.kind() == io::ErrorKind::Other {
            self.broken = Some(error.to_string());
        }
        self.close(file);
    }

    fn close(&mut self, file: usize) {
        self.sockets[file] = None;
        self.out[file].clear();
        self.versions[file].is_closed = true;
        self.lane.end(file, End::Closed);
    }

    /// Bytes of one version.
    fn hear(&mut self, file: usize, bytes: &[u8]) {
        let version = &mut self.versions[file];
        version.place.read(Side::Server, bytes);
        version.remember(bytes, self.lane.parting.map(|parting| parting.at[file]));
        let is_answered = match version.place.outstanding() {
            Some(outstanding) => outstanding == 0,
            None => true,
        };
        if is_answered && let Some(asked_at) = version.asked_at.take() {
            self.outcome.latencies_ns[file].push(asked_at.elapsed().as_nanos() as u64);
        }
        if let Part::Control(desk, _) = &self.part {
            let news = self.versions[file].place.dialogue().take_news();
            if !news.is_empty() {
                desk.send_modify(|desk| news.into_iter().for_each(|news| desk.hear(file, news)));
            }
        }
        self.lane.push(file, bytes);
        self.follow();
    }

    /// Follows what both versions agree on by now, and forgets what nothing can need any more.
    fn follow(&mut self) {
        let to = self.lane.at()[0];
        let [first, ..] = &self.versions;
        let begin = first.tail_from;
        let [from, end] = [self.agreed_to, to].map(|at| (first.base + at).saturating_sub(begin));
        if let Some(bytes) = first.tail.get(from as usize..end as usize) {
            self.agreed.read(Side::Server, bytes);
        }
        self.agreed_to = to;
        if self.lane.parting.is_none() {
            for version in &mut self.versions {
                if version.tail.len() > 2 * TAIL_BYTES {
                    let forgotten = version.tail.len() - TAIL_BYTES;
                    version.tail.drain(..forgotten);
                    version.tail_from += forgotten as u64;
                }
            }
        }
    }

    /// The answers under way are whole, or nothing more comes of them.
    fn close_exchange(&mut self, rules: &Rules, is_whole: bool) {
        let heard = |version: &Version| version.bytes - version.base;
        if self.versions.iter().all(|version| heard(version) == 0) && self.request.is_empty() {
            return;
        }
        for file in [0, 1] {
            let is_over = is_whole || self.versions[file].is_closed;
            self.lane.end(file, if is_over { End::Closed } else { End::Open });
        }
        self.lane.finish();
        self.follow();
        let outcome = &mut self.outcome;
        outcome.compared_bytes += self.lane.compared;
        outcome.masked += self.lane.masked;
        if let Some(parting) = self.lane.parting {
            let windows = [0, 1].map(|file| self.versions[file].window(parting.at[file]));
            let line = self.request.split(|byte| matches!(byte, b'\r' | b'\n')).next();
            let line = line.filter(|line| !line.is_empty());
            outcome.differences.push(Parted {
                request: line.map(|line| shown(&printable(line))),
                parting,
                field: self.agreed.describe(Side::Server, windows[0].rest()),
                windows,
            });
        }
        if is_whole {
            self.lane = Lane::new(rules.next_answers(self.port));
            self.agreed = self.versions[0].place.clone();
            self.agreed_to = 0;
            self.request.clear();
            outcome.answers = self.recorded.answered().unwrap_or_default();
            for (file, version) in self.versions.iter_mut().enumerate() {
                version.base = version.bytes;
                version.tail.clear();
                version.tail_from = version.bytes;
                if version.is_closed {
                    self.lane.end(file, End::Closed);
                }
            }
        }
    }

    /// What comes behind the last answer: the ends.
    async fn end(&mut self, manner: &Manner) {
        if let Some(rest) = self.cutter.rest() {
            // What waits is said as it stands.
            let _ = self.put_out(rest, manner);
        }
        let until = Instant::now() + manner.patience;
        while self.out.iter().any(|out| !out.is_empty()) {
            if timeout_at(until, self.turn()).await.is_err() {
                return;
            }
        }
        if !self.is_client_over && !self.is_server_over {
            return;
        }
        // A server may stop saying what its client does not wait for.
        while self.is_server_first
            && self.recorded_bytes > 0
            && matches!(self.part, Part::Data(_))
            && self.sockets.iter().any(Option::is_some)
        {
            if timeout_at(until, self.turn()).await.is_err() {
                return;
            }
        }
        for socket in self.sockets.iter_mut().flatten() {
            let _ = timeout_at(until, socket.shutdown()).await;
        }
        // A server that had closed closes again, or it has more to say than it had.
        while self.is_server_over && self.sockets.iter().any(Option::is_some) {
            if timeout_at(until, self.turn()).await.is_err() {
                return;
            }
        }
        if self.is_server_over && matches!(manner.servers, Servers::One(_)) {
            self.versions[0].is_closed = true;
        }
    }
}

/// The client's connection with a server, if there is this server.
async fn connect(manner: &Manner, part: &Part, file: usize) -> Result<Option<Connected>, String> {
    let Some(mut server) = manner.servers.addresses()[file] else { return Ok(None) };
    let connected = async {
        match part {
            Part::Data(data) if data.way == Way::Active => {
                let mut door = data.clone().door(file).await?;
                let address = door.address()?;
                return match timeout(manner.patience, door.accept()).await {
                    Ok(accepted) => Ok((accepted?, address)),
                    Err(_) => Err(door.stranger().map_or(io::ErrorKind::TimedOut.into(), |who| {
                        io::Error::other(format!("{who} came to {address} instead"))
                    })),
                };
            }
            Part::Data(data) => server.set_port(data.clone().port(file).await?),
            Part::Alone | Part::Control(..) => {}
        }
        manner.sockets.connect(manner.client, server, manner.patience).await
    };
    let connected: io::Result<Connected> = connected.await;
    let failure = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => {
            let hint = manner.sockets.hint(manner.client);
            format!("{server}: no connection within {:?}{hint}", manner.patience)
        }
        _ => format!("{server}: {error}"),
    };
    connected.map(Some).map_err(failure)
}
