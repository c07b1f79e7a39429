//! Fast paths: a user program's SYSCALL reaches its kernel, and the kernel returns by `iret`, without an exit.
//!
//! Two pieces of code (see [`text`]) share the work. The *ways* run at CPL 3, in a page that every address space has:
//! they push the kernel's frame or take it off, swap GS and mask upcalls, with the guest's own rights and natively. The
//! *gate*, at CPL 0, loads the other root and nothing else: 9 instructions for a call, 11 for a return.
//!
//! ```text
//! program: SYSCALL -> ways: INT3 -> gate: CR3 = kernel's -> ways: frame, GS, mask -> the kernel's entry
//! kernel:  iret    -> ways: checks, mask, GS, registers, INT3 -> gate: CR3 = program's -> ways: JMP rcx
//! ```
//!
//! Where SYSCALL raises the privilege level it arrives in the gate, which goes on to the ways by IRETQ; INT3 is then
//! for returns only.
//!
//! **What the guest must not gain.** It runs at CPL 3 before, between and after; the host's checks are as without.
//!
//! * *Roots.* The gate loads the two that the host has put into its own page, both validated and held. While the guest
//!   has not said both, both are the one that runs. A guest cannot name one.
//! * *Kernel mode.* The kernel's root is loaded for an INT3 in the ways alone, and execution goes on right behind it.
//!   Whoever jumps there has executed SYSCALL. #BP from any other RIP (all 64 bits are compared) leaves for the host.
//! * *The shared page* ([`State`]) is mapped in kernels' roots only, in an L4 slot of ours; a root loses it before a
//!   program runs on it. So a program can neither read nor write where its kernel's stack and entry are. The kernel
//!   can: what is in the page is a claim, and by a false one it can only break itself. The host believes none of it:
//!   the mode that was left is what CR3 says; bases are made canonical; no address in it is used.
//! * *Registers of the caller.* SYSCALL's mask clears TF, DF, AC and NT. One who jumps into the ways has what flags he
//!   likes: the kernel gets rcx and r11 as it would anyway (`IF` set, `IOPL` clear in its frame); POPFQ then loads all
//!   flags that the guest can have, without TF, NT and AC. With TF set the first instruction of the kernel's side
//!   raises #DB, and the call is taken back and left to the host. DF is of no effect: there are no string instructions.
//! * *The privilege level.* A software KVM leaves it at 3 for a SYSCALL, but interprets some, and then it is 0, on the
//!   caller's stack. The ways look at CS before INT3, by way of a page that every program can write to: what they store
//!   there is read by the next instruction, and there is one virtual CPU. At CPL 0 the next is the `OUT` to the host.
//! * *RIP and RSP that are not canonical.* Never SYSRET. A return to one is left to the host, which makes the #GP; the
//!   stack of an entry is only used at CPL 3, where it faults as the guest's own. The gate uses its own stack.
//! * *Faults in the ways*, in the kernel's view: the call or the return is taken back as a whole, and the host does
//!   it, as it does without fast paths; it kills the guest if its stack cannot be used. In the program's view they
//!   are the program's: it has jumped there.
//! * *A kick* at any instruction: the same ([`undo`]). No frame is ever half pushed when the layers above look.
//! * *The exit port* is open to user programs as well, which on hardware it is not otherwise: what a program writes
//!   there is refused by the host (see `port`).
//!
//! What stays with the host: a return with TF, with upcalls pending or masked, in an NMI, to the kernel, to other
//! selectors, or with rcx other than RIP (after anything but a SYSCALL); a SYSCALL while upcalls are masked; guests
//! with several virtual CPUs, because the ways are one page and find one virtual CPU's state; the transport `vmcall`. A
//! kernel that wants fast paths sets CR4.FSGSBASE.
//!
//! What may not be done here: a decision that keeps the guest in its bounds, at CPL 0 or in the ways.

mod exits;
mod tables;
#[cfg(test)]
mod tests;
mod text;
mod undo;

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(super) use self::tables::{FRAMES, FastPaths};
pub(super) use self::undo::{Left, Undone};
use super::tables::slot_va;
use crate::machine::memory::PAGE_SIZE;

/// The L4 slot of the shared page, which only roots of kernels have.
pub(super) const STATE_SLOT: u64 = 261;
/// Linear address of the shared page; the frame with the vCPU's info is mapped behind it.
pub(super) const STATE_VA: u64 = slot_va(STATE_SLOT);
/// Linear address of the ways: right below, so that they can reach it, in the slot of the gate.
pub(super) const WAYS_VA: u64 = STATE_VA - PAGE_SIZE;
/// From the ways to the shared page.
const STATE_OFFSET: u64 = STATE_VA - WAYS_VA;
/// From the ways down to a page that everybody may write to: the ways find out their privilege level there.
const DESK_OFFSET: u64 = PAGE_SIZE;
/// In the page of the ways: a byte that says whether there are fast paths now.
const ARMED: u64 = PAGE_SIZE - 8;
/// The gate's place in the frame of the supervisor text.
pub(super) const GATE_OFFSET: u64 = 0x800;

/// What the ways share with the monitor. Written by the host before an entry, and believed by nobody afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct State {
    /// The frame of the return that is being made.
    frame: u64,
    /// Registers of the call that is being made.
    user_rsp: u64,
    user_rax: u64,
    /// Bases of GS: of each mode while the other one runs.
    kernel_gs: u64,
    user_gs: u64,
    /// The stack for entries, aligned.
    kernel_sp: u64,
    /// The kernel's entry.
    entry: u64,
    /// Linear address of the vCPU's info.
    info: u64,
    /// Whether an entry masks upcalls.
    masks: u64,
    /// Whether a user program runs.
    in_user: u64,
    /// CS and SS of a return.
    cs: u64,
    ss: u64,
    /// What the kernel's CS and SS read.
    own_cs: u64,
    own_ss: u64,
    /// How often the mode has changed.
    crossings: u64,
}
