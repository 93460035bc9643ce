//! Syncs of scope Machine: the target goes on from the source's state, its connections included.

use super::ftp::{PASSIVE, ftp, reply};
use super::kit::{ACK, CLIENT, CLIENT_ISS as C, ISS, Kit, RST, SYN, SYN_ACK, Say, config, say};
use crate::engine::{
    Command, Duration, EngineConfig, Event, FlowState, Input, LegId, Link, Rules, ServerState,
    ServiceState, Signal, SyncReason, SyncScope, SyncStep,
};
use LegId::{A, B};

const TO_A: Link = Link::Server(A);
const TO_B: Link = Link::Server(B);
const P: u32 = ISS[0] + 1;
const Q: u32 = ISS[1] + 1;
const R: u32 = C + 1;

/// Both servers equal, and a machine sync possible.
fn equal() -> Kit {
    equal_with(config())
}

pub(super) fn equal_with(config: EngineConfig) -> Kit {
    let sync_scope = Some(SyncScope::Machine);
    let sync_deadline = Duration::from_secs(1);
    let mut kit = Kit::new(EngineConfig { sync_scope, sync_deadline, ..config });
    copy(&mut kit);
    kit.wait_ms(250); // syncs keep a distance
    kit.forget();
    kit
}

pub(super) fn copy(kit: &mut Kit) {
    kit.step(SyncStep::Frozen);
    kit.step(SyncStep::TargetReady);
}

fn state(kit: &Kit) -> FlowState {
    kit.engine.flows(1)[0].state
}

fn shown(kit: &Kit) -> Vec<u8> {
    kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect()
}

/// The primary fails, comes back and is asked to be made equal.
pub(super) fn fail_over_and_back(kit: &mut Kit) {
    kit.command(Command::Failover { to: None, is_planned: false });
    kit.wait_ms(10);
    let failed = kit.engine.status().roles.primary.other();
    assert_eq!(kit.engine.status().servers[failed.index()], ServerState::Failed);
    kit.command(Command::Rejoin(failed));
    kit.wait_ms(300);
}

fn differ(kit: &mut Kit) {
    kit.client(say(ACK, R, P).data("GET"));
    kit.forget();
    kit.leg(A, say(ACK, P, R + 3).data("abcX"));
    kit.leg(B, say(ACK, Q, R + 3).data("abcY and more"));
    kit.wait_ms(1);
    assert_eq!((state(kit), shown(kit)), (FlowState::Diverged, b"abc".to_vec()));
}

/// Both servers have answered a connection, and its client has the answer.
fn answered() -> Kit {
    let mut kit = equal();
    kit.establish();
    kit.client(say(ACK, R, P).data("one"));
    for (leg, iss) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, iss, R + 3).data("first"));
    }
    kit.client(say(ACK, R + 3, P + 5));
    kit
}

#[test]
fn an_old_flow_has_two_servers_again_and_survives_the_next_failover() {
    let mut kit = answered();
    fail_over_and_back(&mut kit);
    assert_eq!(state(&kit), FlowState::Solo);
    copy(&mut kit);
    assert_eq!(state(&kit), FlowState::Paired);
    // A has B's numbers now, and is told where the client stands.
    assert!(kit.on(TO_A).iter().any(|h| h.seg.ack == Q + 5 && h.seg.seq == R + 3));
    kit.forget();
    kit.client(say(ACK, R + 3, P + 5).data("two"));
    assert_eq!((kit.on(TO_A)[0].seg.ack, kit.on(TO_B)[0].seg.ack), (Q + 5, Q + 5));
    kit.leg(B, say(ACK, Q + 5, R + 6).data("second"));
    assert!(shown(&kit).is_empty(), "one of two");
    kit.leg(A, say(ACK, Q + 5, R + 6).data("sec"));
    assert_eq!(shown(&kit), b"sec");
    kit.leg(A, say(ACK, Q + 8, R + 6).data("ond and third"));
    kit.command(Command::Failover { to: None, is_planned: false });
    assert_eq!(shown(&kit), b"second and third", "A goes on alone");
    assert!(kit.events.iter().all(|e| !matches!(e, Event::FlowReset { .. })));
}

