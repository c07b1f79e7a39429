//! Steps of the kernel, and user programs: an instruction or a few, with random registers.

use super::code::{
    KERNEL_CODE, KERNEL_DATA, RAX, RBX, RCX, RDI, RDX, RSI, USER_CODE, USER_DATA, at, jump, load, mix, short,
};
use super::*;

/// Instructions whose operands are in RAX, RCX and RDX, if they have any; the kernel survives each of them.
const PRIVILEGED: &[&[u8]] = &[
    // cli; sti; clts; wbinvd; swapgs twice
    &[0xfa],
    &[0xfb],
    &[0x0f, 0x06],
    &[0x0f, 0x09],
    &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8],
    // invlpg [rax]
    &[0x0f, 0x01, 0x38],
    // mov eax, 0x50; ltr ax: a busy TSS. (The null selector QEMU loads without a fault, and then dies.)
    &[0xb8, 0x50, 0, 0, 0, 0x0f, 0x00, 0xd8],
    // lldt of the null selector, and of one without a descriptor
    &[0x31, 0xc0, 0x0f, 0x00, 0xd0],
    &[0xb8, 0xf0, 0xff, 0, 0, 0x0f, 0x00, 0xd0],
    // mov rax, cr0; cr2; cr3; cr4; cr8
    &[0x0f, 0x20, 0xc0],
    &[0x0f, 0x20, 0xd0],
    &[0x0f, 0x20, 0xd8],
    &[0x0f, 0x20, 0xe0],
    &[0x44, 0x0f, 0x20, 0xc0],
    // mov cr2, rdx; and edx, 15; mov cr8, rdx; mov rax, cr8
    &[0x0f, 0x22, 0xd2],
    &[0x83, 0xe2, 0x0f, 0x44, 0x0f, 0x22, 0xc2, 0x44, 0x0f, 0x20, 0xc0],
    // mov rax, cr3; mov cr3, rax; mov rax, cr4; mov cr4, rax
    &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],
    &[0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0],
    // mov rax, cr0; or eax, 8; mov cr0, rax; mov rbx, cr0; clts
    &[0x0f, 0x20, 0xc0, 0x83, 0xc8, 0x08, 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xc3, 0x0f, 0x06],
    // no such paging: mov rax, cr0; btr eax, 31; mov cr0, rax; mov rax, cr4; and eax, ~32; mov cr4, rax
    &[0x0f, 0x20, 0xc0, 0x0f, 0xba, 0xf0, 31, 0x0f, 0x22, 0xc0],
    &[0x0f, 0x20, 0xe0, 0x83, 0xe0, 0xdf, 0x0f, 0x22, 0xe0],
];

/// Exceptions and interrupts by instructions, in either mode.
const RAISING: &[&[u8]] = &[
    // int3; int 0x82; ud2
    &[0xcc],
    &[0xcd, 0x82],
    &[0x0f, 0x0b],
    // xor ecx, ecx; div rcx
    &[0x31, 0xc9, 0x48, 0xf7, 0xf1],
    // a load from a non-canonical address
    &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x5a, 0x48, 0x8b, 0x18],
];

/// Interrupts through gates that are for the kernel only: what QEMU gives user programs for them is not what a processor
/// does.
const KERNELS_GATES: &[&[u8]] = &[&[0xcd, 0x83], &[0xcd, 0x05]];

/// Accesses to memory at RAX or RDI, with RBX or RCX.
const ACCESSES: &[&[u8]] = &[
    // mov rbx, [rax]; mov [rax], rbx; mov [rax], bl; xchg [rax], rbx; lock cmpxchg [rax], rbx; add [rax], rbx
    &[0x48, 0x8b, 0x18],
    &[0x48, 0x89, 0x18],
    &[0x88, 0x18],
    &[0x48, 0x87, 0x18],
    &[0xf0, 0x48, 0x0f, 0xb1, 0x18],
    &[0x48, 0x01, 0x18],
    // and ecx, 63; rep stosq; and ecx, 31; rep movsb
    &[0x83, 0xe1, 63, 0xf3, 0x48, 0xab],
    &[0x83, 0xe1, 31, 0xf3, 0xa4],
    // push [rax]; pop rbx
    &[0xff, 0x30, 0x5b],
];

