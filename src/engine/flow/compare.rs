//! Where the two streams agree. Compares bytes, in order, and knows the spans that may differ.
//!
//! `agreed` is the end of the prefix that both legs said. While Paired it runs ahead of the release
//! point; while Lagging it trails behind and verifies what was shown already.

use bytes::Bytes;

use super::listen::Listener;
use super::value::{Value, value_of};
use super::{Comparison, Cx, Flow, Report};
use crate::engine::LegId;
use crate::engine::alignment::{Own, Round};
use crate::engine::event::{Divergence, DivergenceKind, Event, FlowState, SoloReason};
use crate::engine::expected::Offer;
use crate::engine::planted::{self, Bug, on};
use crate::protocol::{FIELD_BYTES_MAX, Field, Normalizer, RawReason, Step};
use crate::wire::Offset;

impl Flow {
    /// Compares as far as both legs have spoken.
    pub(super) fn compare(&mut self, cx: &mut Cx<'_>) {
        // Whatever becomes of the answers: what was acknowledged is forgotten.
        self.read_request();
        if self.awaits_second() {
            return; // which takes part from here on
        }
        if self.state == FlowState::Solo && self.comparison.is_following {
            self.follow(cx, false);
            return self.note_call(cx);
        }
        if !matches!(self.state, FlowState::Paired | FlowState::Lagging) || !self.is_comparable() {
            return;
        }
        loop {
            let stepped = match (self.comparison.span, self.comparison.chunks) {
                (Some(rule), _) => self.compare_span(cx, rule),
                (None, None) => self.compare_plain(cx),
                (None, Some(_)) => self.compare_chunks(cx),
            };
            if !stepped {
                break;
            }
        }
        self.note_call(cx);
        self.end_trial();
        if let Some(why) = self.comparison.normalizer.as_ref().and_then(|n| n.raw()) {
            if let Some(listener) = self.listener.as_mut().filter(|_| why == RawReason::Switched) {
                listener.stop();
            }
            self.compare_raw(cx, why);
            if why.parts_servers() {
                self.lose(cx, self.backup(), SoloReason::Unfollowed);
            }
        }
    }

    /// After a restart of the gateway: everything said was shown and acknowledged, and now the
    /// client begins with a request. From here on the protocol can be followed again; a wrong guess
    /// would cost no more than a mask where none was needed.
    pub(super) fn resume_protocol(&mut self, cx: &Cx<'_>, at: Offset, bytes: &[u8]) {
        if !self.comparison.is_adrift || bytes.is_empty() {
            return;
        }
        let released = self.visible.released;
        let is_quiet = self.client.una == released
            && self.comparison.agreed == released
            && self.legs.iter().all(|l| !l.is_open() || l.said() == released);
        if at == self.client.nxt && is_quiet {
            let reader = cx.config.reader_from(self.key.server.port(), bytes);
            if reader.is_some() {
                self.comparison = Comparison::new(released, reader);
                self.comparison.request_read = at;
                let port = self.key.server.port();
                self.listener = Listener::new(at, cx.config.listener(port));
                if self.state == FlowState::Solo && self.follows_alone(cx) {
                    self.comparison.follow();
                }
            }
        }
    }

    /// Both legs carry the flow, or the leg that is left has still to prove what was shown.
    fn is_comparable(&self) -> bool {
        self.has_both() || self.is_orphaned()
    }

    /// The normalizer reads requests before it reads their answers.
    fn read_request(&mut self) {
        let Some(normalizer) = &mut self.comparison.normalizer else { return };
        let mut at = self.comparison.request_read;
        let base = self.client.fin.map_or(self.request.base(), |fin| self.request.base().min(fin));
        if base > at {
            // More than could be kept until it was in order.
            normalizer.on_request_hole(base.since(at));
            at = base;
        }
        loop {
            let bytes = self.request.slice_at(at);
            if bytes.is_empty() {
                break;
            }
            normalizer.on_request(bytes);
            at = at + bytes.len() as u64;
        }
        self.comparison.request_read = at;
    }

