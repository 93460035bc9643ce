//! [`Config`] -> TOML, with every default written out.
//!
//! Owns the written form; `parse` reads it back to the same value.

use std::fmt::Write;
use std::path::Path;

use super::read::{show_bytes, show_duration};
use super::{Backend, Config, Level, MemoryCopy, QemuBackend, RunAs, Tree};
use crate::engine::{Fence, LagPolicy, Mode, Network, Reprotect, Source, UdpPolicy};

/// The whole file.
pub(super) fn to_toml(config: &Config) -> String {
    let mut out = String::new();
    let mode = match config.mode {
        Mode::Protect => "protect",
        Mode::Observe => "observe",
        Mode::Passthrough => "passthrough",
    };
    section(&mut out, "[gateway]", &[("mode", quote(mode))]);
    let links = &config.links;
    section(
        &mut out,
        "[links]",
        &[("client", quote(&links.client)), ("a", quote(&links.a)), ("b", quote(&links.b))],
    );
    service(&mut out, config);
    compare(&mut out, config);
    sync(&mut out, config);
    failover(&mut out, config);
    let limits = &config.limits;
    section(
        &mut out,
        "[limits]",
        &[
            ("flows_max", limits.flows_max.to_string()),
            ("flows_per_source_max", limits.flows_per_source_max.to_string()),
            ("half_open_max", limits.half_open_max.to_string()),
            ("half_open_per_source_max", limits.half_open_per_source_max.to_string()),
            ("hold_bytes_max", quote(&show_bytes(limits.hold_bytes_max as u64))),
        ],
    );
    if let Some(record) = &config.record {
        section(&mut out, "[capture]", &[("record", path(record))]);
    }
    let evidence = &config.evidence;
    section(
        &mut out,
        "[evidence]",
        &[
            ("write", evidence.is_written.to_string()),
            ("dir", path(&evidence.dir)),
            ("files_max", evidence.files_max.to_string()),
            ("bytes_max", quote(&show_bytes(evidence.bytes_max))),
            ("age_max", quote(&show_duration(evidence.age_max))),
            ("ring_bytes", quote(&show_bytes(evidence.ring_bytes))),
            ("ring_time", quote(&show_duration(evidence.ring_time))),
        ],
    );
    section(&mut out, "[state]", &[("file", path(&config.state_file))]);
    section(&mut out, "[admin]", &[("socket", path(&config.socket))]);
    log_and_run(&mut out, config);
    out
}

fn service(out: &mut String, config: &Config) {
    let service = &config.service;
    let vip = config.vip.as_ref();
    let ports = service.ports.iter().map(|port| {
        match vip.and_then(|plan| plan.server_port(*port)).filter(|server| server != port) {
            Some(server) => quote(&format!("{port}:{server}")),
            None => port.to_string(),
        }
    });
    let mut keys = vec![
        ("name", quote(&service.name)),
        ("addressing", quote(if vip.is_some() { "vip" } else { "clone" })),
        ("address", list(service.addresses.iter().map(ToString::to_string))),
        ("ports", format!("[{}]", ports.collect::<Vec<_>>().join(", "))),
    ];
    if let Some(plan) = vip {
        let source = match plan.source {
            Source::Client => "client",
            Source::Gateway => "gateway",
        };
        keys.push(("source", quote(source)));
    }
    section(out, "[service]", &keys);
    for (at, server) in config.servers.iter().enumerate() {
        let role = if server.is_primary { "primary" } else { "backup" };
        let mut keys = vec![("name", quote(&server.name)), ("role", quote(role))];
        if let Some(plan) = vip {
            let own = plan.served.iter().map(|served| served.servers[at].to_string());
            keys.push(("address", list(own)));
        }
        match &server.tree {
            None => {}
            Some(Tree::Dir(dir)) => keys.push(("dir", quote(dir))),
            Some(Tree::Command(command)) => {
                keys.push(("dir_command", list(command.iter().cloned())));
            }
        }
        keys.extend(server.agent.as_ref().map(|address| ("agent", quote(address))));
        keys.extend(server.container.as_ref().map(|file| ("container", path(file))));
        section(out, "[[server]]", &keys);
    }
    if config.servers.iter().any(|server| server.agent.is_some()) {
        let mut keys = vec![("key", path(&config.agent.key))];
        keys.extend(config.agent.limit.map(|limit| ("limit", quote(&show_bytes(limit)))));
        section(out, "[agent]", &keys);
    }
    if let Some(plan) = vip {
        let networks = |of: &[Network]| list(of.iter().map(ToString::to_string));
        let keys = [
            ("client", networks(&plan.client)),
            ("next_hop", list(plan.next_hops.iter().map(ToString::to_string))),
            ("a", networks(&plan.own[0])),
            ("b", networks(&plan.own[1])),
        ];
        section(out, "[network]", &keys);
    }
}

fn compare(out: &mut String, config: &Config) {
    let compare = &config.compare;
    let on_lag = match compare.on_lag {
        LagPolicy::Available => "available",
        LagPolicy::Strict => "strict",
    };
    let udp = match compare.udp {
        UdpPolicy::PrimaryFirst => "primary-first",
        UdpPolicy::Strict => "strict",
    };
    let opaque_ports: Vec<String> = compare.opaque_ports.iter().map(u16::to_string).collect();
    section(
        out,
        "[compare]",
        &[
            ("hold_soft", quote(&show_duration(compare.hold_soft))),
            ("hold_hard", quote(&show_duration(compare.hold_hard))),
            ("on_lag", quote(on_lag)),
            ("udp", quote(udp)),
            ("http_defaults", compare.has_http_defaults.to_string()),
            ("ftp_ports", numbers(&compare.ftp_ports)),
            ("ftp_defaults", compare.has_ftp_defaults.to_string()),
            ("opaque", compare.has_opaque.to_string()),
            ("opaque_ports", format!("[{}]", opaque_ports.join(", "))),
        ],
    );
    for header in &compare.masked_headers {
        section(
            out,
            "[[compare.rule]]",
            &[("protocol", quote("http")), ("header", quote(header)), ("action", quote("mask"))],
        );
    }
    for map in &compare.maps {
        let mut keys = vec![("protocol", quote("http")), ("header", quote(map.header()))];
        keys.extend(map.name().map(|name| ("name", quote(name))));
        keys.push(("action", quote("map")));
        keys.extend(map.is_synced().then(|| ("synced", "true".into())));
        section(out, "[[compare.rule]]", &keys);
    }
}

