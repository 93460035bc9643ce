//! Which paths of a tree may have changed since somebody asked last: inotify(7).
//!
//! Owns one watch a directory, and the way from its number to its path through renames. It may
//! doubt too much, never too little: what it cannot know is doubt about everything. Two things it
//! never hears of, and whoever uses it has to look at everything now and then: writes through a
//! mapping that stays open, and changes that another machine makes to a network file system.
//!
//! What an applier finishes takes its name by a rename from an unfinished name; such renames are
//! its own and no reason for doubt.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::doubt::{Doubt, Doubts};
use super::entry::{Rel, is_unfinished};
use super::tree::{Tree, proc_path};

/// Watches a tree until it is dropped.
#[derive(Debug)]
pub struct Watch {
    state: Arc<Mutex<State>>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    inotify: OwnedFd,
    tree: Arc<Tree>,
    exclude: Vec<Rel>,
    root: i32,
    /// A watch -> the directory that it is in, and its name there.
    places: HashMap<i32, (i32, Vec<u8>)>,
    /// The same the other way round.
    children: BTreeMap<(i32, Vec<u8>), i32>,
    doubts: Doubts,
    /// Something is not watched that should be: only a new watch mends that.
    is_broken: bool,
    /// The first half of a rename. The second one follows at once, though not always in the same
    /// read.
    moving: Option<Moving>,
    /// Renames from unfinished names whose second half is still to come.
    own: VecDeque<u32>,
    buffer: Vec<MaybeUninit<u8>>,
}

#[derive(Debug)]
struct Moving {
    cookie: u32,
    from: (i32, Vec<u8>),
    is_dir: bool,
}

/// What is told of a directory.
fn told() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVE_SELF
        | WatchFlags::DELETE_SELF
        | WatchFlags::ONLYDIR
}

/// Bytes of events that are read at once.
const BUFFER_LEN: usize = 64 << 10;
/// So many renames may be half told at once.
const OWN_MAX: usize = 64;

