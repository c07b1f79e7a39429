//! lmbench's latencies and bandwidths, by its names and definitions (McVoy and Staelin, 1996).
//!
//! Each measures batches that double until one takes long enough, and prints the time of one operation of the last; the
//! second line's count is of operations. `N` as the last argument fixes the operations instead, for runs that are
//! counted and not timed.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::start::Arguments;
use crate::{eprintln, println, sys};

/// How long a batch must take to count, in nanoseconds.
const ENOUGH: u64 = 50_000_000;

/// Measures `f`, which does something that many times, and prints it.
fn measure(name: &str, kind: &str, fixed: u64, mut f: impl FnMut(u64) -> bool) -> u64 {
    let mut count = if fixed > 0 { fixed } else { 1 };
    loop {
        let begun = sys::now();
        if !f(count) {
            eprintln!("{name} {kind}: failed");
            return 1;
        }
        let took = sys::now() - begun;
        if fixed > 0 || took >= ENOUGH {
            let (each, part) = (took / count, took % count * 1000 / count);
            println!("bench: name={name} kind={kind} ns={each}.{part:03} ops={count} ok=true");
            return 0;
        }
        count *= 2;
    }
}

/// Calls `f` that many times, until it is false.
fn each(mut f: impl FnMut() -> bool) -> impl FnMut(u64) -> bool {
    move |count| (0..count).all(|_| f())
}

/// `lat_syscall null|read|write|open`.
pub fn syscall(arguments: Arguments) -> u64 {
    let kind = arguments.get(1);
    let fixed = arguments.number(2, 0);
    let name = "lat_syscall";
    let mut byte = [0];
    match kind {
        "null" => measure(name, kind, fixed, each(|| sys::parent() != u64::MAX)),
        "read" => {
            let Ok(zero) = sys::open("/dev/zero") else { return 1 };
            measure(name, kind, fixed, each(|| sys::read(zero, &mut byte) == Ok(1)))
        }
        "write" => {
            let Ok(null) = sys::open_to_write("/dev/null") else { return 1 };
            measure(name, kind, fixed, each(|| sys::write(null, &byte) == Ok(1)))
        }
        "open" => measure(name, kind, fixed, each(|| sys::open("/dev/null").and_then(sys::close).is_ok())),
        _ => usage("lat_syscall null|read|write|open [N]"),
    }
}

fn usage(text: &str) -> u64 {
    eprintln!("usage: {text}");
    2
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_: u64, _: *const u8, _: *mut u8) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// `lat_sig`: a signal to itself, and the return from its handler.
pub fn signal(arguments: Arguments) -> u64 {
    if sys::handle(sys::SIGUSR1, count_signal, 0).is_err() {
        return 1;
    }
    let own = sys::pid();
    measure("lat_sig", "catch", arguments.number(1, 0), |count| {
        SIGNALS.store(0, Ordering::Relaxed);
        (0..count).all(|_| sys::kill(own, sys::SIGUSR1).is_ok()) && SIGNALS.load(Ordering::Relaxed) == count
    })
}

fn ended_well(child: u64) -> bool {
    sys::wait(child, 0) == Ok((child, 0))
}

/// `lat_proc fork|exec|sh`.
pub fn process(arguments: Arguments) -> u64 {
    let (kind, fixed) = (arguments.get(1), arguments.number(2, 0));
    let own = "/proc/self/exe";
    let run: fn(&str) = match kind {
        "fork" => |_| sys::exit(0),
        "exec" => |own| drop(sys::execute(own, &["true"])),
        "sh" => |own| drop(sys::execute(own, &["sh", "-c", "true"])),
        _ => return usage("lat_proc fork|exec|sh [N]"),
    };
    let once = || match sys::fork() {
        Ok(0) => {
            run(own);
            sys::exit(127)
        }
        Ok(child) => ended_well(child),
        Err(_) => false,
    };
    measure("lat_proc", kind, fixed, each(once))
}

