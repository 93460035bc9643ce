//! What takes its time: minutes of full load with every core busy, and minutes of silence.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shadowvm::engine::LegId;
use shadowvm::lab::{HostId, WorldOptions};

use super::Scenario;
use super::bed::{Bed, Fault, GatewayOptions, until};
use super::client::Progress;
use super::content::{Content, leg_name};
use super::judge;
use super::matrix::Failure;
use super::special;

/// A core is kept busy for so long at a time.
const BUSY: Duration = Duration::from_millis(5);
/// Clients that read all the time.
const CLIENTS: usize = 4;
/// A server that is gone is found within this time.
const FOUND_MAX: Duration = Duration::from_secs(1);
/// After a promotion the gateway wants hard evidence for the next one for so long (10 s), and after
/// two of them for a minute.
const APART: Duration = Duration::from_secs(11);
const APART_TWICE: Duration = Duration::from_secs(61);
/// Clients that connect anew are paired within this time, or try again.
const ROUND: Duration = Duration::from_secs(10);
/// A server that is back is taken back, and new connections pair, within this time.
const BACK_MAX: Duration = Duration::from_secs(60);

/// Full load, ten minutes of it if `is_long`.
pub fn full(content: &Content, is_long: bool) -> Scenario<'_> {
    let time = Duration::from_secs(if is_long { 600 } else { 10 });
    ("full-load".into(), Box::new(move |at| full_load(at, content, time)))
}

/// No traffic, for ten minutes if `is_long`, and then some.
pub fn idle(content: &Content, is_long: bool) -> Scenario<'_> {
    let quiet = Duration::from_secs(if is_long { 600 } else { 20 });
    ("idle-then-traffic".into(), Box::new(move |at| special::idle(at, content, quiet)))
}

/// Downloads without pause beside a busy loop on every core: nothing is found, until at the end of
/// it the primary is stopped, and when that is back, the link of who serves then is cut.
fn full_load(at: &Path, content: &Content, time: Duration) -> Result<String, Failure> {
    let mut bed = Bed::new(at, content, &WorldOptions::default(), GatewayOptions::default())?;
    for leg in LegId::ALL {
        bed.start_nginx(leg)?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;
    let load = Load { bed: &bed, is_over: AtomicBool::new(false), round: AtomicUsize::new(0) };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let bytes = Progress::default();
    let found = std::thread::scope(|scope| -> Result<_, Failure> {
        for _ in 0..cores {
            scope.spawn(|| load.spin());
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|i| {
                let (load, bytes) = (&load, &bytes);
                scope.spawn(move || load.read(i % 2 == 1, bytes))
            })
            .collect();
        let found = load.judge(time);
        load.is_over.store(true, Ordering::Relaxed);
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
            t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let read = clients.into_iter().try_for_each(join);
        // A connection that had lost one server to lateness may lose the other to the fault.
        found.and_then(|found| read.map(|()| found).map_err(excuse))
    })?;
    if bed.count("shadowvm_flows_reset_total", None)? != 0 {
        return Err(Failure::LateUnderLoad("flows were reset".into()));
    }
    judge::no_divergence(&bed)?;
    let [stopped, cut] = found;
    let mib = bytes.now() >> 20;
    Ok(format!("{mib} MiB in {time:?}, the stop found in {stopped:.0?}, the cut in {cut:.0?}"))
}

/// Wrong bytes are never excused.
fn excuse(message: String) -> Failure {
    match message.contains("not the file") {
        true => Failure::Broken(message),
        false => Failure::LateUnderLoad(message),
    }
}

/// The load, from its begin to its end.
struct Load<'a> {
    bed: &'a Bed<'a>,
    is_over: AtomicBool,
    /// Clients begin a new connection with each round.
    round: AtomicUsize,
}

