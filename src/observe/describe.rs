//! Event -> a sentence for a person, and how loud it is said.
//!
//! The law: anything per packet is trace, anything per flow is debug, WARN wakes a person. Each
//! sentence says what happened, to whom, what was done, and, where there is something to do, what.

use super::json::degraded_reason;
use super::names::Name;
use crate::engine::{
    CommandError, DivergenceKind, Duration, Event, Evidence, Finding, HeldWhy, OfferOutcome,
    ServerState, ServiceState, SoloReason,
};
use crate::wire::Offset;

/// On a busy machine the gateway does not run for some milliseconds every now and then.
const OWN_STALL_TOLD: Duration = Duration::from_millis(100);

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something broke.
    Error,
    /// A person should look.
    Warn,
    /// What happened.
    Info,
    /// What happened to each flow.
    Debug,
    /// What happened to each packet.
    Trace,
}

/// How loud an event is.
pub fn level(event: &Event) -> Level {
    match event {
        Event::Rejected { .. }
        | Event::Released { .. }
        | Event::MaskHit { .. }
        | Event::ValueReplaced { .. }
        | Event::CookieGiven { .. }
        | Event::DatagramJudged { .. } => Level::Trace,
        Event::FlowOpened { .. }
        | Event::CookieTaken { .. }
        | Event::FlowChanged { .. }
        | Event::FlowClosed { .. }
        | Event::Unprotected { .. }
        | Event::EarlyEnd { .. }
        | Event::Reprotected { .. }
        | Event::NotReprotected { .. }
        | Event::HoldSoft { .. }
        | Event::HoldHard { .. }
        | Event::RequestResent { .. }
        | Event::PairNoted { .. }
        | Event::ValueKept { .. }
        | Event::ValueDoubtful { .. }
        | Event::ReturnsUnread { .. }
        | Event::PairsDropped { .. }
        | Event::ComparedRaw { .. }
        | Event::DataOffered { outcome: OfferOutcome::Believed, .. }
        | Event::FlowReset { by_servers: true, .. }
        | Event::SyncCoalesced { .. } => Level::Debug,
        Event::Diverged { .. }
        | Event::PairsLost
        | Event::DataOffered { .. }
        | Event::FlowReset { by_servers: false, .. }
        | Event::FindingHeld { .. }
        | Event::Promoted { .. }
        | Event::Detached { .. }
        | Event::CookiesTurned { on: true, .. } => Level::Warn,
        Event::ServerChanged { to, .. } => match to {
            ServerState::Failed | ServerState::Unfit => Level::Warn,
            ServerState::Unknown | ServerState::Up | ServerState::Returning => Level::Info,
        },
        Event::CookiesTurned { on: false, .. } => Level::Info,
        Event::OwnStall { gap } if *gap < OWN_STALL_TOLD => Level::Debug,
        Event::OwnStall { .. } => Level::Info,
        Event::PortChanged { accepted: false, .. } => Level::Warn,
        Event::PortChanged { accepted: true, .. } => Level::Info,
        Event::ServiceChanged { from, to } => match to {
            ServiceState::Degraded(_) if matches!(from, ServiceState::Degraded(_)) => Level::Info,
            ServiceState::Degraded(_) | ServiceState::Down => Level::Warn,
            ServiceState::Starting | ServiceState::Syncing | ServiceState::Protected => Level::Info,
        },
        Event::SyncEnded { ok: false, .. } => Level::Warn,
        Event::Rejoined { .. }
        | Event::SyncStarted { .. }
        | Event::SyncFrozen { .. }
        | Event::SyncEnded { ok: true, .. }
        | Event::CommandDone { .. } => Level::Info,
    }
}

