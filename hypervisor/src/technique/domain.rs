//! What a technique makes: a domain with its virtual CPU, from parts that every technique is given.

use std::sync::Arc;

use crate::autopsy::Testimony;
use crate::build::BuiltDomain;
use crate::engine::Machine;
use crate::host::zeroed::NoMemory;
use crate::image::Image;
use crate::ledger::Ledger;
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::machine::end::DomainEnd;
use crate::machine::kick::Kick;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{BadMachineAddress, MachineMemory};
use crate::machine::time::Clock;
use crate::monitor::Runner;
use crate::pv::state::{BadDomain, CannotSave, State};
use crate::virtio::{Device, Slot};
use crate::x86::registers::Regs;

/// The virtual CPUs of a domain.
pub struct Runners<'a> {
    /// The one that the domain starts with, which stays on the thread that made it.
    pub boot: &'a mut dyn Runner,
    /// The others, in order from number 1; each has a thread of its own.
    pub others: Vec<&'a mut (dyn Runner + Send)>,
}

/// What saves a domain whose virtual CPUs have all handed their state over ([`Runner::save`]).
pub trait Saver: Send {
    /// The state, of this moment.
    ///
    /// # Errors
    /// When there is something that cannot be saved.
    fn state(&self) -> Result<State, CannotSave>;
    /// The memory that goes with it.
    fn memory(&self) -> &MachineMemory;
}

/// A domain of any technique: what is not a single virtual CPU's.
pub trait Domain {
    /// What saves it, if its technique can be saved.
    fn saver(&self) -> Option<Box<dyn Saver>> {
        None
    }
    /// Its virtual CPUs.
    fn runners(&mut self) -> Runners<'_>;
    /// The registers of the virtual CPU that ended it, or of the first one if none did.
    fn last(&self) -> Regs;
    /// The clock that its deadlines are in.
    fn clock(&self) -> Clock;
    /// How its life ended; [`DomainEnd::Interrupted`] if it has not.
    fn end(&self) -> DomainEnd;
    /// Shows its virtio devices, in order.
    fn with_slots(&self, look: &mut dyn FnMut(&[&Slot]));
    /// The account of all its exits, once it has ended. Moved out: a host without memory for a copy must not lose it.
    fn into_ledger(self: Box<Self>) -> Ledger;
    /// What its virtual CPUs were doing, for people: after a bad end.
    fn testimonies(&mut self) -> Vec<Testimony> {
        vec![Testimony { regs: self.last(), ..Testimony::default() }]
    }
    /// Eight bytes of the linear memory of the virtual CPU `vcpu`; `None` where nothing is mapped, or nobody can tell.
    fn peek(&mut self, _vcpu: u32, _va: u64) -> Option<u64> {
        None
    }
}

/// What a domain is made from.
pub struct Parts<'a> {
    /// Its memory, with the image in it.
    pub memory: MachineMemory,
    /// Where in it is what.
    pub layout: HypervisorLayout,
    /// The image that the builder loaded, for its symbols.
    pub image: &'a Image<'a>,
    /// What the builder put there.
    pub built: BuiltDomain,
    /// Takes what the guest prints.
    pub sink: Box<dyn ConsoleSink>,
    /// Bytes typed for the guest.
    pub input: ConsoleInput,
    /// What it is called.
    pub name: String,
    /// What runs it.
    pub machine: &'a dyn Machine,
    /// Its virtio devices, in the order in which the guest numbers them.
    pub devices: Vec<Box<dyn Device>>,
    /// How devices wake the virtual CPU that it starts with.
    pub kick: Arc<dyn Kick>,
    /// How the others are woken, from number 1.
    pub kicks: Vec<Arc<dyn Kick>>,
    /// Whether the kernel may mark a measured region by writing to port 0x80.
    pub marks: bool,
}

/// What a saved domain is made from.
pub struct SavedParts<'a> {
    /// Its memory, with what was saved in it.
    pub memory: MachineMemory,
    /// Where in it is what.
    pub layout: HypervisorLayout,
    /// Its state.
    pub state: State,
    /// Takes what the guest prints.
    pub sink: Box<dyn ConsoleSink>,
    /// Bytes typed for the guest.
    pub input: ConsoleInput,
    /// What runs it.
    pub machine: &'a dyn Machine,
    /// How each virtual CPU is woken, in order.
    pub kicks: Vec<Arc<dyn Kick>>,
    /// Whether the kernel may mark a measured region by writing to port 0x80.
    pub marks: bool,
}

/// A domain could not be made from its parts.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The builder's page tables were refused: a bug of this program.
    #[error("the initial page tables were refused with {0}; this is a bug in Paravane, please report it")]
    InitialTables(paravane_abi::errno::Errno),
    /// The builder made no pages for the rings of console and xenstore, or not as ordinary memory: a bug of this
    /// program.
    #[error(
        "the domain lacks the page of a ring (console or xenstore); this is a bug in Paravane, please report it"
    )]
    NoRing,
    /// The guest's memory cannot be shown to its devices: a bug of this program.
    #[error("{0}; this is a bug in Paravane, please report it")]
    Devices(#[from] crate::machine::device_memory::MemoryError),
    /// There is no memory for the hypervisor's own tables.
    #[error(transparent)]
    Tables(#[from] NoMemory),
    /// A bare machine could not be made.
    #[error("cannot make a bare machine: {0}")]
    Bare(#[from] crate::bare::StartError),
    /// The saved state is not one that a guest could have come to have.
    #[error("the snapshot cannot be restored: {0}")]
    Saved(#[from] BadDomain),
    /// The layout does not fit: a bug of this program.
    #[error("{0}; this is a bug in Paravane, please report it")]
    Layout(#[from] BadMachineAddress),
}
