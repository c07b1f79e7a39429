//! Files.

use alloc::string::String;
use core::fmt::Write;

use super::super::abi::{Answer, Errno, O_ACCMODE, signal};
use super::super::files::File;
use super::super::pipe::Flow;
use super::super::table::{Process, State, Wait};
use super::{Call, Outcome};
use crate::console;

/// Bytes that are copied at a time.
const PART: usize = 4096;
/// The most bytes of one read or write, as under Linux.
const MOST: u64 = 0x7fff_f000;
const PATH_MAX: usize = 256;
/// `SEEK_SET`, `SEEK_CUR`, `SEEK_END`.
const FROM: [u64; 3] = [0, 1, 2];

impl Call<'_> {
    fn file(&mut self) -> Result<File, Errno> {
        let [number, ..] = self.arguments;
        let process = self.table.get(self.pid).ok_or(Errno::Srch)?;
        let numbers = process.numbers.clone();
        self.table.files.get(&numbers, number)
    }

    pub(super) fn read(&mut self) -> Outcome {
        let [_, into, len, ..] = self.arguments;
        let len = len.min(MOST);
        match self.file() {
            Err(errno) => errno.into(),
            Ok(File::Null) => Ok(0).into(),
            Ok(File::Zero) => self.read_zeroes(into, len).into(),
            Ok(File::Archive(bytes, at)) => self.read_bytes(bytes, at, into, len).into(),
            Ok(File::Processes(at)) => {
                let text = self.processes();
                self.read_bytes(text.as_bytes(), at, into, len).into()
            }
            Ok(File::Console) => self.read_console(into, len),
            Ok(File::PipeRead(pipe) | File::Pair(pipe, _)) => self.read_pipe(pipe, into, len),
            Ok(File::PipeWrite(_)) => Errno::BadF.into(),
        }
    }

    fn read_zeroes(&mut self, into: u64, len: u64) -> Answer {
        for at in (0..len).step_by(PART) {
            self.copy_to(into.saturating_add(at), &[0; PART][..(len - at).min(PART as u64) as usize])?;
        }
        Ok(len)
    }

    fn read_bytes(&mut self, bytes: &[u8], at: usize, into: u64, len: u64) -> Answer {
        let rest = bytes.get(at..).unwrap_or_default();
        let part = &rest[..rest.len().min(len as usize)];
        self.copy_to(into, part)?;
        let number = self.arguments[0];
        let numbers = self.process(|process| Ok(process.numbers.clone()))?;
        self.table.files.seek(&numbers, number, at + part.len());
        Ok(part.len() as u64)
    }

    fn read_console(&mut self, into: u64, len: u64) -> Outcome {
        let typed = &mut self.table.typed;
        let line = typed.iter().position(|byte| *byte == b'\n').map_or(typed.len(), |end| end + 1);
        let count = line.min(len as usize).min(PART);
        if count == 0 && len > 0 {
            let ended = core::mem::take(&mut self.table.typed_end);
            return if ended { Ok(0).into() } else { Outcome::Wait(Wait::Console) };
        }
        let mut part = [0; PART];
        part.iter_mut().zip(typed.drain(..count)).for_each(|(to, byte)| *to = byte);
        self.copy_to(into, &part[..count]).map(|()| count as u64).into()
    }

    fn read_pipe(&mut self, pipe: usize, into: u64, len: u64) -> Outcome {
        let mut part = [0; PART];
        let mut done = 0;
        while done < len || len == 0 {
            let count = (len - done).min(PART as u64) as usize;
            match self.table.files.read_pipe(pipe, &mut part[..count]) {
                Flow::Moved(0) => break,
                Flow::Moved(moved) => {
                    if let Err(errno) = self.copy_to(into.saturating_add(done), &part[..moved]) {
                        return errno.into();
                    }
                    done += moved as u64;
                }
                _ if done > 0 => break,
                _ => return Outcome::Wait(Wait::Pipe(pipe)),
            }
        }
        if done > 0 {
            self.table.wake_all(Wait::Pipe(pipe));
        }
        Ok(done).into()
    }

    pub(super) fn write(&mut self) -> Outcome {
        let [_, from, len, ..] = self.arguments;
        let len = len.min(MOST);
        match self.file() {
            Err(errno) => errno.into(),
            Ok(File::Null | File::Zero) => Ok(len).into(),
            Ok(File::Console) => self.write_console(from, len).into(),
            Ok(File::PipeWrite(pipe) | File::Pair(_, pipe)) => self.write_pipe(pipe, from, len),
            Ok(File::Archive(..) | File::Processes(_) | File::PipeRead(_)) => Errno::BadF.into(),
        }
    }

    fn write_console(&mut self, from: u64, len: u64) -> Answer {
        let mut part = [0; PART];
        for at in (0..len).step_by(PART) {
            let count = (len - at).min(PART as u64) as usize;
            match self.copy_from(from.saturating_add(at), &mut part[..count]) {
                Ok(()) => console::write(&part[..count]),
                Err(errno) if at == 0 => return Err(errno),
                Err(_) => return Ok(at),
            }
        }
        Ok(len)
    }

    /// Writes all, waiting for room as often as it takes.
    fn write_pipe(&mut self, pipe: usize, from: u64, len: u64) -> Outcome {
        let mut part = [0; PART];
        let mut done = self.process(|process| Ok(process.moved as u64)).unwrap_or(0);
        while done < len {
            let count = (len - done).min(PART as u64) as usize;
            if let Err(errno) = self.copy_from(from.saturating_add(done), &mut part[..count]) {
                return errno.into();
            }
            match self.table.files.write_pipe(pipe, &part[..count]) {
                Flow::Moved(moved) => done += moved as u64,
                Flow::Wait => {
                    self.table.wake_all(Wait::Pipe(pipe));
                    let _ = self.process(|process| {
                        process.moved = done as usize;
                        Ok(())
                    });
                    return Outcome::Wait(Wait::Pipe(pipe));
                }
                Flow::NoMemory => return Errno::NoMem.into(),
                Flow::Broken => {
                    self.table.signal(self.pid, signal::PIPE);
                    return Errno::Pipe.into();
                }
            }
        }
        self.table.wake_all(Wait::Pipe(pipe));
        Ok(done).into()
    }

    pub(super) fn open(&mut self) -> Answer {
        let [path, flags, ..] = self.arguments;
        let path = self.text_from(path, PATH_MAX)?;
        let file = match &path[..] {
            b"/dev/null" => File::Null,
            b"/dev/zero" => File::Zero,
            b"/dev/tty" | b"/dev/console" => File::Console,
            b"/proc/processes" => File::Processes(0),
            _ => File::Archive(self.table.archive.find(&path).ok_or(Errno::NoEnt)?, 0),
        };
        let writable = matches!(file, File::Null | File::Zero | File::Console);
        if flags & O_ACCMODE != 0 && !writable {
            return Err(Errno::RoFs);
        }
        self.with_numbers(|table, numbers| table.files.open(numbers, file))
    }

    /// Calls `f` with the table, and the process's files outside of it.
    fn with_numbers<T>(
        &mut self,
        f: impl FnOnce(&mut super::Table, &mut super::super::files::Numbers) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut numbers = self.process(|process| Ok(core::mem::take(&mut process.numbers)))?;
        let outcome = f(self.table, &mut numbers);
        self.process(|process| {
            process.numbers = numbers;
            Ok(())
        })?;
        outcome
    }

    pub(super) fn close(&mut self) -> Answer {
        let [number, ..] = self.arguments;
        let pipe = self.with_numbers(|table, numbers| table.files.close(numbers, number))?;
        if pipe {
            self.table.wake_pipes();
        }
        Ok(0)
    }

    pub(super) fn seek(&mut self) -> Answer {
        let [number, offset, from, ..] = self.arguments;
        let File::Archive(bytes, at) = self.file()? else { return Err(Errno::SPipe) };
        let start = match FROM.iter().position(|known| *known == from) {
            Some(0) => 0,
            Some(1) => at as u64,
            Some(2) => bytes.len() as u64,
            _ => return Err(Errno::Inval),
        };
        let to = start.wrapping_add(offset);
        if to > i64::MAX as u64 {
            return Err(Errno::Inval);
        }
        let numbers = self.process(|process| Ok(process.numbers.clone()))?;
        self.table.files.seek(&numbers, number, to as usize);
        Ok(to)
    }

    pub(super) fn pipe(&mut self) -> Answer {
        let [into, ..] = self.arguments;
        let ends = self.with_numbers(|table, numbers| table.files.pipe(numbers))?;
        self.two(into, ends)
    }

    pub(super) fn socket_pair(&mut self) -> Answer {
        let [_, _, _, into, ..] = self.arguments;
        let ends = self.with_numbers(|table, numbers| table.files.pair(numbers))?;
        self.two(into, ends)
    }

    /// Tells the process two numbers, or closes them.
    fn two(&mut self, into: u64, ends: [u64; 2]) -> Answer {
        let bytes: [[u8; 4]; 2] = ends.map(|number| (number as u32).to_le_bytes());
        let told = self.copy_to(into, bytes.as_flattened());
        if told.is_err() {
            self.with_numbers(|table, numbers| {
                ends.into_iter().try_for_each(|number| table.files.close(numbers, number).map(drop))
            })?;
        }
        told.map(|()| 0)
    }

    pub(super) fn duplicate(&mut self) -> Answer {
        let [number, to, ..] = self.arguments;
        let (to, pipe) = self.with_numbers(|table, numbers| table.files.duplicate(numbers, number, to))?;
        if pipe {
            self.table.wake_pipes();
        }
        Ok(to)
    }

    /// The list of processes, one a line.
    fn processes(&self) -> String {
        let mut text = String::new();
        for (pid, process) in self.table.all() {
            let Process { parent, name, state, ran, .. } = process;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = str::from_utf8(name).unwrap_or("?");
            let state = match state {
                State::Ready => "ready",
                State::Waiting(_) => "waits",
                State::Ended(_) => "ended",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{pid:>5} {parent:>5} {state} {:>6} ms {name}", ran / 1_000_000);
        }
        text
    }
}
