//! Errors about a connection, with any quote: a server hears of its own numbers, the client of
//! nothing, and an error about anything else has no effect.

use shadowvm::engine::{Input, LegId, Link, Output};
use shadowvm::wire::{Frame, IcmpKind, Offload, Packet, Quote, TcpFlags, build, checksum, parse};

use super::reader::Reader;
use super::world::{self, World, server_iss};

/// The client's connection has this many bytes of answer in flight.
const IN_FLIGHT: usize = 2000;

/// A byte (odd: the quote that follows is laid over a true one), then the ICMP message without its
/// checksum.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let is_laid_over = input.u8() & 1 != 0;
    let mut world = World::new(false);
    world.open(0, 0xffff_fff0, 7);
    world.speak(Link::Client, 0, 100, TcpFlags::ACK);
    for leg in LegId::ALL {
        world.speak(Link::Server(leg), 0, IN_FLIGHT, TcpFlags::ACK);
    }
    let mut message = if is_laid_over { true_error(&world) } else { Vec::new() };
    let given = input.rest();
    message.resize(message.len().max(given.len()).max(8), 0);
    message.iter_mut().zip(given).for_each(|(byte, given)| *byte ^= given);
    message[2..4].fill(0);
    let check = checksum::Sum::new().bytes(&message).check();
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let (l2, l3) = world::headers(Link::Client);
    let frame = build::datagram(&l2, &l3, 1, &message);
    let Ok(Packet::Icmp(icmp)) = parse::parse(&frame) else { panic!("a message as built") };
    let quote = quote_of(&icmp.kind);
    world.engine.handle(world.now, Input::Frame(Link::Client, frame));
    let mut passed = 0;
    while let Some(output) = world.engine.poll_output() {
        let Output::Transmit(link, frame) = output else { continue };
        let Link::Server(leg) = link else { panic!("the client heard {frame:?}") };
        if let (Some(quote), Some(told)) = (quote, read(&frame)) {
            passed += 1;
            let visible = world.flow(0).visible.expect("it was opened");
            let place = quote.seq.wrapping_sub(visible);
            assert_eq!(told.seq.wrapping_sub(server_iss(leg, 0)), place, "in {leg:?}'s numbers");
            assert_eq!((told.src, told.dst), (quote.src, quote.dst));
            // What is said of a connection that nobody knows passes as it is.
            let ends = ((world::SERVICE, 80).into(), (world::CLIENT, world::PORT).into());
            let is_known = (quote.src, quote.dst) == ends;
            let is_in_flight = place as usize <= IN_FLIGHT + 1;
            assert!(is_in_flight || !is_known, "about {place}, which is not in flight");
        }
    }
    // The connection goes on.
    for leg in LegId::ALL {
        world.speak(Link::Server(leg), 0, 50, TcpFlags::ACK);
    }
    assert_eq!(world.shown_bytes, IN_FLIGHT + 50);
    passed > 0
}

fn quote_of(kind: &IcmpKind) -> Option<Quote> {
    match kind {
        IcmpKind::TooBig { quote, .. } | IcmpKind::Error { quote, .. } => *quote,
        _ => None,
    }
}

/// What an error that left quotes.
fn read(frame: &Frame) -> Option<Quote> {
    let again = Frame::from_wire(frame.to_vec().into(), Offload::default());
    match parse::parse(&again).expect("what leaves can be read") {
        Packet::Icmp(icmp) => quote_of(&icmp.kind),
        _ => None,
    }
}

/// "Fragmentation needed" about the first segment of the answer.
fn true_error(world: &World) -> Vec<u8> {
    let say = world::Say {
        flags: TcpFlags::ACK,
        seq: world.flow(0).visible.expect("it was opened").wrapping_add(1),
        len: 40,
        ..world::Say::default()
    };
    let original = world.shown_frame(0, &say);
    let (l2, l3) = world::headers(Link::Client);
    let error = build::icmp_too_big(&l2, &l3, 1280, &original).expect("about IP");
    error.to_vec()[34..].to_vec()
}

/// The true error, others about the same segment, and what must have no effect beside them.
pub fn seeds() -> Vec<Vec<u8>> {
    let laid_over = |edits: &[(usize, u8)]| {
        let mut seed = vec![1; 1];
        seed.resize(1 + edits.iter().map(|(at, _)| at + 1).max().unwrap_or(0), 0);
        edits.iter().for_each(|&(at, by)| seed[1 + at] ^= by);
        seed
    };
    vec![
        laid_over(&[]),
        laid_over(&[(1, 4 ^ 3)]),          // port unreachable
        laid_over(&[(0, 3 ^ 11), (1, 4)]), // time exceeded
        laid_over(&[(7, 0xff)]),           // another MTU
        laid_over(&[(8 + 20 + 7, 5)]),     // a number further on
    ]
}
