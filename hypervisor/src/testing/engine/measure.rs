//! What an engine costs, in this run, on this machine: `cargo test --release -- --ignored --nocapture measure`.

use std::time::Instant;

use super::{DATA, HYPERCALL_VA, TEXT, World, code};
use crate::engine::Exit;
use crate::machine::memory::PAGE_SIZE;
use paravane_abi::pte;

/// The best and the middle of some samples: what the code costs, and what this machine made of it.
fn summary(mut samples: Vec<f64>) -> String {
    samples.sort_by(f64::total_cmp);
    format!("best {:6.0}, median {:6.0}", samples[0], samples[samples.len() / 2])
}

/// Prints what an operation costs, from rounds that are shorter than a time slice.
fn per_op(name: &str, ops: u32, mut round: impl FnMut()) {
    let sample = |_| {
        let start = Instant::now();
        round();
        start.elapsed().as_nanos() as f64 / f64::from(ops)
    };
    println!("{name:24} {} ns", summary((0..400).map(sample).collect()));
}

/// Prints round trips and mapping costs.
pub(crate) fn print(w: &mut World) {
    const N: u32 = 50;
    let repeat = |w: &mut World, what: Exit| {
        for _ in 0..N {
            assert_eq!(w.run(), what);
            if let Exit::Fault(_) = what {
                w.regs.rip += 1;
            }
        }
    };
    w.load(&code!("4:", "call rbx", "jmp 4b"));
    w.regs.rbx = HYPERCALL_VA;
    per_op("null hypercall", N, || repeat(w, w.by_page));
    w.load(&code!("4:", "syscall", "jmp 4b"));
    per_op("bare SYSCALL", N, || repeat(w, Exit::Syscall));
    w.load(&code!("4:", "cli", "jmp 4b"));
    per_op("CLI", N, || repeat(w, super::gp(0)));
    batch(w);
}

fn batch(w: &mut World) {
    const PAGES: u64 = 512;
    let va = |i: u64| 0x3000_0000 + i * 3 * PAGE_SIZE;
    let frames: Vec<_> = (0..PAGES).map(|_| w.frame()).collect();
    let frame = |i: u64| frames[(i * 101 % PAGES) as usize];
    w.load(&code!("4:", "call rbx", "jmp 4b"));
    let touch = code!(
        "4:",
        "call rbx",
        "mov rcx, 512",
        "mov rax, 0x30000000",
        "5:",
        "mov [rax], rcx",
        "add rax, 0x3000",
        "dec rcx",
        "jnz 5b",
        "jmp 4b",
    );
    let mut t: [Vec<f64>; 5] = Default::default();
    for round in 0..40 {
        let mut timed = |w: &mut World, i: usize, f: &dyn Fn(&mut World)| {
            let start = Instant::now();
            f(w);
            let ns = start.elapsed().as_nanos() as f64 / PAGES as f64;
            if round > 1 {
                t[i].push(ns);
            }
        };
        w.load(&touch);
        assert_eq!(w.run(), w.by_page);
        timed(w, 0, &|w| {
            for i in 0..PAGES {
                w.map(va(i), frame(i), DATA);
            }
        });
        // The guest goes back to its hypercall without a touch, and then once with.
        let at = w.regs;
        w.load(&code!("4:", "call rbx", "jmp 4b"));
        timed(w, 1, &|w| assert_eq!(w.run(), w.by_page));
        w.load(&touch);
        w.regs = at;
        timed(w, 2, &|w| assert_eq!(w.run(), w.by_page));
        for i in 0..PAGES {
            w.map(va(i), frame(i), TEXT | pte::NX);
        }
        w.load(&code!("4:", "call rbx", "jmp 4b"));
        timed(w, 3, &|w| assert_eq!(w.run(), w.by_page));
        for i in 0..PAGES {
            w.set(va(i), 0);
        }
        timed(w, 4, &|w| assert_eq!(w.run(), w.by_page));
    }
    let names = ["write entries (harness)", "map batch", "touch", "protect batch", "unmap batch"];
    for (name, samples) in names.iter().zip(t) {
        println!("{name:24} {} ns a page", summary(samples));
    }
}
