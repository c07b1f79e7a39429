//! The processor's registers and tables: descriptor tables, segment bases, debug registers, CR0.TS, stacks,
//! and the assistances that a domain has (public/arch-x86/xen.h, public/arch-x86/xen-x86_64.h, public/xen.h).

use paravane_abi::addr::is_canonical;
use paravane_abi::errno::Errno;
use paravane_abi::segment::*;
use paravane_abi::vm_assist::*;

use super::{Call, HypercallResult, Outcome, done};
use crate::machine::memory::Maddr;
use crate::mmu::direct::Stop;
use crate::pv::debug_registers;

/// Turns what the MMU said into what a call returns; `args` are those to start over with.
fn settle(result: Result<(), Stop>, args: [u64; 6]) -> HypercallResult {
    match result {
        Ok(()) => done(0),
        Err(Stop::Refused(errno)) => Err(errno),
        Err(Stop::Restart) => Ok(Outcome::Again(args)),
    }
}

/// set_gdt(frames, entries).
pub fn set_gdt(call: &mut Call<'_>) -> HypercallResult {
    let args = call.raw();
    let [list, entries, ..] = call.args;
    let entries = entries.low32();
    if entries > FIRST_RESERVED_GDT_ENTRY {
        return Err(Errno::EINVAL);
    }
    let mut frames = [0u64; GDT_FRAMES];
    let count = usize::try_from(entries.div_ceil(DESCRIPTORS_PER_FRAME)).map_err(|_| Errno::EINVAL)?;
    let frames = frames.get_mut(..count).ok_or(Errno::EINVAL)?;
    call.guest().read_slice(list.pointer(), frames)?;
    settle(
        call.domain.mmu.set_gdt(
            &call.domain.memory,
            &mut call.domain.log,
            &mut call.vcpu.space,
            &mut call.vcpu.tables,
            frames,
            entries,
        ),
        args,
    )
}

/// update_descriptor(machine address, descriptor).
pub fn update_descriptor(call: &mut Call<'_>) -> HypercallResult {
    let args = call.raw();
    let [at, descriptor, ..] = args;
    settle(
        call.domain.mmu.update_descriptor(&call.domain.memory, &mut call.domain.log, Maddr(at), descriptor),
        args,
    )
}

/// set_segment_base(which, base).
pub fn set_segment_base(call: &mut Call<'_>) -> HypercallResult {
    let [which, base, ..] = call.args;
    let (which, base) = (which.low32(), base.word());
    if which == SEGBASE_GS_USER_SEL {
        let selector = (base & 0xffff) as u16;
        // Null keeps its privilege level; any other gets the guest's.
        let selector = if selector > 3 { selector | 3 } else { selector };
        // A selector that cannot be loaded is replaced by null, without an error.
        let loaded = call.context().load_data(selector);
        call.vcpu.other_gs_base = loaded.unwrap_or(0);
        call.vcpu.regs.selectors.gs = if loaded.is_ok() { selector } else { 0 };
        return done(0);
    }
    let register = match which {
        SEGBASE_FS => &mut call.vcpu.regs.fs_base,
        SEGBASE_GS_USER => &mut call.vcpu.other_gs_base,
        SEGBASE_GS_KERNEL => &mut call.vcpu.regs.gs_base,
        _ => return Err(Errno::EINVAL),
    };
    if !is_canonical(base) {
        return Err(Errno::EINVAL);
    }
    *register = base;
    done(0)
}

/// stack_switch(ss, sp): the kernel stack for entries from user mode. The selector is flat whatever it says.
pub fn stack_switch(call: &mut Call<'_>) -> HypercallResult {
    let [_ss, sp, ..] = call.args;
    call.vcpu.kernel_sp = sp.word();
    done(0)
}

/// fpu_taskswitch(set).
pub fn fpu_taskswitch(call: &mut Call<'_>) -> HypercallResult {
    let [set, ..] = call.args;
    call.vcpu.set_task_switched(set.low32() != 0);
    done(0)
}

/// set_debugreg(number, value).
pub fn set_debugreg(call: &mut Call<'_>) -> HypercallResult {
    let [number, value, ..] = call.args;
    debug_registers::write(call.vcpu, number.low32(), value.word())?;
    done(0)
}

