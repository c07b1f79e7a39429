//! Calls that come before every vCPU has dropped what a frame was: each is issued again, changes nothing, and ends as
//! it should once they have (decision 26). Here every call is listed by which a frame changes its type or leaves the
//! guest.

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::errno::Errno;
use paravane_abi::grant::*;
use paravane_abi::hypercall as nr;
use paravane_abi::memory::*;
use paravane_abi::mmu::*;
use paravane_abi::physdev::{PHYSDEVOP_PIRQ_EOI_GMFN_V2, PhysdevPirqEoiGmfn};
use paravane_abi::vcpu::{VCPUOP_REGISTER_VCPU_INFO, VcpuRegisterVcpuInfo};
use zerocopy::{Immutable, IntoBytes};

use crate::machine::memory::Mfn;
use crate::pv::domain::DOMID;
use crate::pv::hypercall::Outcome;
use crate::testing::pv::{FRAMES, L1, L2, RO, RW, SCRATCH, TestDomain, va};

/// A page that was linked as an L1 table a moment ago, and is mapped read-only.
const TABLE: u64 = 20;
/// One that was writable, and is mapped read-only.
const WRITABLE: u64 = 21;
/// One that was writable, and is mapped nowhere.
const NOWHERE: u64 = 22;
/// Pages with what calls point to.
const LIST: u64 = 30;
/// The grant of `TABLE`.
const REF: u32 = 8;

const SELF: u64 = DOMID_SELF as u64;

fn ext(t: &TestDomain, cmd: u32, mfn: u64) -> [u64; 6] {
    argument(t, &MmuextOp { cmd, arg1: mfn, ..Default::default() });
    [va(SCRATCH), 1, 0, SELF, 0, 0]
}

fn argument<T: IntoBytes + Immutable>(t: &TestDomain, argument: &T) {
    t.write_at(va(SCRATCH), argument).unwrap();
}

/// An entry of a table is to be this.
fn update(t: &TestDomain, table: u64, slot: u64, value: u64) -> [u64; 6] {
    argument(t, &MmuUpdate { ptr: Mfn(t.mfn(table)).maddr().0 + slot * 8, val: value });
    [va(SCRATCH), 1, 0, SELF, 0, 0]
}

/// A domain of several vCPUs in which something else has just been made of the three pages.
fn domain() -> TestDomain {
    let mut t = TestDomain::new();
    t.call(nr::GRANT_TABLE_OP, [GNTTABOP_QUERY_SIZE.into(), va(LIST), 0]).unwrap_err();
    let grant = GrantEntryV1 { flags: GTF_PERMIT_ACCESS, domid: DOMID, frame: t.mfn(TABLE) as u32 };
    let accept = GrantEntryV1 { flags: GTF_ACCEPT_TRANSFER, domid: DOMID, frame: 0 };
    let table = Mfn(t.facts.grants.start).maddr().0;
    for (r, entry) in [(REF, grant), (REF + 1, accept)] {
        t.memory.write_obj(crate::machine::memory::Maddr(table + u64::from(r) * 8), &entry).unwrap();
    }
    for pfn in [TABLE, 40] {
        let read_only = t.entry(pfn, RO);
        t.map(pfn, read_only).unwrap();
    }
    let link = update(&t, L2, 101, t.entry(TABLE, RW));
    t.call(nr::MMU_UPDATE, link).unwrap();
    t.share();
    let unlink = update(&t, L2, 101, 0);
    t.call(nr::MMU_UPDATE, unlink).unwrap();
    let read_only = t.entry(WRITABLE, RO);
    t.map(WRITABLE, read_only).unwrap();
    t.unmap(NOWHERE);
    t
}

/// Owner, type and counts of every frame, and how many are free.
fn state(t: &TestDomain) -> (Vec<String>, u64) {
    let frames = (0..FRAMES).map(|pfn| {
        let frame = t.mmu.frame(Mfn(t.mfn(pfn))).unwrap();
        format!("{pfn}: {:?} {:?} {} {}", frame.owner(), frame.kind(), frame.refs(), frame.type_refs())
    });
    (frames.collect(), t.free_frames.len())
}

