//! One TCP flow: the client's connection and the two legs behind it. The directions meet here.
//!
//! An input changes positions ([`from_client`], [`from_leg`], [`roles`]); then [`Flow::settle`]
//! looks at the whole and emits whatever is owed: bytes, acks, windows, resends, timers. Nothing is
//! forwarded because a packet came; everything is sent because a position says so. That is what
//! makes release byte-granular and every liveness rule a property of one function.
//!
//! Invariants (the names are used in the code): I1 bytes shown while Paired were said by both ·
//! I2 acks shown are at most both legs' · I3 the window edge shown is at most both legs', and
//! monotone · I5 each leg alone could carry on · I6 an ack to a leg is at most what it sent ·
//! I7 FIN and RST only where both ended, or by a stated rule · I8 the clock shown is monotone.

mod called;
mod chunks;
mod close;
mod compare;
mod comparison;
mod constants;
mod copied;
mod feed;
mod from_client;
mod from_leg;
mod handshake;
mod hold;
mod icmp;
mod instead;
mod listen;
mod opaque;
mod profile;
mod promised;
mod reader;
mod release;
mod reprotect;
mod rest;
mod roles;
mod value;

use std::collections::VecDeque;

use bytes::Bytes;

pub use comparison::Comparison;
pub use constants::record;
pub use handshake::Start;
pub use icmp::DeferredError;
use instead::Instead;
pub use profile::Profile;
pub use roles::Fate;

use self::listen::Listener;
use self::reprotect::Tries;
use super::allowance::Allowance;
use super::clock::ShownClock;
use super::config::{EngineConfig, LagPolicy, Mode};
use super::cookies::{Cookies, Promise};
use super::event::{Event, FlowKey, FlowState, RejectReason, Shown, SoloReason};
use super::expected::{Call, Offer};
use super::headers::Headers;
use super::leg::{Leg, LegState};
use super::limits;
use super::pairs::Pairs;
use super::planted::{Bug, on};
use super::ranges::Ranges;
use super::stream::Stream;
use super::time::{Duration, Instant};
use super::told_blocks::ToldBlocks;
use super::{FlowSnapshot, LegId, Link, Numbers, Output, Record};
use crate::wire::{ClientSpace, Frame, L2, L3, Offset, Segment, Seq, Tsval};

/// What a flow tells the control side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Report {
    /// The servers' bytes differ; output is held. The client asked last at this time.
    Diverged(Instant),
    /// A leg ended although the flow was unfinished.
    UnfinishedEnd(LegId),
    /// A leg refused the handshake while the other accepted.
    Refused(LegId),
    /// This server has answered a client's SYN.
    Answered(LegId),
    /// This server has not, in all that time; `alone` if the other one has.
    Unanswered { leg: LegId, alone: bool },
    /// This server stood still until the flow went on, or ended, without it.
    StallMoved(LegId),
    /// The second copy came this much later than the first, from this leg.
    Skew(LegId, Duration),
    /// The servers expect a data connection, as they have said on this flow.
    Offered(FlowKey, Offer),
    /// The servers are to connect to the client, as was agreed on this flow.
    Called(FlowKey, Call),
    /// On `data` only `leg` has come to the end, which the other one should have reached too. It is
    /// true if the same server lives on `control`, on which the transfer was agreed.
    EndInDoubt { data: FlowKey, control: FlowKey, leg: LegId },
}

/// What a flow may see and do while it handles an input.
#[derive(Debug)]
pub struct Cx<'a> {
    /// The time.
    pub now: Instant,
    /// The configuration.
    pub config: &'a EngineConfig,
    /// Where outputs go.
    pub out: &'a mut VecDeque<Output>,
    /// Reports of this input.
    pub reports: &'a mut Vec<Report>,
    /// Option profile of the service.
    pub profile: &'a mut Profile,
    /// What servers answer, for clients that are answered first.
    pub cookies: &'a mut Cookies,
    /// What may be sent again to each server now.
    pub allowance: &'a mut Allowance,
    /// What one server gave a client in the place of what the other gave it.
    pub pairs: &'a mut Pairs,
    /// Bytes held by all flows.
    pub pool_held: usize,
    /// IPv4 identification of built frames.
    pub ip_id: &'a mut u16,
    /// Whether each server could carry a flow alone.
    pub is_fit: [bool; 2],
    /// The servers stand still for a sync: nobody is late, and nothing is decided.
    pub is_still: bool,
    /// The server whose state is being replaced: nothing is said to it.
    pub overwritten: Option<LegId>,
}

