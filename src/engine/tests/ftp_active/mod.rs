//! Active data connections of FTP: both servers call the client, which is called once.

mod lossy;

use std::net::Ipv4Addr;

use super::ftp::{answered, ftp};
use super::kit::{ACK, CLIENT, CLIENT_ISS, FIN, Heard, ISS, Kit, RST, SYN, SYN_ACK, Say, say};
use super::splices::{World, state};
use crate::engine::{
    Engine, Event, FlowState, Input, LegId, Link, OfferOutcome, RejectReason, Signal, SoloReason,
};
use crate::wire::TcpFlags;
use LegId::{A, B};

/// Where the client listens: "195,80".
const C: (Ipv4Addr, u16) = (CLIENT, 50_000);
const ACTIVE: &str = "PORT 192,0,2,1,195,80\r\n";
const AGREED: &str = "200 ok\r\n";
/// The client's number, and the next.
const R: u32 = CLIENT_ISS + 1;
const ISN: [u32; 2] = [ISS[0] + 1, ISS[1] + 1];

/// A data connection that the servers are to begin.
struct Call {
    world: World,
    /// From which port each server calls.
    ports: [u16; 2],
    /// The port that the client sees.
    shown: u16,
}

fn agreed_with(ports: [u16; 2], request: &'static str) -> Call {
    let mut world = answered(request, [AGREED; 2]);
    world.ack();
    assert_eq!(state(&world.kit), FlowState::Paired);
    world.kit.events.clear();
    world.kit.heard.clear();
    Call { world, ports, shown: ports[0] }
}

fn agreed() -> Call {
    agreed_with([20, 40_001], ACTIVE)
}

impl Call {
    fn leg(&mut self, leg: LegId, say: Say) -> Vec<Heard> {
        let port = self.ports[leg.index()];
        self.world.kit.say_at(Link::Server(leg), say, C, port)
    }

    fn client(&mut self, say: Say) -> Vec<Heard> {
        self.world.kit.say_at(Link::Client, say, C, self.shown)
    }

    fn call(&mut self, leg: LegId) -> Vec<Heard> {
        self.leg(leg, say(SYN, ISS[leg.index()], 0).mss(1460).sack_ok())
    }

    /// The client answers the SYN of this number.
    fn answer(&mut self, iss: u32) -> Vec<Heard> {
        self.client(say(SYN_ACK, CLIENT_ISS, iss + 1).mss(1460).sack_ok())
    }

    fn acknowledge(&mut self, leg: LegId) -> Vec<Heard> {
        self.leg(leg, say(ACK, ISN[leg.index()], R))
    }

    fn kill(&mut self, leg: LegId) {
        self.world.kit.input(Input::Signal(Link::Server(leg), Signal::CarrierDown));
    }

    fn state(&self) -> Option<FlowState> {
        let flows = self.world.kit.engine.flows(9);
        flows.iter().find(|flow| flow.key.client.port() == C.1).map(|flow| flow.state)
    }

    /// What has left to `link` on this connection since [`Kit::forget`].
    fn on(&self, link: Link) -> Vec<Heard> {
        let heard = self.world.kit.on(link).into_iter();
        heard.filter(|h| [h.seg.src_port, h.seg.dst_port].contains(&C.1)).collect()
    }

    fn established() -> Self {
        let mut call = agreed();
        call.call(A);
        call.call(B);
        call.answer(ISS[0]);
        call.acknowledge(A);
        call.acknowledge(B);
        assert_eq!(call.state(), Some(FlowState::Paired));
        call.world.kit.forget();
        call
    }
}

/// The segments of this kind.
fn of(heard: &[Heard], flags: TcpFlags) -> Vec<Heard> {
    heard.iter().filter(|h| h.seg.flags == flags).cloned().collect()
}

