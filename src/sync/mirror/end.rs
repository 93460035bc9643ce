//! One end of a mirror: a process beside a tree, or on the host that can reach it.
//!
//! Owns what outlives a single sync: the watch, and how far back a change may lie that no watch has
//! told. It serves as source or as target, as each order says, because the servers' roles swap.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::doubt::Doubts;
use super::entry::{Entry, Rel, Time};
use super::message::{Message, Order, Receiver, Report, Sender, VERSION};
use super::tree::{Tree, entry_of, proc_path};
use super::watch::Watch;
use super::{source, target};

/// A tree and what is known about it.
#[derive(Debug)]
pub struct Place {
    /// The tree.
    pub tree: Arc<Tree>,
    /// Who tells of changes.
    pub watch: Option<Watch>,
    /// Why nobody does, although somebody should.
    pub blind: Option<String>,
    exclude: Vec<Rel>,
    /// What changed after this was not part of a good sync, whatever its size and times say.
    mark: Option<Time>,
    /// The last sync was good, so that what the watch tells is all.
    is_settled: bool,
    /// The target dies after so many steps.
    #[cfg(test)]
    pub dies_after: Option<u32>,
    /// What happens to a file of the source right after it was read.
    #[cfg(test)]
    pub meddle: Option<Meddle>,
}

/// See [`Place::meddle`].
#[cfg(test)]
pub struct Meddle(pub Box<dyn Fn(&Rel) + Send + Sync>);

#[cfg(test)]
impl std::fmt::Debug for Meddle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meddle")
    }
}

impl Place {
    /// Opens the directory `dir`.
    pub fn open(dir: &Path, exclude: &[Rel], is_watching: bool) -> io::Result<Self> {
        let tree = Arc::new(Tree::open(dir)?);
        let (watch, blind) = match is_watching.then(|| watch(&tree, exclude)) {
            None => (None, None),
            Some(Ok(watch)) => (Some(watch), None),
            Some(Err(why)) => (None, Some(why)),
        };
        Ok(Self {
            tree,
            watch,
            blind,
            exclude: exclude.to_vec(),
            mark: None,
            is_settled: false,
            #[cfg(test)]
            dies_after: None,
            #[cfg(test)]
            meddle: None,
        })
    }

    /// Whether `path` belongs to no mirror.
    pub fn is_excluded(&self, path: &Rel) -> bool {
        self.exclude.iter().any(|excluded| path.is_within(excluded))
    }

    /// Whether something was changed after the last good sync.
    pub fn is_after_mark(&self, entry: &Entry) -> bool {
        self.mark.is_some_and(|mark| entry.ctime >= mark)
    }

    /// Doubts for the next sync.
    pub fn doubt(&self, doubts: Doubts) {
        if let Some(watch) = &self.watch {
            watch.doubt(doubts);
        }
    }

    /// Whether the next sync looks at everything: nobody knows better.
    pub fn must_look(&self) -> bool {
        !self.is_settled || self.watch.is_none()
    }

    /// A sync ended well. What changed after `mark` is in doubt, or told by the watch.
    pub fn settle(&mut self, mark: Time) {
        // The clock that the kernel stamps files with lags by a tick.
        let mark = Time { secs: mark.secs, nanos: 0 };
        self.mark = Some(mark);
        self.is_settled = true;
    }

    /// A sync has begun, or ended badly.
    pub fn unsettle(&mut self) {
        self.is_settled = false;
    }

    /// A watch that misses something is replaced by a new one.
    fn mend_watch(&mut self) {
        if let Some(old) = self.watch.take_if(|watch| watch.is_broken()) {
            let doubts = old.take();
            drop(old);
            match watch(&self.tree, &self.exclude) {
                Ok(new) => {
                    new.doubt(doubts);
                    self.watch = Some(new);
                }
                Err(why) => self.blind = Some(why),
            }
            self.is_settled = false;
        }
    }
}

fn watch(tree: &Arc<Tree>, exclude: &[Rel]) -> Result<Watch, String> {
    let dir = tree.dir(&Rel::root()).map_err(|error| error.to_string())?;
    if let Some(name) = foreign(proc_path(dir.as_fd()).as_ref()) {
        return Err(format!("a watch does not hear of changes made elsewhere to {name}"));
    }
    Watch::start(Arc::clone(tree), exclude.to_vec()).map_err(|error| {
        let is_limit = error.kind() == io::ErrorKind::StorageFull;
        let help = "; raise it: sysctl -w fs.inotify.max_user_watches=1048576";
        match is_limit {
            true => format!("fs.inotify.max_user_watches is too low for this tree{help}"),
            false => format!("no watch: {error}"),
        }
    })
}

/// The name of the file system of a directory, if others than this kernel change it.
pub fn foreign(dir: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(dir).ok()?.f_type;
    FOREIGN.iter().find(|(magic, _)| i128::from(kind) == *magic).map(|(_, name)| *name)
}

/// Of linux/magic.h.
const FOREIGN: &[(i128, &str)] = &[
    (0x6969, "NFS"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE or virtiofs"),
    (0xfe53_4d42, "SMB"),
    (0xff53_4d42, "SMB"),
    (0x00c3_6400, "Ceph"),
];

/// The time now, by the clock that files are stamped with.
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Time { secs: since.as_secs().cast_signed(), nanos: since.subsec_nanos() }
}

/// Serves the tree at `dir` until the stream ends. Errors: the stream's, or nonsense on it.
pub fn serve<R: Read + Send, W: Write + Send>(dir: &Path, input: R, output: W) -> io::Result<()> {
    let mut receiver = Receiver::new(input);
    let mut sender = Sender::new(output);
    let (exclude, is_watching) = match receiver.receive()? {
        Message::Setup { exclude, is_watching } => (exclude, is_watching),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let mut place = Place::open(dir, &exclude, is_watching);
    let blind = place.as_ref().ok().and_then(|place| place.blind.clone());
    sender.send(&Message::Ready { version: VERSION, blind })?;
    sender.flush()?;
    loop {
        let order = match receiver.receive() {
            Ok(Message::Order(order)) => order,
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        match &mut place {
            Ok(open) if is_at(open, dir) => open.mend_watch(),
            _ => place = Place::open(dir, &exclude, is_watching),
        }
        let ended = match &mut place {
            Ok(place) => take_part(place, order, &mut receiver, &mut sender)?,
            Err(error) => {
                let why = format!("{}: {error}", dir.display());
                match order.is_target {
                    true => sender.send(&Message::Bye { is_equal: false })?,
                    false => source::refuse(&why, &mut receiver, &mut sender)?,
                }
                Err(why)
            }
        };
        sender.send(&Message::Ended(ended))?;
        sender.flush()?;
    }
}

/// Whether the directory is still the one that is open.
fn is_at(place: &Place, dir: &Path) -> bool {
    let open = place.tree.dir(&Rel::root()).and_then(entry_of);
    let there = Tree::open(dir).and_then(|tree| Ok(entry_of(tree.dir(&Rel::root())?)?));
    matches!((open, there), (Ok(open), Ok(there)) if open.id == there.id)
}

/// One sync, in the role that the order says.
pub fn take_part<R: Read + Send, W: Write + Send>(
    place: &mut Place,
    order: Order,
    receiver: &mut Receiver<R>,
    sender: &mut Sender<W>,
) -> io::Result<Result<Report, String>> {
    if order.is_target {
        return target::run(place, order, receiver, sender);
    }
    let begin = now();
    if source::serve(place, receiver, sender)? {
        place.settle(begin);
    }
    Ok(Ok(Report::default()))
}
