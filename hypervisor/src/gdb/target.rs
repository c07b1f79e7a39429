//! What gdb's requests mean here.
//!
//! gdb's threads are the virtual CPUs, counted from 1. Whatever is asked of one is done on its own thread, by an
//! errand. What gdb asks for and cannot have is an error to gdb, never the end of the connection; that ends when the
//! domain does.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume,
    MultiThreadResumeOps, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep,
    MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::exec_file::ExecFileOps;
use gdbstub::target::ext::host_io::HostIoOps;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::debugged::Standing;
use super::hardware::{Hardware, Kind, Watched};
use super::memory::{self, WriteError};
use super::monitor;
use super::registers::{All, Amd64};
use super::session::{Order, Over, Session};
use crate::host::notice::notice;
use crate::monitor::inspect::Question;

/// A guest, as gdb has it.
pub(super) struct Guest {
    pub session: Arc<Session>,
    pub image: Arc<[u8]>,
    /// What each virtual CPU is to do when all go on; `None` if nothing was said of it.
    actions: Vec<Option<(Order, Option<Range<u64>>)>>,
    /// Those of which nothing was said stay.
    others_stay: bool,
}

/// What a user can do without debug registers.
const INSTEAD: &str = "in gdb that is `set can-use-hw-watchpoints 0` before watch, and break for hbreak";
/// The most bytes of memory that are read at once.
const AT_ONCE: usize = 1 << 16;
/// The error that gdb shows of memory that cannot be had, and of what cannot be done to it.
const EFAULT: u8 = 14;
const EACCES: u8 = 13;
const EINVAL: u8 = 22;

impl From<Over> for TargetError<Over> {
    fn from(over: Over) -> Self {
        Self::Fatal(over)
    }
}

fn refused(error: WriteError) -> TargetError<Over> {
    TargetError::Errno(match error {
        WriteError::NotMapped(_) => EFAULT,
        WriteError::Unwritable(_) | WriteError::NotHere | WriteError::TooMany => EACCES,
    })
}

/// gdb's name for a virtual CPU.
pub(super) fn tid(vcpu: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(vcpu)
}

impl Guest {
    pub fn new(session: Arc<Session>, image: Arc<[u8]>) -> Self {
        let actions = vec![None; session.vcpus()];
        Self { session, image, actions, others_stay: false }
    }

    /// The virtual CPU of that name. A name that there is not is that of the first.
    fn vcpu(&self, tid: Tid) -> usize {
        Some(tid.get() - 1).filter(|vcpu| *vcpu < self.session.vcpus()).unwrap_or(0)
    }

    pub fn ask<T: Send + 'static>(
        &self,
        vcpu: usize,
        errand: impl FnOnce(&mut Standing<'_>) -> T + Send + 'static,
    ) -> Result<T, Over> {
        self.session.ask(vcpu, errand)
    }

    fn set_action(&mut self, tid: Tid, order: Order, within: Option<Range<u64>>) {
        let vcpu = self.vcpu(tid);
        if let Some(action) = self.actions.get_mut(vcpu) {
            *action = Some((order, within));
        }
    }

    /// Has an errand done that needs the breakpoints, on the first virtual CPU on which it succeeds: one that is in a
    /// user program, or has not started, may not have mapped what another has.
    fn change_code(
        &self,
        change: impl Fn(&mut Standing<'_>, &mut super::breakpoints::Breakpoints) -> Result<bool, WriteError>
        + Clone
        + Send
        + 'static,
    ) -> TargetResult<bool, Self> {
        let mut first = None;
        for vcpu in 0..self.session.vcpus() {
            let (change, session) = (change.clone(), Arc::clone(&self.session));
            let done = self.ask(vcpu, move |standing| {
                session.with_breakpoints(|breakpoints| change(standing, breakpoints))
            })?;
            match done {
                Ok(done) => return Ok(done),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.map_or(TargetError::NonFatal, refused))
    }

    /// Changes what is in the debug registers of all virtual CPUs; whether that could be done.
    fn change_hardware(&self, change: impl FnOnce(Hardware) -> Option<Hardware>) -> Result<bool, Over> {
        let old = self.session.hardware().unwrap_or_default();
        let Some(new) = change(old) else { return Ok(false) };
        for vcpu in 0..self.session.vcpus() {
            if let Err(why) = self.ask(vcpu, move |standing| standing.cpu.debug(&new.registers()))? {
                for vcpu in 0..vcpu {
                    // They were there before.
                    let _ = self.ask(vcpu, move |standing| standing.cpu.debug(&old.registers()))?;
                }
                notice(format_args!("gdb's watch or hbreak cannot be had: {why}; {INSTEAD}"));
                return Ok(false);
            }
        }
        self.session.set_hardware(new);
        Ok(true)
    }

    /// Takes out all breakpoints.
    pub fn clean(&self) -> Result<(), Over> {
        if self.session.hardware().is_some() {
            self.change_hardware(|_| Some(Hardware::default()))?;
        }
        let session = Arc::clone(&self.session);
        self.ask(0, move |standing| {
            session.with_breakpoints(|breakpoints| {
                for va in breakpoints.addresses() {
                    // What cannot be written any more is not the guest's code any more.
                    let _ = memory::take_out(standing.runner, breakpoints, va);
                }
            });
        })
    }
}

impl Target for Guest {
    type Arch = Amd64;
    type Error = Over;

    fn base_ops(&mut self) -> BaseOps<'_, Amd64, Over> {
        BaseOps::MultiThread(self)
    }

    /// gdb would be told by it that no breakpoint needs a packet of its own.
    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_exec_file(&mut self) -> Option<ExecFileOps<'_, Self>> {
        Some(self)
    }

