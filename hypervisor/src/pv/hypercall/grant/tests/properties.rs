//! A hostile guest: whatever it asks, references are exactly what entries and mappings amount to.

use proptest::prelude::*;

use super::*;

/// One call of a hostile guest, in small numbers.
#[derive(Clone, Copy, Debug)]
enum Act {
    Map(u32, u64, u32),
    Unmap(u32, u64, bool),
    Replace(u32, u64, u64),
    Copy(u32, u32, u16),
    Swap(u32, u32),
    Transfer(u64, u32),
    Entry(u32, u64, u16),
    Store(u64, u64, bool),
}

fn act() -> impl Strategy<Value = Act> {
    let (r, page, handle) = (8u32..12, 16u64..24, 0u32..6);
    prop_oneof![
        6 => (r.clone(), page.clone(), 0u32..16).prop_map(|(r, p, f)| Act::Map(r, p, f)),
        5 => (handle.clone(), page.clone(), any::<bool>()).prop_map(|(h, p, d)| Act::Unmap(h, p, d)),
        2 => (handle, page.clone(), page.clone()).prop_map(|(h, p, n)| Act::Replace(h, p, n)),
        2 => (r.clone(), r.clone(), any::<u16>()).prop_map(|(a, b, n)| Act::Copy(a, b, n)),
        1 => (r.clone(), r.clone()).prop_map(|(a, b)| Act::Swap(a, b)),
        1 => (page.clone(), r.clone()).prop_map(|(p, r)| Act::Transfer(p, r)),
        4 => (r, page.clone(), 0u16..16).prop_map(|(r, p, f)| Act::Entry(r, p, f)),
        3 => (page.clone(), page, any::<bool>()).prop_map(|(a, b, w)| Act::Store(a, b, w)),
    ]
}

fn perform(t: &mut TestDomain, act: Act) {
    let device = |d: bool, t: &TestDomain, p: u64| if d { Mfn(t.mfn(p)).maddr().0 } else { 0 };
    match act {
        Act::Map(r, p, flags) => drop(t.map_at(va(p), r, flags)),
        Act::Unmap(handle, p, d) => {
            let op = GnttabUnmapGrantRef {
                host_addr: va(p),
                dev_bus_addr: device(d, t, p),
                handle,
                ..Default::default()
            };
            t.grant(GNTTABOP_UNMAP_GRANT_REF, op).unwrap();
        }
        Act::Replace(handle, p, n) => {
            let op =
                GnttabUnmapAndReplace { host_addr: va(p), new_addr: va(n), handle, ..Default::default() };
            t.grant(GNTTABOP_UNMAP_AND_REPLACE, op).unwrap();
        }
        Act::Copy(a, b, len) => {
            let side = |u: u32| GnttabCopyPtr { u: u.into(), domid: DOMID, ..Default::default() };
            let op = GnttabCopy {
                source: side(a),
                dest: side(b),
                len: len % 4100,
                flags: 3,
                ..Default::default()
            };
            t.grant(GNTTABOP_COPY, op).unwrap();
        }
        Act::Swap(ref_a, ref_b) => {
            t.grant(GNTTABOP_SWAP_GRANT_REF, GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() })
                .unwrap();
        }
        Act::Transfer(p, r) => {
            let op = GnttabTransfer { mfn: t.mfn(p), domid: DOMID, r#ref: r, ..Default::default() };
            t.grant(GNTTABOP_TRANSFER, op).unwrap();
        }
        Act::Entry(r, p, flags) => {
            let entry = GrantEntryV1 { flags, domid: DOMID, frame: t.mfn(p) as u32 };
            t.memory.write_obj(t.entry_maddr(r), &entry).unwrap();
        }
        Act::Store(at, p, writable) => {
            let entry = t.entry(p, if writable { RW } else { RW & !pte::RW });
            // Refused while the frame is not the guest's.
            let _ = t.map(at, entry);
        }
    }
}

proptest! {
    /// Whatever is asked for, every reference to a frame has an entry or a device's mapping behind it.
    #[test]
    fn every_reference_is_accounted_for(acts in prop::collection::vec(act(), 1..60)) {
        let mut t = TestDomain::new();
        let baseline = t.counts();
        let entries: Vec<u64> = (0..FRAMES).map(|pfn| t.leaf(pfn)).collect();
        for act in acts {
            perform(&mut t, act);
        }
        let mut expected = baseline;
        let base = t.mfn(0);
        let mut count = |entry: u64, by: i64| {
            if entry & pte::PRESENT != 0 && let Some(slot) = expected.get_mut((pte::mfn(entry) - base) as usize) {
                slot.0 = slot.0.wrapping_add_signed(by);
                slot.1 = slot.1.wrapping_add_signed(if entry & pte::RW != 0 { by } else { 0 });
            }
        };
        for pfn in 0..FRAMES {
            count(entries[pfn as usize], -1);
            count(t.leaf(pfn), 1);
        }
        for handle in 0..256 {
            if let Some(mapping) = t.grants.mapping(handle).filter(|m| m.how.device) {
                let frame = t.grants.used_frame(mapping.entry).unwrap();
                count(pte::make(frame.0, if mapping.how.readonly { 1 } else { 3 }), 1);
            }
        }
        prop_assert_eq!(t.counts(), expected);
    }
}
