//! Protocols that two servers never say alike: the primary's alone, and nothing is held for them.

use super::*;

const HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

fn solo(kit: &Kit) -> Option<SoloReason> {
    kit.engine.flows(1)[0].solo
}

#[test]
fn tls_is_the_primarys_alone_and_the_backup_hears_none_of_it() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data(HELLO));
    assert_eq!((state(&kit), solo(&kit)), (FlowState::Solo, Some(SoloReason::Tls)));
    assert_eq!(kit.on(TO_A)[0].data, HELLO);
    let to_b = kit.on(TO_B);
    assert_eq!((to_b.len(), to_b[0].seg.flags, to_b[0].seg.seq), (1, RST, R), "exact, and no more");
    kit.forget();
    // What A says is shown at once, whatever it is.
    kit.leg(A, say(ACK, P, R + 11).data("server hello"));
    assert_eq!(kit.on(Link::Client)[0].data, b"server hello");
    assert!(!kit.events.iter().any(|e| matches!(e, Event::Diverged { .. })));
}

#[test]
fn when_the_primary_dies_its_clients_are_reset_exactly_and_come_back_to_the_other() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data(HELLO));
    kit.leg(A, say(ACK, P, R + 11).data("server hello"));
    kit.forget();
    kit.input(Input::Signal(TO_A, Signal::CarrierDown));
    let shown = kit.on(Link::Client);
    assert_eq!((shown.len(), shown[0].seg.flags, shown[0].seg.seq), (1, RST, P + 12));
    assert!(kit.events.iter().any(|e| matches!(e, Event::Promoted { moved: 0, reset: 1, .. })));
    kit.forget();
    kit.say(Link::Client, say(SYN, C, 0), 40_001);
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (0, 1));
}

#[test]
fn a_hello_in_pieces_is_known_by_the_one_that_tells() {
    let mut kit = Kit::new(config());
    kit.establish();
    for (i, byte) in (0..).zip(HELLO) {
        assert_eq!(state(&kit) == FlowState::Paired, i < 6, "{i} bytes");
        kit.client(say(ACK, R + i, P).data([byte]));
    }
    let heard: Vec<u8> = kit.on(TO_B).into_iter().flat_map(|h| h.data).collect();
    assert_eq!(heard, HELLO[..5]);
}

#[test]
fn ssh_is_known_by_whoever_speaks_first() {
    for leg in LegId::ALL {
        let mut kit = Kit::new(config());
        kit.establish();
        // The backup's banner alone says nothing: it is not what the client will hear.
        let next = [P, Q][leg.index()];
        kit.leg(leg, say(ACK, next, R).data("SSH-2.0-OpenSSH_9.9\r\n"));
        let is_primary = leg == A;
        assert_eq!(solo(&kit), is_primary.then_some(SoloReason::Ssh));
        assert_eq!(kit.on(Link::Client).is_empty(), !is_primary);
    }
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("SSH-2.0-client\r\n"));
    assert_eq!(solo(&kit), Some(SoloReason::Ssh));
}

#[test]
fn a_later_record_of_tls_is_compared_like_anything_else() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    for (leg, next) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, next, R + 3).data("yes"));
    }
    kit.client(say(ACK, R + 3, P + 3).data(HELLO));
    assert_eq!(state(&kit), FlowState::Paired);
}

#[test]
fn who_wants_them_compared_gets_them_compared() {
    let mut kit = Kit::new(EngineConfig { has_opaque: false, ..config() });
    kit.establish();
    kit.client(say(ACK, R, P).data(HELLO));
    assert_eq!(state(&kit), FlowState::Paired);
    assert_eq!(kit.on(TO_B)[0].data, HELLO);
}

#[test]
fn a_port_that_is_not_compared_has_the_primary_only() {
    let mut kit = Kit::new(EngineConfig { opaque_ports: vec![80], ..config() });
    kit.client(say(SYN, C, 0));
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (1, 0));
    kit.leg(A, say(SYN_ACK, ISS[0], R));
    assert_eq!((state(&kit), solo(&kit)), (FlowState::Solo, Some(SoloReason::OpaquePort)));
}
