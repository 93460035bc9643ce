//! Messages survive the stream, and nonsense on it is refused without harm.

use std::io;

use proptest::prelude::*;

use crate::sync::mirror::entry::{Entry, Kind, Rel, Time};
use crate::sync::mirror::message::{Fetched, Message, Order, Receiver, Report, parse};

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40)
}

fn path() -> impl Strategy<Value = Rel> {
    prop::collection::vec("[a-z]{1,5}", 0..4)
        .prop_map(|parts| Rel::new(parts.join("/").as_bytes()).expect("a good path"))
}

fn time() -> impl Strategy<Value = Time> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Time { secs, nanos })
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        any::<u64>().prop_map(|size| Kind::File { size }),
        Just(Kind::Dir),
        bytes().prop_map(|target| Kind::Link { target }),
        Just(Kind::Fifo),
        Just(Kind::Socket),
        any::<(u32, u32)>().prop_map(|(a, b)| Kind::Block(a, b)),
        any::<(u32, u32)>().prop_map(|(a, b)| Kind::Char(a, b)),
    ];
    let xattrs = prop::collection::vec((bytes(), bytes()), 0..3);
    let numbers = (0u16..0o10000, any::<(u32, u32, u32, u64, u64)>(), any::<(bool, bool)>());
    (kind, numbers, time(), time(), xattrs).prop_map(|(kind, numbers, mtime, ctime, xattrs)| {
        let (mode, (uid, gid, names, device, inode), (is_mount, is_suspect)) = numbers;
        let id = (device, inode);
        Entry { kind, mode, uid, gid, mtime, ctime, xattrs, id, names, is_mount, is_suspect }
    })
}

fn message() -> impl Strategy<Value = Message<'static>> {
    let named = prop::collection::vec(("[a-z.]{3,9}", entry()), 0..5);
    let flags = any::<(bool, bool, bool, bool, bool)>();
    let counts = any::<(bool, u64, u64, u64, u64)>();
    let report = counts.prop_map(|(is_full, paths, written, mended, removed)| Report {
        is_full,
        paths,
        written,
        mended,
        removed,
    });
    prop_oneof![
        (any::<u32>(), prop::option::of(".{0,9}"))
            .prop_map(|(version, blind)| Message::Ready { version, blind }),
        (prop::collection::vec(path(), 0..3), any::<bool>())
            .prop_map(|(exclude, is_watching)| Message::Setup { exclude, is_watching }),
        flags.prop_map(|(is_target, is_full, by_content, is_durable, is_ahead)| {
            Message::Order(Order { is_target, is_full, by_content, is_durable, is_ahead })
        }),
        any::<(u64, u64)>().prop_map(|(files, bytes)| Message::Planned { files, bytes }),
        Just(Message::Busy),
        report.prop_map(|report| Message::Ended(Ok(report))),
        ".{0,9}".prop_map(|why| Message::Ended(Err(why))),
        (path(), any::<bool>()).prop_map(|(path, deep)| Message::Path(path, deep)),
        any::<bool>().prop_map(|is_full| Message::List { is_full }),
        any::<bool>().prop_map(|is_full| Message::Scope { is_full }),
        (path(), prop::option::of(entry())).prop_map(|(path, entry)| Message::Item(path, entry)),
        (path(), named, any::<bool>()).prop_map(|(path, named, is_last)| {
            let entries = named.into_iter().map(|(name, entry)| (name.into_bytes(), entry));
            Message::Dir { path, entries: entries.collect(), is_last }
        }),
        (path(), ".{0,9}").prop_map(|(path, why)| Message::Trouble(path, why)),
        Just(Message::Listed),
        (path(), 1u32..1 << 20, prop::collection::vec(any::<[u8; 32]>(), 0..3))
            .prop_map(|(path, block_len, hashes)| Message::Fetch { path, block_len, hashes }),
        Just(Message::Data(b"some bytes")),
        any::<u64>().prop_map(Message::Same),
        any::<u64>().prop_map(Message::Zero),
        entry().prop_map(|entry| Message::Fetched(Fetched::Whole(entry))),
        Just(Message::Fetched(Fetched::Changed)),
        ".{0,9}".prop_map(|why| Message::Fetched(Fetched::Failed(why))),
        ".{0,9}".prop_map(Message::Refused),
        any::<bool>().prop_map(|is_equal| Message::Bye { is_equal }),
    ]
}

/// Gives a stream's bytes a few at a time.
struct Trickle<'a>(&'a [u8], usize);

impl io::Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.1.min(self.0.len()).min(buffer.len());
        buffer[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        Ok(len)
    }
}

proptest! {
    #[test]
    fn messages_survive_however_the_stream_is_cut(
        messages in prop::collection::vec(message(), 1..6), step in 1usize..2000,
    ) {
        // Dots only are no name.
        let is_good = |message: &Message<'_>| match message {
            Message::Dir { entries, .. } => entries.iter().all(|(name, _)| name != b".."),
            _ => true,
        };
        let messages: Vec<_> = messages.into_iter().filter(is_good).collect();
        let mut stream = Vec::new();
        messages.iter().for_each(|message| message.put(&mut stream));
        let mut receiver = Receiver::new(Trickle(&stream, step));
        for message in &messages {
            prop_assert_eq!(&receiver.receive().expect("it is whole"), message);
        }
        let end = receiver.receive().map_err(|error| error.kind()).err();
        prop_assert_eq!(end, Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn half_a_message_is_the_end_of_the_stream(message in message(), part in 0.0f64..1.0) {
        let mut stream = Vec::new();
        message.put(&mut stream);
        stream.truncate((stream.len() as f64 * part) as usize);
        let mut receiver = Receiver::new(&stream[..]);
        let end = receiver.receive().map_err(|error| error.kind()).err();
        prop_assert_eq!(end, Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn nonsense_never_panics(
        kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Ok(message) = parse(kind, &body) {
            let mut again = Vec::new();
            message.put(&mut again);
        }
    }
}

#[test]
fn an_endless_message_is_refused_before_it_is_read() {
    let mut receiver = Receiver::new(&[0xff; 64][..]);
    let refused = receiver.receive().map_err(|error| error.kind()).err();
    assert_eq!(refused, Some(io::ErrorKind::InvalidData));
}

#[test]
fn a_path_out_of_the_tree_is_refused() {
    for path in ["../x", "/etc/passwd", "a/../../b"] {
        let mut body = vec![path.len() as u8];
        body.extend_from_slice(path.as_bytes());
        body.push(0);
        assert!(parse(16, &body).is_err(), "{path}");
    }
}
