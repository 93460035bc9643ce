//! vip addressing: the gateway has the service's addresses, each server its own.
//!
//! | | on the client link | on a server's link |
//! |---|---|---|
//! | the service | its address and port | the server's own, each server another |
//! | a client | its own | its own, or (`source = "gateway"`) the gateway's and a port |
//!
//! What comes in is turned into what it would be in clone addressing, what goes out is turned
//! back: on the client link only hops and Ethernet addresses change, on a server's link addresses
//! and ports too, those within ICMP errors included. Frames are edited, never built anew, and
//! checksums follow every edit (I13). The gateway is a router: hops are counted, multicast and
//! broadcast end here, and so does every protocol whose ends cannot be rewritten.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::NeighbourStatus;
use super::host::Host;
use super::plan::{Source, VipPlan};
use super::sources::Sources;
use crate::engine::event::{Event, FlowKey, RejectReason};
use crate::engine::flow::record;
use crate::engine::pack::{Pack, Reader, Writer};
use crate::engine::planted::{Bug, on};
use crate::engine::probes::{self, PROBE_PORTS};
use crate::engine::time::{Duration, Instant};
use crate::engine::{FLOW_CONSTANTS_LEN, LegId, Link, Output, Record};
use crate::wire::{
    Addressed, Ends, Frame, IcmpKind, L2, Mac, NdKind, Packet, Talk, TcpFlags, Vlans,
};

/// How the engine knows the two sides; no frame on a link has these.
const CLIENTS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVERS: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// Headers of what a client's side says, within the engine.
pub const FROM_CLIENT: L2 =
    L2 { dst: SERVERS, src: CLIENTS, vlans: Vlans { outer: None, inner: None } };
const FROM_SERVER: L2 = FROM_CLIENT.reversed();
/// A server that was heard within this time is asked alone whether it is there.
const PROBE_ALONE: Duration = Duration::from_millis(1000);

/// What became of a packet that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// It is one of the engine's now, on the link that it came on.
    Deliver,
    /// A server has answered the question whether it is there.
    Answered,
    /// It was the gateway's own affair.
    Done,
    /// It is refused.
    Refused(RejectReason),
}

/// Stands between the links and the engine.
#[derive(Debug)]
pub struct Translator {
    plan: VipPlan,
    hosts: [Host; 3],
    sources: Option<Sources>,
    out: VecDeque<Output>,
}

impl Translator {
    /// A gateway that has not come to any link yet; `seed` must not be guessed from outside.
    pub fn new(plan: &VipPlan, seed: u64) -> Self {
        let service = plan.served.iter().map(|served| served.service).collect();
        let client = Host::new(Link::Client, service, Vec::new(), plan.client.clone());
        // Who routes back through the gateway may ask for a client itself.
        let proxied = match plan.source {
            Source::Client => plan.client.clone(),
            Source::Gateway => Vec::new(),
        };
        let server = |leg: LegId| {
            let own = &plan.own[leg.index()];
            let addresses = own.iter().map(|network| network.address()).collect();
            Host::new(Link::Server(leg), addresses, proxied.clone(), own.clone())
        };
        let mut hosts = [client, server(LegId::A), server(LegId::B)];
        for hop in &plan.next_hops {
            hosts[0].neighbours().keep(*hop);
        }
        for (leg, served) in
            LegId::ALL.into_iter().flat_map(|l| plan.served.iter().map(move |s| (l, s)))
        {
            hosts[1 + leg.index()].neighbours().keep(served.servers[leg.index()]);
        }
        let sources = (plan.source == Source::Gateway).then(|| Sources::new(seed));
        Self { plan: plan.clone(), hosts, sources, out: VecDeque::new() }
    }

    /// The next output, as it goes to the links.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Self::on_time`] is due.
    pub fn next_timer(&self) -> Option<Instant> {
        self.hosts.iter().filter_map(Host::next_timer).min()
    }

    /// Announces, asks neighbours again, gives them up.
    pub fn on_time(&mut self, now: Instant) {
        for host in &mut self.hosts {
            host.on_time(now, &mut self.out);
        }
    }

    /// A link is there, now or again, with this Ethernet address for the gateway.
    pub fn come(&mut self, now: Instant, link: Link, mac: Option<Mac>) {
        self.hosts[link.index()].come(now, mac, &mut self.out);
    }

