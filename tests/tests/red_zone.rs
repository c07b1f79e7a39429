//! No kernel here keeps data below its stack pointer, because the frame of an upcall may be pushed there.
//!
//! The prebuilt `core` is compiled for programs, whose leaf functions may do so (System V ABI, 3.2.2).

use iced_x86::{Decoder, DecoderOptions, Instruction, MemorySize, Mnemonic, Register};
use object::{Object, ObjectSection, SectionKind};
use paravane::image::builtin::{BARE, PV};
use paravane_tests::guests::{ENDINGS, HELLO, HELLO_HIGH, PORT};

/// Whether an instruction reads or writes memory below the stack pointer.
fn is_below_stack_pointer(instruction: &Instruction) -> bool {
    instruction.memory_base() == Register::RSP
        && instruction.memory_displacement64().cast_signed() < 0
        && instruction.memory_size() != MemorySize::Unknown
        && instruction.mnemonic() != Mnemonic::Lea
}

fn offenders(image: &[u8]) -> (usize, Vec<String>) {
    let file = object::File::parse(image).expect("our own images are ELF files");
    let mut decoded = 0;
    let mut found = Vec::new();
    for section in file.sections().filter(|s| s.kind() == SectionKind::Text) {
        let code = section.data().expect("the section's bytes are in the image");
        for instruction in Decoder::with_ip(64, code, section.address(), DecoderOptions::NONE) {
            decoded += 1;
            if is_below_stack_pointer(&instruction) {
                found.push(format!("{:#x}: {instruction}", instruction.ip()));
            }
        }
    }
    (decoded, found)
}

#[test]
fn no_kernel_uses_the_red_zone() {
    let images = [
        ("pv", PV),
        ("bare", BARE),
        ("hello", HELLO),
        ("hello-high", HELLO_HIGH),
        ("endings", ENDINGS),
        ("port", PORT[0]),
    ];
    for (name, image) in images {
        let (decoded, found) = offenders(image);
        assert!(decoded > 100, "{name}: only {decoded} instructions found");
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

#[test]
fn a_red_zone_would_be_found() {
    // mov [rsp-8], rax; mov [rsp+8], rax; lea rax, [rsp-8]
    let code = [0x48, 0x89, 0x44, 0x24, 0xf8, 0x48, 0x89, 0x44, 0x24, 0x08, 0x48, 0x8d, 0x44, 0x24, 0xf8];
    let found: Vec<bool> =
        Decoder::new(64, &code, DecoderOptions::NONE).iter().map(|i| is_below_stack_pointer(&i)).collect();
    assert_eq!(found, [true, false, false]);
}
