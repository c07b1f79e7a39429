//! Event channels: what a paravirtual kernel has instead of interrupts.
//!
//! The two-level ABI of Xen (public/xen.h, "event channel endpoints"): one pending and one mask bit for each
//! port in the shared info page, a selector word and an upcall flag in the vCPU's info. [`EventChannels`] keeps
//! what each port is bound to; [`upcall`] does the bit work on memory that the guest changes while we look.
//!
//! Nothing here knows how an upcall reaches the guest (see `pv::entry`) or who asked (see `hypercall::event`).

pub mod doorbell;
pub mod upcall;

use std::sync::Arc;

use paravane_abi::errno::Errno;
use paravane_abi::event::{EVTCHN_2L_NR_CHANNELS, EvtchnPort};
use serde::{Deserialize, Serialize};

use super::vcpu::VcpuId;
use doorbell::Targets;

/// Virtual interrupts a guest may bind: VIRQ 0..24 (public/xen.h, NR_VIRQS).
pub const NR_VIRQS: u32 = 24;

/// What a port is bound to. Domains here are alone, so every other end is the domain itself or the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binding {
    /// Not allocated.
    #[default]
    Free,
    /// Allocated for a domain that has not bound it yet.
    Unbound {
        /// Who may bind it.
        remote: u16,
    },
    /// Connected to another port of the same domain.
    Loop {
        /// The other end.
        peer: EvtchnPort,
    },
    /// Connected to a service of the host.
    Host(HostService),
    /// A virtual interrupt.
    Virq(u32),
    /// An inter-processor event.
    Ipi,
}

/// Services of the host at the far end of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostService {
    /// The console ring's other end.
    Console,
    /// The xenstore ring's other end.
    Store,
    /// A queue of a virtio device.
    Queue {
        /// The device.
        device: u8,
        /// Which of its queues.
        queue: u8,
    },
    /// A virtio device's configuration and status.
    Config {
        /// The device.
        device: u8,
    },
}

/// What sending through a port asks of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Set this port pending.
    Raise(EvtchnPort),
    /// Tell this service of the host.
    Notify(HostService),
    /// Nothing: nobody is at the other end yet.
    Dropped,
}

/// A port's binding and the vCPU that it notifies, to be saved.
pub type PortState = (Binding, u32);

/// The ports of one domain. Port 0 is never valid.
#[derive(Debug)]
pub struct EventChannels {
    /// What each is bound to.
    ports: Vec<Binding>,
    /// The vCPU that each notifies.
    targets: Arc<Targets>,
}

impl EventChannels {
    /// No port but the reserved port 0. `targets` will say which vCPU each notifies.
    pub fn new(targets: Arc<Targets>) -> Self {
        Self { ports: vec![Binding::Free], targets }
    }

    /// All ports, in order.
    pub fn state(&self) -> Vec<PortState> {
        self.all().map(|(port, binding)| (binding, self.vcpu(port).number())).collect()
    }

    /// Has these ports and no others, in a domain of `vcpus`. `None` if no guest could have come to have them; ports of
    /// virtio devices are among those.
    pub fn restore(&mut self, state: &[PortState], vcpus: usize) -> Option<()> {
        if state.len() > EVTCHN_2L_NR_CHANNELS as usize
            || !state.first().is_some_and(|(b, _)| *b == Binding::Free)
        {
            return None;
        }
        self.ports = state.iter().map(|(binding, _)| *binding).collect();
        for (port, (binding, vcpu)) in (0..).zip(state) {
            let vcpu = VcpuId::new(*vcpu).filter(|vcpu| vcpu.index() < vcpus)?;
            let possible = match *binding {
                Binding::Loop { peer } => self.binding(peer) == Binding::Loop { peer: port },
                Binding::Host(service) => matches!(service, HostService::Console | HostService::Store),
                Binding::Virq(virq) => Self::check_virq(virq, 0).is_ok(),
                Binding::Free | Binding::Unbound { .. } | Binding::Ipi => true,
            };
            possible.then(|| self.targets.set(port, vcpu))?;
        }
        Some(())
    }

    fn port_mut(&mut self, port: EvtchnPort) -> Option<&mut Binding> {
        self.ports.get_mut(usize::try_from(port).ok()?).filter(|binding| **binding != Binding::Free)
    }
    /// The ports that are bound, or can be, and to what.
    fn all(&self) -> impl Iterator<Item = (EvtchnPort, Binding)> {
        (0..).zip(self.ports.iter().copied())
    }

