//! `shadowvm doctor`: does this host have what the gateway needs?
//!
//! Looks and never changes anything. Each finding that is not good comes with the line that mends
//! it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use serde::Serialize;

use super::door::answer;
use super::run::agents;
use super::{Format, config_error, exit};
use crate::config::{self, Backend, Config, DEFAULT_FILE, MemoryCopy, Tree};
use crate::engine::{LegId, Source, VipPlan};
use crate::io::writes;
use crate::sync::agent::link::{self, AgentSetup, LinkError};
use crate::sync::container::criu;
use crate::sync::container::space::Space;
use crate::sync::mirror::end::foreign;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm doctor                        this host, and the links of the usual configuration
  shadowvm doctor -c shadowvm.toml       the links of another configuration
  shadowvm doctor -o json                for programs

Exit status: 0 nothing stands in the way, 1 something does, 78 the configuration is wrong.")]
pub struct Args {
    /// The configuration file whose links are examined
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    output: Format,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Good,
    /// Works, but a part does not, or not as well.
    Warn,
    /// The gateway cannot run so.
    Fail,
    /// Something to know.
    Note,
}

/// One check.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
    fix: Option<String>,
}

impl Finding {
    fn good(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Good, what: what.into(), fix: None }
    }

    fn bad(
        check: &'static str,
        verdict: Verdict,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { check, verdict, what: what.into(), fix: Some(fix.into()) }
    }
}

/// Checks and shows.
pub fn run(args: Args) -> ExitCode {
    let usual = Path::new(DEFAULT_FILE);
    let file = args.config.as_deref().or_else(|| usual.exists().then_some(usual));
    let config = match file.map(Config::load).transpose() {
        Ok(config) => config,
        Err(error) => return config_error(&error),
    };
    let mut findings = host();
    match &config {
        Some(config) => {
            findings.extend(links(config).into_iter().chain(mirror(config)).chain(guests(config)));
            findings.extend(containers(config).into_iter().chain(asked(config)));
        }
        None => findings.push(Finding::bad(
            "links",
            Verdict::Note,
            "no configuration, so no links were examined",
            "shadowvm doctor -c FILE",
        )),
    }
    findings.push(match config.as_ref().and_then(|config| config.vip.as_ref()) {
        Some(plan) => way_back(plan),
        None => management(),
    });
    let code = answer(args.output, &findings, || findings.iter().map(text).collect());
    if findings.iter().any(|finding| finding.verdict == Verdict::Fail) {
        return ExitCode::from(exit::NO);
    }
    code
}

fn text(finding: &Finding) -> String {
    let mark = match finding.verdict {
        Verdict::Good => "ok  ",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
        Verdict::Note => "note",
    };
    let lead = if finding.verdict == Verdict::Note { "" } else { "fix: " };
    let fix = finding.fix.as_ref().map(|fix| format!("       {lead}{fix}\n")).unwrap_or_default();
    format!("{mark}   {}: {}\n{fix}", finding.check, finding.what)
}

/// What does not depend on a configuration.
fn host() -> Vec<Finding> {
    let caps = fs::read_to_string("/proc/self/status").ok().and_then(|s| effective_caps(&s));
    let caps = caps.unwrap_or(0);
    vec![
        capabilities(caps),
        packet_socket(),
        receive_buffer(caps),
        sandbox(),
        user_namespaces(),
        runtime_dir(),
    ]
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;

fn effective_caps(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// The command that lets an ordinary user run the gateway.
pub(super) fn setcap_line() -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "shadowvm".into());
    format!("run as root, or: setcap cap_net_raw,cap_net_admin+ep {}", program.display())
}

fn capabilities(caps: u64) -> Finding {
    let missing: Vec<&str> = [(CAP_NET_RAW, "CAP_NET_RAW"), (CAP_NET_ADMIN, "CAP_NET_ADMIN")]
        .into_iter()
        .filter_map(|(bit, name)| (caps & (1 << bit) == 0).then_some(name))
        .collect();
    match missing.is_empty() {
        true => Finding::good("capabilities", "CAP_NET_RAW and CAP_NET_ADMIN are there"),
        false => {
            let what = format!("without {} the links cannot be opened", missing.join(" and "));
            Finding::bad("capabilities", Verdict::Fail, what, setcap_line())
        }
    }
}