/// The event as a sentence.
pub fn describe(event: &Event, names: &[String; 2]) -> String {
    let name = |leg: &crate::engine::LegId| names[leg.index()].as_str();
    match event {
        Event::Rejected { link, reason } => {
            format!("refused a frame from link {}: {}", link.name(), reason.name())
        }
        Event::FlowOpened { flow } => format!("{flow}: opened"),
        Event::CookieGiven { flow } => format!("{flow}: answered with a cookie"),
        Event::CookieTaken { flow } => format!("{flow}: the client came back with a cookie"),
        Event::CookiesTurned { on: true, half_open } => {
            format!("{half_open} handshakes are under way: SYNs are answered with cookies")
        }
        Event::CookiesTurned { on: false, half_open } => {
            format!("{half_open} handshakes are under way: no more cookies")
        }
        Event::FlowChanged { flow, from, to, primary, solo, .. } => {
            let why = solo.map(|reason| format!(": {}", solo_text(reason))).unwrap_or_default();
            let (from, to, primary) = (from.name(), to.name(), name(primary));
            format!("{flow}: {from} -> {to}, served by {primary}{why}")
        }
        Event::FlowClosed { flow, released, verified, was_reset, .. } => {
            let how = if *was_reset { "reset by the gateway" } else { "closed" };
            format!("{flow}: {how}; {released} response bytes, {verified} of them verified")
        }
        Event::Unprotected { flow, reason } => {
            format!("{flow}: passes to the primary unprotected: {}", solo_text(*reason))
        }
        Event::Released { flow, verified, unverified, waited } => format!(
            "{flow}: released {verified} verified, {unverified} unverified bytes after {waited:?}"
        ),
        Event::MaskHit { flow, rule, at, len } => {
            let at = at.since(Offset::START);
            format!("{flow}: the rule for {rule} masked {len} bytes at {at}")
        }
        Event::PairNoted { flow, rule, at } => {
            let at = at.since(Offset::START);
            format!("{flow}: what the backup says for {rule} at {at} is remembered")
        }
        Event::ValueReplaced { flow, to, rule, at } => {
            let at = at.since(Offset::START);
            format!("{flow}: {} is told its own {rule} at {at} of the requests", name(to))
        }
        Event::ValueKept { flow, to, rule, at, why } => {
            let (at, why) = (at.since(Offset::START), why.name());
            format!("{flow}: {} is told the other server's {rule} at {at}: {why}", name(to))
        }
        Event::ValueDoubtful { flow } => {
            format!("{flow}: what stands behind a quote may be a value or not: not replaced")
        }
        Event::ReturnsUnread { flow, why } => {
            let why = why.name();
            format!("{flow}: no value that the client returns is replaced from here on: {why}")
        }
        Event::PairsLost => "what an earlier process knew of values \
             that clients return is lost: an old one is known to the server that gave it"
            .into(),
        Event::PairsDropped { why, count } => {
            format!("{count} pairs of values are forgotten: {}", why.name())
        }
        Event::ComparedRaw { flow, why } => {
            format!("{flow}: compared byte by byte from here on, no rule applies: {}", why.name())
        }
        Event::DataOffered { flow, port, outcome } => match outcome {
            OfferOutcome::Believed => {
                format!("{flow}: a data connection to port {port} is expected")
            }
            _ => format!(
                "{flow}: a data connection to port {port} is not expected, and would not be \
                 protected: {}",
                outcome.name()
            ),
        },
        Event::EarlyEnd { flow, loser } => {
            format!("{flow}: {} ended it early; it goes on with the other server", name(loser))
        }
        Event::HoldSoft { flow, waiting_for } => {
            format!("{flow}: output waits for {}; probing", name(waiting_for))
        }
        Event::HoldHard { flow, waiting_for } => format!(
            "{flow}: output waited too long for {}; the lag policy decides",
            name(waiting_for)
        ),
        Event::Diverged { flow, divergence } => {
            let at = divergence.at.since(Offset::START);
            let place = divergence.field.as_ref().map_or(String::new(), |f| format!(" ({f})"));
            let what = match divergence.kind {
                DivergenceKind::Byte(a, b) => {
                    format!("{} says {a:#04x}, {} says {b:#04x}", names[0], names[1])
                }
                DivergenceKind::Length => "one ends where the other goes on".into(),
            };
            format!(
                "{flow}: the servers' answers differ at byte {at}{place}: {what}; nothing \
                 from there on is released before a state sync or its deadline"
            )
        }
        Event::FlowReset { flow, by_servers: true } => {
            format!("{flow}: reset, as every server that took part in it did")
        }
        Event::FlowReset { flow, by_servers: false } => format!(
            "{flow}: reset, because no server could continue it; the client has to reconnect"
        ),
        Event::Reprotected { flow, server } => {
            format!("{flow}: protected again, {} takes part from here on", name(server))
        }
        Event::NotReprotected { flow, server, why } => {
            format!("{flow}: {} does not take part again: {}", name(server), why.name())
        }
        Event::RequestResent { flow, to, bytes } => {
            format!("{flow}: resent {bytes} request bytes to {}", name(to))
        }
        Event::ServerChanged { .. }
        | Event::PortChanged { .. }
        | Event::ServiceChanged { .. }
        | Event::FindingHeld { .. }
        | Event::Promoted { .. }
        | Event::Detached { .. }
        | Event::Rejoined { .. }
        | Event::OwnStall { .. }
        | Event::SyncStarted { .. }
        | Event::SyncFrozen { .. }
        | Event::SyncEnded { .. }
        | Event::SyncCoalesced { .. }
        | Event::DatagramJudged { .. }
        | Event::CommandDone { .. } => describe_rare(event, names),
    }
}

