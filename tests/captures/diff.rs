//! `shadowvm diff`: what was said counts, how it travelled does not.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use proptest::prelude::*;
use shadowvm::replay::{
    Capture, How, Options, Parting, Report, Rules, Side, Verdict, diff as diff_captures,
};

use crate::made::{Made, Said, Way, make, travel, write};
use crate::{code, err, out, shadowvm};

fn compare(ours: &[u8], theirs: &[u8], rules: Rules) -> Report {
    let [a, b] = [ours, theirs].map(|bytes| Capture::bytes("x", Bytes::copy_from_slice(bytes)));
    let options = Options { rules, ..Options::default() };
    diff_captures([&a, &b], &options).unwrap()
}

/// Conversations of random bytes, and of HTTP.
fn any_said() -> impl Strategy<Value = Vec<Said>> {
    let side = prop_oneof![Just(Side::Client), Just(Side::Server)];
    let bytes = prop::collection::vec(any::<u8>(), 1..4000);
    let random = prop::collection::vec((side, bytes), 1..6);
    let http = prop::collection::vec((0usize..5000, any::<u8>()), 1..5).prop_map(|answers| {
        let turns = answers.into_iter().flat_map(|(len, byte)| {
            let request = b"GET /x HTTP/1.1\r\nHost: y\r\n\r\n".to_vec();
            let head = format!(
                "HTTP/1.1 200 OK\r\nDate: Mon\r\nServer: z\r\nContent-Length: {len}\r\n\r\n"
            );
            let answer = [head.into_bytes(), vec![byte; len]].concat();
            [(Side::Client, request), (Side::Server, answer)]
        });
        turns.collect::<Vec<_>>()
    });
    let turns = prop_oneof![random, http];
    prop::collection::vec((turns, any::<bool>()), 1..5).prop_map(|talks| {
        let said = talks
            .into_iter()
            .zip(40_000..)
            .map(|((turns, closes), port)| Said { closes, ..Said::new(port, turns) });
        said.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However it travelled, it is the same.
    #[test]
    fn the_way_makes_no_difference(said in any_said(), one: u64, other: u64) {
        let plain = make(&said, &Way::plain(one));
        let bad = make(&said, &Way::bad(other));
        for rules in [Rules::default(), Rules::none()] {
            let report = compare(&plain.bytes, &bad.bytes, rules);
            prop_assert_eq!(report.verdict(), Verdict::Same, "{:#?}", report);
            let bytes: usize = said.iter().flat_map(|s| s.turns.iter()).map(|t| t.1.len()).sum();
            prop_assert_eq!(report.compared_bytes, bytes as u64);
            prop_assert_eq!((report.same, report.paired), (said.len(), said.len()));
        }
    }

    /// One bit of one byte, and it is different there: the checksum mended or not.
    #[test]
    fn one_bit_makes_the_difference(
        said in any_said(), seeds: [u64; 2], pick: prop::sample::Index, bit in 0u32..8,
        is_mended: bool, is_swapped: bool,
    ) {
        let places: Vec<(usize, Side, usize)> = said.iter().enumerate().flat_map(|(talk, said)| {
            Side::BOTH.into_iter().flat_map(move |side| {
                (0..said.stream(side).len()).map(move |at| (talk, side, at))
            })
        }).collect();
        let (talk, side, at) = places[pick.index(places.len())];
        let way = Way::bad(seeds[1]);
        let changed = if is_mended {
            let mut changed = said.clone();
            *changed[talk].byte_mut(side, at) ^= 1 << bit;
            make(&changed, &way)
        } else {
            let mut packets = travel(&said, &way);
            for sent in &mut packets {
                let range = sent.at as usize..sent.at as usize + sent.payload.len();
                if sent.talk == talk && sent.side == side && range.contains(&at) {
                    sent.flip = Some((at - range.start, 1 << bit));
                }
            }
            write(&said, &way, packets)
        };
        let plain = make(&said, &Way::plain(seeds[0]));
        let files: [&Made; 2] =
            if is_swapped { [&changed, &plain] } else { [&plain, &changed] };
        let report = compare(&files[0].bytes, &files[1].bytes, Rules::none());
        prop_assert_eq!(report.verdict(), Verdict::Different);
        prop_assert_eq!((report.different, report.differences.len()), (1, 1), "{:#?}", report);
        let found = &report.differences[0];
        let old = said[talk].stream(side)[at];
        let new = old ^ (1 << bit);
        let how = if is_swapped { How::Byte(new, old) } else { How::Byte(old, new) };
        prop_assert_eq!(found.parting, Parting { at: [at as u64; 2], how });
        prop_assert_eq!((found.side, found.ends[0].client), (side, said[talk].client));
        for (file, packet) in files.iter().zip(found.packets) {
            let packet = packet.expect("a packet brought it").packet;
            prop_assert!(file.carries(packet, talk, side, at as u64), "packet {}", packet);
        }
        for (window, byte) in found.windows.iter().zip([old, new]) {
            let byte = if is_swapped { byte ^ (1 << bit) } else { byte };
            prop_assert_eq!(window.rest()[0], byte);
        }
    }
}

/// Two requests and their answers.
fn http(etag: &str, date: &str, body: &str) -> Vec<(Side, Vec<u8>)> {
    let request = |path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
    let answer = |etag: &str, body: &str| {
        let len = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nETag: {etag}\r\n");
        format!("{head}Content-Length: {len}\r\n\r\n{body}").into_bytes()
    };
    vec![
        (Side::Client, request("/first")),
        (Side::Server, answer("same", "equal")),
        (Side::Client, request("/second")),
        (Side::Server, answer(etag, body)),
    ]
}

fn save(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_changed_header_is_shown_with_its_name_its_packets_and_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let ours = make(&[Said::new(40_000, http("\"one\"", "Mon", "hello"))], &Way::plain(1));
    let theirs = make(&[Said::new(40_000, http("\"ane\"", "Tue", "hello"))], &Way::bad(2));
    save(dir.path(), "a.pcap", &ours.bytes);
    save(dir.path(), "b.pcap", &theirs.bytes);
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap"]);
    assert_eq!(code(&output), 1, "{}", err(&output));
    let text = out(&output);
    assert!(text.contains("answer 2, header `ETag`"), "{text}");
    assert!(text.contains("6f in A, 61 in B"), "{text}");
    let line = text.lines().find(|line| line.contains("\"one\"")).expect("a line of both");
    assert!(line.contains("\"ane\""), "{text}");
    assert!(text.contains("1 conversations in both, 0 the same, 1 different"), "{text}");

    let output = shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap", "-o", "json"]);
    assert_eq!(code(&output), 1);
    let json: serde_json::Value = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(json["verdict"], "different");
    let found = &json["differences"][0];
    assert_eq!(found["field"], "answer 2, header `ETag`");
    for (file, made) in [("a", &ours), ("b", &theirs)] {
        let (packet, at) =
            (found[file]["packet"].as_u64().unwrap(), found[file]["offset"].as_u64());
        assert!(made.carries(packet, 0, Side::Server, at.unwrap()), "{found}");
    }

    let rule = ["diff", "a.pcap", "b.pcap", "--rule", "http:etag"];
    let output = shadowvm(dir.path(), &rule);
    assert_eq!(code(&output), 0, "{}", out(&output));
    assert!(out(&output).contains("3 values differ as the rules allow"), "{}", out(&output));
    let strict = shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap", "--strict", "--view", "hex"]);
    assert!(out(&strict).contains("answer 1, header `Date`"), "{}", out(&strict));
    assert!(out(&strict).contains("[4d]"), "{}", out(&strict));
}

#[test]
fn the_rules_may_be_those_of_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[links]\nclient = \"c\"\na = \"a\"\nb = \"b\"\n[service]\n\
        addressing = \"clone\"\naddress = \"192.0.2.10\"\nports = [80]\n\
        [[server]]\nname = \"one\"\nrole = \"primary\"\n\
        [[server]]\nname = \"two\"\nrole = \"backup\"\n[[compare.rule]]\nprotocol = \"http\"\n\
        header = \"etag\"\naction = \"mask\"\n";
    save(dir.path(), "c.toml", config.as_bytes());
    let make = |etag, seed| {
        make(&[Said::new(40_000, http(etag, "Mon", "hello"))], &Way::plain(seed)).bytes
    };
    save(dir.path(), "a.pcap", &make("one", 1));
    save(dir.path(), "b.pcap", &make("two", 2));
    assert_eq!(code(&shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap"])), 1);
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap", "-c", "c.toml"]);
    assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap", "-c", "none.toml"]);
    assert_eq!(code(&output), 2);
}

#[test]
fn before_and_after_are_paired_by_what_is_asked_first() {
    let dir = tempfile::tempdir().unwrap();
    let one = |port, path: &str, server: [u8; 4]| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {server:?}\r\n\r\n").into_bytes();
        let body = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
        let turns = vec![(Side::Client, request), (Side::Server, body.into_bytes())];
        Said { server: (server, 80).into(), ..Said::new(port, turns) }
    };
    let (old, new) = ([192, 0, 2, 10], [198, 51, 100, 7]);
    let before = [one(40_000, "/a", old), one(40_001, "/b", old), one(40_002, "/a", old)];
    // The port of the first conversation of old is that of another one now.
    let after = [one(40_000, "/b", new), one(50_001, "/a", new), one(50_002, "/a", new)];
    save(dir.path(), "a.pcap", &make(&before, &Way::plain(1)).bytes);
    save(dir.path(), "b.pcap", &make(&after, &Way::plain(2)).bytes);
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap"]);
    assert_eq!(code(&output), 0, "{}", out(&output));
    save(dir.path(), "c.pcap", &make(&after[..2], &Way::plain(2)).bytes);
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "c.pcap"]);
    assert_eq!(code(&output), 1, "{}", out(&output));
    assert!(out(&output).contains("only in A: 10.0.0.7:40002"), "{}", out(&output));
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "c.pcap", "--port", "443"]);
    assert_eq!(code(&output), 2);
    assert!(out(&output).contains("nothing to compare"), "{}", out(&output));
}

