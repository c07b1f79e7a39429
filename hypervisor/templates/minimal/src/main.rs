//! A kernel: it says hello and powers off.
#![no_std]
#![no_main]

use paravane_guest::{Boot, power, println};

paravane_guest::entry!(main);
paravane_guest::panic_handler!();

fn main(boot: Boot) -> ! {
    println!("hello, {} pages", boot.memory().frames());
    power::power_off()
}
