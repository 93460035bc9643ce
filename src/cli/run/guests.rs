//! The gateway's part in the backend `qemu`: its keeper, the links to its guests, and what the loop
//! is told of them.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::{RunError, run_as, system};
use crate::config::{Backend, Config, Links, MemoryCopy, QemuBackend};
use crate::engine::{Input, LegId, Link, LinkCaps, Signal, SyncId, SyncStep};
use crate::io::af_packet::LinkSpec;
use crate::io::datagram::Attached;
use crate::io::{Mailbox, Request};
use crate::sync::qemu::setup::QemuSetup;
use crate::sync::qemu::{Gate, Unheard};

/// Starts the process that has the guests, if the servers are guests.
pub(super) fn start_keeper(config: &Config) -> Result<Option<Unheard>, RunError> {
    let Some(setup) = setup_of(config) else { return Ok(None) };
    let run_as = run_as(config)?.map(|(uid, gid)| (uid.as_raw(), gid.as_raw()));
    let setup = QemuSetup { run_as, ..setup };
    let keeper = Unheard::spawn(Path::new("/proc/self/exe"), setup);
    keeper.map(Some).map_err(system("the keeper of guests cannot start"))
}

/// What the keeper has to know, if the servers are guests.
pub(in crate::cli) fn setup_of(config: &Config) -> Option<QemuSetup> {
    match &config.sync.backend {
        Some(Backend::Qemu(guests)) => Some(setup(config, guests)),
        _ => None,
    }
}

fn setup(config: &Config, guests: &QemuBackend) -> QemuSetup {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let socket = |link: &str| Links::guest_socket(link).map(PathBuf::from).unwrap_or_default();
    QemuSetup {
        program: guests.program.clone(),
        accel: guests.accel.clone(),
        memory_kib: guests.memory >> 10,
        cpus: guests.cpus,
        kernel: guests.kernel.clone(),
        initrd: guests.initrd.clone(),
        append: guests.append.clone(),
        mac: guests.mac.clone(),
        args: guests.args.clone(),
        dir: guests.dir.clone(),
        memory_dir: match &guests.copy {
            MemoryCopy::Live => None,
            MemoryCopy::Shared(dir) => Some(dir.clone()),
        },
        links: [socket(&config.links.a), socket(&config.links.b)],
        names: config.servers.each_ref().map(|server| server.name.clone()),
        downtime_ms: millis(guests.downtime),
        timeout_ms: millis(guests.timeout),
        run_as: None,
    }
}

/// The gateway's links: interfaces, or guests' sockets.
pub(super) fn links(config: &Config, attached: &[Attached; 2]) -> [LinkSpec; 3] {
    let server = |link: &str, leg: LegId| match Links::guest_socket(link) {
        Some(path) => LinkSpec::Guest(path.to_owned(), attached[leg.index()].clone()),
        None => LinkSpec::from(link),
    };
    let links = &config.links;
    let client = LinkSpec::from(links.client.as_str());
    [client, server(&links.a, LegId::A), server(&links.b, LegId::B)]
}

/// The way from the keeper to the links and to the packet loop.
pub(super) struct Door {
    pub(super) attached: [Attached; 2],
    pub(super) mailbox: Mailbox,
}

impl Door {
    // A loop that has ended needs to know nothing.
    fn tell(&self, input: Input) {
        let _ = self.mailbox.send(Request::Input(input));
    }
}

impl Gate for Door {
    fn attached(&self, server: LegId, generation: NonZeroU32) {
        self.attached[server.index()].set(Some(generation));
    }

    fn came(&self, server: LegId) {
        let signal = Signal::CarrierUp(LinkCaps::default());
        self.tell(Input::Signal(Link::Server(server), signal));
    }

    fn went(&self, server: LegId) {
        self.attached[server.index()].set(None);
        self.tell(Input::Signal(Link::Server(server), Signal::Exited));
    }

    fn step(&self, id: SyncId, step: SyncStep) {
        self.tell(Input::SyncStep(id, step));
    }

    fn afterwards(&self, action: Box<dyn FnOnce() + Send>) {
        let _ = self.mailbox.send(Request::Inspect(Box::new(move |_, _| action())));
    }
}