#[test]
fn two_calls_in_any_order_are_one_to_the_client() {
    for (ports, order) in
        [([20, 20], [A, B]), ([20, 40_001], [B, A]), ([40_000, 20], [B, A]), ([5000, 6000], [A, B])]
    {
        let mut call = agreed_with(ports, ACTIVE);
        assert!(call.call(order[0]).is_empty(), "it waits for the other one");
        let shown = call.call(order[1]);
        assert_eq!(shown.len(), 1, "{shown:?}");
        let seg = &shown[0].seg;
        assert_eq!((shown[0].link, seg.flags, seg.seq, seg.ack), (Link::Client, SYN, ISS[0], 0));
        assert_eq!((seg.src_port, seg.dst_port), (ports[0], C.1));
        let told = call.answer(ISS[0]);
        for leg in LegId::ALL {
            let told = told.iter().find(|h| h.link == Link::Server(leg)).expect("it is told");
            let seg = &told.seg;
            assert_eq!((seg.flags, seg.seq, seg.ack), (SYN_ACK, CLIENT_ISS, ISN[leg.index()]));
            assert_eq!((seg.src_port, seg.dst_port), (C.1, ports[leg.index()]));
        }
        assert_eq!(told.len(), 2);
        assert!(call.acknowledge(B).is_empty(), "the client is told when both have");
        let last = call.acknowledge(A);
        assert_eq!(last.len(), 1, "{last:?}");
        assert_eq!((last[0].seg.flags, last[0].seg.seq, last[0].seg.ack), (ACK, ISN[0], R));
        assert_eq!(call.state(), Some(FlowState::Paired));
    }
}

/// A listing and an upload in one: both directions, and the end.
#[test]
fn what_is_transferred_is_compared_and_released_like_anywhere() {
    let mut call = Call::established();
    assert!(call.leg(A, say(ACK, ISN[0], R).data("content")).is_empty());
    let shown = call.leg(B, say(ACK, ISN[1], R).data("content"));
    assert_eq!((shown[0].data.as_slice(), shown[0].seg.seq), (&b"content"[..], ISN[0]));
    call.world.kit.forget();
    call.client(say(ACK, R, ISN[0] + 7).data("up"));
    for leg in LegId::ALL {
        let heard = call.on(Link::Server(leg)).pop().expect("it is copied");
        assert_eq!((heard.data.as_slice(), heard.seg.ack), (&b"up"[..], ISN[leg.index()] + 7));
    }
    for leg in LegId::ALL {
        call.leg(leg, say(FIN, ISN[leg.index()] + 7, R + 2));
    }
    call.client(say(FIN, R + 2, ISN[0] + 8));
    for leg in LegId::ALL {
        call.leg(leg, say(ACK, ISN[leg.index()] + 8, R + 3));
    }
    assert_eq!(call.state(), Some(FlowState::TimeWait));
    call.world.kit.wait_ms(66_000);
    assert_eq!(call.state(), None);
    assert_eq!(state(&call.world.kit), FlowState::Paired, "the session goes on");
}

#[test]
fn what_both_servers_and_the_client_can_keep_is_kept() {
    let mut call = agreed();
    let full = |leg: LegId| {
        let syn = say(SYN, ISS[leg.index()], 0).mss(1460).sack_ok();
        syn.scale(7).stamps(1000 * (1 + leg.index() as u32), 0)
    };
    call.leg(A, full(A).window(64_000));
    call.leg(B, full(B).mss(1200).scale(2).window(30_000));
    let shown = call.on(Link::Client).pop().expect("a SYN").seg;
    let options = shown.options;
    assert_eq!((options.mss, options.window_scale), (Some(1200), Some(2)));
    assert_eq!((options.sack_permitted, shown.window), (true, 30_000));
    assert_eq!(options.timestamps.map(|(v, e)| (v.0, e.0)), Some((1000, 0)));
    call.world.kit.forget();
    let answer = say(SYN_ACK, CLIENT_ISS, ISN[0]).mss(1400).scale(5).stamps(77, 1000);
    call.client(answer.window(20_000));
    for leg in LegId::ALL {
        let told = call.on(Link::Server(leg)).pop().expect("it is told").seg;
        let options = told.options;
        assert_eq!((options.mss, options.window_scale, told.window), (Some(1400), Some(5), 20_000));
        assert!(!options.sack_permitted, "the client has none");
        let own = 1000 * (1 + leg.index() as u32);
        assert_eq!(options.timestamps.map(|(v, e)| (v.0, e.0)), Some((77, own)));
    }
    // Windows: each server's in its own scale, the client's in that which it was told.
    for (leg, window) in [(A, 300), (B, 9000)] {
        let stamped = say(ACK, ISN[leg.index()], R).window(window);
        call.leg(leg, stamped.stamps(1000 * (1 + leg.index() as u32), 77));
    }
    let last = call.on(Link::Client).pop().expect("the last ack").seg;
    assert_eq!((last.ack, u32::from(last.window) << 2), (R, 9000 << 2), "the narrower one");
}

