//! The machine code that every such kernel has, and how instructions are encoded.

use super::*;

// Register numbers in instruction encodings (SDM vol. 2, table 2-2).
pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RDX: u8 = 2;
pub(super) const RBX: u8 = 3;
const RSP: u8 = 4;
pub(super) const RSI: u8 = 6;
pub(super) const RDI: u8 = 7;

/// Selectors. None is one that a host may have for its own programs (docs/technique-trap.md).
pub(super) const KERNEL_CODE: u8 = 0x08;
pub(super) const KERNEL_DATA: u8 = 0x10;
pub(super) const USER_DATA: u8 = 0x43;
pub(super) const USER_CODE: u8 = 0x4b;
pub(super) const TSS: u8 = 0x50;

/// `mov REG, value`.
pub(super) fn load(register: u8, value: u64) -> Vec<u8> {
    let prefix = if register < 8 { 0x48 } else { 0x49 };
    [&[prefix, 0xb8 | register & 7][..], &value.to_le_bytes()].concat()
}

/// An address in the image as instructions encode it: 32 bits, sign-extended.
pub(super) fn short(offset: u64) -> [u8; 4] {
    u32::try_from(ENTRY + offset).expect("the image is below 2 GiB").to_le_bytes()
}

/// An instruction with an absolute address: its bytes up to the SIB byte, and the offset that it is about.
pub(super) fn at(head: &[u8], offset: u64) -> Vec<u8> {
    [head, &[0x25], &short(offset)].concat()
}

/// `jmp` from the end of what is at `from` and takes `len` bytes.
pub(super) fn jump(from: u64, to: u64) -> Vec<u8> {
    let distance = (to as i64 - (from as i64 + 5)) as i32;
    [&[0xe9][..], &distance.to_le_bytes()].concat()
}

/// Mixes a register into the number: add [SUM], REG; rol qword ptr [SUM], 7.
pub(super) fn mix(register: u8) -> Vec<u8> {
    let (prefix, field) = if register < 8 { (0x48, register) } else { (0x4c, register & 7) };
    [at(&[prefix, 0x01, field << 3 | 4], SUM), at(&[0x48, 0xc1, 0x04], SUM), vec![7]].concat()
}

/// Descriptor tables and the TSS.
pub(super) struct Tables;

const GDT: u64 = TABLES + 0x1000;
const TSS_AT: u64 = TABLES + 0x1100;
const GDT_POINTER: u64 = TABLES + 0x1200;
const IDT_POINTER: u64 = TABLES + 0x1210;
const GDT_LIMIT: u16 = 0x5f;
const IDT_LIMIT: u16 = 0xfff;

impl Tables {
    pub(super) fn bytes() -> Vec<u8> {
        let mut bytes = vec![0; 0x1220];
        let mut set = |at: u64, value: &[u8]| {
            let at = (at - TABLES) as usize;
            bytes[at..at + value.len()].copy_from_slice(value);
        };
        for (n, vector) in VECTORS.into_iter().enumerate() {
            set(TABLES + u64::from(vector) * 16, &gate(vector, ENTRY + HANDLERS + n as u64 * STUB_BYTES));
        }
        // Flat segments (SDM vol. 3, 3.4.5), accessed, so that no table is written to.
        for (selector, descriptor) in [
            (KERNEL_CODE, 0x00af_9b00_0000_ffff_u64),
            (KERNEL_DATA, 0x00cf_9300_0000_ffff),
            (USER_DATA & !7, 0x00cf_f300_0000_ffff),
            (USER_CODE & !7, 0x00af_fb00_0000_ffff),
        ] {
            set(GDT + u64::from(selector), &descriptor.to_le_bytes());
        }
        let base = ENTRY + TSS_AT;
        let low = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        set(GDT + u64::from(TSS), &low.to_le_bytes());
        set(GDT + u64::from(TSS) + 8, &(base >> 32).to_le_bytes());
        set(TSS_AT + 4, &(ENTRY + STACK).to_le_bytes());
        // The I/O map base: none.
        set(TSS_AT + 0x66, &[0x68, 0]);
        let pointer = |limit: u16, base: u64| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
        set(GDT_POINTER, &pointer(GDT_LIMIT, ENTRY + GDT));
        set(IDT_POINTER, &pointer(IDT_LIMIT, ENTRY + TABLES));
        bytes
    }
}