/// A has failed, is silent, and B has a connection that was both's.
fn lost() -> Kit {
    let mut kit = answered();
    kit.silent = vec![A];
    kit.command(Command::Failover { to: None, is_planned: false });
    kit.syncs.clear();
    kit
}

fn state_of_a(kit: &Kit) -> ServerState {
    kit.engine.status().servers[A.index()]
}

#[test]
fn a_server_that_does_not_come_back_is_replaced_by_a_copy_with_its_connections() {
    let mut kit = lost();
    kit.wait_ms(5900);
    assert_eq!((state_of_a(&kit), kit.syncs.len()), (ServerState::Failed, 0), "it may come back");
    kit.wait_ms(200);
    let asked: Vec<_> = kit.syncs.iter().map(|s| (s.from, s.to, s.reason)).collect();
    assert_eq!(asked, [(B, A, SyncReason::Rejoin)]);
    kit.step(SyncStep::Frozen);
    assert_eq!(state_of_a(&kit), ServerState::Failed, "not before the copy is whole");
    kit.forget();
    kit.step(SyncStep::TargetReady);
    let ended = |e: &Event| matches!(e, Event::SyncEnded { ok: true, .. });
    let rejoined = |e: &Event| matches!(e, Event::Rejoined { server: A, .. });
    let at = |is: &dyn Fn(&Event) -> bool| kit.events.iter().position(is).expect("it is told");
    assert!(at(&ended) < at(&rejoined));
    assert_eq!((state_of_a(&kit), state(&kit)), (ServerState::Up, FlowState::Paired));
    // The copy answers, and can carry on alone.
    kit.silent.clear();
    kit.wait_ms(20);
    kit.client(say(ACK, R + 3, P + 5).data("two"));
    for leg in [A, B] {
        kit.leg(leg, say(ACK, Q + 5, R + 6).data("second"));
    }
    kit.forget();
    kit.command(Command::Failover { to: None, is_planned: false });
    kit.leg(A, say(ACK, Q + 11, R + 6).data(" and third"));
    assert_eq!(shown(&kit), b" and third");
    assert!(kit.events.iter().all(|e| !matches!(e, Event::FlowReset { .. })));
}

#[test]
fn a_copy_that_is_silent_too_fails_again_and_is_left_alone_for_longer() {
    let mut kit = lost();
    kit.wait_ms(6100);
    copy(&mut kit);
    assert_eq!(state_of_a(&kit), ServerState::Up);
    kit.wait_ms(1500);
    assert_eq!(state_of_a(&kit), ServerState::Failed);
    kit.wait_ms(11_000);
    assert_eq!(kit.syncs.len(), 1);
    kit.wait_ms(1500);
    assert_eq!(kit.syncs.len(), 2);
}

#[test]
fn an_operators_sync_mends_a_failed_server_if_it_replaces_the_machine() {
    let mut kit = lost();
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    assert_eq!(kit.syncs.last().map(|s| s.to), Some(A));
    // What fails leaves it as failed as it was.
    kit.step(SyncStep::Frozen);
    kit.forget();
    kit.step(SyncStep::TargetLost { message: "no room".into() });
    assert_eq!(state_of_a(&kit), ServerState::Failed);
    assert!(kit.events.iter().all(|e| !matches!(e, Event::Detached { .. })), "it was already");
    kit.wait_ms(5100);
    assert_eq!(kit.syncs.len(), 2, "tried again");
    // Now the process ends, and with it what the sync was to replace.
    kit.forget();
    kit.input(Input::Signal(TO_A, Signal::Exited));
    assert!(kit.events.iter().any(|e| matches!(e, Event::SyncEnded { ok: false, .. })));
    copy(&mut kit);
    assert_eq!(state_of_a(&kit), ServerState::Failed, "too late");
    kit.command(Command::SyncNow);
    kit.wait_ms(10_000);
    assert_eq!(kit.syncs.len(), 2, "there is no machine to replace");

    // A sync of contents needs a target that lives.
    let sync_scope = Some(SyncScope::Content);
    let mut kit = Kit::new(EngineConfig { sync_scope, ..config() });
    kit.mend();
    kit.silent = vec![A];
    kit.command(Command::Failover { to: None, is_planned: false });
    kit.wait_ms(1000);
    kit.command(Command::SyncNow);
    kit.wait_ms(10_000);
    assert_eq!(kit.syncs.len(), 1);
}

