//! The backends `exec` and `mirror`: the helper makes the backup equal, by a command of the
//! operator or by two directories.
//!
//! Scope Content: files. Exit status 0 means that the target is equal now; anything else, or no
//! end before `[sync] timeout`, means that it is not. The engine's own deadline only ends the wait
//! of held output: a success that comes later still counts.

use std::sync::Arc;

use super::helper::{Helper, Hook, JobId, Outcome};
use super::{StateSync, SyncSink};
use crate::engine::{Epoch, LegId, SyncId, SyncReason, SyncRequest, SyncScope, SyncStep};

/// Has the helper do it.
#[derive(Debug)]
pub struct ExecSync {
    helper: Arc<Helper>,
    names: [String; 2],
    running: Option<(SyncId, JobId)>,
}

impl ExecSync {
    /// A backend for servers of these names.
    pub fn new(helper: Arc<Helper>, names: [String; 2]) -> Self {
        Self { helper, names, running: None }
    }
}

impl StateSync for ExecSync {
    fn scope(&self) -> SyncScope {
        SyncScope::Content
    }

    fn start(&mut self, request: SyncRequest, sink: SyncSink) {
        if let Some((_, job)) = self.running.take() {
            self.helper.kill(job);
        }
        let env = sync_env(&request, &self.names);
        let id = request.id;
        let done = move |outcome: Outcome| {
            let step = match outcome {
                Ok(()) => SyncStep::TargetReady,
                Err(message) => SyncStep::Failed { message },
            };
            sink(id, step);
        };
        let job = self.helper.run(Hook::Sync, env, Box::new(done));
        self.running = Some((id, job));
    }

    fn cancel(&mut self, id: SyncId) {
        if let Some((_, job)) = self.running.take_if(|(running, _)| *running == id) {
            self.helper.kill(job);
        }
    }
}

/// Runs the fence command against `server`; `done` gets whether it succeeded.
pub fn fence(
    helper: &Helper,
    names: &[String; 2],
    epoch: Epoch,
    server: LegId,
    done: impl FnOnce(Outcome) + Send + 'static,
) {
    let env = vec![
        ("SHADOWVM_REASON", "fence".to_owned()),
        ("SHADOWVM_EPOCH", epoch.0.to_string()),
        ("SHADOWVM_SERVER", names[server.index()].clone()),
        ("SHADOWVM_FROM", names[server.index()].clone()),
        ("SHADOWVM_TO", names[server.other().index()].clone()),
    ];
    helper.run(Hook::Fence, env, Box::new(done));
}

