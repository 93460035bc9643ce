//! Writes one TCP segment as an Ethernet frame. It shares no code with the engine's builder.

use crate::sim::frames::{fold, sum};

/// Bytes of the Ethernet and IPv4 headers.
const BELOW_TCP: usize = 34;

/// Flag bits that the model sets.
pub const FIN: u8 = 1;
/// See [`FIN`].
pub const SYN: u8 = 2;
/// See [`FIN`].
pub const RST: u8 = 4;
/// See [`FIN`].
pub const PSH: u8 = 8;
/// See [`FIN`].
pub const ACK: u8 = 16;
/// See [`FIN`].
pub const URG: u8 = 32;
/// See [`FIN`].
pub const ECE: u8 = 64;
/// See [`FIN`].
pub const CWR: u8 = 128;

/// A segment without its payload.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Who sends, each address and port.
    pub src: ([u8; 4], u16),
    /// To whom.
    pub dst: ([u8; 4], u16),
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Flag bits.
    pub flags: u8,
    /// Window field.
    pub window: u16,
    /// Urgent pointer.
    pub urgent: u16,
    /// What each piece of a super-frame carries; 0 of any other. It travels as the IP
    /// identification, which means nothing in a packet that is never a fragment (RFC 6864 4.1).
    pub piece: u16,
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Window scale.
    pub scale: Option<u8>,
    /// Selective acknowledgments are welcome.
    pub sack_ok: bool,
    /// Timestamp and echo.
    pub stamps: Option<(u32, u32)>,
    /// Selective acknowledgments; as many as fit are written.
    pub sack: Vec<(u32, u32)>,
}

impl Segment {
    /// The frame, with the Ethernet addresses left empty.
    pub fn write(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(BELOW_TCP + 60 + payload.len());
        frame.resize(BELOW_TCP, 0);
        frame.extend_from_slice(&self.src.1.to_be_bytes());
        frame.extend_from_slice(&self.dst.1.to_be_bytes());
        frame.extend_from_slice(&self.seq.to_be_bytes());
        frame.extend_from_slice(&self.ack.to_be_bytes());
        frame.extend_from_slice(&[0, self.flags]);
        frame.extend_from_slice(&self.window.to_be_bytes());
        frame.extend_from_slice(&[0; 2]);
        frame.extend_from_slice(&self.urgent.to_be_bytes());
        self.write_options(&mut frame);
        frame[BELOW_TCP + 12] = ((frame.len() - BELOW_TCP) as u8 / 4) << 4;
        frame.extend_from_slice(payload);
        self.write_ip(&mut frame);
        let len = (frame.len() - BELOW_TCP) as u32;
        let pseudo = sum(6 + len, &frame[26..34]);
        let check = !fold(sum(pseudo, &frame[BELOW_TCP..]));
        frame[BELOW_TCP + 16..BELOW_TCP + 18].copy_from_slice(&check.to_be_bytes());
        frame
    }

    fn write_options(&self, frame: &mut Vec<u8>) {
        if let Some(mss) = self.mss {
            frame.extend_from_slice(&[2, 4]);
            frame.extend_from_slice(&mss.to_be_bytes());
        }
        if self.sack_ok {
            frame.extend_from_slice(&[4, 2, 1, 1]);
        }
        if let Some((value, echo)) = self.stamps {
            frame.extend_from_slice(&[1, 1, 8, 10]);
            frame.extend_from_slice(&value.to_be_bytes());
            frame.extend_from_slice(&echo.to_be_bytes());
        }
        if let Some(scale) = self.scale {
            frame.extend_from_slice(&[1, 3, 3, scale]);
        }
        let room = (BELOW_TCP + 60 - frame.len()).saturating_sub(4) / 8;
        let sack = &self.sack[..self.sack.len().min(room)];
        if !sack.is_empty() {
            frame.extend_from_slice(&[1, 1, 5, 2 + 8 * sack.len() as u8]);
            for (from, to) in sack {
                frame.extend_from_slice(&from.to_be_bytes());
                frame.extend_from_slice(&to.to_be_bytes());
            }
        }
    }

    fn write_ip(&self, frame: &mut [u8]) {
        frame[12..14].copy_from_slice(&[8, 0]);
        let total = (frame.len() - 14) as u16;
        let ip = &mut frame[14..BELOW_TCP];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[4..6].copy_from_slice(&self.piece.to_be_bytes());
        ip[6] = 0x40;
        (ip[8], ip[9]) = (64, 6);
        ip[12..16].copy_from_slice(&self.src.0);
        ip[16..20].copy_from_slice(&self.dst.0);
        let check = !fold(sum(0, ip));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::frames::{Read, read};

    #[test]
    fn a_segment_reads_as_it_was_written() {
        let segment = Segment {
            src: ([10, 0, 0, 1], 40_000),
            dst: ([10, 0, 0, 10], 80),
            seq: u32::MAX,
            ack: 7,
            flags: ACK | PSH,
            window: 513,
            stamps: Some((5, 6)),
            sack: vec![(1, 2), (3, 4), (5, 6), (7, 8)],
            ..Segment::default()
        };
        let frame = segment.write(b"odd");
        let Read::Tcp(seg) = read(&frame, true) else { panic!("{:?}", read(&frame, true)) };
        assert_eq!((seg.src, seg.dst, seg.seq, seg.ack), (segment.src, segment.dst, u32::MAX, 7));
        assert_eq!((seg.flags, seg.window, seg.data), (ACK | PSH, 513, &b"odd"[..]));
        assert_eq!((seg.stamps, seg.sack), (Some((5, 6)), vec![(1, 2), (3, 4), (5, 6)]));
        let syn = Segment { mss: Some(1460), scale: Some(14), sack_ok: true, ..segment };
        let frame = Segment { flags: SYN, sack: Vec::new(), ..syn }.write(&[]);
        let Read::Tcp(seg) = read(&frame, true) else { panic!("{:?}", read(&frame, true)) };
        assert_eq!((seg.mss, seg.scale, seg.sack_ok), (Some(1460), Some(14), true));
        assert_eq!(seg.stamps, Some((5, 6)));
    }
}
