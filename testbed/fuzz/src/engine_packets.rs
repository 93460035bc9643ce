//! A sequence of what anybody may do to the gateway: speak well or badly, corrupt, fall silent,
//! command, restart. The [`World`] looks at whatever comes out.

use shadowvm::engine::{Command, Input, LegId, Link, LinkCaps, Signal};
use shadowvm::wire::{Frame, Offload, TcpFlags, Tsval, build};

use super::reader::Reader;
use super::world::{self, PORTS, Say, World, client_byte, server_iss};

/// Steps of one input.
const STEPS_MAX: usize = 256;

/// A byte of settings, then steps: a byte each for what and by whom, then what it needs.
pub fn target(data: &[u8]) -> bool {
    run(data).shown_bytes > 0
}

fn run(data: &[u8]) -> World {
    let mut input = Reader::new(data);
    let mut world = World::new(input.u8() & 1 != 0);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut world, &mut input);
    }
    world.pass(300);
    world
}

/// What a step is, in its lower four bits.
mod op {
    pub(super) const SYN: u8 = 0;
    pub(super) const SYN_ACK: u8 = 1;
    pub(super) const SPEAK: u8 = 2;
    pub(super) const ACK: u8 = 3;
    pub(super) const FIN: u8 = 4;
    pub(super) const SEGMENT: u8 = 5;
    pub(super) const WILD: u8 = 6;
    pub(super) const PASS: u8 = 7;
    pub(super) const SIGNAL: u8 = 8;
    pub(super) const COMMAND: u8 = 9;
    pub(super) const SYNC: u8 = 10;
    pub(super) const RAW: u8 = 11;
    pub(super) const OTHER: u8 = 12;
    pub(super) const VARIANT: u8 = 13;
    pub(super) const RESTART: u8 = 14;
    pub(super) const STALL: u8 = 15;
}

/// The upper four bits: the client in two, the link in two.
fn step(world: &mut World, input: &mut Reader<'_>) {
    let code = input.u8();
    let client = u16::from(code >> 4) % PORTS;
    let link = [Link::Client, Link::Server(LegId::A), Link::Server(LegId::B), Link::Client];
    let link = link[usize::from(code >> 6)];
    let leg = if let Link::Server(leg) = link { leg } else { LegId::A };
    match code & 15 {
        op::SYN => {
            let (iss, choice) = (input.u16(), input.u8());
            world.syn(client, u32::from(iss) << 16 | 0xff00, choice);
        }
        op::SYN_ACK => world.syn_ack(leg, client, input.u8()),
        op::SPEAK => {
            let len = usize::from(input.u8()) * 8;
            world.speak(link, client, len, TcpFlags::ACK.with(TcpFlags::PSH));
        }
        op::ACK => world.speak(link, client, 0, TcpFlags::ACK),
        op::FIN => world.speak(link, client, usize::from(input.u8()), TcpFlags::FIN_ACK),
        op::SEGMENT => segment(world, link, client, input),
        op::WILD => {
            world.set_wild(client);
            let (seq, ack) = (input.u32(), input.u32());
            let say = Say { flags: TcpFlags(input.u8()), seq, ack, len: 3, ..Say::default() };
            world.say(link, client, &say);
        }
        op::PASS => world.pass(u64::from(input.u8()) * 2),
        op::SIGNAL => signal(world, leg, input.u8()),
        op::COMMAND => command(world, leg, input.u8()),
        op::SYNC => world.end_sync(input.u8() & 1 != 0),
        op::RAW => {
            let len = input.u8();
            let bytes = input.take(len.into()).to_vec();
            let frame = Frame::from_wire(bytes.into(), Offload::default());
            world.input(Input::Frame(link, frame));
        }
        op::OTHER => other(world, link, input),
        op::VARIANT => world.variant = input.u8(),
        op::RESTART => world.restart(),
        op::STALL => world.stall(u64::from(input.u8()) * 4),
        _ => unreachable!("four bits"),
    }
}

