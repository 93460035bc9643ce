//! What the servers of a control connection of FTP say of data connections, for those that make
//! them: each with each server at the port that this server named.

use tokio::sync::watch;

use super::ftp::News;

/// What a conversation is to others.
#[derive(Debug)]
pub(super) enum Part {
    /// Nothing.
    Alone,
    /// A control connection of FTP, which tells what its servers say; it begins when another one is
    /// over.
    Control(watch::Sender<Desk>, Option<watch::Receiver<Desk>>),
    /// A data connection, which hears it.
    Data(Data),
}

/// What servers said of data connections on one control connection. It is over with its sender.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// The ports that each server has named, in order.
    ports: [Vec<u16>; 2],
    /// For how many of them the transfer has begun, or never will.
    begun: [usize; 2],
}

impl Desk {
    pub(super) fn hear(&mut self, file: usize, news: News) {
        match news {
            News::Offer(said) => self.ports[file].push(said.port),
            News::Begun(_) => self.begun[file] = self.ports[file].len(),
        }
    }
}

/// A data connection's view of its control connection.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) desk: watch::Receiver<Desk>,
    /// Which of the ports it is.
    pub(super) number: usize,
    /// What it was asked by.
    pub(super) command: String,
}

impl Data {
    /// The port that a server has named. The control connection has patience, or ends.
    pub(super) async fn port(&mut self, file: usize) -> Result<u16, String> {
        let number = self.number;
        let desk = self.desk.wait_for(|desk| desk.ports[file].len() > number).await;
        desk.map(|desk| desk.ports[file][number])
            .map_err(|_| format!("a server has named no port for {}", self.command))
    }

    /// Both servers have begun the transfer, or have said that they do not.
    pub(super) async fn begun(&mut self, files: [bool; 2]) {
        let is_begun =
            |desk: &Desk| [0, 1].iter().all(|&f| !files[f] || desk.begun[f] > self.number);
        // It is over: nothing more will be said.
        let _ = self.desk.wait_for(is_begun).await;
    }
}
