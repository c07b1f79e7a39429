//! Holes that need a second vCPU, by advisory, as two vCPUs would try them here; under both policies of making a change
//! known.

use paravane_abi::mmu::*;

use super::super::super::frame::{FrameType, Level};
use super::super::restart::with_tree;
use super::*;

const POLICIES: [Coherence; 2] = [Coherence::OwnEntry, Coherence::EveryCpu];

fn update(table: u64, slot: u64, value: u64) -> Act {
    Act::Update { table, slot, value, command: 0 }
}

fn ext(cmd: u32, frame: u64) -> Act {
    Act::Ext { cmd, frame, from: 0 }
}

impl Several {
    /// Issues an operation until it is done; how often that was.
    fn finish(&mut self, number: usize, act: &Act) -> (u32, Result<(), Stop>) {
        for issue in 1..1000 {
            match self.issue(number, act) {
                Err(Stop::Restart) => {}
                done => return (issue, done),
            }
        }
        panic!("no progress of {act:?}");
    }
    /// A hypercall that makes both, as a multicall does.
    fn both(&mut self, number: usize, first: &Act, second: &Act) -> Result<(), Stop> {
        assert_eq!(self.issue(number, first), Ok(()));
        self.issue(number, second)
    }
    fn can_write(&mut self, number: usize, pfn: u64) -> bool {
        let root = self.load(number, false);
        let mfn = self.w.mfn(pfn).0;
        match self.policy {
            Coherence::OwnEntry => {
                self.cached.get(&root.0).is_some_and(|cached| cached.writable.contains(&mfn))
            }
            Coherence::EveryCpu => self.cpus[number].cached.writable.contains(&mfn),
        }
    }
    /// Whoever is in the guest on another vCPU has cached all that it can reach.
    fn both_run(&mut self) {
        self.run(0, false);
        self.run(1, false);
    }
}

/// XSA-401: between the acquisition of a frame's type and the validation another vCPU still wrote to it, through a
/// translation that had just been removed.
#[test]
fn xsa_401_no_writer_is_left_when_a_table_is_validated() {
    for policy in POLICIES {
        for attack in [false, true] {
            let mut s = Several::new(policy, 2);
            s.both_run();
            let pin = s.both(0, &update(L1, 10, 10 << 12 | RO), &ext(MMUEXT_PIN_L1_TABLE, 10));
            // The other one was not in the host since, but for what made everything known.
            assert_eq!(pin, Err(Stop::Restart), "{policy:?}: the other vCPU can write to it");
            assert_eq!(s.w.held(10), None);
            if attack {
                s.w.poke(10, 3, s.w.entry(L1, RW));
            }
            let (issues, pinned) = s.finish(0, &ext(MMUEXT_PIN_L1_TABLE, 10));
            assert_eq!(
                pinned,
                if attack { EBUSY } else { Ok(()) },
                "{policy:?}: it is validated after the last store"
            );
            assert_eq!(issues, 1, "once everybody knows");
            s.enter(1);
            assert!(!s.can_write(1, 10), "{policy:?}");
        }
    }
}

/// The same for descriptors, and for frames that the guest no longer owns, also where the last mapping was read-only.
#[test]
fn xsa_401_nor_when_a_frame_gets_descriptors_or_leaves_the_guest() {
    let gdt = Act::Gdt { frames: vec![10], entries: 512 };
    let give = Act::Give { frame: 10 };
    for policy in POLICIES {
        for (readable, change) in [(RO, &gdt), (0, &gdt), (0, &give)] {
            let mut s = Several::new(policy, 2);
            s.both_run();
            let entry = if readable == 0 { 0 } else { 10 << 12 | readable };
            assert_eq!(
                s.both(0, &update(L1, 10, entry), change),
                Err(Stop::Restart),
                "{policy:?} {change:?}"
            );
            assert_eq!(s.finish(0, change), (1, Ok(())), "{policy:?} {change:?}");
        }
        let mut s = Several::new(policy, 2);
        assert_eq!(s.issue(0, &update(L1, 10, 10 << 12 | RO)), Ok(()));
        s.both_run();
        s.both_run();
        assert_eq!(s.both(0, &update(L1, 10, 0), &give), Err(Stop::Restart), "{policy:?}: it can be read");
        assert_eq!(s.finish(0, &give), (1, Ok(())));
    }
}

