//! Which conversation of one capture is which of the other.
//!
//! Captures of the same clients at two servers have the same client addresses and ports. Where
//! those differ (before and after: another run, other ports), what the client says first tells,
//! and after it the order.

use std::collections::{BTreeMap, VecDeque};

use super::capture::{Capture, Unreadable};
use super::talks::{Side, Talk};
use super::walk::{Index, Listener, Moment, Spot, Walk};

/// Bytes of the client's first line that are looked at.
const OPENING_BYTES_MAX: u64 = 1024;

/// Conversations of two captures, side by side.
#[derive(Debug, Default)]
pub struct Pairs {
    /// A conversation of the first capture and one of the second.
    pub both: Vec<[usize; 2]>,
    /// Conversations in which something was said that one capture alone has.
    pub only: [Vec<usize>; 2],
}

/// Pairs the conversations for which `is_meant` holds.
pub(super) fn pair(
    captures: [&Capture; 2],
    indexes: [&Index; 2],
    is_meant: impl Fn(&Talk) -> bool,
) -> Result<Pairs, Unreadable> {
    let talks = indexes.map(|index| index.talks.list());
    let meant = talks.map(|talks| {
        let meant = |(id, talk): (usize, &Talk)| is_meant(talk).then_some(id);
        talks.iter().enumerate().filter_map(meant).collect()
    });
    let mut left = Left { talks, meant, both: Vec::new() };
    if left.are_the_same_clients() {
        left.pair_by(|_, talk| ends(talk));
        left.pair_by(|_, talk| talk.address(Side::Client));
    } else {
        let openings = [0, 1].map(|file| openings(captures[file], indexes[file]));
        let [a, b] = openings;
        let openings = [a?, b?];
        let opening = |file: usize, id: usize| openings[file][id];
        left.pair_by(|(file, id), talk| (ends(talk), opening(file, id)));
        left.pair_by(|(file, id), talk| (talk.address(Side::Client), opening(file, id)));
        left.pair_by(|(file, id), talk| (talk.address(Side::Client).ip(), opening(file, id)));
        left.pair_by(|(file, id), _| opening(file, id));
        left.pair_by(|_, talk| {
            (talk.address(Side::Client).ip(), talk.address(Side::Server).port())
        });
    }
    let talks = left.talks;
    let mut only = left.meant;
    for (file, only) in only.iter_mut().enumerate() {
        only.retain(|&id| !talks[file][id].is_empty());
    }
    left.both.sort_unstable();
    Ok(Pairs { both: left.both, only })
}

fn ends(talk: &Talk) -> [std::net::SocketAddr; 2] {
    Side::BOTH.map(|side| talk.address(side))
}

/// Conversations that have no partner yet.
struct Left<'i> {
    talks: [&'i [Talk]; 2],
    meant: [Vec<usize>; 2],
    both: Vec<[usize; 2]>,
}

impl Left<'_> {
    /// Whether each client address and port stands in both captures equally often.
    fn are_the_same_clients(&self) -> bool {
        let [a, b] = [0, 1].map(|file| {
            let client = |&id: &usize| self.talks[file][id].address(Side::Client);
            let mut clients: Vec<_> = self.meant[file].iter().map(client).collect();
            clients.sort_unstable();
            clients
        });
        a == b
    }

    /// Pairs what has an equal key, in order.
    fn pair_by<K: Ord>(&mut self, key: impl Fn((usize, usize), &Talk) -> K) {
        let mut waiting: BTreeMap<K, VecDeque<usize>> = BTreeMap::new();
        for &id in &self.meant[0] {
            waiting.entry(key((0, id), &self.talks[0][id])).or_default().push_back(id);
        }
        let mut left = Vec::new();
        for &id in &self.meant[1] {
            let partner = waiting.get_mut(&key((1, id), &self.talks[1][id]));
            match partner.and_then(VecDeque::pop_front) {
                Some(partner) => self.both.push([partner, id]),
                None => left.push(id),
            }
        }
        self.meant[1] = left;
        self.meant[0] = waiting.into_values().flatten().collect();
        self.meant[0].sort_unstable();
    }
}

/// A hash of each client's first line.
fn openings(capture: &Capture, index: &Index) -> Result<Vec<u64>, Unreadable> {
    let fresh = Opening { hash: 0xcbf2_9ce4_8422_2325, is_whole: false };
    let mut openings = Openings(vec![fresh; index.talks.list().len()]);
    let mut walk = Walk::begin(capture, Some(index))?;
    while walk.step(&mut openings) {}
    Ok(openings.0.into_iter().map(|opening| opening.hash).collect())
}

#[derive(Clone, Copy)]
struct Opening {
    hash: u64,
    is_whole: bool,
}

struct Openings(Vec<Opening>);

impl Listener for Openings {
    fn bytes(&mut self, spot: Spot, bytes: &[u8], _: Moment) {
        let Some(opening) = self.0.get_mut(spot.talk) else { return };
        if spot.side == Side::Server || opening.is_whole {
            return;
        }
        for (at, &byte) in (spot.at..).zip(bytes) {
            if matches!(byte, b'\r' | b'\n') || at == OPENING_BYTES_MAX {
                opening.is_whole = true;
                return;
            }
            opening.hash = (opening.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
