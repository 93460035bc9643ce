//! What observers of the links want to know of a flow, and the detector of all of them.

use super::Engine;
use crate::engine::event::FlowKey;
use crate::engine::time::Instant;
use crate::engine::{LegId, Numbers};
use crate::wire::Offset;

impl Engine {
    /// The sequence numbers of a byte of a flow's response on each link, as the engine knows them;
    /// none if it does not know the flow.
    pub fn numbers_at(&self, flow: &FlowKey, at: Offset) -> Option<Numbers> {
        let id = self.table.find(flow)?;
        self.table.peek(id, |flow| flow.numbers_at(at))
    }

    /// Flows on which `leg` stands still since then at the latest, by a fault of its server's; more
    /// than a few are not counted.
    pub(super) fn stalled(&self, leg: LegId, since: Instant) -> usize {
        const ENOUGH: usize = 8;
        const LOOKED_AT: usize = 64;
        let is_its_own = |id| self.table.peek(id, |flow| !flow.may_wait_for_us(leg));
        let stalled = self.table.pinned_since(leg, since).take(LOOKED_AT);
        stalled.filter(|&(_, id)| is_its_own(id).unwrap_or(false)).take(ENOUGH).count()
    }
}
