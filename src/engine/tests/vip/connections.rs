//! Connections and their ends on each link: handshakes, failover, ports, restarts, probes.

use super::*;

#[test]
fn a_connection_has_each_servers_own_addresses_on_its_link_and_the_services_on_the_clients() {
    for (net, source) in NETS.into_iter().flat_map(|n| SOURCES.map(|s| (n, s))) {
        let mut world = World::new(vip(source, &[net]));
        let talker = Talker::new(net, source);
        talker.client(&mut world, say(SYN, CLIENT_ISS, 0).mss(1460));
        let ports: Vec<u16> = LegId::ALL.map(|leg| talker.seen_by(&world, leg).port()).into();
        assert_eq!(ports[0], ports[1], "one pair of ends on both");
        for leg in LegId::ALL {
            let i = leg.index();
            let dst = SocketAddr::new(net.servers[i], 80);
            let heard = world.on(Link::Server(leg));
            assert_eq!(heard.len(), 1);
            let src = match source {
                Source::Client => talker.client,
                Source::Gateway => SocketAddr::new(net.own[i], ports[i]),
            };
            assert_eq!(seen(&heard[0]), (src, dst, SERVER_MACS[i], 63), "a router's hop less");
            talker.leg(&mut world, leg, say(SYN_ACK, ISS[i], R).mss(1460));
        }
        let shown = world.on(Link::Client);
        let service = SocketAddr::new(net.service, 80);
        assert_eq!(shown.len(), 1);
        assert_eq!(seen(&shown[0]), (service, talker.client, CLIENT_MAC, 63));
        talker.client(&mut world, say(ACK, R, P));
        talker.client(&mut world, say(ACK, R, P).data("GET"));
        world.forget_but_ports();
        talker.leg(&mut world, A, say(ACK, P, R + 3).data("answer"));
        assert!(world.on(Link::Client).is_empty(), "one server is not enough");
        talker.leg(&mut world, B, say(ACK, Q, R + 3).data("answer"));
        let shown = world.on(Link::Client);
        assert_eq!(shown.iter().flat_map(|h| h.data.clone()).collect::<Vec<_>>(), b"answer");
        assert_eq!(world.engine.status().service, ServiceState::Protected);
    }
}

#[test]
fn the_survivor_carries_on_when_the_primary_dies() {
    for (net, source) in NETS.into_iter().flat_map(|n| SOURCES.map(|s| (n, s))) {
        let mut world = World::new(vip(source, &[net]));
        let talker = Talker::new(net, source);
        talker.establish(&mut world);
        talker.client(&mut world, say(ACK, R, P).data("GET"));
        world.input(Input::Signal(TO_A, Signal::CarrierDown));
        assert_eq!(world.engine.status().roles.primary, B);
        world.forget_but_ports();
        talker.leg(&mut world, B, say(ACK, Q, R + 3).data("answer"));
        let shown = world.on(Link::Client);
        assert_eq!(
            (shown.len(), shown[0].seg.seq, shown[0].data.as_slice()),
            (1, P, &b"answer"[..])
        );
        let service = SocketAddr::new(net.service, 80);
        assert_eq!((shown[0].seg.src(), shown[0].seg.dst()), (service, talker.client));
    }
}

#[test]
fn a_port_of_the_service_may_be_another_one_of_the_servers() {
    for source in SOURCES {
        let mut world = World::new(vip(source, &[V4]));
        let talker = Talker { port: (8080, 81), ..Talker::new(V4, source) };
        talker.establish(&mut world);
        assert!(world.on(TO_A).iter().all(|heard| heard.seg.dst_port == 81));
        assert!(world.on(Link::Client).iter().all(|heard| heard.seg.src_port == 8080));
        world.forget();
        // The servers' 81 is no other port of the service, and their 8080 is none of it.
        let taken = Talker { port: (81, 81), ..Talker::new(V4, source) };
        taken.client(&mut world, say(SYN, 5, 0));
        assert_eq!(world.refused(Link::Client), [RejectReason::NotServed]);
        assert!(world.on(TO_A).is_empty());
    }
}

