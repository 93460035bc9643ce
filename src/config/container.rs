//! The backend `container`: where the servers' containers and CRIU are.
//!
//! Owns the section `[sync.container]` and the key of a server's container. Whether CRIU works here
//! is `doctor`'s question.

use std::path::PathBuf;

use toml::de::DeTable;

use super::read::{Reader, Section};
use super::{Backend, Config};
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
}

/// The backend, from the section `[sync]`.
pub(super) fn backend(
    reader: &Reader<'_>,
    sync: &Section<'_>,
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
        reader.wrong(at, "sync.backend", reason);
    }
}