#[test]
fn an_answer_that_ends_early_is_different_and_a_capture_that_does_is_not_enough() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Said::new(40_000, http("x", "Mon", "hello world"));
    let mut short = whole.clone();
    short.turns[3].1.truncate(60);
    save(dir.path(), "a.pcap", &make(std::slice::from_ref(&whole), &Way::plain(1)).bytes);
    save(dir.path(), "b.pcap", &make(std::slice::from_ref(&short), &Way::plain(2)).bytes);
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "b.pcap"]);
    assert_eq!(code(&output), 1);
    assert!(out(&output).contains("in B only"), "{}", out(&output));
    let stopped = Said { closes: false, ..short };
    save(dir.path(), "c.pcap", &make(&[stopped], &Way::plain(2)).bytes);
    let output = shadowvm(dir.path(), &["diff", "a.pcap", "c.pcap"]);
    assert_eq!(code(&output), 2, "{}", out(&output));
    assert!(out(&output).contains("it cannot be told"), "{}", out(&output));
}

#[test]
fn packets_that_are_missing_leave_the_question_open_and_others_not() {
    let said = [Said::new(40_000, http("x", "Mon", &"hello".repeat(2000)))];
    let way = Way { segment_max: 200, ..Way::plain(3) };
    let whole = make(&said, &way);
    let packets = travel(&said, &way);
    for (lost, sent) in packets.iter().enumerate() {
        let mut left = packets.clone();
        left.remove(lost);
        let report = compare(&whole.bytes, &write(&said, &way, left).bytes, Rules::default());
        let len = sent.payload.len() as u64;
        let expected = if len > 0 { Verdict::Unknown } else { Verdict::Same };
        assert_eq!(report.verdict(), expected, "packet {}: {report:#?}", lost + 1);
        assert_eq!(report.unknown_bytes, len, "packet {}", lost + 1);
    }
}

