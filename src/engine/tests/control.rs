//! The control side and the health of servers by themselves, without a flow.

use std::collections::VecDeque;

use super::kit::config;
use crate::engine::control::{Control, Facts, Order};
use crate::engine::event::HeldWhy;
use crate::engine::health::{Detector, ProbeTrack, SynProbe, Waiting};
use crate::engine::{
    DegradedReason, Duration, EngineConfig, Epoch, Event, Evidence, Fence, Finding, Instant, LegId,
    Mode, Output, ServerState, ServiceState,
};

const A: LegId = LegId::A;
const B: LegId = LegId::B;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The control side and what it says.
struct Side {
    control: Control,
    config: EngineConfig,
    now: Instant,
    out: VecDeque<Output>,
}

impl Side {
    /// Both servers have been heard.
    fn new(config: EngineConfig) -> Self {
        let mut side = Self::unheard(config);
        for leg in LegId::ALL {
            side.control.on_heard(side.now, leg, true, &mut side.out);
        }
        side
    }

    fn unheard(config: EngineConfig) -> Self {
        let now = Instant::from_millis(100_000);
        Self { control: Control::new(&config, now), config, now, out: VecDeque::new() }
    }

    fn find(&mut self, leg: LegId, finding: Finding) -> Vec<Order> {
        self.control.on_finding(self.now, leg, finding, &self.config, &mut self.out)
    }

    /// Time passes in which those who are there answer every probe and `facts` stay as they are.
    fn pass(&mut self, time: Duration, there: &[LegId], facts: Facts) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + ms(50);
            for &leg in there {
                self.control.on_heard(self.now, leg, true, &mut self.out);
                self.control.detector.of(leg).neighbour.answered(self.now);
            }
            self.control.on_tick(self.now, facts, &self.config, &mut self.out);
        }
    }

    /// How long it takes until `leg` is a backup again, both answering.
    fn until_up(&mut self, leg: LegId) -> Duration {
        let begin = self.now;
        while self.control.state(leg) != ServerState::Up {
            assert!(self.now.since(begin) < Duration::from_secs(100), "it never returns");
            self.pass(ms(50), &LegId::ALL, Facts::default());
        }
        self.now.since(begin)
    }

    fn events(&mut self) -> Vec<Event> {
        let of = |output| match output {
            Output::Event(event) => Some(event),
            _ => None,
        };
        self.out.drain(..).filter_map(of).collect()
    }
}

#[test]
fn every_change_of_the_servers_is_a_later_epoch() {
    let mut side = Side::new(config());
    assert_eq!(side.control.roles().epoch, Epoch(0));
    side.find(A, Finding::Operator);
    assert_eq!((side.control.roles().epoch, side.control.roles().primary), (Epoch(1), B));
    side.until_up(A);
    assert_eq!(side.control.roles().epoch, Epoch(2), "A is back");
    let rejoined = Event::Rejoined { epoch: Epoch(2), server: A };
    assert!(side.events().contains(&rejoined));
    let orders = side.control.failover(side.now, None, true, &side.config, &mut side.out);
    assert_eq!(orders, Ok(vec![Order::Swap(A)]));
    assert_eq!((side.control.roles().epoch, side.control.roles().primary), (Epoch(3), A));
    side.find(B, Finding::H2);
    assert_eq!((side.control.roles().epoch, side.control.roles().primary), (Epoch(4), A));
}

#[test]
fn a_server_that_only_looked_alive_is_on_trial_twice_as_long_each_time() {
    let mut side = Side::new(config());
    let mut waits = Vec::new();
    for finding in [Finding::Operator, Finding::H2, Finding::H3, Finding::H3, Finding::Operator] {
        side.find(B, finding);
        let wait = side.until_up(B);
        waits.push(wait.as_millis() / 1000);
    }
    assert_eq!(waits, [3, 6, 12, 24, 3]);
    for _ in 0..8 {
        side.find(B, Finding::H3);
        side.until_up(B);
    }
    side.find(B, Finding::H3);
    assert_eq!(side.until_up(B).as_millis() / 1000, 60, "and a minute at most");
}

