//! A session of the client that sees everything: commands, replies, and transfers over passive
//! data connections, all of them watched by the run that it belongs to.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Instant;

use super::super::web::client::{Run, connect};
use super::file;

/// Logs in, and retrieves files of so many bytes over a new data connection each, until `goes_on`
/// says no.
pub(in crate::lab) fn retrieve(
    run: &mut Run<'_>,
    bytes: u64,
    mut goes_on: impl FnMut(&Run<'_>) -> bool,
) -> io::Result<()> {
    let mut session = Session::open(run)?;
    let mut buffer = vec![0; super::super::web::PIECE_MAX];
    while goes_on(run) {
        let asked = Instant::now();
        run.waits();
        let data = session.passive(run)?;
        session.ask(run, &format!("RETR {}", file(bytes)), 150)?;
        run.take_content(&data, &mut buffer, bytes)?;
        session.hear(run, 226)?;
        run.answered(asked);
    }
    session.ask(run, "QUIT", 221).map(drop)
}

/// Logs in, and stores one file.
pub(in crate::lab) fn store(run: &mut Run<'_>, bytes: u64) -> io::Result<()> {
    let mut session = Session::open(run)?;
    let asked = Instant::now();
    run.waits();
    let data = session.passive(run)?;
    session.ask(run, &format!("STOR {}", file(bytes)), 150)?;
    run.send_content(&data, bytes)?;
    drop(data);
    // Which says how many came, and that each was right.
    let said = session.hear(run, 226)?;
    if said.split(' ').nth(1) != Some(&bytes.to_string()) {
        return Err(io::Error::other(format!("of {bytes} bytes sent, `{said}`")));
    }
    run.answered(asked);
    session.ask(run, "QUIT", 221).map(drop)
}

/// A control connection.
struct Session {
    control: BufReader<TcpStream>,
    /// Whom it leads to.
    target: SocketAddr,
    /// Passive commands so far.
    asked_passive: u64,
}

impl Session {
    fn open(run: &mut Run<'_>) -> io::Result<Self> {
        let target = run.plan.target;
        run.waits();
        let control = connect(run.plan, target)?;
        let mut session = Self { control: BufReader::new(control), target, asked_passive: 0 };
        session.hear(run, 220)?;
        session.ask(run, "USER anonymous", 331)?;
        session.ask(run, "PASS shadowvm@", 230)?;
        session.ask(run, "TYPE I", 200)?;
        Ok(session)
    }

    fn ask(&mut self, run: &mut Run<'_>, command: &str, code: u16) -> io::Result<String> {
        run.waits();
        self.control.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        self.hear(run, code)
    }

    /// The next reply, which must have this code.
    fn hear(&mut self, run: &mut Run<'_>, code: u16) -> io::Result<String> {
        let mut line = String::new();
        if self.control.read_line(&mut line)? == 0 {
            return Err(io::Error::other("the control connection was closed early"));
        }
        run.moved();
        let line = line.trim_end();
        match line.strip_prefix(&code.to_string()) {
            Some(rest) if rest.starts_with(' ') => Ok(line.to_owned()),
            _ => Err(io::Error::other(format!("the server said `{line}` instead of {code}"))),
        }
    }

    /// Makes a data connection; by EPSV and, where it is possible, PASV in turn.
    fn passive(&mut self, run: &mut Run<'_>) -> io::Result<TcpStream> {
        self.asked_passive += 1;
        let target = match self.target.is_ipv4() && self.asked_passive.is_multiple_of(2) {
            false => {
                let said = self.ask(run, "EPSV", 229)?;
                SocketAddr::new(self.target.ip(), epsv_port(&said).ok_or_else(|| unread(&said))?)
            }
            true => {
                let said = self.ask(run, "PASV", 227)?;
                let target = pasv_target(&said).ok_or_else(|| unread(&said))?;
                if target.ip() != self.target.ip() {
                    return Err(io::Error::other(format!("`{said}` leads to another host")));
                }
                target
            }
        };
        connect(run.plan, target)
    }
}

fn unread(said: &str) -> io::Error {
    io::Error::other(format!("`{said}` names no port"))
}

/// The port of `229 … (|||6446|)`.
fn epsv_port(said: &str) -> Option<u16> {
    said.split_once("(|||")?.1.split_once("|)")?.0.parse().ok()
}

/// The address of `227 … (h1,h2,h3,h4,p1,p2)`.
fn pasv_target(said: &str) -> Option<SocketAddr> {
    let numbers = said.split_once('(')?.1.split_once(')')?.0.split(',');
    let numbers = numbers.map(str::parse).collect::<Result<Vec<u8>, _>>().ok()?;
    let [a, b, c, d, high, low] = numbers[..] else { return None };
    Some(SocketAddr::new(IpAddr::from([a, b, c, d]), u16::from_be_bytes([high, low])))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop where it stands")]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::super::super::web::client::{Plan, Work, run};
    use super::super::super::web::server::{Faults, Service, serve};
    use super::*;

    fn server(faults: Faults) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(vec![(Service::Ftp, listener)], faults));
        address
    }

    fn retr(bytes: u64, count: u64) -> Work {
        Work::Retr { bytes, count: Some(count), pause: Duration::ZERO }
    }

    #[test]
    fn files_come_and_go_whole_by_both_passive_commands() {
        let address = server(Faults::default());
        let mut plan = Plan::new(address, retr(1_000_001, 4));
        plan.marks = vec![1, 4_000_004];
        let mut told = 0;
        let outcome = run(&plan, |_| told += 1);
        assert!(outcome.is_right(), "{outcome:?}");
        assert_eq!((outcome.bytes, outcome.requests, told), (4_000_004, 4, 2));
        let outcome = run(&Plan::new(address, Work::Stor { bytes: 3_000_000 }), |_| {});
        assert!(outcome.is_right(), "{outcome:?}");
        assert_eq!(outcome.bytes, 3_000_000);
        assert!(run(&Plan::new(address, retr(0, 1)), |_| {}).is_right());
    }

    #[test]
    fn a_wrong_byte_of_a_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let wrong = dir.path().join("wrong");
        std::fs::write(&wrong, "").unwrap();
        let address = server(Faults { wrong: Some(wrong), ..Faults::default() });
        assert_eq!(run(&Plan::new(address, retr(1_000_000, 1)), |_| {}).wrong, Some(500_000));
    }

    #[test]
    fn what_names_a_data_port_is_read() {
        assert_eq!(epsv_port("229 Entering Extended Passive Mode (|||6446|)"), Some(6446));
        assert_eq!(epsv_port("229 Entering Extended Passive Mode (|||x|)"), None);
        let target = pasv_target("227 Entering Passive Mode (192,0,2,10,4,1)");
        assert_eq!(target, Some("192.0.2.10:1025".parse().unwrap()));
        assert_eq!(pasv_target("227 Entering Passive Mode (192,0,2,10,4)"), None);
    }
}
