//! What one server says in a flow, and what it was told of that: the response half of its leg.
//!
//! Everything is kept in the server's own numbers, as facts that nothing changes afterwards. Seen
//! from outside all positions are visible ones, through the [`Alignment`]: when a token of other
//! length is found the map changes, and with it what is asked here, at once and everywhere. Behind
//! the end of the comparison a visible position is provisional: a token may still be found there.
//! RFC 9293, RFC 2018, RFC 2883.

use bytes::Bytes;

use super::alignment::{Alignment, Own, Round};
use super::limits;
use super::pack::fields;
use super::planted::{Bug, on};
use super::stream::Stream;
use super::told_blocks::ToldBlocks;
use crate::wire::{LegSpace, Offset, Segment, Seq, TcpFlags};

/// One server's part of the conversation.
#[derive(Clone, Debug)]
pub struct Voice {
    iss: Seq<LegSpace>,
    alignment: Alignment,
    /// What it said, from the release point on.
    stream: Stream,
    /// Highest byte it ever sent, a FIN included (NXT).
    nxt: Own,
    /// Where its FIN stands.
    fin: Option<Own>,
    /// End of the latest segment with PSH.
    psh_at: Own,
    /// End of the urgent bytes.
    urgent_at: Option<Own>,
    /// The ack it was told last.
    told_ack: Own,
    /// The window edge it was told.
    told_edge: Own,
    /// The window edge of the last segment that it was sent, if known. Below `told_edge` where an
    /// ack that moved on left less than a unit of the window's scale.
    room_to: Option<Own>,
    /// Blocks of its own bytes that it was told of last, while it alone misses some.
    told_islands: ToldBlocks,
    /// A duplicate range that was absorbed, to be reported once an ack covers it.
    duplicate: Option<(Own, Own)>,
}

/// What became of bytes that were heard.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// How far it had spoken before (visible).
    pub had: Offset,
    /// It has got further.
    pub has_progressed: bool,
    /// Something of it is new, and stands beyond a hole.
    pub shows_hole: bool,
    /// All of it was known.
    pub is_known: bool,
    /// Something of it was known.
    pub is_repetition: bool,
}

impl Default for Voice {
    fn default() -> Self {
        let syn = Own(Offset::SYN);
        Self {
            iss: Seq::new(0),
            alignment: Alignment::default(),
            stream: Stream::new(Offset::START),
            nxt: syn,
            fin: None,
            psh_at: syn,
            urgent_at: None,
            told_ack: syn,
            told_edge: syn,
            room_to: None,
            told_islands: ToldBlocks::default(),
            duplicate: None,
        }
    }
}

impl Voice {
    // ---- numbers ---------------------------------------------------------------------------

    /// It begins: `iss` is the number of its SYN.
    pub fn begin(&mut self, iss: u32) {
        (self.iss, self.nxt) = (Seq::new(iss), Own::START);
    }

    /// The same in the middle of the flow: the byte behind its SYN, which has the number `iss`,
    /// stands at `at`.
    pub fn begin_at(&mut self, iss: u32, at: Offset) {
        let behind = at.since(Offset::START) as u32;
        *self = Self {
            iss: Seq::new(iss.wrapping_sub(behind)),
            stream: Stream::new(at),
            nxt: Own(at),
            told_ack: Own(at.back(1)),
            told_edge: Own(at),
            ..Self::default()
        };
    }

    /// The number of its SYN if everything visible were as long as its own; with this alone the
    /// numbers from here on are found again, once the map is a constant.
    pub const fn effective_iss(&self) -> u32 {
        self.iss.raw().wrapping_sub(self.alignment.base() as u32)
    }

    /// Where its number `raw` stands.
    pub fn place(&self, raw: u32) -> Own {
        self.iss.offset(Seq::new(raw), self.nxt.0).into()
    }

    /// Its number for a position of its own.
    pub fn number(&self, at: Own) -> u32 {
        self.iss.at(at.0).raw()
    }

    /// Its number for a visible position; inside a token the token's first.
    pub fn seq_at(&self, at: Offset) -> u32 {
        self.number(self.own(at, Round::Down))
    }

