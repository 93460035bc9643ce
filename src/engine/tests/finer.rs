//! Finer points of the rules, most of which a mutant has shown (`testbed/mutants`).

use std::net::IpAddr;

use super::kit::{ACK, FIN, ISS, Kit, SYN, SYN_ACK, config, say};
use super::{C, P, Q, R, TO_A, TO_B, state};
use crate::engine::bridge::probe_mac;
use crate::engine::{
    Command, CommandError, Duration, EngineConfig, Event, FlowKey, FlowState, Input, LegId, Link,
    Mode, Record, RejectReason, Rules, ServiceId, Signal, SyncScope,
};
use crate::wire::{Frame, L2, L3, TcpFlags, Vlans, build};

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
    assert!(asked.iter().all(|h| (h.seg.seq, h.seg.ack) == (C, P)), "from before all that it has");
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
    assert_eq!(told(EngineConfig { hold_hard: Duration::ZERO, ..config() }), Ok(()));
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
    let is_probe = |h: &&super::kit::Heard| h.seg.flags == SYN && h.link == TO_A;
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
        let mut said = say(flags, seq, ack).data(data);
        said.options.mss = (flags != ACK).then_some(1440);
        Kit::frame_between((client, service), vlans, is_client, &said, (40_000, 80))
    };
    let talk = |kit: &mut Kit, link, frame| kit.input(Input::Frame(link, frame));
    let mut kit = Kit::new(config.clone());
    talk(&mut kit, Link::Client, frame(true, SYN, R - 1, 0, ""));
    talk(&mut kit, TO_A, frame(false, SYN_ACK, P - 1, R, ""));
    talk(&mut kit, TO_B, frame(false, SYN_ACK, Q - 1, R, ""));
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

#[test]
fn a_packed_key_is_the_key_and_has_its_order() {
    let key = |vlan, client: &str, server: &str| {
        let [client, server] = [client, server].map(|end| end.parse().expect("an end"));
        FlowKey { service: ServiceId(0x0102), vlan, client, server }
    };
    let keys = [
        key((None, None), "192.0.2.1:258", "192.0.2.10:80"),
        key((None, None), "192.0.2.1:513", "192.0.2.10:80"),
        key((None, None), "[::ffff:192.0.2.1]:258", "[2001:db8::10]:80"),
        key((None, None), "[2001:db8::1]:258", "[2001:db8::10]:8080"),
        key((Some(0), None), "192.0.2.1:258", "192.0.2.10:80"),
        key((Some(0x0fa0), Some(7)), "192.0.2.1:258", "192.0.2.10:80"),
    ];
    assert!(keys.is_sorted());
    assert!(keys.map(|key| key.packed()).is_sorted());
    assert_eq!(keys.map(|key| FlowKey::from(key.packed())), keys);
}

/// 1.7: how far one server may be ahead of what is shown falls as more is held already.
#[test]
fn the_window_of_new_connections_falls_as_the_pool_fills() {
    for (held, window) in
        [(9_999, 2 << 20), (40_000, 1_056_768), (69_000, 51_063), (70_000, 16 << 10)]
    {
        let mut kit = Kit::new(EngineConfig { hold_bytes_max: 100_000, ..config() });
        kit.establish_with(|s| s.scale(7), |s| s.scale(7));
        for from in (0..held).step_by(10_000) {
            let bytes = vec![b'x'; 10_000.min(held - from)];
            kit.leg(A, say(ACK, P + from as u32, R).data(bytes));
        }
        assert_eq!(kit.engine.status().held_bytes, held as u64);
        let port = 40_001;
        kit.say(Link::Client, say(SYN, C, 0).mss(1460).scale(7), port);
        for leg in LegId::ALL {
            let answer = say(SYN_ACK, ISS[leg.index()], R).mss(1460).scale(7);
            kit.say(Link::Server(leg), answer, port);
        }
        let told = kit.say(Link::Client, say(ACK, R, P), port);
        assert!(told.iter().all(|h| h.seg.window == (window >> 7) as u16), "{held}: {told:?}");
        assert_eq!(told.len(), 2);
    }
}

