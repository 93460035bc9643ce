//! The backend `mirror`: where each server's tree is, and how they are kept equal. Beside the
//! backend `container` it does the same for the files of the processes that are copied.
//!
//! Owns the keys of this backend in `[sync]` and `[[server]]`. Whether a directory is there is
//! `doctor`'s question.

use std::path::{Component, Path};

use toml::de::DeTable;

use super::parse::command;
use super::read::{Reader, Section};
use super::{Backend, Config, Server};
use crate::engine::Duration;

/// The backend that keeps two directory trees equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorBackend {
    /// Paths below both directories that are left alone; relative, no `.` or `..` in them.
    pub exclude: Vec<String>,
    /// Whether changes are watched, so that a sync looks at nothing else.
    pub is_watching: bool,
    /// Whether content is compared even where size and times are equal.
    pub by_content: bool,
    /// Whether files are on the disk before they take their names.
    pub is_durable: bool,
    /// A sync in which nothing moves for so long is given up.
    pub timeout: Duration,
}

/// Where a server's tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// A directory of this host; an absolute path.
    Dir(String),
    /// A command whose standard input and output lead to it; not empty.
    Command(Vec<String>),
}

/// Keys of `[sync]` that only a mirror has.
const OWN_KEYS: &[&str] = &["exclude", "watch", "compare", "fsync"];

/// The backend, from the section `[sync]`.
pub(super) fn backend(
    reader: &Reader<'_>,
    section: &Section<'_>,
    timeout: Duration,
) -> MirrorBackend {
    if section.at("command").is_some() {
        let reason = "a command, but the backend `mirror` runs none";
        let help = "where a tree can only be reached by a command, name it by `dir_command` of \
                    [[server]]";
        reader.wrong_help(section.at("command"), "sync.command", reason, help);
    }
    options(reader, section, timeout)
}

/// The mirror beside the backend `container`, from the section `[sync]`: there is one where the
/// servers have directories.
pub(super) fn beside(
    reader: &Reader<'_>,
    section: &Section<'_>,
    servers: Option<&[Server; 2]>,
    timeout: Duration,
) -> Option<MirrorBackend> {
    if servers.is_none_or(|servers| servers.iter().any(|server| server.tree.is_some())) {
        return Some(options(reader, section, timeout));
    }
    let reason = "a mirror's key, but no server has a directory";
    let help = "add to each [[server]]: dir = \"/srv/www\", or remove the line";
    refuse(reader, section, reason, help);
    None
}

fn options(reader: &Reader<'_>, section: &Section<'_>, timeout: Duration) -> MirrorBackend {
    let mut exclude = Vec::new();
    for (text, at) in section.strings("exclude", false).unwrap_or_default() {
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        let path = Path::new(&text);
        let is_good = !text.is_empty() && !text.contains('\0') && path.components().all(is_plain);
        if is_good && !text.contains("//") && !text.ends_with('/') {
            exclude.push(text);
        } else {
            let reason = format!("`{text}` is not a path below the directories");
            let help = "write it without a slash at either end: \"var/log\"";
            reader.wrong_help(at, "sync.exclude", reason, help);
        }
    }
    let by_content = section.choice("compare", &[("times", false), ("content", true)]);
    MirrorBackend {
        exclude,
        is_watching: section.flag("watch", true),
        by_content: by_content.unwrap_or(false),
        is_durable: section.flag("fsync", false),
        timeout,
    }
}

/// Keys of this backend say nothing where another one works.
pub(super) fn refuse_keys(reader: &Reader<'_>, section: &Section<'_>) {
    let reason = "only the backend `mirror` has this key";
    refuse(reader, section, reason, "write backend = \"mirror\", or remove the line");
}

fn refuse(reader: &Reader<'_>, section: &Section<'_>, reason: &str, help: &str) {
    for key in OWN_KEYS {
        if let Some(at) = section.at(key) {
            reader.wrong_help(Some(at), &section.full(key), reason, help);
        }
    }
}

/// Where the tree of a server is, from its section `[[server]]`.
pub(super) fn tree(reader: &Reader<'_>, section: &Section<'_>) -> Option<Tree> {
    let by_command = command(reader, section, "dir_command").map(Tree::Command);
    let Some(dir) = section.path("dir") else { return by_command };
    if by_command.is_some() {
        let reason = "given beside `dir`";
        let help = "name the directory of this host, or the command that reaches it, not both";
        reader.wrong_help(section.at("dir_command"), "server.dir_command", reason, help);
    }
    if !dir.is_absolute() {
        let reason = format!("`{}` is not an absolute path", dir.display());
        reader.wrong(section.at("dir"), "server.dir", reason);
    }
    Some(Tree::Dir(dir.to_string_lossy().into_owned()))
}

/// A mirror needs both trees, apart from each other; without one nobody needs them.
pub(super) fn check_trees(reader: &Reader<'_>, root: &DeTable<'_>, config: &Config) {
    let at = Section::top_quiet(root, "sync", "backend");
    let is_mirror = matches!(config.sync.backend, Some(Backend::Mirror(_)));
    let is_mirrored = config.sync.mirror().is_some();
    for server in config.servers.iter().filter(|server| !server.name.is_empty()) {
        let name = &server.name;
        if is_mirror && server.tree.is_none() && server.agent.is_none() {
            let reason = format!("`mirror`, but the server `{name}` has no directory");
            let help = "add to its [[server]]: dir = \"/srv/www\", or agent = \"HOST:7411\", or \
                        dir_command = [\"/usr/bin/ssh\", \"HOST\", \"shadowvm\", \"mirror-end\", \
                        \"/srv/www\"]";
            reader.wrong_help(at.clone(), "sync.backend", reason, help);
        } else if !is_mirror && is_mirrored && server.tree.is_none() {
            let reason = format!("the server `{name}` has no directory, but the other one has");
            let help = "add to its [[server]]: dir = \"/srv/www\"; or remove the other one's, if \
                        both see the same files";
            reader.wrong_help(at.clone(), "sync.backend", reason, help);
        } else if !is_mirrored && server.tree.is_some() && at.is_none() {
            let reason = format!("the server `{name}` has a directory, but no backend mirrors it");
            let help = "write [sync] with backend = \"mirror\", or remove the line";
            reader.wrong_help(None, "server.dir", reason, help);
        }
    }
    if let [Some(Tree::Dir(a)), Some(Tree::Dir(b))] = config.servers.each_ref().map(|s| &s.tree)
        && is_mirrored
        && (Path::new(a).starts_with(b) || Path::new(b).starts_with(a))
    {
        let reason = format!("the servers' directories, {a} and {b}, are not apart");
        reader.wrong(at, "sync.backend", reason);
    }
}
