//! Safe Rust over the Xen x86-64 PV interface, for kernels that run on Paravane and on Xen.
//!
//! A paravirtual kernel runs at CPL 3 and requests by hypercalls what other kernels do by privileged instructions.
//! This crate makes these requests: start of day, exceptions, events, time, page tables, the console. It is `no_std`,
//! needs no allocator, and leaves policy to the kernel.
//!
//! # A kernel
//!
//! ```no_run
//! # #![cfg_attr(not(guest), allow(dead_code))]
//! # /*
//! #![no_std]
//! #![no_main]
//! # */
//!
//! use paravane_guest::{Boot, power, println};
//!
//! # #[cfg(guest)]
//! paravane_guest::entry!(kernel_main);
//! # #[cfg(guest)]
//! paravane_guest::panic_handler!();
//!
//! fn kernel_main(boot: Boot) -> ! {
//!     println!("hello, {} pages", boot.memory().frames());
//!     power::power_off()
//! }
//! # #[cfg(not(guest))]
//! # fn main() {}
//! ```
//!
//! Its `build.rs` is one call, `paravane_guest_build::link::kernel(link::LOW)`; it builds with stable Rust for
//! `x86_64-unknown-linux-gnu` with the flags `--cfg=guest -Cpanic=abort -Cno-redzone=yes`.
//!
//! # Principles
//!
//! 1. **A transition is the unit of cost.** Operations that need none make none: the virtual interrupt flag and the
//!    clock are memory. Operations that can wait are queued ([`queue`]) and made by one multicall, in which
//!    neighbouring page-table updates are one `mmu_update`. Mapping 512 scattered pages is one transition.
//! 2. **Nothing is specific to Paravane**, except virtio devices, which Xen's interface does not have, and which are
//!    absent on Xen. Every other call is in Xen's public headers and has Xen's semantics.
//! 3. **The hypervisor may refuse.** Every call that can fail returns an error, and the error of a queued update
//!    names the update.
//! 4. **Unsafe code is in few, named places.** Assembly is in [`image`], `hypercall/raw.rs`, `trap/entry.rs`,
//!    `user/entry.rs` and `runtime.rs`; frames become pointers in [`memory`]; the shared page is touched in
//!    `shared.rs`, its device table in `virtio/table.rs`, memory of devices in `virtio/pool.rs` and `virtio/rings.rs`.
//!    All other code uses these.
//! 5. **A vCPU's own is its own.** Part of the shared page, multicall queue, handlers of events: [`smp`] says what
//!    else.
//!
//! # Map
//!
//! | A kernel wants to | and finds it in |
//! | --- | --- |
//! | start, know its memory, command line and module | [`entry!`], [`Boot`], [`cmdline`] |
//! | print, log, read what is typed | [`println!`], [`console`] |
//! | panic, power off | [`panic_handler!`], [`power`] |
//! | handle exceptions | [`trap`] |
//! | test itself, each test in a guest of its own | [`test_main!`], [`tests!`], [`test`](mod@test) |
//! | handle events, wait for them, exclude them | [`event`] |
//! | know the time, set a timer | [`time`] |
//! | map, protect and unmap pages; switch address spaces | [`paging`] |
//! | run programs in user mode | [`user`] |
//! | use several vCPUs, lock what they share | [`smp`] |
//! | drive virtio devices | `virtio`, with the feature of that name |
//! | make several calls in one transition | [`queue`] |
//! | make any other hypercall | [`hypercall`], [`abi`] |
//!
//! The kernel chooses its heap: any `GlobalAlloc` over memory of [`Boot::take_memory`].
//!
//! # Order of a start
//!
//! 1. `entry!` leaves the domain builder's one-page stack, maps the shared page, finds the console.
//! 2. [`trap::install`], so that a fault becomes a message; [`event::install`], so that ports can be handled.
//! 3. [`Boot::take_memory`], and an allocator over what is free; or [`Boot::mmu`], and the parts of it by themselves.
//!    [`Boot::protect_image`], so that nothing is writable and executable.
//! 4. Ports bound and handled, then [`event::enable`].
//! 5. [`event::block`] wherever the kernel is idle.
//!
//! # What interrupted code must not notice
//!
//! Upcalls and exceptions push their frame on the stack that is in use. Paravane preserves the 128 bytes below RSP
//! (the red zone); Xen does not, so that on Xen a kernel, and the prebuilt `core` in it, must not keep data there. A
//! kernel that enables events only while it waits in [`event::block`] is safe in either case. `-Cno-redzone=yes` with
//! link-time optimization leaves no code that uses the red zone in this project's images, which a test checks.

#![cfg_attr(not(test), no_std)]

#[cfg(all(guest, not(panic = "abort"), not(doc), not(test)))]
compile_error!(
    "a kernel cannot unwind: add -Cpanic=abort to rustflags in the kernel's .cargo/config.toml, beside --cfg=guest"
);

pub mod boot;
pub mod cmdline;
pub mod console;
pub mod event;
pub mod hypercall;
pub mod image;
pub mod memory;
pub mod paging;
pub mod power;
pub mod queue;
#[cfg(guest)]
mod runtime;
mod shared;
pub mod smp;
pub mod test;
#[cfg(test)]
mod testing;
pub mod time;
pub mod trap;
pub mod user;
#[cfg(feature = "virtio")]
pub mod virtio;

/// The numbers and layouts of the interface.
pub use paravane_abi as abi;

pub use boot::Boot;
