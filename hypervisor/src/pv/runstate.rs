//! Where a vCPU's time went. `pv::waiting` makes the changes.
//!
//! Accounting is by the two transitions that the monitor makes: to waiting, and back to running. Time that the host's
//! scheduler takes from a vCPU that runs is told now and then, and moved from running to runnable: a guest sees it as
//! stolen, a moment late.

use paravane_abi::vcpu::{RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING, VcpuRunstateInfo};

/// A vCPU's account of time, and where copies go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runstate {
    /// The account at the last change.
    pub info: VcpuRunstateInfo,
    /// Linear address of the guest's copy (VCPUOP_register_runstate_memory_area); 0: none.
    pub area: u64,
    /// Linear address of the guest's second `vcpu_time_info`; 0: none.
    pub time_area: u64,
}

impl Runstate {
    /// That of a vCPU that has never run.
    pub fn offline() -> Self {
        let info = VcpuRunstateInfo { state: RUNSTATE_OFFLINE, ..VcpuRunstateInfo::default() };
        Self { info, ..Self::default() }
    }

    /// Notes that the vCPU is in `state` from `now` on.
    pub fn enter(&mut self, state: i32, now: u64) {
        let spent = now.saturating_sub(self.info.state_entry_time);
        let slot = usize::try_from(self.info.state).ok().and_then(|s| self.info.time.get_mut(s));
        if let Some(slot) = slot {
            *slot = slot.saturating_add(spent);
        }
        self.info.state = state;
        self.info.state_entry_time = now;
    }

    /// For `ns` of the time in which it seemed to run it had no CPU.
    pub fn steal(&mut self, ns: u64, now: u64) {
        if self.info.state != RUNSTATE_RUNNING {
            return;
        }
        let stolen = ns.min(now.saturating_sub(self.info.state_entry_time));
        if let Some(runnable) =
            usize::try_from(RUNSTATE_RUNNABLE).ok().and_then(|s| self.info.time.get_mut(s))
        {
            *runnable = runnable.saturating_add(stolen);
        }
        self.info.state_entry_time = self.info.state_entry_time.saturating_add(stolen);
    }

    /// The account at `now`, the time in the current state included.
    pub fn at(&self, now: u64) -> VcpuRunstateInfo {
        let mut current = *self;
        current.enter(self.info.state, now);
        VcpuRunstateInfo { state_entry_time: self.info.state_entry_time, ..current.info }
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::vcpu::RUNSTATE_BLOCKED;

    use crate::pv::runstate::*;

    #[test]
    fn stolen_time_is_not_run() {
        let mut r = Runstate::default();
        r.steal(30, 100);
        assert_eq!(r.at(100).time, [70, 30, 0, 0]);
        r.steal(500, 120);
        assert_eq!(r.at(120).time, [0, 120, 0, 0], "never more than there was");
        r.enter(RUNSTATE_BLOCKED, 150);
        r.steal(10, 160);
        assert_eq!(r.at(160).time, [30, 120, 10, 0], "who waits loses nothing");
    }

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
