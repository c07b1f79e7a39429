//! The page to which `rsi` points at a PV guest's first instruction.
//!
//! The start-info page lies in the initial mapping. Virtual addresses in it are the guest's, machine addresses and
//! frame numbers are real. Source: public/xen.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Room for the command line in [`StartInfo::cmd_line`], terminating zero included.
pub const MAX_GUEST_CMDLINE: usize = 1024;
/// The magic of an x86-64 PV domain, zero-padded to the field's 32 bytes.
pub const START_INFO_MAGIC: &[u8] = b"xen-3.0-x86_64";

/// In `flags`: the domain is privileged.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// In `flags`: the domain is the initial control domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// In `flags`: `mod_start` is a package of modules: a list of [`MultibootModList`] at its beginning.
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
/// In `flags`: `mod_start` is a pseudo-physical page number, the module is not in the initial mapping.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// In `flags`: the tools understand a p2m list that is linear in the guest's virtual space.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;
/// In `flags`: power-management options of the control domain.
pub const SIF_PM_MASK: u32 = 0xff << 8;

/// The start-info page. Everything is OUT: written by the domain builder, read by the guest.
///
/// The fields up to the console are written again when a domain resumes; the later ones hold at the first boot only.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartInfo {
    /// [`START_INFO_MAGIC`], zero-padded.
    pub magic: [u8; 32],
    /// Pages that the domain owns.
    pub nr_pages: u64,
    /// Machine address of the [`crate::shared_info::SharedInfo`] page; the guest maps it itself.
    pub shared_info: u64,
    /// `SIF_*`.
    pub flags: u32,
    /// Padding.
    pub _pad0: u32,
    /// Machine frame of the xenstore ring; 0 when there is none.
    pub store_mfn: u64,
    /// Local port of the xenstore's event channel; 0 when there is none.
    pub store_evtchn: u32,
    /// Padding.
    pub _pad1: u32,
    /// Unprivileged domain: machine frame of the console ring. Initial domain: see [`StartInfo::dom0_console`].
    pub console_mfn: u64,
    /// Unprivileged domain: local port of the console's event channel.
    pub console_evtchn: u32,
    /// Padding.
    pub _pad2: u32,
    /// Virtual address of the first L4 table.
    pub pt_base: u64,
    /// Frames that the first page tables take.
    pub nr_pt_frames: u64,
    /// Virtual address of the list of machine frames, one 8-byte entry per pseudo-physical page.
    pub mfn_list: u64,
    /// Virtual address of the module, or its page number with [`SIF_MOD_START_PFN`]; 0 when there is none.
    pub mod_start: u64,
    /// Bytes in the module.
    pub mod_len: u64,
    /// The command line, zero-terminated.
    pub cmd_line: [u8; MAX_GUEST_CMDLINE],
    /// First pseudo-physical page of the list of frames when it lies outside the initial mapping.
    pub first_p2m_pfn: u64,
    /// Pages that this list takes, its page tables included.
    pub nr_p2m_frames: u64,
}

layout!(StartInfo: 1168 {
    magic @ 0, nr_pages @ 32, shared_info @ 40, flags @ 48, store_mfn @ 56, store_evtchn @ 64, console_mfn @ 72,
    console_evtchn @ 80, pt_base @ 88, nr_pt_frames @ 96, mfn_list @ 104, mod_start @ 112, mod_len @ 120,
    cmd_line @ 128, first_p2m_pfn @ 1152, nr_p2m_frames @ 1160,
});
default_is_zeroed!(StartInfo);

impl StartInfo {
    /// Where the initial domain finds its VGA console: offset in this page and size, in bytes.
    #[must_use]
    pub const fn dom0_console(&self) -> (u32, u32) {
        ((self.console_mfn & 0xffff_ffff) as u32, (self.console_mfn >> 32) as u32)
    }
}

/// One module of a package ([`SIF_MULTIBOOT_MOD`]); the list ends with an entry whose `mod_start` is 0.
///
/// Addresses are relative to the beginning of the package.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MultibootModList {
    /// Address of the module's first byte; 0 ends the list.
    pub mod_start: u32,
    /// Address of the module's last byte.
    pub mod_end: u32,
    /// Address of the module's zero-terminated command line.
    pub cmdline: u32,
    /// Zero.
    pub pad: u32,
}

layout!(MultibootModList: 16 { mod_start @ 0, mod_end @ 4, cmdline @ 8, pad @ 12 });
