//! A value as a short string of bytes, field by field, and back: how a flow at rest is kept.
//!
//! Not a format: of a flow at rest only the process that has written a string reads it, once; a
//! [whole](Writer::whole) engine is read by the same version only, and may be damaged: then the
//! [`Reader`] says so, and what it gives is of no use. [`fields!`] takes a
//! struct apart without a rest pattern, so that a field which is forgotten does not compile.
//! Numbers are written in as few bytes as they need, and what is true or not in a bit. Most times,
//! places, stamps and Ethernet addresses of a flow at rest are the same few, or stand close to one
//! of these: each is written as a step from the nearest one that was named [lately](Lately). Much
//! of what is left are zeros, which [`squeeze`] takes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::time::Instant;
use crate::protocol::Rules;
use crate::wire::{
    CsumSpot, Frame, Gso, GsoKind, L2, L3, Mac, Offload, Offset, Seq, Talk, TsDelta, Tsval, Vlans,
};

/// Kinds of values that come back.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Time,
    Place,
    Stamp,
    Mac,
}

/// The values of each [`Kind`] that were named last, the latest first.
#[derive(Debug)]
struct Lately([[u64; 8]; 4]);

impl Lately {
    /// Before any is named.
    const NONE: Self = Self([[0; 8], [Offset::START.raw(); 8], [0; 8], [0; 8]]);

    /// Which one is nearest to `value`, and the step from there.
    fn nearest(&self, kind: Kind, value: u64) -> (usize, u64) {
        let known = &self.0[kind as usize];
        if let Some(which) = known.iter().position(|&known| known == value) {
            return (which, 0);
        }
        let steps = known.iter().map(|&from| step(from, value));
        steps.enumerate().min_by_key(|&(_, step)| step).unwrap_or_default()
    }

    /// Names what [`Self::nearest`] has found: it is the latest now, and known once.
    fn name(&mut self, kind: Kind, (which, step): (usize, u64)) -> u64 {
        let known = &mut self.0[kind as usize];
        let value = stepped(known[which], step);
        let end = if step == 0 { which } else { known.len() - 1 };
        for i in (0..end).rev() {
            known[i + 1] = known[i];
        }
        known[0] = value;
        value
    }
}

/// Where a value is written to.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    lately: Lately,
    /// Where the byte of the latest bits stands, and how many are in it.
    bits: (usize, u32),
    /// Payloads, if nothing is left out; none if only what rests is written.
    payloads: Option<Vec<Bytes>>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { bytes: Vec::with_capacity(512), lately: Lately::NONE, bits: (0, 8), payloads: None }
    }
}

impl Writer {
    /// One that also takes what is under way.
    pub fn whole() -> Self {
        Self { payloads: Some(Vec::new()), ..Self::default() }
    }

    /// Whether also what is under way is written.
    pub const fn is_whole(&self) -> bool {
        self.payloads.is_some()
    }

    /// Bytes that stand for themselves.
    pub fn string(&mut self, bytes: &[u8]) {
        bytes.len().pack(self);
        self.raw(bytes);
    }

    /// What was written, and the payloads.
    pub fn into_parts(self) -> (Vec<u8>, Vec<Bytes>) {
        (self.bytes, self.payloads.unwrap_or_default())
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Eight bits stand in a byte, where the first of them is written.
    fn bit(&mut self, is_set: bool) {
        if self.bits.1 == 8 {
            self.bits = (self.bytes.len(), 0);
            self.bytes.push(0);
        }
        self.bytes[self.bits.0] |= u8::from(is_set) << self.bits.1;
        self.bits.1 += 1;
    }

    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }

