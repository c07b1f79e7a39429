//! The exits of a kernel at CPL 0, on a processor that does what the test says. Needs no KVM.

use proptest::prelude::*;

use super::*;
use crate::bare::platform::virtio_mmio;
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::ledger::PortDevice;
use crate::machine::console::{CaptureSink, ConsoleInput};
use crate::machine::kick::Kick;
use crate::machine::memory::{Backing, Mfn};
use crate::virtio::entropy::Entropy;

struct NoKick;

impl Kick for NoKick {
    fn kick(&self) {}
    fn arm(&self, _: u64) {}
}

/// A processor that leaves the guest as the test says, and notes what it is given.
#[derive(Default)]
struct Fake {
    exits: Vec<Exit>,
    written: Vec<u8>,
    answered: Vec<u8>,
    started_at: Option<u64>,
    takes_interrupts: bool,
    in_shadow: bool,
    interrupts: Vec<u8>,
    wants_window: bool,
    lines: Vec<(u8, bool)>,
}

impl Ring0 for Fake {
    fn start(&mut self, cr3: u64) -> Result<(), &'static str> {
        self.started_at = Some(cr3);
        Ok(())
    }
    fn written(&self) -> &[u8] {
        &self.written
    }
    fn answer(&mut self, bytes: &[u8]) {
        self.answered = bytes.to_vec();
    }
    fn in_shadow(&mut self) -> bool {
        self.in_shadow
    }
    fn takes_interrupts(&mut self) -> bool {
        self.takes_interrupts
    }
    fn interrupt(&mut self, vector: u8) -> Result<(), &'static str> {
        self.interrupts.push(vector);
        Ok(())
    }
    fn request_window(&mut self, wanted: bool) {
        self.wants_window = wanted;
    }
    fn set_line(&mut self, line: u8, high: bool) -> Result<(), &'static str> {
        self.lines.push((line, high));
        Ok(())
    }
}

impl Cpu for Fake {
    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        _: &MachineMemory,
    ) -> Result<(), &'static str> {
        space.caught_up(log);
        Ok(())
    }
    fn enter(&mut self, _: &mut Regs, _: &VcpuSpace, _: &MachineMemory) -> Exit {
        self.exits.pop().unwrap_or(Exit::Kick)
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(NoKick)
    }
    fn save(&mut self) -> Result<VectorState, BadState> {
        Err(BadState::Refused)
    }
    fn load(&mut self, _: &VectorState) -> Result<(), BadState> {
        Err(BadState::Refused)
    }
    fn debug(&mut self, _: &Breakpoints) -> Result<(), NoBreakpoints> {
        Err(NoBreakpoints::Refused)
    }
    fn ring0(&mut self) -> Option<&mut dyn Ring0> {
        Some(self)
    }
}

fn guest(irqchip: Irqchip) -> (HvmGuest, CaptureSink) {
    let memory = Arc::new(MachineMemory::new(0, 1, Backing::Anonymous).unwrap());
    let kick: Arc<dyn Kick> = Arc::new(NoKick);
    let virtio = VirtioMmio::new(vec![Box::new(Entropy)], &memory, &kick).unwrap();
    let sink = CaptureSink::default();
    let log = TableLog::default();
    let space = VcpuSpace::new(Mfn(0), &log);
    let guest = HvmGuest {
        memory,
        platform: Platform::new(Box::new(sink.clone()), ConsoleInput::default()).with_virtio(virtio),
        irqchip,
        regs: Regs::default(),
        start: Some(0x5000),
        halted: false,
        shadow: Shadow::None,
        transfer: Transfer { bytes: Box::new([0; MAX_BYTES]), len: 0, answers: false },
        clock: Clock::new(1_000_000, 0),
        ledger: Ledger::new(),
        end: None,
        log,
        space,
    };
    (guest, sink)
}

/// One exit: the guest leaves for `exit`, having written `written`.
fn exit(guest: &mut HvmGuest, cpu: &mut Fake, exit: Exit, written: &[u8]) -> Handled {
    cpu.exits.push(exit);
    cpu.written = written.to_vec();
    let left = guest.enter(cpu);
    guest.handle(left)
}

fn out(port: u16, size: u8, bytes: usize) -> Exit {
    Exit::Port { port, size, bytes, write: true }
}

/// As a kernel does: vectors 32 to 47, all lines of the master open.
fn init_pic(guest: &mut HvmGuest, cpu: &mut Fake) {
    for (port, value) in [(0x20, 0x11), (0x21, 32), (0x21, 4), (0x21, 1), (0x21, 0)] {
        exit(guest, cpu, out(port, 1, 1), &[value]);
    }
}

