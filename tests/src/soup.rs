//! Kernels that do what no kernel would: random hypercalls and instructions, with arguments that are nearly right.
//!
//! A kernel is determined by its seed. It is a row of steps, each of which makes one call or executes one
//! instruction with registers of its choice; whatever a step runs into, the handlers go on with the next one. What
//! the steps do to the kernel itself (they may well overwrite it) is part of the game.

use std::ops::Range;

use paravane::domain::layout::HypervisorLayout;
use paravane_abi::grant::*;
use paravane_abi::hypercall as nr;
use paravane_abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MmuextOp, UVMF_INVLPG};
use paravane_abi::start_info::StartInfo;
use paravane_abi::{addr, domid, pte, sched, segment, trap};
use zerocopy::IntoBytes;

use crate::images::{ENTRY, HYPERCALL_PAGE, Kind, SIZE, VIRT_BASE, kernel};
use crate::random::SplitMix64;

/// Steps of a kernel.
pub const STEPS: u64 = 256;
const STEP_BYTES: usize = 128;

/// Offsets from [`ENTRY`]: handlers, the first step, then what the arguments point into.
const PLAIN: u64 = 0x200;
const WITH_ERROR: u64 = 0x280;
const FAILSAFE: u64 = 0x300;
const FIRST: u64 = 0x380;
/// Elements of grant operations, so many for each; entries of the grant table, and where it is mapped.
const ELEMENTS: u64 = 0xa000;
const ELEMENTS_EACH: u64 = 4;
const ELEMENT_BYTES: u64 = 40;
const GRANT_OPS: u64 = 12;
const GRANTS: u64 = 0xaa00;
const GRANT_ENTRIES: u64 = 32;
const GRANT_TABLE: u64 = VIRT_BASE + 80 * addr::PAGE_SIZE;
const SETUP: u64 = 0xab80;
const TRAPS: u64 = 0xb000;
const NEXT: u64 = 0xb800;
const ROOT: u64 = 0xb900;
const DATA: u64 = 0xc000;
const DATA_BYTES: u64 = 0x2000;
const STACK: u64 = SIZE - 0x1000;

const _: () = assert!(FIRST + (STEPS + 1) * STEP_BYTES as u64 <= ELEMENTS);
const _: () = assert!(ELEMENTS + GRANT_OPS * ELEMENTS_EACH * ELEMENT_BYTES <= GRANTS);
const _: () =
    assert!(GRANTS + GRANT_ENTRIES * 8 <= SETUP && SETUP + 0x80 <= TRAPS && DATA + DATA_BYTES < STACK);

/// Bytes of memory for a kernel of this kind.
pub const MEMORY: u64 = 8 << 20;
const PAGES: u64 = MEMORY / addr::PAGE_SIZE;

/// The kernel of a seed.
pub fn soup(seed: u64) -> Vec<u8> {
    let layout = HypervisorLayout::new(PAGES, 0);
    let (frame_base, shared) = (layout.hypervisor_frames(), layout.shared());
    let mut cook = Cook { random: SplitMix64::new(seed), frame_base, shared };
    let mut code = Vec::new();
    put(&mut code, 0, &prologue(frame_base, layout.grants.start));
    put(&mut code, PLAIN, &handler(0));
    put(&mut code, WITH_ERROR, &handler(1));
    put(&mut code, FAILSAFE, &handler(4));
    for n in 0..STEPS {
        let step = cook.step(ENTRY + FIRST + (n + 1) * STEP_BYTES as u64);
        put(&mut code, FIRST + n * STEP_BYTES as u64, &step);
    }
    put(&mut code, FIRST + STEPS * STEP_BYTES as u64, &power_off());
    let elements: Vec<u8> =
        (0..GRANT_OPS * ELEMENTS_EACH).flat_map(|n| cook.element(n / ELEMENTS_EACH)).collect();
    put(&mut code, ELEMENTS, &elements);
    put(&mut code, GRANTS, &cook.grants());
    put(&mut code, SETUP, &setup_table());
    put(&mut code, TRAPS, &trap_table());
    let words: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|_| cook.value().to_le_bytes()).collect();
    put(&mut code, DATA, &words);
    kernel(Kind::Pv, &code)
}

/// Puts bytes at an offset; what was skipped is NOPs.
fn put(code: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = at as usize;
    assert!(code.len() <= at, "broken test: the parts of the kernel overlap at {at:#x}");
    code.resize(at, 0x90);
    code.extend_from_slice(bytes);
}

