//! Cookies that servers set and clients return: each server hears its own, and no other.
//!
//! The two versions of one differ in every byte, and in length as the plan has it: a value of
//! server A has lower case, one of B has upper case. What the gateway has to know the oracle finds
//! by itself, from what both servers said and the client was shown. All positions are the
//! client's but where the name says otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::canon::is_of;
use super::frames::Seg;
use super::rng::mix;
use super::scenario::Returned;
use super::script::Script;
use super::track::{FlowTrack, rel};
use crate::engine::LegId;

/// Whose version of each cookie the clients have, by the connection and the answer that set it.
pub type Jar = BTreeMap<(u16, u16), LegId>;

/// A client that breaks off within a value is waited for so long, at least (ns).
const BROKEN_OFF: u64 = 990_000_000;

/// The value of a cookie, as `server` writes it. What one server writes for it tells what the other
/// one does, as with names of sessions: so values of two lengths are no short ones.
pub fn cookie(server: LegId, content: u32, len_of: (u8, u8)) -> Vec<u8> {
    let (first, len) = match server {
        LegId::A => (b'a', len_of.0),
        LegId::B => (b'A', len_of.1),
    };
    let [a, b] = [len_of.0, len_of.1].map(u64::from);
    let names = mix(content.into(), a << 8 | b);
    let letter = |i: u8| mix(names, i.into()) % 26;
    (0..len).map(|i| first + letter(i) as u8).collect()
}

/// Where a server stands in what a client says: of each cookie it hears its own version or the
/// client's (in which case, the oracle of the wire judges).
#[derive(Clone, Debug, Default)]
pub struct Hearing {
    /// So many of the client's bytes it has, cookies whole.
    pub at: usize,
    /// What is left of the cookie that it hears.
    rest: Vec<u8>,
    /// Where the client's ends.
    next: usize,
}

impl Hearing {
    /// `leg` hears more; the client's place at which it is wrong.
    pub fn hear(&mut self, leg: LegId, script: &Script, mut bytes: &[u8]) -> Result<(), usize> {
        while let Some(&first) = bytes.first() {
            if !self.rest.is_empty() {
                let n = self.rest.len().min(bytes.len());
                if self.rest[..n] != bytes[..n] {
                    return Err(self.at);
                }
                self.rest.drain(..n);
                bytes = &bytes[n..];
                self.at = if self.rest.is_empty() { self.next } else { self.at };
                continue;
            }
            let cookie = script.returned().iter().find(|(place, _)| place.start >= self.at);
            let plain = cookie.map_or(usize::MAX, |(place, _)| place.start - self.at);
            if plain > 0 {
                let n = plain.min(bytes.len());
                if let Some(at) = script.differs(self.at, &bytes[..n]) {
                    return Err(at);
                }
                (self.at, bytes) = (self.at + n, &bytes[n..]);
            } else if let Some((place, returned)) = cookie {
                let theirs =
                    (place.clone().map_while(|at| script.at(at).first().copied())).collect();
                let own = cookie_of(leg, *returned);
                let is_own = is_of(first) == Some(leg);
                (self.rest, self.next) = (if is_own { own } else { theirs }, place.end);
            }
        }
        Ok(())
    }
}

fn cookie_of(leg: LegId, returned: Returned) -> Vec<u8> {
    cookie(leg, returned.content, returned.len)
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
    /// The connection: another one may have its ends later.
    conn: u16,
    /// In the answers, as all streams count alike.
    set: Vec<Range<u64>>,
    /// In the requests, and each server's version.
    returned: Vec<(Range<u64>, [Vec<u8>; 2])>,
    /// When the gateway heard the beginning of such a value, in order (ns).
    begun: BTreeMap<u64, u64>,
    /// Values of which a server is told what the client says, as the engine has it.
    kept: BTreeSet<(usize, u64)>,
    /// Values for which a server is told its own, as the engine has it.
    replaced: BTreeSet<(usize, u64)>,
    /// Whether a server heard its own version, and when it heard something of it first (ns).
    heard: BTreeMap<(usize, u64), (bool, u64)>,
}

