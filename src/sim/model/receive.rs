//! The receiving half of a connection: reassembly, the window's edge, selective acknowledgments.
//!
//! Offsets count from the peer's SYN: that is 0, the first byte 1.

use super::habits::Habits;
use super::ranges::Ranges;

/// Blocks told at most; the segment takes fewer if it has timestamps.
const BLOCKS_MAX: usize = 4;
/// Bytes read that are kept before room is made.
const SLACK: usize = 32_768;

/// What a segment was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing in it.
    Nothing,
    /// The next bytes: an ack may wait.
    InOrder,
    /// Something that the sender has to hear of at once.
    Urgent,
}

/// The receiving half.
#[derive(Clone, Debug)]
pub struct Receive {
    /// The next offset expected.
    pub nxt: u64,
    /// Up to here the application has read.
    pub read: u64,
    /// The highest window edge told.
    pub edge: u64,
    /// Where the peer's FIN stands.
    pub fin: Option<u64>,
    capacity: u64,
    /// Windows count in units of two to the power of this.
    scale: u8,
    /// What was received from `base` on; holes hold anything.
    bytes: Vec<u8>,
    base: u64,
    ahead: Ranges,
    /// Blocks to tell, the latest first.
    blocks: Vec<(u64, u64)>,
    /// A repetition to tell (RFC 2883).
    repeated: Option<(u64, u64)>,
    /// The edge rests until then (ns), once.
    rests_until: Option<u64>,
    has_rested: bool,
}

impl Receive {
    /// Room for `capacity` bytes that nobody has read.
    pub fn new(capacity: usize) -> Self {
        Self {
            nxt: 0,
            read: 1,
            edge: 0,
            fin: None,
            capacity: capacity as u64,
            scale: 0,
            bytes: Vec::new(),
            base: 1,
            ahead: Ranges::default(),
            blocks: Vec::new(),
            repeated: None,
            rests_until: None,
            has_rested: false,
        }
    }

    /// The handshake is over: windows count in units of two to the power of `scale`.
    pub fn open(&mut self, scale: u8) {
        (self.nxt, self.scale) = (1, scale);
    }

    /// Bytes without a hole that nobody has read.
    pub fn readable(&self) -> &[u8] {
        let from = (self.read - self.base) as usize;
        &self.bytes[from..(self.data_end() - self.base) as usize]
    }

    /// The application has read `n` of them.
    pub fn consume(&mut self, n: usize) {
        self.read += n as u64;
        let gone = (self.read - self.base) as usize;
        if gone >= SLACK || gone == self.bytes.len() {
            self.bytes.drain(..gone);
            self.base = self.read;
        }
    }

    /// The peer has said everything, and all of it is here.
    pub fn is_ended(&self) -> bool {
        self.fin.is_some_and(|fin| self.nxt > fin)
    }

    /// The end of the bytes without a hole.
    fn data_end(&self) -> u64 {
        let end = if self.is_ended() { self.nxt - 1 } else { self.nxt };
        end.max(self.read)
    }

    /// Takes what fits below the edge.
    pub fn take(&mut self, mut from: u64, mut data: &[u8], has_fin: bool) -> Taken {
        let mut end = from + data.len() as u64;
        if data.is_empty() && !has_fin {
            return Taken::Nothing;
        }
        if end + u64::from(has_fin) <= self.nxt {
            self.repeated = Some((from, end)).filter(|r| r.0 < r.1);
            return Taken::Urgent;
        }
        if from < self.nxt {
            self.repeated = Some((from, self.nxt.min(end))).filter(|r| r.0 < r.1);
            data = &data[(self.nxt.min(end) - from) as usize..];
            from = self.nxt.min(end);
        } else if from < end && self.ahead.around(from, end).is_some() {
            self.repeated = Some((from, end));
        }
        if has_fin && self.fin.is_none() && end <= self.edge {
            self.fin = Some(end);
        }
        let is_cut = end > self.edge;
        if is_cut {
            end = self.edge.max(from);
            data = &data[..(end - from) as usize];
        }
        self.store(from, data);
        let had_hole = !self.ahead.is_empty();
        if from > self.nxt {
            if from < end {
                let block = self.ahead.insert(from, end);
                self.blocks.retain(|b| b.1 <= block.0 || block.1 <= b.0);
                self.blocks.insert(0, block);
                self.blocks.truncate(BLOCKS_MAX);
            }
            return Taken::Urgent;
        }
        self.nxt = end.max(self.nxt);
        if let Some((_, to)) = self.ahead.around(self.nxt, self.nxt) {
            self.nxt = to;
        } else if let Some((f, to)) = self.ahead.iter().next()
            && f <= self.nxt
        {
            self.nxt = self.nxt.max(to);
        }
        self.ahead.cut_below(self.nxt);
        self.blocks.retain(|b| b.1 > self.nxt);
        let is_end = self.fin == Some(self.nxt);
        self.nxt += u64::from(is_end);
        match had_hole || is_end || is_cut {
            true => Taken::Urgent,
            false => Taken::InOrder,
        }
    }

