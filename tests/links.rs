//! The packet sockets against the kernel: super-frames cross whole and undropped, carriers and
//! interfaces that go and come back are told and used again. Needs root: it makes network
//! namespaces. The engine takes no part; a loop of a few lines forwards client <-> server A.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use shadowvm::engine::{LegId, Link, Signal};
use shadowvm::io::af_packet::{LinkError, LinkOptions, LinkStats, Links};
use shadowvm::io::{Batch, Driver};
use shadowvm::lab::world::{GATEWAY_INTERFACES, HostId, SERVICE, World, WorldOptions};

const A: Link = Link::Server(LegId::A);
const PATIENCE: Duration = Duration::from_secs(10);

/// What the forwarder saw at its end.
#[derive(Debug)]
struct Seen {
    longest_frame: usize,
    partial_checksums: usize,
    stats: [Arc<LinkStats>; 3],
}

/// Forwards between the client and server A in the gateway's namespace while `work` runs.
fn forwarding(world: &World, work: impl FnOnce(&Receiver<(Link, Signal)>)) -> Seen {
    let waker: OwnedFd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into();
    let waker = Arc::new(waker);
    let is_over = AtomicBool::new(false);
    let (signals, told) = channel();
    std::thread::scope(|scope| {
        let (waker_of_loop, is_over_in_loop) = (Arc::clone(&waker), &is_over);
        let forwarder = scope.spawn(move || {
            let run = || forward(waker_of_loop, is_over_in_loop, &signals);
            world.enter(HostId::Gateway, run).unwrap()
        });
        // A failed assertion must end the forwarder too, or the scope waits for ever.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&told)));
        is_over.store(true, Relaxed);
        nix::unistd::write(&waker, &1u64.to_ne_bytes()).unwrap();
        let seen = forwarder.join().unwrap();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        seen
    })
}

fn forward(waker: Arc<OwnedFd>, is_over: &AtomicBool, signals: &Sender<(Link, Signal)>) -> Seen {
    let mut links = Links::open(GATEWAY_INTERFACES, LinkOptions::default()).unwrap();
    links.wake_on(waker);
    let mut seen = Seen { longest_frame: 0, partial_checksums: 0, stats: links.stats() };
    let mut batch = Batch::default();
    let mut last_look = None;
    loop {
        links.recv(&mut batch, last_look).unwrap();
        for signal in batch.signals.drain(..) {
            signals.send(signal).unwrap();
        }
        for (link, frame) in batch.frames.drain(..) {
            seen.longest_frame = seen.longest_frame.max(frame.len());
            seen.partial_checksums += usize::from(frame.offload().needs_csum.is_some());
            match link {
                Link::Client => links.send(A, frame),
                Link::Server(LegId::A) => links.send(Link::Client, frame),
                Link::Server(LegId::B) => {}
            }
        }
        links.flush().unwrap();
        match last_look {
            // Kernel drops are fetched five times a second: one more time for the end.
            None if is_over.load(Relaxed) => {
                last_look = Some(links.now() + Duration::from_millis(300));
            }
            Some(at) if links.now() >= at => return seen,
            _ => {}
        }
    }
}

/// One connection from the client to server A carries `len` bytes back; the bytes are checked.
fn transfer(world: &World, to: IpAddr, len: usize) -> Duration {
    let byte = |at: usize| ((at / 251) ^ at) as u8;
    let block: Vec<u8> = (0..1 << 20).map(byte).collect();
    let server = HostId::Server(LegId::A);
    let listener = world.enter(server, || TcpListener::bind((to, 8080)).unwrap()).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = listener.accept().unwrap().0;
            for at in (0..len).step_by(block.len()) {
                stream.write_all(&block[..block.len().min(len - at)]).unwrap();
            }
        });
        let connect = || TcpStream::connect_timeout(&(to, 8080).into(), PATIENCE).unwrap();
        let mut client = world.enter(HostId::Client, connect).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut got = vec![0; 1 << 20];
        for at in (0..len).step_by(block.len()) {
            let piece = block.len().min(len - at);
            client.read_exact(&mut got[..piece]).unwrap();
            assert!(got[..piece] == block[..piece], "wrong bytes in the block at {at}");
        }
        assert_eq!(client.read(&mut got).unwrap(), 0);
    });
    began.elapsed()
}

