//! Hostile files: whatever the bytes are, nothing panics and nothing but the guest's frames is written.

use proptest::prelude::*;

use super::pv::config;
use crate::build::build;
use crate::image::symbols::symbolize;
use crate::image::{Image, ImageKind};
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::testing::elf::{Elf, Symbol, xen_number};

const GUEST_FRAMES: u64 = 4 << 8;

/// Frames of the hypervisor's that no builder has any business with.
fn untouched(layout: &HypervisorLayout) -> impl Iterator<Item = u64> {
    layout.engine.clone().chain(layout.shadow.clone())
}

fn try_everything(file: &[u8]) {
    let Ok(image) = Image::parse(file) else { return };
    symbolize(file, image.entry());
    let layout = HypervisorLayout::new(GUEST_FRAMES, 3);
    let memory = MachineMemory::new(layout.hypervisor_frames(), GUEST_FRAMES, Backing::Anonymous).unwrap();
    let domain = build(&config(Some(b"initrd")), &image, &memory, &layout, |_| [0xcc; 32]);
    for frame in untouched(&layout) {
        let page: [u8; PAGE_SIZE as usize] = memory.read_obj(Mfn(frame).maddr()).unwrap();
        assert!(page.iter().all(|b| *b == 0), "hypervisor frame {frame:#x} was written");
    }
    let Ok(domain) = domain else { return };
    // Every entry of every table names a frame of the guest's.
    let base = if matches!(image.kind(), ImageKind::Pv(_)) { 0 } else { memory.guest_base().0 };
    for table in domain.pt_frames.start.0..domain.pt_frames.end.0 {
        for slot in 0..512 {
            let entry = memory.load_u64(Maddr(Mfn(table).maddr().0 + slot * 8)).unwrap();
            let frame = Mfn(paravane_abi::pte::mfn(entry) + base);
            assert!(entry == 0 || memory.is_guest_frame(frame), "{entry:#x}");
        }
    }
}

fn any_good_image() -> impl Strategy<Value = Vec<u8>> {
    let pv = Elf::pv(0x4000_0000, 0x4000_0000, 0x10_0000, &[]);
    let linux_like = [xen_number(15, 0x80_0000_0000), xen_number(16, 1)];
    let high = Elf::pv(0xffff_ffff_8000_0000, 0, 0x10_0000, &linux_like);
    let mut bare = Elf::bare(0x4000_0000, 0);
    bare.symbols = vec![Symbol { name: "main", value: 0x4000_0000, size: 8, kind: 2 }];
    prop::sample::select(vec![pv.bytes(), high.bytes(), bare.bytes()])
}

/// Values that break arithmetic.
fn nasty() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x1_0000u64,
        (0..64u32, -2i64..3).prop_map(|(bit, off)| (1u64 << bit).wrapping_add_signed(off)),
        (-0x1_0000i64..0).prop_map(|v| v as u64),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(file in prop::collection::vec(any::<u8>(), 0..512)) {
        try_everything(&file);
    }

    #[test]
    fn random_bytes_behind_a_good_start(
        image in any_good_image(),
        tail in prop::collection::vec(any::<u8>(), 0..512),
        keep in 0usize..1024,
    ) {
        let mut file = image;
        file.truncate(keep);
        file.extend(tail);
        try_everything(&file);
    }

    #[test]
    fn mutated_headers_and_notes(
        image in any_good_image(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), nasty(), 0usize..4), 1..6),
    ) {
        let mut file = image;
        // The headers, and the notes and symbols at the end: the middle is only code.
        let len = file.len();
        let places: Vec<usize> = (0..320).chain(len.saturating_sub(640)..len).collect();
        for (place, value, width) in &changes {
            let at = *place.get(&places);
            let bytes = value.to_le_bytes();
            for (to, from) in file[at..].iter_mut().zip(&bytes[..1 << width]) {
                *to = *from;
            }
        }
        try_everything(&file);
    }
}
