//! multicall: the batch.

use paravane_abi::errno::Errno;
use paravane_abi::hypercall as nr;
use paravane_abi::multicall::MulticallEntry;

use super::{HypercallResult, Outcome, PREEMPT_AFTER, dispatch, done};
use crate::domain::pv::PvDomain;
use crate::ledger::BatchKind;

/// Calls per entry before the guest may be interrupted.
const CALLS_PER_ENTRY: u64 = PREEMPT_AFTER / 16;

/// multicall(list, count): performs each call in order and leaves its result in its entry.
///
/// A multicall within is refused in its entry (EINVAL). An iret ends the list, and goes where its frame says.
pub fn multicall(d: &mut PvDomain, [list, count, ..]: [u64; 6]) -> HypercallResult {
    d.ledger.batch(BatchKind::Multicall, count);
    let size = size_of::<MulticallEntry>() as u64;
    let mut left = count;
    let mut at = list;
    while left > 0 {
        if count - left == CALLS_PER_ENTRY {
            return Ok(Outcome::Again([at, left, 0, 0, 0, 0]));
        }
        let mut entry: MulticallEntry = d.read_guest_obj(at)?;
        let outcome = match entry.op {
            nr::MULTICALL => Err(Errno::EINVAL),
            op => dispatch(d, op, entry.args),
        };
        match outcome {
            Ok(Outcome::Done(value)) => entry.result = value,
            Ok(Outcome::Jumped) => return Ok(Outcome::Jumped),
            Err(errno) => entry.result = errno.to_rax(),
            Ok(Outcome::Again(args)) => {
                entry.args = args;
                d.write_guest_obj(at, &entry)?;
                return Ok(Outcome::Again([at, left, 0, 0, 0, 0]));
            }
        }
        d.write_guest_obj(at, &entry)?;
        if d.end.is_some() {
            break;
        }
        left -= 1;
        at = at.checked_add(size).ok_or(Errno::EFAULT)?;
    }
    done(0)
}

#[cfg(test)]
mod tests {
    use paravane_abi::trap::IretContext;

    use super::*;
    use crate::domain::pv_testing::{FREE, NOWHERE, SCRATCH, STACK, TestDomain, va};

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
        t.write_guest_obj(va(FREE), &list).unwrap();
        assert_eq!(t.call(nr::MULTICALL, [va(FREE), 4]), Ok(0));
        let after: [MulticallEntry; 4] = t.read_guest_obj(va(FREE)).unwrap();
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
        assert!(count > 2 * CALLS_PER_ENTRY);
        for n in 0..count {
            let at = va(FREE) + n * size_of::<MulticallEntry>() as u64;
            t.write_guest_obj(at, &entry(nr::XEN_VERSION, [7, 0, 0, 0, 0, 0])).unwrap();
        }
        assert_eq!(t.call(nr::MULTICALL, [va(FREE), count]), Ok(0));
        let made = (0..count).filter(|n| {
            let at = va(FREE) + n * size_of::<MulticallEntry>() as u64;
            t.read_guest_obj::<MulticallEntry>(at).unwrap().result == 4096
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
        t.write_guest_obj(va(SCRATCH), &frame).unwrap();
        let list = [entry(nr::IRET, [0; 6]), entry(nr::SCHED_OP, [2, NOWHERE, 0, 0, 0, 0])];
        t.write_guest_obj(va(FREE), &list).unwrap();
        assert_eq!(t.call(nr::MULTICALL, [va(FREE), 2]), Ok(9));
        assert_eq!((t.vcpu.regs.rip, t.vcpu.regs.rsp), (va(FREE), va(STACK) + 64));
        let after: [MulticallEntry; 2] = t.read_guest_obj(va(FREE)).unwrap();
        assert_eq!(after[1].result, u64::MAX, "not made");
    }
}
