//! The contract between the kernel and a machine layer.
#![forbid(unsafe_code)]

use paravane_guest::user::{Left, UserContext};
use paravane_guest::virtio::Interrupts;
use paravane_guest::virtio::drivers::transport::DeviceType;

use super::exception::ExceptionHandler;
use super::primitive::Primitive;
use crate::memory::contents::Contents;
use crate::memory::frames::Frame;
use crate::memory::paging::Mmu;
use crate::memory::{BootMemory, Memory};

/// What the kernel was started with.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The command line.
    pub cmdline: &'static str,
    /// The memory.
    pub memory: BootMemory,
}

/// How the kernel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Its work is done.
    PowerOff,
    /// It asks to be started again.
    Reboot,
    /// It detected a fault of its own.
    Crash,
}

/// One processor, a clock with a timer, a console, and virtio devices.
pub trait Machine {
    /// The machine's name in messages.
    const NAME: &'static str;
    /// Its page-table primitives.
    type Mmu: Mmu + Contents + 'static;
    /// How drivers reach a virtio device.
    type Transport: Interrupts;
    /// Its operations, for nanobenchmarks.
    const PRIMITIVES: &'static [Primitive<Self::Mmu>];

    /// Installs handlers of exceptions and interrupts, and lets devices raise interrupts, which stay off. Exceptions
    /// are handed to `on_exception`; typed bytes and timer interrupts are left in [`interrupts`](crate::interrupts).
    /// Called once.
    fn install_handlers(on_exception: ExceptionHandler);
    /// Removes the handlers of exceptions: the next exception ends the machine.
    fn remove_handlers();

    /// Prints; returns when all of it has been handed to the console.
    fn console_write(bytes: &[u8]);
    /// With interrupts off: moves received bytes to [`TYPED`](crate::interrupts::TYPED), as many as it has room for.
    /// The interrupt handler did so when they arrived; some may have been left for want of room.
    fn console_receive();

    /// Turns interrupts on.
    fn interrupts_on();
    /// Turns interrupts off.
    fn interrupts_off();
    /// With interrupts off: idles until an interrupt arrives, lets it be handled, and turns interrupts off again.
    fn wait();

    /// Nanoseconds since a moment before the kernel started.
    fn clock() -> u64;
    /// Requests one timer interrupt when [`clock`](Self::clock) reaches `deadline`, in place of any pending one.
    fn arm_timer(deadline: u64);

    /// Requests `count` timer interrupts, `period` nanoseconds apart or a little more; returns how much it is. Those
    /// that cannot be handled in time come late, one after the other. In place of any pending one.
    fn tick(period: u64, count: u64) -> u64;

    /// Makes the cheapest request that only the machine can answer; returns whether the answer is right.
    fn null_call() -> bool;

    /// Prepares the machine for programs. Called once.
    fn allow_programs();
    /// With interrupts off, and everything flushed: runs a program in the live address space under `root` until it
    /// leaves user mode. Interrupts that arrive meanwhile are handled.
    fn run_program(mmu: &Self::Mmu, root: Frame, context: &mut UserContext) -> Left;
    /// Makes the processor use no program's address space, from the next flush on at the latest.
    fn forget_programs(mmu: &mut Self::Mmu, kernel: Frame);

    /// Makes the virtio devices reachable, once; returns how many there may be. `cmdline` is the kernel's.
    fn attach_devices(memory: &mut Memory<Self::Mmu>, cmdline: &str) -> usize;
    /// The device with a number below that, if there is one, it is of this kind, and no driver has it.
    fn device(memory: &Memory<Self::Mmu>, number: usize, kind: DeviceType) -> Option<Self::Transport>;

    /// Ends the machine.
    fn shutdown(how: Shutdown) -> !;
}
