//! Data connections of FTP: expected where the servers have said that they listen, protected like
//! any other flow, each server at its own port; and the one place where outputs leave.

use std::net::SocketAddr;

use super::Engine;
use crate::engine::event::{Event, FlowKey};
use crate::engine::expected::Offer;
use crate::engine::half_open::Source;
use crate::engine::{LegId, Output, ServiceId};
use crate::wire::{Frame, Segment, TcpFlags};

impl Engine {
    /// Brings the outputs to the links: each leg's ports, then its addresses.
    pub(super) fn leave(&mut self) {
        let Some(translator) = &mut self.translator else {
            return self.outputs.iter_mut().for_each(|output| self.data_ports.outbound(output));
        };
        for mut output in self.outputs.drain(..) {
            let aliases = |flow| LegId::ALL.map(|leg| self.data_ports.alias(leg, flow));
            if let Output::Event(Event::FlowClosed { flow, .. }) = &output {
                aliases(flow).iter().flatten().for_each(|alias| translator.end_alias(alias));
            }
            self.data_ports.outbound(&mut output);
            let opened = match &output {
                Output::Event(Event::FlowOpened { flow }) => Some(*flow),
                _ => None,
            };
            translator.outbound(self.now, output);
            if let Some(flow) = opened {
                for alias in LegId::ALL.iter().filter_map(|leg| self.data_ports.alias(*leg, &flow))
                {
                    translator.begin_alias(self.now, &flow, &alias);
                }
            }
        }
    }

    /// The flow that a segment belongs to, if it is to a protected port or of a data connection.
    pub(super) fn flow_key(
        &self,
        seg: &Segment,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Option<FlowKey> {
        let key = key_of(seg, client, server);
        let is_port = self.config.ports.contains(&server.port());
        let is_ours = self.is_service(server.ip()) && (is_port || self.table.find(&key).is_some());
        is_ours.then_some(key)
    }

    /// The servers have said, on the flow `control`, where they listen.
    pub(super) fn on_offer(&mut self, control: &FlowKey, offer: &Offer) {
        let outcome = self.expected.expect(self.now, &self.config, control, offer);
        self.event(Event::DataOffered { flow: *control, port: offer.shown, outcome });
    }

    /// A client's segment to a port that is not protected: a data connection begins, if one is
    /// expected.
    pub(super) fn on_unprotected(&mut self, seg: &Segment, frame: Frame) {
        let is_syn = seg.flags.has(TcpFlags::SYN) && !seg.flags.has(TcpFlags::ACK);
        let key = key_of(seg, seg.src(), seg.dst());
        let primary = self.control.roles().primary;
        let may_begin = is_syn && !seg.options.is_authenticated;
        let agreed = may_begin.then(|| self.expected.take(self.now, &key, primary)).flatten();
        match agreed {
            Some((ports, control)) => self.open_data(key, ports, control, seg, frame),
            None => self.bridge.to_primary(self.view(), frame, &mut self.outputs),
        }
    }

    fn open_data(
        &mut self,
        key: FlowKey,
        ports: [Option<u16>; 2],
        control: FlowKey,
        seg: &Segment,
        frame: Frame,
    ) {
        let listens = ports.map(|port| port.is_some());
        let ports = ports.map(|port| port.unwrap_or(key.server.port()));
        let id = match self.make_room(Source::of(key.client.ip())) {
            Ok(id) if self.data_ports.begin(&key, ports) => id,
            Ok(_) => return self.bridge.to_primary(self.view(), frame, &mut self.outputs),
            Err(reason) => {
                self.event(Event::Unprotected { flow: key, reason });
                return self.bridge.to_primary(self.view(), frame, &mut self.outputs);
            }
        };
        self.begin_flow(key, id, seg, None, listens);
        self.with_flow(id, |flow, _| flow.agreed_on(control));
    }

    /// On `data` only `leg` has come to the end. A process that was killed would have ended on
    /// `control` as well.
    pub(super) fn on_end_in_doubt(&mut self, data: &FlowKey, control: &FlowKey, leg: LegId) {
        let control = self.table.find(control);
        let lives = control.and_then(|id| self.table.peek(id, |flow| flow.goes_on(leg)));
        let lives = lives == Some(true);
        if let Some(id) = self.table.find(data).filter(|_| lives) {
            self.with_flow(id, |flow, cx| flow.believe_end(cx, leg));
        }
    }
}

/// The flow that a segment would be of, between these ends.
pub(super) fn key_of(seg: &Segment, client: SocketAddr, server: SocketAddr) -> FlowKey {
    let vlan = FlowKey::vlan_ids(seg.l2.vlans);
    FlowKey { service: ServiceId::default(), vlan, client, server }
}
