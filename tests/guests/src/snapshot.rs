//! A guest with state of every kind, to be saved and restored: `vcpus=N` on the command line says how many it has.
//!
//! Each vCPU has a timer that goes on. What is typed is counted; `t` waits until each vCPU's timer has fired a few more
//! times, and `q` ends the guest. Each answer says whether time went on and what was kept in memory and registers.

use core::arch::asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use paravane_abi::virq::VIRQ_TIMER;
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::sched::yield_now;
use paravane_guest::hypercall::vcpu::set_timer;
use paravane_guest::smp::{self, MAX_VCPUS};
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
            [b'q'] => power::power_off(),
            [byte] => println!("{} is byte {count}", byte as char),
        }
    }
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
