//! What is in a capture: its conversations, and what was said in them as far as it was captured.

use super::capture::{Capture, Unreadable};
use super::talks::{Side, Talk};
use super::voices::End;
use super::walk::{Facts, Index, Listener, Moment, Spot, Walk};

/// A capture's contents.
#[derive(Debug)]
pub struct Survey {
    /// What is known of the whole.
    pub facts: Facts,
    /// The conversations, in the order of their first packets.
    pub talks: Vec<(Talk, [Heard; 2])>,
    /// Bytes of the (unpacked) file.
    pub file_bytes: u64,
}

/// What was heard of one side of a conversation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    /// Bytes in order.
    pub bytes: u64,
    /// Bytes that were said and not captured.
    pub missing: u64,
    /// How its stream ended; none if it never said anything.
    pub end: Option<End>,
}

impl Survey {
    /// Reads a capture twice: for its conversations, and for what was said in them.
    pub fn of(capture: &Capture) -> Result<Self, Unreadable> {
        let index = Index::of(capture)?;
        let mut hearer = Hearer(vec![Default::default(); index.talks.list().len()]);
        let mut walk = Walk::begin(capture, Some(&index))?;
        while walk.step(&mut hearer) {}
        let file_bytes = walk.at();
        let talks = index.talks.list().iter().cloned().zip(hearer.0);
        let talks = talks.filter(|(talk, _)| talk.is_certain).collect();
        Ok(Self { talks, facts: index.facts, file_bytes })
    }

    /// Bytes of all conversations: in order, repeated, missing.
    pub fn totals(&self) -> (u64, u64, u64) {
        let mut totals = (0, 0, 0);
        for (talk, heard) in &self.talks {
            for side in Side::BOTH {
                let heard = &heard[side.index()];
                totals.0 += heard.bytes;
                totals.1 += talk.sender(side).payload_bytes.saturating_sub(heard.bytes);
                totals.2 += heard.missing;
            }
        }
        totals
    }
}

struct Hearer(Vec<[Heard; 2]>);

impl Hearer {
    fn of(&mut self, spot: Spot) -> &mut Heard {
        &mut self.0[spot.talk][spot.side.index()]
    }
}

impl Listener for Hearer {
    fn bytes(&mut self, spot: Spot, bytes: &[u8], _: Moment) {
        self.of(spot).bytes += bytes.len() as u64;
    }
    fn missing(&mut self, spot: Spot, len: u64) {
        self.of(spot).missing += len;
    }
    fn over(&mut self, spot: Spot, how: End, _: Moment) {
        self.of(spot).end = Some(how);
    }
}