/// A child that sends back what it is sent, by the files that `f` picks of two pairs; then `measured`.
fn with_echo(
    ends: [u64; 2],
    child_ends: [u64; 2],
    measured: impl FnOnce(&mut dyn FnMut() -> bool) -> u64,
) -> u64 {
    let [child_from, child_to] = child_ends;
    let child = match sys::fork() {
        Ok(0) => {
            ends.into_iter().for_each(|file| drop(sys::close(file)));
            let mut byte = [0];
            while sys::read(child_from, &mut byte) == Ok(1) && sys::write(child_to, &byte) == Ok(1) {}
            sys::exit(0)
        }
        Ok(child) => child,
        Err(_) => return 1,
    };
    let [from, to] = ends;
    child_ends.into_iter().for_each(|file| drop(sys::close(file)));
    let mut byte = [1];
    let code = measured(&mut || sys::write(to, &byte) == Ok(1) && sys::read(from, &mut byte) == Ok(1));
    ends.into_iter().for_each(|file| drop(sys::close(file)));
    code | u64::from(!ended_well(child))
}

/// `lat_pipe`: a byte through a pipe, and back through another.
pub fn pipe(arguments: Arguments) -> u64 {
    let (Ok([from, child_to]), Ok([child_from, to])) = (sys::pipe(), sys::pipe()) else { return 1 };
    with_echo([from, to], [child_from, child_to], |once| {
        measure("lat_pipe", "round-trip", arguments.number(1, 0), |count| (0..count).all(|_| once()))
    })
}

/// `lat_unix`: a byte through a pair of sockets, and back.
pub fn unix(arguments: Arguments) -> u64 {
    let Ok([one, other]) = sys::socket_pair() else { return 1 };
    with_echo([one, one], [other, other], |once| {
        measure("lat_unix", "round-trip", arguments.number(1, 0), |count| (0..count).all(|_| once()))
    })
}

/// The most processes that pass a token around.
const RING: usize = 16;

/// `lat_ctx N`: a token through N processes in a ring of pipes. The time is of one switch, the pipes' own included.
pub fn context(arguments: Arguments) -> u64 {
    let count = arguments.number(1, 2).clamp(2, RING as u64) as usize;
    let mut pipes = [[0; 2]; RING];
    for pipe in &mut pipes[..count] {
        let Ok(ends) = sys::pipe() else { return 1 };
        *pipe = ends;
    }
    // Each process reads from its own pipe, and writes to the next one's.
    for index in 1..count {
        if sys::fork() == Ok(0) {
            let (from, to) = (pipes[index][0], pipes[(index + 1) % count][1]);
            let others = pipes[..count].iter().flatten().filter(|file| **file != from && **file != to);
            others.for_each(|file| drop(sys::close(*file)));
            let mut token = [0];
            while sys::read(from, &mut token) == Ok(1) && sys::write(to, &token) == Ok(1) {}
            sys::exit(0);
        }
    }
    let (from, to) = (pipes[0][0], pipes[1][1]);
    let others = pipes[..count].iter().flatten().filter(|file| **file != from && **file != to);
    others.for_each(|file| drop(sys::close(*file)));
    let mut token = [1];
    let code = measure("lat_ctx", arguments.get(1), arguments.number(2, 0), |switches| {
        let rounds = switches.div_ceil(count as u64);
        (0..rounds).all(|_| sys::write(to, &token) == Ok(1) && sys::read(from, &mut token) == Ok(1))
    });
    let _ = sys::close(to);
    (1..count).fold(code, |code, _| code | u64::from(!matches!(sys::wait(u64::MAX, 0), Ok((_, 0)))))
}

/// Bytes that are mapped at a time.
const MAPPED: u64 = 1 << 20;

/// Maps memory, touches every 16 KiB of it, and unmaps it.
fn touch_mapped(step: usize) -> bool {
    let Ok(at) = sys::map(MAPPED, sys::READ | sys::WRITE) else { return false };
    for offset in (0..MAPPED).step_by(step) {
        // SAFETY: it was just mapped.
        unsafe { ((at + offset) as *mut u8).write_volatile(1) };
    }
    sys::unmap(at, MAPPED).is_ok()
}

