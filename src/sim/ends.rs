//! The applications at the ends: clients that ask and verify, servers that answer by script.
//!
//! A server is a pure function of what it was asked, so that everything it does can be checked: its
//! input must be a prefix of what the client sent (oracle 2). A client hears only what one
//! deterministic server would have said (oracle 1).

use std::collections::BTreeMap;

use super::host::{Handle, Host, Socket, State};
use super::jar::{Hearing, Jar};
use super::scenario::{Close, ConnPlan, Scenario, ServerPlan};
use super::script::{self, Script, Verifier};
use crate::engine::LegId;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not begun.
    Waiting,
    /// Under way.
    Open,
    /// Everything was said and heard, both directions closed, or the client gave up by plan.
    Done,
    /// Reset, or ended before everything was heard.
    Broken,
}

/// The client's end of one connection.
#[derive(Debug)]
pub struct ClientConn {
    /// How far it is.
    pub progress: Progress,
    /// When it ended (ns).
    pub ended_at: u64,
    /// When it began (ns).
    pub began_at: u64,
    /// Whether the connection was ever established.
    pub was_established: bool,
    /// What the client hears.
    pub verifier: Verifier,
    /// What it says, with the cookies that it has, and where each request ends.
    pub requests: (Script, Vec<usize>),
    /// Whose version of its cookie each request returns.
    returns: Vec<Option<LegId>>,
    answer_ends: Vec<usize>,
    handle: Option<Handle>,
    sent: usize,
    asked: usize,
    ask_at: Option<u64>,
    paused_until: Option<u64>,
    has_paused: bool,
    has_closed: bool,
    has_heard_end: bool,
}

impl ClientConn {
    /// A connection to come.
    pub fn new(plan: &ConnPlan, may_diverge: bool) -> Self {
        let returns = vec![None; plan.requests.len()];
        let mut answers = Script::default();
        let mut answer_ends = Vec::new();
        for r in &plan.requests {
            script::respond_filled(&mut answers, plan, r, LegId::A, 0);
            answer_ends.push(answers.len());
        }
        Self {
            progress: Progress::Waiting,
            ended_at: 0,
            began_at: 0,
            was_established: false,
            verifier: Verifier::new(plan, may_diverge),
            requests: script::requests(plan, &returns),
            returns,
            answer_ends,
            handle: None,
            sent: 0,
            asked: 0,
            ask_at: None,
            paused_until: None,
            has_paused: false,
            has_closed: false,
            has_heard_end: false,
        }
    }

    /// Where each answer ends, every value at its longest.
    pub fn answer_ends(&self) -> &[usize] {
        &self.answer_ends
    }

    /// Connects.
    pub fn begin(&mut self, now: u64, host: &mut Host, plan: &ConnPlan) {
        let handle = host.add_socket(plan.buffers);
        host.connect(now, handle, plan.port);
        (self.handle, self.progress, self.began_at) = (Some(handle), Progress::Open, now);
    }

    /// Forgets the socket, so that the port can be used again.
    pub fn release(&mut self, host: &mut Host) {
        if let Some(handle) = self.handle.take() {
            host.remove(handle);
        }
    }

    fn end(&mut self, now: u64, progress: Progress) {
        (self.progress, self.ended_at) = (progress, now);
    }

    /// Lets the application work; tells what is wrong, and when it wants to work again (ns).
    pub fn work(
        &mut self,
        now: u64,
        host: &mut Host,
        plan: &ConnPlan,
        jar: &mut Jar,
    ) -> Result<Option<u64>, String> {
        let Some(handle) = self.handle.filter(|_| self.progress == Progress::Open) else {
            return Ok(None);
        };
        let mut socket = host.socket(handle);
        self.was_established |= socket.may_send() || socket.may_recv();
        let mut wake = self.read(now, &mut socket, plan)?;
        let heard = self.verifier.cookies_heard();
        jar.extend(heard.map(|(number, whose)| ((plan.id, number), whose)));
        let was_asked = self.ask(now, &mut socket, plan, jar);
        wake = earlier(wake, was_asked);
        self.close(now, &mut socket, plan);
        Ok(wake)
    }

    fn read(
        &mut self,
        now: u64,
        socket: &mut Socket<'_>,
        plan: &ConnPlan,
    ) -> Result<Option<u64>, String> {
        if let (Some((after, us)), false) = (plan.read_pause, self.has_paused)
            && self.verifier.heard() >= after
            && self.was_established
        {
            (self.has_paused, self.paused_until) = (true, Some(now + us * 1000));
        }
        if let Some(until) = self.paused_until.filter(|&until| now < until) {
            return Ok(Some(until));
        }
        while let Some(heard) = socket.recv(|bytes| self.verifier.hear(bytes)) {
            heard?;
        }
        let is_over = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        self.has_heard_end |= is_over;
        Ok(None)
    }

