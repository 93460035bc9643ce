//! What is not a protected TCP flow, row by row of the table in [`crate::engine::bridge`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::kit::{ACK, CLIENT, CLIENT_ISS, ISS, Kit, SERVICE, client_mac, config, say, server_mac};
use crate::engine::{EngineConfig, Event, Input, LegId, Link, RejectReason, Signal, UdpPolicy};
use crate::wire::{Frame, IcmpKind, L2, L3, Mac, NdKind, Packet, TcpFlags, Vlans, build, parse};

const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const UDP: u8 = 17;
const ICMP: u8 = 1;
const A: Link = Link::Server(LegId::A);
const B: Link = Link::Server(LegId::B);

impl Kit {
    /// Everything but TCP that leaves because of `frame`.
    fn pass(&mut self, link: Link, frame: Frame) -> Vec<(Link, Packet)> {
        self.frames.clear();
        self.input(Input::Frame(link, frame));
        self.passed()
    }

    fn passed(&self) -> Vec<(Link, Packet)> {
        let parsed =
            |(link, frame): &(Link, Frame)| (*link, parse::parse(frame).expect("a packet"));
        self.frames.iter().map(parsed).collect()
    }

    fn links_after(&mut self, link: Link, frame: Frame) -> Vec<Link> {
        self.pass(link, frame).into_iter().map(|(link, _)| link).collect()
    }

    fn judged(&self) -> Vec<Option<LegId>> {
        let judged = |event: &Event| match event {
            Event::DatagramJudged { only } => Some(*only),
            _ => None,
        };
        self.events.iter().filter_map(judged).collect()
    }
}

fn l2(src: Mac, dst: Mac) -> L2 {
    L2 { dst, src, vlans: Vlans::default() }
}

fn from_server(dst: Mac) -> L2 {
    l2(server_mac(), dst)
}

/// A datagram from the service to the client, or from the client to the service.
fn ip(is_answer: bool, protocol: u8, payload: &[u8]) -> Frame {
    let ends = [(CLIENT, client_mac()), (SERVICE, server_mac())];
    let [(src, smac), (dst, dmac)] = if is_answer { [ends[1], ends[0]] } else { ends };
    let (src, dst) = (IpAddr::V4(src), IpAddr::V4(dst));
    let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
    build::datagram(&l2(smac, dmac), &l3, protocol, payload)
}