    /// The primary's bytes at `at`: what was shown of them first.
    pub(super) fn reference_at(&self, at: Offset) -> &[u8] {
        if at < self.visible.released {
            let left = self.visible.released.since(at) as usize;
            let bytes = self.shown.slice_at(at);
            return &bytes[..bytes.len().min(left)];
        }
        self.leg(self.primary).voice.slice_at(at)
    }

    fn compare_plain(&mut self, cx: &mut Cx<'_>) -> bool {
        let at = self.comparison.agreed;
        let ours = self.reference_at(at);
        let theirs = self.leg(self.backup()).voice.slice_at(at);
        let both = ours.len().min(theirs.len());
        if both == 0 {
            return false;
        }
        let (ours, theirs) = (&ours[..both], &theirs[..both]);
        let same = match ours == theirs {
            true => both,
            false => ours.iter().zip(theirs).take_while(|(a, b)| a == b).count(),
        };
        let same = planted::equal_bytes(same, both);
        if same == 0 {
            // A value that differs from its first byte on: does it begin here?
            let (first, second) = (ours[0], theirs[0]);
            if let Some(mut n) = self.comparison.normalizer.as_ref().map(|n| n.boxed_clone())
                && let Step::Span { after: 0, rule } = n.on_response(&[first])
            {
                (self.comparison.normalizer, self.comparison.span) = (Some(n), Some(rule));
                return true;
            }
            if self.begin_chunks() {
                return true;
            }
            self.on_difference(cx, self.kind(first, second), self.field());
            return false;
        }
        let mut normalizer = self.comparison.normalizer.take();
        let step = match &mut normalizer {
            Some(n) => {
                let ours = self.reference_at(at);
                n.on_response(&ours[..same])
            }
            None => Step::Plain,
        };
        self.comparison.normalizer = normalizer;
        let taken = match step {
            Step::Plain => same,
            Step::Span { after, rule } => {
                self.comparison.span = Some(rule);
                after
            }
        };
        self.comparison.agreed = at + taken as u64;
        true
    }

    /// A span that may differ: both copies complete, or it is compared as it is. Where they are not
    /// of one length, the backup's positions step over the difference.
    fn compare_span(&mut self, cx: &mut Cx<'_>, rule: u16) -> bool {
        let at = self.comparison.agreed;
        let backup = self.backup();
        let ours = self.value(rule, at, |at| self.reference_at(at));
        let theirs = self.value(rule, at, |at| self.leg(backup).voice.slice_at(at));
        match (ours, theirs) {
            (Value::Open, _) | (_, Value::Open) if on(Bug::SpanNotAtomic) => {
                let there = |l: &[u8]| l.len() as u64;
                let n =
                    there(self.reference_at(at)).min(there(self.leg(backup).voice.slice_at(at)));
                self.comparison.agreed = at + n;
                n > 0
            }
            (Value::Open, _) | (_, Value::Open) => false,
            (Value::Whole(ours), Value::Whole(theirs)) => {
                if ours != theirs && !self.may_differ(cx, rule, &ours, &theirs) {
                    self.on_difference_in_span(cx, &ours, &theirs);
                    return false;
                }
                let text = self.text_instead(cx, rule, at, &ours);
                let len = text.as_ref().map_or(ours.len(), |text| text.len());
                let primary = self.primary;
                let has_room = (len == ours.len() || self.has_room_for_splice(primary))
                    && (len == theirs.len() || self.has_room_for_splice(backup));
                if !has_room {
                    return false;
                }
                self.note_offer(cx, rule, &ours, Some(&theirs));
                if let Some(text) = text {
                    self.show_instead(cx, at, ours.len(), rule, text);
                }
                if len != theirs.len() {
                    self.splice(cx, backup, at, theirs.len(), len);
                }
                if ours != theirs || len != theirs.len() {
                    self.visible.differs_until = at + len as u64;
                }
                self.note_values(cx, rule, (at, len), &ours, &theirs);
                self.comparison.span = None;
                self.comparison.agreed = at + len as u64;
                if let Some(n) = &mut self.comparison.normalizer {
                    n.on_span(len);
                }
                true
            }
            // An endless one: no mask applies, and the rest of the flow is compared as it is.
            _ => {
                self.compare_raw(cx, RawReason::Value);
                true
            }
        }
    }

