use paravane_abi::pte;

use super::*;
use crate::memory::Pfn;
use machine::{Machine, Pool, World, machine};

pub mod machine;
mod random;

const BASE: u64 = 0x20_0000_0000;

/// 64 pages in each of eight spans of 2 MiB.
fn scattered() -> impl Iterator<Item = (u64, Pfn)> {
    (0..512).map(|i| (BASE + (i % 8) * (2 << 20) + (i * 37 % 512) * 4096, Pfn(1024 + i * 5 % 3000)))
}

fn transitions(mmu: &mut Mmu<'_, Machine>) -> u64 {
    mmu.queue().stats().transitions()
}

#[test]
fn scattered_pages_take_a_transition_for_each_step() {
    let (world, mut mmu, mut pool) = machine();
    let space = mmu.kernel_space();
    space.map_all(&mut mmu, &mut pool, scattered(), PageFlags::DATA).unwrap();
    mmu.flush().unwrap();
    assert_eq!(transitions(&mut mmu), 1);
    for (va, pfn) in scattered() {
        assert_eq!(world.walk(world.root, va), Some(PageFlags::DATA.entry(mmu.mfn(pfn).unwrap())));
    }
    for (va, _) in scattered() {
        space.protect(&mut mmu, va, PageFlags::NO_EXECUTE).unwrap();
    }
    mmu.flush().unwrap();
    assert_eq!(transitions(&mut mmu), 2);
    assert!(scattered().all(|(va, _)| world.walk(world.root, va).is_some_and(|e| e & pte::RW == 0)));
    for (va, pfn) in scattered() {
        assert_eq!(space.unmap(&mut mmu, va), Ok(mmu.mfn(pfn).unwrap()));
    }
    mmu.flush().unwrap();
    assert_eq!(transitions(&mut mmu), 3);
    assert!(scattered().all(|(va, _)| world.walk(world.root, va).is_none()));
}

#[test]
fn what_is_queued_is_what_is_seen() {
    let (world, mut mmu, mut pool) = machine();
    let space = mmu.kernel_space();
    // The first page makes the table, the flush hands it over: later changes are queued updates.
    space.map(&mut mmu, &mut pool, BASE, Pfn(2000), PageFlags::WRITE).unwrap();
    mmu.flush().unwrap();
    let (va, pfn) = (BASE + 0x1000, Pfn(2001));
    space.map(&mut mmu, &mut pool, va, pfn, PageFlags::WRITE).unwrap();
    assert_eq!(world.walk(world.root, va), None, "nothing has happened yet");
    assert_eq!(space.translate(&mmu, va), Some((mmu.mfn(pfn).unwrap(), PageFlags::WRITE)));
    assert_eq!(space.map(&mut mmu, &mut pool, va, pfn, PageFlags::WRITE), Err(PagingError::Mapped(va)));
    space.protect(&mut mmu, va, PageFlags::USER).unwrap();
    assert_eq!(space.translate(&mmu, va), Some((mmu.mfn(pfn).unwrap(), PageFlags::USER)));
    space.unmap(&mut mmu, va).unwrap();
    assert_eq!(space.unmap(&mut mmu, va), Err(PagingError::NotMapped(va)));
    mmu.flush().unwrap();
    assert_eq!(world.walk(world.root, va), None);
    assert_eq!(transitions(&mut mmu), 2);
}

#[test]
fn a_space_is_made_filled_and_entered_in_one_transition() {
    let (world, mut mmu, mut pool) = machine();
    let kernel = mmu.kernel_space();
    let before = pool.0.len();
    let space = AddressSpace::new(&mut mmu, &mut pool, &kernel).unwrap();
    space.map_all(&mut mmu, &mut pool, scattered(), PageFlags::DATA).unwrap();
    space.switch(&mut mmu).unwrap();
    assert_eq!(transitions(&mut mmu), 1);
    assert_eq!(mmu.queue().hypervisor().current, world.mfn(space.root()));
    assert!(scattered().all(|(va, _)| world.walk(space.root(), va).is_some()));
    assert!(scattered().all(|(va, _)| world.walk(world.root, va).is_none()), "it is its own");
    let kernel_page = world.memory.va(Pfn(3));
    assert_eq!(world.walk(space.root(), kernel_page), world.walk(world.root, kernel_page));
    kernel.switch(&mut mmu).unwrap();
    space.destroy(&mut mmu, &mut pool, &kernel).unwrap();
    assert_eq!(transitions(&mut mmu), 3);
    assert_eq!(pool.0.len(), before, "every table comes back");
    assert_eq!(mmu.queue().hypervisor().check(), Ok(()));
    assert!(pool.0.iter().all(|pfn| is_writable(&world, *pfn)));
}

