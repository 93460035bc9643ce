//! Captures as conversations: read, compared, said again.
//!
//! Reading order: [`capture`] (a file that can be read again and again) · [`talks`] (which packet
//! belongs to which conversation) · [`voices`] (what its two sides said, in order) · [`walk`] (one
//! way through a capture) · [`rules`] and [`lane`] (what may differ, and where two versions part)
//! · [`pairs`] (which conversation of one capture is which of the other) · [`mod@diff`] · [`place`]
//! and [`view`] (what a position is called, and how it is shown) · [`survey`], [`split`] and
//! [`anonymize`] (a capture told, cut, and made fit to be shown) · [`ftp`], [`transfers`] and
//! [`desk`] (what belongs together in FTP) · [`cookies`] (what servers set and clients return) ·
//! [`pieces`], [`sockets`] and [`stack`] (what each server is told, by whose TCP) · [`version`],
//! [`player`] and [`run`] (the conversations said again to live servers).
//!
//! Nothing here keeps a capture: what a step needs again is read again.

pub mod anonymize;
pub mod capture;
mod cookies;
mod desk;
pub mod diff;
mod ftp;
mod lane;
pub mod pairs;
mod pieces;
mod place;
mod player;
pub mod report;
pub mod rules;
mod run;
mod sockets;
pub mod split;
mod stack;
pub mod survey;
pub mod talks;
mod transfers;
mod version;
pub mod view;
mod voices;
pub mod walk;

pub use capture::{Capture, Unreadable};
pub use diff::{Difference, Ends, Options, Report, Verdict, diff};
pub use lane::{How, Parting};
pub use player::{Outcome, Parted, Servers};
pub use rules::Rules;
pub use run::{Order, Progress, ReplayError, Replayed, replay};
pub use stack::{Via, ViaError};
pub use talks::{Side, Talk};
pub use voices::End;