#[test]
fn a_difference_ends_with_the_copy_and_the_old_target_is_not_heard() {
    let mut kit = equal();
    kit.establish();
    differ(&mut kit);
    kit.step(SyncStep::Frozen);
    kit.forget();
    // On its way when B was stopped: of no connection that lives on.
    kit.leg(B, say(ACK, Q + 4, R + 3).data(" that is gone"));
    kit.client(say(ACK, R + 3, P + 3).data("more"));
    assert!(kit.on(TO_B).is_empty(), "nothing is sent to a server that is overwritten");
    kit.step(SyncStep::TargetReady);
    assert_eq!((state(&kit), shown(&kit)), (FlowState::Paired, b"X".to_vec()));
    let to_b = kit.on(TO_B);
    assert!(to_b.iter().any(|h| h.seg.seq == R + 3 && h.data == b"more"), "{to_b:?}");
    assert!(to_b.iter().all(|h| h.seg.ack == P + 3), "in A's numbers: {to_b:?}");
    kit.leg(A, say(ACK, P + 4, R + 7).data("!"));
    assert_eq!(shown(&kit), b"X");
    kit.leg(B, say(ACK, P + 4, R + 7).data("!"));
    assert_eq!(shown(&kit), b"X!");
}

#[test]
fn a_copy_of_a_connection_that_has_ended_is_reset_exactly() {
    let mut kit = equal();
    kit.establish();
    differ(&mut kit);
    kit.step(SyncStep::Frozen);
    kit.client(say(RST, R + 3, 0));
    kit.forget();
    kit.step(SyncStep::TargetReady);
    let resets: Vec<u32> = kit.on(TO_B).iter().map(|h| h.seg.seq).collect();
    assert_eq!((resets, kit.on(TO_B)[0].seg.flags), (vec![R + 3], RST));
}

/// A backend may keep both from hearing long before they stand still: they answer nobody, which
/// says nothing about them, for as long as that may last.
#[test]
fn servers_that_are_kept_from_hearing_have_not_failed() {
    let mut kit = equal();
    kit.establish();
    kit.command(Command::SyncNow);
    kit.wait_ms(900);
    kit.step(SyncStep::Hushed);
    kit.silent = LegId::ALL.to_vec();
    kit.client(say(ACK, R, P).data("GET"));
    kit.events.clear();
    kit.wait_ms(1200);
    assert_eq!(state(&kit), FlowState::Paired);
    let is_judged =
        |e: &&Event| matches!(e, Event::ServerChanged { .. } | Event::ServiceChanged { .. });
    assert_eq!(kit.events.iter().find(is_judged), None);
    kit.step(SyncStep::Failed { message: "too late".into() });
    kit.silent.clear();
    for (leg, iss) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, iss, R + 3).data("yes"));
    }
    kit.wait_ms(3000);
    assert_eq!((state(&kit), shown(&kit)), (FlowState::Paired, b"yes".to_vec()));
    assert!(!kit.events.iter().any(|e| matches!(e, Event::ServerChanged { .. })));

    // Nobody is excused without end.
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    kit.step(SyncStep::Hushed);
    kit.silent = LegId::ALL.to_vec();
    kit.client(say(ACK, R + 3, P + 3).data("GET"));
    kit.wait_ms(4000);
    let is_down = |e: &Event| matches!(e, Event::ServiceChanged { to: ServiceState::Down, .. });
    assert!(kit.events.iter().any(is_down));
}

