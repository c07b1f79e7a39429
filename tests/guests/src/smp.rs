//! Several vCPUs: `vcpus=N` on the command line says how many there should be.
//!
//! Only vCPU 0 prints. The others do what [`TASK`] says each time they are interrupted.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::errno::Errno;
use paravane_abi::mmu::{UVMF_ALL, UVMF_INVLPG};
use paravane_abi::pte;
use paravane_abi::trap::TRAP_PAGE_FAULT;
use paravane_abi::virq::VIRQ_TIMER;
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::sched::yield_now;
use paravane_guest::hypercall::trap::update_va_mapping;
use paravane_guest::hypercall::vcpu::{is_up, set_timer};
use paravane_guest::memory::Memory;
use paravane_guest::smp::{self, MAX_VCPUS, SpinLock, StartError};
use paravane_guest::{Boot, power, time, trap};

use crate::suite::Suite;

const STACK: usize = 16 << 10;
const ROUNDS: u32 = 100;
const INCREMENTS: u64 = 10_000;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: only reached by atomic accesses.
unsafe impl Sync for Page {}

static mut STACKS: [[MaybeUninit<u8>; STACK]; MAX_VCPUS] = [[MaybeUninit::uninit(); STACK]; MAX_VCPUS];
static PAGE: Page = Page(UnsafeCell::new([0; 4096]));

/// What each has received, by vCPU; its port; whether it was where it should be.
static RECEIVED: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];
static PORTS: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];
static WRONG_VCPU: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);
static TIMERS: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
static SUM: SpinLock<u64> = SpinLock::new(0);
static TASK: AtomicU32 = AtomicU32::new(task::ANSWER);
/// The page's stores go on; a store met a page that is read-only.
static STORES: AtomicBool = AtomicBool::new(false);
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Events of a port that moves, by vCPU.
static MOVED: [AtomicU32; MAX_VCPUS] = [const { AtomicU32::new(0) }; MAX_VCPUS];
static RESUMED: AtomicU32 = AtomicU32::new(0);

mod task {
    pub const ANSWER: u32 = 0;
    pub const COUNT: u32 = 1;
    pub const STORE: u32 = 2;
    pub const STOP: u32 = 3;
    pub const MOVE: u32 = 4;
}

/// The kernel of `smp`.
pub fn main(boot: Boot) -> ! {
    let wanted: u32 = boot.cmdline().get("vcpus").and_then(|n| n.parse().ok()).unwrap_or(1);
    let memory = boot.memory();
    let mut suite = Suite::new();
    suite.group("smp");
    suite.equal("traps", trap::install(), Ok(()));
    suite.equal("events", event::install(), Ok(()));
    trap::set_handler(TRAP_PAGE_FAULT, Some(on_page_fault));
    suite.equal("count", smp::count(), wanted);
    suite.equal("absent", is_up(wanted), Err(Errno::ENOENT));
    suite.equal("ipi-to-absent", event::bind_ipi(wanted), Err(Errno::ENOENT));
    let started = (1..wanted).filter(|vcpu| start(&boot, *vcpu) == Ok(())).count() as u32;
    suite.equal("started", started, wanted - 1);
    bind(0);
    event::enable();
    until(|| READY.load(SeqCst) == wanted - 1);
    if wanted > 1 {
        suite.equal("again", start(&boot, 1), Err(StartError::Started));
        suite.equal("up", is_up(1), Ok(true));
    }
    until(|| TIMERS.load(SeqCst) == wanted - 1);
    suite.equal("own-timers", TIMERS.load(SeqCst), wanted - 1);
    interrupts(&mut suite, wanted);
    locks(&mut suite, wanted);
    if wanted > 1 {
        shootdown(&mut suite, memory);
    }
    if wanted > 1 {
        moving(&mut suite);
    }
    stopping(&mut suite, wanted);
    suite.equal("right-vcpu", WRONG_VCPU.load(SeqCst), 0);
    if suite.finish("smp") { power::power_off() } else { power::crash() }
}

