//! One connection: its phases, and what a segment does to it (RFC 9293 3.10, RFC 5961, RFC 7323).
//!
//! Where Linux and the texts differ, it does as Linux: a segment whose ack is beyond what was sent
//! is dropped with its data, and an old bare ack with an old timestamp is dropped in silence.

use smoltcp::socket::tcp::State;

use super::clock::is_before;
use super::habits::Habits;
use super::receive::{Receive, Taken};
use super::segment::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Segment, URG};
use super::send::{Heard, Piece, Send};
use super::timers::Timers;
use crate::sim::frames::{ECN, Seg};
use crate::sim::rng::Rng;

/// How long a closed connection waits for what is late (ns).
const TIME_WAIT: u64 = 10_000_000_000;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closed,
    Listen,
    SynSent,
    SynReceived,
    Open,
    TimeWait,
}

/// What both ends have agreed on, and what the peer's side of it is.
#[derive(Clone, Copy, Debug, Default)]
struct Agreed {
    has_stamps: bool,
    has_sack: bool,
    has_scale: bool,
    /// Own and the peer's.
    scales: (u8, u8),
}

/// A connection, or a place for one.
#[derive(Clone, Debug)]
pub struct Conn {
    pub(super) habits: Habits,
    rng: Rng,
    pub(super) phase: Phase,
    buffers: (usize, usize),
    own: ([u8; 4], u16),
    peer: ([u8; 4], u16),
    isn: u32,
    irs: u32,
    agreed: Agreed,
    /// What the SYN offers.
    offers: Agreed,
    /// The flags of the own SYN that ask for, or grant, RFC 3168.
    ecn: u8,
    pub(super) send: Send,
    pub(super) receive: Receive,
    pub(super) timers: Timers,
    /// The peer's latest timestamp.
    recent: u32,
    /// The ack that was sent last.
    told: u64,
    acks_at_once: u32,
    /// Bytes in order that no ack has told of.
    untold: u64,
    pub(super) wants_ack: bool,
    wants_syn: bool,
    /// Asks with an old number (zero window, keep-alive).
    pub(super) wants_probe: bool,
    /// To be said once more, or beyond the window.
    pub(super) again: Option<Piece>,
    challenged_at: Option<u64>,
    /// The path takes no larger packets than this: a router has said so.
    path_mtu: Option<u16>,
    /// A reset to be sent.
    last_word: Option<Vec<u8>>,
    /// The application closed after the peer had.
    is_second: bool,
}

impl Conn {
    /// A place for a connection of the host `ip`.
    pub fn new(habits: &Habits, ip: [u8; 4], buffers: (usize, usize), seed: u64) -> Self {
        Self {
            habits: habits.clone(),
            rng: Rng::new(seed),
            phase: Phase::Closed,
            buffers,
            own: (ip, 0),
            peer: ([0; 4], 0),
            isn: 0,
            irs: 0,
            agreed: Agreed::default(),
            offers: Agreed::default(),
            ecn: 0,
            send: Send::new(buffers.1, habits),
            receive: Receive::new(buffers.0),
            timers: Timers::default(),
            recent: 0,
            told: 0,
            acks_at_once: habits.quick_acks,
            untold: 0,
            wants_ack: false,
            wants_syn: false,
            wants_probe: false,
            again: None,
            challenged_at: None,
            path_mtu: None,
            last_word: None,
            is_second: false,
        }
    }

    // ---- the application's side ------------------------------------------------------------

    /// Waits for a connection to `port`.
    pub fn listen(&mut self, port: u16) {
        let (ip, seed) = (self.own.0, self.rng.next());
        *self = Self::new(&self.habits, ip, self.buffers, seed);
        (self.own.1, self.phase) = (port, Phase::Listen);
    }

    /// Begins a connection at `now` (ns), with the first number `isn`.
    pub fn connect(&mut self, now: u64, port: u16, peer: ([u8; 4], u16), isn: u32) {
        (self.own.1, self.peer, self.isn) = (port, peer, isn);
        self.phase = Phase::SynSent;
        self.offers = Agreed {
            has_stamps: self.habits.clock.is_some(),
            has_sack: self.habits.has_sack,
            has_scale: self.habits.scale.is_some(),
            scales: (self.own_scale(), 0),
        };
        self.ecn = if self.habits.offers_ecn { ECE | CWR } else { 0 };
        self.send_syn(now);
    }

