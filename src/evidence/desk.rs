//! The thread that makes files of what the packet loop hands over: what each packet has to do with
//! it, and the pcapng itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::file::{Beginning, CASE, Case, Entry, FORM, RUN, Run, STATE, pack_state, tag};
use super::keeper::Keeper;
use super::recorder::{Noted, Taken};
use super::ring::{Half, Kept, Start, What};
use crate::engine::{DivergenceKind, Event, FlowKey, Instant, LegId, Link};
use crate::io::pcap::{Direction, Notes, Writer};
use crate::observe::EvidenceCounts;
use crate::observe::describe::describe;
use crate::observe::json::{event_json, event_name};
use crate::wire::parse::captured::LinkType;
use crate::wire::{Packet, Segment, TcpFlags, checksum, parse};

/// Pieces that wait for the thread; the next one is lost.
const WAITING_MAX: usize = 2;

/// The thread, and the way to it.
#[derive(Debug)]
pub struct Desk {
    inbox: Option<SyncSender<Taken>>,
    thread: Option<JoinHandle<()>>,
}

impl Desk {
    /// Starts the thread.
    pub fn start(
        keeper: Keeper,
        names: [String; 2],
        counts: Arc<EvidenceCounts>,
    ) -> io::Result<Self> {
        let (inbox, taken) = sync_channel(WAITING_MAX);
        let work = move || run(keeper, &names, &counts, &taken);
        let thread = std::thread::Builder::new().name("evidence".into()).spawn(work)?;
        Ok(Self { inbox: Some(inbox), thread: Some(thread) })
    }

    /// Where it takes what there is to write. It ends when nobody has it any more.
    pub fn inbox(&self) -> SyncSender<Taken> {
        self.inbox.clone().expect("it stands until the desk is dropped")
    }
}

impl Drop for Desk {
    /// Waits until everything that was given is written.
    fn drop(&mut self) {
        self.inbox = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the evidence thread has panicked; its last file may be missing");
        }
    }
}

fn run(mut keeper: Keeper, names: &[String; 2], counts: &EvidenceCounts, taken: &Receiver<Taken>) {
    let mut is_told = false;
    while let Ok(taken) = taken.recv() {
        let (case, file) = match make(&taken, names) {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "a piece of evidence cannot be made");
                counts.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
        };
        drop(taken);
        match keeper.keep(&case.id, &file) {
            Ok(()) => {
                counts.written.fetch_add(1, Ordering::Relaxed);
                let id = &case.id;
                tracing::info!("evidence written: `shadowvm divergences show {id}`");
                is_told = false;
            }
            Err(why) => {
                counts.lost.fetch_add(1, Ordering::Relaxed);
                if !is_told {
                    tracing::warn!("no evidence is written: {why}; see [evidence]");
                }
                is_told = true;
            }
        }
    }
}

/// A step, its number, and the half it stands in.
struct Numbered<'a> {
    number: u64,
    half: &'a Half,
    at: Instant,
    what: &'a What,
}

/// The file's content.
pub fn make(taken: &Taken, names: &[String; 2]) -> io::Result<(Case, Vec<u8>)> {
    let case = case(taken, names);
    let steps =
        taken.halves.iter().flat_map(|half| half.steps.iter().map(move |step| (half, step)));
    let steps: Vec<Numbered<'_>> = (taken.first..)
        .zip(steps)
        .map(|(number, (half, step))| Numbered { number, half, at: step.at, what: &step.what })
        .collect();
    let comments = comments(taken, &steps, names);
    let application = concat!("shadowvm ", env!("CARGO_PKG_VERSION"));
    let mut writer = Writer::ng_about(Vec::new(), Some((&case.text, application)))?;
    for name in ["client", "a", "b"] {
        writer.interface(LinkType::ETHERNET, Some(name))?;
    }
    writer.local_block(CASE, &serde_json::to_vec(&case)?)?;
    for step in &steps {
        let (link, kept, direction) = match step.what {
            What::In(link, kept) => (link, kept, Direction::In),
            What::Out(link, kept) => (link, kept, Direction::Out),
            _ => continue,
        };
        let mut frame = step.half.frame(kept);
        let tag = tag(&frame);
        checksum::complete(&mut frame);
        let data = frame.to_vec();
        let notes = Notes {
            comment: comments.get(&step.number).map(String::as_str),
            direction: Some(direction),
            local: Some(&tag),
        };
        let unix_ns = taken.origin_ns + step.at.nanos();
        writer.noted_packet(link.index() as u32, unix_ns, &data, data.len(), notes)?;
    }
    let run = Run {
        origin_ns: taken.origin_ns,
        config: taken.config.clone(),
        start: taken.halves.first().map_or(Beginning::Unknown, |half| Beginning::of(&half.start)),
        steps: entries(&steps),
        noted: taken.noted.iter().map(|noted| exactly(noted.at, &noted.event)).collect(),
    };
    if let Some(Half { start: Start::State(snapshot), .. }) = taken.halves.first() {
        writer.local_block(STATE, &pack_state(snapshot))?;
    }
    writer.local_block(RUN, &serde_json::to_vec(&run)?)?;
    Ok((case, writer.into_inner()))
}

