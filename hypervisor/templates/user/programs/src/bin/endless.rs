//! A program that does not give the processor back.
#![no_std]
#![no_main]

my_kernel_programs::program!(main);

fn main(_: u64) -> u64 {
    loop {
        core::hint::spin_loop();
    }
}
