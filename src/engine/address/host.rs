//! The gateway as a host on one link: it answers for its own addresses and for no other, tells
//! everybody when it has come, and finds out where its neighbours are.
//!
//! Read first: RFC 826, RFC 5227 (announcements, defence), RFC 1027 (proxy ARP), RFC 4861 7.2.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use super::neighbours::{Ask, NeighbourState, Neighbours, Way};
use super::plan::Network;
use crate::engine::event::{Event, RejectReason};
use crate::engine::pack::{Pack, Reader, Writer};
use crate::engine::time::{Duration, Instant};
use crate::engine::{Link, Output};
use crate::wire::{Arp, Frame, L2, Mac, Nd, NdKind, Vlans, build, rewrite};

/// Announcements after a link has come, and how far apart (RFC 5227 1.1, shorter).
const ANNOUNCEMENTS: u8 = 3;
const ANNOUNCE_EVERY: Duration = Duration::from_millis(500);
/// An own address that somebody else claims is defended at most this often (RFC 5227 2.4 c).
const DEFEND_EVERY: Duration = Duration::from_secs(10);
/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// The gateway on one link.
#[derive(Debug)]
pub struct Host {
    link: Link,
    mac: Mac,
    /// Its addresses here.
    own: Vec<IpAddr>,
    /// Networks to which it is the way: whoever asks here is answered in their place.
    proxied: Vec<Network>,
    /// Networks whose hosts may be remembered unasked.
    near: Vec<Network>,
    neighbours: Neighbours,
    /// The link has been there: before, nobody is asked or told anything.
    has_come: bool,
    /// Announcements to come, and when.
    announce: Option<(u8, Instant)>,
    defended_at: Option<Instant>,
}

impl Host {
    /// A host that has not come yet.
    pub fn new(link: Link, own: Vec<IpAddr>, proxied: Vec<Network>, near: Vec<Network>) -> Self {
        // Until the driver has named another one: locally administered.
        let mac = Mac([0x02, 0x73, 0x76, 0x6d, 0, link.index() as u8]);
        let neighbours = Neighbours::default();
        Self {
            link,
            mac,
            own,
            proxied,
            near,
            neighbours,
            has_come: false,
            announce: None,
            defended_at: None,
        }
    }

    /// Its Ethernet address.
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Its neighbours, to be told whom it will need.
    pub const fn neighbours(&mut self) -> &mut Neighbours {
        &mut self.neighbours
    }