#[test]
fn what_one_of_the_servers_does_not_offer_nobody_has() {
    for bare in LegId::ALL {
        let mut call = agreed();
        for leg in LegId::ALL {
            let syn = say(SYN, ISS[leg.index()], 0);
            match leg == bare {
                true => call.leg(leg, syn.window(4000)),
                false => call.leg(leg, syn.mss(1460).scale(7).sack_ok().stamps(5, 0)),
            };
        }
        let options = call.on(Link::Client).pop().expect("a SYN").seg.options;
        assert_eq!(options.mss, Some(536));
        assert!(options.window_scale.is_none() && options.timestamps.is_none());
        assert!(!options.sack_permitted);
        call.client(say(SYN_ACK, CLIENT_ISS, ISN[0]).mss(1460));
        for leg in LegId::ALL {
            let options = call.on(Link::Server(leg)).pop().expect("it is told").seg.options;
            assert!(options.window_scale.is_none() && options.timestamps.is_none());
            call.acknowledge(leg);
        }
        let window = call.on(Link::Client).pop().expect("the last ack").seg.window;
        assert_eq!(window, 60_000);
    }
}

#[test]
fn who_calls_alone_goes_on_alone() {
    for alone in LegId::ALL {
        let mut call = agreed();
        call.call(alone);
        call.world.kit.wait_ms(140);
        assert!(call.on(Link::Client).is_empty());
        call.world.kit.wait_ms(20);
        call.shown = call.ports[alone.index()];
        let shown = call.on(Link::Client);
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].seg.seq, shown[0].seg.src_port), (ISS[alone.index()], call.shown));
        let late = alone.other();
        let is_late =
            |e: &Event| matches!(e, Event::HoldHard { waiting_for, .. } if *waiting_for == late);
        assert!(call.world.kit.events.iter().any(is_late));
        call.world.kit.forget();
        call.call(alone.other());
        assert!(call.on(Link::Client).is_empty(), "who comes later is not shown");
        let told = call.answer(ISS[alone.index()]);
        assert!(told.iter().all(|h| h.link == Link::Server(alone)), "{told:?}");
        let last = call.acknowledge(alone);
        assert_eq!((last[0].seg.flags, last[0].seg.ack), (ACK, R));
        assert_eq!(call.state(), Some(FlowState::Solo));
        let flows = call.world.kit.engine.flows(9);
        let solo = flows.iter().find(|flow| flow.key.client.port() == C.1).and_then(|f| f.solo);
        assert_eq!(solo, Some(SoloReason::Handshake));
        let shown = call.leg(alone, say(ACK, ISN[alone.index()], R).data("x"));
        assert_eq!(shown[0].data, b"x");
    }
}

#[test]
fn a_call_that_is_repeated_is_shown_again_and_answered_where_the_answer_is_known() {
    let mut call = agreed();
    call.call(A);
    assert!(call.call(A).is_empty());
    let first = call.call(B);
    call.world.kit.wait_ms(1000);
    call.world.kit.forget();
    call.call(A);
    call.call(B);
    let again = call.on(Link::Client);
    assert_eq!(again.len(), 1, "once for both");
    assert_eq!(again[0].seg, first[0].seg);
    call.answer(ISS[0]);
    call.acknowledge(A);
    call.world.kit.forget();
    let told = call.call(B);
    assert_eq!(told.len(), 1, "{told:?}");
    let seg = &told[0].seg;
    assert_eq!((told[0].link, seg.flags, seg.ack), (Link::Server(B), SYN_ACK, ISN[1]));
    // So it is when the client repeats its own.
    call.world.kit.forget();
    call.answer(ISS[0]);
    assert_eq!(call.on(Link::Server(A)).len(), 0);
    assert_eq!(of(&call.on(Link::Server(B)), SYN_ACK).len(), 1);
    call.acknowledge(B);
    assert_eq!(call.on(Link::Client).pop().expect("the last ack").seg.ack, R);
    call.world.kit.forget();
    call.answer(ISS[0]);
    let last = call.on(Link::Client).pop().expect("the ack that it has missed");
    assert_eq!((last.seg.flags, last.seg.ack), (ACK, R));
}

/// The client's answer is lost on its way to one server: it is sent again from here.
#[test]
fn an_answer_that_one_server_has_not_heard_is_said_again() {
    let mut call = agreed();
    call.call(A);
    call.call(B);
    call.answer(ISS[0]);
    call.acknowledge(A);
    call.world.kit.forget();
    call.world.kit.wait_ms(12);
    assert_eq!(of(&call.on(Link::Server(B)), SYN_ACK).len(), 1);
    assert!(call.on(Link::Server(A)).is_empty());
    call.acknowledge(B);
    assert_eq!(call.on(Link::Client).len(), 1);
    call.world.kit.forget();
    call.world.kit.wait_ms(5000);
    assert!(call.on(Link::Server(B)).is_empty(), "it has it");
}

