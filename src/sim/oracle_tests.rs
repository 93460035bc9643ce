//! The oracle judged: a clean exchange passes, and one hand-made violation of each rule is caught.

mod rows;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::frames::{ACK, FIN, PSH, RST, SYN, URG};
use super::jar::Places;
use super::oracle::{Limits, Oracle};
use super::world::SERVER_MAC;
use crate::engine::{Event, FlowKey, FlowState, LegId, Link, ServerState, ServiceId, Shown};
use crate::wire::build::{self, TcpFields};
use crate::wire::{L2, L3, Mac, SackBlocks, TcpFlags, TcpOptions, Tsval, Vlans, segmentize};

const CLIENT: [u8; 4] = [10, 0, 0, 100];
const SERVICE: [u8; 4] = [10, 0, 0, 10];
const PORT: u16 = 40_000;
/// First numbers behind the SYN: the client's, A's (and the shown one), B's.
const C: u32 = 1001;
const P: u32 = 5001;
const Q: u32 = 90_001;
const MS: u64 = 1_000_000;

struct Say {
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    stamp: (u32, u32),
    data: &'static [u8],
    sack: Option<(u32, u32)>,
}

fn say(flags: u8, seq: u32, ack: u32, stamp: (u32, u32), data: &'static [u8]) -> Say {
    Say { flags, seq, ack, window: 5000, stamp, data, sack: None }
}

fn frame(from_client: bool, say: &Say) -> Vec<u8> {
    frame_of(from_client, say, 1460)
}

fn frame_of(from_client: bool, say: &Say, segment_max: u16) -> Vec<u8> {
    let (src, dst) = if from_client { (CLIENT, SERVICE) } else { (SERVICE, CLIENT) };
    let l2 = L2 { dst: Mac(SERVER_MAC), src: Mac([4; 6]), vlans: Vlans::default() };
    let l3 = L3 {
        src: IpAddr::from(src),
        dst: IpAddr::from(dst),
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        id: 0,
        flow_label: 0,
    };
    let mut sack = SackBlocks::default();
    if let Some((left, right)) = say.sack {
        sack.push(left, right);
    }
    let is_syn = say.flags & SYN != 0;
    let options = TcpOptions {
        mss: is_syn.then_some(1460),
        window_scale: is_syn.then_some(0),
        sack_permitted: is_syn,
        timestamps: Some((Tsval(say.stamp.0), Tsval(say.stamp.1))),
        sack,
        ..TcpOptions::default()
    };
    let ports = if from_client { (PORT, 80) } else { (80, PORT) };
    let fields = TcpFields {
        src_port: ports.0,
        dst_port: ports.1,
        seq: say.seq,
        ack: say.ack,
        flags: TcpFlags(say.flags),
        window: say.window,
        urgent: 0,
        options,
    };
    let frame = build::tcp(&l2, &l3, &fields, Bytes::from_static(say.data), segment_max);
    let mut whole = Vec::new();
    assert!(segmentize::for_link(frame, false, false, &mut whole));
    whole[0].to_vec()
}

struct Desk {
    oracle: Oracle,
    now: u64,
}

fn key() -> FlowKey {
    FlowKey {
        service: ServiceId::default(),
        vlan: (None, None),
        client: SocketAddr::new(IpAddr::V4(Ipv4Addr::from(CLIENT)), PORT),
        server: SocketAddr::new(IpAddr::V4(Ipv4Addr::from(SERVICE)), 80),
    }
}

const A: LegId = LegId::A;
const B: LegId = LegId::B;

impl Desk {
    /// A connection that was established and carried the request "GET" to both servers.
    fn new() -> Self {
        let limits = Limits { hold: Some(150 * MS), diverged: 150 * MS };
        let oracle = Oracle::new(limits, LegId::A, false);
        let mut desk = Self { oracle, now: MS };
        desk.oracle.expect((CLIENT, PORT), std::iter::once(10..14), Vec::new(), Places::default());
        desk.client(say(SYN, C - 1, 0, (1, 0), b""));
        desk.oracle.on_event(&Event::FlowOpened { flow: key() });
        desk.leg(A, say(SYN | ACK, P - 1, C, (500, 1), b""));
        desk.leg(B, say(SYN | ACK, Q - 1, C, (70, 1), b""));
        desk.state(FlowState::Opening, FlowState::Paired, A);
        desk.shows(say(SYN | ACK, P - 1, C, (500, 1), b""));
        desk.client(say(ACK, C, P, (2, 500), b"GET"));
        desk.feeds(A, say(ACK, C, P, (2, 500), b"GET"));
        desk.feeds(B, say(ACK, C, Q, (2, 70), b"GET"));
        assert_eq!(desk.oracle.violation, None, "the beginning is in order");
        desk
    }

