//! Random bare kernels whose result does not depend on the machine: privileged instructions among ordinary ones, jumps
//! into the midst of them, and stores to code, all of it several times over.
//!
//! A kernel adds up what it finds in RBX, prints it and powers off. However it is virtualized, it must print the same.

use crate::images::{ENTRY, Kind, VIRT_BASE, kernel};
use crate::random::SplitMix64;

/// The number of steps in a kernel.
const STEPS: u64 = 60;
/// How often a kernel goes through its steps.
const ROUNDS: u8 = 6;
/// An L4 entry spans so much: where code is mapped a second time.
const ALIAS: u64 = 1 << 39;
/// Scratch memory for a kernel, behind its code.
const DATA: u64 = ENTRY + 0xd000;
/// `add rbx, rax; rol rbx, 7`
const NOTE: [u8; 7] = [0x48, 0x01, 0xc3, 0x48, 0xc1, 0xc3, 0x07];

/// The kernel for a seed.
pub fn bare_soup(seed: u64) -> Vec<u8> {
    soup_with(seed, |_| {})
}

/// The same with something of its own in the middle of the steps.
fn soup_with(seed: u64, own: impl FnOnce(&mut Cook)) -> Vec<u8> {
    let mut cook = Cook { random: SplitMix64::new(seed), code: Vec::new() };
    cook.prologue();
    let first = cook.code.len();
    for _ in 0..STEPS / 2 {
        cook.step();
    }
    own(&mut cook);
    for _ in STEPS / 2..STEPS {
        cook.step();
    }
    // dec r15; jz +5; jmp first
    cook.put(&[0x49, 0xff, 0xcf, 0x74, 0x05, 0xe9]);
    let back = first as i32 - (cook.code.len() as i32 + 4);
    cook.put(&back.to_le_bytes());
    cook.epilogue();
    kernel(Kind::Bare, &cook.code)
}

/// A kernel that maps all of the lowest GiB itself in its third round, where a technique may have pages of its own.
pub fn mapping_soup(seed: u64) -> Vec<u8> {
    soup_with(seed, |cook| {
        const TABLE: u64 = ENTRY + 0xe000;
        // cmp r15d, 3; jne over
        cook.put(&[0x41, 0x83, 0xff, 0x03, 0x0f, 0x85]);
        let over = cook.code.len();
        cook.put(&[0; 4]);
        // mov rdi, table; mov eax, a large page at physical 0; mov ecx, 512; rep stosq
        cook.put(&[0x48, 0xbf]);
        cook.put(&TABLE.to_le_bytes());
        cook.put(&[0xb8, 0x83, 0, 0, 0, 0xb9, 0, 2, 0, 0, 0xf3, 0x48, 0xab]);
        // mov rax, cr3; mov rax, [rax + base]; and rax, ~0xfff; mov rcx, entry; mov [rax + base], rcx
        cook.put(&[0x0f, 0x20, 0xd8, 0x48, 0x8b, 0x80]);
        cook.put(&(VIRT_BASE as u32).to_le_bytes());
        cook.put(&[0x48, 0x25, 0, 0xf0, 0xff, 0xff, 0x48, 0xb9]);
        cook.put(&((TABLE - VIRT_BASE) | 3).to_le_bytes());
        cook.put(&[0x48, 0x89, 0x88]);
        cook.put(&(VIRT_BASE as u32).to_le_bytes());
        let len = cook.code.len() - (over + 4);
        cook.code[over..over + 4].copy_from_slice(&(len as u32).to_le_bytes());
        // cmp r15d, 3; ja over; mov rax, [lowest GiB]; note
        for at in [OURS, OURS + 0x1000, OURS + 0x2000] {
            cook.put(&[0x41, 0x83, 0xff, 0x03, 0x77, 8 + NOTE.len() as u8, 0x48, 0x8b, 0x04, 0x25]);
            cook.put(&(at as u32).to_le_bytes());
            cook.put(&NOTE);
        }
    })
}

/// Where `patch` puts its page of state for these kernels, and stubs behind it.
const OURS: u64 = ENTRY - 0xbf0_0000;

/// A kernel that writes nonsense to the page of state of `patch` in each round.
pub fn nonsense_soup(seed: u64) -> Vec<u8> {
    soup_with(seed, |cook| {
        // mov rdi, page; mov ecx, 512; mov rax, seed; 1: mov [rdi], rax; rol rax, 13; add rax, rdi; add rdi, 8; dec
        // ecx; jnz 1
        cook.put(&[0xfa, 0x48, 0xbf]);
        cook.put(&OURS.to_le_bytes());
        cook.put(&[0xb9, 0, 2, 0, 0, 0x48, 0xb8]);
        let start = cook.random.any();
        cook.put(&start.to_le_bytes());
        cook.put(&[0x48, 0x89, 0x07, 0x48, 0xc1, 0xc0, 0x0d, 0x48, 0x01, 0xf8]);
        cook.put(&[0x48, 0x83, 0xc7, 0x08, 0xff, 0xc9, 0x75, 0xee]);
    })
}

