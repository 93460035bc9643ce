//! FTP between two servers that choose other ports: the control connection at every byte, and what
//! may not differ on it.

use super::kit::{Kit, config};
use super::splices::{World, state};
use crate::engine::{EngineConfig, Event, FlowState, LegId, RawReason, Rules};
use LegId::{A, B};

/// The script's port is the one of control connections.
pub(super) fn ftp() -> EngineConfig {
    EngineConfig { rules: Rules { ftp_ports: vec![80], ..Rules::default() }, ..config() }
}

const GREETINGS: [&str; 2] = ["220 (vsFTPd 3.0.5)\r\n", "220-Hi\r\n220 it is 04:55\r\n"];
pub(super) const PASSIVE: &str = "PASV\r\n";

/// Replies to PASV with ports of one to three digits.
pub(super) const PORTS: [(&str, &str); 4] =
    [("4,1", "156,65"), ("200,113", "8,7"), ("4,1", "4,1"), ("1,2", "34,5")];

pub(super) fn reply(port: &str) -> String {
    format!("227 Entering Passive Mode (192,0,2,10,{port}).\r\n")
}

/// The client has the greeting, and has asked for `request`; the servers have these replies to it.
/// With the world comes the length of both greetings.
pub(super) fn asked(request: &'static str, replies: [&str; 2]) -> (World, [usize; 2]) {
    asked_with(ftp(), request, replies)
}

/// The same with another configuration.
pub(super) fn asked_with(
    config: EngineConfig,
    request: &'static str,
    replies: [&str; 2],
) -> (World, [usize; 2]) {
    let greetings =
        [GREETINGS[0], GREETINGS[0].replace("3.0.5", "3.0.10").as_str()].map(str::to_owned);
    let scripts = [0, 1].map(|i| format!("{}{}", greetings[i], replies[i]).into_bytes());
    let mut world = World::speaking(config, scripts, 60_000);
    (world.request, world.last, world.may_detach) = (request, b"200 ok\r\n".to_vec(), true);
    let begun = greetings.map(|text| text.len());
    for id in LegId::ALL {
        world.say(id, 0, begun[id.index()]);
    }
    world.ack();
    assert_eq!(world.text(), GREETINGS[0].as_bytes());
    world.ask();
    (world, begun)
}

/// Both servers say their whole reply.
pub(super) fn answered(request: &'static str, replies: [&str; 2]) -> World {
    let (mut world, begun) = asked(request, replies);
    for id in LegId::ALL {
        let end = world.server(id).script.len();
        world.say(id, begun[id.index()], end);
    }
    world
}

fn hits(kit: &Kit) -> Vec<String> {
    let hit = |event: &Event| match event {
        Event::MaskHit { rule, .. } => Some(rule.to_string()),
        _ => None,
    };
    kit.events.iter().filter_map(hit).collect()
}

#[test]
fn a_port_may_differ_and_the_primarys_is_shown() {
    for (ours, theirs) in PORTS {
        let world = answered(PASSIVE, [&reply(ours), &reply(theirs)]);
        let shown = [GREETINGS[0], &reply(ours)].concat();
        assert_eq!(world.text(), shown.as_bytes());
        assert_eq!(state(&world.kit), FlowState::Paired);
        let port = (ours != theirs).then(|| "ftp port".to_owned());
        let expected: Vec<_> = std::iter::once("ftp banner".to_owned()).chain(port).collect();
        assert_eq!(hits(&world.kit), expected);
    }
}

/// The primary ends when it has said any part of its reply, and the backup any part of its own.
#[test]
fn a_failover_at_any_byte_of_both_replies_shows_one_port() {
    for (ours, theirs) in PORTS {
        let replies = [reply(ours), reply(theirs)];
        for said in 0..=replies[0].len() {
            for heard in 0..=replies[1].len() {
                let (mut world, begun) = asked(PASSIVE, [&replies[0], &replies[1]]);
                world.say(A, begun[0], begun[0] + said);
                world.say(B, begun[1], begun[1] + heard);
                world.ack();
                let before = world.text();
                world.kill(A);
                assert_eq!(state(&world.kit), FlowState::Solo);
                world.finish(B, 100);
                let text = String::from_utf8(world.text()).expect("text");
                assert!(text.as_bytes().starts_with(&before), "what was shown stays");
                let is_one = replies.iter().any(|reply| text == [GREETINGS[0], reply].concat());
                assert!(is_one, "{ours} {theirs} {said} {heard}: {text}");
                world.goes_on(B);
            }
        }
    }
}

