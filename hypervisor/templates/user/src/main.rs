//! The kernel's first function. Everything else is in the library, where tests reach it.
#![no_std]
#![no_main]

use paravane_guest::{Boot, power, println};

paravane_guest::entry!(main);
paravane_guest::panic_handler!();

fn main(boot: Boot) -> ! {
    let mut kernel = my_kernel::start(&boot);
    println!("hello, {} pages, {} of them free", boot.memory().frames(), kernel.free.frames());
    // Programs get a number from the kernel. What `spy` makes of it: an address of the kernel's, which it reads.
    let secret = 0x5ec2e7_u64;
    let secret = (&raw const secret).addr() as u64;
    for (name, argument) in [("hello", 42), ("spy", secret), ("endless", 0)] {
        match kernel.run(name, argument) {
            Ok(end) => println!("{name} {end}"),
            Err(error) => println!("{name} could not run: {error}"),
        }
    }
    power::power_off()
}
