//! Cut and joined frames carry the same bytes: whatever is joined into a train and cut again is
//! read by etherparse as well-formed packets that say what the frames before had said.

use std::collections::BTreeMap;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::train::Train;
use crate::wire::{build, segmentize};

/// How one frame follows the one before it in the same flow.
#[derive(Clone, Copy, Debug)]
struct Next {
    len: usize,
    /// Bytes left out before it, or said again if below zero.
    gap: i32,
    mss: u16,
    /// How far the ack, the window and the clock step on.
    steps: (u32, u16, u32),
    flags: TcpFlags,
}

fn any_next() -> impl Strategy<Value = Next> {
    let len = prop_oneof![2 => Just(0usize), 5 => 1usize..3000, 1 => 3000usize..40_000];
    let gap = prop_oneof![8 => Just(0i32), 1 => -50i32..50];
    let step = || prop_oneof![6 => Just(0u32), 1 => 1u32..5];
    let flags = prop_oneof![8 => Just(0x10u8), 2 => Just(0x18), 1 => Just(0x11), 1 => Just(0x90)];
    (len, gap, 500u16..1449, (step(), step(), step()), flags).prop_map(
        |(len, gap, mss, (ack, window, stamp), flags)| Next {
            len,
            gap,
            mss,
            steps: (ack, window as u16, stamp),
            flags: TcpFlags(flags),
        },
    )
}

/// What a packet says besides its bytes: (ack, window, timestamps).
type Says = (u32, u16, Option<(Tsval, Tsval)>);

/// Bytes by sequence number, the places of FINs, what is said, and the bytes of the longest packet.
#[derive(Debug, Default)]
struct Heard {
    bytes: BTreeMap<u32, u8>,
    fins: Vec<u32>,
    says: Vec<Says>,
    longest: usize,
}

impl Heard {
    /// Cuts and finishes `frame` as for a link that can do nothing, and reads the packets.
    fn read(&mut self, frame: Frame) {
        let mut packets = Vec::new();
        assert!(segmentize::for_link(frame, false, false, &mut packets));
        for packet in packets {
            let bytes = packet.to_vec();
            assert!(matches!(crate::wire::parse::parse(&from_wire(&bytes)), Ok(Packet::Tcp(_))));
            self.read_packet(&bytes);
        }
    }

    fn read_packet(&mut self, bytes: &[u8]) {
        let sliced = SlicedPacket::from_ethernet(bytes).expect("well-formed");
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("{sliced:?}") };
        let check = match sliced.net.as_ref().expect("IP") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
                assert_eq!(usize::from(header.total_len), bytes.len() - 14);
                tcp.calc_checksum_ipv4(header.source, header.destination)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                assert_eq!(usize::from(header.payload_length), bytes.len() - 54);
                tcp.calc_checksum_ipv6(header.source, header.destination)
            }
            NetSlice::Arp(_) => panic!("not ARP"),
        };
        assert_eq!(check.expect("short enough"), tcp.checksum());
        let mut at = tcp.sequence_number();
        for byte in tcp.payload() {
            let before = self.bytes.insert(at, *byte);
            assert!(before.is_none_or(|before| before == *byte), "two versions of one byte");
            at = at.wrapping_add(1);
        }
        if tcp.fin() {
            self.fins.push(at);
        }
        let stamps = tcp.options_iterator().find_map(|option| match option {
            Ok(etherparse::TcpOptionElement::Timestamp(value, echo)) => {
                Some((Tsval(value), Tsval(echo)))
            }
            _ => None,
        });
        self.says.push((tcp.acknowledgment_number(), tcp.window_size(), stamps));
        self.longest = self.longest.max(tcp.payload().len());
    }
}

/// The byte of a stream at a number.
fn byte(seq: u32) -> u8 {
    (seq.wrapping_mul(7) ^ (seq >> 8)) as u8
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_joined_and_cut_says_the_same(
        start in any::<u32>(), is_v4: bool, nexts in vec(any_next(), 1..24),
    ) {
        let l3 = if is_v4 { l3() } else { l3_v6() };
        let mut fields = fields();
        (fields.seq, fields.ack) = (start, 77);
        let mut frames = Vec::new();
        for next in &nexts {
            fields.seq = fields.seq.wrapping_add_signed(next.gap);
            fields.ack += next.steps.0;
            fields.window += next.steps.1;
            let stamp = fields.options.timestamps.map_or(0, |(value, _)| value.0);
            fields.options.timestamps = Some((Tsval(stamp + next.steps.2), Tsval(9)));
            fields.flags = next.flags;
            let seq = fields.seq;
            let bytes: Bytes = (0..next.len).map(|at| byte(seq.wrapping_add(at as u32))).collect();
            frames.push(build::tcp(&l2(), &l3, &fields, bytes, next.mss));
            fields.seq = fields.seq.wrapping_add(next.len as u32);
        }
        let (mut alone, mut joined) = (Heard::default(), Heard::default());
        frames.iter().for_each(|frame| alone.read(frame.clone()));
        let mut trains: Vec<Train> = Vec::new();
        for frame in frames {
            let rest = match trains.last_mut() {
                Some(train) => train.join(frame),
                None => Some(frame),
            };
            trains.extend(rest.map(Train::from));
        }
        for train in trains {
            let mut bytes = train.frame().to_vec();
            train.more().iter().for_each(|piece| bytes.extend_from_slice(piece));
            prop_assert_eq!(bytes.len(), train.bytes());
            joined.read(Frame::from_wire(bytes.into(), train.frame().offload()));
        }
        prop_assert_eq!(&joined.bytes, &alone.bytes);
        prop_assert_eq!(&joined.fins, &alone.fins);
        prop_assert_eq!(joined.says.last(), alone.says.last());
        prop_assert!(joined.says.iter().all(|says| alone.says.contains(says)));
        prop_assert!(joined.says.is_sorted_by_key(|says| says.0));
        prop_assert!(joined.longest <= alone.longest);
    }
}
