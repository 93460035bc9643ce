//! Document -> [`Config`]: what each key may say, and what the keys may say together.
//!
//! Owns the rules between keys. It reads every section even if an earlier one is wrong, so that
//! one run shows all mistakes.

use std::net::IpAddr;

use toml::de::DeTable;

use super::evidence::evidence;
use super::mirror;
use super::problem::Problem;
use super::read::{At, Item, Reader, Section, refuse_unknown_sections};
use super::vip::{self, Addressing, Own};
use super::{
    Backend, Compare, Config, DEFAULT_SOCKET, DEFAULT_STATE_FILE, ExecBackend, Failover, Level,
    Limits, Links, Log, RunAs, Server, Service, Sync,
};
use super::{agent, container, qemu};
use crate::engine::{
    Duration, EngineConfig, Fence, LagPolicy, Mode, Reprotect, Rule, Source, UdpPolicy, is_token,
};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Longest name of a Linux interface.
const INTERFACE_NAME_MAX: usize = 15;
/// Longest path of a Unix socket.
const SOCKET_PATH_MAX: usize = 107;
const NAME_MAX: usize = 64;

/// Reads `source`; all mistakes if there is any.
pub(super) fn parse(source: &str) -> Result<Config, Vec<Problem>> {
    let (document, syntax) = DeTable::parse_recoverable(source);
    let reader = Reader::new(source, &syntax);
    let root = document.get_ref();
    refuse_unknown_sections(&reader, root);
    let gateway = Section::top(&reader, root, "gateway");
    let mode = gateway.choice(
        "mode",
        &[
            ("protect", Mode::Protect),
            ("observe", Mode::Observe),
            ("passthrough", Mode::Passthrough),
        ],
    );
    let links = links(&reader, root);
    let (servers, own) = servers(&reader, root).unzip();
    let (service, addressing) = service(&reader, root, servers.as_ref()).unzip();
    let service = service.unwrap_or_else(Service::nothing);
    let vip = addressing.zip(own).and_then(|(addressing, own)| {
        vip::plan(&reader, root, &addressing, &service.addresses, &own)
    });
    let compare = compare(&reader, root, &service.ports);
    let agent = agent::agent(&reader, root, servers.as_ref());
    let sync = sync(&reader, root, servers.as_ref());
    let config = Config {
        mode: mode.unwrap_or_default(),
        links: links.unwrap_or_else(Links::nowhere),
        service,
        vip,
        servers: servers.unwrap_or_else(Server::nobody),
        agent,
        compare,
        sync,
        failover: failover(&reader, root),
        limits: limits(&reader, root),
        record: Section::top(&reader, root, "capture").path("record"),
        evidence: evidence(&reader, root),
        state_file: Section::top(&reader, root, "state")
            .path("file")
            .unwrap_or_else(|| DEFAULT_STATE_FILE.into()),
        socket: socket(&reader, root),
        log: log(&reader, root),
        run_as: run_as(&reader, root),
        is_sandboxed: Section::top(&reader, root, "security").flag("sandbox", true),
    };
    probe_address_is_free(&reader, root, &config);
    mirror::check_trees(&reader, root, &config);
    qemu::check_links(&reader, root, &config);
    container::check_containers(&reader, root, &config);
    agent::check_agents(&reader, root, &config);
    let problems = reader.finish();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

// Stand-ins while the rest of a wrong file is read; a problem was noted for each, so none of
// them ever leaves `parse`.
impl Links {
    fn nowhere() -> Self {
        Self { client: String::new(), a: String::new(), b: String::new() }
    }
}
impl Service {
    fn nothing() -> Self {
        Self { name: String::new(), addresses: Vec::new(), ports: Vec::new() }
    }
}
impl Server {
    fn nobody() -> [Self; 2] {
        [true, false].map(|is_primary| Self {
            name: String::new(),
            is_primary,
            tree: None,
            agent: None,
            container: None,
        })
    }
}

fn links(reader: &Reader<'_>, root: &DeTable<'_>) -> Option<Links> {
    let section = Section::top(reader, root, "links");
    if !section.is_present() {
        let help = "add [links] with client, a and b: the names of three interfaces";
        reader.missing(None, "links", help);
        return None;
    }
    let names = ["client", "a", "b"].map(|key| {
        let name = section.string(key);
        if name.is_none() && section.at(key).is_none() {
            reader.missing(section.at.clone(), &section.full(key), "name an interface");
        }
        if let Some(name) = &name
            && !qemu::is_guest_link(reader, &section, key)
            && !is_interface_name(name)
        {
            let reason = format!("`{name}` is not the name of an interface (1 to 15 characters)");
            reader.wrong(section.at(key), &section.full(key), reason);
        }
        name
    });
    for (i, key) in [(1, "a"), (2, "b")] {
        if names[i].is_some() && names[..i].contains(&names[i]) {
            let help = "each link is an interface of its own";
            let reason = "is the same interface as another link";
            reader.wrong_help(section.at(key), &section.full(key), reason, help);
        }
    }
    let [client, a, b] = names;
    Some(Links { client: client?, a: a?, b: b? })
}

fn is_interface_name(name: &str) -> bool {
    (1..=INTERFACE_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

fn is_plain_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn servers(reader: &Reader<'_>, root: &DeTable<'_>) -> Option<([Server; 2], [Own; 2])> {
    let sections = Section::each(reader, root, "server", "server");
    let two = "write exactly two [[server]] sections: one primary, one backup";
    if sections.is_empty() {
        if !root.contains_key("server") {
            reader.missing(None, "server", two);
        }
        return None;
    }
    let mut servers: Vec<Server> = Vec::new();
    let own: Vec<Own> = sections.iter().map(|section| vip::own(reader, section)).collect();
    for section in &sections {
        let role = section.choice("role", &[("primary", true), ("backup", false)]);
        if section.at("role").is_none() {
            reader.missing(section.at.clone(), "server.role", "write \"primary\" or \"backup\"");
        }
        let tree = mirror::tree(reader, section);
        let agent = agent::address(reader, section, tree.as_ref());
        let container = container::init(reader, section);
        let Some(name) = name_of(reader, section) else { continue };
        if servers.iter().any(|other| other.name == name) {
            let reason = format!("two servers are called `{name}`");
            reader.wrong_help(section.at("name"), "server.name", reason, "rename one of them");
        }
        if let Some(is_primary) = role {
            if servers.iter().any(|other| other.is_primary == is_primary) {
                let word = if is_primary { "primary" } else { "backup" };
                let reason = format!("a second {word}");
                reader.wrong_help(section.at("role"), "server.role", reason, two);
            }
            servers.push(Server { name, is_primary, tree, agent, container });
        }
    }
    if sections.len() != 2 {
        let at = sections.last().and_then(|s| s.at.clone());
        reader.wrong_help(at, "server", format!("{} given", sections.len()), two);
    }
    servers.try_into().ok().zip(own.try_into().ok())
}

fn name_of(reader: &Reader<'_>, section: &Section<'_>) -> Option<String> {
    if section.at("name").is_none() {
        reader.missing(section.at.clone(), &section.full("name"), "give it a name");
    }
    let name = section.string("name")?;
    if !is_plain_name(&name) {
        let reason = format!("`{name}` is not a name");
        let help = "1 to 64 letters, digits, `_`, `.` or `-`";
        reader.wrong_help(section.at("name"), &section.full("name"), reason, help);
    }
    Some(name)
}

fn service(
    reader: &Reader<'_>,
    root: &DeTable<'_>,
    servers: Option<&[Server; 2]>,
) -> Option<(Service, Addressing)> {
    let sections = Section::each(reader, root, "service", "service");
    let Some(section) = sections.first() else {
        if !root.contains_key("service") {
            let help = "add [service] with addressing = \"clone\" or \"vip\", address and ports";
            reader.missing(None, "service", help);
        }
        return None;
    };
    if let Some(second) = sections.get(1) {
        let reason = "more than one service is not supported by this version";
        reader.wrong_help(second.at.clone(), "service", reason, "keep one");
    }
    let is_vip = addressing(reader, section);
    let source =
        section.choice("source", &[("client", Source::Client), ("gateway", Source::Gateway)]);
    if section.at("source").is_some() && !is_vip {
        let help = "remove it, or write addressing = \"vip\"";
        let reason = "belongs to vip addressing";
        reader.wrong_help(section.at("source"), "service.source", reason, help);
    }
    let name = match section.at("name") {
        Some(_) => name_of(reader, section)?,
        None => "default".into(),
    };
    if let (Some(named), Some(servers)) = (section.strings("servers", false), servers) {
        let mut named: Vec<_> = named.into_iter().map(|(name, _)| name).collect();
        let mut all: Vec<_> = servers.iter().map(|s| s.name.clone()).collect();
        named.sort();
        all.sort();
        if named != all {
            let reason = format!("must be the two servers, `{}` and `{}`", all[0], all[1]);
            reader.wrong(section.at("servers"), "service.servers", reason);
        }
    }
    let addresses = addresses(reader, section, is_vip);
    let (ports, mapped) = ports(reader, section, is_vip);
    let addressing = Addressing { is_vip, source: source.unwrap_or_default(), ports: mapped };
    Some((Service { name, addresses, ports }, addressing))
}

/// Whether it is vip.
fn addressing(reader: &Reader<'_>, section: &Section<'_>) -> bool {
    if section.at("addressing").is_none() {
        let help =
            "\"clone\": both servers share one MAC and IP address; \"vip\": each has its own";
        reader.missing(section.at.clone(), "service.addressing", help);
    }
    section.choice("addressing", &[("clone", false), ("vip", true)]).unwrap_or(false)
}

fn addresses(reader: &Reader<'_>, section: &Section<'_>, is_vip: bool) -> Vec<IpAddr> {
    let key = "service.address";
    let help = "an IPv4 or IPv6 address, or a list of one of each";
    if section.at("address").is_none() {
        reader.missing(section.at.clone(), key, help);
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (text, at) in section.strings("address", true).unwrap_or_default() {
        let Some(address) = host_address(reader, &at, key, &text) else { continue };
        if addresses.contains(&address) {
            reader.wrong(at, key, format!("{address} is given twice"));
        } else if !is_vip && addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            reader.wrong_help(at, key, "two addresses of one family", help);
        } else {
            addresses.push(address);
        }
    }
    if section.is_empty_list("address") {
        reader.wrong_help(section.at("address"), key, "the list is empty", help);
    }
    addresses
}

/// An address that one host can have.
pub(super) fn host_address(reader: &Reader<'_>, at: &At, key: &str, text: &str) -> Option<IpAddr> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let help = if text.contains('/') {
            "leave out the prefix length: \"192.0.2.10\""
        } else {
            "write it as \"192.0.2.10\" or \"2001:db8::10\""
        };
        reader.wrong_help(at.clone(), key, format!("`{text}` is not an IP address"), help);
        return None;
    };
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    if address.is_multicast()
        || address.is_unspecified()
        || address.is_loopback()
        || is_broadcast
        || is_mapped
    {
        reader.wrong(at.clone(), key, format!("{address} cannot be the address of a host"));
        return None;
    }
    Some(address)
}

/// The service's ports, and those that the servers serve at another one.
fn ports(reader: &Reader<'_>, section: &Section<'_>, is_vip: bool) -> (Vec<u16>, Vec<(u16, u16)>) {
    let key = "service.ports";
    if section.at("ports").is_none() {
        reader.missing(section.at.clone(), key, "list the TCP ports to protect: ports = [80]");
        return (Vec::new(), Vec::new());
    }
    let Some(listed) = section.items("ports", 1..=65535) else { return (Vec::new(), Vec::new()) };
    let mut ports: Vec<(u16, u16)> = Vec::new();
    for (item, at) in listed {
        let pair = match &item {
            Item::Number(number) => u16::try_from(*number).ok().map(|port| (port, port)),
            Item::Text(text) if is_vip => port_pair(text),
            Item::Text(_) => None,
        };
        let Some((port, server)) = pair else {
            let reason = "each must be a whole number, 1 to 65535";
            match is_vip {
                true => {
                    let help = "or \"8080:80\": the service's 8080 is the servers' 80";
                    reader.wrong_help(at, key, reason, help);
                }
                false => reader.wrong(at, key, reason),
            }
            continue;
        };
        if ports.iter().any(|(other, _)| *other == port) {
            reader.wrong(at, key, format!("{port} is listed twice"));
        } else if ports.iter().any(|(_, other)| *other == server) {
            let reason = format!("the servers' port {server} is listed twice");
            let help = "answers from it could not be told apart";
            reader.wrong_help(at, key, reason, help);
        } else {
            ports.push((port, server));
        }
    }
    if section.is_empty_list("ports") {
        reader.wrong_help(section.at("ports"), key, "no port", "list at least one: ports = [80]");
    }
    let mapped = ports.iter().copied().filter(|(port, server)| port != server).collect();
    (ports.into_iter().map(|(port, _)| port).collect(), mapped)
}

/// "8080:80"
fn port_pair(text: &str) -> Option<(u16, u16)> {
    let (port, server) = text.split_once(':')?;
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    number(port).zip(number(server))
}

fn compare(reader: &Reader<'_>, root: &DeTable<'_>, served: &[u16]) -> Compare {
    let defaults = EngineConfig::default();
    let section = Section::top(reader, root, "compare");
    let limit = Duration::from_secs(60);
    let hold_soft = section.duration("hold_soft", defaults.hold_soft, MS..=limit);
    let hold_hard = section.duration("hold_hard", defaults.hold_hard, MS..=limit);
    if hold_soft > hold_hard {
        let key = if section.at("hold_hard").is_some() { "hold_hard" } else { "hold_soft" };
        let reason = "hold_hard is shorter than hold_soft";
        let help = "hold_soft only counts and probes, hold_hard decides: it comes later";
        reader.wrong_help(section.at(key), &section.full(key), reason, help);
    }
    let on_lag = section
        .choice("on_lag", &[("available", LagPolicy::Available), ("strict", LagPolicy::Strict)]);
    let udp = section.choice(
        "udp",
        &[("primary-first", UdpPolicy::PrimaryFirst), ("strict", UdpPolicy::Strict)],
    );
    let (masked_headers, maps) = section.table().map(|t| rules(reader, t)).unwrap_or_default();
    Compare {
        hold_soft,
        hold_hard,
        on_lag: on_lag.unwrap_or_default(),
        udp: udp.unwrap_or_default(),
        has_http_defaults: section.flag("http_defaults", true),
        has_ftp_defaults: section.flag("ftp_defaults", true),
        ftp_ports: ftp_ports(reader, &section, served).unwrap_or(defaults.rules.ftp_ports),
        masked_headers,
        maps,
        has_opaque: section.flag("opaque", true),
        opaque_ports: opaque_ports(reader, &section, served),
    }
}

/// The one of control connections that needs no naming (RFC 1700), served or not.
const FTP_PORT: u16 = 21;

/// The ports of control connections.
fn ftp_ports(reader: &Reader<'_>, section: &Section<'_>, served: &[u16]) -> Option<Vec<u16>> {
    let (name, key) = ("ftp_ports", "compare.ftp_ports");
    if section.is_empty_list(name) {
        return Some(Vec::new());
    }
    let mut ports = Vec::new();
    for (item, at) in section.items(name, 1..=65535)? {
        let Item::Number(number) = item else {
            reader.wrong(at, key, "each must be a whole number, 1 to 65535");
            continue;
        };
        match number as u16 {
            port if ports.contains(&port) => {
                reader.wrong(at, key, format!("{port} is listed twice"))
            }
            port if is_foreign(served, port) && port != FTP_PORT => {
                let help = "add it to service.ports: only what is protected is read";
                reader.wrong_help(at, key, format!("{port} is not a port of the service"), help);
            }
            port => ports.push(port),
        }
    }
    Some(ports)
}

/// Those of the `served` ports that are not compared.
fn opaque_ports(reader: &Reader<'_>, section: &Section<'_>, served: &[u16]) -> Vec<u16> {
    let key = "compare.opaque_ports";
    let mut ports = Vec::new();
    for (item, at) in section.items("opaque_ports", 1..=65535).unwrap_or_default() {
        let port = match item {
            Item::Number(number) => u16::try_from(number).ok(),
            Item::Text(_) => None,
        };
        match port {
            None => reader.wrong(at, key, "each must be a whole number, 1 to 65535"),
            Some(port) if ports.contains(&port) => {
                reader.wrong(at, key, format!("{port} is listed twice"));
            }
            Some(port) if is_foreign(served, port) => {
                let help = "a port that is not in service.ports passes to the primary anyway";
                reader.wrong_help(at, key, format!("{port} is not a port of the service"), help);
            }
            Some(port) => ports.push(port),
        }
    }
    ports
}

/// Whether the service, whose ports are known, does not have this one.
fn is_foreign(served: &[u16], port: u16) -> bool {
    !served.is_empty() && !served.contains(&port)
}

/// What `[[compare.rule]]` masks, and what it maps.
fn rules(reader: &Reader<'_>, compare: &DeTable<'_>) -> (Vec<String>, Vec<Rule>) {
    let (mut masks, mut maps): (Vec<String>, Vec<Rule>) = (Vec::new(), Vec::new());
    for rule in Section::each(reader, compare, "rule", "compare.rule") {
        for (key, help) in [
            ("protocol", "write protocol = \"http\""),
            ("action", "write action = \"mask\", or \"map\" for what clients return"),
            ("header", "name a header field"),
        ] {
            if rule.at(key).is_none() {
                reader.missing(rule.at.clone(), &rule.full(key), help);
            }
        }
        rule.choice("protocol", &[("http", ())]);
        let action = rule.choice("action", &[("mask", false), ("map", true)]);
        let name = rule.string("name");
        let is_synced = rule.flag("synced", false);
        let Some(header) = rule.string("header").map(|h| h.to_ascii_lowercase()) else { continue };
        let (at, is_map) = (rule.at("header"), action.unwrap_or(false));
        if !is_token(header.as_bytes()) {
            let reason = format!("`{header}` is not the name of a header field");
            reader.wrong(at, "compare.rule.header", reason);
        } else if ["content-length", "transfer-encoding", "connection"].contains(&&*header) {
            let reason = format!("`{header}` decides where an answer ends and cannot be masked");
            reader.wrong(at, "compare.rule.header", reason);
        } else if name.as_ref().is_some_and(|name| !is_map || !is_token(name.as_bytes())) {
            let reason = match is_map {
                true => "not the name of a cookie",
                false => "a mask is for all of a header field",
            };
            reader.wrong(rule.at("name"), "compare.rule.name", reason);
        } else if is_synced && !is_map {
            let reason = "only what clients return is looked up again";
            reader.wrong(rule.at("synced"), "compare.rule.synced", reason);
        } else if is_map && name.is_none() && header == "set-cookie" {
            let help = "a cookie is returned by its name: write name = \"PHPSESSID\"";
            reader.missing(rule.at.clone(), "compare.rule.name", help);
        } else if is_twice(&masks, &maps, &header, name.as_deref()) {
            reader.wrong(at, "compare.rule.header", format!("two rules for `{header}`"));
        } else if is_map {
            let map = Rule::map(header, name.as_deref());
            maps.push(if is_synced { map.synced() } else { map });
        } else {
            masks.push(header);
        }
    }
    (masks, maps)
}

/// Whether there is a rule already for what is called `name` in `header`, or for all of it.
fn is_twice(masks: &[String], maps: &[Rule], header: &str, name: Option<&str>) -> bool {
    let covers = |map: &Rule| name.is_none() || map.name().is_none() || map.name() == name;
    masks.iter().any(|mask| mask == header)
        || maps.iter().any(|map| map.header() == header && covers(map))
}

fn sync(reader: &Reader<'_>, root: &DeTable<'_>, servers: Option<&[Server; 2]>) -> Sync {
    let defaults = EngineConfig::default();
    let section = Section::top(reader, root, "sync");
    let backend = backend(&section);
    // A machine is more than a few files.
    let deadline = match backend {
        Word::Qemu | Word::Container => Duration::from_secs(1),
        _ => defaults.sync_deadline,
    };
    let deadline = section.duration("deadline", deadline, MS..=Duration::from_secs(60));
    let min_gap = section.duration("min_gap", defaults.sync_min_gap, Duration::ZERO..=HOUR);
    let timeout = section.duration("timeout", Duration::from_secs(30), MS..=HOUR);
    if timeout < deadline {
        let key = if section.at("timeout").is_some() { "timeout" } else { "deadline" };
        let reason = "timeout is shorter than deadline";
        let help = "the command is killed at `timeout`; output waits until `deadline`";
        reader.wrong_help(section.at(key), &section.full(key), reason, help);
    }
    if !matches!(backend, Word::Mirror | Word::Container) {
        mirror::refuse_keys(reader, &section);
    }
    if backend != Word::Qemu && section.at("qemu").is_some() {
        let help = "write backend = \"qemu\", or remove the section";
        let reason = "only the backend `qemu` has this section";
        reader.wrong_help(section.at("qemu"), "sync.qemu", reason, help);
    }
    if backend != Word::Container && section.at("container").is_some() {
        let help = "write backend = \"container\", or remove the section";
        let reason = "only the backend `container` has this section";
        reader.wrong_help(section.at("container"), "sync.container", reason, help);
    }
    let backend = match backend {
        Word::Unclear => None,
        Word::Mirror => Some(Backend::Mirror(mirror::backend(reader, &section, timeout))),
        Word::Qemu => qemu::backend(reader, &section, timeout).map(Backend::Qemu),
        Word::Container => {
            let backend = container::backend(reader, &section, servers, timeout);
            Some(Backend::Container(backend))
        }
        Word::None | Word::Exec => {
            exec(reader, &section, backend == Word::Exec, timeout).map(Backend::Exec)
        }
    };
    Sync { backend, deadline, min_gap }
}

/// What `sync.backend` says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    None,
    Exec,
    Mirror,
    Qemu,
    Container,
    /// Nothing that this version knows: no more is said about the keys of such a backend.
    Unclear,
}

