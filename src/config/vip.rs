//! vip addressing: what `service.source`, `server.address` and `[network]` say together.
//!
//! Owns the rules between them. Without vip addressing none of these keys may be there.

use std::net::IpAddr;

use toml::de::DeTable;

use super::parse::host_address;
use super::read::{At, Reader, Section};
use crate::engine::{LegId, Network, Served, Source, VipPlan};

/// What `[service]` says about its addressing.
#[derive(Debug, Default)]
pub(super) struct Addressing {
    /// Whether it is vip.
    pub(super) is_vip: bool,
    /// Whom the servers see.
    pub(super) source: Source,
    /// Ports that the servers serve at another one.
    pub(super) ports: Vec<(u16, u16)>,
}

/// What one `[[server]]` says about its addresses.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Each with its place; none if it says nothing.
    pub(super) addresses: Option<Vec<(IpAddr, At)>>,
    /// Where the section stands.
    pub(super) at: At,
}

const NETWORK_HELP: &str = "write [network] with client, a and b: the networks of the three links";

/// Reads `server.address`.
pub(super) fn own(reader: &Reader<'_>, section: &Section<'_>) -> Own {
    let key = "server.address";
    let listed = section.strings("address", true);
    let read = |(text, at): (String, At)| {
        host_address(reader, &at, key, &text).map(|address| (address, at))
    };
    let addresses = listed.map(|listed| listed.into_iter().filter_map(read).collect());
    Own { addresses, at: section.at("address").or_else(|| section.at.clone()) }
}

/// The networks; none in clone addressing, and where they are wrong.
pub(super) fn plan(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    addressing: &Addressing,
    service: &[IpAddr],
    own: &[Own; 2],
) -> Option<VipPlan> {
    let section = Section::top(reader, root, "network");
    if !addressing.is_vip {
        let help = "remove it, or write addressing = \"vip\" in [service]";
        if section.is_present() {
            let reason = "belongs to vip addressing";
            reader.wrong_help(section.at.clone(), "network", reason, help);
        }
        for own in own.iter().filter(|own| own.addresses.is_some()) {
            let reason = "belongs to vip addressing: in clone addressing both have the service's";
            reader.wrong_help(own.at.clone(), "server.address", reason, help);
        }
        return None;
    }
    if !section.is_present() {
        reader.missing(None, "network", NETWORK_HELP);
        return None;
    }
    let plan = VipPlan {
        source: addressing.source,
        served: served(reader, service, own),
        ports: addressing.ports.clone(),
        client: networks(reader, &section, "client").into_iter().map(|(n, _)| n).collect(),
        next_hops: next_hops(reader, &section),
        own: ["a", "b"].map(|key| {
            networks(reader, &section, key).into_iter().map(|(network, _)| network).collect()
        }),
    };
    clients_can_be_reached(reader, &section, &plan, service);
    for leg in LegId::ALL {
        server_is_on_its_link(reader, &section, &plan, leg, &own[leg.index()]);
    }
    nobody_is_twice(reader, &section, &plan, own);
    answers_come_back(reader, &section, &plan);
    Some(plan)
}

/// Each address of the service with the servers' own: the n'th of a family is served by the n'th.
fn served(reader: &Reader<'_>, service: &[IpAddr], own: &[Own; 2]) -> Vec<Served> {
    let key = "server.address";
    for own in own {
        let Some(addresses) = &own.addresses else {
            let help = "the server's own address, of each family that the service has";
            reader.missing(own.at.clone(), key, help);
            continue;
        };
        for (is_v4, family) in [(true, "IPv4"), (false, "IPv6")] {
            let wanted = service.iter().filter(|ip| ip.is_ipv4() == is_v4).count();
            let given = addresses.iter().filter(|(ip, _)| ip.is_ipv4() == is_v4).count();
            if given != wanted {
                let reason = format!("{given} {family} addresses, the service has {wanted}");
                let help = "the first of a family serves the service's first one, and so on";
                reader.wrong_help(own.at.clone(), key, reason, help);
            }
        }
    }
    let nth = |own: &Own, at: usize| {
        let family = service[at].is_ipv4();
        let before = service[..at].iter().filter(|ip| ip.is_ipv4() == family).count();
        let mut of_family = own.addresses.iter().flatten().filter(|(ip, _)| ip.is_ipv4() == family);
        of_family.nth(before).map(|(ip, _)| *ip)
    };
    let pairs = service.iter().enumerate().filter_map(|(at, service)| {
        let (a, b) = (nth(&own[0], at)?, nth(&own[1], at)?);
        Some(Served { service: *service, servers: [a, b] })
    });
    pairs.collect()
}

/// Networks such as "192.0.2.1/24", each with its place.
fn networks(reader: &Reader<'_>, section: &Section<'_>, key: &str) -> Vec<(Network, At)> {
    let full = section.full(key);
    let help = "an address with its prefix length: \"192.0.2.254/24\"";
    let mut found: Vec<(Network, At)> = Vec::new();
    for (text, at) in section.strings(key, true).unwrap_or_default() {
        let Some((address, len)) = text.split_once('/') else {
            reader.wrong_help(at, &full, format!("`{text}` has no prefix length"), help);
            continue;
        };
        let Some(address) = host_address(reader, &at, &full, address) else { continue };
        match len.parse().ok().and_then(|len| Network::new(address, len)) {
            Some(network) => found.push((network, at)),
            None => reader.wrong_help(at, &full, format!("`{len}` is not a prefix length"), help),
        }
    }
    found
}

