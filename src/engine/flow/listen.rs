//! What the client says, read before the servers hear it: where it returns a value that one server
//! gave it, each server is told its own.
//!
//! A server to which values may have to be said otherwise hears only what was read: not what is out
//! of order, and of a value nothing before it is whole. That server alone waits; while there are
//! two, the lag policy ends that wait as any other, and in no case it is longer than
//! [`limits::VALUE_WAIT`]. A value of which a server has heard anything is left as it is.

use bytes::Bytes;

use super::value::{Value, value_at};
use super::{Cx, Flow};
use crate::engine::LegId;
use crate::engine::alignment::Round;
use crate::engine::event::{Event, KeptWhy};
use crate::engine::leg::LegState;
use crate::engine::limits;
use crate::engine::pack::{Pack, Reader, Writer};
use crate::engine::planted::{Bug, on};
use crate::engine::time::Instant;
use crate::protocol::returned::Returned;
use crate::protocol::{RuleName, Step};
use crate::wire::Offset;

/// The reader of one client.
#[derive(Debug)]
pub(super) struct Listener {
    reader: Returned,
    /// How far it has read.
    at: Offset,
    /// A value begins there that is not whole: its rule, and since when.
    open: Option<(u16, Instant)>,
}

impl Listener {
    /// Reads from `at` on, if there is anything to look for.
    pub(super) fn new(at: Offset, reader: Option<Returned>) -> Option<Box<Self>> {
        reader.map(|reader| Box::new(Self { reader, at, open: None }))
    }

    /// How far everything is known to a server that has its own values.
    fn clear_to(&self) -> Offset {
        match self.open {
            Some(_) => self.at,
            None => self.at + self.reader.plain_ahead().min(1 << 40),
        }
    }

    /// Until when a value is waited for.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        self.open.map(|(_, since)| since + limits::VALUE_WAIT)
    }

    /// Nothing is kept of what it has read.
    pub(super) fn is_quiet(&self) -> bool {
        self.reader.is_quiet() && self.open.is_none()
    }

    /// The client speaks another protocol from here on.
    pub(super) fn stop(&mut self) {
        self.reader.lose();
        self.open = None;
    }
}

impl Pack for Box<Listener> {
    fn pack(&self, w: &mut Writer) {
        let Listener { reader, at, open } = &**self;
        at.pack(w);
        if w.is_whole() {
            reader.pack(w);
            return open.pack(w);
        }
        debug_assert!(self.is_quiet(), "a flow in the middle of a request does not rest");
        reader.is_lost().pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let at = Pack::unpack(r);
        if r.is_whole() {
            let (reader, open) = Pack::unpack(r);
            return Self::new(Listener { reader, at, open });
        }
        let mut reader = Returned::new(r.rules.http.clone());
        if Pack::unpack(r) {
            reader.lose();
        }
        Self::new(Listener { reader, at, open: None })
    }
}

impl Flow {
    /// Reads on, as far as the client's bytes are in order.
    pub(super) fn listen(&mut self, cx: &mut Cx<'_>) {
        let Some(mut listener) = self.listener.take() else { return };
        let base = self.client.fin.map_or(self.request.base(), |fin| self.request.base().min(fin));
        if base > listener.at {
            // All servers have taken more than could be kept.
            listener.open = None;
            listener.reader.on_hole(base.since(listener.at));
            listener.at = base;
        }
        while self.listen_on(cx, &mut listener) {}
        let (flow, reader) = (self.key, &mut listener.reader);
        for _ in 0..reader.take_doubts() {
            cx.event(Event::ValueDoubtful { flow });
        }
        if let Some(why) = reader.take_raw() {
            cx.event(Event::ReturnsUnread { flow, why });
        }
        self.listener = Some(listener);
    }

    fn listen_on(&mut self, cx: &mut Cx<'_>, listener: &mut Listener) -> bool {
        let at = listener.at;
        let Some((rule, since)) = listener.open else {
            let bytes = self.request.slice_at(at);
            let len = bytes.len();
            listener.at = match listener.reader.read(bytes) {
                Step::Plain => at + len as u64,
                Step::Span { after, rule } => {
                    listener.open = Some((rule, cx.now));
                    at + after as u64
                }
            };
            return len > 0;
        };
        let Some(rule) = listener.reader.rule(rule) else { return false };
        match value_at(at, |_, byte| !rule.ends(byte), |at| self.request.slice_at(at)) {
            Value::Whole(value) => {
                self.return_value(cx, &rule.rule_name(), at, &value);
                listener.at = at + value.len() as u64;
                listener.reader.on_value(value.len());
            }
            // Of such length none was ever noted.
            Value::TooLong => {}
            Value::Open => {
                let is_over = self.client.fin == Some(self.request.contiguous());
                // Where nobody waits for the rest all hear it as it is, and it is gone with that.
                let is_awaited = LegId::ALL.into_iter().any(|id| self.awaits_value(cx, id, at));
                if is_awaited && !is_over && cx.now < since + limits::VALUE_WAIT {
                    return false;
                }
                self.keep_value(cx, &rule.rule_name(), at);
            }
        }
        listener.open = None;
        true
    }