/// The call that `prepare` describes waits, and then ends with `result`.
fn waits(
    number: u64,
    result: Result<u64, Errno>,
    prepare: impl Fn(&mut TestDomain) -> [u64; 6],
) -> TestDomain {
    let mut t = domain();
    let mut args = prepare(&mut t);
    let before = state(&t);
    for issue in 0..3 {
        match t.dispatch(number, args) {
            Ok(Outcome::Again(rest)) => args = rest,
            other => panic!("hypercall {number} does not wait, issue {issue}: {other:?}"),
        }
        assert!(t.log.take_wanted().is_some(), "hypercall {number}: who is to be current?");
        assert_eq!(state(&t), before, "hypercall {number}");
    }
    t.everyone_catches_up();
    assert_eq!(t.call(number, args), result, "hypercall {number}");
    assert_ne!(state(&t), before, "hypercall {number} did something");
    t
}

#[test]
fn a_former_table_is_not_written_before_all_have_dropped_it() {
    waits(nr::UPDATE_VA_MAPPING, Ok(0), |t| [va(TABLE), t.entry(TABLE, RW), 0, 0, 0, 0]);
    waits(nr::MMU_UPDATE, Ok(0), |t| update(t, L1, TABLE, t.entry(TABLE, RW)));
    waits(nr::MMU_UPDATE, Ok(0), |t| update(t, TABLE, 0, 7));
    waits(nr::MMUEXT_OP, Ok(0), |t| ext(t, MMUEXT_CLEAR_PAGE, t.mfn(TABLE)));
    waits(nr::UPDATE_DESCRIPTOR, Ok(0), |t| [Mfn(t.mfn(TABLE)).maddr().0, 0, 0, 0, 0, 0]);
    waits(nr::VCPU_OP, Ok(0), |t| {
        argument(t, &VcpuRegisterVcpuInfo { mfn: t.mfn(TABLE), offset: 0, ..Default::default() });
        [VCPUOP_REGISTER_VCPU_INFO.into(), 0, va(SCRATCH), 0, 0, 0]
    });
    waits(nr::PHYSDEV_OP, Ok(0), |t| {
        argument(t, &PhysdevPirqEoiGmfn { gmfn: t.mfn(TABLE) });
        [PHYSDEVOP_PIRQ_EOI_GMFN_V2.into(), va(SCRATCH), 0, 0, 0, 0]
    });
}