#[test]
fn a_finding_without_hard_evidence_promotes_no_second_time_within_ten_seconds() {
    let mut side = Side::new(config());
    assert_eq!(side.find(A, Finding::H3).len(), 1);
    side.control.rejoin(side.now, A, &side.config, &mut side.out).expect("it is there");
    side.pass(ms(9_900), &LegId::ALL, Facts::default());
    side.events();
    for _ in 0..3 {
        assert_eq!(side.find(B, Finding::H3), []);
    }
    let held = Event::FindingHeld { server: B, finding: Finding::H3, why: HeldWhy::FlapBudget };
    assert_eq!(side.events(), [held], "told once");
    side.pass(ms(100), &LegId::ALL, Facts::default());
    assert_eq!(side.find(B, Finding::H3).len(), 1);
    // The second within a minute was the last one; a carrier that is gone needs no budget.
    side.control.rejoin(side.now, B, &side.config, &mut side.out).expect("it is there");
    side.pass(ms(40_000), &LegId::ALL, Facts::default());
    assert_eq!(side.find(A, Finding::H3), []);
    assert_eq!(side.find(A, Finding::H1(Evidence::Carrier)).len(), 1);
}

#[test]
fn nobody_is_promoted_before_a_required_fence_has_worked() {
    let mut side = Side::new(EngineConfig { fence: Fence::Required, ..config() });
    assert_eq!(side.find(A, Finding::H3), []);
    let fence = Output::Fence { epoch: Epoch(1), server: A };
    assert_eq!(side.out.iter().filter(|o| format!("{o:?}") == format!("{fence:?}")).count(), 1);
    let (now, out) = (side.now, &mut side.out);
    assert_eq!(side.control.on_fenced(now, Epoch(7), true, out), [], "another epoch's");
    assert_eq!(side.control.on_fenced(now, Epoch(1), false, out), []);
    assert_eq!(side.control.roles().primary, A);
    let held = Event::FindingHeld { server: A, finding: Finding::H3, why: HeldWhy::FenceFailed };
    assert!(side.events().contains(&held));
    // Tried again after a pause, and then it works.
    assert_eq!(side.find(A, Finding::H3), []);
    assert!(side.out.is_empty(), "not within the pause");
    side.now = side.now + ms(1000);
    assert_eq!(side.find(A, Finding::H3), []);
    let fenced = side.control.on_fenced(side.now, Epoch(1), true, &mut side.out);
    let fail = Order::Fail { server: A, finding: Finding::H3, was_primary: true };
    assert_eq!((fenced.first(), side.control.roles().primary), (Some(&fail), B));
}

#[test]
fn a_backup_late_on_a_twentieth_of_the_flows_for_a_second_is_unfit_until_it_is_not() {
    let mut side = Side::new(config());
    let facts = |lagging| Facts { lagging, paired: 100 - lagging, ..Facts::default() };
    side.pass(ms(5000), &LegId::ALL, facts(5));
    assert_eq!(side.control.state(B), ServerState::Up, "a twentieth is still well");
    side.pass(ms(950), &LegId::ALL, facts(6));
    assert_eq!(side.control.state(B), ServerState::Up);
    side.pass(ms(100), &LegId::ALL, facts(6));
    assert_eq!(side.control.state(B), ServerState::Unfit);
    assert_eq!(side.control.fit(), [true, false]);
    let unfit = ServiceState::Degraded(DegradedReason::BackupUnfit);
    assert_eq!(side.control.service(), unfit);
    assert_eq!(side.find(A, Finding::H3), [], "nobody to promote");
    side.pass(ms(950), &LegId::ALL, facts(0));
    assert_eq!(side.control.state(B), ServerState::Unfit);
    side.pass(ms(100), &LegId::ALL, facts(0));
    assert_eq!(side.control.state(B), ServerState::Up);
    assert_eq!(side.control.service(), ServiceState::Protected);
    // Two flows are no share of anything.
    side.pass(ms(3000), &LegId::ALL, Facts { lagging: 2, ..Facts::default() });
    assert_eq!(side.control.state(B), ServerState::Up);
}

