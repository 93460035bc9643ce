//! Whatever ends a sync early, no file is ever half of anything, and the next one repairs the rest.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::kit::{Bench, Hangup, has_unfinished, look, sync, sync_over};
use crate::sync::mirror::message::Order;

/// Two trees whose sync takes every kind of step.
fn prepare(bench: &Bench) {
    let (a, b) = (&bench.a, &bench.b);
    for dir in [a, b] {
        fs::create_dir_all(dir.join("d")).expect("folders");
        fs::write(dir.join("d/keep"), b"equal").expect("a file");
        fs::write(dir.join("moved"), vec![b'm'; 100_000]).expect("a file");
        super::kit::age(&dir.join("moved"), 1_000_000_000).expect("a time");
    }
    fs::rename(a.join("moved"), a.join("d/elsewhere")).expect("it moves");
    fs::write(a.join("d/large"), vec![b'a'; 300_000]).expect("a file");
    fs::write(b.join("d/large"), [vec![b'a'; 100_000], vec![b'b'; 90_000]].concat()).expect("ok");
    fs::create_dir_all(a.join("new/below")).expect("folders");
    fs::write(a.join("new/below/file"), b"new").expect("a file");
    fs::hard_link(a.join("new/below/file"), a.join("new/name")).expect("a name");
    symlink("below/file", a.join("new/link")).expect("a link");
    nix::unistd::mkfifo(&a.join("new/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    fs::create_dir_all(b.join("old/below")).expect("folders");
    fs::write(b.join("old/below/file"), b"old").expect("a file");
    // A folder here and a file there, both ways round.
    fs::create_dir(a.join("x")).expect("a folder");
    fs::write(a.join("x/in"), b"in").expect("a file");
    fs::write(b.join("x"), b"file").expect("a file");
    fs::write(a.join("y"), b"file").expect("a file");
    fs::create_dir(b.join("y")).expect("a folder");
    fs::write(b.join("y/in"), b"in").expect("a file");
}

/// The content of every regular file.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = look(dir).into_iter().filter(|(_, line)| line.starts_with("file "));
    files
        .map(|(path, _)| (path.clone(), fs::read(dir.join(path)).expect("it can be read")))
        .collect()
}

/// Every file is one that was there before, or one of the source.
fn assert_whole(bench: &Bench, before: &BTreeMap<PathBuf, Vec<u8>>) {
    let right = contents(&bench.a);
    for (path, bytes) in contents(&bench.b) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let is_old = before.get(&path) == Some(&bytes);
        let is_new = right.get(&path) == Some(&bytes);
        assert!(is_old || is_new || name.starts_with(".shadowvm~"), "{path:?} is half-made");
    }
}

#[test]
fn killed_after_any_step_it_leaves_whole_files_and_the_next_sync_repairs_it() {
    let mut steps = 0;
    loop {
        let bench = Bench::new();
        prepare(&bench);
        let before = contents(&bench.b);
        let [mut source, mut target] = bench.places();
        target.dies_after = Some(steps);
        let died = sync(&mut source, &mut target);
        assert_whole(&bench, &before);
        // Another process, which knows nothing.
        let [mut source, mut target] = bench.places();
        sync(&mut source, &mut target).expect("it works");
        bench.assert_equal();
        assert!(!has_unfinished(&bench.b), "something unfinished is left");
        if died.is_ok() {
            break;
        }
        steps += 1;
    }
    assert!(steps > 30, "only {steps} steps");
}

/// A stream that breaks after so many bytes.
struct Brittle {
    stream: UnixStream,
    left: usize,
}

impl Write for Brittle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.left);
        if len == 0 && !bytes.is_empty() {
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.left -= len;
        self.stream.write(&bytes[..len])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Hangup for Brittle {
    fn handle(&self) -> UnixStream {
        self.stream.try_clone().expect("a descriptor")
    }
}

#[test]
fn cut_off_after_any_number_of_bytes_it_leaves_whole_files_and_the_next_sync_repairs_it() {
    /// Where the stream breaks next: densely at first, then by leaps.
    fn next(bytes: usize) -> usize {
        bytes + 1 + bytes / 7
    }
    for is_source in [true, false] {
        let mut bytes = 0;
        loop {
            let bench = Bench::new();
            prepare(&bench);
            let before = contents(&bench.b);
            let [mut source, mut target] = bench.places();
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let copy = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
            let out =
                |stream, breaks| Brittle { stream, left: if breaks { bytes } else { 1 << 40 } };
            let their_way: (Box<dyn Read + Send>, _) =
                (Box::new(copy(&theirs)), out(theirs, is_source));
            let our_way: (Box<dyn Read + Send>, _) = (Box::new(copy(&ours)), out(ours, !is_source));
            let order = Order::default();
            let broke = sync_over(&mut source, &mut target, order, their_way, our_way);
            assert_whole(&bench, &before);
            // The same places: what their watches and marks know must not hide anything.
            sync(&mut source, &mut target).expect("it works");
            bench.assert_equal();
            assert!(!has_unfinished(&bench.b), "something unfinished is left");
            if broke.is_ok_and(|done| done.is_ok()) {
                break;
            }
            bytes = next(bytes);
        }
        assert!(bytes > 100, "it never broke");
    }
}
