//! What differs and may not, with all the rules that let other things differ: each is found at its
//! first byte, with what it belongs to, and nobody is shown a byte of it.
//!
//! `{ours~theirs}` in an answer is what each server says there, `^` where they differ (in the other
//! server's version as well, where that has the same in other chunks).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::ftp::ftp;
use super::kit::{ACK, CLIENT, CLIENT_ISS, FIN, ISS, Kit, SYN, SYN_ACK, config, say};
use crate::engine::{
    Divergence, DivergenceKind, EngineConfig, Event, FlowKey, FlowState, LegId, Link, Rules,
    SyncScope,
};
use crate::protocol::rules::Rule;
use crate::wire::Offset;
use LegId::{A, B};

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    /// HTTP, and this is asked.
    Http(&'static str),
    /// The same, and the servers end the connection.
    Closed(&'static str),
    /// FTP, on the control connection.
    Ftp(&'static str),
    /// FTP, on a data connection.
    Data,
    /// Nothing that is known.
    Raw(&'static str),
}
use Spoken::{Closed, Data, Ftp, Http, Raw};

/// Its name, what is spoken, what both say, and the field (in the other server's view, too, if it
/// is another one there).
type Case = (&'static str, Spoken, &'static str, &'static str);

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const TWO: &str = "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
const POST: &str =
    "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi";
const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";

const HTTP: [Case; 43] = [
    ("status", Http(GET), "HTTP/1.1 {^200~404} OK\r\nContent-Length: 0\r\n\r\n", "status line"),
    ("version", Http(GET), "HTTP/1.{^1~0} 200 OK\r\nContent-Length: 0\r\n\r\n", "status line"),
    ("reason phrase", Http(GET), "HTTP/1.1 200 {^OK~Fine}\r\n\r\n", "status line"),
    (
        "a method that is allowed",
        Http(GET),
        "HTTP/1.1 405 No\r\nAllow: GET, P{^OS~U}T\r\nContent-Length: 0\r\n\r\n",
        "header allow",
    ),
    (
        "one method more, in another order",
        Http(GET),
        "HTTP/1.1 405 No\r\nAllow: GET, {^~PUT, }HEAD\r\nContent-Length: 0\r\n\r\n",
        "header allow",
    ),
    (
        "a byte of a body",
        Http(GET),
        "HTTP/1.1 200 OK\r\nDate: {one~the other}\r\nContent-Length: 5\r\n\r\nab{^c~C}de",
        "body",
    ),
    (
        "the last byte of a body",
        Http(GET),
        "HTTP/1.1 200 OK\r\nDate: {one~the other}\r\nContent-Length: 5\r\n\r\nabcd{^e~f}",
        "body",
    ),
    (
        "a body that looks like a header section",
        Http(GET),
        "HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\nHTTP/1.1 200\r\nDate: {^one~two}",
        "body",
    ),
    (
        "a body until the end of the connection",
        Closed(GET),
        "HTTP/1.0 200 OK\r\nDate: {one~two}\r\n\r\nab{^c~d}e",
        "body",
    ),
    (
        "a byte in a chunk",
        Http(GET),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab{^c~C}d\r\n0\r\n\r\n",
        "body",
    ),
    (
        "a byte in other chunks",
        Http(GET),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
         {4\r\nabcd\r\n2\r\ne^f~6\r\nabcde^F}\r\n0\r\n\r\n",
        "body",
    ),
    (
        "a byte of data behind other chunks",
        Http(GET),
        "HTTP/1.1 200 OK\r\nDate: {one~another}\r\nTransfer-Encoding: chunked\r\n\r\n\
         {2\r\nab\r\n4\r\nc^def~3\r\nabc^\r\n3\r\nDef}\r\n0\r\n\r\n",
        "body",
    ),
    (
        "a body in chunks that goes on",
        Http(GET),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n{^1\r\nc\r\n~}0\r\n\r\n",
        "body",
    ),
    (
        "a trailer",
        Http(GET),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nSum: {^1~2}\r\n\r\n",
        "trailer",
    ),
    (
        "a date among the trailers",
        Http(GET),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nDate: {^one~two}\r\n\r\n",
        "trailer",
    ),
    (
        "a missing header",
        Http(GET),
        "HTTP/1.1 200 OK\r\n{^Vary: a\r\n~}Content-Length: 0\r\n\r\n",
        "header vary|header content-length",
    ),
    (
        "a missing last header",
        Http(GET),
        "HTTP/1.1 204 No\r\nDate: {one~two}\r\n{^Vary: a\r\n~}\r\n",
        "header vary|end of the header section",
    ),
    (
        "a date that one lacks",
        Http(GET),
        "HTTP/1.1 200 OK\r\n{^Date: one\r\n~}Content-Length: 0\r\n\r\n",
        "header date|header content-length",
    ),
    (
        "a date without a value",
        Http(GET),
        "HTTP/1.1 200 OK\r\nDate: {^one~}\r\nContent-Length: 0\r\n\r\n",
        "header date",
    ),
    (
        "a blank before a date",
        Http(GET),
        "HTTP/1.1 200 OK\r\nDate:{^one~ one}\r\nContent-Length: 0\r\n\r\n",
        "header date",
    ),
    (
        "the name of a header",
        Http(GET),
        "HTTP/1.1 200 OK\r\nD{^ate~ATE}: {one~two}\r\nContent-Length: 0\r\n\r\n",
        "header date",
    ),
    (
        "a header's value",
        Http(GET),
        "HTTP/1.1 200 OK\r\nDate: {one~two}\r\nCache-Control: max-age={^1~2}0\r\n\r\n",
        "header cache-control",
    ),
    (
        "the order of headers",
        Http(GET),
        "HTTP/1.1 204 No\r\n{^Age: 1\r\nVary: a~Vary: a\r\nAge: 1}\r\n\r\n",
        "header age|header vary",
    ),
    (
        "a header right before a date",
        Http(GET),
        "HTTP/1.1 204 No\r\nAge: {^1~2}\r\nDate: {one~two}\r\n\r\n",
        "header age",
    ),
    (
        "a header right behind a date",
        Http(GET),
        "HTTP/1.1 204 No\r\nDate: {one~the other}\r\nA{^ge~GE}: 1\r\n\r\n",
        "header age",
    ),
    (
        "what follows a bare CR in a date",
        Http(GET),
        "HTTP/1.1 204 No\r\nDate: one\r{^\n~two\r\n}\r\n",
        "header date",
    ),
    (
        "a name with date in it",
        Http(GET),
        "HTTP/1.1 204 No\r\nX-Date: {^1~2}\r\n\r\n",
        "header x-date",
    ),
    (
        "a name that begins with date",
        Http(GET),
        "HTTP/1.1 204 No\r\nDates: {^1~2}\r\n\r\n",
        "header dates",
    ),
    (
        "another length",
        Http(GET),
        "HTTP/1.1 200 OK\r\nDate: {one~two}\r\nContent-Length: {^2\r\n\r\nok~3\r\n\r\nno!}",
        "header content-length",
    ),
    (
        "a length instead of chunks",
        Http(GET),
        "HTTP/1.1 200 OK\r\n{^Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n~\
         Content-Length: 2\r\n\r\nok}",
        "header transfer-encoding|header content-length",
    ),
    (
        "the second answer of two",
        Http(TWO),
        "HTTP/1.1 200 OK\r\nDate: {one~the other}\r\nContent-Length: 2\r\n\r\nok\
         HTTP/1.1 200 OK\r\nDate: {one~the other}\r\nContent-Length: 2\r\n\r\n{^o~O}k",
        "body",
    ),
    (
        "the status of the second answer",
        Http(TWO),
        "HTTP/1.1 304 Not\r\nDate: {one~another}\r\n\r\nHTTP/1.1 {^200~500} OK\r\n\r\n",
        "status line",
    ),
    (
        "bytes behind an answer to HEAD",
        Http("HEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{^HTTP/1.1 204 No\r\n~okHTTP}\r\n\r\n",
        "status line",
    ),
    (
        "the length in an answer to HEAD",
        Http(HEAD),
        "HTTP/1.1 200 OK\r\nDate: {one~another}\r\nContent-Length: 1{^0~1}\r\n\r\n",
        "header content-length",
    ),
    (
        "the status behind an interim answer",
        Http(POST),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 20{^1~2} Made\r\nDate: {one~two}\r\n\r\n",
        "status line",
    ),
    (
        "a header of an interim answer",
        Http(GET),
        "HTTP/1.1 103 Hints\r\nDate: {one~two}\r\nLink: <{^a~b}>\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
        "header link",
    ),
    (
        "the place of a part",
        Http("GET / HTTP/1.1\r\nRange: bytes=0-1\r\n\r\n"),
        "HTTP/1.1 206 Part\r\nContent-Range: bytes 0-1/{^9~8}\r\nContent-Length: 2\r\n\r\nok",
        "header content-range",
    ),
    (
        "the place of one of several parts",
        Http("GET / HTTP/1.1\r\nRange: bytes=0-0,2-2\r\n\r\n"),
        "HTTP/1.1 206 Part\r\nContent-Type: multipart/byteranges; boundary=x\r\n\
         Content-Length: 39\r\n\r\n--x\r\nContent-Range: bytes 0-0/{^9~8}\r\n\r\no\r\n",
        "body",
    ),
    (
        "where a client is sent",
        Http(GET),
        "HTTP/1.1 302 Found\r\nLocation: http://{^a~b}/\r\nDate: {one~two}\r\n\r\n",
        "header location",
    ),
    (
        "an attribute of a cookie that is mapped",
        Http(GET),
        "HTTP/1.1 204 No\r\nSet-Cookie: sid={one~another}; Path=/{^a~b}\r\n\r\n",
        "header set-cookie",
    ),
    (
        "a cookie that is not mapped",
        Http(GET),
        "HTTP/1.1 204 No\r\nSet-Cookie: sid={one~another}\r\nSet-Cookie: lang={^de~en}\r\n\r\n",
        "cookie lang",
    ),
    (
        "a cookie that one does not set",
        Http(GET),
        "HTTP/1.1 204 No\r\nDate: {one~two}\r\n{^Set-Cookie: sid=one\r\n~}Vary: a\r\n\r\n",
        "header set-cookie|header vary",
    ),
    (
        "what follows an upgrade",
        Http(UPGRADE),
        "HTTP/1.1 101 Switching\r\nDate: {one~another}\r\nUpgrade: echo\r\n\r\nDate: {^1~2}\r\n",
        "",
    ),
];

const FTP: [Case; 20] = [
    ("the code of a greeting", Ftp(""), "{^220~421} hello\r\n", "reply code"),
    (
        "a login that one refuses",
        Ftp("PASS x\r\n"),
        "220 {a~bc}\r\n{^230~530} in\r\n",
        "reply code",
    ),
    ("the text of a reply", Ftp("USER x\r\n"), "220 {a~bc}\r\n331 {^a~b}\r\n", "reply 331"),
    ("a size", Ftp("SIZE x\r\n"), "220 {a~bc}\r\n213 10{^0~1}\r\n", "reply 213"),
    ("a time", Ftp("MDTM x\r\n"), "220 {a~bc}\r\n213 2026112204550{^1~2}\r\n", "reply 213"),
    ("a folder", Ftp("PWD\r\n"), "220 {a~bc}\r\n257 \"/{^a~b}\"\r\n", "reply 257"),
    (
        "a line of several",
        Ftp("FEAT\r\n"),
        "220 {a~bc}\r\n211-Features:\r\n {^EPSV\r\n~}MDTM\r\n211 End\r\n",
        "reply 211",
    ),
    (
        "another number of lines",
        Ftp("RETR x\r\n"),
        "220 {a~bc}\r\n150 go\r\n226{^-took 1 s\r\n226 ok~ took 2 s}\r\n",
        "reply 226",
    ),
    (
        "the size in what begins a transfer",
        Ftp("RETR x\r\n"),
        "220 {a~bc}\r\n150 Opening x ({^9~8} bytes).\r\n226 {1~22} s\r\n",
        "reply 150",
    ),
    (
        "a transfer that begins at one",
        Ftp("RETR x\r\n"),
        "220 {a~bc}\r\n{^150 go~550 no}\r\n",
        "reply code",
    ),
    (
        "a transfer that fails at one",
        Ftp("RETR x\r\n"),
        "220 {a~bc}\r\n150 go\r\n{^226 took 1~426 took 2} s\r\n",
        "reply code",
    ),
    (
        "the place of a restart",
        Ftp("REST 100\r\n"),
        "220 {a~bc}\r\n350 Restarting at {^1~2}00\r\n",
        "reply 350",
    ),
    (
        "an address that is not the service's",
        Ftp("PASV\r\n"),
        "220 {a~bc}\r\n227 Passive (192,0,2,1{^0~1},4,1)\r\n",
        "reply 227",
    ),
    (
        "a port that is none",
        Ftp("PASV\r\n"),
        "220 {a~bc}\r\n227 Passive (192,0,2,10,4,{^1~256})\r\n",
        "reply 227",
    ),
    (
        "what follows a port",
        Ftp("PASV\r\n"),
        "220 {a~bc}\r\n227 Passive (192,0,2,10,{4,1~200,33}){^.~!}\r\n",
        "reply 227",
    ),
    (
        "no port at all",
        Ftp("PASV\r\n"),
        "220 {a~bc}\r\n227 Passive ({^192,0,2,10,4,1~none})\r\n",
        "reply 227",
    ),
    (
        "an extended port that is none",
        Ftp("EPSV\r\n"),
        "220 {a~bc}\r\n229 (|||{^1024~66000}|)\r\n",
        "reply 229",
    ),
    (
        "a size in a listing on the control connection",
        Ftp("STAT /\r\n"),
        "220 {a~bc}\r\n213-Of /:\r\n-rw-r--r--    1 0        0             10{^0~1} \
         {Nov 22 04:55~Jan  1  2025} data\r\n213 End\r\n",
        "reply 213",
    ),
    (
        "a name in a listing on the control connection",
        Ftp("STAT /\r\n"),
        "220 {a~bc}\r\n213-Of /:\r\n-rw-r--r--    1 0        0             100 \
         {Nov 22 04:55~Jan  1  2025} dat{^a~e}\r\n213 End\r\n",
        "reply 213",
    ),
    (
        "the reply to the second of two commands",
        Ftp("NOOP\r\nSIZE x\r\n"),
        "220 {a~bc}\r\n200 ok\r\n213 {^1~2}\r\n",
        "reply 213",
    ),
];

const OTHERS: [Case; 5] = [
    ("a byte of a file", Data, "content {^A~B} of a file", ""),
    ("a size in a listing", Data, "-rw-r--r-- 1 0 0 10{^0~1} Nov 22 04:55 data\r\n", ""),
    ("a time in a listing", Data, "-rw-r--r-- 1 0 0 100 Nov 22 04:5{^5~6} data\r\n", ""),
    ("what looks like a date in a file", Data, "HTTP/1.1 200 OK\r\nDate: {^one~two}\r\n\r\n", ""),
    ("a protocol that nobody knows", Raw("EHLO x\r\n"), "HTTP/1.1 200 OK\r\nDate: {^1~2}\r\n", ""),
];

/// What each server says, and where the difference is in it.
fn read(text: &str) -> ([String; 2], [usize; 2]) {
    let (mut said, mut at) = ([String::new(), String::new()], [None; 2]);
    let mut half: Option<usize> = None;
    let mut begun = 0;
    for c in text.chars() {
        match (c, half) {
            ('{', _) => (half, begun) = (Some(0), said[0].len()),
            ('~', Some(0)) => half = Some(1),
            ('}', _) => half = None,
            ('^', Some(0)) => {
                // What stands before it both say.
                at = [said[0].len(), said[1].len() + said[0].len() - begun].map(Some);
            }
            ('^', _) => at[1] = Some(said[1].len()),
            (c, Some(half)) => said[half].push(c),
            (c, None) => said.iter_mut().for_each(|said| said.push(c)),
        }
    }
    (said, at.map(|at| at.expect("a difference")))
}

fn n(len: usize) -> u32 {
    u32::try_from(len).expect("a short stream")
}

/// The connection on which it is said.
struct Talk {
    kit: Kit,
    client: (Ipv4Addr, u16),
    ports: [u16; 2],
    asked: u32,
}

const R: u32 = CLIENT_ISS + 1;

impl Talk {
    /// All that is asked has been asked.
    fn new(spoken: Spoken) -> Self {
        let sid = Rule::map("set-cookie", Some("sid"));
        let rules = match spoken {
            Ftp(_) | Data => ftp().rules,
            _ => Rules::default().and(sid),
        };
        let sync_scope = Some(SyncScope::Content);
        let mut kit = Kit::new(EngineConfig { rules, sync_scope, ..config() });
        kit.mend();
        kit.establish();
        let mut talk = Self { kit, client: (CLIENT, 40_000), ports: [80; 2], asked: 0 };
        match spoken {
            Http(asked) | Closed(asked) | Ftp(asked) | Raw(asked) => talk.ask(asked),
            Data => talk.open_data(),
        }
        talk.kit.forget();
        talk
    }

    fn ask(&mut self, asked: &str) {
        if !asked.is_empty() {
            self.kit.client(say(ACK, R, ISS[0] + 1).data(asked));
        }
        self.asked = n(asked.len());
    }

    /// A data connection: one port of the service, another one at each server.
    fn open_data(&mut self) {
        self.ask("PASV\r\n");
        for (id, port) in [(A, "4,1"), (B, "156,65")] {
            let reply = format!("220 hi\r\n227 Passive (192,0,2,10,{port})\r\n");
            self.say(id, 0, reply.as_bytes(), false);
        }
        (self.client, self.ports, self.asked) = ((CLIENT, 50_000), [1025, 40_001], 0);
        let port = self.ports[0];
        let begin = say(SYN, CLIENT_ISS, 0).mss(1460);
        self.kit.say_at(Link::Client, begin, self.client, port);
        for id in LegId::ALL {
            let answer = say(SYN_ACK, ISS[id.index()], R).mss(1460);
            self.kit.say_at(Link::Server(id), answer, self.client, self.ports[id.index()]);
        }
        self.kit.say_at(Link::Client, say(ACK, R, ISS[0] + 1), self.client, port);
    }

    /// `id` says this at its place `from`.
    fn say(&mut self, id: LegId, from: usize, data: &[u8], is_end: bool) {
        let seq = ISS[id.index()] + 1 + n(from);
        let flags = if is_end { FIN } else { ACK };
        let said = say(flags, seq, R + self.asked).data(data);
        self.kit.say_at(Link::Server(id), said, self.client, self.ports[id.index()]);
    }

    /// Both say all of it, in pieces of so many bytes.
    fn say_all(&mut self, said: &[String; 2], order: [LegId; 2], piece: usize, closes: bool) {
        for id in order {
            let bytes = said[id.index()].as_bytes();
            for from in (0..bytes.len()).step_by(piece) {
                let to = (from + piece).min(bytes.len());
                self.say(id, from, &bytes[from..to], closes && to == bytes.len());
            }
        }
    }

    /// What the client has of it.
    fn shown(&self) -> String {
        let mut text: Vec<u8> = Vec::new();
        for heard in self.kit.on(Link::Client) {
            let at = heard.seg.seq.wrapping_sub(ISS[0] + 1) as usize;
            if heard.seg.dst_port == self.client.1 && at <= text.len() {
                text.truncate(at);
                text.extend_from_slice(&heard.data);
            }
        }
        String::from_utf8(text).expect("text")
    }

    fn state(&self) -> FlowState {
        let is_it = |key: &FlowKey| key.client.port() == self.client.1;
        let flows = self.kit.engine.flows(9);
        flows.iter().find(|flow| is_it(&flow.key)).expect("the connection").state
    }
}

/// The servers say it so: what is wrong with what comes of it.
fn wrong(spoken: Spoken, said: &[String; 2], at: usize, field: &str) -> Option<String> {
    // What is named has been said by the primary.
    let whole = 1000;
    for (order, pieces) in [([A, B], &[1, 7, whole][..]), ([B, A], &[whole])] {
        for &piece in pieces {
            let mut talk = Talk::new(spoken);
            talk.say_all(said, order, piece, matches!(spoken, Closed(_)));
            let told = talk.kit.events.iter().filter_map(|event| match event {
                Event::Diverged { divergence, .. } => Some(divergence.clone()),
                _ => None,
            });
            let told: Vec<Divergence> = told.collect();
            let place = |told: &Divergence| {
                let name = told.field.as_ref().map(ToString::to_string).unwrap_or_default();
                (told.at.since(Offset::START) as usize, name)
            };
            let first = said[0].as_bytes()[at];
            let is_byte = |kind| matches!(kind, DivergenceKind::Byte(a, b) if a == first && a != b);
            let held = (talk.shown(), talk.state());
            // No sync comes: the primary's version, and nothing of the other one.
            talk.kit.wait_ms(1000);
            let is_right = told.iter().map(place).eq([(at, field.to_owned())])
                && is_byte(told[0].kind)
                && held == (said[0][..at].to_owned(), FlowState::Diverged)
                && talk.shown() == said[0];
            if !is_right {
                let then = talk.shown();
                return Some(format!("{order:?}, {piece} at a time: {told:?}, {held:?}, {then:?}"));
            }
        }
    }
    None
}

#[test]
fn a_real_difference_is_never_masked_whatever_it_is_in() {
    let cases = || HTTP.iter().chain(&FTP).chain(&OTHERS);
    let names: BTreeSet<_> = cases().map(|(name, ..)| name).collect();
    assert_eq!(names.len(), cases().count(), "each is another one");
    assert!(cases().filter(|(.., field)| !field.is_empty()).count() >= 30);
    let mut all_wrong = Vec::new();
    for &(name, spoken, text, field) in cases() {
        let ([ours, theirs], [at, its]) = read(text);
        let (field, reverse) = field.split_once('|').unwrap_or((field, field));
        let turned = [theirs.clone(), ours.clone()];
        let both =
            [wrong(spoken, &[ours, theirs], at, field), wrong(spoken, &turned, its, reverse)];
        all_wrong.extend(both.into_iter().flatten().map(|what| format!("{name}: {what}")));
    }
    assert!(all_wrong.is_empty(), "{}", all_wrong.join("\n"));
}

/// The same answers without what differs: nothing is found where nothing is.
#[test]
fn what_differs_in_those_answers_beside_that_is_let() {
    for &(name, spoken, text, _) in HTTP.iter().chain(&FTP).chain(&OTHERS) {
        // Both say what the first one says, where the difference is.
        let (mut equal, mut rest) = (String::new(), text);
        while let Some(begin) = rest.find('{') {
            let end = begin + rest[begin..].find('}').expect("its end");
            let choice = &rest[begin..=end];
            let ours = choice[1..].split('~').next().filter(|ours| ours.contains('^'));
            equal = [&equal, &rest[..begin], &ours.map_or(choice.into(), |o| o.replace('^', ""))]
                .concat();
            rest = &rest[end + 1..];
        }
        let (said, _) = read(&[&equal, rest, "{^~}"].concat());
        let mut talk = Talk::new(spoken);
        talk.say_all(&said, [A, B], 1000, matches!(spoken, Closed(_)));
        assert_eq!(talk.shown(), said[0], "{name}");
        let is_difference = |event: &Event| matches!(event, Event::Diverged { .. });
        assert!(!talk.kit.events.iter().any(is_difference), "{name}");
    }
}
