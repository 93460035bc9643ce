//! Handshakes under pressure: answered without the servers and without a memory, and carried on
//! with both servers when the client comes back.

use super::kit::{Heard, Say};
use super::*;
use crate::engine::limits;

/// Cookies from the first handshake on, as soon as the servers' answers are known.
fn pressed() -> Kit {
    pressed_by(EngineConfig { half_open_max: 0, ..config() })
}

fn pressed_by(config: EngineConfig) -> Kit {
    let mut kit = Kit::new(config);
    kit.say(Link::Client, syn(), 39_000);
    for leg in LegId::ALL {
        kit.say(Link::Server(leg), answer(leg), 39_000);
    }
    kit.say(Link::Client, say(RST, R, 0), 39_000);
    kit.wait_ms(limits::RESET_KEPT.as_millis() as u64 + 1);
    kit.forget();
    kit
}

fn syn() -> Say {
    say(SYN, C, 0).mss(1460).scale(7).sack_ok().stamps(10, 0)
}

fn answer(leg: LegId) -> Say {
    let at = 300 + 400 * leg.index() as u32;
    say(SYN_ACK, ISS[leg.index()], R).mss(1400).scale(9).sack_ok().stamps(at, 10)
}

/// The cookie that `syn` gets.
fn cookie(kit: &mut Kit, syn: Say) -> Heard {
    kit.client(syn);
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (0, 0), "the servers hear nothing");
    let mut shown = kit.on(Link::Client);
    assert_eq!(shown.len(), 1, "{shown:?}");
    kit.forget();
    shown.remove(0)
}

/// The client's first ack of it.
fn ack(of: &Heard) -> Say {
    let third = say(ACK, of.seg.ack, of.seg.seq.wrapping_add(1)).window(500);
    match of.seg.options.timestamps {
        Some((value, _)) => third.stamps(12, value.0),
        None => third,
    }
}

/// Both servers have answered the client of a cookie.
fn answered(kit: &mut Kit) -> u32 {
    let shown = cookie(kit, syn());
    kit.client(ack(&shown));
    for leg in LegId::ALL {
        kit.leg(leg, answer(leg).stamps(2_000 + 5_000 * leg.index() as u32, 12));
    }
    shown.seg.seq.wrapping_add(1)
}

#[test]
fn a_cookie_says_what_the_servers_said_before_and_keeps_nothing() {
    let mut kit = pressed();
    let flows = kit.engine.flows(9).len();
    let shown = cookie(&mut kit, syn());
    assert_eq!((shown.seg.flags, shown.seg.ack), (SYN_ACK, R));
    let options = shown.seg.options;
    assert_eq!(
        (options.mss, options.window_scale),
        (Some(1400), Some(7)),
        "units of at most 128 bytes"
    );
    assert!(options.sack_permitted);
    assert_eq!(options.timestamps.map(|(_, echo)| echo.0), Some(10));
    assert_eq!((kit.engine.flows(9).len(), kit.engine.status().half_open), (flows, 0));
    // Repeated, it is the same number; what a client does not offer, it is not shown.
    assert_eq!(cookie(&mut kit, syn()).seg.seq, shown.seg.seq);
    let plain = cookie(&mut kit, say(SYN, C, 0).mss(1460)).seg.options;
    assert_eq!((plain.window_scale, plain.sack_permitted, plain.timestamps), (None, false, None));
}