    /// The own position of a visible one.
    pub fn own(&self, shown: Offset, round: Round) -> Own {
        self.alignment.own(shown, round)
    }

    /// The visible position of an own one.
    pub fn shown(&self, own: Own, round: Round) -> Offset {
        self.alignment.shown(own, round)
    }

    // ---- tokens ----------------------------------------------------------------------------

    /// Its value of `own_len` bytes at `at` stands for `shown_len` visible ones.
    pub fn splice(&mut self, at: Offset, own_len: u32, shown_len: u32) {
        self.alignment.splice(at, own_len, shown_len);
    }

    /// Whether no more tokens can be on their way.
    pub fn is_full(&self) -> bool {
        self.alignment.len() >= limits::SPLICES_MAX
    }

    /// Whether no token is on its way.
    pub fn is_constant(&self) -> bool {
        self.alignment.is_constant()
    }

    /// Whether no token lies beyond `at`.
    pub fn is_plain_from(&self, at: Offset) -> bool {
        self.alignment.plain_from() <= at
    }

    /// The client has everything up to `una`: tokens before it are settled. True if that left none.
    pub fn settle(&mut self, una: Offset) -> bool {
        self.alignment.prune(una) && self.alignment.is_constant()
    }

    /// From `end` on it speaks for itself: values that stood for others were not shown. Returns
    /// where `at`, a position behind them, stands now.
    pub fn rewind(&mut self, end: Offset, at: Offset) -> Offset {
        let own = self.own(at, Round::Up);
        self.alignment.rewind(end);
        self.shown(own, Round::Up)
    }

    /// The room that it was told ends beyond `edge`: its values were shorter than those shown.
    pub fn has_room_beyond(&self, edge: Offset) -> bool {
        let is_own = self.alignment.base() == 0 && self.is_constant();
        !is_own && self.edge_shown() > edge
    }

    // ---- what it said ----------------------------------------------------------------------

    /// Contiguous bytes heard from it (S).
    pub fn said(&self) -> Offset {
        self.shown(self.said_own(), Round::Up)
    }

    fn said_own(&self) -> Own {
        Own(self.stream.contiguous())
    }

    /// Highest byte it ever sent, a FIN included (NXT).
    pub fn nxt(&self) -> Offset {
        self.shown(self.nxt, Round::Up)
    }

    /// Where its FIN stands.
    pub fn fin(&self) -> Option<Offset> {
        self.fin.map(|fin| self.shown(fin, Round::Up))
    }

    /// Where its stream ends, once every byte before its FIN was heard.
    pub fn ended_at(&self) -> Option<Offset> {
        let fin = self.fin.filter(|&fin| self.said_own() >= fin)?;
        Some(if on(Bug::FinNotMapped) { fin.0 } else { self.shown(fin, Round::Up) })
    }

    /// The end of what was heard of it in order, a FIN included: what it may be acknowledged.
    pub fn heard_to(&self) -> Own {
        let fin = self.fin.filter(|&fin| self.said_own() >= fin);
        fin.map_or(self.said_own(), |fin| fin + 1).min(self.nxt)
    }

    /// Highest own position it ever sent, a FIN included.
    pub const fn nxt_own(&self) -> Own {
        self.nxt
    }

    /// Whether a segment with PSH ended at `at`.
    pub fn pushes_at(&self, at: Offset) -> bool {
        self.own(at, Round::Down) == self.psh_at
    }

    /// End of the urgent bytes.
    pub fn urgent_at(&self) -> Option<Offset> {
        self.urgent_at.map(|at| self.shown(at, Round::Up))
    }

    /// Whether a segment that ends at `end` lies where nothing of it can.
    pub fn is_out_of_reach(&self, end: Own) -> bool {
        end > self.told_edge + limits::BEYOND_EDGE_BYTES_MAX || end < Own::START
    }

    /// Whether an ack without data from `at` is of a connection that is not this one.
    pub fn is_stray(&self, at: Own) -> bool {
        at > self.nxt.max(self.told_edge) + limits::BEYOND_EDGE_BYTES_MAX
    }

    /// Whether a segment without data at `at` is a keep-alive or a probe of the window.
    pub fn is_probe(&self, at: Own) -> bool {
        at < self.nxt && at < self.told_ack
    }

