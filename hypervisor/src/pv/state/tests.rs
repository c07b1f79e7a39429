use std::sync::Arc;

use paravane_abi::addr;
use paravane_abi::grant::{GTF_PERMIT_ACCESS, GrantEntryV1};
use paravane_abi::pte;

use super::*;
use crate::machine::console::{CaptureSink, ConsoleInput};
use crate::machine::kick::Kick;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::pv::domain::{CONSOLE_PORT, PvDomain};
use crate::pv::event::{Binding, HostService};
use crate::pv::vcpu::{PvVcpu, RunState};
use crate::testing::engine::CountKicks;
use crate::testing::pv::{CONSOLE, FRAMES, FREE, L1, L4, RO, RW, TestDomain, va};

/// The state of a domain and its vCPU.
fn state(t: &mut TestDomain) -> State {
    let domain = DomainState::of(&mut t.domain).unwrap();
    let mut vcpu = VcpuState::of(&t.vcpu);
    vcpu.poll_has_ended = t.bells.poll_has_ended(t.vcpu.id);
    State { domain, vcpus: vec![vcpu] }
}

/// The state by way of bytes, as a file has it.
fn through_bytes(state: &State) -> State {
    let json = serde_json::to_string(state).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn copy_of(memory: &MachineMemory) -> MachineMemory {
    let copy = MachineMemory::new(memory.guest_base().0, memory.guest_frames(), Backing::Anonymous).unwrap();
    let mut bytes = vec![0; usize::try_from(memory.len()).unwrap()];
    memory.read(Maddr(0), &mut bytes).unwrap();
    copy.write(Maddr(0), &bytes).unwrap();
    copy
}

fn restored(memory: MachineMemory, state: &State) -> Result<(PvDomain, Vec<PvVcpu>), BadDomain> {
    let kicks = state.vcpus.iter().map(|_| Arc::new(CountKicks::default()) as Arc<dyn Kick>).collect();
    restore(
        RestoreParts {
            layout: HypervisorLayout::new(memory.guest_frames(), 0),
            memory,
            reserved_l4: [0; 16],
            stub: &|_| [0; stubs::STUB],
            engine: Origin {
                m2p_va: 0x1000,
                call_length: 2,
                tsc_khz: 1_000_000,
                tsc_offset: 0,
                upper_half: false,
            },
            sink: Box::new(CaptureSink::default()),
            input: ConsoleInput::default(),
            kicks,
            marks: false,
        },
        state,
    )
}

/// What a domain does is the same after it was restored: its counts, ports, timers, registers.
#[test]
fn a_domain_goes_on_where_it_was() {
    let mut t = TestDomain::new();
    let timer = t.events.bind_virq(0, crate::pv::vcpu::VcpuId::BOOT).unwrap();
    t.unmap(30);
    let layout = HypervisorLayout::new(FRAMES, 0);
    let gone = Mfn(t.mfn(30));
    let PvDomain { mmu, memory, log, free_frames, .. } = &mut t.domain;
    mmu.take_from_guest(memory, log, gone).unwrap();
    free_frames.insert(gone);
    t.vcpu.regs.rax = 0x1234;
    t.vcpu.regs.rip = va(5);
    t.vcpu.user_selectors = (0x33, 0x2b);
    t.vcpu.timers.set_singleshot(Some(u64::MAX - 5));
    t.vcpu.timers.set_periodic(Some(5_000_000), 7);
    t.vcpu.state = RunState::Polling;
    t.vcpu.polled.push(timer);
    t.vcpu.traps[14].address = va(9);
    t.vcpu.event.address = va(10);
    t.assists = 1 << 4;
    t.shutdown_code = Some(3);
    *t.watchdogs.deadline(1).unwrap() = Some(99_000_000_000);
    let bells = Arc::clone(&t.bells);
    bells.poll(t.vcpu.id, &[timer]);
    let saved = through_bytes(&state(&mut t));
    let before = t.clock.now();

    let (domain, vcpus) = restored(copy_of(&t.memory), &saved).unwrap();
    let [vcpu] = &vcpus[..] else { panic!() };
    assert!(
        domain.clock.now() >= saved.domain.now && domain.clock.now() - saved.domain.now < before + (1 << 40)
    );
    assert_eq!((vcpu.regs, vcpu.timers, vcpu.state), (t.vcpu.regs, t.vcpu.timers, RunState::Polling));
    assert_eq!((vcpu.polled.ports(), vcpu.user_selectors), (&[timer][..], (0x33, 0x2b)));
    assert!(!domain.bells.poll_has_ended(vcpu.id));
    assert_eq!((vcpu.traps, vcpu.event), (t.vcpu.traps, t.vcpu.event));
    assert_eq!(vcpu.space.root(), Mfn(t.mfn(L4)));
    assert_eq!(domain.events.binding(CONSOLE_PORT), Binding::Host(HostService::Console));
    assert_eq!(domain.events.virq_port(0, vcpu.id), Some(timer));
    assert_eq!((domain.assists, domain.shutdown_code), (t.assists, Some(3)));
    assert_eq!(domain.watchdogs, t.watchdogs);
    assert_eq!(domain.free_frames.len(), 1);
    for mfn in (0..layout.total).map(Mfn) {
        let count = |frame: crate::mmu::direct::frame::Frame| {
            (frame.refs(), frame.type_refs(), frame.held_as(), frame.owner(), frame.pinned())
        };
        assert_eq!(domain.mmu.frame(mfn).map(count), t.mmu.frame(mfn).map(count), "{mfn:?}");
    }
    // The guest is told that its clock goes on: from another reading, by a later version.
    let info: paravane_abi::shared_info::VcpuInfo =
        domain.memory.read_obj(domain.bells.of(vcpu.id).vcpu_info).unwrap();
    assert!(info.time.system_time >= saved.domain.now && info.time.version.is_multiple_of(2));
    assert_eq!(domain.facts.m2p_told, Some(t.facts.m2p_va));
}

#[test]
fn grants_that_are_mapped_are_in_use_again() {
    let mut t = TestDomain::new();
    let (free, mut frames) = (t.mfn(FREE), 0);
    {
        let PvDomain { grants, mmu, memory, log, .. } = &mut t.domain;
        grants.open(memory, mmu, std::iter::empty()).unwrap();
        let entry = GrantEntryV1 { flags: GTF_PERMIT_ACCESS, domid: 1, frame: free as u32 };
        memory.write_obj(Maddr(grants.frame(0).unwrap().maddr().0 + 8 * 9), &entry).unwrap();
        let how = crate::pv::grants::Use { host: false, device: true, readonly: false };
        let frame = grants.acquire(memory, mmu, 9, how, true).unwrap();
        mmu.hold_granted(memory, log, crate::mmu::direct::Granted { frame, writable: true }).unwrap();
        grants.insert(crate::pv::grants::Mapping { entry: 9, how, by_entry: false }).unwrap();
        frames += grants.count();
    }
    let saved = through_bytes(&state(&mut t));
    let (domain, _) = restored(copy_of(&t.memory), &saved).unwrap();
    assert_eq!((domain.grants.count(), domain.grants.used_frame(9)), (frames, Some(Mfn(free))));
    assert_eq!(domain.grants.mapping(0), t.grants.mapping(0));
    let type_refs = |domain: &PvDomain| domain.mmu.frame(Mfn(free)).unwrap().type_refs();
    assert_eq!(type_refs(&domain), type_refs(&t.domain));
}

fn layout_total() -> u64 {
    HypervisorLayout::new(FRAMES, 0).total
}

/// What a guest could never have made is refused, whatever a file says.
#[test]
fn a_state_that_breaks_isolation_is_refused() {
    let mut t = TestDomain::new();
    let good = serde_json::to_value(state(&mut t)).unwrap();
    let (l1, hypervisors, console) = (t.mfn(L1), 1, t.mfn(CONSOLE));
    let attempt = |change: &dyn Fn(&mut serde_json::Value), poke: &dyn Fn(&MachineMemory)| {
        let mut changed = good.clone();
        change(&mut changed);
        let memory = copy_of(&t.memory);
        poke(&memory);
        restored(memory, &serde_json::from_value(changed).unwrap()).map(drop)
    };
    let set = |path: &'static str, value: serde_json::Value| {
        attempt(&|state| *state.pointer_mut(path).unwrap() = value.clone(), &|_| ())
    };
    assert_eq!(attempt(&|_| (), &|_| ()), Ok(()));
    let tables = |outcome| assert!(matches!(outcome, Err(BadDomain::Tables(_))), "{outcome:?}");
    // A table that maps itself writable, one that maps the hypervisor's memory, and one of the wrong level.
    let entry = |index: u64, value: u64| {
        attempt(&|_| (), &|memory| memory.store_u64(Maddr(Mfn(l1).maddr().0 + index * 8), value).unwrap())
    };
    let at = addr::table_index(va(L1), 1) as u64;
    tables(entry(at, pte::make(l1, RW)));
    assert_eq!(entry(at, pte::make(l1, RO)), Ok(()));
    tables(entry(at, pte::make(hypervisors, RO)));
    tables(set("/domain/pins", serde_json::json!([[l1, 4]])));
    tables(set("/domain/pins", serde_json::json!([[u64::MAX, 1]])));
    tables(set("/domain/pins", serde_json::json!([[l1, 7]])));
    tables(set("/vcpus/0/tables/kernel", hypervisors.into()));
    tables(set("/vcpus/0/tables/kernel", l1.into()));
    tables(set("/vcpus/0/tables/user", console.into()));
    tables(set("/vcpus/0/tables/gdt", serde_json::json!([l1])));
    // Frames that the host would write to.
    for frame in [l1, hypervisors, u64::MAX] {
        for path in ["/domain/console", "/domain/store_ring"] {
            assert!(matches!(set(path, frame.into()), Err(BadDomain::Frame(_))), "{path} {frame:#x}");
        }
        let info = serde_json::json!(frame.saturating_mul(PAGE_SIZE));
        assert!(matches!(set("/domain/peers/0/info", info), Err(BadDomain::Frame(_))));
        assert!(matches!(set("/domain/pirq_eoi_map", frame.into()), Err(BadDomain::Frame(_))));
    }
    let info = serde_json::json!(Mfn(console).maddr().0 + PAGE_SIZE - 8);
    assert!(matches!(set("/domain/peers/0/info", info), Err(BadDomain::Frame(_))), "past the frame's end");
    for frame in [hypervisors, u64::MAX] {
        assert!(matches!(set("/domain/hypercall_page", frame.into()), Err(BadDomain::Frame(_))));
        assert!(set("/domain/given_back", serde_json::json!([[frame, 1]])).is_err());
    }
    assert!(set("/domain/given_back", serde_json::json!([[l1, 1]])).is_err(), "a table");
    assert!(set("/domain/given_back", serde_json::json!([[0, u64::MAX]])).is_err());
    let unmapped = layout_total() - 1;
    assert!(set("/domain/given_back", serde_json::json!([[unmapped, 0], [l1, 0]])).is_err(), "out of order");
    // State that a processor or a guest cannot have.
    let nonsense = |outcome| assert!(matches!(outcome, Err(BadDomain::Nonsense(_))), "{outcome:?}");
    nonsense(set("/vcpus/0/regs/gs_base", (1u64 << 63).into()));
    nonsense(set("/vcpus/0/event/address", (1u64 << 63).into()));
    nonsense(set("/vcpus/0/cr4", (1u64 << 13).into()));
    nonsense(set("/vcpus/0/xcr0", 4.into()));
    nonsense(set("/vcpus/0/timers/periodic", serde_json::json!({"period": 0, "next": 0})));
    nonsense(set("/vcpus/0/debug_control", (1u64 << 13).into()));
    nonsense(set("/vcpus/0/runstate/state", (-1).into()));
    nonsense(set("/vcpus/0/kernel_mode", false.into()));
    nonsense(set("/vcpus/0/tables", serde_json::Value::Null));
    nonsense(set("/vcpus", serde_json::json!([])));
    nonsense(set("/domain/now", u64::MAX.into()));
    nonsense(set("/domain/ports/1", serde_json::json!([{"Loop": {"peer": 2}}, 0])));
    nonsense(set("/domain/ports/1", serde_json::json!(["Ipi", 1])));
    let how = serde_json::json!({"host": true, "device": false, "readonly": false});
    let grant = serde_json::json!([[{"entry": 9, "how": how, "by_entry": false}, 5]]);
    nonsense(set("/domain/grants/mappings", grant));
    assert!(set("/domain/grants/frames", u64::MAX.into()).is_err());
    // Flags and privilege levels are those of CPL 3, whatever was saved.
    let memory = copy_of(&t.memory);
    let mut changed = good.clone();
    *changed.pointer_mut("/vcpus/0/regs/rflags").unwrap() = u64::MAX.into();
    *changed.pointer_mut("/vcpus/0/regs/selectors/cs").unwrap() = 0x10.into();
    let (_, vcpus) = restored(memory, &serde_json::from_value(changed).unwrap()).unwrap();
    let flags = vcpus[0].regs.rflags;
    assert_eq!(flags & (crate::x86::rflags::IOPL | crate::x86::rflags::VM), 0);
    assert_eq!(vcpus[0].regs.selectors.cs, paravane_abi::segment::FLAT_KERNEL_CS);
}

