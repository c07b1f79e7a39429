//! A trace, one exit after the other.
//!
//! What may not be done here: believing the file, or holding more of it than one frame.

use std::io::Read;

use super::Exit;
use super::format::{
    Coded, Damage, Exits, Frame, Header, MOST_VCPUS, StartError, Totals, read_frame, read_start,
};

/// What a trace consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An exit.
    Exit(Exit),
    /// So many exits of a vCPU are not in the file.
    Lost {
        /// Of which vCPU.
        vcpu: u32,
        /// The system time of the last one before them.
        after: u64,
        /// How many.
        count: u64,
    },
}

/// Reads a trace. As an iterator it ends with the file or at the first damage.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    header: Header,
    buffer: Vec<u8>,
    frame: Exits,
    /// How many exits of `frame` were read.
    next: usize,
    /// The system time of the last of them.
    time: u64,
    seen: Totals,
    state: State,
}

#[derive(Debug)]
enum State {
    Reading,
    Whole,
    Damaged(Damage),
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub fn open(mut input: R) -> Result<Self, StartError> {
        read_start(&mut input)?;
        let mut buffer = Vec::new();
        let header = match read_frame(&mut input, &mut buffer).map_err(StartError::Damaged)? {
            Some(Frame::Header(header)) => header,
            None => return Err(StartError::Damaged(Damage::CutOff)),
            Some(_) => return Err(StartError::Damaged(Damage::Nonsense)),
        };
        let (frame, seen, state) = (Exits::default(), Totals::default(), State::Reading);
        Ok(Self { input, header, buffer, frame, next: 0, time: 0, seen, state })
    }

    /// What the trace is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What was read so far.
    pub fn totals(&self) -> Totals {
        self.seen
    }

    /// What is wrong with the file, once it has been read: `None` if it is whole.
    pub fn damage(&self) -> Option<&Damage> {
        match &self.state {
            State::Damaged(damage) => Some(damage),
            State::Reading | State::Whole => None,
        }
    }

    fn advance(&mut self) -> Result<Option<Entry>, Damage> {
        while matches!(self.state, State::Reading) {
            if let Some(coded) = self.frame.exits.get(self.next).copied() {
                self.next += 1;
                return self.exit(coded).map(Some);
            }
            let lost = std::mem::take(&mut self.frame.lost);
            if lost != 0 {
                self.seen.lost = self.seen.lost.checked_add(lost).ok_or(Damage::Nonsense)?;
                return Ok(Some(Entry::Lost { vcpu: self.frame.vcpu, after: self.time, count: lost }));
            }
            self.frame()?;
        }
        Ok(None)
    }

    fn exit(&mut self, coded: Coded) -> Result<Entry, Damage> {
        let Coded { since, cause, worked, waited, place, mark } = coded;
        self.time = self.time.checked_add(since).ok_or(Damage::Nonsense)?;
        let left = self.time;
        let ends = left.checked_add(worked).and_then(|time| time.checked_add(waited));
        if ends.is_none() || usize::from(cause) >= self.header.causes.len() {
            return Err(Damage::Nonsense);
        }
        self.seen.exits += 1;
        Ok(Entry::Exit(Exit { vcpu: self.frame.vcpu, left, worked, waited, place, cause, mark }))
    }

    fn frame(&mut self) -> Result<(), Damage> {
        match read_frame(&mut self.input, &mut self.buffer)?.ok_or(Damage::CutOff)? {
            Frame::Exits(exits) if exits.vcpu < MOST_VCPUS => {
                // The times in a frame begin at 0.
                (self.frame, self.next, self.time) = (exits, 0, 0);
                Ok(())
            }
            Frame::End(totals) if totals == self.seen => {
                self.state = State::Whole;
                let more = read_frame(&mut self.input, &mut self.buffer);
                if matches!(more, Ok(None)) { Ok(()) } else { Err(Damage::PastTheEnd) }
            }
            _ => Err(Damage::Nonsense),
        }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        match self.advance() {
            Ok(entry) => entry,
            Err(damage) => {
                self.state = State::Damaged(damage);
                None
            }
        }
    }
}
