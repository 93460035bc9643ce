//! What the two sides of one conversation said, in order: TCP reassembly of a capture.
//!
//! Bytes are told in the order of cause: those of a side after all that it had acknowledged by
//! then. The first copy of a byte counts; one whose checksum is wrong counts where the receiver
//! acknowledged it and no better copy came. What was acknowledged and never captured is told as
//! missing once it is certain, or once too much waits for it: memory has an end.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::talks::{Number, Talk};
use crate::engine::Stream;
use crate::wire::parse::captured::{Checked, Spoken};
use crate::wire::{Offset, TcpFlags};

/// Bytes that one conversation keeps while they wait for others.
pub(super) const WAITING_BYTES_MAX: usize = 1 << 20;
/// What a piece takes that waits, besides its bytes: a capture may be of one-byte segments.
const PIECE_BYTES: usize = 64;
/// Acknowledgments further ahead than this are nobody's.
const AHEAD_MAX: u64 = 1 << 30;

/// How a side's stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It said all that it had to say.
    Closed,
    /// The connection was reset, by either side.
    Reset,
    /// The capture stops before it ended.
    Open,
}

/// What is told of one conversation; `end` is 0 or 1, as [`Talk`] counts them.
pub(super) trait Hearing {
    /// Bytes of one end, in order, from position `at` on.
    fn bytes(&mut self, end: usize, at: u64, bytes: &[u8]);
    /// Bytes that were said and not captured.
    fn missing(&mut self, end: usize, at: u64, len: u64);
    /// Nothing comes any more behind position `at`. Told once for each end.
    fn over(&mut self, end: usize, at: u64, how: End);
}

/// One conversation while it is read.
#[derive(Debug)]
pub(super) struct Voices {
    voices: [Voice; 2],
}

/// One side.
#[derive(Debug)]
struct Voice {
    isn: Option<Number>,
    /// What waits; its base is what was told.
    stream: Stream,
    /// Copies whose checksum is wrong.
    doubtful: Stream,
    /// Ranges that the snap length cut off.
    cuts: BTreeMap<Offset, Offset>,
    /// How much of the other side's stream this one has acknowledged.
    heard: Offset,
    /// Where segments end that wait, and what this side had acknowledged when it said them. Both
    /// grow from entry to entry: who says more later has not heard less.
    needs: BTreeMap<Offset, Offset>,
    fin: Option<Offset>,
    is_reset: bool,
    is_over: bool,
}

impl Voice {
    const fn new(isn: Option<Number>) -> Self {
        Self {
            isn,
            stream: Stream::new(Offset::START),
            doubtful: Stream::new(Offset::START),
            cuts: BTreeMap::new(),
            heard: Offset::START,
            needs: BTreeMap::new(),
            fin: None,
            is_reset: false,
            is_over: false,
        }
    }

    /// Everything before it was told.
    const fn told(&self) -> Offset {
        self.stream.base()
    }

    fn go_on(&mut self, to: Offset) {
        self.stream.trim(to);
        self.doubtful.trim(to);
        while self.cuts.first_key_value().is_some_and(|(_, &end)| end <= to) {
            self.cuts.pop_first();
        }
        while self.needs.first_key_value().is_some_and(|(&end, _)| end <= to) {
            self.needs.pop_first();
        }
    }

    /// A segment that ends at `end` waits; its sender had acknowledged `acknowledged`.
    fn need(&mut self, end: Offset, acknowledged: Offset) {
        if self.needs.range(end..).next().is_some_and(|(_, &later)| later <= acknowledged) {
            return;
        }
        while let Some((&before, _)) =
            self.needs.range(..=end).next_back().filter(|(_, earlier)| **earlier >= acknowledged)
        {
            self.needs.remove(&before);
        }
        self.needs.insert(end, acknowledged);
    }

