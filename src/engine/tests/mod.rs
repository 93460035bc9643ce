//! Scripts: one rule of the contract each, every segment by hand.

mod bad_input;
mod bridge;
mod chunks;
mod control;
mod cookies;
mod copied;
mod ends;
mod finer;
mod forged;
mod found;
mod ftp;
mod ftp_active;
mod ftp_data;
mod half_open;
mod http;
mod kit;
mod lateness;
mod maps;
mod mismatches;
mod opaque;
mod probes;
mod properties;
mod reprotect;
mod rest;
mod returned;
mod servers;
mod splices;
mod vip;

use self::kit::{ACK, CLIENT_ISS as C, FIN, ISS, Kit, RST, SYN, SYN_ACK, config, say};
use super::{
    Command, Duration, EngineConfig, Event, Finding, FlowState, Input, LagPolicy, LegId, Link,
    Rules, Signal, SoloReason, SyncScope, SyncStep,
};
use crate::wire::TcpFlags;
use LegId::{A, B};

const TO_A: Link = Link::Server(A);
const TO_B: Link = Link::Server(B);
const P: u32 = ISS[0] + 1;
const Q: u32 = ISS[1] + 1;
const R: u32 = C + 1;

fn state(kit: &Kit) -> FlowState {
    kit.engine.flows(1)[0].state
}

#[test]
fn a_syn_goes_to_both_and_the_synack_waits_for_both() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460).scale(7).sack_ok().stamps(10, 0));
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (1, 1));
    let options = say(SYN_ACK, ISS[0], R).mss(1460).scale(9).sack_ok().stamps(500, 10);
    kit.leg(A, options);
    assert!(kit.on(Link::Client).is_empty());
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1400).scale(5).stamps(77, 10).window(100));
    let shown = &kit.on(Link::Client)[0].seg;
    let options = shown.options;
    assert_eq!((options.mss, options.window_scale), (Some(1400), Some(5)));
    assert!(!options.sack_permitted, "B has no SACK");
    assert_eq!(shown.window, 100, "the lower window");
    assert_eq!(options.timestamps.map(|(v, _)| v.0), Some(500));
    // The third ack, in each leg's own numbers and timestamps.
    kit.forget();
    kit.client(say(ACK, R, P).stamps(12, 500));
    let (a, b) = (kit.on(TO_A)[0].seg, kit.on(TO_B)[0].seg);
    assert_eq!((a.ack, b.ack), (P, Q));
    assert_eq!(a.options.timestamps.map(|(_, e)| e.0), Some(500));
    assert_eq!(b.options.timestamps.map(|(_, e)| e.0), Some(77));
    assert_eq!(state(&kit), FlowState::Paired);
}

/// The other leg has no timestamps, so that the client has none after its SYN: what it would have
/// said stands in, and never before the SYN's, or the leg drops everything (RFC 7323 5.3).
#[test]
fn a_leg_alone_with_timestamps_hears_a_clock_that_goes_on_from_the_clients_syn() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460).stamps(3_000_000_000, 0));
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460));
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460).stamps(77, 3_000_000_000));
    assert_eq!(kit.on(Link::Client)[0].seg.options.timestamps, None);
    kit.forget();
    kit.client(say(ACK, R, P));
    kit.wait_ms(25);
    kit.client(say(ACK, R, P).data("GET"));
    let heard = kit.on(TO_B);
    let stamps: Vec<_> = heard.iter().filter_map(|h| h.seg.options.timestamps).collect();
    assert_eq!(stamps.len(), heard.len());
    assert_eq!((stamps[0].0.0, stamps[0].1.0), (3_000_000_000, 77));
    assert_eq!(stamps.last().map(|s| s.0.0), Some(3_000_000_025));
}

