//! Which values two equal servers may say differently, and where they stand.
//!
//! A *mask* lets a header field differ, a *list* the order of what one lists. A *map* names a token
//! that clients return: the value of a cookie, or of a header field. RFC 6265 for cookies, read
//! more narrowly than it is written: where two readers might see two values, no rule finds one.

use std::sync::Arc;

use super::RuleName;

/// What a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// All of the header field.
    Whole,
    /// The same, which lists what has no order.
    List,
    /// What stands behind `name=` at its beginning, up to the next `;` or blank.
    Named(Box<[u8]>),
    /// When what is called so there is over: behind `; expires=`, up to the next `;`.
    Expiry(Box<[u8]>),
}

/// What of a rule stands at a place in a header line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// Nothing.
    Nothing,
    /// A value begins.
    Value,
    /// What one reader takes for a value, and another one for a part of what is quoted before it.
    Doubt,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Name of the header field in answers, lower case.
    header: Arc<str>,
    value: Value,
    is_map: bool,
    /// A sync of contents makes these values equal.
    is_synced: bool,
    token: Arc<str>,
}

impl Rule {
    /// Lets the header field `header` (lower case) differ.
    pub fn mask(header: impl Into<Arc<str>>) -> Self {
        let header = header.into();
        let token = header.clone();
        Self { token, header, value: Value::Whole, is_map: false, is_synced: false }
    }

    /// Masks for these header fields (lower case).
    pub fn masks<'n>(headers: impl IntoIterator<Item = &'n str>) -> Arc<[Self]> {
        headers.into_iter().map(Self::mask).collect()
    }

    /// Lets the order differ in which the header field `header` (lower case) lists what has none
    /// (RFC 9110 5.6.1).
    pub fn list(header: impl Into<Arc<str>>) -> Self {
        Self { value: Value::List, ..Self::mask(header) }
    }

    /// Lets the header field `header` (lower case), or what is called `name` in it, differ, and
    /// has it returned.
    pub fn map(header: impl Into<Arc<str>>, name: Option<&str>) -> Self {
        let header = header.into();
        let value = name.map_or(Value::Whole, |name| Value::Named(name.as_bytes().into()));
        let token = name.map_or(header.clone(), |name| format!("{header} {name}").into());
        Self { header, value, is_map: true, is_synced: false, token }
    }

    /// For a cookie that is mapped: lets the time differ at which it is over, as `Date` may.
    pub fn expiry(&self) -> Option<Self> {
        let Value::Named(name) = &self.value else { return None };
        let is_cookie = self.is_map && &*self.header == "set-cookie";
        is_cookie.then(|| Self {
            header: self.header.clone(),
            value: Value::Expiry(name.clone()),
            is_map: false,
            is_synced: false,
            token: format!("{} expires", self.token).into(),
        })
    }

    /// The same, where a sync of contents copies what the values stand for.
    pub fn synced(self) -> Self {
        Self { is_synced: true, ..self }
    }

    /// See [`Self::synced`].
    pub const fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// What it is called: the header field and the name in it.
    pub const fn token(&self) -> &Arc<str> {
        &self.token
    }

    /// The same, with the protocol.
    pub fn rule_name(&self) -> RuleName {
        RuleName { protocol: "http", field: self.token.clone() }
    }

    /// The header field in answers, lower case.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// What is meant in it, if not all of it.
    pub fn name(&self) -> Option<&str> {
        match &self.value {
            Value::Whole | Value::List => None,
            Value::Named(name) | Value::Expiry(name) => std::str::from_utf8(name).ok(),
        }
    }

    /// Whether clients return what it names.
    pub const fn is_map(&self) -> bool {
        self.is_map
    }

    /// Whether a value may begin with `next`.
    pub const fn may_begin(&self, next: u8) -> bool {
        !is_blank(next) && !self.ends(next)
    }

    /// Whether `theirs` may stand where `ours` does: a blank before a value is none of it.
    pub fn may_differ(&self, ours: &[u8], theirs: &[u8]) -> bool {
        let begins = |value: &[u8]| value.first().is_some_and(|&byte| self.may_begin(byte));
        let is_same_list = || elements(ours) == elements(theirs);
        begins(ours) && begins(theirs) && (self.value != Value::List || is_same_list())
    }

    /// What it does, in a word.
    pub const fn action(&self) -> &'static str {
        match (self.is_map, &self.value) {
            (true, _) => "map",
            (false, Value::List) => "list",
            (false, _) => "mask",
        }
    }

    /// Whether a value begins with `next` behind `line`, the beginning of a header line of an
    /// answer.
    pub fn begins(&self, line: &[u8], next: u8) -> bool {
        self.may_begin(next) && self.stands_behind(line, &self.header, false) == Stands::Value
    }

    /// The same in a request, where clients return it.
    pub fn begins_returned(&self, line: &[u8], next: u8) -> Stands {
        if !self.is_map || !self.may_begin(next) {
            return Stands::Nothing;
        }
        let stands = |header: &&str| match self.stands_behind(line, header, true) {
            // Two fields share this one: a tag there is strong, and begins so (RFC 9110 13.1.5).
            Stands::Value if *header == "if-range" && (next == b'"') != self.is_tag() => {
                Stands::Nothing
            }
            stands => stands,
        };
        let fields = self.returned_in();
        let mut found = fields.iter().map(stands);
        found.find(|stands| *stands != Stands::Nothing).unwrap_or(Stands::Nothing)
    }

    fn is_tag(&self) -> bool {
        &*self.header == "etag"
    }

    /// The header fields in which clients return it (RFC 6265 5.4, RFC 9110 13.1).
    fn returned_in(&self) -> [&str; 3] {
        match &*self.header {
            "set-cookie" => ["cookie"; 3],
            "etag" => ["if-none-match", "if-match", "if-range"],
            "last-modified" => ["if-modified-since", "if-unmodified-since", "if-range"],
            own => [own; 3],
        }
    }

    /// Whether a value ends before `byte`.
    pub const fn ends(&self, byte: u8) -> bool {
        match self.value {
            Value::Whole | Value::List => matches!(byte, b'\r' | b'\n'),
            Value::Expiry(_) => matches!(byte, b';' | b'\r' | b'\n'),
            Value::Named(_) => matches!(byte, b';' | b' ' | b'\t' | b'\r' | b'\n'),
        }
    }

    fn stands_behind(&self, line: &[u8], header: &str, is_list: bool) -> Stands {
        let before = match &self.value {
            Value::Whole | Value::List => line,
            Value::Named(name) => {
                let named = line.strip_suffix(b"=").and_then(|line| line.strip_suffix(&**name));
                let Some(before) = named else { return Stands::Nothing };
                before
            }
            Value::Expiry(name) => return expiry_stands_behind(line, header, name),
        };
        let before = trim_blanks_end(before);
        if let Some(field) = before.strip_suffix(b":")
            && field.eq_ignore_ascii_case(header.as_bytes())
        {
            return Stands::Value;
        }
        // Behind others, as clients send cookies. Within quotes a semicolon may be none.
        let is_named = matches!(self.value, Value::Named(_));
        let is_next = is_list && is_named && before.ends_with(b";");
        let field = before.split(|&b| b == b':').next().unwrap_or_default();
        match is_next && field.eq_ignore_ascii_case(header.as_bytes()) {
            true if before.contains(&b'"') => Stands::Doubt,
            true => Stands::Value,
            false => Stands::Nothing,
        }
    }
}

