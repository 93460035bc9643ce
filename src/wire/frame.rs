//! [`Frame`]: an Ethernet frame with its offload state, the only packet that crosses layers.
//!
//! The head (all headers, up to the transport payload) is owned and edited in place; the body is
//! shared, so that mirroring a frame to two servers copies the headers only.

use bytes::{Bytes, BytesMut};

/// What the kernel left to do on a frame, or vouches for (the virtio network header).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum holds only the pseudo-header sum and has to be completed.
    pub needs_csum: Option<CsumSpot>,
    /// A device has verified the transport checksum.
    pub data_valid: bool,
    /// The frame is a super-frame, to be cut before it meets a wire.
    pub gso: Option<Gso>,
}

impl Offload {
    /// What holds after `len` bytes were inserted into the Ethernet header, as a VLAN tag that the
    /// kernel delivered beside the frame: places behind it move, sizes stay.
    pub fn after_insertion(self, len: u16) -> Self {
        let needs_csum =
            self.needs_csum.map(|spot| CsumSpot { start: spot.start.saturating_add(len), ..spot });
        let gso = self.gso.map(|gso| Gso { hdr_len: gso.hdr_len.saturating_add(len), ..gso });
        Self { needs_csum, gso, ..self }
    }
}

/// Where an unfinished checksum stands, both from the start of the frame and of the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CsumSpot {
    /// First byte the sum covers, from the start of the frame.
    pub start: u16,
    /// The checksum field, from `start`.
    pub offset: u16,
}

/// How to cut a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Which protocol cuts it.
    pub kind: GsoKind,
    /// Transport payload bytes in each piece.
    pub size: u16,
    /// Bytes of headers repeated before each piece.
    pub hdr_len: u16,
}

/// The protocol of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of equal size.
    UdpL4,
}

/// An Ethernet frame: headers to edit, payload to share, and what is left to do on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    head: BytesMut,
    body: Bytes,
    offload: Offload,
}

impl Frame {
    /// A frame as it came from a wire: split where the transport payload begins.
    pub fn from_wire(bytes: Bytes, offload: Offload) -> Self {
        let split = super::parse::header_len(&bytes).min(bytes.len());
        Self { head: BytesMut::from(&bytes[..split]), body: bytes.slice(split..), offload }
    }

    /// A frame of headers and payload made elsewhere.
    pub const fn from_parts(head: BytesMut, body: Bytes, offload: Offload) -> Self {
        Self { head, body, offload }
    }

    /// All headers.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// All headers, to be edited in place.
    pub fn head_mut(&mut self) -> &mut [u8] {
        &mut self.head
    }

    /// The transport payload (and any Ethernet padding behind it).
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// The head and the body, each whole.
    pub fn into_parts(self) -> (BytesMut, Bytes, Offload) {
        (self.head, self.body, self.offload)
    }

    /// Overwrites the bytes at `at`. The body is copied first if the place lies in it (it may be
    /// shared). Whatever lies beyond the frame is left out.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        let split = self.head.len();
        let in_head = split.saturating_sub(at).min(bytes.len());
        let (first, second) = bytes.split_at(in_head);
        if let Some(place) = self.head.get_mut(at..at + in_head) {
            place.copy_from_slice(first);
        }
        let at = (at + in_head).saturating_sub(split);
        let room = self.body.len().saturating_sub(at);
        let second = &second[..second.len().min(room)];
        if !second.is_empty() {
            let mut body = BytesMut::from(&self.body[..]);
            body[at..at + second.len()].copy_from_slice(second);
            self.body = body.freeze();
        }
    }

    /// What the kernel left to do.
    pub const fn offload(&self) -> Offload {
        self.offload
    }

    /// Replaces the offload state.
    pub const fn set_offload(&mut self, offload: Offload) {
        self.offload = offload;
    }

    /// Bytes of the whole frame.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole frame in one buffer.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len());
        all.extend_from_slice(&self.head);
        all.extend_from_slice(&self.body);
        all
    }
}
