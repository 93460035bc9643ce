//! Cuts a datagram that is bigger than an MTU into IP fragments.
//!
//! Owns the layout of the pieces; whether a datagram may be cut, and putting pieces together
//! again, is the caller's. Read first: RFC 791 3.2 (which options are copied), RFC 8200 4.5,
//! RFC 7739 (identifications).

use bytes::{BufMut, BytesMut};

use super::checksum::{self, Sum};
use super::frame::{Frame, Offload};
use super::parse::{self, be16, ethertype, protocol};

/// Fragments of the IP datagram in `frame`, each at most `mtu` bytes of IP packet, in order. The
/// frame itself if it fits, is no IP datagram, is a super-frame (to be cut by
/// [`segmentize`](super::segmentize) first), or if `mtu` has no room for 8 bytes of payload.
///
/// The checksum is completed first: it stands in the first piece and covers all. IPv4 keeps its
/// identification. IPv6 keeps that of an atomic fragment, otherwise it is a hash of the payload:
/// pieces of different datagrams do not mix, and no outsider can tell the next one.
pub fn fragments(mut frame: Frame, mtu: usize) -> Vec<Frame> {
    if frame.offload().gso.is_some() {
        return vec![frame];
    }
    checksum::complete(&mut frame);
    let bytes = frame.to_vec();
    let pieces = plan(&frame, &bytes, mtu).map(|plan| plan.pieces(&bytes, mtu));
    pieces.unwrap_or_else(|| vec![frame])
}

/// How a datagram is cut.
struct Plan {
    /// Where the IP header begins.
    l3_at: usize,
    /// Where the part ends that each piece repeats.
    repeated_end: usize,
    /// Where the part begins that is cut.
    cut_at: usize,
    /// Where it ends.
    end: usize,
    kind: Kind,
}

enum Kind {
    V4 {
        /// Place of `cut_at` in the whole datagram, if this is a piece itself.
        offset: usize,
        has_more: bool,
    },
    V6 {
        id: u32,
        /// Protocol of what is cut.
        protocol: u8,
        /// Where the repeated part names the protocol that follows it.
        next_at: usize,
    },
}

fn plan(frame: &Frame, bytes: &[u8], mtu: usize) -> Option<Plan> {
    let (ethertype, l3_at) = parse::network(bytes)?;
    let end = parse::ip_end(frame)?;
    if end - l3_at <= mtu {
        return None;
    }
    let plan = match ethertype {
        ethertype::IPV4 => plan_v4(bytes, l3_at, end)?,
        _ => plan_v6(bytes, l3_at, end)?,
    };
    (plan.cut_at < plan.end && plan.piece_len_max(mtu) > 0).then_some(plan)
}

fn plan_v4(bytes: &[u8], l3_at: usize, end: usize) -> Option<Plan> {
    let header_end = l3_at + usize::from(bytes.get(l3_at)? & 0x0f) * 4;
    let field = be16(bytes, l3_at + 6)?;
    let kind = Kind::V4 { offset: usize::from(field & 0x1fff) * 8, has_more: field & 0x2000 != 0 };
    Some(Plan { l3_at, repeated_end: header_end, cut_at: header_end, end, kind })
}

/// Routers on the way look at hop-by-hop options and routing headers: each piece repeats them.
fn plan_v6(bytes: &[u8], l3_at: usize, end: usize) -> Option<Plan> {
    let (mut next_at, mut at) = (l3_at + 6, l3_at + 40);
    while matches!(*bytes.get(next_at)?, protocol::HOP_BY_HOP | protocol::ROUTING) {
        next_at = at;
        at += (usize::from(*bytes.get(at + 1)?) + 1) * 8;
    }
    let mut protocol = *bytes.get(next_at)?;
    let (mut cut_at, mut id) = (at, None);
    if protocol == protocol::FRAGMENT {
        if be16(bytes, at + 2)? & 0xfff9 != 0 {
            // A real fragment: only its sender may cut it.
            return None;
        }
        protocol = *bytes.get(at)?;
        id = Some(parse::be32(bytes, at + 4)?);
        cut_at += 8;
    }
    let id = id.unwrap_or_else(|| hash(bytes.get(cut_at..end).unwrap_or_default()));
    Some(Plan { l3_at, repeated_end: at, cut_at, end, kind: Kind::V6 { id, protocol, next_at } })
}

impl Plan {
    /// Bytes of the datagram that a piece may carry: a multiple of 8.
    fn piece_len_max(&self, mtu: usize) -> usize {
        let header = match self.kind {
            Kind::V4 { .. } => 0,
            Kind::V6 { .. } => 8,
        };
        mtu.saturating_sub(self.repeated_end - self.l3_at + header) & !7
    }

    fn pieces(&self, bytes: &[u8], mtu: usize) -> Vec<Frame> {
        let size = self.piece_len_max(mtu);
        let cut = &bytes[self.cut_at..self.end];
        let count = cut.len().div_ceil(size);
        cut.chunks(size)
            .enumerate()
            .map(|(index, piece)| {
                let mut out = BytesMut::with_capacity(self.cut_at + 8 + piece.len());
                out.put_slice(&bytes[..self.repeated_end]);
                self.head_piece(&mut out, index * size, piece.len(), index + 1 < count);
                out.put_slice(piece);
                Frame::from_wire(out.freeze(), Offload::default())
            })
            .collect()
    }

    /// Makes of the repeated part, which `out` ends with, the header of the piece at `at`.
    fn head_piece(&self, out: &mut BytesMut, at: usize, len: usize, is_followed: bool) {
        let l3_at = self.l3_at;
        match self.kind {
            Kind::V4 { offset, has_more } => {
                let header = &mut out[l3_at..];
                if at > 0 {
                    drop_uncopied_options(&mut header[20..]);
                }
                // Within 16 bits: the datagram as a whole is.
                let total = (header.len() + len) as u16;
                let more = if is_followed || has_more { 0x2000 } else { 0 };
                let keep = u16::from_be_bytes([header[6], header[7]]) & 0xc000;
                let field = keep | more | ((offset + at) / 8) as u16;
                header[2..4].copy_from_slice(&total.to_be_bytes());
                header[6..8].copy_from_slice(&field.to_be_bytes());
                header[10..12].fill(0);
                let check = Sum::new().bytes(header).check();
                header[10..12].copy_from_slice(&check.to_be_bytes());
            }
            Kind::V6 { id, protocol, next_at } => {
                let total = (self.repeated_end - l3_at - 40 + 8 + len) as u16;
                out[l3_at + 4..l3_at + 6].copy_from_slice(&total.to_be_bytes());
                out[next_at] = protocol::FRAGMENT;
                out.put_slice(&[protocol, 0]);
                out.put_u16(at as u16 | u16::from(is_followed));
                out.put_u32(id);
            }
        }
    }
}

/// Overwrites options that only the first piece carries with no-operations.
fn drop_uncopied_options(mut options: &mut [u8]) {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const COPIED: u8 = 0x80;
    while let [kind, ..] = *options {
        let len = match (kind, options.get(1)) {
            (END, _) => return,
            (NOP, _) => 1,
            (_, Some(len)) => usize::from(*len).clamp(2, options.len()),
            (_, None) => 1,
        };
        let (option, rest) = std::mem::take(&mut options).split_at_mut(len);
        if kind & COPIED == 0 {
            option.fill(NOP);
        }
        options = rest;
    }
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