    /// What `port` is bound to; `Free` for any number that is not a port.
    pub fn binding(&self, port: EvtchnPort) -> Binding {
        usize::try_from(port).ok().and_then(|port| self.ports.get(port)).copied().unwrap_or_default()
    }
    /// The vCPU that `port` notifies.
    pub fn vcpu(&self, port: EvtchnPort) -> VcpuId {
        self.targets.of(port)
    }
    /// Whether this number lies within what the two-level ABI can name.
    pub fn is_number(port: EvtchnPort) -> bool {
        port < EVTCHN_2L_NR_CHANNELS
    }

    /// Takes the lowest free port for `binding`. ENOSPC when all are in use.
    pub fn allocate(&mut self, binding: Binding) -> Result<EvtchnPort, Errno> {
        self.allocate_for(binding, VcpuId::BOOT)
    }

    /// As [`EventChannels::allocate`], for a port that notifies `vcpu`.
    pub fn allocate_for(&mut self, binding: Binding, vcpu: VcpuId) -> Result<EvtchnPort, Errno> {
        let free = self.ports.iter().skip(1).position(|binding| *binding == Binding::Free).map(|n| n + 1);
        let index = free.unwrap_or(self.ports.len());
        let port = EvtchnPort::try_from(index).map_err(|_| Errno::ENOSPC)?;
        if !Self::is_number(port) {
            return Err(Errno::ENOSPC);
        }
        self.targets.set(port, vcpu);
        match self.ports.get_mut(index) {
            Some(slot) => *slot = binding,
            None => self.ports.push(binding),
        }
        Ok(port)
    }

    /// Whether a vCPU other than the first can have a virtual interrupt of that number: EINVAL if there is none, or if
    /// it is the domain's, which begins with its first vCPU.
    pub fn check_virq(virq: u32, vcpu: u32) -> Result<(), Errno> {
        if virq >= NR_VIRQS || vcpu != 0 && !is_per_vcpu(virq) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Binds a virtual interrupt. EEXIST when it has a port already.
    pub fn bind_virq(&mut self, virq: u32, vcpu: VcpuId) -> Result<EvtchnPort, Errno> {
        Self::check_virq(virq, vcpu.number())?;
        if self.virq_port(virq, vcpu).is_some() {
            return Err(Errno::EEXIST);
        }
        self.allocate_for(Binding::Virq(virq), vcpu)
    }

    /// The port of a virtual interrupt of `vcpu`'s, or of the domain's if it is one of those; if it is bound.
    pub fn virq_port(&self, virq: u32, vcpu: VcpuId) -> Option<EvtchnPort> {
        let of_vcpu = |port| !is_per_vcpu(virq) || self.vcpu(port) == vcpu;
        let mut bound = self.all().filter(|(_, binding)| *binding == Binding::Virq(virq));
        bound.find(|(port, _)| of_vcpu(*port)).map(|(port, _)| port)
    }

    /// The port at the near end of a host service.
    pub fn service_port(&self, service: HostService) -> Option<EvtchnPort> {
        self.all().find(|(_, binding)| *binding == Binding::Host(service)).map(|(port, _)| port)
    }

    /// Connects a new port to an unbound one of the same domain `own`. Both ends then know each other.
    pub fn bind_loop(&mut self, remote: EvtchnPort, own: u16) -> Result<EvtchnPort, Errno> {
        match self.binding(remote) {
            Binding::Unbound { remote: who } if who == own => {}
            _ => return Err(Errno::EINVAL),
        }
        let local = self.allocate(Binding::Loop { peer: remote })?;
        if let Some(binding) = self.port_mut(remote) {
            *binding = Binding::Loop { peer: local };
        }
        Ok(local)
    }

    /// Whether the guest may close `port` itself: a device's are closed by its reset.
    pub fn is_closable(&self, port: EvtchnPort) -> bool {
        use HostService::{Config, Queue};
        !matches!(self.binding(port), Binding::Host(Queue { .. } | Config { .. }))
    }

    /// Frees a port; a connected peer becomes unbound again, for the same domain. EINVAL when it is not one.
    pub fn close(&mut self, port: EvtchnPort, own: u16) -> Result<(), Errno> {
        let binding = std::mem::take(self.port_mut(port).ok_or(Errno::EINVAL)?);
        self.targets.set(port, VcpuId::BOOT);
        if let Binding::Loop { peer } = binding
            && peer != port
            && let Some(other) = self.port_mut(peer)
        {
            *other = Binding::Unbound { remote: own };
        }
        Ok(())
    }

    /// What a send through `port` does. EINVAL for ports that cannot send.
    pub fn send(&self, port: EvtchnPort) -> Result<Sent, Errno> {
        match self.binding(port) {
            Binding::Loop { peer } => Ok(Sent::Raise(peer)),
            Binding::Ipi => Ok(Sent::Raise(port)),
            Binding::Host(service) => Ok(Sent::Notify(service)),
            Binding::Unbound { .. } => Ok(Sent::Dropped),
            Binding::Free | Binding::Virq(_) => Err(Errno::EINVAL),
        }
    }

    /// Sets which vCPU a port notifies. EINVAL for ports whose vCPU is fixed.
    pub fn bind_vcpu(&mut self, port: EvtchnPort, vcpu: VcpuId) -> Result<(), Errno> {
        match self.binding(port) {
            // A per-vCPU virtual interrupt stays where it was bound (VIRQ_TIMER is one).
            Binding::Virq(virq) if is_per_vcpu(virq) => Err(Errno::EINVAL),
            Binding::Ipi | Binding::Free => Err(Errno::EINVAL),
            _ => {
                self.targets.set(port, vcpu);
                Ok(())
            }
        }
    }

    /// Frees every port that the guest made; the host's services stay. `forget` is told of each, whose pending
    /// bit must go: a port that is bound anew begins with nothing pending, or nothing could raise it.
    pub fn reset(&mut self, mut forget: impl FnMut(EvtchnPort)) {
        for (number, binding) in (0..).zip(&mut self.ports) {
            if !matches!(binding, Binding::Free | Binding::Host(_)) {
                *binding = Binding::Free;
                self.targets.set(number, VcpuId::BOOT);
                forget(number);
            }
        }
    }
}

/// Virtual interrupts that each vCPU has for itself (public/xen.h marks them "V."): TIMER, DEBUG, XENOPROF, XENPMU.
fn is_per_vcpu(virq: u32) -> bool {
    matches!(virq, 0 | 1 | 7 | 13)
}

#[cfg(test)]
mod tests {
    use crate::pv::event::*;
    const OWN: u16 = 1;

