//! Results and flags of the integer arithmetic.

use proptest::prelude::*;

use crate::exec::alu::*;
use crate::x86::rflags::{AF, OF, PF, SF, ZF};

#[test]
fn edges() {
    assert_eq!(
        add(0xff, 1, false, 1),
        Computed { value: 0, affected: rflags::STATUS, flags: CF | ZF | PF | AF }
    );
    assert_eq!(add(0x7f, 0, true, 1).flags, OF | SF | AF);
    assert_eq!(sub(0, 1, false, 8).flags, CF | SF | PF | AF);
    assert_eq!(sub(0x8000, 1, false, 2).flags, OF | PF | AF);
    assert_eq!(sub(5, 4, true, 4).flags, ZF | PF);
    assert_eq!(logic(0, 4).flags, ZF | PF);
    assert_eq!(keep_carry(add(0xff, 1, false, 1)).apply(0), ZF | PF | AF);
    assert_eq!(bit(0b100, 0, 2).apply(ZF), CF | ZF);
}

proptest! {
    /// Against the types of the language.
    #[test]
    fn carries_and_overflows(a: u32, b: u32) {
        let (sum, carry) = a.overflowing_add(b);
        let signed = (a as i32).overflowing_add(b as i32).1;
        let got = add(a.into(), b.into(), false, 4);
        prop_assert_eq!((got.value, got.flags & CF != 0, got.flags & OF != 0), (sum.into(), carry, signed));
        let (difference, borrow) = a.overflowing_sub(b);
        let signed = (a as i32).overflowing_sub(b as i32).1;
        let got = sub(a.into(), b.into(), false, 4);
        prop_assert_eq!((got.value, got.flags & CF != 0, got.flags & OF != 0), (difference.into(), borrow, signed));
    }
}
