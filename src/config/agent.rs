//! Agents: where each server's is, and what the gateway has for them.
//!
//! Owns the section `[agent]` and the key of a server's agent. Whether one answers is `doctor`'s
//! question.

use std::path::PathBuf;

use toml::de::DeTable;

use super::read::{Reader, Section};
use super::{Backend, Config, Server, Tree};

const DEFAULT_KEY: &str = "/etc/shadowvm/agent.key";
/// Bytes a second: less would be no sync at all, more is no limit.
const LIMIT_MIN: u64 = 64 << 10;
const LIMIT_MAX: u64 = 1 << 40;

/// What both servers' agents have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The file with the key; an absolute path.
    pub key: PathBuf,
    /// So many bytes a second leave for each at most.
    pub limit: Option<u64>,
}

/// The section `[agent]`.
pub(super) fn agent(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    servers: Option<&[Server; 2]>,
) -> Agent {
    let section = Section::top(reader, root, "agent");
    let key = section.path("key").unwrap_or_else(|| DEFAULT_KEY.into());
    if !key.is_absolute() {
        let reason = format!("`{}` is not an absolute path", key.display());
        reader.wrong(section.at("key"), "agent.key", reason);
    }
    let has_none = |servers: &[Server; 2]| servers.iter().all(|server| server.agent.is_none());
    if section.is_present() && servers.is_some_and(has_none) {
        let help = "add to its [[server]]: agent = \"HOST:7411\", or remove the section";
        reader.wrong_help(section.at.clone(), "agent", "no server has an agent", help);
    }
    Agent { key, limit: section.bytes("limit", LIMIT_MIN..=LIMIT_MAX) }
}

/// Where the agent of a server is, from its section `[[server]]`.
pub(super) fn address(
    reader: &Reader<'_>,
    section: &Section<'_>,
    tree: Option<&Tree>,
) -> Option<String> {
    let address = section.string("agent")?;
    if !is_host_and_port(&address) {
        let reason = format!("`{address}` is not a host and a port");
        let help = "write it as \"b.mgmt:7411\", \"198.51.100.10:7411\" or \"[2001:db8::10]:7411\"";
        reader.wrong_help(section.at("agent"), "server.agent", reason, help);
    }
    if tree.is_some() {
        let key = if section.at("dir").is_some() { "dir" } else { "dir_command" };
        let reason = "given beside `agent`";
        let help = "the agent knows its directory (shadowvm agent --dir); remove one of the two";
        reader.wrong_help(section.at(key), &section.full(key), reason, help);
    }
    Some(address)
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match is_v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            (1..=253).contains(&host.len()) && host.chars().all(is_plain)
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Where a keeper has the servers themselves, agents have nothing to do.
pub(super) fn check_agents(reader: &Reader<'_>, root: &DeTable<'_>, config: &Config) {
    let backend = match &config.sync.backend {
        Some(Backend::Qemu(_)) => "qemu",
        Some(Backend::Container(_)) => "container",
        Some(Backend::Exec(_) | Backend::Mirror(_)) | None => return,
    };
    for server in config.servers.iter().filter(|server| server.agent.is_some()) {
        let at = Section::top_quiet(root, "sync", "backend");
        let reason = format!(
            "`{backend}`, but the server `{}` has an agent: the gateway sees these servers itself",
            server.name
        );
        reader.wrong_help(at, "sync.backend", reason, "remove its line `agent`");
    }
}