#[test]
fn who_comes_back_is_served_by_both_in_the_numbers_that_he_was_shown() {
    let mut kit = pressed();
    let shown = cookie(&mut kit, syn());
    let v = shown.seg.seq.wrapping_add(1);
    kit.client(ack(&shown));
    kit.client(say(ACK, R, v).data("ping").stamps(13, 0).window(500));
    for link in [TO_A, TO_B] {
        let asked = kit.on(link).remove(0).seg;
        assert_eq!((asked.flags, asked.seq, asked.ack), (SYN, C, 0), "the client's own number");
        let options = asked.options;
        assert_eq!((options.mss, options.window_scale), (Some(1460), Some(7)));
        assert!(options.sack_permitted);
        assert_eq!(options.timestamps.map(|(value, _)| value.0), Some(12));
    }
    assert!(kit.on(Link::Client).is_empty());
    kit.forget();
    for leg in LegId::ALL {
        kit.leg(leg, answer(leg).stamps(2_000 + 5_000 * leg.index() as u32, 12));
    }
    assert_eq!(state(&kit), FlowState::Paired);
    for (link, next) in [(TO_A, P), (TO_B, Q)] {
        let said = kit.on(link);
        assert!(said.iter().all(|h| h.seg.ack == next), "{said:?}");
        assert_eq!(said.iter().flat_map(|h| h.data.clone()).collect::<Vec<_>>(), b"ping");
    }
    kit.forget();
    kit.leg(A, say(ACK, P, R + 4).data("pong").stamps(2_001, 13));
    assert!(kit.on(Link::Client).is_empty(), "one server's word is none");
    kit.leg(B, say(ACK, Q, R + 4).data("pong").stamps(7_001, 13));
    let said = kit.on(Link::Client).remove(0);
    assert_eq!((said.seg.seq, said.seg.ack, said.data.as_slice()), (v, R + 4, &b"pong"[..]));
    let (was, is) = (shown.seg.options.timestamps, said.seg.options.timestamps);
    assert!(is.map(|s| s.0.0) >= was.map(|s| s.0.0), "the clock shown goes on: {was:?} {is:?}");
}

#[test]
fn a_flow_that_began_with_a_cookie_survives_the_primary() {
    let mut kit = pressed();
    let v = answered(&mut kit);
    kit.input(Input::Signal(TO_A, Signal::CarrierDown));
    kit.forget();
    kit.leg(B, say(ACK, Q, R).data("pong").stamps(7_001, 13));
    let said = kit.on(Link::Client).remove(0);
    assert_eq!((said.seg.seq, said.data.as_slice()), (v, &b"pong"[..]));
    assert!(said.seg.flags.has(ACK) && !said.seg.flags.has(RST));
}

#[test]
fn what_carries_no_cookie_of_ours_goes_to_the_primary_untouched() {
    let mut kit = pressed();
    let shown = cookie(&mut kit, syn());
    let good = ack(&shown);
    let late = good.options.timestamps.map_or(0, |(_, echo)| echo.0).wrapping_sub(200_000);
    let guesses = [
        (Say { ack: good.ack.wrapping_add(1), ..good.clone() }, 40_000),
        (Say { ack: good.ack ^ 1 << 22, ..good.clone() }, 40_000),
        (Say { ack: good.ack ^ 1 << 30, ..good.clone() }, 40_000),
        (Say { seq: good.seq.wrapping_add(1), ..good.clone() }, 40_000),
        (good.clone().stamps(12, late), 40_000),
        (good.clone(), 40_001),
        (Say { flags: RST, ..good.clone() }, 40_000),
        (Say { flags: TcpFlags(0x14), ..good.clone() }, 40_000),
    ];
    for (guess, port) in guesses {
        kit.forget();
        let left = kit.say(Link::Client, guess.clone(), port);
        assert_eq!(left.len(), 1, "{guess:?}");
        assert_eq!((left[0].link, left[0].seg.ack), (TO_A, guess.ack), "{guess:?}");
    }
    kit.client(good);
    assert_eq!((kit.on(TO_B).len(), kit.on(TO_B)[0].seg.flags), (1, SYN), "the cookie itself");
}

#[test]
fn a_cookie_is_valid_for_a_minute_and_not_for_ever() {
    let mut kit = pressed();
    let shown = cookie(&mut kit, say(SYN, C, 0).mss(1460));
    kit.wait_ms(60_000);
    kit.client(ack(&shown));
    assert_eq!(kit.on(TO_B).last().map(|h| h.seg.flags), Some(SYN));
    let mut kit = pressed();
    let shown = cookie(&mut kit, say(SYN, C, 0).mss(1460));
    for port in [39_001, 39_002] {
        kit.wait_ms(65_000);
        kit.say(Link::Client, syn(), port); // cookies are given all the time
    }
    kit.forget();
    kit.client(ack(&shown));
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (1, 0));
    assert_eq!(kit.on(TO_A)[0].seg.flags, ACK);
}

