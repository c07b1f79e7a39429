//! What an engine makes of selectors and of the guest's descriptor table.

use paravane_abi::segment::{FLAT_RING3_SS64, GDT_FRAMES};

use super::{CODE_VA, DATA, DATA_VA, World, code, gp};
use crate::engine::Exit;
use crate::machine::memory::{Maddr, Mfn};
use crate::mmu::space::GdtFrames;
use crate::x86::exception::Fault;
use crate::x86::registers::Selectors;

const BASED: u64 = 0x33;
const ABSENT: u64 = 0x3b;
const OWN_CODE: u64 = 0x4b;

/// Where the processor runs on the guest's table the guest finds the selectors that it is entered with. Elsewhere the
/// engine leaves them alone.
pub(crate) fn selectors(w: &mut World) {
    w.regs.selectors.ds = FLAT_RING3_SS64;
    let before = w.regs.selectors;
    assert_eq!(w.exec(&code!("mov eax, cs", "mov ebx, ss", "mov ecx, ds", "mov edx, es", "cli")), gp(0));
    assert_eq!(w.regs.selectors, before);
    if w.engine.info().native_selectors {
        let read = [w.regs.rax, w.regs.rbx, w.regs.rcx, w.regs.rdx];
        assert_eq!(read, [before.cs, before.ss, before.ds, 0].map(u64::from));
    }
}

fn table(w: &World, frame: Mfn) {
    let based = 0x00cf_f300_0000_ffff | (DATA_VA & 0xff_ffff) << 16 | (DATA_VA >> 24) << 56;
    for (selector, descriptor) in
        [(BASED, based), (ABSENT, 0x00cf_7300_0000_ffff), (OWN_CODE, 0x00af_fb00_0000_ffff)]
    {
        w.memory.store_u64(Maddr(frame.maddr().0 + (selector & !7)), descriptor).unwrap();
    }
}

fn refused(vector: u8, selector: u64) -> Exit {
    Exit::Fault(Fault { vector, error_code: (selector & !3) as u32, address: 0 })
}

/// The guest's own descriptors are the processor's, where the engine says so.
pub(crate) fn guests_descriptors(w: &mut World) {
    if !w.engine.info().native_selectors {
        // What the guest believes in is the business of the layers above.
        return;
    }
    let (frame, mut frames): (Mfn, GdtFrames) = (w.frame(), [None; GDT_FRAMES]);
    assert_eq!(
        w.exec(&code!("mov eax, 0x33", "mov fs, eax")),
        refused(13, BASED),
        "the descriptor does not exist"
    );
    table(w, frame);
    frames[0] = Some(frame);
    w.space.set_gdt(frames);
    w.poke(DATA_VA + 8, 0x2222);
    let load = code!("mov eax, 0x33", "mov fs, eax", "mov rbx, fs:[8]", "mov ds, eax", "mov ecx, ds", "cli");
    assert_eq!(w.exec(&load), gp(0));
    assert_eq!((w.regs.rbx, w.regs.rcx, w.regs.fs_base), (0x2222, BASED, DATA_VA));
    assert_eq!((w.regs.selectors.fs, w.regs.selectors.ds), (BASED as u16, BASED as u16));
    assert_eq!(w.exec(&code!("mov eax, 0x3b", "mov es, eax")), refused(11, ABSENT));

    let go = code!("push 0x4b", "lea rax, [rip + 4f]", "push rax", "retfq", "4:", "mov ebx, cs", "cli");
    assert_eq!(w.exec(&go), gp(0));
    assert_eq!((w.regs.rbx, w.regs.selectors.cs), (OWN_CODE, OWN_CODE as u16));
    assert_eq!(w.exec(&code!("mov ecx, cs", "cli")), gp(0));
    assert_eq!(w.regs.rcx, OWN_CODE, "entered with it");
    through_the_gate(w, frame);

    w.space.set_gdt([None; GDT_FRAMES]);
    assert_eq!(
        w.exec(&code!("mov eax, 0x33", "mov ds, eax")),
        refused(13, BASED),
        "the descriptor does not exist any more"
    );
}

/// Entries that an engine's own ring 0 makes: a selector that is good still loads, one that is good no more is the
/// guest's exception and not the engine's end.
fn through_the_gate(w: &mut World, gdt: Mfn) {
    let (first, second) = (w.mfn_of(DATA_VA), w.frame());
    w.map(DATA_VA, second, DATA);
    assert_eq!(w.exec(&code!("mov ecx, cs", "mov edx, ds", "cli")), gp(0));
    assert_eq!((w.regs.rcx, w.regs.rdx), (OWN_CODE, BASED));
    w.memory.store_u64(Maddr(gdt.maddr().0 + (OWN_CODE & !7)), 0).unwrap();
    w.map(DATA_VA, first, DATA);
    w.regs.rsi = 0x5151;
    let before = w.regs;
    assert_eq!(w.exec(&code!("cli")), refused(13, OWN_CODE));
    assert_eq!((w.regs.rip, w.regs.rsp, w.regs.rsi), (CODE_VA, before.rsp, 0x5151), "nothing was executed");
    w.regs.selectors = Selectors::FLAT;
    assert_eq!(w.run(), gp(0));
}
