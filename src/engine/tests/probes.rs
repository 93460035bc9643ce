//! The gateway's own probes: nobody but the servers ever hears of them.

use super::kit::{ACK, CLIENT_ISS, Heard, Kit, RST, SYN, SYN_ACK, Say, config, say};
use crate::engine::{Event, Input, LegId, Link, RejectReason};

const A: Link = Link::Server(LegId::A);

/// The first probe of a process that has heard a client: its port and number.
fn first_probe(kit: &mut Kit) -> (u16, u32) {
    kit.client(say(ACK, CLIENT_ISS, 1)); // no connection of anybody: an address to probe from
    kit.wait_ms(20);
    let is_probe = |h: &&Heard| h.link == A && h.seg.flags == SYN;
    let probe = kit.heard.iter().find(is_probe).expect("a probe");
    (probe.seg.src_port, probe.seg.seq)
}

#[test]
fn what_is_left_of_an_earlier_process_probe_is_ended_and_not_shown() {
    let (port, number) = first_probe(&mut Kit::new(config()));
    for (answer, is_reset) in [
        // The SYN-ACK repeated, and the challenge ack to the next probe from the same port.
        (say(SYN_ACK, 77, number.wrapping_add(1)).mss(1460), true),
        (say(ACK, 78, number.wrapping_add(1)), true),
        (say(RST.with(ACK), 0, number.wrapping_add(1)), false),
    ] {
        let mut kit = Kit::restored(config(), Vec::new());
        kit.input(Input::Timeout);
        kit.forget();
        let heard = kit.say(A, answer, port);
        let refused =
            |e: &Event| matches!(e, Event::Rejected { link: A, reason: RejectReason::ProbeReply });
        assert!(kit.events.iter().any(refused));
        assert!(heard.iter().all(|h| h.link == A), "{heard:?}");
        assert_eq!(heard.len(), usize::from(is_reset));
        assert!(heard.iter().all(|h| h.seg.flags == RST && h.seg.seq == number.wrapping_add(1)));
    }
}

#[test]
fn what_only_looks_like_a_probe_reaches_its_client() {
    let (port, number) = first_probe(&mut Kit::new(config()));
    let answer = say(SYN_ACK, 77, number.wrapping_add(1)).mss(1460);
    for (answer, port) in [
        (answer.clone().sack_ok(), port), // it agrees to what no probe offers
        (answer.clone(), 40_000),         // not a probe's port
        (Say { ack: number ^ 0xff, ..answer }, port), // nor its number
    ] {
        let mut kit = Kit::restored(config(), Vec::new());
        kit.input(Input::Timeout);
        kit.forget();
        let heard = kit.say(A, answer, port);
        assert_eq!(heard.iter().filter(|h| h.link == Link::Client).count(), 1, "{heard:?}");
    }
}

/// A number that could be guessed would let anybody answer for a server.
#[test]
fn no_two_probes_have_numbers_alike() {
    let mut kit = Kit::new(config());
    first_probe(&mut kit);
    kit.wait_ms(500);
    let is_probe = |h: &&Heard| h.link == A && h.seg.flags == SYN;
    let mut numbers: Vec<u32> = kit.heard.iter().filter(is_probe).map(|h| h.seg.seq).collect();
    let sent = numbers.len();
    assert!(sent >= 50, "{sent}");
    numbers.iter_mut().for_each(|number| *number >>= 16); // below stands what all have to have
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), sent);
}
