//! What the two servers said around the first byte that differs, out of the packets of evidence.

use super::file::{CaseNumbers, Evidence};
use crate::engine::{LegId, Link};
use crate::replay::view::Window;
use crate::wire::{Packet, parse};

/// No answer is as long; a file may say anything.
const POSITION_MAX: u64 = 1 << 56;

/// Both servers' bytes around position `at` of the answers. What is not in the file is `?`.
pub fn windows(evidence: &Evidence, at: u64, numbers: CaseNumbers) -> [Window; 2] {
    LegId::ALL.map(|leg| match at < POSITION_MAX {
        true => window(evidence, leg, at, numbers.legs[leg.index()]),
        false => Window::around(POSITION_MAX),
    })
}

fn window(evidence: &Evidence, leg: LegId, at: u64, number: u32) -> Window {
    let end = at + Window::AFTER;
    let from = at.saturating_sub(Window::BEFORE);
    // What was heard, by its position; of bytes that came twice the first ones.
    let mut heard: Vec<Option<u8>> = vec![None; (end - from) as usize];
    for packet in &evidence.packets {
        if packet.is_sent || packet.link != Link::Server(leg) {
            continue;
        }
        let Ok(Packet::Tcp(segment)) = parse::parse(&packet.frame) else { continue };
        if evidence.client_port().is_some_and(|port| port != segment.dst_port) {
            continue;
        }
        // Positions have 64 bits, numbers 32; the segment is near `at`, or of no use.
        let begin = at as i64 + i64::from(segment.seq.wrapping_sub(number) as i32);
        let said = &packet.frame.body()[..segment.payload_len.min(packet.frame.body().len())];
        for (place, byte) in (begin..).zip(said) {
            let index = place - from as i64;
            if let Some(kept) = usize::try_from(index).ok().and_then(|index| heard.get_mut(index)) {
                kept.get_or_insert(*byte);
            }
        }
    }
    let mut window = Window::around(at);
    let known = heard.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    for (place, byte) in (from..).zip(&heard[..known]) {
        match byte {
            Some(byte) => window.keep(place, &[*byte]),
            None => window.keep_hole(place, 1),
        }
    }
    window
}

impl Evidence {
    /// The client's port of the flow that it is about, where all links have the same.
    fn client_port(&self) -> Option<u16> {
        let is_clone = !self.run.config.contains("addressing = \"vip\"");
        let client = self.case.event["flow"]["client"].as_str().filter(|_| is_clone)?;
        client.parse::<std::net::SocketAddr>().ok().map(|client| client.port())
    }
}
