//! A vCPU that waits, and runs on: its account of time, and the copies of that and of the clock that a guest asks for.
//!
//! Runs on the vCPU's own thread, between two entries into the guest.

use paravane_abi::errno::Errno;
use paravane_abi::shared_info::VcpuTimeInfo;
use paravane_abi::vcpu::{RUNSTATE_BLOCKED, RUNSTATE_RUNNING, VcpuRunstateInfo, XEN_RUNSTATE_UPDATE};
use paravane_abi::vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;

use super::context::PvContext;
use super::guest_pointer::GuestPtr;
use super::vcpu::RunState;

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
        // A guest that unmapped its areas gets no copies, as on Xen.
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
