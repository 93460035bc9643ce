//! The reader of FTP finds the same values in the same bytes however they are cut.

use shadowvm::protocol::ftp::Ftp;
use shadowvm::protocol::{Normalizer, RawReason, Step};

use super::reader::Reader;

/// The length of the pieces of commands and of replies (a byte each), the length of the commands,
/// the commands, the replies.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let [asked, answered] = [input.u8(), input.u8()].map(|len| usize::from(len).max(1));
    let len = input.u16();
    let (commands, replies) = (input.take(len.into()), input.rest());
    let whole = read((commands, usize::MAX), (replies, usize::MAX));
    for (asked, answered) in [(asked, answered), (1, 1)] {
        assert_eq!(read((commands, asked), (replies, answered)), whole);
    }
    for spans in whole.spans.windows(2) {
        assert!(spans[0].0 + spans[0].1 < spans[1].0, "one value a line: {spans:?}");
    }
    let is_value = |b: &u8| !matches!(b, b'\r' | b'\n');
    assert!(whole.spans.iter().all(|&(at, len, _)| replies[at..at + len].iter().all(is_value)));
    !whole.spans.is_empty()
}

/// What a reader makes of one control connection.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    /// Place, length and rule of each value.
    spans: Vec<(usize, usize, u16)>,
    /// The ports that servers have announced.
    ports: Vec<u16>,
    is_complete: Option<bool>,
    raw: Option<RawReason>,
}

/// Feeds the commands, then the replies, in pieces of these lengths.
fn read(commands: (&[u8], usize), replies: (&[u8], usize)) -> Reading {
    let mut ftp = Ftp::new(true);
    commands.0.chunks(commands.1).for_each(|piece| ftp.on_request(piece));
    let (bytes, every) = replies;
    let (mut at, mut end) = (0, 0);
    let (mut spans, mut ports) = (Vec::new(), Vec::new());
    while at < bytes.len() {
        while end <= at {
            end = end.saturating_add(every).min(bytes.len());
        }
        match ftp.on_response(&bytes[at..end]) {
            Step::Plain => at = end,
            Step::Span { after, rule } => {
                at += after;
                let mut rest = bytes[at..].iter().enumerate();
                let len = rest.position(|(i, &byte)| !ftp.is_in_span(rule, i, byte));
                let len = len.unwrap_or(bytes.len() - at);
                let value = &bytes[at..at + len];
                assert!(ftp.field(value).is_some());
                let announced = ftp.announced(rule, value);
                assert_eq!(announced.is_some(), ftp.may_differ(rule, value, value) && rule < 2);
                ports.extend(announced.map(|announced| announced.port));
                spans.push((at, len, rule));
                ftp.on_span(len);
                at += len;
            }
        }
    }
    Reading { spans, ports, is_complete: ftp.is_complete(), raw: ftp.raw() }
}

/// Dialogues with a value of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let dialogues: [(&[u8], &[u8]); 4] = [
        (
            b"USER x\r\nPASV\r\nRETR y\r\n",
            b"220-a\r\n220 b\r\n331 x\r\n227 Entering Passive Mode (192,0,2,10,4,1).\r\n\
              150 Here\r\n226-sent\r\n226 1.5 s\r\n",
        ),
        (b"epsv\r\nQUIT\r\n", b"220 x\r\n229 Extended (|||4097|)\r\n221-a\r\n b\r\n221 c\r\n"),
        (
            b"STAT\r\nSTAT /\r\n",
            b"220 x\r\n211-Status:\r\n     now\r\n2\r\n211 End\r\n213-Status:\r\n\
              -rw-r--r--    1 0        0             100 Nov 22 04:55 f\r\n213 End\r\n",
        ),
        (
            b"\xff\xfb\x01PASV\r\n\xff\xf4\xff\xf2ABOR\r\nAUTH TLS\r\n",
            b"220 x\r\n227 1,2,3,4,5,6\r\n426 x\r\n234 x\r\n\x16\x03",
        ),
    ];
    let seed = |(commands, replies): (&[u8], &[u8])| {
        let len = (commands.len() as u16).to_be_bytes();
        [&[7, 5][..], &len, commands, replies].concat()
    };
    dialogues.into_iter().map(seed).collect()
}
