//! The shell on the console.

use crate::command::{Command, Sectors};
use crate::device::block::{Disk, Features, SECTOR};
use crate::device::{self, DeviceError, entropy};
use crate::kernel::Kernel;
use crate::line::{LineEditor, Typed};
use crate::machine::{Current, Machine, Shutdown};
use crate::{console, files, heap, network, print, println, sockets, workload};

/// Reads commands and obeys them until one ends the session.
pub fn run(kernel: &mut Kernel) {
    println!("type `help` for the commands");
    let mut editor = LineEditor::default();
    print!("> ");
    loop {
        match editor.feed(console::read()) {
            Typed::Echo(bytes) => console::write(bytes),
            Typed::Ignored => {}
            Typed::Cancelled => print!("^C\n> "),
            Typed::End => {
                println!("^D");
                return;
            }
            Typed::Line(line) => {
                println!();
                if !obey(kernel, Command::parse(line)) {
                    return;
                }
                print!("> ");
            }
        }
    }
}

/// False when the session is over.
fn obey(kernel: &mut Kernel, command: Command<'_>) -> bool {
    match command {
        Command::Empty => {}
        Command::Help => Command::HELP.iter().for_each(|(usage, what)| println!("  {usage:<21}{what}")),
        Command::Mem => mem(kernel),
        Command::Uptime => {
            let us = Current::clock().saturating_sub(kernel.started) / 1000;
            println!("up {}.{:06} s", us / 1_000_000, us % 1_000_000);
        }
        Command::Bench(Some(name)) => drop(workload::run(kernel, name)),
        Command::Bench(None) => workload::list(),
        Command::Rng(count) => rng(kernel, count),
        Command::Disk => disk(kernel),
        Command::Sectors(what) => sectors(kernel, what),
        Command::Console => match console::size() {
            Err(()) => println!("console: the machine's own"),
            Ok(None) => println!("console: virtio"),
            Ok(Some((columns, rows))) => println!("console: virtio, {columns} columns, {rows} rows"),
        },
        Command::List(path) => files::list(kernel, path),
        Command::Print(path) => files::print(kernel, path),
        Command::Serve => network::serve(kernel),
        Command::Ping(target, count) => network::ping(kernel, target, count),
        Command::Fetch(target) => network::fetch(kernel, target),
        Command::Vsock(None) => sockets::echo(kernel),
        Command::Vsock(Some((port, word))) => sockets::call(kernel, port, word),
        Command::Panic => panic!("asked for at the shell"),
        Command::Halt => return false,
        Command::Reboot => crate::kernel::end(Shutdown::Reboot),
        Command::Misused(name) => {
            let usages = Command::HELP.iter().filter(|(usage, _)| usage.split(' ').next() == Some(name));
            usages.for_each(|(usage, what)| println!("usage: {usage}: {what}"));
        }
        Command::Unknown(word) => println!("{word}: no such command; try `help`"),
    }
    true
}

fn rng(kernel: &mut Kernel, count: usize) {
    let mut bytes = [0; 64];
    let mut left = count;
    while left > 0 {
        let part = &mut bytes[..left.min(64)];
        if let Err(error) = entropy::fill(kernel, part) {
            return println!("rng: {error}");
        }
        part.iter().for_each(|byte| print!("{byte:02x}"));
        println!();
        left -= part.len();
    }
}

fn disk(kernel: &mut Kernel) {
    let found = device::find(kernel, Disk::KIND).and_then(|transport| {
        device::quietly(|| {
            let disk = Disk::new(transport, SECTOR)?;
            disk.check().map(|()| (disk.capacity(), disk.features()))
        })
    });
    match found {
        Err(DeviceError::Absent) => println!("no disk; start me with one, e.g. `paravane run --disk FILE`"),
        Err(error) => println!("disk: {error}"),
        Ok((sectors, features)) => {
            let access = if features.contains(Features::READ_ONLY) { "read-only" } else { "read and write" };
            println!("disk   {:>8} KiB, {access}", sectors / 2);
        }
    }
}

/// One request, and how it went: a disk that fails is said to, and nothing else happens.
fn sectors(kernel: &mut Kernel, what: Sectors) {
    let outcome = device::find(kernel, Disk::KIND).and_then(|transport| {
        device::quietly(|| {
            let mut disk = Disk::new(transport, SECTOR)?;
            disk.check()?;
            match what {
                Sectors::Read(sector) => disk.read(0, sector, SECTOR)?,
                Sectors::Write(sector) => {
                    disk.data(0).chunks_exact_mut(8).for_each(|to| to.copy_from_slice(&sector.to_le_bytes()));
                    disk.write(0, sector, SECTOR)?;
                }
                Sectors::Flush => disk.flush(0)?,
                Sectors::Discard(first, count) => disk.discard(0, first, count)?,
                Sectors::Zero(first, count) => disk.write_zeroes(0, first, count)?,
            }
            disk.finish(0)?;
            if let Sectors::Read(_) = what {
                let data = disk.data(0);
                data[..16].iter().for_each(|byte| print!("{byte:02x}"));
                let same = data.chunks_exact(8).all(|word| *word == data[..8]);
                println!("{}", if same { ", and so on" } else { "..." });
            }
            Ok(())
        })
    });
    match outcome {
        Ok(()) => println!("disk: done"),
        Err(error) => println!("disk: {error}"),
    }
}

fn mem(kernel: &Kernel) {
    let memory = &kernel.memory;
    let kib = |frames: u64| frames * 4;
    let (used, size) = heap::usage();
    println!("memory {:>8} KiB", kib(memory.total_frames));
    println!("free   {:>8} KiB", kib(memory.frames.free_frames()));
    println!("heap   {:>8} KiB, {used} bytes in use", size / 1024);
}
