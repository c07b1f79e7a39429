//! Builds a domain for a kernel that believes that it owns a PC: the bare boot protocol, version 1.
//!
//! Kernel, initial RAM disk, start info, page tables, boot stack and padding follow one another in physical
//! memory as in a paravirtual domain, mapped the same way; but tables and addresses are the guest's own
//! (physical means pseudo-physical), and the start info is Xen's `hvm_start_info`, version 1 (public header
//! `arch-x86/hvm/start_info.h`). Table entries are a supervisor's: the shadow code decides what CPL 3 sees.

use std::mem::offset_of;

use paravane_abi::hvm_start::{
    HVM_START_INFO_VERSION, HvmMemmapTableEntry, HvmModlistEntry, HvmStartInfo, XEN_HVM_MEMMAP_TYPE_RAM,
    XEN_HVM_START_MAGIC_VALUE,
};
use paravane_abi::pte;
use paravane_abi::start_info::MAX_GUEST_CMDLINE;
use zerocopy::{Immutable, IntoBytes};

use super::guest_frames::GuestFrames;
use super::mapping::{AddressLimits, InitialMapping, pages};
use super::tables::{Run, Style, Tables};
use super::{
    Allocator, BuildError, BuiltDomain, DomainConfig, Written, frames, load_segments, pa, text_field,
    too_little,
};
use crate::image::Image;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{MachineMemory, PAGE_SIZE};

/// Pages of the boot stack.
const STACK_PAGES: u64 = 4;

/// The page that RSI points to.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct StartPage {
    info: HvmStartInfo,
    module: HvmModlistEntry,
    memory_map: [HvmMemmapTableEntry; 1],
    cmdline: [u8; MAX_GUEST_CMDLINE],
}

/// Where everything goes, before anything is written. Frames are PFNs.
struct Plan {
    initrd: u64,
    start_info: u64,
    pt: std::ops::Range<u64>,
    stack_top: u64,
    pages: u64,
    pfns: Allocator,
}

/// Checks that everything fits; see [`super::check`].
pub(super) fn check(
    image: &Image<'_>,
    initrd_len: u64,
    nr_pages: u64,
    limits: &AddressLimits,
) -> Result<Written, BuildError> {
    let plan = checked_plan(image, initrd_len, nr_pages, limits)?;
    Ok(Written::new(image, initrd_len, plan.pt.end - plan.pt.start))
}

fn checked_plan(
    image: &Image<'_>,
    initrd_len: u64,
    nr_pages: u64,
    limits: &AddressLimits,
) -> Result<Plan, BuildError> {
    let plan = plan(image, initrd_len);
    if plan.pages > nr_pages {
        return Err(too_little(nr_pages, plan.pages, |_| plan.pages));
    }
    let (virt_base, extent) = (image.virt_base(), image.extent());
    limits.check_start(virt_base + extent.start, extent.end - extent.start)?;
    limits.check(virt_base, plan.pages)?;
    Ok(plan)
}

fn plan(image: &Image<'_>, initrd_len: u64) -> Plan {
    let mut pfns = Allocator::after(image);
    let initrd = pfns.take("initrd", pages(initrd_len));
    let start_info = pfns.take("start info", 1);
    let mapping = InitialMapping::new(image.virt_base(), pfns.next() + STACK_PAGES);
    let pt = pfns.take("page tables", mapping.tables);
    let stack = pfns.take("boot stack", STACK_PAGES);
    let pt = pt..pt + mapping.tables;
    Plan { initrd, start_info, pt, stack_top: stack + STACK_PAGES, pages: mapping.pages, pfns }
}

/// Fills the memory of a bare domain.
pub(super) fn build(
    config: &DomainConfig<'_>,
    image: &Image<'_>,
    memory: &MachineMemory,
    layout: &HypervisorLayout,
) -> Result<BuiltDomain, BuildError> {
    let initrd_len = config.initrd.map_or(0, |bytes| bytes.len() as u64);
    let plan = checked_plan(image, initrd_len, memory.guest_frames(), &config.limits)?;
    let virt_base = image.virt_base();

    let guest = GuestFrames(memory);
    load_segments(guest, image)?;
    if let Some(initrd) = config.initrd {
        guest.fill(pa(plan.initrd), initrd)?;
    }
    let tables = Tables::new(Run { va: virt_base, pages: plan.pages, pfn: 0 }, plan.pt.start);
    let flags = pte::PRESENT | pte::ACCESSED | pte::DIRTY;
    tables.write(guest, &Style { frame_base: 0, flags, read_only: 0..0 })?;
    guest.write(pa(plan.start_info), start_page(config, memory, &plan).as_bytes())?;

    Ok(BuiltDomain {
        entry_rip: image.entry(),
        rsp: virt_base.wrapping_add(pa(plan.stack_top)),
        rsi: pa(plan.start_info),
        root: frames(memory, plan.pt.clone()).start,
        cr3: pa(plan.pt.start),
        start_info_va: virt_base + pa(plan.start_info),
        console_mfn: None,
        store_mfn: None,
        hypercall_page: None,
        shared_info: layout.shared_info,
        pt_frames: frames(memory, plan.pt),
        virt_base,
        mapped_bytes: plan.pages * PAGE_SIZE,
        pieces: plan.pfns.into_pieces(),
    })
}

fn start_page(config: &DomainConfig<'_>, memory: &MachineMemory, plan: &Plan) -> StartPage {
    let at = |offset: usize| pa(plan.start_info) + offset as u64;
    let initrd_len = config.initrd.map_or(0, <[u8]>::len);
    let mut page = StartPage {
        info: HvmStartInfo {
            magic: XEN_HVM_START_MAGIC_VALUE,
            version: HVM_START_INFO_VERSION,
            cmdline_paddr: at(offset_of!(StartPage, cmdline)),
            memmap_paddr: at(offset_of!(StartPage, memory_map)),
            memmap_entries: 1,
            ..HvmStartInfo::default()
        },
        module: HvmModlistEntry::default(),
        memory_map: [HvmMemmapTableEntry {
            addr: 0,
            size: memory.guest_frames() * PAGE_SIZE,
            kind: XEN_HVM_MEMMAP_TYPE_RAM,
            reserved: 0,
        }],
        cmdline: text_field(config.cmdline.as_bytes()),
    };
    if initrd_len != 0 {
        page.info.nr_modules = 1;
        page.info.modlist_paddr = at(offset_of!(StartPage, module));
        page.module.paddr = pa(plan.initrd);
        page.module.size = initrd_len as u64;
    }
    page
}