#[test]
fn an_idle_connection_is_known_for_five_days() {
    let mut kit = Kit::new(config());
    kit.establish();
    let pass = |kit: &mut Kit, seconds| {
        kit.now = kit.now + Duration::from_secs(seconds);
        kit.input(Input::Timeout);
    };
    pass(&mut kit, 5 * 24 * 3600 - 1);
    let heard = kit.client(say(ACK, R, P).data("still there?"));
    let acks: Vec<u32> = heard.iter().map(|h| h.seg.ack).collect();
    assert_eq!(acks, [P, Q], "to both, in their own numbers");
    pass(&mut kit, 5 * 24 * 3600 + 1);
    assert!(kit.engine.flows(1).is_empty());
}

#[test]
fn after_a_restart_a_client_may_be_away_for_hours() {
    let mut kit = Kit::new(config());
    kit.establish();
    let mut kit = Kit::restored(config(), kit.records.clone());
    kit.leg(A, say(ACK, P, R));
    kit.leg(B, say(ACK, Q, R));
    kit.now = kit.now + Duration::from_secs(10_000);
    kit.input(Input::Timeout);
    kit.forget();
    kit.client(say(ACK, R, P).data("back"));
    for (link, next) in [(TO_A, P), (TO_B, Q)] {
        assert_eq!(kit.on(link).pop().map(|h| (h.seg.ack, h.data)), Some((next, b"back".to_vec())));
    }
}

/// Nobody says anything more on it: it is told as what it is.
#[test]
fn after_a_restart_a_connection_that_was_over_is_over() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(FIN, R, P));
    kit.leg(A, say(FIN, P, R + 1));
    kit.leg(B, say(FIN, Q, R + 1));
    kit.client(say(ACK, R + 1, P + 1));
    let last = kit.records.iter().rfind(|record| matches!(record, Record::Flow { .. }));
    let kit = Kit::restored(config(), last.cloned().into_iter().collect());
    let told = kit.events.iter().find_map(|event| match event {
        Event::FlowChanged { from, to, .. } => Some((*from, *to)),
        _ => None,
    });
    assert_eq!(told, Some((FlowState::Opening, FlowState::TimeWait)));
}

/// 1.6: a server may wait for more before it acknowledges; a lost request costs little more.
#[test]
fn a_request_that_nobody_acknowledges_is_repeated_after_the_time_of_a_delayed_ack() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.forget();
    kit.wait_ms(59);
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (0, 0));
    kit.wait_ms(2);
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (1, 1));
}

#[test]
fn what_both_said_beyond_a_hole_is_shown_however_each_has_cut_it() {
    for (first, second) in [(A, B), (B, A)] {
        let mut kit = Kit::new(config());
        kit.establish();
        let from = |leg: LegId| ISS[leg.index()] + 1;
        kit.leg(first, say(ACK, from(first) + 200, R).data([b'r'; 100]));
        let shown = kit.leg(second, say(ACK, from(second) + 100, R).data([b'r'; 250]));
        let shown: Vec<_> = shown.iter().filter(|h| h.link == Link::Client).collect();
        assert_eq!((shown.len(), shown[0].seg.seq, shown[0].data.len()), (1, P + 200, 100));
    }
}

/// RFC 5681 2: only while something is outstanding does a repeated ack say that something is lost.
#[test]
fn an_ack_repeated_by_both_when_nothing_is_outstanding_is_told_to_nobody() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    for _ in 0..4 {
        kit.leg(A, say(ACK, P, R + 3));
        kit.leg(B, say(ACK, Q, R + 3));
    }
    assert_eq!(kit.on(Link::Client).len(), 1, "the first one of both");
}

