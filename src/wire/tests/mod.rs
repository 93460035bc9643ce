//! Tests of the wire layer as a whole: what goes in, what comes out.

mod bad_input;
mod checksums;
mod ends;
mod messages;
mod oracle;
mod round_trip;
mod super_frames;

use std::net::IpAddr;

use bytes::Bytes;

use super::build::TcpFields;
use super::*;

/// A frame as a wire brings it.
fn from_wire(bytes: &[u8]) -> Frame {
    Frame::from_wire(Bytes::copy_from_slice(bytes), Offload::default())
}

fn l2() -> L2 {
    L2 { dst: Mac([2, 0, 0, 0, 0, 1]), src: Mac([2, 0, 0, 0, 0, 2]), vlans: Vlans::default() }
}

fn l3_between(src: &str, dst: &str) -> L3 {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let (src, dst) = (ip(src), ip(dst));
    let id = if src.is_ipv4() { 0x1234 } else { 0 };
    let flow_label = if src.is_ipv4() { 0 } else { 0x54321 };
    L3 { src, dst, ttl: 63, tos: 0x10, dont_fragment: true, id, flow_label }
}

fn l3() -> L3 {
    l3_between("192.0.2.1", "198.51.100.2")
}

fn l3_v6() -> L3 {
    l3_between("2001:db8::1", "2001:db8:1::2")
}

fn fields() -> TcpFields {
    TcpFields {
        src_port: 40_000,
        dst_port: 80,
        seq: 0xffff_fff0,
        ack: 77,
        flags: TcpFlags::ACK.with(TcpFlags::PSH),
        window: 502,
        urgent: 0,
        options: TcpOptions {
            timestamps: Some((Tsval(1), Tsval(0xffff_ffff))),
            ..TcpOptions::default()
        },
    }
}

fn payload(len: usize) -> Bytes {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}
