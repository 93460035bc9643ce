//! How a flow ends: FIN and RST are held, compared, and shown only where the streams end (1.8).

use bytes::Bytes;

use super::{Cx, EMPTY, Flow, Opener, Report};
use crate::engine::event::{Event, FlowKey, FlowState, SoloReason};
use crate::engine::leg::LegState;
use crate::engine::limits;
use crate::engine::planted::{Bug, on};
use crate::engine::time::Instant;
use crate::engine::{LegId, Link};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Offset, Segment, TcpFlags, TcpOptions};

impl Flow {
    /// Request bytes are not yet answered, or one leg has more to say than the other.
    pub(super) fn is_unfinished(&self) -> bool {
        let goes_on =
            self.legs.iter().any(|l| l.is_open() && l.voice.nxt() > self.visible.released + 1);
        let asked = self.client.fin.unwrap_or(self.client.nxt);
        asked > self.visible.answered || goes_on || self.comparison.is_mid_message()
    }

    /// Ends of the legs' streams: early ends, resets, FINs that may be shown.
    pub(super) fn settle_ends(&mut self, cx: &mut Cx<'_>) {
        let state = self.state;
        self.release_agreed(cx);
        self.settle_resets(cx);
        if self.visible.reset.is_some() {
            return;
        }
        if self.visible.fin.is_none() {
            self.settle_early_end(cx);
        } else {
            self.settle_late_bytes(cx);
        }
        if self.visible.reset.is_some() {
            return;
        }
        self.settle_fin_hold(cx);
        if self.state != state {
            self.compare(cx); // what one server alone has said is read before it is shown
        }
        self.release(cx);
        self.release_fin(cx);
    }

    /// One leg ended in good order where the other goes on: the leg that ended loses.
    fn settle_early_end(&mut self, cx: &mut Cx<'_>) {
        if !self.has_both() || on(Bug::EarlyFinReleased) {
            return;
        }
        if let Some(id) = self.ends_in_chunks().filter(|_| self.diverged_until.is_none()) {
            cx.event(Event::EarlyEnd { flow: self.key, loser: id });
            cx.reports.push(Report::UnfinishedEnd(id));
            return self.lose(cx, id, SoloReason::EarlyEnd);
        }
        for id in LegId::ALL {
            let (leg, other) = (self.leg(id), self.leg(id.other()));
            let end = leg.voice.ended_at().or(leg.reset_at.map(|_| leg.said()));
            let Some(end) = end else { continue };
            // Inside a masked span nothing is agreed; a leg that ends there ends early as well.
            let cuts_span =
                self.is_span_open(id) && (other.voice.ended_at().is_none() || other.said() > end);
            let goes_on = other.said() > end && self.comparison.agreed() >= end;
            if (goes_on || cuts_span) && self.diverged_until.is_none() {
                cx.event(Event::EarlyEnd { flow: self.key, loser: id });
                cx.reports.push(Report::UnfinishedEnd(id));
                return self.lose(cx, id, SoloReason::EarlyEnd);
            }
        }
    }

    /// The end was shown; a leg that says more cannot carry the flow (I7).
    fn settle_late_bytes(&mut self, cx: &mut Cx<'_>) {
        let shown = self.visible.fin;
        let says_more = |f: &Self, id: LegId| {
            let leg = f.leg(id);
            leg.is_open() && shown.is_some_and(|fin| leg.said() > fin)
        };
        if says_more(self, self.backup()) && self.leg(self.primary).is_open() {
            cx.event(Event::EarlyEnd { flow: self.key, loser: self.backup() });
            self.lose(cx, self.backup(), SoloReason::EarlyEnd);
        } else if says_more(self, self.primary) || says_more(self, self.backup()) {
            self.reset_client(cx);
        }
    }