    /// Tells what comes next, up to the FIN.
    fn tell(&mut self, end: usize, bytes: &[u8], hearing: &mut impl Hearing) {
        let told = self.told();
        let left = self.fin.map_or(usize::MAX, |fin| fin.since(told) as usize);
        let bytes = &bytes[..bytes.len().min(left)];
        if !bytes.is_empty() {
            hearing.bytes(end, place(told), bytes);
            self.go_on(told + bytes.len() as u64);
        }
    }

    /// Tells that what comes next, up to `to` or the FIN, is missing.
    fn pass(&mut self, end: usize, to: Offset, hearing: &mut impl Hearing) {
        let told = self.told();
        let to = self.fin.map_or(to, |fin| fin.min(to));
        hearing.missing(end, place(told), to.since(told));
        self.go_on(to);
    }

    /// All before the FIN was told. What stands behind it is nothing that its sender said.
    fn has_ended(&self) -> bool {
        self.is_over || self.fin.is_some_and(|fin| fin <= self.told())
    }

    /// Memory that waits.
    fn held(&self) -> usize {
        let pieces = self.stream.pieces() + self.doubtful.pieces();
        let marks = self.cuts.len() + self.needs.len();
        self.stream.held() + self.doubtful.held() + PIECE_BYTES * (pieces + marks)
    }
}

impl Voices {
    /// A conversation of which `talk` tells where its sides begin, as far as is known.
    pub(super) fn new(talk: &Talk) -> Self {
        Self { voices: [0, 1].map(|end| Voice::new(talk.at_end(end).isn())) }
    }

    /// Bytes kept.
    pub(super) fn held(&self) -> usize {
        self.voices[0].held() + self.voices[1].held()
    }

    /// Whether both sides have said all.
    pub(super) fn is_over(&self) -> bool {
        self.voices.iter().all(|voice| voice.is_over)
    }

    /// Position of the first byte of a segment, if it stands in what its side says.
    pub(super) fn place_of(&self, end: usize, spoken: &Spoken<'_>) -> Option<u64> {
        let voice = &self.voices[end];
        let at = voice.isn?.offset(first_number(spoken), voice.told());
        (at >= Offset::START).then(|| place(at))
    }

    /// Takes a segment of one end. `waiting_bytes_max` is what may be kept afterwards.
    pub(super) fn take(
        &mut self,
        end: usize,
        spoken: &Spoken<'_>,
        waiting_bytes_max: usize,
        hearing: &mut impl Hearing,
    ) {
        let flags = spoken.flags;
        if spoken.checksum == Checked::Wrong {
            // Nothing of it can be relied on; its payload may be all that there is.
            if let Some(isn) = self.voices[end].isn {
                let at = isn.offset(first_number(spoken), self.voices[end].told());
                self.keep(end, at, spoken);
                self.settle(hearing);
            }
            while self.held() > waiting_bytes_max && self.give_up_one(hearing) {}
            return;
        }
        if flags.has(TcpFlags::RST) {
            for voice in &mut self.voices {
                voice.is_reset = true;
            }
            return;
        }
        let first = first_number(spoken);
        let voice = &mut self.voices[end];
        let isn = *voice.isn.get_or_insert(Number::new(first.raw().wrapping_sub(1)));
        let at = isn.offset(first, voice.told());
        if flags.has(TcpFlags::FIN) {
            voice.fin.get_or_insert(at + spoken.payload_len() as u64);
        }
        let acknowledged = match flags.has(TcpFlags::ACK) {
            true => self.acknowledge(end, Number::new(spoken.ack)),
            false => Offset::START,
        };
        if self.take_at_once(end, at, acknowledged, spoken, hearing) {
            return;
        }
        self.keep(end, at, spoken);
        let voice = &mut self.voices[end];
        let after = at + spoken.payload_len() as u64;
        if after > voice.told() && !voice.has_ended() {
            voice.need(after, acknowledged);
        }
        self.settle(hearing);
        while self.held() > waiting_bytes_max && self.give_up_one(hearing) {}
    }