/// By Nagle's rule neither server says the rest of a small segment before that is acknowledged, and
/// a masked value is not shown in parts: at the limit of the hold the primary's beginning is.
#[test]
fn two_servers_that_wait_inside_a_masked_value_are_not_waited_for_without_end() {
    let mut masked = config();
    masked.rules = Rules::headers(["date"]);
    let mut kit = Kit::new(masked);
    kit.establish();
    kit.client(say(ACK, R, P).data("GET / HTTP/1.1\r\n\r\n"));
    let head = "HTTP/1.1 200 OK\r\nDate: ".len() as u32;
    kit.leg(A, say(ACK, P, R + 18).data("HTTP/1.1 200 OK\r\nDate: Mon"));
    kit.leg(B, say(ACK, Q, R + 18).data("HTTP/1.1 200 OK\r\nDate: Tue"));
    kit.client(say(ACK, R + 18, P + head));
    assert_eq!(state(&kit), FlowState::Paired);
    kit.wait_ms(200);
    assert_eq!(state(&kit), FlowState::Lagging);
    assert_eq!(kit.on(Link::Client).last().map(|h| h.data.clone()), Some(b"Mon".to_vec()));
    kit.forget();
    kit.client(say(ACK, R + 18, P + head + 3));
    assert_eq!(kit.on(TO_A).last().map(|h| h.seg.ack), Some(P + head + 3));
    assert_eq!(kit.on(TO_B).last().map(|h| h.seg.ack), Some(Q + head + 3));
    kit.leg(A, say(ACK, P + head + 3, R + 18).data("day\r\n\r\n"));
    kit.leg(B, say(ACK, Q + head + 3, R + 18).data("day\r\n\r\n"));
    assert_eq!(state(&kit), FlowState::Paired, "verified, but for the masked value");
}

/// The same where the backup has said all of it: each flow goes on without the primary, which has
/// failed for all that by no means.
#[test]
fn a_primary_that_waits_inside_masked_values_has_not_failed() {
    let mut masked = config();
    masked.rules = Rules::headers(["date"]);
    let mut kit = Kit::new(masked);
    let ports = 40_000..40_004;
    for port in ports.clone() {
        kit.say(Link::Client, say(SYN, C, 0).mss(1460), port);
        kit.say(TO_A, say(SYN_ACK, ISS[0], R).mss(1460), port);
        kit.say(TO_B, say(SYN_ACK, ISS[1], R).mss(1460), port);
        kit.say(Link::Client, say(ACK, R, P).data("GET / HTTP/1.1\r\n\r\n"), port);
        kit.say(TO_A, say(ACK, P, R + 18).data("HTTP/1.1 200 OK\r\nDate: M"), port);
    }
    let rest = "HTTP/1.1 200 OK\r\nDate: Mo\r\n\r\n";
    for port in ports {
        kit.say(TO_B, say(ACK, Q, R + 18).data(rest), port);
    }
    kit.wait_ms(200);
    let is_promotion = |event: &&Event| matches!(event, Event::Promoted { .. });
    assert_eq!(kit.events.iter().find(is_promotion), None);
    assert_eq!(state(&kit), FlowState::Solo);
}

/// The rest of its answer may wait for the client's ack, which the client may delay.
#[test]
fn a_primary_that_waits_for_a_delayed_ack_is_not_late() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("abc"));
    kit.leg(B, say(ACK, Q, R + 3).data("abcdef"));
    kit.wait_ms(200);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.client(say(ACK, R + 3, P + 3));
    kit.wait_ms(200);
    assert_eq!(state(&kit), FlowState::Solo, "nothing keeps it from going on now");
}

/// A repetition in one piece of what was said, and shown, in many.
#[test]
fn small_segments_are_repeated_as_one() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    for i in 0..10 {
        kit.leg(A, say(ACK, P + 2 * i, R + 3).data("ab"));
        kit.leg(B, say(ACK, Q + 2 * i, R + 3).data("ab"));
    }
    kit.wait_ms(50);
    kit.forget();
    kit.leg(A, say(ACK, P, R + 3).data("abababababababababab"));
    let shown = kit.on(Link::Client);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!((shown[0].seg.seq, shown[0].data.len()), (P, 20));
}

#[test]
fn only_what_both_said_is_shown_whatever_the_segmentation() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    assert_eq!(kit.on(TO_A)[0].data, b"GET");
    assert_eq!(kit.on(TO_B)[0].seg.ack, Q);
    kit.forget();
    kit.leg(A, say(ACK, P, R + 3).data("hello wor"));
    assert!(kit.on(Link::Client).is_empty(), "B has neither acked nor answered");
    kit.leg(B, say(ACK, Q, R + 3).data("hel"));
    let shown = kit.on(Link::Client);
    assert_eq!((shown[0].data.as_slice(), shown[0].seg.seq), (&b"hel"[..], P));
    assert_eq!(shown[0].seg.ack, R + 3);
    kit.leg(B, say(ACK, Q + 3, R + 3).data("lo world"));
    kit.leg(A, say(ACK, P + 9, R + 3).data("ld"));
    let all: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(all, b"hello world");
}

