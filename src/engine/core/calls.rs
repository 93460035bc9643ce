//! Connections that the servers begin: where the client has told them to, on a control connection
//! of FTP, both SYNs are one flow. What nobody has announced stays the primary's alone.

use std::net::SocketAddr;

use super::Engine;
use super::data::key_of;
use crate::engine::event::{Event, FlowKey, SoloReason};
use crate::engine::expected::{Begun, Call, Heard};
use crate::engine::flow::{Flow, Start};
use crate::engine::half_open::Source;
use crate::engine::headers::Headers;
use crate::engine::{LegId, Link, RejectReason};
use crate::wire::{Frame, Packet, Segment, TcpFlags, parse};

impl Engine {
    /// The servers are to call the client, as was agreed on the flow `control`.
    pub(super) fn on_agreed_call(&mut self, control: &FlowKey, call: &Call) {
        let outcome = self.expected.expect_call(self.now, control, call);
        self.event(Event::DataOffered { flow: *control, port: call.client.port(), outcome });
    }

    /// Takes a server's segment if it begins a connection that is expected. It is given back if
    /// not, or if its flow has begun.
    pub(super) fn hear_call(&mut self, leg: LegId, seg: &Segment, frame: Frame) -> Option<Frame> {
        let is_syn = seg.flags.has(TcpFlags::SYN) && !seg.flags.has(TcpFlags::ACK);
        let may_begin = is_syn
            && !seg.options.is_authenticated
            && !self.config.ports.contains(&seg.src_port)
            && self.is_service(seg.src().ip());
        if !may_begin {
            return Some(frame);
        }
        let key = key_of(seg, seg.dst(), seg.src());
        // A server calls when its program gets to it, like any answer.
        let hold = self.config.hold_hard;
        match self.expected.hear_call(self.now, hold, &key, leg, &frame) {
            Heard::Unannounced => return Some(frame),
            Heard::TooLate if self.table.find(&key).is_some() => return Some(frame),
            Heard::TooLate => self.reject(Link::Server(leg), RejectReason::OldGeneration),
            Heard::Waits => {}
            Heard::All => self.begin_call(&key),
        }
        None
    }

    /// Who has called alone for long enough goes on alone, if it could serve the flow.
    pub(super) fn time_calls(&mut self) {
        if self.control.resync.still_since().is_some() {
            let (now, hold) = (self.now, self.config.hold_hard);
            if self.expected.next_timer().is_some_and(|at| at <= now) {
                self.expected.put_off(hold); // nobody is late
            }
            return;
        }
        while let Some((key, leg)) = self.expected.next_due(self.now) {
            let is_primary = leg == self.control.roles().primary;
            if is_primary || self.control.fit()[leg.index()] {
                self.begin_call(&key);
            }
        }
    }

    /// Nobody else is waited for: the flow with the client of `key` begins.
    pub(super) fn begin_call(&mut self, key: &FlowKey) {
        let Some(Begun { control, syns: frames, late }) = self.expected.begin(key) else { return };
        let syns = frames.each_ref().map(|frame| match parse::parse(frame.as_ref()?) {
            Ok(Packet::Tcp(seg)) => Some(seg),
            _ => None,
        });
        let own = |leg: LegId| {
            let seg = syns[leg.index()].as_ref()?;
            let known = self.data_ports.of(&key_of(seg, seg.dst(), seg.src()));
            Some(known.map_or(seg.src_port, |ports| ports[leg.index()]))
        };
        let ports = LegId::ALL.map(own);
        let (legs, solo) = self.taking_part(ports.map(|port| port.is_some()), false);
        let primary = self.control.roles().primary;
        let primary = if legs.contains(&primary) { primary } else { primary.other() };
        let first = syns[primary.index()].as_ref().filter(|_| legs.contains(&primary));
        let (Some(first), Some(port)) = (first, ports[primary.index()]) else { return };
        let key = FlowKey { server: SocketAddr::new(first.l3.src, port), ..*key };
        if let Some(id) = self.table.find(&key) {
            // Its servers have begun anew.
            self.with_flow(id, |flow, cx| flow.supersede(cx));
        }
        let room = self.make_room(Source::of(key.client.ip()));
        let ports = ports.map(|own| own.unwrap_or(port));
        let id = match room {
            Ok(id) if self.data_ports.begin(&key, ports) => id,
            other => {
                let reason = other.err().unwrap_or(SoloReason::Budget);
                self.event(Event::Unprotected { flow: key, reason });
                for (leg, frame) in LegId::ALL.into_iter().zip(frames) {
                    let Some(frame) = frame else { continue };
                    self.bridge.to_client(self.view(), leg, frame, &mut self.outputs);
                }
                return;
            }
        };
        if let Some(late) = late {
            self.event(Event::HoldHard { flow: key, waiting_for: late });
        }
        let solo = solo.map(|why| if late.is_some() { SoloReason::Handshake } else { why });
        let headers = Headers::of(&first.l2.reversed(), &first.l3.reversed());
        let start = Start { primary, legs, solo, promise: None };
        let syns = syns.each_ref().map(Option::as_ref);
        let mut flow = Flow::called(&mut self.cx(), key, id, start, syns, headers);
        flow.agreed_on(control);
        self.table.insert(id, flow);
    }
}
