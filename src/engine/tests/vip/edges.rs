//! The gateway as a host and a router: who is answered, found, refused.

use super::*;

#[test]
fn clients_beyond_the_clients_network_are_reached_by_the_next_hop() {
    for net in NETS {
        let mut world = World::new(vip(Source::Client, &[net]));
        let client = SocketAddr::new(net.far, 40_000);
        let talker = Talker { client, ..Talker::new(net, Source::Client) };
        talker.establish(&mut world);
        let shown = &world.on(Link::Client)[0];
        assert_eq!(seen(shown).2, HOP_MAC);
        assert!(matches!(
            world.neighbour(net.hop),
            Some(NeighbourState::Resolved { mac: HOP_MAC, .. })
        ));
    }
}

#[test]
fn the_service_is_announced_and_answered_for_and_nobody_else_is() {
    let mut world = World::asleep(vip(Source::Client, &NETS), Vec::new());
    let announced = |world: &World, link| {
        let own = |left: &&Left| match left.packet {
            Packet::Arp(arp) => left.link == link && arp.sender == arp.target,
            Packet::Nd(nd) => {
                left.link == link
                    && matches!(nd.kind, NdKind::Advertise { .. })
                    && nd.l3.dst.is_multicast()
            }
            _ => false,
        };
        world.left.iter().filter(own).count()
    };
    assert_eq!((announced(&world, Link::Client), announced(&world, TO_A)), (2, 2));
    world.wait_ms(3000);
    assert_eq!((announced(&world, Link::Client), announced(&world, TO_B)), (6, 6), "three times");
    world.forget();
    world.input(Input::Signal(Link::Client, Signal::CarrierDown));
    world.come(Link::Client);
    assert_eq!(announced(&world, Link::Client), 2, "and when the link returns");

    let ask = |world: &mut World, link: Link, asker: IpAddr, mac: Mac, target: IpAddr| {
        world.forget();
        let frame = match (asker, target) {
            (IpAddr::V4(asker), IpAddr::V4(target)) => {
                let l2 = L2 { dst: Mac::BROADCAST, ..l2(link, mac) };
                build::arp_request(&l2, asker, target)
            }
            (IpAddr::V6(asker), IpAddr::V6(target)) => {
                let l2 = L2 { dst: build::solicited_node_mac(target), ..l2(link, mac) };
                build::neighbour_solicit(&l2, asker, target)
            }
            _ => panic!("of one family"),
        };
        world.frame(link, frame);
        let is_answer = |left: &&Left| match left.packet {
            Packet::Arp(arp) => !arp.is_request && arp.sender == target,
            Packet::Nd(nd) => matches!(nd.kind, NdKind::Advertise { target: t, .. } if t == target),
            _ => false,
        };
        world.left.iter().filter(|left| left.link == link).filter(is_answer).count()
    };
    for net in NETS {
        let server = SERVER_MACS[0];
        assert_eq!(ask(&mut world, Link::Client, net.client, CLIENT_MAC, net.service), 1);
        assert_eq!(ask(&mut world, Link::Client, net.client, CLIENT_MAC, net.hop), 0);
        assert_eq!(ask(&mut world, Link::Client, net.client, CLIENT_MAC, net.servers[0]), 0);
        assert_eq!(ask(&mut world, TO_A, net.servers[0], server, net.own[0]), 1);
        assert_eq!(ask(&mut world, TO_A, net.servers[0], server, net.client), 1, "the way to it");
        assert_eq!(ask(&mut world, TO_A, net.servers[0], server, net.own[1]), 0);
        assert_eq!(ask(&mut world, TO_A, net.servers[0], server, net.servers[1]), 0);
        // Who looks whether an address is free hears of our own only.
        let nobody =
            if net.client.is_ipv4() { v4(0, 0, 0, 0) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        assert_eq!(ask(&mut world, Link::Client, nobody, CLIENT_MAC, net.service), 1);
        assert_eq!(ask(&mut world, TO_A, nobody, server, net.client), 0);
    }
    let mut hidden = World::new(vip(Source::Gateway, &NETS));
    assert_eq!(ask(&mut hidden, TO_A, V4.servers[0], SERVER_MACS[0], V4.client), 0);
}

#[test]
fn an_address_that_somebody_else_claims_is_defended_and_believed_to_nobody() {
    let mut world = World::new(vip(Source::Client, &[V4]));
    let IpAddr::V4(service) = V4.service else { panic!("IPv4") };
    let thief = Mac([2, 0, 0, 0, 6, 6]);
    let claim = build::arp_request(
        &L2 { dst: Mac::BROADCAST, ..l2(Link::Client, thief) },
        service,
        service,
    );
    world.frame(Link::Client, claim.clone());
    assert_eq!(world.refused(Link::Client), [RejectReason::WrongLink]);
    let defended = |world: &World| {
        let is = |left: &&Left| matches!(left.packet, Packet::Arp(arp) if arp.sender == V4.service);
        world.left.iter().filter(is).count()
    };
    assert_eq!(defended(&world), 1);
    world.frame(Link::Client, claim);
    assert_eq!(defended(&world), 1, "seldom");
}

#[test]
fn a_server_that_is_not_found_is_asked_for_and_told_of() {
    let mut world = World::with(vip(Source::Client, &[V4]), Vec::new(), [false, true]);
    let is_resolving = |state| matches!(state, Some(NeighbourState::Resolving { .. }));
    assert!(is_resolving(world.neighbour(V4.servers[1])));
    assert_eq!(world.neighbour(V4.hop).map(|state| is_resolving(Some(state))), Some(false));
    world.wait_ms(1200);
    assert!(matches!(world.neighbour(V4.servers[1]), Some(NeighbourState::Failed { .. })));
    let states = world.engine.status().servers;
    assert_eq!(states, [ServerState::Up, ServerState::Unknown]);
    world.mute = [false; 2];
    world.wait_ms(1200);
    let found = world.neighbour(V4.servers[1]);
    assert!(matches!(found, Some(NeighbourState::Resolved { mac, .. }) if mac == SERVER_MACS[1]));
    assert_eq!(world.engine.status().servers, [ServerState::Up; 2]);
}

#[test]
fn what_waits_for_a_client_leaves_when_it_answers_and_not_before() {
    let mut world = World::new(vip(Source::Client, &[V4]));
    world.is_client_mute = true;
    let talker = Talker::new(V4, Source::Client);
    talker.client(&mut world, say(SYN, CLIENT_ISS, 0).mss(1460));
    for leg in LegId::ALL {
        talker.leg(&mut world, leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
    }
    assert!(world.on(Link::Client).is_empty(), "nobody knows where it is");
    let (IpAddr::V4(client), IpAddr::V4(service)) = (V4.client, V4.service) else { panic!("IPv4") };
    let reply = build::arp_reply(&l2(Link::Client, CLIENT_MAC), client, service);
    world.frame(Link::Client, reply);
    assert_eq!(world.on(Link::Client).len(), 1);
    assert_eq!(seen(&world.on(Link::Client)[0]).2, CLIENT_MAC);
}

#[test]
fn hops_are_counted_and_the_last_one_ends_here() {
    let mut world = World::new(vip(Source::Client, &[V4]));
    let ends =
        Ends { src: SocketAddr::new(V4.client, 40_000), dst: SocketAddr::new(V4.service, 80) };
    let syn = segment(Link::Client, CLIENT_MAC, ends, &say(SYN, 1, 0));
    for (hops, reason) in [(1, vec![RejectReason::HopsUsedUp]), (2, Vec::new())] {
        world.forget();
        let mut frame = syn.clone();
        Addressed::of(&frame).expect("it is whole").set_hops(&mut frame, hops);
        world.frame(Link::Client, frame);
        assert_eq!(world.refused(Link::Client), reason);
    }
    assert_eq!(world.on(TO_A)[0].seg.l3.ttl, 1);
}

#[test]
fn frames_that_belong_nowhere_go_nowhere() {
    let at = |ip, port| SocketAddr::new(ip, port);
    let cases = [
        // To an address that is not the service's.
        (Link::Client, CLIENT_MAC, at(V4.client, 4000), at(V4.hop, 80), RejectReason::NotForUs),
        (
            Link::Client,
            CLIENT_MAC,
            at(V4.client, 4000),
            at(V4.servers[0], 80),
            RejectReason::NotForUs,
        ),
        // In the name of somebody behind the gateway.
        (
            Link::Client,
            CLIENT_MAC,
            at(V4.servers[0], 4000),
            at(V4.service, 80),
            RejectReason::WrongLink,
        ),
        (
            Link::Client,
            CLIENT_MAC,
            at(V4.own[1], 4000),
            at(V4.service, 80),
            RejectReason::WrongLink,
        ),
        (
            Link::Client,
            CLIENT_MAC,
            at(v4(10, 1, 0, 77), 4000),
            at(V4.service, 80),
            RejectReason::WrongLink,
        ),
        // The gateway's own frame, back by a loop.
        (
            Link::Client,
            GATEWAY_MACS[0],
            at(V4.client, 4000),
            at(V4.service, 80),
            RejectReason::WrongLink,
        ),
        // A stranger on a server's link, and a server on the other one's.
        (
            TO_A,
            SERVER_MACS[0],
            at(v4(10, 1, 0, 77), 80),
            at(V4.client, 4000),
            RejectReason::NotForUs,
        ),
        (TO_B, SERVER_MACS[0], at(V4.servers[0], 80), at(V4.client, 4000), RejectReason::NotForUs),
        // To the other server, and to the service from inside.
        (
            TO_A,
            SERVER_MACS[0],
            at(V4.servers[0], 80),
            at(V4.servers[1], 4000),
            RejectReason::NotForUs,
        ),
        (TO_A, SERVER_MACS[0], at(V4.servers[0], 80), at(V4.service, 4000), RejectReason::NotForUs),
    ];
    for (link, mac, src, dst, reason) in cases {
        let mut world = World::new(vip(Source::Client, &[V4]));
        world.frame(link, segment(link, mac, Ends { src, dst }, &say(SYN, 1, 0)));
        assert_eq!(world.refused(link), [reason], "{link:?} {src} -> {dst}");
        assert!(world.left.is_empty(), "{link:?} {src} -> {dst}: {:?}", world.left);
    }
    // To another Ethernet address, and with a tag.
    let mut world = World::new(vip(Source::Client, &[V4]));
    let ends = Ends { src: at(V4.client, 4000), dst: at(V4.service, 80) };
    let mut other = segment(Link::Client, CLIENT_MAC, ends, &say(SYN, 1, 0));
    other.put(0, &NOBODY.0);
    world.frame(Link::Client, other);
    assert_eq!(world.refused(Link::Client), [RejectReason::NotForUs]);
}

#[test]
fn what_a_server_begins_itself_passes_in_the_services_name() {
    let mut world = World::new(vip(Source::Client, &[V4]));
    let (server, far) = (SocketAddr::new(V4.servers[0], 50_000), SocketAddr::new(V4.far, 443));
    let link = TO_A;
    world.frame(
        link,
        segment(link, SERVER_MACS[0], Ends { src: server, dst: far }, &say(SYN, 9, 0)),
    );
    let shown = &world.on(Link::Client)[0];
    let service = SocketAddr::new(V4.service, 50_000);
    assert_eq!(seen(shown), (service, far, HOP_MAC, 63));
    world.forget();
    let answer = Ends { src: far, dst: service };
    world.frame(Link::Client, segment(Link::Client, HOP_MAC, answer, &say(SYN_ACK, 7, 10)));
    assert_eq!(seen(&world.on(TO_A)[0]), (far, server, SERVER_MACS[0], 63));
    assert!(world.on(TO_B).is_empty(), "the primary's alone");
    // Where the servers see the gateway only, they have another way out.
    let mut world = World::new(vip(Source::Gateway, &[V4]));
    world.frame(
        link,
        segment(link, SERVER_MACS[0], Ends { src: server, dst: far }, &say(SYN, 9, 0)),
    );
    assert!(world.on(Link::Client).is_empty());
}
