//! A hand-made client and two hand-made servers: what they do is kept, written, read and run again.

use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::again::{CannotRun, Thing, again};
use super::desk::make;
use super::file::{self, Case, Evidence, NotEvidence};
use super::recorder::{Recorder, Taken};
use super::ring::{Ring, Start};
use super::side;
use crate::config::Config;
use crate::engine::{Duration, Engine, Input, Instant, LegId, Link, LinkCaps, Output, Signal};
use crate::io::pcap::Reader;
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L2, L3, Mac, TcpFlags, TcpOptions, Vlans};

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVICE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const ISS: [u32; 2] = [5000, u32::MAX - 20];
const CONFIG: &str = "[links]\nclient = \"c0\"\na = \"a0\"\nb = \"b0\"\n[service]\n\
    addressing = \"clone\"\naddress = \"192.0.2.10\"\nports = [80]\n[[server]]\nname = \"one\"\n\
    role = \"primary\"\n[[server]]\nname = \"two\"\nrole = \"backup\"\n";
const NAMES: [&str; 2] = ["one", "two"];

struct Rig {
    engine: Engine,
    recorder: Recorder,
    taken: Receiver<Taken>,
    now: Instant,
    said: [u32; 2],
}

impl Rig {
    fn new(ring_bytes: usize) -> Self {
        let config = Config::parse(CONFIG, Path::new("x")).expect("it is valid");
        let now = Instant::from_millis(1000);
        let start = Start::Made { seed: 7, at: now, records: Vec::new() };
        let ring = Ring::new(ring_bytes, Duration::from_secs(20), start, now);
        let (desk, taken) = sync_channel(8);
        let in_force = Arc::new(Mutex::new(config.to_toml()));
        let recorder = Recorder::new(ring, in_force, desk, Arc::default());
        let engine = Engine::new(config.engine(), 7, now);
        let mut rig = Self { engine, recorder, taken, now, said: [0; 2] };
        for link in Link::ALL {
            rig.give(Input::Signal(link, Signal::CarrierUp(LinkCaps::default())));
        }
        for leg in LegId::ALL {
            let l2 = L2 { dst: mac(9), src: mac(16), vlans: Vlans::default() };
            let reply = build::arp_reply(&l2, SERVICE, Ipv4Addr::UNSPECIFIED);
            rig.give(Input::Frame(Link::Server(leg), reply));
        }
        rig
    }

    fn give(&mut self, input: Input) {
        self.recorder.input(self.now, &input);
        self.engine.handle(self.now, input);
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::Transmit(link, frame) => self.recorder.output(self.now, link, &frame),
                Output::Event(event) => self.recorder.event(self.now, &event),
                _ => {}
            }
        }
        self.recorder.pause(self.now, &self.engine);
    }

    fn wait(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while let Some(at) = self.engine.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.give(Input::Timeout);
        }
        self.now = end;
        self.recorder.pause(self.now, &self.engine);
    }

    fn say(&mut self, link: Link, flags: u8, seq: u32, ack: u32, data: &[u8]) {
        let (l2, l3) = (
            L2 { dst: mac(16), src: mac(1), vlans: Vlans::default() },
            L3 {
                src: IpAddr::V4(CLIENT),
                dst: IpAddr::V4(SERVICE),
                ttl: 64,
                tos: 0,
                dont_fragment: true,
                id: 0,
                flow_label: 0,
            },
        );
        let (l2, l3, src_port, dst_port) = match link {
            Link::Client => (l2, l3, 40_000, 80),
            Link::Server(_) => (l2.reversed(), l3.reversed(), 80, 40_000),
        };
        let fields = TcpFields {
            src_port,
            dst_port,
            seq,
            ack,
            flags: TcpFlags(flags),
            window: 60_000,
            urgent: 0,
            options: TcpOptions { mss: (flags & 2 != 0).then_some(1460), ..TcpOptions::default() },
        };
        let frame = build::tcp(&l2, &l3, &fields, Bytes::copy_from_slice(data), 65_000);
        self.give(Input::Frame(link, frame));
    }

    fn connect(&mut self) {
        self.say(Link::Client, 0x02, 1000, 0, b"");
        for leg in LegId::ALL {
            self.say(Link::Server(leg), 0x12, ISS[leg.index()], 1001, b"");
        }
        self.say(Link::Client, 0x10, 1001, ISS[0].wrapping_add(1), b"");
        self.said = ISS.map(|iss| iss.wrapping_add(1));
    }

    fn answer(&mut self, data: [&[u8]; 2]) {
        for leg in LegId::ALL {
            let i = leg.index();
            self.say(Link::Server(leg), 0x18, self.said[i], 1001, data[i]);
            self.said[i] = self.said[i].wrapping_add(data[i].len() as u32);
        }
    }

    fn file(&mut self) -> (Case, Vec<u8>) {
        self.wait(600);
        let taken = self.taken.try_recv().expect("it was handed over");
        make(&taken, &NAMES.map(str::to_owned)).expect("it is made")
    }
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn read(file: &[u8]) -> Result<Evidence, NotEvidence> {
    file::read(Cursor::new(file.to_vec()))
}

