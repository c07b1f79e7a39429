//! What is emitted is what the disassembler reads.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};

use crate::codegen::emitter::{Dead, Emitter, Environment};
use crate::codegen::recipe::{Point, Recipe};
use crate::codegen::sensitive::Emitted;

const CODE: u64 = 0x4000_0000;
const STATE: u64 = 0x3f00_0000;
const ENV: Environment = Environment { state: STATE, gate: None, bmi2: true, fsgsbase: true };

fn decode(code: &[u8], ip: u64) -> Instruction {
    Decoder::with_ip(64, code, ip, DecoderOptions::NONE).decode()
}

fn listing(code: &[u8]) -> Vec<String> {
    let mut formatter = NasmFormatter::new();
    let decoder = Decoder::with_ip(64, code, CODE, DecoderOptions::NONE);
    let lines = decoder.into_iter().map(|insn| {
        let mut line = String::new();
        formatter.format(&insn, &mut line);
        line
    });
    lines.collect()
}

fn emitted(code: &[u8]) -> (Vec<String>, Emitted) {
    let (mut bytes, mut points) = (Vec::new(), Vec::<Point>::new());
    let mut emitter = Emitter::new(&mut bytes, &mut points, CODE, 0, ENV);
    let how = emitter.sensitive(&decode(code, 0x5000_0000), Dead::default());
    (listing(&bytes), how)
}

#[test]
fn loads_and_stores_of_the_state_page() {
    assert_eq!(emitted(&[0xfa]).0, ["mov qword [rel 3F000000h],0"]);
    assert_eq!(emitted(&[0x0f, 0x20, 0xd8]).0, ["mov rax,[rel 3F000028h]"]);
    assert_eq!(emitted(&[0x41, 0x0f, 0x20, 0xc4]).0, ["mov r12,[rel 3F000018h]"]);
    // mov ax, cs; mov r9d, ss; push gs; smsw eax; str [rcx + 2 * rax - 8]
    assert_eq!(emitted(&[0x66, 0x8c, 0xc8]).0, ["mov ax,[rel 3F000080h]"]);
    assert_eq!(emitted(&[0x41, 0x8c, 0xd1]).0, ["movzx r9d,word [rel 3F000088h]"]);
    assert_eq!(emitted(&[0x0f, 0xa8]).0, ["push qword [rel 3F0000A0h]"]);
    assert_eq!(emitted(&[0x0f, 0x01, 0xe0]).0, ["mov eax,[rel 3F000018h]"]);
    let store = emitted(&[0x0f, 0x00, 0x4c, 0x41, 0xf8]).0;
    assert_eq!(store[1..3], ["mov rdx,[rel 3F000070h]", "mov [rcx+rax*2-8],dx"]);
}

#[test]
fn what_only_the_host_does_is_a_trapping_byte() {
    for code in [&[0x0f, 0x22, 0xd8][..], &[0x0f, 0x30], &[0xec], &[0xf4], &[0x66, 0x9c], &[0x0f, 0x01, 0x38]]
    {
        assert_eq!(emitted(code), (vec!["hlt".to_owned()], Emitted::Callout), "{code:x?}");
    }
}

#[test]
fn memory_operands_survive_in_other_instructions() {
    // sidt [rip + 16], [rsp], [r13], [rbp + r12 * 8 + 0x1000], gs:[r8], [0x1234]
    let cases: [(&[u8], &str); 6] = [
        (&[0x0f, 0x01, 0x0d, 16, 0, 0, 0], "mov [rel 50000017h],rcx"),
        (&[0x0f, 0x01, 0x0c, 0x24], "mov [rsp],rcx"),
        (&[0x41, 0x0f, 0x01, 0x4d, 0x00], "mov [r13],rcx"),
        (&[0x42, 0x0f, 0x01, 0x8c, 0xe5, 0, 0x10, 0, 0], "mov [rbp+r12*8+1000h],rcx"),
        (&[0x65, 0x41, 0x0f, 0x01, 0x08], "mov [gs:r8],rcx"),
        (&[0x0f, 0x01, 0x0c, 0x25, 0x34, 0x12, 0, 0], "mov [1234h],rcx"),
    ];
    for (code, wanted) in cases {
        let lines = emitted(code).0;
        assert_eq!(lines.len(), 6, "{code:x?}: {lines:?}");
        assert_eq!(lines[4], wanted, "{code:x?}");
    }
}

#[test]
fn copies_refer_to_the_same_memory() {
    // mov dword [rip + 16], 0x11223344
    let code = [0xc7, 0x05, 16, 0, 0, 0, 0x44, 0x33, 0x22, 0x11];
    let mut decoder = Decoder::with_ip(64, &code, 0x5000_0000, DecoderOptions::NONE);
    let insn = decoder.decode();
    let offsets = decoder.get_constant_offsets(&insn);
    let (mut bytes, mut points) = (Vec::new(), Vec::new());
    let mut emitter = Emitter::new(&mut bytes, &mut points, CODE, 0, ENV);
    emitter.copy(&insn, offsets, &code).unwrap();
    assert_eq!(listing(&bytes), ["mov dword [rel 5000001Ah],11223344h"]);
    assert_eq!(points, [Point { at: 0, recipe: Recipe::at(0x5000_0000) }]);
    let far = Environment { state: 0, ..ENV };
    let (mut bytes, mut points) = (Vec::new(), Vec::new());
    let mut emitter = Emitter::new(&mut bytes, &mut points, 1 << 40, 0, far);
    assert!(emitter.copy(&insn, offsets, &code).is_err(), "out of reach");
    assert_eq!(emitter.sensitive(&decode(&[0xfa], CODE), Dead::default()), Emitted::Callout);
}
