//! Files of the source that come to the target, block by block.
//!
//! Owns the content: one thread asks, hashing what is there, while the other takes what comes and
//! builds each file beside its place. What a file that is there has of it is not sent.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::apply::{Applier, Unfinished};
use super::content::{Hash, Zeros, block_len, hashes};
use super::end::Place;
use super::entry::{Entry, Powers, Rel};
use super::message::{Fetched, Message, Receiver, Sender};
use super::plan::Copy;
use super::tree::{entry_of, moment_of};

/// So many files are asked for ahead of what has come.
const FETCHES_MAX: usize = 256;
/// Who works on a large file says so as often, for whoever waits for something to move.
const PULSE: Duration = Duration::from_secs(1);
/// A file of more blocks is sent whole: their hashes would not fit a message.
const HASHES_MAX: u64 = 1 << 21;
/// Bytes that are copied from a file that is there before they count as work.
const COPY_LEN: u64 = 64 << 20;

/// The target's tree, and its ways from and to the source.
#[derive(Debug)]
pub struct Ways<'a, R, W> {
    /// The tree.
    pub place: &'a Place,
    /// From the source.
    pub receiver: &'a mut Receiver<R>,
    /// To it.
    pub sender: &'a mut Sender<W>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was written anew.
    Written,
    /// What was there stays or moves, with other attributes.
    Mended,
    /// It was as it is to be.
    Nothing,
    /// It changed meanwhile, on either side.
    Changed,
}

/// Fetches and writes `copies`. `judge` hears what became of each; once it says no, what still
/// comes is only taken off the stream. Errors: the stream's.
pub fn fetch_all<R: Read + Send, W: Write + Send>(
    ways: Ways<'_, R, W>,
    applier: &mut Applier<'_>,
    powers: Powers,
    copies: &[Copy],
    mut judge: impl FnMut(&Copy, io::Result<Done>) -> bool,
) -> io::Result<()> {
    if copies.is_empty() {
        return Ok(());
    }
    let Ways { place, receiver, sender } = ways;
    let (sender, work) = (&Mutex::new(sender), &AtomicU64::new(0));
    let (queue, asked) = sync_channel(FETCHES_MAX);
    std::thread::scope(|scope| {
        let asker = scope.spawn(move || ask_for(place, copies, sender, &queue, work));
        let (_until_here, ended) = channel();
        scope.spawn(move || pulse(sender, work, &ended));
        let mut goes_on = true;
        for fetch in asked {
            let copy = fetch.copy;
            let applier = goes_on.then_some(&mut *applier);
            let done = receive(applier, receiver, fetch, powers, work)?;
            goes_on = goes_on && judge(copy, done);
        }
        asker.join().unwrap_or_else(|_| Err(io::Error::other("the asking thread panicked")))
    })
}

/// Says that work goes on for as long as it does. It has a thread of its own, because whoever takes
/// what comes must never wait for a way out.
fn pulse<W: Write>(sender: &Mutex<&mut Sender<W>>, work: &AtomicU64, ended: &mpsc::Receiver<()>) {
    let mut before = 0;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(PULSE) {
        let now = work.load(Relaxed);
        if now != std::mem::replace(&mut before, now) {
            let mut sender = lock(sender);
            if sender.send(&Message::Busy).and_then(|()| sender.flush()).is_err() {
                // The asker meets that as well, and tells.
                return;
            }
        }
    }
}

/// A sender that somebody panicked with has sent whole messages all the same.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that was asked for.
struct Fetch<'a> {
    copy: &'a Copy,
    block_len: usize,
    basis: Option<Basis>,
}

/// A file that has some of the content, perhaps all.
struct Basis {
    file: OwnedFd,
    entry: Entry,
    hashes: Vec<Hash>,
}