/// A vCPU that never was up has no page tables: what it would be told of the time by linear address is told nowhere.
#[test]
fn nothing_is_looked_up_for_a_vcpu_without_page_tables() {
    let kicks = (0..2).map(|_| Arc::new(CountKicks::default()) as Arc<dyn Kick>).collect();
    let mut t = TestDomain::with_kicks(FRAMES, kicks);
    let mut saved = state(&mut t);
    let mut absent = PvVcpu::absent(crate::pv::vcpu::VcpuId::new(1).unwrap(), &t.domain.log);
    absent.runstate.time_area = va(FREE);
    absent.regs.selectors.ds = 7;
    saved.vcpus.push(VcpuState::of(&absent));
    let memory = copy_of(&t.memory);
    // As if the first frame, which is the hypervisor's, were the guest's L4 table.
    let at = addr::table_index(va(0), 4) as u64 * 8;
    let entry = memory.load_u64(Maddr(Mfn(t.mfn(L4)).maddr().0 + at)).unwrap();
    memory.store_u64(Maddr(at), entry).unwrap();
    let (domain, vcpus) = restored(memory, &through_bytes(&saved)).unwrap();
    let free: [u64; 4] = domain.memory.read_obj(Mfn(t.mfn(FREE)).maddr()).unwrap();
    assert_eq!((free, vcpus[1].runstate.time_area), ([0; 4], va(FREE)));
}

