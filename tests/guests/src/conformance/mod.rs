//! Every family of hypercalls, with correct and incorrect arguments, against the ABI (`docs/abi.md`).
//!
//! `test=GROUP` runs one group. Each check prints a line; the last line has the counts. The checks hold on Xen too,
//! where the image boots as any PV domain; the few that do not apply to a privileged domain are left out there.

mod callbacks;
mod calls;
mod emulation;
mod events;
mod features;
mod grants;
mod memory;
mod paging;
mod physdev;
mod processor;
mod raw;
mod refused;
mod reservation;
mod returns;
mod sched;
mod segments;
mod tables;
mod tables_ext;
mod timing;
mod traps;
mod user;
mod vcpu;
mod xenstore;

use paravane_guest::abi::start_info::SIF_PRIVILEGED;
use paravane_guest::hypercall::version;
use paravane_guest::paging::{BootFrames, Mmu};
use paravane_guest::{Boot, event, power, trap};

use crate::probe;
use crate::suite::Suite;

/// What the groups share.
pub struct Bench {
    suite: Suite,
    boot: Boot,
    mmu: Mmu<'static>,
    frames: BootFrames,
    /// Whether this domain may use the machine's own memory and devices, as Xen's first domain may.
    privileged: bool,
    /// Whether the hypervisor is Paravane, for checks of its promises beyond the ABI.
    paravane: bool,
}

type Group = (&'static str, fn(&mut Bench));

const GROUPS: &[Group] = &[
    ("features", features::run),
    ("version", calls::version),
    ("console", calls::console),
    ("multicall", calls::multicall),
    ("memory", memory::run),
    ("traps", traps::run),
    ("iret", returns::run),
    ("events", events::run),
    ("timing", timing::run),
    ("tables", tables::run),
    ("pins", tables::pins),
    ("paging", paging::run),
    ("grants", grants::run),
    ("xenstore", xenstore::run),
    ("user-mode", user::run),
    ("emulation", emulation::run),
    ("processor", processor::run),
    ("segments", segments::run),
    ("callbacks", callbacks::run),
    ("physdev", physdev::run),
    ("refused", refused::run),
    ("sched", sched::run),
    ("vcpu", vcpu::run),
    ("reservation", reservation::run),
    // This group is last, because its changes cannot be undone.
    ("vcpu-info", vcpu::info),
];

/// The entry point of `conformance`.
pub fn main(boot: Boot) -> ! {
    let installed = trap::install().and_then(|()| event::install());
    assert!(installed.is_ok(), "handlers: {installed:?}");
    probe::install();
    let mmu = boot.mmu();
    let [_, free] = boot.free_frames();
    let mapped = mmu.direct_map_end(paravane_guest::memory::Pfn(free.start)).0;
    // SAFETY: the frames are free, mapped, and used only by this source.
    let frames = unsafe { BootFrames::new(free.start..mapped) };
    let only = boot.cmdline().get("test");
    let privileged = boot.start_info().flags & SIF_PRIVILEGED != 0;
    let paravane = version::extraversion().is_ok_and(|text| text.starts_with(b".pv"));
    let mut bench = Bench { suite: Suite::new(), boot, mmu, frames, privileged, paravane };
    for (name, run) in GROUPS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        bench.suite.group(name);
        run(&mut bench);
    }
    bench.suite.finish("conformance");
    power::power_off()
}
