//! The loop: wait, hand inputs to the engine, carry its outputs out, flush. One thread.
//!
//! Frames come before signals and timers of the same wake-up: what has arrived is known before
//! anybody is judged to be late. They come before requests too, and before a request is handled the
//! links are looked at once more: what had arrived when it was left (a server was stopped, say) is
//! known by then. A record is written before the frames behind it are flushed.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Barrier, Batch, Driver};
use crate::engine::{
    Engine, Epoch, Event, Input, Instant, LegId, Link, Output, Record, SyncId, SyncRequest,
};
use crate::wire::Frame;

/// A look at the engine from another thread.
pub type Look = Box<dyn FnOnce(Instant, &Engine) + Send>;

/// What other threads ask of the loop.
pub enum Request {
    /// Hand the engine an input (never a frame).
    Input(Input),
    /// Look at the engine between two inputs.
    Inspect(Look),
    /// Set a link's barrier.
    Barrier(Link, Barrier),
    /// End the loop.
    Stop,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(input) => f.debug_tuple("Input").field(input).finish(),
            Self::Inspect(_) => f.write_str("Inspect"),
            Self::Barrier(link, to) => f.debug_tuple("Barrier").field(link).field(to).finish(),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

/// Where other threads leave their requests.
#[derive(Clone, Debug)]
pub struct Mailbox {
    requests: Sender<Request>,
    waker: Arc<OwnedFd>,
}

impl Mailbox {
    /// Leaves a request and wakes the loop. False if the loop has ended.
    pub fn send(&self, request: Request) -> bool {
        let sent = self.requests.send(request).is_ok();
        let one = 1u64.to_ne_bytes();
        sent && nix::unistd::write(self.waker.as_fd(), &one).is_ok()
    }
}

/// The loop's end of a [`Mailbox`].
#[derive(Debug)]
pub struct Inbox {
    requests: Receiver<Request>,
    waker: Arc<OwnedFd>,
}

/// A mailbox and its other end.
pub fn mailbox() -> io::Result<(Mailbox, Inbox)> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let waker: Arc<OwnedFd> = Arc::new(EventFd::from_flags(flags)?.into());
    let (tx, rx) = channel();
    Ok((Mailbox { requests: tx, waker: Arc::clone(&waker) }, Inbox { requests: rx, waker }))
}

/// Where the outputs go that are no frames.
pub trait Sink {
    /// Something happened.
    fn event(&mut self, now: Instant, event: &Event);
    /// A sync is wanted.
    fn sync(&mut self, request: SyncRequest);
    /// A sync is not waited for any more.
    fn cancel_sync(&mut self, id: SyncId);
    /// The target of this sync of scope Machine may be overwritten.
    fn overwrite(&mut self, id: SyncId);
    /// The fence hook is to run.
    fn fence(&mut self, epoch: Epoch, server: LegId);
    /// A record is to be written now.
    fn persist(&mut self, record: &Record);
    /// The engine is about to be handed this.
    fn input(&mut self, now: Instant, input: &Input) {
        let _ = (now, input);
    }
    /// The engine sends this.
    fn transmit(&mut self, now: Instant, link: Link, frame: &Frame) {
        let _ = (now, link, frame);
    }
    /// Nothing is under way in the engine: all that it wanted was done.
    fn pause(&mut self, now: Instant, engine: &Engine) {
        let _ = (now, engine);
    }
}

/// Drives `engine` until [`Request::Stop`], until the driver has no more to give, or until it fails
/// as a whole.
pub fn drive<D: Driver + ?Sized>(
    engine: &mut Engine,
    driver: &mut D,
    inbox: &Inbox,
    sink: &mut dyn Sink,
) -> io::Result<()> {
    driver.wake_on(Arc::clone(&inbox.waker));
    let mut batch = Batch::default();
    let mut requests = Vec::new();
    loop {
        requests.extend(inbox.requests.try_iter());
        let until = match requests.is_empty() {
            true => engine.poll_timeout(),
            false => Some(driver.now()),
        };
        driver.recv(&mut batch, until)?;
        let now = driver.now();
        for (link, frame) in batch.frames.drain(..) {
            step(engine, driver, sink, now, Input::Frame(link, frame));
        }
        for (link, signal) in batch.signals.drain(..) {
            step(engine, driver, sink, now, Input::Signal(link, signal));
        }
        for request in requests.drain(..) {
            match request {
                Request::Input(input) => step(engine, driver, sink, now, input),
                Request::Inspect(look) => look(now, engine),
                Request::Barrier(link, barrier) => driver.set_barrier(link, barrier),
                Request::Stop => return driver.flush(),
            }
        }
        if engine.poll_timeout().is_some_and(|at| at <= now) {
            step(engine, driver, sink, now, Input::Timeout);
        }
        driver.flush()?;
        sink.pause(now, engine);
        if batch.is_end {
            return Ok(());
        }
    }
}

fn step<D: Driver + ?Sized>(
    engine: &mut Engine,
    driver: &mut D,
    sink: &mut dyn Sink,
    now: Instant,
    input: Input,
) {
    sink.input(now, &input);
    engine.handle(now, input);
    while let Some(output) = engine.poll_output() {
        match output {
            Output::Transmit(link, frame) => {
                sink.transmit(now, link, &frame);
                driver.send(link, frame);
            }
            Output::Event(event) => sink.event(now, &event),
            Output::Sync(request) => sink.sync(request),
            Output::CancelSync(id) => sink.cancel_sync(id),
            Output::Overwrite(id) => sink.overwrite(id),
            Output::Fence { epoch, server } => sink.fence(epoch, server),
            Output::Persist(record) => sink.persist(&record),
        }
    }
}