    fn settle_resets(&mut self, cx: &mut Cx<'_>) {
        if !self.client.is_learned {
            return; // right after a restart nobody knows which number would be exact
        }
        let was_reset = |f: &Self, id: LegId| f.leg(id).is_open() && f.leg(id).reset_at.is_some();
        if self.has_both() {
            let [a, b] = LegId::ALL.map(|id| was_reset(self, id));
            let primarys = [a, b][self.primary.index()];
            if (a && b) || (primarys && on(Bug::ResetWithoutHold)) {
                return self.reset_client(cx);
            }
            for id in LegId::ALL {
                let due = self.leg(id).reset_at.map(|at| at + limits::RST_HOLD);
                if due.is_some_and(|due| cx.now >= due) && !on(Bug::ResetHoldNoTimer) {
                    cx.event(Event::EarlyEnd { flow: self.key, loser: id });
                    return self.lose(cx, id, SoloReason::EarlyEnd);
                }
            }
        } else if was_reset(self, self.primary) {
            // What it said before goes first.
            self.release(cx);
            self.reset_client(cx);
        } else if self.is_orphaned() && was_reset(self, self.backup()) {
            self.reset_client(cx);
        }
    }

    /// A FIN is held while the other leg, having said as much, says no more.
    fn settle_fin_hold(&mut self, cx: &mut Cx<'_>) {
        if !self.has_both() || self.visible.fin.is_some() {
            self.fin_held_at = None;
            return;
        }
        let holder = LegId::ALL.into_iter().find(|&id| {
            let (leg, other) = (self.leg(id), self.leg(id.other()));
            // A lagging leg that has not reached the end may never do so.
            let is_late = self.state == FlowState::Lagging && id == self.primary;
            let waits = |end| other.said() == end || (is_late && other.said() < end);
            let has_fin = other.voice.fin().is_some();
            leg.voice.ended_at().is_some_and(|end| waits(end) && !has_fin)
        });
        // A client that reads nothing keeps the other one from saying that it has more: the end may
        // be that of a process that was killed.
        let Some(holder) = holder.filter(|holder| !self.waits_for_client(holder.other())) else {
            self.fin_held_at = None;
            return;
        };
        if self.fin_held_at.is_none() && self.is_unfinished() {
            cx.reports.push(Report::UnfinishedEnd(holder));
        }
        let since = *self.fin_held_at.get_or_insert(cx.now);
        let age = cx.now.since(since);
        if age >= cx.config.hold_hard
            && let Some(control) = self.control.as_deref().copied()
        {
            cx.reports.push(Report::EndInDoubt { data: self.key, control, leg: holder });
        }
        if age >= limits::FIN_HOLD && !on(Bug::FinHoldNoTimer) {
            self.fin_held_at = None;
            // An answer is outstanding: whoever ended, ended early. Otherwise the idle times
            // differ, nothing more, and the primary's way is the flow's. But of a data connection
            // the end is what is waited for: who does not come to it stands still.
            let is_behind = self.leg(holder.other()).said() < self.leg(holder).said();
            let is_stalled = !is_behind && self.is_data(cx);
            let loser = match (is_stalled, self.is_unfinished() && !is_behind) {
                (true, _) => holder.other(),
                (false, true) => holder,
                (false, false) => self.backup(),
            };
            if is_stalled || (is_behind && holder == self.primary) {
                cx.reports.push(Report::StallMoved(loser));
            }
            let why = if is_stalled { SoloReason::Lag } else { SoloReason::EarlyEnd };
            self.lose(cx, loser, why);
        }
    }

    /// It is a data connection, agreed on `control`.
    pub fn agreed_on(&mut self, control: FlowKey) {
        self.control = Some(Box::new(control));
    }

    /// The server of `leg` has not ended here.
    pub fn goes_on(&self, leg: LegId) -> bool {
        let leg = self.leg(leg);
        leg.is_open() && leg.reset_at.is_none() && leg.voice.ended_at().is_none()
    }

