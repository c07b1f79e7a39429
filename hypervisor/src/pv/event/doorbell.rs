//! Raising event channels, from any thread and without the domain's lock.
//!
//! What is needed to set a port pending and have the guest notice, whether the vCPU that the port notifies runs, blocks
//! or polls: for that vCPU's own thread, for those of the others, and for the threads of devices. Nothing of it waits
//! or takes a lock.
//!
//! A vCPU says that it polls before it looks at what is pending; who raises a port sets it pending before it looks at
//! who polls. So one of the two sees the other, although the port may be masked, so that there is no upcall.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use paravane_abi::event::{EVTCHN_2L_NR_CHANNELS, EvtchnPort};
use paravane_abi::shared_info::{VcpuInfo, XEN_LEGACY_MAX_VCPUS};

use super::upcall::{NOWHERE, Upcall};
use crate::machine::kick::Kick;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};
use crate::pv::vcpu::VcpuId;

/// Which vCPU each port notifies.
#[derive(Debug)]
pub struct Targets(Box<[AtomicU8]>);

impl Targets {
    /// Every port notifies the vCPU that a domain starts with, which may be its only one.
    pub fn new(vcpus: usize) -> Self {
        let ports = if vcpus > 1 { EVTCHN_2L_NR_CHANNELS } else { 0 };
        Self((0..ports).map(|_| AtomicU8::new(0)).collect())
    }
    /// The vCPU that `port` notifies.
    pub fn of(&self, port: EvtchnPort) -> VcpuId {
        let target = usize::try_from(port).ok().and_then(|port| self.0.get(port));
        target.and_then(|vcpu| VcpuId::new(vcpu.load(Ordering::SeqCst).into())).unwrap_or(VcpuId::BOOT)
    }
    /// `port` notifies `vcpu` from now on.
    pub fn set(&self, port: EvtchnPort, vcpu: VcpuId) {
        let target = usize::try_from(port).ok().and_then(|port| self.0.get(port));
        if let (Some(target), Ok(vcpu)) = (target, u8::try_from(vcpu.number())) {
            target.store(vcpu, Ordering::SeqCst);
        }
    }
}

/// What other threads need of a vCPU to notify it.
struct Doorbell {
    /// The machine address of the vCPU's info, which may move once.
    vcpu_info: AtomicU64,
    /// The port that the vCPU polls, masked or not; [`SEVERAL`] if that can be any, and 0 once it polls no longer, or a
    /// port that it polls has become pending. Who finds that port may have cleared it before the vCPU looks.
    polls: AtomicU32,
    kick: Arc<dyn Kick>,
}

/// More ports than one, or none of them in particular, as Xen sees it (evtchn_check_pollers).
const SEVERAL: u32 = u32::MAX;

