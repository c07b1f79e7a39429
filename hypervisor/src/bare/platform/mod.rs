//! The small PC that a bare kernel believes in: a UART, two interrupt controllers, a timer, power-off and reset.
//!
//! Ports, and virtio devices on the memory bus ([`virtio_mmio`]). Ports without a device read all ones and ignore
//! writes, as on an ISA bus. Every call passes the time, so that the devices depend only on what the guest did and
//! when. No device interrupts the guest by itself: the monitor polls them before it enters the guest, and devices with
//! threads of their own kick it.
//!
//! | ports | device |
//! | --- | --- |
//! | 0x20-0x21, 0xa0-0xa1 | 8259A pair |
//! | 0x40-0x43, 0x61 | 8254 timer; gate and output of its channel 2 |
//! | 0x64 | keyboard controller, its reset line only: 0xfe resets |
//! | 0x70-0x71 | CMOS, no clock in it |
//! | 0x80 | marks, see the ledger |
//! | 0xf4 | the guest reports its own crash |
//! | 0x3f8-0x3ff | 16550A, IRQ 4 |
//! | 0x604 | ACPI power management control: bit 13 powers off |
//! | 0xcf9 | reset control: bit 2 resets |
//!
//! What may not be done here: looking at the guest's memory or registers.

mod pic;
mod pit;
mod uart;
pub mod virtio_mmio;

use crate::ledger::{MmioDevice, PortDevice};
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::virtio::Slot;
use pic::Pic;
use pit::Pit;
use uart::Uart;
use virtio_mmio::{Level, VirtioMmio};

const PIT_IRQ: u8 = 0;
const UART_IRQ: u8 = 4;

const KEYBOARD_CONTROLLER: u16 = 0x64;
const KEYBOARD_CONTROLLER_RESET: u8 = 0xfe;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
const MARK: u16 = 0x80;
const CRASH: u16 = 0xf4;
const POWER_CONTROL: u16 = 0x604;
const POWER_CONTROL_SLEEP: u32 = 1 << 13;
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CONTROL_RESET: u8 = 1 << 2;
const SPEAKER: u16 = 0x61;

/// A request that the guest makes by a port write, for the monitor to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest reported its own crash.
    GuestCrash,
    /// The guest marks the beginning or the end of a measured region.
    Mark(u8),
}

/// The PC.
pub struct Platform {
    pic: Pic,
    pit: Pit,
    uart: Uart,
    cmos_index: u8,
    virtio: VirtioMmio,
}

impl std::fmt::Debug for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Platform").field("pic", &self.pic).field("pit", &self.pit).finish_non_exhaustive()
    }
}

impl Platform {
    /// A PC after reset, with its serial line connected to this console.
    pub fn new(sink: Box<dyn ConsoleSink>, input: ConsoleInput) -> Self {
        let virtio = VirtioMmio::default();
        Self { pic: Pic::default(), pit: Pit::default(), uart: Uart::new(sink, input), cmos_index: 0, virtio }
    }

    /// The same with virtio devices.
    pub fn with_virtio(self, virtio: VirtioMmio) -> Self {
        Self { virtio, ..self }
    }

    /// The virtio devices, in order.
    pub fn slots(&self) -> Vec<&Slot> {
        self.virtio.slots()
    }

    /// The device register at a guest-physical address, for the ledger.
    pub fn memory_owner(&self, address: u64, write: bool) -> MmioDevice {
        match (self.virtio.register(address), write) {
            (Some(register), true) => MmioDevice::VirtioWrite(register),
            (Some(register), false) => MmioDevice::VirtioRead(register),
            (None, _) => MmioDevice::Other,
        }
    }
    /// Reads where the guest has no memory: all ones if there is no device.
    pub fn memory_in(&mut self, address: u64, buf: &mut [u8]) {
        if !self.virtio.read(address, buf) {
            buf.fill(0xff);
        }
    }
    /// Writes where the guest has no memory: ignored if there is no device.
    pub fn memory_out(&mut self, address: u64, bytes: &[u8]) {
        self.virtio.write(address, bytes);
    }

