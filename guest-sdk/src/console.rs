//! The console: text out, bytes in.
//!
//! Output goes through the ring that the domain shares with its console service, with one notification per write. A
//! write that is larger than the ring goes to the hypervisor's own console in one call, if this domain may use that
//! (on Xen it usually may not). Formatted text is collected first, so that a line is one transition.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use paravane_abi::console::{XENCONS_IN_SIZE, XENCONS_OUT_SIZE, XenconsInterface, mask_xencons_idx};

use crate::event::{self, Port};
use crate::hypercall;
use crate::hypercall::sched::yield_now;

/// The ring; null until start-of-day has found one.
static RING: AtomicPtr<XenconsInterface> = AtomicPtr::new(core::ptr::null_mut());
/// Its event channel.
static PORT: AtomicU32 = AtomicU32::new(0);
/// Whether the hypervisor has refused access to its own console.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Uses the ring at `ring` from now on.
///
/// # Safety
/// `ring` points to the domain's console page, which stays mapped writable.
pub(crate) unsafe fn attach(ring: *mut XenconsInterface, port: Port) {
    PORT.store(port.0, Ordering::Relaxed);
    RING.store(ring, Ordering::Release);
}

/// The port that is signalled when bytes arrive, for [`event::handle`].
pub fn port() -> Option<Port> {
    ring().map(|_| Port(PORT.load(Ordering::Relaxed)))
}

/// Writes bytes. Returns when the console service or the hypervisor has all of them.
pub fn write(bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    event::without(|| {
        let Some(ring) = ring() else {
            // Without ring and permission there is no console: the output is lost.
            let _ = hypercall::console::write(bytes);
            return;
        };
        if bytes.len() <= ring.room() || !write_at_once(&ring, bytes) {
            write_to_ring(&ring, bytes);
        }
    });
}

/// Takes typed bytes; returns how many.
pub fn read(buffer: &mut [u8]) -> usize {
    event::without(|| {
        let Some((taken, was_full)) = ring().map(|ring| ring.take(buffer)) else { return 0 };
        if was_full {
            // The service may have more bytes, and only this notification tells it of the room.
            let _ = event::send(Port(PORT.load(Ordering::Relaxed)));
        }
        taken
    })
}

/// Waits for a limited time until the console service has taken all output. Called before the domain ends.
pub fn drain() {
    /// Far more than a running service needs.
    const TURNS: usize = 1000;
    if let Some(ring) = ring() {
        (0..TURNS).take_while(|_| ring.room() < XENCONS_OUT_SIZE).for_each(|_| yield_now());
    }
}

/// Writes all bytes by one call; false if that is not allowed or would overtake bytes in the ring.
fn write_at_once(ring: &Ring, bytes: &[u8]) -> bool {
    if REFUSED.load(Ordering::Relaxed) || ring.room() < XENCONS_OUT_SIZE {
        return false;
    }
    let refused = hypercall::console::write(bytes).is_err();
    REFUSED.store(refused, Ordering::Relaxed);
    !refused
}

fn write_to_ring(ring: &Ring, mut bytes: &[u8]) {
    loop {
        let written = ring.put(bytes);
        bytes = &bytes[written..];
        if written > 0 {
            // Does not fail: the port came with the ring, and stays valid while the domain exists.
            let _ = event::send(Port(PORT.load(Ordering::Relaxed)));
        }
        if bytes.is_empty() {
            return;
        }
        if ring.room() == 0 {
            yield_now();
        }
    }
}

fn ring() -> Option<Ring> {
    let ring = RING.load(Ordering::Acquire);
    (!ring.is_null()).then_some(Ring(ring))
}

/// The page shared with the console service, which may write anything there at any time.
struct Ring(*mut XenconsInterface);

impl Ring {
    fn index(&self, field: *mut u32) -> &AtomicU32 {
        // SAFETY: `field` is one of the page's four indices: mapped, aligned, accessed as an atomic only.
        unsafe { AtomicU32::from_ptr(field) }
    }

    fn out_prod(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped (contract of `attach`).
        self.index(unsafe { &raw mut (*self.0).out_prod })
    }

    fn out_cons(&self) -> &AtomicU32 {
        // SAFETY: as above.
        self.index(unsafe { &raw mut (*self.0).out_cons })
    }

    fn in_prod(&self) -> &AtomicU32 {
        // SAFETY: as above.
        self.index(unsafe { &raw mut (*self.0).in_prod })
    }

    fn in_cons(&self) -> &AtomicU32 {
        // SAFETY: as above.
        self.index(unsafe { &raw mut (*self.0).in_cons })
    }

    /// How many bytes can be put in.
    fn room(&self) -> usize {
        let waiting =
            self.out_prod().load(Ordering::Relaxed).wrapping_sub(self.out_cons().load(Ordering::Acquire));
        XENCONS_OUT_SIZE.saturating_sub(waiting as usize)
    }

    /// Puts in as many bytes as there is room for; returns how many.
    fn put(&self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        let start = self.out_prod().load(Ordering::Relaxed);
        for (i, byte) in bytes[..count].iter().enumerate() {
            let place = mask_xencons_idx(start.wrapping_add(i as u32), XENCONS_OUT_SIZE);
            // SAFETY: `place` is inside the ring; the page is mapped.
            unsafe { (&raw mut (*self.0).out).cast::<u8>().add(place).write_volatile(*byte) };
        }
        self.out_prod().store(start.wrapping_add(count as u32), Ordering::Release);
        count
    }

