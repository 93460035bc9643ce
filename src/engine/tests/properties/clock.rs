//! The clock shown to a client: in serial order it never goes back, whatever clocks the servers
//! have, whenever one takes over and whenever the gateway begins anew; and each server hears only
//! values that it sent.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::engine::clock::{LegClock, ShownClock};
use crate::engine::{Duration, Instant, LegId};
use crate::wire::Tsval;

#[derive(Clone, Copy, Debug)]
enum Act {
    /// Time passes (ms) and both servers say something.
    Pass(u32),
    /// One server alone says something.
    Say(LegId),
    /// A server's clock jumps by this many ticks.
    Jump(LegId, i32),
    /// The other server takes over.
    Promote,
    /// The gateway begins anew; the client echoes what it saw this many values ago.
    Restart(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    let leg = || prop::sample::select(LegId::ALL.to_vec());
    prop_oneof![
        8 => prop_oneof![0u32..4, 0u32..2000].prop_map(Act::Pass),
        3 => leg().prop_map(Act::Say),
        1 => (leg(), prop_oneof![-5000i32..5000, any::<i32>()]).prop_map(|(l, d)| Act::Jump(l, d)),
        1 => Just(Act::Promote),
        1 => (0usize..70).prop_map(Act::Restart),
    ]
}

/// A server's own clock.
#[derive(Debug)]
struct Server {
    /// In thousandths of a tick.
    now: u64,
    /// Ticks in a second.
    rate: u64,
    sent: BTreeSet<u32>,
}

impl Server {
    fn value(&self) -> Tsval {
        Tsval((self.now / 1000) as u32)
    }
}

#[derive(Debug)]
struct World {
    now: Instant,
    servers: [Server; 2],
    clocks: [LegClock; 2],
    shown: ShownClock,
    primary: LegId,
    /// All that the client saw since a restart, in order.
    seen: Vec<Tsval>,
}

impl World {
    fn say(&mut self, leg: LegId) {
        let server = &mut self.servers[leg.index()];
        let value = server.value();
        server.sent.insert(value.0);
        self.clocks[leg.index()].heard(value, Tsval(0));
    }

    /// A segment leaves for the client.
    fn show(&mut self) -> Result<(), TestCaseError> {
        let Some(value) = self.clocks[self.primary.index()].in_client_space() else {
            return Ok(());
        };
        let shown = self.shown.show(self.now, value);
        for clock in &mut self.clocks {
            clock.note_shown(shown);
        }
        if let Some(last) = self.seen.last() {
            prop_assert!(!last.is_after(shown), "{last:?}, then {shown:?}");
        }
        self.seen.push(shown);
        Ok(())
    }

    /// Whatever of the last values the client echoes, a server hears one that it sent.
    fn echo(&self) -> Result<(), TestCaseError> {
        for leg in LegId::ALL {
            let sent = &self.servers[leg.index()].sent;
            for echo in self.seen.iter().rev().take(80) {
                let told = self.clocks[leg.index()].to_leg(*echo);
                prop_assert!(told.is_none_or(|told| sent.contains(&told.0)), "{told:?}");
                prop_assert_eq!(told.is_some(), !sent.is_empty());
            }
        }
        Ok(())
    }

    fn promote(&mut self) {
        self.primary = self.primary.other();
        let clock = &mut self.clocks[self.primary.index()];
        if let Some(expected) = self.shown.expected(self.now) {
            clock.continue_from(expected);
        }
    }

