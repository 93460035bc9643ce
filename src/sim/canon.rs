//! One way of counting for three streams that are not equally long: each server's and the one that
//! the client was shown, where values may have one server's length or the other's.
//!
//! The rules count in a fourth stream, in which every value has room for its longest version; what
//! is shorter is filled up behind its end. Segments are rewritten into it before the rules read
//! them, from the plan and from the shown bytes alone: nothing of the engine's map is believed.

use super::frames::{SYN, Seg};
use super::track::{FlowTrack, rel};
use crate::engine::LegId;

/// What fills up a shorter version.
pub const FILL: u8 = 0;

/// A value that the servers say at their own length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Where it stands; the first byte of a stream is 1.
    pub at: u64,
    /// The length of each server's version.
    pub len: [u64; 2],
}

impl Token {
    fn room(&self) -> u64 {
        self.len[0].max(self.len[1])
    }

    fn is_uneven(&self) -> bool {
        self.len[0] != self.len[1]
    }
}

/// Whose stream a position belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A server's own.
    Leg(LegId),
    /// The client's.
    Shown,
}

/// The versions of a byte: a value of server A has lower case, one of B has upper case.
pub fn is_of(byte: u8) -> Option<LegId> {
    match byte {
        b'a'..=b'z' => Some(LegId::A),
        b'A'..=b'Z' => Some(LegId::B),
        _ => None,
    }
}

/// The values of one flow, and whose version of each the client was shown.
#[derive(Clone, Debug, Default)]
pub struct Canon {
    tokens: Vec<Token>,
    shown: Vec<Option<LegId>>,
}

impl Canon {
    /// A flow with these values, lowest first.
    pub fn new(tokens: Vec<Token>) -> Self {
        let shown = vec![None; tokens.len()];
        Self { tokens, shown }
    }

    /// Whether all streams count alike.
    pub fn is_even(&self) -> bool {
        !self.tokens.iter().any(Token::is_uneven)
    }

    /// By how much lengths may differ in all.
    pub fn slack(&self) -> u64 {
        self.tokens.iter().map(|t| t.room() - t.len[0].min(t.len[1])).sum()
    }

    /// Each value's length in a stream; `primary` says those that are still to be shown.
    fn lens(&self, side: Side, primary: LegId) -> impl Iterator<Item = (&Token, u64)> {
        self.tokens.iter().zip(&self.shown).map(move |(token, shown)| {
            let version = match side {
                Side::Leg(leg) => leg,
                Side::Shown => shown.unwrap_or(primary),
            };
            (token, token.len[version.index()])
        })
    }

    /// The common position of `at`.
    fn common(&self, side: Side, primary: LegId, at: u64) -> u64 {
        let mut filled = 0;
        for (token, len) in self.lens(side, primary) {
            let start = token.at - filled;
            if at <= start {
                break;
            }
            if at < start + len {
                return token.at + (at - start);
            }
            filled += token.room() - len;
        }
        at + filled
    }

    /// The position in one stream of the common one `at`.
    pub(super) fn own(&self, side: Side, primary: LegId, at: u64) -> u64 {
        let mut filled = 0;
        for (token, len) in self.lens(side, primary) {
            if at <= token.at {
                break;
            }
            if at < token.at + token.room() {
                return token.at - filled + (at - token.at).min(len);
            }
            filled += token.room() - len;
        }
        at - filled
    }

    /// `data` at `at` with every version filled up whose last byte is in it.
    fn filled(&self, side: Side, primary: LegId, at: u64, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(data.len());
        let (mut from, end, mut filled) = (at, at + data.len() as u64, 0);
        for (token, len) in self.lens(side, primary) {
            let stop = token.at - filled + len;
            if stop > end {
                break;
            }
            let fill = token.room() - len;
            if stop > from {
                out.extend_from_slice(&data[(from - at) as usize..(stop - at) as usize]);
                out.extend((0..fill).map(|_| FILL));
                from = stop;
            }
            filled += fill;
        }
        out.extend_from_slice(&data[(from - at) as usize..]);
        out
    }

    /// Bytes are about to be shown at `at`: they tell whose versions they are.
    fn learn(&mut self, primary: LegId, at: u64, data: &[u8]) {
        for i in 0..self.tokens.len() {
            if self.shown[i].is_some() {
                continue;
            }
            let start = self.own(Side::Shown, primary, self.tokens[i].at);
            let Some(offset) = start.checked_sub(at) else { continue };
            let Some(&byte) = data.get(offset as usize) else { break };
            self.shown[i] = is_of(byte);
        }
    }