fn next_hops(reader: &Reader<'_>, section: &Section<'_>) -> Vec<IpAddr> {
    let key = "network.next_hop";
    let mut hops: Vec<IpAddr> = Vec::new();
    for (text, at) in section.strings("next_hop", true).unwrap_or_default() {
        let Some(hop) = host_address(reader, &at, key, &text) else { continue };
        if hops.iter().any(|other| other.is_ipv4() == hop.is_ipv4()) {
            let help = "one router of each family";
            reader.wrong_help(at, key, "two addresses of one family", help);
        } else {
            hops.push(hop);
        }
    }
    hops
}

fn family(is_v4: bool) -> &'static str {
    if is_v4 { "IPv4" } else { "IPv6" }
}

fn clients_can_be_reached(
    reader: &Reader<'_>,
    section: &Section<'_>,
    plan: &VipPlan,
    service: &[IpAddr],
) {
    for is_v4 in [true, false] {
        if !service.iter().any(|ip| ip.is_ipv4() == is_v4) {
            continue;
        }
        let near = plan.client.iter().any(|network| network.address().is_ipv4() == is_v4);
        let far = plan.next_hops.iter().any(|hop| hop.is_ipv4() == is_v4);
        if !near && !far {
            let help =
                "client: the networks of the client link; next_hop: the router to all others";
            let at = section.at("client").or_else(|| section.at.clone());
            let reason = format!("no way to {} clients", family(is_v4));
            reader.wrong_help(at, "network.client", reason, help);
        }
    }
    for hop in &plan.next_hops {
        if !plan.client.iter().any(|network| network.contains(*hop)) {
            let reason = format!("{hop} is in no network of network.client");
            let help = "a next hop is reached directly";
            reader.wrong_help(section.at("next_hop"), "network.next_hop", reason, help);
        }
    }
}

fn server_is_on_its_link(
    reader: &Reader<'_>,
    section: &Section<'_>,
    plan: &VipPlan,
    leg: LegId,
    own: &Own,
) {
    let key = ["a", "b"][leg.index()];
    let full = section.full(key);
    let networks = &plan.own[leg.index()];
    for is_v4 in [true, false] {
        let of_family = || networks.iter().filter(|n| n.address().is_ipv4() == is_v4);
        let wanted = plan.served.iter().any(|served| served.service.is_ipv4() == is_v4);
        let family = family(is_v4);
        match of_family().count() {
            0 if wanted && section.at(key).is_none() => {
                let help = "the gateway's own address on that server's network, with its length";
                reader.missing(section.at.clone(), &full, help);
                return;
            }
            0 if wanted => {
                let reason = format!("no {family} address, the service has one");
                reader.wrong(section.at(key), &full, reason);
            }
            0 | 1 => {}
            _ => reader.wrong(section.at(key), &full, format!("two {family} addresses")),
        }
    }
    for network in networks.iter().filter(|network| network.is_named_by_itself()) {
        let help = "write an address of the gateway's own in it: \"192.0.2.254/24\"";
        let reason = format!("{} is the network, not a host", network.address());
        reader.wrong_help(section.at(key), &full, reason, help);
    }
    for (address, at) in own.addresses.iter().flatten() {
        let is_near = networks.iter().any(|network| network.contains(*address));
        if !is_near && networks.iter().any(|n| n.address().is_ipv4() == address.is_ipv4()) {
            let reason = format!("{address} is in no network of {full}");
            let help = "the gateway reaches its servers directly";
            reader.wrong_help(at.clone(), "server.address", reason, help);
        }
    }
}

/// Every address has one owner.
fn nobody_is_twice(reader: &Reader<'_>, section: &Section<'_>, plan: &VipPlan, own: &[Own; 2]) {
    let mut seen: Vec<(IpAddr, String)> = Vec::new();
    let mut note = |address: IpAddr, who: String, at: At, key: &str| {
        if let Some((_, other)) = seen.iter().find(|(ip, _)| *ip == address) {
            reader.wrong(at, key, format!("{address} is the address of {other} too"));
        }
        seen.push((address, who));
    };
    for served in &plan.served {
        note(served.service, "the service".into(), None, "service.address");
    }
    for (leg, name) in [(0, "the first server"), (1, "the second server")] {
        for served in &plan.served {
            let address = served.servers[leg];
            let mut places = own[leg].addresses.iter().flatten();
            let at = places.find(|(ip, _)| *ip == address).and_then(|(_, at)| at.clone());
            note(address, name.into(), at, "server.address");
        }
    }
    for (leg, key) in [(0, "a"), (1, "b")] {
        for network in &plan.own[leg] {
            let who = format!("the gateway on {key}");
            note(network.address(), who, section.at(key), &section.full(key));
        }
    }
    for hop in &plan.next_hops {
        note(*hop, "the next hop".into(), section.at("next_hop"), "network.next_hop");
    }
}

/// Where servers answer clients themselves, no client may be their neighbour.
fn answers_come_back(reader: &Reader<'_>, section: &Section<'_>, plan: &VipPlan) {
    if plan.source == Source::Gateway {
        return;
    }
    for (leg, key) in [(0, "a"), (1, "b")] {
        for network in &plan.own[leg] {
            if plan.client.iter().any(|client| client.overlaps(network)) {
                let reason = "shares addresses with network.client: the server would answer such \
                              clients past the gateway";
                let help = "separate the networks, or write source = \"gateway\" in [service]";
                reader.wrong_help(section.at(key), &section.full(key), reason, help);
            }
        }
    }
}
