//! A connection that one server carries alone gets a second one at a message boundary.

use super::kit::{ACK, CLIENT_ISS as C, FIN, Heard, ISS, Kit, RST, SYN, SYN_ACK, Say, config, say};
use crate::engine::{
    Command, EngineConfig, Event, FlowState, Input, LegId, Link, NotReprotected, Record, Reprotect,
    Rules, ServerState, SoloReason, SyncScope,
};
use LegId::{A, B};

const TO_A: Link = Link::Server(A);
const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// The number with which A begins anew.
const NEW: u32 = 777_000;

fn len(text: &str) -> u32 {
    text.len() as u32
}

/// A connection of HTTP, B alone: A has failed and is back.
struct Talk {
    kit: Kit,
    /// The client's next byte, and the next of the answers, without the numbers they begin with.
    asked: u32,
    answered: u32,
    /// Of the connection with A: the number behind its SYN, and where that stands in the answers.
    a: (u32, u32),
}

impl Talk {
    fn new() -> Self {
        Self::with(|s| s.scale(7).sack_ok(), |s| s.scale(7).sack_ok())
    }

    fn with(client: impl Fn(Say) -> Say, server: impl Fn(Say) -> Say) -> Self {
        let mut talk = Self::before(client, server);
        talk.fail_over();
        talk
    }

    /// With another configuration; the servers were made equal.
    fn paired_with(change: impl Fn(&mut EngineConfig)) -> Self {
        let mut config = Self::config();
        change(&mut config);
        let mut kit = Kit::new(config);
        kit.mend();
        kit.wait_ms(250); // syncs keep a distance
        let mut talk = Self::answered(kit, |s| s.scale(7).sack_ok(), |s| s.scale(7).sack_ok());
        talk.fail_over();
        talk.kit.wait_ms(250);
        talk.kit.mend();
        talk.kit.wait_ms(600);
        let place = (talk.asked, talk.answered);
        talk.accept(place, |s| s);
        assert!(talk.is_paired(), "{:?}", talk.state());
        talk.kit.wait_ms(250);
        talk.kit.forget();
        talk
    }

    fn config() -> EngineConfig {
        EngineConfig { rules: Rules::headers(["date"]), reprotect: Reprotect::Idle, ..config() }
    }

    /// Both have answered one request.
    fn before(client: impl Fn(Say) -> Say, server: impl Fn(Say) -> Say) -> Self {
        Self::answered(Kit::new(Self::config()), client, server)
    }

    fn answered(mut kit: Kit, client: impl Fn(Say) -> Say, server: impl Fn(Say) -> Say) -> Self {
        kit.forget();
        kit.establish_with(client, server);
        let mut talk = Self { kit, asked: 0, answered: 0, a: (ISS[0] + 1, 0) };
        talk.ask(GET);
        talk.answer(A, OK);
        talk.answer(B, OK);
        talk.hear(OK);
        talk
    }

    /// A fails, and is taken back.
    fn fail_over(&mut self) {
        self.kit.command(Command::Failover { to: Some(B), is_planned: false });
        assert_eq!(self.state(), (FlowState::Solo, Some(SoloReason::ServerFailed)));
        self.kit.wait_ms(50);
        self.kit.command(Command::Rejoin(A));
        assert_eq!(self.kit.engine.status().servers, [ServerState::Up; 2]);
    }

    fn state(&self) -> (FlowState, Option<SoloReason>) {
        let flow = &self.kit.engine.flows(1)[0];
        (flow.state, flow.solo)
    }

    fn is_paired(&self) -> bool {
        self.state().0 == FlowState::Paired
    }

    /// The number of the client's next byte, and of the next one that it hears.
    fn next(&self) -> (u32, u32) {
        (C + 1 + self.asked, ISS[0] + 1 + self.answered)
    }

    fn ask(&mut self, text: &str) -> Vec<Heard> {
        let (seq, ack) = self.next();
        self.asked += len(text);
        self.kit.client(say(ACK, seq, ack).data(text))
    }

    /// The next bytes of an answer, from one server.
    fn answer(&mut self, leg: LegId, text: &str) -> Vec<Heard> {
        self.say_of(leg, ACK, text)
    }

