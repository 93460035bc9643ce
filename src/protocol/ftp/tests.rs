//! The reader of FTP finds the same values however the same bytes are cut, and those that a naive
//! reader finds which has the whole text before it.

use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What a reader makes of one control connection.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    /// Place, length and rule of each value.
    spans: Vec<(usize, usize, Rule)>,
    raw: Option<RawReason>,
    quiet: Option<Quiet>,
}

/// Feeds the commands, then the replies, each in pieces that end at these places.
fn read(commands: (&[u8], &[usize]), replies: (&[u8], &[usize])) -> Reading {
    let mut ftp = Ftp::new(true);
    let mut at = 0;
    for &end in commands.1 {
        ftp.on_request(&commands.0[at..end]);
        at = end;
    }
    let (bytes, mut at) = (replies.0, 0);
    let mut spans = Vec::new();
    for &end in replies.1 {
        while at < end {
            match ftp.on_response(&bytes[at..end]) {
                Step::Plain => at = end,
                Step::Span { after, rule } => {
                    at += after;
                    let mut rest = bytes[at..].iter().enumerate();
                    let len = rest.position(|(i, &byte)| !ftp.is_in_span(rule, i, byte));
                    let len = len.unwrap_or(bytes.len() - at);
                    spans.push((at, len, Rule::of(rule).expect("a rule")));
                    ftp.on_span(len);
                    at += len;
                }
            }
        }
    }
    Reading { spans, raw: ftp.raw(), quiet: ftp.quiet() }
}

fn whole(commands: &[u8], replies: &[u8]) -> Reading {
    read((commands, &[commands.len()]), (replies, &[replies.len()]))
}

/// The values as text, by rule.
fn values<'t>(reading: &Reading, replies: &'t [u8]) -> Vec<(Rule, &'t str)> {
    let text = |at: usize, len| std::str::from_utf8(&replies[at..at + len]).expect("text");
    reading.spans.iter().map(|&(at, len, rule)| (rule, text(at, len))).collect()
}

const LIST_LINE: &str = "-rw-r--r--    1 ftp      ftp           100 Nov 22 04:55 Nov 11 11:11";
const BANNER: u16 = Rule::Banner as u16;
const GREETING: &[u8] = b"220 hello\r\n";

#[test]
fn what_may_differ_is_found_where_it_was_asked_for() {
    let commands = b"USER x\r\npasv\r\nRETR 227\r\nEpsv\r\nLIST\r\nSTAT\r\nSTAT /f\r\nNOOP\r\n";
    let replies = format!(
        "220-one 1\r\n2 users\r\n\r\n220 (two)\r\n331 pass 227\r\n\
         227 Entering Passive Mode (192,0,2,10,4,1).\r\n150 Here 1\r\n226 took 1.5 s\r\n\
         229 Entering Extended Passive Mode (|||4097|)\r\n150 Here\r\n226-a\r\n226 b\r\n\
         211-FTP server status:\r\n     Connected to ::1\r\n211 End\r\n\
         213-Status:\r\n{LIST_LINE}\r\n213-{LIST_LINE}\r\n213 End\r\n\
         227 (1,2,3,4,5,6)\r\n"
    );
    let reading = whole(commands, replies.as_bytes());
    let (times, rest): (Vec<_>, Vec<_>) =
        values(&reading, replies.as_bytes()).into_iter().partition(|(rule, _)| *rule == Rule::Time);
    assert_eq!(
        rest,
        [
            (Rule::Banner, "one 1"),
            (Rule::Banner, " users"),
            (Rule::Banner, "(two)"),
            (Rule::Port, "192,0,2,10,4,1"),
            (Rule::Statistics, "took 1.5 s"),
            (Rule::ExtendedPort, "4097"),
            (Rule::Statistics, "a"),
            (Rule::Statistics, "b"),
            (Rule::Status, "FTP server status:"),
            (Rule::Status, "     Connected to ::1"),
            (Rule::Status, "End"),
        ]
    );
    assert_eq!(times, [(Rule::Time, "Nov 22 04:55"); 2]);
    assert_eq!((reading.raw, reading.quiet), (None, Some(Quiet::Ftp)));
}

