//! There and back through the translator alone: what a server answers to whom it sees comes back as
//! the service's answer to the client, for everything that has ends. Any bytes are survived.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Inbound, Network, Served, Source, Translator, VipPlan};
use crate::engine::time::Instant;
use crate::engine::{LegId, Link, Output};
use crate::wire::build::{self, TcpFields};
use crate::wire::checksum::{self, Sum, pseudo_header};
use crate::wire::{
    Addressed, Ends, Frame, L2, L3, Mac, Offload, Packet, Talk, TcpFlags, TcpOptions, Vlans, parse,
};

const NOW: Instant = Instant::from_millis(1000);
const HOP_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
const SERVER_MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 2, 1]), Mac([2, 0, 0, 0, 3, 1])];
const GATEWAY_MACS: [Mac; 3] =
    [Mac([2, 0, 0, 0, 9, 0]), Mac([2, 0, 0, 0, 9, 1]), Mac([2, 0, 0, 0, 9, 2])];
const TALKS: [Talk; 3] = [Talk::Tcp, Talk::Udp, Talk::Echo];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn network(text: &str) -> Network {
    let (address, len) = text.split_once('/').expect("a length");
    Network::new(ip(address), len.parse().expect("a number")).expect("a network")
}

/// Two services of each family.
fn plan(source: Source) -> VipPlan {
    let served =
        |service: &str, a: &str, b: &str| Served { service: ip(service), servers: [ip(a), ip(b)] };
    VipPlan {
        source,
        served: vec![
            served("192.0.2.10", "10.1.0.10", "10.2.0.10"),
            served("192.0.2.11", "10.1.0.11", "10.2.0.11"),
            served("2001:db8::10", "2001:db8:1::10", "2001:db8:2::10"),
            served("2001:db8::11", "2001:db8:1::11", "2001:db8:2::11"),
        ],
        ports: vec![(8080, 80), (443, 4443)],
        client: vec![network("192.0.2.0/24"), network("2001:db8::/64")],
        next_hops: vec![ip("192.0.2.1"), ip("2001:db8::1")],
        own: [
            vec![network("10.1.0.1/24"), network("2001:db8:1::1/64")],
            vec![network("10.2.0.1/24"), network("2001:db8:2::1/64")],
        ],
    }
}

/// A translator that has heard its neighbours.
fn translator(source: Source) -> Translator {
    let plan = plan(source);
    let mut translator = Translator::new(&plan, 7);
    for link in Link::ALL {
        translator.come(NOW, link, Some(GATEWAY_MACS[link.index()]));
    }
    let mut hear = |link: Link, who: IpAddr, mac: Mac| {
        let l2 = L2 { dst: GATEWAY_MACS[link.index()], src: mac, vlans: Vlans::default() };
        let own = match link {
            Link::Client => {
                plan.served.iter().map(|s| s.service).find(|o| o.is_ipv4() == who.is_ipv4())
            }
            Link::Server(leg) => plan.own_of(leg, who),
        };
        let answer = match (who, own.expect("of one family")) {
            (IpAddr::V4(who), IpAddr::V4(own)) => build::arp_reply(&l2, who, own),
            (IpAddr::V6(who), IpAddr::V6(own)) => build::neighbour_advertise(&l2, who, own),
            _ => panic!("of one family"),
        };
        let (mut packet, mut frame) = (parse::parse(&answer).expect("it is right"), answer);
        translator.inbound(NOW, link, &mut packet, &mut frame);
    };
    for hop in &plan.next_hops {
        hear(Link::Client, *hop, HOP_MAC);
    }
    for leg in LegId::ALL {
        for served in &plan.served {
            hear(Link::Server(leg), served.servers[leg.index()], SERVER_MACS[leg.index()]);
        }
    }
    while translator.poll_output().is_some() {}
    translator
}