/// LV6: a detached server is reset when it speaks, and two resets end no sooner than one.
#[test]
fn a_detached_server_that_resets_is_not_answered() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.leg(B, say(super::FIN, Q, R));
    kit.leg(A, say(ACK, P, R).data("more"));
    assert_eq!(state(&kit), FlowState::Solo);
    kit.forget();
    kit.leg(B, say(ACK, Q + 1, R));
    assert_eq!(kit.on(TO_B).len(), 1);
    kit.leg(B, say(super::RST.with(ACK), Q + 1, R));
    assert_eq!(kit.on(TO_B).len(), 1);
}

/// An ack of its own would tell it to repeat what the other one has not said either.
#[test]
fn a_server_hears_of_the_hole_that_it_alone_has_and_of_no_other() {
    for (said, told) in [(200, 0), (0, 1)] {
        let mut kit = Kit::new(config());
        kit.establish_with(|s| s.sack_ok(), |s| s.sack_ok());
        kit.leg(B, say(ACK, Q + 200, R).data([b'r'; 100]));
        kit.forget();
        kit.leg(A, say(ACK, P + said, R).data([b'r'; 100]));
        assert_eq!(kit.on(TO_B).len(), told, "A says {said}");
    }
}

/// 1.6: what both repeat is shown again once; what one repeats is, as often as it does.
#[test]
fn each_repetition_of_one_server_is_shown_and_not_the_others_of_the_same_moment() {
    let mut kit = Kit::new(config());
    kit.establish();
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, R).data("answer"));
    }
    kit.forget();
    for (leg, from, shown) in [(A, P, 1), (B, Q, 1), (A, P, 2), (A, P, 3), (B, Q, 3)] {
        kit.leg(leg, say(ACK, from, R).data("answer"));
        assert_eq!(kit.on(Link::Client).len(), shown);
    }
    kit.wait_ms(20);
    kit.forget();
    kit.leg(B, say(ACK, Q, R).data("an"));
    assert_eq!(kit.on(Link::Client).pop().map(|h| h.data), Some(b"an".to_vec()), "no more of it");
}

/// 1.14: what the survivor holds leaves at once, ten segments of it, whatever is on its way.
#[test]
fn the_first_ten_segments_that_a_survivor_holds_leave_at_once() {
    let mut kit = Kit::new(config());
    kit.establish();
    let flight = 30_000;
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, R).data(vec![b'x'; flight as usize]));
    }
    kit.leg(B, say(ACK, Q + flight, R).data(vec![b'y'; 20_000]));
    kit.forget();
    kit.input(Input::Signal(TO_A, Signal::CarrierDown));
    let shown: usize = kit.on(Link::Client).iter().map(|h| h.data.len()).sum();
    assert_eq!(shown, 10 * 1460);
}

