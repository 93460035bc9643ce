//! What a server may say that has lost its mind: no packets, packets with wrong sums, and segments
//! of every flag and number in connections that exist and in others.

use std::net::IpAddr;

use bytes::Bytes;

use super::pour::mixed;
use crate::lab::web::PORT;
use crate::lab::world::{CLIENT, CLIENT_MAC, SERVER_MAC, SERVICE};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L2, L3, Mac, Offload, TcpFlags, TcpOptions, Tsval, Vlans};

/// The frame number `n`.
pub(super) fn frame(n: u64) -> Frame {
    let (a, b) = (mixed(n), mixed(n ^ 0x55aa_55aa));
    match n % 4 {
        0 => noise(a),
        1 => broken(segment(a, b), b),
        _ => segment(a, b),
    }
}

/// No packet at all, behind an Ethernet header in order.
fn noise(a: u64) -> Frame {
    let mut bytes = vec![0; 34 + a as usize % 200];
    bytes[..6].copy_from_slice(&CLIENT_MAC);
    bytes[6..12].copy_from_slice(&SERVER_MAC);
    bytes[12..14].copy_from_slice(if a & 1 == 0 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    let mut seed = a;
    for byte in &mut bytes[14..] {
        seed = mixed(seed);
        *byte = seed as u8;
    }
    Frame::from_wire(Bytes::from(bytes), Offload::default())
}

/// A segment in the service's name that no TCP of it has said.
fn segment(a: u64, b: u64) -> Frame {
    let l2 = L2 { dst: Mac(CLIENT_MAC), src: Mac(SERVER_MAC), vlans: Vlans::default() };
    let l3 = L3 {
        src: IpAddr::V4(SERVICE.0),
        dst: IpAddr::V4(CLIENT.0),
        ttl: a as u8 | 1,
        tos: 0,
        dont_fragment: a & 2 == 0,
        id: b as u16,
        flow_label: 0,
    };
    let fields = TcpFields {
        src_port: PORT,
        dst_port: 1024 + (a >> 8) as u16 % 64_000,
        seq: b as u32,
        ack: (b >> 32) as u32,
        flags: TcpFlags((a >> 24) as u8),
        window: (a >> 32) as u16,
        urgent: (a >> 48) as u16,
        options: TcpOptions {
            timestamps: (a & 4 == 0).then_some((Tsval(a as u32), Tsval(b as u32))),
            ..TcpOptions::default()
        },
    };
    let mut data = vec![0; b as usize % 1000];
    data.iter_mut().zip(0u64..).for_each(|(byte, i)| *byte = mixed(a ^ i) as u8);
    build::tcp(&l2, &l3, &fields, Bytes::from(data), u16::MAX)
}

/// The same with a byte of its headers changed.
fn broken(frame: Frame, b: u64) -> Frame {
    let mut bytes = frame.to_vec();
    let at = 14 + b as usize % 40;
    bytes[at] ^= 1 << (b >> 8 & 7);
    Frame::from_wire(Bytes::from(bytes), Offload::default())
}
