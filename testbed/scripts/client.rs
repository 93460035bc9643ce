//! The client made by hand: what it says, segment by segment, and what it takes.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;

use bytes::Bytes;
use shadowvm::engine::{Input, LegId, Link};
use shadowvm::lab::world::{CLIENT_MAC, SERVER_MAC};
use shadowvm::wire::build::{TcpFields, tcp};
use shadowvm::wire::{Frame, L2, L3, Mac, TcpFlags, TcpOptions, Tsval};

use super::conn::{ACK, Conn, ISS, Offer, SYN, Seen};
use super::rig::{A, B, Rig, addresses, ensure};

impl Rig {
    /// A SYN from a new port of the client.
    pub fn syn(&mut self, offer: Offer) -> Result<Conn, String> {
        let conn = self.new_conn(offer);
        self.repeat_syn(&conn)?;
        Ok(conn)
    }

    /// A connection from a new port, of which nothing was said.
    pub fn new_conn(&mut self, offer: Offer) -> Conn {
        self.port += 1;
        Conn {
            port: self.port,
            offer,
            iss: ISS,
            viss: 0,
            has_stamps: false,
            sent: 0,
            received: Vec::new(),
            ahead: BTreeMap::new(),
            tsval: self.tsval,
            tsecr: 0,
            window: 60_000,
            urgent: 0,
            read_to: self.seen.len(),
        }
    }

    /// A SYN from the port of an earlier connection, with numbers beyond that one's.
    pub fn syn_again(&mut self, before: &Conn) -> Result<Conn, String> {
        let conn = Conn {
            iss: before.iss.wrapping_add(1_000_000),
            viss: 0,
            sent: 0,
            received: Vec::new(),
            ahead: BTreeMap::new(),
            tsval: before.tsval + 1000,
            tsecr: 0,
            read_to: self.seen.len(),
            ..before.clone()
        };
        self.repeat_syn(&conn)?;
        Ok(conn)
    }

    /// The same SYN again.
    pub fn repeat_syn(&mut self, conn: &Conn) -> Result<(), String> {
        let frame = self.syn_frame(conn);
        self.client_says(frame)
    }

    /// The SYN of a connection.
    pub fn syn_frame(&mut self, conn: &Conn) -> Frame {
        let mut options = TcpOptions { mss: Some(conn.offer.mss), ..TcpOptions::default() };
        options.window_scale = conn.offer.scale;
        options.sack_permitted = conn.offer.has_sack;
        if conn.offer.has_stamps {
            options.timestamps = Some((Tsval(conn.tsval), Tsval(0)));
        }
        self.frame(conn, SYN, (conn.iss, 0), options, &[])
    }

    /// Waits for the SYN-ACK, acknowledges it, and takes both servers' sockets.
    pub fn accept(&mut self, conn: &mut Conn) -> Result<[TcpStream; 2], String> {
        self.shake(conn)?;
        Ok([self.stream(A)?, self.stream(B)?])
    }

    /// Waits for the SYN-ACK and acknowledges it.
    pub fn shake(&mut self, conn: &mut Conn) -> Result<Seen, String> {
        let synack = self.await_syn_ack(conn)?;
        self.say(conn, ACK, b"")?;
        Ok(synack)
    }

    /// Waits for the SYN-ACK.
    pub fn await_syn_ack(&mut self, conn: &mut Conn) -> Result<Seen, String> {
        let (port, expected) = (conn.port, conn.iss.wrapping_add(1));
        let synack = self.until("a SYN-ACK", |rig| {
            rig.shown(port).find(|s| s.has(SYN) && s.seg.ack == expected).cloned()
        })?;
        conn.viss = synack.seg.seq;
        if let Some((val, _)) = synack.seg.options.timestamps {
            (conn.has_stamps, conn.tsecr) = (true, val.0);
        }
        conn.read_to = self.seen.len();
        Ok(synack)
    }

    /// The next connection that a server's program accepts.
    pub fn stream(&mut self, leg: LegId) -> Result<TcpStream, String> {
        let stream = self.until("a server to accept", |rig| {
            rig.listeners[leg.index()].as_ref()?.accept().ok().map(|(stream, _)| stream)
        })?;
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(stream)
    }

    /// A connection, open on both servers.
    pub fn open(&mut self, offer: Offer) -> Result<(Conn, [TcpStream; 2]), String> {
        let mut conn = self.syn(offer)?;
        let streams = self.accept(&mut conn)?;
        Ok((conn, streams))
    }

