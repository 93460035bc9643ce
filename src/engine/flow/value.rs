//! A value in a stream, up to the byte that ends it.

use crate::protocol::SPAN_BYTES_MAX;
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

/// The value that begins at `at`, in bytes that `get` gives.
pub(super) fn value_at<'a>(
    mut at: Offset,
    ends: impl Fn(u8) -> bool,
    get: impl Fn(Offset) -> &'a [u8],
) -> Value {
    let mut value = Vec::new();
    loop {
        let bytes = get(at);
        if bytes.is_empty() {
            return Value::Open;
        }
        let end = bytes.iter().position(|&byte| ends(byte));
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
