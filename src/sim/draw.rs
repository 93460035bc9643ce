//! How a seed becomes a scenario. The drawing may change; what a case file holds stays.

use super::model::habits::Habits;
use super::rng::{Rng, mix};
use super::scenario::{
    Close, ConnPlan, Fault, FaultPlan, GatewayPlan, MachinePlan, PipePlan, RequestPlan, Returned,
    Scenario, Seen, ServerPlan, StackPlan, SyncEnd, Target, Trigger,
};
use crate::engine::{Fence, LagPolicy, LegId};

/// Scenarios with hosts on the model, per mille.
const MODELS: u64 = 500;
/// Every segment may be followed by one of the gateway's own, and each server is probed.
const COST_MAX: (u64, u64) = (2, 250);

impl Scenario {
    /// The scenario of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut scenario = Self::on_smoltcp(seed);
        // Chance of its own, so that everything else stays what it is on smoltcp alone.
        let mut rng = Rng::new(mix(seed, 0x0de1));
        let has_models = rng.chance(MODELS);
        let clients = scenario.clients.iter_mut();
        for stack in clients.chain(scenario.servers.iter_mut().map(|s| &mut s.stack)) {
            if has_models && rng.chance(600) {
                stack.model = Some(Habits::draw(&mut rng));
            } else if let Some((first, _)) = stack.timestamps.as_mut().filter(|_| rng.chance(500)) {
                *first = rng.next() as u32;
            }
        }
        seldom(&mut scenario, Rng::new(mix(seed, 0x0de2)));
        machine(&mut scenario, Rng::new(mix(seed, 0x0de3)));
        tokens(&mut scenario, Rng::new(mix(seed, 0x0de4)));
        cookies(&mut scenario, Rng::new(mix(seed, 0x0de5)));
        reprotect(&mut scenario, Rng::new(mix(seed, 0x0de6)));
        scenario
    }

    /// The scenario of `seed` with every host on smoltcp.
    pub fn on_smoltcp(seed: u64) -> Self {
        Builder { rng: Rng::new(seed), seed }.build()
    }
}

/// Chances of what only few seeds have, per mille each.
const SELDOM: u64 = 20;

/// What is drawn in few seeds: it costs time, or leaves little room for anything else to go wrong.
fn seldom(scenario: &mut Scenario, mut rng: Rng) {
    let rng = &mut rng;
    habits(scenario, rng);
    let pick = |rng: &mut Rng| (rng.below(3) as usize, rng.below(2) as usize);
    if rng.chance(SELDOM) {
        let (link, way) = pick(rng);
        scenario.links[link][way].truncate = rng.range(1, 50);
    }
    if rng.chance(SELDOM) {
        let (link, way) = pick(rng);
        scenario.links[link][way].mark = rng.range(1, 500);
    }
    if rng.chance(SELDOM) {
        let (link, way) = pick(rng);
        scenario.links[link][way].loss = rng.range(100, 300);
    }
    if rng.chance(SELDOM) {
        let (link, way) = pick(rng);
        scenario.links[link][way].delay_us = rng.range(20_000, 500_000);
    }
    if rng.chance(4 * SELDOM) {
        scenario.links[1 + rng.below(2) as usize][0].alter = rng.range(20, 200);
    }
    // smoltcp does not hear what routers say.
    let has_ears = scenario.servers.iter().all(|s| s.stack.model.is_some());
    if has_ears && rng.chance(8 * SELDOM) {
        scenario.links[0][1].mtu = Some(rng.pick(&[576, 1000, 1280, 1400]));
    }
    if rng.chance(SELDOM) {
        crowd(scenario, rng);
    }
}

/// Scenarios whose servers have values of their own length, per mille.
const TOKENS: u64 = 400;

/// Values that each server says at a length of its own. (A machine that is copied has the other's
/// in what it was about to say.)
fn tokens(scenario: &mut Scenario, mut rng: Rng) {
    if scenario.machine().is_some() || !rng.chance(TOKENS) {
        return;
    }
    let always = rng.chance(500);
    let mut len = || rng.pick(&[1, 1, 2, 3, 8, 30, 200]);
    for conn in scenario.conns.iter_mut().filter(|c| c.is_http) {
        for request in &mut conn.requests {
            let token = (len(), len());
            request.token = Some(token).filter(|_| always || request.content % 2 == 0);
        }
    }
}

