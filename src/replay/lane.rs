//! One side of one conversation in two captures: where what it said differs.
//!
//! Whichever capture is ahead waits here until the other one has said as much. Both positions are
//! counted apart: a span that may differ in length moves them against each other.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::rules::SpanReader;
use super::voices::End;
use crate::protocol::Step;

/// What a piece takes that waits, besides its bytes.
const ITEM_BYTES: usize = 64;

/// Where and how the two versions part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parting {
    /// Position in each capture.
    pub at: [u64; 2],
    /// How.
    pub how: How,
}

/// How two versions of a stream part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Two bytes differ: that of the first capture and that of the second.
    Byte(u8, u8),
    /// The stream of one capture (0 or 1) has ended, that of the other goes on.
    Ends(usize),
}

/// The comparison of one side.
#[derive(Debug)]
pub(super) struct Lane {
    queues: [Queue; 2],
    at: [u64; 2],
    ends: [Option<End>; 2],
    reader: SpanReader,
    /// A span that may differ begins here, by this rule.
    span: Option<u16>,
    /// Spans that differed and may.
    pub(super) masked: u64,
    /// Bytes compared, and bytes that one capture or both do not have.
    pub(super) compared: u64,
    pub(super) unknown: u64,
    pub(super) parting: Option<Parting>,
}

impl Lane {
    pub(super) fn new(reader: SpanReader) -> Self {
        Self {
            queues: [Queue::default(), Queue::default()],
            at: [0; 2],
            ends: [None; 2],
            reader,
            span: None,
            masked: 0,
            compared: 0,
            unknown: 0,
            parting: None,
        }
    }

    /// How far both have been compared.
    pub(super) const fn at(&self) -> [u64; 2] {
        self.at
    }

    /// Memory of a capture's bytes that wait for the other one.
    pub(super) fn held(&self, file: usize) -> usize {
        let queue = &self.queues[file];
        queue.bytes + ITEM_BYTES * queue.items.len()
    }

    /// What the client said, in the first capture, before the answers to it.
    pub(super) fn on_request(&mut self, bytes: &[u8]) {
        self.reader.on_request(bytes);
    }

    /// The client said so much that the first capture does not have.
    pub(super) fn on_request_hole(&mut self, len: u64) {
        self.reader.on_request_hole(len);
    }

    /// Bytes of one capture, in order.
    pub(super) fn push(&mut self, file: usize, mut bytes: &[u8]) {
        if self.parting.is_some() {
            return;
        }
        // The usual case: the other capture was ahead, and nothing has to be kept.
        while self.span.is_none() && self.queues[file].is_empty() && !bytes.is_empty() {
            let Front::Bytes(theirs) = self.queues[1 - file].front() else { break };
            let len = bytes.len().min(theirs.len());
            let theirs = theirs.slice(..len);
            let pair = if file == 0 { [&bytes[..len], &theirs] } else { [&theirs, &bytes[..len]] };
            let taken = self.compare(pair);
            self.queues[1 - file].take(taken);
            bytes = &bytes[taken..];
            if self.parting.is_some() {
                return self.clear();
            }
        }
        if !bytes.is_empty() {
            self.queues[file].push(Item::Bytes(Bytes::copy_from_slice(bytes)));
            self.settle();
        }
    }

    /// Bytes that a capture does not have.
    pub(super) fn push_missing(&mut self, file: usize, len: u64) {
        if self.parting.is_none() {
            self.queues[file].push(Item::Missing(len));
            self.settle();
        }
    }

    /// One capture's stream has ended.
    pub(super) fn end(&mut self, file: usize, how: End) {
        self.ends[file] = Some(how);
        if self.parting.is_none() {
            self.settle();
        }
    }

    /// Both captures are over: what one has more than the other is a difference if the other one's
    /// stream had an end, and unknown if only its capture had.
    pub(super) fn finish(&mut self) {
        if self.span.take().is_some() {
            // A value without an end is compared as it is.
            self.reader = SpanReader::Plain;
        }
        self.settle();
        self.unknown += self.queues.iter().map(Queue::len).sum::<u64>();
        self.clear();
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        self.queues = [Queue::default(), Queue::default()];
    }

