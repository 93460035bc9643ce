//! What no peer should send, and what a busy gateway runs out of: a named outcome each, and the
//! flows beside it go on.

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::LinkCaps;
use super::super::event::RejectReason;
use super::kit::{CLIENT, SERVICE, Say, client_mac, server_mac};
use super::*;
use crate::engine::Record;
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L2, L3, Mac, Malformed, Offload, TcpOptions, Vlans};

const CLIENT_LINK: Link = Link::Client;

/// The flow of [`Kit::establish`] still carries bytes both ways, verified.
fn still_carries(kit: &mut Kit, what: &str) {
    kit.forget();
    kit.client(say(ACK, R, P).data("ping"));
    kit.leg(A, say(ACK, P, R + 4).data("pong"));
    kit.leg(B, say(ACK, Q, R + 4).data("pong"));
    let shown: Vec<u8> = kit.on(CLIENT_LINK).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(shown, b"pong", "after {what}");
    assert_eq!(state(kit), FlowState::Paired, "after {what}");
}

fn rejected(kit: &Kit) -> Vec<RejectReason> {
    let reason = |event: &Event| match event {
        Event::Rejected { reason, .. } => Some(*reason),
        _ => None,
    };
    kit.events.iter().filter_map(reason).collect()
}

#[test]
fn a_full_table_protects_no_further_flow_and_harms_none() {
    let mut kit = Kit::new(EngineConfig { flows_max: 1, ..config() });
    kit.establish();
    let said = kit.say(CLIENT_LINK, say(SYN, 7, 0).mss(1460), 40_001);
    let links: Vec<Link> = said.iter().map(|h| h.link).collect();
    assert_eq!(links, [TO_A], "it passes to the primary alone");
    let is_told = |e: &Event| {
        matches!(e, Event::Unprotected { reason: SoloReason::Budget, flow }
            if flow.client.port() == 40_001)
    };
    assert!(kit.events.iter().any(is_told), "{:?}", kit.events);
    let answer = kit.say(TO_A, say(SYN_ACK, 77, 8).mss(1460), 40_001);
    assert_eq!((answer.len(), answer[0].link, answer[0].seg.seq), (1, CLIENT_LINK, 77));
    still_carries(&mut kit, "a flow too many");
}

#[test]
fn with_a_full_pool_new_flows_have_one_server_and_nothing_held_is_lost() {
    const PIECE: usize = 8192;
    const SAID: usize = 7 * PIECE;
    let mut kit = Kit::new(EngineConfig { hold_bytes_max: 4 * PIECE, ..config() });
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    // A fills the window that it was told; B says nothing yet.
    for at in (0..SAID).step_by(PIECE) {
        kit.leg(A, say(ACK, P + at as u32, R + 3).data(vec![b'x'; PIECE]));
    }
    let other = kit.say(CLIENT_LINK, say(SYN, 7, 0).mss(1460), 40_001);
    let links: Vec<Link> = other.iter().map(|h| h.link).collect();
    assert_eq!(links, [TO_A], "a flow that begins now has one server");
    let flows = kit.engine.flows(9);
    let late = flows.iter().find(|f| f.key.client.port() == 40_001).expect("it is carried");
    assert_eq!(late.solo, Some(SoloReason::Budget));
    kit.forget();
    for at in (0..SAID).step_by(PIECE) {
        kit.leg(B, say(ACK, Q + at as u32, R + 3).data(vec![b'x'; PIECE]));
    }
    let shown: usize = kit.on(CLIENT_LINK).iter().map(|h| h.data.len()).sum();
    assert_eq!(shown, SAID, "every byte held is shown once both said it");
}

#[test]
fn two_records_of_one_connection_are_one_flow() {
    let mut kit = Kit::new(config());
    kit.establish();
    let mut records = kit.records.clone();
    let copies: Vec<Record> = records
        .iter()
        .filter_map(|record| match record {
            Record::Flow { slot, constants } => {
                Some(Record::Flow { slot: slot + 1, constants: *constants })
            }
            _ => None,
        })
        .collect();
    assert!(!copies.is_empty());
    records.extend(copies);
    let kit = Kit::restored(config(), records);
    assert_eq!(kit.engine.flows(9).len(), 1);
}

