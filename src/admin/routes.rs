//! The routes of `/api/v1`: from requests to questions and commands, and back.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::{Instant as Clock, sleep_until, timeout};

use super::types::{
    Agent, Counter, Counters, Done, Events, Evidence, Failover, Flow, FlowCounts, Flows, Neighbour,
    Nothing, NumberedEvent, Problem, Rejoin, Rule, Rules, Server, Service, Status, Suggestion,
    Unprotected, WaitTimes,
};
use super::{Door, ReloadError, metrics};
use crate::engine::{
    self, Command, CommandError, FlowState, Instant, LegId, Link, NeighbourState, NeighbourStatus,
    RuleName, ServiceState,
};
use crate::observe::AgentView;
use crate::observe::counters::WaitSummary;
use crate::observe::describe::{command_error_text, solo_text};
use crate::observe::json::degraded_reason;
use crate::observe::names::Name;
use crate::observe::rules::Proposed;

/// How long the packet loop may take to answer a question.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// How long a command's outcome is waited for.
const COMMAND_WAIT: Duration = Duration::from_secs(5);
/// Time between two tries of a command that is to be tried again.
const RETRY_EVERY: Duration = Duration::from_millis(50);
/// Longest wait that a request may ask for.
const WAIT_MAX: Duration = Duration::from_secs(600);
const BODY_BYTES_MAX: usize = 64 << 10;
const FLOWS_DEFAULT: usize = 1000;

type Shared = State<Arc<Door>>;

/// All routes.
pub(super) fn router(door: Arc<Door>) -> Router {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/flows", get(flows))
        .route("/api/v1/counters", get(counters))
        .route("/api/v1/rules", get(rules))
        .route("/api/v1/events", get(events))
        .route("/api/v1/metrics", get(metrics_text))
        .route("/metrics", get(metrics_text))
        .route("/api/v1/failover", post(failover))
        .route("/api/v1/rejoin", post(rejoin))
        .route("/api/v1/pause", post(pause))
        .route("/api/v1/resume", post(resume))
        .route("/api/v1/sync", post(sync))
        .route("/api/v1/reload", post(reload))
        .fallback(async || Trouble::new(StatusCode::NOT_FOUND, "not_found", "no such path"))
        .method_not_allowed_fallback(async || {
            let detail = "reading is GET, changing is POST";
            Trouble::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", detail)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(door)
}

/// A request that was not granted, as RFC 9457 problem details.
#[derive(Debug)]
pub(super) struct Trouble {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl Trouble {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: format!("/problems/{}", self.code),
            title: self.code.replace('_', " "),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code.to_owned(),
        };
        let mut response = (self.status, Json(problem)).into_response();
        let kind = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl From<CommandError> for Trouble {
    fn from(error: CommandError) -> Self {
        let status = match error {
            CommandError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            CommandError::NoPeer
            | CommandError::Already
            | CommandError::NotEqual
            | CommandError::NoBackend
            | CommandError::NeedsRestart => StatusCode::CONFLICT,
        };
        Self::new(status, error.name(), command_error_text(error))
    }
}

impl From<ReloadError> for Trouble {
    fn from(error: ReloadError) -> Self {
        let (status, code) = match &error {
            ReloadError::Config(_) => (StatusCode::UNPROCESSABLE_ENTITY, "config"),
            ReloadError::NeedsRestart(_) => (StatusCode::CONFLICT, "needs_restart"),
        };
        Self::new(status, code, error.to_string())
    }
}

/// Asks the engine between two packets.
async fn ask<T: Send + 'static>(
    door: &Door,
    question: impl FnOnce(Instant, &crate::engine::Engine) -> T + Send + 'static,
) -> Result<T, Trouble> {
    let (tell, told) = oneshot::channel();
    door.gateway.inspect(Box::new(move |now, engine| {
        // The asker may have given up.
        let _ = tell.send(question(now, engine));
    }));
    match timeout(ANSWER_WAIT, told).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => {
            let detail = "the gateway is shutting down";
            Err(Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", detail))
        }
        Err(_) => {
            let detail = "the packet loop does not answer; is the host overloaded?";
            Err(Trouble::new(StatusCode::SERVICE_UNAVAILABLE, "no_answer", detail))
        }
    }
}

/// Has a command carried out.
async fn carry_out(door: &Door, command: Command) -> Result<Json<Done>, Trouble> {
    let (id, outcome) = door.board.expect_command();
    tracing::info!(command = id, "asked for: {}", command_name(&command));
    door.gateway.command(id, command);
    match timeout(COMMAND_WAIT, outcome).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => return Err(error.into()),
        Ok(Err(_)) | Err(_) => {
            let detail = format!("command {id} has no outcome yet; see `shadowvm status`");
            return Err(Trouble::new(StatusCode::GATEWAY_TIMEOUT, "no_answer", detail));
        }
    }
    let roles = ask(door, |_, engine| engine.status().roles).await?;
    let primary = door.board.names[roles.primary.index()].clone();
    Ok(Json(Done { command: id, epoch: roles.epoch.0, primary }))
}

fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Failover { is_planned: true, .. } => "planned failover",
        Command::Failover { is_planned: false, .. } => "failover",
        Command::Rejoin(_) => "rejoin",
        Command::Pause => "pause",
        Command::Resume => "resume",
        Command::SyncNow => "sync",
        Command::Reload(_) => "reload",
    }
}