    /// Both answer "hello", and both are shown.
    fn answered() -> Self {
        let mut desk = Self::new();
        desk.leg(A, say(ACK, P, C + 3, (501, 2), b"hello"));
        desk.leg(B, say(ACK, Q, C + 3, (71, 2), b"hello"));
        desk.shows(say(ACK, P, C + 3, (501, 2), b"hello"));
        assert_eq!(desk.oracle.violation, None, "an answer is in order");
        desk
    }

    fn client(&mut self, say: Say) {
        self.oracle.on_input(self.now, Link::Client, &frame(true, &say));
    }

    fn leg(&mut self, leg: LegId, say: Say) {
        self.oracle.on_input(self.now, Link::Server(leg), &frame(false, &say));
    }

    fn shows(&mut self, say: Say) {
        self.oracle.on_output(self.now, Link::Client, &frame(false, &say));
    }

    /// The same in one frame, however long.
    fn shows_uncut(&mut self, say: Say) {
        self.oracle.on_output(self.now, Link::Client, &frame_of(false, &say, 9000));
    }

    fn feeds(&mut self, leg: LegId, say: Say) {
        self.oracle.on_output(self.now, Link::Server(leg), &frame(true, &say));
    }

    fn state(&mut self, from: FlowState, to: FlowState, primary: LegId) {
        let (flow, solo, shown) = (key(), None, Shown::default());
        self.oracle.on_event(&Event::FlowChanged { flow, from, to, primary, solo, shown });
    }

    #[track_caller]
    fn assert_caught(self, rule: &str) {
        let what = self.oracle.violation.unwrap_or_default();
        assert!(what.contains(rule), "expected {rule}, got {what:?}");
    }
}

#[test]
fn a_byte_that_one_server_has_not_said_is_caught() {
    let mut desk = Desk::new();
    desk.leg(A, say(ACK, P, C + 3, (501, 2), b"hello"));
    desk.leg(B, say(ACK, Q, C + 3, (71, 2), b"hel"));
    desk.shows(say(ACK, P, C + 3, (501, 2), b"hello"));
    desk.assert_caught("I1");
}

#[test]
fn a_byte_that_the_servers_say_differently_is_caught() {
    let mut desk = Desk::new();
    desk.leg(A, say(ACK, P, C + 3, (501, 2), b"hello"));
    desk.leg(B, say(ACK, Q, C + 3, (71, 2), b"hallo"));
    desk.shows(say(ACK, P, C + 3, (501, 2), b"hello"));
    desk.assert_caught("I1");
}

#[test]
fn another_version_of_what_was_shown_is_caught() {
    let mut desk = Desk::answered();
    desk.state(FlowState::Paired, FlowState::Solo, A);
    desk.shows(say(ACK, P, C + 3, (501, 2), b"HELLO"));
    desk.assert_caught("1.1");
}

#[test]
fn part_of_a_masked_value_is_caught() {
    let mut desk = Desk::answered();
    desk.leg(A, say(ACK, P + 5, C + 3, (501, 2), b"12345abcd"));
    desk.leg(B, say(ACK, Q + 5, C + 3, (71, 2), b"12345xy"));
    desk.shows(say(ACK, P + 5, C + 3, (501, 2), b"12345ab"));
    desk.assert_caught("1.12");
}

#[test]
fn an_ack_beyond_one_server_is_caught() {
    let mut desk = Desk::new();
    desk.leg(A, say(ACK, P, C + 3, (501, 2), b""));
    desk.shows(say(ACK, P, C + 3, (501, 2), b""));
    desk.assert_caught("I2");
}

#[test]
fn a_window_beyond_one_server_is_caught() {
    let mut desk = Desk::answered();
    desk.leg(A, Say { window: 9000, ..say(ACK, P + 5, C + 3, (502, 2), b"") });
    desk.shows(Say { window: 9000, ..say(ACK, P + 5, C + 3, (502, 2), b"") });
    desk.assert_caught("I3");
}

#[test]
fn a_window_that_shrinks_is_caught() {
    let mut desk = Desk::answered();
    desk.shows(Say { window: 100, ..say(ACK, P + 5, C + 3, (502, 2), b"") });
    desk.assert_caught("I3: the window shrank");
}

#[test]
fn bytes_that_the_client_never_said_are_caught_on_a_leg() {
    let mut desk = Desk::new();
    desk.feeds(B, say(ACK, C, Q, (2, 70), b"PUT"));
    desk.assert_caught("I4");
}

