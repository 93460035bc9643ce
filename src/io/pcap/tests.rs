//! Captures of every kind are read, damaged ones as far as they can be; pcap-file, which shares no
//! code with the reader or the writer, stands against both.

use std::borrow::Cow;
use std::io::{Cursor, Read, Write};
use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
use proptest::prelude::*;

use super::{NotACapture, Reader, Writer};
use crate::wire::parse::captured::LinkType;

/// A packet as it comes out: number, time, interface, bytes, length on the wire, comment.
type Seen = (u64, u64, usize, Vec<u8>, usize, Option<String>);

/// All packets of a capture, and what was said about the parts that cannot be read.
fn read_all(bytes: &[u8]) -> (Vec<Seen>, Vec<String>) {
    let mut reader = match Reader::new(Cursor::new(bytes.to_vec())) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), vec![error.to_string()]),
    };
    let (mut seen, mut troubles) = (Vec::new(), Vec::new());
    loop {
        match reader.next() {
            Ok(Some(r)) => seen.push((
                r.number,
                r.unix_ns,
                r.interface,
                r.data.to_vec(),
                r.wire_len,
                r.comment.map(str::to_owned),
            )),
            Ok(None) => return (seen, troubles),
            Err(trouble) => troubles.push(trouble.to_string()),
        }
    }
}

fn packet(number: u8) -> Vec<u8> {
    vec![number; 40 + usize::from(number) % 50]
}

/// A plain pcap of the packets 1 to `count`, a second apart.
fn plain(magic: u32, order: fn(u32) -> [u8; 4], count: u8) -> Vec<u8> {
    let version = if order(1)[0] == 1 { [2, 0, 4, 0] } else { [0, 2, 0, 4] };
    let half = if magic == 0xa1b2_3c4d { 500_000_000 } else { 500_000 };
    let mut bytes = [order(magic), version, order(0), order(0), order(65535), order(1)].concat();
    for number in 1..=count {
        let data = packet(number);
        let len = order(data.len() as u32);
        bytes.extend([order(1_700_000_000 + u32::from(number)), order(half), len, len].concat());
        if magic == 0xa1b2_cd34 {
            bytes.extend([9; 8]);
        }
        bytes.extend(data);
    }
    bytes
}

const LITTLE: fn(u32) -> [u8; 4] = u32::to_le_bytes;

fn at(number: u8) -> u64 {
    (1_700_000_000 + u64::from(number)) * 1_000_000_000 + 500_000_000
}

fn numbers(seen: &[Seen]) -> Vec<u8> {
    seen.iter().map(|packet| packet.3[0]).collect()
}

#[test]
fn plain_captures_of_every_kind_are_read() {
    for magic in [0xa1b2_c3d4, 0xa1b2_3c4d, 0xa1b2_cd34] {
        for order in [LITTLE, u32::to_be_bytes] {
            let (seen, troubles) = read_all(&plain(magic, order, 3));
            assert!(troubles.is_empty(), "{magic:x}: {troubles:?}");
            for (index, (seen, number)) in seen.iter().zip(1..).enumerate() {
                let data = packet(number);
                let len = data.len();
                assert_eq!(*seen, (index as u64 + 1, at(number), 0, data, len, None), "{magic:x}");
            }
            assert_eq!(seen.len(), 3);
        }
    }
}

