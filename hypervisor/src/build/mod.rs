//! The domain builder: an image and a configuration become memory contents and a first vCPU state.
//!
//! What both kinds of image have in common is here; what differs is in [`pv`] and [`bare`]. Machine memory is fresh and
//! therefore zero: nothing is cleared, and everything is written once and in bulk, because all of this happens before
//! the guest's first instruction.
//!
//! Runs on the thread that becomes the virtual CPU's. Not signal-safe. May not be done here: knowing an engine.

#![forbid(unsafe_code)]

pub mod bare;
pub mod guest_frames;
pub mod mapping;
pub mod pv;
pub mod tables;
#[cfg(test)]
mod tests;
use std::ops::Range;

use paravane_abi::start_info::MAX_GUEST_CMDLINE;

use crate::image::features::Features;
use crate::image::{Image, ImageKind};
use crate::machine::layout::HypervisorLayout;
use guest_frames::GuestFrames;
use mapping::{AddressLimits, pages};

use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn, PAGE_SHIFT, PAGE_SIZE};
use crate::text::units::bytes;

/// Bytes that a command line may have, for either kind of image.
pub const CMDLINE_MAX: usize = MAX_GUEST_CMDLINE - 1;

/// What a domain is to be given besides its image and its memory.
#[derive(Clone, Copy, Debug)]
pub struct DomainConfig<'a> {
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// An initial RAM disk, handed over as a module.
    pub initrd: Option<&'a [u8]>,
    /// The event channel of the console.
    pub console_port: u32,
    /// The event channel of the xenstore.
    pub store_port: u32,
    /// The features that the hypervisor offers, a mask over submap 0.
    pub features: u32,
    /// Where the engine can map a kernel.
    pub limits: AddressLimits,
}

/// A domain could not be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Image, start-of-day structures and page tables together exceed the guest's memory.
    #[error(
        "the guest needs at least {} of memory and was given {}; raise --mem to {}M",
        bytes(needed.div_ceil(1 << 20) << 20), bytes(*given), needed.div_ceil(1 << 20)
    )]
    TooLittleMemory {
        /// Bytes that the guest was given.
        given: u64,
        /// Bytes that it needs.
        needed: u64,
    },
    /// The command line does not fit.
    #[error("the command line has {len} bytes, {} fit; shorten it", CMDLINE_MAX)]
    CmdlineTooLong {
        /// Its length.
        len: usize,
    },
    /// The command line contains a zero byte, which would end it early.
    #[error("the command line contains a zero byte, which ends it for the guest; remove it")]
    CmdlineZero,
    /// The kernel is linked at addresses that it cannot have.
    #[error(
        "{bytes:#x} bytes at virtual address {va:#x} cannot be mapped on this engine; link the kernel \
         elsewhere (VIRT_BASE 0x40000000 works everywhere), or use an engine that can map them"
    )]
    VirtualRange {
        /// Where the range begins.
        va: u64,
        /// Its length.
        bytes: u64,
    },
    /// The image requires a feature that is not offered.
    #[error("the image requires the feature \"{0}\", which is not offered; build it without")]
    Feature(&'static str),
    /// A write went outside the guest's frames: the plan and the memory do not match.
    #[error(transparent)]
    Memory(#[from] BadMachineAddress),
}

/// One piece of what was put into a domain's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What it is.
    pub name: &'static str,
    /// The PFNs that it takes.
    pub pfns: Range<u64>,
}

/// A domain that is ready to run its first instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltDomain {
    /// The first instruction.
    pub entry_rip: u64,
    /// The top of the boot stack.
    pub rsp: u64,
    /// Paravirtual: virtual address of the start info. Bare: physical address of the `hvm_start_info`.
    pub rsi: u64,
    /// The frame of the first L4 table.
    pub root: Mfn,
    /// CR3 as the guest knows it: machine address of the L4 table for a paravirtual one, else physical.
    pub cr3: u64,
    /// Virtual address of the start info.
    pub start_info_va: u64,
    /// The console ring's frame; a bare domain has none.
    pub console_mfn: Option<Mfn>,
    /// The xenstore ring's frame; a bare domain has none.
    pub store_mfn: Option<Mfn>,
    /// The hypercall page, if the image has room for one.
    pub hypercall_page: Option<Mfn>,
    /// The shared info page.
    pub shared_info: Mfn,
    /// The frames of the tables of the initial mapping.
    pub pt_frames: Range<Mfn>,
    /// Virtual address of pseudo-physical address 0.
    pub virt_base: u64,
    /// Bytes that the initial mapping covers.
    pub mapped_bytes: u64,
    /// What went where, in order of PFNs: for `--stats`.
    pub pieces: Vec<Piece>,
}

/// Bytes that building a domain writes to its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The kernel and the initial RAM disk.
    pub fixed: u64,
    /// What grows with the memory that the guest is given: the list of frames and page tables.
    pub growing: u64,
}

impl Written {
    /// What comes from files, and `pages` pages of tables and lists.
    pub(super) fn new(image: &Image<'_>, initrd_len: u64, pages: u64) -> Self {
        let kernel: u64 = image.segments().iter().map(|s| image.segment_bytes(s).len() as u64).sum();
        Self { fixed: kernel.saturating_add(initrd_len), growing: pages.saturating_mul(PAGE_SIZE) }
    }
}

