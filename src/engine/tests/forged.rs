//! What somebody says who sees none of the packets: he has to guess the numbers, and a guess that
//! is not exact changes nothing. What speaks in another's name from the wrong side goes nowhere.

use super::super::event::RejectReason;
use super::kit::{CLIENT, Heard, SERVICE, Say, client_mac, server_mac};
use super::*;
use crate::wire::{Frame, L2, L3, Mac, Vlans, build};

/// The flow of [`Kit::establish`] still carries bytes both ways, verified.
fn still_carries(kit: &mut Kit, what: &str) {
    kit.forget();
    kit.client(say(ACK, R, P).data("ping"));
    kit.leg(A, say(ACK, P, R + 4).data("pong"));
    kit.leg(B, say(ACK, Q, R + 4).data("pong"));
    let shown: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    assert_eq!((shown, state(kit)), (b"pong".to_vec(), FlowState::Paired), "after {what}");
    assert_eq!(kit.engine.flows(9).len(), 1, "after {what}");
}

fn rejected(kit: &Kit) -> Vec<RejectReason> {
    let reason = |event: &Event| match event {
        Event::Rejected { reason, .. } => Some(*reason),
        _ => None,
    };
    kit.events.iter().filter_map(reason).collect()
}

/// What `link` hears of `forged`, and why it was refused.
fn forge(from: Link, forged: Say) -> (Kit, Vec<Heard>, Vec<RejectReason>) {
    let mut kit = Kit::new(config());
    kit.establish();
    let heard = kit.say(from, forged, 40_000);
    let why = rejected(&kit);
    (kit, heard, why)
}

/// Distances from the exact number: inside the window, at its edges, outside, on the other side.
const BESIDE: [i32; 8] = [1, -1, 100, 59_999, 60_001, 1 << 20, -(1 << 20), i32::MIN];

#[test]
fn a_reset_in_the_clients_name_that_is_not_exact_ends_nothing() {
    for beside in BESIDE {
        let (mut kit, heard, why) = forge(Link::Client, say(RST, R.wrapping_add_signed(beside), 0));
        assert_eq!(why, [RejectReason::InexactReset], "{beside}");
        // It is theirs to challenge (RFC 5961 3): with a number as wrong as it came.
        for h in &heard {
            assert_ne!((h.link, h.seg.seq), (Link::Client, R), "{beside}");
            assert_eq!(h.seg.seq, R.wrapping_add_signed(beside), "{beside}");
        }
        still_carries(&mut kit, &format!("a reset {beside} beside the number"));
    }
    let (kit, heard, why) = forge(Link::Client, say(RST, R, 0));
    assert_eq!(why, [], "the exact number is the client's to know");
    assert_eq!(heard.iter().map(|h| h.link).collect::<Vec<_>>(), [TO_A, TO_B]);
    assert_eq!(state(&kit), FlowState::TimeWait);
}

#[test]
fn a_reset_in_a_servers_name_ends_at_most_its_own_part_and_is_never_shown() {
    for (leg, own) in [(A, P), (B, Q)] {
        for beside in [60_001, 1 << 20, -2, -(1 << 20), i32::MIN] {
            let forged = say(RST, own.wrapping_add_signed(beside), 0);
            let (mut kit, heard, why) = forge(Link::Server(leg), forged);
            assert_eq!(why, [RejectReason::InexactReset], "{beside} of {leg:?}");
            assert!(heard.is_empty(), "{beside} of {leg:?}: {heard:?}");
            still_carries(&mut kit, &format!("a reset {beside} beside {leg:?}'s number"));
        }
        // Exact: as if that server had died. The other one goes on alone.
        let (mut kit, heard, _) = forge(Link::Server(leg), say(RST, own, 0));
        assert!(heard.is_empty(), "{heard:?}");
        kit.wait_ms(100);
        assert!(kit.on(Link::Client).is_empty(), "{:?}", kit.on(Link::Client));
        let flow = kit.engine.flows(1)[0].clone();
        assert_eq!((flow.state, flow.primary), (FlowState::Solo, leg.other()));
    }
}

