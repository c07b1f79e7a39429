//! Everything that differs between the machines that this kernel runs on.
//!
//! `pv` asks a hypervisor; `bare` believes that it owns a PC. For each function the two do
//! the same work for their caller: whatever one machine needs that the other does not is done here, at the
//! machine's own price, and nothing is left out because a measurement is running. Above this line no code
//! knows which machine it is on.

use core::ops::Range;

use paravane_guest::virtio::Interrupts;
use paravane_guest::virtio::drivers::transport::DeviceType;

use crate::frames::Frame;
use crate::memory::Memory;
use crate::paging::Mmu;

#[cfg(machine = "bare")]
pub mod bare;
#[cfg(machine = "bare")]
pub use bare::Bare as Current;

#[cfg(machine = "pv")]
pub mod pv;
#[cfg(machine = "pv")]
pub use pv::Pv as Current;

#[cfg(not(any(machine = "pv", machine = "bare")))]
compile_error!("a guest is built with --cfg machine=\"pv\" or --cfg machine=\"bare\"");

/// What the kernel was started with.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The command line.
    pub cmdline: &'static str,
    /// Memory, in frames from 0 on.
    pub frames: u64,
    /// From here on memory is free, as far as it is mapped; below are the kernel and what its loader made.
    pub first_free: Frame,
    /// An initial RAM disk; empty if there is none.
    pub module: Range<Frame>,
    /// The L4 in use.
    pub root: Frame,
}

/// How the kernel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It is done.
    PowerOff,
    /// It wants to be started again.
    Reboot,
    /// It found itself broken.
    Crash,
}

/// One processor, a clock with a timer, a console.
pub trait Machine {
    /// What to call it.
    const NAME: &'static str;
    /// Its page-table primitives.
    type Mmu: Mmu;
    /// How drivers reach a virtio device.
    type Transport: Interrupts;

    /// Installs what catches exceptions and interrupts, and lets devices raise them. Interrupts stay off.
    fn install_handlers();
    /// Removes what catches exceptions: the next one is nobody's.
    fn remove_handlers();

    /// Prints; returns when all of it is on its way.
    fn console_write(bytes: &[u8]);
    /// With interrupts off: hands typed bytes to [`console::received`](crate::console::received), as many as there
    /// is room for. An interrupt did so when they arrived; some may have been left for want of room.
    fn console_receive();

    /// Lets interrupts in.
    fn interrupts_on();
    /// Keeps them out.
    fn interrupts_off();
    /// With interrupts off: idles until one arrives, lets it be handled, and turns them off again.
    fn wait();

    /// Nanoseconds since some moment before the kernel started.
    fn clock() -> u64;
    /// One interrupt when [`clock`](Self::clock) has reached `deadline`, instead of any pending one.
    fn arm_timer(deadline: u64);

    /// Asks the machine the least that only it can answer; whether the answer is right.
    fn null_call() -> bool;

    /// Makes what virtio devices there are reachable, once; how many there may be. `cmdline` is the kernel's.
    fn attach_devices(memory: &mut Memory, cmdline: &str) -> usize;
    /// The device with a number below that, if there is one and it is of this kind. Nobody else drives it.
    fn device(memory: &Memory, number: usize, kind: DeviceType) -> Option<Self::Transport>;

    /// Ends it all.
    fn shutdown(how: Shutdown) -> !;
}
