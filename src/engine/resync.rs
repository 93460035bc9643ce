//! Divergence -> sync request -> outcome: one in flight, coalesced, spaced, with a deadline.

use std::collections::VecDeque;

use super::event::Event;
use super::pack::fields;
use super::planted::{Bug, on};
use super::time::{Duration, Instant};
use super::{
    EngineConfig, Epoch, LegId, Output, SyncId, SyncReason, SyncRequest, SyncScope, SyncStep,
};

/// More syncs than this within [`STORM_WINDOW`] are a storm: flows go Solo at once and syncs are
/// spaced out.
const STORM_SYNCS: usize = 5;
const STORM_WINDOW: Duration = Duration::from_secs(10);
/// Distance of syncs in a storm, and of attempts after a failure.
const SPACED: Duration = Duration::from_secs(5);
/// How much longer than they may servers are excused that are kept from hearing.
const STILL_MARGIN: Duration = Duration::from_millis(250);

/// What the flows that wait should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on waiting.
    Wait,
    /// Release the primary's version.
    Resolve,
}

#[derive(Debug)]
struct Flight {
    id: SyncId,
    reason: SyncReason,
    from: LegId,
    to: LegId,
    started: Instant,
    deadline: Instant,
    is_overdue: bool,
    /// Source and target stand still, and the target's state is being replaced.
    is_frozen: bool,
    still: Option<Still>,
}

/// Nobody hears the servers, or they do not hear anybody.
#[derive(Clone, Copy, Debug)]
struct Still {
    since: Instant,
    /// How long that excuses them.
    until: Instant,
    is_overdue: bool,
}

/// What became of a sync's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Its connections are what they were.
    Kept,
    /// Its connections are the source's.
    Copied,
    /// It has lost everything.
    Lost,
}

/// A sync that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// The target.
    pub to: LegId,
    /// What it is now.
    pub target: Target,
    /// Since when both have stood still.
    pub still: Option<Instant>,
    /// The target was told nothing from some time on.
    pub was_frozen: bool,
}

/// The state of synchronization.
#[derive(Debug, Default)]
pub struct Resync {
    flight: Option<Flight>,
    /// Wanted, not before this time.
    wanted: Option<(Instant, SyncReason)>,
    ended_at: Option<Instant>,
    /// The last good sync, and when it ended.
    mended: Option<(SyncId, Instant)>,
    started: VecDeque<Instant>,
    last_id: u32,
    /// The backup's content is known to differ.
    is_stale: bool,
    has_failed: bool,
}

impl Resync {
    /// A sync under way.
    pub fn in_flight(&self) -> Option<SyncId> {
        self.flight.as_ref().map(|f| f.id)
    }

    /// The server that the sync under way is to make equal.
    pub fn target(&self) -> Option<LegId> {
        self.flight.as_ref().map(|f| f.to)
    }

    /// None is under way or planned.
    pub fn is_idle(&self) -> bool {
        self.flight.is_none() && self.wanted.is_none()
    }

    /// The server whose state is being replaced: nothing is said to it, and nothing of it counts.
    pub fn overwritten(&self) -> Option<LegId> {
        self.flight.as_ref().filter(|f| f.is_frozen).map(|f| f.to)
    }

    /// Since when the servers stand still for a sync, as long as that is waited for.
    pub fn still_since(&self) -> Option<Instant> {
        let still = self.flight.as_ref().and_then(|f| f.still);
        still.filter(|still| !still.is_overdue).map(|still| still.since)
    }

    /// The backup's content is known to differ: new flows do not pair.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// The last sync failed.
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Too many syncs lately.
    pub fn is_storm(&self, now: Instant) -> bool {
        let recent = self.started.iter().filter(|&&at| now.since(at) <= STORM_WINDOW).count();
        recent > STORM_SYNCS
    }

