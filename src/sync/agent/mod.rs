//! The agent: a daemon beside a server on another host, and the gateway's way to it.
//!
//! One connection a gateway, made by its helper process: authenticated and encrypted by a key that
//! both sides have in a file, with several channels in it. One carries a mirror's end, one tells
//! how the service is.
//!
//! Reading order: [`key`] · [`handshake`] (who is there; afterwards everything is sealed) ·
//! [`frame`] (what the two sides say) · [`pack`] and [`limit`] (how much of it) · [`mux`]
//! (channels) · [`serve`] (the daemon) · [`link`] (the helper's side) · [`health`] and [`service`]
//! (what the agent sees of the server).

pub mod frame;
pub mod handshake;
pub mod health;
pub mod key;
pub mod limit;
pub mod link;
pub mod mux;
pub mod pack;
pub mod serve;
pub mod service;

#[cfg(test)]
mod tests;
