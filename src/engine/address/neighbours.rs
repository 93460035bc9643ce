//! Which Ethernet address a next hop has: asked for, remembered, doubted after a while, given up.
//!
//! Resolving -> Resolved <-> doubted, that is asked again while it is used; Resolving -> Failed ->
//! Resolving. Frames wait while it is asked, few and not for long. Everything is bounded, and whom
//! nobody has answered for never displaces who is known: a flood of addresses that nobody has costs
//! only those. Read first: RFC 826, RFC 1122 2.3.2, RFC 4861 7.2 and 7.3, RFC 6583.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use crate::engine::pack::{Pack, Reader, Writer, fields};
use crate::engine::time::{Duration, Instant};
use crate::wire::{Frame, Mac};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Addresses remembered.
const ENTRIES_MAX: usize = 4096;
/// Of these, such as have not answered.
const UNANSWERED_MAX: usize = 512;
/// Frames that wait for one address, and their bytes for all.
const WAITING_FRAMES_MAX: usize = 256;
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How long each question waits for its answer; after the last one the address has failed.
const WAITS: [Duration; 4] = [ms(50), ms(150), ms(300), ms(500)];
/// Nobody is asked again for an address that has failed before this.
const FAILED_FOR: Duration = ms(1000);
/// An answer is believed this long; then it is asked again, at the address known, while it is used.
const BELIEVED_FOR: Duration = ms(30_000);
const DOUBT_EVERY: Duration = ms(1000);
const DOUBTS: u8 = 3;

/// How far an address is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourState {
    /// It is asked for since then.
    Resolving {
        /// When the first question left.
        since: Instant,
    },
    /// It is there.
    Resolved {
        /// Where.
        mac: Mac,
        /// When it answered last.
        at: Instant,
    },
    /// Nobody answers for it.
    Failed {
        /// When it was given up.
        since: Instant,
    },
}

/// A question that has to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Who is looked for.
    pub target: IpAddr,
    /// Where it was last; everybody is asked if nowhere.
    pub at: Option<Mac>,
}

/// What became of a frame.
#[derive(Debug)]
pub enum Way {
    /// It can leave, to this address.
    Open(Mac, Frame),
    /// It waits for an answer.
    Waits,
    /// Nobody answers, or too much waits.
    Closed,
}

#[derive(Debug)]
struct Entry {
    state: NeighbourState,
    /// Questions without an answer.
    asked: u8,
    used_at: Instant,
    waiting: VecDeque<Frame>,
    timer: Option<Instant>,
}

/// The neighbours on one link.
#[derive(Debug, Default)]
pub struct Neighbours {
    entries: BTreeMap<IpAddr, Entry>,
    timers: BTreeSet<(Instant, IpAddr)>,
    /// Never forgotten: who is in the configuration.
    kept: BTreeSet<IpAddr>,
    unanswered: usize,
    waiting_bytes: usize,
}

impl Neighbours {
    /// `ip` is one that the configuration names.
    pub fn keep(&mut self, ip: IpAddr) {
        self.kept.insert(ip);
    }

