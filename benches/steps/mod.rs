//! The steps of a packet's way that are counted: each prepares what it needs, and what is left to
//! do is the step alone. Nothing here counts.

use std::hint::black_box;
use std::net::SocketAddr;

use bytes::Bytes;
use shadowvm::engine::{LegId, Link, Signal};
use shadowvm::lab::pair::Pair;
use shadowvm::wire::{Addressed, Ends, Frame, TcpFlags, checksum, parse};

const ACK: TcpFlags = TcpFlags::ACK;

/// Does the step; how many packets came in, or the ones that `Step::name` speaks of.
type Work = Box<dyn FnMut() -> u64>;

pub struct Step {
    /// What a packet is, and what happens to it.
    pub name: &'static str,
    pub prepare: fn() -> Work,
}

pub const STEPS: &[Step] = &[
    Step { name: "parse, sum left to the kernel", prepare: || parsing(false) },
    Step { name: "parse and verify, 1,448 bytes", prepare: || parsing(true) },
    Step { name: "rewrite both ends", prepare: rewriting },
    Step { name: "agree and release", prepare: || agreeing(1448, 400) },
    Step { name: "agree and release, super-frames", prepare: || agreeing(43 * 1448, 100) },
    Step { name: "hold", prepare: holding },
    Step { name: "duplicate ack", prepare: repeating_acks },
    Step { name: "upload", prepare: uploading },
    Step { name: "failover flush, of each sent", prepare: flushing },
    Step { name: "request and answer, small", prepare: asking },
    Step { name: "connection, all of it", prepare: connecting },
];

/// Packets of a step before and in what is counted: by then buffers have grown.
const BEFORE: u32 = 100;
const COUNTED: u32 = 400;
const SEGMENT: usize = 1448;

const fn at(number: u32) -> u32 {
    1 + number * SEGMENT as u32
}

fn data(len: usize) -> Bytes {
    Bytes::from(vec![7; len])
}

/// Feeds frames that were made before.
fn feed(mut pair: Pair, frames: Vec<(Link, Frame)>) -> Work {
    let (count, mut frames) = (frames.len() as u64, frames.into_iter());
    Box::new(move || {
        frames.by_ref().for_each(|(link, frame)| pair.put(link, frame));
        count
    })
}

/// From the bytes that a socket delivers to what they mean.
fn parsing(is_complete: bool) -> Work {
    let pair = Pair::opened();
    let mut frame = pair.server_says(LegId::A, ACK, (1, 1), data(SEGMENT));
    if is_complete {
        checksum::complete(&mut frame);
    }
    let (bytes, offload) = (Bytes::from(frame.to_vec()), frame.offload());
    Box::new(move || {
        for _ in 0..COUNTED {
            let frame = Frame::from_wire(black_box(bytes.clone()), offload);
            assert!(black_box(parse::parse(&frame)).is_ok());
        }
        COUNTED.into()
    })
}

/// Other addresses and ports, the sums kept right.
fn rewriting() -> Work {
    let pair = Pair::opened();
    let mut frame = pair.server_says(LegId::A, ACK, (1, 1), data(SEGMENT));
    checksum::complete(&mut frame);
    let end = |text: &str| text.parse::<SocketAddr>().expect("an address and a port");
    let ways = [("198.51.100.10:80", "192.0.2.1:40000"), ("192.0.2.10:80", "192.0.2.1:50000")];
    let ways = ways.map(|(src, dst)| Ends { src: end(src), dst: end(dst) });
    Box::new(move || {
        for number in 0..COUNTED {
            let ends = Addressed::of(black_box(&frame)).expect("a whole packet");
            ends.readdress(&mut frame, ways[number as usize % 2], None);
        }
        COUNTED.into()
    })
}

/// Both servers say the same, the client acknowledges.
fn agreeing(size: usize, count: u32) -> Work {
    let mut pair = Pair::opened();
    let [a, b] = [data(size), data(size)];
    let mut frames = Vec::new();
    for number in 0..BEFORE + count {
        let from = 1 + number * size as u32;
        for (leg, data) in LegId::ALL.into_iter().zip([&a, &b]) {
            frames.push((Link::Server(leg), pair.server_says(leg, ACK, (from, 1), data.clone())));
        }
        let next = from + size as u32;
        frames.push((Link::Client, pair.client_says(ACK, (1, next), Bytes::new())));
    }
    warm(&mut pair, &mut frames, 3 * BEFORE);
    feed(pair, frames)
}

/// Feeds the first `count` frames, uncounted.
fn warm(pair: &mut Pair, frames: &mut Vec<(Link, Frame)>, count: u32) {
    frames.drain(..count as usize).for_each(|(link, frame)| pair.put(link, frame));
}

