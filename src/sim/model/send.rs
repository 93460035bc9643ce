//! The sending half of a connection: what was said, what of it was heard, what goes next.
//!
//! Loss recovery is RFC 6675 with selective acknowledgments and RFC 6582 (NewReno) without. What
//! counts as lost is `[resend, lost_to)` less what was heard out of order; segments have no
//! identity, so that a repetition may be cut anywhere. Offsets count from the own SYN: that is 0,
//! the first byte 1, the FIN the one behind the last byte.

use super::congestion::Congestion;
use super::habits::Habits;
use super::ranges::Ranges;

/// Acknowledged bytes that are kept before room is made.
const SLACK: usize = 32_768;
/// Duplicate acks that mean a loss.
const DUPLICATES: u32 = 3;

/// The sending half.
#[derive(Clone, Debug)]
pub struct Send {
    /// The lowest offset not acknowledged.
    pub una: u64,
    /// The lowest offset never sent.
    pub nxt: u64,
    /// Where the peer's window ends.
    pub edge: u64,
    /// Where the FIN stands, once the application has closed.
    pub fin: Option<u64>,
    /// Largest payload.
    pub mss: usize,
    /// How much may be on its way.
    pub congestion: Congestion,
    capacity: usize,
    bytes: Vec<u8>,
    base: u64,
    sacked: Ranges,
    resend: u64,
    lost_to: u64,
    /// Recovery ends when this is acknowledged.
    recover: Option<u64>,
    is_timeout: bool,
    /// A byte was sent beyond the edge.
    is_beyond: bool,
    duplicates: u32,
    /// One segment whose round trip is measured, and when it left.
    timed: Option<(u64, u64)>,
    /// Where the latest window came from: sequence number and ack, as offsets.
    window_from: (u64, u64),
}

/// What goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First offset.
    pub from: u64,
    /// Behind the last, FIN included.
    pub to: u64,
}

/// What an ack did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Something new was acknowledged.
    pub has_advanced: bool,
    /// The window has moved.
    pub has_opened: bool,
}

/// An ack as it was heard.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// The offset of the segment that carried it, in the peer's stream.
    pub seq: u64,
    /// The ack.
    pub ack: u64,
    /// Where the window ends that came with it.
    pub window: u64,
    /// Blocks heard out of order.
    pub sack: &'a [(u64, u64)],
    /// Neither data, SYN nor FIN came with it.
    pub is_bare: bool,
    /// Round trip by the timestamps (ns).
    pub rtt: Option<u64>,
}

impl Send {
    /// Room for `capacity` bytes that were not acknowledged.
    pub fn new(capacity: usize, habits: &Habits) -> Self {
        Self {
            una: 0,
            nxt: 0,
            edge: 0,
            fin: None,
            mss: 536,
            congestion: Congestion::new(0, habits.rto_min),
            capacity,
            bytes: Vec::new(),
            base: 1,
            sacked: Ranges::default(),
            resend: 0,
            lost_to: 0,
            recover: None,
            is_timeout: false,
            is_beyond: false,
            duplicates: 0,
            timed: None,
            window_from: (0, 0),
        }
    }

    /// The handshake is over.
    pub fn open(&mut self, mss: usize, window: u64, from_seq: u64, habits: &Habits) {
        self.mss = mss;
        (self.una, self.nxt) = (1, self.nxt.max(1));
        (self.resend, self.lost_to) = (1, 1);
        self.edge = 1 + window;
        self.window_from = (from_seq, 1);
        self.congestion = Congestion::new(habits.first_flight * mss, habits.rto_min);
    }

