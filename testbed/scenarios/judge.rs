//! What every scenario has to show, from the gateway's own counters, flows and event log.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use shadowvm::engine::LegId;

use super::bed::Bed;
use super::content::leg_name;
use super::matrix::{Failure, Struck};

/// The time now, as the event log and the captures have it.
pub fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Every connection is Paired (`open` of them are known to be there), at least 99.9 % of what was
/// released had been said by both, and nothing differed.
pub fn paired(bed: &Bed<'_>, open: usize) -> Result<(), Failure> {
    let flows = bed.flows()?;
    let alone = |state: &str| matches!(state, "solo" | "lagging" | "diverged");
    if let Some(flow) = flows.iter().find(|f| alone(&f.state) || f.solo.is_some()) {
        return Err(Failure::Late(format!("not paired before the fault: {flow:?}")));
    }
    let paired = flows.iter().filter(|f| f.state == "paired").count();
    if paired < open {
        let message = format!("{paired} of {open} connections are paired: {flows:?}");
        return Err(Failure::Late(message));
    }
    let verified = bed.count("shadowvm_released_bytes_total", Some("yes"))?;
    let unverified = bed.count("shadowvm_released_bytes_total", Some("no"))?;
    if unverified * 1000 > verified + unverified {
        let message =
            format!("{unverified} bytes unverified before the fault, {verified} verified");
        return Err(Failure::Late(message));
    }
    Ok(no_divergence(bed)?)
}

/// No divergence was ever found.
pub fn no_divergence(bed: &Bed<'_>) -> Result<(), String> {
    match bed.count("shadowvm_divergences_total", None)? {
        0 => Ok(()),
        n => Err(format!("{n} false divergences")),
    }
}

/// From the event log: nothing diverged, no flow was reset, and before the fault no flow was
/// Lagging for more than 1 % of its life.
pub fn events(events: &[Value], struck: Struck) -> Result<(), Failure> {
    let mut opened: BTreeMap<String, u64> = BTreeMap::new();
    let mut lagging: BTreeMap<String, u64> = BTreeMap::new();
    for event in events {
        let (t_ns, name) = (event["t_ns"].as_u64().unwrap_or(0), event["event"].as_str());
        let flow = event["flow"].to_string();
        match name {
            Some("diverged" | "flow_reset") => {
                return Err(Failure::Broken(format!("in the event log: {event}")));
            }
            Some("flow_opened") => {
                opened.insert(flow, t_ns);
            }
            Some("flow_changed") if t_ns < struck.t_ns && event["to"] == "lagging" => {
                lagging.insert(flow, t_ns);
            }
            Some("flow_changed") => {
                if let Some(since) = lagging.remove(&flow) {
                    let life = t_ns.saturating_sub(opened.get(&flow).copied().unwrap_or(since));
                    let late = t_ns.min(struck.t_ns).saturating_sub(since);
                    if late * 100 > life {
                        let message = format!("{flow} was lagging for {late} of {life} ns");
                        return Err(Failure::Late(message));
                    }
                }
            }
            _ => {}
        }
    }
    match lagging.first_key_value() {
        Some((flow, _)) => Err(Failure::Late(format!("{flow} was still lagging in the end"))),
        None => Ok(()),
    }
}

/// From the event log: a connection left `leg` because it was late. Nothing can carry it if the
/// other server fails then.
pub fn was_late(bed: &Bed<'_>, leg: LegId) -> bool {
    let is_late = |e: &Value| e["event"] == "hold_hard" && e["leg"] == leg_name(leg);
    bed.events().is_ok_and(|events| events.iter().any(is_late))
}

/// From the event log: when the server failed, every connection that there was went on with the
/// survivor, or with it from the beginning. A server that is stopped may be left by one connection
/// after the other instead, without ever being found failed.
pub fn moved(events: &[Value], survivor: &str, is_stopped: bool) -> Result<(), String> {
    let is_finding = |e: &&Value| {
        matches!(e["event"].as_str(), Some("promoted")) && e["leg"] == survivor
            || e["event"] == "detached" && e["leg"] != survivor
    };
    let Some(found) = events.iter().find(is_finding) else {
        return if is_stopped { Ok(()) } else { Err("the server was never found failed".into()) };
    };
    let at = found["t_ns"].as_u64().unwrap_or(0);
    let mut state: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut there = Vec::new();
    for event in events {
        let is_later = event["t_ns"].as_u64().unwrap_or(0) > at;
        if is_later {
            break;
        }
        if event == found {
            there = state.keys().cloned().collect();
        }
        let flow = event["flow"].to_string();
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str() {
            Some("flow_opened") => drop(state.insert(flow, ("opening".into(), String::new()))),
            Some("flow_changed") => drop(state.insert(flow, (text("to"), text("leg")))),
            Some("flow_closed") => drop(state.remove(&flow)),
            _ => {}
        }
    }
    for flow in &there {
        let Some((state, leg)) = state.get(flow) else { continue };
        if !matches!(state.as_str(), "opening" | "time_wait")
            && (state != "solo" || leg != survivor)
        {
            return Err(format!("{flow} is {state} on {leg}, not on {survivor}"));
        }
    }
    if found["event"] == "promoted" && found["reset"] != 0 {
        return Err(format!("connections were reset: {found}"));
    }
    Ok(())
}
