//! The matrix: workload x fault x side x phase x family x pair. Each cell is judged from the
//! outside (every byte, no reset, no timeout, the same connections), from the counters and the
//! event log, and again from the captures by the checker.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shadowvm::engine::{LegId, Source};
use shadowvm::lab::{
    Fate, HostId, Impairment, Program, RouteMetrics, ServerOptions, Topology, WorldOptions,
};

use super::bed::{Bed, Fault, GatewayOptions, until};
use super::client::{Connection, Progress};
use super::content::{Content, Rng, bytes, leg_name, sha256, sha256_of};
use super::judge;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// One large download by a reader of our own, and one by curl beside it.
    Download,
    /// One large upload.
    Upload,
    /// 16 keep-alive connections with small requests.
    KeepAlive,
    /// 100 connections opened and closed per second.
    Churn,
}

/// When the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// After 1 % of the bytes.
    Start,
    /// After 10, 30 or 60 %, as the seed has it: what is left has to outlast the fault's making.
    Middle,
    /// Between two requests of open connections.
    Idle,
}

/// How the servers differ in everything but content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// Not at all.
    Equal,
    /// This one has an MTU of 1280.
    Mtu(LegId),
    /// This one takes segments of 536 bytes.
    Mss(LegId),
    /// This one begins with a window of one segment.
    Window(LegId),
    /// This one cuts its segments itself.
    NoTso(LegId),
    /// This one is half as fast.
    Slow(LegId),
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    work: Work,
    fault: Fault,
    target: LegId,
    phase: Phase,
    is_v6: bool,
    pair: Pair,
    is_strict: bool,
    addressing: Topology,
    seed: u64,
}

/// How much is done in a cell.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Bytes of an upload.
    pub upload: usize,
    /// Small requests of all keep-alive connections together.
    pub requests: usize,
    /// Connections opened and closed.
    pub connections: usize,
}

/// Why a cell did not pass.
#[derive(Debug)]
pub enum Failure {
    /// The fault came after the last byte, or the capture lost packets: no verdict.
    Void(String),
    /// A server was late though nothing had failed: void if it got no processor.
    Late(String),
    /// The same with every processor busy on purpose: void if one stood still for long.
    LateUnderLoad(String),
    /// It is broken.
    Broken(String),
}

impl Failure {
    /// The same, and when that was.
    pub fn at(self, when: &str) -> Self {
        let told = |message| format!("{when}: {message}");
        match self {
            Self::Void(message) => Self::Void(told(message)),
            Self::Late(message) => Self::Late(told(message)),
            Self::LateUnderLoad(message) => Self::LateUnderLoad(told(message)),
            Self::Broken(message) => Self::Broken(told(message)),
        }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Broken(message)
    }
}

const WORKS: [Work; 4] = [Work::Download, Work::Upload, Work::KeepAlive, Work::Churn];
const FAULTS: [Fault; 6] =
    [Fault::KillAll, Fault::KillWorker, Fault::Stop, Fault::LinkDown, Fault::Cut, Fault::Gone];
const PHASES: [Phase; 3] = [Phase::Start, Phase::Middle, Phase::Idle];
const CONNECTIONS: usize = 16;
/// How much longer than planned a cell may take: a fault is found within a second.
const STALLED_MAX: Duration = Duration::from_secs(15);

/// All cells, or a sample in which every workload meets every fault once.
pub fn cells(is_long: bool, seed: u64) -> Vec<Cell> {
    let mut all = Vec::new();
    let mut number = 0;
    for (i, work) in WORKS.into_iter().enumerate() {
        for (j, fault) in FAULTS.into_iter().enumerate() {
            if is_long {
                for rest in 0..24 {
                    all.push(cell(work, fault, rest, rest >= 12, number, seed));
                    number += 1;
                }
            } else {
                // Sides, phases and families each in turn, never two of them in step.
                let rest = (i + j) % 2 + 2 * ((i + 2 * j) % 3) + 6 * ((i / 2 + j) % 2);
                all.push(cell(work, fault, rest, number % 2 == 1, number, seed));
                number += 1;
            }
        }
    }
    // The workloads in turn: beside those that wait there is room for those that do not.
    let each = all.len() / WORKS.len();
    (0..each).flat_map(|i| all[i..].iter().step_by(each).copied()).collect()
}