fn udp(is_answer: bool, port: u16, text: &[u8]) -> Frame {
    let (src, dst) = if is_answer { (port, 40_000) } else { (40_000, port) };
    let mut bytes = Vec::new();
    for field in [src, dst, 8 + text.len() as u16, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(text);
    ip(is_answer, UDP, &bytes)
}

fn echo_reply(seq: u16, text: &[u8]) -> Frame {
    let mut bytes = vec![0, 0, 0, 0, 0, 7];
    bytes.extend(seq.to_be_bytes());
    bytes.extend(text);
    icmp(bytes)
}

/// An ICMP message of the service's side.
fn icmp(bytes: Vec<u8>) -> Frame {
    icmp_from(true, bytes)
}

/// An ICMP message, its checksum filled in.
fn icmp_from(is_service: bool, mut bytes: Vec<u8>) -> Frame {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    bytes[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    ip(is_service, ICMP, &bytes)
}

#[test]
fn a_clients_datagram_goes_to_both_and_the_primarys_answer_is_shown_at_once() {
    let mut kit = Kit::new(config());
    assert_eq!(kit.links_after(Link::Client, udp(false, 53, b"who?")), [B, A]);
    assert_eq!(kit.links_after(B, udp(true, 53, b"me")), []);
    assert_eq!(kit.links_after(A, udp(true, 53, b"me")), [Link::Client]);
    assert_eq!(kit.judged(), [None], "one pair");
}

#[test]
fn datagrams_said_by_one_server_only_are_counted_after_a_while() {
    let mut kit = Kit::new(config());
    for (link, text) in [(A, b"1"), (A, b"1"), (B, b"1"), (B, b"2")] {
        kit.pass(link, udp(true, 53, text));
    }
    assert_eq!(kit.judged(), [None]);
    kit.wait_ms(199);
    assert_eq!(kit.judged(), [None], "a twin may still come");
    kit.wait_ms(2);
    assert_eq!(kit.judged(), [None, Some(LegId::A), Some(LegId::B)]);
    kit.pass(B, udp(true, 53, b"1"));
    assert_eq!(kit.judged().len(), 3, "too late for the one before");
}

#[test]
fn a_flood_of_datagrams_ends_in_a_full_table_and_passes_all_the_same() {
    let mut kit = Kit::new(config());
    for n in 0..6_000u32 {
        assert_eq!(kit.links_after(A, udp(true, 53, &n.to_be_bytes())), [Link::Client]);
    }
    kit.wait_ms(250);
    assert_eq!(kit.judged().len(), 4096);
}

#[test]
fn strict_datagrams_for_which_there_is_no_room_are_shown_at_once() {
    let mut kit = Kit::new(EngineConfig { udp: UdpPolicy::Strict, ..config() });
    let large = |n: u32| [&n.to_be_bytes()[..], &[7; 1400]].concat();
    let mut at_once = 0;
    for n in 0..6_000u32 {
        at_once += kit.links_after(A, udp(true, 53, &large(n))).len();
    }
    assert!((1_000..4_000).contains(&at_once), "4 MiB are held: {at_once}");
    kit.frames.clear();
    kit.wait_ms(60);
    assert_eq!(kit.passed().len() + at_once, 6_000, "each of them once");
}

#[test]
fn strict_datagrams_are_held_up_to_the_last_byte_of_room() {
    let mut kit = Kit::new(EngineConfig { udp: UdpPolicy::Strict, ..config() });
    let kib = |n: u32| [&n.to_be_bytes()[..], &[7; 1024 - 14 - 20 - 8 - 4]].concat();
    for n in 0..4096u32 {
        assert_eq!(kit.links_after(A, udp(true, 53, &kib(n))), [], "{n} KiB are held");
    }
    assert_eq!(kit.links_after(A, udp(true, 53, b"one more")), [Link::Client]);
}

#[test]
fn services_that_answer_each_server_differently_are_the_primarys_alone() {
    let mut kit = Kit::new(config());
    for port in [67, 123, 443] {
        assert_eq!(kit.links_after(Link::Client, udp(false, port, b"?")), [A], "port {port}");
        kit.pass(A, udp(true, port, b"!"));
    }
    kit.wait_ms(250);
    assert_eq!(kit.judged(), []);
}

#[test]
fn strict_datagrams_wait_for_their_twin_and_no_longer_than_50_ms() {
    let mut kit = Kit::new(EngineConfig { udp: UdpPolicy::Strict, ..config() });
    // Whichever comes first: the primary's is shown when both have said it.
    assert_eq!(kit.links_after(A, udp(true, 53, b"1")), []);
    assert_eq!(kit.links_after(B, udp(true, 53, b"1")), [Link::Client]);
    assert_eq!(kit.links_after(B, udp(true, 53, b"2")), []);
    assert_eq!(kit.links_after(A, udp(true, 53, b"2")), [Link::Client]);
    assert_eq!(kit.judged(), [None, None]);
    // Two equal ones of one server are two.
    assert_eq!(kit.links_after(A, udp(true, 53, b"3")), []);
    assert_eq!(kit.links_after(A, udp(true, 53, b"3")), []);
    assert_eq!(kit.links_after(B, udp(true, 53, b"3")), [Link::Client]);
    kit.frames.clear();
    kit.wait_ms(49);
    assert_eq!(kit.passed(), []);
    kit.wait_ms(2);
    assert_eq!(kit.passed().len(), 1, "the second one, that only the primary has said");
    assert_eq!(kit.judged(), [None, None, None, Some(LegId::A)]);
    // Of what the backup alone says nothing is shown.
    assert_eq!(kit.links_after(B, udp(true, 53, b"4")), []);
    kit.wait_ms(60);
    assert_eq!(kit.passed(), []);
}

#[test]
fn datagrams_go_on_with_the_other_server_and_none_is_shown_twice() {
    let mut kit = Kit::new(config());
    let mut shown = Vec::new();
    // A question each millisecond; both answer, the primary until it dies in the middle.
    for n in 0..100u32 {
        if n == 50 {
            kit.input(Input::Signal(A, Signal::CarrierDown));
        }
        let answer = udp(true, 53, &n.to_be_bytes());
        assert!(kit.links_after(Link::Client, udp(false, 53, &n.to_be_bytes())).contains(&B));
        for link in [A, B] {
            let is_alive = link == B || n < 50;
            let out = if is_alive { kit.links_after(link, answer.clone()) } else { Vec::new() };
            shown.extend(out.iter().filter(|&&to| to == Link::Client).map(|_| n));
        }
        kit.wait_ms(1);
    }
    assert_eq!(shown, (0..100).collect::<Vec<_>>(), "a visible death costs none");
}

#[test]
fn nobody_is_told_that_a_server_cannot_be_reached() {
    let mut kit = Kit::new(config());
    kit.pass(Link::Client, udp(false, 53, b"probes have an address to come from"));
    let error = |code: u8| icmp([&[3, code, 0, 0, 0, 0, 0, 0][..], &[0x45; 28]].concat());
    for code in [0, 1] {
        assert_eq!(kit.links_after(A, error(code)), []);
    }
    let refused = |event: &&Event| {
        matches!(event, Event::Rejected { link: A, reason: RejectReason::Unreachable })
    };
    assert_eq!(kit.events.iter().filter(refused).count(), 2);
    // It is a sign: the server is asked at once whether it is there.
    let probed = |kit: &Kit| kit.heard.iter().any(|h| h.link == A && h.seg.flags == TcpFlags::SYN);
    assert!(!probed(&kit));
    kit.wait_ms(1);
    assert!(probed(&kit));
    // A port that nobody serves is an answer like any other, the primary's.
    assert_eq!(kit.links_after(A, error(3)), [Link::Client]);
    assert_eq!(kit.links_after(B, error(3)), []);
}

/// A server is told of a path's limit in its own numbers, and not before it has said what the
/// error is about: it would take the error for a forged one (RFC 5927 4.1).
#[test]
fn an_error_waits_for_the_server_that_has_not_said_what_it_is_about() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, CLIENT_ISS + 1, ISS[0] + 1).data("GET"));
    let answers = |leg: LegId| say(ACK, ISS[leg.index()] + 1, CLIENT_ISS + 4).data([b'x'; 1400]);
    kit.leg(LegId::A, answers(LegId::A));
    kit.wait_ms(200);
    let shown = kit.on(Link::Client).pop().expect("the primary's bytes are shown");
    let quoted = [&shown.seg.src_port.to_be_bytes()[..], &shown.seg.dst_port.to_be_bytes()];
    let tcp = [&quoted.concat()[..], &shown.seg.seq.to_be_bytes()].concat();
    let packet = ip(true, 6, &tcp).to_vec();
    let error = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &packet[14..]].concat();
    assert_eq!(kit.links_after(Link::Client, icmp_from(false, error)), [A]);
    let told = |kit: &Kit| match &kit.passed()[..] {
        [(link, Packet::Icmp(icmp))] => (*link, icmp.kind),
        other => panic!("{other:?}"),
    };
    let of = |kind: IcmpKind| match kind {
        IcmpKind::TooBig { quote: Some(quote), mtu } => (quote.seq, mtu),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(told(&kit).1), (ISS[0] + 1, 1280));
    kit.frames.clear();
    kit.leg(LegId::B, answers(LegId::B));
    assert_eq!(told(&kit).0, B);
    assert_eq!(of(told(&kit).1), (ISS[1] + 1, 1280));
    kit.frames.clear();
    kit.leg(LegId::B, answers(LegId::B));
    assert_eq!(kit.passed(), [], "once");
}

