//! One capture cut into several: by conversation, by client, by server.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::capture::{Capture, Unreadable};
use super::talks::{Side, Talks};
use super::walk::Facts;
use crate::io::pcap::{Record, Writer};
use crate::wire::parse::captured::{Spoken, What, look};

/// Files that are open at once; beyond it all are closed, and opened again when they are needed.
const OPEN_MAX: usize = 256;

/// What makes a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A TCP connection.
    Conversation,
    /// A client's address.
    Client,
    /// A server's address and port.
    Server,
}

/// Why a capture is not cut.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// A file cannot be written.
    #[error("{}: {why}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
}

/// What was written.
#[derive(Debug, Default)]
pub struct Written {
    /// Files, with the packets in each.
    pub files: Vec<(PathBuf, u64)>,
    /// Packets that belong to no TCP conversation, and stand in none of them.
    pub left_out: u64,
    /// What could not be read.
    pub facts: Facts,
}

/// Cuts `capture` into files below `dir`, which is made if it is not there. Each is a pcapng with
/// one interface for each that the capture has; none may be there before.
pub fn split(capture: &Capture, by: By, dir: &Path) -> Result<Written, SplitError> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |why| SplitError::Write { path, why }
    };
    // Who is whose client may only be known once all was read.
    let mut talks = Talks::default();
    let mut facts = Facts::default();
    let mut unfollowed = 0;
    for_each(capture, &mut facts, |record| {
        if let Some(spoken) = spoken(record) {
            let known = talks.assign(&spoken, record.number, record.unix_ns);
            unfollowed += u64::from(known.is_none());
        }
        Ok(())
    })?;
    facts.unfollowed = unfollowed;
    std::fs::create_dir_all(dir).map_err(wrong(dir))?;
    let names = names(&talks, by);
    let mut files = Files { dir, open: BTreeMap::new(), packets: BTreeMap::new() };
    let mut again = Talks::default();
    let mut left_out = 0;
    for_each(capture, &mut Facts::default(), |record| {
        let spoken = spoken(record);
        let talk = spoken.and_then(|s| again.assign(&s, record.number, record.unix_ns));
        // A file that grew meanwhile has conversations without a name.
        let Some(name) = talk.and_then(|(talk, _)| names.get(talk)) else {
            left_out += 1;
            return Ok(());
        };
        files.write(name, record).map_err(wrong(&dir.join(name)))
    })?;
    files.close().map_err(wrong(dir))?;
    let files = files.packets.into_iter().map(|(name, (packets, _))| (dir.join(name), packets));
    Ok(Written { files: files.collect(), left_out, facts })
}

fn spoken<'a>(record: &Record<'a>) -> Option<Spoken<'a>> {
    match look(record.link, record.data, record.wire_len).ok()?.what {
        What::Tcp(spoken) => Some(spoken),
        _ => None,
    }
}

fn for_each(
    capture: &Capture,
    facts: &mut Facts,
    mut act: impl FnMut(&Record<'_>) -> Result<(), SplitError>,
) -> Result<(), SplitError> {
    let mut reader = capture.reader()?;
    loop {
        match reader.next() {
            Ok(Some(record)) => {
                facts.packets += 1;
                act(&record)?;
            }
            Ok(None) => return Ok(()),
            Err(trouble) => facts.trouble(trouble),
        }
    }
}

/// The file of each conversation.
fn names(talks: &Talks, by: By) -> Vec<String> {
    let text = |address: SocketAddr| format!("{}-{}", address.ip(), address.port());
    let name = |(id, talk): (usize, &super::Talk)| {
        let [client, server] = Side::BOTH.map(|side| talk.address(side));
        let name = match by {
            By::Conversation => format!("{:05}_{}_{}", id + 1, text(client), text(server)),
            By::Client => client.ip().to_string(),
            By::Server => text(server),
        };
        // Colons of IPv6 are no part of a file's name everywhere.
        format!("{}.pcapng", name.replace(':', "."))
    };
    talks.list().iter().enumerate().map(name).collect()
}

struct Files<'d> {
    dir: &'d Path,
    open: BTreeMap<String, Writer<BufWriter<File>>>,
    /// For each file its packets, and which of the capture's interfaces is which of its own.
    packets: BTreeMap<String, (u64, BTreeMap<usize, u32>)>,
}

impl Files<'_> {
    fn write(&mut self, name: &str, record: &Record<'_>) -> io::Result<()> {
        if self.open.len() == OPEN_MAX && !self.open.contains_key(name) {
            self.close()?;
        }
        let (packets, interfaces) = self.packets.entry(name.to_owned()).or_default();
        if !self.open.contains_key(name) {
            let path = self.dir.join(name);
            let writer = match *packets {
                0 => Writer::ng(BufWriter::new(File::create_new(path)?))?,
                _ => {
                    let file = OpenOptions::new().append(true).open(path)?;
                    Writer::ng_again(BufWriter::new(file), interfaces.len() as u32)
                }
            };
            self.open.insert(name.to_owned(), writer);
        }
        let Some(writer) = self.open.get_mut(name) else { return Ok(()) };
        let Record { interface, interface_name, link, .. } = *record;
        let index = match interfaces.get(&interface) {
            Some(index) => *index,
            None => {
                let index = writer.interface(link, interface_name)?;
                interfaces.insert(interface, index);
                index
            }
        };
        *packets += 1;
        let Record { unix_ns, data, wire_len, comment, .. } = *record;
        writer.packet(index, unix_ns, data, wire_len, comment)
    }

    fn close(&mut self) -> io::Result<()> {
        std::mem::take(&mut self.open)
            .into_values()
            .try_for_each(|writer| writer.into_inner().flush())
    }
}