impl Doorbell {
    /// Ends the poll that `port`, which became pending, is for; whether there was one.
    fn ends_poll(&self, port: EvtchnPort) -> bool {
        let polls = self.polls.load(Ordering::SeqCst);
        (polls == port || polls == SEVERAL)
            && self.polls.compare_exchange(polls, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// The ways from any thread to the vCPUs of a domain.
pub struct Doorbells {
    memory: Arc<MachineMemory>,
    /// The shared info page.
    pub shared_info: Maddr,
    vcpus: Box<[Doorbell]>,
    targets: Arc<Targets>,
    /// There is something for a vCPU's thread to look at besides ports.
    attention: AtomicBool,
}

impl Doorbells {
    /// The doorbells of as many vCPUs as there are `kicks`.
    pub fn new(memory: Arc<MachineMemory>, shared_info: Maddr, kicks: Vec<Arc<dyn Kick>>) -> Self {
        let targets = Arc::new(Targets::new(kicks.len()));
        let bell = |(number, kick)| Doorbell {
            vcpu_info: AtomicU64::new(first_info(shared_info, number).0),
            polls: AtomicU32::new(0),
            kick,
        };
        let vcpus = kicks.into_iter().enumerate().map(bell).collect();
        Self { memory, shared_info, vcpus, targets, attention: AtomicBool::new(false) }
    }

    /// Which vCPU each port notifies.
    pub fn targets(&self) -> Arc<Targets> {
        Arc::clone(&self.targets)
    }

    fn bell(&self, vcpu: VcpuId) -> Option<&Doorbell> {
        self.vcpus.get(vcpu.index())
    }

    /// Where a vCPU's event state lies.
    pub fn of(&self, vcpu: VcpuId) -> Upcall {
        let at = self.bell(vcpu).map_or(NOWHERE.0, |bell| bell.vcpu_info.load(Ordering::SeqCst));
        Upcall { shared_info: self.shared_info, vcpu_info: Maddr(at) }
    }

    /// Sets a port pending, and kicks the vCPU that it notifies where that changes something for it. `by` is the vCPU
    /// on whose thread this is called, which need not be kicked.
    ///
    /// A vCPU whose upcalls are masked is kicked too: it may be about to unmask them without a look.
    ///
    /// # Errors
    /// When there is no such port, or no shared page.
    pub fn raise(&self, port: EvtchnPort, by: Option<VcpuId>) -> Result<(), BadMachineAddress> {
        let target = self.targets.of(port);
        self.raise_on((target, self.of(target)), port, by)
    }

    /// The same by what was a moment ago: the vCPU that the port notifies, and where its info is.
    fn raise_on(
        &self,
        (target, seen): (VcpuId, Upcall),
        port: EvtchnPort,
        by: Option<VcpuId>,
    ) -> Result<(), BadMachineAddress> {
        let (is_new, upcall) = seen.raise_both(&self.memory, port)?;
        self.notify(target, port, (is_new, upcall), by);
        if !is_new {
            return Ok(());
        }
        // If something moved just now, the vCPU may have looked at all ports before this one was set pending. The
        // shared page is always there; an info page of the guest's is held for good.
        let now = self.targets.of(port);
        let there = self.of(now);
        if now != target || there.vcpu_info != seen.vcpu_info {
            let upcall = there.select(&self.memory, port)?;
            self.notify(now, port, (true, upcall), by);
        }
        Ok(())
    }

    /// Kicks `target` if an upcall became pending there; and if the port is newly pending, whoever polls it.
    fn notify(&self, target: VcpuId, port: EvtchnPort, (is_new, upcall): (bool, bool), by: Option<VcpuId>) {
        for (number, bell) in self.vcpus.iter().enumerate() {
            if by.is_some_and(|by| by.index() == number) {
                continue;
            }
            let wakes = number == target.index() && upcall;
            let polled = is_new && bell.ends_poll(port);
            if wakes || polled {
                bell.kick.kick();
            }
        }
    }

    /// Clears the mask of a port; raises it again if it was pending meanwhile (EVTCHNOP_unmask).
    ///
    /// # Errors
    /// When there is no such port, or no shared page.
    pub fn unmask(&self, port: EvtchnPort, by: VcpuId) -> Result<(), BadMachineAddress> {
        let target = self.targets.of(port);
        let upcall = self.of(target).unmask(&self.memory, port)?;
        self.notify(target, port, (false, upcall), Some(by));
        Ok(())
    }

    /// Has `port`, which notifies another vCPU since a moment ago, notify it of what is pending already.
    ///
    /// # Errors
    /// When there is no such port, or no shared page.
    pub fn moved(&self, port: EvtchnPort, by: VcpuId) -> Result<(), BadMachineAddress> {
        let target = self.targets.of(port);
        let there = self.of(target);
        if there.is_pending(&self.memory, port)? {
            let upcall = there.select(&self.memory, port)?;
            self.notify(target, port, (false, upcall), Some(by));
        }
        Ok(())
    }

    /// Whether a port's pending bit is set.
    ///
    /// # Errors
    /// When there is no such bit.
    pub fn is_pending(&self, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        self.of(VcpuId::BOOT).is_pending(&self.memory, port)
    }

    /// Whether a port's mask bit is set.
    ///
    /// # Errors
    /// When there is no such bit.
    pub fn is_masked(&self, port: EvtchnPort) -> Result<bool, BadMachineAddress> {
        self.of(VcpuId::BOOT).is_masked(&self.memory, port)
    }

    /// Clears what is pending of a port that is free.
    ///
    /// # Errors
    /// When the shared page does not exist.
    pub fn forget(&self, port: EvtchnPort) -> Result<(), BadMachineAddress> {
        self.of(VcpuId::BOOT).forget(&self.memory, port)
    }

    /// Makes a vCPU's thread look for what was left for it.
    pub fn kick(&self, vcpu: VcpuId) {
        if let Some(bell) = self.bell(vcpu) {
            bell.kick.kick();
        }
    }
    /// The same for all of them but `by`.
    pub fn kick_others(&self, by: VcpuId) {
        for (number, bell) in self.vcpus.iter().enumerate() {
            if number != by.index() {
                bell.kick.kick();
            }
        }
    }

    /// Asks the thread of the vCPU that the domain started with to look after its devices.
    pub fn call(&self) {
        self.attention.store(true, Ordering::SeqCst);
        self.kick(VcpuId::BOOT);
    }
    /// Whether it was asked to; once for each time.
    pub fn was_called(&self) -> bool {
        self.attention.load(Ordering::Relaxed) && self.attention.swap(false, Ordering::SeqCst)
    }

    /// A vCPU polls these ports. For its own thread, before it looks at what is pending.
    pub fn poll(&self, vcpu: VcpuId, ports: &[EvtchnPort]) {
        if let Some(bell) = self.bell(vcpu) {
            let polls = if let [one] = ports { *one } else { SEVERAL };
            bell.polls.store(polls, Ordering::SeqCst);
        }
    }
    /// Whether a port that a vCPU polled has become pending since, or it polls nothing.
    pub fn poll_has_ended(&self, vcpu: VcpuId) -> bool {
        self.bell(vcpu).is_none_or(|bell| bell.polls.load(Ordering::SeqCst) == 0)
    }
    /// A vCPU polls no longer. For its own thread.
    pub fn end_poll(&self, vcpu: VcpuId) {
        if let Some(bell) = self.bell(vcpu)
            && bell.polls.load(Ordering::Relaxed) != 0
        {
            bell.polls.store(0, Ordering::SeqCst);
        }
    }
    /// Whether the guest has given a vCPU's info a place of its own.
    pub fn vcpu_info_has_moved(&self, vcpu: VcpuId) -> bool {
        self.of(vcpu).vcpu_info != first_info(self.shared_info, vcpu.index())
    }
    /// A vCPU's info is at `to` from now on (VCPUOP_register_vcpu_info). What became pending before is made up for by
    /// marking all as pending after this.
    pub fn vcpu_info_moved(&self, vcpu: VcpuId, to: Maddr) {
        if let Some(bell) = self.bell(vcpu) {
            bell.vcpu_info.store(to.0, Ordering::SeqCst);
        }
    }
}

/// Where a vCPU's info is before the guest gives it a place of its own.
fn first_info(shared_info: Maddr, number: usize) -> Maddr {
    match number {
        0..XEN_LEGACY_MAX_VCPUS => Maddr(shared_info.0 + (number * size_of::<VcpuInfo>()) as u64),
        _ => NOWHERE,
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::memory::Backing;
    use crate::pv::event::doorbell::*;
    use crate::testing::engine::CountKicks;

    fn bells(vcpus: usize) -> (Doorbells, Vec<Arc<CountKicks>>) {
        let memory = Arc::new(MachineMemory::new(2, 0, Backing::Anonymous).unwrap());
        let kicks: Vec<_> = (0..vcpus).map(|_| Arc::new(CountKicks::default())).collect();
        let theirs = kicks.iter().map(|kicks| Arc::clone(kicks) as Arc<dyn Kick>).collect();
        (Doorbells::new(memory, Maddr(0), theirs), kicks)
    }

    fn vcpu(number: u32) -> VcpuId {
        VcpuId::new(number).unwrap()
    }

    #[test]
    fn a_vcpu_is_kicked_for_what_is_news_to_it() {
        let (bells, kicks) = bells(1);
        let raised = |port| {
            let before = kicks[0].count();
            let _ = bells.raise(port, None);
            kicks[0].count() - before
        };
        assert_eq!((raised(5), raised(5)), (1, 0));
        assert_eq!(raised(6), 0, "an upcall is pending already");
        bells.poll(VcpuId::BOOT, &[7]);
        assert_eq!((raised(10), bells.poll_has_ended(VcpuId::BOOT)), (0, false), "this one is not polled");
        assert_eq!((raised(7), raised(7)), (1, 0), "but this one is");
        assert!(
            bells.poll_has_ended(VcpuId::BOOT),
            "though it may be cleared by the time that the vCPU looks"
        );
        for several in [&[][..], &[20, 21]] {
            bells.poll(VcpuId::BOOT, several);
            assert_eq!(raised(11 + several.len() as u32), 1, "any may be the one");
        }
        bells.poll(VcpuId::BOOT, &[7]);
        bells.end_poll(VcpuId::BOOT);
        assert!(bells.poll_has_ended(VcpuId::BOOT));
        bells.vcpu_info_moved(VcpuId::BOOT, Maddr(4096));
        assert_eq!(raised(8), 1);
        assert_eq!(raised(u32::MAX), 0);
        assert!(bells.raise(4096, None).is_err());
        // One that was looking for the old place as it moved: the upcall comes at the new one.
        bells.vcpu_info_moved(VcpuId::BOOT, Maddr(0));
        let here = bells.of(VcpuId::BOOT);
        bells.memory.store_u64(Maddr(0), 0).unwrap();
        bells.memory.store_u64(Maddr(8), 0).unwrap();
        let old = Upcall { vcpu_info: Maddr(4096), ..here };
        bells.raise_on((VcpuId::BOOT, old), 9, None).unwrap();
        assert_eq!(here.state(&bells.memory), Ok((true, false)));
        assert!(!bells.was_called());
        bells.call();
        assert!(bells.was_called() && !bells.was_called());
    }

    #[test]
    fn a_port_notifies_its_vcpu_and_wakes_whoever_may_poll_it() {
        let (bells, kicks) = bells(3);
        let counts = || [kicks[0].count(), kicks[1].count(), kicks[2].count()];
        bells.targets.set(5, vcpu(1));
        bells.raise(5, Some(VcpuId::BOOT)).unwrap();
        assert_eq!(counts(), [0, 1, 0]);
        assert_eq!(bells.of(vcpu(1)).state(&bells.memory), Ok((true, false)));
        assert_eq!(bells.of(VcpuId::BOOT).state(&bells.memory), Ok((false, false)));
        bells.poll(vcpu(2), &[6]);
        bells.raise(6, Some(VcpuId::BOOT)).unwrap();
        assert_eq!(
            counts(),
            [0, 1, 1],
            "it is the caller's, who looks for itself; but another one may poll it"
        );
        bells.kick_others(vcpu(1));
        assert_eq!(counts(), [1, 1, 2]);
    }

    /// A port that is moved while it is raised: the upcall comes where it notifies now.
    #[test]
    fn what_is_pending_moves_with_its_port() {
        let (bells, kicks) = bells(2);
        bells.raise(9, Some(VcpuId::BOOT)).unwrap();
        bells.targets.set(9, vcpu(1));
        bells.moved(9, VcpuId::BOOT).unwrap();
        assert_eq!(bells.of(vcpu(1)).state(&bells.memory), Ok((true, false)));
        assert_eq!(kicks[1].count(), 1);
        // Raised by who had not seen yet that it moved.
        let before = (VcpuId::BOOT, bells.of(VcpuId::BOOT));
        bells.targets.set(70, vcpu(1));
        bells.memory.store_u64(bells.of(vcpu(1)).vcpu_info, 0).unwrap();
        bells.raise_on(before, 70, None).unwrap();
        assert_eq!(bells.of(vcpu(1)).state(&bells.memory), Ok((true, false)));
    }

    #[test]
    fn a_vcpu_without_a_place_for_its_info_is_not_notified() {
        let (bells, kicks) = bells(40);
        assert_eq!(bells.of(vcpu(31)).vcpu_info, Maddr(31 * 64));
        assert_eq!(bells.of(vcpu(32)).vcpu_info, NOWHERE);
        bells.targets.set(3, vcpu(32));
        bells.raise(3, None).unwrap();
        assert_eq!((kicks[32].count(), bells.is_pending(3)), (0, Ok(true)));
        bells.vcpu_info_moved(vcpu(32), Maddr(4096));
        bells.moved(3, VcpuId::BOOT).unwrap();
        assert_eq!(kicks[32].count(), 1);
    }
}
