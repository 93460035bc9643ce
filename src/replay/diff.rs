//! Two captures compared as what was said in them.
//!
//! The captures are read once for their conversations, once more for what differs, and where
//! something does a third time for what surrounds it: so nothing has to be kept but what one of
//! them is ahead of the other.

use std::net::SocketAddr;

use super::capture::{Capture, Unreadable};
use super::lane::{How, Lane, Parting};
use super::pairs::{self, Pairs};
use super::place::{Kind, Place};
use super::rules::Rules;
use super::talks::{Side, Talk};
use super::view::Window;
use super::voices::End;
use super::walk::{Facts, Index, Listener, Moment, Spot, Walk};

/// What is compared, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// What may differ.
    pub rules: Rules,
    /// Ports of servers whose conversations are meant; all if none is named.
    pub ports: Vec<u16>,
    /// Differences that are shown with what surrounds them; more are told by their place only.
    pub shown_max: usize,
    /// Bytes that one capture may be ahead of the other; conversations beyond it wait for another
    /// way through the captures.
    pub ahead_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        let rules = Rules::default();
        Self { rules, ports: Vec::new(), shown_max: 10, ahead_bytes_max: 256 << 20 }
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was said alike.
    Same,
    /// Something was not.
    Different,
    /// What can be compared is alike, but a capture lacks bytes, or there is nothing to compare.
    Unknown,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// What is known of each capture.
    pub facts: [Facts; 2],
    /// Conversations that are meant, in each capture.
    pub talks: [usize; 2],
    /// Conversations that both captures have.
    pub paired: usize,
    /// How many of them are the same, different, unknown.
    pub same: usize,
    /// See `same`.
    pub different: usize,
    /// See `same`.
    pub unknown: usize,
    /// Conversations that one capture alone has: client and server.
    pub only: [Vec<Ends>; 2],
    /// The differences, in the order of the first capture; one at most for a side.
    pub differences: Vec<Difference>,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes that a capture does not have.
    pub unknown_bytes: u64,
    /// Values that differed and may, by the rules.
    pub masked: u64,
}

/// The two ends of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub client: SocketAddr,
    /// The server.
    pub server: SocketAddr,
}

impl Ends {
    fn of(talk: &Talk) -> Self {
        Self { client: talk.address(Side::Client), server: talk.address(Side::Server) }
    }
}

/// One difference.
#[derive(Debug)]
pub struct Difference {
    /// The conversation in each capture.
    pub ends: [Ends; 2],
    /// Who says it.
    pub side: Side,
    /// Where, in bytes of what that side says, and how.
    pub parting: Parting,
    /// What stands there, as far as the protocol is known; only if it is shown.
    pub field: Option<String>,
    /// The packet that brought the byte, in each capture; only if it is shown.
    pub packets: [Option<Moment>; 2],
    /// What surrounds it in each capture; empty if it is not shown.
    pub windows: [Window; 2],
}

impl Report {
    /// The answer as a whole.
    pub fn verdict(&self) -> Verdict {
        let is_different = self.different > 0 || self.only.iter().any(|only| !only.is_empty());
        match is_different {
            true => Verdict::Different,
            false if self.unknown > 0 || self.paired == 0 => Verdict::Unknown,
            false if self.facts.iter().any(|facts| facts.unfollowed > 0) => Verdict::Unknown,
            false => Verdict::Same,
        }
    }
}

/// Compares two captures.
pub fn diff(captures: [&Capture; 2], options: &Options) -> Result<Report, Unreadable> {
    let [first, second] = captures;
    let indexes = [Index::of(first)?, Index::of(second)?];
    let is_meant = |talk: &Talk| {
        let port = talk.address(Side::Server).port();
        talk.is_certain && (options.ports.is_empty() || options.ports.contains(&port))
    };
    let pairs = pairs::pair(captures, indexes.each_ref(), is_meant)?;
    let lanes = compare(captures, indexes.each_ref(), &pairs, options)?;
    let mut report = summary(&indexes, &pairs, &lanes);
    report.talks = indexes
        .each_ref()
        .map(|index| index.talks.list().iter().filter(|talk| is_meant(talk)).count());
    show(captures, indexes.each_ref(), &pairs, &lanes, options, &mut report)?;
    report.facts = indexes.map(|index| index.facts);
    Ok(report)
}

/// Both sides of one pair.
type Lanes = [Lane; 2];

