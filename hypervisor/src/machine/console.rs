//! A guest's first console: where its output goes, and where its input comes from.
//!
//! The PV console ring, CONSOLEIO and the 16550 UART all end here. The vCPU's thread writes output synchronously; the
//! thread that reads the terminal queues input and then kicks the vCPU. What may not be done here: changing a
//! terminal's settings, which is the command line's task.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Receives what a guest prints.
pub trait ConsoleSink: Send {
    /// Takes bytes in order. A sink that cannot deliver them (a closed pipe) drops them.
    fn write(&mut self, bytes: &[u8]);
}

/// Standard output, unbuffered beyond one call.
#[derive(Debug, Default)]
pub struct StdoutSink;

impl ConsoleSink for StdoutSink {
    fn write(&mut self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        // When the reader has gone, the output is lost and the guest goes on.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

/// How many bytes a [`CaptureSink`] keeps, so that a guest that prints for ever does not fill the host's memory.
const CAPTURE_LIMIT: usize = 1 << 20;

/// Collects the first MiB of output for tests and `compare`; clones share the same buffer.
#[derive(Clone, Debug, Default)]
pub struct CaptureSink(Arc<Mutex<Vec<u8>>>);

impl CaptureSink {
    /// What was printed so far, invalid UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl ConsoleSink for CaptureSink {
    fn write(&mut self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = CAPTURE_LIMIT.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }
}

/// Bytes that were typed at a console and that the guest has not taken yet; clones share the same queue.
#[derive(Clone, Debug, Default)]
pub struct ConsoleInput(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    bytes: Mutex<VecDeque<u8>>,
    drained: Condvar,
}

impl ConsoleInput {
    /// Queues typed bytes. The caller then kicks the vCPU.
    pub fn push(&self, bytes: &[u8]) {
        self.lock().extend(bytes);
    }
    /// Takes the first byte, if any.
    pub fn pop(&self) -> Option<u8> {
        let mut bytes = self.lock();
        let byte = bytes.pop_front();
        if bytes.is_empty() {
            self.0.drained.notify_all();
        }
        byte
    }
    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }
    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
    /// Blocks until the guest has taken everything, so that a file that is piped into a guest that does not read does
    /// not fill the host's memory.
    pub fn wait_until_empty(&self) {
        let bytes = self.lock();
        drop(self.0.drained.wait_while(bytes, |bytes| !bytes.is_empty()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::console::*;

    #[test]
    fn a_capture_is_bounded() {
        let mut sink = CaptureSink::default();
        sink.write(b"first ");
        for _ in 0..3 {
            sink.write(&[b'x'; CAPTURE_LIMIT / 2]);
        }
        assert!(sink.text().starts_with("first x"));
        assert_eq!(sink.text().len(), CAPTURE_LIMIT);
    }

    #[test]
    fn input_is_taken_in_order_and_an_empty_queue_ends_the_wait() {
        let input = ConsoleInput::default();
        input.push(b"ab");
        let waiter = std::thread::spawn({
            let input = input.clone();
            move || input.wait_until_empty()
        });
        assert_eq!((input.pop(), input.pop(), input.pop()), (Some(b'a'), Some(b'b'), None));
        waiter.join().unwrap();
    }
}