/// Checks whether [`build`] could put this into a guest of `nr_pages` pages, before there is any memory or engine.
///
/// `initrd_len` stands for the initial RAM disk of `config`, which need not be there yet. Tells what would be written.
pub fn check(
    config: &DomainConfig<'_>,
    image: &Image<'_>,
    initrd_len: u64,
    nr_pages: u64,
) -> Result<Written, BuildError> {
    check_cmdline(config.cmdline)?;
    match image.kind() {
        ImageKind::Pv(notes) => {
            check_features(notes.features, config.features)?;
            pv::check(image, notes, initrd_len, nr_pages, &config.limits)
        }
        ImageKind::Bare(_) => bare::check(image, initrd_len, nr_pages, &config.limits),
    }
}

/// Fills a domain's memory from its image, by the image's kind.
///
/// `memory` is fresh, and laid out as `layout` says. `hypercall_stub` gives the 32 bytes of an entry of the
/// hypercall page.
pub fn build(
    config: &DomainConfig<'_>,
    image: &Image<'_>,
    memory: &MachineMemory,
    layout: &HypervisorLayout,
    hypercall_stub: impl FnMut(u32) -> [u8; 32],
) -> Result<BuiltDomain, BuildError> {
    check_cmdline(config.cmdline)?;
    match image.kind() {
        ImageKind::Pv(notes) => {
            check_features(notes.features, config.features)?;
            pv::build(config, image, notes, memory, layout, hypercall_stub)
        }
        ImageKind::Bare(_) => bare::build(config, image, memory, layout),
    }
}

fn check_cmdline(cmdline: &str) -> Result<(), BuildError> {
    if cmdline.len() > CMDLINE_MAX {
        return Err(BuildError::CmdlineTooLong { len: cmdline.len() });
    }
    if cmdline.contains('\0') { Err(BuildError::CmdlineZero) } else { Ok(()) }
}

fn check_features(wanted: Features, offered: u32) -> Result<(), BuildError> {
    wanted.missing_from(offered).map_or(Ok(()), |name| Err(BuildError::Feature(name)))
}

/// Hands out consecutive PFNs and remembers what for.
#[derive(Debug, Default)]
pub(super) struct Allocator {
    next: u64,
    pieces: Vec<Piece>,
}

impl Allocator {
    /// Starts behind the image's segments.
    pub fn after(image: &Image<'_>) -> Self {
        let extent = image.extent();
        let kernel = extent.start >> PAGE_SHIFT..pages(extent.end);
        Self { next: kernel.end, pieces: vec![Piece { name: "kernel", pfns: kernel }] }
    }
    /// The next `count` PFNs; returns the first.
    pub fn take(&mut self, name: &'static str, count: u64) -> u64 {
        let first = self.next;
        self.next += count;
        if count != 0 {
            self.pieces.push(Piece { name, pfns: first..self.next });
        }
        first
    }
    /// The first PFN that is not taken.
    pub fn next(&self) -> u64 {
        self.next
    }
    /// Leaves everything below `pfn` unused.
    pub fn skip_to(&mut self, pfn: u64) {
        self.next = self.next.max(pfn);
    }
    /// What was taken.
    pub fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }
}

/// Copies the image's segments to where they belong: the one copy that is made of them.
///
/// The boot stack and the first variables are among the zeroes that follow a segment's bytes. A fault of KVM's on a
/// page that has no memory yet costs several times as much, so the first [`POPULATE`] bytes of them are populated.
fn load_segments(guest: GuestFrames<'_>, image: &Image<'_>) -> Result<(), BadMachineAddress> {
    for segment in image.segments() {
        let bytes = image.segment_bytes(segment);
        guest.fill(segment.pa, bytes)?;
        let zeroes = (segment.pa + bytes.len() as u64).next_multiple_of(PAGE_SIZE)..segment.range().end;
        let len = zeroes.end.saturating_sub(zeroes.start).next_multiple_of(PAGE_SIZE);
        guest.populate(zeroes.start, len.min(POPULATE));
    }
    Ok(())
}

/// See [`load_segments`].
const POPULATE: u64 = 64 * PAGE_SIZE;

/// Finds the memory that a plan needs, when the frames at hand are too few for it.
///
/// What a guest needs grows a little with its memory (8 bytes of p2m list per page), hence the repetition.
pub(super) fn too_little(given: u64, mut needed: u64, plan: impl Fn(u64) -> u64) -> BuildError {
    loop {
        match plan(needed) {
            enough if enough <= needed => break,
            more => needed = more,
        }
    }
    BuildError::TooLittleMemory { given: given * PAGE_SIZE, needed: needed * PAGE_SIZE }
}

/// The frames behind PFNs that are known to exist.
pub(super) fn frames(memory: &MachineMemory, pfns: Range<u64>) -> Range<Mfn> {
    let base = memory.guest_base().0;
    Mfn(base + pfns.start)..Mfn(base + pfns.end)
}

/// Pseudo-physical address of a PFN.
pub(super) const fn pa(pfn: u64) -> u64 {
    Maddr(pfn << PAGE_SHIFT).0
}

/// Text in a field that is zero behind it; what does not fit is left out.
pub(super) fn text_field<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
    field
}
