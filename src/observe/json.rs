//! Event -> one JSON object: the event log's lines and the admin socket's `/events`.
//!
//! `{"t_ns": <UNIX time>, "event": "<snake_case>", ...}`. Servers appear by name and, as `leg`, by
//! link; offsets count response bytes from 0.

use serde_json::{Map, Value, json};

use super::names::Name;
use crate::engine::{DivergenceKind, Event, FlowKey, LegId, ServiceState, SyncReason};
use crate::wire::Offset;

/// The event as an object; `t_ns` is UNIX time in nanoseconds.
pub fn event_json(t_ns: u64, event: &Event, names: &[String; 2]) -> Value {
    let mut object = Map::new();
    object.insert("t_ns".into(), t_ns.into());
    object.insert("event".into(), event_name(event).into());
    if let Value::Object(fields) = fields(event, names) {
        object.extend(fields);
    }
    Value::Object(object)
}

/// The event's name.
pub fn event_name(event: &Event) -> &'static str {
    match event {
        Event::Rejected { .. } => "rejected",
        Event::CookieGiven { .. } => "cookie_given",
        Event::CookieTaken { .. } => "cookie_taken",
        Event::CookiesTurned { .. } => "cookies_turned",
        Event::FlowOpened { .. } => "flow_opened",
        Event::FlowChanged { .. } => "flow_changed",
        Event::FlowClosed { .. } => "flow_closed",
        Event::Unprotected { .. } => "unprotected",
        Event::Released { .. } => "released",
        Event::MaskHit { .. } => "mask_hit",
        Event::PairNoted { .. } => "pair_noted",
        Event::ValueReplaced { .. } => "value_replaced",
        Event::ValueKept { .. } => "value_kept",
        Event::ValueDoubtful { .. } => "value_doubtful",
        Event::ReturnsUnread { .. } => "returns_unread",
        Event::PairsDropped { .. } => "pairs_dropped",
        Event::PairsLost => "pairs_lost",
        Event::ComparedRaw { .. } => "compared_raw",
        Event::DataOffered { .. } => "data_offered",
        Event::EarlyEnd { .. } => "early_end",
        Event::HoldSoft { .. } => "hold_soft",
        Event::HoldHard { .. } => "hold_hard",
        Event::Diverged { .. } => "diverged",
        Event::FlowReset { .. } => "flow_reset",
        Event::Reprotected { .. } => "reprotected",
        Event::NotReprotected { .. } => "not_reprotected",
        Event::RequestResent { .. } => "request_resent",
        Event::ServerChanged { .. } => "server_changed",
        Event::PortChanged { .. } => "port_changed",
        Event::ServiceChanged { .. } => "service_changed",
        Event::FindingHeld { .. } => "finding_held",
        Event::Promoted { .. } => "promoted",
        Event::Detached { .. } => "detached",
        Event::Rejoined { .. } => "rejoined",
        Event::OwnStall { .. } => "own_stall",
        Event::SyncStarted { .. } => "sync_started",
        Event::SyncFrozen { .. } => "sync_frozen",
        Event::SyncEnded { .. } => "sync_ended",
        Event::SyncCoalesced { .. } => "sync_coalesced",
        Event::DatagramJudged { .. } => "datagram_judged",
        Event::CommandDone { .. } => "command_done",
    }
}