    /// Asks `leg`'s server whether it is there.
    pub fn probe(&mut self, now: Instant, leg: LegId) {
        if let Some(served) = self.plan.served.first() {
            let host = &self.hosts[Link::Server(leg).index()];
            host.probe(now, served.servers[leg.index()], PROBE_ALONE, &mut self.out);
        }
    }

    /// A record of an earlier process: the flow keeps its port.
    pub fn restore(&mut self, constants: &[u8; FLOW_CONSTANTS_LEN]) {
        let known = record::ends(constants).zip(record::gateway_port(constants));
        if let (Some(sources), Some(((client, server), port))) = (&mut self.sources, known)
            && !on(Bug::PortForgotten)
        {
            sources.restore(client, server, port);
            if let Some((_, data_port)) = record::data_port(constants) {
                sources.restore(client, SocketAddr::new(server.ip(), data_port), port);
            }
        }
    }

    /// `flow` has begun, which a server has as `alias`, at another port.
    pub fn begin_alias(&mut self, now: Instant, flow: &FlowKey, alias: &FlowKey) {
        if let Some(sources) = &mut self.sources {
            sources.open_beside(now, flow, alias);
        }
    }

    /// It is gone.
    pub fn end_alias(&mut self, alias: &FlowKey) {
        if let Some(sources) = &mut self.sources {
            sources.close(alias);
        }
    }

    /// The neighbours that the configuration names.
    pub fn neighbours(&self) -> Vec<NeighbourStatus> {
        let kept = self.hosts.iter().flat_map(Host::kept);
        kept.map(|(link, address, state)| NeighbourStatus { link, address, state }).collect()
    }

    // ---- in --------------------------------------------------------------------------------

    /// Makes of a packet that came in on `link`, and its frame, what they are to the engine.
    pub fn inbound(
        &mut self,
        now: Instant,
        link: Link,
        packet: &mut Packet,
        frame: &mut Frame,
    ) -> Inbound {
        let l2 = packet.l2();
        let host = &mut self.hosts[link.index()];
        if l2.src == host.mac() {
            return Inbound::Refused(RejectReason::WrongLink);
        }
        let is_ours = l2.dst == host.mac() && l2.vlans == Vlans::default();
        match packet {
            Packet::Arp(arp) if l2.vlans == Vlans::default() => {
                let refused = host.on_arp(now, arp, &mut self.out);
                self.judge_neighbour(link, !arp.is_request, arp.sender, refused)
            }
            Packet::Nd(nd) if l2.vlans == Vlans::default() => {
                let refused = host.on_nd(now, nd, &mut self.out);
                match nd.kind {
                    NdKind::Advertise { target, .. } => {
                        self.judge_neighbour(link, true, target, refused)
                    }
                    _ => self.judge_neighbour(link, false, nd.l3.src, refused),
                }
            }
            Packet::Tcp(_) | Packet::Udp(_) | Packet::Icmp(_) if is_ours => {
                let Some(seen) = Addressed::of(frame) else {
                    return Inbound::Refused(RejectReason::NotServed);
                };
                let turned = match link {
                    Link::Client => self.client_said(now, packet, &seen),
                    Link::Server(leg) => self.server_said(now, leg, packet, &seen, frame),
                };
                let (l2, to, quoted) = match turned {
                    Ok(turned) => turned,
                    Err(other) => return other,
                };
                let hops = seen.hops(frame);
                if hops <= 1 {
                    return Inbound::Refused(RejectReason::HopsUsedUp);
                }
                seen.readdress(frame, to, quoted);
                seen.set_hops(frame, hops - 1);
                crate::wire::rewrite::set_macs(frame, l2.dst, l2.src);
                packet.readdress(l2, to, quoted, hops - 1);
                Inbound::Deliver
            }
            Packet::Other(_) if is_ours => Inbound::Refused(RejectReason::NotServed),
            _ => Inbound::Refused(RejectReason::NotForUs),
        }
    }

    fn judge_neighbour(
        &self,
        link: Link,
        is_answer: bool,
        sender: IpAddr,
        refused: Option<RejectReason>,
    ) -> Inbound {
        let is_server = match link {
            Link::Client => false,
            Link::Server(leg) => self.plan.service_of(leg, sender).is_some(),
        };
        match refused {
            None if is_answer && is_server => Inbound::Answered,
            None => Inbound::Done,
            Some(reason) => Inbound::Refused(reason),
        }
    }

