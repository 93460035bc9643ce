//! Values that the two servers say at different length: a naive client and naive servers, and the
//! primary's end, or the gateway's, at every byte of a small exchange.

use super::copied::equal_with;
use super::kit::{ACK, CLIENT_ISS, FIN, ISS, Kit, RST, SYN, SYN_ACK, config, say};
use crate::engine::limits::SPLICES_MAX;
use crate::engine::{
    Command, EngineConfig, Event, FlowState, Input, LegId, Link, RawReason, Record, Rules, Signal,
    SoloReason, SyncScope, SyncStep,
};
use crate::protocol::SPAN_BYTES_MAX;
use LegId::{A, B};

const P: u32 = ISS[0] + 1;
const ISN: [u32; 2] = [P, ISS[1] + 1];
const R: u32 = CLIENT_ISS + 1;
const REQUEST: &str = "GET / HTTP/1.1\r\n\r\n";
/// Values of both servers.
const VALUES: [(&str, &str); 6] =
    [("1", "abc"), ("123", "a"), ("12", "ab"), ("1234", "ab"), ("1", "ab"), ("x12", "xab4")];

fn masked() -> EngineConfig {
    EngineConfig { rules: Rules::headers(["x"]), ..config() }
}

fn answer(value: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nX: {value}\r\nContent-Length:2\r\n\r\nok").into_bytes()
}

/// Where the value stands.
const VALUE_AT: usize = "HTTP/1.1 200 OK\r\nX: ".len();

pub(super) fn state(kit: &Kit) -> FlowState {
    kit.engine.flows(1)[0].state
}

pub(super) fn n(len: usize) -> u32 {
    u32::try_from(len).expect("a short stream")
}

/// A server that says bytes and hears acks, all in its own numbers.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// The number of its first byte.
    first: u32,
    /// All that it says.
    pub script: Vec<u8>,
    pub sent: usize,
    pub acked: usize,
    /// The right edge of its window.
    pub edge: usize,
    taken: u32,
}

/// Both servers, and a client that keeps the first copy of every byte.
pub(super) struct World {
    pub kit: Kit,
    pub servers: [Server; 2],
    /// What the client asks.
    pub request: &'static str,
    /// What a server answers that is alone.
    pub last: Vec<u8>,
    /// A server may lose its part.
    pub may_detach: bool,
    /// What the client has, with gaps.
    got: Vec<Option<u8>>,
    fin: Option<usize>,
    /// It hears nothing beyond this.
    pub deaf_from: usize,
    window: u16,
    /// The right edge that it has granted.
    granted: usize,
    pub asked: u32,
    /// Frames that everybody has heard.
    read: usize,
}

impl World {
    fn new(values: (&str, &str)) -> Self {
        Self::with_window(values, 60_000)
    }

    /// One whose client never grants more than `window` bytes.
    fn with_window(values: (&str, &str), window: u16) -> Self {
        let scripts = [answer(values.0), answer(values.1)];
        let mut world = Self::speaking(masked(), scripts, window);
        world.ask();
        world
    }

    /// One whose servers say these scripts; the client has not asked for anything yet.
    pub(super) fn speaking(config: EngineConfig, scripts: [Vec<u8>; 2], window: u16) -> Self {
        let mut kit = match config.sync_scope {
            Some(SyncScope::Machine) => equal_with(config),
            _ => Kit::new(config),
        };
        kit.client(say(SYN, CLIENT_ISS, 0).mss(1460).sack_ok().window(window));
        for id in LegId::ALL {
            kit.leg(id, say(SYN_ACK, ISS[id.index()], R).mss(1460).sack_ok());
        }
        kit.client(say(ACK, R, P).window(window));
        kit.forget();
        let mut firsts = ISN.into_iter();
        let servers = scripts.map(|script| Server {
            first: firsts.next().expect("two of them"),
            script,
            sent: 0,
            acked: 0,
            edge: window.into(),
            taken: 0,
        });
        Self {
            kit,
            servers,
            request: REQUEST,
            last: answer("more"),
            may_detach: false,
            got: Vec::new(),
            fin: None,
            deaf_from: usize::MAX,
            window,
            granted: usize::from(window),
            asked: 0,
            read: 0,
        }
    }