impl Cx<'_> {
    pub(super) fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    pub(super) fn transmit(&mut self, link: Link, frame: Frame) {
        if self.overwritten.is_some_and(|leg| link == Link::Server(leg)) {
            return; // as on a link that is cut
        }
        self.out.push_back(Output::Transmit(link, frame));
    }

    fn reject(&mut self, link: Link, reason: RejectReason) {
        self.event(Event::Rejected { link, reason });
    }

    /// How far a leg may be ahead of the release point: less as the pool fills (I9).
    fn lead_bytes_max(&self) -> u64 {
        let max = self.config.hold_bytes_max.max(1) as u64;
        let percent = (self.pool_held as u64).saturating_mul(100) / max;
        match percent {
            0..10 => limits::LEAD_BYTES_MAX,
            10..70 => {
                let span = limits::LEAD_BYTES_MAX - limits::LEAD_BYTES_MIN;
                limits::LEAD_BYTES_MAX - span * (percent - 10) / 60
            }
            _ => limits::LEAD_BYTES_MIN,
        }
    }
}

/// The client's end of the flow.
#[derive(Clone, Debug)]
pub struct ClientEnd {
    iss: Seq<ClientSpace>,
    /// Largest segment it takes.
    mss: u16,
    /// Its window scale, if it offered one.
    window_scale: Option<u8>,
    offers_sack: bool,
    offers_timestamps: bool,
    /// Headers of its latest frame: what frames to the legs carry on.
    headers: Headers,
    /// Highest byte it sent, a FIN included.
    nxt: Offset,
    /// Highest response byte it acknowledged.
    una: Offset,
    /// Right edge of the window it granted; it never moves back.
    edge: Offset,
    /// The largest window it ever granted, in bytes.
    window_max: u64,
    /// Where its FIN stands.
    fin: Option<Offset>,
    /// Its latest timestamp, and the one it echoed.
    clock: (Tsval, Tsval),
    /// The latest timestamp of what was next in order (TS.Recent, RFC 7323 4.3).
    recent: Option<Tsval>,
    /// SACK blocks of its latest ack, in its order.
    sacked: Vec<(Offset, Offset)>,
    /// Its round trip, as measured last; it falls slowly.
    round_trip: Duration,
    /// What is being timed for that: the end of a range that was shown once, and when.
    timed: Option<(Offset, Instant)>,
    heard_at: Instant,
    /// When it sent its latest new bytes.
    asked_at: Instant,
    is_learned: bool,
}

