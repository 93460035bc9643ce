//! Comparing alone: two servers say the same in segments of 1,460 bytes, and nothing else stands in
//! the way. The engine fed from memory; the engine behind three unix sockets; and QEMU's
//! colo-compare, which has the same three: what the primary says, what the backup says, what may
//! leave. On them a frame follows its length, 4 bytes with the highest first.

use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde_json::json;

use super::super::stage::StageError;
use super::folder;
use super::peers::find;
use super::table::{Table, Unit};
use crate::engine::{LegId, Link};
use crate::lab::pair::Pair;
use crate::lab::web::load::thread_cpu;
use crate::wire::{Frame, Offload, TcpFlags, checksum};

/// `bench compare`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Segments of each server in a round
    #[arg(long, default_value_t = 40_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    packets: u32,
    /// What to compare with
    #[arg(long, value_enum, value_delimiter = ',', default_value = "colo-compare")]
    baseline: Vec<Baseline>,
    /// Be the one that compares, behind sockets in this folder
    #[arg(long, hide = true, value_name = "FOLDER")]
    serve: Option<PathBuf>,
}

/// Something else that compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Baseline {
    /// QEMU's, without any guest
    ColoCompare,
}

const QEMU: &str = "qemu-system-x86_64";
const SOCKETS: [&str; 3] = ["primary", "secondary", "out"];
const SEGMENT: u32 = 1460;
/// Segments that are written at once.
const CHUNK: usize = 16;
/// Chunks that may be on their way: colo-compare drops what the socket out has no room for.
const AHEAD: usize = 3;
const ACK: TcpFlags = TcpFlags::ACK;
const WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Measures.
pub(super) fn run(args: &Args, dir: &Path) -> Result<Table, StageError> {
    let refused = |source| StageError::Io { what: "comparing", source };
    let lacking = args.baseline.first().and_then(|_| find(QEMU).err());
    let setting = json!({ "runs": args.runs, "packets": args.packets, "segment": SEGMENT });
    let mut table = Table::new("compare", setting, Vec::new());
    table.unavailable.extend(lacking.clone());
    let has_colo = !args.baseline.is_empty() && lacking.is_none();
    let packets = args.packets as usize;
    for round in 0..args.runs {
        let mut note = |name: &str, (took, cpu): (Duration, Duration)| {
            let packets = f64::from(args.packets);
            let rate = packets * f64::from(SEGMENT) / took.as_secs_f64();
            table.note_value("", format!("{name}, rate"), Unit::BytesPerSecond, rate);
            let each = cpu.as_secs_f64() / packets;
            table.note_value("", format!("{name}, processor for a packet"), Unit::Seconds, each);
        };
        note(MEMORY, from_memory(args.packets).map_err(refused)?);
        let own = folder(dir, &format!("own-{round}"))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["bench", "compare", "--serve"]).arg(&own);
        let chunks = chunks(args.packets, LegId::ALL);
        note(OWN, by_sockets(command, &own, packets, &chunks).map_err(refused)?);
        if has_colo {
            let theirs = folder(dir, &format!("colo-{round}"))?;
            // It knows no other numbers of the backup.
            let chunks = self::chunks(args.packets, [LegId::A; 2]);
            note(COLO, by_sockets(colo(&theirs), &theirs, packets, &chunks).map_err(refused)?);
        }
    }
    for name in [MEMORY, OWN] {
        let [of, to] = [name, COLO].map(|name| table.find("", &format!("{name}, rate")));
        if let Some((of, to)) = of.zip(to) {
            table.ratio(format!("{name}, to colo-compare"), of, to);
        }
    }
    Ok(table)
}

const MEMORY: &str = "shadowvm from memory";
const OWN: &str = "shadowvm by sockets";
const COLO: &str = "colo-compare by sockets";

/// Segment `number` of a server, its checksum complete as on a wire.
fn segment(pair: &Pair, leg: LegId, number: u32, data: &Bytes) -> Frame {
    let mut frame = pair.server_says(leg, ACK, (1 + number * SEGMENT, 1), data.clone());
    checksum::complete(&mut frame);
    frame
}

/// The time it took and the processor's.
fn from_memory(packets: u32) -> io::Result<(Duration, Duration)> {
    let mut pair = Pair::opened();
    let data = [0, 1].map(|_| Bytes::from(vec![7; SEGMENT as usize]));
    let mut frames = Vec::new();
    for number in 0..packets {
        for leg in LegId::ALL {
            frames.push((Link::Server(leg), segment(&pair, leg, number, &data[leg.index()])));
        }
        if number as usize % CHUNK == CHUNK - 1 {
            frames.push((Link::Client, thanks(&pair, u64::from(number + 1) * u64::from(SEGMENT))));
        }
    }
    // Nothing here waits: what others do meanwhile does not count.
    let begin = thread_cpu()?;
    frames.into_iter().for_each(|(link, frame)| pair.put(link, frame));
    let took = thread_cpu()?.saturating_sub(begin);
    match pair.bytes_out == u64::from(packets) * u64::from(SEGMENT) {
        true => Ok((took, took)),
        false => Err(io::Error::other("not everything was released")),
    }
}

/// The client's ack of so many bytes.
fn thanks(pair: &Pair, bytes: u64) -> Frame {
    pair.client_says(ACK, (1, 1 + bytes as u32), Bytes::new())
}