/// Scenarios whose servers set cookies that clients return, per mille.
const COOKIES: u64 = 300;

/// Cookies that each server sets for itself, and clients return on this connection and on others.
/// (Neither where bad memory makes other ones of them, nor where machines are copied.)
fn cookies(scenario: &mut Scenario, mut rng: Rng) {
    let rng = &mut rng;
    let is_altered = scenario.links.iter().flatten().any(|pipe| pipe.alter > 0);
    // Urgent bytes that end inside of a replaced value end where that does.
    let habits = scenario.clients.iter().filter_map(|stack| stack.model.as_ref());
    let is_urgent = habits.into_iter().any(|habits| habits.urgent_at.is_some());
    if is_altered || is_urgent || scenario.machine().is_some() || !rng.chance(COOKIES) {
        return;
    }
    let mut jar: Vec<(usize, Returned)> = Vec::new();
    for conn in scenario.conns.iter_mut().filter(|c| c.is_http) {
        for (number, request) in conn.requests.iter_mut().enumerate() {
            let own: Vec<_> = jar.iter().filter(|(client, _)| *client == conn.client).collect();
            if !own.is_empty() && rng.chance(850) {
                request.returned = Some(rng.pick(&own).1);
            }
            if rng.chance(600) {
                let len = match rng.chance(500) {
                    true => {
                        let len = rng.pick(&[1, 2, 8, 26, 26, 200]);
                        (len, len)
                    }
                    false => (rng.pick(&[8, 26, 26, 200]), rng.pick(&[8, 26, 200])),
                };
                request.cookie = Some(len);
                let (by, content) = ((conn.id, number as u16), request.content);
                jar.push((conn.client, Returned { by, len, content }));
            }
        }
    }
}

/// Scenarios that take connections under protection again, per mille, and those of them that are
/// about that.
const REPROTECT: (u64, u64) = (400, 500);

/// Servers that are lost and come back, and connections that live to see it.
fn reprotect(scenario: &mut Scenario, mut rng: Rng) {
    let rng = &mut rng;
    scenario.gateway.reprotect = rng.chance(REPROTECT.0);
    let is_free = scenario.gateway.machine.is_none() && scenario.gateway.reprotect;
    if !is_free || !rng.chance(REPROTECT.1) {
        return;
    }
    for conn in &mut scenario.conns {
        conn.is_http |= rng.chance(700);
        let like = conn.requests.clone();
        while conn.requests.len() < 5 {
            let plain = RequestPlan { cookie: None, returned: None, ..one_of(&like, rng) };
            conn.requests.push(plain);
        }
        let is_busy = rng.chance(500);
        for request in &mut conn.requests {
            request.pause_us = match is_busy {
                true => rng.pick(&[0, 2_000, 5_000, 10_000]),
                false => rng.pick(&[1_000, 20_000, 100_000, 200_000, 300_000]),
            };
        }
        if is_busy {
            let like = conn.requests.clone();
            for request in like.iter().cycle().take(3 * like.len()) {
                let plain = RequestPlan { cookie: None, returned: None, ..request.clone() };
                conn.requests.push(plain);
            }
        }
        conn.pipeline = rng.pick(&[1, 1, 1, 2]);
        let is_first = conn.after.is_none();
        conn.start_us = if is_first { rng.pick(&[0, 500, 20_000, 200_000]) } else { conn.start_us };
    }
    let gateway = &mut scenario.gateway;
    gateway.is_fence_good = true;
    if rng.chance(700) {
        gateway.sync = None; // after one that fails nothing pairs for a while
    }
    scenario.faults = reprotect_faults(rng);
    let last = scenario.faults.iter().filter_map(|f| match f.trigger {
        Trigger::At(us) => Some(us),
        _ => None,
    });
    scenario.calm_us = last.max().unwrap_or(0) + rng.range(300_000, 800_000);
}

