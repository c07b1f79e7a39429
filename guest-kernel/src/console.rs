//! The console: text out, bytes in.
//!
//! Output is put together on the stack and handed to the machine in as few writes as possible, because each
//! may cost a trap or more. Input arrives by interrupt and waits here until someone reads it; what there is no
//! room for waits in the machine.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::machine::{Current, Machine};

/// Prints formatted text.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(::core::format_args!($($arg)*)) };
}

/// Prints formatted text and a line feed, in one write.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::console::print(::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}

/// What the macros expand to.
pub fn print(text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 256], len: 0 };
    // Formatting into `Line` cannot fail.
    let _ = fmt::write(&mut line, text);
    line.flush();
}

struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn flush(&mut self) {
        Current::console_write(&self.bytes[..self.len]);
        self.len = 0;
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == self.bytes.len() {
                self.flush();
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// Bytes between the machine's interrupt handler, which adds them, and the kernel, which takes them.
struct Input {
    bytes: [AtomicU8; 256],
    /// How many bytes were ever added; written by the handler only.
    added: AtomicUsize,
    /// How many were ever taken; written by the kernel only.
    taken: AtomicUsize,
}

static INPUT: Input = Input {
    bytes: [const { AtomicU8::new(0) }; 256],
    added: AtomicUsize::new(0),
    taken: AtomicUsize::new(0),
};

/// How many typed bytes the machine may hand over.
pub fn room() -> usize {
    let waiting = INPUT.added.load(Ordering::Relaxed).wrapping_sub(INPUT.taken.load(Ordering::Acquire));
    INPUT.bytes.len() - waiting
}

/// For the machine, with interrupts off: a byte was typed. Without [`room`] for it, it is lost.
pub fn received(byte: u8) {
    if room() > 0 {
        let added = INPUT.added.load(Ordering::Relaxed);
        INPUT.bytes[added % INPUT.bytes.len()].store(byte, Ordering::Relaxed);
        INPUT.added.store(added.wrapping_add(1), Ordering::Release);
    }
}

/// Takes the next typed byte if there is one.
pub fn try_read() -> Option<u8> {
    let taken = INPUT.taken.load(Ordering::Relaxed);
    if taken == INPUT.added.load(Ordering::Acquire) {
        return None;
    }
    let byte = INPUT.bytes[taken % INPUT.bytes.len()].load(Ordering::Relaxed);
    INPUT.taken.store(taken.wrapping_add(1), Ordering::Release);
    Some(byte)
}

/// Takes the next typed byte, idle until there is one. Interrupts are on.
pub fn read() -> u8 {
    loop {
        if let Some(byte) = try_read() {
            return byte;
        }
        Current::interrupts_off();
        Current::console_receive();
        if INPUT.added.load(Ordering::Acquire) == INPUT.taken.load(Ordering::Relaxed) {
            Current::wait();
        }
        Current::interrupts_on();
    }
}
