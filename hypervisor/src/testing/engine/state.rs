//! The contract of engines as to a virtual CPU's state: out, in, and into another machine.

use paravane_abi::addr::HYPERVISOR_VIRT_START;

use super::{CODE_VA, DATA_VA, World, code, gp};
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};

const VALUE: u64 = 0x0123_4567_89ab_cdef;
const MXCSR: u64 = 0x1f80 | 0x6000;

/// Has the guest load vector registers; what the engine then hands out.
pub(crate) fn of_a_guest(w: &mut World) -> VectorState {
    w.poke(DATA_VA, VALUE);
    w.poke(DATA_VA + 8, MXCSR);
    w.regs.rax = DATA_VA;
    let loads = code!("movq xmm7, [rax]", "ldmxcsr [rax + 8]", "fninit", "fld1", "cli");
    assert_eq!(w.exec(&loads), gp(0));
    w.cpu.save().unwrap()
}

/// Asserts that the guest has the registers of [`of_a_guest`].
fn has_them(w: &mut World) {
    w.poke(DATA_VA, 0);
    w.regs.rax = DATA_VA;
    let stores = code!("movq rbx, xmm7", "stmxcsr [rax + 8]", "fst qword ptr [rax]", "cli");
    assert_eq!(w.exec(&stores), gp(0));
    assert_eq!((w.regs.rbx, w.peek(DATA_VA + 8) & 0xffff_ffff), (VALUE, MXCSR));
    assert_eq!(f64::from_bits(w.peek(DATA_VA)), 1.0);
}

/// What was saved is what the guest has after it was loaded, whatever it had meanwhile.
pub(crate) fn state_is_restored(w: &mut World) {
    let first = w.cpu.save().unwrap();
    let saved = of_a_guest(w);
    w.cpu.load(&first).unwrap();
    assert_eq!(w.exec(&code!("movq rbx, xmm7", "stmxcsr [rax + 8]", "cli")), gp(0));
    assert_eq!((w.regs.rbx, w.peek(DATA_VA + 8)), (0, 0x1f80), "as a guest begins");
    w.cpu.load(&saved).unwrap();
    has_them(w);
    let root = w.space.root();
    w.cpu.load(&saved).unwrap();
    w.space.set_root(root);
    has_them(w);
}

/// A guest continues in a machine that was made afresh.
pub(crate) fn state_goes_on(w: &mut World, saved: &VectorState) {
    w.cpu.load(saved).unwrap();
    has_them(w);
}

/// What a file made of a state is refused, and the guest keeps what it had.
pub(crate) fn damaged_state_is_refused(w: &mut World) {
    let saved = of_a_guest(w);
    let damaged = |at: usize, bits: u8| {
        let mut area = saved.area().to_vec();
        area[at] |= bits;
        VectorState::from_area(area)
    };
    assert!(matches!(w.cpu.load(&damaged(519, 0x40)), Err(BadState::Components { .. })));
    assert_eq!(w.cpu.load(&damaged(527, 0x80)), Err(BadState::NotStandard));
    assert!(matches!(w.cpu.load(&damaged(27, 0x80)), Err(BadState::Mxcsr(_) | BadState::Refused)));
    let short = w.cpu.load(&VectorState::from_area(vec![0; 100]));
    assert!(matches!(short, Err(BadState::Short { bytes: 100, .. })));
    has_them(w);
}

/// A breakpoint on the guest's code is a #DB there, where the engine has breakpoints; none is set on the hypervisor's.
pub(crate) fn breakpoints(w: &mut World) {
    let at = |address| Breakpoints { addresses: [address, 0, 0, 0], control: 0b1 };
    let ours = NoBreakpoints::Hypervisors(HYPERVISOR_VIRT_START);
    assert_eq!(w.cpu.debug(&at(HYPERVISOR_VIRT_START)), Err(ours));
    w.load(&code!("nop", "nop", "cli"));
    match w.cpu.debug(&at(CODE_VA + 1)) {
        Ok(()) => {
            assert_eq!((w.run(), w.regs.rip), (super::fault(1), CODE_VA + 1));
            w.cpu.debug(&Breakpoints::default()).unwrap();
        }
        Err(why @ NoBreakpoints::Absent(_)) => println!("note: {why}"),
        Err(why) => panic!("{why}"),
    }
    assert_eq!(w.run(), gp(0));
}