/// However far it has come in either direction, and whoever speaks first.
#[test]
fn after_a_restart_a_connection_goes_on_from_any_position() {
    let far = [0, 100, (1 << 31) - 5, (1 << 31) + 5, 3 << 30, u32::MAX - 9];
    let orders = [[0, 1, 2], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let records = {
        let mut kit = Kit::new(config());
        kit.establish();
        kit.records
    };
    for (asked, answered, order) in far
        .into_iter()
        .flat_map(|asked| far.map(|answered| (asked, answered)))
        .flat_map(|(asked, answered)| orders.map(|order| (asked, answered, order)))
    {
        let at = (asked, answered, order);
        let r = R.wrapping_add(asked);
        let [p, q] = [P, Q].map(|first| first.wrapping_add(answered));
        let mut kit = Kit::restored(config(), records.clone());
        for who in order {
            match who {
                0 => kit.client(say(ACK, r, p)),
                1 => kit.leg(A, say(ACK, p, r)),
                _ => kit.leg(B, say(ACK, q, r)),
            };
        }
        kit.forget();
        kit.client(say(ACK, r, p).data("GET"));
        for (link, next) in [(TO_A, p), (TO_B, q)] {
            let heard = kit.on(link).pop().map(|h| (h.seg.seq, h.seg.ack, h.data));
            assert_eq!(heard, Some((r, next, b"GET".to_vec())), "{at:?}");
        }
        let taken = r.wrapping_add(3);
        kit.leg(A, say(ACK, p, taken).data("answer"));
        assert!(kit.on(Link::Client).iter().all(|h| h.data.is_empty()), "{at:?}");
        kit.leg(B, say(ACK, q, taken).data("answer"));
        let shown = kit.on(Link::Client).pop().map(|h| (h.seg.seq, h.seg.ack, h.data));
        assert_eq!(shown, Some((p, taken, b"answer".to_vec())), "{at:?}");
        kit.forget();
        kit.client(say(ACK, taken, p.wrapping_add(6)));
        for (link, next) in [(TO_A, p), (TO_B, q)] {
            let told = kit.on(link).pop().map(|h| h.seg.ack);
            assert_eq!(told, Some(next.wrapping_add(6)), "{at:?}");
        }
    }
}

#[test]
fn after_a_restart_a_connection_has_its_timestamps_again() {
    let records = {
        let mut kit = Kit::new(config());
        kit.establish_with(|s| s.stamps(10, 0), |s| s.stamps(500, 10));
        kit.records
    };
    // After one question and after two, one of which has no time.
    for ms in [10, 30] {
        let mut kit = Kit::restored(config(), records.clone());
        kit.wait_ms(ms);
        kit.leg(A, say(ACK, P, R).stamps(700, 10));
        kit.leg(B, say(ACK, Q, R).stamps(700, 10));
        kit.client(say(ACK, R, P).stamps(30, 500));
        kit.forget();
        kit.client(say(ACK, R, P).data("GET").stamps(31, 700));
        for link in [TO_A, TO_B] {
            let stamps = kit.on(link)[0].seg.options.timestamps;
            assert_eq!(stamps.map(|(value, _)| value.0), Some(31), "after {ms} ms");
        }
    }
}

/// 1.8: one refusal waits for the other server's word; a client is not kept for ever.
#[test]
fn a_client_that_one_server_refuses_and_the_other_ignores_is_refused_after_a_second() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    kit.leg(A, say(super::RST.with(ACK), 0, R));
    kit.wait_ms(950);
    assert!(kit.on(Link::Client).is_empty());
    kit.wait_ms(100);
    let told = kit.on(Link::Client).pop().expect("it is refused").seg;
    assert_eq!((told.flags, told.ack), (super::RST.with(ACK), R));
}

/// 1.3: a client asks whether it is still heard; the primary's answer is the one.
#[test]
fn a_clients_keep_alive_is_answered_once_when_a_server_has_answered_it() {
    for data in ["", "?"] {
        let mut kit = Kit::new(config());
        kit.establish();
        kit.client(say(ACK, R, P).data("?"));
        kit.leg(A, say(ACK, P, R + 1));
        kit.leg(B, say(ACK, Q, R + 1));
        kit.forget();
        kit.client(say(ACK, R, P).data(data));
        assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (1, 1));
        assert!(kit.on(Link::Client).is_empty());
        kit.leg(B, say(ACK, Q, R + 1));
        assert!(kit.on(Link::Client).is_empty(), "it is the primary's to answer");
        kit.leg(A, say(ACK, P, R + 1));
        let told: Vec<_> = kit.on(Link::Client).iter().map(|h| (h.seg.seq, h.seg.ack)).collect();
        assert_eq!(told, [(P, R + 1)]);
    }
}

/// Each write to the state file costs, and tells nothing.
#[test]
fn what_changes_nothing_that_outlives_the_process_is_not_written_down() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.records.clear();
    kit.client(say(ACK, R, P).data("GET"));
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, R + 3).data("answer"));
    }
    kit.client(say(ACK, R + 3, P + 6));
    kit.wait_ms(1000);
    assert_eq!(kit.records.len(), 0);
}