#[test]
fn a_port_is_none_unless_it_was_asked_for() {
    let reply = b"220 x\r\n227 (1,2,3,4,5,6)\r\n";
    for command in ["NOOP", "EPSV", "PAS", "XPSV", "RETR", "LPSV"] {
        let reading = whole(format!("{command}\r\n").as_bytes(), reply);
        assert_eq!(reading.spans.len(), 1, "{command}: only the greeting");
    }
    let many = b"220 x\r\n227-(1,2,3,4,5,6)\r\n227 (1,2,3,4,5,6)\r\n";
    assert_eq!(whole(b"PASV\r\n", many).spans.len(), 1, "not in a reply of several lines");
    let abort = b"PASV\r\nRETR x\r\n\xff\xf4\xff\xf2ABOR\r\nPASV\r\n";
    let replies = b"220 x\r\n227 1,2,3,4,5,6\r\n150 x\r\n426 y\r\n225 z\r\n227 (1,2,3,4,5,7)\r\n";
    let reading = whole(abort, replies);
    let ports = reading.spans.iter().filter(|(.., rule)| *rule == Rule::Port).count();
    assert_eq!((ports, reading.raw, reading.quiet), (2, None, Some(Quiet::Ftp)));
}

#[test]
fn without_the_defaults_only_ports_may_differ() {
    let mut ftp = Ftp::new(false);
    ftp.on_request(b"PASV\r\n");
    let text = b"220 one\r\n227 (1,2,3,4,5,6)\r\n";
    assert_eq!(ftp.on_response(text), Step::Span { after: 14, rule: 0 });
}

#[test]
fn only_whole_ports_stand_for_each_other() {
    let at_port = |command: &[u8], digits: &str| {
        let mut ftp = Ftp::new(true);
        ftp.on_request(command);
        ftp.on_response(GREETING);
        ftp.on_span(5);
        ftp.on_response(b"\r\n");
        let begin = format!("{digits} (|||1");
        assert!(matches!(ftp.on_response(begin.as_bytes()), Step::Span { rule: 0 | 1, .. }));
        ftp
    };
    let ftp = at_port(b"PASV\r\n", "227");
    let good = b"192,0,2,10,4,1";
    let other = b"192,0,2,10,200,113";
    assert!(ftp.may_differ(0, good, other));
    assert_eq!(ftp.announced(0, other).map(|said| said.port), Some(200 * 256 + 113));
    let address = ftp.announced(0, good).and_then(|said| said.address);
    assert_eq!(address, Some(IpAddr::from([192, 0, 2, 10])));
    for bad in [
        &b"192,0,2,10,4,256"[..],
        b"192,0,2,10,0,0",
        b"192,0,2,10,4",
        b"192,0,2,10,4,1,1",
        b"192,0,2,10,,1",
        b"",
    ] {
        assert!(!ftp.may_differ(0, good, bad), "{:?}", String::from_utf8_lossy(bad));
        assert!(!ftp.may_differ(0, bad, good));
    }
    let ftp = at_port(b"EPSV\r\n", "229");
    assert!(ftp.may_differ(1, b"1", b"65535"));
    for bad in [&b"0"[..], b"65536", b"1,1", b""] {
        assert!(!ftp.may_differ(1, b"1", bad));
    }
}

/// Text that may differ never hides that one server's reply ends and the other's goes on.
#[test]
fn a_last_line_stands_for_no_other() {
    let mut ftp = Ftp::new(true);
    assert_eq!(ftp.on_response(b"220-"), Step::Plain);
    assert_eq!(ftp.on_response(b"x"), Step::Span { after: 0, rule: BANNER });
    assert!(ftp.may_differ(BANNER, b"x", b"220 y"), "the digits are said already");
    ftp.on_span(1);
    assert_eq!(ftp.on_response(b"\r\nx"), Step::Span { after: 2, rule: BANNER });
    for (other, may) in [("y", true), ("220", false), ("220 y", false), ("220-y", false)] {
        assert_eq!(ftp.may_differ(BANNER, b"x", other.as_bytes()), may, "{other}");
        assert_eq!(ftp.may_differ(BANNER, other.as_bytes(), b"x"), may, "{other}");
    }
    assert!(ftp.may_differ(BANNER, b"x", b"2200"));
}

