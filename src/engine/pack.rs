//! A value as a short string of bytes, field by field, and back: how a flow at rest is kept.
//!
//! Not a format: only the process that has written a string reads it, once. [`fields!`] takes a
//! struct apart without a rest pattern, so that a field which is forgotten does not compile.
//! Numbers are written in as few bytes as they need; times and places as steps from the last one,
//! since those of a flow at rest stand close together. Most of what is left are zeros, which
//! [`squeeze`] takes out.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::time::Instant;
use crate::protocol::rules::Rule;
use crate::wire::{L2, Mac, Offset, Seq, TsDelta, Tsval, Vlans};

/// Where a value is written to.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    time: u64,
    place: u64,
}

impl Writer {
    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }
}

/// The bytes without their zeros: before each eight of them stands which ones are left.
pub fn squeeze(bytes: &[u8]) -> Vec<u8> {
    let mut squeezed = Vec::with_capacity(bytes.len());
    for eight in bytes.chunks(8) {
        let at = squeezed.len();
        squeezed.push(0);
        for (i, &byte) in eight.iter().enumerate().filter(|&(_, &byte)| byte != 0) {
            squeezed[at] |= 1 << i;
            squeezed.push(byte);
        }
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
    time: u64,
    place: u64,
    /// What may differ: what every flow shares is not in the string.
    pub rules: &'a Arc<[Rule]>,
}

impl<'a> Reader<'a> {
    /// Reads what a [`Writer`] has written.
    pub const fn new(bytes: &'a [u8], rules: &'a Arc<[Rule]>) -> Self {
        Self { rest: bytes, time: 0, place: 0, rules }
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
        }
    }

    fn raw<const N: usize>(&mut self) -> [u8; N] {
        let (bytes, rest) = self.rest.split_first_chunk().expect("a writer has written it");
        self.rest = rest;
        *bytes
    }
}

/// What can be written and read.
pub trait Pack: Sized {
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
    ($type:ty { $($variant:ident),* $(,)? }) => {
        impl $crate::engine::pack::Pack for $type {
            fn pack(&self, w: &mut $crate::engine::pack::Writer) {
                let number = match self { $(Self::$variant => Self::$variant as u8),* };
                $crate::engine::pack::Pack::pack(&number, w);
            }
            fn unpack(r: &mut $crate::engine::pack::Reader<'_>) -> Self {
                let number: u8 = $crate::engine::pack::Pack::unpack(r);
                $(if number == Self::$variant as u8 {
                    return Self::$variant;
                })*
                unreachable!("a writer has written it")
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
        w.number(u64::from(*self));
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        r.number() == 1
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
        w.number(step(w.time, self.nanos()));
        w.time = self.nanos();
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        r.time = stepped(r.time, r.number());
        Self::from_nanos(r.time)
    }
}

impl Pack for Offset {
    fn pack(&self, w: &mut Writer) {
        w.number(step(w.place, self.raw()));
        w.place = self.raw();
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        r.place = stepped(r.place, r.number());
        Self::new(r.place)
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
        let (secs, nanos) = Pack::unpack(r);
        Self::new(secs, nanos)
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
        w.raw(&self.0.to_le_bytes());
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self(u32::from_le_bytes(r.raw()))
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
        w.raw(&self.0);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self(r.raw())
    }
}

impl Pack for SocketAddr {
    fn pack(&self, w: &mut Writer) {
        match self.ip() {
            IpAddr::V4(ip) => {
                w.raw(&[4]);
                w.raw(&ip.octets());
            }
            IpAddr::V6(ip) => {
                w.raw(&[6]);
                w.raw(&ip.octets());
            }
        }
        self.port().pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let ip = match r.raw() {
            [4] => IpAddr::from(r.raw::<4>()),
            _ => IpAddr::from(r.raw::<16>()),
        };
        Self::new(ip, Pack::unpack(r))
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
        bool::unpack(r).then(|| T::unpack(r))
    }
}

impl<T: Pack> Pack for [T; 2] {
    fn pack(&self, w: &mut Writer) {
        self.iter().for_each(|value| value.pack(w));
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        [T::unpack(r), T::unpack(r)]
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
    (0..usize::unpack(r)).map(|_| T::unpack(r)).collect()
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

fields!(L2 { dst, src, vlans });
fields!(Vlans { outer, inner });

#[cfg(test)]
mod tests {
    use super::*;

    fn through<T: Pack>(value: &T) -> (T, usize) {
        let mut w = Writer::default();
        value.pack(&mut w);
        let bytes = w.as_bytes();
        let rules = Rule::masks([]);
        let mut r = Reader::new(bytes, &rules);
        let read = T::unpack(&mut r);
        assert!(r.rest.is_empty());
        (read, bytes.len())
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
        assert!(through(&vec![at; 10]).1 <= 1 + 8 + 9);
        assert!(through(&vec![Offset::START; 10]).1 <= 1 + 5 + 9);
    }

    #[test]
    fn addresses_of_both_families() {
        for text in ["192.0.2.1:80", "[2001:db8::1]:443"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(through(&address).0, address);
        }
    }
}