/// get_debugreg(number).
pub fn get_debugreg(call: &mut Call<'_>) -> HypercallResult {
    let [number, ..] = call.args;
    done(debug_registers::read(call.vcpu, number.low32())?)
}

/// Assistances that a guest may switch. Those for 32-bit segments and directories are without effect.
pub const ASSISTS: u64 = 1 << VMASST_TYPE_4GB_SEGMENTS
    | 1 << VMASST_TYPE_4GB_SEGMENTS_NOTIFY
    | 1 << VMASST_TYPE_WRITABLE_PAGETABLES
    | 1 << VMASST_TYPE_PAE_EXTENDED_CR3
    | 1 << VMASST_TYPE_ARCHITECTURAL_IOPL
    | 1 << VMASST_TYPE_RUNSTATE_UPDATE_FLAG
    | 1 << VMASST_TYPE_M2P_STRICT;

/// vm_assist(command, type).
pub fn vm_assist(call: &mut Call<'_>) -> HypercallResult {
    let [command, kind, ..] = call.args;
    let bit = 1u64.checked_shl(kind.low32()).filter(|bit| ASSISTS & bit != 0).ok_or(Errno::EINVAL)?;
    match command.low32() {
        VMASST_CMD_ENABLE => call.domain.assists |= bit,
        VMASST_CMD_DISABLE => call.domain.assists &= !bit,
        _ => return Err(Errno::ENOSYS),
    }
    done(0)
}

#[cfg(test)]
mod tests {
    use crate::x86::control::cr4;
    use paravane_abi::addr::HYPERVISOR_VIRT_END;
    use paravane_abi::hypercall as nr;

    use crate::pv::hypercall::processor::*;
    use crate::testing::pv::{FREE, NOWHERE, SCRATCH, TestDomain, va};

    const KERNEL_CODE: u64 = 0x00af_9b00_0000_ffff;
    const CALL_GATE: u64 = 0x0000_8c00_0000_0000;

    #[test]
    fn a_gdt_is_frames_that_hold_descriptors() {
        let mut t = TestDomain::new();
        for pfn in [20, 21] {
            t.unmap(pfn);
        }
        t.poke(20, 3, KERNEL_CODE);
        t.set_gdt(&[20, 21], 513);
        assert!(t.cx().is_code_64(0x1b));
        let mfn = t.mfn(20) << 12;
        assert_eq!(t.call(nr::UPDATE_DESCRIPTOR, [mfn + 8, KERNEL_CODE]), Ok(0));
        assert!(t.cx().is_code_64(0x0b));
        assert_eq!(t.call(nr::UPDATE_DESCRIPTOR, [mfn + 8, CALL_GATE]), Err(Errno::EINVAL));
        assert_eq!(t.call(nr::UPDATE_DESCRIPTOR, [mfn + 4, KERNEL_CODE]), Err(Errno::EINVAL));
        assert_eq!(t.call(nr::UPDATE_DESCRIPTOR, [8, KERNEL_CODE]), Err(Errno::EINVAL), "not the guest's");

        assert_eq!(t.call(nr::SET_GDT, [va(SCRATCH), 7169]), Err(Errno::EINVAL));
        assert_eq!(t.call(nr::SET_GDT, [NOWHERE, 1]), Err(Errno::EFAULT));
        let table = t.mfn(0);
        t.poke(SCRATCH, 0, table);
        assert_eq!(t.call(nr::SET_GDT, [va(SCRATCH), 1]), Err(Errno::EINVAL), "a page table");
        assert!(t.cx().is_code_64(0x1b), "a refused table replaces nothing");
        assert_eq!(t.call(nr::SET_GDT, [NOWHERE, 0]), Ok(0));
        assert!(!t.cx().is_code_64(0x1b));
    }