fn start(boot: &Boot, vcpu: u32) -> Result<(), StartError> {
    let stacks = &raw mut STACKS;
    // SAFETY: each stack is handed out once: a second start of the same vCPU is refused before it is used.
    let stack = unsafe { &mut (*stacks)[vcpu as usize] };
    smp::start(boot.memory(), vcpu, boot.root(), stack, other)
}

/// Makes the port by which `vcpu` is interrupted.
fn bind(vcpu: u32) {
    let Ok(port) = event::bind_ipi(vcpu) else { return };
    PORTS[vcpu as usize].store(port.0, SeqCst);
    event::handle(port, on_interrupt);
}

fn send(vcpu: u32) {
    let _ = event::send(Port(PORTS[vcpu as usize].load(SeqCst)));
}

/// Waits, and lets others run meanwhile.
fn until(what: impl Fn() -> bool) {
    while !what() {
        yield_now();
    }
}

/// A vCPU that is not the first.
fn other(vcpu: u32) -> ! {
    if smp::id() != vcpu {
        WRONG_VCPU.fetch_add(1, SeqCst);
    }
    smp::set_word(vcpu as usize + 1000);
    bind(vcpu);
    let timer = event::handle_virq(VIRQ_TIMER, on_timer);
    event::enable();
    if timer.is_ok() && set_timer(time::now() + 1_000_000).is_ok() {
        READY.fetch_add(1, SeqCst);
    }
    loop {
        // An interrupt between the look and the wait would be handled, and not end the wait.
        event::disable();
        match TASK.load(SeqCst) {
            task::STORE if vcpu == 1 && STORES.load(SeqCst) => {
                event::enable();
                store();
            }
            task::STOP => {
                event::enable();
                let _ = smp::stop();
                RESUMED.fetch_add(1, SeqCst);
            }
            // The hypervisor refuses no PV domain.
            _ => drop(event::block()),
        }
    }
}

fn on_timer(_: Port) {
    TIMERS.fetch_add(1, SeqCst);
}

fn on_interrupt(port: Port) {
    let id = smp::id() as usize;
    if PORTS[id].load(SeqCst) != port.0 || (id != 0 && smp::word() != id + 1000) {
        WRONG_VCPU.fetch_add(1, SeqCst);
    }
    RECEIVED[id].fetch_add(1, SeqCst);
    if id == 0 {
        return;
    }
    match TASK.load(SeqCst) {
        task::COUNT => {
            (0..INCREMENTS).for_each(|_| *SUM.lock() += 1);
            DONE.fetch_add(1, SeqCst);
        }
        task::ANSWER => send(0),
        _ => {}
    }
}

/// Each of the others is interrupted, and answers.
fn interrupts(suite: &mut Suite, wanted: u32) {
    let before = RECEIVED[0].load(SeqCst);
    for vcpu in 1..wanted {
        for round in 1..=ROUNDS {
            let answers = RECEIVED[0].load(SeqCst);
            send(vcpu);
            until(|| RECEIVED[vcpu as usize].load(SeqCst) == round && RECEIVED[0].load(SeqCst) > answers);
        }
    }
    suite.equal("answers", RECEIVED[0].load(SeqCst) - before, ROUNDS * (wanted - 1));
}

fn locks(suite: &mut Suite, wanted: u32) {
    TASK.store(task::COUNT, SeqCst);
    (1..wanted).for_each(send);
    (0..INCREMENTS).for_each(|_| *SUM.lock_without_events() += 1);
    until(|| DONE.load(SeqCst) == wanted - 1);
    suite.equal("sum", *SUM.lock(), u64::from(wanted) * INCREMENTS);
}

fn word() -> &'static AtomicU64 {
    // SAFETY: the page is aligned, and nothing refers to it in any other way.
    unsafe { &*PAGE.0.get().cast::<AtomicU64>() }
}

/// Stores to the page for as long as it is asked to.
fn store() {
    while STORES.load(SeqCst) {
        word().fetch_add(1, SeqCst);
    }
}