/// An event so that two runs can be told apart by it.
pub fn exactly(at: Instant, event: &Event) -> String {
    format!("{} {event:?}", at.nanos())
}

fn entries(steps: &[Numbered<'_>]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for step in steps {
        match (Entry::of(step.at, step.what), entries.last_mut()) {
            (None, Some(Entry::Packets(count))) => *count += 1,
            (None, _) => entries.push(Entry::Packets(1)),
            (Some(entry), _) => entries.push(entry),
        }
    }
    entries
}

fn case(taken: &Taken, names: &[String; 2]) -> Case {
    let unix_ns = |at: Instant| taken.origin_ns + at.nanos();
    let Noted { at, event, .. } = &taken.main;
    let kind = match event {
        Event::Diverged { .. } => "divergence",
        Event::Promoted { .. } => "failover",
        Event::SyncEnded { .. } => "sync_failed",
        other => event_name(other),
    };
    let t_ns = unix_ns(*at);
    let json = |noted: &Noted| {
        let mut value = event_json(unix_ns(noted.at), &noted.event, names);
        value["text"] = describe(&noted.event, names).into();
        value
    };
    Case {
        form: FORM,
        version: env!("CARGO_PKG_VERSION").into(),
        id: format!("{}-{kind}", super::store::stamp(t_ns)),
        kind: kind.into(),
        t_ns,
        text: describe(event, names),
        event: event_json(t_ns, event, names),
        servers: names.clone(),
        numbers: taken.numbers.map(Into::into),
        noted: taken.noted.iter().map(json).collect(),
    }
}

/// What packets have to do with it, by the number of their step.
fn comments(taken: &Taken, steps: &[Numbered<'_>], names: &[String; 2]) -> BTreeMap<u64, String> {
    let mut comments: BTreeMap<u64, String> = BTreeMap::new();
    let mut add = |number: u64, text: &str| {
        let comment = comments.entry(number).or_default();
        if !comment.is_empty() {
            comment.push('\n');
        }
        comment.push_str(text);
    };
    for noted in &taken.noted {
        // On the packet that it came from; what came with the time, on the one before.
        let near = steps.iter().rev().skip_while(|step| step.number > noted.step);
        let is_packet = |step: &&Numbered<'_>| matches!(step.what, What::In(..));
        if let Some(step) = near.clone().find(is_packet) {
            let text = describe(&noted.event, names);
            match noted.at.since(step.at) {
                later if later.is_zero() => add(step.number, &text),
                later => add(step.number, &format!("{later:.1?} later: {text}")),
            }
        }
    }
    let (Event::Diverged { flow, divergence }, Some(numbers)) = (&taken.main.event, taken.numbers)
    else {
        return comments;
    };
    let before = || steps.iter().rev().skip_while(|step| step.number > taken.main.step);
    for leg in LegId::ALL {
        let number = numbers.legs[leg.index()];
        let found = before().find(|step| match step.what {
            What::In(Link::Server(from), kept) if *from == leg => {
                segment(step.half, kept).is_some_and(|seg| covers(&seg, number))
            }
            _ => false,
        });
        if let Some(step) = found {
            let at = divergence.at.since(crate::wire::Offset::START);
            let mut text = format!("the first byte that differs, {at} of the answers");
            if let Some(field) = &divergence.field {
                let _ = write!(text, " ({field})");
            }
            let _ = match divergence.kind {
                DivergenceKind::Byte(a, b) => {
                    let said = [a, b][leg.index()];
                    write!(text, ": {} says {said:#04x}", names[leg.index()])
                }
                DivergenceKind::Length => write!(text, ": one server ends here, the other goes on"),
            };
            add(step.number, &text);
        }
    }
    let shown = before().find(|step| match step.what {
        What::Out(Link::Client, kept) => {
            segment(step.half, kept).is_some_and(|seg| is_data_of(&seg, flow))
        }
        _ => false,
    });
    if let Some(step) = shown {
        add(step.number, "the last bytes that the client was shown before the difference");
    }
    comments
}

fn segment(half: &Half, kept: &Kept) -> Option<Segment> {
    match parse::parse(&half.frame(kept)) {
        Ok(Packet::Tcp(segment)) => Some(segment),
        _ => None,
    }
}

/// Whether `number` is one of the segment's, the FIN's included.
fn covers(segment: &Segment, number: u32) -> bool {
    let len = segment.payload_len + usize::from(segment.flags.has(TcpFlags::FIN));
    (number.wrapping_sub(segment.seq) as usize) < len
}

fn is_data_of(segment: &Segment, flow: &FlowKey) -> bool {
    let ends: (SocketAddr, SocketAddr) = (segment.dst(), segment.src());
    segment.payload_len > 0 && ends == (flow.client, flow.server)
}
