//! One body that the servers cut into chunks differently: its data is compared, its framing is not.
//!
//! While both framings are in step nothing of this is asked. Where chunk lines differ the streams
//! *part*: each server's next chunk line is a token, together with one byte of data where the other
//! server has no line, so that neither version is empty. Between tokens both are inside of a chunk
//! and their data is compared. Where both have said a chunk to its end they are in step again.
//!
//! The client is shown the primary's framing. If the other server takes over, that is gone on with:
//! the survivor's own chunk lines are left out until what was promised is shown, and one is made
//! where its own framing is joined. What a survivor can not keep ends in an exact reset.
//! RFC 9112 7.1.

use super::{Cx, Flow};
use crate::engine::LegId;
use crate::engine::alignment::{Own, Round};
use crate::engine::event::{Event, FlowState};
use crate::engine::pack::fields;
use crate::protocol::Field;
use crate::protocol::chunks::{self, Line};
use crate::protocol::framing::Framing;
use crate::wire::Offset;

/// How the framings stand to one another where they are not in step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    /// What is left of the chunk of the server whose framing is not shown; none while both are in a
    /// chunk line that they have begun alike.
    pub(super) other_left: Option<u64>,
}

fields!(Chunks { other_left });

/// What a server says next.
#[derive(Debug)]
enum Next {
    /// Less than is needed.
    Open,
    /// A byte of data.
    Data(u8),
    /// A chunk line and, where the other server has none, the first byte of data behind it.
    Line(Vec<u8>, Framing, Option<u8>),
    /// Nothing that can be followed.
    Bad,
}

impl Next {
    const fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// The body ends here.
    fn is_end(&self) -> bool {
        matches!(self, Self::Line(_, framing, _) if framing.chunk_left() == 0)
    }
}

/// What `get` gives from `at` on, for a server that stands in a chunk's data if `line` is none.
fn next_of<'a>(
    line: Option<Framing>,
    at: Offset,
    with_data: bool,
    get: impl Fn(Offset) -> &'a [u8],
) -> Next {
    let Some(framing) = line else {
        return get(at).first().map_or(Next::Open, |&byte| Next::Data(byte));
    };
    let mut place = at;
    let mut rest: &[u8] = &[];
    let bytes = std::iter::from_fn(|| {
        if rest.is_empty() {
            rest = get(place);
        }
        let (&byte, left) = rest.split_first()?;
        (rest, place) = (left, place + 1);
        Some(byte)
    });
    match chunks::line(framing, bytes) {
        Line::Open => Next::Open,
        Line::Bad => Next::Bad,
        Line::Whole(text, framing) => {
            let needs_data = with_data && framing.chunk_left() > 0;
            let data = get(at + text.len() as u64).first().copied().filter(|_| needs_data);
            match needs_data && data.is_none() {
                true => Next::Open,
                false => Next::Line(text, framing, data),
            }
        }
    }
}

impl Flow {
    /// The bytes of an answer differ at `agreed`. Whether that is where two framings part.
    pub(super) fn begin_chunks(&mut self) -> bool {
        let at_line = self.comparison.framing().is_some_and(Framing::is_in_chunk_line);
        if at_line {
            self.comparison.chunks = Some(Chunks { other_left: None });
        }
        at_line
    }

    /// What both servers say next, while their framings are not in step: the one that is shown
    /// first. Whoever died has said no more than what was shown.
    fn next_in_chunks(&self) -> Option<[Next; 2]> {
        let (chunks, framing) = (self.comparison.chunks?, self.comparison.framing()?);
        let at = self.comparison.agreed();
        let lines = match chunks.other_left {
            None => [Some(framing.clone()), Some(framing.clone())],
            Some(other) => {
                [framing.chunk_left(), other].map(|left| (left == 0).then(Framing::behind_chunk))
            }
        };
        let with_data = lines.iter().any(Option::is_none);
        let [ours, theirs] = lines;
        let backup = self.backup();
        Some([
            next_of(ours, at, with_data, |at| self.shown_or_said(at)),
            next_of(theirs, at, with_data, |at| self.leg(backup).voice.slice_at(at)),
        ])
    }