#[test]
fn an_ack_beyond_what_a_leg_sent_is_caught() {
    let mut desk = Desk::new();
    desk.feeds(B, say(ACK, C + 3, Q + 1, (2, 70), b""));
    desk.assert_caught("I6");
}

#[test]
fn a_fin_before_both_have_ended_is_caught() {
    let mut desk = Desk::answered();
    desk.leg(A, say(ACK | FIN, P + 5, C + 3, (502, 2), b""));
    desk.shows(say(ACK | FIN, P + 5, C + 3, (502, 2), b""));
    desk.assert_caught("I7");
}

#[test]
fn a_reset_with_another_number_than_the_next_is_caught() {
    let mut desk = Desk::answered();
    desk.shows(say(RST, P + 4, 0, (502, 2), b""));
    desk.assert_caught("I7");
}

#[test]
fn a_timestamp_that_goes_back_is_caught() {
    let mut desk = Desk::answered();
    desk.shows(say(ACK, P + 5, C + 3, (499, 2), b""));
    desk.assert_caught("I8: TSval");
}

#[test]
fn an_echo_that_the_leg_never_sent_is_caught() {
    let mut desk = Desk::new();
    desk.feeds(B, say(ACK, C + 3, Q, (2, 500), b""));
    desk.assert_caught("I8: TSecr");
}

#[test]
fn a_fenced_server_that_is_heard_is_caught() {
    let mut desk = Desk::answered();
    let (from, to) = (ServerState::Up, ServerState::Failed);
    desk.oracle.on_event(&Event::ServerChanged { server: A, from, to });
    desk.leg(A, say(ACK, P + 5, C + 3, (502, 2), b"more"));
    desk.shows(say(ACK, P + 5, C + 3, (502, 2), b"more"));
    desk.assert_caught("I1");
}

#[test]
fn a_wrong_checksum_is_caught() {
    let mut desk = Desk::answered();
    let mut bytes = frame(false, &say(ACK, P + 5, C + 3, (502, 2), b""));
    bytes[40] ^= 1;
    desk.oracle.on_output(desk.now, Link::Client, &bytes);
    desk.assert_caught("I13");
}

#[test]
fn a_repeated_range_without_its_report_is_caught() {
    let mut desk = Desk::answered();
    desk.client(say(ACK, C + 3, P + 5, (3, 501), b""));
    desk.leg(B, say(ACK, Q, C + 3, (72, 2), b"hello"));
    let mut told = say(ACK, C + 3, Q + 5, (3, 71), b"");
    told.sack = Some((Q, Q + 5));
    desk.feeds(B, told);
    assert_eq!(desk.oracle.violation, None, "the report is in order");
    desk.leg(B, say(ACK, Q, C + 3, (72, 2), b"hello"));
    desk.feeds(B, say(ACK, C + 3, Q + 5, (3, 71), b""));
    desk.assert_caught("D-SACK");
}

#[test]
fn deadlines_that_pass_are_caught() {
    let mut desk = Desk::answered();
    desk.client(say(ACK, C + 3, P + 5, (3, 501), b""));
    desk.oracle.on_time(desk.now);
    desk.oracle.on_time(desk.now + 30 * MS);
    desk.assert_caught("LV1");

    let mut desk = Desk::answered();
    desk.client(say(ACK, C + 3, P, (3, 501), b"x"));
    desk.leg(A, say(ACK, P + 5, C + 4, (502, 3), b""));
    desk.leg(B, say(ACK, Q + 5, C + 4, (72, 3), b""));
    desk.oracle.on_time(desk.now);
    desk.oracle.on_time(desk.now + 30 * MS);
    desk.assert_caught("LV3");

    let mut desk = Desk::answered();
    desk.client(say(ACK, C + 3, P + 5, (3, 501), b""));
    desk.feeds(A, say(ACK, C + 3, P + 5, (3, 501), b""));
    desk.feeds(B, say(ACK, C + 3, Q + 5, (3, 71), b""));
    desk.leg(A, say(ACK, P + 5, C + 3, (502, 3), b"more"));
    desk.oracle.on_time(desk.now);
    desk.oracle.on_time(desk.now + 4000 * MS);
    desk.assert_caught("LV5");
}

#[test]
fn without_the_gateway_the_hosts_serve_each_other() {
    super::hush_panics();
    let options = super::Options { without_gateway: true, ..super::Options::default() };
    for seed in 1..=500 {
        let outcome = super::run_seed(seed, &options);
        assert_eq!(outcome.failure(), None, "seed {seed}");
    }
}