#[test]
fn what_is_ambiguous_or_no_ftp_is_read_no_further() {
    let hello = |rest: &str| [GREETING, rest.as_bytes()].concat();
    let long = "x".repeat(commands::LINE_BYTES_MAX);
    let cases: [(String, Vec<u8>, RawReason); 16] = [
        ("PASV\n".into(), hello(""), RawReason::BareLf),
        ("PASV\rx\r\n".into(), hello(""), RawReason::BareCr),
        ("\r\n".into(), hello(""), RawReason::RequestLine),
        ("GET / HTTP/1.1\r\n\r\n".into(), hello(""), RawReason::RequestLine),
        (format!("RETR {long}\r\n"), hello(""), RawReason::LongLine),
        (String::new(), b"HTTP/1.1 200 OK\r\n".to_vec(), RawReason::NotFtp),
        (String::new(), b"SSH-2.0-x\r\n".to_vec(), RawReason::NotFtp),
        ("NOOP\r\n".into(), hello("20 x\r\n"), RawReason::StatusLine),
        ("NOOP\r\n".into(), hello("999 x\r\n"), RawReason::StatusLine),
        ("NOOP\r\n".into(), hello("200x\r\n"), RawReason::StatusLine),
        ("NOOP\r\n".into(), hello("200 x\n"), RawReason::BareLf),
        ("NOOP\r\n".into(), hello("200-x\r\n200\r\n"), RawReason::StatusLine),
        ("NOOP\r\n".into(), hello("200 x\r\n200 x\r\n"), RawReason::Unasked),
        ("AUTH TLS\r\n".into(), hello("234 go\r\n\x16\x03\x03"), RawReason::Encrypted),
        ("port 1,2,3\r\n".into(), hello("200 ok\r\n"), RawReason::ActiveData),
        ("NOOP\r\n".repeat(2000), hello(""), RawReason::Outstanding),
    ];
    for (commands, replies, why) in cases {
        let reading = whole(commands.as_bytes(), &replies);
        assert_eq!(reading.raw, Some(why), "{commands:?}");
        assert_eq!(reading.quiet, None);
    }
    let timeout = hello("421 Timeout.\r\n");
    assert_eq!(whole(b"", &timeout).raw, None, "a server may say so unasked");
    let refused = hello("530 no\r\n");
    assert_eq!(whole(b"AUTH TLS\r\n", &refused).raw, None);
}

#[test]
fn where_servers_are_to_call_is_read_from_what_they_agree_to() {
    let called = |command: &str, reply: &str| {
        let mut ftp = Ftp::new(true);
        ftp.on_request(command.as_bytes());
        ftp.on_response(b"220 x\r\n");
        ftp.on_span(1);
        ftp.on_response(b"\r\n");
        ftp.on_response(reply.as_bytes());
        (ftp.take_call().map(|to| to.to_string()), ftp.take_call().is_some(), ftp.raw())
    };
    let read = |command: &str| called(&format!("{command}\r\n"), "200 ok\r\n").0;
    let v6 = "2001:db8:1234:5678:9abc:def0:1234:5678";
    for (command, to) in [
        ("PORT 192,0,2,1,195,80", "192.0.2.1:50000"),
        ("port  192,0,2,1,4,1 ", "192.0.2.1:1025"),
        ("EPRT |1|192.0.2.1|50000|", "192.0.2.1:50000"),
        ("EPRT |2|2001:db8::1|6446|", "[2001:db8::1]:6446"),
        ("eprt !1!192.0.2.1!1!", "192.0.2.1:1"),
        (&format!("EPRT |2|{v6}|65535|"), &format!("[{v6}]:65535")),
    ] {
        assert_eq!(read(command).as_deref(), Some(to), "{command}");
    }
    for command in [
        "PORT 192,0,2,1,195",
        "PORT 192,0,2,1,195,80,1",
        "PORT 192,0,2,256,195,80",
        "EPRT |1|192.0.2.1|65536|",
        "EPRT |2|192.0.2.1|50000|",
        "EPRT |1|192.0.2.1|50000",
        "EPRT |1|192.0.2.1|50000||",
        "EPRT",
    ] {
        let said = called(&format!("{command}\r\n"), "200 ok\r\n");
        assert_eq!(said, (None, false, Some(RawReason::ActiveData)), "{command}");
    }
    let refused = called("PORT 192,0,2,1,195,80\r\n", "500 no\r\n");
    assert_eq!(refused, (None, false, None));
    let once = called("PORT 192,0,2,1,195,80\r\n", "200 ok\r\n");
    assert_eq!((once.1, once.2), (false, None));
}