fn is_writable(world: &World, pfn: Pfn) -> bool {
    world.walk(world.root, world.memory.va(pfn)).is_some_and(|entry| entry & pte::RW != 0)
}

#[test]
fn a_space_that_was_never_flushed_can_go() {
    let (_, mut mmu, mut pool) = machine();
    let kernel = mmu.kernel_space();
    let before = pool.0.len();
    let space = AddressSpace::new(&mut mmu, &mut pool, &kernel).unwrap();
    space.map(&mut mmu, &mut pool, BASE, Pfn(2000), PageFlags::DATA).unwrap();
    space.destroy(&mut mmu, &mut pool, &kernel).unwrap();
    assert_eq!(pool.0.len(), before);
}

#[test]
fn running_out_of_frames_loses_none() {
    let (_, mut mmu, mut pool) = machine();
    let kernel = mmu.kernel_space();
    let mut poor = Pool(pool.0.split_off(pool.0.len() - 1));
    assert_eq!(AddressSpace::new(&mut mmu, &mut poor, &kernel), Err(PagingError::OutOfFrames));
    assert_eq!(poor.0.len(), 1);
    // One table of the two that this page needs can be made: it stays, empty and harmless.
    let mapped = kernel.map(&mut mmu, &mut poor, BASE, Pfn(2000), PageFlags::DATA);
    assert_eq!(mapped, Err(PagingError::OutOfFrames));
    mmu.flush().unwrap();
    kernel.map(&mut mmu, &mut pool, BASE, Pfn(2000), PageFlags::DATA).unwrap();
    mmu.flush().unwrap();
}

#[test]
fn more_tables_than_can_be_loose_flush_in_between() {
    let (world, mut mmu, mut pool) = machine();
    let space = mmu.kernel_space();
    let pages = || (0..300_u64).map(|i| (BASE + i * (2 << 20), Pfn(1024 + i)));
    space.map_all(&mut mmu, &mut pool, pages(), PageFlags::DATA).unwrap();
    mmu.flush().unwrap();
    assert!(pages().all(|(va, pfn)| {
        world.walk(world.root, va) == Some(PageFlags::DATA.entry(mmu.mfn(pfn).unwrap()))
    }));
    assert_eq!(transitions(&mut mmu), 3);
}

#[test]
fn the_direct_map_grows_to_all_of_memory_in_one_transition() {
    let (world, mut mmu, mut pool) = machine();
    assert_eq!(mmu.direct_map_end(Pfn(7)), Pfn(1024));
    mmu.extend_direct_map(&mut pool, Pfn(1024)..Pfn(4096)).unwrap();
    assert_eq!(transitions(&mut mmu), 1);
    assert_eq!(mmu.direct_map_end(Pfn(0)), Pfn(4096));
    assert!((1024..4096).all(|pfn| is_writable(&world, Pfn(pfn))));
}

#[test]
fn addresses_that_are_not_the_kernels_to_map_are_refused() {
    let (_, mut mmu, mut pool) = machine();
    let space = mmu.kernel_space();
    let mut map = |va, pfn| space.map(&mut mmu, &mut pool, va, pfn, PageFlags::WRITE).unwrap_err();
    assert_eq!(map(1, Pfn(0)), PagingError::BadAddress(1));
    assert_eq!(map(1 << 47, Pfn(0)), PagingError::BadAddress(1 << 47));
    assert_eq!(map(0xffff_8000_0000_0000, Pfn(0)), PagingError::BadAddress(0xffff_8000_0000_0000));
    assert_eq!(map(machine::VIRT_BASE, Pfn(0)), PagingError::DirectMap(machine::VIRT_BASE));
    assert_eq!(map(BASE, Pfn(4096)), PagingError::NoSuchFrame(Pfn(4096)));
    assert_eq!(map(BASE, Pfn(u64::MAX)), PagingError::NoSuchFrame(Pfn(u64::MAX)));
}

#[test]
fn a_refused_update_names_its_entry() {
    let (world, mut mmu, mut pool) = machine();
    let space = mmu.kernel_space();
    space.map(&mut mmu, &mut pool, BASE, Pfn(2000), PageFlags::WRITE).unwrap();
    mmu.flush().unwrap();
    // A page table, mapped writable: what direct paging is there to prevent.
    space.map(&mut mmu, &mut pool, BASE + 0x1000, world.root, PageFlags::WRITE).unwrap();
    let Err(PagingError::Refused(error)) = mmu.flush() else { panic!("it was accepted") };
    assert_eq!(error.update.map(|u| u.val), Some(PageFlags::WRITE.entry(mmu.mfn(world.root).unwrap())));
    assert_eq!(space.translate(&mmu, BASE + 0x1000), None);
}
