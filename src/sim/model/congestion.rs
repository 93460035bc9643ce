//! How much a sender may have on its way: slow start and congestion avoidance (RFC 5681), and the
//! retransmission timeout (RFC 6298).

const RTO_FIRST: u64 = 1_000_000_000;
const RTO_MAX: u64 = 60_000_000_000;
const WINDOW_MAX: usize = 1 << 20;

/// The congestion window and the timeout.
#[derive(Clone, Debug)]
pub struct Congestion {
    /// Bytes that may be on their way.
    pub window: usize,
    threshold: usize,
    srtt: Option<u64>,
    rttvar: u64,
    rto_min: u64,
    /// Timeouts in a row.
    pub backoff: u32,
}

impl Congestion {
    /// With a first flight of so many bytes.
    pub fn new(first_flight: usize, rto_min: u64) -> Self {
        Self {
            window: first_flight,
            threshold: usize::MAX,
            srtt: None,
            rttvar: 0,
            rto_min,
            backoff: 0,
        }
    }

    /// New bytes were acknowledged outside of recovery, or after a timeout.
    pub fn on_ack(&mut self, bytes: usize, mss: usize) {
        self.backoff = 0;
        self.window += match self.window < self.threshold {
            true => bytes.min(2 * mss),
            false => (mss * mss / self.window.max(1)).max(1),
        };
        self.window = self.window.min(WINDOW_MAX);
    }

    /// A loss was found by duplicates.
    pub fn on_loss(&mut self, flight: usize, mss: usize) {
        self.threshold = (flight / 2).max(2 * mss);
        self.window = self.threshold;
    }

    /// Nothing was heard for a timeout.
    pub fn on_timeout(&mut self, flight: usize, mss: usize) {
        if self.backoff == 0 {
            self.threshold = (flight / 2).max(2 * mss);
        }
        self.window = mss;
        self.backoff += 1;
    }

    /// A round trip took `rtt` (ns).
    pub fn on_rtt(&mut self, rtt: u64) {
        let Some(srtt) = self.srtt else {
            (self.srtt, self.rttvar) = (Some(rtt), rtt / 2);
            return;
        };
        self.rttvar = (3 * self.rttvar + srtt.abs_diff(rtt)) / 4;
        self.srtt = Some((7 * srtt + rtt) / 8);
    }

    /// The timeout now, doubled for every one in a row (ns).
    pub fn rto(&self) -> u64 {
        let rto = self.srtt.map_or(RTO_FIRST, |srtt| srtt + (4 * self.rttvar).max(1_000_000));
        (rto.max(self.rto_min) << self.backoff.min(10)).min(RTO_MAX)
    }

    /// When the end of a flight is repeated (ns); nothing before a round trip is known.
    pub fn tail_probe(&self) -> Option<u64> {
        Some((2 * self.srtt?).max(10_000_000)).filter(|&ns| ns < self.rto())
    }
}
