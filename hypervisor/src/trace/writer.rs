//! The thread that writes a trace: it takes what a recorder gives, encodes it, and writes it.

use std::io::{self, Write};
use std::thread;

use super::format::{Coded, Exits, Frame, Header, Totals, write_frame, write_start};
use super::record::Outcome;
use super::ring::{Batch, Ring, Taken};

/// Writes all that comes through `ring`. After an error it goes on taking, and counts what it takes as lost.
pub(super) fn write(ring: &Ring, file: Box<dyn Write + Send>, header: Header) -> Outcome {
    let mut writer =
        Writer { file, buffer: Vec::new(), coded: Vec::new(), totals: Totals::default(), error: None };
    writer.attempt(|writer| {
        write_start(&mut writer.file)?;
        writer.frame(&Frame::Header(header))
    });
    loop {
        match ring.take(|batch| writer.batch(batch)) {
            Taken::Batch => {}
            // Giving unparks: what was given since is not overlooked.
            Taken::Nothing => thread::park(),
            Taken::Closed => break,
        }
    }
    let totals = writer.totals;
    writer.attempt(|writer| {
        writer.frame(&Frame::End(totals))?;
        writer.file.flush()
    });
    Outcome { totals, error: writer.error }
}

struct Writer {
    file: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    coded: Vec<Coded>,
    totals: Totals,
    error: Option<io::Error>,
}

impl Writer {
    fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        write_frame(&mut self.file, frame, &mut self.buffer)
    }

    /// Does something that may fail, unless something failed before; whether it was done.
    fn attempt(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) -> bool {
        if self.error.is_none() {
            self.error = work(self).err();
        }
        self.error.is_none()
    }

    fn batch(&mut self, batch: &Batch) {
        let vcpu = batch.exits.first().map_or(0, |exit| exit.vcpu);
        let mut before = 0;
        let mut exits = std::mem::take(&mut self.coded);
        exits.clear();
        exits.extend(batch.exits.iter().map(|exit| {
            let since = exit.left.saturating_sub(before);
            before = exit.left;
            let super::Exit { cause, worked, waited, place, mark, .. } = *exit;
            Coded { since, cause, worked, waited, place, mark }
        }));
        let count = exits.len() as u64;
        let frame = Frame::Exits(Exits { vcpu, exits, lost: batch.lost });
        let written = self.attempt(|writer| writer.frame(&frame));
        self.totals.lost += batch.lost + if written { 0 } else { count };
        self.totals.exits += if written { count } else { 0 };
        if let Frame::Exits(Exits { exits, .. }) = frame {
            self.coded = exits;
        }
    }
}