    /// The servers have said these values, and the client is shown so many bytes for them there.
    fn note_values(
        &self,
        cx: &mut Cx<'_>,
        rule: u16,
        (at, len): (Offset, usize),
        ours: &[u8],
        theirs: &[u8],
    ) {
        let Some(reader) = &self.comparison.normalizer else { return };
        let (flow, len, name) = (self.key, len as u32, reader.rule_name(rule));
        if reader.is_returned(rule) {
            let mut values = [ours, theirs];
            if self.primary == LegId::B {
                values.reverse();
            }
            if let Some((why, count)) = cx.pairs.note(cx.now, &name.field, values, self.primary) {
                cx.event(Event::PairsDropped { why, count });
            }
            if ours != theirs {
                cx.event(Event::PairNoted { flow, rule: name.clone(), at });
            }
        }
        if ours != theirs {
            cx.event(Event::MaskHit { flow, rule: name, at, len });
        }
    }

    /// Whether one of two values may stand for the other.
    fn may_differ(&self, cx: &Cx<'_>, rule: u16, ours: &[u8], theirs: &[u8]) -> bool {
        let Some(n) = &self.comparison.normalizer else { return false };
        // Each names itself, if anybody.
        let address = |leg: LegId, value| {
            let address = n.announced(rule, value)?.address?;
            Some(cx.config.service_address(leg, address))
        };
        let is_there = !ours.is_empty() && !theirs.is_empty();
        is_there
            && n.may_differ(rule, ours, theirs)
            && address(self.primary, ours) == address(self.backup(), theirs)
    }

    /// What the servers, or the primary alone, say of a data connection.
    fn note_offer(&self, cx: &mut Cx<'_>, rule: u16, ours: &[u8], theirs: Option<&[u8]>) {
        let Some(n) = &self.comparison.normalizer else { return };
        let Some(said) = n.announced(rule, ours) else { return };
        let mut ports = [None; 2];
        ports[self.primary.index()] = Some(said.port);
        let other = theirs.and_then(|theirs| n.announced(rule, theirs));
        ports[self.backup().index()] = other.map(|other| other.port);
        let own = |address| cx.config.service_address(self.primary, address);
        let offer = Offer { address: said.address.map(own), shown: said.port, ports };
        cx.reports.push(Report::Offered(self.key, offer));
    }

    /// What the client is to be shown instead of the primary's value at `at`.
    fn text_instead(&self, cx: &Cx<'_>, rule: u16, at: Offset, ours: &[u8]) -> Option<Bytes> {
        let reader = self.comparison.reader().filter(|_| at >= self.visible.released)?;
        self.instead_of(cx, reader, self.primary, rule, ours)
    }

    /// The value that `id` says at `at`, if it is whole.
    pub(super) fn whole_value(
        &self,
        reader: &dyn Normalizer,
        rule: u16,
        at: Offset,
        id: LegId,
    ) -> Option<Vec<u8>> {
        match value_of(reader, rule, at, |at| self.leg(id).voice.slice_at(at)) {
            Value::Whole(value) => Some(value),
            Value::Open | Value::TooLong => None,
        }
    }

    /// Two values where they may differ, but not like this.
    fn on_difference_in_span(&mut self, cx: &mut Cx<'_>, ours: &[u8], theirs: &[u8]) {
        let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        let field = self.field();
        // One of them may go on where the other one ends.
        let at = self.comparison.agreed + same as u64;
        let byte = |bytes: &[u8]| bytes.first().copied().unwrap_or_default();
        let (first, second) =
            (byte(self.reference_at(at)), byte(self.leg(self.backup()).voice.slice_at(at)));
        self.comparison.span = None;
        self.comparison.agreed = at;
        self.on_difference(cx, self.kind(first, second), field);
    }

