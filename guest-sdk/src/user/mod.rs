//! User mode: programs with an address space of their own, from which nothing of the kernel can be reached.
//!
//! On x86-64 a paravirtual kernel and its programs both run at CPL 3; no bit of a page-table entry separates them (the
//! hypervisor sets [`PageFlags::USER`](crate::paging::PageFlags::USER) in every entry). What separates them is that
//! user mode has *another root*: the hypervisor loads it on the way out of the kernel and the kernel's own on the way
//! back. A [`UserSpace`] therefore contains what its program may use, and nothing else.
//!
//! | A kernel wants to | and finds it in |
//! | --- | --- |
//! | make an address space for a program | [`UserSpace`] |
//! | load a program, static or static-PIE, into it | [`elf::Elf`], [`load()`] |
//! | run it until it makes a system call, faults or is interrupted | [`UserMode::run`], [`UserContext`], [`Left`] |
//! | read what a pointer of the program means, write to it | [`UserSpace::copy_from_user`], [`UserSpace::copy_to_user`] |
//!
//! ```no_run
//! # use paravane_guest::{paging::{Mmu, FrameSource}, user::{Left, UserContext, UserMode, UserSpace, load, elf::Elf}};
//! # type Outcome = Result<(), Box<dyn std::error::Error>>;
//! # fn kernel(file: &[u8], mmu: &mut Mmu<'static>, frames: &mut impl FrameSource) -> Outcome {
//! let mut user = UserMode::install()?;
//! let space = UserSpace::new(mmu, frames)?;
//! let program = load(&Elf::parse(file)?, &space, mmu, frames, 0)?;
//! let mut context = UserContext::new(program.entry, program.end + 0x10_0000);
//! loop {
//!     match user.run(mmu, &space, &mut context)? {
//!         Left::Syscall => context.registers.rax = 0, // what the program asked for is in its registers
//!         Left::Interrupted => {}                     // events were handled; run it again, or another one
//!         Left::Fault { vector, .. } => return Err(format!("the program raised exception {vector}").into()),
//! #       _ => {}
//!     }
//! }
//! # }
//! ```
//!
//! Events, and with them a timer that takes the processor away from a program, arrive while user mode runs and are
//! handled before [`UserMode::run`] returns. While the kernel runs, the program's vector registers are in its
//! [`UserContext`], so that kernel code may use its own.

mod context;
pub mod elf;
mod entry;
mod load;
mod mode;
mod space;
#[cfg(test)]
mod tests;

pub use context::{Left, Registers, UserContext, VectorState};
pub(crate) use entry::{PROGRAMS, SYSCALL_VECTOR, left};
pub use load::{LoadError, Program, load};
pub use mode::UserMode;
pub use space::{BadAddress, UserSpace};
