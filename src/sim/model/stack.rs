//! A model host: its connections, who hears what, neighbours, and resets for what nobody expects.

use std::collections::{BTreeMap, BTreeSet};

use smoltcp::socket::tcp::State;

use super::conn::{Conn, reset_for};
use super::habits::Habits;
use super::segment::{self, Segment};
use crate::sim::frames::{ACK, RST, Read, SYN, Seg, TooLarge, read, read_frag_needed};
use crate::sim::rng::{Rng, mix};

type Ip = [u8; 4];
type Mac = [u8; 6];

/// Initial sequence numbers move on by one in so many nanoseconds, as Linux's.
const ISN_TICK: u64 = 64;
/// A neighbour is asked for at most so often (ns).
const ASK_EVERY: u64 = 1_000_000_000;
/// Segment sizes that a cookie can remember (Linux's, RFC 4987 3.6).
const COOKIE_MSS: [u16; 4] = [536, 1300, 1440, 1460];
/// What the low bits of a cookie's timestamp say instead of a window scale.
const NO_SCALE: u32 = 15;
/// Selective acknowledgments were agreed.
const COOKIE_SACK: u32 = 16;
/// Bits of a timestamp that belong to the cookie.
const COOKIE_BITS: u32 = 63;
/// Frames kept for a neighbour that has not answered.
const WAITING_MAX: usize = 64;

/// A host.
#[derive(Clone, Debug)]
pub struct Stack {
    habits: Habits,
    mac: Mac,
    ip: Ip,
    rng: Rng,
    seed: u64,
    /// What tells its new numbers from those of the host that it is a copy of.
    salt: u64,
    conns: Vec<Option<Conn>>,
    neighbours: BTreeMap<Ip, Mac>,
    /// Frames without a destination, and when their neighbour was asked for.
    waiting: Vec<Vec<u8>>,
    asked: BTreeMap<Ip, u64>,
    /// Of each pair of ports and peer, where its numbers begin at time 0.
    spaces: BTreeMap<(Ip, u16, u16), u32>,
    /// Cookies that came back: each makes one connection.
    redeemed: BTreeSet<(Ip, u16, u32)>,
    out: Vec<Vec<u8>>,
    /// Frames that are to be addressed.
    unaddressed: Vec<Vec<u8>>,
    /// When it wants to be polled again (ns).
    pub wake_at: Option<u64>,
}

impl Stack {
    /// A host with this address; `seed` feeds its chance.
    pub fn new(habits: &Habits, mac: Mac, ip: Ip, seed: u64) -> Self {
        Self {
            habits: habits.clone(),
            mac,
            ip,
            rng: Rng::new(seed),
            seed,
            salt: 0,
            conns: Vec::new(),
            neighbours: BTreeMap::new(),
            waiting: Vec::new(),
            asked: BTreeMap::new(),
            spaces: BTreeMap::new(),
            redeemed: BTreeSet::new(),
            out: Vec::new(),
            unaddressed: Vec::new(),
            wake_at: None,
        }
    }

    /// The same host once more; connections to come begin at other numbers.
    pub fn copy(&self, salt: u64) -> Self {
        Self { salt, ..self.clone() }
    }

    /// Its character.
    pub fn habits(&self) -> &Habits {
        &self.habits
    }

    /// A new place for a connection: receive and send buffers.
    pub fn add(&mut self, buffers: (usize, usize)) -> usize {
        let conn = Conn::new(&self.habits, self.ip, buffers, self.rng.next());
        match self.conns.iter().position(Option::is_none) {
            Some(free) => {
                self.conns[free] = Some(conn);
                free
            }
            None => {
                self.conns.push(Some(conn));
                self.conns.len() - 1
            }
        }
    }

    /// Forgets one, without a word.
    pub fn remove(&mut self, index: usize) {
        self.conns[index] = None;
    }

    /// One of them.
    pub fn conn(&mut self, index: usize) -> &mut Conn {
        self.conns[index].as_mut().expect("a handle is used until it is removed")
    }

    /// Begins a connection.
    pub fn connect(&mut self, now: u64, index: usize, port: u16, peer: (Ip, u16)) {
        let isn = self.isn(now, peer, port);
        self.conn(index).connect(now, port, peer, isn);
    }

