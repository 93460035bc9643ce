//! One of every event, and the way from the loop to the readers.

use std::io::Read;

use super::*;
use crate::engine::{
    CommandError, DegradedReason, Divergence, DivergenceKind, DropWhy, Duration, Epoch, Evidence,
    Field, Finding, FlowKey, FlowState, HeldWhy, KeptWhy, LegId, Link, NotReprotected,
    OfferOutcome, RawReason, RejectReason, RuleName, ServerState, ServiceId, ServiceState, Shown,
    SoloReason, SyncId, SyncReason,
};
use crate::wire::Offset;

pub(crate) fn names() -> [String; 2] {
    ["one".into(), "two".into()]
}

pub(crate) fn flow_key() -> FlowKey {
    FlowKey {
        service: ServiceId(0),
        vlan: (None, None),
        client: "198.51.100.7:4242".parse().expect("an address"),
        server: "192.0.2.10:80".parse().expect("an address"),
    }
}

/// One of each kind.
pub(crate) fn every_event() -> Vec<Event> {
    let (flow, server, id, epoch) = (flow_key(), LegId::A, SyncId(9), Epoch(2));
    let finding = Finding::H1(Evidence::Refused);
    let took = Duration::from_millis(3);
    let solo = Some(SoloReason::Lag);
    let at = Offset::START + 41;
    let field = Some(Field::Header("etag".into()));
    let divergence = Divergence { at, kind: DivergenceKind::Byte(7, 8), field };
    let degraded = ServiceState::Degraded(DegradedReason::OneServer);
    let last = FlowState::TimeWait;
    let rule = RuleName { protocol: "http", field: "date".into() };
    vec![
        Event::Rejected { link: Link::Client, reason: RejectReason::WrongLink },
        Event::CookieGiven { flow },
        Event::CookieTaken { flow },
        Event::CookiesTurned { on: true, half_open: 16_384 },
        Event::FlowOpened { flow },
        Event::FlowChanged {
            flow,
            from: FlowState::Paired,
            to: FlowState::Solo,
            primary: server,
            solo,
            shown: Shown { seq: 42, ack: 7, edge: 9 },
        },
        Event::FlowClosed { flow, last, released: 2, verified: 1, was_reset: true },
        Event::Unprotected { flow, reason: SoloReason::AuthOption },
        Event::Released { flow, verified: 10, unverified: 0, waited: took },
        Event::MaskHit { flow, rule: rule.clone(), at, len: 29 },
        Event::PairNoted { flow, rule: rule.clone(), at },
        Event::ValueReplaced { flow, to: server, rule: rule.clone(), at },
        Event::ValueKept { flow, to: server, rule, at, why: KeptWhy::Late },
        Event::ValueDoubtful { flow },
        Event::ReturnsUnread { flow, why: RawReason::Folded },
        Event::PairsDropped { why: DropWhy::Expired, count: 7 },
        Event::PairsLost,
        Event::ComparedRaw { flow, why: RawReason::TwoLengths },
        Event::DataOffered { flow, port: 5000, outcome: OfferOutcome::ForeignAddress },
        Event::EarlyEnd { flow, loser: server },
        Event::HoldSoft { flow, waiting_for: server },
        Event::HoldHard { flow, waiting_for: server },
        Event::Diverged { flow, divergence },
        Event::FlowReset { flow, by_servers: false },
        Event::Reprotected { flow, server: LegId::B },
        Event::NotReprotected { flow, server: LegId::A, why: NotReprotected::Silent },
        Event::RequestResent { flow, to: server, bytes: 100 },
        Event::ServerChanged { server, from: ServerState::Up, to: ServerState::Failed },
        Event::PortChanged { server, port: 21, accepted: false },
        Event::ServiceChanged { from: ServiceState::Protected, to: degraded },
        Event::FindingHeld { server, finding, why: HeldWhy::FlapBudget },
        Event::Promoted { epoch, primary: LegId::B, finding, moved: 3, reset: 1 },
        Event::Detached { epoch, server, finding, flows: 4 },
        Event::Rejoined { epoch, server },
        Event::OwnStall { gap: took },
        Event::SyncStarted {
            id,
            reason: SyncReason::Divergence(flow),
            from: server,
            to: server.other(),
        },
        Event::SyncFrozen { id, from: server, to: server.other() },
        Event::SyncEnded { id, ok: false, message: "disk full".into(), took },
        Event::SyncCoalesced { id },
        Event::DatagramJudged { only: Some(server) },
        Event::CommandDone { id: 3, result: Err(CommandError::NoPeer) },
    ]
}

fn unix_ns(now: Instant) -> u64 {
    now.nanos() + 1_000
}

#[test]
fn the_event_log_has_every_event_that_does_not_come_with_each_packet() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    let board = Board::new(names());
    let log = file.reopen().expect("the same file");
    let mut observer =
        Observer::start(Arc::clone(&board), unix_ns, Some(log), Level::Info).expect("a thread");
    for event in every_event() {
        observer.event(Instant::from_nanos(5), &event);
    }
    drop(observer);
    let mut text = String::new();
    file.read_to_string(&mut text).expect("text");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), every_event().len() - 4);
    assert!(lines.iter().all(|line| line["t_ns"] == 1_005));
    assert!(lines.iter().any(|line| line["event"] == "mask_hit" && line["at"] == 41));
}

#[test]
fn readers_get_what_matters_in_order_and_in_bounds() {
    let board = Board::new(names());
    let mut latest = board.latest();
    let mut observer =
        Observer::start(Arc::clone(&board), unix_ns, None, Level::Info).expect("a thread");
    for _ in 0..RECENT_EVENTS_MAX + 50 {
        observer
            .event(Instant::from_nanos(1), &Event::OwnStall { gap: Duration::from_millis(900) });
        observer.event(Instant::from_nanos(1), &Event::FlowOpened { flow: flow_key() });
    }
    drop(observer);
    let (events, last) = board.events_after(0);
    assert_eq!(events.len(), RECENT_EVENTS_MAX);
    assert_eq!(last, RECENT_EVENTS_MAX as u64 + 50);
    assert!(events.iter().all(|(_, event)| event["event"] == "own_stall"));
    assert!(events.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
    assert_eq!(*latest.borrow_and_update(), last);
    assert_eq!(board.events_after(last).0.len(), 0);
    assert_eq!(board.events_after(last - 3).0.len(), 3);
}

#[test]
fn a_command_s_outcome_reaches_its_asker() {
    let board = Board::new(names());
    let mut observer =
        Observer::start(Arc::clone(&board), unix_ns, None, Level::Info).expect("a thread");
    let (first, first_outcome) = board.expect_command();
    let (second, second_outcome) = board.expect_command();
    assert_ne!(first, second);
    let result = Err(CommandError::Busy);
    observer.event(Instant::ZERO, &Event::CommandDone { id: second, result });
    observer.event(Instant::ZERO, &Event::CommandDone { id: first, result: Ok(()) });
    observer.event(Instant::ZERO, &Event::CommandDone { id: 99, result: Ok(()) });
    assert_eq!(second_outcome.blocking_recv(), Ok(result));
    assert_eq!(first_outcome.blocking_recv(), Ok(Ok(())));
}
