//! Deliberate defects, for measuring the tests (feature `planted-bugs`). No release contains them:
//! without the feature every question is answered `false` at compile time.
//!
//! Each stands where the contract is kept, asked as the last of its conditions wherever possible,
//! so that `struck` counts how seldom the defect shows.

use crate::wire::{CsumSpot, Frame, Malformed, Offload, parse};

/// Defines the defects, each with the sentence of the contract that it breaks.
macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident: $sentence:literal,)*) => {
        /// One defect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Bug {
            $($(#[$doc])* $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The sentence that it breaks.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }
        }
    };
}

bugs! {
    // ---- data ----
    /// One byte more than what both said is released.
    ReleaseOneAhead: "I1: bytes shown while Paired were said by both",
    /// The last byte that both have said at a time is not compared.
    LastByteUncompared: "I1: bytes shown while Paired compared equal",
    /// Ranges beyond a hole are shown uncompared.
    AheadUncompared: "I1: bytes shown ahead of a hole compared equal",
    /// Only whole segments of the primary are released.
    WholeSegmentsOnly: "LV4: no release waits for bytes that a leg cannot send yet",
    /// A masked span is released before both copies are complete.
    SpanNotAtomic: "1.12: a masked span is atomic",
    /// Behind a part of a replaced value the leg is acknowledged all of its own.
    TokenAckedInPart: "1.11: an ack inside a replaced value maps to its start",
    /// A replaced value is forgotten when it was shown.
    SpliceSettledEarly: "1.11: the map keeps a value until the client has acknowledged it",
    /// Behind a value that is longer than the one shown the backup's numbers are one off.
    SpliceOneShort: "1.11: behind a replaced value the map steps by the difference of lengths",
    /// What is said again is taken to stand where the server's own numbers say.
    RepetitionNotMapped: "1.11: what a leg says again is mapped",
    /// A FIN is taken to stand where the server's own numbers say.
    FinNotMapped: "1.11: every position of a leg is mapped, its FIN too",
    /// What a server acknowledges is taken to count like the client.
    EarNotMapped: "1.11: what a server acknowledges of a request is mapped, as what it says",
    /// A server that is alone hears what the other one called a session.
    SurvivorHearsForeign: "1.12: after a failover the survivor goes on hearing its own value",
    /// Segments to the client leave no room for their options.
    SegmentTooLong: "1.3 data: cut to the client's MSS less the option bytes",
    /// The urgent pointer shown is one too low.
    UrgentMisplaced: "1.3 URG: the urgent position is the one that the other end said",
    /// PSH is never set.
    PushLost: "1.3 PSH: set where a segment with PSH of the primary ended",
    /// Both legs' repetitions are shown.
    BothRepetitions: "1.3 repetition: not again right after the other leg's",
    // ---- acks and windows ----
    /// The ack shown is the primary's, not the lower of the two.
    NoAckMin: "I2: the ack shown is below both servers' acks",
    /// While Lagging the ack shown is the higher of the two.
    LaggingAckMax: "I4: bytes that the primary has not acknowledged stay with the client",
    /// The window shown is the primary's, not the lower edge.
    BackupWindowIgnored: "I3: the window edge shown is below both servers' edges",
    /// The larger of two window scales is shown.
    ScaleMax: "1.4: the scale shown is the lower one; windows are never overstated",
    /// Windows towards a leg are rounded up.
    EdgeRoundedUp: "I3: a leg is told at most what the client granted",
    /// A leg is sent acks beyond what it has sent.
    NoI6Clamp: "I6: an ack sent to a leg is at most what it has sent",
    /// Both legs' duplicate acks are forwarded.
    BothDupAcks: "1.3 dup ack: never both legs'",
    /// Whatever the legs answer to a strange segment is forwarded.
    ChallengeTwice: "1.3 challenge ack: never forwarded twice",
    /// SACK blocks shown are what either leg has.
    SackUnion: "1.3 SACK: blocks shown are what both legs have",
    /// The client's SACK blocks reach a leg that has not sent those bytes.
    SackUnclamped: "1.3 to the legs: blocks of ranges that a leg has not sent are dropped",
    /// Absorbed duplicates are not reported to the leg.
    NoDsackToLeg: "1.3 D-SACK: absorbed duplicates are reported to the leg",
    // ---- arithmetic and headers ----
    /// The backup's delta has the wrong sign.
    DeltaSign: "1.1: leg space = client space - delta",
    /// Positions are compared as raw 32-bit numbers.
    WrapCompare: "I11: positions are 64 bits, never raw numbers",
    /// The timestamp shown may go back.
    TsvalBack: "I8: the timestamp shown never decreases",
    /// A leg is sent the client's echo as it is.
    EchoUnmapped: "I8: a leg hears only timestamps that it sent",
    /// A frame whose checksum does not hold is used and summed anew.
    LaunderChecksum: "I13: unverified bytes never get a new checksum",
    /// The SYN offers explicit congestion notification.
    EcnOffered: "1.3 ECN: cleared on the SYN",
    /// The client sees one hop more than there is.
    TtlAged: "1.3 TTL: from the primary",
    // ---- liveness ----
    /// A leg that catches up behind the client's ack hears nothing.
    DropLv1: "LV1: a leg that catches up under the client's ack is told at once",
    /// A repetition of what the client has is not answered.
    RepetitionUnanswered: "LV2: a repetition of what the client has is answered",
    /// An ack that advances without data is not sent.
    DropLv3: "LV3: an ack that advances reaches the client",
    /// A window that opens without data is not told.
    WindowUpdateLost: "LV3, 1.3 window: an edge that advances from zero reaches the client",
    /// A hold has no timer.
    DropLv5: "LV5: every hold has a deadline",
    /// A window pinned by one leg arms no timer.
    PinnedWindowNoTimer: "LV5: a pinned window has a deadline",
    /// A held FIN waits for ever.
    FinHoldNoTimer: "LV5, 1.8: a held FIN has a deadline",
    /// A held reset waits for ever.
    ResetHoldNoTimer: "LV5, 1.8: a held reset has a deadline",
    /// A first SYN-ACK waits for ever.
    HandshakeNoTimer: "LV5, 1.4: a held SYN-ACK has a deadline",
    /// Servers that differ wait for the sync for ever.
    DivergedNoTimer: "LV5, 1.14: a divergence has a deadline",
    /// A leg that lags is never given up.
    LagForever: "LV5, 1.7: a leg that lags and stands is given up",
    /// A detached leg is not reset.
    DetachedNotReset: "LV6: a leg that is detached is reset exactly",
    /// Timers only count; what is due leaves with the next frame.
    TimersNeedPackets: "LV7: timers never depend on packets arriving",
    /// A server's probe always reaches the client.
    ProbesPassed: "1.3 keep-alive: answered here while the client is surely alive",
    /// What the client asks with an old number is not answered.
    ClientProbeUnanswered: "1.3 window probe: the client's is answered",
    // ---- beginnings and ends ----
    /// The primary's SYN-ACK does not wait for the backup's.
    SynAckEarly: "1.3 SYN-ACK: after both have answered",
    /// Frames of an older generation of the 4-tuple are accepted.
    OldGeneration: "I12: frames of an older generation are dropped",
    /// One leg's FIN is shown while the other leg goes on.
    EarlyFinReleased: "I7: a FIN is shown only where both streams end",
    /// A FIN is released at once, unpaired.
    FinWithoutHold: "1.3 FIN: a FIN of one leg is held and compared",
    /// The client is reset one byte too far.
    ResetNotExact: "1.3 RST: exactly at the next byte",
    /// The primary's reset is believed at once.
    ResetWithoutHold: "1.8: a reset of one leg is held and compared",
    // ---- servers ----
    /// A fenced leg is still heard.
    FencedLegHeard: "I12: nothing from a fenced leg",
    /// A lagging leg takes over before it has said what was shown.
    UnprovenPromoted: "I5: whoever takes over has said and taken what the client knows of",
    /// A required fence that failed does not matter.
    PromotedUnfenced: "2.3: no promotion before a required fence succeeded",
    /// The backup's ARP reaches the client.
    BackupArpShown: "I10: nothing of the backup reaches the client",
    /// Answers to the gateway's own probes reach the client.
    ProbeReplyShown: "I10: answers to probes never leave",
    /// A content sync moves TCP positions.
    ContentSyncRewrites: "1.14: a content sync changes no TCP position",
    /// The comparison with a copied leg leaves out a byte.
    CopyComparedLate: "1.14: after a machine sync comparison begins where the copy stands",
    /// A flow whose leg was copied stays with one server.
    CopyStaysSolo: "1.14: a machine sync pairs every flow that the source has",
    /// A copied leg is taken to have its own clock.
    CopyKeepsOldClock: "1.14: a machine sync takes over the source's clock",
    /// A second leg is asked for while an answer is outstanding.
    ReprotectAnywhere: "1.14: a second leg begins between two messages only",
    /// What a second leg says is taken to stand one byte further.
    SecondLegOneOff: "1.14: a second leg's next byte is the next one shown",
    /// A second leg does not hear what was said while it was awaited.
    SecondLegMisses: "1.14: a second leg hears everything from the boundary on",
    /// A server whose state is being replaced is promoted.
    OverwrittenPromoted: "1.16: a server that a sync overwrites is not promoted",
    /// While a sync keeps both servers from speaking the service is said to be down.
    StillIsDown: "1.14: a service whose servers stand still for a sync is not down",
    /// New flows pair with a backup that is known to differ.
    StaleBackupPairs: "1.14: after a failed sync new flows do not pair",
    // ---- addressing ----
    /// What an error of a link quotes is left as it was.
    QuoteNotRenamed: "vip: what an error quotes is renamed with it",
    /// Each client gets the first of the gateway's ports.
    PortShared: "vip: a port of the gateway's own is one client's",
    /// A restarted gateway does not read the ports of its flows.
    PortForgotten: "vip: a flow keeps its port, also beyond the process",
    // ---- memory ----
    /// What the client has is kept all the same.
    ShownNeverTrimmed: "I9: what is held is bounded by windows",
}

