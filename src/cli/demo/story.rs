//! The play: what happens on the stage, in which order, and what must be seen.
//!
//! Faults are injected at byte counts of a client, drawn from the seed, never by a timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::cast::{Client, Death};
use super::super::stage::{Fact, Stage, StageError, routed_stage, server_name, target};
use super::{Fault, Scenario, Teller};
use crate::engine::LegId;
use crate::lab::ftp;
use crate::lab::web::client::{Outcome, Plan, Work};

/// Connections with small requests that live through the whole play.
const KEPT_CONNECTIONS: usize = 8;
const SMALL_BYTES: u64 = 2_000;
const SMALL_PAUSE: Duration = Duration::from_millis(2);
/// A transfer takes a connection of its own.
const TRANSFER_PAUSE: Duration = Duration::from_millis(20);
/// Downloads at once when the fault strikes.
const DOWNLOADS: usize = 2;
const DOWNLOAD_BYTES: u64 = 96_000_000;
/// Length of the file that one server has wrong.
const FILE_BYTES: u64 = 777_777;
/// Requests by which latency is measured.
const LATENCY_REQUESTS: u64 = 300;
/// How long anything that must happen may take.
const WAIT: Duration = Duration::from_secs(8);

/// What the play is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Script {
    pub(super) fault: Fault,
    pub(super) scenario: Scenario,
    pub(super) seconds: f64,
    pub(super) seed: u64,
    pub(super) plants_wrong_byte: bool,
}

/// How it went.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// What should have been and was not; nothing if all is well.
    pub(super) faults_found: Vec<String>,
    pub(super) bytes_checked: u64,
    pub(super) requests: u64,
    pub(super) connections: usize,
    pub(super) connections_lost: usize,
    pub(super) stall: Option<Duration>,
    pub(super) found_after: Option<Duration>,
    pub(super) finding: Option<String>,
    pub(super) flows_moved: Option<u64>,
    pub(super) flows_reset: Option<u64>,
    pub(super) sync: Option<Duration>,
    pub(super) direct_p50: Option<Duration>,
    pub(super) through_p50: Option<Duration>,
    pub(super) verified: u64,
    pub(super) unverified: u64,
    /// The longest time that the system gave the gateway no processor.
    pub(super) own_stall: Option<Duration>,
}

impl Account {
    pub(super) fn take(&mut self, who: &str, outcome: &Outcome) {
        self.bytes_checked += outcome.bytes;
        self.requests += outcome.requests;
        self.connections += 1;
        if let Some(at) = outcome.wrong {
            self.faults_found.push(format!("{who}: wrong byte at offset {at} of an answer"));
        }
        if let Some(error) = &outcome.error {
            self.connections_lost += 1;
            self.faults_found.push(format!("{who}: {error} after {} bytes", outcome.bytes));
        }
    }

    /// The account as an object; times in nanoseconds.
    pub(super) fn json(&self) -> Value {
        let nanos = |time: Option<Duration>| time.map(|time| time.as_nanos() as u64);
        json!({
            "passed": self.faults_found.is_empty(), "problems": self.faults_found,
            "bytes_checked": self.bytes_checked, "requests": self.requests,
            "connections": self.connections, "connections_lost": self.connections_lost,
            "client_stall_ns": nanos(self.stall), "found_after_ns": nanos(self.found_after),
            "finding": self.finding, "flows_moved": self.flows_moved,
            "flows_reset": self.flows_reset, "sync_ns": nanos(self.sync),
            "direct_p50_ns": nanos(self.direct_p50), "through_p50_ns": nanos(self.through_p50),
            "verified_bytes": self.verified, "unverified_bytes": self.unverified,
            "own_stall_ns": nanos(self.own_stall),
        })
    }
}

/// Plays it. Errors: the stage broke down, which is no verdict on the gateway's promises.
pub(super) fn play(
    stage: &mut Stage,
    script: &Script,
    teller: &Teller,
) -> Result<Account, StageError> {
    let mut account = Account::default();
    measure_latency(stage, &mut account, teller)?;
    let kept = Kept::start(stage, script.scenario);
    let who = match script.scenario {
        Scenario::Web => "keep-alive connections",
        Scenario::Ftp => "FTP sessions",
        Scenario::Mixed => "keep-alive connections and FTP sessions",
    };
    teller.say(&format!(
        "{KEPT_CONNECTIONS} {who} ask for small files all the time; each byte is checked"
    ));
    pause(stage, script.seconds / 4.0)?;
    let struck = match script.fault {
        Fault::WrongByte => {
            wrong_answer(stage, script, &mut account, teller)?;
            None
        }
        Fault::Slow => {
            slow_backup(stage, script, &mut account, teller)?;
            None
        }
        Fault::Death(death) => {
            wrong_answer(stage, script, &mut account, teller)?;
            pause(stage, script.seconds / 4.0)?;
            Some(die(stage, script, death, &mut account, teller)?)
        }
    };
    pause(stage, script.seconds / 4.0)?;
    kept.stop(&mut account, struck);
    read_counters(stage, &mut account)?;
    stage.read_facts(Duration::ZERO)?;
    let gaps = stage.facts().iter().filter(|fact| is("own_stall")(fact));
    let gaps = gaps.filter_map(|fact| fact.get("gap_ns").and_then(Value::as_u64));
    account.own_stall = gaps.max().map(Duration::from_nanos);
    account.faults_found.extend(reset_stories(stage.facts()));
    Ok(account)
}