    /// Takes as much of `data` as there is room for.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let held = (self.end() - self.una.max(1)) as usize;
        let n = data.len().min(self.capacity.saturating_sub(held));
        self.bytes.extend_from_slice(&data[..n]);
        n
    }

    /// Whether there is room.
    pub fn has_room(&self) -> bool {
        ((self.end() - self.una.max(1)) as usize) < self.capacity
    }

    /// Nothing follows.
    pub fn close(&mut self) {
        let end = self.end();
        self.fin.get_or_insert(end);
    }

    /// Behind the last byte.
    pub fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// Behind everything, FIN included.
    fn limit(&self) -> u64 {
        self.end() + u64::from(self.fin.is_some())
    }

    /// The bytes of a piece, and whether the FIN is in it.
    pub fn bytes(&self, piece: Piece) -> (&[u8], bool) {
        let to = piece.to.min(self.end());
        let range = (piece.from - self.base) as usize..(to - self.base) as usize;
        (&self.bytes[range], piece.to > self.end())
    }

    /// Whether something was sent and not acknowledged.
    pub fn is_waiting(&self) -> bool {
        self.una < self.nxt
    }

    /// Whether losses are being repaired.
    pub fn is_recovering(&self) -> bool {
        self.recover.is_some()
    }

    /// Whether something has not been sent, and nothing that is on its way will open the window.
    pub fn is_shut(&self) -> bool {
        !self.is_waiting() && self.nxt < self.limit() && self.edge <= self.nxt
    }

    /// The FIN was acknowledged.
    pub fn is_closed(&self) -> bool {
        self.fin.is_some_and(|fin| self.una > fin)
    }

    /// Bytes thought to be on their way.
    fn flight(&self) -> u64 {
        let sacked = self.sacked.bytes_in(self.una, self.nxt);
        let (from, to) = (self.resend.max(self.una), self.lost_to);
        let lost = to.saturating_sub(from) - self.sacked.bytes_in(from, to.max(from));
        (self.nxt - self.una).saturating_sub(sacked + lost)
    }

    // ---- hearing ---------------------------------------------------------------------------

    /// An ack that is not beyond what was sent.
    pub fn on_ack(&mut self, now: u64, heard: Heard<'_>) -> Acked {
        let mut acked = Acked::default();
        let had = self.edge;
        self.hear_window(heard);
        acked.has_opened = self.edge > had;
        let grown = self.hear_blocks(heard.sack);
        if self.is_beyond && (acked.has_opened || heard.ack > self.una) {
            // The byte that asked may have been refused: it goes again with the rest.
            self.is_beyond = false;
            (self.resend, self.lost_to) = (self.una, self.nxt);
            self.congestion.backoff = 0;
        }
        if heard.ack > self.una {
            acked.has_advanced = true;
            self.advance(now, heard);
        } else if heard.ack == self.una && heard.is_bare && self.is_waiting() {
            let is_repeated = self.edge == had && (heard.sack.is_empty() || grown);
            self.duplicates += u32::from(is_repeated);
        }
        self.find_losses();
        acked
    }

    fn hear_window(&mut self, heard: Heard<'_>) {
        let (seq, ack) = self.window_from;
        let is_wider = heard.window > self.edge;
        let is_newer = heard.ack > ack || heard.seq > seq || (heard.seq == seq && is_wider);
        if heard.ack >= ack && is_newer {
            self.edge = heard.window;
            self.window_from = (seq.max(heard.seq), heard.ack);
        }
    }

    fn hear_blocks(&mut self, sack: &[(u64, u64)]) -> bool {
        let had = self.sacked.bytes_in(self.una, self.nxt);
        for &(from, to) in sack {
            if from < to && from > self.una && to <= self.nxt {
                self.sacked.insert(from, to);
            }
        }
        self.sacked.bytes_in(self.una, self.nxt) > had
    }

    fn advance(&mut self, now: u64, heard: Heard<'_>) {
        let bytes = (heard.ack - self.una) as usize;
        self.una = heard.ack;
        self.duplicates = 0;
        let timed = self.timed.filter(|&(offset, _)| heard.ack > offset);
        let rtt = heard.rtt.or(timed.map(|(_, at)| now - at));
        if let Some(rtt) = rtt {
            self.congestion.on_rtt(rtt);
        }
        if timed.is_some() {
            self.timed = None;
        }
        self.sacked.cut_below(self.una);
        self.resend = self.resend.max(self.una);
        match self.recover {
            Some(recover) if self.una < recover => {
                self.congestion.backoff = 0;
                if self.is_timeout {
                    self.congestion.on_ack(bytes, self.mss);
                } else if self.sacked.is_empty() {
                    // A partial ack tells of the next hole (RFC 6582).
                    (self.resend, self.lost_to) = (self.una, self.una + self.mss as u64);
                }
            }
            _ => {
                (self.recover, self.is_timeout) = (None, false);
                self.congestion.on_ack(bytes, self.mss);
            }
        }
        let gone = (self.una.min(self.end()) - self.base) as usize;
        if gone >= SLACK || gone == self.bytes.len() {
            self.bytes.drain(..gone);
            self.base += gone as u64;
        }
    }

    /// Three segments heard above a byte, or three duplicate acks, mean that it is lost.
    fn find_losses(&mut self) {
        if !self.is_waiting() {
            return;
        }
        let above = u64::from(DUPLICATES - 1) * self.mss as u64;
        let mut heard = 0;
        let by_blocks = self.sacked.iter().rev().find_map(|(from, to)| {
            heard += to - from;
            (heard > above).then_some(from)
        });
        let by_count = (self.duplicates >= DUPLICATES).then(|| {
            let first = self.sacked.iter().next().map(|(from, _)| from);
            first.unwrap_or(self.una + self.mss as u64).min(self.nxt)
        });
        let Some(lost_to) = by_blocks.max(by_count).filter(|&to| to > self.una) else { return };
        if self.recover.is_none() {
            self.recover = Some(self.nxt);
            self.congestion.on_loss((self.nxt - self.una) as usize, self.mss);
            (self.resend, self.lost_to) = (self.una, lost_to);
            self.timed = None;
        } else if by_blocks.is_some() {
            self.lost_to = self.lost_to.max(lost_to);
        }
    }

    /// Segments are at most `mss` from now on: what is on its way was too large.
    pub fn narrow(&mut self, mss: usize) {
        if mss < self.mss {
            self.mss = mss;
            (self.resend, self.lost_to) = (self.una, self.nxt);
            self.timed = None;
        }
    }

    /// Nothing was heard for a timeout: everything on its way counts as lost.
    pub fn on_timeout(&mut self) {
        self.congestion.on_timeout((self.nxt - self.una) as usize, self.mss);
        if self.congestion.backoff > 1 {
            self.sacked.clear(); // the peer may have dropped what it had (RFC 2018 8)
        }
        (self.resend, self.lost_to) = (self.una, self.nxt);
        (self.recover, self.is_timeout) = (Some(self.nxt), true);
        (self.duplicates, self.timed) = (0, None);
    }

    // ---- saying ----------------------------------------------------------------------------

    /// The next piece of at most `size` bytes; it counts as sent. `super_size` is what one frame
    /// may carry of new bytes.
    pub fn next(
        &mut self,
        now: u64,
        size: usize,
        super_size: usize,
        habits: &Habits,
    ) -> Option<Piece> {
        if let Some(piece) = self.next_lost(size as u64) {
            return Some(piece);
        }
        let room = (self.congestion.window as u64).saturating_sub(self.flight());
        let is_first = !self.is_waiting();
        let mut to = self.limit().min(self.nxt + super_size as u64).min(self.edge);
        if habits.has_lone_fin && self.nxt < self.end() {
            to = to.min(self.end());
        }
        let len = to.saturating_sub(self.nxt);
        if len == 0 {
            return None;
        }
        // Whole segments by what the network bears; one in any case.
        let len = match len > room {
            true if room >= size as u64 => room - room % size as u64,
            true if is_first => len.min(size as u64),
            true => return None,
            false => len,
        };
        let is_last = self.nxt + len >= self.end();
        if len < size as u64 && !is_first {
            // A small one waits for acks: by Nagle's rule, or because the window is small
            // (RFC 9293 3.8.6.2.1).
            let is_end = is_last && self.fin.is_some();
            if !is_end && (habits.nagle || !is_last) {
                return None;
            }
        }
        let whole = len - len % size as u64;
        let len = if whole > 0 && super_size > size && habits.nagle { whole } else { len };
        let piece = Piece { from: self.nxt, to: self.nxt + len };
        self.nxt = piece.to;
        self.timed.get_or_insert((piece.from, now));
        Some(piece)
    }

    fn next_lost(&mut self, size: u64) -> Option<Piece> {
        let (from, to) =
            self.sacked.first_gap(self.resend.max(self.una), self.lost_to.min(self.nxt))?;
        let to = to.min(from + size);
        let is_first = from == self.una;
        if !is_first && self.flight() + (to - from) > self.congestion.window as u64 {
            return None;
        }
        self.resend = to;
        self.timed = None;
        Some(Piece { from, to })
    }

    /// The end of what is on its way, once more.
    pub fn tail(&mut self, size: usize) -> Option<Piece> {
        self.timed = None;
        let from = self.una.max(self.nxt.saturating_sub(size as u64));
        Some(Piece { from, to: self.nxt }).filter(|p| p.from < p.to)
    }

    /// One byte beyond a closed window, if there is one and the stack does that.
    pub fn beyond_edge(&mut self, habits: &Habits) -> Option<Piece> {
        let piece = Piece { from: self.nxt, to: self.nxt + 1 };
        (habits.probes_with_byte && self.nxt < self.end()).then(|| {
            (self.nxt, self.is_beyond) = (piece.to, true);
            piece
        })
    }
}
