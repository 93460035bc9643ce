//! Reads typed values out of a TOML document and notes every mistake with its place.
//!
//! Owns the table of keys. It never stops at the first mistake, and knows nothing of what the
//! values mean together.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, nearest};
use crate::engine::Duration;

/// Every section with its keys. The key `rule` of `compare` and the sections themselves are
/// tables.
pub(super) const KEYS: &[(&str, &[&str])] = &[
    ("gateway", &["mode"]),
    ("links", &["client", "a", "b"]),
    ("service", &["name", "addressing", "address", "ports", "source", "servers"]),
    ("server", &["name", "role", "address", "dir", "dir_command", "agent", "container"]),
    ("agent", &["key", "limit"]),
    ("network", &["client", "next_hop", "a", "b"]),
    (
        "compare",
        &[
            "hold_soft",
            "hold_hard",
            "on_lag",
            "udp",
            "http_defaults",
            "ftp_ports",
            "ftp_defaults",
            "opaque",
            "opaque_ports",
            "rule",
        ],
    ),
    ("compare.rule", &["protocol", "header", "name", "action", "synced"]),
    (
        "sync",
        &[
            "backend",
            "command",
            "deadline",
            "min_gap",
            "timeout",
            "exclude",
            "watch",
            "compare",
            "fsync",
            "qemu",
            "container",
        ],
    ),
    ("sync.container", &["criu", "dir"]),
    (
        "sync.qemu",
        &[
            "program",
            "accel",
            "memory",
            "cpus",
            "kernel",
            "initrd",
            "append",
            "mac",
            "args",
            "dir",
            "copy",
            "memory_dir",
            "downtime",
        ],
    ),
    (
        "failover",
        &[
            "auto",
            "probe_every",
            "probe_address",
            "probe_http",
            "flap_max",
            "flap_window",
            "reprotect",
            "fence",
            "fence_command",
            "fence_timeout",
        ],
    ),
    (
        "limits",
        &[
            "flows_max",
            "flows_per_source_max",
            "half_open_max",
            "half_open_per_source_max",
            "hold_bytes_max",
        ],
    ),
    ("capture", &["record"]),
    ("evidence", &["write", "dir", "files_max", "bytes_max", "age_max", "ring_bytes", "ring_time"]),
    ("state", &["file"]),
    ("admin", &["socket"]),
    ("log", &["format", "level", "events"]),
    ("run", &["user", "uid", "gid"]),
    ("security", &["sandbox"]),
];

/// Keys that a later version will know: saying so is kinder than "unknown".
const LATER: &[(&str, &str)] =
    &[("gateway", "workers"), ("capture", "on_event"), ("capture", "dir"), ("admin", "http")];

/// Where a value stands.
pub(super) type At = Option<Range<usize>>;

/// The document and the mistakes found in it so far.
pub(super) struct Reader<'a> {
    source: &'a str,
    problems: RefCell<Vec<Problem>>,
    /// After a syntax error nothing is reported as missing: it may stand in the damaged part.
    has_syntax_error: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a str, syntax: &[toml::de::Error]) -> Self {
        let problems = syntax
            .iter()
            .map(|error| Problem::new(source, error.span(), "", error.message()))
            .collect();
        Self { source, problems: RefCell::new(problems), has_syntax_error: !syntax.is_empty() }
    }

    /// Notes a mistake.
    pub(super) fn wrong(&self, at: At, key: &str, reason: impl AsRef<str>) {
        self.push(Problem::new(self.source, at, key, reason.as_ref()));
    }

    /// Notes a mistake and what to do.
    pub(super) fn wrong_help(&self, at: At, key: &str, reason: impl AsRef<str>, help: &str) {
        self.push(Problem::new(self.source, at, key, reason.as_ref()).help(help));
    }

    /// Notes that something required is not there.
    pub(super) fn missing(&self, at: At, key: &str, help: &str) {
        if !self.has_syntax_error {
            self.wrong_help(at, key, "missing", help);
        }
    }

    fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// All mistakes, in the order of their lines; those without a line last.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut list = self.problems.into_inner();
        list.sort_by_key(|p| (p.line.unwrap_or(usize::MAX), p.column));
        list
    }
}

