//! The ends of the crowd's connections, and what they say to each other.
//!
//! A question names its connection and its number; the answer is a slice of pseudo-random bytes
//! that both decide. So every byte at either end can be checked, and a wrong one cannot look right.

use std::collections::BTreeMap;

use smoltcp::socket::tcp::State;

use super::{Crowd, Happening};
use crate::engine::{LegId, Link};
use crate::sim::frames::{ACK, RST, Read, SYN, Seg, read};
use crate::sim::host::{PORT, SERVICE};
use crate::sim::model::Conn;
use crate::sim::model::clock::Clock;
use crate::sim::model::conn::reset_for;
use crate::sim::model::habits::Habits;
use crate::sim::rng::{Rng, mix};
use crate::sim::world::SERVER_MAC;

pub(super) type Peer = ([u8; 4], u16);

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x80];
/// Connections of one client address, and their first port.
const OF_ONE: usize = 1_000;
const FIRST_PORT: u16 = 20_000;
const BUFFERS: (usize, usize) = (8_192, 8_192);
const REQUEST_BYTES: usize = 12;
pub(super) const ANSWER_BYTES: (u64, u64) = (100, 3_000);
const CONTENT_BYTES: usize = 1 << 16;

/// A client's end.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) conn: Conn,
    pub(super) wake: u64,
    pub(super) asked: u32,
    written: u32,
    pub(super) answered: u32,
    /// Bytes heard of the answer that is awaited.
    heard: usize,
    pub(super) is_lost: bool,
}

/// A server's end.
#[derive(Clone, Debug)]
struct Served {
    pub(super) conn: Conn,
    pub(super) wake: u64,
    heard: Vec<u8>,
    /// The answer that is being written: which, and how far.
    answer: Option<(Answer, usize)>,
    pub(super) answered: u32,
}

/// A server: everything that a copy of its memory holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    served: BTreeMap<Peer, Served>,
    made: u64,
}

/// A server around it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) machine: Machine,
    habits: Habits,
    pub(super) is_on: bool,
    pub(super) is_still: bool,
    /// What came while it stood still.
    pub(super) waiting: Vec<Vec<u8>>,
    /// How often it began anew.
    pub(super) generation: u32,
}

/// Which bytes an answer is.
#[derive(Clone, Copy, Debug)]
struct Answer {
    from: usize,
    len: usize,
}

impl Answer {
    fn of(flow: usize, round: u32) -> Self {
        let mut rng = Rng::new(mix(flow as u64, u64::from(round)));
        let len = rng.range(ANSWER_BYTES.0, ANSWER_BYTES.1) as usize;
        Self { from: rng.below((CONTENT_BYTES - len) as u64) as usize, len }
    }
}

/// The address and port of a connection's client.
pub(super) fn peer_of(flow: usize) -> Peer {
    let host = flow / OF_ONE + 1;
    ([10, 1, (host >> 8) as u8, host as u8], FIRST_PORT + (flow % OF_ONE) as u16)
}

/// The other way round.
pub(super) fn flow_of(peer: Peer) -> Option<usize> {
    let [10, 1, high, low] = peer.0 else { return None };
    let host = (usize::from(high) << 8 | usize::from(low)).checked_sub(1)?;
    let place = usize::from(peer.1.checked_sub(FIRST_PORT)?);
    (place < OF_ONE).then_some(host * OF_ONE + place)
}

impl Machine {
    /// Goes on after it stood still, as itself or as a copy: whatever it waited for is asked for
    /// anew. Tells whose connections it has.
    pub(super) fn resume(&mut self) -> Vec<Peer> {
        self.served.values_mut().for_each(|served| served.wake = u64::MAX);
        self.served.keys().copied().collect()
    }

    /// Whether it is time for a connection; its alarm is off then.
    pub(super) fn is_due(&mut self, peer: Peer, now: u64) -> bool {
        let served = self.served.get_mut(&peer).filter(|s| s.wake <= now);
        served.map(|s| s.wake = u64::MAX).is_some()
    }
}

/// Stacks much like Linux's, and not two of them alike.
fn habits(rng: &mut Rng) -> Habits {
    Habits {
        mtu: rng.pick(&[1500, 1500, 1280, 9000]),
        clock: rng.chance(800).then(|| Clock {
            first: rng.next() as u32,
            rate: rng.pick(&[1000, 1000, 250]),
            drift_ppm: 0,
        }),
        has_sack: rng.chance(900),
        scale: rng.chance(900).then(|| rng.pick(&[7, 2, 0])),
        nagle: rng.chance(500),
        ..Habits::default()
    }
}

