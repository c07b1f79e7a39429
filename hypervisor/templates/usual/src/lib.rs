//! The kernel: start it with [`start`].
#![no_std]
#![cfg_attr(test, no_main)]

extern crate alloc;

pub mod heap;
pub mod timer;

use paravane_guest::paging::{FreeMemory, Mmu};
use paravane_guest::{Boot, event, trap};

#[cfg(test)]
paravane_guest::test_main!();

/// What the kernel has once it runs.
pub struct Kernel {
    /// Access to page tables.
    pub mmu: Mmu<'static>,
    /// Memory that nobody uses yet.
    pub free: FreeMemory,
}

/// Brings the kernel up: exceptions become messages, there is a heap and a timer, events are enabled.
pub fn start(boot: &Boot) -> Kernel {
    trap::install().expect("the hypervisor takes handlers of exceptions");
    event::install().expect("the hypervisor takes handlers of events");
    let (mut mmu, mut free) = boot.take_memory().expect("memory can be mapped");
    boot.protect_image(&mut mmu).expect("code can be protected");
    heap::give(free.take_bytes(heap::FRAMES).expect("there is memory for a heap"));
    timer::install().expect("there is a timer");
    event::enable();
    Kernel { mmu, free }
}