    pub(super) fn server(&self, id: LegId) -> &Server {
        &self.servers[id.index()]
    }

    pub(super) fn ask(&mut self) {
        let at = self.asked;
        self.asked += n(self.request.len());
        let ack = P + n(self.has());
        self.granted = self.granted.max(self.has() + usize::from(self.window));
        let say = say(ACK, R + at, ack).window(self.window).data(self.request);
        self.kit.client(say);
        for server in &mut self.servers {
            server.taken = self.asked;
        }
        self.hear();
    }

    /// Contiguous bytes that the client has.
    pub(super) fn has(&self) -> usize {
        let run = self.got.iter().take_while(|b| b.is_some()).count();
        run + usize::from(self.fin == Some(run))
    }

    pub(super) fn text(&self) -> Vec<u8> {
        self.got.iter().map_while(|b| *b).collect()
    }

    /// `id` says its bytes `[from, to)`.
    pub(super) fn say(&mut self, id: LegId, from: usize, to: usize) {
        let server = &mut self.servers[id.index()];
        server.sent = server.sent.max(to);
        let data = server.script[from..to].to_vec();
        let seq = server.first.wrapping_add(n(from));
        self.kit.leg(id, say(ACK, seq, R + server.taken).data(data));
        self.hear();
    }

    /// Everybody hears what has left since the last time.
    pub(super) fn hear(&mut self) {
        while self.read < self.kit.heard.len() {
            let heard = self.kit.heard[self.read].clone();
            self.read += 1;
            let may = self.may_detach && heard.link != Link::Client;
            assert!(may || !heard.seg.flags.has(RST), "nobody is reset: {heard:?}");
            match heard.link {
                Link::Client if heard.seg.dst_port == 40_000 => {
                    let at = heard.seg.seq.wrapping_sub(P) as usize;
                    for (i, &byte) in heard.data.iter().enumerate() {
                        self.keep(at + i, byte);
                    }
                    if heard.seg.flags.has(FIN) && at + heard.data.len() < self.deaf_from {
                        self.fin = Some(at + heard.data.len());
                    }
                }
                Link::Server(id) if heard.seg.src_port == 40_000 && !heard.seg.flags.has(RST) => {
                    let server = &mut self.servers[id.index()];
                    let ack = heard.seg.ack.wrapping_sub(server.first) as usize;
                    assert!(ack <= server.sent + 1, "I6: {ack} of {} to {id:?}", server.sent);
                    server.acked = server.acked.max(ack);
                    server.edge = server.edge.max(ack + usize::from(heard.seg.window));
                }
                _ => {}
            }
        }
    }

    fn keep(&mut self, at: usize, byte: u8) {
        if at >= self.deaf_from {
            return;
        }
        assert!(at < self.granted, "byte {at} is beyond the client's window");
        if self.got.len() <= at {
            self.got.resize(at + 1, None);
        }
        let had = self.got[at].get_or_insert(byte);
        assert_eq!(*had, byte, "byte {at} is shown as it was shown before");
    }

    /// The client acknowledges what it has.
    pub(super) fn ack(&mut self) {
        self.granted = self.granted.max(self.has() + usize::from(self.window));
        let say = say(ACK, R + self.asked, P + n(self.has())).window(self.window);
        self.kit.client(say);
        self.hear();
    }

    pub(super) fn kill(&mut self, id: LegId) {
        self.kit.input(Input::Signal(Link::Server(id), Signal::CarrierDown));
        self.hear();
    }

    /// `to` becomes a copy of the other server, its connections included.
    pub(super) fn copy(&mut self, to: LegId) {
        self.kit.command(Command::SyncNow);
        self.kit.wait_ms(1);
        self.kit.step(SyncStep::Frozen);
        self.hear();
        self.servers[to.index()] = self.server(to.other()).clone();
        self.kit.step(SyncStep::TargetReady);
        self.hear();
    }

