//! Flows at rest: how little is kept of them.

use super::kit::{ACK, CLIENT_ISS as C, ISS, Kit, SYN, SYN_ACK, config, say};
use super::{A, B, LegId, P, Q, R};
use crate::engine::EngineConfig;
use crate::engine::Rules;

/// The three clocks of a connection, which stand far apart.
const CLOCK: u32 = 0x9e37_79b9;
const CLOCKS: [u32; 2] = [0x2545_f491, 0xd1b5_4a32];

/// A connection of today's kernels that was asked and answered, values that differ included.
#[test]
fn a_flow_at_rest_is_short() {
    let mut kit = Kit::new(EngineConfig { rules: Rules::headers(["date"]), ..config() });
    kit.client(say(SYN, C, 0).mss(1460).scale(7).sack_ok().stamps(CLOCK, 0));
    for leg in [A, B] {
        let i = leg.index();
        let syn_ack = say(SYN_ACK, ISS[i], R).mss(1460).scale(10).sack_ok();
        kit.leg(leg, syn_ack.stamps(CLOCKS[i], CLOCK));
    }
    kit.wait_ms(3);
    kit.client(say(ACK, R, P).stamps(CLOCK + 3, CLOCKS[0]));
    assert_at_rest(&mut kit, 190);
    let ask = "GET / HTTP/1.1\r\n\r\n";
    let answer = |leg: LegId| {
        let date = format!("Date: Sun, 22 Nov 2026 05:00:0{} GMT", leg.index());
        format!("HTTP/1.1 200 OK\r\n{date}\r\nContent-Length: 2\r\n\r\nhi")
    };
    let (mut asked, mut said) = (R, 0);
    for round in 1..=5 {
        let later = |clock: u32| clock + 500 * round;
        kit.client(say(ACK, asked, P + said).stamps(later(CLOCK), CLOCKS[0]).data(ask));
        asked += ask.len() as u32;
        for (leg, from) in [(A, P), (B, Q)] {
            let stamps = (later(CLOCKS[leg.index()]), later(CLOCK));
            let says = say(ACK, from + said, asked).stamps(stamps.0, stamps.1);
            kit.leg(leg, says.data(answer(leg)));
            kit.wait_ms(1);
        }
        said += answer(A).len() as u32;
        kit.wait_ms(20);
        kit.client(say(ACK, asked, P + said).stamps(later(CLOCK) + 22, later(CLOCKS[0])));
        assert_at_rest(&mut kit, 230);
    }
}

/// The one flow comes to rest, and what is kept of it is not longer than `max` bytes.
fn assert_at_rest(kit: &mut Kit, max: usize) {
    kit.wait_ms(500);
    let kept: Vec<usize> = kit.engine.at_rest().map(<[u8]>::len).collect();
    assert!(kept.len() == 1 && kept[0] <= max, "{kept:?}, at most {max}");
}
