//! Values that clients return: each server hears its own, however the client's bytes are cut, lost
//! and repeated, and whichever server dies at whichever byte.

use std::collections::BTreeMap;

use super::kit::{ACK, CLIENT_ISS, FIN, ISS, Kit, RST, SYN, SYN_ACK, Say, config, say};
use crate::engine::{
    Command, DropWhy, EngineConfig, Event, FlowState, Input, KeptWhy, LegId, Link, RawReason,
    Record, Rule, Rules, Signal, SyncScope, SyncStep,
};
use LegId::{A, B};

const P: u32 = ISS[0] + 1;
const ISN: [u32; 2] = [P, ISS[1] + 1];
const R: u32 = CLIENT_ISS + 1;
/// What the two servers call a session.
const VALUES: [[&str; 2]; 3] = [["aaaa", "bbbb"], ["aaaa", "b"], ["a", "bbbb"]];
const FIRST: u16 = 40_000;
const SECOND: u16 = 40_001;

fn mapped() -> EngineConfig {
    let cookie = Rule::map("set-cookie", Some("SID"));
    let token = Rule::map("x-csrf", None);
    EngineConfig { rules: Rules::headers(["date"]).and(cookie).and(token), ..config() }
}

fn n(len: usize) -> u32 {
    u32::try_from(len).expect("a short stream")
}

const GET: &str = "GET / HTTP/1.1\r\n\r\n";

fn sets(value: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nSet-Cookie: SID={value}; Path=/\r\nContent-Length: 2\r\n\r\nok")
}

fn returns(value: &str) -> String {
    format!("GET /x HTTP/1.1\r\nCookie: a=b; SID={value}; c=d\r\n\r\n")
}

/// One connection, in the client's numbers and in each server's.
#[derive(Clone, Copy)]
struct Conn {
    /// The number that it was shown.
    iss: u32,
    sent: u32,
    said: [u32; 2],
}

struct World {
    kit: Kit,
    conns: BTreeMap<u16, Conn>,
}

impl World {
    fn new() -> Self {
        Self { kit: Kit::new(mapped()), conns: BTreeMap::new() }
    }

    /// One whose client has been given `values`: it was shown the first.
    fn with(values: [&str; 2]) -> Self {
        let mut world = Self::new();
        world.open(FIRST);
        world.ask(FIRST, GET);
        world.answer(FIRST, values.map(sets));
        assert!(world.shown(FIRST).contains(values[0]));
        world
    }

    fn open(&mut self, port: u16) {
        self.kit.say(Link::Client, say(SYN, CLIENT_ISS, 0).mss(1460).sack_ok(), port);
        for id in LegId::ALL {
            let answer = say(SYN_ACK, ISS[id.index()], R).mss(1460).sack_ok();
            self.kit.say(Link::Server(id), answer, port);
        }
        self.begin(port);
    }

    /// It is shown the numbers of its primary.
    fn begin(&mut self, port: u16) {
        let mut to =
            self.kit.heard.iter().filter(|h| h.link == Link::Client && h.seg.dst_port == port);
        let answer = to.rfind(|h| h.seg.flags == SYN_ACK).expect("a SYN-ACK");
        let iss = answer.seg.seq;
        self.kit.say(Link::Client, say(ACK, R, iss + 1), port);
        self.conns.insert(port, Conn { iss, sent: 0, said: [0; 2] });
    }

    /// The client says `text` at `at` of its stream, and has everything.
    fn say(&mut self, port: u16, at: usize, text: &str) {
        let ack = self.conns[&port].iss + 1 + n(self.shown(port).len());
        self.kit.say(Link::Client, say(ACK, R + n(at), ack).data(text), port);
        let conn = self.conns.get_mut(&port).expect("it is open");
        conn.sent = conn.sent.max(n(at + text.len()));
    }

    fn ask(&mut self, port: u16, text: &str) {
        self.say(port, self.conns[&port].sent as usize, text);
    }

    fn leg(&mut self, port: u16, id: LegId, more: Say) {
        let conn = self.conns.get_mut(&port).expect("it is open");
        let text = more.data.len();
        let seq = ISN[id.index()] + conn.said[id.index()];
        conn.said[id.index()] += n(text);
        self.kit.say(Link::Server(id), Say { seq, ..more }, port);
    }

