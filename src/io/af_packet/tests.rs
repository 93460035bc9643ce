//! Barriers, with links that need no privilege: unix datagrams.

use std::num::NonZeroU32;
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::engine::LegId;
use crate::io::datagram::guest_path;
use crate::wire::Offload;

struct Bench {
    _dir: tempfile::TempDir,
    links: Links,
    server: UnixDatagram,
    path: PathBuf,
}

const SERVER: Link = Link::Server(LegId::A);

fn bench() -> Bench {
    let dir = tempfile::tempdir().expect("a directory");
    let attached = Attached::default();
    attached.set(NonZeroU32::new(1));
    let link = |name: &str| LinkSpec::Guest(dir.path().join(name), attached.clone());
    let path = dir.path().join("a");
    let server = UnixDatagram::bind(guest_path(&path, 1)).expect("its end");
    server.set_nonblocking(true).expect("a socket");
    let specs = [link("client"), link("a"), link("b")];
    let mut links = Links::open(specs, LinkOptions::default()).expect("links");
    links.pending.clear();
    Bench { _dir: dir, links, server, path }
}

fn frame(first: u8) -> Frame {
    let mut bytes = vec![first; 60];
    bytes[12..14].copy_from_slice(&[0x08, 0x06]);
    Frame::from_wire(bytes.into(), Offload::default())
}

impl Bench {
    fn says(&self, first: u8) {
        self.server.send_to(&frame(first).to_vec(), &self.path).expect("room");
    }

    /// What the gateway hears in a moment.
    fn heard(&mut self) -> Vec<u8> {
        let mut batch = Batch::default();
        let until = clock::now() + Duration::from_millis(2);
        self.links.recv(&mut batch, Some(until)).expect("links");
        batch.frames.iter().map(|(_, frame)| frame.to_vec()[0]).collect()
    }

    fn send(&mut self, first: u8) {
        self.links.send(SERVER, frame(first));
        self.links.flush().expect("links");
    }

    /// What the server has got.
    fn got(&self) -> Vec<u8> {
        let mut buffer = [0; 100];
        std::iter::from_fn(|| self.server.recv(&mut buffer).ok().map(|_| buffer[0])).collect()
    }
}

#[test]
fn an_unspoken_server_is_heard_and_what_is_for_it_waits() {
    let mut bench = bench();
    bench.links.set_barrier(SERVER, Barrier::Unspoken);
    bench.says(1);
    bench.send(2);
    assert_eq!((bench.heard(), bench.got()), (vec![1], vec![]));
    bench.links.set_barrier(SERVER, Barrier::Open);
    bench.send(3);
    assert_eq!(bench.got(), [2, 3]);
}

#[test]
fn a_still_server_is_heard_later_and_nothing_is_lost() {
    let mut bench = bench();
    bench.links.set_barrier(SERVER, Barrier::Still);
    bench.says(1);
    bench.send(2);
    assert_eq!((bench.heard(), bench.got()), (vec![], vec![]));
    bench.links.set_barrier(SERVER, Barrier::Open);
    bench.send(3);
    assert_eq!((bench.heard(), bench.got()), (vec![1], vec![2, 3]));
}

#[test]
fn what_a_server_that_is_no_more_has_said_is_dropped_and_what_comes_then_is_not() {
    let mut bench = bench();
    bench.links.set_barrier(SERVER, Barrier::Unspoken);
    bench.send(1);
    bench.says(2);
    bench.links.set_barrier(SERVER, Barrier::Emptied);
    bench.says(3);
    bench.send(4);
    assert_eq!((bench.heard(), bench.got()), (vec![], vec![]));
    bench.links.set_barrier(SERVER, Barrier::Open);
    bench.links.flush().expect("links");
    assert_eq!((bench.heard(), bench.got()), (vec![3], vec![4]));
}