    /// What the primary's next byte belongs to, as far as that has said.
    fn field(&self) -> Option<Field> {
        let mut ahead = Vec::new();
        while ahead.len() < FIELD_BYTES_MAX {
            let more = self.reference_at(self.comparison.agreed + ahead.len() as u64);
            if more.is_empty() {
                break;
            }
            ahead.extend(more.iter().take(FIELD_BYTES_MAX - ahead.len()));
        }
        self.comparison.normalizer.as_ref()?.field(&ahead)
    }

    /// The primary's byte and the backup's.
    pub(super) fn kind(&self, first: u8, second: u8) -> DivergenceKind {
        match self.primary {
            LegId::A => DivergenceKind::Byte(first, second),
            LegId::B => DivergenceKind::Byte(second, first),
        }
    }

    /// No rule applies from here on.
    pub(super) fn compare_raw(&mut self, cx: &mut Cx<'_>, why: RawReason) {
        cx.event(Event::ComparedRaw { flow: self.key, why });
        self.comparison.stop();
    }

    /// The value of `own_len` bytes that `id` says at `at` stands for the one of `shown_len` bytes
    /// that the client is shown; `false` if it has to acknowledge others first.
    pub(super) fn splice(
        &mut self,
        cx: &mut Cx<'_>,
        id: LegId,
        at: Offset,
        own_len: usize,
        shown_len: usize,
    ) -> bool {
        if !self.has_room_for_splice(id) {
            return false;
        }
        let leg = self.leg_mut(id);
        let is_first = leg.voice.is_constant();
        let one = usize::from(own_len > shown_len && on(Bug::SpliceOneShort));
        leg.voice.splice(at, (own_len - one) as u32, shown_len as u32);
        // The room that it was told has moved (LV8).
        leg.owes_ack |= leg.voice.has_no_room();
        if is_first {
            self.persist(cx); // before anything of it is shown
        }
        true
    }

    fn has_room_for_splice(&mut self, id: LegId) -> bool {
        let una = self.client.una;
        let voice = &mut self.leg_mut(id).voice;
        if voice.is_full() {
            voice.settle(una); // the client may just have acknowledged some
        }
        !voice.is_full()
    }

    /// Values that the client has wholly acknowledged are behind everybody.
    pub(super) fn settle_splices(&mut self, cx: &mut Cx<'_>) {
        let una = match on(Bug::SpliceSettledEarly) {
            true => self.visible.released,
            false => self.client.una,
        };
        let [a, b] = &mut self.legs;
        let foreign = self.visible.foreign_until.take_if(|until| *until <= una);
        let (a_acked, b_acked) = (a.acked, b.acked);
        let is_heard = a.ear.settle(a_acked) | b.ear.settle(b_acked);
        if a.voice.settle(una) | b.voice.settle(una) | foreign.is_some() | is_heard {
            self.persist(cx);
        }
    }

    /// The ack for the backup while its value at the end of the comparison is not settled, and the
    /// client has acknowledged beyond its beginning (Lagging); `una` and `heard` are its own
    /// positions. What lies behind the value is not acknowledged before the client has all that
    /// stands for the value; but the leg may wait for the ack of the part that it has said.
    pub(super) fn ack_in_span(&self, una: Own, heard: Own) -> Own {
        let at = self.comparison.agreed;
        let id = self.backup();
        let voice = &self.leg(id).voice;
        if let Some(ack) = self.ack_in_chunks(una, heard) {
            return ack;
        }
        let Some(rule) = self.comparison.span else { return una.min(heard) };
        let ours = self.value(rule, at, |at| self.reference_at(at));
        let theirs = self.value(rule, at, |at| self.leg(id).voice.slice_at(at));
        match (ours, theirs) {
            (Value::Whole(o), Value::Open) if self.client.una >= at + o.len() as u64 => heard,
            (_, Value::Whole(t)) => una.min(voice.own(at, Round::Down) + t.len() as u64).min(heard),
            _ => una.min(heard),
        }
    }

