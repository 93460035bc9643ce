//! Answers that two nginx pass on while they are made, each in chunks of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use shadowvm::engine::LegId;
use shadowvm::lab::world::SERVICE;
use shadowvm::lab::{HostId, Io, Program, WorldOptions};

use super::Scenario;
use super::bed::{Bed, Fault, GatewayOptions, until};
use super::content::{Content, Known, Rng, leg_name, sha256_of};
use super::judge;
use super::matrix::{Failure, Struck};

/// So long a download may take until the fault, and an upstream until it listens.
const REACHED_MAX: Duration = Duration::from_secs(20);
/// So many chunk lines differ in a download, at least.
const LINES_MIN: u64 = 500;

/// What nginx has beside its files: what comes from the upstream is passed on as it comes.
const PROXY: &str = "
        location /made/ {
            proxy_pass http://unix:FOLDER/made.sock:/;
            proxy_buffering off;
            proxy_buffer_size 16k;
            proxy_buffers 4 16k;
        }
";

/// The upstream: files of a folder, without a length, in pieces of any size.
const UPSTREAM: &str = "import random, socket, sys, threading
path, root, seed = sys.argv[1:]
random.seed(seed)
def answer(client):
    request = b''
    while b'\\r\\n\\r\\n' not in request:
        request += client.recv(65536)
    with open(root + request.split()[1].decode(), 'rb') as file:
        client.sendall(b'HTTP/1.0 200 OK\\r\\nContent-Type: application/octet-stream\\r\\n\\r\\n')
        while piece := file.read(random.randint(1, 20000)):
            client.sendall(piece)
    client.close()
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(64)
while True:
    threading.Thread(target=answer, args=[server.accept()[0]], daemon=True).start()
";

/// All of them; one fault instead of all unless `is_long`.
pub fn scenarios(content: &Content, seed: u64, is_long: bool) -> Vec<Scenario<'_>> {
    let faults = [Fault::KillAll, Fault::LinkDown, Fault::Cut, Fault::Stop];
    let faults = faults.into_iter().take(if is_long { 4 } else { 1 });
    let scenario = |(n, fault): (usize, Fault)| -> Scenario<'_> {
        let name = format!("chunks-{fault:?}").to_lowercase();
        (name, Box::new(move |at: &Path| chunks(at, content, fault, seed + n as u64)))
    };
    faults.enumerate().map(scenario).collect()
}

fn chunks(at: &Path, content: &Content, fault: Fault, seed: u64) -> Result<String, Failure> {
    let mut bed = Bed::new(at, content, &WorldOptions::default(), GatewayOptions::default())?;
    for leg in LegId::ALL {
        bed.start_nginx_with(leg, PROXY)?;
        start_upstream(&bed, at, content, leg)?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;

    // While both live the bodies agree, on one connection, however they are cut.
    let before = [&content.small[0], &content.big, &content.small[1]];
    curl(&bed, at, &before, "")?;
    for name in ["promotions", "detaches", "divergences", "flows_compared_raw", "flows_solo"] {
        if bed.count(&format!("shadowvm_{name}_total"), None)? != 0 {
            return Err(Failure::Late(format!("{name} is not 0, but nothing failed")));
        }
    }
    let lines = bed.count("shadowvm_mask_hits_total", None)?;
    if lines < LINES_MIN {
        return Err(Failure::Void(format!("only {lines} chunk lines differ")));
    }

    // One server dies in the middle; what is asked next comes on the same connection.
    let files = [&content.big, &content.small[2]];
    let instant = content.big.len / 20 + Rng::new(seed).below(content.big.len as usize / 2) as u64;
    let got = at.join("got-0");
    fs::remove_file(&got).map_err(|e| e.to_string())?;
    std::thread::scope(|scope| -> Result<(), Failure> {
        let reader = scope.spawn(|| curl(&bed, at, &files, "--limit-rate 40M"));
        until(REACHED_MAX, "the download", || {
            fs::metadata(&got).is_ok_and(|m| m.len() >= instant).then_some(())
        })?;
        bed.strike(fault, LegId::A, "")?;
        let is_over = fs::metadata(&got).is_ok_and(|m| m.len() >= content.big.len);
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        match is_over {
            true => Err(Failure::Void("the download ended before the fault".into())),
            false => Ok(()),
        }
    })?;
    judge::events(&bed.events()?, Struck { t_ns: 0 })?;
    let summary = bed.judge()?;
    Ok(format!("at {instant} bytes, {lines} lines differ, {} bytes shown", summary["shown_bytes"]))
}

fn start_upstream(bed: &Bed<'_>, at: &Path, content: &Content, leg: LegId) -> Result<(), Failure> {
    let script = at.join("upstream.py");
    fs::write(&script, UPSTREAM).map_err(|e| e.to_string())?;
    let socket = at.join(leg_name(leg)).join("made.sock");
    let program = Program::new("/usr/bin/python3").arg("-B").arg(&script).arg(&socket);
    let program = program.arg(content.root(leg)).arg(leg_name(leg));
    let mut child = bed.spawn(HostId::Server(leg), program.stdout(Io::Null).stderr(Io::Null))?;
    Ok(until(REACHED_MAX, "an upstream to listen", || match child.try_wait() {
        Ok(Some(status)) => Some(Err(format!("the upstream of {leg:?} ended: {status}"))),
        _ => std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(Ok(())),
    })??)
}

/// Asks for these one after the other on one connection; each is what it has to be.
fn curl(bed: &Bed<'_>, at: &Path, files: &[&Known], more: &str) -> Result<(), Failure> {
    let program = Program::new("curl").args(["-sS", "-f", "-w", "%{num_connects} "]);
    let mut program = program.args(more.split_whitespace());
    for (n, file) in files.iter().enumerate() {
        let url = format!("http://{}/made{}", SERVICE.0, file.path);
        program = program.arg(url).arg("-o").arg(at.join(format!("got-{n}")));
    }
    let output = bed.run_in(HostId::Client, program)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("1 {}", "0 ".repeat(files.len() - 1));
    if !output.status.success() || said != expected {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = format!("curl: {}, connects {said:?}, {error}", output.status);
        return Err(Failure::Broken(told));
    }
    for (n, file) in files.iter().enumerate() {
        let sum = sha256_of(&at.join(format!("got-{n}"))).map_err(|e| e.to_string())?;
        if file.sha256 != sum {
            return Err(Failure::Broken(format!("{} is not what it has to be", file.path)));
        }
    }
    Ok(())
}