#[test]
fn what_pcap_file_writes_is_read() {
    let mut writer = PcapNgWriter::new(Vec::new()).expect("writes");
    let mut interface = |link, name: &'static str, resolution| {
        let mut block = InterfaceDescriptionBlock::new(link, 0);
        block.options.push(InterfaceDescriptionOption::IfName(Cow::Borrowed(name)));
        if let Some(resolution) = resolution {
            block.options.push(InterfaceDescriptionOption::IfTsResol(resolution));
        }
        writer.write_block(&Block::InterfaceDescription(block)).expect("writes");
    };
    interface(DataLink::ETHERNET, "eth0", None);
    interface(DataLink::RAW, "tun0", Some(9));
    interface(DataLink::LINUX_SLL, "any", Some(0x80 | 10));
    for (interface_id, ticks) in [(0, 1_500_000), (1, 1_500_000_000), (2, 1536)] {
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(ticks), // raw units
            original_len: 2000,
            data: Cow::Owned(vec![7; 61]),
            options: vec![EnhancedPacketOption::Comment(Cow::Borrowed("look here"))],
        };
        writer.write_block(&Block::EnhancedPacket(block)).expect("writes");
    }
    let simple = SimplePacketBlock { original_len: 61, data: Cow::Owned(vec![7; 61]) };
    writer.write_block(&Block::SimplePacket(simple)).expect("writes");
    let bytes = writer.into_inner();
    let (seen, troubles) = read_all(&bytes);
    assert!(troubles.is_empty(), "{troubles:?}");
    let comment = Some("look here".to_owned());
    for (interface, seen) in seen.iter().take(3).enumerate() {
        let number = interface as u64 + 1;
        let expected = (number, 1_500_000_000, interface, vec![7; 61], 2000, comment.clone());
        assert_eq!(*seen, expected);
    }
    assert_eq!(seen[3], (4, 0, 0, vec![7; 61], 61, None));
    let mut reader = Reader::new(Cursor::new(bytes)).expect("a capture");
    while reader.next().expect("no trouble").is_some() {}
    let names: Vec<&str> = reader.interfaces().iter().filter_map(|i| i.name.as_deref()).collect();
    assert_eq!(names, ["eth0", "tun0", "any"]);
    assert_eq!(reader.interfaces()[1].link, LinkType::RAW);
}

#[test]
fn pcap_file_reads_what_is_written() {
    let mut writer = Writer::ng(Vec::new()).expect("writes");
    let index = writer.interface(LinkType::COOKED2, Some("any")).expect("writes");
    writer.packet(index, 1_700_000_000_123_456_789, &[7; 61], 90, Some("why")).expect("writes");
    writer.packet(index, 1, &[8; 4], 4, None).expect("writes");
    let bytes = writer.into_inner();
    let mut reader = PcapNgReader::new(&bytes[..]).expect("a capture");
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.expect("a block") {
            packets.push(packet.into_owned());
        }
    }
    assert_eq!(packets[0].timestamp.as_nanos(), 1_700_000_000_123_456_789);
    assert_eq!((&*packets[0].data, packets[0].original_len), (&[7u8; 61][..], 90));
    assert_eq!(packets[0].options, [EnhancedPacketOption::Comment(Cow::Borrowed("why"))]);
    assert_eq!(&*packets[1].data, &[8; 4]);

    let mut writer = Writer::classic(Vec::new(), LinkType::NULL).expect("writes");
    writer.packet(0, 1_700_000_000_123_456_789, &[7; 61], 90, None).expect("writes");
    let bytes = writer.into_inner();
    let mut reader = pcap_file::pcap::PcapReader::new(&bytes[..]).expect("a capture");
    assert_eq!(reader.header().datalink, DataLink::NULL);
    let packet = reader.next_packet().expect("a packet").expect("readable");
    assert_eq!(packet.timestamp, Duration::from_nanos(1_700_000_000_123_456_789));
    assert_eq!((&*packet.data, packet.orig_len), (&[7u8; 61][..], 90));
}

/// A pcapng in big-endian order: packets 1 to `count`.
fn big_endian_ng(count: u8) -> Vec<u8> {
    let block = |kind: u32, body: &[u8]| {
        let len = (body.len().next_multiple_of(4) as u32 + 12).to_be_bytes();
        let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
        [&kind.to_be_bytes()[..], &len, body, &padding, &len].concat()
    };
    let section = [&[0x1a, 0x2b, 0x3c, 0x4d, 0, 1, 0, 0][..], &[0xff; 8]].concat();
    let mut bytes = block(0x0a0d_0d0a, &section);
    bytes.extend(block(1, &[0, 1, 0, 0, 0, 4, 0, 0]));
    for number in 1..=count {
        let ticks = (at(number) / 1000).to_be_bytes();
        let data = packet(number);
        let len = (data.len() as u32).to_be_bytes();
        bytes.extend(block(6, &[&[0; 4][..], &ticks, &len, &len, &data].concat()));
    }
    bytes
}

#[test]
fn sections_of_either_order_may_follow_one_another() {
    let (seen, troubles) = read_all(&[big_endian_ng(2), big_endian_ng(3)].concat());
    assert!(troubles.is_empty(), "{troubles:?}");
    assert_eq!(numbers(&seen), [1, 2, 1, 2, 3]);
    assert_eq!(seen[4].2, 1, "the second section has an interface of its own");
    assert_eq!(seen[4].1, at(3));
    let mut writer = Writer::ng(Vec::new()).expect("writes");
    writer.interface(LinkType::ETHERNET, None).expect("writes");
    writer.packet(0, 5, &[9; 7], 7, None).expect("writes");
    let (seen, troubles) = read_all(&[big_endian_ng(1), writer.into_inner()].concat());
    assert!(troubles.is_empty() && seen[1].1 == 5, "{troubles:?}");
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).expect("packs");
    packer.finish().expect("packs")
}

