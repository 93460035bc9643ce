//! Worlds of both kinds: what they carry, what the faults do, what is left.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;
use crate::lab::impair::{Fate, Forwarder};
use crate::lab::{Io, agent, message};

const KINDS: [Kind; 2] = [Kind::Root, Kind::User];

/// Forwards between the client and server A in the gateway while `work` runs.
fn bridged(world: &World, work: impl FnOnce()) {
    let socket = |name| world.packet_socket(HostId::Gateway, name).unwrap();
    let forwarder = Forwarder::between([socket("client"), socket("a")], Impairment::default());
    let (ours, theirs) = agent::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || forwarder.run(&theirs));
        work();
        drop(ours);
    });
}

fn shell(world: &World, host: HostId, script: &str) -> String {
    let program = Program::new("sh").args(["-c", script]).stdout(Io::Pipe);
    let output = world.spawn(host, program).unwrap().wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// One connection from the client to server A carries `len` bytes back.
fn transfer(world: &World, to: IpAddr, len: usize) {
    let server = HostId::Server(LegId::A);
    let listener = world.enter(server, || TcpListener::bind((to, 80)).unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| listener.accept().unwrap().0.write_all(&vec![7; len]).unwrap());
        let mut client =
            world.enter(HostId::Client, || TcpStream::connect((to, 80)).unwrap()).unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got, vec![7; len]);
    });
}

#[test]
fn a_shell_hears_of_its_children() {
    let world = World::new(&WorldOptions::default()).unwrap();
    let script = "sleep 0.01 & sleep 0.02 & wait; grep SigBlk /proc/self/status";
    let said = shell(&world, HostId::Client, script);
    assert_eq!(said.trim_start_matches("SigBlk:").trim(), "0".repeat(16), "{said}");
}

#[test]
fn both_kinds_have_addresses_and_no_foreign_processes() {
    for kind in KINDS {
        let world = World::new(&WorldOptions { kind, ..WorldOptions::default() }).unwrap();
        assert_eq!(world.kind(), kind);
        let client = shell(&world, HostId::Client, "cat /proc/net/fib_trie /proc/net/if_inet6");
        assert!(client.contains("192.0.2.1\n"), "{client}");
        assert!(client.contains("20010db8000000000000000000000001"), "{client}");
        let gateway = shell(&world, HostId::Gateway, "cat /proc/net/dev /proc/net/if_inet6");
        for name in GATEWAY_INTERFACES {
            assert!(gateway.contains(&format!("{name}:")), "{gateway}");
        }
        assert!(!gateway.contains("fe80"), "the gateway's ends have no address: {gateway}");
        assert!(shell(&world, HostId::Client, "echo /proc/[0-9]*").split(' ').count() < 5);
    }
}

#[test]
fn both_families_cross_with_offloads_on() {
    let world = World::new(&WorldOptions::default()).unwrap();
    bridged(&world, || {
        transfer(&world, SERVICE.0.into(), 10 << 20);
        transfer(&world, SERVICE.1.into(), 10 << 20);
    });
}

#[test]
fn unequal_servers_and_lossy_links_still_carry() {
    let mut options = WorldOptions::default();
    let fate = Fate { loss: 0.01, corrupt: 0.01, duplicate: 0.01, ..Fate::default() };
    options.servers[0] = ServerOptions {
        mtu: Some(1280),
        metrics: RouteMetrics { advmss: Some(536), initcwnd: Some(1) },
        has_tso: false,
        impair: Some(Impairment::both(fate)),
    };
    let world = World::new(&options).unwrap();
    bridged(&world, || transfer(&world, SERVICE.0.into(), 300_000));
    let slow = Fate { rate: Some(8_000_000), ..Fate::default() };
    world.impair(LegId::A, &Impairment::both(slow)).unwrap();
    let begin = Instant::now();
    bridged(&world, || transfer(&world, SERVICE.0.into(), 300_000));
    assert!(begin.elapsed() > Duration::from_millis(250), "{:?}", begin.elapsed());
    assert!(world.impair(LegId::B, &Impairment::default()).is_err());
}

#[test]
fn routed_worlds_route() {
    let options = WorldOptions { topology: Topology::Routed, ..WorldOptions::default() };
    let world = World::new(&options).unwrap();
    let (v4, v6) = world.server_addresses(LegId::A);
    transfer(&world, v4.into(), 100_000);
    transfer(&world, v6.into(), 100_000);
}