/// A segment near the numbers of the flow: each is an end's next one and a distance.
fn segment(world: &mut World, link: Link, client: u16, input: &mut Reader<'_>) {
    let flags = TcpFlags(input.u8());
    let (what, seq, ack) = (input.u8(), input.i16(), input.i16());
    let (window, len) = (input.u16(), usize::from(input.u8()) * 4);
    let flow = world.flow(client);
    let (own, other) = match link {
        Link::Client => (flow.client_nxt, flow.taken),
        Link::Server(leg) => (flow.nxt[leg.index()], flow.heard[leg.index()]),
    };
    let first = match link {
        Link::Client => flow.client,
        Link::Server(leg) => server_iss(leg, client),
    };
    let own = if what & 1 != 0 { first } else { own };
    let stamp = flow.stamp(link);
    let mut say = Say {
        flags,
        seq: own.wrapping_add_signed(seq.into()),
        ack: other.wrapping_add_signed(ack.into()),
        window,
        len,
        urgent: if what & 2 != 0 { 3 } else { 0 },
        ..Say::default()
    };
    if what & 4 != 0 {
        let value = world.clock(link).wrapping_add_signed(input.i16().into());
        say.options.timestamps = Some((Tsval(value), Tsval(stamp)));
    }
    for _ in 0..what >> 3 & 3 {
        let left = say.ack.wrapping_add_signed(input.i16().into());
        say.options.sack.push(left, left.wrapping_add(input.u8().into()));
    }
    if what & 0x20 != 0 && !flags.has(TcpFlags::SYN) {
        world.damaged(link, client, &say, input.u16());
    } else {
        world.say(link, client, &say);
    }
}

fn signal(world: &mut World, leg: LegId, what: u8) {
    let signal = match what % 6 {
        0 => Signal::CarrierDown,
        1 => Signal::LinkGone,
        2 if what & 0x40 != 0 => Signal::Running,
        2 => Signal::Exited,
        3 => Signal::CarrierUp(LinkCaps::default()),
        other => return world.is_dead[leg.index()] = other == 4,
    };
    world.input(Input::Signal(Link::Server(leg), signal));
}

fn command(world: &mut World, leg: LegId, what: u8) {
    world.command(match what % 7 {
        0 => Command::Failover { to: None, is_planned: true },
        1 => Command::Failover { to: Some(leg), is_planned: false },
        2 => Command::Rejoin(leg),
        3 => Command::Pause,
        4 => Command::Resume,
        5 => Command::SyncNow,
        _ => Command::Failover { to: Some(leg), is_planned: true },
    });
}

/// What is no TCP: datagrams, echoes, neighbours, and pieces.
fn other(world: &mut World, link: Link, input: &mut Reader<'_>) {
    let (kind, len) = (input.u8(), usize::from(input.u8()));
    let (l2, l3) = world::headers(link);
    let mut bytes: Vec<u8> = (0..len as u32).map(client_byte).collect();
    let frame = match kind % 4 {
        0 => {
            let sizes = (8 + len as u16).to_be_bytes();
            bytes.splice(..0, [0x30, 0x39, 0, 53, sizes[0], sizes[1], 0, 0]);
            build::datagram(&l2, &l3, 17, &bytes)
        }
        1 => {
            let request = if link == Link::Client { 8 } else { 0 };
            bytes.splice(..0, [request, 0, 0, 0, 0, 1, 0, kind]);
            let check = shadowvm::wire::checksum::Sum::new().bytes(&bytes).check();
            bytes[2..4].copy_from_slice(&check.to_be_bytes());
            build::datagram(&l2, &l3, 1, &bytes)
        }
        2 if kind & 4 != 0 => build::arp_request(&l2, world::CLIENT, world::SERVICE),
        2 => build::arp_reply(&l2, world::SERVICE, world::CLIENT),
        _ => build::datagram(&l2, &l3, 132, &bytes),
    };
    for piece in build::fragments(frame, 100) {
        world.input(Input::Frame(link, piece));
    }
}

