//! One server's side of a flow: its numbers, what it acknowledged, what it said, how it is.
//!
//! All positions are visible [`Offset`]s; what the leg said itself, in its own numbers, is its
//! [`Voice`], and how it hears the client its [`Ear`]. RFC 9293, RFC 2018, RFC 7323.

use super::alignment::{Own, Round};
use super::clock::LegClock;
use super::ear::Ear;
use super::flow::DeferredError;
use super::headers::Headers;
use super::limits::SACKED_RANGES_MAX;
use super::pack::{fields, variants};
use super::planted::{Bug, on};
use super::ranges::Ranges;
use super::time::Instant;
use super::voice::Voice;
use crate::wire::{ClientSpace, Offset, Segment, Seq, Tsval};

/// How a leg takes part in its flow.
///
/// `Absent` (never asked) · `SynSent` -> `Open` -> `Scrub` (detached: whatever it says is answered
/// by an exact reset) · any -> `Fenced` (its server is declared failed: nothing is heard or said)
/// -> `Scrub` when the server returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegState {
    /// Not part of the flow.
    Absent,
    /// The SYN was sent.
    SynSent,
    /// Its handshake is done.
    Open,
    /// Detached; reset whenever it speaks.
    Scrub,
    /// Of a failed server.
    Fenced,
}

/// What a leg agreed to in its SYN-ACK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegOptions {
    /// Largest segment it takes.
    pub mss: u16,
    /// Its window scale; `None` if it does not scale at all.
    pub window_scale: Option<u8>,
    /// SACK.
    pub has_sack: bool,
    /// Timestamps.
    pub has_timestamps: bool,
}

/// Largest segment of a peer that does not say (RFC 9293 3.7.1), and the least taken seriously.
pub const MSS_DEFAULT: u16 = 536;
const MSS_MIN: u16 = 64;

impl LegOptions {
    /// What the SYN-ACK `seg` agrees to.
    pub fn of(seg: &Segment) -> Self {
        Self {
            mss: seg.options.mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN),
            window_scale: seg.options.window_scale,
            has_sack: seg.options.sack_permitted,
            has_timestamps: seg.options.timestamps.is_some(),
        }
    }
}

/// One leg of one flow.
#[derive(Clone, Debug)]
pub struct Leg {
    /// How it takes part.
    pub state: LegState,
    /// The number of a connection that it was told to forget before it answered this one.
    pub stale_iss: Option<u32>,
    /// It has acknowledged the SYN without one of its own: the number, and when it did so first.
    pub bare_ack: Option<(u32, Instant)>,
    /// What it agreed to.
    pub options: LegOptions,
    /// Headers of its latest frame.
    pub headers: Option<Headers>,

    /// Client bytes it has acknowledged (A).
    pub acked: Offset,
    /// Right edge of its window (R).
    pub edge: Offset,
    /// The largest window it ever offered, in bytes.
    pub window_max: u64,
    /// Client ranges it has beyond `acked`.
    pub sacked: Ranges,
    /// Duplicate acks at `acked`.
    pub dup_acks: u32,
    /// Highest client byte sent to it.
    pub sent: Offset,
    /// It is a copy, and gets again what was on its way to the other one.
    pub is_fed: bool,

    /// How it hears the client.
    pub ear: Ear,
    /// What it said, and what it was told of that.
    pub voice: Voice,
    /// When its reset arrived.
    pub reset_at: Option<Instant>,
    /// Piece size of its latest super-frame.
    pub gso_size: Option<u16>,
    /// It is owed an ack now.
    pub owes_ack: bool,

    /// Its clock.
    pub clock: LegClock,
    /// When it last got a byte further (said, acknowledged or opened its window).
    pub progress_at: Instant,
    /// When it was last told of an ack, a window or the rest of a value that it may have waited
    /// for.
    pub given_at: Instant,
    /// When it last spoke.
    pub heard_at: Instant,
    /// Next local retransmission to it.
    pub resend_at: Option<Instant>,
    /// Retransmissions since the last progress.
    pub resend_count: u32,
    /// A hole is left alone until then.
    pub hole_quiet_until: Option<Instant>,
    /// An error about bytes that it has still to send.
    pub deferred_error: Option<Box<DeferredError>>,
    /// Positions are known (false right after a restart of the gateway).
    pub is_learned: bool,
}

