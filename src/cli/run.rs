//! `shadowvm run`: put the parts of the gateway together, and take them apart in good order.
//!
//! The order matters. The helper process is started first, while there is one thread and every
//! privilege; then everything that needs privileges is opened; then they are dropped; then the
//! threads start; then the sandbox closes around all of them. The packet loop runs on the main
//! thread until SIGTERM or SIGINT. The state file stays, so that a start soon afterwards continues
//! the connections.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant as Clock;

use nix::unistd::{Gid, Uid, User};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::{config_error, exit};
use crate::admin::socket::{self, SocketError};
use crate::admin::types::LinkCounts;
use crate::admin::{self, Door, Gateway, Question, ReloadError};
use crate::config::{
    self, Backend, Config, ConfigError, DEFAULT_FILE, MirrorBackend, RunAs, Server, Tree,
};
use crate::engine::{
    Command, Engine, Epoch, Event, Input, Instant, LegId, Link, Record, SyncId, SyncRequest,
    SyncStep,
};
use crate::evidence::keeper::Keeper;
use crate::evidence::recorder::InForce;
use crate::evidence::ring::{Ring, Start};
use crate::evidence::store::{Limits, Store};
use crate::evidence::{Desk, Recorder};
use crate::io::af_packet::{LinkError, LinkOptions, LinkStats, Links};
use crate::io::datagram::Attached;
use crate::io::pcap::Tap;
use crate::io::state_file::{StateFile, StateFileError};
use crate::io::{Driver, Mailbox, Request, Sink, clock, drive, mailbox, privileges, sandbox};
use crate::observe::{Board, Level, Observer};
use crate::sync::exec::{self, ExecSync};
use crate::sync::helper::{Commands, Helper, HookCommand, MirrorCommand, Unheard};
use crate::sync::mirror::pair::{EndSetup, MirrorSetup};
use crate::sync::{StateSync, SyncSink, container, qemu};
use crate::wire::Frame;

pub(super) mod agents;
mod containers;
pub(super) mod guests;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm run                         with /etc/shadowvm/shadowvm.toml
  shadowvm run -c ./shadowvm.toml      with another configuration

SIGTERM and SIGINT end it cleanly, SIGHUP reads the configuration again.
Exit status: 0 ended, 2 the configuration is unreadable, 70 bug, 75 a gateway is running already,
77 not permitted (the message has the line that mends it), 78 the configuration is wrong.")]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
}

/// Runs the gateway until it is told to end.
pub fn run(args: Args) -> ExitCode {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => return config_error(&error),
    };
    log_to_stderr(&config);
    match gateway(&args.config, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shadowvm: {error}");
            ExitCode::from(error.status())
        }
    }
}

/// Why the gateway does not run.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Links(#[from] LinkError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    State(#[from] StateFileError),
    #[error("{what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no user `{0}`; correct run.user, or make the user")]
    NoUser(String),
    #[error("privileges cannot be dropped: {0}; start as root, or remove [run]")]
    Privileges(String),
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl RunError {
    fn status(&self) -> u8 {
        let by_kind = |source: &io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => exit::PERMISSION,
            _ => exit::CONFIG,
        };
        match self {
            Self::Links(LinkError::Permission) | Self::Privileges(_) => exit::PERMISSION,
            Self::Links(LinkError::NotEthernet(_)) | Self::NoUser(_) => exit::CONFIG,
            Self::Links(LinkError::VnetHdrUnsupported(_) | LinkError::Io(..)) => exit::NO,
            Self::Links(LinkError::Socket(_, source)) => by_kind(source),
            Self::Socket(SocketError::Busy(_)) => exit::BUSY,
            Self::Socket(SocketError::NotASocket(_)) => exit::CONFIG,
            Self::Socket(SocketError::Io { source, .. }) | Self::File { source, .. } => {
                by_kind(source)
            }
            Self::State(StateFileError::Io(_, source)) => by_kind(source),
            Self::State(StateFileError::Foreign(..)) => exit::CONFIG,
            Self::State(StateFileError::InUse(_)) => exit::BUSY,
            Self::System { .. } => exit::BUG,
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

fn log_to_stderr(config: &Config) {
    let level = match config.log.level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
        Level::Trace => tracing::Level::TRACE,
    };
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    let lines = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_ansi(is_terminal)
        .with_target(false);
    // A subscriber that stands already is one of the process that called us.
    let _ = match config.log.is_json {
        true => lines.json().try_init(),
        false => lines.try_init(),
    };
}

fn gateway(file: &Path, config: Config) -> Result<(), RunError> {
    let started = Clock::now();
    let unheard = start_helper(&config)?;
    let guests = guests::start_keeper(&config)?;
    let containers = containers::start_keeper(&config)?;
    let keeper = start_keeper(&config)?;
    let listener = socket::bind(&config.socket)?;
    let attached: [Attached; 2] = Default::default();
    let mut links = Links::open(guests::links(&config, &attached), LinkOptions::default())?;
    let stats = links.stats();
    let (state, records) = open_state(&config)?;
    let events = config.log.events.as_deref().map(append).transpose()?;
    let record = config.record.clone();
    let guests = guests.map(|unheard| (unheard, attached));
    let outer = Outer {
        file,
        config,
        started,
        unheard,
        guests,
        containers,
        keeper,
        listener,
        stats,
        state,
        events,
    };
    let Some(path) = record else { return outer.run(&mut links, records) };
    let what = "cannot record into (capture.record)";
    let mut tap = Tap::new(links, &path).map_err(|source| RunError::File {
        what,
        path: path.clone(),
        source,
    })?;
    let ended = outer.run(&mut tap, records);
    if let Some(error) = tap.error() {
        tracing::warn!(%error, "the capture {} is not complete", path.display());
    }
    ended
}

/// Everything privileged, open.
struct Outer<'a> {
    file: &'a Path,
    config: Config,
    started: Clock,
    unheard: Option<Unheard>,
    guests: Option<(qemu::Unheard, [Attached; 2])>,
    containers: Option<container::Unheard>,
    keeper: Option<Keeper>,
    listener: std::os::unix::net::UnixListener,
    stats: [Arc<LinkStats>; 3],
    state: StateFile,
    events: Option<File>,
}

