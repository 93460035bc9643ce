//! Which conversation of a capture carries a transfer of which control connection of FTP: found
//! from what the recorded servers said of their ports, and clients of theirs. And which session of
//! a client followed which other one, that may have changed what it finds.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::capture::{Capture, Unreadable};
use super::desk::Way;
use super::ftp::{Dialogue, News};
use super::rules::Rules;
use super::talks::Side;
use super::walk::{Index, Listener, Moment, Spot, Walk};

/// A capture may have a connection's first packet so many packets before the reply that led to it.
const DISORDER_PACKETS: u64 = 64;

/// One transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    /// The control connection.
    pub(super) control: usize,
    /// Who connected to whom.
    pub(super) way: Way,
    /// Which of the ports that were named there for this way, counted from 0.
    pub(super) number: usize,
    /// What it was asked by.
    pub(super) command: String,
}

/// The sessions of FTP in a capture.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    /// All transfers, by the conversation that carries each.
    of: BTreeMap<usize, Transfer>,
    /// The control connection of the same client that had ended last before one began.
    before: BTreeMap<usize, usize>,
}

impl Transfers {
    /// Reads the control connections of a capture, if there are any.
    pub(super) fn find(
        capture: &Capture,
        index: &Index,
        rules: &Rules,
    ) -> Result<Self, Unreadable> {
        let talks = index.talks.list();
        let is_control = |id: usize| {
            talks[id].is_certain && rules.is_ftp(talks[id].address(Side::Server).port())
        };
        let controls: Vec<bool> = (0..talks.len()).map(is_control).collect();
        if !controls.contains(&true) {
            return Ok(Self::default());
        }
        let client = |id: usize| talks[id].address(Side::Client).ip();
        let (dialogues, offers) = (BTreeMap::new(), Vec::new());
        let mut listener = Controls { client: &client, dialogues, offers };
        let mut walk = Walk::begin(capture, Some(index))?.only(controls.clone());
        while walk.step(&mut listener) {}
        let mut carriers: BTreeMap<(IpAddr, SocketAddr), Vec<usize>> = BTreeMap::new();
        for id in (0..talks.len()).filter(|&id| talks[id].is_certain && !controls[id]) {
            let key = (talks[id].address(Side::Client).ip(), talks[id].address(Side::Server));
            carriers.entry(key).or_default().push(id);
        }
        let ends = |offer: &Offer| {
            let control = &talks[offer.transfer.control];
            let [client, server] = Side::BOTH.map(|side| control.address(side).ip());
            match offer.transfer.way {
                Way::Passive => (client, server),
                Way::Active => (server, client),
            }
        };
        // Whoever comes after a port was named again comes for that.
        let mut named_again = vec![u64::MAX; listener.offers.len()];
        let mut later = BTreeMap::new();
        for (offer, named_again) in listener.offers.iter().zip(&mut named_again).rev() {
            if let Some(packet) = later.insert((ends(offer), offer.port), offer.packet) {
                *named_again = packet;
            }
        }
        let mut found = BTreeMap::new();
        for (offer, named_again) in listener.offers.iter().zip(named_again) {
            let (from, to) = ends(offer);
            for to in [Some(to), offer.address].into_iter().flatten() {
                let key = (from, SocketAddr::new(to, offer.port));
                let Some(carriers) = carriers.get_mut(&key) else { continue };
                let is_later =
                    |&id: &usize| talks[id].first_packet + DISORDER_PACKETS > offer.packet;
                let first = carriers.iter().position(is_later);
                if let Some(at) = first.filter(|&at| talks[carriers[at]].first_packet < named_again)
                {
                    let carrier = carriers.drain(..=at).next_back();
                    found.extend(carrier.map(|carrier| (carrier, offer.transfer.clone())));
                    break;
                }
            }
        }
        let mut ended: BTreeMap<IpAddr, BTreeMap<u64, usize>> = BTreeMap::new();
        let clients = || (0..talks.len()).filter(|&id| controls[id]);
        for id in clients() {
            let ends = ended.entry(talks[id].address(Side::Client).ip()).or_default();
            ends.insert(talks[id].end_ns, id);
        }
        let before = clients().filter_map(|id| {
            let ends = ended.get(&talks[id].address(Side::Client).ip())?;
            let (_, &last) = ends.range(..talks[id].begin_ns).next_back()?;
            Some((id, last))
        });
        Ok(Self { of: found, before: before.collect() })
    }

    /// The session that a control connection follows.
    pub(super) fn before(&self, id: usize) -> Option<usize> {
        self.before.get(&id).copied()
    }

    /// What `side` of a conversation is to the session: the server opens the data connection if
    /// its client waits for it.
    pub(super) fn role(&self, id: usize, side: Side) -> Side {
        match self.of(id) {
            Some(Transfer { way: Way::Active, .. }) => side.other(),
            _ => side,
        }
    }

    /// What a conversation carries.
    pub(super) fn of(&self, id: usize) -> Option<&Transfer> {
        self.of.get(&id)
    }
}

/// A port that was named.
struct Offer {
    transfer: Transfer,
    address: Option<IpAddr>,
    port: u16,
    packet: u64,
}

struct Controls<'f> {
    /// The client of a conversation.
    client: &'f dyn Fn(usize) -> IpAddr,
    /// The dialogues, and how many ports were named in each for each way.
    dialogues: BTreeMap<usize, (Dialogue, [usize; 2])>,
    /// In the order of the capture.
    offers: Vec<Offer>,
}

impl Listener for Controls<'_> {
    fn bytes(&mut self, spot: Spot, bytes: &[u8], moment: Moment) {
        let (dialogue, counts) = self.dialogues.entry(spot.talk).or_default();
        dialogue.read(spot.side, bytes);
        for news in dialogue.take_news() {
            let (way, address, port) = match news {
                News::Offer(said) => (Way::Passive, said.address, said.port),
                News::Door(at) if at.ip() == (self.client)(spot.talk) => {
                    (Way::Active, None, at.port())
                }
                // For somebody else: nobody waits there.
                News::Door(_) => continue,
                News::Begun(command) => {
                    let mut offers = self.offers.iter_mut().rev();
                    if let Some(offer) = offers.find(|o| o.transfer.control == spot.talk) {
                        offer.transfer.command = command;
                    }
                    continue;
                }
            };
            let number = counts[way as usize];
            counts[way as usize] += 1;
            let command = String::new();
            let transfer = Transfer { control: spot.talk, way, number, command };
            self.offers.push(Offer { transfer, address, port, packet: moment.packet });
        }
    }
    fn missing(&mut self, spot: Spot, _: u64) {
        self.dialogues.entry(spot.talk).or_default().0.hole(spot.side);
    }
}