/// An interrupt gate; only 0x82 and INT3 are for user programs.
fn gate(vector: u8, handler: u64) -> [u8; 16] {
    let level = if matches!(vector, 3 | 0x82) { 3 } else { 0 };
    let low = handler & 0xffff
        | u64::from(KERNEL_CODE) << 16
        | (0x8e | level << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    let mut gate = [0; 16];
    gate[..8].copy_from_slice(&low.to_le_bytes());
    gate[8..12].copy_from_slice(&((handler >> 32) as u32).to_le_bytes());
    gate
}

/// The vectors that have a handler.
const VECTORS: [u8; 24] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 0x82, 0x83];
const STUB_BYTES: u64 = 16;

/// For each vector: an error code if the processor pushes none, the vector, and on to what is common. Then that: it mixes
/// all of it, and goes on with the next step.
pub(super) fn handlers() -> (Vec<u8>, Vec<u8>) {
    let stub = |(n, vector): (usize, u8)| {
        let start = HANDLERS + n as u64 * STUB_BYTES;
        let mut stub = Vec::new();
        if !matches!(vector, 8 | 10..=14 | 17 | 21) {
            stub.extend([0x6a, 0]);
        }
        stub.extend([0x6a, vector & 0x7f]);
        stub.extend(jump(start + stub.len() as u64, COMMON));
        stub.resize(STUB_BYTES as usize, 0xcc);
        stub
    };
    let stubs = VECTORS.into_iter().enumerate().flat_map(stub).collect();
    // mov rax, [rsp + 8 * n]
    let word = |n: u8| [vec![0x48, 0x8b, 0x44, 0x24, 8 * n], mix(RAX)].concat();
    let registers = (0..15).filter(|register| *register != RSP).flat_map(mix);
    let common = [
        registers.collect(),
        word(0),
        word(1),
        word(2),
        // The level, and the interrupt flag: mov rax, [rsp + 24]; and eax, 3; mov rax, [rsp + 32]; and eax, 0x200
        [vec![0x48, 0x8b, 0x44, 0x24, 24, 0x83, 0xe0, 3], mix(RAX)].concat(),
        [vec![0x48, 0x8b, 0x44, 0x24, 32, 0x25, 0, 2, 0, 0], mix(RAX)].concat(),
        // mov rax, cr2
        [vec![0x0f, 0x20, 0xd0], mix(RAX)].concat(),
        // mov rsp, STACK; jmp [NEXT]
        [&[0x48, 0xc7, 0xc4][..], &short(STACK)].concat(),
        at(&[0xff, 0x24], NEXT),
    ];
    (stubs, common.concat())
}

/// Loads the tables, masks all interrupts, gives user programs their pages, and goes to the first step.
pub(super) fn prologue() -> Vec<u8> {
    let mut code = [
        vec![0xfa],
        [&[0x48, 0xc7, 0xc4][..], &short(STACK)].concat(),
        at(&[0x0f, 0x01, 0x14], GDT_POINTER),
        at(&[0x0f, 0x01, 0x1c], IDT_POINTER),
    ]
    .concat();
    // push KERNEL_CODE; push what follows; retfq
    code.extend([0x6a, KERNEL_CODE, 0x68]);
    code.extend(short(code.len() as u64 + 6));
    code.extend([0x48, 0xcb]);
    // mov eax, KERNEL_DATA; mov ss, ax; mov ds, ax; mov es, ax; mov eax, TSS; ltr ax
    code.extend([
        0xb8,
        KERNEL_DATA,
        0,
        0,
        0,
        0x8e,
        0xd0,
        0x8e,
        0xd8,
        0x8e,
        0xc0,
        0xb8,
        TSS,
        0,
        0,
        0,
        0x0f,
        0,
        0xd8,
    ]);
    // mov al, 0xff; out 0x21, al; out 0xa1, al
    code.extend([0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1]);
    // mov rax, cr3; mov [ROOT], rax
    code.extend([vec![0x0f, 0x20, 0xd8], at(&[0x48, 0x89, 0x04], ROOT)].concat());
    for (page, for_users) in [(USER, true), (DATA, true), (TABLES, false), (SCRATCH, true)] {
        code.extend(entry_of(ENTRY + page));
        // or qword ptr [rax], 4; or and qword ptr [rax], ~4
        code.extend(if for_users { [0x48, 0x83, 0x08, 4] } else { [0x48, 0x83, 0x20, 0xfb] });
    }
    // mov [SLOT], rax; mov rax, cr3; mov cr3, rax
    code.extend(at(&[0x48, 0x89, 0x04], SLOT));
    code.extend([0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]);
    for register in (0..15).filter(|register| *register != RSP) {
        code.extend(load(register, u64::from(register)));
    }
    code.extend(jump(code.len() as u64, FIRST));
    code
}

