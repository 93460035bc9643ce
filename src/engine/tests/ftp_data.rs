//! Passive data connections of FTP: one port for the client, another one on each server.

use std::net::Ipv4Addr;

use super::ftp::{self, PASSIVE, answered, asked, asked_with, ftp, reply};
use super::kit::{ACK, CLIENT, CLIENT_ISS, FIN, Heard, ISS, Kit, RST, SYN, SYN_ACK, Say, say};
use super::splices::World;
use crate::engine::{
    EngineConfig, Event, FlowState, Input, LegId, Link, OfferOutcome, Signal, SyncScope,
};
use crate::wire::{Addressed, build};
use LegId::{A, B};

const C: (Ipv4Addr, u16) = (CLIENT, 50_000);
/// "4,1" and "156,65".
const PORTS: [u16; 2] = [1025, 40_001];
const P: u32 = ISS[0] + 1;
const Q: u32 = ISS[1] + 1;
const R: u32 = CLIENT_ISS + 1;

/// Both servers have offered a data connection, and the client has heard of the primary's.
fn offered() -> World {
    let mut world = answered(PASSIVE, [&reply("4,1"), &reply("156,65")]);
    world.ack();
    world.kit.forget();
    world
}

/// Whom each server was sent SYNs from, and at which port.
fn syns(heard: &[Heard]) -> Vec<(Link, u16)> {
    let is_syn = |h: &&Heard| h.seg.flags == SYN && h.link != Link::Client;
    heard.iter().filter(is_syn).map(|h| (h.link, h.seg.dst_port)).collect()
}

fn begin(kit: &mut Kit, port: u16) -> Vec<Heard> {
    kit.say_at(Link::Client, say(SYN, CLIENT_ISS, 0).mss(1460), C, port)
}

/// `leg` says something on the data connection, at its own port.
fn leg(kit: &mut Kit, leg: LegId, say: Say) -> Vec<Heard> {
    kit.say_at(Link::Server(leg), say, C, PORTS[leg.index()])
}

fn client(kit: &mut Kit, say: Say) -> Vec<Heard> {
    kit.say_at(Link::Client, say, C, PORTS[0])
}

/// The data connection is established with both.
fn established() -> World {
    let mut world = offered();
    let kit = &mut world.kit;
    let both = [(Link::Server(A), PORTS[0]), (Link::Server(B), PORTS[1])];
    assert_eq!(syns(&begin(kit, PORTS[0])), both);
    for id in LegId::ALL {
        leg(kit, id, say(SYN_ACK, ISS[id.index()], R).mss(1460));
    }
    let shown: Vec<_> = kit.on(Link::Client);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!((shown[0].seg.flags, shown[0].seg.src_port), (SYN_ACK, PORTS[0]));
    client(kit, say(ACK, R, P));
    assert_eq!(data_state(kit), Some(FlowState::Paired));
    kit.forget();
    world
}

fn data_state(kit: &Kit) -> Option<FlowState> {
    let flows = kit.engine.flows(9);
    flows.iter().find(|flow| flow.key.client.port() == C.1).map(|flow| flow.state)
}

/// What the client was shown of the data connection since the last time.
fn shown(kit: &mut Kit) -> Vec<u8> {
    let heard = kit.on(Link::Client);
    kit.forget();
    assert!(heard.iter().all(|h| h.seg.src_port == PORTS[0]), "one port for the client");
    heard.into_iter().flat_map(|h| h.data).collect()
}

