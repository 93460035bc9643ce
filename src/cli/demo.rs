//! `shadowvm demo`: the main job, shown in a world of its own, with every byte checked.
//!
//! The first output comes before anything is built. Nothing stays behind, also after SIGKILL.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde_json::json;

use super::cast::{Death, become_user_root};
use super::containers::Containers;
use super::copied::Copied;
use super::guests::{Guests, MemoryCopy};
use super::stage::{Addressing, Stage, StageError};
use super::{Format, exit};
use crate::lab::{Haven, WorldOptions, world};
use crate::sim::fleet;

mod copies;
mod story;

use story::{Account, Script, show};

/// Simulated stories where nothing else can run.
const SIMULATED_SEEDS: u64 = 200;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  shadowvm demo                                    the primary is killed in the middle of downloads
  shadowvm demo --scenario ftp --fault cut         silence around it, in the middle of FTP transfers
  shadowvm demo --scenario mixed --addressing vip  web and FTP, servers with addresses of their own
  shadowvm demo --servers container                two containers, which a sync copies by CRIU
  shadowvm demo --servers vm                       two guests of QEMU with Debian's nginx, vsftpd
  shadowvm demo --servers vm --copy shared         the same; their memory is files on this host

Exit status: 0 every byte was right and all was seen that should be, 1 not, 69 what the servers are
made of is not here (the message names what brings it).")]
pub struct Args {
    /// What the servers are
    #[arg(long, value_enum, default_value_t)]
    servers: Servers,
    /// Where the files of the virtual machines are, if not in target/guest
    #[arg(long, value_name = "DIR")]
    guest: Option<PathBuf>,
    /// How the memory of virtual machines is copied
    #[arg(long, value_enum, default_value_t)]
    copy: MemoryCopy,
    /// What befalls the servers
    #[arg(long, value_enum, default_value = "kill9")]
    fault: Fault,
    /// What the clients do
    #[arg(long, value_enum, default_value_t)]
    scenario: Scenario,
    /// Seconds of traffic around the faults
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    seconds: f64,
    /// Draws the byte at which the fault strikes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How to write the report
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// What addresses the servers have
    #[arg(long, value_enum, default_value_t)]
    addressing: Addressing,
    /// In what the hosts are made
    #[arg(long, value_enum, default_value_t = Kind::Auto)]
    world: Kind,
    /// A deliberate mistake that must be noticed
    #[arg(long, value_enum, hide = true)]
    plant: Option<Plant>,
}

/// What the servers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Servers {
    /// Processes of this program, in namespaces
    #[default]
    Process,
    /// The same in containers; a sync copies the processes, by CRIU (root only)
    Container,
    /// Guests of QEMU with Debian's nginx and vsftpd; a sync copies the whole machine
    Vm,
}

/// What befalls the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The primary dies, one way or another.
    Death(Death),
    /// One of the backup's files has a wrong byte.
    WrongByte,
    /// The backup becomes slow.
    Slow,
}

impl Fault {
    const ALL: [Self; 6] = [
        Self::Death(Death::Kill9),
        Self::Death(Death::Linkdown),
        Self::Death(Death::Cut),
        Self::Death(Death::Freeze),
        Self::WrongByte,
        Self::Slow,
    ];

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl ValueEnum for Fault {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Death(death) => death.to_possible_value(),
            Self::WrongByte => Some(
                PossibleValue::new("wrong-byte").help("The backup has a wrong byte in one file"),
            ),
            Self::Slow => Some(PossibleValue::new("slow").help("The backup becomes slow")),
        }
    }
}

/// What the clients do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// Downloads and small requests over HTTP
    #[default]
    Web,
    /// The same in FTP sessions, by passive data connections
    Ftp,
    /// Half of them this, half of them that
    Mixed,
}

impl Scenario {
    /// Whether the `number`th client speaks FTP.
    fn is_ftp(self, number: usize) -> bool {
        match self {
            Self::Web => false,
            Self::Ftp => true,
            Self::Mixed => !number.is_multiple_of(2),
        }
    }