/// The connection as the client sees it.
#[derive(Clone, Debug)]
pub struct Visible {
    iss: Seq<ClientSpace>,
    /// Window scale of the fields shown; `None` if windows do not scale.
    window_scale: Option<u8>,
    has_sack: bool,
    has_timestamps: bool,
    is_open: bool,
    /// The SYN that it was shown, for repeating it byte for byte until the client has it.
    syn_ack: Option<Box<Frame>>,
    /// Response bytes released, contiguous (REL).
    released: Offset,
    /// Ranges released ahead of a hole.
    ahead: Ranges,
    /// Where the FIN was shown.
    fin: Option<Offset>,
    /// The reset that was shown stands here.
    reset: Option<Offset>,
    /// Ack shown (RELACK).
    told_ack: Offset,
    /// Window edge shown (RELEDGE).
    told_edge: Offset,
    /// Duplicate acks shown at `told_ack`.
    dup_acks: u32,
    /// SACK blocks shown last.
    told_sack: ToldBlocks,
    /// A pure ack is owed to the client now.
    owes_ack: bool,
    /// The client asked for an ack that advances nothing (keep-alive, window probe, old data).
    is_asking: bool,
    clock: ShownClock,
    /// Ranges that were shown again lately: by which leg, when.
    repeated: VecDeque<(Offset, Offset, LegId, Instant)>,
    /// When a probe of a server was passed to the client last.
    probe_passed_at: Option<Instant>,
    /// Limit while a leg takes over with bytes held: released bytes stay below it.
    takeover: Option<Offset>,
    takeover_at: Option<Instant>,
    /// The end of the last value that the servers said differently.
    differs_until: Offset,
    /// Up to here values may be another server's than the one that serves it now.
    foreign_until: Option<Offset>,
    /// What is shown instead of what the primary says.
    instead: Instead,
    /// Client bytes heard when response bytes were released last.
    answered: Offset,
    verified_bytes: u64,
}

/// A SYN with another number inside a connection, and the answers of legs that have accepted it.
#[derive(Debug)]
struct Stray {
    syn: Segment,
    answers: [Option<Segment>; 2],
}

/// Who has begun a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    /// The client.
    Client,
    /// The servers: they have called the client (FTP's active data connections).
    Servers,
}

/// One TCP flow.
#[derive(Debug)]
pub struct Flow {
    /// Who.
    pub key: FlowKey,
    opener: Opener,
    /// Index of its record in the state file.
    pub slot: u32,
    opened_at: Instant,
    state: FlowState,
    solo: Option<SoloReason>,
    primary: LegId,
    legs: [Leg; 2],
    client: ClientEnd,
    visible: Visible,
    /// Client bytes that a leg may need again.
    request: Stream,
    /// Looks for values that the client returns, if a rule maps any.
    listener: Option<Box<Listener>>,
    /// Response bytes shown, until the client has acknowledged (and a lagging leg repeated) them.
    shown: Stream,
    comparison: Comparison,
    /// Until when the output of servers that differ is held.
    diverged_until: Option<Instant>,
    /// The handshake's first answer.
    first_answer_at: Option<Instant>,
    syn_at: Instant,
    syn_resent: usize,
    /// Since when each leg keeps the flow waiting.
    pinned: [Option<Instant>; 2],
    /// Since when each leg has said less than the other, whether or not it is to blame yet.
    behind: [Option<Instant>; 2],
    /// Since when each has acknowledged or granted less.
    owes: [Option<Instant>; 2],
    is_soft_told: [bool; 2],
    fin_held_at: Option<Instant>,
    /// The connection on which this one was agreed (FTP).
    control: Option<Box<FlowKey>>,
    /// After a restart: when ends that have not spoken are asked again, and how often they were.
    ask_at: Option<Instant>,
    asked: u32,
    /// After a restart: what the client had taken when it was first heard.
    taken: Option<Offset>,
    stray: Option<Box<Stray>>,
    /// How often a second leg was asked for.
    tries: Tries,
    /// The primary lives in an older connection of this 4-tuple, and expects this number there.
    /// Whether that is over the client has to say.
    challenge: Option<u32>,
    /// What the client was shown in the servers' name, until they have answered.
    promise: Option<Box<Promise>>,
    /// When the flow is forgotten.
    expires_at: Instant,
    timer: Option<Instant>,
    is_gone: bool,
    /// Bytes counted in the pool.
    held: usize,
}

impl Flow {
    /// Its state.
    pub fn state(&self) -> FlowState {
        self.state
    }

    /// Whether it can be forgotten.
    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// When it wants [`Flow::on_timeout`].
    pub fn timer(&self) -> Option<Instant> {
        self.timer
    }

    /// Since when `leg` keeps it waiting while the other leg got further.
    pub fn pinned(&self, leg: LegId) -> Option<Instant> {
        self.pinned[leg.index()]
    }

