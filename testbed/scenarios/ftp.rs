//! FTP between two real servers of a kind: transfers that outlive a server, in mid-transfer and
//! between commands, and a session that goes on afterwards; and clients as people have them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use shadowvm::engine::{LegId, Source};
use shadowvm::lab::world::SERVICE;
use shadowvm::lab::{HostId, Program, Topology, WorldOptions};

use super::Scenario;
use super::bed::{Bed, Fault, GatewayOptions};
use super::client::Progress;
use super::content::{Content, Rng, bytes, sha256};
use super::daemons::{Daemon, FILE_BYTES};
use super::judge;
use super::matrix::{Failure, Struck};

/// A read or write that takes longer is a failure.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// How the client asks for a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// PASV.
    Passive,
    /// EPSV.
    Extended,
    /// PORT: the servers call.
    Active,
    /// EPRT.
    Called,
}

/// What begins a data connection.
#[derive(Debug)]
pub(super) enum Door {
    /// Where a server listens.
    Theirs(SocketAddr),
    /// The client's own; who calls it is there before the server says that it begins.
    Own(TcpListener),
}

/// What it transfers while the server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Get,
    Put,
    /// Nothing: between two commands, with a data connection offered.
    Pause,
}

/// All of them; a third of those with a fault, and fewer with the second kind of server, unless
/// `is_long`.
pub fn scenarios(content: &Content, seed: u64, is_long: bool) -> Vec<Scenario<'_>> {
    let mut all: Vec<Scenario<'_>> = Vec::new();
    for (daemon, word) in [(Daemon::Vsftpd, "ftp"), (Daemon::Proftpd, "ftp-proftpd")] {
        for (is_vip, vip) in [(false, ""), (true, "-vip")] {
            let quiet = move |at: &Path| undisturbed(at, content, daemon, is_vip);
            all.push((format!("{word}{vip}-quiet"), Box::new(quiet)));
            let clients = move |at: &Path| clients(at, content, daemon, is_vip);
            all.push((format!("{word}{vip}-clients"), Box::new(clients)));
        }
        let part = match (is_long, daemon) {
            (true, _) => 1,
            (false, Daemon::Proftpd) => 15,
            (false, _) => 3,
        };
        let cells = cells(daemon, seed).into_iter().enumerate();
        for (_, cell) in cells.filter(|(n, _)| (*n as u64 + seed).is_multiple_of(part)) {
            let Cell { way, is_v6, is_vip, job, fault, .. } = cell;
            let family = if is_v6 { "v6" } else { "v4" };
            let vip = if is_vip { "-vip" } else { "" };
            let name = format!("{word}{vip}-{way:?}-{job:?}-{fault:?}-{family}").to_lowercase();
            all.push((name, Box::new(move |at| cell.run(at, content))));
        }
    }
    all
}

/// Every way, job and fault.
fn cells(daemon: Daemon, seed: u64) -> Vec<Cell> {
    let ways = [
        (Way::Passive, false, false),
        (Way::Extended, false, false),
        (Way::Extended, true, false),
        (Way::Active, false, false),
        (Way::Called, true, false),
        (Way::Active, false, true),
        (Way::Called, true, true),
    ];
    let faults = [Fault::KillAll, Fault::KillWorker, Fault::LinkDown, Fault::Cut, Fault::Stop];
    let jobs = [Job::Get, Job::Put, Job::Pause];
    let cells = ways.into_iter().flat_map(|way| jobs.map(|job| (way, job)));
    let cells = cells.flat_map(|(way, job)| faults.map(|fault| (way, job, fault)));
    // What differs there is who is called what, not how a server dies.
    let is_told_apart = |fault| matches!(fault, Fault::KillAll | Fault::Cut);
    let cells = cells.filter(|((.., is_vip), _, fault)| !is_vip || is_told_apart(*fault));
    let cell = |(n, ((way, is_v6, is_vip), job, fault))| {
        let seed = seed * 128 + n as u64;
        Cell { daemon, way, is_v6, is_vip, job, fault, seed }
    };
    cells.enumerate().map(cell).collect()
}

