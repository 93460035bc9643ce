//! Deliberate defects, for measuring the tests (feature `planted-bugs`). No release contains them:
//! without the feature every question is answered `false` at compile time.

use crate::wire::{CsumSpot, Frame, Malformed, Offload, parse};

/// One defect, and the sentence of the contract that it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// The ack shown is the primary's, not the lower of the two.
    NoAckMin = 1,
    /// The window shown is the primary's, not the lower edge.
    BackupWindowIgnored,
    /// A window pinned by one leg arms no timer.
    PinnedWindowNoTimer,
    /// One leg's FIN is shown while the other leg goes on.
    EarlyFinReleased,
    /// The backup's delta has the wrong sign.
    DeltaSign,
    /// Absorbed duplicates are not reported to the leg.
    NoDsackToLeg,
    /// A content sync moves TCP positions.
    ContentSyncRewrites,
    /// A leg is sent acks beyond what it has sent.
    NoI6Clamp,
    /// Positions are compared as raw 32-bit numbers.
    WrapCompare,
    /// A leg that catches up behind the client's ack hears nothing.
    DropLv1,
    /// An ack that advances without data is not sent.
    DropLv3,
    /// A hold has no timer.
    DropLv5,
    /// A FIN is released at once, unpaired.
    FinWithoutHold,
    /// Both legs' duplicate acks are forwarded.
    BothDupAcks,
    /// A frame whose checksum does not hold is used and summed anew.
    LaunderChecksum,
    /// A fenced leg is still heard.
    FencedLegHeard,
    /// The timestamp shown may go back.
    TsvalBack,
    /// A masked span is released before both copies are complete.
    SpanNotAtomic,
    /// Frames of an older generation of the 4-tuple are accepted.
    OldGeneration,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::NoAckMin,
        Self::BackupWindowIgnored,
        Self::PinnedWindowNoTimer,
        Self::EarlyFinReleased,
        Self::DeltaSign,
        Self::NoDsackToLeg,
        Self::ContentSyncRewrites,
        Self::NoI6Clamp,
        Self::WrapCompare,
        Self::DropLv1,
        Self::DropLv3,
        Self::DropLv5,
        Self::FinWithoutHold,
        Self::BothDupAcks,
        Self::LaunderChecksum,
        Self::FencedLegHeard,
        Self::TsvalBack,
        Self::SpanNotAtomic,
        Self::OldGeneration,
    ];

    /// The sentence that it breaks.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NoAckMin => "I2: the ack shown is below both servers' acks",
            Self::BackupWindowIgnored => "I3: the window edge shown is below both servers' edges",
            Self::PinnedWindowNoTimer => "LV5: a pinned window has a deadline",
            Self::EarlyFinReleased => "I7: a FIN is shown only where both streams end",
            Self::DeltaSign => "architecture: leg space = client space - delta",
            Self::NoDsackToLeg => "1.3: absorbed duplicates are reported as D-SACK",
            Self::ContentSyncRewrites => "1.14: a content sync changes no TCP position",
            Self::NoI6Clamp => "I6: an ack sent to a leg is at most what it has sent",
            Self::WrapCompare => "I11: positions are 64 bits, never raw numbers",
            Self::DropLv1 => "LV1: a leg that catches up under the client's ack is told at once",
            Self::DropLv3 => "LV3: an ack that advances reaches the client",
            Self::DropLv5 => "LV5: every hold has a deadline",
            Self::FinWithoutHold => "1.8: a FIN of one leg is held and compared",
            Self::BothDupAcks => "1.3: never both legs' duplicate acks",
            Self::LaunderChecksum => "I13: unverified bytes never get a new checksum",
            Self::FencedLegHeard => "I12: nothing from a fenced leg",
            Self::TsvalBack => "I8: the timestamp shown never decreases",
            Self::SpanNotAtomic => "1.12: a masked span is atomic",
            Self::OldGeneration => "I12: frames of an older generation are dropped",
        }
    }
}

#[cfg(feature = "planted-bugs")]
static CHOSEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// A frame as the engine takes it: its own, but for [`Bug::LaunderChecksum`].
pub fn laundered(mut frame: Frame) -> Frame {
    if on(Bug::LaunderChecksum) && parse::parse(&frame) == Err(Malformed::TcpChecksum) {
        let vouched = CsumSpot { start: 34, offset: 16 };
        frame.set_offload(Offload { needs_csum: Some(vouched), ..frame.offload() });
    }
    frame
}

/// Plants `bug`, or none.
#[cfg(feature = "planted-bugs")]
pub fn choose(bug: Option<Bug>) {
    CHOSEN.store(bug.map_or(0, |b| b as u8), std::sync::atomic::Ordering::Relaxed);
}

/// Whether `bug` is planted.
#[cfg(feature = "planted-bugs")]
pub fn on(bug: Bug) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Whether `bug` is planted: never in a build without the feature.
#[cfg(not(feature = "planted-bugs"))]
pub const fn on(_: Bug) -> bool {
    false
}
