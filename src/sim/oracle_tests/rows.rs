//! Rows of the release table and the liveness rules: one hand-made violation each.

use super::*;
use crate::sim::second::Second;

/// The client has acknowledged the answer.
fn settled() -> Desk {
    let mut desk = Desk::answered();
    desk.client(say(ACK, C + 3, P + 5, (3, 501), b""));
    desk.feeds(A, say(ACK, C + 3, P + 5, (3, 501), b""));
    desk.feeds(B, say(ACK, C + 3, Q + 5, (3, 71), b""));
    assert_eq!(desk.oracle.violation, None, "an ack is in order");
    desk
}

impl Desk {
    fn wait(&mut self, ms: u64) {
        self.oracle.on_time(self.now);
        self.now += ms * MS;
        self.oracle.on_time(self.now);
    }
}

#[test]
fn a_segment_that_does_not_fit_is_caught() {
    let mut desk = Desk::new();
    let long: &[u8] = &[7; 1460];
    desk.leg(A, say(ACK, P, C + 3, (501, 2), long));
    desk.leg(B, say(ACK, Q, C + 3, (71, 2), long));
    desk.shows_uncut(say(ACK, P, C + 3, (501, 2), &[7; 1448]));
    assert_eq!(desk.oracle.violation, None, "1460 less 12 bytes of options");
    let mut desk = Desk::new();
    desk.leg(A, say(ACK, P, C + 3, (501, 2), long));
    desk.leg(B, say(ACK, Q, C + 3, (71, 2), long));
    desk.shows_uncut(say(ACK, P, C + 3, (501, 2), long));
    desk.assert_caught("options included");
}

#[test]
fn ecn_bits_are_caught() {
    let mut desk = Desk::answered();
    desk.shows(say(ACK | 0x40, P + 5, C + 3, (502, 2), b""));
    desk.assert_caught("ECN");
    let mut desk = Desk::answered();
    desk.feeds(B, say(ACK | 0x80, C + 3, Q, (3, 71), b""));
    desk.assert_caught("ECN");
}

#[test]
fn an_ip_header_that_is_not_the_primarys_is_caught() {
    let mut desk = Desk::answered();
    let mut bytes = frame(false, &say(ACK, P + 5, C + 3, (502, 2), b""));
    bytes[22] -= 1; // one hop less, and the checksum one more in its high byte
    bytes[24] = bytes[24].wrapping_add(1);
    desk.oracle.on_output(desk.now, Link::Client, &bytes);
    desk.assert_caught("IP header");
}

#[test]
fn a_push_that_is_lost_is_caught() {
    let mut desk = Desk::new();
    desk.leg(A, say(ACK | PSH, P, C + 3, (501, 2), b"hello"));
    desk.leg(B, say(ACK | PSH, Q, C + 3, (71, 2), b"hello"));
    desk.shows(say(ACK, P, C + 3, (501, 2), b"hello"));
    desk.assert_caught("PSH");
}

#[test]
fn urgent_bytes_that_end_elsewhere_are_caught() {
    let mut desk = Desk::answered();
    desk.feeds(A, Say { ..say(ACK | URG, C, P, (2, 500), b"GET") });
    desk.assert_caught("urgent bytes end");
}

#[test]
fn what_both_repeat_is_shown_once() {
    let mut desk = Desk::answered();
    desk.leg(A, say(ACK, P, C + 3, (502, 2), b"hello"));
    desk.shows(say(ACK, P, C + 3, (502, 2), b"hello"));
    assert_eq!(desk.oracle.violation, None, "once is in order");
    desk.leg(B, say(ACK, Q, C + 3, (72, 2), b"hello"));
    desk.shows(say(ACK, P, C + 3, (502, 2), b"hello"));
    desk.assert_caught("shown again 2 times");
}

#[test]
fn a_probe_passed_to_a_live_client_is_caught() {
    let mut desk = settled();
    desk.shows(say(ACK, P + 4, C + 3, (502, 2), b""));
    desk.assert_caught("a probe");
}

#[test]
fn a_sack_block_that_one_server_does_not_have_is_caught() {
    let mut desk = Desk::answered();
    desk.leg(A, Say { sack: Some((C + 9, C + 12)), ..say(ACK, P + 5, C + 3, (502, 2), b"") });
    desk.shows(Say { sack: Some((C + 9, C + 12)), ..say(ACK, P + 5, C + 3, (502, 2), b"") });
    desk.assert_caught("B does not have it");
}

