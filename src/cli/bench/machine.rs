//! `shadowvm bench sync --machine`: what a copy of a virtual machine costs, live and by
//! memory that is files, and beside stopping it first.
//!
//! The keeper of guests works as it does for a gateway; this program plays the gateway's part and
//! lets no time pass in it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::{Row, Table, Unit};
use crate::cli::guest_keeper::watch;
use crate::cli::guests::{Guests, MemoryCopy};
use crate::cli::stage::StageError;
use crate::engine::LegId;
use crate::sync::qemu;
use crate::sync::qemu::setup::{QemuSetup, Which};
use crate::sync::qemu::words::{News, Order, Report, Way};

/// Until both guests have started, on a machine that has other work too.
const BOOT_WAIT: Duration = Duration::from_secs(120);
/// How long a copy may take.
const WAIT: Duration = Duration::from_secs(60);

const PAGE: usize = 4096;

/// What a guest does meanwhile: its name, and what begins it.
const LOADS: [(&str, &str); 2] = [
    ("idle", "true"),
    (
        "memory churn",
        "{ while true; do cat /srv/period /srv/period /srv/period >/srv/www/churn; done & }",
    ),
];
const WAYS: [(&str, MemoryCopy, Way); 4] = [
    ("live", MemoryCopy::Live, Way::Live),
    ("stopped first", MemoryCopy::Live, Way::Stopped),
    ("shared", MemoryCopy::Shared, Way::Live),
    ("shared, stopped first", MemoryCopy::Shared, Way::Stopped),
];
const MEASURES: [(&str, Unit); 3] =
    [("pause", Unit::Seconds), ("total", Unit::Seconds), ("sent", Unit::Bytes)];

/// Measures.
pub(super) fn run(runs: u32, image: Option<&Path>, dir: &Path) -> Result<Table, StageError> {
    let mut rows = Vec::new();
    for (load, _) in LOADS {
        for (way, _, _) in WAYS {
            let row = |(measure, unit)| Row::new(format!("{load}, {way}: {measure}"), unit);
            rows.extend(MEASURES.map(row));
        }
    }
    let mut table = Table::new("sync of machines", json!({ "runs": runs }), rows);
    for copy in [MemoryCopy::Live, MemoryCopy::Shared] {
        with_guests(&Guests::find(image, dir, copy)?, copy, runs, &mut table)?;
    }
    let row = |load: usize, way: usize, measure: usize| {
        (load * WAYS.len() + way) * MEASURES.len() + measure
    };
    for (load, (name, _)) in LOADS.iter().enumerate() {
        let (live, stopped, shared) = (0, 1, 2);
        for (measure, what) in [(0, "pause"), (1, "total")] {
            let [live, stopped, shared] =
                [live, stopped, shared].map(|way| row(load, way, measure));
            table.ratio(format!("{name}, {what}: stopped first / live"), stopped, live);
            table.ratio(format!("{name}, {what}: live / shared"), live, shared);
        }
    }
    Ok(table)
}

/// The ways that guests of one kind can be copied, one after another under each load.
fn with_guests(
    guests: &Guests,
    copy: MemoryCopy,
    runs: u32,
    table: &mut Table,
) -> Result<(), StageError> {
    let mut room = Room::new(guests).map_err(said("starting guests"))?;
    room.wait_both().map_err(said("starting guests"))?;
    guests.wait_started(LegId::A, BOOT_WAIT).map_err(said("starting guests"))?;
    for (nth, (load, command)) in LOADS.iter().enumerate() {
        guests.whisper(LegId::A, command).map_err(said("giving the guest work"))?;
        for round in 0..=runs {
            let ways = WAYS.iter().enumerate().filter(|(_, (_, of, _))| *of == copy);
            for (way, (name, _, how)) in ways {
                // The first one is looked at, and not measured: looking takes longer than copying.
                room.is_looking = round == 0;
                let report = room.copy(*how).map_err(said("copying a guest"))?;
                if let Some(page) = room.difference.take() {
                    table.troubles.push(format!("{load}, {name}: page {page} of the copy differs"));
                }
                if round == 0 {
                    continue;
                }
                let seconds = |us: u64| us as f64 / 1e6;
                let values =
                    [seconds(report.pause_us), seconds(report.total_us), report.bytes as f64];
                let first = (nth * WAYS.len() + way) * MEASURES.len();
                for (row, value) in table.rows[first..].iter_mut().zip(values) {
                    row.values.push(value);
                }
            }
        }
    }
    Ok(())
}

