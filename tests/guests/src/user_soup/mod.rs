//! A kernel that runs random user programs and survives them. `seed=N` determines the programs, `programs=N` their
//! number.
//!
//! Each program is one page of random instructions and random bytes, in an address space that does not map the kernel.
//! It ends with its first trap, system call or event. Then the kernel checks that CPL 3 can raise this by itself, that
//! the entry came from user mode, on the kernel's stack and with the kernel's GS base, and that its own memory is
//! unchanged.
//!
//! No program gets the selector of 32-bit code: a software KVM cannot run such code, and ends a guest that enters it
//! (docs/abi.md, "Deviations"). Random bytes and unaligned pointers can still produce the selector, but hardly ever do.

mod entry;
mod program;

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::abi::callback::*;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::*;
use paravane_guest::abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MmuextOp};
use paravane_guest::abi::segment::*;
use paravane_guest::abi::trap::*;
use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::{call, vcpu};
use paravane_guest::memory::Pfn;
use paravane_guest::paging::{AddressSpace, BootFrames, FrameSource, Mmu, PageFlags};
use paravane_guest::{Boot, power, println, time, trap};

use self::entry::{BY_EVENT, BY_SYSCALL, Entry, KERNEL};
use self::program::{CODE, DATA, DATA_PAGES, Pointers};
use crate::chance::Chance;

/// The time that a program may run, in nanoseconds.
const TIME: u64 = 2_000_000;
/// Bit 2 of a page fault's error code: user mode.
const USER_MODE: u64 = 1 << 2;
/// Words that no program may change.
const CANARIES: usize = 512;
static CANARY: [AtomicU64; CANARIES] = [const { AtomicU64::new(0) }; CANARIES];
/// The kernel's word at GS:0.
static KERNEL_WORD: AtomicU64 = AtomicU64::new(0x006b_6565_7021);

/// How the programs ended.
#[derive(Default)]
struct Tally {
    faults: u64,
    page_faults: u64,
    calls: u64,
    events: u64,
}

/// The kernel.
pub fn main(boot: Boot) -> ! {
    let number = |key| boot.cmdline().get(key).and_then(|text| text.parse().ok()).unwrap_or(1);
    let (seed, programs): (u64, u64) = (number("seed"), number("programs"));
    let installed = trap::install().and_then(|()| event::install());
    assert!(installed.is_ok(), "handlers: {installed:?}");
    let mut chance = Chance::new(seed);
    for (word, n) in CANARY.iter().zip(0..) {
        word.store(canary(n), Ordering::Relaxed);
    }
    let memory = make_space(&boot);
    assert!(event::handle_virq(VIRQ_TIMER, |_: Port| {}).is_ok(), "no timer");
    let set = entry::install(&KERNEL_WORD);
    assert!(set.is_ok(), "entry points: {set:?}");

    allow_instructions();

    let mut tally = Tally::default();
    let kernel = Pointers { kernel: &raw const CANARY as u64, stack: KERNEL.top(), table: memory.table };
    for n in 0..programs {
        // SAFETY: both pages are mapped and used only by programs, none of which runs now.
        unsafe { program::write(&mut chance, memory.code, memory.data, &kernel) };
        let started = vcpu::set_timer(time::now() + TIME);
        assert!(started.is_ok(), "timer: {started:?}");
        let entry = entry::go(&program::frame(&mut chance));
        let stopped = vcpu::stop_singleshot_timer(0);
        assert!(stopped.is_ok(), "timer: {stopped:?}");
        check(&entry, &mut tally).unwrap_or_else(|what| {
            panic!("user soup: program {n} of seed {seed}: {what}: {entry:x?}");
        });
        // Consumes the timer's event, if it came. Nothing else is unmasked, so no upcall follows.
        event::enable();
        event::disable();
    }
    let Tally { faults, page_faults, calls, events } = tally;
    println!(
        "user-soup: programs={programs} faults={faults} page-faults={page_faults} calls={calls} events={events}"
    );
    power::power_off()
}

