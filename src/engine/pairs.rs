//! Which value of one server stands for which value of the other.
//!
//! Two servers give a client two sessions, and it is shown the primary's. What it returns later is
//! the name of one session at one server; here stands what the other one calls it. Bounded: at
//! [`limits::PAIRS_MAX`] or [`limits::PAIRS_BYTES_MAX`] the pair that has waited longest for a
//! client to return it gives way, and only if there is none the one that was returned longest ago;
//! a crowd that never returns anything displaces nobody who does. Values are secrets: they leave
//! only towards the servers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::LegId;
use super::event::DropWhy;
use super::limits;
use super::pack::{Pack, Reader, Writer};
use super::time::Instant;

/// All pairs of a gateway.
#[derive(Debug, Default)]
pub struct Pairs {
    by_shown: BTreeMap<Arc<Key>, Pair>,
    /// Oldest first; those that no client has returned before all others.
    by_age: BTreeMap<Age, Arc<Key>>,
    next: u64,
    /// What they take.
    bytes: usize,
    /// In how many of them each server's own value is not the one that was shown.
    foreign: [usize; 2],
}

/// Whether a client has returned it, and when it was used last.
type Age = (bool, u64);

/// What a client was shown, and in whose place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    token: Arc<str>,
    shown: Bytes,
}

#[derive(Debug)]
struct Pair {
    values: [Bytes; 2],
    age: Age,
    used_at: Instant,
}

impl Pair {
    /// What it takes, with its key and its places in both orders.
    fn bytes(&self, key: &Key) -> usize {
        let [a, b] = &self.values;
        limits::PAIR_BYTES + key.shown.len() + a.len() + b.len()
    }
}

impl Pairs {
    /// Pairs that are remembered.
    pub fn len(&self) -> usize {
        self.by_shown.len()
    }

    /// What they take.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether `leg` may have to be told another value than a client says.
    pub fn is_foreign_to(&self, leg: LegId) -> bool {
        self.foreign[leg.index()] > 0
    }

    /// The servers have said `values` for `token`, and the client is shown that of `shown`. Returns
    /// how many pairs were forgotten for it, and why.
    pub fn note(
        &mut self,
        now: Instant,
        token: &Arc<str>,
        values: [&[u8]; 2],
        shown: LegId,
    ) -> Option<(DropWhy, u32)> {
        let key = Key { token: token.clone(), shown: copy(values[shown.index()]) };
        self.forget(&key);
        if values[0] == values[1] {
            return None; // what it stood for before, it stands for no more
        }
        let mut dropped = self.expire(now);
        let age = (false, self.next);
        self.next += 1;
        let (key, pair) = (Arc::new(key), Pair { values: values.map(copy), age, used_at: now });
        let displaced = self.make_room(pair.bytes(&key));
        if displaced > 0 {
            dropped = Some((DropWhy::Displaced, displaced));
        }
        self.count(&key, &pair, true);
        self.by_age.insert(age, key.clone());
        self.by_shown.insert(key, pair);
        dropped
    }

    /// A client returns `value`: what each server calls it, if that is known.
    pub fn returned(
        &mut self,
        now: Instant,
        token: &Arc<str>,
        value: &[u8],
    ) -> Option<&[Bytes; 2]> {
        let key = Key { token: token.clone(), shown: copy(value) };
        let is_old = |pair: &Pair| now.since(pair.used_at) >= limits::PAIR_KEPT;
        let pair = self.by_shown.get_mut(&key).filter(|pair| !is_old(pair))?;
        let key = self.by_age.remove(&pair.age)?;
        (pair.age, pair.used_at) = ((true, self.next), now);
        self.next += 1;
        self.by_age.insert(pair.age, key);
        Some(&pair.values)
    }

    /// Forgets what has to go for one that takes so much.
    fn make_room(&mut self, bytes: usize) -> u32 {
        let mut displaced = 0;
        while self.by_shown.len() >= limits::PAIRS_MAX
            || self.bytes + bytes > limits::PAIRS_BYTES_MAX
        {
            let Some(key) = self.by_age.values().next().cloned() else { break };
            self.forget(&key);
            displaced += 1;
        }
        displaced
    }

    /// Forgets pairs that were of no use for too long.
    fn expire(&mut self, now: Instant) -> Option<(DropWhy, u32)> {
        let before = self.by_shown.len();
        for is_returned in [false, true] {
            while let Some((_, key)) = self.by_age.range((is_returned, 0)..).next() {
                let key = key.clone();
                let used_at = self.by_shown.get(&key).map_or(now, |pair| pair.used_at);
                if now.since(used_at) < limits::PAIR_KEPT {
                    break;
                }
                self.forget(&key);
            }
        }
        let expired = (before - self.by_shown.len()) as u32;
        (expired > 0).then_some((DropWhy::Expired, expired))
    }

