//! `shadowvm bench sync`: what a sync by the mirror costs, and what the same costs rsync.
//!
//! Both start from the same tree and copy it to a directory of their own; after the last round
//! rsync itself says whether the mirror's copy is equal, content and all.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::{Row, Table, Unit};
use crate::cli::stage::StageError;
use crate::sync::agent::key::Key;
use crate::sync::agent::link::{AgentSetup, Link};
use crate::sync::agent::serve::{Agent, Setup};
use crate::sync::agent::service::Watched;
use crate::sync::mirror::pair::{Done, EndSetup, MirrorSetup, Pair, Wish};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files in the tree
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    files: u64,
    /// Bytes of all files together, most of them holes
    #[arg(long, default_value_t = 10_000_000_000)]
    bytes: u64,
    /// Rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where the trees are made, and removed; its file system is what is measured
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// By way of two agents on this machine: encrypted, and packed where that makes it smaller
    #[arg(long, conflicts_with = "machine")]
    agents: bool,
    /// Copy virtual machines instead: live, and by memory that is files; beside stopping them first
    #[arg(long)]
    machine: bool,
    /// Copy containers instead, by CRIU, while they serve
    #[arg(long, conflicts_with = "machine")]
    container: bool,
    /// Where the files of the virtual machines are, if not in target/guest
    #[arg(long, value_name = "DIR")]
    guest: Option<PathBuf>,
}

impl Args {
    /// How often containers are copied under each load, if that is what is asked for.
    pub(super) fn containers(&self) -> Option<u32> {
        self.container.then_some(self.runs)
    }

    /// What is measured with virtual machines, if that is what is asked for.
    pub(super) fn machines(&self) -> Option<(u32, Option<&Path>)> {
        self.machine.then_some((self.runs, self.guest.as_deref()))
    }
}

/// Bytes of a file that are no hole.
const DATA_LEN: usize = 2_000;
/// Files in one directory.
const FILES_IN_DIR: u64 = 100;

