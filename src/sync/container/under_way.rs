//! The sync under way, as the gateway's end has it: which one is wanted, and what the helper does
//! for it. Several threads ask: the packet loop's, the keeper's ear, the helper's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::files::{Files, Pass};
use crate::engine::{SyncId, SyncRequest};
use crate::sync::helper::{JobId, Outcome};

const NO_FILES: &str = "the servers have no directories of their own";

/// At most one sync.
#[derive(Debug)]
pub struct UnderWay {
    current: Mutex<Option<Current>>,
    /// None if the containers see the same files.
    files: Option<Files>,
}

#[derive(Debug)]
struct Current {
    request: SyncRequest,
    /// What the helper was asked to do. To kill what has ended does nothing.
    jobs: Vec<JobId>,
}

impl UnderWay {
    /// Nothing is wanted yet.
    pub fn new(files: Option<Files>) -> Self {
        Self { current: Mutex::new(None), files }
    }

    /// Whether the containers' files are mirrored.
    pub fn has_files(&self) -> bool {
        self.files.is_some()
    }

    /// From now on this one is wanted.
    pub fn set(&self, request: SyncRequest) {
        *self.lock() = Some(Current { request, jobs: Vec::new() });
    }

    /// Does `action` if `id` is wanted, before anybody can give it up.
    pub fn if_wanted<T>(&self, id: SyncId, action: impl FnOnce() -> T) -> Option<T> {
        let current = self.lock();
        current.as_ref().filter(|current| current.request.id == id).map(|_| action())
    }

    /// Has the files made equal, if `id` is wanted; `done` is called once, unless it is given up.
    pub fn mirror(&self, id: SyncId, pass: Pass, done: impl FnOnce(Outcome) + Send + 'static) {
        let request = self.lock().as_ref().map(|current| current.request.clone());
        let request = request.filter(|request| request.id == id);
        let Some(request) = request else { return };
        let Some(files) = &self.files else { return done(Err(NO_FILES.to_owned())) };
        // Without the lock: a helper that is gone calls back at once.
        let job = files.mirror(&request, pass, done);
        match self.lock().as_mut().filter(|current| current.request.id == id) {
            Some(current) => current.jobs.push(job),
            // It was given up, or has failed, meanwhile.
            None => files.kill(job),
        }
    }

    /// It is over, and what the helper does for it is given up. Whether it was wanted.
    pub fn end(&self, id: SyncId) -> bool {
        let ended = self.lock().take_if(|current| current.request.id == id);
        self.give_up(ended).is_some()
    }

    /// The same of whatever is under way.
    pub fn end_any(&self) -> Option<SyncId> {
        let ended = self.lock().take();
        self.give_up(ended)
    }

    fn give_up(&self, ended: Option<Current>) -> Option<SyncId> {
        let Current { request, jobs } = ended?;
        for job in jobs {
            self.files.iter().for_each(|files| files.kill(job));
        }
        Some(request.id)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
