//! Guests whose memory is files: the standby's is made like the source's beforehand, while the
//! source runs, and a sync copies what was written since.
//!
//! Rounds go on while each leaves less to do than the one before; for what is left both servers
//! stop. Where nobody can tell what a guest has written, all of its memory is compared instead, in
//! one round while it runs and once more when it has stopped. Either way the copy is whole: what is
//! believed is the kernel's note of each write, or the content itself.

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::copy::Course;
use super::keeper::{Keeper, Stop};
use super::pages::{PAGE, Pages};
use super::setup::Which;
use super::stable::Stable;
use super::words::{News, Way};

/// Rounds while the source runs.
const ROUNDS_MAX: usize = 8;
/// So little that the source may as well stop for it.
const LITTLE_BYTES: u64 = 64 * PAGE;

/// Notes what of a guest's memory is written.
pub trait Writes: Debug + Send {
    /// Pieces that were written since the last call, in bytes from the beginning; the first call
    /// tells all that there is.
    fn taken(&mut self) -> io::Result<Vec<Range<u64>>>;
}

/// A standby whose memory becomes like a server's.
#[derive(Debug)]
pub(super) struct Twin {
    source: Which,
    standby: Which,
    pages: Pages,
    /// None: nobody can tell.
    writes: Option<Box<dyn Writes>>,
}

impl Twin {
    /// Whether it is about this guest.
    pub(super) fn has(&self, which: Which) -> bool {
        [self.source, self.standby].contains(&which)
    }

    /// What was written is to be copied; all may have been, if nobody can tell.
    fn note(&mut self) -> Option<io::Error> {
        let taken = self.writes.as_mut().map(|writes| writes.taken());
        match taken {
            Some(Ok(written)) => {
                self.pages.add(written);
                return None;
            }
            // From here on only the content counts.
            Some(Err(_)) => self.writes = None,
            None => {}
        }
        self.pages.doubt();
        taken.and_then(Result::err)
    }
}

impl<S: Stable> Keeper<S> {
    /// The guests for which a twin could be made now.
    pub(super) fn twin_is_wanted(&self) -> Option<(Which, Which)> {
        let standby = self.standby.filter(|_| self.setup.memory_dir.is_some())?;
        let pair = (self.attached(1 - standby.leg)?, standby);
        (self.twin.is_none() && self.twin_failed != Some(pair)).then_some(pair)
    }

    /// Begins to make the standby's memory like the source's.
    pub(super) fn begin_twin(&mut self, (source, standby): (Which, Which)) {
        match self.new_twin(source, standby) {
            Ok(twin) => self.twin = Some(twin),
            Err(stop) => {
                self.twin_failed = Some((source, standby));
                self.warn(format!("{} is not prepared: {}", self.name(standby), stop.text()));
            }
        }
    }

    fn new_twin(&mut self, source: Which, standby: Which) -> Result<Twin, Stop> {
        let opened = (self.stable.memory(source), self.stable.memory(standby));
        let pages = match opened {
            (Ok(from), Ok(to)) => Pages::new(from, to),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        let mut pages = pages.map_err(|error| {
            let (source, standby) = (self.name(source), self.name(standby));
            let started = match error.kind() {
                io::ErrorKind::NotFound => {
                    "; a guest started with copy = \"live\" has no such file"
                }
                _ => "",
            };
            Stop::Failed(format!("the memory of {source} or {standby}: {error}{started}"))
        })?;
        let watched = self.stable.watch(source).and_then(|mut writes| {
            // What was written before is found by its content.
            writes.taken().map(|_| writes)
        });
        pages.doubt();
        let writes = match watched {
            Ok(writes) => Some(writes),
            Err(error) => {
                self.tell_unwatched(&error);
                None
            }
        };
        Ok(Twin { source, standby, pages, writes })
    }

    /// Told once: it is the same for every guest of this host.
    fn tell_unwatched(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_unwatched, true) {
            self.warn(format!(
                "what guests write cannot be seen here ({error}): each sync compares all of their \
                 memory, and stops them for that long; `shadowvm doctor` says what is missing"
            ));
        }
    }