/// Twenty equal bytes, then answers that differ in the fourth byte of the second piece.
pub(crate) fn diverged() -> (Case, Vec<u8>) {
    let mut rig = Rig::new(8 << 20);
    rig.connect();
    rig.answer([b"twenty equal bytes..", b"twenty equal bytes.."]);
    rig.answer([b"and one", b"andXone"]);
    rig.file()
}

#[test]
fn a_divergence_is_kept_explained_and_decided_again() {
    let (case, file) = diverged();
    assert_eq!((case.kind.as_str(), case.event["at"].as_u64()), ("divergence", Some(23)));
    assert_eq!(case, file::read_case(Cursor::new(file.clone())).expect("its beginning is enough"));
    let evidence = read(&file).expect("it is evidence");
    assert_eq!(evidence.case, case);
    let again = again(&evidence, Path::new("x")).expect("it runs");
    assert!(again.first.is_none(), "{:?}", again.first);
    assert!(again.packets_same > 10 && again.packets_in > 8, "{again:?}");
    assert!(again.events.iter().any(|event| event.contains("differ at byte 23")), "{again:?}");
    let numbers = case.numbers.expect("the flow is known");
    let [a, b] = side::windows(&evidence, 23, numbers);
    assert_eq!((a.rest(), b.rest()), (&b" one"[..], &b"Xone"[..]));
    assert!(a.bytes.starts_with(b"twenty equal bytes..and "), "{a:?}");
}

#[test]
fn what_mattered_is_said_on_the_packets() {
    let (_, file) = diverged();
    let mut reader = Reader::new(Cursor::new(file)).expect("a capture");
    let mut comments = Vec::new();
    while let Some(record) = reader.next().expect("it is whole") {
        assert!(record.direction.is_some());
        let name = record.interface_name.expect("it is named").to_owned();
        comments.extend(record.comment.map(|comment| (name, comment.to_owned())));
    }
    let has = |link: &str, words: &str| {
        comments.iter().any(|(name, comment)| name == link && comment.contains(words))
    };
    assert!(has("a", "23 of the answers: one says 0x20"), "{comments:?}");
    assert!(has("b", "23 of the answers: two says 0x58"), "{comments:?}");
    assert!(has("b", "answers differ at byte 23"), "{comments:?}");
    assert!(has("client", "the last bytes that the client was shown"), "{comments:?}");
}

#[test]
fn a_lost_server_is_evidence_too() {
    let mut rig = Rig::new(8 << 20);
    rig.connect();
    rig.answer([b"equal", b"equal"]);
    rig.give(Input::Signal(Link::Server(LegId::A), Signal::CarrierDown));
    rig.give(Input::Signal(Link::Server(LegId::A), Signal::Running));
    let (case, file) = rig.file();
    assert_eq!(
        (case.kind.as_str(), case.event["finding"].as_str()),
        ("failover", Some("h1_carrier"))
    );
    let found = again(&read(&file).expect("it is evidence"), Path::new("x")).expect("it runs");
    assert!(found.first.is_none(), "{:?}", found.first);
    assert!(found.events.iter().any(|e| e.contains("two is primary now")), "{found:?}");
}

#[test]
fn another_run_is_told_apart_at_its_first_packet() {
    let (_, file) = diverged();
    let mut evidence = read(&file).expect("it is evidence");
    let changed = evidence.packets.iter().rposition(|p| p.is_sent && p.frame.len() > 60);
    let packet = &mut evidence.packets[changed.expect("something was sent")];
    let last = packet.frame.len() - 1;
    packet.frame.put(last, &[0xee]);
    let number = packet.number;
    let found = again(&evidence, Path::new("x")).expect("it runs").first.expect("it differs");
    assert!(matches!(found.then, Some(Thing::Packet(.., Some(n))) if n == number), "{found:?}");
    let mut evidence = read(&file).expect("it is evidence");
    evidence.run.noted.pop();
    let found = again(&evidence, Path::new("x")).expect("it runs").first.expect("it differs");
    assert!(matches!((found.then, found.now), (None, Some(Thing::Event(_)))));
}

/// A ring of 40,000 bytes that was filled many times over, `pause` (ms) between any two fillings,
/// and a difference behind that.
fn full_ring(pause: u64) -> Vec<u8> {
    let mut rig = Rig::new(40_000);
    rig.connect();
    let piece = [7; 1000];
    for n in 0..200 {
        rig.answer([&piece, &piece]);
        let ack = ISS[0].wrapping_add(1 + 1000 * (n + 1));
        rig.say(Link::Client, 0x10, 1001, ack, b"");
        rig.wait(pause);
    }
    rig.answer([b"left", b"lost"]);
    let (case, file) = rig.file();
    assert_eq!(case.event["at"].as_u64(), Some(200_001));
    file
}