    /// Every pair of ends has its own space, and moves on in it with time (RFC 6528).
    fn isn(&mut self, now: u64, peer: (Ip, u16), port: u16) -> u32 {
        let passed = (now / ISN_TICK) as u32;
        let key = (peer.0, peer.1, port);
        let near_wrap = self.habits.near_wrap;
        let number = mix(self.seed ^ self.salt, u64::from(peer.1) << 16 | u64::from(port));
        let first = *self.spaces.entry(key).or_insert_with(|| match near_wrap {
            Some(span) => {
                0u32.wrapping_sub(1 + (number % u64::from(span.max(1))) as u32).wrapping_sub(passed)
            }
            None => number as u32,
        });
        first.wrapping_add(passed)
    }

    // ---- hearing ---------------------------------------------------------------------------

    /// A frame arrived at `now` (ns).
    pub fn deliver(&mut self, now: u64, frame: &[u8]) {
        if frame.len() >= 42 && frame[12..14] == [8, 6] {
            return self.on_arp(frame);
        }
        if let Some(told) = read_frag_needed(frame) {
            return self.on_too_large(&told);
        }
        let Read::Tcp(seg) = read(frame, true) else { return };
        if seg.dst.0 != self.ip {
            return;
        }
        let is_of = |conn: &Conn| conn.port() == seg.dst.1 && conn.peer() == Some(seg.src);
        let of = self.conns.iter().position(|c| c.as_ref().is_some_and(is_of));
        if let Some(of) = of {
            let conn = self.conns[of].as_mut().expect("it was found");
            if !(seg.has(SYN) && !seg.has(ACK) && conn.gives_way_to(&seg)) {
                return conn.on_segment(now, &seg, &mut self.unaddressed);
            }
            conn.give_way();
        }
        self.on_stranger(now, &seg);
    }

    fn on_stranger(&mut self, now: u64, seg: &Seg<'_>) {
        if seg.has(RST) {
            return;
        }
        let listens = |c: &Conn| c.state() == State::Listen && c.port() == seg.dst.1;
        let place = self.conns.iter().position(|c| c.as_ref().is_some_and(listens));
        match place {
            Some(place) if self.habits.has_cookies => self.on_cookie(now, seg, place),
            Some(place) if seg.has(SYN) && !seg.has(ACK) => {
                let isn = self.isn(now, seg.src, seg.dst.1);
                self.conn(place).on_syn(now, seg, isn);
            }
            _ => self.unaddressed.push(reset_for(seg)),
        }
    }

    fn on_too_large(&mut self, told: &TooLarge) {
        let is_of = |conn: &&mut Conn| {
            conn.port() == told.src.1 && conn.peer() == Some(told.dst) && told.src.0 == self.ip
        };
        if let Some(conn) = self.conns.iter_mut().flatten().find(is_of) {
            conn.on_too_large(told.seq, told.mtu);
        }
    }

    // ---- SYN cookies (RFC 4987 3.6, as Linux) ------------------------------------------------

    /// A stranger where nothing is kept before the handshake is over.
    fn on_cookie(&mut self, now: u64, seg: &Seg<'_>, place: usize) {
        if seg.has(SYN) && !seg.has(ACK) {
            let answer = self.cookie(now, seg, place);
            return self.unaddressed.push(answer);
        }
        let isn = seg.ack.wrapping_sub(1);
        let seq = seg.seq.wrapping_sub(1);
        let index = (isn & 7) as usize;
        let is_ours = self.cookie_number(seg, seq, index) == isn;
        let is_first = self.redeemed.insert((seg.src.0, seg.src.1, isn));
        let mss = COOKIE_MSS.get(index).filter(|_| is_ours && is_first && seg.has(ACK));
        let Some(&mss) = mss else {
            return self.unaddressed.push(reset_for(seg));
        };
        // Without a timestamp there is no room to remember any other option in.
        let bits = seg.stamps.map_or(NO_SCALE, |(_, echo)| echo & COOKIE_BITS);
        let scale = u8::try_from(bits & NO_SCALE).ok().filter(|&s| u32::from(s) != NO_SCALE);
        let sack_ok = bits & COOKIE_SACK != 0;
        let (mss, stamps) = (Some(mss), seg.stamps);
        let syn = Seg { seq, mss, scale, sack_ok, stamps, flags: SYN, window: 0, ..seg.clone() };
        let conn = self.conns[place].as_mut().expect("the place was found");
        conn.recall(now, &syn, isn, seg, &mut self.unaddressed);
    }