    /// Goes on with it while nothing else is to do; whether there was anything.
    pub(super) fn prepare_twin(&mut self) -> bool {
        let Some(twin) = self.twin.as_mut().filter(|twin| twin.pages.left() > 0) else {
            return false;
        };
        let pair = (twin.source, twin.standby);
        match twin.pages.step() {
            Ok(true) => {}
            Ok(false) => self.say(News::Prepared { generation: pair.1.generation }),
            Err(error) => {
                self.twin = None;
                self.twin_failed = Some(pair);
                self.warn(format!("{} is not prepared: {error}", self.name(pair.1)));
            }
        }
        self.turn(Some(Instant::now()));
        true
    }

    /// The source's whole state for the standby, by memory that is files; when the source stopped,
    /// by QEMU's clock, and how many bytes of memory were copied.
    pub(super) fn share(
        &mut self,
        id: u32,
        (source, old, standby): (Which, Which, Which),
        way: Way,
        course: &mut Course,
    ) -> Result<(Duration, u64), Stop> {
        let patience = Duration::from_millis(self.setup.timeout_ms);
        let deadline = Instant::now() + patience;
        let ready =
            self.twin.take().filter(|twin| (twin.source, twin.standby) == (source, standby));
        let mut twin = match ready {
            Some(twin) => twin,
            None => self.new_twin(source, standby)?,
        };
        let before = twin.pages.copied();
        if way == Way::Live {
            self.rounds(&mut twin, deadline)?;
        }
        (course.source, course.old) = (Some(source), Some(old));
        let uri = json!({ "uri": self.setup.incoming(standby) });
        if way == Way::Stopped {
            self.command(source, "stop", Value::Null, patience)?;
        }
        // All that QEMU does before it stops the source is done when it stops it.
        self.command(source, "migrate", uri, patience)?;
        let stopped_at = self.event(source, patience, "STOP")?;
        self.command(old, "stop", Value::Null, patience)?;
        self.freeze(id);
        // Its processors have stopped, but a disk may still write what was read; then nothing does.
        // Devices look into the memory when they are loaded, so they come when it is whole.
        self.waits(source, patience)?;
        match way {
            Way::Live => self.note_writes(&mut twin),
            Way::Stopped => twin.pages.doubt(),
        }
        self.through(&mut twin, deadline)?;
        let copied = twin.pages.copied() - before;
        let state = json!({ "state": "pre-switchover" });
        self.command(source, "migrate-continue", state, patience)?;
        // The end of the notes is the end of what they cost the source.
        drop(twin);
        Ok((stopped_at, copied))
    }

    /// Copies while the source runs, until so little is left that it may stop for it.
    fn rounds(&mut self, twin: &mut Twin, deadline: Instant) -> Result<(), Stop> {
        let mut last = u64::MAX;
        for _ in 0..ROUNDS_MAX {
            if twin.writes.is_some() || twin.pages.left() == 0 {
                self.note_writes(twin);
            }
            let left = twin.pages.left();
            self.through(twin, deadline)?;
            // A source that writes as fast as it is copied does not get any nearer.
            if twin.writes.is_none() || left <= LITTLE_BYTES || left > last / 4 * 3 {
                break;
            }
            last = left;
        }
        Ok(())
    }

    fn note_writes(&mut self, twin: &mut Twin) {
        if let Some(error) = twin.note() {
            self.tell_unwatched(&error);
        }
    }

    /// Copies all that is noted.
    fn through(&mut self, twin: &mut Twin, deadline: Instant) -> Result<(), Stop> {
        loop {
            let failed = |error| Stop::Failed(format!("the memory could not be copied: {error}"));
            if !twin.pages.step().map_err(failed)? {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Stop::Failed("the memory could not be copied in time".into()));
            }
            self.turn(Some(Instant::now()));
            if self.is_unwanted() {
                return Err(Stop::Cancelled);
            }
            for which in [twin.source, twin.standby] {
                if !self.guests.contains_key(&which.generation) {
                    return Err(self.ended(which));
                }
            }
        }
    }
}
