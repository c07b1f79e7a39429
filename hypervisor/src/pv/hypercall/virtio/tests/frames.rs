//! A device's memory against everything else that a frame can be, in every order.

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::memory::{
    XENMEM_DECREASE_RESERVATION, XENMEM_EXCHANGE, XenMemoryExchange, XenMemoryReservation,
};
use paravane_abi::mmu::{MMUEXT_UNPIN_TABLE, MmuUpdate};

use super::*;
use crate::machine::memory::Mfn;
use crate::pv::hypercall::Outcome;
use crate::testing::pv::{L2, RW, SCRATCH};

const OUT: u64 = BUFFER + 6;

fn one(at: u64) -> XenMemoryReservation {
    XenMemoryReservation { extent_start: at, nr_extents: 1, domid: DOMID_SELF, ..Default::default() }
}

/// Takes the mapping of the buffer away: nobody but a device holds it then.
fn unmap(m: &mut Machine) {
    m.t.unmap(BUFFER);
    m.t.poke(LISTS, 0, m.t.mfn(BUFFER));
}

fn give_back(m: &mut Machine) -> u64 {
    m.t.op(nr::MEMORY_OP, XENMEM_DECREASE_RESERVATION, one(va(LISTS))).unwrap().0
}

fn exchange(m: &mut Machine) -> (Result<u64, Errno>, u64) {
    m.t.poke(OUT, 0, 50);
    let argument = XenMemoryExchange { in_: one(va(LISTS)), out: one(va(OUT)), nr_exchanged: 0 };
    m.t.write_at(va(OUT) + 0x800, &argument).unwrap();
    let result = m.t.call(nr::MEMORY_OP, [XENMEM_EXCHANGE.into(), va(OUT) + 0x800]);
    let after: XenMemoryExchange = m.t.read_at(va(OUT) + 0x800).unwrap();
    (result, after.nr_exchanged)
}

fn pin(m: &mut Machine, cmd: u32) -> Result<u64, Errno> {
    let pin = MmuextOp { cmd, arg1: m.t.mfn(BUFFER), ..Default::default() };
    m.t.write_at(va(OUT), &pin).unwrap();
    m.t.call(nr::MMUEXT_OP, [va(OUT), 1, 0, DOMID_SELF.into()])
}

#[test]
fn what_a_device_holds_is_not_given_away_and_becomes_nothing_else() {
    let mut m = machine();
    m.activated();
    unmap(&mut m);
    assert_eq!(give_back(&mut m), 0);
    let (result, exchanged) = exchange(&mut m);
    assert!(result.is_err() && exchanged == 0);
    assert_eq!(pin(&mut m, MMUEXT_PIN_L1_TABLE), Err(Errno::EINVAL));
    m.t.poke(OUT, 0, m.t.mfn(BUFFER));
    assert!(m.t.call(nr::SET_GDT, [va(OUT), 16]).is_err(), "no descriptor table");
    m.reset();
    m.t.poke(LISTS, 0, m.t.mfn(BUFFER));
    assert_eq!(exchange(&mut m), (Ok(0), 1), "it is free again");
}

#[test]
fn what_was_given_away_or_is_a_table_cannot_be_a_devices() {
    let mut m = machine();
    unmap(&mut m);
    assert_eq!(pin(&mut m, MMUEXT_PIN_L1_TABLE), Ok(0));
    let request = m.request();
    assert_eq!(m.activate(request).map(drop), Err(Errno::EPERM), "a table");
    assert_eq!(pin(&mut m, MMUEXT_UNPIN_TABLE), Ok(0));
    m.activate(request).unwrap();
    m.reset();
    m.t.poke(LISTS, 0, m.t.mfn(BUFFER));
    assert_eq!(give_back(&mut m), 1);
    assert_eq!(m.activate(request).map(drop), Err(Errno::EPERM), "not the domain's");
    assert_eq!(m.entry(0).status, 0);
}

/// Each activation holds for itself.
#[test]
fn a_frame_of_two_devices_is_held_until_both_have_let_go() {
    let mut m = machine();
    unmap(&mut m);
    let (a, q, r) = m.request();
    m.activate((a, q, r)).unwrap();
    m.activate((VirtioActivate { device: 1, ..a }, q, r)).unwrap();
    m.t.poke(LISTS, 0, m.t.mfn(BUFFER));
    m.reset_device(0);
    assert_eq!(give_back(&mut m), 0);
    m.reset_device(1);
    assert_eq!(give_back(&mut m), 1);
}

/// A frame twice in one activation, which harms nobody.
#[test]
fn a_frame_under_two_addresses() {
    let mut m = machine();
    let (mut a, q, mut r) = m.request();
    r[1].mfn = r[0].mfn;
    m.activate((a, q, r)).unwrap();
    m.reset();
    // Of regions in a row that are refused in the middle nothing stays held.
    let mut many = [r[0]; 64];
    for (n, region) in (0..).zip(&mut many) {
        region.address = AT + n * 0x1000;
    }
    many[63].mfn = m.t.mfn(L1);
    m.t.write_at(va(LISTS), &q).unwrap();
    m.t.write_at(va(LISTS) + 0x100, &many).unwrap();
    a.region_count = 64;
    assert_eq!(m.virtio(VIRTIOP_ACTIVATE, a).map(drop), Err(Errno::EPERM));
    assert!(m.is_clean());
}

/// A frame that another vCPU may still walk as a table is given to no device: the activation waits, and holds nothing,
/// not even the frames that come before it.
#[test]
fn an_activation_waits_for_what_was_a_table() {
    let mut m = machine();
    let link = |m: &mut Machine, entry: u64| {
        let ptr = Mfn(m.t.mfn(L2)).maddr().0 + 100 * 8;
        m.t.write_at(va(SCRATCH), &MmuUpdate { ptr, val: entry }).unwrap();
        m.t.call(nr::MMU_UPDATE, [va(SCRATCH), 1, 0, DOMID_SELF.into()]).unwrap();
    };
    let (read_only, table) = (m.t.entry(BUFFER, RO), m.t.entry(BUFFER, RW));
    m.t.map(BUFFER, read_only).unwrap();
    link(&mut m, table);
    m.t.share();
    link(&mut m, 0);
    let (activate, queue, regions) = m.request();
    m.t.write_at(va(LISTS), &queue).unwrap();
    m.t.write_at(va(LISTS) + 0x100, &regions).unwrap();
    m.t.write_at(va(SCRATCH), &activate).unwrap();
    let args = [VIRTIOP_ACTIVATE.into(), va(SCRATCH), 0, 0, 0, 0];
    let held = |m: &Machine| [RING, BUFFER].map(|pfn| m.t.mmu.frame(Mfn(m.t.mfn(pfn))).unwrap().type_refs());
    let before = held(&m);
    assert_eq!(m.t.dispatch(nr::PARAVANE_VIRTIO_OP, args), Ok(Outcome::Again(args)));
    assert!(m.t.log.take_wanted().is_some());
    assert_eq!((held(&m), m.is_clean()), (before, true));
    m.t.everyone_catches_up();
    assert_eq!(m.t.call(nr::PARAVANE_VIRTIO_OP, args), Ok(0));
    assert_eq!(held(&m), before.map(|references| references + 1));
}