/// What happens to servers, syncs and the gateway itself.
fn describe_rare(event: &Event, names: &[String; 2]) -> String {
    let name = |leg: &crate::engine::LegId| names[leg.index()].as_str();
    match event {
        Event::ServerChanged { server, from, to } => {
            format!("server {}: {} -> {}", name(server), from.name(), to.name())
        }
        Event::PortChanged { server, port, accepted } => {
            let (does, again) = if *accepted { ("accepts", " again") } else { ("refuses", "") };
            format!("server {}: {does} connections to port {port}{again}", name(server))
        }
        Event::ServiceChanged { from, to } => {
            let name = |state: &ServiceState| match degraded_reason(state) {
                Some(reason) => format!("{} ({reason})", state.name()),
                None => state.name().to_owned(),
            };
            let more = degraded_reason(to).map_or("", |_| "; see `shadowvm status`");
            format!("service: {} -> {}{more}", name(from), name(to))
        }
        Event::FindingHeld { server, finding, why } => {
            let (finding, why) = (finding_text(*finding), held_text(*why));
            format!("server {}: {finding}, but no failover: {why}", name(server))
        }
        Event::Promoted { epoch, primary, finding, moved, reset } => format!(
            "failover: {} is primary now (epoch {}): {}; {moved} connections moved, {reset} reset",
            name(primary),
            epoch.0,
            finding_text(*finding),
        ),
        Event::Detached { server, finding, flows, .. } => format!(
            "backup {} detached: {}; {flows} connections go on with the primary alone",
            name(server),
            finding_text(*finding),
        ),
        Event::Rejoined { server, .. } => {
            format!("server {} is back as backup; new connections are protected", name(server))
        }
        Event::OwnStall { gap } => format!(
            "the gateway itself did not run for {gap:?}; findings of that time are not trusted"
        ),
        Event::SyncFrozen { id, from, to } => {
            format!("sync {}: {} and {} stand still", id.0, name(from), name(to))
        }
        Event::SyncStarted { id, reason, from, to } => format!(
            "sync {} started: {} is made equal to {} ({})",
            id.0,
            name(to),
            name(from),
            reason.name()
        ),
        Event::SyncEnded { id, ok: true, took, .. } => {
            format!("sync {} done after {took:?}: the servers are equal", id.0)
        }
        Event::SyncEnded { id, ok: false, message, took } => format!(
            "sync {} failed after {took:?}: {message}; the backup is stale until a sync succeeds \
             (`shadowvm sync now` tries again)",
            id.0
        ),
        Event::DatagramJudged { only: None } => "both servers said a datagram".into(),
        Event::DatagramJudged { only: Some(leg) } => {
            format!("only {} said a datagram", name(leg))
        }
        Event::SyncCoalesced { id } => format!("a divergence joined sync {}", id.0),
        Event::CommandDone { id, result: Ok(()) } => format!("command {id} done"),
        Event::CommandDone { id, result: Err(error) } => {
            format!("command {id} not carried out: {}", command_error_text(*error))
        }
        // `describe` has the other events; it names each of them.
        _ => String::new(),
    }
}