    /// The word of the command line.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// In what the hosts are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// The first of the following that the system allows
    Auto,
    /// Network namespaces, as root
    Root,
    /// Network namespaces in a user namespace
    User,
    /// The simulator: no real kernel, labelled as such
    Sim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Plant {
    WrongByteAtClient,
}

/// Shows it.
pub fn run(args: Args) -> ExitCode {
    let teller = Teller { start: Instant::now(), is_quiet: args.output == Format::Json };
    let script = Script {
        fault: args.fault,
        scenario: args.scenario,
        seconds: args.seconds,
        seed: args.seed,
        plants_wrong_byte: args.plant == Some(Plant::WrongByteAtClient),
    };
    if args.servers != Servers::Process || args.copy != MemoryCopy::Live {
        return with_copies(&args, &teller);
    }
    let (name, setting) = match Setting::make(args.world, args.addressing) {
        Ok(made) => made,
        Err(error) => {
            eprintln!("demo: {error}\nTry --world auto, or --world sim, which needs nothing.");
            return ExitCode::from(exit::PERMISSION);
        }
    };
    teller.say(&format!("world: {name}"));
    let Some(mut setting) = setting else { return simulated(&args, name, &teller) };
    match perform(&mut setting.stage, &script, &teller) {
        Ok(account) => report(&args, name, &account, &teller),
        Err(error) => {
            let account = Account { faults_found: vec![error.to_string()], ..Account::default() };
            report(&args, name, &account, &teller)
        }
    }
}

/// A world and the folder of its files; the world ends first.
struct Setting {
    stage: Stage,
    _haven: Haven,
}

impl Setting {
    /// The best that the system allows: its description, and nothing if it is the simulator.
    fn make(
        kind: Kind,
        addressing: Addressing,
    ) -> Result<(&'static str, Option<Self>), StageError> {
        const ROOT: &str = "network namespaces, as root";
        const USER: &str = "network namespaces inside a user namespace, no root";
        const SIM: &str = "SIMULATED: the system allows no namespaces here";
        let is_root = nix::unistd::geteuid().is_root();
        match kind {
            Kind::Sim => Ok(("SIMULATED, as asked", None)),
            Kind::Root => Self::as_root(addressing).map(|made| (ROOT, Some(made))),
            Kind::User => Self::as_user(addressing).map(|made| (USER, Some(made))),
            Kind::Auto => {
                if is_root && let Ok(made) = Self::as_root(addressing) {
                    return Ok((ROOT, Some(made)));
                }
                let made = Self::as_user(addressing);
                Ok(made.map_or((SIM, None), |made| (USER, Some(made))))
            }
        }
    }

    fn as_user(addressing: Addressing) -> Result<Self, StageError> {
        become_user_root()?;
        Self::as_root(addressing)
    }

    fn as_root(addressing: Addressing) -> Result<Self, StageError> {
        let haven =
            Haven::new().map_err(|source| StageError::Io { what: "making a folder", source })?;
        let (kind, topology) = (world::Kind::Root, addressing.topology());
        let options = WorldOptions { kind, topology, ..WorldOptions::default() };
        let stage = Stage::new(&options, haven.dir())?;
        Ok(Self { stage, _haven: haven })
    }
}

/// The play with servers that are copied as a whole, never with other servers instead.
fn with_copies(args: &Args, teller: &Teller) -> ExitCode {
    let is_plain = args.fault == Fault::Death(Death::Kill9)
        && (args.scenario, args.addressing) == (Scenario::Web, Addressing::Clone)
        && args.world != Kind::Sim
        && args.plant.is_none()
        && (args.servers == Servers::Vm || args.copy == MemoryCopy::Live);
    if !is_plain {
        eprintln!(
            "demo: servers that are copied have a story of their own; leave out --fault, \
             --scenario, --addressing and --world sim; --copy is about --servers vm"
        );
        return ExitCode::from(exit::USAGE);
    }
    // Only root copies processes, whatever user namespaces allow.
    let world = match (args.servers, args.world) {
        (Servers::Container, Kind::Auto) => Kind::Root,
        (_, world) => world,
    };
    // Before a world is made: what is missing is missing in all of them.
    if args.servers == Servers::Vm
        && let Err(error) = Guests::find(args.guest.as_deref(), Path::new("/"), args.copy)
    {
        eprintln!("demo: {error}");
        return ExitCode::from(exit::UNAVAILABLE);
    }
    let (name, mut setting) = match Setting::make(world, args.addressing) {
        Ok((name, Some(setting))) => (name, setting),
        Ok((_, None)) => {
            eprintln!("demo: the system allows no namespaces here; `shadowvm doctor` tells why");
            return ExitCode::from(exit::PERMISSION);
        }
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::from(exit::PERMISSION);
        }
    };
    let stage = &mut setting.stage;
    let found = match args.servers {
        Servers::Container => Containers::find(stage.dir()).map(Copied::Containers),
        _ => Guests::find(args.guest.as_deref(), stage.dir(), args.copy).map(Copied::Guests),
    };
    let copied = match found {
        Ok(copied) => copied,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::from(exit::UNAVAILABLE);
        }
    };
    teller.say(&format!("world: {name}, servers: two {}s", copied.noun()));
    let mut play = || -> Result<Account, StageError> {
        stage.copied = Some(copied.clone());
        copied.start(stage)?;
        stage.start_gateway(&copied.sections())?;
        copies::play(stage, &copied, args.seed, teller)
    };
    let account = play().unwrap_or_else(|error| Account {
        faults_found: vec![error.to_string()],
        ..Account::default()
    });
    report(args, name, &account, teller)
}

fn perform(stage: &mut Stage, script: &Script, teller: &Teller) -> Result<Account, StageError> {
    let sync = stage.sync_section(crate::engine::LegId::B);
    stage.start_all(&sync)?;
    teller.say("clients, a gateway and two servers for web and FTP run; both protect the service");
    story::play(stage, script, teller)
}

