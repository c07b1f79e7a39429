//! The console: text out, bytes in.
//!
//! Output is collected on the stack and handed to the machine in as few writes as possible, because each write may
//! cost a trap or more. Input arrives by interrupt and waits in [`TYPED`] until it is read; bytes that do not fit
//! wait in the machine.
//!
//! The machine's own console works from the first instruction on. With `console=virtio` on the command line a virtio
//! console replaces it once devices can be driven ([`open`]). A panic is printed on both.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cmdline::text;
use crate::device::console::Console;
use crate::device::{self, DeviceError};
use crate::interrupts::TYPED;
use crate::kernel::Kernel;
use crate::machine::{Current, Machine};
use crate::single::Single;

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

/// Prints formatted text: what the macros expand to.
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
        write(&self.bytes[..self.len]);
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

/// With interrupts off: collects the bytes that were typed; returns whether there were any. If not, and if there is
/// room for one, an interrupt will come with the next.
pub fn receive() -> bool {
    let before = TYPED.pushed();
    Current::console_receive();
    while TYPED.room() > 0
        && let Some(byte) = pop_from_device()
    {
        TYPED.push(byte);
    }
    let is_idle =
        TYPED.pushed() == before && (TYPED.room() == 0 || with_device(Console::is_idle).unwrap_or(true));
    !is_idle
}

/// Takes the next typed byte, if there is one.
pub fn try_read() -> Option<u8> {
    TYPED.pop().or_else(pop_from_device)
}

fn pop_from_device() -> Option<u8> {
    with_device(|console| console.read().map_err(DeviceError::from)).flatten()
}

/// Whether Ctrl-C was typed; takes it, and discards what was typed before it.
pub fn take_interrupt() -> bool {
    const INTERRUPT: u8 = 0x03;
    TYPED.pop_through(INTERRUPT)
}

/// Takes the next typed byte, and idles until there is one. Interrupts are on.
pub fn read() -> u8 {
    loop {
        if let Some(byte) = try_read() {
            return byte;
        }
        device::without_interrupts(|| {
            Current::console_receive();
            if is_idle() {
                Current::wait();
            }
        });
    }
}

/// With interrupts off: whether no byte can be read now, and an interrupt will come with the next one.
pub fn is_idle() -> bool {
    TYPED.is_empty() && with_device(Console::is_idle).unwrap_or(true)
}

/// The virtio console that has replaced the machine's own, if there is one.
static DEVICE: Single<Option<Console>> = Single::new(None);
/// Whether the device is in use: what its driver prints must not enter it again.
static BUSY: AtomicBool = AtomicBool::new(false);
/// Whether the kernel panics: output no longer waits for anything.
static PANICKING: AtomicBool = AtomicBool::new(false);

/// How long [`finish`] waits for a console that makes no progress.
const PATIENCE_NS: u64 = 1_000_000_000;

/// Replaces the machine's console by a virtio console, if the command line asks for it and there is one.
pub fn open(kernel: &mut Kernel) {
    if text(kernel.cmdline, "console") != Some("virtio") {
        return;
    }
    let opened = device::find(kernel, Console::KIND).and_then(|transport| {
        device::without_interrupts(|| {
            let mut console = Console::new(transport)?;
            console.check()?;
            console.listen()?;
            Ok(console)
        })
    });
    match opened {
        Ok(console) => {
            crate::println!("console: the virtio console takes over from here");
            // SAFETY: no call of `with_device` is in progress, so there is no other reference.
            unsafe { *DEVICE.get() = Some(console) };
        }
        Err(DeviceError::Absent) => {
            crate::println!(
                "console: no virtio device; start the guest with one: `paravane run --console pty`"
            );
        }
        Err(error) => crate::println!("console: {error}"),
    }
}

/// Calls `f` with the device, interrupts off. `None` if there is no device, or if it failed: then the machine's
/// console is used again.
fn with_device<R>(f: impl FnOnce(&mut Console) -> Result<R, DeviceError>) -> Option<R> {
    if BUSY.swap(true, Ordering::Relaxed) {
        return None;
    }
    // SAFETY: `BUSY` was not set, so there is no other reference.
    let device = unsafe { DEVICE.get() };
    let result = device.as_mut().map(|console| device::without_interrupts(|| f(console)));
    let failed = match &result {
        Some(Err(error)) => {
            *device = None;
            Some(*error)
        }
        _ => None,
    };
    BUSY.store(false, Ordering::Relaxed);
    if let Some(error) = failed {
        crate::println!("console: {error}; back to the machine's own console");
    }
    result?.ok()
}

/// Prints.
pub fn write(bytes: &[u8]) {
    if PANICKING.load(Ordering::Relaxed) {
        Current::console_write(bytes);
        let in_emergency = |console: &mut Console| {
            console.print_in_emergency(bytes);
            Ok(())
        };
        with_device(in_emergency);
    } else if with_device(|console| console.write(bytes)).is_none() {
        Current::console_write(bytes);
    }
}

/// Prepares for the output of a panic: printing uses as little as possible from now on, and interrupts stay off.
pub fn panicking() {
    device::keep_interrupts_off();
    PANICKING.store(true, Ordering::Relaxed);
}

/// Waits until all output has gone out, but not longer than [`PATIENCE_NS`] without progress. Called before the
/// kernel ends.
pub fn finish() {
    loop {
        let left = with_device(|console| {
            let left = console.unprinted()?;
            if left > 0 && console.is_stuck() {
                let deadline = Current::clock().saturating_add(PATIENCE_NS);
                Current::arm_timer(deadline);
                Current::wait();
                // Any interrupt ends this wait; only the deadline ends the waiting for progress.
                return Ok(if Current::clock() < deadline { left } else { 0 });
            }
            Ok(left)
        });
        if left.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// Columns and rows of a virtio console; `None` if its other end is not a terminal, `Err` for the machine's own
/// console.
#[allow(clippy::result_unit_err)]
pub fn size() -> Result<Option<(u16, u16)>, ()> {
    with_device(|console| Ok(console.size())).ok_or(())
}
