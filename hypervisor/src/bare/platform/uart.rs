//! The 16550A serial port: output goes to the console at once, input waits in the console's queue.
//!
//! The transmitter is infinitely fast: its FIFO and its shift register are empty whenever the guest looks, so that a
//! driver may write 16 bytes after each look. The console's queue is the receive FIFO, so that input never overruns;
//! what a guest's reset of the FIFO would throw away counts as still on the line. Line speed and format can be set and
//! read back, but have no effect. After National Semiconductor's PC16550D data sheet. Its interrupt output is a
//! level; as in most virtual machines it does not depend on MCR's OUT2.

use crate::machine::console::{ConsoleInput, ConsoleSink};

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IIR_NONE: u8 = 1;
const IIR_TRANSMIT_EMPTY: u8 = 2;
const IIR_RECEIVED: u8 = 4;
/// Fewer bytes wait than the trigger level, and no more are coming.
const IIR_TIMEOUT: u8 = 12;
const IIR_FIFOS: u8 = 0xc0;
const FCR_ENABLE: u8 = 1;
/// Bytes in the FIFO from which on it interrupts, by the two highest bits of the FIFO control register.
const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];
const LCR_DIVISOR: u8 = 0x80;
const MCR_LOOPBACK: u8 = 1 << 4;
const LSR_RECEIVED: u8 = 1;
/// Transmitter and its holding register are empty: always.
const LSR_IDLE: u8 = 0x60;
/// A carrier, a ready data set, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// The serial port.
pub(super) struct Uart {
    sink: Box<dyn ConsoleSink>,
    input: ConsoleInput,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// The FIFO control register; its other bits are 0 while the FIFOs are off (data sheet, 8.5).
    fifo_control: u8,
    /// The transmitter became empty, and IIR has not been read since.
    transmit_event: bool,
    looped: Option<u8>,
}

impl Uart {
    pub(super) fn new(sink: Box<dyn ConsoleSink>, input: ConsoleInput) -> Self {
        Self {
            sink,
            input,
            interrupt_enable: 0,
            line_control: 3,
            modem_control: 0,
            scratch: 0,
            divisor: [12, 0],
            fifo_control: 0,
            transmit_event: false,
            looped: None,
        }
    }

    fn loops(&self) -> bool {
        self.modem_control & MCR_LOOPBACK != 0
    }

    fn has_received(&self) -> bool {
        if self.loops() { self.looped.is_some() } else { !self.input.is_empty() }
    }

