//! What an agent tells of the service beside it, and what follows from it.
//!
//! A report is one line of JSON. It comes when something changed, and once in a while. Only one
//! thing is evidence: that the processes that had the service are gone, and all that was served is
//! refused there. Whoever is silent has said nothing, and a service that was never seen to live is
//! none that has died.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mux::Channel;
use super::service::Watcher;

/// A report comes at least so often.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// A longer line is no report.
const LINE_LEN_MAX: u64 = 64 << 10;

/// How a service was when it was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Each address that is watched.
    pub services: Vec<Service>,
    /// Processes that have the service, and live.
    pub processes: usize,
    /// The service was seen to live since the agent was started.
    pub has_lived: bool,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Where.
    pub address: SocketAddr,
    /// What becomes of a connection from the same host.
    pub answer: Answer,
    /// The interface with this address, and whether it is up; none if no interface has it.
    pub link: Option<(String, bool)>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is accepted.
    Accepts,
    /// It is refused: nobody listens.
    Refuses,
    /// Neither.
    Silent,
}

impl Report {
    /// Whether the service has died: it lived, its processes are gone, and every address refuses.
    pub fn is_gone(&self) -> bool {
        let refuses = |service: &Service| service.answer == Answer::Refuses;
        self.has_lived
            && self.processes == 0
            && !self.services.is_empty()
            && self.services.iter().all(refuses)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.processes {
            0 => write!(f, "no process is known")?,
            1 => write!(f, "1 process")?,
            n => write!(f, "{n} processes")?,
        }
        for Service { address, answer, link } in &self.services {
            let answer = match answer {
                Answer::Accepts => "accepts",
                Answer::Refuses => "refuses",
                Answer::Silent => "says nothing",
            };
            write!(f, ", {address} {answer}")?;
            match link {
                Some((_, true)) => {}
                Some((name, false)) => write!(f, " (its interface {name} is down)")?,
                None => write!(f, " (no interface has this address)")?,
            }
        }
        Ok(())
    }
}

/// Tells what is watched, until the channel ends.
pub fn tell(watcher: &Watcher, mut channel: Channel) {
    let mut told = None;
    while channel.ended().is_none() {
        let (turn, report) = watcher.wait(told, HEARTBEAT);
        told = Some(turn);
        let Ok(mut line) = serde_json::to_vec(&report) else { return };
        line.push(b'\n');
        if channel.write_all(&line).is_err() {
            return;
        }
    }
}

/// Hears reports until there are no more; why.
pub fn hear(channel: Channel, mut heard: impl FnMut(Report)) -> String {
    let mut lines = BufReader::new(channel);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limited = std::io::Read::take(&mut lines, LINE_LEN_MAX).read_until(b'\n', &mut line);
        match limited {
            Ok(0) => return "it reports no more".into(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
        match serde_json::from_slice(&line) {
            Ok(report) => heard(report),
            Err(_) => return "its report makes no sense".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(answers: &[Answer], processes: usize, has_lived: bool) -> Report {
        let service = |(i, answer): (usize, &Answer)| Service {
            address: SocketAddr::from(([127, 0, 0, 1], 80 + i as u16)),
            answer: *answer,
            link: Some(("lo".into(), true)),
        };
        let services = answers.iter().enumerate().map(service).collect();
        Report { services, processes, has_lived }
    }

    #[test]
    fn only_what_lived_and_has_no_process_and_refuses_everything_is_gone() {
        use Answer::{Accepts, Refuses, Silent};
        assert!(report(&[Refuses], 0, true).is_gone());
        assert!(report(&[Refuses, Refuses], 0, true).is_gone());
        for other in [
            report(&[Refuses], 0, false),
            report(&[Refuses], 1, true),
            report(&[Silent], 0, true),
            report(&[Accepts], 0, true),
            report(&[Refuses, Accepts], 0, true),
            report(&[Refuses, Silent], 0, true),
            report(&[], 0, true),
            Report::default(),
        ] {
            assert!(!other.is_gone(), "{other}");
        }
    }

    #[test]
    fn a_report_is_said_for_people() {
        let mut said = report(&[Answer::Accepts, Answer::Refuses], 3, true);
        said.services[1].link = Some(("eth0".into(), false));
        let expected = "3 processes, 127.0.0.1:80 accepts, 127.0.0.1:81 refuses (its interface \
                        eth0 is down)";
        assert_eq!(said.to_string(), expected);
    }
}
