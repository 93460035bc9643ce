//! The writer thread: events to the event log, to tracing, and to the list of recent ones.
//!
//! It may wait for a slow disk or a full pipe; the packet loop does not wait for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};

use serde_json::Value;
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::describe::{Level, describe, level};
use super::json::{event_json, event_name};
use super::{Board, is_per_packet};
use crate::engine::Event;

/// Lines of one kind of event in one second, above debug.
const LINES_PER_SECOND_MAX: u32 = 10;

/// Takes events until the loop hangs up.
pub(super) fn run(mut incoming: Receiver<(u64, Event)>, board: &Board, events: Option<File>) {
    let mut log = events.map(BufWriter::new);
    let mut limiter = Limiter::default();
    loop {
        let (t_ns, event) = match incoming.try_recv() {
            Ok(next) => next,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                flush(&mut log);
                match incoming.blocking_recv() {
                    Some(next) => next,
                    None => break,
                }
            }
        };
        take(t_ns, &event, board, &mut log, &mut limiter);
    }
    flush(&mut log);
}

fn take(
    t_ns: u64,
    event: &Event,
    board: &Board,
    log: &mut Option<BufWriter<File>>,
    limiter: &mut Limiter,
) {
    let loud = level(event);
    let is_kept = !matches!(loud, Level::Debug | Level::Trace);
    let is_logged = log.is_some() && !is_per_packet(event);
    if is_kept || is_logged {
        let object = event_json(t_ns, event, &board.names);
        if is_logged {
            write_line(log, &object);
        }
        if is_kept {
            board.keep(object);
        }
    }
    let dropped = match limiter.admit(t_ns, event_name(event), is_kept) {
        Admit::Yes { dropped } => dropped,
        Admit::No => return,
    };
    say(loud, event, &board.names, dropped);
}

fn write_line(log: &mut Option<BufWriter<File>>, object: &Value) {
    let Some(file) = log else { return };
    if let Err(error) = writeln!(file, "{object}") {
        tracing::error!(%error, "the event log cannot be written and is given up; check the disk");
        *log = None;
    }
}

fn flush(log: &mut Option<BufWriter<File>>) {
    if let Some(file) = log
        && let Err(error) = file.flush()
    {
        tracing::error!(%error, "the event log cannot be written and is given up; check the disk");
        *log = None;
    }
}

fn say(loud: Level, event: &Event, names: &[String; 2], dropped: u32) {
    let name = event_name(event);
    macro_rules! line {
        ($level:ident) => {
            if tracing::enabled!(tracing::Level::$level) {
                let text = describe(event, names);
                if dropped > 0 {
                    tracing::event!(tracing::Level::$level, event = name, dropped, "{text}");
                } else {
                    tracing::event!(tracing::Level::$level, event = name, "{text}");
                }
            }
        };
    }
    match loud {
        Level::Error => line!(ERROR),
        Level::Warn => line!(WARN),
        Level::Info => line!(INFO),
        Level::Debug => line!(DEBUG),
        Level::Trace => line!(TRACE),
    }
}

/// Keeps a storm of one kind of event from drowning the log; the event log has them all.
#[derive(Debug, Default)]
struct Limiter {
    seen: HashMap<&'static str, Window>,
}

#[derive(Debug, Default)]
struct Window {
    second: u64,
    lines: u32,
    dropped: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Admit {
    /// Say it; `dropped` lines of its kind were not said before.
    Yes {
        dropped: u32,
    },
    No,
}

impl Limiter {
    fn admit(&mut self, t_ns: u64, name: &'static str, is_limited: bool) -> Admit {
        if !is_limited {
            return Admit::Yes { dropped: 0 };
        }
        let window = self.seen.entry(name).or_default();
        let second = t_ns / 1_000_000_000;
        if window.second != second {
            window.second = second;
            window.lines = 0;
        }
        if window.lines >= LINES_PER_SECOND_MAX {
            window.dropped += 1;
            return Admit::No;
        }
        window.lines += 1;
        Admit::Yes { dropped: std::mem::take(&mut window.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_cut_and_told() {
        let mut limiter = Limiter::default();
        let admitted = (0..50).filter(|_| limiter.admit(5, "x", true) != Admit::No).count();
        assert_eq!(admitted, 10);
        assert_eq!(limiter.admit(5, "y", true), Admit::Yes { dropped: 0 });
        assert_eq!(limiter.admit(1_000_000_000, "x", true), Admit::Yes { dropped: 40 });
        assert!((0..50).all(|_| limiter.admit(5, "z", false) == Admit::Yes { dropped: 0 }));
    }
}