    /// What `id` has heard in order, it acknowledges.
    fn ack(&mut self, port: u16, id: LegId) {
        let taken = n(self.heard(port, id).len());
        self.leg(port, id, say(ACK, 0, R + taken));
    }

    fn answer(&mut self, port: u16, texts: [String; 2]) {
        for (id, text) in LegId::ALL.into_iter().zip(texts) {
            let taken = n(self.heard(port, id).len());
            self.leg(port, id, say(ACK, 0, R + taken).data(text));
        }
    }

    fn collect(&self, link: Link, port: u16, from: u32) -> String {
        let mut bytes: BTreeMap<u32, u8> = BTreeMap::new();
        for heard in self.kit.heard.iter().filter(|h| h.link == link) {
            let seg = &heard.seg;
            let is_it = if link == Link::Client { seg.dst_port } else { seg.src_port } == port;
            if !is_it || seg.flags.has(SYN) {
                continue;
            }
            for (i, &byte) in heard.data.iter().enumerate() {
                let at = seg.seq.wrapping_sub(from) + n(i);
                let old = bytes.insert(at, byte);
                assert!(old.is_none_or(|old| old == byte), "the same byte is always the same");
            }
        }
        let run = bytes.iter().zip(0..).take_while(|((at, _), i)| **at == *i);
        String::from_utf8(run.map(|((_, byte), _)| *byte).collect()).expect("text")
    }

    /// What `id` has heard, in order.
    fn heard(&self, port: u16, id: LegId) -> String {
        self.collect(Link::Server(id), port, R)
    }

    fn shown(&self, port: u16) -> String {
        self.collect(Link::Client, port, self.conns[&port].iss + 1)
    }

    fn dies(&mut self, id: LegId) {
        self.kit.input(Input::Signal(Link::Server(id), Signal::CarrierDown));
        self.kit.wait_ms(1);
    }

    /// The sync that was asked for succeeds.
    fn synced(&mut self, scope: SyncScope) {
        if scope == SyncScope::Machine {
            self.kit.step(SyncStep::Frozen);
        }
        self.kit.step(SyncStep::TargetReady);
        self.kit.wait_ms(250); // syncs keep a distance
    }

    fn state(&self, port: u16) -> FlowState {
        let flows = self.kit.engine.flows(9);
        flows.iter().find(|f| f.key.client.port() == port).expect("it is there").state
    }

    fn kept(&self) -> Vec<KeptWhy> {
        let why = |event: &Event| match event {
            Event::ValueKept { why, .. } => Some(*why),
            _ => None,
        };
        self.kit.events.iter().filter_map(why).collect()
    }
}

#[test]
fn each_server_hears_its_own_value_on_every_connection() {
    let mut world = World::with(["aaaa", "bbbb"]);
    world.open(SECOND);
    for port in [FIRST, SECOND] {
        let before = world.heard(port, A);
        world.ask(port, &returns("aaaa"));
        assert_eq!(world.heard(port, A), format!("{before}{}", returns("aaaa")));
        assert_eq!(world.heard(port, B), format!("{before}{}", returns("bbbb")));
    }
    // A value that nobody gave, a name that is another one, and a place that is none.
    for text in [
        returns("aaab"),
        returns("aaaa").replace("SID", "sid"),
        returns("aaaa").replace("Cookie", "Kookie"),
        "POST / HTTP/1.1\r\nContent-Length: 18\r\n\r\nCookie: SID=aaaa\r\n".into(),
        "GET /SID=aaaa HTTP/1.1\r\nX: SID=aaaa\r\n\r\n".into(),
    ] {
        let before = world.heard(SECOND, B);
        world.ask(SECOND, &text);
        assert_eq!(world.heard(SECOND, B), format!("{before}{text}"));
    }
    assert_eq!(world.state(SECOND), FlowState::Paired);
    assert_eq!(world.kept(), []);
}

