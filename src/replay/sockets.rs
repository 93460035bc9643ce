//! Connections of clients with servers, either way round: by the kernel, from an address of this
//! machine, or by a stack of our own, from the captured one.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, timeout};

use super::stack::{self, Stack};

/// A connection.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Connection for T {}

/// A connection, and the client's address in it.
pub(super) type Connected = (Box<dyn Connection>, SocketAddr);

/// Whose TCP it is.
#[derive(Clone)]
pub(super) enum Sockets {
    /// The kernel's.
    Kernel,
    /// Our own.
    Own(Stack),
}

impl Sockets {
    /// Connects the client that was captured at `client` to `server`, which has to answer within
    /// `patience`.
    pub(super) async fn connect(
        &self,
        client: SocketAddr,
        server: SocketAddr,
        patience: Duration,
    ) -> io::Result<Connected> {
        match self {
            Self::Kernel => {
                let connected = timeout(patience, TcpStream::connect(server)).await;
                let stream = connected.map_err(|_| io::ErrorKind::TimedOut)??;
                let _ = stream.set_nodelay(true);
                let own = stream.local_addr()?;
                Ok((Box::new(stream), own))
            }
            Self::Own(stack) => {
                let stream = stack.connect(client, server, patience).await?;
                Ok((Box::new(stream), client))
            }
        }
    }

    /// What may be missing where a server does not answer a client, if that is not clear.
    pub(super) fn hint(&self, client: SocketAddr) -> String {
        match self {
            Self::Kernel => String::new(),
            Self::Own(stack) => format!(
                " (has it a way to {} over this link, and room for it in its neighbour table?)",
                stack.shown(client.ip())
            ),
        }
    }

    /// Lets a client with the address `own` wait for a connection of `server`, at `wanted` if the
    /// port is ours to choose.
    pub(super) fn open_door(&self, own: IpAddr, wanted: u16, server: IpAddr) -> io::Result<Door> {
        match self {
            Self::Kernel => {
                let listener = std::net::TcpListener::bind((own, 0))?;
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                Ok(Door { place: Place::Kernel(listener), from: server, stranger: None })
            }
            Self::Own(stack) => {
                let door = stack.open_door(SocketAddr::new(own, wanted))?;
                Ok(Door { place: Place::Own(door), from: server, stranger: None })
            }
        }
    }
}

/// Where a client waits for its server.
pub(super) struct Door {
    place: Place,
    /// Who may come.
    from: IpAddr,
    /// Who came instead.
    stranger: Option<IpAddr>,
}

enum Place {
    Kernel(TcpListener),
    Own(stack::Door),
}

impl Door {
    /// What the server has to be told.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match &self.place {
            Place::Kernel(listener) => listener.local_addr(),
            Place::Own(door) => Ok(door.address()),
        }
    }

    /// Waits for the server. Others are turned away.
    pub(super) async fn accept(&mut self) -> io::Result<Box<dyn Connection>> {
        loop {
            let (connection, from): (Box<dyn Connection>, _) = match &mut self.place {
                Place::Kernel(listener) => {
                    let (stream, from) = listener.accept().await?;
                    let _ = stream.set_nodelay(true);
                    (Box::new(stream), Some(from.ip()))
                }
                Place::Own(door) => {
                    let (stream, from) = door.accept().await?;
                    (Box::new(stream), from)
                }
            };
            if from == Some(self.from) {
                return Ok(connection);
            }
            self.stranger = from;
        }
    }

    /// Who came and was turned away.
    pub(super) const fn stranger(&self) -> Option<IpAddr> {
        self.stranger
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({:?})", self.address())
    }
}
