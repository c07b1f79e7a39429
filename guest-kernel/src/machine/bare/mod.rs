//! The bare machine: a PC, driven at ring 0 without knowledge of a hypervisor.
//!
//! This is an ordinary kernel's machine layer: its own descriptor tables, two 8259s, an 8254, a 16550, plain stores
//! to page tables. It is correct on hardware. In addition it avoids every instruction that behaves differently at
//! CPL 3 without trapping (Popek and Goldberg, 1974): PUSHF, POPF, SGDT, SIDT, SLDT, STR, SMSW, LAR, LSL, VERR, VERW,
//! reading CS or SS, far transfers within a ring. So a hypervisor that runs it at CPL 3 sees every instruction whose
//! meaning would change.

use core::arch::asm;

use paravane_guest::user::{Left, UserContext};
use paravane_guest::virtio::drivers::transport::DeviceType;

use super::exception::{self, ExceptionHandler};
use super::interface::{Machine, Shutdown};
use super::primitive::Primitive;
use crate::memory::Memory;
use crate::memory::frames::Frame;
use crate::memory::paging::Mmu;

pub(crate) mod descriptors;
pub mod entry;
mod mmu;
mod pic;
mod pit;
mod port;
mod primitives;
mod programs;
mod start_info;
mod timer;
mod traps;
mod tsc;
mod uart;
mod virtio;

pub use mmu::BareMmu;
pub use virtio::Mmio;

/// A PC.
pub struct Bare;

impl Machine for Bare {
    const NAME: &'static str = "bare";
    type Mmu = BareMmu;
    type Transport = Mmio;
    const PRIMITIVES: &'static [Primitive<BareMmu>] = primitives::ALL;

    fn install_handlers(on_exception: ExceptionHandler) {
        // SAFETY: called once; the IDT is loaded below.
        unsafe { exception::set_handler(on_exception) };
        descriptors::load();
        pic::init();
        tsc::calibrate();
        uart::enable_interrupts();
    }

    fn remove_handlers() {
        descriptors::load_empty_idt();
    }

    fn console_write(bytes: &[u8]) {
        uart::write(bytes);
    }

    fn console_receive() {
        uart::receive();
    }

    fn interrupts_on() {
        // SAFETY: the IDT is loaded; handlers share nothing but atomics with what they interrupt.
        unsafe { asm!("sti") };
    }

    fn interrupts_off() {
        // SAFETY: has no effect on memory; it only delays interrupts.
        unsafe { asm!("cli") };
    }

    fn wait() {
        // SAFETY: as `interrupts_on`. STI takes effect after the next instruction (SDM vol. 2B, STI), so that
        // no interrupt can slip in between and leave HLT waiting for another.
        unsafe { asm!("sti", "hlt", "cli") };
    }

    fn clock() -> u64 {
        tsc::nanoseconds()
    }

    fn arm_timer(deadline: u64) {
        timer::arm(deadline);
    }

    fn tick(period: u64, count: u64) -> u64 {
        timer::tick(period, count)
    }

    /// Reads CR3, the cheapest operation that a kernel at CPL 3 cannot do by itself: one register, no side effect.
    fn null_call() -> bool {
        mmu::read_root() == mmu::expected_root()
    }

    fn allow_programs() {
        programs::allow();
    }

    fn run_program(_: &BareMmu, root: Frame, context: &mut UserContext) -> Left {
        programs::run(root, context)
    }

    fn forget_programs(mmu: &mut BareMmu, kernel: Frame) {
        programs::forget();
        if mmu::expected_root() != kernel {
            mmu.switch(kernel);
        }
    }

    fn attach_devices(memory: &mut Memory<BareMmu>, cmdline: &str) -> usize {
        virtio::attach(memory, cmdline)
    }

    fn device(_: &Memory<BareMmu>, number: usize, kind: DeviceType) -> Option<Mmio> {
        virtio::open(number, kind)
    }

    fn shutdown(how: Shutdown) -> ! {
        // SAFETY: the ports that power this PC off, reset it, and report a crash.
        unsafe {
            match how {
                Shutdown::PowerOff => port::write_u16(0x604, 0x2000),
                Shutdown::Reboot => port::write_u8(0x64, 0xfe),
                Shutdown::Crash => port::write_u8(0xf4, 3),
            }
        }
        loop {
            // SAFETY: the machine did not end; it must not execute anything further.
            unsafe { asm!("cli", "hlt") };
        }
    }
}
