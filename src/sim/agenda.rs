//! What happens next: by time, and at one time in the order in which it was put there.

use std::cmp::Ordering;

/// Something that happens: its time, its place among those of that time, and what it is.
#[derive(Debug)]
pub struct Entry<T>(pub u64, pub u64, pub T);

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl<T> Eq for Entry<T> {}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}