/// What the helper has to know of a sync.
pub(super) fn sync_env(request: &SyncRequest, names: &[String; 2]) -> Vec<(&'static str, String)> {
    let (reason, flow) = match request.reason {
        SyncReason::First => ("first", String::new()),
        SyncReason::Divergence(flow) => ("divergence", flow.to_string()),
        SyncReason::Rejoin => ("rejoin", String::new()),
        SyncReason::Operator => ("operator", String::new()),
        SyncReason::Periodic => ("periodic", String::new()),
    };
    vec![
        ("SHADOWVM_REASON", reason.to_owned()),
        ("SHADOWVM_EPOCH", request.epoch.0.to_string()),
        ("SHADOWVM_FROM", names[request.from.index()].clone()),
        ("SHADOWVM_TO", names[request.to.index()].clone()),
        ("SHADOWVM_FLOW", flow),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;
    use crate::engine::{FlowKey, Instant, ServiceId};
    use crate::sync::helper::{self, Commands, HookCommand};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A helper that runs in a thread of this process, with shell scripts as its commands.
    fn helper(sync: &str, fence: &str, timeout_ms: u64) -> Arc<Helper> {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        std::thread::spawn(move || helper::serve(theirs));
        let command = |script: &str| {
            let argv = vec!["/bin/sh".into(), "-c".into(), script.into()];
            Some(HookCommand { argv, timeout_ms })
        };
        let commands =
            Commands { sync: command(sync), fence: command(fence), ..Commands::default() };
        Arc::new(Helper::over(ours, &commands).expect("a helper"))
    }

    fn request(id: u32, reason: SyncReason) -> SyncRequest {
        SyncRequest {
            id: SyncId(id),
            epoch: Epoch(4),
            from: LegId::A,
            to: LegId::B,
            reason,
            deadline: Instant::from_millis(150),
        }
    }

    fn start(backend: &mut ExecSync, request: SyncRequest) -> Receiver<(SyncId, SyncStep)> {
        let (tell, told) = channel();
        let sink: SyncSink = Arc::new(move |id, step| {
            // A test that has seen enough hangs up.
            let _ = tell.send((id, step));
        });
        backend.start(request, sink);
        told
    }

    fn names() -> [String; 2] {
        ["one".into(), "two".into()]
    }

    #[test]
    fn success_makes_the_target_ready_and_the_command_knows_why_it_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("env");
        let script = format!(
            "echo $SHADOWVM_REASON $SHADOWVM_EPOCH $SHADOWVM_FROM $SHADOWVM_TO \
             \"$SHADOWVM_FLOW\" > {}",
            out.display()
        );
        let mut backend = ExecSync::new(helper(&script, "true", 20_000), names());
        assert_eq!(backend.scope(), SyncScope::Content);
        let flow = FlowKey {
            service: ServiceId(0),
            vlan: (None, None),
            client: "198.51.100.7:4242".parse().expect("an address"),
            server: "192.0.2.10:80".parse().expect("an address"),
        };
        let told = start(&mut backend, request(1, SyncReason::Divergence(flow)));
        let got = told.recv_timeout(PATIENCE);
        assert_eq!(got, Ok((SyncId(1), SyncStep::TargetReady)));
        let env = std::fs::read_to_string(out).expect("the command wrote it");
        assert_eq!(env.trim(), "divergence 4 one two 198.51.100.7:4242 -> 192.0.2.10:80");
    }

    #[test]
    fn failure_tells_the_exit_status_and_the_last_line() {
        let script = "echo first >&2; echo 'no space left' >&2; exit 3";
        let mut backend = ExecSync::new(helper(script, "true", 20_000), names());
        let told = start(&mut backend, request(2, SyncReason::First));
        let Ok((SyncId(2), SyncStep::Failed { message })) = told.recv_timeout(PATIENCE) else {
            panic!("it did not fail");
        };
        assert!(
            message.contains("exit status 3") && message.contains("no space left"),
            "{message}"
        );
        assert!(!message.contains("first"), "{message}");
    }

    #[test]
    fn a_command_without_end_is_killed_with_all_its_children() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        // The grandchild holds the fifo open for writing: its end is seen when it dies.
        let script = format!("sleep 1000 > {0} & sleep 1000 > {0}", fifo.display());
        let mut backend = ExecSync::new(helper(&script, "true", 300), names());
        let told = start(&mut backend, request(3, SyncReason::First));
        let rest = std::fs::read(&fifo).expect("all writers are gone");
        assert!(rest.is_empty());
        let Ok((_, SyncStep::Failed { message })) = told.recv_timeout(PATIENCE) else {
            panic!("it did not fail");
        };
        assert!(message.contains("300ms"), "{message}");
    }

    #[test]
    fn a_cancelled_sync_is_killed_and_says_nothing_and_the_next_one_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        let script =
            format!("if [ $SHADOWVM_REASON = first ]; then sleep 1000 > {}; fi", fifo.display());
        let mut backend = ExecSync::new(helper(&script, "true", 100_000), names());
        let told = start(&mut backend, request(4, SyncReason::First));
        let writers = std::fs::File::open(&fifo).expect("the command has opened it");
        backend.cancel(SyncId(99));
        backend.cancel(SyncId(4));
        let rest = std::io::read_to_string(writers).expect("all writers are gone");
        assert!(rest.is_empty());
        let next = start(&mut backend, request(5, SyncReason::Operator));
        assert_eq!(next.recv_timeout(PATIENCE), Ok((SyncId(5), SyncStep::TargetReady)));
        assert!(told.try_recv().is_err(), "a cancelled sync spoke");
    }

    #[test]
    fn a_new_sync_replaces_the_one_that_runs() {
        let script = "if [ $SHADOWVM_REASON = first ]; then sleep 1000; fi";
        let mut backend = ExecSync::new(helper(script, "true", 100_000), names());
        let _told = start(&mut backend, request(6, SyncReason::First));
        let next = start(&mut backend, request(7, SyncReason::Rejoin));
        assert_eq!(next.recv_timeout(PATIENCE), Ok((SyncId(7), SyncStep::TargetReady)));
    }

    #[test]
    fn the_fence_tells_whether_it_succeeded() {
        let script = "[ $SHADOWVM_SERVER = one ] && [ $SHADOWVM_REASON = fence ]";
        let helper = helper("true", script, 20_000);
        for (server, is_good) in [(LegId::A, true), (LegId::B, false)] {
            let (tell, told) = channel();
            fence(&helper, &names(), Epoch(1), server, move |outcome| {
                tell.send(outcome.is_ok()).expect("the test waits");
            });
            assert_eq!(told.recv_timeout(PATIENCE), Ok(is_good));
        }
    }

    #[test]
    fn without_its_helper_a_sync_fails_at_once() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let commands = Commands::default();
        let helper = Arc::new(Helper::over(ours, &commands).expect("a helper"));
        drop(theirs);
        let mut backend = ExecSync::new(helper, names());
        let told = start(&mut backend, request(8, SyncReason::First));
        let Ok((_, SyncStep::Failed { message })) = told.recv_timeout(PATIENCE) else {
            panic!("it did not fail");
        };
        assert!(message.contains("helper"), "{message}");
    }

    #[test]
    fn a_command_that_is_not_there_says_so() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        std::thread::spawn(move || helper::serve(theirs));
        let argv = vec!["/nonexistent/sync.sh".into()];
        let sync = Some(HookCommand { argv, timeout_ms: 1000 });
        let commands = Commands { sync, ..Commands::default() };
        let helper = Arc::new(Helper::over(ours, &commands).expect("a helper"));
        let mut backend = ExecSync::new(helper, names());
        let told = start(&mut backend, request(9, SyncReason::First));
        let Ok((_, SyncStep::Failed { message })) = told.recv_timeout(PATIENCE) else {
            panic!("it did not fail");
        };
        assert!(message.contains("/nonexistent/sync.sh"), "{message}");
    }
}