    fn channels(vcpus: usize) -> EventChannels {
        EventChannels::new(Arc::new(Targets::new(vcpus)))
    }

    fn vcpu(number: u32) -> VcpuId {
        VcpuId::new(number).unwrap()
    }

    #[test]
    fn loops_know_both_ends_and_closing_unbinds_the_other() {
        let mut e = channels(1);
        let a = e.allocate(Binding::Unbound { remote: OWN }).unwrap();
        assert_eq!(e.send(a), Ok(Sent::Dropped));
        let b = e.bind_loop(a, OWN).unwrap();
        assert_eq!(e.send(a), Ok(Sent::Raise(b)));
        assert_eq!(e.send(b), Ok(Sent::Raise(a)));
        assert_eq!(e.bind_loop(a, OWN), Err(Errno::EINVAL), "bound already");
        e.close(b, OWN).unwrap();
        assert_eq!(e.binding(a), Binding::Unbound { remote: OWN });
        assert_eq!(e.close(b, OWN), Err(Errno::EINVAL));
        assert_eq!(e.bind_loop(a, OWN), Ok(b), "the freed port is reused");
    }

    #[test]
    fn wrong_numbers_are_errors() {
        let mut e = channels(1);
        assert_eq!(e.send(0), Err(Errno::EINVAL));
        assert_eq!(e.send(u32::MAX), Err(Errno::EINVAL));
        assert_eq!(e.bind_virq(NR_VIRQS, VcpuId::BOOT), Err(Errno::EINVAL));
        let timer = e.bind_virq(0, VcpuId::BOOT).unwrap();
        assert_eq!(e.bind_virq(0, VcpuId::BOOT), Err(Errno::EEXIST));
        assert_eq!(e.send(timer), Err(Errno::EINVAL), "a guest cannot raise a VIRQ");
        assert_eq!(e.bind_vcpu(timer, VcpuId::BOOT), Err(Errno::EINVAL));
        for port in [0, 99, u32::MAX] {
            assert_eq!(e.bind_vcpu(port, VcpuId::BOOT), Err(Errno::EINVAL));
        }
        assert_eq!(e.bind_loop(99, OWN), Err(Errno::EINVAL));
    }

