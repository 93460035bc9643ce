//! Where one server's bytes stand in the stream that the client sees: the splice map.
//!
//! Two servers may say a value differently, and at different length (a date, an identification).
//! The client is shown one of the two, so behind such a *token* the other server's positions are
//! off by the difference. The map from the server's own positions to the visible ones, and back, is
//! a constant with steps. A token is atomic: no position inside of one has a counterpart, so each
//! conversion says to which side it rounds. Nearly every flow has no token on its way: then a
//! conversion is one addition.
//!
//! Only this file adds and subtracts such differences.

use std::collections::VecDeque;
use std::ops::Add;

use super::pack::{Pack, Reader, Writer, fields};
use crate::wire::Offset;

/// A position in what one server itself says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Own(pub Offset);

impl Own {
    /// The first byte of data.
    pub const START: Self = Self(Offset::START);

    /// Bytes from `earlier` to `self`; 0 if `self` is the earlier one.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.since(earlier.0)
    }
}

impl Add<u64> for Own {
    type Output = Self;
    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// To which end of a token a position inside of it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To its start: acks, window edges, the right edge of a SACK block.
    Down,
    /// To its end: the left edge of a SACK block, the end of what is said again.
    Up,
}

/// A token: so many bytes of the server's own stand for so many visible ones. Neither is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Splice {
    own: Own,
    own_len: u32,
    shown: Offset,
    shown_len: u32,
}

impl Splice {
    fn own_end(&self) -> Own {
        self.own + u64::from(self.own_len)
    }

    fn shown_end(&self) -> Offset {
        self.shown + u64::from(self.shown_len)
    }

    /// What is to be added to own positions behind it.
    fn shift(&self) -> i64 {
        self.shown_end() - self.own_end().0
    }
}

/// The map of one server's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alignment {
    /// What is to be added to own positions before the first token.
    base: i64,
    /// The tokens on their way, lowest first.
    splices: VecDeque<Splice>,
}

impl Alignment {
    /// A constant.
    pub const fn with_base(base: i64) -> Self {
        Self { base, splices: VecDeque::new() }
    }

    /// The visible position of `own`.
    #[inline(always)] // nearly always an addition, several times for each packet
    pub fn shown(&self, own: Own, round: Round) -> Offset {
        match self.splices.is_empty() {
            true => own.0.moved(self.base),
            false => self.shown_behind(own, round),
        }
    }

    #[cold]
    fn shown_behind(&self, own: Own, round: Round) -> Offset {
        let next = self.splices.partition_point(|s| s.own_end() <= own);
        match (self.splices.get(next), round) {
            (Some(s), Round::Down) if s.own < own => s.shown,
            (Some(s), Round::Up) if s.own < own => s.shown_end(),
            _ => own.0.moved(self.shift_before(next)),
        }
    }

    /// The own position of `shown`.
    #[inline(always)] // nearly always an addition, several times for each packet
    pub fn own(&self, shown: Offset, round: Round) -> Own {
        match self.splices.is_empty() {
            true => Own(shown.moved(-self.base)),
            false => self.own_behind(shown, round),
        }
    }

    #[cold]
    fn own_behind(&self, shown: Offset, round: Round) -> Own {
        let next = self.splices.partition_point(|s| s.shown_end() <= shown);
        match (self.splices.get(next), round) {
            (Some(s), Round::Down) if s.shown < shown => s.own,
            (Some(s), Round::Up) if s.shown < shown => s.own_end(),
            _ => Own(shown.moved(-self.shift_before(next))),
        }
    }

    fn shift_before(&self, next: usize) -> i64 {
        match next.checked_sub(1) {
            Some(last) => self.splices[last].shift(),
            None => self.base,
        }
    }

    /// From `at` on, behind all tokens, `own_len` bytes of the server's own stand for `shown_len`
    /// visible ones. Neither may be 0.
    pub fn splice(&mut self, at: Offset, own_len: u32, shown_len: u32) {
        debug_assert!(at >= self.plain_from() && own_len > 0 && shown_len > 0);
        let own = self.own(at, Round::Down);
        self.splices.push_back(Splice { own, own_len, shown: at, shown_len });
    }

    /// The visible end of the last token: from here on the map is a constant.
    pub fn plain_from(&self) -> Offset {
        self.splices.back().map_or(Offset::new(0), Splice::shown_end)
    }

    /// Forgets tokens that end at or before the visible `floor`; true if there were any. What lies
    /// before a forgotten token stays before its end.
    pub fn prune(&mut self, floor: Offset) -> bool {
        let before = self.splices.len();
        while let Some(first) = self.splices.front()
            && first.shown_end() <= floor
        {
            self.base = first.shift();
            self.splices.pop_front();
        }
        if self.splices.is_empty() && before > 0 {
            self.splices = VecDeque::new();
        }
        self.splices.len() < before
    }

    /// Undoes the tokens that lie beyond the visible `end`: nobody was shown them.
    pub fn rewind(&mut self, end: Offset) {
        while self.plain_from() > end {
            self.splices.pop_back();
        }
    }

    /// How many tokens are on their way.
    pub fn len(&self) -> usize {
        self.splices.len()
    }

    /// Whether the map is a constant.
    pub fn is_constant(&self) -> bool {
        self.splices.is_empty()
    }

    /// What is to be added to own positions before the first token.
    pub const fn base(&self) -> i64 {
        self.base
    }
}

fields!(Splice { own, own_len, shown, shown_len });
fields!(Alignment { base, splices });