/// Has the timer count down once, from the least, and waits for it.
fn expire_timer(guest: &mut HvmGuest, cpu: &mut Fake) {
    for (port, value) in [(0x43, 0x30), (0x40, 1), (0x40, 0)] {
        exit(guest, cpu, out(port, 1, 1), &[value]);
    }
    let due = guest.platform.next_deadline().unwrap();
    while guest.clock.now() < due {
        std::hint::spin_loop();
    }
}

#[test]
fn it_starts_once_with_its_own_table() {
    let (mut guest, _) = guest(Irqchip::Monitor);
    let mut cpu = Fake::default();
    assert_eq!(exit(&mut guest, &mut cpu, Exit::Kick, &[]).cause, Cause::Kick);
    assert_eq!(cpu.started_at.take(), Some(0x5000));
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert_eq!(cpu.started_at, None);
}

#[test]
fn ports_reach_the_devices_one_element_after_the_other() {
    let (mut guest, sink) = guest(Irqchip::Monitor);
    let mut cpu = Fake::default();
    let handled = exit(&mut guest, &mut cpu, out(0x3f8, 1, 5), b"hello");
    assert_eq!(handled.cause, Cause::PortOut(PortDevice::Uart));
    assert_eq!(sink.text(), "hello");
    let status = Exit::Port { port: 0x3fd, size: 1, bytes: 2, write: false };
    assert_eq!(exit(&mut guest, &mut cpu, status, &[]).cause, Cause::PortIn(PortDevice::Uart));
    assert!(cpu.answered.is_empty(), "the answer comes with the next entry");
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert_eq!(cpu.answered, [0x60, 0x60]);
    cpu.answered.clear();
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert!(cpu.answered.is_empty(), "once");
}

#[test]
fn device_memory_reaches_the_virtio_registers() {
    let (mut guest, _) = guest(Irqchip::Monitor);
    let mut cpu = Fake::default();
    let read = Exit::Mmio { address: virtio_mmio::BASE, bytes: 4, write: false };
    let cause = exit(&mut guest, &mut cpu, read, &[]).cause;
    assert_eq!(cause.to_string(), "mmio read virtio MagicValue");
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert_eq!(cpu.answered, b"virt");
}

#[test]
fn marks_and_ends_are_told() {
    let (mut g, _) = guest(Irqchip::Monitor);
    let mut cpu = Fake::default();
    assert_eq!(exit(&mut g, &mut cpu, out(0x80, 1, 1), &[2]).mark, Some(2));
    assert!(matches!(g.prepare(), Next::Run(_)));
    exit(&mut g, &mut cpu, out(0x604, 2, 2), &[0, 0x20]);
    assert_eq!((g.end(), g.prepare()), (DomainEnd::PowerOff, Next::End));
    for (left, words) in
        [(Exit::Shutdown, "triple fault"), (Exit::Dead("lost"), "lost"), (Exit::Syscall, "bug in Paravane")]
    {
        let (mut g, _) = guest(Irqchip::Monitor);
        assert_eq!(exit(&mut g, &mut cpu, left, &[]).cause, Cause::Dead);
        assert!(g.end().to_string().contains(words), "{}", g.end());
    }
}

#[test]
fn an_interrupt_waits_until_the_guest_takes_it() {
    let (mut guest, _) = guest(Irqchip::Monitor);
    let mut cpu = Fake::default();
    init_pic(&mut guest, &mut cpu);
    assert!(!cpu.wants_window);
    expire_timer(&mut guest, &mut cpu);
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert_eq!((cpu.wants_window, &*cpu.interrupts), (true, &[][..]));
    cpu.takes_interrupts = true;
    assert_eq!(exit(&mut guest, &mut cpu, Exit::Window, &[]).cause, Cause::InterruptWindow);
    assert_eq!((cpu.wants_window, &*cpu.interrupts), (false, &[32][..]));
}

/// A guest that was left between STI and HLT, with an interrupt waiting; and its RIP.
fn left_in_a_shadow() -> (HvmGuest, Fake) {
    let (mut guest, _) = guest(Irqchip::Monitor);
    let mut cpu = Fake::default();
    init_pic(&mut guest, &mut cpu);
    expire_timer(&mut guest, &mut cpu);
    (guest.regs.rip, cpu.in_shadow) = (0x1000, true);
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    cpu.in_shadow = false;
    (guest, cpu)
}