#[test]
fn the_ack_shown_is_the_lower_one_and_its_advance_is_told() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("12345"));
    kit.leg(A, say(ACK, P, R + 5));
    assert!(kit.on(Link::Client).is_empty());
    kit.leg(B, say(ACK, Q, R + 2));
    assert_eq!(kit.on(Link::Client).last().map(|h| h.seg.ack), Some(R + 2));
    kit.leg(B, say(ACK, Q, R + 5));
    assert_eq!(kit.on(Link::Client).last().map(|h| h.seg.ack), Some(R + 5));
}

#[test]
fn request_bytes_that_one_leg_lost_are_resent_from_here() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("12345"));
    kit.forget();
    kit.leg(A, say(ACK, P, R + 5));
    kit.wait_ms(8);
    let resent = kit.on(TO_B);
    assert_eq!(resent.len(), 1, "{resent:?}");
    assert_eq!((resent[0].data.as_slice(), resent[0].seg.seq), (&b"12345"[..], R));
    assert!(kit.on(TO_A).is_empty());
}

#[test]
fn a_leg_that_catches_up_behind_the_clients_ack_is_told_at_once() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("answer"));
    kit.wait_ms(200); // hold_hard: the flow is Lagging, A's bytes are shown
    assert_eq!(state(&kit), FlowState::Lagging);
    let shown: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(shown, b"answer");
    kit.client(say(ACK, R + 3, P + 6));
    kit.forget();
    let heard = kit.leg(B, say(ACK, Q, R + 3).data("answer"));
    let acks: Vec<u32> = heard.iter().filter(|h| h.link == TO_B).map(|h| h.seg.ack).collect();
    assert_eq!(acks, [Q + 6]);
    assert_eq!(state(&kit), FlowState::Paired, "verified and caught up");
}

#[test]
fn a_difference_is_held_then_resolved_for_the_primary_and_nothing_is_mixed() {
    let mut with_sync = config();
    with_sync.sync_scope = Some(SyncScope::Content);
    let mut kit = Kit::new(with_sync);
    let first = kit.syncs[0].id;
    kit.input(Input::SyncStep(first, SyncStep::TargetReady));
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.forget();
    kit.leg(A, say(ACK, P, R + 3).data("abcX"));
    kit.leg(B, say(ACK, Q, R + 3).data("abcY and more"));
    let shown =
        |kit: &Kit| -> Vec<u8> { kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect() };
    assert_eq!(shown(&kit), b"abc");
    assert_eq!(state(&kit), FlowState::Diverged);
    kit.wait_ms(200);
    assert_eq!(shown(&kit), b"abcX", "the deadline releases the primary's version");
    assert_eq!(kit.syncs.len(), 2);
    assert_eq!(state(&kit), FlowState::Solo);
    assert!(kit.on(TO_B).iter().any(|h| h.seg.flags.has(RST)), "B's leg is detached");
}

#[test]
fn one_sync_mends_what_was_asked_before_its_end() {
    let sync_scope = Some(SyncScope::Content);
    let mut kit = Kit::new(EngineConfig { sync_scope, ..config() });
    kit.mend();
    kit.wait_ms(250); // syncs keep a distance
    kit.forget();
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    let other = 40_001;
    kit.say(Link::Client, say(SYN, C, 0).mss(1460), other);
    for leg in LegId::ALL {
        kit.say(Link::Server(leg), say(SYN_ACK, ISS[leg.index()], R).mss(1460), other);
    }
    kit.say(Link::Client, say(ACK, R, P).data("GET"), other);
    kit.leg(A, say(ACK, P, R + 3).data("right"));
    kit.leg(B, say(ACK, Q, R + 3).data("wrong"));
    kit.wait_ms(5);
    assert_eq!(kit.syncs.len(), 2, "the first one, and one for the difference");
    kit.mend();
    // The other flow's answers were on their way: they differ for the same reason.
    kit.wait_ms(1);
    kit.say(Link::Client, say(ACK, R + 3, P), other); // asks nothing
    kit.say(TO_A, say(ACK, P, R + 3).data("right"), other);
    kit.say(TO_B, say(ACK, Q, R + 3).data("wrong"), other);
    kit.wait_ms(1000);
    assert_eq!(kit.syncs.len(), 2, "no other one for what was asked before its end");
    let shown: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(shown, b"rightright", "nothing of the wrong answer");
    // What is asked now has to be right.
    let third = 40_002;
    kit.say(Link::Client, say(SYN, C, 0).mss(1460), third);
    for leg in LegId::ALL {
        kit.say(Link::Server(leg), say(SYN_ACK, ISS[leg.index()], R).mss(1460), third);
    }
    kit.say(Link::Client, say(ACK, R, P).data("GET"), third);
    kit.say(TO_A, say(ACK, P, R + 3).data("right"), third);
    kit.say(TO_B, say(ACK, Q, R + 3).data("wrong"), third);
    kit.wait_ms(1000);
    assert_eq!(kit.syncs.len(), 3, "a difference after the sync is a new one");
}

