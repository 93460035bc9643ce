//! Cookies that a recorded server set and a recorded client returned: said again, each server gets
//! back what it has set itself.
//!
//! A first way through the capture finds which cookies those are, by the client's address
//! ([`Cookies`]); while the conversations are said, the [`Jar`] learns what each server has set
//! instead. Whatever servers set that nobody returned is none of it. RFC 6265 4.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytes::Bytes;
use tokio::sync::watch;

use super::capture::{Capture, Unreadable};
use super::pieces::Piece;
use super::place::{Kind, Place};
use super::rules::FieldValue;
use super::talks::Side;
use super::walk::{Index, Listener, Moment, Spot, Walk};
use crate::protocol::Step;
use crate::protocol::framing::trim_blanks;

/// Bytes of cookies that are remembered of a capture; what is set beyond them is not followed.
const COOKIES_BYTES_MAX: usize = 64 << 20;
/// What one takes, besides its name and its value.
const COOKIE_BYTES: usize = 128;

/// Longest value of a `Cookie` field that is looked at.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// A cookie that a recorded server set for a client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cookie {
    client: IpAddr,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Cookie {
    pub(super) fn new(client: IpAddr, (name, value): (&[u8], &[u8])) -> Self {
        Self { client, name: name.to_vec(), value: value.to_vec() }
    }
}

/// Name and value of what a `Set-Cookie` sets.
pub(super) fn set_cookie(field: &[u8]) -> Option<(&[u8], &[u8])> {
    pair(field.split(|&byte| byte == b';').next()?)
}

/// `name=value`
fn pair(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == b'=')?;
    Some((trim_blanks(&text[..at]), trim_blanks(&text[at + 1..])))
}

/// Name and value of each cookie in the value of a `Cookie` field.
pub(super) fn cookies(field: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    field.split(|&byte| byte == b';').filter_map(pair)
}

/// The value of a `Cookie` field, where `instead` tells other values.
pub(super) fn replaced(
    field: &[u8],
    mut instead: impl FnMut((&[u8], &[u8])) -> Option<Vec<u8>>,
) -> Vec<u8> {
    let parts = field.split(|&byte| byte == b';').map(|part| {
        let other = pair(part).and_then(|pair| Some((pair.1, instead(pair)?)));
        let Some((value, other)) = other else { return part.to_vec() };
        // The value is a slice of the part.
        let begin = value.as_ptr().addr() - part.as_ptr().addr();
        [&part[..begin], &other, &part[begin + value.len()..]].concat()
    });
    parts.collect::<Vec<_>>().join(&b';')
}

/// What of a capture's cookies clients returned.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    /// The conversation in which each was first set.
    returned: BTreeMap<Cookie, usize>,
    /// What a conversation returns that another one was given.
    needs: BTreeMap<usize, BTreeSet<usize>>,
}

impl Cookies {
    /// Reads the conversations for which `is_asked` holds.
    pub(super) fn find(
        capture: &Capture,
        index: &Index,
        is_asked: impl Fn(usize) -> bool,
    ) -> Result<Self, Unreadable> {
        let wanted = (0..index.talks.list().len()).map(is_asked).collect();
        let mut finder = Finder {
            index,
            places: BTreeMap::new(),
            set: BTreeMap::new(),
            set_bytes: 0,
            found: Self::default(),
        };
        let mut walk = Walk::begin(capture, Some(index))?.only(wanted);
        while walk.step(&mut finder) {}
        Ok(finder.found)
    }

    /// Whether no client returned any.
    pub(super) fn is_empty(&self) -> bool {
        self.returned.is_empty()
    }

    /// The conversations whose cookies this one returns.
    pub(super) fn needs(&self, talk: usize) -> impl Iterator<Item = usize> {
        self.needs.get(&talk).into_iter().flatten().copied()
    }
}

struct Finder<'i> {
    index: &'i Index,
    places: BTreeMap<usize, Place>,
    set: BTreeMap<Cookie, usize>,
    set_bytes: usize,
    found: Cookies,
}

impl Finder<'_> {
    fn note(&mut self, talk: usize, side: Side, field: &[u8]) {
        let client = self.index.talks.list()[talk].address(Side::Client).ip();
        if side == Side::Server {
            let Some(cookie) = set_cookie(field).map(|pair| Cookie::new(client, pair)) else {
                return;
            };
            let bytes = COOKIE_BYTES + cookie.name.len() + cookie.value.len();
            if self.set_bytes + bytes <= COOKIES_BYTES_MAX && !self.set.contains_key(&cookie) {
                self.set_bytes += bytes;
                self.set.insert(cookie, talk);
            }
            return;
        }
        for pair in cookies(field) {
            let cookie = Cookie::new(client, pair);
            if let Some(&setter) = self.set.get(&cookie) {
                self.found.returned.insert(cookie, setter);
                if setter != talk {
                    self.found.needs.entry(talk).or_default().insert(setter);
                }
            }
        }
    }
}

impl Listener for Finder<'_> {
    fn bytes(&mut self, spot: Spot, bytes: &[u8], _: Moment) {
        let fresh = || Place::new(Kind::Any).noting();
        let place = self.places.entry(spot.talk).or_insert_with(fresh);
        place.read_http(spot.side, bytes);
        for (_, field) in place.take_notes(spot.side, u64::MAX) {
            self.note(spot.talk, spot.side, &field);
        }
    }
}

