//! What a vCPU has of its own: the words that GS leads to, and the vCPU that each port is for.
//!
//! The one place that reads GS.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use paravane_abi::event::EVTCHN_2L_NR_CHANNELS;
use paravane_abi::shared_info::{VcpuInfo, XEN_LEGACY_MAX_VCPUS};

use crate::shared::SHARED;

/// vCPUs that a kernel can start: one more than there are numbers for.
pub const MAX_VCPUS: usize = 64;

/// A vCPU's own words.
#[repr(C)]
struct Own {
    /// Its part of the shared page, or what stands for it.
    info: AtomicPtr<u8>,
    /// Its number.
    id: AtomicU32,
    /// The kernel's.
    word: AtomicUsize,
}

impl Own {
    const fn new() -> Self {
        Self { info: AtomicPtr::new(core::ptr::null_mut()), id: AtomicU32::new(0), word: AtomicUsize::new(0) }
    }
}

static OWN: [Own; MAX_VCPUS] = [const { Own::new() }; MAX_VCPUS];

/// Whether GS is this module's: another vCPU has been started. For the entry code.
pub(crate) static SEVERAL: AtomicU8 = AtomicU8::new(0);
/// Offset of the pointer to a vCPU's info from GS, for the entry code.
pub(crate) const INFO: usize = offset_of!(Own, info);

/// The vCPUs that ports are bound to, by port.
static OWNERS: [AtomicU8; EVTCHN_2L_NR_CHANNELS as usize] =
    [const { AtomicU8::new(0) }; EVTCHN_2L_NR_CHANNELS as usize];

/// The info of vCPUs that the shared page has no room for.
#[repr(C, align(4096))]
struct Infos(UnsafeCell<[u8; 4096]>);

// SAFETY: only reached by the atomic references of `shared.rs`.
unsafe impl Sync for Infos {}

const _: () = assert!((MAX_VCPUS - XEN_LEGACY_MAX_VCPUS) * size_of::<VcpuInfo>() <= 4096);

static INFOS: Infos = Infos(UnsafeCell::new([0; 4096]));

/// Fills the words of all vCPUs.
pub(super) fn prepare() {
    for (number, own) in OWN.iter().enumerate() {
        let info = match number.checked_sub(XEN_LEGACY_MAX_VCPUS) {
            None => SHARED.start().wrapping_add(number * size_of::<VcpuInfo>()),
            Some(index) => INFOS.0.get().cast::<u8>().wrapping_add(index * size_of::<VcpuInfo>()),
        };
        own.info.store(info, Ordering::Relaxed);
        own.id.store(number as u32, Ordering::Relaxed);
    }
}

/// The page and the offset in it of a vCPU's info, if that is not in the shared page.
pub(super) fn outside_of_the_shared_page(vcpu: u32) -> Option<(u64, u32)> {
    let index = (vcpu as usize).checked_sub(XEN_LEGACY_MAX_VCPUS)?;
    Some((INFOS.0.get().addr() as u64, (index * size_of::<VcpuInfo>()) as u32))
}

/// The address of a vCPU's own words: its base of GS.
pub(super) fn address(vcpu: u32) -> u64 {
    OWN.get(vcpu as usize).map_or(0, |own| (&raw const *own).addr() as u64)
}

/// The calling vCPU's number.
pub fn id() -> u32 {
    if SEVERAL.load(Ordering::Relaxed) == 0 {
        return 0;
    }
    let id: u32;
    // SAFETY: GS leads to the words of the vCPU that runs this, see `smp::start`.
    unsafe {
        asm!(
            "mov {:e}, gs:[{id}]",
            out(reg) id,
            id = const offset_of!(Own, id),
            options(nostack, preserves_flags, readonly)
        );
    }
    id
}

/// The calling vCPU's part of the shared page.
pub(crate) fn info() -> *const u8 {
    if SEVERAL.load(Ordering::Relaxed) == 0 {
        return SHARED.start();
    }
    let info: *const u8;
    // SAFETY: as above.
    unsafe {
        asm!("mov {}, gs:[{info}]", out(reg) info, info = const INFO, options(nostack, preserves_flags, readonly));
    }
    info
}

/// A word of the kernel's that each vCPU has for itself: the address of its own data, for instance. Initially 0.
pub fn word() -> usize {
    OWN.get(id() as usize).map_or(0, |own| own.word.load(Ordering::Relaxed))
}

/// Sets the calling vCPU's [`word`].
pub fn set_word(value: usize) {
    if let Some(own) = OWN.get(id() as usize) {
        own.word.store(value, Ordering::Relaxed);
    }
}

/// The vCPU that handles a port's events.
pub(crate) fn owner(port: usize) -> u32 {
    OWNERS.get(port).map_or(0, |owner| owner.load(Ordering::Relaxed).into())
}

/// Notes which vCPU handles a port's events.
pub(crate) fn set_owner(port: usize, vcpu: u32) {
    if let (Some(owner), Ok(vcpu)) = (OWNERS.get(port), u8::try_from(vcpu)) {
        owner.store(vcpu, Ordering::Relaxed);
    }
}

/// Where a vCPU begins: with the address of its `main` and its number as arguments.
#[unsafe(naked)]
unsafe extern "C" fn begin() -> ! {
    naked_asm!("cld", "xor ebp, ebp", "mov rax, rdi", "mov edi, esi", "push rbp", "call rax", "ud2")
}

/// The address of a vCPU's first instruction.
pub(super) fn first_instruction() -> u64 {
    let entry: unsafe extern "C" fn() -> ! = begin;
    entry as usize as u64
}