/// `mov REG, value`, by the register's number in instructions.
fn load(register: u8, value: u64) -> Vec<u8> {
    let prefix = if register < 8 { 0x48 } else { 0x49 };
    [&[prefix, 0xb8 | register & 7][..], &value.to_le_bytes()].concat()
}

/// An address in the image as instructions hold it: they sign-extend 32 bits.
fn short(offset: u64) -> [u8; 4] {
    u32::try_from(ENTRY + offset).expect("the image is below 2 GiB").to_le_bytes()
}

// Numbers of registers in instructions (SDM vol. 2, table 2-2).
const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;
const RSP: u8 = 4;
const RSI: u8 = 6;
const RDI: u8 = 7;
const R8: u8 = 8;
const R9: u8 = 9;
const R10: u8 = 10;
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The argument of `GNTTABOP_setup_table`: one frame, whose number comes behind it.
fn setup_table() -> Vec<u8> {
    let setup = GnttabSetupTable {
        dom: domid::DOMID_SELF,
        nr_frames: 1,
        frame_list: ENTRY + SETUP + 0x40,
        ..GnttabSetupTable::default()
    };
    setup.as_bytes().to_vec()
}

/// Registers the handlers, makes the kernel's tables the user's too, grants a few pages, and goes to the first step.
fn prologue(frame_base: u64, grant_table: u64) -> Vec<u8> {
    let [pt_base] =
        [std::mem::offset_of!(StartInfo, pt_base)].map(|at| u8::try_from(at).expect("a short way"));
    let [argument] = [std::mem::offset_of!(MmuextOp, arg1)].map(|at| u8::try_from(at).expect("a short way"));
    let start = [
        load(RSP, ENTRY + STACK),
        // mov rax, [rsi + pt_base]; shr rax, 12; add rax, rbx: the root's frame
        vec![0x48, 0x8b, 0x46, pt_base],
        load(RBX, frame_base.wrapping_sub(VIRT_BASE >> 12)),
        vec![0x48, 0xc1, 0xe8, 12, 0x48, 0x01, 0xd8],
        // mov rdi, ROOT; mov [rdi + arg1], rax; mov dword ptr [rdi], NEW_USER_BASEPTR
        load(RDI, ENTRY + ROOT),
        vec![0x48, 0x89, 0x47, argument, 0xc7, 0x07, MMUEXT_NEW_USER_BASEPTR as u8, 0, 0, 0],
        load(RSI, 1),
        load(RDX, 0),
        load(R10, domid::DOMID_SELF.into()),
        load(RAX, nr::MMUEXT_OP),
        SYSCALL.to_vec(),
        load(RAX, nr::SET_TRAP_TABLE),
        load(RDI, ENTRY + TRAPS),
        SYSCALL.to_vec(),
        load(RAX, nr::SET_CALLBACKS),
        load(RDI, ENTRY + PLAIN),
        load(RSI, ENTRY + FAILSAFE),
        load(RDX, ENTRY + PLAIN),
        SYSCALL.to_vec(),
        load(RAX, nr::STACK_SWITCH),
        load(RSI, ENTRY + STACK),
        SYSCALL.to_vec(),
        load(RAX, nr::GRANT_TABLE_OP),
        load(RDI, GNTTABOP_SETUP_TABLE.into()),
        load(RSI, ENTRY + SETUP),
        load(RDX, 1),
        SYSCALL.to_vec(),
        load(RAX, nr::UPDATE_VA_MAPPING),
        load(RDI, GRANT_TABLE),
        load(RSI, pte::make(grant_table, 0x67)),
        load(RDX, UVMF_INVLPG),
        SYSCALL.to_vec(),
        load(RDI, GRANT_TABLE),
        load(RSI, ENTRY + GRANTS),
        load(RCX, GRANT_ENTRIES),
        // rep movsq
        vec![0xf3, 0x48, 0xa5],
    ]
    .concat();
    let jump = u32::try_from(FIRST as usize - start.len() - 5).expect("forwards").to_le_bytes();
    [&start[..], &[0xe9], &jump].concat()
}

