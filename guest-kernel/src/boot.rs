//! From the first shared instruction to the task that this boot is for, and the end of the kernel.
//!
//! This is the top of the kernel: it knows the shell, the workloads and the self-tests, and nothing knows it but the
//! image (`main.rs`), which connects it to the machine layer's entry code.

use alloc::vec::Vec;
use core::panic::PanicInfo;

use crate::cmdline::Purpose;
use crate::kernel::{CurrentMmu, Kernel, Memory};
use crate::machine::{Boot, Current, Machine, Shutdown};
use crate::memory::heap;
use crate::{console, exception, network, println, process, selftest, shell, workload};

/// Sets the kernel up, runs the task that the command line names, and ends the kernel.
///
/// The machine layer's entry code calls this once the machine's console can be written to.
///
/// # Safety
/// Called once, on a stack of at least 32 KiB, with interrupts off.
pub unsafe fn start(boot: Boot, mmu: CurrentMmu) -> ! {
    // Printed before memory is looked at, so that its user sees as early as possible that the kernel runs.
    println!(
        "paravane guest ({}) {}: {} MiB of memory",
        Current::NAME,
        env!("CARGO_PKG_VERSION"),
        boot.memory.frames / 256
    );
    Current::install_handlers(exception::handle);
    // SAFETY: this function is called once.
    let mut memory = match unsafe { Memory::take(&boot.memory, mmu) } {
        Ok(memory) => memory,
        Err(error) => panic!("cannot map memory: {error:?}"),
    };
    // SAFETY: called once; all memory is mapped, and nothing has been allocated yet.
    assert!(unsafe { heap::init(&mut memory.frames) }, "no memory for the heap");
    // SAFETY: `Memory` hands out none of its frames.
    let module = unsafe { boot.memory.module_bytes() };
    let mut kernel = Kernel { memory, module, started: Current::clock(), cmdline: boot.cmdline };
    Current::interrupts_on();
    console::open(&mut kernel);
    let how = dispatch(&mut kernel);
    console::finish();
    Current::shutdown(how)
}

/// Runs the task that the command line names, and returns how the kernel is to end.
fn dispatch(kernel: &mut Kernel) -> Shutdown {
    // A failure ends the kernel as a crash does, so that the host's exit status reports it.
    let verdict = |ok: bool| if ok { Shutdown::PowerOff } else { Shutdown::Crash };
    match Purpose::from_cmdline(kernel.cmdline) {
        Purpose::Shell => shell::run(kernel),
        Purpose::Bench(name) => verdict(workload::run(kernel, name)),
        Purpose::Program(words) => program(kernel, words),
        Purpose::Serve => {
            network::serve(kernel);
            Shutdown::PowerOff
        }
        Purpose::Test(name) => verdict(selftest::run(kernel, name)),
    }
}

/// Runs a program of the initial RAM disk; `words` are its name and arguments, separated by commas.
fn program(kernel: &mut Kernel, words: &str) -> Shutdown {
    let words: Vec<&str> = words.split(',').collect();
    match process::run(kernel, &words) {
        Ok(0) => Shutdown::PowerOff,
        Ok(status) => {
            println!("{}: ended with status {status:#x}", words[0]);
            Shutdown::Crash
        }
        Err(errno) => {
            println!("{}: cannot be started: {errno:?}; is it in the initial RAM disk?", words[0]);
            Shutdown::Crash
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::panicking();
    match info.location() {
        Some(at) => println!("panic: {} at {}:{}", info.message(), at.file(), at.line()),
        None => println!("panic: {}", info.message()),
    }
    Current::shutdown(Shutdown::Crash)
}