    /// A client's packet is the engine's already, but for who may say it, and to whom.
    fn client_said(&mut self, now: Instant, packet: &Packet, seen: &Addressed) -> Turned {
        let Ends { src, dst } = seen.ends;
        // Behind the gateway such a client would be answered past it.
        let is_behind = self.sources.is_none() && self.plan.is_near_server(src.ip());
        if self.plan.is_inside(src.ip()) || is_behind {
            return refused(RejectReason::WrongLink);
        }
        if !self.plan.is_service(dst.ip()) {
            return refused(RejectReason::NotForUs);
        }
        match (seen.talk, seen.quoted) {
            (Some(Talk::Tcp), _) if self.plan.server_port(dst.port()).is_none() => {
                return refused(RejectReason::NotServed);
            }
            (Some(_), _) => {}
            (None, Some((_, quoted))) if quoted.src.ip() == dst.ip() => {}
            (None, _) if is_error(packet) => return refused(RejectReason::IcmpQuote),
            (None, _) => return refused(RejectReason::NotServed),
        }
        if let (Packet::Tcp(seg), Some(sources)) = (packet, &mut self.sources) {
            let is_syn = seg.flags.has(TcpFlags::SYN) && !seg.flags.has(TcpFlags::ACK);
            let is_new = is_syn && sources.known(Talk::Tcp, src, dst).is_none();
            if is_new && sources.is_full(now, Talk::Tcp, dst) {
                return refused(RejectReason::NoPort);
            }
        }
        Ok((FROM_CLIENT, seen.ends, seen.quoted.map(|(_, ends)| ends)))
    }

    /// A packet of a server's link: from the server itself, or an error about what it was sent.
    fn server_said(
        &mut self,
        now: Instant,
        leg: LegId,
        packet: &Packet,
        seen: &Addressed,
        frame: &Frame,
    ) -> Turned {
        let Ends { src, dst } = seen.ends;
        let service = self.plan.service_of(leg, src.ip());
        match (seen.talk, seen.quoted, service) {
            (Some(talk), _, Some(service)) => {
                let Some(port) = self.service_port(talk, src.port()) else {
                    return refused(RejectReason::NotServed);
                };
                let src = SocketAddr::new(service, port);
                let dst = match self.plan.own_of(leg, dst.ip()) == Some(dst.ip()) {
                    true => self.client_of(now, talk, src, dst),
                    false => self.is_client_side(dst.ip()).then_some(dst),
                };
                match dst {
                    Some(dst) => Ok((FROM_SERVER, Ends { src, dst }, None)),
                    None => Err(self.at_home(leg, packet, seen, frame)),
                }
            }
            (None, Some((talk, quoted)), _) => {
                let told = self.told_by_server(now, leg, talk, quoted);
                let Some(told) = told.filter(|_| quoted.src.ip() == dst.ip()) else {
                    return refused(RejectReason::IcmpQuote);
                };
                let src = SocketAddr::new(service.unwrap_or(src.ip()), 0);
                let dst = SocketAddr::new(told.src.ip(), 0);
                Ok((FROM_SERVER, Ends { src, dst }, Some(told)))
            }
            (None, None, _) if is_error(packet) => refused(RejectReason::IcmpQuote),
            (None, None, Some(_)) => refused(RejectReason::NotServed),
            _ => refused(RejectReason::NotForUs),
        }
    }

    /// The ends that an error of a server's link is about, as the client has them.
    fn told_by_server(
        &mut self,
        now: Instant,
        leg: LegId,
        talk: Talk,
        quoted: Ends,
    ) -> Option<Ends> {
        let service = self.plan.service_of(leg, quoted.dst.ip())?;
        let dst = SocketAddr::new(service, self.service_port(talk, quoted.dst.port())?);
        let src = match self.plan.own_of(leg, quoted.src.ip()) == Some(quoted.src.ip()) {
            true => self.client_of(now, talk, dst, quoted.src)?,
            false => quoted.src,
        };
        Some(Ends { src, dst })
    }

