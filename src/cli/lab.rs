//! `shadowvm lab`: a lasting world to try the gateway in by hand, with curl or anything else.
//!
//! `up` leaves a holder process behind, which owns the world; the other verbs talk to it by a
//! socket in its folder. The holder's end, however it comes, is the end of everything in the world.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::unistd::{geteuid, getuid};
use serde::{Deserialize, Serialize};

use super::door::say;
use super::exit;
use super::stage::{Addressing, Stage, server_name};
use crate::engine::LegId;
use crate::lab::world::SERVICE;
use crate::lab::{HostId, Kind, WorldOptions};

mod holder;
use holder::{Answer, Call, FaultKind};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm lab up                                      two servers, a gateway, a client
  shadowvm lab exec client -- curl -si http://192.0.2.10/bytes/100
  shadowvm lab exec client -- curl -s ftp://192.0.2.10/bytes-100
  shadowvm lab exec client -- curl -so /dev/null http://192.0.2.10/bytes/10000000000 &
  shadowvm lab fault kill9 a                           while it runs
  shadowvm lab fault --undo kill9 a                    the server comes back
  shadowvm lab down")]
pub struct Args {
    /// Folder of the world: its socket, configuration and logs [default: below /run, or below
    /// XDG_RUNTIME_DIR for an ordinary user]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make the world, and start two servers and the gateway in it
    Up {
        /// How the network namespaces are made
        #[arg(long, value_enum, default_value = "auto")]
        world: Privilege,
        /// What addresses the servers have
        #[arg(long, value_enum, default_value_t)]
        addressing: Addressing,
        /// Have IPv6 look for duplicates of its addresses
        #[arg(long)]
        dad: bool,
    },
    /// End the world and everything in it
    Down,
    /// Do something bad to a server, or with --undo: end it
    Fault {
        /// What
        #[arg(value_enum)]
        kind: FaultKind,
        /// To which server
        #[arg(value_enum, default_value = "a")]
        server: Server,
        /// End the fault: the server's program, link or namespace comes back
        #[arg(long)]
        undo: bool,
    },
    /// Run a program in a host of the world
    Exec {
        /// Where
        #[arg(value_enum)]
        host: Host,
        /// The program and its arguments, after `--`
        #[arg(required = true, last = true)]
        program: Vec<std::ffi::OsString>,
    },
    /// Own a world until told otherwise
    #[command(hide = true)]
    Hold {
        #[arg(long, value_enum, default_value = "auto")]
        world: Privilege,
        #[arg(long, value_enum, default_value_t)]
        addressing: Addressing,
        #[arg(long)]
        dad: bool,
    },
    /// The world's sync command: the target's answers become right again
    #[command(hide = true)]
    Heal {
        /// The file that makes a server's answers wrong, without the server's name at its end
        wrong: PathBuf,
    },
}

/// How the network namespaces of a world are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Privilege {
    /// As root if we are, else with a user namespace
    Auto,
    /// As root
    Root,
    /// With a user namespace
    User,
}

/// A server by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
enum Server {
    /// The first
    A,
    /// The second
    B,
}

/// A host by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
enum Host {
    /// The client
    Client,
    /// The gateway
    Gateway,
    /// The first server
    A,
    /// The second server
    B,
}