    /// The next segment of the client, with what it has received acknowledged.
    pub fn say(&mut self, conn: &mut Conn, flags: TcpFlags, data: &[u8]) -> Result<(), String> {
        self.say_at(conn, conn.sent, flags, data, &[])?;
        conn.sent += data.len() as u32 + u32::from(flags.has(TcpFlags::FIN));
        Ok(())
    }

    /// A segment of the client at offset `at` of its stream, with SACK blocks in offsets.
    pub fn say_at(
        &mut self,
        conn: &mut Conn,
        at: u32,
        flags: TcpFlags,
        data: &[u8],
        sack: &[(u32, u32)],
    ) -> Result<(), String> {
        let frame = self.frame_at(conn, at, flags, data, sack);
        self.client_says(frame)
    }

    /// That segment, not yet sent.
    pub fn frame_at(
        &mut self,
        conn: &mut Conn,
        at: u32,
        flags: TcpFlags,
        data: &[u8],
        sack: &[(u32, u32)],
    ) -> Frame {
        conn.tsval += 1;
        let mut options = TcpOptions::default();
        if conn.has_stamps {
            options.timestamps = Some((Tsval(conn.tsval), Tsval(conn.tsecr)));
        }
        let base = conn.viss.wrapping_add(1);
        for (left, right) in sack {
            options.sack.push(base.wrapping_add(*left), base.wrapping_add(*right));
        }
        let seq = conn.iss.wrapping_add(1 + at);
        let ack = base.wrapping_add(conn.received.len() as u32);
        self.frame(conn, flags, (seq, ack), options, data)
    }

    /// A frame on the client's link.
    pub fn client_says(&mut self, frame: Frame) -> Result<(), String> {
        self.input(Input::Frame(Link::Client, frame))
    }

    fn frame(
        &mut self,
        conn: &Conn,
        flags: TcpFlags,
        (seq, ack): (u32, u32),
        options: TcpOptions,
        data: &[u8],
    ) -> Frame {
        let l2 = L2 { dst: Mac(SERVER_MAC), src: Mac(CLIENT_MAC), vlans: self.vlans };
        let (src, dst) = addresses(self.is_v6);
        self.id += 1;
        let id = if self.is_v6 { 0 } else { self.id };
        let l3 = L3 { src, dst, ttl: 64, tos: 0, dont_fragment: true, id, flow_label: 0 };
        let (src_port, window, urgent) = (conn.port, conn.window, conn.urgent);
        let fields = TcpFields { src_port, dst_port: 80, seq, ack, flags, window, urgent, options };
        tcp(&l2, &l3, &fields, Bytes::copy_from_slice(data), 1400)
    }

    /// Takes what the client was shown, without a word.
    pub fn take(&mut self, conn: &mut Conn) -> bool {
        let mut has_data = false;
        while let Some(seen) = self.seen.get(conn.read_to) {
            conn.read_to += 1;
            if seen.link == Link::Client && seen.seg.dst_port == conn.port {
                conn.take(seen);
                has_data |= !seen.data.is_empty();
            }
        }
        has_data
    }

    /// Receives, acknowledging, until the client has `total` bytes of the response.
    pub fn receive(&mut self, conn: &mut Conn, total: usize) -> Result<(), String> {
        self.until("the response", |rig| {
            if rig.take(conn) {
                rig.say(conn, ACK, b"").ok()?;
            }
            (conn.received.len() >= total).then_some(())
        })
    }

    /// Acknowledges all that was shown so far.
    pub fn receive_all_shown(&mut self, conn: &mut Conn) -> Result<(), String> {
        conn.read_to = 0;
        self.take(conn);
        self.say(conn, ACK, b"")
    }

    /// These programs say the rest of `all`, as fast as the client takes it.
    pub fn receive_from(
        &mut self,
        conn: &mut Conn,
        streams: &mut [TcpStream],
        all: &[u8],
    ) -> Result<(), String> {
        let mut said = vec![conn.received.len(); streams.len()];
        while conn.received.len() < all.len() {
            for (stream, said) in streams.iter_mut().zip(&mut said) {
                *said += stream.write(&all[*said..]).unwrap_or(0);
            }
            let have = conn.received.len();
            self.receive(conn, have + 1)?;
        }
        ensure(conn.received == all, || "the response arrived changed".into())
    }
}
