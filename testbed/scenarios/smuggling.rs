//! Requests that two readers of HTTP may read as two different things: they reach real servers as
//! they were sent, and are answered as if there were no gateway.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use shadowvm::engine::LegId;
use shadowvm::lab::HostId;

use super::Scenario;
use super::bed::{Bed, Fault, until};
use super::content::{Content, Rng, hex, leg_name};
use super::judge;
use super::matrix::{Failure, Struck};
use super::web;

/// A read or write that takes longer is a failure.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// So late in a second nothing is asked: what is compared raw has equal dates only within one.
const SECOND_PART_MAX: Duration = Duration::from_millis(600);

/// What it does, what is sent, and why it is compared raw, if it is.
type Attempt = (&'static str, &'static str, Option<&'static str>);

/// `@` is what somebody wants to be taken for a request of its own.
const ATTEMPTS: [Attempt; 33] = [
    (
        "a length before a coding",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\n@",
        Some("length_and_coding"),
    ),
    (
        "a coding before a length",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n\
         2d\r\n@\r\n0\r\n\r\n",
        Some("length_and_coding"),
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 45\r\n\r\n@",
        Some("two_lengths"),
    ),
    (
        "a length twice",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok@",
        Some("two_lengths"),
    ),
    (
        "a list of lengths",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\nok@",
        Some("length"),
    ),
    (
        "a length with a sign",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\nok@",
        Some("length"),
    ),
    (
        "a hexadecimal length",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x2\r\n\r\nok@",
        Some("length"),
    ),
    (
        "a coding that nobody knows",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n@",
        Some("coding"),
    ),
    (
        "two codings",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n@",
        Some("coding"),
    ),
    (
        "a coding twice",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
         Transfer-Encoding: identity\r\n\r\n0\r\n\r\n@",
        Some("coding"),
    ),
    (
        "a coding in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n@",
        Some("coding"),
    ),
    (
        "a vertical tab before a coding",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n@",
        Some("coding"),
    ),
    (
        "a blank before a colon",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n@",
        Some("header_line"),
    ),
    (
        "a folded coding",
        "POST / HTTP/1.1\r\nHost: x\r\nX: a\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n@",
        Some("folded"),
    ),
    (
        "a tab before a name",
        "POST / HTTP/1.1\r\nHost: x\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n@",
        Some("folded"),
    ),
    (
        "a bare LF before a coding",
        "POST / HTTP/1.1\r\nHost: x\r\nX: a\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n@",
        Some("bare_lf"),
    ),
    (
        "a bare CR before a coding",
        "POST / HTTP/1.1\r\nHost: x\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n@",
        Some("bare_cr"),
    ),
    ("bare LFs", "GET /small-0.bin HTTP/1.1\nHost: x\n\n@", Some("bare_lf")),
    (
        "a zero byte in a value",
        "POST / HTTP/1.1\r\nHost: x\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok@",
        Some("header_line"),
    ),
    (
        "a size with 0x",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n@",
        Some("chunk_size"),
    ),
    (
        "a size with a sign",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n@",
        Some("chunk_size"),
    ),
    (
        "a size beyond 64 bits",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
         10000000000000002\r\nok\r\n0\r\n\r\n@",
        Some("chunk_size"),
    ),
    (
        "no size",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n;a\r\nok\r\n0\r\n\r\n@",
        Some("chunk_size"),
    ),
    (
        "a bare LF behind an extension",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a\nok\r\n0\r\n\r\n@",
        Some("bare_lf"),
    ),
    (
        "a chunk that is longer than its size",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n@",
        Some("chunk_end"),
    ),
    (
        "a chunk that ends with a bare LF",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n@",
        Some("bare_lf"),
    ),
    ("two blanks in a request line", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n@", Some("not_http")),
    (
        "a second request of another version",
        "GET /small-0.bin HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.7\r\nHost: x\r\n\r\n@",
        Some("request_line"),
    ),
    // What everybody reads alike is read.
    ("a request in a body", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 45\r\n\r\n@", None),
    (
        "a request in a body of GET",
        "GET /small-0.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 45\r\n\r\n@@",
        None,
    ),
    (
        "a tab before a coding",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n@",
        None,
    ),
    (
        "a request in a chunk",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n002D;a=b\r\n@\r\n\
         0\r\nContent-Length: 9\r\n\r\n@",
        None,
    ),
    (
        "an upgrade that nobody agrees to",
        "GET /small-0.bin HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n@",
        None,
    ),
];
const HIDDEN: &str = "GET /small-1.bin HTTP/1.1\r\nHost: smuggled\r\n\r\n";

/// At both kinds of servers; and one server dies behind such a request, by one fault unless
/// `is_long`.
pub fn scenarios(content: &Content, seed: u64, is_long: bool) -> Vec<Scenario<'_>> {
    let mut all: Vec<Scenario<'_>> = vec![
        ("smuggling-nginx".into(), Box::new(move |at| attempts(at, content, false))),
        ("smuggling-apache".into(), Box::new(move |at| attempts(at, content, true))),
    ];
    let faults = [Fault::KillAll, Fault::LinkDown, Fault::Stop];
    for fault in faults.into_iter().take(if is_long { 3 } else { 1 }) {
        let name = format!("smuggling-{fault:?}").to_lowercase();
        all.push((name, Box::new(move |at| dies(at, content, fault, seed))));
    }
    all
}

fn started<'a>(at: &Path, content: &'a Content, is_apache: bool) -> Result<Bed<'a>, Failure> {
    let mut bed = web::started(at, content, is_apache)?;
    bed.start_captures()?;
    Ok(bed)
}

