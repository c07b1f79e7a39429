//! `mmuext_op`: pins, roots, flushes, and clearing and copying frames.

use paravane_abi::Errno;
use paravane_abi::mmu::{
    MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE, MMUEXT_FLUSH_CACHE, MMUEXT_FLUSH_CACHE_GLOBAL, MMUEXT_INVLPG_ALL,
    MMUEXT_INVLPG_LOCAL, MMUEXT_INVLPG_MULTI, MMUEXT_MARK_SUPER, MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_SET_LDT,
    MMUEXT_TLB_FLUSH_ALL, MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_TLB_FLUSH_MULTI, MMUEXT_UNMARK_SUPER,
    MMUEXT_UNPIN_TABLE, MmuextOp,
};

use super::frame::{FrameType, Level};
use super::obstacle::Obstacle;
use super::state::{DirectPaging, Pass, Stop};
use super::update::is_guest_address;
use super::vcpu_tables::{Gdt, Ldt, VcpuTables};
use crate::machine::memory::{MachineMemory, Mfn, PAGE_SIZE};
use crate::mmu::log::TableLog;
use crate::mmu::space::{Flush, VcpuSpace};

impl DirectPaging {
    /// Adopts the page tables that a domain starts with: validates and pins `root`, and makes it the boot vCPU's root.
    pub fn pin_initial(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        root: Mfn,
    ) -> Result<VcpuTables, Errno> {
        while let Err(stop) = self.pin(memory, log, root, Level::L4) {
            if let Stop::Refused(errno) = stop {
                return Err(errno);
            }
        }
        loop {
            match self.attach(memory, log, root) {
                Ok(tables) => return Ok(tables),
                Err(Stop::Restart) => {}
                Err(Stop::Refused(errno)) => return Err(errno),
            }
        }
    }

    /// Makes `root` the kernel's root of a vCPU that has none yet.
    pub fn attach(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        root: Mfn,
    ) -> Result<VcpuTables, Stop> {
        self.pass(memory, log).operation(Some((root, Level::L4)), |pass| {
            pass.get_table(root, Level::L4)?;
            Ok(VcpuTables { kernel: root, user: None, gdt: Gdt::default(), ldt: Ldt::default() })
        })
    }

    /// Gives back the tables of a vCPU that will not use them. What nobody else uses is taken down by the operations
    /// that follow: this one has no budget that could end.
    pub fn detach(&mut self, memory: &MachineMemory, log: &mut TableLog, tables: VcpuTables) {
        let mut pass = self.pass(memory, log);
        pass.put_gdt(&tables.gdt);
        tables.user.into_iter().chain([tables.kernel]).for_each(|root| pass.put_table(root));
    }