#[test]
fn commands_that_could_not_be_kept_end_the_reading() {
    let mut ftp = Ftp::new(true);
    ftp.on_request_hole(7);
    assert_eq!(ftp.raw(), Some(RawReason::Missed));
    assert_eq!(ftp.on_response(GREETING), Step::Plain);
}

#[test]
fn where_a_difference_stands_is_told() {
    let mut ftp = Ftp::new(true);
    assert_eq!(ftp.field(b"220 x"), Some(Field::ReplyCode));
    ftp.on_response(b"220");
    assert_eq!(ftp.field(b" x"), Some(Field::Reply(220)));
    ftp.on_response(b"-");
    ftp.on_response(b"\r\n");
    assert_eq!(ftp.field(b"what"), Some(Field::Reply(220)));
}

/// Pieces of dialogues of which every server of FTP has seen some.
fn any_command() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        &b"USER x\r\n"[..],
        b"PASV\r\n",
        b"PASV\r\n",
        b"epsv \r\n",
        b"EPSV ALL\r\n",
        b"RETR /227 (1,2,3,4,5,6)\r\n",
        b"STAT\r\n",
        b"STAT \r\n",
        b"STAT x\r\n",
        b"\xff\xf4\xff\xf2ABOR\r\n",
        b"\xff\xfb\x01NOOP\r\n",
        b"AUTH TLS\r\n",
        b"EPRT |1|192.0.2.1|5000|\r\n",
        b"EPRT |3|x|5000|\r\n",
        b"QUIT\n",
        b"\r\n",
        b"NOOP",
    ])
    .prop_map(<[u8]>::to_vec)
}

fn any_reply() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        &b"220 hello 1\r\n"[..],
        b"220-hello\r\n22 x\r\n220y\r\n 220 z\r\n220-\r\n220 end\r\n",
        b"331 x\r\n",
        b"227 Entering Passive Mode (192,0,2,10,4,1).\r\n",
        b"227 1,2,3,4,5,6\r\n",
        b"227-x\r\n227 (1,2,3,4,5,6)\r\n",
        b"229 Entering Extended Passive Mode (|||4097|)\r\n",
        b"150 Here\r\n",
        b"226\r\n",
        b"226-a\r\n226 1 s, 2 kB/s\r\n",
        b"211-Status:\r\n     x\r\n2\r\n21 y\r\n211 End\r\n",
        b"213-Status\r\n-rw-r--r-- 1 a b 100 Nov  2 04:55 x\r\n213 End\r\n",
        b"213-drwxr-xr-x  1 a b  100 Nov  2  2026 x\r\ntotal 5\r\n213 End\r\n",
        b"421 x\r\n",
        b"234 x\r\n",
        b"200 x\r\n",
        b"12 x\r\n",
        b"200 x\n",
    ])
    .prop_map(<[u8]>::to_vec)
}

/// Reads line by line, the whole text before it.
#[derive(Default)]
struct Naive {
    spans: Vec<(usize, usize, Rule)>,
}