    /// `id` repeats what was not acknowledged and says the rest, in pieces, until the client has
    /// everything.
    pub(super) fn finish(&mut self, id: LegId, piece: usize) {
        self.deaf_from = usize::MAX;
        for _ in 0..40 {
            let (from, end) = (self.server(id).acked, self.server(id).script.len());
            if from >= end {
                return;
            }
            let mut at = from;
            while at < end {
                let to = (at + piece).min(end);
                self.say(id, at, to);
                at = to;
            }
            self.ack();
        }
        panic!("{id:?} was acknowledged {} only: {:?}", self.server(id).acked, self.text());
    }

    /// One more exchange with `id` alone, up to its end.
    pub(super) fn goes_on(&mut self, id: LegId) {
        let before = self.text();
        self.ask();
        let more = self.last.clone();
        let from = self.server(id).script.len();
        self.servers[id.index()].script.extend_from_slice(&more);
        self.say(id, from, from + more.len());
        assert_eq!(self.text(), [before, more].concat());
        self.ack();
        let server = self.server(id);
        assert_eq!(server.acked, server.script.len());
        let seq = server.first.wrapping_add(n(server.script.len()));
        self.kit.leg(id, say(FIN, seq, R + self.asked));
        self.hear();
        assert_eq!(self.fin, Some(self.text().len()), "the end is where it is");
        let numbers = (R + self.asked, P + n(self.has()));
        self.kit.client(say(FIN, numbers.0, numbers.1));
        let last = self.kit.on(Link::Server(id)).pop().expect("the end is told");
        assert_eq!(last.seg.ack, seq + 1);
    }
}

#[test]
fn values_of_other_length_agree_and_the_primarys_is_shown() {
    for values in VALUES {
        let mut world = World::new(values);
        let [a, b] = [answer(values.0), answer(values.1)];
        world.say(A, 0, a.len());
        world.say(B, 0, VALUE_AT + values.1.len());
        assert_eq!(world.text(), a[..VALUE_AT], "a value is atomic");
        world.say(B, VALUE_AT + values.1.len(), b.len());
        assert_eq!(world.text(), a);
        world.ack();
        assert_eq!((world.server(A).acked, world.server(B).acked), (a.len(), b.len()));
        assert_eq!(state(&world.kit), FlowState::Paired);
        let snapshot = &world.kit.engine.flows(1)[0];
        assert_eq!(snapshot.verified_bytes, a.len() as u64);
    }
}

/// The client has lost what follows any byte; the survivor says its own version again, cut in any
/// way; the client ends up with the version that it was shown.
#[test]
fn a_failover_after_any_byte_that_the_client_has_leaves_the_shown_version_whole() {
    for values in VALUES {
        let [a, b] = [answer(values.0), answer(values.1)];
        for has in 0..=a.len() {
            for piece in [1, 2, 7, 100] {
                let mut world = World::new(values);
                world.deaf_from = has;
                world.say(A, 0, a.len());
                world.say(B, 0, b.len());
                world.ack();
                let told = world.server(B).acked;
                assert_eq!(told, own_of(values, has), "{values:?} {has}");
                world.kill(A);
                assert_eq!(state(&world.kit), FlowState::Solo);
                world.finish(B, piece);
                assert_eq!(world.text(), a, "{values:?} {has} {piece}");
                world.goes_on(B);
            }
        }
    }
}

/// The naive map of an ack: what the client has of the primary's answer, in the backup's.
fn own_of(values: (&str, &str), has: usize) -> usize {
    let (ours, theirs) = (values.0.len(), values.1.len());
    match has {
        _ if ours == theirs || has <= VALUE_AT => has,
        _ if has >= VALUE_AT + ours => has - ours + theirs,
        _ => VALUE_AT,
    }
}