/// A kernel that executes `row` twice from its beginning, and then from its byte `into` on.
pub fn jump_into_row(row: &[u8], into: u64) -> Vec<u8> {
    let mut cook = Cook { random: SplitMix64::new(0), code: Vec::new() };
    cook.prologue();
    cook.put(&[0x41, 0xbf, 2, 0, 0, 0]);
    let first = cook.code.len();
    cook.note(row);
    // dec r15; js end; jnz first; lea rax, [row + into]; jmp rax; end:
    cook.put(&[0x49, 0xff, 0xcf, 0x78, 11, 0x75]);
    let back = first as i32 - (cook.code.len() as i32 + 1);
    cook.put(&(back as i8).to_le_bytes());
    cook.relative(&[0x48, 0x8d, 0x05], ENTRY + first as u64 + into);
    cook.put(&[0xff, 0xe0]);
    cook.epilogue();
    kernel(Kind::Bare, &cook.code)
}

/// A kernel that steps itself through `row` in every other round, and adds up where each step finds it.
pub fn stepping(row: &[u8]) -> Vec<u8> {
    const HANDLER: u64 = ENTRY + 0xc000;
    let mut cook = Cook { random: SplitMix64::new(1), code: Vec::new() };
    cook.prologue();
    // The gate of #DB, in two words; then IDTR.
    let gate = HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
    for (at, value) in [(0x310, gate), (0x318, HANDLER >> 32), (0x2f0, 0xff << 48), (0x2f8, DATA + 0x300)] {
        cook.put(&[0x48, 0xb8]);
        cook.put(&value.to_le_bytes());
        cook.relative(&[0x48, 0x89, 0x05], DATA + at);
    }
    cook.relative(&[0x0f, 0x01, 0x1d], DATA + 0x2f6);
    // mov r15d, 5; 1: mov eax, r15d; and eax, 1; shl eax, 8; or eax, 2; push rax; popfq
    cook.put(&[0x41, 0xbf, 5, 0, 0, 0]);
    let first = cook.code.len();
    cook.put(&[0x44, 0x89, 0xf8, 0x83, 0xe0, 0x01, 0xc1, 0xe0, 0x08, 0x83, 0xc8, 0x02, 0x50, 0x9d]);
    cook.put(row);
    // push 2; popfq; dec r15; jnz 1
    cook.put(&[0x6a, 0x02, 0x9d, 0x49, 0xff, 0xcf, 0x75]);
    let back = first as i32 - (cook.code.len() as i32 + 1);
    cook.put(&(back as i8).to_le_bytes());
    cook.epilogue();
    cook.code.resize((HANDLER - ENTRY) as usize, 0xcc);
    // push rax; mov rax, [rsp + 8]; note; pop rax; iretq
    cook.put(&[0x50, 0x48, 0x8b, 0x44, 0x24, 0x08]);
    cook.note(&[]);
    cook.put(&[0x58, 0x48, 0xcf]);
    kernel(Kind::Bare, &cook.code)
}

struct Cook {
    random: SplitMix64,
    code: Vec<u8>,
}

