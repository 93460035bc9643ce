//! The play with servers that are copied as a whole: a difference behind one's back is found and
//! copied away, and both are killed one after the other under the same connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::cast::Client;
use super::super::copied::Copied;
use super::super::guests::{FILE_BYTES, LARGE_BYTES, SMALL_BYTES};
use super::super::stage::{Stage, StageError, server_name, target};
use super::Teller;
use super::story::{Account, describe_divergence, is, note_promotion, read_counters, show};
use crate::engine::LegId;
use crate::lab::ftp;
use crate::lab::web::client::{Plan, Work};

/// Until both guests have started in software emulation, on a machine that has other work too.
const BOOT_WAIT: Duration = Duration::from_secs(120);
/// How long anything else that must happen may take.
const WAIT: Duration = Duration::from_secs(60);
/// Connections that live through the whole play: half of them HTTP, half of them FTP.
const KEPT_CONNECTIONS: usize = 4;
const SMALL_PAUSE: Duration = Duration::from_millis(50);
const TRANSFER_PAUSE: Duration = Duration::from_millis(200);

/// Plays it.
pub(super) fn play(
    stage: &mut Stage,
    copied: &Copied,
    seed: u64,
    teller: &Teller,
) -> Result<Account, StageError> {
    let mut account = Account::default();
    teller.say(copied.beginning());
    stage.wait_protected(BOOT_WAIT)?;
    let sync = copy_when_ready(stage, copied)?;
    teller.say(&format!(
        "both run; one was made a copy of the other in {}; the service is protected",
        show(sync)
    ));
    let stop = Arc::new(AtomicBool::new(false));
    let kept: Vec<Client> = (0..KEPT_CONNECTIONS)
        .map(|number| {
            let plan = plan(stage, number % 2 == 1, SMALL_BYTES, None);
            Client::start(stage, Plan { stop: Some(Arc::clone(&stop)), ..plan })
        })
        .collect();
    teller.say(&format!(
        "{KEPT_CONNECTIONS} connections (HTTP and FTP) ask for small files all the time; each byte \
         is checked"
    ));
    differ(stage, copied, &mut account, teller)?;
    for number in 0..2 {
        kill(stage, copied, seed + number, &mut account, teller)?;
    }
    stop.store(true, Relaxed);
    for client in kept {
        account.take("a client with small files", &client.end()?);
    }
    teller.say(&format!("the {KEPT_CONNECTIONS} connections have lived through all of it"));
    read_counters(stage, &mut account)?;
    Ok(account)
}

/// The first copy may have been made while its source was still starting, and each guest then goes
/// on with that by itself. So another one is made as soon as the servers are there.
fn copy_when_ready(stage: &mut Stage, copied: &Copied) -> Result<Duration, StageError> {
    let started = copied.wait_started(stage.primary()?, BOOT_WAIT);
    started.map_err(|source| StageError::Io { what: "waiting for the servers", source })?;
    stage.read_facts(Duration::ZERO)?;
    let from = stage.facts().len();
    // Where the other one is not there, or a sync is under way, another one is about to come.
    let _ = stage.sync_now();
    let begun = stage.wait_fact(from, "a sync", BOOT_WAIT, is("sync_started"))?;
    let took = last_sync(stage, begun)?;
    stage.wait_protected(BOOT_WAIT)?;
    Ok(took)
}

/// The backup's answers change behind its back.
fn differ(
    stage: &mut Stage,
    copied: &Copied,
    account: &mut Account,
    teller: &Teller,
) -> Result<(), StageError> {
    let from = stage.facts().len();
    let backup = stage.primary()?.other();
    let (noun, name) = (copied.noun(), server_name(backup));
    let what = copied.differ(stage, backup)?;
    teller.say(&format!("{what} {noun} {name}"));
    // The second answer comes after the sync, on the same connection.
    let reader = Client::start(stage, plan(stage, false, FILE_BYTES, Some(2)));
    let at = stage.wait_fact(from, "a divergence", WAIT, is("diverged"))?;
    teller.say(&format!("  found: {}", describe_divergence(&stage.facts()[at])));
    let ended = stage.wait_fact(at, "the end of a sync", WAIT, is("sync_ended"))?;
    let fact = stage.facts()[ended].clone();
    if fact.get("ok") != Some(&Value::Bool(true)) {
        account.faults_found.push(format!("the sync failed: {}", fact["message"]));
    }
    account.take("the reader of the changed file", &reader.end()?);
    stage.wait_protected(WAIT)?;
    let took = last_sync(stage, from)?;
    account.sync = Some(took);
    teller.say(&format!(
        "  {noun} {name} is a copy of the other one after {}, its connections too",
        show(took)
    ));
    let before = count(stage, "diverged")?;
    let again = Client::start(stage, plan(stage, false, FILE_BYTES, Some(2))).end()?;
    account.take("a reader after the sync", &again);
    if count(stage, "diverged")? > before {
        account.faults_found.push("the servers differ after the sync".into());
    }
    Ok(())
}