/// A server that has called and then says nothing keeps nobody waiting for ever.
#[test]
fn a_server_that_does_not_acknowledge_the_answer_is_late() {
    let mut call = agreed();
    call.call(A);
    call.call(B);
    call.answer(ISS[0]);
    call.acknowledge(A);
    call.world.kit.wait_ms(160);
    assert_eq!(call.state(), Some(FlowState::Lagging));
    assert_eq!(call.on(Link::Client).pop().expect("the last ack").seg.ack, R);
    call.world.kit.forget();
    call.leg(A, say(ACK, ISN[0], R).data("content"));
    assert_eq!(call.on(Link::Client).pop().expect("shown").data, b"content");
    // It comes back in time, and catches up.
    call.acknowledge(B);
    call.leg(B, say(ACK, ISN[1], R).data("content"));
    assert_eq!(call.state(), Some(FlowState::Paired));
    // Or it does not.
    let mut call = agreed();
    call.call(A);
    call.call(B);
    call.answer(ISS[0]);
    call.acknowledge(A);
    call.world.kit.wait_ms(160);
    call.leg(A, say(ACK, ISN[0], R).data("content"));
    call.world.kit.forget();
    call.world.kit.wait_ms(6000);
    assert_eq!(call.state(), Some(FlowState::Solo));
    let reset = call.on(Link::Server(B)).into_iter().find(|h| h.seg.flags.has(RST));
    let reset = reset.expect("it is told that nobody is there").seg;
    assert_eq!((reset.flags, reset.seq, reset.ack), (RST.with(ACK), R, ISN[1]));
}

#[test]
fn a_client_that_refuses_refuses_both() {
    let mut call = agreed();
    call.call(A);
    call.call(B);
    call.world.kit.forget();
    call.client(say(RST.with(ACK), 0, ISN[0] + 7));
    call.client(say(RST, 0, 0));
    assert!(call.on(Link::Server(A)).is_empty(), "a reset that says no number is nobody's");
    call.client(say(RST.with(ACK), 0, ISN[0]));
    for leg in LegId::ALL {
        let told = call.on(Link::Server(leg));
        assert_eq!(told.len(), 1);
        let seg = &told[0].seg;
        assert_eq!((seg.flags, seg.seq, seg.ack), (RST.with(ACK), 0, ISN[leg.index()]));
        assert_eq!(seg.dst_port, call.ports[leg.index()]);
    }
    // One that has not heard it calls again, and hears it again.
    call.world.kit.forget();
    call.call(B);
    let told = call.on(Link::Server(B)).pop().expect("it is told");
    assert_eq!((told.seg.flags, told.seg.ack), (RST.with(ACK), ISN[1]));
    assert!(call.on(Link::Client).is_empty());
    assert_eq!(state(&call.world.kit), FlowState::Paired);
}

#[test]
fn a_silent_client_is_silent_to_both() {
    let mut call = agreed();
    call.call(A);
    call.call(B);
    for _ in 0..3 {
        call.world.kit.forget();
        call.world.kit.wait_ms(30_000);
        assert!(LegId::ALL.iter().all(|leg| call.on(Link::Server(*leg)).is_empty()));
        call.call(B);
        assert_eq!(call.on(Link::Client).len(), 1);
    }
    call.world.kit.forget();
    call.world.kit.wait_ms(80_000);
    assert_eq!(call.state(), None, "it is forgotten");
    assert!(call.on(Link::Client).is_empty());
}

/// The client still has an older connection of this 4-tuple: it is ended as the servers would end
/// it, and called again.
#[test]
fn an_older_connection_of_the_client_is_ended_exactly() {
    let mut call = agreed();
    call.call(A);
    call.call(B);
    call.world.kit.forget();
    call.client(say(ACK, 7, 9999));
    let told = call.on(Link::Client);
    assert_eq!((told[0].seg.flags, told[0].seg.seq), (RST, 9999));
    assert_eq!((told[1].seg.flags, told[1].seg.seq), (SYN, ISS[0]));
    call.client(say(SYN_ACK, 7, 9999));
    assert_eq!(of(&call.on(Link::Client), RST).len(), 2);
    assert!(LegId::ALL.iter().all(|leg| call.on(Link::Server(*leg)).is_empty()));
    call.answer(ISS[0]);
    call.acknowledge(A);
    call.acknowledge(B);
    assert_eq!(call.state(), Some(FlowState::Paired));
}