/// A handler with so many words between r11 and rip in its frame: returns to the next step, in the
/// kernel and on its stack.
fn handler(words: u8) -> Vec<u8> {
    [
        // pop rcx; pop r11; add rsp, 8 * words; mov rax, [NEXT]
        &[0x59, 0x41, 0x5b, 0x48, 0x83, 0xc4, 8 * words, 0x48, 0x8b, 0x04, 0x25][..],
        &short(NEXT),
        // mov [rsp], rax; mov qword ptr [rsp + 24], STACK
        &[0x48, 0x89, 0x04, 0x24, 0x48, 0xc7, 0x44, 0x24, 0x18],
        &short(STACK),
        // mov word ptr [rsp + 8], 0xe030; mov word ptr [rsp + 32], 0xe02b: the kernel's, whoever was interrupted
        &[0x66, 0xc7, 0x44, 0x24, 0x08, 0x30, 0xe0, 0x66, 0xc7, 0x44, 0x24, 0x20, 0x2b, 0xe0],
        // mov qword ptr [rsp + 16], 2: an event that nobody takes must not come again and again
        &[0x48, 0xc7, 0x44, 0x24, 0x10, 0x02, 0x00, 0x00, 0x00],
        // push 0; push rcx; push r11; push rax; mov eax, iret
        &[0x6a, 0x00, 0x51, 0x41, 0x53, 0x50, 0xb8, nr::IRET as u8, 0, 0, 0],
        &SYSCALL,
    ]
    .concat()
}

fn trap_table() -> Vec<u8> {
    let entry = |vector: u8| {
        let with_error = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
        let at = ENTRY + if with_error { WITH_ERROR } else { PLAIN };
        let [low, high] = segment::FLAT_KERNEL_CS.to_le_bytes();
        [&[vector, 3 | trap::TI_IF, low, high, 0, 0, 0, 0][..], &at.to_le_bytes()].concat()
    };
    let end = vec![0; 16];
    (0..32).chain(0x80..0x82).map(entry).chain([end]).flatten().collect()
}

/// `SCHEDOP_shutdown` for the reason 0.
fn power_off() -> Vec<u8> {
    let stack = load(RSP, ENTRY + STACK);
    // push 0; mov rsi, rsp
    let reason = vec![0x6a, sched::SHUTDOWN_POWEROFF as u8, 0x48, 0x89, 0xe6];
    let call =
        [load(RAX, nr::SCHED_OP), load(RDI, sched::SCHEDOP_SHUTDOWN.into()), SYSCALL.to_vec()].concat();
    [stack, reason, call, vec![0x0f, 0x0b]].concat()
}

/// Calls, and the operations that are drawn for them. Not among them: what ends or stops the guest by itself.
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

/// Calls that take the handlers away, or the stack below them: few kernels live on for long.
const FATAL: &[(u64, u64)] =
    &[(nr::SET_TRAP_TABLE, 0), (nr::STACK_SWITCH, 0), (nr::SET_CALLBACKS, 0), (nr::CALLBACK_OP, 3)];

/// Instructions that a kernel might use, and some that nobody should. Registers are drawn before.
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

/// Draws everything that is left to chance.
struct Cook {
    random: SplitMix64,
    frame_base: u64,
    /// Frames of the hypervisor that the kernel may map.
    shared: Range<u64>,
}