impl Outer<'_> {
    fn run<D: Driver>(self, driver: &mut D, records: Vec<Record>) -> Result<(), RunError> {
        drop_privileges(&self.config)?;
        let seed = RandomState::new().build_hasher().finish();
        let begun = driver.now();
        let mut engine = Engine::new(self.config.engine(), seed, begun);
        let flows = records.iter().filter(|record| matches!(record, Record::Flow { .. })).count();
        if !records.is_empty() {
            tracing::info!(flows, "continuing what an earlier process left in the state file");
            engine.handle(begun, Input::Restore(records.clone()));
        }
        let names = self.config.servers.each_ref().map(|server| server.name.clone());
        let board = Board::new(names.clone());
        let in_force = InForce::new(self.config.to_toml().into());
        let desk = self.keeper.map(|keeper| {
            let counts = Arc::clone(&board.evidence);
            Desk::start(keeper, names.clone(), counts)
        });
        let desk = desk.transpose().map_err(system("the evidence thread cannot start"))?;
        let recorder = desk.as_ref().map(|desk| {
            let evidence = &self.config.evidence;
            let bytes = usize::try_from(evidence.ring_bytes).unwrap_or(usize::MAX);
            let start = Start::Made { seed, at: begun, records };
            let ring = Ring::new(bytes, evidence.ring_time, start, begun);
            Recorder::new(ring, Arc::clone(&in_force), desk.inbox(), Arc::clone(&board.evidence))
        });
        let level = self.config.log.level;
        let observer = Observer::start(Arc::clone(&board), clock::to_unix_ns, self.events, level)
            .map_err(system("the event writer cannot start"))?;
        let (mailbox, inbox) = mailbox().map_err(system("no event descriptor"))?;
        let agents = agents::sink(mailbox.clone(), Arc::clone(&board));
        let helper = self.unheard.map(|unheard| unheard.listen(agents));
        let helper = helper.transpose();
        let helper = helper.map_err(system("the helper cannot be heard"))?.map(Arc::new);
        let is_sandboxed = Arc::new(AtomicBool::new(false));
        let admin = Admin::start(AdminParts {
            board,
            mailbox: mailbox.clone(),
            config: self.config.clone(),
            file: self.file.to_owned(),
            listener: self.listener,
            stats: self.stats,
            started: self.started,
            is_sandboxed: Arc::clone(&is_sandboxed),
            in_force,
        })
        .map_err(system("the admin thread cannot start"))?;
        let containers = self.containers.map(|unheard| {
            let files = containers::files(&self.config, helper.as_ref());
            let sync = unheard.listen(files, containers::Door(mailbox.clone()));
            sync.map_err(system("the keeper of containers cannot be heard"))
        });
        let sync: Option<Box<dyn StateSync>> = match (self.guests, &self.config.sync.backend) {
            (_, Some(Backend::Container(_))) => match containers.transpose()? {
                Some(sync) => Some(Box::new(sync)),
                None => None,
            },
            (Some((unheard, attached)), _) => {
                let gate = guests::Door { attached, mailbox: mailbox.clone() };
                let sync = unheard.listen(gate);
                Some(Box::new(sync.map_err(system("the keeper of guests cannot be heard"))?))
            }
            (None, Some(_)) => helper.as_ref().map(|helper| -> Box<dyn StateSync> {
                Box::new(ExecSync::new(Arc::clone(helper), names.clone()))
            }),
            (None, None) => None,
        };
        let mut outlet = Outlet {
            observer,
            sync,
            sink: sync_sink(mailbox.clone()),
            helper,
            names,
            state: self.state,
            mailbox,
            recorder,
        };
        is_sandboxed.store(confine(&self.config), Relaxed);
        let links = &self.config.links;
        tracing::info!(
            "shadowvm {} runs on {} (clients), {} and {} (servers); admin socket {}",
            env!("CARGO_PKG_VERSION"),
            links.client,
            links.a,
            links.b,
            self.config.socket.display(),
        );
        let ended = drive(&mut engine, driver, &inbox, &mut outlet);
        admin.stop();
        // After dropping privileges the directory may be closed to us; the next start replaces it.
        let _ = std::fs::remove_file(&self.config.socket);
        if let Some(recorder) = &mut outlet.recorder {
            recorder.end(driver.now());
        }
        drop(outlet);
        // It writes what it was given first.
        drop(desk);
        ended.map_err(system("the packet loop failed"))?;
        tracing::info!("ended; the state file lets the next start continue the connections");
        Ok(())
    }
}

