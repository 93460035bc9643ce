//! The end that is made equal: it compares and plans, and has it done.
//!
//! Owns the order of a sync. Rounds: look at what either side doubts (or at everything), make it
//! equal, look again at what changed meanwhile. A round with nothing to do ends it. What never
//! stood still, and what could not be done, is named, and then the sync has failed; ahead of
//! another sync, what never stood still is left to that one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Read, Write};

use rustix::io::Errno;

use super::apply::{Applier, is_gone};
use super::doubt::{Doubt, Doubts};
use super::end::{Place, now};
use super::entry::{Entry, Moment, Powers, Rel};
use super::fetch::{Done, Ways, fetch_all};
use super::message::{Message, Order, Receiver, Report, Sender};
use super::plan::{Copy, Pair, Plan, is_of_interest, plan};

/// So often a sync looks again at what changed while it ran.
const ROUNDS_MAX: usize = 4;
/// So many troubles are named.
const NAMED_MAX: usize = 3;

/// Makes the tree equal to the source's. The inner error says what was not possible; the outer one
/// that the stream is of no more use.
pub fn run<R: Read + Send, W: Write + Send>(
    place: &mut Place,
    order: Order,
    receiver: &mut Receiver<R>,
    sender: &mut Sender<W>,
) -> io::Result<Result<Report, String>> {
    let begin = now();
    let is_full = order.is_full || place.must_look();
    place.unsettle();
    let taken = place.watch.as_ref().map_or_else(Doubts::all, |watch| watch.take());
    let mut target = Target {
        place,
        order,
        receiver,
        sender,
        powers: Powers { is_root: nix::unistd::geteuid().is_root() },
        doubts: Doubts { is_all: is_full || taken.is_all, items: taken.items },
        troubles: Troubles::default(),
        spared: BTreeSet::new(),
        own: BTreeMap::new(),
        left: Doubts::default(),
        report: Report::default(),
    };
    let ended = target.rounds();
    let Target { report, own, doubts, left, .. } = target;
    match ended {
        Ok(Ok(())) => {
            let has_lost = place.watch.as_ref().is_none_or(|watch| {
                let tree = &place.tree;
                watch.forgive(|path, doubt| is_own(&own, path, doubt, || tree.entry(path).ok()?))
            });
            // What somebody else changed meanwhile is doubted by the watch, unless it lost count.
            place.settle(if has_lost { begin } else { now() });
            place.doubt(left);
            Ok(Ok(report))
        }
        other => {
            place.doubt(doubts);
            Ok(other?.map(|()| report))
        }
    }
}

/// Whether a doubt is about a change that the applier made, and nobody after it.
fn is_own(
    own: &BTreeMap<Rel, Option<Moment>>,
    path: &Rel,
    doubt: Doubt,
    look: impl FnOnce() -> Option<Entry>,
) -> bool {
    !doubt.is_deep
        && !doubt.is_content
        && own.get(path).is_some_and(|after| *after == look().as_ref().map(Entry::moment))
}

struct Target<'a, R, W> {
    place: &'a Place,
    order: Order,
    receiver: &'a mut Receiver<R>,
    sender: &'a mut Sender<W>,
    powers: Powers,
    /// What is doubted on this side, all rounds together.
    doubts: Doubts,
    troubles: Troubles,
    /// What is left as it is: the source cannot look at it, or another file system is mounted.
    spared: BTreeSet<Rel>,
    own: BTreeMap<Rel, Option<Moment>>,
    /// What the next sync has to look at, although this one was good.
    left: Doubts,
    report: Report,
}

/// Outer error: the stream. Inner error: what people are told.
type Step<T> = io::Result<Result<T, String>>;