    /// The capture is over.
    pub(super) fn finish(&mut self, hearing: &mut impl Hearing) {
        while self.give_up_one(hearing) {}
        for (end, voice) in self.voices.iter_mut().enumerate() {
            if !std::mem::replace(&mut voice.is_over, true) {
                let how = if voice.is_reset { End::Reset } else { End::Open };
                hearing.over(end, place(voice.told()), how);
            }
        }
    }

    /// Notes what an end acknowledges, and tells what that is.
    fn acknowledge(&mut self, end: usize, number: Number) -> Offset {
        let other = &self.voices[1 - end];
        let Some(isn) = other.isn else { return Offset::START };
        let to = isn.offset(number, other.told());
        if to.since(other.told()) >= AHEAD_MAX {
            return Offset::START;
        }
        let heard = &mut self.voices[end].heard;
        *heard = (*heard).max(to);
        to
    }

    /// The usual case, without a copy: the next bytes in order, and nothing waits.
    fn take_at_once(
        &mut self,
        end: usize,
        at: Offset,
        acknowledged: Offset,
        spoken: &Spoken<'_>,
        hearing: &mut impl Hearing,
    ) -> bool {
        let is_waiting = self.held() > 0 || spoken.cut > 0;
        let voice = &self.voices[end];
        let told = voice.told();
        if is_waiting || voice.has_ended() || at > told || acknowledged > self.reached(1 - end) {
            return false;
        }
        let skip = told.since(at) as usize;
        if let Some(new) = spoken.payload.get(skip..) {
            self.voices[end].tell(end, new, hearing);
        }
        self.tell_end(end, hearing);
        // What the other side said may have waited for it.
        self.tell_end(1 - end, hearing);
        true
    }

    /// Whatever waits is copied, so that it keeps no buffer of the file.
    fn keep(&mut self, end: usize, at: Offset, spoken: &Spoken<'_>) {
        let voice = &mut self.voices[end];
        if voice.has_ended() || at.since(voice.told()) >= AHEAD_MAX {
            return;
        }
        let Spoken { payload, cut, checksum, .. } = *spoken;
        let after = at + payload.len() as u64;
        if after > voice.told() {
            let bytes = Bytes::copy_from_slice(payload);
            match checksum {
                Checked::Wrong => voice.doubtful.insert(at, bytes),
                _ => voice.stream.insert(at, bytes),
            };
        }
        if cut > 0 && after + cut as u64 > voice.told() {
            let end = voice.cuts.entry(after).or_insert(after);
            *end = (*end).max(after + cut as u64);
        }
    }

    /// Tells all that can be told.
    fn settle(&mut self, hearing: &mut impl Hearing) {
        while self.tell(0, hearing) | self.tell(1, hearing) {}
        self.tell_end(0, hearing);
        self.tell_end(1, hearing);
    }

    /// Whether all was told that this end had acknowledged when it said what comes next.
    fn may_tell(&self, end: usize) -> bool {
        let need = self.voices[end].needs.first_key_value().map(|(_, need)| *need);
        need.is_none_or(|need| need <= self.reached(1 - end))
    }

    /// What an end can have acknowledged of this one by now. The FIN takes a place of its own.
    fn reached(&self, end: usize) -> Offset {
        let voice = &self.voices[end];
        voice.told() + u64::from(voice.has_ended())
    }

    fn tell(&mut self, end: usize, hearing: &mut impl Hearing) -> bool {
        let mut is_told = false;
        while self.may_tell(end) && self.tell_chunk(end, hearing) {
            is_told = true;
        }
        is_told
    }

