//! Steps: a hypercall, a return, or an instruction, with random registers.

use paravane_abi::hypercall as nr;

use super::code::{R8, R9, R10, RAX, RBX, RCX, RDI, RDX, RSI, RSP, SYSCALL, load, short};
use super::*;

/// Hypercalls and their operations, without those that always end or stop the guest.
const CALLS: &[(u64, u64)] = &[
    (nr::MMU_UPDATE, 0),
    (nr::MMU_UPDATE, 0),
    (nr::MMU_UPDATE, 0),
    (nr::SET_GDT, 0),
    (nr::FPU_TASKSWITCH, 2),
    (nr::SET_DEBUGREG, 9),
    (nr::GET_DEBUGREG, 9),
    (nr::UPDATE_DESCRIPTOR, 0),
    (nr::MEMORY_OP, 30),
    (nr::MEMORY_OP, 12),
    (nr::MULTICALL, 0),
    (nr::UPDATE_VA_MAPPING, 0),
    (nr::UPDATE_VA_MAPPING, 0),
    (nr::SET_TIMER_OP, 0),
    (nr::EVENT_CHANNEL_OP_COMPAT, 0),
    (nr::XEN_VERSION, 12),
    (nr::CONSOLE_IO, 3),
    (nr::PHYSDEV_OP_COMPAT, 0),
    (nr::GRANT_TABLE_OP, 14),
    (nr::GRANT_TABLE_OP, 8),
    (nr::VM_ASSIST, 3),
    (nr::UPDATE_VA_MAPPING_OTHERDOMAIN, 0),
    (nr::VCPU_OP, 15),
    (nr::SET_SEGMENT_BASE, 5),
    (nr::MMUEXT_OP, 0),
    (nr::MMUEXT_OP, 0),
    (nr::MMUEXT_OP, 0),
    (nr::NMI_OP, 3),
    (nr::EVENT_CHANNEL_OP, 15),
    (nr::PHYSDEV_OP, 32),
    (nr::HVM_OP, 7),
];

/// Hypercalls that remove the handlers or their stack: few kernels survive them for long.
const FATAL: &[(u64, u64)] =
    &[(nr::SET_TRAP_TABLE, 0), (nr::STACK_SWITCH, 0), (nr::SET_CALLBACKS, 0), (nr::CALLBACK_OP, 3)];

/// Instructions that a kernel might use, and some that it should not. They use random register values.
const INSTRUCTIONS: &[&[u8]] = &[
    &[0xfa],
    &[0xfb],
    &[0xf4],
    &[0xec],
    &[0xef],
    &[0x6c],
    &[0xf3, 0x6e],
    &[0x0f, 0x32],
    &[0x0f, 0x30],
    &[0x0f, 0xa2],
    &[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2],
    &[0x0f, 0x20, 0xc0],
    &[0x0f, 0x20, 0xd0],
    &[0x0f, 0x20, 0xd8],
    &[0x0f, 0x20, 0xe0],
    &[0x0f, 0x22, 0xc0],
    &[0x0f, 0x22, 0xd0],
    &[0x0f, 0x22, 0xd8],
    &[0x0f, 0x22, 0xe0],
    &[0x0f, 0x23, 0xf8],
    &[0x0f, 0x06],
    &[0x0f, 0x01, 0x38],
    &[0x0f, 0x01, 0x18],
    &[0x0f, 0x00, 0xd8],
    &[0x0f, 0x01, 0xf8],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x09],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0x31],
    &[0xcd, 0x80],
    &[0xcd, 0x0d],
    &[0xcc],
    &[0x0f, 0x0b],
    &[0x48, 0x8b, 0x18],
    &[0x48, 0x89, 0x18],
    &[0x88, 0x18],
    &[0xf0, 0x48, 0x0f, 0xb1, 0x18],
    &[0x48, 0x87, 0x18],
    &[0xf3, 0x48, 0xab],
    &[0xff, 0xe0],
    &[0x9d],
    &[0x48, 0xcf],
    &[0x8e, 0xd8],
    &[0xf3, 0x48, 0x0f, 0xae, 0xd8],
];

