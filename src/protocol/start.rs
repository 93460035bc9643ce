//! The first lines of HTTP/1.x messages (RFC 9112 3, 4): what a reader has to know of them.
//!
//! A line that does not stand in the grammar's letter is no first line: who is generous here reads
//! another message than the next one (RFC 9112 11.2).

/// What of a method decides about its answer (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The answer has no content, whatever its length says.
    Head,
    /// If it succeeds, what follows is not HTTP.
    Connect,
    /// Every other one.
    Other,
}

/// `METHOD target HTTP/1.x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLine {
    /// The method.
    pub method: Method,
    /// HTTP/1.0, which knows no transfer codings.
    pub is_old: bool,
}

impl RequestLine {
    /// Reads a line without its CR LF.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut parts = line.split(|&b| b == b' ');
        let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
        let is_method = !method.is_empty() && method.iter().all(u8::is_ascii_uppercase);
        let is_target = !target.is_empty() && target.iter().all(|&b| b > b' ' && b != 0x7f);
        if !is_method || !is_target || parts.next().is_some() {
            return None;
        }
        let method = match method {
            b"HEAD" => Method::Head,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        };
        Some(Self { method, is_old: is_old(version)? })
    }
}

/// `HTTP/1.x 200 reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusLine {
    /// The status.
    pub status: u16,
    /// HTTP/1.0, which knows no transfer codings.
    pub is_old: bool,
}

impl StatusLine {
    /// Reads a line without its CR LF.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let (version, rest) = line.split_at_checked(8)?;
        let (&[b' ', hundreds @ b'1'..=b'5', tens, ones], rest) = rest.split_first_chunk()? else {
            return None;
        };
        let is_number = tens.is_ascii_digit() && ones.is_ascii_digit();
        if !is_number || rest.first().is_some_and(|&b| b != b' ') {
            return None;
        }
        let digit = |b: u8| u16::from(b - b'0');
        let status = digit(hundreds) * 100 + digit(tens) * 10 + digit(ones);
        Some(Self { status, is_old: is_old(version)? })
    }
}

fn is_old(version: &[u8]) -> Option<bool> {
    match version {
        b"HTTP/1.0" => Some(true),
        b"HTTP/1.1" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines() {
        let read = |line: &str| RequestLine::parse(line.as_bytes()).map(|l| (l.method, l.is_old));
        assert_eq!(read("GET /a?b HTTP/1.1"), Some((Method::Other, false)));
        assert_eq!(read("HEAD * HTTP/1.0"), Some((Method::Head, true)));
        assert_eq!(read("CONNECT a:1 HTTP/1.1"), Some((Method::Connect, false)));
        for line in [
            "",
            "GET",
            "GET /",
            "GET / ",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET / HTTP/1.2",
            "GET / HTTP/2",
            "GET / http/1.1",
            "get / HTTP/1.1",
            "G\tT / HTTP/1.1",
            "GET /\t HTTP/1.1",
            "GET\t/\tHTTP/1.1",
            "GET /a b HTTP/1.1",
            " / HTTP/1.1",
            "GET /\0 HTTP/1.1",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }

    #[test]
    fn status_lines() {
        let read = |line: &str| StatusLine::parse(line.as_bytes()).map(|l| (l.status, l.is_old));
        assert_eq!(read("HTTP/1.1 200 OK"), Some((200, false)));
        assert_eq!(read("HTTP/1.1 599"), Some((599, false)));
        assert_eq!(read("HTTP/1.0 100 "), Some((100, true)));
        for line in [
            "",
            "HTTP/1.1",
            "HTTP/1.1 ",
            "HTTP/1.1 20",
            "HTTP/1.1 +20",
            "HTTP/1.1 2000",
            "HTTP/1.1  20",
            "HTTP/1.1 200\tOK",
            "HTTP/1.1 600 X",
            "HTTP/1.1 099 X",
            "HTTP/1.2 200 OK",
            "HTTP/2 200 OK x",
            "http/1.1 200 OK",
            "ICY 200 OK 12345",
            "HTTP/1.1\t200 OK",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }
}