/// Runs the verb.
pub fn run(args: Args) -> ExitCode {
    let dir = args.dir.unwrap_or_else(usual_dir);
    let done = match args.verb {
        Verb::Up { world, addressing, dad } => up(&dir, world, addressing, dad),
        Verb::Down => ask(&dir, &Call::Down, &[]).map(|_| say("the world has ended\n")),
        Verb::Fault { kind, server, undo } => fault(&dir, kind, server, undo),
        Verb::Exec { host, program } => return exec(&dir, host, program),
        Verb::Hold { world, addressing, dad } => {
            let (kind, topology) = (world.into(), addressing.topology());
            let options = WorldOptions { kind, topology, dad, ..WorldOptions::default() };
            holder::hold(&dir, &options).map_err(LabError::Held)
        }
        Verb::Heal { wrong } => heal(&wrong).map_err(LabError::Io),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum LabError {
    #[error("no world in {}: {source}; make one with `shadowvm lab up`", dir.display())]
    NoWorld { dir: PathBuf, source: io::Error },
    #[error("there is a world in {} already; end it with `shadowvm lab down`", .0.display())]
    Busy(PathBuf),
    #[error("the world was not made:\n{0}")]
    NotUp(String),
    #[error("{0}")]
    Refused(String),
    #[error("the holder ended before it answered; see holder.log in its folder")]
    Silent,
    #[error(transparent)]
    Held(holder::HolderError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn refuse(error: &LabError) -> ExitCode {
    eprintln!("shadowvm lab: {error}");
    ExitCode::from(match error {
        LabError::NoWorld { .. } => exit::NO_DAEMON,
        LabError::Busy(_) => exit::BUSY,
        LabError::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => exit::PERMISSION,
        _ => exit::NO,
    })
}

/// Where the lasting world of this user is.
fn usual_dir() -> PathBuf {
    if geteuid().is_root() {
        return "/run/shadowvm-lab".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) => Path::new(&dir).join("shadowvm-lab"),
        None => std::env::temp_dir().join(format!("shadowvm-lab-{}", getuid())),
    }
}

fn up(dir: &Path, world: Privilege, addressing: Addressing, dad: bool) -> Result<(), LabError> {
    if holder::connect(dir).is_ok() {
        return Err(LabError::Busy(dir.to_owned()));
    }
    // What a killed holder may have left; a folder that is not ours is refused below.
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
    let log = File::create(dir.join("holder.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("lab").arg("--dir").arg(dir).arg("hold");
    command.args(["--world", privilege_name(world)]).args(dad.then_some("--dad"));
    command.args(["--addressing", &addressing.name()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut holder = command.spawn()?;
    let mut line = String::new();
    if let Some(out) = holder.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line.trim() != "ready" {
        holder.wait()?;
        let log = fs::read_to_string(dir.join("holder.log")).unwrap_or_default();
        let _ = fs::remove_dir_all(dir);
        return Err(LabError::NotUp(log.trim_end().to_owned()));
    }
    say(&format!("{}\n", next_commands(dir)));
    Ok(())
}

fn privilege_name(world: Privilege) -> &'static str {
    match world {
        Privilege::Auto => "auto",
        Privilege::Root => "root",
        Privilege::User => "user",
    }
}

fn next_commands(dir: &Path) -> String {
    let at = match dir == usual_dir() {
        true => String::new(),
        false => format!(" --dir {}", dir.display()),
    };
    let socket = dir.join("admin.sock");
    let socket = socket.display();
    let (v4, _) = SERVICE;
    format!(
        "The world is up: a client, the gateway, servers a (primary) and b, together {v4}.
  shadowvm lab{at} exec client -- curl -si http://{v4}/bytes/100
  shadowvm status --socket {socket}
  shadowvm lab{at} fault kill9 a
  shadowvm lab{at} fault --undo kill9 a
  shadowvm lab{at} exec gateway -- tcpdump -ni client
  shadowvm lab{at} down"
    )
}

fn fault(dir: &Path, kind: FaultKind, server: Server, undo: bool) -> Result<(), LabError> {
    ask(dir, &Call::Fault { kind, server, undo }, &[])?;
    let what = if undo { "ended" } else { "in force" };
    say(&format!("{kind} of server {}: {what}\n", server_name(server.into())));
    Ok(())
}

/// Runs a program in a host with our own streams; its exit status becomes ours.
fn exec(dir: &Path, host: Host, program: Vec<std::ffi::OsString>) -> ExitCode {
    let call = || -> Result<i32, LabError> {
        let call = Call::Exec {
            host,
            program: program.clone(),
            env: std::env::vars_os().collect(),
            dir: std::env::current_dir()?.into(),
        };
        let streams = [
            io::stdin().as_fd().try_clone_to_owned()?,
            io::stdout().as_fd().try_clone_to_owned()?,
            io::stderr().as_fd().try_clone_to_owned()?,
        ];
        match ask(dir, &call, &streams)? {
            Answer::Ended { status } => Ok(status),
            _ => Err(LabError::Silent),
        }
    };
    match call() {
        Ok(status) => {
            let status = std::process::ExitStatus::from_raw(status);
            // As shells tell a program that was killed.
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
            ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::NO))
        }
        Err(error) => refuse(&error),
    }
}

/// Asks the holder and waits for its answer.
fn ask(dir: &Path, call: &Call, streams: &[OwnedFd]) -> Result<Answer, LabError> {
    let socket =
        holder::connect(dir).map_err(|source| LabError::NoWorld { dir: dir.to_owned(), source })?;
    match holder::ask(&socket, call, streams)? {
        Some(Answer::Refused(why)) => Err(LabError::Refused(why)),
        Some(answer) => Ok(answer),
        None => Err(LabError::Silent),
    }
}

/// Removes what makes the answers of the sync's target wrong.
fn heal(wrong: &Path) -> io::Result<()> {
    let target = std::env::var("SHADOWVM_TO").map_err(io::Error::other)?;
    let mut file = wrong.as_os_str().to_owned();
    file.push(target);
    match fs::remove_file(PathBuf::from(file)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The lines of the configuration that make `Heal` the sync command.
pub(super) fn sync_lines(stage: &Stage) -> io::Result<String> {
    let wrong = stage.wrong_file(LegId::A);
    let wrong = wrong.to_string_lossy();
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let program = std::env::current_exe()?;
    Ok(format!(
        "[sync]\nbackend = \"exec\"\ndeadline = \"3s\"\ncommand = [{}, \"lab\", \"heal\", {}]\n",
        quoted(&program.to_string_lossy()),
        quoted(wrong.strip_suffix('a').unwrap_or(&wrong)),
    ))
}

impl From<Privilege> for Kind {
    fn from(privilege: Privilege) -> Self {
        match privilege {
            Privilege::Auto => Self::Auto,
            Privilege::Root => Self::Root,
            Privilege::User => Self::User,
        }
    }
}

impl From<Server> for LegId {
    fn from(server: Server) -> Self {
        match server {
            Server::A => Self::A,
            Server::B => Self::B,
        }
    }
}

impl From<Host> for HostId {
    fn from(host: Host) -> Self {
        match host {
            Host::Client => Self::Client,
            Host::Gateway => Self::Gateway,
            Host::A => Self::Server(LegId::A),
            Host::B => Self::Server(LegId::B),
        }
    }
}
