//! What stands between the data of two chunks is read as a naive reader has it, and a line that was
//! begun is completed to one that he can read.

use shadowvm::protocol::chunks::{Line, completed, line};
use shadowvm::protocol::framing::{Framing, Part};

use super::reader::Reader;

/// Bytes of data at hand (two bytes), then what a server says behind a chunk's data.
pub fn target(data: &[u8]) -> bool {
    let mut input = Reader::new(data);
    let (left, said) = (u64::from(input.u16()), input.rest());
    let read = line(Framing::behind_chunk(), said.iter().copied());
    let whole = match &read {
        Line::Whole(text, framing) => {
            assert!(said.starts_with(text));
            let size = naive(text).expect("a line that a naive reader can read");
            assert_eq!(framing.chunk_left(), size);
            assert_eq!(matches!(framing.part(), Part::Trailer), size == 0);
            text.len()
        }
        Line::Open => said.len() + 1,
        Line::Bad => said.len(),
    };
    let mut framing = Framing::behind_chunk();
    for (n, byte) in said.iter().take(whole.saturating_sub(1)).enumerate() {
        if framing.part() == Part::Lost {
            assert!(matches!(read, Line::Bad));
            return false;
        }
        let begun = &said[..n];
        assert!(!matches!(line(Framing::behind_chunk(), begun.iter().copied()), Line::Whole(..)));
        if let Some((rest, behind)) = completed(&framing, left) {
            let size = naive(&[begun, &rest].concat()).expect("it is completed to a line");
            assert_eq!((behind.chunk_left(), size > 0), (size, left > 0));
        }
        framing.push(*byte);
        if matches!(framing.part(), Part::Chunk(_) | Part::Trailer) {
            break; // a line, although one beyond the limit
        }
    }
    matches!(read, Line::Whole(..))
}

/// The size in a whole line with the CR LF before it.
fn naive(text: &[u8]) -> Option<u64> {
    let text = text.strip_prefix(b"\r\n")?.strip_suffix(b"\r\n")?;
    let is_one_line = !text.iter().any(|byte| matches!(byte, b'\r' | b'\n'));
    let size = std::str::from_utf8(text.split(|&byte| byte == b';').next()?).ok()?;
    let size = size.trim_matches([' ', '\t']);
    let is_size = is_one_line && size.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(size, 16).ok().filter(|_| is_size)
}

/// Lines of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines: [&[u8]; 6] = [
        b"\r\n1f\r\nX",
        b"\r\n0\r\n\r\n",
        b"\r\n001F ;a=\"b;\"\r\nX",
        b"\r\n2;\r\nX",
        b"\r\n000;x=y\r\nT: 1\r\n\r\n",
        b"\r\n12345678\r\n",
    ];
    let seed = |line: &&[u8]| [&[1, 44][..], line].concat();
    lines.iter().map(seed).collect()
}
