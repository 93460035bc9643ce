//! `shadowvm pcap`: captures told, cut, and made fit to be shown.

use std::process::Output;

use bytes::Bytes;
use shadowvm::replay::survey::Survey;
use shadowvm::replay::{Capture, End, Side};
use shadowvm::wire::parse::captured::{LinkType, What, look};

use crate::made::{Said, Way, make, travel, write};
use crate::{code, err, out, shadowvm};

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(&out(output)).unwrap()
}

/// Three conversations of two clients with two servers.
fn three() -> Vec<Said> {
    let turns = |text: &str| {
        let secret = format!("secret {text} at 192.0.2.10").into_bytes();
        vec![(Side::Client, secret.clone()), (Side::Server, secret.repeat(200))]
    };
    let mut said: Vec<Said> =
        (0..3u16).map(|n| Said::new(40_000 + n, turns(&n.to_string()))).collect();
    said[2].client = ([10, 0, 0, 8], 40_000).into();
    said[2].server = ([192, 0, 2, 11], 80).into();
    said
}

#[test]
fn info_tells_what_is_in_it_and_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let said = three();
    let way = Way { duplicates: 60, retransmissions: 60, ..Way::plain(4) };
    let made = make(&said, &way);
    std::fs::write(dir.path().join("x.pcap"), &made.bytes).unwrap();
    let output = shadowvm(dir.path(), &["pcap", "info", "x.pcap"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let text = out(&output);
    for part in ["3 TCP conversations", "10.0.0.8:40000", "closed", "Ethernet", "/s"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let told = json(&shadowvm(dir.path(), &["pcap", "info", "x.pcap", "-o", "json"]));
    assert_eq!(told["packets"], made.packets.len());
    let bytes: usize = said.iter().flat_map(|s| s.turns.iter()).map(|(_, b)| b.len()).sum();
    assert_eq!(told["stream_bytes"], bytes);
    let sent: usize = made.packets.iter().map(|packet| packet.payload.len()).sum();
    assert_eq!(told["repeated_bytes"], sent - bytes);
    assert_eq!(told["missing_bytes"], 0);
    assert_eq!(told["conversations"].as_array().unwrap().len(), 3);
    assert_eq!(told["conversations"][0]["is_client_known"], true);

    let packets = travel(&said, &Way::plain(4));
    let lost = packets.iter().position(|packet| packet.payload.len() > 1000).unwrap();
    let mut left = packets.clone();
    left.remove(lost);
    let made = write(&said, &Way::plain(4), left);
    std::fs::write(dir.path().join("y.pcap"), &made.bytes[..made.bytes.len() - 7]).unwrap();
    let output = shadowvm(dir.path(), &["pcap", "info", "y.pcap", "-o", "json"]);
    assert_eq!(code(&output), 1);
    let told = json(&output);
    assert_eq!(told["missing_bytes"], packets[lost].payload.len());
    assert_eq!(told["unreadable"], 1);
    assert_eq!(told["troubles"][0]["packet"], made.packets.len());
    let output = shadowvm(dir.path(), &["pcap", "info", "none.pcap"]);
    assert_eq!(code(&output), 2);
}

#[test]
fn the_parts_of_a_capture_hold_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let said = three();
    for (by, files) in [("conversation", 3), ("client", 2), ("server", 2)] {
        let made = make(&said, &Way::bad(9));
        std::fs::write(dir.path().join("x.pcap"), &made.bytes).unwrap();
        let args = ["pcap", "split", "x.pcap", "--into", by, "--by", by, "-o", "json"];
        let output = shadowvm(dir.path(), &args);
        assert_eq!(code(&output), 0, "{}", err(&output));
        let again = shadowvm(dir.path(), &args);
        assert_eq!(code(&again), 1, "what is there is not overwritten");
        assert!(err(&again).contains("exists"), "{}", err(&again));
        let told = json(&output);
        let parts = told["files"].as_array().unwrap();
        assert_eq!(parts.len(), files, "{told}");
        let mut talks = 0;
        for part in parts {
            let path = dir.path().join(part["file"].as_str().unwrap());
            let survey = Survey::of(&Capture::file(&path)).unwrap();
            assert_eq!(part["packets"], survey.facts.packets);
            talks += survey.talks.len();
            for (talk, heard) in &survey.talks {
                let same = said.iter().find(|said| said.client == talk.address(Side::Client));
                for side in Side::BOTH {
                    let len = same.unwrap().stream(side).len() as u64;
                    let heard = heard[side.index()];
                    assert_eq!((heard.bytes, heard.missing), (len, 0));
                    assert_eq!(heard.end, Some(End::Closed));
                }
            }
        }
        assert_eq!(talks, 3);
    }
}

#[test]
fn more_files_than_may_be_open_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let turns = vec![(Side::Client, vec![7; 20]), (Side::Server, vec![8; 20])];
    let said: Vec<Said> = (0..600).map(|n| Said::new(20_000 + n, turns.clone())).collect();
    std::fs::write(dir.path().join("x.pcap"), make(&said, &Way::plain(1)).bytes).unwrap();
    let output = shadowvm(dir.path(), &["pcap", "split", "x.pcap", "--into", "parts"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).contains("in 600 files"), "{}", out(&output));
    for entry in std::fs::read_dir(dir.path().join("parts")).unwrap() {
        let survey = Survey::of(&Capture::file(&entry.unwrap().path())).unwrap();
        assert_eq!(survey.talks.len(), 1);
        assert_eq!(survey.totals(), (40, 0, 0));
    }
}