fn reprotect_faults(rng: &mut Rng) -> Vec<FaultPlan> {
    let mut faults = Vec::new();
    let mut add = |at: u64, target, fault| {
        faults.push(FaultPlan { trigger: Trigger::At(at), target, fault });
    };
    let mut at = rng.range(5_000, 300_000);
    if rng.chance(100) {
        let leg = Target::Leg(rng.pick(&LegId::ALL));
        add(rng.pick(&[0, 30_000]), leg, Fault::Diverge);
    }
    for _ in 0..rng.range(1, 3) {
        match rng.below(4) {
            0 | 1 => {
                let target = if rng.chance(800) { Target::Primary } else { Target::Backup };
                add(at, target, Fault::Reboot(rng.pick(&[10_000, 50_000, 100_000])));
                at += rng.range(130_000, 300_000);
                add(at, Target::Backup, Fault::Rejoin);
            }
            2 => {
                add(at, Target::Primary, Fault::Failover { is_planned: false });
                at += rng.range(20_000, 100_000);
                add(at, Target::Backup, Fault::Rejoin);
            }
            _ => add(at, Target::Backup, Fault::KillWorker),
        }
        // Some die while flows ask.
        at += rng.pick(&[100, 1_000, 10_000, 50_000, 250_000, 600_000]) + rng.range(0, 3_000);
    }
    let target = if rng.chance(800) { Target::Primary } else { Target::Backup };
    let fault = match rng.below(10) {
        0..=2 => Fault::CarrierDown,
        3 => Fault::Exited,
        4 => Fault::Kill,
        5 => Fault::Crash,
        6 => Fault::Failover { is_planned: false },
        7 => Fault::GatewayRestart(rng.pick(&[0, 5_000])),
        8 => Fault::GatewayStall(rng.pick(&[20_000, 200_000])),
        _ => Fault::Failover { is_planned: true },
    };
    faults.push(FaultPlan { trigger: Trigger::At(at), target, fault });
    faults
}

/// Scenarios whose syncs copy whole machines, per mille.
const MACHINES: u64 = 60;

/// Both servers on the model, connections that live for a while, and faults and syncs in turn.
fn machine(scenario: &mut Scenario, mut rng: Rng) {
    let rng = &mut rng;
    if !rng.chance(MACHINES) {
        return;
    }
    for server in &mut scenario.servers {
        let draw = || Habits::draw(rng);
        server.stack.model.get_or_insert_with(draw);
    }
    for conn in &mut scenario.conns {
        let like = conn.requests.clone();
        while conn.requests.len() < 4 {
            conn.requests.push(one_of(&like, rng));
        }
        for request in &mut conn.requests {
            request.pause_us = rng.pick(&[0, 1_000, 20_000, 100_000, 300_000]);
        }
        conn.pipeline = rng.pick(&[1, 1, 2]);
        let is_first = conn.after.is_none();
        conn.start_us = if is_first { rng.pick(&[0, 500, 20_000, 200_000]) } else { conn.start_us };
    }
    let gateway = &mut scenario.gateway;
    gateway.is_fence_good = true;
    gateway.sync = Some((rng.pick(&[0, 1_000, 20_000]), true));
    let mut ends = vec![SyncEnd::Copied; 3];
    if rng.chance(300) {
        ends[rng.below(2) as usize] = rng.pick(&[SyncEnd::Kept, SyncEnd::Lost]);
    }
    let still_us = rng.pick(&[200, 200, 200, 3_000, 20_000, 120_000, 1_200_000]);
    let hush_us = if rng.chance(400) { rng.pick(&[500, 20_000, 700_000]) } else { 0 };
    gateway.machine = Some(MachinePlan { hush_us, still_us, ends });
    scenario.faults = machine_faults(rng);
    let last = scenario.faults.iter().filter_map(|f| match f.trigger {
        Trigger::At(us) => Some(us),
        _ => None,
    });
    scenario.calm_us = last.max().unwrap_or(0) + rng.range(300_000, 800_000);
}

