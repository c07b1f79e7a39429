//! Builds a paravirtual domain as Xen's domain builder builds a domU.
//!
//! The order of things in memory is that of the Xen public header `xen.h` ("Start-of-day memory layout"):
//! kernel, initial RAM disk, list of frames, start info, xenstore page, console page, page tables, boot
//! stack, padding; an initial RAM disk that need not be mapped and a list of frames with an address of its
//! own come after the padding. Slots 256 to 271 of the L4 table stay empty: the MMU fills them when the
//! table is pinned.

use paravane_abi::addr::{INVALID_M2P_ENTRY, PAGE_SIZE};
use paravane_abi::pte;
use paravane_abi::shared_info::{VcpuInfo, XEN_LEGACY_MAX_VCPUS};
use paravane_abi::start_info::{SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS, START_INFO_MAGIC, StartInfo};
use zerocopy::IntoBytes;

use super::guest_frames::{GuestFrames, write_words};
use super::mapping::{AddressLimits, InitialMapping, pages};
use super::tables::{Run, Style, Tables};
use super::{
    Allocator, BuildError, BuiltDomain, DomainConfig, Piece, Written, frames, load_segments, pa, text_field,
    too_little,
};
use crate::image::Image;
use crate::image::notes::XenNotes;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn};

/// Bytes per entry of the hypercall page, and entries in it.
const STUB_SIZE: usize = 32;
const STUBS: u32 = 128;

/// Where everything goes, before anything is written. Frames are PFNs.
#[derive(Debug)]
struct Plan {
    initrd: u64,
    start_info: u64,
    store: u64,
    console: u64,
    pt: std::ops::Range<u64>,
    stack: u64,
    mapped_pages: u64,
    tables: Tables,
    p2m: P2m,
    /// PFNs that must exist.
    total: u64,
    pieces: Vec<Piece>,
}

/// The list of frames.
#[derive(Clone, Copy, Debug, Default)]
struct P2m {
    /// Its first PFN.
    pfn: u64,
    /// Where the guest finds it.
    va: u64,
    /// PFNs of it and the tables that are only its own, when it is not part of the initial mapping.
    outside: Option<(u64, u64)>,
}

/// What a plan depends on.
struct Needs<'a, 'f> {
    image: &'a Image<'f>,
    notes: &'a XenNotes,
    initrd_len: u64,
}

impl Needs<'_, '_> {
    /// Plans for a guest of `nr_pages` pages, whether or not that is enough.
    fn plan(&self, nr_pages: u64) -> Plan {
        let virt_base = self.image.virt_base();
        let initrd_pages = pages(self.initrd_len);
        // Not even a guest without memory has an empty list: it is refused by what it lacks.
        let p2m_pages = pages(nr_pages.saturating_mul(8)).max(1);
        let init_p2m = self.init_p2m();

        let mut pfns = Allocator::after(self.image);
        let mut initrd = 0;
        if !self.notes.mod_start_pfn {
            initrd = pfns.take("initrd", initrd_pages);
        }
        let mut p2m = P2m::default();
        if init_p2m.is_none() {
            p2m.pfn = pfns.take("p2m", p2m_pages);
            p2m.va = virt_base.wrapping_add(pa(p2m.pfn));
        }
        let start_info = pfns.take("start info", 1);
        let store = pfns.take("xenstore", 1);
        let console = pfns.take("console", 1);
        let mapping = InitialMapping::new(virt_base, pfns.next() + 1);
        let pt = pfns.take("page tables", mapping.tables);
        let stack = pfns.take("boot stack", 1);
        pfns.skip_to(mapping.pages);

        if self.notes.mod_start_pfn {
            initrd = pfns.take("initrd", initrd_pages);
        }
        let mut tables = Tables::new(Run { va: virt_base, pages: mapping.pages, pfn: 0 }, pt);
        if let Some(va) = init_p2m {
            let pfn = pfns.take("p2m", p2m_pages);
            let more = tables.add_below(Run { va, pages: p2m_pages, pfn }, pfns.next());
            pfns.take("p2m tables", more);
            p2m = P2m { pfn, va, outside: Some((pfn, p2m_pages + more)) };
        }
        Plan {
            initrd,
            start_info,
            store,
            console,
            pt: pt..pt + mapping.tables,
            stack,
            mapped_pages: mapping.pages,
            tables,
            p2m,
            total: pfns.next(),
            pieces: pfns.into_pieces(),
        }
    }