    /// `to` has become what the other server is: of the tokens for which `is_copied` holds it knows
    /// that one's values, and its own no more. What stands for nothing else now is forgotten: so
    /// many.
    pub fn copied(&mut self, to: LegId, is_copied: impl Fn(&str) -> bool) -> u32 {
        let before = self.len();
        let is_concerned = |(key, _): &(&Arc<Key>, &Pair)| is_copied(&key.token);
        let keys: Vec<_> =
            self.by_shown.iter().filter(is_concerned).map(|(k, _)| k.clone()).collect();
        for key in keys {
            let Some(mut pair) = self.by_shown.remove(&key) else { continue };
            self.count(&key, &pair, false);
            pair.values[to.index()] = pair.values[to.other().index()].clone();
            if pair.values.iter().all(|value| *value == key.shown) {
                self.by_age.remove(&pair.age);
                continue;
            }
            self.count(&key, &pair, true);
            self.by_shown.insert(key, pair);
        }
        (before - self.len()) as u32
    }

    fn forget(&mut self, key: &Key) {
        if let Some(pair) = self.by_shown.remove(key) {
            self.by_age.remove(&pair.age);
            self.count(key, &pair, false);
        }
    }

    fn count(&mut self, key: &Key, pair: &Pair, is_new: bool) {
        let bytes = pair.bytes(key);
        self.bytes = if is_new { self.bytes + bytes } else { self.bytes - bytes };
        for (value, foreign) in pair.values.iter().zip(&mut self.foreign) {
            if *value != key.shown {
                *foreign = if is_new { *foreign + 1 } else { *foreign - 1 };
            }
        }
    }
}

