//! Two pieces of a stream side by side, as text or as hex, the first difference marked.

use std::fmt::Write;

/// A piece of a stream around a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The bytes; what was not captured is `?`.
    pub bytes: Vec<u8>,
    /// Position of the first of them.
    pub from: u64,
    /// The position that matters; behind the last byte if the stream ends there.
    pub at: u64,
}

impl Window {
    /// Bytes kept before the position, and from it on.
    pub const BEFORE: u64 = 96;
    /// See [`Self::BEFORE`].
    pub const AFTER: u64 = 160;

    /// An empty one around `at`.
    pub const fn around(at: u64) -> Self {
        Self { bytes: Vec::new(), from: at.saturating_sub(Self::BEFORE), at }
    }

    /// Keeps what lies in the window of bytes that begin at `at` and come in order.
    pub fn keep(&mut self, at: u64, bytes: &[u8]) {
        let next = self.from + self.bytes.len() as u64;
        let end = self.at + Self::AFTER;
        if at > next || next >= end {
            return;
        }
        let skip = usize::try_from(next - at).unwrap_or(usize::MAX);
        let rest = bytes.get(skip..).unwrap_or_default();
        let len = rest.len().min((end - next) as usize);
        self.bytes.extend_from_slice(&rest[..len]);
    }

    /// Bytes that are missing.
    pub fn keep_hole(&mut self, at: u64, len: u64) {
        let next = self.from + self.bytes.len() as u64;
        let end = (at + len).min(self.at + Self::AFTER);
        if at <= next && next < end {
            self.bytes.resize(self.bytes.len() + (end - next) as usize, b'?');
        }
    }

    /// Whether nothing more belongs into it.
    pub const fn is_full(&self) -> bool {
        self.from + self.bytes.len() as u64 >= self.at + Self::AFTER
    }

    /// The bytes from the position on.
    pub fn rest(&self) -> &[u8] {
        self.bytes.get(self.before()..).unwrap_or_default()
    }

    fn before(&self) -> usize {
        (self.at - self.from) as usize
    }

    fn is_text(&self) -> bool {
        let is_text = |byte: &&u8| matches!(**byte, 0x20..0x7f | b'\r' | b'\n' | b'\t');
        let text = self.bytes.iter().filter(is_text).count();
        text * 10 >= self.bytes.len() * 9
    }
}

/// Bytes that are text, fit for a terminal: a capture may hold anything, and a terminal obeys some
/// of it.
pub fn printable(bytes: &[u8]) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    String::from_utf8_lossy(bytes).chars().map(shown).collect()
}

/// How bytes are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Text where it is text.
    #[default]
    Auto,
    /// Text.
    Text,
    /// Hex.
    Hex,
}

/// Columns of one side of the text view.
const TEXT_COLUMNS: usize = 44;
/// Bytes in a line of one side of the hex view.
const HEX_BYTES: usize = 8;
/// Lines before and behind the one that matters.
const LINES_AROUND: usize = 3;

/// Both windows, line by line.
pub fn side_by_side(ours: &Window, theirs: &Window, view: View) -> String {
    let is_text = match view {
        View::Auto => ours.is_text() && theirs.is_text(),
        View::Text => true,
        View::Hex => false,
    };
    if is_text { text(ours, theirs) } else { hex(ours, theirs) }
}

/// One side's lines, and which of them matters with the column in it.
struct Lines {
    lines: Vec<String>,
    mark: (usize, usize),
}

fn text(ours: &Window, theirs: &Window) -> String {
    let sides = [lines(ours), lines(theirs)];
    let mut out = String::new();
    for step in 0..=2 * LINES_AROUND {
        let cells = sides.each_ref().map(|side| {
            let at = (side.mark.0 + step).checked_sub(LINES_AROUND);
            at.and_then(|at| side.lines.get(at))
        });
        if cells.iter().all(Option::is_none) {
            continue;
        }
        let [a, b] = cells.map(|cell| cell.map_or("", String::as_str));
        let _ = writeln!(out, "{}", format!("{a:TEXT_COLUMNS$} | {b}").trim_end());
        if step == LINES_AROUND {
            let [a, b] = sides.each_ref().map(|side| format!("{:>1$}", "^", side.mark.1 + 1));
            let _ = writeln!(out, "{}", format!("{a:TEXT_COLUMNS$} | {b}").trim_end());
        }
    }
    out
}

/// The lines of a window, escaped; a long one is cut into several.
fn lines(window: &Window) -> Lines {
    let mut lines = vec![String::new()];
    let mut mark = (0, 0);
    let (mut columns, last) = (0, window.bytes.len());
    for (index, byte) in window.bytes.iter().copied().map(Some).chain([None]).enumerate() {
        let shown = match byte {
            None => String::new(),
            Some(b'\r') => "\\r".into(),
            Some(b'\n') => "\\n".into(),
            Some(b'\t') => "\\t".into(),
            Some(byte @ 0x20..0x7f) => char::from(byte).into(),
            Some(byte) => format!("\\x{byte:02x}"),
        };
        if columns + shown.len() > TEXT_COLUMNS {
            lines.push(String::new());
            columns = 0;
        }
        if index == window.before().min(last) {
            mark = (lines.len() - 1, columns);
        }
        columns += shown.len();
        if let Some(line) = lines.last_mut() {
            line.push_str(&shown);
        }
        if byte == Some(b'\n') {
            lines.push(String::new());
            columns = 0;
        }
    }
    Lines { lines, mark }
}

