//! Processes, who waits for what, and whose turn it is.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::Range;

use paravane_guest::user::UserContext;

use super::abi::{Errno, signal};
use super::archive::Archive;
use super::files::{Files, Numbers};
use super::signals::Signals;
use super::space::Space;
use crate::kernel::Memory;
use crate::line_editor::LineEditor;

/// A process's number. Numbers are used again.
pub type Pid = usize;
/// The first process, which takes over orphans, and with which all end.
pub const FIRST: Pid = 1;
/// Processes that there may be, if the heap has room.
const MAX_PROCESSES: usize = 2048;
/// Of these, how many only the first process may make: whoever is to end the others.
const KEPT_FOR_FIRST: usize = 16;
/// Turns that those who have waited get at most before one of the others.
const FAVOURS: u32 = 16;
/// What most processes take of the heap at most. Of those that take more there may be less.
const HEAP_EACH: usize = 6 << 10;

/// Bytes of typed lines that wait to be read.
pub const TYPED_MAX: usize = 4096;

/// What a process waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A child that ends.
    Child,
    /// A pipe.
    Pipe(usize),
    /// A time of the clock.
    Until(u64),
    /// Something typed.
    Console,
    /// A signal.
    Signal,
}

/// Whether a process can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is in the queue, or runs.
    Ready,
    /// It waits.
    Waiting(Wait),
    /// It has ended; its parent has not asked yet. The status is `wait4`'s.
    Ended(u32),
}

/// A process.
#[derive(Debug)]
pub struct Process {
    pub parent: Pid,
    pub name: [u8; 16],
    pub state: State,
    pub context: Box<UserContext>,
    /// Its memory; none once it has ended.
    pub space: Option<Space>,
    pub numbers: Numbers,
    pub signals: Signals,
    /// A system call that has to be made again.
    pub again: bool,
    /// How many bytes that call has moved already.
    pub moved: usize,
    /// When its sleep ends.
    pub sleeps_until: Option<u64>,
    /// How long it has run, in nanoseconds.
    pub ran: u64,
}

/// Everything about processes.
pub struct Table {
    processes: Vec<Option<Box<Process>>>,
    /// How many there are.
    count: usize,
    max: usize,
    ready: VecDeque<Pid>,
    /// Those that have waited, whose turn comes first.
    woken: VecDeque<Pid>,
    /// How many of them had a turn since one of the others had.
    favours: u32,
    /// Those that wait for a time, the next one last.
    sleepers: Vec<(u64, Pid)>,
    pub files: Files,
    pub archive: Archive,
    /// What was typed up to an end of line and not read yet.
    pub typed: VecDeque<u8>,
    /// The end of input was typed.
    pub typed_end: bool,
    pub editor: LineEditor,
}

impl Table {
    /// No processes, with the files of `archive`, and `heap` bytes for what each takes. The lists get all the memory
    /// that they can need: what happens to a process must not fail for want of it.
    pub fn new(archive: Archive, heap: usize) -> Self {
        let max = (heap / HEAP_EACH).min(MAX_PROCESSES);
        let mut processes = Vec::with_capacity(max + 1);
        processes.push(None);
        Self {
            processes,
            count: 0,
            max,
            ready: VecDeque::with_capacity(max),
            woken: VecDeque::with_capacity(max),
            favours: 0,
            sleepers: Vec::with_capacity(max),
            files: Files::new(max),
            archive,
            typed: VecDeque::with_capacity(TYPED_MAX),
            typed_end: false,
            editor: LineEditor::default(),
        }
    }

    /// A process that there is.
    pub fn get(&mut self, pid: Pid) -> Option<&mut Process> {
        self.processes.get_mut(pid)?.as_deref_mut()
    }

    /// All processes.
    pub fn all(&self) -> impl Iterator<Item = (Pid, &Process)> {
        self.processes.iter().enumerate().filter_map(|(pid, process)| Some((pid, process.as_deref()?)))
    }

    /// All numbers that processes may have now.
    pub fn pids(&self) -> Range<Pid> {
        FIRST..self.processes.len()
    }

    /// Whether `parent` may make another process.
    ///
    /// # Errors
    /// When there are too many.
    pub fn has_room(&self, parent: Pid) -> Result<(), Errno> {
        let kept = if parent == FIRST { 0 } else { KEPT_FOR_FIRST };
        if self.count + kept < self.max { Ok(()) } else { Err(Errno::Again) }
    }

    /// Adds a process that is ready. What the first one starts is what somebody waits for at the console: it is first.
    pub fn add(&mut self, process: Process) -> Pid {
        let parent = process.parent;
        let free = (1..self.processes.len()).find(|pid| self.processes[*pid].is_none());
        let pid = free.unwrap_or(self.processes.len());
        if pid == self.processes.len() {
            self.processes.push(None);
        }
        self.processes[pid] = Some(Box::new(process));
        self.count += 1;
        if parent <= FIRST {
            self.woken.push_front(pid);
        } else {
            self.ready.push_back(pid);
        }
        pid
    }

