//! `shadowvm lab-server`: hidden; the embedded servers, started inside a host of a lab.

use std::io::{self, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::signal::{SigSet, Signal};

use super::exit;
use crate::lab::web::crowd;
use crate::lab::web::server::{self, Faults, Service};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port to listen on; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:80")]
    listen: Vec<String>,
    /// Address and port to listen on for FTP; may be repeated
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "crowd")]
    listen_ftp: Vec<String>,
    /// While this file is there, one byte of each answer is wrong
    #[arg(long, value_name = "FILE")]
    wrong: Option<PathBuf>,
    /// While this file is there, answers come slowly
    #[arg(long, value_name = "FILE")]
    slow: Option<PathBuf>,
    /// For so many connections and small answers
    #[arg(long, value_name = "CONNECTIONS", conflicts_with_all = ["wrong", "slow"])]
    crowd: Option<usize>,
}

/// Serves until killed; says `ready` once it listens. SIGUSR1 makes one byte of each answer wrong.
pub fn run(args: Args) -> ExitCode {
    let ready = || {
        println!("ready");
        std::io::stdout().flush()
    };
    let listen = || {
        if let Some(connections) = args.crowd {
            let addresses = args.listen.iter().map(|text| text.parse());
            let addresses: Vec<_> =
                addresses.collect::<Result<_, _>>().map_err(io::Error::other)?;
            // Who started it sees that the line is missing.
            return crowd::serve(&addresses, connections, || drop(ready()));
        }
        let web = args.listen.iter().map(|at| (Service::Web, at));
        let ftp = args.listen_ftp.iter().map(|at| (Service::Ftp, at));
        let door = |(service, at)| TcpListener::bind(at).map(|listener| (service, listener));
        let doors = web.chain(ftp).map(door).collect::<Result<_, _>>()?;
        let is_wrong = Arc::new(AtomicBool::new(false));
        heed(Arc::clone(&is_wrong))?;
        ready()?;
        let (wrong, slow) = (args.wrong.clone(), args.slow.clone());
        server::serve(doors, Faults { wrong, slow, is_wrong })
    };
    match listen() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-server: {} : {error}", args.listen.join(", "));
            ExitCode::from(exit::USAGE)
        }
    }
}

/// SIGUSR1 sets it. To be called before other threads start.
fn heed(is_wrong: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGUSR1);
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            // It may be interrupted, by being copied for one.
            if signals.wait().is_ok() {
                is_wrong.store(true, Relaxed);
            }
        }
    })?;
    Ok(())
}
