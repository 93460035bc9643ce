//! The backend `qemu`: what a guest is, and the links to guests.
//!
//! Owns the section `[sync.qemu]` and the links that are no interfaces. Whether QEMU and the files
//! are there is `doctor`'s question.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::read::{Reader, Section};
use super::{Backend, Config, Links};
use crate::engine::Duration;

/// What a link to a guest begins with.
const PREFIX: &str = "unix:";
/// Longest path of such a link: the guest's end has a number behind it.
const LINK_PATH_MAX: usize = 96;
/// Longest path of the directory: names of sockets in it come behind.
const DIR_MAX: usize = 60;
const DEFAULT_DIR: &str = "/run/shadowvm/guests";
const DEFAULT_MEMORY_DIR: &str = "/dev/shm/shadowvm";
const DEFAULT_PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
const DEFAULT_MAC: &str = "02:00:00:00:00:10";

/// How a guest's memory gets to the other one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MemoryCopy {
    /// QEMU sends it while the guest runs on.
    #[default]
    Live,
    /// It is a file in this directory, and the pages that were written are copied.
    Shared(PathBuf),
}

/// The backend whose servers are virtual machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuBackend {
    /// QEMU; an absolute path.
    pub program: String,
    /// Kinds of acceleration, the best first; at least one.
    pub accel: Vec<String>,
    /// Memory of a guest, in bytes; whole MiB.
    pub memory: u64,
    /// Processors of a guest.
    pub cpus: u32,
    /// Kernel image; an absolute path.
    pub kernel: Option<String>,
    /// Its first file system; an absolute path.
    pub initrd: Option<String>,
    /// Its command line.
    pub append: String,
    /// The Ethernet address of both guests.
    pub mac: String,
    /// More arguments for QEMU.
    pub args: Vec<String>,
    /// Where sockets are; an absolute path.
    pub dir: PathBuf,
    /// How memory is copied.
    pub copy: MemoryCopy,
    /// How long the source may stand still at the end of a live copy, by QEMU's estimate.
    pub downtime: Duration,
    /// A copy that takes longer is given up.
    pub timeout: Duration,
}

/// The backend, from the section `[sync]`.
pub(super) fn backend(
    reader: &Reader<'_>,
    sync: &Section<'_>,
    timeout: Duration,
) -> Option<QemuBackend> {
    let sections = sync.table().map(|t| Section::each(reader, t, "qemu", "sync.qemu"));
    let sections = sections.unwrap_or_default();
    let Some(section) = sections.first() else {
        if sync.at("qemu").is_none() {
            let help = "add [sync.qemu] with kernel and initrd, or args with a disk to start from";
            reader.missing(sync.at.clone(), "sync.qemu", help);
        }
        return None;
    };
    if sync.at("command").is_some() {
        let reason = "a command, but the backend `qemu` runs none";
        reader.wrong_help(sync.at("command"), "sync.command", reason, "remove the line");
    }
    let file = |key: &str| {
        let path = section.path(key)?;
        if !path.is_absolute() {
            let reason = format!("`{}` is not an absolute path", path.display());
            let help = "QEMU runs in the root directory";
            reader.wrong_help(section.at(key), &section.full(key), reason, help);
        }
        Some(path.to_string_lossy().into_owned())
    };
    let words = |key: &str| {
        let words = section.strings(key, false).unwrap_or_default();
        if let Some((_, at)) = words.iter().find(|(word, _)| word.contains('\0')) {
            reader.wrong(at.clone(), &section.full(key), "contains a zero byte");
        }
        words.into_iter().map(|(word, _)| word).collect::<Vec<_>>()
    };
    let dir = PathBuf::from(file("dir").unwrap_or_else(|| DEFAULT_DIR.into()));
    if dir.as_os_str().len() > DIR_MAX {
        let reason = format!("longer than {DIR_MAX} bytes: sockets below it get too long a path");
        reader.wrong(section.at("dir"), "sync.qemu.dir", reason);
    }
    let (kernel, initrd, args) = (file("kernel"), file("initrd"), words("args"));
    if kernel.is_none() && section.at("kernel").is_none() && args.is_empty() {
        let help = "name a kernel (and its initrd), or give args with a read-only disk";
        reader.missing(section.at.clone(), "sync.qemu.kernel", help);
    }
    for key in ["initrd", "append"] {
        if section.at("kernel").is_none() && section.at(key).is_some() {
            let help = "name the kernel, or remove the line";
            reader.wrong_help(section.at(key), &section.full(key), "belongs to a kernel", help);
        }
    }
    let accel = match section.at("accel") {
        Some(_) => words("accel"),
        None => vec!["kvm".into(), "tcg".into()],
    };
    if section.is_empty_list("accel") {
        let help = "write for example accel = [\"kvm\", \"tcg\"]";
        reader.wrong_help(section.at("accel"), "sync.qemu.accel", "the list is empty", help);
    }
    let mac = section.string("mac").unwrap_or_else(|| DEFAULT_MAC.into());
    if !is_server_mac(&mac) {
        let reason = format!("`{mac}` is not the Ethernet address of one host");
        let help = "write it as \"02:00:00:00:00:10\"";
        reader.wrong_help(section.at("mac"), "sync.qemu.mac", reason, help);
    }
    let (mib, ms) = (1 << 20, Duration::from_millis(1));
    let memory = section.bytes("memory", 32 * mib..=1 << 40).unwrap_or(256 * mib);
    if memory % mib != 0 {
        reader.wrong(section.at("memory"), "sync.qemu.memory", "is not a number of whole MiB");
    }
    let append = section.string("append").unwrap_or_default();
    if append.contains('\0') {
        reader.wrong(section.at("append"), "sync.qemu.append", "contains a zero byte");
    }
    let copy = memory_copy(reader, section, file("memory_dir"));
    let downtime = section.duration("downtime", ms * 20, ms..=Duration::from_secs(10));
    let cpus = section.integer("cpus", 1..=255).and_then(|n| n.try_into().ok()).unwrap_or(1);
    let program = file("program").unwrap_or_else(|| DEFAULT_PROGRAM.into());
    Some(QemuBackend {
        program,
        accel,
        memory,
        cpus,
        kernel,
        initrd,
        append,
        mac,
        args,
        dir,
        copy,
        downtime,
        timeout,
    })
}