/// One table of the document, with the name it has in [`KEYS`].
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    name: &'static str,
    table: Option<&'a DeTable<'a>>,
    /// Where its header stands.
    pub(super) at: At,
}

impl<'a> Section<'a> {
    /// The section `name` at the top of the document; an empty one if it is not there.
    pub(super) fn top(reader: &'a Reader<'a>, root: &'a DeTable<'a>, name: &'static str) -> Self {
        let none = Self { reader, name, table: None, at: None };
        let Some((key, value)) = root.get_key_value(name) else { return none };
        Self::of(reader, name, value, Some(key.span())).unwrap_or(none)
    }

    /// Where `key` of the section `name` stands, without judging that section again.
    pub(super) fn top_quiet(root: &DeTable<'_>, name: &str, key: &str) -> At {
        root.get(name)?.get_ref().as_table()?.get(key).map(Spanned::span)
    }

    /// Each element of the array of tables `name`; a lone table counts as one element.
    pub(super) fn each(
        reader: &'a Reader<'a>,
        root: &'a DeTable<'a>,
        key: &str,
        name: &'static str,
    ) -> Vec<Self> {
        let Some((at, value)) = root.get_key_value(key) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(list) => {
                list.iter().filter_map(|v| Self::of(reader, name, v, Some(v.span()))).collect()
            }
            _ => Self::of(reader, name, value, Some(at.span())).into_iter().collect(),
        }
    }

    fn of(
        reader: &'a Reader<'a>,
        name: &'static str,
        value: &'a Spanned<DeValue<'a>>,
        at: At,
    ) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            let what = type_name(value.get_ref());
            reader.wrong_help(
                at,
                name,
                format!("is {what}, not a section"),
                &format!("write it as a section: [{name}]"),
            );
            return None;
        };
        let section = Self { reader, name, table: Some(table), at };
        section.refuse_unknown();
        Some(section)
    }

    fn refuse_unknown(&self) {
        let known = keys_of(self.name);
        for key in self.table.into_iter().flat_map(|t| t.keys()) {
            let word = key.get_ref().as_ref();
            if !known.contains(&word) {
                let full = self.full(word);
                let (reason, help) = explain_unknown(self.name, word);
                self.reader.wrong_help(Some(key.span()), &full, reason, &help);
            }
        }
    }

    /// Whether it stands in the document.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// The table itself, for nested ones.
    pub(super) fn table(&self) -> Option<&'a DeTable<'a>> {
        self.table
    }

    /// The full name of `key`.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// Where the value of `key` stands.
    pub(super) fn at(&self, key: &str) -> At {
        self.value(key).map(Spanned::span)
    }

    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(keys_of(self.name).contains(&key), "{}.{key} is not in KEYS", self.name);
        self.table?.get(key)
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, want: &str) {
        let reason = format!("is {}, expected {want}", type_name(value.get_ref()));
        self.reader.wrong(Some(value.span()), &self.full(key), reason);
    }

    /// A string.
    pub(super) fn string(&self, key: &str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            _ => {
                self.wrong_type(key, value, "a string in quotes");
                None
            }
        }
    }

    /// A string that is not empty and has no control characters, such as a path.
    pub(super) fn path(&self, key: &str) -> Option<std::path::PathBuf> {
        let text = self.string(key)?;
        if text.is_empty() || text.chars().any(char::is_control) {
            self.reader.wrong(self.at(key), &self.full(key), "is not a path");
            return None;
        }
        Some(text.into())
    }

    /// True or false.
    pub(super) fn flag(&self, key: &str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        match value.get_ref() {
            DeValue::Boolean(flag) => *flag,
            _ => {
                self.wrong_type(key, value, "true or false");
                default
            }
        }
    }

    /// An integer within `range`.
    pub(super) fn integer(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let number = integer_of(value.get_ref());
        if !matches!(value.get_ref(), DeValue::Integer(_)) {
            self.wrong_type(key, value, "a whole number");
            return None;
        }
        self.within(key, number, &range, |n| n.to_string())
    }

    /// A number of bytes within `range`: an integer, or a string such as "64MiB".
    pub(super) fn bytes(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(_) => integer_of(value.get_ref()),
            DeValue::String(text) => match parse_bytes(text) {
                Some(number) => Some(number),
                None => {
                    self.reader.wrong_help(
                        Some(value.span()),
                        &self.full(key),
                        format!("`{text}` is not a size"),
                        "write a number of bytes, or for example \"64MiB\" or \"1GiB\"",
                    );
                    return None;
                }
            },
            _ => {
                self.wrong_type(key, value, "a size such as \"64MiB\"");
                return None;
            }
        };
        self.within(key, number, &range, show_bytes)
    }

    /// A time within `range`, such as "150ms".
    pub(super) fn duration(
        &self,
        key: &str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(value) = self.value(key) else { return default };
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, value, "a time with its unit in quotes, such as \"150ms\"");
            return default;
        };
        let Some(time) = parse_duration(text) else {
            self.reader.wrong_help(
                Some(value.span()),
                &self.full(key),
                format!("`{text}` is not a time"),
                "write a number and a unit: \"500us\", \"150ms\", \"2s\", \"1m\"",
            );
            return default;
        };
        self.within(key, Some(time), &range, show_duration).unwrap_or(default)
    }

    fn within<T: PartialOrd + Copy>(
        &self,
        key: &str,
        value: Option<T>,
        range: &RangeInclusive<T>,
        show: impl Fn(T) -> String,
    ) -> Option<T> {
        if let Some(value) = value.filter(|v| range.contains(v)) {
            return Some(value);
        }
        let reason = format!("must be {} to {}", show(*range.start()), show(*range.end()));
        self.reader.wrong(self.at(key), &self.full(key), reason);
        None
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(key)?;
        if let Some(&(_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(value);
        }
        let all: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        let help = match nearest(&text, words.iter().map(|(word, _)| *word)) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("choose one of {}", all.join(", ")),
        };
        let reason = format!("`{text}` is not one of {}", all.join(", "));
        self.reader.wrong_help(self.at(key), &self.full(key), reason, &help);
        None
    }

    /// Whether the value of `key` is a list without elements.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        self.value(key)
            .and_then(|value| value.get_ref().as_array())
            .is_some_and(|list| list.is_empty())
    }

    /// A list of strings, each with its place; a lone string is a list of one if `lone_is_list`.
    pub(super) fn strings(&self, key: &str, lone_is_list: bool) -> Option<Vec<(String, At)>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) if lone_is_list => {
                Some(vec![(text.to_string(), Some(value.span()))])
            }
            DeValue::Array(list) => {
                let mut strings = Vec::new();
                for element in list {
                    match element.get_ref() {
                        DeValue::String(text) => {
                            strings.push((text.to_string(), Some(element.span())));
                        }
                        _ => self.wrong_type(key, element, "a string in quotes"),
                    }
                }
                Some(strings)
            }
            _ => {
                self.wrong_type(key, value, "a list of strings");
                None
            }
        }
    }

    /// A list of integers within `range` or strings, each with its place; a lone one is a list of
    /// one.
    pub(super) fn items(&self, key: &str, range: RangeInclusive<u64>) -> Option<Vec<(Item, At)>> {
        let value = self.value(key)?;
        let lone = std::slice::from_ref(value);
        let elements: &[Spanned<DeValue<'_>>] = match value.get_ref() {
            DeValue::Array(list) => list,
            DeValue::Integer(_) | DeValue::String(_) => lone,
            _ => {
                self.wrong_type(key, value, "a list of whole numbers");
                return None;
            }
        };
        let mut items = Vec::new();
        for element in elements {
            let at = Some(element.span());
            match (element.get_ref(), integer_of(element.get_ref())) {
                (_, Some(number)) if range.contains(&number) => {
                    items.push((Item::Number(number), at));
                }
                (DeValue::String(text), _) => items.push((Item::Text(text.to_string()), at)),
                _ => {
                    let (from, to) = (range.start(), range.end());
                    let reason = format!("each must be a whole number, {from} to {to}");
                    self.reader.wrong(at, &self.full(key), reason);
                }
            }
        }
        Some(items)
    }
}

