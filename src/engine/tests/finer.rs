//! Finer points of the rules, most of which a mutant has shown (`testbed/mutants`).

use std::net::IpAddr;

use super::kit::{ACK, Kit, config, say};
use super::{P, Q, R, TO_A, TO_B, state};
use crate::engine::bridge::probe_mac;
use crate::engine::{
    Command, CommandError, EngineConfig, Event, FlowState, Input, LegId, Link, Mode, RejectReason,
    Rules, SyncScope,
};
use crate::wire::{Frame, L2, L3, TcpFlags, TcpOptions, Vlans, build};

const A: LegId = LegId::A;
const B: LegId = LegId::B;

#[test]
fn links_are_counted_from_the_client_on() {
    assert_eq!(Link::ALL.map(Link::index), [0, 1, 2]);
}

/// Nothing of the value has been said, and so nothing of it is held from the client.
#[test]
fn nobody_is_late_before_the_first_byte_of_a_masked_value() {
    let mut kit = Kit::new(EngineConfig { rules: Rules::headers(["date"]), ..config() });
    kit.establish();
    kit.client(say(ACK, R, P).data("GET / HTTP/1.1\r\n\r\n"));
    let r = R + 18;
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, r).data("HTTP/1.1 200 OK\r\nDate: "));
    }
    kit.wait_ms(2000);
    let is_late = |e: &&Event| matches!(e, Event::HoldSoft { .. } | Event::HoldHard { .. });
    assert_eq!(kit.events.iter().find(is_late), None);
    assert_eq!(state(&kit), FlowState::Paired);
}

/// 1.3 to the legs: a block is told where all of it lies beyond the ack.
#[test]
fn a_block_that_begins_below_the_ack_is_told_to_nobody() {
    let mut kit = Kit::new(config());
    kit.establish_with(|s| s.sack_ok(), |s| s.sack_ok());
    kit.client(say(ACK, R, P).data("GET"));
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, R + 3).data([b'x'; 100]));
    }
    let told = |kit: &mut Kit, block: (u32, u32)| {
        kit.forget();
        kit.client(say(ACK, R + 3, P + 50).sack(&[block]));
        [TO_A, TO_B].map(|link| kit.on(link).iter().any(|h| !h.seg.options.sack.is_empty()))
    };
    assert_eq!(told(&mut kit, (P + 40, P + 60)), [false, false]);
    assert_eq!(told(&mut kit, (P + 70, P + 80)), [true, true]);
    assert_eq!(told(&mut kit, (P + 70, P + 120)), [false, false], "nor one that nobody has sent");
}

#[test]
fn after_a_restart_every_second_question_has_a_time_and_the_first_has_none() {
    let mut kit = Kit::new(config());
    kit.establish_with(|s| s.stamps(10, 0), |s| s.stamps(500, 10));
    let mut kit = Kit::restored(config(), kit.records.clone());
    kit.wait_ms(10_000);
    let asked = kit.on(TO_A);
    let timed: Vec<bool> =
        asked.iter().map(|h| h.seg.options.timestamps.is_some()).take(4).collect();
    assert_eq!(timed, [false, true, false, true]);
}

#[test]
fn what_links_and_addresses_depend_on_takes_a_restart_to_change() {
    let told = |changed: EngineConfig| {
        let mut kit = Kit::new(config());
        kit.command(Command::Reload(Box::new(changed)));
        let done = kit.events.into_iter().find_map(|e| match e {
            Event::CommandDone { result, .. } => Some(result),
            _ => None,
        });
        done.expect("answered")
    };
    let refused = Err(CommandError::NeedsRestart);
    assert_eq!(told(EngineConfig { hold_hard: crate::engine::Duration::ZERO, ..config() }), Ok(()));
    assert_eq!(told(EngineConfig { mode: Mode::Observe, ..config() }), refused);
    assert_eq!(told(EngineConfig { addresses: Vec::new(), ..config() }), refused);
    assert_eq!(told(EngineConfig { server_names: ["a".into(), "c".into()], ..config() }), refused);
    let scope = Some(SyncScope::Content);
    assert_eq!(told(EngineConfig { sync_scope: scope, ..config() }), refused);
}

#[test]
fn probes_come_from_an_address_of_nobody_elses() {
    // Locally administered, one host's, and another one for each seed.
    assert_eq!(probe_mac(7).0[0], 2);
    assert_ne!(probe_mac(7 << 32), probe_mac(8 << 32));
}

#[test]
fn a_reset_to_a_server_says_nothing_about_the_path() {
    let mut kit = Kit::restored(config(), Vec::new());
    kit.input(Input::Timeout);
    kit.forget();
    // A segment of a connection that nobody knows, marked by a router on its way (RFC 3168).
    let segment = Kit::frame(false, &say(ACK, Q, R).data("?"), super::kit::CLIENT, 40_000);
    let Ok(crate::wire::Packet::Tcp(seg)) = crate::wire::parse::parse(&segment) else {
        panic!("TCP")
    };
    let (l2, l3): (L2, L3) = (seg.l2, L3 { tos: 3, ttl: 9, ..seg.l3 });
    let fields = build::TcpFields {
        src_port: 80,
        dst_port: 40_000,
        seq: Q,
        ack: R,
        flags: ACK,
        window: 1,
        urgent: 0,
        options: seg.options,
    };
    let marked: Frame = build::tcp(&l2, &l3, &fields, bytes::Bytes::from_static(b"?"), 1460);
    kit.input(Input::Frame(TO_B, marked));
    let reset = kit.on(TO_B).pop().expect("the backup's connection is nobody's any more").seg;
    assert_eq!((reset.flags, reset.l3.tos, reset.l3.ttl), (TcpFlags::RST, 0, 64));
}