    /// Whom the server means that speaks to the gateway's own address: the client with that port,
    /// or one of the gateway's probes.
    fn client_of(
        &mut self,
        now: Instant,
        talk: Talk,
        service: SocketAddr,
        own: SocketAddr,
    ) -> Option<SocketAddr> {
        let sources = self.sources.as_mut();
        let client = sources.and_then(|sources| {
            let of_echo = SocketAddr::new(service.ip(), 0);
            let service = if talk == Talk::Echo { of_echo } else { service };
            sources.client(now, talk, service, own.port())
        });
        let is_probe = talk == Talk::Tcp && PROBE_PORTS.contains(&own.port());
        client.or_else(|| is_probe.then_some(own))
    }

    /// Whether a server's own conversation with `ip` leads through the gateway.
    fn is_client_side(&self, ip: IpAddr) -> bool {
        self.sources.is_none()
            && !ip.is_multicast()
            && !self.plan.is_inside(ip)
            && !self.plan.is_near_server(ip)
    }

    /// What a server says to nobody but the gateway: as a host that has no such connection.
    fn at_home(&mut self, leg: LegId, packet: &Packet, seen: &Addressed, frame: &Frame) -> Inbound {
        let own = self.plan.own_of(leg, seen.ends.dst.ip());
        if own != Some(seen.ends.dst.ip()) {
            return Inbound::Refused(RejectReason::NotForUs);
        }
        let host = &self.hosts[Link::Server(leg).index()];
        match packet {
            Packet::Tcp(seg) => {
                if let Some(reset) = probes::reset_of(seg) {
                    host.send_to(seg.l2.src, reset, &mut self.out);
                }
                Inbound::Refused(RejectReason::OldGeneration)
            }
            Packet::Icmp(icmp) => {
                let mut answer = frame.clone();
                match seen.answer_echo(&mut answer) {
                    true => host.send_to(icmp.l2.src, answer, &mut self.out),
                    false => return Inbound::Refused(RejectReason::OldGeneration),
                }
                Inbound::Done
            }
            _ => Inbound::Refused(RejectReason::OldGeneration),
        }
    }

    fn service_port(&self, talk: Talk, port: u16) -> Option<u16> {
        match talk {
            Talk::Tcp => self.plan.service_port(port),
            Talk::Udp | Talk::Echo => Some(port),
        }
    }

    fn server_port(&self, talk: Talk, port: u16) -> Option<u16> {
        match talk {
            Talk::Tcp => self.plan.server_port(port),
            Talk::Udp | Talk::Echo => Some(port),
        }
    }

    // ---- out -------------------------------------------------------------------------------

    /// Takes an output of the engine, in order.
    pub fn outbound(&mut self, now: Instant, output: Output) {
        match output {
            Output::Transmit(Link::Client, frame) => self.send_client(now, frame),
            Output::Transmit(Link::Server(leg), frame) => self.send_server(now, leg, frame),
            Output::Event(event) => {
                if let Some(sources) = &mut self.sources {
                    match &event {
                        Event::FlowOpened { flow } => sources.open(now, flow),
                        Event::FlowClosed { flow, .. } => sources.close(flow),
                        _ => {}
                    }
                }
                self.out.push_back(Output::Event(event));
            }
            Output::Persist(Record::Flow { slot, mut constants }) => {
                if let (Some(sources), Some((client, service))) =
                    (&self.sources, record::ends(&constants))
                {
                    let port = sources.known(Talk::Tcp, client, service);
                    record::set_gateway_port(&mut constants, port);
                }
                self.out.push_back(Output::Persist(Record::Flow { slot, constants }));
            }
            other => self.out.push_back(other),
        }
    }

    fn send_client(&mut self, now: Instant, frame: Frame) {
        let to = Addressed::of(&frame).map(|seen| seen.ends.dst.ip());
        // Nothing that was meant for the gateway itself goes on.
        let Some(to) = to.filter(|ip| !self.plan.is_inside(*ip)) else {
            return self.refuse(Link::Client, RejectReason::NotForUs);
        };
        match self.plan.next_hop(to) {
            Some(hop) => self.hosts[0].send(now, hop, frame, &mut self.out),
            None => self.refuse(Link::Client, RejectReason::NoNeighbour),
        }
    }