#[test]
fn a_ring_that_is_full_forgets_the_oldest_and_is_run_from_there() {
    let file = full_ring(1);
    let evidence = read(&file).expect("it is evidence");
    let bytes: usize = evidence.packets.iter().map(|packet| packet.frame.len()).sum();
    assert!((20_000..100_000).contains(&bytes), "{bytes}");
    assert!(matches!(evidence.start, Start::State(_)), "it has begun anew");
    let found = again(&evidence, Path::new("x")).expect("it runs");
    assert!(found.first.is_none(), "{:?}", found.first);
    assert!(found.events.iter().any(|event| event.contains("at byte 200001")), "{found:?}");
}

#[test]
fn the_engine_is_not_packed_all_the_time() {
    let file = full_ring(0);
    let found = again(&read(&file).expect("it is evidence"), Path::new("x"));
    assert!(matches!(found, Err(CannotRun::Unknown)), "{found:?}");
}

#[test]
fn an_engine_that_is_more_than_the_ring_is_left_out_and_that_is_said() {
    let mut rig = Rig::new(1000);
    rig.connect();
    rig.answer([b"left", b"lost"]);
    let (_, file) = rig.file();
    let found = again(&read(&file).expect("it is evidence"), Path::new("x"));
    assert!(matches!(found, Err(CannotRun::Unknown)), "{found:?}");
}

#[test]
fn a_storm_is_told_by_its_beginning() {
    let mut rig = Rig::new(8 << 20);
    for n in 0..10 {
        let down = Signal::CarrierDown;
        let link = Link::Server(LegId::ALL[n % 2]);
        rig.give(Input::Signal(link, down));
        rig.give(Input::Signal(link, Signal::CarrierUp(LinkCaps::default())));
        rig.wait(700);
    }
    assert!(rig.taken.try_iter().count() <= 6);
}

#[test]
fn a_plain_capture_of_the_links_is_judged_too() {
    let (_, file) = diverged();
    let evidence = read(&file).expect("it is evidence");
    let plain_one = |packets: &[file::Seen]| {
        let mut writer = crate::io::pcap::Writer::ng(Vec::new()).expect("it begins");
        for name in ["client", "a", "b"] {
            let ethernet = crate::wire::parse::captured::LinkType::ETHERNET;
            writer.interface(ethernet, Some(name)).expect("an interface");
        }
        for packet in packets {
            let mut frame = packet.frame.clone();
            crate::wire::checksum::complete(&mut frame);
            let (at, data) = (packet.at.nanos(), frame.to_vec());
            let index = packet.link.index() as u32;
            writer.packet(index, at, &data, data.len(), None).expect("it is written");
        }
        writer.into_inner()
    };
    let config = Config::parse(CONFIG, Path::new("x")).expect("it is valid");
    let run = |file: Vec<u8>| super::plain::plain(Cursor::new(file), &config).expect("a capture");
    let found = run(plain_one(&evidence.packets));
    assert_eq!((found.connections, found.compared, found.differences), (1, 1, 1), "{found:?}");
    let number = |p: &&file::Seen| p.is_sent;
    assert_eq!(found.left_out, evidence.packets.iter().filter(number).count(), "{found:?}");
    let last = evidence.packets.iter().rposition(|packet| !packet.is_sent).expect("one");
    let found = run(plain_one(&evidence.packets[..last]));
    assert_eq!(found.differences, 0, "{found:?}");
}

fn frame_with(offload: crate::wire::Offload) -> Frame {
    Frame::from_wire(Bytes::from(vec![5; 90]), offload)
}

#[test]
fn a_frame_is_read_as_the_engine_had_it() {
    use crate::wire::{CsumSpot, Gso, GsoKind, Offload};
    let spot = Some(CsumSpot { start: 34, offset: 16 });
    let gso = Some(Gso { kind: GsoKind::TcpV6, size: 1448, hdr_len: 66 });
    for offload in [
        Offload::default(),
        Offload { data_valid: true, ..Offload::default() },
        Offload { needs_csum: spot, data_valid: false, gso },
        Offload { needs_csum: spot, data_valid: true, gso: None },
    ] {
        let frame = frame_with(offload);
        let tag = file::tag(&frame);
        let mut sent = frame.clone();
        crate::wire::checksum::complete(&mut sent);
        let read = file::untag(&tag, Bytes::from(sent.to_vec())).expect("it is");
        assert_eq!((read.to_vec(), read.offload()), (frame.to_vec(), offload));
    }
}

proptest::proptest! {
    /// Whatever becomes of a file: it is read, refused, run or not run; nothing else.
    #[test]
    fn a_damaged_file_is_no_trouble(
        changes in proptest::collection::vec((0usize..40_000, 0u8..), 1..8),
        cut in proptest::option::of(0usize..40_000),
    ) {
        static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let mut file = FILE.get_or_init(|| diverged().1).clone();
        for (at, byte) in changes {
            let len = file.len();
            file[at % len] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        let _ = file::read_case(Cursor::new(file.clone()));
        if let Ok(evidence) = read(&file) {
            let _ = again(&evidence, Path::new("x"));
            if let (Some(at), Some(numbers)) =
                (evidence.case.event["at"].as_u64(), evidence.case.numbers)
            {
                side::windows(&evidence, at, numbers);
            }
        }
    }
}
