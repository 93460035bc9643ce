//! A connection's timers: when each is due, and what happens then.

use super::conn::{Conn, Phase};
use super::habits::Habits;

/// When each is due (ns).
#[derive(Clone, Copy, Debug, Default)]
pub struct Timers {
    /// The SYN, or what is on its way, is repeated.
    pub resend_at: Option<u64>,
    /// The end of a flight is repeated.
    pub tail_at: Option<u64>,
    /// The tail was repeated since the last progress.
    pub has_repeated_tail: bool,
    /// A closed window is asked.
    pub persist_at: Option<u64>,
    /// How often it was.
    pub persists: u32,
    /// An ack has waited long enough.
    pub ack_at: Option<u64>,
    /// The peer is asked whether it lives.
    pub keep_at: Option<u64>,
    /// The window's edge moves again.
    pub window_at: Option<u64>,
    /// TIME-WAIT is over.
    pub wait_at: Option<u64>,
    /// SYNs sent.
    pub syns: u32,
}

impl Timers {
    /// The next that is due.
    pub fn next(&self) -> Option<u64> {
        let all = [
            self.resend_at,
            self.tail_at,
            self.persist_at,
            self.ack_at,
            self.keep_at,
            self.window_at,
            self.wait_at,
        ];
        all.into_iter().flatten().min()
    }
}

/// Takes a timer that is due.
fn is_due(at: &mut Option<u64>, now: u64) -> bool {
    at.take_if(|at| *at <= now).is_some()
}

impl Conn {
    /// What is due happens.
    pub(super) fn on_timers(&mut self, now: u64) {
        if is_due(&mut self.timers.resend_at, now) {
            match self.phase {
                Phase::SynSent | Phase::SynReceived => self.send_syn(now),
                _ => self.send.on_timeout(),
            }
        }
        if is_due(&mut self.timers.tail_at, now) {
            self.timers.has_repeated_tail = true;
            self.again = self.send.tail(self.send.mss);
        }
        if is_due(&mut self.timers.persist_at, now) {
            self.timers.persists += 1;
            let byte = self.send.beyond_edge(&self.habits);
            self.wants_probe = byte.is_none();
            self.again = byte;
        }
        self.wants_ack |= is_due(&mut self.timers.ack_at, now);
        if is_due(&mut self.timers.keep_at, now) {
            self.wants_probe |= !self.send.is_waiting();
            self.heard(now);
        }
        is_due(&mut self.timers.window_at, now);
        if is_due(&mut self.timers.wait_at, now) {
            self.end();
        }
    }

    /// Sets the timers of an open connection after everything was said.
    pub(super) fn arm(&mut self, now: u64) {
        if self.phase != Phase::Open {
            return;
        }
        let Self { timers, send, habits, .. } = self;
        if send.is_waiting() {
            timers.resend_at.get_or_insert(now + send.congestion.rto());
            if !timers.has_repeated_tail && timers.tail_at.is_none() && !send.is_recovering() {
                timers.tail_at = tail_probe(send, habits).map(|ns| now + ns);
            }
        } else {
            (timers.resend_at, timers.tail_at) = (None, None);
        }
        match send.is_shut() {
            true => {
                let wait = send.congestion.rto() << timers.persists.min(8);
                timers.persist_at.get_or_insert(now + wait.min(60_000_000_000));
            }
            false => timers.persist_at = None,
        }
        timers.window_at = self.receive.rest(now, habits);
    }
}

fn tail_probe(send: &super::send::Send, habits: &Habits) -> Option<u64> {
    send.congestion.tail_probe().filter(|_| habits.has_tail_probe)
}
