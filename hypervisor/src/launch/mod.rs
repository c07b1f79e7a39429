//! From a configuration to a running guest, and the report when it has ended.
//!
//! [`start`] composes: it reads the image, takes the technique for it, has an engine chosen ([`select`]) and the domain
//! built, and runs the virtual CPU's loop. All of that happens on the thread that calls [`run`], which becomes the
//! virtual CPU's. Nothing here is signal-safe; what a signal handler may use of a running domain is its [`Control`].
//!
//! What may not be done here: knowing how a technique works, or what a command line looks like.

#![forbid(unsafe_code)]

pub mod available;
pub mod engines;
pub mod footprint;
mod going;
mod restore;
mod save;
pub mod select;
mod stage;
pub mod start;
mod vcpus;

pub use engines::allow_fast_paths;
pub use footprint::HostMemory;
pub use start::{RunError, run};

use crate::autopsy::Autopsy;
use crate::engine::EngineInfo;
use crate::gdb::Debugger;
use crate::ledger::Ledger;
use crate::machine::console::{ConsoleInput, ConsoleSink};
use crate::machine::end::DomainEnd;
use crate::monitor::Control;
use crate::monitor::control::OnPause;
use crate::snapshot::{Snapshot, Summary};
use crate::technique::Technique;
use crate::trace;
use crate::virtio::{Device, DeviceStops, Tell};
use crate::x86::registers::Regs;
use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

/// Which engine runs the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// Whatever is best on this machine.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// The process engine, or an error.
    Process,
    /// None: the technique executes the guest itself, on the vCPU's thread.
    Interpreter,
}

impl EngineChoice {
    /// What the command line calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Process => "process",
            Self::Interpreter => "interpreter",
        }
    }
}

/// How the hypercall page enters the host on KVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// Whatever is best on this machine.
    #[default]
    Auto,
    /// An `OUT` that the I/O bitmap of the TSS allows.
    Pio,
    /// `VMCALL` issued by the gate.
    Vmcall,
}

/// Shows the account of a running guest's exits, for how many nanoseconds it has been running, and what its virtual
/// CPUs are doing. The guest waits, and does not pay for it.
pub type OnPeek = Box<dyn FnMut(&Ledger, u64, &Autopsy) + Send>;
/// Something that is done once.
pub type Once = Box<dyn FnOnce() + Send>;
/// What is done once it is known what runs the guest, and by which technique.
pub type OnReady = Box<dyn FnOnce(&EngineInfo, &Technique) + Send>;

/// Everything that a domain is started with.
pub struct Config {
    /// The image: an ELF file.
    pub image: Cow<'static, [u8]>,
    /// What to call the image in messages.
    pub image_name: String,
    /// Guest memory in bytes; a multiple of 4096.
    pub mem_bytes: u64,
    /// Virtual CPUs of the guest, from 1 to what the technique can have.
    pub vcpus: u32,
    /// The kernel's command line.
    pub cmdline: String,
    /// An initial RAM disk, handed over as a module.
    pub initrd: Option<Vec<u8>>,
    /// Virtio devices, in the order in which the guest numbers them;
    /// [`VIRTIO_MAX_DEVICES`](paravane_abi::virtio::VIRTIO_MAX_DEVICES) at most.
    pub devices: Vec<Box<dyn Device>>,
    /// How the kernel is virtualized; `None`: by the first technique for its kind of image.
    pub technique: Option<&'static Technique>,
    /// Which engine runs the guest.
    pub engine: EngineChoice,
    /// How hypercalls enter the host on KVM.
    pub transport: TransportChoice,
    /// Takes what the guest prints.
    pub sink: Box<dyn ConsoleSink>,
    /// Bytes typed for the guest.
    pub input: ConsoleInput,
    /// Called once `control` reaches the virtual CPU, before the guest's first instruction: which waits for it.
    pub on_ready: Option<OnReady>,
    /// Called a little later, when nobody waits for it: the guest has printed something, waits itself, or has run
    /// for a few milliseconds. The place to start a thread.
    pub once_running: Option<Once>,
    /// Tells the running domain what to do.
    pub control: Control,
    /// Ends the domain with [`DomainEnd::Interrupted`] this long after the call of [`run`].
    pub deadline: Option<Duration>,
    /// Whether the report is to say how much memory the domain took.
    pub count_memory: bool,
    /// Whether the kernel may mark a measured region in the ledger by writing to port 0x80, whatever its privileges.
    /// For paravirtual guests: to a bare kernel that port is one of its machine's, always.
    pub marks: bool,
    /// Shows the running domain, for [`Command::Peek`](crate::monitor::Command::Peek).
    pub on_peek: Option<OnPeek>,
    /// Tells the user of devices that stop for what their drivers did.
    pub on_stop: Option<Tell>,
    /// Called when the guest begins to stand still, with true, and when it goes on, with false.
    pub on_pause: Option<OnPause>,
    /// The debugger that the guest waits for before its first instruction.
    pub gdb: Option<Debugger>,
    /// Where every exit is to be written to.
    pub trace: Option<trace::record::Destination>,
    /// Where the domain is to be saved to on [`Command::Save`](crate::monitor::Command::Save).
    pub snapshot_to: Option<SnapshotTo>,
    /// Goes on with a domain that was saved: memory, virtual CPUs and technique are the snapshot's, whatever is said
    /// here.
    pub restore: Option<Snapshot>,
}

/// Where a domain is saved to.
pub struct SnapshotTo {
    /// The file, which is replaced each time.
    pub path: PathBuf,
    /// Called when that was done, or was not, with how long the guest stood still for it.
    pub tell: Box<dyn FnMut(Result<Saved, String>) + Send>,
}

/// A domain that was saved.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    /// What was written.
    pub summary: Summary,
    /// How long the guest stood still.
    pub took: Duration,
}

/// Where a domain was when it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastState {
    /// Its registers.
    pub regs: Regs,
    /// The function, and the source line if the image has line tables, at `regs.rip`.
    pub place: Option<String>,
}

/// What a domain's run left behind.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub end: DomainEnd,
    /// Every exit, accounted for.
    pub ledger: Ledger,
    /// The steps of start-up and what each took, in nanoseconds, in order.
    pub startup: Vec<(&'static str, u64)>,
    /// The engine that ran it.
    pub engine: EngineInfo,
    /// Exits that the host's kernel handled alone, by its own names; empty where it does not count them.
    pub kernel_statistics: Vec<(String, u64)>,
    /// The host's memory at the domain's end, if it was to be counted and the host tells.
    pub memory: Option<HostMemory>,
    /// How often each device stopped for what its driver did, and why.
    pub devices: Vec<DeviceStops>,
    /// From the guest's first instruction to its end, in nanoseconds.
    pub run_ns: u64,
    /// What the vCPU was doing, if the domain did not end of its own will.
    pub last: Option<LastState>,
    /// From the start of [`run`] to the first byte that the guest printed; `None` if it printed nothing.
    pub first_output_ns: Option<u64>,
    /// Why it ended there, for people, if it did not end of its own will.
    pub autopsy: Option<Autopsy>,
    /// What became of the trace, if there was to be one.
    pub trace: Option<trace::record::Outcome>,
}
