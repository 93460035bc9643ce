//! What surrounds a divergence or a failover, kept so that it can be looked at and decided again.
//!
//! Reading order: [`ring`] (what went in and out lately) · [`recorder`] (when something happens
//! that evidence is wanted of) · [`file`](mod@file) (one piece of evidence: a pcapng for everybody,
//! with what it takes to run the engine again) · [`desk`] and [`keeper`] (a thread that makes the
//! file, a process that alone may write it) · [`store`] (the directory) · [`again`] (the engine run
//! over it), [`plain`] (over a capture that is none) · [`side`] (what the two servers said).
//!
//! The packet loop never waits here. What cannot be written is counted and told once.

pub mod again;
mod desk;
pub mod file;
pub mod keeper;
pub mod plain;
pub mod recorder;
pub mod ring;
pub mod side;
pub mod store;
#[cfg(test)]
pub(crate) mod tests;

pub use desk::Desk;
pub use recorder::Recorder;