    fn ask(
        &mut self,
        now: u64,
        socket: &mut Socket<'_>,
        plan: &ConnPlan,
        jar: &Jar,
    ) -> Option<u64> {
        let heard = self.verifier.heard();
        let answered = self.answer_ends.iter().take_while(|&&end| end <= heard).count();
        let mut wake = None;
        while self.asked < plan.requests.len() && self.asked < answered + plan.pipeline {
            let at = *self.ask_at.get_or_insert(now + plan.requests[self.asked].pause_us * 1000);
            if now < at {
                wake = Some(at);
                break;
            }
            let cookie = plan.requests[self.asked].returned;
            if let Some(&whose) = cookie.and_then(|cookie| jar.get(&cookie.by)) {
                self.returns[self.asked] = Some(whose);
                self.requests = script::requests(plan, &self.returns);
            }
            (self.ask_at, self.asked) = (None, self.asked + 1);
        }
        let limit = if self.asked == 0 { 0 } else { self.requests.1[self.asked - 1] };
        while self.sent < limit && socket.can_send() {
            let bytes = self.requests.0.at(self.sent);
            let bytes = &bytes[..bytes.len().min(limit - self.sent)];
            match socket.send(bytes) {
                0 => break,
                n => self.sent += n,
            }
        }
        wake
    }

    fn close(&mut self, now: u64, socket: &mut Socket<'_>, plan: &ConnPlan) {
        let has_all = self.verifier.heard() == self.verifier.len();
        let has_asked = self.sent == self.requests.0.len();
        if plan.close == Close::Abort && self.verifier.heard() * 2 >= self.verifier.len() {
            socket.abort();
            self.end(now, Progress::Done);
            return;
        }
        let wants_to = match plan.close {
            Close::Client | Close::Abort => has_all,
            Close::Half => has_asked,
            Close::Server => self.has_heard_end,
        };
        if wants_to && !self.has_closed && self.was_established && socket.may_close() {
            self.has_closed = true;
            socket.close();
        }
        if self.has_heard_end && !has_all && socket.recv_queue() == 0 {
            self.end(now, Progress::Broken);
            return;
        }
        match socket.state() {
            State::TimeWait if has_all => self.end(now, Progress::Done),
            State::Closed if has_all && self.has_closed && self.has_heard_end => {
                self.end(now, Progress::Done);
            }
            State::Closed => self.end(now, Progress::Broken),
            _ => {}
        }
    }
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// A server's end of one connection.
#[derive(Clone, Debug)]
pub struct ServerConn {
    handle: Handle,
    /// The connection, once its first bytes have told.
    pub conn: Option<usize>,
    /// What the application has read of the requests.
    hearing: Hearing,
    first: Vec<u8>,
    asked: usize,
    script: Script,
    /// Where a split head is to be cut, and the pause there.
    cuts: Vec<(usize, u64)>,
    written: usize,
    write_at: u64,
    paused_until: Option<u64>,
    has_paused: bool,
    has_closed: bool,
    /// The client's end was heard.
    pub has_heard_end: bool,
    /// Nothing was asked yet: so long it is waited for.
    waits_until: Option<u64>,
}

/// A server does not wait longer for the first request (ns). Of a connection that it has come back
/// into it may be the only end: how many requests there were before, it does not know.
const UNASKED: u64 = 30_000_000_000;

/// A server's application and its sockets.
#[derive(Clone, Debug)]
pub struct Server {
    leg: LegId,
    plan: ServerPlan,
    conns: Vec<ServerConn>,
    /// 0, or 1 when its content has changed.
    pub version: u8,
    /// The application does nothing before this time (ns).
    pub frozen_until: u64,
    is_listening: bool,
    /// The number of the last SYN of each client's address and port.
    syns: BTreeMap<([u8; 4], u16), u32>,
    /// What the application has read of each connection, the longest: (bytes, end heard).
    pub inputs: Vec<(usize, bool)>,
}

/// Sockets that wait for connections, probes included.
const BACKLOG: usize = 7;

impl Server {
    /// A server that listens.
    pub fn new(leg: LegId, scenario: &Scenario) -> Self {
        Self {
            leg,
            plan: scenario.servers[leg.index()].clone(),
            conns: Vec::new(),
            version: 0,
            frozen_until: 0,
            is_listening: true,
            syns: BTreeMap::new(),
            inputs: vec![(0, false); scenario.conns.len()],
        }
    }

