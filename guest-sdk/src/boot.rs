//! Start of day: from the registers that a domain builder sets to a kernel that can print, map pages and wait.

use core::ops::Range;

use paravane_abi::addr::PAGE_SIZE;
use paravane_abi::console::XenconsInterface;
use paravane_abi::hypercall::{MEMORY_OP, MULTICALL, UPDATE_VA_MAPPING};
use paravane_abi::memory::{XENMEM_MACHPHYS_MAPPING, XenMachphysMapping};
use paravane_abi::mmu::UVMF_INVLPG;
use paravane_abi::multicall::MulticallEntry;
use paravane_abi::start_info::{SIF_MOD_START_PFN, StartInfo};
use paravane_abi::{Errno, pte};

use crate::cmdline::Cmdline;
use crate::console;
use crate::event::Port;
use crate::hypercall::call;
use crate::memory::{Memory, Mfn, Pfn, Tables};
use crate::paging::{ImageParts, Mmu, PagingError};
use crate::queue;
use crate::shared::SHARED;

/// The state in which a kernel is entered.
#[derive(Clone, Copy, Debug)]
pub struct FirstState {
    /// Virtual address of the start info: rsi.
    pub start_info: u64,
    /// Top of the domain builder's stack: rsp.
    pub stack_top: u64,
    /// The virtual address of pseudo-physical address 0 that the image is linked for.
    pub virt_base: u64,
    /// The image's first byte: of its code.
    pub image_start: u64,
    /// Where its code ends, and its constants begin.
    pub text_end: u64,
    /// Where its constants end, and its data begins.
    pub rodata_end: u64,
    /// The page below the kernel's stack.
    pub stack_guard: u64,
}

/// What a kernel can use when it starts.
#[derive(Debug)]
pub struct Boot {
    info: &'static StartInfo,
    memory: Memory,
    free: [Range<u64>; 2],
    image: ImageParts,
}

impl Boot {
    /// Maps the shared page, unmaps the page below the stack, locates the tables, attaches the console: one transition.
    ///
    /// # Safety
    /// Called once, as the kernel's first code, with the state that a Xen domain builder sets.
    pub unsafe fn new(state: FirstState) -> Self {
        // SAFETY: the builder put the page there; it is only read.
        let info = unsafe { &*(state.start_info as *const StartInfo) };
        // SAFETY: nothing was written to the page of `SHARED`, and nothing will be written to the guard page.
        let m2p = match unsafe { first_calls(info, state.stack_guard) } {
            Ok(m2p) => m2p,
            Err(errno) => panic!("the hypervisor refused the start-of-day calls: {errno}"),
        };
        let tables = Tables {
            virt_base: state.virt_base,
            window: state.virt_base as *mut u64,
            p2m: info.mfn_list as *const u64,
            frames: info.nr_pages,
            m2p: m2p.v_start as *const u64,
            machine_frames: m2p.max_mfn.saturating_add(1).min((m2p.v_end - m2p.v_start) / 8),
        };
        // SAFETY: the builder's list has a word for each page, the hypervisor's table for each frame.
        let memory = unsafe { Memory::new(tables) };
        // SAFETY: the console page lies in the initial mapping (public/xen.h, start-of-day layout).
        unsafe { attach_console(info, &memory) };
        let image = ImageParts {
            code: state.image_start..state.text_end,
            constants: state.text_end..state.rodata_end,
        };
        Self { info, memory, free: free_frames(info, &state, &memory), image }
    }