    fn shown_or_said(&self, at: Offset) -> &[u8] {
        match self.is_orphaned() && at >= self.visible.released {
            true => &[],
            false => self.reference_at(at),
        }
    }

    /// One step of the comparison while the framings are not in step.
    pub(super) fn compare_chunks(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some([ours, theirs]) = self.next_in_chunks() else { return false };
        let at = self.comparison.agreed();
        match (ours, theirs) {
            (Next::Bad, _) | (_, Next::Bad) => self.differ_in_framing(cx, Field::ChunkSize),
            (Next::Open, theirs) if self.is_orphaned() && at < self.visible.released => {
                self.complete_shown(cx, theirs)
            }
            (Next::Open, _) | (_, Next::Open) => false,
            (Next::Data(_), Next::Data(_)) => self.compare_data(cx),
            (ours, theirs) if ours.is_end() != theirs.is_end() => {
                self.differ_in_framing(cx, Field::Body)
            }
            (Next::Data(byte), Next::Line(_, _, Some(data)))
            | (Next::Line(_, _, Some(data)), Next::Data(byte))
                if byte != data =>
            {
                self.differ_in_framing(cx, Field::Body)
            }
            (Next::Data(byte), Next::Line(line, theirs, _)) => {
                let Some(ours) = self.comparison.framing().cloned() else { return false };
                let left = theirs.chunk_left() - 1;
                self.pass_token(cx, vec![byte], line.len() + 1, ours, (1, left))
            }
            (Next::Line(mut line, ours, _), Next::Data(byte)) => {
                let left = self.comparison.chunks.and_then(|chunks| chunks.other_left);
                line.push(byte);
                self.pass_token(cx, line, 1, ours, (1, left.unwrap_or(1) - 1))
            }
            (Next::Line(line, ours, _), Next::Line(other, theirs, _)) => {
                self.pass_token(cx, line, other.len(), ours, (0, theirs.chunk_left()))
            }
        }
    }

    /// Both are inside of a chunk.
    fn compare_data(&mut self, cx: &mut Cx<'_>) -> bool {
        let at = self.comparison.agreed();
        let left = self.data_left();
        let ours = self.shown_or_said(at);
        let theirs = self.leg(self.backup()).voice.slice_at(at);
        let both = ours.len().min(theirs.len()).min(left);
        let (ours, theirs) = (&ours[..both], &theirs[..both]);
        let same = match ours == theirs {
            true => both,
            false => ours.iter().zip(theirs).take_while(|(a, b)| a == b).count(),
        };
        if same == 0 {
            return self.differ_in_framing(cx, Field::Body);
        }
        self.pass_data(cx, same);
        true
    }

    /// How many bytes of data neither framing interrupts.
    fn data_left(&self) -> usize {
        let shown = self.comparison.framing().map_or(0, Framing::chunk_left);
        let other = self.comparison.chunks.and_then(|chunks| chunks.other_left);
        usize::try_from(shown.min(other.unwrap_or(0))).unwrap_or(usize::MAX)
    }

    /// So many bytes of data are behind both.
    fn pass_data(&mut self, cx: &mut Cx<'_>, len: usize) {
        let Some(mut framing) = self.comparison.framing().cloned() else { return };
        framing.skip_body(len);
        let other = self.comparison.chunks.and_then(|chunks| chunks.other_left);
        let at = self.comparison.agreed() + len as u64;
        self.stand_at(cx, at, framing, other.unwrap_or(0) - len as u64);
    }

