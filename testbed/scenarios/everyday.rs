//! Days of ordinary use in minutes: two servers as a distribution ships them, whose files have
//! other times, with addresses of their own, and requests and transfers of all kinds. Nothing may
//! differ falsely, and hardly anything be shown that only one of them has said.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use shadowvm::engine::{LegId, Source};
use shadowvm::lab::world::SERVICE;
use shadowvm::lab::{HostId, Program, Topology, WorldOptions};

use super::Scenario;
use super::bed::{Bed, GatewayOptions};
use super::client::Progress;
use super::content::{Content, bytes};
use super::daemons::{Daemon, FILE_BYTES};
use super::ftp::{Session, Way};
use super::judge;
use super::matrix::Failure;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
struct Plan {
    requests: u64,
    transfers: u64,
    /// At least so many boundaries of seconds are crossed: dates differ there.
    seconds: u64,
}

const SHORT: Plan = Plan { requests: 3_000, transfers: 60, seconds: 10 };
const LONG: Plan = Plan { requests: 100_000, transfers: 1_000, seconds: 200 };
/// Of all bytes shown so many in a thousand were said by both servers before.
const VERIFIED_PER_MILLE: u64 = 990;

/// The clients of the web servers.
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testbed/scenarios/everyday.py");
/// What nginx serves beside its files: the same, compressed on the way, in chunks.
const COMPRESSED: &str = "
        location /gz/ {
            alias ROOT/;
            gzip on; gzip_types *; gzip_min_length 0; gzip_proxied any;
        }
";
/// What may differ between two servers that got their files at other times.
const RULES: &str = "[[compare.rule]]
protocol = \"http\"
header = \"etag\"
action = \"map\"
[[compare.rule]]
protocol = \"http\"
header = \"last-modified\"
action = \"map\"
";

/// Web and FTP; a small part of it unless `is_long`.
pub fn scenarios(content: &Content, is_long: bool) -> Vec<Scenario<'_>> {
    let plan = if is_long { LONG } else { SHORT };
    vec![
        ("everyday-web".into(), Box::new(move |at| web(at, content, plan))),
        ("everyday-ftp".into(), Box::new(move |at| ftp(at, content, plan))),
    ]
}

fn world() -> WorldOptions {
    WorldOptions { topology: Topology::Vip(Source::Client), ..WorldOptions::default() }
}

/// Two nginx: files, parts of files, what is not there, what has not changed, what is compressed on
/// the way, what is stored; on connections that are kept and on new ones.
fn web(at: &Path, content: &Content, plan: Plan) -> Result<String, Failure> {
    let options = GatewayOptions { more: RULES.into(), ..GatewayOptions::default() };
    let mut bed = Bed::new(at, content, &world(), options)?;
    for leg in LegId::ALL {
        let root = bed.own(leg).join("www");
        copy_dated(content, leg, &root)?;
        let compressed = COMPRESSED.replace("ROOT", &root.display().to_string());
        bed.start_nginx_with(
            leg,
            &format!("location / {{ root {}; }}{compressed}", root.display()),
        )?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;
    let program = Program::new("/usr/bin/python3")
        .args(["-B", CLIENTS, &SERVICE.0.to_string()])
        .arg(bed.own(LegId::A).join("www"))
        .args([plan.requests.to_string(), plan.seconds.to_string()]);
    let output = bed.run_in(HostId::Client, program)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failure::Broken(format!("the clients: {}, {said}{error}", output.status)));
    }
    let done: Value =
        serde_json::from_str(&said).map_err(|e| format!("the clients: {e}: {said}"))?;
    let replaced = bed.count("shadowvm_values_replaced_total", None)?;
    if replaced == 0 {
        return Err(Failure::Broken("no server heard a tag of its own".into()));
    }
    let share = verified(&mut bed)?;
    Ok(format!("{done}, {replaced} tags and times replaced, {share}"))
}

/// Two vsftpd: files, the ends of files, what was just stored, listings, in passive mode both ways.
fn ftp(at: &Path, content: &Content, plan: Plan) -> Result<String, Failure> {
    let options = GatewayOptions { ports: Some("[21]"), ..GatewayOptions::default() };
    let mut bed = Bed::new(at, content, &world(), options)?;
    for leg in LegId::ALL {
        Daemon::Vsftpd.start(&bed, leg)?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;
    let data = bytes(77, FILE_BYTES);
    let begin = Instant::now();
    let (mut done, mut sessions) = (0, 0);
    while done < plan.transfers || begin.elapsed() < Duration::from_secs(plan.seconds) {
        let mut session = Session::open(&bed, sessions % 2 == 1)?;
        sessions += 1;
        let ways: &[Way] = match sessions % 2 {
            0 => &[Way::Extended],
            _ => &[Way::Passive, Way::Extended],
        };
        for &way in ways {
            let name = format!("put/{done}");
            let sent = bytes(done, 1 << (10 + done % 10));
            let from = FILE_BYTES - (1 << (12 + done % 9));
            session.put(way, &name, &sent, &Progress::default())?;
            session.get(way, &name, 0, &sent, &Progress::default())?;
            session.get(way, "data", from, &data[from..], &Progress::default())?;
            session.list(way, "data")?;
            session.expect(&format!("SIZE {name}"), 213)?;
            done += 4;
            // A pause as people make it; the rest of the time is for the boundaries of seconds.
            std::thread::sleep(Duration::from_millis(plan.seconds * 1000 * 4 / plan.transfers));
        }
        session.expect("QUIT", 221)?;
    }
    let seconds = begin.elapsed().as_secs();
    let share = verified(&mut bed)?;
    Ok(format!("{done} transfers in {sessions} sessions and {seconds} s, {share}"))
}

/// The files of a server, a copy of its own, each with the time at which that was made.
fn copy_dated(content: &Content, leg: LegId, to: &Path) -> Result<(), String> {
    let error = |e: std::io::Error| format!("{}: {e}", to.display());
    fs::create_dir_all(to).map_err(error)?;
    let age = if leg == LegId::A { 0 } else { 77_777 };
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + age);
    for file in &content.small {
        let (from, to) = (content.root(leg).join(&file.path[1..]), to.join(&file.path[1..]));
        fs::copy(&from, &to).map_err(error)?;
        let times = FileTimes::new().set_modified(time);
        File::options().write(true).open(&to).and_then(|f| f.set_times(times)).map_err(error)?;
    }
    Ok(())
}

/// What share of the bytes was shown verified; nothing failed and nothing differed.
fn verified(bed: &mut Bed<'_>) -> Result<String, Failure> {
    judge::no_divergence(bed)?;
    for name in ["promotions", "detaches", "flows_compared_raw", "flows_reset"] {
        if bed.count(&format!("shadowvm_{name}_total"), None)? != 0 {
            return Err(Failure::Broken(format!("{name} is not 0, but nothing failed")));
        }
    }
    let yes = bed.count("shadowvm_released_bytes_total", Some("yes"))?;
    let no = bed.count("shadowvm_released_bytes_total", Some("no"))?;
    let said =
        format!("{:.3} % of {} bytes verified", 100.0 * yes as f64 / (yes + no) as f64, yes + no);
    if yes * 1000 < (yes + no) * VERIFIED_PER_MILLE {
        return Err(Failure::Late(said));
    }
    bed.judge()?;
    Ok(said)
}
