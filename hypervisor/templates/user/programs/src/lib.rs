//! What every program has: a beginning, an end, and the system calls.
#![no_std]

#[path = "../../src/calls.rs"]
pub mod calls;
mod runtime;

use core::arch::asm;
use core::fmt;
use core::panic::PanicInfo;

/// Makes a `fn(u64) -> u64` a program: it gets the kernel's argument, and returns the program's status.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn _start(argument: u64) -> ! {
            let main: fn(u64) -> u64 = $main;
            $crate::exit(main(argument))
        }
    };
}

/// Prints as `core`'s `write!` does.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {
        $crate::print(::core::format_args!("{}\n", ::core::format_args!($($arguments)*)))
    };
}

/// A system call.
fn call(number: u64, first: u64, second: u64) -> u64 {
    let result;
    // SAFETY: no call changes the program's memory; SYSCALL overwrites RCX and R11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Prints `len` bytes at `address`; the kernel's answer.
pub fn write(address: u64, len: u64) -> u64 {
    call(calls::WRITE, address, len)
}

/// Ends the program.
pub fn exit(status: u64) -> ! {
    loop {
        call(calls::EXIT, status, 0);
    }
}

/// For [`println!`].
pub fn print(arguments: fmt::Arguments<'_>) {
    // Nobody can be told that nothing could be printed.
    let _ = fmt::write(&mut Console, arguments);
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let written = write(rest.as_ptr().addr() as u64, rest.len() as u64) as usize;
            rest = rest.get(written..).filter(|_| written != 0).ok_or(fmt::Error)?;
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    exit(101)
}
