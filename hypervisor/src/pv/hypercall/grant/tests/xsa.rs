//! Holes that Xen's grant tables once had, by advisory, as a domain would try them on itself.
//!
//! Facts: the advisories' titles and texts (xenbits.xen.org/xsa).

use super::*;

/// XSA-134: a swap before there was a table followed pointers to nothing.
#[test]
fn xsa_134_swapping_what_is_not_there() {
    let mut t = TestDomain::new();
    for (ref_a, ref_b, status) in [
        (8, 9, GNTST_OKAY),
        (512, 8, GNTST_BAD_GNTREF),
        (8, 512, GNTST_BAD_GNTREF),
        (u32::MAX, u32::MAX, GNTST_BAD_GNTREF),
    ] {
        let op = GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() };
        assert_eq!(t.grant(GNTTABOP_SWAP_GRANT_REF, op).unwrap().status, status);
    }
}

/// XSA-214: a frame that had held descriptors, or tables, was taken for one of them still after its transfer.
#[test]
fn xsa_214_a_frame_that_was_transferred_is_validated_again() {
    let mut t = TestDomain::new();
    for pfn in 0..=L1 {
        let op = GnttabTransfer { mfn: t.mfn(pfn), domid: DOMID, r#ref: REF, ..Default::default() };
        assert_eq!(t.grant(GNTTABOP_TRANSFER, op).unwrap().status, GNTST_BAD_PAGE, "in use");
    }
    t.unmap(PAGE);
    t.set_gdt(&[PAGE], 512);
    t.call(nr::SET_GDT, [NOWHERE, 0]).unwrap();
    t.grow_table();
    let accept = GrantEntryV1 { flags: GTF_ACCEPT_TRANSFER, domid: DOMID, frame: 0 };
    t.memory.write_obj(t.entry_maddr(REF), &accept).unwrap();
    let op = GnttabTransfer { mfn: t.mfn(PAGE), domid: DOMID, r#ref: REF, ..Default::default() };
    assert_eq!(t.grant(GNTTABOP_TRANSFER, op).unwrap().status, GNTST_OKAY);
    let task_state = 0x0000_8900_0000_0000;
    t.poke(PAGE, 3, task_state);
    t.poke(SCRATCH, 0, t.mfn(PAGE));
    assert_eq!(t.call(nr::SET_GDT, [va(SCRATCH), 512]), Err(Errno::EINVAL));
}

/// XSA-218: the same handle, unmapped twice, dropped the frame twice.
#[test]
fn xsa_218_a_handle_ends_once() {
    let mut t = TestDomain::new();
    t.unmap(WINDOW);
    let before = t.counts();
    t.offer(REF, PAGE, 0);
    let handle = t.mapped(HOST);
    let twice = [GnttabUnmapGrantRef { host_addr: va(WINDOW), handle, ..Default::default() }; 2];
    t.write_at(va(SCRATCH), &twice).unwrap();
    assert_eq!(t.call(nr::GRANT_TABLE_OP, [GNTTABOP_UNMAP_GRANT_REF.into(), va(SCRATCH), 2]), Ok(0));
    let after: [GnttabUnmapGrantRef; 2] = t.read_at(va(SCRATCH)).unwrap();
    assert_eq!(after.map(|op| op.status), [GNTST_OKAY, GNTST_BAD_HANDLE]);
    assert_eq!(t.counts(), before);
}

/// XSA-224: mapped for devices and processors, and unmapped by halves, references were lost.
#[test]
fn xsa_224_each_half_of_a_mapping_is_counted() {
    for flags in [GNTMAP_DEVICE_MAP, GNTMAP_DEVICE_MAP | GNTMAP_READONLY] {
        let mut t = TestDomain::new();
        t.unmap(WINDOW);
        let before = t.counts();
        t.offer(REF, PAGE, 0);
        let op = t.map_at(va(WINDOW), REF, flags | GNTMAP_HOST_MAP);
        let unmap = |host_addr, dev_bus_addr| GnttabUnmapGrantRef {
            host_addr,
            dev_bus_addr,
            handle: op.handle,
            ..Default::default()
        };
        let status = |t: &mut TestDomain, op: GnttabUnmapGrantRef| {
            t.grant(GNTTABOP_UNMAP_GRANT_REF, op).unwrap().status
        };
        assert_eq!(status(&mut t, unmap(0, 0)), GNTST_OKAY, "neither half");
        assert_eq!(status(&mut t, unmap(0, op.dev_bus_addr + 1)), GNTST_BAD_DEV_ADDR);
        assert_eq!(status(&mut t, unmap(va(WINDOW), 0)), GNTST_OKAY);
        assert_ne!(t.counts(), before, "the devices' half");
        assert_ne!(t.flags(REF) & GTF_READING, 0);
        assert_eq!(status(&mut t, unmap(va(WINDOW), op.dev_bus_addr)), GNTST_OKAY);
        assert_eq!((t.counts(), t.flags(REF)), (before, GTF_PERMIT_ACCESS));
    }
}

/// XSA-227: an entry's address that was not aligned had two entries overwritten in part.
#[test]
fn xsa_227_addresses_of_entries_are_aligned() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    let table = t.mfn(L1);
    let content = (0..512).map(|n| t.peek(L1, n)).collect::<Vec<_>>();
    for off in 1..8 {
        let op = t.map_at(Mfn(table).maddr().0 + 8 * 30 + off, REF, HOST | GNTMAP_CONTAINS_PTE);
        assert_eq!(op.status, GNTST_GENERAL_ERROR);
    }
    assert_eq!((0..512).map(|n| t.peek(L1, n)).collect::<Vec<_>>(), content);
}

/// XSA-234: what was unmapped was not compared with what had been mapped.
#[test]
fn xsa_234_only_the_mapping_itself_is_unmapped() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    let handle = t.mapped(HOST_RO);
    let before = t.counts();
    assert_eq!(t.unmap_from(va(OTHER), handle), GNTST_GENERAL_ERROR, "another frame");
    assert_eq!(t.unmap_from(va(PAGE), handle), GNTST_GENERAL_ERROR, "that frame, with more rights");
    assert_eq!(t.unmap_from(NOWHERE, handle), GNTST_GENERAL_ERROR);
    assert_eq!(t.counts(), before);
    assert_eq!(t.unmap_from(va(WINDOW), handle), GNTST_OKAY);
}