fn backend(section: &Section<'_>) -> Word {
    let word = section.string("backend");
    let words = [
        ("none", Word::None),
        ("exec", Word::Exec),
        ("mirror", Word::Mirror),
        ("qemu", Word::Qemu),
        ("container", Word::Container),
    ];
    let chosen = section.choice("backend", &words);
    chosen.unwrap_or(if word.is_some() { Word::Unclear } else { Word::None })
}

fn exec(
    reader: &Reader<'_>,
    section: &Section<'_>,
    is_chosen: bool,
    timeout: Duration,
) -> Option<ExecBackend> {
    match (is_chosen, command(reader, section, "command")) {
        (true, Some(command)) => return Some(ExecBackend { command, timeout }),
        (true, None) if section.at("command").is_none() => {
            let help = "the program that makes the backup equal and its arguments, as a list";
            reader.missing(section.at.clone(), "sync.command", help);
        }
        (false, Some(_)) => {
            let help = "write backend = \"exec\", or remove the command";
            let reason = "a command, but no backend that runs it";
            reader.wrong_help(section.at("command"), "sync.command", reason, help);
        }
        _ => {}
    }
    None
}

/// Program and arguments.
pub(super) fn command(
    reader: &Reader<'_>,
    section: &Section<'_>,
    key: &str,
) -> Option<Vec<String>> {
    let words = section.strings(key, false)?;
    let full = section.full(key);
    let help = "program and arguments, each a string: [\"/etc/shadowvm/sync.sh\", \"now\"]";
    let Some((program, at)) = words.first() else {
        reader.wrong_help(section.at(key), &full, "the list is empty", help);
        return None;
    };
    if !program.starts_with('/') {
        let reason = format!("`{program}` is not an absolute path");
        reader.wrong_help(at.clone(), &full, reason, help);
    }
    if let Some((_, at)) = words.iter().find(|(word, _)| word.contains('\0')) {
        reader.wrong(at.clone(), &full, "contains a zero byte");
    }
    Some(words.into_iter().map(|(word, _)| word).collect())
}

