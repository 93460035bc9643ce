//! Returned values against a naive model: servers that keep what they hear, a client that says one
//! text, and anything that may happen to the segments between them.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;

use super::kit::{ACK, CLIENT_ISS, ISS, Kit, RST, SYN, SYN_ACK, config, say};
use crate::engine::{Event, FlowState, Input, LegId, Link, Rule, Rules, Signal};
use LegId::{A, B};

const P: u32 = ISS[0] + 1;
const ISN: [u32; 2] = [P, ISS[1] + 1];
const R: u32 = CLIENT_ISS + 1;
const GET: &str = "GET / HTTP/1.1\r\n\r\n";

fn n(len: usize) -> u32 {
    u32::try_from(len).expect("a short stream")
}

/// What each end has to hear: the client's text, and the servers', in pieces that stand for each
/// other.
#[derive(Clone, Debug, Default)]
struct Texts {
    client: String,
    own: [String; 2],
    /// Values: where each stands for the client, and for each server.
    values: Vec<(Range<usize>, [Range<usize>; 2])>,
}

impl Texts {
    fn plain(&mut self, text: &str) {
        self.client += text;
        self.own.iter_mut().for_each(|own| *own += text);
    }

    fn value(&mut self, values: [&str; 2]) {
        let at = self.client.len()..self.client.len() + values[0].len();
        let own = [0, 1].map(|i| self.own[i].len()..self.own[i].len() + values[i].len());
        self.values.push((at, own));
        self.client += values[0];
        self.own.iter_mut().zip(values).for_each(|(own, value)| *own += value);
    }

    /// Where the client's text ends for a server that has taken `taken` bytes of its own.
    fn client_at(&self, id: LegId, taken: usize) -> usize {
        if id == A {
            return taken; // the client says its values
        }
        let mut shift = 0i64;
        for (at, own) in &self.values {
            let own = &own[id.index()];
            if taken < own.end {
                return match taken > own.start {
                    true => at.start,
                    false => (taken as i64 + shift) as usize,
                };
            }
            shift = at.end as i64 - own.end as i64;
        }
        (taken as i64 + shift) as usize
    }
}

/// One server: what it has, by its own positions.
#[derive(Clone, Debug, Default)]
struct Server {
    got: BTreeMap<usize, u8>,
    acked: usize,
    said: u32,
    is_dead: bool,
}

impl Server {
    fn has(&self) -> usize {
        self.got.keys().zip(0..).take_while(|(at, i)| **at == *i).count()
    }
}

struct World {
    kit: Kit,
    texts: Texts,
    servers: [Server; 2],
    window: u16,
    sent: usize,
    acked: usize,
    edge: usize,
    /// Frames that were looked at.
    read: usize,
}

impl World {
    fn new(texts: Texts, pairs: &[[&str; 2]], window: u16) -> Self {
        let rules = Rules::headers(["date"]).and(Rule::map("set-cookie", Some("SID")));
        let mut kit = Kit::new(crate::engine::EngineConfig { rules, ..config() });
        kit.client(say(SYN, CLIENT_ISS, 0).mss(1460).sack_ok());
        for id in LegId::ALL {
            let answer = say(SYN_ACK, ISS[id.index()], R).mss(100).sack_ok();
            kit.leg(id, answer.window(window));
        }
        kit.client(say(ACK, R, P));
        kit.forget();
        let (servers, edge) = (Default::default(), usize::from(window));
        let mut world = Self { kit, texts, servers, window, sent: 0, acked: 0, edge, read: 0 };
        // The client is given what it returns.
        for values in pairs {
            let before = world.sent;
            world.send(before, GET.len());
            world.settle();
            world.answer(values.map(|value| {
                format!("HTTP/1.1 200 OK\r\nSet-Cookie: SID={value}\r\nContent-Length: 0\r\n\r\n")
            }));
        }
        assert_eq!(world.acked, world.sent);
        world
    }

    fn answer(&mut self, texts: [String; 2]) {
        for (id, text) in LegId::ALL.into_iter().zip(texts) {
            let server = &mut self.servers[id.index()];
            let seq = ISN[id.index()] + server.said;
            server.said += n(text.len());
            let ack = R + n(server.acked);
            self.kit.leg(id, say(ACK, seq, ack).window(self.window).data(text));
        }
        self.hear(|_| true);
    }

    /// The client says `len` bytes at `from`, as far as it may.
    fn send(&mut self, from: usize, len: usize) {
        let to = (from + len).min(self.texts.client.len()).min(self.edge);
        if from >= to {
            return;
        }
        let data = self.texts.client.as_bytes()[from..to].to_vec();
        self.sent = self.sent.max(to);
        let ack = P + self.servers[0].said;
        self.kit.client(say(ACK, R + n(from), ack).data(data));
    }

    fn ack(&mut self, id: LegId) {
        let server = &mut self.servers[id.index()];
        if server.is_dead {
            return;
        }
        server.acked = server.has();
        let seq = ISN[id.index()] + server.said;
        let island = server.got.keys().copied().find(|&at| at > server.acked);
        let blocks: Vec<_> = island
            .map(|from| {
                let run =
                    server.got.range(from..).zip(from..).take_while(|((at, _), i)| **at == *i);
                (R + n(from), R + n(from + run.count()))
            })
            .into_iter()
            .collect();
        let ack = say(ACK, seq, R + n(server.acked)).window(self.window).sack(&blocks);
        self.kit.leg(id, ack);
    }

