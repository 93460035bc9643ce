//! What well-behaved ends say next: so that an input gets deep with few bytes.

use shadowvm::engine::{LegId, Link};
use shadowvm::wire::{TcpFlags, TcpOptions, Tsval};

use super::world::{Say, World, server_iss};

const SYN_ACK: TcpFlags = TcpFlags(0x12);

/// The options of a handshake: bit 0 scale, 1 SACK, 2 timestamps.
pub fn syn_options(choice: u8, stamps: (u32, u32)) -> TcpOptions {
    TcpOptions {
        mss: Some(1460),
        window_scale: (choice & 1 != 0).then_some(choice >> 3 & 15),
        sack_permitted: choice & 2 != 0,
        timestamps: (choice & 4 != 0).then_some((Tsval(stamps.0), Tsval(stamps.1))),
        ..TcpOptions::default()
    }
}

impl World {
    /// The client's SYN.
    pub fn syn(&mut self, client: u16, iss: u32, choice: u8) {
        let options = syn_options(choice, (self.clock(Link::Client), 0));
        let say = Say { flags: TcpFlags::SYN, seq: iss, window: 60_000, options, ..Say::default() };
        self.say(Link::Client, client, &say);
    }

    /// A server's answer.
    pub fn syn_ack(&mut self, leg: LegId, client: u16, choice: u8) {
        let link = Link::Server(leg);
        let stamps = (self.clock(link), self.flow(client).stamp(link));
        let say = Say {
            flags: SYN_ACK,
            seq: server_iss(leg, client),
            ack: self.flow(client).client.wrapping_add(1),
            window: 60_000,
            options: syn_options(choice, stamps),
            ..Say::default()
        };
        self.say(link, client, &say);
    }

    /// A handshake with the same options everywhere.
    pub fn open(&mut self, client: u16, iss: u32, choice: u8) {
        self.syn(client, iss, choice);
        LegId::ALL.into_iter().for_each(|leg| self.syn_ack(leg, client, choice));
        self.speak(Link::Client, client, 0, TcpFlags::ACK);
    }

    /// The next `len` bytes of an end, with an ack of all that it has heard in order.
    pub fn speak(&mut self, link: Link, client: u16, len: usize, flags: TcpFlags) {
        let flow = self.flow(client);
        let (seq, ack) = match link {
            Link::Client => (flow.client_nxt, flow.taken),
            Link::Server(leg) => (flow.nxt[leg.index()], flow.heard[leg.index()]),
        };
        let stamp = flow.stamp(link);
        let mut say = Say { flags, seq, ack, window: 60_000, len, ..Say::default() };
        if stamp > 0 {
            say.options.timestamps = Some((Tsval(self.clock(link)), Tsval(stamp)));
        }
        self.say(link, client, &say);
    }

    /// An end's own clock: of different rates, far apart.
    pub fn clock(&self, link: Link) -> u32 {
        let ms = self.now.millis() as u32;
        match link {
            Link::Client => ms,
            Link::Server(LegId::A) => ms.wrapping_add(0x7fff_f000),
            Link::Server(LegId::B) => (ms / 4).wrapping_add(0xffff_ff00),
        }
    }
}