#[test]
fn the_service_is_said_to_be_what_the_servers_make_it() {
    let mut side = Side::new(config());
    let none = Facts::default();
    side.pass(ms(100), &LegId::ALL, none);
    assert_eq!(side.control.service(), ServiceState::Protected);
    side.control.set_paused(true);
    side.pass(ms(50), &LegId::ALL, none);
    assert_eq!(side.control.service(), ServiceState::Degraded(DegradedReason::Paused));
    side.control.set_paused(false);
    side.config.mode = Mode::Passthrough;
    side.pass(ms(50), &LegId::ALL, none);
    assert_eq!(side.control.service(), ServiceState::Degraded(DegradedReason::Mode));
    side.config.mode = Mode::Protect;
    side.find(B, Finding::Operator);
    side.pass(ms(50), &[A], none);
    assert_eq!(side.control.service(), ServiceState::Degraded(DegradedReason::OneServer));
    side.pass(ms(50), &LegId::ALL, none);
    assert_eq!(side.control.service(), ServiceState::Degraded(DegradedReason::Returning));
    side.pass(ms(1100), &[], none);
    assert_eq!(side.control.service(), ServiceState::Down);
}

#[test]
fn a_server_that_has_not_come_within_a_second_of_the_start_is_not_waited_for() {
    for there in LegId::ALL {
        let mut side = Side::unheard(config());
        let is_primary = there == side.config.first_primary;
        side.pass(ms(950), &[there], Facts::default());
        let early = if is_primary { ServiceState::Starting } else { side.control.service() };
        assert_eq!((side.control.service(), side.control.roles().epoch), (early, Epoch(0)));
        side.pass(ms(100), &[there], Facts::default());
        let alone = ServiceState::Degraded(DegradedReason::OneServer);
        assert_eq!((side.control.service(), side.control.roles().primary), (alone, there));
    }
}

#[test]
fn a_probe_is_missed_after_an_interval_or_two_round_trips() {
    let at = Instant::from_millis;
    let mut track = ProbeTrack::default();
    track.sent(at(0), ms(10));
    track.sent(at(9), ms(10));
    assert_eq!(track.missed, 0, "it has its time still");
    track.sent(at(10), ms(10));
    assert_eq!(track.missed, 1);
    track.answered(at(50));
    assert_eq!(track.missed, 0);
    // Forty milliseconds there and back: eighty are its time now.
    track.sent(at(100), ms(10));
    track.sent(at(179), ms(10));
    assert_eq!(track.missed, 0);
    track.sent(at(180), ms(10));
    assert_eq!(track.missed, 1);
}

/// A detector that has heard both servers' answers to everything until `at`.
fn heard_both(at: Instant) -> Detector {
    let mut detector = Detector::new(Instant::from_millis(1000));
    for leg in LegId::ALL {
        detector.heard(at, leg);
        detector.of(leg).neighbour.answered(at);
        detector.of(leg).syn_answered(at, true);
    }
    detector
}

/// `leg` leaves `count` probes of both kinds unanswered from `at` on.
fn leave_unanswered(detector: &mut Detector, leg: LegId, at: Instant, count: u64) {
    for n in 0..=count {
        let probe = SynProbe { port: 61_000, to: 80, seq: 1, is_app: false };
        detector.of(leg).neighbour.sent(at + ms(10 * n), ms(10));
        detector.of(leg).syn_sent(at + ms(10 * n), ms(10), probe);
    }
}