/// Instructions that do the same at any level.
const PLAIN: &[&[u8]] = &[
    // imul rax, rbx; xor rax, rcx; rol rdx, 13; bswap rax; lea rdx, [rax + rbx * 4]; mul rcx; not rbx
    &[0x48, 0x0f, 0xaf, 0xc3],
    &[0x48, 0x31, 0xc8],
    &[0x48, 0xc1, 0xc2, 13],
    &[0x48, 0x0f, 0xc8],
    &[0x48, 0x8d, 0x14, 0x98],
    &[0x48, 0xf7, 0xe1],
    &[0x48, 0xf7, 0xd3],
    // add rax, rbx; adc rdx, rcx; sbb rbx, rbx; cmp rax, rdx; setb bl; cmovg rcx, rax
    &[0x48, 0x01, 0xd8, 0x48, 0x11, 0xca],
    &[0x48, 0x39, 0xd0, 0x48, 0x19, 0xdb],
    &[0x48, 0x39, 0xd0, 0x0f, 0x92, 0xc3, 0x48, 0x0f, 0x4f, 0xc8],
];

/// Ports that read the same whenever they are read.
const READ: [u64; 9] = [0x3fd, 0x3fb, 0x3ff, 0x21, 0xa1, 0x71, 0x64, 0x1234, 0xfff0];
/// Ports that take anything without a consequence.
const WRITTEN: [u64; 4] = [0x3ff, 0x70, 0x1234, 0xfff0];
/// MSRs with bases and entry points; the last two do not exist.
const MSRS: [u64; 7] =
    [0xc000_0081, 0xc000_0082, 0xc000_0100, 0xc000_0101, 0xc000_0102, 0xdead_beef, 0x4b56_0000];

impl Cook {
    /// Step `number` at `start`, and the way to the next.
    pub(super) fn step(&mut self, number: u64, start: u64) -> Vec<u8> {
        let next = start + STEP_BYTES;
        let mut step = [at(&[0x48, 0xc7, 0x04], NEXT), short(next).to_vec()].concat();
        // mov r15, [SUM]; mov [LOG + 8 * number], r15
        step.extend([at(&[0x4c, 0x8b, 0x3c], SUM), at(&[0x4c, 0x89, 0x3c], LOG + 8 * number)].concat());
        step.extend(match self.random.below(16) {
            0..4 => self.one(PRIVILEGED),
            4 if self.random.below(4) == 0 => self.one(KERNELS_GATES),
            4 => self.one(RAISING),
            5..8 => self.access(),
            8 | 9 => self.port(),
            10 => self.msr(),
            11 | 12 => self.remap(),
            13 => self.iret(next),
            14 => self.user(),
            _ => self.one(PLAIN),
        });
        for register in [RAX, RBX, RCX, RDX, RSI, RDI] {
            step.extend(mix(register));
        }
        step.extend(jump(start + step.len() as u64, next));
        assert!(step.len() as u64 <= STEP_BYTES, "broken test: a step of {} bytes", step.len());
        step
    }

    /// Random values in RAX, RBX, RCX and RDX, then one of `instructions`.
    fn one(&mut self, instructions: &[&[u8]]) -> Vec<u8> {
        let values = [RAX, RDX].map(|register| load(register, self.value())).concat();
        [values, self.random.one_of(instructions).to_vec()].concat()
    }

    fn access(&mut self) -> Vec<u8> {
        [
            load(RAX, self.pointer()),
            load(RDI, self.pointer()),
            load(RSI, ENTRY + DATA + self.random.below(DATA_BYTES - 64)),
            self.random.one_of(ACCESSES).to_vec(),
        ]
        .concat()
    }

    fn port(&mut self) -> Vec<u8> {
        // in al, dx; in ax, dx; in eax, dx; rep insb
        let reads: &[&[u8]] = &[&[0xec], &[0x66, 0xed], &[0xed], &[0x83, 0xe1, 7, 0xf3, 0x6c]];
        // out dx, al; out dx, ax; out dx, eax; rep outsb
        let writes: &[&[u8]] = &[&[0xee], &[0x66, 0xef], &[0xef], &[0x83, 0xe1, 7, 0xf3, 0x6e]];
        let (port, instructions) = match self.random.below(2) {
            0 => (self.random.one_of(&READ), reads),
            _ => (self.random.one_of(&WRITTEN), writes),
        };
        // Wider accesses go to the ports behind it as well, some of which are not for this.
        let wide = port == 0x1234;
        let instruction = if wide {
            self.random.one_of(instructions)
        } else {
            self.random.one_of(&[instructions[0], instructions[3]])
        };
        let pointer = ENTRY + DATA + self.random.below(DATA_BYTES - 64);
        [
            load(RAX, self.random.any()),
            load(RDX, port),
            load(RSI, pointer),
            load(RDI, pointer),
            instruction.to_vec(),
        ]
        .concat()
    }