/// Finds the cookies in what a client says.
#[derive(Debug)]
pub(super) struct Returning {
    finder: FieldValue,
    /// The value that is not yet whole.
    value: Option<Vec<u8>>,
}

impl Returning {
    pub(super) fn new() -> Self {
        Self { finder: FieldValue::cookie(), value: None }
    }

    /// What is said next, in pieces; a value whose end was not said yet waits for it.
    pub(super) fn cut(&mut self, mut bytes: Bytes) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            if let Some(value) = &mut self.value {
                let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
                value.extend_from_slice(&bytes.split_to(end.unwrap_or(bytes.len())));
                if end.is_some() {
                    self.finder.on_span();
                    pieces.extend(self.value.take().map(Piece::Cookies));
                } else if value.len() > VALUE_BYTES_MAX {
                    self.finder.give_up();
                    pieces.extend(self.rest());
                }
                continue;
            }
            let plain = match self.finder.read(&bytes) {
                Step::Plain => bytes.len(),
                Step::Span { after, .. } => {
                    self.value = Some(Vec::new());
                    after
                }
            };
            pieces.push(Piece::Plain(bytes.split_to(plain)));
        }
        pieces
    }

    /// What waits for its end, which does not come.
    pub(super) fn rest(&mut self) -> Option<Piece> {
        self.value.take().map(|value| Piece::Plain(value.into()))
    }
}

/// What the servers set instead of what the recorded one did.
#[derive(Debug)]
pub(super) struct Jar {
    set: watch::Sender<BTreeMap<Cookie, Instead>>,
    setters: BTreeMap<usize, Vec<Cookie>>,
}

/// What each server set instead of a cookie.
#[derive(Clone, Debug, Default)]
struct Instead {
    /// Nothing more will be learned but by another answer.
    is_known: bool,
    values: [Option<Vec<u8>>; 2],
}

impl Jar {
    /// An empty one for the cookies that are returned.
    pub(super) fn new(cookies: &Cookies) -> Self {
        let mut setters: BTreeMap<usize, Vec<Cookie>> = BTreeMap::new();
        for (cookie, setter) in &cookies.returned {
            setters.entry(*setter).or_default().push(cookie.clone());
        }
        let set = cookies.returned.keys().map(|cookie| (cookie.clone(), Instead::default()));
        Self { set: watch::channel(set.collect()).0, setters }
    }

    /// Where the recorded server set `cookie`, these values were set.
    pub(super) fn learn(&self, cookie: &Cookie, values: [Option<Vec<u8>>; 2]) {
        self.set.send_if_modified(|set| {
            let Some(instead) = set.get_mut(cookie) else { return false };
            instead.is_known = true;
            for (old, new) in instead.values.iter_mut().zip(values) {
                *old = new.or(old.take());
            }
            true
        });
    }

    /// A conversation is over: what it has not set it never will.
    pub(super) fn over(&self, talk: usize) {
        let Some(cookies) = self.setters.get(&talk) else { return };
        self.set.send_modify(|set| {
            for cookie in cookies {
                if let Some(instead) = set.get_mut(cookie) {
                    instead.is_known = true;
                }
            }
        });
    }

    /// Waits until it is known what was set instead of each of these; those of which nothing has
    /// to be known are no obstacle.
    pub(super) async fn known(&self, cookies: &[Cookie]) {
        let mut hears = self.set.subscribe();
        let is_known = |set: &BTreeMap<Cookie, Instead>| {
            cookies.iter().all(|cookie| set.get(cookie).is_none_or(|instead| instead.is_known))
        };
        // The sender lives as long as this.
        let _ = hears.wait_for(is_known).await;
    }

    /// Whether this was set by a recorded server; what a server has set instead.
    pub(super) fn instead(&self, cookie: &Cookie, file: usize) -> Option<Option<Vec<u8>>> {
        self.set.borrow().get(cookie).map(|instead| instead.values[file].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_replaced_where_they_stand() {
        let field = b"a=1; b = 2;c;d=\"3\" ; a=4";
        let instead = |(name, value): (&[u8], &[u8])| match (name, value) {
            (b"a", b"1") => Some(b"long".to_vec()),
            (b"d", _) => Some(Vec::new()),
            _ => None,
        };
        assert_eq!(replaced(field, instead), b"a=long; b = 2;c;d= ; a=4");
        assert_eq!(replaced(field, |_| None), field);
        assert_eq!(set_cookie(b"sid= x ; Path=/; a=b"), Some((&b"sid"[..], &b"x"[..])));
        assert_eq!(set_cookie(b"nothing"), None);
    }

    #[test]
    fn cookies_are_found_however_a_request_is_cut() {
        let request = b"GET / HTTP/1.1\r\nCookie: a=1; b=2\r\nX: y\r\n\r\n\
            POST / HTTP/1.1\r\nContent-Length: 10\r\ncookie:c=3\r\n\r\nCookie:d=4";
        for len in 1..request.len() {
            let mut returning = Returning::new();
            let (mut said, mut values) = (Vec::new(), Vec::new());
            for piece in request.chunks(len) {
                for piece in returning.cut(Bytes::from_static(piece)) {
                    match piece {
                        Piece::Plain(bytes) | Piece::Door(bytes, _) => {
                            said.extend_from_slice(&bytes);
                        }
                        Piece::Cookies(value) => {
                            said.extend_from_slice(&value);
                            values.push(value);
                        }
                    }
                }
            }
            assert_eq!(values, [&b"a=1; b=2"[..], b"c=3"], "{len}");
            assert_eq!(said, request);
        }
    }
}
