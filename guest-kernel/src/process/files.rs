//! Open files, and which of them a process knows by which number.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::abi::Errno;
use super::pipe::{Flow, Pipe};

/// Files that a process may have open.
const MAX_NUMBERS: usize = 64;
/// Files that may be open in all, for each process that there may be, and at least and at most.
const OPEN_EACH: usize = 4;
const MAX_OPEN: RangeInclusive<usize> = 128..=4096;
/// Pipes that there may be.
const MAX_PIPES: usize = 128;
/// Of both, how many only the first process may have.
const KEPT_FOR_FIRST: usize = 16;

/// What an open file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The console.
    Console,
    /// A file of the archive, and how far it was read.
    Archive(&'static [u8], usize),
    /// Reads end at once, and writes go nowhere.
    Null,
    /// Reads are zeroes, and writes go nowhere.
    Zero,
    /// A list of processes, and how far it was read.
    Processes(usize),
    /// Writes are marks for an observer outside of the machine, a byte each.
    Mark,
    /// The end of a pipe to read from.
    PipeRead(usize),
    /// The end of a pipe to write to.
    PipeWrite(usize),
    /// One end of two pipes: what is read, what is written.
    Pair(usize, usize),
}

/// The files that a process knows by number.
#[derive(Clone, Debug)]
pub struct Numbers {
    open: [Option<u16>; MAX_NUMBERS],
    /// Whether these are the first process's.
    first: bool,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { open: [None; MAX_NUMBERS], first: false }
    }
}

/// All open files. The lists have room for all that there may be from the start.
#[derive(Debug)]
pub struct Files {
    open: Vec<Option<(File, u32)>>,
    pipes: Vec<Option<Pipe>>,
}

impl Numbers {
    /// None, of the first process.
    pub fn of_first() -> Self {
        Self { first: true, ..Self::default() }
    }

    /// The places that are to be left to others.
    const fn kept(&self) -> usize {
        if self.first { 0 } else { KEPT_FOR_FIRST }
    }

    /// The open file of a number.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, number: u64) -> Result<usize, Errno> {
        let slot = usize::try_from(number).ok().and_then(|number| self.open.get(number).copied());
        slot.flatten().map(usize::from).ok_or(Errno::BadF)
    }

    /// Gives an open file the lowest free number.
    fn add(&mut self, open: usize) -> Result<u64, Errno> {
        self.set(self.open.iter().position(Option::is_none).ok_or(Errno::MFile)?, open)
    }

    fn set(&mut self, number: usize, open: usize) -> Result<u64, Errno> {
        let open = u16::try_from(open).map_err(|_| Errno::NFile)?;
        *self.open.get_mut(number).ok_or(Errno::MFile)? = Some(open);
        Ok(number as u64)
    }
}

/// Puts a value where none is, and leaves so many places free.
fn place<T>(all: &mut Vec<Option<T>>, kept: usize, value: T) -> Result<usize, Errno> {
    if all.iter().flatten().count() + kept >= all.capacity() {
        return Err(Errno::NFile);
    }
    let free = all.iter().position(Option::is_none).unwrap_or(all.len());
    if free == all.len() {
        all.push(None);
    }
    all[free] = Some(value);
    Ok(free)
}

impl Files {
    /// None, of so many processes.
    pub fn new(processes: usize) -> Self {
        let open = (processes * OPEN_EACH).clamp(*MAX_OPEN.start(), *MAX_OPEN.end());
        Self { open: Vec::with_capacity(open), pipes: Vec::with_capacity(MAX_PIPES) }
    }

    /// Opens a file for a process.
    ///
    /// # Errors
    /// When too many are open.
    pub fn open(&mut self, numbers: &mut Numbers, file: File) -> Result<u64, Errno> {
        let open = place(&mut self.open, numbers.kept(), (file, 1))?;
        numbers.add(open).inspect_err(|_| self.open[open] = None)
    }

    /// Makes a pipe, and opens both ends.
    ///
    /// # Errors
    /// When there are too many.
    pub fn pipe(&mut self, numbers: &mut Numbers) -> Result<[u64; 2], Errno> {
        let pipe = place(&mut self.pipes, numbers.kept(), Pipe::new()?)?;
        self.open_two(numbers, File::PipeRead(pipe), File::PipeWrite(pipe))
            .inspect_err(|_| self.pipes[pipe] = None)
    }

    /// Makes two connected ends, each to read from and write to.
    ///
    /// # Errors
    /// When there are too many.
    pub fn pair(&mut self, numbers: &mut Numbers) -> Result<[u64; 2], Errno> {
        let one = place(&mut self.pipes, numbers.kept(), Pipe::new()?)?;
        let other = Pipe::new().and_then(|pipe| place(&mut self.pipes, numbers.kept(), pipe));
        let other = other.inspect_err(|_| self.pipes[one] = None)?;
        self.open_two(numbers, File::Pair(one, other), File::Pair(other, one)).inspect_err(|_| {
            (self.pipes[one], self.pipes[other]) = (None, None);
        })
    }

