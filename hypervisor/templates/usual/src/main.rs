//! The kernel's first function. Everything else is in the library, where tests reach it.
#![no_std]
#![no_main]

use my_kernel::timer;
use paravane_guest::{Boot, power, println, time};

paravane_guest::entry!(main);
paravane_guest::panic_handler!();

fn main(boot: Boot) -> ! {
    let kernel = my_kernel::start(&boot);
    println!("hello, {} pages, {} of them free", boot.memory().frames(), kernel.free.frames());
    for turn in 1..=3 {
        timer::sleep(100_000_000);
        println!("turn {turn} at {} ms", time::now() / 1_000_000);
    }
    power::power_off()
}
