//! `shadowvm bench sync --machine`: what a copy of a virtual machine costs, live and beside
//! stopping it first.
//!
//! The keeper of guests works as it does for a gateway; this program plays the gateway's part and
//! lets no time pass in it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::{Row, Table, Unit};
use crate::cli::guests::Guests;
use crate::cli::stage::StageError;
use crate::engine::LegId;
use crate::sync::qemu;
use crate::sync::qemu::words::{News, Order, Report, Way};

/// Until both guests have started, on a machine that has other work too.
const BOOT_WAIT: Duration = Duration::from_secs(120);
/// How long a copy may take.
const WAIT: Duration = Duration::from_secs(60);

/// What a guest does meanwhile: its name, and what begins it.
const LOADS: [(&str, &str); 2] = [
    ("idle", "true"),
    (
        "memory churn",
        "{ while true; do cat /srv/period /srv/period /srv/period >/srv/www/churn; done & }",
    ),
];
const WAYS: [(&str, Way); 2] = [("live", Way::Live), ("stopped first", Way::Stopped)];
const MEASURES: [(&str, Unit); 3] =
    [("pause", Unit::Seconds), ("total", Unit::Seconds), ("sent", Unit::Bytes)];

/// Measures.
pub(super) fn run(runs: u32, image: Option<&Path>, dir: &Path) -> Result<Table, StageError> {
    let guests = Guests::find(image, dir)?;
    let mut rows = Vec::new();
    for (load, _) in LOADS {
        for (way, _) in WAYS {
            let row = |(measure, unit)| Row::new(format!("{load}, {way}: {measure}"), unit);
            rows.extend(MEASURES.map(row));
        }
    }
    let mut table = Table::new("sync of machines", json!({ "runs": runs }), rows);
    let mut room = Room::new(&guests).map_err(said("starting guests"))?;
    room.wait_both().map_err(said("starting guests"))?;
    guests.wait_started(LegId::A, BOOT_WAIT).map_err(said("starting guests"))?;
    for (load, (_, command)) in LOADS.iter().enumerate() {
        guests.whisper(LegId::A, command).map_err(said("giving the guest work"))?;
        for _ in 0..runs {
            for (way, (_, how)) in WAYS.iter().enumerate() {
                let report = room.copy(*how).map_err(said("copying a guest"))?;
                let seconds = |us: u64| us as f64 / 1e6;
                let values =
                    [seconds(report.pause_us), seconds(report.total_us), report.bytes as f64];
                let first = (load * WAYS.len() + way) * MEASURES.len();
                for (row, value) in table.rows[first..].iter_mut().zip(values) {
                    row.values.push(value);
                }
            }
        }
    }
    table.ratio("idle, pause: stopped first / live", 3, 0);
    table.ratio("memory churn, pause: stopped first / live", 9, 6);
    Ok(table)
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
    _links: Vec<UnixDatagram>,
}

impl Drop for Room {
    fn drop(&mut self) {
        // The keeper closes its end when both guests are gone.
        let _ = self.give(&Order::End);
        let _ = io::copy(&mut self.news, &mut io::sink());
    }
}

impl Room {
    fn new(guests: &Guests) -> io::Result<Self> {
        let setup = guests.setup().map_err(|error| io::Error::other(error.to_string()))?;
        std::fs::create_dir_all(&setup.dir)?;
        let links = setup.links.iter().map(UnixDatagram::bind).collect::<io::Result<_>>()?;
        let (orders, theirs) = UnixStream::pair()?;
        std::thread::spawn(move || qemu::serve(theirs));
        orders.set_read_timeout(Some(WAIT))?;
        let news = BufReader::new(orders.try_clone()?);
        let mut room = Self { orders, news, attached: [None; 2], last_id: 0, _links: links };
        room.give(&setup)?;
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

    /// One copy of the first guest in the place of the second.
    fn copy(&mut self, way: Way) -> io::Result<Report> {
        self.last_id += 1;
        let id = self.last_id;
        self.give(&Order::Sync { id, from: 0, to: 1, way })?;
        loop {
            match self.next()? {
                News::Frozen { .. } => self.give(&Order::Overwrite { id })?,
                News::Ready { .. } => self.give(&Order::Go { id })?,
                News::Done(report) => return Ok(report),
                _ => {}
            }
        }
    }
}
