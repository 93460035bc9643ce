//! A TCP of our own, for what smoltcp does not do and real kernels do: selective acknowledgments
//! and recovery by them, timestamps from any clock, window scaling at its limits, super-frames,
//! small and odd segments, challenge acks, PAWS, and legal habits that are seldom met.
//!
//! It shares no code with the engine. Reading order: [`habits`] (what kind of stack), [`stack`] (a
//! host), `conn` (one connection), `send` and `receive` (its halves), `congestion`, `timers`,
//! `segment` (frames), `clock`, `ranges`.

pub mod clock;
pub mod habits;
pub mod stack;

mod congestion;
pub mod conn;
pub mod ranges;
mod receive;
mod segment;
mod send;
mod timers;

#[cfg(test)]
mod tests;

pub use conn::Conn;
