//! A guest with state of every kind, to be saved and restored: `vcpus=N` on the command line says how many it has.
//!
//! Each vCPU has a timer that goes on. What is typed is counted; `t` waits until each vCPU's timer has fired a few more
//! times, `u` has a program make system calls, and `q` ends the guest. Each answer says whether time went on and what
//! was kept in memory and registers.

use core::arch::{asm, naked_asm};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use paravane_abi::virq::VIRQ_TIMER;
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::sched::yield_now;
use paravane_guest::hypercall::vcpu::set_timer;
use paravane_guest::memory::Pfn;
use paravane_guest::paging::{BootFrames, Mmu, PageFlags};
use paravane_guest::smp::{self, MAX_VCPUS};
use paravane_guest::user::{Left, UserContext, UserMode, UserSpace};
use paravane_guest::{Boot, console, power, println, time, trap};

const STACK: usize = 16 << 10;
/// Nanoseconds from one tick to the next.
const PERIOD: u64 = 1_000_000;
const MORE: u64 = 5;
/// What a vector register holds for as long as the guest lives.
const MARK: u64 = 0x1234_5678_9abc_def0;

static mut STACKS: [[MaybeUninit<u8>; STACK]; MAX_VCPUS] = [[MaybeUninit::uninit(); STACK]; MAX_VCPUS];
/// Ticks, by vCPU.
static TICKS: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];
/// A tick came before its time, or the clock went back.
static WRONG: AtomicU64 = AtomicU64::new(0);
static LAST: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];

/// The kernel of `snapshot`.
pub fn main(boot: Boot) -> ! {
    let vcpus: u32 = boot.cmdline().get("vcpus").and_then(|n| n.parse().ok()).unwrap_or(1);
    let ready = trap::install().is_ok() && event::install().is_ok();
    let started = (1..vcpus).filter(|vcpu| start(&boot, *vcpu)).count() as u32;
    if let Some(port) = console::port() {
        event::handle(port, |_| ());
    }
    begin_to_tick();
    event::enable();
    println!("ready: {ready}, {} vCPUs, year {}", started + 1, time::wall_clock().0 / 31_556_952 + 1970);
    let mut program = (vcpus == 1).then(|| Program::new(&boot)).flatten();
    let mut count = 0u64;
    loop {
        let mut typed = [0; 1];
        event::disable();
        if console::read(&mut typed) == 0 {
            // What is pending ends it at once. A PV domain is never refused.
            let _ = block_with_mark();
            continue;
        }
        event::enable();
        count += 1;
        match typed {
            [b't'] => {
                let before = TICKS.each_ref().map(|ticks| ticks.load(SeqCst));
                let ticked = |vcpu: usize| TICKS[vcpu].load(SeqCst) >= before[vcpu] + MORE;
                while !(0..vcpus as usize).all(ticked) {
                    yield_now();
                }
                println!("ticked, byte {count}, wrong {}", WRONG.load(SeqCst));
            }
            [b'u'] => {
                let calls = program.as_mut().map_or(0, Program::calls);
                println!("{calls} calls, byte {count}");
            }
            [b'q'] => power::power_off(),
            [byte] => println!("{} is byte {count}", byte as char),
        }
    }
}

/// A program that calls its kernel without end, and what runs it.
struct Program {
    user: UserMode,
    mmu: Mmu<'static>,
    space: UserSpace,
    context: UserContext,
}

impl Program {
    fn new(boot: &Boot) -> Option<Self> {
        const CODE: u64 = 0x4010_0000;
        let mut mmu = boot.mmu();
        let [_, free] = boot.free_frames();
        let mapped = mmu.direct_map_end(Pfn(free.start)).0;
        // SAFETY: the frames are free, mapped, and used only by this source.
        let mut frames = unsafe { BootFrames::new(free.start..mapped) };
        let user = UserMode::install().ok()?;
        let space = UserSpace::new(&mut mmu, &mut frames).ok()?;
        let code = space.map_new(&mut mmu, &mut frames, CODE, PageFlags::empty()).ok()?;
        // SAFETY: to a frame that was just taken, the few bytes of the program.
        unsafe { (calling as *const () as *const u8).copy_to(mmu.memory().va(code) as *mut u8, 16) };
        mmu.flush().ok()?;
        Some(Self { user, mmu, space, context: UserContext::new(CODE, CODE) })
    }

    /// Has it call some times; how often it has in its life, as it counts itself.
    fn calls(&mut self) -> u64 {
        let mut left = 100;
        while left > 0 {
            match self.user.run(&mut self.mmu, &self.space, &mut self.context) {
                Ok(Left::Syscall) => left -= 1,
                Ok(Left::Interrupted) => {}
                _ => return 0,
            }
        }
        self.context.registers.rbx
    }
}

#[unsafe(naked)]
unsafe extern "C" fn calling() {
    naked_asm!("2: inc rbx", "syscall", "jmp 2b")
}

fn start(boot: &Boot, vcpu: u32) -> bool {
    let stacks = &raw mut STACKS;
    // SAFETY: each stack is handed out once: every vCPU is started once.
    let stack = unsafe { &mut (*stacks)[vcpu as usize] };
    smp::start(boot.memory(), vcpu, boot.root(), stack, other).is_ok()
}

fn other(_: u32) -> ! {
    begin_to_tick();
    loop {
        event::disable();
        let _ = block_with_mark();
    }
}

/// Waits for an event; a vector register that nothing here uses must be the same afterwards.
fn block_with_mark() -> bool {
    let before: u64;
    // SAFETY: sets and reads a vector register.
    unsafe { asm!("movq xmm15, {}", in(reg) MARK, out("xmm15") _) };
    let blocked = event::block().is_ok();
    // SAFETY: as above; a handler saves what it uses.
    unsafe { asm!("movq {}, xmm15", out(reg) before) };
    if before != MARK {
        WRONG.fetch_add(1, SeqCst);
    }
    blocked
}

fn begin_to_tick() {
    if event::handle_virq(VIRQ_TIMER, on_timer).is_err() || set_timer(time::now() + PERIOD).is_err() {
        WRONG.fetch_add(1, SeqCst);
    }
}

fn on_timer(_: Port) {
    let (vcpu, now) = (smp::id() as usize, time::now());
    if LAST[vcpu].swap(now, SeqCst) > now || set_timer(now + PERIOD).is_err() {
        WRONG.fetch_add(1, SeqCst);
    }
    TICKS[vcpu].fetch_add(1, SeqCst);
}