#[test]
fn an_anonymous_capture_tells_when_and_how_much_and_not_who_and_what() {
    let dir = tempfile::tempdir().unwrap();
    let said = three();
    for (seed, payload) in (0..24).zip(["zero", "cut", "keep"].into_iter().cycle()) {
        let way = Way { segment_max: 900, ..Way::bad(seed) };
        let made = make(&said, &way);
        std::fs::write(dir.path().join("x.pcap"), &made.bytes).unwrap();
        let new = format!("{seed}.pcapng");
        let args = ["pcap", "anonymize", "x.pcap", &new, "--payload", payload];
        let output = shadowvm(dir.path(), &args);
        assert_eq!(code(&output), 0, "{}", err(&output));
        let text = out(&output);
        assert!(text.contains("4 addresses replaced; 0 packets left out"), "{text}");
        let bytes = std::fs::read(dir.path().join(&new)).unwrap();
        let holds = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert_eq!(holds(b"secret"), payload == "keep");
        for address in [[10, 0, 0, 7], [10, 0, 0, 8], [192, 0, 2, 10], [192, 0, 2, 11]] {
            assert!(!holds(&address), "{address:?}");
        }
        assert!(!holds(&[4; 6]) || way.link != LinkType::ETHERNET, "a hardware address");
        let capture = Capture::bytes("x", Bytes::from(bytes.clone()));
        let survey = Survey::of(&capture).unwrap();
        assert_eq!(survey.facts.packets, made.packets.len() as u64);
        assert_eq!(survey.facts.wrong_checksums, 0);
        assert_eq!(survey.talks.len(), 3);
        let total: usize = said.iter().flat_map(|s| s.turns.iter()).map(|(_, b)| b.len()).sum();
        let (heard, _, missing) = survey.totals();
        let expected = if payload == "cut" { (0, total) } else { (total, 0) };
        assert_eq!((heard as usize, missing as usize), expected, "{payload}");
        // One network is still one network.
        let clients: Vec<_> =
            survey.talks.iter().map(|(talk, _)| talk.address(Side::Client).ip()).collect();
        let net = |ip: &std::net::IpAddr| match ip {
            std::net::IpAddr::V4(ip) => ip.octets()[..3].to_vec(),
            std::net::IpAddr::V6(_) => Vec::new(),
        };
        assert!(clients.windows(2).all(|pair| net(&pair[0]) == net(&pair[1])));
    }
    let again = shadowvm(dir.path(), &["pcap", "anonymize", "x.pcap", "0.pcapng"]);
    assert_eq!(code(&again), 1, "it would have been overwritten");
}

