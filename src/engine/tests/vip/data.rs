//! Data connections of FTP between servers with addresses of their own.

use super::*;
use crate::engine::{OfferOutcome, Rules};

const GREETING: &str = "220 x\r\n";
/// Where each server listens; the client is shown the first one's.
const LISTENS: [u16; 2] = [1025, 40_001];

fn ftp(source: Source) -> EngineConfig {
    let rules = Rules { ftp_ports: vec![80], ..Rules::default() };
    EngineConfig { rules, ..vip(source, &NETS) }
}

/// Both servers have offered a data connection.
fn offered(net: Net, source: Source, is_extended: bool) -> World {
    let mut world = World::new(ftp(source));
    let control = Talker::new(net, source);
    control.establish(&mut world);
    let first = [P, Q];
    for leg in LegId::ALL {
        control.leg(&mut world, leg, say(ACK, first[leg.index()], R).data(GREETING));
    }
    let command = if is_extended { "EPSV\r\n" } else { "PASV\r\n" };
    control.client(&mut world, say(ACK, R, P + 7).data(command));
    for leg in LegId::ALL {
        let port = LISTENS[leg.index()];
        let own = net.servers[leg.index()].to_string().replace('.', ",");
        let reply = match is_extended {
            true => format!("229 Extended (|||{port}|)\r\n"),
            false => format!("227 Passive ({own},{},{}).\r\n", port / 256, port % 256),
        };
        control.leg(&mut world, leg, say(ACK, first[leg.index()] + 7, R + 6).data(reply));
    }
    assert_eq!(world.engine.flows(1)[0].state, FlowState::Paired);
    let shown: Vec<u8> = world.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    let shown = String::from_utf8(shown).expect("text");
    let service = net.service.to_string().replace('.', ",");
    let expected = match is_extended {
        true => "229 Extended (|||1025|)\r\n".to_owned(),
        false => format!("227 Passive ({service},4,1).\r\n"),
    };
    assert!(shown.ends_with(&expected), "{shown}");
    let is_believed = |event: &Event| {
        matches!(event, Event::DataOffered { port: 1025, outcome: OfferOutcome::Believed, .. })
    };
    assert!(world.events.iter().any(is_believed), "{:?}", world.events);
    world
}

/// The data connection as a server has it.
fn data(net: Net, source: Source, leg: LegId) -> Talker {
    let client = SocketAddr::new(net.client, 50_000);
    Talker { net, source, client, port: (LISTENS[0], LISTENS[leg.index()]) }
}

fn cases() -> impl Iterator<Item = (Net, Source, bool)> {
    let cases = NETS.into_iter().flat_map(|net| SOURCES.map(|source| (net, source)));
    let cases = cases.flat_map(|(net, source)| [true, false].map(|is| (net, source, is)));
    cases.filter(|(net, _, is_extended)| net.client.is_ipv4() || *is_extended)
}

/// The data connection is established with both, each at its own address and port.
fn established(net: Net, source: Source, is_extended: bool) -> (World, [Talker; 2]) {
    let mut world = offered(net, source, is_extended);
    let talkers = LegId::ALL.map(|leg| data(net, source, leg));
    talkers[0].client(&mut world, say(SYN, CLIENT_ISS, 0).mss(1460));
    for leg in LegId::ALL {
        let sent = world.on(Link::Server(leg)).pop().expect("it is asked");
        assert_eq!(sent.seg.flags, SYN);
        let to = SocketAddr::new(net.servers[leg.index()], LISTENS[leg.index()]);
        assert_eq!(sent.seg.dst(), to);
    }
    if source == Source::Gateway {
        let [a, b] = LegId::ALL.map(|leg| world.engine_port(&talkers[leg.index()], leg));
        assert_eq!(a, b, "one port is enough to know after a restart");
    }
    for leg in LegId::ALL {
        let syn_ack = say(SYN_ACK, ISS[leg.index()], R).mss(1460);
        talkers[leg.index()].leg(&mut world, leg, syn_ack);
    }
    let shown = world.on(Link::Client).pop().expect("an answer");
    assert_eq!(shown.seg.src(), SocketAddr::new(net.service, LISTENS[0]));
    talkers[0].client(&mut world, say(ACK, R, P));
    (world, talkers)
}

