//! The embedded FTP server: one thread a session, the same replies every time.
//!
//! `RETR bytes-N` gives N bytes of the known content, `STOR` takes a file and says whether it was
//! that content. Two servers of the same commands differ in their data ports only, until a file of
//! [`Faults`] appears.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::web::server::{Faults, send_content};
use super::super::web::{PIECE_MAX, first_wrong};

/// How long a client may take to come for its data, in milliseconds.
const DATA_WAIT_MS: u16 = 10_000;
/// Longest command, in bytes.
const COMMAND_MAX: u64 = 512;

/// Serves one session until the client leaves.
pub fn converse(stream: &TcpStream, faults: &Faults) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut session = Session { control: stream, faults, passive: None, from: 0 };
    session.say("220 shadowvm-lab")?;
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut input).take(COMMAND_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (verb, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        let verb = verb.to_ascii_uppercase();
        if verb == "QUIT" {
            return session.say("221 Goodbye.");
        }
        session.obey(&verb, rest)?;
    }
}

struct Session<'a> {
    control: &'a TcpStream,
    faults: &'a Faults,
    /// Where the next data connection is awaited.
    passive: Option<TcpListener>,
    /// Where the next transfer begins.
    from: u64,
}

impl Session<'_> {
    fn say(&self, line: &str) -> io::Result<()> {
        let mut control = self.control;
        control.write_all(format!("{line}\r\n").as_bytes())
    }

    fn obey(&mut self, verb: &str, rest: &str) -> io::Result<()> {
        // Only the command right behind it begins elsewhere than at the first byte.
        let from = std::mem::take(&mut self.from);
        match verb {
            "USER" => self.say("331 Any password will do."),
            "PASS" => self.say("230 Welcome."),
            "SYST" => self.say("215 UNIX Type: L8"),
            "TYPE" => self.say("200 Bytes as they are."),
            "NOOP" => self.say("200 Nothing done."),
            "PWD" => self.say("257 \"/\""),
            "CWD" => self.say("250 There is one directory."),
            "FEAT" => self.say("211-Beyond RFC 959:\r\n EPSV\r\n REST STREAM\r\n SIZE\r\n211 End"),
            "EPSV" => self
                .listen(|_, port| Some(format!("229 Entering Extended Passive Mode (|||{port}|)"))),
            "PASV" => self.listen(|ip, port| {
                let IpAddr::V4(ip) = ip else { return None };
                let ([a, b, c, d], [high, low]) = (ip.octets(), port.to_be_bytes());
                Some(format!("227 Entering Passive Mode ({a},{b},{c},{d},{high},{low})"))
            }),
            "REST" => match rest.parse() {
                Ok(from) => {
                    self.from = from;
                    self.say(&format!("350 From byte {from}."))
                }
                Err(_) => self.say("501 A number of bytes is needed."),
            },
            "SIZE" => match length(rest) {
                Some(bytes) => self.say(&format!("213 {bytes}")),
                None => self.say("550 Only bytes-N is here."),
            },
            "RETR" => match length(rest).filter(|bytes| from <= *bytes) {
                Some(bytes) => self.transfer(|data, faults| {
                    send_content(data, Vec::new(), from..bytes, faults)?;
                    Ok("226 Transfer complete.".into())
                }),
                None => self.say("550 Only bytes-N is here."),
            },
            "LIST" | "NLST" => self.transfer(|mut data, _| {
                data.write_all(b"bytes-1000\r\nbytes-1000000\r\nbytes-1000000000\r\n")?;
                Ok("226 Any other bytes-N is here too.".into())
            }),
            "STOR" => self.transfer(|data, _| {
                Ok(match take_content(data, from)? {
                    (bytes, None) => format!("226 {bytes} bytes, every one right."),
                    (_, Some(at)) => format!("551 Wrong byte at {at}."),
                })
            }),
            _ => self.say("502 Not here."),
        }
    }

    fn listen(&mut self, reply: impl Fn(IpAddr, u16) -> Option<String>) -> io::Result<()> {
        let ip = self.control.local_addr()?.ip();
        let listener = TcpListener::bind(SocketAddr::new(ip, 0))?;
        let port = listener.local_addr()?.port();
        match reply(ip.to_canonical(), port) {
            Some(reply) => {
                self.passive = Some(listener);
                self.say(&reply)
            }
            None => self.say("522 Network protocol not supported, use EPSV."),
        }
    }

    fn transfer(
        &mut self,
        work: impl FnOnce(&TcpStream, &Faults) -> io::Result<String>,
    ) -> io::Result<()> {
        let Some(listener) = self.passive.take() else {
            return self.say("425 Use EPSV or PASV first.");
        };
        self.say("150 Here it comes.")?;
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(DATA_WAIT_MS))? == 0 {
            return self.say("425 Nobody came for the data.");
        }
        let (data, _) = listener.accept()?;
        let done = work(&data, self.faults);
        drop(data);
        self.say(done.as_deref().unwrap_or("426 The data connection broke."))
    }
}

/// The length of the file of that name.
fn length(name: &str) -> Option<u64> {
    name.trim_start_matches('/').strip_prefix("bytes-")?.parse().ok()
}

/// Reads a file whose first byte is at `from`: how many bytes came, and the first that is wrong.
fn take_content(mut data: &TcpStream, from: u64) -> io::Result<(u64, Option<u64>)> {
    let (mut at, mut wrong, mut buffer) = (from, None, vec![0; PIECE_MAX]);
    loop {
        match data.read(&mut buffer)? {
            0 => return Ok((at - from, wrong)),
            n => {
                wrong = wrong.or_else(|| first_wrong(at, &buffer[..n]));
                at += n as u64;
            }
        }
    }
}
