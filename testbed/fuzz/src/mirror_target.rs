//! Any bytes as what a source says to the target of a mirror: nothing outside of the target's tree
//! is touched, whatever it says, and nothing panics.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use shadowvm::sync::mirror::end::{Place, take_part};
use shadowvm::sync::mirror::entry::{Entry, Kind, Rel, Time};
use shadowvm::sync::mirror::message::{Fetched, Message, Order, Receiver, Sender};

/// The whole stream.
pub fn target(data: &[u8]) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
    for path in [&tree, &outside] {
        fs::create_dir(path).expect("a directory");
    }
    fs::write(outside.join("file"), b"not yours").expect("a file");
    fs::write(tree.join("file"), b"old").expect("a file");
    symlink("../outside", tree.join("out")).expect("a link");
    let mut place = Place::open(&tree, &[], false).expect("it opens");
    let order = Order { is_target: true, ..Order::default() };
    let (mut receiver, mut sender) = (Receiver::new(data), Sender::new(io::sink()));
    // The stream ends in the middle at the latest where a source would wait.
    let _ = take_part(&mut place, order, &mut receiver, &mut sender);
    assert_eq!(fs::read(outside.join("file")).expect("it is there"), b"not yours");
    for (path, count) in [(dir.path(), 2), (&outside, 1)] {
        assert_eq!(fs::read_dir(path).expect("it opens").count(), count, "{}", path.display());
    }
    Receiver::new(data).receive().is_ok()
}

fn entry(kind: Kind) -> Entry {
    Entry {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time { secs: 1_000_000_000, nanos: 5 },
        ctime: Time::default(),
        xattrs: Vec::new(),
        id: (1, 1),
        names: 1,
        is_mount: false,
        is_suspect: true,
    }
}

/// A sync as it should be, and lies: a file below what is a link here, one in place of a directory.
pub fn seeds() -> Vec<Vec<u8>> {
    let path = |text: &str| Rel::new(text.as_bytes()).expect("a good path");
    let file = entry(Kind::File { size: 3 });
    let named = |name: &str, entry: &Entry| (name.as_bytes().to_vec(), entry.clone());
    let whole = |entries: Vec<(Vec<u8>, Entry)>| {
        vec![
            Message::Scope { is_full: true },
            Message::Item(Rel::root(), Some(entry(Kind::Dir))),
            Message::Dir { path: Rel::root(), entries, is_last: true },
        ]
    };
    let end = || {
        vec![
            Message::Listed,
            Message::Data(b"new"),
            Message::Fetched(Fetched::Whole(file.clone())),
            Message::Scope { is_full: false },
            Message::Listed,
        ]
    };
    let link = entry(Kind::Link { target: b"/nonexistent".to_vec() });
    let inside =
        Message::Dir { path: path("out"), entries: vec![named("file", &file)], is_last: true };
    let item = Message::Item(path("out/file"), Some(file.clone()));
    let streams = [
        [whole(vec![named("file", &file)]), end()].concat(),
        [whole(vec![named("link", &link), named("out", &entry(Kind::Dir))]), vec![inside], end()]
            .concat(),
        [vec![Message::Scope { is_full: false }, item], end()].concat(),
        [whole(vec![named("x", &Entry { names: 2, ..file.clone() }), named("y", &file)]), end()]
            .concat(),
        vec![Message::Refused("no".into())],
    ];
    let put = |messages: &Vec<Message<'_>>| {
        let mut stream = Vec::new();
        messages.iter().for_each(|message| message.put(&mut stream));
        stream
    };
    streams.iter().map(put).collect()
}
