//! The contract of each system call, as checks that hold on Linux and on the reference kernel.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::start::Arguments;
use crate::{println, sys};

/// Counts checks, and prints those that fail.
struct Checks {
    run: u64,
    failed: u64,
}

impl Checks {
    fn holds(&mut self, what: &str, ok: bool) {
        self.run += 1;
        if !ok {
            self.failed += 1;
            println!("contract: {what} ok=false");
        }
    }

    fn equal<T: PartialEq + core::fmt::Debug>(&mut self, what: &str, got: T, want: T) {
        let ok = got == want;
        if !ok {
            println!("contract: {what}: got {got:?}, want {want:?}");
        }
        self.holds(what, ok);
    }
}

/// Addresses that no program may use: of no page, of the reference kernel, of nobody, not canonical, and the last ones.
const WILD: [u64; 6] = [8, 0x4010_0000, 0x7f_ffff_f000, 1 << 47, 0xffff_8000_0000_0000, u64::MAX - 4];

/// The numbers of the calls that are made with impossible arguments: all that take an address, and some more.
const CALLS: [u64; 21] = [0, 1, 2, 3, 8, 10, 11, 13, 14, 22, 33, 35, 53, 59, 61, 62, 158, 228, 293, 333, 511];

/// Runs all checks.
pub fn main(_: Arguments) -> u64 {
    let mut checks = Checks { run: 0, failed: 0 };
    for part in [identity, memory, files, pipes, children, signals, ignored, registers, faults, wild] {
        part(&mut checks);
    }
    let Checks { run, failed } = checks;
    println!("contract: run={run} failed={failed}");
    u64::from(failed > 0)
}

/// The status of a child that does that.
fn child(f: impl FnOnce()) -> u32 {
    match sys::fork() {
        Ok(0) => {
            f();
            sys::exit(0)
        }
        Ok(child) => sys::wait(child, 0).map_or(u32::MAX, |(_, status)| status),
        Err(_) => u32::MAX,
    }
}

fn identity(checks: &mut Checks) {
    let own = sys::pid();
    checks.holds("getpid", own > 0);
    checks.equal("getppid", child(|| sys::exit(u64::from(sys::parent() != own))), 0);
    checks.equal("no such call", sys::call(9999, []), Err(38));
    let before = sys::now();
    checks.equal("nanosleep", sys::sleep(3_000_000), Ok(0));
    checks.holds("it slept", sys::now() - before >= 3_000_000);
    checks.equal(
        "nanosleep of an impossible time",
        sys::sleep(1).and(sys::call(35, [[0, 1_u64 << 40].as_ptr() as u64, 0])),
        Err(22),
    );
    checks.equal("sched_yield", sys::call(24, []), Ok(0));
    checks.equal("clock_gettime of no clock", sys::call(228, [77, [0_u64; 2].as_mut_ptr() as u64]), Err(22));
}

/// Reads and writes a word at an address in a child; its status.
fn touched(at: u64, write: bool) -> u32 {
    // SAFETY: only the child can be harmed.
    child(|| unsafe {
        if write { (at as *mut u64).write_volatile(1) } else { drop((at as *const u64).read_volatile()) }
    })
}