fn ask_for<'a, W: Write>(
    place: &Place,
    copies: &'a [Copy],
    sender: &Mutex<&mut Sender<W>>,
    queue: &SyncSender<Fetch<'a>>,
    work: &AtomicU64,
) -> io::Result<()> {
    for (i, copy) in copies.iter().enumerate() {
        let block_len = block_len(copy.source.size().unwrap_or(0));
        let basis =
            copy.basis.as_ref().and_then(|(path, _)| basis(place, path, copy, block_len, work));
        let fetch = Message::Fetch {
            path: copy.path.clone(),
            block_len: block_len as u32,
            hashes: basis.as_ref().map(|basis| basis.hashes.clone()).unwrap_or_default(),
        };
        let mut way = lock(sender);
        way.send(&fetch)?;
        // Small files are asked for by the dozen.
        if basis.is_some() || i % 32 == 0 {
            way.flush()?;
        }
        drop(way);
        let fetch = Fetch { copy, block_len, basis };
        if let Err(TrySendError::Full(fetch)) = queue.try_send(fetch) {
            lock(sender).flush()?;
            if queue.send(fetch).is_err() {
                break;
            }
        }
    }
    lock(sender).flush()
}

/// Opens and hashes the file at `path`; none if it is of no use.
fn basis(
    place: &Place,
    path: &Rel,
    copy: &Copy,
    block_len: usize,
    work: &AtomicU64,
) -> Option<Basis> {
    let file = place.tree.file(path).ok()?;
    let entry = entry_of(&file).ok()?;
    let len = block_len as u64;
    let useful = copy.source.size()?.div_ceil(len).saturating_mul(len).min(entry.size()?);
    if useful.div_ceil(len) > HASHES_MAX {
        return None;
    }
    let hashes = hashes(&file, useful, block_len, work).ok()?;
    Some(Basis { file, entry, hashes })
}