    /// A sync before which new flows must not pair (first sync, a returned server).
    pub fn is_initial(&self) -> bool {
        let initial = |r: &SyncReason| matches!(r, SyncReason::First | SyncReason::Rejoin);
        self.flight.as_ref().is_some_and(|f| initial(&f.reason))
            || self.wanted.as_ref().is_some_and(|(_, r)| initial(r))
    }

    /// Two answers differ to what the client asked at `asked_at`. If that was before the last good
    /// sync ended, that sync has mended what they differ in: one is enough for a burst.
    pub fn on_divergence(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        reason: SyncReason,
        asked_at: Instant,
        out: &mut VecDeque<Output>,
    ) -> Decision {
        match self.mended.filter(|&(_, at)| asked_at < at) {
            Some((id, _)) if self.flight.is_none() && self.wanted.is_none() => {
                out.push_back(Output::Event(Event::SyncCoalesced { id }));
                Decision::Resolve
            }
            _ => self.want(now, config, reason, out),
        }
    }

    /// Wants a sync; joins the one that is under way or planned.
    pub fn want(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        reason: SyncReason,
        out: &mut VecDeque<Output>,
    ) -> Decision {
        if config.sync_scope.is_none() {
            return Decision::Resolve;
        }
        if matches!(reason, SyncReason::First | SyncReason::Rejoin) {
            self.is_stale = true;
        }
        if self.is_storm(now) {
            self.is_stale = true;
            self.wanted.get_or_insert((now + SPACED, SyncReason::Periodic));
            return Decision::Resolve;
        }
        if let Some(flight) = &self.flight {
            out.push_back(Output::Event(Event::SyncCoalesced { id: flight.id }));
            return if flight.is_overdue { Decision::Resolve } else { Decision::Wait };
        }
        let gap = self.ended_at.map_or(now, |at| at + config.sync_min_gap);
        match &mut self.wanted {
            Some((at, _)) => *at = (*at).min(gap.max(now)),
            None => self.wanted = Some((gap.max(now), reason)),
        }
        Decision::Wait
    }

    /// The next thing to do by time.
    pub fn next_timer(&self) -> Option<Instant> {
        let in_time = |f: &&Flight| !f.is_overdue && !on(Bug::DivergedNoTimer);
        let flight = self.flight.as_ref().filter(in_time).map(|f| f.deadline);
        let still = self.flight.as_ref().and_then(|f| f.still);
        let still = still.filter(|still| !still.is_overdue).map(|still| still.until);
        let wanted = self.wanted.filter(|_| self.flight.is_none()).map(|(at, _)| at);
        flight.into_iter().chain(still).chain(wanted).min()
    }

    /// Starts what is due; tells whether waiting flows have waited long enough.
    pub fn on_time(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        roles: super::Roles,
        can_sync: bool,
        out: &mut VecDeque<Output>,
    ) -> Decision {
        if let Some(flight) = &mut self.flight {
            if let Some(still) = flight.still.as_mut().filter(|still| now >= still.until) {
                still.is_overdue = true;
            }
            if now >= flight.deadline && !flight.is_overdue && !on(Bug::DivergedNoTimer) {
                flight.is_overdue = true;
                self.is_stale = true;
                return Decision::Resolve;
            }
            return Decision::Wait;
        }
        let Some((at, reason)) = self.wanted else { return Decision::Wait };
        if now < at {
            return Decision::Wait;
        }
        self.wanted = None;
        // Without a target there is nothing to make equal; one that comes back asks by itself.
        if can_sync {
            self.start(now, config, roles, reason, out);
        }
        Decision::Wait
    }

