//! Random bare kernels, for every technique that runs such: what they compute is one number, and it is the same by all.
//!
//! A seed determines a kernel. It is a sequence of steps, each of which loads registers and executes a few
//! instructions: arithmetic, memory, transfers of control, privileged instructions, stores to its own page tables and
//! to its own code. After an exception, the handler goes on with the next step. Registers, memory, exceptions with
//! their frames: all of it goes into the number, which the kernel prints at the end.

use crate::images::{ENTRY, Kind, VIRT_BASE, kernel};
use crate::random::SplitMix64;

/// What a kernel may execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diet {
    /// Only what traps at CPL 3 if it is sensitive.
    Virtualizable,
    /// Also what does not: PUSHF, POPF, SMSW and their kin.
    Sensitive,
}

const STEPS: u64 = 160;
const STEP_BYTES: u64 = 176;

// Offsets from [`ENTRY`].
const STUBS: u64 = 0x200;
const COMMON: u64 = 0x500;
const MIX: u64 = 0x600;
const FIRST: u64 = 0x800;
/// A page of functions, and one whose function is rewritten.
const LEAVES: u64 = 0x8000;
const REWRITTEN: u64 = 0x9000;
const DATA: u64 = 0xa000;
const TABLES: u64 = 0xb000;
const GDT: u64 = TABLES + 0x240;
const POINTERS: u64 = TABLES + 0x280;
const WORDS: u64 = TABLES + 0x300;
/// The page whose mapping is changed.
const WINDOW: u64 = 0xc000;
const STACK: u64 = 0xe000;

const NEXT: u64 = WORDS;
const HASH: u64 = WORDS + 8;
const SAVE: u64 = WORDS + 16;
const ENTRY_OF_WINDOW: u64 = WORDS + 24;
const LEAF_TABLE: u64 = WORDS + 32;

const _: () = assert!(FIRST + (STEPS + 1) * STEP_BYTES <= LEAVES);

const RAX: u8 = 0;
const RCX: u8 = 1;
const RBX: u8 = 3;
const RSP: u8 = 4;

