//! Windows between ends of different scales (RFC 7323 2): the edge told is never beyond what was
//! granted, never steps back by more than the rounding, and no window that has room for a unit of
//! the scale is told as closed. Every pair of scales.

use super::{ACK, Connection, LegId, Link, Say, say};

const CLIENT: u32 = u32::MAX - 20;
const ISS: [u32; 2] = [7, u32::MAX - 9];
/// No scale, then every one there is.
const SCALES: [Option<u8>; 16] = {
    let mut scales = [None; 16];
    let mut at = 0;
    while at < 15 {
        scales[at + 1] = Some(at as u8);
        at += 1;
    }
    scales
};

/// Fields at every edge of a scale, and steps between.
fn fields() -> Vec<u16> {
    let edges = (0..16).flat_map(|shift| [(1u32 << shift) - 1, 1 << shift, (1 << shift) + 1]);
    let steps = (0..=u32::from(u16::MAX)).step_by(4099);
    let all = edges.chain(steps).chain([65_534, 65_535, 0, 65_535, 1]);
    all.filter_map(|field| u16::try_from(field).ok()).collect()
}

fn scaled(it: Say, scale: Option<u8>) -> Say {
    scale.map_or(it.clone(), |shift| it.scale(shift))
}

fn shift(scale: Option<u8>) -> u32 {
    scale.unwrap_or(0).into()
}

/// What a receiver makes of the windows that it is told.
#[derive(Debug, Default)]
struct Receiver {
    edge: u64,
}

impl Receiver {
    /// A window `field` at `ack`, in units of `1 << shift`; what was granted ends at `granted`, and
    /// the granting ends have `room` of it open.
    fn told(&mut self, ack: u64, field: u16, shift: u32, granted: u64, room: u64) {
        let edge = ack + (u64::from(field) << shift);
        assert!(edge <= granted, "told up to {edge}, granted up to {granted}");
        assert!(edge + (1 << shift) > self.edge, "told {edge} after {}", self.edge);
        assert!(field > 0 || room < 1 << shift, "room for {room} bytes told as a closed window");
        self.edge = self.edge.max(edge);
    }
}

/// Two servers' windows, as the client is told them.
#[test]
fn the_client_is_never_told_more_than_both_grant_nor_a_false_zero() {
    let fields = fields();
    for a in SCALES {
        for b in SCALES {
            let mut c = Connection::open(
                CLIENT,
                ISS,
                |it| it.scale(3),
                |leg, it| scaled(it, [a, b][leg.index()]),
            );
            let visible = match (a, b) {
                (Some(a), Some(b)) => Some(a.min(b)),
                _ => None,
            };
            let mut told = Receiver { edge: 60_000 };
            // Each server's edge only grows.
            let mut edges = [60_000u64; 2];
            for (step, &field) in (0u32..).zip(&fields) {
                let acked = step + 1;
                c.kit.client(c.by_client(step, 0).data("x"));
                c.kit.forget();
                let other = fields[(step as usize * 7 + 3) % fields.len()];
                let mut rooms = [0; 2];
                for (leg, field) in [(LegId::A, field), (LegId::B, other)] {
                    let i = leg.index();
                    let window = u64::from(field) << shift([a, b][i]);
                    edges[i] = edges[i].max(u64::from(acked) + window);
                    rooms[i] = window;
                    c.kit.leg(leg, c.by_leg(leg, 0, acked).window(field));
                }
                let heard = c.kit.on(Link::Client);
                assert!(!heard.is_empty(), "an ack that advances is told");
                let last = &heard[heard.len() - 1];
                let (_, ack) = c.place(last);
                assert_eq!(ack, acked);
                let (granted, room) = (edges[0].min(edges[1]), rooms[0].min(rooms[1]));
                told.told(ack.into(), last.seg.window, shift(visible), granted, room);
                // All that both grant, but for the rounding and the size of the field.
                let unit = 1u64 << shift(visible);
                let most = u64::from(ack) + (u64::from(u16::MAX) << shift(visible));
                assert!(told.edge + unit > granted.min(most), "{} of {granted}", told.edge);
            }
        }
    }
}

/// The client's window, as each server is told it.
#[test]
fn a_server_is_never_told_more_than_the_client_grants_nor_a_false_zero() {
    let fields = fields();
    for own in SCALES {
        // A server answers with a scale only if it was offered one (RFC 7323 2.2).
        let answers = if own.is_some() { &SCALES[..] } else { &SCALES[..1] };
        for &a in answers {
            for b in [a, answers[answers.len() / 2], None] {
                check_to_servers(own, [a, b], &fields);
            }
        }
    }
}

fn check_to_servers(own: Option<u8>, legs: [Option<u8>; 2], fields: &[u16]) {
    let mut c = Connection::open(
        CLIENT,
        ISS,
        |it| scaled(it, own),
        |leg, it| scaled(it, legs[leg.index()]),
    );
    let has_scale = own.is_some() && legs.iter().all(Option::is_some);
    let client_shift = if has_scale { shift(own) } else { 0 };
    // What each server takes the client's fields for.
    let shifts = legs.map(|leg| leg.map_or(0, |_| shift(own)));
    let mut told = [Receiver::default(), Receiver::default()];
    let mut granted = 60_000u64 << client_shift;
    for (step, &field) in (0u32..).zip(fields) {
        // One byte of an answer, so that the client's ack advances.
        for leg in LegId::ALL {
            c.kit.leg(leg, c.by_leg(leg, step, step).data("y"));
        }
        c.kit.forget();
        let acked = step + 1;
        let window = u64::from(field) << client_shift;
        granted = granted.max(u64::from(acked) + window);
        let it = say(ACK, super::after(CLIENT, step), super::after(ISS[0], acked));
        c.kit.client(it.window(field).data("x"));
        for leg in LegId::ALL {
            let heard = c.kit.on(Link::Server(leg));
            let last = heard.last().expect("the client's bytes are copied to both");
            let (_, ack) = c.place(last);
            assert_eq!(ack, acked);
            let i = leg.index();
            told[i].told(ack.into(), last.seg.window, shifts[i], granted, window);
        }
    }
}