#[test]
fn each_server_has_the_connection_at_its_own_port_and_the_client_at_one() {
    let mut world = established();
    let kit = &mut world.kit;
    leg(kit, A, say(ACK, P, R).data("content"));
    assert_eq!(shown(kit), b"", "not before both have said it");
    leg(kit, B, say(ACK, Q, R).data("content"));
    assert_eq!(shown(kit), b"content");
    client(kit, say(ACK, R, P + 7).data("up"));
    let ports = [(A, PORTS[0]), (B, PORTS[1])];
    for (id, port) in ports {
        let heard = kit.on(Link::Server(id)).pop().expect("it is copied");
        assert_eq!((heard.seg.dst_port, heard.data), (port, b"up".to_vec()));
    }
    // Its end, and the next connection on another port.
    for (id, first) in [(A, P), (B, Q)] {
        leg(kit, id, say(FIN, first + 7, R + 2));
    }
    client(kit, say(FIN, R + 2, P + 8));
    for (id, first) in [(A, P), (B, Q)] {
        leg(kit, id, say(ACK, first + 8, R + 3));
    }
    assert_eq!(data_state(kit), Some(FlowState::TimeWait));
    kit.wait_ms(66_000);
    assert_eq!(data_state(kit), None);
    assert_eq!(syns(&begin(kit, PORTS[0])), [(Link::Server(A), PORTS[0])], "it is over");
}

/// What looks like an answer of HTTP in a file is compared like any other byte of it.
#[test]
fn in_content_nothing_may_differ() {
    let mut world = established();
    let kit = &mut world.kit;
    client(kit, say(ACK, R, P).data("GET / HTTP/1.1\r\n\r\n"));
    for (id, first, date) in [(A, P, "one"), (B, Q, "two")] {
        let text = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\n");
        leg(kit, id, say(ACK, first, R + 18).data(text));
    }
    let is_told = |event: &Event| {
        matches!(event, Event::Diverged { .. }) || matches!(event, Event::ComparedRaw { .. })
    };
    let told: Vec<_> = kit.events.iter().filter(|event| is_told(event)).collect();
    assert!(matches!(told[..], [Event::Diverged { .. }]), "{told:?}");
}

#[test]
fn a_transfer_survives_the_primary() {
    let mut world = established();
    let kit = &mut world.kit;
    leg(kit, A, say(ACK, P, R).data("con"));
    leg(kit, B, say(ACK, Q, R).data("content"));
    client(kit, say(ACK, R, P + 3));
    assert_eq!(shown(kit), b"con");
    kit.input(Input::Signal(Link::Server(A), Signal::CarrierDown));
    assert_eq!(shown(kit), b"tent");
    assert_eq!(data_state(kit), Some(FlowState::Solo));
    kit.forget();
    client(kit, say(ACK, R, P + 7).data("x"));
    let heard = kit.on(Link::Server(B)).pop().expect("it goes on");
    assert_eq!((heard.seg.dst_port, heard.seg.ack), (PORTS[1], Q + 7));
}

/// Both have said and taken all of a transfer; its end has come from `ended` alone.
fn ended_by(world: &mut World, ended: LegId, is_put: bool) {
    let kit = &mut world.kit;
    let (said, heard) = if is_put { ("", "content") } else { ("content", "") };
    let (said_len, heard_len) = (said.len() as u32, heard.len() as u32 + u32::from(is_put));
    let flags = if is_put { FIN } else { ACK };
    client(kit, say(flags, R, P).data(heard));
    for (id, first) in [(A, P), (B, Q)] {
        leg(kit, id, say(ACK, first, R + heard_len).data(said));
    }
    client(kit, say(ACK, R + heard_len, P + said_len));
    let first = [P, Q][ended.index()];
    leg(kit, ended, say(FIN, first + said_len, R + heard_len));
    assert_eq!(shown(kit), said.as_bytes());
}

/// `ended` alone carries the transfer, and its end is shown.
fn has_won(kit: &Kit, ended: LegId, is_put: bool) {
    let end = if is_put { P } else { P + 7 };
    assert_eq!(data_state(kit), Some(FlowState::Solo));
    let is_end = |h: &Heard| (h.seg.flags, h.seg.seq) == (FIN, end);
    assert!(kit.on(Link::Client).iter().any(is_end), "the other one stands still");
    let is_reset = |h: &Heard| h.seg.flags.has(RST) && h.seg.dst_port != 80;
    assert!(kit.on(Link::Server(ended.other())).iter().any(is_reset));
    assert!(!kit.on(Link::Server(ended)).iter().any(is_reset));
}