/// What befell each connection that the gateway reset, in one line each.
fn reset_stories(facts: &[Fact]) -> Vec<String> {
    let reset = facts.iter().filter(|fact| is("flow_reset")(fact));
    let story = |reset: &Fact| {
        let flow = reset.get("flow");
        let of_it = facts.iter().filter(|fact| fact.get("flow") == flow && !is("mask_hit")(fact));
        let text =
            |fact: &Fact, key: &str| fact.get(key).and_then(Value::as_str).map(str::to_owned);
        let steps = of_it.filter(|fact| !is("request_resent")(fact)).map(|fact| {
            let keys = ["event", "server", "to", "solo", "reason"];
            let words: Vec<_> = keys.iter().filter_map(|key| text(fact, key)).collect();
            format!("{} {}", fact.get("t_ns").unwrap_or(&Value::Null), words.join(" "))
        });
        let client = flow.and_then(|flow| flow.get("client")).and_then(Value::as_str);
        let steps: Vec<_> = steps.collect();
        format!("{} was reset: {}", client.unwrap_or("?"), steps.join(", "))
    };
    reset.map(story).collect()
}

/// Lets the clients work while events are read.
fn pause(stage: &mut Stage, seconds: f64) -> Result<(), StageError> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        stage.read_facts(left)?;
    }
    Ok(())
}

fn measure_latency(
    stage: &Stage,
    account: &mut Account,
    teller: &Teller,
) -> Result<(), StageError> {
    let work = Work::Get { bytes: 100, count: Some(LATENCY_REQUESTS), pause: Duration::ZERO };
    let through = Client::start(stage, Plan::new(target(&stage.world, LegId::A), work)).end()?;
    account.take("a keep-alive client", &through);
    let dir = stage.config_file().with_file_name("direct");
    let direct = std::fs::create_dir_all(&dir)
        .map_err(|source| StageError::Io { what: "making a folder", source })
        .and_then(|()| routed_stage(&dir))?;
    let direct = Client::start(&direct, Plan::new(target(&direct.world, LegId::A), work)).end()?;
    let median = |outcome: &Outcome| Duration::from_nanos(outcome.latency.value_at_quantile(0.5));
    let (through, direct) = (median(&through), median(&direct));
    (account.through_p50, account.direct_p50) = (Some(through), Some(direct));
    teller.say(&format!(
        "a small request takes {} through the gateway, {} by the kernel's own routing (median)",
        show(through),
        show(direct)
    ));
    Ok(())
}

/// The backup answers with a wrong byte: found, held, made equal.
fn wrong_answer(
    stage: &mut Stage,
    script: &Script,
    account: &mut Account,
    teller: &Teller,
) -> Result<(), StageError> {
    let from = stage.facts().len();
    let primary = stage.primary()?;
    let backup = primary.other();
    teller.say(&format!("one file of server {} now has a wrong byte", server_name(backup)));
    plant_wrong_file(stage, backup)
        .map_err(|source| StageError::Io { what: "planting a wrong byte", source })?;
    let plan = plan(stage, script.scenario.is_ftp(0), FILE_BYTES, Some(2), Duration::ZERO);
    let reader = Client::start(stage, plan);
    let at = stage.wait_fact(from, "a divergence", WAIT, is("diverged"))?;
    teller.say(&format!("  found: {}", describe_divergence(&stage.facts()[at])));
    account.take("the reader of the wrong file", &reader.end()?);
    let ended = stage.wait_fact(from, "the end of a sync", WAIT, is("sync_ended"))?;
    let fact = &stage.facts()[ended];
    let took = Duration::from_nanos(fact.get("took_ns").and_then(Value::as_u64).unwrap_or(0));
    account.sync = Some(took);
    if fact.get("ok") != Some(&Value::Bool(true)) {
        account.faults_found.push(format!("the sync failed: {}", fact["message"]));
    }
    if stage.wrong_file(backup).exists() {
        account.faults_found.push("the sync did not make the backup equal".into());
    }
    stage.wait_protected(WAIT)?;
    teller.say(&format!(
        "  the sync command made server {} equal in {}; protected again",
        server_name(backup),
        show(took)
    ));
    let mut plan = download(stage, script, 0);
    plan.plant_at = script.plants_wrong_byte.then_some(DOWNLOAD_BYTES / 3);
    account.take("a download after the sync", &Client::start(stage, plan).end()?);
    Ok(())
}