/// The backup alone speaks: nothing may be shown.
fn holding() -> Work {
    let mut pair = Pair::opened();
    let mut frames = held(&pair, BEFORE + COUNTED);
    warm(&mut pair, &mut frames, BEFORE);
    assert_eq!(pair.bytes_out, 0, "what one server says is held");
    feed(pair, frames)
}

fn held(pair: &Pair, count: u32) -> Vec<(Link, Frame)> {
    let (leg, data) = (LegId::B, data(SEGMENT));
    let say = |number| pair.server_says(leg, ACK, (at(number), 1), data.clone());
    (0..count).map(|number| (Link::Server(leg), say(number))).collect()
}

/// A client that lost a segment says so, again and again.
fn repeating_acks() -> Work {
    let mut pair = Pair::opened();
    let data = data(SEGMENT);
    for number in 0..COUNTED {
        for leg in LegId::ALL {
            let frame = pair.server_says(leg, ACK, (at(number), 1), data.clone());
            pair.put(Link::Server(leg), frame);
        }
    }
    let repeat = || (Link::Client, pair.client_says(ACK, (1, 1), Bytes::new()));
    let mut frames: Vec<_> = (0..BEFORE + COUNTED).map(|_| repeat()).collect();
    let before = pair.frames_out;
    warm(&mut pair, &mut frames, BEFORE);
    assert!(pair.frames_out > before, "the servers are told");
    feed(pair, frames)
}

/// The client speaks, both servers acknowledge.
fn uploading() -> Work {
    let mut pair = Pair::opened();
    let data = data(SEGMENT);
    let mut frames = Vec::new();
    for number in 0..BEFORE + COUNTED {
        frames.push((Link::Client, pair.client_says(ACK, (at(number), 1), data.clone())));
        for leg in LegId::ALL {
            let ack = pair.server_says(leg, ACK, (1, at(number + 1)), Bytes::new());
            frames.push((Link::Server(leg), ack));
        }
    }
    warm(&mut pair, &mut frames, 3 * BEFORE);
    feed(pair, frames)
}

/// The primary is gone: what the backup had said goes to the client, as its acks make room.
fn flushing() -> Work {
    let mut pair = Pair::opened();
    let mut frames = held(&pair, COUNTED);
    warm(&mut pair, &mut frames, COUNTED);
    Box::new(move || {
        pair.signal(LegId::A, Signal::CarrierDown);
        let (mut sent, mut acked) = (0, 0);
        while sent < COUNTED {
            let shown = (pair.bytes_out / SEGMENT as u64) as u32;
            assert!(shown > acked || sent == 0, "an ack makes room");
            (sent, acked) = (shown, shown);
            pair.put(Link::Client, pair.client_says(ACK, (1, at(acked)), Bytes::new()));
        }
        COUNTED.into()
    })
}

/// One connection asks and is answered, again and again.
fn asking() -> Work {
    let mut pair = Pair::opened();
    let (request, answer) = (data(100), data(300));
    let mut frames = Vec::new();
    for number in 0..BEFORE + COUNTED / 4 {
        let (asked, said) = (1 + number * 100, 1 + number * 300);
        frames.push((Link::Client, pair.client_says(ACK, (asked, said), request.clone())));
        for leg in LegId::ALL {
            let frame = pair.server_says(leg, ACK, (said, asked + 100), answer.clone());
            frames.push((Link::Server(leg), frame));
        }
        let thanks = pair.client_says(ACK, (asked + 100, said + 300), Bytes::new());
        frames.push((Link::Client, thanks));
    }
    warm(&mut pair, &mut frames, 4 * BEFORE);
    feed(pair, frames)
}

/// Connections from the first packet to the last, one request on each; counted by connection.
fn connecting() -> Work {
    const CONNECTIONS: u16 = 100;
    const FIN: TcpFlags = TcpFlags::FIN.with(ACK);
    let mut pair = Pair::new();
    let (request, answer, none) = (data(100), data(300), Bytes::new());
    Box::new(move || {
        for number in 0..CONNECTIONS {
            pair.client.1 = 1024 + number;
            pair.open();
            let both = |pair: &mut Pair, flags, numbers, data: &Bytes| {
                for leg in LegId::ALL {
                    let frame = pair.server_says(leg, flags, numbers, data.clone());
                    pair.put(Link::Server(leg), frame);
                }
            };
            pair.put(Link::Client, pair.client_says(ACK, (1, 1), request.clone()));
            both(&mut pair, ACK, (1, 101), &answer);
            pair.put(Link::Client, pair.client_says(FIN, (101, 301), none.clone()));
            both(&mut pair, FIN, (301, 102), &none);
            pair.put(Link::Client, pair.client_says(ACK, (102, 302), none.clone()));
        }
        CONNECTIONS.into()
    })
}
