//! A bed to test in: a world, a real nginx in each server, the real gateway between them, and a
//! capture of each of its links, all to be judged at the end.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use shadowvm::admin::{client, types};
use shadowvm::engine::LegId;
use shadowvm::lab::world::SERVICE;
use shadowvm::lab::{
    Child, Cut, HostId, Io, Output, Program, Topology, World, WorldOptions, sections,
};

use super::client::Connection;
use super::content::{Content, leg_name};
use super::matrix::Failure;

/// What kills, or seems to kill, a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every process of the server at once, by SIGKILL.
    KillAll,
    /// The worker that serves the flow; the listener lives.
    KillWorker,
    /// SIGSTOP: the kernel still answers.
    Stop,
    /// The carrier is lost.
    LinkDown,
    /// Frames vanish, the carrier stays.
    Cut,
    /// Processes killed, link and namespace deleted.
    Gone,
}

/// Bytes that a capture has room for until they are written.
const CAPTURE_ROOM: usize = 64 << 20;

/// How the gateway is set up.
#[derive(Clone, Debug, Default)]
pub struct GatewayOptions {
    /// Lag policy strict instead of available.
    pub is_strict: bool,
    /// The longest hold, if not the usual one.
    pub hold_hard: Option<&'static str>,
    /// The service's ports, if not nginx's.
    pub ports: Option<&'static str>,
    /// Further lines of the configuration.
    pub more: String,
    /// The folder in each server's own one that the gateway keeps equal.
    pub mirrored: Option<&'static str>,
    /// Each server has an agent; see [`super::agents::address`].
    pub has_agents: bool,
    /// The servers are containers, by files that [`Bed::container`] names.
    pub contained: bool,
    /// The server whose link will be deleted: tcpdump would lose the last packets.
    pub vanishing: Option<LegId>,
    /// Room of each capture beyond the usual, in bytes: for what comes faster than it is written.
    pub capture_room: usize,
}

/// Programs of the bed that run outside the servers.
#[derive(Debug)]
pub struct Bed<'a> {
    /// The world; ends with the bed.
    pub world: World,
    /// What the servers serve.
    pub content: &'a Content,
    /// Where logs and captures go.
    pub folder: PathBuf,
    options: GatewayOptions,
    gateway: Option<Child>,
    /// The gateway was killed: its counts are those of its last process only.
    is_restarted: bool,
    captures: Vec<Child>,
}

const CHECKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/checker");
/// Why evidence may not be run again.
const TOO_MUCH: &str = "the gateway had too much under way to be written down";
/// How late a packet may come to a capture's file, with room.
const CAPTURE_BLOCK: Duration = Duration::from_millis(1200);
/// How long anything may take to start.
const START_MAX: Duration = Duration::from_secs(15);

