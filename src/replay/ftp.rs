//! A control connection of FTP as a dialogue: which command waits for its reply, where a server
//! expects data connections, when a transfer begins. What may differ is read elsewhere (`rules`).
//!
//! RFC 959 5.4, RFC 2428.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

use super::pieces::Piece;
use super::talks::Side;
use super::view::printable;
use crate::protocol::ftp::commands::{Command, Commands};
use crate::protocol::ftp::replies::{Replies, Seen};
use crate::protocol::ftp::{Ftp, Rule};
use crate::protocol::{Announced, Normalizer, RawReason};

/// Bytes of a command that are kept to name it.
const COMMAND_BYTES: usize = 256;

/// Nobody logs in in the middle.
const NO_BEGINNING: &str = "the beginning of this session was not captured";

/// What a server's reply means to data connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The server expects one.
    Offer(Announced),
    /// The client expects one of the server here.
    Door(SocketAddr),
    /// The transfer by this command has begun, or never will.
    Begun(String),
}

/// Both sides of one control connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Dialogue {
    commands: Commands,
    replies: Replies,
    /// The line of the client that is under way, and the whole ones without their reply.
    line: Vec<u8>,
    asked: VecDeque<String>,
    /// Commands, and final replies: one more of them, because the greeting is one.
    commands_count: u64,
    replies_count: u64,
    /// A preliminary reply came to the command whose turn it is.
    has_begun: bool,
    news: Vec<News>,
    /// Replies were not captured: all of them, as far as the client goes on.
    is_missing: bool,
    dead_end: Option<&'static str>,
}

impl Dialogue {
    /// Reads on.
    pub(super) fn read(&mut self, side: Side, bytes: &[u8]) {
        for &byte in bytes {
            if self.dead_end.is_some() {
                return;
            }
            match side {
                Side::Client => self.ask(byte),
                Side::Server => self.reply(byte),
            }
        }
    }

    /// Bytes of a side were not captured. Whoever goes on after replies has heard them.
    pub(super) fn hole(&mut self, side: Side) {
        match side {
            Side::Client => self.lose(RawReason::Missed),
            Side::Server => self.is_missing = true,
        }
    }

    /// Replies, and whether one more has begun; none where nobody can read on.
    pub(super) fn progress(&self) -> Option<(u64, bool)> {
        let progress = match self.is_missing {
            true => (1 + self.commands_count, false),
            false => (self.replies_count, self.has_begun),
        };
        self.dead_end.is_none().then_some(progress)
    }

    /// Commands, and the greeting, without a final reply.
    pub(super) fn outstanding(&self) -> Option<u64> {
        let asked = 1 + self.commands_count + u64::from(!self.line.is_empty());
        Some(asked.saturating_sub(self.progress()?.0))
    }

    /// Why the dialogue cannot be held again from here on.
    pub(super) const fn dead_end(&self) -> Option<&'static str> {
        self.dead_end
    }

    /// What was learned since the last time.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// What the server's next byte is; `next` are the bytes from there on.
    pub(super) fn describe(&self, next: &[u8]) -> String {
        let begun = self.replies.line().iter().chain(next).copied();
        let code = match self.replies.open() {
            Some(code) => code.to_vec(),
            None if self.replies.line_len() < 3 => Vec::new(),
            None => begun.take(3).collect(),
        };
        let number = match self.replies_count {
            0 => "the greeting".to_owned(),
            number => format!("answer {number}"),
        };
        match code.is_empty() {
            true => format!("{number}, reply code"),
            false => format!("{number}, reply {}", printable(&code)),
        }
    }

    fn ask(&mut self, byte: u8) {
        if self.is_missing {
            let (commands_count, dead_end) = (self.commands_count, self.dead_end);
            let replies_count = 1 + commands_count;
            *self = Self { commands_count, replies_count, dead_end, ..Self::default() };
        }
        if self.replies_count == 0 {
            return self.dead_end = Some(NO_BEGINNING);
        }
        if let Err(why) = self.commands.read(&[byte]) {
            return self.lose(why);
        }
        match byte {
            b'\n' => {
                let line = printable(&std::mem::take(&mut self.line));
                self.commands_count += 1;
                self.news.extend(door(&line).map(News::Door));
                self.asked.push_back(line);
            }
            // Telnet's own sequences are part of no name.
            b'\r' | 0x80.. => {}
            _ if self.line.len() < COMMAND_BYTES => self.line.push(byte),
            _ => {}
        }
    }

    fn reply(&mut self, byte: u8) {
        if self.is_missing {
            return;
        }
        let is_single = self.replies.open().is_none();
        let line = if byte == b'\n' { self.replies.line().to_vec() } else { Vec::new() };
        match self.replies.push(byte) {
            Ok(Seen::Nothing | Seen::Line) => {}
            Ok(Seen::Preliminary(_)) => {
                self.has_begun = true;
                let command = self.asked.front().cloned().unwrap_or_default();
                self.news.push(News::Begun(command));
            }
            Ok(Seen::Reply(code)) => self.on_reply(code, if is_single { &line } else { &[] }),
            Err(why) => self.lose(why),
        }
    }

    fn on_reply(&mut self, code: u16, line: &[u8]) {
        self.has_begun = false;
        self.replies_count += 1;
        if self.replies_count == 1 {
            self.dead_end = (code != 220).then_some(NO_BEGINNING);
            return;
        }
        let asked = self.commands.first();
        if !self.commands.answered() && code != 421 {
            return self.lose(RawReason::Unasked);
        }
        let command = self.asked.pop_front().unwrap_or_default();
        match (asked, code) {
            (Some(Command::Passive), 227) => self.news.extend(offer(Rule::Port, line)),
            (Some(Command::ExtendedPassive), 229) => {
                self.news.extend(offer(Rule::ExtendedPort, line));
            }
            (Some(Command::Transfer), _) => self.news.push(News::Begun(command)),
            (Some(Command::Secure), 234) => self.lose(RawReason::Encrypted),
            _ => {}
        }
    }

    fn lose(&mut self, why: RawReason) {
        self.dead_end = Some(match why {
            RawReason::Encrypted => "client and server speak in secret from here on (AUTH)",
            RawReason::Missed => "what the client said was not captured",
            RawReason::NotFtp => "this is not FTP",
            _ => "what was said is not FTP any more that everybody reads alike",
        });
    }
}