    fn cookie_number(&self, seg: &Seg<'_>, seq: u32, index: usize) -> u32 {
        let peer = u64::from(u32::from_be_bytes(seg.src.0)) << 16 | u64::from(seg.src.1);
        (mix(mix(self.seed, peer), u64::from(seq)) as u32) & !7 | index as u32
    }

    fn cookie(&mut self, now: u64, seg: &Seg<'_>, place: usize) -> Vec<u8> {
        let conn = self.conn(place);
        let (own_mss, own_scale, window) = (conn.own_mss(), conn.own_scale(), conn.syn_window());
        let mss = seg.mss.unwrap_or(536);
        let index = COOKIE_MSS.iter().rposition(|&m| m <= mss).unwrap_or(0);
        let clock = self.habits.clock.filter(|_| seg.stamps.is_some());
        let scale = seg.scale.filter(|_| clock.is_some() && self.habits.scale.is_some());
        let sack_ok = seg.sack_ok && clock.is_some() && self.habits.has_sack;
        let bits = scale.map_or(NO_SCALE, |s| u32::from(s.min(14)))
            | if sack_ok { COOKIE_SACK } else { 0 };
        let value = clock.map(|clock| {
            let now = clock.at(now);
            let value = now & !COOKIE_BITS | bits;
            // Not ahead of the clock.
            if now & COOKIE_BITS < bits { value.wrapping_sub(COOKIE_BITS + 1) } else { value }
        });
        let answer = Segment {
            src: seg.dst,
            dst: seg.src,
            seq: self.cookie_number(seg, seg.seq, index),
            ack: seg.seq.wrapping_add(1),
            flags: segment::SYN | segment::ACK,
            window,
            mss: Some(own_mss as u16),
            scale: scale.map(|_| own_scale),
            sack_ok,
            stamps: value.zip(seg.stamps.map(|(value, _)| value)),
            ..Segment::default()
        };
        answer.write(&[])
    }

    fn on_arp(&mut self, frame: &[u8]) {
        let ip = |at: usize| -> Ip { [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]] };
        let (sender, target) = (ip(28), ip(38));
        let is_request = frame[20..22] == [0, 1];
        if target != self.ip {
            return;
        }
        let mac: Mac = std::array::from_fn(|i| frame[22 + i]);
        if sender != [0; 4] {
            self.neighbours.insert(sender, mac);
        }
        if is_request {
            let reply = self.arp(2, mac, (mac, sender));
            self.out.push(reply);
        }
    }

    fn arp(&self, operation: u8, to: Mac, target: (Mac, Ip)) -> Vec<u8> {
        let mut frame = [&to[..], &self.mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
        frame.extend_from_slice(&self.mac);
        frame.extend_from_slice(&self.ip);
        frame.extend_from_slice(&target.0);
        frame.extend_from_slice(&target.1);
        frame
    }

    // ---- saying ----------------------------------------------------------------------------

    /// Lets all connections work at `now` (ns); returns what is sent.
    pub fn poll(&mut self, now: u64) -> Vec<Vec<u8>> {
        self.wake_at = None;
        for conn in self.conns.iter_mut().flatten() {
            conn.poll(now, &mut self.unaddressed);
            self.wake_at = self.wake_at.into_iter().chain(conn.wake_at()).min();
        }
        self.address(now);
        std::mem::take(&mut self.out)
    }

    /// Gives frames their destination, or asks for it.
    fn address(&mut self, now: u64) {
        let mut frames = std::mem::take(&mut self.waiting);
        frames.append(&mut self.unaddressed);
        for mut frame in frames {
            let to: Ip = std::array::from_fn(|i| frame[30 + i]);
            if let Some(mac) = self.neighbours.get(&to) {
                frame[..6].copy_from_slice(mac);
                frame[6..12].copy_from_slice(&self.mac);
                self.out.push(frame);
                continue;
            }
            if self.asked.get(&to).is_none_or(|at| now >= at + ASK_EVERY) {
                self.asked.insert(to, now);
                let request = self.arp(1, [0xff; 6], ([0; 6], to));
                self.out.push(request);
            }
            if self.waiting.len() < WAITING_MAX {
                self.waiting.push(frame);
            }
            let again = self.asked[&to] + ASK_EVERY;
            self.wake_at = Some(self.wake_at.map_or(again, |at| at.min(again)));
        }
    }
}
