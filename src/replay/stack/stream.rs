//! One connection of a client on the interface, as tokio knows connections.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{RecvError, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stack;

/// A connection. Nobody has to wait for its end: the stack ends it as TCP does.
pub(crate) struct Stream {
    stack: Stack,
    client: IpAddr,
    handle: SocketHandle,
    /// Client and server, if the client connected.
    ends: Option<(SocketAddr, SocketAddr)>,
}

impl Stream {
    pub(super) const fn new(
        stack: Stack,
        client: IpAddr,
        handle: SocketHandle,
        ends: Option<(SocketAddr, SocketAddr)>,
    ) -> Self {
        Self { stack, client, handle, ends }
    }

    /// Waits for the server's answer.
    pub(super) async fn opened(&self) -> io::Result<()> {
        let opened: io::Result<()> = poll_fn(|cx| {
            self.stack.with(self.client, self.handle, |socket| match socket.state() {
                State::SynSent | State::SynReceived => {
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                _ => Poll::Ready(Ok(())),
            })
        })
        .await;
        opened?;
        self.stack.lock().check()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stack.lock().check()?;
        self.stack.with(self.client, self.handle, |socket| {
            match socket.recv_slice(buffer.initialize_unfilled()) {
                Ok(0) => {
                    socket.register_recv_waker(cx.waker());
                    Poll::Pending
                }
                Ok(len) => {
                    buffer.advance(len);
                    Poll::Ready(Ok(()))
                }
                Err(RecvError::Finished) => Poll::Ready(Ok(())),
                Err(RecvError::InvalidState) => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                }
            }
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stack.lock().check()?;
        self.stack.with(self.client, self.handle, |socket| match socket.send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
            Ok(len) => Poll::Ready(Ok(len)),
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Says that no more comes, once all was acknowledged: what waits for a window then would wait
    /// for ever.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stack.with(self.client, self.handle, |socket| match socket.send_queue() {
            0 => {
                socket.close();
                Poll::Ready(Ok(()))
            }
            _ if !socket.may_send() => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            _ => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stack.let_go(self.client, self.handle, self.ends);
    }
}
