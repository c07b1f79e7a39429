//! Descriptor tables: `set_gdt`, `update_descriptor`, MMUEXT_SET_LDT.
//!
//! An engine may have the processor run on these frames: what passes here gives no more rights than CPL 3 has, and the
//! guest cannot store to a frame while it is a descriptor table. Of system descriptors only absent ones pass;
//! call gates, which Xen allows a guest, are refused. Of an LDT, only its address and size are checked.
//! Facts: SDM vol. 3, 3.4.5 (segment descriptors); public/arch-x86/xen.h (FIRST_RESERVED_GDT_ENTRY).

use paravane_abi::Errno;

use super::frame::FrameType;
use super::state::{DirectPaging, Pass, Stop};
use super::vcpu_tables::{GDT_FRAMES, Gdt, VcpuTables};
use crate::machine::memory::{MachineMemory, Maddr, Mfn};
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::descriptor::bits::{DPL, NOT_SYSTEM, PRESENT};

/// Descriptors in a frame.
const PER_FRAME: usize = 512;
/// The type field, and the bit that tells system descriptors from others.
const TYPE_AND_S: u64 = 0x1f << 40;

impl DirectPaging {
    /// `set_gdt`: makes `frames` the vCPU's GDT of `entries` descriptors. More frames than those need are ignored.
    pub fn set_gdt(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        space: &mut VcpuSpace,
        tables: &mut VcpuTables,
        frames: &[u64],
        entries: u32,
    ) -> Result<(), Stop> {
        let count = usize::try_from(entries).map_err(|_| Errno::EINVAL)?.div_ceil(PER_FRAME);
        let frames = frames.get(..count).filter(|_| count <= GDT_FRAMES).ok_or(Errno::EINVAL)?;
        self.pass(memory, log).operation(None, |pass| {
            let mut gdt = Gdt::default();
            for (slot, &mfn) in gdt.frames.iter_mut().zip(frames) {
                if let Err(stop) = pass.get_segdesc(Mfn(mfn)) {
                    pass.put_gdt(&gdt);
                    return Err(stop);
                }
                *slot = Some(Mfn(mfn));
            }
            space.set_gdt(gdt.frames);
            pass.put_gdt(&std::mem::replace(&mut tables.gdt, gdt));
            Ok(())
        })
    }

    /// `update_descriptor`: stores one descriptor into a descriptor page, or into memory that may become one.
    pub fn update_descriptor(
        &mut self,
        memory: &MachineMemory,
        log: &mut TableLog,
        at: Maddr,
        descriptor: u64,
    ) -> Result<(), Stop> {
        let stored = checked(descriptor).filter(|_| at.0.is_multiple_of(8)).ok_or(Errno::EINVAL)?;
        let mfn = at.mfn();
        self.pass(memory, log).operation(None, |pass| {
            let frame = pass.frames.guest(mfn).ok_or(Errno::EINVAL)?;
            if frame.held_as() == Some(FrameType::SegDesc) {
                return Ok(memory.store_u64(at, stored)?);
            }
            pass.hold(mfn, FrameType::Writable, Errno::EINVAL)?;
            let result = memory.store_u64(at, stored);
            pass.frames.release(mfn);
            Ok(result?)
        })
    }
}

impl Pass<'_> {
    fn get_segdesc(&mut self, mfn: Mfn) -> Result<(), Stop> {
        if !self.hold(mfn, FrameType::SegDesc, Errno::EINVAL)? {
            return Ok(());
        }
        self.work.looked_at += PER_FRAME as u64;
        let validated = self.validate_segdesc(mfn);
        match validated {
            Ok(()) => self.frames.set_validated(mfn, true),
            Err(_) => self.frames.release(mfn),
        }
        validated
    }

    fn validate_segdesc(&mut self, mfn: Mfn) -> Result<(), Stop> {
        let mut page: [u64; PER_FRAME] = self.memory.read_obj(mfn.maddr())?;
        for descriptor in &mut page {
            *descriptor = checked(*descriptor).ok_or(Errno::EINVAL)?;
        }
        Ok(self.memory.write_obj(mfn.maddr(), &page)?)
    }

    pub(super) fn put_gdt(&mut self, gdt: &Gdt) {
        for mfn in gdt.frames.iter().flatten() {
            self.release(*mfn);
        }
    }
}

/// The descriptor as it is stored, with the guest's privilege level; `None` if a guest may not have it.
fn checked(descriptor: u64) -> Option<u64> {
    if descriptor & PRESENT == 0 {
        // Using it faults, whatever its other fields are.
        return Some(descriptor);
    }
    if descriptor & TYPE_AND_S == 0 {
        // Reserved, and harmless: the second half of a 16-byte descriptor looks like this.
        return Some(descriptor);
    }
    (descriptor & NOT_SYSTEM != 0).then_some(descriptor | DPL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::direct::vcpu_tables::Ldt;

    #[test]
    fn descriptors_get_the_guests_privilege() {
        let kernel_code = 0x00af_9b00_0000_ffff;
        assert_eq!(checked(kernel_code), Some(0x00af_fb00_0000_ffff));
        assert_eq!(checked(0), Some(0));
        assert_eq!(checked(PRESENT | 0xffff), Some(PRESENT | 0xffff), "type 0");
        let call_gate = 0x0000_8c00_0000_0000 | PRESENT;
        assert_eq!(checked(call_gate), None);
        assert_eq!(checked(call_gate & !PRESENT), Some(call_gate & !PRESENT));
    }

    #[test]
    fn an_ldt_lies_in_the_guests_range() {
        let mut ldt = Ldt::default();
        assert!(ldt.set(0x1000, 8192).is_ok());
        for (base, entries) in [(0x1008, 1), (0x1000, 8193), (1 << 47, 1), (0xffff_8000_0000_0000, 1)] {
            assert_eq!(ldt.set(base, entries), Err(Errno::EINVAL.into()));
        }
        assert!(ldt.set(0x123, 0).is_ok(), "no entries, no place");
    }
}