/// A body of JSON; nothing at all is the default.
fn body<T: DeserializeOwned>(bytes: Result<Bytes, BytesRejection>) -> Result<T, Trouble> {
    let bytes = bytes.map_err(|error| {
        Trouble::new(error.status(), "body", format!("{error} (at most {BODY_BYTES_MAX} bytes)"))
    })?;
    let text: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text)
        .map_err(|error| Trouble::new(StatusCode::BAD_REQUEST, "body", error.to_string()))
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Trouble> {
    query
        .map(|Query(query)| query)
        .map_err(|error| Trouble::new(StatusCode::BAD_REQUEST, "query", error.body_text()))
}

fn server(door: &Door, name: &str) -> Result<LegId, Trouble> {
    door.config.server(name).ok_or_else(|| {
        let [a, b] = &door.board.names;
        let detail = format!("there is no server `{name}`; the servers are `{a}` and `{b}`");
        Trouble::new(StatusCode::NOT_FOUND, "no_such_server", detail)
    })
}

fn seconds(wait: f64) -> Result<Duration, Trouble> {
    Duration::try_from_secs_f64(wait).ok().filter(|wait| *wait <= WAIT_MAX).ok_or_else(|| {
        let detail = format!("a wait is 0 to {} seconds", WAIT_MAX.as_secs());
        Trouble::new(StatusCode::BAD_REQUEST, "query", detail)
    })
}