/// Starts the helper process if there is anything for it to run.
fn start_helper(config: &Config) -> Result<Option<Unheard>, RunError> {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let failover = &config.failover;
    let commands = Commands {
        sync: match &config.sync.backend {
            Some(Backend::Exec(exec)) => {
                Some(HookCommand { argv: exec.command.clone(), timeout_ms: millis(exec.timeout) })
            }
            Some(Backend::Mirror(_) | Backend::Qemu(_) | Backend::Container(_)) | None => None,
        },
        mirror: config.sync.mirror().and_then(|mirror| mirror_command(config, mirror)),
        fence: failover.fence_command.as_ref().map(|command| HookCommand {
            argv: command.clone(),
            timeout_ms: millis(failover.fence_timeout),
        }),
        agents: agents::commands(config),
    };
    if commands.is_empty() {
        return Ok(None);
    }
    // The running file itself, even if the one on disk was replaced meanwhile.
    let helper = Unheard::spawn(Path::new("/proc/self/exe"), &commands);
    helper.map(Some).map_err(system("the helper process cannot start"))
}

/// Starts the process that writes evidence, if any is to be written.
fn start_keeper(config: &Config) -> Result<Option<Keeper>, RunError> {
    let evidence = &config.evidence;
    if !evidence.is_written {
        return Ok(None);
    }
    let limits = Limits {
        files_max: evidence.files_max,
        bytes_max: evidence.bytes_max,
        age_ms: u64::try_from(evidence.age_max.as_millis()).unwrap_or(u64::MAX),
    };
    let store = Store { dir: evidence.dir.clone() };
    let keeper = Keeper::spawn(Path::new("/proc/self/exe"), &store, limits);
    keeper.map(Some).map_err(system("the process that writes evidence cannot start"))
}

/// The mirror as its helper needs it; none if a server has no directory, which no valid
/// configuration says.
fn mirror_command(config: &Config, mirror: &MirrorBackend) -> Option<MirrorCommand> {
    let end = |server: &Server| match (server.tree.clone(), &server.agent) {
        (Some(Tree::Dir(dir)), _) => Some(EndSetup::Dir(dir)),
        (Some(Tree::Command(argv)), _) => Some(EndSetup::Command(argv)),
        (None, agent) => agent.is_some().then_some(EndSetup::Agent),
    };
    let [a, b] = &config.servers;
    let setup = MirrorSetup {
        ends: [end(a)?, end(b)?],
        exclude: mirror.exclude.clone(),
        is_watching: mirror.is_watching,
        by_content: mirror.by_content,
        is_durable: mirror.is_durable,
        timeout_ms: u64::try_from(mirror.timeout.as_millis()).unwrap_or(u64::MAX),
    };
    Some(MirrorCommand { setup, names: [a.name.clone(), b.name.clone()] })
}

