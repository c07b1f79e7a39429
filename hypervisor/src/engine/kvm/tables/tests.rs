//! What the tables map, and for whom.

use super::*;
use crate::machine::layout::OwnCode;
use crate::machine::memory::Backing;

fn walk(memory: &MachineMemory, reserved: &[u64; 16], va: u64) -> Option<(u64, bool)> {
    let index = |level: u32| va >> (12 + 9 * (level - 1)) & 511;
    let mut entry = reserved[usize::try_from(index(4) - 256).ok()?];
    let mut user = true;
    for level in (1..=3).rev() {
        if entry & pte::PRESENT == 0 {
            return None;
        }
        user &= entry & pte::USER != 0;
        if level == 1 && entry & pte::PSE != 0 {
            return Some(((entry & pte::ADDR_MASK) + (va & 0x1f_ffff), user));
        }
        entry = memory.load_u64(Maddr((entry & pte::ADDR_MASK) + index(level) * 8)).ok()?;
    }
    let present = entry & pte::PRESENT != 0;
    present.then_some(((entry & pte::ADDR_MASK) + (va & 0xfff), user && entry & pte::USER != 0))
}

#[test]
fn only_the_syscall_entry_and_the_m2p_are_the_guests_to_see() {
    for transport in [Transport::Pio, Transport::Vmcall] {
        let layout = HypervisorLayout::new(1 << 14, 0);
        let memory = MachineMemory::new(layout.hypervisor_frames(), 1 << 14, Backing::Anonymous).unwrap();
        let tables = GateTables::install(&memory, &layout, transport, Gdt::Guests).unwrap();
        let reserved = tables.reserved_l4_entries();
        let at = |va| walk(&memory, &reserved, va);
        assert_eq!(at(SYSCALL_VA), (transport == Transport::Pio).then_some((0, true)));
        for va in [TEXT_VA, DESCRIPTORS_VA, STACK_VA, WORK_VA] {
            assert!(matches!(at(va), Some((_, false))), "{va:#x}");
        }
        assert_eq!(at(WORK_VA + WORK_PAGES * PAGE_SIZE), None);
        for (n, mfn) in layout.m2p.clone().enumerate() {
            assert_eq!(at(M2P_VA + n as u64 * PAGE_SIZE), Some((mfn * PAGE_SIZE, true)));
        }
        let last = (layout.total - 1) * PAGE_SIZE + 8;
        assert_eq!(at(PHYSMAP_VA + last), Some((last, false)));
    }
}

#[test]
fn the_guests_descriptors_end_where_the_gates_begin() {
    let layout = HypervisorLayout::new(1 << 14, 0);
    let memory = MachineMemory::new(layout.hypervisor_frames(), 1 << 14, Backing::Anonymous).unwrap();
    let tables = GateTables::install(&memory, &layout, Transport::Pio, Gdt::Guests).unwrap();
    let reserved = tables.reserved_l4_entries();
    let at = |page: u64| walk(&memory, &reserved, Gdt::Guests.base(DESCRIPTORS_VA) + page * PAGE_SIZE);
    let empty = (EMPTY_FRAME * PAGE_SIZE, false);
    let descriptors = (DESCRIPTORS_FRAME * PAGE_SIZE, false);
    assert_eq!((at(0), at(13), at(14)), (Some(empty), Some(empty), Some(descriptors)));
    let mut frames = [None; GDT_FRAMES];
    frames[1] = Some(Mfn(layout.total - 1));
    tables.map_gdt(&memory, &frames).unwrap();
    let own = ((layout.total - 1) * PAGE_SIZE, false);
    assert_eq!((at(0), at(1), at(2)), (Some(empty), Some(own), Some(empty)), "and nobody reads it at CPL 3");
    tables.map_gdt(&memory, &[None; GDT_FRAMES]).unwrap();
    assert_eq!(at(1), Some(empty));
    assert_eq!(Gdt::Gates.base(DESCRIPTORS_VA), DESCRIPTORS_VA);
    assert!(u64::from(Gdt::Guests.limit()) < 15 * PAGE_SIZE);
}

