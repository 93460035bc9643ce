//! Pieces of datagrams on every link, in any order, at any time, overlapping or not: what the
//! engine hands on is what a table of bytes would.

use std::collections::BTreeMap;

use shadowvm::engine::{
    Duration, Engine, EngineConfig, Event, Input, Instant, LegId, Link, LinkCaps, Output,
    RejectReason, Signal,
};
use shadowvm::wire::{Frame, L3, Offload, build, checksum};

use super::reader::Reader;
use super::world::{self, SERVICE};

/// A protocol that the gateway does not look into, and no pieces of which it refuses.
const PROTOCOL: u8 = 253;
/// How long pieces wait.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Pieces, 6 bytes each.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let config = EngineConfig { addresses: vec![SERVICE.into()], ..EngineConfig::default() };
    let mut now = Instant::from_millis(1000);
    let mut engine = Engine::new(config, 7, now);
    for leg in LegId::ALL {
        let up = Signal::CarrierUp(LinkCaps::default());
        engine.handle(now, Input::Signal(Link::Server(leg), up));
        // Somebody is heard on each link, so that its frames are for somebody.
        let (l2, l3) = world::headers(Link::Server(leg));
        engine
            .handle(now, Input::Frame(Link::Server(leg), build::datagram(&l2, &l3, PROTOCOL, b"")));
    }
    while engine.poll_output().is_some() {}
    let mut tables: BTreeMap<(Link, bool, u16), Table> = BTreeMap::new();
    let mut completed = 0;
    for _ in 0..128 {
        if input.is_empty() {
            break;
        }
        let piece = Piece::read(&mut input);
        now = now + Duration::from_millis(u64::from(piece.wait) * 40);
        tables.retain(|_, table| now.since(table.since) < AGE_MAX);
        let key = (piece.link, piece.is_v4, piece.id);
        let table = tables.entry(key).or_insert_with(|| Table::new(now));
        let expected = table.insert(&piece);
        engine.handle(now, Input::Frame(piece.link, piece.frame()));
        let (mut sent, mut refused) = (Vec::new(), 0);
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Transmit(_, frame) => sent.push(frame),
                Output::Event(Event::Rejected { reason: RejectReason::Fragment, .. }) => {
                    refused += 1
                }
                _ => {}
            }
        }
        match expected {
            Verdict::Kept => assert!(sent.is_empty() && refused == 0, "{piece:?} was not kept"),
            Verdict::Refused => assert!(sent.is_empty() && refused == 1, "{piece:?} was taken"),
            Verdict::Whole(len) => {
                let bytes: Vec<u8> = (0..len).map(|at| piece.byte(at)).collect();
                let header = if piece.is_v4 { 34 } else { 54 };
                let sent: Vec<Vec<u8>> =
                    sent.iter().map(|frame| frame.to_vec()[header..].to_vec()).collect();
                assert_eq!(sent, [bytes], "the whole datagram, once");
                completed += 1;
                tables.remove(&key);
            }
        }
    }
    completed > 0
}

#[derive(Debug)]
struct Piece {
    /// Time before it, in 40 ms.
    wait: u8,
    link: Link,
    is_v4: bool,
    id: u16,
    at: usize,
    len: usize,
    is_last: bool,
}

impl Piece {
    fn read(input: &mut Reader<'_>) -> Self {
        let (flags, wait) = (input.u8(), input.u8());
        let at = usize::from(input.u8()) * 8;
        let len = usize::from(input.u8() % 64) * 8 + 8;
        // The last piece alone may have any length; the first one is never the last.
        let is_last = flags & 0x80 != 0 && at > 0;
        let len = if is_last { len - usize::from(flags & 7) } else { len };
        // A server's frames are handed on while it is primary.
        let link = if flags & 8 != 0 { Link::Server(LegId::A) } else { Link::Client };
        Self { wait, link, is_v4: flags & 16 != 0, id: u16::from(flags >> 5 & 3), at, len, is_last }
    }