    /// Everybody hears what has left, but for what is lost.
    fn hear(&mut self, mut arrives: impl FnMut(usize) -> bool) {
        while self.read < self.kit.heard.len() {
            let heard = self.kit.heard[self.read].clone();
            self.read += 1;
            let seg = &heard.seg;
            match heard.link {
                Link::Client if seg.dst_port < 61_000 => {
                    assert!(!seg.flags.has(RST), "nobody is reset: {heard:?}");
                    let ack = seg.ack.wrapping_sub(R) as usize;
                    self.check_ack(ack);
                    self.acked = self.acked.max(ack);
                    self.edge = self.edge.max(ack + usize::from(seg.window));
                }
                Link::Server(id) if seg.src_port < 61_000 && !self.servers[id.index()].is_dead => {
                    let at = seg.seq.wrapping_sub(R) as usize;
                    let own = self.texts.own[id.index()].as_bytes();
                    for (i, &byte) in heard.data.iter().enumerate() {
                        assert_eq!(own.get(at + i), Some(&byte), "{id:?} at {}", at + i);
                    }
                    if arrives(self.read) {
                        let server = &mut self.servers[id.index()];
                        let room = server.has() + usize::from(self.window);
                        let kept = heard.data.iter().zip(at..).filter(|(_, at)| *at < room);
                        server.got.extend(kept.map(|(byte, at)| (at, *byte)));
                    }
                }
                _ => {}
            }
        }
    }

    /// I2: nothing is acknowledged that a server which counts has not.
    fn check_ack(&self, ack: usize) {
        let flow = &self.kit.engine.flows(1)[0];
        for id in LegId::ALL {
            let counts = flow.state == FlowState::Paired || flow.primary == id;
            let taken = self.texts.client_at(id, self.servers[id.index()].acked);
            assert!(!counts || ack <= taken, "{ack} told, {id:?} has {taken}");
        }
    }

    fn settle(&mut self) {
        self.hear(|_| true);
        for id in LegId::ALL {
            self.ack(id);
        }
        self.hear(|_| true);
    }

    fn dies(&mut self, id: LegId) {
        self.servers[id.index()].is_dead = true;
        self.kit.input(Input::Signal(Link::Server(id), Signal::CarrierDown));
        self.kit.wait_ms(1);
    }

    /// Until everybody has everything.
    fn finish(&mut self) {
        for _ in 0..400 {
            self.settle();
            let is_done = |(i, server): (usize, &Server)| {
                server.is_dead || server.has() == self.texts.own[i].len()
            };
            if self.servers.iter().enumerate().all(is_done) && self.acked == self.texts.client.len()
            {
                return;
            }
            let from = self.acked;
            self.send(from, 1460);
            self.hear(|_| true);
            self.kit.wait_ms(60);
        }
        panic!("{} of {} acknowledged", self.acked, self.texts.client.len());
    }
}

/// Requests with values that the client was given (by number), and with others.
fn any_texts() -> impl Strategy<Value = (Vec<u8>, Vec<(u8, u8)>)> {
    let requests = prop::collection::vec((0u8..5, 0u8..40), 1..5);
    (prop::collection::vec(0u8..PAIRS.len() as u8, 1..3), requests)
}

/// What the servers call one session.
const PAIRS: [[&str; 2]; 5] = [
    ["a", "b"],
    ["aaaa", "bbbb"],
    ["a1a1a1a1a1a1", "b2b2b2b2b2b2"],
    ["aaaaaaaaaaaaaaaaaaaa", "bb"],
    ["aa", "bbbbbbbbbbbbbbbbbbbb"],
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn whatever_happens_on_the_way_each_server_hears_its_own_text(
        (given, requests) in any_texts(),
        steps in prop::collection::vec((0u8..7, 0u16..120, 0u16..120), 0..40),
        death in prop::option::of(0usize..40), is_small in any::<bool>(),
    ) {
        let mut texts = Texts::default();
        given.iter().for_each(|_| texts.plain(GET));
        for (value, body) in requests {
            texts.plain(&format!("PUT /{value} HTTP/1.1\r\nCookie: a=b; SID="));
            match given.get(usize::from(value)) {
                Some(&pair) => texts.value(PAIRS[usize::from(pair)]),
                None => texts.plain("unknown"),
            }
            texts.plain(&format!("; c\r\nContent-Length: {body}\r\n\r\n"));
            texts.plain(&"x".repeat(body.into()));
        }
        let pairs: Vec<_> = given.iter().map(|&pair| PAIRS[usize::from(pair)]).collect();
        let window = if is_small { 60 } else { 60_000 };
        let mut world = World::new(texts, &pairs, window);
        for (i, (what, a, b)) in steps.into_iter().enumerate() {
            if death == Some(i) {
                world.dies(A);
            }
            let (next, acked) = (world.sent, world.acked);
            match what {
                0 | 1 => world.send(next, usize::from(a) + 1),
                2 => world.send(acked, usize::from(a) + 1),
                3 => world.send(next + usize::from(b) % 30, usize::from(a) + 1),
                4 => world.hear(|frame| (frame + usize::from(a)) % 3 > 0),
                5 => {
                    world.hear(|_| true);
                    world.ack(if a % 2 == 0 { A } else { B });
                }
                _ => world.kit.wait_ms(u64::from(a) / 10), // no value waits for a second
            }
        }
        world.finish();
        let late = world.kit.events.iter().any(|e| matches!(e, Event::ValueKept { .. }));
        prop_assert!(!late);
    }
}