/// Takes one file off the stream and puts it into its place; without an applier it only takes it.
/// Inner error: this file's.
fn receive<R: Read>(
    applier: Option<&mut Applier<'_>>,
    receiver: &mut Receiver<R>,
    fetch: Fetch<'_>,
    powers: Powers,
    work: &AtomicU64,
) -> io::Result<io::Result<Done>> {
    let is_wanted = applier.is_some();
    let zeros = Zeros::default();
    let mut build = Build { applier, fetch, file: None, blocks: 0, zeros, work };
    let mut trouble: io::Result<()> = Ok(());
    loop {
        let (kind, count) = match receiver.receive()? {
            Message::Data(bytes) => {
                if is_wanted && trouble.is_ok() {
                    trouble = build.data(bytes);
                }
                continue;
            }
            Message::Same(count) => (true, count),
            Message::Zero(count) => (false, count),
            Message::Fetched(fetched) => {
                return Ok(match (trouble, fetched) {
                    (Err(error), _) => Err(error),
                    (Ok(()), Fetched::Changed) => Ok(Done::Changed),
                    (Ok(()), Fetched::Failed(why)) => {
                        Err(io::Error::other(format!("at the source: {why}")))
                    }
                    (Ok(()), Fetched::Whole(entry)) => build.end(&entry, powers),
                });
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        if is_wanted && trouble.is_ok() {
            trouble = if kind { build.same(count) } else { build.zero(count) };
        }
    }
}

/// A file that comes block by block. As long as all of it is as in its basis nothing is written.
struct Build<'a, 'b> {
    applier: Option<&'b mut Applier<'a>>,
    fetch: Fetch<'b>,
    file: Option<Unfinished>,
    blocks: u64,
    zeros: Zeros,
    work: &'b AtomicU64,
}

impl Build<'_, '_> {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.fetch.block_len {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let rest = self.fetch.block_len - bytes.len();
        let file = self.begin()?;
        file.write(bytes)?;
        file.skip(rest as u64);
        self.blocks += 1;
        Ok(())
    }

    fn same(&mut self, count: u64) -> io::Result<()> {
        let known = self.fetch.basis.as_ref().map_or(0, |basis| basis.hashes.len() as u64);
        if self.blocks.checked_add(count).is_none_or(|end| end > known) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if let Some(file) = &mut self.file {
            copy_blocks(file, &self.fetch, self.blocks, count, &mut self.zeros, self.work)?;
        }
        self.blocks += count;
        Ok(())
    }

    fn zero(&mut self, count: u64) -> io::Result<()> {
        // No file ends beyond what can be counted.
        let block_len = self.fetch.block_len as u64;
        let blocks = self.blocks.checked_add(count).filter(|n| n.checked_mul(block_len).is_some());
        let blocks = blocks.ok_or(io::ErrorKind::InvalidData)?;
        self.begin()?.skip(count * block_len);
        self.blocks = blocks;
        Ok(())
    }

    /// The file on its way, with all that was the same so far.
    fn begin(&mut self) -> io::Result<&mut Unfinished> {
        let begun = match self.file.take() {
            Some(file) => file,
            None => {
                let applier = self.applier.as_mut().ok_or(io::ErrorKind::InvalidInput)?;
                let mut file = applier.begin(&self.fetch.copy.path)?;
                let zeros = &mut self.zeros;
                copy_blocks(&mut file, &self.fetch, 0, self.blocks, zeros, self.work)?;
                file
            }
        };
        Ok(self.file.insert(begun))
    }

    fn end(mut self, entry: &Entry, powers: Powers) -> io::Result<Done> {
        if self.applier.is_none() {
            return Ok(Done::Nothing);
        }
        let size = entry.size().ok_or(io::ErrorKind::InvalidData)?;
        if size.div_ceil(self.fetch.block_len as u64) != self.blocks {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let copy = self.fetch.copy;
        let basis = self.fetch.basis.as_ref().map(|basis| &basis.entry);
        if self.file.is_none() && !copy.is_apart && basis.and_then(Entry::size) == Some(size) {
            return self.adopt(entry, powers);
        }
        self.begin()?;
        if self.has_basis_changed()? {
            return Ok(Done::Changed);
        }
        let (Some(file), Some(applier)) = (self.file.take(), self.applier.as_mut()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        applier.finish(file, &copy.path, entry)?;
        Ok(Done::Written)
    }

    /// The basis is what is wanted: it stays, or moves.
    fn adopt(&mut self, entry: &Entry, powers: Powers) -> io::Result<Done> {
        if self.has_basis_changed()? {
            return Ok(Done::Changed);
        }
        let (copy, basis) = (self.fetch.copy, self.fetch.basis.as_ref());
        let (Some(applier), Some(basis), Some((from, _))) =
            (self.applier.as_mut(), basis, &copy.basis)
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if *from != copy.path {
            applier.move_file(from, &copy.path, entry)?;
        } else if powers.has_same_meta(entry, &basis.entry) {
            return Ok(Done::Nothing);
        } else {
            applier.set_meta(&copy.path, entry)?;
        }
        Ok(Done::Mended)
    }

    /// The server of the target may have written to it meanwhile.
    fn has_basis_changed(&self) -> io::Result<bool> {
        let Some(basis) = &self.fetch.basis else { return Ok(false) };
        Ok(moment_of(&basis.file)? != basis.entry.moment())
    }
}

/// Appends blocks of the basis; zeros stay holes.
fn copy_blocks(
    file: &mut Unfinished,
    fetch: &Fetch<'_>,
    from: u64,
    count: u64,
    zeros: &mut Zeros,
    work: &AtomicU64,
) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let basis = fetch.basis.as_ref().ok_or(io::ErrorKind::InvalidData)?;
    let (len, size) = (fetch.block_len as u64, basis.entry.size().unwrap_or(0));
    let mut data = 0;
    for block in from..from + count {
        let here = len.min(size.saturating_sub(block * len));
        let hash = usize::try_from(block).ok().and_then(|i| basis.hashes.get(i));
        let is_zero = hash == Some(&zeros.hash(usize::try_from(here).unwrap_or(0)));
        if is_zero {
            file.copy(&basis.file, std::mem::take(&mut data))?;
            file.skip(here);
        } else {
            data += here;
        }
        if data >= COPY_LEN {
            file.copy(&basis.file, std::mem::take(&mut data))?;
            work.fetch_add(COPY_LEN, Relaxed);
        }
    }
    file.copy(&basis.file, data)
}
