//! From the first instruction of shared code to what the boot is for, and the end.

use core::panic::PanicInfo;

use crate::command::Purpose;
use crate::machine::{Boot, Current, Machine, Shutdown};
use crate::memory::Memory;
use crate::{console, heap, network, println, selftest, shell, workload};

/// What the kernel has.
pub struct Kernel {
    /// Its memory.
    pub memory: Memory,
    /// When it was started, by the machine's clock.
    pub started: u64,
    /// The command line it was started with.
    pub cmdline: &'static str,
}

/// Where a machine layer's entry code goes, once the console can be written to.
///
/// # Safety
/// Called once, on a stack of at least 32 KiB, with interrupts off.
pub unsafe fn start(boot: Boot, mmu: <Current as Machine>::Mmu) -> ! {
    // First of all, before memory is looked at: whoever started us sees that we are alive.
    println!(
        "paravane guest ({}) {}: {} MiB of memory",
        Current::NAME,
        env!("CARGO_PKG_VERSION"),
        boot.frames / 256
    );
    Current::install_handlers();
    // SAFETY: called once, as we are.
    let mut memory = match unsafe { Memory::take(&boot, mmu) } {
        Ok(memory) => memory,
        Err(error) => panic!("cannot map memory: {error:?}"),
    };
    // SAFETY: called once, all memory is mapped, and nothing has been allocated yet.
    assert!(unsafe { heap::init(&mut memory.frames) }, "no memory for the heap");
    let mut kernel = Kernel { memory, started: Current::clock(), cmdline: boot.cmdline };
    Current::interrupts_on();
    console::open(&mut kernel);
    let ok = match Purpose::from_cmdline(boot.cmdline) {
        Purpose::Shell => {
            shell::run(&mut kernel);
            true
        }
        Purpose::Bench(name) => workload::run(&mut kernel, name),
        Purpose::Serve => {
            network::serve(&mut kernel);
            true
        }
        Purpose::Test(name) => selftest::run(&mut kernel, name),
    };
    // What failed ends as a crash does, so that the host's exit status says so.
    end(if ok { Shutdown::PowerOff } else { Shutdown::Crash })
}

/// Ends it all, once everything has been printed.
pub fn end(how: Shutdown) -> ! {
    console::finish();
    Current::shutdown(how)
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
