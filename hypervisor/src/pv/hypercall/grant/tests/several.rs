//! Two vCPUs of a domain at the same grants, their calls interrupted by each other.

use proptest::prelude::*;

use super::*;
use crate::pv::vcpu::PvVcpu;

/// Where each vCPU has the argument of its call.
const ARGUMENTS: [u64; 2] = [SCRATCH, 10];
const MORE_WINDOWS: [u64; 2] = [WINDOW, 24];

/// A domain with two vCPUs, each of which may be in the middle of a call.
struct Two {
    t: TestDomain,
    other: PvVcpu,
    /// Whose turn it is.
    now: usize,
    calls: [Option<[u64; 6]>; 2],
}

impl Two {
    fn new() -> Self {
        let mut t = TestDomain::new();
        let other = t.another_vcpu(1);
        t.grow_table();
        t.share();
        Self { t, other, now: 0, calls: [None; 2] }
    }

    fn turn_to(&mut self, vcpu: usize) {
        if self.now != vcpu {
            std::mem::swap(&mut self.t.vcpu, &mut self.other);
            self.now = vcpu;
        }
    }

    /// The vCPU makes a call of one element; what is left of an earlier one is forgotten.
    fn begin<T: IntoBytes + Immutable>(&mut self, vcpu: usize, op: u32, element: &T) {
        self.t.write_at(va(ARGUMENTS[vcpu]), element).unwrap();
        self.calls[vcpu] = Some([op.into(), va(ARGUMENTS[vcpu]), 1, 0, 0, 0]);
    }

    /// One entry of its call. Whether it is done.
    fn step(&mut self, vcpu: usize) -> bool {
        self.turn_to(vcpu);
        let Some(args) = self.calls[vcpu].take() else { return true };
        match self.t.dispatch(nr::GRANT_TABLE_OP, args).unwrap() {
            Outcome::Again(rest) => self.calls[vcpu] = Some(rest),
            outcome => assert_eq!(outcome, Outcome::Done(0)),
        }
        self.calls[vcpu].is_none()
    }

    fn element<T: IntoBytes + FromBytes>(&self, vcpu: usize) -> T {
        self.t.read_at(va(ARGUMENTS[vcpu])).unwrap()
    }

    /// Makes a call to its end.
    fn whole<T: IntoBytes + FromBytes + Immutable>(&mut self, vcpu: usize, op: u32, element: &T) -> T {
        self.begin(vcpu, op, element);
        while !self.step(vcpu) {
            self.t.everyone_catches_up();
        }
        self.element(vcpu)
    }

    /// Something else has just been made of the granted page: it was a table that a CPU walked.
    fn was_a_table(&mut self) {
        let (read_only, link) = (self.t.entry(PAGE, RO), self.t.entry(PAGE, RW));
        self.t.map(PAGE, read_only).unwrap();
        for entry in [link, 0] {
            let update =
                paravane_abi::mmu::MmuUpdate { ptr: Mfn(self.t.mfn(L2)).maddr().0 + 8 * 100, val: entry };
            self.t.write_at(va(SCRATCH), &update).unwrap();
            self.t.call(nr::MMU_UPDATE, [va(SCRATCH), 1, 0, DOMID_SELF.into()]).unwrap();
        }
    }
}

