//! A session at the shell.

use alloc::vec::Vec;
use core::ops::ControlFlow;

use super::command::Command;
use super::disk;
use crate::device::entropy;
use crate::kernel::Kernel;
use crate::line_editor::{LineEditor, Typed};
use crate::machine::{Current, Machine, Shutdown};
use crate::memory::heap;
use crate::{console, files, network, print, println, process, vsock, workload};

/// Reads commands and carries them out until one ends the session; returns how the kernel is to end.
pub fn run(kernel: &mut Kernel) -> Shutdown {
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
                return Shutdown::PowerOff;
            }
            Typed::Line(line) => {
                println!();
                if let ControlFlow::Break(how) = obey(kernel, Command::parse(line)) {
                    return how;
                }
                print!("> ");
            }
        }
    }
}

/// Carries out a command; breaks when it ends the session.
fn obey(kernel: &mut Kernel, command: Command<'_>) -> ControlFlow<Shutdown> {
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
        Command::Disk => disk::describe(kernel),
        Command::Sectors(what) => disk::request(kernel, what),
        Command::Console => match console::size() {
            Err(()) => println!("console: the machine's own console"),
            Ok(None) => println!("console: virtio"),
            Ok(Some((columns, rows))) => println!("console: virtio, {columns} columns, {rows} rows"),
        },
        Command::List(path) => files::list(kernel, path),
        Command::Print(path) => files::print(kernel, path),
        Command::Run(words) => {
            let words: Vec<&str> = words.split_ascii_whitespace().collect();
            match process::run(kernel, &words) {
                Ok(status) => println!("run: status {status:#x}"),
                Err(errno) => {
                    println!("run: {errno:?}; start the guest with programs: `paravane run --initrd FILE`")
                }
            }
        }
        Command::Serve => network::serve(kernel),
        Command::Ping(target, count) => network::ping(kernel, target, count),
        Command::Fetch(target) => network::fetch(kernel, target),
        Command::Vsock(None) => vsock::echo(kernel),
        Command::Vsock(Some((port, word))) => vsock::call(kernel, port, word),
        Command::Panic => panic!("asked for at the shell"),
        Command::Halt => return ControlFlow::Break(Shutdown::PowerOff),
        Command::Reboot => return ControlFlow::Break(Shutdown::Reboot),
        Command::Misused(name) => {
            let usages = Command::HELP.iter().filter(|(usage, _)| usage.split(' ').next() == Some(name));
            usages.for_each(|(usage, what)| println!("usage: {usage}: {what}"));
        }
        Command::Unknown(word) => println!("{word}: no such command; try `help`"),
    }
    ControlFlow::Continue(())
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

fn mem(kernel: &Kernel) {
    let memory = &kernel.memory;
    let kib = |frames: u64| frames * 4;
    let (used, size) = heap::usage();
    println!("memory {:>8} KiB", kib(memory.total_frames));
    println!("free   {:>8} KiB", kib(memory.frames.free_frames()));
    println!("heap   {:>8} KiB, {used} bytes in use", size / 1024);
}
