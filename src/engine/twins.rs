//! UDP answers of both servers: which of them were said twice.
//!
//! A datagram has no stream in which it could wait, so by default the primary's is shown at once
//! and its twin is looked for afterwards, for the counters. Under [`UdpPolicy::Strict`] the
//! primary's is kept here until its twin has come or its time is up.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use super::config::UdpPolicy;
use super::event::Event;
use super::pack::fields;
use super::time::{Duration, Instant};
use super::{LegId, Output};
use crate::wire::Frame;

/// How long the twin of a datagram that was shown is looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How long a datagram is held for its twin.
const HOLD: Duration = Duration::from_millis(50);
/// Datagrams that wait at one time; the twin of any further one is not looked for.
const WAITING_MAX: usize = 4096;
/// Bytes of frames held at one time.
const HELD_BYTES_MAX: usize = 4 << 20;

/// A datagram's two ends, its content, and who said it.
type Said = (SocketAddr, SocketAddr, u64, LegId);

/// What became of a datagram that was heard.
#[derive(Debug)]
pub enum Heard {
    /// Its twin was heard before; the primary's frame, if that was held for it.
    Met(Option<Frame>),
    /// Its own twin is waited for.
    Waits,
    /// Too many wait already.
    Full,
}

/// Equal datagrams of one server.
#[derive(Debug, Default)]
struct Count {
    waiting: u32,
    /// Of those in the queue, how many have met their twin.
    met: u32,
    /// Of those that wait, the frames to be shown.
    held: VecDeque<Frame>,
}

/// Datagrams of which one server's copy was heard.
#[derive(Debug, Default)]
pub struct Twins {
    counts: BTreeMap<Said, Count>,
    /// All that have not had their time, oldest first.
    queue: VecDeque<(Instant, Said)>,
    held_bytes: usize,
}

impl Twins {
    /// A server's datagram: the twin of one heard before, or one that waits for its own; `held` is
    /// its frame if it is not shown meanwhile.
    pub fn heard(
        &mut self,
        now: Instant,
        policy: UdpPolicy,
        leg: LegId,
        ends: (SocketAddr, SocketAddr),
        payload: &[u8],
        held: Option<Frame>,
    ) -> Heard {
        let mut hasher = DefaultHasher::new();
        payload.hash(&mut hasher);
        let content = hasher.finish();
        let twin = (ends.0, ends.1, content, leg.other());
        if let Some(count) = self.counts.get_mut(&twin).filter(|c| c.waiting > 0) {
            count.waiting -= 1;
            count.met += 1;
            let held = count.held.pop_front();
            self.held_bytes -= held.as_ref().map_or(0, Frame::len);
            return Heard::Met(held);
        }
        let bytes = held.as_ref().map_or(0, Frame::len);
        if self.queue.len() >= WAITING_MAX || self.held_bytes + bytes > HELD_BYTES_MAX {
            return Heard::Full;
        }
        self.held_bytes += bytes;
        let said = (ends.0, ends.1, content, leg);
        let count = self.counts.entry(said).or_default();
        count.waiting += 1;
        count.held.extend(held);
        let wait = match policy {
            UdpPolicy::PrimaryFirst => LOOK,
            UdpPolicy::Strict => HOLD,
        };
        self.queue.push_back((now + wait, said));
        Heard::Waits
    }

    /// When the oldest has waited long enough.
    pub fn next_timer(&self) -> Option<Instant> {
        self.queue.front().map(|&(until, _)| until)
    }

    /// Whose twin did not come was said by one server only; what was held of it is given back.
    pub fn on_time(&mut self, now: Instant, out: &mut VecDeque<Output>) -> Vec<(LegId, Frame)> {
        let mut left = Vec::new();
        while let Some(&(_, said)) = self.queue.front().filter(|(until, _)| *until <= now) {
            self.queue.pop_front();
            let Some(count) = self.counts.get_mut(&said) else { continue };
            if count.met > 0 {
                count.met -= 1;
            } else {
                count.waiting -= 1;
                out.push_back(Output::Event(Event::DatagramJudged { only: Some(said.3) }));
                if let Some(frame) = count.held.pop_front() {
                    self.held_bytes -= frame.len();
                    left.push((said.3, frame));
                }
            }
            if count.met == 0 && count.waiting == 0 {
                self.counts.remove(&said);
            }
        }
        left
    }
}

fields!(Count { waiting, met, held });
fields!(Twins { counts, queue, held_bytes });
