//! What happens to a whole server, or to the gateway itself, as its flows see it.

use super::kit::{ACK, CLIENT_ISS as C, ISS, Kit, RST, SYN, SYN_ACK, config, say};
use crate::engine::{
    Duration, EngineConfig, Event, Input, LegId, Link, ServerState, SyncScope, SyncStep,
};

const A: Link = Link::Server(LegId::A);
const B: Link = Link::Server(LegId::B);

/// A new connection from `port`, one request and the answers of both.
fn exchange(kit: &mut Kit, port: u16, answers: [&str; 2]) {
    kit.say(Link::Client, say(SYN, C, 0).mss(1460), port);
    for (link, iss) in [(A, ISS[0]), (B, ISS[1])] {
        kit.say(link, say(SYN_ACK, iss, C + 1).mss(1460), port);
    }
    kit.say(Link::Client, say(ACK, C + 1, ISS[0] + 1).data("?"), port);
    for (link, iss, text) in [(A, ISS[0], answers[0]), (B, ISS[1], answers[1])] {
        kit.say(link, say(ACK, iss + 1, C + 2).data(text), port);
    }
}

#[test]
fn a_storm_of_divergences_is_no_storm_of_syncs_and_costs_no_answer() {
    let mut kit = Kit::new(EngineConfig { sync_scope: Some(SyncScope::Content), ..config() });
    let started =
        |kit: &Kit| kit.events.iter().filter(|e| matches!(e, Event::SyncStarted { .. })).count();
    let (mut mended, mut before, mut most) = (0, 0, 0);
    for n in 0..600u16 {
        exchange(&mut kit, 40_000 + n, ["good", "evil"]);
        kit.wait_ms(50);
        if kit.syncs.len() > mended {
            mended = kit.syncs.len();
            kit.input(Input::SyncStep(kit.syncs[mended - 1].id, SyncStep::TargetReady));
        }
        kit.wait_ms(50);
        if n % 100 == 99 {
            most = most.max(started(&kit) - before);
            before = started(&kit);
        }
    }
    assert!((1..=6).contains(&most), "{most} syncs within ten seconds");
    let shown: Vec<Vec<u8>> = kit.on(Link::Client).into_iter().map(|h| h.data).collect();
    let good = shown.iter().filter(|data| *data == b"good").count();
    assert_eq!((good, shown.iter().filter(|data| *data == b"evil").count()), (600, 0));
}

#[test]
fn time_that_the_gateway_missed_is_nobodys_fault() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, C + 1, ISS[0] + 1).data("GET"));
    kit.leg(LegId::B, say(ACK, ISS[1] + 1, C + 4).data("answer"));
    // Not scheduled for a while; what the primary said meanwhile is read after the timer.
    kit.now = kit.now + Duration::from_millis(400);
    kit.input(Input::Timeout);
    kit.leg(LegId::A, say(ACK, ISS[0] + 1, C + 4).data("answer"));
    kit.wait_ms(100);
    assert!(kit.events.iter().any(|e| matches!(e, Event::OwnStall { .. })));
    let is_verdict = |e: &&Event| {
        matches!(
            e,
            Event::Promoted { .. }
                | Event::Detached { .. }
                | Event::FlowChanged { .. }
                | Event::ServerChanged { to: ServerState::Failed, .. }
        )
    };
    assert_eq!(kit.events.iter().find(is_verdict), None);
    assert_eq!(kit.on(Link::Client).last().map(|h| h.data.clone()), Some(b"answer".to_vec()));
}

#[test]
fn what_no_record_tells_of_passes_to_the_primary_alone() {
    let mut kit = Kit::restored(config(), Vec::new());
    kit.input(Input::Timeout);
    kit.forget();
    let asked = kit.client(say(ACK, C + 1, ISS[0] + 1).data("GET"));
    assert_eq!(asked.iter().map(|h| h.link).collect::<Vec<_>>(), [A]);
    let answered = kit.leg(LegId::A, say(ACK, ISS[0] + 1, C + 4).data("answer"));
    assert_eq!(answered.iter().map(|h| h.link).collect::<Vec<_>>(), [Link::Client]);
    // The backup's connection is nobody's any more.
    let reset = kit.leg(LegId::B, say(ACK, ISS[1] + 1, C + 4).data("answer"));
    assert_eq!(
        reset.iter().map(|h| (h.link, h.seg.flags, h.seg.seq)).collect::<Vec<_>>(),
        [(B, RST, C + 4)]
    );
}