fn failover(reader: &Reader<'_>, root: &DeTable<'_>) -> Failover {
    let defaults = EngineConfig::default();
    let section = Section::top(reader, root, "failover");
    let probe_address = section.string("probe_address").and_then(|text| {
        host_address(reader, &section.at("probe_address"), "failover.probe_address", &text)
    });
    let fence = section
        .choice(
            "fence",
            &[("none", Fence::None), ("hook", Fence::Hook), ("required", Fence::Required)],
        )
        .unwrap_or_default();
    let fence_command = command(reader, &section, "fence_command");
    if fence == Fence::None && fence_command.is_some() {
        let help = "write fence = \"hook\" or \"required\", or remove the command";
        let reason = "a command, but fence is none";
        reader.wrong_help(section.at("fence_command"), "failover.fence_command", reason, help);
    }
    if fence != Fence::None && section.at("fence_command").is_none() {
        let help = "the program that fences a server and its arguments, as a list";
        reader.missing(section.at("fence"), "failover.fence_command", help);
    }
    let flap_max = section.integer("flap_max", 0..=1000);
    let reprotect =
        section.choice("reprotect", &[("never", Reprotect::Never), ("idle", Reprotect::Idle)]);
    Failover {
        is_auto: section.flag("auto", defaults.failover_auto),
        probe_every: section.duration(
            "probe_every",
            defaults.probe_every,
            MS..=Duration::from_secs(10),
        ),
        probe_address,
        probe_http: section.flag("probe_http", defaults.probe_http),
        flap_max: flap_max.and_then(|n| n.try_into().ok()).unwrap_or(defaults.flap_max),
        flap_window: section.duration("flap_window", defaults.flap_window, MS..=HOUR * 24),
        fence,
        fence_command,
        reprotect: reprotect.unwrap_or_default(),
        fence_timeout: section.duration("fence_timeout", Duration::from_secs(10), MS..=HOUR),
    }
}

