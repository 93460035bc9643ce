//! The header that the kernel puts before each frame (`struct virtio_net_hdr`, 10 bytes, in the
//! machine's own byte order as `PACKET_VNET_HDR` and `IFF_VNET_HDR` use it), and [`Offload`].
//!
//! Owns the translation and its checks, no I/O. Read first: Linux's
//! `include/uapi/linux/virtio_net.h` and `include/linux/virtio_net.h` (what is refused with
//! EINVAL), virtio 1.2, 5.1.6.

use std::fmt;

use super::frame::{CsumSpot, Frame, Gso, GsoKind, Offload};
use super::parse;

/// Bytes of the header.
pub const LEN: usize = 10;

/// Flags.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// Kinds of super-frames.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside a kind: the first piece alone carries CWR. Cutting does that by itself.
const GSO_ECN: u8 = 0x80;

/// Why a header says nothing that can be acted on. The frame behind it is to be dropped and
/// counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VnetHdrError {
    /// Fewer than 10 bytes.
    Short {
        /// How many there were.
        len: usize,
    },
    /// A kind of super-frame that the gateway cannot cut.
    GsoKind(u8),
    /// A super-frame with pieces of 0 bytes.
    GsoSize,
    /// The checksum's place lies outside the frame.
    CsumSpot {
        /// First byte summed.
        start: u16,
        /// Place of the field, from `start`.
        offset: u16,
        /// Bytes of the frame.
        frame_len: usize,
    },
}

impl fmt::Display for VnetHdrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { len } => write!(f, "virtio header of {len} bytes, needs {LEN}"),
            Self::GsoKind(kind) => write!(f, "virtio header with unknown GSO type {kind:#04x}"),
            Self::GsoSize => write!(f, "virtio header with a GSO size of 0"),
            Self::CsumSpot { start, offset, frame_len } => write!(
                f,
                "virtio header with its checksum at {start}+{offset}, \
                 outside a frame of {frame_len} bytes"
            ),
        }
    }
}

impl std::error::Error for VnetHdrError {}

/// What the header at the start of `bytes` says about the `frame_len` bytes of frame behind it.
pub fn read(bytes: &[u8], frame_len: usize) -> Result<Offload, VnetHdrError> {
    let header: &[u8; LEN] = bytes.first_chunk().ok_or(VnetHdrError::Short { len: bytes.len() })?;
    let [flags, kind, a, b, c, d, e, g, h, i] = *header;
    let [hdr_len, size, start, offset] = [[a, b], [c, d], [e, g], [h, i]].map(u16::from_ne_bytes);
    let kind = match kind & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some(GsoKind::TcpV4),
        GSO_TCPV6 => Some(GsoKind::TcpV6),
        GSO_UDP_L4 => Some(GsoKind::UdpL4),
        _ => return Err(VnetHdrError::GsoKind(kind)),
    };
    if kind.is_some() && size == 0 {
        return Err(VnetHdrError::GsoSize);
    }
    let needs_csum = flags & NEEDS_CSUM != 0;
    if needs_csum && usize::from(start) + usize::from(offset) + 2 > frame_len {
        return Err(VnetHdrError::CsumSpot { start, offset, frame_len });
    }
    Ok(Offload {
        needs_csum: needs_csum.then_some(CsumSpot { start, offset }),
        data_valid: flags & DATA_VALID != 0,
        gso: kind.map(|kind| Gso { kind, size, hdr_len }),
    })
}

/// The header to send before `frame`. The length of the headers is taken from the frame, not from
/// what it came with: its options may have changed. `data_valid` is the receiving side's word and
/// is not written.
pub fn write(frame: &Frame) -> [u8; LEN] {
    let Offload { needs_csum, gso, .. } = frame.offload();
    let flags = if needs_csum.is_some() { NEEDS_CSUM } else { 0 };
    let kind = match gso.map(|gso| gso.kind) {
        None => GSO_NONE,
        Some(GsoKind::TcpV4) => GSO_TCPV4,
        Some(GsoKind::TcpV6) => GSO_TCPV6,
        Some(GsoKind::UdpL4) => GSO_UDP_L4,
    };
    let hdr_len = gso.map_or(0, |_| parse::header_len(frame.head()) as u16);
    let size = gso.map_or(0, |gso| gso.size);
    let (start, offset) = needs_csum.map_or((0, 0), |spot| (spot.start, spot.offset));
    let mut header = [0; LEN];
    header[0] = flags;
    header[1] = kind;
    for (place, value) in header[2..].chunks_exact_mut(2).zip([hdr_len, size, start, offset]) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
    header
}
