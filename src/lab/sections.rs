//! What a gateway's configuration says about a world: who is where.

use super::Topology;
use super::world::{CLIENT, SERVICE, World};
use crate::engine::{LegId, Source};

/// The sections of links, service, servers and networks; `ports` as in `service.ports`.
pub fn sections(world: &World, ports: &str) -> String {
    let links = ["a", "b"].map(str::to_owned);
    sections_behind(world, &Behind { links, lines: Default::default() }, ports)
}

/// What else there is to say of the servers.
#[derive(Debug)]
pub struct Behind {
    /// The links to them.
    pub links: [String; 2],
    /// What their own sections have besides.
    pub lines: [String; 2],
}

/// The same with these servers.
pub fn sections_behind(world: &World, behind: &Behind, ports: &str) -> String {
    let [link_a, link_b] = &behind.links;
    let [line_a, line_b] = &behind.lines;
    let (v4, v6) = SERVICE;
    let [service, a, b, network] = match world.topology() {
        Topology::Vip(source) => vip(world, source),
        _ => ["addressing = \"clone\"\n", "", "", ""].map(str::to_owned),
    };
    format!(
        "[links]\nclient = \"client\"\na = \"{link_a}\"\nb = \"{link_b}\"\n\
         [service]\n{service}address = [\"{v4}\", \"{v6}\"]\nports = {ports}\n\
         [[server]]\nname = \"a\"\nrole = \"primary\"\n{line_a}{a}\
         [[server]]\nname = \"b\"\nrole = \"backup\"\n{line_b}{b}{network}"
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