/// The kernel for a seed.
///
/// # Panics
/// If its parts overlap.
pub fn kernel_of(seed: u64, diet: Diet) -> Vec<u8> {
    let mut cook = Cook { random: SplitMix64::new(seed), diet };
    let mut image = vec![0xcc; (WINDOW + 0x1000) as usize];
    let mut put = |at: u64, bytes: &[u8], room: u64| {
        assert!(bytes.len() as u64 <= room, "broken test: {} bytes at {at:#x}", bytes.len());
        image[at as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    put(0, &prologue(), STUBS);
    for vector in 0..33u8 {
        put(STUBS + u64::from(vector) * 16, &stub(vector), 16);
    }
    put(COMMON, &common(), MIX - COMMON);
    put(MIX, &mix(), FIRST - MIX);
    for n in 0..STEPS {
        let at = FIRST + n * STEP_BYTES;
        put(at, &cook.step(at, ENTRY + at + STEP_BYTES), STEP_BYTES);
    }
    put(FIRST + STEPS * STEP_BYTES, &epilogue(), STEP_BYTES);
    for n in 0..4u8 {
        // lea rax, [rax + rbx + n]; ret
        put(LEAVES + u64::from(n) * 16, &[0x48, 0x8d, 0x44, 0x18, n, 0xc3], 16);
    }
    // mov eax, 0; ret
    put(REWRITTEN, &[0xb8, 0, 0, 0, 0, 0xc3], 16);
    let words: Vec<u8> = (0..512).flat_map(|_| cook.random.any().to_le_bytes()).collect();
    put(DATA, &words, 0x1000);
    put(TABLES, &idt(), 0x240);
    // Accessed already: returns that `translate` and `patch` make by themselves leave descriptors as they are.
    put(GDT, &[0, 0x00af_9b00_0000_ffffu64, 0x00cf_9300_0000_ffff].map(u64::to_le_bytes).concat(), 0x40);
    let pointer = |limit: u16, at: u64| [&limit.to_le_bytes()[..], &(ENTRY + at).to_le_bytes()].concat();
    put(POINTERS, &pointer(23, GDT), 16);
    put(POINTERS + 16, &pointer(33 * 16 - 1, TABLES), 16);
    let leaves: Vec<u8> = (0..4).flat_map(|n| (ENTRY + LEAVES + n * 16).to_le_bytes()).collect();
    put(LEAF_TABLE, &leaves, 32);
    kernel(Kind::Bare, &image)
}

/// A 32-bit address as instructions have it.
fn short(at: u64) -> [u8; 4] {
    u32::try_from(ENTRY + at).expect("below 2 GiB").to_le_bytes()
}

/// `mov REG, value`
fn load(register: u8, value: u64) -> Vec<u8> {
    [&[0x48 | register >> 3, 0xb8 | register & 7][..], &value.to_le_bytes()].concat()
}

/// An instruction with REX.W, the opcode and the memory at an address.
fn absolute(opcode: u8, register: u8, at: u64) -> Vec<u8> {
    [&[0x48 | (register >> 3) << 2, opcode, (register & 7) << 3 | 4, 0x25][..], &short(at)].concat()
}

/// CALL or JMP from `from` to `to`.
fn near(opcode: u8, from: u64, to: u64) -> Vec<u8> {
    let distance = u32::try_from(to.wrapping_sub(from + 5) & 0xffff_ffff).expect("32 bits");
    [&[opcode][..], &distance.to_le_bytes()].concat()
}

fn idt() -> Vec<u8> {
    let gate = |vector: u64| {
        let handler = ENTRY + STUBS + vector.min(32) * 16;
        let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        [low.to_le_bytes(), (handler >> 32).to_le_bytes()].concat()
    };
    (0..33).flat_map(gate).collect()
}

fn stub(vector: u8) -> Vec<u8> {
    let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
    let zero: &[u8] = if has_error { &[] } else { &[0x6a, 0] };
    let start = [zero, &[0x6a, vector]].concat();
    let jump = near(0xe9, STUBS + u64::from(vector) * 16 + start.len() as u64, COMMON);
    [start, jump].concat()
}

/// Folds one register into RAX, which holds the hash.
fn fold(register: u8) -> Vec<u8> {
    // rol rax, 7; xor rax, register
    vec![0x48, 0xc1, 0xc0, 7, 0x48 | (register >> 3) << 2, 0x31, 0xc0 | (register & 7) << 3]
}

/// Folds all registers into the hash; keeps them.
fn mix() -> Vec<u8> {
    let mut code = [absolute(0x89, RAX, SAVE), absolute(0x8b, RAX, HASH)].concat();
    code.extend([0x48, 0xc1, 0xc0, 7]);
    code.extend(absolute(0x33, RAX, SAVE));
    for register in (1..16).filter(|register| *register != RSP) {
        code.extend(fold(register));
    }
    code.extend(absolute(0x89, RAX, HASH));
    code.extend(absolute(0x8b, RAX, SAVE));
    code.push(0xc3);
    code
}

/// The stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
fn common() -> Vec<u8> {
    let mut code = near(0xe8, COMMON, MIX);
    code.extend(absolute(0x8b, RAX, HASH));
    for word in 0..4 {
        // mov rbx, [rsp + 8 word]
        code.extend([0x48, 0x8b, 0x5c, 0x24, word * 8]);
        code.extend(fold(RBX));
    }
    // mov ebx, [rsp + 32]; and ebx, what is defined of RFLAGS
    code.extend([0x8b, 0x5c, 0x24, 32, 0x81, 0xe3]);
    code.extend(0x0fc5u32.to_le_bytes());
    code.extend(fold(RBX));
    // mov rbx, cr2
    code.extend([0x0f, 0x20, 0xd3]);
    code.extend(fold(RBX));
    code.extend(absolute(0x89, RAX, HASH));
    // and qword [rsp + 32], ~(TF | NT | IOPL)
    code.extend([0x48, 0x81, 0x64, 0x24, 32]);
    code.extend((!0x7100u32).to_le_bytes());
    code.extend(absolute(0x8b, RAX, NEXT));
    // mov [rsp + 16], rax; mov qword [rsp + 40], STACK; add rsp, 16; iretq
    code.extend([0x48, 0x89, 0x44, 0x24, 16, 0x48, 0xc7, 0x44, 0x24, 40]);
    code.extend(short(STACK));
    code.extend([0x48, 0x83, 0xc4, 16, 0x48, 0xcf]);
    code
}

/// Loads the tables, finds the window's entry, and goes to the first step.
fn prologue() -> Vec<u8> {
    let mut code = load(RSP, ENTRY + STACK);
    // lgdt, lidt
    code.extend([&[0x0f, 0x01, 0x14, 0x25][..], &short(POINTERS)].concat());
    code.extend([&[0x0f, 0x01, 0x1c, 0x25][..], &short(POINTERS + 16)].concat());
    // mov rax, cr3
    code.extend([0x0f, 0x20, 0xd8]);
    code.extend(load(RCX, 0x000f_ffff_ffff_f000));
    for level in (1..=4u32).rev() {
        let index = (ENTRY + WINDOW) >> (12 + 9 * (level - 1)) & 511;
        // and rax, rcx; mov (or lea) rax, [rax + base + 8 index]
        code.extend([0x48, 0x21, 0xc8, 0x48, if level == 1 { 0x8d } else { 0x8b }, 0x80]);
        code.extend(u32::try_from(VIRT_BASE + index * 8).expect("32 bits").to_le_bytes());
    }
    code.extend(absolute(0x89, RAX, ENTRY_OF_WINDOW));
    let at = code.len() as u64;
    code.extend(near(0xe9, at, FIRST));
    code
}

/// Folds the data page into the hash, prints it and powers off.
fn epilogue() -> Vec<u8> {
    let mut code = absolute(0x8b, RAX, HASH);
    code.extend(load(6, ENTRY + DATA));
    code.extend([0xb9, 0, 2, 0, 0]);
    // 1: rol rax, 7; xor rax, [rsi]; add rsi, 8; loop 1
    code.extend([0x48, 0xc1, 0xc0, 7, 0x48, 0x33, 0x06, 0x48, 0x83, 0xc6, 8, 0xe2, 0xf3]);
    // mov rbx, rax; mov ecx, 16; mov edx, 0x3f8
    code.extend([0x48, 0x89, 0xc3, 0xb9, 16, 0, 0, 0, 0xba, 0xf8, 3, 0, 0]);
    // 1: rol rbx, 4; mov eax, ebx; and eax, 15; add eax, 'A'; out dx, al; loop 1
    code.extend([0x48, 0xc1, 0xc3, 4, 0x89, 0xd8, 0x83, 0xe0, 15, 0x83, 0xc0, b'A', 0xee, 0xe2, 0xf1]);
    // mov al, '\n'; out dx, al; mov edx, 0x604; mov eax, 0x2000; out dx, ax; ud2
    code.extend([0xb0, b'\n', 0xee, 0xba, 4, 6, 0, 0, 0xb8, 0, 0x20, 0, 0, 0x66, 0xef, 0x0f, 0x0b]);
    code
}

/// Makes all random choices.
struct Cook {
    random: SplitMix64,
    diet: Diet,
}

/// With operands in registers, and flags that are all defined.
const PLAIN: &[&[u8]] = &[
    &[0x48, 0x01, 0xd8],
    &[0x29, 0xcb],
    &[0x48, 0x11, 0xc2],
    &[0x48, 0x19, 0xd1],
    &[0x48, 0x39, 0xc8],
    &[0x48, 0xff, 0xc0],
    &[0x48, 0xf7, 0xda],
    &[0xf7, 0xd1],
    &[0x48, 0x8d, 0x44, 0x8b, 0x11],
    &[0x48, 0x87, 0xd9],
    &[0x0f, 0x94, 0xc0],
    &[0x0f, 0x42, 0xc2],
    &[0x48, 0x0f, 0xc9],
    &[0x50, 0x5a],
    &[0x0f, 0xb6, 0xcc],
    &[0x48, 0x63, 0xd3],
    &[0xf9],
    &[0xf5],
    &[0x9f],
    &[0x0f, 0x90, 0xc2],
];

/// With some flags undefined after them: a comparison follows.
const UNCERTAIN: &[&[u8]] = &[
    &[0x48, 0xc1, 0xe0, 5],
    &[0x48, 0x0f, 0xaf, 0xc3],
    &[0x48, 0xf7, 0xe3],
    &[0x48, 0xd3, 0xe8],
    &[0x48, 0x21, 0xd8],
];

/// With an operand in memory.
const MEMORY: &[&[u8]] = &[
    &[0x48, 0x89, 0x06],
    &[0x48, 0x8b, 0x07],
    &[0x48, 0x01, 0x1e],
    &[0xf0, 0x48, 0x0f, 0xc1, 0x0f],
    &[0x48, 0x0f, 0xb1, 0x0e],
    &[0x88, 0x46, 0x03],
    &[0x48, 0xa5],
    &[0x48, 0xab],
    &[0xff, 0x36, 0x8f, 0x07],
    &[0x48, 0x89, 0x83, 0, 0, 0, 0],
];

/// Sensitive, and certain to trap at CPL 3.
const TRAPPING: &[&[u8]] = &[
    &[0xfa],
    &[0xfb],
    &[0xfb, 0xfa],
    &[0x0f, 0x20, 0xc0],
    &[0x0f, 0x20, 0xd1],
    &[0x0f, 0x20, 0xdb],
    &[0x0f, 0x20, 0xe2],
    &[0x44, 0x0f, 0x20, 0xc0],
    &[0x83, 0xe0, 0x1f, 0x44, 0x0f, 0x22, 0xc0],
    &[0x0f, 0x22, 0xd0],
    &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],
    &[0x0f, 0x01, 0x3e],
    &[0x0f, 0x06],
    &[0x0f, 0x09],
    &[0xcc],
    &[0xcd, 0x20],
    &[0x0f, 0x0b],
    &[0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32],
    &[0xb9, 0x77, 2, 0, 0, 0x0f, 0x32],
    &[0xb9, 0x34, 0x12, 0, 0, 0x0f, 0x32],
    &[0xb9, 2, 1, 0, 0xc0, 0x31, 0xd2, 0x0f, 0x30],
    &[0x0f, 0x01, 0xf8],
    &[0x48, 0x8b, 0x04, 0x25, 0, 0x10, 0, 0],
    &[0x31, 0xd2, 0x31, 0xc9, 0x48, 0xf7, 0xf1],
];

/// Sensitive, and silent at CPL 3.
const SILENT: &[&[u8]] = &[
    // pushf; pop rdx; and edx, what is defined
    &[0x48, 0x39, 0xc8, 0x9c, 0x5a, 0x81, 0xe2, 0xc5, 0x3f, 0, 0],
    &[0xfb, 0x48, 0x39, 0xc8, 0x9c, 0x5a, 0x81, 0xe2, 0xc5, 0x3f, 0, 0],
    &[0x68, 0x02, 0x02, 0, 0, 0x9d],
    &[0x68, 0x46, 0x30, 0, 0, 0x9d],
    &[0x68, 0x97, 0x08, 0, 0, 0x9d],
    // With TF: a #DB after the next instruction.
    &[0x68, 0x02, 0x01, 0, 0, 0x9d, 0x90, 0x90],
    &[0x68, 0x02, 0x03, 0, 0, 0x9d, 0xfa, 0x90],
    &[0x68, 0x02, 0x01, 0, 0, 0x9d, 0x0f, 0x20, 0xc0],
    &[0x0f, 0x01, 0xe0],
    &[0x0f, 0x01, 0x26],
    &[0x0f, 0x01, 0x06],
    &[0x0f, 0x01, 0x0f],
    &[0x0f, 0x00, 0xc8],
    &[0x48, 0x0f, 0x00, 0xc2],
    &[0x8c, 0xc8],
    &[0x8c, 0xd1],
    &[0x8c, 0x1e],
    &[0x0f, 0xa0, 0x5a],
    // lar eax, ebx with a selector; lsl; verr; then the flags
    &[0xbb, 8, 0, 0, 0, 0x0f, 0x02, 0xc3, 0x0f, 0x94, 0xc1, 0x48, 0x39, 0xc8],
    &[0xbb, 16, 0, 0, 0, 0x0f, 0x03, 0xc3, 0x0f, 0x94, 0xc1, 0x48, 0x39, 0xc8],
    &[0xbb, 16, 0, 0, 0, 0x0f, 0x00, 0xe3, 0x0f, 0x94, 0xc1, 0x48, 0x39, 0xc8],
];

impl Cook {
    fn value(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.any(),
            1 => self.random.below(256),
            2 => self.random.any() as u32 as i32 as u64,
            _ => 1 << self.random.below(64),
        }
    }

    fn data(&mut self) -> u64 {
        let offset = match self.random.below(8) {
            0 => 0xff9 + self.random.below(8),
            1 => self.random.below(0xff0),
            _ => self.random.below(510) * 8,
        };
        ENTRY + DATA.saturating_sub(if offset > 0xff8 { 0x1000 } else { 0 }) + offset
    }

    /// One step, at this offset, followed by the one at `next`.
    fn step(&mut self, at: u64, next: u64) -> Vec<u8> {
        // mov qword [NEXT], next
        let mut code = [&[0x48, 0xc7, 0x04, 0x25][..], &short(NEXT), &short(next - ENTRY)].concat();
        let registers = [RAX, RBX, RCX, 2, 8 + self.random.below(8) as u8];
        for register in registers {
            code.extend(load(register, self.value()));
        }
        for register in [6, 7] {
            code.extend(load(register, self.data()));
        }
        // cmp rax, rcx: all flags are defined.
        code.extend([0x48, 0x39, 0xc8]);
        let here = at + code.len() as u64;
        code.extend(self.body(here));
        let at_call = at + code.len() as u64;
        code.extend(near(0xe8, at_call, MIX));
        let at_jump = at + code.len() as u64;
        code.extend(near(0xe9, at_jump, next - ENTRY));
        code
    }

    fn body(&mut self, at: u64) -> Vec<u8> {
        match self.random.below(16) {
            0..4 => (0..5).flat_map(|_| self.random.one_of(PLAIN).to_vec()).collect(),
            4 => [self.random.one_of(UNCERTAIN), &[0x48, 0x39, 0xc8]].concat(),
            5..8 => (0..3).flat_map(|_| self.random.one_of(MEMORY).to_vec()).collect(),
            8..10 if self.diet == Diet::Sensitive => self.random.one_of(SILENT).to_vec(),
            8..11 => self.random.one_of(TRAPPING).to_vec(),
            11..13 => self.transfer(at),
            13..15 => self.remap(at),
            _ => self.rewrite(at),
        }
    }

    fn transfer(&mut self, at: u64) -> Vec<u8> {
        let leaf = LEAVES + self.random.below(4) * 16;
        match self.random.below(8) {
            0 => near(0xe8, at, leaf),
            // call [table]; call [rip + table]
            1 => [&[0xff, 0x14, 0x25][..], &short(LEAF_TABLE + self.random.below(4) * 8)].concat(),
            2 => {
                let target = LEAF_TABLE + self.random.below(4) * 8;
                [vec![0xff, 0x15], near(0, at + 1, target)[1..].to_vec()].concat()
            }
            // mov rdx, leaf; call rdx
            3 => [load(2, ENTRY + leaf), vec![0xff, 0xd2]].concat(),
            // ecx = 3; 1: add rax, rcx; loop 1
            4 => vec![0xb9, 3, 0, 0, 0, 0x48, 0x01, 0xc8, 0xe2, 0xfb],
            // jc over; inc rax
            5 => vec![0x72, 0x03, 0x48, 0xff, 0xc0],
            // lea rdx, [rip + 3]; push rdx; ret 0; then nop
            6 => vec![0x48, 0x8d, 0x15, 2, 0, 0, 0, 0x52, 0xc3, 0x90],
            // xor ecx, ecx; jrcxz over
            _ => vec![0x31, 0xc9, 0xe3, 0x03, 0x48, 0xff, 0xc0],
        }
    }

    /// Maps something else at the window, flushes, and uses it.
    fn remap(&mut self, at: u64) -> Vec<u8> {
        let frame = ENTRY - VIRT_BASE + self.random.one_of(&[WINDOW, DATA, DATA, LEAVES, REWRITTEN]);
        let entry = frame | self.random.one_of(&[0x63u64, 0x63, 0x63, 0x61, 0x23, 0x03, 0]);
        let mut code = [absolute(0x8b, RBX, ENTRY_OF_WINDOW), load(RAX, entry)].concat();
        // mov [rbx], rax; invlpg [WINDOW]
        code.extend([0x48, 0x89, 0x03, 0x0f, 0x01, 0x3c, 0x25]);
        code.extend(short(WINDOW));
        // The entry itself may have A and D set by now: not at a moment that is the same for all.
        code.extend(load(RAX, self.random.below(100)));
        let at = at + code.len() as u64;
        code.extend(match self.random.below(4) {
            0 => absolute(0x8b, RBX, WINDOW + self.random.below(500) * 8),
            1 => absolute(0x89, RAX, WINDOW + 64 + self.random.below(500) * 8),
            2 if frame == ENTRY - VIRT_BASE + LEAVES || frame == ENTRY - VIRT_BASE + REWRITTEN => {
                near(0xe8, at, WINDOW)
            }
            _ => vec![0x90],
        });
        code.extend(load(RBX, 0));
        code
    }

    /// Rewrites an instruction's immediate, and executes it.
    fn rewrite(&mut self, at: u64) -> Vec<u8> {
        let value = (self.random.any() as u32).to_le_bytes();
        if self.random.below(2) == 0 {
            // mov dword [immediate], value; call
            let store = [&[0xc7, 0x04, 0x25][..], &short(REWRITTEN + 1), &value].concat();
            let call = near(0xe8, at + store.len() as u64, REWRITTEN);
            return [store.clone(), call.clone(), store, near(0xe8, at + 11 + 5 + 11, REWRITTEN)].concat();
        }
        // The same for the instruction that follows at once.
        [&[0xc7, 0x04, 0x25][..], &short(at + 11 + 1), &value, &[0xb9, 1, 2, 3, 4]].concat()
    }
}