fn cell(work: Work, fault: Fault, rest: usize, is_unequal: bool, number: usize, seed: u64) -> Cell {
    let odd = LegId::ALL[(number / 5) % 2];
    let pair = match number % 5 {
        _ if !is_unequal => Pair::Equal,
        0 => Pair::Mtu(odd),
        1 => Pair::Mss(odd),
        2 => Pair::Window(odd),
        3 => Pair::NoTso(odd),
        _ => Pair::Slow(odd),
    };
    Cell {
        work,
        fault,
        target: LegId::ALL[rest % 2],
        phase: PHASES[rest / 2 % 3],
        is_v6: rest / 6 % 2 == 1,
        pair,
        is_strict: !number.is_multiple_of(3),
        addressing: Topology::Clone,
        seed: seed.wrapping_add(number as u64),
    }
}

/// The cells of vip addressing: fewer, what differs is who is called what. Judged from the outside,
/// from the counters and the event log; captures of the two addressings cannot be compared.
pub fn vip_cells(is_long: bool, seed: u64) -> Vec<Cell> {
    const SEEN: [Source; 2] = [Source::Client, Source::Gateway];
    let mut all = Vec::new();
    for (i, work) in [Work::Download, Work::KeepAlive, Work::Upload].into_iter().enumerate() {
        for (j, fault) in [Fault::KillAll, Fault::Cut, Fault::Stop].into_iter().enumerate() {
            for rest in 0..4 {
                if !is_long && rest != (i + 2 * j) % 4 {
                    continue;
                }
                let number = 1000 + all.len();
                let phase = rest + 2 * (number % 3);
                let plain = cell(work, fault, phase, false, number, seed);
                let addressing = Topology::Vip(SEEN[rest / 2]);
                all.push(Cell { is_v6: rest % 2 == 1, addressing, ..plain });
            }
        }
    }
    all
}

impl Cell {
    /// Its name, also its folder's.
    pub fn name(&self) -> String {
        let pair = format!("{:?}", self.pair).replace(['(', ')'], "");
        let addressing = match self.addressing {
            Topology::Vip(Source::Client) => "-vip",
            Topology::Vip(Source::Gateway) => "-vip-gateway",
            _ => "",
        };
        format!(
            "{:?}-{:?}-of-{}-{:?}-{}-{pair}-{}{addressing}",
            self.work,
            self.fault,
            leg_name(self.target),
            self.phase,
            if self.is_v6 { "v6" } else { "v4" },
            if self.is_strict { "strict" } else { "available" },
        )
        .to_lowercase()
    }

    /// Runs it once.
    pub fn run(&self, folder: &Path, content: &Content, size: Size) -> Result<String, Failure> {
        let options = GatewayOptions {
            is_strict: self.is_strict,
            vanishing: (self.fault == Fault::Gone).then_some(self.target),
            ..GatewayOptions::default()
        };
        let (servers, topology) = (self.pair.servers(), self.addressing);
        let world = WorldOptions { servers, topology, ..WorldOptions::default() };
        let mut bed = Bed::new(folder, content, &world, options)?;
        bed.start()?;
        let took = self.strike_and_live(&mut bed, size).map_err(|failure| match failure {
            // Wrong bytes are never excused.
            Failure::Broken(message)
                if !message.contains("not the file")
                    && judge::was_late(&bed, self.target.other()) =>
            {
                Failure::Late(format!("the survivor was late itself: {message}"))
            }
            other => other,
        })?;
        let summary = bed.judge()?;
        Ok(format!(
            "{:.1} s, {} connections, {} bytes shown, {} of them unverified",
            took.as_secs_f64(),
            summary["connections"],
            summary["shown_bytes"],
            summary["unverified_bytes"]
        ))
    }