/// Of a whole engine only: oldest first.
impl Pack for Pairs {
    fn pack(&self, w: &mut Writer) {
        let Self { by_shown, by_age, next, bytes: _, foreign: _ } = self;
        (*next, by_age.len()).pack(w);
        for key in by_age.values() {
            let pair = &by_shown[key];
            w.string(key.token.as_bytes());
            for value in [&key.shown, &pair.values[0], &pair.values[1]] {
                w.string(value);
            }
            (pair.age, pair.used_at).pack(w);
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let (next, len): (u64, usize) = Pack::unpack(r);
        let mut pairs = Self { next, ..Self::default() };
        for _ in 0..len {
            if !r.is_good_so_far() {
                break;
            }
            let token = String::from_utf8_lossy(r.string()).into();
            let [shown, a, b] = [(); 3].map(|()| copy(r.string()));
            let (age, used_at) = Pack::unpack(r);
            let (key, pair) =
                (Arc::new(Key { token, shown }), Pair { values: [a, b], age, used_at });
            pairs.count(&key, &pair, true);
            pairs.by_age.insert(age, key.clone());
            pairs.by_shown.insert(key, pair);
        }
        pairs
    }
}

fn copy(value: &[u8]) -> Bytes {
    Bytes::copy_from_slice(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::time::Duration;
    use LegId::{A, B};

    fn token() -> Arc<str> {
        "set-cookie SID".into()
    }

    fn text(values: Option<&[Bytes; 2]>) -> Option<[&str; 2]> {
        values.map(|values| values.each_ref().map(|v| std::str::from_utf8(v).expect("text")))
    }

    #[test]
    fn what_a_client_was_shown_finds_what_each_server_said() {
        let (mut pairs, now, sid) = (Pairs::default(), Instant::from_millis(5), token());
        assert_eq!(pairs.returned(now, &sid, b"a1"), None);
        pairs.note(now, &sid, [b"a1", b"b1"], A);
        assert_eq!(text(pairs.returned(now, &sid, b"a1")), Some(["a1", "b1"]));
        assert_eq!(pairs.returned(now, &sid, b"b1"), None, "nobody was shown that");
        assert_eq!(pairs.returned(now, &"x".into(), b"a1"), None, "another token");
        assert_eq!([A, B].map(|leg| pairs.is_foreign_to(leg)), [false, true]);
        pairs.note(now, &sid, [b"a2", b"b2"], B);
        assert_eq!(text(pairs.returned(now, &sid, b"b2")), Some(["a2", "b2"]));
        assert_eq!([A, B].map(|leg| pairs.is_foreign_to(leg)), [true, true]);
        pairs.note(now, &sid, [b"a1", b"b9"], A);
        assert_eq!(text(pairs.returned(now, &sid, b"a1")), Some(["a1", "b9"]), "the latest");
        pairs.note(now, &sid, [b"a1", b"a1"], A);
        assert_eq!(pairs.returned(now, &sid, b"a1"), None, "both know it by that name now");
        pairs.copied(B, |_| true);
        assert_eq!(text(pairs.returned(now, &sid, b"b2")), Some(["a2", "a2"]));
        assert_eq!([A, B].map(|leg| pairs.is_foreign_to(leg)), [true, true]);
    }

    #[test]
    fn at_the_limit_what_was_never_returned_gives_way_first() {
        let (mut pairs, now, sid) = (Pairs::default(), Instant::from_millis(5), token());
        let name = |i: usize| format!("a{i}").into_bytes();
        for i in 0..limits::PAIRS_MAX {
            assert_eq!(pairs.note(now, &sid, [&name(i), b"b"], A), None);
        }
        assert!(pairs.returned(now, &sid, &name(0)).is_some());
        for i in 0..limits::PAIRS_MAX {
            let dropped = pairs.note(now, &sid, [&name(limits::PAIRS_MAX + i), b"b"], A);
            assert_eq!(dropped, Some((DropWhy::Displaced, 1)));
        }
        assert_eq!(pairs.len(), limits::PAIRS_MAX);
        assert!(pairs.returned(now, &sid, &name(0)).is_some());
        assert!(pairs.returned(now, &sid, &name(limits::PAIRS_MAX)).is_none());
        assert!(pairs.returned(now, &sid, &name(2 * limits::PAIRS_MAX - 1)).is_some());
    }

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let (mut pairs, now, sid) = (Pairs::default(), Instant::from_millis(5), token());
        for name in [&b"a1"[..], b"a2", b"a3"] {
            pairs.note(now, &sid, [name, b"b"], A);
        }
        let half = now + limits::PAIR_KEPT / 2;
        pairs.returned(half, &sid, b"a2");
        assert_eq!(pairs.note(half, &sid, [b"a4", b"b"], A), None);
        let whole = now + limits::PAIR_KEPT;
        assert_eq!(pairs.returned(whole, &sid, b"a1"), None);
        let dropped = pairs.note(whole, &sid, [b"a5", b"b"], A);
        assert_eq!((dropped, pairs.len()), (Some((DropWhy::Expired, 2)), 3));
        assert!(pairs.returned(whole, &sid, b"a2").is_some());
        assert_eq!(pairs.expire(whole + limits::PAIR_KEPT), Some((DropWhy::Expired, 3)));
        assert!(pairs.by_age.is_empty());
        assert_eq!([A, B].map(|leg| pairs.is_foreign_to(leg)), [false, false]);
    }

    proptest! {
        /// A list that is searched from its end.
        #[test]
        fn it_is_a_list_of_what_was_said_last(
            steps in prop::collection::vec((0u8..4, 0u8..4, 0u8..4, any::<bool>()), 0..40),
        ) {
            let (mut pairs, mut naive, sid) = (Pairs::default(), Vec::new(), token());
            let mut now = Instant::from_millis(5);
            for (what, a, b, is_a) in steps {
                now = now + Duration::from_millis(1);
                let shown = if is_a { A } else { B };
                let values = [[a], [b]];
                match what {
                    0 => {
                        let found = naive.iter().rev().find(|(s, _)| *s == [a]);
                        let found = found.map(|&(_, v): &([u8; 1], [[u8; 1]; 2])| v);
                        let found = found.filter(|v| v[0] != v[1] || v[0] != [a]);
                        let own = pairs.returned(now, &sid, &[a]).map(|v| [v[0][0], v[1][0]]);
                        let own = own.filter(|v| *v != [a, a]);
                        prop_assert_eq!(own, found.map(|v| [v[0][0], v[1][0]]));
                    }
                    1 if b == 0 => {
                        pairs.copied(shown, |_| true);
                        for (_, values) in &mut naive {
                            values[shown.index()] = values[shown.other().index()];
                        }
                    }
                    _ => {
                        pairs.note(now, &sid, [&values[0], &values[1]], shown);
                        naive.push((values[shown.index()], values));
                    }
                }
                for leg in LegId::ALL {
                    let is_foreign = (0..4).any(|shown| {
                        let last = naive.iter().rev().find(|(s, _)| *s == [shown]);
                        last.is_some_and(|(_, v)| v[leg.index()] != [shown])
                    });
                    prop_assert_eq!(pairs.is_foreign_to(leg), is_foreign);
                }
            }
        }
    }
}