    fn say_of(&mut self, leg: LegId, flags: crate::wire::TcpFlags, text: &str) -> Vec<Heard> {
        let seq = match leg {
            A => self.a.0 + self.answered - self.a.1,
            B => ISS[1] + 1 + self.answered,
        };
        self.kit.leg(leg, say(flags, seq, self.next().0).data(text))
    }

    /// The client takes what it was shown.
    fn hear(&mut self, text: &str) {
        self.answered += len(text);
        let (seq, ack) = self.next();
        self.kit.client(say(ACK, seq, ack));
    }

    /// SYNs to A since [`Kit::forget`].
    fn syns(&self) -> Vec<Heard> {
        self.kit.on(TO_A).into_iter().filter(|h| h.seg.flags == SYN).collect()
    }

    fn resets(&self) -> Vec<u32> {
        let resets = self.kit.on(TO_A).into_iter().filter(|h| h.seg.flags == RST);
        resets.map(|h| h.seg.seq).collect()
    }

    /// A answers the SYN that it was sent when the client had asked and heard so much.
    fn accept(&mut self, (asked, answered): (u32, u32), how: impl Fn(Say) -> Say) -> Vec<Heard> {
        self.a = (NEW + 1, answered);
        let syn_ack = say(SYN_ACK, NEW, C + 1 + asked).mss(1460).scale(7).sack_ok();
        self.kit.leg(A, how(syn_ack))
    }

    /// A has a SYN, and nothing else has happened.
    fn asked_for() -> Self {
        let mut talk = Self::new();
        talk.kit.forget();
        talk.kit.wait_ms(2);
        assert_eq!(talk.syns().len(), 1);
        talk
    }

    fn paired() -> Self {
        let mut talk = Self::asked_for();
        let place = (talk.asked, talk.answered);
        talk.accept(place, |s| s);
        assert!(talk.is_paired(), "{:?}", talk.state());
        talk.kit.forget();
        talk
    }

    fn shown(&self) -> String {
        let shown = self.kit.on(Link::Client).into_iter().flat_map(|h| h.data).collect();
        String::from_utf8(shown).expect("text")
    }

    fn failures(&self) -> Vec<NotReprotected> {
        let why = |e: &Event| match e {
            Event::NotReprotected { why, .. } => Some(*why),
            _ => None,
        };
        self.kit.events.iter().filter_map(why).collect()
    }

    /// One more request and its answer: nothing is shown before both have said it.
    fn exchange(&mut self, answer: &str) {
        self.kit.forget();
        let heard = self.ask(GET);
        let to = |link| heard.iter().any(|h| h.link == link && h.data == GET.as_bytes());
        assert!(to(TO_A) && to(Link::Server(B)));
        self.answer(B, answer);
        assert_eq!(self.shown(), "", "one of two");
        self.answer(A, answer);
        assert_eq!(self.shown(), answer);
        self.hear(answer);
    }
}

#[test]
fn between_two_requests_the_other_server_takes_part_again() {
    let mut talk = Talk::asked_for();
    let syn = &talk.syns()[0].seg;
    let options = syn.options;
    assert_eq!(syn.seq, C + talk.asked, "one before the client's next byte");
    assert_eq!((options.mss, options.window_scale), (Some(1460), Some(7)));
    assert!(options.sack_permitted && options.timestamps.is_none());
    let place = (talk.asked, talk.answered);
    let heard = talk.accept(place, |s| s);
    assert!(talk.is_paired());
    let third: Vec<_> = heard.iter().map(|h| (h.link, h.seg.seq, h.seg.ack)).collect();
    assert_eq!(third, [(TO_A, C + 1 + talk.asked, NEW + 1)], "and the client hears nothing");
    let is_told = |e: &Event| matches!(e, Event::Reprotected { server: A, .. });
    assert_eq!(talk.kit.events.iter().filter(|e| is_told(e)).count(), 1);
    for _ in 0..3 {
        talk.exchange(OK);
    }
    // The other one dies in the middle of an answer.
    talk.kit.forget();
    talk.ask(GET);
    talk.answer(A, OK);
    talk.answer(B, &OK[..20]);
    assert_eq!(talk.shown(), OK[..20]);
    talk.kit.wait_ms(11_000); // promotions keep a distance
    talk.kit.forget();
}