impl Naive {
    /// The commands up to the first that is none, upper case, without telnet's sequences; false if
    /// there is such a one.
    fn commands(text: &[u8]) -> (Vec<String>, bool) {
        let mut text: &[u8] = text;
        let mut commands = Vec::new();
        loop {
            while let Some([first, second]) = text.first_chunk().copied()
                && first == 255
            {
                match second {
                    251..=254 if text.len() > 2 => text = &text[3..],
                    240..=250 => text = &text[2..],
                    251..=254 => return (commands, true),
                    _ => return (commands, false),
                }
            }
            let end = text.iter().position(|&b| b == b'\n' || b == b'\r');
            let Some(end) = end else { return (commands, text.len() < 4096) };
            match &text[end..] {
                [b'\r', b'\n', ..] => {}
                [b'\r'] => return (commands, true),
                _ => return (commands, false),
            }
            let line = String::from_utf8_lossy(&text[..end]).to_ascii_uppercase();
            let verb = line.split(' ').next().unwrap_or_default();
            let is_verb = (3..5).contains(&verb.len());
            if !is_verb || !verb.bytes().all(|b| b.is_ascii_alphabetic()) {
                return (commands, false);
            }
            commands.push(line);
            text = &text[end + 2..];
        }
    }

    /// What may differ in a line of the reply to `asked`, of which `before` are earlier lines.
    fn line(&mut self, at: usize, line: &str, asked: Option<&str>, code: &str, is_first: bool) {
        let verb = asked.and_then(|asked| asked.split(' ').next()).unwrap_or("");
        let has_argument =
            asked.is_some_and(|asked| asked.split(' ').skip(1).any(|word| !word.is_empty()));
        let rule = match (verb, code) {
            ("PASV", "227") | ("EPSV", "229") => {
                if !is_first || line.as_bytes().get(3) != Some(&b' ') {
                    return;
                }
                let Some(from) = line[4..].find(|c: char| c.is_ascii_digit()) else { return };
                let rest = &line[4 + from..];
                let rule = if verb == "PASV" { Rule::Port } else { Rule::ExtendedPort };
                let is_comma = |c: char| c == ',' && rule == Rule::Port;
                let len = rest.find(|c: char| !c.is_ascii_digit() && !is_comma(c));
                self.spans.push((at + 4 + from, len.unwrap_or(rest.len()), rule));
                return;
            }
            ("STAT", "211" | "212" | "213") if has_argument => {
                if is_first {
                    return;
                }
                let bytes = line.as_bytes();
                let is_prefixed = bytes.len() > 3
                    && bytes[3] == b'-'
                    && bytes[..3].iter().all(u8::is_ascii_digit);
                let skipped = if is_prefixed { 4 } else { 0 };
                let words: Vec<&str> = line[skipped..].split(' ').collect();
                let is_mode = |c: char| "-dlbcpsrwxStT".contains(c);
                if words[0].len() != 10 || !words[0].chars().all(is_mode) {
                    return;
                }
                let (mut column, mut from) = (0, skipped);
                for word in words {
                    if !word.is_empty() {
                        column += 1;
                        if column == 6 {
                            break;
                        }
                    }
                    from += word.len() + 1;
                }
                let is_letter = bytes.get(from).is_some_and(u8::is_ascii_alphabetic);
                if column == 6 && is_letter {
                    self.spans.push((at + from, 12.min(line.len() - from), Rule::Time));
                }
                return;
            }
            ("", "220") => Rule::Banner,
            ("STAT", "211") => Rule::Status,
            ("RETR", "226") => Rule::Statistics,
            _ => return,
        };
        let same = line.bytes().zip(code.bytes()).take_while(|(a, b)| a == b).count();
        let from = match (same, line.as_bytes().get(3)) {
            (3, Some(b' ' | b'-')) => 4,
            _ => same,
        };
        if line.len() > from {
            self.spans.push((at + from, line.len() - from, rule));
        }
    }