    /// Nothing more will be written.
    pub fn close(&mut self) {
        match self.phase {
            Phase::Listen | Phase::SynSent => self.end(),
            Phase::SynReceived | Phase::Open if self.send.fin.is_none() => {
                self.is_second = self.receive.is_ended();
                self.send.close();
            }
            _ => {}
        }
    }

    /// Ends at once; the peer hears a reset.
    pub fn abort(&mut self) {
        if matches!(self.phase, Phase::SynReceived | Phase::Open) {
            let reset = Segment {
                seq: self.seq(self.send.nxt),
                ack: self.ack(),
                flags: RST | ACK,
                ..self.blank()
            };
            self.last_word = Some(reset.write(&[]));
        }
        self.end();
    }

    /// Writes; returns how many bytes there was room for.
    pub fn write(&mut self, data: &[u8]) -> usize {
        if self.can_send() { self.send.write(data) } else { 0 }
    }

    /// Bytes to read.
    pub fn readable(&self) -> &[u8] {
        self.receive.readable()
    }

    /// `n` of them have been read.
    pub fn consume(&mut self, n: usize) {
        self.receive.consume(n);
    }

    /// Whether the peer may still say something, or has said something that nobody has read.
    pub fn may_recv(&self) -> bool {
        (self.phase == Phase::Open && !self.receive.is_ended()) || !self.readable().is_empty()
    }

    /// Whether the application may still write.
    pub fn may_send(&self) -> bool {
        self.phase == Phase::Open && self.send.fin.is_none()
    }

    /// Whether it may, and there is room.
    pub fn can_send(&self) -> bool {
        self.may_send() && self.send.has_room()
    }

    /// The other end, if there is a connection.
    pub fn peer(&self) -> Option<([u8; 4], u16)> {
        (!matches!(self.phase, Phase::Closed | Phase::Listen)).then_some(self.peer)
    }

    /// The own port.
    pub fn port(&self) -> u16 {
        self.own.1
    }