impl Cook {
    /// One step, followed by the one at `next`.
    pub(super) fn step(&mut self, next: u64) -> Vec<u8> {
        let note = [
            &[0x48, 0xc7, 0x04, 0x25][..],
            &short(NEXT),
            &u32::try_from(next).expect("the image is below 2 GiB").to_le_bytes(),
        ]
        .concat();
        let body = match self.random.below(16) {
            0..11 => self.call(),
            11 => self.iret(),
            _ if self.random.below(64) == 0 => self.random.bytes(8),
            // mov rsp, VALUE; push rax
            _ if self.random.below(128) == 0 => [load(RSP, self.value()), vec![0x50]].concat(),
            _ => self.instruction(),
        };
        [note, body].concat()
    }

    fn call(&mut self) -> Vec<u8> {
        let fatal = self.random.below(128) == 0;
        let (number, operations) = self.random.one_of(if fatal { FATAL } else { CALLS });
        let mut args = [0; 6].map(|_| self.value());
        if operations > 0 {
            args[0] = self.random.below(operations);
        } else if self.random.below(4) > 0 {
            args[0] = self.address();
        }
        match number {
            // Lists: mostly short, and for this domain.
            nr::MMU_UPDATE | nr::MMUEXT_OP => {
                args[1] = self.count();
                args[2] = if self.random.below(2) == 0 { 0 } else { self.address() };
                args[3] = self.domain();
            }
            nr::MULTICALL | nr::SET_GDT => args[1] = self.count(),
            nr::GRANT_TABLE_OP if self.random.below(4) > 0 => {
                let element = args[0].min(GRANT_OPS - 1) * ELEMENTS_EACH + self.random.below(ELEMENTS_EACH);
                args[1] = ENTRY + ELEMENTS + element * ELEMENT_BYTES;
                args[2] = 1;
            }
            nr::GRANT_TABLE_OP => (args[1], args[2]) = (self.address(), self.count()),
            nr::UPDATE_VA_MAPPING => (args[0], args[1]) = (self.mapped(), self.entry()),
            nr::VCPU_OP => (args[1], args[2]) = (self.random.below(2), self.address()),
            _ if operations > 0 && self.random.below(4) > 0 => args[1] = self.address(),
            _ => {}
        }
        let registers =
            [RDI, RSI, RDX, R10, R8, R9].into_iter().zip(args).flat_map(|(r, value)| load(r, value));
        let number = if self.random.below(64) == 0 { self.value() } else { number };
        registers.chain(load(RAX, number)).chain(SYSCALL).collect()
    }

    /// Pushes a frame and makes the `iret` hypercall.
    fn iret(&mut self) -> Vec<u8> {
        let selector = [0x33, 0x2b, 0xe033, 0xe030, 0xe02b, 0, 0x10];
        let frame = [
            self.random.one_of(&selector),
            ENTRY + STACK,
            self.random.one_of(&[0x202, 0x302, 0x3202, 0x2_0202, 2]),
            self.random.one_of(&selector),
            self.mapped(),
            self.random.below(2) << 8,
            0,
            0,
            0,
        ];
        // mov rbx, value; push rbx
        let pushes = frame.iter().flat_map(|value| [load(RBX, *value), vec![0x53]].concat());
        pushes.chain([0xb8, nr::IRET as u8, 0, 0, 0]).chain(SYSCALL).take(STEP_BYTES - 12).collect()
    }

    fn instruction(&mut self) -> Vec<u8> {
        let pointer = if self.random.below(2) == 0 { self.mapped() } else { self.value() };
        let few = self.random.below(64);
        // mov ecx, small: counts, and numbers of MSRs.
        let msr = self.random.one_of(&[
            0xc000_0080,
            0xc000_0100,
            0xc000_0101,
            0xc000_0103,
            0x4000_0000,
            0x1b,
            0x10,
        ]);
        let count = if self.random.below(2) == 0 { few } else { msr };
        let registers =
            [load(RAX, pointer), load(RBX, self.entry()), load(RCX, count), load(RDX, self.value())];
        [registers.concat(), load(RDI, self.mapped()), self.random.one_of(INSTRUCTIONS).to_vec()].concat()
    }
}
