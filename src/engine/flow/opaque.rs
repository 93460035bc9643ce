//! A flow of a protocol that two servers never say alike is the primary's alone, from the moment
//! that its first bytes tell: compared, it would differ for no reason, and be held. At a failover
//! its client is reset exactly, as that of any flow with one server, and comes back at once.

use super::{Cx, Flow};
use crate::engine::event::{FlowState, SoloReason};
use crate::engine::stream::Stream;
use crate::protocol::opaque::{self, Opaque};
use crate::wire::Offset;

impl Flow {
    /// Looks at the first bytes of both sides, as long as the client was shown nothing.
    pub(super) fn leave_opaque(&mut self, cx: &mut Cx<'_>) {
        let is_first = self.visible.released == Offset::START;
        if !is_first || self.state != FlowState::Paired || !cx.config.has_opaque {
            return;
        }
        // Of a data connection everything is content.
        if !cx.config.ports.contains(&self.key.server.port()) {
            return;
        }
        if let Some(protocol) = self.recognize() {
            let why = match protocol {
                Opaque::Tls => SoloReason::Tls,
                Opaque::Ssh => SoloReason::Ssh,
                Opaque::Http2 => SoloReason::Http2,
            };
            self.lose(cx, self.backup(), why);
        }
    }

    fn recognize(&self) -> Option<Opaque> {
        let mut first = [0; opaque::BYTES_MAX];
        let n = beginning(&self.request, &mut first);
        opaque::of_client(&first[..n]).or_else(|| {
            let said = self.leg(self.primary).voice.slice_at(Offset::START);
            opaque::of_server(said)
        })
    }
}

/// Copies how `stream` begins, if it still knows; returns how many bytes that are.
fn beginning(stream: &Stream, into: &mut [u8]) -> usize {
    let mut n = 0;
    while n < into.len() {
        let bytes = stream.slice_at(Offset::START + n as u64);
        let more = bytes.len().min(into.len() - n);
        if more == 0 {
            break;
        }
        into[n..n + more].copy_from_slice(&bytes[..more]);
        n += more;
    }
    n
}
