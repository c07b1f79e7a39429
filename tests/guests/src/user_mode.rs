//! The SDK's user mode: programs are entered and left as they should be, and cannot reach their kernel.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use paravane_guest::abi::virq::VIRQ_TIMER;
use paravane_guest::paging::{BootFrames, Mmu, PageFlags};
use paravane_guest::user::{Left, UserContext, UserMode, UserSpace};
use paravane_guest::{Boot, event, power, time, trap};

use crate::suite::Suite;

/// Where programs are: an address that the kernel has something else at, if anything.
const CODE: u64 = 0x4010_0000;
/// A page that they may write to, and the one after it, which they may only read.
const DATA: u64 = 0x80_0000_0000;
/// A timer that takes the processor from an endless program.
const SOON: u64 = 2_000_000;
const PAGE_FAULT: u8 = 14;

static TICKS: AtomicU32 = AtomicU32::new(0);

struct Bench {
    suite: Suite,
    user: UserMode,
    mmu: Mmu<'static>,
    frames: BootFrames,
    space: UserSpace,
}

impl Bench {
    /// Runs a program with RDI as its argument until it is not interrupted.
    fn run(&mut self, program: unsafe extern "C" fn(), rdi: u64) -> (Left, UserContext) {
        let mut context = UserContext::new(CODE + offset(program), DATA + 0xff0);
        context.registers.rdi = rdi;
        let left = self.until_left(&mut context);
        (left, context)
    }