    /// What the clients go through; how long it took.
    fn strike_and_live(&self, bed: &mut Bed<'_>, size: Size) -> Result<Duration, Failure> {
        let round = Round { cell: self, bed, size, progress: Progress::default() };
        let mut open = round.open()?;
        let begin = Instant::now();
        let struck = match self.phase {
            Phase::Idle => {
                round.warm_up(&mut open)?;
                let flow = round.flow(&open)?;
                let struck = round.before_the_fault(&open)?;
                bed.strike(self.fault, self.target, &flow)?;
                if self.work == Work::Churn {
                    // The open connections have their part now: after 3 s of quiet the gateway
                    // may take a dead worker's FIN for an ordinary end.
                    round.warm_up(&mut open)?;
                }
                round.work(&mut open)?;
                struck
            }
            Phase::Start | Phase::Middle => round.work_and_strike(&mut open)?,
        };
        let took = begin.elapsed();
        let due = match self.work {
            Work::Churn => Duration::from_millis(10 * size.connections as u64),
            Work::Download | Work::Upload | Work::KeepAlive => Duration::ZERO,
        };
        if took > due + STALLED_MAX {
            let message = format!("took {took:?}: clients were kept waiting for a dead server");
            return Err(Failure::Broken(message));
        }
        round.after(&mut open)?;
        let events = bed.events()?;
        judge::events(&events, struck)?;
        if self.fault != Fault::KillWorker {
            let is_stopped = self.fault == Fault::Stop;
            judge::moved(&events, leg_name(self.target.other()), is_stopped)?;
        }
        Ok(took)
    }
}

impl Pair {
    fn servers(self) -> [ServerOptions; 2] {
        let mut servers = [ServerOptions::default(), ServerOptions::default()];
        let forwarder =
            |rate: u64| Some(Impairment::both(Fate { rate: Some(rate), ..Fate::default() }));
        match self {
            Self::Equal => {}
            Self::Mtu(leg) => servers[leg.index()].mtu = Some(1280),
            Self::Mss(leg) => {
                servers[leg.index()].metrics =
                    RouteMetrics { advmss: Some(536), ..RouteMetrics::default() };
            }
            Self::Window(leg) => {
                servers[leg.index()].metrics =
                    RouteMetrics { initcwnd: Some(1), ..RouteMetrics::default() };
            }
            Self::NoTso(leg) => servers[leg.index()].has_tso = false,
            Self::Slow(leg) => {
                servers[leg.index()].impair = forwarder(400_000_000);
                servers[leg.other().index()].impair = forwarder(800_000_000);
            }
        }
        servers
    }
}

/// One run of a cell.
struct Round<'a> {
    cell: &'a Cell,
    bed: &'a Bed<'a>,
    size: Size,
    progress: Progress,
}

/// What is known of the moment before the fault.
#[derive(Clone, Copy, Debug)]
pub struct Struck {
    /// UNIX time in nanoseconds.
    pub t_ns: u64,
}

