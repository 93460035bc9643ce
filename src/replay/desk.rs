//! What is said on a control connection of FTP of data connections, for those that make them: with
//! each server at the port that this server named, or by this server to where its client waits.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::ftp::News;
use super::sockets::Door;

/// What a conversation is to others.
#[derive(Debug)]
pub(super) enum Part {
    /// Nothing.
    Alone,
    /// A control connection of FTP, which tells what is said there; it begins when another one is
    /// over.
    Control(watch::Sender<Desk>, Option<watch::Receiver<Desk>>),
    /// A data connection, which hears it.
    Data(Data),
}

/// Who connects to whom for a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The client, to a port that the server has named.
    Passive,
    /// The server, to an address that the client has named.
    Active,
}

/// Where a client waits for a server, until somebody takes it.
#[derive(Clone, Debug)]
pub(super) struct Untaken(Arc<Mutex<Option<Door>>>);

impl Untaken {
    pub(super) fn take(&self) -> Option<Door> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Doors of one session and server that may be open at once: clients use one after the other, and
/// refused transfers leave theirs behind.
const DOORS_MAX: usize = 16;

/// What was said of data connections on one control connection. It is over with its sender.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// The ports that each server has named, in order, and where the client waits for each.
    ports: [Vec<u16>; 2],
    doors: [Vec<Untaken>; 2],
    /// For how many of both the transfer has begun, or never will.
    begun: [[usize; 2]; 2],
}

impl Desk {
    pub(super) fn hear(&mut self, file: usize, news: News) {
        match news {
            News::Offer(said) => self.ports[file].push(said.port),
            News::Begun(_) => {
                self.begun[file] = [self.ports[file].len(), self.doors[file].len()];
            }
            // The client says it, and waits.
            News::Door(_) => {}
        }
    }

    /// The client waits for a server.
    pub(super) fn open(&mut self, file: usize, door: Door) {
        let doors = &mut self.doors[file];
        doors.push(Untaken(Arc::new(Mutex::new(Some(door)))));
        if let Some(old) = doors.len().checked_sub(DOORS_MAX + 1) {
            doors[old].take();
        }
    }

    /// Those that may be open.
    pub(super) fn open_doors(&self) -> Vec<Untaken> {
        let last = |doors: &Vec<Untaken>| doors.iter().rev().take(DOORS_MAX).cloned().collect();
        self.doors.iter().flat_map(|doors| -> Vec<_> { last(doors) }).collect()
    }
}

/// A data connection's view of its control connection.
#[derive(Clone, Debug)]
pub(super) struct Data {
    pub(super) desk: watch::Receiver<Desk>,
    pub(super) way: Way,
    /// Which of this way's it is.
    pub(super) number: usize,
    /// What it was asked by.
    pub(super) command: String,
}

impl Data {
    /// The port that a server has named. The control connection has patience, or ends.
    pub(super) async fn port(&mut self, file: usize) -> io::Result<u16> {
        let number = self.number;
        let desk = self.desk.wait_for(|desk| desk.ports[file].len() > number).await;
        desk.map(|desk| desk.ports[file][number])
            .map_err(|_| self.missing("a server has named no port"))
    }

    /// Where the client waits for a server. The control connection has patience, or ends.
    pub(super) async fn door(&mut self, file: usize) -> io::Result<Door> {
        let number = self.number;
        let desk = self.desk.wait_for(|desk| desk.doors[file].len() > number).await;
        let door = desk.ok().and_then(|desk| desk.doors[file][number].take());
        door.ok_or_else(|| self.missing("a server was not told where to connect to"))
    }

    /// Both servers have begun the transfer, or have said that they do not.
    pub(super) async fn begun(&mut self, files: [bool; 2]) {
        let (way, number) = (self.way as usize, self.number);
        let is_begun =
            |desk: &Desk| [0, 1].iter().all(|&f| !files[f] || desk.begun[f][way] > number);
        // It is over: nothing more will be said.
        let _ = self.desk.wait_for(is_begun).await;
    }

    fn missing(&self, what: &str) -> io::Error {
        io::Error::other(format!("{what} for {}", self.command))
    }
}
