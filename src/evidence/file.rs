//! One piece of evidence: a pcapng that any tool reads, with comments on the packets that mattered,
//! and two blocks of our own: what it is about, and what it takes to run the engine again.
//!
//! Checksums that the kernel left to a device are finished, so that nobody takes them for wrong;
//! an option of each packet says what they were. Everything here comes from a file that may hold
//! anything: whatever does not fit together is an error and never a panic.

use std::io::Read;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ring::{Order, Start, What};
use crate::engine::{
    Command, Epoch, FLOW_CONSTANTS_LEN, Input, Instant, LegId, Link, LinkCaps, Numbers, Record,
    Roles, Signal, Snapshot, SyncId, SyncStep,
};
use crate::io::pcap::{Direction, NotACapture, Reader};
use crate::observe::names::Name;
use crate::wire::{CsumSpot, Frame, Gso, GsoKind, Mac, Offload};

/// What a piece of evidence is about.
pub const CASE: u32 = 0x8053_0001;
/// What it takes to run the engine again.
pub const RUN: u32 = 0x8053_0002;
/// The engine's state at the beginning.
pub const STATE: u32 = 0x8053_0003;
/// The form of all of them.
pub const FORM: u32 = 1;
/// Packets of one file.
const PACKETS_MAX: usize = 1 << 20;

/// What a piece of evidence is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// The form that it is written in.
    pub form: u32,
    /// The program's version.
    pub version: String,
    /// Its name: when it was, and what.
    pub id: String,
    /// divergence, failover, detached or sync_failed.
    pub kind: String,
    /// UNIX time in nanoseconds.
    pub t_ns: u64,
    /// In a sentence.
    pub text: String,
    /// The event as in the event log.
    pub event: Value,
    /// Names of the servers.
    pub servers: [String; 2],
    /// The sequence numbers of the first byte that differs.
    pub numbers: Option<CaseNumbers>,
    /// Everything of the kind that happened in this time.
    pub noted: Vec<Value>,
}

/// See [`Numbers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseNumbers {
    /// On the client's link.
    pub client: u32,
    /// On the servers' links.
    pub legs: [u32; 2],
}

/// What it takes to run the engine again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// UNIX time in nanoseconds of the engine's origin.
    pub origin_ns: u64,
    /// The configuration, as TOML.
    pub config: String,
    /// What the engine was before the first step.
    pub start: Beginning,
    /// The steps that are no packets.
    pub steps: Vec<Entry>,
    /// What happened, in its order.
    pub noted: Vec<String>,
}

/// See [`Start`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beginning {
    /// The engine was made: the file has everything since.
    Made { seed: u64, at_ns: u64, roles: Option<(u32, char)>, flows: Vec<(u32, String)> },
    /// It stands in a block of its own, without this many flows.
    State { left_out: u32 },
    /// It is not in the file.
    Unknown,
}

/// A run of packets, or something else that went in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Entry {
    Packets(u32),
    Timeout(u64),
    Signal { at: u64, link: String, signal: String, caps: Option<Caps> },
    Failover { at: u64, id: u64, to: Option<char>, planned: bool },
    Rejoin { at: u64, id: u64, leg: char },
    Pause { at: u64, id: u64 },
    Resume { at: u64, id: u64 },
    SyncNow { at: u64, id: u64 },
    SyncStep { at: u64, id: u32, step: String, message: String },
    Fenced { at: u64, epoch: u32, ok: bool },
}

/// What a link can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    mtu: u16,
    has_gso: bool,
    has_csum: bool,
    mac: Option<[u8; 6]>,
}

