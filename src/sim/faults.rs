//! Faults: when they are due, and what each does to the world.

use super::host::{Host, SERVICE};
use super::rng::mix;
use super::scenario::{Fault, Target, Trigger};
use super::track::FlowTrack;
use super::world::{Happening, SERVER_MAC, WARM_UP, World};
use crate::engine::{Command, FlowState, Input, LegId, Link, Signal};

impl World<'_> {
    pub fn schedule_faults(&mut self) {
        for (i, plan) in self.scenario.faults.iter().enumerate() {
            if let Trigger::At(us) = plan.trigger {
                self.at(WARM_UP + us * 1000, Happening::Fault(i));
            }
        }
    }

    /// Faults that wait for bytes at the clients.
    pub fn check_byte_triggers(&mut self) {
        if self.gateway.is_wire() || self.is_calm || !self.has_state_triggers {
            return;
        }
        let heard: usize = self.conns.iter().map(|c| c.verifier.heard()).sum();
        for i in 0..self.scenario.faults.len() {
            let is_due = matches!(self.scenario.faults[i].trigger, Trigger::Bytes(n) if heard >= n);
            if is_due && !self.fired[i] {
                self.at(self.now, Happening::Fault(i));
            }
        }
    }

    /// Both servers stand still.
    pub fn on_still(&mut self) {
        for i in 0..self.scenario.faults.len() {
            if self.scenario.faults[i].trigger == Trigger::Still && !self.is_calm {
                self.fire(i);
            }
        }
    }

    /// Faults that wait for a state of a flow.
    pub fn check_state_triggers(&mut self) {
        if !self.has_state_triggers {
            return;
        }
        for i in 0..self.scenario.faults.len() {
            if self.fired[i] {
                continue;
            }
            let trigger = self.scenario.faults[i].trigger;
            if self.oracle.flows.values().any(|flow| is_reached(trigger, flow)) {
                self.fire(i);
            }
        }
    }

    pub fn fire(&mut self, i: usize) {
        if self.fired[i] || self.gateway.is_wire() {
            return;
        }
        self.fired[i] = true;
        let plan = self.scenario.faults[i];
        let primary = self.gateway.primary();
        let leg = match plan.target {
            Target::Primary => primary,
            Target::Backup => primary.other(),
            Target::Leg(leg) => leg,
        };
        self.say(|| format!("fault {:?} at {leg:?} ({:?})", plan.fault, plan.trigger));
        self.apply(plan.fault, leg);
    }

    fn apply(&mut self, fault: Fault, leg: LegId) {
        let index = leg.index();
        let disturbs = !matches!(
            fault,
            Fault::Pause(_)
                | Fault::GatewayRestart(_)
                | Fault::GatewayStall(_)
                | Fault::Diverge
                | Fault::Rejoin
                | Fault::Sync
                | Fault::Failover { .. }
        );
        self.truth[index].is_faulted |= disturbs;
        if disturbs {
            self.gateway.lose(self.now, leg);
        }
        self.truth[index].is_dead |= fault.is_fatal() && !matches!(fault, Fault::Reboot(_));
        if fault.is_fatal() {
            self.spoil(leg);
        }
        let link = Link::Server(leg);
        let host = self.server_host(leg);
        match fault {
            Fault::Crash => self.truth[index].is_on = false,
            Fault::CarrierDown => {
                self.truth[index].is_on = false;
                self.input(Input::Signal(link, Signal::CarrierDown));
            }
            Fault::Exited => {
                self.truth[index].is_on = false;
                self.input(Input::Signal(link, Signal::Exited));
            }
            Fault::Kill => {
                self.servers[index].kill(&mut self.hosts[host]);
                self.servers[index].frozen_until = u64::MAX;
                self.serve(host);
            }
            Fault::KillWorker => {
                self.servers[index].kill_worker(&mut self.hosts[host]);
                self.serve(host);
            }
            Fault::Freeze(us) => {
                let until = if us == 0 { u64::MAX } else { self.now + us * 1000 };
                self.servers[index].frozen_until = until;
                if us > 0 {
                    self.at(until, Happening::HostWake(host));
                }
            }
            Fault::Reboot(us) => {
                self.truth[index].is_on = false;
                self.at(self.now + us * 1000, Happening::ServerUp(leg));
            }
            Fault::Partition { is_inbound, us } => {
                let way = usize::from(is_inbound);
                let until = self.now + us * 1000;
                self.pipes[link.index()][way].cut_until = until;
            }
            Fault::Diverge => self.servers[index].version = 1,
            Fault::Failover { is_planned } => {
                // The old primary of an unplanned one is fenced: as good as lost to its flows.
                self.truth[index].is_faulted |= !is_planned;
                self.command(Command::Failover { to: None, is_planned });
            }
            Fault::Rejoin => self.command(Command::Rejoin(leg)),
            Fault::Sync => self.command(Command::SyncNow),
            Fault::Pause(us) => {
                self.command(Command::Pause);
                self.at(self.now + us * 1000, Happening::Resume);
            }
            Fault::GatewayRestart(us) => self.stop_gateway(us),
            Fault::GatewayStall(us) => self.stall_gateway(us),
        }
    }

    pub fn resume(&mut self) {
        self.command(Command::Resume);
    }

    /// A server that rebooted is back: nothing is left of its connections.
    pub fn on_server_up(&mut self, leg: LegId) {
        self.say(|| format!("server {leg:?} is back"));
        self.renew(leg);
        self.truth[leg.index()].is_on = true;
        self.come(Link::Server(leg));
        self.serve(self.server_host(leg));
    }

    /// A server's machine begins anew, without a memory.
    pub fn renew(&mut self, leg: LegId) {
        let host = self.server_host(leg);
        let seed = mix(self.scenario.seed, 500 + self.now);
        let plan = &self.scenario.servers[leg.index()];
        self.hosts[host] = Host::new(&plan.stack, SERVER_MAC, SERVICE, seed, self.now);
        let server = &mut self.servers[leg.index()];
        server.forget();
        server.listen(&mut self.hosts[host]);
    }
}

fn is_reached(trigger: Trigger, flow: &FlowTrack) -> bool {
    let (p, b) = (flow.said(flow.primary), flow.said(flow.primary.other()));
    let is_paired = flow.state == FlowState::Paired;
    match trigger {
        Trigger::At(_) | Trigger::Bytes(_) | Trigger::Still => false,
        Trigger::PrimaryAhead => is_paired && p > b,
        Trigger::BackupAhead => is_paired && b > p,
        Trigger::InSpan => {
            is_paired && flow.open_span().is_some_and(|s| p.max(b) > s.start && p.min(b) < s.end)
        }
        Trigger::Handshake => {
            flow.state == FlowState::Opening && flow.legs.iter().any(|l| l.has_answered())
        }
        Trigger::FinHeld => flow.holds_fin(),
        Trigger::ZeroWindow => is_paired && flow.is_window_closed(),
        Trigger::Hole => LegId::ALL.iter().any(|&l| is_paired && flow.leg(l).said.has_hole(1)),
        Trigger::Wrap => is_paired && flow.holds_wrap(),
        Trigger::Lagging => flow.state == FlowState::Lagging,
        Trigger::Diverged => flow.state == FlowState::Diverged,
    }
}
