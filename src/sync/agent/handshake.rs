//! Who is there: both sides prove that they have the key, and agree on keys of this connection.
//!
//! Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s (noiseprotocol.org, revision 34): read its sections 7 and
//! 9 first. Both begin with who they are and which version they speak, in the clear; that is part
//! of what the handshake proves. The client speaks first, so a stranger who does not have the key
//! learns nothing but that an agent is here; and it proves once more that it is alive, so that an
//! old connection's first words, said again, open nothing.
//!
//! ```text
//! client: hello, e                     ->
//!         <-  hello, welcome or why not, e ee
//!         sealed: nothing              ->
//! ```

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snow::{Builder, HandshakeState, StatelessTransportState};

use super::key::Key;

/// Version of all that the two sides say.
pub const VERSION: u16 = 1;
/// Bytes of a sealed record at most, its length not counted.
pub const RECORD_LEN_MAX: usize = 65_535;
/// What sealing adds to a record.
pub const SEAL_LEN: usize = 16;

const MAGIC: &[u8; 14] = b"shadowvm-agent";
const HELLO_LEN: usize = MAGIC.len() + 2;
/// A public key, and the seal over nothing.
const FIRST_LEN: usize = 32 + SEAL_LEN;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// An agent's word before its part of the handshake.
const WELCOME: u8 = 0;
const WRONG_KEY: u8 = 1;
const FULL: u8 = 2;

/// Why two sides do not come together.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other side speaks something else.
    #[error("it is no agent of shadowvm")]
    Stranger,
    /// The other side is another version.
    #[error("it speaks version {theirs}, this side {VERSION}: install the same shadowvm on both")]
    Version {
        /// Of the other side.
        theirs: u16,
    },
    /// The other side has another key.
    #[error("the keys differ: give both sides the same key file")]
    WrongKey,
    /// The agent has as many connections as it takes.
    #[error("it has as many connections as it takes: end another gateway, or wait for a while")]
    Full,
    /// Nothing was said for too long.
    #[error("nothing was said in time")]
    Silent,
    /// The connection failed.
    #[error("{0}")]
    Io(io::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

/// Seals what leaves.
#[derive(Debug)]
pub struct Sealer {
    state: Arc<StatelessTransportState>,
    next: u64,
}

/// Opens what comes.
#[derive(Debug)]
pub struct Opener {
    state: Arc<StatelessTransportState>,
    next: u64,
}

/// Somebody has changed a record, or it was sealed by other keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record that does not open")]
pub struct BadSeal;

impl Sealer {
    /// Appends the record that holds `plain`, with its length in front.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), BadSeal> {
        let len = plain.len() + SEAL_LEN;
        let head = u16::try_from(len).map_err(|_| BadSeal)?;
        out.extend_from_slice(&head.to_le_bytes());
        let start = out.len();
        out.resize(start + len, 0);
        let sealed = self.state.write_message(self.next, plain, &mut out[start..]);
        self.next += 1;
        sealed.map(drop).map_err(|_| BadSeal)
    }
}

impl Opener {
    /// What a record, its length taken off, holds.
    pub fn open<'a>(&mut self, sealed: &[u8], out: &'a mut Vec<u8>) -> Result<&'a [u8], BadSeal> {
        let len = sealed.len().checked_sub(SEAL_LEN).ok_or(BadSeal)?;
        out.resize(len, 0);
        let opened = self.state.read_message(self.next, sealed, out);
        self.next += 1;
        opened.map_err(|_| BadSeal)?;
        Ok(out)
    }
}

/// The gateway's side, to its end or `within`.
pub fn greet(
    stream: &TcpStream,
    key: &Key,
    within: Duration,
) -> Result<(Sealer, Opener), HandshakeError> {
    let wire = Timed { stream, until: Instant::now() + within };
    let hello = hello(VERSION);
    let mut noise = noise(key, &hello, true)?;
    let mut first = [0; FIRST_LEN];
    noise.write_message(&[], &mut first).map_err(|_| HandshakeError::WrongKey)?;
    wire.write(&[&hello[..], &first].concat())?;
    hear_hello(&wire)?;
    match wire.read::<1>()? {
        [WELCOME] => {}
        [WRONG_KEY] => return Err(HandshakeError::WrongKey),
        [FULL] => return Err(HandshakeError::Full),
        _ => return Err(HandshakeError::Stranger),
    }
    let answer: [u8; FIRST_LEN] = wire.read()?;
    noise.read_message(&answer, &mut []).map_err(|_| HandshakeError::WrongKey)?;
    let (mut sealer, opener) = sealed(noise)?;
    let mut proof = Vec::new();
    sealer.seal(&[], &mut proof).map_err(|_| HandshakeError::WrongKey)?;
    wire.write(&proof)?;
    Ok((sealer, opener))
}