/// What is longer than it can be is refused before it takes its room in memory.
#[test]
fn lists_are_decoded_no_longer_than_they_can_be() {
    let mut t = TestDomain::new();
    let good = serde_json::to_value(state(&mut t)).unwrap();
    let decoded = |path: &str, element: serde_json::Value, count| {
        let mut changed = good.clone();
        *changed.pointer_mut(path).unwrap() = vec![element; count].into();
        serde_json::from_value::<State>(changed).is_ok()
    };
    let (vcpu, peer) = (good["vcpus"][0].clone(), good["domain"]["peers"][0].clone());
    for (path, element, most) in [
        ("/domain/grants/mappings", serde_json::Value::Null, crate::pv::grants::MAX_MAPPINGS),
        ("/domain/ports", serde_json::json!(["Free", 0]), 4096),
        ("/domain/peers", peer, 64),
        ("/vcpus", vcpu, 64),
        ("/vcpus/0/traps", serde_json::json!([0, vec![0; 16]]), 256),
        ("/vcpus/0/polled", 0.into(), 128),
        ("/vcpus/0/tables/gdt", 0.into(), 14),
    ] {
        assert!(decoded(path, element.clone(), most), "{path}");
        assert!(!decoded(path, element, most + 1), "{path}");
    }
}

#[test]
fn a_guest_with_devices_or_past_its_end_is_not_saved() {
    let mut t = TestDomain::new();
    t.domain.end = Some(crate::machine::end::DomainEnd::PowerOff);
    assert_eq!(DomainState::of(&mut t.domain).err(), Some(CannotSave::Ended));
}
