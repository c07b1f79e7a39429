//! The programs by name, and the small ones.

use crate::start::Arguments;
use crate::{bench, contract, eprintln, print, println, shell, sys};

/// A program; returns its exit code.
type Program = fn(Arguments) -> u64;

/// All programs.
const ALL: &[(&str, Program)] = &[
    ("sh", shell::main),
    ("cat", cat),
    ("echo", echo),
    ("wc", count),
    ("ps", processes),
    ("kill", kill),
    ("sleep", sleep),
    ("true", |_| 0),
    ("false", |_| 1),
    ("loop", |_| endless()),
    ("hog", hog),
    ("forkbomb", |_| fork_bomb()),
    ("hoard", hoard),
    ("stress", stress),
    ("crowd", crowd),
    ("big", big),
    ("fault", fault),
    ("contract", contract::main),
    ("lat_syscall", bench::syscall),
    ("lat_sig", bench::signal),
    ("lat_proc", bench::process),
    ("lat_ctx", bench::context),
    ("lat_pipe", bench::pipe),
    ("lat_unix", bench::unix),
    ("lat_mmap", bench::mmap),
    ("lat_pagefault", bench::page_fault),
    ("bw_mem", bench::memory),
    ("bw_pipe", bench::pipe_bandwidth),
    ("storm", bench::storm),
    ("storm-compile", bench::compile),
    ("storm-assemble", bench::assemble),
];

/// Runs the program that the first argument names, or, called by the file's own name, the second.
pub fn main(arguments: Arguments) -> u64 {
    let name = arguments.get(0).rsplit('/').next().unwrap_or_default();
    if let Some((_, program)) = ALL.iter().find(|(known, _)| *known == name) {
        return program(arguments);
    }
    let named = arguments.shifted();
    if let Some((_, program)) = ALL.iter().find(|(known, _)| *known == named.get(0)) {
        return program(named);
    }
    eprintln!("{name}: no such program");
    127
}

/// Calls `f` with all that a file has; the code for the exit.
fn each_part(file: u64, mut f: impl FnMut(&[u8])) -> u64 {
    let mut part = [0; 4096];
    loop {
        match sys::read(file, &mut part) {
            Ok(0) => return 0,
            Ok(count) => f(&part[..count as usize]),
            Err(sys::EINTR) => {}
            Err(errno) => {
                eprintln!("cannot read: error {errno}");
                return 1;
            }
        }
    }
}

/// The files that are named, or the standard input.
fn each_file(arguments: Arguments, mut f: impl FnMut(&[u8])) -> u64 {
    if arguments.count() < 2 {
        return each_part(0, f);
    }
    (1..arguments.count()).map(|i| arguments.get(i)).fold(0, |code, path| match sys::open(path) {
        Ok(file) => {
            let read = each_part(file, &mut f);
            let _ = sys::close(file);
            code | read
        }
        Err(errno) => {
            eprintln!("{path}: error {errno}");
            1
        }
    })
}

fn cat(arguments: Arguments) -> u64 {
    each_file(arguments, |part| drop(sys::write_all(1, part)))
}

fn echo(arguments: Arguments) -> u64 {
    (1..arguments.count()).for_each(|i| print!("{}{}", if i > 1 { " " } else { "" }, arguments.get(i)));
    println!("");
    0
}

fn count(arguments: Arguments) -> u64 {
    let (mut lines, mut words, mut bytes, mut inside) = (0_u64, 0_u64, 0_u64, false);
    let code = each_file(arguments, |part| {
        for byte in part {
            bytes += 1;
            lines += u64::from(*byte == b'\n');
            words += u64::from(!inside && !byte.is_ascii_whitespace());
            inside = !byte.is_ascii_whitespace();
        }
    });
    println!("{lines} {words} {bytes}");
    code
}

