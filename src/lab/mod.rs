//! Worlds to try the gateway in: network namespaces, embedded servers and clients, faults.
//!
//! Read [`world`] first. [`agent`] holds the processes of a world, [`netlink`] its links,
//! [`impair`] a link that treats frames badly, [`sections`] what a gateway is told about a world,
//! [`web`] and [`ftp`] servers and a client that know what every byte should be, [`haven`] a folder
//! for their files, [`container`] the first process of a server's container. [`pair`] is an engine
//! between two servers without any world. Nothing here is on the gateway's own path.

pub(crate) mod agent;
pub mod container;
pub mod ftp;
pub mod haven;
pub mod host;
pub mod impair;
pub(crate) mod message;
pub(crate) mod netlink;
pub mod pair;
mod sections;
pub mod web;
pub mod world;

pub use haven::Haven;
pub use host::{Child, Io, Output, Program};
pub use impair::{Fate, Impairment};
pub use netlink::{Mac, RouteMetrics};
pub use sections::{Behind, sections, sections_behind};
pub use world::{Cut, HostId, Kind, ServerOptions, Topology, World, WorldError, WorldOptions};