/// Each of them, at each server without the gateway, and through it.
fn attempts(at: &Path, content: &Content, is_apache: bool) -> Result<String, Failure> {
    let mut bed = started(at, content, is_apache)?;
    let mut sent: BTreeMap<u16, (&str, Vec<u8>)> = BTreeMap::new();
    let mut raw = 0;
    for (name, text, why) in ATTEMPTS {
        let bytes = text.replace('@', HIDDEN).into_bytes();
        let [a, b] = LegId::ALL.map(|leg| ask(&bed, HostId::Server(leg), &bytes));
        let (a, b) = (a?.1, b?.1);
        if a != b {
            return Err(Failure::Broken(format!("{name}: the servers differ without a gateway")));
        }
        let (port, answers) = ask(&bed, HostId::Client, &bytes)?;
        if answers != a {
            let [own, other] = [a, answers].map(|text| String::from_utf8_lossy(&text).into_owned());
            let told = format!("{name}: answered by {other:?}, and without a gateway by {own:?}");
            return Err(Failure::Broken(told));
        }
        sent.insert(port, (name, bytes));
        raw += u64::from(why.is_some());
        told_as(&bed, name, why, raw)?;
    }
    for name in ["divergences", "promotions", "detaches", "flows_solo", "flows_reset"] {
        if bed.count(&format!("shadowvm_{name}_total"), None)? != 0 {
            return Err(Failure::Late(format!("{name} is not 0, but nothing failed")));
        }
    }
    bed.judge()?;
    for leg in LegId::ALL {
        let heard = heard(&at.join(format!("{}.pcap", leg_name(leg))))?;
        for (port, (name, bytes)) in &sent {
            if heard.get(port) != Some(bytes) {
                let told = format!("{name}: {leg:?} heard {:?}", heard.get(port));
                return Err(Failure::Broken(told));
            }
        }
    }
    Ok(format!("{} attempts, {raw} of them compared raw", sent.len()))
}

/// So many are counted in all, and the last one is told for that reason.
fn told_as(bed: &Bed<'_>, name: &str, why: Option<&str>, count: u64) -> Result<(), Failure> {
    let said = until(WAIT_MAX, &format!("{name}: {count} flows compared raw"), || {
        let counted = bed.count("shadowvm_flows_compared_raw_total", None).ok()?;
        let events = bed.events().ok()?;
        let told: Vec<_> = events.iter().filter(|e| e["event"] == "compared_raw").collect();
        let last = told.last().and_then(|event| event["reason"].as_str().map(str::to_owned));
        (counted == count && told.len() as u64 == count).then_some(last)
    })?;
    match why {
        Some(why) if said.as_deref() != Some(why) => {
            Err(Failure::Broken(format!("{name} is compared raw for {said:?}, not {why}")))
        }
        _ => Ok(()),
    }
}

/// The client's port, and the answers to `bytes` up to their end, but for dates.
fn ask(bed: &Bed<'_>, from: HostId, bytes: &[u8]) -> Result<(u16, Vec<u8>), String> {
    wait_for_a_seconds_beginning()?;
    let mut stream = dial(bed, from)?;
    let error = |e: std::io::Error| e.to_string();
    let port = stream.local_addr().map_err(error)?.port();
    stream.write_all(bytes).map_err(error)?;
    stream.shutdown(Shutdown::Write).map_err(error)?;
    let mut got = Vec::new();
    match stream.read_to_end(&mut got) {
        // A server that has not read everything may end with a reset.
        Err(e) if e.kind() != ErrorKind::ConnectionReset => Err(error(e)),
        _ => Ok((port, without_dates(got))),
    }
}

fn dial(bed: &Bed<'_>, from: HostId) -> Result<TcpStream, String> {
    let stream = bed.dial(from, 80, false)?;
    let set = stream
        .set_read_timeout(Some(WAIT_MAX))
        .and_then(|()| stream.set_write_timeout(Some(WAIT_MAX)));
    set.map(|()| stream).map_err(|e| e.to_string())
}

