//! Who is late, and who only waits for the client.

use super::*;

/// Client with a far end: its round trip is 600 ms.
fn distant() -> Kit {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460));
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460));
    kit.wait_ms(600);
    kit.client(say(ACK, R, P));
    kit
}

/// A server with a small window of its own says no more before the client's ack, which takes a
/// round trip: it is as healthy as the other.
#[test]
fn a_primary_that_waits_for_a_distant_clients_ack_is_not_late() {
    let mut kit = distant();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("abc"));
    kit.leg(B, say(ACK, Q, R + 3).data("abcdef"));
    kit.wait_ms(800);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.client(say(ACK, R + 3, P + 3));
    kit.wait_ms(200);
    assert_eq!(state(&kit), FlowState::Solo, "nothing keeps it from going on now");
}

/// The wait has its end all the same (LV5): the client may be gone.
#[test]
fn a_distant_clients_ack_is_not_waited_for_without_end() {
    let mut kit = distant();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("abc"));
    kit.leg(B, say(ACK, Q, R + 3).data("abcdef"));
    kit.wait_ms(300 + 3 * 600 + 200);
    assert_eq!(state(&kit), FlowState::Solo);
}

/// What is left of the window is less than a unit of its scale: a server is told of none, and the
/// other one, which said more before that, is no reason to blame it.
#[test]
fn a_primary_whose_window_closed_by_rounding_waits_for_the_client() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460).scale(14).window(16_384));
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460).scale(7));
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460).scale(7));
    kit.client(say(ACK, R, P).window(1).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data([b'x'; 3000]));
    kit.leg(B, say(ACK, Q, R + 3).data([b'x'; 8000]));
    kit.forget();
    kit.client(say(ACK, R + 3, P + 3000).window(0));
    let told = kit.on(TO_A)[0].seg;
    assert_eq!((told.ack, told.window), (P + 3000, 0));
    kit.wait_ms(2000);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.client(say(ACK, R + 3, P + 3000).window(2));
    kit.wait_ms(200);
    assert_eq!(state(&kit), FlowState::Solo, "it has room now");
}

/// The client's window was closed and the update that opened it is lost: a server's probe, a byte
/// that the other server does not say, makes the client repeat it. Then the silent one is late.
#[test]
fn a_probe_of_one_server_asks_the_client() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460).window(3));
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460));
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460));
    kit.client(say(ACK, R, P).window(3).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("abc"));
    kit.leg(B, say(ACK, Q, R + 3).data("abc"));
    kit.client(say(ACK, R + 3, P + 3).window(0));
    kit.wait_ms(300);
    kit.forget();
    kit.leg(B, say(ACK, Q + 3, R + 3).data("d"));
    assert_eq!(kit.on(Link::Client).iter().map(|h| h.seg.seq).collect::<Vec<_>>(), [P + 2]);
    kit.wait_ms(1000);
    assert_eq!(state(&kit), FlowState::Paired, "nobody has room");
    kit.client(say(ACK, R + 3, P + 3));
    kit.wait_ms(1000);
    assert_eq!(state(&kit), FlowState::Solo, "a has room now");
    assert_eq!(kit.on(Link::Client).last().map(|h| h.data.clone()), Some(b"d".to_vec()));
}

/// A client that has said everything needs no window.
#[test]
fn a_backup_without_room_is_not_late_when_the_client_has_ended() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(FIN, R, P).data("last words"));
    kit.leg(A, say(ACK, P, R + 11));
    kit.leg(B, say(ACK, Q, R + 11).window(0));
    kit.wait_ms(2000);
    assert_eq!(state(&kit), FlowState::Paired);
}

/// A server that may still be silent has its own time for a request that comes meanwhile.
#[test]
fn who_may_be_silent_is_not_late_with_a_request_that_just_came() {
    let mut kit = distant();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("abc"));
    kit.leg(B, say(ACK, Q, R + 3).data("abcdef"));
    kit.wait_ms(500);
    kit.client(say(ACK, R + 3, P).data("GET"));
    kit.leg(B, say(ACK, Q + 6, R + 6));
    kit.wait_ms(100);
    assert_eq!(state(&kit), FlowState::Paired, "A has had the second request for 100 ms only");
    kit.wait_ms(60);
    assert_eq!(state(&kit), FlowState::Solo, "and 150 ms are the limit");
}