/// RFC 9293 3.8.5: the pointer says where the urgent bytes end, however they are cut.
#[test]
fn urgent_bytes_end_for_everybody_where_they_ended() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("abc").urgent(2));
    for link in [TO_A, TO_B] {
        let heard = kit.on(link)[0].seg;
        assert_eq!((heard.flags.has(TcpFlags::URG), heard.urgent), (true, 2));
    }
    kit.leg(A, say(ACK, P, R + 3).data("0123456789").urgent(7));
    kit.forget();
    for (at, data, told) in [(0, "012", 7), (3, "34567", 4), (8, "89", 0)] {
        kit.leg(B, say(ACK, Q + at, R + 3).data(data));
        let shown = kit.on(Link::Client).pop().expect("both have said it").seg;
        assert_eq!((shown.flags.has(TcpFlags::URG), shown.urgent), (told > 0, told));
    }
}

/// 1.3: without SACK it is by counting that a client learns of a loss: neither both servers' acks
/// for one segment nor fewer than both have sent.
#[test]
fn repeated_acks_are_shown_as_often_as_both_have_sent_them() {
    let mut kit = Kit::new(config());
    kit.establish();
    // The first ten bytes are lost on their way to the gateway.
    for at in 1..5 {
        kit.client(say(ACK, R + 10 * at, P).data("0123456789"));
    }
    kit.forget();
    let shown = |kit: &Kit| kit.on(Link::Client).len();
    let mut told = Vec::new();
    for leg in [A, A, B, B, A, B, B] {
        kit.leg(leg, say(ACK, ISS[leg.index()] + 1, R));
        told.push(shown(&kit));
    }
    assert_eq!(told, [0, 0, 1, 2, 2, 3, 3]);
    assert!(kit.on(Link::Client).iter().all(|h| (h.seg.ack, h.data.len()) == (R, 0)));
}

/// LV8 asks for an update where the window opens, and for no other.
#[test]
fn a_server_short_of_window_is_told_nothing_before_there_is_news() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    for leg in LegId::ALL {
        kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
    }
    kit.client(say(ACK, R, P).window(1000));
    kit.forget();
    kit.leg(A, say(ACK, P, R).data("x"));
    kit.wait_ms(100);
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (0, 0));
}

/// RFC 5961 3 holds for a handshake as well.
#[test]
fn a_handshake_is_ended_by_its_client_and_not_by_a_guess() {
    for (seq, is_over) in [(R, true), (C, true), (R + 1, false), (C - 1, false), (0, false)] {
        let mut kit = Kit::new(config());
        kit.client(say(SYN, C, 0).mss(1460));
        kit.client(say(super::RST, seq, 0));
        for leg in LegId::ALL {
            kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
        }
        assert_eq!(kit.on(Link::Client).is_empty(), is_over, "{seq}");
    }
}

/// A server repeats its SYN-ACK while it lacks the third ack: the client's, or a copy of it.
#[test]
fn a_repeated_syn_ack_is_for_whoever_has_not_acknowledged_it() {
    let mut kit = Kit::new(config());
    let answer = |leg: LegId| say(SYN_ACK, ISS[leg.index()], R).mss(1460);
    kit.client(say(SYN, C, 0).mss(1460));
    for leg in LegId::ALL {
        kit.leg(leg, answer(leg));
    }
    kit.wait_ms(1000);
    kit.forget();
    for leg in LegId::ALL {
        kit.leg(leg, answer(leg));
    }
    let shown: Vec<_> = kit.on(Link::Client).iter().map(|h| (h.seg.flags, h.seg.seq)).collect();
    assert_eq!(shown, [(SYN_ACK, P - 1)], "one of both");
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (0, 0));
    kit.client(say(ACK, R, P));
    kit.leg(A, say(ACK, P, R).data("hello"));
    kit.leg(B, say(ACK, Q, R).data("hello"));
    kit.client(say(ACK, R, P + 5));
    kit.forget();
    kit.leg(B, answer(B));
    assert_eq!(kit.on(TO_B).iter().map(|h| h.seg.ack).collect::<Vec<_>>(), [Q + 5]);
    assert_eq!((kit.on(Link::Client).len(), kit.on(TO_A).len()), (0, 0));
}

