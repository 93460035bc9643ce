//! Any bytes as a capture of conversations: nothing is heard that was not sent, and a capture does
//! not differ from itself.

use bytes::Bytes;
use shadowvm::io::pcap::Writer;
use shadowvm::replay::survey::Survey;
use shadowvm::replay::{Capture, Options, Side, Verdict, diff};
use shadowvm::wire::build::{TcpFields, tcp};
use shadowvm::wire::parse::captured::LinkType;
use shadowvm::wire::{L2, L3, Mac, TcpFlags, TcpOptions, Vlans, checksum};

/// A capture file.
pub fn target(data: &[u8]) -> bool {
    let capture = Capture::bytes("fuzzed", Bytes::copy_from_slice(data));
    let Ok(survey) = Survey::of(&capture) else { return false };
    let (heard, _, _) = survey.totals();
    let sent: u64 = survey
        .talks
        .iter()
        .flat_map(|(talk, _)| Side::BOTH.map(|side| talk.sender(side).payload_bytes))
        .sum();
    assert!(heard <= sent, "{heard} bytes heard of {sent}");
    let report = diff([&capture, &capture], &Options::default()).expect("it was read before");
    assert_ne!(report.verdict(), Verdict::Different, "{report:#?}");
    heard > 0
}

/// A conversation in order, and one with a hole, in each format.
pub fn seeds() -> Vec<Vec<u8>> {
    let asked: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
    let answered: &[u8] = b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 2\r\n\r\nok";
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    let all = [
        (true, syn, 0, 0, &b""[..]),
        (false, syn.with(ack), 0, 1, b""),
        (true, ack, 1, 1, asked),
        (false, ack, 1, 19, &answered[..30]),
        (false, ack, 31, 19, &answered[30..]),
        (true, TcpFlags::FIN_ACK, 19, 1 + answered.len() as u32, b""),
        (false, TcpFlags::FIN_ACK, 1 + answered.len() as u32, 20, b""),
    ];
    let mut seeds = Vec::new();
    for left_out in [None, Some(3)] {
        let mut writers = [
            Writer::ng(Vec::new()).expect("it is written"),
            Writer::classic(Vec::new(), LinkType::ETHERNET).expect("it is written"),
        ];
        for writer in &mut writers {
            writer.interface(LinkType::ETHERNET, None).expect("it is written");
            for (index, (is_client, flags, seq, ack, payload)) in all.into_iter().enumerate() {
                if left_out == Some(index) {
                    continue;
                }
                let frame = frame(is_client, flags, seq, ack, payload);
                writer.packet(0, 5, &frame, frame.len(), None).expect("it is written");
            }
        }
        seeds.extend(writers.map(Writer::into_inner));
    }
    seeds
}

fn frame(is_client: bool, flags: TcpFlags, seq: u32, ack: u32, payload: &'static [u8]) -> Vec<u8> {
    let l2 = L2 { dst: Mac([2; 6]), src: Mac([4; 6]), vlans: Vlans::default() };
    let ends = ([10, 0, 0, 7].into(), [192, 0, 2, 10].into());
    let (src, dst) = if is_client { ends } else { (ends.1, ends.0) };
    let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
    let (src_port, dst_port) = if is_client { (40_000, 80) } else { (80, 40_000) };
    let (window, urgent, options) = (100, 0, TcpOptions::default());
    let fields = TcpFields { src_port, dst_port, seq, ack, flags, window, urgent, options };
    let mut frame = tcp(&l2, &l3, &fields, Bytes::from_static(payload), 0);
    checksum::complete(&mut frame);
    frame.to_vec()
}
