use core::ffi::c_void;

use super::*;

#[test]
fn every_run_is_right_at_any_length() {
    let mut words = Box::new([0; ALU_WORDS]);
    let mut data = Data::new(&mut words);
    for compute in COMPUTE {
        for n in [0, 1, 4, 7, 12, 100, 5000, 3 * ALU_WORDS as u64, compute.repetitions] {
            let done = compute.run(&mut data, n).done();
            assert!(done.right, "{} {n}: {done:?}", compute.name);
            assert!(done.repetitions >= 1, "{} {n}", compute.name);
            compute.empty(n);
        }
        let full = compute.run(&mut data, compute.repetitions).done();
        assert_eq!(full.repetitions, compute.repetitions, "{}", compute.name);
    }
}

#[test]
fn a_wrong_word_is_noticed() {
    let mut words = Box::new([0; ALU_WORDS]);
    let mut data = Data::new(&mut words);
    assert!(ALU.run(&mut data, 1).done().right);
    data.words[77] ^= 1;
    assert!(!ALU.run(&mut data, 1).done().right);
}

#[test]
fn a_store_into_code_takes_effect_at_once() {
    // SAFETY: declared as in POSIX.
    unsafe extern "C" {
        fn mmap(
            at: *mut c_void,
            size: usize,
            protection: i32,
            flags: i32,
            file: i32,
            offset: i64,
        ) -> *mut c_void;
    }
    // SAFETY: new, private, anonymous memory at no particular address: PROT_READ, PROT_WRITE and PROT_EXEC.
    let page = unsafe { mmap(core::ptr::null_mut(), 4096, 7, 0x22, -1, 0) };
    assert_ne!(page.addr(), usize::MAX);
    // SAFETY: a page of this test's own that can be written and executed.
    let sum = unsafe { smc(1000, page.cast()) };
    assert_eq!(sum, 1000 * 1001 / 2);
}

#[test]
fn rounds_subtract_the_loop_and_divide_by_the_repetitions() {
    let ticks = core::cell::Cell::new(0);
    let pass = |cycles: u64| ticks.set(ticks.get() + cycles);
    let mut round = 0;
    let cycles = rounds::rounds_by(
        || ticks.get(),
        || pass(100),
        || {
            round += 1;
            // One round of three is interrupted.
            pass(if round % 3 == 0 { 90_000 } else { 100 + 350 * 4 });
        },
        |()| {
            pass(5000);
            400
        },
    );
    assert_eq!(cycles, Cycles { min: 350, median: 350 });
}

#[test]
fn slow_techniques_repeat_less_often() {
    assert_eq!(repetitions_within(1000, 1_000_000, 10_000), 4760);
    assert_eq!(repetitions_within(1000, 0, 10_001), 10_001);
    assert_eq!(repetitions_within(1000, 30_000_000_000, 10_000), 4);
    assert_eq!(repetitions_within(u64::MAX, 1, u64::MAX), u64::MAX);
}