    /// Bytes it holds.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Since when its handshake is under way, while the client has not completed it.
    pub fn half_open_since(&self) -> Option<Instant> {
        let is_open = self.client.is_learned && self.client.una < Offset::START;
        is_open.then_some(self.opened_at)
    }

    /// Whether it waits for a sync.
    pub fn is_diverged(&self) -> bool {
        self.state == FlowState::Diverged
    }

    /// Whether a leg of `server` takes part in it.
    pub fn has_open_leg(&self, server: LegId) -> bool {
        matches!(self.legs[server.index()].state, LegState::Open | LegState::SynSent)
    }

    /// Whether `leg` alone could answer the client, and has not.
    pub fn asks_in_vain(&self, leg: LegId) -> bool {
        let own = self.leg(leg);
        match self.state {
            FlowState::Opening => own.state == LegState::SynSent,
            FlowState::Solo => {
                let asked = self.client.nxt > own.acked.max(self.visible.answered);
                leg == self.primary && own.is_open() && asked
            }
            _ => false,
        }
    }

    /// Whether a SYN may begin a new connection on this 4-tuple.
    pub fn is_closed(&self) -> bool {
        self.state == FlowState::TimeWait || self.visible.reset.is_some()
    }

    /// For readers.
    pub fn snapshot(&self) -> FlowSnapshot {
        FlowSnapshot {
            key: self.key,
            state: self.state,
            primary: self.primary,
            solo: self.solo,
            request_bytes: self.visible.told_ack.since(Offset::START),
            response_bytes: self.visible.released.since(Offset::START),
            verified_bytes: self.visible.verified_bytes,
            held_bytes: self.held as u64,
            opened: self.opened_at,
        }
    }

    /// Where a byte of the response stands on each link.
    pub fn numbers_at(&self, at: Offset) -> Numbers {
        let legs = self.legs.each_ref().map(|leg| leg.voice.seq_at(at));
        Numbers { client: self.visible.iss.at(at).raw(), legs }
    }

    fn leg(&self, leg: LegId) -> &Leg {
        &self.legs[leg.index()]
    }

    fn leg_mut(&mut self, leg: LegId) -> &mut Leg {
        &mut self.legs[leg.index()]
    }

    /// The headers of a frame from the client.
    fn client_headers(&self) -> (L2, L3) {
        self.client.headers.between(self.key.client.ip(), self.key.server.ip())
    }

    /// The headers of a frame from `leg`, if it ever sent one.
    fn leg_headers(&self, leg: LegId) -> Option<(L2, L3)> {
        let headers = self.leg(leg).headers?;
        Some(headers.between(self.key.server.ip(), self.key.client.ip()))
    }

    fn backup(&self) -> LegId {
        self.primary.other()
    }

    /// Both legs carry it.
    fn has_both(&self) -> bool {
        self.legs.iter().all(Leg::is_open)
    }

    /// Releases wait for both legs.
    fn needs_both(&self) -> bool {
        match self.state {
            FlowState::Paired | FlowState::Diverged | FlowState::Opening => true,
            FlowState::TimeWait => self.has_both(),
            FlowState::Lagging | FlowState::Solo => false,
        }
    }

    /// The end of what was shown, the FIN included.
    fn shown_end(&self) -> Offset {
        let ahead = self.visible.ahead.iter().last().map_or(self.visible.released, |(_, t)| t);
        let end = ahead.max(self.visible.released);
        self.visible.fin.map_or(end, |fin| end.max(fin + 1))
    }

    /// The one way to another state.
    fn set_state(&mut self, cx: &mut Cx<'_>, to: FlowState, solo: Option<SoloReason>) {
        let from = self.state;
        self.state = to;
        self.solo = solo.or(self.solo);
        if from != to {
            self.tell_state(cx, from);
        }
        if to == FlowState::Solo {
            self.comparison.speaks_alone(self.follows_alone(cx));
        }
        if matches!(to, FlowState::Solo | FlowState::TimeWait) {
            (self.pinned, self.behind, self.owes) = ([None; 2], [None; 2], [None; 2]);
        }
        self.persist(cx);
    }

