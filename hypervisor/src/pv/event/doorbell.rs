//! Raising event channels from threads other than the vCPU's.
//!
//! What a device's thread needs to set a port pending and have the guest notice, whether its vCPU runs, blocks
//! or polls; nothing of it waits or takes a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use paravane_abi::event::EvtchnPort;

use super::upcall::Upcall;
use crate::machine::kick::Kick;
use crate::machine::memory::{MachineMemory, Maddr};

/// The way from the host's threads to a domain's vCPU.
pub struct Doorbell {
    memory: Arc<MachineMemory>,
    shared_info: Maddr,
    /// The machine address of the vCPU's info, which may move once.
    vcpu_info: AtomicU64,
    /// The vCPU waits for an event, or is about to: any port may be the one, masked or not.
    waiting: AtomicBool,
    /// There is something for the vCPU's thread to look at besides ports.
    attention: AtomicBool,
    kick: Arc<dyn Kick>,
}

impl Doorbell {
    /// The doorbell of the vCPU whose event bits are where `upcall` says, and which `kick` kicks.
    pub fn new(memory: Arc<MachineMemory>, upcall: Upcall, kick: Arc<dyn Kick>) -> Self {
        Self {
            memory,
            shared_info: upcall.shared_info,
            vcpu_info: AtomicU64::new(upcall.vcpu_info.0),
            waiting: AtomicBool::new(false),
            attention: AtomicBool::new(false),
            kick,
        }
    }

    /// Sets a port pending and kicks the vCPU where that changes something for it.
    ///
    /// A vCPU whose upcalls are masked is kicked too: it may be about to unmask them without a look.
    pub fn raise(&self, port: EvtchnPort) {
        self.raise_by(self.vcpu_info.load(Ordering::SeqCst), port);
    }

    /// The same by a vCPU's info that was there a moment ago.
    fn raise_by(&self, seen: u64, port: EvtchnPort) {
        let at = |vcpu_info| Upcall { shared_info: self.shared_info, vcpu_info: Maddr(vcpu_info) };
        // The shared page is always there; the guest's own info page is held for good.
        let Ok((is_new, mut upcall)) = at(seen).raise_both(&self.memory, port) else { return };
        // If it moved just now, the guest may have looked at all ports before this one was set pending.
        let now = self.vcpu_info.load(Ordering::SeqCst);
        if is_new && now != seen {
            upcall |= at(now).select(&self.memory, port).unwrap_or(false);
        }
        if upcall || is_new && self.waiting.load(Ordering::SeqCst) {
            self.kick.kick();
        }
    }

    /// Asks the vCPU's thread to look after its devices.
    pub fn call(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.kick.kick();
    }
    /// Whether it was asked to; once for each time.
    pub fn was_called(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::SeqCst)
    }

    /// The vCPU waits, or does so no longer. For its own thread, before it looks at what is pending.
    pub fn set_waiting(&self, waiting: bool) {
        if self.waiting.load(Ordering::Relaxed) != waiting {
            self.waiting.store(waiting, Ordering::SeqCst);
        }
    }
    /// The vCPU's info moved. What became pending before is made up for by marking all as pending after this.
    pub fn vcpu_info_moved(&self, to: Maddr) {
        self.vcpu_info.store(to.0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::memory::Backing;
    use crate::pv::event::doorbell::*;
    use crate::testing::engine::CountKicks;

    #[test]
    fn a_vcpu_is_kicked_for_what_is_news_to_it() {
        let memory = Arc::new(MachineMemory::new(2, 0, Backing::Anonymous).unwrap());
        let upcall = Upcall { shared_info: Maddr(0), vcpu_info: Maddr(0) };
        let kicks = Arc::new(CountKicks::default());
        let bell = Doorbell::new(memory.clone(), upcall, kicks.clone());
        let raised = |port| {
            let before = kicks.count();
            bell.raise(port);
            kicks.count() - before
        };
        assert_eq!((raised(5), raised(5)), (1, 0));
        assert_eq!(raised(6), 0, "an upcall is pending already");
        bell.set_waiting(true);
        assert_eq!((raised(7), raised(7)), (1, 0), "but this port may be polled");
        bell.set_waiting(false);
        bell.vcpu_info_moved(Maddr(4096));
        assert_eq!(raised(8), 1);
        assert_eq!(raised(u32::MAX), 0);
        // One that was looking for the old place as it moved: the upcall comes at the new one.
        bell.vcpu_info_moved(Maddr(0));
        let here = Upcall { shared_info: Maddr(0), vcpu_info: Maddr(0) };
        memory.store_u64(Maddr(0), 0).unwrap();
        memory.store_u64(Maddr(8), 0).unwrap();
        bell.raise_by(4096, 9);
        assert_eq!(here.state(&memory), Ok((true, false)));
        assert!(!bell.was_called());
        bell.call();
        assert!(bell.was_called() && !bell.was_called());
    }
}
