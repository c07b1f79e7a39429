//! The two 8259 interrupt controllers, in their PC wiring.

use super::port;

/// The vector of request line 0; the 15 after it are the other lines'.
pub const FIRST_IRQ: usize = 32;

/// The 8254's request line.
pub const TIMER_IRQ: u8 = 0;
/// COM1's request line.
pub const SERIAL_IRQ: u8 = 4;

const PRIMARY_COMMAND: u16 = 0x20;
const PRIMARY_DATA: u16 = 0x21;
const SECONDARY_COMMAND: u16 = 0xa0;
const SECONDARY_DATA: u16 = 0xa1;
const END_OF_INTERRUPT: u8 = 0x20;

/// Moves the request lines away from the exceptions' vectors and masks all lines but the timer's and COM1's.
pub fn init() {
    let writes = [
        (PRIMARY_COMMAND, 0x11), // ICW1: edge triggered, cascaded, ICW4 follows
        (SECONDARY_COMMAND, 0x11),
        (PRIMARY_DATA, FIRST_IRQ as u8), // ICW2: first vector
        (SECONDARY_DATA, FIRST_IRQ as u8 + 8),
        (PRIMARY_DATA, 1 << 2), // ICW3: the secondary is on line 2
        (SECONDARY_DATA, 2),
        (PRIMARY_DATA, 0x01), // ICW4: 8086 mode
        (SECONDARY_DATA, 0x01),
        (PRIMARY_DATA, !(1 << TIMER_IRQ | 1 << SERIAL_IRQ)), // OCW1: mask
        (SECONDARY_DATA, 0xff),
    ];
    for (port, value) in writes {
        // SAFETY: the controllers' initialisation sequence, with interrupts off.
        unsafe { port::write_u8(port, value) };
    }
}

/// Unmasks a request line.
pub fn unmask(irq: u8) {
    // The secondary's requests arrive on line 2 of the primary.
    let lines = if irq < 8 {
        [(PRIMARY_DATA, irq), (PRIMARY_DATA, irq)]
    } else {
        [(PRIMARY_DATA, 2), (SECONDARY_DATA, irq - 8)]
    };
    for (port, line) in lines {
        // SAFETY: the controller's mask register; the line has a handler.
        unsafe { port::write_u8(port, port::read_u8(port) & !(1 << line)) };
    }
}

/// Ends the interrupt in service (a non-specific end of interrupt), so that the controllers deliver the next.
pub fn acknowledge(irq: u8) {
    // SAFETY: called once for each request delivered.
    unsafe {
        if irq >= 8 {
            port::write_u8(SECONDARY_COMMAND, END_OF_INTERRUPT);
        }
        port::write_u8(PRIMARY_COMMAND, END_OF_INTERRUPT);
    }
}
