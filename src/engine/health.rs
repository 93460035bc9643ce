//! Is a server alive, and does it answer? Probes, silence, skew; findings H1 to H3.
//!
//! A finding never rests on probes alone (their loss and a busy machine look the same), never on a
//! time in which the gateway itself stood still, and never without the other server having been
//! heard in the same window. Both servers are judged by the same rules.

use std::collections::{BTreeMap, VecDeque};

use super::LegId;
use super::event::{Evidence, Finding};
use super::pack::fields;
use super::time::{Duration, Instant};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// No frame at all for this long is silence.
const SILENCE: Duration = ms(20);
/// Nothing at all for this long, probes of both kinds included, needs no waiting flow.
const DEAD_SILENCE: Duration = ms(1000);
/// The other server must have been heard within this time, or one and a half probe intervals.
const OTHER_FRESH: Duration = ms(15);
/// Probes of one kind missed in a row, with one of a second kind.
const MISSES: u32 = 3;
/// Least response skew that is a finding.
const SKEW_FLOOR: Duration = ms(100);
/// Flows that must wait for the same server.
const SKEW_FLOWS: usize = 3;
/// A backup that stands still on several flows for this long is detached: sooner where clients wait
/// for it (lag policy strict).
const BACKUP_STILL: Duration = ms(2000);
const BACKUP_STILL_STRICT: Duration = ms(600);
/// Refusals count as one while they are closer together than this.
const REFUSALS_APART: Duration = ms(2);
/// The gateway's own lateness beyond this restarts every window.
pub const OWN_STALL: Duration = ms(5);
/// Two urgent probes follow at these distances.
const URGENT: [Duration; 3] = [ms(0), ms(2), ms(4)];
/// How long one flow's stall counts towards a finding about the server.
const STALL_COUNTS: Duration = ms(2000);
/// The same of a backup: where clients come one after the other, each may wait for it for seconds.
const BACKUP_STALL_COUNTS: Duration = ms(10_000);
/// So many handshakes without an answer in a row, over so long, are no accident.
const UNANSWERED: u32 = 3;
const UNANSWERED_FOR: Duration = ms(1000);
/// SYN probes whose answer is still awaited: some seconds of them. An answer may be late by as much
/// as the machine is busy, and one that is not recognized would be shown to a client.
const OUTSTANDING_MAX: usize = 256;

/// One kind of probe to one server.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProbeTrack {
    sent_at: Option<Instant>,
    is_answered: bool,
    /// Slow to fall, quick to rise.
    round_trip: Duration,
    /// Unanswered in a row.
    pub missed: u32,
    /// Last answer.
    pub answered_at: Option<Instant>,
}

impl ProbeTrack {
    /// A probe leaves; the one before counts as missed if it was not answered in its time: a probe
    /// interval, or twice the round trip.
    pub fn sent(&mut self, now: Instant, every: Duration) {
        if let Some(at) = self.sent_at.filter(|_| !self.is_answered) {
            if now.since(at) < every.max(self.round_trip * 2) {
                return;
            }
            self.missed = self.missed.saturating_add(1);
        }
        (self.sent_at, self.is_answered) = (Some(now), false);
    }

    /// An answer came.
    pub fn answered(&mut self, now: Instant) {
        if let Some(at) = self.sent_at.filter(|_| !self.is_answered) {
            self.round_trip = now.since(at).max(self.round_trip * 7 / 8);
        }
        (self.is_answered, self.missed, self.answered_at) = (true, 0, Some(now));
    }

    /// Begins to count anew.
    pub fn restart(&mut self) {
        (self.sent_at, self.missed) = (None, 0);
    }
}

/// Waiting for a server this long starts the application probe, if it is configured.
pub const APP_PROBE_AFTER: Duration = ms(50);
/// The application probe is unanswered after this, or five times the other server's time.
const APP_PROBE_MIN: Duration = ms(50);
const APP_PROBE_FACTOR: u32 = 5;
/// An application probe is begun anew after this.
const APP_PROBE_EVERY: Duration = ms(1000);

/// A SYN probe that is under way.
#[derive(Clone, Copy, Debug)]
pub struct SynProbe {
    /// Its source port.
    pub port: u16,
    /// The port of the service that it is sent to.
    pub to: u16,
    /// Its sequence number.
    pub seq: u32,
    /// A request follows when it is accepted.
    pub is_app: bool,
}