/// Servers that see their clients call them as the service, each from its own address and port.
#[test]
fn servers_that_see_the_client_call_it_in_the_services_name() {
    for (net, ports) in NETS.into_iter().flat_map(|net| [[20, 20], [20, 40_001]].map(|p| (net, p)))
    {
        let (mut world, talkers) = called(net, Source::Client, ports);
        for leg in [B, A] {
            let syn = say(SYN, ISS[leg.index()], 0).mss(1460);
            talkers[leg.index()].leg(&mut world, leg, syn);
        }
        let shown = world.on(Link::Client);
        let shown = shown.iter().filter(|h| h.seg.flags == SYN).collect::<Vec<_>>();
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert_eq!(shown[0].seg.src(), SocketAddr::new(net.service, 20));
        talkers[0].client(&mut world, say(SYN_ACK, CLIENT_ISS, P).mss(1460));
        for (leg, next) in [(A, P), (B, Q)] {
            let told = world.on(Link::Server(leg)).pop().expect("it is told").seg;
            assert_eq!((told.flags, told.ack), (SYN_ACK, next));
            let to = SocketAddr::new(net.servers[leg.index()], ports[leg.index()]);
            assert_eq!((told.src(), told.dst()), (talkers[0].client, to));
            talkers[leg.index()].leg(&mut world, leg, say(ACK, next, R));
        }
        assert_eq!(state(&world), FlowState::Paired);
        world.forget_but_ports();
        for (leg, next) in [(A, P), (B, Q)] {
            talkers[leg.index()].leg(&mut world, leg, say(ACK, next, R).data("content"));
        }
        assert_eq!(world.on(Link::Client).pop().expect("it is shown").data, b"content");
        world.input(Input::Signal(TO_A, Signal::CarrierDown));
        world.forget_but_ports();
        talkers[1].leg(&mut world, B, say(ACK, Q + 7, R).data("more"));
        assert_eq!(world.on(Link::Client).pop().expect("it goes on").data, b"more");
    }
}

/// Servers that see the gateway only would call it, not the client: such a session is not followed.
#[test]
fn servers_that_see_the_gateway_are_left_to_the_primary() {
    for net in NETS {
        let (world, _) = called(net, Source::Gateway, [20, 20]);
        assert_eq!(world.engine.flows(1)[0].state, FlowState::Solo);
        assert!(!world.events.iter().any(|event| matches!(event, Event::DataOffered { .. })));
    }
}

/// The client has told both servers where it listens, and they have agreed; with them as they call
/// from these ports.
fn called(net: Net, source: Source, ports: [u16; 2]) -> (World, [Talker; 2]) {
    let mut world = World::new(ftp(source));
    let control = Talker::new(net, source);
    control.establish(&mut world);
    for (leg, first) in [(A, P), (B, Q)] {
        control.leg(&mut world, leg, say(ACK, first, R).data(GREETING));
    }
    let family = if net.client.is_ipv4() { 1 } else { 2 };
    let command = format!("EPRT |{family}|{}|50000|\r\n", net.client);
    control.client(&mut world, say(ACK, R, P + 7).data(&command));
    for (leg, first) in [(A, P), (B, Q)] {
        let said = say(ACK, first + 7, R + command.len() as u32).data("200 ok\r\n");
        control.leg(&mut world, leg, said);
    }
    let client = SocketAddr::new(net.client, 50_000);
    let talkers = ports.map(|port| Talker { net, source, client, port: (ports[0], port) });
    (world, talkers)
}

fn state(world: &World) -> FlowState {
    let flows = world.engine.flows(9);
    flows.iter().find(|flow| flow.key.client.port() == 50_000).expect("it is there").state
}

#[test]
fn each_server_has_a_data_connection_at_its_own_address_and_port() {
    for (net, source, is_extended) in cases() {
        let (mut world, talkers) = established(net, source, is_extended);
        assert_eq!(state(&world), FlowState::Paired);
        world.forget_but_ports();
        for (leg, first) in [(A, P), (B, Q)] {
            talkers[leg.index()].leg(&mut world, leg, say(ACK, first, R).data("content"));
        }
        let shown = world.on(Link::Client).pop().expect("it is shown");
        assert_eq!(shown.data, b"content");
        assert_eq!(shown.seg.src(), SocketAddr::new(net.service, LISTENS[0]));
        world.input(Input::Signal(TO_A, Signal::CarrierDown));
        assert_eq!(state(&world), FlowState::Solo);
        world.forget_but_ports();
        talkers[1].leg(&mut world, B, say(ACK, Q + 7, R).data("more"));
        assert_eq!(world.on(Link::Client).pop().expect("it goes on").data, b"more");
    }
}

