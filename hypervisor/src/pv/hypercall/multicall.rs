//! multicall: the batch.

use paravane_abi::errno::Errno;
use paravane_abi::hypercall as nr;
use paravane_abi::multicall::MulticallEntry;

use super::{Call, HypercallResult, Outcome, PREEMPT_AFTER, done, perform_one};
use crate::ledger::BatchKind;

/// What a call costs in elementary operations, beside what it says itself.
const CALL: u64 = 32;
/// Elementary operations of all calls that one entry makes.
const BUDGET: u64 = 2 * PREEMPT_AFTER;

/// multicall(list, count): performs each call in order and leaves its result in its entry.
///
/// A multicall within is refused in its entry (EINVAL). An iret ends the list, and goes where its frame says.
pub fn multicall(call: &mut Call<'_>) -> HypercallResult {
    let [list, count, ..] = call.args;
    let count = count.word();
    call.vcpu.ledger.batch(BatchKind::Multicall, count);
    call.vcpu.budget = BUDGET;
    let mut left = count;
    let mut at = list.pointer::<MulticallEntry>();
    while left > 0 {
        if call.is_spent() {
            return Ok(Outcome::Again([at.address(), left, 0, 0, 0, 0]));
        }
        call.spend(CALL);
        let mut entry = call.guest().read(at)?;
        let outcome = match entry.op {
            nr::MULTICALL => Err(Errno::EINVAL),
            op => perform_one(&mut call.with(entry.args), op),
        };
        match outcome {
            Ok(Outcome::Done(value)) => entry.result = value,
            Ok(Outcome::Jumped) => return Ok(Outcome::Jumped),
            Err(errno) => entry.result = errno.to_rax(),
            Ok(Outcome::Again(args)) => {
                entry.args = args;
                call.guest().write(at, &entry)?;
                return Ok(Outcome::Again([at.address(), left, 0, 0, 0, 0]));
            }
        }
        call.guest().write(at, &entry)?;
        if call.domain.end.is_some() {
            break;
        }
        left -= 1;
        at = at.next()?;
    }
    done(0)
}

#[cfg(test)]
mod tests {
    use paravane_abi::console::CONSOLEIO_WRITE;
    use paravane_abi::domid::DOMID_SELF;
    use paravane_abi::memory::{XENMEM_DECREASE_RESERVATION, XenMemoryReservation};
    use paravane_abi::mmu::{
        MMU_MACHPHYS_UPDATE, MMUEXT_PIN_L2_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate, MmuextOp,
    };
    use paravane_abi::trap::IretContext;

    use crate::pv::hypercall::multicall::*;
    use crate::testing::pv::{FREE, NOWHERE, RO, SCRATCH, STACK, TestDomain, va};

    fn entry(op: u64, args: [u64; 6]) -> MulticallEntry {
        MulticallEntry { op, result: u64::MAX, args }
    }

    #[test]
    fn every_entry_has_its_own_result() {
        let mut t = TestDomain::new();
        let list = [
            entry(nr::SCHED_OP, [0; 6]),
            entry(nr::MULTICALL, [va(SCRATCH), 1, 0, 0, 0, 0]),
            entry(63, [0; 6]),
            entry(nr::XEN_VERSION, [7, 0, 0, 0, 0, 0]),
        ];
        t.write_at(va(FREE), &list).unwrap();
        assert_eq!(t.call(nr::MULTICALL, [va(FREE), 4]), Ok(0));
        let after: [MulticallEntry; 4] = t.read_at(va(FREE)).unwrap();
        let results = after.map(|e| e.result);
        assert_eq!(results, [0, Errno::EINVAL.to_rax(), Errno::ENOSYS.to_rax(), 4096]);
        assert_eq!(t.call(nr::MULTICALL, [NOWHERE, 1]), Err(Errno::EFAULT));
        assert_eq!(t.call(nr::MULTICALL, [NOWHERE, 0]), Ok(0));
    }

    #[test]
    fn a_long_list_is_made_in_parts_that_add_up() {
        let mut t = TestDomain::new();
        let per_page = 4096 / size_of::<MulticallEntry>() as u64;
        let count = 10 * per_page;
        assert!(count > 2 * BUDGET / CALL);
        for n in 0..count {
            let at = va(FREE) + n * size_of::<MulticallEntry>() as u64;
            t.write_at(at, &entry(nr::XEN_VERSION, [7, 0, 0, 0, 0, 0])).unwrap();
        }
        assert_eq!(t.call(nr::MULTICALL, [va(FREE), count]), Ok(0));
        let made = (0..count).filter(|n| {
            let at = va(FREE) + n * size_of::<MulticallEntry>() as u64;
            t.read_at::<MulticallEntry>(at).unwrap().result == 4096
        });
        assert_eq!(made.count() as u64, count);
    }