fn fields(event: &Event, names: &[String; 2]) -> Value {
    let server = |leg: LegId| names[leg.index()].as_str();
    match event {
        Event::Rejected { link, reason } => {
            json!({ "link": link.name(), "reason": reason.name() })
        }
        Event::CookiesTurned { on, half_open } => json!({ "on": on, "half_open": half_open }),
        Event::CookieGiven { flow } | Event::CookieTaken { flow } | Event::FlowOpened { flow } => {
            json!({ "flow": flow_json(flow) })
        }
        Event::FlowReset { flow, by_servers } => {
            json!({ "flow": flow_json(flow), "by_servers": by_servers })
        }
        Event::FlowChanged { flow, from, to, primary, solo, shown } => json!({
            "flow": flow_json(flow), "from": from.name(), "to": to.name(),
            "primary": server(*primary), "leg": primary.name(),
            "solo": solo.map(|reason| reason.name()),
            "shown": { "seq": shown.seq, "ack": shown.ack, "edge": shown.edge },
        }),
        Event::FlowClosed { flow, last, released, verified, was_reset } => json!({
            "flow": flow_json(flow), "last": last.name(), "released_bytes": released,
            "verified_bytes": verified, "was_reset": was_reset,
        }),
        Event::Unprotected { flow, reason } => {
            json!({ "flow": flow_json(flow), "reason": reason.name() })
        }
        Event::Released { flow, verified, unverified, waited } => json!({
            "flow": flow_json(flow), "verified_bytes": verified, "unverified_bytes": unverified,
            "waited_ns": nanos(*waited),
        }),
        Event::MaskHit { flow, rule, at, len } => json!({
            "flow": flow_json(flow), "protocol": rule.protocol, "header": &*rule.field,
            "at": position(*at), "len": len,
        }),
        Event::PairNoted { flow, rule, at } => json!({
            "flow": flow_json(flow), "protocol": rule.protocol, "header": &*rule.field,
            "at": position(*at),
        }),
        Event::ValueReplaced { flow, to, rule, at } => json!({
            "flow": flow_json(flow), "server": server(*to), "leg": to.name(),
            "protocol": rule.protocol, "header": &*rule.field, "at": position(*at),
        }),
        Event::ValueKept { flow, to, rule, at, why } => json!({
            "flow": flow_json(flow), "server": server(*to), "leg": to.name(),
            "protocol": rule.protocol, "header": &*rule.field,
            "at": position(*at), "reason": why.name(),
        }),
        Event::PairsLost => json!({ "reason": "restarted" }),
        Event::PairsDropped { why, count } => json!({ "reason": why.name(), "count": count }),
        Event::ValueDoubtful { flow } => json!({ "flow": flow_json(flow) }),
        Event::ComparedRaw { flow, why } | Event::ReturnsUnread { flow, why } => {
            json!({ "flow": flow_json(flow), "reason": why.name() })
        }
        Event::DataOffered { flow, port, outcome } => {
            json!({ "flow": flow_json(flow), "port": port, "outcome": outcome.name() })
        }
        Event::EarlyEnd { flow, loser } => json!({
            "flow": flow_json(flow), "server": server(*loser), "leg": loser.name(),
        }),
        Event::HoldSoft { flow, waiting_for } | Event::HoldHard { flow, waiting_for } => json!({
            "flow": flow_json(flow), "server": server(*waiting_for), "leg": waiting_for.name(),
        }),
        Event::Diverged { flow, divergence } => {
            let bytes = match divergence.kind {
                DivergenceKind::Byte(a, b) => Some(json!({ "a": a, "b": b })),
                DivergenceKind::Length => None,
            };
            json!({
                "flow": flow_json(flow), "at": position(divergence.at),
                "kind": divergence.kind.name(), "bytes": bytes,
                "field": divergence.field.as_ref().map(ToString::to_string),
            })
        }
        Event::Reprotected { flow, server: leg } => json!({
            "flow": flow_json(flow), "server": server(*leg), "leg": leg.name(),
        }),
        Event::NotReprotected { flow, server: leg, why } => json!({
            "flow": flow_json(flow), "server": server(*leg), "leg": leg.name(),
            "reason": why.name(),
        }),
        Event::RequestResent { flow, to, bytes } => json!({
            "flow": flow_json(flow), "server": server(*to), "leg": to.name(), "bytes": bytes,
        }),
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
        | Event::CommandDone { .. } => rare_fields(event, names),
    }
}