#[test]
fn gzip_is_unpacked_and_its_end_is_told() {
    let whole = plain(0xa1b2_c3d4, LITTLE, 200);
    let (first, second) = whole.split_at(5000);
    for bytes in [packed(&whole), [packed(first), packed(second)].concat()] {
        let (seen, troubles) = read_all(&bytes);
        assert_eq!((seen.len(), troubles), (200, Vec::new()));
    }
    let packed = packed(&whole);
    let (seen, troubles) = read_all(&packed[..packed.len() / 2]);
    assert!(!seen.is_empty() && seen.len() < 200, "{}", seen.len());
    assert_eq!(troubles.len(), 1, "{troubles:?}");
}

#[test]
fn a_few_packed_bytes_make_no_end_of_interfaces() {
    let mut writer = Writer::ng(Vec::new()).expect("writes");
    let name = "n".repeat(60_000);
    writer.interface(LinkType::ETHERNET, Some(&name)).expect("writes");
    for _ in 0..20_000 {
        writer.interface(LinkType::ETHERNET, None).expect("writes");
    }
    writer.packet(0, 5, &[9; 7], 7, None).expect("writes");
    writer.packet(20_000, 5, &[9; 7], 7, None).expect("writes");
    let bytes = packed(&writer.into_inner());
    assert!(bytes.len() < 20_000, "{}", bytes.len());
    let mut reader = Reader::new(Cursor::new(bytes)).expect("a capture");
    let (mut packets, mut troubles, mut place) = (0, 0, 0);
    loop {
        match reader.next() {
            Ok(Some(_)) => packets += 1,
            Ok(None) => break,
            Err(trouble) => {
                assert!(trouble.at > place, "each has its own place");
                (troubles, place) = (troubles + 1, trouble.at);
            }
        }
    }
    assert_eq!((packets, reader.interfaces().len()), (1, 1 << 14));
    // Each interface that is not kept, and the packet of the last of them.
    assert_eq!(troubles, 20_001 - (1 << 14) + 1);
    assert_eq!(reader.interfaces()[0].name.as_ref().map(String::len), Some(256));
}

#[test]
fn what_is_no_capture_is_told() {
    let refused = |bytes: &[u8]| match Reader::new(Cursor::new(bytes.to_vec())) {
        Ok(_) => panic!("read"),
        Err(error) => error,
    };
    assert!(matches!(refused(b""), NotACapture::Empty));
    assert!(refused(b"\x28\xb5\x2f\xfdxxxx").to_string().contains("zstd -d"));
    assert!(refused(b"\x89PNG").to_string().contains("89 50 4e 47"));
    assert!(matches!(refused(b"\x0a"), NotACapture::Other(_)));
    assert!(matches!(refused(&[0x0a, 0x0d, 0x0d, 0x0a, 0, 0]), NotACapture::Other(_)));
    assert!(matches!(refused(&plain(0xa1b2_c3d4, LITTLE, 0)[..20]), NotACapture::Other(_)));
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("no disk"))
        }
    }
    assert!(Reader::new(Broken).expect_err("broken").to_string().contains("no disk"));
}