    /// Whether bytes from `at` on lie beyond the window that it was told last.
    pub fn is_beyond_room(&self, at: Own) -> bool {
        self.room_to.is_some_and(|edge| at >= edge)
    }

    /// Whether its stream may end at `at`: what it was told, and what it has sent, in order.
    pub fn may_end_at(&self, at: Own) -> bool {
        at >= self.told_ack.min(self.said_own()) && at <= self.nxt.max(self.said_own() + 1)
    }

    /// It has sent everything up to `at`.
    pub fn note_sent(&mut self, at: Own) {
        self.nxt = self.nxt.max(at);
    }

    /// Its FIN stands at `at`.
    pub fn hear_fin(&mut self, at: Own) {
        self.fin = Some(at);
        self.note_sent(at + 1);
    }

    /// It said `body` at `at`, in the segment `seg`.
    pub fn hear(&mut self, seg: &Segment, at: Own, body: Bytes) -> Taken {
        let end = at + body.len() as u64;
        if seg.flags.has(TcpFlags::PSH) {
            self.psh_at = end;
        }
        if seg.flags.has(TcpFlags::URG) {
            self.urgent_at = Some(at + u64::from(seg.urgent));
        }
        self.note_sent(end);
        let (had, len) = (self.said_own(), body.len());
        let new = self.stream.insert(at.0, body);
        Taken {
            had: self.shown(had, Round::Up),
            has_progressed: self.said_own() > had,
            shows_hole: at > had && new > 0,
            is_known: end <= had && len > 0,
            is_repetition: new < len,
        }
    }

    /// The bytes at `at`, contiguous, without touching the reference count.
    pub fn slice_at(&self, at: Offset) -> &[u8] {
        self.stream.slice_at(self.own(at, Round::Down).0)
    }

    /// Like [`Self::slice_at`], shared.
    pub fn chunk_at(&self, at: Offset) -> Option<Bytes> {
        self.stream.chunk_at(self.own(at, Round::Down).0)
    }

    /// Where the bytes held at or after `at` begin.
    pub fn next_held(&self, at: Offset) -> Option<Offset> {
        let next = self.stream.next_held(self.own(at, Round::Down).0)?;
        Some(self.shown(Own(next), Round::Down))
    }

    /// Whether anything is held beyond the contiguous run.
    pub fn has_island(&self) -> bool {
        self.stream.has_island()
    }

    /// Bytes held.
    pub const fn held(&self) -> usize {
        self.stream.held()
    }

    /// Forgets everything below `floor`.
    pub fn trim(&mut self, floor: Offset) {
        self.stream.trim(self.own(floor, Round::Down).0);
    }

    /// Gives back the room of bytes that are gone.
    pub fn give_back(&mut self) {
        self.stream.give_back();
    }

    /// Forgets all bytes: it takes part no more.
    pub fn silence(&mut self) {
        self.stream.restart(Offset::START);
    }

    /// Holds `before` too, visible positions from `base` on, before what it holds.
    pub fn put_before(&mut self, base: Offset, before: Vec<(Offset, Bytes)>) {
        let own = |at| self.own(at, Round::Down).0;
        let mut stream = Stream::new(own(base));
        for (at, bytes) in before {
            stream.insert(own(at), bytes);
        }
        for (at, bytes) in self.stream.chunks() {
            stream.insert(at, bytes.clone());
        }
        self.stream = stream;
    }

    // ---- what it is told -------------------------------------------------------------------

    /// The ack it was told last.
    pub const fn told_ack(&self) -> Own {
        self.told_ack
    }

    /// The window edge it was told.
    pub const fn told_edge(&self) -> Own {
        self.told_edge
    }

    /// The visible window edge that it was told.
    pub fn edge_shown(&self) -> Offset {
        self.shown(self.told_edge, Round::Down)
    }

    /// Whether it was told of no room beyond what it said.
    pub fn has_no_room(&self) -> bool {
        self.room_to.is_some_and(|edge| edge <= self.said_own())
    }

    /// Whether it has not been told this ack, or this edge.
    pub fn is_news(&self, ack: Own, edge: Own) -> bool {
        ack > self.told_ack || edge > self.told_edge
    }