    /// Plans for a guest of `nr_pages` pages, and makes sure that all of it fits.
    fn checked_plan(&self, nr_pages: u64, limits: &AddressLimits) -> Result<Plan, BuildError> {
        let plan = self.plan(nr_pages);
        if plan.total > nr_pages {
            return Err(too_little(nr_pages, plan.total, |pages| self.plan(pages).total));
        }
        let virt_base = self.image.virt_base();
        let extent = self.image.extent();
        limits.check_start(virt_base + extent.start, extent.end - extent.start)?;
        limits.check(virt_base, plan.mapped_pages)?;
        if plan.p2m.outside.is_some() {
            let (va, p2m_pages) = (plan.p2m.va, pages(nr_pages * 8));
            limits.check(va, p2m_pages)?;
            if virt_base - va < p2m_pages * PAGE_SIZE {
                return Err(BuildError::VirtualRange { va, bytes: p2m_pages * PAGE_SIZE });
            }
        }
        Ok(plan)
    }

    /// INIT_P2M, where it can be honoured: page-aligned and below the kernel, as Xen has it.
    fn init_p2m(&self) -> Option<u64> {
        self.notes.init_p2m.filter(|va| va.is_multiple_of(PAGE_SIZE) && *va < self.notes.virt_base)
    }
}

/// Checks that everything fits; see [`super::check`].
pub(super) fn check(
    image: &Image<'_>,
    notes: &XenNotes,
    initrd_len: u64,
    nr_pages: u64,
    limits: &AddressLimits,
) -> Result<Written, BuildError> {
    let plan = Needs { image, notes, initrd_len }.checked_plan(nr_pages, limits)?;
    let p2m = plan.p2m.outside.map_or(pages(nr_pages.saturating_mul(8)), |(_, pages)| pages);
    Ok(Written::new(image, initrd_len, p2m + (plan.pt.end - plan.pt.start)))
}

/// Fills the memory of a paravirtual domain.
pub(super) fn build(
    config: &DomainConfig<'_>,
    image: &Image<'_>,
    notes: &XenNotes,
    memory: &MachineMemory,
    layout: &HypervisorLayout,
    hypercall_stub: impl FnMut(u32) -> [u8; 32],
) -> Result<BuiltDomain, BuildError> {
    let needs = Needs { image, notes, initrd_len: config.initrd.map_or(0, |bytes| bytes.len() as u64) };
    let plan = needs.checked_plan(memory.guest_frames(), &config.limits)?;
    let virt_base = image.virt_base();

    let guest = GuestFrames(memory);
    load_segments(guest, image)?;
    if let Some(initrd) = config.initrd {
        guest.fill(pa(plan.initrd), initrd)?;
    }
    if let Some(page) = notes.hypercall_page {
        write_hypercall_page(guest, page - virt_base, hypercall_stub)?;
    }
    write_p2m(guest, plan.p2m.pfn)?;
    write_m2p(memory, layout)?;
    let frame_base = memory.guest_base().0;
    let flags = pte::PRESENT | pte::USER | pte::ACCESSED | pte::DIRTY;
    plan.tables.write(guest, &Style { frame_base, flags, read_only: plan.pt.clone() })?;
    let info = start_info(config, image, notes, memory, layout, &plan);
    guest.write(pa(plan.start_info), info.as_bytes())?;
    mask_upcalls(memory, layout)?;

    let root = Mfn(frame_base + plan.tables.root());
    let start_info_va = virt_base + pa(plan.start_info);
    Ok(BuiltDomain {
        entry_rip: image.entry(),
        rsp: virt_base.wrapping_add(pa(plan.stack + 1)),
        rsi: start_info_va,
        root,
        cr3: root.maddr().0,
        start_info_va,
        console_mfn: Some(Mfn(frame_base + plan.console)),
        store_mfn: Some(Mfn(frame_base + plan.store)),
        hypercall_page: notes.hypercall_page.map(|page| Mfn(frame_base + (page - virt_base) / PAGE_SIZE)),
        shared_info: layout.shared_info,
        pt_frames: frames(memory, plan.pt),
        virt_base,
        mapped_bytes: plan.mapped_pages * PAGE_SIZE,
        pieces: plan.pieces,
    })
}

