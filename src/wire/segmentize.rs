//! Cuts super-frames in software for links that cannot, and finishes checksums for them.
//!
//! What leaves is what the kernel's own segmentation would have made: headers repeated, sequence
//! numbers and IPv4 identifications counted up, FIN and PSH on the last piece only, CWR on the
//! first only. The urgent pointer keeps its place in the stream, which kernels do not see to. The
//! payload is shared, not copied. Read first: Linux's
//! `Documentation/networking/segmentation-offloads.rst`, RFC 3168 6.1.2 (CWR).

use bytes::{Bytes, BytesMut};

use super::checksum::{self, pseudo_header, update16};
use super::frame::{CsumSpot, Frame, GsoKind, Offload};
use super::packet::TcpFlags;
use super::parse::{self, Layout, protocol};

/// Makes of `frame` what a link takes, appended to `out` in order of the bytes: one frame if it
/// takes super-frames (or this is none), otherwise its pieces; checksums partial only if the link
/// finishes them. A link that cannot finish checksums cannot cut either.
///
/// Returns false, with nothing appended, for a super-frame that is not what its offload state
/// says: no link would take it.
pub fn for_link(frame: Frame, has_gso: bool, has_csum: bool, out: &mut Vec<Frame>) -> bool {
    let first = out.len();
    if frame.offload().gso.is_some() && (!(has_gso && has_csum) || is_urgent(&frame)) {
        if !cut(frame, out) {
            return false;
        }
    } else {
        out.push(frame);
    }
    if !has_csum {
        out[first..].iter_mut().for_each(checksum::complete);
    }
    true
}

/// The pointer counts from where its segment begins, and who else would cut it repeats it as it is.
fn is_urgent(frame: &Frame) -> bool {
    let Some(tcp) = frame.offload().needs_csum.filter(|spot| spot.offset == TCP_CHECKSUM_FIELD)
    else {
        return false;
    };
    let flags = frame.head().get(usize::from(tcp.start) + 13);
    flags.is_some_and(|&flags| TcpFlags(flags).has(TcpFlags::URG))
}

/// What all pieces share.
struct Cut {
    layout: Layout,
    src_dst: (std::net::IpAddr, std::net::IpAddr),
    /// Identification of the first piece; nothing for IPv6.
    id: Option<u16>,
    seq: u32,
    flags: TcpFlags,
    urgent: u16,
    size: usize,
}

fn cut(frame: Frame, out: &mut Vec<Frame>) -> bool {
    let Some((cut, payload_len)) = prepare(&frame) else { return false };
    let (mut head, body, _) = frame.into_parts();
    remove_jumbo_option(&mut head, cut.layout.l3_at);
    let Some(layout) = parse::layout(&head) else { return false };
    let cut = Cut { layout, ..cut };
    let payload = body.slice(..payload_len);
    let count = payload_len.div_ceil(cut.size).max(1);
    out.reserve(count);
    for index in 0..count {
        let at = index * cut.size;
        let piece = payload.slice(at..(at + cut.size).min(payload_len));
        out.push(cut.piece(&head, piece, index, index + 1 == count));
    }
    true
}

/// Nothing if the frame is not the super-frame that its offload state says.
fn prepare(frame: &Frame) -> Option<(Cut, usize)> {
    let gso = frame.offload().gso?;
    let head = frame.head();
    let layout = parse::layout(head)?;
    let is_v4 = head.get(layout.l3_at)? >> 4 == 4;
    let fits = match gso.kind {
        GsoKind::TcpV4 => is_v4 && layout.protocol == protocol::TCP,
        GsoKind::TcpV6 => !is_v4 && layout.protocol == protocol::TCP,
        GsoKind::UdpL4 => layout.protocol == protocol::UDP,
    };
    if !fits || gso.size == 0 || parse::header_len(head) != head.len() {
        return None;
    }
    let (src, dst) = parse::addresses(head, layout.l3_at)?;
    let id = if is_v4 { parse::be16(head, layout.l3_at + 4) } else { None };
    let is_tcp = layout.protocol == protocol::TCP;
    let seq = if is_tcp { parse::be32(head, layout.l4_at + 4)? } else { 0 };
    let flags = if is_tcp { TcpFlags(*head.get(layout.l4_at + 13)?) } else { TcpFlags(0) };
    let urgent = if is_tcp { parse::be16(head, layout.l4_at + 18)? } else { 0 };
    let payload_len = parse::ip_end(frame)?.checked_sub(head.len())?;
    let size = usize::from(gso.size);
    Some((Cut { layout, src_dst: (src, dst), id, seq, flags, urgent, size }, payload_len))
}