/// A value in the requests, as one server hears it.
struct Heard<'a> {
    place: &'a Range<u64>,
    /// Where it stands for the server, and how long it is there.
    own: u64,
    own_len: u64,
    /// The server's version; nothing if it hears the client's, or has not heard it.
    value: Option<&'a [u8]>,
}

impl Places {
    /// Cookies that stand there in the answers of connection `conn`, as offsets.
    pub fn new(conn: u16, set: impl Iterator<Item = Range<usize>>) -> Self {
        Self { conn, set: set.map(place).collect(), ..Self::default() }
    }

    /// The client of connection `conn` has asked: what it returns stands there.
    pub fn ask(&mut self, conn: u16, script: &Script) {
        if conn != self.conn {
            return;
        }
        let versions = |r: Returned| LegId::ALL.map(|leg| cookie_of(leg, r));
        let all = script.returned().iter().map(|(at, r)| (place(at.clone()), versions(*r)));
        self.returned = all.collect();
    }

    /// The engine says that it lets `leg` hear what the client says at `at`.
    pub fn keep(&mut self, leg: LegId, at: u64) {
        self.kept.insert((leg.index(), at));
    }

    /// The engine says that it lets `leg` hear its own version of what the client says at `at`.
    fn replace(&mut self, leg: LegId, at: u64) {
        self.replaced.insert((leg.index(), at));
    }

    /// `leg` hears the connection from another place on: all before that counts as the client says.
    pub fn begin(&mut self, leg: LegId) {
        let is_others = |key: &(usize, u64)| key.0 != leg.index();
        self.kept.retain(is_others);
        self.replaced.retain(is_others);
        self.heard.retain(|key, _| is_others(key));
    }

    /// The process that knew what was to be heard ends.
    pub fn forget(&mut self) {
        self.replaced.clear();
    }

    fn heard_by(&self, leg: LegId) -> impl Iterator<Item = Heard<'_>> {
        let mut shift = 0i64;
        self.returned.iter().map(move |(place, versions)| {
            let key = (leg.index(), place.start);
            let is_to_hear = self.replaced.contains(&key);
            let is_own = self.heard.get(&key).map_or(is_to_hear, |(is_own, _)| *is_own);
            let value = is_own.then(|| &versions[leg.index()][..]);
            let len = place.end - place.start;
            let own_len = value.map_or(len, |value| value.len() as u64);
            let own = place.start.wrapping_add_signed(shift);
            shift += own_len as i64 - len as i64;
            Heard { place, own, own_len, value }
        })
    }

    /// The client's position for `own` of `leg`; inside of a value of its own that one's start, or
    /// its end.
    fn client_at(&self, leg: LegId, own: u64, is_up: bool) -> u64 {
        let mut shift = 0i64;
        for heard in self.heard_by(leg) {
            if own <= heard.own {
                break;
            }
            let end = heard.own + heard.own_len;
            if own < end && heard.value.is_some() {
                return if is_up { heard.place.end } else { heard.place.start };
            }
            if own >= end {
                shift = heard.place.end as i64 - end as i64;
            }
        }
        own.saturating_add_signed(shift)
    }

    /// The other way; inside of a value of its own it is that one's start.
    fn own_at(&self, leg: LegId, at: u64) -> u64 {
        let mut shift = 0i64;
        for heard in self.heard_by(leg) {
            if at <= heard.place.start {
                break;
            }
            if at < heard.place.end && heard.value.is_some() {
                return heard.own;
            }
            if at >= heard.place.end {
                shift = (heard.own + heard.own_len) as i64 - heard.place.end as i64;
            }
        }
        at.saturating_add_signed(shift)
    }

    /// Where the number `raw`, which `leg` says of the client's bytes or hears with them, stands
    /// for it, close to the client's `near`.
    pub fn own_place(&self, leg: LegId, iss: u32, raw: u32, near: u64) -> Option<u64> {
        rel(iss, raw, self.own_at(leg, near))
    }

    /// The client's position of that place plus `ahead`.
    pub fn place(&self, leg: LegId, own: u64, ahead: u64, is_up: bool) -> u64 {
        self.client_at(leg, own + ahead, is_up)
    }
}