/// What happens before a server dies; the rest happens to the other one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Calls(LegId),
    Answers,
    Acknowledges(LegId),
}

/// Runs `steps` with a server that dies after any of them, and goes on with the other one.
fn dies_at_any_step(steps: &[Step], dead: LegId) {
    let survivor = dead.other();
    let (own, isn) = (ISS[survivor.index()], ISN[survivor.index()]);
    for until in 0..=steps.len() {
        let mut call = agreed();
        let before = |step: Step| steps[..until].contains(&step);
        for step in &steps[..until] {
            match step {
                Step::Calls(leg) => drop(call.call(*leg)),
                Step::Answers => drop(call.answer(ISS[0])),
                Step::Acknowledges(leg) => drop(call.acknowledge(*leg)),
            }
        }
        call.kill(dead);
        if !before(Step::Calls(survivor)) {
            call.call(survivor);
        }
        let syns = of(&call.on(Link::Client), SYN);
        assert_eq!(syns.len(), 1, "{dead:?} {until}: {syns:?}");
        let (iss, port) = (syns[0].seg.seq, syns[0].seg.src_port);
        let of_both = before(Step::Calls(A)) && before(Step::Calls(B));
        assert_eq!(iss, if of_both { ISS[0] } else { own }, "{until}");
        call.shown = port;
        if !before(Step::Answers) {
            call.answer(iss);
        }
        if !before(Step::Acknowledges(survivor)) {
            call.acknowledge(survivor);
        }
        let told = call.on(Link::Client).pop().expect("the last ack");
        assert_eq!((told.seg.flags, told.seg.seq, told.seg.ack), (ACK, iss + 1, R), "{until}");
        assert_eq!(call.state(), Some(FlowState::Solo), "{until}");
        call.world.kit.forget();
        let shown = call.leg(survivor, say(ACK, isn, R).data("content"));
        assert_eq!((shown[0].data.as_slice(), shown[0].seg.seq), (&b"content"[..], iss + 1));
        call.client(say(ACK, R, iss + 8).data("up"));
        let heard = call.on(Link::Server(survivor)).pop().expect("it goes on");
        assert_eq!((heard.data.as_slice(), heard.seg.ack), (&b"up"[..], isn + 7), "{until}");
        assert_eq!(heard.seg.dst_port, call.ports[survivor.index()]);
        assert!(call.on(Link::Server(dead)).is_empty());
    }
}

#[test]
fn the_handshake_survives_a_server_at_each_step() {
    use Step::{Acknowledges, Answers, Calls};
    for steps in [
        [Calls(A), Calls(B), Answers, Acknowledges(A), Acknowledges(B)],
        [Calls(B), Calls(A), Answers, Acknowledges(B), Acknowledges(A)],
    ] {
        for dead in LegId::ALL {
            dies_at_any_step(&steps, dead);
        }
    }
}

/// With the last server that has called the client's half-open connection ends, exactly.
#[test]
fn a_client_whose_only_caller_dies_is_reset() {
    let mut call = agreed();
    call.call(A);
    call.world.kit.wait_ms(160);
    call.answer(ISS[0]);
    call.world.kit.forget();
    call.kill(A);
    let told = call.on(Link::Client).pop().expect("it is told");
    assert_eq!((told.seg.flags, told.seg.seq), (RST, ISN[0]));
    let mut call = agreed();
    call.call(A);
    call.world.kit.wait_ms(160);
    call.world.kit.forget();
    call.kill(A);
    let told = call.on(Link::Client).pop().expect("it is told");
    assert_eq!((told.seg.flags, told.seg.seq), (RST, ISN[0]));
    // An answer that was on its way.
    call.world.kit.forget();
    let told = call.answer(ISS[0]);
    assert_eq!((told.len(), told[0].seg.flags, told[0].seg.seq), (1, RST, ISN[0]));
}