    /// The end that `leg` alone has come to is that of its transfer, not of its process: the other
    /// server stands still.
    pub fn believe_end(&mut self, cx: &mut Cx<'_>, leg: LegId) {
        let may = match leg == self.primary {
            true => matches!(self.state, FlowState::Paired | FlowState::Lagging),
            false => {
                let is_fit = cx.is_fit[leg.index()] && cx.config.failover_auto;
                is_fit && self.is_promotable(cx, leg)
            }
        };
        if may && self.fin_held_at.take().is_some() {
            cx.reports.push(Report::StallMoved(leg.other()));
            self.lose(cx, leg.other(), SoloReason::Lag);
            self.settle(cx);
        }
    }

    /// Whether it is a data connection: only those have ports that are none of the service's.
    fn is_data(&self, cx: &Cx<'_>) -> bool {
        !cx.config.ports.contains(&self.key.server.port())
    }

    /// Shows the FIN where every stream that counts has ended and all before it was shown (I7).
    fn release_fin(&mut self, cx: &mut Cx<'_>) {
        if self.visible.fin.is_some() {
            return;
        }
        let at = self.visible.released;
        let ends = |id: LegId| self.leg(id).voice.ended_at() == Some(at);
        let may = match self.state {
            FlowState::Paired if on(Bug::EarlyFinReleased) => LegId::ALL.into_iter().any(ends),
            FlowState::Paired if on(Bug::FinWithoutHold) => ends(self.primary),
            FlowState::Paired => LegId::ALL.into_iter().all(ends) && self.has_both(),
            FlowState::Lagging => ends(self.primary) && self.is_end_believed(cx.now),
            FlowState::Solo | FlowState::TimeWait => ends(self.primary),
            FlowState::Opening | FlowState::Diverged => false,
        };
        if may {
            if self.state == FlowState::Lagging && !ends(self.backup()) {
                // The client has waited for it, and the next one would.
                cx.reports.push(Report::StallMoved(self.backup()));
            }
            self.visible.fin = Some(at);
            self.send_client(cx, at, TcpFlags::FIN_ACK, EMPTY);
        }
    }

    /// While Lagging, the primary's end may be that of a dying process: the backup would go on. It
    /// is shown once the backup has ended there too, or when that has stood still for a while and
    /// nothing speaks for more to come.
    fn is_end_believed(&self, now: Instant) -> bool {
        let backup = self.leg(self.backup());
        if self.is_orphaned() || backup.voice.ended_at() == Some(self.visible.released) {
            return !self.is_orphaned();
        }
        let asked = self.client.fin.unwrap_or(self.client.nxt);
        let goes_on = backup.voice.nxt() > self.visible.released + 1;
        if asked > self.visible.answered || goes_on || self.waits_for_client(self.backup()) {
            return false;
        }
        // A backup that has not reached the end may only have lost a packet: where no protocol says
        // that the answer is whole, FIN_HOLD ends the wait.
        let is_near = backup.said() >= self.visible.released;
        match self.is_shown_complete() {
            Some(is_complete) => is_complete && now >= self.doubt_until(),
            None => is_near && now >= self.doubt_until(),
        }
    }

    fn doubt_until(&self) -> Instant {
        self.leg(self.backup()).stands_since() + limits::LAG_FIN_DOUBT
    }

    /// Both directions are closed and acknowledged: kept for late segments only.
    pub(super) fn settle_close(&mut self, cx: &mut Cx<'_>) {
        if self.state == FlowState::TimeWait {
            return;
        }
        let (Some(shown), Some(sent)) = (self.visible.fin, self.client.fin) else { return };
        if self.is_orphaned() || self.visible.told_ack <= sent {
            return;
        }
        let is_acked = self.legs.iter().filter(|l| l.is_open()).all(|l| l.acked > sent);
        if self.client.una > shown && is_acked {
            self.expires_at = cx.now + limits::TIME_WAIT;
            self.set_state(cx, FlowState::TimeWait, None);
        }
    }

