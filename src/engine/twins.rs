//! UDP answers of both servers. The primary's is shown at once: a datagram has no stream in which
//! it could wait. Whether the backup says the same is found out afterwards, for the counters.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use super::event::Event;
use super::time::{Duration, Instant};
use super::{LegId, Output};

/// How long a datagram waits for its twin.
const WAIT: Duration = Duration::from_millis(200);
/// Datagrams that wait at one time; the twin of any further one is not looked for.
const WAITING_MAX: usize = 4096;

/// A datagram's two ends, its content, and who said it.
type Said = (SocketAddr, SocketAddr, u64, LegId);

/// Equal datagrams of one server.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    waiting: u32,
    /// Of those in the queue, how many have met their twin.
    met: u32,
}

/// Datagrams of which one server's copy was heard.
#[derive(Debug, Default)]
pub struct Twins {
    counts: BTreeMap<Said, Count>,
    /// All that have not had their time, oldest first.
    queue: VecDeque<(Instant, Said)>,
}

impl Twins {
    /// A server's datagram: the twin of one heard before, or one that waits for its own.
    pub fn heard(
        &mut self,
        now: Instant,
        leg: LegId,
        ends: (SocketAddr, SocketAddr),
        payload: &[u8],
        out: &mut VecDeque<Output>,
    ) {
        let mut hasher = DefaultHasher::new();
        payload.hash(&mut hasher);
        let content = hasher.finish();
        let twin = (ends.0, ends.1, content, leg.other());
        if let Some(count) = self.counts.get_mut(&twin).filter(|c| c.waiting > 0) {
            count.waiting -= 1;
            count.met += 1;
            return out.push_back(Output::Event(Event::DatagramJudged { only: None }));
        }
        if self.queue.len() < WAITING_MAX {
            let said = (ends.0, ends.1, content, leg);
            self.counts.entry(said).or_default().waiting += 1;
            self.queue.push_back((now + WAIT, said));
        }
    }

    /// When the oldest has waited long enough.
    pub fn next_timer(&self) -> Option<Instant> {
        self.queue.front().map(|&(until, _)| until)
    }

    /// Whose twin did not come was said by one server only.
    pub fn on_time(&mut self, now: Instant, out: &mut VecDeque<Output>) {
        while let Some(&(_, said)) = self.queue.front().filter(|(until, _)| *until <= now) {
            self.queue.pop_front();
            let Some(count) = self.counts.get_mut(&said) else { continue };
            if count.met > 0 {
                count.met -= 1;
            } else {
                count.waiting -= 1;
                out.push_back(Output::Event(Event::DatagramJudged { only: Some(said.3) }));
            }
            if count.met == 0 && count.waiting == 0 {
                self.counts.remove(&said);
            }
        }
    }
}
