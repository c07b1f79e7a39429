//! The virtual CPUs of a run, and their threads: the first one's is the thread that called [`run`](super::run), each
//! other has one of its own for as long as the domain lives. Where there is only the first, no thread is started.

use std::io;
use std::sync::Arc;

use super::RunError;
use crate::engine::{Cpu, Machine};
use crate::gdb::{Debugged, Session};
use crate::host::threads;
use crate::machine::kick::Kick;
use crate::machine::time::Clock;
use crate::monitor::control::Orders;
use crate::monitor::observe::{Observer, Unobserved};
use crate::monitor::waker::Waker;
use crate::monitor::{Control, Runner, vcpu_loop};
use crate::technique::Runners;

/// A virtual CPU, as the engine has it, and what wakes it.
struct Seat {
    cpu: Box<dyn Cpu>,
    waker: Arc<Waker>,
}

impl Seat {
    fn new(machine: &mut dyn Machine, id: u32) -> Result<Self, RunError> {
        let cpu = machine.cpu(id)?;
        let waker = Arc::new(Waker::new(cpu.kicker()).map_err(RunError::Eventfd)?);
        Ok(Self { cpu, waker })
    }
}

/// What the loops are told from outside, and by what clock.
pub(super) struct Told<'a> {
    pub control: &'a Control,
    pub clock: Clock,
    /// The debugger's side, if there is one.
    pub debugger: Option<&'a Arc<Session>>,
}

/// The virtual CPUs of a run.
pub(super) struct Seats {
    boot: Seat,
    others: Vec<Seat>,
}

impl Seats {
    /// `vcpus` of them, at least one.
    pub fn new(machine: &mut dyn Machine, vcpus: u32) -> Result<Self, RunError> {
        let boot = Seat::new(machine, 0)?;
        let others = (1..vcpus).map(|id| Seat::new(machine, id)).collect::<Result<_, _>>()?;
        Ok(Self { boot, others })
    }

    /// How the first one is kicked.
    pub fn boot_kick(&self) -> Arc<dyn Kick> {
        self.boot.waker.clone()
    }

    /// How the others are kicked, in order.
    pub fn other_kicks(&self) -> impl Iterator<Item = Arc<dyn Kick>> {
        self.others.iter().map(|seat| seat.waker.clone() as Arc<dyn Kick>)
    }

    /// The first one, as the engine has it.
    pub fn boot_cpu(&self) -> &dyn Cpu {
        &*self.boot.cpu
    }

    /// Exits that the host's kernel handled alone, of all of them.
    pub fn kernel_statistics(&self) -> Vec<(String, u64)> {
        let mut sum = self.boot.cpu.kernel_statistics();
        for (name, count) in self.others.iter().flat_map(|seat| seat.cpu.kernel_statistics()) {
            match sum.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known += count,
                None => sum.push((name, count)),
            }
        }
        sum
    }

    /// Runs all of them until the domain's life is over, or `orders`, which are the first one's, say stop. The
    /// `observer` is notified of the first one's exits.
    pub fn run<O: Observer>(
        &mut self,
        runners: Runners<'_>,
        told: &Told<'_>,
        orders: &mut Orders,
        observer: &mut O,
    ) -> io::Result<()> {
        let Some(session) = told.debugger else { return self.run_each(runners, told, orders, observer) };
        let mut boot = Debugged::new(runners.boot, Arc::clone(session), 0);
        let others = (1..).zip(runners.others);
        let mut others: Vec<_> =
            others.map(|(number, runner)| Debugged::new(runner, Arc::clone(session), number)).collect();
        let others = others.iter_mut().map(|runner| runner as &mut (dyn Runner + Send)).collect();
        self.run_each(Runners { boot: &mut boot, others }, told, orders, observer)
    }

    fn run_each<O: Observer>(
        &mut self,
        runners: Runners<'_>,
        &Told { control, clock, .. }: &Told<'_>,
        orders: &mut Orders,
        observer: &mut O,
    ) -> io::Result<()> {
        let Self { boot, others } = self;
        if others.is_empty() {
            vcpu_loop::run(&mut *boot.cpu, runners.boot, &boot.waker, orders, observer);
            return Ok(());
        }
        std::thread::scope(|scope| {
            let mut threads = Vec::with_capacity(others.len());
            for ((number, seat), runner) in (1..).zip(others).zip(runners.others) {
                let mut orders = Orders::new(control.clone(), clock);
                let body = move || {
                    let settled = seat.cpu.settle_here();
                    if settled.is_ok() {
                        vcpu_loop::run(&mut *seat.cpu, runner, &seat.waker, &mut orders, &mut Unobserved);
                    }
                    control.end_all();
                    settled
                };
                match threads::spawn_vcpu(scope, format!("vcpu{number}"), body) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        control.end_all();
                        return Err(error);
                    }
                }
            }
            vcpu_loop::run(&mut *boot.cpu, runners.boot, &boot.waker, orders, observer);
            control.end_all();
            let panicked = |_| io::Error::other("a virtual CPU's thread panicked; this is a bug in Paravane");
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|why| Err(panicked(why))))
        })
    }
}
