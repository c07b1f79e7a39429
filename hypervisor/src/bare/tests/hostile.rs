//! A kernel that does arbitrary things.

use proptest::prelude::*;

use super::*;
use crate::x86::walk::{MachineTables, walk};

/// Mapped addresses, and some that are not.
fn any_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..0x40_1000).prop_map(|offset| BASE + offset),
        2 => (0u64..0x7000).prop_map(|offset| BASE + TABLES + offset),
        1 => any::<u64>(),
        1 => prop::sample::select(vec![0, 1 << 47, u64::MAX, 0xffff_8000_4000_0000]),
    ]
}

fn any_regs() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![any_address(), any::<u64>(), 0u64..16], 20)
}

/// The first bytes of instructions that trap, which random bytes would seldom be.
const OPCODES: [&[u8]; 30] = [
    &[0xfa],
    &[0xfb],
    &[0xf4],
    &[0x0f, 0x01],
    &[0x0f, 0x00],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0x21],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x48, 0xcf],
    &[0x48, 0xcb],
    &[0x48, 0x0f, 0x07],
    &[0xe4],
    &[0xee],
    &[0x66, 0xed],
    &[0xf3, 0x6e],
    &[0xf2, 0x66, 0x6d],
    &[0x8e],
    &[0x0f, 0xa1],
    &[0xcd],
    &[0x48, 0xff],
    &[0xff],
    &[0x48, 0x0f, 0xb2],
    &[0xf3, 0x48, 0xa5],
    &[0xf3, 0xaa],
    &[0xf0, 0x48, 0x0f],
    &[0x48, 0x81],
    &[0x80],
];

/// Stores through RDI.
const STORES: [&[u8]; 8] = [
    &[0x48, 0x89, 0x07],
    &[0x48, 0x87, 0x07],
    &[0xf0, 0x48, 0x0f, 0xc1, 0x07],
    &[0xf3, 0x48, 0xab],
    &[0xf3, 0xaa],
    &[0x48, 0x0f, 0xab, 0x0f],
    &[0x80, 0x27],
    &[0x0f, 0x29, 0x07],
];

#[derive(Clone, Debug)]
struct Attack {
    code: Vec<u8>,
    regs: Vec<u64>,
    exit: Exit,
    rip: u64,
    user: bool,
    poke: (u64, u64),
}

const RSP: usize = 7;
const RDI: usize = 5;

/// Any exit, at any address.
fn any_exit() -> impl Strategy<Value = Exit> {
    let fault = (0u8..32, any::<u32>(), any_address())
        .prop_map(|(vector, error_code, address)| Exit::Fault(Fault { vector, error_code, address }));
    prop_oneof![
        8 => (any::<u32>(), prop::sample::select(vec![6u8, 13]))
            .prop_map(|(error_code, vector)| Exit::Fault(Fault { vector, error_code, address: 0 })),
        4 => (any_address(), 0u32..32)
            .prop_map(|(address, error_code)| Exit::Fault(Fault { vector: 14, error_code, address })),
        1 => fault,
        1 => Just(Exit::Syscall),
        1 => Just(Exit::Hypercall),
        1 => Just(Exit::Kick),
    ]
}

fn any_attack() -> impl Strategy<Value = Attack> {
    let code = (prop::option::weighted(0.9, prop::sample::select(&OPCODES[..])), any::<[u8; 12]>())
        .prop_map(|(start, rest)| [start.unwrap_or(&[]), &rest].concat());
    let rip = prop_oneof![19 => Just(BASE + CODE), 1 => any_address()];
    let poke = (0u64..0x40_0000, any::<u64>());
    let wild = (code, any_regs(), any_exit(), rip, prop::bool::weighted(0.15), poke, any::<u8>()).prop_map(
        |(code, mut regs, exit, rip, user, poke, sane)| {
            if sane > 40 {
                regs[RSP] = BASE + STACK;
            }
            Attack { code, regs, exit, rip, user, poke }
        },
    );
    prop_oneof![2 => wild, 1 => any_table_store()]
}