    fn store(&mut self, at: u64, data: &[u8]) {
        let from = (at - self.base) as usize;
        let end = from + data.len();
        if from == self.bytes.len() {
            return self.bytes.extend_from_slice(data);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[from..end].copy_from_slice(data);
    }

    /// Blocks for the next ack, a repetition first (RFC 2018, RFC 2883).
    pub fn blocks(&mut self) -> Vec<(u64, u64)> {
        let repeated = self.repeated.take();
        repeated.into_iter().chain(self.blocks.iter().copied()).take(BLOCKS_MAX).collect()
    }

    /// What the window could say.
    fn field_due(&self) -> u64 {
        ((self.read + self.capacity).saturating_sub(self.nxt) >> self.scale).min(0xffff)
    }

    /// Whether the edge may move, far enough to be worth it.
    fn may_move(&mut self, now: u64, habits: &Habits, mss: usize) -> bool {
        let due = self.nxt + (self.field_due() << self.scale);
        due >= self.edge + self.step(habits, mss) && self.rest(now, habits).is_none()
    }

    fn step(&self, habits: &Habits, mss: usize) -> u64 {
        let step = habits.window_step.unwrap_or(2 * mss);
        (step as u64).min(self.capacity / 2)
    }

    /// Whether the edge may move far enough that the peer should be told.
    pub fn wants_update(&mut self, now: u64, habits: &Habits, mss: usize) -> bool {
        !self.is_ended() && self.may_move(now, habits, mss)
    }

    /// Until when the edge rests (ns).
    pub fn rest(&mut self, now: u64, habits: &Habits) -> Option<u64> {
        if let (Some((bytes, ns)), false) = (habits.window_rest, self.has_rested)
            && self.nxt > bytes
        {
            (self.has_rested, self.rests_until) = (true, Some(now + ns));
        }
        self.rests_until.filter(|&until| now < until)
    }

    /// The window field, moving the edge if that is worth it (RFC 9293 3.8.6.2.2); with the scale's
    /// rounding it may fall back by less than one unit, no more.
    pub fn window(&mut self, now: u64, habits: &Habits, mss: usize) -> u16 {
        let field = match self.may_move(now, habits, mss) {
            true => self.field_due(),
            false => (self.edge.saturating_sub(self.nxt) >> self.scale).min(0xffff),
        };
        self.edge = self.edge.max(self.nxt + (field << self.scale));
        field as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(capacity: usize) -> Receive {
        let mut r = Receive::new(capacity);
        r.open(0);
        let habits = Habits { window_step: Some(1), ..Habits::default() };
        assert_eq!(usize::from(r.window(0, &habits, 1000)), capacity);
        r
    }

    #[test]
    fn holes_are_told_latest_first_and_repetitions_once() {
        let mut r = open(100);
        assert_eq!(r.take(11, b"bb", false), Taken::Urgent);
        assert_eq!(r.take(21, b"cc", false), Taken::Urgent);
        assert_eq!(r.blocks(), [(21, 23), (11, 13)]);
        assert_eq!(r.take(11, b"b", false), Taken::Urgent);
        assert_eq!(r.blocks(), [(11, 12), (11, 13), (21, 23)]);
        assert_eq!(r.blocks(), [(11, 13), (21, 23)]);
        assert_eq!(r.take(1, b"aaaaaaaaaa", false), Taken::Urgent);
        assert_eq!((r.nxt, r.readable()), (13, &b"aaaaaaaaaabb"[..]));
        assert_eq!(r.blocks(), [(21, 23)]);
    }

    #[test]
    fn an_end_counts_when_everything_below_it_is_here() {
        let mut r = open(100);
        r.take(3, b"", true);
        assert!(!r.is_ended());
        r.take(1, b"ab", false);
        assert!(r.is_ended());
        assert_eq!((r.nxt, r.readable()), (4, &b"ab"[..]));
        assert_eq!(r.take(1, b"ab", true), Taken::Urgent);
    }

    #[test]
    fn nothing_is_taken_beyond_the_edge() {
        let mut r = open(4);
        assert_eq!(r.take(1, b"abcdef", true), Taken::Urgent);
        assert_eq!((r.nxt, r.fin, r.readable()), (5, None, &b"abcd"[..]));
        r.consume(4);
        assert!(r.wants_update(0, &Habits::default(), 1000));
    }
}
