//! The memory that devices may use: a run of pages, handed out page by page.
//!
//! All memory that a device reads or writes is here: drivers allocate queues with [`Hal::dma_alloc`]; buffers are
//! allocated here ([`Pool::allocate`]), or copied here while the device has them. A buffer of the pool is used in
//! place.
//!
//! There are no locks: there is one processor, and interrupt handlers do not allocate.

use core::mem::MaybeUninit;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use crate::memory::Memory;

/// The most pages that a pool can have: 64 MiB.
const MAX_PAGES: usize = 1 << 14;

/// The pool of [`PoolHal`]. Empty until it is given pages.
pub static POOL: Pool = Pool::new();

/// A run of pages that devices may access.
#[derive(Debug)]
pub struct Pool {
    window: AtomicPtr<u8>,
    address: AtomicU64,
    pages: AtomicUsize,
    /// A bit for each page that is in use.
    used: [AtomicU64; MAX_PAGES / 64],
    /// Whether freed pages are kept out of use from now on.
    keeps: AtomicBool,
}

/// Why a pool does not take pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolError {
    /// It has pages already.
    GivenAlready,
    /// No pages, too many, not aligned, or at address 0, which drivers take for a failure.
    BadRange,
}

impl Pool {
    /// A pool without pages.
    pub const fn new() -> Self {
        Self {
            window: AtomicPtr::new(null_mut()),
            address: AtomicU64::new(0),
            pages: AtomicUsize::new(0),
            used: [const { AtomicU64::new(0) }; MAX_PAGES / 64],
            keeps: AtomicBool::new(false),
        }
    }

    /// Gives the pool `pages` pages at `window`, which devices access at `address`: under a hypervisor the
    /// pseudo-physical address, on bare hardware the physical one.
    ///
    /// # Errors
    /// When the range cannot be used, or the pool has one already.
    ///
    /// # Safety
    /// The pages are mapped writable, and nothing else uses them from now on.
    pub unsafe fn give(&self, window: *mut u8, address: u64, pages: usize) -> Result<(), PoolError> {
        if self.pages() != 0 {
            return Err(PoolError::GivenAlready);
        }
        let page = PAGE_SIZE as u64;
        let aligned = window.addr().is_multiple_of(PAGE_SIZE) && address.is_multiple_of(page);
        let fits = (1..=MAX_PAGES).contains(&pages) && address.checked_add(pages as u64 * page).is_some();
        if window.is_null() || address == 0 || !aligned || !fits {
            return Err(PoolError::BadRange);
        }
        self.window.store(window, Ordering::Relaxed);
        self.address.store(address, Ordering::Relaxed);
        self.pages.store(pages, Ordering::Release);
        Ok(())
    }

    /// Gives the pool whole pages of the domain's memory, e.g. from [`FreeMemory`](crate::paging::FreeMemory).
    ///
    /// # Errors
    /// As for [`give`](Self::give); also when the bytes are not in the direct map.
    pub fn give_bytes(&self, memory: Memory, bytes: &'static mut [MaybeUninit<u8>]) -> Result<(), PoolError> {
        let start = bytes.as_mut_ptr().cast::<u8>();
        let pages = bytes.len() / PAGE_SIZE;
        let first = memory.pfn_at(start.addr() as u64).ok_or(PoolError::BadRange)?;
        let is_inside = first.0.checked_add(pages as u64).is_some_and(|end| end <= memory.frames());
        if !is_inside {
            return Err(PoolError::BadRange);
        }
        // SAFETY: the bytes are mapped writable, and nobody else's for ever.
        unsafe { self.give(start, first.0 * PAGE_SIZE as u64, pages) }
    }

    /// How many pages the pool has, used or not.
    pub fn pages(&self) -> usize {
        self.pages.load(Ordering::Acquire)
    }

    /// The address at which devices access the first page.
    pub fn address(&self) -> PhysAddr {
        self.address.load(Ordering::Relaxed)
    }

    /// Allocates `count` contiguous pages, filled with zeroes; `None` if there is no such run.
    pub fn allocate(&self, count: usize) -> Option<NonNull<u8>> {
        let first = self.free_run(count)?;
        (first..first + count).for_each(|page| self.set(page, true));
        let start = NonNull::new(self.window.load(Ordering::Relaxed).wrapping_add(first * PAGE_SIZE))?;
        // SAFETY: the pages are the pool's by the promise of `give`, and not in use.
        unsafe { start.as_ptr().write_bytes(0, count * PAGE_SIZE) };
        Some(start)
    }