fn said(what: &'static str) -> impl FnOnce(io::Error) -> StageError {
    move |source| StageError::Io { what, source }
}

/// A keeper in a thread of this process, and the links of its guests, on which nobody answers.
struct Room {
    orders: UnixStream,
    news: BufReader<UnixStream>,
    attached: [Option<u32>; 2],
    last_id: u32,
    setup: QemuSetup,
    /// A standby is ready.
    is_prepared: bool,
    /// Whether the next copy is compared with its source, where memory is files.
    is_looking: bool,
    /// A page of the last copy that is not what it should be.
    difference: Option<usize>,
    _links: Vec<UnixDatagram>,
}

impl Drop for Room {
    fn drop(&mut self) {
        // The keeper closes its end when both guests are gone.
        let _ = self.give(&Order::End);
        let _ = io::copy(&mut self.news, &mut io::sink());
        // The next one has its links at the same place.
        for link in &self.setup.links {
            let _ = std::fs::remove_file(link);
        }
    }
}

impl Room {
    fn new(guests: &Guests) -> io::Result<Self> {
        let setup = guests.setup().map_err(|error| io::Error::other(error.to_string()))?;
        std::fs::create_dir_all(&setup.dir)?;
        let links = setup.links.iter().map(UnixDatagram::bind).collect::<io::Result<_>>()?;
        let (orders, theirs) = UnixStream::pair()?;
        std::thread::spawn(move || qemu::serve(theirs, watch));
        orders.set_read_timeout(Some(WAIT))?;
        let news = BufReader::new(orders.try_clone()?);
        let (attached, last_id, difference) = ([None; 2], 0, None);
        let (is_prepared, is_looking) = (false, false);
        let mut room = Self {
            orders,
            news,
            attached,
            last_id,
            setup,
            is_prepared,
            is_looking,
            difference,
            _links: links,
        };
        room.give(&room.setup.clone())?;
        Ok(room)
    }

    fn give(&mut self, message: &impl serde::Serialize) -> io::Result<()> {
        let line = serde_json::to_string(message)?;
        self.orders.write_all(format!("{line}\n").as_bytes())
    }

    fn next(&mut self) -> io::Result<News> {
        let mut line = String::new();
        self.news.read_line(&mut line)?;
        let news: News = serde_json::from_str(&line)?;
        match &news {
            News::Attached { leg, generation } => self.attached[*leg] = Some(*generation),
            News::Exited { leg } => {
                return Err(io::Error::other(format!("guest {leg} has ended")));
            }
            News::Prepared { .. } => self.is_prepared = true,
            News::Failed { message, .. } => return Err(io::Error::other(message.clone())),
            News::Said { is_warning: true, text } => return Err(io::Error::other(text.clone())),
            _ => {}
        }
        Ok(news)
    }

    fn wait_both(&mut self) -> io::Result<()> {
        while self.attached.contains(&None) {
            self.next()?;
        }
        Ok(())
    }

    /// While both stand still: whether the copy's memory is the source's, where both are files.
    fn compare(&mut self, copy: Which) -> io::Result<()> {
        let Some(generation) = self.attached[0] else { return Ok(()) };
        let paths = [Which { leg: 0, generation }, copy].map(|which| self.setup.memory(which));
        let [Some(ours), Some(theirs)] = paths else { return Ok(()) };
        let (ours, theirs) = (std::fs::read(ours)?, std::fs::read(theirs)?);
        let mut pages = ours.chunks(PAGE).zip(theirs.chunks(PAGE));
        self.difference = pages.position(|(page, other)| page != other);
        Ok(())
    }

    /// One copy of the first guest in the place of the second.
    fn copy(&mut self, way: Way) -> io::Result<Report> {
        // A standby that stands ready is what a sync finds that does not come at once.
        while !std::mem::take(&mut self.is_prepared) {
            self.next()?;
        }
        self.last_id += 1;
        let id = self.last_id;
        self.give(&Order::Sync { id, from: 0, to: 1, way })?;
        loop {
            match self.next()? {
                News::Frozen { .. } => self.give(&Order::Overwrite { id })?,
                News::Ready { leg, generation, .. } => {
                    if self.is_looking {
                        self.compare(Which { leg, generation })?;
                    }
                    self.give(&Order::Go { id })?;
                }
                News::Done(report) => return Ok(report),
                _ => {}
            }
        }
    }
}
