//! What the engine costs by itself: nanoseconds a frame and Gbit/s, on one core, without any system
//! call.
//!
//! Run: `cargo bench --bench engine`. Each line is the median of 15 runs, with the fastest and the
//! slowest, in processor time of the one thread: what others do on the machine is not in it.
//! Frames are made beforehand; what they carry lies in memory that no cache holds, unless the line
//! says so.

use bytes::Bytes;
use shadowvm::engine::{LegId, Link};
use shadowvm::lab::pair::Pair;
use shadowvm::lab::web::load::thread_cpu;
use shadowvm::wire::{Frame, TcpFlags};

const ACK: TcpFlags = TcpFlags::ACK;
const RUNS: usize = 15;
const SEGMENT: usize = 1448;
/// Whole segments in what one packet socket delivers.
const SUPER_FRAME: usize = 43 * SEGMENT;
/// What each server says: more than caches hold.
const BYTES: usize = 128 << 20;
const CACHED_BYTES: usize = 256 << 10;

/// Of one run.
struct Cost {
    nanos: u128,
    frames: u64,
    bytes: u64,
}

fn main() {
    // `cargo test --benches` passes --test: one short run shows that it works.
    let is_test = std::env::args().any(|a| a == "--test");
    let (runs, bytes) = if is_test { (1, 1 << 20) } else { (RUNS, BYTES) };
    let content = |len| [0, 1].map(|_| Bytes::from(vec![7; len]));
    let (large, small) = (content(bytes), content(CACHED_BYTES));
    report("agree and release, 1,448-byte segments", runs, || download(&large, bytes / 4, SEGMENT));
    report("agree and release, super-frames", runs, || download(&large, bytes, SUPER_FRAME));
    report("the same from cache", runs, || download(&small, bytes, SUPER_FRAME));
    report("upload, 1,448-byte segments", runs, || upload(bytes / 4));
    report("requests after a rest", runs, || after_rests(if is_test { 2 } else { 4 }));
}

fn report(name: &str, runs: usize, mut run: impl FnMut() -> Cost) {
    let costs: Vec<Cost> = (0..runs).map(|_| run()).collect();
    let sorted = |of: &dyn Fn(&Cost) -> f64| {
        let mut all: Vec<f64> = costs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        [all[runs / 2], all[0], all[runs - 1]]
    };
    let [median, low, high] = sorted(&|c| c.nanos as f64 / c.frames as f64);
    let [rate, least, most] = sorted(&|c| c.bytes as f64 * 8.0 / c.nanos as f64);
    println!(
        "{name:<40} {median:7.0} ns a frame in ({low:.0} to {high:.0}) \
         {rate:7.1} Gbit/s ({least:.1} to {most:.1})"
    );
}

/// Feeds what was made beforehand; `said` bytes are in it once.
fn feed(pair: &mut Pair, frames: Vec<(Link, Frame)>, said: usize) -> Cost {
    let now = || thread_cpu().expect("a thread has a clock");
    let (count, begin) = (frames.len() as u64, now());
    for (link, frame) in frames {
        pair.put(link, frame);
    }
    Cost { nanos: (now() - begin).as_nanos(), frames: count, bytes: said as u64 }
}

/// Both servers say about `bytes` bytes in frames of `size`, the client acknowledges each.
fn download(content: &[Bytes; 2], bytes: usize, size: usize) -> Cost {
    let mut pair = Pair::opened();
    let (count, pieces) = (bytes / size, content[0].len() / size);
    let mut frames = Vec::with_capacity(3 * count);
    for number in 0..count {
        let (at, from) = (1 + (number * size) as u32, number % pieces * size);
        for leg in LegId::ALL {
            let data = content[leg.index()].slice(from..from + size);
            frames.push((Link::Server(leg), pair.server_says(leg, ACK, (at, 1), data)));
        }
        let next = at.wrapping_add(size as u32);
        frames.push((Link::Client, pair.client_says(ACK, (1, next), Bytes::new())));
    }
    let cost = feed(&mut pair, frames, count * size);
    assert_eq!(pair.bytes_out, (count * size) as u64, "everything was released");
    cost
}

/// The client says about `bytes` bytes, both servers acknowledge each segment.
fn upload(bytes: usize) -> Cost {
    let mut pair = Pair::opened();
    let data = Bytes::from(vec![7; SEGMENT]);
    let count = bytes / SEGMENT;
    let mut frames = Vec::with_capacity(3 * count);
    for number in 0..count {
        let at = 1 + (number * SEGMENT) as u32;
        frames.push((Link::Client, pair.client_says(ACK, (at, 1), data.clone())));
        for leg in LegId::ALL {
            let ack = at + SEGMENT as u32;
            frames.push((Link::Server(leg), pair.server_says(leg, ACK, (1, ack), Bytes::new())));
        }
    }
    feed(&mut pair, frames, count * SEGMENT)
}

/// Connections ask in turn, so that each is at rest when its turn comes again.
fn after_rests(rounds: u32) -> Cost {
    const CONNECTIONS: u16 = 4000;
    let mut pair = Pair::new();
    pair.step_ns = 20_000;
    for port in 0..CONNECTIONS {
        pair.client.1 = 1024 + port;
        pair.open();
    }
    let (request, response) = (Bytes::from(vec![1; 100]), Bytes::from(vec![7; 1000]));
    let mut frames = Vec::new();
    for round in 0..rounds {
        let (asked, said) = (1 + round * 100, 1 + round * 1000);
        for port in 0..CONNECTIONS {
            pair.client.1 = 1024 + port;
            frames.push((Link::Client, pair.client_says(ACK, (asked, said), request.clone())));
            for leg in LegId::ALL {
                let answer = pair.server_says(leg, ACK, (said, asked + 100), response.clone());
                frames.push((Link::Server(leg), answer));
            }
            let thanks = pair.client_says(ACK, (asked + 100, said + 1000), Bytes::new());
            frames.push((Link::Client, thanks));
        }
    }
    let released = u64::from(CONNECTIONS) * u64::from(rounds) * 1000;
    let cost = feed(&mut pair, frames, released as usize);
    assert_eq!(pair.bytes_out, released, "everything was released");
    cost
}