fn hex(ours: &Window, theirs: &Window) -> String {
    let mut out = String::new();
    let lines = |window: &Window| (window.bytes.len() / HEX_BYTES) + 1;
    let of = |window: &Window| {
        // The position stands in the first column or a few behind it, at a multiple of eight.
        let skip = (HEX_BYTES - (window.from as usize % HEX_BYTES)) % HEX_BYTES;
        let at_line = window.before().saturating_sub(skip) / HEX_BYTES;
        (skip, at_line)
    };
    let sides = [(ours, of(ours)), (theirs, of(theirs))];
    let most = lines(ours).max(lines(theirs));
    for step in 0..=2 * LINES_AROUND {
        let cells = sides.map(|(window, (skip, at_line))| {
            let line = (at_line + step).checked_sub(LINES_AROUND).filter(|line| *line <= most);
            let from = line.map(|line| skip + line * HEX_BYTES);
            from.and_then(|from| Some((window, from, window.bytes.get(from..)?)))
        });
        if cells.iter().all(|cell| cell.is_none_or(|(_, _, rest)| rest.is_empty())) {
            continue;
        }
        let [a, b] = cells.map(|cell| {
            let Some((window, from, rest)) = cell else { return String::new() };
            let bytes = &rest[..rest.len().min(HEX_BYTES)];
            let mark = window.before().checked_sub(from).filter(|mark| *mark < HEX_BYTES);
            hex_line(window.from + from as u64, bytes, mark)
        });
        let _ = writeln!(out, "{}", format!("{a:TEXT_COLUMNS$} | {b}").trim_end());
    }
    out
}

/// `00001234  01 02[03]04 05 06 07 08  ........`
fn hex_line(at: u64, bytes: &[u8], mark: Option<usize>) -> String {
    let mut line = format!("{at:08x} ");
    for index in 0..HEX_BYTES {
        let before = match mark {
            Some(mark) if mark == index => '[',
            Some(mark) if mark + 1 == index => ']',
            _ => ' ',
        };
        line.push(before);
        match bytes.get(index) {
            Some(byte) => {
                let _ = write!(line, "{byte:02x}");
            }
            None => line.push_str("  "),
        }
    }
    line.push(if mark == Some(HEX_BYTES - 1) { ']' } else { ' ' });
    line.push(' ');
    line.extend(bytes.iter().map(|&byte| match byte {
        0x20..0x7f => char::from(byte),
        _ => '.',
    }));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(all: &[u8], at: u64, piece: usize) -> Window {
        let mut window = Window::around(at);
        let mut place = 0;
        for bytes in all.chunks(piece) {
            window.keep(place, bytes);
            place += bytes.len() as u64;
        }
        window
    }

    #[test]
    fn a_window_is_what_lies_around_the_position() {
        let all: Vec<u8> = (0..1000u32).map(|x| (x % 251) as u8).collect();
        for piece in [1, 7, 96, 1000] {
            for at in [0u64, 5, 500, 990, 1000] {
                let found = window(&all, at, piece);
                let from = at.saturating_sub(Window::BEFORE) as usize;
                let to = (at + Window::AFTER).min(1000) as usize;
                assert_eq!(found.bytes, &all[from..to], "{piece} {at}");
                assert_eq!(found.rest(), &all[at as usize..to]);
            }
        }
    }

    #[test]
    fn text_has_a_mark_below_the_difference() {
        let ours = window(b"HTTP/1.1 200 OK\r\nETag: \"one\"\r\n\r\n", 25, 9);
        let theirs = window(b"HTTP/1.1 200 OK\r\nETag: \"ane\"\r\n\r\n", 25, 9);
        let shown = side_by_side(&ours, &theirs, View::Auto);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[1].find("one"), Some(7));
        assert_eq!(lines[2].find('^'), Some(8));
        assert_eq!(lines[1].find("ane"), Some(TEXT_COLUMNS + 3 + 7));
        assert_eq!(lines[2].rfind('^'), Some(TEXT_COLUMNS + 3 + 8));
    }

    #[test]
    fn nothing_of_a_capture_commands_a_terminal() {
        assert_eq!(printable(b"GET /\x1b[2J\xc2\x9b\x07 caf\xc3\xa9"), "GET /?[2J?? caf\u{e9}");
    }

    #[test]
    fn hex_marks_the_byte() {
        let all: Vec<u8> = (0..=255).collect();
        for at in 0..256u64 {
            let ours = window(&all, at, 50);
            let shown = side_by_side(&ours, &ours, View::Hex);
            let mark = format!("[{at:02x}");
            assert_eq!(shown.matches(&mark).count(), 2, "{shown}");
            let line = shown.lines().find(|line| line.contains(&mark)).expect("a line");
            assert!(line.starts_with(&format!("{:08x}", at / 8 * 8)), "{line}");
        }
        let ended = Window { bytes: vec![1, 2], from: 0, at: 2 };
        side_by_side(&ended, &window(&all, 2, 50), View::Hex);
        side_by_side(&Window::around(7), &Window::around(9), View::Text);
    }
}
