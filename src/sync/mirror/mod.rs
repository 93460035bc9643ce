//! The backend `mirror`: a directory tree of the primary made equal on the backup.
//!
//! Equal is what `rsync -aHAX --delete` makes equal: what exists, content, modes, owners, times of
//! modification to the nanosecond, extended attributes and ACLs, symbolic and hard links, devices,
//! pipes and sockets; holes stay holes. What is mounted inside of a tree is not part of it.
//!
//! Two ends, each beside its tree, talk over any stream of bytes. Reading order: [`entry`] (what a
//! tree consists of) · [`plan`] (what differs -> what to do; pure) · [`message`] and [`wire`] (what
//! the ends say) · [`tree`] (looking) · [`content`] (blocks) · [`source`] · [`target`] · [`fetch`]
//! (files on their way) · [`apply`] (the only one that changes anything) · [`doubt`] and [`watch`]
//! (what may have changed) · [`end`] (the process) · [`pair`] (who starts both ends, and connects
//! them).
//!
//! The gateway itself is confined and opens no file: pairing is done by its helper process.

pub mod apply;
pub mod content;
pub mod doubt;
pub mod end;
pub mod entry;
pub mod fetch;
pub mod message;
pub mod pair;
pub mod plan;
pub mod source;
pub mod target;
pub mod tree;
pub mod watch;
pub mod wire;

#[cfg(test)]
mod tests;