/// XSA-408: a flush that the guest had asked for did not reach every vCPU that used the tables.
#[test]
fn xsa_408_a_flush_of_all_is_over_when_the_call_is() {
    for policy in POLICIES {
        for flush in [MMUEXT_TLB_FLUSH_ALL, MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_ALL, MMUEXT_INVLPG_MULTI] {
            let mut s = Several::new(policy, 2);
            s.both_run();
            assert_eq!(s.issue(0, &update(L1, 10, 10 << 12 | RO)), Ok(()));
            assert!(s.can_write(1, 10), "{policy:?}: not asked for yet");
            let at = s.w.layout.hypervisor_frames();
            // The argument of INVLPG is an address: any one of the guest's.
            assert_eq!(s.issue(0, &ext(flush, 0u64.wrapping_sub(at))), Ok(()));
            s.enter(0);
            assert!(!s.cpus[1].inside || !s.can_write(1, 10), "{policy:?}: {flush}");
            s.enter(1);
            assert!(!s.can_write(1, 10), "{policy:?}: {flush}");
        }
        let mut s = Several::new(policy, 2);
        s.both_run();
        for flags in [UVMF_INVLPG | UVMF_ALL, UVMF_TLB_FLUSH | 0x1000] {
            let map = Act::Map { page: 11, value: 11 << 12 | RO, flags };
            s.both_run();
            assert_eq!(s.issue(0, &map), Ok(()));
            s.enter(0);
            assert!(!s.cpus[1].inside || !s.can_write(1, 11), "{policy:?}");
            s.enter(1);
            assert_eq!(s.issue(0, &update(L1, 11, 11 << 12 | RW)), Ok(()));
        }
    }
}

/// XSA-286: as it was for one vCPU, and another one's paging-structure caches.
#[test]
fn xsa_286_a_table_that_another_vcpu_may_walk_does_not_become_writable() {
    for policy in POLICIES {
        let mut s = Several::new(policy, 2);
        assert_eq!(s.finish(0, &ext(MMUEXT_CLEAR_PAGE, 10)).1, Ok(()));
        assert_eq!(s.issue(0, &update(L1, 10, 10 << 12 | RO)), Ok(()));
        assert_eq!(s.finish(0, &update(L2, 1, 10 << 12 | TABLE)).1, Ok(()));
        s.both_run();
        let write = update(L1, 10, 10 << 12 | RW);
        assert_eq!(s.both(0, &update(L2, 1, 0), &write), Err(Stop::Restart), "{policy:?}");
        assert_eq!(s.w.load(L1, 10) & pte::RW, 0);
        assert_eq!(s.finish(0, &write), (1, Ok(())), "{policy:?}");
        s.both_run();
    }
}

/// Two vCPUs with a tree of `l1s` tables, one operation doing four tables at a time.
fn with_large_tree(policy: Coherence, l1s: u64) -> Several {
    let mut s = Several::new(policy, 2);
    let mut w = with_tree(l1s);
    w.share_among(2);
    w.direct.work.limit = SMALLEST;
    s.w = w;
    s
}

/// XSA-299: one vCPU found what another had half done, and used it.
#[test]
fn xsa_299_what_another_vcpu_has_half_done_is_neither_used_nor_in_the_way() {
    for policy in POLICIES {
        let mut s = with_large_tree(policy, 40);
        let pin = ext(MMUEXT_PIN_L4_TABLE, 4);
        assert_eq!(s.issue(0, &pin), Err(Stop::Restart));
        assert_eq!(s.w.held(4), None, "no half-validated table");
        // The pin will hold this frame as a table: another vCPU is told so once it does.
        let write = update(L1, 7, 7 << 12 | RW);
        let mut outcomes = Vec::new();
        while s.cpus[0].unfinished.is_some() {
            outcomes.push(s.issue(1, &write));
            let _ = s.issue(0, &pin);
        }
        assert!(outcomes.iter().all(|outcome| *outcome == Err(Stop::Restart)), "{outcomes:?}");
        assert_eq!(s.finish(1, &write).1, EBUSY, "{policy:?}");
        assert_eq!(s.w.held(4), Some(FrameType::Table(Level::L4)), "the pin was finished");
    }
}

/// The same where the first vCPU never issues its operation again: its unfinished part is in nobody's way for ever.
#[test]
fn xsa_299_what_is_never_finished_is_given_up() {
    for policy in POLICIES {
        let mut s = with_large_tree(policy, 40);
        assert_eq!(s.issue(0, &ext(MMUEXT_PIN_L4_TABLE, 4)), Err(Stop::Restart));
        let (issues, written) = s.finish(1, &update(L1, 7, 7 << 12 | RW));
        assert_eq!(written, Ok(()), "{policy:?}");
        assert!(issues > 100, "the first vCPU had a chance");
        assert_eq!(s.w.direct.work.parked().count(), 0);
    }
}