    fn send_server(&mut self, now: Instant, leg: LegId, mut frame: Frame) {
        let link = Link::Server(leg);
        let Some(seen) = Addressed::of(&frame) else {
            return self.refuse(link, RejectReason::NotServed);
        };
        let turned = match (seen.talk, seen.quoted) {
            (Some(talk), _) => self.server_ends(now, leg, talk, seen.ends).map(|to| (to, None)),
            (None, Some((talk, quoted))) => self.server_error(leg, seen.ends, talk, quoted),
            (None, None) => Err(RejectReason::NotServed),
        };
        match turned {
            Ok((to, quoted)) => {
                seen.readdress(&mut frame, to, quoted);
                let host = &mut self.hosts[link.index()];
                host.send(now, to.dst.ip(), frame, &mut self.out);
            }
            Err(reason) => self.refuse(link, reason),
        }
    }

    /// The ends on `leg`'s link of what is said to the service.
    fn server_ends(
        &mut self,
        now: Instant,
        leg: LegId,
        talk: Talk,
        ends: Ends,
    ) -> Result<Ends, RejectReason> {
        let server = self.plan.server_of(leg, ends.dst.ip());
        let port = self.server_port(talk, ends.dst.port());
        let (Some(server), Some(port)) = (server, port) else {
            return Err(RejectReason::NotServed);
        };
        let dst = SocketAddr::new(server, port);
        let own = self.plan.own_of(leg, server);
        let src = match (&mut self.sources, own) {
            // One of the gateway's own.
            (_, Some(own)) if own == ends.src.ip() => ends.src,
            (None, _) => ends.src,
            (Some(sources), Some(own)) => {
                let port = match is_answer(talk, ends) {
                    // Of an echo that the server has sent: nobody but it knows the number.
                    true => return Err(RejectReason::NotServed),
                    false => sources.port(now, talk, ends.src, ends.dst),
                };
                SocketAddr::new(own, port.ok_or(RejectReason::NoPort)?)
            }
            (Some(_), None) => return Err(RejectReason::NotServed),
        };
        Ok(Ends { src, dst })
    }

    /// The same of an error, and of what it quotes: something that `leg`'s server has said.
    fn server_error(
        &self,
        leg: LegId,
        ends: Ends,
        talk: Talk,
        quoted: Ends,
    ) -> Result<(Ends, Option<Ends>), RejectReason> {
        let server = self.plan.server_of(leg, quoted.src.ip());
        let port = self.server_port(talk, quoted.src.port());
        let (Some(server), Some(port)) = (server, port) else {
            return Err(RejectReason::IcmpQuote);
        };
        let told_src = SocketAddr::new(server, port);
        let (src, told_dst) = match &self.sources {
            None => (ends.src.ip(), quoted.dst),
            Some(sources) => {
                let own = self.plan.own_of(leg, server).ok_or(RejectReason::NotServed)?;
                let port = sources.known(talk, quoted.dst, quoted.src);
                (own, SocketAddr::new(own, port.ok_or(RejectReason::IcmpQuote)?))
            }
        };
        let to = Ends { src: SocketAddr::new(src, 0), dst: SocketAddr::new(server, 0) };
        let told = Ends { src: told_src, dst: told_dst };
        Ok((to, Some(if on(Bug::QuoteNotRenamed) { quoted } else { told })))
    }

    fn refuse(&mut self, link: Link, reason: RejectReason) {
        self.out.push_back(Output::Event(Event::Rejected { link, reason }));
    }
}

/// Headers and ends of a packet as the engine knows them, with those that it quotes.
type Turned = Result<(L2, Ends, Option<Ends>), Inbound>;

fn refused(reason: RejectReason) -> Turned {
    Err(Inbound::Refused(reason))
}

fn is_error(packet: &Packet) -> bool {
    let Packet::Icmp(icmp) = packet else { return false };
    matches!(icmp.kind, IcmpKind::Error { .. } | IcmpKind::TooBig { .. })
}

/// Whether it is the answer to an echo: its number stands at the end that asked.
fn is_answer(talk: Talk, ends: Ends) -> bool {
    talk == Talk::Echo && ends.src.port() == 0 && ends.dst.port() != 0
}

impl Translator {
    /// What it has become, beside what the configuration says.
    pub fn pack_state(&self, w: &mut Writer) {
        self.hosts.iter().for_each(|host| host.pack_state(w));
        self.sources.pack(w);
    }

    /// Becomes that.
    pub fn unpack_state(&mut self, r: &mut Reader<'_>) {
        self.hosts.iter_mut().for_each(|host| host.unpack_state(r));
        self.sources = Pack::unpack(r);
    }
}