#[test]
fn odd_segments_of_anybody_harm_no_flow() {
    type Odd = fn(u32, u32) -> Say;
    let odd: &[(&str, Odd)] = &[
        ("SYN+FIN", |seq, ack| say(TcpFlags(0x03), seq + 9, ack)),
        ("SYN+RST beside the number", |seq, ack| say(TcpFlags(0x06), seq + 9, ack)),
        ("all flags beside the number", |seq, ack| say(TcpFlags(0xff), seq + 9, ack)),
        ("no flags", |seq, ack| say(TcpFlags(0), seq, ack)),
        ("no flags with data", |seq, ack| say(TcpFlags(0), seq, ack).data("null")),
        ("an ack beyond all that was sent", |seq, ack| say(ACK, seq, ack + 70_000)),
        ("an ack half the space away", |seq, ack| say(ACK, seq, ack.wrapping_add(1 << 31))),
        ("data half the space away", |seq, ack| {
            say(ACK, seq.wrapping_add(1 << 31), ack).data("far")
        }),
        ("a reset beside the number, with data", |seq, ack| say(RST, seq + 5, ack).data("text")),
        ("a SYN in mid-connection", |seq, ack| say(SYN, seq + 100, ack)),
        ("SACK blocks upside down", |seq, ack| say(ACK, seq, ack).sack(&[(ack + 9, ack + 2)])),
        ("SACK blocks of nothing that was sent", |seq, ack| {
            say(ACK, seq, ack).sack(&[(ack + 90_000, ack + 99_000), (0, 1), (5, 5)])
        }),
    ];
    for (what, say_it) in odd {
        for link in Link::ALL {
            let mut kit = Kit::new(config());
            kit.establish();
            let odd = match link {
                Link::Client => say_it(R, P),
                Link::Server(leg) => say_it(if leg == A { P } else { Q }, R),
            };
            kit.say(link, odd, 40_000);
            still_carries(&mut kit, &format!("{what} on {link:?}"));
        }
    }
}

fn segment(macs: (Mac, Mac), ips: (Ipv4Addr, Ipv4Addr)) -> Frame {
    let l2 = L2 { src: macs.0, dst: macs.1, vlans: Vlans::default() };
    let (src, dst) = (IpAddr::V4(ips.0), IpAddr::V4(ips.1));
    let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
    let fields = TcpFields {
        src_port: 40_000,
        dst_port: 80,
        seq: R,
        ack: P,
        flags: ACK,
        window: 1000,
        urgent: 0,
        options: TcpOptions::default(),
    };
    build::tcp(&l2, &l3, &fields, Bytes::from_static(b"forged"), 1460)
}

#[test]
fn frames_that_lie_about_their_origin_go_nowhere() {
    let arp = |src: Mac, dst: Mac| {
        let l2 = L2 { src, dst, vlans: Vlans::default() };
        build::arp_reply(&l2, SERVICE, CLIENT)
    };
    let (foreign, everybody) = (Mac([2, 9, 9, 9, 9, 9]), Mac([0xff; 6]));
    let client = client_mac();
    let server = server_mac();
    let twin = RejectReason::WrongLink;
    let cases = [
        ("a server's Ethernet address", segment((server, server), (CLIENT, SERVICE)), twin),
        (
            "the service as its own client",
            segment((client, server), (SERVICE, SERVICE)),
            RejectReason::Malformed(Malformed::IpSource),
        ),
        (
            "TCP to everybody",
            segment((client, everybody), (CLIENT, SERVICE)),
            RejectReason::NotForUs,
        ),
        ("an ARP reply in the service's name", arp(foreign, client), twin),
        ("an announcement in the service's name", arp(foreign, everybody), twin),
    ];
    for (what, frame, why) in cases {
        let mut kit = Kit::new(config());
        kit.establish();
        kit.input(Input::Frame(CLIENT_LINK, frame));
        assert_eq!(rejected(&kit), [why], "{what}");
        assert!(kit.heard.is_empty(), "{what}: {:?}", kit.heard);
        still_carries(&mut kit, what);
    }
    // To another host's address: none of the gateway's business.
    let mut kit = Kit::new(config());
    kit.establish();
    kit.input(Input::Frame(CLIENT_LINK, segment((client, foreign), (CLIENT, SERVICE))));
    assert_eq!(rejected(&kit), [RejectReason::NotForUs]);
    still_carries(&mut kit, "a frame to another host");
}