/// It had called alone because the other one was slow: that one is heard now.
#[test]
fn who_was_too_late_is_heard_when_the_only_caller_has_died() {
    for ports in [[20, 40_001], [20, 20]] {
        let mut call = agreed_with(ports, ACTIVE);
        call.call(B);
        call.world.kit.wait_ms(160);
        call.kill(B);
        call.world.kit.forget();
        let shown = call.call(A);
        assert_eq!(of(&shown, SYN).len(), 1, "{ports:?}: {shown:?}");
        assert_eq!((shown[0].seg.seq, shown[0].seg.src_port), (ISS[0], 20));
        call.answer(ISS[0]);
        let last = call.acknowledge(A).pop().expect("the last ack");
        assert_eq!((last.seg.flags, last.seg.ack), (ACK, R));
    }
}

const CONTENT: &[u8] = b"some bytes of a file";

/// The primary dies when it and the backup have said any part of the file.
#[test]
fn a_transfer_survives_the_primary_at_every_byte() {
    for said in 0..=CONTENT.len() {
        for theirs in 0..=CONTENT.len() {
            let mut call = Call::established();
            call.leg(A, say(ACK, ISN[0], R).data(&CONTENT[..said]));
            call.leg(B, say(ACK, ISN[1], R).data(&CONTENT[..theirs]));
            let has = said.min(theirs) as u32;
            call.client(say(ACK, R, ISN[0] + has));
            call.kill(A);
            let rest = &CONTENT[theirs..];
            call.leg(B, say(FIN, ISN[1] + theirs as u32, R).data(rest));
            let mut got = vec![None; CONTENT.len()];
            let mut end = None;
            for heard in call.on(Link::Client) {
                let at = heard.seg.seq.wrapping_sub(ISN[0]) as usize;
                got[at..at + heard.data.len()].copy_from_slice(
                    &heard.data.iter().map(|byte| Some(*byte)).collect::<Vec<_>>(),
                );
                end = end.or(heard.seg.flags.has(TcpFlags::FIN).then_some(at + heard.data.len()));
            }
            let got: Vec<u8> = got.into_iter().flatten().collect();
            assert_eq!(got, CONTENT, "{said} {theirs}");
            assert_eq!(end, Some(CONTENT.len()), "{said} {theirs}");
            call.client(say(FIN, R, ISN[0] + CONTENT.len() as u32 + 1));
            let told = call.on(Link::Server(B)).pop().expect("the end is told").seg;
            assert_eq!((told.flags, told.ack), (FIN, ISN[1] + CONTENT.len() as u32 + 1));
        }
    }
}

/// The primary dies when it and the backup have taken any part of what the client stores.
#[test]
fn an_upload_survives_the_primary_at_every_byte() {
    let end = CONTENT.len() as u32;
    for taken in 0..=end {
        for theirs in 0..=end {
            let mut call = Call::established();
            call.client(say(ACK, R, ISN[0]).data(CONTENT));
            call.leg(A, say(ACK, ISN[0], R + taken));
            call.leg(B, say(ACK, ISN[1], R + theirs));
            let told = call.on(Link::Client).into_iter().map(|h| h.seg.ack).max().unwrap_or(R);
            assert_eq!(told, R + taken.min(theirs));
            call.world.kit.forget();
            call.kill(A);
            call.world.kit.wait_ms(100);
            let mut has = theirs as usize;
            for heard in call.on(Link::Server(B)) {
                let at = heard.seg.seq.wrapping_sub(R) as usize;
                assert_eq!(heard.data, CONTENT[at..at + heard.data.len()]);
                if at <= has {
                    has = has.max(at + heard.data.len());
                }
            }
            assert_eq!(has, CONTENT.len(), "{taken} {theirs}: the rest is sent from here");
            call.leg(B, say(ACK, ISN[1], R + end));
            let acks = call.on(Link::Client).into_iter().map(|h| h.seg.ack);
            assert_eq!(acks.chain([told]).max(), Some(R + end), "{taken} {theirs}");
            call.client(say(FIN, R + end, ISN[0]));
            let told = call.on(Link::Server(B)).pop().expect("the end").seg;
            assert_eq!((told.flags, told.seq), (FIN, R + end));
        }
    }
}