    /// Those that the configuration names.
    pub fn kept(&self) -> impl Iterator<Item = (Link, IpAddr, Option<NeighbourState>)> + '_ {
        self.neighbours.kept().map(|(ip, state)| (self.link, ip, state))
    }

    /// The link is there, now or again: everybody is told, and asked.
    pub fn come(&mut self, now: Instant, mac: Option<Mac>, out: &mut VecDeque<Output>) {
        self.mac = mac.unwrap_or(self.mac);
        self.has_come = true;
        self.announce = Some((ANNOUNCEMENTS, now));
        let mut asks = Vec::new();
        self.neighbours.restart(now, &mut asks);
        self.ask(&asks, out);
        self.on_time(now, out);
    }

    /// Sends `frame` to the neighbour `to`, as soon as it is known where that is.
    pub fn send(&mut self, now: Instant, to: IpAddr, frame: Frame, out: &mut VecDeque<Output>) {
        if !self.has_come {
            return self.refuse(RejectReason::NoNeighbour, out);
        }
        let mut asks = Vec::new();
        let way = self.neighbours.send(now, to, frame, &mut asks);
        self.ask(&asks, out);
        match way {
            Way::Open(mac, frame) => self.send_to(mac, frame, out),
            Way::Waits => {}
            Way::Closed => self.refuse(RejectReason::NoNeighbour, out),
        }
    }

    /// Sends `frame` to `mac`.
    pub fn send_to(&self, mac: Mac, mut frame: Frame, out: &mut VecDeque<Output>) {
        rewrite::set_macs(&mut frame, mac, self.mac);
        out.push_back(Output::Transmit(self.link, frame));
    }

    /// Asks whether `target` is there: itself, if it was heard within `fresh`; otherwise everybody.
    pub fn probe(&self, now: Instant, target: IpAddr, fresh: Duration, out: &mut VecDeque<Output>) {
        let known = self.neighbours.known(target).filter(|(_, at)| now.since(*at) < fresh);
        self.ask(&[Ask { target, at: known.map(|(mac, _)| mac) }], out);
    }

    /// ARP was heard. Why it is refused, if it is.
    pub fn on_arp(
        &mut self,
        now: Instant,
        arp: &Arp,
        out: &mut VecDeque<Output>,
    ) -> Option<RejectReason> {
        if self.own.contains(&arp.sender) {
            return self.defend(now, out);
        }
        let is_ours = self.answers_for(arp.target) && arp.sender != arp.target;
        let is_probe = arp.sender.is_unspecified();
        if !is_probe {
            self.learn(now, arp.sender, arp.sender_mac, is_ours, out);
        }
        if !arp.is_request {
            return None;
        }
        // Who asks whether an address is free hears only of one that is ours.
        if !is_ours || (is_probe && !self.own.contains(&arp.target)) {
            return Some(RejectReason::NotForUs);
        }
        let (IpAddr::V4(sender), IpAddr::V4(target)) = (arp.sender, arp.target) else {
            return None;
        };
        let l2 = self.l2(arp.sender_mac);
        out.push_back(Output::Transmit(self.link, build::arp_reply(&l2, target, sender)));
        None
    }

    /// Neighbour discovery was heard. Why it is refused, if it is.
    pub fn on_nd(
        &mut self,
        now: Instant,
        nd: &Nd,
        out: &mut VecDeque<Output>,
    ) -> Option<RejectReason> {
        match nd.kind {
            NdKind::Router | NdKind::Listener => None,
            NdKind::Advertise { target, .. } if self.own.contains(&target) => self.defend(now, out),
            NdKind::Advertise { target, mac } => {
                self.learn(now, target, mac.unwrap_or(nd.l2.src), false, out);
                None
            }
            NdKind::Solicit { .. } if self.own.contains(&nd.l3.src) => self.defend(now, out),
            NdKind::Solicit { target, mac } => {
                let is_probe = nd.l3.src.is_unspecified();
                let is_ours = self.own.contains(&target) || (!is_probe && self.answers_for(target));
                if !is_ours {
                    return Some(RejectReason::NotForUs);
                }
                let (IpAddr::V6(target), IpAddr::V6(asker)) = (target, nd.l3.src) else {
                    return None;
                };
                if is_probe {
                    let l2 = self.l2(ALL_NODES_MAC);
                    let answer = build::neighbour_advertise(&l2, target, ALL_NODES);
                    out.push_back(Output::Transmit(self.link, answer));
                    return None;
                }
                if let Some(mac) = mac {
                    self.learn(now, nd.l3.src, mac, true, out);
                }
                let l2 = self.l2(mac.unwrap_or(nd.l2.src));
                let answer = build::neighbour_advertise(&l2, target, asker);
                out.push_back(Output::Transmit(self.link, answer));
                None
            }
        }
    }

    /// When something is to be announced or asked again.
    pub fn next_timer(&self) -> Option<Instant> {
        let announce = self.announce.map(|(_, at)| at);
        announce.into_iter().chain(self.neighbours.next_timer()).min()
    }

    /// Announces, asks again, gives up.
    pub fn on_time(&mut self, now: Instant, out: &mut VecDeque<Output>) {
        if let Some((left, _)) = self.announce.filter(|(_, at)| *at <= now) {
            self.announce_all(out);
            self.announce = (left > 1).then_some((left - 1, now + ANNOUNCE_EVERY));
        }
        let mut asks = Vec::new();
        let lost = self.neighbours.on_time(now, &mut asks);
        self.ask(&asks, out);
        for _ in 0..lost {
            self.refuse(RejectReason::NoNeighbour, out);
        }
    }

    fn answers_for(&self, target: IpAddr) -> bool {
        let is_proxied = |network: &Network| network.contains(target);
        self.own.contains(&target)
            || (self.proxied.iter().any(is_proxied) && !self.near.iter().any(is_proxied))
    }

    /// Remembers where `ip` is: whoever was asked for, and whoever speaks to us from here.
    fn learn(
        &mut self,
        now: Instant,
        ip: IpAddr,
        mac: Mac,
        is_to_us: bool,
        out: &mut VecDeque<Output>,
    ) {
        let is_near = self.near.iter().any(|network| network.contains(ip));
        if mac != self.mac && (self.neighbours.has(ip) || (is_to_us && is_near)) {
            for frame in self.neighbours.heard(now, ip, mac) {
                self.send_to(mac, frame, out);
            }
        }
    }

    /// Somebody else has one of our addresses: everybody is told again whose it is.
    fn defend(&mut self, now: Instant, out: &mut VecDeque<Output>) -> Option<RejectReason> {
        if self.defended_at.is_none_or(|at| now.since(at) >= DEFEND_EVERY) {
            self.defended_at = Some(now);
            self.announce_all(out);
        }
        Some(RejectReason::WrongLink)
    }

    fn announce_all(&self, out: &mut VecDeque<Output>) {
        for own in &self.own {
            let frame = match *own {
                IpAddr::V4(own) => build::arp_request(&self.l2(Mac::BROADCAST), own, own),
                IpAddr::V6(own) => {
                    build::neighbour_advertise(&self.l2(ALL_NODES_MAC), own, ALL_NODES)
                }
            };
            out.push_back(Output::Transmit(self.link, frame));
        }
    }

    /// Asks in the name of the address of the same family.
    fn ask(&self, asks: &[Ask], out: &mut VecDeque<Output>) {
        for ask in asks.iter().filter(|_| self.has_come) {
            let own = self.own.iter().find(|own| own.is_ipv4() == ask.target.is_ipv4());
            let frame = match (own, ask.target) {
                (Some(IpAddr::V4(own)), IpAddr::V4(target)) => {
                    build::arp_request(&self.l2(ask.at.unwrap_or(Mac::BROADCAST)), *own, target)
                }
                (Some(IpAddr::V6(own)), IpAddr::V6(target)) => {
                    let everybody = build::solicited_node_mac(target);
                    build::neighbour_solicit(&self.l2(ask.at.unwrap_or(everybody)), *own, target)
                }
                _ => continue,
            };
            out.push_back(Output::Transmit(self.link, frame));
        }
    }

    const fn l2(&self, dst: Mac) -> L2 {
        L2 { dst, src: self.mac, vlans: Vlans { outer: None, inner: None } }
    }

    fn refuse(&self, reason: RejectReason, out: &mut VecDeque<Output>) {
        out.push_back(Output::Event(Event::Rejected { link: self.link, reason }));
    }
}

impl Host {
    /// What it has become, beside what the configuration says.
    pub fn pack_state(&self, w: &mut Writer) {
        let Self { link: _, mac, own: _, proxied: _, near: _, neighbours, has_come, .. } = self;
        (*mac, *has_come).pack(w);
        neighbours.pack(w);
        (self.announce, self.defended_at).pack(w);
    }

    /// Becomes that.
    pub fn unpack_state(&mut self, r: &mut Reader<'_>) {
        (self.mac, self.has_come) = Pack::unpack(r);
        self.neighbours = Pack::unpack(r);
        (self.announce, self.defended_at) = Pack::unpack(r);
    }
}
