//! The paravirtual machine: a hypervisor, reached through the SDK.
//!
//! What the bare machine does by privileged instructions and devices is a hypercall, an event or a shared page here.
//! The SDK has them; this layer translates, and makes no decision of its own.

use paravane_guest::abi::hypercall::SET_TRAP_TABLE;
use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::hypercall::Hypervisor;
use paravane_guest::memory::Pfn;
use paravane_guest::queue::Queue;
use paravane_guest::trap::{EXCEPTIONS, TrapFrame};
use paravane_guest::user::{Left, UserContext};
use paravane_guest::virtio::drivers::transport::DeviceType;
use paravane_guest::virtio::{self, PvTransport};
use paravane_guest::{console, event, hypercall, paging, power, time, trap};

use crate::interrupts::TYPED;
use crate::memory::frames::{Frame, PAGE_SIZE};
use crate::memory::{BootMemory, Memory};
use crate::single::Single;

use super::exception::{self, Exception, ExceptionHandler};
use super::interface::{Boot, Machine, Shutdown};
use super::primitive::Primitive;

mod mmu;
mod primitives;
mod programs;
mod tick;

pub use mmu::PvMmu;

static QUEUE: Single<Queue<Hypervisor>> = Single::new(Queue::new(Hypervisor));

/// Makes `$start`, an `unsafe fn(Boot, PvMmu) -> !`, the start of the kernel on this machine.
#[macro_export]
macro_rules! entry {
    ($start:path) => {
        fn kernel_main(start: ::paravane_guest::Boot) -> ! {
            // SAFETY: called once, by the SDK's entry code.
            let (boot, mmu) = unsafe { $crate::machine::pv::enter(start) };
            // SAFETY: called once, on the SDK's boot stack, with events masked as a domain starts.
            unsafe { $start(boot, mmu) }
        }
        ::paravane_guest::entry!(kernel_main);
    };
}

/// Translates what the SDK was started with. Called by the code of [`entry!`](crate::entry).
///
/// # Safety
/// Called once.
pub unsafe fn enter(start: paravane_guest::Boot) -> (Boot, PvMmu) {
    let [_, free] = start.free_frames();
    let boot = Boot {
        cmdline: start.cmdline().text(),
        memory: BootMemory {
            frames: start.memory().frames(),
            first_free: Frame(free.start),
            module: start.module().map_or(Frame(0)..Frame(0), |module| frames_of(&start, module)),
            root: Frame(start.root().0),
        },
    };
    // SAFETY: called once, so this is the only reference to the queue; the root is the one in use, and the direct map
    // begins at the base that the kernel is linked at.
    let mmu = unsafe { paging::Mmu::new(QUEUE.get(), start.memory(), Pfn(boot.memory.root.0)) };
    (boot, PvMmu::new(mmu))
}

fn frames_of(start: &paravane_guest::Boot, module: &[u8]) -> core::ops::Range<Frame> {
    let first = module.as_ptr().addr() as u64 - start.memory().virt_base();
    Frame(first / PAGE_SIZE)..Frame((first + module.len() as u64).div_ceil(PAGE_SIZE))
}

/// A domain of a hypervisor with Xen's interface.
pub struct Pv;

impl Machine for Pv {
    const NAME: &'static str = "pv";
    type Mmu = PvMmu;
    type Transport = PvTransport;
    const PRIMITIVES: &'static [Primitive<PvMmu>] = primitives::ALL;

    fn install_handlers(on_exception: ExceptionHandler) {
        // SAFETY: called once; the trap table is installed below.
        unsafe { exception::set_handler(on_exception) };
        (0..EXCEPTIONS as u8).for_each(|vector| {
            trap::set_handler(vector, Some(on_trap));
        });
        let outcome = trap::install()
            .and_then(|()| event::install())
            // Xen starts a periodic timer with the vCPU.
            .and_then(|()| time::stop_periodic_timer(0))
            .and_then(|()| event::handle_virq(VIRQ_TIMER, |_| tick::arrived()));
        if let Err(errno) = outcome {
            panic!("the hypervisor refused our handlers: {errno}");
        }
        if let Some(port) = console::port() {
            event::handle(port, |_| Pv::console_receive());
        }
    }

    fn remove_handlers() {
        // SAFETY: without a table no exception reaches the kernel's code, which is the purpose of this function.
        let _ = unsafe { hypercall::call(SET_TRAP_TABLE, [0]) };
    }

    fn console_write(bytes: &[u8]) {
        console::write(bytes);
    }

    fn console_receive() {
        let mut bytes = [0; 64];
        loop {
            let room = TYPED.room().min(bytes.len());
            let count = console::read(&mut bytes[..room]);
            if count == 0 {
                return;
            }
            bytes[..count].iter().for_each(|&byte| TYPED.push(byte));
        }
    }

    fn interrupts_on() {
        event::enable();
    }

    fn interrupts_off() {
        event::disable();
    }

    fn wait() {
        if let Err(errno) = event::block() {
            panic!("the hypervisor does not let us wait: {errno}");
        }
        event::disable();
    }

    fn clock() -> u64 {
        time::now()
    }

    fn arm_timer(deadline: u64) {
        tick::arm(deadline);
    }

    fn tick(period: u64, count: u64) -> u64 {
        tick::start(period, count)
    }

    /// Asks for the hypervisor's version: no argument in memory, no side effect. The image's ELF notes require Xen 3
    /// or later.
    fn null_call() -> bool {
        hypercall::version::version().is_ok_and(|(major, _)| major >= 3)
    }

    fn allow_programs() {
        programs::allow();
    }

    fn run_program(mmu: &PvMmu, root: Frame, context: &mut UserContext) -> Left {
        programs::run(mmu, root, context)
    }

    fn forget_programs(mmu: &mut PvMmu, _: Frame) {
        programs::forget(mmu);
    }

    fn attach_devices(_: &mut Memory<PvMmu>, _: &str) -> usize {
        virtio::devices().count()
    }

    fn device(memory: &Memory<PvMmu>, number: usize, kind: DeviceType) -> Option<PvTransport> {
        let device = virtio::devices().nth(number).filter(|device| device.kind() == kind as u32)?;
        // An event only has to end a wait: drivers then look at their queues.
        PvTransport::new(device, memory.mmu.memory(), |_| ()).ok()
    }

    fn shutdown(how: Shutdown) -> ! {
        match how {
            Shutdown::PowerOff => power::power_off(),
            Shutdown::Reboot => power::reboot(),
            Shutdown::Crash => power::crash(),
        }
    }
}

fn on_trap(frame: &mut TrapFrame) {
    let mut exception = Exception {
        vector: frame.vector as u8,
        error_code: frame.error_code,
        rip: frame.rip,
        address: frame.fault_address(),
    };
    exception::deliver(&mut exception);
    frame.rip = exception.rip;
}
