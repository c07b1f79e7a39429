//! The loop that gives processes their turns.
//!
//! Interrupts are off but in user mode and while nothing can run. There is one processor; with several, each has this
//! loop and a queue of its own.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use paravane_guest::user::{Left, UserContext};

use super::abi::{Errno, killed, rax, signal};
use super::archive::Archive;
use super::calls::{self, Outcome};
use super::files::{File, Numbers};
use super::signals::{self, Delivery, Signals};
use super::space::{Fault, Space, Use};
use super::table::{FIRST, Pid, Process, State, TYPED_MAX, Table, Wait};
use crate::interrupts::TYPED;
use crate::kernel::{Kernel, Memory};
use crate::line_editor::Typed;
use crate::machine::{Current, Machine};
use crate::memory::heap;
use crate::memory::paging::{Mmu, Stale};
use crate::{console, println};

/// How long a process runs while others wait, in nanoseconds.
const SLICE: u64 = 10_000_000;
const PAGE_FAULT: u8 = 14;
/// Bits of a page fault's error code (SDM vol. 3, 4.7).
const WRITE: u64 = 2;
const FETCH: u64 = 16;

/// Runs a program, the first process, and everything that it starts, until it ends; returns its status, as `wait4` has
/// it.
///
/// # Errors
/// When it cannot be started.
pub fn run(kernel: &mut Kernel, arguments: &[&str]) -> Result<u32, Errno> {
    static ALLOWED: AtomicBool = AtomicBool::new(false);
    if !ALLOWED.swap(true, Ordering::Relaxed) {
        Current::allow_programs();
        let frames = kernel.memory.total_frames;
        kernel.memory.shares.prepare(frames);
    }
    let (used, size) = heap::usage();
    let mut turns =
        Turns { table: Table::new(Archive::new(kernel.module), size - used), armed: u64::MAX, slice_end: 0 };
    let memory = &mut kernel.memory;
    turns.start(memory, arguments)?;
    Current::interrupts_off();
    let status = turns.until_first_ends(memory);
    Current::interrupts_on();
    Ok(status)
}

/// Makes the processor use no program's address space.
pub fn forget(memory: &mut Memory) {
    Current::forget_programs(&mut memory.mmu, memory.space.root());
}

struct Turns {
    table: Table,
    /// When the timer will interrupt.
    armed: u64,
    /// When the turn of the process that runs ends.
    slice_end: u64,
}

impl Turns {
    fn start(&mut self, memory: &mut Memory, arguments: &[&str]) -> Result<(), Errno> {
        let mut numbers = Numbers::of_first();
        for _ in 0..3 {
            self.table.files.open(&mut numbers, File::Console)?;
        }
        let pid = self.table.add(Process {
            parent: 0,
            name: [0; 16],
            state: State::Ready,
            context: Box::new(UserContext::default()),
            space: Some(Space::new(memory, true).map_err(Errno::from)?),
            numbers,
            signals: Signals::default(),
            again: false,
            moved: 0,
            sleeps_until: None,
            ran: 0,
        });
        let path: Vec<u8> = [b"/bin/", arguments.first().copied().unwrap_or("sh").as_bytes()].concat();
        let arguments = arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect::<Vec<_>>();
        calls::execute(&mut self.table, memory, pid, &path, &arguments)
    }

    fn until_first_ends(&mut self, memory: &mut Memory) -> u32 {
        loop {
            self.look_around();
            match self.table.next() {
                Some(pid) => self.turn(memory, pid),
                None => self.idle(),
            }
            if let Some(State::Ended(status)) = self.table.get(FIRST).map(|first| first.state) {
                self.table.pids().skip(1).for_each(|pid| self.table.end(memory, pid, killed(signal::KILL)));
                return status;
            }
        }
    }

