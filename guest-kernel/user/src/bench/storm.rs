//! What a build does to a kernel: a storm of short processes, each of which starts, reads, computes, writes, and ends.
//!
//! For each source, a shell runs a pipeline of two programs: `storm-compile` reads it, takes some memory, and writes
//! what it made of it to a pipe; `storm-assemble` takes that in, and sends a sum to who asked for the build, which
//! knows what it must be. Two pipelines live at a time, as under `make -j2`. The sources are parts of the file of all
//! programs, so that the work is the same wherever it is done.

use super::processes::OWN;
use super::{Benchmark, ended_well};
use crate::start::Arguments;
use crate::sys;

/// Bytes of a source.
const SOURCE: usize = 8 << 10;
/// How many sources there are, which are compiled again and again.
const SOURCES: u64 = 8;
/// Pages that a compilation takes.
const TAKEN: u64 = 32;
/// Passes over the source.
const PASSES: u64 = 8;
/// Processes of a job: a shell and two programs.
const PROCESSES: u64 = 3;

/// FNV-1a, a hash that is short to write (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn hash(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Fills `into` from a file; false if it is too short.
fn read_all(file: u64, into: &mut [u8]) -> bool {
    let mut done = 0;
    while done < into.len() {
        match sys::read(file, &mut into[done..]) {
            Ok(count @ 1..) => done += count as usize,
            _ => return false,
        }
    }
    true
}

/// A source, and what a compilation makes of it: a word for each pass, and the words before it changed by it.
fn compiled(which: u64, words: &mut [u64]) -> bool {
    let mut source = [0; SOURCE];
    let Ok(file) = sys::open(OWN) else { return false };
    let read = (0..=which % SOURCES).all(|_| read_all(file, &mut source));
    let _ = sys::close(file);
    let mut sum = which;
    for _ in 0..PASSES {
        sum = hash(sum, &source);
        // A word of each page, as a compiler's tables are spread over what it takes.
        words.iter_mut().step_by(512).for_each(|word| *word = word.rotate_left(7) ^ sum);
    }
    read
}

/// `storm-compile WHICH`: writes what a compilation made.
pub fn compile(arguments: Arguments) -> u64 {
    let Ok(at) = sys::map(TAKEN << 12, sys::READ | sys::WRITE) else { return 1 };
    // SAFETY: it was just mapped, with that size.
    let words = unsafe { core::slice::from_raw_parts_mut(at as *mut u64, (TAKEN as usize) << 9) };
    if !compiled(arguments.number(1, 0), words) {
        return 2;
    }
    // SAFETY: any bytes of it are bytes.
    let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, (TAKEN as usize) << 12) };
    u64::from(sys::write_all(1, bytes).is_err())
}

/// `storm-assemble`: writes the sum of what it reads.
pub fn assemble(_: Arguments) -> u64 {
    let (mut part, mut sum) = ([0; 4096], 0);
    loop {
        match sys::read(0, &mut part) {
            Ok(0) => return u64::from(sys::write_all(1, &u64::to_le_bytes(sum)).is_err()),
            Ok(count) => sum = hash(sum, &part[..count as usize]),
            Err(_) => return 1,
        }
    }
}

/// The sum that a source's job must send, computed here.
fn expected(which: u64) -> Option<u64> {
    let at = sys::map(TAKEN << 12, sys::READ | sys::WRITE).ok()?;
    // SAFETY: it was just mapped, with that size.
    let words = unsafe { core::slice::from_raw_parts_mut(at as *mut u64, (TAKEN as usize) << 9) };
    let right = compiled(which, words);
    let sum = words.iter().fold(0, |sum, word| hash(sum, &word.to_le_bytes()));
    (sys::unmap(at, TAKEN << 12).is_ok() && right).then_some(sum)
}

/// Starts a job, whose sum goes to `results`.
fn start(which: u64, results: u64) -> Option<u64> {
    match sys::fork() {
        Ok(0) => {
            let _ = sys::duplicate(results, 1);
            let mut line = *b"/proc/self/exe storm-compile 0 | /proc/self/exe storm-assemble";
            line.iter_mut().filter(|byte| **byte == b'0').for_each(|byte| *byte += (which % SOURCES) as u8);
            sys::execute(OWN, &["sh", "-c", str::from_utf8(&line).unwrap_or_default()]);
            sys::exit(127)
        }
        Ok(child) => Some(child),
        Err(_) => None,
    }
}

/// `storm N`: N jobs, of three processes each.
pub fn storm(arguments: Arguments) -> u64 {
    let Ok([from, to]) = sys::pipe() else { return 1 };
    let mut sums = [0; SOURCES as usize];
    for (which, sum) in sums.iter_mut().enumerate() {
        let Some(expected) = expected(which as u64) else { return 1 };
        *sum = expected;
    }
    let build = |processes: u64| {
        let jobs = processes.div_ceil(PROCESSES);
        let mut last = None;
        let mut right = true;
        // Sums come in the order in which jobs end, so that they are added.
        let mut all = 0_u64;
        let take = |all: &mut u64| {
            let mut sum = [0; 8];
            let whole = read_all(from, &mut sum);
            *all = all.wrapping_add(u64::from_le_bytes(sum));
            whole
        };
        for job in 0..jobs {
            let Some(child) = start(job, to) else { return false };
            if let Some(before) = last.replace(child) {
                right &= ended_well(before) && take(&mut all);
            }
        }
        right &= last.is_none_or(|child| ended_well(child) && take(&mut all));
        let wanted = (0..jobs).fold(0_u64, |all, job| all.wrapping_add(sums[(job % SOURCES) as usize]));
        right && all == wanted
    };
    let count = arguments.number(1, 0) * PROCESSES;
    Benchmark { name: "storm", kind: "", unit: "process", count }.measure(build)
}