fn machine_faults(rng: &mut Rng) -> Vec<FaultPlan> {
    let mut faults = Vec::new();
    let mut add = |at: u64, target, fault| {
        faults.push(FaultPlan { trigger: Trigger::At(at), target, fault });
    };
    let mut at = rng.range(5_000, 150_000);
    if rng.chance(300) {
        let leg = Target::Leg(rng.pick(&LegId::ALL));
        add(rng.pick(&[0, 30_000]), leg, Fault::Diverge);
    }
    for _ in 0..rng.range(1, 2) {
        match rng.below(4) {
            // A server is lost, comes back, and is made equal again.
            0 => {
                let target = if rng.chance(800) { Target::Primary } else { Target::Backup };
                add(at, target, Fault::Reboot(rng.pick(&[50_000, 100_000])));
                at += rng.range(250_000, 400_000);
                add(at, Target::Backup, Fault::Rejoin);
            }
            1 => {
                add(at, Target::Primary, Fault::Failover { is_planned: false });
                at += rng.range(20_000, 100_000);
                add(at, Target::Backup, Fault::Rejoin);
            }
            2 => add(at, Target::Primary, Fault::Failover { is_planned: true }),
            _ => add(at, Target::Backup, Fault::Sync),
        }
        at += rng.pick(&[10_000, 50_000, 250_000]) + rng.range(0, 50_000);
    }
    // What has been made equal has to be worth something.
    let mut trigger = Trigger::At(at);
    if rng.chance(200) {
        trigger = Trigger::Still;
    }
    let target = if rng.chance(850) { Target::Primary } else { Target::Backup };
    let has_swapped = faults.iter().any(|f| f.fault == Fault::Failover { is_planned: true });
    let fault = match rng.below(10) {
        0..=2 => Fault::CarrierDown,
        3 => Fault::Exited,
        4 => Fault::Kill,
        5 => Fault::Crash,
        6 => Fault::Failover { is_planned: false },
        // A process that begins inside a masked value does not know that, and may go on with the
        // other server's if that has become the primary meanwhile.
        7 if !has_swapped => Fault::GatewayRestart(rng.pick(&[0, 5_000])),
        8 => Fault::GatewayStall(rng.pick(&[20_000, 200_000])),
        _ => Fault::Failover { is_planned: true },
    };
    faults.push(FaultPlan { trigger, target, fault });
    faults
}

/// Urgent data is drawn where nobody says more than this: the pieces of a frame that is cut repeat
/// its urgent pointer.
const URGENT_BYTES_MAX: u32 = 450;

/// Habits of hosts on the model.
fn habits(scenario: &mut Scenario, rng: &mut Rng) {
    let is_short = |c: &ConnPlan| {
        c.requests.iter().map(|r| 100 + r.download.max(r.upload)).sum::<u32>() < URGENT_BYTES_MAX
    };
    let may_urge = scenario.conns.iter().all(is_short);
    let urgent = |rng: &mut Rng| {
        let at = rng.skewed(2, 300);
        (may_urge && rng.chance(800)).then_some(at)
    };
    let of_servers = urgent(rng);
    let clients = scenario.clients.iter_mut().map(|s| (s, false));
    let servers = scenario.servers.iter_mut().map(|s| (&mut s.stack, true));
    let hosts = clients.chain(servers);
    for (habits, is_server) in hosts.filter_map(|(s, is)| Some((s.model.as_mut()?, is))) {
        habits.super_bytes = rng.pick(&[0, 0, 0, 8_000, 64_000]);
        habits.offers_ecn = rng.chance(200);
        habits.has_cookies = is_server && rng.chance(150);
        // Equal servers say the same.
        habits.urgent_at = if is_server { of_servers } else { urgent(rng) };
    }
}

/// Up to eight clients, each with a connection of its own.
fn crowd(scenario: &mut Scenario, rng: &mut Rng) {
    let clients = 3 + rng.below(6) as usize;
    while scenario.clients.len() < clients {
        let (client, id) = (scenario.clients.len(), scenario.conns.len() as u16);
        scenario.clients.push(one_of(&scenario.clients, rng));
        let like = one_of(&scenario.conns, rng);
        let start_us = rng.range(0, 60_000);
        let (port, after) = (40_000 + id * 7, None);
        scenario.conns.push(ConnPlan { id, client, port, start_us, after, ..like });
    }
}

fn one_of<T: Clone>(of: &[T], rng: &mut Rng) -> T {
    of[rng.below(of.len() as u64) as usize].clone()
}

struct Builder {
    rng: Rng,
    seed: u64,
}

/// Shapes that the state triggers need, so that the state comes up.
#[derive(Clone, Copy, Debug, Default)]
struct Bias {
    is_http: bool,
    has_split_head: bool,
    has_loss: bool,
    has_slow: Option<usize>,
    has_wrap: bool,
    has_read_pause: bool,
    has_freeze_first: bool,
    has_divergence: bool,
    has_server_close: bool,
}

