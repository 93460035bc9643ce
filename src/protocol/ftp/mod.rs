//! The control connection of FTP: where two equal servers say something else.
//!
//! Above all the port of a passive data connection, which each server chooses for itself; then, if
//! the user lets them, texts that are for people. A value that may differ is looked for only in the
//! reply to the command that asks for it. After anything ambiguous (a bare LF, a reply that nobody
//! has asked for) every byte is compared as it is. RFC 959 4.2, RFC 2428, RFC 1123 4.1.2.

pub mod commands;
pub mod replies;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use self::commands::{Command, Commands};
use self::replies::{Replies, Seen};
use super::{Announced, Field, Normalizer, Quiet, RawReason, RuleName, Step};

pub use commands::begins_command;

/// What may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Where a data connection is expected, in the reply to PASV: address and port.
    Port,
    /// The same in the reply to EPSV: the port alone.
    ExtendedPort,
    /// The text of the greeting.
    Banner,
    /// What a server says of itself (STAT).
    Status,
    /// What it says of a transfer when that is complete.
    Statistics,
    /// The time of a file in a listing on the control connection (STAT).
    Time,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Port, Self::ExtendedPort, Self::Banner, Self::Status, Self::Statistics, Self::Time];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::ExtendedPort => "extended port",
            Self::Banner => "banner",
            Self::Status => "status",
            Self::Statistics => "statistics",
            Self::Time => "time",
        }
    }

    /// Whether it holds although nobody has asked for it: without it nothing could be transferred.
    pub const fn is_necessary(self) -> bool {
        matches!(self, Self::Port | Self::ExtendedPort)
    }

    fn of(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Bytes of the time in a line of `ls -l`: "Nov 22 04:55", "Nov  2  2026".
const TIME_BYTES: usize = 12;
/// What stands before it: mode, links, owner, group, size.
const COLUMNS: usize = 5;

/// The reader of one control connection.
#[derive(Clone, Debug)]
pub struct Ftp {
    /// Texts for people may differ.
    pub(crate) has_defaults: bool,
    pub(crate) commands: Commands,
    pub(crate) replies: Replies,
    /// The server's first reply, which nobody asks for, is complete.
    pub(crate) has_greeted: bool,
    /// A value in this line has been announced, or passed.
    pub(crate) is_spanned: bool,
    /// Where the servers are to connect to, as they have just agreed.
    pub(crate) called: Option<SocketAddr>,
    pub(crate) raw: Option<RawReason>,
}

impl Ftp {
    /// Reads a connection from its beginning; with `has_defaults` texts for people may differ.
    pub fn new(has_defaults: bool) -> Self {
        Self {
            has_defaults,
            commands: Commands::default(),
            replies: Replies::default(),
            has_greeted: false,
            is_spanned: false,
            called: None,
            raw: None,
        }
    }

    /// One that goes on between a reply and the next command.
    pub fn resumed(has_defaults: bool, has_greeted: bool) -> Self {
        Self { has_greeted, ..Self::new(has_defaults) }
    }

    fn give_up(&mut self, why: RawReason) {
        let raw = self.raw.or(Some(why));
        *self = Self { raw, ..Self::new(self.has_defaults) };
    }

    /// A reply is complete.
    fn on_reply(&mut self, code: u16) {
        if !self.has_greeted {
            self.has_greeted = true;
            return;
        }
        let asked = self.commands.first();
        let was_asked = self.commands.answered();
        if asked == Some(Command::Secure) && code == 234 {
            self.give_up(RawReason::Encrypted);
        } else if let (Some(Command::Active(client)), 200) = (asked, code) {
            match client {
                Some(client) => self.called = Some(client),
                None => self.give_up(RawReason::ActiveData),
            }
        } else if !was_asked && code != 421 {
            self.give_up(RawReason::Unasked);
        }
    }

    /// The rule for a value that would begin with `next`.
    fn rule_at(&self, next: u8) -> Option<Rule> {
        let replies = &self.replies;
        if self.is_spanned || replies.has_cr() || matches!(next, b'\r' | b'\n') {
            return None;
        }
        let asked = if self.has_greeted { self.commands.first() } else { None };
        let is_single = replies.open().is_none() && replies.line().get(3) == Some(&b' ');
        let begins_number = is_single && next.is_ascii_digit();
        match (&replies.code()?, asked) {
            (b"227", Some(Command::Passive)) => begins_number.then_some(Rule::Port),
            (b"229", Some(Command::ExtendedPassive)) => begins_number.then_some(Rule::ExtendedPort),
            _ if !self.has_defaults => None,
            (b"220", None) if !self.has_greeted => self.text(Rule::Banner, next),
            (b"211", Some(Command::Status)) => self.text(Rule::Status, next),
            (b"226", Some(Command::Transfer)) => self.text(Rule::Statistics, next),
            (b"211" | b"212" | b"213", Some(Command::Listing)) => {
                let is_file = replies.open().is_some() && is_before_time(replies.line());
                (is_file && next.is_ascii_alphabetic()).then_some(Rule::Time)
            }
            _ => None,
        }
    }

    fn text(&self, rule: Rule, next: u8) -> Option<Rule> {
        self.replies.begins_text(next).then_some(rule)
    }

    fn push(&mut self, byte: u8) {
        match self.replies.push(byte) {
            Ok(Seen::Nothing) => {}
            Ok(Seen::Line | Seen::Preliminary(_)) => self.is_spanned = false,
            Ok(Seen::Reply(code)) => {
                self.is_spanned = false;
                self.on_reply(code);
            }
            Err(why) => self.give_up(match (self.has_greeted, why) {
                (false, RawReason::StatusLine) => RawReason::NotFtp,
                (_, why) => why,
            }),
        }
    }
}

impl Normalizer for Ftp {
    fn on_request(&mut self, bytes: &[u8]) {
        if self.raw.is_none()
            && let Err(why) = self.commands.read(bytes)
        {
            self.give_up(why);
        }
    }

    fn on_request_hole(&mut self, _: u64) {
        if self.raw.is_none() {
            self.give_up(RawReason::Missed);
        }
    }

    fn on_response(&mut self, bytes: &[u8]) -> Step {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.raw.is_some() {
                break;
            }
            if let Some(rule) = self.rule_at(byte) {
                self.is_spanned = true;
                return Step::Span { after: at, rule: rule as u16 };
            }
            self.push(byte);
        }
        Step::Plain
    }

    fn on_span(&mut self, len: usize) {
        if let Err(why) = self.replies.pass(len) {
            self.give_up(why);
        }
    }

    fn is_in_span(&self, rule: u16, at: usize, byte: u8) -> bool {
        match Rule::of(rule) {
            Some(Rule::Port) => byte.is_ascii_digit() || byte == b',',
            Some(Rule::ExtendedPort) => byte.is_ascii_digit(),
            Some(Rule::Time) => at < TIME_BYTES && !matches!(byte, b'\r' | b'\n'),
            _ => !matches!(byte, b'\r' | b'\n'),
        }
    }

    fn may_differ(&self, rule: u16, ours: &[u8], theirs: &[u8]) -> bool {
        match Rule::of(rule) {
            Some(Rule::Port | Rule::ExtendedPort) => {
                [ours, theirs].iter().all(|value| self.announced(rule, value).is_some())
            }
            Some(Rule::Time) => is_time(ours) && is_time(theirs),
            _ => match self.replies.rest_of_code() {
                // A line that ends the reply stands for none that does not.
                Some(rest) => [ours, theirs].iter().all(|text| {
                    let next = text.strip_prefix(rest).map(|text| text.first().copied());
                    !matches!(next, Some(None | Some(b' ' | b'-')))
                }),
                None => true,
            },
        }
    }

    fn announced(&self, rule: u16, value: &[u8]) -> Option<Announced> {
        let text = std::str::from_utf8(value).ok()?;
        let (address, port) = match Rule::of(rule)? {
            Rule::Port => address_and_port(text)?,
            Rule::ExtendedPort => (None, text.parse().ok()?),
            _ => return None,
        };
        (port > 0).then_some(Announced { address, port })
    }

    fn with_address(&self, rule: u16, value: &[u8], address: IpAddr) -> Vec<u8> {
        match (self.announced(rule, value), address) {
            (Some(Announced { address: Some(_), port }), IpAddr::V4(v4)) => {
                let [a, b, c, d] = v4.octets();
                let [high, low] = port.to_be_bytes();
                format!("{a},{b},{c},{d},{high},{low}").into_bytes()
            }
            _ => value.to_vec(),
        }
    }

    fn take_call(&mut self) -> Option<SocketAddr> {
        self.called.take()
    }

    fn makes_offers(&self) -> bool {
        self.raw.is_none()
    }

    fn rule_name(&self, rule: u16) -> RuleName {
        RuleName { protocol: "ftp", field: Rule::of(rule).map_or("", Rule::name).into() }
    }

    fn is_complete(&self) -> Option<bool> {
        self.raw.is_none().then(|| self.quiet().is_some())
    }

    fn boxed_clone(&self) -> Box<dyn Normalizer> {
        Box::new(self.clone())
    }

    fn ftp(&self) -> Option<&Ftp> {
        Some(self)
    }

    fn quiet(&self) -> Option<Quiet> {
        let is_between = self.commands.is_quiet() && self.replies.is_quiet();
        (is_between && self.has_greeted && self.raw.is_none()).then_some(Quiet::Ftp)
    }

    fn plain_ahead(&self) -> u64 {
        if self.raw.is_some() { u64::MAX } else { 0 }
    }

    fn raw(&self) -> Option<RawReason> {
        self.raw
    }

    fn field(&self, ahead: &[u8]) -> Option<Field> {
        let begun = self.replies.line().iter().chain(ahead).copied();
        let code = match self.replies.open() {
            Some(code) => code.to_vec(),
            None if self.replies.line_len() < 3 => return Some(Field::ReplyCode),
            None => begun.take(3).collect(),
        };
        let code = std::str::from_utf8(&code).ok().and_then(|code| code.parse().ok());
        self.raw.is_none().then(|| code.map_or(Field::ReplyCode, Field::Reply))
    }
}