const TRANSFERS: [(LegId, bool); 4] = [(B, false), (A, false), (B, true), (A, true)];

/// A server that is frozen may have said and taken everything but its end, for its kernel goes on.
/// Whoever has come to it lives on the control connection: it was not killed.
#[test]
fn an_end_is_believed_of_a_server_that_lives_on_the_control_connection() {
    for (ended, is_put) in TRANSFERS {
        let mut world = established();
        ended_by(&mut world, ended, is_put);
        let kit = &mut world.kit;
        kit.wait_ms(140);
        assert_eq!(data_state(kit), Some(FlowState::Paired), "it may be late");
        kit.wait_ms(20);
        has_won(kit, ended, is_put);
    }
}

/// Who has ended on the control connection as well was killed, maybe: there the end is waited for
/// longer, and what the other server has still to say counts.
#[test]
fn an_end_is_not_believed_of_a_server_that_ended_on_the_control_connection() {
    for ((ended, is_put), is_reset) in TRANSFERS.into_iter().zip([true, false, true, false]) {
        let mut world = established();
        let said = world.server(ended).sent as u32;
        let number = [P, Q][ended.index()] + said;
        let flags = if is_reset { RST.with(ACK) } else { FIN };
        world.kit.leg(ended, say(flags, number, R + world.asked));
        ended_by(&mut world, ended, is_put);
        let kit = &mut world.kit;
        kit.wait_ms(2900);
        assert_eq!(data_state(kit), Some(FlowState::Paired), "the other one may be late");
        if is_put {
            kit.wait_ms(200);
            has_won(kit, ended, is_put);
        } else {
            let first = [Q, P][ended.index()];
            leg(kit, ended.other(), say(ACK, first + 7, R).data("more"));
            assert_eq!(shown(kit), b"more");
        }
    }
}

/// The end of a process that was killed looks like one of a file. While the client reads nothing
/// the other server cannot say that there is more.
#[test]
fn an_end_is_not_believed_while_the_client_has_no_room() {
    let content = "x".repeat(60_000); // as much as the client has room for
    for (killed, first, other, other_first) in [(A, P, B, Q), (B, Q, A, P)] {
        let mut world = established();
        let kit = &mut world.kit;
        for (id, first) in [(A, P), (B, Q)] {
            leg(kit, id, say(ACK, first, R).data(&content));
        }
        client(kit, say(ACK, R, P + 60_000).window(0));
        leg(kit, killed, say(FIN, first + 60_000, R));
        assert_eq!(shown(kit).len(), 60_000);
        kit.wait_ms(20_000);
        assert_eq!(data_state(kit), Some(FlowState::Paired));
        client(kit, say(ACK, R, P + 60_000).window(500));
        leg(kit, other, say(ACK, other_first + 60_000, R).data("more"));
        assert_eq!(data_state(kit), Some(FlowState::Solo), "{killed:?} ended early");
        client(kit, say(ACK, R, P + 60_004).window(500));
        leg(kit, other, say(FIN, other_first + 60_004, R));
        assert_eq!(shown(kit), b"more");
    }
}

#[test]
fn what_the_dead_primary_offered_is_the_survivors_at_its_own_port() {
    let mut world = offered();
    world.kill(A);
    let kit = &mut world.kit;
    kit.forget();
    assert_eq!(syns(&begin(kit, PORTS[0])), [(Link::Server(B), PORTS[1])]);
    leg(kit, B, say(SYN_ACK, ISS[1], R).mss(1460));
    let heard = kit.on(Link::Client).pop().expect("an answer");
    assert_eq!((heard.seg.flags, heard.seg.src_port), (SYN_ACK, PORTS[0]));
    // And what the survivor offers next is taken as it is.
    world.servers[1].script.extend_from_slice(reply("8,7").as_bytes());
    world.ask();
    let (from, end) = (world.server(B).sent, world.server(B).script.len());
    world.say(B, from, end);
    let kit = &mut world.kit;
    kit.forget();
    let next = kit.say_at(Link::Client, say(SYN, 7, 0).mss(1460), (CLIENT, 50_001), 2055);
    assert_eq!(syns(&next), [(Link::Server(B), 2055)]);
}