    /// The value around `at`, a common position, if what stands for it in the shown stream is not
    /// `leg`'s own.
    fn around(&self, leg: LegId, at: u64) -> Option<&Token> {
        let is_around = |t: &Token| t.is_uneven() && t.at < at && at < t.at + t.room();
        let all = self.tokens.iter().zip(&self.shown);
        let mut others = all.filter(|(_, shown)| **shown != Some(leg));
        others.find(|(t, _)| is_around(t)).map(|(t, _)| t)
    }

    /// Whether a value of two lengths ends behind `from` and begins before `to`.
    pub fn is_uneven_between(&self, from: u64, to: u64) -> bool {
        let ends_behind = |t: &Token| t.at + t.room() > from;
        self.tokens.iter().any(|t| t.is_uneven() && ends_behind(t) && t.at < to)
    }

    /// The start of the value that `at`, a common position, lies inside of, if another one than
    /// `leg`'s was shown; else `at`.
    pub fn floor(&self, leg: LegId, at: u64) -> u64 {
        self.around(leg, at).map_or(at, |t| t.at)
    }

    /// The same, but for a position at the end of such a value too: whether it is the end only what
    /// follows would tell.
    pub fn floor_in_doubt(&self, leg: LegId, at: u64) -> u64 {
        let is_end = |t: &&Token| t.is_uneven() && t.at + t.room() == at;
        let all = self.tokens.iter().zip(&self.shown);
        let mut others = all.filter(|(_, shown)| **shown != Some(leg)).map(|(t, _)| t);
        others.find(is_end).map_or(self.floor(leg, at), |t| t.at)
    }

    /// The end of it.
    pub fn ceil(&self, leg: LegId, at: u64) -> u64 {
        self.around(leg, at).map_or(at, |t| t.at + t.room())
    }
}

impl FlowTrack {
    /// What `leg` said, in common numbers; `room` holds its bytes.
    pub(super) fn hear_leg<'a>(&self, id: LegId, seg: &Seg<'a>, room: &'a mut Vec<u8>) -> Seg<'a> {
        let leg = self.leg(id);
        self.said_by(Side::Leg(id), (leg.iss, leg.nxt), seg, room)
    }