    pub(super) fn close_deadline(&self, cx: &Cx<'_>) -> Option<Instant> {
        if on(Bug::DropLv5) || self.visible.reset.is_some() {
            return None;
        }
        let fin_held_at = self.fin_held_at.filter(|_| !on(Bug::FinHoldNoTimer));
        let fin = fin_held_at.map(|at| {
            let asked = self.control.as_ref().map(|_| at + cx.config.hold_hard);
            let doubted = (self.state == FlowState::Lagging).then(|| self.doubt_until());
            let sooner = asked.into_iter().chain(doubted).filter(|&at| at > cx.now);
            sooner.fold(at + limits::FIN_HOLD, Instant::min)
        });
        let open = self.legs.iter().filter(|l| l.is_open() && !on(Bug::ResetHoldNoTimer));
        let reset = open.filter_map(|l| l.reset_at).map(|at| at + limits::RST_HOLD);
        reset.chain(fin).min()
    }

    /// Resets the client's connection: exactly at the next byte that it expects (RFC 5961 3).
    pub(super) fn reset_client(&mut self, cx: &mut Cx<'_>) {
        if self.visible.reset.is_some() {
            return;
        }
        let at = self.visible.fin.map_or(self.visible.released, |f| f + 1);
        let wrong = u64::from(on(Bug::ResetNotExact));
        self.send_client_reset(cx, self.visible.iss.at(at + wrong).raw());
        let mut open = self.legs.iter().filter(|leg| leg.is_open()).peekable();
        let has_servers = open.peek().is_some() && !self.is_orphaned();
        let by_servers = has_servers && open.all(|leg| leg.reset_at.is_some());
        cx.event(Event::FlowReset { flow: self.key, by_servers });
        self.visible.reset = Some(at);
        self.reset_legs(cx);
        self.close_after_reset(cx);
    }

    /// The client missed the reset, or did not take it: the number that it expects is its ack.
    pub(super) fn reset_client_again(&mut self, cx: &mut Cx<'_>, seg: &Segment) {
        let is_live = seg.flags.has(TcpFlags::ACK) && !seg.flags.has(TcpFlags::RST);
        let was_shown = self.visible.is_open || self.opener == Opener::Servers;
        if is_live && was_shown {
            self.send_client_reset(cx, seg.ack);
        }
    }

    pub(super) fn send_client_reset(&self, cx: &mut Cx<'_>, seq: u32) {
        let (l2, l3) = match self.leg_headers(self.primary) {
            Some(headers) => headers,
            None => {
                let (l2, l3) = self.client_headers();
                (l2.reversed(), l3.reversed())
            }
        };
        let fields = TcpFields {
            src_port: self.key.server.port(),
            dst_port: self.key.client.port(),
            seq,
            ack: 0,
            flags: TcpFlags::RST,
            window: 0,
            urgent: 0,
            options: TcpOptions::default(),
        };
        let l3 = cx.number(l3);
        cx.transmit(Link::Client, build::tcp(&l2, &l3, &fields, Bytes::new(), u16::MAX));
    }

    /// Resets every leg that is left.
    pub(super) fn reset_legs(&mut self, cx: &mut Cx<'_>) {
        for id in LegId::ALL {
            self.detach(cx, id);
        }
    }

    /// The flow is over; its constants stay a while for whoever missed the reset.
    pub(super) fn close_after_reset(&mut self, cx: &mut Cx<'_>) {
        let at = self.visible.released;
        self.visible.reset.get_or_insert(at);
        self.expires_at = cx.now + limits::RESET_KEPT;
        self.request.restart(Offset::START);
        self.shown.restart(self.visible.released);
        for leg in &mut self.legs {
            if leg.state == LegState::SynSent {
                leg.state = LegState::Scrub;
            }
        }
        self.set_state(cx, FlowState::TimeWait, None);
    }
}