#[test]
fn a_syn_into_a_live_connection_is_the_servers_to_challenge_and_begins_nothing() {
    for beside in BESIDE {
        let (mut kit, heard, _) =
            forge(Link::Client, say(SYN, C.wrapping_add_signed(beside), 0).mss(1460));
        let links: Vec<Link> = heard.iter().map(|h| h.link).collect();
        assert_eq!(links, [TO_A, TO_B], "{beside}: one copy each");
        // Both challenge it; the client is told once, in its own numbers (RFC 5961 4).
        let told = [(A, P), (B, Q)].map(|(leg, own)| kit.leg(leg, say(ACK, own, R))).concat();
        let told: Vec<_> = told.iter().filter(|h| h.link == Link::Client).collect();
        assert_eq!(told.len(), 1, "{beside}: {told:?}");
        assert_eq!((told[0].seg.flags, told[0].seg.seq, told[0].seg.ack), (ACK, P, R), "{beside}");
        still_carries(&mut kit, &format!("a SYN {beside} beside the number"));
    }
}

#[test]
fn data_with_an_ack_that_the_client_cannot_have_reaches_no_server() {
    for wrong in [1, 70_000, 1 << 24, -(2 << 20), -(1 << 30), i32::MIN] {
        let forged = say(ACK, R, P.wrapping_add_signed(wrong)).data("forged");
        let (mut kit, heard, why) = forge(Link::Client, forged);
        assert_eq!(why, [RejectReason::OutOfWindow], "an ack {wrong} beside");
        assert!(heard.is_empty(), "an ack {wrong} beside: {heard:?}");
        still_carries(&mut kit, &format!("data with an ack {wrong} beside"));
    }
    for far in [2 << 20, 1 << 30] {
        let forged = say(ACK, R.wrapping_add_signed(far), P).data("forged");
        let (mut kit, heard, why) = forge(Link::Client, forged);
        assert_eq!((heard.len(), &why[..]), (0, &[RejectReason::OutOfWindow][..]), "{far} ahead");
        still_carries(&mut kit, &format!("data {far} ahead"));
    }
}

#[test]
fn an_icmp_error_that_quotes_no_packet_in_flight_is_dropped() {
    let too_big = |quoted: Say, port: u16| {
        let l2 = L2 { dst: client_mac(), src: server_mac(), vlans: Vlans::default() };
        let l3 = |src, dst| L3 {
            src: std::net::IpAddr::V4(src),
            dst: std::net::IpAddr::V4(dst),
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            id: 0,
            flow_label: 0,
        };
        let original = Kit::frame(false, &quoted, CLIENT, port);
        build::icmp_too_big(&l2.reversed(), &l3(CLIENT, SERVICE), 600, &original)
            .expect("it is about IPv4")
    };
    // Nothing is in flight: even the next number was not sent yet, and old ones have arrived.
    let cases: [(&str, Frame); 3] = [
        ("beyond what was shown", too_big(say(ACK, P + 5000, R), 40_000)),
        ("half the space away", too_big(say(ACK, P ^ (1 << 31), R), 40_000)),
        ("acknowledged long ago", too_big(say(ACK, P - 1, R), 40_000)),
    ];
    for (what, frame) in cases {
        let mut kit = Kit::new(config());
        kit.establish();
        kit.input(Input::Frame(Link::Client, frame));
        assert_eq!(rejected(&kit), [RejectReason::IcmpQuote], "{what}");
        assert!(kit.frames.is_empty(), "{what}: {:?}", kit.frames);
        still_carries(&mut kit, what);
    }
    // Of a connection that is not protected here, or of none: its server knows.
    let mut kit = Kit::new(config());
    kit.establish();
    kit.input(Input::Frame(Link::Client, too_big(say(ACK, P, R), 40_001)));
    assert_eq!(kit.frames.iter().map(|(link, _)| *link).collect::<Vec<_>>(), [TO_A]);
    still_carries(&mut kit, "an error about another connection");
    // A packet in flight: both servers are told, each in its own numbers.
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("answer"));
    kit.leg(B, say(ACK, Q, R + 3).data("answer"));
    kit.input(Input::Frame(Link::Client, too_big(say(ACK, P, R + 3), 40_000)));
    assert_eq!(rejected(&kit), []);
    assert_eq!(kit.frames.iter().map(|(link, _)| *link).collect::<Vec<_>>(), [TO_A, TO_B]);
}

