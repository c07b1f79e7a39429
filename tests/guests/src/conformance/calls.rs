//! Hypercalls that only access their arguments.

use paravane_guest::abi::Errno;
use paravane_guest::abi::console::CONSOLEIO_WRITE;
use paravane_guest::abi::hypercall::{
    CONSOLE_IO, DOMCTL, EVENT_CHANNEL_OP, MULTICALL, SCHED_OP, SYSCTL, VCPU_OP, XEN_VERSION,
};
use paravane_guest::abi::multicall::MulticallEntry;
use paravane_guest::abi::sched::SCHEDOP_YIELD;
use paravane_guest::abi::version::{XENVER_EXTRAVERSION, XENVER_PAGESIZE, XENVER_VERSION};
use paravane_guest::hypercall::{call, version};

use super::Bench;
use crate::suite::Suite;

/// An address at which nothing is mapped.
pub(super) const NOWHERE: u64 = 0x7fff_ffff_f000;

/// Makes a hypercall, with `NOWHERE` for every argument that is an address.
fn harmless<const N: usize>(number: u64, args: [u64; N]) -> Result<u64, Errno> {
    // SAFETY: nothing can be read or written there.
    unsafe { call(number, args) }
}

pub(super) fn version(bench: &mut Bench) {
    let suite = &mut bench.suite;
    suite.holds("major-at-least-3", version::version().is_ok_and(|(major, _)| major >= 3));
    suite.equal("pagesize", harmless(XEN_VERSION, [u64::from(XENVER_PAGESIZE), 0]), Ok(4096));
    let bad = harmless(XEN_VERSION, [u64::from(XENVER_EXTRAVERSION), NOWHERE]);
    suite.equal("extraversion-nowhere", bad, Err(Errno::EFAULT));
    suite.equal("unknown-operation", harmless(XEN_VERSION, [99, NOWHERE]), Err(Errno::ENOSYS));
    suite.holds("extraversion-ends", version::extraversion().is_ok_and(|text| text.contains(&0)));
    for (name, number) in [("domctl", DOMCTL), ("sysctl", SYSCTL), ("number-63", 63)] {
        suite.refused(name, harmless(number, [NOWHERE]));
    }
    suite.equal("number-64", harmless(64, [NOWHERE]), Err(Errno::ENOSYS));
    suite.equal("vcpu-op-absent-vcpu", harmless(VCPU_OP, [3, 4000, 0]), Err(Errno::ENOENT));
    suite.equal("sched-op-unknown", harmless(SCHED_OP, [99, NOWHERE]), Err(Errno::ENOSYS));
    suite.equal("event-op-unknown", harmless(EVENT_CHANNEL_OP, [99, NOWHERE]), Err(Errno::ENOSYS));
}

pub(super) fn console(bench: &mut Bench) {
    let suite = &mut bench.suite;
    suite.refused("unknown-command", harmless(CONSOLE_IO, [99, 1, NOWHERE]));
    suite.refused("write-nowhere", harmless(CONSOLE_IO, [u64::from(CONSOLEIO_WRITE), 1, NOWHERE]));
    // More than the ring holds at once: a line of 3000 characters must arrive complete.
    for _ in 0..30 {
        let part = "0123456789".repeat_into_line();
        paravane_guest::console::write(&part);
    }
    paravane_guest::println!();
}

/// A list that is longer than a hypervisor executes without a check for other work: it then has the multicall issued
/// again with the rest.
fn long_list(suite: &mut Suite) {
    const CALLS: usize = 1000;
    static mut LIST: [MulticallEntry; CALLS] = [entry(0, [0; 6]); CALLS];
    let list = &raw mut LIST;
    // SAFETY: there is no other reference to the list, and a kernel with one vCPU runs this once.
    let list = unsafe { &mut *list };
    *list = [entry(XEN_VERSION, [u64::from(XENVER_PAGESIZE), 0, 0, 0, 0, 0]); CALLS];
    // SAFETY: the calls in the list take no addresses.
    let made = unsafe { call(MULTICALL, [list.as_mut_ptr() as u64, CALLS as u64]) };
    suite.equal("long-list", made, Ok(0));
    // SAFETY: the entry is initialised; the hypervisor may have written to it.
    let result = |call: &MulticallEntry| unsafe { (&raw const call.result).read_volatile() };
    suite.equal("long-list-is-made-to-its-end", list.iter().filter(|c| result(c) == 4096).count(), CALLS);
}

/// A line of a hundred characters.
trait RepeatIntoLine {
    fn repeat_into_line(&self) -> [u8; 100];
}

impl RepeatIntoLine for str {
    fn repeat_into_line(&self) -> [u8; 100] {
        core::array::from_fn(|i| self.as_bytes()[i % self.len()])
    }
}

const fn entry(op: u64, args: [u64; 6]) -> MulticallEntry {
    MulticallEntry { op, result: u64::MAX, args }
}

pub(super) fn multicall(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let mut calls = [
        entry(XEN_VERSION, [u64::from(XENVER_PAGESIZE), 0, 0, 0, 0, 0]),
        entry(63, [0; 6]),
        entry(MULTICALL, [NOWHERE, 1, 0, 0, 0, 0]),
        entry(SCHED_OP, [u64::from(SCHEDOP_YIELD), 0, 0, 0, 0, 0]),
        entry(XEN_VERSION, [u64::from(XENVER_VERSION), 0, 0, 0, 0, 0]),
    ];
    // SAFETY: the calls take no addresses, except for one that is not mapped.
    let made = unsafe { call(MULTICALL, [calls.as_mut_ptr() as u64, calls.len() as u64]) };
    suite.equal("list", made, Ok(0));
    // SAFETY: the entries are initialised; the hypervisor may have written to them.
    let results = calls.each_ref().map(|c| Errno::from_rax(unsafe { (&raw const c.result).read_volatile() }));
    suite.equal("result-of-each", results[0], Ok(4096));
    suite.refused("unknown-call-within", results[1]);
    suite.refused("multicall-within", results[2]);
    suite.equal("rest-is-made", results[3], Ok(0));
    suite.holds("last-is-made", results[4].is_ok());
    long_list(suite);
    suite.equal("empty-list", harmless(MULTICALL, [NOWHERE, 0]), Ok(0));
    suite.equal("list-nowhere", harmless(MULTICALL, [NOWHERE, 1]), Err(Errno::EFAULT));
}