#[test]
fn a_fin_of_one_leg_is_held_and_both_make_one() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.leg(A, say(FIN, P, R));
    assert!(kit.on(Link::Client).is_empty());
    kit.leg(B, say(FIN, Q, R));
    let shown = kit.on(Link::Client);
    assert_eq!(shown.len(), 1);
    assert_eq!((shown[0].seg.flags, shown[0].seg.seq), (FIN, P));
}

#[test]
fn the_leg_that_ends_early_loses_and_the_flow_moves_at_once() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(B, say(ACK, Q, R + 3).data("0123456789"));
    kit.leg(A, say(ACK, P, R + 3).data("0123"));
    kit.leg(A, say(FIN, P + 4, R + 3));
    let shown: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(shown, b"0123456789");
    assert!(kit.on(Link::Client).iter().all(|h| !h.seg.flags.has(TcpFlags::FIN)));
    let flow = &kit.engine.flows(1)[0];
    assert_eq!(
        (flow.state, flow.primary, flow.solo),
        (FlowState::Solo, B, Some(SoloReason::EarlyEnd))
    );
}

#[test]
fn carrier_loss_promotes_and_held_bytes_leave_at_once_in_the_same_numbers() {
    let mut kit = Kit::new(config());
    kit.establish_with(
        |s| s.stamps(10, 0),
        |s| {
            let value = if s.seq == ISS[0] { 1 << 30 } else { 3 };
            s.stamps(value, 10)
        },
    );
    kit.client(say(ACK, R, P).data("GET").stamps(13, 1 << 30));
    kit.leg(A, say(ACK, P, R + 3).data("0123").stamps((1 << 30) + 2, 13));
    kit.leg(B, say(ACK, Q, R + 3).data("0123456789").stamps(5, 13));
    kit.forget();
    kit.input(Input::Signal(TO_A, Signal::CarrierDown));
    let shown = kit.on(Link::Client);
    assert_eq!((shown[0].data.as_slice(), shown[0].seg.seq), (&b"456789"[..], P + 4));
    let (value, _) = shown[0].seg.options.timestamps.expect("timestamps");
    assert!(value.0 >= (1 << 30) + 2, "I8: the clock goes on, {value:?}");
    assert!(kit.events.iter().any(|e| matches!(e, Event::Promoted { primary: B, moved: 1, .. })));
    // The client's ack reaches B in B's numbers, with a timestamp that B sent.
    kit.forget();
    kit.client(say(ACK, R + 3, P + 10).stamps(14, value.0));
    assert!(kit.on(TO_A).is_empty());
    let to_b = kit.on(TO_B)[0].seg;
    assert_eq!(to_b.ack, Q + 10);
    assert_eq!(to_b.options.timestamps.map(|(_, e)| e.0), Some(5));
    // A fenced server is not heard.
    kit.forget();
    kit.leg(A, say(ACK, P + 4, R + 3).data("bad"));
    assert!(kit.on(Link::Client).is_empty());
}

#[test]
fn the_window_shown_is_the_lower_one_and_opens_when_the_backup_opens() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("12345"));
    kit.leg(A, say(ACK, P, R + 5).window(60_000));
    kit.leg(B, say(ACK, Q, R + 5).window(0));
    let edge = |kit: &Kit| {
        let last = kit.on(Link::Client).last().expect("an ack").seg;
        last.ack.wrapping_add(u32::from(last.window))
    };
    assert_eq!(edge(&kit), R + 60_000, "an edge that was shown is never taken back");
    kit.leg(B, say(ACK, Q, R + 5).window(65_000));
    kit.leg(A, say(ACK, P, R + 5).window(65_000));
    assert_eq!(edge(&kit), R + 5 + 65_000);
}