impl Load<'_> {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Keeps a core busy. The short sleeps are for the scheduler of Linux 6.18: beside a thread
    /// that never sleeps it loses its sense of time, and starves others for many seconds.
    fn spin(&self) {
        while !self.is_over() {
            let begin = Instant::now();
            while begin.elapsed() < BUSY {
                std::hint::spin_loop();
            }
            std::thread::sleep(BUSY / 50);
        }
    }

    /// A client: one connection each round, and on it one download after the other.
    fn read(&self, is_v6: bool, bytes: &Progress) -> Result<(), String> {
        while !self.is_over() {
            let round = self.round.load(Ordering::Relaxed);
            let mut connection = self.bed.connect(is_v6)?;
            while !self.is_over() && self.round.load(Ordering::Relaxed) == round {
                connection.get(&self.bed.content.big, bytes)?;
            }
        }
        Ok(())
    }

    /// What the gateway has to find, and what not: how long it took to find the two faults.
    fn judge(&self, time: Duration) -> Result<[Duration; 2], Failure> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            std::thread::sleep(Duration::from_millis(100).min(time - begin.elapsed().min(time)));
            self.nothing_found()?;
        }
        self.all_paired()?;
        self.nothing_found()?;
        let stopped = self.strike(Fault::Stop, LegId::A)?;
        self.bed.world.thaw(HostId::Server(LegId::A)).map_err(|e| e.to_string())?;
        let primary = self.settled()?;
        let cut = self.strike(Fault::Cut, primary)?;
        Ok([stopped, cut])
    }

    fn nothing_found(&self) -> Result<(), Failure> {
        for name in ["shadowvm_promotions_total", "shadowvm_detaches_total"] {
            if self.bed.count(name, None)? != 0 {
                let events = self.bed.events()?;
                let finding = events.iter().find(|e| e["finding"].is_string());
                let message = format!("nothing failed, but found: {finding:?}");
                return Err(Failure::LateUnderLoad(message));
            }
        }
        Ok(())
    }

    /// Has the clients connect anew, and waits until all of them are paired; once more if one of
    /// them was late meanwhile, and has one server only.
    fn all_paired(&self) -> Result<(), Failure> {
        let mut since = Instant::now();
        self.round.fetch_add(1, Ordering::Relaxed);
        until(BACK_MAX, "every client to be paired", || {
            if since.elapsed() > ROUND {
                since = Instant::now();
                self.round.fetch_add(1, Ordering::Relaxed);
            }
            let flows = self.bed.flows().ok()?;
            let running = || flows.iter().filter(|f| f.state != "time_wait");
            let all = running().all(|f| f.state == "paired") && running().count() == CLIENTS;
            all.then_some(())
        })
        .map_err(Failure::LateUnderLoad)
    }

    /// Waits until all is well again and the gateway acts on soft evidence; who serves then: under
    /// such a load a server may have stood still by itself meanwhile.
    fn settled(&self) -> Result<LegId, Failure> {
        until(BACK_MAX + APART_TWICE, "the gateway to act again", || {
            let events = self.bed.events().ok()?;
            let promoted = events.iter().filter(|e| e["event"] == "promoted");
            let promoted: Vec<_> = promoted.filter_map(|e| e["t_ns"].as_u64()).collect();
            let apart = if promoted.len() > 1 { APART_TWICE } else { APART };
            let since = Duration::from_nanos(judge::unix_ns().saturating_sub(*promoted.last()?));
            (since >= apart).then_some(())
        })
        .map_err(Failure::LateUnderLoad)?;
        self.all_paired()?;
        let status = self.bed.status()?;
        let primary = LegId::ALL.into_iter().find(|&leg| leg_name(leg) == status.primary);
        match primary.filter(|_| status.service.is_protected) {
            Some(primary) => Ok(primary),
            None => Err(Failure::LateUnderLoad("nothing failed, and it is not protected".into())),
        }
    }

    /// Strikes the primary; how long it took until the other one was promoted.
    fn strike(&self, fault: Fault, primary: LegId) -> Result<Duration, Failure> {
        let (begin, survivor) = (judge::unix_ns(), leg_name(primary.other()));
        self.bed.strike(fault, primary, "")?;
        let promoted = until(BACK_MAX, "the failover", || {
            let events = self.bed.events().ok()?;
            let is_it = |e: &serde_json::Value| {
                let at = e["t_ns"].as_u64().unwrap_or(0);
                (e["event"] == "promoted" && e["leg"] == survivor && at >= begin).then_some(at)
            };
            events.iter().find_map(is_it)
        })?;
        let took = Duration::from_nanos(promoted - begin);
        if took > FOUND_MAX {
            let message = format!("{fault:?}, with {survivor} left, was found in {took:?}");
            return Err(Failure::LateUnderLoad(message));
        }
        Ok(took)
    }
}