#[test]
fn the_same_key_gives_the_same_addresses_and_another_one_others() {
    let dir = tempfile::tempdir().unwrap();
    let made = make(&three(), &Way::plain(1));
    std::fs::write(dir.path().join("x.pcap"), &made.bytes).unwrap();
    let anonymous = |new: &str, key: &str| {
        let args = ["pcap", "anonymize", "x.pcap", new, "--key", key];
        assert_eq!(code(&shadowvm(dir.path(), &args)), 0);
        std::fs::read(dir.path().join(new)).unwrap()
    };
    let one = "00112233445566778899aabbccddeeff";
    assert_eq!(anonymous("1", one), anonymous("2", one));
    assert_ne!(anonymous("3", one), anonymous("4", "10112233445566778899aabbccddeeff"));
    let output = shadowvm(dir.path(), &["pcap", "anonymize", "x.pcap", "5", "--key", "xyz"]);
    assert_eq!(code(&output), 2);
    assert!(!dir.path().join("5").exists());
}

/// A frame of ICMP "fragmentation needed" that quotes a segment, one of ARP, one of LLDP.
#[test]
fn what_quotes_or_asks_for_addresses_has_others_and_the_rest_is_left_out() {
    use shadowvm::wire::build::{arp_request, icmp_too_big};
    use shadowvm::wire::{Frame, L2, L3, Mac, Offload, Vlans};
    let dir = tempfile::tempdir().unwrap();
    let made = make(&three(), &Way::plain(1));
    let mut reader =
        shadowvm::io::pcap::Reader::new(std::io::Cursor::new(made.bytes.clone())).unwrap();
    let first = reader.next().unwrap().unwrap().data.to_vec();
    let original = Frame::from_wire(Bytes::from(first), Offload::default());
    let l2 = L2 { dst: Mac([2; 6]), src: Mac([4; 6]), vlans: Vlans::default() };
    let l3 = L3 {
        src: [192, 0, 2, 10].into(),
        dst: [10, 0, 0, 7].into(),
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        id: 0,
        flow_label: 0,
    };
    let frames = [
        icmp_too_big(&l2, &l3, 1200, &original).unwrap().to_vec(),
        arp_request(&l2, [10, 0, 0, 7].into(), [192, 0, 2, 10].into()).to_vec(),
        [&[1, 0x80, 0xc2, 0, 0, 0x0e][..], &[4; 6], &[0x88, 0xcc], &[10, 0, 0, 7]].concat(),
    ];
    let mut writer = shadowvm::io::pcap::Writer::classic(Vec::new(), LinkType::ETHERNET).unwrap();
    for frame in &frames {
        writer.packet(0, 1, frame, frame.len(), None).unwrap();
    }
    std::fs::write(dir.path().join("x.pcap"), writer.into_inner()).unwrap();
    let output = shadowvm(dir.path(), &["pcap", "anonymize", "x.pcap", "y.pcapng"]);
    assert!(out(&output).contains("2 packets written, 2 addresses"), "{}", out(&output));
    assert!(out(&output).contains("1 packets left out"), "{}", out(&output));
    let bytes = std::fs::read(dir.path().join("y.pcapng")).unwrap();
    for address in [&[10, 0, 0, 7][..], &[192, 0, 2, 10], &[4; 6]] {
        assert!(!bytes.windows(address.len()).any(|window| window == address), "{address:?}");
    }
    // The quoted packet's addresses are those of the packet around it.
    let mut reader = shadowvm::io::pcap::Reader::new(std::io::Cursor::new(bytes)).unwrap();
    let icmp = reader.next().unwrap().unwrap().data.to_vec();
    assert_eq!(icmp[14 + 12..14 + 16], icmp[14 + 28 + 16..14 + 28 + 20]);
    let seen = look(LinkType::ETHERNET, &icmp, icmp.len()).unwrap().what;
    assert!(matches!(seen, What::Ip(_, _, 1)), "{seen:?}");
}
