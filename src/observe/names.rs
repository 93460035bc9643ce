//! The one written name of every value that reaches logs, metrics and the admin socket.
//!
//! Names are snake_case, few, and never change within `/api/v1`.

use crate::engine::{
    CommandError, DegradedReason, DivergenceKind, DropWhy, Evidence, Finding, FlowState, HeldWhy,
    KeptWhy, LegId, Link, Mode, NotReprotected, OfferOutcome, RawReason, RejectReason, ServerState,
    ServiceState, SoloReason, SyncReason,
};
use crate::wire::Malformed;

/// A value with a name.
pub trait Name {
    /// Its name.
    fn name(&self) -> &'static str;
}

/// Gives each variant its name, and lists all names.
macro_rules! names {
    ($type:ty, $all:ident, { $($pattern:pat => $name:literal),+ $(,)? }) => {
        impl Name for $type {
            fn name(&self) -> &'static str {
                match self { $($pattern => $name),+ }
            }
        }
        /// Every name of the type, in the order of its variants.
        pub const $all: &[&str] = &[$($name),+];
    };
}

names!(Link, LINKS, {
    Self::Client => "client",
    Self::Server(LegId::A) => "a",
    Self::Server(LegId::B) => "b",
});

names!(LegId, LEGS, { Self::A => "a", Self::B => "b" });

names!(Mode, MODES, {
    Self::Protect => "protect",
    Self::Observe => "observe",
    Self::Passthrough => "passthrough",
});

names!(FlowState, FLOW_STATES, {
    Self::Opening => "opening",
    Self::Paired => "paired",
    Self::Lagging => "lagging",
    Self::Diverged => "diverged",
    Self::Solo => "solo",
    Self::TimeWait => "time_wait",
});

names!(SoloReason, SOLO_REASONS, {
    Self::OneServer => "one_server",
    Self::Handshake => "handshake",
    Self::ServerFailed => "server_failed",
    Self::EarlyEnd => "early_end",
    Self::Lag => "lag",
    Self::Diverged => "diverged",
    Self::AuthOption => "auth_option",
    Self::Budget => "budget",
    Self::BackupStale => "backup_stale",
    Self::Restored => "restored",
    Self::HalfOpen => "half_open",
    Self::SourceLimit => "source_limit",
    Self::Unfollowed => "unfollowed",
    Self::Tls => "tls",
    Self::Ssh => "ssh",
    Self::Http2 => "http2",
    Self::OpaquePort => "opaque_port",
});

names!(Finding, FINDINGS, {
    Self::H1(Evidence::Carrier) => "h1_carrier",
    Self::H1(Evidence::LinkGone) => "h1_link_gone",
    Self::H1(Evidence::Exited) => "h1_exited",
    Self::H1(Evidence::Refused) => "h1_refused",
    Self::H2 => "h2_silence",
    Self::H3 => "h3_stuck",
    Self::H4 => "h4_flow",
    Self::Operator => "operator",
});

names!(ServerState, SERVER_STATES, {
    Self::Unknown => "unknown",
    Self::Up => "up",
    Self::Unfit => "unfit",
    Self::Failed => "failed",
    Self::Returning => "returning",
});

names!(ServiceState, SERVICE_STATES, {
    Self::Starting => "starting",
    Self::Syncing => "syncing",
    Self::Protected => "protected",
    Self::Degraded(_) => "degraded",
    Self::Down => "down",
});

names!(DegradedReason, DEGRADED_REASONS, {
    Self::OneServer => "one_server",
    Self::Returning => "returning",
    Self::BackupUnfit => "backup_unfit",
    Self::SyncFailed => "sync_failed",
    Self::Storm => "storm",
    Self::Mode => "mode",
    Self::Paused => "paused",
    Self::Refused => "refused",
    Self::Unanswered => "unanswered",
});

names!(HeldWhy, HELD_WHYS, {
    Self::BackupUnfit => "backup_unfit",
    Self::FlapBudget => "flap_budget",
    Self::Manual => "manual",
    Self::FenceFailed => "fence_failed",
});

names!(OfferOutcome, OFFER_OUTCOMES, {
    Self::Believed => "believed",
    Self::ForeignAddress => "foreign_address",
    Self::PortTaken => "port_taken",
    Self::Full => "full",
});

names!(DivergenceKind, DIVERGENCE_KINDS, {
    Self::Byte(..) => "byte",
    Self::Length => "length",
});

names!(KeptWhy, KEPT_WHYS, {
    Self::Late => "late",
    Self::Full => "full",
});

