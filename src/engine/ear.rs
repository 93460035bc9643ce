//! What one server hears of the client in a flow: its bytes, with values of the server's own in the
//! place of values that another server gave the client.
//!
//! The counterpart of [`super::voice`]. A replaced value is atomic here too: no segment to the
//! server holds a part of it and a byte beside it that is not its own, what the server has
//! acknowledged inside of it ends at its start, and what is sent again is sent the same. Outside of
//! this file all positions are the client's.

use std::collections::VecDeque;

use bytes::Bytes;

use super::alignment::{Alignment, Own, Round};
use super::limits;
use super::pack::{Pack, Reader, Writer, fields};
use crate::wire::Offset;

/// How one server hears the client.
#[derive(Clone, Debug, Default)]
pub struct Ear {
    alignment: Alignment,
    /// What is replaced, and not yet acknowledged by the server; lowest first.
    values: VecDeque<Value>,
}

#[derive(Clone, Debug)]
struct Value {
    from: Offset,
    to: Offset,
    own: Bytes,
}

impl Ear {
    /// Where the client's position stands in what the server hears.
    pub fn own(&self, at: Offset, round: Round) -> Own {
        self.alignment.own(at, round)
    }

    /// The client's position.
    pub fn shown(&self, own: Own, round: Round) -> Offset {
        self.alignment.shown(own, round)
    }

    /// Whether no more values can be replaced for the time being.
    pub fn is_full(&self) -> bool {
        self.values.len() >= limits::SPLICES_MAX
    }

    /// The server hears `own` in the place of the client's `len` bytes at `at`, of which nothing
    /// was sent to it.
    pub fn replace(&mut self, at: Offset, len: usize, own: Bytes) {
        self.alignment.splice(at, own.len() as u32, len as u32);
        self.values.push_back(Value { from: at, to: at + len as u64, own });
    }

    /// What the server hears of the client's `bytes` at `at`, and where. Of a value that they hold
    /// in part it hears the whole.
    pub fn hear(&self, at: Offset, bytes: Bytes) -> (Own, Bytes) {
        let (own, end) = (self.own(at, Round::Down), at + bytes.len() as u64);
        let mut inside =
            self.values.iter().filter(|v| v.from < end && v.to > at && !bytes.is_empty());
        let Some(mut value) = inside.next() else { return (own, bytes) };
        let (mut heard, mut next) = (Vec::with_capacity(bytes.len()), at);
        loop {
            heard.extend_from_slice(&bytes[next.since(at) as usize..value.from.since(at) as usize]);
            heard.extend_from_slice(&value.own);
            next = value.to;
            match inside.next() {
                Some(more) => value = more,
                None => break,
            }
        }
        heard.extend_from_slice(&bytes[(next.since(at) as usize).min(bytes.len())..]);
        (own, heard.into())
    }

    /// The start of the replaced value that `at` lies inside of, or `at`.
    pub fn floor(&self, at: Offset) -> Offset {
        self.around(at).map_or(at, |v| v.from)
    }

    /// Its end.
    pub fn ceil(&self, at: Offset) -> Offset {
        self.around(at).map_or(at, |v| v.to)
    }

    fn around(&self, at: Offset) -> Option<&Value> {
        self.values.iter().find(|v| v.from < at && at < v.to)
    }

    /// Whether nothing that was replaced is on its way.
    pub fn is_settled(&self) -> bool {
        self.values.is_empty()
    }

    /// The server takes part no more: where it stands is still known, and not what it was told.
    pub fn forget(&mut self) {
        self.values = VecDeque::new();
    }

    /// Whether it counts otherwise than the client.
    pub fn is_shifted(&self) -> bool {
        let is_even = |v: &Value| v.own.len() as u64 == v.to.since(v.from);
        self.alignment.base() != 0 || !self.values.iter().all(is_even)
    }

    /// What is to be added to positions of the server's, while nothing replaced is on its way.
    pub const fn base(&self) -> i32 {
        self.alignment.base() as i32
    }

    /// One with this base, after a restart of the gateway.
    pub fn restored(base: i32) -> Self {
        Self { alignment: Alignment::with_base(base.into()), values: VecDeque::new() }
    }

    /// The server has acknowledged everything before the client's `acked`. True if the last
    /// value on its way was among it.
    pub fn settle(&mut self, acked: Offset) -> bool {
        let was_settled = self.is_settled();
        while self.values.front().is_some_and(|v| v.to <= acked) {
            self.values.pop_front();
        }
        if self.values.is_empty() {
            self.values = VecDeque::new();
        }
        self.alignment.prune(acked);
        !was_settled && self.is_settled()
    }
}

fields!(Value { from, to, own });

/// At rest one has heard everything.
impl Pack for Ear {
    fn pack(&self, w: &mut Writer) {
        let Self { alignment, values } = self;
        alignment.pack(w);
        match w.is_whole() {
            true => values.pack(w),
            false => debug_assert!(values.is_empty(), "bytes are under way"),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let alignment = Pack::unpack(r);
        Self { alignment, values: if r.is_whole() { Pack::unpack(r) } else { VecDeque::new() } }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the client's bytes are cut, and how often they come, the server hears one text.
        #[test]
        fn whatever_is_sent_is_of_the_text_with_its_own_values(
            parts in prop::collection::vec((0usize..9, 1usize..6, 1usize..6), 0..6),
            tail in 0usize..9, cuts in prop::collection::vec((0usize..80, 0usize..40), 1..30),
        ) {
            let (mut ear, mut client, mut server) = (Ear::default(), Vec::new(), Vec::new());
            for (i, (plain, theirs, own)) in parts.into_iter().enumerate() {
                client.extend(std::iter::repeat_n(b'.', plain));
                server.extend(std::iter::repeat_n(b'.', plain));
                let at = Offset::START + client.len() as u64;
                ear.replace(at, theirs, Bytes::from(vec![b'A' + i as u8; own]));
                client.extend(std::iter::repeat_n(b'a' + i as u8, theirs));
                server.extend(std::iter::repeat_n(b'A' + i as u8, own));
            }
            client.extend(std::iter::repeat_n(b',', tail));
            server.extend(std::iter::repeat_n(b',', tail));
            for (from, len) in cuts {
                let from = from.min(client.len());
                let to = (from + len).min(client.len());
                let bytes = Bytes::copy_from_slice(&client[from..to]);
                let is_empty = bytes.is_empty();
                let (own, heard) = ear.hear(Offset::START + from as u64, bytes);
                let own = own.since(Own::START) as usize;
                prop_assert_eq!(&heard[..], &server[own..own + heard.len()]);
                let end = ear.ceil(Offset::START + to as u64);
                let whole = ear.own(end, Round::Down).since(Own::START) as usize;
                prop_assert!(is_empty || own + heard.len() == whole);
                prop_assert_eq!(ear.floor(end), end);
            }
        }
    }
}