/// The first attribute of that name behind the pair, of which nothing is quoted.
fn expiry_stands_behind(line: &[u8], header: &str, name: &[u8]) -> Stands {
    let mut parts = line.split(|&byte| byte == b';');
    let first = parts.next().unwrap_or_default();
    let is_it = first.iter().position(|&byte| byte == b':').is_some_and(|colon| {
        let pair = first[colon + 1..].trim_ascii_start();
        first[..colon].eq_ignore_ascii_case(header.as_bytes())
            && pair.strip_prefix(name).is_some_and(|rest| rest.starts_with(b"="))
    });
    let is_expiry = |part: &[u8]| {
        let end = part.iter().position(|&byte| byte == b'=').unwrap_or(part.len());
        part[..end].trim_ascii().eq_ignore_ascii_case(b"expires")
    };
    let is_first = parts.position(is_expiry).is_some() && parts.next().is_none();
    let is_open = trim_blanks_end(line).ends_with(b"=");
    match is_it && is_first && is_open && !line.contains(&b'"') {
        true => Stands::Value,
        false => Stands::Nothing,
    }
}

/// What a list has, in an order that says nothing.
fn elements(list: &[u8]) -> Vec<&[u8]> {
    let mut elements: Vec<_> = list.split(|&b| b == b',').map(<[u8]>::trim_ascii).collect();
    elements.sort_unstable();
    elements
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn trim_blanks_end(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = line {
        line = rest;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_values_stand_in_answers() {
        let (mask, cookie) = (Rule::mask("date"), Rule::map("set-cookie", Some("SID")));
        let token = Rule::map("x-token", None);
        for (rule, line, next, is_there) in [
            (&mask, "Date:", b'x', true),
            (&mask, "dATE: \t", b'x', true),
            (&mask, "Date:", b' ', false),
            (&mask, "Date:", b'\r', false),
            (&mask, "Date: x", b'x', false),
            (&mask, "Date :", b'x', false),
            (&mask, "Dates:", b'x', false),
            (&cookie, "Set-Cookie: SID=", b'x', true),
            (&cookie, "set-cookie:SID=", b'=', true),
            (&cookie, "Set-Cookie: SID=", b';', false),
            (&cookie, "Set-Cookie: SID=", b' ', false),
            (&cookie, "Set-Cookie: sid=", b'x', false),
            (&cookie, "Set-Cookie: XSID=", b'x', false),
            (&cookie, "Set-Cookie: X=1; SID=", b'x', false),
            (&cookie, "Cookie: SID=", b'x', false),
            (&token, "X-Token: ", b';', true),
        ] {
            assert_eq!(rule.begins(line.as_bytes(), next), is_there, "{line:?} {next}");
        }
        assert!(cookie.ends(b';') && cookie.ends(b' ') && !token.ends(b';') && token.ends(b'\r'));
        assert_eq!((&**cookie.token(), &**token.token()), ("set-cookie SID", "x-token"));
    }

    #[test]
    fn where_a_mapped_cookie_says_when_it_is_over() {
        let expiry = Rule::map("set-cookie", Some("SID")).expiry().expect("it has one");
        for (line, next, is_there) in [
            ("Set-Cookie: SID=-; Expires=", b'S', true),
            ("set-cookie:SID=; path=/ ;\texpires = ", b'S', true),
            ("Set-Cookie: SID=-; Expires=", b';', false),
            ("Set-Cookie: SID=-; Expires", b'=', false),
            ("Set-Cookie: SID=-; Expires=-; Expires=", b'S', false),
            ("Set-Cookie: SID=-; Expires=-", b'S', false),
            ("Set-Cookie: SID=-; Max-Age=", b'9', false),
            ("Set-Cookie: SID=\"; Expires=", b'S', false),
            ("Set-Cookie: XSID=-; Expires=", b'S', false),
            ("Set-Cookie: SIDE=-; Expires=", b'S', false),
            ("Set-Cookie: SID expires=", b'S', false),
            ("Cookie: SID=-; Expires=", b'S', false),
        ] {
            assert_eq!(expiry.begins(line.as_bytes(), next), is_there, "{line:?} {next}");
            assert_eq!(expiry.begins_returned(line.as_bytes(), next), Stands::Nothing);
        }
        assert!(
            expiry.ends(b';') && expiry.ends(b'\r') && !expiry.ends(b' ') && !expiry.ends(b',')
        );
        assert_eq!((&**expiry.token(), expiry.is_map()), ("set-cookie SID expires", false));
        for other in
            [Rule::map("x-a", Some("b")), Rule::map("x-a", None), Rule::mask("date"), expiry]
        {
            assert_eq!(other.expiry(), None);
        }
    }

    #[test]
    fn where_clients_return_them() {
        let (mask, cookie) = (Rule::mask("cookie"), Rule::map("set-cookie", Some("SID")));
        let (token, named) = (Rule::map("x-token", None), Rule::map("x-two", Some("a")));
        let (tag, time) = (Rule::map("etag", None), Rule::map("last-modified", None));
        for (rule, line, next, is_there) in [
            (&mask, "Cookie: ", b'x', false),
            (&cookie, "Cookie: SID=", b'x', true),
            (&cookie, "cookie:SID=", b'x', true),
            (&cookie, "Cookie: a=b; SID=", b'x', true),
            (&cookie, "Cookie: a=b;SID=", b'x', true),
            (&cookie, "Cookie: SID=1; SID=", b'x', true),
            (&cookie, "Cookie: a=b, SID=", b'x', false),
            (&cookie, "Cookie: a=b SID=", b'x', false),
            (&cookie, "Cookie: a=:SID=", b'x', false),
            (&cookie, "Cookie: aSID=", b'x', false),
            (&cookie, "Cookie: SID=", b';', false),
            (&cookie, "Cookies: SID=", b'x', false),
            (&cookie, "Set-Cookie: SID=", b'x', false),
            (&cookie, "GET /;SID=", b'x', false),
            (&token, "X-Token: ", b'x', true),
            (&token, "X-Token: a;", b'x', false),
            (&named, "X-Two: a=", b'x', true),
            (&named, "X-Two: b=1; a=", b'x', true),
            (&tag, "If-None-Match: ", b'"', true),
            (&tag, "if-none-match:", b'W', true),
            (&tag, "If-None-Match: \"a\", ", b'"', false),
            (&tag, "If-Match: ", b'"', true),
            (&tag, "If-Range: ", b'"', true),
            (&tag, "If-Range: ", b'W', false),
            (&tag, "ETag: ", b'"', false),
            (&time, "If-Modified-Since: ", b'W', true),
            (&time, "If-Unmodified-Since: ", b'W', true),
            (&time, "If-Range: ", b'W', true),
            (&time, "If-Range: ", b'"', false),
            (&time, "Last-Modified: ", b'W', false),
        ] {
            let expected = if is_there { Stands::Value } else { Stands::Nothing };
            assert_eq!(rule.begins_returned(line.as_bytes(), next), expected, "{line:?} {next}");
        }
        let quoted = cookie.begins_returned(b"Cookie: a=\"; SID=", b'x');
        assert_eq!(quoted, Stands::Doubt);
    }
}