    /// One operation of `mmuext_op`, for the calling domain's own frames and the calling vCPU.
    ///
    /// The flushes of all vCPUs, or of many, have the caller wait until every one is current
    /// ([`TableLog::take_wanted`]). The bitmap of the MULTI flavours is not read here, because flushing more than
    /// requested is always correct.
    pub fn mmuext_one(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        tables: &mut VcpuTables,
        op: &MmuextOp,
    ) -> Result<(), Stop> {
        let mfn = Mfn(op.arg1);
        match op.cmd {
            MMUEXT_PIN_L1_TABLE => self.pin(memory, log, mfn, Level::L1),
            MMUEXT_PIN_L2_TABLE => self.pin(memory, log, mfn, Level::L2),
            MMUEXT_PIN_L3_TABLE => self.pin(memory, log, mfn, Level::L3),
            MMUEXT_PIN_L4_TABLE => self.pin(memory, log, mfn, Level::L4),
            MMUEXT_UNPIN_TABLE => self.pass(memory, log).unpin(mfn),
            MMUEXT_NEW_BASEPTR => self.pass(memory, log).new_kernel_root(space, tables, mfn),
            MMUEXT_NEW_USER_BASEPTR => self.pass(memory, log).new_user_root(tables, mfn),
            MMUEXT_TLB_FLUSH_LOCAL | MMUEXT_TLB_FLUSH_MULTI | MMUEXT_TLB_FLUSH_ALL => {
                space.flush(Flush::All);
                if op.cmd != MMUEXT_TLB_FLUSH_LOCAL {
                    log.want(log.position());
                }
                Ok(())
            }
            MMUEXT_INVLPG_LOCAL | MMUEXT_INVLPG_MULTI | MMUEXT_INVLPG_ALL => {
                if is_guest_address(op.arg1) {
                    space.flush(Flush::Page(op.arg1));
                    if op.cmd != MMUEXT_INVLPG_LOCAL {
                        log.want(log.position());
                    }
                }
                Ok(())
            }
            MMUEXT_SET_LDT => tables.ldt.set(op.arg1, op.nr_ents()),
            MMUEXT_CLEAR_PAGE => self.pass(memory, log).fill(mfn, |memory| Ok(memory.zero_frame(mfn)?)),
            MMUEXT_COPY_PAGE => self.copy_page(memory, log, mfn, Mfn(op.arg2)),
            // Only a domain with devices may, on Xen.
            MMUEXT_FLUSH_CACHE | MMUEXT_FLUSH_CACHE_GLOBAL => Err(Errno::EACCES.into()),
            MMUEXT_MARK_SUPER | MMUEXT_UNMARK_SUPER => Err(Errno::EOPNOTSUPP.into()),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    pub(super) fn pin(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        mfn: Mfn,
        level: Level,
    ) -> Result<(), Stop> {
        self.pass(memory, log).operation(Some((mfn, level)), |pass| {
            pass.get_table(mfn, level)?;
            if pass.frames.get(mfn).is_some_and(|f| f.pinned()) {
                pass.put_table(mfn);
                return Err(pass.because(Obstacle::Pin { mfn, pinned: true }, Errno::EINVAL.into()));
            }
            pass.frames.set_pinned(mfn, true);
            Ok(())
        })
    }

    fn copy_page(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        to: Mfn,
        from: Mfn,
    ) -> Result<(), Stop> {
        self.frames.guest(from).ok_or(Errno::EINVAL)?;
        self.pass(memory, log).fill(to, |memory| {
            let page: [u8; PAGE_SIZE as usize] = memory.read_obj(from.maddr())?;
            Ok(memory.write(to.maddr(), &page)?)
        })
    }
}

impl Pass<'_> {
    fn unpin(&mut self, mfn: Mfn) -> Result<(), Stop> {
        self.operation(None, |pass| {
            if !pass.frames.guest(mfn).is_some_and(|f| f.pinned()) {
                return Err(pass.because(Obstacle::Pin { mfn, pinned: false }, Errno::EINVAL.into()));
            }
            pass.frames.set_pinned(mfn, false);
            pass.put_table(mfn);
            Ok(())
        })
    }

    fn new_kernel_root(
        &mut self,
        space: &mut VcpuSpace,
        tables: &mut VcpuTables,
        mfn: Mfn,
    ) -> Result<(), Stop> {
        if mfn == tables.kernel {
            space.set_root(mfn);
            return Ok(());
        }
        self.operation(Some((mfn, Level::L4)), |pass| {
            pass.get_table(mfn, Level::L4)?;
            space.set_root(mfn);
            pass.put_table(std::mem::replace(&mut tables.kernel, mfn));
            Ok(())
        })
    }

    /// Frame 0, which a guest never owns, removes the user root.
    fn new_user_root(&mut self, tables: &mut VcpuTables, mfn: Mfn) -> Result<(), Stop> {
        let new = Some(mfn).filter(|mfn| mfn.0 != 0);
        if new == tables.user {
            return Ok(());
        }
        self.operation(Some((mfn, Level::L4)), |pass| {
            if let Some(mfn) = new {
                pass.get_table(mfn, Level::L4)?;
            }
            if let Some(old) = std::mem::replace(&mut tables.user, new) {
                pass.put_table(old);
            }
            Ok(())
        })
    }

    /// Calls `write` for a frame that the guest may write to, and fails for any other.
    fn fill(&mut self, mfn: Mfn, write: impl Fn(&MachineMemory) -> Result<(), Stop>) -> Result<(), Stop> {
        self.operation(None, |pass| {
            pass.hold(mfn, FrameType::Writable, Errno::EINVAL)?;
            let result = write(pass.memory);
            pass.frames.release(mfn);
            result
        })
    }
}
