//! A capture of the three links that no gateway has left, run through an engine: would it have
//! found the answers equal?
//!
//! Its interfaces are called `client`, `a` and `b`. What servers and clients said goes in at its
//! time; what a gateway sent then does not, and nobody answers what the engine sends. So nothing is
//! said of failovers, and of connections from before the capture nothing is known.

use std::io::Read;

use bytes::Bytes;

use super::file::link_of;
use super::recorder::is_noted;
use crate::config::Config;
use crate::engine::{
    Duration, Engine, EngineConfig, Event, FlowState, Input, Instant, LegId, Link, LinkCaps,
    Output, Signal,
};
use crate::io::pcap::{Direction, NotACapture, Reader};
use crate::observe::describe::describe;
use crate::wire::parse::captured::LinkType;
use crate::wire::{Frame, NdKind, Offload, Packet, parse};

/// How long the engine goes on behind the last packet.
const LINGER: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plain {
    /// Packets that went in.
    pub packets_in: usize,
    /// Of those of a gateway, of other interfaces, cut short or damaged.
    pub left_out: usize,
    /// Connections, and how many of them both servers took.
    pub connections: usize,
    /// See `connections`.
    pub compared: usize,
    /// How many answers differ.
    pub differences: usize,
    /// What happened, in sentences.
    pub events: Vec<String>,
}

/// Runs an engine of this configuration over a capture.
pub fn plain(source: impl Read + Send + 'static, config: &Config) -> Result<Plain, NotACapture> {
    let mut reader = Reader::new(source)?;
    let engine_config = EngineConfig { failover_auto: false, sync_scope: None, ..config.engine() };
    let begin = Instant::from_millis(1000);
    let names = engine_config.server_names.clone();
    let engine = Engine::new(engine_config.clone(), 1, begin);
    let mut run = Rerun { engine, now: begin, names, found: Plain::default() };
    for link in Link::ALL {
        run.give(Input::Signal(link, Signal::CarrierUp(LinkCaps::default())));
    }
    let mut first_ns = None;
    loop {
        let record = match reader.next() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(_) => {
                run.found.left_out += 1;
                continue;
            }
        };
        let link = record.interface_name.and_then(link_of);
        let is_whole = record.link == LinkType::ETHERNET && record.wire_len == record.data.len();
        let frame = Frame::from_wire(Bytes::copy_from_slice(record.data), Offload::default());
        let since = record.unix_ns.saturating_sub(*first_ns.get_or_insert(record.unix_ns));
        let is_in = |link| match record.direction {
            Some(direction) => direction == Direction::In,
            None => is_said_there(link, &frame, &engine_config),
        };
        match link.filter(|&link| is_whole && is_in(link)) {
            None => run.found.left_out += 1,
            Some(link) => {
                run.wait(begin + Duration::from_nanos(since));
                run.found.packets_in += 1;
                run.give(Input::Frame(link, frame));
            }
        }
    }
    run.wait(run.now + LINGER);
    Ok(run.found)
}

/// Whether a packet on a link comes from whoever is there, and not from the gateway.
fn is_said_there(link: Link, frame: &Frame, config: &EngineConfig) -> bool {
    let sender = match parse::parse(frame) {
        Ok(Packet::Arp(arp)) => Some(arp.sender),
        Ok(Packet::Nd(nd)) => match nd.kind {
            NdKind::Advertise { target, .. } => Some(target),
            _ => Some(nd.l3.src),
        },
        Ok(other) => other.l3().map(|l3| l3.src),
        Err(_) => None,
    };
    let is_service = |leg: LegId| {
        sender.is_some_and(|ip| config.addresses.contains(&config.service_address(leg, ip)))
    };
    match link {
        Link::Client => !is_service(LegId::A) && sender.is_some(),
        Link::Server(leg) => is_service(leg),
    }
}

struct Rerun {
    engine: Engine,
    now: Instant,
    names: [String; 2],
    found: Plain,
}

impl Rerun {
    fn wait(&mut self, until: Instant) {
        while let Some(at) = self.engine.poll_timeout().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.give(Input::Timeout);
        }
        self.now = self.now.max(until);
    }

    fn give(&mut self, input: Input) {
        self.engine.handle(self.now, input);
        while let Some(output) = self.engine.poll_output() {
            let Output::Event(event) = output else { continue };
            match &event {
                Event::FlowOpened { .. } => self.found.connections += 1,
                Event::FlowChanged { to: FlowState::Paired, from: FlowState::Opening, .. } => {
                    self.found.compared += 1;
                }
                Event::Diverged { .. } => self.found.differences += 1,
                _ => {}
            }
            if is_noted(&event) {
                self.found.events.push(describe(&event, &self.names));
            }
        }
    }
}
