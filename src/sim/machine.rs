//! A sync backend of scope Machine: both servers stand still, and one becomes a copy of the other,
//! connections and all.
//!
//! It keeps a backend's promises: what the source has said is heard before the freeze is told, the
//! target is not touched before the engine allows it, and nothing that was on its way to the old
//! target, or from it, arrives afterwards. Before the freeze it may let both go on for a while
//! without hearing anybody, as long as a sync may take.

use std::collections::VecDeque;

use super::rng::mix;
use super::scenario::SyncEnd;
use super::world::{Happening, Truth, WARM_UP, World};
use crate::engine::{Input, LegId, Link, SyncId, SyncReason, SyncRequest, SyncStep};

/// A step that comes while the gateway does not run waits so long (ns).
const AGAIN: u64 = 1_000_000;

/// A sync under way.
#[derive(Clone, Copy, Debug)]
struct Copying {
    id: SyncId,
    /// When it was asked for.
    begun: u64,
    from: LegId,
    to: LegId,
    end: SyncEnd,
    is_still: bool,
    may_overwrite: bool,
}

/// The backend.
#[derive(Debug, Default)]
pub(super) struct Backend {
    copying: Option<Copying>,
    /// Frames at the doors.
    waiting: [VecDeque<Vec<u8>>; 2],
    syncs: usize,
    /// A target that was lost because nobody waited for its sync any more, and when (ns).
    abandoned: Option<(LegId, u64)>,
}

impl Backend {
    /// A frame for a server that stands still, or hears nothing. The target's is not for what it
    /// will be.
    pub fn wait(&mut self, leg: LegId, frame: Vec<u8>) {
        if self.copying.is_some_and(|c| c.from == leg || !c.is_still) {
            self.waiting[leg.index()].push_back(frame);
        }
    }

    /// Whether `leg` is lost since `now`, half overwritten.
    pub fn has_abandoned(&self, leg: LegId, now: u64) -> bool {
        self.abandoned == Some((leg, now))
    }

    /// Whether a sync was asked for before `at`, and goes on.
    pub fn has_begun_before(&self, at: u64) -> bool {
        self.copying.is_some_and(|copying| copying.begun < at)
    }

    fn of(&self, id: SyncId) -> Option<Copying> {
        self.copying.filter(|c| c.id == id)
    }
}