    /// Keeps enough sockets listening.
    pub fn listen(&mut self, host: &mut Host) {
        if !self.is_listening {
            return;
        }
        let mut idle = 0;
        for conn in &mut self.conns {
            let mut socket = host.socket(conn.handle);
            if socket.state() == State::Closed {
                conn.reset();
                socket.listen();
            }
            idle += usize::from(socket.state() == State::Listen);
        }
        while idle < BACKLOG {
            let handle = host.add_socket(self.plan.buffers);
            host.socket(handle).listen();
            self.conns.push(ServerConn::new(handle));
            idle += 1;
        }
    }

    /// The process is killed: what the kernel does with its sockets.
    pub fn kill(&mut self, host: &mut Host) {
        self.is_listening = false;
        self.end_sockets(host, |_| true);
    }

    /// The worker of one connection is killed: the first that is open.
    pub fn kill_worker(&mut self, host: &mut Host) {
        let mut is_first = true;
        self.end_sockets(host, |is_open| is_open && std::mem::take(&mut is_first));
    }

    fn end_sockets(&mut self, host: &mut Host, mut which: impl FnMut(bool) -> bool) {
        for conn in &mut self.conns {
            let mut socket = host.socket(conn.handle);
            let is_open = socket.is_active() && conn.conn.is_some();
            if !which(is_open) {
                continue;
            }
            conn.has_closed = true;
            match is_open && socket.recv_queue() == 0 {
                true => socket.close(),
                false => socket.abort(),
            }
        }
    }

    /// A SYN has come. The model knows what to do. smoltcp would give it to any listening socket
    /// and keep the old connection of the 4-tuple beside the new one: a new SYN takes the old one's
    /// place here, as in TIME-WAIT (RFC 9293 3.6.1); of a repeated one only its own socket hears.
    /// Returns sockets that must not listen meanwhile.
    pub fn on_syn(&mut self, host: &mut Host, from: ([u8; 4], u16), seq: u32) -> Vec<Handle> {
        let is_of = |host: &mut Host, c: &ServerConn| host.socket(c.handle).peer() == Some(from);
        if matches!(host, Host::Model(_)) {
            return Vec::new();
        }
        let is_repeated = self.syns.insert(from, seq) == Some(seq);
        if is_repeated && self.conns.iter().any(|c| is_of(host, c)) {
            let handles = self.conns.iter().map(|c| c.handle);
            return handles.filter(|&h| host.socket(h).state() == State::Listen).collect();
        }
        while let Some(old) = self.conns.iter().position(|c| is_of(host, c)) {
            let conn = self.conns.swap_remove(old);
            host.remove(conn.handle);
        }
        self.listen(host);
        Vec::new()
    }

    /// Its memory becomes a copy of another server's, whose host is copied at the same time.
    pub fn copy(&mut self, source: &Self) {
        self.conns.clone_from(&source.conns);
        self.syns.clone_from(&source.syns);
        self.inputs.clone_from(&source.inputs);
        (self.version, self.frozen_until) = (source.version, source.frozen_until);
        self.is_listening = source.is_listening;
    }

    /// The machine has lost its memory.
    pub fn forget(&mut self) {
        self.conns.clear();
    }

    /// Lets the application work; tells what is wrong, and when it wants to work again (ns).
    pub fn work(
        &mut self,
        now: u64,
        host: &mut Host,
        scenario: &Scenario,
        requests: &[(Script, Vec<usize>)],
    ) -> Result<Option<u64>, String> {
        if now < self.frozen_until {
            return Ok(Some(self.frozen_until).filter(|&t| t < u64::MAX));
        }
        self.listen(host);
        let mut wake = None;
        for i in 0..self.conns.len() {
            let leg = (self.leg, self.version);
            let conn = &mut self.conns[i];
            let mut socket = host.socket(conn.handle);
            if matches!(socket.state(), State::Listen | State::SynReceived) {
                continue;
            }
            let more = conn.work(now, &mut socket, &self.plan, leg, scenario, requests)?;
            wake = earlier(wake, more);
            if let Some(id) = conn.conn {
                let (bytes, end) = &mut self.inputs[id];
                *bytes = (*bytes).max(conn.hearing.at);
                *end |= conn.has_heard_end;
            }
        }
        Ok(wake)
    }
}

impl ServerConn {
    fn new(handle: Handle) -> Self {
        Self {
            handle,
            conn: None,
            hearing: Hearing::default(),
            first: Vec::new(),
            asked: 0,
            script: Script::default(),
            cuts: Vec::new(),
            written: 0,
            write_at: 0,
            paused_until: None,
            has_paused: false,
            has_closed: false,
            has_heard_end: false,
            waits_until: None,
        }
    }

    fn reset(&mut self) {
        *self = Self::new(self.handle);
    }

