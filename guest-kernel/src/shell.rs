//! The shell on the console.

use crate::command::Command;
use crate::device::block::{Disk, Features, SECTOR};
use crate::device::{self, DeviceError, entropy};
use crate::kernel::Kernel;
use crate::line::{LineEditor, Typed};
use crate::machine::{Current, Machine, Shutdown};
use crate::{console, files, heap, network, print, println, workload};

/// Reads commands and obeys them until one ends the session.
pub fn run(kernel: &mut Kernel) {
    println!("type `help` for the commands");
    let mut editor = LineEditor::default();
    print!("> ");
    loop {
        match editor.feed(console::read()) {
            Typed::Echo(bytes) => Current::console_write(bytes),
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
        Command::Help => Command::HELP.iter().for_each(|(usage, what)| println!("  {usage:<18}{what}")),
        Command::Mem => mem(kernel),
        Command::Uptime => {
            let us = Current::clock().saturating_sub(kernel.started) / 1000;
            println!("up {}.{:06} s", us / 1_000_000, us % 1_000_000);
        }
        Command::Bench(Some(name)) => workload::run(kernel, name),
        Command::Bench(None) => workload::list(),
        Command::Rng(count) => rng(kernel, count),
        Command::Disk => disk(kernel),
        Command::List(path) => files::list(kernel, path),
        Command::Print(path) => files::print(kernel, path),
        Command::Serve => network::serve(kernel),
        Command::Panic => panic!("asked for at the shell"),
        Command::Halt => return false,
        Command::Reboot => Current::shutdown(Shutdown::Reboot),
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

fn mem(kernel: &Kernel) {
    let memory = &kernel.memory;
    let kib = |frames: u64| frames * 4;
    let (used, size) = heap::usage();
    println!("memory {:>8} KiB", kib(memory.total_frames));
    println!("free   {:>8} KiB", kib(memory.frames.free_frames()));
    println!("heap   {:>8} KiB, {used} bytes in use", size / 1024);
}