/// The primary dies when both have offered and the client has heard nothing of it: it is shown the
/// survivor's port.
#[test]
fn a_port_that_was_not_shown_any_more_is_the_survivors() {
    let replies = [reply("4,1"), reply("156,65")];
    let (mut world, begun) = asked(PASSIVE, [&replies[0], &replies[1]]);
    // The value is agreed, but the client grants no room for it.
    world.say(A, begun[0], begun[0] + replies[0].len());
    world.say(B, begun[1], begun[1] + replies[1].find(')').expect("a bracket"));
    world.kill(A);
    world.finish(B, 100);
    assert!(world.text().ends_with(replies[1].as_bytes()));
    let kit = &mut world.kit;
    kit.forget();
    assert_eq!(syns(&begin(kit, PORTS[1])), [(Link::Server(B), PORTS[1])]);
}

/// The backup becomes a copy of the primary when both have said any part of their replies (of the
/// backup's own every fourth is enough). From then on both have the primary's port, and the copy
/// carries on alone.
#[test]
fn a_copy_at_any_byte_of_both_replies_has_the_primarys_port() {
    for ((ours, theirs), port) in ftp::PORTS.into_iter().zip([1025, 51_313, 1025]) {
        let replies = [reply(ours), reply(theirs)];
        for said in 0..=replies[0].len() {
            for heard in (0..=replies[1].len()).step_by(4) {
                let at = format!("{ours} {theirs} {said} {heard}");
                let config = EngineConfig { sync_scope: Some(SyncScope::Machine), ..ftp() };
                let (mut world, begun) = asked_with(config, PASSIVE, [&replies[0], &replies[1]]);
                world.say(A, begun[0], begun[0] + said);
                world.say(B, begun[1], begun[1] + heard);
                world.ack();
                world.copy(B);
                for id in LegId::ALL {
                    let (from, end) = (world.server(id).acked, world.server(id).script.len());
                    world.say(id, from, end);
                }
                world.ack();
                assert!(world.text().ends_with(replies[0].as_bytes()), "{at}");
                let control = world.kit.engine.flows(1)[0].state;
                assert_eq!(control, FlowState::Paired, "{at}");
                let asked = syns(&begin(&mut world.kit, port));
                assert_eq!(asked, LegId::ALL.map(|id| (Link::Server(id), port)), "{at}");
                world.hear();
                world.kill(A);
                world.goes_on(B);
            }
        }
    }
}

/// One session of the primary ends, the server lives: what the other server offers next on this
/// control connection is its own, although the other one is the primary of everything else.
#[test]
fn a_control_connection_that_moved_alone_has_its_data_from_where_it_is() {
    let (mut world, begun) = asked(PASSIVE, [&reply("4,1"), &reply("156,65")]);
    let at = ISS[0] + 1 + begun[0] as u32;
    world.kit.leg(A, say(RST.with(ACK), at, R));
    world.kit.wait_ms(60);
    assert_eq!(world.kit.engine.status().roles.primary, A);
    let end = world.server(B).script.len();
    world.say(B, begun[1], end);
    assert!(world.text().ends_with(reply("156,65").as_bytes()));
    let kit = &mut world.kit;
    kit.forget();
    assert_eq!(syns(&begin(kit, PORTS[1])), [(Link::Server(B), PORTS[1])]);
    leg(kit, B, say(SYN_ACK, ISS[1], R).mss(1460));
    assert_eq!(data_state(kit), Some(FlowState::Solo));
}

