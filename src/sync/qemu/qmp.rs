//! One conversation in QEMU's machine protocol (QMP): lines of JSON over a unix socket.
//!
//! It never blocks: whoever has it waits by [`Monitor::fd`] and then hears what came. The end of
//! the conversation is the end of the guest.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

/// A longer line is no QMP.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What QEMU says.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first line, with the program's version.
    Greeting(String),
    /// The answer to a command: what it returns, or why it was refused.
    Answer(u64, Result<Value, String>),
    /// Something happened; with QEMU's own time of it.
    Event(String, Value, Duration),
}

/// The end that gives commands.
#[derive(Debug)]
pub struct Monitor {
    stream: UnixStream,
    unread: Vec<u8>,
    last_id: u64,
}

impl Monitor {
    /// Begins over a connected socket.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, unread: Vec::new(), last_id: 0 })
    }

    /// For polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Gives a command; its number, by which the answer is known.
    pub fn say(&mut self, command: &str, arguments: Value) -> io::Result<u64> {
        self.last_id += 1;
        let mut line = json!({ "execute": command, "id": self.last_id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        // A command is short: whoever does not take it has not read the ones before.
        self.stream.write_all(format!("{line}\n").as_bytes())?;
        Ok(self.last_id)
    }

    /// What has come so far. An error is the end, also if it is by a line that is no QMP.
    pub fn hear(&mut self) -> io::Result<Vec<Message>> {
        let mut buffer = [0; 4096];
        let mut is_over = false;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => is_over = true,
                Ok(n) => {
                    self.unread.extend_from_slice(&buffer[..n]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => is_over = true,
            }
            break;
        }
        let whole = self.unread.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.unread.drain(..whole).collect();
        let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let messages = lines.map(parse).collect::<Option<Vec<_>>>();
        let messages = messages.filter(|_| self.unread.len() <= LINE_BYTES_MAX);
        let messages = messages.ok_or_else(|| io::Error::other("it does not speak QMP"))?;
        match is_over && messages.is_empty() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(messages),
        }
    }
}

/// One line; none if it is not one that QEMU says.
fn parse(line: &[u8]) -> Option<Message> {
    let line: Value = serde_json::from_slice(line).ok()?;
    if let Some(greeting) = line.get("QMP") {
        let number = &greeting["version"]["qemu"];
        let number = ["major", "minor", "micro"].map(|part| number[part].to_string());
        return Some(Message::Greeting(number.join(".")));
    }
    if let Some(name) = line.get("event").and_then(Value::as_str) {
        let at = |unit| line["timestamp"][unit].as_u64().unwrap_or(0);
        let at = Duration::from_secs(at("seconds")) + Duration::from_micros(at("microseconds"));
        return Some(Message::Event(name.to_owned(), line["data"].clone(), at));
    }
    // An answer to nothing that was asked is what a broken line gets.
    let id = line.get("id").and_then(Value::as_u64).unwrap_or(0);
    if let Some(returned) = line.get("return") {
        return Some(Message::Answer(id, Ok(returned.clone())));
    }
    let why = line.get("error")?.get("desc")?.as_str()?;
    Some(Message::Answer(id, Err(why.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Monitor, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        (Monitor::over(ours).expect("a monitor"), theirs)
    }

    #[test]
    fn what_qemu_says_is_read_in_whole_lines() {
        let (mut monitor, mut theirs) = pair();
        let mut tell = |text: &str| theirs.write_all(text.as_bytes()).expect("room");
        tell(
            "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 2, \"major\": 7}}}}\r\n{",
        );
        assert_eq!(monitor.hear().ok(), Some(vec![Message::Greeting("7.2.2".into())]));
        assert_eq!(monitor.hear().ok(), Some(vec![]));
        tell(
            "\"return\": {}, \"id\": 3}\r\n{\"id\": 4, \"error\": {\"class\": \"GenericError\", \
              \"desc\": \"no\"}}\r\n{\"timestamp\": {\"seconds\": 5, \"microseconds\": 6}, \
              \"event\": \"STOP\"}\r\n",
        );
        let at = Duration::new(5, 6000);
        let want = [
            Message::Answer(3, Ok(json!({}))),
            Message::Answer(4, Err("no".into())),
            Message::Event("STOP".into(), Value::Null, at),
        ];
        assert_eq!(monitor.hear().expect("three messages"), want);
    }

    #[test]
    fn the_last_words_are_heard_before_the_end() {
        let (mut monitor, mut theirs) = pair();
        theirs
            .write_all(b"{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true}}\n")
            .expect("room");
        drop(theirs);
        assert_eq!(monitor.hear().expect("its last words").len(), 1);
        assert!(monitor.hear().is_err());
    }

    #[test]
    fn what_is_no_qmp_ends_it() {
        for wrong in
            ["HTTP/1.1 200 OK\r\n".to_owned(), "x".repeat(LINE_BYTES_MAX + 1), "7\n".into()]
        {
            let (mut monitor, mut theirs) = pair();
            let writes = std::thread::spawn(move || theirs.write_all(wrong.as_bytes()));
            let ended = std::iter::repeat_with(|| monitor.hear()).find(|heard| heard.is_err());
            assert!(ended.is_some());
            drop(monitor);
            let _ = writes.join();
        }
    }

    #[test]
    fn a_command_has_a_number_and_arguments_only_if_there_are_some() {
        let (mut monitor, theirs) = pair();
        assert_eq!(monitor.say("stop", Value::Null).ok(), Some(1));
        assert_eq!(monitor.say("migrate", json!({ "uri": "unix:/x" })).ok(), Some(2));
        drop(monitor);
        let said = io::read_to_string(theirs).expect("two lines");
        let want = "{\"execute\":\"stop\",\"id\":1}\n\
                    {\"arguments\":{\"uri\":\"unix:/x\"},\"execute\":\"migrate\",\"id\":2}\n";
        assert_eq!(said, want);
    }
}