#[test]
fn nobody_else_is_called_and_nobody_else_calls() {
    // Nobody has announced it: as before, the primary's own affair.
    let mut call = agreed();
    let other = (CLIENT, 50_001);
    let syn = || say(SYN, 7, 0).mss(1460);
    let kit = &mut call.world.kit;
    let shown = kit.say_at(Link::Server(A), syn(), other, 20);
    assert_eq!((shown.len(), shown[0].link), (1, Link::Client));
    assert!(kit.say_at(Link::Server(B), syn(), other, 20).is_empty());
    // Once.
    call.call(A);
    call.call(B);
    call.world.kit.forget();
    let kit = &mut call.world.kit;
    assert!(kit.say_at(Link::Server(B), syn(), C, 21_000).is_empty());
    assert!(kit.say_at(Link::Server(A), syn(), C, 21_000).is_empty(), "it was called");
    // A minute at most.
    let mut call = agreed();
    call.world.kit.wait_ms(61_000);
    call.world.kit.forget();
    assert_eq!(call.call(A).len(), 1);
    assert!(call.call(B).is_empty());
    assert_eq!(call.state(), None);
    // From a service's own port nobody calls.
    let mut call = agreed_with([80, 80], ACTIVE);
    call.call(A);
    call.call(B);
    assert_eq!(call.state(), None);
}

/// RFC 2577 3: who names somebody else, or a port that is a service's, is not followed.
#[test]
fn who_sends_the_servers_elsewhere_goes_on_with_one() {
    for request in [
        "PORT 192,0,2,77,195,80\r\n",
        "PORT 192,0,2,1,3,255\r\n",
        "EPRT |1|192.0.2.77|50000|\r\n",
        "EPRT |2|2001:db8::1|50000|\r\n",
        "EPRT |3|x|50000|\r\n",
        "PORT 192,0,2,1\r\n",
    ] {
        let mut world = answered(request, [AGREED; 2]);
        world.ack();
        assert_eq!(state(&world.kit), FlowState::Solo, "{request}");
        let is_told = |event: &Event| matches!(event, Event::ComparedRaw { .. });
        assert!(world.kit.events.iter().any(is_told), "{request}");
        let is_offer = |event: &Event| matches!(event, Event::DataOffered { .. });
        assert!(!world.kit.events.iter().any(is_offer), "{request}");
    }
}

#[test]
fn it_may_be_said_in_both_ways_and_refused() {
    for request in ["EPRT |1|192.0.2.1|50000|\r\n", "eprt !1!192.0.2.1!50000!\r\n"] {
        let mut call = agreed_with([20, 20], request);
        call.call(A);
        assert_eq!(of(&call.call(B), SYN).len(), 1, "{request}");
    }
    let mut world = answered(ACTIVE, ["500 no\r\n"; 2]);
    world.ack();
    assert_eq!(state(&world.kit), FlowState::Paired);
    let is_offer = |event: &Event| matches!(event, Event::DataOffered { .. });
    assert!(!world.kit.events.iter().any(is_offer));
    let mut call = Call { world, ports: [20, 20], shown: 20 };
    call.world.kit.forget();
    assert_eq!(call.call(A).len(), 1, "nobody has agreed to it");
}

/// A control connection that one server alone carries has its data from there.
#[test]
fn a_session_with_one_server_is_called_by_that_one() {
    for dead in LegId::ALL {
        let survivor = dead.other();
        let mut call = agreed();
        call.kill(dead);
        let shown = call.call(survivor);
        assert_eq!(of(&shown, SYN).len(), 1, "at once");
        assert_eq!(shown.last().map(|h| h.seg.seq), Some(ISS[survivor.index()]));
    }
}

/// The next transfer on the same ports, as clients have it that do not choose a port each time.
#[test]
fn the_same_ports_may_be_called_again() {
    let mut call = Call::established();
    for leg in LegId::ALL {
        call.leg(leg, say(FIN, ISN[leg.index()], R));
    }
    call.client(say(FIN, R, ISN[0] + 1));
    for leg in LegId::ALL {
        call.leg(leg, say(ACK, ISN[leg.index()] + 1, R + 1));
    }
    assert_eq!(call.state(), Some(FlowState::TimeWait));
    // The client says PORT again; a transfer between has been answered.
    call.world.ask();
    for id in LegId::ALL {
        let server = &mut call.world.servers[id.index()];
        server.script.extend_from_slice(AGREED.as_bytes());
        let (from, to) = (server.sent, server.script.len());
        call.world.say(id, from, to);
    }
    call.world.ack();
    call.world.kit.forget();
    for leg in LegId::ALL {
        call.leg(leg, say(SYN, ISS[leg.index()] + 70_000, 0).mss(1460));
    }
    let syns = of(&call.on(Link::Client), SYN);
    assert_eq!((syns.len(), syns[0].seg.seq), (1, ISS[0] + 70_000));
    call.client(say(SYN_ACK, 5, ISS[0] + 70_001).mss(1460));
    for leg in LegId::ALL {
        call.leg(leg, say(ACK, ISS[leg.index()] + 70_001, 6));
    }
    assert_eq!(call.state(), Some(FlowState::Paired));
}

