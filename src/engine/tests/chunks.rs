//! One body in the chunks of two servers: the end of either at every byte of a small exchange, and
//! a naive reader who has to find one well-formed message with the body that both say.

use proptest::prelude::*;

use super::copied::{copy, equal_with, fail_over_and_back};
use super::kit::{ACK, CLIENT_ISS, FIN, ISS, Kit, RST, config, say};
use super::splices::{World, last_record, n, state};
use crate::engine::limits::SPLICES_MAX;
use crate::engine::{Command, EngineConfig, Event, FlowState, LegId, Link, Rules};
use crate::wire::Offset;
use LegId::{A, B};

const P: u32 = ISS[0] + 1;
const ISN: [u32; 2] = [P, ISS[1] + 1];
const R: u32 = CLIENT_ISS + 1;
const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const NEXT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext";
const BODY: &str = "abcdefghijklmnopqrstuvw";
/// Where a server ends its chunks of [`BODY`].
const CUTS: [&[usize]; 6] =
    [&[23], &[1, 2, 3, 23], &[10, 23], &[10, 12, 23], &[17, 23], &[5, 10, 15, 20, 23]];

fn masked() -> EngineConfig {
    EngineConfig { rules: Rules::headers(["date"]), ..config() }
}

/// A message whose chunks end at `cuts`; `line` says how a size is written.
fn message(body: &[u8], cuts: &[usize], trailer: &str, line: impl Fn(usize) -> String) -> Vec<u8> {
    let mut out = HEAD.as_bytes().to_vec();
    let mut from = 0;
    for &to in cuts {
        if to > from {
            out.extend(format!("{}\r\n", line(to - from)).bytes());
            out.extend_from_slice(&body[from..to]);
            out.extend_from_slice(b"\r\n");
        }
        from = to;
    }
    out.extend(format!("{}\r\n{trailer}\r\n", line(0)).bytes());
    out
}

fn plain(cuts: &[usize]) -> Vec<u8> {
    message(BODY.as_bytes(), cuts, "T: 1\r\n", |size| format!("{size:x}"))
}

/// What a naive reader finds in a message, and where it ends; `None` if it is not well-formed.
fn read(text: &[u8]) -> Option<(Vec<u8>, Vec<u8>, usize)> {
    let line_end = |at: usize| Some(at + text[at..].windows(2).position(|w| w == b"\r\n")? + 2);
    let mut at = text.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let mut body = Vec::new();
    loop {
        let end = line_end(at)?;
        let line = std::str::from_utf8(&text[at..end - 2]).ok()?;
        let size = line.split(';').next()?.trim_end();
        let size = usize::from_str_radix(size, 16).ok()?;
        at = end;
        if size == 0 {
            break;
        }
        body.extend_from_slice(text.get(at..at + size)?);
        assert_eq!(text.get(at + size..at + size + 2)?, b"\r\n", "{}", show(text));
        at += size + 2;
    }
    let from = at;
    loop {
        let end = line_end(at)?;
        let is_last = end == at + 2;
        at = end;
        if is_last {
            return Some((body, text[from..at].to_vec(), at));
        }
    }
}

fn show(text: &[u8]) -> String {
    String::from_utf8_lossy(text).escape_debug().to_string()
}

fn world(scripts: [Vec<u8>; 2]) -> World {
    let mut world = World::speaking(masked(), scripts, 60_000);
    world.last = NEXT.as_bytes().to_vec();
    world.ask();
    world
}

/// The client has one message with this body, and nothing else.
fn has_body(world: &World, body: &[u8], trailer: &[u8], what: &str) {
    let text = world.text();
    let (read, end, len) =
        read(&text).unwrap_or_else(|| panic!("{what}: no message: {}", show(&text)));
    assert_eq!((show(&read), show(&end)), (show(body), show(trailer)), "{what}: {}", show(&text));
    assert_eq!(len, text.len(), "{what}: {}", show(&text));
}

fn has_whole(world: &World, what: &str) {
    has_body(world, BODY.as_bytes(), b"T: 1\r\n\r\n", what);
}