/// Compares all pairs, if need be in several ways through the captures.
fn compare(
    captures: [&Capture; 2],
    indexes: [&Index; 2],
    pairs: &Pairs,
    options: &Options,
) -> Result<Vec<Lanes>, Unreadable> {
    let fresh = |&[a, b]: &[usize; 2]| -> Lanes {
        let [ours, theirs] = [&indexes[0].talks.list()[a], &indexes[1].talks.list()[b]];
        let is_another = ours.address(Side::Server) != theirs.address(Side::Server);
        let requests = options.rules.requests(is_another);
        let port = ours.address(Side::Server).port();
        [Lane::new(requests), Lane::new(options.rules.answers(port))]
    };
    let mut done: Vec<Option<Lanes>> = pairs.both.iter().map(|_| None).collect();
    let mut pending: Vec<usize> = (0..pairs.both.len()).collect();
    while !pending.is_empty() {
        let mut of = indexes.map(|index| vec![None; index.talks.list().len()]);
        for (place, &pair) in pending.iter().enumerate() {
            for (of, talk) in of.iter_mut().zip(pairs.both[pair]) {
                of[talk] = Some(place);
            }
        }
        let lanes = pending.iter().map(|&pair| Some(fresh(&pairs.both[pair]))).collect();
        let mut table = Table { lanes, of, ahead: [0; 2] };
        table.fill(captures, indexes, options.ahead_bytes_max)?;
        let mut left = Vec::new();
        for (pair, lanes) in pending.into_iter().zip(table.lanes) {
            match lanes {
                Some(mut lanes) => {
                    lanes.iter_mut().for_each(Lane::finish);
                    done[pair] = Some(lanes);
                }
                None => left.push(pair),
            }
        }
        pending = left;
    }
    Ok(done.into_iter().flatten().collect())
}

/// The pairs that are compared on one way through both captures.
struct Table {
    /// None for one that was put off.
    lanes: Vec<Option<Lanes>>,
    /// For each capture the place in `lanes` of its conversations.
    of: [Vec<Option<usize>>; 2],
    /// Bytes that each capture is ahead.
    ahead: [usize; 2],
}

impl Table {
    /// Reads both captures, always the one that is behind.
    fn fill(
        &mut self,
        captures: [&Capture; 2],
        indexes: [&Index; 2],
        ahead_bytes_max: usize,
    ) -> Result<(), Unreadable> {
        let [first, second] = [0, 1].map(|file: usize| {
            let wanted = self.of[file].iter().map(Option::is_some).collect();
            Walk::begin(captures[file], Some(indexes[file])).map(|walk| walk.only(wanted))
        });
        let mut walks = [first?, second?];
        let mut is_open = [true; 2];
        let mut turn = 0;
        while is_open.contains(&true) {
            let file = match is_open {
                [true, true] if self.ahead[0] == self.ahead[1] => turn,
                [true, true] => usize::from(self.ahead[0] > self.ahead[1]),
                [is_first, _] => usize::from(!is_first),
            };
            turn = 1 - file;
            is_open[file] = walks[file].step(&mut Ear { file, table: self });
            let is_too_far = self.ahead[0] + self.ahead[1] > ahead_bytes_max;
            if is_too_far && self.lanes.iter().flatten().nth(1).is_some() {
                self.put_off_one();
            }
        }
        Ok(())
    }

    /// Puts the pair off that keeps most: alone it keeps little, because then the capture that is
    /// behind can be read until it is not.
    fn put_off_one(&mut self) {
        let held = |lanes: &Lanes| {
            let of = |file: usize| lanes[0].held(file) + lanes[1].held(file);
            [of(0), of(1)]
        };
        let held = |lanes: &Option<Lanes>| lanes.as_ref().map_or([0; 2], held);
        let most = self.lanes.iter_mut().max_by_key(|lanes| {
            let [a, b] = held(lanes);
            a + b
        });
        if let Some(lanes) = most {
            let kept = held(lanes);
            *lanes = None;
            for (ahead, kept) in self.ahead.iter_mut().zip(kept) {
                *ahead -= kept;
            }
        }
    }

    fn with(&mut self, file: usize, spot: Spot, act: impl FnOnce(&mut Lanes)) {
        let Some(place) = self.of[file].get(spot.talk).copied().flatten() else { return };
        let Some(lanes) = &mut self.lanes[place] else { return };
        let held = |lane: &Lane| [lane.held(0), lane.held(1)];
        let side = spot.side.index();
        let before = held(&lanes[side]);
        act(lanes);
        let after = held(&lanes[side]);
        for file in [0, 1] {
            self.ahead[file] = self.ahead[file] + after[file] - before[file];
        }
    }
}

