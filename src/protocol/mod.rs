//! Knowledge above TCP, pure: what two equal servers may say differently.
//!
//! A [`Normalizer`] reads bytes that are already committed (both servers said them, or the client
//! sent them to both) and names the spans whose content may differ. It never changes a byte and it
//! decides nothing: comparison and release belong to the engine.

pub mod chunks;
pub mod framing;
pub mod ftp;
pub mod http;
pub mod opaque;
pub mod returned;
pub mod rules;
pub mod start;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use self::ftp::Ftp;
use self::http::Http;
use self::returned::Returned;
use self::rules::Rule;

/// What a normalizer made of response bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// All bytes are to be compared as they are.
    Plain,
    /// The first `after` bytes are plain; there a span begins that ends before the first byte that
    /// is not [in it](Normalizer::is_in_span). Its content and its length may differ between the
    /// servers, but neither may be empty.
    Span {
        /// Plain bytes before the span.
        after: usize,
        /// Index of the rule that allows it.
        rule: u16,
    },
}

/// Why the bytes of a flow are compared as they are from some place on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RawReason {
    /// What the client says first is no request of HTTP/1.x.
    NotHttp,
    /// A later request does not begin like one.
    RequestLine,
    /// An answer does not begin like one.
    StatusLine,
    /// A LF without CR.
    BareLf,
    /// A CR without LF.
    BareCr,
    /// A folded header field.
    Folded,
    /// A header field whose name is no token, blanks around it included, or with a zero byte.
    HeaderLine,
    /// A line beyond the limit.
    LongLine,
    /// A header section beyond the limit.
    LongHead,
    /// A length that is no number.
    Length,
    /// Two lengths.
    TwoLengths,
    /// A length and a transfer coding.
    LengthAndCoding,
    /// A transfer coding other than chunked, or twice, or in HTTP/1.0.
    Coding,
    /// Content announced where there can be none.
    NoContent,
    /// A chunk whose size is no number.
    ChunkSize,
    /// A chunk that does not end where its size says.
    ChunkEnd,
    /// Another protocol was agreed to.
    Switched,
    /// More requests are outstanding than can be kept.
    Outstanding,
    /// An answer to no request that was seen.
    Unasked,
    /// Bytes of the client that could not be kept until they were read.
    Missed,
    /// A value that may differ is beyond the limit.
    Value,
    /// What the server says first is no reply of FTP.
    NotFtp,
    /// The client and the servers speak in secret from here on.
    Encrypted,
    /// The servers are to connect to somewhere, each for itself, and that is not followed.
    ActiveData,
}

impl RawReason {
    /// Whether two equal servers part here, so that one alone has to go on.
    pub const fn parts_servers(self) -> bool {
        matches!(self, Self::Encrypted | Self::ActiveData)
    }
}

/// What a byte of a message belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// The first line of an answer.
    StatusLine,
    /// A header field, by its name in lower case; empty for the end of the header section.
    Header(Box<str>),
    /// The value of a cookie that is set, by its name.
    Cookie(Box<str>),
    /// The size of a chunk, which is no content.
    ChunkSize,
    /// The content.
    Body,
    /// A trailer field.
    Trailer,
    /// The digits of a reply of FTP.
    ReplyCode,
    /// The text of a reply of FTP with these digits.
    Reply(u16),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StatusLine => f.write_str("status line"),
            Self::Header(name) if name.is_empty() => f.write_str("end of the header section"),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::ChunkSize => f.write_str("chunk size"),
            Self::Body => f.write_str("body"),
            Self::Trailer => f.write_str("trailer"),
            Self::ReplyCode => f.write_str("reply code"),
            Self::Reply(code) => write!(f, "reply {code}"),
        }
    }
}

/// All that a normalizer remembers between two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// Of HTTP.
    Http {
        /// The protocol was seen.
        is_recognized: bool,
        /// The latest status.
        status: u16,
    },
    /// Of a control connection of FTP, whose server has greeted.
    Ftp,
}

/// What may differ, for all flows of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Values in header fields of HTTP/1.x, by number.
    pub http: Arc<[Rule]>,
    /// Texts for people on control connections of FTP.
    pub has_ftp_defaults: bool,
    /// Ports of control connections of FTP.
    pub ftp_ports: Vec<u16>,
}

impl Default for Rules {
    /// Of HTTP what no two servers say alike; of FTP what is for people.
    fn default() -> Self {
        let http = Self::http_defaults().into();
        Self { http, has_ftp_defaults: true, ftp_ports: vec![21] }
    }
}

impl Rules {
    /// The time; and what a resource allows, which Apache says in an order of each process's own.
    pub fn http_defaults() -> [Rule; 2] {
        [Rule::mask("date"), Rule::list("allow")]
    }