/// `lat_mmap`: mapping a MiB, touching a page of each 16 KiB, and unmapping it.
pub fn mmap(arguments: Arguments) -> u64 {
    measure("lat_mmap", "1m", arguments.number(1, 0), each(|| touch_mapped(16 << 10)))
}

/// `lat_pagefault`: the first touch of a page.
pub fn page_fault(arguments: Arguments) -> u64 {
    let pages = MAPPED / 4096;
    measure("lat_pagefault", "anonymous", arguments.number(1, 0), |count| {
        (0..count.div_ceil(pages)).all(|_| touch_mapped(4096))
    })
}

/// Prints a bandwidth, of batches of `bytes` that double until one takes long enough.
fn bandwidth(name: &str, kind: &str, bytes: u64, fixed: u64, mut f: impl FnMut() -> bool) -> u64 {
    let mut count = if fixed > 0 { fixed } else { 1 };
    loop {
        let begun = sys::now();
        if !(0..count).all(|_| f()) {
            eprintln!("{name} {kind}: failed");
            return 1;
        }
        let took = sys::now() - begun;
        if fixed > 0 || took >= ENOUGH {
            let rate = count * bytes * 1000 / took.max(1);
            println!("bench: name={name} kind={kind} mb-per-s={rate} bytes={} ok=true", count * bytes);
            return 0;
        }
        count *= 2;
    }
}

/// `bw_mem rd|wr|cp`: a MiB of memory.
pub fn memory(arguments: Arguments) -> u64 {
    let (kind, fixed) = (arguments.get(1), arguments.number(2, 0));
    let words = (MAPPED / 8) as usize;
    let area = || {
        // SAFETY: it was just mapped, with that size, for ever.
        let words = |at| unsafe { core::slice::from_raw_parts_mut(at as *mut u64, words) };
        sys::map(MAPPED, sys::READ | sys::WRITE).map(words)
    };
    let (Ok(one), Ok(other)) = (area(), area()) else { return 1 };
    one.fill(1);
    other.fill(2);
    match kind {
        "rd" => bandwidth("bw_mem", kind, MAPPED, fixed, || {
            core::hint::black_box(&*one).iter().fold(0, |sum: u64, word| sum.wrapping_add(*word))
                == words as u64
        }),
        "wr" => bandwidth("bw_mem", kind, MAPPED, fixed, || {
            core::hint::black_box(&mut *one).fill(3);
            true
        }),
        "cp" => bandwidth("bw_mem", kind, MAPPED, fixed, || {
            core::hint::black_box(&mut *other).copy_from_slice(core::hint::black_box(&*one));
            true
        }),
        _ => usage("bw_mem rd|wr|cp [N]"),
    }
}

/// Bytes of one write to a pipe.
const WRITTEN: usize = 64 << 10;
/// What is written and read.
static BYTES: [u8; WRITTEN] = [7; WRITTEN];

/// `bw_pipe`: bytes through a pipe, 64 KiB at a time.
pub fn pipe_bandwidth(arguments: Arguments) -> u64 {
    let Ok([from, to]) = sys::pipe() else { return 1 };
    let child = match sys::fork() {
        Ok(0) => {
            let _ = sys::close(from);
            while sys::write_all(to, &BYTES).is_ok() {}
            sys::exit(0)
        }
        Ok(child) => child,
        Err(_) => return 1,
    };
    let _ = sys::close(to);
    let mut part = [0; 16 << 10];
    let code = bandwidth("bw_pipe", "64k", WRITTEN as u64, arguments.number(1, 0), || {
        let mut left = WRITTEN;
        while left > 0 {
            let wanted = left.min(part.len());
            match sys::read(from, &mut part[..wanted]) {
                Ok(count @ 1..) => left -= count as usize,
                _ => return false,
            }
        }
        part.first() == Some(&7)
    });
    let _ = (sys::close(from), sys::kill(child, sys::SIGKILL), sys::wait(child, 0));
    code
}
