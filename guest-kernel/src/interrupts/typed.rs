//! Typed bytes on their way from the machine's interrupt handler to the kernel.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

#[cfg(test)]
mod tests;

/// Bytes that wait to be read.
const CAPACITY: usize = 256;

/// The bytes that the machine's console received and the kernel has not read yet.
pub static TYPED: ByteQueue = ByteQueue::new();

/// A queue of bytes with one writer (an interrupt handler, or code that runs with interrupts off) and one reader.
#[derive(Debug)]
pub struct ByteQueue {
    bytes: [AtomicU8; CAPACITY],
    /// How many bytes were ever pushed, modulo 2^64; stored by the writer only.
    pushed: AtomicUsize,
    /// How many bytes were ever popped, modulo 2^64; stored by the reader only.
    popped: AtomicUsize,
}

impl ByteQueue {
    const fn new() -> Self {
        Self {
            bytes: [const { AtomicU8::new(0) }; CAPACITY],
            pushed: AtomicUsize::new(0),
            popped: AtomicUsize::new(0),
        }
    }

    /// How many bytes can be pushed now.
    pub fn room(&self) -> usize {
        CAPACITY - self.pushed.load(Ordering::Relaxed).wrapping_sub(self.popped.load(Ordering::Acquire))
    }

    /// Adds a byte. Without [`room`](Self::room) the byte is lost. For the writer.
    pub fn push(&self, byte: u8) {
        if self.room() > 0 {
            let pushed = self.pushed.load(Ordering::Relaxed);
            self.bytes[pushed % CAPACITY].store(byte, Ordering::Relaxed);
            self.pushed.store(pushed.wrapping_add(1), Ordering::Release);
        }
    }

    /// How many bytes were ever pushed, modulo 2^64: tells whether any arrived between two calls.
    pub fn pushed(&self) -> usize {
        self.pushed.load(Ordering::Acquire)
    }

    /// Whether no byte waits.
    pub fn is_empty(&self) -> bool {
        self.pushed.load(Ordering::Acquire) == self.popped.load(Ordering::Relaxed)
    }

    /// Takes the oldest byte. For the reader.
    pub fn pop(&self) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        let popped = self.popped.load(Ordering::Relaxed);
        let byte = self.byte(popped);
        self.popped.store(popped.wrapping_add(1), Ordering::Release);
        Some(byte)
    }

    /// Takes everything up to and including the last occurrence of `wanted`; false, and nothing taken, if it does not
    /// occur. For the reader.
    pub fn pop_through(&self, wanted: u8) -> bool {
        let (popped, pushed) = (self.popped.load(Ordering::Relaxed), self.pushed.load(Ordering::Acquire));
        let waiting = pushed.wrapping_sub(popped);
        let found = (0..waiting).rev().find(|offset| self.byte(popped.wrapping_add(*offset)) == wanted);
        if let Some(offset) = found {
            self.popped.store(popped.wrapping_add(offset + 1), Ordering::Release);
        }
        found.is_some()
    }

    fn byte(&self, number: usize) -> u8 {
        self.bytes[number % CAPACITY].load(Ordering::Relaxed)
    }
}