    #[test]
    fn an_iret_within_ends_the_list() {
        let mut t = TestDomain::new();
        let frame = IretContext {
            rax: 9,
            rip: va(FREE),
            cs: 0xe030,
            ss: 0xe02b,
            rsp: va(STACK) + 64,
            ..Default::default()
        };
        t.vcpu.regs.rsp = va(SCRATCH);
        t.write_at(va(SCRATCH), &frame).unwrap();
        let list = [entry(nr::IRET, [0; 6]), entry(nr::SCHED_OP, [2, NOWHERE, 0, 0, 0, 0])];
        t.write_at(va(FREE), &list).unwrap();
        assert_eq!(t.call(nr::MULTICALL, [va(FREE), 2]), Ok(9));
        assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rsp), (va(FREE), va(STACK) + 64));
        let after: [MulticallEntry; 2] = t.read_at(va(FREE)).unwrap();
        assert_eq!(after[1].result, u64::MAX, "not made");
    }

    /// How many of a list of `count` times the same call one entry makes to the end.
    fn made_at_once(t: &mut TestDomain, count: u64, call: MulticallEntry) -> u64 {
        made_in_turn(t, count, [call])
    }
    /// The same for calls that are made in turn.
    fn made_in_turn<const N: usize>(t: &mut TestDomain, count: u64, calls: [MulticallEntry; N]) -> u64 {
        for (n, call) in (0..count).zip(calls.iter().cycle()) {
            t.write_at(va(SCRATCH) + n * size_of::<MulticallEntry>() as u64, call).unwrap();
        }
        match t.dispatch(nr::MULTICALL, [va(SCRATCH), count, 0, 0, 0, 0]) {
            Ok(Outcome::Again([_, left, ..])) => count - left,
            other => {
                assert_eq!(other, Ok(Outcome::Done(0)));
                count
            }
        }
    }

    /// No call of these would be interrupted if it were alone.
    #[test]
    fn calls_share_what_one_entry_may_do() {
        let mut t = TestDomain::new();
        let this = u64::from(DOMID_SELF);
        let short = entry(nr::XEN_VERSION, [7, 0, 0, 0, 0, 0]);
        assert_eq!(made_at_once(&mut t, 40, short), 40);

        let update = MmuUpdate { ptr: t.mfn(FREE) << 12 | MMU_MACHPHYS_UPDATE, val: FREE };
        for n in 0..PREEMPT_AFTER {
            t.write_at(va(FREE) + n * size_of::<MmuUpdate>() as u64, &update).unwrap();
        }
        let updates = entry(nr::MMU_UPDATE, [va(FREE), 2000, 0, this, 0, 0]);
        assert_eq!(made_at_once(&mut t, 40, updates), 4);
        assert_eq!(t.call(nr::MULTICALL, [va(SCRATCH), 40]), Ok(0), "and all of them in the end");
        let full = entry(nr::MMU_UPDATE, [va(FREE), PREEMPT_AFTER, 0, this, 0, 0]);
        assert_eq!(made_at_once(&mut t, 1, full), 1, "a list that fits alone");

        let line = entry(nr::CONSOLE_IO, [CONSOLEIO_WRITE.into(), 2000, va(FREE), 0, 0, 0]);
        assert_eq!(made_at_once(&mut t, 40, line), 5);

        let in_vain = XenMemoryReservation {
            extent_start: va(FREE),
            nr_extents: 1,
            extent_order: 9,
            domid: DOMID_SELF,
            ..Default::default()
        };
        t.write_at(va(FREE), &in_vain).unwrap();
        let give_back = entry(nr::MEMORY_OP, [u64::from(XENMEM_DECREASE_RESERVATION), va(FREE), 0, 0, 0, 0]);
        assert_eq!(made_at_once(&mut t, 40, give_back), 15, "512 frames each, had they been the guest's");
    }

    #[test]
    fn tables_count_in_lists_and_over_calls() {
        const TABLES: u64 = 300;
        let mut t = TestDomain::with_frames(1024);
        let top = 200;
        for n in 0..TABLES {
            t.poke(top, n, t.entry(top + 1 + n, RO));
        }
        let op = |cmd| MmuextOp { cmd, arg1: t.mfn(top), ..Default::default() };
        let both = [op(MMUEXT_PIN_L2_TABLE), op(MMUEXT_UNPIN_TABLE)];
        for n in 0..20 {
            t.write_at(va(FREE) + n * size_of_val(&both) as u64, &both).unwrap();
        }
        let this = u64::from(DOMID_SELF);
        let Ok(Outcome::Again([list, ..])) = t.dispatch(nr::MMUEXT_OP, [va(FREE), 40, 0, this, 0, 0]) else {
            panic!("forty times {TABLES} tables at once")
        };
        assert_eq!((list - va(FREE)) / size_of::<MmuextOp>() as u64, 2);
        assert_eq!(t.call(nr::MMUEXT_OP, [va(FREE), 40, 0, this]), Ok(0));
        let pair = entry(nr::MMUEXT_OP, [va(FREE), 2, 0, this, 0, 0]);
        assert_eq!(made_at_once(&mut t, 20, pair), 2);
        assert_eq!(t.call(nr::MULTICALL, [va(SCRATCH), 20]), Ok(0));
    }

    /// A frame of descriptors is read when it becomes one, which it does each time where two tables take turns.
    #[test]
    fn descriptors_count_too() {
        const FRAMES: u64 = 14;
        let mut t = TestDomain::with_frames(1024);
        for n in 0..2 * FRAMES {
            t.poke(FREE, n, t.mfn(200 + n));
        }
        let [a, b] = [0, FRAMES].map(|n| entry(nr::SET_GDT, [va(FREE) + n * 8, FRAMES * 512, 0, 0, 0, 0]));
        assert_eq!(made_at_once(&mut t, 60, a), 60, "the same again: nothing is read");
        let cost = CALL + FRAMES * 8;
        assert_eq!(made_in_turn(&mut t, 60, [b, a]), BUDGET.div_ceil(cost));
        assert_eq!(t.call(nr::MULTICALL, [va(SCRATCH), 60]), Ok(0));
    }
}