    fn replies(&mut self, text: &[u8], commands: Vec<String>) {
        let mut commands = commands.into_iter();
        let (mut at, mut has_greeted) = (0, false);
        let mut asked: Option<String> = None;
        let mut open: Option<String> = None;
        while at < text.len() {
            let end = text[at..].iter().position(|&b| b == b'\n');
            let line = &text[at..at + end.unwrap_or(text.len() - at)];
            let text_end = line.iter().position(|&b| b == b'\r');
            let is_whole = end.is_some() && text_end.is_some_and(|at| at + 1 == line.len());
            let shown = String::from_utf8_lossy(&line[..text_end.unwrap_or(line.len())]);
            if asked.is_none() && has_greeted {
                asked = commands.next();
            }
            let code = open.clone().unwrap_or_else(|| shown.chars().take(3).collect());
            let is_good = code.len() == 3
                && code.as_bytes()[0].is_ascii_digit()
                && (b'1'..=b'5').contains(&code.as_bytes()[0])
                && code.bytes().all(|b| b.is_ascii_digit());
            let separator = shown.as_bytes().get(3).copied();
            if open.is_none() && (!is_good || !matches!(separator, None | Some(b' ' | b'-'))) {
                return;
            }
            let is_asked = asked.as_deref().filter(|_| has_greeted);
            let may = has_greeted != is_asked.is_none();
            if may {
                self.line(at, &shown, is_asked, &code, open.is_none());
            }
            if !is_whole {
                return;
            }
            at += line.len() + 1;
            let is_last = match &open {
                None => separator != Some(b'-'),
                Some(code) if *shown == **code => return,
                Some(code) => shown.starts_with(&format!("{code} ")),
            };
            if !is_last {
                open = Some(code);
                continue;
            }
            open = None;
            if code.starts_with('1') {
                continue;
            }
            if !has_greeted {
                has_greeted = true;
                continue;
            }
            match asked.take() {
                None if code != "421" => return,
                Some(asked) if asked.starts_with("AUTH") && code == "234" => return,
                Some(asked) if asked.starts_with("EPRT ") && code == "200" => {
                    let parts: Vec<&str> = asked[5..].trim_start().split('|').collect();
                    let is_read = |ip: &str, port: &str| {
                        ip.parse::<Ipv4Addr>().is_ok() && port.parse::<u16>().is_ok()
                    };
                    if !matches!(parts[..], ["", "1", ip, port, ""] if is_read(ip, port)) {
                        return;
                    }
                }
                _ => {}
            }
        }
    }
}

fn naive(commands: &[u8], replies: &[u8]) -> Vec<(usize, usize, Rule)> {
    let mut reader = Naive::default();
    let (commands, is_good) = Naive::commands(commands);
    if is_good {
        reader.replies(replies, commands);
    }
    reader.spans
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn the_values_are_those_of_a_naive_reader(
        commands in vec(any_command(), 0..6), replies in vec(any_reply(), 0..8),
        noise in prop::option::of((any::<prop::sample::Index>(), any::<u8>(), any::<bool>())),
    ) {
        let (mut commands, mut replies) = (commands.concat(), replies.concat());
        if let Some((at, byte, is_asked)) = noise {
            let text = if is_asked { &mut commands } else { &mut replies };
            if !text.is_empty() {
                let at = at.index(text.len());
                text[at] = byte & 0x7f;
            }
        }
        prop_assert_eq!(whole(&commands, &replies).spans, naive(&commands, &replies));
    }

    #[test]
    fn however_it_is_cut_it_is_read_alike(
        commands in vec(any_command(), 0..6), replies in vec(any_reply(), 0..8),
        pieces in (1usize..9, 1usize..9),
    ) {
        let (commands, replies) = (commands.concat(), replies.concat());
        let ends = |len: usize, every| {
            (every..len).step_by(every).chain([len]).collect::<Vec<_>>()
        };
        let cut = read(
            (&commands, &ends(commands.len(), pieces.0)),
            (&replies, &ends(replies.len(), pieces.1)),
        );
        prop_assert_eq!(cut, whole(&commands, &replies));
    }
}
