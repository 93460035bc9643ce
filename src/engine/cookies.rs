//! SYN cookies: when more handshakes are under way than clients would begin, the gateway answers
//! by itself and remembers nothing (RFC 4987 3.6). The servers hear of a client only once it has
//! proved that it exists.
//!
//! All that the flow will need stands in the sequence number shown:
//! `count` (2 bits, of 64 s) · client's MSS (3) · its window scale (4) · SACK (1) · MAC (22).
//! Timestamps need no bit: a client that was offered them uses them (RFC 7323 3.2). What was shown
//! for the servers is what they answered to others before, and does not change as long as a
//! cookie is valid. The number is the flow's own for ever: each server's is translated to it, as
//! that of a backup always is.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use siphasher::sip::SipHasher24;

use super::clock::own_clock;
use super::event::FlowKey;
use super::limits;
use super::pack::fields;
use super::time::{Duration, Instant};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L3, Segment, TcpFlags, TcpOptions, Tsval};

/// The window of a cookie's SYN-ACK: the servers must have granted as much to others.
pub const WINDOW: u16 = 2920;
/// The largest window scale that is promised. It reaches 8 MiB, and a server with less room than a
/// unit of it could never show any: the servers that carry the connection may be others by then.
const SCALE_MAX: u8 = 7;

/// Cookies are given from this share of `half_open_max` on, in percent.
const ON_PERCENT: usize = 25;
/// They are until handshakes under way are below this share.
const OFF_PERCENT: usize = 12;
/// Unit of the cookie's count.
const COUNT: Duration = Duration::from_secs(64);
/// A cookie is valid in the count that it was made in and in the next.
const VALID: Duration = Duration::from_secs(128);
/// Services of which an answer is remembered.
const ANSWERS_MAX: usize = 64;
/// Segment sizes that a cookie can name; a client's own is rounded down.
const SIZES: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1440, 1452, 1460];
/// A client without window scaling.
const NO_SCALE: u32 = 15;
const MAC_BITS: u32 = 22;

/// What both servers answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The smaller segment size.
    pub mss: u16,
    /// Window scale of the fields shown.
    pub window_scale: Option<u8>,
    /// Both take SACK blocks.
    pub has_sack: bool,
    /// Both have timestamps.
    pub has_timestamps: bool,
    /// The window granted, in bytes.
    pub window: u64,
    /// Hops left that the primary's frame had.
    pub ttl: u8,
}

/// What a client offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// To take SACK blocks.
    pub sack: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// To scale windows.
    pub window_scale: bool,
}

/// What a client with a valid cookie was shown. The flow keeps to it.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The sequence number of the SYN-ACK.
    pub iss: u32,
    /// Window scale of the fields shown.
    pub window_scale: Option<u8>,
    /// SACK was agreed on.
    pub has_sack: bool,
    /// Timestamps were.
    pub has_timestamps: bool,
    /// How far the client is, at most.
    pub round_trip: Duration,
    /// What the client has said before the servers answered, a few segments at most.
    pub early: Vec<(Segment, Bytes)>,
}

/// Makes and checks cookies.
#[derive(Debug)]
pub struct Cookies {
    key: (u64, u64),
    is_on: bool,
    given_at: Option<Instant>,
    answers: BTreeMap<SocketAddr, Answer>,
}

impl Cookies {
    /// `seed` must not be guessed from outside.
    pub fn new(seed: u64) -> Self {
        let key = (seed, seed.rotate_left(32) ^ 0x5bd1_e995_9d1b_54a5);
        Self { key, is_on: false, given_at: None, answers: BTreeMap::new() }
    }

    /// Whether SYNs were answered with cookies, and whether they are from now on, `half_open`
    /// handshakes being under way.
    pub fn judge(&mut self, half_open: usize, half_open_max: usize) -> (bool, bool) {
        let was_on = self.is_on;
        let percent = if was_on { OFF_PERCENT } else { ON_PERCENT };
        self.is_on = half_open * 100 >= half_open_max * percent;
        (was_on, self.is_on)
    }

    /// The servers at `server` have answered a client that had `offered` so much; what nobody has
    /// offered yet is not promised. As long as a cookie may come back, its promise stands.
    pub fn learn(&mut self, now: Instant, server: SocketAddr, heard: Answer, offered: Offered) {
        let known = self.answers.get(&server);
        let is_settled = match known {
            Some(_) => self.may_come_back(now),
            None => self.answers.len() == ANSWERS_MAX,
        };
        if is_settled {
            return;
        }
        // Without an offer nothing was agreed to.
        let old = known.copied().unwrap_or(heard);
        let answer = Answer {
            window_scale: match offered.window_scale {
                true => heard.window_scale.map(|scale| scale.min(SCALE_MAX)),
                false => old.window_scale,
            },
            has_sack: if offered.sack { heard.has_sack } else { old.has_sack },
            has_timestamps: if offered.timestamps {
                heard.has_timestamps
            } else {
                old.has_timestamps
            },
            ..heard
        };
        self.answers.insert(server, answer);
    }