#[test]
fn any_token_that_a_rule_names_is_returned_to_each() {
    let mut world = World::new();
    world.open(FIRST);
    world.ask(FIRST, GET);
    let gives = |value: &str| format!("HTTP/1.1 204 No\r\nX-CSRF: {value}\r\n\r\n");
    world.answer(FIRST, ["a;1", "b;2"].map(gives));
    let before = world.heard(FIRST, B);
    let asks = |value: &str| format!("GET / HTTP/1.1\r\nx-csrf:\t{value}\r\nY: a;1\r\n\r\n");
    world.ask(FIRST, &asks("a;1"));
    assert_eq!(world.heard(FIRST, B), format!("{before}{}", asks("b;2")));
    assert!(world.heard(FIRST, A).ends_with(&asks("a;1")));
}

#[test]
fn however_a_request_is_cut_it_is_heard_whole() {
    for values in VALUES {
        let text = returns(values[0]);
        let from = GET.len();
        for first in 0..=text.len() {
            for second in (first..=text.len()).step_by(3) {
                let mut world = World::with(values);
                let parts = [0..first, first..second, second..text.len()];
                for part in parts.clone() {
                    if !part.is_empty() {
                        world.say(FIRST, from + part.start, &text[part]);
                    }
                }
                let expected = format!("{GET}{}", returns(values[1]));
                assert_eq!(world.heard(FIRST, B), expected, "{first} {second}");
                assert_eq!(world.heard(FIRST, A), format!("{GET}{text}"));
                // What is sent again is the same, and what was taken is not sent again.
                for part in parts {
                    if !part.is_empty() {
                        world.say(FIRST, from + part.start, &text[part]);
                    }
                }
                world.ack(FIRST, A);
                world.ack(FIRST, B);
                world.kit.forget();
                world.say(FIRST, from, &text);
                let to_b = world.kit.on(Link::Server(B));
                assert!(!to_b.is_empty() && to_b.iter().all(|h| h.data.is_empty()), "{to_b:?}");
                let next = R + n(GET.len() + returns(values[1]).len());
                assert!(to_b.iter().all(|h| h.seg.seq < next), "a question");
                assert_eq!(world.state(FIRST), FlowState::Paired);
            }
        }
    }
}

#[test]
fn what_is_out_of_order_waits_for_the_server_that_it_may_have_to_be_changed_for() {
    for values in VALUES {
        let text = returns(values[0]);
        let from = GET.len();
        for cut in 1..text.len() {
            let mut world = World::with(values);
            world.say(FIRST, from + cut, &text[cut..]);
            assert_eq!(world.heard(FIRST, B), GET);
            assert!(world.kit.on(Link::Server(A)).iter().any(|h| text.as_bytes()[cut..] == h.data));
            world.say(FIRST, from, &text[..cut]);
            assert_eq!(world.heard(FIRST, B), format!("{GET}{}", returns(values[1])), "{cut}");
            assert_eq!(world.heard(FIRST, A), format!("{GET}{text}"));
        }
    }
}

/// The primary dies after any byte of a request, and the client says the rest, or all of it again.
#[test]
fn the_survivor_hears_its_own_value_whichever_byte_was_the_last_before() {
    for values in VALUES {
        let text = returns(values[0]);
        let from = GET.len();
        for port in [FIRST, SECOND] {
            for cut in 0..=text.len() {
                for is_repeated in [false, true] {
                    let mut world = World::with(values);
                    if port == SECOND {
                        world.open(SECOND);
                        world.ask(SECOND, GET);
                    }
                    world.say(port, from, &text[..cut]);
                    world.dies(A);
                    if is_repeated {
                        world.say(port, from, &text);
                    } else {
                        world.say(port, from + cut, &text[cut..]);
                    }
                    let expected = format!("{GET}{}", returns(values[1]));
                    assert_eq!(world.heard(port, B), expected, "{port} {cut} {is_repeated}");
                    // What it sets itself is shown as it is, and comes back as it is.
                    let before = world.shown(port);
                    let taken = R + n(expected.len());
                    world.leg(port, B, say(ACK, 0, taken).data(sets("BBBB")));
                    world.kit.wait_ms(20);
                    assert_eq!(world.shown(port), format!("{before}{}", sets("BBBB")));
                    world.ask(port, &returns("BBBB"));
                    assert!(world.heard(port, B).ends_with(&returns("BBBB")));
                    let resets = world.kit.on(Link::Client);
                    assert!(resets.iter().all(|h| !h.seg.flags.has(RST)));
                }
            }
        }
    }
}