fn started<'a>(
    at: &Path,
    content: &'a Content,
    daemon: Daemon,
    is_vip: bool,
) -> Result<Bed<'a>, Failure> {
    // ProFTPD sleeps for 200 ms, twice at times, where a session begins while another one ends.
    let hold_hard = matches!(daemon, Daemon::Proftpd).then_some("600ms");
    let options = GatewayOptions { ports: Some("[21]"), hold_hard, ..GatewayOptions::default() };
    let usual = WorldOptions::default();
    let topology = if is_vip { Topology::Vip(Source::Client) } else { usual.topology };
    let world = WorldOptions { topology, ..usual };
    let mut bed = Bed::new(at, content, &world, options)?;
    for leg in LegId::ALL {
        daemon.start(&bed, leg)?;
    }
    // The checker knows one name of a connection; a data connection has two.
    bed.start_gateway()?;
    bed.wait_protected()?;
    Ok(bed)
}

/// Kills both processes that serve one session of A, at once: half of it would go on with errors.
fn kill_session(bed: &Bed<'_>, flow: &str) -> Result<(), String> {
    for worker in bed.workers_of(LegId::A, flow)? {
        kill(Pid::from_raw(worker), Signal::SIGKILL).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Everything that an undisturbed session does: the servers are equal, and everything is protected.
fn undisturbed(
    at: &Path,
    content: &Content,
    daemon: Daemon,
    is_vip: bool,
) -> Result<String, Failure> {
    let mut bed = started(at, content, daemon, is_vip)?;
    let mut transfers = 0;
    let data = bytes(77, FILE_BYTES);
    for (way, is_v6) in [
        (Way::Passive, false),
        (Way::Extended, false),
        (Way::Extended, true),
        (Way::Active, false),
        (Way::Called, false),
        (Way::Called, true),
    ] {
        let mut session = Session::open(&bed, is_v6)?;
        for round in 0..5 {
            session.get(way, "data", 0, &data, &Progress::default())?;
            let rest = FILE_BYTES / 3 * round / 2;
            session.get(way, "data", rest, &data[rest..], &Progress::default())?;
            let name = format!("put/{way:?}-{is_v6}-{round}");
            let sent = bytes(round as u64, FILE_BYTES / 4);
            session.put(way, &name, &sent, &Progress::default())?;
            session.get(way, &name, 0, &sent, &Progress::default())?;
            session.list(way, "data")?;
            transfers += 5;
        }
        session.expect("SYST", 215)?;
        session.expect("STAT", 211)?;
        session.expect("QUIT", 221)?;
    }
    protected(&bed, transfers)?;
    let summary = bed.judge()?;
    Ok(format!("{transfers} transfers, {} bytes shown", summary["shown_bytes"]))
}

/// Nothing failed, nothing differed, and every connection was protected to its end.
fn protected(bed: &Bed<'_>, transfers: u64) -> Result<(), Failure> {
    for name in ["shadowvm_promotions_total", "shadowvm_detaches_total"] {
        if bed.count(name, None)? != 0 {
            return Err(Failure::Broken(format!("{name} is not 0, but nothing failed")));
        }
    }
    for name in ["shadowvm_divergences_total", "shadowvm_flows_compared_raw_total"] {
        if bed.count(name, None)? != 0 {
            return Err(Failure::Broken(format!("{name} is not 0: the servers are equal")));
        }
    }
    let offers = bed.count("shadowvm_data_offers_total", Some("believed"))?;
    if offers != transfers {
        return Err(Failure::Broken(format!("{offers} data connections expected of {transfers}")));
    }
    let solo = bed.count("shadowvm_flows_solo_total", None)?;
    if solo != 0 {
        return Err(Failure::Broken(format!("{solo} connections were not protected to the end")));
    }
    Ok(())
}

/// What people use: each of them gets the file.
fn clients(at: &Path, content: &Content, daemon: Daemon, is_vip: bool) -> Result<String, Failure> {
    let bed = started(at, content, daemon, is_vip)?;
    let data = sha256(&bytes(77, FILE_BYTES));
    let (v4, v6) = SERVICE;
    let [url, url_v6] = [format!("ftp://{v4}/data"), format!("ftp://[{v6}]/data")];
    let lftp = format!("set net:max-retries 1; open {v4}; get data -o got; put got -o put/lftp");
    let active = format!("set ftp:passive-mode off; {}", lftp.replace("put/lftp", "put/called"));
    let tnftp = format!("printf 'user anonymous x\\nbinary\\nget data got\\n' | tnftp -n {v4}");
    let asked = [
        ("curl", vec!["curl", "-sS", "-o", "got", &url]),
        ("curl by IPv6", vec!["curl", "-gsS", "-o", "got", &url_v6]),
        ("curl, called", vec!["curl", "-sS", "--ftp-port", "-", "-o", "got", &url]),
        (
            "curl, called by PORT",
            vec!["curl", "-sS", "--disable-eprt", "--ftp-port", "-", "-o", "got", &url],
        ),
        ("curl, called by IPv6", vec!["curl", "-gsS", "--ftp-port", "-", "-o", "got", &url_v6]),
        ("wget", vec!["wget", "-q", "-t", "1", "-O", "got", &url]),
        ("lftp", vec!["lftp", "-c", &lftp]),
        ("lftp, called", vec!["lftp", "-c", &active]),
        ("tnftp", vec!["sh", "-c", &tnftp]),
    ];
    for (name, words) in &asked {
        let _ = fs::remove_file(at.join("got"));
        let program = Program::new("env").arg("-C").arg(at).args(words.iter().copied());
        let output = bed.run_in(HostId::Client, program)?;
        let got = fs::read(at.join("got")).unwrap_or_default();
        if !output.status.success() || sha256(&got) != data {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let what = format!("{name}: {}, {} bytes: {said}", output.status, got.len());
            return Err(Failure::Broken(what));
        }
    }
    // lftp stored it, too.
    protected(&bed, asked.len() as u64 + 2)?;
    let mut bed = bed;
    let summary = bed.judge()?;
    Ok(format!("{} clients, {} bytes shown", asked.len(), summary["shown_bytes"]))
}

/// One session in which a server dies.
#[derive(Clone, Copy, Debug)]
struct Cell {
    daemon: Daemon,
    way: Way,
    is_v6: bool,
    is_vip: bool,
    job: Job,
    fault: Fault,
    seed: u64,
}

impl Cell {
    fn run(self, at: &Path, content: &Content) -> Result<String, Failure> {
        let bed = started(at, content, self.daemon, self.is_vip)?;
        let mut session = Session::open(&bed, self.is_v6)?;
        let local = session.local.clone();
        let mut rng = Rng::new(self.seed);
        let instant = (FILE_BYTES / 20 + rng.below(FILE_BYTES / 2)) as u64;
        let (data, sent) = (bytes(77, FILE_BYTES), bytes(self.seed, FILE_BYTES));
        let progress = Progress::default();
        let strike = |flow: &str| match self.fault {
            Fault::KillWorker => kill_session(&bed, flow),
            fault => bed.strike(fault, LegId::A, flow),
        };
        std::thread::scope(|scope| -> Result<(), Failure> {
            let worker = scope.spawn(|| {
                let done = match self.job {
                    Job::Get => session.get(self.way, "data", 0, &data, &progress),
                    Job::Put => session.put(self.way, "put/x", &sent, &progress),
                    Job::Pause => Ok(()),
                };
                progress.end();
                done.map(|()| session)
            });
            if self.job != Job::Pause {
                if !progress.reach(instant) {
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                    return Err(Failure::Void("the transfer ended before the fault".into()));
                }
                strike(&local)?;
            }
            let joined = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            session = joined?;
            if self.job == Job::Pause {
                let offered = session.offer(self.way)?;
                strike(&local)?;
                session.get_at(offered, "data", 0, &data, &Progress::default())?;
            }
            // The session goes on, whoever serves it.
            session.get(self.way, "data", FILE_BYTES / 2, &data[FILE_BYTES / 2..], &progress)?;
            session.put(self.way, "put/y", &sent[..1 << 20], &progress)?;
            session.list(self.way, "data")?;
            session.expect("QUIT", 221)?;
            Ok(())
        })?;
        if self.job == Job::Put {
            let stored = bed.own(LegId::B).join("ftp/put/x");
            let stored = fs::read(&stored).map_err(|e| format!("{}: {e}", stored.display()))?;
            if sha256(&stored) != sha256(&sent) {
                return Err(Failure::Broken("what was stored is not what was sent".into()));
            }
        }
        let resets = bed.count("shadowvm_flows_reset_total", None)?;
        if resets != 0 {
            return Err(Failure::Broken(format!("{resets} connections were reset")));
        }
        let mut bed = bed;
        judge::events(&bed.events()?, Struck { t_ns: 0 })?;
        let summary = bed.judge()?;
        Ok(format!("at {instant} bytes, {} bytes shown", summary["shown_bytes"]))
    }
}

/// A control connection.
#[derive(Debug)]
pub(super) struct Session<'b> {
    bed: &'b Bed<'b>,
    control: BufReader<TcpStream>,
    address: IpAddr,
    local: String,
}

impl<'b> Session<'b> {
    /// Connects and logs in.
    pub(super) fn open(bed: &'b Bed<'b>, is_v6: bool) -> Result<Self, String> {
        let address: IpAddr = if is_v6 { SERVICE.1.into() } else { SERVICE.0.into() };
        let stream = connect(bed, SocketAddr::new(address, 21))?;
        let local = stream.local_addr().map_err(|e| e.to_string())?.to_string();
        let mut session = Self { bed, control: BufReader::new(stream), address, local };
        session.reply(220)?;
        // Some ask for a password, which may be anything.
        if session.expect("USER anonymous", 230).is_err_and(|said| said.contains("331")) {
            session.expect("PASS x", 230)?;
        }
        session.expect("TYPE I", 200)?;
        Ok(session)
    }

    /// Says a command, and hears this reply.
    pub(super) fn expect(&mut self, command: &str, code: u16) -> Result<String, String> {
        let line = format!("{command}\r\n");
        let sent = self.control.get_mut().write_all(line.as_bytes());
        sent.map_err(|e| format!("{command}: {e}"))?;
        self.reply(code).map_err(|e| format!("{command}: {e}"))
    }

    fn reply(&mut self, code: u16) -> Result<String, String> {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            match self.control.read_line(&mut line) {
                Ok(0) => return Err(format!("the connection ended after {text:?}")),
                Ok(_) => {}
                Err(error) => return Err(format!("after {text:?}: {error}")),
            }
            text += &line;
            let is_last = line.as_bytes().get(3) == Some(&b' ');
            if is_last && line[..3].bytes().all(|b| b.is_ascii_digit()) {
                break match line.starts_with(&code.to_string()) {
                    true => Ok(text),
                    false => Err(format!("{text:?}, not {code}")),
                };
            }
        }
    }

    /// Asks where to connect to, or tells where to call.
    pub(super) fn offer(&mut self, way: Way) -> Result<Door, String> {
        let (command, code) = match way {
            Way::Passive => ("PASV", 227),
            Way::Extended => ("EPSV", 229),
            Way::Active | Way::Called => return self.listen(way),
        };
        let said = self.expect(command, code)?;
        let numbers: Vec<u16> = said[4..]
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        match (way, numbers.as_slice()) {
            (Way::Passive, [a, b, c, d, high, low]) => {
                let address: IpAddr = [*a, *b, *c, *d].map(|n| n as u8).into();
                Ok(Door::Theirs(SocketAddr::new(address, high * 256 + low)))
            }
            (Way::Extended, [port]) => Ok(Door::Theirs(SocketAddr::new(self.address, *port))),
            _ => Err(format!("no port in {said:?}")),
        }
    }

    /// Listens, and tells where.
    fn listen(&mut self, way: Way) -> Result<Door, String> {
        let local: SocketAddr = self.local.parse().map_err(|e| format!("{}: {e}", self.local))?;
        let own = SocketAddr::new(local.ip(), 0);
        let listener = self.bed.world.enter(HostId::Client, || TcpListener::bind(own));
        let listener = listener.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let wait = TimeVal::new(WAIT_MAX.as_secs() as i64, 0);
        setsockopt(&listener, sockopt::ReceiveTimeout, &wait).map_err(|e| e.to_string())?;
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        let command = match (way, own.ip()) {
            (Way::Active, IpAddr::V4(v4)) => {
                let [a, b, c, d] = v4.octets();
                let [high, low] = port.to_be_bytes();
                format!("PORT {a},{b},{c},{d},{high},{low}")
            }
            (_, IpAddr::V4(v4)) => format!("EPRT |1|{v4}|{port}|"),
            (_, IpAddr::V6(v6)) => format!("EPRT |2|{v6}|{port}|"),
        };
        self.expect(&command, 200)?;
        Ok(Door::Own(listener))
    }

    /// Says `command`, and has the data connection for it.
    fn begin(&mut self, door: Door, command: &str) -> Result<TcpStream, String> {
        let theirs = match &door {
            Door::Theirs(at) => Some(connect(self.bed, *at)?),
            Door::Own(_) => None,
        };
        self.expect(command, 150)?;
        match (theirs, door) {
            (Some(stream), _) => Ok(stream),
            (None, Door::Own(listener)) => {
                let (stream, from) = listener.accept().map_err(|e| format!("no call: {e}"))?;
                if from.ip() != self.address {
                    return Err(format!("{from} calls, not the service"));
                }
                patient(stream)
            }
            (None, Door::Theirs(_)) => unreachable!("it was connected to"),
        }
    }

    /// Gets a file from a place on, and checks every byte.
    pub(super) fn get(
        &mut self,
        way: Way,
        name: &str,
        from: usize,
        expected: &[u8],
        progress: &Progress,
    ) -> Result<(), String> {
        let at = self.offer(way)?;
        self.get_at(at, name, from, expected, progress)
    }

    /// The same where that begins.
    pub(super) fn get_at(
        &mut self,
        at: Door,
        name: &str,
        from: usize,
        expected: &[u8],
        progress: &Progress,
    ) -> Result<(), String> {
        if from > 0 {
            self.expect(&format!("REST {from}"), 350)?;
        }
        let mut data = self.begin(at, &format!("RETR {name}"))?;
        let mut got = Vec::with_capacity(expected.len());
        let mut piece = vec![0; 64 << 10];
        loop {
            match data.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => got.extend_from_slice(&piece[..n]),
                Err(error) => return Err(format!("{name}: after {} bytes: {error}", got.len())),
            }
            progress.add((got.len() as u64).saturating_sub(progress.now()));
        }
        // As clients do: some servers say that they are done only after that.
        drop(data);
        self.reply(226)?;
        progress.add(0);
        match sha256(&got) == sha256(expected) {
            true => Ok(()),
            false => Err(format!("{name}: {} bytes that are not the file's", got.len())),
        }
    }

    /// Stores a file.
    pub(super) fn put(
        &mut self,
        way: Way,
        name: &str,
        bytes: &[u8],
        progress: &Progress,
    ) -> Result<(), String> {
        let at = self.offer(way)?;
        let mut data = self.begin(at, &format!("STOR {name}"))?;
        for piece in bytes.chunks(64 << 10) {
            data.write_all(piece).map_err(|e| format!("STOR {name}: {e}"))?;
            progress.add(piece.len() as u64);
        }
        drop(data);
        self.reply(226)?;
        progress.add(0);
        Ok(())
    }

    /// Lists a file.
    pub(super) fn list(&mut self, way: Way, name: &str) -> Result<(), String> {
        let text = self.listing(way, name, &Progress::default())?;
        match text.contains(name) {
            true => Ok(()),
            false => Err(format!("LIST says {text:?}")),
        }
    }

    /// What LIST says of `name`.
    pub(super) fn listing(
        &mut self,
        way: Way,
        name: &str,
        progress: &Progress,
    ) -> Result<String, String> {
        let at = self.offer(way)?;
        let mut data = self.begin(at, &format!("LIST {name}"))?;
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match data.read(&mut piece).map_err(|e| format!("LIST: {e}"))? {
                0 => break,
                n => text.extend_from_slice(&piece[..n]),
            }
            progress.add(text.len() as u64 - progress.now());
        }
        drop(data);
        self.reply(226)?;
        progress.add(0);
        String::from_utf8(text).map_err(|e| format!("LIST: {e}"))
    }
}

/// A connection of the client.
fn connect(bed: &Bed<'_>, to: SocketAddr) -> Result<TcpStream, String> {
    let stream = bed
        .world
        .enter(HostId::Client, || TcpStream::connect_timeout(&to, WAIT_MAX))
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("connecting to {to}: {e}"))?;
    patient(stream)
}

/// One that waits so long and no longer.
fn patient(stream: TcpStream) -> Result<TcpStream, String> {
    let set = stream
        .set_read_timeout(Some(WAIT_MAX))
        .and_then(|()| stream.set_write_timeout(Some(WAIT_MAX)))
        .and_then(|()| stream.set_nodelay(true));
    set.map(|()| stream).map_err(|e| e.to_string())
}
