//! The bits of the two-level event ABI, in memory that the guest shares.
//!
//! Order matters and follows public/xen.h: pending bit, then (unless masked) the selector bit, then the upcall
//! flag. The guest may change any of it at any time; nothing read here is believed further than one decision.

use std::mem::offset_of;

use paravane_abi::event::EvtchnPort;
use paravane_abi::shared_info::{SharedInfo, VcpuInfo};

use super::EventChannels;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};

/// Where a vCPU's event state lies.
#[derive(Clone, Copy, Debug)]
pub struct Upcall {
    /// The shared info page.
    pub shared_info: Maddr,
    /// The vCPU's info: in the shared info page, where there is room for it, until VCPUOP_register_vcpu_info moves it.
    pub vcpu_info: Maddr,
}

/// Where the info of a vCPU is that the shared info page has no room for, before the guest gives it a place.
pub const NOWHERE: Maddr = Maddr(u64::MAX);

impl Upcall {
    /// The word of a bit array that holds a port's bit, and the bit; an error beyond the arrays' end.
    fn word(&self, array: usize, port: EvtchnPort) -> Result<(Maddr, u64), BadMachineAddress> {
        let word = u64::from(port) / 64;
        let addr = self.shared_info.0 + array as u64 + word * 8;
        if !EventChannels::is_number(port) {
            return Err(BadMachineAddress { addr, len: 8 });
        }
        Ok((Maddr(addr), 1 << (port % 64)))
    }

    /// Sets a port pending; true if that made an upcall pending that was not before.
    pub fn raise(&self, memory: &MachineMemory, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        self.raise_both(memory, port).map(|(_, upcall)| upcall)
    }

    /// As [`Upcall::raise`], for the host's own threads: (the port was not pending, an upcall was not).
    pub(super) fn raise_both(
        &self,
        memory: &MachineMemory,
        port: EvtchnPort,
    ) -> Result<(bool, bool), BadMachineAddress> {
        let (pending, bit) = self.word(offset_of!(SharedInfo, evtchn_pending), port)?;
        let is_new = memory.fetch_or_u64(pending, bit)? & bit == 0;
        Ok((is_new, is_new && self.select(memory, port)?))
    }

    /// Clears the mask of a port; raises it again if it was pending meanwhile (EVTCHNOP_unmask). True if that made an
    /// upcall pending that was not before.
    pub fn unmask(&self, memory: &MachineMemory, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        let (mask, bit) = self.word(offset_of!(SharedInfo, evtchn_mask), port)?;
        let was_masked = memory.fetch_and_not_u64(mask, bit)? & bit != 0;
        Ok(was_masked && self.is_pending(memory, port)? && self.select(memory, port)?)
    }

    /// Clears a port's pending bit, when the port is closed.
    pub fn forget(&self, memory: &MachineMemory, port: EvtchnPort) -> Result<(), BadMachineAddress> {
        let (pending, bit) = self.word(offset_of!(SharedInfo, evtchn_pending), port)?;
        memory.fetch_and_not_u64(pending, bit).map(drop)
    }

    /// Whether a port's pending bit is set.
    pub fn is_pending(&self, memory: &MachineMemory, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        let (pending, bit) = self.word(offset_of!(SharedInfo, evtchn_pending), port)?;
        Ok(memory.load_u64(pending)? & bit != 0)
    }

    /// Whether a port's mask bit is set.
    pub fn is_masked(&self, memory: &MachineMemory, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        let (mask, bit) = self.word(offset_of!(SharedInfo, evtchn_mask), port)?;
        Ok(memory.load_u64(mask)? & bit != 0)
    }

    pub(super) fn select(&self, memory: &MachineMemory, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        let (mask, bit) = self.word(offset_of!(SharedInfo, evtchn_mask), port)?;
        if memory.load_u64(mask)? & bit != 0 || self.vcpu_info == NOWHERE {
            return Ok(false);
        }
        let selector = Maddr(self.vcpu_info.0 + offset_of!(VcpuInfo, evtchn_pending_sel) as u64);
        let sel_bit = 1 << (u64::from(port) / 64);
        if memory.fetch_or_u64(selector, sel_bit)? & sel_bit != 0 {
            return Ok(false);
        }
        // The lowest byte of the info's first word, which other vCPUs set as well.
        Ok(memory.fetch_or_u64(self.vcpu_info, 1)? & 0xff == 0)
    }

    /// Marks an upcall pending whatever the ports say: after the vCPU's info moved, nothing may be lost.
    pub fn mark_pending(&self, memory: &MachineMemory) -> Result<(), BadMachineAddress> {
        let selector = Maddr(self.vcpu_info.0 + offset_of!(VcpuInfo, evtchn_pending_sel) as u64);
        memory.store_u64(selector, u64::MAX)?;
        memory.write_obj(Maddr(self.vcpu_info.0 + offset_of!(VcpuInfo, evtchn_upcall_pending) as u64), &1u8)
    }

    /// (pending, masked).
    pub fn state(&self, memory: &MachineMemory) -> Result<(bool, bool), BadMachineAddress> {
        let word = memory.load_u64(self.vcpu_info)?;
        Ok((word & 0xff != 0, word & 0xff00 != 0))
    }

    /// Whether upcalls are masked: the guest's virtual interrupt flag, inverted.
    pub fn set_mask(&self, memory: &MachineMemory, masked: bool) -> Result<(), BadMachineAddress> {
        let flag = Maddr(self.vcpu_info.0 + offset_of!(VcpuInfo, evtchn_upcall_mask) as u64);
        memory.write_obj(flag, &u8::from(masked))
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::memory::Backing;
    use crate::pv::event::upcall::*;

    fn setup() -> (MachineMemory, Upcall) {
        let memory = MachineMemory::new(1, 0, Backing::Anonymous).unwrap();
        (memory, Upcall { shared_info: Maddr(0), vcpu_info: Maddr(0) })
    }

    #[test]
    fn a_raised_port_makes_an_upcall_pending_once() {
        let (m, u) = setup();
        assert_eq!(u.raise(&m, 77), Ok(true));
        assert_eq!(u.raise(&m, 77), Ok(false));
        assert_eq!(u.state(&m), Ok((true, false)));
        let info: VcpuInfo = m.read_obj(Maddr(0)).unwrap();
        assert_eq!(info.evtchn_pending_sel, 1 << 1);
    }

    #[test]
    fn numbers_beyond_the_arrays_touch_nothing() {
        let (m, u) = setup();
        for port in [4096, 4097, u32::MAX] {
            assert!(u.raise(&m, port).is_err() && u.unmask(&m, port).is_err() && u.forget(&m, port).is_err());
            assert!(u.is_pending(&m, port).is_err());
        }
        let page: [u8; 4096] = m.read_obj(Maddr(0)).unwrap();
        assert_eq!(page, [0; 4096]);
    }

    #[test]
    fn a_masked_port_waits_for_unmask() {
        let (m, u) = setup();
        let (mask, bit) = u.word(offset_of!(SharedInfo, evtchn_mask), 5).unwrap();
        m.store_u64(mask, bit).unwrap();
        assert_eq!(u.raise(&m, 5), Ok(false));
        assert_eq!(u.state(&m), Ok((false, false)));
        u.unmask(&m, 5).unwrap();
        assert_eq!(u.state(&m), Ok((true, false)));
    }
}