/// Why a file is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum NotEvidence {
    /// It is no capture.
    #[error("{0}")]
    Capture(#[from] NotACapture),
    /// A capture, but none of ours.
    #[error(
        "a capture, but no evidence that a gateway has left; `shadowvm replay --engine` takes one \
         of its three links with -c, its configuration"
    )]
    Foreign,
    /// Of another version.
    #[error("written by shadowvm {0} in a form that this version does not read")]
    Form(String),
    /// It contradicts itself.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// A packet of the file.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its number in the file, from 1 on.
    pub number: u64,
    /// Where.
    pub link: Link,
    /// Whether the gateway sent it.
    pub is_sent: bool,
    /// The engine's time.
    pub at: Instant,
    /// The packet as the engine had it.
    pub frame: Frame,
}

/// A file that was read.
#[derive(Debug)]
pub struct Evidence {
    /// What it is about.
    pub case: Case,
    /// What it takes to run the engine again.
    pub run: Run,
    /// What the engine was before the first step.
    pub start: Start,
    /// The packets.
    pub packets: Vec<Seen>,
}

/// What went in, or was sent.
#[derive(Debug)]
pub enum Said {
    /// The engine was given this.
    Input(Instant, Input),
    /// It sent this packet of [`Evidence::packets`].
    Sent(usize),
}

/// Reads what a file is about: its beginning only.
pub fn read_case(source: impl Read + Send + 'static) -> Result<Case, NotEvidence> {
    let mut reader = Reader::new(source)?;
    reader.keep_local_blocks();
    // It stands before the first packet; a trouble is told when the whole is read.
    let _ = reader.next();
    case_of(&reader)
}

/// Reads the whole.
pub fn read(source: impl Read + Send + 'static) -> Result<Evidence, NotEvidence> {
    let damaged = |what: String| NotEvidence::Damaged(what);
    let mut reader = Reader::new(source)?;
    reader.keep_local_blocks();
    let mut raw = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(_)) if raw.len() == PACKETS_MAX => {
                return Err(damaged(format!("more than {PACKETS_MAX} packets")));
            }
            Ok(Some(record)) => raw.push((
                record.number,
                record.unix_ns,
                record.interface_name.and_then(link_of),
                record.direction,
                Bytes::copy_from_slice(record.data),
                record.local.map(<[u8]>::to_vec),
            )),
            Ok(None) => break,
            Err(trouble) => return Err(damaged(trouble.to_string())),
        }
    }
    let case = case_of(&reader)?;
    let run: Run = json(block(&reader, RUN).ok_or_else(|| damaged("its end is missing".into()))?)?;
    let start = run.start.start(block(&reader, STATE));
    let start = start.ok_or_else(|| damaged("what the engine was at its beginning".into()))?;
    let mut packets = Vec::with_capacity(raw.len());
    for (number, unix_ns, link, direction, data, local) in raw {
        let wrong = |what: &str| damaged(format!("packet {number}: {what}"));
        let local = local.as_deref().and_then(|local| <&[u8; TAG]>::try_from(local).ok());
        packets.push(Seen {
            number,
            link: link.ok_or_else(|| wrong("its interface is none of client, a, b"))?,
            is_sent: direction.ok_or_else(|| wrong("no direction"))? == Direction::Out,
            at: Instant::from_nanos(unix_ns.saturating_sub(run.origin_ns)),
            frame: untag(local.ok_or_else(|| wrong("no note of its offloads"))?, data)
                .ok_or_else(|| wrong("offloads that cannot be"))?,
        });
    }
    Ok(Evidence { case, run, start, packets })
}

fn block(reader: &Reader, kind: u32) -> Option<&[u8]> {
    reader.local_blocks().iter().find(|(found, _)| *found == kind).map(|(_, body)| &body[..])
}