fn packet_socket() -> Finding {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let name = "packet socket";
    match socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None) {
        Ok(_) => Finding::good(name, "AF_PACKET sockets can be opened"),
        Err(nix::errno::Errno::EPERM) => {
            Finding::bad(name, Verdict::Fail, "AF_PACKET is not permitted", setcap_line())
        }
        Err(nix::errno::Errno::EAFNOSUPPORT) => {
            let fix = "modprobe af_packet, or a kernel with CONFIG_PACKET";
            Finding::bad(name, Verdict::Fail, "this kernel has no AF_PACKET", fix)
        }
        Err(error) => {
            let fix = "read the kernel's log (dmesg)";
            Finding::bad(name, Verdict::Fail, format!("AF_PACKET fails: {error}"), fix)
        }
    }
}

/// Bytes of socket buffer that a burst of 64 KiB frames needs.
const RMEM_WANTED: u64 = 32 << 20;

fn receive_buffer(caps: u64) -> Finding {
    let name = "receive buffer";
    if caps & (1 << CAP_NET_ADMIN) != 0 {
        return Finding::good(name, "taken as large as needed (CAP_NET_ADMIN)");
    }
    match number("/proc/sys/net/core/rmem_max") {
        Some(max) if max >= RMEM_WANTED => Finding::good(name, format!("rmem_max is {max}")),
        max => {
            let max = max.map_or_else(|| "unknown".into(), |max| max.to_string());
            let what = format!("rmem_max is {max}: bursts may be lost");
            let fix = format!("sysctl -w net.core.rmem_max={RMEM_WANTED}");
            Finding::bad(name, Verdict::Warn, what, fix)
        }
    }
}

fn sandbox() -> Finding {
    let name = "sandbox";
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match actions.split_whitespace().any(|action| action == "kill_process") {
        true => Finding::good(name, "the kernel can confine `run` to the system calls it needs"),
        false => Finding::bad(
            name,
            Verdict::Warn,
            "this kernel has no seccomp filters: `run` goes on unconfined",
            "a kernel with CONFIG_SECCOMP_FILTER (Linux 4.14), or security.sandbox = false",
        ),
    }
}

