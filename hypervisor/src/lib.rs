//! The host of Paravane: everything that runs a guest, and the program `paravane` around it.
//!
//! A guest's kernel runs at CPL 3, in a virtual machine of KVM or as a sandboxed process. Whatever makes it stop is an
//! [`Exit`](engine::Exit), neutral of the engine. The monitor accounts for it, has its meaning carried out, and enters
//! the guest again:
//!
//! ```text
//! engine -> exit -> monitor -> hypercall or emulate -> domain, mmu, event, device -> engine
//!                      |
//!                    ledger
//! ```
//!
//! `docs/tour.md` follows one hypercall and one trapped instruction through these modules, file by file.
//!
//! # Principles
//!
//! 1. **The guest's kernel runs at CPL 3, always**, whether it was written for that or not. One image runs on every engine,
//!    and the only difference between the two techniques is whether the kernel asks or trips.
//! 2. **The ABI is Xen's.** What a call does, and with which error it fails, is what Xen's public headers and Xen itself say;
//!    `docs/abi.md` lists the calls and every deviation. The one extension is for virtio devices.
//! 3. **Engines run code and map pages; nothing else.** [`engine`] knows no domain; [`hypercall`] and [`emulate`] know
//!    no engine; [`device`] knows neither, nor the transport that a driver reaches it by.
//! 4. **Every exit is accounted for**, by kind, cause and time, in one place: the loop of [`monitor`].
//! 5. **Guest input is hostile.** It may be any value, and change while it is read. Pointers go through `domain::access`
//!    and `emulate`'s counterpart, rings through `device`'s chain reader; arithmetic on what they say is checked and every
//!    list is bounded. A guest that breaks the rules gets an error code, or is ended with one line that says why. The host does not panic.
//! 6. **The way from an exit to the next entry is short.** It does not allocate, log, or wait for a lock that
//!    anybody holds for long. What can wait, waits until the guest runs: a plain start makes no thread, and reads no file that
//!    was not asked for.
//!
//! # Map
//!
//! | Concern | Modules |
//! | --- | --- |
//! | The program: arguments, terminal, signals, output | [`cli`], [`notice`] |
//! | The loop: enter, exit, account, handle, resume; waking a vCPU | [`monitor`], [`busy_poll`] |
//! | What enters a guest and maps its pages | [`engine`]: [`kvm`](engine::kvm), [`process`](engine::process) |
//! | A domain: its image, its first state, what it owns, how it ends | [`domain`], [`images`] |
//! | What a paravirtual kernel asks for | [`hypercall`], [`event`] |
//! | What a bare kernel trips over, and the PC that it believes in | [`emulate`], [`platform`] |
//! | Memory, and who may write page tables | [`memory`], [`mmu`] |
//! | Time | [`time`] |
//! | The xenstore that a paravirtual kernel finds | [`xenstore`] |
//! | Virtio devices, for both kinds of kernel | [`device`], [`console`], [`threads`] |
//! | What exits were, and what they cost | [`ledger`], [`compare`] |
//! | What in a kernel's code does not do at CPL 3 what it does at CPL 0 | [`audit`] |
//! | Text for people: names from outside, times and sizes | [`printable`], [`units`] |
//!
//! [`console`] is the console that every guest has; [`device::console`] is the virtio device, for guests that are given one.

pub mod audit;
pub mod busy_poll;
pub mod cli;
pub mod compare;
pub mod console;
pub mod device;
pub mod domain;
pub mod emulate;
pub mod engine;
pub mod event;
pub mod host_limit;
pub mod hypercall;
pub mod images;
pub mod ledger;
pub mod memory;
pub mod mmu;
pub mod monitor;
pub mod notice;
pub mod platform;
pub mod printable;
#[cfg(test)]
mod skip;
pub mod threads;
pub mod time;
pub mod units;
pub mod xenstore;
mod zeroed;
