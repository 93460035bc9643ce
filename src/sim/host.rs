//! One host, on smoltcp or on the model, behind one face for the applications.

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::IpAddress;

pub use smoltcp::socket::tcp::State;

use super::model::Conn;
use super::model::habits::Habits;
use super::model::stack::Stack;
use super::scenario::StackPlan;
use super::smol::SmolHost;

/// The service's port.
pub const PORT: u16 = 80;
/// The service's address, which both servers have.
pub const SERVICE: [u8; 4] = [10, 0, 0, 10];

/// A host.
#[derive(Debug)]
pub enum Host {
    /// On smoltcp.
    Smol(Box<SmolHost>),
    /// On the model.
    Model(Box<Stack>),
}

/// A socket of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handle {
    /// See [`Host::Smol`].
    Smol(SocketHandle),
    /// See [`Host::Model`].
    Model(usize),
}

/// A socket to work with.
pub enum Socket<'a> {
    /// See [`Host::Smol`].
    Smol(&'a mut tcp::Socket<'static>),
    /// See [`Host::Model`].
    Model(&'a mut Conn),
}

impl Host {
    /// A host with this address; `seed` feeds its stack.
    pub fn new(plan: &StackPlan, mac: [u8; 6], ip: [u8; 4], seed: u64, now: u64) -> Self {
        match &plan.model {
            Some(habits) => Self::Model(Box::new(Stack::new(habits, mac, ip, seed))),
            None => Self::Smol(Box::new(SmolHost::new(plan, mac, ip, seed, now))),
        }
    }

    /// The same host once more, connections included, if it is on the model; `salt` makes it choose
    /// other numbers for new ones.
    pub fn copy(&self, salt: u64) -> Option<Self> {
        match self {
            Self::Smol(_) => None,
            Self::Model(stack) => Some(Self::Model(Box::new(stack.copy(salt)))),
        }
    }

    /// The host's character, if it is on the model.
    pub fn habits(&self) -> Option<&Habits> {
        match self {
            Self::Smol(_) => None,
            Self::Model(stack) => Some(stack.habits()),
        }
    }

    /// A new socket with the host's habits: receive and send buffers.
    pub fn add_socket(&mut self, buffers: (usize, usize)) -> Handle {
        match self {
            Self::Smol(host) => Handle::Smol(host.add_socket(buffers)),
            Self::Model(stack) => Handle::Model(stack.add(buffers)),
        }
    }

    /// A socket of this host.
    pub fn socket(&mut self, handle: Handle) -> Socket<'_> {
        match (self, handle) {
            (Self::Smol(host), Handle::Smol(handle)) => Socket::Smol(host.socket(handle)),
            (Self::Model(stack), Handle::Model(index)) => Socket::Model(stack.conn(index)),
            _ => unreachable!("a handle is used on its own host"),
        }
    }

    /// Forgets a socket, without a word.
    pub fn remove(&mut self, handle: Handle) {
        match (self, handle) {
            (Self::Smol(host), Handle::Smol(handle)) => drop(host.sockets.remove(handle)),
            (Self::Model(stack), Handle::Model(index)) => stack.remove(index),
            _ => unreachable!("a handle is used on its own host"),
        }
    }

    /// Begins a connection to the service.
    pub fn connect(&mut self, now: u64, handle: Handle, port: u16) {
        match (self, handle) {
            (Self::Smol(host), Handle::Smol(handle)) => host.connect(handle, port),
            (Self::Model(stack), Handle::Model(index)) => {
                stack.connect(now, index, port, (SERVICE, PORT));
            }
            _ => unreachable!("a handle is used on its own host"),
        }
    }

    /// A frame arrived at `now` (ns).
    pub fn deliver(&mut self, now: u64, frame: Vec<u8>) {
        match self {
            Self::Smol(host) => host.deliver(frame),
            Self::Model(stack) => stack.deliver(now, &frame),
        }
    }

    /// Lets the stack work at `now` (ns); returns what it sends.
    pub fn poll(&mut self, now: u64) -> Vec<Vec<u8>> {
        match self {
            Self::Smol(host) => host.poll(now),
            Self::Model(stack) => stack.poll(now),
        }
    }

    /// When it wants to be polled again (ns).
    pub fn wake_at(&self) -> Option<u64> {
        match self {
            Self::Smol(host) => host.wake_at,
            Self::Model(stack) => stack.wake_at,
        }
    }
}

