//! The backend `container`: where the servers' containers and CRIU are, and whether their files are
//! mirrored.
//!
//! Owns the section `[sync.container]` and the key of a server's container. Whether CRIU works here
//! is `doctor`'s question.

use std::path::PathBuf;

use toml::de::DeTable;

use super::mirror::{self, MirrorBackend};
use super::read::{Reader, Section};
use super::{Backend, Config, Server, Tree};
use crate::engine::Duration;

const DEFAULT_DIR: &str = "/run/shadowvm/containers";
const DEFAULT_PROGRAM: &str = "/usr/sbin/criu";

/// The backend whose servers are process trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerBackend {
    /// CRIU; an absolute path.
    pub criu: String,
    /// Where checkpoints are written; an absolute path.
    pub dir: PathBuf,
    /// A sync that takes longer is given up.
    pub timeout: Duration,
    /// How the servers' directories are made equal in each sync; none if both see the same files.
    pub files: Option<MirrorBackend>,
}

/// The backend, from the section `[sync]`.
pub(super) fn backend(
    reader: &Reader<'_>,
    sync: &Section<'_>,
    servers: Option<&[Server; 2]>,
    timeout: Duration,
) -> ContainerBackend {
    if sync.at("command").is_some() {
        let reason = "a command, but the backend `container` runs none";
        reader.wrong_help(sync.at("command"), "sync.command", reason, "remove the line");
    }
    let sections = sync.table().map(|t| Section::each(reader, t, "container", "sync.container"));
    let sections = sections.unwrap_or_default();
    let path = |key: &str, default: &str| {
        let section = sections.first();
        let path = section.and_then(|section| absolute(reader, section, key));
        path.unwrap_or_else(|| default.into())
    };
    ContainerBackend {
        criu: path("criu", DEFAULT_PROGRAM).to_string_lossy().into_owned(),
        dir: path("dir", DEFAULT_DIR),
        timeout,
        files: mirror::beside(reader, sync, servers, timeout),
    }
}

/// The file with the number of a container's first process, from a section `[[server]]`.
pub(super) fn init(reader: &Reader<'_>, section: &Section<'_>) -> Option<PathBuf> {
    absolute(reader, section, "container")
}

fn absolute(reader: &Reader<'_>, section: &Section<'_>, key: &str) -> Option<PathBuf> {
    let path = section.path(key)?;
    if !path.is_absolute() {
        let reason = format!("`{}` is not an absolute path", path.display());
        reader.wrong(section.at(key), &section.full(key), reason);
    }
    Some(path)
}

/// The backend needs both containers; without it nobody needs them.
pub(super) fn check_containers(reader: &Reader<'_>, root: &DeTable<'_>, config: &Config) {
    let at = Section::top_quiet(root, "sync", "backend");
    let is_container = matches!(config.sync.backend, Some(Backend::Container(_)));
    for server in config.servers.iter().filter(|server| !server.name.is_empty()) {
        let name = &server.name;
        if is_container && server.container.is_none() {
            let reason = format!("`container`, but the server `{name}` has no container");
            let help = "add to its [[server]]: container = \"/run/a.pid\", a file with the number \
                        of its first process";
            reader.wrong_help(at.clone(), "sync.backend", reason, help);
        } else if !is_container && server.container.is_some() {
            let reason = format!("the server `{name}` has a container, but no backend copies it");
            let help = "write [sync] with backend = \"container\", or remove the line";
            reader.wrong_help(at.clone(), "server.container", reason, help);
        }
    }
    if let [Some(a), Some(b)] = config.servers.each_ref().map(|server| &server.container)
        && is_container
        && a == b
    {
        let reason = format!("both servers have the container {}", a.display());
        reader.wrong(at.clone(), "sync.backend", reason);
    }
    let Some(Backend::Container(ContainerBackend { dir, .. })) = &config.sync.backend else {
        return;
    };
    for server in &config.servers {
        if let Some(Tree::Dir(tree)) = &server.tree
            && dir.starts_with(tree)
        {
            let (name, dir) = (&server.name, dir.display());
            let reason = format!("checkpoints, in {dir}, would be files of the server `{name}`");
            let help = "name a directory outside of server.dir: sync.container.dir";
            reader.wrong_help(at.clone(), "sync.container.dir", reason, help);
        }
    }
}