fn case_of(reader: &Reader) -> Result<Case, NotEvidence> {
    let body = block(reader, CASE).ok_or(NotEvidence::Foreign)?;
    let any: Value = json(body)?;
    if any["form"] != FORM {
        let version = any["version"].as_str().unwrap_or("?");
        return Err(NotEvidence::Form(crate::replay::view::printable(version.as_bytes())));
    }
    serde_json::from_value(any).map_err(|error| NotEvidence::Damaged(error.to_string()))
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, NotEvidence> {
    serde_json::from_slice(body).map_err(|error| NotEvidence::Damaged(error.to_string()))
}

impl Evidence {
    /// Everything in its order.
    pub fn said(&self) -> Result<Vec<Said>, NotEvidence> {
        let damaged = |what: &str| NotEvidence::Damaged(what.to_owned());
        let mut said = Vec::new();
        let mut next = 0;
        for entry in &self.run.steps {
            if let Entry::Packets(count) = entry {
                for _ in 0..*count {
                    let packet = self.packets.get(next);
                    let packet = packet.ok_or_else(|| damaged("packets are missing"))?;
                    said.push(match packet.is_sent {
                        true => Said::Sent(next),
                        false => {
                            Said::Input(packet.at, Input::Frame(packet.link, packet.frame.clone()))
                        }
                    });
                    next += 1;
                }
                continue;
            }
            let (at, input) = entry.input().ok_or_else(|| damaged("a step makes no sense"))?;
            said.push(Said::Input(Instant::from_nanos(at), input));
        }
        match next == self.packets.len() {
            true => Ok(said),
            false => Err(damaged("packets that no step names")),
        }
    }
}

/// Bytes of the note on a packet.
pub const TAG: usize = 12;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

/// What `frame` was before its checksum was finished: flags 1, kind of a super-frame 1, its pieces
/// 2, its headers 2, where the checksum is summed from 2, where it stands 2, what stood there 2.
pub fn tag(frame: &Frame) -> [u8; TAG] {
    let Offload { needs_csum, data_valid, gso } = frame.offload();
    let flags =
        if needs_csum.is_some() { NEEDS_CSUM } else { 0 } | if data_valid { DATA_VALID } else { 0 };
    let kind = gso.map_or(0, |gso| 1 + gso.kind as u8);
    let spot = needs_csum.unwrap_or(CsumSpot { start: 0, offset: 0 });
    let (size, hdr_len) = gso.map_or((0, 0), |gso| (gso.size, gso.hdr_len));
    let field = usize::from(spot.start) + usize::from(spot.offset);
    let there = |at: usize| match at.checked_sub(frame.head().len()) {
        None => frame.head()[at],
        Some(at) => frame.body().get(at).copied().unwrap_or(0),
    };
    let mut tag = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, there(field), there(field + 1)];
    for (place, value) in
        tag[2..10].chunks_exact_mut(2).zip([size, hdr_len, spot.start, spot.offset])
    {
        place.copy_from_slice(&value.to_le_bytes());
    }
    tag
}

/// The frame as it was.
pub(super) fn untag(tag: &[u8; TAG], data: Bytes) -> Option<Frame> {
    let word = |at: usize| u16::from_le_bytes([tag[at], tag[at + 1]]);
    let kind = match tag[1] {
        0 => None,
        1 => Some(GsoKind::TcpV4),
        2 => Some(GsoKind::TcpV6),
        3 => Some(GsoKind::UdpL4),
        _ => return None,
    };
    let gso = match kind {
        Some(_) if word(2) == 0 => return None,
        kind => kind.map(|kind| Gso { kind, size: word(2), hdr_len: word(4) }),
    };
    let spot = CsumSpot { start: word(6), offset: word(8) };
    let field = usize::from(spot.start) + usize::from(spot.offset);
    let needs_csum = (tag[0] & NEEDS_CSUM != 0).then_some(spot);
    if needs_csum.is_some() && field + 2 > data.len() {
        return None;
    }
    let offload = Offload { needs_csum, data_valid: tag[0] & DATA_VALID != 0, gso };
    let mut frame = Frame::from_wire(data, offload);
    if needs_csum.is_some() {
        frame.put(field, &tag[10..]);
    }
    Some(frame)
}

/// The link of an interface's name.
pub fn link_of(name: &str) -> Option<Link> {
    Link::ALL.into_iter().find(|link| link.name() == name)
}

