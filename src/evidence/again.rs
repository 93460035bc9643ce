//! The engine run again over evidence: the same inputs at the same times have to give the same
//! frames, byte for byte, and the same events.

use std::collections::VecDeque;
use std::path::Path;

use super::desk::exactly;
use super::file::{Evidence, NotEvidence, Said};
use super::recorder::is_noted;
use super::ring::Start;
use crate::config::Config;
use crate::engine::{Engine, Event, Input, Instant, Link, Output};
use crate::observe::describe::describe;
use crate::wire::{Frame, checksum};

/// What came of it.
#[derive(Debug)]
pub struct Again {
    /// Packets that went in.
    pub packets_in: usize,
    /// Other inputs.
    pub others_in: usize,
    /// Packets that were sent as they had been.
    pub packets_same: usize,
    /// Bytes of these.
    pub bytes_same: u64,
    /// What happened, in sentences, and the same as it had.
    pub events: Vec<String>,
    /// The first packet or event that is not the same.
    pub first: Option<Mismatch>,
}

/// Where the two runs part.
#[derive(Debug)]
pub struct Mismatch {
    /// The packet of the file that went in last.
    pub after_packet: Option<u64>,
    /// The engine's time.
    pub at: Instant,
    /// What it was, then and now; none if there was nothing.
    pub then: Option<Thing>,
    /// See `then`.
    pub now: Option<Thing>,
}

/// One side of a [`Mismatch`].
#[derive(Debug)]
pub enum Thing {
    /// A packet, and its number in the file if it stands there.
    Packet(Link, Vec<u8>, Option<u64>),
    /// An event.
    Event(String),
}

/// Why it cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum CannotRun {
    /// The file.
    #[error("{0}")]
    File(#[from] NotEvidence),
    /// Its configuration.
    #[error("its configuration is not read by this version:\n{0}")]
    Config(crate::config::Problems),
    /// There was too much when it begins.
    #[error(
        "it can be looked at and not run again: when it begins the gateway had too much under way \
         to be written down without standing still"
    )]
    Unknown,
    /// Something rare was under way when it begins.
    #[error(
        "it can be looked at and not run again: when it begins, {0} connections were in the midst \
         of what is not written into a file (a SYN cookie taken, a SYN inside a connection)"
    )]
    LeftOut(u32),
    /// Another engine.
    #[error("it can be looked at; what the engine was is read by shadowvm {0} only")]
    Version(String),
}

/// Runs it.
pub fn again(evidence: &Evidence, file: &Path) -> Result<Again, CannotRun> {
    let said = evidence.said()?;
    let config = Config::parse(&evidence.run.config, file).map_err(CannotRun::Config)?;
    let mut rerun = Rerun {
        engine: match evidence.start.clone() {
            Start::Unknown => return Err(CannotRun::Unknown),
            Start::State(snapshot) if snapshot.left_out > 0 => {
                return Err(CannotRun::LeftOut(snapshot.left_out));
            }
            Start::State(snapshot) => Engine::resume(config.engine(), &snapshot)
                .ok_or(CannotRun::Version(evidence.case.version.clone()))?,
            Start::Made { seed, at, records } => {
                let mut engine = Engine::new(config.engine(), seed, at);
                if !records.is_empty() {
                    engine.handle(at, Input::Restore(records));
                }
                engine
            }
        },
        evidence,
        expected: evidence.run.noted.iter().map(String::as_str).collect(),
        last_in: None,
        found: Again {
            packets_in: 0,
            others_in: 0,
            packets_same: 0,
            bytes_same: 0,
            events: Vec::new(),
            first: None,
        },
    };
    let mut said = said.into_iter().peekable();
    let mut next = 0;
    while let Some(step) = said.next() {
        let Said::Input(at, input) = step else {
            // A packet that was sent before anything went in.
            rerun.part(rerun.evidence.packets[next].at, Some(rerun.recorded(next)), None);
            break;
        };
        match &input {
            Input::Frame(..) => {
                rerun.found.packets_in += 1;
                rerun.last_in = Some(next);
                next += 1;
            }
            _ => rerun.found.others_in += 1,
        }
        let mut sent = VecDeque::new();
        while let Some(&Said::Sent(index)) = said.peek() {
            sent.push_back(index);
            next = index + 1;
            said.next();
        }
        if !rerun.step(at, input, sent) {
            break;
        }
    }
    if rerun.found.first.is_none()
        && let Some(event) = rerun.expected.front()
    {
        let then = Some(Thing::Event((*event).to_owned()));
        let at = rerun.evidence.packets.last().map_or(Instant::ZERO, |packet| packet.at);
        rerun.part(at, then, None);
    }
    Ok(rerun.found)
}

struct Rerun<'a> {
    engine: Engine,
    evidence: &'a Evidence,
    expected: VecDeque<&'a str>,
    last_in: Option<usize>,
    found: Again,
}

impl Rerun<'_> {
    /// One input, after which these packets were sent; false if something else was.
    fn step(&mut self, at: Instant, input: Input, mut sent: VecDeque<usize>) -> bool {
        self.engine.handle(at, input);
        while let Some(output) = self.engine.poll_output() {
            let is_same = match output {
                Output::Transmit(link, frame) => self.sent(at, sent.pop_front(), link, frame),
                Output::Event(event) if is_noted(&event) => self.happened(at, &event),
                _ => true,
            };
            if !is_same {
                return false;
            }
        }
        match sent.pop_front() {
            None => true,
            Some(index) => self.part(at, Some(self.recorded(index)), None),
        }
    }

    fn sent(&mut self, at: Instant, then: Option<usize>, link: Link, frame: Frame) -> bool {
        if let Some(packet) = then.map(|index| &self.evidence.packets[index])
            && packet.link == link
            && packet.frame.offload() == frame.offload()
            && is_equal(&packet.frame, &frame)
        {
            self.found.packets_same += 1;
            self.found.bytes_same += frame.len() as u64;
            return true;
        }
        let then = then.map(|index| self.recorded(index));
        self.part(at, then, Some(Thing::Packet(link, finished(&frame), None)))
    }

    fn happened(&mut self, at: Instant, event: &Event) -> bool {
        let (then, now) = (self.expected.pop_front(), exactly(at, event));
        if then == Some(now.as_str()) {
            self.found.events.push(describe(event, &self.evidence.case.servers));
            return true;
        }
        let then = then.map(|then| Thing::Event(then.to_owned()));
        self.part(at, then, Some(Thing::Event(now)))
    }

    fn recorded(&self, index: usize) -> Thing {
        let packet = &self.evidence.packets[index];
        Thing::Packet(packet.link, finished(&packet.frame), Some(packet.number))
    }

    fn part(&mut self, at: Instant, then: Option<Thing>, now: Option<Thing>) -> bool {
        let after_packet = self.last_in.map(|index| self.evidence.packets[index].number);
        self.found.first = Some(Mismatch { after_packet, at, then, now });
        false
    }
}

fn is_equal(a: &Frame, b: &Frame) -> bool {
    // Where a head ends is no matter of the link's.
    a.len() == b.len() && (a.head() == b.head() && a.body() == b.body() || a.to_vec() == b.to_vec())
}

fn finished(frame: &Frame) -> Vec<u8> {
    let mut frame = frame.clone();
    checksum::complete(&mut frame);
    frame.to_vec()
}
