//! The smallest kernel: prints a line and powers off.

use paravane_guest::{Boot, power, println};

/// The entry point of both `hello` images.
pub fn main(boot: Boot) -> ! {
    println!("hello from {:#x}: {}", boot.memory().virt_base(), boot.cmdline().text());
    power::power_off()
}
