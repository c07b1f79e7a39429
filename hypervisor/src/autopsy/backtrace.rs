//! A guest's stack, by frame pointers: RBP points at the caller's RBP, above which the return address lies.
//!
//! Kernels that the SDK builds keep frame pointers, and its entry code continues the chain from a handler to what was
//! interrupted. A guest may have anything in its stack: the walk is bounded, and goes in one direction.

use crate::x86::registers::Regs;

/// The most places that are followed.
const LONGEST: usize = 4096;
/// Of more than twice as many places, so many are kept at either end: what recursed, and who began it.
pub const KEPT: usize = 12;
/// The furthest from one frame to the next.
const LARGEST_FRAME: u64 = 1 << 20;

/// Where a stack leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stack {
    /// Addresses in code, innermost first.
    pub places: Vec<u64>,
    /// How many more there are after the first [`KEPT`].
    pub skipped: usize,
}

/// What was found on a stack. What of it counts is decided later, by the image's symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    rip: u64,
    /// The last thing on the stack.
    top: Option<u64>,
    /// Return addresses, innermost first.
    returns: Vec<u64>,
}

/// The addresses that control is at and would return to. `word` reads the guest's memory.
pub fn walk(regs: &Regs, word: &mut dyn FnMut(u64) -> Option<u64>) -> Walked {
    let mut walked = Walked { rip: regs.rip, top: word(regs.rsp), returns: Vec::new() };
    let (mut frame, mut lowest) = (regs.rbp, regs.rsp);
    while walked.returns.len() < LONGEST
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
        walked.returns.push(address);
        lowest = frame + 8;
        frame = next;
    }
    walked
}

impl Walked {
    /// The places, innermost first. `is_stub` says whether code at an address has no frame of its own, so that its
    /// return address is the last thing on the stack: the hypercall page.
    pub fn stack(self, is_stub: impl Fn(u64) -> bool) -> Stack {
        let Self { rip, top, returns } = self;
        let top = top.filter(|_| is_stub(rip));
        let mut places: Vec<u64> = [rip].into_iter().chain(top).chain(returns).collect();
        let skipped = places.len().saturating_sub(2 * KEPT);
        if skipped > 0 {
            places.drain(KEPT..KEPT + skipped);
        }
        Stack { places, skipped }
    }
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
        let walked = walk(&regs, &mut word);
        assert_eq!(walked.clone().stack(|_| false).places, [0xa0, 0xa1, 0xa2]);
        assert_eq!(walked.stack(|rip| rip == 0xa0).places, [0xa0, 0x77, 0xa1, 0xa2]);
    }

    #[test]
    fn a_recursion_is_cut_in_its_middle() {
        for depth in [0, 1, KEPT, 2 * KEPT - 1, 2 * KEPT, 1000] {
            let regs = Regs { rip: 1, rsp: 0x1000, rbp: 0x1000, ..Regs::default() };
            let top = 0x1000 + 16 * depth as u64;
            let mut word = |at: u64| (at < top).then(|| if at.is_multiple_of(16) { at + 16 } else { at });
            let Stack { places, skipped } = walk(&regs, &mut word).stack(|_| false);
            assert_eq!(places.len() + skipped, depth + 1);
            assert_eq!(places.len(), (depth + 1).min(2 * KEPT));
            assert_eq!(places.last(), Some(&if depth == 0 { 1 } else { top - 8 }));
        }
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
            let stack = walk(&regs, &mut word).stack(|_| true);
            prop_assert!(stack.places.len() <= 2 * KEPT && reads <= 2 * LONGEST + 3);
        }
    }
}