/// One thing that somebody does to the gateway.
#[derive(Clone, Debug)]
enum Act {
    /// A segment near the numbers of a flow, or far from them.
    Say(Link, u16, Say),
    /// Bytes.
    Raw(Link, Vec<u8>),
    /// A good frame with one byte changed and its checksums vouched for by a device.
    Bent(Link, usize, u8),
    Wait(u64),
    Signal(LegId, bool),
}

fn any_link() -> impl Strategy<Value = Link> {
    prop::sample::select(Link::ALL.to_vec())
}

fn any_number() -> impl Strategy<Value = u32> {
    let near = prop::sample::select(vec![C, R, P, Q, ISS[0], ISS[1]]);
    prop_oneof![
        6 => (near, -20i32..3000).prop_map(|(n, d)| n.wrapping_add_signed(d)),
        1 => any::<u32>(),
    ]
}

fn any_say() -> impl Strategy<Value = Say> {
    let flags = prop_oneof![
        6 => prop::sample::select(vec![ACK, SYN, SYN_ACK, FIN, RST, TcpFlags(0x18)]),
        1 => any::<u8>().prop_map(TcpFlags),
    ];
    let options = (
        prop::option::of(any::<u16>()),
        prop::option::of(0u8..20),
        any::<bool>(),
        prop::option::of((any::<u32>(), any::<u32>())),
        prop::collection::vec((any_number(), any_number()), 0..3),
    );
    (flags, any_number(), any_number(), any::<u16>(), 0usize..3000, options).prop_map(
        |(flags, seq, ack, window, len, (mss, scale, sack, stamps, blocks))| {
            let mut it = say(flags, seq, ack).window(window).data(vec![b'd'; len]);
            if let Some((value, echo)) = stamps {
                it = it.stamps(value, echo);
            }
            if flags.has(SYN) {
                it.options.mss = mss;
                it.options.window_scale = scale;
                it.options.sack_permitted = sack;
            } else {
                it = it.sack(&blocks);
            }
            it
        },
    )
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (any_link(), 40_000u16..40_004, any_say()).prop_map(|(l, p, s)| Act::Say(l, p, s)),
        1 => (any_link(), prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(l, b)| Act::Raw(l, b)),
        2 => (any_link(), 0usize..70, any::<u8>()).prop_map(|(l, at, by)| Act::Bent(l, at, by)),
        2 => (0u64..700).prop_map(Act::Wait),
        1 => (prop::sample::select(LegId::ALL.to_vec()), any::<bool>())
            .prop_map(|(leg, up)| Act::Signal(leg, up)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever anybody says, in whatever order: no panic, only packets leave (the kit parses each
    /// one), no table grows beyond its bound, and the engine always has a next time.
    #[test]
    fn nothing_that_arrives_breaks_the_engine(acts in prop::collection::vec(any_act(), 1..150)) {
        let mut kit = Kit::new(EngineConfig { flows_max: 3, ..config() });
        kit.establish();
        for act in acts {
            match act {
                Act::Say(link, port, what) => drop(kit.say(link, what, port)),
                Act::Raw(link, bytes) => {
                    let frame = Frame::from_wire(bytes.into(), Offload::default());
                    kit.input(Input::Frame(link, frame));
                }
                Act::Bent(link, at, by) => {
                    let good = segment((client_mac(), server_mac()), (CLIENT, SERVICE));
                    let mut bytes = good.to_vec();
                    let at = at % bytes.len();
                    bytes[at] ^= by;
                    let trusted = Offload { data_valid: true, ..Offload::default() };
                    kit.input(Input::Frame(link, Frame::from_wire(bytes.into(), trusted)));
                }
                Act::Wait(ms) => kit.wait_ms(ms),
                Act::Signal(leg, up) => {
                    let signal = match up {
                        true => Signal::CarrierUp(LinkCaps::default()),
                        false => Signal::CarrierDown,
                    };
                    kit.input(Input::Signal(Link::Server(leg), signal));
                }
            }
            prop_assert!(kit.engine.flows(9).len() <= 3);
            prop_assert!(kit.engine.poll_timeout().is_some());
        }
    }
}