/// One application probe: a request on a connection of its own.
#[derive(Clone, Copy, Debug)]
pub struct AppProbe {
    /// Its source port.
    pub port: u16,
    /// When its SYN left.
    pub started: Instant,
    /// When the first byte of the answer came.
    pub answered_at: Option<Instant>,
}

/// Whether clients' SYNs are answered. A server that answers probes, which come from the gateway,
/// may have no way back to clients; one alone that stays silent to them protects nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answers {
    has_heard: bool,
    /// Missed in a row, and since when.
    missed: u32,
    since: Option<Instant>,
}

impl Answers {
    /// It has answered one.
    pub fn heard(&mut self) {
        *self = Self { has_heard: true, ..Self::default() };
    }

    /// It has not. If nobody has, it may be the client's fault, unless that was never otherwise.
    pub fn missed(&mut self, now: Instant, alone: bool) {
        if alone || !self.has_heard {
            self.missed = self.missed.saturating_add(1);
            self.since.get_or_insert(now);
        }
    }

    /// Whether clients get no answer from it.
    pub fn are_missing(&self, now: Instant) -> bool {
        let since = self.since.filter(|_| self.missed >= UNANSWERED);
        since.is_some_and(|since| now.since(since) >= UNANSWERED_FOR)
    }
}

/// What is known of one server's health.
#[derive(Debug, Default)]
pub struct Health {
    /// When any frame of it was heard last.
    pub heard_at: Option<Instant>,
    /// ARP, or neighbour solicitation.
    pub neighbour: ProbeTrack,
    /// TCP SYN to the first port.
    pub syn: ProbeTrack,
    /// SYN probes awaiting their answer.
    pub outstanding: VecDeque<SynProbe>,
    /// First and last refusal since a SYN was accepted.
    refused: Option<(Instant, Instant)>,
    accepted_at: Option<Instant>,
    /// Whether it refused the last probe of each port of the service.
    refuses: BTreeMap<u16, bool>,
    /// Whether clients are answered.
    pub answers: Answers,
    /// The latest application probe.
    pub app: Option<AppProbe>,
    /// Flows that left this server because it stood still.
    stalls: VecDeque<Instant>,
}

impl Health {
    /// The machine behind it is another one: what the old one refused or left undone says nothing.
    pub fn begin_anew(&mut self) {
        (self.refused, self.accepted_at, self.app) = (None, None, None);
        self.refuses.clear();
        self.answers = Answers::default();
        self.stalls.clear();
    }

    /// It is a copy of a server that was heard just now.
    pub fn vouched_for(&mut self, now: Instant) {
        self.heard_at = Some(now);
        self.neighbour.restart();
        self.neighbour.answered_at = Some(now);
    }

    /// Notes a probe of the first port that leaves.
    pub fn syn_sent(&mut self, now: Instant, every: Duration, probe: SynProbe) {
        self.syn.sent(now, every);
        self.await_answer(probe);
        if probe.is_app {
            let (port, started) = (probe.port, now);
            self.app = Some(AppProbe { port, started, answered_at: None });
        }
    }

    /// Notes a probe of any port that leaves.
    pub fn await_answer(&mut self, probe: SynProbe) {
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(probe);
    }

    /// Takes the probe that a segment to `port` with acknowledgment `ack` answers.
    pub fn take_probe(&mut self, port: u16, ack: u32) -> Option<SynProbe> {
        let at =
            self.outstanding.iter().position(|p| p.port == port && p.seq.wrapping_add(1) == ack)?;
        self.outstanding.remove(at)
    }

    /// Notes whether it accepts connections to `port`; true if that is news: it refuses them now,
    /// or does not any more.
    pub fn port_answered(&mut self, port: u16, accepted: bool) -> bool {
        self.refuses.insert(port, !accepted).unwrap_or(false) == accepted
    }

    /// Whether it accepts connections to some port, whichever it refuses: it is no dead one.
    fn accepts_some(&self) -> bool {
        self.refuses.values().any(|refuses| !refuses)
    }

    fn refused_ports(&self) -> Vec<u16> {
        self.refuses.iter().filter(|(_, refuses)| **refuses).map(|(port, _)| *port).collect()
    }

    /// A SYN probe of the first port was answered.
    pub fn syn_answered(&mut self, now: Instant, accepted: bool) {
        self.syn.answered(now);
        if accepted {
            (self.accepted_at, self.refused) = (Some(now), None);
        } else {
            let first = self.refused.map_or(now, |(first, _)| first);
            self.refused = Some((first, now));
        }
    }