#[test]
fn each_virtual_cpu_has_a_gate_of_its_own() {
    const LAST: u32 = 63;
    let layout = HypervisorLayout::with_vcpus(1 << 14, 0, OwnCode::NONE, LAST + 1);
    let memory = MachineMemory::new(layout.hypervisor_frames(), 1 << 14, Backing::Anonymous).unwrap();
    for transport in [Transport::Pio, Transport::Vmcall] {
        let first = GateTables::install(&memory, &layout, transport, Gdt::Guests).unwrap();
        let mut own = Vec::new();
        let mut gates = vec![first.clone()];
        for id in 1..=LAST {
            gates.push(first.another((&memory, &layout), id, transport, Gdt::Guests).unwrap());
        }
        let reserved = first.reserved_l4_entries();
        for gate in &gates {
            let at = |va| walk(&memory, &reserved, gate.va(va));
            assert_eq!(at(TEXT_VA), Some((TEXT_FRAME * PAGE_SIZE, false)));
            for (va, maddr) in [
                (DESCRIPTORS_VA, gate.own_frame(DESCRIPTORS_FRAME)),
                (STACK_VA, gate.scratch()),
                (WORK_VA, gate.work()),
                (WORK_VA + PAGE_SIZE, Maddr(gate.work().0 + PAGE_SIZE)),
            ] {
                assert_eq!(at(va), Some((maddr.0, false)), "{va:#x}");
                assert!(layout.engine.contains(&maddr.mfn().0));
                own.push(maddr);
            }
            own.push(Mfn(gate.l1).maddr());
            assert_eq!(gate.va(SYSCALL_VA) == SYSCALL_VA, gate.distance == 0);
            let seen = at(SYSCALL_VA).is_some_and(|(_, user)| user);
            assert_eq!(seen, transport == Transport::Pio && gate.distance == 0);
            let rsp0: u64 =
                memory.read_obj(Maddr(gate.own_frame(DESCRIPTORS_FRAME).0 + TSS_OFFSET + tss::RSP0)).unwrap();
            assert_eq!(rsp0, gate.va(STACK_TOP_VA));
        }
        let count = own.len();
        own.sort();
        own.dedup();
        assert_eq!(own.len(), count, "nothing is shared");
        // The machine-to-physical table's page tables are not among them.
        for (n, mfn) in layout.m2p.clone().enumerate() {
            assert_eq!(
                walk(&memory, &reserved, M2P_VA + n as u64 * PAGE_SIZE),
                Some((mfn * PAGE_SIZE, true))
            );
        }
    }
}

fn open_ports(transport: Transport) -> Vec<u64> {
    let layout = HypervisorLayout::new(64, 0);
    let memory = MachineMemory::new(layout.hypervisor_frames(), 64, Backing::Anonymous).unwrap();
    GateTables::install(&memory, &layout, transport, Gdt::Guests).unwrap();
    let tss = DESCRIPTORS_FRAME * PAGE_SIZE + TSS_OFFSET;
    let base: u16 = memory.read_obj(Maddr(tss + tss::IO_BITMAP)).unwrap();
    (0..0x10000u64)
        .filter(|port| {
            let offset = u64::from(base) + port / 8;
            offset < u64::from(TSS_LIMIT)
                && memory.read_obj::<u8>(Maddr(tss + offset)).unwrap() >> (port % 8) & 1 == 0
        })
        .collect()
}

#[test]
fn the_io_bitmap_opens_the_port_that_the_transport_needs() {
    assert_eq!(open_ports(Transport::Pio), [u64::from(gate::EXIT_PORT)]);
    assert_eq!(open_ports(Transport::Vmcall), Vec::<u64>::new());
}

/// From 511 GiB on the table that maps the machine-to-physical table ran into the next frame.
#[test]
fn what_the_tables_cannot_map_is_refused() {
    let pv = |gib: u64| HypervisorLayout::new(gib << 18, 0);
    let bare = |gib: u64| HypervisorLayout::new(gib << 18, 512 + (gib << 12));
    assert!(can_map(&pv(500)) && !can_map(&pv(512)) && !can_map(&pv(1 << 14)));
    for layout in [pv, bare] {
        let largest = largest_guest_gib(&layout(1 << 14));
        assert!((480..512).contains(&largest), "{largest}");
        assert!(can_map(&layout(largest)) && !can_map(&layout(largest + 1)));
        // In every layout that passes, each table is used up to its end at most.
        assert!(layout(largest).m2p.end - layout(largest).m2p.start <= 512 * 512);
    }
}

#[test]
fn a_syscall_is_on_its_way_until_the_instruction_that_leaves() {
    assert_eq!(syscall_range(Transport::Pio), SYSCALL_VA..SYSCALL_VA + 2);
    let vmcall = syscall_range(Transport::Vmcall);
    let inside = TEXT_VA..TEXT_VA + gate::supervisor_text().len() as u64;
    assert!(inside.contains(&vmcall.start) && inside.contains(&vmcall.end), "{vmcall:x?}");
}