/// XSA-316: a mapping that failed was answered as if it had not.
#[test]
fn xsa_316_a_failure_has_a_status() {
    let mut t = TestDomain::new();
    t.offer(REF, PAGE, 0);
    let before = t.counts();
    let op = t.map_at(NOWHERE, REF, HOST | GNTMAP_DEVICE_MAP);
    assert_eq!((op.status, op.handle), (GNTST_GENERAL_ERROR, 0));
    assert_eq!((t.counts(), t.flags(REF)), (before, GTF_PERMIT_ACCESS));
    assert_eq!(t.unmap_from(va(WINDOW), 0), GNTST_BAD_HANDLE);
}

/// XSA-318 and XSA-380: long lists go on where they were, and are interrupted.
#[test]
fn xsa_318_a_long_list_is_done_in_parts_that_add_up() {
    let mut t = TestDomain::new();
    let per_entry = crate::pv::hypercall::PREEMPT_AFTER / ELEMENT;
    let count = 3 * per_entry;
    let swap = GnttabSwapGrantRef { ref_a: 600, ref_b: 600, ..Default::default() };
    for n in 0..count {
        t.write_at(va(FREE) + n * 12, &swap).unwrap();
    }
    let args = [GNTTABOP_SWAP_GRANT_REF.into(), va(FREE), count, 0, 0, 0];
    let outcome = t.dispatch(nr::GRANT_TABLE_OP, args);
    let at = va(FREE) + per_entry * 12;
    assert_eq!(outcome, Ok(Outcome::Again([GNTTABOP_SWAP_GRANT_REF.into(), at, count - per_entry, 0, 0, 0])));
    assert_eq!(t.call(nr::GRANT_TABLE_OP, [GNTTABOP_SWAP_GRANT_REF.into(), va(FREE), count]), Ok(0));
    for n in 0..count {
        let op: GnttabSwapGrantRef = t.read_at(va(FREE) + n * 12).unwrap();
        assert_eq!(op.status, GNTST_BAD_GNTREF);
    }
}

/// The like of what XENMEM_populate_physmap was found to do: a handle that could not be told, because its element of
/// the list runs into a page that cannot be written, was lost, and with it the references of the mapping.
#[test]
fn a_mapping_whose_handle_cannot_be_told_is_not_made() {
    let mut t = TestDomain::new();
    t.unmap(WINDOW);
    t.offer(REF, PAGE, 0);
    let read_only = t.entry(FREE + 1, RO);
    t.map(FREE + 1, read_only).unwrap();
    let before = t.counts();
    for crossing in 1..size_of::<GnttabMapGrantRef>() as u64 {
        let op = GnttabMapGrantRef {
            host_addr: va(WINDOW),
            flags: HOST,
            r#ref: REF,
            dom: DOMID,
            ..Default::default()
        };
        let at = va(FREE + 1) - crossing;
        // What is in the page already cannot be set from here: by its frame.
        let bytes = op.as_bytes();
        let (first, rest) = bytes.split_at(crossing as usize);
        t.guest().write_bytes(at, first).unwrap();
        let second = Mfn(t.mfn(FREE + 1)).maddr();
        t.memory.write(second, rest).unwrap();
        let outcome = t.call(nr::GRANT_TABLE_OP, [GNTTABOP_MAP_GRANT_REF.into(), at, 1]);
        assert_eq!(outcome, Err(Errno::EFAULT), "{crossing}");
        assert_eq!((t.counts(), t.flags(REF)), (before.clone(), GTF_PERMIT_ACCESS), "{crossing}");
    }
}