fn memory(checks: &mut Checks) {
    let both = sys::READ | sys::WRITE;
    let Ok(at) = sys::map(8 << 12, both) else { return checks.holds("mmap", false) };
    // SAFETY: it was just mapped, with that size.
    let words = unsafe { core::slice::from_raw_parts_mut(at as *mut u64, 8 * 512) };
    checks.holds("mmap gives zeroes", words.iter().all(|word| *word == 0));
    words.fill(5);
    checks.equal("a child's stores are its own", child(|| words.fill(6)), 0);
    checks.holds("and not its parent's", words.iter().all(|word| *word == 5));
    checks.equal("mprotect", sys::protect(at, 4096, sys::READ), Ok(0));
    checks.equal("a store to what may be read", touched(at, true), sys::SIGSEGV as u32);
    checks.equal("a load from it", (touched(at, false), words[0]), (0, 5));
    checks.equal("mprotect back", sys::protect(at, 4096, both), Ok(0));
    checks.equal("a store again", touched(at, true), 0);
    words[0] = 7;
    checks.equal("mprotect where nothing is", sys::protect(at, 1 << 29, both).is_err(), true);
    checks.equal("mprotect of half a page", sys::protect(at + 8, 4096, both), Err(22));
    checks.equal("munmap of the middle", sys::unmap(at + 4096, 4096), Ok(0));
    checks.equal("it is gone", touched(at + 4096, false), sys::SIGSEGV as u32);
    checks.equal("what is beside it is not", (touched(at, false), touched(at + 8192, false)), (0, 0));
    checks.equal("munmap of nothing", sys::unmap(at + 4096, 4096), Ok(0));
    checks.equal("munmap of half a page", sys::unmap(at + 1, 4096), Err(22));
    checks.equal("mmap of nothing", sys::map(0, both), Err(22));
    checks.equal("munmap", sys::unmap(at, 8 << 12), Ok(0));
    let end = sys::call(12, [0]).unwrap_or(0);
    checks.equal("brk", sys::call(12, [end + 0x5000]), Ok(end + 0x5000));
    checks.equal("the heap", touched(end + 0x4ff8, true), 0);
    checks.equal("brk back", sys::call(12, [end]), Ok(end));
    checks.equal("a stack grows", child(|| sys::exit(u64::from(deep(4000) != 4000))), 0);
}

#[inline(never)]
fn deep(n: u64) -> u64 {
    let room = core::hint::black_box([1_u64; 64]);
    if n == 0 { 0 } else { deep(n - 1) + room[(n % 64) as usize] }
}

fn files(checks: &mut Checks) {
    let mut part = [1; 8];
    let Ok(zero) = sys::open("/dev/zero") else { return checks.holds("open", false) };
    checks.equal("read", (sys::read(zero, &mut part), part), (Ok(8), [0; 8]));
    checks.equal("open of nothing", sys::open("/no/such/file"), Err(2));
    let Ok(null) = sys::open_to_write("/dev/null") else { return checks.holds("open to write", false) };
    checks.equal("write", sys::write(null, b"abc"), Ok(3));
    checks.equal("dup2", sys::duplicate(zero, 20), Ok(20));
    checks.equal("read of the copy", sys::read(20, &mut part), Ok(8));
    checks.equal("close", (sys::close(20), sys::close(20)), (Ok(0), Err(9)));
    let own = sys::open("/proc/self/exe").unwrap_or(u64::MAX);
    checks.equal("a file", (sys::read(own, &mut part), &part[..4]), (Ok(8), &b"\x7fELF"[..]));
    checks.equal("lseek", sys::call(8, [own, 1, 0]), Ok(1));
    checks.equal("its position", (sys::read(own, &mut part), &part[..3]), (Ok(8), &b"ELF"[..]));
    checks.equal("is shared with a child", child(|| drop(sys::read(own, &mut [0; 8]))), 0);
    checks.equal("and moves with it", sys::call(8, [own, 0, 1]), Ok(17));
    checks.equal("lseek before the start", sys::call(8, [own, 1_u64.wrapping_neg(), 0]), Err(22));
    checks.equal("write to what is not open to write", sys::write(own, b"x"), Err(9));
    for file in [zero, null, own] {
        checks.equal("close of each", sys::close(file), Ok(0));
    }
    checks.equal("read of nothing", sys::read(99, &mut part), Err(9));
}

fn pipes(checks: &mut Checks) {
    let Ok([from, to]) = sys::pipe() else { return checks.holds("pipe", false) };
    let mut part = [0; 8];
    checks.equal("write to a pipe", sys::write(to, b"abcdef"), Ok(6));
    checks.equal("read of some", (sys::read(from, &mut part[..2]), &part[..2]), (Ok(2), &b"ab"[..]));
    checks.equal("read of the rest", (sys::read(from, &mut part), &part[..4]), (Ok(4), &b"cdef"[..]));
    checks.equal("read from the end to write", sys::read(to, &mut part), Err(9));
    checks.equal("close of the end to write", sys::close(to), Ok(0));
    checks.equal("close of the end to read", sys::close(from), Ok(0));
}

