//! Who is where on the client side, and which Ethernet addresses are the servers'.
//!
//! Learned from frames, bounded, never from the backup. It answers the backup's own queries, so
//! that those need not be shown to anybody (RFC 826, RFC 4861).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use super::pack::fields;
use crate::wire::Mac;

/// Client-side addresses remembered.
const NEIGHBOURS_MAX: usize = 4096;
/// Server-side Ethernet addresses remembered.
const SERVER_MACS_MAX: usize = 64;

/// What the gateway has learned of the two sides.
#[derive(Debug, Default)]
pub struct Neighbours {
    clients: BTreeMap<IpAddr, Mac>,
    order: VecDeque<IpAddr>,
    servers: BTreeSet<Mac>,
}

impl Neighbours {
    /// Notes a client-side host; the oldest is forgotten at the limit.
    pub fn learn_client(&mut self, ip: IpAddr, mac: Mac) {
        if ip.is_unspecified() || ip.is_multicast() || mac.is_multicast() {
            return;
        }
        if self.clients.insert(ip, mac).is_none() {
            self.order.push_back(ip);
            if self.order.len() > NEIGHBOURS_MAX
                && let Some(old) = self.order.pop_front()
            {
                self.clients.remove(&old);
            }
        }
    }

    /// Where a client-side host is.
    pub fn client(&self, ip: IpAddr) -> Option<Mac> {
        self.clients.get(&ip).copied()
    }

    /// Whether `ip` is a host of the client side. Link-local addresses are anybody's.
    pub fn is_client(&self, ip: IpAddr) -> bool {
        let is_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        !is_local && self.clients.contains_key(&ip)
    }

    /// Notes an Ethernet address behind a server link.
    pub fn learn_server(&mut self, mac: Mac) {
        if !mac.is_multicast() && self.servers.len() < SERVER_MACS_MAX {
            self.servers.insert(mac);
        }
    }

    /// Whether a frame of the client side to `mac` concerns the servers.
    pub fn is_for_servers(&self, mac: Mac) -> bool {
        mac.is_multicast() || self.servers.is_empty() || self.servers.contains(&mac)
    }

    /// Whether `mac` is behind a server link.
    pub fn is_server(&self, mac: Mac) -> bool {
        self.servers.contains(&mac)
    }
}

fields!(Neighbours { clients, order, servers });

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u16) -> Mac {
        let [a, b] = n.to_be_bytes();
        Mac([2, 0, 0, 0, a, b])
    }

    #[test]
    fn of_too_many_clients_the_oldest_is_forgotten_and_of_too_many_servers_the_last() {
        let mut known = Neighbours::default();
        let ip = |n: u16| IpAddr::from([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
        let all = NEIGHBOURS_MAX as u16 + 3;
        for n in 0..all {
            known.learn_client(ip(n), mac(n));
            known.learn_client(ip(n), mac(n));
        }
        let there = (0..all).filter(|&n| known.client(ip(n)) == Some(mac(n)));
        assert_eq!(there.collect::<Vec<_>>(), (3..all).collect::<Vec<_>>());
        (0..100).for_each(|n| known.learn_server(mac(n)));
        let there = (0..100).filter(|&n| known.is_server(mac(n))).count();
        assert_eq!((there, known.is_for_servers(mac(99))), (SERVER_MACS_MAX, false));
    }
}
