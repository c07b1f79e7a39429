//! What a workload needs besides a machine: a network with somebody on it.
//!
//! The network's other side is in this process, so that a measurement of the way there measures nothing else.

use crate::device::Device;
use crate::device::net::peer::Peer;
use crate::device::net::{Mac, Net};

/// A device that a workload needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// None.
    Nothing,
    /// A network interface with the peer on the other side.
    Network,
}

/// The interface's address: one that is administered locally.
const ADDRESS: Mac = Mac([0x02, 0, 0, 0, 0x88, 0xb6]);

impl Needs {
    /// The devices for one boot.
    pub fn provide(self) -> Vec<Box<dyn Device>> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Network => vec![Box::new(Net::new(Box::new(Peer::default()), ADDRESS))],
        }
    }
}
