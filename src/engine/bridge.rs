//! Everything that is not a protected TCP flow: one table of policies (clone addressing).
//!
//! | class | client -> servers | server -> client |
//! |---|---|---|
//! | ARP, neighbour discovery | both | the primary's; the backup's queries are answered from here |
//! | MLD, router discovery | both | the primary's |
//! | ICMP echo | both | compared; the primary's, at the latest after 20 ms |
//! | ICMP errors | the legs of the flow, translated | the primary's |
//! | UDP | both (DHCP, NTP, QUIC: the primary) | the primary's, at once or compared |
//! | other TCP, other protocols | the primary | the primary's |
//!
//! Nothing of the backup reaches the client link (I10): a switch that saw its address there would
//! send the client's frames to the wrong server.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::config::UdpPolicy;
use super::event::{Event, RejectReason};
use super::neighbour::Neighbours;
use super::pack::fields;
use super::planted::{Bug, on};
use super::time::{Duration, Instant};
use super::twins::{Heard, Twins};
use super::{LegId, Link, Output};
use crate::wire::{Arp, Datagram, Frame, Icmp, IcmpKind, L2, Mac, Nd, NdKind, build};

const ECHOES_MAX: usize = 1024;
const ECHO_HOLD: Duration = Duration::from_millis(20);
/// A query in the service's name leaves at most this often for one address.
const QUERY_EVERY: Duration = Duration::from_millis(1000);
const QUERIES_MAX: usize = 1024;
/// UDP services of which only the primary is asked: DHCP, NTP, QUIC.
const PRIMARY_ONLY_PORTS: [u16; 4] = [67, 68, 123, 443];

type EchoKey = (IpAddr, u16, u16);

#[derive(Debug)]
struct Echo {
    frame: Frame,
    payload: Vec<u8>,
    from: LegId,
    until: Instant,
}

/// The state of the table's rows.
#[derive(Debug, Default)]
pub struct Bridge {
    /// Who is where.
    pub neighbours: Neighbours,
    echoes: BTreeMap<EchoKey, Echo>,
    queries: BTreeMap<IpAddr, Instant>,
    twins: Twins,
}

/// The roles at this moment, as far as this table needs them.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The time.
    pub now: Instant,
    /// The primary.
    pub primary: LegId,
    /// The backup takes part.
    pub has_backup: bool,
    /// What happens to UDP answers.
    pub udp: UdpPolicy,
}

fn send(out: &mut VecDeque<Output>, link: Link, frame: Frame) {
    out.push_back(Output::Transmit(link, frame));
}

fn reject(out: &mut VecDeque<Output>, link: Link, reason: RejectReason) {
    out.push_back(Output::Event(Event::Rejected { link, reason }));
}

impl Bridge {
    /// A client's frame to both servers.
    pub fn to_both(&self, view: View, frame: Frame, out: &mut VecDeque<Output>) {
        if view.has_backup {
            send(out, Link::Server(view.primary.other()), frame.clone());
        }
        send(out, Link::Server(view.primary), frame);
    }

    /// A client's frame to the primary alone.
    pub fn to_primary(&self, view: View, frame: Frame, out: &mut VecDeque<Output>) {
        send(out, Link::Server(view.primary), frame);
    }

    /// A server's frame of which only the primary's is shown.
    pub fn to_client(&self, view: View, leg: LegId, frame: Frame, out: &mut VecDeque<Output>) {
        match leg == view.primary {
            true => send(out, Link::Client, frame),
            false => reject(out, Link::Server(leg), RejectReason::BackupOnly),
        }
    }

    /// A client's datagram.
    pub fn udp_to_servers(
        &self,
        view: View,
        udp: &Datagram,
        frame: Frame,
        out: &mut VecDeque<Output>,
    ) {
        match PRIMARY_ONLY_PORTS.contains(&udp.dst_port) {
            true => self.to_primary(view, frame, out),
            false => self.to_both(view, frame, out),
        }
    }

    /// A server's datagram: the primary's is shown, at once or when the backup has said the same.
    pub fn on_server_udp(
        &mut self,
        view: View,
        leg: LegId,
        udp: &Datagram,
        frame: Frame,
        out: &mut VecDeque<Output>,
    ) {
        if !view.has_backup || PRIMARY_ONLY_PORTS.contains(&udp.src_port) {
            return self.to_client(view, leg, frame, out);
        }
        let ends =
            (SocketAddr::new(udp.l3.src, udp.src_port), SocketAddr::new(udp.l3.dst, udp.dst_port));
        let payload = &frame.body()[..udp.payload_len.min(frame.body().len())];
        let is_held = view.udp == UdpPolicy::Strict && leg == view.primary;
        let held = is_held.then(|| frame.clone());
        match self.twins.heard(view.now, view.udp, leg, ends, payload, held) {
            Heard::Waits if is_held => return,
            Heard::Waits | Heard::Full => {}
            Heard::Met(first) => {
                out.push_back(Output::Event(Event::DatagramJudged { only: None }));
                out.extend(first.map(|first| Output::Transmit(Link::Client, first)));
            }
        }
        self.to_client(view, leg, frame, out);
    }

