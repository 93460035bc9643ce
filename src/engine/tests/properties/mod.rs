//! The arithmetic of the engine against models too simple to be wrong: exhaustive where the space
//! is small, random elsewhere.

mod clock;
mod delta;
mod fragments;
mod ranges;
mod sack;
mod stream;
mod window;

use super::kit::{ACK, Heard, Kit, SYN, SYN_ACK, Say, config, say};
use super::{LegId, Link};

/// A connection whose numbers are the test's: a client and two servers behind a real engine.
struct Connection {
    kit: Kit,
    /// The client's initial number.
    client: u32,
    /// Each server's; the client is shown the first one's.
    legs: [u32; 2],
}

impl Connection {
    /// Opened, with the options that `offer` and `answer` add.
    fn open(
        client: u32,
        legs: [u32; 2],
        offer: impl Fn(Say) -> Say,
        answer: impl Fn(LegId, Say) -> Say,
    ) -> Self {
        let mut kit = Kit::new(config());
        kit.client(offer(say(SYN, client, 0).mss(1460)));
        for leg in LegId::ALL {
            let syn_ack = say(SYN_ACK, legs[leg.index()], client.wrapping_add(1)).mss(1460);
            kit.leg(leg, answer(leg, syn_ack));
        }
        let mut it = Self { kit, client, legs };
        let third = offer(it.by_client(0, 0));
        it.kit.client(third);
        it.kit.forget();
        it
    }

    /// An ack of the client at byte `at` of its stream, of `acked` bytes of the answer.
    fn by_client(&self, at: u32, acked: u32) -> Say {
        let visible = self.legs[0];
        say(ACK, after(self.client, at), after(visible, acked))
    }

    /// An ack of a server at byte `at` of the answer, of `acked` bytes of the client.
    fn by_leg(&self, leg: LegId, at: u32, acked: u32) -> Say {
        say(ACK, after(self.legs[leg.index()], at), after(self.client, acked))
    }

    /// Where a segment stands in the stream of its direction, and what it acknowledges, in bytes
    /// behind the SYN of the numbers that its receiver knows.
    fn place(&self, heard: &Heard) -> (u32, u32) {
        let (from, to) = match heard.link {
            Link::Client => (self.legs[0], self.client),
            Link::Server(leg) => (self.client, self.legs[leg.index()]),
        };
        (before(from, heard.seg.seq), before(to, heard.seg.ack))
    }
}

/// The number of byte `at` behind the SYN `iss`.
fn after(iss: u32, at: u32) -> u32 {
    iss.wrapping_add(1).wrapping_add(at)
}

/// The byte behind the SYN `iss` that has this number.
fn before(iss: u32, number: u32) -> u32 {
    number.wrapping_sub(iss).wrapping_sub(1)
}