    fn named(&mut self, kind: Kind, value: u64) {
        let (which, step) = self.lately.nearest(kind, value);
        self.lately.name(kind, (which, step));
        self.raw(&[which as u8]);
        self.number(step);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

/// The bytes without their zeros: before each eight of them stands which ones are left.
pub fn squeeze(bytes: &[u8]) -> Vec<u8> {
    let mut squeezed = Vec::with_capacity(bytes.len() / 8 * 9 + 18);
    for chunk in bytes.chunks(8) {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        // Each byte is put behind those that are left, and stays there if it is one of them.
        let (mut left, mut len) = ([0; 9], 1);
        for (i, byte) in eight.into_iter().enumerate() {
            left[len] = byte;
            left[0] |= u8::from(byte != 0) << i;
            len += usize::from(byte != 0);
        }
        let end = squeezed.len() + len;
        squeezed.extend_from_slice(&left);
        squeezed.truncate(end);
    }
    squeezed
}

/// What was squeezed, and zeros up to a multiple of eight.
pub fn spread(squeezed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * squeezed.len());
    let mut rest = squeezed.iter().copied();
    while let Some(left) = rest.next() {
        let eight = (0..8).map(|i| if left >> i & 1 == 0 { 0 } else { rest.next().unwrap_or(0) });
        bytes.extend(eight);
    }
    bytes
}

/// Where a value is read from.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    lately: Lately,
    /// The byte of the latest bits, and how many of them were read.
    bits: (u8, u32),
    /// What may differ: what every flow shares is not in the string.
    pub rules: &'a Rules,
    payloads: Option<std::slice::Iter<'a, Bytes>>,
    is_damaged: bool,
}

impl<'a> Reader<'a> {
    /// Reads what a [`Writer`] has written.
    pub const fn new(bytes: &'a [u8], rules: &'a Rules) -> Self {
        Self {
            rest: bytes,
            lately: Lately::NONE,
            bits: (0, 8),
            rules,
            payloads: None,
            is_damaged: false,
        }
    }

    /// Reads what a [whole](Writer::whole) writer has written.
    pub fn whole(bytes: &'a [u8], payloads: &'a [Bytes], rules: &'a Rules) -> Self {
        Self { payloads: Some(payloads.iter()), ..Self::new(bytes, rules) }
    }

    /// Whether also what was under way is there.
    pub const fn is_whole(&self) -> bool {
        self.payloads.is_some()
    }

    /// What [`Writer::string`] has written.
    pub fn string(&mut self) -> &'a [u8] {
        let len = usize::unpack(self);
        let Some((string, rest)) = self.rest.split_at_checked(len) else {
            self.damaged();
            return &[];
        };
        self.rest = rest;
        string
    }

    /// Nobody has written this.
    pub const fn damaged(&mut self) {
        self.is_damaged = true;
    }

    /// Whether a writer can have written what was read so far.
    pub const fn is_good_so_far(&self) -> bool {
        !self.is_damaged
    }

    /// Whether all was read, and a writer can have written it.
    pub fn is_good(&self) -> bool {
        let has_more = self.payloads.as_ref().is_some_and(|payloads| payloads.len() > 0);
        !self.is_damaged && !has_more && self.rest.is_empty()
    }

    fn bit(&mut self) -> bool {
        if self.bits.1 == 8 {
            let [byte] = self.raw();
            self.bits = (byte, 0);
        }
        let is_set = self.bits.0 >> self.bits.1 & 1 == 1;
        self.bits.1 += 1;
        is_set
    }

    fn number(&mut self) -> u64 {
        let (mut n, mut shift) = (0, 0);
        loop {
            let [byte] = self.raw();
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return n;
            }
            shift += 7;
            if shift > 63 {
                self.damaged();
                return n;
            }
        }
    }

    fn named(&mut self, kind: Kind) -> u64 {
        let ([which], step) = (self.raw(), self.number());
        self.lately.name(kind, (usize::from(which & 7), step))
    }

    fn raw<const N: usize>(&mut self) -> [u8; N] {
        let Some((bytes, rest)) = self.rest.split_first_chunk() else {
            (self.is_damaged, self.rest) = (true, &[]);
            return [0; N];
        };
        self.rest = rest;
        *bytes
    }
}