fn limits(reader: &Reader<'_>, root: &DeTable<'_>) -> Limits {
    let defaults = EngineConfig::default();
    let section = Section::top(reader, root, "limits");
    let flows = |key, default| {
        let number = section.integer(key, 1..=1 << 20);
        number.and_then(|n| n.try_into().ok()).unwrap_or(default)
    };
    let flows_max = flows("flows_max", defaults.flows_max);
    let bytes = section.bytes("hold_bytes_max", 1 << 20..=1 << 40);
    Limits {
        flows_max,
        flows_per_source_max: flows("flows_per_source_max", flows_max),
        half_open_max: flows("half_open_max", defaults.half_open_max),
        half_open_per_source_max: flows(
            "half_open_per_source_max",
            defaults.half_open_per_source_max,
        ),
        hold_bytes_max: bytes.and_then(|n| n.try_into().ok()).unwrap_or(defaults.hold_bytes_max),
    }
}

fn socket(reader: &Reader<'_>, root: &DeTable<'_>) -> std::path::PathBuf {
    let section = Section::top(reader, root, "admin");
    let path = section.path("socket").unwrap_or_else(|| DEFAULT_SOCKET.into());
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        let reason = format!("longer than {SOCKET_PATH_MAX} bytes, the longest path of a socket");
        reader.wrong(section.at("socket"), "admin.socket", reason);
    }
    path
}