    fn settle(&mut self) {
        while self.parting.is_none() && self.step() {}
        if self.parting.is_some() {
            self.clear();
        }
    }

    fn step(&mut self) -> bool {
        if let Some(rule) = self.span {
            return self.pass_span(rule);
        }
        let [ours, theirs] = [self.queues[0].front(), self.queues[1].front()];
        let hole = match (&ours, &theirs) {
            (Front::Empty, Front::Empty) => return false,
            (Front::Empty, _) => return self.goes_on_alone(0),
            (_, Front::Empty) => return self.goes_on_alone(1),
            (Front::Bytes(ours), Front::Bytes(theirs)) => {
                let len = ours.len().min(theirs.len());
                let (ours, theirs) = (ours.slice(..len), theirs.slice(..len));
                let taken = self.compare([&ours, &theirs]);
                self.take([taken; 2]);
                return taken > 0 || self.span.is_some();
            }
            (Front::Missing(a), Front::Missing(b)) => *a.min(b),
            (Front::Missing(hole), Front::Bytes(bytes))
            | (Front::Bytes(bytes), Front::Missing(hole)) => (*hole).min(bytes.len() as u64),
        };
        self.unknown += hole;
        self.reader.on_hole(hole);
        for (queue, at) in self.queues.iter_mut().zip(&mut self.at) {
            queue.take(hole as usize);
            *at += hole;
        }
        true
    }

    /// One capture has nothing more while the other one goes on.
    fn goes_on_alone(&mut self, ended: usize) -> bool {
        let is_end = matches!(self.ends[ended], Some(End::Closed | End::Reset));
        if is_end && matches!(self.queues[1 - ended].front(), Front::Bytes(_)) {
            self.parting = Some(Parting { at: self.at, how: How::Ends(ended) });
        }
        false
    }

    fn take(&mut self, lens: [usize; 2]) {
        for (queue, len) in self.queues.iter_mut().zip(lens) {
            queue.take(len);
        }
    }

    /// Compares two pieces of equal length; returns how far they were passed. Where that is not
    /// the whole, a span begins there or the streams part there.
    fn compare(&mut self, [ours, theirs]: [&[u8]; 2]) -> usize {
        let same = match ours == theirs {
            true => ours.len(),
            false => ours.iter().zip(theirs).take_while(|(a, b)| a == b).count(),
        };
        let taken = match self.reader.read(&ours[..same]) {
            Step::Plain => same,
            Step::Span { after, rule } => {
                self.span = Some(rule);
                after
            }
        };
        self.compared += taken as u64;
        self.at = self.at.map(|at| at + taken as u64);
        if self.span.is_none() && taken < ours.len() {
            let (a, b) = (ours[taken], theirs[taken]);
            match self.reader.begins_span(a) {
                Some((reader, rule)) => (self.reader, self.span) = (reader, Some(rule)),
                None => self.parting = Some(Parting { at: self.at, how: How::Byte(a, b) }),
            }
        }
        taken
    }

    /// A span that may differ: passed once both have it whole; compared as it is if the rule does
    /// not apply.
    fn pass_span(&mut self, rule: u16) -> bool {
        let value_bytes_max = self.reader.value_bytes_max(rule);
        let is_in_span = |at: usize, byte: u8| self.reader.is_in_span(rule, at, byte);
        let [ours, theirs] =
            [0, 1].map(|file| self.queues[file].value(value_bytes_max, is_in_span));
        let is_late = |file: usize| self.ends[file].is_none();
        let (ours, theirs) = match (ours, theirs) {
            (Value::Whole(ours), Value::Whole(theirs)) => (ours, theirs),
            (Value::Open, _) if is_late(0) => return false,
            (_, Value::Open) if is_late(1) => return false,
            _ => return self.compare_plainly(),
        };
        let may_differ = || self.reader.may_differ(rule, &ours, &theirs);
        if ours.is_empty() || theirs.is_empty() || (ours != theirs && !may_differ()) {
            return self.compare_plainly();
        }
        self.masked += u64::from(ours != theirs);
        self.compared += ours.len() as u64;
        self.span = None;
        self.reader.on_span(ours.len());
        for (file, len) in [ours.len(), theirs.len()].into_iter().enumerate() {
            self.queues[file].take(len);
            self.at[file] += len as u64;
        }
        true
    }

