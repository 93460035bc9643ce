//! Two sides of a connection, and what strangers and liars make of it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::frame::{DATA_LEN_MAX, Frame, Purpose};
use super::handshake::{HandshakeError, Opener, Sealer, VERSION, greet, hello, receive};
use super::key::{KEY_LEN, Key};
use super::mux::{CHANNELS_MAX, Channel, Connection, Sealed, WINDOW};

const KEY: Key = Key::new([7; KEY_LEN]);
const SOON: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

type Both = (Sealer, Opener);

fn streams() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let ours = TcpStream::connect(listener.local_addr().expect("its address")).expect("a stream");
    (ours, listener.accept().expect("its other end").0)
}

/// A gateway with this key beside an agent with [`KEY`].
fn shake(key: &Key) -> (Result<Both, HandshakeError>, Result<Both, HandshakeError>) {
    let (gateway, agent) = streams();
    std::thread::scope(|scope| {
        let received = scope.spawn(|| receive(&agent, &KEY, PATIENCE, || true));
        let greeted = greet(&gateway, key, PATIENCE);
        (greeted, received.join().expect("no panic"))
    })
}

/// What an agent makes of a stranger.
fn received(stranger: impl FnOnce(TcpStream) + Send) -> HandshakeError {
    let (theirs, agent) = streams();
    std::thread::scope(|scope| {
        scope.spawn(move || stranger(theirs));
        let failed = receive(&agent, &KEY, SOON, || true).expect_err("it has no key");
        drop(agent);
        failed
    })
}

/// What a gateway makes of somebody who is not an agent with its key.
fn greeted(stranger: impl FnOnce(TcpStream) + Send) -> HandshakeError {
    let (gateway, theirs) = streams();
    std::thread::scope(|scope| {
        scope.spawn(move || stranger(theirs));
        let failed = greet(&gateway, &KEY, SOON).expect_err("it has no key");
        drop(gateway);
        failed
    })
}

#[test]
fn who_has_the_key_is_heard_and_everything_is_sealed_both_ways() {
    let (Ok((mut to_agent, mut from_agent)), Ok((mut to_gateway, mut from_gateway))) = shake(&KEY)
    else {
        panic!("they have the same key");
    };
    for text in [&b"one"[..], b"", b"three"] {
        for (sealer, opener) in
            [(&mut to_agent, &mut from_gateway), (&mut to_gateway, &mut from_agent)]
        {
            let (mut record, mut plain) = (Vec::new(), Vec::new());
            sealer.seal(text, &mut record).expect("it is sealed");
            assert!(text.is_empty() || !record.windows(text.len()).any(|part| part == text));
            assert_eq!(opener.open(&record[2..], &mut plain), Ok(text));
            // The same record again is another one's place.
            opener.open(&record[2..], &mut plain).expect_err("it was said already");
            sealer.seal(b"", &mut Vec::new()).expect("it is sealed");
        }
    }
}

#[test]
fn another_key_is_told_to_both_sides() {
    let (gateway, agent) = shake(&Key::new([8; KEY_LEN]));
    assert!(matches!(gateway, Err(HandshakeError::WrongKey)), "{gateway:?}");
    assert!(matches!(agent, Err(HandshakeError::WrongKey)), "{agent:?}");
}

