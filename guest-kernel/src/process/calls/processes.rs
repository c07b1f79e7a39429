//! Processes.

use alloc::boxed::Box;
use alloc::vec::Vec;

use paravane_guest::user::UserContext;

use super::super::abi::{Answer, Errno, WNOHANG, exited, signal};
use super::super::signals::SIGNALS;
use super::super::space::Space;
use super::super::start::{self, ARGUMENT_BYTES, ARGUMENTS};
use super::super::table::{FIRST, Pid, Process, State, Table, Wait};
use super::{Call, Outcome};
use crate::kernel::Memory;

const PATH_MAX: usize = 256;
/// A process number that means all, or any.
const ANY: u64 = u64::MAX;

/// Makes a process run a program. Without success it stays as it was.
///
/// # Errors
/// When the file is not there or no program, or memory runs out.
pub fn execute(
    table: &mut Table,
    memory: &mut Memory,
    pid: Pid,
    path: &[u8],
    arguments: &[Vec<u8>],
) -> Result<(), Errno> {
    let file = table.archive.find(path).ok_or(Errno::NoEnt)?;
    let start = start::prepare(file, arguments)?;
    let mut space = Space::new(memory, pid == FIRST)?;
    space.set_heap(start.heap);
    let filled = start
        .areas
        .into_iter()
        .try_for_each(|area| space.add(area))
        .and_then(|()| Ok(space.copy_to(memory, start.stack, &start.contents)?));
    let process = table.get(pid).ok_or(Errno::Srch);
    let process = match filled.and(process) {
        Ok(process) => process,
        Err(errno) => {
            space.destroy(memory);
            return Err(errno);
        }
    };
    *process.context = UserContext::new(start.entry, start.stack);
    process.signals.reset();
    process.name = [0; 16];
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    process.name.iter_mut().take(15).zip(name).for_each(|(to, byte)| *to = *byte);
    if let Some(old) = process.space.replace(space) {
        super::super::turn::forget(memory);
        old.destroy(memory);
    }
    Ok(())
}

impl Call<'_> {
    pub(super) fn fork(&mut self) -> Answer {
        let parent = self.pid;
        self.table.has_room(parent)?;
        let Some(process) = self.table.get(parent) else { return Err(Errno::Srch) };
        let Process { space: Some(space), .. } = process else { return Err(Errno::Srch) };
        let space = space.fork(self.memory)?;
        let mut context: Box<UserContext> = process.context.clone();
        context.registers.rax = 0;
        let (name, signals, numbers) = (process.name, process.signals.for_child(), process.numbers.clone());
        let numbers = self.table.files.inherit(&numbers);
        let child = self.table.add(Process {
            parent,
            name,
            state: State::Ready,
            context,
            space: Some(space),
            numbers,
            signals,
            again: false,
            moved: 0,
            sleeps_until: None,
            ran: 0,
        });
        Ok(child as u64)
    }

    pub(super) fn execve(&mut self) -> Outcome {
        let [path, arguments, ..] = self.arguments;
        let done = self.text_from(path, PATH_MAX).and_then(|path| {
            let arguments = self.arguments_from(arguments)?;
            execute(self.table, self.memory, self.pid, &path, &arguments)
        });
        match done {
            Ok(()) => Outcome::Replaced,
            Err(errno) => errno.into(),
        }
    }

    fn arguments_from(&mut self, list: u64) -> Result<Vec<Vec<u8>>, Errno> {
        let (mut all, mut left) = (Vec::new(), ARGUMENT_BYTES);
        for at in (0..=ARGUMENTS as u64).map(|index| list.checked_add(index * 8)) {
            match self.word_from(at.ok_or(Errno::Fault)?)? {
                0 => return Ok(all),
                text => {
                    let argument = self.text_from(text, left.checked_sub(1).ok_or(Errno::TooBig)?)?;
                    left -= argument.len() + 1;
                    all.push(argument);
                }
            }
        }
        Err(Errno::TooBig)
    }

    pub(super) fn exit(&mut self) -> Outcome {
        self.table.end(self.memory, self.pid, exited(self.arguments[0]));
        Outcome::Ended
    }

    pub(super) fn wait(&mut self) -> Outcome {
        let [which, into, options, ..] = self.arguments;
        let (mut any, mut ended) = (false, None);
        for (pid, process) in self.table.all() {
            if process.parent == self.pid && (which == ANY || which as usize == pid) {
                any = true;
                if let State::Ended(status) = process.state {
                    ended = Some((pid, status));
                    break;
                }
            }
        }
        match ended {
            Some((pid, status)) => {
                if into != 0
                    && let Err(errno) = self.copy_to(into, &status.to_le_bytes())
                {
                    return errno.into();
                }
                self.table.reap(pid);
                Ok(pid as u64).into()
            }
            None if !any => Errno::Child.into(),
            None if options & WNOHANG != 0 => Ok(0).into(),
            None => Outcome::Wait(Wait::Child),
        }
    }

    pub(super) fn kill(&mut self) -> Answer {
        let [which, number, ..] = self.arguments;
        if number >= SIGNALS.into() {
            return Err(Errno::Inval);
        }
        let own = self.pid;
        let mut found = false;
        for pid in self.table.pids() {
            let meant = if which == ANY { pid != FIRST && pid != own } else { pid as u64 == which };
            let Some(process) = self.table.get(pid).filter(|_| meant) else { continue };
            found = true;
            // As under Linux, the first process gets no signal that it has no handler for.
            let spared = pid == FIRST && process.signals.action(number as u8).handler == 0;
            if number != 0 && !spared {
                self.table.signal(pid, number as u8);
            }
        }
        if found { Ok(0) } else { Err(Errno::Srch) }
    }
}

const _: () = assert!(signal::KILL < SIGNALS);