/// The agent's side, to its end or `within`. Whoever proves to have the key is taken if `has_room`
/// says so then.
pub fn receive(
    stream: &TcpStream,
    key: &Key,
    within: Duration,
    has_room: impl FnOnce() -> bool,
) -> Result<(Sealer, Opener), HandshakeError> {
    let wire = Timed { stream, until: Instant::now() + within };
    let hello = hello(VERSION);
    match hear_hello(&wire) {
        Err(error @ HandshakeError::Version { .. }) => {
            wire.write(&hello)?;
            return Err(error);
        }
        heard => heard?,
    }
    let refuse = |word: u8, error| match wire.write(&[&hello[..], &[word]].concat()) {
        Ok(()) => Err(error),
        Err(failed) => Err(failed),
    };
    let mut noise = noise(key, &hello, false)?;
    let first: [u8; FIRST_LEN] = wire.read()?;
    if noise.read_message(&first, &mut []).is_err() {
        return refuse(WRONG_KEY, HandshakeError::WrongKey);
    }
    if !has_room() {
        return refuse(FULL, HandshakeError::Full);
    }
    let mut answer = [0; FIRST_LEN];
    noise.write_message(&[], &mut answer).map_err(|_| HandshakeError::WrongKey)?;
    wire.write(&[&hello[..], &[WELCOME], &answer].concat())?;
    let (sealer, mut opener) = sealed(noise)?;
    let proof: [u8; 2 + SEAL_LEN] = wire.read()?;
    opener.open(&proof[2..], &mut Vec::new()).map_err(|_| HandshakeError::WrongKey)?;
    Ok((sealer, opener))
}

/// What a side of this version begins with.
pub fn hello(version: u16) -> [u8; HELLO_LEN] {
    let mut hello = [0; HELLO_LEN];
    hello[..MAGIC.len()].copy_from_slice(MAGIC);
    hello[MAGIC.len()..].copy_from_slice(&version.to_le_bytes());
    hello
}

fn hear_hello(wire: &Timed<'_>) -> Result<(), HandshakeError> {
    if wire.read::<{ MAGIC.len() }>()? != *MAGIC {
        return Err(HandshakeError::Stranger);
    }
    match u16::from_le_bytes(wire.read()?) {
        VERSION => Ok(()),
        theirs => Err(HandshakeError::Version { theirs }),
    }
}

fn noise(key: &Key, hello: &[u8], is_gateway: bool) -> Result<HandshakeState, HandshakeError> {
    let wrong = |error: snow::Error| HandshakeError::Io(io::Error::other(error.to_string()));
    let builder = Builder::new(PATTERN.parse().map_err(wrong)?);
    let builder = builder.psk(0, key.bytes()).and_then(|b| b.prologue(hello)).map_err(wrong)?;
    let built = if is_gateway { builder.build_initiator() } else { builder.build_responder() };
    built.map_err(wrong)
}

fn sealed(noise: HandshakeState) -> Result<(Sealer, Opener), HandshakeError> {
    let state = noise.into_stateless_transport_mode().map_err(|_| HandshakeError::WrongKey)?;
    let state = Arc::new(state);
    Ok((Sealer { state: Arc::clone(&state), next: 0 }, Opener { state, next: 0 }))
}

/// A stream until some time.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> Result<Option<Duration>, HandshakeError> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(HandshakeError::Silent),
            left => Ok(Some(left)),
        }
    }

    /// Whoever says one byte a second is out of time all the same.
    fn read<const N: usize>(&self) -> Result<[u8; N], HandshakeError> {
        let (mut bytes, mut filled, mut stream) = ([0; N], 0, self.stream);
        while filled < N {
            self.stream.set_read_timeout(self.left()?)?;
            match stream.read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), HandshakeError> {
        let mut stream = self.stream;
        self.stream.set_write_timeout(self.left()?)?;
        Ok(stream.write_all(bytes)?)
    }
}
