//! Hostile vCPUs whose steps come in any order: the audit passes after each.

use paravane_abi::mmu::MMUEXT_CLEAR_PAGE;
use proptest::prelude::*;

use super::super::properties::{act, slot, value};
use super::*;

/// One step of one vCPU.
#[derive(Clone, Debug)]
enum Step {
    /// A hypercall.
    Call(Act),
    /// It caches what it can reach, in user mode perhaps.
    Run(bool),
    /// It stores through something that it has cached.
    Store(usize, u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => act().prop_map(Step::Call),
        2 => prop::bool::weighted(0.2).prop_map(Step::Run),
        2 => (any::<usize>(), slot(), value()).prop_map(|(choice, slot, value)| Step::Store(choice, slot, value)),
    ]
}

/// Something harmless, to finish what is unfinished.
fn nothing() -> Act {
    Act::Ext { cmd: MMUEXT_CLEAR_PAGE, frame: FRAMES + 1, from: 0 }
}

/// Operations issued, those that succeeded, waits, kicks.
fn run(policy: Coherence, limit: u32, vcpus: usize, steps: &[(usize, Step)]) -> [u32; 4] {
    let mut s = Several::new(policy, vcpus);
    s.w.direct.work.limit = limit;
    let (mut issued, mut done) = (0, 0);
    for (number, step) in steps {
        let number = number % vcpus;
        match step {
            Step::Call(act) => {
                issued += 1;
                done += u32::from(s.issue(number, act).is_ok());
            }
            Step::Run(user) => s.run(number, *user),
            Step::Store(choice, slot, value) => s.store(number, *choice, *slot, *value),
        }
    }
    // Whatever they have begun ends, though they all go on in step.
    for _ in 0..2000 {
        for number in 0..vcpus {
            if s.cpus[number].unfinished.is_some() {
                let _ = s.issue(number, &nothing());
            }
        }
    }
    for (number, cpu) in s.cpus.iter().enumerate() {
        assert!(cpu.unfinished.is_none(), "vCPU {number} makes no progress with {:?}", cpu.unfinished);
    }
    [issued, done, s.waits, s.kicks]
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    prop::collection::vec((0..3usize, step()), 1..100)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn hostile_vcpus_break_nothing_where_one_flushes_for_all(steps in steps(), vcpus in 2..4usize) {
        run(Coherence::OwnEntry, super::super::super::BUDGET, vcpus, &steps);
    }

    #[test]
    fn nor_where_each_must_be_flushed(steps in steps(), vcpus in 2..4usize) {
        run(Coherence::EveryCpu, super::super::super::BUDGET, vcpus, &steps);
    }

    #[test]
    fn nor_when_they_all_interrupt_each_other(steps in steps(), vcpus in 2..4usize, each: bool) {
        run(if each { Coherence::EveryCpu } else { Coherence::OwnEntry }, SMALLEST, vcpus, &steps);
    }
}

#[test]
fn the_hostile_vcpus_get_something_done_and_wait_for_each_other() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    for policy in [Coherence::OwnEntry, Coherence::EveryCpu] {
        let mut runner = TestRunner::deterministic();
        let steps = prop::collection::vec((0..3usize, step()), 800).new_tree(&mut runner).unwrap().current();
        let [issued, done, waits, kicks] = run(policy, SMALLEST, 3, &steps);
        println!("{policy:?}: {issued} issued, {done} done, {waits} waits, {kicks} kicks");
        assert!(done * 10 > issued, "{policy:?}: {done} of {issued} succeed");
        assert!(waits > 5, "{policy:?}: {waits} waits");
        assert_eq!(kicks > 0, policy == Coherence::EveryCpu, "{policy:?}: {kicks} kicks");
    }
}