/// Leaves the linear address of the entry that maps `address` in RAX, and has the tables on the way allow users.
fn entry_of(address: u64) -> Vec<u8> {
    let mut code = at(&[0x48, 0x8b, 0x04], ROOT);
    let base = u32::try_from(VIRT_BASE).expect("below 2 GiB").to_le_bytes();
    for shift in [39u32, 30, 21, 12] {
        let offset =
            u32::try_from((address >> shift & 0x1ff) * 8).expect("an offset in a page").to_le_bytes();
        code.extend(load(RDX, 0x000f_ffff_ffff_f000));
        // and rax, rdx; add rax, VIRT_BASE + offset
        code.extend([0x48, 0x21, 0xd0, 0x48, 0x05]);
        code.extend(base);
        code.extend([0x48, 0x05]);
        code.extend(offset);
        if shift != 12 {
            // or qword ptr [rax], 4; mov rax, [rax]
            code.extend([0x48, 0x83, 0x08, 4, 0x48, 0x8b, 0x00]);
        }
    }
    code
}

/// Mixes what the steps left in memory, prints the number, and powers off.
pub(super) fn report() -> Vec<u8> {
    [
        // mov rsi, DATA; mov ecx, DATA_BYTES / 8; cld
        load(RSI, ENTRY + DATA),
        load(RCX, DATA_BYTES / 8),
        vec![0xfc],
        // 1: lodsq; add rbx, rax; rol rbx, 5; loop 1b
        vec![0x31, 0xdb, 0x48, 0xad, 0x48, 0x01, 0xc3, 0x48, 0xc1, 0xc3, 5, 0xe2, 0xf5],
        mix(RBX),
        // mov rsi, LOG; mov edi, STEPS; mov dx, 0x3f8
        load(RSI, ENTRY + LOG),
        load(RDI, STEPS),
        vec![0x66, 0xba, 0xf8, 0x03],
        // 2: mov rbx, [rsi]; mov rax, (odd); imul rbx, rax; mov ecx, 4; (letters); add rsi, 8; dec edi; jnz 2b
        vec![0x48, 0x8b, 0x1e],
        load(RAX, 0x9e37_79b9_7f4a_7c15),
        vec![0x48, 0x0f, 0xaf, 0xd8, 0xb9, 4, 0, 0, 0],
        letters(),
        vec![0x48, 0x83, 0xc6, 8, 0xff, 0xcf, 0x75, 0xd3],
        // mov al, ' '; out dx, al; mov rbx, [SUM]; mov ecx, 16
        vec![0xb0, b' ', 0xee],
        at(&[0x48, 0x8b, 0x1c], SUM),
        vec![0xb9, 16, 0, 0, 0],
        letters(),
        // mov al, 10; out dx, al; mov dx, 0x604; mov ax, 0x2000; out dx, ax; ud2
        vec![0xb0, 10, 0xee, 0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0x0f, 0x0b],
    ]
    .concat()
}

/// 1: rol rbx, 4; mov eax, ebx; and eax, 15; add eax, 'a'; out dx, al; loop 1b
fn letters() -> Vec<u8> {
    vec![0x48, 0xc1, 0xc3, 4, 0x89, 0xd8, 0x83, 0xe0, 15, 0x83, 0xc0, b'a', 0xee, 0xe2, 0xf1]
}