fn log(reader: &Reader<'_>, root: &DeTable<'_>) -> Log {
    let section = Section::top(reader, root, "log");
    let levels = [
        ("error", Level::Error),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("debug", Level::Debug),
        ("trace", Level::Trace),
    ];
    Log {
        is_json: section.choice("format", &[("text", false), ("json", true)]).unwrap_or(false),
        level: section.choice("level", &levels).unwrap_or(Level::Info),
        events: section.path("events"),
    }
}

fn run_as(reader: &Reader<'_>, root: &DeTable<'_>) -> Option<RunAs> {
    let section = Section::top(reader, root, "run");
    let user = section.string("user");
    let id = |key| section.integer(key, 0..=u64::from(u32::MAX) - 1);
    let (uid, gid) = (id("uid"), id("gid"));
    if let Some(user) = user {
        for key in ["uid", "gid"] {
            if section.at(key).is_some() {
                let reason = "given beside `user`";
                let help = "name the user, or its numbers, not both";
                reader.wrong_help(section.at(key), &section.full(key), reason, help);
            }
        }
        if user.is_empty() || user.contains('\0') {
            reader.wrong(section.at("user"), "run.user", "is not the name of a user");
        }
        return Some(RunAs::User(user));
    }
    if section.at("gid").is_some() && section.at("uid").is_none() {
        reader.missing(section.at("gid"), "run.uid", "a group alone cannot be taken on");
    }
    let uid = u32::try_from(uid?).ok()?;
    let gid = gid.and_then(|gid| u32::try_from(gid).ok()).unwrap_or(uid);
    Some(RunAs::Ids { uid, gid })
}

/// Probes come from an address of their own: with the service's, the answer would be its own.
fn probe_address_is_free(reader: &Reader<'_>, root: &DeTable<'_>, config: &Config) {
    let Some(address) = config.failover.probe_address else { return };
    let key = "failover.probe_address";
    let at = Section::top_quiet(root, "failover", "probe_address");
    let addresses = &config.service.addresses;
    if config.vip.is_some() {
        let help = "remove it: probes come from the gateway's own addresses";
        reader.wrong_help(at, key, "belongs to clone addressing", help);
    } else if addresses.contains(&address) {
        let help = "choose a free address of the clients' network";
        reader.wrong_help(at, key, "is the address of the service", help);
    } else if !addresses.is_empty()
        && !addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4())
    {
        reader.wrong(at, key, "is of another family than the service's address");
    }
}