/// Why a connection has one server.
pub fn solo_text(reason: SoloReason) -> &'static str {
    match reason {
        SoloReason::OneServer => "there was one server only",
        SoloReason::Handshake => "one server did not take the connection",
        SoloReason::ServerFailed => "the other server failed",
        SoloReason::EarlyEnd => "the other server ended it early",
        SoloReason::Lag => "the other server was too late",
        SoloReason::Diverged => "the servers' answers differed",
        SoloReason::AuthOption => "it is signed (TCP MD5 or TCP-AO) and cannot be translated",
        SoloReason::Budget => "the hold budget was used up",
        SoloReason::BackupStale => "the backup's content is stale",
        SoloReason::Restored => "it was taken over from before a restart",
        SoloReason::HalfOpen => "its handshake gave way to newer ones",
        SoloReason::SourceLimit => "its network has too many connections",
        SoloReason::Unfollowed => {
            "what comes next is each server's own (encryption, FTP to elsewhere, several ranges)"
        }
        SoloReason::Tls => "it is TLS, which two servers never say alike",
        SoloReason::Ssh => "it is SSH, which two servers never say alike",
        SoloReason::Http2 => "it is HTTP/2, which is not compared",
        SoloReason::OpaquePort => "its port is one of compare.opaque_ports",
    }
}

/// What was found.
pub fn finding_text(finding: Finding) -> &'static str {
    match finding {
        Finding::H1(Evidence::Carrier) => "its link lost the carrier",
        Finding::H1(Evidence::LinkGone) => "its interface is gone",
        Finding::H1(Evidence::Exited) => "it exited",
        Finding::H1(Evidence::Refused) => "it refuses connections while the other accepts",
        Finding::H2 => "it is silent",
        Finding::H3 => "its kernel answers, its application does not",
        Finding::H4 => "one of its connections failed",
        Finding::Operator => "asked for by the operator",
    }
}

fn held_text(why: HeldWhy) -> &'static str {
    match why {
        HeldWhy::BackupUnfit => "the other server is not fit to take over",
        HeldWhy::FlapBudget => {
            "too many failovers lately; `shadowvm failover` does it anyway (failover.flap_max)"
        }
        HeldWhy::Manual => "automatic failover is off; `shadowvm failover` does it",
        HeldWhy::FenceFailed => "the fence command failed; it is tried again after a pause",
    }
}

/// Why a command was not carried out, and what to do.
pub fn command_error_text(error: CommandError) -> &'static str {
    match error {
        CommandError::NoPeer => {
            "the other server is not there or not fit; see `shadowvm status` for why"
        }
        CommandError::Already => "it is so already",
        CommandError::NotEqual => {
            "the servers are not equal on every connection; wait, run `shadowvm sync now`, or fail \
             over without --planned"
        }
        CommandError::Busy => "a state sync is under way; try again when it has ended",
        CommandError::NoBackend => "no sync backend is configured; see [sync] in the configuration",
        CommandError::NeedsRestart => {
            "the new configuration changes what only a restart can change; the old one stays"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::{every_event, names};

    #[test]
    fn every_event_is_a_sentence_without_secrets_of_debug() {
        for event in every_event() {
            let text = describe(&event, &names());
            assert!(text.len() > 10, "{event:?}: {text}");
            assert!(!text.contains("FlowKey") && !text.contains("LegId"), "{text}");
        }
    }

    #[test]
    fn what_comes_with_every_packet_is_trace() {
        for event in every_event() {
            let per_packet = matches!(event, Event::Released { .. } | Event::Rejected { .. });
            assert!(!per_packet || level(&event) == Level::Trace, "{event:?}");
        }
    }
}