/// What the source has said of a data connection, and its copy with it, holds for both.
#[test]
fn a_data_connection_that_was_offered_when_the_copy_was_made_is_both_servers() {
    let mut kit = equal_with(ftp());
    kit.establish();
    for (leg, iss) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, iss, R).data("220 hi\r\n"));
    }
    kit.client(say(ACK, R, P + 8).data(PASSIVE));
    kit.forget();
    kit.leg(A, say(ACK, P + 8, R + 6).data(reply("4,1")));
    assert!(!shown(&kit).contains(&b','), "the backup has not said it");
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    copy(&mut kit);
    assert!(shown(&kit).ends_with(reply("4,1").as_bytes()));
    let begin = say(SYN, 7, 0).mss(1460);
    let heard = kit.say_at(Link::Client, begin, (CLIENT, 50_000), 1025);
    let asked: Vec<_> = heard.iter().map(|h| (h.link, h.seg.flags, h.seg.dst_port)).collect();
    assert_eq!(asked, [(TO_A, SYN, 1025), (TO_B, SYN, 1025)]);
}

#[test]
fn a_connection_of_the_target_alone_ends_with_it() {
    let mut kit = equal();
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    // A ends early: the flow moves to B, which is still the backup.
    kit.leg(B, say(ACK, Q, R + 3).data("0123456789"));
    kit.leg(A, say(RST, P, 0));
    kit.wait_ms(60);
    assert_eq!(kit.engine.flows(1)[0].primary, B);
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    kit.step(SyncStep::Frozen);
    kit.forget();
    kit.step(SyncStep::TargetReady);
    let shown = kit.on(Link::Client);
    assert_eq!((shown[0].seg.flags, shown[0].seg.seq), (RST, P + 10));
}

/// The same where it is late, and so not yet the primary: nobody is left.
#[test]
fn a_connection_that_only_a_late_target_could_carry_on_ends_with_it() {
    let mut kit = equal();
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("0123456789"));
    kit.wait_ms(200);
    assert_eq!((state(&kit), shown(&kit)), (FlowState::Lagging, b"0123456789".to_vec()));
    kit.leg(A, say(RST, P + 10, 0));
    kit.wait_ms(60);
    assert_eq!((state(&kit), kit.engine.flows(1)[0].primary), (FlowState::Lagging, A));
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    kit.step(SyncStep::Frozen);
    kit.forget();
    kit.step(SyncStep::TargetReady);
    let shown = kit.on(Link::Client);
    assert_eq!((shown[0].seg.flags, shown[0].seg.seq), (RST, P + 10));
    assert_eq!(kit.engine.status().held_bytes, 0);
}

#[test]
fn a_handshake_under_way_is_answered_by_both() {
    let mut kit = equal();
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    kit.client(say(SYN, C, 0).mss(1460));
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460));
    kit.step(SyncStep::Frozen);
    kit.say(Link::Client, say(SYN, C, 0).mss(1460), 40_001);
    kit.wait_ms(200); // no time for which anybody could be blamed
    assert!(kit.on(Link::Client).is_empty());
    kit.forget();
    kit.step(SyncStep::TargetReady);
    assert_eq!(kit.on(Link::Client).len(), 1, "what A had answered, B has answered");
    assert!(kit.on(TO_B).iter().any(|h| h.seg.flags == SYN && h.seg.src_port == 40_001));
    let states: Vec<FlowState> = kit.engine.flows(2).iter().map(|f| f.state).collect();
    assert_eq!(states, [FlowState::Paired, FlowState::Opening]);
}