impl Socket<'_> {
    /// The connection's state.
    pub fn state(&self) -> State {
        match self {
            Self::Smol(socket) => socket.state(),
            Self::Model(conn) => conn.state(),
        }
    }

    /// Waits for a connection to the service.
    pub fn listen(&mut self) {
        match self {
            // It may listen already.
            Self::Smol(socket) => drop(socket.listen(PORT)),
            Self::Model(conn) => conn.listen(PORT),
        }
    }

    /// Whether closing now loses nothing. smoltcp 0.13 ignores window updates in LAST-ACK, and
    /// enters that state before its bytes are sent: what the window has no room for then would
    /// never leave.
    pub fn may_close(&self) -> bool {
        match self {
            Self::Smol(socket) => socket.state() != State::CloseWait || socket.send_queue() == 0,
            Self::Model(_) => true,
        }
    }

    /// Nothing more will be written.
    pub fn close(&mut self) {
        match self {
            Self::Smol(socket) => socket.close(),
            Self::Model(conn) => conn.close(),
        }
    }

    /// Ends the connection by a reset.
    pub fn abort(&mut self) {
        match self {
            Self::Smol(socket) => socket.abort(),
            Self::Model(conn) => conn.abort(),
        }
    }

    /// Whether the application may write.
    pub fn may_send(&self) -> bool {
        match self {
            Self::Smol(socket) => socket.may_send(),
            Self::Model(conn) => conn.may_send(),
        }
    }

    /// Whether it may, and there is room.
    pub fn can_send(&self) -> bool {
        match self {
            Self::Smol(socket) => socket.can_send(),
            Self::Model(conn) => conn.can_send(),
        }
    }

    /// Whether there is, or may come, something to read.
    pub fn may_recv(&self) -> bool {
        match self {
            Self::Smol(socket) => socket.may_recv(),
            Self::Model(conn) => conn.may_recv(),
        }
    }

    /// Bytes to read.
    pub fn recv_queue(&self) -> usize {
        match self {
            Self::Smol(socket) => socket.recv_queue(),
            Self::Model(conn) => conn.readable().len(),
        }
    }

    /// Reads all there is in one piece; nothing if there is nothing.
    pub fn recv<T>(&mut self, hear: impl FnOnce(&[u8]) -> T) -> Option<T> {
        match self {
            Self::Smol(socket) if socket.can_recv() => {
                socket.recv(|bytes| (bytes.len(), hear(bytes))).ok()
            }
            Self::Model(conn) if !conn.readable().is_empty() => {
                let bytes = conn.readable();
                let (len, heard) = (bytes.len(), hear(bytes));
                conn.consume(len);
                Some(heard)
            }
            _ => None,
        }
    }

    /// Writes; returns how many bytes there was room for.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Smol(socket) => socket.send_slice(bytes).unwrap_or(0),
            Self::Model(conn) => conn.write(bytes),
        }
    }

    /// Whether there is a connection that is not over.
    pub fn is_active(&self) -> bool {
        !matches!(self.state(), State::Closed | State::TimeWait | State::Listen)
    }

    /// The other end, if there is a connection.
    pub fn peer(&self) -> Option<([u8; 4], u16)> {
        match self {
            Self::Smol(socket) => {
                let remote = socket.remote_endpoint()?;
                match remote.addr {
                    IpAddress::Ipv4(ip) => Some((ip.octets(), remote.port)),
                    IpAddress::Ipv6(_) => None,
                }
            }
            Self::Model(conn) => conn.peer(),
        }
    }
}