#[test]
fn an_echo_is_answered_once_by_the_primarys_reply() {
    let mut kit = Kit::new(config());
    assert_eq!(kit.links_after(B, echo_reply(1, b"ping")), [], "the primary's is waited for");
    let shown = kit.pass(A, echo_reply(1, b"ping"));
    assert_eq!(shown.len(), 1);
    assert!(matches!(&shown[0], (Link::Client, Packet::Icmp(icmp))
            if icmp.kind == IcmpKind::EchoReply { id: 7, seq: 1 }));
    // The backup is silent: the primary's leaves after 20 ms.
    assert_eq!(kit.links_after(A, echo_reply(2, b"ping")), []);
    kit.wait_ms(19);
    assert_eq!(kit.passed(), []);
    kit.wait_ms(2);
    assert_eq!(kit.passed().len(), 1);
    // The primary is silent: nothing of the backup is ever shown.
    assert_eq!(kit.links_after(B, echo_reply(3, b"ping")), []);
    kit.wait_ms(30);
    assert_eq!(kit.passed(), []);
}

#[test]
fn neighbours_of_the_client_side_ask_both_and_the_primary_answers() {
    let mut kit = Kit::new(config());
    let ask = build::arp_request(&l2(client_mac(), Mac::BROADCAST), CLIENT, SERVICE);
    assert_eq!(kit.links_after(Link::Client, ask), [B, A]);
    let reply = build::arp_reply(&from_server(client_mac()), SERVICE, CLIENT);
    assert_eq!(kit.links_after(B, reply.clone()), []);
    assert_eq!(kit.links_after(A, reply), [Link::Client]);
}

#[test]
fn the_backups_queries_are_answered_from_what_was_learned() {
    let mut kit = Kit::new(config());
    let ask = |target| build::arp_request(&from_server(Mac::BROADCAST), SERVICE, target);
    // Nobody has heard of it: one query leaves in the service's name, and no second at once.
    assert_eq!(kit.links_after(B, ask(OTHER)), [Link::Client]);
    assert_eq!(kit.links_after(B, ask(OTHER)), []);
    let other = Mac([2, 0, 0, 0, 0, 77]);
    let answer = build::arp_reply(&l2(other, server_mac()), OTHER, SERVICE);
    assert_eq!(kit.links_after(Link::Client, answer), [B, A]);
    let known = kit.pass(B, ask(OTHER));
    let [(to, Packet::Arp(reply))] = known.as_slice() else { panic!("{known:?}") };
    assert_eq!((*to, reply.is_request), (B, false));
    assert_eq!((reply.sender, reply.sender_mac), (IpAddr::V4(OTHER), other));
}