fn children(checks: &mut Checks) {
    checks.equal("exit code", child(|| sys::exit(42)), 42 << 8);
    checks.equal("no children", sys::wait(u64::MAX, 0), Err(sys::ECHILD));
    let Ok([from, to]) = sys::pipe() else { return checks.holds("pipe", false) };
    match sys::fork() {
        Ok(0) => {
            let _ = sys::close(to);
            let _ = sys::read(from, &mut [0]);
            sys::exit(3)
        }
        Ok(pid) => {
            checks.equal("WNOHANG", sys::wait(pid, 1), Ok((0, 0)));
            let _ = sys::close(to);
            checks.equal("end of a pipe", sys::wait(pid, 0), Ok((pid, 3 << 8)));
        }
        Err(_) => checks.holds("fork", false),
    }
    let _ = sys::close(from);
    let run = |arguments: &[&str]| {
        child(|| {
            sys::execute("/proc/self/exe", arguments);
            sys::exit(99)
        })
    };
    checks.equal("execve", (run(&["true"]), run(&["false"])), (0, 1 << 8));
    checks.equal("execve of nothing", sys::execute("/no/such/file", &["x"]), 2);
    // A reader and a writer that do not fit into the pipe at once.
    let Ok([from, to]) = sys::pipe() else { return checks.holds("pipe", false) };
    if sys::fork() == Ok(0) {
        let _ = sys::close(from);
        let all = (0..64).all(|_| sys::write_all(to, &[9; 4096]).is_ok());
        sys::exit(u64::from(!all));
    }
    let _ = sys::close(to);
    let mut part = [0; 1000];
    let (mut sum, mut right) = (0, true);
    while let Ok(count @ 1..) = sys::read(from, &mut part) {
        sum += count;
        right &= part[..count as usize].iter().all(|byte| *byte == 9);
    }
    checks.equal("more than a pipe holds", (sum, right), (64 * 4096, true));
    checks.holds("its writer", matches!(sys::wait(u64::MAX, 0), Ok((_, 0))));
    let _ = sys::close(from);
}

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn note(signal: u64, _: *const u8, _: *mut u8) {
    SEEN.store(SEEN.load(Ordering::Relaxed) * 100 + signal, Ordering::Relaxed);
}

fn signals(checks: &mut Checks) {
    let own = sys::pid();
    SEEN.store(0, Ordering::Relaxed);
    checks.equal("sigaction", sys::handle(sys::SIGUSR1, note, 0), Ok(0));
    let floats = core::hint::black_box([1.5_f64, 2.5, 3.5]);
    checks.equal("kill", (sys::kill(own, sys::SIGUSR1), SEEN.load(Ordering::Relaxed)), (Ok(0), sys::SIGUSR1));
    checks.equal("vector registers", floats.iter().sum::<f64>(), 7.5);
    let set = 1_u64 << (sys::SIGUSR1 - 1);
    let block = |how: u64| sys::call(14, [how, (&raw const set) as u64, 0, 8]);
    SEEN.store(0, Ordering::Relaxed);
    checks.equal("sigprocmask", block(0), Ok(0));
    let _ = sys::kill(own, sys::SIGUSR1);
    checks.equal("a blocked signal waits", SEEN.load(Ordering::Relaxed), 0);
    checks.equal("until it is not blocked", (block(1), SEEN.load(Ordering::Relaxed)), (Ok(0), sys::SIGUSR1));
    checks.equal("sigaction of SIGKILL", sys::handle(sys::SIGKILL, note, 0), Err(22));
    checks.equal("kill of nobody", sys::kill(99_999_999, 0), Err(3));
    checks.equal("signal 65", sys::kill(own, 65), Err(22));
    checks.equal(
        "ended by a signal",
        child(|| drop(sys::kill(sys::pid(), sys::SIGKILL))),
        sys::SIGKILL as u32,
    );
    checks.equal("a signal ends a sleep", interrupted_sleep(note, 0), 0);
    checks.equal("whatever the flags", interrupted_sleep(note, sys::SA_RESTART), 0);
    checks.equal("a handler sleeps itself", interrupted_sleep(sleep_and_note, sys::SA_RESTART), 0);
    checks.equal("ignored", sys::ignore(sys::SIGINT, true), Ok(0));
    checks.equal("it has no effect", sys::kill(own, sys::SIGINT), Ok(0));
}

