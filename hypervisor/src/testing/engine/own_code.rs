//! Code of ours in the guest's view, and code that the host changes after the guest has run it.

use super::{CODE_VA, DATA, TEXT, World, code, gp, pf};
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};

/// Where the frames of ours are mapped.
const OURS: u64 = 0x7f_0000;

/// Frames of code can be executed but not written, frames of state can be written, by the guest and by the host.
pub(crate) fn code_and_state_of_ours(w: &mut World) {
    let (code, state) = (Mfn(w.layout.code.start), Mfn(w.layout.state.start));
    w.map(OURS, code, TEXT);
    w.map(OURS + PAGE_SIZE, state, DATA);
    // inc qword ptr [rip + state]; cli; mov [rip - 14], al
    w.memory.write(code.maddr(), &[0x48, 0xff, 0x05, 0xf9, 0x0f, 0, 0, 0xfa]).unwrap();
    w.memory.write(Maddr(code.maddr().0 + 8), &[0x88, 0x05, 0xf2, 0xff, 0xff, 0xff]).unwrap();
    for n in 0..3u64 {
        w.memory.store_u64(state.maddr(), n * 100).unwrap();
        w.regs.rip = OURS;
        assert_eq!(w.run(), gp(0));
        assert_eq!((w.regs.rip, w.memory.load_u64(state.maddr())), (OURS + 7, Ok(n * 100 + 1)));
    }
    w.regs.rip = OURS + 8;
    assert_eq!(w.run(), pf(0b111, OURS), "a store to our code");
}

/// What the host writes to code is what the guest executes next, in its own frames and in ours, however often it has
/// run what was there.
pub(crate) fn code_written_by_the_host(w: &mut World) {
    let ours = Mfn(w.layout.code.start);
    w.map(OURS, ours, TEXT);
    w.load(&code!("nop"));
    let own = w.mfn_of(CODE_VA);
    for (va, frame) in [(CODE_VA, own), (OURS, ours)] {
        // 1000 times round a loop: mov eax, imm32; dec ecx; jnz; cli
        for round in 0..50u32 {
            let mut bytes = vec![0xb8];
            bytes.extend(round.to_le_bytes());
            bytes.extend([0xff, 0xc9, 0x75, 0xf7, 0xfa]);
            w.memory.write(frame.maddr(), &bytes).unwrap();
            (w.regs.rip, w.regs.rcx) = (va, 1000);
            assert_eq!(w.run(), gp(0));
            assert_eq!((w.regs.rax, w.regs.rip), (u64::from(round), va + 9), "at {va:#x}");
        }
        // A jump in place of what was executed, and the old bytes again.
        let old = [0xb8, 1, 0, 0, 0, 0xfa];
        for round in 0..50 {
            let at = Maddr(frame.maddr().0 + 0x100);
            w.memory.write(at, if round % 2 == 0 { &old } else { &[0xe9, 0x0b, 0, 0, 0] }).unwrap();
            w.memory.write(Maddr(at.0 + 16), &[0xb8, 2, 0, 0, 0, 0xfa]).unwrap();
            (w.regs.rip, w.regs.rax) = (va + 0x100, 0);
            assert_eq!(w.run(), gp(0));
            assert_eq!(w.regs.rax, 1 + round % 2, "round {round} at {va:#x}");
        }
    }
}