impl Pack for Own {
    fn pack(&self, w: &mut Writer) {
        self.0.pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        Self(Pack::unpack(r))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Rules;
    use proptest::prelude::*;

    /// A piece of both streams: bytes that both have, or a token.
    #[derive(Clone, Copy, Debug)]
    enum Piece {
        Same(u32),
        Token(u32, u32),
    }

    /// The two streams, byte by byte: what each byte is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Byte {
        Same(u32),
        Token(usize),
    }

    /// The streams themselves, and the map that the pieces make.
    struct Model {
        own: Vec<Byte>,
        shown: Vec<Byte>,
        map: Alignment,
    }

    fn build(pieces: &[Piece]) -> Model {
        let mut m = Model { own: Vec::new(), shown: Vec::new(), map: Alignment::default() };
        let mut plain = 0;
        for (i, &piece) in pieces.iter().enumerate() {
            match piece {
                Piece::Same(n) => {
                    for _ in 0..n {
                        m.own.push(Byte::Same(plain));
                        m.shown.push(Byte::Same(plain));
                        plain += 1;
                    }
                }
                Piece::Token(own, shown) => {
                    m.map.splice(at(m.shown.len()), own, shown);
                    m.own.extend((0..own).map(|_| Byte::Token(i)));
                    m.shown.extend((0..shown).map(|_| Byte::Token(i)));
                }
            }
        }
        m
    }

    fn at(n: usize) -> Offset {
        Offset::START + n as u64
    }

    /// Where position `n` of `from` stands in `to`, by looking for what stands there. A position is
    /// that of the byte behind it; inside of a token it is the token's start or end.
    fn place(from: &[Byte], to: &[Byte], n: usize, round: Round) -> usize {
        let Some(&byte) = from.get(n) else { return to.len() + (n - from.len()) };
        let first = to.iter().position(|&b| b == byte).expect("both streams have it");
        let is_inside = n > 0 && from[n - 1] == byte;
        match is_inside && round == Round::Up {
            true => to.iter().rposition(|&b| b == byte).expect("as above") + 1,
            false => first,
        }
    }

    fn agrees(m: &Model) {
        for round in [Round::Down, Round::Up] {
            for n in 0..m.own.len() + 3 {
                let expected = at(place(&m.own, &m.shown, n, round));
                assert_eq!(m.map.shown(Own(at(n)), round), expected, "own {n} {round:?}");
            }
            for n in 0..m.shown.len() + 3 {
                let expected = Own(at(place(&m.shown, &m.own, n, round)));
                assert_eq!(m.map.own(at(n), round), expected, "shown {n} {round:?}");
            }
        }
    }

    /// At every floor: what was visible from it on keeps its place, and what lay below stays there.
    fn prunes(m: &Model) {
        for floor in 0..m.shown.len() + 2 {
            let mut map = m.map.clone();
            map.prune(at(floor));
            let left = m.map.splices.iter().filter(|s| s.shown_end() > at(floor)).count();
            assert_eq!(map.len(), left);
            for n in floor..m.shown.len() + 2 {
                for round in [Round::Down, Round::Up] {
                    assert_eq!(map.own(at(n), round), m.map.own(at(n), round), "{floor} {n}");
                }
            }
            for n in 0..m.own.len() + 2 {
                for round in [Round::Down, Round::Up] {
                    let place = |map: &Alignment| map.shown(Own(at(n)), round);
                    let (before, after) = (place(&m.map), place(&map));
                    match before > at(floor) {
                        true => assert_eq!(after, before, "{floor} {n}"),
                        false => assert!(after <= at(floor), "{floor} {n}"),
                    }
                }
            }
        }
    }

    /// Undone up to any place between tokens, it is the map that was never told of them.
    fn rewinds(pieces: &[Piece]) {
        for n in 0..=pieces.len() {
            let kept = build(&pieces[..n]);
            let mut map = build(pieces).map;
            map.rewind(at(kept.shown.len()));
            assert_eq!(map, kept.map);
        }
    }

    /// Packed and unpacked it is the same, wherever it begins.
    fn packs(map: &Alignment) {
        for base in [0, -1, 1 << 40, i64::MIN, i64::MAX] {
            let map = Alignment { base, splices: map.splices.clone() };
            let mut w = Writer::default();
            map.pack(&mut w);
            assert_eq!(Alignment::unpack(&mut Reader::new(w.as_bytes(), &Rules::default())), map);
        }
    }

    fn check(pieces: &[Piece]) {
        let model = build(pieces);
        agrees(&model);
        prunes(&model);
        rewinds(pieces);
        packs(&model.map);
    }

    #[test]
    fn every_small_map_is_the_one_of_its_bytes() {
        let mut pieces = vec![Piece::Same(1), Piece::Same(3)];
        pieces.extend((1..4).flat_map(|own| (1..4).map(move |shown| Piece::Token(own, shown))));
        let n = pieces.len();
        for i in 0..n.pow(4) {
            let digit = |k: u32| pieces[i / n.pow(k) % n];
            check(&[digit(0), digit(1), digit(2), digit(3)]);
        }
    }

    proptest! {
        #[test]
        fn any_map_is_the_one_of_its_bytes(
            pieces in prop::collection::vec((0u32..40, 1u32..30, 1u32..30), 0..12),
        ) {
            let pieces = pieces.into_iter().flat_map(|(same, own, shown)| {
                [Piece::Same(same), Piece::Token(own, shown)]
            });
            check(&pieces.collect::<Vec<_>>());
        }
    }
}
