//! Roles and states of the servers: suspect -> fence -> promote -> rejoin. One a gateway.
//!
//! It sees no flow: the engine tells it facts about all flows and carries out its orders. The two
//! legs are symmetric; who is primary is data ([`Roles`]), and every change of it is an epoch.
//!
//! A server: Unknown -> Up <-> Unfit; any -> Failed -> Returning -> Up.

use std::collections::VecDeque;

use super::event::{DegradedReason, Event, Evidence, Finding, HeldWhy, ServerState, ServiceState};
use super::health::{Detector, Waiting};
use super::pack::fields;
use super::planted::{Bug, on};
use super::resync::{Decision, Resync};
use super::time::{Duration, Instant};
use super::{
    CommandError, EngineConfig, Epoch, Fence, LegId, Mode, Output, Record, Roles, SyncReason,
    SyncScope,
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A returned server has to be silent on old flows for this long, and its probes good for longer.
const QUIET: Duration = ms(1000);
const PROBATION: Duration = ms(3000);
const PROBATION_MAX: Duration = ms(60_000);
/// A server that was heard within this time is there, or between two probes at the latest.
const ALIVE: Duration = ms(1000);
/// One that returns has answered within this time, or the last probe.
const ANSWERED: Duration = ms(200);
/// How long both servers are waited for at the start.
const START_GRACE: Duration = ms(1000);
/// Share and time of lagging flows that make a backup unfit.
const UNFIT_PERCENT: u32 = 5;
const UNFIT_FLOWS_MIN: u32 = 3;
const UNFIT_AFTER: Duration = ms(1000);
/// Least distance of two promotions without hard evidence.
const PROMOTIONS_APART: Duration = ms(10_000);

/// The fence hook is tried again after this, doubling, if it failed.
const FENCE_PAUSE: Duration = ms(1000);
const FENCE_PAUSE_MAX: Duration = ms(60_000);

/// What the flows amount to at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Flows waiting for each server.
    pub waiting: [Waiting; 2],
    /// Flows in state Lagging.
    pub lagging: u32,
    /// Flows with two legs.
    pub paired: u32,
}

/// What the engine has to carry out on all flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `server` is not heard any more; the roles have changed already.
    Fail { server: LegId, finding: Finding, was_primary: bool },
    /// `server` is back: its old legs are reset.
    Returned(LegId),
    /// Equal flows change their primary.
    Swap(LegId),
    /// Diverged flows release the primary's version.
    Resolve,
}

#[derive(Clone, Copy, Debug)]
struct Probation {
    good_since: Option<Instant>,
    quiet_since: Instant,
}

/// The control side.
#[derive(Debug)]
pub struct Control {
    roles: Roles,
    states: [ServerState; 2],
    /// Why a server is surely not there: its link has no carrier, or its process has ended.
    down: [Option<Evidence>; 2],
    probation: [Option<Probation>; 2],
    wait: [Duration; 2],
    /// Since when a failed server has had the time to come back by itself.
    lost_at: [Option<Instant>; 2],
    /// Health.
    pub detector: Detector,
    /// Synchronization.
    pub resync: Resync,
    service: ServiceState,
    is_paused: bool,
    was_equal: bool,
    promotions: VecDeque<Instant>,
    fencing: Option<(Epoch, LegId, Finding)>,
    /// After a fence hook that failed: not again before, and how long the next pause is.
    fence_pause: Option<(Instant, Duration)>,
    told_held: Option<(LegId, Finding, HeldWhy)>,
    lag_since: Option<Instant>,
    started: Instant,
}

impl Control {
    /// Begins with nothing heard.
    pub fn new(config: &EngineConfig, now: Instant) -> Self {
        Self {
            roles: Roles { epoch: Epoch(0), primary: config.first_primary },
            states: [ServerState::Unknown; 2],
            down: [None; 2],
            probation: [None; 2],
            wait: [PROBATION; 2],
            lost_at: [None; 2],
            detector: Detector::new(now),
            resync: Resync::default(),
            service: ServiceState::Starting,
            is_paused: false,
            was_equal: false,
            promotions: VecDeque::new(),
            fencing: None,
            fence_pause: None,
            told_held: None,
            lag_since: None,
            started: now,
        }
    }