fn user_namespaces() -> Finding {
    let name = "user namespaces";
    for (file, is_bad, key) in [
        ("/proc/sys/user/max_user_namespaces", 0, "user.max_user_namespaces=16384"),
        ("/proc/sys/kernel/unprivileged_userns_clone", 0, "kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            1,
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ] {
        if number(file) == Some(is_bad) {
            let what = "restricted: as an ordinary user, `demo` has to simulate its network";
            return Finding::bad(name, Verdict::Warn, what, format!("sysctl -w {key}"));
        }
    }
    Finding::good(name, "allowed: `demo` works for ordinary users")
}

fn runtime_dir() -> Finding {
    let dir = Path::new("/run/shadowvm");
    let exists = dir.is_dir();
    let probe = if exists { dir } else { Path::new("/run") };
    let is_writable = nix::unistd::access(probe, nix::unistd::AccessFlags::W_OK).is_ok();
    match is_writable {
        true => Finding::good("runtime directory", "/run/shadowvm is usable"),
        false => {
            let what = "/run/shadowvm is not writable: no state file, no admin socket there";
            let fix = "install -d -o $USER /run/shadowvm, or set state.file and admin.socket";
            Finding::bad("runtime directory", Verdict::Warn, what, fix)
        }
    }
}

/// What the links of the configuration are like.
fn links(config: &Config) -> Vec<Finding> {
    let links = &config.links;
    let names = [&links.client, &links.a, &links.b];
    if [names[1], names[2]].iter().any(|name| config::Links::guest_socket(name).is_some()) {
        return link(names[0]);
    }
    let mut findings: Vec<Finding> = names.iter().flat_map(|name| link(name)).collect();
    let mtus: Vec<Option<u64>> = names.iter().map(|name| number(sys(name, "mtu"))).collect();
    if let [Some(client), Some(a), Some(b)] = mtus[..]
        && (a < client || b < client)
    {
        let what = format!(
            "MTU {client} towards the clients, {a} and {b} towards the servers: large segments \
             are cut by the gateway"
        );
        let fix =
            format!("ip link set {} mtu {client}; ip link set {} mtu {client}", names[1], names[2]);
        findings.push(Finding::bad("mtu", Verdict::Warn, what, fix));
    }
    findings
}

fn link(name: &str) -> Vec<Finding> {
    let check = "link";
    let entries: Vec<InterfaceAddress> =
        getifaddrs().into_iter().flatten().filter(|entry| entry.interface_name == name).collect();
    let Some(first) = entries.first() else {
        let what = format!("{name} does not exist");
        let fix = "ip link shows the names; set them in [links]";
        return vec![Finding::bad(check, Verdict::Fail, what, fix)];
    };
    let mut findings = Vec::new();
    let hardware =
        entries.iter().filter_map(|e| e.address.as_ref()?.as_link_addr().copied()).next();
    if hardware.is_none_or(|link| link.hatype() != ARPHRD_ETHER) {
        let what = format!("{name} is not an Ethernet interface");
        let fix = "choose an Ethernet, veth or tap interface in [links]";
        findings.push(Finding::bad(check, Verdict::Fail, what, fix));
    }
    if !first.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING) {
        let what = format!("{name} has no carrier, or is down (`run` sets it up)");
        let fix = format!("ip link set {name} up, and see that the other end is connected");
        findings.push(Finding::bad(check, Verdict::Warn, what, fix));
    }
    if sys(name, "brport").exists() || sys(name, "master").exists() {
        let what = format!("{name} belongs to a bridge or bond, which forwards past the gateway");
        let fix = format!("ip link set {name} nomaster");
        findings.push(Finding::bad(check, Verdict::Fail, what, fix));
    }
    let addresses: Vec<String> = entries.iter().filter_map(address_of).collect();
    if !addresses.is_empty() {
        let what = format!(
            "{name} has the address {}: this host's own kernel would answer there",
            addresses.join(", ")
        );
        let fix = format!("ip addr flush dev {name} (use another interface to reach this host)");
        findings.push(Finding::bad(check, Verdict::Fail, what, fix));
    }
    if number(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")) == Some(0) {
        let what = format!("{name} has IPv6 on: this host's own kernel speaks there");
        let fix = format!("sysctl -w net.ipv6.conf.{name}.disable_ipv6=1 (`run` does it too)");
        findings.push(Finding::bad(check, Verdict::Warn, what, fix));
    }
    if findings.is_empty() {
        let what = format!("{name}: Ethernet, carrier, no address; offloads may stay as they are");
        findings.push(Finding::good(check, what));
    }
    findings
}

/// The kernel's number for Ethernet among kinds of hardware.
const ARPHRD_ETHER: u16 = 1;

/// A file about the interface; one that is never there if /sys shows another network namespace.
fn sys(name: &str, file: &str) -> PathBuf {
    let dir = PathBuf::from("/sys/class/net").join(name);
    let index = nix::net::if_::if_nametoindex(name).ok().map(u64::from);
    match index.is_some() && number(dir.join("ifindex")) == index {
        true => dir.join(file),
        false => "/nonexistent".into(),
    }
}

/// The entry's address, unless it is IPv6 link-local: that one goes with IPv6.
fn address_of(entry: &InterfaceAddress) -> Option<String> {
    let address = entry.address.as_ref()?;
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().to_string());
    }
    let v6 = address.as_sockaddr_in6()?.ip();
    (!v6.is_unicast_link_local()).then(|| v6.to_string())
}

