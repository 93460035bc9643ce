//! Protocols that are not compared: the primary's alone, reset exactly at its death.

use std::io::{ErrorKind, Read, Write};

use shadowvm::engine::{Event, FlowState, SoloReason};

use super::conn::{ACK, Offer, RST};
use super::desk::{Desk, Plan};
use super::rig::{A, B, Rig, ensure, pattern};
use super::{Outcome, Script, Twin};

pub const SCRIPTS: &[Script] = &[("real-client-of-tls-is-told-at-once", tls_client_is_told)];
pub const TWINS: &[Twin] = &[("tls-is-the-primarys-alone", tls_is_the_primarys_alone)];

/// How a ClientHello begins.
const HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// "Opaque: primary only": the backup's program reads nothing, and its socket is reset; what the
/// primary's program says is shown without a word of the other.
fn tls_is_the_primarys_alone(is_v6: bool) -> Outcome {
    let mut rig = Rig::equal(is_v6)?;
    let (mut conn, mut streams) = rig.open(Offer::FULL)?;
    rig.say(&mut conn, ACK, &HELLO)?;
    let heard = rig.read(&mut streams[0], HELLO.len())?;
    ensure(heard == HELLO, || format!("{heard:?}"))?;
    let backups =
        rig.until("the backup's socket to end", |_| match streams[1].read(&mut [0; 64]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            ended => Some(ended),
        })?;
    let is_reset = backups.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset);
    ensure(is_reset, || format!("{backups:?}"))?;
    streams[0].write_all(&pattern(3000)).map_err(|e| e.to_string())?;
    rig.receive(&mut conn, 3000)?;
    ensure(conn.received == pattern(3000), || "another answer".into())?;
    let solo = rig.engine.flows(1).first().and_then(|f| f.solo);
    ensure(rig.state() == Some(FlowState::Solo), || "not solo".into())?;
    ensure(solo == Some(SoloReason::Tls), || format!("{solo:?}"))?;
    ensure(!rig.events.iter().any(|e| matches!(e, Event::Diverged { .. })), || "differs".into())?;
    rig.fail(A)?;
    let resets: Vec<u32> = rig.shown(conn.port).filter(|s| s.has(RST)).map(|s| s.seg.seq).collect();
    let next = conn.viss.wrapping_add(3001);
    ensure(resets == [next], || format!("{resets:?}, expected is {next}"))
}

/// Scenario 41, "TLS flow opaque, P dies: exact RST": the client's program hears of it with the
/// failover, not after its kernel's patience.
fn tls_client_is_told() -> Outcome {
    let mut desk = Desk::open(&Plan::default())?;
    desk.write(&HELLO)?;
    desk.heard_by(A, HELLO.len(), 0)?;
    desk.say(A, ACK, 0, HELLO.len() as u32, b"server hello")?;
    let read = desk.read(12)?;
    ensure(read == b"server hello", || format!("{read:?}"))?;
    ensure(desk.request(B).is_empty(), || "the backup heard of it".into())?;
    desk.fail_a()?;
    desk.until("the client's program to be told", |desk| {
        let told = desk.client.read(&mut [0; 64]);
        told.err().filter(|e| e.kind() == ErrorKind::ConnectionReset).map(drop)
    })
}