    fn open_two(&mut self, numbers: &mut Numbers, one: File, other: File) -> Result<[u64; 2], Errno> {
        let first = self.open(numbers, one)?;
        match self.open(numbers, other) {
            Ok(second) => Ok([first, second]),
            Err(errno) => {
                if let Some(open) = numbers.open[first as usize].take() {
                    self.open[usize::from(open)] = None;
                }
                Err(errno)
            }
        }
    }

    /// An open file.
    ///
    /// # Errors
    /// When it is not open.
    pub fn get(&self, open: usize) -> Result<File, Errno> {
        self.open.get(open).copied().flatten().map(|(file, _)| file).ok_or(Errno::BadF)
    }

    /// Notes how far a file was read.
    pub fn seek(&mut self, open: usize, to: usize) {
        if let Some(Some((File::Archive(_, at) | File::Processes(at), _))) = self.open.get_mut(open) {
            *at = to;
        }
    }

    /// Closes a number. True if it was the end of a pipe, so that whoever waits at the other must look.
    ///
    /// # Errors
    /// When nothing is open there.
    pub fn close(&mut self, numbers: &mut Numbers, number: u64) -> Result<bool, Errno> {
        let open = numbers.get(number)?;
        numbers.open[number as usize] = None;
        Ok(self.drop_one(open))
    }

    fn drop_one(&mut self, open: usize) -> bool {
        let Some((file, count)) = &mut self.open[open] else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        let file = *file;
        self.open[open] = None;
        let (read, write) = match file {
            File::PipeRead(pipe) => (Some(pipe), None),
            File::PipeWrite(pipe) => (None, Some(pipe)),
            File::Pair(one, other) => (Some(one), Some(other)),
            _ => return false,
        };
        if let Some(pipe) = read.and_then(|pipe| self.pipes[pipe].as_mut()) {
            pipe.readers -= 1;
        }
        if let Some(pipe) = write.and_then(|pipe| self.pipes[pipe].as_mut()) {
            pipe.writers -= 1;
        }
        for pipe in [read, write].into_iter().flatten() {
            if self.pipes[pipe].as_ref().is_some_and(|pipe| pipe.readers == 0 && pipe.writers == 0) {
                self.pipes[pipe] = None;
            }
        }
        true
    }

    /// Gives an open file another number, in place of what has it.
    ///
    /// # Errors
    /// When the first number is nobody's, or the second too high.
    pub fn duplicate(&mut self, numbers: &mut Numbers, number: u64, to: u64) -> Result<(u64, bool), Errno> {
        let open = numbers.get(number)?;
        if number == to {
            return Ok((to, false));
        }
        let at = usize::try_from(to).ok().filter(|to| *to < MAX_NUMBERS).ok_or(Errno::BadF)?;
        let closed = self.close(numbers, to).unwrap_or(false);
        numbers.set(at, open)?;
        self.count(open);
        Ok((to, closed))
    }

    fn count(&mut self, open: usize) {
        if let Some((_, count)) = &mut self.open[open] {
            *count += 1;
        }
    }

    /// A child has its parent's files.
    pub fn inherit(&mut self, parent: &Numbers) -> Numbers {
        parent.open.iter().flatten().for_each(|open| self.count(usize::from(*open)));
        Numbers { first: false, ..parent.clone() }
    }

    /// Closes everything of a process. True if ends of pipes were among it.
    pub fn close_all(&mut self, numbers: &mut Numbers) -> bool {
        let open = core::mem::replace(&mut numbers.open, [None; MAX_NUMBERS]);
        open.into_iter().flatten().fold(false, |any, open| self.drop_one(open.into()) | any)
    }

    /// Shows the first bytes of a pipe.
    pub fn look_into_pipe(&self, pipe: usize, into: &mut [u8]) -> Flow {
        self.pipes[pipe].as_ref().map_or(Flow::Moved(0), |pipe| pipe.look(into))
    }

    /// Takes bytes of a pipe that were seen.
    pub fn take_from_pipe(&mut self, pipe: usize, count: usize) {
        if let Some(pipe) = self.pipes[pipe].as_mut() {
            pipe.take(count);
        }
    }

    /// Whether a pipe needs memory for so many more bytes.
    pub fn pipe_grows(&self, pipe: usize, count: usize) -> bool {
        self.pipes[pipe].as_ref().is_some_and(|pipe| pipe.grows(count))
    }

    /// Writes to a pipe.
    pub fn write_pipe(&mut self, pipe: usize, from: &[u8]) -> Flow {
        self.pipes[pipe].as_mut().map_or(Flow::Broken, |pipe| pipe.write(from))
    }
}