    fn compare_plainly(&mut self) -> bool {
        self.span = None;
        self.reader = SpanReader::Plain;
        true
    }
}

/// What waits of one capture.
#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Bytes held.
    bytes: usize,
}

#[derive(Debug)]
enum Item {
    Bytes(Bytes),
    Missing(u64),
}

/// What comes next.
enum Front {
    Empty,
    Bytes(Bytes),
    Missing(u64),
}

/// A value that may differ, up to the first byte that is none of it.
enum Value {
    /// Its end is not there yet.
    Open,
    Whole(Vec<u8>),
    /// It is too long, or has a hole.
    Unusable,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn len(&self) -> u64 {
        let len = |item: &Item| match item {
            Item::Bytes(bytes) => bytes.len() as u64,
            Item::Missing(len) => *len,
        };
        self.items.iter().map(len).sum()
    }

    fn push(&mut self, item: Item) {
        if let Item::Bytes(bytes) = &item {
            self.bytes += bytes.len();
        }
        self.items.push_back(item);
    }

    fn front(&self) -> Front {
        match self.items.front() {
            None => Front::Empty,
            Some(Item::Bytes(bytes)) => Front::Bytes(bytes.clone()),
            Some(Item::Missing(len)) => Front::Missing(*len),
        }
    }

    /// Goes on by as much, over any number of items.
    fn take(&mut self, mut len: usize) {
        while len > 0 {
            let (step, is_whole) = match self.items.front_mut() {
                None => return,
                Some(Item::Bytes(bytes)) => {
                    let step = len.min(bytes.len());
                    bytes.advance(step);
                    self.bytes -= step;
                    (step, bytes.is_empty())
                }
                Some(Item::Missing(left)) => {
                    let step = (len as u64).min(*left);
                    *left -= step;
                    (step as usize, *left == 0)
                }
            };
            len -= step;
            if is_whole {
                self.items.pop_front();
            }
        }
    }

