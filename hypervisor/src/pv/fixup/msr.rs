//! The model-specific registers that a domU finds. Any other raises #GP.
//!
//! Facts: SDM vol. 4; AMD APM vol. 2, appendix A; the values are those that Xen 4.17 shows a domU.

use std::ops::Range;

use paravane_abi::addr::is_canonical;
use paravane_abi::hypercall::{HYPERCALL_ENTRIES, HYPERCALL_ENTRY_SIZE, IRET};

use super::cpuid::HYPERCALL_PAGE_MSR;
use super::outcome::{Ended, PROTECTION};
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::mmu::direct::Stop;
use crate::pv::context::PvContext;
use crate::x86::control::efer;
use crate::x86::msr;

/// Banks of machine-check registers.
const BANKS: u32 = 2;
const BANK_REGISTERS: Range<u32> = msr::MC_BANKS..msr::MC_BANKS + BANKS * msr::MC_BANK_REGISTERS;

/// The local APIC of the first processor: enabled, at its default address.
const APIC_BASE: u64 = msr::APIC_BASE_ADDRESS | msr::APIC_BASE_ENABLED | msr::APIC_BASE_BSP;
/// The hypervisor's PAT: WB WT UC- UC, WC WP UC UC.
const PAT: u64 = 0x0000_0501_0007_0406;
/// Fast strings; no branch trace, no PEBS. Bit 23: xTPR messages are disabled.
const MISC_ENABLE: u64 =
    msr::MISC_ENABLE_FAST_STRINGS | msr::MISC_ENABLE_NO_BTS | msr::MISC_ENABLE_NO_PEBS | 1 << 23;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
    Other,
}

/// Whether the processor is AMD's or Hygon's.
pub(super) fn is_amd() -> bool {
    vendor() == Vendor::Amd
}

fn vendor() -> Vendor {
    match crate::host::host_cpuid::query(0, 0).ebx.to_le_bytes() {
        [b'G', b'e', b'n', b'u'] => Vendor::Intel,
        [b'A', b'u', b't', b'h'] | [b'H', b'y', b'g', b'o'] => Vendor::Amd,
        _ => Vendor::Other,
    }
}

/// RDMSR; `None` is #GP.
pub(super) fn read(cx: &mut PvContext<'_>) -> Option<Ended> {
    let value = value(cx, index(cx))?;
    let regs = &mut cx.vcpu.regs;
    (regs.rax, regs.rdx) = (value & 0xffff_ffff, value >> 32);
    Some(Ended::Done)
}

fn index(cx: &PvContext<'_>) -> u32 {
    (cx.vcpu.regs.rcx & 0xffff_ffff) as u32
}

fn value(cx: &PvContext<'_>, index: u32) -> Option<u64> {
    Some(match index {
        msr::FS_BASE => cx.vcpu.regs.fs_base,
        msr::GS_BASE => cx.vcpu.regs.gs_base,
        msr::KERNEL_GS_BASE => cx.vcpu.other_gs_base,
        msr::TSC_AUX => cx.vcpu.control.tsc_aux.into(),
        msr::TSC => crate::machine::time::rdtsc().wrapping_add(cx.domain.clock.tsc_offset()),
        msr::EFER => efer::LONG_MODE,
        msr::APIC_BASE => APIC_BASE,
        msr::PAT => PAT,
        msr::MICROCODE_REVISION => 0,
        HYPERCALL_PAGE_MSR => 0,
        msr::MCG_CAP => BANKS.into(),
        msr::MCG_CTL => u64::MAX,
        msr::MCG_STATUS => 0,
        _ if BANK_REGISTERS.contains(&index) => {
            if index.is_multiple_of(msr::MC_BANK_REGISTERS) {
                u64::MAX
            } else {
                0
            }
        }
        msr::MISC_ENABLE if vendor() == Vendor::Intel => MISC_ENABLE,
        _ if msr::P6_COUNTERS.contains(&index) || msr::P6_SELECTORS.contains(&index) => {
            only(Vendor::Intel, 0)?
        }
        _ if msr::K7_COUNTERS.contains(&index) => only(Vendor::Amd, 0)?,
        msr::HWCR => only(Vendor::Amd, msr::HWCR_TSC_FREQ_SEL)?,
        msr::DE_CFG => only(Vendor::Amd, msr::DE_CFG_LFENCE_SERIALIZING)?,
        _ => return None,
    })
}