    #[test]
    fn segment_bases() {
        let mut t = TestDomain::new();
        let set = |t: &mut TestDomain, which: u32, base| t.call(nr::SET_SEGMENT_BASE, [which.into(), base]);
        for (which, base) in [(SEGBASE_FS, 0x1000), (SEGBASE_GS_KERNEL, 0x2000), (SEGBASE_GS_USER, u64::MAX)]
        {
            assert_eq!(set(&mut t, which, base), Ok(0));
            assert_eq!(set(&mut t, which, 1 << 47), Err(Errno::EINVAL));
        }
        let v = &t.vcpu;
        assert_eq!((v.regs.fs_base, v.regs.gs_base, v.other_gs_base), (0x1000, 0x2000, u64::MAX));
        assert_eq!(set(&mut t, 4, 0), Err(Errno::EINVAL));
        t.unmap(20);
        t.poke(20, 5, 0x12c0_9334_5678_ffff);
        t.set_gdt(&[20], 8);
        for (selector, base) in [(0x28, 0x1234_5678), (0x30, 0), (0x2b, 0x1234_5678), (0, 0)] {
            assert_eq!(set(&mut t, SEGBASE_GS_USER_SEL, selector), Ok(0));
            assert_eq!(t.vcpu.other_gs_base, base, "{selector:#x}");
        }
    }

    #[test]
    fn debug_registers_keep_what_a_guest_may_set() {
        let mut t = TestDomain::new();
        let set = |t: &mut TestDomain, n: u64, value| t.call(nr::SET_DEBUGREG, [n, value]);
        assert_eq!(set(&mut t, 0, va(FREE)), Ok(0));
        assert_eq!(t.call(nr::GET_DEBUGREG, [0]), Ok(va(FREE)));
        for address in [1 << 47, 0xffff_8000_0000_0000, HYPERVISOR_VIRT_END - 1] {
            assert_eq!(set(&mut t, 3, address), Err(Errno::EPERM));
        }
        assert_eq!(set(&mut t, 3, HYPERVISOR_VIRT_END), Ok(0));
        assert_eq!(set(&mut t, 6, 0), Ok(0));
        assert_eq!(t.call(nr::GET_DEBUGREG, [6]), Ok(0xffff_0ff0));
        assert_eq!(set(&mut t, 7, 0xf_0001), Ok(0));
        assert_eq!(t.call(nr::GET_DEBUGREG, [7]), Ok(0xf_0401));
        assert_eq!(t.call(nr::GET_DEBUGREG, [5]), Ok(0xf_0401));
        assert_eq!(set(&mut t, 7, 1 << 13), Err(Errno::EPERM));
        assert_eq!(set(&mut t, 7, 0x2_0001), Err(Errno::EPERM), "a breakpoint on I/O");
        assert_eq!(set(&mut t, 7, 0x2_0000), Ok(0), "but it is not enabled");
        t.vcpu.control.cr4 |= cr4::DE;
        assert_eq!(set(&mut t, 7, 0x2_0702), Ok(0), "with CR4.DE a breakpoint on I/O is one");
        assert_eq!(t.call(nr::GET_DEBUGREG, [7]), Ok(0x2_0702));
        for alias in [4, 5] {
            assert_eq!(set(&mut t, alias, 0), Err(Errno::ENODEV), "with CR4.DE it does not exist");
            assert_eq!(t.call(nr::GET_DEBUGREG, [alias]), Err(Errno::ENODEV));
        }
        for n in [6, 7] {
            assert_eq!(set(&mut t, n, 1 << 32), Err(Errno::EINVAL));
        }
        assert_eq!(set(&mut t, 8, 0), Err(Errno::ENODEV));
        assert_eq!(t.call(nr::GET_DEBUGREG, [8]), Err(Errno::ENODEV));
    }

    #[test]
    fn assistances() {
        let mut t = TestDomain::new();
        let assist = |t: &mut TestDomain, command: u64, kind: u64| t.call(nr::VM_ASSIST, [command, kind]);
        for kind in [0, 1, 2, 3, 4, 5, 32] {
            assert_eq!(assist(&mut t, 0, kind), Ok(0));
            assert!(t.assisted(kind as u32));
            assert_eq!(assist(&mut t, 2, kind), Err(Errno::ENOSYS));
            assert_eq!(assist(&mut t, 1, kind), Ok(0));
        }
        assert_eq!(t.assists, 0);
        for kind in [6, 31, 33, 64, 0xffff_ffff] {
            assert_eq!(assist(&mut t, 0, kind), Err(Errno::EINVAL));
        }
    }
}