#[test]
fn what_cannot_be_read_is_told_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let good = make(&[Said::new(40_000, http("x", "Mon", "hello"))], &Way::plain(1));
    save(dir.path(), "good.pcap", &good.bytes);
    save(dir.path(), "empty.pcap", b"");
    save(dir.path(), "text.pcap", b"hello world");
    save(dir.path(), "head.pcap", &good.bytes[..24]);
    save(dir.path(), "silent.pcap", &make(&[Said::new(1, Vec::new())], &Way::plain(1)).bytes);
    for (file, exit, sentence) in [
        ("empty.pcap", 2, "empty.pcap: the file is empty"),
        ("text.pcap", 2, "text.pcap: this is not a capture"),
        ("nonexistent.pcap", 2, "nonexistent.pcap: No such file"),
        (".", 2, "no regular file"),
        ("head.pcap", 1, "only in A"),
        ("silent.pcap", 1, "stream ends at byte 0 in B only"),
    ] {
        let output = shadowvm(dir.path(), &["diff", "good.pcap", file]);
        assert_eq!(code(&output), exit, "{file}: {}", out(&output));
        let told = [out(&output), err(&output)].concat();
        assert!(told.contains(sentence), "{file}: {told}");
    }
    let output = shadowvm(dir.path(), &["diff", "head.pcap", "head.pcap"]);
    assert_eq!(code(&output), 2);
    assert!(out(&output).contains("neither capture has a TCP conversation"), "{}", out(&output));
    let output = shadowvm(dir.path(), &["diff", "silent.pcap", "silent.pcap"]);
    assert_eq!(code(&output), 0, "{}", out(&output));
    save(dir.path(), "cut.pcap", &good.bytes[..good.bytes.len() - 10]);
    let output = shadowvm(dir.path(), &["diff", "good.pcap", "cut.pcap"]);
    let last = good.packets.len();
    assert!(out(&output).contains(&format!("not read: packet {last} ")), "{}", out(&output));
    assert_eq!(code(&output), 0, "the last packet says nothing: {}", out(&output));
}