    /// Reads an MSR, or writes one and reads it.
    fn msr(&mut self) -> Vec<u8> {
        // Canonical: the emulated machine of tests/hardware-kvm takes anything.
        let value = self.random.any() >> self.random.one_of(&[17, 20, 32]);
        let access: &[u8] = if self.random.below(2) == 0 { &[] } else { &[0x0f, 0x30] };
        [
            load(RCX, self.random.one_of(&MSRS)),
            load(RAX, value & 0xffff_ffff),
            load(RDX, value >> 32),
            access.to_vec(),
            vec![0x0f, 0x32],
        ]
        .concat()
    }

    /// Changes the mapping of a page, and uses it.
    fn remap(&mut self) -> Vec<u8> {
        // mov rbx, [SLOT]; mov rax, [rbx]
        let mut code = [at(&[0x48, 0x8b, 0x1c], SLOT), vec![0x48, 0x8b, 0x03]].concat();
        code.extend(match self.random.below(4) {
            // xor rax, P, RW or US; bits 5 and 6 (accessed, dirty) cleared first
            0..3 => vec![0x48, 0x83, 0xe0, 0x9f, 0x48, 0x83, 0xf0, self.random.one_of(&[1, 2, 4])],
            _ => load(RAX, physical(self.random.one_of(&[DATA, SCRATCH])) | 7),
        });
        // mov [rbx], rax; xor ebx, ebx; mov eax, SCRATCH; invlpg [rax]
        code.extend([0x48, 0x89, 0x03, 0x31, 0xdb, 0xb8]);
        code.extend(short(SCRATCH));
        code.extend([0x0f, 0x01, 0x38]);
        // mov rdx, [rax + 8 * n]; or mov [rax + 8 * n], rdx
        let way = self.random.one_of(&[0x8b, 0x89]);
        code.extend([0x48, way, 0x50, 8 * self.random.below(16) as u8]);
        code
    }

    /// IRETQ to the next step, within ring 0.
    fn iret(&mut self, next: u64) -> Vec<u8> {
        self.frame(KERNEL_DATA, KERNEL_CODE, ENTRY + STACK, ENTRY + next)
    }

    /// IRETQ to a user program.
    fn user(&mut self) -> Vec<u8> {
        let program = USER + self.random.below(USER_PROGRAMS) * USER_BYTES;
        let stack = ENTRY + DATA + DATA_BYTES - 16;
        let values = load(RAX, self.pointer());
        [values, self.frame(USER_DATA, USER_CODE, stack, ENTRY + program)].concat()
    }

    /// push SS, RSP, RFLAGS, CS, RIP; iretq
    fn frame(&mut self, data: u8, code: u8, stack: u64, rip: u64) -> Vec<u8> {
        let push =
            |value: u64| [&[0x68][..], &u32::try_from(value).expect("below 2 GiB").to_le_bytes()].concat();
        let flags = self.random.one_of(&[0x2, 0x202, 0x203, 0x246]);
        [vec![0x6a, data], push(stack), push(flags), vec![0x6a, code], push(rip), vec![0x48, 0xcf]].concat()
    }

    /// A program that does something that it may not, or may, and calls the kernel.
    pub(super) fn user_program(&mut self) -> Vec<u8> {
        let list = self.random.one_of(&[PRIVILEGED, RAISING, ACCESSES, PLAIN]);
        let pointer = load(RDI, self.pointer());
        let set = load(RAX, self.pointer());
        let mut program = [pointer, set, self.random.one_of(list).to_vec(), vec![0xcd, 0x82]].concat();
        program.resize(USER_BYTES as usize, 0xcc);
        program
    }

    fn value(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.any(),
            1 => self.random.below(1 << 46),
            2 => self.random.below(256),
            _ => self.pointer(),
        }
    }

    /// An address that may be read and written, or not.
    fn pointer(&mut self) -> u64 {
        let data = ENTRY + DATA + self.random.below(DATA_BYTES - 1024);
        match self.random.below(8) {
            0..4 => data,
            4 => ENTRY + SCRATCH + self.random.below(4096 - 8),
            5 => ENTRY + SCRATCH - 4,
            // Nothing is mapped there, and no address space of ours is there.
            6 => 0x7000_0000_0000 + self.random.below(1 << 32),
            _ => 0x5a5a_0000_0000_0000 | self.random.below(1 << 32),
        }
    }
}
