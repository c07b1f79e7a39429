//! A guest's throughput over a TAP interface, compared with a program that writes the same frames to it.
//!
//! The guest runs the workload `net-flood-*`: 10 000 frames between its marks, sent by its own driver. The program
//! makes a write(2) for each of the same frames. Both use one interface by turns, in this process's own network
//! namespace, and the interface's counter shows how many arrived.

mod support;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use paravane::backend::net::mac::Mac;
use paravane::backend::net::tap::Tap;
use paravane::compare;
use paravane::compare::{Machine, Workload};
use paravane::launch;
use paravane::launch::{Config, EngineChoice, TransportChoice};
use paravane::technique::Technique;
use paravane::virtio::net::Net;
use serde_json::json;
use support::{Options, median};

const FRAMES: u64 = 10_000;
/// The guest rehearses.
const GUEST_FRAMES: u64 = 2 * FRAMES;
const NAME: &str = "pvbench0";
const MAC: Mac = Mac([0x02, 0, 0, 0, 0x88, 0xb6]);
/// The destination of the frames: an address that nobody has, so that the host's kernel drops them.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0x88, 0xb5];
/// The target for the guest's throughput, as a share of the program's.
const TARGET: f64 = 0.5;

const WORKLOADS: [(usize, Workload); 2] =
    [(64, Workload::new("net-flood-64", "")), (1500, Workload::new("net-flood-1500", ""))];

/// Moves this process into a new network namespace; without root's rights, into a user namespace too.
fn own_network() -> io::Result<()> {
    // SAFETY: no pointers; the process has no other thread.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNET) == 0 || libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Attaches to the interface like any program, and makes it persistent.
fn attach() -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero `ifreq` is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name.iter_mut().zip(NAME.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the first request takes a live `ifreq`, the second a number.
    let failed = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) < 0
            || libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST as _, 1) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// The number of frames that the host's kernel has received from the interface.
fn arrived() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(NAME)?.strip_prefix(':'));
    let packets = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    packets.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Checks that `frames` frames arrive while `body` runs.
fn counted<R>(frames: u64, body: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    let text = |error: io::Error| error.to_string();
    let before = arrived().map_err(text)?;
    let result = body()?;
    let there = arrived().map_err(text)? - before;
    if there == frames { Ok(result) } else { Err(format!("{there} of {frames} frames arrived")) }
}

/// Nanoseconds for a frame by a program.
fn program(size: usize) -> Result<f64, String> {
    let mut frame = vec![0; size];
    frame[..6].copy_from_slice(&NOBODY);
    frame[6..12].copy_from_slice(&MAC.0);
    frame[12..14].copy_from_slice(&[0x88, 0xb6]);
    let mut file = attach().map_err(|e| e.to_string())?;
    counted(FRAMES, || {
        let start = Instant::now();
        for number in 0..FRAMES {
            frame[14..22].copy_from_slice(&number.to_le_bytes());
            file.write_all(&frame).map_err(|e| e.to_string())?;
        }
        Ok(start.elapsed().as_nanos() as f64 / FRAMES as f64)
    })
}

/// Nanoseconds for a frame by the guest, and exits for each.
fn guest(engine: EngineChoice, workload: &Workload) -> Result<(f64, f64), String> {
    let machine = Machine {
        mem_bytes: 64 << 20,
        engine,
        transport: TransportChoice::Auto,
        deadline: Duration::from_secs(60),
    };
    let tap = Tap::open(NAME).map_err(|e| e.to_string())?;
    let mut devices: Vec<Box<dyn paravane::virtio::Device>> = vec![Box::new(Net::new(Box::new(tap), MAC))];
    let mut boot = |config: Config| launch::run(Config { devices: std::mem::take(&mut devices), ..config });
    let pv = Technique::named("pv").ok_or("no such technique")?;
    counted(GUEST_FRAMES, || {
        let sample = compare::measure(pv, workload, &machine, &mut boot).map_err(|e| e.to_string())?;
        Ok((sample.region.ns as f64 / FRAMES as f64, sample.region.traps() as f64 / FRAMES as f64))
    })
}

/// One engine's row for one size of frames.
fn row(engine: (&str, EngineChoice), size: usize, workload: &Workload, rounds: usize) -> serde_json::Value {
    let (mut ours, mut floor, mut exits, mut skipped) = (vec![], vec![], vec![], None);
    for _ in 0..rounds {
        match program(size).and_then(|program| Ok((program, guest(engine.1, workload)?))) {
            Ok((program, (ns, per_frame))) => {
                floor.push(program);
                ours.push(ns);
                exits.push(per_frame);
            }
            Err(why) => {
                skipped = Some(why);
                break;
            }
        }
    }
    let share: Vec<f64> = floor.iter().zip(&ours).map(|(program, ns)| program / ns).collect();
    json!({
        "engine": engine.0, "bytes": size, "program_ns": floor, "guest_ns": ours,
        "exits_per_frame": median(&exits), "share": median(&share), "skipped": skipped,
    })
}

fn main() {
    let options = Options::parse("tap", 11);
    // The first creates the interface, the second brings it up.
    let made = own_network().and_then(|()| attach().map(drop)).map_err(|e| e.to_string());
    let made = made.and_then(|()| Tap::open(NAME).map(drop).map_err(|e| e.to_string()));
    if let Err(error) = made {
        println!("SKIP: no TAP interface can be made in a network of our own: {error}");
        return;
    }
    let mut rows = Vec::new();
    for (size, workload) in &WORKLOADS {
        for engine in [("kvm", EngineChoice::Kvm), ("process", EngineChoice::Process)] {
            rows.push(row(engine, *size, workload, options.rounds));
        }
    }
    if options.json {
        let host = compare::HostFacts::gather();
        println!("{:#}", json!({ "host": host, "frames": FRAMES, "target": TARGET, "rows": rows }));
        return;
    }
    println!("{FRAMES} frames to a TAP interface; medians of {} rounds\n", options.rounds);
    println!(
        "{:<10} {:>6} {:>12} {:>12} {:>8} {:>12}",
        "", "bytes", "program", "guest", "share", "exits/frame"
    );
    for row in rows {
        let (name, size) = (row["engine"].as_str().unwrap_or_default(), &row["bytes"]);
        if let Some(why) = row["skipped"].as_str() {
            println!("{name:<10} {size:>6} SKIP: {why}");
            continue;
        }
        let series = |name: &str| -> Vec<f64> {
            row[name].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64).collect()
        };
        let share = row["share"].as_f64().unwrap_or(f64::NAN);
        println!(
            "{name:<10} {size:>6} {:>9.0} ns {:>9.0} ns {:>7.0}% {:>12.4}   {} {:.0}%",
            median(&series("program_ns")),
            median(&series("guest_ns")),
            share * 100.0,
            row["exits_per_frame"].as_f64().unwrap_or(f64::NAN),
            if share >= TARGET { "at least" } else { "under" },
            TARGET * 100.0
        );
    }
}