    /// What is sent to `leg`, in common numbers.
    pub(super) fn tell_leg<'a>(&self, id: LegId, seg: &Seg<'a>) -> Seg<'a> {
        let leg = self.leg(id);
        self.heard_by(Side::Leg(id), (leg.iss, leg.nxt), seg)
    }

    /// What the client said, in common numbers.
    pub(super) fn hear_client<'a>(&self, seg: &Seg<'a>) -> Seg<'a> {
        self.heard_by(Side::Shown, (self.v_iss, self.c_una), seg)
    }

    /// What the client is shown, in common numbers; `room` holds its bytes.
    pub(super) fn tell_client<'a>(&mut self, seg: &Seg<'a>, room: &'a mut Vec<u8>) -> Seg<'a> {
        let near = self.released();
        if !self.canon.is_even()
            && !seg.has(SYN)
            && let Some(iss) = self.v_iss
            && let near_own = self.canon.own(Side::Shown, self.primary, near)
            && let Some(at) = rel(iss, seg.seq, near_own)
        {
            self.canon.learn(self.primary, at, seg.data);
        }
        self.said_by(Side::Shown, (self.v_iss, near), seg, room)
    }

    /// Whether the client has not acknowledged a value for which the backup has another length.
    pub fn has_token_under_way(&self) -> bool {
        self.canon.is_uneven_between(self.c_una, self.released())
    }

    /// Where the number `raw` of `leg` stands in common numbers.
    pub fn place(&self, id: LegId, raw: u32) -> Option<u64> {
        let leg = self.leg(id);
        let near = self.canon.own(Side::Leg(id), self.primary, leg.nxt);
        Some(self.common(Side::Leg(id), rel(leg.iss?, raw, near)?))
    }

    /// Whether the primary said that urgent bytes end at `end`: there, or inside of a value that
    /// ends there and was shown as the other server has it.
    pub(super) fn says_urgent(&self, end: u64) -> bool {
        let (id, said) = (self.primary, &self.leg(self.primary).urgent);
        said.iter().any(|&at| at == end || self.canon.ceil(id, at) == end)
    }

    /// The common position of `at`. A stream may end inside of a value: what is counted behind its
    /// end is no part of the value.
    fn common(&self, side: Side, at: u64) -> u64 {
        let fin = match side {
            Side::Leg(id) => self.leg(id).fin,
            Side::Shown => self.shown_fin,
        };
        let end = fin.map(|fin| (fin, self.canon.own(side, self.primary, fin)));
        match end.filter(|(_, own)| at > *own) {
            Some((fin, own)) => fin + (at - own),
            None => self.canon.common(side, self.primary, at),
        }
    }

    fn said_by<'a>(
        &self,
        side: Side,
        (iss, near): (Option<u32>, u64),
        seg: &Seg<'a>,
        room: &'a mut Vec<u8>,
    ) -> Seg<'a> {
        let mut seg = seg.clone();
        let canon = &self.canon;
        if canon.is_even() || seg.has(SYN) {
            return seg;
        }
        let near = canon.own(side, self.primary, near);
        let Some((iss, at)) = iss.and_then(|iss| Some((iss, rel(iss, seg.seq, near)?))) else {
            return seg;
        };
        let to = self.common(side, at);
        if seg.urgent > 0 {
            seg.urgent = (self.common(side, at + u64::from(seg.urgent)) - to) as u16;
        }
        *room = canon.filled(side, self.primary, at, seg.data);
        seg.data = room;
        seg.seq = iss.wrapping_add(to as u32);
        seg
    }

    fn heard_by<'a>(&self, side: Side, (iss, near): (Option<u32>, u64), seg: &Seg<'a>) -> Seg<'a> {
        let mut seg = seg.clone();
        let canon = &self.canon;
        let Some(iss) = iss.filter(|_| !canon.is_even() && !seg.has(SYN)) else { return seg };
        let near = canon.own(side, self.primary, near);
        let renumber = |raw: u32| {
            let at = rel(iss, raw, near)?;
            Some(iss.wrapping_add(self.common(side, at) as u32))
        };
        seg.ack = renumber(seg.ack).unwrap_or(seg.ack);
        for (left, right) in &mut seg.sack {
            *left = renumber(*left).unwrap_or(*left);
            *right = renumber(*right).unwrap_or(*right);
        }
        seg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [Token; 3] =
        [Token { at: 4, len: [3, 1] }, Token { at: 9, len: [1, 2] }, Token { at: 12, len: [2, 2] }];
    const A: Side = Side::Leg(LegId::A);
    const B: Side = Side::Leg(LegId::B);

    #[test]
    fn a_streams_positions_are_common_ones_and_back() {
        let canon = Canon::new(TOKENS.to_vec());
        for side in [A, B] {
            for at in 0..20 {
                let common = canon.common(side, LegId::A, at);
                assert_eq!(canon.own(side, LegId::A, common), at, "{side:?} {at}");
            }
        }
        // A: 123aaa78a...; B: 123B45..., its token ends where A's does.
        assert_eq!(canon.common(B, LegId::A, 5), 7);
        assert_eq!(canon.common(A, LegId::A, 10), 11);
        let floor = |at| canon.floor(LegId::A, at);
        assert_eq!([floor(4), floor(5), floor(7), canon.ceil(LegId::A, 5)], [4, 4, 7, 7]);
    }

    #[test]
    fn however_it_is_cut_a_stream_is_filled_up_alike() {
        let canon = Canon::new(TOKENS.to_vec());
        let said = [(A, &b"123aaa78a.bbz"[..]), (B, b"123A78BB.bbz")];
        let whole = [b"123aaa78a\0.bbz".to_vec(), b"123A\0\x0078BB.bbz".to_vec()];
        for ((side, data), whole) in said.into_iter().zip(whole) {
            for cut in 0..=data.len() {
                for first in 0..=cut {
                    let mut all = Vec::new();
                    for (from, to) in [(0, first), (first, cut), (cut, data.len())] {
                        let at = 1 + from as u64;
                        assert_eq!(canon.common(side, LegId::A, at), 1 + all.len() as u64);
                        all.extend(canon.filled(side, LegId::A, at, &data[from..to]));
                    }
                    assert_eq!(all, whole, "{side:?} {first} {cut}");
                }
            }
        }
    }

    #[test]
    fn the_shown_bytes_tell_whose_version_they_are() {
        let mut canon = Canon::new(TOKENS.to_vec());
        canon.learn(LegId::A, 1, b"123A");
        assert_eq!(canon.shown, [Some(LegId::B), None, None]);
        canon.learn(LegId::A, 5, b"78a.BB");
        assert_eq!(canon.shown, [Some(LegId::B), Some(LegId::A), Some(LegId::B)]);
    }
}
