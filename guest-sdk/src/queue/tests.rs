use super::*;
use crate::testing::Recorder;
use paravane_abi::hypercall::SET_TIMER_OP;
use paravane_abi::mmu::{MMUEXT_INVLPG_LOCAL, MMUEXT_PIN_L4_TABLE, MMUEXT_TLB_FLUSH_LOCAL};

fn queue() -> Box<Queue<Recorder>> {
    Box::new(Queue::new(Recorder::default()))
}

fn update(queue: &mut Queue<Recorder>, entry: u64, val: u64) {
    // SAFETY: the stand-in changes no memory.
    unsafe { queue.update(MmuUpdate { ptr: entry * 8, val }) }.unwrap();
}

fn extended(queue: &mut Queue<Recorder>, cmd: u32) {
    // SAFETY: as above.
    unsafe { queue.extended(MmuextOp { cmd, ..MmuextOp::default() }) }.unwrap();
}

#[test]
fn neighbouring_updates_are_one_call_without_multicall() {
    let mut q = queue();
    (0..512).for_each(|i| update(&mut q, i, i));
    q.flush().unwrap();
    assert_eq!(q.hypervisor().calls(), ["mmu_update*512"]);
    assert_eq!(q.stats().batches[9], 1);
}

#[test]
fn order_is_kept_and_invalidations_come_last() {
    let mut q = queue();
    update(&mut q, 1, 1);
    q.invalidate(0x1000);
    update(&mut q, 2, 2);
    extended(&mut q, MMUEXT_PIN_L4_TABLE);
    // SAFETY: the stand-in has no timer.
    unsafe { q.call(SET_TIMER_OP, [5, 0, 0, 0, 0, 0]) }.unwrap();
    update(&mut q, 3, 3);
    q.flush().unwrap();
    let made = ["multicall*5", "mmu_update*2", "mmuext_op*1", "set_timer_op", "mmu_update*1", "mmuext_op*1"];
    assert_eq!(q.hypervisor().calls(), made);
    assert_eq!(q.hypervisor().extended, [MMUEXT_PIN_L4_TABLE, MMUEXT_INVLPG_LOCAL]);
    assert_eq!(q.stats().transitions(), 1);
    assert_eq!((q.stats().calls, q.stats().operations), (5, 6));
}

#[test]
fn first_updates_precede_all() {
    let mut q = queue();
    update(&mut q, 1, 1);
    // SAFETY: the stand-in changes no memory.
    unsafe { q.update_first(MmuUpdate { ptr: 8 * 8, val: 2 }) }.unwrap();
    q.flush().unwrap();
    assert_eq!(q.hypervisor().updated, [(8 * 8, 2), (8, 1)]);
}

#[test]
fn many_pages_become_one_flush_of_everything() {
    let mut q = queue();
    (0..9).for_each(|page| q.invalidate(page << 12));
    q.flush().unwrap();
    assert_eq!(q.hypervisor().extended, [MMUEXT_TLB_FLUSH_LOCAL]);
    q.invalidate(0x1000);
    q.invalidate(0x1000);
    q.flush().unwrap();
    assert_eq!(q.hypervisor().extended[1..], [MMUEXT_INVLPG_LOCAL], "asking twice invalidates once");
}

#[test]
fn queued_values_are_seen_until_they_are_made() {
    let mut q = queue();
    (0..UPDATES as u64).for_each(|i| update(&mut q, i * 512, i));
    update_again(&mut q);
    assert_eq!(q.pending(512 * 8), Some(77));
    assert_eq!(q.pending(8), None);
    q.flush().unwrap();
    assert!((0..UPDATES as u64).all(|i| q.pending(i * 512 * 8).is_none()));
}

/// The queue is full: what was in it is made, and the new update is the only one that waits.
fn update_again(q: &mut Queue<Recorder>) {
    assert_eq!(q.pending(512 * 8), Some(1));
    update(q, 512, 77);
    assert_eq!(q.stats().flushes[FlushReason::Overflow as usize], 1);
    assert_eq!(q.pending(2 * 512 * 8), None);
}

#[test]
fn alternating_calls_overflow_without_loss() {
    let mut q = queue();
    for i in 0..200 {
        update(&mut q, i, i);
        extended(&mut q, MMUEXT_PIN_L4_TABLE);
        q.invalidate(i << 12);
    }
    q.flush().unwrap();
    assert_eq!(q.hypervisor().updated.len(), 200);
    assert_eq!(
        q.hypervisor().extended.iter().filter(|cmd| **cmd == MMUEXT_PIN_L4_TABLE).count(),
        200,
        "every operation is made once"
    );
}

#[test]
fn a_refused_update_is_named_and_the_rest_is_made() {
    let mut q = queue();
    q.hypervisor().refuse_update = Some(2 * 8);
    (0..4).for_each(|i| update(&mut q, i, 100 + i));
    extended(&mut q, MMUEXT_PIN_L4_TABLE);
    let error = q.flush().unwrap_err();
    assert_eq!((error.number, error.errno, error.done), (MMU_UPDATE, Errno::EINVAL, 2));
    assert_eq!(error.update, Some(MmuUpdate { ptr: 2 * 8, val: 102 }));
    assert_eq!(q.hypervisor().extended, [MMUEXT_PIN_L4_TABLE]);
    assert!(q.is_empty());
    assert_eq!(
        std::format!("{error}"),
        "the hypervisor refused a queued mmu_update: EINVAL, setting the entry at machine address 0x10 to 0x66"
    );
}

#[test]
fn an_empty_flush_makes_no_call() {
    let mut q = queue();
    q.flush().unwrap();
    assert!(q.hypervisor().calls().is_empty());
    assert_eq!(q.stats().transitions(), 0);
}