    fn has_fifos(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    /// Whether what was received interrupts as such; less of it does so once the line has been idle, which it always is.
    fn reaches_trigger_level(&self) -> bool {
        let level = TRIGGER_LEVELS.get(usize::from(self.fifo_control >> 6)).copied().unwrap_or(1);
        let waiting = if self.loops() { usize::from(self.looped.is_some()) } else { self.input.len() };
        !self.has_fifos() || waiting >= level
    }

    /// The interrupt of the highest priority that is enabled and pending.
    fn identification(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED != 0 && self.has_received() {
            if self.reaches_trigger_level() { IIR_RECEIVED } else { IIR_TIMEOUT }
        } else if self.interrupt_enable & IER_TRANSMIT_EMPTY != 0 && self.transmit_event {
            IIR_TRANSMIT_EMPTY
        } else {
            IIR_NONE
        }
    }

    /// The level of the interrupt output.
    pub(super) fn interrupts(&self) -> bool {
        self.interrupt_enable != 0 && self.identification() != IIR_NONE
    }

    pub(super) fn read(&mut self, register: u16) -> u8 {
        let divisor = self.line_control & LCR_DIVISOR != 0;
        match register {
            0 if divisor => self.divisor[0],
            1 if divisor => self.divisor[1],
            0 if self.loops() => self.looped.take().unwrap_or(0),
            0 => self.input.pop().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let identification = self.identification();
                if identification == IIR_TRANSMIT_EMPTY {
                    self.transmit_event = false;
                }
                identification | if self.has_fifos() { IIR_FIFOS } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => LSR_IDLE | if self.has_received() { LSR_RECEIVED } else { 0 },
            6 => self.modem_status(),
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// In loopback the modem control outputs come back as its inputs.
    fn modem_status(&self) -> u8 {
        if !self.loops() {
            return MSR_CONNECTED;
        }
        let control = self.modem_control;
        (control & 1) << 5 | (control & 2) << 3 | (control & 0x0c) << 4
    }

    pub(super) fn write(&mut self, register: u16, value: u8) {
        let divisor = self.line_control & LCR_DIVISOR != 0;
        match register {
            0 if divisor => self.divisor[0] = value,
            1 if divisor => self.divisor[1] = value,
            0 => self.transmit(value),
            1 => {
                let enabled = value & !self.interrupt_enable;
                self.interrupt_enable = value & 0x0f;
                self.transmit_event |= enabled & IER_TRANSMIT_EMPTY != 0;
            }
            2 => self.fifo_control = if value & FCR_ENABLE == 0 { 0 } else { value },
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
    }

    fn transmit(&mut self, value: u8) {
        if self.loops() {
            self.looped = Some(value);
        } else {
            self.sink.write(&[value]);
        }
        self.transmit_event = true;
    }
}

#[cfg(test)]
mod tests {
    use crate::bare::platform::uart::*;
    use crate::machine::console::CaptureSink;

    fn uart() -> (Uart, CaptureSink, ConsoleInput) {
        let (sink, input) = (CaptureSink::default(), ConsoleInput::default());
        (Uart::new(Box::new(sink.clone()), input.clone()), sink, input)
    }

    #[test]
    fn sends_and_receives() {
        let (mut u, sink, input) = uart();
        for &byte in b"hello" {
            assert_eq!(u.read(5) & 0x20, 0x20);
            u.write(0, byte);
        }
        assert_eq!(sink.text(), "hello");
        assert_eq!(u.read(5) & 1, 0);
        input.push(b"hi");
        assert_eq!((u.read(5) & 1, u.read(0), u.read(0), u.read(5) & 1), (1, b'h', b'i', 0));
        assert_eq!(u.read(0), 0);
    }

    #[test]
    fn the_divisor_hides_data_and_interrupt_enable() {
        let (mut u, sink, _) = uart();
        u.write(3, 0x83);
        u.write(0, 1);
        u.write(1, 0);
        assert_eq!((u.read(0), u.read(1)), (1, 0));
        u.write(3, 0x03);
        assert_eq!((u.read(1), u.read(3), sink.text().as_str()), (0, 3, ""));
    }

    #[test]
    fn interrupts_are_identified_by_priority() {
        let (mut u, _, input) = uart();
        u.write(2, 1);
        assert_eq!(u.read(2), IIR_FIFOS | IIR_NONE);
        input.push(b"x");
        assert!(!u.interrupts());
        u.write(1, IER_RECEIVED | IER_TRANSMIT_EMPTY);
        assert!(u.interrupts());
        assert_eq!(u.read(2), IIR_FIFOS | IIR_RECEIVED);
        assert_eq!(u.read(2), IIR_FIFOS | IIR_RECEIVED, "until the byte is read");
        u.read(0);
        assert_eq!(u.read(2), IIR_FIFOS | IIR_TRANSMIT_EMPTY);
        assert_eq!(u.read(2), IIR_FIFOS | IIR_NONE, "reading it settles it");
        assert!(!u.interrupts());
        u.write(0, b'y');
        assert!(u.interrupts());
        u.write(1, 0);
        assert!(!u.interrupts());
    }

    /// As the reference kernel transmits, and as it learns that it may.
    #[test]
    fn a_fifo_takes_sixteen_bytes_after_each_look() {
        let (mut u, sink, _) = uart();
        assert_eq!(u.read(2) & IIR_FIFOS, 0, "off after reset");
        u.write(2, 0x06);
        assert_eq!(u.read(2) & IIR_FIFOS, 0, "nothing but the first bit turns them on");
        u.write(2, 0x07);
        assert_eq!(u.read(2), IIR_FIFOS | IIR_NONE);
        for burst in [*b"0123456789abcdef", *b"ghijklmnopqrstuv"] {
            assert_eq!(u.read(5) & LSR_IDLE, LSR_IDLE);
            burst.iter().for_each(|&byte| u.write(0, byte));
        }
        assert_eq!(sink.text(), "0123456789abcdefghijklmnopqrstuv");
        u.write(2, 0);
        assert_eq!(u.read(2), IIR_NONE);
    }

    #[test]
    fn less_than_the_trigger_level_interrupts_as_a_timeout() {
        let (mut u, _, input) = uart();
        u.write(1, IER_RECEIVED);
        u.write(2, 0x81);
        input.push(b"1234567");
        assert_eq!((u.interrupts(), u.read(2)), (true, IIR_FIFOS | IIR_TIMEOUT));
        input.push(b"8");
        assert_eq!(u.read(2), IIR_FIFOS | IIR_RECEIVED);
        u.read(0);
        assert_eq!(u.read(2), IIR_FIFOS | IIR_TIMEOUT);
        u.write(2, 0);
        assert_eq!(u.read(2), IIR_RECEIVED, "without FIFOs, one byte is enough");
    }

    #[test]
    fn loopback_stays_inside() {
        let (mut u, sink, input) = uart();
        input.push(b"typed");
        u.write(4, 0x1e);
        u.write(0, 0xae);
        assert_eq!((u.read(0), sink.text().as_str()), (0xae, ""));
        assert_eq!(u.read(6), 0xd0);
        u.write(4, 0x0b);
        assert_eq!((u.read(0), u.read(6)), (b't', MSR_CONNECTED));
        u.write(7, 0x5a);
        assert_eq!(u.read(7), 0x5a);
    }
}
