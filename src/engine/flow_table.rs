//! The flows: by key, by number, by deadline. Bounded; a flow is never evicted for a new one.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{FlowKey, FlowState, PackedKey};
use super::flow::Flow;
use super::half_open::{HalfOpen, Source};
use super::pack::{Pack, Reader, Writer};
use super::shelf::{Place, Shelf};
use super::time::Instant;
use super::{EngineConfig, FlowSnapshot, LegId};
use crate::protocol::Rules;

/// A flow's number, and its slot in the state file.
pub type FlowId = u32;

/// All flows of a gateway.
#[derive(Debug, Default)]
pub struct FlowTable {
    by_key: BTreeMap<PackedKey, FlowId>,
    slots: Vec<Option<Slot>>,
    /// The flows at rest.
    shelf: Shelf,
    /// What all flows share: what may differ.
    rules: Rules,
    free: Vec<FlowId>,
    /// For each flow that has a deadline: that one, or an earlier one. Nearly every packet puts a
    /// deadline off; the set hears of it when the earlier one has come.
    timers: BTreeSet<(Instant, FlowId)>,
    /// Flows that wait for a leg, oldest first.
    pins: [BTreeSet<(Instant, FlowId)>; 2],
    half_open: HalfOpen,
    /// Flows with one server that ask for a second one some time.
    alone: BTreeSet<FlowId>,
    held: usize,
    /// Flows by state, in the order of [`FlowState`].
    counts: [u32; 6],
}

/// Boxed: the table grows without moving them, and who is gone leaves its room to anybody.
#[derive(Debug)]
enum Slot {
    Awake(Box<Entry>),
    AtRest(Place),
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    state: FlowState,
    /// As it stands in the set.
    timer: Option<Instant>,
    pinned: [Option<Instant>; 2],
    half_open: Option<Instant>,
    is_alone: bool,
    held: usize,
}

impl Entry {
    fn new(flow: Flow, timer: Option<Instant>, is_alone: bool) -> Box<Self> {
        let (state, pinned, half_open, held) = (flow.state(), [None; 2], None, 0);
        Box::new(Self { flow, state, timer, pinned, half_open, is_alone, held })
    }

    /// Has the flow's deadline stand in the set as it is.
    fn move_timer(
        &mut self,
        timers: &mut BTreeSet<(Instant, FlowId)>,
        id: FlowId,
        to: Option<Instant>,
    ) {
        if self.timer == to {
            return;
        }
        if let Some(old) = self.timer {
            timers.remove(&(old, id));
        }
        if let Some(new) = to {
            timers.insert((new, id));
        }
        self.timer = to;
    }
}

impl FlowTable {
    /// Bytes held by all.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Flows by state, in the order of [`FlowState`].
    pub fn counts(&self) -> [u32; 6] {
        self.counts
    }

    /// Handshakes that clients have not completed.
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// The handshake that gives way to another one of `source`, if one has to.
    pub fn displaced(&self, now: Instant, source: Source, config: &EngineConfig) -> Option<FlowId> {
        let is_full = self.next_id(config.flows_max).is_none();
        self.half_open.displaced(now, source, is_full, config)
    }

    /// Flows of a network.
    pub fn flows_of(&self, source: Source) -> usize {
        self.half_open.flows_of(source)
    }

