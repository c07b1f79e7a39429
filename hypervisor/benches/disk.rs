//! The read throughput of a guest's disk, compared with the same reads by a program on the host.
//!
//! The guest runs the workload `block-read-64k`: 1000 reads of 64 KiB, 32 in flight, between its marks, from the file
//! that `compare` makes. The host makes the same reads from a file of the same size, one after the other, into 32
//! buffers in turn. Both files are in the page cache, and one process reads them by turns.

mod support;

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use paravane::compare;
use paravane::compare::{Machine, WORKLOADS};
use paravane::launch;
use paravane::launch::{EngineChoice, TransportChoice};
use paravane::technique::Technique;
use serde_json::json;
use support::{Options, median};

const READS: u64 = 1000;
const BLOCK: usize = 64 << 10;
const DEPTH: usize = 32;
/// The size of the disk of `compare`.
const FILE: usize = 16 << 20;
/// The order in which the guest reads blocks.
const STRIDE: u64 = 1103;
/// The target for the guest's throughput, as a share of the host's.
const TARGET: f64 = 0.6;

fn host_file() -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("paravane-bench-{}", std::process::id()));
    let mut file = File::options().create_new(true).read(true).write(true).open(&path)?;
    std::fs::remove_file(&path)?;
    file.write_all(&vec![0x5a; FILE])?;
    file.rewind()?;
    Ok(file)
}

/// Nanoseconds for a read by the host.
fn host(file: &File) -> std::io::Result<f64> {
    let mut buffers = vec![vec![0u8; BLOCK]; DEPTH];
    let blocks = (FILE / BLOCK) as u64;
    let start = Instant::now();
    for (number, buffer) in (0..READS).zip((0..DEPTH).cycle()) {
        file.read_exact_at(&mut buffers[buffer], number * STRIDE % blocks * BLOCK as u64)?;
    }
    Ok(start.elapsed().as_nanos() as f64 / READS as f64)
}

/// Nanoseconds for a read by the guest, and exits for each.
fn guest(engine: EngineChoice) -> Result<(f64, f64), String> {
    let machine = Machine {
        mem_bytes: 64 << 20,
        engine,
        transport: TransportChoice::Auto,
        deadline: Duration::from_secs(60),
    };
    let workload = WORKLOADS.iter().find(|w| w.name == "block-read-64k").ok_or("no such workload")?;
    let pv = Technique::named("pv").ok_or("no such technique")?;
    let sample = compare::measure(pv, workload, &machine, &mut launch::run).map_err(|e| e.to_string())?;
    Ok((sample.region.ns as f64 / READS as f64, sample.region.traps() as f64 / READS as f64))
}

fn main() {
    let options = Options::parse("disk", 11);
    let file = match host_file() {
        Ok(file) => file,
        Err(error) => {
            eprintln!("cannot make a file of {FILE} bytes in {}: {error}", std::env::temp_dir().display());
            std::process::exit(1);
        }
    };
    let mut rows = Vec::new();
    for (name, engine) in [("kvm", EngineChoice::Kvm), ("process", EngineChoice::Process)] {
        let (mut ours, mut floor, mut exits, mut skipped) = (vec![], vec![], vec![], None);
        for _ in 0..options.rounds {
            match (host(&file), guest(engine)) {
                (Ok(host), Ok((ns, per_read))) => {
                    floor.push(host);
                    ours.push(ns);
                    exits.push(per_read);
                }
                (Err(error), _) => skipped = Some(error.to_string()),
                (_, Err(why)) => skipped = Some(why),
            }
            if skipped.is_some() {
                break;
            }
        }
        let share: Vec<f64> = floor.iter().zip(&ours).map(|(host, ns)| host / ns).collect();
        rows.push(json!({
            "engine": name, "host_ns": floor, "guest_ns": ours, "exits_per_read": median(&exits),
            "share": median(&share), "skipped": skipped,
        }));
    }
    if options.json {
        let host = compare::HostFacts::gather();
        println!(
            "{:#}",
            json!({ "host": host, "block": BLOCK, "depth": DEPTH, "target": TARGET, "rows": rows })
        );
        return;
    }
    println!("{READS} reads of 64 KiB, {DEPTH} in flight; medians of {} rounds\n", options.rounds);
    println!("{:<10} {:>12} {:>12} {:>8} {:>12}", "", "host", "guest", "share", "exits/read");
    for row in rows {
        let name = row["engine"].as_str().unwrap_or_default();
        if let Some(why) = row["skipped"].as_str() {
            println!("{name:<10} SKIP: {why}");
            continue;
        }
        let series = |name: &str| -> Vec<f64> {
            row[name].as_array().into_iter().flatten().filter_map(serde_json::Value::as_f64).collect()
        };
        let rate = |ns: f64| format!("{:.2} GB/s", BLOCK as f64 / ns);
        let share = row["share"].as_f64().unwrap_or(f64::NAN);
        println!(
            "{name:<10} {:>12} {:>12} {:>7.0}% {:>12.3}   {} {:.0}%",
            rate(median(&series("host_ns"))),
            rate(median(&series("guest_ns"))),
            share * 100.0,
            row["exits_per_read"].as_f64().unwrap_or(f64::NAN),
            if share >= TARGET { "at least" } else { "under" },
            TARGET * 100.0
        );
    }
}