/// A frozen backup, and clients that come one after the other: each waits a second for it, and no
/// two at the same time. The third wait is enough.
#[test]
fn a_backup_that_stands_still_is_found_by_short_connections() {
    let rules = Rules::headers(["date"]);
    let mut kit = Kit::new(EngineConfig { rules, ..config() });
    let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (asked, told) = (R + request.len() as u32, P + answer.len() as u32);
    for port in 1000..1003 {
        let is_left = |e: &Event| matches!(e, Event::Detached { server: B, .. });
        assert!(!kit.events.iter().any(is_left), "{port}");
        kit.say(Link::Client, say(SYN, C, 0).mss(1460), port);
        for leg in LegId::ALL {
            kit.say(Link::Server(leg), say(SYN_ACK, ISS[leg.index()], R).mss(1460), port);
        }
        kit.say(Link::Client, say(ACK, R, P), port);
        kit.say(Link::Client, say(ACK, R, P).data(request), port);
        kit.say(TO_B, say(ACK, Q, asked), port); // its kernel lives
        kit.say(TO_A, say(FIN, P, asked).data(answer), port);
        kit.wait_ms(1500);
        kit.say(Link::Client, say(FIN, asked, told + 1), port);
        kit.say(TO_A, say(ACK, told + 1, asked + 1), port);
        kit.say(TO_B, say(ACK, Q, asked + 1), port);
    }
    let found = kit.events.iter().find_map(|e| match e {
        Event::Detached { server: B, finding, .. } => Some(*finding),
        _ => None,
    });
    assert_eq!(found, Some(Finding::H3));
}

/// 1.7: what is outstanding for a late backup is waited for as long as that gets on.
#[test]
fn a_late_backup_without_progress_is_given_up_after_five_seconds() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("answer"));
    kit.wait_ms(4900);
    assert_eq!(state(&kit), FlowState::Lagging);
    kit.leg(B, say(ACK, Q, R + 3).data("an"));
    kit.wait_ms(4900);
    assert_eq!(state(&kit), FlowState::Lagging);
    kit.forget();
    kit.wait_ms(200);
    assert_eq!(kit.engine.flows(1)[0].solo, Some(SoloReason::Lag));
    assert!(kit.on(TO_B).iter().any(|h| h.seg.flags.has(RST)));
}

/// One that has done all that it could do and only has no room is none of those.
#[test]
fn a_backup_that_owes_nothing_is_not_given_up() {
    let mut kit = Kit::new(config());
    kit.establish_with(|s| s.scale(7), |s| s.scale(7));
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3));
    // All that it granted so far is used up.
    kit.client(say(ACK, R + 3, P).data(vec![b'x'; 59_997]));
    kit.leg(A, say(ACK, P, R + 60_000));
    kit.leg(B, say(ACK, Q, R + 60_000).window(0));
    kit.wait_ms(10_000);
    assert_eq!(state(&kit), FlowState::Lagging);
    kit.leg(B, say(ACK, Q, R + 60_000));
    assert_eq!(state(&kit), FlowState::Paired);
}

/// 1.7: what only the gateway has of the client's bytes is bounded.
#[test]
fn a_backup_that_is_behind_by_more_than_is_kept_for_it_is_given_up() {
    let mut kit = Kit::new(config());
    kit.establish_with(|s| s.scale(7), |s| s.scale(7));
    let mut sent = 0;
    while state(&kit) != FlowState::Solo {
        assert!(sent < 5 << 20, "it is never given up");
        kit.client(say(ACK, R + sent, P).data(vec![b'x'; 50_000]));
        sent += 50_000;
        kit.leg(A, say(ACK, P, R + sent));
        if state(&kit) == FlowState::Paired {
            kit.wait_ms(160);
        }
    }
    assert!(sent > 4 << 20, "after {sent} bytes");
}