/// How memory is copied; `dir` is where it is, if that was said.
fn memory_copy(reader: &Reader<'_>, section: &Section<'_>, dir: Option<String>) -> MemoryCopy {
    let words = [("live", false), ("shared", true)];
    if section.choice("copy", &words) == Some(true) {
        let dir = dir.unwrap_or_else(|| DEFAULT_MEMORY_DIR.into());
        if dir.contains(',') {
            let help = "QEMU takes a comma for the end of the path";
            let at = section.at("memory_dir");
            reader.wrong_help(at, "sync.qemu.memory_dir", "contains a comma", help);
        }
        return MemoryCopy::Shared(dir.into());
    }
    if section.at("memory_dir").is_some() {
        let help = "write copy = \"shared\", or remove the line";
        let reason = "only shared memory is in a directory";
        reader.wrong_help(section.at("memory_dir"), "sync.qemu.memory_dir", reason, help);
    }
    MemoryCopy::Live
}

/// Six bytes in hexadecimal, not of a group.
fn is_server_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let byte = |part: &str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let bytes: Option<Vec<u8>> = parts.into_iter().map(byte).collect();
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes[0] & 1 == 0 && bytes != [0; 6])
}

impl Links {
    /// Where the gateway has its end of the link to a server that is a guest; none if that link is
    /// an interface.
    pub fn guest_socket(link: &str) -> Option<&Path> {
        link.strip_prefix(PREFIX).map(Path::new)
    }
}

/// Whether this is the link to a guest; a mistake in it is noted.
pub(super) fn is_guest_link(reader: &Reader<'_>, section: &Section<'_>, key: &str) -> bool {
    let Some(link) = section.string(key) else { return false };
    let Some(path) = Links::guest_socket(&link) else { return false };
    if !path.is_absolute() || link.chars().any(|c| c.is_control() || c == ',') {
        let reason = format!("`{link}` is not `unix:` and an absolute path without commas");
        reader.wrong(section.at(key), &section.full(key), reason);
    } else if path.as_os_str().len() > LINK_PATH_MAX {
        let reason = format!("the path is longer than {LINK_PATH_MAX} bytes");
        reader.wrong(section.at(key), &section.full(key), reason);
    }
    if key == "client" {
        let help = "clients are behind an interface; only links.a and links.b lead to guests";
        reader.wrong_help(section.at(key), "links.client", "is the link of a guest", help);
    }
    true
}

/// Guests are behind links of their kind, and nobody else is.
pub(super) fn check_links(reader: &Reader<'_>, root: &DeTable<'_>, config: &Config) {
    let is_qemu = matches!(config.sync.backend, Some(Backend::Qemu(_)));
    for (key, link) in [("a", &config.links.a), ("b", &config.links.b)] {
        let at = Section::top_quiet(root, "links", key);
        let is_guest = Links::guest_socket(link).is_some();
        let full = format!("links.{key}");
        if is_qemu && !is_guest && !link.is_empty() {
            let reason = format!("`{link}` is an interface, but the servers are guests of QEMU");
            let help = format!("write {key} = \"unix:/run/shadowvm/link-{key}\"");
            reader.wrong_help(at, &full, reason, &help);
        } else if !is_qemu && is_guest {
            let help = "write [sync] with backend = \"qemu\", or name an interface";
            reader.wrong_help(at, &full, "is the link of a guest, but nobody starts guests", help);
        }
    }
}