extern "C" fn sleep_and_note(signal: u64, info: *const u8, context: *mut u8) {
    if sys::sleep(1_000_000) == Ok(0) {
        note(signal, info, context);
    }
}

/// The status of a child whose sleep is interrupted by a signal with that handler: 0 if it was told so.
fn interrupted_sleep(handler: sys::Handler, flags: u64) -> u32 {
    SEEN.store(0, Ordering::Relaxed);
    child(|| {
        let _ = sys::handle(sys::SIGUSR1, handler, flags);
        let parent = sys::pid();
        if sys::fork() == Ok(0) {
            // As often as it takes: the first one may come before the sleep begins.
            while sys::parent() == parent {
                let _ = (sys::sleep(5_000_000), sys::kill(parent, sys::SIGUSR1));
            }
            sys::exit(0);
        }
        let slept = sys::sleep(20_000_000_000);
        let noted = SEEN.load(Ordering::Relaxed);
        sys::exit(u64::from(slept != Err(sys::EINTR) || noted == 0));
    })
}

/// A signal that waits and is ignored by then has no effect.
fn ignored(checks: &mut Checks) {
    let after = |signal: u64, ignored: bool| {
        child(|| {
            let set = 1_u64 << (signal - 1);
            let block = |how: u64| sys::call(14, [how, (&raw const set) as u64, 0, 8]);
            let _ = (sys::handle(signal, note, 0), block(0));
            let _ = sys::kill(sys::pid(), signal);
            let _ = (sys::ignore(signal, ignored), block(1));
        })
    };
    checks.equal("a signal that is ignored when it is unblocked", after(sys::SIGUSR1, true), 0);
    checks.equal("one that is ignored by default", after(sys::SIGCHLD, false), 0);
    checks.equal("one that is not", after(sys::SIGUSR1, false), sys::SIGUSR1 as u32);
}

/// Returns from the handler to where no code can be.
extern "C" fn astray(_: u64, _: *const u8, context: *mut u8) {
    // SAFETY: as in `skip`.
    unsafe { context.add(40 + 16 * 8).cast::<u64>().write_unaligned(1 << 47) };
}

/// Registers that a program may have, and that the kernel must not be harmed by.
fn registers(checks: &mut Checks) {
    let nested = child(|| {
        // SAFETY: NT has no effect on what a program does.
        unsafe { core::arch::asm!("pushfq", "or qword ptr [rsp], 1 << 14", "popfq") };
        sys::exit(u64::from(sys::pid() == 0));
    });
    checks.equal("a call with RFLAGS.NT", nested, 0);
    let handler = child(|| {
        let _ = sys::handle_at(sys::SIGUSR1, 1 << 63, 0);
        let _ = sys::kill(sys::pid(), sys::SIGUSR1);
    });
    checks.equal("a handler at no address", handler, sys::SIGSEGV as u32);
    let returned = child(|| {
        let _ = sys::handle(sys::SIGUSR1, astray, 0);
        let _ = sys::kill(sys::pid(), sys::SIGUSR1);
    });
    checks.equal("a handler that returns to no address", returned, sys::SIGSEGV as u32);
    checks.equal("each process has its own bases", child(bases_of_two), 0);
}

/// Parent and child have the same base; the parent loads another one with a selector, and then the child runs.
fn bases_of_two() {
    const SET_FS: u64 = 0x1002;
    let word = core::hint::black_box(77_u64);
    let Ok([from, to]) = sys::pipe() else { sys::exit(2) };
    let _ = sys::call(158, [SET_FS, (&raw const word) as u64]);
    match sys::fork() {
        Ok(0) => {
            let _ = sys::read(from, &mut [0]);
            let got: u64;
            // SAFETY: the base is the address of `word`; if it is not, only the child ends.
            unsafe { core::arch::asm!("mov {}, fs:[0]", out(reg) got, options(nostack, readonly)) };
            sys::exit(u64::from(got != word));
        }
        Ok(pid) => {
            // SAFETY: nothing here uses FS.
            unsafe { core::arch::asm!("mov {0:e}, ss", "mov fs, {0:e}", out(reg) _, options(nostack)) };
            let _ = sys::write(to, b"x");
            sys::exit(sys::wait(pid, 0).map_or(3, |(_, status)| status.into()));
        }
        Err(_) => sys::exit(4),
    }
}