#[test]
fn duplicate_acks_of_both_legs_make_one_and_sack_is_the_intersection() {
    let mut kit = Kit::new(config());
    kit.establish_with(|s| s.sack_ok(), |s| s.sack_ok());
    // 10 bytes lost before the gateway, 10 arrive.
    kit.client(say(ACK, R + 10, P).data("bbbbbbbbbb"));
    kit.client(say(ACK, R + 20, P).data("cccccccccc"));
    kit.forget();
    kit.leg(A, say(ACK, P, R).sack(&[(R + 10, R + 20)]));
    assert!(kit.on(Link::Client).is_empty());
    kit.leg(A, say(ACK, P, R).sack(&[(R + 10, R + 30)]));
    kit.leg(B, say(ACK, Q, R).sack(&[(R + 10, R + 20)]));
    let shown = kit.on(Link::Client);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(shown[0].seg.options.sack.as_slice(), [(R + 10, R + 20)]);
    kit.leg(B, say(ACK, Q, R).sack(&[(R + 10, R + 30)]));
    let shown = kit.on(Link::Client);
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[1].seg.options.sack.as_slice(), [(R + 10, R + 30)]);
}

#[test]
fn a_masked_date_is_atomic_and_the_primarys_is_shown() {
    let mut masked = config();
    masked.rules = Rules::headers(["date"]);
    let mut kit = Kit::new(masked);
    kit.establish();
    kit.client(say(ACK, R, P).data("GET / HTTP/1.1\r\n\r\n"));
    let r = R + 18;
    kit.leg(
        A,
        say(ACK, P, r).data("HTTP/1.1 200 OK\r\nDate: Sat, 01\r\nContent-Length: 2\r\n\r\nok"),
    );
    kit.leg(B, say(ACK, Q, r).data("HTTP/1.1 200 OK\r\nDate: Sa"));
    let shown = |kit: &Kit| -> String {
        let all = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
        String::from_utf8(all).expect("text")
    };
    assert_eq!(shown(&kit), "HTTP/1.1 200 OK\r\nDate: ");
    kit.leg(B, say(ACK, Q + 25, r).data("t, 02\r\nContent-Length: 2\r\n\r\nok"));
    assert!(shown(&kit).ends_with("Sat, 01\r\nContent-Length: 2\r\n\r\nok"));
    assert!(kit.events.iter().any(|e| matches!(e, Event::MaskHit { len: 7, .. })));
    assert_eq!(state(&kit), FlowState::Paired);
}

#[test]
fn a_backup_that_may_have_lost_a_packet_is_no_witness_of_the_end() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    // The worker of A dies in the middle of its answer; B's repeats it after its timeout of 1 s.
    kit.leg(B, say(ACK, Q, R + 3));
    kit.leg(A, say(FIN, P, R + 3).data("half"));
    kit.wait_ms(200);
    kit.client(say(ACK, R + 3, P + 4));
    assert_eq!(state(&kit), FlowState::Lagging);
    kit.wait_ms(1300);
    kit.leg(B, say(ACK, Q, R + 3).data("half and half"));
    kit.wait_ms(100);
    let shown: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(shown, b"half and half");
    assert!(kit.on(Link::Client).iter().all(|h| !h.seg.flags.has(TcpFlags::FIN)));
}

#[test]
fn a_carrier_that_went_while_findings_were_held_is_acted_on_afterwards() {
    let mut kit = Kit::new(config());
    kit.command(Command::Pause);
    kit.input(Input::Signal(TO_A, Signal::CarrierDown));
    kit.wait_ms(3000);
    assert_eq!(kit.engine.status().roles.primary, A, "paused");
    kit.command(Command::Resume);
    kit.wait_ms(100);
    assert_eq!(kit.engine.status().roles.primary, B);
}

#[test]
fn strict_holds_and_available_does_not() {
    for policy in [LagPolicy::Strict, LagPolicy::Available] {
        let mut kit = Kit::new(EngineConfig { on_lag: policy, ..config() });
        kit.establish();
        kit.client(say(ACK, R, P).data("GET"));
        kit.leg(A, say(ACK, P, R + 3).data("answer"));
        kit.leg(B, say(ACK, Q, R + 3));
        kit.wait_ms(300);
        let shown = kit.on(Link::Client).into_iter().map(|h| h.data.len()).sum::<usize>();
        assert_eq!(shown, if policy == LagPolicy::Strict { 0 } else { 6 });
    }
}

