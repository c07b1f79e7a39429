//! `mmuext_op` on pages, and on frames, domains and operations that do not exist.

use paravane_guest::abi::Errno;
use paravane_guest::abi::hypercall::MMUEXT_OP;
use paravane_guest::abi::mmu::*;
use paravane_guest::hypercall::call;

use super::Bench;
use super::calls::NOWHERE;

pub(super) fn run(
    bench: &mut Bench,
    root: u64,
    table: u64,
    page: u64,
    extended: fn(u32, u64) -> Result<u64, Errno>,
) {
    let suite = &mut bench.suite;
    suite.equal("unknown-extended", extended(99, 0), Err(Errno::ENOSYS));
    suite.equal("mark-super", extended(MMUEXT_MARK_SUPER, page), Err(Errno::EOPNOTSUPP));
    if !bench.privileged {
        suite.refused("flush-cache", extended(MMUEXT_FLUSH_CACHE, 0));
    }
    suite.equal("flush-all", extended(MMUEXT_TLB_FLUSH_ALL, 0), Ok(0));
    suite.equal("invlpg-all", extended(MMUEXT_INVLPG_ALL, NOWHERE), Ok(0));
    suite.equal("clear-page", extended(MMUEXT_CLEAR_PAGE, page), Ok(0));
    suite.refused("clear-table", extended(MMUEXT_CLEAR_PAGE, table));
    suite.refused("clear-root", extended(MMUEXT_CLEAR_PAGE, root));
    suite.refused("clear-hypervisor-frame", extended(MMUEXT_CLEAR_PAGE, 0));
    suite.refused("unpin-a-page", extended(MMUEXT_UNPIN_TABLE, page));
    suite.refused("new-baseptr-hypervisor-frame", extended(MMUEXT_NEW_BASEPTR, 0));
    suite.refused("new-user-baseptr-to-a-page", extended(MMUEXT_NEW_USER_BASEPTR, page));
    suite.equal("no-user-baseptr", extended(MMUEXT_NEW_USER_BASEPTR, 0), Ok(0));
    suite.equal("same-baseptr", extended(MMUEXT_NEW_BASEPTR, root), Ok(0));
    // SAFETY: the hypervisor cannot read there.
    suite.equal("list-nowhere", unsafe { call(MMUEXT_OP, [NOWHERE, 1, 0, 0x7ff0]) }, Err(Errno::EFAULT));
}