/// However many addresses it asks for: what the client's network hears of it is bounded.
#[test]
fn the_backups_queries_leave_a_thousand_a_second() {
    let mut kit = Kit::new(config());
    let asks = |kit: &mut Kit, from: u32| {
        let ask = |n| {
            let target = Ipv4Addr::from_bits(0x0a00_0000 + n);
            build::arp_request(&from_server(Mac::BROADCAST), SERVICE, target)
        };
        (from..from + 1100).filter(|&n| !kit.links_after(B, ask(n)).is_empty()).count()
    };
    assert_eq!(asks(&mut kit, 0), 1024);
    kit.wait_ms(1000);
    assert_eq!(asks(&mut kit, 2000), 1024);
}

#[test]
fn a_duplicate_address_probe_is_shown_by_the_primary_only_and_answered_by_nobody_here() {
    let mut kit = Kit::new(config());
    let probe = build::arp_request(&from_server(Mac::BROADCAST), Ipv4Addr::UNSPECIFIED, SERVICE);
    assert_eq!(kit.links_after(B, probe.clone()), []);
    assert_eq!(kit.links_after(A, probe), [Link::Client]);
    // The backup's announcement would turn the switch's table.
    let announce = build::arp_request(&from_server(Mac::BROADCAST), SERVICE, SERVICE);
    assert_eq!(kit.links_after(B, announce), []);
}

#[test]
fn neighbour_discovery_obeys_the_same_rules() {
    let service: Ipv6Addr = "2001:db8::10".parse().expect("an address");
    let client: Ipv6Addr = "2001:db8::1".parse().expect("an address");
    let addresses = vec![IpAddr::V6(service), IpAddr::V4(SERVICE)];
    let mut kit = Kit::new(EngineConfig { addresses, ..config() });
    let group = |target| l2(client_mac(), build::solicited_node_mac(target));
    let ask = build::neighbour_solicit(&group(service), client, service);
    assert_eq!(kit.links_after(Link::Client, ask), [B, A]);
    let answer = build::neighbour_advertise(&from_server(client_mac()), service, client);
    assert_eq!(kit.links_after(B, answer.clone()), []);
    assert_eq!(kit.links_after(A, answer), [Link::Client]);
    // The backup asks for the client, which has just introduced itself.
    let from_b = from_server(build::solicited_node_mac(client));
    let known = kit.pass(B, build::neighbour_solicit(&from_b, service, client));
    let [(to, Packet::Nd(nd))] = known.as_slice() else { panic!("{known:?}") };
    assert_eq!(*to, B);
    let is_client = |mac: Option<Mac>| mac == Some(client_mac());
    assert!(matches!(nd.kind, NdKind::Advertise { target, mac, .. }
            if target == IpAddr::V6(client) && is_client(mac)));
    // For one of whom nobody has heard it asks in the service's name, and not twice at once.
    let other: Ipv6Addr = "2001:db8::77".parse().expect("an address");
    let from_b = from_server(build::solicited_node_mac(other));
    let ask_other = build::neighbour_solicit(&from_b, service, other);
    assert_eq!(kit.links_after(B, ask_other.clone()), [Link::Client]);
    assert_eq!(kit.links_after(B, ask_other), []);
    // Its duplicate-address probe is shown to nobody.
    let probe = build::neighbour_solicit(
        &from_server(build::solicited_node_mac(service)),
        Ipv6Addr::UNSPECIFIED,
        service,
    );
    assert_eq!(kit.links_after(B, probe), []);
}

#[test]
fn other_protocols_and_other_hosts() {
    let mut kit = Kit::new(config());
    assert_eq!(kit.links_after(Link::Client, ip(false, 47, b"GRE")), [A]);
    assert_eq!(kit.links_after(B, ip(true, 47, b"GRE")), []);
    assert_eq!(kit.links_after(A, ip(true, 47, b"GRE")), [Link::Client]);
    // A frame to another host's Ethernet address, flooded by a switch, is nobody's here.
    kit.pass(A, build::arp_reply(&from_server(client_mac()), SERVICE, CLIENT));
    let l3 = L3 {
        src: IpAddr::V4(CLIENT),
        dst: IpAddr::V4(OTHER),
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        id: 0,
        flow_label: 0,
    };
    let strange = l2(client_mac(), Mac([2, 0, 0, 0, 0, 77]));
    assert_eq!(kit.links_after(Link::Client, build::datagram(&strange, &l3, 47, b"GRE")), []);
}
