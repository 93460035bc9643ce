//! What the oracle knows of cookies: what a client was shown before any server was asked, and with
//! which segment it came back.

use std::collections::BTreeMap;

use super::frames::{ACK, Read, SYN, Seg, read};
use super::oracle::Tuple;
use super::track::FlowTrack;

/// Cookies remembered of one 4-tuple.
const GIVEN_MAX: usize = 8;

/// A SYN-ACK that no server has said.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// The client's number, and the one shown.
    pub iss: u32,
    /// See `iss`.
    pub v_iss: u32,
    /// What was shown.
    pub scale: Option<u8>,
    /// See `scale`.
    pub has_sack: bool,
    /// See `scale`.
    pub window: u16,
    /// See `scale`.
    pub stamp: Option<u32>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Cookies {
    given: BTreeMap<Tuple, Vec<Given>>,
    /// The latest segment of a client without a flow, and when.
    stray: BTreeMap<Tuple, (u64, Vec<u8>)>,
}

impl Cookies {
    /// A SYN-ACK to a client without a flow.
    pub fn note_shown(&mut self, seg: &Seg<'_>) {
        if !seg.has(SYN) || !seg.has(ACK) {
            return;
        }
        let given = self.given.entry(seg.dst).or_default();
        if given.len() == GIVEN_MAX {
            given.remove(0);
        }
        given.push(Given {
            iss: seg.ack.wrapping_sub(1),
            v_iss: seg.seq,
            scale: seg.scale,
            has_sack: seg.sack_ok,
            window: seg.window,
            stamp: seg.stamps.map(|(value, _)| value),
        });
    }

    /// A client without a flow says something.
    pub fn note_stray(&mut self, now: u64, from: Tuple, frame: &[u8]) {
        self.stray.insert(from, (now, frame.to_vec()));
    }

    /// The client of `tuple` came back: with what, when, and with which cookie of ours.
    pub fn taken(&self, tuple: &Tuple) -> Option<(u64, &[u8], Given)> {
        let (at, frame) = self.stray.get(tuple)?;
        let Read::Tcp(seg) = read(frame, true) else { return None };
        let is_it =
            |g: &&Given| g.v_iss == seg.ack.wrapping_sub(1) && g.iss == seg.seq.wrapping_sub(1);
        let given = self.given.get(tuple)?.iter().rev().find(is_it)?;
        Some((*at, frame, *given))
    }

    /// Who was given any.
    pub fn tuples(self) -> impl Iterator<Item = Tuple> {
        self.given.into_keys()
    }
}

impl FlowTrack {
    /// The client was shown this before the servers were asked.
    pub(super) fn keep(&mut self, given: &Given) {
        self.v_iss = Some(given.v_iss);
        self.v_scale = given.scale.unwrap_or(0);
        self.c_scale = self.c_scale.filter(|_| given.scale.is_some());
        self.has_sack = given.has_sack;
        self.shown.insert(0, &[0]);
        (self.told_ack, self.told_edge) = (1, 1 + u64::from(given.window));
        self.ts_last = given.stamp;
    }
}
