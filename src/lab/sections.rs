//! What a gateway's configuration says about a world: who is where.

use super::Topology;
use super::world::{CLIENT, SERVICE, World};
use crate::engine::{LegId, Source};

/// The sections of links, service, servers and networks; `ports` as in `service.ports`.
pub fn sections(world: &World, ports: &str) -> String {
    sections_behind(world, ["a", "b"], ports)
}

/// The same with the servers behind these links.
pub fn sections_behind(world: &World, [link_a, link_b]: [&str; 2], ports: &str) -> String {
    let (v4, v6) = SERVICE;
    let [service, a, b, network] = match world.topology() {
        Topology::Vip(source) => vip(world, source),
        _ => ["addressing = \"clone\"\n", "", "", ""].map(str::to_owned),
    };
    format!(
        "[links]\nclient = \"client\"\na = \"{link_a}\"\nb = \"{link_b}\"\n\
         [service]\n{service}address = [\"{v4}\", \"{v6}\"]\nports = {ports}\n\
         [[server]]\nname = \"a\"\nrole = \"primary\"\n{a}\
         [[server]]\nname = \"b\"\nrole = \"backup\"\n{b}{network}"
    )
}

/// What vip addressing adds to the service, to each server, and after them.
fn vip(world: &World, source: Source) -> [String; 4] {
    let word = match source {
        Source::Client => "client",
        Source::Gateway => "gateway",
    };
    let service = format!("addressing = \"vip\"\nsource = \"{word}\"\n");
    let [a, b] = LegId::ALL.map(|leg| {
        let (v4, v6) = world.server_addresses(leg);
        format!("address = [\"{v4}\", \"{v6}\"]\n")
    });
    let own = |leg| {
        let (v4, v6) = world.gateway_addresses(leg);
        format!("[\"{v4}/24\", \"{v6}/64\"]")
    };
    let (v4, v6) = CLIENT;
    let (on_a, on_b) = (own(LegId::A), own(LegId::B));
    let network =
        format!("[network]\nclient = [\"{v4}/24\", \"{v6}/64\"]\na = {on_a}\nb = {on_b}\n");
    [service, a, b, network]
}