#[test]
fn nobody_else_may_use_what_was_offered() {
    let mut world = offered();
    let kit = &mut world.kit;
    let other = Ipv4Addr::new(192, 0, 2, 2);
    let heard = kit.say_at(Link::Client, say(SYN, 1, 0).mss(1460), (other, 50_000), PORTS[0]);
    assert_eq!(syns(&heard), [(Link::Server(A), PORTS[0])], "as before: the primary's own affair");
    assert_eq!(syns(&begin(kit, PORTS[0])).len(), 2);
    let again = kit.say_at(Link::Client, say(SYN, 9, 0).mss(1460), (CLIENT, 50_001), PORTS[0]);
    assert_eq!(syns(&again), [(Link::Server(A), PORTS[0])], "once");
    let mut world = offered();
    world.kit.wait_ms(61_000);
    world.kit.forget();
    assert_eq!(syns(&begin(&mut world.kit, PORTS[0])).len(), 1, "a minute at most");
}

/// RFC 2577 3, for servers: who is lured to somebody else is not helped.
#[test]
fn an_offer_of_somebody_elses_address_is_not_believed() {
    let foreign = reply("4,1").replace("192,0,2,10", "192,0,2,77");
    let mut world = answered(PASSIVE, [&foreign, &foreign]);
    world.ack();
    let outcome = world.kit.events.iter().find_map(|event| match event {
        Event::DataOffered { outcome, .. } => Some(*outcome),
        _ => None,
    });
    assert_eq!(outcome, Some(OfferOutcome::ForeignAddress));
    assert_eq!(super::splices::state(&world.kit), FlowState::Paired, "the connection is kept");
    world.kit.forget();
    assert_eq!(syns(&begin(&mut world.kit, PORTS[0])).len(), 1);
}

/// An error of the client's side about what it was sent reaches each server with its own port.
#[test]
fn errors_tell_each_server_of_its_own_port() {
    let mut world = established();
    let kit = &mut world.kit;
    for (id, first) in [(A, P), (B, Q)] {
        leg(kit, id, say(ACK, first, R).data([7; 1460]));
    }
    let sent = kit.on(Link::Client).pop().expect("it is shown");
    kit.forget();
    let said = say(sent.seg.flags, sent.seg.seq, sent.seg.ack).data(&sent.data);
    let original = Kit::frame_at(false, &said, C.0, C.1, PORTS[0]);
    let (l2, l3) = (sent.seg.l2.reversed(), sent.seg.l3.reversed());
    let error = build::icmp_too_big(&l2, &l3, 1000, &original).expect("it is about IPv4");
    kit.input(Input::Frame(Link::Client, error));
    for (id, port) in [(A, PORTS[0]), (B, PORTS[1])] {
        let quoted = kit.frames.iter().filter(|(link, _)| *link == Link::Server(id));
        let quoted = quoted.filter_map(|(_, frame)| Addressed::of(frame)?.quoted);
        let ports: Vec<u16> = quoted.map(|(_, ends)| ends.src.port()).collect();
        assert_eq!(ports, [port], "{id:?}");
    }
}

/// Another process goes on with the ports that it finds in the state file.
#[test]
fn a_transfer_survives_a_restart_of_the_gateway() {
    for survivor in LegId::ALL {
        let world = established();
        let mut kit = Kit::restored(ftp(), world.kit.records);
        assert_eq!(data_state(&kit), Some(FlowState::Paired));
        client(&mut kit, say(ACK, R, P));
        leg(&mut kit, A, say(ACK, P, R));
        leg(&mut kit, B, say(ACK, Q, R));
        kit.forget();
        leg(&mut kit, A, say(ACK, P, R).data("content"));
        leg(&mut kit, B, say(ACK, Q, R).data("content"));
        assert_eq!(shown(&mut kit), b"content");
        kit.input(Input::Signal(Link::Server(survivor.other()), Signal::CarrierDown));
        client(&mut kit, say(ACK, R, P + 7).data("x"));
        let heard = kit.on(Link::Server(survivor)).pop().expect("it goes on");
        assert_eq!(heard.seg.dst_port, PORTS[survivor.index()]);
        assert_eq!(heard.data, b"x");
    }
}
