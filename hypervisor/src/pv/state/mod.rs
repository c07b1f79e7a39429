//! A domain's state as plain data, out of a domain that stands still and into one that is made anew.
//!
//! What is here may come from a stranger's file, and is believed no more than what a guest says: it gives a domain
//! nothing that its guest could not have asked for by hypercalls. So the uses of frames are not among it. They are
//! counted anew, by validating the page tables that the guest had pinned and those that its vCPUs use.
//!
//! * [`domain`] and [`vcpu`] are the two directions, for what vCPUs share and for each of them.
//! * [`bounded`] bounds what is decoded.
//! * [`stubs`] makes a hypercall page that one engine wrote work on another.
//!
//! The state of the xenstore, of grants and of event channels is made by them. What may not be done here: knowing a
//! file, or an engine.

mod bounded;
pub mod domain;
pub mod stubs;
#[cfg(test)]
mod tests;
pub mod vcpu;

use paravane_abi::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::host::zeroed::NoMemory;
use crate::machine::memory::BadMachineAddress;
use crate::mmu::direct::Stop;
use crate::pv::vcpu::MAX_VCPUS;

pub use bounded::at_most;
pub use domain::{DomainState, Origin, RestoreParts, restore};
pub use vcpu::VcpuState;

/// A domain and its vCPUs.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// What they share.
    pub domain: DomainState,
    /// They, in order.
    #[serde(deserialize_with = "at_most::<{ MAX_VCPUS as usize }, _, _>")]
    pub vcpus: Vec<VcpuState>,
}

/// A domain cannot be saved now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotSave {
    /// The state of devices is not saved.
    #[error(
        "a guest with virtio devices cannot be saved: run it without --disk, --net, --vsock, --rng and --console virtio"
    )]
    Devices,
    /// Another vCPU's state is missing, or the domain has ended: there is nothing to go on with.
    #[error("the guest has ended, or is about to")]
    Ended,
    /// The engine does not hand out vector registers.
    #[error("the engine does not hand out a vCPU's vector registers")]
    Vectors,
}

/// A saved domain cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDomain {
    /// Page tables or descriptor tables are not what a guest may have.
    #[error("the saved page tables are refused with {0}")]
    Tables(Errno),
    /// A frame is not one that can be used so.
    #[error("a frame cannot be {0}, as the snapshot says")]
    Frame(&'static str),
    /// Something else is not what a guest may have.
    #[error("the saved {0} make no sense")]
    Nonsense(&'static str),
    /// The hypercall page came from too many engines.
    #[error(
        "the hypercall page has no room for the calls of this engine; restore on the engine that it was saved on"
    )]
    HypercallPage,
    /// It uses addresses that the engine cannot map.
    #[error(
        "the guest uses addresses that this engine cannot map ({at:#x}, for one); restore with --engine kvm"
    )]
    Addresses {
        /// One of them.
        at: u64,
    },
    /// The host has no memory for the hypervisor's own tables.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// A frame of the hypervisor's is missing: a bug of this program.
    #[error("{0}; this is a bug in Paravane, please report it")]
    Bug(#[from] BadMachineAddress),
}

/// Makes an operation again until it is done: before a domain runs nobody else has work in between.
fn until_done<T>(mut operation: impl FnMut() -> Result<T, Stop>) -> Result<T, Errno> {
    loop {
        match operation() {
            Ok(done) => return Ok(done),
            Err(Stop::Refused(errno)) => return Err(errno),
            Err(Stop::Restart) => {}
        }
    }
}