    fn support_host_io(&mut self) -> Option<HostIoOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest {
    fn read_registers(&mut self, regs: &mut All, tid: Tid) -> TargetResult<(), Self> {
        *regs = self.ask(self.vcpu(tid), |standing| {
            let system = standing.runner.inspect().map(|inspect| inspect.system()).unwrap_or_default();
            All::new(standing.runner.regs(), system, standing.cpu.save().ok().as_ref())
        })?;
        Ok(())
    }

    fn write_registers(&mut self, regs: &All, tid: Tid) -> TargetResult<(), Self> {
        let regs = regs.clone();
        let written = self.ask(self.vcpu(tid), move |standing| {
            let old = standing.cpu.save().ok();
            let new = old.as_ref().and_then(|old| regs.put_vectors(old));
            if let Some(new) =
                new.filter(|new| old.as_ref().is_some_and(|old| old.spelled_out() != new.area()))
                && standing.cpu.load(&new).is_err()
            {
                return false;
            }
            let Some(inspect) = standing.runner.inspect() else { return false };
            regs.put(inspect.regs_mut());
            true
        })?;
        if written { Ok(()) } else { Err(TargetError::Errno(EINVAL)) }
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let (len, session) = (data.len().min(AT_ONCE), Arc::clone(&self.session));
        let bytes = self.ask(self.vcpu(tid), move |standing| {
            session.with_breakpoints(|breakpoints| memory::read(standing.runner, breakpoints, start, len))
        })?;
        match data.get_mut(..bytes.len()) {
            Some(to) if !bytes.is_empty() || len == 0 => {
                to.copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            _ => Err(TargetError::Errno(EFAULT)),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let (data, session) = (data.to_vec(), Arc::clone(&self.session));
        let written = self.ask(self.vcpu(tid), move |standing| {
            session.with_breakpoints(|breakpoints| memory::write(standing.runner, breakpoints, start, &data))
        })?;
        written.map_err(refused)
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), Over> {
        (0..self.session.vcpus()).for_each(|vcpu| thread_is_active(tid(vcpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Over> {
        let vcpu = self.vcpu(tid);
        let doing = self.ask(vcpu, |standing| {
            standing.runner.inspect().map(|inspect| inspect.answer(Question::Doing)).unwrap_or_default()
        })?;
        let text = format!("vcpu{vcpu} {}", doing.trim_end());
        let len = text.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), text.as_bytes().get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }
}

impl MultiThreadResume for Guest {
    fn resume(&mut self) -> Result<(), Over> {
        let default = if self.others_stay { Order::Stand } else { Order::Run };
        let orders = self.actions.iter().map(|action| action.clone().unwrap_or((default, None)));
        self.session.resume(orders.collect());
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Over> {
        self.actions.fill(None);
        self.others_stay = false;
        Ok(())
    }

    /// A guest has no signals.
    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Over> {
        self.set_action(tid, Order::Run, None);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Over> {
        self.set_action(tid, Order::Step, None);
        Ok(())
    }
}

impl MultiThreadRangeStepping for Guest {
    fn set_resume_action_range_step(&mut self, tid: Tid, start: u64, end: u64) -> Result<(), Over> {
        self.set_action(tid, Order::Step, Some(start..end));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Over> {
        self.others_stay = true;
        Ok(())
    }
}

impl Breakpoints for Guest {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl HwBreakpoint for Guest {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.change_hardware(|all| all.with(Watched { address, len: 1, kind: Kind::Execute }))?)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.change_hardware(|all| all.without(Watched { address, len: 1, kind: Kind::Execute }))?)
    }
}

/// What the processor watches for; it cannot watch for reads alone.
fn kind_of(kind: WatchKind) -> Option<Kind> {
    match kind {
        WatchKind::Write => Some(Kind::Write),
        WatchKind::ReadWrite => Some(Kind::Access),
        WatchKind::Read => None,
    }
}

impl HwWatchpoint for Guest {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let Some(kind) = kind_of(kind) else { return Ok(false) };
        Ok(self.change_hardware(|all| all.with(Watched { address, len, kind }))?)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let Some(kind) = kind_of(kind) else { return Ok(false) };
        Ok(self.change_hardware(|all| all.without(Watched { address, len, kind }))?)
    }
}

impl SwBreakpoint for Guest {
    fn add_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.change_code(move |standing, breakpoints| {
            memory::plant(standing.runner, breakpoints, addr).map(|()| true)
        })
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _: usize) -> TargetResult<bool, Self> {
        self.change_code(move |standing, breakpoints| memory::take_out(standing.runner, breakpoints, addr))
    }
}

impl MonitorCmd for Guest {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Over> {
        let answer = monitor::answer(self, &String::from_utf8_lossy(command))?;
        out.write_raw(answer.as_bytes());
        Ok(())
    }
}
