//! A guest's stack, by frame pointers: RBP points at the caller's RBP, above which the return address lies.
//!
//! Kernels that the SDK builds keep frame pointers, and its entry code continues the chain from a handler to what was
//! interrupted. A guest may have anything in its stack: the walk is bounded, and goes in one direction.

use crate::x86::registers::Regs;

/// The most places of one backtrace.
pub const LONGEST: usize = 24;
/// The furthest from one frame to the next.
const LARGEST_FRAME: u64 = 1 << 20;

/// The addresses that control is at and would return to, innermost first. `is_stub` says whether code at an address has
/// no frame of its own, so that its return address is the last thing on the stack: the hypercall page. `word` reads the
/// guest's memory.
pub fn walk(
    regs: &Regs,
    is_stub: impl Fn(u64) -> bool,
    word: &mut dyn FnMut(u64) -> Option<u64>,
) -> Vec<u64> {
    let mut places = vec![regs.rip];
    if is_stub(regs.rip) {
        places.extend(word(regs.rsp));
    }
    let (mut frame, mut lowest) = (regs.rbp, regs.rsp);
    while places.len() < LONGEST
        && frame >= lowest
        && frame - lowest <= LARGEST_FRAME
        && frame.is_multiple_of(8)
        && frame != 0
    {
        let above = frame.checked_add(8).and_then(&mut *word);
        let (Some(next), Some(address)) = (word(frame), above) else { break };
        if address == 0 {
            break;
        }
        places.push(address);
        lowest = frame + 8;
        frame = next;
    }
    places
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_followed_from_the_innermost_out() {
        let words =
            HashMap::from([(0x0f00, 0x77), (0x1000, 0x1040), (0x1008, 0xa1), (0x1040, 0), (0x1048, 0xa2)]);
        let regs = Regs { rip: 0xa0, rsp: 0x0f00, rbp: 0x1000, ..Regs::default() };
        let mut word = |address| words.get(&address).copied();
        assert_eq!(walk(&regs, |_| false, &mut word), [0xa0, 0xa1, 0xa2]);
        assert_eq!(walk(&regs, |rip| rip == 0xa0, &mut word), [0xa0, 0x77, 0xa1, 0xa2]);
    }

    proptest! {
        #[test]
        fn no_stack_holds_it_up(rsp: u64, rbp: u64, near: bool, seed: u64) {
            let rbp = if near { rsp.wrapping_add(rbp % 4096) & !7 } else { rbp };
            let regs = Regs { rip: 1, rsp, rbp, ..Regs::default() };
            let mut reads = 0;
            // Everything points a little further up.
            let mut word = |address: u64| {
                reads += 1;
                Some(address.wrapping_add(seed % 4096) & !7)
            };
            let places = walk(&regs, |_| true, &mut word);
            prop_assert!(places.len() <= LONGEST && reads <= 2 * LONGEST + 1);
        }
    }
}