    /// Who is primary.
    pub fn roles(&self) -> Roles {
        self.roles
    }

    /// Takes over the roles of an earlier process, in which the servers were equal.
    pub fn restore(&mut self, roles: Roles) {
        self.roles = roles;
        self.was_equal = true;
    }

    /// Each server's state.
    pub fn states(&self) -> [ServerState; 2] {
        self.states
    }

    /// One server's state.
    pub fn state(&self, leg: LegId) -> ServerState {
        self.states[leg.index()]
    }

    /// The service's state.
    pub fn service(&self) -> ServiceState {
        self.service
    }

    /// Whether findings are not acted on.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Stops, or begins again, to act on findings.
    pub fn set_paused(&mut self, paused: bool) {
        self.is_paused = paused;
    }

    /// Whether frames of this server's flows are heard.
    pub fn is_heard(&self, leg: LegId) -> bool {
        let fenced = matches!(self.state(leg), ServerState::Failed | ServerState::Returning);
        !fenced || on(Bug::FencedLegHeard)
    }

    /// Whether each server could carry a flow alone.
    pub fn fit(&self) -> [bool; 2] {
        let overwritten = self.resync.overwritten();
        LegId::ALL.map(|leg| self.state(leg) == ServerState::Up && overwritten != Some(leg))
    }

    /// The legs of a new flow, the primary first; and whether the backup's content is stale.
    pub fn legs_for_new_flow(&self, now: Instant) -> (Vec<LegId>, bool) {
        // Right after the start a server that was not heard yet is asked all the same.
        let is_early = now.since(self.started) < START_GRACE;
        let there = |leg: LegId| {
            self.down[leg.index()].is_none()
                && match self.state(leg) {
                    ServerState::Up | ServerState::Unfit => true,
                    ServerState::Unknown => is_early,
                    ServerState::Failed | ServerState::Returning => false,
                }
        };
        let primary = self.roles.primary;
        let backup = primary.other();
        let mut legs = Vec::with_capacity(2);
        if self.state(primary) != ServerState::Failed {
            legs.push(primary);
        }
        let is_stale = self.resync.is_stale();
        if there(backup) && (!is_stale || on(Bug::StaleBackupPairs)) {
            legs.push(backup);
        }
        (legs, is_stale && there(backup))
    }

    fn set_state(&mut self, leg: LegId, to: ServerState, out: &mut VecDeque<Output>) {
        let from = self.states[leg.index()];
        if from != to {
            self.states[leg.index()] = to;
            out.push_back(Output::Event(Event::ServerChanged { server: leg, from, to }));
        }
    }

    /// A frame was heard on a server's link; `is_service` if it speaks for the service's address.
    pub fn on_heard(
        &mut self,
        now: Instant,
        leg: LegId,
        is_service: bool,
        out: &mut VecDeque<Output>,
    ) {
        self.detector.heard(now, leg);
        if is_service && self.state(leg) == ServerState::Unknown {
            self.set_state(leg, ServerState::Up, out);
        }
    }

    /// A frame of a returning server on an old flow: not quiet yet.
    pub fn on_old_flow(&mut self, now: Instant, leg: LegId) {
        if let Some(p) = &mut self.probation[leg.index()] {
            p.quiet_since = now;
        }
    }

    /// A link's carrier changed, or a process ended.
    pub fn on_signal(
        &mut self,
        now: Instant,
        leg: LegId,
        up: bool,
        evidence: Evidence,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) -> Vec<Order> {
        let down = &mut self.down[leg.index()];
        // A process that ends behind a dead line returns behind it: only the line clears that.
        let is_hidden = evidence == Evidence::Exited && down.is_some();
        *down = (!up).then(|| down.filter(|_| is_hidden).unwrap_or(evidence));
        if up {
            let health = self.detector.of(leg);
            health.neighbour.restart();
            health.syn.restart();
            self.lost_at[leg.index()] = self.lost_at[leg.index()].map(|_| now);
            return Vec::new();
        }
        self.detector.of(leg).heard_at = None;
        if !self.is_there(leg) {
            self.probation[leg.index()] = None;
            let is_target = self.resync.target() == Some(leg);
            let is_over = is_target && self.resync.cancel(now, out) == Decision::Resolve;
            return if is_over { vec![Order::Resolve] } else { Vec::new() };
        }
        self.on_finding(now, leg, Finding::H1(evidence), config, out)
    }

