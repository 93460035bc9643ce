//! The servers' directories, where each container has its own: the helper's mirror makes them equal
//! twice in each sync.
//!
//! Ahead of it, while both servers run, with all that a mirror looks at. What the source wrote
//! since then, or was just writing, is little: it follows when the processes stand still, and the
//! watches know where it is. So the copy finds the files as they were when its memory was written.

use std::sync::Arc;

use crate::engine::SyncRequest;
use crate::sync::exec::sync_env;
use crate::sync::helper::{AHEAD, FROZEN, Helper, Hook, JobId, Outcome};

/// When the directories are made equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Before the processes are touched.
    Ahead,
    /// While source and target stand still.
    Frozen,
}

/// Has the helper do it.
#[derive(Clone, Debug)]
pub struct Files {
    helper: Arc<Helper>,
    names: [String; 2],
}

impl Files {
    /// The directories of servers with these names, as the helper knows them.
    pub fn new(helper: Arc<Helper>, names: [String; 2]) -> Self {
        Self { helper, names }
    }

    /// Makes the target's directory equal to the source's. `done` is called once, unless the job is
    /// killed first.
    pub fn mirror(
        &self,
        request: &SyncRequest,
        pass: Pass,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) -> JobId {
        let pass = match pass {
            Pass::Ahead => AHEAD,
            Pass::Frozen => FROZEN,
        };
        let mut env = sync_env(request, &self.names);
        env.push(("SHADOWVM_PASS", pass.to_owned()));
        let done = |outcome: Outcome| {
            done(outcome.map_err(|why| format!("the files cannot be made equal: {why}")));
        };
        self.helper.run(Hook::Sync, env, Box::new(done))
    }

    /// Nothing more is done or told of it.
    pub fn kill(&self, job: JobId) {
        self.helper.kill(job);
    }
}
