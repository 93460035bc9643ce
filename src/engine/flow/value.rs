//! A value in a stream, up to the byte that ends it.

use crate::protocol::{Normalizer, SPAN_BYTES_MAX};
use crate::wire::Offset;

/// What is known of a value.
pub(super) enum Value {
    /// Its end has not been said.
    Open,
    /// All of it.
    Whole(Vec<u8>),
    /// More than is looked at.
    TooLong,
}

/// The value of `rule` that begins at `at`, up to what is no part of it for `reader`.
pub(super) fn value_of<'a>(
    reader: &dyn Normalizer,
    rule: u16,
    at: Offset,
    get: impl Fn(Offset) -> &'a [u8],
) -> Value {
    value_at(at, |number, byte| reader.is_in_span(rule, number, byte), get)
}

/// The value that begins at `at`, in bytes that `get` gives; `is_in` tells whether a byte belongs
/// to it, by its number.
pub(super) fn value_at<'a>(
    mut at: Offset,
    is_in: impl Fn(usize, u8) -> bool,
    get: impl Fn(Offset) -> &'a [u8],
) -> Value {
    let mut value = Vec::new();
    loop {
        let bytes = get(at);
        if bytes.is_empty() {
            return Value::Open;
        }
        let had = value.len();
        let end = bytes.iter().enumerate().position(|(i, &byte)| !is_in(had + i, byte));
        value.extend_from_slice(&bytes[..end.unwrap_or(bytes.len()).min(SPAN_BYTES_MAX + 1)]);
        if value.len() > SPAN_BYTES_MAX {
            return Value::TooLong;
        }
        if end.is_some() {
            return Value::Whole(value);
        }
        at = at + bytes.len() as u64;
    }
}
