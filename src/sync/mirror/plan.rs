//! What differs between two trees -> what is to be done, in an order that works.
//!
//! Owns every decision about a sync and does nothing: pure. The source is always right.
//!
//! A file that only the source has is looked for among those that only the target has: one of the
//! same length and time is most likely the same file under its old name, and moves if its content
//! turns out to be the same. Names of one file are kept together by device and inode.

use std::collections::{BTreeMap, BTreeSet};

use super::entry::{Entry, Kind, Powers, Rel, Time};

/// One path and what both sides have there.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The path.
    pub path: Rel,
    /// What is to be there.
    pub source: Option<Entry>,
    /// What is there.
    pub target: Option<Entry>,
}

/// A file whose content is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Where it belongs.
    pub path: Rel,
    /// The source's file.
    pub source: Entry,
    /// A file of the target that most likely has much of the content: the one at `path`, or one
    /// that is about to be removed.
    pub basis: Option<(Rel, Entry)>,
    /// It has to become a file of its own even if the content is equal.
    pub is_apart: bool,
}

/// All that is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is removed first, what is deepest first. The flag: it is a directory.
    pub removals: Vec<(Rel, bool)>,
    /// Directories to make, parents first.
    pub dirs: Vec<Rel>,
    /// Files to fetch.
    pub copies: Vec<Copy>,
    /// Symbolic links, pipes, sockets and devices to make.
    pub makes: Vec<(Rel, Entry)>,
    /// Attributes to set.
    pub metas: Vec<(Rel, Entry)>,
    /// A name for the file at another one: (the name to make, the name it has).
    pub links: Vec<(Rel, Rel)>,
    /// What is removed only now: copies may have needed it.
    pub late_removals: Vec<(Rel, bool)>,
    /// Attributes of directories, deepest first: everything above touches them.
    pub dir_metas: Vec<(Rel, Entry)>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Bytes that the copies may have to fetch at most.
    pub fn bytes(&self) -> u64 {
        self.copies.iter().filter_map(|copy| copy.source.size()).sum()
    }
}

/// Whether a pair matters for [`plan`]: it differs, or may, or is one of a file's several names.
pub fn is_of_interest(
    source: Option<&Entry>,
    target: Option<&Entry>,
    powers: Powers,
    by_content: bool,
) -> bool {
    match (source, target) {
        (None, None) => false,
        (Some(source), Some(target)) => {
            source.is_linked()
                || target.is_linked()
                || verdict(source, target, powers, by_content) != Verdict::Equal
        }
        _ => true,
    }
}

/// What is to be done about `pairs`, each path at most once. Pairs of no interest may be among
/// them.
pub fn plan(mut pairs: Vec<Pair>, powers: Powers, by_content: bool) -> Plan {
    pairs.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let links = Links::of(&pairs);
    let mut plan = Plan::default();
    let mut lost = Lost::default();
    for pair in &pairs {
        if let (source, Some(target)) = (&pair.source, &pair.target)
            && is_removed(source.as_ref(), target)
        {
            lost.add(&pair.path, target);
        }
    }
    for pair in pairs {
        let Some(source) = pair.source else { continue };
        if let Some(leader) = links.leader_of(&pair.path) {
            plan.links.push((pair.path, leader.clone()));
            continue;
        }
        let target = pair.target.filter(|target| !is_removed(Some(&source), target));
        let is_apart = links.is_stray(&pair.path);
        let decided = target.as_ref().map(|t| verdict(&source, t, powers, by_content));
        match (decided, &source.kind) {
            (Some(Verdict::Equal), _) if !is_apart => {}
            (Some(_), Kind::Dir) => plan.dir_metas.push((pair.path, source)),
            (None, Kind::Dir) => {
                plan.dirs.push(pair.path.clone());
                plan.dir_metas.push((pair.path, source));
            }
            (Some(Verdict::Meta), _) if !is_apart => plan.metas.push((pair.path, source)),
            (_, Kind::File { .. }) => {
                let own = target.filter(|target| target.size().is_some());
                let own = own.map(|target| (pair.path.clone(), target));
                let basis = own.or_else(|| lost.take(&pair.path, &source));
                plan.copies.push(Copy { path: pair.path, source, basis, is_apart });
            }
            _ => plan.makes.push((pair.path, source)),
        }
    }
    plan.dir_metas.reverse();
    lost.divide(&mut plan);
    plan
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    Meta,
    /// The content differs, or may.
    Content,
}

