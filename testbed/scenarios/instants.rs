//! One server dies, again and again, in the midst of the same kind of request or transfer: at
//! instants that the seed draws, by turns the one and the other server.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use shadowvm::engine::LegId;
use shadowvm::lab::{HostId, WorldOptions};

use super::Scenario;
use super::bed::{Bed, Fault, GatewayOptions, until};
use super::client::{Connection, Progress};
use super::content::{BIG_SEED, Content, Rng, bytes, leg_name, sha256, sha256_of};
use super::ftp_instants::Errand;
use super::judge;
use super::matrix::{Failure, Struck};

/// What the client asks for while the server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// The large file.
    Get,
    /// To take a large body.
    Put,
    /// The large file, in chunks.
    Chunked,
    /// A part of the large file.
    Part,
    /// Nothing: between two requests of connections that are kept.
    Idle,
}

/// What is under way.
#[derive(Clone, Copy)]
enum Task {
    Web(Work),
    Ftp(Errand),
}

/// What one instant has shown.
#[derive(Clone, Copy, Debug)]
pub struct Lived {
    /// The fault came before the end.
    pub is_struck: bool,
    /// The longest time from there on in which nothing came, or could be sent, or until an answer.
    pub gap: Duration,
}

const WORKS: [Work; 5] = [Work::Get, Work::Put, Work::Chunked, Work::Part, Work::Idle];
const FAULTS: [Fault; 3] = [Fault::KillAll, Fault::Stop, Fault::LinkDown];
/// Instants of each kind of request and fault.
const INSTANTS_LONG: usize = 50;
const INSTANTS: usize = 2;
/// A server that is back takes part in new connections within this time.
const PAIRED_MAX: Duration = Duration::from_secs(10);
/// The client's connections are over within this time.
const ENDED_MAX: Duration = Duration::from_secs(10);
/// Connections that are kept.
const KEPT: usize = 4;
const BODY_BYTES: usize = 24 << 20;
/// nginx does not know the length of what it looks through, and sends it in chunks.
const CHUNKED: &str = "location /chunked/ { alias ROOT/; ssi on; ssi_types *; }";

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(work) => write!(f, "{work:?}"),
            Self::Ftp(errand) => write!(f, "ftp-{errand}"),
        }
    }
}

impl Task {
    const fn port(self) -> u16 {
        match self {
            Self::Web(_) => 80,
            Self::Ftp(_) => 21,
        }
    }

    fn start_server(self, bed: &Bed<'_>, leg: LegId) -> Result<(), String> {
        if let Self::Ftp(errand) = self {
            return errand.start_server(bed, leg);
        }
        let root = bed.content.root(leg).display().to_string();
        bed.start_nginx_with(leg, &CHUNKED.replace("ROOT", &root))
    }

    fn once(
        self,
        bed: &Bed<'_>,
        fault: Fault,
        victim: LegId,
        rng: &mut Rng,
    ) -> Result<Lived, Failure> {
        match self {
            Self::Web(work) => once(bed, work, fault, victim, rng),
            Self::Ftp(errand) => errand.once(bed, fault, victim, rng),
        }
    }
}

/// Each kind of request and fault; one fault for each kind unless `is_long`.
pub fn scenarios(content: &Content, seed: u64, is_long: bool) -> Vec<Scenario<'_>> {
    let mut all: Vec<Scenario<'_>> = Vec::new();
    let errands = Errand::all(is_long).into_iter().map(Task::Ftp);
    for (i, task) in WORKS.into_iter().map(Task::Web).chain(errands).enumerate() {
        for (j, fault) in FAULTS.into_iter().enumerate() {
            if !is_long && !(i + j + seed as usize).is_multiple_of(FAULTS.len()) {
                continue;
            }
            let name = format!("instants-{task}-{fault:?}").to_lowercase();
            let count = if is_long { INSTANTS_LONG } else { INSTANTS };
            let seed = seed * 64 + all.len() as u64;
            all.push((name, Box::new(move |at| instants(at, content, (task, fault), count, seed))));
        }
    }
    all
}

fn instants(
    at: &Path,
    content: &Content,
    (task, fault): (Task, Fault),
    count: usize,
    seed: u64,
) -> Result<String, Failure> {
    let ports = matches!(task, Task::Ftp(_)).then_some("[21]");
    let options = GatewayOptions { ports, ..GatewayOptions::default() };
    let mut bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    for leg in LegId::ALL {
        task.start_server(&bed, leg)?;
    }
    let mut rng = Rng::new(seed);
    let (mut late, mut gaps) = (0, Vec::new());
    for n in 0..count {
        // Each has a gateway of its own: one that saw a server fail wants more to believe it again.
        bed.start_gateway()?;
        bed.wait_protected()?;
        wait_paired(&bed, task.port())?;
        // Those are over; their state is told by who speaks on them.
        let earlier: BTreeSet<String> = bed.flows()?.into_iter().map(|flow| flow.client).collect();
        let victim = match bed.status()?.primary == leg_name(LegId::A) {
            true => LegId::A,
            false => LegId::B,
        };
        let lived = task
            .once(&bed, fault, victim, &mut rng)
            .map_err(|failure| failure.at(&format!("instant {n}")))?;
        late += usize::from(!lived.is_struck);
        gaps.push(lived.gap);
        if bed.count("shadowvm_flows_reset_total", None)? != 0 {
            return Err(Failure::Broken(format!("instant {n}: a connection was reset")));
        }
        judge::no_divergence(&bed)?;
        if n + 1 < count {
            // The next gateway would remember them, and reset them with the next server that dies.
            until(ENDED_MAX, "the connections to end", || {
                let flows = bed.flows().ok()?;
                let mut own = flows.iter().filter(|flow| !earlier.contains(&flow.client));
                own.all(|flow| flow.state == "time_wait").then_some(())
            })?;
            bed.end_gateway()?;
            // Evidence of the last instant is looked at in the end.
            let _ = fs::remove_dir_all(at.join("evidence"));
            match fault {
                Fault::KillAll => task.start_server(&bed, victim)?,
                Fault::Stop => bed.world.thaw(HostId::Server(victim)).map_err(|e| e.to_string())?,
                _ => bed.world.link_up(victim).map_err(|e| e.to_string())?,
            }
        }
    }
    if late * 4 > count {
        return Err(Failure::Void(format!("{late} of {count} faults came too late")));
    }
    judge::events(&bed.events()?, Struck { t_ns: 0 })?;
    bed.judge()?;
    gaps.sort();
    let share = |percent: usize| gaps[(gaps.len() * percent).div_ceil(100) - 1].as_millis();
    let gaps =
        format!("gaps p50 {} ms, p99 {} ms, at most {} ms", share(50), share(99), share(100));
    Ok(format!("{count} instants, {late} of them too late for the request, {gaps}"))
}

