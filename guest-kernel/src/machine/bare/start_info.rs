//! The loader's description of the machine: `hvm_start_info`, version 1 (Xen's public `arch-x86/hvm/start_info.h`).

use core::ops::Range;

use paravane_abi::hvm_start::{
    HvmMemmapTableEntry, HvmModlistEntry, HvmStartInfo, XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_START_MAGIC_VALUE,
};

use crate::machine::interface::Boot;
use crate::memory::BootMemory;
use crate::memory::frames::{Frame, PAGE_SIZE};
use crate::memory::layout::VIRT_BASE;

/// The longest command line, terminator included.
const CMDLINE_MAX: u32 = 1024;
/// The start of a PC's contiguous memory; below are the BIOS areas and the VGA window.
const FIRST_MIB: u64 = 1 << 20;

/// Reads the structure at a physical address and what it refers to.
///
/// # Safety
/// The structure is present, complete and valid, and lies in the initial mapping, as the boot protocol promises.
pub unsafe fn read(paddr: u64, first_free: Frame, root: Frame) -> Boot {
    // SAFETY: as the caller promises.
    let info = unsafe { &*(at(paddr) as *const HvmStartInfo) };
    assert!(info.magic == XEN_HVM_START_MAGIC_VALUE && info.version >= 1, "not started by the boot protocol");
    // SAFETY: the same promise covers what the structure refers to, for counts of 0 too.
    let (memmap, modules, cmdline) = unsafe {
        (
            slice::<HvmMemmapTableEntry>(info.memmap_paddr, info.memmap_entries),
            slice::<HvmModlistEntry>(info.modlist_paddr, info.nr_modules),
            slice::<u8>(info.cmdline_paddr, CMDLINE_MAX),
        )
    };
    Boot {
        cmdline: cmdline.split(|&b| b == 0).next().and_then(|c| str::from_utf8(c).ok()).unwrap_or(""),
        memory: BootMemory {
            frames: main_memory_end(memmap) / PAGE_SIZE,
            first_free,
            module: modules.first().map_or(Frame(0)..Frame(0), frames_of),
            root,
        },
    }
}

/// The end of the region of memory that the kernel is loaded in.
fn main_memory_end(memmap: &[HvmMemmapTableEntry]) -> u64 {
    let is_main = |e: &&HvmMemmapTableEntry| {
        e.kind == XEN_HVM_MEMMAP_TYPE_RAM && e.addr <= FIRST_MIB && e.addr.saturating_add(e.size) > FIRST_MIB
    };
    memmap.iter().find(is_main).map_or(0, |e| e.addr.saturating_add(e.size))
}

fn frames_of(module: &HvmModlistEntry) -> Range<Frame> {
    let end = module.paddr.saturating_add(module.size);
    Frame(module.paddr / PAGE_SIZE)..Frame(end.div_ceil(PAGE_SIZE))
}

const fn at(paddr: u64) -> u64 {
    VIRT_BASE + paddr
}

/// # Safety
/// `count` entries are at that address, unless the address or the count is 0.
unsafe fn slice<T>(paddr: u64, count: u32) -> &'static [T] {
    if paddr == 0 {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { core::slice::from_raw_parts(at(paddr) as *const T, count as usize) }
}