#[test]
fn another_process_knows_the_ports_of_a_data_connection() {
    for (net, source, is_extended) in cases() {
        let (world, talkers) = established(net, source, is_extended);
        let mut world = World::asleep(ftp(source), world.records);
        world.wait_ms(30);
        talkers[0].client(&mut world, say(ACK, R, P));
        for (leg, first) in [(A, P), (B, Q)] {
            talkers[leg.index()].leg(&mut world, leg, say(ACK, first, R));
        }
        assert_eq!(state(&world), FlowState::Paired);
        world.forget_but_ports();
        for (leg, first) in [(A, P), (B, Q)] {
            talkers[leg.index()].leg(&mut world, leg, say(ACK, first, R).data("content"));
        }
        let shown = world.on(Link::Client).pop().expect("it is shown");
        assert_eq!(shown.data, b"content", "{source:?} {is_extended}");
    }
}

/// What a client has of the control connection, in order.
fn heard(world: &World) -> String {
    let mut text = Vec::new();
    for heard in world.on(Link::Client).iter().filter(|h| h.seg.src_port == 80) {
        let at = heard.seg.seq.wrapping_sub(P) as usize;
        if heard.data.is_empty() {
            continue;
        }
        assert!(at <= text.len(), "nothing is left out");
        text.truncate(at);
        text.extend_from_slice(&heard.data);
    }
    String::from_utf8(text).expect("text")
}

/// The primary ends when it has said any part of its answer, and the backup any part of its own:
/// the client is shown one port, and the service's address.
#[test]
fn a_failover_at_any_byte_of_both_answers_shows_the_services_address() {
    at_any_byte(|world, _, _| world.input(Input::Signal(TO_A, Signal::CarrierDown)));
}

/// The same where the process that serves the session dies and its kernel ends the stream in good
/// order: the other one may have said its whole answer by then, which nobody has read yet.
#[test]
fn an_early_end_at_any_byte_of_both_answers_shows_the_services_address() {
    at_any_byte(|world, control, said| {
        control.leg(world, A, say(FIN, P + 7 + said, R + 6));
    });
}

fn at_any_byte(end: impl Fn(&mut World, &Talker, u32)) {
    let net = V4;
    let answer = |leg: LegId| {
        let own = net.servers[leg.index()].to_string().replace('.', ",");
        let port = LISTENS[leg.index()];
        format!("227 Passive ({own},{},{}).\r\n", port / 256, port % 256)
    };
    let shown = |leg: LegId| {
        let (own, service) = (net.servers[leg.index()], net.service);
        let text = |ip: IpAddr| ip.to_string().replace('.', ",");
        answer(leg).replace(&text(own), &text(service))
    };
    let (a, b) = (answer(A), answer(B));
    for said in 0..=a.len() {
        for theirs in 0..=b.len() {
            let mut world = World::new(ftp(Source::Client));
            let control = Talker::new(net, Source::Client);
            control.establish(&mut world);
            world.forget_but_ports();
            for (leg, first) in [(A, P), (B, Q)] {
                control.leg(&mut world, leg, say(ACK, first, R).data(GREETING));
            }
            control.client(&mut world, say(ACK, R, P + 7).data("PASV\r\n"));
            for (leg, first, text) in [(A, P, &a[..said]), (B, Q, &b[..theirs])] {
                if !text.is_empty() {
                    control.leg(&mut world, leg, say(ACK, first + 7, R + 6).data(text));
                }
            }
            let before = heard(&world);
            let has = before.len() as u32;
            control.client(&mut world, say(ACK, R + 6, P + has));
            end(&mut world, &control, said as u32);
            control.leg(&mut world, B, say(ACK, Q + 7, R + 6).data(&b));
            let text = heard(&world);
            assert!(text.starts_with(&before), "{said} {theirs}");
            let is_one = LegId::ALL.iter().any(|leg| text == [GREETING, &shown(*leg)].concat());
            assert!(is_one, "{said} {theirs}: {text}");
            // The connection goes on, in the survivor's own numbers.
            let end = text.len() as u32;
            control.client(&mut world, say(ACK, R + 6, P + end).data("NOOP\r\n"));
            let told = world.on(TO_B).pop().expect("it is asked").seg.ack;
            assert_eq!(told, Q + 7 + b.len() as u32, "{said} {theirs}");
            control.leg(&mut world, B, say(ACK, told, R + 12).data("200 ok\r\n"));
            assert!(heard(&world).ends_with(").\r\n200 ok\r\n"), "{}", heard(&world));
        }
    }
}
