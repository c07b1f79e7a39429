//! COM1: a 16550 UART.
//!
//! Output is polled, so that it works before interrupts do, and in a panic. A status read tells that the transmitter's
//! FIFO is empty, and so has room for 16 bytes (PC16550D data sheet, 8.4, "FIFO polled mode"). Input is
//! interrupt-driven.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::interrupts::TYPED;

use super::port;

const BASE: u16 = 0x3f8;
const DATA: u16 = BASE;
const DIVISOR_LOW: u16 = BASE;
const INTERRUPT_ENABLE: u16 = BASE + 1;
const DIVISOR_HIGH: u16 = BASE + 1;
const FIFO_CONTROL: u16 = BASE + 2;
const INTERRUPT_IDENTIFICATION: u16 = BASE + 2;
const LINE_CONTROL: u16 = BASE + 3;
const MODEM_CONTROL: u16 = BASE + 4;
pub const LINE_STATUS: u16 = BASE + 5;

const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// In the interrupt identification: the FIFOs work, which they do in no 16450 and in no early 16550.
const FIFOS: u8 = 0xc0;
/// Bytes that the transmitter's FIFO has room for.
const FIFO_BYTES: usize = 16;

/// How many bytes an empty transmitter takes.
static BURST: AtomicUsize = AtomicUsize::new(1);

/// 115200 baud, 8 bits, no parity, one stop bit, FIFOs on, interrupts off.
pub fn init() {
    let writes = [
        (INTERRUPT_ENABLE, 0),
        (LINE_CONTROL, 0x80), // DLAB: the divisor's registers in place of the data register
        (DIVISOR_LOW, 1),
        (DIVISOR_HIGH, 0),
        (LINE_CONTROL, 0x03),
        (FIFO_CONTROL, 0x07),
        (MODEM_CONTROL, 0x0b), // DTR, RTS, and OUT2, which gates the PC's interrupt line
    ];
    for (port, value) in writes {
        // SAFETY: the UART's initialisation.
        unsafe { port::write_u8(port, value) };
    }
    // SAFETY: no interrupt is enabled whose request this read could take back.
    if unsafe { port::read_u8(INTERRUPT_IDENTIFICATION) } & FIFOS == FIFOS {
        BURST.store(FIFO_BYTES, Ordering::Relaxed);
    }
}

/// Requests an interrupt for each byte received.
pub fn enable_interrupts() {
    // SAFETY: the handler is installed, or interrupts are off.
    unsafe { port::write_u8(INTERRUPT_ENABLE, 1) };
}

/// Transmits bytes in order.
pub fn write(bytes: &[u8]) {
    for burst in bytes.chunks(BURST.load(Ordering::Relaxed)) {
        // SAFETY: transmits bytes once the UART has room for them.
        unsafe {
            while port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            burst.iter().for_each(|&byte| port::write_u8(DATA, byte));
        }
    }
}

/// With interrupts off: takes received bytes while there is room for them. A byte that is left keeps the request line
/// up, which raises no new interrupt; so the reader calls this again once there is room.
pub fn receive() {
    // SAFETY: reading takes a byte out of the FIFO, and withdraws the request after the last one.
    unsafe {
        while TYPED.room() > 0 && port::read_u8(LINE_STATUS) & DATA_READY != 0 {
            TYPED.push(port::read_u8(DATA));
        }
    }
}