    /// The state by the names of RFC 9293 3.3.2.
    pub fn state(&self) -> State {
        let (closed, ended) = (self.send.fin.is_some(), self.receive.is_ended());
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Listen => State::Listen,
            Phase::SynSent => State::SynSent,
            Phase::SynReceived => State::SynReceived,
            Phase::TimeWait => State::TimeWait,
            Phase::Open => match (closed, ended, self.send.is_closed()) {
                (false, false, _) => State::Established,
                (false, true, _) => State::CloseWait,
                (true, false, false) => State::FinWait1,
                (true, false, true) => State::FinWait2,
                (true, true, _) if self.is_second => State::LastAck,
                (true, true, _) => State::Closing,
            },
        }
    }

    pub(super) fn end(&mut self) {
        self.phase = Phase::Closed;
        self.timers = Timers::default();
        (self.wants_ack, self.wants_syn) = (false, false);
    }

    // ---- numbers ---------------------------------------------------------------------------

    fn seq(&self, offset: u64) -> u32 {
        self.isn.wrapping_add(offset as u32)
    }

    fn ack(&self) -> u32 {
        self.irs.wrapping_add(self.receive.nxt as u32)
    }

    /// Where `number` stands behind `first`, close to `near`.
    fn offset(first: u32, number: u32, near: u64) -> Option<u64> {
        let step = number.wrapping_sub(first.wrapping_add(near as u32)) as i32;
        near.checked_add_signed(i64::from(step))
    }

    /// Largest payload of the own packets, before options.
    pub(super) fn own_mss(&self) -> usize {
        self.habits.mtu - 40
    }

    /// A scale that leaves the buffer some grains.
    pub(super) fn own_scale(&self) -> u8 {
        let fits = (self.buffers.0.max(16) / 8).ilog2() as u8;
        self.habits.scale.map_or(0, |most| most.min(fits).min(14))
    }

    // ---- hearing ---------------------------------------------------------------------------

    /// A listening place hears a SYN; `isn` is the first number to answer with.
    pub fn on_syn(&mut self, now: u64, seg: &Seg<'_>, isn: u32) {
        (self.peer, self.irs, self.isn) = (seg.src, seg.seq, isn);
        self.offers = Agreed {
            has_stamps: self.habits.clock.is_some() && seg.stamps.is_some(),
            has_sack: self.habits.has_sack && seg.sack_ok,
            has_scale: self.habits.scale.is_some() && seg.scale.is_some(),
            scales: (self.own_scale(), 0),
        };
        self.ecn = if self.habits.offers_ecn && seg.has(ECN) { ECE } else { 0 };
        self.hear_options(seg);
        self.receive.open(self.agreed.scales.0);
        self.phase = Phase::SynReceived;
        self.send_syn(now);
    }

    /// A listening place hears the ack of a SYN-ACK of which nothing was kept: `syn` is what is
    /// known of the SYN, `isn` the number that it was answered with.
    pub fn recall(
        &mut self,
        now: u64,
        syn: &Seg<'_>,
        isn: u32,
        seg: &Seg<'_>,
        out: &mut Vec<Vec<u8>>,
    ) {
        self.on_syn(now, syn, isn);
        self.syn(now); // it has been sent
        (self.wants_syn, self.timers) = (false, Timers::default());
        self.on_segment(now, seg, out);
    }

    /// A router says that a packet was too large for the path (RFC 1191; as Linux, only of what is
    /// under way).
    pub fn on_too_large(&mut self, seq: u32, mtu: u16) {
        let at = Self::offset(self.isn, seq, self.send.una);
        let is_ours = at.is_some_and(|at| (self.send.una..self.send.nxt).contains(&at));
        if self.phase == Phase::Open && is_ours {
            let options = if self.agreed.has_stamps { 12 } else { 0 };
            self.path_mtu = Some(mtu);
            self.send.narrow((usize::from(mtu) - 40 - options).max(48));
        }
    }

    fn hear_options(&mut self, seg: &Seg<'_>) {
        let scales = match (self.offers.has_scale, seg.scale) {
            (true, Some(peer)) => (self.offers.scales.0, peer.min(14)),
            _ => (0, 0),
        };
        self.agreed = Agreed {
            has_stamps: self.offers.has_stamps && seg.stamps.is_some(),
            has_sack: self.offers.has_sack && seg.sack_ok,
            has_scale: self.offers.has_scale && seg.scale.is_some(),
            scales,
        };
        self.recent = seg.stamps.map_or(0, |(value, _)| value);
        let mss = usize::from(seg.mss.unwrap_or(536)).clamp(48, self.own_mss());
        let mss = mss - if self.agreed.has_stamps { 12 } else { 0 };
        self.send.open(mss, u64::from(seg.window), 0, &self.habits);
        self.send.una = 0;
    }

    /// Whether a new SYN may take the place of what is left of this connection (RFC 6191).
    pub fn gives_way_to(&self, seg: &Seg<'_>) -> bool {
        let is_newer = seg.stamps.is_some_and(|(value, _)| is_before(self.recent, value));
        let is_above = is_before(self.ack(), seg.seq);
        self.phase == Phase::TimeWait && (is_above || (self.agreed.has_stamps && is_newer))
    }

    /// The connection's number space is left behind.
    pub fn give_way(&mut self) {
        self.end();
    }

    /// A segment of this connection.
    pub fn on_segment(&mut self, now: u64, seg: &Seg<'_>, out: &mut Vec<Vec<u8>>) {
        match self.phase {
            Phase::Closed | Phase::Listen => {}
            Phase::SynSent => self.on_answer(now, seg, out),
            _ => self.on_synchronized(now, seg, out),
        }
        if self.phase != Phase::Closed {
            self.settle(now);
        }
    }

    fn on_answer(&mut self, now: u64, seg: &Seg<'_>, out: &mut Vec<Vec<u8>>) {
        let is_mine = seg.ack == self.isn.wrapping_add(1);
        if seg.has(ACK) && !is_mine {
            if !seg.has(RST) {
                out.push(reset_for(seg));
            }
            return;
        }
        if seg.has(RST) {
            if seg.has(ACK) {
                self.end();
            }
            return;
        }
        if !seg.has(SYN | ACK) {
            return;
        }
        self.irs = seg.seq;
        self.hear_options(seg);
        self.send.una = 1;
        self.receive.open(self.agreed.scales.0);
        self.phase = Phase::Open;
        self.timers = Timers::default();
        (self.wants_ack, self.wants_syn) = (true, false);
        self.heard(now);
    }

    fn on_synchronized(&mut self, now: u64, seg: &Seg<'_>, out: &mut Vec<Vec<u8>>) {
        let Some(at) = Self::offset(self.irs, seg.seq, self.receive.nxt) else {
            // Far below where the connection began: as unacceptable as anything else.
            if !seg.has(RST) {
                self.challenge(now, !seg.data.is_empty());
            }
            return;
        };
        let is_bare = seg.data.is_empty() && !seg.has(SYN) && !seg.has(FIN);
        if self.agreed.has_stamps && !seg.has(RST) && !seg.has(SYN) {
            match seg.stamps {
                None if self.habits.wants_stamps => return,
                // One tick back may be a rounding.
                Some((value, _)) if is_before(value.wrapping_add(1), self.recent) => {
                    match is_bare && at <= self.receive.nxt {
                        // One that was overtaken.
                        true if at < self.receive.nxt => return,
                        true if seg.ack == self.seq(self.send.una) => {}
                        _ => return self.challenge(now, !seg.data.is_empty()),
                    }
                }
                _ => {}
            }
        }
        let end = at + seg.data.len() as u64 + u64::from(seg.has(FIN));
        let is_acceptable = end >= self.told && at <= self.receive.edge.max(self.receive.nxt);
        if seg.has(RST) {
            return self.on_reset(now, at, is_acceptable);
        }
        if seg.has(SYN) {
            let is_repeated = self.phase == Phase::SynReceived && at == 0;
            match is_repeated {
                true => self.wants_syn = true,
                false => self.challenge(now, false),
            }
            return;
        }
        if !is_acceptable {
            if end <= self.receive.nxt {
                self.receive.take(at, seg.data, seg.has(FIN));
            }
            return self.challenge(now, !seg.data.is_empty());
        }
        let Some(ack) = Self::offset(self.isn, seg.ack, self.send.una).filter(|_| seg.has(ACK))
        else {
            return;
        };
        let sent = self.send.nxt.max(1);
        if self.phase == Phase::SynReceived {
            if ack == 0 || ack > sent {
                out.push(reset_for(seg));
                return;
            }
            self.phase = Phase::Open;
            self.timers = Timers::default();
            self.wants_syn = false;
        }
        if ack > sent {
            return self.challenge(now, false);
        }
        self.heard(now);
        if let Some((value, _)) = seg.stamps.filter(|_| self.agreed.has_stamps)
            && at <= self.told.max(1)
            && !is_before(value, self.recent)
        {
            self.recent = value;
        }
        self.hear_ack(now, at, ack, is_bare, seg);
        let taken = match self.phase {
            Phase::Open => self.receive.take(at, seg.data, seg.has(FIN)),
            _ if is_bare => Taken::Nothing,
            _ => Taken::Urgent,
        };
        self.owe(now, taken, seg.data.len() as u64);
    }

    fn on_reset(&mut self, now: u64, at: u64, is_acceptable: bool) {
        if at == self.receive.nxt {
            return self.end();
        }
        if is_acceptable {
            self.challenge(now, false);
        }
    }

    fn hear_ack(&mut self, now: u64, at: u64, ack: u64, is_bare: bool, seg: &Seg<'_>) {
        let una = self.send.una;
        let sack: Vec<(u64, u64)> = match self.agreed.has_sack {
            true => seg.sack.iter().filter_map(|&(from, to)| self.block(from, to)).collect(),
            false => Vec::new(),
        };
        let clock = self.habits.clock.filter(|_| self.agreed.has_stamps && ack > una);
        let rtt = clock.and_then(|clock| clock.age(now, seg.stamps?.1));
        let window = u64::from(seg.window) << self.agreed.scales.1;
        let acked = self
            .send
            .on_ack(now, Heard { seq: at, ack, window: ack + window, sack: &sack, is_bare, rtt });
        if acked.has_advanced {
            (self.timers.resend_at, self.timers.tail_at) = (None, None);
            self.timers.has_repeated_tail = false;
        }
        if acked.has_advanced || acked.has_opened {
            (self.timers.persist_at, self.timers.persists) = (None, 0);
        }
    }

    fn block(&self, from: u32, to: u32) -> Option<(u64, u64)> {
        let near = self.send.una;
        Some((Self::offset(self.isn, from, near)?, Self::offset(self.isn, to, near)?))
    }

    /// An ack is owed for what was taken.
    fn owe(&mut self, now: u64, taken: Taken, len: u64) {
        if taken == Taken::Nothing {
            return;
        }
        self.untold += len;
        let is_enough = self.untold >= 2 * self.send.mss as u64;
        match self.habits.ack_delay {
            Some(delay) if taken == Taken::InOrder && !is_enough && self.acks_at_once == 0 => {
                self.timers.ack_at.get_or_insert(now + delay);
            }
            _ => {
                self.acks_at_once = self.acks_at_once.saturating_sub(1);
                self.wants_ack = true;
            }
        }
    }

    /// Says where the connection stands to somebody who seems not to know (RFC 5961): at most so
    /// often, unless data was sent.
    fn challenge(&mut self, now: u64, has_data: bool) {
        let is_early = self.challenged_at.is_some_and(|at| now < at + self.habits.challenge_every);
        if has_data || !is_early {
            if !has_data {
                self.challenged_at = Some(now);
            }
            self.wants_ack = true;
        }
    }

    pub(super) fn heard(&mut self, now: u64) {
        if let Some(idle) = self.habits.keep_alive {
            self.timers.keep_at = Some(now + idle);
        }
    }

    /// Both directions are over.
    fn settle(&mut self, now: u64) {
        if self.phase == Phase::Open && self.send.is_closed() && self.receive.is_ended() {
            match self.is_second {
                true => self.end(),
                false => {
                    self.phase = Phase::TimeWait;
                    self.timers = Timers { wait_at: Some(now + TIME_WAIT), ..Timers::default() };
                }
            }
        }
    }

    // ---- saying ----------------------------------------------------------------------------

    /// When it wants to be polled next (ns).
    pub fn wake_at(&self) -> Option<u64> {
        self.timers.next()
    }

    /// Does what is due, and says what may be said.
    pub fn poll(&mut self, now: u64, out: &mut Vec<Vec<u8>>) {
        out.extend(self.last_word.take());
        if matches!(self.phase, Phase::Closed | Phase::Listen) {
            return;
        }
        self.on_timers(now);
        if self.wants_syn {
            self.wants_syn = false;
            out.push(self.syn(now).write(&[]));
        }
        if self.phase == Phase::Open {
            self.say(now, out);
        }
        let mss = self.send.mss;
        if self.phase == Phase::Open && self.receive.wants_update(now, &self.habits, mss) {
            self.wants_ack = true;
        }
        if self.wants_ack && self.phase != Phase::SynSent {
            let bare = self.segment(now, self.send.nxt, ACK).write(&[]);
            if self.habits.repeats_acks > 0 && self.rng.chance(self.habits.repeats_acks) {
                out.push(bare.clone());
            }
            out.push(bare);
        }
        self.arm(now);
    }

    fn say(&mut self, now: u64, out: &mut Vec<Vec<u8>>) {
        if std::mem::take(&mut self.wants_probe) {
            // Nobody takes the ack of so old a segment: what is owed is owed still.
            let owed = (self.wants_ack, self.untold, self.timers.ack_at, self.told);
            out.push(self.segment(now, self.send.nxt - 1, ACK).write(&[]));
            (self.wants_ack, self.untold, self.timers.ack_at, self.told) = owed;
        }
        if let Some(piece) = self.again.take() {
            self.say_piece(now, piece, out);
        }
        loop {
            let mss = self.send.mss;
            let size = match self.habits.chops > 0 && self.rng.chance(self.habits.chops) {
                true => self.rng.range(1, mss as u64) as usize,
                false => mss,
            };
            let is_urgent = self.habits.urgent_at.is_some_and(|at| self.send.una < at);
            let whole = if is_urgent { 0 } else { self.habits.super_bytes / mss * mss };
            let super_size = if size == mss { whole.max(size) } else { size };
            let Some(piece) = self.send.next(now, size, super_size, &self.habits) else { return };
            self.say_piece(now, piece, out);
        }
    }

    fn say_piece(&mut self, now: u64, piece: Piece, out: &mut Vec<Vec<u8>>) {
        let mut segment = self.segment(now, piece.from, ACK);
        let (data, has_fin) = self.send.bytes(piece);
        let ahead = self.habits.urgent_at.filter(|&at| at > piece.from && at <= self.send.end());
        if let Some(ahead) = ahead.and_then(|at| u16::try_from(at - piece.from).ok()) {
            segment.flags |= URG;
            segment.urgent = ahead;
        }
        if let Some(mtu) = self.path_mtu {
            // Data first: blocks that find no room come with the next bare ack.
            let room = usize::from(mtu).saturating_sub(40 + 12 + 4 + data.len());
            segment.sack.truncate(room / 8);
        }
        segment.piece = if data.len() > self.send.mss { self.send.mss as u16 } else { 0 };
        segment.flags |= if has_fin { FIN } else { 0 };
        segment.flags |= if piece.to >= self.send.end() { PSH } else { 0 };
        out.push(segment.write(data));
    }

    fn blank(&self) -> Segment {
        Segment { src: self.own, dst: self.peer, ..Segment::default() }
    }

    /// A segment of an open connection at `from`: whatever it is, it carries the latest ack.
    fn segment(&mut self, now: u64, from: u64, flags: u8) -> Segment {
        let mss = self.send.mss;
        let window = self.receive.window(now, &self.habits, mss);
        let blocks = match self.agreed.has_sack {
            true => self.receive.blocks(),
            false => Vec::new(),
        };
        let irs = self.irs;
        let number = |offset: u64| irs.wrapping_add(offset as u32);
        self.told = self.receive.nxt;
        (self.wants_ack, self.untold, self.timers.ack_at) = (false, 0, None);
        Segment {
            seq: self.seq(from),
            ack: self.ack(),
            flags,
            window,
            stamps: self.stamps(now, self.agreed.has_stamps),
            sack: blocks.into_iter().map(|(from, to)| (number(from), number(to))).collect(),
            ..self.blank()
        }
    }

    fn stamps(&self, now: u64, is_on: bool) -> Option<(u32, u32)> {
        self.habits.clock.filter(|_| is_on).map(|clock| (clock.at(now), self.recent))
    }

    pub(super) fn send_syn(&mut self, now: u64) {
        self.wants_syn = true;
        self.send.nxt = 1;
        let rto = 1_000_000_000u64 << self.timers.syns.min(6);
        self.timers.syns += 1;
        self.timers.resend_at = Some(now + rto);
    }

    /// Not scaled yet, whatever is agreed (RFC 7323 2.2).
    pub(super) fn syn_window(&self) -> u16 {
        self.buffers.0.min(0xffff) as u16
    }

    fn syn(&mut self, now: u64) -> Segment {
        let is_answer = self.phase == Phase::SynReceived;
        let window = self.syn_window();
        self.receive.edge = 1 + u64::from(window);
        self.told = self.receive.nxt;
        Segment {
            seq: self.isn,
            ack: if is_answer { self.ack() } else { 0 },
            flags: self.ecn | if is_answer { SYN | ACK } else { SYN },
            window,
            mss: Some(self.own_mss() as u16),
            scale: self.offers.has_scale.then_some(self.offers.scales.0),
            sack_ok: self.offers.has_sack,
            stamps: self.stamps(now, self.offers.has_stamps),
            ..self.blank()
        }
    }
}

/// The reset that answers a segment of no connection (RFC 9293 3.10.7.1).
pub fn reset_for(seg: &Seg<'_>) -> Vec<u8> {
    let len = seg.data.len() as u32 + u32::from(seg.has(SYN)) + u32::from(seg.has(FIN));
    let (seq, ack, flags) = match seg.has(ACK) {
        true => (seg.ack, 0, RST),
        false => (0, seg.seq.wrapping_add(len), RST | ACK),
    };
    Segment { src: seg.dst, dst: seg.src, seq, ack, flags, ..Segment::default() }.write(&[])
}