/// What the directories of a mirror are like.
fn mirror(config: &Config) -> Vec<Finding> {
    let Some(backend) = config.sync.mirror() else { return Vec::new() };
    let mut findings = Vec::new();
    let mut is_watched = backend.is_watching;
    for server in &config.servers {
        let dir = match &server.tree {
            Some(Tree::Dir(dir)) => Path::new(dir),
            Some(Tree::Command(argv)) => {
                let what = format!("server {}: reached by {}, not tried", server.name, argv[0]);
                let fix = "run the command by hand: it waits silently for its input";
                findings.push(Finding::bad("mirror", Verdict::Note, what, fix));
                continue;
            }
            None => continue,
        };
        findings.push(directory(&server.name, dir));
        if let Some(name) = foreign(dir).filter(|_| backend.is_watching) {
            is_watched = false;
            let what = format!("{} is {name}: every sync looks at everything", dir.display());
            let fix = "where that is too slow, run an end on the file server (server.dir_command)";
            findings.push(Finding::bad("mirror", Verdict::Warn, what, fix));
        }
    }
    if is_watched && let Some(max) = number("/proc/sys/fs/inotify/max_user_watches") {
        let what = format!("{max} directories can be watched, those of both trees together");
        findings.push(match max >= WATCHES_WANTED {
            true => Finding::good("mirror", what),
            false => {
                let fix = format!("sysctl -w fs.inotify.max_user_watches={WATCHES_WANTED}");
                Finding::bad("mirror", Verdict::Warn, what, fix)
            }
        });
    }
    findings
}

/// Whether the servers' agents answer with the key, and what they see.
fn asked(config: &Config) -> Vec<Finding> {
    let setups = LegId::ALL.into_iter().filter_map(|leg| Some((leg, agents::setup(config, leg)?)));
    let of = |(leg, setup): (LegId, AgentSetup)| {
        let server = &config.servers[leg.index()].name;
        let at = format!("server {server}: the agent at {}", setup.address);
        match link::ask(&setup) {
            Ok(Some(report)) => Finding::good("agent", format!("{at} answers: {report}")),
            Ok(None) => {
                let what = format!("{at} answers, and watches no service");
                let fix = "for failover by its evidence start it with --service ADDRESS:PORT";
                Finding::bad("agent", Verdict::Note, what, fix)
            }
            Err(error) => {
                let (address, key) = (&setup.address, setup.key.display());
                let fix = match error {
                    LinkError::Key(_) => format!(
                        "one key for the gateway and both agents: shadowvm agent key {key}, copied \
                         to each host with mode 0600"
                    ),
                    LinkError::Connect { .. } | LinkError::Handshake { .. } => format!(
                        "on that host: shadowvm agent --listen {address} --key {key} --dir DIR"
                    ),
                };
                Finding::bad("agent", Verdict::Fail, format!("server {server}: {error}"), fix)
            }
        }
    };
    setups.map(of).collect()
}

/// What the servers are made of, if they are virtual machines.
fn guests(config: &Config) -> Vec<Finding> {
    let Some(Backend::Qemu(guests)) = &config.sync.backend else { return Vec::new() };
    let named = [Some(&guests.program), guests.kernel.as_ref(), guests.initrd.as_ref()];
    let files = named.into_iter().flatten().map(|file| match File::open(file) {
        Ok(_) => Finding::good("guests", format!("{file} is there")),
        Err(error) => {
            let fix = match *file == guests.program {
                true => "apt-get install qemu-system-x86, or correct sync.qemu.program",
                false => "correct [sync.qemu]",
            };
            Finding::bad("guests", Verdict::Fail, format!("{file}: {error}"), fix)
        }
    });
    let mut findings: Vec<Finding> = files.collect();
    let wants_kvm = guests.accel.iter().any(|accel| accel.starts_with("kvm"));
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_x86 = cfg!(target_arch = "x86_64");
    let trouble = match kvm {
        Err(error) => Some(format!("/dev/kvm: {error}: guests are emulated in software, and slow")),
        Ok(_) if is_x86 && !flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")) => {
            let what = "/dev/kvm is there, but the processor has no virtualization: a guest may \
                        hang; until that is mended, write accel = [\"tcg\"]";
            Some(what.to_owned())
        }
        Ok(_) => None,
    };
    if let Some(what) = trouble.filter(|_| wants_kvm) {
        let fix = "modprobe kvm_intel or kvm_amd; in a virtual machine, turn on nesting outside";
        findings.push(Finding::bad("guests", Verdict::Warn, what, fix));
    }
    if let MemoryCopy::Shared(dir) = &guests.copy {
        findings.extend([memory_dir(dir, guests.memory), notes()]);
    }
    findings
}