    /// Nobody says any more that the server's process has ended.
    pub fn on_running(&mut self, leg: LegId) {
        self.down[leg.index()].take_if(|down| *down == Evidence::Exited);
    }

    /// One judgement: findings, probation, fitness, service state.
    pub fn on_tick(
        &mut self,
        now: Instant,
        facts: Facts,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) -> Vec<Order> {
        let mut orders = Vec::new();
        for leg in LegId::ALL {
            self.probate(now, leg, config, out, &mut orders);
        }
        self.judge_fitness(now, facts, out);
        if config.mode == Mode::Protect || config.mode == Mode::Observe {
            for leg in LegId::ALL {
                orders.extend(self.judge(now, leg, facts, config, out));
            }
        }
        self.start_with_one(now, config, out, &mut orders);
        self.want_first_sync(now, config, out);
        self.want_copy(now, config, out);
        self.refresh_service(now, config, out);
        orders
    }

    /// Judges `leg` by what is known now.
    pub fn judge(
        &mut self,
        now: Instant,
        leg: LegId,
        facts: Facts,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) -> Vec<Order> {
        if !self.is_there(leg) {
            return Vec::new();
        }
        let is_primary = self.roles.primary == leg;
        let waiting = facts.waiting[leg.index()];
        // What was held when the carrier went stays true for as long as that is gone.
        let standing = self.down[leg.index()].map(Finding::H1);
        let is_still = self.resync.still_since().is_some(); // and so nobody speaks
        let judged = || match is_still {
            true => None,
            false => self.detector.judge(now, leg, is_primary, waiting, config.probe_every),
        };
        match standing.or_else(judged) {
            Some(finding) => self.on_finding(now, leg, finding, config, out),
            None => Vec::new(),
        }
    }

    /// A finding about `leg`: fail it if the other server can carry on.
    pub fn on_finding(
        &mut self,
        now: Instant,
        leg: LegId,
        finding: Finding,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) -> Vec<Order> {
        if leg != self.roles.primary {
            return self.fail(now, leg, finding, out);
        }
        let is_hard = matches!(finding, Finding::H1(_) | Finding::Operator);
        let is_overwritten = self.resync.overwritten() == Some(leg.other());
        let is_overwritten = is_overwritten && !on(Bug::OverwrittenPromoted);
        let held = if self.state(leg.other()) != ServerState::Up || is_overwritten {
            Some(HeldWhy::BackupUnfit)
        } else if finding != Finding::Operator && (self.is_paused || !config.failover_auto) {
            Some(HeldWhy::Manual)
        } else if !is_hard && self.is_flapping(now, config) {
            Some(HeldWhy::FlapBudget)
        } else {
            None
        };
        if let Some(why) = held {
            if self.told_held.replace((leg, finding, why)) != Some((leg, finding, why)) {
                out.push_back(Output::Event(Event::FindingHeld { server: leg, finding, why }));
            }
            return Vec::new();
        }
        match config.fence {
            Fence::None => {}
            Fence::Hook => {
                let epoch = Epoch(self.roles.epoch.0 + 1);
                out.push_back(Output::Fence { epoch, server: leg });
            }
            Fence::Required => {
                let epoch = Epoch(self.roles.epoch.0 + 1);
                let is_paused = self.fence_pause.is_some_and(|(until, _)| now < until);
                if self.fencing.is_none() && !is_paused {
                    self.fencing = Some((epoch, leg, finding));
                    out.push_back(Output::Fence { epoch, server: leg });
                }
                return Vec::new();
            }
        }
        self.fail(now, leg, finding, out)
    }

    /// The required fence hook ended.
    pub fn on_fenced(
        &mut self,
        now: Instant,
        epoch: Epoch,
        ok: bool,
        out: &mut VecDeque<Output>,
    ) -> Vec<Order> {
        let Some((_, leg, finding)) = self.fencing.take_if(|(e, ..)| *e == epoch) else {
            return Vec::new();
        };
        if !ok && !on(Bug::PromotedUnfenced) {
            let pause = self.fence_pause.map_or(FENCE_PAUSE, |(_, p)| (p * 2).min(FENCE_PAUSE_MAX));
            self.fence_pause = Some((now + pause, pause));
            let why = HeldWhy::FenceFailed;
            out.push_back(Output::Event(Event::FindingHeld { server: leg, finding, why }));
            return Vec::new();
        }
        self.fence_pause = None;
        if self.resync.overwritten() == Some(leg.other()) {
            return Vec::new(); // the finding comes again if it stands
        }
        self.fail(now, leg, finding, out)
    }

