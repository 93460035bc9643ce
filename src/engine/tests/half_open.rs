//! Handshakes that no client completes: how many there may be, which of them give way, and that no
//! connection ever does.

use std::net::Ipv4Addr;

use super::kit::{CLIENT, Heard};
use super::*;
use crate::engine::limits;

/// A client in a network of its own.
fn client(network: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, network, 7)
}

/// A SYN, and the answers of both servers if they answer. Its segments are too small for a cookie.
fn begin(kit: &mut Kit, from: Ipv4Addr, port: u16) -> Vec<Heard> {
    let at = kit.heard.len();
    kit.say_of(Link::Client, say(SYN, C, 0).mss(500), from, port);
    for leg in LegId::ALL {
        let answer = say(SYN_ACK, ISS[leg.index()], R).mss(1460);
        kit.say_of(Link::Server(leg), answer, from, port);
    }
    kit.heard[at..].to_vec()
}

fn clients(kit: &Kit) -> Vec<Ipv4Addr> {
    let v4 = |flow: super::super::FlowSnapshot| match flow.key.client.ip() {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(ip) => panic!("nobody has {ip}"),
    };
    kit.engine.flows(usize::MAX).into_iter().map(v4).collect()
}

fn gave_way(kit: &Kit) -> usize {
    let is_it = |e: &&Event| matches!(e, Event::Unprotected { reason: SoloReason::HalfOpen, .. });
    kit.events.iter().filter(is_it).count()
}

/// The connection of [`Kit::establish`] still carries bytes that both servers said.
fn still_carries(kit: &mut Kit) {
    kit.forget();
    kit.client(say(ACK, R, P).data("ping"));
    kit.leg(A, say(ACK, P, R + 4).data("pong"));
    kit.leg(B, say(ACK, Q, R + 4).data("pong"));
    let to_client = |h: &&Heard| h.link == Link::Client && h.seg.dst_port == 40_000;
    let shown: Vec<u8> = kit.heard.iter().filter(to_client).flat_map(|h| h.data.clone()).collect();
    assert_eq!(shown, b"pong");
}

#[test]
fn a_flood_of_handshakes_displaces_the_oldest_of_them_and_never_a_connection() {
    let mut kit = Kit::new(EngineConfig { half_open_max: 8, ..config() });
    kit.establish();
    for n in 0..200 {
        begin(&mut kit, client(n), 1000);
        kit.wait_ms(1);
        assert!(kit.engine.status().half_open <= 8);
    }
    assert_eq!(gave_way(&kit), 192);
    let expected: Vec<Ipv4Addr> = [CLIENT].into_iter().chain((192..200).map(client)).collect();
    assert_eq!(clients(&kit), expected, "the connection and the newest handshakes");
    still_carries(&mut kit);
}

#[test]
fn below_three_quarters_a_handshake_has_the_servers_time_and_from_there_on_three_seconds() {
    let mut kit = Kit::new(EngineConfig { half_open_max: 8, ..config() });
    for n in 0..6 {
        begin(&mut kit, client(n), 1000);
    }
    kit.wait_ms(10_000);
    assert_eq!(kit.engine.status().half_open, 6, "nobody needs the room");
    for n in 6..9 {
        begin(&mut kit, client(n), 1000);
        assert_eq!(kit.engine.status().half_open, 6, "an old one for each new one");
    }
    assert_eq!(clients(&kit), (3..9).map(client).collect::<Vec<_>>());
    // Of six, three are new: these stay, and the table fills further.
    for n in 9..14 {
        begin(&mut kit, client(n), 1000);
    }
    assert_eq!(kit.engine.status().half_open, 8);
    kit.wait_ms(limits::HALF_OPEN_MAX.as_millis() as u64);
    assert_eq!(kit.engine.status().half_open, 0);
}

#[test]
fn a_handshake_that_the_client_completes_is_a_connection_and_gives_way_to_nobody() {
    let mut kit = Kit::new(EngineConfig { half_open_max: 2, ..config() });
    for n in 0..50 {
        begin(&mut kit, client(n), 1000);
        kit.say_of(Link::Client, say(ACK, R, P), client(n), 1000);
        assert_eq!(kit.engine.status().half_open, 0);
    }
    assert_eq!((clients(&kit).len(), gave_way(&kit)), (50, 0));
}

#[test]
fn one_network_displaces_its_own_handshakes_only() {
    let mut kit = Kit::new(EngineConfig { half_open_per_source_max: 3, ..config() });
    begin(&mut kit, client(1), 1000);
    for port in 0..20 {
        // Another address each, one network.
        begin(&mut kit, Ipv4Addr::new(203, 0, 113, port as u8), port);
        kit.wait_ms(1);
    }
    let left: Vec<u8> = clients(&kit).iter().map(|ip| ip.octets()[3]).collect();
    assert_eq!(left, [7, 17, 18, 19], "the other client's, and the newest of the network's");
}