    fn value(&self, max: usize, is_in_span: impl Fn(usize, u8) -> bool) -> Value {
        let mut value = Vec::new();
        for item in &self.items {
            let Item::Bytes(bytes) = item else { return Value::Unusable };
            let mut places = (value.len()..).zip(&bytes[..]);
            let end = places.position(|(at, &byte)| !is_in_span(at, byte));
            value.extend_from_slice(&bytes[..end.unwrap_or(bytes.len()).min(max + 1)]);
            if value.len() > max {
                return Value::Unusable;
            }
            if end.is_some() {
                return Value::Whole(value);
            }
        }
        Value::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::rules::Rules;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// Compares two answers to one request, each cut into pieces of its own length.
    fn answers(ours: (&[u8], usize), theirs: (&[u8], usize)) -> Lane {
        let mut lane = Lane::new(Rules::default().answers(80));
        lane.on_request(REQUEST);
        run(&mut lane, ours, theirs);
        lane
    }

    fn run(lane: &mut Lane, ours: (&[u8], usize), theirs: (&[u8], usize)) {
        let mut pieces = [ours.0.chunks(ours.1), theirs.0.chunks(theirs.1)];
        loop {
            let next = pieces.each_mut().map(Iterator::next);
            for (file, piece) in next.into_iter().enumerate() {
                match piece {
                    Some(piece) => lane.push(file, piece),
                    None if lane.ends[file].is_none() => lane.end(file, End::Closed),
                    None => {}
                }
            }
            if next == [None; 2] {
                return lane.finish();
            }
        }
    }

    fn dated(date: &str, body: &str) -> Vec<u8> {
        let len = body.len();
        format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: {len}\r\n\r\n{body}").into()
    }

    #[test]
    fn equal_streams_are_equal_however_they_are_cut_and_dates_may_differ() {
        let (ours, theirs) = (dated("Mon 1", "hello"), dated("Tue 2", "hello"));
        for a in 1..40 {
            for b in [1, 2, 3, 7, 100] {
                let lane = answers((&ours, a), (&theirs, b));
                assert_eq!((lane.parting, lane.unknown, lane.masked), (None, 0, 1), "{a} {b}");
                assert_eq!(lane.compared, ours.len() as u64);
                assert_eq!((lane.held(0), lane.held(1)), (0, 0));
            }
        }
    }

    #[test]
    fn a_byte_that_differs_is_found_where_it_is() {
        let ours = dated("Mon 1", "hello");
        let mut theirs = dated("Tue 2", "hello");
        for at in (0..ours.len()).filter(|at| !(23..28).contains(at)) {
            theirs[at] ^= 1;
            for (a, b) in [(1, 1), (3, 50), (50, 3), (100, 100)] {
                let lane = answers((&ours, a), (&theirs, b));
                let how = How::Byte(ours[at], theirs[at]);
                // Without its CR the value is longer, and the line ends otherwise.
                let other = if at == 28 { 29 } else { at };
                let how = if at == 28 { How::Byte(b'\r', b'\n') } else { how };
                let parting = lane.parting.expect("they differ");
                let at = [at as u64, other as u64];
                assert_eq!(parting, Parting { at, how }, "{a} {b}");
            }
            theirs[at] ^= 1;
        }
    }

    #[test]
    fn values_may_be_of_any_length_but_none_as_for_the_gateway() {
        let lane = answers((&dated("Mon 1", "x"), 7), (&dated("Tuesday 22", "x"), 9));
        assert_eq!((lane.parting, lane.masked), (None, 1));
        let lane = answers((&dated("Mon 1", "x"), 7), (&dated("", "x"), 9));
        assert_eq!(lane.parting.expect("they differ").at, [23; 2]);
    }

    #[test]
    fn an_end_that_comes_early_is_a_difference() {
        let ours = dated("Mon 1", "hello");
        let lane = answers((&ours, 9), (&ours[..ours.len() - 2], 9));
        let at = [ours.len() as u64 - 2; 2];
        assert_eq!(lane.parting, Some(Parting { at, how: How::Ends(1) }));
        let mut lane = Lane::new(Rules::default().answers(80));
        lane.push(0, b"more");
        lane.push(1, b"mo");
        lane.end(0, End::Closed);
        lane.end(1, End::Open);
        lane.finish();
        assert_eq!((lane.parting, lane.unknown), (None, 2));
    }

    #[test]
    fn holes_are_counted_and_passed() {
        let mut lane = Lane::new(Rules::default().answers(80));
        lane.on_request(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        let (ours, theirs) = (dated("Mon 1", "hello"), dated("Tue 2", "hello"));
        lane.push(0, &ours);
        lane.push(0, &ours);
        lane.push(1, &theirs[..theirs.len() - 4]);
        lane.push_missing(1, 3);
        lane.push(1, &theirs[theirs.len() - 1..]);
        lane.push(1, &theirs);
        lane.finish();
        // The hole lies in a body: the second date is still recognized.
        assert_eq!((lane.parting, lane.unknown, lane.masked), (None, 3, 2));
    }

    #[test]
    fn the_host_may_differ_where_the_servers_addresses_do() {
        let request = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\nA: b\r\n\r\n");
        let (ours, theirs) = (request("a"), request("192.0.2.99"));
        let (ours, theirs) = ([ours.clone(), ours].concat(), [theirs.clone(), theirs].concat());
        for cut in [1, 2, 5, 100] {
            let mut lane = Lane::new(Rules::default().requests(true));
            run(&mut lane, (ours.as_bytes(), cut), (theirs.as_bytes(), 7));
            assert_eq!((lane.parting, lane.unknown, lane.masked), (None, 0, 2));
        }
        let other = theirs.replacen("A: b", "A: c", 1);
        let mut lane = Lane::new(Rules::default().requests(true));
        run(&mut lane, (ours.as_bytes(), 9), (other.as_bytes(), 7));
        let at = [28, 37];
        assert_eq!(lane.parting, Some(Parting { at, how: How::Byte(b'b', b'c') }));
    }
}
