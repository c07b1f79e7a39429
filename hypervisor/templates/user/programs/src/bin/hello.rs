//! A program: it says hello.
#![no_std]
#![no_main]

use my_kernel_programs::println;

my_kernel_programs::program!(main);

fn main(argument: u64) -> u64 {
    println!("a program says hello; its kernel gave it {argument}");
    argument
}
