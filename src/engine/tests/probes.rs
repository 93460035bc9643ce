//! The gateway's own probes: nobody but the servers ever hears of them.

use super::kit::{ACK, CLIENT, CLIENT_ISS, Heard, ISS, Kit, RST, SYN, SYN_ACK, Say, config, say};
use crate::engine::{
    DegradedReason, EngineConfig, Event, Input, LegId, Link, RejectReason, ServerState,
    ServiceState,
};

const A: Link = Link::Server(LegId::A);

/// The first probe of a process that has heard a client: its port and number.
fn first_probe(kit: &mut Kit) -> (u16, u32) {
    kit.client(say(ACK, CLIENT_ISS, 1)); // no connection of anybody: an address to probe from
    kit.wait_ms(20);
    let is_probe = |h: &&Heard| h.link == A && h.seg.flags == SYN;
    let probe = kit.heard.iter().find(is_probe).expect("a probe");
    (probe.seg.src_port, probe.seg.seq)
}

#[test]
fn what_is_left_of_an_earlier_process_probe_is_ended_and_not_shown() {
    let (port, number) = first_probe(&mut Kit::new(config()));
    for (answer, is_reset) in [
        // The SYN-ACK repeated, and the challenge ack to the next probe from the same port.
        (say(SYN_ACK, 77, number.wrapping_add(1)).mss(1460), true),
        (say(ACK, 78, number.wrapping_add(1)), true),
        (say(RST.with(ACK), 0, number.wrapping_add(1)), false),
    ] {
        let mut kit = Kit::restored(config(), Vec::new());
        kit.input(Input::Timeout);
        kit.forget();
        let heard = kit.say(A, answer, port);
        let refused =
            |e: &Event| matches!(e, Event::Rejected { link: A, reason: RejectReason::ProbeReply });
        assert!(kit.events.iter().any(refused));
        assert!(heard.iter().all(|h| h.link == A), "{heard:?}");
        assert_eq!(heard.len(), usize::from(is_reset));
        assert!(heard.iter().all(|h| h.seg.flags == RST && h.seg.seq == number.wrapping_add(1)));
    }
}

#[test]
fn what_only_looks_like_a_probe_reaches_its_client() {
    let (port, number) = first_probe(&mut Kit::new(config()));
    let answer = say(SYN_ACK, 77, number.wrapping_add(1)).mss(1460);
    for (answer, port) in [
        (answer.clone().sack_ok(), port), // it agrees to what no probe offers
        (answer.clone(), 40_000),         // not a probe's port
        (Say { ack: number ^ 0xff, ..answer }, port), // nor its number
    ] {
        let mut kit = Kit::restored(config(), Vec::new());
        kit.input(Input::Timeout);
        kit.forget();
        let heard = kit.say(A, answer, port);
        assert_eq!(heard.iter().filter(|h| h.link == Link::Client).count(), 1, "{heard:?}");
    }
}

/// A number that could be guessed would let anybody answer for a server.
#[test]
fn no_two_probes_have_numbers_alike() {
    let mut kit = Kit::new(config());
    first_probe(&mut kit);
    kit.wait_ms(500);
    let is_probe = |h: &&Heard| h.link == A && h.seg.flags == SYN;
    let mut numbers: Vec<u32> = kit.heard.iter().filter(is_probe).map(|h| h.seg.seq).collect();
    let sent = numbers.len();
    assert!(sent >= 50, "{sent}");
    numbers.iter_mut().for_each(|number| *number >>= 16); // below stands what all have to have
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), sent);
}

/// Time passes in which each server answers probes, and refuses those of these ports.
fn answer(kit: &mut Kit, ms: u64, refused: [&[u16]; 2]) {
    for _ in 0..ms {
        let from = kit.heard.len();
        kit.wait_ms(1);
        for probe in kit.heard.split_off(from) {
            let Link::Server(leg) = probe.link else { continue };
            if probe.seg.flags != SYN {
                continue;
            }
            let (port, ack) = (probe.seg.dst_port, probe.seg.seq.wrapping_add(1));
            let say = match refused[leg.index()].contains(&port) {
                true => say(RST.with(ACK), 0, ack),
                false => say(SYN_ACK, 77, ack).mss(1460),
            };
            kit.say_at(probe.link, say, (CLIENT, probe.seg.src_port), port);
        }
    }
}

const REFUSED: ServiceState = ServiceState::Degraded(DegradedReason::Refused);