impl<R: Read + Send, W: Write + Send> Target<'_, R, W> {
    fn rounds(&mut self) -> Step<()> {
        let done = self.all_rounds()?;
        if self.order.is_ahead {
            let moving = std::mem::take(&mut self.troubles.unsettled);
            moving.into_iter().for_each(|path| self.left.add(path, DEEP));
        }
        let done = done.and_then(|()| self.troubles.outcome());
        self.sender.send(&Message::Bye { is_equal: done.is_ok() })?;
        self.sender.flush()?;
        Ok(done)
    }

    fn all_rounds(&mut self) -> Step<()> {
        let mut ask = self.doubts.clone();
        for _ in 0..ROUNDS_MAX {
            let (is_full, pairs) = match self.look(ask)? {
                Ok(found) => found,
                Err(why) => return Ok(Err(why)),
            };
            self.report.is_full |= is_full;
            if pairs.is_empty() {
                self.troubles.unsettled.clear();
                return Ok(Ok(()));
            }
            let plan = plan(pairs, self.powers, self.order.by_content);
            let bytes = plan.bytes();
            self.sender.send(&Message::Planned { files: plan.copies.len() as u64, bytes })?;
            let mut unsettled = Doubts::default();
            if let Err(fatal) = self.execute(&plan, &mut unsettled)? {
                return Ok(Err(fatal));
            }
            self.doubts.add_all(unsettled.clone());
            self.troubles.unsettled = unsettled.items.keys().cloned().collect();
            ask = unsettled;
        }
        Ok(Ok(()))
    }

    /// Pairs of all that is doubted here or there, or of all that differs in everything.
    fn look(&mut self, ask: Doubts) -> Step<(bool, Vec<Pair>)> {
        let mut ask = ask;
        let mut pairs = BTreeMap::new();
        loop {
            let mut view = View { pairs: &mut pairs, is_full: false, missing: Vec::new() };
            self.ask(&ask)?;
            if let Err(why) = self.hear(&mut view)? {
                return Ok(Err(why));
            }
            let (is_full, missing) = (view.is_full, view.missing);
            // Names of one file belong together, wherever they are.
            let is_linked = |entry: &Option<Entry>| entry.as_ref().is_some_and(Entry::is_linked);
            let has_links = pairs
                .values()
                .any(|pair: &Pair| is_linked(&pair.source) || is_linked(&pair.target));
            if !is_full && has_links {
                pairs.clear();
                ask = Doubts::all();
            } else if !is_full && !missing.is_empty() {
                ask = Doubts::default();
                missing.into_iter().for_each(|path| ask.add(path, DEEP));
            } else {
                return Ok(Ok((is_full, pairs.into_values().collect())));
            }
        }
    }

    fn ask(&mut self, doubts: &Doubts) -> io::Result<()> {
        if !doubts.is_all {
            for (path, doubt) in &doubts.items {
                self.sender.send(&Message::Path(path.clone(), doubt.is_deep))?;
            }
        }
        self.sender.send(&Message::List { is_full: doubts.is_all })?;
        self.sender.flush()
    }

    fn hear(&mut self, view: &mut View<'_>) -> Step<()> {
        let mut gathered: Vec<(Vec<u8>, Entry)> = Vec::new();
        let mut deep = BTreeSet::new();
        loop {
            match self.receiver.receive()? {
                Message::Scope { is_full } => view.is_full = is_full,
                Message::Item(path, entry) => self.compare_item(view, path, entry),
                Message::Dir { path, mut entries, is_last } => {
                    gathered.append(&mut entries);
                    if is_last {
                        deep.insert(path.clone());
                        self.compare_dir(view, &path, std::mem::take(&mut gathered));
                    }
                }
                Message::Trouble(path, why) => {
                    self.troubles.add(&path, format_args!("at the source: {why}"));
                    view.pairs.retain(|known, _| !known.is_within(&path));
                    self.spared.insert(path);
                }
                Message::Refused(why) => return Ok(Err(why)),
                Message::Listed => break,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        view.missing.retain(|path| !deep.contains(path));
        Ok(Ok(()))
    }

    fn compare_item(&mut self, view: &mut View<'_>, path: Rel, source: Option<Entry>) {
        self.report.paths += 1;
        let target = match self.place.tree.entry(&path) {
            Ok(target) => target,
            Err(error) => {
                self.troubles.add(&path, format_args!("{error}"));
                self.spared.insert(path);
                return;
            }
        };
        if self.is_spared(&path) {
            return;
        }
        let is_dir = |entry: &Option<Entry>| entry.as_ref().is_some_and(|e| e.kind.is_dir());
        match (is_dir(&source), is_dir(&target)) {
            (true, false) => view.missing.push(path.clone()),
            (false, true) => {
                self.lose(view, &path, target);
                if source.is_some() {
                    let lost = view.pairs.entry(path.clone());
                    lost.and_modify(|pair| pair.source = source);
                }
                return;
            }
            _ => {}
        }
        self.note(view, path, source, target);
    }

    /// Both sides' directories at `path`, name by name.
    fn compare_dir(&mut self, view: &mut View<'_>, path: &Rel, source: Vec<(Vec<u8>, Entry)>) {
        if self.is_spared(path) {
            return;
        }
        let mut target = match self.place.tree.list(path) {
            Ok(target) => target,
            Err(error) if is_gone(&error) => Vec::new(),
            Err(error) => {
                self.troubles.add(path, format_args!("{error}"));
                self.spared.insert(path.clone());
                return;
            }
        };
        self.report.paths += source.len() as u64;
        // Both are in the order of their names.
        target.reverse();
        for (name, source) in source {
            while let Some((other, entry)) = target.pop_if(|(other, _)| *other < name) {
                self.lose(view, &path.join(&other), Some(entry));
            }
            let own = target.pop_if(|(other, _)| *other == name).map(|(_, entry)| entry);
            self.compare(view, path.join(&name), source, own);
        }
        while let Some((other, entry)) = target.pop() {
            self.lose(view, &path.join(&other), Some(entry));
        }
    }

    fn compare(&mut self, view: &mut View<'_>, path: Rel, source: Entry, own: Option<Entry>) {
        if self.place.is_excluded(&path) {
            return;
        }
        if own.as_ref().is_some_and(|own| own.is_mount) {
            self.spared.insert(path);
            return;
        }
        if !source.kind.is_dir() && own.as_ref().is_some_and(|own| own.kind.is_dir()) {
            self.lose(view, &path, own);
            view.pairs.entry(path).and_modify(|pair| pair.source = Some(source));
            return;
        }
        self.note(view, path, Some(source), own);
    }

    fn note(
        &self,
        view: &mut View<'_>,
        path: Rel,
        source: Option<Entry>,
        mut target: Option<Entry>,
    ) {
        if let Some(target) = &mut target {
            target.is_suspect |=
                !view.is_full || self.place.is_after_mark(target) || self.doubts.covers(&path);
        }
        if is_of_interest(source.as_ref(), target.as_ref(), self.powers, self.order.by_content) {
            view.pairs.insert(path.clone(), Pair { path, source, target });
        } else {
            view.pairs.remove(&path);
        }
    }

    /// Only the target has this: it goes, with all below it, unless something there is to stay.
    /// Tells whether all of it goes.
    fn lose(&mut self, view: &mut View<'_>, path: &Rel, target: Option<Entry>) -> bool {
        let Some(target) = target else { return true };
        if self.place.is_excluded(path) || target.is_mount || self.is_spared(path) {
            return false;
        }
        let mut goes = true;
        if target.kind.is_dir() {
            match self.place.tree.list(path) {
                Ok(below) => {
                    for (name, entry) in below {
                        goes &= self.lose(view, &path.join(&name), Some(entry));
                    }
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    self.troubles.add(path, format_args!("{error}"));
                    goes = false;
                }
            }
        }
        if goes {
            self.note(view, path.clone(), None, Some(target));
        }
        goes
    }

    fn is_spared(&self, path: &Rel) -> bool {
        !self.spared.is_empty() && self.spared.iter().any(|spared| path.is_within(spared))
    }

    /// Does what is planned. Inner error: no sense in going on.
    fn execute(&mut self, plan: &Plan, unsettled: &mut Doubts) -> Step<()> {
        let place = self.place;
        let mut applier = Applier::new(&place.tree, place.watch.as_ref(), self.powers, tag())
            .durable(self.order.is_durable);
        #[cfg(test)]
        applier.dies_after(place.dies_after);
        let mut done = self.make_room(&mut applier, plan, unsettled);
        if done.is_ok() {
            done = self.copy(&mut applier, &plan.copies, unsettled)?;
        }
        let done = done.and_then(|()| self.complete(&mut applier, plan, unsettled));
        Ok(done.and_then(|()| {
            self.own.extend(applier.close().map_err(|error| error.to_string())?);
            Ok(())
        }))
    }

    /// What has to be there, and what must not, before files can come.
    fn make_room(
        &mut self,
        applier: &mut Applier<'_>,
        plan: &Plan,
        unsettled: &mut Doubts,
    ) -> Result<(), String> {
        for (path, is_dir) in &plan.removals {
            self.done(path, applier.remove(path, *is_dir), unsettled, |r| &mut r.removed)?;
        }
        for path in &plan.dirs {
            self.done(path, applier.make_dir(path), unsettled, |r| &mut r.mended)?;
        }
        Ok(())
    }

    /// Everything after the files.
    fn complete(
        &mut self,
        applier: &mut Applier<'_>,
        plan: &Plan,
        unsettled: &mut Doubts,
    ) -> Result<(), String> {
        for (path, entry) in &plan.makes {
            self.done(path, applier.make(path, entry), unsettled, |r| &mut r.mended)?;
        }
        for (path, entry) in &plan.metas {
            self.done(path, applier.set_meta(path, entry), unsettled, |r| &mut r.mended)?;
        }
        for (path, leader) in &plan.links {
            self.done(path, applier.link(path, leader), unsettled, |r| &mut r.mended)?;
        }
        for (path, is_dir) in &plan.late_removals {
            self.done(path, applier.remove(path, *is_dir), unsettled, |r| &mut r.removed)?;
        }
        for (path, entry) in &plan.dir_metas {
            self.done(path, applier.set_meta(path, entry), unsettled, |r| &mut r.mended)?;
        }
        Ok(())
    }

    /// One step is done, or not.
    fn done(
        &mut self,
        path: &Rel,
        done: io::Result<bool>,
        unsettled: &mut Doubts,
        count: impl FnOnce(&mut Report) -> &mut u64,
    ) -> Result<(), String> {
        match done {
            Ok(is_change) => *count(&mut self.report) += u64::from(is_change),
            Err(error) => self.troubles.judge(path, &error, unsettled)?,
        }
        Ok(())
    }

    /// Fetches and writes the files.
    fn copy(
        &mut self,
        applier: &mut Applier<'_>,
        copies: &[Copy],
        unsettled: &mut Doubts,
    ) -> Step<()> {
        let (troubles, report) = (&mut self.troubles, &mut self.report);
        let mut fatal = Ok(());
        let judge = |copy: &Copy, done: io::Result<Done>| {
            match done {
                Ok(Done::Written) => report.written += 1,
                Ok(Done::Mended) => report.mended += 1,
                Ok(Done::Nothing) => {}
                Ok(Done::Changed) => unsettled.add(copy.path.clone(), CHANGED),
                Err(error) => fatal = troubles.judge(&copy.path, &error, unsettled),
            }
            fatal.is_ok()
        };
        let ways = Ways { place: self.place, receiver: self.receiver, sender: self.sender };
        fetch_all(ways, applier, self.powers, copies, judge)?;
        Ok(fatal)
    }
}

/// Tells the unfinished names of this process from those of others.
fn tag() -> u64 {
    u64::from(std::process::id()) << 32 | u64::from(now().nanos)
}

/// What is looked at again.
const CHANGED: Doubt = Doubt { is_deep: false, is_content: true };
/// The same with all below it.
const DEEP: Doubt = Doubt { is_deep: true, is_content: true };

/// What a look has found so far.
struct View<'a> {
    pairs: &'a mut BTreeMap<Rel, Pair>,
    is_full: bool,
    /// Directories of the source that were shown without what is in them.
    missing: Vec<Rel>,
}