    fn work(
        &mut self,
        now: u64,
        socket: &mut Socket<'_>,
        plan: &ServerPlan,
        leg: (LegId, u8),
        scenario: &Scenario,
        requests: &[(Script, Vec<usize>)],
    ) -> Result<Option<u64>, String> {
        let mut wake = None;
        if let (Some((after, us)), false) = (plan.read_pause, self.has_paused)
            && self.hearing.at >= after
        {
            (self.has_paused, self.paused_until) = (true, Some(now + us * 1000));
        }
        match self.paused_until.filter(|&until| now < until) {
            Some(until) => wake = Some(until),
            None => self.read(socket, leg.0, requests)?,
        }
        let Some(id) = self.conn else {
            let until = *self.waits_until.get_or_insert(now + UNASKED);
            let is_over = now >= until || self.has_heard_end;
            if is_over && !self.has_closed && socket.may_close() {
                self.has_closed = true;
                socket.close();
            }
            return Ok(earlier(wake, Some(until).filter(|_| !self.has_closed)));
        };
        let conn = &scenario.conns[id];
        let ends = &requests[id].1;
        while self.asked < ends.len() && self.hearing.at >= ends[self.asked] {
            let request = &conn.requests[self.asked];
            if self.written == self.script.len() {
                self.write_at = self.write_at.max(now + plan.think_us * 1000);
            }
            if let Some(us) = plan.split_head_us.filter(|_| conn.is_http) {
                // Inside one of its values.
                let is_in_token = request.token.is_some() && request.content % 4 < 2;
                let at = if is_in_token { script::TOKEN_AT + 1 } else { 30 };
                self.cuts.push((self.script.len() + at, us));
            }
            let version = if request.is_divergent { leg.1 } else { 0 };
            script::respond(&mut self.script, conn, request, leg.0, version);
            self.asked += 1;
        }
        let more = self.write(now, socket, plan);
        let is_all = self.asked == ends.len() && self.written == self.script.len();
        let wants_to = is_all && (conn.close == Close::Server || self.has_heard_end);
        if wants_to && !self.has_closed && socket.may_close() {
            self.has_closed = true;
            socket.close();
        }
        Ok(earlier(wake, more))
    }

    fn read(
        &mut self,
        socket: &mut Socket<'_>,
        leg: LegId,
        requests: &[(Script, Vec<usize>)],
    ) -> Result<(), String> {
        while let Some(heard) = socket.recv(|bytes| self.hear(leg, bytes, requests)) {
            heard?;
        }
        self.has_heard_end |= !socket.may_recv() && socket.state() != State::Closed;
        Ok(())
    }

    fn hear(
        &mut self,
        leg: LegId,
        bytes: &[u8],
        requests: &[(Script, Vec<usize>)],
    ) -> Result<(), String> {
        let first = match self.conn {
            Some(_) => Vec::new(),
            None => {
                self.first.extend_from_slice(bytes);
                let Some((id, number)) = script::told(&self.first) else { return Ok(()) };
                self.conn = id.filter(|&id| id < requests.len());
                // It may have been asked to take part in the middle of a connection.
                let ends = self.conn.map(|id| &requests[id].1[..]).unwrap_or_default();
                let before = number.and_then(|n| n.checked_sub(1)).and_then(|n| ends.get(n));
                if let (Some(number), Some(&before)) = (number, before) {
                    (self.asked, self.hearing.at) = (number, before);
                }
                std::mem::take(&mut self.first)
            }
        };
        let Some(id) = self.conn else {
            return Err(format!("server {leg:?} heard the beginning of no request"));
        };
        // Oracle 2: what a server hears is what the client said.
        let bytes = if first.is_empty() { bytes } else { &first };
        self.hearing
            .hear(leg, &requests[id].0, bytes)
            .map_err(|at| format!("server {leg:?} heard a wrong byte {at} on connection {id}"))
    }

    fn write(&mut self, now: u64, socket: &mut Socket<'_>, plan: &ServerPlan) -> Option<u64> {
        while self.written < self.script.len() && socket.can_send() {
            if now < self.write_at {
                return Some(self.write_at);
            }
            let cut = self.cuts.iter().find(|(at, _)| *at > self.written).copied();
            let mut limit = plan.chunk.map_or(usize::MAX, |(bytes, _)| bytes);
            if let Some((at, _)) = cut {
                limit = limit.min(at - self.written);
            }
            let bytes = self.script.at(self.written);
            let n = socket.send(&bytes[..bytes.len().min(limit)]);
            if n == 0 {
                break;
            }
            self.written += n;
            let pause = plan.chunk.map_or(0, |(_, us)| us);
            let pause = match cut {
                Some((at, us)) if at == self.written => us,
                _ => pause,
            };
            self.write_at = now + pause * 1000;
        }
        None
    }
}
