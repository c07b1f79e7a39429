//! The page that this domain and the hypervisor share.
//!
//! Start-of-day maps the shared frame at the address of a page of the image. Every access is one atomic operation on
//! one field. No other module knows the page's layout.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
#[cfg(feature = "virtio")]
use paravane_abi::virtio::{VIRTIO_TABLE_OFFSET, VirtioTable};

use paravane_abi::shared_info::{EVTCHN_WORDS, SharedInfo, VcpuInfo, VcpuTimeInfo};

use crate::smp;

/// The page: its address lies in the image, its frame comes from the hypervisor.
#[repr(C, align(4096))]
pub(crate) struct SharedPage(UnsafeCell<[u8; 4096]>);

// SAFETY: only reached by the atomic references below.
unsafe impl Sync for SharedPage {}

pub(crate) static SHARED: SharedPage = SharedPage(UnsafeCell::new([0; 4096]));

/// Offset of the upcall mask, for assembly.
pub(crate) const UPCALL_MASK: usize = offset_of!(VcpuInfo, evtchn_upcall_mask);
/// Offset of the upcall-pending flag, for assembly.
pub(crate) const UPCALL_PENDING: usize = offset_of!(VcpuInfo, evtchn_upcall_pending);

macro_rules! field {
    ($name:ident, $atomic:ty, $offset:expr) => {
        pub(crate) fn $name(&self) -> &$atomic {
            const { assert!($offset + size_of::<$atomic>() <= 4096 && $offset % align_of::<$atomic>() == 0) };
            // SAFETY: in bounds and aligned by the assertion; there is no plain reference to these bytes.
            unsafe { &*self.0.get().cast::<u8>().add($offset).cast::<$atomic>() }
        }
    };
}

/// A field of the calling vCPU's part of the page, which for the later ones lies elsewhere.
macro_rules! own {
    ($name:ident, $atomic:ty, $offset:expr) => {
        pub(crate) fn $name(&self) -> &$atomic {
            const { assert!($offset + size_of::<$atomic>() <= size_of::<VcpuInfo>()) };
            const { assert!($offset % align_of::<$atomic>() == 0) };
            // SAFETY: in bounds and aligned by the assertions; there is no plain reference to these bytes, which are
            // there for as long as the kernel is.
            unsafe { &*smp::info().add($offset).cast::<$atomic>() }
        }
    };
}

impl SharedPage {
    /// The page's virtual address.
    pub(crate) fn address(&self) -> u64 {
        self.0.get().addr() as u64
    }

    /// Its first byte, which is the first of vCPU 0's part.
    pub(crate) fn start(&self) -> *mut u8 {
        self.0.get().cast()
    }

    own!(upcall_mask, AtomicU8, UPCALL_MASK);
    own!(upcall_pending, AtomicU8, UPCALL_PENDING);
    own!(pending_selector, AtomicU64, offset_of!(VcpuInfo, evtchn_pending_sel));
    own!(fault_address, AtomicU64, offset_of!(VcpuInfo, arch));
    own!(time_version, AtomicU32, offset_of!(VcpuInfo, time));
    field!(pending, [AtomicU64; EVTCHN_WORDS], offset_of!(SharedInfo, evtchn_pending));
    field!(mask, [AtomicU64; EVTCHN_WORDS], offset_of!(SharedInfo, evtchn_mask));
    field!(wall_version, AtomicU32, offset_of!(SharedInfo, wc_version));
    field!(wall_seconds, AtomicU32, offset_of!(SharedInfo, wc_sec));
    field!(wall_nanoseconds, AtomicU32, offset_of!(SharedInfo, wc_nsec));
    field!(wall_seconds_high, AtomicU32, offset_of!(SharedInfo, wc_sec_hi));

    /// The device table, for `virtio/table.rs` only: the host changes parts of it at any time.
    #[cfg(feature = "virtio")]
    pub(crate) fn virtio_table(&self) -> *mut VirtioTable {
        // SAFETY: in bounds by an assertion of the ABI crate.
        unsafe { self.0.get().cast::<u8>().add(VIRTIO_TABLE_OFFSET).cast::<VirtioTable>() }
    }

    /// A copy of the time fields, possibly torn: the caller compares versions.
    pub(crate) fn time_copy(&self) -> VcpuTimeInfo {
        // SAFETY: in bounds; every value of plain data is valid, a torn one included.
        unsafe { smp::info().add(offset_of!(VcpuInfo, time)).cast::<VcpuTimeInfo>().read_volatile() }
    }
}

const _: () = assert!(offset_of!(SharedInfo, vcpu_info) == 0, "vCPU 0 is first");