fn verdict(source: &Entry, target: &Entry, powers: Powers, by_content: bool) -> Verdict {
    let is_doubtful = by_content || source.is_suspect || target.is_suspect;
    let is_file = source.size().is_some();
    if source.kind != target.kind || (is_file && (is_doubtful || source.mtime != target.mtime)) {
        return Verdict::Content;
    }
    match powers.has_same_meta(source, target) {
        true => Verdict::Equal,
        false => Verdict::Meta,
    }
}

/// Whether what the target has must go before what the source has can come. A file takes the place
/// of another without that; a directory neither takes nor gives its place so.
fn is_removed(source: Option<&Entry>, target: &Entry) -> bool {
    source.is_none_or(|source| source.kind.is_dir() != target.kind.is_dir())
}

/// What the target loses.
#[derive(Default)]
struct Lost {
    /// The flag: a directory.
    paths: BTreeMap<Rel, bool>,
    by_look: BTreeMap<(u64, Time), Vec<(Rel, Entry)>>,
    needed: BTreeSet<Rel>,
}

impl Lost {
    fn add(&mut self, path: &Rel, entry: &Entry) {
        self.paths.insert(path.clone(), entry.kind.is_dir());
        if let Some(size) = entry.size().filter(|&size| size > 0 && entry.names == 1) {
            let look = (size, entry.mtime);
            self.by_look.entry(look).or_default().push((path.clone(), entry.clone()));
        }
    }

    /// The lost file that `source`, new at `path`, most likely was: one of the same name if several
    /// look like it. Each is given away once.
    fn take(&mut self, path: &Rel, source: &Entry) -> Option<(Rel, Entry)> {
        let alike = self.by_look.get_mut(&(source.size()?, source.mtime))?;
        let name = |path: &Rel| path.split().map(|(_, name)| name.to_owned());
        let same_name = alike.iter().position(|(lost, _)| name(lost) == name(path));
        let found = alike.swap_remove(same_name.or((!alike.is_empty()).then_some(0))?);
        self.needed.insert(found.0.clone());
        Some(found)
    }

    /// Early removals and late ones: those of files that are needed, and of directories above them.
    /// What is in the way of something new goes early in any case, with all that is in it.
    fn divide(self, plan: &mut Plan) {
        let made: BTreeSet<&Rel> = plan
            .dirs
            .iter()
            .chain(plan.copies.iter().map(|copy| &copy.path))
            .chain(plan.makes.iter().map(|(path, _)| path))
            .chain(plan.links.iter().map(|(path, _)| path))
            .collect();
        let mut late = BTreeSet::new();
        for path in self.needed {
            let line: Vec<Rel> = std::iter::successors(Some(path), |path| Some(path.split()?.0))
                .filter(|path| self.paths.contains_key(path))
                .collect();
            if !line.iter().any(|path| made.contains(path)) {
                late.extend(line);
            }
        }
        let removals = self.paths.into_iter().rev();
        (plan.late_removals, plan.removals) = removals.partition(|(path, _)| late.contains(path));
    }
}

/// Files with several names.
#[derive(Default)]
struct Links {
    /// A name of the source's file -> its first name.
    leaders: BTreeMap<Rel, Rel>,
    /// Names whose file at the target belongs to another file of the source.
    strays: BTreeSet<Rel>,
}

impl Links {
    fn of(pairs: &[Pair]) -> Self {
        let mut links = Self::default();
        let mut first_names: BTreeMap<(u64, u64), &Rel> = BTreeMap::new();
        // A file of the target -> the file of the source that it is, by the first name met.
        let mut owners: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
        for Pair { path, source, target } in pairs {
            let Some(source) = source else { continue };
            if source.is_linked() {
                let first = first_names.entry(source.id).or_insert(path);
                if *first != path {
                    links.leaders.insert(path.clone(), (*first).clone());
                }
            }
            if let Some(target) = target.as_ref().filter(|target| target.is_linked())
                && *owners.entry(target.id).or_insert(source.id) != source.id
            {
                links.strays.insert(path.clone());
            }
        }
        links
    }

    fn leader_of(&self, path: &Rel) -> Option<&Rel> {
        self.leaders.get(path)
    }

    fn is_stray(&self, path: &Rel) -> bool {
        self.strays.contains(path)
    }
}