    /// ARP on a server link.
    pub fn on_server_arp(
        &mut self,
        view: View,
        leg: LegId,
        arp: &Arp,
        frame: Frame,
        out: &mut VecDeque<Output>,
    ) {
        if leg == view.primary || on(Bug::BackupArpShown) {
            return send(out, Link::Client, frame);
        }
        reject(out, Link::Server(leg), RejectReason::BackupOnly);
        let is_query = arp.is_request && !arp.sender.is_unspecified() && arp.sender != arp.target;
        let (IpAddr::V4(sender), IpAddr::V4(target)) = (arp.sender, arp.target) else { return };
        if !is_query {
            return;
        }
        match self.neighbours.client(arp.target) {
            Some(mac) => {
                let l2 = L2 { dst: arp.sender_mac, src: mac, vlans: arp.l2.vlans };
                send(out, Link::Server(leg), build::arp_reply(&l2, target, sender));
            }
            None if self.may_query(view.now, arp.target) => {
                // In the service's own name: what the primary would ask (same MAC, same address).
                send(out, Link::Client, frame);
            }
            None => {}
        }
    }

    /// Neighbour discovery on a server link.
    pub fn on_server_nd(
        &mut self,
        view: View,
        leg: LegId,
        nd: &Nd,
        frame: Frame,
        out: &mut VecDeque<Output>,
    ) {
        if leg == view.primary {
            return send(out, Link::Client, frame);
        }
        reject(out, Link::Server(leg), RejectReason::BackupOnly);
        let NdKind::Solicit { target, .. } = nd.kind else { return };
        let (IpAddr::V6(asker), IpAddr::V6(wanted)) = (nd.l3.src, target) else { return };
        if asker.is_unspecified() {
            return; // a duplicate-address probe is never answered, never shown
        }
        match self.neighbours.client(target) {
            Some(mac) => {
                let l2 = L2 { dst: nd.l2.src, src: mac, vlans: nd.l2.vlans };
                send(out, Link::Server(leg), build::neighbour_advertise(&l2, wanted, asker));
            }
            None if self.may_query(view.now, target) => send(out, Link::Client, frame),
            None => {}
        }
    }

    fn may_query(&mut self, now: Instant, target: IpAddr) -> bool {
        if self.queries.get(&target).is_some_and(|&at| now.since(at) < QUERY_EVERY) {
            return false;
        }
        if self.queries.len() >= QUERIES_MAX {
            self.queries.retain(|_, at| now.since(*at) < QUERY_EVERY);
            if self.queries.len() >= QUERIES_MAX {
                return false;
            }
        }
        self.queries.insert(target, now);
        true
    }

    /// An echo reply of a server: shown once, the primary's, when both agree or time is up.
    pub fn on_server_echo(
        &mut self,
        view: View,
        leg: LegId,
        icmp: &Icmp,
        frame: Frame,
        out: &mut VecDeque<Output>,
    ) {
        let IcmpKind::EchoReply { id, seq } = icmp.kind else { return };
        if !view.has_backup {
            return self.to_client(view, leg, frame, out);
        }
        let key = (icmp.l3.dst, id, seq);
        let all = frame.to_vec();
        let payload = all.get(usize::from(icmp.l4_at) + 4..).unwrap_or(&[]).to_vec();
        if let Some(first) = self.echoes.remove(&key) {
            if first.from == leg {
                self.hold_echo(view, leg, key, frame, payload);
                return;
            }
            if payload != first.payload {
                reject(out, Link::Server(view.primary.other()), RejectReason::BackupOnly);
            }
            let ours = if leg == view.primary { frame } else { first.frame };
            return send(out, Link::Client, ours);
        }
        if self.echoes.len() >= ECHOES_MAX {
            return self.to_client(view, leg, frame, out);
        }
        self.hold_echo(view, leg, key, frame, payload);
    }

    fn hold_echo(&mut self, view: View, from: LegId, key: EchoKey, frame: Frame, payload: Vec<u8>) {
        let until = view.now + ECHO_HOLD;
        self.echoes.insert(key, Echo { frame, payload, from, until });
    }

    /// When the next echo reply or datagram has waited long enough.
    pub fn next_timer(&self) -> Option<Instant> {
        let echo = self.echoes.values().map(|e| e.until).min();
        echo.into_iter().chain(self.twins.next_timer()).min()
    }

    /// Shows the primary's echo replies and datagrams whose twin did not come.
    pub fn on_time(&mut self, view: View, out: &mut VecDeque<Output>) {
        for (leg, frame) in self.twins.on_time(view.now, out) {
            self.to_client(view, leg, frame, out);
        }
        let due: Vec<EchoKey> =
            self.echoes.iter().filter(|(_, e)| e.until <= view.now).map(|(k, _)| *k).collect();
        for key in due {
            if let Some(echo) = self.echoes.remove(&key) {
                self.to_client(view, echo.from, echo.frame, out);
            }
        }
    }
}

/// The gateway's own Ethernet address for probes: locally administered, from the seed.
pub fn probe_mac(seed: u64) -> Mac {
    let [a, b, c, d, e, ..] = seed.to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

/// Asks a server for `target`, as a host without an address would (RFC 5227 2.1).
pub fn neighbour_probe(own: Mac, target: IpAddr) -> Frame {
    let l2 = |dst| L2 { dst, src: own, vlans: crate::wire::Vlans::default() };
    match target {
        IpAddr::V4(target) => {
            build::arp_request(&l2(Mac::BROADCAST), Ipv4Addr::UNSPECIFIED, target)
        }
        IpAddr::V6(target) => {
            let src = link_local(own);
            build::neighbour_solicit(&l2(build::solicited_node_mac(target)), src, target)
        }
    }
}

/// The link-local address of `mac` (RFC 4291 appendix A).
fn link_local(mac: Mac) -> std::net::Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |x: u8, y: u8| u16::from_be_bytes([x, y]);
    std::net::Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

fields!(Echo { frame, payload, from, until });
fields!(Bridge { neighbours, echoes, queries, twins });
