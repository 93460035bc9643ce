//! The keeper against guests that follow a script: what it says in which order, and what is left
//! when any of them, or the gateway, ends or refuses at any step.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::keeper::Keeper;
use super::qmp::Monitor;
use super::setup::{QemuSetup, Which};
use super::stable::{Stable, copies_whole};
use super::twin::Writes;
use super::words::{News, Order, Way};

const PATIENCE: Duration = Duration::from_secs(20);
/// Length of a scripted guest's memory, where that is a file.
const MEMORY_LEN: usize = 3 << 20;

/// What goes wrong with a guest, once.
#[derive(Clone, Debug, PartialEq)]
enum Fault {
    /// It ends when it hears this command.
    Dies(&'static str),
    /// It refuses this command.
    Refuses(&'static str),
    /// It says that the migration has failed, after it has stopped for it.
    GivesUp,
    /// It cannot load what it gets.
    CannotLoad,
    /// It is something else than QEMU.
    IsNoQemu,
}

#[derive(Debug, Default)]
struct Yard {
    /// Guests that live, and whether they run.
    running: BTreeMap<String, bool>,
    /// What each command was, in order.
    heard: Vec<String>,
    faults: Vec<(String, Fault)>,
    /// Where standbys wait.
    waiting: BTreeMap<String, UnixStream>,
    recorded: BTreeMap<usize, u32>,
    /// What guests write can be noted; and what was, by generation.
    is_watched: bool,
    notes: BTreeMap<u32, Vec<Range<u64>>>,
    /// Pages that a guest writes just before it stops.
    last_words: Vec<u64>,
    /// A disk goes on when the processors have stopped; and who waits for it.
    is_disk_busy: bool,
    switching: Option<UnixStream>,
}

/// The kernel's notes, as the script has them.
#[derive(Debug)]
struct Notes {
    yard: Arc<Mutex<Yard>>,
    generation: u32,
}

impl Writes for Notes {
    fn taken(&mut self) -> io::Result<Vec<Range<u64>>> {
        let mut yard = lock(&self.yard);
        match yard.is_watched {
            true => Ok(yard.notes.remove(&self.generation).unwrap_or_default()),
            false => Err(io::Error::other("no more notes")),
        }
    }
}

impl Yard {
    fn takes(&mut self, name: &str, fault: &Fault) -> bool {
        let at = self.faults.iter().position(|(who, what)| who == name && what == fault);
        at.map(|at| self.faults.remove(at)).is_some()
    }

    /// A guest writes, which is noted.
    fn speak_last(&mut self, memory: &Path, name: &str) -> io::Result<()> {
        let file = File::options().write(true).open(memory)?;
        let generation = name.rsplit('-').next().and_then(|number| number.parse().ok());
        for page in std::mem::take(&mut self.last_words) {
            file.write_all_at(&[0xee; 100], page * 4096 + 7)?;
            let notes = self.notes.entry(generation.unwrap_or(0)).or_default();
            notes.push(page * 4096..(page + 1) * 4096);
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Scripted {
    setup: QemuSetup,
    yard: Arc<Mutex<Yard>>,
}

fn lock(yard: &Mutex<Yard>) -> MutexGuard<'_, Yard> {
    yard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stable for Scripted {
    fn start(&mut self, which: Which, is_standby: bool) -> io::Result<OwnedFd> {
        let name = self.setup.name(which);
        if let Some(path) = self.setup.memory(which) {
            let fill = if is_standby { 0 } else { u8::try_from(which.generation).unwrap_or(9) };
            std::fs::write(path, vec![fill; MEMORY_LEN])?;
        }
        lock(&self.yard).running.insert(name, !is_standby);
        let (ours, theirs) = io::pipe()?;
        drop(theirs);
        Ok(ours.into())
    }

    fn open(&mut self, which: Which) -> io::Result<Monitor> {
        let name = self.setup.name(which);
        if !lock(&self.yard).running.contains_key(&name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        let (yard, incoming) = (Arc::clone(&self.yard), self.setup.incoming(which));
        let memory = self.setup.memory(which);
        std::thread::spawn(move || {
            // A keeper that hangs up is no end of a guest.
            if play(&name, &incoming, memory.as_deref(), &theirs, &yard)
                .is_ok_and(|is_dead| is_dead)
            {
                lock(&yard).running.remove(&name);
            }
            let _ = theirs.shutdown(std::net::Shutdown::Both);
        });
        Monitor::over(ours)
    }

    fn memory(&mut self, which: Which) -> io::Result<File> {
        let path = self.setup.memory(which).ok_or(io::ErrorKind::Unsupported)?;
        File::options().read(true).write(true).open(path)
    }

    fn watch(&mut self, which: Which) -> io::Result<Box<dyn Writes>> {
        let is_watched = lock(&self.yard).is_watched;
        is_watched.then_some(()).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Box::new(Notes { yard: Arc::clone(&self.yard), generation: which.generation }))
    }

    fn end(&mut self, which: Which) {
        lock(&self.yard).running.remove(&self.setup.name(which));
    }

    fn record(&mut self, which: Which) -> io::Result<()> {
        lock(&self.yard).recorded.insert(which.leg, which.generation);
        Ok(())
    }

    fn recorded(&mut self, leg: usize) -> Option<Which> {
        let generation = *lock(&self.yard).recorded.get(&leg)?;
        Some(Which { leg, generation })
    }

    fn tidy(&mut self, kept: &[Which]) -> u32 {
        let names: Vec<String> = kept.iter().map(|which| self.setup.name(*which)).collect();
        lock(&self.yard).running.retain(|name, _| names.contains(name));
        kept.iter().map(|which| which.generation).max().unwrap_or(0)
    }
}

fn say(mut to: &UnixStream, line: Value) -> io::Result<()> {
    to.write_all(format!("{line}\r\n").as_bytes())
}

fn event(name: &str, data: Value) -> Value {
    let timestamp = json!({ "seconds": 7, "microseconds": 0 });
    json!({ "event": name, "data": data, "timestamp": timestamp })
}

/// Told when nothing of a source moves any more.
fn pre_switchover() -> Value {
    event("MIGRATION", json!({ "status": "pre-switchover" }))
}

/// A guest's whole life, as far as its monitor tells; whether it has ended with the conversation.
fn play(
    name: &str,
    incoming: &str,
    memory: Option<&Path>,
    stream: &UnixStream,
    yard: &Mutex<Yard>,
) -> io::Result<bool> {
    if lock(yard).takes(name, &Fault::IsNoQemu) {
        { stream }.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")?;
        return Ok(true);
    }
    say(
        stream,
        json!({ "QMP": { "version": { "qemu": { "major": 7, "minor": 2, "micro": 0 } } } }),
    )?;
    let mut target_uri = String::new();
    for line in BufReader::new(stream).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        let command = line["execute"].as_str().unwrap_or_default();
        let id = &line["id"];
        let mut yard = lock(yard);
        yard.heard.push(format!("{name} {command}"));
        let named = |fault: &Fault| match fault {
            Fault::Dies(at) | Fault::Refuses(at) => *at == command,
            _ => false,
        };
        let fault = yard.faults.iter().find(|(who, what)| who == name && named(what)).cloned();
        match fault.filter(|(_, fault)| yard.takes(name, fault)) {
            Some((_, Fault::Dies(_))) => return Ok(true),
            Some(_) => {
                let error = json!({ "class": "GenericError", "desc": "not today" });
                say(stream, json!({ "error": error, "id": id }))?;
                continue;
            }
            None => {}
        }
        let mut after = Vec::new();
        let answer = match command {
            "query-status" => json!({ "running": yard.running.get(name) == Some(&true) }),
            "query-migrate" => json!({ "ram": { "transferred": 4711 } }),
            "migrate-incoming" => {
                yard.waiting.insert(incoming.to_owned(), stream.try_clone()?);
                json!({})
            }
            "stop" => {
                yard.running.insert(name.into(), false);
                after.push(event("STOP", Value::Null));
                json!({})
            }
            "cont" => {
                yard.running.insert(name.into(), true);
                after.push(event("RESUME", Value::Null));
                json!({})
            }
            "migrate" | "migrate-continue" => {
                if yard.running.insert(name.into(), false) == Some(true) {
                    after.push(event("STOP", Value::Null));
                    if let Some(memory) = memory.filter(|_| name.starts_with("a-")) {
                        yard.speak_last(memory, name)?;
                    }
                }
                if let Some(uri) = line["arguments"]["uri"].as_str() {
                    uri.clone_into(&mut target_uri);
                }
                if memory.is_some() && command == "migrate" {
                    match yard.is_disk_busy {
                        true => yard.switching = Some(stream.try_clone()?),
                        false => after.push(pre_switchover()),
                    }
                } else {
                    let is_given_up = yard.takes(name, &Fault::GivesUp);
                    let target = yard.waiting.remove(&target_uri).filter(|_| !is_given_up);
                    if let Some(target) = target {
                        let standby = target_uri.rsplit('/').next().unwrap_or_default();
                        let standby = standby.trim_end_matches(".state").to_owned();
                        let is_good = !yard.takes(&standby, &Fault::CannotLoad);
                        let status = if is_good { "completed" } else { "failed" };
                        say(&target, event("MIGRATION", json!({ "status": status })))?;
                        after.push(event("MIGRATION", json!({ "status": "completed" })));
                    } else {
                        after.push(event("MIGRATION", json!({ "status": "failed" })));
                    }
                }
                json!({})
            }
            _ => json!({}),
        };
        say(stream, json!({ "return": answer, "id": id }))?;
        after.into_iter().try_for_each(|event| say(stream, event))?;
    }
    Ok(false)
}

/// The gateway's end, and the keeper at work.
struct Bench {
    yard: Arc<Mutex<Yard>>,
    orders: UnixStream,
    news: BufReader<UnixStream>,
    keeper: Option<JoinHandle<()>>,
    setup: QemuSetup,
    /// Where guests' memory is, if it is files.
    _memory: Option<tempfile::TempDir>,
}

fn setup() -> QemuSetup {
    QemuSetup {
        program: "/usr/bin/qemu".into(),
        accel: vec!["tcg".into()],
        memory_kib: 64 << 10,
        cpus: 1,
        kernel: Some("/k".into()),
        initrd: None,
        append: "quiet".into(),
        mac: "02:00:00:00:00:10".into(),
        args: vec!["-serial".into(), "file:{dir}/{name}.log".into()],
        dir: "/d".into(),
        memory_dir: None,
        links: ["/l/a".into(), "/l/b".into()],
        names: ["a".into(), "b".into()],
        downtime_ms: 20,
        timeout_ms: 10_000,
        run_as: None,
    }
}

impl Bench {
    /// With both guests attached; a is generation 1, b is 2, and the first standby is 3.
    fn new(faults: &[(&str, Fault)]) -> Self {
        let yard = Arc::new(Mutex::new(Yard::default()));
        lock(&yard).faults = faults.iter().map(|(who, f)| ((*who).to_owned(), f.clone())).collect();
        let mut bench = Self::over(yard);
        bench.until_both();
        bench
    }

    /// The same with guests whose memory is files.
    fn shared(faults: &[(&str, Fault)], is_watched: bool) -> Self {
        let yard = Arc::new(Mutex::new(Yard { is_watched, ..Yard::default() }));
        lock(&yard).faults = faults.iter().map(|(who, f)| ((*who).to_owned(), f.clone())).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let setup = QemuSetup { memory_dir: Some(dir.path().into()), ..setup() };
        let mut bench = Self::with(setup, yard);
        bench._memory = Some(dir);
        bench.until_both();
        bench
    }

    fn until_both(&mut self) {
        self.until(|news| matches!(news, News::Attached { leg: 0, generation: 1 }));
        self.until(|news| matches!(news, News::Attached { leg: 1, generation: 2 }));
    }

    fn over(yard: Arc<Mutex<Yard>>) -> Self {
        Self::with(setup(), yard)
    }

    fn with(setup: QemuSetup, yard: Arc<Mutex<Yard>>) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let stable = Scripted { setup: setup.clone(), yard: Arc::clone(&yard) };
        let mut keeper = Keeper::new(setup.clone(), stable, theirs).expect("a keeper");
        ours.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let orders = ours.try_clone().expect("a socket");
        let keeper = Some(std::thread::spawn(move || keeper.run()));
        Self { yard, orders, news: BufReader::new(ours), keeper, setup, _memory: None }
    }

    fn give(&mut self, order: Order) {
        let line = serde_json::to_string(&order).expect("an order");
        self.orders.write_all(format!("{line}\n").as_bytes()).expect("the keeper listens");
    }

    /// What comes next that is not for the log.
    fn next(&mut self) -> News {
        loop {
            let mut line = String::new();
            self.news.read_line(&mut line).expect("news");
            let news = serde_json::from_str(&line).expect("news");
            if !matches!(news, News::Said { .. } | News::Prepared { .. }) {
                return news;
            }
        }
    }

    fn until(&mut self, is_it: impl Fn(&News) -> bool) -> Vec<News> {
        let mut before = Vec::new();
        loop {
            let news = self.next();
            if is_it(&news) {
                return before;
            }
            before.push(news);
        }
    }

    fn sync(&mut self, id: u32, from: usize) {
        self.give(Order::Sync { id, from, to: 1 - from, way: Way::Live });
    }

    /// A sync as it should be; the new generation.
    fn good_sync(&mut self, id: u32, from: usize) -> u32 {
        self.sync(id, from);
        self.until(|news| *news == News::Frozen { id });
        self.give(Order::Overwrite { id });
        let News::Ready { id: of, leg, generation } = self.next() else { panic!("not ready") };
        assert_eq!((of, leg), (id, 1 - from));
        self.give(Order::Go { id });
        let News::Done(report) = self.next() else { panic!("not done") };
        assert_eq!(report.id, id);
        match self.setup.memory_dir {
            None => assert_eq!(report.bytes, 4711),
            Some(_) => assert!(report.bytes >= 4711, "{report:?}"),
        }
        generation
    }

    fn memory(&self, leg: usize, generation: u32) -> Vec<u8> {
        let path = self.setup.memory(Which { leg, generation }).expect("it is a file");
        std::fs::read(path).expect("it is there")
    }

    fn runs(&self, name: &str) -> Option<bool> {
        lock(&self.yard).running.get(name).copied()
    }

    /// Ends the gateway, and waits for the keeper's end.
    fn end(mut self) -> Arc<Mutex<Yard>> {
        self.orders.shutdown(std::net::Shutdown::Both).expect("a socket");
        self.keeper.take().expect("a keeper").join().expect("it ends well");
        Arc::clone(&self.yard)
    }
}

#[test]
fn a_sync_puts_a_copy_in_the_place_of_the_target_and_back_again() {
    let mut bench = Bench::new(&[]);
    assert_eq!(bench.good_sync(1, 0), 3);
    assert_eq!(
        (bench.runs("a-1"), bench.runs("b-2"), bench.runs("b-3")),
        (Some(true), None, Some(true))
    );
    // In the other direction: the standby that stood ready for b is of no use.
    let generation = bench.good_sync(2, 1);
    let name = format!("a-{generation}");
    assert_eq!(
        (bench.runs(&name), bench.runs("a-1"), bench.runs("b-3")),
        (Some(true), None, Some(true))
    );
    let yard = bench.end();
    let left: Vec<_> = lock(&yard).running.clone().into_iter().collect();
    assert_eq!(left, [(name, true), ("b-3".into(), true)], "guests outlive their keeper, alone");
}

#[test]
fn memory_that_is_files_is_equal_when_the_copy_is_ready_whoever_takes_notes() {
    // Noted to the end, no longer noted at some time, and never.
    for (at_first, later) in [(true, true), (true, false), (false, false)] {
        let mut bench = Bench::shared(&[], at_first);
        // What is written last of all is what the sync has least time for.
        lock(&bench.yard).last_words = vec![0, 3, 4, MEMORY_LEN as u64 / 4096 - 1];
        lock(&bench.yard).is_watched = later;
        bench.sync(1, 0);
        bench.until(|news| *news == News::Frozen { id: 1 });
        bench.give(Order::Overwrite { id: 1 });
        bench.until(|news| matches!(news, News::Ready { generation: 3, .. }));
        let (ours, theirs) = (bench.memory(0, 1), bench.memory(1, 3));
        assert!(ours.contains(&0xee) && ours == theirs, "{at_first} {later}");
        bench.give(Order::Go { id: 1 });
        bench.until(|news| matches!(news, News::Done(_)));
        let heard = lock(&bench.yard).heard.clone();
        let at = |what: &str| heard.iter().position(|line| line == what).expect(what);
        assert!(at("b-2 stop") < at("a-1 migrate-continue"));
        // And back again, by another standby; then once more, when its copy was prepared.
        for id in 2..5 {
            let leg = id as usize % 2;
            let generation = bench.good_sync(id, 1 - leg);
            let source = lock(&bench.yard).recorded[&(1 - leg)];
            assert!(bench.memory(leg, generation) == bench.memory(1 - leg, source));
        }
    }
}

#[test]
fn what_a_disk_writes_when_the_processors_have_stopped_is_copied() {
    let mut bench = Bench::shared(&[], true);
    lock(&bench.yard).is_disk_busy = true;
    bench.sync(1, 0);
    bench.until(|news| *news == News::Frozen { id: 1 });
    bench.give(Order::Overwrite { id: 1 });
    {
        let mut yard = lock(&bench.yard);
        yard.last_words = vec![5];
        let memory = bench.setup.memory(Which { leg: 0, generation: 1 }).expect("it is a file");
        yard.speak_last(&memory, "a-1").expect("a page");
        let source = yard.switching.take().expect("it has stopped");
        say(&source, pre_switchover()).expect("the keeper listens");
    }
    bench.until(|news| matches!(news, News::Ready { generation: 3, .. }));
    let (ours, theirs) = (bench.memory(0, 1), bench.memory(1, 3));
    assert!(ours.contains(&0xee) && ours == theirs);
}

#[test]
fn nothing_is_touched_before_the_gateway_has_said_so() {
    let mut bench = Bench::new(&[]);
    bench.sync(1, 0);
    bench.until(|news| *news == News::Frozen { id: 1 });
    assert_eq!((bench.runs("a-1"), bench.runs("b-2")), (Some(false), Some(false)));
    bench.give(Order::Overwrite { id: 1 });
    bench.until(|news| matches!(news, News::Ready { generation: 3, .. }));
    // Whole, and yet nobody speaks before the engine knows.
    assert_eq!(
        (bench.runs("a-1"), bench.runs("b-2"), bench.runs("b-3")),
        (Some(false), Some(false), Some(false))
    );
    bench.give(Order::Go { id: 1 });
    bench.until(|news| matches!(news, News::Done(_)));
    assert_eq!(
        (bench.runs("a-1"), bench.runs("b-2"), bench.runs("b-3")),
        (Some(true), None, Some(true))
    );
}

#[test]
fn whatever_fails_leaves_both_servers_as_they_were_and_the_next_sync_works() {
    let faults = [
        ("a-1", Fault::Refuses("migrate"), "not today"),
        ("a-1", Fault::GivesUp, "a-1 gave up"),
        ("b-2", Fault::Refuses("stop"), "b-2 refuses `stop`"),
        ("b-3", Fault::CannotLoad, "b-3 gave up"),
        ("b-3", Fault::Refuses("migrate-incoming"), ""),
    ];
    for (is_shared, (who, fault, why)) in
        [false, true].into_iter().flat_map(|is| faults.clone().map(|fault| (is, fault)))
    {
        let faults = [(who, fault.clone())];
        let mut bench = match is_shared {
            false => Bench::new(&faults),
            true => Bench::shared(&faults, true),
        };
        if why.is_empty() {
            // It was found out before it was needed: another one stands ready.
            assert!(bench.good_sync(1, 0) > 3, "{who} {fault:?}");
            continue;
        }
        bench.sync(1, 0);
        let mut news = bench.next();
        if news == (News::Frozen { id: 1 }) {
            bench.give(Order::Overwrite { id: 1 });
            news = bench.next();
        }
        let News::Failed { id: 1, message } = news else { panic!("{who} {fault:?}: {news:?}") };
        assert!(message.contains(why), "{message}");
        assert!(bench.good_sync(2, 0) > 3, "{who} {fault:?}: a standby was used again");
        let left = (bench.runs("a-1"), bench.runs("b-2"), bench.runs("b-3"));
        assert_eq!(left, (Some(true), None, None), "{who} {fault:?}");
    }
}

#[test]
fn a_standby_that_is_no_qemu_or_refuses_never_gets_a_state() {
    for fault in
        [Fault::Refuses("qmp_capabilities"), Fault::IsNoQemu, Fault::Dies("migrate-incoming")]
    {
        let mut bench = Bench::new(&[("b-3", fault.clone())]);
        assert!(bench.good_sync(1, 0) > 3, "{fault:?}");
        let heard = lock(&bench.yard).heard.join(", ");
        assert!(!heard.contains("b-3 cont"), "{fault:?}: {heard}");
        assert_eq!(bench.runs("b-3"), None, "{fault:?}");
    }
}

#[test]
fn a_server_that_ends_is_told_and_replaced_whatever_is_under_way() {
    for (leg, name, at) in [(0, "a-1", "migrate"), (1, "b-2", "stop")] {
        let mut bench = Bench::new(&[(name, Fault::Dies(at))]);
        bench.sync(1, 0);
        let before = bench.until(|news| *news == News::Exited { leg });
        assert!(before.is_empty(), "{name}: {before:?}");
        let News::Failed { id: 1, message } = bench.next() else { panic!("no failure") };
        assert!(message.contains("ended"), "{message}");
        let other = if leg == 0 { "b-2" } else { "a-1" };
        let News::Attached { leg: again, generation } = bench.next() else { panic!("no guest") };
        assert_eq!(again, leg);
        assert_eq!(bench.runs(other), Some(true), "{name}");
        // The dead side becomes a copy of the one that is left.
        assert!(bench.good_sync(2, 1 - leg) > generation);
    }
}

#[test]
fn a_copy_that_dies_when_it_is_to_go_on_is_a_server_that_ends() {
    let mut bench = Bench::new(&[("b-3", Fault::Dies("cont"))]);
    bench.sync(1, 0);
    bench.until(|news| *news == News::Frozen { id: 1 });
    bench.give(Order::Overwrite { id: 1 });
    bench.until(|news| matches!(news, News::Ready { .. }));
    bench.give(Order::Go { id: 1 });
    bench.until(|news| *news == News::Exited { leg: 1 });
    bench.until(|news| matches!(news, News::Done(_)));
    assert_eq!(bench.runs("a-1"), Some(true));
}

#[test]
fn a_sync_that_is_not_wanted_any_more_is_undone_without_a_word() {
    for is_whole in [false, true] {
        let mut bench = Bench::new(&[]);
        bench.sync(1, 0);
        bench.until(|news| *news == News::Frozen { id: 1 });
        if is_whole {
            bench.give(Order::Overwrite { id: 1 });
            bench.until(|news| matches!(news, News::Ready { .. }));
        }
        bench.give(Order::Cancel { id: 1 });
        // A word that was on its way already changes nothing.
        bench.give(Order::Go { id: 1 });
        if is_whole {
            // The link had been given to the copy.
            assert_eq!(bench.next(), News::Attached { leg: 1, generation: 2 });
        }
        assert!(bench.good_sync(2, 0) > 3);
        assert_eq!((bench.runs("a-1"), bench.runs("b-3")), (Some(true), None));
    }
}

#[test]
fn without_its_gateway_both_go_on_and_the_next_one_finds_them() {
    let mut bench = Bench::new(&[]);
    bench.sync(1, 0);
    bench.until(|news| *news == News::Frozen { id: 1 });
    let yard = bench.end();
    let left: Vec<_> = lock(&yard).running.clone().into_iter().collect();
    assert_eq!(left, [("a-1".to_owned(), true), ("b-2".into(), true)]);
    // One was left standing still by a keeper that was killed.
    lock(&yard).running.insert("b-2".into(), false);
    lock(&yard).running.insert("b-9".into(), false);
    let mut bench = Bench::over(Arc::clone(&yard));
    assert_eq!(bench.next(), News::Attached { leg: 0, generation: 1 });
    assert_eq!(bench.next(), News::Attached { leg: 1, generation: 2 });
    assert_eq!(bench.runs("b-2"), Some(true));
    assert!(bench.good_sync(1, 0) > 2);
    assert_eq!(bench.runs("b-9"), None, "nobody's guest is ended");
}

#[test]
fn told_to_end_it_leaves_nobody() {
    let mut bench = Bench::new(&[]);
    bench.give(Order::End);
    let yard = bench.end();
    assert!(lock(&yard).running.is_empty());
}

#[test]
fn the_command_line_has_what_a_guest_needs() {
    let which = Which { leg: 1, generation: 4 };
    let line = setup().args(which, true).join(" ");
    for part in [
        "-name b-4 ",
        "-m 65536K -smp 1 -kernel /k -append quiet",
        "local.path=/l/b.4,remote.type=unix,remote.path=/l/b",
        "virtio-net-pci,netdev=link,mac=02:00:00:00:00:10,",
        "path=/d/b-4.qmp,server=on",
        "-serial file:/d/b-4.log",
        "-S -incoming defer",
    ] {
        assert!(line.contains(part), "`{part}` is not in: {line}");
    }
    assert!(!setup().args(which, false).join(" ").contains("-incoming"));
    assert!(line.contains(" -M pc ") && !line.contains("memory-backend"), "{line}");
    let shared = QemuSetup { memory_dir: Some("/m".into()), ..setup() };
    let line = shared.args(which, false).join(" ");
    let want = "-object memory-backend-file,id=memory,size=65536K,mem-path=/m/b-4.memory,share=on \
                -M pc,memory-backend=memory -m 65536K";
    assert!(line.contains(want), "{line}");
}

#[test]
fn an_emulated_guest_has_memory_whose_changes_qemu_notes_one_by_one() {
    let of = |accel: &[&str], has_kvm: bool| {
        let accel = accel.iter().map(|&word| word.to_owned()).collect();
        copies_whole(QemuSetup { accel, ..setup() }, |_| has_kvm).memory_kib
    };
    // A whole number of 256 KiB is what loses changes.
    assert_ne!(of(&["tcg"], true) % 256, 0);
    assert_ne!(of(&["kvm", "tcg,thread=multi"], false) % 256, 0);
    assert_eq!(of(&["kvm", "tcg"], true), 64 << 10);
    assert_eq!(of(&["kvm"], false), 64 << 10, "which does not start without");
}
