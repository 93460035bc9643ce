//! The embedded web server: HTTP/1.1, one thread a connection, the same answer every time.
//!
//! `GET /bytes/N` gives N bytes of the known content, `POST /sink` takes a body and says whether it
//! was that content. Two servers of the same request differ in `Date` only, until one has
//! [`Faults`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::ftp;
use super::{PIECE_MAX, content, first_wrong};

/// What makes the server misbehave: files while they are there, and what its own memory says.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// While it is there, the byte in the middle of each answer is wrong; if it holds a number,
    /// of answers of that length only.
    pub wrong: Option<PathBuf>,
    /// While it is there, at most [`SLOW_BYTES`] leave a connection after each [`SLOW_PAUSE`].
    pub slow: Option<PathBuf>,
    /// While it is set, the byte in the middle of each answer is wrong.
    pub is_wrong: Arc<AtomicBool>,
}

/// See [`Faults::slow`].
pub const SLOW_BYTES: usize = 16 << 10;
/// See [`Faults::slow`].
pub const SLOW_PAUSE: Duration = Duration::from_millis(300);

/// What is served at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// This server.
    Web,
    /// The other one ([`crate::lab::ftp`]).
    Ftp,
}

/// Serves at all these doors until the process ends.
pub fn serve(doors: Vec<(Service, TcpListener)>, faults: Faults) -> io::Result<()> {
    let faults = Arc::new(faults);
    thread::scope(|scope| {
        let threads: Vec<_> = doors
            .into_iter()
            .map(|door| scope.spawn(|| accept(door, Arc::clone(&faults))))
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn accept((service, listener): (Service, TcpListener), faults: Arc<Faults>) -> io::Result<()> {
    loop {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            // The client has given up already.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(e) => return Err(e),
        };
        let faults = Arc::clone(&faults);
        thread::Builder::new().name("connection".into()).spawn(move || {
            // A connection that breaks concerns its client, who sees it.
            let _ = match service {
                Service::Web => converse(&stream, &faults),
                Service::Ftp => ftp::server::converse(&stream, &faults),
            };
        })?;
    }
}

/// What was asked.
struct Asked {
    line: String,
    body_len: u64,
    is_last: bool,
}

fn converse(stream: &TcpStream, faults: &Faults) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::with_capacity(PIECE_MAX, stream);
    while let Some(asked) = read_head(&mut input)? {
        let mut words = asked.line.split(' ');
        match (words.next(), words.next()) {
            (Some("GET"), Some(path)) => {
                discard(&mut input, asked.body_len)?;
                match path.strip_prefix("/bytes/").map(str::parse) {
                    Some(Ok(len)) => send_bytes(stream, len, faults)?,
                    _ => send_text(stream, "404 Not Found", "only /bytes/N is here\n")?,
                }
            }
            (Some("POST"), _) => match take_body(&mut input, asked.body_len)? {
                None => send_text(stream, "200 OK", "every byte right\n")?,
                Some(at) => {
                    let text = format!("wrong byte at {at}\n");
                    send_text(stream, "422 Unprocessable Content", &text)?;
                }
            },
            _ => return send_text(stream, "400 Bad Request", "GET or POST\n"),
        }
        if asked.is_last {
            break;
        }
    }
    Ok(())
}

/// The next request's head; none if the client has closed.
fn read_head(input: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut asked = Asked { line: line.trim_end().into(), body_len: 0, is_last: false };
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some(asked));
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let wrong = |_| io::Error::from(io::ErrorKind::InvalidData);
                asked.body_len = value.trim().parse().map_err(wrong)?;
            }
            "connection" => asked.is_last = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
}

fn discard(input: &mut impl Read, len: u64) -> io::Result<()> {
    io::copy(&mut input.take(len), &mut io::sink()).map(drop)
}

/// Reads a body; where it is not the content.
fn take_body(input: &mut impl BufRead, len: u64) -> io::Result<Option<u64>> {
    let (mut at, mut wrong) = (0, None);
    while at < len {
        let piece = input.fill_buf()?;
        let piece = &piece[..piece.len().min((len - at) as usize)];
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        wrong = wrong.or_else(|| first_wrong(at, piece));
        let taken = piece.len();
        input.consume(taken);
        at += taken as u64;
    }
    Ok(wrong)
}

pub(super) fn head(status: &str, kind: &str, len: u64) -> String {
    let date = http_date(SystemTime::now());
    format!(
        "HTTP/1.1 {status}\r\nServer: shadowvm-lab\r\nDate: {date}\r\nContent-Type: {kind}\r\n\
         Content-Length: {len}\r\n\r\n"
    )
}

fn send_text(mut stream: &TcpStream, status: &str, text: &str) -> io::Result<()> {
    let mut answer = head(status, "text/plain", text.len() as u64);
    answer.push_str(text);
    stream.write_all(answer.as_bytes())
}

fn send_bytes(stream: &TcpStream, len: u64, faults: &Faults) -> io::Result<()> {
    let head = head("200 OK", "application/octet-stream", len).into_bytes();
    send_content(stream, head, 0..len, faults)
}

/// Sends `head`, and this part of the content that ends at its end.
pub(in crate::lab) fn send_content(
    mut stream: &TcpStream,
    head: Vec<u8>,
    part: Range<u64>,
    faults: &Faults,
) -> io::Result<()> {
    let (mut at, len, mut answer) = (part.start, part.end, head);
    let is_there = |file: &Option<PathBuf>| file.as_ref().is_some_and(|file| file.exists());
    let is_wrong = faults.wrong.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let is_wrong = is_wrong.is_some_and(|text| {
        text.trim().parse().is_ok_and(|n: u64| n == len) || text.trim().is_empty()
    });
    let wrong_at = (is_wrong || faults.is_wrong.load(Relaxed)).then_some(len / 2);
    loop {
        let is_slow = is_there(&faults.slow);
        if is_slow {
            thread::sleep(SLOW_PAUSE);
        }
        let piece_max = if is_slow { SLOW_BYTES } else { PIECE_MAX };
        let piece = content(at, piece_max.min((len - at).try_into().unwrap_or(usize::MAX)));
        let wrong = wrong_at.and_then(|wrong| wrong.checked_sub(at)).map(|wrong| wrong as usize);
        match wrong.filter(|wrong| *wrong < piece.len()) {
            Some(wrong) => {
                let start = answer.len();
                answer.extend_from_slice(piece);
                answer[start + wrong] ^= 0x20;
                stream.write_all(&answer)?;
                answer.clear();
            }
            // The head travels with what follows it.
            None if !answer.is_empty() => {
                answer.extend_from_slice(piece);
                stream.write_all(&answer)?;
                answer.clear();
            }
            None => stream.write_all(piece)?,
        }
        at += piece.len() as u64;
        if at >= len {
            return Ok(());
        }
    }
}

/// The time as RFC 9110 5.6.7 writes it; always 29 bytes.
fn http_date(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let (mut year, mut rest) = (1970, days);
    while rest >= 365 + u64::from(is_leap(year)) {
        rest -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let feb = 28 + u64::from(is_leap(year));
    let lengths = [31, feb, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while rest >= lengths[month] {
        rest -= lengths[month];
        month += 1;
    }
    format!(
        "{}, {:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        rest + 1,
        MONTHS[month],
        second / 3600,
        second / 60 % 60,
        second % 60,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_standard() {
        let at = |seconds| http_date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(at(1_798_761_599), "Thu, 31 Dec 2026 23:59:59 GMT");
    }
}