    /// Those that the configuration names; none is one that was not asked for yet.
    pub fn kept(&self) -> impl Iterator<Item = (IpAddr, Option<NeighbourState>)> + '_ {
        self.kept.iter().map(|ip| (*ip, self.entries.get(ip).map(|entry| entry.state)))
    }

    /// Where `ip` is, and when that was confirmed.
    pub fn known(&self, ip: IpAddr) -> Option<(Mac, Instant)> {
        match self.entries.get(&ip)?.state {
            NeighbourState::Resolved { mac, at } => Some((mac, at)),
            NeighbourState::Resolving { .. } | NeighbourState::Failed { .. } => None,
        }
    }

    /// Whether anything is noted of `ip`.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.entries.contains_key(&ip)
    }

    /// A frame to `ip` wants to leave.
    pub fn send(&mut self, now: Instant, ip: IpAddr, frame: Frame, asks: &mut Vec<Ask>) -> Way {
        let Some(entry) = self.entries.get_mut(&ip) else {
            return match self.begin(now, ip, asks) {
                true => self.wait(ip, frame),
                false => Way::Closed,
            };
        };
        entry.used_at = now;
        match entry.state {
            NeighbourState::Resolved { mac, at } => {
                if entry.timer.is_none() && now.since(at) >= BELIEVED_FOR {
                    self.doubt(now, ip, mac, asks);
                }
                Way::Open(mac, frame)
            }
            NeighbourState::Resolving { .. } => self.wait(ip, frame),
            NeighbourState::Failed { since } if now.since(since) >= FAILED_FOR => {
                match self.begin(now, ip, asks) {
                    true => self.wait(ip, frame),
                    false => Way::Closed,
                }
            }
            NeighbourState::Failed { .. } => Way::Closed,
        }
    }

    /// `ip` was heard at `mac`: by an answer, or because it asked. Returns what waited for that.
    pub fn heard(&mut self, now: Instant, ip: IpAddr, mac: Mac) -> VecDeque<Frame> {
        if mac.is_multicast() || ip.is_multicast() || ip.is_unspecified() {
            return VecDeque::new();
        }
        if !self.entries.contains_key(&ip) && !self.make_room() {
            return VecDeque::new();
        }
        let state = NeighbourState::Resolved { mac, at: now };
        self.set(ip, state, None, now);
        let waiting = self.entries.get_mut(&ip).map(|entry| {
            entry.asked = 0;
            std::mem::take(&mut entry.waiting)
        });
        let waiting = waiting.unwrap_or_default();
        self.waiting_bytes -= waiting.iter().map(Frame::len).sum::<usize>();
        waiting
    }

    /// The link was away: everybody is asked for anew, whom the configuration names at once.
    pub fn restart(&mut self, now: Instant, asks: &mut Vec<Ask>) {
        let kept = std::mem::take(&mut self.kept);
        *self = Self { kept, ..Self::default() };
        for ip in self.kept.clone() {
            self.begin(now, ip, asks);
        }
    }

    /// When the next question is due, or given up.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Asks again, and gives up; returns how many frames waited in vain.
    pub fn on_time(&mut self, now: Instant, asks: &mut Vec<Ask>) -> usize {
        let due: Vec<IpAddr> =
            self.timers.iter().take_while(|(at, _)| *at <= now).map(|&(_, ip)| ip).collect();
        due.into_iter().map(|ip| self.on_due(now, ip, asks)).sum()
    }

    fn on_due(&mut self, now: Instant, ip: IpAddr, asks: &mut Vec<Ask>) -> usize {
        let Some(entry) = self.entries.get_mut(&ip) else { return 0 };
        match entry.state {
            NeighbourState::Resolving { .. } => {
                if let Some(wait) = WAITS.get(usize::from(entry.asked)) {
                    entry.asked += 1;
                    asks.push(Ask { target: ip, at: None });
                    self.set_timer(ip, Some(now + *wait));
                    return 0;
                }
                let lost = std::mem::take(&mut entry.waiting);
                self.waiting_bytes -= lost.iter().map(Frame::len).sum::<usize>();
                let used_at = entry.used_at;
                let state = NeighbourState::Failed { since: now };
                self.set(ip, state, Some(now + FAILED_FOR), used_at);
                lost.len()
            }
            NeighbourState::Resolved { mac, .. } if entry.asked < DOUBTS => {
                self.doubt(now, ip, mac, asks);
                0
            }
            NeighbourState::Resolved { .. } => {
                self.begin(now, ip, asks);
                0
            }
            NeighbourState::Failed { .. } => {
                match self.kept.contains(&ip) {
                    true => self.set_timer(ip, None),
                    false => self.forget(ip),
                }
                0
            }
        }
    }

    /// Asks for `ip`, of whom nothing is known; false if too many have not answered.
    fn begin(&mut self, now: Instant, ip: IpAddr, asks: &mut Vec<Ask>) -> bool {
        let is_full = self.unanswered >= UNANSWERED_MAX && !self.kept.contains(&ip);
        if !self.entries.contains_key(&ip) && (is_full || !self.make_room()) {
            return false;
        }
        self.set(ip, NeighbourState::Resolving { since: now }, Some(now + WAITS[0]), now);
        if let Some(entry) = self.entries.get_mut(&ip) {
            entry.asked = 1;
        }
        asks.push(Ask { target: ip, at: None });
        true
    }

    fn doubt(&mut self, now: Instant, ip: IpAddr, mac: Mac, asks: &mut Vec<Ask>) {
        if let Some(entry) = self.entries.get_mut(&ip) {
            entry.asked += 1;
        }
        asks.push(Ask { target: ip, at: Some(mac) });
        self.set_timer(ip, Some(now + DOUBT_EVERY));
    }

    /// Keeps a frame until `ip` has answered; the oldest gives way.
    fn wait(&mut self, ip: IpAddr, frame: Frame) -> Way {
        let Some(entry) = self.entries.get_mut(&ip) else { return Way::Closed };
        if self.waiting_bytes + frame.len() > WAITING_BYTES_MAX {
            return Way::Closed;
        }
        self.waiting_bytes += frame.len();
        entry.waiting.push_back(frame);
        if entry.waiting.len() > WAITING_FRAMES_MAX
            && let Some(oldest) = entry.waiting.pop_front()
        {
            self.waiting_bytes -= oldest.len();
            return Way::Closed;
        }
        Way::Waits
    }

    /// Makes room for one more: who was used least lately is forgotten.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < ENTRIES_MAX {
            return true;
        }
        let is_known = |entry: &Entry| matches!(entry.state, NeighbourState::Resolved { .. });
        let known = self.entries.iter().filter(|(ip, e)| is_known(e) && !self.kept.contains(ip));
        let oldest = known.min_by_key(|(_, entry)| entry.used_at).map(|(ip, _)| *ip);
        oldest.map(|ip| self.forget(ip)).is_some()
    }

    /// The one way to another state.
    fn set(&mut self, ip: IpAddr, to: NeighbourState, timer: Option<Instant>, used_at: Instant) {
        let is_open = |state: &NeighbourState| !matches!(state, NeighbourState::Resolved { .. });
        let entry = self.entries.entry(ip).or_insert_with(|| {
            self.unanswered += usize::from(is_open(&to));
            Entry { state: to, asked: 0, used_at, waiting: VecDeque::new(), timer: None }
        });
        self.unanswered += usize::from(is_open(&to));
        self.unanswered -= usize::from(is_open(&entry.state));
        (entry.state, entry.used_at) = (to, used_at);
        self.set_timer(ip, timer);
    }

    fn set_timer(&mut self, ip: IpAddr, timer: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(&ip) else { return };
        let old = std::mem::replace(&mut entry.timer, timer);
        old.map(|at| self.timers.remove(&(at, ip)));
        timer.map(|at| self.timers.insert((at, ip)));
    }

    fn forget(&mut self, ip: IpAddr) {
        self.set_timer(ip, None);
        if let Some(entry) = self.entries.remove(&ip) {
            let is_known = matches!(entry.state, NeighbourState::Resolved { .. });
            self.unanswered -= usize::from(!is_known);
            self.waiting_bytes -= entry.waiting.iter().map(Frame::len).sum::<usize>();
        }
    }
}

