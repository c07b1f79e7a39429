//! Files.

use core::fmt::{self, Write};

use super::super::abi::{Answer, Errno, O_ACCMODE, signal};
use super::super::files::File;
use super::super::pipe::Flow;
use super::super::table::{Process, State, Wait};
use super::{Call, Outcome};
use crate::{console, exception};

/// Bytes that are copied at a time.
const PART: usize = 4096;
/// The most bytes of one read or write, as under Linux.
const MOST: u64 = 0x7fff_f000;
const PATH_MAX: usize = 256;
/// `SEEK_SET`, `SEEK_CUR`, `SEEK_END`.
const FROM: [u64; 3] = [0, 1, 2];

impl Call<'_> {
    /// The place of the file that the first argument names among all that are open.
    fn place(&mut self) -> Result<usize, Errno> {
        let [number, ..] = self.arguments;
        self.process(|process| process.numbers.get(number))
    }

    fn file(&mut self) -> Result<File, Errno> {
        let open = self.place()?;
        self.table.files.get(open)
    }

    pub(super) fn read(&mut self) -> Outcome {
        let [_, into, len, ..] = self.arguments;
        let len = len.min(MOST);
        match self.file() {
            Err(errno) => errno.into(),
            Ok(File::Null | File::Mark) => Ok(0).into(),
            Ok(File::Zero) => self.read_zeroes(into, len).into(),
            Ok(File::Archive(bytes, at)) => self.read_bytes(bytes, at, into, len).into(),
            Ok(File::Processes(at)) => {
                let mut part = [0; PART];
                let count = self.processes(at, &mut part[..len.min(PART as u64) as usize]);
                self.read_part(&part[..count], at, into).into()
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
        self.read_part(&rest[..rest.len().min(len as usize)], at, into)
    }

    /// Reads what is at `at` of a file that has a position.
    fn read_part(&mut self, part: &[u8], at: usize, into: u64) -> Answer {
        self.copy_to(into, part)?;
        let open = self.place()?;
        self.table.files.seek(open, at + part.len());
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
        part.iter_mut().zip(typed.range(..count)).for_each(|(to, byte)| *to = *byte);
        if let Err(errno) = self.copy_to(into, &part[..count]) {
            return errno.into();
        }
        self.table.typed.drain(..count);
        Ok(count as u64).into()
    }

    fn read_pipe(&mut self, pipe: usize, into: u64, len: u64) -> Outcome {
        let mut part = [0; PART];
        let mut done = 0;
        while done < len || len == 0 {
            let count = (len - done).min(PART as u64) as usize;
            match self.table.files.look_into_pipe(pipe, &mut part[..count]) {
                Flow::Moved(0) => break,
                // What cannot be told stays in the pipe.
                Flow::Moved(moved) => match self.copy_to(into.saturating_add(done), &part[..moved]) {
                    Ok(()) => {
                        self.table.files.take_from_pipe(pipe, moved);
                        done += moved as u64;
                    }
                    Err(errno) if done == 0 => return errno.into(),
                    Err(_) => break,
                },
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
            Ok(File::Mark) => self.write_mark(from, len).into(),
            Ok(File::PipeWrite(pipe) | File::Pair(_, pipe)) => self.write_pipe(pipe, from, len),
            Ok(File::Archive(..) | File::Processes(_) | File::PipeRead(_)) => Errno::BadF.into(),
        }
    }

    /// One byte at a time: nothing but marks is between two marks.
    fn write_mark(&mut self, from: u64, len: u64) -> Answer {
        let mut code = [0; 1];
        let code = &mut code[..len.min(1) as usize];
        self.copy_from(from, code)?;
        code.iter().for_each(|code| exception::tell(*code));
        Ok(code.len() as u64)
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
            let refused = self.table.files.pipe_grows(pipe, count) && !self.may_grow();
            let flow =
                if refused { Flow::NoMemory } else { self.table.files.write_pipe(pipe, &part[..count]) };
            match flow {
                Flow::Moved(moved) => done += moved as u64,
                Flow::Wait => {
                    self.table.wake_all(Wait::Pipe(pipe));
                    let _ = self.process(|process| {
                        process.moved = done as usize;
                        Ok(())
                    });
                    return Outcome::Wait(Wait::Pipe(pipe));
                }
                Flow::NoMemory if done > 0 => break,
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
            b"/dev/mark" => File::Mark,
            b"/proc/processes" => File::Processes(0),
            _ => File::Archive(self.table.archive.find(&path).ok_or(Errno::NoEnt)?, 0),
        };
        let writable = matches!(file, File::Null | File::Zero | File::Console | File::Mark);
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
        let [_, offset, from, ..] = self.arguments;
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
        let open = self.place()?;
        self.table.files.seek(open, to as usize);
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

    /// The list of processes, one a line: the part of it that begins at `at`. How long that is.
    fn processes(&self, at: usize, into: &mut [u8]) -> usize {
        let mut text = Part { skip: at, into, len: 0 };
        for (pid, process) in self.table.all() {
            let Process { parent, name, state, ran, .. } = process;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = str::from_utf8(name).unwrap_or("?");
            let state = match state {
                State::Ready => "ready",
                State::Waiting(_) => "waits",
                State::Ended(_) => "ended",
            };
            if writeln!(text, "{pid:>5} {parent:>5} {state} {:>6} ms {name}", ran / 1_000_000).is_err() {
                break;
            }
        }
        text.len
    }
}

/// A part of a text, without memory for the rest of it. What comes after it is an error.
struct Part<'p> {
    skip: usize,
    into: &'p mut [u8],
    len: usize,
}

impl Write for Part<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let skipped = self.skip.min(text.len());
        self.skip -= skipped;
        let rest = &text.as_bytes()[skipped..];
        let count = rest.len().min(self.into.len() - self.len);
        self.into[self.len..self.len + count].copy_from_slice(&rest[..count]);
        self.len += count;
        if count == rest.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