#[test]
fn a_sync_that_fails_leaves_the_target_as_it_was_or_costs_it() {
    for is_lost in [false, true] {
        let mut kit = equal();
        kit.establish();
        kit.command(Command::SyncNow);
        kit.wait_ms(1);
        kit.step(SyncStep::Frozen);
        kit.client(say(ACK, R, P).data("GET"));
        kit.command(Command::Failover { to: None, is_planned: false });
        assert_eq!(kit.engine.status().roles.primary, A, "B is not there to take over");
        kit.wait_ms(500);
        let message = String::from("no room");
        match is_lost {
            false => kit.step(SyncStep::Failed { message }),
            true => kit.step(SyncStep::TargetLost { message }),
        }
        if is_lost {
            assert_eq!(state(&kit), FlowState::Solo);
            assert_eq!(kit.engine.status().servers[1], ServerState::Failed);
            continue;
        }
        assert_eq!(state(&kit), FlowState::Paired);
        kit.leg(A, say(ACK, P, R + 3).data("answer"));
        kit.forget();
        kit.wait_ms(20);
        assert!(kit.on(TO_B).iter().any(|h| h.data == b"GET"), "it missed that");
        kit.leg(B, say(ACK, Q, R + 3).data("answer"));
        assert_eq!(shown(&kit), b"answer");
    }
}

#[test]
fn a_target_that_was_not_frozen_is_not_believed() {
    let mut kit = equal();
    kit.establish();
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    kit.step(SyncStep::TargetReady);
    assert_eq!(kit.engine.status().servers[1], ServerState::Failed);
}

/// While one server alone speaks the protocol is followed, so that its masks hold for the copy.
#[test]
fn a_masked_value_may_differ_after_the_copy_as_before() {
    let rules = Rules::headers(["date"]);
    let mut kit = equal_with(EngineConfig { rules, ..config() });
    kit.establish();
    fail_over_and_back(&mut kit);
    let get = "GET / HTTP/1.1\r\n\r\n";
    let n = get.len() as u32;
    let head = |date: &str| format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\n\r\n");
    let len = head("now").len() as u32 + 2;
    kit.client(say(ACK, R, P).data(get));
    let answer = |seq, ack, date: &str| -> Say { say(ACK, seq, ack).data(head(date) + "ok") };
    kit.leg(B, answer(Q, R + n, "now"));
    kit.client(say(ACK, R + n, P + len).data(get));
    // A second answer is under way, as far as into its date.
    let begun = 25;
    let second = head("one") + "ok";
    kit.leg(B, say(ACK, Q + len, R + 2 * n).data(&second[..begun]));
    copy(&mut kit);
    assert_eq!(state(&kit), FlowState::Lagging, "the date that was shown in part goes on");
    for leg in LegId::ALL {
        kit.leg(leg, say(ACK, Q + len + begun as u32, R + 2 * n).data(&second[begun..]));
    }
    assert_eq!(state(&kit), FlowState::Paired);
    kit.client(say(ACK, R + 2 * n, P + 2 * len).data(get));
    kit.forget();
    kit.leg(A, answer(Q + 2 * len, R + 3 * n, "two"));
    kit.leg(B, answer(Q + 2 * len, R + 3 * n, "six"));
    assert_eq!((state(&kit), shown(&kit)), (FlowState::Paired, (head("six") + "ok").into_bytes()));
}

/// No rule applies to what was once found to be no HTTP that everybody reads alike.
#[test]
fn what_was_compared_raw_is_so_after_the_copy() {
    let rules = Rules::headers(["date"]);
    let mut kit = equal_with(EngineConfig { rules, ..config() });
    kit.establish();
    kit.client(say(ACK, R, P).data("GET / HTTP/1.1\nHost: x\n\n"));
    let r = R + 24;
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, r).data("HTTP/1.1 200 OK\r\n\r\n"));
    }
    kit.client(say(ACK, r, P + 19));
    kit.command(Command::SyncNow);
    kit.wait_ms(1);
    copy(&mut kit);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.client(say(ACK, r, P + 19).data("GET / HTTP/1.1\r\n\r\n"));
    for (leg, date) in [(A, "one"), (B, "two")] {
        kit.leg(leg, say(ACK, P + 19, r + 18).data(format!("HTTP/1.1 200 OK\r\nDate: {date}")));
    }
    assert_eq!(state(&kit), FlowState::Diverged);
}