/// Opens the state file; one that cannot be trusted is put aside.
fn open_state(config: &Config) -> Result<(StateFile, Vec<Record>), RunError> {
    let path = &config.state_file;
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        let what = "cannot make the directory of the state file (state.file)";
        std::fs::create_dir_all(dir).map_err(|source| RunError::File {
            what,
            path: path.clone(),
            source,
        })?;
    }
    let (state, refused) = StateFile::open_or_replace(path, config.limits.flows_max)?;
    if let Some(refused) = refused {
        tracing::warn!(
            "{refused}; it was put aside as {}.bad, and connections from before this start pass to \
             the primary",
            path.display()
        );
    }
    let records = state.load();
    Ok((state, records))
}

fn append(path: &Path) -> Result<File, RunError> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
    let what = "cannot write the event log (log.events)";
    opened.map_err(|source| RunError::File { what, path: path.to_owned(), source })
}

/// The configured user, if there is one.
fn run_as(config: &Config) -> Result<Option<(Uid, Gid)>, RunError> {
    match &config.run_as {
        None => Ok(None),
        Some(RunAs::Ids { uid, gid }) => Ok(Some((Uid::from_raw(*uid), Gid::from_raw(*gid)))),
        Some(RunAs::User(name)) => {
            let user = User::from_name(name);
            let user = user.map_err(|error| RunError::Privileges(error.to_string()))?;
            let user = user.ok_or_else(|| RunError::NoUser(name.clone()))?;
            Ok(Some((user.uid, user.gid)))
        }
    }
}

/// Becomes the configured user, with the least that it takes to run on.
fn drop_privileges(config: &Config) -> Result<(), RunError> {
    let wrong = |error: &dyn std::fmt::Display| RunError::Privileges(error.to_string());
    let user = run_as(config)?;
    if let Some((uid, gid)) = user {
        let links =
            [&config.links.a, &config.links.b].map(|link| config::Links::guest_socket(link));
        for path in links.into_iter().flatten().chain([config.socket.as_path()]) {
            let given = nix::unistd::chown(path, Some(uid), Some(gid));
            given.map_err(|error| wrong(&error))?;
        }
    }
    privileges::drop_to(user).map_err(|error| wrong(&error))
}

/// Confines the process, if that is wanted and can be; whether it is.
fn confine(config: &Config) -> bool {
    if !config.is_sandboxed {
        return false;
    }
    let confined = sandbox::enter();
    if let Err(error) = &confined {
        tracing::warn!(
            "running without the sandbox: {error}; to be told no more, set security.sandbox = false"
        );
    }
    confined.is_ok()
}

/// The way from the admin thread to the packet loop.
#[derive(Debug)]
struct Post(Mailbox);

impl Gateway for Post {
    // A loop that has ended answers nothing; whoever asked is told by the missing answer.
    fn command(&self, id: u64, command: Command) {
        let _ = self.0.send(Request::Input(Input::Command(id, command)));
    }

    fn inspect(&self, question: Question) {
        let _ = self.0.send(Request::Inspect(question));
    }
}

fn sync_sink(mailbox: Mailbox) -> SyncSink {
    Arc::new(move |id, step| {
        let _ = mailbox.send(Request::Input(Input::SyncStep(id, step)));
    })
}

/// Where the engine's outputs go that are no frames.
struct Outlet {
    observer: Observer,
    sync: Option<Box<dyn StateSync>>,
    sink: SyncSink,
    helper: Option<Arc<Helper>>,
    names: [String; 2],
    state: StateFile,
    mailbox: Mailbox,
    recorder: Option<Recorder>,
}

impl Sink for Outlet {
    fn event(&mut self, now: Instant, event: &Event) {
        self.observer.event(now, event);
        if let Some(recorder) = &mut self.recorder {
            recorder.event(now, event);
        }
    }

    fn input(&mut self, now: Instant, input: &Input) {
        if let Some(recorder) = &mut self.recorder {
            recorder.input(now, input);
        }
    }

    fn transmit(&mut self, now: Instant, link: Link, frame: &Frame) {
        if let Some(recorder) = &mut self.recorder {
            recorder.output(now, link, frame);
        }
    }

    fn pause(&mut self, now: Instant, engine: &Engine) {
        if let Some(recorder) = &mut self.recorder {
            recorder.pause(now, engine);
        }
    }

    fn sync(&mut self, request: SyncRequest) {
        match &mut self.sync {
            Some(backend) => backend.start(request, Arc::clone(&self.sink)),
            None => {
                let message = "no sync backend is configured".to_owned();
                (self.sink)(request.id, SyncStep::Failed { message });
            }
        }
    }

    fn cancel_sync(&mut self, id: SyncId) {
        if let Some(backend) = &mut self.sync {
            backend.cancel(id);
        }
    }

    fn overwrite(&mut self, id: SyncId) {
        if let Some(backend) = &mut self.sync {
            backend.overwrite(id);
        }
    }