#[test]
fn nor_is_it_mapped_or_copied_to_by_a_grant() {
    let map = |flags| {
        waits(nr::GRANT_TABLE_OP, Ok(0), move |t| {
            let op =
                GnttabMapGrantRef { host_addr: va(40), flags, r#ref: REF, dom: DOMID, ..Default::default() };
            argument(t, &op);
            [GNTTABOP_MAP_GRANT_REF.into(), va(SCRATCH), 1, 0, 0, 0]
        })
    };
    for flags in [GNTMAP_HOST_MAP, GNTMAP_DEVICE_MAP, GNTMAP_HOST_MAP | GNTMAP_DEVICE_MAP] {
        let t = map(flags);
        assert_eq!(t.read_at::<GnttabMapGrantRef>(va(SCRATCH)).unwrap().status, GNTST_OKAY);
    }
    let t = waits(nr::GRANT_TABLE_OP, Ok(0), |t| {
        let side = |u, domid| GnttabCopyPtr { u, domid, ..Default::default() };
        let (source, dest) = (side(t.mfn(LIST), DOMID_SELF), side(REF.into(), DOMID));
        argument(t, &GnttabCopy { source, dest, len: 8, flags: GNTCOPY_DEST_GREF, ..Default::default() });
        [GNTTABOP_COPY.into(), va(SCRATCH), 1, 0, 0, 0]
    });
    assert_eq!(t.read_at::<GnttabCopy>(va(SCRATCH)).unwrap().status, GNTST_OKAY);
}

#[test]
fn a_frame_becomes_a_table_only_when_nobody_can_write_to_it() {
    for cmd in [MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_NEW_USER_BASEPTR] {
        waits(nr::MMUEXT_OP, Ok(0), |t| ext(t, cmd, t.mfn(WRITABLE)));
    }
    waits(nr::MMU_UPDATE, Ok(0), |t| update(t, L2, 100, t.entry(WRITABLE, RW)));
    waits(nr::SET_GDT, Ok(0), |t| {
        t.poke(SCRATCH, 0, t.mfn(WRITABLE));
        [va(SCRATCH), 512, 0, 0, 0, 0]
    });
}

#[test]
fn a_frame_leaves_only_when_nobody_can_use_it() {
    let list = |t: &TestDomain, page: u64, number: u64| {
        t.poke(page, 0, number);
        XenMemoryReservation {
            extent_start: va(page),
            nr_extents: 1,
            domid: DOMID_SELF,
            ..Default::default()
        }
    };
    waits(nr::MEMORY_OP, Ok(1), |t| {
        argument(t, &list(t, LIST, t.mfn(NOWHERE)));
        [XENMEM_DECREASE_RESERVATION.into(), va(SCRATCH), 0, 0, 0, 0]
    });
    let t = waits(nr::GRANT_TABLE_OP, Ok(0), |t| {
        argument(t, &GnttabTransfer { mfn: t.mfn(NOWHERE), domid: DOMID, r#ref: 99, ..Default::default() });
        [GNTTABOP_TRANSFER.into(), va(SCRATCH), 1, 0, 0, 0]
    });
    assert_eq!(t.free_frames.len(), 1, "what nobody accepts is free");
    // The frame comes back as another page, so that only the list tells of it.
    let mut t = domain();
    let (in_, out) = (list(&t, LIST, t.mfn(NOWHERE)), list(&t, LIST + 1, 77));
    argument(&t, &XenMemoryExchange { in_, out, nr_exchanged: 0 });
    let args = [XENMEM_EXCHANGE.into(), va(SCRATCH), 0, 0, 0, 0];
    let before = state(&t);
    assert!(matches!(t.dispatch(nr::MEMORY_OP, args), Ok(Outcome::Again(_))));
    assert!(t.log.take_wanted().is_some());
    assert_eq!((state(&t), t.m2p(t.mfn(NOWHERE))), (before, NOWHERE));
    t.everyone_catches_up();
    assert_eq!(t.call(nr::MEMORY_OP, args), Ok(0));
    assert_eq!((t.peek(LIST + 1, 0), t.m2p(t.mfn(NOWHERE))), (t.mfn(NOWHERE), 77));
}

/// A hypercall that asks for a flush of other vCPUs has them current before it returns.
#[test]
fn flushes_of_others_are_wanted_and_those_of_oneself_are_not() {
    let wanted = |number, prepare: &dyn Fn(&TestDomain) -> [u64; 6]| {
        let mut t = domain();
        t.everyone_catches_up();
        let protect = [va(25), t.entry(25, RO), 0, 0, 0, 0];
        t.call(nr::UPDATE_VA_MAPPING, protect).unwrap();
        assert_eq!(t.log.take_wanted(), None, "nobody has asked");
        let args = prepare(&t);
        t.call(number, args).unwrap();
        t.log.take_wanted().is_some()
    };
    for (cmd, all) in [
        (MMUEXT_TLB_FLUSH_LOCAL, false),
        (MMUEXT_TLB_FLUSH_ALL, true),
        (MMUEXT_TLB_FLUSH_MULTI, true),
        (MMUEXT_INVLPG_LOCAL, false),
        (MMUEXT_INVLPG_ALL, true),
        (MMUEXT_INVLPG_MULTI, true),
    ] {
        assert_eq!(wanted(nr::MMUEXT_OP, &|t| ext(t, cmd, va(25))), all, "{cmd}");
    }
    for (flags, all) in [
        (UVMF_NONE, false),
        (UVMF_ALL, false),
        (UVMF_INVLPG, false),
        (UVMF_TLB_FLUSH, false),
        (UVMF_INVLPG | UVMF_ALL, true),
        (UVMF_TLB_FLUSH | UVMF_ALL, true),
        (UVMF_INVLPG | va(LIST), true),
    ] {
        let entry = |t: &TestDomain| [va(26), t.entry(26, RO), flags, 0, 0, 0];
        assert_eq!(wanted(nr::UPDATE_VA_MAPPING, &entry), all, "{flags:#x}");
    }
}