    /// Known from before are the clocks' offsets and, from the client, one value that was shown.
    fn restart(&mut self, ago: usize) {
        let Some(&echo) = self.seen.iter().rev().nth(ago) else { return };
        self.shown = ShownClock::default();
        self.shown.was_at(self.now, echo);
        for clock in &mut self.clocks {
            let offset = clock.offset;
            *clock = LegClock::default();
            clock.offset = offset;
        }
        self.seen = vec![echo];
        for server in &mut self.servers {
            server.sent.clear();
        }
        for leg in LegId::ALL {
            self.say(leg);
        }
    }
}

proptest! {
    #[test]
    fn it_never_goes_back_and_no_server_hears_what_it_did_not_send(
        starts in any::<(u32, u32)>(),
        rates in (1u64..=100_000, 1u64..=100_000),
        acts in prop::collection::vec(any_act(), 1..200),
    ) {
        let server = |start: u32, rate| {
            Server { now: u64::from(start) * 1000, rate, sent: BTreeSet::new() }
        };
        let mut world = World {
            now: Instant::from_millis(1000),
            servers: [server(starts.0, rates.0), server(starts.1, rates.1)],
            clocks: Default::default(),
            shown: ShownClock::default(),
            primary: LegId::A,
            seen: Vec::new(),
        };
        for leg in LegId::ALL {
            world.say(leg);
        }
        // As a handshake does it: both go on from what the client is shown first.
        let first = world.servers[0].value();
        world.clocks.iter_mut().for_each(|clock| clock.continue_from(first));
        world.show()?;
        for act in acts {
            match act {
                Act::Pass(ms) => {
                    world.now = world.now + Duration::from_millis(ms.into());
                    for server in &mut world.servers {
                        server.now += u64::from(ms) * server.rate;
                    }
                    LegId::ALL.into_iter().for_each(|leg| world.say(leg));
                }
                Act::Say(leg) => world.say(leg),
                Act::Jump(leg, by) => {
                    let server = &mut world.servers[leg.index()];
                    let ticks = server.value().0.wrapping_add_signed(by);
                    server.now = u64::from(ticks) * 1000;
                }
                Act::Promote => world.promote(),
                Act::Restart(ago) => world.restart(ago),
            }
            world.show()?;
            world.echo()?;
        }
    }

    /// Behind a change of the server the clock shown goes on at the pace of the new one: it neither
    /// jumps nor stands.
    #[test]
    fn a_new_server_goes_on_from_what_was_shown(
        starts in any::<(u32, u32)>(), before in 0u32..100_000,
        steps in prop::collection::vec(0u32..100_000, 1..20),
    ) {
        let [mut a, mut b] = [LegClock::default(), LegClock::default()];
        let mut shown = ShownClock::default();
        let (mut now, mut value) = (Instant::from_millis(1), Tsval(starts.1));
        a.heard(Tsval(starts.0), Tsval(0));
        b.heard(value, Tsval(0));
        let last = shown.show(now, Tsval(starts.0));
        now = now + Duration::from_millis(before.into());
        b.continue_from(shown.expected(now).expect("one was shown"));
        let mut expected = last.0.wrapping_add(before);
        for step in steps {
            value = Tsval(value.0.wrapping_add(step));
            expected = expected.wrapping_add(step);
            b.heard(value, Tsval(0));
            let next = shown.show(now, b.in_client_space().expect("it spoke"));
            prop_assert_eq!(next, Tsval(expected));
        }
    }

    /// While the last 64 changes are remembered, an echo finds the very value that stood behind
    /// it: no round trip is measured wrong.
    #[test]
    fn an_echo_finds_the_value_behind_it(
        starts in any::<(u32, u32)>(),
        steps in prop::collection::vec((1u32..1000, 0u32..100_000), 1..64),
    ) {
        let [mut a, mut b] = [LegClock::default(), LegClock::default()];
        let (mut own, mut shown) = (Tsval(starts.1), Tsval(starts.0));
        a.heard(shown, Tsval(0));
        let mut pairs = Vec::new();
        for (ticks, others) in steps {
            shown = Tsval(shown.0.wrapping_add(ticks));
            own = Tsval(own.0.wrapping_add(others));
            b.heard(own, Tsval(0));
            b.note_shown(shown);
            pairs.push((shown, own, ticks));
        }
        for (shown, own, ticks) in pairs.iter().copied() {
            prop_assert_eq!(b.to_leg(shown), Some(own));
            // What lies between two values belongs to the earlier one.
            let between = Tsval(shown.0.wrapping_sub(1));
            let earlier = pairs.iter().rev().find(|(s, ..)| !s.is_after(between));
            let oldest = pairs[0].1;
            if ticks > 1 {
                let expected = earlier.map_or(oldest, |&(_, own, _)| own);
                prop_assert_eq!(b.to_leg(between), Some(expected));
            }
        }
    }
}
