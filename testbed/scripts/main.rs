//! Byte-exact scripts against the real kernel's TCP.
//!
//! `KERNEL_ONLY=TEXT` runs those with the text in their name. Each holds the gateway to one rule;
//! its first line says which.

mod client;
mod clocks;
mod closing;
mod conn;
mod desk;
mod handshake;
mod loss;
mod made;
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
    let (count, mut failed) = (scripts.len(), 0);
    for (name, script) in scripts {
        let begun = Instant::now();
        let outcome = script();
        let took = begun.elapsed().as_millis();
        match outcome {
            Ok(()) => println!("script {name} ... ok ({took} ms)"),
            Err(message) => {
                println!("script {name} ... FAILED ({took} ms)\n{message}");
                failed += 1;
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\nscript result: {verdict}. {} passed; {failed} failed\n", count - failed);
    ExitCode::from(u8::from(failed > 0 || count == 0))
}

/// All of them, by name.
fn all() -> Vec<(String, Box<dyn Fn() -> Outcome>)> {
    let mut all: Vec<(String, Box<dyn Fn() -> Outcome>)> = Vec::new();
    all.extend(handshake::table());
    all.extend(syn_acks::table());
    all.extend(syn::table());
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
    ];
    for &(name, script) in twins.into_iter().flatten() {
        all.push((name.into(), Box::new(move || script(false))));
        all.push((format!("ipv6-{name}"), Box::new(move || script(true))));
    }
    all
}
