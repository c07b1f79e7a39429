//! COM1, a 16550: an empty transmitter takes 16 bytes.

use super::cpu::{inb, outb};

const DATA: u16 = 0x3f8;
const FIFO_CONTROL: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;

/// 8 bits, no parity, FIFOs on.
pub fn init() {
    // SAFETY: the UART's initialization.
    unsafe {
        outb(LINE_CONTROL, 0x03);
        outb(FIFO_CONTROL, 0x07);
    }
}

// ANCHOR: write
/// Prints.
pub fn write(text: &str) {
    for piece in text.as_bytes().chunks(16) {
        // SAFETY: the UART takes bytes when its transmitter is empty.
        unsafe {
            while inb(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            piece.iter().for_each(|byte| outb(DATA, *byte));
        }
    }
}
// ANCHOR_END: write