    /// Takes as many bytes as fit; returns how many, and whether the service may have stopped because the ring was
    /// full.
    fn take(&self, buffer: &mut [u8]) -> (usize, bool) {
        let start = self.in_cons().load(Ordering::Relaxed);
        let waiting = self.in_prod().load(Ordering::Acquire).wrapping_sub(start) as usize;
        let count = buffer.len().min(waiting).min(XENCONS_IN_SIZE);
        for (i, byte) in buffer[..count].iter_mut().enumerate() {
            let place = mask_xencons_idx(start.wrapping_add(i as u32), XENCONS_IN_SIZE);
            // SAFETY: as in `put`.
            *byte = unsafe { (&raw const (*self.0).in_).cast::<u8>().add(place).read_volatile() };
        }
        // Our index is written before the service's is read again; the service does the reverse. So at least one of
        // the two sees the other's update.
        self.in_cons().store(start.wrapping_add(count as u32), Ordering::SeqCst);
        let filled = self.in_prod().load(Ordering::SeqCst).wrapping_sub(start) as usize;
        (count, count > 0 && filled >= XENCONS_IN_SIZE)
    }
}

/// The console as a [`Write`]: each piece is written at once. [`print!`](crate::print) collects the pieces first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

/// Collects pieces of text for one write.
struct Gather {
    bytes: [u8; 512],
    len: usize,
}

impl Gather {
    fn flush(&mut self) {
        write(&self.bytes[..self.len]);
        self.len = 0;
    }
}

impl Write for Gather {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > self.bytes.len() - self.len {
            self.flush();
        }
        match self.bytes.get_mut(self.len..self.len + text.len()) {
            Some(room) => {
                room.copy_from_slice(text.as_bytes());
                self.len += text.len();
            }
            None => write(text.as_bytes()),
        }
        Ok(())
    }
}

/// Prints formatted text in as few transitions as possible.
pub fn print(arguments: fmt::Arguments<'_>) {
    let mut gather = Gather { bytes: [0; 512], len: 0 };
    // Only a formatted value's own implementation can fail; its output before that is printed.
    let _ = gather.write_fmt(arguments);
    gather.flush();
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(::core::format_args!($($argument)*)) };
}

/// Prints to the console, with a newline.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($format:literal $($argument:tt)*) => { $crate::print!("{}\n", ::core::format_args!($format $($argument)*)) };
}

/// The console as a [`log::Log`].
#[cfg(feature = "log")]
struct Logger;

#[cfg(feature = "log")]
impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            crate::println!("[{:5}] {}: {}", record.level(), record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Sends the `log` crate's messages up to `level` to the console.
///
/// # Errors
/// When another logger was set before.
#[cfg(feature = "log")]
pub fn set_logger(level: log::LevelFilter) -> Result<(), log::SetLoggerError> {
    log::set_logger(&Logger)?;
    log::set_max_level(level);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Box<XenconsInterface> {
        Box::default()
    }

    #[test]
    fn output_wraps_around_and_stops_when_full() {
        let mut page = page();
        page.out_prod = u32::MAX - 1;
        page.out_cons = u32::MAX - 1;
        let ring = Ring(&raw mut *page);
        assert_eq!(ring.put(b"abcd"), 4);
        assert_eq!(ring.put(&[b'x'; XENCONS_OUT_SIZE]), XENCONS_OUT_SIZE - 4);
        assert_eq!((ring.room(), ring.put(b"more")), (0, 0));
        assert_eq!((page.out_prod, &page.out[..2]), (2046, &b"cd"[..]));
        assert_eq!(&page.out[2046..], b"ab");
    }

    #[test]
    fn input_is_taken_in_order() {
        let mut page = page();
        page.in_[..3].copy_from_slice(b"hey");
        page.in_prod = 3;
        let ring = Ring(&raw mut *page);
        let mut buffer = [0; 2];
        assert_eq!((ring.take(&mut buffer), buffer), ((2, false), *b"he"));
        assert_eq!((ring.take(&mut buffer), buffer[0]), ((1, false), b'y'));
        assert_eq!(ring.take(&mut buffer), (0, false));
    }

    #[test]
    fn the_service_hears_of_room_in_a_ring_that_was_full() {
        let mut page = page();
        (page.in_cons, page.in_prod) = (u32::MAX, XENCONS_IN_SIZE as u32 - 1);
        let ring = Ring(&raw mut *page);
        assert_eq!(ring.take(&mut []), (0, false), "nothing taken makes no room");
        assert_eq!(ring.take(&mut [0; 8]), (8, true));
        assert_eq!(ring.take(&mut [0; 8]), (8, false));
    }

    #[test]
    fn a_service_that_lies_about_indices_does_no_harm() {
        let mut page = page();
        page.in_prod = u32::MAX;
        page.out_cons = 5;
        let ring = Ring(&raw mut *page);
        assert_eq!(ring.take(&mut [0; 2 * XENCONS_IN_SIZE]).0, XENCONS_IN_SIZE);
        assert_eq!((ring.room(), ring.put(b"x")), (0, 0));
    }
}