fn leg_char(leg: LegId) -> char {
    ['a', 'b'][leg.index()]
}

fn leg_of(leg: char) -> Option<LegId> {
    LegId::ALL.into_iter().find(|known| leg_char(*known) == leg)
}

impl From<Numbers> for CaseNumbers {
    fn from(Numbers { client, legs }: Numbers) -> Self {
        Self { client, legs }
    }
}

impl Entry {
    /// A step that is no packet.
    pub fn of(at: Instant, what: &What) -> Option<Self> {
        let at = at.nanos();
        Some(match what {
            What::In(..) | What::Out(..) => return None,
            What::Timeout => Self::Timeout(at),
            What::Signal(link, signal) => {
                let (signal, caps) = match signal {
                    Signal::CarrierUp(caps) => ("up", Some(Caps::of(caps))),
                    Signal::CarrierDown => ("down", None),
                    Signal::LinkGone => ("gone", None),
                    Signal::Exited => ("exited", None),
                    Signal::Running => ("running", None),
                };
                Self::Signal { at, link: link.name().into(), signal: signal.into(), caps }
            }
            What::Command(id, order) => match *order {
                Order::Failover { to, is_planned } => {
                    Self::Failover { at, id: *id, to: to.map(leg_char), planned: is_planned }
                }
                Order::Rejoin(leg) => Self::Rejoin { at, id: *id, leg: leg_char(leg) },
                Order::Pause => Self::Pause { at, id: *id },
                Order::Resume => Self::Resume { at, id: *id },
                Order::SyncNow => Self::SyncNow { at, id: *id },
            },
            What::SyncStep(id, step) => {
                let (step, message) = match step {
                    SyncStep::Hushed => ("hushed", String::new()),
                    SyncStep::Frozen => ("frozen", String::new()),
                    SyncStep::TargetReady => ("ready", String::new()),
                    SyncStep::Failed { message } => ("failed", message.clone()),
                    SyncStep::TargetLost { message } => ("lost", message.clone()),
                };
                Self::SyncStep { at, id: id.0, step: step.into(), message }
            }
            What::Fenced(epoch, ok) => Self::Fenced { at, epoch: epoch.0, ok: *ok },
        })
    }

    fn input(&self) -> Option<(u64, Input)> {
        let command = |at: &u64, id: &u64, command| Some((*at, Input::Command(*id, command)));
        match self {
            Self::Packets(_) => None,
            Self::Timeout(at) => Some((*at, Input::Timeout)),
            Self::Signal { at, link, signal, caps } => {
                let signal = match (signal.as_str(), caps) {
                    ("up", Some(caps)) => Signal::CarrierUp(caps.caps()),
                    ("down", None) => Signal::CarrierDown,
                    ("gone", None) => Signal::LinkGone,
                    ("exited", None) => Signal::Exited,
                    ("running", None) => Signal::Running,
                    _ => return None,
                };
                Some((*at, Input::Signal(link_of(link)?, signal)))
            }
            Self::Failover { at, id, to, planned } => {
                let to = match to {
                    None => None,
                    Some(leg) => Some(leg_of(*leg)?),
                };
                command(at, id, Command::Failover { to, is_planned: *planned })
            }
            Self::Rejoin { at, id, leg } => command(at, id, Command::Rejoin(leg_of(*leg)?)),
            Self::Pause { at, id } => command(at, id, Command::Pause),
            Self::Resume { at, id } => command(at, id, Command::Resume),
            Self::SyncNow { at, id } => command(at, id, Command::SyncNow),
            Self::SyncStep { at, id, step, message } => {
                let message = message.clone();
                let step = match step.as_str() {
                    "hushed" => SyncStep::Hushed,
                    "frozen" => SyncStep::Frozen,
                    "ready" => SyncStep::TargetReady,
                    "failed" => SyncStep::Failed { message },
                    "lost" => SyncStep::TargetLost { message },
                    _ => return None,
                };
                Some((*at, Input::SyncStep(SyncId(*id), step)))
            }
            Self::Fenced { at, epoch, ok } => {
                Some((*at, Input::Fenced { epoch: Epoch(*epoch), ok: *ok }))
            }
        }
    }
}