    /// public/xen.h: TIMER, DEBUG, XENOPROF and XENPMU are of each vCPU, all others of the domain.
    #[test]
    fn some_virtual_interrupts_are_a_vcpus_own() {
        let mut e = channels(3);
        for virq in 0..NR_VIRQS {
            let own = [0, 1, 7, 13].contains(&virq);
            let first = e.bind_virq(virq, VcpuId::BOOT).unwrap();
            assert_eq!(e.bind_virq(virq, VcpuId::BOOT), Err(Errno::EEXIST));
            let second = e.bind_virq(virq, vcpu(2));
            assert_eq!(second.is_ok(), own, "{virq}");
            assert_eq!(e.virq_port(virq, VcpuId::BOOT), Some(first));
            match second {
                Ok(second) => {
                    assert_eq!((e.vcpu(second), e.virq_port(virq, vcpu(2))), (vcpu(2), Some(second)));
                    assert_eq!(e.virq_port(virq, vcpu(1)), None);
                    assert_eq!(e.bind_vcpu(second, vcpu(1)), Err(Errno::EINVAL));
                }
                Err(errno) => {
                    assert_eq!((errno, e.virq_port(virq, vcpu(2))), (Errno::EINVAL, Some(first)));
                    assert_eq!(e.bind_vcpu(first, vcpu(1)), Ok(()));
                    assert_eq!(
                        e.virq_port(virq, vcpu(2)),
                        Some(first),
                        "still the domain's, wherever it notifies"
                    );
                }
            }
        }
    }

    #[test]
    fn ports_of_a_vcpu_stay_there_and_others_move() {
        let mut e = channels(2);
        let ipi = e.allocate_for(Binding::Ipi, vcpu(1)).unwrap();
        assert_eq!((e.vcpu(ipi), e.send(ipi)), (vcpu(1), Ok(Sent::Raise(ipi))));
        assert_eq!(e.bind_vcpu(ipi, VcpuId::BOOT), Err(Errno::EINVAL));
        let unbound = e.allocate(Binding::Unbound { remote: OWN }).unwrap();
        e.bind_vcpu(unbound, vcpu(1)).unwrap();
        let other = e.bind_loop(unbound, OWN).unwrap();
        assert_eq!((e.vcpu(unbound), e.vcpu(other)), (vcpu(1), VcpuId::BOOT));
        e.close(unbound, OWN).unwrap();
        assert_eq!(e.vcpu(unbound), VcpuId::BOOT, "whoever gets it next begins anew");
        assert_eq!(e.allocate(Binding::Ipi), Ok(unbound));
    }

    #[test]
    fn saved_ports_are_those_that_a_guest_can_have() {
        let mut e = channels(2);
        let unbound = e.allocate(Binding::Unbound { remote: OWN }).unwrap();
        let other = e.bind_loop(unbound, OWN).unwrap();
        let timer = e.bind_virq(0, vcpu(1)).unwrap();
        let state = e.state();
        let mut again = channels(2);
        again.restore(&state, 2).unwrap();
        assert_eq!((again.state(), again.send(unbound)), (state.clone(), Ok(Sent::Raise(other))));
        assert_eq!(again.virq_port(0, vcpu(1)), Some(timer));
        assert_eq!(channels(1).restore(&state, 1), None, "it notifies a vCPU that there is not");
        let queue = Binding::Host(HostService::Queue { device: 0, queue: 0 });
        for bad in [Binding::Loop { peer: 1 }, Binding::Loop { peer: 99 }, Binding::Virq(NR_VIRQS), queue] {
            assert_eq!(
                channels(1).restore(&[(Binding::Free, 0), (Binding::Ipi, 0), (bad, 0)], 1),
                None,
                "{bad:?}"
            );
        }
        assert_eq!(channels(1).restore(&[], 1), None);
        assert_eq!(channels(1).restore(&[(Binding::Ipi, 0)], 1), None, "port 0");
        assert_eq!(channels(1).restore(&vec![(Binding::Free, 0); 4097], 1), None);
    }

    #[test]
    fn ports_run_out_without_growing_further() {
        let mut e = channels(1);
        for _ in 1..EVTCHN_2L_NR_CHANNELS {
            e.allocate(Binding::Ipi).unwrap();
        }
        assert_eq!(e.allocate(Binding::Ipi), Err(Errno::ENOSPC));
        let mut forgotten = Vec::new();
        e.reset(|port| forgotten.push(port));
        assert_eq!(forgotten, (1..EVTCHN_2L_NR_CHANNELS).collect::<Vec<_>>());
        assert_eq!(e.allocate(Binding::Ipi), Ok(1));
    }
}