/// LV2: what a server asks of a client that was not heard for a while only the client can answer;
/// it is asked once a second, however often the servers ask.
#[test]
fn a_silent_clients_servers_ask_it_once_a_second() {
    let mut kit = Kit::new(config());
    kit.establish();
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, R).data("hello"));
    }
    kit.client(say(ACK, R, P + 5));
    kit.wait_ms(2100);
    kit.forget();
    let mut asked = Vec::new();
    for ms in (0..3000).step_by(300) {
        kit.leg(A, say(ACK, P + 4, R));
        kit.leg(B, say(ACK, Q + 4, R));
        let heard = kit.on(Link::Client);
        assert!(heard.iter().all(|h| (h.seg.seq, h.data.len()) == (P + 4, 0)));
        asked.extend((!heard.is_empty()).then_some((ms, heard.len())));
        kit.forget();
        kit.wait_ms(300);
    }
    assert_eq!(asked, [(0, 1), (1200, 1), (2400, 1)]);
    kit.client(say(ACK, R, P + 5));
    kit.forget();
    kit.leg(A, say(ACK, P + 4, R));
    assert_eq!((kit.on(Link::Client).len(), kit.on(TO_A).len()), (0, 1), "it is alive");
}

/// PAWS (RFC 7323 5.3): one server may look at timestamps and the other not, so that an old segment
/// with bytes that nobody knows reaches neither, and is acknowledged.
#[test]
fn an_old_segment_with_new_bytes_is_for_neither_server() {
    let mut kit = Kit::new(config());
    kit.establish_with(|s| s.stamps(10, 0), |s| s.stamps(500, 10));
    kit.client(say(ACK, R, P).data("GET").stamps(40, 500));
    kit.forget();
    kit.client(say(ACK, R + 3, P).data("from the past").stamps(30, 500));
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (0, 0));
    assert_eq!(kit.on(Link::Client).len(), 1);
    kit.client(say(ACK, R + 3, P).data("of now").stamps(41, 500));
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (1, 1));
}

/// RFC 9293 3.10.7.4: a server answers what it has acknowledged before, and reads no ack from it.
#[test]
fn an_ack_on_what_one_server_has_already_is_told_to_it_once_more() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("hello"));
    kit.leg(B, say(ACK, Q, R).data("hello"));
    kit.forget();
    kit.client(say(ACK, R, P + 5).data("GET"));
    let told: Vec<_> = kit.on(TO_A).iter().map(|h| (h.seg.seq, h.seg.ack, h.data.len())).collect();
    assert_eq!(told, [(R, P + 5, 3), (R + 3, P + 5, 0)]);
    assert_eq!(kit.on(TO_B).len(), 1, "it has not acknowledged that");
}

/// The answer to a SYN of before has no number of the server (RFC 9293 3.10.7.1).
#[test]
fn after_a_restart_a_refusal_numbered_0_says_nothing() {
    let records = {
        let mut kit = Kit::new(config());
        kit.establish();
        kit.records
    };
    let mut kit = Kit::restored(config(), records);
    kit.leg(A, say(super::RST.with(ACK), 0, R));
    kit.leg(A, say(ACK, P, R));
    kit.leg(B, say(ACK, Q, R));
    kit.client(say(ACK, R, P));
    kit.forget();
    kit.client(say(ACK, R, P).data("GET"));
    let told = |kit: &Kit, link| kit.on(link).last().map(|h| (h.seg.seq, h.seg.ack));
    assert_eq!((told(&kit, TO_A), told(&kit, TO_B)), (Some((R, P)), Some((R, Q))));
}