fn pairs() -> impl Iterator<Item = (&'static [usize], &'static [usize])> {
    CUTS.into_iter().flat_map(|a| CUTS.into_iter().map(move |b| (a, b)))
}

#[test]
fn bodies_in_other_chunks_agree_and_the_primarys_are_shown() {
    for (a, b) in pairs() {
        for pieces in [(1, 1), (3, 7), (1000, 1), (1000, 1000)] {
            let scripts = [plain(a), plain(b)];
            let mut world = world(scripts.clone());
            let (mut said, mut end) = ([0; 2], scripts.each_ref().map(Vec::len));
            while said != end {
                for (id, piece) in [(A, pieces.0), (B, pieces.1)] {
                    let (from, all) = (said[id.index()], end[id.index()]);
                    let to = (from + piece).min(all);
                    if from < to {
                        world.say(id, from, to);
                    }
                    said[id.index()] = to;
                }
                world.ack();
            }
            assert_eq!(show(&world.text()), show(&scripts[0]), "{a:?} {b:?} {pieces:?}");
            end = [A, B].map(|id| world.server(id).acked);
            assert_eq!(end, said, "{a:?} {b:?} {pieces:?}");
            assert_eq!(state(&world.kit), FlowState::Paired);
            let snapshot = &world.kit.engine.flows(1)[0];
            assert_eq!(snapshot.verified_bytes, scripts[0].len() as u64);
            world.kill(A);
            world.goes_on(B);
        }
    }
}

/// Either server ends when both have said any part of their answers.
#[test]
fn a_failover_at_any_byte_of_both_answers_leaves_one_message() {
    for (a, b) in pairs() {
        let scripts = [plain(a), plain(b)];
        for ours in 0..=scripts[0].len() - HEAD.len() {
            for theirs in 0..=scripts[1].len() - HEAD.len() {
                for dead in LegId::ALL {
                    let what = format!("{a:?} {b:?} {ours} {theirs} without {dead:?}");
                    let mut world = world(scripts.clone());
                    world.say(A, 0, HEAD.len() + ours);
                    world.say(B, 0, HEAD.len() + theirs);
                    world.ack();
                    let before = world.text();
                    world.kill(dead);
                    assert_eq!(state(&world.kit), FlowState::Solo, "{what}");
                    world.finish(dead.other(), 5);
                    assert!(world.text().starts_with(&before), "{what}: what was shown stays");
                    has_whole(&world, &what);
                    world.goes_on(dead.other());
                }
            }
        }
    }
}

/// The client has lost what follows any byte of what it was shown.
#[test]
fn a_failover_after_any_byte_that_the_client_has_leaves_one_message() {
    for (a, b) in pairs() {
        let scripts = [plain(a), plain(b)];
        for cut in [3, 12, 20, 1000] {
            let said = scripts.each_ref().map(|s| (HEAD.len() + cut).min(s.len()));
            for has in HEAD.len()..=said[0] {
                let what = format!("{a:?} {b:?} {cut} {has}");
                let mut world = world(scripts.clone());
                world.deaf_from = has;
                world.say(A, 0, said[0]);
                world.say(B, 0, said[1]);
                world.ack();
                world.kill(A);
                world.finish(B, 4);
                has_whole(&world, &what);
                world.goes_on(B);
            }
        }
    }
}

/// The backup is late by the limit of the hold, and the client is shown what the primary says: any
/// part of a chunk line too. Then the primary ends.
#[test]
fn a_survivor_completes_any_part_of_a_chunk_line_that_was_shown() {
    for (a, b) in pairs() {
        let scripts = [plain(a), plain(b)];
        for ours in 0..=scripts[0].len() - HEAD.len() {
            for theirs in [0, 7, 16] {
                let what = format!("{a:?} {b:?} {ours} {theirs}");
                let mut world = world(scripts.clone());
                world.may_detach = true; // where the primary is the late one
                world.say(B, 0, HEAD.len() + theirs);
                world.say(A, 0, HEAD.len() + ours);
                world.kit.wait_ms(700);
                world.hear();
                world.ack();
                let before = world.text();
                world.kill(A);
                world.finish(B, 5);
                assert!(world.text().starts_with(&before), "{what}: what was shown stays");
                has_whole(&world, &what);
                assert_eq!(state(&world.kit), FlowState::Solo, "{what}");
                world.goes_on(B);
            }
        }
    }
}