#[test]
fn worlds_without_a_gateway_carry_in_both_families() {
    for topology in [Topology::Bridged, Topology::Direct] {
        let options = WorldOptions { kind: Kind::Root, topology, ..WorldOptions::default() };
        let world = World::new(&options).unwrap();
        transfer(&world, SERVICE.0.into(), 5_000_000);
        transfer(&world, SERVICE.1.into(), 100_000);
    }
}

#[test]
fn a_cut_is_silent_and_keeps_the_carrier() {
    let world = World::new(&WorldOptions::default()).unwrap();
    let carrier = || shell(&world, HostId::Gateway, "cat /sys/class/net/a/carrier");
    let to = (IpAddr::from(SERVICE.0), 80);
    let server = HostId::Server(LegId::A);
    let _listener = world.enter(server, || TcpListener::bind(to).unwrap()).unwrap();
    let connect = |limit| {
        world.enter(HostId::Client, || TcpStream::connect_timeout(&to.into(), limit)).unwrap()
    };
    bridged(&world, || {
        let (short, long) = (Duration::from_millis(300), Duration::from_secs(5));
        connect(long).unwrap();
        for cut in [Cut::Both, Cut::FromServer, Cut::ToServer] {
            world.cut(LegId::A, cut).unwrap();
            assert_eq!(connect(short).unwrap_err().kind(), io::ErrorKind::TimedOut, "{cut:?}");
            assert_eq!(carrier(), "1\n");
            world.heal(LegId::A).unwrap();
            // Neighbour entries may have failed in the meantime and take a second to be asked for.
            connect(long).unwrap();
        }
    });
    world.link_down(LegId::A).unwrap();
    assert_eq!(carrier(), "0\n");
    world.link_up(LegId::A).unwrap();
    assert_eq!(carrier(), "1\n");
    bridged(&world, || drop(connect(Duration::from_secs(5)).unwrap()));
}

#[test]
fn a_deleted_server_takes_its_interface_and_programs_along_and_returns() {
    let world = World::new(&WorldOptions::default()).unwrap();
    let server = HostId::Server(LegId::A);
    let mut sleeper = world.spawn(server, Program::new("sleep").arg("600")).unwrap();
    assert!(sleeper.try_wait().unwrap().is_none());
    world.delete_host(LegId::A).unwrap();
    assert_eq!(sleeper.wait().unwrap().to_string(), "signal: 9 (SIGKILL)");
    let there = || shell(&world, HostId::Gateway, "cat /proc/net/dev").contains("a:");
    assert!(!there());
    assert!(matches!(world.kill_host(server), Err(WorldError::Gone(_))));
    world.return_host(LegId::A).unwrap();
    assert!(there());
    bridged(&world, || transfer(&world, SERVICE.0.into(), 1000));
}

#[test]
fn a_host_is_frozen_thawed_and_killed_whole() {
    let world = World::new(&WorldOptions::default()).unwrap();
    let script = "trap 'echo term; exit 3' TERM; sh -c 'while :; do sleep 600; done' & wait";
    let program = Program::new("sh").args(["-c", script]).stdout(Io::Pipe);
    let mut child = world.spawn(HostId::Client, program).unwrap();
    let states = || {
        let list = world.processes(HostId::Client).unwrap();
        list.iter().filter(|(_, line)| line.contains("sleep")).count()
    };
    while states() < 2 {
        std::thread::yield_now();
    }
    world.freeze(HostId::Client).unwrap();
    child.signal(Signal::SIGTERM).unwrap();
    assert!(child.wait_timeout(Duration::from_millis(100)).unwrap().is_none());
    world.thaw(HostId::Client).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    world.kill_host(HostId::Client).unwrap();
    while states() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn nothing_is_left_when_the_world_ends() {
    let world = World::new(&WorldOptions::default()).unwrap();
    let sleeper = world.spawn(HostId::Client, Program::new("sleep").arg("600")).unwrap();
    drop(world);
    let mut poll = [nix::poll::PollFd::new(sleeper.pidfd(), nix::poll::PollFlags::POLLIN)];
    let ended = nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO).unwrap();
    assert_eq!(ended, 1, "the program has ended before drop returns");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let world = World::new(&WorldOptions::default()).unwrap();
    let error = world.spawn(HostId::Client, Program::new("no-such-program")).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("client: starting no-such-program: No such file"), "{text}");
}

#[test]
fn records_carry_descriptors() {
    let (a, b) = agent::pair().unwrap();
    message::send(&a, &"hello", &[std::os::fd::AsFd::as_fd(&a)]).unwrap();
    let (text, fds) = message::receive::<String>(&b).unwrap().unwrap();
    assert_eq!((text.as_str(), fds.len()), ("hello", 1));
    drop((a, fds));
    assert!(message::receive::<String>(&b).unwrap().is_none());
}