/// Where a data connection is expected, in the line of a reply.
fn offer(rule: Rule, line: &[u8]) -> Option<News> {
    let text = line.get(4..)?;
    let from = text.iter().position(u8::is_ascii_digit)?;
    let ftp = Ftp::new(false);
    let value = text[from..].iter().copied().enumerate();
    let value: Vec<u8> = value
        .take_while(|&(at, byte)| ftp.is_in_span(rule as u16, at, byte))
        .map(|(_, byte)| byte)
        .collect();
    ftp.announced(rule as u16, &value).map(News::Offer)
}

/// Where the client waits for a connection of its server, if this command says so.
fn door(line: &str) -> Option<SocketAddr> {
    let (verb, value) = line.split_once(' ')?;
    match &*verb.to_ascii_uppercase() {
        "PORT" => {
            let rule = Rule::Port as u16;
            let Announced { address, port } = Ftp::new(false).announced(rule, value.as_bytes())?;
            Some(SocketAddr::new(address?, port))
        }
        "EPRT" => {
            let mut fields = value.split(value.chars().next()?).skip(2);
            let (address, port) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(SocketAddr::new(address, port)).filter(|at| at.port() > 0)
        }
        _ => None,
    }
}

/// The command that names `at` to a server, said as in `line` if that can be.
pub(super) fn command(line: &[u8], at: SocketAddr) -> Vec<u8> {
    let port = at.port();
    match at.ip() {
        IpAddr::V4(v4) if line.get(..4).is_some_and(|verb| verb.eq_ignore_ascii_case(b"PORT")) => {
            let [a, b, c, d] = v4.octets();
            let [high, low] = port.to_be_bytes();
            format!("PORT {a},{b},{c},{d},{high},{low}\r\n").into_bytes()
        }
        IpAddr::V4(v4) => format!("EPRT |1|{v4}|{port}|\r\n").into_bytes(),
        IpAddr::V6(v6) => format!("EPRT |2|{v6}|{port}|\r\n").into_bytes(),
    }
}

/// Finds the commands by which a client expects connections of its server.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The line that may become one.
    line: Vec<u8>,
    /// The beginning of a line that becomes none was said.
    is_inside: bool,
}

impl Lines {
    /// What is said next, in pieces; a command whose end was not said yet waits for it.
    pub(super) fn cut(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let is_whole = part.ends_with(b"\n");
            self.line.extend_from_slice(part);
            let begin = self.line.get(..4).unwrap_or(&self.line);
            let may_be = |verb: &[u8]| verb[..begin.len()].eq_ignore_ascii_case(begin);
            let may_wait = !self.is_inside
                && self.line.len() < COMMAND_BYTES
                && (may_be(b"PORT") || may_be(b"EPRT"));
            if !is_whole && may_wait {
                continue;
            }
            let line = Bytes::from(std::mem::take(&mut self.line));
            let door = door(&printable(line.trim_ascii_end())).filter(|_| may_wait);
            pieces.push(match door {
                Some(at) => Piece::Door(line, at),
                None => Piece::Plain(line),
            });
            self.is_inside = !is_whole;
        }
        pieces
    }

    /// What waits for its end, which does not come.
    pub(super) fn rest(&mut self) -> Option<Piece> {
        let line = std::mem::take(&mut self.line);
        (!line.is_empty()).then(|| Piece::Plain(line.into()))
    }
}

