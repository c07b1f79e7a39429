//! A vCPU that waits, and runs on: its account of time, and the copies of that and of the clock that a guest asks for.
//!
//! Runs on the vCPU's own thread, between two entries into the guest.

use paravane_abi::errno::Errno;
use paravane_abi::shared_info::VcpuTimeInfo;
use paravane_abi::vcpu::{
    RUNSTATE_BLOCKED, RUNSTATE_OFFLINE, RUNSTATE_RUNNING, VcpuRunstateInfo, XEN_RUNSTATE_UPDATE,
};
use paravane_abi::vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;

use super::context::PvContext;
use super::guest_pointer::GuestPtr;
use super::vcpu::RunState;

impl PvContext<'_> {
    /// Makes the vCPU wait.
    pub fn wait_as(&mut self, state: RunState) {
        self.vcpu.state = state;
        let told = if state == RunState::Offline { RUNSTATE_OFFLINE } else { RUNSTATE_BLOCKED };
        self.vcpu.runstate.enter(told, self.domain.clock.now());
        self.show_runstate();
    }

    /// Lets the vCPU run on, and brings its copies up to date.
    pub fn run_again(&mut self) {
        self.vcpu.state = RunState::Running;
        self.vcpu.runstate.enter(RUNSTATE_RUNNING, self.domain.clock.now());
        self.show_runstate();
        // A guest that unmapped its areas gets no copies, as on Xen.
        let _ = self.publish_runstate();
        let _ = self.publish_time_copy();
    }

    /// The host's scheduler has kept the vCPU from its CPU for `ns` since it was last told.
    pub fn steal(&mut self, ns: u64) {
        self.vcpu.runstate.steal(ns, self.domain.clock.now());
        self.show_runstate();
        let _ = self.publish_runstate();
    }

    /// Lets the other vCPUs see the account of time.
    fn show_runstate(&mut self) {
        if let Some(peer) = self.domain.peers.get_mut(self.vcpu.id) {
            peer.runstate = self.vcpu.runstate;
        }
    }

    /// Takes what other vCPUs left for this one.
    pub fn take_left(&mut self) {
        let Some(left) = self.domain.peers.take_left(self.vcpu.id) else { return };
        self.vcpu.nmi.pending |= left.nmi;
        if let Some(period) = left.periodic {
            self.vcpu.timers.set_periodic(period, self.domain.clock.now());
        }
        if let Some(area) = left.runstate_area {
            self.vcpu.runstate.area = area;
        }
        if let Some(area) = left.time_area {
            self.vcpu.runstate.time_area = area;
        }
    }

    /// Goes up or down as the other vCPUs or itself asked for. What it begins with is loaded when it first goes up.
    pub fn go_up_or_down(&mut self) {
        let Some(peer) = self.domain.peers.get_mut(self.vcpu.id) else { return };
        match (peer.up, self.vcpu.state) {
            (true, RunState::Offline) => {
                if let Some(context) = peer.context.take() {
                    self.vcpu.begin_as(*context);
                }
                tracing::info!("vCPU {} is up", self.vcpu.id.number());
                self.run_again();
            }
            (true, _) | (false, RunState::Offline) => {}
            (false, _) => {
                self.vcpu.timers.set_poll(None);
                tracing::info!("vCPU {} is down", self.vcpu.id.number());
                self.wait_as(RunState::Offline);
            }
        }
    }

    /// Writes the guest's copy of its run states, if it wants one.
    pub fn publish_runstate(&mut self) -> Result<(), Errno> {
        let area = self.vcpu.runstate.area;
        if area == 0 {
            return Ok(());
        }
        let area = GuestPtr::<VcpuRunstateInfo>::new(area);
        let info = self.vcpu.runstate.info;
        if !self.domain.assisted(VMASST_TYPE_RUNSTATE_UPDATE_FLAG) {
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
