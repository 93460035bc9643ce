//! What happens to a whole server, or to the gateway itself, as its flows see it.

use std::net::IpAddr;

use super::kit::{ACK, CLIENT_ISS as C, ISS, Kit, RST, SYN, SYN_ACK, Say, config, say};
use crate::engine::{
    Duration, EngineConfig, Event, Finding, Input, LegId, Link, ServerState, SyncScope, SyncStep,
};
use crate::wire::Vlans;

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

/// Of a server that answers no probe (a firewall, a filter of neighbour discovery) silence says
/// nothing, but for a client that asks it and hears nothing.
#[test]
fn a_server_that_never_answers_probes_is_missed_once_a_client_asks_it_in_vain() {
    let [client, service] =
        ["2001:db8::1", "2001:db8::10"].map(|text| -> IpAddr { text.parse().expect("an address") });
    for asks in [false, true] {
        // The servers of the kit answer ARP alone.
        let mut kit = Kit::new(EngineConfig { addresses: vec![service], ..config() });
        let talk = |kit: &mut Kit, link: Link, said: Say| {
            let is_client = link == Link::Client;
            let ends = (client, service);
            let frame = Kit::frame_between(ends, Vlans::default(), is_client, &said, (40_000, 80));
            kit.input(Input::Frame(link, frame));
        };
        talk(&mut kit, Link::Client, say(SYN, C, 0).mss(1440));
        for (link, iss) in [(A, ISS[0]), (B, ISS[1])] {
            talk(&mut kit, link, say(SYN_ACK, iss, C + 1).mss(1440));
        }
        talk(&mut kit, Link::Client, say(ACK, C + 1, ISS[0] + 1));
        // The backup has lost its part, so that nobody is waited for beside the primary.
        talk(&mut kit, B, say(RST, ISS[1] + 1, 0));
        kit.wait_ms(60);
        if asks {
            talk(&mut kit, Link::Client, say(ACK, C + 1, ISS[0] + 1).data("GET"));
        }
        for _ in 0..130 {
            kit.wait_ms(10);
            talk(&mut kit, B, say(ACK, ISS[1] + 1, C + 1));
        }
        let found = kit.events.iter().find_map(|e| match e {
            Event::Promoted { finding, .. } => Some(*finding),
            _ => None,
        });
        assert_eq!(found, asks.then_some(Finding::H2));
    }
}