    /// Whether a value is under comparison, and the client knows something of it.
    pub(super) fn is_shown_in_span(&self) -> bool {
        let is_open = self.comparison.span.is_some() || self.comparison.chunks.is_some();
        is_open && self.client.una > self.comparison.agreed
    }

    /// Of the value under comparison: whether `id` has said less of it than the other leg; `None`
    /// if lengths tell as much as there is to know. A value that both have said whole waits for the
    /// client's acks.
    pub(super) fn says_less_of_span(&self, id: LegId) -> Option<bool> {
        if self.comparison.chunks.is_some() {
            return self.says_less_of_chunks(id);
        }
        self.comparison.span?;
        match (self.is_span_open(id), self.is_span_open(id.other())) {
            (true, true) => None,
            (is_open, _) => Some(is_open),
        }
    }

    /// Whether `id` has said a part of a masked span, and not its end.
    pub(super) fn is_inside_span(&self, id: LegId) -> bool {
        self.leg(id).said() > self.comparison.agreed && self.is_span_open(id)
    }

    /// Whether a masked span has begun that `id` has not completed.
    pub(super) fn is_span_open(&self, id: LegId) -> bool {
        let Some(rule) = self.comparison.span else { return false };
        let at = self.comparison.agreed;
        let value = match id == self.primary {
            // While Lagging its own copy is gone: what was shown stands for it.
            true => self.value(rule, at, |at| self.reference_at(at)),
            false => self.value(rule, at, |at| self.leg(id).voice.slice_at(at)),
        };
        matches!(value, Value::Open)
    }

    /// Everything that the primary has said counts as said by both: the other leg is its copy.
    pub(super) fn vouch(&mut self, cx: &mut Cx<'_>) {
        self.read_request();
        self.follow(cx, true);
        let c = &mut self.comparison;
        c.is_following = false;
        if c.normalizer.is_none() {
            c.agreed = c.agreed.max(self.legs[self.primary.index()].said());
        }
        if on(Bug::CopyComparedLate) {
            c.agreed = c.agreed + 1;
        }
    }

    /// Reads on in the primary's bytes, without comparing them. They are `both`'s where the other
    /// leg is its copy.
    fn follow(&mut self, cx: &mut Cx<'_>, both: bool) {
        while self.comparison.normalizer.is_some() && self.follow_step(cx, both) {}
        if self.comparison.normalizer.as_ref().is_some_and(|n| n.raw().is_some()) {
            self.comparison.stop();
        }
    }

    fn follow_step(&mut self, cx: &mut Cx<'_>, both: bool) -> bool {
        if self.comparison.is_reframed {
            return self.reframe(cx);
        }
        let at = self.comparison.agreed;
        if let Some(rule) = self.comparison.span {
            match self.value(rule, at, |at| self.reference_at(at)) {
                Value::Open => return false,
                Value::TooLong => self.comparison.stop(),
                Value::Whole(value) => {
                    self.note_offer(cx, rule, &value, both.then_some(&value));
                    let text = self.text_instead(cx, rule, at, &value);
                    let text = text.filter(|_| self.state == FlowState::Solo);
                    let mut len = value.len();
                    if let Some(text) = text {
                        let shown = text.len();
                        if self.show_instead(cx, at, len, rule, text) {
                            len = shown;
                        }
                    }
                    self.comparison.span = None;
                    self.comparison.agreed = at + len as u64;
                    if let Some(n) = &mut self.comparison.normalizer {
                        n.on_span(len);
                    }
                }
            }
            return true;
        }
        let Some(mut normalizer) = self.comparison.normalizer.take() else { return false };
        let ours = self.reference_at(at);
        let len = ours.len();
        let step = if len > 0 { normalizer.on_response(ours) } else { Step::Plain };
        self.comparison.normalizer = Some(normalizer);
        let taken = match step {
            Step::Plain => len,
            Step::Span { after, rule } => {
                self.comparison.span = Some(rule);
                after
            }
        };
        self.comparison.agreed = at + taken as u64;
        len > 0
    }