impl Builder {
    fn build(mut self) -> Scenario {
        let primary = if self.rng.chance(800) { LegId::A } else { LegId::B };
        let (trigger, bias) = self.trigger(primary);
        let calm_us = self.rng.range(600_000, 1_500_000);
        let links = self.links(bias);
        let clients = (0..self.rng.pick(&[1, 1, 1, 2])).map(|_| self.stack(bias)).collect();
        let servers = [self.server(0, bias), self.server(1, bias)];
        let clients: Vec<StackPlan> = clients;
        let is_orderly = links.iter().flatten().all(|p| p.reorder + p.dup == 0);
        let conns = self.conns(clients.len(), is_orderly, bias);
        let faults = self.faults(trigger, bias);
        let gateway = self.gateway(primary, bias);
        let (seed, cost_max) = (self.seed, COST_MAX);
        Scenario { seed, links, clients, servers, conns, faults, gateway, calm_us, cost_max }
    }

    fn trigger(&mut self, primary: LegId) -> (Option<Trigger>, Bias) {
        let p = primary.index();
        let mut bias = Bias::default();
        let trigger = match self.rng.below(20) {
            0 => {
                bias.has_slow = Some(1 - p);
                Some(Trigger::PrimaryAhead)
            }
            1 => {
                bias.has_slow = Some(p);
                Some(Trigger::BackupAhead)
            }
            2 | 3 => {
                (bias.is_http, bias.has_split_head) = (true, true);
                Some(Trigger::InSpan)
            }
            4 => Some(Trigger::Handshake),
            5 | 6 => {
                bias.has_server_close = true;
                bias.has_slow = Some(self.rng.below(2) as usize);
                Some(Trigger::FinHeld)
            }
            7 | 8 => {
                bias.has_read_pause = true;
                Some(Trigger::ZeroWindow)
            }
            9 => {
                bias.has_loss = true;
                Some(Trigger::Hole)
            }
            10 => {
                (bias.has_wrap, bias.has_slow) = (true, Some(self.rng.below(2) as usize));
                Some(Trigger::Wrap)
            }
            11 | 12 => {
                bias.has_freeze_first = true;
                Some(Trigger::Lagging)
            }
            13 | 14 => {
                bias.has_divergence = true;
                Some(Trigger::Diverged)
            }
            15 => Some(Trigger::Bytes(self.rng.skewed(1, 120_000) as usize)),
            16 | 17 => {
                bias.has_divergence = self.rng.chance(400);
                Some(Trigger::At(self.rng.range(1_000, 400_000)))
            }
            _ => None,
        };
        (trigger, bias)
    }

    fn links(&mut self, bias: Bias) -> [[PipePlan; 2]; 3] {
        let is_on = [300, 200, 200, 150, 150].map(|p| self.rng.chance(p));
        let [loss, reorder, dup, corrupt, burst] = is_on;
        let loss = loss || bias.has_loss;
        let mut links: [[PipePlan; 2]; 3] = Default::default();
        for link in &mut links {
            let delay_us = self.rng.pick(&[20, 50, 200, 1000, 5000]);
            for pipe in link {
                let rng = &mut self.rng;
                let mut some =
                    |on: bool, max: u64| if on && rng.chance(600) { rng.range(1, max) } else { 0 };
                pipe.loss = some(loss, 60);
                pipe.reorder = some(reorder, 100);
                pipe.dup = some(dup, 50);
                pipe.corrupt = some(corrupt, 30);
                pipe.burst = some(burst, 10);
                pipe.delay_us = delay_us;
                pipe.jitter_us = rng.pick(&[0, 0, 10, 200, 2000]);
            }
        }
        if bias.has_loss {
            let lossy = 1 + self.rng.below(2) as usize;
            links[lossy][0].loss = links[lossy][0].loss.max(80);
        }
        links
    }

    fn stack(&mut self, bias: Bias) -> StackPlan {
        let rng = &mut self.rng;
        let wrap = bias.has_wrap || rng.chance(400);
        StackPlan {
            mtu: rng.pick(&[1500, 1500, 1500, 1280, 576, 9000]),
            timestamps: rng.chance(700).then(|| {
                let first = rng.pick(&[0, 1, u32::MAX - 300, u32::MAX / 2, 7_777_777]);
                (first, rng.pick(&[1000, 1000, 100, 10_000]))
            }),
            isn_near_wrap: wrap.then(|| rng.pick(&[2, 300, 5_000, 60_000])),
            ack_delay_us: rng.pick(&[None, Some(10_000), Some(40_000)]),
            nagle: rng.chance(500),
            congestion: rng.pick(&[0, 1, 2]),
            model: None,
        }
    }

