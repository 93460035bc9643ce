//! Status and counters as Prometheus text: base units, few series, states as 0/1 sets.

use std::fmt::Write;

use super::types::{LinkCounts, Status};
use crate::observe::Counters;
use crate::observe::names::{DEGRADED_REASONS, MODES, SERVER_STATES, SERVICE_STATES};

/// The whole page.
pub(super) fn render(status: &Status, counters: &Counters) -> String {
    let mut page = Page(String::new());
    page.family("shadowvm_build_info", "gauge", "Version of the program.");
    page.sample("shadowvm_build_info", &[("version", &status.version)], 1.0);
    page.family("shadowvm_uptime_seconds", "gauge", "Time since the start.");
    page.sample("shadowvm_uptime_seconds", &[], status.uptime_seconds);
    service(&mut page, status);
    evidence(&mut page, status);
    servers(&mut page, status);
    agents(&mut page, status);
    flows(&mut page, status);
    links(&mut page, status);
    let mut last = "";
    for (family, values, count) in counters.series() {
        if family.name != last {
            page.family(family.name, "counter", family.help);
            last = family.name;
        }
        let names = family.labels.iter().map(|(name, _)| *name);
        let labels: Vec<(&str, &str)> = names.zip(values).collect();
        page.sample(family.name, &labels, family.in_unit(count));
    }
    release_wait(&mut page, counters);
    page.0
}

fn service(page: &mut Page, status: &Status) {
    let name = "shadowvm_service_state";
    page.family(name, "gauge", "State of the service: 1 for the one it is in.");
    page.set(name, "state", SERVICE_STATES, Some(&status.service.state), &[]);
    let name = "shadowvm_service_degraded";
    page.family(name, "gauge", "Why the service is degraded: 1 for the reason, if it is.");
    page.set(name, "reason", DEGRADED_REASONS, status.service.reason.as_deref(), &[]);
    let name = "shadowvm_service_changed_timestamp_seconds";
    page.family(name, "gauge", "UNIX time of the last change of the service's state.");
    page.sample(name, &[], status.service.changed_at.unwrap_or(0.0));
    let name = "shadowvm_mode";
    page.family(name, "gauge", "Mode: 1 for the one in force.");
    page.set(name, "mode", MODES, Some(&status.mode), &[]);
    let name = "shadowvm_paused";
    page.family(name, "gauge", "Whether failing over by findings is paused.");
    page.sample(name, &[], f64::from(u8::from(status.is_paused)));
    let name = "shadowvm_epoch";
    page.family(name, "gauge", "Version of the server roles; grows with each change.");
    page.sample(name, &[], f64::from(status.epoch));
    let name = "shadowvm_sync_running";
    page.family(name, "gauge", "Whether a state sync is under way.");
    page.sample(name, &[], f64::from(u8::from(status.sync.is_some())));
}

fn evidence(page: &mut Page, status: &Status) {
    let evidence = status.evidence.as_ref().map(|evidence| (evidence.written, evidence.lost));
    let (written, lost) = evidence.unwrap_or_default();
    let name = "shadowvm_evidence_files_total";
    page.family(name, "counter", "Captures of divergences and failovers that were written.");
    page.sample(name, &[], written as f64);
    let name = "shadowvm_evidence_lost_total";
    page.family(name, "counter", "Captures of divergences and failovers that were not.");
    page.sample(name, &[], lost as f64);
}

fn servers(page: &mut Page, status: &Status) {
    let name = "shadowvm_server_state";
    page.family(name, "gauge", "State of each server: 1 for the one it is in.");
    for server in &status.servers {
        let labels = [("server", server.name.as_str()), ("leg", &server.leg)];
        page.set(name, "state", SERVER_STATES, Some(&server.state), &labels);
    }
    let name = "shadowvm_server_refused_ports";
    page.family(name, "gauge", "Ports of the service to which a server refuses connections.");
    for server in &status.servers {
        let labels = [("server", server.name.as_str()), ("leg", &server.leg)];
        page.sample(name, &labels, server.refused_ports.len() as f64);
    }
    let name = "shadowvm_server_primary";
    page.family(name, "gauge", "1 for the server that is primary.");
    for server in &status.servers {
        let labels = [("server", server.name.as_str()), ("leg", &server.leg)];
        page.sample(name, &labels, f64::from(u8::from(server.role == "primary")));
    }
}