    /// It is told this ack and this edge; true if either is news.
    pub fn tell(&mut self, ack: Own, edge: Own) -> bool {
        let is_news = self.is_news(ack, edge);
        self.told_ack = self.told_ack.max(ack);
        self.told_edge = self.told_edge.max(edge);
        self.room_to = Some(edge);
        if self.duplicate.is_some_and(|(_, to)| to <= ack) {
            self.duplicate = None;
        }
        is_news
    }

    /// Blocks of its own bytes beyond a hole, in the order in which it is to hear them.
    pub fn tell_islands(&mut self) -> Vec<(Own, Own)> {
        let islands = self.stream.islands(limits::SACKED_RANGES_MAX);
        self.told_islands.tell(islands).iter().map(|&(f, t)| (Own(f), Own(t))).collect()
    }

    /// Notes an absorbed duplicate, to be reported as D-SACK (RFC 2883).
    pub fn note_duplicate(&mut self, from: Own, to: Own) {
        self.duplicate = match self.duplicate {
            Some((f, t)) if from <= t && f <= to => Some((f.min(from), t.max(to))),
            _ => Some((from, to)),
        };
    }

    /// The duplicate that an ack of `ack` reports.
    pub fn duplicate_below(&self, ack: Own) -> Option<(Own, Own)> {
        self.duplicate.filter(|&(_, to)| to <= ack)
    }

    // ---- after a restart of the gateway ----------------------------------------------------

    /// One of which only the number is known that [`Self::effective_iss`] gave.
    pub fn restored(iss: u32) -> Self {
        Self { iss: Seq::new(iss), ..Self::default() }
    }

    /// Nothing counts that it said before `at`, and nothing is known of the room that it was told.
    pub fn restart(&mut self, at: Offset) {
        let at = self.own(at, Round::Down).0;
        match at < self.stream.base() {
            true => self.stream.restart(at),
            false => self.stream.trim(at),
        }
        self.room_to = None;
    }

    /// The position of its number `raw` that is nearest to `near`.
    pub fn near(&self, raw: u32, near: Offset) -> Offset {
        let near = self.own(near, Round::Down);
        self.shown(self.iss.offset(Seq::new(raw), near.0).into(), Round::Down)
    }

    /// What it sent last stands at `at`.
    pub fn learn(&mut self, at: Offset) {
        self.nxt = self.own(at, Round::Down);
    }

    /// What it sent last has the number `raw`, and nothing is known that this could be near to.
    pub fn learn_first(&mut self, raw: u32) {
        self.nxt = Own(Offset::SYN + u64::from(raw.wrapping_sub(self.iss.raw())));
    }

    /// For [`super::planted::Bug::ContentSyncRewrites`].
    pub fn renumber(&mut self, iss: u32) {
        self.iss = Seq::new(iss);
    }
}

impl From<Offset> for Own {
    fn from(at: Offset) -> Self {
        Self(at)
    }
}

fields!(Voice {
    iss,
    alignment,
    stream,
    nxt,
    fin,
    psh_at,
    urgent_at,
    told_ack,
    told_edge,
    room_to,
    told_islands,
    duplicate,
});

#[cfg(test)]
mod tests {
    use super::*;

    /// A voice that said `said` from the beginning on, and nothing of it is gone.
    fn voice(said: &'static [u8]) -> Voice {
        let mut voice = Voice::restored(1000);
        voice.restart(Offset::START);
        voice.stream.insert(Offset::START, Bytes::from_static(said));
        voice
    }

    #[test]
    fn what_was_said_behind_the_place_of_a_restart_is_kept() {
        let mut voice = voice(b"shown, and not shown");
        voice.restart(Offset::START + 7);
        assert_eq!(voice.slice_at(Offset::START + 7), b"and not shown");
        assert_eq!(voice.slice_at(Offset::START), b"", "it counts no more");
    }

    #[test]
    fn before_what_was_heard_a_restart_begins_anew() {
        let mut voice = voice(b"all of it");
        voice.restart(Offset::START + 9);
        voice.restart(Offset::START + 4);
        assert_eq!(voice.said(), Offset::START + 4);
        assert_eq!(voice.slice_at(Offset::START + 4), b"");
    }
}