/// Waits until a signal of `link` fits.
fn await_signal(told: &Receiver<(Link, Signal)>, link: Link, fits: impl Fn(Signal) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let (of, signal) = told.recv_timeout(left).expect("the signal comes within 10 s");
        if of == link && fits(signal) {
            return;
        }
    }
}

fn is_up(signal: Signal) -> bool {
    matches!(signal, Signal::CarrierUp(_))
}

#[test]
fn super_frames_cross_whole_and_none_is_dropped() {
    const BYTES: usize = 200 << 20;
    let world = World::new(&WorldOptions::default()).unwrap();
    let seen = forwarding(&world, |told| {
        await_signal(told, A, is_up);
        for to in [SERVICE.0.into(), SERVICE.1.into()] {
            let took = transfer(&world, to, BYTES);
            let rate = BYTES as f64 * 8e-9 / took.as_secs_f64();
            println!("{to}: 200 MiB in {took:?}, {rate:.2} Gbit/s");
        }
    });
    assert!(seen.longest_frame > 30_000, "super-frames arrive whole: {}", seen.longest_frame);
    assert!(seen.partial_checksums > 0, "partial checksums arrive as such");
    for stats in &seen.stats {
        assert_eq!(stats.kernel_drops.load(Relaxed), 0, "{stats:?}");
        assert_eq!(stats.queue_drops.load(Relaxed), 0, "{stats:?}");
        assert_eq!(stats.bad_headers.load(Relaxed), 0, "{stats:?}");
        assert!(stats.send_errors.lock().unwrap().is_empty(), "{stats:?}");
    }
}

#[test]
fn carriers_and_interfaces_go_and_come_back() {
    let world = World::new(&WorldOptions::default()).unwrap();
    forwarding(&world, |told| {
        await_signal(told, A, is_up);
        transfer(&world, SERVICE.0.into(), 1 << 20);
        for _ in 0..3 {
            world.link_down(LegId::A).unwrap();
            await_signal(told, A, |signal| signal == Signal::CarrierDown);
            world.link_up(LegId::A).unwrap();
            await_signal(told, A, is_up);
        }
        transfer(&world, SERVICE.0.into(), 1 << 20);
        for _ in 0..3 {
            world.delete_host(LegId::A).unwrap();
            await_signal(told, A, |signal| signal == Signal::LinkGone);
            world.return_host(LegId::A).unwrap();
            await_signal(told, A, is_up);
            transfer(&world, SERVICE.0.into(), 1 << 20);
        }
    });
}

#[test]
fn a_missing_interface_is_waited_for_and_a_foreign_one_refused() {
    let world = World::new(&WorldOptions::default()).unwrap();
    let open = |names| world.enter(HostId::Gateway, || Links::open(names, LinkOptions::default()));
    let mut links = open(["client", "none-yet", "b"]).unwrap().unwrap();
    // The kernel may tell of a carrier a moment after the world was made.
    let (mut told, mut batch, end) = (Vec::new(), Batch::default(), links.now() + PATIENCE);
    let client_is_up = |&(link, signal): &(Link, Signal)| link == Link::Client && is_up(signal);
    while !told.iter().any(client_is_up) {
        assert!(links.now() < end, "{told:?}");
        links.recv(&mut batch, Some(end)).unwrap();
        told.append(&mut batch.signals);
    }
    assert!(told.contains(&(A, Signal::LinkGone)), "{told:?}");
    let refused = open(["client", "a", "lo"]).unwrap();
    assert!(matches!(&refused, Err(LinkError::NotEthernet(name)) if name == "lo"), "{refused:?}");
}