/// A second server takes part again by a handshake of the gateway's own: with that server's own
/// address and port, and the ends that the connection has there.
#[test]
fn a_connection_comes_back_under_protection_with_each_servers_own_addresses() {
    const ASKED: &str = "GET / HTTP/1.1\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const NEW: u32 = 777_000;
    let (r, p, q) = (R + ASKED.len() as u32, P + OK.len() as u32, Q + OK.len() as u32);
    for (net, source) in NETS.into_iter().flat_map(|n| SOURCES.map(|s| (n, s))) {
        let rules = Rules::headers(["date"]);
        let config = EngineConfig { reprotect: Reprotect::Idle, rules, ..vip(source, &[net]) };
        let mut world = World::new(config);
        let talker = Talker { port: (8080, 81), ..Talker::new(net, source) };
        talker.establish(&mut world);
        let before = talker.seen_by(&world, A);
        talker.client(&mut world, say(ACK, R, P).data(ASKED));
        talker.leg(&mut world, A, say(ACK, P, r).data(OK));
        talker.leg(&mut world, B, say(ACK, Q, r).data(OK));
        talker.client(&mut world, say(ACK, r, p));
        world.input(Input::Command(1, Command::Failover { to: Some(B), is_planned: false }));
        world.wait_ms(50);
        world.forget_but_ports();
        world.input(Input::Command(2, Command::Rejoin(A)));
        world.wait_ms(5);
        let is_it = |h: &Heard| h.seg.flags == SYN && h.seg.src() == before && h.seg.seq == r - 1;
        let asked: Vec<_> = world.on(TO_A).into_iter().filter(is_it).map(|h| h.seg.dst()).collect();
        assert_eq!(asked, [SocketAddr::new(net.servers[0], 81)], "{source:?}");
        talker.leg(&mut world, A, say(SYN_ACK, NEW, r).mss(1460));
        assert_eq!(world.engine.flows(1)[0].state, FlowState::Paired, "{source:?}");
        world.forget_but_ports();
        talker.client(&mut world, say(ACK, r, p).data(ASKED));
        let next = r + ASKED.len() as u32;
        talker.leg(&mut world, A, say(ACK, NEW + 1, next).data(OK));
        assert!(world.on(Link::Client).is_empty(), "one server is not enough");
        talker.leg(&mut world, B, say(ACK, q, next).data(OK));
        let shown: Vec<u8> = world.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
        assert_eq!(shown, OK.as_bytes());
    }
}

#[test]
fn a_connection_that_the_gateway_has_no_port_of_is_reset() {
    let mut world = World::new(vip(Source::Gateway, &[V4]));
    let ends =
        Ends { src: SocketAddr::new(V4.servers[1], 80), dst: SocketAddr::new(V4.own[1], 2000) };
    world.frame(TO_B, segment(TO_B, SERVER_MACS[1], ends, &say(ACK, 77, 88)));
    let reset = &world.on(TO_B)[0].seg;
    assert_eq!((reset.flags, reset.seq, reset.dst()), (RST, 88, ends.src));
    assert!(world.on(Link::Client).is_empty());
}