impl Round<'_> {
    /// The connections that live through the fault.
    fn open(&self) -> Result<Vec<Connection>, Failure> {
        let count = match self.cell.work {
            Work::Download | Work::Upload => 1,
            Work::KeepAlive => CONNECTIONS,
            Work::Churn => 2,
        };
        let mut open = Vec::new();
        for i in 0..count {
            let mut connection = self.bed.connect(self.cell.is_v6)?;
            connection.get(&self.bed.content.small[i], &Progress::default())?;
            open.push(connection);
        }
        Ok(open)
    }

    fn warm_up(&self, open: &mut [Connection]) -> Result<(), Failure> {
        for (i, connection) in open.iter_mut().enumerate() {
            connection.get(&self.bed.content.small[i], &Progress::default())?;
        }
        Ok(())
    }

    /// The flow whose worker is to die.
    fn flow(&self, open: &[Connection]) -> Result<String, Failure> {
        open[0].local().map_err(|e| Failure::Broken(e.to_string()))
    }

    /// How much there is to do, in the unit of `progress`.
    fn total(&self) -> u64 {
        match self.cell.work {
            Work::Download => self.bed.content.big.len,
            Work::Upload => self.size.upload as u64,
            Work::KeepAlive => self.size.requests as u64,
            Work::Churn => self.size.connections as u64,
        }
    }

    fn work_and_strike(&self, open: &mut [Connection]) -> Result<Struck, Failure> {
        let percent = match self.cell.phase {
            Phase::Start => 1,
            _ => [10, 30, 60][Rng::new(self.cell.seed).below(3)],
        };
        let at = (self.total() * percent / 100).max(1);
        let flow = self.flow(open)?;
        let count = open.len();
        // While connections come and go, the lasting ones are the striker's.
        let (busy, lasting) = match self.cell.work {
            Work::Churn => open.split_at_mut(0),
            Work::Download | Work::Upload | Work::KeepAlive => open.split_at_mut(count),
        };
        std::thread::scope(|scope| {
            let striker = scope.spawn(|| -> Result<Struck, Failure> {
                // The state before the fault is asked for half-way, the fault comes on the byte.
                self.progress.reach(at / 2);
                let struck = self.before_the_fault_of(count)?;
                if !self.progress.reach(at) {
                    return Err(Failure::Void("the work ended before the fault".into()));
                }
                self.bed.strike(self.cell.fault, self.cell.target, &flow)?;
                if self.progress.now() >= self.total() {
                    return Err(Failure::Void("the fault came after the last byte".into()));
                }
                // After 3 s of quiet a dead worker's FIN may be taken for an ordinary end.
                self.warm_up(lasting)?;
                Ok(struck)
            });
            let worked = self.work(busy);
            self.progress.end();
            let struck = striker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            worked.and(struck)
        })
    }

    /// The work itself; `progress` counts what the client has seen done.
    fn work(&self, open: &mut [Connection]) -> Result<(), Failure> {
        match self.cell.work {
            Work::Download => self.download(&mut open[0]),
            Work::Upload => self.upload(&mut open[0]),
            Work::KeepAlive => self.keep_alive(open),
            Work::Churn => self.churn(),
        }
    }

    fn download(&self, connection: &mut Connection) -> Result<(), Failure> {
        let host = if self.cell.is_v6 { "[2001:db8::10]" } else { "192.0.2.10" };
        let copy = self.bed.folder.join("curl.out");
        let url = format!("http://{host}{}", self.bed.content.big.path);
        let program = Program::new("curl").args(["-sS", "--max-time", "60", "-o"]).arg(&copy);
        std::thread::scope(|scope| {
            let curl = scope.spawn(|| self.bed.run_in(HostId::Client, program.arg(url)));
            let own = connection.get(&self.bed.content.big, &self.progress);
            let curl = curl.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            own?;
            if !curl.status.success() {
                let said = String::from_utf8_lossy(&curl.stderr).into_owned();
                return Err(Failure::Broken(format!("curl: {}: {said}", curl.status)));
            }
            let got = sha256_of(&copy).map_err(|e| format!("curl's file: {e}"))?;
            let _ = std::fs::remove_file(&copy);
            if got != self.bed.content.big.sha256 {
                return Err(Failure::Broken(format!("curl got sha256 {got}; not the file")));
            }
            Ok(())
        })
    }

    fn upload(&self, connection: &mut Connection) -> Result<(), Failure> {
        let data = bytes(self.cell.seed, self.size.upload);
        connection.put("/put/upload.bin", &data, &self.progress)?;
        let survivor = leg_name(self.cell.target.other());
        let stored = self.bed.folder.join(survivor).join("put/upload.bin");
        let got = sha256_of(&stored).map_err(|e| format!("{}: {e}", stored.display()))?;
        if got != sha256(&data) {
            return Err(Failure::Broken(format!("{survivor} stored sha256 {got}; not the upload")));
        }
        Ok(())
    }

    fn keep_alive(&self, open: &mut [Connection]) -> Result<(), Failure> {
        let each = self.size.requests / open.len();
        let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let threads: Vec<_> = open
                .iter_mut()
                .enumerate()
                .map(|(i, connection)| {
                    scope.spawn(move || {
                        let mut rng = Rng::new(self.cell.seed ^ ((i as u64 + 1) << 32));
                        for _ in 0..each {
                            let file =
                                &self.bed.content.small[rng.below(self.bed.content.small.len())];
                            connection.get(file, &Progress::default())?;
                            self.progress.add(1);
                        }
                        Ok(())
                    })
                })
                .collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        Ok(results.into_iter().collect::<Result<(), String>>()?)
    }

    /// One connection every 10 ms, each on whichever thread is free.
    fn churn(&self) -> Result<(), Failure> {
        let (begin, next) = (Instant::now(), AtomicUsize::new(0));
        let open_and_close = || -> Result<(), String> {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= self.size.connections {
                    return Ok(());
                }
                let due = Duration::from_millis(10 * i as u64);
                std::thread::sleep(due.saturating_sub(begin.elapsed()));
                let file = &self.bed.content.small[i % self.bed.content.small.len()];
                let mut connection = self.bed.connect(self.cell.is_v6)?;
                connection.get_and_close(file).map_err(|e| format!("connection {i}: {e}"))?;
                self.progress.add(1);
            }
        };
        let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(open_and_close)).collect();
            let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
                t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        Ok(results.into_iter().collect::<Result<(), String>>()?)
    }

    fn before_the_fault(&self, open: &[Connection]) -> Result<Struck, Failure> {
        self.before_the_fault_of(open.len())
    }

    /// All are Paired, and nearly all that was released had been said by both.
    fn before_the_fault_of(&self, open: usize) -> Result<Struck, Failure> {
        judge::paired(self.bed, open)?;
        Ok(Struck { t_ns: judge::unix_ns() })
    }

    /// The same connections live on, on the survivor.
    fn after(&self, open: &mut [Connection]) -> Result<(), Failure> {
        let survivor = leg_name(self.cell.target.other());
        for (i, connection) in open.iter_mut().enumerate() {
            let file = &self.bed.content.small[i];
            connection.get(file, &Progress::default()).map_err(|e| format!("afterwards: {e}"))?;
        }
        let mine: Vec<String> =
            open.iter().map(|c| c.local().map_err(|e| e.to_string())).collect::<Result<_, _>>()?;
        let is_worker = self.cell.fault == Fault::KillWorker;
        // A stopped backup of which nothing is wanted any more is late, and may yet come back.
        let may_lag = self.cell.fault == Fault::Stop;
        let moved = |flow: &shadowvm::admin::types::Flow| {
            let is_left = flow.state == "solo" || may_lag && flow.state == "lagging";
            is_left && flow.primary.as_deref() == Some(survivor)
        };
        until(Duration::from_secs(5), "every flow to be on the survivor", || {
            let flows = self.bed.flows().ok()?;
            let found: Vec<_> = flows.iter().filter(|f| mine.contains(&f.client)).collect();
            let first = found.iter().find(|f| f.client == mine[0]);
            let kept = found.iter().filter(|f| moved(f) || (is_worker && f.state == "paired"));
            (kept.count() == mine.len() && first.is_some_and(|f| moved(f))).then_some(())
        })
        .map_err(|e| match self.bed.flows() {
            Ok(flows) => Failure::Broken(format!("{e}: {flows:?}")),
            Err(_) => Failure::Broken(e),
        })?;
        if is_worker && self.bed.count("shadowvm_promotions_total", None)? != 0 {
            return Err(Failure::Late("a worker's death promoted the whole service".into()));
        }
        Ok(())
    }
}
