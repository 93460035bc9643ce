//! Translation between the numbers of a client and of two servers, both ways and across the wrap:
//! whatever the three initial numbers are, what is said at a byte is heard at that byte.

use proptest::prelude::*;

use super::{Connection, Heard, LegId, Link, Say};
use crate::wire::TcpFlags;

/// Bytes each way.
const LEN: u32 = 4000;

/// Any number, or one from which the stream crosses the wrap, or the sign.
fn any_iss() -> impl Strategy<Value = u32> {
    let near = |edge: u32| (0u32..LEN).prop_map(move |back| edge.wrapping_sub(back));
    prop_oneof![any::<u32>(), near(0), near(1 << 31)]
}

/// The lengths of the pieces in which a stream is said.
fn any_cut() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(1u32..1400, 0..12)
}

/// `LEN` bytes cut as told: where each piece begins, and its length.
fn pieces(cut: &[u32]) -> Vec<(u32, u32)> {
    let mut at = 0;
    let mut found = Vec::new();
    for &len in cut {
        let len = len.min(LEN - at);
        found.extend((len > 0).then_some((at, len)));
        at += len;
    }
    while at < LEN {
        let len = (LEN - at).min(1400);
        found.push((at, len));
        at += len;
    }
    found
}

fn bytes(at: u32, len: u32) -> Vec<u8> {
    (at..at + len).map(|x| (x * 7 + x / 251) as u8).collect()
}

/// The stream as it arrived on one link: each segment's bytes at the place that its number says.
fn stream(c: &Connection, heard: &[Heard]) -> Result<Vec<u8>, TestCaseError> {
    let mut stream = Vec::new();
    for one in heard.iter().filter(|h| !h.data.is_empty()) {
        let (at, _) = c.place(one);
        prop_assert_eq!(at as usize, stream.len(), "{:?}", one.seg);
        stream.extend_from_slice(&one.data);
    }
    Ok(stream)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_said_at_a_byte_is_heard_at_that_byte(
        client in any_iss(), legs in (any_iss(), any_iss()), has_stamps: bool,
        request in any_cut(), answers in (any_cut(), any_cut()),
    ) {
        let stamped = |it: Say| if has_stamps { it.stamps(9, 0) } else { it };
        let stamped_leg = |_, it: Say| if has_stamps { it.stamps(70, 9) } else { it };
        let mut c = Connection::open(client, [legs.0, legs.1], stamped, stamped_leg);
        // The request: to both servers, in the client's own numbers; the ack in theirs.
        for (at, len) in pieces(&request) {
            c.kit.client(stamped(c.by_client(at, 0)).data(bytes(at, len)));
        }
        for leg in LegId::ALL {
            let heard = c.kit.on(Link::Server(leg));
            prop_assert_eq!(stream(&c, &heard)?, bytes(0, LEN));
            prop_assert!(heard.iter().all(|h| c.place(h).1 == 0));
        }
        c.kit.forget();
        // Both have it; the client hears so once, of the later one.
        for (leg, acked) in [(LegId::A, LEN), (LegId::B, LEN - 1), (LegId::B, LEN)] {
            c.kit.leg(leg, stamped_leg(leg, c.by_leg(leg, 0, acked)));
        }
        let told: Vec<u32> = c.kit.on(Link::Client).iter().map(|h| c.place(h).1).collect();
        prop_assert_eq!(told, [LEN - 1, LEN]);
        c.kit.forget();
        // The answer, from each in its own pieces.
        for (leg, cut) in [(LegId::A, &answers.0), (LegId::B, &answers.1)] {
            for (at, len) in pieces(cut) {
                c.kit.leg(leg, stamped_leg(leg, c.by_leg(leg, at, LEN)).data(bytes(at, len)));
            }
        }
        let shown = c.kit.on(Link::Client);
        prop_assert_eq!(stream(&c, &shown)?, bytes(0, LEN));
        prop_assert!(shown.iter().all(|h| c.place(h).1 == LEN));
        c.kit.forget();
        // Every ack of the client, in the servers' numbers.
        for acked in [1, LEN / 2, LEN] {
            c.kit.client(stamped(c.by_client(LEN, acked)));
            for leg in LegId::ALL {
                let heard = c.kit.on(Link::Server(leg));
                prop_assert_eq!(heard.last().map(|h| c.place(h)), Some((LEN, acked)));
            }
        }
        c.kit.forget();
        // The end, both ways.
        for leg in LegId::ALL {
            let mut fin = stamped_leg(leg, c.by_leg(leg, LEN, LEN));
            fin.flags = TcpFlags::FIN_ACK;
            c.kit.leg(leg, fin);
        }
        let shown = c.kit.on(Link::Client);
        prop_assert_eq!(shown.len(), 1);
        prop_assert_eq!(c.place(&shown[0]), (LEN, LEN));
        prop_assert!(shown[0].seg.flags.has(TcpFlags::FIN));
        c.kit.forget();
        let mut fin = stamped(c.by_client(LEN, LEN + 1));
        fin.flags = TcpFlags::FIN_ACK;
        c.kit.client(fin);
        for leg in LegId::ALL {
            let heard = c.kit.on(Link::Server(leg));
            prop_assert_eq!(heard.last().map(|h| c.place(h)), Some((LEN, LEN + 1)));
        }
    }
}
