//! The same among endpoints that repeat what they said, on links that lose any of the first frames,
//! with a server that may die at any time: the client has the file, and nobody was lied to.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Call, agreed};
use crate::engine::tests::kit::{ACK, CLIENT_ISS, FIN, Heard, ISS, RST, SYN, SYN_ACK, Say, say};
use crate::engine::{FlowState, LegId, Link};
use crate::wire::TcpFlags;
use LegId::{A, B};

const CONTENT: &[u8] = b"a file that fits into a segment";
const FIN_AT: u32 = CONTENT.len() as u32;
/// How often an endpoint says again what was not acknowledged.
const REPEATED_MS: u64 = 1000;
const STEP_MS: u64 = 10;

/// A server's end: it calls, says the file, and ends.
#[derive(Debug, Default)]
struct Server {
    is_dead: bool,
    begins_ms: u64,
    /// The gateway has heard that it calls.
    was_heard: bool,
    /// The client's SYN was heard.
    is_open: bool,
    /// Of the file, its end included.
    acked: u32,
    /// The gateway has heard that it is open.
    was_heard_open: bool,
    has_ended: bool,
    said_at: Option<u64>,
}

/// The client's end: it listens, takes the file, and ends.
#[derive(Debug, Default)]
struct Client {
    iss: Option<u32>,
    is_open: bool,
    got: usize,
    has_fin: bool,
    is_done: bool,
    was_reset: bool,
    said_at: Option<u64>,
}

struct Path {
    call: Call,
    servers: [Server; 2],
    client: Client,
    /// Whether each of the first frames is lost.
    losses: std::vec::IntoIter<bool>,
    now_ms: u64,
    /// Frames that everybody has heard.
    read: usize,
    /// The first SYN that the client was shown.
    syn: Option<Heard>,
    /// The client was called, whether it has heard that or not.
    is_called: bool,
    was_alone: bool,
}

impl Path {
    fn loses(&mut self) -> bool {
        self.losses.next().unwrap_or(false)
    }

    fn server_says(&mut self, leg: LegId, said: Say) {
        self.servers[leg.index()].said_at = Some(self.now_ms);
        if !self.servers[leg.index()].is_dead && !self.loses() {
            let server = &mut self.servers[leg.index()];
            server.was_heard = true;
            server.was_heard_open |= said.flags.has(ACK);
            self.call.leg(leg, said);
            self.deliver();
        }
    }

    fn client_says(&mut self, said: Say) {
        self.client.said_at = Some(self.now_ms);
        if !self.loses() {
            self.call.client(said);
            self.deliver();
        }
    }

    /// Everybody hears what has left since the last time.
    fn deliver(&mut self) {
        while let Some(heard) = self.call.world.kit.heard.get(self.read).cloned() {
            self.read += 1;
            if heard.link == Link::Client && heard.seg.flags == SYN && !self.is_called {
                // Whoever is heard from here on was too late.
                self.is_called = true;
                self.was_alone |= !self.servers.iter().all(|s| s.was_heard);
            }
            // A reset is said once: whoever misses it has to ask, and here not everybody does.
            let is_lost = !heard.seg.flags.has(RST) && self.loses();
            if ![heard.seg.src_port, heard.seg.dst_port].contains(&super::C.1) || is_lost {
                continue;
            }
            match heard.link {
                Link::Client => self.client_hears(&heard),
                Link::Server(leg) => self.server_hears(leg, &heard),
            }
        }
    }

    /// What the server's state is worth saying again.
    fn server_speaks(&mut self, leg: LegId) {
        let (server, i) = (&self.servers[leg.index()], leg.index());
        let from = server.acked.min(FIN_AT);
        match server.is_open {
            false => self.server_says(leg, say(SYN, ISS[i], 0).mss(1460)),
            true => {
                let text = say(FIN, ISS[i] + 1 + from, CLIENT_ISS + 1);
                self.server_says(leg, text.data(&CONTENT[from as usize..]));
            }
        }
    }

    fn server_hears(&mut self, leg: LegId, heard: &Heard) {
        let (seg, first) = (&heard.seg, ISS[leg.index()] + 1);
        let server = &mut self.servers[leg.index()];
        if server.is_dead {
            return;
        }
        if seg.flags.has(RST) {
            let is_exact =
                if server.is_open { seg.seq == CLIENT_ISS + 1 } else { seg.ack == first };
            server.is_dead |= is_exact;
            return;
        }
        let is_answer = seg.flags == SYN_ACK && seg.ack == first && seg.seq == CLIENT_ISS;
        if is_answer {
            let was_open = std::mem::replace(&mut server.is_open, true);
            self.server_says(leg, say(ACK, first, CLIENT_ISS + 1));
            if !was_open {
                self.server_speaks(leg);
            }
            return;
        }
        if !server.is_open || !seg.flags.has(ACK) {
            return;
        }
        let acked = seg.ack.wrapping_sub(first);
        assert!(acked <= FIN_AT + 1, "I6: {heard:?}");
        server.acked = server.acked.max(acked);
        if seg.flags == FIN {
            server.has_ended = true;
            let end = say(ACK, first + FIN_AT + 1, CLIENT_ISS + 2);
            self.server_says(leg, end);
        }
    }