/// Hears one of the captures.
struct Ear<'t> {
    file: usize,
    table: &'t mut Table,
}

impl Listener for Ear<'_> {
    fn bytes(&mut self, spot: Spot, bytes: &[u8], _: Moment) {
        let file = self.file;
        self.table.with(file, spot, |lanes| {
            // The rules read the first capture's requests before they read the answers.
            if file == 0 && spot.side == Side::Client {
                lanes[Side::Server.index()].on_request(bytes);
            }
            lanes[spot.side.index()].push(file, bytes);
        });
    }

    fn missing(&mut self, spot: Spot, len: u64) {
        let file = self.file;
        self.table.with(file, spot, |lanes| {
            if file == 0 && spot.side == Side::Client {
                lanes[Side::Server.index()].on_request_hole(len);
            }
            lanes[spot.side.index()].push_missing(file, len);
        });
    }

    fn over(&mut self, spot: Spot, how: End, _: Moment) {
        let file = self.file;
        self.table.with(file, spot, |lanes| lanes[spot.side.index()].end(file, how));
    }
}

/// Counts what came of it.
fn summary(indexes: &[Index; 2], pairs: &Pairs, lanes: &[Lanes]) -> Report {
    let mut report = Report {
        facts: [Facts::default(), Facts::default()],
        talks: [0; 2],
        paired: pairs.both.len(),
        same: 0,
        different: 0,
        unknown: 0,
        only: [0, 1].map(|file| {
            let ends = |&id: &usize| Ends::of(&indexes[file].talks.list()[id]);
            pairs.only[file].iter().map(ends).collect()
        }),
        differences: Vec::new(),
        compared_bytes: 0,
        unknown_bytes: 0,
        masked: 0,
    };
    for (talks, lanes) in pairs.both.iter().zip(lanes) {
        let ends = [0, 1].map(|file| Ends::of(&indexes[file].talks.list()[talks[file]]));
        for (side, lane) in Side::BOTH.into_iter().zip(lanes) {
            report.compared_bytes += lane.compared;
            report.unknown_bytes += lane.unknown;
            report.masked += lane.masked;
            if let Some(parting) = lane.parting {
                let windows = parting.at.map(|at| Window { bytes: Vec::new(), from: at, at });
                let (field, packets) = (None, [None; 2]);
                let difference = Difference { ends, side, parting, field, packets, windows };
                report.differences.push(difference);
            }
        }
        match lanes {
            lanes if lanes.iter().any(|lane| lane.parting.is_some()) => report.different += 1,
            lanes if lanes.iter().any(|lane| lane.unknown > 0) => report.unknown += 1,
            _ => report.same += 1,
        }
    }
    report
}

/// Finds what surrounds the first differences.
fn show(
    captures: [&Capture; 2],
    indexes: [&Index; 2],
    pairs: &Pairs,
    lanes: &[Lanes],
    Options { rules, shown_max, .. }: &Options,
    report: &mut Report,
) -> Result<(), Unreadable> {
    let partings = pairs.both.iter().zip(lanes).flat_map(|(talks, lanes)| {
        let sides = Side::BOTH.into_iter().zip(lanes);
        sides.filter_map(move |(side, lane)| Some((*talks, side, lane.parting?)))
    });
    let partings: Vec<_> = partings.take(*shown_max).collect();
    if partings.is_empty() {
        return Ok(());
    }
    for file in [0, 1] {
        let kind = |[first, _]: [usize; 2]| {
            let port = indexes[0].talks.list()[first].address(Side::Server).port();
            if rules.is_ftp(port) { Kind::Control } else { Kind::Any }
        };
        let target = |&(talks, side, parting): &([usize; 2], Side, Parting)| Target {
            spot: Spot { talk: talks[file], side, at: parting.at[file] },
            is_end: parting.how == How::Ends(file),
            window: Window::around(parting.at[file]),
            moment: None,
            place: Place::new(kind(talks)),
            is_reached: false,
        };
        let mut finder = Finder { targets: partings.iter().map(target).collect() };
        let mut wanted = vec![false; indexes[file].talks.list().len()];
        for target in &finder.targets {
            wanted[target.spot.talk] = true;
        }
        let mut walk = Walk::begin(captures[file], Some(indexes[file]))?.only(wanted);
        while walk.step(&mut finder) {}
        for (difference, target) in report.differences.iter_mut().zip(finder.targets) {
            if file == 0 {
                let next = target.window.rest();
                difference.field = Some(target.place.describe(target.spot.side, next));
            }
            difference.packets[file] = target.moment;
            difference.windows[file] = target.window;
        }
    }
    Ok(())
}