#[test]
fn a_planned_switch_keeps_the_flow_paired_and_serves_from_the_other() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.command(Command::Failover { to: None, is_planned: true });
    let done = kit.events.iter().find_map(|e| match e {
        Event::CommandDone { result, .. } => Some(*result),
        _ => None,
    });
    assert_eq!(done, Some(Ok(())));
    let flow = &kit.engine.flows(1)[0];
    assert_eq!((flow.state, flow.primary), (FlowState::Paired, B));
    kit.leg(B, say(ACK, Q, R).data("xy"));
    kit.leg(A, say(ACK, P, R).data("xy"));
    let shown = kit.on(Link::Client);
    assert_eq!((shown[0].seg.seq, shown[0].data.as_slice()), (P, &b"xy"[..]));
}

#[test]
fn a_reset_of_the_client_reaches_both_legs_exactly() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(RST, R, 0));
    assert_eq!(kit.on(TO_A).last().map(|h| (h.seg.flags, h.seg.seq)), Some((RST, R)));
    assert_eq!(kit.on(TO_B).last().map(|h| (h.seg.flags, h.seg.seq)), Some((RST, R)));
}

#[test]
fn an_operators_failover_needs_a_peer() {
    let mut kit = Kit::new(config());
    kit.input(Input::Signal(TO_B, Signal::CarrierDown));
    kit.forget();
    kit.command(Command::Failover { to: None, is_planned: false });
    let refused = |e: &Event| matches!(e, Event::CommandDone { result: Err(_), .. });
    assert!(kit.events.iter().any(refused));
    let _ = (Finding::Operator, Duration::ZERO);
}

#[test]
fn one_flow_and_the_application_probe_find_a_frozen_primary() {
    let mut kit = Kit::new(EngineConfig { probe_http: true, ..config() });
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3)); // the kernel acknowledges, the application is frozen
    kit.leg(B, say(ACK, Q, R + 3).data("answer"));
    let mut seen = 0;
    for _ in 0..140 {
        kit.wait_ms(1);
        let fresh: Vec<_> = kit.heard[seen..].to_vec();
        seen = kit.heard.len();
        for h in fresh.iter().filter(|h| h.seg.src_port > 61_000) {
            let Link::Server(leg) = h.link else { continue };
            let end = h.seg.seq.wrapping_add(h.data.len() as u32);
            if h.seg.flags.has(SYN) {
                kit.say(h.link, say(SYN_ACK, 70, h.seg.seq.wrapping_add(1)), h.seg.src_port);
            } else if !h.data.is_empty() && leg == B {
                kit.say(h.link, say(ACK, 71, end).data("HTTP/1.0 200"), h.seg.src_port);
            }
        }
    }
    let found = |e: &Event| matches!(e, Event::Promoted { finding: Finding::H3, .. });
    assert!(kit.events.iter().any(found), "{:?}", kit.events.last());
    assert!(kit.on(Link::Client).iter().any(|h| h.data == b"answer"));
}

#[test]
fn a_flow_in_its_last_minute_moves_with_the_roles() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(FIN, R, P));
    kit.leg(A, say(FIN, P, R + 1));
    kit.leg(B, say(FIN, Q, R + 1));
    kit.client(say(ACK, R + 1, P + 1));
    assert_eq!(state(&kit), FlowState::TimeWait);
    kit.input(Input::Signal(TO_A, Signal::CarrierDown));
    kit.forget();
    // The client missed the last ack and repeats its FIN; both servers had taken it.
    kit.client(say(FIN, R, P + 1));
    assert_eq!(kit.on(Link::Client)[0].seg.ack, R + 1);
    // B missed the client's last ack and repeats its own.
    kit.leg(B, say(FIN, Q, R + 1));
    assert_eq!(kit.on(TO_B)[0].seg.ack, Q + 1);
}

