//! The gateway's end between a keeper and a helper that follow scripts: in which order each is told
//! what, and what is left when either of them, or the engine, gives up at any step.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::engine::{Epoch, Instant, SyncReason};
use crate::sync::helper::{self, Commands, Helper, HookCommand};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the loop is told; opening is told with the server.
#[derive(Debug, PartialEq)]
enum Told {
    Step(u32, SyncStep),
    Opened(LegId),
}

#[derive(Debug)]
struct Loop(Sender<Told>);

impl Loop {
    // A test that has seen enough hangs up.
    fn note(&self, told: Told) {
        let _ = self.0.send(told);
    }
}

impl Gate for Loop {
    fn hush(&self, _server: LegId) {}
    fn still(&self, _server: LegId) {}
    fn empty(&self, _server: LegId) {}
    fn open(&self, server: LegId) {
        self.note(Told::Opened(server));
    }
    fn step(&self, id: SyncId, step: SyncStep) {
        self.note(Told::Step(id.0, step));
    }
    fn afterwards(&self, action: Box<dyn FnOnce() + Send>) {
        action();
    }
}

/// The backend, and everything around it.
struct Bench {
    dir: tempfile::TempDir,
    sync: ContainerSync,
    sink: SyncSink,
    told: Receiver<Told>,
    /// The keeper's end.
    keeper: BufReader<UnixStream>,
}

impl Bench {
    /// The mirror is a shell script, which finds its folder in `$0`; it has noted why it runs.
    fn new(script: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU)
            .expect("a fifo");
        let files = script.map(|script| {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            std::thread::spawn(move || helper::serve(theirs));
            let script =
                format!("echo $SHADOWVM_PASS $SHADOWVM_REASON $SHADOWVM_FROM >>$0/ran; {script}");
            let folder = dir.path().display().to_string();
            let argv = vec!["/bin/sh".into(), "-c".into(), script, folder];
            let command = HookCommand { argv, timeout_ms: 100_000 };
            let commands = Commands { sync: Some(command), ..Commands::default() };
            let helper = Helper::over(ours, &commands).expect("a helper");
            Files::new(Arc::new(helper), ["one".into(), "two".into()])
        });
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        theirs.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let (tell, told) = channel();
        let sink = {
            let tell = Loop(tell.clone());
            Arc::new(move |id: SyncId, step| tell.note(Told::Step(id.0, step)))
        };
        let setup = ContainerSetup {
            criu: "/criu".into(),
            dir: "/images".into(),
            inits: [PathBuf::from("/a"), PathBuf::from("/b")],
            names: ["one".into(), "two".into()],
            timeout_ms: 1000,
            still_ms: 1000,
            has_files: files.is_some(),
        };
        let process = Process::over(ours).expect("a process");
        let sync = Unheard { process, setup }.listen(files, Loop(tell)).expect("a backend");
        let mut bench = Self { dir, sync, sink, told, keeper: BufReader::new(theirs) };
        let mut setup = String::new();
        bench.keeper.read_line(&mut setup).expect("it is told its setup");
        bench
    }

    fn start(&mut self, id: u32) {
        let request = SyncRequest {
            id: SyncId(id),
            epoch: Epoch(4),
            from: LegId::A,
            to: LegId::B,
            reason: SyncReason::Rejoin,
            deadline: Instant::from_millis(150),
        };
        self.sync.start(request, Arc::clone(&self.sink));
    }

    /// What the keeper is told next.
    fn order(&mut self) -> Order {
        let mut line = String::new();
        self.keeper.read_line(&mut line).expect("it is told something");
        serde_json::from_str(&line).expect("an order")
    }

    fn say(&self, news: News) {
        write_line(self.keeper.get_ref(), &news).expect("the gateway listens");
    }

    fn step(&self) -> (u32, SyncStep) {
        loop {
            match self.told.recv_timeout(PATIENCE).expect("a step") {
                Told::Step(id, step) => return (id, step),
                Told::Opened(_) => {}
            }
        }
    }

    /// No step is told in which the keeper is told that a sync begins, and says that it cannot.
    fn is_quiet(&mut self, id: u32) {
        self.start(id);
        assert_eq!(self.order(), sync_order(id));
        self.say(News::Failed { id, message: "not today".into() });
        assert_eq!(self.step(), (id, failed("not today")));
    }

    /// Why and from where the mirror ran so far.
    fn ran(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("ran")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What a script has opened for writing; its end is the end of all that the script runs.
    fn running(&self) -> File {
        File::open(self.dir.path().join("fifo")).expect("a fifo")
    }

    /// The keeper's part until the source stands still; the engine has allowed the rest.
    fn freeze(&mut self, id: u32) {
        assert_eq!(self.order(), sync_order(id));
        self.say(News::Begun { id });
        assert_eq!(self.step(), (id, SyncStep::Hushed));
        assert_eq!(self.order(), Order::Hushed { id });
        self.say(News::Frozen { id, from: 0 });
        assert_eq!(self.step(), (id, SyncStep::Frozen));
        self.sync.overwrite(SyncId(id));
        assert_eq!(self.order(), Order::Overwrite { id });
    }
}