#[test]
fn an_address_of_one_side_is_worth_nothing_on_the_other() {
    // As a router writes it that checks no source address: the service's on the client's link.
    let foreign = Mac([2, 9, 9, 9, 9, 9]);
    let from = |macs: (Mac, Mac), from_client: bool, port: u16| {
        let mut frame = Kit::frame(from_client, &say(ACK, R, P).data("forged"), CLIENT, port);
        crate::wire::rewrite::set_macs(&mut frame, macs.1, macs.0);
        frame
    };
    let in_the_services_name = from((foreign, server_mac()), false, 40_000);
    let by_a_servers_card = from((server_mac(), server_mac()), true, 40_000);
    for frame in [in_the_services_name, by_a_servers_card] {
        let mut kit = Kit::new(config());
        kit.establish();
        kit.input(Input::Frame(Link::Client, frame));
        assert_eq!(rejected(&kit), [RejectReason::WrongLink]);
        assert!(kit.heard.is_empty() && kit.frames.is_empty(), "{:?}", kit.heard);
        still_carries(&mut kit, "the service's address on the client's link");
    }
    // And a client's on a server's link, with whatever Ethernet address: not even the primary's
    // is passed on, and the client keeps its place.
    for link in [TO_A, TO_B] {
        for card in [foreign, server_mac(), client_mac()] {
            let mut kit = Kit::new(config());
            kit.establish();
            kit.input(Input::Frame(link, from((card, server_mac()), true, 40_000)));
            assert_eq!(rejected(&kit), [RejectReason::WrongLink], "{link:?} by {card:?}");
            assert!(kit.heard.is_empty() && kit.frames.is_empty(), "{:?}", kit.heard);
            still_carries(&mut kit, "a client's address on a server's link");
        }
    }
}

/// A connection from before the gateway, or one that it could not take: nothing of it is known,
/// and whoever guesses its ports could end it with a SYN, if the challenge were answered for the
/// client.
#[test]
fn a_syn_into_a_connection_that_is_not_protected_ends_nothing() {
    let mut kit = Kit::new(config());
    kit.client(say(ACK, 777, 9001).data("of old"));
    assert_eq!(kit.on(TO_A).len(), 1, "untouched to the primary");
    kit.forget();
    kit.client(say(SYN, C, 0).mss(1460));
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460));
    kit.leg(A, say(ACK, 9001, 783));
    kit.wait_ms(200);
    assert_eq!(kit.on(TO_A).iter().filter(|h| h.seg.flags.has(RST)).count(), 0);
    let shown = kit.on(Link::Client);
    let told: Vec<_> = shown.iter().map(|h| (h.seg.flags, h.seg.seq, h.seg.ack)).collect();
    assert_eq!(told, [(ACK, 9001, 783)], "the challenge, and nothing of the backup");
    kit.forget();
    kit.client(say(ACK, 783, 9001).data("it lives"));
    let heard = kit.on(TO_A);
    assert_eq!(heard.len(), 1);
    assert_eq!((heard[0].seg.seq, heard[0].data.as_slice()), (783, &b"it lives"[..]));
    assert!(kit.on(TO_B)[0].seg.flags.has(RST), "the backup forgets what it has begun");
    assert!(kit.engine.flows(9).is_empty());
}

