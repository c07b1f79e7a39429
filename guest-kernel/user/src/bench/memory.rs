//! Mappings, faults, and memory itself.

use super::{Benchmark, each, usage};
use crate::start::Arguments;
use crate::sys;

/// Bytes that are mapped at a time.
const MAPPED: u64 = 1 << 20;

/// Maps memory, touches every `step` bytes of it, and unmaps it.
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
    let benchmark = Benchmark { name: "lat_mmap", kind: "", unit: "mapping", count: arguments.number(1, 0) };
    benchmark.measure(each(|| touch_mapped(16 << 10)))
}

/// `lat_pagefault`: the first touch of a page.
pub fn page_fault(arguments: Arguments) -> u64 {
    let pages = MAPPED / 4096;
    let count = arguments.number(1, 0).next_multiple_of(pages);
    let benchmark = Benchmark { name: "lat_pagefault", kind: "", unit: "page", count };
    benchmark.measure(|count| (0..count.div_ceil(pages)).all(|_| touch_mapped(4096)))
}

/// Prints a bandwidth of operations on so many bytes.
pub fn rate(bytes: u64) -> impl FnOnce(u64, u64) {
    move |count, ns| crate::print!(" mb-per-s={}", count * bytes * 1000 / ns.max(1))
}

/// `bw_mem rd|wr|cp`: reading, writing or copying a MiB of memory.
pub fn memory(arguments: Arguments) -> u64 {
    let kind = arguments.get(1);
    let benchmark = Benchmark { name: "bw_mem", kind, unit: "MiB", count: arguments.number(2, 0) };
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
        "rd" => {
            let sum = |all: &[u64]| all.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word));
            let read = || sum(core::hint::black_box(&*one)) == words as u64;
            benchmark.measure_with(each(read), rate(MAPPED))
        }
        "wr" => {
            let write = || {
                core::hint::black_box(&mut *one).fill(3);
                true
            };
            benchmark.measure_with(each(write), rate(MAPPED))
        }
        "cp" => {
            let copy = || {
                core::hint::black_box(&mut *other).copy_from_slice(core::hint::black_box(&*one));
                true
            };
            benchmark.measure_with(each(copy), rate(MAPPED))
        }
        _ => usage("bw_mem rd|wr|cp [N]"),
    }
}
