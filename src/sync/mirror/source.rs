//! The end that the other is made equal to: it shows its tree and hands out content. It only reads.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::content::{Block, Hash, Zeros, each_block, hash};
use super::doubt::{Doubt, Doubts};
use super::end::{Place, now};
use super::entry::{Entry, Rel, Time, is_unfinished};
use super::message::{Fetched, Message, Receiver, Sender};
use super::tree::{entry_of, moment_of};

/// Entries in one message.
const ENTRIES_MAX: usize = 256;
/// A message takes no more entries once it is so long.
const DIR_LEN_MAX: usize = 1 << 20;
/// So many bytes are read before something is said of them, however equal they are: somebody waits
/// for something to move.
const SILENT_LEN_MAX: usize = 64 << 20;

/// Serves one sync; tells whether the target is equal at its end. Errors: the stream's, or the
/// target talks nonsense.
pub fn serve<R: Read, W: Write>(
    place: &Place,
    receiver: &mut Receiver<R>,
    sender: &mut Sender<W>,
) -> io::Result<bool> {
    let mut source = Source { place, sender, taken: Doubts::default(), has_listed: false };
    let mut asked = Doubts::default();
    loop {
        if !receiver.has_next() {
            source.sender.flush()?;
        }
        match receiver.receive()? {
            Message::Path(path, is_deep) => {
                asked.add(path, Doubt { is_deep, is_content: true });
            }
            Message::List { is_full } => {
                asked.is_all |= is_full;
                source.list(std::mem::take(&mut asked))?;
            }
            Message::Fetch { path, block_len, hashes } => {
                source.fetch(&path, block_len as usize, &hashes)?;
            }
            // For whoever passes messages on; where nobody does it comes here.
            Message::Planned { .. } | Message::Busy => {}
            Message::Bye { is_equal } => {
                if !is_equal {
                    place.doubt(source.taken);
                }
                return Ok(is_equal);
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Serves a sync in which there is no tree to show.
pub fn refuse<R: Read, W: Write>(
    why: &str,
    receiver: &mut Receiver<R>,
    sender: &mut Sender<W>,
) -> io::Result<()> {
    loop {
        match receiver.receive()? {
            Message::Bye { .. } => return Ok(()),
            Message::List { .. } => {
                sender.send(&Message::Refused(why.to_owned()))?;
                sender.flush()?;
            }
            _ => {}
        }
    }
}

struct Source<'a, W> {
    place: &'a Place,
    sender: &'a mut Sender<W>,
    /// What the watch doubted in this sync so far.
    taken: Doubts,
    has_listed: bool,
}

impl<W: Write> Source<'_, W> {
    fn list(&mut self, mut asked: Doubts) -> io::Result<()> {
        let new = self.place.watch.as_ref().map(|watch| watch.take());
        let is_first = !std::mem::replace(&mut self.has_listed, true);
        match new {
            Some(mut new) => {
                if new.is_all && !is_first {
                    // Whoever cannot keep up says so to the next sync.
                    new.is_all = false;
                    self.place.doubt(Doubts::all());
                }
                self.taken.add_all(new.clone());
                asked.add_all(new);
            }
            None => asked.is_all |= is_first,
        }
        self.sender.send(&Message::Scope { is_full: asked.is_all })?;
        if asked.is_all {
            let root = self.place.tree.entry(&Rel::root())?;
            self.sender.send(&Message::Item(Rel::root(), root))?;
            self.walk(Rel::root())?;
        } else {
            for (path, doubt) in asked.items {
                if !self.place.is_excluded(&path) {
                    self.show(path, doubt.is_deep)?;
                }
            }
        }
        self.sender.send(&Message::Listed)?;
        self.sender.flush()
    }

    /// Shows one path, with all below it if `is_deep`.
    fn show(&mut self, path: Rel, is_deep: bool) -> io::Result<()> {
        let entry = match self.place.tree.entry(&path) {
            Ok(entry) => entry,
            Err(error) => return self.sender.send(&Message::Trouble(path, error.to_string())),
        };
        let has_below = entry.as_ref().is_some_and(|e| e.kind.is_dir() && !e.is_mount);
        let entry = entry.map(|entry| Entry { is_suspect: true, ..entry });
        self.sender.send(&Message::Item(path.clone(), entry))?;
        if is_deep && has_below { self.walk(path) } else { Ok(()) }
    }

    /// Shows everything below a directory, each directory whole.
    fn walk(&mut self, top: Rel) -> io::Result<()> {
        let mut left = vec![top];
        while let Some(path) = left.pop() {
            let listed = match self.place.tree.list(&path) {
                Ok(listed) => listed,
                // What vanished since is told by the watch, or by the next sync.
                Err(error) if super::apply::is_gone(&error) => Vec::new(),
                Err(error) => {
                    self.sender.send(&Message::Trouble(path, error.to_string()))?;
                    continue;
                }
            };
            let mut entries = Vec::new();
            let mut below = Vec::new();
            let mut len = 0;
            for (name, mut entry) in listed {
                let inside = path.join(&name);
                if is_unfinished(&name) || self.place.is_excluded(&inside) {
                    continue;
                }
                entry.is_suspect = self.place.is_after_mark(&entry) || self.taken.covers(&inside);
                if entry.kind.is_dir() && !entry.is_mount {
                    below.push(inside);
                }
                len +=
                    name.len() + entry.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
                entries.push((name, entry));
                if entries.len() == ENTRIES_MAX || len > DIR_LEN_MAX {
                    let entries = std::mem::take(&mut entries);
                    let path = path.clone();
                    self.sender.send(&Message::Dir { path, entries, is_last: false })?;
                    len = 0;
                }
            }
            self.sender.send(&Message::Dir { path, entries, is_last: true })?;
            left.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn fetch(&mut self, path: &Rel, block_len: usize, hashes: &[Hash]) -> io::Result<()> {
        if self.place.is_excluded(path) {
            let why = "it is excluded".to_owned();
            return self.sender.send(&Message::Fetched(Fetched::Failed(why)));
        }
        let fetched = match self.read(path, block_len, hashes) {
            Ok(fetched) => fetched,
            Err(Unread::File(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Fetched::Changed
            }
            Err(Unread::File(error)) if super::apply::is_gone(&error) => Fetched::Changed,
            Err(Unread::File(error)) => Fetched::Failed(error.to_string()),
            Err(Unread::Stream(error)) => return Err(error),
        };
        self.sender.send(&Message::Fetched(fetched))
    }

    fn read(&mut self, path: &Rel, block_len: usize, hashes: &[Hash]) -> Result<Fetched, Unread> {
        let file = self.place.tree.file(path).map_err(|e| Unread::File(e.into()))?;
        let before = entry_of(&file).map_err(|e| Unread::File(e.into()))?;
        let Some(size) = before.size() else { return Ok(Fetched::Changed) };
        if self.place.watch.is_none() {
            wait_for_next_tick(before.ctime);
        }
        let mut run = Run { sender: &mut *self.sender, kind: RunKind::Same, count: 0 };
        let mut zeros = Zeros::default();
        let mut known = hashes.iter();
        let (mut broken, mut silent) = (None, 0);
        let read = each_block(&file, size, block_len, |block| {
            let known = known.next();
            let sent = match block {
                Block::Zero(len) if known.is_some_and(|known| *known == zeros.hash(len)) => {
                    run.add(RunKind::Same)
                }
                Block::Zero(_) => run.add(RunKind::Zero),
                Block::Data(bytes) if known.is_some_and(|known| *known == hash(bytes)) => {
                    run.add(RunKind::Same)
                }
                Block::Data(bytes) => {
                    run.end().and_then(|()| run.sender.send(&Message::Data(without_end(bytes))))
                }
            };
            silent += block_len;
            let sent = sent.and_then(|()| match silent >= SILENT_LEN_MAX {
                false => Ok(()),
                true => {
                    silent = 0;
                    run.end().and_then(|()| run.sender.flush())
                }
            });
            sent.map_err(|error| {
                broken = Some(error);
                io::ErrorKind::BrokenPipe.into()
            })
        });
        if let Some(error) = broken {
            return Err(Unread::Stream(error));
        }
        read.map_err(Unread::File)?;
        run.end().map_err(Unread::Stream)?;
        #[cfg(test)]
        if let Some(meddle) = &self.place.meddle {
            (meddle.0)(path);
        }
        let after = moment_of(&file).map_err(|e| Unread::File(e.into()))?;
        match before.moment() == after {
            true => Ok(Fetched::Whole(before)),
            false => Ok(Fetched::Changed),
        }
    }
}

/// A block without the zeros at its end, which go without saying.
fn without_end(block: &[u8]) -> &[u8] {
    let len = block.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    &block[..len]
}

/// Why a file was not read to its end.
enum Unread {
    File(io::Error),
    Stream(io::Error),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RunKind {
    Same,
    Zero,
}

/// Blocks of one kind that follow one another.
struct Run<'a, W> {
    sender: &'a mut Sender<W>,
    kind: RunKind,
    count: u64,
}

impl<W: Write> Run<'_, W> {
    fn add(&mut self, kind: RunKind) -> io::Result<()> {
        if kind != self.kind {
            self.end()?;
            self.kind = kind;
        }
        self.count += 1;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        match (std::mem::take(&mut self.count), self.kind) {
            (0, _) => Ok(()),
            (count, RunKind::Same) => self.sender.send(&Message::Same(count)),
            (count, RunKind::Zero) => self.sender.send(&Message::Zero(count)),
        }
    }
}

/// The kernel's clock of files moves by ticks. A second change within the tick of the first leaves
/// no trace in the times; where no watch tells of it, a file is read in a later tick than that of
/// its last change.
fn wait_for_next_tick(ctime: Time) {
    const TICK: Duration = Duration::from_millis(11);
    // A time in the future says nothing about ticks.
    let age = now().since(ctime).unwrap_or(TICK);
    std::thread::sleep(TICK.saturating_sub(age));
}