#[test]
fn after_a_restart_flows_go_on_and_dates_are_masked_again_from_the_next_request() {
    let mut masked = config();
    masked.rules = Rules::headers(["date"]);
    let mut kit = Kit::new(masked.clone());
    kit.establish();
    let records = kit.records.clone();
    let mut kit = Kit::restored(masked, records);
    // The probes made all three ends state their positions.
    let probes = kit.on(Link::Client);
    assert!(!probes.is_empty(), "the client is asked");
    kit.client(say(ACK, R + 40, P + 100));
    kit.leg(A, say(ACK, P + 100, R + 40));
    kit.leg(B, say(ACK, Q + 100, R + 40));
    kit.forget();
    kit.client(say(ACK, R + 40, P + 100).data("GET / HTTP/1.1\r\n\r\n"));
    assert_eq!(kit.on(TO_B)[0].seg.ack, Q + 100);
    let r = R + 58;
    let answer =
        |date: &str| format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n");
    kit.leg(A, say(ACK, P + 100, r).data(answer("one")));
    kit.leg(B, say(ACK, Q + 100, r).data(answer("two")));
    let shown: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(String::from_utf8_lossy(&shown), answer("one"));
    assert_eq!(state(&kit), FlowState::Paired);
}

#[test]
fn a_window_beyond_what_the_field_can_say_makes_no_duplicate_acks() {
    let mut kit = Kit::new(config());
    let scale = |seq: u32| if seq == ISS[0] { 0 } else { 7 };
    kit.establish_with(
        |s| s.scale(0),
        |s| {
            let shift = scale(s.seq);
            s.scale(shift)
        },
    );
    kit.client(say(ACK, R, P).data([1; 5000]));
    kit.leg(A, say(ACK, P, R + 5000).window(65_535));
    kit.leg(B, say(ACK, Q, R).window(60_000));
    kit.forget();
    for i in 0..5 {
        kit.leg(A, say(ACK, P + i, R + 5000).window(65_535).data("x"));
    }
    assert!(kit.on(Link::Client).is_empty(), "{:?}", kit.on(Link::Client));
}

#[test]
fn a_backup_many_answers_behind_is_verified_with_its_dates_masked() {
    let mut masked = config();
    masked.rules = Rules::headers(["date"]);
    let mut kit = Kit::new(masked);
    kit.establish();
    let request = "GET / HTTP/1.1\r\n\r\n";
    let answer = |date: &str| {
        format!("HTTP/1.1 200 OK\r\nDate: 05:30:{date}\r\nContent-Length: 2000\r\n\r\n{:2000}", "")
    };
    let (mut r, mut at) = (R, 0u32);
    let mut behind = Vec::new();
    for i in 0..1500 {
        kit.client(say(ACK, r, P + at).data(request));
        r += request.len() as u32;
        let (ours, theirs) =
            (answer(&format!("{:02}", i % 57)), answer(&format!("{:02}", i % 57 + 3)));
        let len = ours.len() as u32;
        kit.leg(A, say(ACK, P + at, r).data(&ours));
        kit.leg(B, say(ACK, Q + at, r)); // its kernel acknowledges, its application is late
        behind.push((at, theirs));
        at += len;
        if i == 0 {
            kit.wait_ms(160);
            assert_eq!(state(&kit), FlowState::Lagging);
        }
        kit.client(say(ACK, r, P + at));
        kit.wait_ms(1);
    }
    for (from, theirs) in behind {
        kit.leg(B, say(ACK, Q + from, r).data(&theirs));
        assert_ne!(state(&kit), FlowState::Solo, "after {from}: {:?}", kit.events);
    }
    assert_eq!(state(&kit), FlowState::Paired);
}

/// The client has a range beyond a hole, and so has the gateway: the leg that alone misses what
/// lies before it is told of it once. Told twice, the first block would say that the range came
/// twice (RFC 2883 4.2), and the leg would take its own repetitions for needless.
#[test]
fn a_range_beyond_a_hole_is_told_a_leg_once() {
    let mut kit = Kit::new(config());
    kit.establish_with(|s| s.sack_ok(), |s| s.sack_ok());
    for (leg, first) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, first + 200, R).data([b'r'; 100]));
    }
    kit.leg(A, say(ACK, P, R).data([b'r'; 100]));
    kit.forget();
    kit.client(say(ACK, R, P).sack(&[(P + 200, P + 300)]));
    let told: Vec<_> = kit.on(TO_B).iter().map(|h| h.seg.options.sack).collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].as_slice(), [(Q + 200, Q + 300)]);
}