/// XSA-310: two vCPUs at the same tree at once, each in the middle of a validation or of taking it down.
#[test]
fn xsa_310_two_vcpus_validate_and_take_down_the_same_tree() {
    for policy in POLICIES {
        let mut s = with_large_tree(policy, 40);
        let (pin, link) = (ext(MMUEXT_PIN_L4_TABLE, 4), update(L4, 3, 5 << 12 | TABLE));
        let mut results = [None; 2];
        for issue in 0.. {
            assert!(issue < 200, "{policy:?}: neither ends");
            for (number, act) in [&pin, &link].into_iter().enumerate() {
                if results[number].is_none() {
                    results[number] =
                        Some(s.issue(number, act)).filter(|result| *result != Err(Stop::Restart));
                }
            }
            if results.iter().all(Option::is_some) {
                break;
            }
        }
        assert_eq!(results, [Some(Ok(())); 2], "{policy:?}");
        // One takes its use away while the other pins it a second time.
        assert_eq!(s.finish(0, &ext(MMUEXT_UNPIN_TABLE, 4)).1, Ok(()));
        assert_eq!(s.issue(1, &update(L4, 3, 0)), Ok(()));
        assert_eq!(s.finish(0, &pin).1, Ok(()));
        assert_eq!(s.finish(1, &ext(MMUEXT_UNPIN_TABLE, 4)).1, Ok(()));
        assert_eq!(s.finish(1, &ext(MMUEXT_PIN_L1_TABLE, 46)).1, Ok(()));
        assert_eq!(s.w.held(4), None);
    }
}

/// XSA-290: what another vCPU did at each preemption kept an operation from ever ending.
#[test]
fn xsa_290_an_operation_ends_whatever_another_vcpu_does_in_between() {
    for policy in POLICIES {
        let alone = with_large_tree(policy, 40).finish(0, &ext(MMUEXT_PIN_L4_TABLE, 4)).0;
        // Done, refused, and refused for what is validated meanwhile.
        for other in
            [update(L1, 60, 4 << 12 | RO), update(L1, 60, L1 << 12 | RW), ext(MMUEXT_PIN_L4_TABLE, 7)]
        {
            let mut s = with_large_tree(policy, 40);
            let mut issues = 1;
            while s.issue(0, &ext(MMUEXT_PIN_L4_TABLE, 4)) == Err(Stop::Restart) {
                let _ = s.issue(1, &other);
                issues += 1;
                assert!(issues <= 2 * alone, "{policy:?}: {issues} issues, alone {alone}; {other:?}");
            }
            assert_eq!(s.w.held(4), Some(FrameType::Table(Level::L4)));
            assert_ne!(s.finish(1, &other).1, Err(Stop::Restart));
        }
    }
}

/// XSA-242 again: a vCPU that was not brought up gives its tables back, also while more is to be taken down than one
/// operation may.
#[test]
fn xsa_242_tables_of_a_vcpu_that_never_runs_are_given_back() {
    let mut s = with_large_tree(Coherence::OwnEntry, 40);
    for act in [update(L1, 53, 53 << 12 | RO), update(L1, 52, 0), ext(MMUEXT_PIN_L1_TABLE, 53)] {
        s.enter(0);
        assert_eq!(s.finish(0, &act).1, Ok(()));
    }
    s.w.audit();
    let (root, single, descriptors) = (s.w.mfn(4), s.w.mfn(53).0, s.w.mfn(52).0);
    let w = &mut s.w;
    let mut tables = loop {
        if let Ok(tables) = w.direct.attach(&w.memory, &mut w.log, root) {
            break tables;
        }
        w.log.applied_for_everyone();
    };
    let mut space = VcpuSpace::new(root, &w.log);
    w.direct.set_gdt(&w.memory, &mut w.log, &mut space, &mut tables, &[descriptors], 512).unwrap();
    w.direct.work.limit = 0;
    let unpin = MmuextOp { cmd: MMUEXT_UNPIN_TABLE, arg1: single, ..MmuextOp::default() };
    assert_eq!(w.direct.mmuext_one(&w.memory, &mut w.log, &mut w.space, &mut w.tables, &unpin), Ok(()));
    assert_eq!(w.direct.work.parked().count(), 1, "still to be taken down");
    w.direct.detach(&w.memory, &mut w.log, tables);
    w.audit();
    w.direct.work.limit = SMALLEST;
    while s.issue(1, &ext(MMUEXT_CLEAR_PAGE, 54)) == Err(Stop::Restart) {}
    assert_eq!(s.w.direct.frame(Mfn(descriptors)).map(|frame| frame.refs()), Some(0));
    assert_eq!([4, 46, 53].map(|pfn| s.w.held(pfn)), [None; 3]);
}
