//! Memory.

use super::super::abi::{ARCH_SET_FS, ARCH_SET_GS, Answer, Errno, map};
use super::super::areas::Rights;
use super::super::table::Process;
use super::Call;

/// The end of the addresses that a base may have.
const BASE_END: u64 = 1 << 47;

fn rights(bits: u64) -> Result<Rights, Errno> {
    let has = |bit| bits & bit != 0;
    let rights = Rights { read: bits & 7 != 0, write: has(map::WRITE), execute: has(map::EXEC) };
    // What can be written is not executed.
    if rights.write && rights.execute { Err(Errno::Acces) } else { Ok(rights) }
}

impl Call<'_> {
    pub(super) fn map(&mut self) -> Answer {
        let [hint, len, bits, flags, ..] = self.arguments;
        let rights = rights(bits)?;
        if flags & map::ANONYMOUS == 0 || flags & map::PRIVATE == 0 || len == 0 {
            return Err(Errno::Inval);
        }
        let Some(Process { space: Some(space), .. }) = self.table.get(self.pid) else {
            return Err(Errno::NoMem);
        };
        if flags & map::FIXED != 0 {
            space.unmap(self.memory, hint, len)?;
        }
        let at = space.map(hint, len, rights)?;
        if flags & map::FIXED != 0 && at != hint { Err(Errno::NoMem) } else { Ok(at) }
    }

    pub(super) fn unmap(&mut self) -> Answer {
        let [start, len, ..] = self.arguments;
        let Some(Process { space: Some(space), .. }) = self.table.get(self.pid) else {
            return Err(Errno::Inval);
        };
        space.unmap(self.memory, start, len).map(|()| 0)
    }

    pub(super) fn protect(&mut self) -> Answer {
        let [start, len, bits, ..] = self.arguments;
        let rights = rights(bits)?;
        let Some(Process { space: Some(space), .. }) = self.table.get(self.pid) else {
            return Err(Errno::Inval);
        };
        space.protect(self.memory, start, len, rights).map(|()| 0)
    }

    pub(super) fn set_break(&mut self) -> Answer {
        let [wanted, ..] = self.arguments;
        // The answer is where the heap ends, then, too.
        let end = if self.may_grow() { wanted } else { 0 };
        let Some(Process { space: Some(space), .. }) = self.table.get(self.pid) else {
            return Err(Errno::NoMem);
        };
        Ok(space.set_break(self.memory, end))
    }

    pub(super) fn set_base(&mut self) -> Answer {
        let [which, base, ..] = self.arguments;
        if base >= BASE_END {
            return Err(Errno::Perm);
        }
        self.process(|process| {
            match which {
                ARCH_SET_FS => process.context.fs_base = base,
                ARCH_SET_GS => process.context.gs_base = base,
                _ => return Err(Errno::Inval),
            }
            Ok(0)
        })
    }
}