#[test]
fn a_restarted_gateway_knows_its_ports_again() {
    for (net, source) in NETS.into_iter().flat_map(|n| SOURCES.map(|s| (n, s))) {
        let mut world = World::new(vip(source, &[net]));
        let talker = Talker::new(net, source);
        // An earlier connection, so that the next one's port is not the first there is.
        let earlier =
            Talker { client: SocketAddr::new(net.client, 39_999), ..Talker::new(net, source) };
        earlier.client(&mut world, say(SYN, 5, 0));
        talker.client(&mut world, say(SYN, CLIENT_ISS, 0).mss(1460));
        for leg in LegId::ALL {
            talker.leg(&mut world, leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
        }
        talker.client(&mut world, say(ACK, R, P));
        let ends = LegId::ALL.map(|leg| talker.seen_by(&world, leg));
        let mut again = World::asleep(vip(source, &[net]), world.records.clone());
        again.wait_ms(30);
        for leg in LegId::ALL {
            assert_eq!(talker.seen_by(&again, leg), ends[leg.index()]);
        }
        // The client and both servers tell where they are, and it goes on.
        talker.leg(&mut again, A, say(ACK, P, R));
        talker.leg(&mut again, B, say(ACK, Q, R));
        talker.client(&mut again, say(ACK, R, P));
        again.forget_but_ports();
        talker.leg(&mut again, A, say(ACK, P, R).data("on"));
        talker.leg(&mut again, B, say(ACK, Q, R).data("on"));
        let shown = again.on(Link::Client);
        assert_eq!(shown.iter().flat_map(|h| h.data.clone()).collect::<Vec<_>>(), b"on");
    }
}

#[test]
fn the_same_client_may_come_again_on_the_same_port() {
    for source in SOURCES {
        let mut world = World::new(vip(source, &[V4]));
        let talker = Talker::new(V4, source);
        talker.establish(&mut world);
        for (leg, seq) in [(A, P), (B, Q)] {
            talker.leg(&mut world, leg, say(FIN, seq, R));
        }
        talker.client(&mut world, say(FIN, R, P + 1));
        for (leg, seq) in [(A, P), (B, Q)] {
            talker.leg(&mut world, leg, say(ACK, seq + 1, R + 1));
        }
        assert_eq!(world.engine.flows(1)[0].state, FlowState::TimeWait);
        let before = talker.seen_by(&world, A);
        world.forget();
        talker.client(&mut world, say(SYN, 900_000, 0).mss(1460));
        assert_eq!(talker.seen_by(&world, A), before, "as it would be without a gateway");
        assert_eq!(world.engine.flows(1)[0].state, FlowState::Opening);
    }
}

#[test]
fn a_range_of_ports_that_is_used_up_refuses_new_connections_and_spares_the_others() {
    let mut world = World::new(vip(Source::Gateway, &[V4]));
    let talker = Talker::new(V4, Source::Gateway);
    talker.establish(&mut world);
    world.forget_but_ports();
    // Passing connections to a port that is not protected take all ports of that one only.
    let mut refused = 0;
    for n in 0..PORTS.len() as u32 + 10 {
        let ip = v4(172, 16 + (n >> 16) as u8, (n >> 8) as u8, n as u8);
        let ends = Ends { src: SocketAddr::new(ip, 1000), dst: SocketAddr::new(V4.service, 22) };
        world.events.clear();
        world.left.truncate(8);
        world.frame(Link::Client, segment(Link::Client, HOP_MAC, ends, &say(SYN, 1, 0)));
        refused += usize::from(world.refused(Link::Client) == [RejectReason::NoPort]);
    }
    assert_eq!(refused, 10);
    let other =
        Talker { client: SocketAddr::new(V4.client, 40_001), ..Talker::new(V4, Source::Gateway) };
    world.forget();
    other.client(&mut world, say(SYN, 5, 0).mss(1460));
    assert_eq!(world.on(TO_A).len(), 1, "the protected port has a range of its own");
    talker.client(&mut world, say(ACK, R, P).data("x"));
    assert_eq!(world.on(TO_B).iter().filter(|heard| heard.data == b"x").count(), 1);
}

#[test]
fn passthrough_translates_too_and_asks_nobody_but_the_primary() {
    let plan = vip(Source::Client, &[V4]);
    let mut world = World::new(EngineConfig { mode: Mode::Passthrough, ..plan });
    let talker = Talker::new(V4, Source::Client);
    talker.client(&mut world, say(SYN, CLIENT_ISS, 0).mss(1460));
    assert_eq!((world.on(TO_A).len(), world.on(TO_B).len()), (1, 0));
    talker.leg(&mut world, A, say(SYN_ACK, ISS[0], R));
    let service = SocketAddr::new(V4.service, 80);
    assert_eq!(seen(&world.on(Link::Client)[0]), (service, talker.client, CLIENT_MAC, 63));
}

#[test]
fn other_networks_need_a_restart() {
    let mut world = World::new(vip(Source::Client, &[V4]));
    let reload = Command::Reload(Box::new(vip(Source::Gateway, &[V4])));
    world.input(Input::Command(1, reload));
    let is_refused = |event: &Event| matches!(event, Event::CommandDone { result: Err(_), .. });
    assert!(world.events.iter().any(is_refused));
}

#[test]
fn probes_come_from_the_gateways_own_address_before_any_client_has() {
    for net in NETS {
        let mut world = World::asleep(vip(Source::Client, &[net]), Vec::new());
        world.wait_ms(30);
        for leg in LegId::ALL {
            let i = leg.index();
            let is_probe = |left: &&Left| {
                let Packet::Tcp(seg) = left.packet else { return false };
                left.link == Link::Server(leg) && seg.flags == TcpFlags::SYN
            };
            let Some(probe) = world.left.iter().find(is_probe) else { panic!("a probe") };
            let Packet::Tcp(seg) = probe.packet else { panic!("a segment") };
            assert_eq!((seg.l3.src, seg.dst()), (net.own[i], SocketAddr::new(net.servers[i], 80)));
            world.left.retain(|left| left.link != Link::Server(leg));
            let ends = Ends { src: seg.dst(), dst: seg.src() };
            let answer = say(SYN_ACK, 1, seg.seq.wrapping_add(1)).mss(1460);
            let link = Link::Server(leg);
            world.frame(link, segment(link, SERVER_MACS[i], ends, &answer));
            let ended = world.left.iter().any(|left| {
                let Packet::Tcp(end) = left.packet else { return false };
                (end.flags, end.src()) == (RST, seg.src())
            });
            assert!(ended, "by an exact reset, which nobody else hears");
            assert!(world.on(Link::Client).is_empty());
        }
    }
}