/// 1.7: it leaves when that has room for it.
#[test]
fn a_late_backup_is_sent_nothing_beyond_its_window() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460));
    for leg in LegId::ALL {
        kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460).window(3));
    }
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("abc"));
    kit.leg(B, say(ACK, Q, R + 3).window(0));
    kit.wait_ms(200);
    assert_eq!(state(&kit), FlowState::Lagging);
    kit.forget();
    kit.client(say(ACK, R + 3, P + 3).data("more"));
    kit.leg(A, say(ACK, P + 3, R + 7));
    kit.wait_ms(3000);
    assert!(kit.on(TO_B).iter().all(|h| h.data.is_empty()), "{:?}", kit.on(TO_B));
    kit.leg(B, say(ACK, Q, R + 3).window(2));
    let sent: Vec<u8> = kit.on(TO_B).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(sent, b"mo");
}

/// What the client itself says again it has lost, and so maybe has the backup.
#[test]
fn what_the_client_repeats_reaches_a_late_backup_at_once() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("answer"));
    kit.wait_ms(160);
    assert_eq!(state(&kit), FlowState::Lagging);
    kit.forget();
    kit.client(say(ACK, R, P).data("GET"));
    let sent: Vec<_> = kit.on(TO_B).into_iter().map(|h| h.data).collect();
    assert_eq!(sent, [b"GET"]);
}

/// 1.6: how often a request is said again, in milliseconds from when it was said first.
#[test]
fn a_request_is_repeated_ever_more_seldom() {
    let repeated = |takes: bool, hold_ms: u64| {
        let hold_hard = Duration::from_millis(hold_ms);
        let mut kit = Kit::new(EngineConfig { hold_hard, ..config() });
        kit.establish();
        kit.client(say(ACK, R, P).data("GET"));
        if takes {
            kit.leg(A, say(ACK, P, R + 3));
        }
        let mut times = Vec::new();
        for ms in 1..3000 {
            kit.forget();
            kit.wait_ms(1);
            times.extend(kit.on(TO_B).iter().any(|h| h.data == b"GET").then_some(ms));
        }
        times
    };
    assert_eq!(repeated(false, 150), [60, 180, 420, 900, 1860, 2860], "it may be on its way");
    let hinted = [5, 15, 35, 75, 155, 315, 635, 1275, 2275];
    assert_eq!(repeated(true, 10_000), hinted, "the other one has it");
    assert_eq!(repeated(true, 150), [5, 15, 35, 75, 155, 1155, 2155], "and nobody waits for it");
}

/// LV4: a server without room for a segment waits for the client's window, with the time of its own
/// probes. Once it has room, it has the time that anybody has.
#[test]
fn a_primary_with_little_room_is_not_late_before_it_has_more() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460).window(1000));
    for leg in LegId::ALL {
        kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460));
    }
    kit.client(say(ACK, R, P).data("GET").window(1000));
    kit.leg(A, say(ACK, P, R + 3).data([b'x'; 600]));
    kit.leg(B, say(ACK, Q, R + 3).data([b'x'; 1000]));
    kit.client(say(ACK, R + 3, P + 600).window(400));
    kit.wait_ms(250);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.client(say(ACK, R + 3, P + 600));
    kit.wait_ms(140);
    assert_eq!(state(&kit), FlowState::Paired, "it has had room for 140 ms");
    kit.wait_ms(20);
    assert_eq!(state(&kit), FlowState::Solo);
}

/// Who lets servers be late (`hold_hard`) means their SYN-ACKs, too.
#[test]
fn a_syn_ack_has_two_thirds_of_the_time_that_a_server_may_be_late() {
    for (hold_hard, hold) in [(20, 100), (150, 100), (600, 400), (5000, 800)] {
        let hold_hard = Duration::from_millis(hold_hard);
        let mut kit = Kit::new(EngineConfig { hold_hard, ..config() });
        kit.client(say(SYN, C, 0).mss(1460));
        kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460));
        kit.wait_ms(hold - 1);
        assert!(kit.on(Link::Client).is_empty(), "{hold_hard:?}");
        kit.wait_ms(1);
        assert_eq!(kit.on(Link::Client).len(), 1, "{hold_hard:?}");
    }
}