/// Guests of whose memory there are files: the servers and the standby.
const GUESTS: u64 = 3;

/// Where guests' memory is, if it is files.
fn memory_dir(dir: &Path, memory: u64) -> Finding {
    // It is made when it is needed; then it is where the nearest folder is that there is.
    let there = dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let system = match rustix::fs::statfs(there) {
        Ok(system) => system,
        Err(error) => {
            let what = format!("{}: {error}", there.display());
            return Finding::bad("guests", Verdict::Fail, what, "correct sync.qemu.memory_dir");
        }
    };
    let shown = dir.display();
    if system.f_type != TMPFS {
        let what = format!("{shown} is not in memory: guests would write to a disk");
        let fix = format!("mount -t tmpfs tmpfs {shown}, or correct sync.qemu.memory_dir");
        return Finding::bad("guests", Verdict::Fail, what, fix);
    }
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "memory"));
    let taken: u64 = files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
    let block = u64::try_from(system.f_bsize).unwrap_or(0);
    let free = system.f_bavail.saturating_mul(block).saturating_add(taken);
    let mib = |bytes: u64| bytes >> 20;
    match free >= GUESTS * memory {
        true => Finding::good("guests", format!("{shown} has {} MiB for memory", mib(free))),
        false => {
            let what = format!(
                "{shown} has {} MiB, and {GUESTS} guests (two servers and a standby) have {} MiB: \
                 a guest that finds no room ends",
                mib(free),
                mib(GUESTS * memory)
            );
            let fix = format!("mount -o remount,size=... {}, or less memory", there.display());
            Finding::bad("guests", Verdict::Fail, what, fix)
        }
    }
}

/// The file system's kind (statfs(2)).
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// Whether it can be seen what guests write.
fn notes() -> Finding {
    let compared = "each sync compares all of the guests' memory, and stops them for that long";
    if let Err(error) = writes::probe() {
        let what = format!("what guests write cannot be noted: {error}; {compared}");
        let fix = "Linux 6.7 or later with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP";
        return Finding::bad("guests", Verdict::Warn, what, fix);
    }
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let may_trace = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_PTRACE);
    match matches!(scope.trim(), "" | "0") || (may_trace.unwrap_or(false) && scope.trim() != "3") {
        true => Finding::good("guests", "what guests write can be noted"),
        false => {
            let what = format!(
                "kernel.yama.ptrace_scope is {}: nobody may ask a guest's QEMU to note what it \
                 writes; {compared}",
                scope.trim()
            );
            let fix = "run as root, or sysctl kernel.yama.ptrace_scope=0";
            Finding::bad("guests", Verdict::Warn, what, fix)
        }
    }
}

/// Whether a process can be copied here, and the servers are where they should be, if they are
/// containers.
fn containers(config: &Config) -> Vec<Finding> {
    let Some(Backend::Container(containers)) = &config.sync.backend else { return Vec::new() };
    let mut findings = Vec::new();
    findings.push(match criu::probe(&containers.criu, &containers.dir) {
        Ok(version) => {
            let what = format!("CRIU {version} has written a process and brought it back");
            Finding::good("containers", what)
        }
        Err(why) => Finding::bad("containers", Verdict::Fail, why, criu::FIX),
    });
    for server in &config.servers {
        let Some(file) = &server.container else { continue };
        let root = Space::find(file).and_then(|space| space.root());
        findings.push(match root {
            Ok((_, pid)) => {
                let what = format!("server {}: process {pid} of its container", server.name);
                Finding::good("containers", what)
            }
            Err(why) => Finding::bad(
                "containers",
                // A backup that is not there yet is made by the first sync.
                if server.is_primary { Verdict::Fail } else { Verdict::Warn },
                format!("server {}: {why}", server.name),
                "start the server in its container, or correct server.container",
            ),
        });
    }
    findings
}

/// Directories that a tree of some size may have.
const WATCHES_WANTED: u64 = 100_000;