#[test]
fn after_that_the_other_one_may_die() {
    for cut in [0, 1, 20, OK.len()] {
        let mut talk = Talk::paired();
        talk.exchange(OK);
        talk.kit.forget();
        talk.ask(GET);
        talk.answer(A, OK);
        talk.answer(B, &OK[..cut]);
        talk.kit.command(Command::Failover { to: Some(A), is_planned: false });
        assert_eq!(talk.shown(), OK, "{cut}");
        assert_eq!(talk.state(), (FlowState::Solo, Some(SoloReason::ServerFailed)));
        talk.hear(OK);
        // It goes on with the numbers that the client knows.
        talk.kit.forget();
        talk.ask(GET);
        talk.answer(A, OK);
        let shown = talk.kit.on(Link::Client);
        let first = shown.iter().find(|h| !h.data.is_empty()).expect("an answer");
        assert_eq!((first.seg.seq, first.seg.ack), (talk.next().1, talk.next().0));
        assert!(!talk.kit.events.iter().any(|e| matches!(e, Event::FlowReset { .. })));
    }
}

#[test]
fn a_flow_at_rest_is_woken_for_it_and_goes_to_rest_again() {
    let mut talk = Talk::before(|s| s, |s| s);
    talk.kit.command(Command::Failover { to: Some(B), is_planned: false });
    talk.kit.wait_ms(50);
    assert_eq!(talk.kit.engine.at_rest().count(), 1);
    talk.kit.forget();
    talk.kit.command(Command::Rejoin(A));
    talk.kit.wait_ms(5);
    assert_eq!(talk.syns().len(), 1);
    assert_eq!(talk.kit.engine.at_rest().count(), 0);
    let place = (talk.asked, talk.answered);
    talk.accept(place, |s| s);
    talk.kit.wait_ms(20);
    assert!(talk.is_paired());
    assert_eq!(talk.kit.engine.at_rest().count(), 1);
    talk.exchange(OK);
}

#[test]
fn it_is_off_unless_the_user_says_so() {
    let mut kit = Kit::new(EngineConfig { rules: Rules::headers(["date"]), ..config() });
    kit.establish();
    let mut talk = Talk { kit, asked: 0, answered: 0, a: (ISS[0] + 1, 0) };
    talk.ask(GET);
    talk.answer(A, OK);
    talk.answer(B, OK);
    talk.hear(OK);
    talk.fail_over();
    talk.kit.forget();
    talk.kit.wait_ms(5000);
    assert!(talk.syns().is_empty());
}

/// Whatever is outstanding, or unknown: no server begins in the middle of it.
#[test]
fn in_the_middle_of_a_message_nobody_is_asked() {
    let until_close = "HTTP/1.1 200 OK\r\n\r\nand so on";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n01234";
    let two = format!("{GET}{GET}");
    let cases: [(&str, &str); 10] = [
        ("GET / HTTP/1.1\r\nHo", ""),
        ("G", ""),
        (post, ""),
        (post, OK), // answered early: the rest of the request is still to come
        (GET, ""),
        (GET, &OK[..9]),
        (GET, &OK[..OK.len() - 1]),
        (GET, until_close),
        (GET, chunked),
        (GET, switch),
    ];
    let pipelined = [(&two[..], OK), (&two[..], ""), (GET, interim)];
    for (request, answer) in cases.into_iter().chain(pipelined) {
        let mut talk = Talk::before(|s| s, |s| s);
        talk.kit.command(Command::Failover { to: Some(B), is_planned: false });
        talk.ask(request);
        // All of it is acknowledged, and all of the answer so far.
        talk.answer(B, answer);
        talk.hear(answer);
        talk.kit.wait_ms(50);
        talk.kit.command(Command::Rejoin(A));
        talk.kit.forget();
        talk.kit.wait_ms(3000);
        assert!(talk.syns().is_empty(), "{request:?} {answer:?}");
    }
}

#[test]
fn what_is_not_acknowledged_is_not_over() {
    for lacks in ["the client's ack", "the server's ack"] {
        let mut talk = Talk::before(|s| s, |s| s);
        talk.kit.command(Command::Failover { to: Some(B), is_planned: false });
        talk.ask(GET);
        match lacks {
            "the client's ack" => {
                talk.answer(B, OK);
                talk.answered += len(OK);
            }
            _ => {
                let (seq, ack) = (ISS[1] + 1 + talk.answered, talk.next().0 - len(GET));
                talk.kit.leg(B, say(ACK, seq, ack).data(OK));
                talk.hear(OK);
            }
        }
        talk.kit.command(Command::Rejoin(A));
        talk.kit.forget();
        talk.kit.wait_ms(50);
        assert!(talk.syns().is_empty(), "{lacks}");
        // With it the flow is between two messages.
        match lacks {
            "the client's ack" => talk.hear(""),
            _ => drop(talk.answer(B, "")),
        }
        talk.kit.wait_ms(1000);
        assert!(!talk.syns().is_empty(), "{lacks}");
    }
}