#[test]
fn silence_is_a_finding_where_probes_fail_and_somebody_waits() {
    let begin = Instant::from_millis(5000);
    let waiting = Waiting { any: true, ..Waiting::default() };
    let judge = |detector: &Detector, now, waiting| detector.judge(now, A, true, waiting, ms(10));
    let mut detector = heard_both(begin);
    leave_unanswered(&mut detector, A, begin, 3);
    let now = begin + ms(30);
    assert_eq!(judge(&detector, now, waiting), None, "the other was not heard lately either");
    detector.heard(now, B);
    assert_eq!(judge(&detector, now, Waiting::default()), None, "nobody waits");
    assert_eq!(judge(&detector, now, waiting), Some(Finding::H2));
    // What the gateway itself missed is nobody's silence, for as long as silence has to be.
    detector.own_stall(now);
    leave_unanswered(&mut detector, A, now, 3);
    for (later, finding) in [(20, None), (31, Some(Finding::H2))] {
        detector.heard(now + ms(later), B);
        assert_eq!(judge(&detector, now + ms(later), waiting), finding, "after {later} ms");
    }
}

#[test]
fn a_second_of_silence_needs_nobody_who_waits_but_a_server_that_is_known() {
    let begin = Instant::from_millis(5000);
    let judge = |detector: &Detector, now| {
        detector.judge(now, A, true, Waiting::default(), ms(10)).is_some()
    };
    let mut detector = heard_both(begin);
    leave_unanswered(&mut detector, A, begin, 100);
    let mut at = |ms_later: u64| {
        detector.heard(begin + ms(ms_later), B);
        judge(&detector, begin + ms(ms_later))
    };
    assert!(!at(999));
    assert!(at(1000));
    // Heard by its neighbour's answers to nothing, and never by TCP: not known.
    let mut detector = Detector::new(Instant::from_millis(1000));
    detector.heard(begin, A);
    leave_unanswered(&mut detector, A, begin, 100);
    detector.heard(begin + ms(1000), B);
    assert!(!judge(&detector, begin + ms(1000)));
    // Nor is the time before the gateway's own stall.
    let mut detector = heard_both(begin);
    detector.own_stall(begin + ms(900));
    leave_unanswered(&mut detector, A, begin + ms(900), 10);
    detector.heard(begin + ms(1900), B);
    assert!(!detector.is_long_silent(begin + ms(1900), A));
    assert!(detector.is_long_silent(begin + ms(1901), A));
}

#[test]
fn one_flow_and_an_unanswered_application_probe_are_a_finding_and_either_alone_is_not() {
    let begin = Instant::from_millis(5000);
    let mut detector = heard_both(begin);
    for leg in LegId::ALL {
        let probe = SynProbe { port: 61_000, to: 80, seq: 1, is_app: true };
        detector.of(leg).syn_sent(begin, ms(10), probe);
        detector.of(leg).syn_answered(begin, true);
    }
    let other = detector.of(B).app.as_mut().expect("begun");
    other.answered_at = Some(begin + ms(2));
    let mut judge = |later, is_primary, skewed| {
        let now = begin + ms(later);
        LegId::ALL.into_iter().for_each(|leg| detector.heard(now, leg));
        let waiting = Waiting { skewed, ..Waiting::default() };
        detector.judge(now, A, is_primary, waiting, ms(10))
    };
    assert_eq!(judge(49, true, 1), None);
    assert_eq!(judge(50, true, 1), Some(Finding::H3));
    assert_eq!(judge(50, true, 0), None, "nobody waits");
    assert_eq!(judge(50, false, 1), None, "a backup's application is its own affair");
    assert_eq!((judge(60, true, 2), judge(60, true, 3)), (Some(Finding::H3), Some(Finding::H3)));
}

