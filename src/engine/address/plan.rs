//! The networks of vip addressing as the configuration gives them: valid, and without state.

use std::net::IpAddr;

use crate::engine::LegId;

/// Whose address the servers see as the source of what clients say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The client's own: the servers route back through the gateway.
    #[default]
    Client,
    /// The gateway's on their network, with a port of its own.
    Gateway,
}

/// A network: all addresses that begin with the same `len` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    len: u8,
}

impl Network {
    /// The network of `address`; `None` if its family has no such length.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (len <= bits).then_some(Self { address, len })
    }

    /// Whether `ip` is one of its addresses.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
                (own.to_bits() ^ ip.to_bits()) & mask == 0
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
                (own.to_bits() ^ ip.to_bits()) & mask == 0
            }
            _ => false,
        }
    }

    /// Whether they share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) && self.len <= other.len
            || other.contains(self.address) && other.len <= self.len
    }

    /// The address that it was made of.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that all its addresses share.
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether it was made of its first address, which no host has (RFC 1122 3.2.1.3; RFC 3021 for
    /// links of two). In IPv6 that is the routers' (RFC 4291 2.6.1), and no gateway's own.
    pub fn is_named_by_itself(&self) -> bool {
        match self.address {
            IpAddr::V4(ip) if self.len <= 30 => ip.to_bits() << self.len == 0,
            IpAddr::V6(ip) if self.len <= 126 => ip.to_bits() << self.len == 0,
            _ => false,
        }
    }

    /// Whether every address of the family is in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// One address of the service and who serves it; all of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The service's.
    pub service: IpAddr,
    /// The servers' own.
    pub servers: [IpAddr; 2],
}

/// The gateway as a router before two servers with addresses of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipPlan {
    /// Whom the servers see.
    pub source: Source,
    /// Every address of the service; no server's stands there twice.
    pub served: Vec<Served>,
    /// TCP ports that the servers serve at another one: (the service's, the servers'). Neither
    /// stands there twice, and no port of the servers is another one of the service.
    pub ports: Vec<(u16, u16)>,
    /// The networks of the client link.
    pub client: Vec<Network>,
    /// Routers towards all other clients: at most one of each family.
    pub next_hops: Vec<IpAddr>,
    /// The gateway's own addresses on each server's link, each with its network: one of each
    /// family that is served.
    pub own: [Vec<Network>; 2],
}

impl VipPlan {
    /// Whether `ip` is an address of the service.
    pub fn is_service(&self, ip: IpAddr) -> bool {
        self.served.iter().any(|served| served.service == ip)
    }

    /// The own address of `leg`'s server that serves `service`.
    pub fn server_of(&self, leg: LegId, service: IpAddr) -> Option<IpAddr> {
        let served = self.served.iter().find(|served| served.service == service)?;
        Some(served.servers[leg.index()])
    }

    /// The address of the service that `leg`'s server serves at `server`.
    pub fn service_of(&self, leg: LegId, server: IpAddr) -> Option<IpAddr> {
        let served = self.served.iter().find(|served| served.servers[leg.index()] == server)?;
        Some(served.service)
    }

    /// The servers' port of the service's `port`; `None` if that would be taken for another one.
    pub fn server_port(&self, port: u16) -> Option<u16> {
        match self.ports.iter().find(|(service, _)| *service == port) {
            Some((_, server)) => Some(*server),
            None => (!self.ports.iter().any(|(_, server)| *server == port)).then_some(port),
        }
    }

    /// The service's port of the servers' `port`; `None` if that would be taken for another one.
    pub fn service_port(&self, port: u16) -> Option<u16> {
        match self.ports.iter().find(|(_, server)| *server == port) {
            Some((service, _)) => Some(*service),
            None => (!self.ports.iter().any(|(service, _)| *service == port)).then_some(port),
        }
    }

    /// The gateway's own address on `leg`'s link in the family of `ip`.
    pub fn own_of(&self, leg: LegId, ip: IpAddr) -> Option<IpAddr> {
        let own = self.own[leg.index()].iter().map(Network::address);
        own.into_iter().find(|own| own.is_ipv4() == ip.is_ipv4())
    }

    /// Whether `ip` belongs to somebody behind the gateway, or to the gateway.
    pub fn is_inside(&self, ip: IpAddr) -> bool {
        let is_servers = |served: &Served| served.service == ip || served.servers.contains(&ip);
        let own = self.own.iter().flatten();
        self.served.iter().any(is_servers) || own.into_iter().any(|own| own.address() == ip)
    }

    /// Whether `ip` is an address of a server's network.
    pub fn is_near_server(&self, ip: IpAddr) -> bool {
        self.own.iter().flatten().any(|network| network.contains(ip))
    }

    /// Who takes what goes to the client `ip`: itself, or the router towards it.
    pub fn next_hop(&self, ip: IpAddr) -> Option<IpAddr> {
        let is_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if is_local || self.client.iter().any(|network| network.contains(ip)) {
            return Some(ip);
        }
        self.next_hops.iter().copied().find(|hop| hop.is_ipv4() == ip.is_ipv4())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        let (ip, len) = text.split_once('/').expect("a length");
        let len = len.parse().expect("a number");
        Network::new(ip.parse().expect("an address"), len).expect("a network")
    }

    #[test]
    fn a_network_contains_what_begins_alike() {
        let cases = [
            ("192.0.2.77/24", "192.0.2.255", true),
            ("192.0.2.77/24", "192.0.3.0", false),
            ("192.0.2.77/32", "192.0.2.77", true),
            ("192.0.2.77/32", "192.0.2.76", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/64", "2001:db8::ffff", true),
            ("2001:db8::/64", "2001:db8:0:1::", false),
            ("::/0", "2001:db8::", true),
            ("2001:db8::5/128", "2001:db8::5", true),
        ];
        for (net, ip, is_in) in cases {
            assert_eq!(network(net).contains(ip.parse().expect("an address")), is_in, "{net} {ip}");
        }
        assert!(Network::new("192.0.2.1".parse().expect("an address"), 33).is_none());
        assert!(network("10.0.0.0/8").overlaps(&network("10.1.2.3/24")));
        assert!(network("10.1.2.3/24").overlaps(&network("10.0.0.0/8")));
        assert!(!network("10.1.2.3/24").overlaps(&network("10.1.3.3/24")));
    }

    #[test]
    fn ports_are_mapped_both_ways_or_not_at_all() {
        let plan = VipPlan { ports: vec![(8080, 80)], ..VipPlan::default() };
        assert_eq!((plan.server_port(8080), plan.service_port(80)), (Some(80), Some(8080)));
        assert_eq!((plan.server_port(22), plan.service_port(22)), (Some(22), Some(22)));
        // The servers' 80 is the service's 8080 and no other; their 8080 is nobody's.
        assert_eq!((plan.server_port(80), plan.service_port(8080)), (None, None));
        for port in 0..=u16::MAX {
            let there = plan.server_port(port).and_then(|at| plan.service_port(at));
            assert!(there.is_none_or(|back| back == port));
        }
    }
}