    fn server(&mut self, index: usize, bias: Bias) -> ServerPlan {
        let stack = self.stack(bias);
        let rng = &mut self.rng;
        let is_slow = bias.has_slow == Some(index);
        let slow_us = rng.range(200, 40_000);
        let chunk = (is_slow || rng.chance(150)).then(|| {
            (
                rng.pick(&[300, 1000, 3000, 20_000]),
                if is_slow { slow_us } else { rng.range(50, 3000) },
            )
        });
        let read_pause = rng.chance(80);
        ServerPlan {
            stack,
            buffers: (
                rng.pick(&[4096, 16_384, 65_535, 131_072]),
                rng.pick(&[4096, 16_384, 65_535]),
            ),
            think_us: if is_slow { slow_us } else { rng.pick(&[0, 0, 100, 2000, 12_000]) },
            chunk,
            split_head_us: (bias.has_split_head && rng.chance(700)).then(|| rng.range(300, 30_000)),
            read_pause: read_pause
                .then(|| (rng.skewed(1, 60_000) as usize, rng.pick(&[10_000, 100_000, 400_000]))),
        }
    }

    fn conns(&mut self, clients: usize, is_orderly: bool, bias: Bias) -> Vec<ConnPlan> {
        let count = self.rng.pick(&[1, 1, 1, 2, 2, 3, 4]);
        let mut conns: Vec<ConnPlan> = Vec::new();
        for id in 0..count {
            let mut conn = self.conn(id as u16, clients, bias);
            // The same 4-tuple once more, when the one before has ended. Segments that are still
            // on their way would be taken for the new connection's, so that TIME-WAIT may be cut
            // short only where none can be late.
            if id > 0 && self.rng.chance(400) {
                let before = &conns[id - 1];
                (conn.client, conn.port) = (before.client, before.port);
                conn.after = Some(before.id);
                let is_orderly = is_orderly && before.close != Close::Abort;
                conn.start_us = match is_orderly {
                    true => self.rng.pick(&[0, 100, 1000, 20_000]),
                    false => self.rng.pick(&[40_000, 100_000]),
                };
            }
            conns.push(conn);
        }
        conns
    }

    fn conn(&mut self, id: u16, clients: usize, bias: Bias) -> ConnPlan {
        let is_http = bias.is_http || self.rng.chance(500);
        let count = self.rng.pick(&[1, 1, 2, 3, 6]);
        let large = self.rng.chance(60);
        let requests = (0..count).map(|_| self.request(count, large, bias)).collect();
        let rng = &mut self.rng;
        let pauses = bias.has_read_pause || rng.chance(100);
        let close = match bias.has_server_close {
            true => Close::Server,
            false => rng.pick(&[
                Close::Client,
                Close::Client,
                Close::Client,
                Close::Half,
                Close::Server,
                Close::Server,
                Close::Abort,
            ]),
        };
        ConnPlan {
            id,
            client: rng.below(clients as u64) as usize,
            port: 40_000 + id * 7,
            start_us: rng.pick(&[0, 500, 20_000, 60_000]),
            after: None,
            is_http,
            requests,
            pipeline: rng.pick(&[1, 1, 2, 8]),
            close,
            buffers: match pauses {
                true => (rng.pick(&[2048, 4096, 8192]), rng.pick(&[4096, 16_384])),
                false => (rng.pick(&[4096, 16_384, 65_535, 131_072]), rng.pick(&[4096, 65_535])),
            },
            read_pause: pauses
                .then(|| (rng.skewed(0, 20_000) as usize, rng.pick(&[5_000, 60_000, 300_000]))),
        }
    }

    fn request(&mut self, count: usize, is_large: bool, bias: Bias) -> RequestPlan {
        let rng = &mut self.rng;
        let max = match (is_large, count) {
            (true, 1) => 200_000,
            (_, 1..=2) => 40_000,
            _ => 8_000,
        };
        let is_upload = rng.chance(300);
        let least = if bias.has_read_pause || bias.has_wrap { max / 2 } else { 1 };
        let download = if is_upload { rng.range(1, 300) } else { rng.skewed(least, max) };
        RequestPlan {
            upload: if is_upload { rng.skewed(1, max) as u32 } else { 0 },
            download: download as u32,
            content: rng.below(1 << 19) as u32,
            is_divergent: rng.chance(600),
            flip_at: rng.skewed(0, max) as u32,
            pause_us: rng.pick(&[0, 0, 0, 1000, 30_000]),
            token: None,
            cookie: None,
            returned: None,
        }
    }