/// A store to the page while that is read-only: once it is not, it is made again.
fn on_page_fault(frame: &mut trap::TrapFrame) {
    let page = PAGE.0.get().addr() as u64;
    if frame.fault_address() & !4095 != page {
        panic!("a fault at {:#x}, rip {:#x}", frame.fault_address(), frame.rip);
    }
    FAULTS.fetch_add(1, SeqCst);
}

/// Once the page is read-only and that is known everywhere, no store comes any more.
fn shootdown(suite: &mut Suite, memory: Memory) {
    let va = PAGE.0.get().addr() as u64;
    let Some(mfn) = memory.pfn_at(va).and_then(|pfn| memory.mfn(pfn)) else { return };
    let entry = mfn.maddr() | pte::PRESENT | pte::USER | pte::ACCESSED | pte::DIRTY;
    let map = |flags| {
        // SAFETY: the page stays mapped to its frame, and only this test uses it.
        unsafe { update_va_mapping(va, entry | flags, UVMF_INVLPG | UVMF_ALL) }
    };
    STORES.store(true, SeqCst);
    TASK.store(task::STORE, SeqCst);
    send(1);
    let mut late = 0;
    for _ in 0..ROUNDS {
        let before = word().load(SeqCst);
        until(|| word().load(SeqCst) > before);
        if map(0).is_err() {
            break;
        }
        let still = word().load(SeqCst);
        let faults = FAULTS.load(SeqCst);
        until(|| FAULTS.load(SeqCst) > faults);
        late += u32::from(word().load(SeqCst) != still);
        if map(pte::RW).is_err() {
            break;
        }
    }
    STORES.store(false, SeqCst);
    suite.equal("late-stores", late, 0);
    suite.holds("faults", FAULTS.load(SeqCst) >= u64::from(ROUNDS));
}

/// A port that moves: its event is handled once, on the vCPU that has it, also if it was pending before.
fn moving(suite: &mut Suite) {
    TASK.store(task::MOVE, SeqCst);
    let Ok(end) = event::alloc_unbound(DOMID_SELF) else { return };
    let Ok(port) = event::bind_interdomain(DOMID_SELF, end) else { return };
    event::handle(end, on_moved);
    let seen = || [0, 1].map(|vcpu: usize| MOVED[vcpu].load(SeqCst));
    suite.equal("send-before", event::send(port), Ok(()));
    until(|| seen() == [1, 0]);
    event::disable();
    suite.equal("send-while-disabled", event::send(port), Ok(()));
    suite.equal("move", event::move_to(end, 1), Ok(()));
    event::enable();
    until(|| seen() == [1, 1]);
    suite.equal("send-after", event::send(port), Ok(()));
    until(|| seen() == [1, 2]);
    // The number is used again, by a port of this vCPU's.
    suite.equal("close", event::close(end), Ok(()));
    suite.equal("close-other", event::close(port), Ok(()));
    let Ok(again) = event::alloc_unbound(DOMID_SELF) else { return };
    let Ok(other) = event::bind_interdomain(DOMID_SELF, again) else { return };
    event::handle(again, on_moved);
    suite.equal("send-to-another", event::send(other), Ok(()));
    until(|| seen() == [2, 2]);
    suite.equal("moved", seen(), [2, 2]);
}

fn on_moved(_: Port) {
    MOVED[smp::id() as usize].fetch_add(1, SeqCst);
}

/// The others stop, and one of them goes on once more.
fn stopping(suite: &mut Suite, wanted: u32) {
    TASK.store(task::STOP, SeqCst);
    (1..wanted).for_each(send);
    until(|| (1..wanted).all(|vcpu| is_up(vcpu) == Ok(false)));
    suite.equal("all-down", (1..wanted).filter(|vcpu| is_up(*vcpu) == Ok(true)).count(), 0);
    if wanted > 1 {
        suite.equal("resume", smp::resume(1), Ok(()));
        until(|| RESUMED.load(SeqCst) > 0);
        suite.equal("resumed", RESUMED.load(SeqCst), 1);
    }
    suite.equal("resume-absent", smp::resume(wanted), Err(Errno::ENOENT));
}
