//! `physdev_op`: I/O privilege, and interrupts of devices that the guest does not own.

use paravane_guest::abi::Errno;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::{PHYSDEV_OP, PHYSDEV_OP_COMPAT};
use paravane_guest::abi::physdev::*;
use paravane_guest::paging::FrameSource;
use paravane_guest::println;

use super::Bench;
use super::calls::NOWHERE;
use super::raw::{does, nowhere, op, raw};

pub(super) fn run(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let level = |iopl| does(PHYSDEV_OP, PHYSDEVOP_SET_IOPL, PhysdevSetIopl { iopl });
    suite.equal("iopl-4", level(4), Err(Errno::EINVAL));
    for iopl in [3, 1, 0] {
        suite.equal("iopl", level(iopl), Ok(0));
    }
    static PORTS: [u8; 8192] = [0xff; 8192];
    let map = |bitmap, nr_ports| {
        does(PHYSDEV_OP, PHYSDEVOP_SET_IOBITMAP, PhysdevSetIobitmap { bitmap, nr_ports, _pad: 0 })
    };
    let ports = PORTS.as_ptr() as u64;
    suite.equal("ports-too-many", map(ports, 65537), Err(Errno::EINVAL));
    suite.equal("ports", map(ports, 65536), Ok(0));
    suite.equal("no-ports", map(0, 0), Ok(0));
    for command in [
        PHYSDEVOP_IRQ_STATUS_QUERY,
        PHYSDEVOP_SET_IOPL,
        PHYSDEVOP_SET_IOBITMAP,
        PHYSDEVOP_EOI,
        PHYSDEVOP_MAP_PIRQ,
        PHYSDEVOP_UNMAP_PIRQ,
    ] {
        suite.equal("argument-nowhere", nowhere(PHYSDEV_OP, command), Err(Errno::EFAULT));
    }
    for command in [0, 3, 32, 99] {
        suite.equal("unknown-operation", nowhere(PHYSDEV_OP, command), Err(Errno::ENOSYS));
    }
    let compat = |words: [u64; 3]| raw(PHYSDEV_OP_COMPAT, [words.as_ptr() as u64]);
    suite.equal("compat-iopl", compat([PHYSDEVOP_SET_IOPL.into(), 0, 0]), Ok(0));
    suite.equal("compat-unknown", compat([99, 1, 0]), Err(Errno::ENOSYS));
    suite.equal("compat-nowhere", raw(PHYSDEV_OP_COMPAT, [NOWHERE]), Err(Errno::EFAULT));
    if bench.privileged {
        println!("physdev: this domain has the devices; what others are refused is not asked for");
        return;
    }
    devices(bench);
}

/// Operations that only a domain with devices may make.
fn devices(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let status = |irq| op(PHYSDEV_OP, PHYSDEVOP_IRQ_STATUS_QUERY, PhysdevIrqStatusQuery { irq, flags: 0 });
    let (outcome, answer) = status(47);
    suite.equal("status", (outcome, answer.flags), (Ok(0), XENIRQSTAT_NEEDS_EOI));
    suite.equal("status-of-no-interrupt", status(48).0, Err(Errno::EINVAL));
    let compat = [PHYSDEVOP_EOI.into(), 1_u64, 0];
    suite.equal("compat-eoi", raw(PHYSDEV_OP_COMPAT, [compat.as_ptr() as u64]), Err(Errno::EINVAL));
    suite.equal("eoi", does(PHYSDEV_OP, PHYSDEVOP_EOI, PhysdevEoi { irq: 1 }), Err(Errno::EINVAL));
    for (domid, errno) in [(DOMID_SELF, Errno::EPERM), (0, Errno::EPERM), (7, Errno::ESRCH)] {
        let map = PhysdevMapPirq { domid, ..PhysdevMapPirq::default() };
        suite.equal("map-pirq", does(PHYSDEV_OP, PHYSDEVOP_MAP_PIRQ, map), Err(errno));
        let unmap = PhysdevUnmapPirq { domid, ..PhysdevUnmapPirq::default() };
        suite.equal("unmap-pirq", does(PHYSDEV_OP, PHYSDEVOP_UNMAP_PIRQ, unmap), Err(errno));
    }
    static SOMETHING: [u64; 16] = [0; 16];
    let ask = |command: u32| raw(PHYSDEV_OP, [command.into(), SOMETHING.as_ptr() as u64]);
    for command in [8, 9, 10, 11, 15, 16, 19, 20, 21, 24, 25, 26, 27, 29, 30, 31] {
        suite.equal("of-the-machine", ask(command), Err(Errno::EPERM));
    }
    suite.equal("get-free-pirq", ask(PHYSDEVOP_GET_FREE_PIRQ), Err(Errno::ENOSPC));
    suite.equal("unmask-notify", ask(PHYSDEVOP_IRQ_UNMASK_NOTIFY), Ok(0));
    let share = |gmfn| does(PHYSDEV_OP, PHYSDEVOP_PIRQ_EOI_GMFN_V2, PhysdevPirqEoiGmfn { gmfn });
    let mfn = |b: &mut Bench| b.frames.take().and_then(|pfn| b.mmu.memory().mfn(pfn)).map_or(0, |m| m.0);
    let (root, one, other) =
        (bench.mmu.memory().mfn(bench.boot.root()).map_or(0, |m| m.0), mfn(bench), mfn(bench));
    let suite = &mut bench.suite;
    suite.equal("eoi-page-of-page-tables", share(root), Err(Errno::EINVAL));
    suite.equal("eoi-page-of-no-frame", share(u64::MAX >> 12), Err(Errno::EINVAL));
    suite.equal("eoi-page", share(one), Ok(0));
    suite.equal("eoi-page-twice", share(other), Err(Errno::EBUSY));
}
