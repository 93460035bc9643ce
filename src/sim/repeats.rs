//! What is shown again: once for what both servers repeat.

use std::collections::VecDeque;

use super::track::FlowTrack;

/// The gateway remembers so many repetitions of a flow.
const REPEATS_KEPT: usize = 32;
/// A range is not shown again within this time when the other server repeats it (ns).
const REPEAT_QUIET: u64 = 10_000_000;

impl FlowTrack {
    /// 1.3: what one server repeats is not shown again because the other one repeats it, too.
    pub(super) fn check_again(&mut self, now: u64, at: u64, data: &[u8]) -> Result<(), String> {
        let end = at + data.len() as u64;
        if data.is_empty() || !self.shown.covers(at, end) {
            return Ok(());
        }
        note_again(&mut self.again, now, at, end);
        // Pieces may be cut at other places each time: what counts is how often each byte came.
        let lately = |all: &VecDeque<(u64, u64, u64)>, byte: u64| {
            all.iter()
                .filter(|&&(time, f, t)| now - time < REPEAT_QUIET && f <= byte && byte < t)
                .count()
        };
        if self.again.len() > REPEATS_KEPT {
            return Ok(());
        }
        let begins = self.again.iter().map(|&(_, from, _)| from.max(at)).filter(|&from| from < end);
        for byte in begins {
            let shown = lately(&self.again, byte);
            let most = self.legs.iter().map(|l| lately(&l.again, byte)).max().unwrap_or(0);
            if shown > most.max(1) && !self.was_restored {
                let times = format!("{shown} times, said again {most}");
                return Err(format!("1.3: {byte} of {at}..{end} shown again {times}"));
            }
        }
        Ok(())
    }
}

/// Notes a repetition of `[from, to)`.
pub(super) fn note_again(all: &mut VecDeque<(u64, u64, u64)>, now: u64, from: u64, to: u64) {
    while all.front().is_some_and(|&(at, ..)| now - at >= REPEAT_QUIET) {
        all.pop_front();
    }
    all.push_back((now, from, to));
}
