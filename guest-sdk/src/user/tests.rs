//! Spaces on a machine that checks the rules of page tables, and files of any kind.

use std::vec::Vec;

use proptest::prelude::*;

use super::elf::{Elf, ElfError};
use super::*;
use crate::memory::Pfn;
use crate::paging::PageFlags;
use crate::paging::tests::machine::{VIRT_BASE, machine};

const PLACE: u64 = 0x40_0000;

/// A program of segments `(address, bytes in the file, bytes in memory, flags)`.
fn file(kind: u16, entry: u64, segments: &[(u64, &[u8], u64, u32)]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let le = |n: u64| n.to_le_bytes();
    file.extend([kind.to_le_bytes(), 62_u16.to_le_bytes()].concat());
    file.extend([&1_u32.to_le_bytes()[..], &le(entry), &le(64), &le(0), &[0; 4]].concat());
    file.extend([64_u16, 56, segments.len() as u16, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut at = 64 + 56 * segments.len() as u64;
    for (address, bytes, size, flags) in segments {
        file.extend([1_u32, *flags].map(u32::to_le_bytes).concat());
        file.extend([at, *address, *address, bytes.len() as u64, *size, 4096].map(le).concat());
        at += bytes.len() as u64;
    }
    segments.iter().for_each(|(_, bytes, ..)| file.extend(*bytes));
    file
}

fn two_segments(kind: u16, base: u64) -> Vec<u8> {
    file(kind, base, &[(base, &[0x90; 5000], 5000, 5), (base + 0x2010, b"data", 9000, 6)])
}

#[test]
fn a_space_has_nothing_of_the_kernel() {
    let (world, mut mmu, mut pool) = machine();
    let free = pool.0.len();
    let space = UserSpace::new(&mut mmu, &mut pool).unwrap();
    let page = space.map_new(&mut mmu, &mut pool, PLACE, PageFlags::DATA).unwrap();
    mmu.flush().unwrap();
    assert_eq!(world.walk(space.root(), PLACE).map(|e| e & 7), Some(7));
    for va in (0..1024).map(|pfn| VIRT_BASE + pfn * 4096) {
        assert_eq!(world.walk(space.root(), va), None, "{va:#x} is the kernel's");
    }
    assert_eq!(space.translate(&mmu, PLACE).map(|(mfn, _)| mmu.memory().pfn(mfn)), Some(Some(page)));
    // What is the direct map's in the kernel's space is an address like any other here.
    space.map_new(&mut mmu, &mut pool, VIRT_BASE, PageFlags::DATA).unwrap();
    assert!(space.map_new(&mut mmu, &mut pool, 1 << 47, PageFlags::DATA).is_err());
    assert!(space.map_new(&mut mmu, &mut pool, 0xffff_8800_0000_0000, PageFlags::DATA).is_err());
    space.free(&mut mmu, &mut pool, true).unwrap();
    assert_eq!(pool.0.len(), free, "every frame came back");
}

#[test]
fn copies_go_through_the_programs_tables_only() {
    let (_, mut mmu, mut pool) = machine();
    let space = UserSpace::new(&mut mmu, &mut pool).unwrap();
    space.map_new(&mut mmu, &mut pool, PLACE, PageFlags::DATA).unwrap();
    space.map_new(&mut mmu, &mut pool, PLACE + 0x1000, PageFlags::NO_EXECUTE).unwrap();
    mmu.flush().unwrap();
    let mut back = [1; 8];
    space.copy_to_user(&mmu, PLACE + 0xffc, b"abcd").unwrap();
    space.copy_from_user(&mmu, PLACE + 0xffc, &mut back).unwrap();
    assert_eq!(&back, b"abcd\0\0\0\0");
    assert_eq!(
        space.copy_to_user(&mmu, PLACE + 0xffc, b"abcdef"),
        Err(BadAddress(PLACE + 0x1000)),
        "read-only"
    );
    for wild in [0, PLACE - 1, PLACE + 0x1ffc, VIRT_BASE, 1 << 47, 0xffff_8000_0000_0000, u64::MAX - 3] {
        assert!(space.copy_from_user(&mmu, wild, &mut back).is_err(), "{wild:#x}");
        assert!(space.copy_to_user(&mmu, wild, &back).is_err(), "{wild:#x}");
    }
}

#[test]
fn a_program_is_loaded_with_code_that_it_cannot_write() {
    let (_, mut mmu, mut pool) = machine();
    for (kind, base, by) in [(2, 0x40_0000, 0), (3, 0, 0x80_0000_0000)] {
        let image = two_segments(kind, base);
        let elf = Elf::parse(&image).unwrap();
        let space = UserSpace::new(&mut mmu, &mut pool).unwrap();
        let program = load(&elf, &space, &mut mmu, &mut pool, by).unwrap();
        assert_eq!((program.entry, program.end), (base + by, base + by + 0x5000));
        let flags = |at: u64| space.translate(&mmu, base + by + at).map(|(_, flags)| flags);
        assert_eq!(flags(0x1000), Some(PageFlags::USER));
        assert_eq!(flags(0x2000), Some(PageFlags::USER | PageFlags::DATA));
        assert_eq!((flags(0x4000).is_some(), flags(0x5000)), (true, None));
        let mut bytes = [0; 8];
        space.copy_from_user(&mmu, base + by + 0x200e, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0data\0\0");
        space.copy_from_user(&mmu, base + by + 4998, &mut bytes).unwrap();
        assert_eq!(bytes, [0x90, 0x90, 0, 0, 0, 0, 0, 0]);
        space.free(&mut mmu, &mut pool, true).unwrap();
    }
    let image = two_segments(2, 0x40_0000);
    let space = UserSpace::new(&mut mmu, &mut pool).unwrap();
    let moved = load(&Elf::parse(&image).unwrap(), &space, &mut mmu, &mut pool, 0x1000);
    assert_eq!(moved, Err(LoadError::Move(0x1000)));
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    let refused = |file: &[u8]| Elf::parse(file).map(|_| ()).unwrap_err();
    assert_eq!(refused(b"#!/bin/sh"), ElfError::NotAProgram);
    assert_eq!(refused(&two_segments(1, PLACE)), ElfError::NotAProgram);
    assert_eq!(refused(&two_segments(2, PLACE)[..5000]), ElfError::Broken);
    assert_eq!(refused(&file(2, PLACE, &[(PLACE, b"x", 1, 7)])), ElfError::WritableCode);
    assert_eq!(refused(&file(2, PLACE, &[(PLACE, b"x", 1, 5), (PLACE + 8, b"x", 1, 6)])), ElfError::Overlap);
    assert_eq!(refused(&file(2, 1 << 47, &[(1 << 47, b"x", 1, 5)])), ElfError::Broken);
    assert_eq!(refused(&file(2, 0, &[(PLACE, b"x", 1, 5)])), ElfError::Broken, "the entry is not code");
    let mut interpreted = two_segments(2, PLACE);
    interpreted[64] = 3;
    assert_eq!(refused(&interpreted), ElfError::Dynamic);
}

#[test]
fn only_a_programs_own_flags_are_loaded() {
    let registers = Registers { rflags: u64::MAX, ..Registers::default() };
    assert_eq!(registers.checked_flags() & 0x3000, 0, "no I/O privilege level");
    assert_eq!(registers.checked_flags() & 0x1a_4000, 0, "neither NT nor virtual interrupts");
    assert_eq!(Registers::default().checked_flags(), 0x202);
}

#[test]
fn legacy_state_with_impossible_control_bits_can_be_loaded() {
    let mut state = VectorState::new();
    state.set_legacy(&[0xff; 512]);
    assert_eq!(state.legacy()[24..28], [0xff, 0xff, 0, 0]);
}

proptest! {
    /// A file with a few bytes changed is refused, or its segments are what was promised.
    #[test]
    fn any_file_is_refused_or_keeps_the_promises(
        changes in prop::collection::vec((0_usize..180, any::<u8>()), 0..8),
        cut in 0_usize..6000,
    ) {
        let mut file = two_segments(2, PLACE);
        changes.iter().for_each(|(at, byte)| file[*at] = *byte);
        file.truncate(file.len().saturating_sub(cut));
        if let Ok(elf) = Elf::parse(&file) {
            let mut end = 0;
            for segment in elf.segments() {
                prop_assert!(segment.pages().start >= end && segment.pages().end <= 1 << 47);
                prop_assert!(!(segment.writable && segment.executable));
                end = segment.pages().end;
                for page in [segment.pages().start, segment.pages().end - 4096] {
                    let (offset, bytes) = segment.part(page);
                    prop_assert!(offset + bytes.len() <= 4096);
                }
            }
        }
    }

    /// The parts of a segment's pages are its bytes.
    #[test]
    fn a_segment_is_the_sum_of_its_pages(skew in 0_u64..4096, len in 1_usize..9000) {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let image = file(2, PLACE + skew, &[(PLACE + skew, &bytes, len as u64, 5)]);
        let elf = Elf::parse(&image).unwrap();
        let segment = elf.segments().next().unwrap();
        let all: Vec<u8> = segment.pages().step_by(4096).flat_map(|page| segment.part(page).1.to_vec()).collect();
        prop_assert_eq!(all, bytes);
        prop_assert_eq!(segment.part(segment.pages().start).0 as u64, skew);
    }
}

/// The frames of `Pool` are checked for being given back twice; this one is not free.
#[test]
fn a_shared_frame_is_not_freed_with_the_space() {
    let (_, mut mmu, mut pool) = machine();
    let shared = pool.0.pop().unwrap();
    let before = pool.0.len();
    let space = UserSpace::new(&mut mmu, &mut pool).unwrap();
    space.map(&mut mmu, &mut pool, PLACE, shared, PageFlags::NO_EXECUTE).unwrap();
    space.free(&mut mmu, &mut pool, false).unwrap();
    assert_eq!(pool.0.len(), before);
    assert!(!pool.0.contains(&Pfn(shared.0)));
}