/// A gateway that passes all through changes nothing, keeps nothing and asks nobody.
#[test]
fn a_gateway_that_passes_all_through_is_a_wire_to_the_primary() {
    let mut kit = Kit::new(EngineConfig { mode: Mode::Passthrough, ..config() });
    assert_eq!(kit.engine.poll_timeout(), None);
    let links = |heard: Vec<super::kit::Heard>| heard.iter().map(|h| h.link).collect::<Vec<_>>();
    let odd = say(ACK, 5, 6).data("anything");
    assert_eq!(links(kit.client(odd.clone())), [TO_A]);
    assert_eq!(links(kit.leg(A, odd.clone())), [Link::Client]);
    assert_eq!(links(kit.leg(B, odd)), []);
    let said = |h: &super::kit::Heard| (h.seg.seq, h.seg.ack, h.data.clone());
    assert!(kit.heard.iter().all(|h| said(h) == (5, 6, b"anything".to_vec())));
    let reason = RejectReason::BackupOnly;
    assert!(kit.events.contains(&Event::Rejected { link: TO_B, reason }));
}

#[test]
fn a_segment_in_pieces_is_read_as_one() {
    let mut kit = Kit::new(config());
    kit.establish();
    let frame = Kit::frame(true, &say(ACK, R, P).data([b'x'; 1000]), super::kit::CLIENT, 40_000);
    let pieces = build::fragments(frame, 400);
    assert!(pieces.len() > 2);
    for piece in pieces {
        assert_eq!(kit.on(TO_A).len() + kit.on(TO_B).len(), 0, "not before it is whole");
        kit.input(Input::Frame(Link::Client, piece));
    }
    for link in [TO_A, TO_B] {
        let data: Vec<u8> = kit.on(link).into_iter().flat_map(|h| h.data).collect();
        assert_eq!(data, [b'x'; 1000]);
    }
}

#[test]
fn probes_come_from_the_address_that_is_configured() {
    let own = IpAddr::from([192, 0, 2, 99]);
    let mut kit = Kit::new(EngineConfig { probe_address: Some(own), ..config() });
    kit.establish();
    kit.wait_ms(100);
    let is_probe = |h: &&super::kit::Heard| h.seg.flags == super::SYN && h.link == TO_A;
    assert!(kit.heard.iter().filter(is_probe).count() > 5);
    assert!(kit.heard.iter().filter(is_probe).all(|h| h.seg.l3.src == own));
}

/// A connection over IPv6 in a tagged network: its record tells a later process all of it.
#[test]
fn a_tagged_connection_over_ipv6_survives_a_restart() {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let (client, service) = (ip("2001:db8::1"), ip("2001:db8::10"));
    let config = EngineConfig { addresses: vec![service], ..config() };
    let vlans = Vlans { outer: Some((0x88a8, 7)), inner: Some((0x8100, 0x2009)) };
    let frame = |is_client: bool, flags, seq, ack, data: &'static str| {
        let l2 = L2 { dst: super::kit::server_mac(), src: super::kit::client_mac(), vlans };
        let l3 = L3 {
            src: client,
            dst: service,
            ttl: 64,
            tos: 0,
            dont_fragment: true,
            id: 0,
            flow_label: 0,
        };
        let (l2, l3) = if is_client { (l2, l3) } else { (l2.reversed(), l3.reversed()) };
        let ports = if is_client { (40_000, 80) } else { (80, 40_000) };
        let options = TcpOptions { mss: (flags != ACK).then_some(1440), ..TcpOptions::default() };
        let fields = build::TcpFields {
            src_port: ports.0,
            dst_port: ports.1,
            seq,
            ack,
            flags,
            window: 60_000,
            urgent: 0,
            options,
        };
        build::tcp(&l2, &l3, &fields, bytes::Bytes::from_static(data.as_bytes()), 1440)
    };
    let talk = |kit: &mut Kit, link, frame| kit.input(Input::Frame(link, frame));
    let mut kit = Kit::new(config.clone());
    talk(&mut kit, Link::Client, frame(true, super::SYN, R - 1, 0, ""));
    talk(&mut kit, TO_A, frame(false, super::SYN_ACK, P - 1, R, ""));
    talk(&mut kit, TO_B, frame(false, super::SYN_ACK, Q - 1, R, ""));
    talk(&mut kit, Link::Client, frame(true, ACK, R, P, ""));
    assert_eq!(state(&kit), FlowState::Paired);
    let mut kit = Kit::restored(config, kit.records.clone());
    // The positions that the questions make known.
    talk(&mut kit, Link::Client, frame(true, ACK, R, P, ""));
    talk(&mut kit, TO_A, frame(false, ACK, P, R, ""));
    talk(&mut kit, TO_B, frame(false, ACK, Q, R, ""));
    kit.forget();
    talk(&mut kit, Link::Client, frame(true, ACK, R, P, "GET"));
    for (link, next) in [(TO_A, P), (TO_B, Q)] {
        let asked = kit.on(link).pop().expect("both are asked");
        assert_eq!((asked.seg.ack, asked.data.as_slice()), (next, &b"GET"[..]));
        assert_eq!((asked.seg.l2.vlans, asked.seg.l3.src), (vlans, client));
    }
    talk(&mut kit, TO_A, frame(false, ACK, P, R + 3, "answer"));
    assert!(kit.on(Link::Client).iter().all(|h| h.data.is_empty()));
    talk(&mut kit, TO_B, frame(false, ACK, Q, R + 3, "answer"));
    let shown = kit.on(Link::Client).pop().expect("both have said it");
    assert_eq!((shown.seg.seq, shown.data.as_slice()), (P, &b"answer"[..]));
    assert_eq!((shown.seg.l2.vlans, shown.seg.l3.dst), (vlans, client));
}