    /// The start-info page itself.
    pub fn start_info(&self) -> &'static StartInfo {
        self.info
    }

    /// The command line.
    pub fn cmdline(&self) -> Cmdline<'static> {
        Cmdline::new(&self.info.cmd_line)
    }

    /// The domain's memory.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Ranges of free pseudo-physical frames: below the image, and after everything that the builder loaded.
    ///
    /// Those in the initial mapping can be used at once; see [`crate::paging::Mmu::extend_direct_map`] for the others.
    pub fn free_frames(&self) -> [Range<u64>; 2] {
        self.free.clone()
    }

    /// The frame of the L4 table that the kernel was started with.
    pub fn root(&self) -> Pfn {
        match self.memory.pfn_at(self.info.pt_base) {
            Some(pfn) => pfn,
            None => panic!("the first page table at {:#x} is not in the initial mapping", self.info.pt_base),
        }
    }

    /// Access to page tables, through the boot vCPU's queue.
    ///
    /// # Panics
    /// When that queue was taken already.
    pub fn mmu(&self) -> Mmu<'static> {
        let Some(queue) = queue::take() else { panic!("the boot vCPU's queue is in use already") };
        // SAFETY: the builder's tables are in use, and map memory from `virt_base` on.
        unsafe { Mmu::new(queue, self.memory, self.root()) }
    }

    /// Takes write access to the image's code and constants away, and execution of everything else in the direct map:
    /// nothing is writable and executable afterwards. A domain builder maps all of it both ways.
    ///
    /// It looks at each page of the direct map, and changes what is to be changed in few transitions.
    ///
    /// ```no_run
    /// # fn kernel(boot: paravane_guest::Boot) -> Result<(), paravane_guest::paging::PagingError> {
    /// let (mut mmu, free) = boot.take_memory()?;
    /// boot.protect_image(&mut mmu)?;
    /// # let _ = free; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the hypervisor answers.
    pub fn protect_image(&self, mmu: &mut Mmu<'static>) -> Result<(), PagingError> {
        mmu.protect(&self.image)
    }

    /// The module (initial RAM disk) that came with the kernel.
    pub fn module(&self) -> Option<&'static [u8]> {
        let (start, len) = (self.info.mod_start, self.info.mod_len);
        // The field holds a frame number only for images whose notes allow it, which this image's do not.
        if start == 0 || len == 0 || self.info.flags & SIF_MOD_START_PFN != 0 {
            return None;
        }
        // SAFETY: the builder loaded it there, inside the initial mapping; `free_frames` leaves it alone.
        Some(unsafe { core::slice::from_raw_parts(start as *const u8, len as usize) })
    }
}

/// Maps the shared frame at [`SHARED`], unmaps the page at `guard`, and asks for the address of the
/// machine-to-physical table.
///
/// # Safety
/// The pages hold nothing that is still needed.
unsafe fn first_calls(info: &StartInfo, guard: u64) -> Result<XenMachphysMapping, Errno> {
    let flags = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY | pte::NX;
    let shared = info.shared_info & pte::ADDR_MASK | flags;
    let mut m2p = XenMachphysMapping::default();
    let question = (&raw mut m2p).addr() as u64;
    let call_to = |op, args| MulticallEntry { op, args, ..MulticallEntry::default() };
    let mut calls = [
        call_to(UPDATE_VA_MAPPING, [SHARED.address(), shared, UVMF_INVLPG, 0, 0, 0]),
        call_to(UPDATE_VA_MAPPING, [guard, 0, UVMF_INVLPG, 0, 0, 0]),
        call_to(MEMORY_OP, [u64::from(XENMEM_MACHPHYS_MAPPING), question, 0, 0, 0, 0]),
    ];
    // SAFETY: the first two calls change the two pages only; the last writes `m2p`.
    unsafe { call(MULTICALL, [calls.as_mut_ptr().addr() as u64, calls.len() as u64]) }?;
    for made in &calls {
        // SAFETY: a reference to an initialised entry, which the hypervisor has written to.
        Errno::from_rax(unsafe { (&raw const made.result).read_volatile() })?;
    }
    // SAFETY: as above.
    Ok(unsafe { (&raw const m2p).read_volatile() })
}

/// # Safety
/// The console page must be in the initial mapping.
unsafe fn attach_console(info: &StartInfo, memory: &Memory) {
    if let Some(pfn) = memory.pfn(Mfn(info.console_mfn)) {
        let ring = memory.va(pfn) as *mut XenconsInterface;
        // SAFETY: mapped writable in the initial mapping, by the caller's promise.
        unsafe { console::attach(ring, Port(info.console_evtchn)) };
    }
}

/// The frames below the image, and those after the last thing that the builder loaded.
fn free_frames(info: &StartInfo, state: &FirstState, memory: &Memory) -> [Range<u64>; 2] {
    let frame = |va: u64| va.wrapping_sub(state.virt_base).div_ceil(PAGE_SIZE);
    let ends = [
        state.stack_top,
        info.pt_base + info.nr_pt_frames * PAGE_SIZE,
        info.mfn_list + info.nr_pages * 8,
        info.mod_start + info.mod_len,
    ];
    let loaded = ends.into_iter().filter(|end| *end > state.virt_base).map(frame);
    let last = loaded.filter(|frame| *frame <= memory.frames()).max().unwrap_or(memory.frames());
    [0..frame(state.image_start).min(memory.frames()), last..memory.frames()]
}