    /// Frees pages.
    ///
    /// # Safety
    /// The pages are what [`allocate`](Self::allocate) returned for `count`, and no longer in use.
    pub unsafe fn free(&self, start: NonNull<u8>, count: usize) {
        let first = start.addr().get().wrapping_sub(self.window.load(Ordering::Relaxed).addr()) / PAGE_SIZE;
        if !self.keeps.load(Ordering::Relaxed) {
            (first..first + count).filter(|page| *page < self.pages()).for_each(|page| self.set(page, false));
        }
    }

    /// Keeps all freed pages out of use from now on: a device may still write to them.
    pub(super) fn keep_all(&self) {
        self.keeps.store(true, Ordering::Relaxed);
    }

    /// The device address of a buffer that lies entirely in the pool.
    pub fn address_of(&self, buffer: NonNull<[u8]>) -> Option<PhysAddr> {
        let offset = buffer.addr().get().checked_sub(self.window.load(Ordering::Relaxed).addr())?;
        let end = offset.checked_add(buffer.len())?;
        (end <= self.pages() * PAGE_SIZE).then(|| self.address() + offset as u64)
    }

    /// The kernel's address of `len` bytes at a device address.
    pub fn at(&self, address: PhysAddr, len: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(address.checked_sub(self.address())?).ok()?;
        let end = offset.checked_add(len)?;
        let window = self.window.load(Ordering::Relaxed);
        NonNull::new(window)
            .filter(|_| end <= self.pages() * PAGE_SIZE)
            .map(|_| window.wrapping_add(offset))
            .and_then(NonNull::new)
    }

    fn free_run(&self, count: usize) -> Option<usize> {
        let mut run = 0;
        for page in 0..self.pages() {
            run = if self.used[page / 64].load(Ordering::Relaxed) & 1 << (page % 64) == 0 {
                run + 1
            } else {
                0
            };
            if count != 0 && run == count {
                return Some(page + 1 - count);
            }
        }
        None
    }

    fn set(&self, page: usize, used: bool) {
        let (word, bit) = (&self.used[page / 64], 1u64 << (page % 64));
        let old = word.load(Ordering::Relaxed);
        word.store(if used { old | bit } else { old & !bit }, Ordering::Relaxed);
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

/// [`POOL`] as the [`Hal`] of drivers.
#[derive(Clone, Copy, Debug)]
pub struct PoolHal;

// SAFETY: by the promise of `Pool::give` and the pool's accounting, `dma_alloc` hands out pages that are mapped,
// zeroed, aligned and not used otherwise.
unsafe impl Hal for PoolHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let found = POOL.allocate(pages).and_then(|start| {
            let bytes = NonNull::slice_from_raw_parts(start, pages * PAGE_SIZE);
            POOL.address_of(bytes).map(|address| (address, start))
        });
        // Drivers take the address 0 for a failure.
        found.unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_: PhysAddr, start: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { POOL.free(start, pages) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        panic!("no device of this kernel is on a PCI bus, and there is nothing at {address:#x}");
    }

    /// # Panics
    /// When a buffer outside the pool is to be copied, and the pool has no pages left.
    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        if let Some(address) = POOL.address_of(buffer) {
            return address;
        }
        let pages = buffer.len().div_ceil(PAGE_SIZE);
        let (address, copy) = Self::dma_alloc(pages, direction);
        assert!(address != 0, "no pages are left to share a buffer of {} bytes with a device", buffer.len());
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: `copy` is long enough and distinct from the buffer, which is readable by the caller's promise.
            unsafe { copy.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        address
    }

    unsafe fn unshare(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if POOL.address_of(buffer).is_some() {
            return;
        }
        let Some(copy) = POOL.at(address, buffer.len()) else { return };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`; the buffer is writable, because the device was to write to it.
            unsafe { buffer.cast().copy_from_nonoverlapping(copy, buffer.len()) };
        }
        // SAFETY: the pages that `share` allocated.
        unsafe { POOL.free(copy, buffer.len().div_ceil(PAGE_SIZE)) };
    }
}
