//! Self-tests: what the kernel does when the command line says `test=NAME`.
//!
//! Some check the machine and print their verdict; others misbehave on purpose, and the host's test judges the outcome.

use core::arch::asm;

use crate::exception::{can_read, can_write};
use crate::interrupts;
use crate::kernel::{Kernel, Memory};
use crate::line_editor::{LineEditor, Typed};
use crate::machine::{Current, Machine};
use crate::memory::frames::PAGE_SIZE;
use crate::memory::paging::{Access, AddressSpace, MapError, Mmu, Span, Stale};
use crate::memory::{PRIVATE, SCRATCH, direct_map};
use crate::timers::TimerQueue;
use crate::{console, println, time};

mod devices;

/// Returns false if the machine does not behave as it must.
type Test = fn(&mut Kernel) -> bool;

/// The tests by name.
const ALL: &[(&str, Test)] = &[
    ("panic", |_| panic!("asked for by test=panic")),
    ("spin", |_| spin()),
    ("bad-write", |_| bad_write()),
    ("triple", |_| triple()),
    ("echo", |_| echo()),
    ("timer", |_| timer()),
    ("paging", |kernel| paging(&mut kernel.memory).unwrap_or(false)),
    ("registers", |_| registers()),
    ("entropy", devices::entropy),
    ("misuse", devices::misuse),
    ("block-verify", devices::block_verify),
];

/// Runs the named test, prints its verdict and returns it.
pub fn run(kernel: &mut Kernel, name: &str) -> bool {
    let Some((_, test)) = ALL.iter().find(|(known, _)| *known == name) else {
        println!("test: name={name} ok=false why=no-such-test");
        return false;
    };
    let ok = test(kernel);
    println!("test: name={name} ok={ok}");
    ok
}

/// Never ends, for tests of how the host stops a guest that does not respond.
fn spin() -> ! {
    println!("spinning");
    loop {
        core::hint::spin_loop();
    }
}

/// Writes to an unmapped address: the kernel reports the fault and panics.
fn bad_write() -> bool {
    // SAFETY: nothing is mapped there, so the write faults.
    unsafe { (SCRATCH as *mut u64).write_volatile(1) };
    false
}

/// Faults without handlers: the machine has to end.
fn triple() -> bool {
    println!("faulting without handlers");
    Current::remove_handlers();
    bad_write()
}

/// Prints every line back until one says `quit`.
fn echo() -> bool {
    println!("echoing");
    let mut editor = LineEditor::default();
    loop {
        match editor.feed(console::read()) {
            Typed::Line("quit") => return true,
            Typed::Line(line) => println!("echo: {line}"),
            Typed::End => return false,
            Typed::Echo(_) | Typed::Ignored | Typed::Cancelled => {}
        }
    }
}

/// Deadlines set out of order expire in order, none early, and a cancelled one not at all.
fn timer() -> bool {
    const MS: u64 = 1_000_000;
    let start = Current::clock();
    let mut queue = TimerQueue::<u64, 8>::default();
    // The longest exceeds the longest count of a PC's timer.
    for delay in [5 * MS, MS, 70 * MS, 2 * MS, MS / 10] {
        if queue.add(start + delay, delay).is_err() {
            return false;
        }
    }
    let cancelled = queue.add(start + 3 * MS, 3 * MS);
    if !cancelled.is_ok_and(|id| queue.cancel(id)) {
        return false;
    }
    for expected in [MS / 10, MS, 2 * MS, 5 * MS, 70 * MS] {
        if time::next(&mut queue) != Some(expected) || Current::clock() < start + expected {
            return false;
        }
    }
    time::next(&mut queue).is_none()
}

/// Mapping, aliasing, protection, unmapping and isolation, each verified by its effect on accesses.
fn paging(memory: &mut Memory) -> Result<bool, MapError> {
    let frame = memory.frames.allocate().ok_or(MapError::OutOfFrames)?;
    let Memory { mmu, frames, space, .. } = memory;
    let (va, alias) = (SCRATCH, SCRATCH + PAGE_SIZE);
    let write = |va: u64, value: u64| {
        // SAFETY: nothing but this frame is ever mapped at the addresses that are tried.
        unsafe { can_write(va, value) }
    };
    // SAFETY: the direct map maps all memory, and the frame was allocated here.
    let content = || unsafe { (direct_map(frame) as *const u64).read_volatile() };
    let mut right = !can_read(va) && !write(va, 1);

    space.reserve(mmu, frames, Span::pages(va, 2))?;
    space.map(mmu, va, frame, Access::ReadWrite)?;
    space.map(mmu, alias, frame, Access::ReadOnly)?;
    mmu.flush(Stale::Nothing);
    right &= write(va, 11) && content() == 11 && can_read(alias) && !write(alias, 12) && content() == 11;

    right &= space.protect(mmu, va, Access::ReadOnly) && space.protect(mmu, alias, Access::ReadWrite);
    mmu.flush(Stale::Everything);
    right &= !write(va, 13) && write(alias, 14) && content() == 14;

    right &= space.unmap(mmu, va) == Some(frame);
    mmu.flush(Stale::Page(va));
    right &= !can_read(va) && can_read(alias);
    right &= space.unmap(mmu, alias) == Some(frame);
    mmu.flush(Stale::Page(alias));
    right &= !can_read(alias);

    let mut other = AddressSpace::new(mmu, frames, space)?;
    other.map_run(mmu, frames, Span::pages(PRIVATE, 1), frame, Access::ReadWrite)?;
    right &= !can_read(PRIVATE);
    other.activate(mmu);
    right &= write(PRIVATE, 15) && other.translate(mmu, PRIVATE) == Some((frame, Access::ReadWrite));
    right &= other.protect(mmu, PRIVATE, Access::ReadOnly);
    mmu.flush(Stale::Page(PRIVATE));
    right &= !write(PRIVATE, 16);
    space.activate(mmu);
    right &= !can_read(PRIVATE) && content() == 15;
    other.destroy(mmu, frames);
    right &= frames.free(frame).is_ok();
    Ok(right)
}

/// Vector registers survive interrupts.
fn registers() -> bool {
    const MS: u64 = 1_000_000;
    (1..=10u64).all(|turn| {
        let before: [u64; 8] = core::array::from_fn(|i| turn << 32 | i as u64);
        let mut after = [0u64; 8];
        let seen = interrupts::timer::count();
        Current::arm_timer(Current::clock() + MS);
        // SAFETY: reads `before` and the counter, writes `after`; the registers used are declared.
        unsafe {
            asm!(
                "movups xmm0, [{before}]", "movups xmm5, [{before} + 16]",
                "movups xmm10, [{before} + 32]", "movups xmm15, [{before} + 48]",
                "2:", "pause", "cmp qword ptr [{counter}], {seen}", "je 2b",
                "movups [{after}], xmm0", "movups [{after} + 16], xmm5",
                "movups [{after} + 32], xmm10", "movups [{after} + 48], xmm15",
                before = in(reg) before.as_ptr(), after = in(reg) after.as_mut_ptr(),
                counter = in(reg) interrupts::timer::counter(), seen = in(reg) seen,
                out("xmm0") _, out("xmm5") _, out("xmm10") _, out("xmm15") _,
            );
        }
        before == after
    })
}
