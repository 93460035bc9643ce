//! Two Apache instead of two nginx, and clients as people have them.

use std::fs;
use std::path::Path;

use shadowvm::engine::LegId;
use shadowvm::lab::world::SERVICE;
use shadowvm::lab::{HostId, Program, WorldOptions};

use super::Scenario;
use super::bed::{Bed, Fault, GatewayOptions};
use super::client::Progress;
use super::content::{Content, Rng, sha256_of};
use super::daemons::Daemon;
use super::judge;
use super::matrix::{Failure, Struck};

/// All of them; one fault instead of all unless `is_long`.
pub fn scenarios(content: &Content, seed: u64, is_long: bool) -> Vec<Scenario<'_>> {
    let mut all: Vec<Scenario<'_>> = vec![
        ("apache-clients".into(), Box::new(move |at| clients(at, content, true))),
        ("nginx-clients".into(), Box::new(move |at| clients(at, content, false))),
    ];
    let faults = [Fault::KillAll, Fault::LinkDown, Fault::Cut, Fault::Stop];
    for (n, fault) in faults.into_iter().enumerate() {
        if is_long || n == 0 {
            let name = format!("apache-download-{fault:?}").to_lowercase();
            all.push((name, Box::new(move |at| download(at, content, fault, seed + n as u64))));
        }
    }
    all
}

/// Two servers of the kind, and the gateway, which protects.
pub fn started<'a>(at: &Path, content: &'a Content, is_apache: bool) -> Result<Bed<'a>, Failure> {
    let mut bed = Bed::new(at, content, &WorldOptions::default(), GatewayOptions::default())?;
    for leg in LegId::ALL {
        match is_apache {
            true => Daemon::Apache.start(&bed, leg)?,
            false => bed.start_nginx(leg)?,
        }
    }
    bed.start_gateway()?;
    bed.wait_protected()?;
    Ok(bed)
}

/// A server dies in the midst of a download, which goes on on its connection.
fn download(at: &Path, content: &Content, fault: Fault, seed: u64) -> Result<String, Failure> {
    let mut bed = started(at, content, true)?;
    bed.start_captures()?;
    let mut connection = bed.connect(false)?;
    let flow = connection.local().map_err(|e| e.to_string())?;
    let instant = content.big.len / 20 + Rng::new(seed).below(content.big.len as usize / 2) as u64;
    let progress = Progress::default();
    std::thread::scope(|scope| -> Result<(), Failure> {
        let reader = scope.spawn(|| {
            let done = connection.get(&content.big, &progress);
            progress.end();
            done.map(|()| connection)
        });
        let is_reached = progress.reach(instant);
        let struck = bed.strike(fault, LegId::A, &flow);
        let joined = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut connection = joined?;
        if !is_reached {
            return Err(Failure::Void("the download ended before the fault".into()));
        }
        struck?;
        Ok(connection.get(&content.small[0], &Progress::default())?)
    })?;
    judge::events(&bed.events()?, Struck { t_ns: 0 })?;
    let summary = bed.judge()?;
    Ok(format!("at {instant} bytes, {} bytes shown", summary["shown_bytes"]))
}

/// What people use: each of them gets the file whole, and nothing differs.
fn clients(at: &Path, content: &Content, is_apache: bool) -> Result<String, Failure> {
    let mut bed = started(at, content, is_apache)?;
    let (v4, v6) = SERVICE;
    let path = &content.big.path;
    let [url, url_v6] = [format!("http://{v4}{path}"), format!("http://[{v6}]{path}")];
    let python = format!(
        "import http.client, shutil\nc = http.client.HTTPConnection('{v4}')\n\
         for path in ('/small-0.bin', '{path}'):\n    c.request('GET', path)\n    \
         r = c.getresponse()\n    shutil.copyfileobj(r, open('got', 'wb'))\n"
    );
    // Six connections, each with a part of the file, as a browser or a download manager has them.
    let step = content.big.len.div_ceil(6);
    let part = |n: u64| format!("curl -sS -r {}-{} -o part{n} {url}", n * step, (n + 1) * step - 1);
    let parts: Vec<String> = (0..6).map(part).collect();
    let parts = format!("{} & wait; cat part? > got", parts.join(" & "));
    let asked = [
        ("curl", vec!["curl", "-sS", "-o", "got", &url]),
        ("curl by IPv6", vec!["curl", "-gsS", "-o", "got", &url_v6]),
        ("wget", vec!["wget", "-q", "-t", "1", "-O", "got", &url]),
        ("lftp", vec!["lftp", "-c", "get", &url, "-o", "got"]),
        ("python", vec!["/usr/bin/python3", "-c", &python]),
        ("six at once", vec!["sh", "-c", &parts]),
    ];
    for (name, words) in &asked {
        let got = at.join("got");
        let _ = fs::remove_file(&got);
        let program = Program::new("env").arg("-C").arg(at).args(words.iter().copied());
        let output = bed.run_in(HostId::Client, program)?;
        let is_right = sha256_of(&got).is_ok_and(|sum| sum == content.big.sha256);
        if !output.status.success() || !is_right {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Failure::Broken(format!("{name}: {}, {said}", output.status)));
        }
    }
    for name in ["promotions", "detaches", "divergences", "flows_compared_raw", "flows_solo"] {
        if bed.count(&format!("shadowvm_{name}_total"), None)? != 0 {
            return Err(Failure::Broken(format!("{name} is not 0, but nothing failed")));
        }
    }
    let summary = bed.judge()?;
    Ok(format!("{} clients, {} bytes shown", asked.len(), summary["shown_bytes"]))
}