    fn is_flapping(&self, now: Instant, config: &EngineConfig) -> bool {
        let recent = self.promotions.iter().filter(|&&at| now.since(at) <= config.flap_window);
        let last = self.promotions.back().map(|&at| now.since(at));
        recent.count() >= config.flap_max as usize || last.is_some_and(|d| d < PROMOTIONS_APART)
    }

    fn fail(
        &mut self,
        now: Instant,
        server: LegId,
        finding: Finding,
        out: &mut VecDeque<Output>,
    ) -> Vec<Order> {
        let was_primary = self.roles.primary == server;
        self.roles.epoch.0 += 1;
        if was_primary {
            self.roles.primary = server.other();
            self.promotions.push_back(now);
            if self.promotions.len() > 16 {
                self.promotions.pop_front();
            }
        }
        self.told_held = None;
        self.fencing = None;
        self.set_state(server, ServerState::Failed, out);
        // A server that only looked alive comes back later each time.
        let wait = &mut self.wait[server.index()];
        *wait = match finding {
            Finding::H3 | Finding::H2 => (*wait * 2).min(PROBATION_MAX),
            _ => PROBATION,
        };
        self.probation[server.index()] = None;
        self.lost_at[server.index()] = Some(now);
        self.detector.servers[server.index()] = super::health::Health::default();
        out.push_back(Output::Persist(Record::Roles(self.roles)));
        // The flows move first: what the failed server said and nobody was shown stays unsaid.
        let mut orders = vec![Order::Fail { server, finding, was_primary }];
        if self.resync.cancel(now, out) == Decision::Resolve {
            orders.push(Order::Resolve);
        }
        orders
    }

    /// A failed server that answers its probes again is taken back as backup.
    fn probate(
        &mut self,
        now: Instant,
        leg: LegId,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
        orders: &mut Vec<Order>,
    ) {
        let state = self.state(leg);
        if !matches!(state, ServerState::Failed | ServerState::Returning) {
            return;
        }
        let is_up = self.down[leg.index()].is_none();
        let health = self.detector.of(leg);
        let fresh = ANSWERED.max(config.probe_every * 3 / 2);
        let heard = health.neighbour.answered_at.is_some_and(|at| now.since(at) <= fresh);
        let good = is_up && heard && !health.refuses_all();
        if state == ServerState::Failed {
            if good {
                let p = Probation { good_since: Some(now), quiet_since: now };
                self.probation[leg.index()] = Some(p);
                self.set_state(leg, ServerState::Returning, out);
                orders.push(Order::Returned(leg));
            }
            return;
        }
        let wait = self.wait[leg.index()];
        let Some(p) = &mut self.probation[leg.index()] else {
            return self.set_state(leg, ServerState::Failed, out);
        };
        p.good_since = if good { p.good_since.or(Some(now)) } else { None };
        let is_quiet = now.since(p.quiet_since) >= QUIET;
        if is_quiet && p.good_since.is_some_and(|since| now.since(since) >= wait) {
            self.take_back(now, leg, config, out);
        }
    }

    fn take_back(
        &mut self,
        now: Instant,
        leg: LegId,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) {
        self.readmit(now, leg, out);
        let _ = self.resync.want(now, config, SyncReason::Rejoin, out);
    }

    fn readmit(&mut self, now: Instant, leg: LegId, out: &mut VecDeque<Output>) {
        let health = self.detector.of(leg);
        if health.heard_at.is_none() {
            health.vouched_for(now); // from now on its silence counts, as if it had spoken
        }
        self.probation[leg.index()] = None;
        self.lost_at[leg.index()] = None;
        self.roles.epoch.0 += 1;
        self.set_state(leg, ServerState::Up, out);
        out.push_back(Output::Persist(Record::Roles(self.roles)));
        let epoch = self.roles.epoch;
        out.push_back(Output::Event(Event::Rejoined { epoch, server: leg }));
    }