/// The fields of what happens to servers, syncs and the gateway itself.
fn rare_fields(event: &Event, names: &[String; 2]) -> Value {
    let server = |leg: LegId| names[leg.index()].as_str();
    match event {
        Event::ServerChanged { server: leg, from, to } => json!({
            "server": server(*leg), "leg": leg.name(), "from": from.name(), "to": to.name(),
        }),
        Event::PortChanged { server: leg, port, accepted } => json!({
            "server": server(*leg), "leg": leg.name(), "port": port, "accepted": accepted,
        }),
        Event::ServiceChanged { from, to } => json!({
            "from": from.name(), "to": to.name(), "reason": degraded_reason(to),
        }),
        Event::FindingHeld { server: leg, finding, why } => json!({
            "server": server(*leg), "leg": leg.name(), "finding": finding.name(),
            "why": why.name(),
        }),
        Event::Promoted { epoch, primary, finding, moved, reset } => json!({
            "epoch": epoch.0, "server": server(*primary), "leg": primary.name(),
            "finding": finding.name(), "moved": moved, "reset": reset,
        }),
        Event::Detached { epoch, server: leg, finding, flows } => json!({
            "epoch": epoch.0, "server": server(*leg), "leg": leg.name(),
            "finding": finding.name(), "flows": flows,
        }),
        Event::Rejoined { epoch, server: leg } => json!({
            "epoch": epoch.0, "server": server(*leg), "leg": leg.name(),
        }),
        Event::OwnStall { gap } => json!({ "gap_ns": nanos(*gap) }),
        Event::SyncFrozen { id, from, to } => {
            json!({ "id": id.0, "from": server(*from), "to": server(*to) })
        }
        Event::SyncStarted { id, reason, from, to } => {
            let flow = match reason {
                SyncReason::Divergence(flow) => Some(flow_json(flow)),
                _ => None,
            };
            json!({
                "id": id.0, "reason": reason.name(), "flow": flow, "from": server(*from),
                "to": server(*to),
            })
        }
        Event::SyncEnded { id, ok, message, took } => json!({
            "id": id.0, "ok": ok, "message": message, "took_ns": nanos(*took),
        }),
        Event::SyncCoalesced { id } => json!({ "id": id.0 }),
        Event::DatagramJudged { only } => json!({ "only": only.map(|leg| leg.name()) }),
        Event::CommandDone { id, result } => json!({
            "id": id, "ok": result.is_ok(), "error": result.err().map(|error| error.name()),
        }),
        // `fields` has the other events; it names each of them.
        _ => Value::Null,
    }
}

/// A flow: addresses with ports, and VLAN ids if there are any.
pub fn flow_json(flow: &FlowKey) -> Value {
    let mut object = json!({
        "client": flow.client.to_string(), "server": flow.server.to_string(),
    });
    if flow.vlan != (None, None) {
        object["vlan"] = json!([flow.vlan.0, flow.vlan.1]);
    }
    object
}

/// Why a service is degraded, if it is.
pub fn degraded_reason(state: &ServiceState) -> Option<&'static str> {
    match state {
        ServiceState::Degraded(reason) => Some(reason.name()),
        _ => None,
    }
}

/// Bytes of the response before `at`.
fn position(at: Offset) -> u64 {
    at.since(Offset::START)
}

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::tests::{every_event, names};

    #[test]
    fn every_event_has_a_line_of_its_own_name() {
        let mut seen = std::collections::BTreeSet::new();
        for event in every_event() {
            let line = event_json(5, &event, &names());
            assert_eq!(line["t_ns"], 5);
            assert_eq!(line["event"], event_name(&event));
            assert!(seen.insert(event_name(&event)), "{event:?}");
            assert!(line.as_object().is_some_and(|o| o.len() >= 3), "{line}");
        }
    }

    #[test]
    fn a_promotion_and_a_divergence_read_as_documented() {
        let all: Vec<Value> =
            every_event().iter().map(|event| event_json(1, event, &names())).collect();
        let promoted = all.iter().find(|v| v["event"] == "promoted").expect("it is among them");
        assert_eq!(
            promoted.to_string(),
            "{\"epoch\":2,\"event\":\"promoted\",\"finding\":\"h1_refused\",\"leg\":\"b\",\
             \"moved\":3,\"reset\":1,\"server\":\"two\",\"t_ns\":1}"
        );
        let diverged = all.iter().find(|v| v["event"] == "diverged").expect("it is among them");
        assert_eq!(diverged["at"], 41);
        assert_eq!(diverged["bytes"]["b"], 8);
        assert_eq!(diverged["flow"]["client"], "198.51.100.7:4242");
    }
}
