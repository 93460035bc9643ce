//! The whole of an engine as bytes, between two inputs, and an engine that goes on from there: what
//! it does with the same inputs at the same times is the same, byte for byte. For evidence; what
//! outlives the process is less ([`restoring`](super::restoring)).

use bytes::Bytes;

use super::Engine;
use crate::engine::EngineConfig;
use crate::engine::pack::{Pack, Reader, Writer};

/// The form of a [`Snapshot`]: another one is not read.
const FORM: u16 = 4;

/// An engine. It is cheap: payloads are shared, not copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything but these.
    pub bytes: Vec<u8>,
    /// Payloads under way.
    pub payloads: Vec<Bytes>,
    /// Flows that are not in it.
    pub left_out: u32,
}

impl Engine {
    /// What a snapshot would cost, as bytes that are copied.
    pub fn weight(&self) -> usize {
        self.table.weight() + self.pairs.bytes()
    }

    /// What it is, all outputs having been taken, if that costs no more than to copy so many bytes,
    /// and no more are under way.
    pub fn snapshot(&self, weight_max: usize, held_max: usize) -> Option<Snapshot> {
        if self.weight() > weight_max || self.table.held() > held_max {
            return None;
        }
        let mut w = Writer::whole();
        (FORM, self.now, self.tick_at, self.has_begun, self.ip_id).pack(&mut w);
        self.control.pack(&mut w);
        self.bridge.pack(&mut w);
        self.fragments.pack(&mut w);
        self.prober.pack(&mut w);
        self.profile.pack(&mut w);
        self.cookies.pack(&mut w);
        self.allowance.pack(&mut w);
        self.expected.pack(&mut w);
        self.data_ports.pack(&mut w);
        self.pairs.pack(&mut w);
        self.reprotecting.pack(&mut w);
        if let Some(translator) = &self.translator {
            translator.pack_state(&mut w);
        }
        let left_out = self.table.pack_state(&mut w);
        let (bytes, payloads) = w.into_parts();
        Some(Snapshot { bytes, payloads, left_out })
    }

    /// The engine of `snapshot`, with the configuration that it had; none if that is no snapshot of
    /// this version, or is damaged.
    pub fn resume(config: EngineConfig, snapshot: &Snapshot) -> Option<Self> {
        let rules = config.rules.clone();
        let mut r = Reader::whole(&snapshot.bytes, &snapshot.payloads, &rules);
        let (form, now, tick_at, has_begun, ip_id): (u16, _, _, _, _) = Pack::unpack(&mut r);
        if form != FORM {
            return None;
        }
        let mut engine = Self::new(config, 0, now);
        (engine.now, engine.tick_at) = (now, tick_at);
        (engine.has_begun, engine.ip_id) = (has_begun, ip_id);
        engine.control = Pack::unpack(&mut r);
        engine.bridge = Pack::unpack(&mut r);
        engine.fragments = Pack::unpack(&mut r);
        engine.prober = Pack::unpack(&mut r);
        engine.profile = Pack::unpack(&mut r);
        engine.cookies = Pack::unpack(&mut r);
        engine.allowance = Pack::unpack(&mut r);
        engine.expected = Pack::unpack(&mut r);
        engine.data_ports = Pack::unpack(&mut r);
        engine.pairs = Pack::unpack(&mut r);
        engine.reprotecting = Pack::unpack(&mut r);
        if let Some(translator) = &mut engine.translator {
            translator.unpack_state(&mut r);
        }
        engine.table.unpack_state(&mut r);
        r.is_good().then_some(engine)
    }
}