fn only(which: Vendor, value: u64) -> Option<u64> {
    (vendor() == which).then_some(value)
}

/// WRMSR; `None` is #GP.
pub(super) fn write(cx: &mut PvContext<'_>) -> Option<Ended> {
    let index = index(cx);
    let regs = &mut cx.vcpu.regs;
    let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
    match index {
        msr::FS_BASE => regs.fs_base = canonical(value)?,
        msr::GS_BASE => regs.gs_base = canonical(value)?,
        msr::KERNEL_GS_BASE => cx.vcpu.other_gs_base = canonical(value)?,
        // Stored only: RDTSCP and RDPID read the host's, because no engine loads this one.
        msr::TSC_AUX => cx.vcpu.control.tsc_aux = u32::try_from(value).ok()?,
        HYPERCALL_PAGE_MSR => return hypercall_page(cx, value),
        // Writes of these have no effect, where the register exists.
        msr::MICROCODE_REVISION | msr::MCG_CTL | msr::HWCR | msr::DE_CFG => drop(self::value(cx, index)?),
        msr::MCG_STATUS => {}
        _ if BANK_REGISTERS.contains(&index) => {}
        _ if msr::P6_COUNTERS.contains(&index)
            || msr::P6_SELECTORS.contains(&index)
            || msr::K7_COUNTERS.contains(&index) =>
        {
            self::value(cx, index)?;
        }
        msr::MISC_ENABLE if self::value(cx, index)? == value => {}
        _ => return None,
    }
    Some(Ended::Done)
}

fn canonical(value: u64) -> Option<u64> {
    is_canonical(value).then_some(value)
}

/// Fills a frame of the guest with a hypercall page. The low bits of the address choose the page; only 0 is valid.
///
/// Its stubs use SYSCALL, which enters the hypervisor on every engine. The page that the builder makes for an image
/// with room for one uses the engine's own, faster way.
fn hypercall_page(cx: &mut PvContext<'_>, address: u64) -> Option<Ended> {
    let mfn = Maddr(address).mfn();
    if Maddr(address).offset() != 0 {
        return None;
    }
    match cx.domain.mmu.get_writable(&cx.domain.memory, &mut cx.domain.log, mfn) {
        Ok(()) => {}
        Err(Stop::Restart) => return Some(Ended::Again),
        Err(Stop::Refused(_)) => return Some(Ended::Fault(PROTECTION)),
    }
    let mut page = [INT3; PAGE_SIZE as usize];
    for (stub, number) in page.as_chunks_mut::<HYPERCALL_ENTRY_SIZE>().0.iter_mut().zip(0..) {
        fill_stub(stub, number);
    }
    let written = cx.domain.memory.write(mfn.maddr(), &page);
    cx.domain.mmu.put_writable(mfn);
    written.ok().map(|()| Ended::Done)
}

const INT3: u8 = 0xcc;
const _: () = assert!(HYPERCALL_ENTRIES == 128);

/// PUSH RCX; PUSH R11; MOV EAX, number; SYSCALL; POP R11; POP RCX; RET. For `iret`, whose frame begins with
/// those registers and RAX, only the pushes and the call.
fn fill_stub(stub: &mut [u8; HYPERCALL_ENTRY_SIZE], number: u32) {
    let [a, b, c, d] = number.to_le_bytes();
    let push: &[u8] = if u64::from(number) == IRET { &[0x51, 0x41, 0x53, 0x50] } else { &[0x51, 0x41, 0x53] };
    let call = [0xb8, a, b, c, d, 0x0f, 0x05];
    let pop: &[u8] = if u64::from(number) == IRET { &[] } else { &[0x41, 0x5b, 0x59, 0xc3] };
    let bytes = push.iter().chain(&call).chain(pop);
    for (slot, byte) in stub.iter_mut().zip(bytes) {
        *slot = *byte;
    }
}