impl Cook {
    /// One step, after which comes the one at `next`.
    fn step(&mut self, next: u64) -> Vec<u8> {
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
            // Lists: mostly short, of the domain's own.
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

    /// Pushes a frame and returns by it.
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
        // mov ecx, few: counts, and numbers of MSRs.
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

    /// A number that something in the ABI could be.
    fn value(&mut self) -> u64 {
        match self.random.below(12) {
            0..3 => self.random.below(16),
            3 => self.count(),
            4 => self.domain(),
            5 => self.address(),
            6 => self.frame(),
            7 => self.slot(),
            8 => self.entry(),
            9 => self.mapped(),
            // Pairs of small numbers, for structures of shorter fields.
            10 => self.random.below(16) << 32 | self.domain() << 16 | self.random.below(16),
            _ => self.random.any() >> self.random.below(64),
        }
    }

    /// An element of a grant operation, as likely as not one that makes sense.
    fn element(&mut self, op: u64) -> Vec<u8> {
        let (r, handle) = (self.random.below(GRANT_ENTRIES) as u32, self.random.below(4) as u32);
        let dom = self.random.one_of(&[1, 1, 1, domid::DOMID_SELF, 0]);
        let (host_addr, new_addr) = (self.mapped(), self.mapped());
        let [source, dest] = [0, 1].map(|_| GnttabCopyPtr {
            u: self.random.below(GRANT_ENTRIES),
            domid: dom,
            offset: self.random.below(0x1100) as u16,
            ..GnttabCopyPtr::default()
        });
        let mut bytes = match u32::try_from(op).expect("a small number") {
            GNTTABOP_MAP_GRANT_REF => {
                let flags =
                    self.random.below(16) as u32 | self.random.one_of(&[0, 0, 0, GNTMAP_CONTAINS_PTE]);
                let host_addr = if flags & GNTMAP_CONTAINS_PTE == 0 { host_addr } else { self.slot() };
                let map =
                    GnttabMapGrantRef { host_addr, flags, r#ref: r, dom, ..GnttabMapGrantRef::default() };
                map.as_bytes().to_vec()
            }
            GNTTABOP_UNMAP_GRANT_REF => {
                let dev_bus_addr = self.random.one_of(&[0, self.frame_base << 12]);
                GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, status: 0, _pad: 0 }
                    .as_bytes()
                    .to_vec()
            }
            GNTTABOP_UNMAP_AND_REPLACE => {
                GnttabUnmapAndReplace { host_addr, new_addr, handle, status: 0, _pad: 0 }.as_bytes().to_vec()
            }
            GNTTABOP_TRANSFER => {
                let transfer =
                    GnttabTransfer { mfn: self.frame(), domid: dom, r#ref: r, ..GnttabTransfer::default() };
                transfer.as_bytes().to_vec()
            }
            GNTTABOP_COPY => {
                let (len, flags) = (self.random.below(0x1100) as u16, self.random.one_of(&[3, 3, 1, 2, 0]));
                GnttabCopy { source, dest, len, flags, ..GnttabCopy::default() }.as_bytes().to_vec()
            }
            _ => (0..ELEMENT_BYTES / 8).flat_map(|_| self.value().to_le_bytes()).collect(),
        };
        bytes.resize(ELEMENT_BYTES as usize, 0);
        bytes
    }

    /// The first entries of the grant table, most of them grants of free pages to the kernel itself.
    fn grants(&mut self) -> Vec<u8> {
        let entry = |_| {
            let flags = self.random.one_of(&[1, 1, 1, 1 | GTF_READONLY, GTF_ACCEPT_TRANSFER, 0, 0xffff]);
            let domid = self.random.one_of(&[1, 1, 1, 1, 0]);
            GrantEntryV1 { flags, domid, frame: self.frame() as u32 }.as_bytes().to_vec()
        };
        (0..GRANT_ENTRIES).flat_map(entry).collect()
    }

    fn count(&mut self) -> u64 {
        let many = [0, 8, 300, 1 << 20, 1 << 31 | 1, u64::MAX];
        if self.random.below(4) > 0 { 1 + self.random.below(3) } else { self.random.one_of(&many) }
    }

    fn domain(&mut self) -> u64 {
        let others = [0, 1, 9, domid::DOMID_IO.into(), domid::DOMID_XEN.into()];
        if self.random.below(4) > 0 { domid::DOMID_SELF.into() } else { self.random.one_of(&others) }
    }

    /// Where a structure might be.
    fn address(&mut self) -> u64 {
        let wrong = [
            0,
            0x7fff_ffff_f000,
            addr::HYPERVISOR_VIRT_START,
            1 << 47,
            u64::MAX - 7,
            ENTRY + DATA + DATA_BYTES - 4,
        ];
        match self.random.below(16) {
            0 => self.random.one_of(&wrong),
            1 => self.mapped(),
            _ => ENTRY + DATA + self.random.below(DATA_BYTES / 8) * 8,
        }
    }

    /// An address in the initial mapping, often one with nothing of the kernel's own.
    fn mapped(&mut self) -> u64 {
        let page = self.page();
        VIRT_BASE + page * addr::PAGE_SIZE + self.random.below(512) * 8
    }

    /// A page: a free one, or from the end of the image on, where lists, tables and the stack are.
    fn page(&mut self) -> u64 {
        let image_end = (HYPERCALL_PAGE + SIZE - VIRT_BASE) / addr::PAGE_SIZE;
        match self.random.below(4) {
            0 => image_end + self.random.below(24),
            1 => self.random.below(PAGES),
            _ => self.random.below(64),
        }
    }

    fn frame(&mut self) -> u64 {
        match self.random.below(8) {
            0 if self.random.below(2) == 0 => self.shared.start + self.random.below(3),
            0 => self.random.below(self.frame_base),
            1 => self.random.one_of(&[PAGES + self.frame_base, u64::MAX >> 12, u64::MAX]),
            _ => self.frame_base + self.page(),
        }
    }

    /// The machine address of a page-table entry, perhaps with a command.
    fn slot(&mut self) -> u64 {
        let entry = self.frame().wrapping_mul(addr::PAGE_SIZE).wrapping_add(self.random.below(512) * 8);
        if self.random.below(4) > 0 { entry } else { entry | self.random.below(8) }
    }

    fn entry(&mut self) -> u64 {
        let flags = [0, 1, 3, 5, 7, 0x67, 0x65, 0x27, pte::NX | 7, 0x87, 0x107];
        pte::make(self.frame(), self.random.one_of(&flags))
    }
}
