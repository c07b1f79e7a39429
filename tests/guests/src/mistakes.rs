//! What authors of kernels do wrong, each in a function of its own that the host must name; `test=NAME` selects one.

extern crate alloc;

use core::arch::asm;
use core::fmt;

use paravane_abi::addr::table_index;
use paravane_abi::hypercall::UPDATE_VA_MAPPING;
use paravane_abi::pte;
use paravane_abi::virq::VIRQ_TIMER;
use paravane_guest::hypercall::call;
use paravane_guest::hypercall::vcpu::set_timer;
use paravane_guest::memory::Pfn;
use paravane_guest::paging::{BootFrames, Mmu, PageFlags};
use paravane_guest::{Boot, event, println, time, trap};

/// Makes the mistake; returns if there is none of that name.
pub fn make(name: &str, boot: &Boot) {
    let with_tables = |mistake: fn(&Boot, &mut Mmu<'static>) -> !| {
        with_handlers();
        mistake(boot, &mut boot.mmu())
    };
    match name {
        "null" => {
            with_handlers();
            null_dereference()
        }
        "null-without-handlers" => null_dereference(),
        "overflow-without-handlers" => {
            endless_recursion(0);
        }
        "overflow" => {
            with_handlers();
            endless_recursion(0);
        }
        "fault-in-the-handler" => {
            with_handlers();
            trap::set_handler(14, Some(handler_that_faults));
            null_dereference()
        }
        "lgdt" => {
            with_handlers();
            load_a_descriptor_table()
        }
        "cli" => {
            with_handlers();
            disable_interrupts()
        }
        "hlt" => {
            with_handlers();
            halt()
        }
        "out" => {
            with_handlers();
            write_to_a_port()
        }
        "table-mapped-writable" => with_tables(map_a_table_writable),
        "table-freed-in-use" => with_tables(free_a_table_in_use),
        "data-as-table" => with_tables(take_data_for_a_table),
        "no-table" => with_tables(change_an_entry_without_a_table),
        "store-to-a-table" => {
            with_handlers();
            store_to_a_table(boot)
        }
        "heap-exhausted" => exhaust_the_heap(),
        "no-event-handler" => wait_without_a_handler(),
        "events-masked" => spin_with_events_masked(),
        "panic-in-display" => panic!("{}", Shy),
        _ => {}
    }
}

fn with_handlers() {
    let outcome = trap::install();
    assert!(outcome.is_ok(), "trap handlers: {outcome:?}");
}

#[inline(never)]
fn null_dereference() -> ! {
    // SAFETY: the read faults, as intended: nothing is mapped at 0.
    let value = unsafe { core::ptr::null::<u64>().byte_add(8).read_volatile() };
    panic!("there is something at 8: {value:#x}")
}

/// The mistake that is to be explained.
#[inline(never)]
#[allow(unconditional_recursion)]
fn endless_recursion(depth: u64) -> u64 {
    let room = core::hint::black_box([depth; 32]);
    endless_recursion(depth + 1) + room.iter().sum::<u64>()
}

#[inline(never)]
fn handler_that_faults(_: &mut trap::TrapFrame) {
    // SAFETY: the read faults, as intended: nothing is mapped there.
    unsafe { (0x7fff_ffff_e000 as *const u64).read_volatile() };
}

#[inline(never)]
fn load_a_descriptor_table() -> ! {
    let pointer = [0u8; 10];
    // SAFETY: it faults, as intended, and is not emulated for a kernel that asks.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const pointer) };
    panic!("it did not fault")
}

#[inline(never)]
fn disable_interrupts() -> ! {
    // SAFETY: it faults, as intended: a kernel that asks has no IOPL.
    unsafe { asm!("cli", options(nomem, nostack)) };
    panic!("it did not fault")
}

#[inline(never)]
fn halt() -> ! {
    // SAFETY: it faults, as intended.
    unsafe { asm!("hlt", options(nomem, nostack)) };
    panic!("it did not fault")
}

/// As for a serial port.
#[inline(never)]
fn write_to_a_port() -> ! {
    // SAFETY: it faults, as intended: the kernel has no ports.
    unsafe { asm!("out dx, al", in("dx") 0x3f8_u16, in("al") b'x', options(nomem, nostack)) };
    panic!("it did not fault")
}

