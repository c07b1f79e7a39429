//! A vCPU's debug registers: what a guest may set, and breakpoints on I/O ports.
//!
//! Used by hypercalls and by MOV DR alike. Facts: SDM vol. 3, 17.2.

use paravane_abi::addr::HYPERVISOR_VIRT_END;
use paravane_abi::debugreg::*;
use paravane_abi::errno::Errno;

use super::vcpu::PvVcpu;
use crate::x86::control::cr4;
use crate::x86::debug::{DR6_ONES, DR7_ONES};

/// DR7.GD: trap accesses to the debug registers.
const GENERAL_DETECT: u64 = 1 << 13;
/// DR7: the enable bits.
const ACTIVE: u64 = 0xff;
/// The bits of DR6 that read as 0 (SDM vol. 3, 17.2.3).
const STATUS_ZEROES: u64 = 0x1000;
/// The bits of DR7 that read as 0 (SDM vol. 3, 17.2.4).
const CONTROL_ZEROES: u64 = 0xd800;
/// A breakpoint on I/O, in the two bits that say what to break on.
const ON_IO: u64 = 0b10;

/// Sets a debug register. ENODEV for a number without a register, EINVAL for reserved bits, EPERM for what a guest may
/// not: watch the hypervisor's addresses, have accesses to these registers trap, or break on I/O while CR4.DE is clear.
pub fn write(vcpu: &mut PvVcpu, number: u32, value: u64) -> Result<(), Errno> {
    match number {
        DEBUGREG_ADDRESS_FIRST..=DEBUGREG_ADDRESS_LAST => {
            if (1 << 47..HYPERVISOR_VIRT_END).contains(&value) {
                return Err(Errno::EPERM);
            }
            let index = usize::try_from(number).map_err(|_| Errno::ENODEV)?;
            *vcpu.debug.addresses.get_mut(index).ok_or(Errno::ENODEV)? = value;
        }
        4 | 5 if has_no_aliases(vcpu) => return Err(Errno::ENODEV),
        4 | DEBUGREG_STATUS => {
            narrow(value)?;
            vcpu.debug.status = value & !STATUS_ZEROES | DR6_ONES;
        }
        5 | DEBUGREG_CONTROL => {
            narrow(value)?;
            let value = value & !CONTROL_ZEROES | DR7_ONES;
            let breaks_on_io = (16..32).step_by(4).any(|shift| value >> shift & 3 == ON_IO);
            let on_io = value & ACTIVE != 0 && breaks_on_io && vcpu.control.cr4 & cr4::DE == 0;
            if value & GENERAL_DETECT != 0 || on_io {
                return Err(Errno::EPERM);
            }
            vcpu.debug.control = value;
        }
        _ => return Err(Errno::ENODEV),
    }
    Ok(())
}

/// DR4 and DR5 are DR6 and DR7 while CR4.DE is clear, and do not exist otherwise (SDM vol. 3, 17.2.2).
fn has_no_aliases(vcpu: &PvVcpu) -> bool {
    vcpu.control.cr4 & cr4::DE != 0
}

/// The upper halves of DR6 and DR7 are reserved.
fn narrow(value: u64) -> Result<u32, Errno> {
    u32::try_from(value).map_err(|_| Errno::EINVAL)
}

/// Reads a debug register. ENODEV for a number without a register.
pub fn read(vcpu: &PvVcpu, number: u32) -> Result<u64, Errno> {
    let debug = &vcpu.debug;
    match number {
        4 | 5 if has_no_aliases(vcpu) => Err(Errno::ENODEV),
        4 | DEBUGREG_STATUS => Ok(debug.status),
        5 | DEBUGREG_CONTROL => Ok(debug.control),
        _ => {
            let index = usize::try_from(number).map_err(|_| Errno::ENODEV)?;
            debug.addresses.get(index).copied().ok_or(Errno::ENODEV)
        }
    }
}

/// The breakpoints on I/O that an access to `size` bytes from `port` on meets, as bits of DR6 (SDM vol. 3, 17.2.4).
///
/// Ports are emulated, so that these breakpoints need no debug registers of the processor's.
pub fn io_breakpoints(vcpu: &PvVcpu, port: u16, size: u32) -> u64 {
    let debug = &vcpu.debug;
    if debug.control & ACTIVE == 0 || vcpu.control.cr4 & cr4::DE == 0 {
        return 0;
    }
    let (first, end) = (u64::from(port), u64::from(port) + u64::from(size));
    let meets = |(number, address): (usize, &u64)| {
        let (enabled, kind) = (debug.control >> (number * 2) & 3 != 0, debug.control >> (16 + number * 4));
        let width = match kind >> 2 & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        let overlaps = *address < end && address.saturating_add(width) > first;
        if enabled && kind & 3 == ON_IO && overlaps { 1 << number } else { 0 }
    };
    debug.addresses.iter().enumerate().map(meets).fold(0, |all, bit| all | bit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::pv::TestDomain;

    proptest! {
        /// Whatever is written, only what a processor could hold is kept.
        #[test]
        fn debug_registers_hold_nothing_forbidden(number in 0u32..9, value: u64) {
            let mut t = TestDomain::new();
            let _ = write(&mut t.vcpu, number, value);
            let debug = t.vcpu.debug;
            prop_assert_eq!(debug.status & !0xffff_efff | DR6_ONES & !debug.status, 0);
            prop_assert_eq!(debug.control & (GENERAL_DETECT | CONTROL_ZEROES | !0xffff_ffff), 0);
            prop_assert!(debug.addresses.iter().all(|a| !(1 << 47..HYPERVISOR_VIRT_END).contains(a)));
        }
    }
}