/// The primary ends when it has said any part of its answer, and the backup any part of its own.
#[test]
fn a_failover_at_any_byte_of_both_answers_shows_one_version_of_the_value() {
    for values in VALUES {
        let [a, b] = [answer(values.0), answer(values.1)];
        for said in 0..=a.len() {
            for theirs in 0..=b.len() {
                let mut world = World::new(values);
                world.say(A, 0, said);
                world.say(B, 0, theirs);
                world.ack();
                let before = world.text();
                assert!(a.starts_with(&before) || b.starts_with(&before));
                world.kill(A);
                assert_eq!(state(&world.kit), FlowState::Solo);
                world.finish(B, 100);
                let text = world.text();
                assert!(text.starts_with(&before), "what was shown stays");
                let is_one = text == a || text == b;
                assert!(is_one, "{values:?} {said} {theirs}: {}", String::from_utf8_lossy(&text));
                world.goes_on(B);
            }
        }
    }
}

/// Blocks that the client has beyond a hole, at any two bytes: the leg hears of whole values only.
#[test]
fn sack_blocks_never_claim_a_part_of_a_value() {
    for values in VALUES {
        let [a, b] = [answer(values.0), answer(values.1)];
        let whole = |from: usize| match from {
            f if values.0.len() == values.1.len() || f <= VALUE_AT => f,
            f => (f.max(VALUE_AT + values.0.len())) - values.0.len() + values.1.len(),
        };
        for from in 1..a.len() {
            for to in from + 1..=a.len() {
                let mut world = World::new(values);
                world.say(A, 0, a.len());
                world.say(B, 0, b.len());
                world.kit.forget();
                let block = (P + n(from), P + n(to));
                world.kit.client(say(ACK, R + world.asked, P).sack(&[block]).data("x"));
                let [to_a, to_b] = [A, B].map(|id| world.kit.on(Link::Server(id))[0].seg);
                assert_eq!(to_a.options.sack.as_slice(), [block]);
                let expected = (whole(from), own_of(values, to));
                let expected: Vec<_> = Some(expected)
                    .filter(|(f, t)| f < t)
                    .map(|(f, t)| (ISN[1] + n(f), ISN[1] + n(t)))
                    .into_iter()
                    .collect();
                assert_eq!(to_b.options.sack.as_slice(), expected, "{values:?} {from} {to}");
            }
        }
    }
}

/// Where the primary's value is shown in part, and its end has still to come, nobody knows what the
/// backup's bytes stand for.
#[test]
fn a_block_inside_a_value_that_is_not_whole_is_no_block_of_the_backups() {
    let mut world = World::new(("12345678", "ab"));
    world.say(A, 0, VALUE_AT + 6);
    world.kit.wait_ms(200);
    world.hear();
    assert_eq!(state(&world.kit), FlowState::Lagging);
    world.say(B, 0, answer("ab").len());
    world.kit.forget();
    let block = (P + n(VALUE_AT + 2), P + n(VALUE_AT + 4));
    let lacking = say(ACK, R + world.asked, P + n(VALUE_AT)).sack(&[block]);
    world.kit.client(lacking.data("x"));
    let told = world.kit.on(Link::Server(B))[0].seg.options.sack;
    assert_eq!(told.as_slice(), []);
}

/// The backup is late by the limit of the hold: it is verified against what was shown, whatever
/// part of its value it had said, and can take over afterwards.
#[test]
fn a_lagging_backup_proves_a_value_of_other_length() {
    for values in VALUES {
        let [a, b] = [answer(values.0), answer(values.1)];
        for theirs in 0..b.len() {
            for has in [VALUE_AT, VALUE_AT + 1, a.len() - 1, a.len()] {
                let mut world = World::new(values);
                world.say(A, 0, a.len());
                world.say(B, 0, theirs);
                world.deaf_from = has;
                world.kit.wait_ms(700);
                world.hear();
                assert_eq!(state(&world.kit), FlowState::Lagging);
                world.ack();
                world.say(B, theirs, b.len());
                world.ack();
                assert_eq!(state(&world.kit), FlowState::Paired, "{values:?} {theirs} {has}");
                world.kill(A);
                world.finish(B, 100);
                assert_eq!(world.text(), a, "{values:?} {theirs} {has}");
                world.goes_on(B);
            }
        }
    }
}

