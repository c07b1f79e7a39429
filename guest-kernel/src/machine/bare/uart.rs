//! COM1: a 16550 UART.
//!
//! Output is polled, with a status read and a data write for each byte, so that it works before interrupts do, and in
//! a panic. Input is interrupt-driven.

use crate::interrupts::TYPED;

use super::port;

const BASE: u16 = 0x3f8;
const DATA: u16 = BASE;
const DIVISOR_LOW: u16 = BASE;
const INTERRUPT_ENABLE: u16 = BASE + 1;
const DIVISOR_HIGH: u16 = BASE + 1;
const FIFO_CONTROL: u16 = BASE + 2;
const LINE_CONTROL: u16 = BASE + 3;
const MODEM_CONTROL: u16 = BASE + 4;
pub const LINE_STATUS: u16 = BASE + 5;

const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

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
}

/// Requests an interrupt for each byte received.
pub fn enable_interrupts() {
    // SAFETY: the handler is installed, or interrupts are off.
    unsafe { port::write_u8(INTERRUPT_ENABLE, 1) };
}

/// Transmits bytes in order.
pub fn write(bytes: &[u8]) {
    for &byte in bytes {
        // SAFETY: transmits a byte once the UART has room for it.
        unsafe {
            while port::read_u8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            port::write_u8(DATA, byte);
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
