//! Any sequence of operations leaves the tables as a plain map of pages would be.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Map(u64, u64),
    Protect(u64, bool),
    Unmap(u64),
    Flush,
    NewSpace,
}

/// Few pages in few tables, so that steps meet.
fn step() -> impl Strategy<Value = Step> {
    let page = (0..6_u64, 0..4_u64).prop_map(|(span, page)| BASE + span * (2 << 20) + page * 4096);
    prop_oneof![
        4 => (page.clone(), 1024..4096_u64).prop_map(|(va, pfn)| Step::Map(va, pfn)),
        2 => (page.clone(), any::<bool>()).prop_map(|(va, write)| Step::Protect(va, write)),
        2 => page.prop_map(Step::Unmap),
        1 => Just(Step::Flush),
        1 => Just(Step::NewSpace),
    ]
}

const fn flags(write: bool) -> PageFlags {
    if write { PageFlags::DATA } else { PageFlags::NO_EXECUTE }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn tables_agree_with_a_plain_map(steps in proptest::collection::vec(step(), 1..60)) {
        let (world, mut mmu, mut pool) = machine();
        let kernel = mmu.kernel_space();
        let free = pool.0.len();
        let mut space = AddressSpace::new(&mut mmu, &mut pool, &kernel).unwrap();
        let mut model: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Map(va, pfn) => {
                    let done = space.map(&mut mmu, &mut pool, va, Pfn(pfn), flags(true)).is_ok();
                    prop_assert_eq!(done, !model.contains_key(&va));
                    model.entry(va).or_insert((pfn, true));
                }
                Step::Protect(va, write) => {
                    let done = space.protect(&mut mmu, va, flags(write)).is_ok();
                    prop_assert_eq!(done, model.contains_key(&va));
                    model.entry(va).and_modify(|page| page.1 = write);
                }
                Step::Unmap(va) => {
                    prop_assert_eq!(space.unmap(&mut mmu, va).is_ok(), model.remove(&va).is_some());
                }
                Step::Flush => mmu.flush().unwrap(),
                Step::NewSpace => {
                    space.destroy(&mut mmu, &mut pool, &kernel).unwrap();
                    prop_assert_eq!(pool.0.len(), free);
                    space = AddressSpace::new(&mut mmu, &mut pool, &kernel).unwrap();
                    model.clear();
                }
            }
            for (va, (pfn, write)) in &model {
                let seen = space.translate(&mmu, *va);
                prop_assert_eq!(seen, Some((mmu.mfn(Pfn(*pfn)).unwrap(), flags(*write))));
            }
        }
        mmu.flush().unwrap();
        for va in (0..6).flat_map(|span| (0..4).map(move |page| BASE + span * (2 << 20) + page * 4096)) {
            let entry = world.walk(space.root(), va);
            let wanted = model.get(&va).map(|(pfn, write)| (world.mfn(Pfn(*pfn)), *write));
            prop_assert_eq!(entry.map(|e| (pte::mfn(e), e & pte::RW != 0)), wanted);
        }
    }
}