fn start_info(
    config: &DomainConfig<'_>,
    image: &Image<'_>,
    notes: &XenNotes,
    memory: &MachineMemory,
    layout: &HypervisorLayout,
    plan: &Plan,
) -> StartInfo {
    let virt = |pfn| image.virt_base() + pa(pfn);
    let frame_base = memory.guest_base().0;
    let (first_p2m_pfn, nr_p2m_frames) = plan.p2m.outside.unwrap_or_default();
    let mut info = StartInfo {
        magic: text_field(START_INFO_MAGIC),
        nr_pages: memory.guest_frames(),
        shared_info: layout.shared_info.maddr().0,
        flags: SIF_VIRT_P2M_4TOOLS,
        store_mfn: frame_base + plan.store,
        store_evtchn: config.store_port,
        console_mfn: frame_base + plan.console,
        console_evtchn: config.console_port,
        pt_base: virt(plan.pt.start),
        nr_pt_frames: plan.pt.end - plan.pt.start,
        mfn_list: plan.p2m.va,
        cmd_line: text_field(config.cmdline.as_bytes()),
        first_p2m_pfn,
        nr_p2m_frames,
        ..StartInfo::default()
    };
    if let Some(initrd) = config.initrd.filter(|bytes| !bytes.is_empty()) {
        info.mod_len = initrd.len() as u64;
        info.mod_start = if notes.mod_start_pfn { plan.initrd } else { virt(plan.initrd) };
        info.flags |= if notes.mod_start_pfn { SIF_MOD_START_PFN } else { 0 };
    }
    info
}

fn write_hypercall_page(
    guest: GuestFrames<'_>,
    pa: u64,
    mut stub: impl FnMut(u32) -> [u8; 32],
) -> Result<(), BadMachineAddress> {
    let mut page = [0u8; STUB_SIZE * STUBS as usize];
    for (entry, number) in page.as_chunks_mut::<STUB_SIZE>().0.iter_mut().zip(0..) {
        *entry = stub(number);
    }
    guest.write(pa, &page)
}

/// The list of frames: PFN to MFN, for every page that the guest has.
fn write_p2m(guest: GuestFrames<'_>, pfn: u64) -> Result<(), BadMachineAddress> {
    let frame_base = guest.0.guest_base().0;
    let count = guest.0.guest_frames();
    write_words(count, |i| frame_base + i, |at, bytes| guest.fill(pa(pfn) + at, bytes))
}

/// The machine-to-physical table: for every frame of the machine, and to the end of its last page.
fn write_m2p(memory: &MachineMemory, layout: &HypervisorLayout) -> Result<(), BadMachineAddress> {
    let count = (layout.m2p.end - layout.m2p.start) * (PAGE_SIZE / 8);
    let at = Mfn(layout.m2p.start).maddr().0;
    let pfn = |mfn| memory.mfn_to_pfn(Mfn(mfn)).unwrap_or(INVALID_M2P_ENTRY);
    write_words(count, pfn, |offset, bytes| memory.fill(Maddr(at + offset), bytes))
}

/// Every vCPU begins with upcalls masked.
fn mask_upcalls(memory: &MachineMemory, layout: &HypervisorLayout) -> Result<(), BadMachineAddress> {
    let masked = [VcpuInfo { evtchn_upcall_mask: 1, ..VcpuInfo::default() }; XEN_LEGACY_MAX_VCPUS];
    memory.write(layout.shared_info.maddr(), masked.as_bytes())
}