fn processes(_: Arguments) -> u64 {
    match sys::open("/proc/processes") {
        Ok(file) => {
            println!("  pid parent state    ran    name");
            each_part(file, |part| drop(sys::write_all(1, part)))
        }
        Err(errno) => {
            eprintln!("ps: no list of processes: error {errno}");
            1
        }
    }
}

fn kill(arguments: Arguments) -> u64 {
    let (signal, first) = match arguments.get(1).strip_prefix('-') {
        Some(number) if arguments.count() > 2 => (number.parse().unwrap_or(15), 2),
        _ => (15, 1),
    };
    let pid: i64 = arguments.get(first).parse().unwrap_or(i64::MAX);
    match sys::kill(pid as u64, signal) {
        Ok(_) => 0,
        Err(errno) => {
            eprintln!("kill: error {errno}");
            1
        }
    }
}

fn sleep(arguments: Arguments) -> u64 {
    let milliseconds = arguments.get(1).strip_suffix("ms").map(|number| number.parse().unwrap_or(0));
    let time = milliseconds.unwrap_or_else(|| arguments.number(1, 1) * 1000);
    u64::from(sys::sleep(time * 1_000_000).is_err())
}

fn endless() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Takes memory until there is none.
fn hog(arguments: Arguments) -> u64 {
    let mib = arguments.number(1, 1 << 20);
    for taken in 0..mib {
        let Ok(at) = sys::map(1 << 20, sys::READ | sys::WRITE) else {
            eprintln!("hog: no more addresses after {taken} MiB");
            return 1;
        };
        for page in (0..1 << 20).step_by(4096) {
            // SAFETY: it was just mapped.
            unsafe { ((at + page) as *mut u8).write_volatile(1) };
        }
    }
    0
}

/// Forks until it cannot, and then still tries.
fn fork_bomb() -> ! {
    loop {
        if sys::fork().is_err() {
            let _ = sys::sleep(20_000_000);
        }
    }
}

/// Makes the kernel remember as much as it will, by `hoard areas` in memory of every process, by `hoard pipes` in pipes
/// that are full. Says why there is no more; its children keep it.
fn hoard(arguments: Arguments) -> u64 {
    let pipes = arguments.get(1) == "pipes";
    let (mut areas, mut filled, mut made) = (0, 0, 0);
    while !pipes && sys::map(4096, sys::READ).is_ok() {
        areas += 1;
    }
    let errno = loop {
        let mut ends = [[u64::MAX; 2]; 16];
        if pipes {
            let full = |slot: &mut [u64; 2]| {
                *slot = sys::pipe()?;
                sys::write(slot[1], &[1; 16 << 10])
            };
            if let Err(errno) = ends.iter_mut().try_for_each(|slot| full(slot).map(|_| filled += 1)) {
                break errno;
            }
        }
        match sys::fork() {
            Ok(0) => loop {
                let _ = sys::sleep(1_000_000_000);
            },
            Ok(_) => ends.iter().flatten().for_each(|file| drop(sys::close(*file))),
            Err(errno) => break errno,
        }
        made += 1;
    };
    println!("hoard: {made} processes, {areas} areas, {filled} pipes, then error {errno}");
    0
}

/// Forks, pipes and pages, many times; the sum says whether all of it was right.
fn stress(arguments: Arguments) -> u64 {
    let rounds = arguments.number(1, 100);
    for round in 0..rounds {
        let Ok([from, to]) = sys::pipe() else { return 1 };
        let Ok(at) = sys::map(16 << 12, sys::READ | sys::WRITE) else { return 2 };
        // SAFETY: it was just mapped, with that size.
        let words = unsafe { core::slice::from_raw_parts_mut(at as *mut u64, 16 * 512) };
        words.iter_mut().enumerate().for_each(|(i, word)| *word = i as u64 * round);
        if sys::fork() == Ok(0) {
            words.iter_mut().for_each(|word| *word += 1);
            let sum: u64 = words.iter().sum();
            sys::exit(u64::from(sys::write_all(to, &sum.to_le_bytes()).is_err()));
        }
        let mut answer = [0; 8];
        if sys::read(from, &mut answer) != Ok(8) || !matches!(sys::wait(u64::MAX, 0), Ok((_, 0))) {
            return 3;
        }
        let sum: u64 = words.iter().sum();
        if u64::from_le_bytes(answer) != sum + words.len() as u64 {
            eprintln!("stress: round {round}: the child has another sum");
            return 4;
        }
        let _ = (sys::close(from), sys::close(to), sys::unmap(at, 16 << 12));
    }
    println!("stress: {rounds} rounds, all right");
    0
}

