//! Well-behaved ends with any initial numbers, options and segment sizes: every byte arrives, both
//! ways, at every end, exactly once in order.

use shadowvm::engine::{LegId, Link};
use shadowvm::wire::TcpFlags;

use super::reader::Reader;
use super::world::World;

/// The client's number (4 bytes), each one's options, then who says how much next.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let (iss, offer) = (input.u32(), input.u8());
    // A server agrees to nothing that was not offered (RFC 7323 2.2, 3.2, RFC 2018 2).
    let answers = [input.u8(), input.u8()].map(|choice| choice & (offer | 0xf8));
    let mut world = World::new(false);
    world.syn(0, iss, offer);
    for leg in LegId::ALL {
        world.syn_ack(leg, 0, answers[leg.index()]);
    }
    world.speak(Link::Client, 0, 0, TcpFlags::ACK);
    // Bytes that the client, server A and server B have said.
    let mut said = [0usize; 3];
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let link = Link::ALL[usize::from(input.u8()) % 3];
        let len = usize::from(input.u16() % 3000);
        said[link.index()] += len;
        world.speak(link, 0, len, TcpFlags::ACK.with(TcpFlags::PSH));
    }
    // Both servers end with the same answer.
    let [asked, a, b] = said;
    for leg in LegId::ALL {
        let missing = a.max(b) - said[1 + leg.index()];
        world.speak(Link::Server(leg), 0, missing, TcpFlags::ACK);
    }
    world.speak(Link::Client, 0, 0, TcpFlags::ACK);
    let flow = world.flow(0);
    let asked = iss.wrapping_add(1).wrapping_add(asked as u32);
    assert_eq!(flow.heard, [asked; 2], "both servers have heard the whole request");
    let visible = flow.visible.expect("the client was answered");
    assert_eq!(flow.taken, visible.wrapping_add(1).wrapping_add(a.max(b) as u32));
    for leg in LegId::ALL {
        world.speak(Link::Server(leg), 0, 0, TcpFlags::FIN_ACK);
    }
    world.speak(Link::Client, 0, 0, TcpFlags::FIN_ACK);
    for leg in LegId::ALL {
        world.speak(Link::Server(leg), 0, 0, TcpFlags::ACK);
    }
    let flow = world.flow(0);
    assert_eq!(flow.heard, [asked.wrapping_add(1); 2], "and the end");
    assert_eq!(world.engine.status().held_bytes, 0);
    world.shown_bytes > 0
}

/// Numbers at every edge, all options and none.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (iss, options) in [
        (0u32, [0, 0, 0]),
        (u32::MAX - 100, [7, 7, 7]),
        (0x7fff_ffff, [0x3f, 0x17, 7]),
        (u32::MAX, [6, 2, 4]),
        (5, [1, 1, 0]),
    ] {
        let talk = [0, 0, 99, 1, 5, 220, 2, 0, 9, 2, 11, 0, 0, 4, 0, 1, 0, 1, 2, 2, 2];
        seeds.push([&iss.to_be_bytes()[..], &options, &talk].concat());
    }
    seeds
}