#[test]
fn each_port_of_the_service_has_its_own_health() {
    let mut kit = Kit::new(EngineConfig { ports: vec![80, 8080, 21], ..config() });
    first_probe(&mut kit);
    let mut at = |refused: [&[u16]; 2]| {
        answer(&mut kit, 500, refused);
        let status = kit.engine.status();
        let changed = |e: &Event| match e {
            Event::PortChanged { server, port, accepted } => Some((*server, *port, *accepted)),
            _ => None,
        };
        let changes: Vec<_> = kit.events.iter().filter_map(changed).collect();
        kit.events.clear();
        let told = status.refused_ports.each_ref().map(Vec::as_slice);
        assert!(told.iter().zip(refused).all(|(told, refused)| {
            told.len() == refused.len() && refused.iter().all(|port| told.contains(port))
        }));
        (status.service, status.servers, changes)
    };
    let both = [ServerState::Up; 2];
    assert_eq!(at([&[], &[]]), (ServiceState::Protected, both, vec![]));
    assert_eq!(at([&[21], &[]]), (REFUSED, both, vec![(LegId::A, 21, false)]));
    // Neither is dead, whichever port comes first.
    assert_eq!(at([&[21], &[80]]), (REFUSED, both, vec![(LegId::B, 80, false)]));
    let again = vec![(LegId::A, 21, true), (LegId::B, 80, true)];
    let (service, servers, mut changes) = at([&[], &[]]);
    changes.sort();
    assert_eq!((service, servers, changes), (ServiceState::Protected, both, again));
    assert_eq!(at([&[80, 21], &[]]).1, both);
    // But who refuses all of it is.
    assert_eq!(at([&[21, 80, 8080], &[]]).1, [ServerState::Failed, ServerState::Up]);
    let (_, servers, _) = at([&[80, 21], &[]]);
    assert!(matches!(servers[0], ServerState::Returning | ServerState::Up), "{servers:?}");
}

#[test]
fn a_port_that_nobody_serves_is_not_protected() {
    for ports in [vec![80], vec![80, 21]] {
        let mut kit = Kit::new(EngineConfig { ports: ports.clone(), ..config() });
        first_probe(&mut kit);
        answer(&mut kit, 300, [&ports[..], &ports[..]]);
        let status = kit.engine.status();
        assert_eq!((status.service, status.servers), (REFUSED, [ServerState::Up; 2]));
        // Whoever comes up first makes the other one come back.
        answer(&mut kit, 30_000, [&[], &[]]);
        assert_eq!(kit.engine.status().service, ServiceState::Protected);
    }
}

/// A client asks; these servers answer it.
fn ask(kit: &mut Kit, port: u16, answer: [bool; 2]) {
    kit.say(Link::Client, say(SYN, CLIENT_ISS, 0).mss(1460), port);
    for leg in LegId::ALL {
        if answer[leg.index()] {
            let say = say(SYN_ACK, ISS[leg.index()], CLIENT_ISS + 1).mss(1460);
            kit.say(Link::Server(leg), say, port);
        }
    }
    kit.wait_ms(500);
}

const UNANSWERED: ServiceState = ServiceState::Degraded(DegradedReason::Unanswered);

/// It answers probes, which come from the gateway: only its way to the clients is wrong.
#[test]
fn a_server_that_answers_no_client_is_told() {
    for silent in LegId::ALL {
        let mut kit = Kit::new(config());
        let answer = LegId::ALL.map(|leg| leg != silent);
        (1..3).for_each(|port| ask(&mut kit, port, answer));
        assert_eq!(kit.engine.status().service, ServiceState::Protected, "it may be an accident");
        (3..6).for_each(|port| ask(&mut kit, port, answer));
        let status = kit.engine.status();
        assert_eq!((status.service, status.servers), (UNANSWERED, [ServerState::Up; 2]));
        assert_eq!(status.unanswering, answer.map(|answers| !answers));
        ask(&mut kit, 6, [true; 2]);
        assert_eq!(kit.engine.status().service, ServiceState::Protected);
    }
}

/// That nobody answers may be the fault of that client, unless nobody ever has answered any.
#[test]
fn that_nobody_answers_is_told_if_it_was_never_otherwise() {
    for has_begun_well in [false, true] {
        let mut kit = Kit::new(config());
        if has_begun_well {
            ask(&mut kit, 1, [true; 2]);
        }
        (2..6).for_each(|port| ask(&mut kit, port, [false; 2]));
        kit.wait_ms(4000);
        let expected = if has_begun_well { ServiceState::Protected } else { UNANSWERED };
        assert_eq!(kit.engine.status().service, expected);
        // One client that asks again and again is enough.
        let mut kit = Kit::new(config());
        if has_begun_well {
            ask(&mut kit, 1, [true; 2]);
        }
        (0..5).for_each(|_| ask(&mut kit, 2, [false; 2]));
        assert_eq!(kit.engine.status().service, expected);
    }
}