#[test]
fn a_sack_block_of_what_a_leg_has_not_sent_is_caught() {
    let mut desk = Desk::answered();
    desk.leg(A, say(ACK, P + 5, C + 3, (502, 2), b"more"));
    desk.feeds(B, Say { sack: Some((Q + 5, Q + 9)), ..say(ACK, C + 3, Q, (2, 71), b"") });
    desk.assert_caught("has not sent that");
}

#[test]
fn a_position_beyond_the_clients_is_caught_on_a_leg() {
    let mut desk = Desk::answered();
    desk.feeds(B, say(ACK, C + 4, Q, (2, 71), b""));
    desk.assert_caught("I6: 5 sent");
}

#[test]
fn a_window_that_shrinks_is_caught_on_a_leg() {
    let mut desk = settled();
    desk.feeds(B, Say { window: 100, ..say(ACK, C + 3, Q + 5, (3, 71), b"") });
    desk.assert_caught("shrank");
}

#[test]
fn a_repetition_that_is_not_answered_is_caught() {
    let mut desk = settled();
    desk.leg(B, say(ACK, Q, C + 3, (72, 2), b"hello"));
    desk.wait(30);
    desk.assert_caught("LV2");
}

#[test]
fn a_question_of_the_client_that_is_not_answered_is_caught() {
    let mut desk = settled();
    desk.client(say(ACK, C + 2, P + 5, (4, 501), b""));
    desk.leg(A, say(ACK, P + 5, C + 3, (502, 4), b""));
    desk.wait(30);
    desk.assert_caught("the client asked");
}

#[test]
fn a_window_that_opens_and_is_not_told_is_caught() {
    let mut desk = Desk::new();
    desk.client(say(ACK, C + 3, P, (3, 500), b""));
    for (leg, at, ts) in [(A, P, 501), (B, Q, 71)] {
        desk.leg(leg, Say { window: 4997, ..say(ACK, at, C + 3, (ts, 2), b"") });
    }
    desk.shows(Say { window: 4997, ..say(ACK, P, C + 3, (501, 2), b"") });
    desk.client(say(ACK, C + 3, P, (4, 501), &[1; 1400]));
    desk.client(say(ACK, C + 1403, P, (4, 501), &[1; 1400]));
    desk.client(say(ACK, C + 2803, P, (4, 501), &[1; 1400]));
    desk.client(say(ACK, C + 4203, P, (4, 501), &[1; 797]));
    for (leg, at, ts) in [(A, P, 502), (B, Q, 72)] {
        desk.leg(leg, Say { window: 0, ..say(ACK, at, C + 5000, (ts, 4), b"") });
    }
    desk.shows(Say { window: 0, ..say(ACK, P, C + 5000, (502, 4), b"") });
    assert_eq!(desk.oracle.violation, None, "a closed window is in order");
    for (leg, at, ts) in [(A, P, 503), (B, Q, 73)] {
        desk.leg(leg, Say { window: 9000, ..say(ACK, at, C + 5000, (ts, 4), b"") });
    }
    desk.wait(30);
    desk.assert_caught("LV3: the window");
}

#[test]
fn what_both_said_and_is_not_shown_is_caught() {
    let mut desk = settled();
    desk.leg(A, say(ACK, P + 5, C + 3, (502, 2), b"more and more"));
    desk.leg(B, say(ACK, Q + 5, C + 3, (72, 2), b"mo"));
    desk.wait(30);
    desk.assert_caught("LV4: byte 6");
}

#[test]
fn holds_without_a_limit_are_caught() {
    // A FIN.
    let mut desk = settled();
    desk.leg(A, say(ACK | FIN, P + 5, C + 3, (502, 2), b""));
    desk.wait(5_000);
    desk.assert_caught("LV5: a FIN");
    // A reset.
    let mut desk = settled();
    desk.leg(A, say(RST, P + 5, 0, (502, 2), b""));
    desk.wait(200);
    desk.assert_caught("LV5: a reset");
    // A divergence.
    let mut desk = settled();
    desk.state(FlowState::Paired, FlowState::Diverged, A);
    desk.wait(300);
    desk.assert_caught("LV5: a divergence");
    // A server that lags.
    let mut desk = settled();
    desk.state(FlowState::Paired, FlowState::Lagging, A);
    desk.leg(A, say(ACK, P + 5, C + 3, (502, 2), b"more"));
    desk.shows(say(ACK, P + 5, C + 3, (502, 2), b"more"));
    desk.wait(8_000);
    desk.assert_caught("LV5: a server that lags");
    // The first of two answers to a SYN.
    let oracle = Oracle::new(Limits { hold: None, diverged: 150 * MS }, LegId::A, false);
    let mut desk = Desk { oracle, now: MS };
    desk.client(say(SYN, C - 1, 0, (1, 0), b""));
    desk.oracle.on_event(&Event::FlowOpened { flow: key() });
    desk.leg(A, say(SYN | ACK, P - 1, C, (500, 1), b""));
    desk.wait(300);
    desk.assert_caught("LV5: the primary's SYN-ACK");
}