/// The same gateway between simulated hosts: many small stories instead of one.
fn simulated(args: &Args, world: &str, teller: &Teller) -> ExitCode {
    if args.plant.is_some() {
        eprintln!("demo: nothing can be planted in the simulator; `shadowvm sim --planted` can");
        return ExitCode::from(exit::USAGE);
    }
    crate::sim::hush_panics();
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = crate::sim::Options::default();
    let summary = fleet::run(args.seed, SIMULATED_SEEDS, &fleet::idle(jobs), &options, |_| true);
    let passed = summary.failures.is_empty();
    if args.output == Format::Json {
        println!(
            "{}",
            json!({
                "world": world, "passed": passed, "problems": summary.failures,
                "seed": args.seed, "stories": summary.seeds, "failovers": summary.failovers,
                "took_ns": teller.start.elapsed().as_nanos() as u64,
            })
        );
    } else {
        for (seed, what) in &summary.failures {
            println!("  PROBLEM: seed {seed}: {what}; see `shadowvm sim --seed {seed}`");
        }
        teller.say(&format!(
            "{} stories of a client, the gateway and two servers, {} failovers among them; in \
             each, every byte was checked",
            summary.seeds, summary.failovers
        ));
        let verdict = if passed { "PASS" } else { "FAIL" };
        println!("\n{verdict} in {:.1} s, SIMULATED", teller.start.elapsed().as_secs_f64());
    }
    ExitCode::from(if passed { exit::OK } else { exit::NO })
}

fn report(args: &Args, world: &str, account: &Account, teller: &Teller) -> ExitCode {
    let passed = account.faults_found.is_empty();
    let took = teller.start.elapsed();
    if args.output == Format::Json {
        let mut object = account.json();
        object["world"] = json!(world);
        object["servers"] = json!(match args.servers {
            Servers::Process => "process",
            Servers::Container => "container",
            Servers::Vm => "vm",
        });
        object["fault"] = json!(args.fault.name());
        object["scenario"] = json!(args.scenario.name());
        object["addressing"] = json!(args.addressing.name());
        object["seed"] = json!(args.seed);
        object["took_ns"] = json!(took.as_nanos() as u64);
        println!("{object}");
    } else {
        print_report(args, account, took);
    }
    ExitCode::from(if passed { exit::OK } else { exit::NO })
}

fn print_report(args: &Args, account: &Account, took: Duration) {
    let line = |name: &str, value: String| println!("  {name:<28}{value}");
    println!("\nReport");
    line("connections", format!("{}, lost {}", account.connections, account.connections_lost));
    let wrong = if account.faults_found.is_empty() { "all right" } else { "NOT all right" };
    line("bytes checked by clients", format!("{}, {wrong}", account.bytes_checked));
    let all = (account.verified + account.unverified).max(1);
    let share = account.verified as f64 * 100.0 / all as f64;
    line("said by both servers", format!("{share:.1} % of {all} bytes, the rest by the one left"));
    if let Some(sync) = account.sync {
        line("sync after the difference", show(sync));
    }
    if let (Some(moved), Some(reset)) = (account.flows_moved, account.flows_reset) {
        line("moved to the survivor", format!("{moved}, reset {reset}"));
    }
    if let Some(stall) = account.stall {
        line("longest wait of a client", show(stall));
    }
    if let Some(stall) = account.own_stall {
        line(
            "longest the gateway waited",
            format!("{} for a processor (busy machine)", show(stall)),
        );
    }
    if let (Some(through), Some(direct)) = (account.through_p50, account.direct_p50) {
        let (added, sign) = match through.checked_sub(direct) {
            Some(added) => (added, "+"),
            None => (direct - through, "-"),
        };
        line("against a direct path", format!("{sign}{} a request (median)", show(added)));
    }
    for problem in &account.faults_found {
        println!("  PROBLEM: {problem}");
    }
    if !account.faults_found.is_empty() {
        println!(
            "\nFAIL in {:.1} s (fault {}, seed {})",
            took.as_secs_f64(),
            args.fault.name(),
            args.seed
        );
        return;
    }
    println!(
        "\nNext:\n  shadowvm demo --fault cut      the same with silence instead of a death\n  \
         shadowvm lab up                a world that stays, to try by hand with curl\n  \
         shadowvm config init           a first configuration for two servers of yours\n\n\
         PASS in {:.1} s",
        took.as_secs_f64()
    );
}

/// Tells the story as it goes.
#[derive(Debug)]
struct Teller {
    start: Instant,
    is_quiet: bool,
}

impl Teller {
    fn say(&self, line: &str) {
        if !self.is_quiet {
            println!("{:6.2} s  {line}", self.start.elapsed().as_secs_f64());
        }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    match (0.0..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("0 to 3600 seconds are possible".into()),
    }
}