    fn fence(&mut self, epoch: Epoch, server: LegId) {
        let mailbox = self.mailbox.clone();
        let tell = move |ok| {
            let _ = mailbox.send(Request::Input(Input::Fenced { epoch, ok }));
        };
        match &self.helper {
            Some(helper) => exec::fence(helper, &self.names, epoch, server, move |outcome| {
                if let Err(message) = &outcome {
                    tracing::warn!("the fence command failed: {message}");
                }
                tell(outcome.is_ok());
            }),
            None => tell(false),
        }
    }

    fn persist(&mut self, record: &Record) {
        self.state.write(record);
    }
}

/// The admin thread.
struct Admin {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

struct AdminParts {
    board: Arc<Board>,
    mailbox: Mailbox,
    config: Config,
    file: PathBuf,
    listener: std::os::unix::net::UnixListener,
    stats: [Arc<LinkStats>; 3],
    started: Clock,
    is_sandboxed: Arc<AtomicBool>,
    in_force: InForce,
}

impl Admin {
    fn start(parts: AdminParts) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("admin".into()).spawn(move || {
            if let Err(error) = runtime.block_on(administer(parts, stopped)) {
                tracing::error!(%error, "the admin socket is closed; restart to administer again");
            }
        })?;
        Ok(Self { stop, thread })
    }

    fn stop(self) {
        // It may have ended by itself.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Serves the admin socket and the signals until told to stop.
async fn administer(parts: AdminParts, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let AdminParts { board, mailbox, config, file, listener, stats, started, .. } = parts;
    let (is_sandboxed, in_force) = (parts.is_sandboxed, parts.in_force);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let running = config.clone();
    let door = Arc::new(Door {
        board,
        gateway: Box::new(Post(mailbox.clone())),
        config,
        reload: Box::new(move || read_again(&file, &running, &in_force)),
        link_counts: Box::new(move || stats.each_ref().map(|stats| link_counts(stats))),
        started,
        is_sandboxed,
    });
    let listener = UnixListener::from_std(listener)?;
    let (close, closed) = oneshot::channel::<()>();
    let served = tokio::spawn(admin::serve(listener, Arc::clone(&door), async {
        let _ = closed.await;
    }));
    let mut stopped = stopped;
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = terminate.recv() => end(&mailbox, "SIGTERM"),
            _ = interrupt.recv() => end(&mailbox, "SIGINT"),
            _ = hangup.recv() => reload_by_signal(&door).await,
        }
    }
    drop(close);
    // Requests under way get a moment; a reader that holds its connection open does not.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(500), served).await;
    Ok(())
}

fn end(mailbox: &Mailbox, signal: &str) {
    tracing::info!("{signal}: ending");
    // A loop that has ended already is what is wanted.
    let _ = mailbox.send(Request::Stop);
}

async fn reload_by_signal(door: &Door) {
    match admin::reload(door).await {
        Ok(()) => tracing::info!("SIGHUP: the new configuration is in force"),
        Err(why) => tracing::warn!("SIGHUP: the configuration in force stays: {why}"),
    }
}

/// The engine's part of the configuration, read again.
fn read_again(
    file: &Path,
    running: &Config,
    in_force: &InForce,
) -> Result<Box<crate::engine::EngineConfig>, ReloadError> {
    let new = Config::load(file).map_err(|error: ConfigError| ReloadError::Config(error))?;
    let changed = running.needs_restart(&new);
    match changed.is_empty() {
        true => {
            // The engine takes whatever changes none of what needs a restart.
            *in_force.lock().unwrap_or_else(PoisonError::into_inner) = new.to_toml();
            Ok(Box::new(new.engine()))
        }
        false => Err(ReloadError::NeedsRestart(changed.join(", "))),
    }
}

fn link_counts(stats: &LinkStats) -> LinkCounts {
    let errors = stats.send_errors.lock().unwrap_or_else(PoisonError::into_inner);
    LinkCounts {
        rx_frames: stats.rx_frames.load(Relaxed),
        rx_bytes: stats.rx_bytes.load(Relaxed),
        tx_frames: stats.tx_frames.load(Relaxed),
        tx_bytes: stats.tx_bytes.load(Relaxed),
        kernel_drops: stats.kernel_drops.load(Relaxed),
        bad_headers: stats.bad_headers.load(Relaxed),
        queue_drops: stats.queue_drops.load(Relaxed),
        late_frames: stats.late_frames.load(Relaxed),
        send_errors: errors
            .iter()
            .map(|(errno, n)| (format!("{:?}", nix::errno::Errno::from_raw(*errno)), *n))
            .collect(),
    }
}