/// Stories, each of which ends with bytes shown to the client.
pub fn seeds() -> Vec<Vec<u8>> {
    const A: u8 = 1 << 6;
    const B: u8 = 2 << 6;
    let open = |choice: u8| {
        vec![
            0,
            op::SYN,
            0xff,
            0xff,
            choice,
            A | op::SYN_ACK,
            choice,
            B | op::SYN_ACK,
            choice,
            op::ACK,
        ]
    };
    let ask = [op::SPEAK, 5, A | op::ACK, B | op::ACK];
    let both = [A | op::SPEAK, 40, B | op::SPEAK, 40, op::ACK];
    let end = [A | op::FIN, 0, B | op::FIN, 0, op::FIN, 0, A | op::ACK, B | op::ACK];
    let stories: [&[&[u8]]; 12] = [
        &[&ask, &both, &both, &end],
        // One server dies while the other's bytes are held; it comes back.
        &[
            &ask,
            &both,
            &[A | op::SPEAK, 9, A | op::SIGNAL, 0, B | op::SPEAK, 9, op::ACK, op::PASS, 90],
            &[A | op::SIGNAL, 3, op::PASS, 250, A | op::COMMAND, 2, op::PASS, 250],
            &both,
        ],
        // The backup is late, then catches up; then it is silent.
        &[
            &ask,
            &[A | op::SPEAK, 40, op::PASS, 120, op::ACK, B | op::SPEAK, 40, op::PASS, 20],
            &both,
            &[B | op::SIGNAL, 4, A | op::SPEAK, 40, op::PASS, 250, op::PASS, 250, op::ACK],
        ],
        // The servers differ; a sync succeeds, another fails.
        &[
            &ask,
            &both,
            &[op::VARIANT, 1],
            &both,
            &[op::SYNC, 1, op::VARIANT, 0],
            &both,
            &[op::VARIANT, 2],
            &both,
            &[op::SYNC, 0, op::PASS, 100],
        ],
        // A planned change, then a forced one.
        &[
            &ask,
            &both,
            &[op::COMMAND, 0, op::PASS, 10],
            &both,
            &[op::COMMAND, 1, op::PASS, 50],
            &both,
        ],
        // The gateway restarts in the middle.
        &[
            &ask,
            &both,
            &[op::RESTART, A | op::ACK, B | op::ACK, op::ACK, op::PASS, 50],
            &ask,
            &both,
        ],
        // Holes, duplicates, SACK, a zero window.
        &[
            &ask,
            &[
                A | op::SEGMENT,
                16,
                8,
                0,
                100,
                0,
                0,
                9,
                9,
                25,
                0,
                5,
                30,
                B | op::SEGMENT,
                16,
                0,
                0,
                100,
                0,
                0,
                9,
                9,
                25,
            ],
            &both,
            &[op::SEGMENT, 16, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 20, 40, 0, 60, 9],
            &[op::SEGMENT, 16, 0, 255, 0, 0, 0, 1, 0, 30, op::PASS, 90],
            &both,
        ],
        // Resets, exact and not, of everybody.
        &[
            &ask,
            &both,
            &[A | op::SEGMENT, 4, 0, 1, 0, 0, 0, 0, 0, 0, op::PASS, 40],
            &[op::SEGMENT, 4, 0, 0, 90, 0, 0, 0, 0, 0],
            &both,
            &[op::SEGMENT, 4, 0, 0, 0, 0, 0, 0, 0, 0],
            &ask,
        ],
        // Damage, noise, other protocols.
        &[
            &ask,
            &[A | op::SEGMENT, 24, 0x20, 0, 0, 0, 0, 9, 9, 9, 0, 66],
            &both,
            &[
                op::OTHER,
                0,
                200,
                A | op::OTHER,
                0,
                90,
                B | op::OTHER,
                0,
                90,
                op::OTHER,
                1,
                9,
                A | op::OTHER,
                1,
                9,
                B | op::OTHER,
                1,
                9,
                op::OTHER,
                2,
                0,
                A | op::OTHER,
                6,
                0,
                op::OTHER,
                3,
                9,
            ],
            &[op::RAW, 3, 1, 2, 3],
            &both,
        ],
        // Numbers far beside, then a new connection on the same ports.
        &[
            &ask,
            &both,
            &[op::WILD, 9, 9, 9, 9, 7, 7, 7, 7, 16, A | op::WILD, 9, 9, 9, 9, 7, 7, 7, 7, 16],
            &end,
            &[op::SYN, 1, 1, 7, A | op::SYN_ACK, 7, B | op::SYN_ACK, 7, op::ACK],
            &ask,
            &both,
        ],
        // More clients than there is room for.
        &[
            &ask,
            &both,
            &[0x10, 1, 1, 7, 0x20, 2, 2, 7, 0x30, 3, 3, 7, 0x71, 7, 0xb1, 7, 0x13, op::PASS, 9],
        ],
        // The gateway is not scheduled for a while.
        &[&ask, &both, &[A | op::SPEAK, 9, op::STALL, 250, B | op::SPEAK, 9, op::PASS, 9], &both],
    ];
    let mut seeds = Vec::new();
    for (choice, story) in [7, 0, 2, 6, 0x3f, 1, 3].iter().cycle().zip(stories) {
        seeds.push([open(*choice), story.concat()].concat());
    }
    seeds
}