fn agents(page: &mut Page, status: &Status) {
    let name = "shadowvm_agent_connected";
    page.family(name, "gauge", "Whether the gateway is connected to a server's agent.");
    for server in &status.servers {
        let Some(agent) = &server.agent else { continue };
        let labels = [("server", server.name.as_str()), ("leg", &server.leg)];
        page.sample(name, &labels, f64::from(u8::from(agent.is_connected)));
    }
}

fn flows(page: &mut Page, status: &Status) {
    let name = "shadowvm_flows";
    page.family(name, "gauge", "Connections by state.");
    let flows = &status.flows;
    for (state, count) in [
        ("opening", flows.opening),
        ("paired", flows.paired),
        ("lagging", flows.lagging),
        ("diverged", flows.diverged),
        ("solo", flows.solo),
        ("time_wait", flows.time_wait),
    ] {
        page.sample(name, &[("state", state)], f64::from(count));
    }
    let name = "shadowvm_flows_half_open";
    page.family(name, "gauge", "Connections whose client has not completed the handshake.");
    page.sample(name, &[], f64::from(flows.half_open));
    let name = "shadowvm_held_bytes";
    page.family(name, "gauge", "Bytes held by all connections.");
    page.sample(name, &[], status.held_bytes as f64);
}

fn links(page: &mut Page, status: &Status) {
    type Read = fn(&LinkCounts) -> u64;
    let families: [(&str, &str, Read); 8] = [
        ("shadowvm_link_rx_frames_total", "Frames received.", |c| c.rx_frames),
        ("shadowvm_link_rx_bytes_total", "Bytes received.", |c| c.rx_bytes),
        ("shadowvm_link_tx_frames_total", "Frames sent.", |c| c.tx_frames),
        ("shadowvm_link_tx_bytes_total", "Bytes sent.", |c| c.tx_bytes),
        ("shadowvm_link_kernel_drops_total", "Frames the kernel dropped.", |c| c.kernel_drops),
        ("shadowvm_link_bad_headers_total", "Frames with a bad virtio header.", |c| c.bad_headers),
        ("shadowvm_link_queue_drops_total", "Frames beyond a full queue.", |c| c.queue_drops),
        ("shadowvm_link_late_frames_total", "Frames of a guest not attached.", |c| c.late_frames),
    ];
    for (name, help, read) in families {
        page.family(name, "counter", help);
        for (link, counts) in &status.links {
            page.sample(name, &[("link", link)], read(counts) as f64);
        }
    }
    let name = "shadowvm_link_send_errors_total";
    page.family(name, "counter", "Frames refused by the kernel, by error.");
    for (link, counts) in &status.links {
        for (error, count) in &counts.send_errors {
            page.sample(name, &[("link", link), ("error", error)], *count as f64);
        }
    }
}

fn release_wait(page: &mut Page, counters: &Counters) {
    let wait = counters.wait();
    let name = "shadowvm_release_wait_seconds";
    page.family(name, "histogram", "How long the first copy of released bytes waited.");
    for (us, count) in wait.buckets {
        let bound = (us as f64 / 1e6).to_string();
        page.sample(&format!("{name}_bucket"), &[("le", &bound)], count as f64);
    }
    page.sample(&format!("{name}_bucket"), &[("le", "+Inf")], wait.count as f64);
    page.sample(&format!("{name}_sum"), &[], wait.sum.as_secs_f64());
    page.sample(&format!("{name}_count"), &[], wait.count as f64);
}

/// Text under construction. Writing to a String cannot fail.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        let mut mark = '{';
        for (label, text) in labels {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{mark}{label}=\"{text}\"");
            mark = ',';
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// One sample for each of `all`, 1 for the one that `is`.
    fn set(
        &mut self,
        name: &str,
        label: &str,
        all: &[&str],
        is: Option<&str>,
        with: &[(&str, &str)],
    ) {
        for value in all {
            let labels: Vec<_> = with.iter().copied().chain([(label, *value)]).collect();
            self.sample(name, &labels, f64::from(u8::from(is == Some(value))));
        }
    }
}
