//! The host of Paravane: everything that runs a guest, and the program `paravane` around it.
//!
//! A guest's kernel runs at CPL 3, in a virtual machine of KVM or as a sandboxed process. Whatever makes it stop is an
//! [`Exit`](engine::Exit), neutral of the engine. The monitor accounts for it, has its meaning carried out, and enters
//! the guest again:
//!
//! ```text
//! engine -> exit -> monitor -> pv::hypercall or exec -> pv::domain, mmu, virtio -> engine
//!                      |
//!                    ledger
//! ```
//!
//! `docs/tour.md` follows one hypercall and one trapped instruction through these modules, file by file.
//!
//! # Principles
//!
//! 1. **The guest's kernel runs at CPL 3, always**, whether it was written for that or not. One image runs on every
//!    engine, and the only difference between the two techniques is whether the kernel asks or trips.
//! 2. **The ABI is Xen's.** What a call does, and with which error it fails, is what Xen's public headers and Xen
//!    itself say; `docs/abi.md` lists the calls and every deviation. The one extension is for virtio devices.
//! 3. **Engines run code and map pages; nothing else.** [`engine`] knows no domain; [`pv`] and [`exec`] know
//!    no engine; [`virtio`] knows neither, nor the transport that a driver reaches it by.
//! 4. **Every exit is accounted for**, by kind, cause and time, in one place: the loop of [`monitor`].
//! 5. **Guest input is hostile.** It may be any value, and change while it is read. Pointers go through `pv::access`
//!    and `exec`'s counterpart, rings through `virtio`'s chain reader; arithmetic on what they say is checked and every
//!    list is bounded. A guest that breaks the rules gets an error code, or is ended with one line that says why. The
//!    host does not panic.
//! 6. **The way from an exit to the next entry is short.** It does not allocate, log, or wait for a lock that anybody
//!    holds for long. What can wait, waits until the guest runs: a plain start makes no thread, and reads no file that
//!    was not asked for.
//!
//! # Map
//!
//! | Room | What is in it |
//! | --- | --- |
//! | [`cli`] | The program: arguments, terminal, signals, output |
//! | [`compare`], [`ledger`] | What exits were, and what they cost, technique by technique |
//! | [`technique`] | The ways of virtualizing a kernel |
//! | [`launch`] | From a configuration to a running guest, and the report when it has ended |
//! | [`monitor`] | The loop of a vCPU: enter, exit, account, handle, resume |
//! | [`gdb`] | The debugger's side of a run: breakpoints, steps, gdb's protocol |
//! | [`trace`] | Every exit of a run, written to a file and read again |
//! | [`snapshot`] | A domain's memory and state, written to a file and read again |
//! | [`engine`] | What enters a guest and maps its pages: [`kvm`](engine::kvm), [`process`](engine::process) |
//! | [`pv`] | Xen's machine: a domain, its vCPU, hypercalls, events, grants, the xenstore |
//! | [`bare`], [`exec`] | The PC that a bare kernel believes in; what one trapped instruction does |
//! | [`codegen`] | Code of ours that runs in a bare kernel's place |
//! | [`translate`] | A bare kernel's code as code of ours |
//! | [`interpreter`] | A processor in software, which executes every instruction of a guest itself |
//! | [`build`] | From an image to a domain's first state |
//! | [`image`], [`audit`] | Files that hold kernels, and what in their code differs at CPL 3 from CPL 0 |
//! | [`mmu`] | Who may write page tables: validated ones, and shadows |
//! | [`virtio`] | Virtio devices, for both kinds of kernel |
//! | [`backend`] | What stands behind devices on the host |
//! | [`host`] | Linux: threads, limits, notices |
//! | [`machine`] | Memory, layout, time, the console's two ends |
//! | [`x86`] | The architecture's facts |
//! | [`text`] | Text for people: names from outside, times and sizes |

// These pages are for readers of the source. Their links lead to private items, which `cargo xtask doc` documents too.
#![allow(rustdoc::private_intra_doc_links)]

pub mod audit;
pub mod autopsy;
pub mod backend;
pub mod bare;
pub mod build;
pub mod cli;
pub mod codegen;
pub mod compare;
pub mod engine;
pub mod exec;
pub mod gdb;
pub mod host;
pub mod image;
pub mod interpreter;
pub mod launch;
pub mod ledger;
pub mod machine;
pub mod mmu;
pub mod monitor;
pub mod patch;
pub mod pv;
pub mod snapshot;
pub mod technique;
#[cfg(test)]
mod testing;
pub mod text;
pub mod trace;
pub mod translate;
pub mod virtio;
pub mod x86;