impl Caps {
    fn of(caps: &LinkCaps) -> Self {
        let LinkCaps { mtu, has_gso, has_csum, mac } = *caps;
        Self { mtu, has_gso, has_csum, mac: mac.map(|mac| mac.0) }
    }

    fn caps(self) -> LinkCaps {
        let Self { mtu, has_gso, has_csum, mac } = self;
        LinkCaps { mtu, has_gso, has_csum, mac: mac.map(Mac) }
    }
}

impl Beginning {
    /// As it is written.
    pub fn of(start: &Start) -> Self {
        match start {
            Start::Made { seed, at, records } => {
                let roles = records.iter().find_map(|record| match record {
                    Record::Roles(roles) => Some((roles.epoch.0, leg_char(roles.primary))),
                    _ => None,
                });
                let flows = records.iter().filter_map(|record| match record {
                    Record::Flow { slot, constants } => Some((*slot, hex(constants))),
                    _ => None,
                });
                Self::Made { seed: *seed, at_ns: at.nanos(), roles, flows: flows.collect() }
            }
            Start::State(Snapshot { left_out, .. }) => Self::State { left_out: *left_out },
            Start::Unknown => Self::Unknown,
        }
    }

    /// As it was; `state` is what the block of its own says.
    fn start(&self, state: Option<&[u8]>) -> Option<Start> {
        match self {
            Self::Made { seed, at_ns, roles, flows } => {
                let mut records = Vec::new();
                if let &Some((epoch, primary)) = roles {
                    let roles = Roles { epoch: Epoch(epoch), primary: leg_of(primary)? };
                    records.push(Record::Roles(roles));
                }
                for (slot, constants) in flows {
                    let constants: [u8; FLOW_CONSTANTS_LEN] = unhex(constants)?.try_into().ok()?;
                    records.push(Record::Flow { slot: *slot, constants });
                }
                Some(Start::Made { seed: *seed, at: Instant::from_nanos(*at_ns), records })
            }
            Self::State { left_out } => {
                let (bytes, payloads) = unpack_state(state?)?;
                Some(Start::State(Snapshot { bytes, payloads, left_out: *left_out }))
            }
            Self::Unknown => Some(Start::Unknown),
        }
    }
}

/// An engine's state as a block: each piece behind its length, and a sum of all (BLAKE3): what is
/// damaged is not believed.
pub fn pack_state(snapshot: &Snapshot) -> Vec<u8> {
    let mut packed = vec![0; SUM];
    let pieces = std::iter::once(&snapshot.bytes[..]);
    for piece in pieces.chain(snapshot.payloads.iter().map(|payload| &payload[..])) {
        packed.extend((piece.len() as u32).to_le_bytes());
        packed.extend(piece);
    }
    let sum = blake3::hash(&packed[SUM..]);
    packed[..SUM].copy_from_slice(sum.as_bytes());
    packed
}

fn unpack_state(packed: &[u8]) -> Option<(Vec<u8>, Vec<Bytes>)> {
    let (sum, mut rest) = packed.split_first_chunk::<SUM>()?;
    if blake3::hash(rest) != *sum {
        return None;
    }
    let mut pieces = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk() {
        let (piece, behind) = behind.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        pieces.push(Bytes::copy_from_slice(piece));
        rest = behind;
    }
    if pieces.is_empty() || !rest.is_empty() {
        return None;
    }
    let bytes = pieces.remove(0).to_vec();
    Some((bytes, pieces))
}

/// Bytes of a sum.
const SUM: usize = 32;

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(|pair| byte(pair).filter(|_| pair.len() == 2)).collect()
}
