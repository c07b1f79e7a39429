//! physdev_op: what a domain without physical devices may ask (public/physdev.h).

use paravane_abi::domid::{DOMID_SELF, DomId};
use paravane_abi::errno::Errno;
use paravane_abi::physdev::*;

use super::{Call, HypercallResult, Outcome, done, low32};
use crate::machine::memory::Mfn;
use crate::mmu::direct::Stop;
use crate::pv::domain::DOMID;

/// Interrupts that a domU has numbers for: 16 of the ISA bus and 32 more, none of them bound to a device.
const PIRQS: u32 = 48;
/// The number of I/O ports.
const PORTS: u32 = 1 << 16;

/// physdev_op(command, argument).
pub fn physdev_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, argument, ..] = call.args;
    match command.low32() {
        PHYSDEVOP_SET_IOPL => {
            let op: PhysdevSetIopl = call.guest().read(argument.pointer())?;
            call.vcpu.io.level = u8::try_from(op.iopl).ok().filter(|l| *l <= 3).ok_or(Errno::EINVAL)?;
            done(0)
        }
        PHYSDEVOP_SET_IOBITMAP => {
            let op: PhysdevSetIobitmap = call.guest().read(argument.pointer())?;
            if op.nr_ports > PORTS {
                return Err(Errno::EINVAL);
            }
            (call.vcpu.io.bitmap, call.vcpu.io.ports) = (op.bitmap, op.nr_ports);
            done(0)
        }
        PHYSDEVOP_IRQ_STATUS_QUERY => {
            let mut op: PhysdevIrqStatusQuery = call.guest().read(argument.pointer())?;
            if op.irq >= PIRQS {
                return Err(Errno::EINVAL);
            }
            op.flags = XENIRQSTAT_NEEDS_EOI;
            call.guest().write(argument.pointer(), &op)?;
            done(0)
        }
        PHYSDEVOP_EOI => {
            call.guest().read::<PhysdevEoi>(argument.pointer())?;
            Err(Errno::EINVAL)
        }
        PHYSDEVOP_PIRQ_EOI_GMFN_V1 | PHYSDEVOP_PIRQ_EOI_GMFN_V2 => share_eoi_map(call),
        PHYSDEVOP_MAP_PIRQ => {
            let op: PhysdevMapPirq = call.guest().read(argument.pointer())?;
            refuse(op.domid)
        }
        PHYSDEVOP_UNMAP_PIRQ => {
            let op: PhysdevUnmapPirq = call.guest().read(argument.pointer())?;
            refuse(op.domid)
        }
        PHYSDEVOP_GET_FREE_PIRQ => Err(Errno::ENOSPC),
        PHYSDEVOP_IRQ_UNMASK_NOTIFY => done(0),
        PHYSDEVOP_APIC_READ
        | PHYSDEVOP_APIC_WRITE
        | PHYSDEVOP_ALLOC_IRQ_VECTOR
        | PHYSDEVOP_FREE_IRQ_VECTOR
        | PHYSDEVOP_MANAGE_PCI_ADD..=PHYSDEVOP_MANAGE_PCI_REMOVE
        | PHYSDEVOP_RESTORE_MSI..=PHYSDEVOP_SETUP_GSI
        | PHYSDEVOP_PCI_MMCFG_RESERVED..=PHYSDEVOP_RESTORE_MSI_EXT
        | PHYSDEVOP_DBGP_OP..=PHYSDEVOP_RELEASE_MSIX => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}

/// physdev_op_compat(operation): the first form, with the command before its argument.
pub fn physdev_op_compat(call: &mut Call<'_>) -> HypercallResult {
    let [operation, ..] = call.args;
    // The command, and the union of arguments, which is aligned to 8 bytes and 16 bytes long.
    let operation = operation.pointer::<[u64; 3]>();
    let [command, ..] = call.guest().read(operation)?;
    let argument = operation.part::<[u64; 2]>(size_of::<u64>())?.address();
    physdev_op(&mut call.with([low32(command).into(), argument, 0, 0, 0, 0]))
}

/// Interrupts of devices are for privileged domains.
fn refuse(domain: DomId) -> HypercallResult {
    let exists = domain == DOMID_SELF || domain == DOMID || domain == 0;
    Err(if exists { Errno::EPERM } else { Errno::ESRCH })
}