fn wait_for_a_seconds_beginning() -> Result<(), String> {
    until(WAIT_MAX, "a second to begin", || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Duration::from_nanos(since.subsec_nanos().into()) < SECOND_PART_MAX).then_some(())
    })
}

fn without_dates(mut text: Vec<u8>) -> Vec<u8> {
    const NAME: &[u8] = b"\r\nDate: ";
    let mut at = 0;
    while let Some(found) = text[at..].windows(NAME.len()).position(|window| window == NAME) {
        at += found + NAME.len();
        let len = text[at..].iter().position(|&byte| byte == b'\r').unwrap_or(0);
        text.drain(at..at + len);
    }
    text
}

/// What was said to a server on each connection, by the client's port, in a capture of its link.
fn heard(capture: &Path) -> Result<BTreeMap<u16, Vec<u8>>, String> {
    let fields = ["tcp.srcport", "tcp.seq", "tcp.payload"];
    let mut command = std::process::Command::new("tshark");
    command.args(["-n", "-Q", "-r"]).arg(capture);
    command.args(["-Y", "tcp.dstport == 80 && tcp.len > 0", "-T", "fields"]);
    fields.iter().for_each(|field| _ = command.args(["-e", field]));
    let output = command.output().map_err(|e| format!("tshark does not run: {e}"))?;
    if !output.status.success() {
        return Err(format!("tshark: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let mut heard: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let wrong = || format!("tshark says {line:?}");
        let [port, seq, payload] = *line.split('\t').collect::<Vec<_>>() else {
            return Err(wrong());
        };
        let port = port.parse().map_err(|_| wrong())?;
        // Its first byte has number 1; a probe of a window repeats the last one.
        let from = seq.parse::<usize>().map_err(|_| wrong())?.saturating_sub(1);
        let bytes: Option<Vec<u8>> = (0..payload.len() / 2)
            .map(|i| u8::from_str_radix(&payload[2 * i..2 * i + 2], 16).ok())
            .collect();
        let bytes = bytes.ok_or_else(wrong)?;
        let all = heard.entry(port).or_default();
        all.resize(all.len().max(from + bytes.len()), 0);
        all[from..from + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(heard)
}

/// A server dies in the midst of the answer to such a request. The other one says the rest, on the
/// same connection, and answers the next one.
fn dies(at: &Path, content: &Content, fault: Fault, seed: u64) -> Result<String, Failure> {
    let mut bed = started(at, content, false)?;
    let big = &content.big;
    let instant = big.len / 20 + Rng::new(seed).below(big.len as usize / 2) as u64;
    wait_for_a_seconds_beginning()?;
    let mut stream = dial(&bed, HostId::Client)?;
    let ask = format!("GET {} HTTP/1.1\nHost: x\n\n", big.path);
    stream.write_all(ask.as_bytes()).map_err(|e| e.to_string())?;
    let body = body_len(&mut stream)?;
    if body != big.len {
        return Err(Failure::Broken(format!("an answer of {body} bytes")));
    }
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 64 << 10]);
    let (mut got, mut is_struck) = (0, false);
    while got < body {
        if got >= instant && !is_struck {
            told_as(&bed, "a bare LF", Some("bare_lf"), 1)?;
            bed.strike(fault, LegId::A, "")?;
            is_struck = true;
        }
        let room = piece.len().min((body - got) as usize);
        let n = stream.read(&mut piece[..room]).map_err(|e| format!("after {got} bytes: {e}"))?;
        if n == 0 {
            return Err(Failure::Broken(format!("the connection ended after {got} bytes")));
        }
        hash.update(&piece[..n]);
        got += n as u64;
    }
    if hex(&hash.finalize()) != big.sha256 {
        return Err(Failure::Broken("what came is not the file".into()));
    }
    stream.write_all(HIDDEN.as_bytes()).map_err(|e| e.to_string())?;
    let (next, file) = (body_len(&mut stream)?, &content.small[1]);
    if next != file.len {
        return Err(Failure::Broken(format!("the next answer has {next} bytes")));
    }
    drop(stream);
    judge::events(&bed.events()?, Struck { t_ns: 0 })?;
    let summary = bed.judge()?;
    Ok(format!("at {instant} bytes, {} bytes shown", summary["shown_bytes"]))
}

/// Reads the header section of an answer; the length of the body.
fn body_len(stream: &mut TcpStream) -> Result<u64, String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) => return Err("the connection ended in a header section".into()),
            Err(error) => return Err(format!("reading a header section: {error}")),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length = length.filter(|_| head.starts_with("HTTP/1.1 200 "));
    length.and_then(|length| length.parse().ok()).ok_or_else(|| format!("answered by {head:?}"))
}