#[test]
fn a_connection_that_begins_after_the_failover_finds_its_session() {
    let mut world = World::with(["aaaa", "bbbb"]);
    world.dies(A);
    world.kit.say(Link::Client, say(SYN, CLIENT_ISS, 0).mss(1460), SECOND);
    world.kit.say(Link::Server(B), say(SYN_ACK, ISS[1], R).mss(1460), SECOND);
    world.begin(SECOND);
    let text = returns("aaaa");
    world.ask(SECOND, &text[..30]);
    assert!(returns("bbbb").starts_with(&world.heard(SECOND, B)));
    world.ask(SECOND, &text[30..]);
    assert_eq!(world.heard(SECOND, B), returns("bbbb"));
}

#[test]
fn after_a_planned_change_both_still_hear_their_own() {
    for values in VALUES {
        let mut world = World::with(values);
        world.kit.command(Command::Failover { to: Some(B), is_planned: true });
        world.ask(FIRST, &returns(values[0]));
        assert!(world.heard(FIRST, A).ends_with(&returns(values[0])));
        assert!(world.heard(FIRST, B).ends_with(&returns(values[1])));
        world.answer(FIRST, ["AAAA", "BBBB"].map(sets));
        assert!(world.shown(FIRST).ends_with(&sets("BBBB")));
        world.ask(FIRST, &returns("BBBB"));
        assert!(world.heard(FIRST, A).ends_with(&returns("AAAA")));
        assert!(world.heard(FIRST, B).ends_with(&returns("BBBB")));
        world.ask(FIRST, &returns(values[0]));
        assert!(world.heard(FIRST, B).ends_with(&returns(values[1])));
        assert_eq!(world.state(FIRST), FlowState::Paired);
    }
}

/// A client that waits for an acknowledgment in the middle of a value (Nagle's rule) gets it.
#[test]
fn only_the_server_that_has_another_value_waits_for_its_end() {
    let mut world = World::with(["aaaa", "bbbb"]);
    let text = returns("aaaa");
    let cut = text.find("aaaa").expect("it has it") + 2;
    world.ask(FIRST, &text[..cut]);
    assert!(world.heard(FIRST, A).ends_with(&text[..cut]));
    assert!(world.heard(FIRST, B).ends_with(&text[..cut - 2]));
    world.ack(FIRST, A);
    world.ack(FIRST, B);
    world.kit.wait_ms(200);
    assert_eq!(world.state(FIRST), FlowState::Lagging);
    let acked = world.kit.on(Link::Client).last().expect("an ack").seg.ack;
    assert_eq!(acked, R + n(GET.len() + cut), "the client can go on");
    world.ask(FIRST, &text[cut..]);
    assert!(world.heard(FIRST, B).ends_with(&returns("bbbb")));
    world.ack(FIRST, A);
    world.ack(FIRST, B);
    assert_eq!(world.state(FIRST), FlowState::Paired);
    assert_eq!(world.kept(), []);
}

#[test]
fn a_value_without_end_is_waited_for_no_longer_than_a_second() {
    for is_over in [false, true] {
        let mut world = World::with(["aaaa", "bbbb"]);
        world.dies(A);
        let text = returns("aaaa");
        let cut = text.find("aaaa").expect("it has it") + 4;
        world.ask(FIRST, &text[..cut]);
        assert!(!world.heard(FIRST, B).contains('a'.to_string().repeat(2).as_str()));
        if is_over {
            let at = n(GET.len() + cut);
            let ack = P + n(world.shown(FIRST).len());
            world.kit.client(say(FIN, R + at, ack));
        } else {
            world.kit.wait_ms(990);
            assert_eq!(world.kept(), []);
            world.kit.wait_ms(20);
        }
        assert!(world.heard(FIRST, B).ends_with(&text[..cut]), "{is_over}");
        assert_eq!(world.kept(), [KeptWhy::Late]);
        // The value is over for this time; the next one is as good as any.
        if !is_over {
            world.ask(FIRST, &text[cut..]);
            world.ask(FIRST, &text);
            let expected = format!("{text}{}", returns("bbbb"));
            assert!(world.heard(FIRST, B).ends_with(&expected));
        }
    }
}

