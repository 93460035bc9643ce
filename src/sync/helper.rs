//! The helper process: the only one that runs commands, and that has a mirror's ends as children.
//!
//! Started before privileges are dropped, it learns its work once, from the first line of its
//! socket, and afterwards does nothing else: whoever takes over the gateway can start the
//! operator's own commands and the configured mirror, and nothing more. It also has the connections
//! to the servers' agents, and tells what they report. Lines of JSON in both directions. When the
//! gateway is gone it kills what runs and ends.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::agent::link::{AgentSetup, Link, News};
use super::mirror::pair::{MirrorSetup, Pair, Progress, Wish};
use super::process::{Process, write_line};

/// The hidden verb under which the program is its own helper.
pub const VERB: &str = "helper";
/// A sync in two passes: the first one, while servers run.
pub const AHEAD: &str = "ahead";
/// The second one, while they stand still.
pub const FROZEN: &str = "frozen";
/// Longest part of a command's last line that is told.
const MESSAGE_CHARS_MAX: usize = 400;
/// How long a last line on its way is waited for, after the command has ended.
const LAST_LINE_WAIT: Duration = Duration::from_millis(200);

/// Which command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// `[sync] command`, or the mirror.
    Sync,
    /// `[failover] fence_command`.
    Fence,
}

/// A command of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookCommand {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// When it is killed.
    pub timeout_ms: u64,
}

/// All that the helper will ever run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Commands {
    /// Makes the backup equal.
    pub sync: Option<HookCommand>,
    /// Makes the backup equal instead of a command.
    pub mirror: Option<MirrorCommand>,
    /// Fences a server.
    pub fence: Option<HookCommand>,
    /// The agents, in the order of the servers.
    #[serde(default)]
    pub agents: [Option<AgentCommand>; 2],
}

/// An agent of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentCommand {
    /// Where it is.
    pub setup: AgentSetup,
    /// Beside which server.
    pub name: String,
}

/// What is known of an agent, and by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentNews {
    /// Beside which server, 0 or 1.
    pub server: usize,
    /// Whether it is connected.
    pub is_connected: bool,
    /// Whether it knows that the service of its server is gone.
    pub is_gone: bool,
    /// How the service is, or why there is no connection.
    pub text: String,
}

/// Hears what changed.
pub type AgentSink = Box<dyn Fn(AgentNews) + Send>;

/// The mirror of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MirrorCommand {
    /// What it is.
    pub setup: MirrorSetup,
    /// Whose ends they are.
    pub names: [String; 2],
}

impl Commands {
    /// Whether there is nothing to run, so that no helper is needed.
    pub fn is_empty(&self) -> bool {
        let has_agent = self.agents.iter().any(Option::is_some);
        self.sync.is_none() && self.mirror.is_none() && self.fence.is_none() && !has_agent
    }

    fn get(&self, hook: Hook) -> Option<&HookCommand> {
        match hook {
            Hook::Sync => self.sync.as_ref(),
            Hook::Fence => self.fence.as_ref(),
        }
    }
}

/// One run of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct JobId(u64);

/// How a command ended: well, or why not.
pub type Outcome = Result<(), String>;

/// The environment's names that a job may set.
const ENV: &[&str] = &[
    "SHADOWVM_REASON",
    "SHADOWVM_EPOCH",
    "SHADOWVM_FROM",
    "SHADOWVM_TO",
    "SHADOWVM_FLOW",
    "SHADOWVM_PASS",
    "SHADOWVM_SERVER",
];

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Run { job: JobId, hook: Hook, env: Vec<(String, String)> },
    Kill { job: JobId },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done {
        job: JobId,
        outcome: Outcome,
    },
    /// For the log.
    Said {
        text: String,
    },
    /// Something is known of an agent.
    Agent(AgentNews),
}

type Callback = Box<dyn FnOnce(Outcome) + Send>;

/// The gateway's end.
#[derive(Debug)]
pub struct Helper {
    process: Process,
    jobs: Arc<Mutex<Jobs>>,
}

#[derive(Default)]
struct Jobs {
    next: u64,
    running: HashMap<JobId, Callback>,
    is_gone: bool,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("running", &self.running.len()).finish_non_exhaustive()
    }
}

/// A helper process whose answers nobody listens to yet.
#[derive(Debug)]
pub struct Unheard(Process);