impl Leg {
    /// A leg that has not been asked.
    pub fn new(state: LegState, now: Instant) -> Self {
        Self {
            state,
            stale_iss: None,
            bare_ack: None,
            options: LegOptions::default(),
            headers: None,
            acked: Offset::SYN,
            edge: Offset::SYN,
            window_max: 0,
            sacked: Ranges::default(),
            dup_acks: 0,
            sent: Offset::START,
            is_fed: false,
            ear: Ear::default(),
            voice: Voice::default(),
            reset_at: None,
            gso_size: None,
            owes_ack: false,
            clock: LegClock::default(),
            progress_at: now,
            given_at: now,
            heard_at: now,
            resend_at: None,
            resend_count: 0,
            hole_quiet_until: None,
            deferred_error: None,
            is_learned: true,
        }
    }

    /// Whether it carries the flow.
    pub fn is_open(&self) -> bool {
        self.state == LegState::Open
    }

    /// Whether it counts like the client, in both directions, but for a constant, and nothing is on
    /// its way that only this process knows.
    pub fn is_constant(&self) -> bool {
        self.voice.is_constant() && self.ear.is_settled()
    }

    /// Contiguous bytes heard from it (S).
    pub fn said(&self) -> Offset {
        self.voice.said()
    }

    /// Takes the ack, window and SACK blocks of `seg`, whose numbers are the client's own but for
    /// the values that it hears otherwise.
    pub fn on_ack(&mut self, now: Instant, seg: &Segment, iss: Seq<ClientSpace>, nxt: Offset) {
        let near = self.ear.own(self.acked.max(Offset::START), Round::Down);
        let place = |raw: u32, near: Own| Own(iss.offset(Seq::new(raw), near.0));
        let own = place(seg.ack, near);
        let ack = match on(Bug::EarNotMapped) {
            true => own.0,
            false => self.ear.shown(own, Round::Down),
        };
        if ack > nxt || ack < self.acked {
            return;
        }
        let room = u64::from(seg.window) << self.options.window_scale.unwrap_or(0);
        let edge = self.ear.shown(own + room, Round::Down);
        self.window_max = self.window_max.max(edge.since(ack));
        if ack > self.acked {
            self.acked = ack;
            self.dup_acks = 0;
            self.sacked.trim(ack);
            self.sent = self.sent.max(ack);
            self.has_progressed(now);
        } else if seg.payload_len == 0 && edge == self.edge && nxt > ack {
            self.dup_acks = self.dup_acks.saturating_add(1);
        }
        if edge > self.edge {
            if edge.since(self.edge) >= u64::from(self.options.mss) {
                self.progress_at = now;
            }
            self.edge = edge;
        }
        for &(left, right) in seg.options.sack.as_slice() {
            let left = self.ear.shown(place(left, own), Round::Up);
            let right = self.ear.shown(place(right, own), Round::Down);
            // A block at or below the ack reports a duplicate (RFC 2883); it is nobody's hole.
            if left > ack && right > left && right <= nxt && self.sacked.len() < SACKED_RANGES_MAX {
                self.sacked.insert(left, right);
            }
        }
    }

    /// The clock that the client sees goes on from `shown` with this leg.
    pub fn continue_clock(&mut self, now: Instant, shown: Tsval) {
        match self.options.has_timestamps {
            true => self.clock.continue_from(shown),
            false => self.clock.stand_in_from(now, shown),
        }
    }

    /// Since when it could have got further, and has not.
    pub fn stands_since(&self) -> Instant {
        self.progress_at.max(self.given_at)
    }

    /// It got further: its local retransmissions begin anew.
    pub fn has_progressed(&mut self, now: Instant) {
        self.progress_at = now;
        self.resend_count = 0;
        self.resend_at = None;
    }

    /// It said something new.
    pub fn has_progressed_saying(&mut self, now: Instant) {
        self.progress_at = now;
    }
}

fields!(Leg {
    state,
    stale_iss,
    bare_ack,
    options,
    headers,
    acked,
    edge,
    window_max,
    sacked,
    dup_acks,
    sent,
    is_fed,
    ear,
    voice,
    reset_at,
    gso_size,
    owes_ack,
    clock,
    progress_at,
    given_at,
    heard_at,
    resend_at,
    resend_count,
    hole_quiet_until,
    deferred_error,
    is_learned,
});
fields!(LegOptions { mss, window_scale, has_sack, has_timestamps });
variants!(LegState { Absent, SynSent, Open, Scrub, Fenced });