    fn until_left(&mut self, context: &mut UserContext) -> Left {
        loop {
            match self.user.run(&mut self.mmu, &self.space, context) {
                Ok(Left::Interrupted) => {}
                Ok(left) => return left,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A page fault of a program at `address`.
    fn faults(&mut self, name: &str, program: unsafe extern "C" fn(), address: u64) {
        let (left, context) = self.run(program, address);
        let by_page_fault = match left {
            Left::Fault { vector: PAGE_FAULT, address: at, .. } => at == address,
            // Not canonical, or the hypervisor's own.
            Left::Fault { vector: 13, .. } => address >> 47 != 0,
            _ => false,
        };
        self.suite.holds(name, by_page_fault);
        self.suite.equal("and-nothing-was-read", context.registers.rax, 0);
    }
}

/// The entry point of `user-mode`.
pub fn main(boot: Boot) -> ! {
    let installed = trap::install().and_then(|()| event::install());
    assert!(installed.is_ok(), "handlers: {installed:?}");
    let timer = event::handle_virq(VIRQ_TIMER, |_| {
        TICKS.fetch_add(1, Ordering::Relaxed);
    });
    assert!(timer.is_ok(), "timer: {timer:?}");
    let mut mmu = boot.mmu();
    let [_, free] = boot.free_frames();
    let mapped = mmu.direct_map_end(paravane_guest::memory::Pfn(free.start)).0;
    // SAFETY: the frames are free, mapped, and used only by this source.
    let mut frames = unsafe { BootFrames::new(free.start..mapped) };
    let user = UserMode::install().unwrap_or_else(|errno| panic!("user mode: {errno}"));
    let space = prepare(&mut mmu, &mut frames).unwrap_or_else(|error| panic!("{error}"));
    event::enable();
    let mut bench = Bench { suite: Suite::new(), user, mmu, frames, space };
    bench.suite.group("user-mode");
    calls(&mut bench);
    registers(&mut bench);
    bases(&mut bench);
    attacks(&mut bench, &boot);
    interruptions(&mut bench);
    pointers(&mut bench, &boot);
    let Bench { suite, mut user, mut mmu, mut frames, space } = bench;
    let gone = space.destroy(&mut user, &mut mmu, &mut frames, false);
    let mut suite = suite;
    suite.equal("tables-are-free", gone, Ok(()));
    suite.holds("once", UserMode::install().is_err());
    suite.finish("user-mode");
    power::power_off()
}

fn prepare(
    mmu: &mut Mmu<'static>,
    frames: &mut BootFrames,
) -> Result<UserSpace, paravane_guest::paging::PagingError> {
    let space = UserSpace::new(mmu, frames)?;
    let code = space.map_new(mmu, frames, CODE, PageFlags::empty())?;
    space.map_new(mmu, frames, DATA, PageFlags::DATA)?;
    space.map_new(mmu, frames, DATA + 0x1000, PageFlags::NO_EXECUTE)?;
    // SAFETY: all programs are in one page, which is copied to a frame that was just taken.
    unsafe {
        let to = mmu.memory().va(code) as *mut u8;
        (call as *const () as *const u8).copy_to(to, 4096);
    }
    mmu.flush()?;
    Ok(space)
}

fn calls(bench: &mut Bench) {
    let (left, mut context) = bench.run(call, 0);
    bench.suite.equal("system-call", (left, context.registers.rax), (Left::Syscall, 39));
    context.registers.rax = 77;
    let left = bench.until_left(&mut context);
    bench.suite.equal("its-answer", (left, context.registers.rbx), (Left::Syscall, 77));
    let (left, _) = bench.run(undefined, 0);
    bench.suite.equal("undefined", left, Left::Fault { vector: 6, error: 0, address: 0 });
    let (left, _) = bench.run(privileged, 0);
    bench.suite.equal("privileged", left, Left::Fault { vector: 13, error: 0, address: 0 });
}

/// All registers are a program's own, in both directions.
fn registers(bench: &mut Bench) {
    let mut context = UserContext::new(CODE + offset(invert), DATA + 0xff0);
    let all: [u64; 13] = core::array::from_fn(|i| 0x0101_0101_0101_0101 * (i as u64 + 1));
    let r = &mut context.registers;
    [r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r10, r.r9, r.r8, r.rax, r.rdx, r.rsi, r.rdi] = all;
    let mut image = [0_u8; 512];
    image.copy_from_slice(context.vectors.legacy());
    image[160..416].iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
    context.vectors.set_legacy(&image);
    let left = bench.until_left(&mut context);
    let r = context.registers;
    let found = [r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r10, r.r9, r.r8, r.rax, r.rdx, r.rsi, r.rdi];
    bench.suite.equal("registers", (left, found.map(|r| !r)), (Left::Syscall, all));
    bench.suite.holds("vector-registers", context.vectors.legacy()[160..416] == image[160..416]);
    // The kernel's own use of vector registers, and another program's, change nothing.
    let _ = bench.run(spoil, 0);
    let mut sum = [1.5_f64; 8];
    sum.iter_mut().enumerate().for_each(|(i, x)| *x *= core::hint::black_box(i as f64));
    context.registers.rip = CODE + offset(call);
    bench.until_left(&mut context);
    bench.suite.holds("vector-registers-later", context.vectors.legacy()[160..416] == image[160..416]);
    bench.suite.equal("kernels-own", core::hint::black_box(sum)[7], 10.5);
}

fn bases(bench: &mut Bench) {
    let mut context = UserContext::new(CODE + offset(through_bases), DATA + 0xff0);
    (context.fs_base, context.gs_base) = (DATA + 0x100, DATA + 0x200);
    let (fs, gs) = (DATA + 0x100, DATA + 0x200);
    for at in [fs, gs] {
        let written = bench.space.copy_to_user(&bench.mmu, at, &at.to_le_bytes());
        bench.suite.equal("copy-to", written, Ok(()));
    }
    let left = bench.until_left(&mut context);
    bench.suite.equal("bases", (left, context.registers.rax, context.registers.rbx), (Left::Syscall, fs, gs));
}

/// What a program must not be able to do to its kernel.
fn attacks(bench: &mut Bench, boot: &Boot) {
    let (left, _) = bench.run(store, DATA);
    bench.suite.equal("its-own-page", left, Left::Syscall);
    let kernel = main as *const () as u64;
    let stack = (&raw const *bench).addr() as u64;
    let table = bench.mmu.memory().va(boot.root());
    let shared = (&raw const TICKS).addr() as u64;
    for address in [kernel, stack, table, shared, boot.memory().virt_base(), 0, 1 << 46, (1 << 47) - 8] {
        bench.faults("read-of-the-kernel", load, address);
        bench.faults("write-to-the-kernel", store, address);
        bench.faults("jump-to-the-kernel", jump, address);
    }
    for address in [1 << 47, 0xffff_8000_0000_0000 + (1 << 40), u64::MAX - 4095] {
        bench.faults("write-above", store, address);
    }
    bench.faults("write-to-its-code", store, CODE);
    bench.faults("write-to-a-page-to-read", store, DATA + 0x1000);
    let (left, _) = bench.run(jump, DATA);
    let stopped = matches!(left, Left::Fault { vector: PAGE_FAULT, address: DATA, .. });
    bench.suite.holds("no-execution-of-data", stopped);
    let mut context = UserContext::new(CODE + offset(call), DATA + 0xff0);
    context.registers.rflags = u64::MAX;
    bench.until_left(&mut context);
    bench.suite.equal("no-flags-of-the-kernel", context.registers.rflags & 0x1a_7200, 0x200);
    let left = bench.until_left(&mut UserContext::new(1 << 47, 0));
    bench.suite.holds("no-address-at-all", matches!(left, Left::Fault { .. }));
}

fn interruptions(bench: &mut Bench) {
    for masked in [false, true] {
        if masked {
            event::disable();
        }
        let mut context = UserContext::new(CODE + offset(endless), DATA + 0xff0);
        let before = TICKS.load(Ordering::Relaxed);
        let set = time::set_timer(time::now() + SOON);
        let mut left = Ok(Left::Syscall);
        while TICKS.load(Ordering::Relaxed) == before {
            left = bench.user.run(&mut bench.mmu, &bench.space, &mut context);
        }
        bench.suite.equal("endless-program", (set, left), (Ok(()), Ok(Left::Interrupted)));
        bench.suite.equal("events-as-before", event::is_enabled(), !masked);
        event::enable();
    }
}

/// Pointers that a program could pass to its kernel.
fn pointers(bench: &mut Bench, boot: &Boot) {
    let Bench { suite, mmu, space, .. } = bench;
    let mut word = [0xaa; 8];
    let kernel = main as *const () as u64;
    let wild = [
        0,
        kernel,
        mmu.memory().va(boot.root()),
        DATA + 0x1ffc,
        1 << 47,
        0xffff_8000_0000_0000,
        u64::MAX - 2,
    ];
    for address in wild {
        suite.holds("wild-read", space.copy_from_user(mmu, address, &mut word).is_err());
        suite.holds("wild-write", space.copy_to_user(mmu, address, &word).is_err());
    }
    suite.holds("write-to-code", space.copy_to_user(mmu, CODE, &word).is_err());
    suite.equal("across-pages", space.copy_from_user(mmu, DATA + 0xffc, &mut word), Ok(()));
}

fn offset(program: unsafe extern "C" fn()) -> u64 {
    program as *const () as u64 - call as *const () as u64
}

// The page of programs: each is position-independent, and named by its symbol below.
global_asm!(
    ".pushsection .text.user_mode_programs, \"ax\", @progbits",
    ".p2align 12",
    ".globl user_call, user_undefined, user_privileged, user_invert, user_spoil, user_bases",
    ".globl user_load, user_store, user_jump, user_endless",
    "user_call: mov eax, 39",
    "syscall",
    "mov rbx, rax",
    "syscall",
    "user_undefined: ud2",
    "user_privileged: cli",
    "user_invert:",
    ".irp register, r15, r14, r13, r12, rbp, rbx, r10, r9, r8, rax, rdx, rsi, rdi",
    "not \\register",
    ".endr",
    "syscall",
    "user_spoil:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "pcmpeqb xmm\\n, xmm\\n",
    ".endr",
    // All exceptions of vector arithmetic unmasked.
    "mov dword ptr [rsp - 8], 0",
    "ldmxcsr [rsp - 8]",
    "syscall",
    "user_bases: mov rax, fs:[0]",
    "mov rbx, gs:[0]",
    "syscall",
    "user_load: xor eax, eax",
    "mov rax, [rdi]",
    "syscall",
    "user_store: xor eax, eax",
    "mov [rdi], rdi",
    "syscall",
    "user_jump: xor eax, eax",
    "jmp rdi",
    "user_endless: jmp user_endless",
    ".p2align 12",
    ".popsection",
);

// SAFETY: the symbols above, of which only the addresses are taken.
unsafe extern "C" {
    #[link_name = "user_call"]
    fn call();
    #[link_name = "user_undefined"]
    fn undefined();
    #[link_name = "user_privileged"]
    fn privileged();
    #[link_name = "user_invert"]
    fn invert();
    #[link_name = "user_spoil"]
    fn spoil();
    #[link_name = "user_bases"]
    fn through_bases();
    #[link_name = "user_load"]
    fn load();
    #[link_name = "user_store"]
    fn store();
    #[link_name = "user_jump"]
    fn jump();
    #[link_name = "user_endless"]
    fn endless();
}