    /// The machine of `leg` is a copy of the other one: whatever had become of it, it is there.
    pub fn on_copied(&mut self, now: Instant, leg: LegId, out: &mut VecDeque<Output>) {
        let is_lost = self.is_lost(leg);
        self.detector.of(leg).begin_anew();
        if is_lost {
            self.detector.of(leg).vouched_for(now);
            self.readmit(now, leg, out);
        }
    }

    /// The operator vouches for a failed server: no probation.
    pub fn rejoin(
        &mut self,
        now: Instant,
        leg: LegId,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) -> Result<Vec<Order>, CommandError> {
        match self.state(leg) {
            ServerState::Failed | ServerState::Returning if self.down[leg.index()].is_none() => {
                let was_failed = self.state(leg) == ServerState::Failed;
                self.wait[leg.index()] = PROBATION;
                self.take_back(now, leg, config, out);
                Ok(if was_failed { vec![Order::Returned(leg)] } else { Vec::new() })
            }
            ServerState::Failed | ServerState::Returning => Err(CommandError::NoPeer),
            _ => Err(CommandError::Already),
        }
    }

    /// The operator changes the primary.
    pub fn failover(
        &mut self,
        now: Instant,
        to: Option<LegId>,
        is_planned: bool,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) -> Result<Vec<Order>, CommandError> {
        let to = to.unwrap_or(self.roles.primary.other());
        if to == self.roles.primary {
            return Err(CommandError::Already);
        }
        if self.state(to) != ServerState::Up || self.resync.is_stale() {
            return Err(CommandError::NoPeer);
        }
        if self.resync.overwritten().is_some() {
            return Err(CommandError::Busy);
        }
        if !is_planned {
            return Ok(self.on_finding(now, to.other(), Finding::Operator, config, out));
        }
        if self.resync.is_busy() {
            return Err(CommandError::Busy);
        }
        self.roles.epoch.0 += 1;
        self.roles.primary = to;
        out.push_back(Output::Persist(Record::Roles(self.roles)));
        Ok(vec![Order::Swap(to)])
    }

    fn judge_fitness(&mut self, now: Instant, facts: Facts, out: &mut VecDeque<Output>) {
        let backup = self.roles.primary.other();
        let all = facts.paired + facts.lagging;
        let is_lagging = facts.lagging >= UNFIT_FLOWS_MIN
            && facts.lagging.saturating_mul(100) > all.saturating_mul(UNFIT_PERCENT);
        let since = *self.lag_since.get_or_insert(now);
        match (self.state(backup), is_lagging) {
            (ServerState::Up, true) if now.since(since) >= UNFIT_AFTER => {
                self.lag_since = Some(now);
                self.set_state(backup, ServerState::Unfit, out);
            }
            (ServerState::Unfit, false) if now.since(since) >= UNFIT_AFTER => {
                self.lag_since = Some(now);
                self.set_state(backup, ServerState::Up, out);
            }
            (ServerState::Up, true) | (ServerState::Unfit, false) => {}
            _ => self.lag_since = Some(now),
        }
    }

    /// The primary of the configuration never came, the other server did.
    fn start_with_one(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
        orders: &mut Vec<Order>,
    ) {
        let primary = self.roles.primary;
        let missing = self.state(primary) == ServerState::Unknown;
        let there = self.state(primary.other()) == ServerState::Up;
        if missing && there && now.since(self.started) >= START_GRACE {
            orders.extend(self.on_finding(now, primary, Finding::H2, config, out));
        }
    }

    /// Two servers that were never made equal: the first sync.
    fn want_first_sync(&mut self, now: Instant, config: &EngineConfig, out: &mut VecDeque<Output>) {
        if !self.was_equal && self.has_both() {
            self.was_equal = true;
            out.push_back(Output::Persist(Record::Roles(self.roles)));
            let _ = self.resync.want(now, config, SyncReason::First, out);
        }
    }

