//! Byte-exact scripts against the real kernel's TCP.
//!
//! `KERNEL_ONLY=TEXT` runs those with the text in their name.

mod made;
mod rig;
mod scripts;

use std::process::ExitCode;

fn main() -> ExitCode {
    let only = std::env::var("KERNEL_ONLY").unwrap_or_default();
    let scripts: Vec<_> = scripts::all().into_iter().filter(|s| s.0.contains(&only)).collect();
    println!("\nrunning {} scripts", scripts.len());
    let (count, mut failed) = (scripts.len(), 0);
    for (name, script) in scripts {
        match script() {
            Ok(()) => println!("script {name} ... ok"),
            Err(message) => {
                println!("script {name} ... FAILED\n{message}");
                failed += 1;
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\nscript result: {verdict}. {} passed; {failed} failed\n", count - failed);
    ExitCode::from(u8::from(failed > 0 || count == 0))
}
