//! System calls: what a process asks for, by its registers.
#![forbid(unsafe_code)]

mod files;
mod memory;
mod processes;
mod signals;
mod time;

use super::abi::{Answer, Errno, number};
use super::table::{FIRST, Pid, Process, Table, Wait};
use crate::kernel::Memory;
use crate::memory::heap;

pub use processes::execute;

/// What comes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Answer(Answer),
    /// It must be made again when this has come.
    Wait(Wait),
    /// It is done, and others may run.
    Yield,
    /// The process goes on with other registers.
    Replaced,
    /// The process has ended.
    Ended,
}

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

impl From<Errno> for Outcome {
    fn from(errno: Errno) -> Self {
        Self::Answer(Err(errno))
    }
}

/// What a system call takes of the heap at most, in one piece: for the arguments of `execve`, for a fork of a process
/// with as many areas and handlers as it may have. An allocation that fails ends the kernel, so nothing begins without.
const EXECVE_HEAP: usize = 24 << 10;
const CALL_HEAP: usize = 32 << 10;
/// What programs leave to the first process, so that it can start others that end them.
const HEAP_FOR_FIRST: usize = 96 << 10;

/// A system call in progress.
struct Call<'t> {
    table: &'t mut Table,
    memory: &'t mut Memory,
    pid: Pid,
    arguments: [u64; 6],
}

/// Makes the system call that the process's registers say.
pub fn make(table: &mut Table, memory: &mut Memory, pid: Pid) -> Outcome {
    let Some(process) = table.get(pid) else { return Outcome::Ended };
    let r = process.context.registers;
    let call = Call { table, memory, pid, arguments: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] };
    call.make(r.rax)
}

impl Call<'_> {
    fn make(mut self, which: u64) -> Outcome {
        let pid = self.pid;
        if !self.has_heap(which) {
            return Errno::NoMem.into();
        }
        match which {
            number::READ => self.read(),
            number::WRITE => self.write(),
            number::OPEN => self.open().into(),
            number::CLOSE => self.close().into(),
            number::LSEEK => self.seek().into(),
            number::PIPE | number::PIPE2 => self.pipe().into(),
            number::SOCKETPAIR => self.socket_pair().into(),
            number::DUP2 => self.duplicate().into(),
            number::MMAP => self.map().into(),
            number::MPROTECT => self.protect().into(),
            number::MUNMAP => self.unmap().into(),
            number::BRK => self.set_break().into(),
            number::RT_SIGACTION => self.action().into(),
            number::RT_SIGPROCMASK => self.block_signals().into(),
            number::RT_SIGRETURN => self.return_from_signal(),
            number::KILL => self.kill().into(),
            number::PAUSE => Outcome::Wait(Wait::Signal),
            number::SCHED_YIELD => Outcome::Yield,
            number::NANOSLEEP => self.sleep(),
            number::CLOCK_GETTIME => self.clock().into(),
            number::GETPID | number::GETTID => Ok(pid as u64).into(),
            number::GETPPID => self.process(|process| Ok(process.parent as u64)).into(),
            number::FORK => self.fork().into(),
            number::EXECVE => self.execve(),
            number::EXIT | number::EXIT_GROUP => self.exit(),
            number::WAIT4 => self.wait(),
            number::ARCH_PRCTL => self.set_base().into(),
            _ => Errno::NoSys.into(),
        }
    }

    /// Whether the kernel has the memory that a system call may take.
    fn has_heap(&self, which: u64) -> bool {
        match which {
            number::OPEN | number::PIPE | number::PIPE2 | number::SOCKETPAIR | number::EXECVE => {
                heap::has_run(EXECVE_HEAP)
            }
            number::MMAP | number::MPROTECT | number::MUNMAP | number::RT_SIGACTION | number::FORK => {
                self.may_grow()
            }
            _ => true,
        }
    }

    /// Whether the process may make the kernel remember more for it.
    fn may_grow(&self) -> bool {
        heap::has_run(CALL_HEAP + if self.pid == FIRST { 0 } else { HEAP_FOR_FIRST })
    }

    fn process<T>(&mut self, f: impl FnOnce(&mut Process) -> Result<T, Errno>) -> Result<T, Errno> {
        self.table.get(self.pid).ok_or(Errno::Srch).and_then(f)
    }

    /// Copies from the process's memory.
    fn copy_from(&mut self, va: u64, into: &mut [u8]) -> Result<(), Errno> {
        let Some(Process { space: Some(space), .. }) = self.table.get(self.pid) else {
            return Err(Errno::Fault);
        };
        Ok(space.copy_from(self.memory, va, into)?)
    }

    /// Copies to the process's memory.
    fn copy_to(&mut self, va: u64, from: &[u8]) -> Result<(), Errno> {
        let Some(Process { space: Some(space), .. }) = self.table.get(self.pid) else {
            return Err(Errno::Fault);
        };
        Ok(space.copy_to(self.memory, va, from)?)
    }

    fn word_from(&mut self, va: u64) -> Result<u64, Errno> {
        let mut word = [0; 8];
        self.copy_from(va, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// A text that ends with a zero, of at most `max` bytes.
    fn text_from(&mut self, va: u64, max: usize) -> Result<alloc::vec::Vec<u8>, Errno> {
        let mut text = alloc::vec::Vec::new();
        let mut part = [0; 64];
        let mut at = va;
        while text.len() <= max {
            // Up to the end of a page: the next one may be nobody's.
            let count = (64 - at % 64) as usize;
            self.copy_from(at, &mut part[..count])?;
            let end = part[..count].iter().position(|byte| *byte == 0);
            text.extend(&part[..end.unwrap_or(count)]);
            if end.is_some() && text.len() <= max {
                return Ok(text);
            }
            at = at.checked_add(count as u64).ok_or(Errno::Fault)?;
        }
        Err(Errno::TooBig)
    }
}