/// Many processes that live at once: each waits for a byte, and answers with one.
fn crowd(arguments: Arguments) -> u64 {
    let wanted = arguments.number(1, 1000);
    let (Ok([from, to]), Ok([back_from, back_to])) = (sys::pipe(), sys::pipe()) else { return 1 };
    let mut made = 0;
    while made < wanted {
        match sys::fork() {
            Ok(0) => {
                let mut byte = [0];
                let right = sys::read(from, &mut byte) == Ok(1) && sys::write(back_to, &byte) == Ok(1);
                sys::exit(u64::from(!right));
            }
            Ok(_) => made += 1,
            Err(errno) => {
                eprintln!("crowd: error {errno} after {made} processes");
                break;
            }
        }
    }
    println!("crowd: {made} processes live at once");
    let mut answered = 0;
    for _ in 0..made {
        let mut byte = [0];
        let right = sys::write(to, b"x") == Ok(1) && sys::read(back_from, &mut byte) == Ok(1);
        answered += u64::from(right && &byte == b"x");
    }
    let right = (0..made).filter(|_| matches!(sys::wait(u64::MAX, 0), Ok((_, 0)))).count() as u64;
    println!("crowd: {answered} answered, {right} ended");
    u64::from(made != wanted || answered != wanted || right != wanted)
}

/// Fork and exit of a process with many pages: `big PAGES ROUNDS`.
fn big(arguments: Arguments) -> u64 {
    let (pages, rounds) = (arguments.number(1, 1000), arguments.number(2, 10));
    let Ok(at) = sys::map(pages << 12, sys::READ | sys::WRITE) else { return 1 };
    // SAFETY: it was just mapped, with that size.
    (0..pages).for_each(|page| unsafe { ((at + (page << 12)) as *mut u8).write_volatile(1) });
    let begun = sys::now();
    for _ in 0..rounds {
        if sys::fork() == Ok(0) {
            sys::exit(0);
        }
        if !matches!(sys::wait(u64::MAX, 0), Ok((_, 0))) {
            return 2;
        }
    }
    let each = (sys::now() - begun) / rounds.max(1) / 1000;
    println!("big: fork and exit of {pages} pages: {each} us");
    0
}

/// Does what a program may not: `fault read|write|jump [ADDRESS]`, `fault undefined|privileged|stack|divide`.
fn fault(arguments: Arguments) -> u64 {
    let text = arguments.get(2);
    let address =
        text.strip_prefix("0x").map_or(Ok(0), |digits| u64::from_str_radix(digits, 16)).unwrap_or(0);
    // SAFETY: what follows is meant to fail.
    unsafe {
        match arguments.get(1) {
            "read" => drop((address as *const u8).read_volatile()),
            "write" => (address as *mut u8).write_volatile(1),
            "jump" => core::arch::asm!("jmp {}", in(reg) address),
            "undefined" => core::arch::asm!("ud2"),
            "privileged" => core::arch::asm!("cli"),
            "divide" => core::arch::asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _),
            "stack" => drop(deeper(1)),
            _ => {}
        }
    }
    println!("fault: nothing happened");
    1
}

#[inline(never)]
fn deeper(n: u64) -> u64 {
    let room = core::hint::black_box([n; 64]);
    if n == 0 { 0 } else { deeper(core::hint::black_box(n + 1)) + room[n as usize % 64] }
}