/// Where a late backup's bytes beyond a hole stand is not known before the hole is filled: a value
/// may be in it. Of what it repeats there, the client is shown nothing.
#[test]
fn what_a_late_backup_repeats_beyond_a_hole_is_not_shown_at_a_guess() {
    for values in VALUES {
        let [a, b] = [answer(values.0), answer(values.1)];
        let behind = VALUE_AT + values.1.len();
        let mut world = World::new(values);
        world.deaf_from = VALUE_AT;
        world.say(A, 0, a.len());
        world.say(B, 0, 3);
        world.say(B, behind, b.len());
        world.kit.wait_ms(700);
        world.hear();
        assert_eq!(state(&world.kit), FlowState::Lagging);
        world.ack();
        let shown = |kit: &Kit| kit.on(Link::Client).iter().map(|h| h.data.len()).sum::<usize>();
        world.kit.forget();
        world.read = 0;
        world.say(B, behind, b.len());
        world.say(B, 3, b.len());
        assert_eq!(shown(&world.kit), 0, "{values:?}");
        assert_eq!(state(&world.kit), FlowState::Paired);
        // Now it is known: what the client lacks is shown again, once.
        world.deaf_from = usize::MAX;
        world.say(B, VALUE_AT, b.len());
        assert_eq!(shown(&world.kit), a.len() - VALUE_AT, "{values:?}");
        assert_eq!(world.text(), a, "{values:?}");
    }
}

/// Roles swap after every exchange; the client may have everything or not.
#[test]
fn roles_swap_between_values_of_any_length() {
    for has_all in [true, false] {
        let mut world = World::new(("1", "abc"));
        world.servers.iter_mut().for_each(|s| s.script.clear());
        let mut expected = Vec::new();
        for round in 0..24 {
            if round > 0 {
                world.ask();
            }
            let primary = world.kit.engine.status().roles.primary;
            for id in LegId::ALL {
                let value = "y".repeat(1 + (round * 5 + 7 * id.index()) % 11);
                let from = world.server(id).script.len();
                let answer = answer(&value);
                if id == primary {
                    expected.extend_from_slice(&answer);
                }
                world.servers[id.index()].script.extend_from_slice(&answer);
                world.say(id, from, from + answer.len());
            }
            assert_eq!(world.text(), expected, "round {round}");
            assert_eq!(state(&world.kit), FlowState::Paired);
            if has_all || round % 3 == 2 {
                world.ack();
                for server in &world.servers {
                    assert_eq!(server.acked, server.script.len());
                }
            }
            world.kit.command(Command::Failover { to: None, is_planned: true });
            world.hear();
            assert_ne!(world.kit.engine.status().roles.primary, primary, "round {round}");
        }
        world.ack();
        world.kill(A);
        world.goes_on(B);
    }
}

/// A flow rests once the client has every value, and no sooner. Its map comes back whole: the
/// survivor of a failover in its sleep goes on in numbers of its own.
#[test]
fn a_flow_at_rest_keeps_its_map() {
    for values in VALUES {
        let [a, b] = [answer(values.0), answer(values.1)];
        for has in 0..=a.len() {
            let mut world = World::new(values);
            world.deaf_from = has;
            world.say(A, 0, a.len());
            world.say(B, 0, b.len());
            world.ack();
            world.kit.wait_ms(100);
            assert_eq!(world.kit.engine.at_rest().count(), usize::from(has == a.len()), "{has}");
            world.kill(A);
            world.finish(B, 100);
            assert_eq!(world.text(), a, "{values:?} {has}");
            world.goes_on(B);
        }
    }
}