    /// Says that the state is another one than `from`, and how far that one went.
    fn tell_state(&self, cx: &mut Cx<'_>, from: FlowState) {
        let v = &self.visible;
        let end = v.fin.map_or(v.released, |fin| fin + 1);
        let shown = Shown {
            seq: v.iss.at(end).raw(),
            ack: self.client.iss.at(v.told_ack).raw(),
            edge: self.client.iss.at(v.told_edge).raw(),
        };
        let (flow, to, primary, solo) = (self.key, self.state, self.primary, self.solo);
        cx.event(Event::FlowChanged { flow, from, to, primary, solo, shown });
    }

    /// Emits whatever is owed after positions changed.
    pub fn settle(&mut self, cx: &mut Cx<'_>) {
        if self.is_gone {
            return;
        }
        if self.state == FlowState::Opening && !cx.is_still {
            self.settle_handshake(cx);
        }
        // Right after a restart nothing is shown before the client's position is known.
        let is_live = self.visible.is_open && self.client.is_learned;
        if is_live && self.visible.reset.is_none() {
            self.leave_opaque(cx);
            self.listen(cx);
            if !cx.is_still {
                self.settle_second(cx);
            }
            self.compare(cx);
            if cx.is_still {
                (self.pinned, self.behind, self.owes) = ([None; 2], [None; 2], [None; 2]);
                self.release(cx);
            } else {
                self.settle_ends(cx);
                self.release(cx);
                self.settle_lag(cx);
                self.settle_holds(cx);
            }
            self.acknowledge(cx);
            self.feed_legs(cx);
            self.settle_close(cx);
        }
        self.settle_splices(cx);
        self.trim();
        self.arm(cx);
    }

    /// The time of [`Flow::timer`] has come.
    pub fn on_timeout(&mut self, cx: &mut Cx<'_>) {
        if cx.now >= self.expires_at {
            self.tell_unanswered(cx);
            return self.forget(cx);
        }
        if on(Bug::TimersNeedPackets) {
            self.timer = Some(cx.now + Duration::from_secs(1));
            return;
        }
        if self.ask_at.is_some_and(|at| cx.now >= at) {
            self.probe_ends(cx);
        }
        if self.diverged_until.is_some_and(|until| cx.now >= until) {
            self.diverged_until = None;
            self.resolve_divergence(cx);
        }
        self.settle(cx);
        self.give_back();
    }

    /// Something was heard: the flow is kept for as long as its phase deserves.
    fn stay_alive(&mut self, now: Instant) {
        if self.state == FlowState::TimeWait || self.state == FlowState::Opening {
            return;
        }
        let is_closing = self.visible.fin.is_some() || self.client.fin.is_some();
        let max = match (self.half_open_since().is_some(), is_closing) {
            (true, _) => limits::HALF_OPEN_MAX,
            (false, true) => limits::CLOSING_MAX,
            (false, false) => limits::IDLE_MAX,
        };
        self.expires_at = now + max;
    }

    /// The gateway stood still for `gap`: nobody is late for that. Only that time is forgiven: on a
    /// busy machine, where it often stands still for a moment, a dead server is found all the same.
    pub fn forgive(&mut self, now: Instant, gap: Duration) {
        let later = |at: Instant| (at + gap).min(now.max(at));
        for leg in &mut self.legs {
            leg.progress_at = later(leg.progress_at);
            leg.reset_at = leg.reset_at.map(later);
        }
        for since in self.pinned.iter_mut().chain(&mut self.behind).chain(&mut self.owes).flatten()
        {
            *since = later(*since);
        }
        self.fin_held_at = self.fin_held_at.map(later);
        self.first_answer_at = self.first_answer_at.map(later);
    }