impl Cut {
    fn piece(&self, head: &[u8], payload: Bytes, index: usize, is_last: bool) -> Frame {
        let mut head = BytesMut::from(head);
        let Layout { l3_at, l4_at, protocol } = self.layout;
        let len = head.len() - l4_at + payload.len();
        let ip_len = head.len() - l3_at + payload.len();
        set_ip(&mut head, l3_at, ip_len, self.id, index);
        let offset = if protocol == protocol::TCP {
            let before = index * self.size;
            let seq = self.seq.wrapping_add(before as u32);
            put(&mut head, l4_at + 4, &seq.to_be_bytes());
            put(&mut head, l4_at + 13, &[self.flags_of(index, is_last).0]);
            put(&mut head, l4_at + 18, &self.urgent_of(before).to_be_bytes());
            TCP_CHECKSUM_FIELD
        } else {
            put(&mut head, l4_at + 4, &(len as u16).to_be_bytes());
            UDP_CHECKSUM_FIELD
        };
        let (src, dst) = self.src_dst;
        let pseudo = pseudo_header(src, dst, protocol, len).fold();
        put(&mut head, l4_at + usize::from(offset), &pseudo.to_be_bytes());
        let spot = CsumSpot { start: l4_at as u16, offset };
        let offload = Offload { needs_csum: Some(spot), data_valid: false, gso: None };
        Frame::from_parts(head, payload, offload)
    }

    fn flags_of(&self, index: usize, is_last: bool) -> TcpFlags {
        let mut flags = self.flags;
        if !is_last {
            flags = flags.without(TcpFlags::FIN.with(TcpFlags::PSH));
        }
        if index > 0 {
            flags = flags.without(TcpFlags::CWR);
        }
        if index > 0 && self.urgent_of(index * self.size) == 0 {
            flags = flags.without(TcpFlags::URG);
        }
        flags
    }

    /// The urgent pointer of a piece with `before` bytes before it: the same place in the stream.
    fn urgent_of(&self, before: usize) -> u16 {
        match self.flags.has(TcpFlags::URG) {
            true => self.urgent.saturating_sub(u16::try_from(before).unwrap_or(u16::MAX)),
            false => self.urgent,
        }
    }
}

const TCP_CHECKSUM_FIELD: u16 = 16;
const UDP_CHECKSUM_FIELD: u16 = 6;

/// Sets length (`len` from the IP header on), identification and IPv4 checksum of piece `index`.
fn set_ip(head: &mut [u8], at: usize, len: usize, id: Option<u16>, index: usize) {
    let Some(id) = id else {
        put(head, at + 4, &(len.saturating_sub(40) as u16).to_be_bytes());
        return;
    };
    let id = id.wrapping_add(index as u16);
    let (Some(old_len), Some(old_id), Some(check)) =
        (parse::be16(head, at + 2), parse::be16(head, at + 4), parse::be16(head, at + 10))
    else {
        return;
    };
    let check = update16(update16(check, old_len, len as u16), old_id, id);
    put(head, at + 2, &(len as u16).to_be_bytes());
    put(head, at + 4, &id.to_be_bytes());
    put(head, at + 10, &check.to_be_bytes());
}

/// Takes the hop-by-hop header out with which kernels mark a super-frame beyond 64 KiB
/// (RFC 2675): a piece is no jumbogram.
fn remove_jumbo_option(head: &mut BytesMut, l3_at: usize) {
    let at = l3_at + 40;
    let is_v6 = head.get(l3_at).is_some_and(|first| first >> 4 == 6);
    let has_hop_by_hop = head.get(l3_at + 6) == Some(&protocol::HOP_BY_HOP);
    let Some(&[next, 0, JUMBO_OPTION, 4, ..]) = head.get(at..at + 8) else { return };
    if is_v6 && has_hop_by_hop {
        head[l3_at + 6] = next;
        head.copy_within(at + 8.., at);
        head.truncate(head.len() - 8);
    }
}

/// The option that carries a jumbogram's length.
const JUMBO_OPTION: u8 = 0xc2;

fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = head.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
