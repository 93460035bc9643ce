//! What is built parses back the same.

use super::*;
use crate::wire::{build, checksum, parse, segmentize};

fn segment(frame: &Frame) -> Segment {
    match parse::parse(frame) {
        Ok(Packet::Tcp(segment)) => segment,
        other => panic!("not a TCP segment: {other:?}"),
    }
}

fn assert_says(segment: &Segment, l2: &L2, l3: &L3, fields: &TcpFields) {
    assert_eq!((segment.l2, segment.l3), (*l2, *l3));
    assert_eq!((segment.src_port, segment.dst_port), (fields.src_port, fields.dst_port));
    assert_eq!((segment.seq, segment.ack), (fields.seq, fields.ack));
    assert_eq!((segment.flags, segment.window), (fields.flags, fields.window));
    assert_eq!((segment.urgent, segment.options), (fields.urgent, fields.options));
}

#[test]
fn a_built_segment_parses_back_partial_and_completed() {
    for l3 in [l3(), l3_v6()] {
        for len in [0, 1, 2, 1447, 1448] {
            let mut frame = build::tcp(&l2(), &l3, &fields(), payload(len), 1448);
            let partial = segment(&frame);
            assert_says(&partial, &l2(), &l3, &fields());
            assert_eq!((partial.payload_len, partial.gso_size), (len, None));
            checksum::complete(&mut frame);
            assert_eq!(segment(&from_wire(&frame.to_vec())), partial);
            assert_eq!(segment(&frame), partial);
        }
    }
}

#[test]
fn a_super_frame_is_cut_into_what_would_have_been_built() {
    for l3 in [l3(), l3_v6()] {
        for len in [1449, 2896, 2897, 60_000] {
            let mut fields = fields();
            fields.flags = TcpFlags(0xff).without(TcpFlags::SYN.with(TcpFlags::RST));
            fields.urgent = 3000;
            let all = payload(len);
            let frame = build::tcp(&l2(), &l3, &fields, all.clone(), 1448);
            assert_eq!(segment(&frame).gso_size, Some(1448));
            let mut pieces = Vec::new();
            assert!(segmentize::for_link(frame, false, false, &mut pieces));
            assert_eq!(pieces.len(), len.div_ceil(1448));
            for (index, piece) in pieces.iter().enumerate() {
                let at = index * 1448;
                let mut fields = fields;
                let mut l3 = l3;
                fields.seq = fields.seq.wrapping_add(at as u32);
                if index > 0 {
                    fields.flags = fields.flags.without(TcpFlags::CWR);
                }
                match 3000usize.checked_sub(at) {
                    Some(left) => fields.urgent = left as u16,
                    None => {
                        (fields.urgent, fields.flags) = (0, fields.flags.without(TcpFlags::URG))
                    }
                }
                if at + 1448 < len {
                    fields.flags = fields.flags.without(TcpFlags::FIN.with(TcpFlags::PSH));
                }
                if l3.src.is_ipv4() {
                    l3.id = l3.id.wrapping_add(index as u16);
                }
                let bytes = all.slice(at..len.min(at + 1448));
                let mut direct = build::tcp(&l2(), &l3, &fields, bytes, 1448);
                checksum::complete(&mut direct);
                assert_eq!(*piece, direct);
                assert_says(&segment(&from_wire(&piece.to_vec())), &l2(), &l3, &fields);
            }
        }
    }
}