    /// The comparison stands at `at`, the shown framing at `framing`, and of the other server's
    /// chunk so much is left.
    fn stand_at(&mut self, cx: &mut Cx<'_>, at: Offset, framing: Framing, other_left: u64) {
        let was_parted = self.comparison.is_parted();
        let is_in_step = framing.chunk_left() == other_left;
        self.comparison.move_to(at);
        self.comparison.set_framing(framing, (!is_in_step).then_some(other_left));
        if is_in_step && self.state == FlowState::Solo {
            self.comparison.speaks_alone(self.follows_alone(cx));
        }
        if was_parted == is_in_step {
            self.persist(cx); // before anything is shown that only this process can go on with
        }
    }

    /// The backup's token of `len` bytes stands for `text`, at whose end the shown framing stands
    /// at `ours` but for `data` bytes, and `left` bytes are left of the backup's chunk. `false` if
    /// the client has to acknowledge others first.
    fn pass_token(
        &mut self,
        cx: &mut Cx<'_>,
        text: Vec<u8>,
        len: usize,
        mut ours: Framing,
        (data, left): (usize, u64),
    ) -> bool {
        let (at, backup) = (self.comparison.agreed(), self.backup());
        let shown_len = text.len();
        if self.has_values_to_show() {
            // What waits to be shown is known by its text, and a value has none.
            self.release_agreed(cx);
            if self.has_values_to_show() {
                return false;
            }
        }
        if len != shown_len && !self.splice(cx, backup, at, len, shown_len) {
            return false;
        }
        let end = at + shown_len as u64;
        if end > self.visible.released {
            self.visible.instead.push_line(at, text.into());
        }
        self.visible.differs_until = end;
        let (flow, rule) = (self.key, chunks::rule_name());
        cx.event(Event::MaskHit { flow, rule, at, len: shown_len as u32 });
        ours.skip_body(data);
        self.stand_at(cx, end, ours, left);
        true
    }

    /// Whether a value that stands for one of the backup's was not shown yet.
    fn has_values_to_show(&self) -> bool {
        let released = self.visible.released;
        let is_plain = self.leg(self.backup()).voice.is_plain_from(released);
        !is_plain && self.visible.instead.is_empty()
    }

    /// The primary died in a chunk line that the client was shown a part of: it is completed so
    /// that what the survivor says next fits.
    fn complete_shown(&mut self, cx: &mut Cx<'_>, theirs: Next) -> bool {
        let at = self.comparison.agreed();
        let chunks = self.comparison.chunks;
        let (Some(chunks), Some(framing)) = (chunks, self.comparison.framing()) else {
            return false;
        };
        let mut framing = match chunks.other_left {
            None => framing.clone(),
            Some(_) => Framing::behind_chunk(),
        };
        let (mut text, mut place) = (Vec::new(), at);
        while let [byte, ..] = *self.shown_or_said(place) {
            framing.push(byte);
            text.push(byte);
            place = place + 1;
        }
        let (own_len, left, byte) = match theirs {
            Next::Data(byte) => (1, chunks.other_left.unwrap_or(0), Some(byte)),
            Next::Line(line, framing, _) => (line.len(), framing.chunk_left(), None),
            Next::Open | Next::Bad => return false,
        };
        let Some((rest, framing)) = chunks::completed(&framing, left) else {
            return self.differ_in_framing(cx, Field::Body);
        };
        text.extend_from_slice(&rest);
        text.extend(byte);
        let data = usize::from(byte.is_some());
        self.pass_token(cx, text, own_len, framing, (data, left - data as u64))
    }

    /// What differs is no framing, or none that can be followed.
    fn differ_in_framing(&mut self, cx: &mut Cx<'_>, field: Field) -> bool {
        let at = self.comparison.agreed();
        let first = |bytes: &[u8]| bytes.first().copied().unwrap_or_default();
        let ours = first(self.shown_or_said(at));
        let theirs = first(self.leg(self.backup()).voice.slice_at(at));
        self.on_difference(cx, self.kind(ours, theirs), Some(field));
        false
    }