    /// The byte of its datagram at this place.
    fn byte(&self, at: usize) -> u8 {
        (at * 7 + at / 256) as u8 ^ self.id as u8
    }

    fn frame(&self) -> Frame {
        let (l2, l3) = world::headers(self.link);
        let bytes: Vec<u8> = (self.at..self.at + self.len).map(|at| self.byte(at)).collect();
        let more = u16::from(!self.is_last);
        if self.is_v4 {
            let l3 = L3 { id: self.id, ..l3 };
            let mut frame = build::datagram(&l2, &l3, PROTOCOL, &bytes).to_vec();
            let field = (self.at / 8) as u16 | more << 13;
            frame[20..22].copy_from_slice(&field.to_be_bytes());
            frame[24..26].fill(0);
            let check = checksum::Sum::new().bytes(&frame[14..34]).check();
            frame[24..26].copy_from_slice(&check.to_be_bytes());
            return Frame::from_wire(frame.into(), Offload::default());
        }
        let ip = |text: &str| text.parse().expect("an address");
        let (client, service) = (ip("2001:db8::1"), ip("2001:db8::10"));
        let (src, dst) =
            if self.link == Link::Client { (client, service) } else { (service, client) };
        let field = (self.at as u16 | more).to_be_bytes();
        let header = [PROTOCOL, 0, field[0], field[1], 0, 0, 0, self.id as u8];
        build::datagram(&l2, &L3 { src, dst, ..l3 }, 44, &[&header[..], &bytes].concat())
    }
}

enum Verdict {
    Kept,
    Refused,
    Whole(usize),
}

/// The bytes of one datagram that came (RFC 791, RFC 5722).
struct Table {
    since: Instant,
    has: Vec<bool>,
    end: Option<usize>,
    pieces: usize,
    is_refused: bool,
}

impl Table {
    fn new(since: Instant) -> Self {
        Self { since, has: vec![false; 8192], end: None, pieces: 0, is_refused: false }
    }

    fn insert(&mut self, piece: &Piece) -> Verdict {
        let end = piece.at + piece.len;
        let overlaps = self.has[piece.at..end].contains(&true);
        let highest = self.has.iter().rposition(|&has| has).map_or(0, |at| at + 1);
        let contradicts = match (self.end, piece.is_last) {
            (Some(known), true) => known != end,
            (Some(known), false) => end > known,
            (None, true) => highest > end,
            (None, false) => false,
        };
        self.is_refused |= overlaps || contradicts;
        if self.is_refused {
            return Verdict::Refused;
        }
        self.has[piece.at..end].fill(true);
        self.pieces += 1;
        self.end = self.end.or(piece.is_last.then_some(end));
        match self.end {
            Some(end) if self.has[..end].iter().all(|&has| has) => Verdict::Whole(end),
            _ => Verdict::Kept,
        }
    }
}

/// Datagrams in order, backwards, two at once, too late, and overlapping beside a good one.
pub fn seeds() -> Vec<Vec<u8>> {
    let piece = |flags: u8, wait: u8, at: u8, len: u8| vec![flags, wait, at, len];
    let stories = [
        vec![piece(16, 0, 0, 9), piece(16, 0, 10, 9), piece(0x93, 0, 20, 3)],
        vec![piece(0x80, 0, 20, 3), piece(0, 0, 10, 9), piece(0, 0, 0, 9)],
        vec![
            piece(24, 0, 0, 63),
            piece(48, 0, 0, 3),
            piece(0xb8, 0, 4, 3),
            piece(0xb0, 0, 4, 0),
            piece(0x98, 0, 64, 5),
        ],
        vec![
            piece(16, 0, 0, 0),
            piece(0x90, 126, 1, 0),
            piece(16, 9, 0, 0),
            piece(16, 9, 0, 0),
            piece(48, 0, 0, 0),
            piece(0xb0, 0, 1, 0),
        ],
        vec![piece(8, 0, 0, 1), piece(8, 0, 1, 1), piece(40, 0, 0, 1), piece(0xa8, 0, 2, 9)],
    ];
    stories.into_iter().map(|story| story.concat()).collect()
}
