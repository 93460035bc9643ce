//! A flood of SYNs from addresses that do not exist, beside one client's download.
//!
//! The same flood against an address that the gateway does not serve is the measure: it costs the
//! machine the same, so what is missing then is what serving the flood takes from the client.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::super::cast::Client;
use super::super::stage::{Stage, StageError, target};
use super::pour::{mixed, pour};
use super::{Row, Table, Unit, folder};
use crate::engine::LegId;
use crate::lab::web::PORT;
use crate::lab::web::client::{Outcome, Plan, Work};
use crate::lab::world::{CLIENT_MAC, SERVER_MAC, SERVICE};
use crate::lab::{HostId, WorldOptions};
use crate::wire::build::{self, TcpFields};
use crate::wire::{Frame, L2, L3, Mac, TcpFlags, TcpOptions, Vlans};

/// `bench flood`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Rounds
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// SYNs a second, if the machine can
    #[arg(long, default_value_t = 20_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(100..=2_000_000))]
    rate: u32,
    /// Bytes of the download
    #[arg(long, default_value_t = 2_000_000_000)]
    bytes: u64,
}

/// An address of the same network that nobody has.
const UNSERVED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// Measures.
pub(super) fn run(args: &Args, dir: &Path) -> Result<Table, StageError> {
    let options = WorldOptions { is_client_router: true, ..WorldOptions::default() };
    let mut stage = Stage::new(&options, &folder(dir, "flood")?)?;
    stage.start_all("")?;
    let rows = vec![
        Row::new("download, no flood", Unit::BytesPerSecond),
        Row::new("download, another address is flooded", Unit::BytesPerSecond),
        Row::new("download, the service is flooded", Unit::BytesPerSecond),
        Row::new("SYNs a second to another address", Unit::Count),
        Row::new("SYNs a second to the service", Unit::Count),
        Row::new("memory of the gateway afterwards", Unit::Bytes),
    ];
    let setting = json!({ "runs": args.runs, "bytes": args.bytes, "rate": args.rate });
    let mut table = Table::new("flood", setting, rows);
    for _ in 0..args.runs {
        let quiet = download(&stage, args.bytes)?;
        let (beside, elsewhere) = flooded(&stage, args, UNSERVED)?;
        let (among, here) = flooded(&stage, args, SERVICE.0)?;
        let rate = |o: &Outcome| o.bytes as f64 / o.took.as_secs_f64();
        let values = [rate(&quiet), rate(&beside), rate(&among), elsewhere, here];
        let memory = stage.gateway_memory()? as f64;
        for (row, value) in table.rows.iter_mut().zip(values.into_iter().chain([memory])) {
            row.values.push(value);
        }
        table.note([&quiet, &beside, &among]);
    }
    table.ratio("the service flooded to another address flooded", 2, 1);
    Ok(table)
}

fn download(stage: &Stage, bytes: u64) -> Result<Outcome, StageError> {
    let work = Work::Get { bytes, count: Some(1), pause: Duration::ZERO };
    Ok(Client::start(stage, Plan::new(target(&stage.world, LegId::A), work)).end()?)
}

/// A download while `victim` is flooded, and the SYNs a second that were sent.
fn flooded(stage: &Stage, args: &Args, victim: Ipv4Addr) -> Result<(Outcome, f64), StageError> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope
            .spawn(|| pour(&stage.world, HostId::Client, args.rate, &stop, |n| syn(n, victim)));
        let outcome = download(stage, args.bytes);
        stop.store(true, Relaxed);
        let rate = flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((outcome?, rate))
    })
}

/// The SYN number `n`: another address, another port, another number each time.
fn syn(n: u64, victim: Ipv4Addr) -> Frame {
    let mixed = mixed(n);
    let src = Ipv4Addr::from(0x0a00_0000 | (mixed >> 40) as u32);
    let l2 = L2 { dst: Mac(SERVER_MAC), src: Mac(CLIENT_MAC), vlans: Vlans::default() };
    let l3 = L3 {
        src: IpAddr::V4(src),
        dst: IpAddr::V4(victim),
        ttl: 60,
        tos: 0,
        dont_fragment: true,
        id: 0,
        flow_label: 0,
    };
    let fields = TcpFields {
        src_port: 1024 + (mixed >> 20) as u16 % 60_000,
        dst_port: PORT,
        seq: mixed as u32,
        ack: 0,
        flags: TcpFlags::SYN,
        window: 64_240,
        urgent: 0,
        options: TcpOptions { mss: Some(1460), sack_permitted: true, ..TcpOptions::default() },
    };
    build::tcp(&l2, &l3, &fields, Bytes::new(), u16::MAX)
}