    /// Notes what has happened: what was typed, and whose time has come.
    fn look_around(&mut self) {
        let now = Current::clock();
        if now >= self.armed {
            self.armed = u64::MAX;
        }
        self.table.wake_sleepers(now);
        // What the interrupt handler had no room for is asked for only then: on a bare machine that is a trap.
        while TYPED.room() == 0 {
            self.take_typed();
            Current::console_receive();
        }
        self.take_typed();
    }

    fn take_typed(&mut self) {
        while let Some(byte) = console::try_read() {
            self.typed(byte);
        }
    }

    fn typed(&mut self, byte: u8) {
        let Table { editor, typed, typed_end, .. } = &mut self.table;
        match editor.feed(byte) {
            Typed::Echo(bytes) => return console::write(bytes),
            Typed::Ignored => return,
            Typed::Cancelled => {
                println!("^C");
                return self.table.pids().skip(1).for_each(|pid| self.table.signal(pid, signal::INT));
            }
            Typed::End => *typed_end = true,
            // Nobody reads: what is too much is lost.
            Typed::Line(line) if typed.len() + line.len() >= TYPED_MAX => return,
            Typed::Line(line) => {
                console::write(b"\n");
                typed.extend(line.as_bytes());
                typed.push_back(b'\n');
            }
        }
        self.table.wake_all(Wait::Console);
    }

    /// Nobody can run: gives the processor back until an interrupt.
    fn idle(&mut self) {
        self.arm(self.table.next_deadline());
        if console::is_idle() {
            Current::wait();
        }
    }

    fn arm(&mut self, deadline: Option<u64>) {
        if let Some(deadline) = deadline.filter(|deadline| *deadline < self.armed) {
            self.armed = deadline;
            Current::arm_timer(deadline);
        }
    }

    /// Runs a process until it waits, ends, or its time is over.
    fn turn(&mut self, memory: &mut Memory, pid: Pid) {
        let begun = Current::clock();
        self.slice_end = begun + SLICE;
        while self.step(memory, pid) {}
        if let Some(process) = self.table.get(pid) {
            process.ran += Current::clock() - begun;
        }
    }

    /// Runs a process once; true if it goes on.
    fn step(&mut self, memory: &mut Memory, pid: Pid) -> bool {
        let Some(process) = self.table.get(pid).filter(|process| process.state == State::Ready) else {
            return false;
        };
        if core::mem::take(&mut process.again) {
            return self.call(memory, pid);
        }
        if let Some(delivery) = process.signals.take() {
            return self.deliver(memory, pid, delivery, 0);
        }
        let slice_end = self.table.is_busy().then_some(self.slice_end);
        self.arm([slice_end, self.table.next_deadline()].into_iter().flatten().min());
        let Some(Process { space: Some(space), context, .. }) = self.table.get(pid) else { return false };
        let root = space.make_live(memory);
        memory.mmu.flush(Stale::Nothing);
        match Current::run_program(&memory.mmu, root, context) {
            Left::Syscall => self.call(memory, pid),
            Left::Fault { vector: PAGE_FAULT, error, address } => {
                self.page_fault(memory, pid, error, address)
            }
            Left::Fault { vector, .. } => self.exception(memory, pid, vector),
            _ => {
                self.look_around();
                let over = Current::clock() >= self.slice_end && self.table.is_busy();
                if over {
                    self.table.requeue(pid);
                }
                !over
            }
        }
    }