fn place(at: Range<usize>) -> Range<u64> {
    at.start as u64 + 1..at.end as u64 + 1
}

impl FlowTrack {
    /// The client has said something.
    pub(super) fn note_returned(&mut self, now: u64) {
        let heard = self.client.end_from(1);
        for (place, _) in self.cookies.returned.iter().filter(|(place, _)| place.start < heard) {
            self.cookies.begun.entry(place.start).or_insert(now);
        }
    }

    /// The engine says that `id` will hear its own version of what the client says at `at`: its
    /// room ends where its own numbers say.
    pub(super) fn note_replaced(&mut self, id: LegId, at: u64) {
        let edge = self.cookies.own_at(id, self.leg(id).edge);
        self.cookies.replace(id, at);
        let edge = self.cookies.client_at(id, edge, false);
        let leg = &mut self.legs[id.index()];
        leg.edge = leg.edge.min(edge);
    }

    /// The client was shown something.
    pub(super) fn note_set(&self, now: u64, shown: &mut Shown) {
        if !self.is_paired() || self.was_restored {
            return;
        }
        for span in &self.cookies.set {
            let said = LegId::ALL.map(|id| &self.leg(id).said);
            let is_known = said.iter().all(|said| said.covers(span.start, span.end))
                && self.second.has_said(span.start);
            if is_known && self.shown.covers(span.start, span.end) {
                // Without what fills up the shorter one.
                let value = |bytes: &[u8]| bytes.iter().copied().filter(|&b| b != 0).collect();
                let known = value(self.shown.slice(span.start, span.end));
                shown.0.entry(known).or_insert(now);
            }
        }
    }

    /// I4: what `id` is sent is what the client said, with the cookies of `id`. Where it stands for
    /// the client, and where its urgent bytes end; nothing if that cannot be said.
    pub(super) fn check_heard(
        &mut self,
        now: u64,
        id: LegId,
        seg: &Seg<'_>,
        shown: &Shown,
    ) -> Result<Option<(u64, u64, u16)>, String> {
        let Some(own) = self.cookies.own_place(id, self.iss, seg.seq, self.c_nxt) else {
            return Ok(None);
        };
        // Another process does not know what was said; what was acknowledged is not heard again.
        let taken = self.cookies.own_at(id, self.leg(id).acked).saturating_sub(own);
        let is_deaf_to = if self.was_restored { taken.min(seg.data.len() as u64) } else { 0 };
        self.check_bytes(now, id, own + is_deaf_to, &seg.data[is_deaf_to as usize..], shown)?;
        let place = |ahead: u64, is_up| self.cookies.place(id, own, ahead, is_up);
        let (at, end) = (place(0, false), place(seg.data.len() as u64, true));
        Ok(Some((at, end, (place(seg.urgent.into(), true) - at) as u16)))
    }

    fn check_bytes(
        &mut self,
        now: u64,
        id: LegId,
        mut own: u64,
        mut data: &[u8],
        shown: &Shown,
    ) -> Result<(), String> {
        while !data.is_empty() {
            let next = self.cookies.heard_by(id).find(|h| own < h.own + h.own_len);
            let inside = next.as_ref().filter(|h| h.own <= own);
            if let Some(heard) = inside {
                let (start, is_new) = (heard.place.start, heard.own == own);
                if is_new {
                    self.begin_cookie(now, id, start, data[0], shown)?;
                }
            }
            let next = self.cookies.heard_by(id).find(|h| own < h.own + h.own_len);
            let client = self.cookies.client_at(id, own, false);
            let (n, is_same) = match next {
                Some(Heard { own: at, own_len, value: Some(value), .. }) if at <= own => {
                    let n = (at + own_len - own).min(data.len() as u64) as usize;
                    (n, value[(own - at) as usize..][..n] == data[..n])
                }
                next => {
                    let to = match next {
                        Some(h) if h.own > own => h.own - own,
                        Some(h) => h.own + h.own_len - own,
                        None => u64::MAX,
                    };
                    let n = to.min(data.len() as u64);
                    let is_said = self.client.covers(client, client + n);
                    (
                        n as usize,
                        is_said && self.client.slice(client, client + n) == &data[..n as usize],
                    )
                }
            };
            if !is_same {
                return Err(format!("I4: {client} sent to {id:?} is not what the client said"));
            }
            (own, data) = (own + n as u64, &data[n..]);
        }
        Ok(())
    }