/// What can be written and read.
pub trait Pack: Sized {
    /// Whether there can be one in a string.
    const IS_PACKED: bool = true;
    /// Writes it.
    fn pack(&self, w: &mut Writer);
    /// Reads it.
    fn unpack(r: &mut Reader<'_>) -> Self;
}

/// Writes and reads a struct: each of its fields, in this order.
macro_rules! fields {
    ($type:ty { $($field:ident),* $(,)? }) => {
        impl $crate::engine::pack::Pack for $type {
            fn pack(&self, w: &mut $crate::engine::pack::Writer) {
                let Self { $($field),* } = self;
                $($crate::engine::pack::Pack::pack($field, w);)*
            }
            fn unpack(r: &mut $crate::engine::pack::Reader<'_>) -> Self {
                Self { $($field: $crate::engine::pack::Pack::unpack(r)),* }
            }
        }
    };
}
pub(super) use fields;

/// Writes and reads an enum without data, by the number of the variant in this order.
macro_rules! variants {
    ($type:ty { $first:ident $(, $variant:ident)* $(,)? }) => {
        impl $crate::engine::pack::Pack for $type {
            fn pack(&self, w: &mut $crate::engine::pack::Writer) {
                let number = match self {
                    Self::$first => Self::$first as u8,
                    $(Self::$variant => Self::$variant as u8),*
                };
                $crate::engine::pack::Pack::pack(&number, w);
            }
            fn unpack(r: &mut $crate::engine::pack::Reader<'_>) -> Self {
                let number: u8 = $crate::engine::pack::Pack::unpack(r);
                $(if number == Self::$variant as u8 {
                    return Self::$variant;
                })*
                if number != Self::$first as u8 {
                    r.damaged();
                }
                Self::$first
            }
        }
    };
}
pub(super) use variants;

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Pack for $type {
            fn pack(&self, w: &mut Writer) {
                w.number(*self as u64);
            }
            fn unpack(r: &mut Reader<'_>) -> Self {
                r.number() as Self
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, usize);

impl Pack for bool {
    fn pack(&self, w: &mut Writer) {
        w.bit(*self);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        r.bit()
    }
}

/// A step back or forth in few bytes (zigzag).
fn step(from: u64, to: u64) -> u64 {
    let by = to.wrapping_sub(from) as i64;
    (by << 1 ^ by >> 63) as u64
}

fn stepped(from: u64, step: u64) -> u64 {
    from.wrapping_add(step >> 1 ^ (step & 1).wrapping_neg())
}

impl Pack for Instant {
    fn pack(&self, w: &mut Writer) {
        w.named(Kind::Time, self.nanos());
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self::from_nanos(r.named(Kind::Time))
    }
}

impl Pack for Offset {
    fn pack(&self, w: &mut Writer) {
        w.named(Kind::Place, self.raw());
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self::new(r.named(Kind::Place))
    }
}

impl Pack for i64 {
    fn pack(&self, w: &mut Writer) {
        w.number(step(0, *self as u64));
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        stepped(0, r.number()) as Self
    }
}

impl Pack for Duration {
    fn pack(&self, w: &mut Writer) {
        (self.as_secs(), self.subsec_nanos()).pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let (secs, nanos): (u64, u32) = Pack::unpack(r);
        Self::from_secs(secs).saturating_add(Self::from_nanos(nanos.into()))
    }
}

impl<S> Pack for Seq<S> {
    fn pack(&self, w: &mut Writer) {
        w.raw(&self.raw().to_le_bytes());
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self::new(u32::from_le_bytes(r.raw()))
    }
}

impl Pack for Tsval {
    fn pack(&self, w: &mut Writer) {
        w.named(Kind::Stamp, u64::from(self.0));
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self(r.named(Kind::Stamp) as u32)
    }
}

impl Pack for TsDelta {
    fn pack(&self, w: &mut Writer) {
        w.raw(&self.0.to_le_bytes());
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self(u32::from_le_bytes(r.raw()))
    }
}

impl Pack for Mac {
    fn pack(&self, w: &mut Writer) {
        let mut number = [0; 8];
        number[2..].copy_from_slice(&self.0);
        w.named(Kind::Mac, u64::from_be_bytes(number));
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let [_, _, mac @ ..] = r.named(Kind::Mac).to_be_bytes();
        Self(mac)
    }
}

impl Pack for SocketAddr {
    fn pack(&self, w: &mut Writer) {
        w.bit(self.is_ipv6());
        match self.ip() {
            IpAddr::V4(ip) => w.raw(&ip.octets()),
            IpAddr::V6(ip) => w.raw(&ip.octets()),
        }
        w.raw(&self.port().to_le_bytes());
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let ip = match r.bit() {
            false => IpAddr::from(r.raw::<4>()),
            true => IpAddr::from(r.raw::<16>()),
        };
        Self::new(ip, u16::from_le_bytes(r.raw()))
    }
}

impl<T: Pack> Pack for Option<T> {
    fn pack(&self, w: &mut Writer) {
        self.is_some().pack(w);
        if let Some(value) = self {
            value.pack(w);
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let is_there = bool::unpack(r);
        if is_there && !T::IS_PACKED {
            r.damaged();
            return None;
        }
        is_there.then(|| T::unpack(r))
    }
}

impl<T: Pack, const N: usize> Pack for [T; N] {
    fn pack(&self, w: &mut Writer) {
        self.iter().for_each(|value| value.pack(w));
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        std::array::from_fn(|_| T::unpack(r))
    }
}

impl<A: Pack, B: Pack> Pack for (A, B) {
    fn pack(&self, w: &mut Writer) {
        self.0.pack(w);
        self.1.pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        (A::unpack(r), B::unpack(r))
    }
}

impl<A: Pack, B: Pack, C: Pack> Pack for (A, B, C) {
    fn pack(&self, w: &mut Writer) {
        self.0.pack(w);
        self.1.pack(w);
        self.2.pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        (A::unpack(r), B::unpack(r), C::unpack(r))
    }
}

impl<A: Pack, B: Pack, C: Pack, D: Pack, E: Pack> Pack for (A, B, C, D, E) {
    fn pack(&self, w: &mut Writer) {
        self.0.pack(w);
        self.1.pack(w);
        self.2.pack(w);
        self.3.pack(w);
        self.4.pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        (A::unpack(r), B::unpack(r), C::unpack(r), D::unpack(r), E::unpack(r))
    }
}

impl<A: Pack, B: Pack, C: Pack, D: Pack> Pack for (A, B, C, D) {
    fn pack(&self, w: &mut Writer) {
        self.0.pack(w);
        self.1.pack(w);
        self.2.pack(w);
        self.3.pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        (A::unpack(r), B::unpack(r), C::unpack(r), D::unpack(r))
    }
}

fn pack_all<'a, T: Pack + 'a>(len: usize, all: impl Iterator<Item = &'a T>, w: &mut Writer) {
    len.pack(w);
    all.for_each(|value| value.pack(w));
}

fn unpack_all<T: Pack, All: FromIterator<T>>(r: &mut Reader<'_>) -> All {
    let mut len = usize::unpack(r);
    // Most values need a byte, those of a bit are not kept by the many.
    if len > r.rest.len() {
        r.damaged();
        len = 0;
    }
    (0..len).map(|_| T::unpack(r)).collect()
}

impl<T: Pack> Pack for Vec<T> {
    fn pack(&self, w: &mut Writer) {
        pack_all(self.len(), self.iter(), w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        unpack_all(r)
    }
}

impl<T: Pack> Pack for Box<[T]> {
    fn pack(&self, w: &mut Writer) {
        pack_all(self.len(), self.iter(), w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        unpack_all(r)
    }
}

impl<T: Pack> Pack for VecDeque<T> {
    fn pack(&self, w: &mut Writer) {
        pack_all(self.len(), self.iter(), w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        unpack_all(r)
    }
}

impl<K: Pack + Ord, V: Pack> Pack for BTreeMap<K, V> {
    fn pack(&self, w: &mut Writer) {
        self.len().pack(w);
        for (key, value) in self {
            key.pack(w);
            value.pack(w);
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        unpack_all::<(K, V), Self>(r)
    }
}

impl<T: Pack + Ord> Pack for BTreeSet<T> {
    fn pack(&self, w: &mut Writer) {
        pack_all(self.len(), self.iter(), w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        unpack_all(r)
    }
}

impl Pack for IpAddr {
    fn pack(&self, w: &mut Writer) {
        SocketAddr::new(*self, 0).pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        SocketAddr::unpack(r).ip()
    }
}

/// Beside the string, and shared: of a whole engine only.
impl Pack for Bytes {
    fn pack(&self, w: &mut Writer) {
        w.payloads.as_mut().expect("what rests has no payload").push(self.clone());
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let next = r.payloads.as_mut().and_then(Iterator::next).cloned();
        next.unwrap_or_else(|| {
            r.damaged();
            Self::new()
        })
    }
}

impl Pack for Frame {
    fn pack(&self, w: &mut Writer) {
        let Offload { needs_csum, data_valid, gso } = self.offload();
        w.string(self.head());
        self.body().pack(w);
        (data_valid, needs_csum.map(|spot| (spot.start, spot.offset))).pack(w);
        gso.map(|gso| (gso.kind as u8, gso.size, gso.hdr_len)).pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let (head, body) = (r.string(), Bytes::unpack(r));
        let (data_valid, spot): (bool, Option<(u16, u16)>) = Pack::unpack(r);
        let needs_csum = spot.map(|(start, offset)| CsumSpot { start, offset });
        let gso: Option<(u8, u16, u16)> = Pack::unpack(r);
        let gso = gso.map(|(kind, size, hdr_len)| {
            let kinds = [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::UdpL4];
            let kind = kinds.into_iter().find(|known| *known as u8 == kind);
            Gso { kind: kind.unwrap_or(GsoKind::TcpV4), size: size.max(1), hdr_len }
        });
        let offload = Offload { needs_csum, data_valid, gso };
        Self::from_parts(BytesMut::from(head), body, offload)
    }
}

impl Pack for Talk {
    fn pack(&self, w: &mut Writer) {
        (*self as u8).pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let number = u8::unpack(r);
        let all = [Self::Tcp, Self::Udp, Self::Echo];
        all.into_iter().find(|talk| *talk as u8 == number).unwrap_or(Self::Tcp)
    }
}

fields!(L2 { dst, src, vlans });
fields!(L3 { src, dst, ttl, tos, dont_fragment, id, flow_label });
fields!(Vlans { outer, inner });

#[cfg(test)]
mod tests {
    use super::*;

    fn through<T: Pack>(value: &T) -> (T, usize) {
        let mut w = Writer::default();
        value.pack(&mut w);
        let squeezed = squeeze(w.as_bytes());
        let bytes = spread(&squeezed);
        let rules = Rules::default();
        let mut r = Reader::new(&bytes, &rules);
        let read = T::unpack(&mut r);
        assert!(r.rest.len() < 8 && r.rest.iter().all(|&byte| byte == 0));
        (read, squeezed.len())
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(
            n: u64,
            i: i64,
            times: Vec<u64>,
            places: Vec<u64>,
            maybe: Option<(u16, bool)>,
            stamps: (u32, u32),
        ) {
            proptest::prop_assert_eq!(through(&n).0, n);
            proptest::prop_assert_eq!(through(&i).0, i);
            let times: Vec<_> = times.into_iter().map(Instant::from_nanos).collect();
            proptest::prop_assert_eq!(&through(&times).0, &times);
            let places: VecDeque<_> = places.into_iter().map(Offset::new).collect();
            proptest::prop_assert_eq!(&through(&places).0, &places);
            proptest::prop_assert_eq!(through(&maybe).0, maybe);
            let stamps = [Tsval(stamps.0), Tsval(stamps.1)];
            proptest::prop_assert_eq!(through(&stamps).0, stamps);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_squeezed_is_spread(bytes: Vec<u8>, zeros in 0usize..40) {
            let bytes = [bytes, vec![0; zeros], vec![7; zeros % 3]].concat();
            let spread = spread(&squeeze(&bytes));
            proptest::prop_assert_eq!(&spread[..bytes.len()], &bytes[..]);
            proptest::prop_assert!(spread[bytes.len()..].iter().all(|&byte| byte == 0));
            proptest::prop_assert!(spread.len() < bytes.len() + 8);
        }
    }

    #[test]
    fn times_and_places_that_stand_close_together_are_short() {
        let at = Instant::from_millis(86_400_000);
        assert!(through(&vec![at; 10]).1 <= 1 + 8 + 4);
        assert!(through(&vec![Offset::START; 10]).1 <= 1 + 3);
        let stamps = [0x1234_5678, 0x9abc_def0].map(Tsval);
        assert!(through(&[[stamps; 2]; 2]).1 <= 2 * (1 + 5) + 6 + 2);
    }

    #[test]
    fn addresses_of_both_families() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(through(&address).0, address);
        }
    }
}
