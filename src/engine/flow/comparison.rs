//! What the comparison of one flow remembers: where it stands, who reads the protocol, and what of
//! it is under way.

use std::net::SocketAddr;

use super::chunks::Chunks;
use crate::engine::pack::{Pack, Reader, Writer, fields};
use crate::protocol::framing::Framing;
use crate::protocol::ftp::Ftp;
use crate::protocol::http::Http;
use crate::protocol::{Normalizer, Quiet};
use crate::wire::Offset;

/// The comparison of one flow.
#[derive(Debug)]
pub struct Comparison {
    pub(super) agreed: Offset,
    pub(super) normalizer: Option<Box<dyn Normalizer>>,
    /// Client bytes that the normalizer has read.
    pub(super) request_read: Offset,
    /// A span that may differ begins at `agreed`.
    pub(super) span: Option<u16>,
    /// The process began in the middle of the flow: the protocol is not followed yet.
    pub(super) is_adrift: bool,
    /// One leg alone speaks, and the protocol is followed for the time when there are two again.
    pub(super) is_following: bool,
    /// Chunk lines of the servers are not in step.
    pub(super) chunks: Option<Chunks>,
    /// The framing that is shown was begun by a server that is gone.
    pub(super) is_reframed: bool,
}

impl Comparison {
    /// Begins at `at`; `normalizer` knows what may differ, if anything.
    pub fn new(at: Offset, normalizer: Option<Box<dyn Normalizer>>) -> Self {
        Self {
            agreed: at,
            normalizer,
            request_read: Offset::START,
            span: None,
            is_adrift: false,
            is_following: false,
            chunks: None,
            is_reframed: false,
        }
    }

    /// The end of the prefix that both legs said.
    pub const fn agreed(&self) -> Offset {
        self.agreed
    }

    /// Begins again at `at`, in the middle of nobody knows which message.
    pub fn restart(&mut self, at: Offset) {
        *self = Self { is_adrift: true, ..Self::new(at, None) };
    }

    /// The same place has another visible position now.
    pub(super) fn move_to(&mut self, at: Offset) {
        self.agreed = at;
    }

    /// There is nothing to compare for the time being.
    pub fn follow(&mut self) {
        self.is_following = self.normalizer.is_some();
    }

    /// There are two to compare again.
    pub(super) fn pair(&mut self) {
        self.is_following = false;
    }

    /// See [`Self::follow`].
    pub const fn is_following(&self) -> bool {
        self.is_following
    }

    /// Whoever reads the protocol.
    pub(super) fn reader(&self) -> Option<&dyn Normalizer> {
        self.normalizer.as_deref()
    }

    /// Whether data connections are offered on it.
    pub fn makes_offers(&self) -> bool {
        self.normalizer.as_ref().is_some_and(|n| n.makes_offers())
    }

    /// Whether what is followed has reached an offer that is not whole.
    pub fn is_in_offer(&self) -> bool {
        self.is_following && self.span.is_some() && self.makes_offers()
    }

    /// Where the servers have just agreed to connect to.
    pub(super) fn take_call(&mut self) -> Option<SocketAddr> {
        self.normalizer.as_mut()?.take_call()
    }

    /// There is nothing to compare any more.
    pub fn stop(&mut self) {
        self.normalizer = None;
        self.span = None;
        self.is_following = false;
        (self.chunks, self.is_reframed) = (None, false);
    }

    /// One leg alone speaks: what it says is followed for as long as anybody has to know.
    pub(super) fn speaks_alone(&mut self, is_followed: bool) {
        if !self.is_reframed {
            self.rejoin();
        }
        match is_followed {
            true => self.follow(),
            false => self.stop(),
        }
    }

    /// Where the shown answers stand, if they are HTTP.
    pub(super) fn framing(&self) -> Option<&Framing> {
        Some(self.normalizer.as_ref()?.http()?.framing())
    }

    /// The shown answers stand at `framing`; so much is left of the other server's chunk, if that
    /// is not the same.
    pub(super) fn set_framing(&mut self, framing: Framing, other_left: Option<u64>) {
        if let Some(http) = self.normalizer.as_mut().and_then(|n| n.http_mut()) {
            http.part(framing);
        }
        match other_left {
            Some(_) => self.chunks = Some(Chunks { other_left }),
            None => self.rejoin(),
        }
    }

    /// Only one framing is left.
    pub(super) fn rejoin(&mut self) {
        (self.chunks, self.is_reframed) = (None, false);
        if let Some(http) = self.normalizer.as_mut().and_then(|n| n.http_mut()) {
            http.rejoin();
        }
    }

    /// Both servers are in a body at the same place, and not at the same place of a chunk.
    pub(super) fn is_parted(&self) -> bool {
        self.chunks.is_some_and(|chunks| chunks.other_left.is_some())
    }

    /// The server whose framing is shown is gone.
    pub(super) fn goes_on_with_other(&mut self) {
        match self.is_parted() {
            true => self.is_reframed = true,
            false => self.chunks = None, // what was begun alike is gone on with
        }
    }

    /// Between messages, or where nothing is followed.
    pub(super) fn is_quiet(&self) -> bool {
        self.span.is_none() && self.normalizer.as_ref().is_none_or(|n| n.quiet().is_some())
    }

    /// The protocol says that an answer is not complete.
    pub(super) fn is_mid_message(&self) -> bool {
        self.normalizer.as_ref().is_some_and(|n| n.is_complete() == Some(false))
    }

    /// How far beyond `agreed` bytes are certainly to be compared as they are.
    pub(super) fn plain_until(&self) -> Offset {
        match (&self.normalizer, self.span) {
            (_, Some(_)) => self.agreed,
            (Some(n), None) => {
                let ahead = n.plain_ahead().min(1 << 40);
                self.agreed + self.chunks.map_or(ahead, |c| ahead.min(c.other_left.unwrap_or(0)))
            }
            (None, None) => self.agreed + (1 << 40),
        }
    }
}

fields!(Comparison {
    agreed,
    normalizer,
    request_read,
    span,
    is_adrift,
    is_following,
    chunks,
    is_reframed
});

impl Pack for Box<dyn Normalizer> {
    fn pack(&self, w: &mut Writer) {
        if w.is_whole() {
            (self.http().is_some(), self.ftp().is_some()).pack(w);
            self.http().into_iter().for_each(|http| http.pack(w));
            return self.ftp().into_iter().for_each(|ftp| ftp.pack(w));
        }
        match self.quiet().expect("a flow in the middle of a message does not rest") {
            Quiet::Http { is_recognized, status } => (true, (is_recognized, status)).pack(w),
            Quiet::Ftp => false.pack(w),
        }
    }
    fn unpack(r: &mut Reader<'_>) -> Self {
        if r.is_whole() {
            return match Pack::unpack(r) {
                (true, false) => Box::new(Http::unpack(r)),
                (false, true) => Box::new(Ftp::unpack(r)),
                (true, true) | (false, false) => {
                    r.damaged();
                    r.rules.resumed(Quiet::Ftp)
                }
            };
        }
        let quiet = match Pack::unpack(r) {
            true => {
                let (is_recognized, status) = Pack::unpack(r);
                Quiet::Http { is_recognized, status }
            }
            false => Quiet::Ftp,
        };
        r.rules.resumed(quiet)
    }
}