/// A position that is looked for.
struct Target {
    spot: Spot,
    /// The stream ends there.
    is_end: bool,
    window: Window,
    moment: Option<Moment>,
    /// Has read all that was said before the position.
    place: Place,
    is_reached: bool,
}

impl Target {
    /// All that surrounds it was found.
    const fn is_whole(&self) -> bool {
        self.is_reached && self.window.is_full()
    }
}

/// Finds positions in one capture.
struct Finder {
    targets: Vec<Target>,
}

impl Finder {
    fn of_talk(&mut self, talk: usize) -> impl Iterator<Item = &mut Target> {
        self.targets.iter_mut().filter(move |target| target.spot.talk == talk)
    }
}

impl Listener for Finder {
    fn segment(&mut self, spot: Spot, len: u64, moment: Moment) {
        for target in self.of_talk(spot.talk).filter(|target| target.spot.side == spot.side) {
            // The first copy of a byte is the one that counts.
            if (spot.at..spot.at + len).contains(&target.spot.at) {
                target.moment.get_or_insert(moment);
            }
        }
    }

    fn bytes(&mut self, spot: Spot, bytes: &[u8], _: Moment) {
        for target in self.of_talk(spot.talk).filter(|target| !target.is_whole()) {
            if target.spot.side == spot.side {
                target.window.keep(spot.at, bytes);
            }
            if target.is_reached {
                continue;
            }
            let mut before = bytes;
            if target.spot.side == spot.side {
                let left = target.spot.at.saturating_sub(spot.at);
                let left = usize::try_from(left).unwrap_or(usize::MAX);
                target.is_reached = left < bytes.len();
                before = &bytes[..bytes.len().min(left)];
            }
            target.place.read(spot.side, before);
        }
    }

    fn missing(&mut self, spot: Spot, len: u64) {
        for target in self.of_talk(spot.talk).filter(|target| target.spot.side == spot.side) {
            target.window.keep_hole(spot.at, len);
        }
    }

    fn over(&mut self, spot: Spot, _: End, moment: Moment) {
        for target in self.of_talk(spot.talk) {
            if target.is_end && target.spot == spot {
                target.moment.get_or_insert(moment);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::talks::TALKS_MAX;
    use super::*;
    use crate::io::pcap::Writer;
    use crate::wire::build::{TcpFields, tcp};
    use crate::wire::parse::captured::LinkType;
    use crate::wire::{L2, L3, Mac, TcpFlags, TcpOptions, Vlans, checksum};

    /// So many clients that say one byte each.
    fn crowd(count: usize) -> Capture {
        let mut writer = Writer::classic(Vec::new(), LinkType::ETHERNET).expect("writes");
        for src_port in (10_000..).take(count) {
            let l2 = L2 { dst: Mac([2; 6]), src: Mac([4; 6]), vlans: Vlans::default() };
            let (src, dst) = ([10, 0, 0, 7].into(), [192, 0, 2, 10].into());
            let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id: 0, flow_label: 0 };
            let (flags, options) = (TcpFlags::ACK, TcpOptions::default());
            let (dst_port, seq, ack, window, urgent) = (80, 1, 1, 100, 0);
            let fields = TcpFields { src_port, dst_port, seq, ack, flags, window, urgent, options };
            let mut frame = tcp(&l2, &l3, &fields, Bytes::from_static(b"x"), 0);
            checksum::complete(&mut frame);
            let bytes = frame.to_vec();
            writer.packet(0, 5, &bytes, bytes.len(), None).expect("writes");
        }
        Capture::bytes("crowd", writer.into_inner().into())
    }

    #[test]
    fn conversations_beyond_the_most_that_are_followed_leave_the_question_open() {
        for (count, verdict, unfollowed) in
            [(TALKS_MAX, Verdict::Same, 0), (TALKS_MAX + 3, Verdict::Unknown, 3)]
        {
            let crowd = crowd(count);
            let report = diff([&crowd, &crowd], &Options::default()).expect("it is read");
            assert_eq!((report.verdict(), report.same), (verdict, TALKS_MAX));
            assert_eq!(report.facts[0].unfollowed, unfollowed);
        }
    }
}