impl Client {
    /// A client that has not begun.
    pub(super) fn new(flow: usize, rng: &mut Rng) -> Self {
        let conn = Conn::new(&habits(rng), peer_of(flow).0, BUFFERS, rng.next());
        let (asked, written, answered) = (0, 0, 0);
        Self { conn, wake: u64::MAX, asked, written, answered, heard: 0, is_lost: false }
    }

    /// Whether it has heard less than it has asked for, or will hear no more.
    pub(super) fn is_wanting(&self) -> bool {
        self.conn.state() != State::Established || self.answered < self.asked
    }
}

impl Server {
    /// One without connections. Both answer alike; their stacks are not alike.
    pub(super) fn new(leg: LegId) -> Self {
        let first = 1 << (7 + 23 * leg.index());
        let habits = Habits {
            clock: Some(Clock { first, rate: 1000, drift_ppm: 0 }),
            mtu: [1500, 1280][leg.index()],
            ..Habits::default()
        };
        let (machine, waiting) = (Machine::default(), Vec::new());
        Self { machine, habits, is_on: true, is_still: false, waiting, generation: 0 }
    }
}

/// What all answers are slices of.
pub(super) fn content() -> Vec<u8> {
    let mut rng = Rng::new(0x5eed);
    (0..CONTENT_BYTES / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
}

impl Crowd {
    // ---- clients ---------------------------------------------------------------------------

    pub(super) fn ask(&mut self, flow: usize) {
        let client = &mut self.clients[flow];
        if client.asked == 0 {
            let isn = mix(self.seed, flow as u64) as u32;
            client.conn.connect(self.now, peer_of(flow).1, (SERVICE, PORT), isn);
        }
        client.asked += 1;
        self.work(flow);
    }

    pub(super) fn at_client(&mut self, frame: &[u8]) {
        let Read::Tcp(seg) = read(frame, true) else { return };
        let Some(flow) = flow_of(seg.dst).filter(|&f| f < self.clients.len()) else { return };
        let mut out = Vec::new();
        self.clients[flow].conn.on_segment(self.now, &seg, &mut out);
        self.say(out);
        self.work(flow);
    }

    pub(super) fn work(&mut self, flow: usize) {
        let mut out = Vec::new();
        let client = &mut self.clients[flow];
        client.conn.poll(self.now, &mut out);
        while client.answered < client.asked {
            let answer = Answer::of(flow, client.answered + 1);
            let bytes = client.conn.readable();
            let n = bytes.len().min(answer.len - client.heard);
            if n == 0 {
                break;
            }
            let from = answer.from + client.heard;
            if bytes[..n] != self.content[from..from + n] {
                let round = client.answered + 1;
                self.outcome.violation.get_or_insert(format!(
                    "connection {flow} hears wrong bytes in answer {round}"
                ));
                return;
            }
            client.conn.consume(n);
            client.heard += n;
            self.outcome.bytes += n as u64;
            if client.heard == answer.len {
                (client.heard, client.answered) = (0, client.answered + 1);
                self.awaited -= 1;
            }
        }
        // One question at a time: the next is written when the one before is answered.
        if client.written < client.asked
            && client.written == client.answered
            && client.conn.can_send()
        {
            client.written += 1;
            let request = request(flow, client.written);
            client.conn.write(&request);
        }
        client.conn.poll(self.now, &mut out);
        let wake = client.conn.wake_at().filter(|&at| at < client.wake);
        if let Some(at) = wake {
            client.wake = at;
            self.at(at, Happening::ClientWake(flow));
        }
        self.say(out);
    }

    fn say(&mut self, frames: Vec<Vec<u8>>) {
        for mut frame in frames {
            frame[..6].copy_from_slice(&SERVER_MAC);
            frame[6..12].copy_from_slice(&CLIENT_MAC);
            self.transmit(Link::Client, true, frame);
        }
    }

    // ---- servers ---------------------------------------------------------------------------

    pub(super) fn at_server(&mut self, leg: LegId, frame: &[u8]) {
        let server = &mut self.servers[leg.index()];
        if !server.is_on {
            return;
        }
        if server.is_still {
            return server.waiting.push(frame.to_vec());
        }
        if frame.len() >= 42 && frame[12..14] == [8, 6] {
            return self.answer_arp(leg, frame);
        }
        let Read::Tcp(seg) = read(frame, true) else { return };
        let mut out = Vec::new();
        match server.machine.served.get_mut(&seg.src) {
            Some(served) => served.conn.on_segment(self.now, &seg, &mut out),
            None => self.on_stranger(leg, &seg, &mut out),
        }
        self.reply(leg, out);
        self.serve(leg, seg.src);
    }

    fn on_stranger(&mut self, leg: LegId, seg: &Seg<'_>, out: &mut Vec<Vec<u8>>) {
        if !seg.has(SYN) || seg.has(ACK) {
            if !seg.has(RST) {
                out.push(reset_for(seg));
            }
            return;
        }
        let server = &mut self.servers[leg.index()];
        server.machine.made += 1;
        let seed = mix(self.seed ^ leg.index() as u64, server.machine.made);
        let mut conn = Conn::new(&server.habits, SERVICE, BUFFERS, seed);
        conn.listen(PORT);
        conn.on_syn(self.now, seg, seed as u32);
        let served = Served { conn, wake: u64::MAX, heard: Vec::new(), answer: None, answered: 0 };
        server.machine.served.insert(seg.src, served);
    }

    pub(super) fn serve(&mut self, leg: LegId, peer: Peer) {
        let server = &mut self.servers[leg.index()];
        if !server.is_on || server.is_still {
            return;
        }
        let Some(served) = server.machine.served.get_mut(&peer) else { return };
        let mut out = Vec::new();
        served.conn.poll(self.now, &mut out);
        let wrong = served.work(peer, &self.content).err();
        served.conn.poll(self.now, &mut out);
        let wake = served.conn.wake_at().filter(|&at| at < served.wake);
        if let Some(at) = wake {
            served.wake = at;
        }
        if served.conn.state() == State::Closed {
            server.machine.served.remove(&peer);
        }
        if let Some(at) = wake {
            self.at(at, Happening::ServerWake(leg, peer));
        }
        if let Some(what) = wrong {
            self.fail(format!("server {leg:?}: {what}"));
        }
        self.reply(leg, out);
    }

    fn reply(&mut self, leg: LegId, frames: Vec<Vec<u8>>) {
        for mut frame in frames {
            frame[..6].copy_from_slice(&CLIENT_MAC);
            frame[6..12].copy_from_slice(&SERVER_MAC);
            self.transmit(Link::Server(leg), true, frame);
        }
    }

    fn answer_arp(&mut self, leg: LegId, frame: &[u8]) {
        if frame[20..22] != [0, 1] || frame[38..42] != SERVICE {
            return;
        }
        let mut reply = [&frame[6..12], &SERVER_MAC, &frame[12..20], &[0, 2]].concat();
        reply.extend_from_slice(&SERVER_MAC);
        reply.extend_from_slice(&SERVICE);
        reply.extend_from_slice(&frame[22..32]);
        self.transmit(Link::Server(leg), true, reply);
    }
}

fn request(flow: usize, round: u32) -> [u8; REQUEST_BYTES] {
    let mut bytes = *b"ask 12345678";
    bytes[4..8].copy_from_slice(&(flow as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&round.to_be_bytes());
    bytes
}

impl Served {
    /// Reads what is asked, which has to be what this client asks next, and answers it.
    fn work(&mut self, peer: Peer, content: &[u8]) -> Result<(), String> {
        loop {
            let n = self.conn.readable().len();
            self.heard.extend_from_slice(self.conn.readable());
            self.conn.consume(n);
            if self.answer.is_none() && self.heard.len() >= REQUEST_BYTES {
                let flow = flow_of(peer).ok_or("a request from nobody")?;
                let round = self.answered + 1;
                if self.heard[..REQUEST_BYTES] != request(flow, round) {
                    return Err(format!("connection {flow} is heard wrongly in request {round}"));
                }
                self.heard.drain(..REQUEST_BYTES);
                self.answer = Some((Answer::of(flow, round), 0));
            }
            let Some((answer, written)) = &mut self.answer else { return Ok(()) };
            let rest = &content[answer.from + *written..answer.from + answer.len];
            let n = self.conn.write(rest);
            *written += n;
            if *written < answer.len {
                return Ok(());
            }
            (self.answer, self.answered) = (None, self.answered + 1);
        }
    }
}