    /// A new connection takes the 4-tuple: this one is over, its legs are reset.
    pub fn supersede(&mut self, cx: &mut Cx<'_>) {
        let answers = self.stray.take().map_or([None; 2], |stray| stray.answers);
        for (leg, answer) in self.legs.iter_mut().zip(answers) {
            if answer.is_some() {
                leg.state = LegState::Absent; // it has forgotten this connection already
            }
        }
        self.reset_legs(cx);
        self.forget(cx);
    }

    /// Forgets it: the record, the buffers, the entry.
    fn forget(&mut self, cx: &mut Cx<'_>) {
        if self.is_gone {
            return;
        }
        self.is_gone = true;
        self.timer = None;
        cx.event(Event::FlowClosed {
            flow: self.key,
            last: self.state,
            released: self.visible.released.since(Offset::START),
            verified: self.visible.verified_bytes,
            was_reset: self.visible.reset.is_some(),
        });
        cx.out.push_back(Output::Persist(Record::Free { slot: self.slot }));
    }

    /// Drops buffers that nobody can need any more, and counts the rest.
    fn trim(&mut self) {
        let released = self.visible.released;
        for id in LegId::ALL {
            // A lagging leg repeats what was shown; it is verified byte by byte.
            let floor = match self.state {
                FlowState::Lagging if id != self.primary => released.min(self.comparison.agreed()),
                _ => released,
            };
            let leg = self.leg_mut(id);
            if !matches!(leg.state, LegState::Open | LegState::SynSent) {
                leg.ear.forget();
            }
            match leg.is_open() {
                true => leg.voice.trim(floor),
                // Of a leg that carries the flow no more nothing is needed.
                false if leg.voice.held() > 0 => leg.voice.silence(),
                false => {}
            }
        }
        let mut floor = self.client.una.min(released);
        if self.state == FlowState::Lagging || self.comparison.is_following() {
            floor = floor.min(self.comparison.agreed());
        }
        if !on(Bug::ShownNeverTrimmed) {
            self.shown.trim(floor);
        }
        // One that is awaited has to hear everything from where it begins.
        let is_part = |l: &&Leg| l.is_open() || l.state == LegState::SynSent;
        let open = self.legs.iter().filter(is_part);
        if let Some(acked) = open.map(|l| l.acked).min() {
            self.request.trim(acked);
        }
        let streams = self.legs.iter().map(|l| l.voice.held()).sum::<usize>();
        self.held = streams + self.request.held() + self.shown.held();
    }

    /// Gives back the room of bytes that are gone: when time passes, not after each of them.
    fn give_back(&mut self) {
        if self.held == 0 {
            self.legs.iter_mut().for_each(|leg| leg.voice.give_back());
            [&mut self.request, &mut self.shown].into_iter().for_each(Stream::give_back);
        }
    }

    /// Sets the timer to the earliest deadline (LV5: every hold has one).
    fn arm(&mut self, cx: &Cx<'_>) {
        if self.is_gone {
            return;
        }
        let mut at = self.expires_at;
        let mut sooner = |t: Option<Instant>| at = t.map_or(at, |t| at.min(t));
        if !cx.is_still {
            sooner(self.handshake_deadline(cx));
            sooner(self.hold_deadline(cx));
            sooner(self.close_deadline(cx));
            sooner(self.second_deadline());
        }
        sooner(self.visible.takeover_at);
        sooner(self.diverged_until);
        sooner(self.ask_at);
        sooner(self.listener.as_ref().and_then(|listener| listener.waits_until()));
        sooner(self.rest_at().filter(|&at| at > cx.now));
        for leg in &self.legs {
            sooner(leg.resend_at);
        }
        // A deadline that has passed was served just now; asking again at once would spin.
        self.timer = Some(at.max(cx.now + Duration::from_micros(100)));
    }
}

/// Payload for frames without any.
const EMPTY: Bytes = Bytes::new();

fn policy_is_strict(cx: &Cx<'_>) -> bool {
    cx.config.on_lag == LagPolicy::Strict && cx.config.mode == Mode::Protect
}