/// Enables instructions that programs may then execute natively: those that set bases, and XSAVE's.
fn allow_instructions() {
    const OSXSAVE: u64 = 1 << 18;
    const FSGSBASE: u64 = 1 << 16;
    let [leaf_1, leaf_7] = [1, 7].map(|leaf| core::arch::x86_64::__cpuid_count(leaf, 0));
    let offered = [(OSXSAVE, leaf_1.ecx >> 26 & 1), (FSGSBASE, leaf_7.ebx & 1)];
    let bits = offered.iter().filter(|(_, has)| *has == 1).fold(0, |bits, (bit, _)| bits | bit);
    // SAFETY: this enables instructions that the kernel does not use.
    unsafe { asm!("mov {v}, cr4", "or {v}, {bits}", "mov cr4, {v}", v = out(reg) _, bits = in(reg) bits) };
}

fn canary(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xca9a_71e5
}

/// Checks that a user program can cause this entry, and that the kernel is unharmed.
fn check(entry: &Entry, tally: &mut Tally) -> Result<(), &'static str> {
    let changed = CANARY.iter().zip(0..).any(|(word, n)| word.load(Ordering::Relaxed) != canary(n));
    if changed {
        return Err("the kernel's memory was changed");
    }
    if entry.gs != KERNEL_WORD.load(Ordering::Relaxed) {
        return Err("the kernel has not its own base");
    }
    let with_code = [10, 11, 12, 13, 14, 17].contains(&entry.by);
    let first = 2 + usize::from(with_code);
    match entry.by {
        BY_SYSCALL => tally.calls += 1,
        BY_EVENT => tally.events += 1,
        14 if entry.words[2] & USER_MODE == 0 => return Err("a page fault that is not of user mode"),
        14 => tally.page_faults += 1,
        0 | 1 | 3..=7 | 10..=13 | 16 | 17 | 19 | 0x80 => tally.faults += 1,
        _ => return Err("a vector that CPL 3 cannot raise"),
    }
    if entry.words[first + 1] & 3 != 3 {
        return Err("a frame of kernel mode");
    }
    if entry.sp != KERNEL.top() - (first as u64 + 5) * 8 {
        return Err("a frame elsewhere than on the kernel's stack");
    }
    Ok(())
}

/// The addresses at which the kernel finds the programs' pages.
struct ProgramMemory {
    code: u64,
    data: u64,
    /// The root table of the programs' address space.
    table: u64,
}

/// Makes an address space with a page of code and some of data, and without the kernel's pages.
fn make_space(boot: &Boot) -> ProgramMemory {
    let mut mmu: Mmu<'static> = boot.mmu();
    let [_, free] = boot.free_frames();
    let mapped = mmu.direct_map_end(Pfn(free.start)).0;
    // SAFETY: the frames are free, mapped, and used only by this source.
    let mut frames = unsafe { BootFrames::new(free.start..mapped) };
    let kernel = mmu.kernel_space();
    let space = AddressSpace::new(&mut mmu, &mut frames, &kernel).expect("a space");
    let code = frames.take().expect("a frame");
    let data = [(); DATA_PAGES as usize].map(|()| frames.take().expect("a frame"));
    space.map(&mut mmu, &mut frames, CODE, code, PageFlags::empty()).expect("a page of code");
    let pages = data.into_iter().zip(0..).map(|(frame, n)| (DATA + n * 4096, frame));
    space.map_all(&mut mmu, &mut frames, pages, PageFlags::WRITE).expect("pages of data");
    let own = (CODE >> 39 & 511) as usize;
    for slot in (0..256).chain(272..512).filter(|slot| *slot != own) {
        if mmu.read(space.root(), slot) != 0 {
            // SAFETY: the kernel does not run in this space.
            unsafe { mmu.write(space.root(), slot, 0) }.expect("a slot without the kernel");
        }
    }
    mmu.flush().expect("tables");
    let root = mmu.mfn(space.root()).expect("a root").0;
    let op = MmuextOp { cmd: MMUEXT_NEW_USER_BASEPTR, arg1: root, ..MmuextOp::default() };
    // SAFETY: the tables belong to an address space that is never destroyed.
    let set = unsafe { call(MMUEXT_OP, [&raw const op as u64, 1, 0, DOMID_SELF.into()]) };
    assert!(set.is_ok(), "user tables: {set:?}");
    let memory = mmu.memory();
    ProgramMemory { code: memory.va(code), data: memory.va(data[0]), table: memory.va(space.root()) }
}
