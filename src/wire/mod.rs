//! Bytes and their meaning: frames, headers, checksums, sequence numbers. No state, no clock.
//!
//! Reading order: [`frame`] (the only packet that crosses layers), [`packet`] (what a frame says),
//! [`parse`] (one pass from bytes to [`packet::Packet`]; [`parse::captured`] for captures),
//! [`build`] (from fields to a frame), [`rewrite`] and [`ends`] (edits in place), [`seq`] (numbers
//! that cannot be mixed), [`checksum`], [`segmentize`] (super-frames to wire packets), [`train`]
//! (frames to super-frames), [`fragment`] (datagrams to fragments), [`vnet_hdr`].

pub mod build;
pub mod checksum;
pub mod ends;
pub mod fragment;
pub mod frame;
pub mod packet;
pub mod parse;
pub mod rewrite;
pub mod segmentize;
pub mod seq;
pub mod train;
pub mod vnet_hdr;

pub use ends::{Addressed, Ends, Talk};
pub use frame::{CsumSpot, Frame, Gso, GsoKind, Offload};
pub use packet::{
    Arp, Datagram, Fragment, Icmp, IcmpKind, L2, L3, Mac, Malformed, Nd, NdKind, Other, Packet,
    Quote, SackBlocks, Segment, TcpFlags, TcpOptions, Vlans,
};
pub use seq::{ClientSpace, LegSpace, Offset, Seq, TsDelta, Tsval};

#[cfg(test)]
mod tests;
