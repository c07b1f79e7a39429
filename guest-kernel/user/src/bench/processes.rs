//! Processes, switches between them, and what they send each other.

use super::{Benchmark, Marks, Took, each, ended_well, usage};
use crate::start::Arguments;
use crate::{println, sys};

/// The file of all programs, wherever it is.
pub const OWN: &str = "/proc/self/exe";
/// The number of the system call.
const EXIT_GROUP: u64 = 231;

/// `lat_proc fork|exec|sh|fork-1000`: a child that ends at once; one that runs a program; one that runs a shell that
/// does; the child of a process with a thousand pages of its own.
pub fn process(arguments: Arguments) -> u64 {
    let kind = arguments.get(1);
    let benchmark = Benchmark { name: "lat_proc", kind, unit: "process", count: arguments.number(2, 0) };
    match kind {
        "fork" => benchmark.measure(each(empty_child)),
        "exec" => benchmark.measure(each(|| child(|| drop(sys::execute(OWN, &["true"]))))),
        "sh" => benchmark.measure(each(|| {
            // The shell runs this file's program, wherever it is: the host's own would be another one.
            child(|| drop(sys::execute(OWN, &["sh", "-c", "/proc/self/exe true"])))
        })),
        "fork-1000" => large(benchmark),
        _ => usage("lat_proc fork|exec|sh|fork-1000 [N]"),
    }
}

/// A child that ends at once, in code that its parent has run: other code would have to be loaded for it.
#[inline(always)]
fn empty_child() -> bool {
    match sys::fork() {
        Ok(0) => loop {
            let _ = sys::call(EXIT_GROUP, [0]);
        },
        Ok(child) => ended_well(child),
        Err(_) => false,
    }
}

/// Runs `f` in a child, and waits for its end; false if something failed.
fn child(f: impl FnOnce()) -> bool {
    match sys::fork() {
        Ok(0) => {
            f();
            sys::exit(127)
        }
        Ok(child) => ended_well(child),
        Err(_) => false,
    }
}

const PAGES: u64 = 1000;

/// Each fork is of pages that no other process had a share of: those of a fork before are write-protected still. It
/// begins with a time slice of its own, which it has after a sleep.
fn large(benchmark: Benchmark) -> u64 {
    let marks = Marks::open();
    let count = benchmark.count.max(1);
    let mut all = Took { ns: 0, right: empty_child() };
    for _ in 0..count {
        let Ok(at) = sys::map(PAGES << 12, sys::READ | sys::WRITE) else { return benchmark.failed() };
        // SAFETY: it was just mapped, with that size.
        (0..PAGES).for_each(|page| unsafe { ((at + (page << 12)) as *mut u64).write_volatile(page) });
        let slept = sys::sleep(1).is_ok();
        let took = marks.around(empty_child);
        // SAFETY: as above.
        let kept =
            (0..PAGES).all(|page| unsafe { ((at + (page << 12)) as *mut u64).read_volatile() } == page);
        let unmapped = sys::unmap(at, PAGES << 12).is_ok();
        all = Took { ns: all.ns + took.ns, right: all.right && slept && took.right && kept && unmapped };
    }
    if !all.right {
        return benchmark.failed();
    }
    benchmark.print(count, all.ns);
    println!("");
    0
}

/// A child that sends back what it is sent, by the files that `child_ends` are; then `measured`.
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
    let benchmark =
        Benchmark { name: "lat_pipe", kind: "", unit: "round-trip", count: arguments.number(1, 0) };
    with_echo([from, to], [child_from, child_to], |once| benchmark.measure(each(once)))
}

/// `lat_unix`: a byte through a pair of sockets, and back.
pub fn unix(arguments: Arguments) -> u64 {
    let Ok([one, other]) = sys::socket_pair() else { return 1 };
    let benchmark =
        Benchmark { name: "lat_unix", kind: "", unit: "round-trip", count: arguments.number(1, 0) };
    with_echo([one, one], [other, other], |once| benchmark.measure(each(once)))
}

/// The most processes that pass a token around.
const RING: usize = 16;

/// `lat_ctx N [COUNT]`: a token through N processes in a ring of pipes. A switch contains a write to a pipe and a read
/// from it; what they take without a switch is measured before, by one process, and printed as `pipe-ns`.
pub fn context(arguments: Arguments) -> u64 {
    let size = arguments.number(1, 2).clamp(2, RING as u64) as usize;
    let mut pipes = [[0; 2]; RING];
    for pipe in &mut pipes[..size] {
        let Ok(ends) = sys::pipe() else { return 1 };
        *pipe = ends;
    }
    let benchmark =
        Benchmark { name: "lat_ctx", kind: arguments.get(1), unit: "switch", count: arguments.number(2, 0) };
    let alone = pipes_alone(pipes[0], benchmark.count.max(1));
    // Each process reads from its own pipe, and writes to the next one's.
    for index in 1..size {
        if sys::fork() == Ok(0) {
            let (from, to) = (pipes[index][0], pipes[(index + 1) % size][1]);
            let others = pipes[..size].iter().flatten().filter(|file| **file != from && **file != to);
            others.for_each(|file| drop(sys::close(*file)));
            let mut token = [0];
            while sys::read(from, &mut token) == Ok(1) && sys::write(to, &token) == Ok(1) {}
            sys::exit(0);
        }
    }
    let (from, to) = (pipes[0][0], pipes[1][1]);
    let others = pipes[..size].iter().flatten().filter(|file| **file != from && **file != to);
    others.for_each(|file| drop(sys::close(*file)));
    let mut token = [1];
    let around = |switches: u64| {
        let rounds = switches.div_ceil(size as u64);
        (0..rounds).all(|_| sys::write(to, &token) == Ok(1) && sys::read(from, &mut token) == Ok(1))
    };
    let code = benchmark.measure_with(around, |_, _| crate::print!(" pipe-ns={alone}"));
    let _ = sys::close(to);
    (1..size).fold(code, |code, _| code | u64::from(!matches!(sys::wait(u64::MAX, 0), Ok((_, 0)))))
}

/// What writing to a pipe and reading from it takes so many times without a switch, in nanoseconds.
fn pipes_alone([from, to]: [u64; 2], count: u64) -> u64 {
    let mut token = [1];
    let before = sys::now();
    (0..count).for_each(|_| drop((sys::write(to, &token), sys::read(from, &mut token))));
    sys::now() - before
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
    let receive = || {
        let mut left = WRITTEN;
        while left > 0 {
            let wanted = left.min(part.len());
            match sys::read(from, &mut part[..wanted]) {
                Ok(count @ 1..) => left -= count as usize,
                _ => return false,
            }
        }
        part.first() == Some(&7)
    };
    let benchmark = Benchmark { name: "bw_pipe", kind: "", unit: "64k", count: arguments.number(1, 0) };
    let code = benchmark.measure_with(each(receive), super::memory::rate(WRITTEN as u64));
    let _ = (sys::close(from), sys::kill(child, sys::SIGKILL), sys::wait(child, 0));
    code
}