/// The same challenge, to a client that did begin anew: it says so, and both serve it.
#[test]
fn a_client_that_begins_anew_ends_its_older_connection_itself() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    kit.leg(A, say(ACK, 9001, 783));
    kit.leg(B, say(ACK, 9501, 783));
    let again =
        |kit: &Kit, link| kit.on(link).iter().map(|h| (h.seg.flags, h.seg.seq)).collect::<Vec<_>>();
    assert_eq!(again(&kit, TO_B), [(SYN, C), (RST, 783), (SYN, C)], "it serves nobody else");
    assert_eq!(again(&kit, TO_A), [(SYN, C)]);
    kit.client(say(RST, 782, 0)); // not its number
    assert_eq!(again(&kit, TO_A), [(SYN, C)]);
    kit.client(say(RST, 783, 0));
    assert_eq!(again(&kit, TO_A), [(SYN, C), (RST, 783), (SYN, C)]);
    kit.forget();
    for leg in LegId::ALL {
        kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
    }
    assert_eq!(kit.on(Link::Client).len(), 1);
    assert_eq!(state(&kit), FlowState::Paired);
}

/// A server begins anew before the flow goes on without it: it is reset for the old connection, and
/// answers the new one's SYN once more.
#[test]
fn a_server_that_was_reset_with_its_new_connection_is_asked_again() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(B, say(ACK, Q, R + 3).data("two"));
    kit.client(say(SYN, 90_000, 0).mss(1460));
    kit.leg(B, say(SYN_ACK, 7_000, 90_001).mss(1460));
    kit.leg(A, say(ACK, P, R + 3).data("one"));
    assert_eq!(state(&kit), FlowState::Solo);
    kit.leg(B, say(ACK, 7_001, 90_001));
    kit.forget();
    kit.leg(A, say(SYN_ACK, 8_000, 90_001).mss(1460));
    assert_eq!(state(&kit), FlowState::Opening);
}

/// A segment of the last connection of these ports was long on its way: no challenge.
#[test]
fn a_late_word_of_the_connection_before_keeps_nobody_waiting() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460));
    kit.leg(A, say(ACK, 9001, 783));
    kit.forget();
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460));
    assert_eq!(kit.on(Link::Client).len(), 1, "the handshake goes on");
    assert_eq!(state(&kit), FlowState::Paired);
}

/// An ack of this very SYN that overtakes the SYN-ACK (RFC 9293 3.10.7.3).
#[test]
fn an_ack_that_overtakes_the_syn_ack_is_no_challenge() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    for leg in LegId::ALL {
        kit.leg(leg, say(ACK, ISS[leg.index()] + 1, R));
    }
    assert!(kit.on(Link::Client).is_empty(), "{:?}", kit.on(Link::Client));
    for leg in LegId::ALL {
        kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
    }
    assert_eq!(kit.on(Link::Client).len(), 1);
    assert_eq!(state(&kit), FlowState::Paired);
}

/// One that no SYN-ACK follows has overtaken nothing: that server lives in a connection with this
/// number.
#[test]
fn a_backup_that_lives_in_an_older_attempt_with_the_same_number_is_asked_anew() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460));
    kit.leg(B, say(ACK, 9001, R));
    kit.wait_ms(19);
    kit.forget();
    kit.wait_ms(2); // a kernel challenges once in half a second
    let told: Vec<_> = kit.on(TO_B).iter().map(|h| (h.seg.flags, h.seg.seq)).collect();
    assert_eq!(told, [(RST, R), (SYN, C)]);
    kit.leg(B, say(SYN_ACK, 9000, R).mss(1460));
    assert!(kit.on(Link::Client).is_empty(), "that was the older one's");
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460));
    assert_eq!(kit.on(Link::Client).len(), 1);
    assert_eq!(state(&kit), FlowState::Paired);
}
