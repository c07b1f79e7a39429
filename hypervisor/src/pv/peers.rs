//! What the vCPUs of a domain may see of each other, and leave for each other to find.
//!
//! A vCPU belongs to its thread ([`PvVcpu`]). What another one asks of it is left here, under the domain's lock, and
//! its thread takes it before it next runs or waits; who leaves something kicks it.

use serde::{Deserialize, Serialize};

use super::runstate::Runstate;
use super::vcpu::{PvVcpu, VcpuId};
use crate::mmu::direct::VcpuTables;
use crate::mmu::space::VcpuSpace;

/// One vCPU, as the others see it.
#[derive(Default)]
pub struct Peer {
    /// It has a context: from the start, or from VCPUOP_initialise.
    pub initialised: bool,
    /// It is to run.
    pub up: bool,
    /// The context that it begins with, until it does.
    pub context: Option<Box<PvVcpu>>,
    /// Tables that a VCPUOP_initialise which was interrupted has taken already.
    pub begun: Option<Box<(VcpuTables, VcpuSpace)>>,
    /// Its account of time, at its last change.
    pub runstate: Runstate,
    /// What others left for it.
    pub left: Left,
    /// Whether they left anything.
    pub has_left: bool,
}

/// What is left for a vCPU.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Left {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// Its periodic timer: the period, or that it stops.
    pub periodic: Option<Option<u64>>,
    /// Where the copy of its account of time goes.
    pub runstate_area: Option<u64>,
    /// Where the second copy of its clock goes.
    pub time_area: Option<u64>,
}

/// The vCPUs of a domain.
pub struct Peers(Vec<Peer>);

impl Peers {
    /// `vcpus` of them, of which the first runs.
    pub fn new(vcpus: usize) -> Self {
        let mut peers: Vec<_> = (0..vcpus).map(|_| Peer::default()).collect();
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.initialised = number == 0;
            peer.up = number == 0;
            peer.runstate = if number == 0 { Runstate::default() } else { Runstate::offline() };
        }
        Self(peers)
    }
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
    /// The vCPU of that number, if the domain has it.
    pub fn id(&self, number: u32) -> Option<VcpuId> {
        VcpuId::new(number).filter(|id| id.index() < self.0.len())
    }
    /// One of them.
    pub fn get(&self, id: VcpuId) -> Option<&Peer> {
        self.0.get(id.index())
    }
    /// One of them, to change it.
    pub fn get_mut(&mut self, id: VcpuId) -> Option<&mut Peer> {
        self.0.get_mut(id.index())
    }
    /// Leaves something for `id`, which is to be kicked then.
    pub fn leave(&mut self, id: VcpuId, what: impl FnOnce(&mut Left)) {
        if let Some(peer) = self.get_mut(id) {
            what(&mut peer.left);
            peer.has_left = true;
        }
    }
    /// Takes what was left for `id`, if anything was.
    pub fn take_left(&mut self, id: VcpuId) -> Option<Left> {
        let peer = self.get_mut(id).filter(|peer| peer.has_left)?;
        peer.has_left = false;
        Some(std::mem::take(&mut peer.left))
    }
    /// Whether any but `id` is up.
    pub fn others_are_up(&self, id: VcpuId) -> bool {
        self.0.iter().enumerate().any(|(number, peer)| number != id.index() && peer.up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_found_once() {
        let mut peers = Peers::new(2);
        let second = peers.id(1).unwrap();
        assert!(peers.id(2).is_none() && peers.id(u32::MAX).is_none());
        assert!(peers.take_left(second).is_none());
        peers.leave(second, |left| left.nmi = true);
        peers.leave(second, |left| left.periodic = Some(None));
        let left = peers.take_left(second).unwrap();
        assert!(left.nmi && left.periodic == Some(None) && left.time_area.is_none());
        assert!(peers.take_left(second).is_none());
        assert!(!peers.others_are_up(VcpuId::BOOT) && peers.others_are_up(second));
    }
}
