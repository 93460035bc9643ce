//! How flows begin: is there room for one more, is it answered with a cookie, which servers take
//! part.

use super::{Engine, POOL_FULL_PERCENT};
use crate::engine::config::Mode;
use crate::engine::cookies::Promise;
use crate::engine::event::{Event, FlowKey, SoloReason};
use crate::engine::flow::{Flow, Start};
use crate::engine::flow_table::FlowId;
use crate::engine::half_open::Source;
use crate::engine::{LegId, Link, Output};
use crate::wire::{Frame, Segment};

impl Engine {
    pub(super) fn open_flow(&mut self, key: FlowKey, seg: &Segment, frame: Frame) {
        if let Some(frame) = self.cookie(&key, seg) {
            self.event(Event::CookieGiven { flow: key });
            return self.outputs.push_back(Output::Transmit(Link::Client, frame));
        }
        let id = match seg.options.is_authenticated {
            true => Err(SoloReason::AuthOption),
            false => self.make_room(Source::of(key.client.ip())),
        };
        match id {
            Ok(id) => self.begin_flow(key, id, seg, None, [true; 2]),
            Err(reason) => {
                self.event(Event::Unprotected { flow: key, reason });
                self.bridge.to_primary(self.view(), frame, &mut self.outputs);
            }
        }
    }

    /// The gateway's own answer to a SYN, while handshakes are too many.
    fn cookie(&mut self, key: &FlowKey, syn: &Segment) -> Option<Frame> {
        let may = self.config.mode == Mode::Protect && !syn.options.is_authenticated;
        let is_on = self.judge_cookies() && may;
        is_on.then(|| self.cookies.answer(self.now, key, syn)).flatten()
    }

    pub(super) fn judge_cookies(&mut self) -> bool {
        let half_open = self.table.half_open();
        let (was_on, is_on) = self.cookies.judge(half_open, self.config.half_open_max);
        if was_on != is_on {
            self.event(Event::CookiesTurned { on: is_on, half_open: half_open as u32 });
        }
        is_on
    }

    /// A client has come back with a cookie: the servers are asked now.
    pub(super) fn open_promised(
        &mut self,
        key: FlowKey,
        syn: &Segment,
        mut promise: Promise,
        seg: &Segment,
        frame: Frame,
    ) {
        let Ok(id) = self.make_room(Source::of(key.client.ip())) else {
            return self.bridge.to_primary(self.view(), frame, &mut self.outputs);
        };
        self.event(Event::CookieTaken { flow: key });
        let (_, body, _) = frame.into_parts();
        promise.early.push((*seg, body));
        self.begin_flow(key, id, syn, Some(promise), [true; 2]);
    }

    /// The number of a new flow from `source`. Handshakes give way to it; connections never do.
    pub(super) fn make_room(&mut self, source: Source) -> Result<FlowId, SoloReason> {
        if let Some(id) = self.table.displaced(self.now, source, &self.config) {
            let primary = self.control.roles().primary;
            self.with_flow(id, |flow, cx| flow.give_way(cx, primary));
        }
        if self.table.flows_of(source) >= self.config.flows_per_source_max {
            return Err(SoloReason::SourceLimit);
        }
        self.table.next_id(self.config.flows_max).ok_or(SoloReason::Budget)
    }

    pub(super) fn begin_flow(
        &mut self,
        key: FlowKey,
        id: FlowId,
        seg: &Segment,
        promise: Option<Promise>,
        may_take_part: [bool; 2],
    ) {
        let is_opaque = self.config.opaque_ports.contains(&key.server.port());
        let (legs, solo) = self.taking_part(may_take_part, is_opaque);
        let primary = self.control.roles().primary;
        let primary = if legs.contains(&primary) { primary } else { primary.other() };
        let start = Start { primary, legs, solo, promise };
        let flow = Flow::open(&mut self.cx(), key, id, seg, start);
        self.table.insert(id, flow);
    }

    /// The servers of a new flow, the primary first, and why it is only one.
    pub(super) fn taking_part(
        &self,
        may_take_part: [bool; 2],
        is_opaque: bool,
    ) -> (Vec<LegId>, Option<SoloReason>) {
        let (mut legs, is_stale) = self.control.legs_for_new_flow(self.now);
        legs.retain(|leg| may_take_part[leg.index()]);
        let is_full = self.table.held() * 100 >= self.config.hold_bytes_max * POOL_FULL_PERCENT;
        if is_full || is_opaque {
            legs.truncate(1);
        }
        let solo = match legs.len() {
            2 => None,
            _ if is_opaque => Some(SoloReason::OpaquePort),
            _ if is_full => Some(SoloReason::Budget),
            _ if is_stale => Some(SoloReason::BackupStale),
            _ => Some(SoloReason::OneServer),
        };
        (legs, solo)
    }
}