impl<'a> Bed<'a> {
    /// Makes the world and starts nothing in it.
    pub fn new(
        folder: &Path,
        content: &'a Content,
        world: &WorldOptions,
        options: GatewayOptions,
    ) -> Result<Self, String> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let world = World::new(world).map_err(|e| e.to_string())?;
        let folder = folder.to_owned();
        Ok(Self {
            world,
            content,
            folder,
            options,
            gateway: None,
            is_restarted: false,
            captures: Vec::new(),
        })
    }

    /// Both nginx, the gateway, and the captures, in this order; returns when it protects.
    pub fn start(&mut self) -> Result<(), String> {
        for leg in LegId::ALL {
            self.start_nginx(leg)?;
        }
        self.start_gateway()?;
        self.wait_protected()?;
        match self.world.topology() {
            // The checker knows one name of a connection; here it has three.
            Topology::Vip(_) => Ok(()),
            _ => self.start_captures(),
        }
    }

    /// nginx with two workers; returns when it listens.
    pub fn start_nginx(&self, leg: LegId) -> Result<(), String> {
        self.start_nginx_with(leg, "")
    }

    /// The same with `more` in its configuration of the service.
    pub fn start_nginx_with(&self, leg: LegId, more: &str) -> Result<(), String> {
        let folder = self.folder.join(leg_name(leg));
        for inside in ["put", "own", "body"] {
            fs::create_dir_all(folder.join(inside)).map_err(|e| e.to_string())?;
        }
        let (pid, conf) = (folder.join("nginx.pid"), folder.join("nginx.conf"));
        let _ = fs::remove_file(&pid);
        let text = NGINX
            .replace("MORE", more)
            .replace("FOLDER", &folder.display().to_string())
            .replace("ROOT", &self.content.root(leg).display().to_string());
        fs::write(&conf, text).map_err(|e| e.to_string())?;
        let log = self.log(&format!("nginx-{}.log", leg_name(leg)))?;
        let program = Program::new("nginx")
            .arg("-e")
            .arg(folder.join("error.log"))
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(&conf)
            .stdout(Io::Null)
            .stderr(Io::File(log));
        let mut child = self.spawn(HostId::Server(leg), program)?;
        until(START_MAX, "nginx to listen", || match child.try_wait() {
            Ok(Some(status)) => Some(Err(format!("nginx of {leg:?} ended: {status}"))),
            _ => fs::read_to_string(&pid).is_ok_and(|s| !s.trim().is_empty()).then_some(Ok(())),
        })?
    }

    /// `shadowvm run`; returns when its admin socket answers.
    pub fn start_gateway(&mut self) -> Result<(), String> {
        let config = self.folder.join("shadowvm.toml");
        let policy = if self.options.is_strict { "strict" } else { "available" };
        let text = GATEWAY
            .replace("FOLDER", &self.folder.display().to_string())
            .replace("POLICY", policy)
            .replace("HOLD", self.options.hold_hard.unwrap_or("150ms"))
            .replace("SECTIONS", &sections(&self.world, self.options.ports.unwrap_or("[80]")))
            .replace(
                "role = \"primary\"\n",
                &format!("role = \"primary\"\n{}", self.tree(LegId::A)),
            )
            .replace("role = \"backup\"\n", &format!("role = \"backup\"\n{}", self.tree(LegId::B)))
            .replace("MORE", &self.options.more);
        fs::write(&config, text).map_err(|e| e.to_string())?;
        let log = self.log("gateway.log")?;
        let again = log.try_clone().map_err(|e| e.to_string())?;
        let program = Program::new(env!("CARGO_BIN_EXE_shadowvm"))
            .args(["run", "-c"])
            .arg(&config)
            .stdout(Io::File(log))
            .stderr(Io::File(again));
        let mut child = self.spawn(HostId::Gateway, program)?;
        until(START_MAX, "the gateway to answer", || match child.try_wait() {
            Ok(Some(status)) => Some(Err(format!("the gateway ended: {status}"))),
            _ => self.status().ok().map(|_| Ok(())),
        })??;
        self.gateway = Some(child);
        Ok(())
    }

    /// The lines that say what of a server is copied, if the gateway does that itself.
    fn tree(&self, leg: LegId) -> String {
        if self.options.has_agents {
            return format!("agent = \"{}\"\n", super::agents::address(leg));
        }
        let dir = self.mirrored(leg).map(|dir| format!("dir = \"{}\"\n", dir.display()));
        let dir = dir.unwrap_or_default();
        match self.options.contained {
            true => format!("container = \"{}\"\n{dir}", self.container(leg).display()),
            false => dir,
        }
    }

    /// The file that says which process is the first one of a server's container.
    pub fn container(&self, leg: LegId) -> PathBuf {
        self.folder.join(format!("{}.pid", leg_name(leg)))
    }

    /// The folder that the gateway keeps equal to the other server's, if it does.
    pub fn mirrored(&self, leg: LegId) -> Option<PathBuf> {
        self.options.mirrored.map(|inside| self.own(leg).join(inside))
    }

    /// The folder of a server's own.
    pub fn own(&self, leg: LegId) -> PathBuf {
        self.folder.join(leg_name(leg))
    }

    /// Kills the gateway by SIGKILL.
    pub fn kill_gateway(&mut self) -> Result<(), String> {
        let mut child = self.gateway.take().ok_or("no gateway runs")?;
        self.is_restarted = true;
        child.kill().and_then(|()| child.wait()).map(drop).map_err(|e| e.to_string())
    }

    /// Waits until new connections are protected.
    pub fn wait_protected(&self) -> Result<(), String> {
        until(START_MAX, "the service to be protected", || {
            self.status().ok().filter(|s| s.service.is_protected)
        })
        .map(drop)
    }

    /// One tcpdump on each link, begun when this returns.
    pub fn start_captures(&mut self) -> Result<(), String> {
        let room = (CAPTURE_ROOM + self.options.capture_room) >> 10;
        for link in ["client", "a", "b"] {
            let file = self.folder.join(format!("{link}.pcap"));
            let said = self.folder.join(format!("{link}.tcpdump"));
            let log = File::create(&said).map_err(|e| e.to_string())?;
            let program = if self.options.vanishing.is_some_and(|leg| leg_name(leg) == link) {
                let listener = Path::new(CHECKER).join("listen.py");
                Program::new("/usr/bin/python3").arg("-B").arg(listener).arg(link).arg(&file)
            } else {
                Program::new("tcpdump")
                    .args(["-i", link, "-s", "0", "-Z", "root"])
                    .args(["-B", &room.to_string(), "-w"])
                    .arg(&file)
                    .args(["--time-stamp-precision=nano", "tcp"])
            };
            let program = program.stdout(Io::Null).stderr(Io::File(log));
            self.captures.push(self.spawn(HostId::Gateway, program)?);
            until(START_MAX, "tcpdump to listen", || {
                fs::read_to_string(&said).is_ok_and(|s| s.contains("listening on")).then_some(())
            })?;
        }
        Ok(())
    }

    /// A new connection of the client to the service.
    pub fn connect(&self, is_v6: bool) -> Result<Connection, String> {
        Connection::new(self.dial(HostId::Client, 80, is_v6)?).map_err(|e| e.to_string())
    }

    /// The same of any host, to any port: from a server it is that server alone.
    pub fn dial(&self, host: HostId, port: u16, is_v6: bool) -> Result<TcpStream, String> {
        let address: IpAddr = if is_v6 { SERVICE.1.into() } else { SERVICE.0.into() };
        let to = SocketAddr::new(address, port);
        self.world
            .enter(host, || TcpStream::connect_timeout(&to, START_MAX))
            .map_err(|e| e.to_string())?
            .map_err(|e| format!("connecting: {e}"))
    }

    /// Runs a program in the client to its end.
    pub fn run_in(&self, host: HostId, program: Program) -> Result<Output, String> {
        self.spawn(host, program.stdout(Io::Pipe).stderr(Io::Pipe))?
            .wait_with_output()
            .map_err(|e| e.to_string())
    }

    /// Strikes a server. `flow` is the client's end of the flow whose worker is meant.
    pub fn strike(&self, fault: Fault, leg: LegId, flow: &str) -> Result<(), String> {
        let host = HostId::Server(leg);
        match fault {
            Fault::KillAll => self.world.kill_host(host),
            Fault::Stop => self.world.freeze(host),
            Fault::LinkDown => self.world.link_down(leg),
            Fault::Cut => self.world.cut(leg, Cut::Both),
            Fault::Gone => self.world.delete_host(leg),
            Fault::KillWorker => {
                let worker = self.worker_of(leg, flow)?;
                return kill(Pid::from_raw(worker), Signal::SIGKILL).map_err(|e| e.to_string());
            }
        }
        .map_err(|e| e.to_string())
    }

    /// The process (as we number them) that holds a server's socket of the flow.
    pub fn worker_of(&self, leg: LegId, flow: &str) -> Result<i32, String> {
        Ok(self.workers_of(leg, flow)?[0])
    }

    /// All such processes, one at least.
    pub fn workers_of(&self, leg: LegId, flow: &str) -> Result<Vec<i32>, String> {
        let (_, port) = flow.rsplit_once(':').ok_or("a flow is an address and a port")?;
        let port = format!(":{:04X}", port.parse::<u16>().map_err(|e| e.to_string())?);
        let tables = self
            .world
            .enter(HostId::Server(leg), || {
                ["tcp", "tcp6"]
                    .map(|t| fs::read_to_string(format!("/proc/thread-self/net/{t}")))
                    .into_iter()
                    .filter_map(Result::ok)
                    .collect::<String>()
            })
            .map_err(|e| e.to_string())?;
        let inode = tables
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|f| f.len() > 9 && f[2].ends_with(&port))
            .map(|f| format!("socket:[{}]", f[9]))
            .ok_or_else(|| format!("{leg:?} has no socket for {flow}"))?;
        let mut holders = Vec::new();
        for process in fs::read_dir("/proc").map_err(|e| e.to_string())?.flatten() {
            let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
            let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
            let holds = files
                .flatten()
                .any(|f| fs::read_link(f.path()).is_ok_and(|l| l.to_string_lossy() == inode));
            if holds {
                holders.push(pid);
            }
        }
        match holders.is_empty() {
            true => Err(format!("no process of {leg:?} holds {inode}")),
            false => Ok(holders),
        }
    }

    /// `GET /api/v1/status`.
    pub fn status(&self) -> Result<types::Status, String> {
        client::get(&self.socket(), "/api/v1/status").map_err(|e| e.to_string())
    }

    /// `GET /api/v1/flows`, all of them.
    pub fn flows(&self) -> Result<Vec<types::Flow>, String> {
        client::get::<types::Flows>(&self.socket(), "/api/v1/flows?limit=100000")
            .map(|answer| answer.flows)
            .map_err(|e| e.to_string())
    }

    /// The sum of the counters of this name, or of those with this value of one of their labels.
    pub fn count(&self, name: &str, label: Option<&str>) -> Result<u64, String> {
        let answer: types::Counters =
            client::get(&self.socket(), "/api/v1/counters").map_err(|e| e.to_string())?;
        let fits = |c: &&types::Counter| {
            c.name == name && label.is_none_or(|l| c.labels.values().any(|v| v == l))
        };
        Ok(answer.counters.iter().filter(fits).map(|c| c.value as u64).sum())
    }

    /// The event log so far.
    pub fn events(&self) -> Result<Vec<Value>, String> {
        let path = self.folder.join("events.jsonl");
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        text.lines()
            .map(|line| serde_json::from_str(line).map_err(|e| format!("event log: {e}: {line}")))
            .collect()
    }

    /// Ends the gateway and the captures, and has the captures judged by the checker. Captures that
    /// are not whole allow no verdict.
    pub fn judge(&mut self) -> Result<Value, Failure> {
        self.judged().map_err(|message| {
            match message.contains("REFUSED") && message.contains("dropped by") {
                true => Failure::Void(message),
                false => Failure::Broken(message),
            }
        })
    }

    /// What the gateway left of divergences and failovers: each file is read without complaint by
    /// others, has its comments, and is decided by the engine as it was.
    fn judge_evidence(&self) -> Result<(), String> {
        for path in self.evidence()? {
            let shown = path.display();
            let run = |program: &str, args: &[&str]| {
                let output = std::process::Command::new(program).args(args).arg(&path).output();
                output.map_err(|e| format!("{program} does not run: {e}"))
            };
            let say = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            for (program, args) in [("capinfos", &[][..]), ("tshark", &["-n", "-Q", "-r"][..])] {
                let output = run(program, args)?;
                let complaint = say(&output.stderr);
                // It says as whom it runs.
                let complaint = complaint.lines().find(|line| !line.starts_with("Running as user"));
                if !output.status.success() || complaint.is_some() {
                    return Err(format!("{program} of {shown}: {complaint:?} {}", output.status));
                }
            }
            let comments =
                ["-n", "-Q", "-Y", "frame.comment", "-T", "fields", "-e", "frame.comment", "-r"];
            if run("tshark", &comments)?.stdout.is_empty() {
                return Err(format!("{shown} has no comment on any packet"));
            }
            let again = run(env!("CARGO_BIN_EXE_shadowvm"), &["replay", "--engine"])?;
            let said = say(&again.stdout) + &say(&again.stderr);
            // A download at full speed is more than can be packed in passing: the file says so.
            let is_too_much = again.status.code() == Some(2) && said.contains(TOO_MUCH);
            if !again.status.success() && !is_too_much {
                return Err(format!("{shown}, decided again: {}\n{said}", again.status));
            }
        }
        Ok(())
    }

    /// The files that the gateway left.
    pub fn evidence(&self) -> Result<Vec<PathBuf>, String> {
        let dir = self.folder.join("evidence");
        let entries = fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        // One that is being written is none yet.
        let is_whole = |path: &PathBuf| path.extension().is_some_and(|end| end == "pcapng");
        let paths = entries.flatten().map(|entry| entry.path()).filter(is_whole);
        let mut paths: Vec<PathBuf> = paths.collect();
        paths.sort();
        Ok(paths)
    }

    fn judged(&mut self) -> Result<Value, String> {
        let unverified = self.count("shadowvm_released_bytes_total", Some("no"))?;
        if self.captures.is_empty() {
            let shown = self.count("shadowvm_released_bytes_total", None)?;
            let connections = self.flows()?.len();
            self.end_gateway()?;
            self.judge_evidence()?;
            return Ok(serde_json::json!({
                "connections": connections, "shown_bytes": shown, "unverified_bytes": unverified,
            }));
        }
        self.end_gateway()?;
        self.judge_evidence()?;
        // The kernel hands a capture its packets in blocks, the last one up to a second late, and
        // what has not been handed over is lost when tcpdump ends.
        std::thread::sleep(CAPTURE_BLOCK);
        let mut drops = String::new();
        for (mut child, link) in self.captures.drain(..).zip(["client", "a", "b"]) {
            // It may have ended with its interface.
            child.signal(Signal::SIGINT).map_err(|e| e.to_string())?;
            let ended = child.wait_timeout(START_MAX).map_err(|e| e.to_string())?;
            ended.ok_or_else(|| format!("tcpdump of {link} does not end"))?;
            let said = self.folder.join(format!("{link}.tcpdump"));
            drops += &fs::read_to_string(said).map_err(|e| e.to_string())?;
        }
        let file = |name: &str| self.folder.join(name);
        fs::write(file("drops"), drops).map_err(|e| e.to_string())?;
        let checker = Path::new(CHECKER).join("check.py");
        // At the end of the queue: other beds keep time.
        let mut command = std::process::Command::new("nice");
        command.args(["-n", "19", "/usr/bin/python3", "-B"]).arg(checker);
        for link in ["client", "a", "b"] {
            command.arg(format!("--{link}")).arg(file(&format!("{link}.pcap")));
        }
        command.arg("--events").arg(file("events.jsonl")).arg("--drops").arg(file("drops"));
        let policy = if self.options.is_strict { "strict" } else { "available" };
        command.args(["--policy", policy]);
        if self.is_restarted {
            // The kernel gives a frame to the newest listener first: to the new process before the
            // older captures, which stamp it when their turn comes.
            command.args(["--late-us", "1000"]);
        } else {
            command.args(["--unverified", &unverified.to_string()]);
        }
        let output = command.output().map_err(|e| format!("the checker does not run: {e}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        fs::write(file("checker.log"), &output.stdout).map_err(|e| e.to_string())?;
        if !output.status.success() {
            let first = said.lines().take(5).collect::<Vec<_>>().join("\n      ");
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("checker: {first}{error}"));
        }
        let last = said.lines().last().unwrap_or_default();
        serde_json::from_str(last).map_err(|e| format!("checker: {e}: {last}"))
    }

    /// Ends the gateway by SIGTERM.
    pub fn end_gateway(&mut self) -> Result<(), String> {
        let Some(mut child) = self.gateway.take() else { return Ok(()) };
        child.signal(Signal::SIGTERM).map_err(|e| e.to_string())?;
        match child.wait_timeout(START_MAX) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(format!("the gateway ended with {status}")),
            Ok(None) => Err("the gateway does not end on SIGTERM".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Starts a program in a host.
    pub fn spawn(&self, host: HostId, program: Program) -> Result<Child, String> {
        self.world.spawn(host, program).map_err(|e| e.to_string())
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    fn log(&self, name: &str) -> Result<File, String> {
        let path = self.folder.join(name);
        let file = File::options().create(true).append(true).open(&path);
        file.map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// Asks again and again until there is an answer.
pub fn until<T>(
    limit: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> Result<T, String> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if begin.elapsed() > limit {
            return Err(format!("waited {limit:?} for {what}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

const NGINX: &str = "user root;
worker_processes 2;
daemon off;
pid FOLDER/nginx.pid;
error_log FOLDER/error.log;
events { worker_connections 1024; }
http {
    log_format sid '$status|$cookie_sid|$sent_http_set_cookie';
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    keepalive_timeout 3600s;
    client_max_body_size 0;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/body; fastcgi_temp_path FOLDER/body;
    uwsgi_temp_path FOLDER/body; scgi_temp_path FOLDER/body;
    default_type application/octet-stream;
    server {
        listen 80 backlog=1024;
        listen [::]:80 backlog=1024;
        root ROOT;
        location /put/ { root FOLDER; dav_methods PUT; }
        location /own/ { root FOLDER; }
        MORE
    }
}
";

const GATEWAY: &str = "SECTIONS[compare]
on_lag = \"POLICY\"
hold_hard = \"HOLD\"
[admin]
socket = \"FOLDER/admin.sock\"
[state]
file = \"FOLDER/state\"
[evidence]
write = true
dir = \"FOLDER/evidence\"
[log]
level = \"debug\"
events = \"FOLDER/events.jsonl\"
MORE
";
