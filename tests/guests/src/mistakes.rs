//! What authors of kernels do wrong, each in a function of its own that the host must name; `test=NAME` selects one.

use core::arch::asm;
use core::fmt;

use paravane_abi::virq::VIRQ_TIMER;
use paravane_guest::hypercall::vcpu::set_timer;
use paravane_guest::{event, println, time, trap};

/// Makes the mistake; returns if there is none of that name.
pub fn make(name: &str) {
    match name {
        "null" => {
            with_handlers();
            null_dereference()
        }
        "null-without-handlers" => null_dereference(),
        "overflow-without-handlers" => {
            endless_recursion(0);
        }
        "overflow" => {
            with_handlers();
            endless_recursion(0);
        }
        "fault-in-the-handler" => {
            with_handlers();
            trap::set_handler(14, Some(handler_that_faults));
            null_dereference()
        }
        "lgdt" => {
            with_handlers();
            load_a_descriptor_table()
        }
        "no-event-handler" => wait_without_a_handler(),
        "events-masked" => spin_with_events_masked(),
        "panic-in-display" => panic!("{}", Shy),
        _ => {}
    }
}

fn with_handlers() {
    let outcome = trap::install();
    assert!(outcome.is_ok(), "trap handlers: {outcome:?}");
}

#[inline(never)]
fn null_dereference() -> ! {
    // SAFETY: the read faults, as intended: nothing is mapped at 0.
    let value = unsafe { core::ptr::null::<u64>().byte_add(8).read_volatile() };
    panic!("there is something at 8: {value:#x}")
}

/// The mistake that is to be explained.
#[inline(never)]
#[allow(unconditional_recursion)]
fn endless_recursion(depth: u64) -> u64 {
    let room = core::hint::black_box([depth; 32]);
    endless_recursion(depth + 1) + room.iter().sum::<u64>()
}

#[inline(never)]
fn handler_that_faults(_: &mut trap::TrapFrame) {
    // SAFETY: the read faults, as intended: nothing is mapped there.
    unsafe { (0x7fff_ffff_e000 as *const u64).read_volatile() };
}

#[inline(never)]
fn load_a_descriptor_table() -> ! {
    let pointer = [0u8; 10];
    // SAFETY: it faults, as intended, and is not emulated for a kernel that asks.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer) };
    panic!("it did not fault")
}

/// Waits for its timer, whose handler it forgot to have called.
#[inline(never)]
fn wait_without_a_handler() -> ! {
    println!("test: waits");
    loop {
        let outcome = event::block();
        assert!(outcome.is_ok(), "block: {outcome:?}");
        core::hint::spin_loop();
    }
}

/// Waits for its timer, having forgotten to let events through.
#[inline(never)]
fn spin_with_events_masked() -> ! {
    let outcome = event::install().and_then(|()| event::handle_virq(VIRQ_TIMER, |_| ())).map(event::unmask);
    assert!(outcome.is_ok(), "timer: {outcome:?}");
    event::disable();
    let outcome = set_timer(time::now() + 1_000_000);
    assert!(outcome.is_ok(), "timer: {outcome:?}");
    loop {
        core::hint::spin_loop();
    }
}

/// Something that cannot be shown.
struct Shy;

impl fmt::Display for Shy {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a panic while a panic is shown")
    }
}
