//! The gateway's part in the backend `container`: its keeper, and what the loop is told of it.

use std::path::Path;
use std::sync::Arc;

use super::{RunError, system};
use crate::config::{Backend, Config};
use crate::engine::{Input, LegId, Link, SyncId, SyncStep};
use crate::io::{Barrier, Mailbox, Request};
use crate::sync::container::files::Files;
use crate::sync::container::setup::ContainerSetup;
use crate::sync::container::{Gate, Unheard};
use crate::sync::helper::Helper;

/// Starts the process that copies the containers, if the servers are containers.
pub(super) fn start_keeper(config: &Config) -> Result<Option<Unheard>, RunError> {
    let Some(setup) = setup_of(config) else { return Ok(None) };
    let keeper = Unheard::spawn(Path::new("/proc/self/exe"), setup);
    keeper.map(Some).map_err(system("the keeper of containers cannot start"))
}

/// What the keeper has to know; none if a server has no container, which no valid configuration
/// with this backend says.
fn setup_of(config: &Config) -> Option<ContainerSetup> {
    let Some(Backend::Container(containers)) = &config.sync.backend else { return None };
    let [a, b] = &config.servers;
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Some(ContainerSetup {
        criu: containers.criu.clone(),
        dir: containers.dir.clone(),
        inits: [a.container.clone()?, b.container.clone()?],
        names: [a.name.clone(), b.name.clone()],
        timeout_ms: millis(containers.timeout),
        still_ms: millis(config.sync.deadline),
        has_files: containers.files.is_some(),
    })
}

/// Who makes the servers' directories equal, if each has its own.
pub(super) fn files(config: &Config, helper: Option<&Arc<Helper>>) -> Option<Files> {
    config.sync.mirror()?;
    let names = config.servers.each_ref().map(|server| server.name.clone());
    helper.map(|helper| Files::new(Arc::clone(helper), names))
}

/// The way from the keeper to the packet loop.
pub(super) struct Door(pub(super) Mailbox);

impl Door {
    // A loop that has ended needs to know nothing.
    fn ask(&self, request: Request) {
        let _ = self.0.send(request);
    }

    fn bar(&self, server: LegId, barrier: Barrier) {
        self.ask(Request::Barrier(Link::Server(server), barrier));
    }
}

impl Gate for Door {
    fn hush(&self, server: LegId) {
        self.bar(server, Barrier::Unspoken);
    }

    fn still(&self, server: LegId) {
        self.bar(server, Barrier::Still);
    }

    fn empty(&self, server: LegId) {
        self.bar(server, Barrier::Emptied);
    }

    fn open(&self, server: LegId) {
        self.bar(server, Barrier::Open);
    }

    fn step(&self, id: SyncId, step: SyncStep) {
        self.ask(Request::Input(Input::SyncStep(id, step)));
    }

    fn afterwards(&self, action: Box<dyn FnOnce() + Send>) {
        self.ask(Request::Inspect(Box::new(move |_, _| action())));
    }
}