/// What the two say, as it is written to their sockets.
fn chunks(packets: u32, legs: [LegId; 2]) -> Vec<[Vec<u8>; 2]> {
    let (pair, data) = (Pair::opened(), Bytes::from(vec![7; SEGMENT as usize]));
    let numbers: Vec<u32> = (0..packets).collect();
    let written = |leg, numbers: &[u32]| {
        let mut chunk = Vec::new();
        numbers.iter().for_each(|n| write_frame(&mut chunk, &segment(&pair, leg, *n, &data)));
        chunk
    };
    numbers.chunks(CHUNK).map(|numbers| legs.map(|leg| written(leg, numbers))).collect()
}

fn write_frame(to: &mut Vec<u8>, frame: &Frame) {
    to.extend_from_slice(&(frame.len() as u32).to_be_bytes());
    to.extend_from_slice(frame.head());
    to.extend_from_slice(frame.body());
}

/// QEMU with nothing but its comparing object.
fn colo(dir: &Path) -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-machine", "none", "-accel", "tcg", "-nodefaults", "-display", "none"]);
    command.args(["-object", "iothread,id=thread"]);
    for name in SOCKETS {
        let path = dir.join(name);
        let option = format!("socket,id={name},path={},server=on,wait=off", path.display());
        command.args(["-chardev", &option]);
    }
    let object = "colo-compare,id=compare,primary_in=primary,secondary_in=secondary,outdev=out,\
                  iothread=thread";
    command.args(["-object", object]).stderr(Stdio::null());
    command
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets `command` compare; the time it took and the processor time of its process.
fn by_sockets(
    mut command: Command,
    dir: &Path,
    packets: usize,
    chunks: &[[Vec<u8>; 2]],
) -> io::Result<(Duration, Duration)> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let running = Running(command.spawn()?);
    let connect = |name| connect(&dir.join(name));
    // In the order in which our own takes them.
    let mut primary = connect(SOCKETS[0])?;
    let (mut secondary, out) = (connect(SOCKETS[1])?, connect(SOCKETS[2])?);
    let pid = Pid::from_raw(running.0.id().cast_signed());
    let cpu = || Ok::<Duration, io::Error>(clock_getcpuclockid(pid)?.now()?.into());
    let (before, begin) = (cpu()?, Instant::now());
    let (credit, credits) = mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| take_released(out, packets, credit));
        for (number, [a, b]) in chunks.iter().enumerate() {
            if number >= AHEAD && credits.recv().is_err() {
                break;
            }
            primary.write_all(a)?;
            secondary.write_all(b)?;
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok((begin.elapsed(), cpu()?.saturating_sub(before)))
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + WAIT;
    loop {
        match UnixStream::connect(path) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            Err(e) => return Err(e),
            Ok(stream) => {
                stream.set_read_timeout(Some(WAIT))?;
                stream.set_write_timeout(Some(WAIT))?;
                return Ok(stream);
            }
        }
    }
}

/// Reads what leaves until `packets` segments have; gives a credit for each chunk.
fn take_released(out: UnixStream, packets: usize, credit: mpsc::Sender<()>) -> io::Result<()> {
    let mut out = BufReader::with_capacity(256 << 10, out);
    let mut taken = 0;
    while taken < packets {
        let mut len = [0; 4];
        out.read_exact(&mut len).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::other(format!("only {taken} of {packets} packets were released"))
            }
            _ => e,
        })?;
        let len = u64::from(u32::from_be_bytes(len));
        if io::copy(&mut out.by_ref().take(len), &mut io::sink())? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // A bare ack is nothing that a server said.
        taken += usize::from(len >= u64::from(SEGMENT));
        if taken % CHUNK == 0 {
            // All may be written already.
            let _ = credit.send(());
        }
    }
    Ok(())
}

impl Args {
    /// Compares behind sockets, if that was asked for, until one of them is closed.
    pub(super) fn serve(&self) -> Option<io::Result<()>> {
        self.serve.as_deref().map(serve)
    }
}

fn serve(dir: &Path) -> io::Result<()> {
    let listen = |name| UnixListener::bind(dir.join(name));
    let (primary, secondary, out) = (listen(SOCKETS[0])?, listen(SOCKETS[1])?, listen(SOCKETS[2])?);
    let mut servers = [primary.accept()?.0, secondary.accept()?.0];
    let mut out = out.accept()?.0;
    let (mut pair, mut heard) = (Pair::opened(), [BytesMut::new(), BytesMut::new()]);
    let (mut buffer, mut released, mut acked) = (vec![0; 256 << 10], Vec::new(), 0);
    loop {
        let mut fds = servers.each_ref().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::NONE)?;
        let ready = fds.map(|fd| fd.any().unwrap_or(true));
        for leg in LegId::ALL.into_iter().filter(|leg| ready[leg.index()]) {
            let count = servers[leg.index()].read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            let heard = &mut heard[leg.index()];
            heard.extend_from_slice(&buffer[..count]);
            while let Some(bytes) = next_frame(heard) {
                let frame = Frame::from_wire(bytes, Offload::default());
                pair.put_and_see(Link::Server(leg), frame, |link, frame| {
                    if link == Link::Client {
                        write_frame(&mut released, frame);
                    }
                });
            }
        }
        out.write_all(&released)?;
        released.clear();
        if pair.bytes_out - acked >= CHUNK as u64 * u64::from(SEGMENT) {
            acked = pair.bytes_out;
            pair.put(Link::Client, thanks(&pair, acked));
        }
    }
}

/// The next frame, if it is there as a whole.
fn next_frame(heard: &mut BytesMut) -> Option<Bytes> {
    let len = u32::from_be_bytes(heard.get(..4)?.try_into().ok()?) as usize;
    heard.get(4..4 + len)?;
    let _ = heard.split_to(4);
    Some(heard.split_to(len).freeze())
}