/// A command as it may be shown: no password.
pub(super) fn shown(command: &str) -> String {
    match command.get(..5) {
        Some(verb) if verb.eq_ignore_ascii_case("pass ") => format!("{verb}****"),
        _ => command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(turns: &[(Side, &str)]) -> Dialogue {
        let mut dialogue = Dialogue::default();
        for (side, text) in turns {
            dialogue.read(*side, text.as_bytes());
        }
        dialogue
    }

    #[test]
    fn a_dialogue_tells_what_is_outstanding_and_where_data_is_expected() {
        use Side::{Client, Server};
        let mut dialogue = hold(&[
            (Server, "220-welcome\r\n220 go\r\n"),
            (Client, "USER x\r\n"),
            (Server, "331 pass\r\n"),
            (Client, "PASV\r\n"),
        ]);
        assert_eq!((dialogue.progress(), dialogue.outstanding()), (Some((2, false)), Some(1)));
        dialogue.read(Server, b"227 Entering Passive Mode (192,0,2,10,4,1).\r\n");
        dialogue.read(Client, b"RETR a b\r\nEP");
        assert_eq!((dialogue.progress(), dialogue.outstanding()), (Some((3, false)), Some(2)));
        dialogue.read(Server, b"150 here\r\n");
        assert_eq!(dialogue.progress(), Some((3, true)));
        dialogue.read(Client, b"SV\r\n");
        dialogue.read(Server, b"226 done\r\n229 Extended (|||2000|)\r\n");
        assert_eq!((dialogue.progress(), dialogue.outstanding()), (Some((5, false)), Some(0)));
        let address = Some(std::net::IpAddr::from([192, 0, 2, 10]));
        let begun = News::Begun("RETR a b".into());
        let news = [
            News::Offer(Announced { address, port: 1025 }),
            begun.clone(),
            begun,
            News::Offer(Announced { address: None, port: 2000 }),
        ];
        assert_eq!(dialogue.take_news(), news);
    }

    #[test]
    fn where_it_cannot_be_held_again_is_said() {
        use Side::{Client, Server};
        let greeting = (Server, "220 go\r\n");
        for (turns, word) in [
            (vec![(Client, "PASV\r\n")], "beginning"),
            (vec![(Server, "226 done\r\n")], "beginning"),
            (vec![greeting, (Client, "AUTH TLS\r\n"), (Server, "234 go\r\n")], "secret"),
            (vec![greeting, (Client, "NOOP\n")], "reads alike"),
        ] {
            let dialogue = hold(&turns);
            assert!(dialogue.dead_end().is_some_and(|why| why.contains(word)), "{turns:?}");
            assert_eq!(dialogue.progress(), None);
        }
        let mut lossy = hold(&[greeting, (Client, "USER x\r\n"), (Server, "331-a\r\n")]);
        lossy.hole(Server);
        assert_eq!((lossy.progress(), lossy.outstanding()), (Some((2, false)), Some(0)));
        lossy.read(Server, b"of it\r\n");
        lossy.read(Client, b"PASV\r\n");
        lossy.read(Server, b"227 (1,2,3,4,5,6)\r\n");
        assert_eq!((lossy.progress(), lossy.take_news().len()), (Some((3, false)), 1));
        let refused = hold(&[greeting, (Client, "AUTH TLS\r\n"), (Server, "530 no\r\n")]);
        assert_eq!(refused.dead_end(), None);
    }

    #[test]
    fn where_a_client_waits_for_its_server_is_cut_out_wherever_its_segments_end() {
        let said =
            b"USER x\r\nport 192,0,2,1,4,1\r\nEPSV\r\nEPRT |2|2001:db8::1|2000|\r\nPORTS\r\n";
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let doors = [at("192.0.2.1:1025"), at("[2001:db8::1]:2000")];
        for len in 1..=said.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            let mut whole = Vec::new();
            for piece in said.chunks(len).flat_map(|part| lines.cut(part)) {
                match piece {
                    Piece::Door(line, at) => {
                        whole.extend_from_slice(&line);
                        assert!(command(&line, at).eq_ignore_ascii_case(&line));
                        found.push(at);
                    }
                    Piece::Plain(bytes) => whole.extend_from_slice(&bytes),
                    Piece::Cookies(_) => unreachable!("this is FTP"),
                }
            }
            assert_eq!((&found[..], &whole[..]), (&doors[..], &said[..]), "{len}");
            assert_eq!(lines.rest(), None);
        }
        let mut lines = Lines::default();
        assert_eq!(lines.cut(b"PORT 1,2"), []);
        assert_eq!(lines.rest(), Some(Piece::Plain(Bytes::from_static(b"PORT 1,2"))));
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(shown("PASS secret"), "PASS ****");
        assert_eq!(shown("PASV"), "PASV");
    }
}
