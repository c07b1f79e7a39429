//! A program that tries to read memory of its kernel.
#![no_std]
#![no_main]

use my_kernel_programs::{calls, println, write};

my_kernel_programs::program!(main);

fn main(address: u64) -> u64 {
    // The kernel could print it: a pointer is as good as its checks.
    if write(address, 8) != calls::BAD_ADDRESS {
        return 1;
    }
    println!("the kernel did not print what is at {address:#x}");
    // SAFETY: it is not: nothing is mapped there.
    let secret = unsafe { (address as *const u64).read_volatile() };
    println!("the kernel's secret is {secret:#x}");
    2
}