    /// Makes a system call, or makes it again.
    fn call(&mut self, memory: &mut Memory, pid: Pid) -> bool {
        let outcome = calls::make(&mut self.table, memory, pid);
        let Some(process) = self.table.get(pid) else { return false };
        match outcome {
            Outcome::Answer(answer) => {
                (process.moved, process.sleeps_until) = (0, None);
                process.context.registers.rax = rax(answer);
                true
            }
            Outcome::Yield => {
                process.context.registers.rax = 0;
                let busy = self.table.is_busy();
                if busy {
                    self.table.requeue(pid);
                }
                !busy
            }
            Outcome::Replaced => true,
            Outcome::Ended => false,
            Outcome::Wait(wait) if process.signals.is_ready() => {
                let (moved, restarts) = (core::mem::take(&mut process.moved), process.signals.restarts());
                // As under Linux: no sleep goes on after a handler, which may have slept itself.
                let begins_again = restarts && !matches!(wait, Wait::Signal | Wait::Until(_));
                match moved {
                    0 if begins_again => process.context.registers.rip -= 2, // the length of SYSCALL
                    0 => {
                        process.sleeps_until = None;
                        process.context.registers.rax = rax(Err(Errno::Intr));
                    }
                    _ => process.context.registers.rax = moved as u64,
                }
                true
            }
            Outcome::Wait(wait) => {
                process.again = true;
                self.table.wait(pid, wait);
                false
            }
        }
    }

    fn page_fault(&mut self, memory: &mut Memory, pid: Pid, error: u64, address: u64) -> bool {
        let what = match error {
            _ if error & FETCH != 0 => Use::Execute,
            _ if error & WRITE != 0 => Use::Write,
            _ => Use::Read,
        };
        let Some(Process { space: Some(space), .. }) = self.table.get(pid) else { return false };
        match space.fault(memory, address, what) {
            Ok(()) => true,
            Err(Fault::NotPermitted) => {
                let text = match what {
                    Use::Read => "page fault, reading",
                    Use::Write => "page fault, writing",
                    Use::Execute => "page fault, executing",
                };
                self.raised(memory, pid, signal::SEGV, text, address)
            }
            Err(Fault::OutOfMemory) => {
                self.report(pid, "out of memory, touching", address);
                self.table.end(memory, pid, killed(signal::KILL));
                false
            }
        }
    }

    fn exception(&mut self, memory: &mut Memory, pid: Pid, vector: u8) -> bool {
        let (number, text) = match vector {
            0 => (signal::FPE, "divide error"),
            1 | 3 => (signal::TRAP, "debug trap"),
            6 => (signal::ILL, "invalid opcode"),
            16 | 19 => (signal::FPE, "floating-point error"),
            17 => (signal::BUS, "alignment check"),
            _ => (signal::SEGV, "general protection"),
        };
        self.raised(memory, pid, number, text, 0)
    }

    /// An exception of a process becomes a signal; without a handler, the process ends, and nothing else does.
    fn raised(&mut self, memory: &mut Memory, pid: Pid, number: u8, text: &str, address: u64) -> bool {
        let Some(process) = self.table.get(pid) else { return false };
        let delivery = process.signals.force(number);
        if matches!(delivery, Delivery::End(_)) {
            self.report(pid, text, address);
        }
        self.deliver(memory, pid, delivery, address)
    }

    fn report(&mut self, pid: Pid, text: &str, address: u64) {
        let Some(process) = self.table.get(pid) else { return };
        let name = process.name.split(|byte| *byte == 0).next().unwrap_or_default();
        let (name, rip) = (str::from_utf8(name).unwrap_or("?"), process.context.registers.rip);
        println!("{name}[{pid}]: {text} {address:#x}, rip {rip:#x}");
    }

    fn deliver(&mut self, memory: &mut Memory, pid: Pid, delivery: Delivery, address: u64) -> bool {
        let Some(process) = self.table.get(pid) else { return false };
        let number = match delivery {
            Delivery::End(number) => number,
            Delivery::Handle(number, action) => {
                let Process { context, signals, space: Some(space), .. } = process else { return false };
                let frame = signals::begin(context, number, &action, signals.blocked, address);
                signals.enter(number, &action);
                let written = space
                    .copy_to(memory, frame.at, &frame.bytes)
                    .and_then(|()| space.copy_to(memory, frame.vectors_at, &frame.vectors));
                if written.is_ok() {
                    return true;
                }
                self.report(pid, "no stack for a signal at", frame.at);
                signal::SEGV
            }
        };
        self.table.end(memory, pid, killed(number));
        false
    }
}
