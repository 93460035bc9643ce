//! What a client says, cut where each server is told something of its own.

use std::net::SocketAddr;

use bytes::Bytes;

use super::cookies::Returning;
use super::ftp::Lines;

/// A piece of what a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The same for everybody.
    Plain(Bytes),
    /// The value of a header `cookie`.
    Cookies(Vec<u8>),
    /// A command of FTP by which the client expects a connection at this address, its line end
    /// included.
    Door(Bytes, SocketAddr),
}

/// Cuts what a client says.
#[derive(Debug)]
pub(super) enum Cutter {
    /// Not at all.
    Plain,
    /// Where it returns cookies.
    Cookies(Returning),
    /// Where it expects connections of its server.
    Doors(Lines),
}

impl Cutter {
    /// What is said next. What is not yet whole waits.
    pub(super) fn cut(&mut self, bytes: Bytes) -> Vec<Piece> {
        match self {
            Self::Plain => vec![Piece::Plain(bytes)],
            Self::Cookies(returning) => returning.cut(bytes),
            Self::Doors(lines) => lines.cut(&bytes),
        }
    }

    /// What waits for its end, which does not come.
    pub(super) fn rest(&mut self) -> Option<Piece> {
        match self {
            Self::Plain => None,
            Self::Cookies(returning) => returning.rest(),
            Self::Doors(lines) => lines.rest(),
        }
    }
}