#[test]
fn a_client_keeps_what_it_was_promised_although_the_servers_agree_to_less() {
    let mut kit = pressed();
    let (shown, start) = (cookie(&mut kit, syn()), kit.now.millis() as u32);
    let (v, first) = (shown.seg.seq.wrapping_add(1), ack(&shown).options.timestamps);
    kit.client(ack(&shown));
    kit.forget();
    for leg in LegId::ALL {
        kit.leg(leg, say(SYN_ACK, ISS[leg.index()], R).mss(1400).window(40_000));
    }
    assert_eq!(state(&kit), FlowState::Paired);
    let third = kit.on(TO_B).remove(0).seg;
    assert_eq!(third.options.timestamps, None);
    assert_eq!(third.window, 64_000, "500 of 128 bytes each, to a server that cannot scale");
    // Their windows are shown in the scale that was promised.
    for ms in [0, 5, 5] {
        kit.wait_ms(ms);
        kit.forget();
        let n = kit.now.millis() as u32;
        kit.client(say(ACK, R, v).data("ping").stamps(n, first.map_or(0, |f| f.1.0)).window(500));
        for (leg, next) in [(A, P), (B, Q)] {
            kit.leg(leg, say(ACK, next, R + 4).window(51_200));
        }
        let said = kit.on(Link::Client).pop().expect("an ack").seg;
        assert_eq!((said.ack, said.window), (R + 4, 400), "51,200 bytes in units of 128");
        let (value, echo) = said.options.timestamps.expect("what was agreed on (RFC 7323 3.2)");
        assert_eq!(echo.0, n, "the client's own latest");
        let began = first.expect("it was shown one").1;
        assert_eq!(value.0.wrapping_sub(began.0), n - start, "a clock of milliseconds goes on");
    }
    // Blocks of the client are not for servers that did not agree to hear them.
    kit.leg(A, say(ACK, P, R + 4).data("pong"));
    kit.leg(B, say(ACK, Q, R + 4).data("pong"));
    kit.forget();
    kit.client(say(ACK, R + 4, v).stamps(99_999, 0).sack(&[(v + 2, v + 4)]).window(500));
    assert!(kit.on(TO_A).iter().all(|h| h.seg.options.sack.as_slice().is_empty()));
}

#[test]
fn servers_that_refuse_a_client_of_a_cookie_end_it_exactly() {
    let mut kit = pressed();
    let shown = cookie(&mut kit, syn());
    kit.client(ack(&shown));
    kit.forget();
    for leg in LegId::ALL {
        kit.leg(leg, say(TcpFlags(0x14), 0, R));
    }
    let said = kit.on(Link::Client).remove(0).seg;
    assert!(said.flags.has(RST));
    assert_eq!(said.seq, shown.seg.seq.wrapping_add(1));
}

#[test]
fn a_client_that_says_much_before_the_servers_answer_is_heard_in_bounds() {
    let mut kit = pressed();
    let shown = cookie(&mut kit, syn());
    let v = shown.seg.seq.wrapping_add(1);
    kit.client(ack(&shown));
    for n in 0..1000 {
        kit.client(say(ACK, R + n, v).data("x").stamps(13, 0).window(500));
    }
    kit.forget();
    for leg in LegId::ALL {
        kit.leg(leg, answer(leg).stamps(2_000 + 5_000 * leg.index() as u32, 12));
    }
    let heard: usize = kit.on(TO_A).iter().map(|h| h.data.len()).sum();
    assert_eq!(heard, 7, "eight segments, the first an ack");
    kit.client(say(ACK, R + 7, v).data("the rest").stamps(13, 0).window(500));
    assert_eq!(kit.on(TO_B).last().map(|h| h.data.clone()), Some(b"the rest".to_vec()));
}