/// Panics where it stands, as kernels do that expect no refusal.
macro_rules! expect {
    ($outcome:expr) => {
        match $outcome {
            Err(error) => panic!("{error}"),
            Ok(value) => value,
        }
    };
}

/// An address in whose tables nothing is.
const UNUSED: u64 = 0x1234_5678_9000;

#[inline(never)]
fn map_a_table_writable(boot: &Boot, mmu: &mut Mmu<'static>) -> ! {
    let [_, free] = boot.free_frames();
    // SAFETY: the first free frames are mapped, and used by this source only.
    let mut frames = unsafe { BootFrames::new(free) };
    expect!(mmu.kernel_space().map(mmu, &mut frames, UNUSED, boot.root(), PageFlags::DATA));
    expect!(mmu.flush());
    panic!("it was not refused")
}

/// Gives the frame of a table back, which is the root of the space that it runs in.
#[inline(never)]
fn free_a_table_in_use(boot: &Boot, mmu: &mut Mmu<'static>) -> ! {
    // SAFETY: it is not, as intended: the vCPU uses the table.
    unsafe {
        expect!(mmu.unpin(boot.root()));
        expect!(mmu.make_writable(boot.root()));
    }
    expect!(mmu.flush());
    panic!("it was not refused")
}

/// Links a table that it forgot to make read-only.
#[inline(never)]
fn take_data_for_a_table(boot: &Boot, mmu: &mut Mmu<'static>) -> ! {
    let [_, free] = boot.free_frames();
    let frame = expect!(mmu.mfn(Pfn(free.start)));
    let flags = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED;
    // SAFETY: it is refused, as intended.
    expect!(unsafe { mmu.write(boot.root(), table_index(UNUSED, 4), pte::make(frame.0, flags)) });
    expect!(mmu.flush());
    panic!("it was not refused")
}

#[inline(never)]
fn change_an_entry_without_a_table(_: &Boot, _: &mut Mmu<'static>) -> ! {
    // SAFETY: it is refused, as intended.
    expect!(unsafe { call(UPDATE_VA_MAPPING, [UNUSED, 0, 0]) });
    panic!("it was not refused")
}

/// Changes an entry as a kernel does that owns the machine.
#[inline(never)]
fn store_to_a_table(boot: &Boot) -> ! {
    let entry = boot.memory().va(boot.root()) as *mut u64;
    // SAFETY: it faults, as intended.
    unsafe { entry.write_volatile(0) };
    panic!("it did not fault")
}

/// A heap that the kernel forgot to give memory to.
#[cfg(guest)]
#[global_allocator]
static HEAP: Exhausted = Exhausted;

#[cfg(guest)]
struct Exhausted;

// SAFETY: it hands out nothing.
#[cfg(guest)]
unsafe impl core::alloc::GlobalAlloc for Exhausted {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

#[inline(never)]
fn exhaust_the_heap() -> ! {
    let much = alloc::vec![1_u8; 4096];
    panic!("there is a heap: {:?}", core::hint::black_box(much).first())
}

/// Waits for its timer, whose handler it forgot to have called.
#[inline(never)]
fn wait_without_a_handler() -> ! {
    println!("test: waits");
    loop {
        let outcome = event::block();
        assert!(outcome.is_ok(), "block: {outcome:?}");
        core::hint::spin_loop();
    }
}

/// Waits for its timer, having forgotten to let events through.
#[inline(never)]
fn spin_with_events_masked() -> ! {
    let outcome = event::install().and_then(|()| event::handle_virq(VIRQ_TIMER, |_| ())).map(event::unmask);
    assert!(outcome.is_ok(), "timer: {outcome:?}");
    event::disable();
    let outcome = set_timer(time::now() + 1_000_000);
    assert!(outcome.is_ok(), "timer: {outcome:?}");
    loop {
        core::hint::spin_loop();
    }
}

/// Something that cannot be shown.
struct Shy;

impl fmt::Display for Shy {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a panic while a panic is shown")
    }
}