names!(NotReprotected, NOT_REPROTECTED, {
    Self::Refused => "refused",
    Self::Silent => "silent",
    Self::Ended => "ended",
    Self::Overtaken => "overtaken",
    Self::Differs => "differs",
});

names!(DropWhy, DROP_WHYS, {
    Self::Displaced => "displaced",
    Self::Expired => "expired",
    Self::Copied => "copied",
});

names!(RawReason, RAW_REASONS, {
    Self::NotHttp => "not_http",
    Self::RequestLine => "request_line",
    Self::StatusLine => "status_line",
    Self::BareLf => "bare_lf",
    Self::BareCr => "bare_cr",
    Self::Folded => "folded",
    Self::HeaderLine => "header_line",
    Self::LongLine => "long_line",
    Self::LongHead => "long_head",
    Self::Length => "length",
    Self::TwoLengths => "two_lengths",
    Self::LengthAndCoding => "length_and_coding",
    Self::Coding => "coding",
    Self::NoContent => "no_content",
    Self::ChunkSize => "chunk_size",
    Self::ChunkEnd => "chunk_end",
    Self::Switched => "switched",
    Self::Outstanding => "outstanding",
    Self::Unasked => "unasked",
    Self::Missed => "missed",
    Self::Value => "value",
    Self::NotFtp => "not_ftp",
    Self::Encrypted => "encrypted",
    Self::ActiveData => "active_data",
});

names!(SyncReason, SYNC_REASONS, {
    Self::First => "first",
    Self::Divergence(_) => "divergence",
    Self::Rejoin => "rejoin",
    Self::Operator => "operator",
    Self::Periodic => "periodic",
});

names!(CommandError, COMMAND_ERRORS, {
    Self::NoPeer => "no_peer",
    Self::Already => "already",
    Self::NotEqual => "not_equal",
    Self::Busy => "busy",
    Self::NoBackend => "no_backend",
    Self::NeedsRestart => "needs_restart",
});

names!(RejectReason, REJECT_REASONS, {
    Self::Malformed(Malformed::Runt) => "runt",
    Self::Malformed(Malformed::VlanDepth) => "vlan_depth",
    Self::Malformed(Malformed::MulticastSource) => "multicast_source",
    Self::Malformed(Malformed::IpHeader) => "ip_header",
    Self::Malformed(Malformed::IpLength) => "ip_length",
    Self::Malformed(Malformed::IpChecksum) => "ip_checksum",
    Self::Malformed(Malformed::IpSource) => "ip_source",
    Self::Malformed(Malformed::SourceRoute) => "source_route",
    Self::Malformed(Malformed::ExtensionHeaders) => "extension_headers",
    Self::Malformed(Malformed::Fragment) => "fragment_malformed",
    Self::Malformed(Malformed::TcpHeader) => "tcp_header",
    Self::Malformed(Malformed::TcpOption) => "tcp_option",
    Self::Malformed(Malformed::TcpChecksum) => "tcp_checksum",
    Self::Malformed(Malformed::TcpFlags) => "tcp_flags",
    Self::Malformed(Malformed::UdpHeader) => "udp_header",
    Self::Malformed(Malformed::UdpChecksum) => "udp_checksum",
    Self::Malformed(Malformed::Icmp) => "icmp",
    Self::Malformed(Malformed::Arp) => "arp",
    Self::Malformed(Malformed::Nd) => "nd",
    Self::Fenced => "fenced",
    Self::OldGeneration => "old_generation",
    Self::WrongLink => "wrong_link",
    Self::NotForUs => "not_for_us",
    Self::BackupOnly => "backup_only",
    Self::OutOfWindow => "out_of_window",
    Self::InexactReset => "inexact_reset",
    Self::Fragment => "fragment",
    Self::IcmpQuote => "icmp_quote",
    Self::Unreachable => "unreachable",
    Self::ProbeReply => "probe_reply",
    Self::NotServed => "not_served",
    Self::HopsUsedUp => "hops_used_up",
    Self::NoNeighbour => "no_neighbour",
    Self::NoPort => "no_port",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_snake_case_and_differ() {
        for all in [
            LINKS,
            LEGS,
            MODES,
            FLOW_STATES,
            SOLO_REASONS,
            FINDINGS,
            SERVER_STATES,
            SERVICE_STATES,
            DEGRADED_REASONS,
            HELD_WHYS,
            DIVERGENCE_KINDS,
            SYNC_REASONS,
            COMMAND_ERRORS,
            REJECT_REASONS,
        ] {
            let mut sorted = all.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), all.len(), "{all:?}");
            let is_snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(all.iter().all(|name| name.chars().all(is_snake)), "{all:?}");
        }
    }
}
