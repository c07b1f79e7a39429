//! Jump tables, as compilers make them of a choice between many cases.
//!
//! ```text
//! lea    rcx, [rip + table]
//! movsxd rax, dword [rcx + rax * 4]
//! add    rax, rcx
//! jmp    rax
//! ```
//!
//! What is found is a guess about where control goes, and nothing is wrong if it does not.

use iced_x86::{Instruction, Mnemonic, Register};

/// What the instructions of a block so far say about a table.
#[derive(Debug, Default)]
pub(super) struct JumpTable {
    /// The register that was last given an address, and the address.
    address: Option<(Register, u64)>,
    /// The register that has what was loaded from a table at that address, and the address.
    entry: Option<(Register, u64)>,
}

impl JumpTable {
    /// Takes note of an instruction that is no transfer of control.
    pub fn note(&mut self, insn: &Instruction) {
        match insn.mnemonic() {
            Mnemonic::Lea if insn.memory_base() == Register::RIP => {
                self.address = Some((insn.op0_register(), insn.ip_rel_memory_address()));
            }
            Mnemonic::Movsxd if insn.memory_index_scale() == 4 && insn.memory_displacement64() == 0 => {
                let table = self.address.filter(|(register, _)| *register == insn.memory_base());
                self.entry = table.map(|(_, at)| (insn.op0_register(), at));
            }
            _ => {}
        }
    }

    /// Where the table of the jump `insn` is, if it jumps by one.
    pub fn of_jump(&self, insn: &Instruction) -> Option<u64> {
        let by_register = insn.mnemonic() == Mnemonic::Jmp && insn.op0_register() != Register::None;
        let (_, table) =
            self.entry.filter(|(register, _)| by_register && *register == insn.op0_register())?;
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn table(code: &[u8]) -> Option<u64> {
        let mut seen = JumpTable::default();
        let mut last = None;
        for insn in Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE) {
            seen.note(&insn);
            last = Some(insn);
        }
        seen.of_jump(&last?)
    }

    #[test]
    fn a_jump_by_a_table_is_known() {
        let lea = [0x48, 0x8d, 0x0d, 0x10, 0, 0, 0];
        let load = [0x48, 0x63, 0x04, 0x81, 0x48, 0x01, 0xc8];
        let jump = [0xff, 0xe0];
        assert_eq!(table(&[&lea[..], &load, &jump].concat()), Some(0x1017));
        assert_eq!(table(&[&load[..], &jump].concat()), None, "of a table that is not known");
        assert_eq!(table(&[&lea[..], &jump].concat()), None, "through the address itself");
        // jmp rdx; jmp [rax]
        assert_eq!(table(&[&lea[..], &load, &[0xff, 0xe2]].concat()), None);
        assert_eq!(table(&[&lea[..], &load, &[0xff, 0x20]].concat()), None);
    }
}
