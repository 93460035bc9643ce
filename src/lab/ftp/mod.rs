//! FTP for worlds: a server with the same known content as [`super::web`], and the client's part.
//!
//! What a session needs and no more: anonymous, binary, passive (RFC 959, RFC 2428), resuming
//! (RFC 3659). Each server takes whatever port it gets for a data connection.

pub(super) mod client;
pub mod server;

/// The port of control connections that the embedded server uses unless told otherwise.
pub const PORT: u16 = 21;

/// The file of so many bytes.
fn file(bytes: u64) -> String {
    format!("bytes-{bytes}")
}