    /// Whether an application probe may begin.
    pub fn wants_app_probe(&self, now: Instant) -> bool {
        self.app.is_none_or(|p| now.since(p.started) >= APP_PROBE_EVERY)
    }

    /// A flow went on, or ended, without it because it stood still.
    pub fn stalled(&mut self, now: Instant) {
        self.stalls.push_back(now);
        if self.stalls.len() > 64 {
            self.stalls.pop_front();
        }
    }

    fn stalls_since(&self, since: Instant) -> usize {
        self.stalls.iter().filter(|&&at| at >= since).count()
    }

    fn is_refusing(&self) -> bool {
        self.refused.is_some_and(|(first, last)| last.since(first) >= REFUSALS_APART)
    }

    /// Whether its last SYN probe was refused.
    fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Whether it refuses all that it was asked for.
    pub fn refuses_all(&self) -> bool {
        self.is_refused() && !self.accepts_some()
    }

    fn was_heard_since(&self, since: Instant) -> bool {
        self.heard_at.is_some_and(|at| at >= since)
    }

    /// Begins every window anew.
    pub fn restart_windows(&mut self, now: Instant) {
        self.neighbour.restart();
        self.syn.restart();
        if let Some(at) = &mut self.heard_at {
            *at = (*at).max(now - SILENCE / 2);
        }
    }
}

/// What the flows say about a server, for one judgement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// Some flow waits for it while the other server got further.
    pub any: bool,
    /// A client asked it alone and hears nothing, while the server itself is long silent.
    pub in_vain: bool,
    /// Flows that have waited at least the skew limit.
    pub skewed: usize,
    /// Flows that have waited at least [`Detector::still_limit`].
    pub still: usize,
}

/// Judges both servers.
#[derive(Debug)]
pub struct Detector {
    /// Health by leg.
    pub servers: [Health; 2],
    skew: SkewHistogram,
    /// No window reaches back beyond this.
    window_start: Instant,
    urgent: VecDeque<Instant>,
}

