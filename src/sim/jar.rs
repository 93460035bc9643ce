//! Cookies that servers set and clients return: each server hears its own, and no other.
//!
//! The two versions of one differ in every byte, by its case: a value of server A has lower case,
//! one of B has upper case. What the gateway has to know of them the oracle finds by itself, from
//! what both servers said and the client was shown.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::canon::is_of;
use super::track::FlowTrack;
use crate::engine::LegId;

/// Whose version of each cookie the clients have, by the connection and the answer that set it.
pub type Jar = BTreeMap<(u16, u16), LegId>;

/// A client that breaks off within a value is waited for so long, at least (ns).
const BROKEN_OFF: u64 = 990_000_000;

/// The value of a cookie, as `server` writes it.
pub fn cookie(server: LegId, content: u32, len: u8) -> Vec<u8> {
    let first = match server {
        LegId::A => b'a',
        LegId::B => b'A',
    };
    let letter = |i: u8| (content >> (i % 16)).wrapping_add(u32::from(i)) % 26;
    (0..len).map(|i| first + letter(i) as u8).collect()
}

/// The same as the other server writes it.
pub fn others(byte: u8) -> u8 {
    byte ^ 0x20
}

/// Values that a client was shown while both servers were compared, and when first (ns).
#[derive(Debug, Default)]
pub struct Shown(BTreeMap<Vec<u8>, u64>);

impl Shown {
    /// The process that knew it ends.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Where cookies stand in one flow; the first byte of a stream is 1.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// In the answers, as all streams count alike.
    set: Vec<Range<u64>>,
    /// In the requests.
    returned: Vec<Range<u64>>,
    /// When the gateway heard the beginning of such a value, in order (ns).
    begun: BTreeMap<u64, u64>,
    /// Values of which a server is told what the client says, as the engine has it.
    kept: BTreeSet<(usize, u64)>,
    /// Whether a server heard its own version, and when it heard something of it first (ns).
    heard: BTreeMap<(usize, u64), (bool, u64)>,
}

impl Places {
    /// Cookies that stand there in the answers and in the requests, as offsets in each.
    pub fn new(
        set: impl Iterator<Item = Range<usize>>,
        returned: impl Iterator<Item = Range<usize>>,
    ) -> Self {
        let place = |at: Range<usize>| at.start as u64 + 1..at.end as u64 + 1;
        let (set, returned) = (set.map(place).collect(), returned.map(place).collect());
        Self { set, returned, ..Self::default() }
    }

    /// The engine says that it lets `leg` hear what the client says at `at`.
    pub fn keep(&mut self, leg: LegId, at: u64) {
        self.kept.insert((leg.index(), at));
    }
}

impl FlowTrack {
    /// The client has said something.
    pub(super) fn note_returned(&mut self, now: u64) {
        let heard = self.client.end_from(1);
        for span in self.cookies.returned.iter().filter(|span| span.start < heard) {
            self.cookies.begun.entry(span.start).or_insert(now);
        }
    }

    /// The client was shown something.
    pub(super) fn note_set(&self, now: u64, shown: &mut Shown) {
        if !self.is_paired() || self.was_restored {
            return;
        }
        for span in &self.cookies.set {
            let said = LegId::ALL.map(|id| &self.leg(id).said);
            let is_known = said.iter().all(|said| said.covers(span.start, span.end));
            if is_known && self.shown.covers(span.start, span.end) {
                shown.0.entry(self.shown.slice(span.start, span.end).to_vec()).or_insert(now);
            }
        }
    }

    /// I4: `data` at `at` is what the client said, with the cookies of `id`.
    pub(super) fn check_heard(
        &mut self,
        now: u64,
        id: LegId,
        at: u64,
        data: &[u8],
        shown: &Shown,
    ) -> Result<(), String> {
        let end = at + data.len() as u64;
        let wrong = format!("I4: {at}..{end} sent to {id:?} is not what the client said");
        if data.is_empty() {
            return Ok(());
        }
        if !self.client.covers(at, end) {
            return Err(wrong);
        }
        let mut expected = self.client.slice(at, end).to_vec();
        let cookies = &mut self.cookies;
        for span in cookies.returned.iter().filter(|s| s.start < end && s.end > at) {
            let (from, to) = (span.start.max(at), span.end.min(end));
            let here = (from - at) as usize..(to - at) as usize;
            let first = self.client.slice(from, from + 1)[0];
            if is_of(first).is_none_or(|of| of == id) {
                continue;
            }
            let is_own = is_of(data[here.start]) == Some(id);
            let is_whole = self.client.covers(span.start, span.end);
            let value = is_whole.then(|| self.client.slice(span.start, span.end));
            let key = (id.index(), span.start);
            let (was_own, since) = *cookies.heard.entry(key).or_insert((is_own, now));
            let is_known = value.and_then(|value| shown.0.get(value)).is_some_and(|k| *k <= since);
            if was_own != is_own {
                return Err(format!("1.12: {id:?} hears two versions of the cookie at {span:?}"));
            }
            let has_waited = cookies.begun.get(&span.start).is_some_and(|b| now - b >= BROKEN_OFF);
            let may_differ = self.was_restored || (cookies.kept.contains(&key) && has_waited);
            if !is_own && is_known && !may_differ {
                return Err(format!("1.12: {id:?} hears the other server's cookie at {span:?}"));
            }
            if is_own {
                for byte in &mut expected[here.clone()] {
                    *byte = others(*byte);
                }
            }
        }
        match expected == data {
            true => Ok(()),
            false => Err(wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_a_cookie_differ_in_every_byte() {
        for content in [0, 1, 77, u32::MAX] {
            let [a, b] = LegId::ALL.map(|id| cookie(id, content, 40));
            assert!(a.iter().zip(&b).all(|(a, b)| others(*a) == *b));
            assert!(a.iter().all(|&byte| is_of(byte) == Some(LegId::A)));
        }
        assert_ne!(cookie(LegId::A, 3, 8), cookie(LegId::A, 4, 8));
    }
}