/// A packet of `talk`, complete.
fn packet(link: Link, mac: Mac, talk: Talk, ends: Ends, is_answer: bool, data: &[u8]) -> Frame {
    let l2 = L2 { dst: GATEWAY_MACS[link.index()], src: mac, vlans: Vlans::default() };
    let (src, dst) = (ends.src.ip(), ends.dst.ip());
    let l3 = L3 { src, dst, ttl: 60, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
    let (src_port, dst_port) = (ends.src.port(), ends.dst.port());
    let (protocol, field, mut message) = match talk {
        Talk::Tcp => {
            let fields = TcpFields {
                src_port,
                dst_port,
                seq: 1,
                ack: 2,
                flags: TcpFlags::ACK,
                window: 1000,
                urgent: 0,
                options: TcpOptions::default(),
            };
            let data = Bytes::copy_from_slice(data);
            let mut frame = build::tcp(&l2, &l3, &fields, data, u16::MAX);
            checksum::complete(&mut frame);
            return frame;
        }
        Talk::Udp => {
            let len = 8 + data.len() as u16;
            (17, 6, [src_port, dst_port, len, 0].map(u16::to_be_bytes).concat())
        }
        Talk::Echo => {
            let (protocol, kinds) = if src.is_ipv4() { (1, [8, 0]) } else { (58, [128, 129]) };
            let id = if is_answer { dst_port } else { src_port };
            let kind: u16 = kinds[usize::from(is_answer)] << 8;
            (protocol, 2, [kind, 0, id, 7].map(u16::to_be_bytes).concat())
        }
    };
    message.extend_from_slice(data);
    let sum = match protocol {
        1 => Sum::new(),
        _ => pseudo_header(src, dst, protocol, message.len()),
    };
    let check = match (protocol, sum.bytes(&message).check()) {
        (17, 0) => 0xffff,
        (_, check) => check,
    };
    message[field..field + 2].copy_from_slice(&check.to_be_bytes());
    build::datagram(&l2, &l3, protocol, &message)
}

/// What the engine is given, with its frame; it says what that says.
fn inbound(
    translator: &mut Translator,
    link: Link,
    frame: Frame,
) -> Result<(Packet, Frame), Inbound> {
    let (mut packet, mut frame) = (parse::parse(&frame).expect("it is right"), frame);
    match translator.inbound(NOW, link, &mut packet, &mut frame) {
        Inbound::Deliver => {
            assert_eq!(parse::parse(&frame), Ok(packet), "both say the same");
            Ok((packet, frame))
        }
        other => Err(other),
    }
}

/// What leaves for a frame of the engine.
fn outbound(translator: &mut Translator, link: Link, frame: Frame) -> Frame {
    translator.outbound(NOW, Output::Transmit(link, frame));
    let Some(Output::Transmit(to, frame)) = translator.poll_output() else {
        panic!("it leaves at once");
    };
    assert_eq!((to, translator.poll_output()), (link, None));
    parse::parse(&frame).expect("its checksums are right");
    frame
}

fn ends_of(frame: &Frame) -> Ends {
    Addressed::of(frame).expect("it is whole").ends
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn an_answer_comes_back_as_the_services(
        is_v4: bool, which in 0usize..2, is_source_client: bool,
        talk in prop::sample::select(TALKS.to_vec()),
        tail: [u8; 3],
        from in 1u16..,
        to in prop_oneof![Just(8080u16), Just(443), Just(22), 1u16..],
        data in vec(any::<u8>(), 0..40),
    ) {
        prop_assume!(!matches!((talk, to), (Talk::Tcp, 80 | 4443)));
        let source = if is_source_client { Source::Client } else { Source::Gateway };
        let (plan, mut translator) = (plan(source), translator(source));
        let [a, b, c] = tail;
        let client = match is_v4 {
            true => IpAddr::from([203, a, b, c]),
            false => {
                let last = u16::from_be_bytes([b, c]);
                IpAddr::from([0x2001, 0xdb9, 0, 0, 0, 0, u16::from(a), last])
            }
        };
        let served = plan.served[which + if is_v4 { 0 } else { 2 }];
        let to = if talk == Talk::Echo { 0 } else { to };
        let (src, dst) = (SocketAddr::new(client, from), SocketAddr::new(served.service, to));
        let asked = Ends { src, dst };
        let question = packet(Link::Client, HOP_MAC, talk, asked, false, &data);
        let (_, inner) = inbound(&mut translator, Link::Client, question).expect("it is served");
        prop_assert_eq!(ends_of(&inner), asked, "on the client's side nothing is renamed");
        let mut seen = Vec::new();
        for leg in LegId::ALL {
            let link = Link::Server(leg);
            let left = outbound(&mut translator, link, inner.clone());
            let there = ends_of(&left);
            prop_assert_eq!(there.dst.ip(), served.servers[leg.index()]);
            prop_assert_eq!(left.body().clone(), inner.body().clone());
            match source {
                Source::Client => prop_assert_eq!(there.src, asked.src),
                Source::Gateway => {
                    prop_assert_eq!(Some(there.src.ip()), plan.own_of(leg, client));
                    seen.push(there.src.port());
                }
            }
            let mac = SERVER_MACS[leg.index()];
            let answer = packet(link, mac, talk, there.reversed(), true, &data);
            let (_, back) = inbound(&mut translator, link, answer).expect("it is an answer");
            prop_assert_eq!(ends_of(&back), asked.reversed());
            let shown = outbound(&mut translator, Link::Client, back);
            prop_assert_eq!(ends_of(&shown), asked.reversed());
        }
        seen.dedup();
        prop_assert!(seen.len() <= 1, "the same port on both legs");
    }

    /// Whatever parses is taken or refused, on every link, and what is taken is consistent.
    #[test]
    fn any_packet_is_survived(
        bytes in vec(any::<u8>(), 14..120),
        kind in prop::sample::select(vec![[8u8, 0, 0x45], [0x86, 0xdd, 0x60], [8, 6, 0]]),
        protocol in prop::sample::select(vec![1u8, 6, 17, 58, 47]),
        ends in prop::sample::select(vec![
            ([203, 0, 113, 1], [192, 0, 2, 10]), ([10, 1, 0, 10], [203, 0, 113, 1]),
            ([10, 1, 0, 10], [10, 1, 0, 1]), ([192, 0, 2, 1], [192, 0, 2, 11]),
        ]),
        link in prop::sample::select(Link::ALL.to_vec()),
        is_source_client: bool, data_valid: bool,
    ) {
        let source = if is_source_client { Source::Client } else { Source::Gateway };
        let mut translator = translator(source);
        let mut bytes = bytes;
        bytes[..6].copy_from_slice(&GATEWAY_MACS[link.index()].0);
        bytes[6] &= 0xfe;
        bytes[12..14].copy_from_slice(&kind[..2]);
        if bytes.len() > 60 && kind[2] == 0x45 {
            let len = bytes.len() as u16 - 14;
            bytes[14..18].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
            bytes[20..24].copy_from_slice(&[0, 0, 64, protocol]);
            bytes[26..30].copy_from_slice(&ends.0);
            bytes[30..34].copy_from_slice(&ends.1);
            bytes[24..26].fill(0);
            let check = Sum::new().bytes(&bytes[14..34]).check();
            bytes[24..26].copy_from_slice(&check.to_be_bytes());
        }
        let offload = Offload { data_valid, ..Offload::default() };
        let mut frame = Frame::from_wire(Bytes::from(bytes), offload);
        let Ok(mut packet) = parse::parse(&frame) else { return Ok(()) };
        if matches!(packet, Packet::Fragment(_)) {
            return Ok(());
        }
        if translator.inbound(NOW, link, &mut packet, &mut frame) == Inbound::Deliver {
            prop_assert_eq!(parse::parse(&frame), Ok(packet));
            for to in Link::ALL {
                translator.outbound(NOW, Output::Transmit(to, frame.clone()));
            }
        }
        while translator.poll_output().is_some() {}
    }
}
