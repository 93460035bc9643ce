//! What observers of the links want to know of a flow.

use super::Engine;
use crate::engine::Numbers;
use crate::engine::event::FlowKey;
use crate::wire::Offset;

impl Engine {
    /// The sequence numbers of a byte of a flow's response on each link, as the engine knows them;
    /// none if it does not know the flow.
    pub fn numbers_at(&self, flow: &FlowKey, at: Offset) -> Option<Numbers> {
        let id = self.table.find(flow)?;
        self.table.peek(id, |flow| flow.numbers_at(at))
    }
}