    fn tell_chunk(&mut self, end: usize, hearing: &mut impl Hearing) -> bool {
        let is_acknowledged = self.voices[1 - end].heard > self.voices[end].told();
        let voice = &mut self.voices[end];
        let told = voice.told();
        if voice.has_ended() {
            return false;
        }
        // Behind the end of a segment other bytes need other ones.
        let together = voice.needs.first_key_value();
        let together = together.map_or(usize::MAX, |(&end, _)| end.since(told) as usize);
        if let Some(bytes) = voice.stream.chunk_at(told) {
            voice.tell(end, &bytes[..bytes.len().min(together)], hearing);
            return true;
        }
        let next = voice.stream.next_held(told);
        if let Some(&cut) = voice.cuts.range(..=told).next_back().map(|(_, end)| end)
            && cut > told
        {
            voice.pass(end, next.map_or(cut, |next| next.min(cut)), hearing);
            return true;
        }
        if is_acknowledged && let Some(bytes) = voice.doubtful.chunk_at(told) {
            let len = next.map_or(bytes.len(), |next| bytes.len().min(next.since(told) as usize));
            voice.tell(end, &bytes[..len], hearing);
            return true;
        }
        false
    }

    fn tell_end(&mut self, end: usize, hearing: &mut impl Hearing) {
        let voice = &mut self.voices[end];
        if !voice.is_over && voice.has_ended() {
            voice.is_over = true;
            hearing.over(end, place(voice.told()), End::Closed);
        }
    }

    /// Passes over whatever keeps the rest waiting; false if nothing does.
    fn give_up_one(&mut self, hearing: &mut impl Hearing) -> bool {
        // A hole that was acknowledged is one for certain.
        let hole = [0, 1].into_iter().find_map(|end| Some((end, self.acknowledged_hole(end)?)));
        let hole = hole.or_else(|| [0, 1].into_iter().find_map(|end| Some((end, self.hole(end)?))));
        if let Some((end, to)) = hole {
            let voice = &mut self.voices[end];
            let told = voice.told();
            let doubtful = voice.doubtful.chunk_at(told);
            match doubtful {
                Some(bytes) => {
                    let len = bytes.len().min(to.since(told) as usize);
                    voice.tell(end, &bytes[..len], hearing);
                }
                None => {
                    let to = voice.doubtful.next_held(told).map_or(to, |next| next.min(to));
                    voice.pass(end, to, hearing);
                }
            }
            self.settle(hearing);
            return true;
        }
        // Each waits for the other: the capture contradicts itself.
        let is_stuck = [0, 1].into_iter().any(|end| self.tell_chunk(end, hearing));
        self.settle(hearing);
        is_stuck
    }

    /// The end of a hole of which the receiver has acknowledged something.
    fn acknowledged_hole(&self, end: usize) -> Option<Offset> {
        let told = self.voices[end].told();
        let voice = &self.voices[end];
        let acknowledged = self.voices[1 - end].heard;
        let known = voice.fin.map_or(acknowledged, |fin| acknowledged.min(fin));
        if known <= told || voice.has_ended() || voice.stream.chunk_at(told).is_some() {
            return None;
        }
        let next = voice.stream.next_held(told);
        match next {
            Some(next) => Some(next),
            // One place beyond all that was seen is the one of a FIN that was not captured.
            None if voice.fin.is_none() && known == told + 1 => None,
            None => Some(known),
        }
    }

    /// The end of a hole before anything that is held, or before the FIN.
    fn hole(&self, end: usize) -> Option<Offset> {
        let voice = &self.voices[end];
        let told = voice.told();
        if voice.has_ended() || voice.stream.chunk_at(told).is_some() {
            return None;
        }
        let next = voice.stream.next_held(told);
        let doubtful = voice.doubtful.chunks().last().map(|(at, bytes)| at + bytes.len() as u64);
        next.or(voice.fin.filter(|&fin| fin > told)).or(doubtful)
    }
}

/// The number of a segment's first byte.
fn first_number(spoken: &Spoken<'_>) -> Number {
    Number::new(spoken.seq.wrapping_add(u32::from(spoken.flags.has(TcpFlags::SYN))))
}

/// A position of a stream as people count: the first byte is 0.
const fn place(at: Offset) -> u64 {
    at.since(Offset::START)
}