/// What the client says before the second server is there, it hears when it is; the answer that
/// was shown meanwhile it has to give as well.
#[test]
fn what_is_said_meanwhile_is_heard_afterwards() {
    // How far the exchange gets before A answers the SYN: request, answer, ack, the next one.
    for stage in 0..5 {
        let mut talk = Talk::asked_for();
        let place = (talk.asked, talk.answered);
        let mut shown = String::new();
        if stage >= 1 {
            talk.ask(&GET[..7]);
        }
        if stage >= 2 {
            talk.ask(&GET[7..]);
        }
        if stage >= 3 {
            talk.kit.forget();
            talk.answer(B, OK);
            assert_eq!(talk.shown(), OK, "nobody waits for A");
            shown.push_str(OK);
        }
        if stage >= 4 {
            talk.hear(OK);
            talk.ask(GET);
        }
        talk.kit.forget();
        talk.accept(place, |s| s);
        let heard: Vec<u8> = talk.kit.on(TO_A).into_iter().flat_map(|h| h.data).collect();
        let said = match stage {
            0 => String::new(),
            1 => GET[..7].into(),
            2 | 3 => GET.into(),
            _ => format!("{GET}{GET}"),
        };
        assert_eq!(String::from_utf8_lossy(&heard), said, "{stage}");
        // A says what it was asked.
        let seq = NEW + 1;
        let ack = C + 1 + talk.asked;
        talk.kit.leg(A, say(ACK, seq, ack).data(&shown));
        assert!(talk.is_paired(), "{stage}: {:?}", talk.state());
        if stage == 1 {
            talk.ask(&GET[7..]);
        }
        if stage == 3 {
            talk.hear(OK);
        }
        if stage != 0 && stage != 3 {
            talk.kit.forget();
            talk.answer(B, OK);
            assert_eq!(talk.shown(), "", "{stage}: one of two");
            talk.answer(A, OK);
            assert_eq!(talk.shown(), OK, "{stage}");
            talk.hear(OK);
        }
        talk.exchange(OK);
    }
}

#[test]
fn a_second_server_that_answers_otherwise_is_let_go_and_not_asked_again() {
    for is_late in [false, true] {
        let mut talk = Talk::asked_for();
        let place = (talk.asked, talk.answered);
        let other = "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
        if is_late {
            talk.ask(GET);
            talk.answer(B, OK);
        }
        talk.accept(place, |s| s);
        if !is_late {
            talk.ask(GET);
            talk.answer(B, OK);
        }
        let ack = C + 1 + talk.asked;
        talk.kit.leg(A, say(ACK, NEW + 1, ack).data(other));
        assert_eq!(talk.state(), (FlowState::Solo, Some(SoloReason::Diverged)));
        assert_eq!(talk.resets().last(), Some(&ack));
        assert!(talk.shown().ends_with(OK), "{}", talk.shown());
        talk.hear(OK);
        talk.kit.forget();
        talk.kit.wait_ms(700_000);
        assert!(talk.syns().is_empty());
    }
}