    fn start(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        roles: super::Roles,
        reason: SyncReason,
        out: &mut VecDeque<Output>,
    ) {
        self.last_id += 1;
        let id = SyncId(self.last_id);
        let (from, to) = (roles.primary, roles.primary.other());
        let deadline = now + config.sync_deadline;
        self.started.push_back(now);
        if self.started.len() > 2 * STORM_SYNCS {
            self.started.pop_front();
        }
        let (is_overdue, is_frozen, still) = (false, false, None);
        let started = now;
        let flight =
            Flight { id, reason, from, to, started, deadline, is_overdue, is_frozen, still };
        self.flight = Some(flight);
        out.push_back(Output::Event(Event::SyncStarted { id, reason, from, to }));
        let epoch: Epoch = roles.epoch;
        out.push_back(Output::Sync(SyncRequest { id, epoch, from, to, reason, deadline }));
    }

    /// A backend reports; tells what came of the sync if that has ended. Reports about another sync
    /// are late, and ignored.
    pub fn on_step(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        id: SyncId,
        step: &SyncStep,
        out: &mut VecDeque<Output>,
    ) -> Option<Ended> {
        let is_machine = config.sync_scope == Some(SyncScope::Machine);
        let still = |until| Still { since: now, until, is_overdue: until <= now };
        if *step == SyncStep::Hushed {
            let flight = self.flight.as_mut().filter(|f| f.id == id && is_machine)?;
            flight.still.get_or_insert(still(now + config.sync_deadline + STILL_MARGIN));
            return None;
        }
        if *step == SyncStep::Frozen {
            let flight = self.flight.as_mut().filter(|f| f.id == id && is_machine)?;
            flight.is_frozen = true;
            flight.still.get_or_insert(still(flight.deadline));
            let (from, to) = (flight.from, flight.to);
            out.push_back(Output::Event(Event::SyncFrozen { id, from, to }));
            out.push_back(Output::Overwrite(id));
            return None;
        }
        let flight = self.flight.take_if(|f| f.id == id)?;
        let (target, message) = match step {
            SyncStep::TargetReady if !is_machine => (Target::Kept, ""),
            SyncStep::TargetReady if flight.is_frozen => (Target::Copied, ""),
            // What it still hears of an old connection would be taken for news of its new one.
            SyncStep::TargetReady | SyncStep::Frozen | SyncStep::Hushed => {
                (Target::Lost, "it was not frozen")
            }
            SyncStep::Failed { message } => (Target::Kept, message.as_str()),
            SyncStep::TargetLost { message } => (Target::Lost, message.as_str()),
        };
        let ok = *step == SyncStep::TargetReady && target != Target::Lost;
        let (took, message) = (now.since(flight.started), message.to_owned());
        out.push_back(Output::Event(Event::SyncEnded { id, ok, message, took }));
        self.ended_at = Some(now);
        if ok {
            self.mended = Some((id, now));
        }
        self.has_failed = !ok;
        self.is_stale = !ok;
        if !ok {
            self.wanted.get_or_insert((now + SPACED, SyncReason::Periodic));
        }
        let (still, was_frozen) = (flight.still.map(|still| still.since), flight.is_frozen);
        Some(Ended { to: flight.to, target, still, was_frozen })
    }

    /// The source or the target is gone: whatever is under way is worth nothing.
    pub fn cancel(&mut self, now: Instant, out: &mut VecDeque<Output>) -> Decision {
        self.wanted = None;
        let Some(flight) = self.flight.take() else { return Decision::Wait };
        out.push_back(Output::CancelSync(flight.id));
        let message = String::from("cancelled: a server failed");
        let took = now.since(flight.started);
        let id = flight.id;
        out.push_back(Output::Event(Event::SyncEnded { id, ok: false, message, took }));
        self.ended_at = Some(now);
        Decision::Resolve
    }

    /// Whether a new operator's sync can be taken.
    pub fn is_busy(&self) -> bool {
        self.flight.is_some()
    }
}

fields!(Still { since, until, is_overdue });
fields!(Flight { id, reason, from, to, started, deadline, is_overdue, is_frozen, still });
fields!(Resync { flight, wanted, ended_at, mended, started, last_id, is_stale, has_failed });
