//! shadowvm: a packet-level inline gateway that makes two servers behave as one that does not fail.
//!
//! The map of the code, in reading order:
//! [`wire`] bytes and their meaning · [`protocol`] knowledge above TCP · [`engine`] the
//! deterministic core · [`io`] links and the loop that drives an engine · [`sync`] state
//! synchronization backends · [`sim`] the simulated world · [`observe`] events to counters and
//! logs · [`replay`] captures compared and said again · [`config`] the configuration file ·
//! [`evidence`] what surrounds a divergence or a failover, kept and run again · [`admin`] the
//! admin socket · [`lab`] namespaces, embedded servers and clients, faults · [`cli`] one file a
//! verb.
// The module documentation is a map for readers of the code, private rooms included.
#![allow(rustdoc::private_intra_doc_links)]

#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod engine;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod protocol;
#[deny(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod wire;

#[cfg(feature = "app")]
pub mod admin;
#[cfg(feature = "app")]
pub mod cli;
#[cfg(feature = "app")]
pub mod config;
#[cfg(feature = "app")]
pub mod evidence;
#[cfg(feature = "app")]
pub mod io;
#[cfg(feature = "app")]
pub mod lab;
#[cfg(feature = "app")]
pub mod observe;
#[cfg(feature = "app")]
pub mod replay;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "app")]
pub mod sync;