fn sync(out: &mut String, config: &Config) {
    let sync = &config.sync;
    let mut keys = match &sync.backend {
        None => vec![("backend", quote("none"))],
        Some(Backend::Exec(exec)) => vec![
            ("backend", quote("exec")),
            ("command", list(exec.command.iter().cloned())),
            ("timeout", quote(&show_duration(exec.timeout))),
        ],
        Some(Backend::Mirror(mirror)) => {
            vec![("backend", quote("mirror")), ("timeout", quote(&show_duration(mirror.timeout)))]
        }
        Some(Backend::Qemu(guests)) => {
            vec![("backend", quote("qemu")), ("timeout", quote(&show_duration(guests.timeout)))]
        }
        Some(Backend::Container(containers)) => {
            let timeout = quote(&show_duration(containers.timeout));
            vec![("backend", quote("container")), ("timeout", timeout)]
        }
    };
    if let Some(mirror) = sync.mirror() {
        keys.extend([
            ("exclude", list(mirror.exclude.iter().cloned())),
            ("watch", mirror.is_watching.to_string()),
            ("compare", quote(if mirror.by_content { "content" } else { "times" })),
            ("fsync", mirror.is_durable.to_string()),
        ]);
    }
    keys.push(("deadline", quote(&show_duration(sync.deadline))));
    keys.push(("min_gap", quote(&show_duration(sync.min_gap))));
    section(out, "[sync]", &keys);
    if let Some(Backend::Qemu(guests)) = &sync.backend {
        qemu(out, guests);
    }
    if let Some(Backend::Container(containers)) = &sync.backend {
        let keys = [("criu", quote(&containers.criu)), ("dir", path(&containers.dir))];
        section(out, "[sync.container]", &keys);
    }
}

fn qemu(out: &mut String, guests: &QemuBackend) {
    let mut keys = vec![
        ("program", quote(&guests.program)),
        ("accel", list(guests.accel.iter().cloned())),
        ("memory", quote(&show_bytes(guests.memory))),
        ("cpus", guests.cpus.to_string()),
    ];
    if let Some(kernel) = &guests.kernel {
        keys.push(("kernel", quote(kernel)));
        keys.extend(guests.initrd.as_ref().map(|initrd| ("initrd", quote(initrd))));
        keys.push(("append", quote(&guests.append)));
    }
    keys.extend([
        ("mac", quote(&guests.mac)),
        ("args", list(guests.args.iter().cloned())),
        ("dir", path(&guests.dir)),
    ]);
    match &guests.copy {
        MemoryCopy::Live => keys.push(("copy", quote("live"))),
        MemoryCopy::Shared(dir) => {
            keys.extend([("copy", quote("shared")), ("memory_dir", path(dir))]);
        }
    }
    keys.push(("downtime", quote(&show_duration(guests.downtime))));
    section(out, "[sync.qemu]", &keys);
}

fn failover(out: &mut String, config: &Config) {
    let failover = &config.failover;
    let fence = match failover.fence {
        Fence::None => "none",
        Fence::Hook => "hook",
        Fence::Required => "required",
    };
    let reprotect = match failover.reprotect {
        Reprotect::Never => "never",
        Reprotect::Idle => "idle",
    };
    let mut keys = vec![
        ("auto", failover.is_auto.to_string()),
        ("probe_every", quote(&show_duration(failover.probe_every))),
        ("probe_http", failover.probe_http.to_string()),
        ("flap_max", failover.flap_max.to_string()),
        ("flap_window", quote(&show_duration(failover.flap_window))),
        ("reprotect", quote(reprotect)),
        ("fence", quote(fence)),
        ("fence_timeout", quote(&show_duration(failover.fence_timeout))),
    ];
    if let Some(address) = failover.probe_address {
        keys.push(("probe_address", quote(&address.to_string())));
    }
    if let Some(command) = &failover.fence_command {
        keys.push(("fence_command", list(command.iter().cloned())));
    }
    section(out, "[failover]", &keys);
}

fn log_and_run(out: &mut String, config: &Config) {
    let log = &config.log;
    let level = match log.level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let format = if log.is_json { "json" } else { "text" };
    let mut keys = vec![("format", quote(format)), ("level", quote(level))];
    if let Some(events) = &log.events {
        keys.push(("events", path(events)));
    }
    section(out, "[log]", &keys);
    match &config.run_as {
        None => {}
        Some(RunAs::User(user)) => section(out, "[run]", &[("user", quote(user))]),
        Some(RunAs::Ids { uid, gid }) => {
            section(out, "[run]", &[("uid", uid.to_string()), ("gid", gid.to_string())]);
        }
    }
    section(out, "[security]", &[("sandbox", config.is_sandboxed.to_string())]);
}

fn section(out: &mut String, header: &str, keys: &[(&str, String)]) {
    if !out.is_empty() {
        out.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{header}");
    for (key, value) in keys {
        let _ = writeln!(out, "{key} = {value}");
    }
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

fn numbers(items: &[u16]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|item| quote(&item)).collect();
    format!("[{}]", items.join(", "))
}