fields!(Entry { state, asked, used_at, waiting, timer });
fields!(Neighbours { entries, timers, kept, unanswered, waiting_bytes });

impl Pack for NeighbourState {
    fn pack(&self, w: &mut Writer) {
        match *self {
            Self::Resolving { since } => (0u8, since).pack(w),
            Self::Resolved { mac, at } => (1u8, (mac, at)).pack(w),
            Self::Failed { since } => (2u8, since).pack(w),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        match u8::unpack(r) {
            0 => Self::Resolving { since: Pack::unpack(r) },
            1 => {
                let (mac, at) = Pack::unpack(r);
                Self::Resolved { mac, at }
            }
            _ => Self::Failed { since: Pack::unpack(r) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytes::{Bytes, BytesMut};

    use super::*;
    use crate::wire::Offload;

    const HOP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn frame(len: usize) -> Frame {
        Frame::from_parts(BytesMut::zeroed(14), Bytes::from(vec![0; len]), Offload::default())
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(1000 + millis)
    }

    fn ip(n: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n as u32))
    }

    /// Lets time pass until `until`, as timers ask; returns the questions and frames lost.
    fn pass(all: &mut Neighbours, until: Instant) -> (Vec<Ask>, usize) {
        let (mut asks, mut lost) = (Vec::new(), 0);
        while let Some(due) = all.next_timer().filter(|due| *due <= until) {
            lost += all.on_time(due, &mut asks);
        }
        (asks, lost)
    }

    #[test]
    fn a_frame_waits_for_the_answer_and_leaves_with_it() {
        let (mut all, mut asks) = (Neighbours::default(), Vec::new());
        assert!(matches!(all.send(at(0), HOP, frame(1), &mut asks), Way::Waits));
        assert!(matches!(all.send(at(1), HOP, frame(2), &mut asks), Way::Waits));
        assert_eq!(asks, [Ask { target: HOP, at: None }], "one question for both");
        let waited = all.heard(at(2), HOP, MAC);
        assert_eq!(waited.iter().map(Frame::len).collect::<Vec<_>>(), [15, 16], "in order");
        assert!(matches!(all.send(at(3), HOP, frame(3), &mut asks), Way::Open(MAC, _)));
        assert_eq!((asks.len(), all.next_timer(), all.waiting_bytes), (1, None, 0));
    }

    #[test]
    fn who_does_not_answer_is_asked_again_given_up_and_asked_anew_later() {
        let (mut all, mut asks) = (Neighbours::default(), Vec::new());
        all.keep(HOP);
        assert!(matches!(all.send(at(0), HOP, frame(1), &mut asks), Way::Waits));
        let (again, lost) = pass(&mut all, at(1000));
        assert_eq!((again.len(), lost), (WAITS.len() - 1, 1));
        assert_eq!(
            all.kept().next(),
            Some((HOP, Some(NeighbourState::Failed { since: at(1000) })))
        );
        assert!(matches!(all.send(at(1500), HOP, frame(1), &mut asks), Way::Closed));
        assert!(matches!(all.send(at(2100), HOP, frame(1), &mut asks), Way::Waits));
        assert_eq!(all.heard(at(2101), HOP, MAC).len(), 1);
        assert_eq!((all.unanswered, all.waiting_bytes), (0, 0));
    }

    #[test]
    fn an_old_answer_is_doubted_while_it_is_used_and_lost_if_nobody_confirms_it() {
        let (mut all, mut asks) = (Neighbours::default(), Vec::new());
        all.heard(at(0), HOP, MAC);
        assert!(matches!(all.send(at(29_000), HOP, frame(1), &mut asks), Way::Open(..)));
        assert!(asks.is_empty() && all.next_timer().is_none(), "believed, and at rest");
        assert!(matches!(all.send(at(31_000), HOP, frame(1), &mut asks), Way::Open(..)));
        assert_eq!(asks, [Ask { target: HOP, at: Some(MAC) }]);
        all.heard(at(31_001), HOP, MAC);
        assert_eq!(all.next_timer(), None, "confirmed");
        asks.clear();
        all.send(at(70_000), HOP, frame(1), &mut asks);
        let (again, _) = pass(&mut all, at(74_000));
        assert_eq!(again[..2], [Ask { target: HOP, at: Some(MAC) }; 2]);
        assert!(again[2..].contains(&Ask { target: HOP, at: None }), "now everybody is asked");
        assert!(all.known(HOP).is_none());
    }

    #[test]
    fn addresses_that_nobody_has_cost_only_themselves() {
        let (mut all, mut asks) = (Neighbours::default(), Vec::new());
        all.heard(at(0), HOP, MAC);
        for n in 0..10_000 {
            all.send(at(1), ip(n), frame(1), &mut asks);
        }
        assert_eq!(all.unanswered, UNANSWERED_MAX);
        assert!(matches!(all.send(at(2), HOP, frame(1), &mut asks), Way::Open(..)));
        pass(&mut all, at(10_000));
        assert_eq!((all.unanswered, all.entries.len(), all.waiting_bytes), (0, 1, 0));
        for n in 0..10_000 {
            all.heard(at(20_000 + n as u64), ip(n), MAC);
        }
        assert_eq!(all.entries.len(), ENTRIES_MAX);
        assert!(all.known(ip(9999)).is_some() && all.known(ip(0)).is_none(), "the oldest goes");
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut all, mut asks) = (Neighbours::default(), Vec::new());
        let refused =
            (0..300).filter(|_| matches!(all.send(at(0), HOP, frame(100), &mut asks), Way::Closed));
        assert_eq!(refused.count(), 300 - WAITING_FRAMES_MAX);
        for n in 0..200 {
            all.send(at(0), ip(n), frame(65_000), &mut asks);
        }
        assert!(all.waiting_bytes <= WAITING_BYTES_MAX);
    }

    #[test]
    fn a_link_that_returns_asks_for_whom_it_needs() {
        let (mut all, mut asks) = (Neighbours::default(), Vec::new());
        all.keep(HOP);
        all.heard(at(0), HOP, MAC);
        all.heard(at(0), ip(1), MAC);
        all.restart(at(5), &mut asks);
        assert_eq!(asks, [Ask { target: HOP, at: None }]);
        assert!(all.known(HOP).is_none() && !all.has(ip(1)));
    }
}
