//! What the servers of a service agree to, so that a SYN offers nothing that only one would take.
//!
//! Learned from their answers, and for a while only: a server under a flood answers with cookies
//! of its own that have no room for options.

use crate::engine::limits;
use crate::engine::pack::fields;
use crate::engine::time::Instant;

/// An option of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Sack,
    Timestamps,
    WindowScale,
}

/// Which options only one server has taken lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// When that was seen last, in the order of [`Offer`].
    split_at: [Option<Instant>; 3],
}

impl Profile {
    /// Whether `offer` is made to the servers.
    pub(super) fn offers(&self, now: Instant, offer: Offer) -> bool {
        self.split_at[offer as usize].is_none_or(|at| now.since(at) >= limits::PROFILE_KEPT)
    }

    /// Both were made `offer`, and have taken it or not.
    pub(super) fn learn(&mut self, now: Instant, offer: Offer, has_taken: [bool; 2]) {
        if has_taken[0] != has_taken[1] {
            self.split_at[offer as usize] = Some(now);
        }
    }
}

fields!(Profile { split_at });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_server_refused_is_not_offered_for_a_while() {
        let (mut profile, at) = (Profile::default(), Instant::from_millis(5));
        profile.learn(at, Offer::Sack, [false, false]);
        assert!(profile.offers(at, Offer::Sack), "both agree");
        profile.learn(at, Offer::Sack, [true, false]);
        assert!(!profile.offers(at, Offer::Sack));
        assert!(profile.offers(at, Offer::Timestamps));
        assert!(profile.offers(at + limits::PROFILE_KEPT, Offer::Sack));
    }
}