    fn faults(&mut self, trigger: Option<Trigger>, bias: Bias) -> Vec<FaultPlan> {
        let mut faults = Vec::new();
        let mut add = |trigger, target, fault| faults.push(FaultPlan { trigger, target, fault });
        let rng = &mut self.rng;
        if bias.has_freeze_first {
            let us = rng.pick(&[350_000, 500_000]);
            let fault = match rng.below(3) {
                0 => Fault::Partition { is_inbound: false, us },
                1 => Fault::Partition { is_inbound: true, us },
                _ => Fault::Freeze(us),
            };
            add(Trigger::Bytes(rng.skewed(1, 10_000) as usize), Target::Backup, fault);
        }
        if bias.has_divergence {
            let leg = Target::Leg(rng.pick(&LegId::ALL));
            add(Trigger::At(rng.pick(&[0, 0, 30_000])), leg, Fault::Diverge);
        }
        if let Some(trigger) = trigger {
            let is_state = !matches!(trigger, Trigger::At(_) | Trigger::Bytes(_));
            let is_backup = rng.chance(150);
            let target = if is_backup { Target::Backup } else { Target::Primary };
            let freeze = rng.pick(&[0, 30_000, 250_000]);
            let fault = match rng.below(if is_state { 14 } else { 20 }) {
                0..=3 => Fault::CarrierDown,
                4 | 5 => Fault::Exited,
                6 | 7 => Fault::Kill,
                8 | 9 => Fault::Crash,
                10 => Fault::Freeze(freeze),
                11 => Fault::Failover { is_planned: false },
                12 => Fault::KillWorker,
                13 => Fault::Reboot(rng.pick(&[1_000, 50_000, 300_000])),
                14 => Fault::Failover { is_planned: true },
                15 => Fault::GatewayStall(rng.pick(&[20_000, 200_000])),
                16 | 17 => Fault::GatewayRestart(rng.pick(&[0, 5_000, 100_000])),
                _ => Fault::Partition {
                    is_inbound: rng.chance(500),
                    us: rng.pick(&[30_000, 200_000, 500_000]),
                },
            };
            add(trigger, target, fault);
        }
        if rng.chance(60) {
            let at = Trigger::At(rng.range(10_000, 500_000));
            let fault = rng.pick(&[
                Fault::Failover { is_planned: true },
                Fault::Failover { is_planned: true },
                Fault::GatewayRestart(1_000),
                Fault::GatewayStall(100_000),
                Fault::Pause(50_000),
            ]);
            add(at, Target::Primary, fault);
        }
        // Both servers die, one after the other.
        if rng.chance(40) {
            let at = Trigger::At(rng.range(5_000, 500_000));
            let fault = rng.pick(&[Fault::CarrierDown, Fault::Kill, Fault::Exited]);
            add(Trigger::Bytes(rng.skewed(1, 30_000) as usize), Target::Leg(LegId::A), fault);
            add(at, Target::Leg(LegId::B), fault);
        }
        faults
    }

    fn gateway(&mut self, primary: LegId, bias: Bias) -> GatewayPlan {
        let rng = &mut self.rng;
        let sync = (bias.has_divergence || rng.chance(100))
            .then(|| (rng.pick(&[1_000, 30_000, 140_000, 400_000]), rng.chance(350)));
        let on_lag = if rng.chance(800) { LagPolicy::Available } else { LagPolicy::Strict };
        let hold_hard_ms = rng.pick(&[150, 150, 60, 300]);
        let probe_every_ms = rng.pick(&[10, 10, 20, 50]);
        let (fence, is_fence_good) = rng.pick(&[
            (Fence::None, true),
            (Fence::None, true),
            (Fence::None, true),
            (Fence::Hook, true),
            (Fence::Required, true),
            (Fence::Required, true),
            (Fence::Required, false),
        ]);
        GatewayPlan {
            on_lag,
            hold_hard_ms,
            probe_every_ms,
            fence,
            is_fence_good,
            sync,
            machine: None,
            has_partial_csum: rng.chance(500),
            primary,
            has_cookies: rng.chance(60),
            reprotect: false,
            vip: rng.pick(&[None, None, None, None, Some(Seen::Clients), Some(Seen::Gateway)]),
        }
    }
}
