//! What the simulator found, by hand.

use super::*;

/// 1.3, window: the client is not held up by the backup's window alone, however little the primary
/// ever grants.
#[test]
fn a_backup_without_room_is_late_beside_a_primary_with_a_small_window() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(8960));
    kit.leg(A, say(SYN_ACK, ISS[0], R).mss(1460).window(4096));
    kit.leg(B, say(SYN_ACK, ISS[1], R).mss(1460).window(8192));
    kit.client(say(ACK, R, P).data([b'x'; 4096]));
    kit.leg(A, say(ACK, P, R + 4096).window(4096));
    kit.leg(B, say(ACK, Q, R + 4096).window(4096));
    kit.client(say(ACK, R + 4096, P).data([b'x'; 4096]));
    kit.leg(A, say(ACK, P, R + 8192).window(2500));
    kit.leg(B, say(ACK, Q, R + 8192).window(0));
    kit.wait_ms(100);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.wait_ms(100);
    assert_eq!(state(&kit), FlowState::Lagging);
}

/// 1.7: a backup that was left alone with its proof still to come dies as well. The client hears a
/// reset; without one it would wait for two servers that have both forgotten it.
#[test]
fn a_flow_whose_last_server_dies_unproved_is_reset() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    kit.leg(A, say(ACK, P, R + 3).data("answer"));
    kit.wait_ms(200);
    assert_eq!(state(&kit), FlowState::Lagging);
    let to_other = || Command::Failover { to: None, is_planned: false };
    kit.command(to_other());
    kit.wait_ms(50);
    kit.command(Command::Rejoin(A));
    kit.wait_ms(50);
    assert_eq!(state(&kit), FlowState::Lagging, "B has proved nothing yet");
    kit.forget();
    kit.command(to_other());
    let shown = kit.on(Link::Client);
    assert_eq!((shown[0].seg.flags, shown[0].seg.seq), (RST, P + 6));
    assert!(kit.events.iter().any(|e| matches!(e, Event::Promoted { moved: 0, reset: 1, .. })));
}

/// 1.6: bytes that a leg shows as missing are sent again at once, and not for ever at that pace to
/// one that has died meanwhile.
#[test]
fn a_hole_of_a_silent_leg_is_filled_ever_more_seldom() {
    let mut kit = Kit::new(config());
    kit.client(say(SYN, C, 0).mss(1460).sack_ok());
    for leg in LegId::ALL {
        kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1460).sack_ok());
    }
    kit.client(say(ACK, R, P).data([b'x'; 1000]));
    kit.client(say(ACK, R + 1000, P).data([b'y'; 1000]));
    kit.leg(B, say(ACK, Q, R + 2000));
    kit.leg(A, say(ACK, P, R).sack(&[(R + 1000, R + 2000)]));
    kit.forget();
    kit.wait_ms(140);
    let resent = kit.on(TO_A).iter().filter(|h| h.data.len() == 1000).count();
    assert!((2..=12).contains(&resent), "{resent} times in a moment");
}