impl Watch {
    /// Watches all of `tree` but what is excluded. Until it is asked the first time, everything is
    /// doubted. Errors: `StorageFull` if the user may have no more watches.
    pub fn start(tree: Arc<Tree>, exclude: Vec<Rel>) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let root =
            inotify::add_watch(&inotify, proc_path(tree.dir(&Rel::root())?.as_fd()), told())?;
        let mut state = State {
            inotify: inotify.try_clone()?,
            tree,
            exclude,
            root,
            places: HashMap::new(),
            children: BTreeMap::new(),
            doubts: Doubts::all(),
            is_broken: false,
            moving: None,
            own: VecDeque::new(),
            buffer: vec![MaybeUninit::uninit(); BUFFER_LEN],
        };
        state.watch_below(&Rel::root(), root)?;
        let state = Arc::new(Mutex::new(state));
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        // The kernel's queue is short, so it is emptied all the time.
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || {
            let mut fds = [
                PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            while let Ok(_) | Err(nix::errno::Errno::EINTR) = poll(&mut fds, PollTimeout::NONE) {
                if fds[1].any() == Some(true) {
                    break;
                }
                lock(&shared).drain();
            }
        })?;
        Ok(Self { state, stop, thread: Some(thread) })
    }

    /// All that may have changed since the last call, up to this moment.
    pub fn take(&self) -> Doubts {
        let mut state = lock(&self.state);
        state.drain();
        state.has_moved_out();
        let mut doubts = std::mem::take(&mut state.doubts);
        doubts.is_all |= state.is_broken;
        doubts
    }

    /// Whether it misses something from now on. A new watch has to take its place.
    pub fn is_broken(&self) -> bool {
        let mut state = lock(&self.state);
        state.drain();
        state.is_broken
    }

    /// Doubts again what was taken and did not become equal.
    pub fn doubt(&self, doubts: Doubts) {
        lock(&self.state).doubts.add_all(doubts);
    }

    /// Forgets the doubts that `is_own` calls changes of the caller, up to this moment; tells
    /// whether events were lost since the last call of [`Watch::take`].
    pub fn forgive(&self, mut is_own: impl FnMut(&Rel, Doubt) -> bool) -> bool {
        let mut state = lock(&self.state);
        state.drain();
        state.has_moved_out();
        state.doubts.items.retain(|path, doubt| !is_own(path, *doubt));
        state.doubts.is_all
    }

    /// Watches a directory that is still empty and known to nobody, and will be at `path`.
    pub fn adopt(&self, path: &Rel, dir: &OwnedFd) {
        let mut state = lock(&self.state);
        let Some((parent, name)) = path.split() else { return };
        let name = name.to_owned();
        match (
            state.watch_of(&parent),
            inotify::add_watch(&state.inotify, proc_path(dir.as_fd()), told()),
        ) {
            (Some(parent), Ok(watch)) => state.settle(watch, parent, name),
            _ => state.breaks(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A counter at its end is no matter: it is readable then.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    /// Takes what the kernel has to tell.
    fn drain(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let Ok(inotify) = self.inotify.try_clone() else {
            self.breaks();
            self.buffer = buffer;
            return;
        };
        let mut reader = Reader::new(&inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes().to_owned());
                    self.hear(event.wd(), event.events(), event.cookie(), name);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.breaks();
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn hear(&mut self, watch: i32, events: ReadFlags, cookie: u32, name: Option<Vec<u8>>) {
        if events.intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::UNMOUNT) {
            // Directories may be among what was not told.
            self.breaks();
            return;
        }
        let is_second_half = events.contains(ReadFlags::MOVED_TO)
            && self.moving.as_ref().is_some_and(|moving| moving.cookie == cookie);
        if !is_second_half {
            self.has_moved_out();
        }
        if events.contains(ReadFlags::IGNORED) {
            self.forget(watch);
            return;
        }
        let Some(name) = name else {
            let is_lost = ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF;
            if watch == self.root && events.intersects(is_lost) {
                self.breaks();
            } else if watch == self.root {
                self.doubts.add(Rel::root(), Doubt::default());
            }
            return;
        };
        let is_dir = events.contains(ReadFlags::ISDIR);
        if events.contains(ReadFlags::MOVED_FROM) && is_unfinished(&name) {
            self.own.push_back(cookie);
            if self.own.len() > OWN_MAX {
                self.own.pop_front();
            }
        } else if events.contains(ReadFlags::MOVED_FROM) {
            self.moving = Some(Moving { cookie, from: (watch, name), is_dir });
        } else if events.contains(ReadFlags::MOVED_TO) && self.own.contains(&cookie) {
            // A directory was adopted under its new name already.
            self.own.retain(|own| *own != cookie);
        } else if is_second_half {
            self.has_moved(watch, name);
        } else if !is_unfinished(&name) {
            let is_new = events.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
            let is_written = events.intersects(ReadFlags::MODIFY | ReadFlags::CLOSE_WRITE);
            let is_content = is_written && !is_dir;
            let is_listed = is_new || events.contains(ReadFlags::DELETE);
            if is_listed {
                self.doubt(watch, None, Doubt::default());
            }
            let doubt = Doubt { is_deep: is_new && is_dir, is_content: is_content || is_new };
            if let Some(path) = self.doubt(watch, Some(&name), doubt)
                && doubt.is_deep
            {
                self.watch_new(&path, watch, name);
            }
        }
    }

    /// Both halves of a rename are here.
    fn has_moved(&mut self, watch: i32, name: Vec<u8>) {
        let Some(moving) = self.moving.take() else { return };
        let doubt = Doubt { is_deep: moving.is_dir, is_content: true };
        self.doubt(moving.from.0, None, Doubt::default());
        self.doubt(moving.from.0, Some(&moving.from.1), doubt);
        self.doubt(watch, None, Doubt::default());
        let to = self.doubt(watch, Some(&name), doubt);
        if !moving.is_dir {
            return;
        }
        match (self.children.remove(&moving.from), to) {
            (moved, Some(path)) => {
                if let Some(moved) = moved {
                    self.settle(moved, watch, name.clone());
                }
                // What is told lags behind what is there: the name may be another directory's by
                // now, and the moved one watched by none. The last event about a name decides.
                self.watch_new(&path, watch, name);
            }
            (Some(moved), None) => self.forget_below(moved),
            (None, None) => {}
        }
    }

    /// A rename whose second half never came: out of the tree.
    fn has_moved_out(&mut self) {
        let Some(moving) = self.moving.take() else { return };
        self.doubt(moving.from.0, None, Doubt::default());
        let doubt = Doubt { is_deep: moving.is_dir, is_content: true };
        self.doubt(moving.from.0, Some(&moving.from.1), doubt);
        if let Some(moved) = self.children.remove(&moving.from) {
            self.forget_below(moved);
        }
    }

    /// Doubts a directory, or `name` in it; tells the path, unless it is excluded.
    fn doubt(&mut self, watch: i32, name: Option<&[u8]>, doubt: Doubt) -> Option<Rel> {
        let Some(dir) = self.path_of(watch) else {
            // A directory that has moved out.
            return None;
        };
        let path = name.map_or(dir.clone(), |name| dir.join(name));
        if self.exclude.iter().any(|excluded| path.is_within(excluded)) {
            return None;
        }
        self.doubts.add(path.clone(), doubt);
        Some(path)
    }

    fn path_of(&self, watch: i32) -> Option<Rel> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = watch;
        while at != self.root {
            let (parent, name) = self.places.get(&at)?;
            names.push(name);
            at = *parent;
        }
        Some(names.iter().rev().fold(Rel::root(), |path, name| path.join(name)))
    }

    fn watch_of(&self, path: &Rel) -> Option<i32> {
        if path.is_root() {
            return Some(self.root);
        }
        let mut names = path.as_bytes().split(|&b| b == b'/');
        names.try_fold(self.root, |at, name| self.children.get(&(at, name.to_owned())).copied())
    }

    /// Watches a directory that has come, with all below it.
    fn watch_new(&mut self, path: &Rel, parent: i32, name: Vec<u8>) {
        let watched = self.tree.dir(path).map_err(io::Error::from).and_then(|dir| {
            let watch = inotify::add_watch(&self.inotify, proc_path(dir.as_fd()), told())?;
            self.settle(watch, parent, name);
            self.watch_below(path, watch)
        });
        match watched {
            Err(error) if !super::apply::is_gone(&error) => self.breaks(),
            _ => {}
        }
    }

    fn watch_below(&mut self, path: &Rel, watch: i32) -> io::Result<()> {
        let mut left = vec![(path.clone(), watch)];
        while let Some((path, watch)) = left.pop() {
            let names = match self.tree.subdirs(&path) {
                Ok((_, names)) => names,
                Err(error) if super::apply::is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            for name in names {
                let below = path.join(&name);
                if self.exclude.contains(&below) {
                    continue;
                }
                match self.tree.dir(&below) {
                    Ok(dir) => {
                        let added =
                            inotify::add_watch(&self.inotify, proc_path(dir.as_fd()), told())?;
                        self.settle(added, watch, name);
                        left.push((below, added));
                    }
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Notes where the directory of a watch is.
    fn settle(&mut self, watch: i32, parent: i32, name: Vec<u8>) {
        if let Some(before) = self.places.insert(watch, (parent, name.clone()))
            && self.children.get(&before) == Some(&watch)
        {
            self.children.remove(&before);
        }
        self.children.insert((parent, name), watch);
    }

    /// The directory is gone.
    fn forget(&mut self, watch: i32) {
        if let Some(place) = self.places.remove(&watch)
            && self.children.get(&place) == Some(&watch)
        {
            self.children.remove(&place);
        }
        if watch == self.root {
            self.breaks();
        }
    }

    fn breaks(&mut self) {
        self.doubts.is_all = true;
        self.is_broken = true;
    }

    /// Stops to watch a directory that has moved out, and all below it.
    fn forget_below(&mut self, watch: i32) {
        let mut left = vec![watch];
        while let Some(watch) = left.pop() {
            let below = self.children.range((watch, Vec::new())..(watch + 1, Vec::new()));
            left.extend(below.map(|(_, &child)| child));
            self.forget(watch);
            // It may be gone already.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }
}

/// A panic elsewhere may leave a doubt out of place, never out.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
