//! Connections of clients with servers, either way round: by the kernel, from an address of this
//! machine, or by a stack of our own, from the captured one.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

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
    /// Connects the client that was captured at `client` to `server`.
    pub(super) async fn connect(
        &self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> io::Result<Connected> {
        match self {
            Self::Kernel => {
                let stream = TcpStream::connect(server).await?;
                let _ = stream.set_nodelay(true);
                let own = stream.local_addr()?;
                Ok((Box::new(stream), own))
            }
            Self::Own(stack) => Ok((Box::new(stack.connect(client, server).await?), client)),
        }
    }

    /// Lets a client with the address `own` wait for a connection of `server`, at `wanted` if the
    /// port is ours to choose.
    pub(super) fn open_door(&self, own: IpAddr, wanted: u16, server: IpAddr) -> io::Result<Door> {
        match self {
            Self::Kernel => {
                let listener = std::net::TcpListener::bind((own, 0))?;
                listener.set_nonblocking(true)?;
                Ok(Door::Kernel(TcpListener::from_std(listener)?, server))
            }
            Self::Own(stack) => {
                Ok(Door::Own(stack.open_door(SocketAddr::new(own, wanted), server)?))
            }
        }
    }
}

/// Where a client waits for its server.
pub(super) enum Door {
    /// By the kernel, and who may come.
    Kernel(TcpListener, IpAddr),
    Own(stack::Door),
}

impl Door {
    /// What the server has to be told.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Kernel(listener, _) => listener.local_addr(),
            Self::Own(door) => Ok(door.address()),
        }
    }

    /// Waits for the server. Others are turned away.
    pub(super) async fn accept(&mut self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Kernel(listener, server) => loop {
                let (stream, from) = listener.accept().await?;
                if from.ip() == *server {
                    let _ = stream.set_nodelay(true);
                    return Ok(Box::new(stream));
                }
            },
            Self::Own(door) => Ok(Box::new(door.accept().await?)),
        }
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({:?})", self.address())
    }
}
