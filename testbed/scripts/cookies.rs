//! Handshakes that the gateway answers by itself (RFC 4987 3.6), in front of two real kernels.

use std::io::Write;

use shadowvm::engine::{Event, FlowState};

use super::Outcome;
use super::closing::answers;
use super::conn::{ACK, Conn, Offer};
use super::rig::{A, B, Rig, Setup, ensure, pattern};

/// A client without timestamps: a kernel that answers it with a cookie has no room for its options.
const WITHOUT_STAMPS: Offer = Offer { has_stamps: false, ..Offer::FULL };

/// All scripts about cookies.
pub fn table() -> Vec<(String, Box<dyn Fn() -> Outcome>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Outcome>)> = Vec::new();
    let cases = [
        ("cookie", Offer::FULL, false),
        ("cookie-without-stamps", WITHOUT_STAMPS, false),
        ("cookie-bare", Offer::PLAIN, false),
        ("cookie-before-kernels-with-cookies", Offer::FULL, true),
        ("cookie-without-stamps-before-kernels-with-cookies", WITHOUT_STAMPS, true),
        ("cookie-bare-before-kernels-with-cookies", Offer::PLAIN, true),
    ];
    for (family, is_v6) in [("", false), ("ipv6-", true)] {
        for (name, offer, kernels_too) in cases {
            let name = format!("{family}{name}");
            all.push((name, Box::new(move || comes_back(is_v6, offer, kernels_too))));
        }
    }
    all.push(("cookie-of-nobody".into(), Box::new(of_nobody)));
    all
}

/// The servers hear nothing of a client before it has come back; then both serve it, in the numbers
/// and with the options that it was shown, and it survives the death of one.
fn comes_back(is_v6: bool, offer: Offer, kernels_too: bool) -> Outcome {
    let mut rig = pressed(is_v6, kernels_too)?;
    let mut conn = rig.syn(offer)?;
    let shown = rig.await_syn_ack(&mut conn)?.seg.options;
    for leg in [A, B] {
        let heard = rig.sent_to(leg, conn.port).count();
        ensure(heard == 0, || format!("{leg:?} heard {heard} segments"))?;
    }
    let is_full = shown.window_scale.is_some() == offer.scale.is_some()
        && shown.sack_permitted == offer.has_sack
        && shown.timestamps.is_some() == offer.has_stamps;
    ensure(is_full, || format!("{offer:?} was shown {shown:?}"))?;
    rig.say(&mut conn, ACK, b"")?;
    let mut streams = [rig.stream(A)?, rig.stream(B)?];
    answers(&mut rig, &mut conn, &mut streams)?;
    ensure(state_of(&rig, &conn) == Some(FlowState::Paired), || "not paired".into())?;
    rig.fail(A)?;
    let [_, b] = &mut streams;
    b.write_all(&pattern(3000)).map_err(|e| e.to_string())?;
    let before = conn.received.len();
    rig.receive(&mut conn, before + 3000)?;
    ensure(conn.received[before..] == pattern(3000), || "B's bytes arrived changed".into())
}

/// What carries a number that nobody was given reaches the primary as it is, and that refuses it.
fn of_nobody() -> Outcome {
    let mut rig = pressed(false, false)?;
    let mut conn = rig.syn(Offer::FULL)?;
    rig.await_syn_ack(&mut conn)?;
    conn.viss = conn.viss.wrapping_add(1);
    rig.say(&mut conn, ACK, b"GET")?;
    let port = conn.port;
    let expected = conn.viss.wrapping_add(1);
    rig.until("a refusal", |rig| {
        rig.shown(port).find(|s| s.has(super::conn::RST) && s.seg.seq == expected).map(|_| ())
    })?;
    ensure(rig.sent_to(B, port).count() == 0, || "the backup heard of it".into())?;
    let is_taken = |e: &Event| matches!(e, Event::CookieTaken { .. });
    ensure(!rig.events.iter().any(is_taken), || "a cookie was taken".into())
}

/// Cookies for everybody, once one connection has told what the servers answer.
fn pressed(is_v6: bool, kernels_too: bool) -> Result<Rig, String> {
    let mut setup = Setup { has_cookies: true, ..Setup::over(is_v6) };
    if kernels_too {
        setup = setup.both("net.ipv4.tcp_syncookies", "2");
    }
    let mut rig = Rig::new(&setup)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    answers(&mut rig, &mut conn, &mut streams)?;
    Ok(rig)
}

fn state_of(rig: &Rig, conn: &Conn) -> Option<FlowState> {
    let flows = rig.engine.flows(usize::MAX);
    flows.iter().find(|flow| flow.key.client.port() == conn.port).map(|flow| flow.state)
}