impl World<'_> {
    pub fn begin_copy(&mut self, request: &SyncRequest, us: u64) {
        let ends = self.scenario.machine().map_or(&[][..], |plan| &plan.ends);
        let end = match request.reason {
            SyncReason::First => SyncEnd::Copied,
            _ => {
                self.backend.syncs += 1;
                let nth = (self.backend.syncs - 1) % ends.len().max(1);
                ends.get(nth).copied().unwrap_or(SyncEnd::Copied)
            }
        };
        let (id, from, to) = (request.id, request.from, request.to);
        let (begun, is_still, may_overwrite) = (self.now, false, false);
        self.backend.copying = Some(Copying { id, begun, from, to, end, is_still, may_overwrite });
        let hush_us = self.scenario.machine().map_or(0, |plan| plan.hush_us);
        if hush_us > 0 {
            self.at(self.now + us * 1000, Happening::Hush(id));
        }
        self.at(self.now + (us + hush_us) * 1000, Happening::Freeze(id));
    }

    /// Neither hears anything any more.
    pub fn hush(&mut self, id: SyncId) {
        let Some(copying) = self.backend.of(id) else { return };
        if self.gateway.is_stalled() {
            return; // it begins with the freeze
        }
        for leg in [copying.from, copying.to] {
            self.truth[leg.index()].is_hushed = true;
        }
        self.say(|| "neither server hears anything".into());
        self.oracle.on_hushed();
        self.input(Input::SyncStep(id, SyncStep::Hushed));
    }

    /// Both servers are stopped. What the source has said before arrives first.
    pub fn freeze(&mut self, id: SyncId) {
        let Some(copying) = self.backend.of(id) else { return };
        let (from, to) = (copying.from, copying.to);
        if ![from, to].iter().all(|l| self.truth[l.index()].is_on) {
            self.release();
            return self.input(Input::SyncStep(id, failed()));
        }
        for leg in [from, to] {
            self.truth[leg.index()].is_still = true;
        }
        self.cut(to);
        if let Some(copying) = &mut self.backend.copying {
            copying.is_still = true;
        }
        self.say(|| "both servers stand still".into());
        self.at(self.heard_by(from), Happening::Frozen(id));
    }

    pub fn on_frozen(&mut self, id: SyncId) {
        if self.backend.of(id).is_none() {
            return;
        }
        if self.gateway.is_stalled() {
            return self.at(self.now + AGAIN, Happening::Frozen(id));
        }
        self.input(Input::SyncStep(id, SyncStep::Frozen));
        if self.now >= WARM_UP {
            self.on_still();
        }
    }

    pub fn overwrite(&mut self, id: SyncId) {
        if let Some(copying) = self.backend.copying.as_mut().filter(|c| c.id == id) {
            copying.may_overwrite = true;
            let still_us = self.scenario.machine().map_or(0, |plan| plan.still_us);
            self.at(self.now + still_us * 1000, Happening::Copy(id));
        }
    }

    pub fn end_copy(&mut self, id: SyncId) {
        let Some(copying) = self.backend.of(id) else { return };
        if self.gateway.is_stalled() {
            return self.at(self.now + AGAIN, Happening::Copy(id));
        }
        let step = match copying.end {
            SyncEnd::Copied => {
                self.copy(copying.from, copying.to);
                SyncStep::TargetReady
            }
            SyncEnd::Kept => failed(),
            SyncEnd::Lost => {
                self.lose(copying.to);
                SyncStep::TargetLost { message: "by plan".into() }
            }
        };
        self.say(|| format!("the sync ends: {step:?}"));
        self.input(Input::SyncStep(id, step));
        self.release();
    }

    fn copy(&mut self, from: LegId, to: LegId) {
        let (source, target) = (self.server_host(from), self.server_host(to));
        let salt = mix(self.scenario.seed, self.now);
        let Some(copy) = self.hosts[source].copy(salt) else { return };
        self.hosts[target] = copy;
        self.cut(to); // what is under way is for the generation before
        self.backend.waiting[to.index()].clear();
        let source = self.servers[from.index()].clone();
        self.servers[to.index()].copy(&source);
        let is_cut = self.pipes[1 + to.index()].iter().any(|p| p.cut_until > self.now);
        let Truth { is_dead, is_faulted, .. } = self.truth[from.index()];
        let truth = &mut self.truth[to.index()];
        (truth.is_dead, truth.is_faulted) = (is_dead, is_faulted || is_cut);
    }

    fn lose(&mut self, leg: LegId) {
        self.truth[leg.index()].is_faulted = true;
        self.backend.waiting[leg.index()].clear();
        self.renew(leg);
    }

    /// Whoever stands still goes on; the source finds at its door what came meanwhile.
    fn release(&mut self) {
        if self.backend.copying.take().is_none() {
            return;
        }
        for leg in LegId::ALL {
            let truth = &mut self.truth[leg.index()];
            (truth.is_still, truth.is_hushed) = (false, false);
        }
        for leg in LegId::ALL {
            for frame in std::mem::take(&mut self.backend.waiting[leg.index()]) {
                self.at_hosts(Link::Server(leg), frame);
            }
            self.serve(self.server_host(leg));
        }
    }

    /// The engine does not wait for the sync any more. What may have been overwritten is lost.
    pub fn cancel_copy(&mut self, id: SyncId) {
        if let Some(copying) = self.backend.of(id) {
            self.backend.abandoned = copying.may_overwrite.then_some((copying.to, self.now));
            self.give_up_copy();
        }
    }

    /// The backend ends with the gateway's process.
    pub fn give_up_copy(&mut self) {
        let Some(copying) = self.backend.copying else { return };
        if copying.may_overwrite {
            self.lose(copying.to);
        }
        self.release();
    }

    /// A server dies. While it stands still its part in the sync is over.
    pub fn spoil(&mut self, leg: LegId) {
        if let Some(copying) = self.backend.copying.as_mut().filter(|c| c.is_still) {
            copying.end = match leg == copying.to {
                true => SyncEnd::Lost,
                false => SyncEnd::Kept,
            };
        }
    }
}

fn failed() -> SyncStep {
    SyncStep::Failed { message: "by plan".into() }
}
