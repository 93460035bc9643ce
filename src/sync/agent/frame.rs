//! What the two sides of a connection say to each other, one frame a sealed record.
//!
//! A frame is one byte for its kind, the number of its channel (32 bits, lowest byte first) and
//! the rest of the record. Reading one never panics and copies nothing.

/// Bytes of a channel in one frame at most; with head and seal it fits into a record.
pub const DATA_LEN_MAX: usize = 60 << 10;
/// Bytes of a frame at most.
pub const FRAME_LEN_MAX: usize = HEAD_LEN + 4 + DATA_LEN_MAX;
const HEAD_LEN: usize = 5;
/// Bytes of a reason at most; more is cut off.
const WHY_LEN_MAX: usize = 1024;

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The frames of a mirror's end.
    Mirror,
    /// How the service is. What is said there never waits behind a mirror.
    Health,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Mirror, Self::Health];

    const fn byte(self) -> u8 {
        match self {
            Self::Mirror => 1,
            Self::Health => 2,
        }
    }
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A new channel. Only the gateway opens any, and counts them from 0.
    Open {
        /// Its number.
        channel: u32,
        /// What for.
        purpose: Purpose,
    },
    /// The next bytes of a channel.
    Data {
        /// Its number.
        channel: u32,
        /// At least one.
        bytes: &'a [u8],
    },
    /// The same, packed by LZ4 to fewer.
    Packed {
        /// Its number.
        channel: u32,
        /// How many they are.
        len: u32,
        /// The block.
        bytes: &'a [u8],
    },
    /// So many more bytes may come.
    Grant {
        /// Of this channel.
        channel: u32,
        /// At least one.
        bytes: u32,
    },
    /// A channel is over, both ways.
    Close {
        /// Its number.
        channel: u32,
        /// Why; empty if all is well.
        why: &'a str,
    },
    /// Nothing, but this side is there.
    Ping,
}

/// A frame that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame that makes no sense")]
pub struct Garbled;

impl<'a> Frame<'a> {
    /// Appends it.
    pub fn put(&self, out: &mut Vec<u8>) {
        let mut head = |kind: u8, channel: u32| {
            out.push(kind);
            out.extend_from_slice(&channel.to_le_bytes());
        };
        match *self {
            Self::Open { channel, purpose } => {
                head(1, channel);
                out.push(purpose.byte());
            }
            Self::Data { channel, bytes } => {
                head(2, channel);
                out.extend_from_slice(bytes);
            }
            Self::Packed { channel, len, bytes } => {
                head(3, channel);
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::Grant { channel, bytes } => {
                head(4, channel);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Self::Close { channel, why } => {
                head(5, channel);
                out.extend_from_slice(&why.as_bytes()[..why.floor_char_boundary(WHY_LEN_MAX)]);
            }
            Self::Ping => head(6, 0),
        }
    }

    /// The frame that is in `record`.
    pub fn parse(record: &'a [u8]) -> Result<Self, Garbled> {
        let (&kind, rest) = record.split_first().ok_or(Garbled)?;
        let (channel, rest) = number(rest)?;
        match (kind, rest) {
            (1, [byte]) => {
                let purpose = Purpose::ALL.into_iter().find(|known| known.byte() == *byte);
                Ok(Self::Open { channel, purpose: purpose.ok_or(Garbled)? })
            }
            (2, bytes) if (1..=DATA_LEN_MAX).contains(&bytes.len()) => {
                Ok(Self::Data { channel, bytes })
            }
            (3, rest) => {
                let (len, bytes) = number(rest)?;
                let is_good = len as usize <= DATA_LEN_MAX && bytes.len() < len as usize;
                if is_good { Ok(Self::Packed { channel, len, bytes }) } else { Err(Garbled) }
            }
            (4, rest) => match number(rest)? {
                (bytes @ 1.., []) => Ok(Self::Grant { channel, bytes }),
                _ => Err(Garbled),
            },
            (5, why) if why.len() <= WHY_LEN_MAX => {
                let why = str::from_utf8(why).map_err(|_| Garbled)?;
                Ok(Self::Close { channel, why })
            }
            (6, []) if channel == 0 => Ok(Self::Ping),
            _ => Err(Garbled),
        }
    }
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8]), Garbled> {
    let (number, rest) = bytes.split_first_chunk().ok_or(Garbled)?;
    Ok((u32::from_le_bytes(*number), rest))
}