/// An element of a list.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// A whole number.
    Number(u64),
    /// A string.
    Text(String),
}

/// Refuses sections that are not in [`KEYS`].
pub(super) fn refuse_unknown_sections(reader: &Reader<'_>, root: &DeTable<'_>) {
    let top = || KEYS.iter().map(|(name, _)| *name).filter(|name| !name.contains('.'));
    for key in root.keys() {
        let word = key.get_ref().as_ref();
        if top().any(|name| name == word) {
            continue;
        }
        let at = Some(key.span());
        if let Some((section, _)) = KEYS.iter().find(|(_, keys)| keys.contains(&word)) {
            let help = format!("`{word}` belongs below a section header: [{section}]");
            reader.wrong_help(at, word, "key outside of any section", &help);
            continue;
        }
        let help = match nearest(word, top()) {
            Some(name) => format!("did you mean [{name}]?"),
            None => format!("the sections are {}", top().collect::<Vec<_>>().join(", ")),
        };
        reader.wrong_help(at, word, "unknown section", &help);
    }
}

fn explain_unknown(section: &str, word: &str) -> (&'static str, String) {
    if LATER.contains(&(section, word)) {
        return ("not supported by this version", "remove the line".into());
    }
    let known = keys_of(section);
    if let Some(near) = nearest(word, known.iter().copied()) {
        return ("unknown key", format!("did you mean `{near}`?"));
    }
    if let Some((other, _)) = KEYS.iter().find(|(_, keys)| keys.contains(&word)) {
        return ("unknown key here", format!("`{word}` belongs to [{other}]"));
    }
    ("unknown key", format!("the keys of [{section}] are {}", known.join(", ")))
}