/// Measures.
pub(super) fn run(args: &Args) -> Result<Table, StageError> {
    let made = tree_dir(args.dir.as_deref()).map_err(io_error("making a folder"))?;
    let measured = measure(args, &made);
    // What cannot be removed is left to whoever named the directory.
    let _ = fs::remove_dir_all(&made);
    measured
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> StageError {
    move |source| StageError::Io { what, source }
}

fn tree_dir(dir: Option<&Path>) -> io::Result<PathBuf> {
    let dir = dir.map_or_else(std::env::temp_dir, Path::to_owned);
    let made = dir.canonicalize()?.join(format!("shadowvm-sync-{}", std::process::id()));
    fs::create_dir(&made)?;
    Ok(made)
}

const ROWS: [(&str, Unit); 9] = [
    ("first copy: mirror", Unit::Seconds),
    ("first copy: rsync -aHAX --delete", Unit::Seconds),
    ("nothing changed: mirror", Unit::Seconds),
    ("nothing changed: rsync", Unit::Seconds),
    ("one byte of one file changed: mirror", Unit::Seconds),
    ("one byte of one file changed: rsync", Unit::Seconds),
    ("the same, sent between the mirror's ends", Unit::Bytes),
    ("nothing changed, everything looked at: mirror", Unit::Seconds),
    ("the same, sent between the mirror's ends", Unit::Bytes),
];

fn measure(args: &Args, dir: &Path) -> Result<Table, StageError> {
    let [source, mirrored, copied] = ["source", "mirror", "rsync"].map(|name| dir.join(name));
    make_tree(&source, args.files, args.bytes).map_err(io_error("making a tree"))?;
    let (files, bytes, runs) = (args.files, args.bytes, args.runs);
    let setting = json!({ "agents": args.agents, "files": files, "bytes": bytes, "runs": runs });
    let links = match args.agents {
        true => agents(dir, [&source, &mirrored]).map_err(io_error("starting agents"))?,
        false => [None, None],
    };
    let rows = ROWS.map(|(name, unit)| Row::new(name, unit)).into();
    let mut table = Table::new("sync", setting, rows);
    for round in 0..args.runs {
        for path in [&mirrored, &copied] {
            let _ = fs::remove_dir_all(path);
            fs::create_dir(path).map_err(io_error("making a folder"))?;
        }
        // The trees removed and made are not what the first copy shall wait for.
        nix::unistd::sync();
        let mut pair = pair(&source, &mirrored, &links);
        pair.warm(|| false);
        let mut values = Vec::new();
        let first = sync(&mut pair, true)?;
        let by_rsync = rsync(&source, &copied, &[])?.1;
        values.extend([first.1, by_rsync]);
        let idle = sync(&mut pair, false)?;
        values.extend([idle.1, rsync(&source, &copied, &[])?.1]);
        change(&source, round, args.files).map_err(io_error("changing a file"))?;
        let one = sync(&mut pair, false)?;
        values.extend([one.1, rsync(&source, &copied, &[])?.1, one.0.sent as f64]);
        let full = sync(&mut pair, true)?;
        values.extend([full.1, full.0.sent as f64]);
        for (row, value) in table.rows.iter_mut().zip(values) {
            row.values.push(value);
        }
        if idle.0.report.is_full || one.0.report.is_full {
            table.troubles.push("the watch does not work here: everything was looked at".into());
        }
    }
    table.ratio("first copy: rsync / mirror", 1, 0);
    table.ratio("nothing changed: rsync / mirror", 3, 2);
    table.ratio("one byte changed: rsync / mirror", 5, 4);
    let (differences, _) = rsync(&source, &mirrored, &["-n", "--checksum", "-i"])?;
    if let Some(first) = differences.lines().next() {
        let count = differences.lines().count();
        table.troubles.push(format!("rsync finds {count} differences, such as {first}"));
    }
    Ok(table)
}

fn pair(source: &Path, target: &Path, links: &[Option<Arc<Link>>; 2]) -> Pair {
    let end = |dir: &Path, link: &Option<Arc<Link>>| match link {
        Some(_) => EndSetup::Agent,
        None => EndSetup::Dir(dir.to_string_lossy().into_owned()),
    };
    let setup = MirrorSetup {
        ends: [end(source, &links[0]), end(target, &links[1])],
        exclude: Vec::new(),
        is_watching: true,
        by_content: false,
        is_durable: false,
        timeout_ms: 600_000,
    };
    Pair::new(setup, ["source".into(), "target".into()]).with_links(links.clone())
}

/// An agent for each directory, in threads that end with the process, and the ways to them.
fn agents(dir: &Path, trees: [&Path; 2]) -> io::Result<[Option<Arc<Link>>; 2]> {
    let key = dir.join("agent.key");
    Key::make(&key).map_err(io::Error::other)?;
    let link = |tree: &Path| {
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let (key, tree) = (key.clone(), Some(tree.to_owned()));
        let setup = Setup { listen, key, dir: tree, watched: Watched::default(), limit: None };
        let agent = Agent::bind(setup).map_err(io::Error::other)?;
        let address = agent.address()?.to_string();
        std::thread::Builder::new().spawn(move || agent.run())?;
        let setup = AgentSetup { address, key: dir.join("agent.key"), limit: None };
        Link::start(setup, |_| {}).map(|link| Some(Arc::new(link)))
    };
    let [source, target] = trees;
    fs::create_dir_all(target)?;
    Ok([link(source)?, link(target)?])
}

/// One sync, and its seconds.
fn sync(pair: &mut Pair, is_full: bool) -> Result<(Done, f64), StageError> {
    let begun = Instant::now();
    let done = pair.sync(0, Wish { is_full, ..Wish::default() }, || false, |_| {});
    let done = done.map_err(|why| io_error("a sync")(io::Error::other(why)))?;
    Ok((done, begun.elapsed().as_secs_f64()))
}

/// What rsync says, and its seconds.
fn rsync(source: &Path, target: &Path, more: &[&str]) -> Result<(String, f64), StageError> {
    let begun = Instant::now();
    let output = Command::new("rsync")
        .args(["-aHAX", "--delete"])
        .args(more)
        .arg(source.join(""))
        .arg(target.join(""))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(io_error("rsync, which is compared with (Debian's package rsync)"))?;
    if !output.status.success() {
        return Err(io_error("rsync")(io::Error::other(output.status.to_string())));
    }
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), begun.elapsed().as_secs_f64()))
}

fn file_path(root: &Path, nth: u64) -> PathBuf {
    root.join(format!("d{}", nth / FILES_IN_DIR)).join(format!("f{nth}"))
}

/// Files with some bytes at the front and in the middle and holes between, and a few links.
fn make_tree(root: &Path, files: u64, bytes: u64) -> io::Result<()> {
    fs::create_dir(root)?;
    let len = bytes / files;
    let mut data = [0; DATA_LEN];
    for nth in 0..files {
        let path = file_path(root, nth);
        if nth % FILES_IN_DIR == 0 {
            fs::create_dir(path.parent().unwrap_or(root))?;
        }
        // A sequence by Marsaglia, so that no two files are equal.
        let mut state = (nth + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for chunk in data.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes());
        }
        let file = File::create(&path)?;
        file.set_len(len)?;
        let room = usize::try_from(len).unwrap_or(DATA_LEN).min(DATA_LEN / 2);
        file.write_all_at(&data[..room], 0)?;
        file.write_all_at(&data[..room.min(DATA_LEN / 2)], (len / 2).min(len - room as u64))?;
        if nth % 1000 == 0 {
            symlink(format!("f{nth}"), path.with_extension("link"))?;
        }
    }
    Ok(())
}

/// One byte of one file.
fn change(root: &Path, round: u32, files: u64) -> io::Result<()> {
    let nth = (u64::from(round) * 7919 + files / 2) % files;
    let file = File::options().read(true).write(true).open(file_path(root, nth))?;
    let mut byte = [0];
    let _ = file.read_at(&mut byte, 0)?;
    file.write_all_at(&[byte[0] ^ 0xff], 0)
}