/// What could not be done, counted, the first ones by name.
#[derive(Default)]
struct Troubles {
    count: u64,
    named: Vec<String>,
    /// What never stood still.
    unsettled: Vec<Rel>,
}

impl Troubles {
    fn add(&mut self, path: &Rel, why: std::fmt::Arguments<'_>) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(format!("{path}: {why}"));
        }
    }

    /// What a failed step means: nothing more has a sense, or it is looked at again, or it is told.
    fn judge(
        &mut self,
        path: &Rel,
        error: &io::Error,
        unsettled: &mut Doubts,
    ) -> Result<(), String> {
        match Errno::from_io_error(error) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO) => {
                return Err(format!("{path}: {error}"));
            }
            #[cfg(test)]
            None if error.to_string() == super::apply::KILLED => return Err(error.to_string()),
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NOTEMPTY)
            | Some(Errno::EXIST | Errno::ISDIR) => {
                unsettled.add(path.clone(), DEEP);
            }
            _ if is_gone(error) => unsettled.add(path.clone(), CHANGED),
            _ => self.add(path, format_args!("{error}")),
        }
        Ok(())
    }

    fn outcome(&self) -> Result<(), String> {
        let mut text = String::new();
        if self.count > 0 {
            let more = self.count - self.named.len() as u64;
            text = self.named.join("; ");
            if more > 0 {
                let _ = write!(text, "; and {more} more");
            }
        }
        if let Some(first) = self.unsettled.first() {
            let lead = if text.is_empty() { "" } else { "; " };
            let count = self.unsettled.len();
            let _ = write!(
                text,
                "{lead}{count} changed whenever they were read, such as {first}: exclude what \
                 never stands still"
            );
        }
        if text.is_empty() { Ok(()) } else { Err(text) }
    }
}