    /// A cookie that begins with `first` is sent to `id`.
    fn begin_cookie(
        &mut self,
        now: u64,
        id: LegId,
        start: u64,
        first: u8,
        shown: &Shown,
    ) -> Result<(), String> {
        let cookies = &mut self.cookies;
        let Some((place, _)) = cookies.returned.iter().find(|(place, _)| place.start == start)
        else {
            return Ok(());
        };
        if !self.client.covers(start, start + 1) {
            return Err(format!("I4: {start} sent to {id:?}, the client has not said it"));
        }
        let theirs = is_of(self.client.slice(start, start + 1)[0]);
        if theirs.is_none_or(|of| of == id) {
            return Ok(());
        }
        let is_own = is_of(first) == Some(id);
        let is_whole = self.client.covers(place.start, place.end);
        if is_own && !is_whole {
            return Err(format!("1.12: {id:?} hears a cookie at {start} that is not whole"));
        }
        let key = (id.index(), start);
        let (was_own, since) = *cookies.heard.entry(key).or_insert((is_own, now));
        let value = is_whole.then(|| self.client.slice(place.start, place.end));
        let is_known = value.and_then(|value| shown.0.get(value)).is_some_and(|at| *at <= since);
        if !is_own && cookies.replaced.contains(&key) {
            return Err(format!(
                "1.12: {id:?} hears the client's cookie at {start}, as was not told"
            ));
        }
        if was_own != is_own {
            return Err(format!("1.12: {id:?} hears two versions of the cookie at {start}"));
        }
        let has_waited = cookies.begun.get(&start).is_some_and(|b| now - b >= BROKEN_OFF);
        let may_differ = self.was_restored || (cookies.kept.contains(&key) && has_waited);
        match !is_own && is_known && !may_differ {
            true => Err(format!("1.12: {id:?} hears the other server's cookie at {start}")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_of_a_cookie_differ_in_every_byte() {
        for content in [0, 1, 77, u32::MAX] {
            let [a, b] = LegId::ALL.map(|id| cookie(id, content, (40, 40)));
            assert!(a.iter().zip(&b).all(|(a, b)| a ^ 0x20 == *b));
            assert!(a.iter().all(|&byte| is_of(byte) == Some(LegId::A)));
        }
        // Two sessions with one name would be one.
        let all: BTreeSet<_> = (0..20_000).map(|n| cookie(LegId::A, n, (8, 200))).collect();
        assert_eq!(all.len(), 20_000);
        assert_eq!(cookie(LegId::B, 3, (8, 2)).len(), 2);
    }

    #[test]
    fn positions_of_one_server_are_the_clients_and_back() {
        let returned = vec![
            (4..7, [b"abc".to_vec(), b"D".to_vec()]),
            (9..10, [b"e".to_vec(), b"FGHI".to_vec()]),
        ];
        let mut places = Places { returned, ..Places::default() };
        for at in 1..14 {
            assert_eq!(places.client_at(LegId::B, at, false), at, "nothing was heard");
        }
        places.heard = [((1, 4), (true, 0)), ((1, 9), (true, 0))].into();
        let own = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let down = own.map(|own| places.client_at(LegId::B, own, false));
        assert_eq!(down, [1, 2, 3, 4, 7, 8, 9, 9, 9, 9, 10, 11]);
        let up = own.map(|own| places.client_at(LegId::B, own, true));
        assert_eq!(up, [1, 2, 3, 4, 7, 8, 9, 10, 10, 10, 10, 11]);
        for at in [1, 4, 7, 8, 9, 10, 12] {
            assert_eq!(places.client_at(LegId::B, places.own_at(LegId::B, at), false), at);
        }
    }
}