#[cfg(feature = "planted-bugs")]
mod chosen {
    use std::sync::atomic::{AtomicU8, AtomicU64};

    /// Number of the bug that is planted, from 1; 0 for none.
    pub static BUG: AtomicU8 = AtomicU8::new(0);
    pub static STRUCK: AtomicU64 = AtomicU64::new(0);
}

/// A frame as the engine takes it: its own, but for [`Bug::LaunderChecksum`].
pub fn laundered(mut frame: Frame) -> Frame {
    if on(Bug::LaunderChecksum) && parse::parse(&frame) == Err(Malformed::TcpChecksum) {
        let vouched = CsumSpot { start: 34, offset: 16 };
        frame.set_offload(Offload { needs_csum: Some(vouched), ..frame.offload() });
    }
    frame
}

/// Of `both` bytes the first `same` are equal: so many, but for [`Bug::LastByteUncompared`].
pub fn equal_bytes(same: usize, both: usize) -> usize {
    let is_last = same + 1 == both;
    if is_last && on(Bug::LastByteUncompared) { both } else { same }
}

/// Plants `bug`, or none, and begins to count anew.
#[cfg(feature = "planted-bugs")]
pub fn choose(bug: Option<Bug>) {
    use std::sync::atomic::Ordering::Relaxed;
    chosen::BUG.store(bug.map_or(0, |b| b as u8 + 1), Relaxed);
    chosen::STRUCK.store(0, Relaxed);
}

/// How often the planted bug was asked for, and so at most did anything.
#[cfg(feature = "planted-bugs")]
pub fn struck() -> u64 {
    chosen::STRUCK.load(std::sync::atomic::Ordering::Relaxed)
}

/// Whether `bug` is planted.
#[cfg(feature = "planted-bugs")]
pub fn on(bug: Bug) -> bool {
    use std::sync::atomic::Ordering::Relaxed;
    let is_on = chosen::BUG.load(Relaxed) == bug as u8 + 1;
    if is_on {
        chosen::STRUCK.fetch_add(1, Relaxed);
    }
    is_on
}

/// Whether `bug` is planted: never in a build without the feature.
#[cfg(not(feature = "planted-bugs"))]
pub const fn on(_: Bug) -> bool {
    false
}