/// Both servers answer new connections in time: one that is back asks for its neighbours first.
fn wait_paired(bed: &Bed<'_>, port: u16) -> Result<(), String> {
    for is_v6 in [false, true] {
        until(PAIRED_MAX, "a connection to be protected", || {
            let stream = bed.dial(HostId::Client, port, is_v6).ok()?;
            let own = stream.local_addr().ok()?.to_string();
            let flows = bed.flows().ok()?;
            flows.iter().any(|flow| flow.client == own && flow.state == "paired").then_some(())
        })?;
    }
    Ok(())
}

/// One request in whose midst the server dies, and one more on each connection.
fn once(
    bed: &Bed<'_>,
    work: Work,
    fault: Fault,
    victim: LegId,
    rng: &mut Rng,
) -> Result<Lived, Failure> {
    let is_v6 = rng.next() % 2 == 1;
    let count = if work == Work::Idle { KEPT } else { 1 };
    let mut kept: Vec<Connection> =
        (0..count).map(|_| bed.connect(is_v6)).collect::<Result<_, _>>()?;
    let small = &bed.content.small;
    for connection in &mut kept {
        connection.get(&small[rng.below(small.len())], &Progress::default())?;
    }
    let request = Request::draw(bed, work, rng);
    let instant = rng.next() % (request.len * 9 / 10).max(1);
    let progress = Progress::default();
    let is_struck = std::thread::scope(|scope| -> Result<bool, Failure> {
        let (first, progress, request) = (&mut kept[0], &progress, &request);
        let worker = scope.spawn(move || {
            let done = request.make(first, progress);
            progress.end();
            done
        });
        let is_reached = work == Work::Idle || progress.reach(instant.max(1));
        progress.measure_gaps();
        let struck = bed.strike(fault, victim, "");
        let joined = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        joined?;
        struck?;
        Ok(is_reached)
    })?;
    let mut gap = progress.longest_gap();
    for connection in &mut kept {
        let asked_at = Instant::now();
        connection.get(&small[rng.below(small.len())], &Progress::default())?;
        gap = gap.max(asked_at.elapsed());
    }
    if let Some((body, path)) = &request.body {
        let stored =
            sha256_of(&bed.own(victim.other()).join(&path[1..])).map_err(|e| e.to_string())?;
        if stored != sha256(body) {
            return Err(Failure::Broken(format!("{path}: what was stored is not what was sent")));
        }
    }
    Ok(Lived { is_struck, gap })
}

/// What is asked.
struct Request<'a> {
    content: &'a Content,
    work: Work,
    /// Bytes of its body, or of the answer's.
    len: u64,
    part: Range<u64>,
    part_sum: String,
    body: Option<(Vec<u8>, String)>,
}

impl<'a> Request<'a> {
    fn draw(bed: &Bed<'a>, work: Work, rng: &mut Rng) -> Self {
        let content = bed.content;
        let big = content.big.len;
        let mut request =
            Self { content, work, len: big, part: 0..0, part_sum: String::new(), body: None };
        match work {
            Work::Get | Work::Chunked => {}
            Work::Idle => request.len = 0,
            Work::Part => {
                let (from, len) = (rng.next() % (big / 3), big / 3 + rng.next() % (big / 3));
                let all = bytes(BIG_SEED, big as usize);
                request.part_sum = sha256(&all[from as usize..][..len as usize]);
                (request.part, request.len) = (from..from + len, len);
            }
            Work::Put => {
                let body = bytes(rng.next(), BODY_BYTES);
                request.len = BODY_BYTES as u64;
                request.body = Some((body, "/put/instant".into()));
            }
        }
        request
    }

    fn make(&self, connection: &mut Connection, progress: &Progress) -> Result<(), String> {
        let big = &self.content.big;
        let (path, headers, sum) = match self.work {
            Work::Idle => return Ok(()),
            Work::Get => return connection.get(big, progress),
            Work::Put => {
                let Some((body, path)) = &self.body else { return Ok(()) };
                return connection.put(path, body, progress);
            }
            Work::Chunked => (format!("/chunked{}", big.path), String::new(), &big.sha256),
            Work::Part => {
                let Range { start, end } = self.part;
                (big.path.clone(), format!("Range: bytes={start}-{}\r\n", end - 1), &self.part_sum)
            }
        };
        let got = connection.fetch(&path, &headers, progress)?;
        match got == (self.len, sum.clone()) {
            true => Ok(()),
            false => Err(format!("{path}: {} bytes that are not the file's", got.0)),
        }
    }
}