    fn client_hears(&mut self, heard: &Heard) {
        let seg = &heard.seg;
        if seg.flags == SYN {
            if self.syn.as_ref().is_some_and(|first| first.seg != *seg) {
                assert!(self.was_alone && self.servers.iter().any(|s| s.is_dead), "one SYN");
                // Whoever had called alone is dead, and what became of that the client missed.
                (self.syn, self.client) = (None, Client::default());
            }
            self.syn.get_or_insert_with(|| heard.clone());
            self.call.shown = seg.src_port;
            let iss = *self.client.iss.get_or_insert(seg.seq);
            if !self.client.is_open {
                self.client_says(say(SYN_ACK, CLIENT_ISS, iss + 1).mss(1460));
            }
            return;
        }
        let Some(iss) = self.client.iss else {
            return assert!(seg.flags.has(RST), "nobody has called: {heard:?}");
        };
        if seg.flags.has(RST) {
            let next = iss + 1 + self.client.got as u32 + u32::from(self.client.has_fin);
            self.client.was_reset |= seg.seq == next;
            return;
        }
        if seg.ack == CLIENT_ISS + 1 && !self.client.is_open {
            self.client.is_open = true;
            if self.call.state() == Some(FlowState::Paired) {
                let heard = self.servers.iter().all(|s| s.was_heard_open);
                assert!(heard, "I2: both stand behind what the client is told");
            }
        }
        assert!(seg.ack == CLIENT_ISS + 1 || seg.ack == CLIENT_ISS + 2, "{heard:?}");
        self.client.is_done |= self.client.has_fin && seg.ack == CLIENT_ISS + 2;
        let at = seg.seq.wrapping_sub(iss + 1) as usize;
        if at <= self.client.got && at + heard.data.len() > self.client.got {
            assert_eq!(heard.data, CONTENT[at..at + heard.data.len()]);
            self.client.got = at + heard.data.len();
        }
        let is_end = seg.flags.has(TcpFlags::FIN);
        self.client.has_fin |= is_end && at + heard.data.len() == self.client.got;
        if !heard.data.is_empty() || is_end {
            self.client_speaks();
        }
    }

    fn client_speaks(&mut self) {
        let Some(iss) = self.client.iss else { return };
        let next = iss + 1 + self.client.got as u32;
        match (self.client.is_open, self.client.has_fin) {
            (false, _) => self.client_says(say(SYN_ACK, CLIENT_ISS, iss + 1).mss(1460)),
            (true, false) => self.client_says(say(ACK, CLIENT_ISS + 1, next)),
            (true, true) => self.client_says(say(FIN, CLIENT_ISS + 1, next + 1)),
        }
    }

    /// Everybody whose time has come says it again.
    fn step(&mut self) {
        self.call.world.kit.wait_ms(STEP_MS);
        self.now_ms += STEP_MS;
        self.deliver();
        let is_due = |at: Option<u64>, now| at.is_none_or(|at| now >= at + REPEATED_MS);
        for leg in LegId::ALL {
            let server = &self.servers[leg.index()];
            let has_more = !server.is_open || server.acked <= FIN_AT;
            let may = !server.is_dead && has_more && self.now_ms >= server.begins_ms;
            if may && is_due(server.said_at, self.now_ms) {
                self.server_speaks(leg);
            }
        }
        let is_asking = self.client.iss.is_some() && !self.client.is_done && !self.client.was_reset;
        let waits = !self.client.is_open || self.client.has_fin;
        if is_asking && waits && is_due(self.client.said_at, self.now_ms) {
            self.client_speaks();
        }
        let alone = [FlowState::Solo, FlowState::Lagging];
        self.was_alone |= self.call.state().is_some_and(|state| alone.contains(&state));
    }
}

proptest! {
    #[test]
    fn the_client_has_the_file_whatever_is_lost(
        losses in vec(prop::bool::weighted(0.3), 0..24),
        starts in prop::array::uniform2(0u64..30),
        dies in prop::option::of((prop::sample::select(vec![A, B]), 0u64..150)),
    ) {
        let mut path = Path {
            call: agreed(),
            servers: Default::default(),
            client: Client::default(),
            losses: losses.into_iter(),
            now_ms: 0,
            read: 0,
            syn: None,
            is_called: false,
            was_alone: false,
        };
        for leg in LegId::ALL {
            path.servers[leg.index()].begins_ms = starts[leg.index()] * STEP_MS;
        }
        for round in 0..3000 {
            if let Some((leg, at)) = dies && round == at {
                path.servers[leg.index()].is_dead = true;
                path.call.kill(leg);
            }
            path.step();
            if path.client.is_done || path.client.was_reset {
                break;
            }
        }
        if path.client.was_reset {
            prop_assert!(path.was_alone && dies.is_some(), "with its only server");
        } else {
            prop_assert!(path.client.is_done, "{:?} {:?}", path.client, path.servers);
            prop_assert_eq!(path.client.got, CONTENT.len());
        }
        for (leg, server) in LegId::ALL.into_iter().zip(&path.servers) {
            prop_assert!(!server.has_ended || server.is_open, "{leg:?}");
        }
    }
}