/// One is killed in the middle of transfers, and the other one carries on; then it is copied.
fn kill(
    stage: &mut Stage,
    copied: &Copied,
    seed: u64,
    account: &mut Account,
    teller: &Teller,
) -> Result<(), StageError> {
    let from = stage.facts().len();
    let victim = stage.primary()?;
    // 10 % to 60 % of the way, so that there is enough left to lose.
    let mark = LARGE_BYTES / 10 + seed.wrapping_mul(7_919_017) % (LARGE_BYTES / 2);
    let (reached, told) = mpsc::channel();
    let downloads: Vec<_> = [false, true]
        .into_iter()
        .map(|is_ftp| {
            let plan = plan(stage, is_ftp, LARGE_BYTES, Some(1));
            Client::start_telling(stage, Plan { marks: vec![mark], ..plan }, reached.clone())
        })
        .collect();
    drop(reached);
    if told.recv_timeout(WAIT).is_err() {
        account.faults_found.push(format!("no download reached {mark} bytes"));
    }
    let struck = Instant::now();
    let what = copied.kill(stage, victim)?;
    teller.say(&format!(
        "killed {what}, the primary, {mark} bytes into downloads of {LARGE_BYTES} by HTTP and FTP"
    ));
    let promoted = stage.wait_fact(from, "a failover", WAIT, is("promoted"))?;
    account.found_after = account.found_after.max(Some(struck.elapsed()));
    note_promotion(&stage.facts()[promoted], account, teller);
    for download in downloads {
        let outcome = download.end()?;
        account.take("a download over the failover", &outcome);
        if outcome.gap_ended >= struck {
            account.stall = account.stall.max(Some(outcome.gap_max));
        }
    }
    teller.say("  both downloads completed on their connections");
    stage.wait_fact(promoted, "the return of a server", WAIT, is("rejoined"))?;
    stage.wait_protected(WAIT)?;
    let sync = last_sync(stage, promoted)?;
    teller.say(&format!("  {} in {}: protected again", copied.coming_back(), show(sync)));
    let before = count(stage, "diverged")?;
    account.take(
        "a download after the return",
        &Client::start(stage, plan(stage, false, FILE_BYTES, Some(1))).end()?,
    );
    if count(stage, "diverged")? > before {
        account.faults_found.push("the servers differ after the return".into());
    }
    Ok(())
}

/// How long the last good sync since then took.
fn last_sync(stage: &mut Stage, from: usize) -> Result<Duration, StageError> {
    let good = |fact: &super::super::stage::Fact| {
        is("sync_ended")(fact) && fact.get("ok") == Some(&Value::Bool(true))
    };
    stage.wait_fact(from, "a good sync", WAIT, good)?;
    let last = stage.facts()[from..].iter().rev().find(|fact| good(fact));
    let took = last.and_then(|fact| fact.get("took_ns").and_then(Value::as_u64));
    Ok(Duration::from_nanos(took.unwrap_or(0)))
}

fn count(stage: &mut Stage, event: &'static str) -> Result<usize, StageError> {
    stage.read_facts(Duration::ZERO)?;
    Ok(stage.facts().iter().filter(|fact| is(event)(fact)).count())
}

fn plan(stage: &Stage, is_ftp: bool, bytes: u64, count: Option<u64>) -> Plan {
    let mut target = target(&stage.world, LegId::A);
    let work = if is_ftp {
        target.set_port(ftp::PORT);
        Work::Retr { bytes, count, pause: TRANSFER_PAUSE }
    } else {
        Work::Get { bytes, count, pause: SMALL_PAUSE }
    };
    Plan { patience: WAIT, ..Plan::new(target, work) }
}