pub(super) fn last_record(kit: &Kit) -> Vec<Record> {
    let flow = kit.records.iter().rev().find(|r| matches!(r, Record::Flow { .. }));
    flow.into_iter().cloned().collect()
}

/// The gateway starts anew with what it wrote last. With every value acknowledged the flow goes on
/// with both servers; with one on its way the backup is given up.
#[test]
fn a_restart_keeps_a_map_that_is_a_constant_and_gives_up_any_other() {
    for values in VALUES.iter().filter(|v| v.0.len() != v.1.len()) {
        let [a, b] = [answer(values.0), answer(values.1)];
        for has in 0..=a.len() {
            let mut world = World::new(*values);
            world.deaf_from = has;
            world.say(A, 0, a.len());
            world.say(B, 0, b.len());
            world.ack();
            let is_settled = has >= VALUE_AT + values.0.len();
            let mut kit = Kit::restored(masked(), last_record(&world.kit));
            kit.client(say(ACK, R + world.asked, P + n(has)));
            kit.leg(A, say(ACK, P + n(a.len()), R + world.asked));
            kit.leg(B, say(ACK, ISN[1] + n(b.len()), R + world.asked));
            let expected = if is_settled { FlowState::Paired } else { FlowState::Solo };
            assert_eq!(state(&kit), expected, "{values:?} {has}");
            if is_settled {
                let acks: Vec<_> = kit.on(Link::Server(B)).iter().map(|h| h.seg.ack).collect();
                assert_eq!(acks.last(), Some(&(ISN[1] + n(own_of(*values, has)))));
                kit.forget();
                kit.leg(A, say(ACK, P + n(a.len()), R + world.asked).data("more"));
                kit.leg(B, say(ACK, ISN[1] + n(b.len()), R + world.asked).data("more"));
                kit.leg(A, say(ACK, P + n(has), R + world.asked).data(&a[has..]));
                let from = own_of(*values, has);
                kit.leg(B, say(ACK, ISN[1] + n(from), R + world.asked).data(&b[from..]));
                let mut shown = kit.on(Link::Client);
                shown.sort_by_key(|h| h.seg.seq);
                let shown: Vec<u8> = shown.into_iter().flat_map(|h| h.data).collect();
                assert_eq!(shown, [&a[has..], b"more"].concat());
            }
        }
    }
}

/// A survivor whose map was no constant when the gateway ended: the client is reset, exactly.
#[test]
fn a_restart_with_a_value_on_its_way_from_the_survivor_resets_exactly() {
    let values = ("1", "abc");
    let [a, b] = [answer(values.0), answer(values.1)];
    for has in 0..VALUE_AT + 1 {
        let mut world = World::new(values);
        world.deaf_from = has;
        world.say(A, 0, a.len());
        world.say(B, 0, b.len());
        world.ack();
        world.kill(A);
        let mut kit = Kit::restored(masked(), last_record(&world.kit));
        assert_eq!(kit.engine.flows(1)[0].solo, Some(SoloReason::Restored));
        kit.wait_ms(100);
        assert!(!kit.on(Link::Client).is_empty(), "the client is asked");
        kit.forget();
        let shown = kit.client(say(ACK, R + world.asked, P + n(has)));
        let resets: Vec<_> =
            shown.iter().filter(|h| h.link == Link::Client).map(|h| h.seg).collect();
        assert_eq!((resets[0].flags, resets[0].seq), (RST, P + n(has)));
        assert!(kit.events.iter().any(|e| matches!(e, Event::FlowReset { .. })));
        let again = kit.leg(B, say(ACK, ISN[1], R + world.asked).data(&b));
        assert!(again.iter().any(|h| h.link == Link::Server(B) && h.seg.flags == RST));
    }
}