    /// The SYN-ACK for `syn`; `None` if the client or the servers are such that no cookie can
    /// stand for them.
    pub fn answer(&mut self, now: Instant, key: &FlowKey, syn: &Segment) -> Option<Frame> {
        let answer = self.answers.get(&key.server).filter(|a| a.window >= u64::from(WINDOW))?;
        let offered = &syn.options;
        let size = SIZES.iter().rposition(|&size| size <= offered.mss.unwrap_or(SIZES[0]))?;
        let scale = offered.window_scale.filter(|_| answer.window_scale.is_some());
        let has_sack = offered.sack_permitted && answer.has_sack;
        let data = (size as u32) << 5 | scale.map_or(NO_SCALE, u32::from) << 1;
        let data = data | u32::from(has_sack);
        let stamps = offered.timestamps.filter(|_| answer.has_timestamps);
        let fields = TcpFields {
            src_port: syn.dst_port,
            dst_port: syn.src_port,
            seq: self.number(key, syn.seq, count(now), data),
            ack: syn.seq.wrapping_add(1),
            flags: TcpFlags::SYN.with(TcpFlags::ACK),
            window: WINDOW,
            urgent: 0,
            options: TcpOptions {
                mss: Some(answer.mss),
                window_scale: answer.window_scale.filter(|_| scale.is_some()),
                sack_permitted: has_sack,
                timestamps: stamps.map(|(value, _)| (own_clock(now), value)),
                ..TcpOptions::default()
            },
        };
        let l3 = L3 { ttl: answer.ttl, ..syn.l3.reversed() };
        self.given_at = Some(now);
        Some(build::tcp(&syn.l2.reversed(), &l3, &fields, Bytes::new(), u16::MAX))
    }

    /// The handshake that `ack` completes, if it carries a cookie: the SYN as the client sent it,
    /// as far as a cookie can tell, and what it was shown.
    pub fn check(&self, now: Instant, key: &FlowKey, ack: &Segment) -> Option<(Segment, Promise)> {
        let is_ack = ack.flags.has(TcpFlags::ACK)
            && !ack.flags.has(TcpFlags::SYN)
            && !ack.flags.has(TcpFlags::RST);
        if !is_ack || !self.may_come_back(now) {
            return None;
        }
        let answer = self.answers.get(&key.server)?;
        let (seq, iss) = (ack.seq.wrapping_sub(1), ack.ack.wrapping_sub(1));
        let data = (iss >> MAC_BITS) & 0xff;
        let counts = [count(now), count(now).wrapping_sub(1)];
        counts.iter().find(|&&count| self.number(key, seq, count, data) == iss)?;
        let stamps = ack.options.timestamps;
        let is_stale = |echo| !answer.has_timestamps || age(now, echo) > VALID;
        if stamps.is_some_and(|(_, echo)| is_stale(echo)) {
            return None;
        }
        let scale = Some((data >> 1) & 0xf).filter(|&scale| scale != NO_SCALE);
        let has_sack = data & 1 == 1;
        let window = u64::from(ack.window) << scale.unwrap_or(0);
        let syn = Segment {
            seq,
            ack: 0,
            flags: TcpFlags::SYN,
            window: u16::try_from(window).unwrap_or(u16::MAX),
            urgent: 0,
            options: TcpOptions {
                mss: Some(SIZES[(data >> 5) as usize]),
                window_scale: scale.map(|scale| scale as u8),
                sack_permitted: has_sack,
                timestamps: stamps.map(|(value, _)| (value, Tsval(0))),
                ..TcpOptions::default()
            },
            payload_len: 0,
            gso_size: None,
            ..*ack
        };
        let promise = Promise {
            iss,
            window_scale: answer.window_scale.filter(|_| scale.is_some()),
            has_sack,
            has_timestamps: stamps.is_some(),
            round_trip: stamps.map_or(limits::ROUND_TRIP_MAX, |(_, echo)| age(now, echo)),
            early: Vec::new(),
        };
        Some((syn, promise))
    }

    fn may_come_back(&self, now: Instant) -> bool {
        self.given_at.is_some_and(|at| now.since(at) <= VALID)
    }

    fn number(&self, key: &FlowKey, seq: u32, count: u64, data: u32) -> u32 {
        let mut hasher = SipHasher24::new_with_keys(self.key.0, self.key.1);
        for end in [&key.client, &key.server] {
            match end.ip() {
                IpAddr::V4(ip) => hasher.write_u32(ip.to_bits()),
                IpAddr::V6(ip) => hasher.write_u128(ip.to_bits()),
            }
            hasher.write_u16(end.port());
        }
        for tag in [key.vlan.0, key.vlan.1] {
            hasher.write_u16(tag.unwrap_or(u16::MAX)); // above every VLAN id
        }
        hasher.write_u32(seq);
        hasher.write_u64(count);
        hasher.write_u32(data);
        let mac = hasher.finish() as u32 & ((1 << MAC_BITS) - 1);
        (count as u32 & 3) << 30 | data << MAC_BITS | mac
    }
}

/// How long ago the gateway's clock said `stamp`.
fn age(now: Instant, stamp: Tsval) -> Duration {
    Duration::from_millis(own_clock(now).0.wrapping_sub(stamp.0).into())
}

fn count(now: Instant) -> u64 {
    now.millis() / (COUNT.as_millis() as u64)
}

fields!(Answer { mss, window_scale, has_sack, has_timestamps, window, ttl });
fields!(Cookies { key, is_on, given_at, answers });