#[test]
fn beyond_its_share_of_connections_a_network_is_served_by_the_primary_alone() {
    let mut kit = Kit::new(EngineConfig { flows_per_source_max: 3, ..config() });
    for port in 1000..1003 {
        begin(&mut kit, client(1), port);
        kit.say_of(Link::Client, say(ACK, R, P), client(1), port);
    }
    kit.forget();
    let said = kit.say_of(Link::Client, say(SYN, C, 0).mss(1460), client(1), 1003);
    assert_eq!(said.iter().map(|h| h.link).collect::<Vec<_>>(), [TO_A]);
    let is_told = |e: &Event| {
        matches!(e, Event::Unprotected { reason: SoloReason::SourceLimit, flow }
            if flow.client.port() == 1003)
    };
    assert!(kit.events.iter().any(is_told), "{:?}", kit.events);
    let other = kit.say_of(Link::Client, say(SYN, C, 0).mss(1460), client(2), 1000);
    assert_eq!(other.len(), 2, "another network's goes to both");
    // One of the three ends: there is room again.
    kit.say_of(Link::Client, say(RST, R, 0), client(1), 1000);
    kit.wait_ms(limits::RESET_KEPT.as_millis() as u64 + 1);
    assert_eq!(begin(&mut kit, client(1), 1004).iter().filter(|h| h.link == TO_B).count(), 1);
}

#[test]
fn in_a_full_table_a_handshake_gives_way_and_a_connection_does_not() {
    let mut kit = Kit::new(EngineConfig { flows_max: 3, ..config() });
    kit.establish();
    begin(&mut kit, client(1), 1000);
    kit.wait_ms(1);
    begin(&mut kit, client(2), 1000);
    begin(&mut kit, client(3), 1000);
    assert_eq!(clients(&kit), [CLIENT, client(2), client(3)]);
    still_carries(&mut kit);
}

/// The client's last ack comes when the handshake has given way: the primary has the connection,
/// and everything passes to and from it as it is.
#[test]
fn a_displaced_handshake_that_completes_after_all_is_the_primarys() {
    let mut kit = Kit::new(EngineConfig { half_open_max: 1, ..config() });
    begin(&mut kit, client(1), 1000);
    begin(&mut kit, client(2), 1000);
    kit.forget();
    let passed = kit.say_of(Link::Client, say(ACK, R, P).data("GET"), client(1), 1000);
    let to_a = |h: &Heard| (h.link, h.seg.seq, h.seg.ack, h.data.clone());
    assert_eq!(passed.iter().map(to_a).collect::<Vec<_>>(), [(TO_A, R, P, b"GET".to_vec())]);
    let shown = kit.say_of(TO_A, say(ACK, P, R + 3).data("answer"), client(1), 1000);
    assert_eq!((shown.len(), shown[0].link, shown[0].seg.seq), (1, Link::Client, P));
    // The backup repeats its SYN-ACK: it is told that there is nobody.
    let told = kit.say_of(TO_B, say(SYN_ACK, ISS[1], R).mss(1460), client(1), 1000);
    assert_eq!((told.len(), told[0].link, told[0].seg.flags), (1, TO_B, RST));
    assert_eq!(told[0].seg.seq, R);
}

/// The client was promised something else than what the primary said: nothing can go on.
#[test]
fn a_displaced_handshake_of_servers_that_differ_is_ended_at_both() {
    let mut kit = Kit::new(EngineConfig { half_open_max: 1, ..config() });
    kit.say_of(Link::Client, say(SYN, C, 0).mss(1460).scale(7), client(1), 1000);
    kit.say_of(TO_A, say(SYN_ACK, ISS[0], R).mss(1460).scale(9), client(1), 1000);
    kit.say_of(TO_B, say(SYN_ACK, ISS[1], R).mss(1460).scale(2), client(1), 1000);
    kit.forget();
    begin(&mut kit, client(2), 1000);
    let resets: Vec<(Link, u32)> =
        kit.heard.iter().filter(|h| h.seg.flags.has(RST)).map(|h| (h.link, h.seg.seq)).collect();
    assert_eq!(resets, [(TO_A, R), (TO_B, R)]);
}

#[test]
fn restored_connections_are_no_handshakes() {
    let mut first = Kit::new(config());
    first.establish();
    let records = std::mem::take(&mut first.records);
    let mut kit = Kit::restored(EngineConfig { half_open_max: 1, ..config() }, records);
    for n in 0..5 {
        begin(&mut kit, client(n), 1000);
    }
    assert_eq!(clients(&kit), [CLIENT, client(4)], "its client has not spoken yet, and it stays");
}
