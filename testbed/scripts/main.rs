//! Byte-exact scripts against the real kernel's TCP.
//!
//! `KERNEL_ONLY=TEXT` runs those with the text in their name. Each holds the gateway to one rule;
//! its first line says which. How much they catch: in a build with the feature `planted-bugs`,
//! `KERNEL_PLANTED=NAME` plants that defect, and the first script that fails ends the run.

mod client;
mod clocks;
mod closing;
mod conn;
mod cookies;
mod desk;
mod differ;
mod handshake;
mod loss;
mod made;
mod opaque;
mod path_mtu;
mod raw;
mod resets;
mod rig;
mod strange;
mod syn;
mod syn_acks;
mod windows;

use std::process::ExitCode;
use std::time::Instant;

/// What a script says: nothing, or how the gateway broke the rule.
type Outcome = Result<(), String>;
/// A script, by name.
type Script = (&'static str, fn() -> Outcome);
/// A script that runs over IPv4 and over IPv6 (true).
type Twin = (&'static str, fn(bool) -> Outcome);

fn main() -> ExitCode {
    let only = std::env::var("KERNEL_ONLY").unwrap_or_default();
    let scripts: Vec<_> = all().into_iter().filter(|s| s.0.contains(&only)).collect();
    println!("\nrunning {} scripts", scripts.len());
    let is_planted = plant();
    let (mut passed, mut failed) = (0, 0);
    for (name, script) in scripts {
        let begun = Instant::now();
        let outcome = script();
        let took = begun.elapsed().as_millis();
        match outcome {
            Ok(()) => {
                println!("script {name} ... ok ({took} ms)");
                passed += 1;
            }
            Err(message) => {
                println!("script {name} ... FAILED ({took} ms)\n{message}");
                failed += 1;
                if is_planted {
                    break;
                }
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\nscript result: {verdict}. {passed} passed; {failed} failed\n");
    ExitCode::from(u8::from(failed > 0 || passed == 0))
}

/// Plants the defect that was asked for.
#[cfg(feature = "planted-bugs")]
fn plant() -> bool {
    use shadowvm::engine::planted::{Bug, choose};
    let Ok(name) = std::env::var("KERNEL_PLANTED") else { return false };
    let bug = Bug::ALL.iter().copied().find(|bug| format!("{bug:?}") == name);
    choose(Some(bug.expect("KERNEL_PLANTED names a planted bug")));
    true
}

#[cfg(not(feature = "planted-bugs"))]
const fn plant() -> bool {
    false
}

/// All of them, by name.
fn all() -> Vec<(String, Box<dyn Fn() -> Outcome>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Outcome>)> = Vec::new();
    all.extend(handshake::table());
    all.extend(syn_acks::table());
    all.extend(syn::table());
    all.extend(cookies::table());
    let scripts = [
        handshake::SCRIPTS,
        loss::SCRIPTS,
        windows::SCRIPTS,
        closing::SCRIPTS,
        resets::SCRIPTS,
        clocks::SCRIPTS,
        path_mtu::SCRIPTS,
        strange::SCRIPTS,
        made::SCRIPTS,
        differ::SCRIPTS,
        opaque::SCRIPTS,
    ];
    for &(name, script) in scripts.into_iter().flatten() {
        all.push((name.into(), Box::new(script)));
    }
    let twins = [
        handshake::TWINS,
        loss::TWINS,
        windows::TWINS,
        closing::TWINS,
        resets::TWINS,
        path_mtu::TWINS,
        strange::TWINS,
        made::TWINS,
        opaque::TWINS,
    ];
    for &(name, script) in twins.into_iter().flatten() {
        all.push((name.into(), Box::new(move || script(false))));
        all.push((format!("ipv6-{name}"), Box::new(move || script(true))));
    }
    all
}