#[test]
fn an_interrupt_comes_as_soon_as_the_shadow_is_over() {
    let (mut guest, mut cpu) = left_in_a_shadow();
    guest.regs.rip = 0x1001;
    exit(&mut guest, &mut cpu, Exit::Window, &[]);
    cpu.takes_interrupts = true;
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert_eq!(cpu.interrupts, [32]);
}

/// The window opens where the guest was left in the shadow, which no processor does. The interrupt must wake the guest
/// from its HLT, and not come before it.
#[test]
fn a_shadow_that_is_forgotten_is_kept() {
    let (mut guest, mut cpu) = left_in_a_shadow();
    exit(&mut guest, &mut cpu, Exit::Window, &[]);
    assert!(cpu.wants_window, "a processor opens it in time");
    cpu.takes_interrupts = true;
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert!(!cpu.wants_window && cpu.interrupts.is_empty());
    assert!(matches!(guest.prepare(), Next::Run(Some(_))), "it is not held back for ever");
    guest.regs.rip = 0x1001;
    exit(&mut guest, &mut cpu, Exit::Halt, &[]);
    guest.regs.rflags |= rflags::IF;
    assert!(cpu.interrupts.is_empty());
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert_eq!(cpu.interrupts, [32]);
}

/// As in a string instruction that a kernel executes in the shadow.
#[test]
fn no_interrupt_is_held_back_for_ever() {
    let (mut guest, mut cpu) = left_in_a_shadow();
    cpu.takes_interrupts = true;
    guest.shadow = Shadow::Forgotten(0x1000, 1);
    let entries = (0..20).take_while(|_| {
        exit(&mut guest, &mut cpu, Exit::Kick, &[]);
        cpu.interrupts.is_empty()
    });
    assert!(entries.count() < 10);
}

#[test]
fn a_halted_guest_waits_for_its_timer() {
    let (mut guest, _) = guest(Irqchip::Monitor);
    let mut cpu = Fake { takes_interrupts: true, ..Fake::default() };
    init_pic(&mut guest, &mut cpu);
    guest.regs.rflags |= rflags::IF;
    exit(&mut guest, &mut cpu, Exit::Halt, &[]);
    assert_eq!(guest.prepare(), Next::Wait(None), "nothing is going to wake it but input");
    expire_timer(&mut guest, &mut cpu);
    assert!(matches!(guest.prepare(), Next::Run(_)));
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert_eq!(cpu.interrupts, [32]);
}

#[test]
fn a_halt_with_interrupts_off_is_the_end_that_trapped_kernels_have() {
    let (mut guest, _) = guest(Irqchip::Monitor);
    guest.regs.rip = 0x1235;
    exit(&mut guest, &mut Fake::default(), Exit::Halt, &[]);
    assert_eq!(guest.end(), halted_for_ever(0x1234));
}

#[test]
fn lines_go_to_the_host_kernels_controllers() {
    let (mut guest, _) = guest(Irqchip::Kernel);
    let mut cpu = Fake::default();
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert!(cpu.lines.contains(&(4, false)) && cpu.lines.iter().all(|(_, high)| !high));
    // The UART's "transmitter holding register empty" interrupt: IER bit 1.
    exit(&mut guest, &mut cpu, out(0x3f9, 1, 1), &[2]);
    exit(&mut guest, &mut cpu, Exit::Kick, &[]);
    assert!(cpu.lines.contains(&(4, true)));
    assert_eq!(guest.prepare(), Next::Run(None), "the host's kernel has the timer");
}

proptest! {
    /// Whatever the processor reports, the host goes on, and every read has an answer of its length.
    #[test]
    fn no_exit_takes_the_host_down(
        ports in proptest::collection::vec(
            (any::<u16>(), any::<u8>(), 0usize..9000, any::<bool>(), any::<u64>(), any::<[u8; 8]>()), 1..40)
    ) {
        let (mut guest, _) = guest(Irqchip::Monitor);
        let mut cpu = Fake { takes_interrupts: true, ..Fake::default() };
        for (port, size, bytes, write, address, data) in ports {
            exit(&mut guest, &mut cpu, Exit::Port { port, size, bytes, write }, &data);
            exit(&mut guest, &mut cpu, Exit::Mmio { address, bytes: bytes % 9, write }, &data);
            exit(&mut guest, &mut cpu, Exit::Kick, &[]);
            prop_assert!(write || cpu.answered.len() == bytes % 9);
            guest.end = None;
        }
    }
}