fn sync_order(id: u32) -> Order {
    Order::Sync { id, from: 0, to: 1 }
}

fn failed(message: &str) -> SyncStep {
    SyncStep::Failed { message: message.into() }
}

fn is_over(mut running: File) {
    let rest = running.read_to_end(&mut Vec::new()).expect("a fifo");
    assert_eq!(rest, 0, "all writers are gone");
}

/// Runs until it is killed, if it is this pass.
fn hangs(pass: &str) -> String {
    format!("[ $SHADOWVM_PASS != {pass} ] || sleep 1000 >$0/fifo")
}

fn fails(pass: &str) -> String {
    format!("[ $SHADOWVM_PASS != {pass} ] || {{ echo 'no space left' >&2; exit 3; }}")
}

#[test]
fn containers_that_see_the_same_files_are_copied_at_once() {
    let mut bench = Bench::new(None);
    bench.start(1);
    bench.freeze(1);
    bench.say(News::Gone { id: 1, to: 1 });
    assert_eq!(bench.order(), Order::Emptied { id: 1 });
    bench.say(News::Ready { id: 1 });
    assert_eq!(bench.step(), (1, SyncStep::TargetReady));
    assert_eq!(bench.ran(), Vec::<String>::new());
}

#[test]
fn files_are_equal_before_anybody_stands_still_and_again_while_both_do() {
    let mut bench = Bench::new(Some(""));
    bench.start(1);
    bench.freeze(1);
    assert_eq!(bench.ran(), ["ahead rejoin one"]);
    bench.say(News::Stopped { id: 1 });
    assert_eq!(bench.order(), Order::Mirrored { id: 1, outcome: Ok(()) });
    assert_eq!(bench.ran(), ["ahead rejoin one", "frozen rejoin one"]);
    bench.say(News::Gone { id: 1, to: 1 });
    assert_eq!(bench.order(), Order::Emptied { id: 1 });
    bench.say(News::Ready { id: 1 });
    assert_eq!(bench.step(), (1, SyncStep::TargetReady));
    bench.is_quiet(2);
}

#[test]
fn where_files_cannot_be_made_equal_the_keeper_is_told_nothing() {
    let mut bench = Bench::new(Some(&fails(helper::AHEAD)));
    bench.start(1);
    let (1, SyncStep::Failed { message }) = bench.step() else { panic!("it did not fail") };
    let is_told = ["the files cannot be made equal", "no space left"];
    assert!(is_told.iter().all(|words| message.contains(words)), "{message}");
    bench.start(2);
    assert!(matches!(bench.step(), (2, SyncStep::Failed { .. })));
    bench.sync.cancel(SyncId(3));
    assert_eq!(bench.order(), Order::Cancel { id: 3 }, "the first thing that it hears");
}

#[test]
fn files_that_fail_while_both_stand_still_are_for_the_keeper_to_undo() {
    let mut bench = Bench::new(Some(&fails(helper::FROZEN)));
    bench.start(1);
    bench.freeze(1);
    bench.say(News::Stopped { id: 1 });
    let Order::Mirrored { id: 1, outcome: Err(message) } = bench.order() else {
        panic!("it is told something else");
    };
    assert!(message.contains("no space left"), "{message}");
    // Nothing is told before both go on.
    bench.say(News::Failed { id: 1, message: message.clone() });
    assert_eq!(bench.step(), (1, failed(&message)));
    bench.is_quiet(2);
}