/// The late backup says the rest, and both are equal again.
#[test]
fn a_lagging_backup_proves_a_body_in_other_chunks() {
    for (a, b) in pairs() {
        let scripts = [plain(a), plain(b)];
        for theirs in 0..scripts[1].len() {
            for has in [HEAD.len() + 1, HEAD.len() + 9, scripts[0].len()] {
                let what = format!("{a:?} {b:?} {theirs} {has}");
                let mut world = world(scripts.clone());
                world.say(A, 0, scripts[0].len());
                world.say(B, 0, theirs);
                world.deaf_from = has;
                world.kit.wait_ms(700);
                world.hear();
                assert_eq!(state(&world.kit), FlowState::Lagging, "{what}");
                world.ack();
                world.say(B, theirs, scripts[1].len());
                world.ack();
                assert_eq!(state(&world.kit), FlowState::Paired, "{what}");
                world.kill(A);
                world.finish(B, 100);
                assert_eq!(show(&world.text()), show(&scripts[0]), "{what}");
                world.goes_on(B);
            }
        }
    }
}

/// A server that ends inside of its body loses, wherever the other one's chunks are.
#[test]
fn an_early_end_inside_of_a_body_moves_the_flow() {
    for (a, b) in pairs() {
        let scripts = [plain(a), plain(b)];
        for (dying, cut) in [(A, 0), (B, 1)].map(|(id, i)| (id, scripts[i].len())) {
            for said in HEAD.len()..cut {
                let what = format!("{a:?} {b:?} {dying:?} at {said}");
                let mut world = world(scripts.clone());
                world.may_detach = true;
                world.say(dying, 0, said);
                let other = dying.other();
                let end = world.server(other).script.len();
                let seq = ISN[dying.index()].wrapping_add(n(said));
                world.kit.leg(dying, say(FIN, seq, R + world.asked));
                world.say(other, 0, end);
                world.ack();
                world.finish(other, 9);
                has_whole(&world, &what);
                assert_eq!(state(&world.kit), FlowState::Solo, "{what}");
            }
        }
    }
}

/// The survivor's body is shorter than what was promised to the client, or goes on where that has
/// ended: it is reset, at the byte that it expects.
#[test]
fn what_a_survivor_can_not_keep_ends_in_an_exact_reset() {
    let ours = |rest: &str| [HEAD, rest].concat().into_bytes();
    let cases = [
        ("8\r\nabcdefgh\r\n0\r\n\r\n", "4\r\nabcd\r\n0\r\n\r\n", 5, "8\r\nab"),
        ("8\r\nabcdefgh\r\n0\r\n\r\n", "4\r\nabcd\r\nx\r\n", 5, "8\r\nab"),
    ];
    for (a, b, said, shown) in cases {
        let mut world = world([ours(a), ours(b)]);
        world.say(A, 0, HEAD.len() + said);
        world.say(B, 0, HEAD.len() + 5);
        world.ack();
        assert_eq!(show(&world.text()), show(&ours(shown)), "{a:?}");
        world.kill(A);
        world.kit.forget();
        let text = ours(b);
        let seq = ISN[1] + n(HEAD.len() + 5);
        world.kit.leg(B, say(ACK, seq, R + world.asked).data(&text[HEAD.len() + 5..]));
        let shown = world.kit.on(Link::Client);
        let data: usize = shown.iter().map(|h| h.data.len()).sum();
        let last = shown.last().expect("a reset").seg;
        let at = P + n(HEAD.len() + said) + n(data);
        assert_eq!((last.flags, last.seq), (RST, at), "{b:?}");
        assert!(world.kit.events.iter().any(|e| matches!(e, Event::FlowReset { .. })));
    }
}

