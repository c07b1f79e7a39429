//! The hypervisor's own threads (device workers, console input), and where threads may run.
//!
//! Most of them are started by a vCPU's thread, and a new thread inherits two settings that an engine made there: the
//! CPU that it is pinned to, and CPUID faulting. [`spawn`] undoes both: a worker runs on the other CPUs if there are
//! any.
//!
//! What may not be done here: pinning a thread other than the calling one. Nothing here is async-signal-safe.

use std::io;
use std::mem::{size_of, zeroed};
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use super::host_cpuid;

/// The CPUs that this program may use: those of the first pinned thread before it was pinned.
static EVERYWHERE: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Starts a thread that does not run a vCPU, called `name` (Linux keeps 15 bytes of it).
///
/// # Errors
/// When the host cannot start another thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let pinned = affinity().filter(|cpus| count(cpus) == 1);
    Builder::new().name(name.to_owned()).spawn(move || {
        if let Some(cpus) = EVERYWHERE.get() {
            unpin(&elsewhere(cpus, pinned.as_ref()));
        }
        host_cpuid::allow_in_new_thread();
        body()
    })
}

/// Starts a thread that runs a vCPU, called `name`. Where it runs is the engine's business.
///
/// # Errors
/// When the host cannot start another thread.
pub fn spawn_vcpu<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    name: String,
    body: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name).spawn_scoped(scope, move || {
        host_cpuid::allow_in_new_thread();
        body()
    })
}

/// Pins the calling thread to the CPU that it runs on; returns where it was allowed to run before.
pub fn pin_to_this_cpu() -> Option<libc::cpu_set_t> {
    pin_to(this_cpu()?)
}

/// The CPU that the calling thread runs on.
pub fn this_cpu() -> Option<usize> {
    // SAFETY: has no precondition.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// Pins the calling thread to a CPU; returns where it was allowed to run before.
pub fn pin_to(cpu: usize) -> Option<libc::cpu_set_t> {
    let size = size_of::<libc::cpu_set_t>();
    if cpu >= size * 8 {
        return None;
    }
    // SAFETY: both sets are live locals of the size given; all zeroes is the empty set, and the number is within one.
    let before = unsafe {
        let (mut before, mut one): (libc::cpu_set_t, libc::cpu_set_t) = (zeroed(), zeroed());
        libc::CPU_SET(cpu, &mut one);
        (libc::sched_getaffinity(0, size, &raw mut before) == 0
            && libc::sched_setaffinity(0, size, &raw const one) == 0)
            .then_some(before)
    }?;
    EVERYWHERE.get_or_init(|| before);
    Some(before)
}

/// The numbers of the CPUs in a set, in order.
pub fn numbers(cpus: &libc::cpu_set_t) -> Vec<u16> {
    let all = 0..u16::try_from(size_of::<libc::cpu_set_t>() * 8).unwrap_or(u16::MAX);
    // SAFETY: a live set, and numbers within it.
    all.filter(|cpu| unsafe { libc::CPU_ISSET(usize::from(*cpu), cpus) }).collect()
}

/// Unblocks `signal` in the calling thread, in case it was blocked when the program was started.
pub fn unblock_signal(signal: libc::c_int) {
    // SAFETY: the set is a live local that names one signal.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// The number of CPUs that this program may use; 1 if Linux does not say.
pub fn cpus() -> usize {
    if let Some(cpus) = EVERYWHERE.get() {
        return count(cpus);
    }
    affinity().as_ref().map_or(1, count)
}

/// The CPUs that the calling thread may use.
fn affinity() -> Option<libc::cpu_set_t> {
    // SAFETY: a live set of the size given; all zeroes is the empty set.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        let got = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) == 0;
        got.then_some(set)
    }
}

/// `everywhere` without the CPU of a pinned vCPU, if any CPU is left. A worker on the vCPU's CPU would take the time in
/// which the guest could produce what the worker polls for.
fn elsewhere(everywhere: &libc::cpu_set_t, pinned: Option<&libc::cpu_set_t>) -> libc::cpu_set_t {
    let mut left = *everywhere;
    for cpu in 0..size_of::<libc::cpu_set_t>() * 8 {
        // SAFETY: live sets, and a number within them.
        unsafe {
            if pinned.is_some_and(|pinned| libc::CPU_ISSET(cpu, pinned)) {
                libc::CPU_CLR(cpu, &mut left);
            }
        }
    }
    if count(&left) == 0 { *everywhere } else { left }
}

fn count(cpus: &libc::cpu_set_t) -> usize {
    // SAFETY: CPU_COUNT only reads the set.
    usize::try_from(unsafe { libc::CPU_COUNT(cpus) }).unwrap_or(1)
}

/// Lets the calling thread run on the CPUs `before`, which [`pin_to_this_cpu`] returned.
pub fn unpin(before: &libc::cpu_set_t) {
    // SAFETY: `before` is a live set of the size given.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), before) };
}

#[cfg(test)]
mod tests {
    use crate::host::threads::*;

    fn cpus() -> usize {
        count(&affinity().unwrap())
    }

    #[test]
    fn a_worker_inherits_neither_pinning_nor_cpuid_faulting() {
        let inherited = std::thread::spawn(|| {
            let before = cpus();
            let pinned = pin_to_this_cpu().expect("broken test: this thread cannot be pinned");
            let trapping = host_cpuid::Trapping::begin();
            let worker = spawn("worker", || (cpus(), std::arch::x86_64::__cpuid_count(0, 0).eax));
            let (free, leaf) = worker.unwrap().join().unwrap();
            let others = if before > 1 { before - 1 } else { 1 };
            assert_eq!((cpus(), free, leaf), (1, others, host_cpuid::query(0, 0).eax));
            drop(trapping);
            unpin(&pinned);
            assert_eq!(cpus(), before);
        });
        inherited.join().unwrap();
    }
}