#[test]
fn a_detached_server_that_lingers_is_caught() {
    let mut desk = settled();
    desk.state(FlowState::Paired, FlowState::Solo, A);
    desk.leg(B, say(ACK, Q + 5, C + 3, (72, 2), b"more"));
    desk.feeds(B, say(RST, C + 3, 0, (0, 0), b""));
    desk.wait(30);
    assert_eq!(desk.oracle.violation, None, "it was reset");
    desk.leg(B, say(ACK, Q + 5, C + 3, (73, 2), b"more"));
    desk.wait(30);
    desk.assert_caught("LV6");
}

#[test]
fn what_nobody_may_see_is_caught() {
    // The answer to a probe.
    let mut desk = settled();
    let mut bytes = frame(false, &say(SYN | ACK, 7, 8, (0, 0), b""));
    let (old, new) = (u16::from_be_bytes([bytes[36], bytes[37]]), 61_500u16);
    bytes[36..38].copy_from_slice(&new.to_be_bytes());
    let sum = u32::from(!u16::from_be_bytes([bytes[50], bytes[51]])) + u32::from(!old);
    let sum = sum + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
    bytes[50..52].copy_from_slice(&sum.to_be_bytes());
    desk.oracle.on_output(desk.now, Link::Client, &bytes);
    desk.assert_caught("I10: the answer to a probe");
    // An ARP reply of the backup.
    let mut reply = vec![0; 42];
    reply[12..14].copy_from_slice(&[8, 6]);
    reply[20..22].copy_from_slice(&[0, 2]);
    let mut desk = settled();
    desk.oracle.on_input(desk.now, Link::Server(A), &reply);
    desk.oracle.on_output(desk.now, Link::Client, &reply);
    assert_eq!(desk.oracle.violation, None, "the primary's is in order");
    desk.oracle.on_input(desk.now, Link::Server(B), &reply);
    desk.oracle.on_output(desk.now, Link::Client, &reply);
    desk.assert_caught("I10: an ARP reply");
}

/// One server carries the connection, everything that was said has been taken, and there the first
/// message of each side ends, or `more` bytes later.
fn alone(more: usize) -> Desk {
    let mut desk = settled();
    desk.state(FlowState::Paired, FlowState::Solo, A);
    let flow = desk.oracle.flows.get_mut(&(CLIENT, PORT)).expect("the flow");
    flow.second = Second::new(0, &[3], &[5 + more]);
    desk
}

#[test]
fn a_second_server_in_the_middle_of_a_message_is_caught() {
    let mut desk = alone(1);
    desk.feeds(B, say(SYN, C + 2, 0, (4, 0), b""));
    desk.assert_caught("between messages false");
    let mut desk = alone(0);
    desk.feeds(B, say(SYN, C + 1, 0, (4, 0), b""));
    desk.assert_caught("1.14");
    let mut desk = alone(0);
    desk.client(say(ACK, C + 3, P + 5, (4, 501), b"PUT"));
    desk.feeds(B, say(SYN, C + 5, 0, (4, 0), b""));
    desk.assert_caught("taken false");
}

#[test]
fn a_second_server_speaks_from_the_boundary_on() {
    const NEW: u32 = 4242;
    for says in [&b"again"[..], b"agaim", b"agai"] {
        let mut desk = alone(0);
        desk.feeds(B, say(SYN, C + 2, 0, (4, 0), b""));
        desk.leg(B, say(SYN | ACK, NEW - 1, C + 3, (90, 4), b""));
        desk.state(FlowState::Solo, FlowState::Paired, A);
        desk.feeds(B, say(ACK, C + 3, NEW, (4, 90), b""));
        desk.client(say(ACK, C + 3, P + 5, (4, 501), b"GET"));
        desk.feeds(B, say(ACK, C + 3, NEW, (4, 90), b"GET"));
        desk.leg(A, say(ACK, P + 5, C + 6, (502, 4), b"again"));
        desk.leg(B, say(ACK, NEW, C + 6, (91, 4), says));
        desk.shows(say(ACK, P + 5, C + 6, (502, 4), b"again"));
        match says {
            b"again" => assert_eq!(desk.oracle.violation, None),
            _ => desk.assert_caught("I1"),
        }
    }
}