/// A survivor that ends inside of the shown chunk ends there for the client too; in a chunk line of
/// its own, of which nothing can be shown, that is a reset.
#[test]
fn a_survivor_that_ends_early_is_not_waited_for() {
    let scripts = ["8\r\nabcdefgh\r\n0\r\n\r\n", "4\r\nabcd\r\n4\r\nefgh\r\n0\r\n\r\n"]
        .map(|rest| [HEAD, rest].concat().into_bytes());
    for (said, flags) in [(7, FIN), (8, RST), (9, RST), (11, RST), (12, RST), (13, FIN)] {
        let mut world = world(scripts.clone());
        world.say(A, 0, HEAD.len() + 5);
        world.say(B, 0, HEAD.len() + 5);
        world.ack();
        world.kill(A);
        world.say(B, HEAD.len() + 5, HEAD.len() + said);
        world.ack();
        world.kit.forget();
        let seq = ISN[1] + n(HEAD.len() + said);
        world.kit.leg(B, say(FIN, seq, R + world.asked));
        let shown = world.kit.on(Link::Client);
        let at = P + n(world.text().len());
        let last = shown.last().map(|heard| (heard.seg.flags, heard.seg.seq));
        assert_eq!(last, Some((flags, at)), "{said}");
    }
}

/// What is no framing is compared as ever; the client sees nothing of it.
#[test]
fn a_difference_in_a_body_is_found_whatever_its_chunks() {
    let cases = [
        ("4\r\nabcd\r\n0\r\n\r\n", "2\r\nab\r\n2\r\ncX\r\n0\r\n\r\n", "4\r\nabc", "body"),
        ("2\r\nab\r\n2\r\ncX\r\n0\r\n\r\n", "4\r\nabcd\r\n0\r\n\r\n", "2\r\nab\r\n2\r\nc", "body"),
        ("4\r\nabcd\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "4\r\nabc", "body"),
        ("3\r\nabc\r\n0\r\n\r\n", "4\r\nabcd\r\n0\r\n\r\n", "3\r\nabc", "body"),
        ("4\r\nabcd\r\n0\r\n\r\n", "2\r\nabcd\r\n0\r\n\r\n", "4\r\nab", "chunk size"),
        ("4\r\nabcd\r\n0\r\n\r\n", "2\r\nab\r\n-2\r\ncd\r\n0\r\n\r\n", "4\r\nab", "chunk size"),
        ("4\r\nabcd\r\n0\r\n\r\n", "x\r\nabcd\r\n0\r\n\r\n", "", "chunk size"),
        (
            "4\r\nabcd\r\n0\r\nT: 1\r\n\r\n",
            "2\r\nab\r\n2\r\ncd\r\n0\r\nT: 2\r\n\r\n",
            "4\r\nabcd\r\n0\r\nT: ",
            "trailer",
        ),
    ];
    for (a, b, shown, field) in cases {
        let script = |rest: &str| [HEAD, rest].concat().into_bytes();
        let scripts = [script(a), script(b)];
        let mut world = world(scripts.clone());
        world.may_detach = true;
        world.say(A, 0, scripts[0].len());
        world.say(B, 0, scripts[1].len());
        let told = world.kit.events.iter().find_map(|e| match e {
            Event::Diverged { divergence, .. } => Some(divergence.clone()),
            _ => None,
        });
        let told = told.unwrap_or_else(|| panic!("{b:?} differs"));
        let name = told.field.as_ref().map(ToString::to_string);
        let at = told.at.since(Offset::START) as usize;
        assert_eq!((at, name.as_deref()), (HEAD.len() + shown.len(), Some(field)), "{b:?}");
        world.kit.wait_ms(1000);
        world.hear();
        assert_eq!(show(&world.text()), show(&scripts[0]), "{b:?}: the primary's version");
    }
}

/// Sizes may be written in any way, with extensions; beyond the limit they are not followed.
#[test]
fn chunk_lines_may_be_written_differently() {
    let cuts = [3, 12, 23];
    let body = BODY.as_bytes();
    let write: [fn(usize) -> String; 4] = [
        |size| format!("{size:x}"),
        |size| format!("{size:04X}"),
        |size| format!("{size:X};a=\"b\""),
        |size| format!("{size:x} "),
    ];
    for ours in write {
        for theirs in write {
            for b in [&cuts[..], &[7, 23]] {
                let scripts = [message(body, &cuts, "", ours), message(body, b, "", theirs)];
                for said in 0..=scripts[1].len() {
                    let mut world = world(scripts.clone());
                    world.say(A, 0, scripts[0].len());
                    world.say(B, 0, said);
                    world.kill(A);
                    world.finish(B, 6);
                    has_body(&world, body, b"\r\n", &format!("{said} of {}", show(&scripts[1])));
                    world.goes_on(B);
                }
            }
        }
    }
}

/// So many chunk lines on their way have their place in the map. The next one waits for the
/// client's acks, and nobody is late.
#[test]
fn chunks_beyond_the_room_of_the_map_wait_for_the_clients_acks() {
    let body = vec![b'y'; 3 * SPLICES_MAX];
    let each: Vec<usize> = (1..=body.len()).collect();
    let size = |size: usize| format!("{size:x}");
    let cut = [message(&body, &each, "", size), message(&body, &[body.len()], "", size)];
    for turned in [false, true] {
        let mut scripts = cut.clone();
        if turned {
            scripts.reverse();
        }
        let mut world = world(scripts.clone());
        world.say(A, 0, scripts[0].len());
        world.say(B, 0, scripts[1].len());
        let shown = world.text().len();
        assert!(shown < scripts[0].len());
        world.kit.wait_ms(2000);
        world.hear();
        assert_eq!((state(&world.kit), world.text().len()), (FlowState::Paired, shown));
        for _ in 0..5 {
            world.ack();
        }
        assert_eq!(world.text(), scripts[0]);
        assert_eq!([A, B].map(|id| world.server(id).acked), scripts.map(|s| s.len()));
    }
}

/// What the client says meanwhile is no HTTP any more: the body is compared to its end all the
/// same, for its framing is not the one that the survivor would go on with.
#[test]
fn a_request_that_can_not_be_read_waits_for_the_end_of_the_body() {
    let scripts = [plain(&[10, 20, 23]), plain(&[4, 23])];
    for (said, dead) in [(HEAD.len() + 20, true), (HEAD.len() + 20, false)] {
        let mut world = world(scripts.clone());
        world.say(A, 0, said);
        world.say(B, 0, said);
        world.request = "what?\r\n\r\n";
        world.ask();
        if dead {
            world.kill(A);
        } else {
            world.say(A, said, scripts[0].len());
        }
        world.finish(B, 3);
        has_whole(&world, "after a request that nobody understands");
        let raw = world.kit.events.iter().filter(|e| matches!(e, Event::ComparedRaw { .. }));
        assert_eq!(raw.count(), usize::from(!dead));
    }
}

/// The gateway starts anew in the middle of such a body: the backup is given up, and the client of
/// a survivor is reset exactly, for only the process before knew what it was promised.
#[test]
fn a_restart_inside_of_such_a_body_gives_up_whoever_cuts_it_otherwise() {
    let scripts = [plain(&[10, 23]), plain(&[17, 23])];
    let said = HEAD.len() + 8;
    for dies in [false, true] {
        let mut world = world(scripts.clone());
        world.say(A, 0, said);
        world.say(B, 0, said);
        world.ack();
        let has = world.has();
        if dies {
            world.kill(A);
        }
        let mut kit = Kit::restored(masked(), last_record(&world.kit));
        kit.wait_ms(100);
        kit.forget();
        kit.client(say(ACK, R + world.asked, P + n(has)));
        let is_reset = kit.on(Link::Client).iter().any(|h| h.seg.flags == RST);
        assert_eq!(is_reset, dies);
        if !dies {
            kit.leg(A, say(ACK, P + n(said), R + world.asked));
            kit.leg(B, say(ACK, ISN[1] + n(said), R + world.asked));
            assert_eq!(state(&kit), FlowState::Solo);
        }
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Act {
    Say(LegId, usize),
    Repeat(LegId, usize),
    Ack,
    Deaf(usize),
    Wait,
}

fn act() -> impl Strategy<Value = Act> {
    let leg = prop_oneof![Just(A), Just(B)];
    prop_oneof![
        6 => (leg.clone(), 1usize..30).prop_map(|(id, n)| Act::Say(id, n)),
        1 => (leg, 1usize..20).prop_map(|(id, n)| Act::Repeat(id, n)),
        2 => Just(Act::Ack),
        1 => (0usize..12).prop_map(Act::Deaf),
        1 => Just(Act::Wait),
    ]
}

fn cuts(len: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::btree_set(1..=len, 0..8).prop_map(move |mut cuts| {
        cuts.insert(len);
        cuts.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_two_chunkings_in_any_order_of_events_leave_one_message(
        (body, a, b) in (1usize..60).prop_flat_map(|len| {
            (prop::collection::vec(any::<u8>(), len), cuts(len), cuts(len))
        }),
        styles in (0usize..3, 0usize..3),
        has_trailer in any::<bool>(),
        acts in prop::collection::vec(act(), 0..40),
        dead in prop_oneof![Just(A), Just(B)],
        piece in 1usize..20,
        window in prop_oneof![Just(60_000u16), 20u16..200],
    ) {
        let write = |style: usize| move |size: usize| match style {
            0 => format!("{size:x}"),
            1 => format!("{size:03X}"),
            _ => format!("{size:x};e=1"),
        };
        let trailer = if has_trailer { "T: 1\r\n" } else { "" };
        let scripts = [
            message(&body, &a, trailer, write(styles.0)),
            message(&body, &b, trailer, write(styles.1)),
        ];
        let mut world = World::speaking(masked(), scripts.clone(), window);
        world.last = NEXT.as_bytes().to_vec();
        world.may_detach = true;
        world.ask();
        for act in acts {
            match act {
                Act::Say(id, n) => {
                    let (from, all) = (world.server(id).sent, world.server(id).script.len());
                    let to = (from + n).min(all).min(world.server(id).edge);
                    if from < to {
                        world.say(id, from, to);
                    }
                }
                Act::Repeat(id, n) => {
                    let (from, sent) = (world.server(id).acked, world.server(id).sent);
                    if from < sent {
                        world.say(id, from, (from + n).min(sent));
                    }
                }
                Act::Ack => world.ack(),
                Act::Deaf(more) => {
                    let has = world.has();
                    world.deaf_from = if more == 0 { usize::MAX } else { has + more };
                }
                Act::Wait => {
                    world.kit.wait_ms(90);
                    world.hear();
                }
            }
        }
        let before = world.text();
        // A flow that was left to one server lives with that one.
        let flow = &world.kit.engine.flows(1)[0];
        let survivor = match flow.state {
            FlowState::Solo => flow.primary,
            _ => dead.other(),
        };
        world.kill(survivor.other());
        drain(&mut world, survivor, piece);
        prop_assert!(world.text().starts_with(&before));
        has_body(&world, &body, [trailer, "\r\n"].concat().as_bytes(), &show(&scripts[1]));
        if window == 60_000 {
            world.goes_on(survivor);
        }
    }
}

/// Like [`World::finish`], as far as the client's window lets the server speak.
fn drain(world: &mut World, id: LegId, piece: usize) {
    world.deaf_from = usize::MAX;
    for _ in 0..200 {
        world.ack();
        let server = world.server(id);
        let (mut at, end) = (server.acked, server.script.len());
        if at >= end {
            return;
        }
        let end = end.min(server.edge);
        while at < end {
            let to = (at + piece).min(end);
            world.say(id, at, to);
            at = to;
        }
        world.kit.wait_ms(5);
        world.hear();
    }
    panic!("{id:?} was acknowledged {} only: {}", world.server(id).acked, show(&world.text()));
}

/// One of several answers on a connection.
#[derive(Clone, Debug)]
struct Answer {
    body: Vec<u8>,
    /// The value that each server says of itself.
    values: [String; 2],
    /// Where each ends its chunks; not at all where the length is said.
    cuts: Option<[Vec<usize>; 2]>,
}

impl Answer {
    fn of(&self, id: LegId) -> Vec<u8> {
        let (value, body) = (&self.values[id.index()], &self.body);
        let head = format!("HTTP/1.1 200 OK\r\nX: {value}\r\n");
        match &self.cuts {
            Some(cuts) => {
                let text = message(body, &cuts[id.index()], "", |size| format!("{size:x}"));
                let rest = &text["HTTP/1.1 200 OK\r\n".len()..];
                [head.as_bytes(), rest].concat()
            }
            None => {
                [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
            }
        }
    }

    /// Takes it from the beginning of `text`; the value is one server's.
    fn take<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let whole = show(text);
        let is_it = |value: &&String| {
            text.starts_with(format!("HTTP/1.1 200 OK\r\nX: {value}\r\n").as_bytes())
        };
        let value = self.values.iter().find(is_it);
        assert!(value.is_some(), "{:?}: {whole}", self.values);
        match &self.cuts {
            Some(_) => {
                let (body, end, len) = read(text).unwrap_or_else(|| panic!("{whole}"));
                assert_eq!((show(&body), &end[..]), (show(&self.body), &b"\r\n"[..]), "{whole}");
                &text[len..]
            }
            None => {
                let at = text.windows(4).position(|w| w == b"\r\n\r\n").expect("an end") + 4;
                let body = text[at..].strip_prefix(&self.body[..]);
                body.unwrap_or_else(|| panic!("{:?}: {whole}", show(&self.body)))
            }
        }
    }
}

fn answer() -> impl Strategy<Value = Answer> {
    let body = (1usize..50).prop_flat_map(|len| {
        let both = (cuts(len), cuts(len)).prop_map(|(a, b)| [a, b]);
        (prop::collection::vec(any::<u8>(), len), prop::option::weighted(0.8, both))
    });
    (body, "[a-z]{1,9}", "[A-Z]{1,9}").prop_map(|((body, cuts), a, b)| Answer {
        body,
        values: [a, b],
        cuts,
    })
}

/// What happens next on a connection with several answers.
#[derive(Clone, Debug)]
enum Turn {
    /// A server says so much, behind a hole.
    Say(LegId, usize, usize),
    Repeat(LegId, usize),
    Ack,
    Deaf(usize),
    Wait(u64),
    Swap,
}

fn turn() -> impl Strategy<Value = Turn> {
    let leg = || prop_oneof![Just(A), Just(B)];
    let hole = prop_oneof![5 => Just(0usize), 1 => 1usize..9];
    prop_oneof![
        8 => (leg(), hole, 1usize..60).prop_map(|(id, hole, n)| Turn::Say(id, hole, n)),
        2 => (leg(), 1usize..40).prop_map(|(id, n)| Turn::Repeat(id, n)),
        3 => Just(Turn::Ack),
        1 => (0usize..12).prop_map(Turn::Deaf),
        1 => (1u64..60).prop_map(Turn::Wait),
        1 => Just(Turn::Swap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_answers_one_after_another_are_whole_whoever_says_the_rest(
        answers in prop::collection::vec(answer(), 1..5),
        turns in prop::collection::vec(turn(), 0..60),
        dead in prop_oneof![Just(A), Just(B)],
        piece in 1usize..40,
        window in prop_oneof![Just(60_000u16), 20u16..300],
    ) {
        let scripts = [A, B].map(|id| answers.iter().flat_map(|a| a.of(id)).collect::<Vec<u8>>());
        let config = EngineConfig { rules: Rules::headers(["x"]), ..config() };
        let mut world = World::speaking(config, scripts, window);
        world.last = NEXT.as_bytes().to_vec();
        world.may_detach = true;
        answers.iter().for_each(|_| world.ask());
        for turn in turns {
            match turn {
                Turn::Say(id, hole, n) => {
                    let server = world.server(id);
                    let end = server.script.len().min(server.edge);
                    let from = (server.sent + hole).min(end);
                    let to = (from + n).min(end);
                    if from < to {
                        world.say(id, from, to);
                    }
                }
                Turn::Repeat(id, n) => {
                    let (from, sent) = (world.server(id).acked, world.server(id).sent);
                    if from < sent {
                        world.say(id, from, (from + n).min(sent));
                    }
                }
                Turn::Ack => world.ack(),
                Turn::Deaf(more) => {
                    let has = world.has();
                    world.deaf_from = if more == 0 { usize::MAX } else { has + more };
                }
                Turn::Wait(ms) => {
                    world.kit.wait_ms(ms);
                    world.hear();
                }
                Turn::Swap => {
                    world.kit.command(Command::Failover { to: None, is_planned: true });
                    world.hear();
                }
            }
        }
        let before = world.text();
        let flow = &world.kit.engine.flows(1)[0];
        // A value that was shown in part by a server that dies is nobody's (see `splices`).
        prop_assume!(flow.state != FlowState::Lagging);
        let survivor = match flow.state {
            FlowState::Solo => flow.primary,
            _ => dead.other(),
        };
        world.kill(survivor.other());
        drain(&mut world, survivor, piece);
        prop_assert!(world.text().starts_with(&before));
        let text = world.text();
        let rest = answers.iter().fold(&text[..], |text, answer| answer.take(text));
        prop_assert_eq!(show(rest), "");
        if window == 60_000 {
            world.goes_on(survivor);
        }
    }
}

fn shown_data(kit: &Kit) -> Vec<u8> {
    kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect()
}

/// Both servers have said so much of a body each, behind [`HEAD`]; a sync of machines is possible.
fn in_body(a: &str, b: &str) -> (Kit, u32) {
    const GET: &str = "GET / HTTP/1.1\r\n\r\n";
    let mut kit = equal_with(masked());
    kit.establish();
    kit.client(say(ACK, R, P).data(GET));
    let taken = R + n(GET.len());
    for (id, said) in [(A, a), (B, b)] {
        kit.leg(id, say(ACK, ISN[id.index()], taken).data([HEAD, said].concat()));
    }
    (kit, taken)
}

/// What a survivor says in a dead server's chunks, a copy of it says in its own.
#[test]
fn a_copy_does_not_join_a_survivor_that_goes_on_in_another_ones_chunks() {
    let (mut kit, taken) = in_body("8\r\nabcd", "6\r\nabcd");
    let at = n(HEAD.len()) + 7;
    kit.client(say(ACK, taken, P + at));
    fail_over_and_back(&mut kit);
    copy(&mut kit);
    assert_eq!(state(&kit), FlowState::Solo);
    kit.forget();
    kit.leg(B, say(ACK, ISN[1] + at, taken).data("ef\r\n3\r\nghi\r\n0\r\n\r\n"));
    let rest = b"efgh\r\n1\r\ni\r\n0\r\n\r\n";
    assert_eq!(show(&shown_data(&kit)), show(rest));
    kit.client(say(ACK, taken, P + at + n(rest.len())));
    assert!(kit.events.iter().all(|e| !matches!(e, Event::FlowReset { .. })));
}

/// A copy of the server whose chunks are shown says the rest as that one would.
#[test]
fn a_copy_of_the_primary_joins_it_in_the_middle_of_a_chunk() {
    let (mut kit, taken) = in_body("8\r\nabcdX", "6\r\nabcdY");
    kit.wait_ms(1);
    assert_eq!(state(&kit), FlowState::Diverged);
    copy(&mut kit);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.forget();
    let at = P + n(HEAD.len()) + 8;
    for id in [A, B] {
        kit.leg(id, say(ACK, at, taken).data("efg\r\n0\r\n\r\n"));
    }
    assert_eq!(show(&shown_data(&kit)), "efg\\r\\n0\\r\\n\\r\\n");
    assert_eq!(state(&kit), FlowState::Paired);
}