    /// The device that has this port, for the ledger.
    pub fn owner(port: u16) -> PortDevice {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => PortDevice::Pic,
            0x40..=0x43 | SPEAKER => PortDevice::Pit,
            0x3f8..=0x3ff => PortDevice::Uart,
            MARK => PortDevice::Mark,
            CRASH | POWER_CONTROL | RESET_CONTROL | KEYBOARD_CONTROLLER => PortDevice::Power,
            _ => PortDevice::Other,
        }
    }

    /// IN of `size` (1, 2 or 4) bytes. All devices are 8 bits wide: wider accesses go to successive ports.
    pub fn port_in(&mut self, port: u16, size: u8, now_ns: u64) -> u32 {
        (0..u16::from(size.min(4)))
            .fold(0, |value, i| value | u32::from(self.byte_in(port.wrapping_add(i), now_ns)) << (8 * i))
    }

    /// OUT of `size` (1, 2 or 4) bytes.
    pub fn port_out(&mut self, port: u16, size: u8, value: u32, now_ns: u64) -> Option<PlatformEvent> {
        if port == POWER_CONTROL {
            let sleeps = size >= 2 && value & POWER_CONTROL_SLEEP != 0;
            return sleeps.then_some(PlatformEvent::PowerOff);
        }
        let bytes = value.to_le_bytes().into_iter().take(size.into());
        // Stop at the first event: after a reset the other bytes are not written.
        (0..).zip(bytes).find_map(|(i, byte)| self.byte_out(port.wrapping_add(i), byte, now_ns))
    }

    fn byte_in(&mut self, port: u16, now_ns: u64) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pic.read(port),
            0x40..=0x42 => self.pit.read((port - 0x40).into(), now_ns),
            SPEAKER => self.pit.read_speaker(now_ns),
            // Both of its buffers are always empty.
            KEYBOARD_CONTROLLER => 0,
            CMOS_DATA => self.cmos(),
            0x3f8..=0x3ff => {
                let value = self.uart.read(port - 0x3f8);
                self.pic.set_line(UART_IRQ, self.uart.interrupts());
                value
            }
            _ => 0xff,
        }
    }

    fn byte_out(&mut self, port: u16, value: u8, now_ns: u64) -> Option<PlatformEvent> {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pic.write(port, value),
            0x40..=0x42 => self.pit.write((port - 0x40).into(), value, now_ns),
            0x43 => self.pit.control(value, now_ns),
            SPEAKER => self.pit.write_speaker(value, now_ns),
            CMOS_INDEX => self.cmos_index = value & 0x7f,
            0x3f8..=0x3ff => {
                self.uart.write(port - 0x3f8, value);
                self.pic.set_line(UART_IRQ, self.uart.interrupts());
            }
            MARK => return Some(PlatformEvent::Mark(value)),
            CRASH => return Some(PlatformEvent::GuestCrash),
            KEYBOARD_CONTROLLER if value == KEYBOARD_CONTROLLER_RESET => return Some(PlatformEvent::Reset),
            RESET_CONTROL if value & RESET_CONTROL_RESET != 0 => return Some(PlatformEvent::Reset),
            _ => {}
        }
        None
    }

    /// Status register D says that the battery is good; everything else, the clock included, reads zero.
    fn cmos(&self) -> u8 {
        if self.cmos_index == 0x0d { 0x80 } else { 0 }
    }

    /// Updates the interrupt lines of the devices to `now_ns`; returns whether an interrupt is pending.
    ///
    /// Timer ticks that the guest could not take in time are raised one at a time, each after the one before was
    /// acknowledged; [`Pit::MAX_PENDING_TICKS`] limits how many are kept.
    pub fn poll(&mut self, now_ns: u64) -> bool {
        self.pit.advance(now_ns);
        if self.pit.has_pending_tick() && !self.pic.is_requested_or_served(PIT_IRQ) {
            self.pit.take_tick();
            self.pic.pulse(PIT_IRQ);
        }
        self.pic.set_line(UART_IRQ, self.uart.interrupts());
        for (line, level) in self.virtio.lines() {
            if level == Level::Risen {
                self.pic.set_line(line, false);
            }
            self.pic.set_line(line, level != Level::Low);
        }
        self.pic.wants_cpu()
    }

    /// The levels of the lines of devices other than the timer: for a machine whose interrupt controllers and timer are
    /// not these.
    pub fn lines(&self) -> impl Iterator<Item = (u8, Level)> + '_ {
        let uart = if self.uart.interrupts() { Level::High } else { Level::Low };
        std::iter::once((UART_IRQ, uart)).chain(self.virtio.lines())
    }

    /// Whether an interrupt was announced and is not acknowledged yet.
    pub fn interrupt_waits(&self) -> bool {
        self.pic.wants_cpu()
    }

    /// Acknowledges the interrupt that [`Platform::poll`] announced; returns its vector.
    pub fn acknowledge(&mut self) -> u8 {
        self.pic.acknowledge()
    }

    /// When a device next raises an interrupt by itself; `None` if only input from outside can cause one.
    pub fn next_deadline(&self) -> Option<u64> {
        let wanted = !self.pic.is_masked(PIT_IRQ) && !self.pic.is_requested_or_served(PIT_IRQ);
        if wanted { self.pit.next_tick() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use crate::bare::platform::*;
    use crate::machine::console::CaptureSink;
    use crate::machine::kick::Kick;
    use crate::machine::memory::{Backing, MachineMemory};
    use crate::virtio::entropy::Entropy;

    fn pc() -> (Platform, CaptureSink, ConsoleInput) {
        let (sink, input) = (CaptureSink::default(), ConsoleInput::default());
        (Platform::new(Box::new(sink.clone()), input.clone()), sink, input)
    }

    fn out(pc: &mut Platform, port: u16, value: u8) {
        assert_eq!(pc.port_out(port, 1, value.into(), 0), None);
    }

    /// As a kernel does: vectors 32 to 47, only `unmasked` lines of the master open.
    fn init_pic(pc: &mut Platform, unmasked: u8) {
        for (port, value) in [(0x20, 0x11), (0x21, 32), (0x21, 4), (0x21, 1), (0x21, !unmasked)] {
            out(pc, port, value);
        }
        for (port, value) in [(0xa0, 0x11), (0xa1, 40), (0xa1, 2), (0xa1, 1), (0xa1, 0xff)] {
            out(pc, port, value);
        }
    }

    /// A device that interrupts again right after its driver's acknowledgement, before the line is sampled.
    #[test]
    fn an_interrupt_that_is_raised_again_at_once_is_not_lost() {
        struct NoKick;
        impl Kick for NoKick {
            fn kick(&self) {}
            fn arm(&self, _: u64) {}
        }
        let memory = Arc::new(MachineMemory::new(0, 1, Backing::Anonymous).unwrap());
        let bus = VirtioMmio::new(vec![Box::new(Entropy)], &memory, &(Arc::new(NoKick) as Arc<dyn Kick>));
        let mut pc = pc().0.with_virtio(bus.unwrap());
        init_pic(&mut pc, 1 << 5);
        // A driver that skips what it must not skip: the device says by its line that it needs a reset.
        let ask = |pc: &mut Platform| {
            for status in [0, 1, 7u32] {
                pc.memory_out(virtio_mmio::BASE + 0x70, &status.to_le_bytes());
            }
        };
        ask(&mut pc);
        assert!(pc.poll(0));
        assert_eq!(pc.acknowledge(), 32 + 5);
        assert!(!pc.poll(0));
        pc.memory_out(virtio_mmio::BASE + 0x64, &2u32.to_le_bytes());
        ask(&mut pc);
        assert!(!pc.poll(0), "not before the first is over");
        out(&mut pc, 0x20, 0x20);
        assert!(pc.poll(0));
    }

    #[test]
    fn ports_without_a_device_read_all_ones() {
        let (mut pc, _, _) = pc();
        assert_eq!(pc.port_in(0x1234, 1, 0), 0xff);
        assert_eq!(pc.port_in(0x1234, 2, 0), 0xffff);
        assert_eq!(pc.port_in(0xffff, 4, 0), u32::MAX);
        assert_eq!(pc.port_out(0x1234, 4, 7, 0), None);
        assert_eq!(pc.port_in(0x64, 1, 0), 0);
        out(&mut pc, 0x70, 0x8d);
        assert_eq!(pc.port_in(0x71, 1, 0), 0x80);
    }

    #[test]
    fn power_off_reset_crash_and_marks() {
        let (mut pc, _, _) = pc();
        assert_eq!(pc.port_out(0x604, 2, 0x2000, 0), Some(PlatformEvent::PowerOff));
        assert_eq!(pc.port_out(0x604, 2, 0, 0), None);
        assert_eq!(pc.port_out(0x64, 1, 0xfe, 0), Some(PlatformEvent::Reset));
        assert_eq!(pc.port_out(0x64, 1, 0xd1, 0), None);
        assert_eq!(pc.port_out(0xcf9, 1, 6, 0), Some(PlatformEvent::Reset));
        assert_eq!(pc.port_out(0xcf9, 1, 2, 0), None);
        assert_eq!(pc.port_out(0xf4, 1, 3, 0), Some(PlatformEvent::GuestCrash));
        assert_eq!(pc.port_out(0x80, 1, 2, 0), Some(PlatformEvent::Mark(2)));
    }

    #[test]
    fn missed_ticks_are_raised_one_after_another() {
        let (mut pc, _, _) = pc();
        init_pic(&mut pc, 1);
        // 1193 PIT clocks: 1 ms less 152.5 ns.
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            out(&mut pc, port, value);
        }
        assert!(!pc.poll(999_000));
        let first = pc.next_deadline().unwrap();
        assert!((999_500..1_000_000).contains(&first), "{first}");
        assert!(!pc.poll(first - 1));
        assert!(pc.poll(first));
        // Two more periods go by before the guest takes the first.
        assert_eq!(pc.next_deadline(), None, "one is pending already");
        for ticks_left in [2, 1, 0] {
            assert!(pc.poll(3_100_000), "{ticks_left} left");
            assert_eq!(pc.acknowledge(), 32);
            assert!(!pc.poll(3_100_000), "one at a time");
            out(&mut pc, 0x20, 0x20);
        }
        assert!(!pc.poll(3_100_000));
        assert!(pc.next_deadline().is_some_and(|at| at > 3_100_000));
        out(&mut pc, 0x21, 0xff);
        assert_eq!(pc.next_deadline(), None, "masked: nothing to wake up for");
    }

    #[test]
    fn typed_bytes_interrupt() {
        let (mut pc, sink, input) = pc();
        init_pic(&mut pc, 1 << 4);
        out(&mut pc, 0x3f9, 1);
        assert!(!pc.poll(0));
        input.push(b"ab");
        assert!(pc.poll(0));
        assert_eq!(pc.acknowledge(), 36);
        assert!(!pc.poll(0));
        assert_eq!(pc.port_in(0x3f8, 1, 0), u32::from(b'a'));
        out(&mut pc, 0x20, 0x64);
        assert!(!pc.poll(0), "the line never fell: no edge, as on any PC; drivers read until empty");
        assert_eq!(pc.port_in(0x3f8, 1, 0), u32::from(b'b'));
        assert_eq!(pc.port_in(0x3fd, 1, 0), 0x60);
        input.push(b"c");
        assert!(pc.poll(0));
        out(&mut pc, 0x3f8, b'x');
        assert_eq!(sink.text(), "x");
    }

    proptest! {
        /// Arbitrary port traffic causes no panic, and every deadline lies ahead.
        #[test]
        fn any_port_traffic(
            ops in prop::collection::vec((0usize..64, any::<u32>(), 1u8..5, any::<bool>(), 0u64..1 << 40), 1..200)
        ) {
            const PORTS: [u16; 24] = [
                0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x64, 0x70, 0x71, 0x80, 0xf4,
                0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x604, 0xcf9, 0xffff, 0x3f,
            ];
            let (mut pc, _, input) = pc();
            let mut now = 0u64;
            for (port, value, size, write, passed) in ops {
                now = now.saturating_add(passed);
                let port = PORTS[port % PORTS.len()];
                if write {
                    let _ = pc.port_out(port, size, value, now);
                } else {
                    let _ = pc.port_in(port, size, now);
                }
                input.push(&[value as u8]);
                if pc.poll(now) {
                    let _ = pc.acknowledge();
                }
                if let Some(at) = pc.next_deadline() {
                    prop_assert!(at > now, "the deadline of a polled machine lies ahead");
                }
            }
        }
    }
}