#[test]
fn an_agent_that_has_the_hello_but_not_the_key_is_no_agent_of_ours() {
    let failed = greeted(|mut stream| {
        let _ = stream.write_all(&[&hello(VERSION)[..], &[0], &[9; 48]].concat());
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert!(matches!(failed, HandshakeError::WrongKey), "{failed:?}");
}

#[test]
fn another_version_is_told_to_both_sides() {
    let other = hello(VERSION + 98);
    let mut answer = Vec::new();
    let failed = received(|mut stream| {
        stream.write_all(&[&other[..], &[0; 48]].concat()).expect("it is taken");
        // What it did not read ends the connection by a reset, after the answer.
        let _ = stream.read_to_end(&mut answer);
    });
    assert!(matches!(failed, HandshakeError::Version { theirs: 99 }), "{failed:?}");
    assert_eq!(answer, hello(VERSION));
    let failed = greeted(|mut stream| {
        let _ = stream.write_all(&other);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let said = failed.to_string();
    assert!(said.contains("version 99") && said.contains("same shadowvm on both"), "{said}");
}

#[test]
fn a_stranger_who_talks_of_other_things_is_told_nothing() {
    let mut answer = Vec::new();
    let failed = received(|mut stream| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n").expect("it is taken");
        let _ = stream.read_to_end(&mut answer);
    });
    assert!(matches!(failed, HandshakeError::Stranger) && answer.is_empty(), "{failed:?}");
    let failed = greeted(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert!(matches!(failed, HandshakeError::Stranger), "{failed:?}");
}

#[test]
fn who_says_nothing_or_a_byte_now_and_then_is_out_of_time() {
    let begun = Instant::now();
    let silent = |stream: TcpStream| drop((&stream).read_to_end(&mut Vec::new()));
    assert!(matches!(received(silent), HandshakeError::Silent));
    let slow = |mut stream: TcpStream| {
        for byte in hello(VERSION).into_iter().cycle() {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(SOON / 10);
        }
    };
    assert!(matches!(received(slow), HandshakeError::Silent));
    assert!(matches!(greeted(silent), HandshakeError::Silent));
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn half_a_handshake_is_none() {
    for len in [1, 15, 16, 17, 63] {
        let failed = received(|mut stream| {
            let said = [&hello(VERSION)[..], &[0; 48]].concat();
            stream.write_all(&said[..len]).expect("it is taken");
            stream.shutdown(Shutdown::Write).expect("it has said all");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let HandshakeError::Io(error) = failed else { panic!("{len}: {failed:?}") };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn the_first_words_of_an_old_connection_open_nothing() {
    let (gateway, agent) = streams();
    let mut words = [0; 64];
    std::thread::scope(|scope| {
        scope.spawn(|| greet(&gateway, &KEY, SOON).expect_err("nobody answers"));
        (&agent).read_exact(&mut words).expect("what a gateway says first");
    });
    // The agent believes them so far, and waits for a proof that their speaker is alive.
    let failed = received(|mut stream| {
        stream.write_all(&words).expect("it is taken");
        let _ = stream.write_all(&[[18, 0], [0; 2]].concat());
        let _ = stream.write_all(&[0; 14]);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert!(matches!(failed, HandshakeError::WrongKey), "{failed:?}");
}

#[test]
fn a_full_agent_says_so() {
    let (gateway, agent) = streams();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| receive(&agent, &KEY, PATIENCE, || false));
        let failed = greet(&gateway, &KEY, PATIENCE).expect_err("it is full");
        assert!(matches!(failed, HandshakeError::Full), "{failed:?}");
        refused.join().expect("no panic").expect_err("it is full");
    });
}

/// A connected pair: the gateway's end, and the agent's with the channels that it is given.
struct Pair {
    gateway: Connection,
    opened: Receiver<(Purpose, Channel)>,
    /// Why each side ended.
    ends: [Receiver<String>; 2],
}

fn pair(limit: Option<u64>) -> Pair {
    let (ours, theirs) = streams();
    let ((sealer, opener), agent) = std::thread::scope(|scope| {
        let agent = scope.spawn(|| receive(&theirs, &KEY, PATIENCE, || true));
        let gateway = greet(&ours, &KEY, PATIENCE).expect("the same key");
        (gateway, agent.join().expect("no panic").expect("the same key"))
    });
    let (tell_opened, opened) = channel();
    let sealed = Sealed { sealer, opener };
    let (gateway, opener) = Connection::start(ours, sealed, true, limit).expect("a connection");
    let gateway_end = run(gateway.clone(), opener, |_, _| {});
    let sealed = Sealed { sealer: agent.0, opener: agent.1 };
    let (agent, opener) = Connection::start(theirs, sealed, false, None).expect("a connection");
    let agent_end = run(agent, opener, move |purpose, channel| {
        // A test that has seen enough hangs up.
        let _ = tell_opened.send((purpose, channel));
    });
    Pair { gateway, opened, ends: [gateway_end, agent_end] }
}

fn run(
    connection: Connection,
    opener: Opener,
    opened: impl FnMut(Purpose, Channel) + Send + 'static,
) -> Receiver<String> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let _ = tell.send(connection.run(opener, opened));
    });
    told
}

impl Pair {
    fn channels(&self, purpose: Purpose) -> (Channel, Channel) {
        let ours = self.gateway.open(purpose);
        let (opened_for, theirs) = self.opened.recv_timeout(PATIENCE).expect("it is opened");
        assert_eq!(opened_for, purpose);
        (ours, theirs)
    }
}

/// Bytes that pack well, or do not.
fn data(seed: u64, len: usize, is_noise: bool) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u8
    };
    (0..len).map(|i| if is_noise { next() } else { (i / 100) as u8 }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn what_is_written_is_read_on_each_channel_both_ways(
        pieces in proptest::collection::vec((0usize..300_000, any::<bool>()), 1..30),
    ) {
        let pair = pair(None);
        let channels = [pair.channels(Purpose::Mirror), pair.channels(Purpose::Mirror)];
        let all: Vec<Vec<u8>> = pieces
            .iter()
            .enumerate()
            .map(|(i, (len, is_noise))| data(i as u64, *len, *is_noise))
            .collect();
        let whole = all.concat();
        std::thread::scope(|scope| {
            for (ours, theirs) in &channels {
                for (to, from) in [(ours, theirs), (theirs, ours)] {
                    let (mut to, mut from) = (to.clone(), from.clone());
                    let (all, len) = (&all, whole.len());
                    scope.spawn(move || {
                        for piece in all {
                            to.write_all(piece).expect("it is taken");
                        }
                    });
                    let whole = &whole;
                    scope.spawn(move || {
                        let mut read = vec![0; len];
                        from.read_exact(&mut read).expect("all of it comes");
                        assert!(read == *whole, "it is not what was written");
                    });
                }
            }
        });
    }

    #[test]
    fn frames_are_read_as_they_were_written(
        channel: u32,
        number in 1u32..,
        bytes in proptest::collection::vec(any::<u8>(), 1..2000),
        why in ".{0,200}",
    ) {
        let len = bytes.len() as u32 + 1;
        for frame in [
            Frame::Open { channel, purpose: Purpose::Health },
            Frame::Data { channel, bytes: &bytes },
            Frame::Packed { channel, len, bytes: &bytes },
            Frame::Grant { channel, bytes: number },
            Frame::Close { channel, why: &why },
            Frame::Ping,
        ] {
            let mut record = Vec::new();
            frame.put(&mut record);
            prop_assert_eq!(Frame::parse(&record), Ok(frame));
        }
    }

    #[test]
    fn nonsense_is_no_frame_or_one_that_is_written_the_same_way(
        record in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        if let Ok(frame) = Frame::parse(&record) {
            let mut again = Vec::new();
            frame.put(&mut again);
            prop_assert_eq!(again, record);
        }
    }
}

#[test]
fn a_channel_that_nobody_reads_is_full_at_its_window_and_holds_up_nobody() {
    let pair = pair(None);
    let (ours, theirs) = pair.channels(Purpose::Mirror);
    let (mut other, mut other_end) = pair.channels(Purpose::Mirror);
    let mut writer = ours.clone();
    let (tell, told) = channel();
    let writing = std::thread::spawn(move || {
        let mut written = 0;
        loop {
            match writer.write(&[b'x'; 50_000]) {
                Ok(n) => written += n,
                Err(error) => return (written, error.to_string()),
            }
            let _ = tell.send(written);
        }
    });
    while told.recv_timeout(PATIENCE).expect("it is taken") < WINDOW {}
    for _ in 0..10 {
        let text = data(1, 100_000, true);
        other.write_all(&text).expect("it is taken");
        let mut read = vec![0; text.len()];
        other_end.read_exact(&mut read).expect("it comes");
        assert!(read == text);
    }
    assert!(told.try_recv().is_err(), "it takes more than its window");
    // What was taken can be read after the end; whoever waits for room is told.
    ours.close("seen enough");
    let (written, why) = writing.join().expect("no panic");
    assert_eq!((written, &*why), (WINDOW, "seen enough"));
    let mut read = Vec::new();
    let mut theirs = theirs;
    let ended = theirs.read_to_end(&mut read).expect_err("it did not end well");
    assert_eq!((read.len(), ended.to_string().as_str()), (WINDOW, "seen enough"));
}

#[test]
fn what_is_closed_well_is_just_over_and_makes_room_for_others() {
    let pair = pair(None);
    for turn in 0..3 * CHANNELS_MAX {
        let (mut ours, mut theirs) = pair.channels(Purpose::Mirror);
        ours.write_all(b"the end").expect("it is taken");
        drop(ours);
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).expect("it ends well");
        assert_eq!(read, b"the end", "{turn}");
        theirs.write_all(b"too late").expect_err("nobody is there");
    }
}

#[test]
fn what_is_said_of_health_overtakes_a_mirror_at_its_limit() {
    let pair = pair(Some(256 << 10));
    let (mut bulk, mut bulk_end) = pair.channels(Purpose::Mirror);
    let (mut health, mut health_end) = pair.channels(Purpose::Health);
    let begun = Instant::now();
    let noise = data(3, 512 << 10, true);
    let len = noise.len();
    let writing = std::thread::spawn(move || bulk.write_all(&noise).map(|()| bulk));
    let reading = std::thread::spawn(move || {
        bulk_end.read_exact(&mut vec![0; len]).expect("all of it comes");
        Instant::now()
    });
    health.write_all(b"it is well").expect("it is taken");
    health_end.read_exact(&mut [0; 10]).expect("it comes");
    let told = Instant::now();
    let done = reading.join().expect("no panic");
    assert!(told < done, "it waited for the mirror");
    let took = done.duration_since(begun);
    assert!(took >= Duration::from_millis(1500), "512 KiB at 256 KiB/s took {took:?}");
    drop(writing.join().expect("no panic").expect("all is taken"));
}

#[test]
fn channels_are_opened_in_the_order_of_their_numbers_whatever_waits() {
    let pair = pair(Some(64 << 10));
    let (mut bulk, _bulk_end) = pair.channels(Purpose::Mirror);
    bulk.write_all(&data(4, 512 << 10, true)).expect("it is taken");
    let opened = [Purpose::Mirror, Purpose::Health].map(|purpose| pair.gateway.open(purpose));
    for purpose in [Purpose::Mirror, Purpose::Health] {
        let (opened_for, _) = pair.opened.recv_timeout(PATIENCE).expect("it is opened");
        assert_eq!(opened_for, purpose);
    }
    assert!(opened.iter().all(|channel| channel.ended().is_none_or(|why| why.is_empty())));
}

#[test]
fn a_connection_that_breaks_is_told_to_whoever_reads_or_writes() {
    let pair = pair(None);
    let (mut ours, mut theirs) = pair.channels(Purpose::Mirror);
    let reading = std::thread::spawn(move || theirs.read(&mut [0; 1]).expect_err("it broke"));
    pair.gateway.end("for a reason");
    let why = reading.join().expect("no panic").to_string();
    assert!(why.contains("ended") || why.contains("reset"), "{why}");
    assert_eq!(ours.write(b"x").expect_err("it broke").to_string(), "for a reason");
    assert_eq!(ours.ended().as_deref(), Some("for a reason"));
    assert_eq!(pair.ends[0].recv_timeout(PATIENCE).as_deref(), Ok("for a reason"));
    assert!(pair.gateway.is_over());
}

/// What an agent makes of a gateway that has the key, and says this.
fn liar(say: impl FnOnce(&mut Sealer, &mut Vec<u8>)) -> String {
    let (mut ours, theirs) = streams();
    let ((mut sealer, _opener), agent) = std::thread::scope(|scope| {
        let agent = scope.spawn(|| receive(&theirs, &KEY, PATIENCE, || true));
        let gateway = greet(&ours, &KEY, PATIENCE).expect("the same key");
        (gateway, agent.join().expect("no panic").expect("the same key"))
    });
    let sealed = Sealed { sealer: agent.0, opener: agent.1 };
    let (agent, opener) = Connection::start(theirs, sealed, false, None).expect("a connection");
    let mut kept = Vec::new();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let _ = tell.send(agent.run(opener, |_, channel| kept.push(channel)));
    });
    let mut records = Vec::new();
    say(&mut sealer, &mut records);
    // It may hang up in the middle.
    let _ = ours.write_all(&records);
    told.recv_timeout(PATIENCE).expect("it is ended")
}

fn frames(frames: &[Frame<'_>]) -> String {
    liar(|sealer, records| {
        for frame in frames {
            let mut plain = Vec::new();
            frame.put(&mut plain);
            sealer.seal(&plain, records).expect("it is sealed");
        }
    })
}

#[test]
fn who_breaks_the_rules_is_no_longer_heard() {
    let open = |channel| Frame::Open { channel, purpose: Purpose::Mirror };
    let piece = vec![b'x'; DATA_LEN_MAX];
    let data = Frame::Data { channel: 0, bytes: &piece };
    let flood = [&[open(0)][..], &vec![data; WINDOW / DATA_LEN_MAX + 1]].concat();
    let crowd: Vec<Frame<'_>> = (0..=CHANNELS_MAX as u32).map(open).collect();
    let packed = Frame::Packed { channel: 0, len: 60_000, bytes: b"nonsense" };
    let grant = Frame::Grant { channel: 0, bytes: 1 };
    for (said, words) in [
        (&flood[..], "more bytes than were granted"),
        (&crowd, "may not be opened"),
        (&[open(1)], "may not be opened"),
        (&[data], "nobody has opened"),
        (&[open(0), grant], "more granted than there is"),
        (&[open(0), packed], "does not unpack"),
    ] {
        assert!(frames(said).contains(words), "{words}: {}", frames(said));
    }
    let garbled = |sealer: &mut Sealer, records: &mut Vec<u8>| {
        sealer.seal(b"\xffnonsense", records).expect("it is sealed");
    };
    assert!(liar(garbled).contains("makes no sense"));
    let altered = |sealer: &mut Sealer, records: &mut Vec<u8>| {
        sealer.seal(&[6, 0, 0, 0, 0], records).expect("it is sealed");
        records[4] ^= 1;
    };
    assert!(liar(altered).contains("does not open"));
    assert!(liar(|_, records| records.extend([0xff; 100])).contains("too long"));
}

#[test]
fn half_a_record_is_the_end_of_the_connection() {
    let (mut ours, theirs) = streams();
    let ((mut sealer, _opener), agent) = std::thread::scope(|scope| {
        let agent = scope.spawn(|| receive(&theirs, &KEY, PATIENCE, || true));
        let gateway = greet(&ours, &KEY, PATIENCE).expect("the same key");
        (gateway, agent.join().expect("no panic").expect("the same key"))
    });
    let sealed = Sealed { sealer: agent.0, opener: agent.1 };
    let (agent, opener) = Connection::start(theirs, sealed, false, None).expect("a connection");
    let ended = run(agent, opener, |_, _| {});
    let mut record = Vec::new();
    sealer.seal(&[6, 0, 0, 0, 0], &mut record).expect("it is sealed");
    ours.write_all(&record[..record.len() - 1]).expect("it is taken");
    ours.shutdown(Shutdown::Write).expect("it has said all");
    let why = ended.recv_timeout(PATIENCE).expect("it is ended");
    assert_eq!(why, "the other side has ended it");
}

#[test]
fn a_peer_that_is_silent_is_gone_and_one_with_nothing_to_say_is_not() {
    // Its kernel still acknowledges; nobody speaks.
    let why = liar(|_, _| {});
    assert!(why.contains("nothing was heard"), "{why}");
    let pair = pair(None);
    let (mut ours, mut theirs) = pair.channels(Purpose::Mirror);
    let idle = pair.ends[1].recv_timeout(Duration::from_secs(7));
    idle.expect_err("both sides say that they are there");
    ours.write_all(b"x").expect("it is taken");
    theirs.read_exact(&mut [0]).expect("it comes");
}
