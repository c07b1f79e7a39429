//! Formatted output.

use core::fmt;

use crate::sys;

/// Collects a line, and writes it in one call.
struct Line {
    bytes: [u8; 512],
    len: usize,
    to: u64,
}

impl Line {
    fn flush(&mut self) {
        let _ = sys::write_all(self.to, &self.bytes[..self.len]);
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

/// What the macros expand to.
pub fn print(to: u64, text: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 512], len: 0, to };
    let _ = fmt::write(&mut line, text);
    line.flush();
}

/// Prints a formatted text.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::print::print(1, ::core::format_args!($($arg)*)) };
}

/// Prints a formatted line.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::print::print(1, ::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}

/// Prints a formatted line where errors go.
#[macro_export]
macro_rules! eprintln {
    ($($arg:tt)*) => { $crate::print::print(2, ::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}