#[test]
fn a_segment_size_is_rounded_down_and_one_below_all_gets_no_cookie() {
    for (offered, told) in [(9000, 1460), (1459, 1452), (1452, 1452), (1219, 536), (536, 536)] {
        let mut kit = pressed();
        let shown = cookie(&mut kit, syn().mss(offered));
        kit.client(ack(&shown));
        assert_eq!(kit.on(TO_A)[0].seg.options.mss, Some(told), "of {offered}");
    }
    let mut kit = pressed();
    kit.client(syn().mss(535));
    assert_eq!((kit.on(TO_A).len(), kit.on(Link::Client).len()), (1, 0));
}

#[test]
fn cookies_are_turned_on_at_a_quarter_of_the_handshakes_and_off_at_an_eighth() {
    let mut kit = Kit::new(EngineConfig { half_open_max: 16, ..config() });
    let turned = |kit: &Kit| {
        let is_on = |e: &Event| match e {
            Event::CookiesTurned { on, half_open } => Some((*on, *half_open)),
            _ => None,
        };
        kit.events.iter().filter_map(is_on).collect::<Vec<_>>()
    };
    for port in 1000..1004 {
        kit.say(Link::Client, syn(), port);
        for leg in LegId::ALL {
            kit.say(Link::Server(leg), answer(leg), port);
        }
    }
    assert_eq!(turned(&kit), [], "judged when the next one comes");
    let shown = kit.say(Link::Client, syn(), 1004);
    assert_eq!(shown[0].link, Link::Client, "a cookie");
    assert_eq!(turned(&kit), [(true, 4)]);
    let given = kit.events.iter().filter(|e| matches!(e, Event::CookieGiven { .. })).count();
    assert_eq!((given, kit.engine.status().half_open), (1, 4));
    kit.forget();
    kit.wait_ms(limits::HALF_OPEN_MAX.as_millis() as u64 + 100);
    assert_eq!(turned(&kit), [(false, 0)]);
}

#[test]
fn an_observer_and_a_gateway_that_knows_no_answers_give_none() {
    let mode = crate::engine::Mode::Observe;
    let observer = pressed_by(EngineConfig { half_open_max: 0, mode, ..config() });
    for mut kit in [observer, Kit::new(EngineConfig { half_open_max: 0, ..config() })] {
        kit.client(syn());
        assert_eq!((kit.on(TO_A).len(), kit.on(Link::Client).len()), (1, 0));
    }
}

/// The client repeats no SYN: while a server is away for a moment, the gateway does.
#[test]
fn a_client_that_goes_on_asking_is_waited_for() {
    let mut kit = pressed();
    let shown = cookie(&mut kit, syn());
    let v = shown.seg.seq.wrapping_add(1);
    kit.client(ack(&shown));
    kit.wait_ms(2_500);
    kit.client(say(ACK, R, v).data("GET /").stamps(13, 0).window(500));
    kit.wait_ms(2_500);
    for leg in LegId::ALL {
        kit.leg(leg, answer(leg).stamps(2_000 + 5_000 * leg.index() as u32, 12));
    }
    assert_eq!(state(&kit), FlowState::Paired);
    assert_eq!(kit.on(TO_A).last().map(|h| h.data.clone()), Some(b"GET /".to_vec()));
    // Who says nothing more is forgotten.
    let mut kit = pressed();
    let shown = cookie(&mut kit, syn());
    kit.client(ack(&shown));
    kit.wait_ms(3_100);
    assert_eq!(kit.engine.flows(9).len(), 0);
}

#[test]
fn servers_that_are_away_for_a_moment_are_asked_again() {
    let mut kit = pressed();
    let shown = cookie(&mut kit, syn());
    kit.client(ack(&shown));
    kit.forget();
    kit.wait_ms(100); // what the client would bridge by itself
    kit.forget();
    kit.wait_ms(2_000);
    assert_eq!((kit.on(TO_A).len(), kit.on(TO_B).len()), (3, 3));
    for leg in LegId::ALL {
        kit.leg(leg, answer(leg).stamps(2_000 + 5_000 * leg.index() as u32, 12));
    }
    assert_eq!(state(&kit), FlowState::Paired);
}