impl Cook {
    fn put(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn note(&mut self, bytes: &[u8]) {
        self.put(bytes);
        self.put(&NOTE);
    }

    /// An instruction that ends in a displacement to `target`, an address.
    fn relative(&mut self, opcode: &[u8], target: u64) {
        self.put(opcode);
        let end = ENTRY + self.code.len() as u64 + 4;
        self.put(&(target.wrapping_sub(end) as u32).to_le_bytes());
    }

    /// The address `more` bytes from here.
    fn ahead(&self, more: u64) -> u64 {
        ENTRY + self.code.len() as u64 + more
    }

    /// A GDT for IRETQ, and the whole address space a second time.
    fn prologue(&mut self) {
        for (n, descriptor) in [0u64, 0x00af_9a00_0000_ffff, 0x00cf_9200_0000_ffff].into_iter().enumerate() {
            self.put(&[0x48, 0xb8]);
            self.put(&descriptor.to_le_bytes());
            self.relative(&[0x48, 0x89, 0x05], DATA + 0x100 + 8 * n as u64);
        }
        // The limit, and the base.
        self.put(&[0xb8]);
        self.put(&0x0017_0000u32.to_le_bytes());
        self.relative(&[0x89, 0x05], DATA + 0x0e);
        self.put(&[0x48, 0xb8]);
        self.put(&(DATA + 0x100).to_le_bytes());
        self.relative(&[0x48, 0x89, 0x05], DATA + 0x12);
        self.relative(&[0x0f, 0x01, 0x15], DATA + 0x10);
        // mov rax, cr3; add rax, base; mov rcx, [rax]; mov [rax + 8], rcx
        self.put(&[0x0f, 0x20, 0xd8, 0x48, 0x05]);
        self.put(&(VIRT_BASE as u32).to_le_bytes());
        self.put(&[0x48, 0x8b, 0x08, 0x48, 0x89, 0x48, 0x08]);
        // mov al, 0xff; out 0x21, al: what the mask is at reset is the firmware's business.
        self.put(&[0xb0, 0xff, 0xe6, 0x21]);
        let start = self.random.any();
        self.put(&[0x48, 0xbb]);
        self.put(&start.to_le_bytes());
        self.put(&[0x41, 0xbf, ROUNDS, 0, 0, 0]);
    }

    /// Prints RBX in 16 letters, and powers off.
    fn epilogue(&mut self) {
        // mov ecx, 16; 1: mov dx, 0x3f8; rol rbx, 4; mov al, bl; and al, 15; add al, 'a'; out dx, al; dec ecx; jnz 1
        self.put(&[
            0xb9, 16, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0x48, 0xc1, 0xc3, 0x04, 0x88, 0xd8, 0x24, 0x0f,
        ]);
        self.put(&[0x04, b'a', 0xee, 0xff, 0xc9, 0x75, 0xed]);
        self.put(&[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4]);
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0 => self.put(&[0xfa]),
            1 => self.put(&[0xfb]),
            2 => self.note(&[0x0f, 0x20, 0xd8]),
            3 => self.note(&[0x0f, 0x20, 0xc0]),
            // mov eax, ebx; and eax, 15; mov cr8, rax; xor eax, eax; mov rax, cr8
            4 => self.note(&[
                0x89, 0xd8, 0x83, 0xe0, 0x0f, 0x44, 0x0f, 0x22, 0xc0, 0x31, 0xc0, 0x44, 0x0f, 0x20, 0xc0,
            ]),
            5 => self.note(&[0x0f, 0x22, 0xd3, 0x0f, 0x20, 0xd0]),
            // The line status; the mask of the first interrupt controller, with all of its lines masked.
            6 => self.note(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0x0f, 0xb6, 0xc0]),
            7 => self.note(&[0xb0, 0xff, 0xe6, 0x21, 0xe4, 0x21, 0x0f, 0xb6, 0xc0]),
            8 => self.note(&[0x53, 0xfa, 0x58]),
            // call 1; jmp 2; 1: lea eax, [rbx + 3]; sti; ret; 2:
            9 => self.note(&[0xe8, 2, 0, 0, 0, 0xeb, 0x05, 0x8d, 0x43, 0x03, 0xfb, 0xc3]),
            // test bl, n; jz 1; cli; inc rbx; 1: sti
            10 => {
                let bit = 1 << self.random.below(8);
                self.put(&[0xf6, 0xc3, bit, 0x74, 0x04, 0xfa, 0x48, 0xff, 0xc3, 0xfb]);
            }
            11 => {
                self.relative(&[0xfa, 0x48, 0x8b, 0x05], DATA + 0x200);
                self.put(&NOTE);
                self.relative(&[0xfb, 0x48, 0x89, 0x1d], DATA + 0x200);
            }
            // wbinvd; clts; invlpg [rsp]
            12 => self.put(&[0x0f, 0x09, 0x0f, 0x06, 0x0f, 0x01, 0x3c, 0x24]),
            // mov ecx, EFER; rdmsr
            13 => self.note(&[0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32]),
            14 => self.indirect_call(),
            15 => self.jump_into(),
            16 => self.store_ahead(0),
            17 => self.store_ahead(ALIAS),
            18 => self.toggle(),
            _ => self.interrupt_return(),
        }
        if self.random.below(4) == 0 {
            let ordinary: [&[u8]; 6] = [
                &[0x90],
                &[0x48, 0xff, 0xc3],
                &[0x31, 0xc0],
                &[0x48, 0x31, 0xc3],
                &[0xeb, 0x00],
                &[0x0f, 0x1f, 0x00],
            ];
            let chosen = self.random.one_of(&ordinary);
            self.put(chosen);
        }
    }

    /// A call by a pointer in memory, of a function that begins with a privileged instruction.
    fn indirect_call(&mut self) {
        // lea rax, [1f]; mov [pointer], rax; call [pointer]; jmp 2; 1: cli; mov eax, imm; ret; 2:
        let function = self.ahead(7 + 7 + 6 + 2);
        self.relative(&[0x48, 0x8d, 0x05], function);
        self.relative(&[0x48, 0x89, 0x05], DATA + 0x208);
        self.relative(&[0xff, 0x15], DATA + 0x208);
        let number = self.random.any() as u8;
        self.note(&[0xeb, 0x07, 0xfa, 0xb8, number, 0, 0, 0, 0xc3]);
    }

    /// A jump to one of eight instructions in a row, most of them privileged; which one depends on the round.
    fn jump_into(&mut self) {
        let menu: [&[u8]; 9] = [
            &[0xfa],
            &[0xfb],
            &[0x90],
            &[0x48, 0xff, 0xc3],
            &[0x0f, 0x20, 0xd8],
            &[0xe4, 0x21],
            &[0xec],
            &[0x0f, 0x06],
            &[0x04, 0x11],
        ];
        let row: Vec<&[u8]> = (0..8).map(|_| self.random.one_of(&menu)).collect();
        // mov dx, 0x3fd; movzx eax, bl; xor eax, r15d; and eax, 7; lea rcx, [table]; movsxd rax, [rcx + 4 rax];
        // add rax, rcx; jmp rax
        self.put(&[0x66, 0xba, 0xfd, 0x03, 0x0f, 0xb6, 0xc3, 0x44, 0x31, 0xf8, 0x83, 0xe0, 0x07]);
        let table = self.ahead(7 + 4 + 3 + 2);
        self.relative(&[0x48, 0x8d, 0x0d], table);
        self.put(&[0x48, 0x63, 0x04, 0x81, 0x48, 0x01, 0xc8, 0xff, 0xe0]);
        let mut offset = 32u32;
        for one in &row {
            self.put(&offset.to_le_bytes());
            offset += one.len() as u32;
        }
        self.note(&row.concat());
    }

    /// Changes the operand of an instruction right behind a privileged one, by a store to `more` beyond it.
    ///
    /// A processor need not notice by itself that an instruction changes if the store uses another linear address than
    /// the fetch: a serializing instruction must come between (SDM vol. 3, "Self-Modifying Code"). Here that is INVLPG.
    /// Without it QEMU's processor (7.2) executes the old operand: `mov [alias], bl; cli; mov eax, imm` gave the old
    /// `imm` if the store missed the TLB, and the new one with `mov cl, [alias]` before it, with INVLPG, WBINVD,
    /// MOV to CR2 or a taken jump in between, and by the instruction's own address.
    fn store_ahead(&mut self, more: u64) {
        let serializing: &[u8] = if more == 0 { &[] } else { &[0x0f, 0x01, 0x3c, 0x24] };
        // lea rax, [operand]; mov rcx, more; add rax, rcx; mov or xor [rax], bl; invlpg [rsp]; cli; mov eax, imm
        let operand = self.ahead(7 + 10 + 3 + 2 + serializing.len() as u64 + 1 + 1);
        self.relative(&[0x48, 0x8d, 0x05], operand);
        self.put(&[0x48, 0xb9]);
        self.put(&more.to_le_bytes());
        let opcode = self.random.one_of(&[0x88, 0x30, 0x00]);
        self.put(&[0x48, 0x01, 0xc8, opcode, 0x18]);
        self.put(serializing);
        self.note(&[0xfa, 0xb8, 1, 0, 0, 0]);
    }

    /// Makes a CLI of an STI, or an STI of a CLI.
    fn toggle(&mut self) {
        // mov al, bl; and al, 1; or al, 0xfa; mov [site], al; site: cli; nop; movzx eax, al
        self.put(&[0x88, 0xd8, 0x24, 0x01, 0x0c, 0xfa]);
        let site = self.ahead(6);
        self.relative(&[0x88, 0x05], site);
        self.note(&[0xfa, 0x90, 0x0f, 0xb6, 0xc0]);
    }

    /// IRETQ to the next instruction, with random status flags.
    fn interrupt_return(&mut self) {
        // mov rax, rsp; push 0x10; push rax; mov eax, ebx; and eax, status; or eax, 2; push rax; push 8; lea rcx, [1f];
        // push rcx; iretq; 1: setc al; movzx eax, al
        self.put(&[
            0x48, 0x89, 0xe0, 0x6a, 0x10, 0x50, 0x89, 0xd8, 0x25, 0xd5, 0x08, 0, 0, 0x83, 0xc8, 0x02, 0x50,
        ]);
        self.put(&[0x6a, 0x08]);
        let next = self.ahead(7 + 1 + 2);
        self.relative(&[0x48, 0x8d, 0x0d], next);
        self.put(&[0x51, 0x48, 0xcf]);
        self.note(&[0x0f, 0x92, 0xc0, 0x0f, 0xb6, 0xc0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_a_kernel() {
        assert_eq!(bare_soup(7), bare_soup(7));
        assert_ne!(bare_soup(7), bare_soup(8));
    }
}
