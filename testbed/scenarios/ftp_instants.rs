//! What a client of FTP does while a server dies, at an instant that the seed draws: it gets what
//! it was to get, once, on the connections that it has, and its session goes on.

use std::fmt;
use std::fs;

use shadowvm::engine::LegId;

use super::bed::{Bed, Fault};
use super::client::Progress;
use super::content::{Rng, bytes, sha256, sha256_of, write_dated};
use super::daemons::Daemon;
use super::ftp::{Session, Way};
use super::instants::Lived;
use super::matrix::Failure;

/// Files of the folder that is listed.
const LISTED: usize = 10_000;
/// A line of its listing is at least so long.
const LINE_BYTES_MIN: usize = 60;
/// A small transfer.
const SMALL_BYTES: usize = 100_000;

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Get,
    Put,
    /// A long listing.
    List,
    /// Nothing: between two commands, with or without a data connection offered.
    Pause,
}

/// Transfers by one way, or any.
#[derive(Clone, Copy, Debug)]
pub struct Errand {
    job: Job,
    way: Option<Way>,
    file_bytes: usize,
}

impl fmt::Display for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            Some(way) => write!(f, "{:?}-{way:?}", self.job),
            None => write!(f, "{:?}", self.job),
        }
    }
}

impl Errand {
    /// All of them, of 100 MB each if `is_long`.
    pub fn all(is_long: bool) -> Vec<Self> {
        let file_bytes = if is_long { 100_000_000 } else { 24 << 20 };
        let ways = [Way::Passive, Way::Extended, Way::Active].map(Some);
        let transfers = [Job::Get, Job::Put].into_iter().flat_map(|job| ways.map(|way| (job, way)));
        let all = transfers.chain([(Job::List, None), (Job::Pause, None)]);
        all.map(|(job, way)| Self { job, way, file_bytes }).collect()
    }

    /// vsftpd, with a file and a folder of many.
    pub fn start_server(self, bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
        let many = bed.own(leg).join("ftp/many");
        if self.job == Job::List && !many.exists() {
            fs::create_dir_all(&many).map_err(|e| e.to_string())?;
            for n in 0..LISTED {
                write_dated(&many.join(name(n)), b"x").map_err(|e| e.to_string())?;
            }
        }
        Daemon::Vsftpd.start_with(bed, leg, self.file_bytes)
    }

    /// The server dies in its midst.
    pub fn once(
        self,
        bed: &Bed<'_>,
        fault: Fault,
        victim: LegId,
        rng: &mut Rng,
    ) -> Result<Lived, Failure> {
        let drawn = [Way::Passive, Way::Extended, Way::Active][rng.below(3)];
        // What has no place for an address of IPv6 has another command for it.
        let (way, is_v6) = match (self.way.unwrap_or(drawn), rng.next() % 2 == 1) {
            (Way::Passive, _) => (Way::Passive, false),
            (Way::Active, true) => (Way::Called, true),
            other => other,
        };
        let mut session = Session::open(bed, is_v6)?;
        let data = bytes(77, self.file_bytes);
        let sent = bytes(rng.next(), self.file_bytes);
        let stored = format!("put/{:x}", rng.next());
        let len = match self.job {
            Job::Get | Job::Put => self.file_bytes,
            Job::List => LISTED * LINE_BYTES_MIN,
            Job::Pause => 2,
        };
        let instant = rng.next() % (len as u64 * 9 / 10);
        let progress = Progress::default();
        if self.job == Job::List {
            // It is over in no time, unless its reader stands still.
            progress.stand_at(instant.max(1));
        }
        let is_struck = std::thread::scope(|scope| -> Result<bool, Failure> {
            if self.job == Job::Pause {
                // A data connection that the dead server has offered is the survivor's.
                let offered = (instant == 0).then(|| session.offer(way)).transpose()?;
                progress.measure_gaps();
                bed.strike(fault, victim, "")?;
                return match offered {
                    Some(at) => session.get_at(at, "data", 0, &data, &progress),
                    None => session.get(way, "data", 0, &data, &progress),
                }
                .map(|()| true)
                .map_err(Failure::Broken);
            }
            let (session, progress) = (&mut session, &progress);
            let (data, sent, stored) = (&data, &sent, &stored);
            let worker = scope.spawn(move || {
                let done = match self.job {
                    Job::Put => session.put(way, stored, sent, progress),
                    Job::List => session.listing(way, "many", progress).and_then(|t| is_whole(&t)),
                    Job::Get | Job::Pause => session.get(way, "data", 0, data, progress),
                };
                progress.end();
                done
            });
            let is_reached = progress.reach(instant.max(1));
            progress.measure_gaps();
            let struck = bed.strike(fault, victim, "");
            progress.go_on();
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            struck?;
            Ok(is_reached)
        })?;
        // The session goes on: nobody has to log in again.
        let from = self.file_bytes - SMALL_BYTES;
        session.get(way, "data", from, &data[from..], &Progress::default())?;
        let small = format!("{stored}-small");
        session.put(way, &small, &sent[..SMALL_BYTES], &Progress::default())?;
        session.list(way, "data")?;
        session.expect("QUIT", 221)?;
        let large = (self.job == Job::Put).then_some((&stored, &sent[..]));
        for (name, sent) in large.into_iter().chain([(&small, &sent[..SMALL_BYTES])]) {
            let path = bed.own(victim.other()).join("ftp").join(name);
            if sha256_of(&path).map_err(|e| format!("{name}: {e}"))? != sha256(sent) {
                return Err(Failure::Broken(format!("{name}: not what was sent was stored")));
            }
            for leg in LegId::ALL {
                let _ = fs::remove_file(bed.own(leg).join("ftp").join(name));
            }
        }
        Ok(Lived { is_struck, gap: progress.longest_gap() })
    }
}

fn name(n: usize) -> String {
    format!("file-{n:05}")
}

/// Whether a listing has each file once, in order.
fn is_whole(text: &str) -> Result<(), String> {
    let names = text.lines().filter_map(|line| line.rsplit(' ').next());
    match names.eq((0..LISTED).map(name)) {
        true => Ok(()),
        false => Err(format!("a listing of {} bytes lacks files", text.len())),
    }
}