fn keys_of(section: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

fn integer_of(value: &DeValue<'_>) -> Option<u64> {
    let DeValue::Integer(number) = value else { return None };
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Units of time, largest last.
const TIMES: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

/// Units of size, largest last.
const SIZES: &[(&str, u64)] =
    &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// A time such as "150ms" or "1.5s".
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    parse_unit(text, TIMES).map(Duration::from_nanos)
}

/// A size such as "64MiB"; a number alone is bytes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok().or_else(|| parse_unit(text, SIZES))
}

fn parse_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(split);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut total = whole.parse::<u64>().ok()?.checked_mul(*scale)?;
    if number.contains('.') && (fraction.is_empty() || fraction.len() > 9) {
        return None;
    }
    if !fraction.is_empty() {
        let part = fraction.parse::<u64>().ok()?.checked_mul(*scale)?;
        total = total.checked_add(part / 10u64.pow(u32::try_from(fraction.len()).ok()?))?;
    }
    Some(total)
}

/// The shortest exact way to write a time.
pub(super) fn show_duration(time: Duration) -> String {
    show_unit(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), TIMES)
}

/// The shortest exact way to write a size.
pub(super) fn show_bytes(bytes: u64) -> String {
    show_unit(bytes, SIZES)
}

fn show_unit(value: u64, units: &[(&str, u64)]) -> String {
    let fit = units.iter().rev().find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale));
    let (unit, scale) = fit.copied().unwrap_or(units[0]);
    format!("{}{unit}", value / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_read_and_write() {
        assert_eq!(parse_duration("150ms"), Some(Duration::from_millis(150)));
        assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2 m"), Some(Duration::from_secs(120)));
        for wrong in ["", "150", "ms", "-1ms", "1.s", "1d", "1e3s", "99999999999999h", "1.2.3s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
        assert_eq!(parse_bytes("64MiB"), Some(64 << 20));
        assert_eq!(parse_bytes("1000"), Some(1000));
        assert_eq!(parse_bytes("1GB"), None);
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_duration(Duration::from_secs(60)), "1m");
        assert_eq!(show_duration(Duration::ZERO), "0ns");
        assert_eq!(show_bytes(1 << 30), "1GiB");
    }
}