impl Detector {
    /// Begins at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            servers: [Health::default(), Health::default()],
            skew: SkewHistogram::default(),
            window_start: now,
            urgent: VecDeque::new(),
        }
    }

    /// One server's health.
    pub fn of(&mut self, leg: LegId) -> &mut Health {
        &mut self.servers[leg.index()]
    }

    /// A frame of `leg` was heard.
    pub fn heard(&mut self, now: Instant, leg: LegId) {
        self.of(leg).heard_at = Some(now);
    }

    /// The gateway itself stood still: nothing from before counts.
    pub fn own_stall(&mut self, now: Instant) {
        self.window_start = now;
        for server in &mut self.servers {
            server.restart_windows(now);
        }
    }

    /// The second copy came this much later.
    pub fn note_skew(&mut self, skew: Duration) {
        self.skew.add(skew);
    }

    /// Asks for probes at once.
    pub fn probe_now(&mut self, now: Instant) {
        if self.urgent.is_empty() {
            self.urgent.extend(URGENT.iter().map(|&d| now + d));
        }
    }

    /// When the next urgent probe is due.
    pub fn urgent_at(&self) -> Option<Instant> {
        self.urgent.front().copied()
    }

    /// Whether an urgent probe is due; it counts as sent.
    pub fn take_urgent(&mut self, now: Instant) -> bool {
        let due = self.urgent.front().is_some_and(|&at| at <= now);
        if due {
            self.urgent.pop_front();
        }
        due
    }

    /// How long a flow must wait for a server to count as skew.
    pub fn skew_limit(&self) -> Duration {
        SKEW_FLOOR.max(self.skew.p99() * 20).min(Duration::from_secs(10))
    }

    /// How long a backup may stand still.
    pub const fn still_limit(&self, is_strict: bool) -> Duration {
        if is_strict { BACKUP_STILL_STRICT } else { BACKUP_STILL }
    }

    /// The ports that each server refused connections to when it was asked last.
    pub fn refused_ports(&self) -> [Vec<u16>; 2] {
        self.servers.each_ref().map(Health::refused_ports)
    }

    /// Which servers answer no client.
    pub fn unanswering(&self, now: Instant) -> [bool; 2] {
        self.servers.each_ref().map(|server| server.answers.are_missing(now))
    }

    /// Only these are the service's ports.
    pub fn keep_ports(&mut self, ports: &[u16]) {
        for server in &mut self.servers {
            server.refuses.retain(|port, _| ports.contains(port));
        }
    }

    /// The application probe of `leg` is unanswered where the other server's was answered.
    fn app_fails(&self, now: Instant, leg: LegId) -> bool {
        let own = self.servers[leg.index()].app.filter(|p| p.answered_at.is_none());
        let other = self.servers[leg.other().index()].app;
        let (Some(own), Some(other)) = (own, other) else { return false };
        let Some(answered) = other.answered_at else { return false };
        let took = answered.since(other.started);
        now.since(own.started) >= APP_PROBE_MIN.max(took * APP_PROBE_FACTOR)
    }

    /// Whether nothing at all was heard of `leg` for a long time.
    pub fn is_long_silent(&self, now: Instant, leg: LegId) -> bool {
        let heard = self.servers[leg.index()].heard_at;
        heard.is_some_and(|at| now.since(at) >= DEAD_SILENCE)
            && now.since(self.window_start) > DEAD_SILENCE
    }

    /// The finding about `leg`, if there is one.
    pub fn judge(
        &self,
        now: Instant,
        leg: LegId,
        is_primary: bool,
        waiting: Waiting,
        probe_every: Duration,
    ) -> Option<Finding> {
        let own = &self.servers[leg.index()];
        let other = &self.servers[leg.other().index()];
        let other_accepts =
            other.accepted_at.is_some_and(|at| now.since(at) <= ms(50)) && !other.is_refused();
        if own.is_refusing() && other_accepts && !own.accepts_some() {
            return Some(Finding::H1(Evidence::Refused));
        }
        if !other.was_heard_since(now - OTHER_FRESH.max(probe_every * 3 / 2)) {
            return None;
        }
        let silence = SILENCE.max(probe_every * 2);
        let silent = !own.was_heard_since(now - silence) && now.since(self.window_start) > silence;
        let (n, s) = (own.neighbour.missed, own.syn.missed);
        let misses = (n >= MISSES && s >= 1) || (s >= MISSES && n >= 1);
        if silent && misses && waiting.any {
            return Some(Finding::H2);
        }
        let is_known = own.neighbour.answered_at.is_some()
            || (own.syn.answered_at.is_some() && own.syn.missed >= MISSES)
            || waiting.in_vain;
        if self.is_long_silent(now, leg) && own.neighbour.missed >= MISSES && is_known {
            return Some(Finding::H2);
        }
        let counts = if is_primary { STALL_COUNTS } else { BACKUP_STALL_COUNTS };
        let stalls = own.stalls_since(now - counts);
        let skewed = match is_primary {
            true => waiting.skewed + stalls >= SKEW_FLOWS,
            false => waiting.still + stalls >= SKEW_FLOWS,
        };
        let fails = is_primary && waiting.skewed > 0 && self.app_fails(now, leg);
        (skewed || fails).then_some(Finding::H3)
    }
}

/// A decaying histogram of skews by powers of two of microseconds.
#[derive(Debug, Default)]
struct SkewHistogram {
    buckets: [u32; 32],
    count: u32,
}

impl SkewHistogram {
    fn add(&mut self, skew: Duration) {
        let us = u32::try_from(skew.as_micros()).unwrap_or(u32::MAX);
        let bucket = (32 - us.leading_zeros()).min(31) as usize;
        self.buckets[bucket] += 1;
        self.count += 1;
        if self.count >= 4096 {
            self.buckets.iter_mut().for_each(|b| *b /= 2);
            self.count = self.buckets.iter().sum();
        }
    }

    /// Upper bound of the bucket in which the 99th percentile stands.
    fn p99(&self) -> Duration {
        let mut left = self.count / 100;
        for (i, &n) in self.buckets.iter().enumerate().rev() {
            if n > left {
                return Duration::from_micros(1 << i);
            }
            left -= n;
        }
        Duration::ZERO
    }
}

fields!(ProbeTrack { sent_at, is_answered, round_trip, missed, answered_at });
fields!(Answers { has_heard, missed, since });
fields!(SynProbe { port, to, seq, is_app });
fields!(AppProbe { port, started, answered_at });
fields!(Health {
    heard_at,
    neighbour,
    syn,
    outstanding,
    refused,
    accepted_at,
    refuses,
    answers,
    app,
    stalls
});
fields!(SkewHistogram { buckets, count });
fields!(Detector { servers, skew, window_start, urgent });