/// Nor does a survivor go on inside a value that the client has begun to hear from the other one.
#[test]
fn a_restart_inside_a_value_of_the_server_before_resets_exactly() {
    let values = ("abc", "xyz");
    let [a, b] = [answer(values.0), answer(values.1)];
    for has in 0..VALUE_AT + 5 {
        let mut world = World::new(values);
        world.deaf_from = has;
        world.say(A, 0, a.len());
        world.say(B, 0, b.len());
        world.ack();
        world.kill(A);
        let mut kit = Kit::restored(masked(), last_record(&world.kit));
        kit.wait_ms(100);
        let shown = kit.client(say(ACK, R + world.asked, P + n(has)));
        let resets: Vec<_> =
            shown.iter().filter(|h| h.seg.flags == RST && h.link == Link::Client).collect();
        if has < VALUE_AT + values.0.len() {
            assert_eq!(resets.iter().map(|h| h.seg.seq).collect::<Vec<_>>(), [P + n(has)]);
            continue;
        }
        assert!(resets.is_empty(), "{has}");
        kit.leg(B, say(ACK, ISN[1] + n(b.len()), R + world.asked));
        kit.forget();
        kit.leg(B, say(ACK, ISN[1] + n(has), R + world.asked).data(&b[has..]));
        let shown: Vec<u8> = kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
        assert_eq!(shown, &b[has..], "{has}");
    }
}

/// The survivor was told of more room than the client has, for its values were shorter: it is not
/// let beyond the client's window, and what it repeats asks whether that has opened.
#[test]
fn a_survivor_with_shorter_values_keeps_to_the_clients_window() {
    let values = ("12345678", "a");
    let [a, b] = [answer(values.0), answer(values.1)];
    let mut world = World::with_window(values, u16::try_from(a.len()).expect("short"));
    world.say(A, 0, a.len());
    world.say(B, 0, b.len());
    let room = world.server(B).edge;
    assert!(room >= b.len());
    world.kill(A);
    // Of its next answer it may say as much as it was told.
    world.servers[1].script.extend_from_slice(b"12345678");
    world.say(B, b.len(), b.len() + 7);
    assert_eq!(world.text(), a, "not a byte beyond the window");
    world.window = 0;
    world.ack();
    world.kit.forget();
    world.read = 0;
    world.say(B, b.len(), b.len() + 7);
    assert!(!world.kit.on(Link::Client).is_empty(), "the client is asked");
    world.window = 100;
    world.ack();
    assert_eq!(world.text(), [&a[..], b"1234567"].concat());
}

/// So many values on their way to the client have their place in the map. The next one waits for
/// the client's acks, which neither server can do anything about.
#[test]
fn a_value_beyond_the_room_of_the_map_waits_for_the_clients_acks_and_nobody_is_late() {
    let status = "HTTP/1.1 200 OK\r\n";
    let answer = |value: &str| {
        let header = format!("X: {value}\r\n");
        [status, &header.repeat(SPLICES_MAX + 100), "Content-Length:2\r\n\r\nok"].concat()
    };
    let mut world = World::new(("", ""));
    for (server, value) in world.servers.iter_mut().zip(["a", "bc"]) {
        server.script = answer(value).into_bytes();
    }
    let [a, b] = [A, B].map(|id| world.server(id).script.clone());
    world.say(A, 0, a.len());
    world.say(B, 0, b.len());
    let mapped = status.len() + SPLICES_MAX * "X: a\r\n".len() + "X: ".len();
    assert_eq!(world.text(), a[..mapped]);
    world.kit.wait_ms(2000);
    world.hear();
    assert_eq!((state(&world.kit), world.text().len()), (FlowState::Paired, mapped));
    world.ack();
    assert_eq!(world.text(), a, "at once");
    world.ack();
    assert_eq!((world.server(A).acked, world.server(B).acked), (a.len(), b.len()));
}

