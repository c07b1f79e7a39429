//! Where a vCPU's time went, and the copies of that and of the clock that a guest asks for.
//!
//! Accounting is by the two transitions that the monitor makes: to waiting, and back to running. Time that
//! the host's scheduler takes from us is not seen here and counts as running (a deviation from Xen).

use paravane_abi::errno::Errno;
use paravane_abi::shared_info::VcpuTimeInfo;
use paravane_abi::vcpu::{RUNSTATE_BLOCKED, RUNSTATE_RUNNING, VcpuRunstateInfo, XEN_RUNSTATE_UPDATE};
use paravane_abi::vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;

use super::context::PvContext;
use super::guest_pointer::GuestPtr;
use super::vcpu::RunState;

/// A vCPU's account of time, and where copies go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runstate {
    info: VcpuRunstateInfo,
    /// Linear address of the guest's copy (VCPUOP_register_runstate_memory_area); 0: none.
    pub area: u64,
    /// Linear address of the guest's second `vcpu_time_info`; 0: none.
    pub time_area: u64,
}

impl Runstate {
    /// Notes that the vCPU is in `state` from `now` on.
    fn enter(&mut self, state: i32, now: u64) {
        let spent = now.saturating_sub(self.info.state_entry_time);
        let slot = usize::try_from(self.info.state).ok().and_then(|s| self.info.time.get_mut(s));
        if let Some(slot) = slot {
            *slot = slot.saturating_add(spent);
        }
        self.info.state = state;
        self.info.state_entry_time = now;
    }

    /// The account as of `now`: the current state's time includes what it has lasted.
    pub fn at(&self, now: u64) -> VcpuRunstateInfo {
        let mut current = *self;
        current.enter(self.info.state, now);
        VcpuRunstateInfo { state_entry_time: self.info.state_entry_time, ..current.info }
    }
}

impl PvContext<'_> {
    /// Makes the vCPU wait.
    pub fn wait_as(&mut self, state: RunState) {
        self.vcpu.state = state;
        self.vcpu.runstate.enter(RUNSTATE_BLOCKED, self.domain.clock.now());
    }

    /// Lets the vCPU run on, and brings its copies up to date.
    pub fn run_again(&mut self) {
        self.vcpu.state = RunState::Running;
        self.vcpu.runstate.enter(RUNSTATE_RUNNING, self.domain.clock.now());
        // A guest that unmapped its areas is told nothing, as on Xen.
        let _ = self.publish_runstate();
        let _ = self.publish_time_copy();
    }

    /// Writes the guest's copy of its run states, if it wants one.
    pub fn publish_runstate(&mut self) -> Result<(), Errno> {
        let area = self.vcpu.runstate.area;
        if area == 0 {
            return Ok(());
        }
        let area = GuestPtr::<VcpuRunstateInfo>::new(area);
        let info = self.vcpu.runstate.info;
        if !self.vcpu.assisted(VMASST_TYPE_RUNSTATE_UPDATE_FLAG) {
            return self.guest().write(area, &info);
        }
        let entry_time = area.part::<u64>(std::mem::offset_of!(VcpuRunstateInfo, state_entry_time))?;
        let marked =
            VcpuRunstateInfo { state_entry_time: info.state_entry_time | XEN_RUNSTATE_UPDATE, ..info };
        self.guest().write(entry_time, &marked.state_entry_time)?;
        self.guest().write(area, &marked)?;
        self.guest().write(entry_time, &info.state_entry_time)
    }

    /// Writes the guest's second copy of its time, if it wants one.
    pub fn publish_time_copy(&mut self) -> Result<(), Errno> {
        let area = self.vcpu.runstate.time_area;
        if area == 0 {
            return Ok(());
        }
        let area = GuestPtr::<VcpuTimeInfo>::new(area);
        let version = area.part::<u32>(std::mem::offset_of!(VcpuTimeInfo, version))?;
        let old = self.guest().read(version)?;
        let time = self.domain.clock.published(old);
        // Odd while the rest changes (public/xen.h, vcpu_time_info).
        self.guest().write(area, &VcpuTimeInfo { version: time.version.wrapping_sub(1), ..time })?;
        self.guest().write(version, &time.version)
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::vcpu::RUNSTATE_OFFLINE;

    use crate::pv::runstate::*;

    #[test]
    fn time_goes_to_the_state_that_it_was_spent_in() {
        let mut r = Runstate::default();
        r.enter(RUNSTATE_BLOCKED, 100);
        r.enter(RUNSTATE_RUNNING, 250);
        let info = r.at(300);
        assert_eq!((info.state, info.state_entry_time), (RUNSTATE_RUNNING, 250));
        assert_eq!(info.time, [150, 0, 150, 0]);
        assert_eq!(r.at(300).time, [150, 0, 150, 0], "asking changes nothing");
        r.enter(RUNSTATE_OFFLINE, 200);
        assert_eq!(r.info.time, [100, 0, 150, 0], "a clock that goes back takes nothing away");
    }
}