/// Whole at once: an empty file would make every answer wrong, not the one of this length.
fn plant_wrong_file(stage: &Stage, leg: LegId) -> std::io::Result<()> {
    let file = stage.wrong_file(leg);
    let draft = file.with_extension("new");
    std::fs::write(&draft, FILE_BYTES.to_string())?;
    std::fs::rename(draft, file)
}

pub(super) fn describe_divergence(fact: &Fact) -> String {
    let client = fact.get("flow").and_then(|flow| flow.get("client")).and_then(Value::as_str);
    let (client, at) = (client.unwrap_or("?"), &fact["at"]);
    match fact.get("bytes").filter(|bytes| !bytes.is_null()) {
        Some(bytes) => format!(
            "{client} offset {at}: a says {}, b says {}; nothing of it was shown",
            bytes["a"], bytes["b"]
        ),
        None => format!("{client} offset {at}: one answer is longer; nothing of it was shown"),
    }
}

/// The backup becomes slow: the clients do not wait for it.
fn slow_backup(
    stage: &mut Stage,
    script: &Script,
    account: &mut Account,
    teller: &Teller,
) -> Result<(), StageError> {
    let from = stage.facts().len();
    let backup = stage.primary()?.other();
    teller.say(&format!("server {} becomes slow", server_name(backup)));
    std::fs::write(stage.slow_file(backup), "")
        .map_err(|source| StageError::Io { what: "slowing a server", source })?;
    let mut plan = download(stage, script, 0);
    plan.plant_at = script.plants_wrong_byte.then_some(DOWNLOAD_BYTES / 3);
    let outcome = Client::start(stage, plan).end()?;
    account.take("a download beside a slow server", &outcome);
    account.stall = Some(outcome.gap_max);
    let is_late = |fact: &Fact| is("hold_hard")(fact) || to_lagging(fact);
    stage.wait_fact(from, "a late answer", WAIT, is_late)?;
    teller.say(&format!(
        "  found: its answers are late; the download went on with the other one and waited {} \
         at most",
        show(outcome.gap_max)
    ));
    std::fs::remove_file(stage.slow_file(backup))
        .map_err(|source| StageError::Io { what: "ending the slowness", source })?;
    teller.say(&format!("server {} is fast again", server_name(backup)));
    stage.wait_protected(WAIT)?;
    teller.say("  protected by two servers again");
    Ok(())
}

fn to_lagging(fact: &Fact) -> bool {
    is("flow_changed")(fact) && fact.get("to").and_then(Value::as_str) == Some("lagging")
}

/// The primary dies in the middle of downloads, and comes back. Gives the instant of its death.
fn die(
    stage: &mut Stage,
    script: &Script,
    death: Death,
    account: &mut Account,
    teller: &Teller,
) -> Result<Instant, StageError> {
    let from = stage.facts().len();
    let primary = stage.primary()?;
    let name = server_name(primary);
    // 10 % to 60 % of the way, so that there is enough left to lose.
    let mark = DOWNLOAD_BYTES / 10 + script.seed.wrapping_mul(7_919_017) % (DOWNLOAD_BYTES / 2);
    let (reached, told) = mpsc::channel();
    let downloads: Vec<_> = (0..DOWNLOADS)
        .map(|number| {
            let mut plan = download(stage, script, number);
            plan.marks = vec![mark];
            let planted = script.plants_wrong_byte && number == 0;
            plan.plant_at = planted.then_some(DOWNLOAD_BYTES * 9 / 10);
            Client::start_telling(stage, plan, reached.clone())
        })
        .collect();
    drop(reached);
    match told.recv_timeout(WAIT) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            account.faults_found.push(format!("no download reached {mark} bytes"));
        }
    }
    let struck = Instant::now();
    death.strike(&stage.world, primary)?;
    teller.say(&format!(
        "{} server {name}, the primary, {mark} bytes into {DOWNLOADS} downloads of \
         {DOWNLOAD_BYTES}",
        death.verb()
    ));
    let promoted = stage.wait_fact(from, "a failover", WAIT, is("promoted"))?;
    account.found_after = Some(struck.elapsed());
    note_promotion(&stage.facts()[promoted], account, teller);
    for download in downloads {
        let outcome = download.end()?;
        account.take("a download over the failover", &outcome);
        account.stall = account.stall.max(Some(outcome.gap_max));
    }
    stage.read_facts(Duration::ZERO)?;
    let alone = stage.facts()[from..].iter().filter(|fact| {
        is("early_end")(fact) && fact.get("server").and_then(Value::as_str) == Some(name)
    });
    let alone = alone.count() as u64;
    account.flows_moved = account.flows_moved.map(|moved| moved + alone);
    if alone > 0 {
        teller.say(&format!("  {alone} more moved one by one, as the dying server ended them"));
    }
    if let Some(stall) = account.stall {
        teller.say(&format!(
            "  both downloads completed on their connections; their longest wait was {}",
            show(stall)
        ));
    }
    let from = stage.facts().len();
    death.undo(stage, primary)?;
    teller.say(&format!("server {name} comes back"));
    stage.wait_fact(from, "the server's return", WAIT, is("rejoined"))?;
    stage.wait_protected(WAIT)?;
    teller.say(&format!("  it is backup now; new connections have two servers again ({name} too)"));
    account.take(
        "a download after the return",
        &Client::start(stage, download(stage, script, 0)).end()?,
    );
    Ok(struck)
}