#[test]
fn a_value_of_which_a_server_has_heard_a_part_stays_what_it_is() {
    let mut world = World::with(["aaaa", "aaaa"]);
    world.open(SECOND);
    let text = returns("aaaa");
    let cut = text.find("aaaa").expect("it has it") + 2;
    world.ask(SECOND, &text[..cut]);
    world.ask(FIRST, GET);
    world.answer(FIRST, ["aaaa", "bbbb"].map(sets));
    world.ask(SECOND, &text[cut..]);
    assert_eq!(world.heard(SECOND, B), text);
    assert_eq!(world.kept(), [], "nobody waited for it");
    world.ask(SECOND, &text);
    assert_eq!(world.heard(SECOND, B), format!("{text}{}", returns("bbbb")));
}

#[test]
fn a_value_of_which_both_have_heard_a_part_ahead_of_its_turn_is_read_over() {
    let mut world = World::with(["aaaa", "aaaa"]);
    world.open(SECOND);
    let text = returns("aaaa");
    let cut = text.find("aaaa").expect("it has it") + 2;
    world.say(SECOND, 5, &text[5..cut]);
    world.ask(FIRST, GET);
    world.answer(FIRST, ["aaaa", "bbbb"].map(sets));
    world.say(SECOND, 0, &text[..5]);
    world.ack(SECOND, A);
    world.ack(SECOND, B);
    world.ask(SECOND, &text[cut..]);
    assert_eq!(world.heard(SECOND, B), text);
    assert_eq!(world.kept(), [], "nobody waited for it");
    world.ask(SECOND, &text);
    assert_eq!(world.heard(SECOND, B), format!("{text}{}", returns("bbbb")));
}

#[test]
fn what_was_said_before_the_pair_was_known_and_what_is_ambiguous_is_left_alone() {
    for text in [
        returns("aaaa").replace("HTTP/1.1", "HTTP/2"),
        returns("aaaa").replace("a=b;", "a=\"b;"),
        returns("aaaa").replace("Cookie:", "X: 1\n\r\nCookie:"),
        returns("aaaa").replace("Cookie:", "X: 1\r\n y\r\nCookie:"),
        returns("aaaa").replace("GET /x", "CONNECT x").replace("Cookie", "X") + &returns("aaaa"),
    ] {
        let mut world = World::with(["aaaa", "bbbb"]);
        world.ask(FIRST, &text);
        assert!(world.heard(FIRST, B).ends_with(&text), "{text:?}");
        let is_told = |event: &Event| match event {
            Event::ValueDoubtful { .. } => text.contains('"'),
            Event::ReturnsUnread { why, .. } => *why != RawReason::Missed,
            _ => false,
        };
        let told = world.kit.events.iter().filter(|event| is_told(event)).count();
        assert_eq!(told, 1, "{text:?}");
    }
}

/// A server that was copied from the other one has that one's sessions, and no more its own. So it
/// is after a sync of contents, if the sessions are among them.
#[test]
fn after_a_sync_a_server_has_its_own_values_only_if_it_kept_them() {
    for (scope, is_synced, is_kept) in [
        (SyncScope::Machine, false, false),
        (SyncScope::Content, true, false),
        (SyncScope::Content, false, true),
    ] {
        let cookie = Rule::map("set-cookie", Some("SID"));
        let cookie = if is_synced { cookie.synced() } else { cookie };
        let rules = Rules::headers(["date"]).and(cookie);
        let config = EngineConfig { rules, sync_scope: Some(scope), ..config() };
        let mut world = World { kit: Kit::new(config), conns: BTreeMap::new() };
        world.synced(scope); // the first one
        world.open(FIRST);
        world.ask(FIRST, GET);
        world.answer(FIRST, ["aaaa", "bbbb"].map(sets));
        world.ask(FIRST, &returns("aaaa"));
        world.answer(FIRST, ["HTTP/1.1 204 No\r\n\r\n"; 2].map(String::from));
        world.kit.command(Command::SyncNow);
        world.kit.wait_ms(1);
        world.synced(scope);
        let dropped = |event: &Event| match event {
            Event::PairsDropped { why: DropWhy::Copied, count } => Some(*count),
            _ => None,
        };
        let dropped: Vec<u32> = world.kit.events.iter().filter_map(dropped).collect();
        assert_eq!(dropped, if is_kept { vec![] } else { vec![1] }, "{scope:?} {is_synced}");
        world.open(SECOND);
        world.ask(SECOND, &returns("aaaa"));
        let known_as = if is_kept { "bbbb" } else { "aaaa" };
        assert_eq!(world.heard(SECOND, B), returns(known_as), "{scope:?} {is_synced}");
        // What is set from now on is each server's own again.
        world.answer(SECOND, ["aa", "bb"].map(sets));
        world.ask(SECOND, &returns("aa"));
        assert!(world.heard(SECOND, B).ends_with(&returns("bb")));
        assert!(world.heard(SECOND, A).ends_with(&returns("aa")));
    }
}

