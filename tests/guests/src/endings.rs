//! Ways in which a kernel can end; `test=NAME` on the command line selects one.

use core::arch::asm;

use paravane_guest::{Boot, event, power, println, trap};

use crate::mistakes;

/// The kernel of `endings`.
pub fn main(boot: Boot) -> ! {
    let name = boot.cmdline().get("test").unwrap_or("poweroff");
    println!("test: name={name} begins");
    match name {
        "poweroff" => power::power_off(),
        "reboot" => power::reboot(),
        "crash" => power::crash(),
        "panic" => panic!("as asked"),
        "loop" => spin(),
        "loop-masked" => {
            event::disable();
            spin()
        }
        "block" => block(),
        "unhandled-fault" => {
            let outcome = trap::install();
            println!("test: name={name} installed={}", outcome.is_ok());
            touch_nothing()
        }
        "triple-fault" => touch_nothing(),
        "stack-overflow" => overflow(),
        "bad-stack" => bad_stack(),
        "undefined" => undefined(),
        _ => {
            mistakes::make(name, &boot);
            panic!("there is no ending called {name}")
        }
    }
}

fn spin() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Waits for ever: no port is unmasked, so no event arrives.
fn block() -> ! {
    let outcome = event::install();
    assert!(outcome.is_ok(), "event callback: {outcome:?}");
    event::enable();
    loop {
        let outcome = event::block();
        assert!(outcome.is_ok(), "block: {outcome:?}");
    }
}

/// Reads the last page of the lower half, where nothing is mapped.
fn touch_nothing() -> ! {
    let nowhere = 0x7fff_ffff_f000 as *const u64;
    // SAFETY: the read faults, as intended.
    let value = unsafe { nowhere.read_volatile() };
    panic!("there is something at {nowhere:?}: {value:#x}")
}

/// Pushes until the stack is exhausted; the page-fault handler needs a stack, too.
fn overflow() -> ! {
    let outcome = trap::install();
    assert!(outcome.is_ok(), "trap handlers: {outcome:?}");
    // SAFETY: leads to a fault whose frame cannot be pushed.
    unsafe { asm!("2:", "push rax", "jmp 2b", options(noreturn)) }
}

/// Faults while the stack pointer points nowhere.
fn bad_stack() -> ! {
    let outcome = trap::install();
    assert!(outcome.is_ok(), "trap handlers: {outcome:?}");
    // SAFETY: leads to a fault whose frame cannot be pushed.
    unsafe { asm!("mov rsp, {nowhere}", "ud2", nowhere = in(reg) 0x7fff_ffff_f000_u64, options(noreturn)) }
}

fn undefined() -> ! {
    // SAFETY: an exception without a handler.
    unsafe { asm!("ud2", options(noreturn)) }
}