    /// The client says `value` at `at`: what each server hears there.
    fn return_value(&mut self, cx: &mut Cx<'_>, rule: &RuleName, at: Offset, value: &[u8]) {
        let Some(own) = cx.pairs.returned(cx.now, &rule.field, value).cloned() else { return };
        let is_alone = !self.has_both();
        for (id, own) in LegId::ALL.into_iter().zip(own) {
            let leg = self.leg_mut(id);
            if *own == *value || !matches!(leg.state, LegState::Open | LegState::SynSent) {
                continue;
            }
            if is_alone && on(Bug::SurvivorHearsForeign) {
                continue;
            }
            let why = match &leg.ear {
                _ if leg.sent > at => Some(KeptWhy::Late),
                ear if ear.is_full() => Some(KeptWhy::Full),
                _ => None,
            };
            let (flow, to, rule) = (self.key, id, rule.clone());
            cx.event(match why {
                Some(why) => Event::ValueKept { flow, to, rule, at, why },
                None => Event::ValueReplaced { flow, to, rule, at },
            });
            if why.is_none() {
                self.replace(cx, id, (at, value.len()), own);
            }
        }
    }

    /// `id` hears `own` in the place of so many bytes there, and has less room if that is longer.
    fn replace(&mut self, cx: &mut Cx<'_>, id: LegId, (at, len): (Offset, usize), own: Bytes) {
        let leg = self.leg_mut(id);
        let edge = leg.ear.own(leg.edge, Round::Down);
        leg.ear.replace(at, len, own);
        leg.edge = leg.edge.min(leg.ear.shown(edge, Round::Down)); // more room it says itself
        self.persist(cx); // before anything of it is sent
    }

    /// Whether `id` could be told another value than the client's at `at`: it has heard nothing of
    /// it, not even ahead of what is missing before it.
    fn awaits_value(&self, cx: &Cx<'_>, id: LegId, at: Offset) -> bool {
        let leg = self.leg(id);
        let is_part = matches!(leg.state, LegState::Open | LegState::SynSent);
        is_part && leg.sent <= at && cx.pairs.is_foreign_to(id)
    }

    /// The client does not go on with the value at `at`. Who waited for that has it only now.
    fn keep_value(&mut self, cx: &mut Cx<'_>, rule: &RuleName, at: Offset) {
        for id in LegId::ALL {
            if self.leg(id).is_open() && self.awaits_value(cx, id, at) {
                let (flow, rule, why) = (self.key, rule.clone(), KeptWhy::Late);
                cx.event(Event::ValueKept { flow, to: id, rule, at, why });
                self.leg_mut(id).given_at = cx.now;
            }
        }
    }

    /// How far `id` may be sent what the client says.
    pub(super) fn clear_to(&self, cx: &Cx<'_>, id: LegId) -> Offset {
        match &self.listener {
            Some(listener) if cx.pairs.is_foreign_to(id) => {
                listener.clear_to().max(self.leg(id).sent)
            }
            _ => Offset::new(u64::MAX),
        }
    }

    /// What `id` has not acknowledged of the client's `body` at `at`: what was replaced in the rest
    /// is not remembered. Where that leaves nothing, it is a question that the server answers.
    pub(super) fn without_acked(
        &self,
        id: LegId,
        at: Offset,
        body: Bytes,
        has_fin: bool,
    ) -> (Offset, Bytes) {
        let old = (self.leg(id).acked.since(at) as usize).min(body.len());
        if self.listener.is_none() || old == 0 {
            return (at, body);
        }
        let is_question = old == body.len() && !has_fin;
        ((at + old as u64).back(u64::from(is_question)), body.slice(old..))
    }

    /// The client was granted more than `id` takes: it may be told nothing else.
    pub(super) fn grants_less(&self, id: LegId) -> bool {
        self.visible.told_edge > self.leg(id).edge
    }

    /// Bytes wait here for room that `id` may have, and nobody else would ask it.
    pub(super) fn waits_for_room(&self, cx: &Cx<'_>, id: LegId) -> bool {
        let leg = self.leg(id);
        let next = leg.acked.max(Offset::START);
        let is_shut = leg.sent <= next && leg.ear.floor(leg.edge) <= next;
        let is_unknown = self.listener.is_some() || self.grants_less(id);
        is_unknown && leg.is_fed && is_shut && next < self.clear_to(cx, id)
    }
}