/// A difference that no rule allows is found where it is, and what it belongs to is named.
#[test]
fn a_difference_is_told_with_the_field_that_it_belongs_to() {
    let head = "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nX: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let ours = format!("{head}2\r\nok\r\n0\r\nT: 1\r\n\r\n");
    let cases = [
        ("200 OK", "404 No", "status line"),
        ("\"1\"", "\"2\"", "header etag"),
        ("ETag", "Etag", "header etag"),
        ("X: 1\r\n", "", "header x"),
        ("X: 1\r\n", "X: 1\r\nY: 1\r\n", "header transfer-encoding"),
        ("chunked\r\n\r\n", "chunked\r\nY: 1\r\n\r\n", "end of the header section"),
        ("ok", "oK", "body"),
        ("T: 1", "T: 2", "trailer"),
    ];
    for (from, to, field) in cases {
        let theirs = ours.replacen(from, to, 1);
        let at = ours.bytes().zip(theirs.bytes()).take_while(|(a, b)| a == b).count();
        let mut kit = Kit::new(masked());
        kit.establish();
        kit.client(say(ACK, R, P).data(REQUEST));
        let taken = R + n(REQUEST.len());
        kit.leg(A, say(ACK, P, taken).data(&ours));
        kit.leg(B, say(ACK, ISN[1], taken).data(&theirs));
        let told: Vec<_> = kit
            .events
            .iter()
            .filter_map(|e| match e {
                Event::Diverged { divergence, .. } => Some(divergence.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(told.len(), 1, "{from:?}");
        let place = told[0].at.since(crate::wire::Offset::START) as usize;
        let name = told[0].field.as_ref().map(ToString::to_string);
        assert_eq!((place, name.as_deref()), (at, Some(field)), "{from:?}");
    }
}

/// What two readers might take for two different things is compared as it is, for a reason.
#[test]
fn what_is_ambiguous_is_compared_raw_and_the_reason_is_told() {
    let plain = "HTTP/1.1 200 OK\r\nX: 1\r\n\r\n";
    let cases = [
        ("EHLO x\r\n\r\n", plain, RawReason::NotHttp),
        ("GET / HTTP/1.1\nHost: x\n\n", plain, RawReason::BareLf),
        ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", plain, RawReason::Folded),
        ("GET / HTTP/1.1\r\nA : b\r\n\r\n", plain, RawReason::HeaderLine),
        ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", plain, RawReason::BareCr),
        (
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            plain,
            RawReason::TwoLengths,
        ),
        (
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            plain,
            RawReason::LengthAndCoding,
        ),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", plain, RawReason::Coding),
        ("POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", plain, RawReason::Length),
        ("PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", plain, RawReason::Coding),
        (
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            plain,
            RawReason::ChunkEnd,
        ),
        ("CONNECT a:1 HTTP/1.1\r\n\r\n", plain, RawReason::Switched),
        (REQUEST, "HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nok", RawReason::NoContent),
        (REQUEST, "HTTP/2 200 OK\r\nX: 1\r\n\r\n", RawReason::StatusLine),
        (REQUEST, "\r\nHTTP/1.1 200 OK\r\nX: 1\r\n\r\n", RawReason::StatusLine),
        (REQUEST, "HTTP/1.1 101 Switching\r\nX: 1\r\n\r\n", RawReason::Switched),
        (REQUEST, "HTTP/1.1 200 OK\r\nX:\r1\r\n\r\n", RawReason::BareCr),
        (REQUEST, "HTTP/1.1 200 OK\r\nX: 1\r\n\r\nok", RawReason::Value),
    ];
    for (request, answer, why) in cases {
        let mut kit = Kit::new(masked());
        kit.establish();
        kit.client(say(ACK, R, P).data(request));
        let taken = R + n(request.len());
        let theirs = match why {
            RawReason::Value => {
                answer.replace("X: 1", &format!("X: {}", "2".repeat(SPAN_BYTES_MAX + 1)))
            }
            _ => answer.to_string(),
        };
        kit.leg(A, say(ACK, P, taken).data(answer));
        kit.leg(B, say(ACK, ISN[1], taken).data(&theirs));
        let raw: Vec<_> = kit
            .events
            .iter()
            .filter_map(|e| match e {
                Event::ComparedRaw { why, .. } => Some(*why),
                _ => None,
            })
            .collect();
        assert_eq!(raw, [why], "{request:?} {answer:?}");
    }
}
