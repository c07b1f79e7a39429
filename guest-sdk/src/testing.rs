//! Fixtures for host tests: a hypervisor that records calls, and the shared page in a known state.

use core::sync::atomic::Ordering;
use std::string::String;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use paravane_abi::Errno;
use paravane_abi::hypercall::{self, MMU_UPDATE, MMUEXT_OP, MULTICALL};
use paravane_abi::mmu::{MmuUpdate, MmuextOp};
use paravane_abi::multicall::MulticallEntry;

use crate::hypercall::Hypercalls;
use crate::shared::SHARED;

/// A hypervisor that records the calls made, in order, and changes nothing.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    calls: Vec<String>,
    /// Machine addresses and values of page-table updates.
    pub(crate) updated: Vec<(u64, u64)>,
    /// Commands of extended operations.
    pub(crate) extended: Vec<u32>,
    /// The machine address whose update is answered with EINVAL.
    pub(crate) refuse_update: Option<u64>,
}

impl Recorder {
    pub(crate) fn calls(&self) -> &[String] {
        &self.calls
    }

    fn record(&mut self, number: u64, count: Option<u64>) {
        let name = hypercall::name(number).unwrap_or("?");
        self.calls.push(match count {
            Some(count) => std::format!("{name}*{count}"),
            None => String::from(name),
        });
    }
}

impl Hypercalls for Recorder {
    unsafe fn call(&mut self, number: u64, args: [u64; 6]) -> i64 {
        let list = matches!(number, MMU_UPDATE | MMUEXT_OP | MULTICALL);
        self.record(number, list.then_some(args[1]));
        for i in 0..args[1] as usize {
            match number {
                MMU_UPDATE => {
                    // SAFETY: the caller's list has `args[1]` elements.
                    let update = unsafe { (args[0] as *const MmuUpdate).add(i).read() };
                    if self.refuse_update == Some(update.ptr) {
                        // SAFETY: the caller's count of what was done.
                        unsafe { (args[2] as *mut u32).write(i as u32) };
                        return Errno::EINVAL.as_result();
                    }
                    self.updated.push((update.ptr, update.val));
                }
                // SAFETY: as above.
                MMUEXT_OP => self.extended.push(unsafe { (args[0] as *const MmuextOp).add(i).read() }.cmd),
                MULTICALL => {
                    // SAFETY: as above; results are the callee's to write.
                    let entry = unsafe { &mut *(args[0] as *mut MulticallEntry).add(i) };
                    // SAFETY: the caller's promise holds for each entry.
                    entry.result = unsafe { self.call(entry.op, entry.args) }.cast_unsigned();
                }
                _ => break,
            }
        }
        0
    }
}

/// Masks and clears all events, and disables upcalls. The shared page is one for the whole test program, so tests take
/// turns: each keeps the guard while it uses the page.
pub(crate) fn fresh_shared_page() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    SHARED.mask().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    SHARED.pending().iter().for_each(|word| word.store(0, Ordering::Relaxed));
    SHARED.pending_selector().store(0, Ordering::Relaxed);
    SHARED.upcall_pending().store(0, Ordering::Relaxed);
    SHARED.upcall_mask().store(1, Ordering::Relaxed);
    guard
}
