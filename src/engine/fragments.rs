//! Reassembly of IP fragments before anything else is asked of them (RFC 791, RFC 8200 4.5).
//!
//! Bounded in datagrams, bytes and time. Any overlap discards the whole datagram (RFC 5722, here
//! for both families), and so does a first piece too small for its transport header (RFC 1858).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Link;
use super::pack::fields;
use super::time::{Duration, Instant};
use crate::wire::{Fragment, Frame, L2, L3, build};

const DATAGRAMS_MAX: usize = 1024;
const BYTES_MAX: usize = 4 << 20;
const AGE_MAX: Duration = Duration::from_secs(5);
const DATAGRAM_BYTES_MAX: u32 = 65_535;
const FIRST_BYTES_MIN: usize = 8;
/// Pieces of one datagram.
const PIECES_MAX: usize = 128;

type Key = (Link, IpAddr, IpAddr, u32, u8);

#[derive(Debug)]
struct Partial {
    l2: L2,
    l3: L3,
    pieces: BTreeMap<u32, Vec<u8>>,
    total: Option<u32>,
    since: Instant,
    /// An overlap was seen: everything of it is discarded until it expires.
    is_poisoned: bool,
}

/// Datagrams that wait for their missing pieces.
#[derive(Debug, Default)]
pub struct Fragments {
    partial: BTreeMap<Key, Partial>,
    bytes: usize,
}

/// What became of a fragment.
#[derive(Debug)]
pub enum Reassembly {
    /// Kept; more is missing.
    Kept,
    /// The datagram is complete.
    Complete(Frame),
    /// A limit, an overlap, a tiny first piece.
    Refused,
}

impl Fragments {
    /// Takes one piece.
    pub fn insert(&mut self, now: Instant, link: Link, f: &Fragment, frame: &Frame) -> Reassembly {
        self.expire(now);
        let bytes = payload(f, frame);
        let end = f.offset + bytes.len() as u32;
        let is_tiny = f.offset == 0 && bytes.len() < FIRST_BYTES_MIN;
        if end > DATAGRAM_BYTES_MAX || is_tiny || bytes.is_empty() {
            return Reassembly::Refused;
        }
        let key = (link, f.l3.src, f.l3.dst, f.id, f.protocol);
        let is_new = !self.partial.contains_key(&key);
        let is_full = self.bytes + bytes.len() > BYTES_MAX;
        if is_full || (is_new && self.partial.len() >= DATAGRAMS_MAX) {
            return Reassembly::Refused;
        }
        let entry = self.partial.entry(key).or_insert_with(|| Partial {
            l2: f.l2,
            l3: f.l3,
            pieces: BTreeMap::new(),
            total: None,
            since: now,
            is_poisoned: false,
        });
        if entry.is_poisoned {
            return Reassembly::Refused;
        }
        let before = entry.pieces.range(..end).next_back();
        let overlaps = before.is_some_and(|(&at, b)| at + b.len() as u32 > f.offset);
        let beyond = entry.total.is_some_and(|t| end > t || (!f.has_more && end != t));
        let cut = !f.has_more && entry.pieces.last_key_value().is_some_and(|(&at, _)| at >= end);
        if overlaps || beyond || cut || entry.pieces.len() >= PIECES_MAX {
            entry.is_poisoned = true;
            self.bytes -= entry.pieces.values().map(Vec::len).sum::<usize>();
            entry.pieces.clear();
            return Reassembly::Refused;
        }
        if !f.has_more {
            entry.total = Some(end);
        }
        if f.offset == 0 {
            (entry.l2, entry.l3) = (f.l2, f.l3);
        }
        self.bytes += bytes.len();
        entry.pieces.insert(f.offset, bytes);
        let have = entry.pieces.values().map(Vec::len).sum::<usize>() as u32;
        if entry.total != Some(have) {
            return Reassembly::Kept;
        }
        let Some(done) = self.partial.remove(&key) else { return Reassembly::Kept };
        self.bytes -= have as usize;
        let whole: Vec<u8> = done.pieces.into_values().flatten().collect();
        Reassembly::Complete(build::datagram(&done.l2, &done.l3, f.protocol, &whole))
    }

    fn expire(&mut self, now: Instant) {
        let old = |p: &Partial| now.since(p.since) >= AGE_MAX;
        if self.partial.values().any(old) {
            self.partial.retain(|_, p| !old(p));
            let left = self.partial.values().flat_map(|p| p.pieces.values()).map(Vec::len);
            self.bytes = left.sum();
        }
    }
}

fn payload(f: &Fragment, frame: &Frame) -> Vec<u8> {
    let head = frame.head().get(usize::from(f.payload_at)..).unwrap_or(&[]);
    let mut bytes = head.to_vec();
    bytes.extend_from_slice(frame.body());
    bytes.truncate(f.payload_len);
    bytes
}

fields!(Partial { l2, l3, pieces, total, since, is_poisoned });
fields!(Fragments { partial, bytes });