/// Leaves the place of a fault for the function at the end of `faults`.
extern "C" fn skip(signal: u64, info: *const u8, context: *mut u8) {
    // SAFETY: a `siginfo_t`, whose address is at 16, and a `ucontext`, whose RIP is the seventeenth register from 40.
    unsafe {
        let address = info.add(16).cast::<u64>().read_unaligned();
        SEEN.store(address + signal, Ordering::Relaxed);
        context.add(40 + 16 * 8).cast::<u64>().write_unaligned(leave as *const () as u64);
    }
}

extern "C" fn leave() -> ! {
    sys::exit(SEEN.load(Ordering::Relaxed) - WILD[1] + 1)
}

fn faults(checks: &mut Checks) {
    let caught = child(|| {
        let _ = sys::handle(sys::SIGSEGV, skip, 0);
        // SAFETY: the handler leaves for another place.
        unsafe { (WILD[1] as *mut u8).write_volatile(1) };
    });
    checks.equal("SIGSEGV with its address", caught, (sys::SIGSEGV as u32 + 1) << 8);
    // SAFETY: the child ends.
    checks.equal("SIGILL", child(|| unsafe { core::arch::asm!("ud2") }), 4);
    // SAFETY: as above.
    checks.equal(
        "a privileged instruction",
        child(|| unsafe { core::arch::asm!("cli") }),
        sys::SIGSEGV as u32,
    );
    let divide = child(|| {
        // SAFETY: as above.
        unsafe { core::arch::asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _) };
    });
    checks.equal("SIGFPE", divide, 8);
    for address in &WILD[..4] {
        checks.equal("a load from where nothing is", touched(*address, false), sys::SIGSEGV as u32);
        checks.equal("a store there", touched(*address, true), sys::SIGSEGV as u32);
    }
}

/// No pointer makes the kernel fault, or read or write what is not the program's.
fn wild(checks: &mut Checks) {
    let Ok([from, to]) = sys::pipe() else { return checks.holds("pipe", false) };
    for address in WILD {
        checks.equal("write from a wild address", sys::call(1, [to, address, 16]), Err(sys::EFAULT));
        let _ = sys::write(to, b"x");
        let read = sys::call(0, [from, address, 16]);
        checks.equal("read to a wild address", read, Err(sys::EFAULT));
        checks.equal("open of a wild path", sys::call(2, [address, 0, 0]), Err(sys::EFAULT));
        checks.equal("clock_gettime to one", sys::call(228, [1, address]), Err(sys::EFAULT));
        checks.equal("nanosleep from one", sys::call(35, [address, 0]), Err(sys::EFAULT));
        checks.equal("sigaction from one", sys::call(13, [sys::SIGUSR1, address, 0, 8]), Err(sys::EFAULT));
        checks.equal("execve of one", sys::call(59, [address, 0, 0]), Err(sys::EFAULT));
        checks.equal("pipe to one", sys::call(22, [address]), Err(sys::EFAULT));
    }
    let mut kept = [0; 8];
    checks.equal(
        "what could not be read is there",
        (sys::read(from, &mut kept), kept),
        (Ok(6), *b"xxxxxx\0\0"),
    );
    // Anything: a child that makes such calls may fail at all of them, and nothing else happens.
    let survived = child(|| {
        for number in CALLS {
            for (i, one) in WILD.iter().enumerate() {
                let other = WILD[(i * 5 + number as usize) % WILD.len()];
                // Where Linux has page tables of five levels, it unmaps as much as that: all of the program.
                let is_everything = number == 11 && other == 1 << 47;
                if number != 1 && number != 62 && !is_everything {
                    let _ = sys::call(number, [*one, other, 8, *one, 8, other]);
                }
            }
        }
    });
    checks.equal("calls of any kind", survived, 0);
    let _ = (sys::close(from), sys::close(to));
}