    /// The flow of `key`.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.by_key.get(&key.packed()).copied()
    }

    /// The number that the next flow will have; `None` if the table is full.
    pub fn next_id(&self, flows_max: usize) -> Option<FlowId> {
        let next = self.free.last().copied().or_else(|| u32::try_from(self.slots.len()).ok())?;
        ((next as usize) < flows_max).then_some(next)
    }

    /// Adds a flow under the number that [`Self::next_id`] gave, or its restored slot.
    pub fn insert(&mut self, id: FlowId, flow: Flow) {
        match self.free.last() == Some(&id) {
            true => drop(self.free.pop()),
            false => self.free.retain(|&free| free != id), // a restored one
        }
        while self.slots.len() <= id as usize {
            let slot = self.slots.len() as FlowId;
            self.slots.push(None);
            if slot != id {
                self.free.push(slot);
            }
        }
        self.place(id, flow);
    }

    fn place(&mut self, id: FlowId, flow: Flow) {
        self.by_key.insert(flow.key.packed(), id);
        self.half_open.flow_begins(Source::of(flow.key.client.ip()));
        self.counts[flow.state() as usize] += 1;
        self.slots[id as usize] = Some(Slot::Awake(Entry::new(flow, None, false)));
        self.refresh(id);
    }

    /// What [`Self::pack_state`] would cost, as bytes that are copied.
    pub fn weight(&self) -> usize {
        const AWAKE: usize = 4096;
        const AT_REST: usize = 160;
        let weight = |slot: &Option<Slot>| match slot {
            Some(Slot::Awake(_)) => AWAKE,
            Some(Slot::AtRest(_)) => AT_REST,
            None => 1,
        };
        self.slots.iter().map(weight).sum()
    }

    /// All flows, but those that keep what is not packed; how many these are.
    pub fn pack_state(&self, w: &mut Writer) -> u32 {
        let mut left_out = 0;
        self.slots.len().pack(w);
        self.free.pack(w);
        for slot in &self.slots {
            match slot {
                Some(Slot::Awake(entry)) if entry.flow.is_packable() => {
                    1u8.pack(w);
                    entry.flow.pack(w);
                    entry.timer.pack(w);
                }
                Some(Slot::AtRest(place)) => {
                    2u8.pack(w);
                    w.string(self.shelf.get(*place));
                }
                Some(Slot::Awake(_)) => {
                    left_out += 1;
                    0u8.pack(w);
                }
                None => 0u8.pack(w),
            }
        }
        left_out
    }

    /// Takes them back into an empty table.
    pub fn unpack_state(&mut self, r: &mut Reader<'_>) {
        let (len, free): (usize, Vec<FlowId>) = Pack::unpack(r);
        self.free = free;
        for id in 0..len {
            let (flow, timer, at_rest) = match u8::unpack(r) {
                _ if !r.is_good_so_far() => return,
                0 => {
                    self.slots.push(None);
                    continue;
                }
                1 => {
                    let flow = Flow::unpack(r);
                    (flow, Option::unpack(r), None)
                }
                _ => {
                    let bytes = r.string();
                    let Some(flow) = Flow::wake_foreign(bytes, &self.rules) else {
                        return r.damaged();
                    };
                    (flow, None, Some(bytes))
                }
            };
            self.slots.push(None);
            let id = id as FlowId;
            if self.by_key.contains_key(&flow.key.packed()) {
                return r.damaged();
            }
            self.place(id, flow);
            if let Some(bytes) = at_rest {
                self.slots[id as usize] = Some(Slot::AtRest(self.shelf.put(id, bytes)));
            } else if let Some(Slot::Awake(entry)) = &mut self.slots[id as usize]
                && timer.is_some()
                && timer <= entry.timer
            {
                entry.move_timer(&mut self.timers, id, timer);
            }
        }
    }

    /// The flow `id`, awake, to be changed; call [`Self::refresh`] afterwards.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.wake(id);
        match self.slots.get_mut(id as usize)?.as_mut()? {
            Slot::Awake(entry) => Some(&mut entry.flow),
            Slot::AtRest(_) => None,
        }
    }

    fn wake(&mut self, id: FlowId) {
        let Some(Some(slot)) = self.slots.get_mut(id as usize) else { return };
        let &mut Slot::AtRest(place) = slot else { return };
        let flow = Flow::wake(self.shelf.get(place), &self.rules);
        let (timer, is_alone) = (flow.timer(), self.alone.contains(&id));
        *slot = Slot::Awake(Entry::new(flow, timer, is_alone));
        for (moved, to) in self.shelf.remove(place) {
            self.slots[moved as usize] = Some(Slot::AtRest(to));
        }
    }

    /// Lets `look` see the flow `id`; one at rest stays there.
    pub fn peek<T>(&self, id: FlowId, look: impl FnOnce(&Flow) -> T) -> Option<T> {
        let slot = self.slots.get(id as usize)?.as_ref()?;
        Some(match slot {
            Slot::Awake(entry) => look(&entry.flow),
            Slot::AtRest(place) => look(&Flow::wake(self.shelf.get(*place), &self.rules)),
        })
    }

    /// What flows may have differ, from now on.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Puts the flow `id` to rest, if it is time; nothing has changed it since [`Self::refresh`].
    pub fn put_down(&mut self, id: FlowId, now: Instant) {
        let Some(Some(slot)) = self.slots.get_mut(id as usize) else { return };
        let Slot::Awake(entry) = slot else { return };
        if let Some(flow) = entry.flow.rest(now) {
            let timer = entry.flow.timer();
            entry.move_timer(&mut self.timers, id, timer);
            #[cfg(test)]
            assert_eq!(
                format!("{:?}", Flow::wake(&flow, &self.rules)),
                format!("{:?}", entry.flow),
                "a flow wakes as it was put to rest"
            );
            *slot = Slot::AtRest(self.shelf.put(id, &flow));
        }
    }

    /// What is kept of each flow at rest.
    #[cfg(test)]
    pub fn at_rest(&self) -> impl Iterator<Item = &[u8]> {
        self.slots.iter().filter_map(|slot| match slot {
            Some(Slot::AtRest(place)) => Some(self.shelf.get(*place)),
            _ => None,
        })
    }

    /// Takes over a changed flow's timer, pins and size; forgets it if it is gone.
    pub fn refresh(&mut self, id: FlowId) {
        let Some(Some(Slot::Awake(entry))) = self.slots.get_mut(id as usize) else { return };
        let (timer, held) = (entry.flow.timer(), entry.flow.held());
        let is_gone = entry.flow.is_gone();
        let timer = timer.filter(|_| !is_gone);
        let is_put_off = timer.is_some() && entry.timer.is_some_and(|old| Some(old) <= timer);
        if !is_put_off {
            entry.move_timer(&mut self.timers, id, timer);
        }
        for leg in LegId::ALL {
            let i = leg.index();
            let pinned = entry.flow.pinned(leg).filter(|_| !is_gone);
            if pinned != entry.pinned[i] {
                if let Some(old) = entry.pinned[i] {
                    self.pins[i].remove(&(old, id));
                }
                if let Some(new) = pinned {
                    self.pins[i].insert((new, id));
                }
                entry.pinned[i] = pinned;
            }
        }
        let source = Source::of(entry.flow.key.client.ip());
        let half_open = entry.flow.half_open_since().filter(|_| !is_gone);
        if half_open != entry.half_open {
            if let Some(since) = entry.half_open {
                self.half_open.ends(source, since, id);
            }
            if let Some(since) = half_open {
                self.half_open.begins(source, since, id);
            }
            entry.half_open = half_open;
        }
        let is_alone = !is_gone && entry.flow.is_to_reprotect();
        if is_alone != entry.is_alone {
            entry.is_alone = is_alone;
            match is_alone {
                true => self.alone.insert(id),
                false => self.alone.remove(&id),
            };
        }
        self.counts[entry.state as usize] -= 1;
        entry.state = entry.flow.state();
        self.counts[entry.state as usize] += u32::from(!is_gone);
        let held = if is_gone { 0 } else { held };
        self.held = self.held + held - entry.held;
        entry.held = held;
        if is_gone {
            self.by_key.remove(&entry.flow.key.packed());
            self.half_open.flow_ends(source);
            self.slots[id as usize] = None;
            self.free.push(id);
        }
    }

    /// When to ask for [`Self::due`], at the latest.
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// The flows whose deadline has passed, oldest first.
    pub fn due(&mut self, now: Instant) -> Vec<FlowId> {
        let come = self.timers.iter().take_while(|&&(at, _)| at <= now).copied();
        let mut due: Vec<(Instant, FlowId)> = come.collect();
        due.retain_mut(|(at, id)| {
            let Some(Some(Slot::Awake(entry))) = self.slots.get_mut(*id as usize) else {
                return true; // at rest nothing is put off
            };
            let timer = entry.flow.timer();
            entry.move_timer(&mut self.timers, *id, timer);
            *at = timer.unwrap_or(*at);
            timer.is_some_and(|at| at <= now)
        });
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Flows that have waited for `leg` since `before` or earlier, oldest first.
    pub fn pinned_since(
        &self,
        leg: LegId,
        before: Instant,
    ) -> impl Iterator<Item = (Instant, FlowId)> + '_ {
        self.pins[leg.index()].iter().copied().take_while(move |&(since, _)| since <= before)
    }

    /// Whether any flow waits for `leg`.
    pub fn is_pinned(&self, leg: LegId) -> bool {
        !self.pins[leg.index()].is_empty()
    }

    /// Whether a flow with one server asks for a second one some time.
    pub fn has_alone(&self) -> bool {
        !self.alone.is_empty()
    }

    /// The numbers of up to `max` of them, from `from` on.
    pub fn alone_from(&self, from: FlowId, max: usize) -> Vec<FlowId> {
        self.alone.range(from..).take(max).copied().collect()
    }

    /// The numbers of all flows, lowest first.
    pub fn ids(&self) -> Vec<FlowId> {
        self.by_key.values().copied().collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The numbers of all flows, those that hold the most bytes first.
    pub fn ids_by_held(&self) -> Vec<FlowId> {
        let mut ids = self.ids();
        ids.sort_by_key(|&id| std::cmp::Reverse(self.awake(id).map_or(0, Flow::held)));
        ids
    }

    /// The flows that are awake: on every other one nothing is under way.
    pub fn awake_ones(&self) -> impl Iterator<Item = &Flow> {
        (0..self.slots.len()).filter_map(|id| self.awake(id as FlowId))
    }

    /// The flow `id`, if it is awake.
    pub fn awake(&self, id: FlowId) -> Option<&Flow> {
        match self.slots.get(id as usize)?.as_ref()? {
            Slot::Awake(entry) => Some(&entry.flow),
            Slot::AtRest(_) => None,
        }
    }

    /// Up to `limit` flows, in the order of their keys.
    pub fn snapshots(&self, limit: usize) -> Vec<FlowSnapshot> {
        let ids = self.by_key.values().take(limit);
        ids.filter_map(|&id| self.peek(id, Flow::snapshot)).collect()
    }
}