    /// Removes a process that has ended.
    pub fn reap(&mut self, pid: Pid) {
        if self.processes[pid].take().is_some() {
            self.count -= 1;
        }
    }

    /// Whose turn it is.
    pub fn next(&mut self) -> Option<Pid> {
        if self.favours < FAVOURS
            && let Some(pid) = self.woken.pop_front()
        {
            self.favours += 1;
            return Some(pid);
        }
        self.favours = 0;
        self.ready.pop_front().or_else(|| self.woken.pop_front())
    }

    /// Whether somebody waits for a turn.
    pub fn is_busy(&self) -> bool {
        !self.ready.is_empty() || !self.woken.is_empty()
    }

    /// Puts a process that is ready at the end of the queue.
    pub fn requeue(&mut self, pid: Pid) {
        self.ready.push_back(pid);
    }

    /// Makes a process wait.
    pub fn wait(&mut self, pid: Pid, wait: Wait) {
        if let Wait::Until(deadline) = wait {
            let place = self.sleepers.partition_point(|other| *other > (deadline, pid));
            self.sleepers.insert(place, (deadline, pid));
        }
        if let Some(process) = self.get(pid) {
            process.state = State::Waiting(wait);
        }
    }

    /// Makes a process that waits ready.
    fn wake(&mut self, pid: Pid) {
        let Some(process) = self.get(pid) else { return };
        if let State::Waiting(wait) = process.state {
            process.state = State::Ready;
            let favoured = pid == FIRST || process.parent == FIRST;
            if let Wait::Until(deadline) = wait
                && let Ok(place) = self.sleepers.binary_search_by(|other| (deadline, pid).cmp(other))
            {
                self.sleepers.remove(place);
            }
            if favoured {
                self.woken.push_front(pid);
            } else {
                self.woken.push_back(pid);
            }
        }
    }

    /// Makes all that wait for this ready.
    pub fn wake_all(&mut self, wait: Wait) {
        let waits = |process: &Option<Box<Process>>| {
            process.as_ref().is_some_and(|process| process.state == State::Waiting(wait))
        };
        for pid in 0..self.processes.len() {
            if waits(&self.processes[pid]) {
                self.wake(pid);
            }
        }
    }

    /// Makes all that wait for any pipe ready: ends were closed.
    pub fn wake_pipes(&mut self) {
        for pid in 0..self.processes.len() {
            let process = self.processes[pid].as_ref();
            if process.is_some_and(|process| matches!(process.state, State::Waiting(Wait::Pipe(_)))) {
                self.wake(pid);
            }
        }
    }

    /// Makes those ready whose time has come.
    pub fn wake_sleepers(&mut self, now: u64) {
        while let Some((deadline, pid)) = self.sleepers.last().copied()
            && deadline <= now
        {
            self.sleepers.pop();
            self.wake(pid);
        }
    }

    /// When the next sleeper's time comes.
    pub fn next_deadline(&self) -> Option<u64> {
        self.sleepers.last().map(|(deadline, _)| *deadline)
    }

    /// Sends a signal to a process, and wakes it for it.
    pub fn signal(&mut self, pid: Pid, number: u8) {
        let Some(process) = self.get(pid) else { return };
        process.signals.raise(number);
        if process.signals.is_ready() {
            self.wake(pid);
        }
    }

    /// Ends a process: frees what it has, gives its children to the first one, and tells its parent.
    pub fn end(&mut self, memory: &mut Memory, pid: Pid, status: u32) {
        let Self { processes, files, .. } = self;
        let Some(process) = processes.get_mut(pid).and_then(Option::as_deref_mut) else { return };
        process.state = State::Ended(status);
        let pipes = files.close_all(&mut process.numbers);
        let parent = process.parent;
        if let Some(space) = process.space.take() {
            super::turn::forget(memory);
            space.destroy(memory);
        }
        if pipes {
            self.wake_pipes();
        }
        for child in self.processes.iter_mut().flatten().filter(|child| child.parent == pid) {
            child.parent = FIRST;
        }
        self.signal(parent, signal::CHLD);
        if self.get(parent).is_some_and(|parent| parent.state == State::Waiting(Wait::Child)) {
            self.wake(parent);
        }
        self.wake_first_for_orphans();
    }

    /// The first process may wait for children that have just become its own.
    fn wake_first_for_orphans(&mut self) {
        let orphans = self
            .all()
            .any(|(_, process)| process.parent == FIRST && matches!(process.state, State::Ended(_)));
        if orphans && self.get(FIRST).is_some_and(|first| first.state == State::Waiting(Wait::Child)) {
            self.wake(FIRST);
        }
    }
}
