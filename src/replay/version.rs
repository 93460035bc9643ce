//! One version of the answers while a conversation is said: how far it is, and its last bytes.

use tokio::time::Instant;

use super::place::Place;
use super::player::READ_BYTES;
use super::view::Window;

/// Bytes that one server may be ahead of the other.
pub(super) const AHEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of each version that are remembered for what surrounds a difference.
pub(super) const TAIL_BYTES: usize = AHEAD_BYTES_MAX + READ_BYTES + Window::BEFORE as usize;

/// One version of the answers.
pub(super) struct Version {
    pub(super) place: Place,
    /// Bytes heard, and how many of them before the answers under way.
    pub(super) bytes: u64,
    pub(super) base: u64,
    /// The last bytes heard, and the position of the first of them.
    pub(super) tail: Vec<u8>,
    pub(super) tail_from: u64,
    /// When it was asked something that it has not answered.
    pub(super) asked_at: Option<Instant>,
    pub(super) is_closed: bool,
}

impl Version {
    pub(super) const fn new(place: Place) -> Self {
        Self {
            place,
            bytes: 0,
            base: 0,
            tail: Vec::new(),
            tail_from: 0,
            asked_at: None,
            is_closed: false,
        }
    }

    /// Keeps what comes for as long as it may surround a difference: where the versions have parted
    /// already, at `parted_at`, no more than that, however much comes.
    pub(super) fn remember(&mut self, bytes: &[u8], parted_at: Option<u64>) {
        let tail_end = self.tail_from + self.tail.len() as u64;
        let is_wanted = parted_at.is_none_or(|at| tail_end < self.base + at + Window::AFTER);
        // Nothing may follow a gap.
        if is_wanted && tail_end == self.bytes {
            self.tail.extend_from_slice(bytes);
        }
        self.bytes += bytes.len() as u64;
    }

    /// So much is missing of it.
    pub(super) fn pass(&mut self, len: u64, parted_at: Option<u64>) {
        match usize::try_from(len) {
            Ok(len) if len <= TAIL_BYTES => self.remember(&vec![b'?'; len], parted_at),
            // What came before surrounds nothing that comes.
            _ => {
                self.bytes += len;
                self.tail.clear();
                self.tail_from = self.bytes;
            }
        }
    }

    pub(super) fn window(&self, at: u64) -> Window {
        let at = self.base + at;
        let mut window = Window::around(at);
        window.from = window.from.max(self.tail_from).max(self.base).min(at);
        window.keep(self.tail_from, &self.tail);
        Window { from: window.from - self.base.min(window.from), at: at - self.base, ..window }
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::Kind;
    use super::*;

    #[test]
    fn what_surrounds_a_difference_is_kept_and_not_what_comes_behind_it() {
        let mut version = Version::new(Place::new(Kind::Any));
        version.remember(b"before", None);
        for _ in 0..1000 {
            version.remember(&[b'x'; 1000], Some(6));
        }
        assert_eq!(version.bytes, 1_000_006);
        assert!(version.tail.len() < 2000, "{}", version.tail.len());
        let window = version.window(6);
        assert_eq!((window.from, window.at, window.rest()[0]), (0, 6, b'x'));
        assert!(window.is_full() && window.bytes.starts_with(b"beforexxx"));
    }

    #[test]
    fn what_is_missing_is_shown_as_such_and_costs_nothing() {
        let mut version = Version::new(Place::new(Kind::Any));
        version.remember(b"before", None);
        version.pass(3, None);
        version.remember(b"after", None);
        assert_eq!(version.window(7).bytes, b"before???after");
        version.pass(1 << 40, None);
        version.remember(b"later", None);
        assert_eq!(version.window(14 + (1 << 40)).bytes, b"later");
    }
}
