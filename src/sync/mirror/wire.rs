//! Numbers, bytes and entries to messages and back.
//!
//! Owns the encoding: numbers in groups of seven bits, lowest first; bytes with their length in
//! front. Reading never panics and never takes more memory than what there is to read.

use super::entry::{Entry, Kind, Rel, Time, Xattrs};

/// A message that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of the mirror that makes no sense")]
pub struct Garbled;

/// Appends a number.
pub fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends bytes with their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends yes or no.
pub fn put_flag(out: &mut Vec<u8>, flag: bool) {
    out.push(u8::from(flag));
}

/// Appends an entry.
pub fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    match &entry.kind {
        Kind::File { size } => {
            out.push(0);
            put_number(out, *size);
        }
        Kind::Dir => out.push(1),
        Kind::Link { target } => {
            out.push(2);
            put_bytes(out, target);
        }
        Kind::Fifo => out.push(3),
        Kind::Socket => out.push(4),
        Kind::Block(major, minor) | Kind::Char(major, minor) => {
            out.push(if matches!(entry.kind, Kind::Block(..)) { 5 } else { 6 });
            put_number(out, u64::from(*major));
            put_number(out, u64::from(*minor));
        }
    }
    out.push(u8::from(entry.is_mount) | u8::from(entry.is_suspect) << 1);
    put_number(out, u64::from(entry.mode));
    put_number(out, u64::from(entry.uid));
    put_number(out, u64::from(entry.gid));
    put_number(out, u64::from(entry.names));
    put_number(out, entry.id.0);
    put_number(out, entry.id.1);
    for time in [entry.mtime, entry.ctime] {
        put_number(out, time.secs.cast_unsigned());
        put_number(out, u64::from(time.nanos));
    }
    put_number(out, entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
}

/// Reads a message from its front.
#[derive(Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Garbled> {
        let (&first, rest) = self.0.split_first().ok_or(Garbled)?;
        self.0 = rest;
        Ok(first)
    }

    /// A number.
    pub fn number(&mut self) -> Result<u64, Garbled> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits.leading_zeros() < shift {
                return Err(Garbled);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Garbled)
    }

    /// A number that is at most what its type can hold.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Garbled> {
        T::try_from(self.number()?).map_err(|_| Garbled)
    }

    /// Yes or no.
    pub fn flag(&mut self) -> Result<bool, Garbled> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Garbled),
        }
    }

    /// Bytes with their length.
    pub fn bytes(&mut self) -> Result<&'a [u8], Garbled> {
        let len = self.small()?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Garbled)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Text for people.
    pub fn text(&mut self) -> Result<String, Garbled> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    /// A path.
    pub fn path(&mut self) -> Result<Rel, Garbled> {
        Rel::new(self.bytes()?).ok_or(Garbled)
    }

    /// An entry.
    pub fn entry(&mut self) -> Result<Entry, Garbled> {
        let kind = match self.byte()? {
            0 => Kind::File { size: self.number()? },
            1 => Kind::Dir,
            2 => Kind::Link { target: self.bytes()?.to_owned() },
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => Kind::Block(self.small()?, self.small()?),
            6 => Kind::Char(self.small()?, self.small()?),
            _ => return Err(Garbled),
        };
        let flags = self.byte()?;
        let (mode, uid, gid) = (self.small()?, self.small()?, self.small()?);
        let names = self.small()?;
        let id = (self.number()?, self.number()?);
        let (mtime, ctime) = (self.time()?, self.time()?);
        let xattrs = self.xattrs()?;
        let (is_mount, is_suspect) = (flags & 1 != 0, flags & 2 != 0);
        if flags > 3 || mode > 0o7777 {
            return Err(Garbled);
        }
        Ok(Entry { kind, mode, uid, gid, mtime, ctime, xattrs, id, names, is_mount, is_suspect })
    }

    fn time(&mut self) -> Result<Time, Garbled> {
        let (secs, nanos) = (self.number()?.cast_signed(), self.small()?);
        if nanos < 1_000_000_000 { Ok(Time { secs, nanos }) } else { Err(Garbled) }
    }

    fn xattrs(&mut self) -> Result<Xattrs, Garbled> {
        let count = self.number()?;
        let mut xattrs = Xattrs::new();
        for _ in 0..count {
            xattrs.push((self.bytes()?.to_owned(), self.bytes()?.to_owned()));
        }
        Ok(xattrs)
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), Garbled> {
        if self.0.is_empty() { Ok(()) } else { Err(Garbled) }
    }
}