    /// The value of `rule` that begins at `at` in the bytes that `get` gives.
    fn value<'a>(&self, rule: u16, at: Offset, get: impl Fn(Offset) -> &'a [u8]) -> Value {
        match &self.comparison.normalizer {
            Some(reader) => value_of(&**reader, rule, at, get),
            None => Value::Open,
        }
    }

    /// Whether what was shown ends with a whole answer, beyond what the other leg has confirmed;
    /// `None` where the protocol does not tell.
    pub(super) fn is_shown_complete(&self) -> Option<bool> {
        let mut reader = self.comparison.normalizer.as_ref()?.boxed_clone();
        let mut at = self.comparison.agreed;
        let mut span = self.comparison.span;
        loop {
            if let Some(rule) = span.take() {
                let value = value_of(&*reader, rule, at, |at| self.reference_at(at));
                let Value::Whole(value) = value else { return None };
                reader.on_span(value.len());
                at = at + value.len() as u64;
            }
            if at >= self.visible.released {
                return reader.is_complete();
            }
            let bytes = self.reference_at(at);
            if bytes.is_empty() {
                return None;
            }
            let taken = match reader.on_response(bytes) {
                Step::Plain => bytes.len(),
                Step::Span { after, rule } => {
                    span = Some(rule);
                    after
                }
            };
            at = at + taken as u64;
        }
    }

    /// Ranges in `[from, to)` beyond `agreed` that both legs said, equal and certainly plain.
    pub(super) fn equal_ahead(&self, from: Offset, to: Offset) -> Vec<(Offset, Offset)> {
        let to = to.min(self.comparison.plain_until());
        let [a, b] = &self.legs;
        let mut found = Vec::new();
        let mut at = from.max(self.comparison.agreed);
        while at < to {
            let (ours, theirs) = (a.voice.slice_at(at), b.voice.slice_at(at));
            let n = ours.len().min(theirs.len()).min(to.since(at) as usize);
            if n > 0 {
                if ours[..n] == theirs[..n] || on(Bug::AheadUncompared) {
                    found.push((at, at + n as u64));
                }
                at = at + n as u64;
                continue;
            }
            match (a.voice.next_held(at), b.voice.next_held(at)) {
                (Some(x), Some(y)) if x.max(y) > at => at = x.max(y),
                _ => break,
            }
        }
        found
    }

    /// The streams differ at `agreed`.
    pub(super) fn on_difference(
        &mut self,
        cx: &mut Cx<'_>,
        kind: DivergenceKind,
        field: Option<Field>,
    ) {
        let at = self.comparison.agreed;
        if self.is_on_trial() && !self.is_orphaned() {
            return self.fail_second(cx);
        }
        let is_drawn = self.comparison.normalizer.as_ref().is_some_and(|n| n.is_drawn());
        if is_drawn && !self.is_orphaned() {
            // No state differs, and no sync would make it equal.
            return self.lose(cx, self.backup(), SoloReason::Unfollowed);
        }
        let divergence = Divergence { at, kind, field };
        cx.event(Event::Diverged { flow: self.key, divergence });
        if self.is_orphaned() {
            // The only leg left contradicts what the client was shown.
            return self.reset_client(cx);
        }
        let until = Some(cx.now + cx.config.sync_deadline);
        self.diverged_until = until.filter(|_| !on(Bug::DivergedNoTimer));
        let was_shown = self.state == FlowState::Lagging && at < self.visible.released;
        self.set_state(cx, FlowState::Diverged, None);
        cx.reports.push(Report::Diverged(self.client.asked_at));
        if was_shown || cx.config.sync_scope.is_none() {
            self.resolve_divergence(cx);
        }
    }
}
