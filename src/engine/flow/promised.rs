//! A flow whose client was answered with a cookie, before the servers were asked.
//!
//! The client's end is open already; its first segments wait until the servers have answered. If
//! these agree to less than others did before them, the client keeps what it was promised: each
//! option is one of a leg or of the client, and the gateway stands between.

use bytes::Bytes;

use super::{Cx, Flow};
use crate::engine::cookies::{Promise, WINDOW};
use crate::engine::limits;
use crate::wire::Segment;

/// Segments kept until the servers have answered; the client repeats others.
const EARLY_MAX: usize = 8;

impl Flow {
    /// Keeps what the client says before the servers have answered; `false` if it was promised
    /// nothing, or has said too much.
    pub(super) fn hear_early(&mut self, cx: &Cx<'_>, seg: &Segment, body: Bytes) -> bool {
        let Some(promise) = &mut self.promise else { return false };
        let is_asked_for = body.len() <= usize::from(WINDOW) && promise.early.len() < EARLY_MAX;
        if is_asked_for {
            // Who waits so long is answered if the servers are there again.
            self.expires_at = cx.now + limits::OPENING_MAX;
            promise.early.push((*seg, body));
        }
        is_asked_for
    }

    /// The servers have answered: on with what the client has said in the meantime.
    pub(super) fn hear_again(&mut self, cx: &mut Cx<'_>, promise: Promise) {
        self.stay_alive(cx.now);
        for (seg, body) in promise.early {
            self.on_client_ack_or_data(cx, &seg, body);
        }
    }
}