pub(super) fn note_promotion(fact: &Fact, account: &mut Account, teller: &Teller) {
    let text = |key| fact.get(key).and_then(Value::as_str).unwrap_or("?");
    let number = |key| fact.get(key).and_then(Value::as_u64);
    account.finding = Some(text("finding").to_owned());
    (account.flows_moved, account.flows_reset) = (number("moved"), number("reset"));
    if account.flows_reset != Some(0) {
        account.faults_found.push(format!("{:?} connections were reset", account.flows_reset));
    }
    teller.say(&format!(
        "  server {} is primary now (finding {}): {} connections moved, {} reset",
        text("server"),
        text("finding"),
        account.flows_moved.unwrap_or(0),
        account.flows_reset.unwrap_or(0),
    ));
}

pub(super) fn read_counters(stage: &Stage, account: &mut Account) -> Result<(), StageError> {
    let counters = stage.counters()?.counters;
    let released = counters.iter().filter(|c| c.name == "shadowvm_released_bytes_total");
    for counter in released {
        let is_verified = counter.labels.get("verified").is_some_and(|value| value == "yes");
        let bytes = counter.value as u64;
        *if is_verified { &mut account.verified } else { &mut account.unverified } += bytes;
    }
    Ok(())
}

pub(super) fn is(name: &'static str) -> impl Fn(&Fact) -> bool {
    move |fact| fact.get("event").and_then(Value::as_str) == Some(name)
}

fn download(stage: &Stage, script: &Script, number: usize) -> Plan {
    let is_ftp = script.scenario.is_ftp(number);
    plan(stage, is_ftp, DOWNLOAD_BYTES, Some(1), Duration::ZERO)
}

fn plan(stage: &Stage, is_ftp: bool, bytes: u64, count: Option<u64>, pause: Duration) -> Plan {
    let mut target = target(&stage.world, LegId::A);
    if !is_ftp {
        return Plan::new(target, Work::Get { bytes, count, pause });
    }
    target.set_port(ftp::PORT);
    Plan::new(target, Work::Retr { bytes, count, pause })
}

/// A time for people.
pub(super) fn show(time: Duration) -> String {
    match time.as_micros() {
        us @ 0..10_000 => format!("{us} us"),
        us => format!("{:.1} ms", us as f64 / 1e3),
    }
}

/// The connections that live through the whole play.
struct Kept {
    stop: Arc<AtomicBool>,
    clients: Vec<Client>,
}

impl Kept {
    fn start(stage: &Stage, scenario: Scenario) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number| {
            let is_ftp = scenario.is_ftp(number);
            let pause = if is_ftp { TRANSFER_PAUSE } else { SMALL_PAUSE };
            let plan = plan(stage, is_ftp, SMALL_BYTES, None, pause);
            Client::start(stage, Plan { stop: Some(Arc::clone(&stop)), ..plan })
        };
        let clients = (0..KEPT_CONNECTIONS).map(client).collect();
        Self { stop, clients }
    }

    fn stop(self, account: &mut Account, struck: Option<Instant>) {
        self.stop.store(true, Relaxed);
        for client in self.clients {
            match client.end() {
                Ok(outcome) => {
                    account.take("a client with small files", &outcome);
                    if struck.is_some_and(|struck| outcome.gap_ended >= struck) {
                        account.stall = account.stall.max(Some(outcome.gap_max));
                    }
                }
                Err(error) => account.faults_found.push(error.to_string()),
            }
        }
    }
}