    /// A failed server that does not come back by itself is made a copy of the other one.
    fn want_copy(&mut self, now: Instant, config: &EngineConfig, out: &mut VecDeque<Output>) {
        let (primary, backup) = (self.roles.primary, self.roles.primary.other());
        let wait = self.wait[backup.index()] * 2;
        let is_due = self.lost_at[backup.index()].is_some_and(|at| now.since(at) >= wait);
        let is_wanted = is_due && self.is_lost(backup) && self.resync.is_idle();
        if is_wanted && self.is_alive(now, primary, config) && self.can_sync(config) {
            let _ = self.resync.want(now, config, SyncReason::Rejoin, out);
        }
    }

    fn is_there(&self, leg: LegId) -> bool {
        matches!(self.state(leg), ServerState::Up | ServerState::Unfit)
    }

    fn is_lost(&self, leg: LegId) -> bool {
        matches!(self.state(leg), ServerState::Failed | ServerState::Returning)
    }

    /// Both servers take part.
    pub fn has_both(&self) -> bool {
        LegId::ALL.into_iter().all(|leg| self.is_there(leg))
    }

    /// There is a source for a sync, and a target. One of scope Machine puts a new machine in the
    /// place of the target: it need not take part, if only its link and its process are there.
    pub fn can_sync(&self, config: &EngineConfig) -> bool {
        let (primary, backup) = (self.roles.primary, self.roles.primary.other());
        let is_replaced = config.sync_scope == Some(SyncScope::Machine);
        let may_be_lost = is_replaced && self.down[backup.index()].is_none();
        self.has_both() || self.is_there(primary) && self.is_lost(backup) && may_be_lost
    }

    fn is_alive(&self, now: Instant, leg: LegId, config: &EngineConfig) -> bool {
        let heard = self.detector.servers[leg.index()].heard_at;
        let fresh = ALIVE.max(config.probe_every * 3 / 2);
        self.down[leg.index()].is_none() && heard.is_some_and(|at| now.since(at) <= fresh)
    }

    /// Whether a server refuses connections to some port, and so nobody protects them there.
    fn is_some_port_refused(&self) -> bool {
        self.detector.refused_ports().iter().any(|ports| !ports.is_empty())
    }

    /// Says what the service is now.
    pub fn refresh_service(
        &mut self,
        now: Instant,
        config: &EngineConfig,
        out: &mut VecDeque<Output>,
    ) {
        let backup = self.roles.primary.other();
        let never = self.states.iter().all(|&s| s == ServerState::Unknown);
        let to = if never {
            ServiceState::Starting
        } else if !LegId::ALL.into_iter().any(|l| self.is_alive(now, l, config))
            && (self.resync.still_since().is_none() || on(Bug::StillIsDown))
        {
            ServiceState::Down
        } else {
            match self.state(backup) {
                _ if config.mode != Mode::Protect => ServiceState::Degraded(DegradedReason::Mode),
                ServerState::Unknown if now.since(self.started) < START_GRACE => {
                    ServiceState::Starting
                }
                ServerState::Unknown | ServerState::Failed => {
                    ServiceState::Degraded(DegradedReason::OneServer)
                }
                ServerState::Returning => ServiceState::Degraded(DegradedReason::Returning),
                _ if self.resync.is_initial() => ServiceState::Syncing,
                _ if self.resync.is_storm(now) => ServiceState::Degraded(DegradedReason::Storm),
                _ if self.resync.has_failed() => ServiceState::Degraded(DegradedReason::SyncFailed),
                ServerState::Unfit => ServiceState::Degraded(DegradedReason::BackupUnfit),
                ServerState::Up if self.is_paused => ServiceState::Degraded(DegradedReason::Paused),
                ServerState::Up if self.is_some_port_refused() => {
                    ServiceState::Degraded(DegradedReason::Refused)
                }
                ServerState::Up if self.detector.unanswering(now).contains(&true) => {
                    ServiceState::Degraded(DegradedReason::Unanswered)
                }
                ServerState::Up => ServiceState::Protected,
            }
        };
        let from = self.service;
        if from != to {
            self.service = to;
            out.push_back(Output::Event(Event::ServiceChanged { from, to }));
        }
    }
}

fields!(Probation { good_since, quiet_since });
fields!(Control {
    roles,
    states,
    down,
    probation,
    wait,
    lost_at,
    detector,
    resync,
    service,
    is_paused,
    was_equal,
    promotions,
    fencing,
    fence_pause,
    told_held,
    lag_since,
    started,
});