fn directory(server: &str, dir: &Path) -> Finding {
    use nix::unistd::{AccessFlags, access};
    let shown = format!("server {server}: {}", dir.display());
    let (is_dir, all) = (dir.is_dir(), AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK);
    match (is_dir, is_dir && access(dir, all).is_ok()) {
        (true, true) => Finding::good("mirror", shown),
        (false, _) => {
            let fix = format!("mkdir -p {}, or correct server.dir", dir.display());
            Finding::bad("mirror", Verdict::Fail, format!("{shown} is no directory"), fix)
        }
        (true, false) => {
            let fix = "run as root, or give the directory to who runs shadowvm";
            Finding::bad("mirror", Verdict::Fail, format!("{shown} cannot be changed"), fix)
        }
    }
}

/// In clone addressing both servers have one address, so the backup cannot be reached by it.
fn management() -> Finding {
    let what = "both servers share one address, so the backup has no network of its own through \
                the gateway: administration and sync need a second interface on each server";
    let fix = "libvirt: a second <interface type='network'> on a network of its own; containers: a \
               second veth or `docker network connect`; plain machines: a second port or a VLAN \
               that does not pass the gateway. Give it an address of its own on each server and \
               use that in the sync command";
    Finding::bad("management", Verdict::Note, what, fix)
}

/// In vip addressing what the servers have to know cannot be seen from here.
fn way_back(plan: &VipPlan) -> Finding {
    let own = plan.own.iter().flatten().map(|network| network.address().to_string());
    let own: Vec<String> = own.collect();
    let (what, fix) = match plan.source {
        Source::Client => (
            "the servers answer the clients' own addresses: their route to the clients has to be \
             the gateway",
            format!("on each server the default route, or one to the clients: {}", own.join(", ")),
        ),
        Source::Gateway => (
            "the servers see the gateway only: nothing on them changes, and clients cannot be told \
             apart there",
            format!("where they filter by address, let these in: {}", own.join(", ")),
        ),
    };
    Finding::bad("way back", Verdict::Note, what, fix)
}

fn number(file: impl AsRef<Path>) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_and_missing_ones_get_a_line_that_mends() {
        let status = "Name:\tx\nCapEff:\t0000000000002000\nSeccomp:\t0\n";
        let caps = effective_caps(status).expect("it is there");
        let finding = capabilities(caps);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.what.contains("CAP_NET_ADMIN") && !finding.what.contains("CAP_NET_RAW"));
        assert!(finding.fix.is_some_and(|fix| fix.contains("setcap")));
        assert_eq!(capabilities(0x3000).verdict, Verdict::Good);
        assert_eq!(effective_caps("nothing"), None);
    }

    #[test]
    fn a_link_that_is_not_there_fails_and_the_loopback_is_no_ethernet() {
        let missing = link("nonexistent0");
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].verdict, Verdict::Fail);
        let lo = link("lo");
        assert!(lo.iter().any(|finding| finding.what.contains("not an Ethernet")), "{lo:?}");
    }

    #[test]
    fn a_mirror_without_its_directory_fails_and_says_how_to_make_it() {
        assert_eq!(directory("a", Path::new("/")).check, "mirror");
        let missing = directory("a", Path::new("/nonexistent/tree"));
        assert_eq!(missing.verdict, Verdict::Fail);
        assert!(missing.fix.is_some_and(|fix| fix.contains("mkdir -p /nonexistent/tree")));
    }

    #[test]
    fn memory_of_guests_wants_a_file_system_in_memory_with_room() {
        let finding = memory_dir(Path::new("/proc/guests"), 1 << 20);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.what.contains("not in memory"), "{}", finding.what);
        let shm = Path::new("/dev/shm/of-a-test-that-makes-nothing");
        assert_eq!(memory_dir(shm, 0).verdict, Verdict::Good);
        let full = memory_dir(shm, 1 << 60);
        assert_eq!(full.verdict, Verdict::Fail);
        assert!(full.what.contains("a standby") && full.fix.is_some(), "{}", full.what);
        let notes = notes();
        assert_eq!(notes.verdict == Verdict::Good, notes.fix.is_none(), "{notes:?}");
    }

    #[test]
    fn whatever_is_not_good_says_how_to_mend_it() {
        for finding in host().into_iter().chain([management()]) {
            assert_eq!(finding.verdict == Verdict::Good, finding.fix.is_none(), "{finding:?}");
        }
    }
}
