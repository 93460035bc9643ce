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
    kit.leg(A, say(ACK, P, R + 8192).window(3000));
    kit.leg(B, say(ACK, Q, R + 8192).window(0));
    kit.wait_ms(100);
    assert_eq!(state(&kit), FlowState::Paired);
    kit.wait_ms(100);
    assert_eq!(state(&kit), FlowState::Lagging);
}
