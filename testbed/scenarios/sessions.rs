//! Sessions that each server names its own way, and lets nobody in without: clients keep them when
//! a server dies.

use std::fs;
use std::path::Path;
use std::time::Duration;

use shadowvm::engine::LegId;
use shadowvm::lab::world::SERVICE;
use shadowvm::lab::{HostId, Program, WorldOptions};

use super::Scenario;
use super::bed::{Bed, Fault, GatewayOptions, until};
use super::content::{Content, Known, Rng, sha256_of};
use super::judge;
use super::matrix::{Failure, Struck};

/// So long a download may take until the fault.
const REACHED_MAX: Duration = Duration::from_secs(20);

/// What nginx has beside its files: a door, and what is behind it. The value is another one for
/// each server, and of another length; it is over a second later at one of them.
const DOOR: &str = "
        access_log FOLDER/sid.log sid;
        location = /login {
            add_header Set-Cookie \"sid=VALUE; Expires=WHEN; Path=/; HttpOnly\";
            return 200 \"welcome\\n\";
        }
        location /private/ {
            if ($cookie_sid !~ \"^PATTERN$\") { return 403; }
            alias ROOT/;
        }
";
const VALUES: [[&str; 3]; 2] = [
    ["a-$request_id", "a-[0-9a-f]{32}", "Fri, 22 Nov 2199 15:38:52 GMT"],
    ["backup-$request_id$request_id", "backup-[0-9a-f]{64}", "Fri, 22 Nov 2199 15:38:53 GMT"],
];
const RULE: &str = "[[compare.rule]]
protocol = \"http\"
header = \"set-cookie\"
name = \"sid\"
action = \"map\"
";

/// All of them; one fault instead of all unless `is_long`.
pub fn scenarios(content: &Content, seed: u64, is_long: bool) -> Vec<Scenario<'_>> {
    let faults = [Fault::KillAll, Fault::LinkDown, Fault::Cut, Fault::Stop];
    let faults = faults.into_iter().take(if is_long { 4 } else { 1 });
    let scenario = |(n, fault): (usize, Fault)| -> Scenario<'_> {
        let name = format!("sessions-{fault:?}").to_lowercase();
        (name, Box::new(move |at: &Path| session(at, content, fault, seed + n as u64)))
    };
    faults.enumerate().map(scenario).collect()
}

fn session(at: &Path, content: &Content, fault: Fault, seed: u64) -> Result<String, Failure> {
    let options = GatewayOptions { more: RULE.into(), ..GatewayOptions::default() };
    let mut bed = Bed::new(at, content, &WorldOptions::default(), options)?;
    for leg in LegId::ALL {
        let [value, pattern, when] = VALUES[leg.index()];
        let door = DOOR.replace("VALUE", value).replace("PATTERN", pattern).replace("WHEN", when);
        bed.start_nginx_with(leg, &door)?;
    }
    bed.start_gateway()?;
    bed.wait_protected()?;

    // While both live, both know the client.
    let jar = at.join("jar");
    curl(&bed, &jar, &[("/login", None)], "")?;
    curl(&bed, &jar, &[(&content.small[0].path, Some(&content.small[0]))], "")?;
    judge::no_divergence(&bed)?;

    // One dies in the middle of a download; what is asked next comes on the same connection.
    let files = [&content.big, &content.small[1]].map(|file| (&*file.path, Some(file)));
    let instant = content.big.len / 20 + Rng::new(seed).below(content.big.len as usize / 2) as u64;
    let got = at.join("got-0");
    fs::remove_file(&got).map_err(|e| e.to_string())?;
    std::thread::scope(|scope| -> Result<(), Failure> {
        let reader = scope.spawn(|| curl(&bed, &jar, &files, "--limit-rate 40M"));
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

    // And on new ones, of this client and of one that has come since.
    curl(&bed, &jar, &[(&content.small[2].path, Some(&content.small[2]))], "")?;
    let other = at.join("other");
    curl(&bed, &other, &[("/login", None)], "")?;
    curl(&bed, &other, &[(&content.small[3].path, Some(&content.small[3]))], "")?;
    judge::events(&bed.events()?, Struck { t_ns: 0 })?;
    let sessions = heard(&bed, LegId::B)?;
    if sessions != [5, 2] {
        return Err(Failure::Broken(format!("requests of each session of b: {sessions:?}")));
    }
    let replaced = bed.count("shadowvm_values_replaced_total", Some("b"))?;
    let noted = bed.count("shadowvm_pairs_noted_total", None)?;
    if (replaced, noted) != (4, 1) {
        let told = format!("{replaced} values replaced, {noted} pairs noted");
        return Err(Failure::Broken(told));
    }
    let summary = bed.judge()?;
    Ok(format!("at {instant} bytes, {} bytes shown", summary["shown_bytes"]))
}

/// Asks for these one after the other on one connection, with the cookies of `jar`; each answer is
/// a success, and what it has to be.
fn curl(
    bed: &Bed<'_>,
    jar: &Path,
    asked: &[(&str, Option<&Known>)],
    more: &str,
) -> Result<(), Failure> {
    let at = jar.parent().unwrap_or(jar);
    let program = Program::new("curl").args(["-sS", "-f", "-w", "%{num_connects} "]);
    let mut program = program.args(more.split_whitespace()).arg("-b").arg(jar).arg("-c").arg(jar);
    for (n, (path, file)) in asked.iter().enumerate() {
        let door = if file.is_some() { "/private" } else { "" };
        let url = format!("http://{}{door}{path}", SERVICE.0);
        program = program.arg(url).arg("-o").arg(at.join(format!("got-{n}")));
    }
    let output = bed.run_in(HostId::Client, program)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("1 {}", "0 ".repeat(asked.len() - 1));
    if !output.status.success() || said != expected {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let told = format!("curl: {}, connects {said:?}, {error}", output.status);
        return Err(Failure::Broken(told));
    }
    for (n, (path, file)) in asked.iter().enumerate() {
        let sum = sha256_of(&at.join(format!("got-{n}"))).map_err(|e| e.to_string())?;
        if file.is_some_and(|file| file.sha256 != sum) {
            return Err(Failure::Broken(format!("{path} is not what it has to be")));
        }
    }
    Ok(())
}

/// How many requests of each session a server has heard: the ones in which it began among them.
/// None was of a session that it does not know.
fn heard(bed: &Bed<'_>, leg: LegId) -> Result<Vec<usize>, Failure> {
    let path = bed.own(leg).join("sid.log");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut sessions: Vec<(String, usize)> = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let [status, returned, set] = fields[..] else {
            return Err(Failure::Broken(format!("{}: {line}", path.display())));
        };
        let set = set.strip_prefix("sid=").and_then(|set| set.split(';').next());
        if let Some(set) = set {
            sessions.push((set.to_owned(), 1));
            continue;
        }
        let known = sessions.iter_mut().find(|(sid, _)| sid == returned);
        let Some(known) = known.filter(|_| status == "200") else {
            return Err(Failure::Broken(format!("{leg:?} has heard {line}")));
        };
        known.1 += 1;
    }
    Ok(sessions.into_iter().map(|(_, requests)| requests).collect())
}
