//! A control connection of FTP as a dialogue: which command waits for its reply, where a server
//! expects data connections, when a transfer begins. What may differ is read elsewhere (`rules`).
//!
//! RFC 959 5.4, RFC 2428.

use std::collections::VecDeque;

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
                let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
                if matches!(&*verb, "PORT" | "EPRT") {
                    self.dead_end = Some(
                        "the client waits for a connection of the server (PORT), which is not \
                         made again",
                    );
                }
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
            (vec![greeting, (Client, "PORT 1,2,3,4,5,6\r\n")], "PORT"),
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
    fn passwords_are_not_shown() {
        assert_eq!(shown("PASS secret"), "PASS ****");
        assert_eq!(shown("PASV"), "PASV");
    }
}