#[test]
fn a_sync_that_is_cancelled_while_files_are_made_equal_has_not_begun() {
    let mut bench = Bench::new(Some(&format!("[ -e $0/again ] || {}", hangs(helper::AHEAD))));
    bench.start(1);
    let running = bench.running();
    bench.sync.cancel(SyncId(99));
    bench.sync.cancel(SyncId(1));
    is_over(running);
    assert_eq!(bench.order(), Order::Cancel { id: 99 });
    assert_eq!(bench.order(), Order::Cancel { id: 1 });
    fs::write(bench.dir.path().join("again"), "").expect("a file");
    bench.is_quiet(2);
}

#[test]
fn a_sync_that_is_cancelled_while_both_stand_still_leaves_no_mirror_at_work() {
    let mut bench = Bench::new(Some(&hangs(helper::FROZEN)));
    bench.start(1);
    bench.freeze(1);
    bench.say(News::Stopped { id: 1 });
    let running = bench.running();
    bench.sync.cancel(SyncId(1));
    is_over(running);
    assert_eq!(bench.order(), Order::Cancel { id: 1 });
    // What the keeper says of its end is nobody's any more.
    bench.say(News::Failed { id: 1, message: "it was not wanted any more".into() });
    bench.is_quiet(2);
    // Nor is what comes after the end.
    bench.say(News::Stopped { id: 1 });
    bench.is_quiet(3);
    assert_eq!(bench.ran().iter().filter(|ran| ran.starts_with("frozen")).count(), 1);
}

#[test]
fn a_keeper_that_waits_no_longer_ends_the_mirror_too() {
    let mut bench = Bench::new(Some(&hangs(helper::FROZEN)));
    bench.start(1);
    bench.freeze(1);
    bench.say(News::Stopped { id: 1 });
    let running = bench.running();
    bench.say(News::Failed { id: 1, message: "it took too long".into() });
    is_over(running);
    assert_eq!(bench.step(), (1, failed("it took too long")));
    bench.is_quiet(2);
}

#[test]
fn a_keeper_that_is_gone_ends_the_mirror_too() {
    for (is_frozen, pass) in [(false, helper::AHEAD), (true, helper::FROZEN)] {
        let mut bench = Bench::new(Some(&hangs(pass)));
        bench.start(1);
        if is_frozen {
            bench.freeze(1);
            bench.say(News::Stopped { id: 1 });
        }
        let running = bench.running();
        bench.keeper.get_ref().shutdown(std::net::Shutdown::Both).expect("a socket");
        is_over(running);
        let (1, step) = bench.step() else { panic!("another sync") };
        assert_eq!(matches!(step, SyncStep::TargetLost { .. }), is_frozen, "{step:?}");
        bench.start(2);
        let running = (!is_frozen).then(|| bench.running());
        if let Some(running) = running {
            bench.sync.cancel(SyncId(2));
            is_over(running);
        } else {
            assert!(matches!(bench.step(), (2, SyncStep::Failed { .. })));
        }
    }
}

#[test]
fn a_new_sync_replaces_the_one_whose_files_are_on_their_way() {
    let script = format!("[ -e $0/again ] || {}", hangs(helper::AHEAD));
    let mut bench = Bench::new(Some(&script));
    bench.start(1);
    let running = bench.running();
    fs::write(bench.dir.path().join("again"), "").expect("a file");
    bench.start(2);
    is_over(running);
    assert_eq!(bench.order(), Order::Cancel { id: 1 });
    assert_eq!(bench.order(), sync_order(2));
    bench.say(News::Ready { id: 2 });
    assert_eq!(bench.step(), (2, SyncStep::TargetReady));
}

#[test]
fn without_its_helper_a_sync_fails_at_once() {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let helper = Helper::over(ours, &Commands::default()).expect("a helper");
    drop(theirs);
    let files = Files::new(Arc::new(helper), ["one".into(), "two".into()]);
    let under_way = Arc::new(UnderWay::new(Some(files)));
    let mut bench = Bench::new(Some(""));
    bench.sync.under_way = under_way;
    bench.start(1);
    let (1, SyncStep::Failed { message }) = bench.step() else { panic!("it did not fail") };
    assert!(message.contains("helper process is gone"), "{message}");
}
