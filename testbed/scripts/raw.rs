//! Packets that no builder of the product makes: options of any kind, extension headers, pieces,
//! wrong sums.

use shadowvm::wire::checksum::{self, pseudo_header};
use shadowvm::wire::parse::parse;
use shadowvm::wire::{Frame, L2, L3, Offload, Packet, build};

/// The IP protocol number of TCP.
pub const TCP: u8 = 6;
/// Bytes of a TCP header without options.
const HEADER: usize = 20;
const CHECKSUM: usize = 16;

/// A TCP packet taken apart.
#[derive(Clone, Debug)]
pub struct Parts {
    pub l2: L2,
    pub l3: L3,
    /// The TCP segment, its checksum complete.
    pub tcp: Vec<u8>,
}

impl Parts {
    /// Takes a frame with a whole TCP segment apart.
    pub fn of(mut frame: Frame) -> Result<Self, String> {
        let Ok(Packet::Tcp(seg)) = parse(&frame) else { return Err("not a TCP segment".into()) };
        checksum::complete(&mut frame);
        let tcp = frame.to_vec().split_off(usize::from(seg.l4_at));
        Ok(Self { l2: seg.l2, l3: seg.l3, tcp })
    }

    /// The same segment with further options, whose length is a multiple of 4.
    pub fn with_options(mut self, options: &[u8]) -> Self {
        let header = usize::from(self.tcp[12] >> 4) * 4;
        self.tcp.splice(header..header, options.iter().copied());
        self.tcp[12] = ((header + options.len()) as u8 / 4) << 4;
        self.checked()
    }

    /// The same segment with these bits among its flags.
    pub fn with_flags(mut self, bits: u8) -> Self {
        self.tcp[13] |= bits;
        self.checked()
    }

    /// The same segment with a sum that is wrong.
    pub fn with_wrong_sum(mut self) -> Self {
        self.tcp[CHECKSUM] ^= 0x55;
        self
    }

    /// The frame.
    pub fn frame(&self) -> Frame {
        build::datagram(&self.l2, &self.l3, TCP, &self.tcp)
    }

    /// The frame, with IPv6 extension headers between the IP header and the segment: the kind of
    /// each and its bytes, of which the first is filled in here.
    pub fn behind(&self, headers: &[(u8, Vec<u8>)]) -> Frame {
        let mut payload = Vec::new();
        for (index, (_, bytes)) in headers.iter().enumerate() {
            let at = payload.len();
            payload.extend_from_slice(bytes);
            payload[at] = headers.get(index + 1).map_or(TCP, |next| next.0);
        }
        payload.extend_from_slice(&self.tcp);
        build::datagram(&self.l2, &self.l3, headers.first().map_or(TCP, |h| h.0), &payload)
    }

    /// The pieces of the frame on a path of this MTU.
    pub fn pieces(&self, mtu: usize) -> Vec<Frame> {
        let l3 = L3 { dont_fragment: false, ..self.l3 };
        build::fragments(Self { l3, ..self.clone() }.frame(), mtu)
    }

    fn checked(mut self) -> Self {
        debug_assert!(self.tcp.len() >= HEADER, "a whole header");
        self.tcp[CHECKSUM..CHECKSUM + 2].fill(0);
        let sum = pseudo_header(self.l3.src, self.l3.dst, TCP, self.tcp.len());
        let check = sum.bytes(&self.tcp).check();
        self.tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&check.to_be_bytes());
        self
    }
}

/// The frame as it would leave a host that completes sums itself, changed in one byte at its end.
pub fn damaged(mut frame: Frame) -> Frame {
    checksum::complete(&mut frame);
    let mut bytes = frame.to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 0x01;
    }
    Frame::from_wire(bytes.into(), Offload::default())
}

/// The frame with other VLAN tags, for the two sides of a switch's port.
pub fn retagged(frame: &Frame, tags: &[(u16, u16)]) -> Frame {
    let mut bytes = frame.to_vec();
    let old = frame.head().len();
    let mut end = 12;
    while matches!(bytes.get(end..end + 2), Some([0x81, 0x00] | [0x88, 0xa8])) {
        end += 4;
    }
    let new: Vec<u8> = tags
        .iter()
        .flat_map(|(kind, tci)| [kind.to_be_bytes(), tci.to_be_bytes()])
        .flatten()
        .collect();
    let shift = new.len() as i32 - (end as i32 - 12);
    bytes.splice(12..end, new);
    let offload = frame.offload();
    let moved = |at: u16| (i32::from(at) + shift) as u16;
    let offload = Offload {
        needs_csum: offload
            .needs_csum
            .map(|spot| shadowvm::wire::CsumSpot { start: moved(spot.start), ..spot }),
        gso: offload.gso.map(|gso| shadowvm::wire::Gso { hdr_len: moved(gso.hdr_len), ..gso }),
        ..offload
    };
    let split = (old as i32 + shift) as usize;
    let body = bytes::Bytes::from(bytes.split_off(split));
    Frame::from_parts(bytes::BytesMut::from(&bytes[..]), body, offload)
}
