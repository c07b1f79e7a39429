//! What direct control flow reaches in a function. Pure functions of bytes.
//!
//! From a function's first instruction on, along jumps whose targets are in the instruction; a call is taken to return.
//! What is only reached by computed jumps is not found here, and data between the code is not taken for code.

use std::ops::Range;

use iced_x86::{FlowControl, Instruction, Mnemonic};

use super::site::ends_flow;
use crate::x86::decode::decoder;
use crate::x86::sensitive::Class;

/// A function longer than that is not looked at.
const LONGEST: usize = 1 << 20;

/// What was found of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Where instructions begin, in order.
    pub begins: Vec<u64>,
    /// The targets of direct jumps and calls, in this function and elsewhere, and what follows each HLT: the frame of
    /// the interrupt that ends it says so.
    pub targets: Vec<u64>,
    /// The privileged and sensitive instructions, in order.
    pub sensitive: Vec<u64>,
}

impl Flow {
    /// What is jumped to: also the first instruction, by whoever calls the function through a pointer.
    pub fn entered(&self) -> impl Iterator<Item = u64> {
        self.begins.first().into_iter().chain(&self.targets).copied()
    }
}

/// Finds out what is reached from the beginning of `code`, which is a whole function at `base`; `None` if something is
/// reached that is no code, or is code in two ways.
pub(crate) fn explore(code: &[u8], base: u64) -> Option<Flow> {
    if code.len() > LONGEST {
        return None;
    }
    let range = base..base.checked_add(code.len() as u64)?;
    let mut flow = Flow::default();
    // For each byte: nothing known, an instruction begins there, or it is inside of one.
    let mut known = vec![Byte::Unknown; code.len()];
    let mut open = vec![base];
    while let Some(from) = open.pop() {
        follow(code, &range, from, &mut known, &mut flow, &mut open)?;
    }
    flow.begins.sort_unstable();
    flow.sensitive.sort_unstable();
    Some(flow)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Byte {
    Unknown,
    Begins,
    Inside,
}

/// Follows the code from `from` on to where it ends or is known already.
fn follow(
    code: &[u8],
    range: &Range<u64>,
    from: u64,
    known: &mut [Byte],
    flow: &mut Flow,
    open: &mut Vec<u64>,
) -> Option<()> {
    let mut at = from;
    while range.contains(&at) {
        let index = usize::try_from(at - range.start).ok()?;
        match known.get(index)? {
            Byte::Begins => return Some(()),
            Byte::Inside => return None,
            Byte::Unknown => {}
        }
        let insn = decoder(code.get(index..)?, at).decode();
        let bytes = known.get_mut(index..index + insn.len())?;
        if insn.is_invalid() || bytes.iter().any(|byte| *byte != Byte::Unknown) {
            return None;
        }
        bytes.fill(Byte::Inside);
        *bytes.first_mut()? = Byte::Begins;
        flow.begins.push(at);
        if Class::of(&insn).is_some() {
            flow.sensitive.push(at);
        }
        if insn.mnemonic() == Mnemonic::Hlt {
            flow.targets.push(insn.next_ip());
        }
        if let Some(target) = direct_target(&insn) {
            flow.targets.push(target);
            if range.contains(&target) {
                open.push(target);
            }
        }
        if ends_flow(&insn) {
            break;
        }
        at = insn.next_ip();
    }
    Some(())
}

/// Where a direct jump or call goes.
fn direct_target(insn: &Instruction) -> Option<u64> {
    let direct = matches!(
        insn.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call
    );
    let near = insn.op_count() == 1 && insn.op0_kind() == iced_x86::OpKind::NearBranch64;
    (direct && near).then(|| insn.near_branch_target())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_ways_of_a_branch_are_followed_and_data_is_not() {
        // 0: cli; 1: je 5; 3: sti; 4: ret; 5: hlt; 6: jmp 5; 8: a table
        let code = [0xfa, 0x74, 0x02, 0xfb, 0xc3, 0xf4, 0xeb, 0xfd, 0xfa, 0xfa];
        let flow = explore(&code, 0x1000).unwrap();
        assert_eq!(flow.begins, [0x1000, 0x1001, 0x1003, 0x1004, 0x1005, 0x1006]);
        assert_eq!(
            (flow.sensitive, flow.targets),
            (vec![0x1000, 0x1003, 0x1005], vec![0x1005, 0x1006, 0x1005])
        );
    }

    #[test]
    fn what_is_no_code_or_code_in_two_ways_is_left_alone() {
        assert_eq!(explore(&[0xfa, 0x06, 0xc3], 0), None);
        // A jump into the middle of the MOV.
        assert_eq!(explore(&[0xb8, 0xfa, 0xfa, 0xfa, 0xfa, 0xeb, 0xfb], 0), None);
        assert_eq!(explore(&[], 0), Some(Flow::default()));
    }

    proptest! {
        #[test]
        fn any_bytes(code in prop::collection::vec(any::<u8>(), 0..64), base in any::<u64>()) {
            if let Some(flow) = explore(&code, base) {
                prop_assert!(flow.begins.is_sorted() && flow.begins.windows(2).all(|two| two[0] != two[1]));
                prop_assert!(flow.sensitive.iter().all(|at| flow.begins.contains(at)));
            }
        }
    }
}