#[test]
fn the_usual_skew_decides_what_is_an_unusual_one() {
    let mut detector = Detector::new(Instant::ZERO);
    assert_eq!(detector.skew_limit(), ms(100));
    for _ in 0..4000 {
        detector.note_skew(ms(10));
    }
    // Twenty times the upper bound of what one in a hundred exceeds.
    assert_eq!(detector.skew_limit(), Duration::from_micros(20 << 14));
    for _ in 0..95 {
        detector.note_skew(ms(1));
    }
    // What was is forgotten by halves: it still weighs as much against what is new.
    detector.note_skew(ms(1));
    assert_eq!(detector.skew_limit(), Duration::from_micros(20 << 14));
    for _ in 0..60_000 {
        detector.note_skew(ms(1));
    }
    assert_eq!(detector.skew_limit(), ms(100));
    for _ in 0..60_000 {
        detector.note_skew(Duration::from_secs(5));
    }
    assert_eq!(detector.skew_limit(), Duration::from_secs(10), "and ten seconds at most");
}

#[test]
fn urgent_probes_leave_at_once_and_twice_more() {
    let begin = Instant::from_millis(5000);
    let mut detector = Detector::new(begin);
    assert!(!detector.take_urgent(begin));
    detector.probe_now(begin);
    detector.probe_now(begin);
    let due = |detector: &mut Detector, later| {
        std::iter::repeat_with(|| detector.take_urgent(begin + ms(later)))
            .take_while(|due| *due)
            .count()
    };
    assert_eq!([0, 1, 2, 3, 4, 9].map(|later| due(&mut detector, later)), [1, 0, 1, 0, 1, 0]);
    assert_eq!(detector.urgent_at(), None);
}

#[test]
fn a_process_that_is_gone_stands_until_it_runs_again_and_running_is_no_sign_of_life() {
    let config = EngineConfig { sync_scope: None, ..config() };
    let mut side = Side::new(config);
    let signal = |side: &mut Side, leg, up, evidence| {
        let Side { control, config, now, out } = side;
        control.on_signal(*now, leg, up, evidence, config, out)
    };
    let orders = signal(&mut side, A, false, Evidence::Exited);
    let is_exit = |order: &Order| {
        matches!(order, Order::Fail { server: A, finding: Finding::H1(Evidence::Exited), .. })
    };
    assert!(orders.iter().any(is_exit) && side.control.roles().primary == B);
    // Its kernel answers, but the process is gone: nobody takes it back.
    side.pass(ms(20_000), &LegId::ALL, Facts::default());
    assert_eq!(side.control.state(A), ServerState::Failed);
    side.control.on_running(A);
    assert_eq!(side.control.state(A), ServerState::Failed, "it was only said that it runs");
    side.until_up(A);

    // A line that is down says more than who reports from behind it.
    signal(&mut side, B, false, Evidence::Carrier);
    signal(&mut side, B, false, Evidence::Exited);
    side.control.on_running(B);
    side.pass(ms(20_000), &LegId::ALL, Facts::default());
    assert_eq!(side.control.state(B), ServerState::Failed, "the line is down");
    signal(&mut side, B, true, Evidence::Carrier);
    side.until_up(B);
    side.control.on_running(A);
    side.pass(ms(1000), &LegId::ALL, Facts::default());
    assert_eq!(side.control.state(A), ServerState::Up, "nobody had said otherwise");
}

/// It is judged when the next probe is due, and its last answer is then as old as that.
#[test]
fn servers_that_are_asked_seldom_are_there_all_the_time_and_return() {
    let every = Duration::from_secs(2);
    let mut side = Side::new(EngineConfig { probe_every: every, ..config() });
    side.find(A, Finding::Operator);
    for _ in 0..10 {
        side.now = side.now + every;
        side.control.on_tick(side.now, Facts::default(), &side.config, &mut side.out);
        for leg in LegId::ALL {
            side.control.on_heard(side.now, leg, true, &mut side.out);
            side.control.detector.of(leg).neighbour.answered(side.now);
        }
    }
    assert_eq!(side.control.state(A), ServerState::Up);
    let is_down =
        |event: &Event| matches!(event, Event::ServiceChanged { to: ServiceState::Down, .. });
    assert!(!side.events().iter().any(is_down), "one of them answered every time");
}