/// A page in which the guest wants to see which interrupts need an end-of-interrupt call: none ever does.
fn share_eoi_map(call: &mut Call<'_>) -> HypercallResult {
    let [_, argument, ..] = call.args;
    let op: PhysdevPirqEoiGmfn = call.guest().read(argument.pointer())?;
    match call.domain.mmu.get_writable(&call.domain.memory, &mut call.domain.log, Mfn(op.gmfn)) {
        Ok(()) if call.domain.pirq_eoi_map.is_some() => {
            call.domain.mmu.put_writable(Mfn(op.gmfn));
            Err(Errno::EBUSY)
        }
        Ok(()) => {
            call.domain.pirq_eoi_map = Some(Mfn(op.gmfn));
            done(0)
        }
        Err(Stop::Refused(errno)) => Err(errno),
        Err(Stop::Restart) => Ok(Outcome::Again(call.raw())),
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::hypercall as nr;

    use crate::pv::hypercall::physdev::*;
    use crate::testing::pv::{FREE, L1, NOWHERE, SCRATCH, TestDomain, va};

    #[test]
    fn io_privilege() {
        let mut t = TestDomain::new();
        assert_eq!(t.op(nr::PHYSDEV_OP, PHYSDEVOP_SET_IOPL, PhysdevSetIopl { iopl: 3 }).map(|r| r.0), Ok(0));
        assert_eq!(t.vcpu.io.level, 3);
        let bad = t.op(nr::PHYSDEV_OP, PHYSDEVOP_SET_IOPL, PhysdevSetIopl { iopl: 4 });
        assert_eq!(bad.map(|r| r.0), Err(Errno::EINVAL));
        let map = |nr_ports| PhysdevSetIobitmap { bitmap: va(FREE), nr_ports, _pad: 0 };
        assert_eq!(t.op(nr::PHYSDEV_OP, PHYSDEVOP_SET_IOBITMAP, map(65536)).map(|r| r.0), Ok(0));
        let bad = t.op(nr::PHYSDEV_OP, PHYSDEVOP_SET_IOBITMAP, map(65537));
        assert_eq!(bad.map(|r| r.0), Err(Errno::EINVAL));
        assert_eq!((t.vcpu.io.bitmap, t.vcpu.io.ports), (va(FREE), 65536));
    }

    #[test]
    fn interrupts_of_devices_are_not_for_a_domu() {
        let mut t = TestDomain::new();
        let status = |irq| PhysdevIrqStatusQuery { irq, flags: 0 };
        let known = t.op(nr::PHYSDEV_OP, PHYSDEVOP_IRQ_STATUS_QUERY, status(47));
        assert_eq!(known.map(|r| r.1.flags), Ok(XENIRQSTAT_NEEDS_EOI));
        let unknown = t.op(nr::PHYSDEV_OP, PHYSDEVOP_IRQ_STATUS_QUERY, status(48));
        assert_eq!(unknown.map(|r| r.0), Err(Errno::EINVAL));
        let eoi = t.op(nr::PHYSDEV_OP, PHYSDEVOP_EOI, PhysdevEoi { irq: 1 });
        assert_eq!(eoi.map(|r| r.0), Err(Errno::EINVAL));
        for (domid, errno) in [(DOMID_SELF, Errno::EPERM), (0, Errno::EPERM), (7, Errno::ESRCH)] {
            let map = PhysdevMapPirq { domid, ..Default::default() };
            assert_eq!(t.op(nr::PHYSDEV_OP, PHYSDEVOP_MAP_PIRQ, map).map(|r| r.0), Err(errno));
            let unmap = PhysdevUnmapPirq { domid, ..Default::default() };
            assert_eq!(t.op(nr::PHYSDEV_OP, PHYSDEVOP_UNMAP_PIRQ, unmap).map(|r| r.0), Err(errno));
        }
        for command in [8, 9, 10, 11, 15, 16, 19, 20, 21, 24, 25, 26, 27, 29, 30, 31] {
            assert_eq!(t.call(nr::PHYSDEV_OP, [command, va(SCRATCH)]), Err(Errno::EPERM), "{command}");
        }
        for command in [0, 3, 18, 22, 32, 99] {
            assert_eq!(t.call(nr::PHYSDEV_OP, [command, va(SCRATCH)]), Err(Errno::ENOSYS), "{command}");
        }
        for command in [5, 6, 7, 12, 13, 14, 17, 28] {
            assert_eq!(t.call(nr::PHYSDEV_OP, [command, NOWHERE]), Err(Errno::EFAULT), "{command}");
        }
        assert_eq!(t.call(nr::PHYSDEV_OP, [23, va(SCRATCH)]), Err(Errno::ENOSPC));
    }

    #[test]
    fn one_page_of_writable_memory_is_shared() {
        let mut t = TestDomain::new();
        let share = |t: &mut TestDomain, gmfn| {
            t.op(nr::PHYSDEV_OP, PHYSDEVOP_PIRQ_EOI_GMFN_V2, PhysdevPirqEoiGmfn { gmfn }).map(|r| r.0)
        };
        let (table, free, other) = (t.mfn(L1), t.mfn(FREE), t.mfn(FREE + 1));
        for gmfn in [table, 0, u64::MAX] {
            assert_eq!(share(&mut t, gmfn), Err(Errno::EINVAL));
        }
        assert_eq!(share(&mut t, free), Ok(0));
        assert_eq!(share(&mut t, other), Err(Errno::EBUSY));
        assert_eq!(t.mmu.frame(Mfn(other)).unwrap().refs(), 1, "only its mapping");
    }

    #[test]
    fn the_first_form_has_its_argument_behind_the_command() {
        let mut t = TestDomain::new();
        t.write_at(va(SCRATCH), &[u64::from(PHYSDEVOP_SET_IOPL), 1]).unwrap();
        assert_eq!(t.call(nr::PHYSDEV_OP_COMPAT, [va(SCRATCH)]), Ok(0));
        assert_eq!(t.vcpu.io.level, 1);
        t.write_at(va(SCRATCH), &[u64::from(PHYSDEVOP_EOI), 1]).unwrap();
        assert_eq!(t.call(nr::PHYSDEV_OP_COMPAT, [va(SCRATCH)]), Err(Errno::EINVAL), "any command");
        t.write_at(va(SCRATCH), &[99u64, 1]).unwrap();
        assert_eq!(t.call(nr::PHYSDEV_OP_COMPAT, [va(SCRATCH)]), Err(Errno::ENOSYS));
        assert_eq!(t.call(nr::PHYSDEV_OP_COMPAT, [NOWHERE]), Err(Errno::EFAULT));
    }
}
