//! How connections end when the two servers do not end them alike (1.8).

use super::*;

/// A connection on which nothing is outstanding.
fn idle() -> Kit {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from, R + 3).data("answer"));
    }
    kit.client(say(ACK, R + 3, P + 6));
    for (leg, from) in [(A, P), (B, Q)] {
        kit.leg(leg, say(ACK, from + 6, R + 3));
    }
    kit.forget();
    kit
}

fn has_fin(kit: &Kit) -> bool {
    kit.on(Link::Client).iter().any(|h| h.seg.flags.has(TcpFlags::FIN))
}

/// Equal servers give an idle connection up at different times: the primary's is the time.
#[test]
fn of_idle_connections_that_one_server_closes_the_primarys_way_is_the_flows() {
    for (leg, from) in [(A, P), (B, Q)] {
        let mut kit = idle();
        kit.leg(leg, say(FIN, from + 6, R + 3));
        kit.wait_ms(2950);
        assert_eq!((state(&kit), has_fin(&kit)), (FlowState::Paired, false));
        kit.wait_ms(100);
        let flow = &kit.engine.flows(1)[0];
        assert_eq!((flow.state, flow.primary), (FlowState::Solo, A));
        assert_eq!(has_fin(&kit), leg == A);
        assert!(kit.on(TO_B).iter().any(|h| h.seg.flags.has(RST)), "B has no part in it any more");
    }
}

/// The end of a primary whose backup is late is doubted, for as long as that may go on: a second in
/// which it does not.
#[test]
fn beside_a_late_backup_the_primarys_end_is_shown_after_a_second_of_doubt() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET and more"));
    kit.leg(A, say(ACK, P, R + 12).data("answer"));
    kit.leg(B, say(ACK, Q, R + 3));
    kit.wait_ms(160);
    assert_eq!(state(&kit), FlowState::Lagging);
    kit.client(say(ACK, R + 12, P + 6));
    kit.leg(B, say(ACK, Q, R + 3).data("answer"));
    kit.leg(A, say(FIN, P + 6, R + 12));
    assert_eq!(state(&kit), FlowState::Lagging, "B has not taken all of the request");
    kit.wait_ms(950);
    assert!(!has_fin(&kit));
    kit.wait_ms(100);
    assert!(has_fin(&kit));
}

/// A survivor's reset stands behind what was shown ahead of a hole: the client has it (RFC 5961 3),
/// although the survivor, whose bytes are paced, has filled no more than the hole.
#[test]
fn a_reset_stands_behind_what_was_shown_ahead() {
    let mut kit = Kit::new(config());
    kit.establish();
    kit.client(say(ACK, R, P).data("GET"));
    for (leg, from) in [(A, P), (B, Q)] {
        for n in 1..20 {
            kit.leg(leg, say(ACK, from + n * 1000, R + 3).data([b'x'; 1000]));
        }
    }
    assert_eq!(kit.on(Link::Client).iter().filter(|h| !h.data.is_empty()).count(), 19);
    kit.command(Command::Failover { to: None, is_planned: false });
    kit.leg(B, say(ACK, Q, R + 3).data([b'x'; 1000]));
    kit.forget();
    kit.leg(B, say(RST, Q + 20_000, 0));
    let shown = kit.on(Link::Client);
    assert_eq!((shown[0].seg.flags, shown[0].seg.seq), (RST, P + 20_000));
}