/// Another process has the record of a connection that the client has answered, and goes on; before
/// that it knows nothing, and the primary's call passes as it is.
#[test]
fn a_restart_of_the_gateway_keeps_what_the_client_has_answered() {
    for acknowledged in [&[][..], &[A], &[B], &[A, B]] {
        let mut call = agreed();
        call.call(A);
        call.call(B);
        call.answer(ISS[0]);
        for leg in acknowledged {
            call.acknowledge(*leg);
        }
        let records = std::mem::take(&mut call.world.kit.records);
        call.world.kit = Kit::restored(ftp(), records);
        assert_eq!(call.state(), Some(FlowState::Paired), "{acknowledged:?}");
        call.world.kit.wait_ms(50);
        call.world.kit.forget();
        // Whoever lacks something says its own again.
        call.answer(ISS[0]);
        for leg in LegId::ALL {
            let told = of(&call.on(Link::Server(leg)), SYN_ACK);
            assert_eq!(told.len(), 1, "{acknowledged:?}");
            assert_eq!((told[0].seg.seq, told[0].seg.ack), (CLIENT_ISS, ISN[leg.index()]));
            call.acknowledge(leg);
        }
        assert_eq!(call.on(Link::Client).pop().expect("the last ack").seg.ack, R);
        call.world.kit.forget();
        call.leg(A, say(ACK, ISN[0], R).data("content"));
        call.leg(B, say(ACK, ISN[1], R).data("content"));
        assert_eq!(call.on(Link::Client).pop().expect("shown").data, b"content");
        assert_eq!(call.state(), Some(FlowState::Paired), "{acknowledged:?}");
    }
    let mut call = agreed();
    call.call(A);
    call.call(B);
    let records = std::mem::take(&mut call.world.kit.records);
    call.world.kit = Kit::restored(ftp(), records);
    call.world.kit.wait_ms(50);
    call.world.kit.forget();
    assert_eq!(call.call(A).pop().map(|h| (h.link, h.seg.seq)), Some((Link::Client, ISS[0])));
    assert!(call.call(B).is_empty());
    let told = call.answer(ISS[0]);
    assert_eq!((told.len(), told[0].link, told[0].seg.ack), (1, Link::Server(A), ISN[0]));
}

/// What waits is part of what is written about an incident, and can be run again.
#[test]
fn a_call_that_waits_is_part_of_a_snapshot() {
    let mut call = agreed();
    call.call(B);
    let snapshot = call.world.kit.engine.snapshot(1 << 20, 1 << 20).expect("a small engine");
    call.world.kit.engine = Engine::resume(ftp(), &snapshot).expect("it is whole");
    let shown = call.call(A);
    assert_eq!(of(&shown, SYN).len(), 1);
    let snapshot = call.world.kit.engine.snapshot(1 << 20, 1 << 20).expect("a small engine");
    call.world.kit.engine = Engine::resume(ftp(), &snapshot).expect("it is whole");
    assert_eq!(of(&call.answer(ISS[0]), SYN_ACK).len(), 2);
}

/// A server's program that has nobody to talk to any more does not keep the other one's transfer.
#[test]
fn a_caller_that_has_gone_when_the_answer_comes_loses_its_part() {
    for gone in LegId::ALL {
        let other = gone.other();
        let mut call = agreed();
        call.call(A);
        call.call(B);
        call.answer(ISS[0]);
        call.leg(gone, say(RST, ISN[gone.index()], 0));
        call.acknowledge(other);
        call.world.kit.wait_ms(60);
        assert_eq!(call.state(), Some(FlowState::Solo), "{gone:?}");
        assert_eq!(call.on(Link::Client).pop().expect("the last ack").seg.ack, R);
    }
}

#[test]
fn what_is_agreed_is_told_and_counted_once() {
    let mut world = answered(ACTIVE, [AGREED; 2]);
    world.ack();
    let told = world.kit.events.iter().filter_map(|event| match event {
        Event::DataOffered { port, outcome, .. } => Some((*port, *outcome)),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [(50_000, OfferOutcome::Believed)]);
    let is_refused = |event: &Event| {
        matches!(event, Event::Rejected { reason: RejectReason::OldGeneration, .. })
    };
    assert!(!world.kit.events.iter().any(is_refused));
}