/// A store of any kind to the page tables.
fn any_table_store() -> impl Strategy<Value = Attack> {
    let code = (prop::sample::select(&STORES[..]), any::<[u8; 4]>())
        .prop_map(|(start, rest)| [start, &rest].concat());
    let value = (0u64..1100, any::<u64>())
        .prop_map(|(frame, bits)| frame << 12 | bits & (0xfff | pte::NX) | pte::PRESENT);
    let poke = (0u64..0x40_0000, any::<u64>());
    (code, any_regs(), 0u64..0x5000, value, poke).prop_map(|(code, mut regs, offset, value, poke)| {
        let address = BASE + TABLES + offset;
        (regs[0], regs[RDI], regs[RSP]) = (value, address, BASE + STACK);
        let exit = Exit::Fault(Fault { vector: 14, error_code: 0b111, address });
        Attack { code, regs, exit, rip: BASE + CODE, user: false, poke }
    })
}

impl Guest {
    fn attack(&mut self, attack: &Attack) -> BareExit {
        let r = &mut self.regs;
        let fields = [
            &mut r.rax,
            &mut r.rbx,
            &mut r.rcx,
            &mut r.rdx,
            &mut r.rsi,
            &mut r.rdi,
            &mut r.rbp,
            &mut r.rsp,
            &mut r.r8,
            &mut r.r9,
            &mut r.r10,
            &mut r.r11,
            &mut r.r12,
            &mut r.r13,
            &mut r.r14,
            &mut r.r15,
            &mut r.rip,
            &mut r.rflags,
            &mut r.fs_base,
            &mut r.gs_base,
        ];
        for (field, value) in fields.into_iter().zip(&attack.regs) {
            *field = *value;
        }
        r.rip = attack.rip;
        self.poke_bytes(CODE, &attack.code);
        // A store that the guest could make without a trap: not to a table in use. The descriptor tables are mostly
        // spared, because without handlers the guest would soon end.
        let (at, value) = attack.poke;
        let spared = (GDT..CODE).contains(&at) && value % 16 != 0;
        if !spared && !self.machine.shadow.is_table(at >> 12) {
            let end = (at | 0xfff) + 1;
            let bytes = value.to_le_bytes();
            let len = bytes.len().min((end - at) as usize);
            self.poke_bytes(at, &bytes[..len]);
        }
        if attack.user != self.machine.cpu.user {
            self.machine.cpu.user = attack.user;
            let cpu = &self.machine.cpu;
            let (cr3, view, controls) = (cpu.cr3, view(cpu), controls(cpu));
            let _ =
                self.machine.shadow.activate(&self.mem, &mut self.log, &mut self.space, cr3, view, controls);
        }
        self.exit(attack.exit)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    /// Whatever a guest executes, wherever it faults: the host does not panic, and the guest can neither reach a frame
    /// that is not its own nor write a table in use.
    #[test]
    fn anything_goes_nothing_breaks(
        attacks in prop::collection::vec(any_attack(), 1..30),
        vas in prop::collection::vec(any_address(), 16),
    ) {
        let mut g = Guest::booted();
        for attack in &attacks {
            g.now = g.now.wrapping_add(100_000);
            let handled = g.attack(attack);
            if matches!(handled.outcome, BareOutcome::Ended(_)) || g.pending().is_err() {
                break;
            }
            for &va in vas.iter().chain([&(BASE + CODE), &(BASE + TABLES), &(BASE + L1)]) {
                let root = g.space.root().maddr().0;
                let Ok(found) = walk(&g.mem, &MachineTables, root, va) else { continue };
                let frame = found.maddr.expect("machine memory").mfn();
                let pfn = g.mem.mfn_to_pfn(frame);
                prop_assert!(pfn.is_some(), "{va:#x} reaches the hypervisor's frame {frame:?}");
                prop_assert!(!found.writable || !g.machine.shadow.is_table(pfn.unwrap()));
            }
        }
    }
}
