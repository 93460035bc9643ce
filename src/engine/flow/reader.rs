//! Readers in the middle of their messages, packed: for a whole engine only.

use crate::engine::pack::{Pack, Reader, Writer, fields, variants};
use crate::protocol::RawReason;
use crate::protocol::framing::{Framing, Part};
use crate::protocol::ftp::Ftp;
use crate::protocol::ftp::commands::{Command, Commands, Telnet};
use crate::protocol::ftp::replies::Replies;
use crate::protocol::http::Http;
use crate::protocol::returned::Returned;
use crate::protocol::start::Method;

fields!(Framing { is_answers, part, line, head_len, is_old, length, is_chunked, raw });
fields!(Ftp { has_defaults, commands, replies, has_greeted, is_spanned, called, raw });
fields!(Commands { line, len, has_cr, telnet, outstanding });
fields!(Replies { line, len, has_cr, open });
variants!(Telnet { None, Command, Option });
variants!(Method { Head, Connect, Other });
variants!(RawReason {
    NotHttp,
    RequestLine,
    StatusLine,
    BareLf,
    BareCr,
    Folded,
    HeaderLine,
    LongLine,
    LongHead,
    Length,
    TwoLengths,
    LengthAndCoding,
    Coding,
    NoContent,
    ChunkSize,
    ChunkEnd,
    Switched,
    Outstanding,
    Unasked,
    Missed,
    Value,
    NotFtp,
    Encrypted,
    ActiveData
});

impl Pack for Command {
    fn pack(&self, w: &mut Writer) {
        match *self {
            Self::Other => 0u8.pack(w),
            Self::Passive => 1u8.pack(w),
            Self::ExtendedPassive => 2u8.pack(w),
            Self::Active(client) => (3u8, client).pack(w),
            Self::Status => 4u8.pack(w),
            Self::Listing => 5u8.pack(w),
            Self::Transfer => 6u8.pack(w),
            Self::Secure => 7u8.pack(w),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        match u8::unpack(r) {
            1 => Self::Passive,
            2 => Self::ExtendedPassive,
            3 => Self::Active(Pack::unpack(r)),
            4 => Self::Status,
            5 => Self::Listing,
            6 => Self::Transfer,
            7 => Self::Secure,
            _ => Self::Other,
        }
    }
}

impl Pack for Returned {
    fn pack(&self, w: &mut Writer) {
        let Self { rules: _, framing, is_connect, raw, doubts, is_in_value } = self;
        (*is_connect, *is_in_value, *doubts).pack(w);
        raw.pack(w);
        framing.pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let ((is_connect, is_in_value, doubts), raw, framing) = Pack::unpack(r);
        Self { rules: r.rules.http.clone(), framing, is_connect, raw, doubts, is_in_value }
    }
}

impl Pack for Http {
    fn pack(&self, w: &mut Writer) {
        let Self { rules: _, request, response, outstanding, .. } = self;
        let Self { is_recognized, status, is_in_span, is_parted, .. } = self;
        (*is_recognized, *status, (*is_in_span, *is_parted)).pack(w);
        request.pack(w);
        response.pack(w);
        outstanding.pack(w);
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        let (is_recognized, status, (is_in_span, is_parted)) = Pack::unpack(r);
        let (request, response, outstanding) = Pack::unpack(r);
        let rules = r.rules.http.clone();
        let lines = Self { request, response, outstanding, ..Self::new(rules) };
        Self { is_recognized, status, is_in_span, is_parted, ..lines }
    }
}

impl Pack for Part {
    fn pack(&self, w: &mut Writer) {
        match *self {
            Self::Start => 0u8.pack(w),
            Self::Header => 1u8.pack(w),
            Self::Body(left) => (2u8, left).pack(w),
            Self::ChunkSize => 3u8.pack(w),
            Self::Chunk(left) => (4u8, left).pack(w),
            Self::ChunkEnd => 5u8.pack(w),
            Self::Trailer => 6u8.pack(w),
            Self::UntilClose => 7u8.pack(w),
            Self::Lost => 8u8.pack(w),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        match u8::unpack(r) {
            0 => Self::Start,
            1 => Self::Header,
            2 => Self::Body(Pack::unpack(r)),
            3 => Self::ChunkSize,
            4 => Self::Chunk(Pack::unpack(r)),
            5 => Self::ChunkEnd,
            6 => Self::Trailer,
            7 => Self::UntilClose,
            _ => Self::Lost,
        }
    }
}