async fn failover(
    State(door): Shared,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Done>, Trouble> {
    let wanted: Failover = body(bytes)?;
    let to = wanted.to.map(|name| server(&door, &name)).transpose()?;
    let until = Clock::now() + seconds(wanted.wait)?;
    loop {
        let command = Command::Failover { to, is_planned: wanted.planned };
        let again = (Clock::now() + RETRY_EVERY).min(until);
        match carry_out(&door, command).await {
            // Equality comes and goes with every packet and is no event: so try again.
            Err(trouble) if is_passing(&trouble) && Clock::now() < until => {
                sleep_until(again).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the same command may succeed a little later.
fn is_passing(trouble: &Trouble) -> bool {
    [CommandError::NotEqual, CommandError::Busy].iter().any(|error| error.name() == trouble.code)
}

async fn rejoin(
    State(door): Shared,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Done>, Trouble> {
    let wanted: Rejoin = body(bytes)?;
    let leg = server(&door, &wanted.server)?;
    carry_out(&door, Command::Rejoin(leg)).await
}

async fn pause(
    State(door): Shared,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Done>, Trouble> {
    let Nothing {} = body(bytes)?;
    carry_out(&door, Command::Pause).await
}

async fn resume(
    State(door): Shared,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Done>, Trouble> {
    let Nothing {} = body(bytes)?;
    carry_out(&door, Command::Resume).await
}

async fn sync(
    State(door): Shared,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Done>, Trouble> {
    let Nothing {} = body(bytes)?;
    carry_out(&door, Command::SyncNow).await
}

async fn reload(
    State(door): Shared,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<Done>, Trouble> {
    let Nothing {} = body(bytes)?;
    take_configuration(&door).await
}

/// Reads the configuration again and has the engine take it.
pub(super) async fn take_configuration(door: &Door) -> Result<Json<Done>, Trouble> {
    let config = (door.reload)()?;
    carry_out(door, Command::Reload(config)).await
}

/// The status as the engine has it now.
pub(super) async fn read_status(door: &Door) -> Result<Status, Trouble> {
    let (now, status) = ask(door, |now, engine| (now, engine.status())).await?;
    let wait = door.board.counters().wait();
    let counts = (door.link_counts)();
    let config = &door.config;
    let [opening, paired, lagging, diverged, solo, time_wait] = status.flows;
    let primary = status.roles.primary;
    let servers = LegId::ALL.map(|leg| Server {
        name: door.board.names[leg.index()].clone(),
        leg: leg.name().to_owned(),
        interface: match leg {
            LegId::A => config.links.a.clone(),
            LegId::B => config.links.b.clone(),
        },
        role: if leg == primary { "primary" } else { "backup" }.to_owned(),
        state: status.servers[leg.index()].name().to_owned(),
        refused_ports: status.refused_ports[leg.index()].clone(),
        is_unanswering: status.unanswering[leg.index()],
        agent: config.servers[leg.index()].agent.clone().map(|address| {
            let AgentView { is_connected, text, .. } = door.board.agents.view(leg);
            Agent { address, is_connected, text }
        }),
    });
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: door.started.elapsed().as_secs_f64(),
        is_sandboxed: door.is_sandboxed.load(Relaxed),
        service: Service {
            name: config.service.name.clone(),
            addresses: config.service.addresses.iter().map(ToString::to_string).collect(),
            ports: config.service.ports.clone(),
            state: status.service.name().to_owned(),
            reason: degraded_reason(&status.service).map(str::to_owned),
            is_protected: status.service == ServiceState::Protected,
            changed_at: door.board.service_changed_ns().map(|ns| ns as f64 / 1e9),
        },
        mode: status.mode.name().to_owned(),
        is_paused: status.is_paused,
        epoch: status.roles.epoch.0,
        primary: door.board.names[primary.index()].clone(),
        servers: servers.into(),
        flows: FlowCounts {
            opening,
            paired,
            lagging,
            diverged,
            solo,
            time_wait,
            half_open: status.half_open,
            raw: door.board.flows.raw() as u32,
        },
        unprotected: unprotected(door),
        held_bytes: status.held_bytes,
        links: Link::ALL.map(|link| link.name().to_owned()).into_iter().zip(counts).collect(),
        sync: status.sync.map(|id| id.0),
        neighbours: status.neighbours.iter().map(|known| neighbour(now, known)).collect(),
        release_wait: wait_times(&wait),
        evidence: config.evidence.is_written.then(|| Evidence {
            dir: config.evidence.dir.clone(),
            written: door.board.evidence.written.load(Relaxed),
            lost: door.board.evidence.lost.load(Relaxed),
        }),
    })
}

fn unprotected(door: &Door) -> Vec<Unprotected> {
    let solo = door.board.flows.solo().into_iter();
    let mut all: Vec<Unprotected> = solo
        .map(|(reason, flows)| Unprotected {
            reason: reason.name().to_owned(),
            text: solo_text(reason).to_owned(),
            flows,
        })
        .collect();
    all.sort_by_key(|unprotected| std::cmp::Reverse(unprotected.flows));
    all
}

fn neighbour(now: Instant, known: &NeighbourStatus) -> Neighbour {
    let (state, mac, since) = match known.state {
        None => ("unknown", None, None),
        Some(NeighbourState::Resolving { since }) => ("resolving", None, Some(since)),
        Some(NeighbourState::Resolved { mac, at }) => ("resolved", Some(mac), Some(at)),
        Some(NeighbourState::Failed { since }) => ("failed", None, Some(since)),
    };
    Neighbour {
        link: known.link.name().to_owned(),
        address: known.address.to_string(),
        state: state.to_owned(),
        mac: mac.map(|mac| mac.to_string()),
        for_seconds: since.map(|since| now.since(since).as_secs_f64()),
    }
}

async fn status(State(door): Shared) -> Result<Json<Status>, Trouble> {
    read_status(&door).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowsQuery {
    limit: Option<usize>,
}

async fn flows(
    State(door): Shared,
    wanted: Result<Query<FlowsQuery>, QueryRejection>,
) -> Result<Json<Flows>, Trouble> {
    let limit = query(wanted)?.limit.unwrap_or(FLOWS_DEFAULT);
    let now = ask(&door, |now, _| now).await?;
    let (list, total) = door.board.flows.list(limit);
    let flows = list.into_iter().map(|(key, entry)| Flow {
        client: key.client.to_string(),
        server: key.server.to_string(),
        vlan: [key.vlan.0, key.vlan.1].into_iter().flatten().collect(),
        state: FlowState::name(&entry.state).to_owned(),
        primary: entry.primary.map(|leg| door.board.names[leg.index()].clone()),
        solo: entry.solo.map(|reason| reason.name().to_owned()),
        raw: entry.raw.map(|why| why.name().to_owned()),
        verified_bytes: entry.verified_bytes,
        unverified_bytes: entry.unverified_bytes,
        age_seconds: now.since(entry.opened).as_secs_f64(),
    });
    Ok(Json(Flows { total, flows: flows.collect() }))
}

async fn counters(State(door): Shared) -> Json<Counters> {
    let locked = door.board.counters();
    let counters = locked.series().map(|(family, labels, value)| Counter {
        name: family.name.to_owned(),
        labels: (family.labels.iter().zip(labels))
            .map(|((label, _), value)| ((*label).to_owned(), value.to_owned()))
            .collect(),
        value: family.in_unit(value),
    });
    let counters = counters.collect();
    Json(Counters { counters, release_wait: wait_times(&locked.wait()) })
}

async fn rules(State(door): Shared) -> Result<Json<Rules>, Trouble> {
    let (rules, pairs) = ask(&door, |_, engine| engine.rules()).await?;
    let counts = door.board.rules();
    let suggestion = |proposed: Proposed<'_>| Suggestion {
        header: proposed.header.to_owned(),
        name: proposed.cookie.map(str::to_owned),
        connections: proposed.connections,
    };
    let rule = |name: &RuleName| {
        let hits = counts.hits(name);
        let rule = rules.of_http(&name.field).filter(|_| name.protocol == "http");
        Rule {
            protocol: name.protocol.to_owned(),
            header: rule.map_or(&*name.field, engine::Rule::header).to_owned(),
            name: rule.and_then(engine::Rule::name).map(str::to_owned),
            action: rule.map_or("mask", engine::Rule::action).to_owned(),
            hits: hits.values,
            bytes: hits.bytes,
            replaced: hits.replaced,
        }
    };
    let is_new = |proposed: &Proposed<'_>| {
        let is_it = |rule: &engine::Rule| {
            let covers = rule.name().is_none_or(|name| proposed.cookie == Some(name));
            // What differs in spite of a list is no matter of its order.
            rule.header() == proposed.header && covers && rule.action() != "list"
        };
        !rules.http.iter().any(is_it)
    };
    Ok(Json(Rules {
        rules: rules.names().iter().map(rule).collect(),
        suggestions: counts.proposed().into_iter().filter(is_new).map(suggestion).collect(),
        pairs: pairs as u64,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait: f64,
}

async fn events(
    State(door): Shared,
    wanted: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Json<Events>, Trouble> {
    let EventsQuery { after, wait } = query(wanted)?;
    let wait = seconds(wait)?;
    let mut latest = door.board.latest();
    // Either there is something new, or the time is over: both end the wait well.
    let _ = timeout(wait, latest.wait_for(|last| *last > after)).await;
    let (events, last) = door.board.events_after(after);
    let events = events.into_iter().filter_map(|(number, event)| match event {
        serde_json::Value::Object(event) => Some(NumberedEvent { number, event }),
        _ => None,
    });
    Ok(Json(Events { last, events: events.collect() }))
}

async fn metrics_text(State(door): Shared) -> Result<Response, Trouble> {
    let status = read_status(&door).await?;
    let text = metrics::render(&status, &door.board.counters());
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, text).into_response())
}

fn wait_times(wait: &WaitSummary) -> WaitTimes {
    WaitTimes {
        count: wait.count,
        p50_seconds: wait.p50.as_secs_f64(),
        p99_seconds: wait.p99.as_secs_f64(),
        max_seconds: wait.max.as_secs_f64(),
    }
}
