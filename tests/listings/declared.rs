//! An instruction that `paravane audit` finds, declared as meant.
#![no_std]
#![no_main]
use core::arch::asm;

use paravane_guest::{Boot, power, println};

paravane_guest::entry!(main);
paravane_guest::panic_handler!();

fn main(_: Boot) -> ! {
    let cs: u32;
    // SAFETY: reads a register.
    unsafe {
        // ANCHOR: declaration
        asm!(
            "22: mov eax, cs",
            ".pushsection .paravane.audit, \"\", @progbits",
            ".quad 22b",
            ".asciz \"only printed, for the curious\"",
            ".popsection",
            out("eax") cs,
        );
        // ANCHOR_END: declaration
    }
    println!("hello, code segment {cs:#x}");
    power::power_off()
}
