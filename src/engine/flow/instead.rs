//! What the client is shown instead of something that each server says of itself: its own address
//! in an answer to PASV, where the servers have addresses of their own; and chunk lines where the
//! servers cut a body differently (`chunks.rs`), which nobody else says like that.
//!
//! The client is shown the service's. That is of another length, so it is a splice on the voice of
//! the server that says it; the text waits here until it was shown. Whoever takes over before that
//! says its own version, with the service's address as well.

use bytes::Bytes;

use super::{Cx, Flow};
use crate::engine::LegId;
use crate::engine::alignment::{Own, Round};
use crate::engine::pack::{Pack, Reader, Writer, fields};
use crate::protocol::Normalizer;
use crate::wire::Offset;

/// Texts that have not been shown wholly yet, lowest first.
#[derive(Clone, Debug, Default)]
pub struct Instead(Vec<Text>);

#[derive(Clone, Debug)]
struct Text {
    from: Offset,
    /// The rule of the value that it is shown for; none if it is framing.
    rule: Option<u16>,
    bytes: Bytes,
}

impl Text {
    fn end(&self) -> Offset {
        self.from + self.bytes.len() as u64
    }
}

impl Instead {
    /// What is shown from `at` on, if that is not what the primary says.
    pub fn text_at(&self, at: Offset) -> Option<Bytes> {
        let next = self.0.partition_point(|text| text.end() <= at);
        let text = self.0.get(next).filter(|text| text.from <= at)?;
        Some(text.bytes.slice(at.since(text.from) as usize..))
    }

    /// Where the next one behind `at` begins.
    pub fn next_from(&self, at: Offset) -> Option<Offset> {
        let next = self.0.partition_point(|text| text.from <= at);
        self.0.get(next).map(|text| text.from)
    }

    /// A chunk line, and maybe a byte behind it, is shown at `from`.
    pub(super) fn push_line(&mut self, from: Offset, bytes: Bytes) {
        self.0.push(Text { from, rule: None, bytes });
    }

    /// Where the last chunk line ends that waits.
    pub(super) fn lines_end(&self) -> Option<Offset> {
        self.0.iter().rev().find(|text| text.rule.is_none()).map(Text::end)
    }

    /// Forgets what ends at or before `shown`.
    pub fn trim(&mut self, shown: Offset) {
        self.0.retain(|text| text.end() > shown);
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fields!(Text { from, rule, bytes });

/// At rest there is none.
impl Pack for Instead {
    fn pack(&self, w: &mut Writer) {
        match w.is_whole() {
            true => self.0.pack(w),
            false => debug_assert!(self.is_empty(), "a flow that keeps this does not rest"),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        if r.is_whole() { Self(Pack::unpack(r)) } else { Self::default() }
    }
}

impl Flow {
    /// What the client is to be shown instead of `value`, which `id` says at a place that was not
    /// shown yet.
    pub(super) fn instead_of(
        &self,
        cx: &Cx<'_>,
        reader: &dyn Normalizer,
        id: LegId,
        rule: u16,
        value: &[u8],
    ) -> Option<Bytes> {
        let address = reader.announced(rule, value)?.address?;
        let service = cx.config.service_address(id, address);
        let text = (service != address).then(|| reader.with_address(rule, value, service));
        text.map(Bytes::from)
    }

    /// The primary's value of `own_len` bytes at `at` is shown as `text`.
    pub(super) fn show_instead(
        &mut self,
        cx: &mut Cx<'_>,
        at: Offset,
        own_len: usize,
        rule: u16,
        bytes: Bytes,
    ) -> bool {
        let is_other_len = own_len != bytes.len();
        if is_other_len && !self.splice(cx, self.primary, at, own_len, bytes.len()) {
            return false;
        }
        self.visible.instead.0.push(Text { from: at, rule: Some(rule), bytes });
        true
    }

    /// Where `id` itself says what is shown otherwise and was not shown yet.
    pub(super) fn places_instead(&self, id: LegId) -> Vec<(Own, u16)> {
        let released = self.visible.released;
        let voice = &self.leg(id).voice;
        let unshown = self.visible.instead.0.iter().filter(|text| text.from >= released);
        let place = |text: &Text| Some((voice.own(text.from, Round::Down), text.rule?));
        unshown.filter_map(place).collect()
    }

    /// `id` has become primary, and says its own version at these places. Returns where `agreed`,
    /// a place behind them, stands now.
    pub(super) fn say_instead(
        &mut self,
        cx: &mut Cx<'_>,
        id: LegId,
        places: &[(Own, u16)],
        agreed: Offset,
    ) -> Offset {
        self.visible.instead = Instead::default();
        let agreed = self.leg(id).voice.own(agreed, Round::Up);
        for &(own, rule) in places {
            let at = self.leg(id).voice.shown(own, Round::Down);
            if let Some((own_len, text)) = self.own_version(cx, id, at, rule) {
                self.show_instead(cx, at, own_len, rule, text);
            }
        }
        self.leg(id).voice.shown(agreed, Round::Up)
    }

    /// The length of the value that `id` says at `at`, and what is shown instead.
    fn own_version(&self, cx: &Cx<'_>, id: LegId, at: Offset, rule: u16) -> Option<(usize, Bytes)> {
        let reader = self.comparison.reader()?;
        let value = self.whole_value(reader, rule, at, id)?;
        let text = self.instead_of(cx, reader, id, rule, &value)?;
        Some((value.len(), text))
    }
}
