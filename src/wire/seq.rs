//! Sequence numbers that cannot be mixed, and 64-bit stream offsets.
//!
//! A TCP sequence number on the wire is 32 bits and wraps (RFC 9293 3.4); inside the engine every
//! position is an [`Offset`], 64 bits, that never wraps. The only doors between the two are
//! [`Seq::at`] and [`Seq::offset`], so a comparison of raw numbers cannot be written by accident.
//! Timestamps (RFC 7323) wrap the same way and have their own type.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::ops::{Add, Sub};

/// The space of the connection that the client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientSpace {}

/// The space of one server's own connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegSpace {}

/// A 32-bit sequence number of one space.
pub struct Seq<Space>(u32, PhantomData<Space>);

impl<S> Clone for Seq<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Seq<S> {}
impl<S> PartialEq for Seq<S> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<S> Eq for Seq<S> {}
impl<S> fmt::Debug for Seq<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seq({})", self.0)
    }
}

impl<S> Seq<S> {
    /// Wraps a number read from the wire.
    pub const fn new(raw: u32) -> Self {
        Self(raw, PhantomData)
    }

    /// The number as it stands on the wire.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The number of stream position `offset`, when `self` is the initial sequence number.
    pub const fn at(self, offset: Offset) -> Self {
        Self::new(self.0.wrapping_add(offset.raw() as u32))
    }

    /// The stream position of `number`, the one nearest to `near`, when `self` is the initial
    /// sequence number. Exact while live positions differ by less than 2^31 (RFC 9293 3.4).
    pub const fn offset(self, number: Self, near: Offset) -> Offset {
        let near_raw = self.0.wrapping_add(near.raw() as u32);
        let step = number.0.wrapping_sub(near_raw) as i32;
        Offset::new(near.raw().wrapping_add(step as i64 as u64))
    }
}

/// A position in one direction's byte stream. The SYN stands at [`Offset::SYN`], the first byte
/// of data right behind it, and the FIN behind the last byte.
///
/// A flow has many that may be absent: never 0, so that an `Option` of it needs no more room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(NonZeroU64);

impl Offset {
    /// Where the SYN stands: high enough that an old duplicate never underflows.
    pub const SYN: Self = Self::new(1 << 32);
    /// The first byte of data.
    pub const START: Self = Self::new((1 << 32) + 1);

    /// The position `raw`, counted from where no stream reaches; 0 counts as 1.
    pub const fn new(raw: u64) -> Self {
        match NonZeroU64::new(raw) {
            Some(raw) => Self(raw),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// What [`Self::new`] was given.
    pub const fn raw(self) -> u64 {
        self.0.get()
    }

    /// Bytes from `earlier` to `self`; 0 if `self` is the earlier one.
    pub const fn since(self, earlier: Self) -> u64 {
        self.raw().saturating_sub(earlier.raw())
    }

    /// The position `by` later, or earlier.
    pub const fn moved(self, by: i64) -> Self {
        Self::new(self.raw().saturating_add_signed(by))
    }

    /// The position `bytes` earlier.
    pub const fn back(self, bytes: u64) -> Self {
        Self::new(self.raw().saturating_sub(bytes))
    }
}

impl Add<u64> for Offset {
    type Output = Self;
    fn add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl Sub for Offset {
    type Output = i64;
    fn sub(self, other: Self) -> i64 {
        self.raw().wrapping_sub(other.raw()) as i64
    }
}

impl fmt::Debug for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.raw() as i64 - Self::SYN.raw() as i64)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A timestamp value of RFC 7323, ordered by serial arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tsval(pub u32);

impl Tsval {
    /// Whether `self` is later than `other` (RFC 7323 5.2).
    pub const fn is_after(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }

    /// The later of the two.
    pub const fn max(self, other: Self) -> Self {
        if self.is_after(other) { self } else { other }
    }

    /// `self` moved by `delta`.
    pub const fn shift(self, delta: TsDelta) -> Self {
        Self(self.0.wrapping_add(delta.0))
    }
}

/// The distance between two timestamp clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TsDelta(pub u32);

impl TsDelta {
    /// What has to be added to `from` to get `to`.
    pub const fn between(from: Tsval, to: Tsval) -> Self {
        Self(to.0.wrapping_sub(from.0))
    }

    /// The delta of the way back.
    pub const fn inverse(self) -> Self {
        Self(0u32.wrapping_sub(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_survives_the_wrap_in_both_directions() {
        for isn in [0, 1, 5, u32::MAX - 5, u32::MAX, 1 << 31] {
            let isn = Seq::<LegSpace>::new(isn);
            for near in [0u64, 7, (1 << 31) - 3, (1 << 32) - 2, (1 << 33) + 9] {
                let near = Offset::SYN + near;
                for step in [-(1i64 << 31) + 1, -70_000, -1, 0, 1, 1448, (1 << 31) - 1] {
                    let there = Offset::new(near.raw().wrapping_add(step as u64));
                    assert_eq!(isn.offset(isn.at(there), near), there);
                }
            }
        }
    }

    proptest::proptest! {
        /// Any position within 2^31 of another is found again from its number alone.
        #[test]
        fn any_near_position_is_found_again(
            isn: u32, near in 1u64 << 31..1 << 60, step in -(1i64 << 31)..1 << 31,
        ) {
            let isn = Seq::<ClientSpace>::new(isn);
            let there = Offset::new(near.wrapping_add_signed(step));
            proptest::prop_assert_eq!(isn.offset(isn.at(there), Offset::new(near)), there);
        }

        /// A delta there and its inverse back leave a timestamp as it was.
        #[test]
        fn a_delta_has_an_inverse(from: u32, to: u32) {
            let delta = TsDelta::between(Tsval(from), Tsval(to));
            proptest::prop_assert_eq!(Tsval(from).shift(delta), Tsval(to));
            proptest::prop_assert_eq!(Tsval(to).shift(delta.inverse()), Tsval(from));
        }
    }

    #[test]
    fn a_timestamp_is_ordered_across_the_wrap() {
        assert!(Tsval(3).is_after(Tsval(u32::MAX - 3)));
        assert!(!Tsval(u32::MAX - 3).is_after(Tsval(3)));
        assert_eq!(Tsval(3).max(Tsval(u32::MAX)), Tsval(3));
    }
}
