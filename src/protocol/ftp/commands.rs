//! What a client asks for on a control connection of FTP: which command each reply answers.
//!
//! Only what decides how a reply is read is kept of a command. Lines end with CR LF; telnet's own
//! sequences may stand before a command (RFC 959 4.1.3, RFC 854), an interrupt before ABOR above
//! all.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use super::address_and_port;
use crate::protocol::RawReason;

/// Longest line of a command.
pub const LINE_BYTES_MAX: usize = 4096;
/// How much of a line is looked at: the longest that is read is EPRT with an address of IPv6.
const KEPT_BYTES: usize = 64;
/// Commands whose reply is outstanding; more end the reading.
const OUTSTANDING_MAX: usize = 1024;

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// PASV.
    Passive,
    /// EPSV.
    ExtendedPassive,
    /// PORT or EPRT: the server is to connect to the client, there if that can be read.
    Active(Option<SocketAddr>),
    /// STAT about the server.
    Status,
    /// STAT about a file: a listing on the control connection.
    Listing,
    /// Something that a data connection carries.
    Transfer,
    /// AUTH: if it is accepted, nobody can read on.
    Secure,
    /// Anything else.
    Other,
}

/// Where in telnet's own sequences the next byte stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Telnet {
    #[default]
    None,
    /// Behind "interpret as command".
    Command,
    /// Behind a word about an option, which follows.
    Option,
}

/// Reads the client's side.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    /// The beginning of the line, without its CR LF.
    pub(crate) line: Vec<u8>,
    pub(crate) len: usize,
    pub(crate) has_cr: bool,
    pub(crate) telnet: Telnet,
    pub(crate) outstanding: VecDeque<Command>,
}

impl Commands {
    /// Reads on.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), RawReason> {
        bytes.iter().try_for_each(|&byte| self.push(byte))
    }

    /// The command that the next reply answers.
    pub fn first(&self) -> Option<Command> {
        self.outstanding.front().copied()
    }

    /// It has its whole reply; false if there was none.
    pub fn answered(&mut self) -> bool {
        let was_asked = self.outstanding.pop_front().is_some();
        if self.outstanding.is_empty() {
            self.outstanding = VecDeque::new(); // between commands nothing is kept
        }
        was_asked
    }

    /// Whether no command is under way or outstanding.
    pub fn is_quiet(&self) -> bool {
        self.len == 0 && self.telnet == Telnet::None && self.outstanding.is_empty()
    }

    fn push(&mut self, byte: u8) -> Result<(), RawReason> {
        match (self.telnet, byte) {
            (Telnet::None, IAC) if self.line.is_empty() && !self.has_cr => {
                self.telnet = Telnet::Command;
            }
            (Telnet::Command, WILL..=DONT) => self.telnet = Telnet::Option,
            (Telnet::Command, SE..WILL) | (Telnet::Option, _) => self.telnet = Telnet::None,
            (Telnet::Command, _) => return Err(RawReason::RequestLine),
            (Telnet::None, b'\n') if self.has_cr => return self.end_line(),
            (Telnet::None, b'\n') => return Err(RawReason::BareLf),
            (Telnet::None, _) if self.has_cr => return Err(RawReason::BareCr),
            (Telnet::None, b'\r') => self.has_cr = true,
            (Telnet::None, _) if self.line.len() < KEPT_BYTES => self.line.push(byte),
            (Telnet::None, _) => {}
        }
        self.len += 1;
        if self.len > LINE_BYTES_MAX { Err(RawReason::LongLine) } else { Ok(()) }
    }

    fn end_line(&mut self) -> Result<(), RawReason> {
        let line = std::mem::take(&mut self.line);
        (self.len, self.has_cr) = (0, false);
        let command = command(&line).ok_or(RawReason::RequestLine)?;
        if self.outstanding.len() == OUTSTANDING_MAX {
            return Err(RawReason::Outstanding);
        }
        self.outstanding.push_back(command);
        Ok(())
    }
}

const IAC: u8 = 255;
const SE: u8 = 240;
const WILL: u8 = 251;
const DONT: u8 = 254;

/// The command that a line is, of which the beginning is enough.
fn command(line: &[u8]) -> Option<Command> {
    let end = line.iter().position(|&b| b == b' ').unwrap_or(line.len());
    let (verb, rest) = line.split_at(end);
    let is_verb = (3..=4).contains(&verb.len()) && verb.iter().all(u8::is_ascii_alphabetic);
    let has_argument = rest.iter().any(|&b| b != b' ');
    is_verb.then(|| match verb.to_ascii_uppercase().as_slice() {
        b"PASV" => Command::Passive,
        b"EPSV" => Command::ExtendedPassive,
        b"PORT" => Command::Active(text(rest).and_then(port)),
        b"EPRT" => Command::Active(text(rest).and_then(extended_port)),
        b"STAT" if has_argument => Command::Listing,
        b"STAT" => Command::Status,
        b"RETR" | b"STOR" | b"APPE" | b"LIST" | b"NLST" | b"MLSD" => Command::Transfer,
        b"AUTH" => Command::Secure,
        _ => Command::Other,
    })
}

fn text(argument: &[u8]) -> Option<&str> {
    std::str::from_utf8(argument).ok().map(str::trim_ascii)
}

/// "h1,h2,h3,h4,p1,p2".
fn port(argument: &str) -> Option<SocketAddr> {
    let (address, port) = address_and_port(argument)?;
    Some(SocketAddr::new(address?, port))
}

/// "|1|192.0.2.1|6275|" or "|2|2001:db8::1|6275|", with any delimiter (RFC 2428 2).
fn extended_port(argument: &str) -> Option<SocketAddr> {
    let delimiter = argument.chars().next().filter(char::is_ascii_graphic)?;
    let mut parts = argument.strip_prefix(delimiter)?.strip_suffix(delimiter)?.split(delimiter);
    let (family, address, port) = (parts.next()?, parts.next()?, parts.next()?);
    let address: IpAddr = address.parse().ok()?;
    let is_whole = parts.next().is_none() && family == if address.is_ipv4() { "1" } else { "2" };
    is_whole.then_some(SocketAddr::new(address, port.parse().ok()?))
}

/// Whether `bytes` begin with a whole command.
pub fn begins_command(bytes: &[u8]) -> bool {
    let end = bytes.windows(2).position(|w| w == b"\r\n");
    end.is_some_and(|end| command(&bytes[..end.min(KEPT_BYTES)]).is_some())
}