    /// The values of these header fields of HTTP, lower case, and nothing else.
    pub fn headers<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        Self { http: Rule::masks(names), has_ftp_defaults: false, ftp_ports: Vec::new() }
    }

    /// These, and one more value of HTTP; with a cookie that is mapped, the time at which it is
    /// over.
    pub fn and(mut self, rule: Rule) -> Self {
        if !self.http.contains(&rule) {
            let expiry = rule.expiry();
            self.http = self.http.iter().cloned().chain([rule]).chain(expiry).collect();
        }
        self
    }

    /// The rule for this token of HTTP.
    pub fn of_http(&self, token: &str) -> Option<&Rule> {
        self.http.iter().find(|rule| **rule.token() == *token)
    }

    /// Whoever looks for values that clients return at the service's `port`; none if no rule maps
    /// any.
    pub fn listener(&self, port: u16) -> Option<Returned> {
        let is_mapped = self.http.iter().any(Rule::is_map) && !self.ftp_ports.contains(&port);
        is_mapped.then(|| Returned::new(self.http.clone()))
    }

    /// Whoever reads a new flow with the service's `port`; none if nothing may differ.
    pub fn reader(&self, port: u16) -> Option<Box<dyn Normalizer>> {
        if self.ftp_ports.contains(&port) {
            return Some(Box::new(Ftp::new(self.has_ftp_defaults)));
        }
        (!self.http.is_empty()).then(|| Box::new(Http::new(self.http.clone())) as _)
    }

    /// The same for a flow in which nothing is under way, and `bytes` are what the client says
    /// next; none unless a message begins with them.
    pub fn reader_from(&self, port: u16, bytes: &[u8]) -> Option<Box<dyn Normalizer>> {
        if self.ftp_ports.contains(&port) {
            return ftp::begins_command(bytes).then(|| self.resumed(Quiet::Ftp));
        }
        self.reader(port).filter(|_| http::begins_request(bytes))
    }

    /// One that goes on between two messages.
    pub fn resumed(&self, quiet: Quiet) -> Box<dyn Normalizer> {
        match quiet {
            Quiet::Http { is_recognized, status } => {
                Box::new(Http::resumed(self.http.clone(), is_recognized, status))
            }
            Quiet::Ftp => Box::new(Ftp::resumed(self.has_ftp_defaults, true)),
        }
    }

    /// The names of all of them.
    pub fn names(&self) -> Vec<RuleName> {
        let name = |protocol, field| RuleName { protocol, field };
        let is_on = |rule: &ftp::Rule| rule.is_necessary() || self.has_ftp_defaults;
        let of_ftp = ftp::Rule::ALL.into_iter().filter(|_| !self.ftp_ports.is_empty());
        let of_ftp = of_ftp.filter(is_on).map(|rule| name("ftp", rule.name().into()));
        let of_chunks = (!self.http.is_empty()).then(chunks::rule_name);
        self.http.iter().map(Rule::rule_name).chain(of_chunks).chain(of_ftp).collect()
    }
}

/// What a rule is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleName {
    /// The protocol.
    pub protocol: &'static str,
    /// The header field, or whatever the protocol has instead.
    pub field: Arc<str>,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.field)
    }
}

/// Where a server says that it expects a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The address, if it says one.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// Reads one flow's committed bytes.
pub trait Normalizer: fmt::Debug + Send {
    /// The client's bytes, in order.
    fn on_request(&mut self, bytes: &[u8]);

    /// So many of the client's bytes are not to be had. In a body that says nothing.
    fn on_request_hole(&mut self, len: u64);

    /// Agreed response bytes, in order. On [`Step::Span`] only the bytes before the span were
    /// taken; the next call continues behind it, after [`Normalizer::on_span`].
    fn on_response(&mut self, bytes: &[u8]) -> Step;

    /// The span found last was `len` bytes long.
    fn on_span(&mut self, len: usize);

    /// Whether byte number `at` behind the beginning of a span still belongs to it.
    fn is_in_span(&self, _rule: u16, _at: usize, byte: u8) -> bool {
        !matches!(byte, b'\r' | b'\n')
    }

    /// Whether one of two values may stand for the other.
    fn may_differ(&self, _rule: u16, _ours: &[u8], _theirs: &[u8]) -> bool {
        true
    }

    /// Whether the next byte of the answers stands in what each server draws at random and says
    /// again later on.
    fn is_drawn(&self) -> bool {
        false
    }

    /// What a value says of a data connection.
    fn announced(&self, _rule: u16, _value: &[u8]) -> Option<Announced> {
        None
    }

    /// The same value with another address.
    fn with_address(&self, _rule: u16, value: &[u8], _address: IpAddr) -> Vec<u8> {
        value.to_vec()
    }

    /// Where the servers are to connect to, if they have agreed to that since it was asked last.
    fn take_call(&mut self) -> Option<SocketAddr> {
        None
    }

    /// Whether data connections may still be announced.
    fn makes_offers(&self) -> bool {
        false
    }

    /// What rule number `rule` is for.
    fn rule_name(&self, rule: u16) -> RuleName;

    /// Whether clients return what rule number `rule` names.
    fn is_returned(&self, _rule: u16) -> bool {
        false
    }

    /// Whether every request has its whole answer; `None` where the protocol does not tell.
    fn is_complete(&self) -> Option<bool>;

    /// A copy that can read on by itself.
    fn boxed_clone(&self) -> Box<dyn Normalizer>;

    /// Itself, if it reads HTTP.
    fn http(&self) -> Option<&http::Http> {
        None
    }

    /// The same, to be told of what only its user has read.
    fn http_mut(&mut self) -> Option<&mut http::Http> {
        None
    }

    /// Itself, if it reads FTP.
    fn ftp(&self) -> Option<&ftp::Ftp> {
        None
    }

    /// What it is between two messages; `None` inside of one.
    fn quiet(&self) -> Option<Quiet>;

    /// How many bytes from here on are certainly plain (a body of known length).
    fn plain_ahead(&self) -> u64;

    /// Why nothing is told apart any more.
    fn raw(&self) -> Option<RawReason>;

    /// What the next response byte belongs to; `ahead` are the bytes from there on, as far as they
    /// are known.
    fn field(&self, ahead: &[u8]) -> Option<Field>;
}

/// The name of a field is told by so many bytes at most.
pub const FIELD_BYTES_MAX: usize = 64;
/// Longest span that is looked for; a longer one is compared as it is.
pub const SPAN_BYTES_MAX: usize = 256;