#[test]
fn what_an_earlier_process_knew_is_said_to_be_lost() {
    let mut world = World::with(["aaaa", "bbbb"]);
    world.ask(FIRST, &returns("aaaa"));
    world.ack(FIRST, A);
    world.ack(FIRST, B);
    let lost = Event::PairsLost;
    for (config, is_lost) in [(mapped(), true), (config(), false)] {
        let kit = Kit::restored(config, last_record(&world.kit));
        assert_eq!(kit.events.contains(&lost), is_lost);
    }
    assert!(!world.kit.events.contains(&lost));
}

#[test]
fn a_server_that_loses_what_it_was_told_is_told_the_same_again() {
    for values in VALUES {
        let mut world = World::with(values);
        world.ask(FIRST, &returns(values[0]));
        world.ack(FIRST, A);
        world.kit.wait_ms(100);
        let to_b = world.kit.on(Link::Server(B));
        let again = to_b.iter().filter(|h| h.data == returns(values[1]).as_bytes()).count();
        assert!(again >= 2, "{again}");
        assert!(world.heard(FIRST, B).ends_with(&returns(values[1])));
    }
}

/// What the process knew of a server that counts otherwise is in its record, unless a value was on
/// its way.
#[test]
fn after_a_restart_a_server_that_counts_otherwise_goes_on_in_its_own_numbers() {
    for values in VALUES {
        for is_acked in [false, true] {
            let mut world = World::with(values);
            world.ask(FIRST, &returns(values[0]));
            world.ack(FIRST, A);
            if is_acked {
                world.ack(FIRST, B);
            }
            let conn = world.conns[&FIRST];
            let taken = LegId::ALL.map(|id| R + n(world.heard(FIRST, id).len()));
            let (asked, shown) = (R + conn.sent, P + n(world.shown(FIRST).len()));
            let mut kit = Kit::restored(mapped(), last_record(&world.kit));
            kit.client(say(ACK, asked, shown));
            for id in LegId::ALL {
                let at = ISN[id.index()] + conn.said[id.index()];
                kit.leg(id, say(ACK, at, taken[id.index()]));
            }
            let state = kit.engine.flows(1)[0].state;
            assert_eq!(state == FlowState::Paired, is_acked, "{values:?}");
            if !is_acked {
                continue;
            }
            kit.forget();
            kit.client(say(ACK, asked, shown).data(GET));
            for id in LegId::ALL {
                let i = id.index();
                let heard = kit.on(Link::Server(id));
                let said = heard.iter().find(|h| !h.data.is_empty()).expect("it is told");
                assert_eq!((said.seg.seq, &said.data[..]), (taken[i], GET.as_bytes()));
                kit.leg(id, say(ACK, ISN[i] + conn.said[i], taken[i] + n(GET.len())));
            }
            let acked = kit.on(Link::Client).last().expect("an ack").seg.ack;
            assert_eq!(acked, asked + n(GET.len()));
        }
    }
}

/// What the state file would hold of the first flow.
fn last_record(kit: &Kit) -> Vec<Record> {
    let flow = |r: &&Record| matches!(r, Record::Flow { slot: 0, .. });
    kit.records.iter().rev().find(flow).cloned().into_iter().collect()
}