/// "h1,h2,h3,h4,p1,p2".
fn address_and_port(text: &str) -> Option<(Option<IpAddr>, u16)> {
    let mut bytes = [0u8; 6];
    let mut numbers = text.split(',');
    for byte in &mut bytes {
        *byte = numbers.next()?.parse().ok()?;
    }
    let [a, b, c, d, high, low] = bytes;
    let address = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    numbers.next().is_none().then_some((Some(address), u16::from_be_bytes([high, low])))
}

/// Whether the time of a file comes next in a line of `ls -l`; the line may have the digits of its
/// reply before it.
fn is_before_time(line: &[u8]) -> bool {
    let line = match line {
        [a, b, c, b'-', rest @ ..] if [a, b, c].iter().all(|byte| byte.is_ascii_digit()) => rest,
        line => line,
    };
    let is_mode = |byte: &u8| b"-dlbcpsrwxStT".contains(byte);
    let has_mode = line.len() > 10 && line[..10].iter().all(is_mode) && line.ends_with(b" ");
    has_mode && line.split(|&b| b == b' ').filter(|word| !word.is_empty()).count() == COLUMNS
}

/// "Nov 22 04:55" or "Nov  2  2026".
fn is_time(text: &[u8]) -> bool {
    let is_like = |pattern: &[u8; TIME_BYTES]| {
        text.len() == TIME_BYTES
            && pattern.iter().zip(text).all(|(kind, byte)| match kind {
                b'a' => byte.is_ascii_alphabetic(),
                b'9' => byte.is_ascii_digit(),
                b'_' => byte.is_ascii_digit() || *byte == b' ',
                other => byte == other,
            })
    };
    is_like(b"aaa _9 99:99") || is_like(b"aaa _9  9999")
}
