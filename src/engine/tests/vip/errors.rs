//! ICMP in both directions: errors and what they quote, echoes.

use super::*;

/// An ICMP message around `body`, whose first four bytes it makes.
fn icmp(link: Link, mac: Mac, (src, dst): (IpAddr, IpAddr), head: [u8; 2], body: &[u8]) -> Frame {
    let mut message = vec![head[0], head[1], 0, 0];
    message.extend_from_slice(body);
    let (protocol, sum) = match src {
        IpAddr::V4(_) => (1, Sum::new()),
        IpAddr::V6(_) => (58, pseudo_header(src, dst, 58, message.len())),
    };
    let check = sum.bytes(&message).check();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    build::datagram(&l2(link, mac), &l3(src, dst), protocol, &message)
}

#[test]
fn an_error_about_what_the_client_was_sent_reaches_each_server_about_its_own_packet() {
    for (net, source) in NETS.into_iter().flat_map(|n| SOURCES.map(|s| (n, s))) {
        let mut world = World::new(vip(source, &[net]));
        let talker = Talker::new(net, source);
        talker.establish(&mut world);
        for (leg, seq) in [(A, P), (B, Q)] {
            talker.leg(&mut world, leg, say(ACK, seq, R).data(vec![7; 1400]));
        }
        let big = world.left.iter().rfind(|left| left.link == Link::Client).expect("it was shown");
        let quote = &big.frame.to_vec()[14..14 + 60];
        let body = [&1300u32.to_be_bytes()[..], quote].concat();
        let head = if net.client.is_ipv4() { [3, 4] } else { [2, 0] };
        // From a router, as those are.
        let error = icmp(Link::Client, HOP_MAC, (net.hop, net.service), head, &body);
        let ports = LegId::ALL.map(|leg| talker.seen_by(&world, leg).port());
        world.frame(Link::Client, error);
        for leg in LegId::ALL {
            let i = leg.index();
            let is_error = |left: &&Left| {
                let Packet::Icmp(icmp) = left.packet else { return false };
                left.link == Link::Server(leg) && matches!(icmp.kind, IcmpKind::TooBig { .. })
            };
            let told = world.left.iter().find(is_error).expect("it is told");
            let read = Addressed::of(&told.frame).expect("it is whole");
            let client = talker.seen_by(&world, leg);
            assert_eq!(client.port(), ports[i]);
            let want = Ends { src: SocketAddr::new(net.servers[i], 80), dst: client };
            assert_eq!(read.quoted, Some((Talk::Tcp, want)));
            let from = if source == Source::Client { net.hop } else { net.own[i] };
            assert_eq!((read.ends.src.ip(), read.ends.dst.ip()), (from, net.servers[i]));
            let Packet::Icmp(icmp) = told.packet else { panic!("a message") };
            let IcmpKind::TooBig { mtu, quote: Some(quote) } = icmp.kind else {
                panic!("with one")
            };
            assert_eq!((mtu, quote.seq), (1300, [P, Q][i]), "in its own numbers");
        }
    }
}

#[test]
fn an_error_of_a_servers_link_reaches_the_client_about_the_service() {
    for (net, source) in NETS.into_iter().flat_map(|n| SOURCES.map(|s| (n, s))) {
        let mut world = World::new(vip(source, &[net]));
        let talker = Talker::new(net, source);
        talker.establish(&mut world);
        talker.client(&mut world, say(ACK, R, P).data("x"));
        let sent = world.left.iter().rfind(|left| {
            let Packet::Tcp(seg) = left.packet else { return false };
            left.link == TO_A && (seg.dst_port, seg.payload_len) == (80, 1)
        });
        let quote = sent.expect("it was sent").frame.to_vec()[14..].to_vec();
        let body = [&[0, 0, 0, 0][..], &quote].concat();
        // Administratively prohibited: no sign of a server that is away.
        let head = if net.client.is_ipv4() { [3, 13] } else { [1, 1] };
        let to = talker.seen_by(&world, A).ip();
        world.forget_but_ports();
        world.frame(TO_A, icmp(TO_A, SERVER_MACS[0], (net.servers[0], to), head, &body));
        let is_error =
            |left: &&Left| left.link == Link::Client && matches!(left.packet, Packet::Icmp(_));
        let told = world.left.iter().find(is_error).expect("it is told");
        let read = Addressed::of(&told.frame).expect("it is whole");
        assert_eq!((read.ends.src.ip(), read.ends.dst.ip()), (net.service, net.client));
        let service = SocketAddr::new(net.service, 80);
        assert_eq!(read.quoted, Some((Talk::Tcp, Ends { src: talker.client, dst: service })));
        // About somebody else's packet it reaches nobody.
        world.forget_but_ports();
        let mut forged = body.clone();
        let at = 4 + if net.client.is_ipv4() { 20 } else { 40 };
        forged[at] ^= 0xff;
        let other = icmp(TO_A, SERVER_MACS[0], (net.servers[0], net.client), head, &forged);
        let hears = source == Source::Client;
        world.frame(TO_A, other);
        assert_eq!(world.left.iter().any(|left| left.link == Link::Client), hears);
    }
}

#[test]
fn an_echo_is_answered_by_the_servers_and_by_the_gateway_for_itself() {
    for (net, source) in NETS.into_iter().flat_map(|n| SOURCES.map(|s| (n, s))) {
        let mut world = World::new(vip(source, &[net]));
        let heads = if net.client.is_ipv4() { [[8, 0], [0, 0]] } else { [[128, 0], [129, 0]] };
        let body = [0x12, 0x34, 0, 1, 9, 9];
        let request = icmp(Link::Client, CLIENT_MAC, (net.client, net.service), heads[0], &body);
        world.frame(Link::Client, request);
        for leg in LegId::ALL {
            let i = leg.index();
            let link = Link::Server(leg);
            let is_echo =
                |left: &&Left| left.link == link && matches!(left.packet, Packet::Icmp(_));
            let asked = world.left.iter().find(is_echo).expect("both are asked").clone();
            let Packet::Icmp(icmp_in) = asked.packet else { panic!("a message") };
            let IcmpKind::EchoRequest { id, .. } = icmp_in.kind else { panic!("a request") };
            assert_eq!(icmp_in.l3.dst, net.servers[i]);
            assert_eq!(
                (source == Source::Client, icmp_in.l3.src == net.client),
                (id == 0x1234, id == 0x1234)
            );
            let [x, y] = id.to_be_bytes();
            let back = (net.servers[i], icmp_in.l3.src);
            world.frame(link, icmp(link, SERVER_MACS[i], back, heads[1], &[x, y, 0, 1, 9, 9]));
        }
        let answers: Vec<&Left> = world
            .left
            .iter()
            .filter(|left| left.link == Link::Client && matches!(left.packet, Packet::Icmp(_)))
            .collect();
        assert_eq!(answers.len(), 1, "once");
        let Packet::Icmp(answer) = answers[0].packet else { panic!("a message") };
        assert_eq!(answer.kind, IcmpKind::EchoReply { id: 0x1234, seq: 1 });
        assert_eq!((answer.l3.src, answer.l3.dst), (net.service, net.client));
        // A server that asks the gateway itself.
        world.forget();
        world
            .frame(TO_A, icmp(TO_A, SERVER_MACS[0], (net.servers[0], net.own[0]), heads[0], &body));
        let Packet::Icmp(answer) = world.left.last().expect("an answer").packet else { panic!() };
        assert_eq!((answer.l3.src, answer.l3.dst), (net.own[0], net.servers[0]));
        assert_eq!(answer.l2.dst, SERVER_MACS[0]);
    }
}
