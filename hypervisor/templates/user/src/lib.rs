//! The kernel: start it with [`start`], and let it [`run`](Kernel::run) programs.
#![no_std]

pub mod calls;
mod programs;
mod system_calls;

pub use programs::End;

use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::paging::{FreeMemory, Mmu};
use paravane_guest::user::UserMode;
use paravane_guest::{Boot, event, time, trap};

/// What the kernel has once it runs.
pub struct Kernel {
    /// Access to page tables.
    pub mmu: Mmu<'static>,
    /// Memory that nobody uses yet.
    pub free: FreeMemory,
    /// The way to programs and back.
    pub user: UserMode,
}

/// Brings the kernel up: exceptions become messages, programs can be run, a timer can take the processor from them.
pub fn start(boot: &Boot) -> Kernel {
    trap::install().expect("the hypervisor takes handlers of exceptions");
    event::install().expect("the hypervisor takes handlers of events");
    let (mut mmu, free) = boot.take_memory().expect("memory can be mapped");
    boot.protect_image(&mut mmu).expect("code can be protected");
    let user = UserMode::install().expect("the hypervisor takes an entry for system calls");
    // Xen starts a periodic timer with a vCPU. The event of ours needs no work: that it ends a program's turn is all.
    time::stop_periodic_timer(0).expect("a timer can be stopped");
    event::handle_virq(VIRQ_TIMER, |_| ()).expect("there is a timer");
    event::enable();
    Kernel { mmu, free, user }
}
