//! Takes down the exits of a vCPU while it runs.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use super::Exit;
use super::format::{Header, Totals};
use super::ring::{Batch, Ring};
use super::writer;
use crate::host::limit::Advice;
use crate::host::threads;
use crate::monitor::observe::{Observer, Seen};

/// How old an exit becomes at most, in nanoseconds, before it is given to the writer with the next one: what a run
/// that is ended hard loses.
const STALE_NS: u64 = 200_000_000;

/// Where a trace is to go.
pub struct Destination {
    /// The file. Frames are written in one piece each.
    pub file: Box<dyn Write + Send>,
    /// Where the image is, for whoever reads the trace: the bytes of an absolute path; none for a guest that is built
    /// in.
    pub image: Option<Vec<u8>>,
}

/// A trace cannot be begun.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread that writes the trace: {0}{advice}", advice = Advice::of_processes(.0))]
pub struct BeginError(io::Error);

/// What became of a trace.
#[derive(Debug)]
pub struct Outcome {
    /// What is in the file, and what is not.
    pub totals: Totals,
    /// Why writing it ended before the run did.
    pub error: Option<io::Error>,
}

/// An observer that writes each exit to a file, with the help of a thread.
///
/// On the vCPU's thread it costs a few stores an exit, and a swap of buffers now and then.
#[derive(Debug)]
pub struct Recorder {
    ring: Arc<Ring>,
    batch: Batch,
    thread: Thread,
    writer: JoinHandle<Outcome>,
    vcpu: u32,
}

impl Recorder {
    /// Begins the trace of the vCPU with this number.
    ///
    /// # Errors
    /// When there can be no thread for it. What goes wrong with the file is in the [`Outcome`].
    pub fn begin(to: Destination, mut header: Header, vcpu: u32) -> Result<Self, BeginError> {
        header.image.path = to.image;
        let ring = Arc::new(Ring::new());
        let theirs = Arc::clone(&ring);
        let writer = threads::spawn("trace", move || writer::write(&theirs, to.file, header));
        let writer = writer.map_err(BeginError)?;
        let thread = writer.thread().clone();
        Ok(Self { ring, batch: Batch::new(), thread, writer, vcpu })
    }

    /// Waits until all of it is in the file.
    pub fn finish(mut self) -> Outcome {
        // The writer may be behind by all of the ring.
        while !self.give() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.ring.close();
        self.thread.unpark();
        self.writer.join().unwrap_or_else(|_| Outcome {
            totals: Totals::default(),
            error: Some(io::Error::other("the thread that writes it panicked; this is a bug in Paravane")),
        })
    }

    fn give(&mut self) -> bool {
        let given = self.ring.give(&mut self.batch);
        if given {
            self.thread.unpark();
        }
        given
    }
}

impl Observer for Recorder {
    const WANTS_PLACE: bool = true;

    fn see(&mut self, exit: &Seen) {
        if self.batch.is_full() && !self.give() {
            self.batch.lost += 1;
            return;
        }
        let Seen { handled, left, entered, worked, place } = *exit;
        let waited = entered.saturating_sub(left).saturating_sub(worked);
        // Below `Cause::COUNT`, which fits.
        let cause = handled.cause.index() as u16;
        let vcpu = self.vcpu;
        self.batch.exits.push(Exit { vcpu, left, worked, waited, place, cause, mark: handled.mark });
        let oldest = self.batch.exits.first().map_or(left, |exit| exit.left);
        if self.batch.is_full() || entered.saturating_sub(oldest) >= STALE_NS {
            self.give();
        }
    }
}