/// The client has lost what follows any byte; the survivor says its own version again, cut in any
/// way; the client ends up with the port that it was shown.
#[test]
fn a_failover_after_any_byte_that_the_client_has_leaves_the_shown_port_whole() {
    for (ours, theirs) in PORTS {
        let shown = [GREETINGS[0], &reply(ours)].concat();
        for has in GREETINGS[0].len()..=shown.len() {
            for piece in [1, 7, 100] {
                let (mut world, begun) = asked(PASSIVE, [&reply(ours), &reply(theirs)]);
                world.deaf_from = has;
                for id in LegId::ALL {
                    let end = world.server(id).script.len();
                    world.say(id, begun[id.index()], end);
                }
                world.ack();
                world.kill(A);
                world.finish(B, piece);
                assert_eq!(world.text(), shown.as_bytes(), "{ours} {theirs} {has} {piece}");
                world.goes_on(B);
            }
        }
    }
}

/// Where replies differ in what is no port of the same address, and no text for people, that is
/// found, at the byte and with the reply.
#[test]
fn a_real_difference_is_never_masked() {
    let p = |text: &str| reply("4,1").replace("192,0,2,10,4,1", text);
    let cases: [(&'static str, String, String, usize, &str); 17] = [
        (PASSIVE, p("192,0,2,10,4,1"), p("192,0,2,11,4,1"), 36, "reply 227"),
        (PASSIVE, p("192,0,2,10,4,1"), p("192,0,2,10,4,256"), 40, "reply 227"),
        (PASSIVE, p("192,0,2,10,4,1"), p("192,0,2,10,4"), 39, "reply 227"),
        (PASSIVE, p("192,0,2,10,4,1"), p("192,0,2,10,4,1,1"), 41, "reply 227"),
        (PASSIVE, p("192,0,2,10,4,1"), p("192,0,2,10,0,0"), 38, "reply 227"),
        (PASSIVE, reply("4,1"), reply("4,1").replace(")", "]"), 41, "reply 227"),
        (PASSIVE, reply("4,1"), reply("8,12").replace(".\r", "!\r"), 42, "reply 227"),
        (PASSIVE, reply("4,1"), reply("4,1").replace("Entering", "Leaving"), 4, "reply 227"),
        (PASSIVE, reply("4,1"), "425 no\r\n".into(), 0, "reply code"),
        ("EPSV\r\n", "229 (|||1024|)\r\n".into(), "229 (|||66000|)\r\n".into(), 8, "reply 229"),
        ("EPSV\r\n", "229 (|||1024|)\r\n".into(), "229 (|||1025)\r\n".into(), 12, "reply 229"),
        ("NOOP\r\n", reply("4,1"), reply("4,2"), 40, "reply 227"),
        ("USER x\r\n", "331 a\r\n".into(), "331 b\r\n".into(), 4, "reply 331"),
        ("SIZE x\r\n", "213 100\r\n".into(), "213 101\r\n".into(), 6, "reply 213"),
        ("RETR x\r\n", "226 took 1 s\r\n".into(), "426 took 2 s\r\n".into(), 0, "reply code"),
        ("LIST x\r\n", "226-a\r\n226 b\r\n".into(), "226 a\r\n".into(), 3, "reply 226"),
        (
            "STAT\r\n",
            "211-a\r\n b\r\n211 c\r\n".into(),
            "211-d\r\n211 e\r\n".into(),
            7,
            "reply 211",
        ),
    ];
    for (request, ours, theirs, at, field) in cases {
        let world = answered(request, [&ours, &theirs]);
        let found = world.kit.events.iter().find_map(|event| match event {
            Event::Diverged { divergence, .. } => Some(divergence.clone()),
            _ => None,
        });
        let found = found.unwrap_or_else(|| panic!("{ours:?} and {theirs:?} are told apart"));
        let place = found.at.since(crate::wire::Offset::START) as usize - GREETINGS[0].len();
        let told = found.field.map(|field| field.to_string());
        assert_eq!((place, told.as_deref()), (at, Some(field)), "{ours:?} {theirs:?}");
        assert_eq!(world.text(), [GREETINGS[0], &ours].concat().as_bytes(), "the primary's");
        assert_eq!(state(&world.kit), FlowState::Solo);
    }
}

/// What two servers of a distribution, each with its own clock and load, say to the same client.
#[test]
fn texts_for_people_may_differ() {
    let line = |time: &str| format!("-rw-r--r--    1 0        0             100 {time} data");
    let cases = [
        (
            "RETR x\r\n",
            "226-File sent\r\n226 0.1 s\r\n".into(),
            "226-File sent\r\n226 12.5 s\r\n".into(),
        ),
        (
            "STAT\r\n",
            "211-x:\r\n     at 1\r\n211 End\r\n".into(),
            "211-y:\r\n     at 22\r\n211 End\r\n".into(),
        ),
        (
            "STAT /\r\n",
            format!("213-Status:\r\n{}\r\n213 End\r\n", line("Nov 22 04:55")),
            format!("213-Status:\r\n{}\r\n213 End\r\n", line("Jan  1  2025")),
        ),
    ];
    for (request, ours, theirs) in cases {
        let world: World = answered(request, [&ours, &theirs]);
        let text: String = [GREETINGS[0], &ours].concat();
        assert_eq!(world.text(), text.as_bytes());
        assert_eq!(state(&world.kit), FlowState::Paired, "{ours:?} {theirs:?}");
        assert!(hits(&world.kit).len() > 1);
    }
}

/// Greetings of another number of lines are told apart; nothing is masked after what is no FTP.
#[test]
fn what_is_no_ftp_is_compared_raw() {
    for (first, why) in [("hello\r\n", RawReason::NotFtp), ("220 x\n", RawReason::BareLf)] {
        let mut world =
            World::speaking(ftp(), [first, first].map(|t| t.as_bytes().to_vec()), 60_000);
        for id in LegId::ALL {
            world.say(id, 0, first.len());
        }
        let raw = world.kit.events.iter().find_map(|event| match event {
            Event::ComparedRaw { why, .. } => Some(*why),
            _ => None,
        });
        assert_eq!(raw, Some(why));
        assert_eq!((world.text(), state(&world.kit)), (first.into(), FlowState::Paired));
    }
    let scripts = GREETINGS.map(|text| text.as_bytes().to_vec());
    let mut world = World::speaking(ftp(), scripts, 60_000);
    world.may_detach = true;
    for id in LegId::ALL {
        let end = world.server(id).script.len();
        world.say(id, 0, end);
    }
    assert_eq!(state(&world.kit), FlowState::Solo);
}

/// Behind AUTH nobody can compare, and behind PORT each server may call somebody for itself: then
/// the session goes on with one of them, and that is no difference between the two.
#[test]
fn where_the_servers_part_one_goes_on() {
    let cases = [
        ("AUTH TLS\r\n", "234 go\r\n", FlowState::Solo),
        ("AUTH TLS\r\n", "530 no\r\n", FlowState::Paired),
        ("PORT 192,0,2,77,200,1\r\n", "200 ok\r\n", FlowState::Solo),
        ("EPRT |1|192.0.2.77|5000|\r\n", "200 ok\r\n", FlowState::Solo),
        ("PORT 192,0,2,1,200,1\r\n", "200 ok\r\n", FlowState::Paired),
        ("PORT 192,0,2,1,200,1\r\n", "500 no\r\n", FlowState::Paired),
    ];
    for (request, reply, expected) in cases {
        let mut world = answered(request, [reply, reply]);
        assert_eq!(state(&world.kit), expected, "{request}");
        let is_difference = |event: &Event| matches!(event, Event::Diverged { .. });
        assert!(!world.kit.events.iter().any(is_difference));
        if expected == FlowState::Solo {
            world.ack();
            world.goes_on(A);
        }
    }
}

/// Another protocol on another port is none of its business.
#[test]
fn on_other_ports_nothing_of_ftp_may_differ() {
    let rules = Rules { ftp_ports: vec![21], ..Rules::default() };
    let scripts = [reply("4,1"), reply("8,7")].map(String::into_bytes);
    let mut world = World::speaking(EngineConfig { rules, ..config() }, scripts, 60_000);
    (world.request, world.may_detach) = (PASSIVE, true);
    world.ask();
    for id in LegId::ALL {
        let end = world.server(id).script.len();
        world.say(id, 0, end);
    }
    assert!(world.kit.events.iter().any(|event| matches!(event, Event::Diverged { .. })));
}
