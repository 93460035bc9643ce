//! Addressing, at the engine's edge: the rest of the engine knows one address of the service and
//! servers that have it, as in clone addressing. In vip addressing, where each server has its own,
//! a [`Translator`] stands between the links and that.
//!
//! [`plan`] (the networks), [`vip`] (the translation), [`host`] (the gateway as a host on each
//! link), [`neighbours`] (who is where), [`sources`] (ports of the gateway's own). It sees every
//! frame that comes in, once it is parsed and whole, and every output. A link of the engine is a
//! side, not a cable: were two of them one interface, what has to be decided by address is the
//! link of what comes in, and [`Inbound`] is the place for that.
//!
//! In both addressings a data connection of FTP has a port of its own on each server
//! ([`data_ports`]); that stands between the translation and the flows.

mod data_ports;
mod host;
mod neighbours;
mod plan;
pub mod sources;
#[cfg(test)]
mod tests;
mod vip;

pub use data_ports::DataPorts;
pub use neighbours::NeighbourState;
pub use plan::{Network, Served, Source, VipPlan};
pub use vip::{FROM_CLIENT, Inbound, Translator};

use std::net::IpAddr;

use super::Link;

/// A neighbour that the configuration names, for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourStatus {
    /// On which link.
    pub link: Link,
    /// Who.
    pub address: IpAddr,
    /// How far it is known; none before it was needed.
    pub state: Option<NeighbourState>,
}