#[test]
fn a_damaged_plain_capture_is_read_around_the_damage() {
    let whole = plain(0xa1b2_c3d4, LITTLE, 9);
    let starts = |n: u8| -> usize { 24 + (1..n).map(|n| 16 + packet(n).len()).sum::<usize>() };
    let mut boasting = whole.clone();
    boasting[starts(4) + 8..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let (seen, troubles) = read_all(&boasting);
    assert_eq!(numbers(&seen), [1, 2, 3, 5, 6, 7, 8, 9]);
    assert_eq!(troubles.len(), 1);
    let place = format!("packet 4 (byte {})", starts(4));
    assert!(troubles[0].starts_with(&place), "{troubles:?}");
    assert_eq!(seen[3].0, 5, "the packet that was passed over has its number");

    let (seen, troubles) = read_all(&whole[..whole.len() - 5]);
    assert_eq!((seen.len(), troubles.len()), (8, 1));
    assert!(troubles[0].contains("44 of 49 bytes"), "{troubles:?}");
    let (seen, troubles) = read_all(&whole[..starts(9) + 3]);
    assert_eq!((seen.len(), troubles.len()), (8, 1));

    let mut last = whole.clone();
    last[starts(9) + 8..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let (seen, troubles) = read_all(&last);
    assert_eq!((seen.len(), troubles.len()), (8, 1), "{troubles:?}");
}

#[test]
fn a_damaged_pcapng_is_read_around_the_damage() {
    let whole = big_endian_ng(9);
    let len = |n: u8| 32 + packet(n).len().next_multiple_of(4);
    let starts = |n: u8| 28 + 20 + (1..n).map(len).sum::<usize>();
    for (place, bytes, what) in [
        (starts(4) + 4, [0xff; 4], "a block of"),
        (starts(5) - 4, [0xff; 4], "another length"),
        (starts(4) + 8, [0, 0, 0, 7], "interface 7"),
        (starts(4) + 20, [0, 0, 1, 0], "256 bytes in a block with"),
    ] {
        let mut damaged = whole.clone();
        damaged[place..place + 4].copy_from_slice(&bytes);
        let (seen, troubles) = read_all(&damaged);
        assert_eq!(numbers(&seen), [1, 2, 3, 5, 6, 7, 8, 9], "{what}");
        assert_eq!(troubles.len(), 1, "{what}");
        assert!(troubles[0].starts_with("packet 4 ") && troubles[0].contains(what), "{troubles:?}");
    }
    let (seen, troubles) = read_all(&whole[..whole.len() - 5]);
    assert_eq!((seen.len(), troubles.len()), (8, 1));
}

/// A file whose reads bring a few bytes at a time.
struct Dripping(Cursor<Vec<u8>>, usize);

impl Read for Dripping {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 % 7 + 1;
        let len = buffer.len().min(self.1);
        self.0.read(&mut buffer[..len])
    }
}

#[test]
fn however_the_bytes_come_the_packets_are_the_same() {
    for whole in [plain(0xa1b2_c3d4, LITTLE, 40), big_endian_ng(40), packed(&big_endian_ng(40))] {
        let mut reader = Reader::new(Dripping(Cursor::new(whole), 0)).expect("a capture");
        for number in 1..=40 {
            let record = reader.next().expect("no trouble").expect("a packet");
            assert_eq!((record.number, record.unix_ns), (u64::from(number), at(number)));
            assert_eq!(record.data, packet(number));
        }
        assert!(reader.next().expect("no trouble").is_none());
    }
}

proptest! {
    /// Whatever is broken in a capture: it ends, no packet is longer than the file, and what stands
    /// before the damage is as it was.
    #[test]
    fn damage_is_survived(
        is_ng: bool, place in 0usize..2400, bytes in prop::collection::vec(any::<u8>(), 1..9),
        end in 0usize..2400,
    ) {
        let whole = if is_ng { big_endian_ng(20) } else { plain(0xa1b2_c3d4, LITTLE, 20) };
        let mut damaged = whole.clone();
        let place = place.min(whole.len() - 1);
        for (byte, new) in damaged[place..].iter_mut().zip(&bytes) {
            *byte = *new;
        }
        damaged.truncate(end.max(40));
        let (seen, troubles) = read_all(&damaged);
        prop_assert!(troubles.len() <= damaged.len() / 4);
        let before = read_all(&whole).0;
        for (packet, original) in seen.iter().zip(&before) {
            prop_assert!(packet.3.len() <= damaged.len());
            let len = if is_ng { 32 } else { 16 } + original.3.len().next_multiple_of(4);
            let ends = whole.windows(original.3.len()).position(|w| w == original.3);
            if ends.is_some_and(|at| at + len <= place.min(damaged.len())) {
                prop_assert_eq!(packet, original);
            }
        }
    }

    /// Any bytes at all behind the beginning of a capture.
    #[test]
    fn garbage_is_survived(is_ng: bool, garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        let head = if is_ng { big_endian_ng(0) } else { plain(0xa1b2_3c4d, LITTLE, 0) };
        let (seen, _) = read_all(&[head, garbage.clone()].concat());
        prop_assert!(seen.iter().all(|packet| packet.3.len() <= garbage.len()));
    }
}