fn map(window: u64, flags: u32) -> GnttabMapGrantRef {
    GnttabMapGrantRef { host_addr: va(window), flags, r#ref: REF, dom: DOMID, ..Default::default() }
}

fn unmap(window: u64, handle: GrantHandle) -> GnttabUnmapGrantRef {
    GnttabUnmapGrantRef { host_addr: va(window), handle, ..Default::default() }
}

/// XSA-224: a mapping that waits for another vCPU has counted nothing, and may find that it is no longer granted.
#[test]
fn xsa_224_a_mapping_that_has_to_wait_holds_nothing_meanwhile() {
    for revoked in [false, true] {
        let mut two = Two::new();
        MORE_WINDOWS.iter().for_each(|window| two.t.unmap(*window));
        two.was_a_table();
        two.t.offer(REF, PAGE, 0);
        let before = two.t.counts();
        two.begin(0, GNTTABOP_MAP_GRANT_REF, &map(WINDOW, HOST | GNTMAP_DEVICE_MAP));
        for _ in 0..2 {
            assert!(!two.step(0));
            assert_eq!((two.t.counts(), two.t.flags(REF)), (before.clone(), GTF_PERMIT_ACCESS));
        }
        if revoked {
            // The guest sees that nobody uses it, and ends it.
            two.t.memory.write_obj(two.t.entry_maddr(REF), &GrantEntryV1::default()).unwrap();
        }
        two.t.everyone_catches_up();
        assert!(two.step(0));
        let mapped: GnttabMapGrantRef = two.element(0);
        assert_eq!(mapped.status == GNTST_OKAY, !revoked, "{}", mapped.status);
        if !revoked {
            let whole =
                GnttabUnmapGrantRef { dev_bus_addr: mapped.dev_bus_addr, ..unmap(WINDOW, mapped.handle) };
            assert_eq!(two.whole(1, GNTTABOP_UNMAP_GRANT_REF, &whole).status, GNTST_OKAY);
            assert_eq!(two.t.flags(REF), GTF_PERMIT_ACCESS);
        }
        assert_eq!(two.t.counts(), before);
    }
}

/// XSA-226 and XSA-228: the list of handles was shared by vCPUs without a lock. Two that map and unmap in turns never
/// have one handle, and each mapping ends once.
#[test]
fn xsa_228_two_vcpus_at_one_grant_have_handles_of_their_own() {
    let mut two = Two::new();
    MORE_WINDOWS.iter().for_each(|window| two.t.unmap(*window));
    two.was_a_table();
    two.t.offer(REF, PAGE, 0);
    let before = two.t.counts();
    for round in 0..4 {
        for (vcpu, window) in MORE_WINDOWS.into_iter().enumerate() {
            two.begin(vcpu, GNTTABOP_MAP_GRANT_REF, &map(window, [HOST, HOST_RO][(round + vcpu) % 2]));
        }
        let waited = [0, 1].map(|vcpu| !two.step(vcpu));
        assert_eq!(waited.contains(&true), round == 0, "the one that writes");
        two.t.everyone_catches_up();
        assert!(two.step(0) && two.step(1));
        let handles = [0, 1].map(|vcpu| two.element::<GnttabMapGrantRef>(vcpu).handle);
        assert_ne!(handles[0], handles[1]);
        // Each unmaps what the other has mapped; both try the first one.
        assert_eq!(
            two.whole(0, GNTTABOP_UNMAP_GRANT_REF, &unmap(MORE_WINDOWS[1], handles[1])).status,
            GNTST_OKAY
        );
        for (vcpu, status) in [(1, GNTST_OKAY), (0, GNTST_BAD_HANDLE)] {
            let ended: GnttabUnmapGrantRef =
                two.whole(vcpu, GNTTABOP_UNMAP_GRANT_REF, &unmap(MORE_WINDOWS[0], handles[0]));
            assert_eq!(ended.status, status);
        }
        assert_eq!((two.t.counts(), two.t.flags(REF)), (before.clone(), GTF_PERMIT_ACCESS));
    }
}

/// A part of what a vCPU does.
#[derive(Clone, Copy, Debug)]
enum Act {
    Map(u32, u64, u32),
    Unmap(u32, u64),
    Copy(u32, u32),
    Retype(bool),
    CatchUp,
    /// Goes on with a call that has to wait.
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    let (r, page) = (REF..REF + 2, 20u64..25);
    prop_oneof![
        4 => (r.clone(), page.clone(), prop_oneof![Just(HOST), Just(HOST_RO), Just(HOST | GNTMAP_DEVICE_MAP)])
            .prop_map(|(r, page, flags)| Act::Map(r, page, flags)),
        3 => (0u32..4, page).prop_map(|(handle, page)| Act::Unmap(handle, page)),
        2 => (r.clone(), r).prop_map(|(a, b)| Act::Copy(a, b)),
        2 => any::<bool>().prop_map(Act::Retype),
        2 => Just(Act::CatchUp),
        4 => Just(Act::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// XSA-226: whatever two vCPUs do to the same grants at once, in the end each use has been counted once.
    #[test]
    fn xsa_226_uses_by_two_vcpus_are_counted_once(acts in prop::collection::vec((0..2usize, act()), 1..80)) {
        let mut two = Two::new();
        for pfn in 20..25 {
            two.t.unmap(pfn);
        }
        let before = two.t.counts();
        for (number, r) in (REF..REF + 2).enumerate() {
            two.t.offer(r, PAGE + number as u64, 0);
        }
        for (vcpu, act) in acts {
            let busy = two.calls[vcpu].is_some();
            match act {
                Act::CatchUp => two.t.everyone_catches_up(),
                Act::Retype(pin) => {
                    let l2 = Mfn(two.t.mfn(L2)).maddr().0 + 8 * 100;
                    let entry = if pin { two.t.entry(PAGE, RW) } else { 0 };
                    let update = paravane_abi::mmu::MmuUpdate { ptr: l2, val: entry };
                    two.t.write_at(va(12), &update).unwrap();
                    // Refused while the page is mapped; what waits here is not issued again.
                    let _ = two.t.dispatch(nr::MMU_UPDATE, [va(12), 1, 0, DOMID_SELF.into(), 0, 0]);
                }
                Act::Step => drop(two.step(vcpu)),
                _ if busy => drop(two.step(vcpu)),
                Act::Map(r, page, flags) => {
                    two.begin(vcpu, GNTTABOP_MAP_GRANT_REF, &GnttabMapGrantRef { r#ref: r, ..map(page, flags) });
                    two.step(vcpu);
                }
                Act::Unmap(handle, page) => {
                    two.begin(vcpu, GNTTABOP_UNMAP_GRANT_REF, &unmap(page, handle));
                    two.step(vcpu);
                }
                Act::Copy(a, b) => {
                    let side = |r: u32| GnttabCopyPtr { u: r.into(), domid: DOMID, ..Default::default() };
                    let op = GnttabCopy { source: side(a), dest: side(b), len: 64, flags: 3, ..Default::default() };
                    two.begin(vcpu, GNTTABOP_COPY, &op);
                    two.step(vcpu);
                }
            }
        }
        for vcpu in 0..2 {
            while !two.step(vcpu) {
                two.t.everyone_catches_up();
            }
        }
        // Everything that is mapped by now is unmapped, each by its address or, where that has been mapped over, by
        // hand.
        let update = paravane_abi::mmu::MmuUpdate { ptr: Mfn(two.t.mfn(L2)).maddr().0 + 8 * 100, val: 0 };
        two.t.write_at(va(12), &update).unwrap();
        two.t.call(nr::MMU_UPDATE, [va(12), 1, 0, DOMID_SELF.into()]).unwrap();
        for handle in 0..64 {
            let device = two.t.grants.mapping(handle).filter(|mapping| mapping.how.device);
            let address = device.and_then(|mapping| two.t.grants.used_frame(mapping.entry));
            for pfn in 20..25 {
                two.whole(0, GNTTABOP_UNMAP_GRANT_REF, &unmap(pfn, handle));
            }
            if let Some(frame) = address {
                let op = GnttabUnmapGrantRef { dev_bus_addr: frame.maddr().0, handle, ..Default::default() };
                two.whole(1, GNTTABOP_UNMAP_GRANT_REF, &op);
            }
        }
        for pfn in 20..25 {
            two.t.unmap(pfn);
        }
        prop_assert_eq!(two.t.counts(), before);
    }
}