    // ---- who is late -----------------------------------------------------------------------

    /// Which servers say less than the comparison needs; `None` while the framings are in step.
    fn open_in_chunks(&self) -> Option<[bool; 2]> {
        self.comparison.chunks.filter(|_| !self.comparison.is_reframed)?;
        let [ours, theirs] = self.next_in_chunks()?;
        let mut open = [ours.is_open(), theirs.is_open()];
        if self.primary == LegId::B {
            open.reverse();
        }
        Some(open)
    }

    /// Whether `id` alone keeps the comparison from going on; `None` while the framings are in
    /// step.
    pub(super) fn says_less_of_chunks(&self, id: LegId) -> Option<bool> {
        let open = self.open_in_chunks()?;
        Some(open[id.index()] && !open[id.other().index()])
    }

    /// Whoever has ended inside of a body, where the framings are not in step.
    pub(super) fn ends_in_chunks(&self) -> Option<LegId> {
        let open = self.open_in_chunks()?;
        let ends = |id: LegId| open[id.index()] && self.leg(id).voice.ended_at().is_some();
        match LegId::ALL.map(ends) {
            [true, true] => Some(self.backup()),
            [true, false] => Some(LegId::A),
            [false, true] => Some(LegId::B),
            [false, false] => None,
        }
    }

    /// The ack for the backup, as [`Flow::ack_in_span`] has it: nothing of a token that is not
    /// settled, unless it waits for the ack of a part that it has said.
    pub(super) fn ack_in_chunks(&self, una: Own, heard: Own) -> Option<Own> {
        let [ours, theirs] = self.next_in_chunks()?;
        let at = self.comparison.agreed();
        let start = self.leg(self.backup()).voice.own(at, Round::Down);
        Some(match (ours, theirs) {
            (Next::Line(line, _, data), Next::Open)
                if self.client.una >= at + (line.len() + usize::from(data.is_some())) as u64 =>
            {
                heard
            }
            (_, Next::Open) => una.min(heard),
            _ => una.min(start),
        })
    }

    // ---- after the death of the server whose framing is shown ---------------------------------

    /// One step in the survivor's bytes: its data goes into the framing that is shown.
    pub(super) fn reframe(&mut self, cx: &mut Cx<'_>) -> bool {
        let Some(framing) = self.comparison.framing().cloned() else { return false };
        let Some(own_left) = self.comparison.chunks.and_then(|chunks| chunks.other_left) else {
            return false;
        };
        let (at, id) = (self.comparison.agreed(), self.primary);
        let said = self.leg(id).voice.slice_at(at);
        let data = self.data_left().min(said.len());
        if data > 0 {
            self.pass_data(cx, data);
            return true;
        }
        let shown_left = framing.chunk_left();
        let line = (own_left == 0).then(Framing::behind_chunk);
        let next = next_of(line, at, true, |at| self.leg(id).voice.slice_at(at));
        let is_promised = shown_left > 0;
        let step = match next {
            Next::Open if !self.has_ended() => return false,
            Next::Line(line, own, Some(byte)) if is_promised => {
                let left = own.chunk_left();
                Some((line.len() + 1, vec![byte], framing, left))
            }
            Next::Data(byte) if !is_promised => {
                chunks::completed(&framing, own_left).map(|(mut text, framing)| {
                    text.push(byte);
                    (1, text, framing, own_left)
                })
            }
            // It is over before what was promised is said, or does not go on like a body.
            _ => None,
        };
        let Some((own_len, text, mut framing, left)) = step else {
            if self.leg(id).voice.ended_at() != Some(at) {
                self.reset_client(cx);
            }
            return false;
        };
        let end = at + text.len() as u64;
        if !self.splice(cx, id, at, own_len, text.len()) {
            return false;
        }
        self.visible.instead.push_line(at, text.into());
        framing.skip_body(1);
        self.stand_at(cx, end, framing, left - 1);
        true
    }
}