/// That is no news about the servers' contents: nobody waits, and no sync is asked for.
#[test]
fn what_only_one_server_can_know_asks_for_no_sync() {
    let mut talk = Talk::paired_with(|config| config.sync_scope = Some(SyncScope::Content));
    let before = talk.kit.syncs.len();
    talk.ask(GET);
    talk.answer(A, "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    talk.answer(B, OK);
    assert_eq!((talk.shown(), talk.kit.syncs.len()), (OK.into(), before));
    assert_eq!(talk.failures(), [NotReprotected::Differs]);
    // Behind a first answer that is whole it is a difference as any other.
    let mut talk = Talk::paired_with(|config| config.sync_scope = Some(SyncScope::Content));
    talk.exchange(OK);
    let before = talk.kit.syncs.len();
    talk.ask(GET);
    talk.answer(A, "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    talk.answer(B, OK);
    assert_eq!(talk.state().0, FlowState::Diverged);
    talk.kit.wait_ms(100);
    assert_eq!(talk.kit.syncs.len(), before + 1);
}

#[test]
fn a_server_that_refuses_is_asked_again_later_and_not_for_ever() {
    let mut talk = Talk::asked_for();
    let mut waits = Vec::new();
    let mut asked_at = talk.kit.now;
    for _ in 0..20 {
        let ack = C + 1 + talk.asked;
        talk.kit.leg(A, say(crate::wire::TcpFlags(0x14), 0, ack));
        assert_eq!(talk.state().0, FlowState::Solo);
        talk.kit.forget();
        for _ in 0..400 {
            talk.kit.wait_ms(1000);
            if !talk.syns().is_empty() {
                waits.push(talk.kit.now.since(asked_at).as_secs());
                asked_at = talk.kit.now;
                break;
            }
        }
        if talk.syns().is_empty() {
            break;
        }
    }
    assert_eq!(waits.len(), 3, "{waits:?}");
    assert!(waits.windows(2).all(|w| w[1] > w[0]), "{waits:?}");
    // A server that was away and is back is another matter.
    talk.kit.command(Command::Failover { to: Some(A), is_planned: false });
    assert_eq!(talk.kit.engine.status().roles.primary, A);
}

#[test]
fn a_server_that_does_not_answer_is_given_up_exactly() {
    let mut talk = Talk::asked_for();
    talk.kit.wait_ms(2900);
    assert!(talk.syns().len() > 4 && talk.failures().is_empty());
    talk.kit.wait_ms(200);
    assert_eq!(talk.failures(), [NotReprotected::Silent]);
    let next = C + 1 + talk.asked;
    assert_eq!(talk.resets(), [next]);
    // Its answer comes after all.
    talk.kit.forget();
    let place = (talk.asked, talk.answered);
    talk.accept(place, |s| s);
    assert_eq!((talk.resets(), talk.state().0), (vec![next], FlowState::Solo));
}

#[test]
fn a_reset_that_is_not_exact_is_nobodys() {
    let mut talk = Talk::asked_for();
    talk.kit.leg(A, say(crate::wire::TcpFlags(0x14), 0, C + 1));
    talk.kit.leg(A, say(RST, NEW, 0));
    assert!(talk.failures().is_empty());
    // Neither is an answer to another SYN.
    talk.kit.leg(A, say(SYN_ACK, NEW, C + 1).mss(1460));
    assert_eq!(talk.state().0, FlowState::Solo);
    let place = (talk.asked, talk.answered);
    talk.accept(place, |s| s);
    assert!(talk.is_paired());
}

/// A server that still lives in the old connection is told that it is over (RFC 5961 4).
#[test]
fn an_older_connection_of_the_server_is_ended() {
    let mut talk = Talk::asked_for();
    talk.kit.forget();
    let old = C + 1 + talk.asked - 5;
    talk.kit.leg(A, say(ACK, ISS[0] + 1, old));
    assert_eq!(talk.resets(), [old]);
    assert_eq!(talk.syns().len(), 1);
    let place = (talk.asked, talk.answered);
    talk.accept(place, |s| s);
    assert!(talk.is_paired());
    talk.exchange(OK);
}

/// The same where the old connection stands just there, so that what it says could have overtaken a
/// SYN-ACK; and it is said once, since a kernel challenges seldom.
#[test]
fn an_older_connection_of_the_server_at_the_same_place_is_ended() {
    let mut talk = Talk::asked_for();
    talk.kit.forget();
    let here = C + 1 + talk.asked;
    talk.kit.leg(A, say(ACK, ISS[0] + 1, here));
    talk.kit.wait_ms(399);
    assert!(talk.resets().is_empty(), "it may have been on its way since before");
    talk.kit.wait_ms(2);
    assert_eq!(talk.resets(), [here]);
    let to_a = talk.kit.on(TO_A);
    assert_eq!(to_a.last().expect("both").seg.flags, SYN, "asked again behind the reset");
    talk.kit.wait_ms(100);
    assert_eq!(talk.resets().len(), 1);
    let place = (talk.asked, talk.answered);
    talk.accept(place, |s| s);
    assert!(talk.is_paired());
    talk.exchange(OK);
}

/// An option is a matter of one leg: who agrees to less takes part all the same.
#[test]
fn a_server_that_agrees_to_less_takes_part() {
    let stamped = |s: Say| s.scale(7).sack_ok().stamps(10, 0);
    let servers = |s: Say| s.scale(7).sack_ok().stamps(50_000, 10);
    let mut talk = Talk::with(stamped, servers);
    talk.kit.forget();
    talk.kit.wait_ms(2);
    let options = talk.syns()[0].seg.options;
    assert!(options.timestamps.is_some_and(|(value, _)| value.0 == 11), "the client's latest");
    talk.a = (NEW + 1, talk.answered);
    let bare = say(SYN_ACK, NEW, C + 1 + talk.asked).mss(500).window(3000);
    talk.kit.leg(A, bare);
    assert!(talk.is_paired());
    talk.kit.forget();
    // More than it takes at once, and in larger pieces.
    let body = "x".repeat(5000);
    let request = format!("POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{body}");
    let (seq, ack) = talk.next();
    talk.asked += len(&request);
    talk.kit.client(say(ACK, seq, ack).data(&request).stamps(12, 50_000));
    let mut heard = Vec::new();
    let mut taken = seq;
    for _ in 0..20 {
        for h in talk.kit.on(TO_A) {
            assert!(h.data.len() <= 500 && h.seg.options.timestamps.is_none());
            assert!(h.seg.options.sack.as_slice().is_empty());
            if h.seg.seq == taken {
                taken = taken.wrapping_add(h.data.len() as u32);
                heard.extend_from_slice(&h.data);
            }
        }
        talk.kit.forget();
        talk.kit.leg(A, say(ACK, NEW + 1, taken).window(3000));
    }
    assert_eq!(heard, request.as_bytes());
    let (seq, ack) = (ISS[1] + 1 + talk.answered, talk.next().0);
    talk.kit.leg(B, say(ACK, seq, ack).data(OK).stamps(60_000, 12));
    talk.kit.forget();
    talk.answer(A, OK);
    assert_eq!(talk.shown(), OK);
    assert!(talk.is_paired());
}

#[test]
fn a_client_that_goes_meanwhile_takes_the_second_one_with_it() {
    for how in [FIN, RST] {
        let mut talk = Talk::asked_for();
        let (seq, ack) = talk.next();
        let next = C + 1 + talk.asked;
        talk.kit.forget();
        talk.kit.client(say(how, seq, ack));
        assert_eq!(talk.resets(), [next], "{how:?}");
        let why = if how == FIN { vec![NotReprotected::Ended] } else { Vec::new() };
        assert_eq!(talk.failures(), why);
        // Its answer was on the way.
        talk.kit.forget();
        let place = (talk.asked, talk.answered);
        talk.accept(place, |s| s);
        assert_eq!(talk.resets(), [next], "{how:?}");
        talk.kit.wait_ms(3000);
        assert!(talk.syns().is_empty());
        if how == FIN {
            // B alone closes it.
            let (seq, ack) = talk.next();
            talk.kit.leg(B, say(FIN, ISS[1] + 1 + talk.answered, seq + 1));
            assert!(talk.kit.on(Link::Client).iter().any(|h| h.seg.flags == FIN));
            talk.kit.client(say(ACK, seq + 1, ack + 1));
            talk.kit.leg(B, say(ACK, ISS[1] + 2 + talk.answered, seq + 1));
            assert_eq!(talk.state().0, FlowState::TimeWait);
        }
    }
}

#[test]
fn the_first_server_that_ends_it_meanwhile_ends_it() {
    for how in [FIN, RST] {
        let mut talk = Talk::asked_for();
        let next = C + 1 + talk.asked;
        talk.kit.forget();
        talk.say_of(B, how, "");
        assert_eq!(talk.resets(), [next], "{how:?}");
        assert!(talk.kit.on(Link::Client).iter().any(|h| h.seg.flags == how));
        talk.kit.forget();
        talk.kit.wait_ms(3000);
        assert!(talk.syns().is_empty());
    }
}

#[test]
fn a_server_that_dies_meanwhile_costs_nothing() {
    let mut talk = Talk::asked_for();
    talk.kit.input(Input::Signal(TO_A, crate::engine::Signal::CarrierDown));
    assert_eq!(talk.state().0, FlowState::Solo);
    talk.kit.forget();
    talk.ask(GET);
    talk.answer(B, OK);
    assert_eq!(talk.shown(), OK);
    talk.hear(OK);
    // And the one that is left takes its connection along, as it always would.
    let mut talk = Talk::asked_for();
    talk.kit.wait_ms(100);
    talk.kit.input(Input::Signal(Link::Server(B), crate::engine::Signal::CarrierDown));
    assert!(talk.kit.events.iter().any(|e| matches!(e, Event::FlowReset { .. })));
    assert_eq!(talk.resets(), [C + 1 + talk.asked]);
}

#[test]
fn the_second_server_dies_before_it_has_proved_anything() {
    let mut talk = Talk::paired();
    talk.ask(GET);
    talk.answer(A, &OK[..9]);
    talk.kit.leg(A, say(RST, NEW + 1 + 9, 0));
    talk.answer(B, OK);
    talk.kit.wait_ms(60);
    assert_eq!(talk.shown(), OK);
    assert_eq!(talk.state(), (FlowState::Solo, Some(SoloReason::EarlyEnd)));
    talk.hear(OK);
    talk.kit.forget();
    talk.kit.wait_ms(6000);
    assert!(!talk.syns().is_empty(), "and is asked again");
}

/// Many flows are asked for a few at a time.
#[test]
fn many_flows_are_no_storm() {
    let mut talk = Talk::before(|s| s, |s| s);
    for port in 0..400u16 {
        let port = 41_000 + port;
        let mut at = |link, say| talk.kit.say(link, say, port);
        at(Link::Client, say(SYN, C, 0).mss(1460));
        for (link, iss) in [(TO_A, ISS[0]), (Link::Server(B), ISS[1])] {
            at(link, say(SYN_ACK, iss, C + 1).mss(1460));
        }
        at(Link::Client, say(ACK, C + 1, ISS[0] + 1).data(GET));
        for (link, iss) in [(TO_A, ISS[0]), (Link::Server(B), ISS[1])] {
            at(link, say(ACK, iss + 1, C + 1 + len(GET)).data(OK));
        }
        at(Link::Client, say(ACK, C + 1 + len(GET), ISS[0] + 1 + len(OK)));
    }
    talk.fail_over();
    talk.kit.forget();
    let mut before = 0;
    for _ in 0..500 {
        talk.kit.wait_ms(1);
        let first = |h: &Heard| h.seg.flags == SYN;
        let mut ports: Vec<u16> =
            talk.kit.on(TO_A).into_iter().filter(first).map(|h| h.seg.src_port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() - before <= 10, "{} at once", ports.len() - before);
        before = ports.len();
    }
    assert_eq!(before, 401);
}

/// A process that begins anew knows a flow that was paired again as any other.
/// What was asked before it began it has not heard, so it knows no boundary.
#[test]
fn a_new_process_asks_nobody_into_the_connections_that_it_finds() {
    let mut talk = Talk::new();
    let last = talk.kit.records.iter().rfind(|record| matches!(record, Record::Flow { .. }));
    let records = last.cloned().into_iter().collect();
    let mut kit = Kit::restored(Talk::config(), records);
    let (seq, ack) = talk.next();
    kit.client(say(ACK, seq, ack));
    kit.leg(B, say(ACK, ISS[1] + 1 + talk.answered, seq));
    kit.forget();
    talk.kit = kit;
    assert_eq!(talk.state().0, FlowState::Solo);
    talk.ask(GET);
    talk.answer(B, OK);
    talk.hear(OK);
    talk.kit.wait_ms(2_000);
    assert!(talk.syns().is_empty());
}

#[test]
fn it_outlives_the_gateway() {
    let mut talk = Talk::paired();
    talk.exchange(OK);
    // The latest of each.
    let is_flow = |r: &&Record| matches!(r, Record::Flow { .. });
    let last = talk.kit.records.iter().rfind(is_flow).cloned();
    let records = last.into_iter().collect();
    let config = EngineConfig { reprotect: Reprotect::Idle, ..config() };
    let mut kit = Kit::restored(config, records);
    kit.wait_ms(15);
    let (seq, ack) = talk.next();
    kit.client(say(ACK, seq, ack));
    kit.leg(A, say(ACK, NEW + 1 + ack - (ISS[0] + 1) - talk.a.1, seq));
    kit.leg(B, say(ACK, ISS[1] + 1 + talk.answered, seq));
    kit.forget();
    talk.kit = kit;
    assert!(talk.is_paired());
    talk.exchange(OK);
}