impl Unheard {
    /// Starts `program` (this very program) as helper for `commands`.
    pub fn spawn(program: &Path, commands: &Commands) -> io::Result<Self> {
        let process = Process::spawn(program, VERB)?;
        process.tell(commands)?;
        Ok(Self(process))
    }

    /// Starts to listen. `agents` hears what agents know.
    pub fn listen(self, agents: AgentSink) -> io::Result<Helper> {
        Helper::listen_to(self.0, agents)
    }
}

impl Helper {
    /// A helper at the other end of `stream`, for `commands`.
    pub fn over(stream: UnixStream, commands: &Commands) -> io::Result<Self> {
        let process = Process::over(stream)?;
        process.tell(commands)?;
        Self::listen_to(process, Box::new(|_| {}))
    }

    fn listen_to(process: Process, agents: AgentSink) -> io::Result<Self> {
        let jobs = Arc::new(Mutex::new(Jobs::default()));
        let (said, shared) = (process.said()?, Arc::clone(&jobs));
        std::thread::Builder::new()
            .name("helper".into())
            .spawn(move || hear(said, &shared, &agents))?;
        Ok(Self { process, jobs })
    }

    /// Runs the command of `hook`. `done` is called once, from another thread, unless the job is
    /// killed first.
    pub fn run(&self, hook: Hook, env: Vec<(&'static str, String)>, done: Callback) -> JobId {
        let mut jobs = lock(&self.jobs);
        jobs.next += 1;
        let job = JobId(jobs.next);
        if jobs.is_gone {
            drop(jobs);
            done(Err(GONE.into()));
            return job;
        }
        jobs.running.insert(job, done);
        drop(jobs);
        let env = env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        if let Err(error) = self.process.tell(&Order::Run { job, hook, env })
            && let Some(done) = lock(&self.jobs).running.remove(&job)
        {
            done(Err(format!("{GONE} ({error})")));
        }
        job
    }

    /// Kills a job; nothing more is told of it.
    pub fn kill(&self, job: JobId) {
        if lock(&self.jobs).running.remove(&job).is_some() {
            // A helper that does not hear this is gone, and its jobs with it.
            let _ = self.process.tell(&Order::Kill { job });
        }
    }
}

const GONE: &str = "the helper process is gone; restart the gateway";

/// Hands each outcome to whoever waits for it.
fn hear(stream: BufReader<UnixStream>, jobs: &Mutex<Jobs>, agents: &AgentSink) {
    for line in stream.lines() {
        let Ok(line) = line else { break };
        match serde_json::from_str(&line) {
            Ok(Answer::Done { job, outcome }) => {
                let callback = lock(jobs).running.remove(&job);
                if let Some(done) = callback {
                    done(outcome);
                }
            }
            Ok(Answer::Said { text }) => tracing::info!("{text}"),
            Ok(Answer::Agent(news)) => agents(news),
            Err(_) => {
                tracing::error!(line, "the helper said something that is no answer");
                break;
            }
        }
    }
    let mut jobs = lock(jobs);
    jobs.is_gone = true;
    let left: Vec<Callback> = jobs.running.drain().map(|(_, done)| done).collect();
    drop(jobs);
    for done in left {
        done(Err(GONE.into()));
    }
}

/// The helper's own life: takes orders from `stream` until it ends.
pub fn serve(stream: UnixStream) -> io::Result<()> {
    let answers = Arc::new(Mutex::new(stream.try_clone()?));
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next() else { return Ok(()) };
    let commands: Commands = serde_json::from_str(&first?)?;
    // One run of each command at a time: two copies onto one target would be worse than none.
    let turns = [Arc::new(Mutex::new(())), Arc::new(Mutex::new(()))];
    let is_over = Arc::new(AtomicBool::new(false));
    let [a, b] = commands.agents.clone();
    let links = [start_link(0, a, &answers)?, start_link(1, b, &answers)?];
    let mirror =
        commands.mirror.clone().map(|command| start_mirror(command, links.clone(), &is_over));
    let mirror = mirror.transpose()?;
    let mut running: HashMap<JobId, (Sender<Stop>, std::thread::JoinHandle<()>)> = HashMap::new();
    for line in lines {
        let Ok(line) = line else { break };
        running.retain(|_, (_, thread)| !thread.is_finished());
        match serde_json::from_str(&line)? {
            Order::Run { job, hook, env } => {
                let (stop, stopped) = channel();
                let turn = Arc::clone(&turns[hook as usize]);
                let command = commands.get(hook).cloned();
                let (answers, exit) = (Arc::clone(&answers), stop.clone());
                let mirror = mirror.clone().filter(|_| hook == Hook::Sync);
                let thread = std::thread::Builder::new().spawn(move || {
                    let _turn = lock(&turn);
                    // The gateway may be gone.
                    let say = |text| drop(write_line(&lock(&answers), &Answer::Said { text }));
                    let outcome = match &mirror {
                        Some(mirror) => run_mirror(mirror, &env, &stopped, say),
                        None => run_job(command.as_ref(), env, exit, &stopped),
                    };
                    let _ = write_line(&lock(&answers), &Answer::Done { job, outcome });
                })?;
                running.insert(job, (stop, thread));
            }
            Order::Kill { job } => {
                if let Some((stop, _)) = running.get(&job) {
                    // A job that has just ended needs no stop.
                    let _ = stop.send(Stop::Killed);
                }
            }
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for (_, (stop, thread)) in running {
        let _ = stop.send(Stop::Killed);
        let _ = thread.join();
    }
    Ok(())
}

/// The way to an agent. What it reports is evidence as long as it is connected: nobody vouches for
/// what one that is gone has said last.
fn start_link(
    server: usize,
    command: Option<AgentCommand>,
    answers: &Arc<Mutex<UnixStream>>,
) -> io::Result<Option<Arc<Link>>> {
    let Some(AgentCommand { setup, name }) = command else { return Ok(None) };
    let (answers, address) = (Arc::clone(answers), setup.address.clone());
    let last = Mutex::new(None);
    let tell = move |news| {
        let mut last = lock(&last);
        let is_connected = !matches!(news, News::Lost(_));
        let (is_gone, said, text) = match news {
            News::Connected => {
                let said = format!("connected to the agent at {address}");
                (false, said, "nothing is reported of the service".to_owned())
            }
            News::Lost(why) => {
                *last = None;
                (false, why.clone(), why)
            }
            News::Report(report) if last.as_ref() == Some(&report) => return,
            News::Report(report) => {
                let text = report.to_string();
                (last.insert(report).is_gone(), format!("its agent reports: {text}"), text)
            }
        };
        // The gateway may be gone.
        let say = |answer| drop(write_line(&lock(&answers), &answer));
        say(Answer::Agent(AgentNews { server, is_connected, is_gone, text }));
        say(Answer::Said { text: format!("server {name}: {said}") });
    };
    Link::start(setup, tell).map(|link| Some(Arc::new(link)))
}

/// A mirror whose ends begin to watch; the first sync waits for that, unless all is over.
fn start_mirror(
    command: MirrorCommand,
    links: [Option<Arc<Link>>; 2],
    is_over: &Arc<AtomicBool>,
) -> io::Result<Arc<Mutex<Mirror>>> {
    let pair = Pair::new(command.setup, command.names.clone()).with_links(links);
    let mirror = Arc::new(Mutex::new(Mirror { pair, names: command.names }));
    let (warming, (begun, has_begun)) = (Arc::clone(&mirror), channel());
    let is_over = Arc::clone(is_over);
    std::thread::Builder::new().spawn(move || {
        let mut mirror = lock(&warming);
        // Whoever waits for it has nothing to hear.
        let _ = begun.send(());
        mirror.pair.warm(|| is_over.load(Ordering::Relaxed));
    })?;
    let _ = has_begun.recv();
    Ok(mirror)
}

struct Mirror {
    pair: Pair,
    names: [String; 2],
}

/// One sync by the mirror. After a divergence, and where processes stand still for it, the watches
/// know what to look at; on every other occasion everything is looked at.
fn run_mirror(
    mirror: &Mutex<Mirror>,
    env: &[(String, String)],
    stopped: &Receiver<Stop>,
    say: impl Fn(String),
) -> Outcome {
    let of = |key| env.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
    let mut mirror = lock(mirror);
    let from = mirror.names.iter().position(|name| Some(name.as_str()) == of("SHADOWVM_FROM"));
    let from = from.ok_or("no such server")?;
    let pass = of("SHADOWVM_PASS");
    let wish = Wish {
        is_full: of("SHADOWVM_REASON") != Some("divergence") && pass != Some(FROZEN),
        is_ahead: pass == Some(AHEAD),
    };
    let begun = std::time::Instant::now();
    let is_stopped = || matches!(stopped.try_recv(), Ok(Stop::Killed));
    let tell = |at: Progress| {
        let Progress { files, files_all, sent } = at;
        let sent = sent as f64 / 1e6;
        say(format!("mirror: {files} of {files_all} files, {sent:.1} MB between the ends"));
    };
    let done = mirror.pair.sync(from, wish, is_stopped, tell)?;
    let (report, took) = (done.report, begun.elapsed().as_secs_f64() * 1e3);
    say(format!(
        "mirror: {} paths looked at{}, {} files written, {} removed, {} otherwise mended; {} bytes \
         between the ends, {took:.1} ms",
        report.paths,
        if report.is_full { " (all)" } else { "" },
        report.written,
        report.removed,
        report.mended,
        done.sent,
    ));
    Ok(())
}

/// What ends the wait for a command.
enum Stop {
    Exited(io::Result<ExitStatus>),
    Killed,
}

fn run_job(
    command: Option<&HookCommand>,
    env: Vec<(String, String)>,
    exit: Sender<Stop>,
    stopped: &Receiver<Stop>,
) -> Outcome {
    if let Ok(Stop::Killed) = stopped.try_recv() {
        return Err("given up before it started".into());
    }
    let Some((command, program)) = command.and_then(|c| Some((c, c.argv.first()?))) else {
        return Err("no such command is configured".into());
    };
    let mut child = Command::new(program)
        .args(&command.argv[1..])
        .envs(env.into_iter().filter(|(key, _)| ENV.contains(&key.as_str())))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let last_line = child.stderr.take().map(last_line_of);
    let group = Pid::from_raw(child.id().cast_signed());
    let waiter = std::thread::Builder::new()
        .spawn(move || {
            let status = child.wait();
            // The job may have been stopped meanwhile.
            let _ = exit.send(Stop::Exited(status));
        })
        .map_err(|error| format!("{program} cannot be waited for: {error}"))?;
    let timeout = Duration::from_millis(command.timeout_ms);
    let end = stopped.recv_timeout(timeout);
    if !matches!(end, Ok(Stop::Exited(_))) {
        // Children of the command belong to its group; one that is gone already is no error.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = waiter.join();
    let said = last_line.and_then(|line| line.recv_timeout(LAST_LINE_WAIT).ok().flatten());
    let said = said.map(|line| format!(": {line}")).unwrap_or_default();
    match end {
        Ok(Stop::Exited(Ok(status))) if status.success() => Ok(()),
        Ok(Stop::Exited(Ok(status))) => {
            Err(format!("{program} ended with {}{said}", status_text(status)))
        }
        Ok(Stop::Exited(Err(error))) => Err(format!("{program} cannot be waited for: {error}")),
        Ok(Stop::Killed) => Err(format!("{program} was given up and killed")),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(format!("{program} had not ended after {timeout:?} and was killed{said}"))
        }
    }
}

fn status_text(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

/// Drains `stderr`, so that the command never blocks on it, and keeps the last line that says
/// something.
fn last_line_of(stderr: std::process::ChildStderr) -> Receiver<Option<String>> {
    let (tell, told) = channel();
    let drain = move || {
        let mut last = None;
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        while let Ok(1..) = read_line_bounded(&mut reader, &mut line) {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim();
            if !text.is_empty() {
                last = Some(text.chars().take(MESSAGE_CHARS_MAX).collect());
            }
        }
        // Nobody waits for it after a while.
        let _ = tell.send(last);
    };
    if let Err(error) = std::thread::Builder::new().spawn(drain) {
        tracing::error!(%error, "a command's messages cannot be read");
    }
    told
}

/// Reads one line, or a part of a longer one; the number of bytes, 0 at the end.
fn read_line_bounded(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    let limit = 4 * MESSAGE_CHARS_MAX as u64;
    io::Read::take(reader, limit).read_until(b'\n', line)
}

/// What the mutexes guard is changed in one step, so a panic elsewhere leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
