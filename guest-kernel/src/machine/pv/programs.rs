//! Programs: the SDK's user mode, in page tables of the kernel's own.

use paravane_guest::abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MmuextOp};
use paravane_guest::memory::Pfn;
use paravane_guest::user::{Left, UserContext, UserMode};

use super::mmu::PvMmu;
use crate::memory::frames::Frame;
use crate::single::Single;

static USER: Single<Option<UserMode>> = Single::new(None);

/// Registers the entry points.
pub fn allow() {
    let user = match UserMode::install() {
        Ok(user) => user,
        Err(errno) => panic!("the hypervisor does not let us run programs: {errno}"),
    };
    // SAFETY: called once, before anything here is used; interrupt handlers do not use it.
    unsafe { *USER.get() = Some(user) };
}

/// Runs a program.
pub fn run(mmu: &PvMmu, root: Frame, context: &mut UserContext) -> Left {
    let Some(mfn) = mmu.memory().mfn(Pfn(root.0)) else { panic!("{root:?} is not a frame of this domain") };
    // SAFETY: the reference ends before another is made; interrupt handlers use none.
    let Some(user) = (unsafe { USER.get() }) else { panic!("programs were not allowed yet") };
    // SAFETY: an address space for programs has nothing of the kernel.
    match unsafe { user.run_under(mfn, context) } {
        Ok(left) => left,
        Err(error) => panic!("{error}"),
    }
}

/// Queues that user mode has no tables.
pub fn forget(mmu: &mut PvMmu) {
    // SAFETY: as in `run`.
    if let Some(user) = unsafe { USER.get() } {
        user.loads_anew();
    }
    let op = MmuextOp { cmd: MMUEXT_NEW_USER_BASEPTR, arg1: 0, ..MmuextOp::default() };
    mmu.extended(op);
}
