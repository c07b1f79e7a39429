//! Relocations of object files: the operands that the linker has still to fill in.
//!
//! The bytes there have no meaning before, so the audit shows the relocation's symbol in their place. Only files of
//! type ET_REL have them (System V ABI, AMD64 supplement, section 4.4); in a linked file the operands are filled in.

use std::collections::BTreeMap;

use iced_x86::{ConstantOffsets, Instruction, OpKind, SymbolResolver, SymbolResult};
use object::elf::{
    ET_REL, R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_GOTTPOFF, R_X86_64_PC8, R_X86_64_PC16,
    R_X86_64_PC32, R_X86_64_PC64, R_X86_64_PLT32, R_X86_64_REX_GOTPCRELX,
};
use object::read::elf::{FileHeader, Rela, SectionHeader, Sym};
use object::{LittleEndian, SymbolIndex};

use crate::image::Header;
use crate::image::symbols::readable;

/// A place in an object file: a section's index and an offset in it.
pub(super) type Place = (usize, u64);

/// What the linker is to write to one place.
#[derive(Clone, Debug)]
struct Relocation<'a> {
    /// The symbol's name, or its section's.
    name: &'a [u8],
    /// The symbol's place, if this file defines it.
    target: Option<Place>,
    addend: i64,
    pc_relative: bool,
}

/// The relocations of an object file, by the place to be filled in.
#[derive(Debug, Default)]
pub(super) struct Relocations<'a>(BTreeMap<Place, Relocation<'a>>);

impl<'a> Relocations<'a> {
    /// Reads all relocations with addends; none if the file is not an object file, or its tables are damaged.
    pub fn read(header: &Header, file: &'a [u8]) -> Self {
        if header.e_type(LittleEndian) != ET_REL {
            return Self::default();
        }
        Self(read(header, file).unwrap_or_default())
    }

    /// The place that the address stored at `place` will point to.
    pub fn pointer(&self, place: Place) -> Option<Place> {
        let relocation = self.0.get(&place)?;
        let (section, value) = relocation.target?;
        Some((section, value.checked_add_signed(relocation.addend)?))
    }

    /// The symbols of the operands of an instruction that relocations fill in.
    pub fn operands(
        &self,
        section: usize,
        instruction: &Instruction,
        offsets: ConstantOffsets,
    ) -> Option<RelocatedOperands> {
        let ip = instruction.ip();
        let field = |has: bool, offset: usize| {
            let place = ip.checked_add(offset as u64).filter(|_| has)?;
            let relocation = self.0.get(&(section, place))?;
            // A displacement counts from the instruction's end, a relocation from the field.
            let from = if relocation.pc_relative { instruction.next_ip().wrapping_sub(place) } else { 0 };
            Some(named(relocation.name, relocation.addend.wrapping_add_unsigned(from)))
        };
        let operands = RelocatedOperands {
            displacement: field(offsets.has_displacement(), offsets.displacement_offset()),
            immediate: field(offsets.has_immediate(), offsets.immediate_offset()),
        };
        (operands.displacement.is_some() || operands.immediate.is_some()).then_some(operands)
    }
}

fn read<'a>(header: &Header, file: &'a [u8]) -> Option<BTreeMap<Place, Relocation<'a>>> {
    let sections = header.sections(LittleEndian, file).ok()?;
    let mut found = BTreeMap::new();
    for section in sections.iter() {
        let Ok(Some((entries, link))) = section.rela(LittleEndian, file) else { continue };
        let Ok(symbols) = sections.symbol_table_by_index(LittleEndian, file, link) else { continue };
        let filled = section.info_link(LittleEndian);
        for entry in entries {
            let index = SymbolIndex(entry.r_sym(LittleEndian, false) as usize);
            let Ok(symbol) = symbols.symbol(index) else { continue };
            let defined = symbols.symbol_section(LittleEndian, symbol, index).ok().flatten();
            let own = symbol.name(LittleEndian, symbols.strings()).unwrap_or_default();
            let name = match defined.and_then(|index| sections.section(index).ok()) {
                Some(section) if own.is_empty() => {
                    sections.section_name(LittleEndian, section).unwrap_or_default()
                }
                _ => own,
            };
            let relocation = Relocation {
                name,
                target: defined.map(|section| (section.0, symbol.st_value(LittleEndian))),
                addend: entry.r_addend(LittleEndian),
                pc_relative: is_pc_relative(entry.r_type(LittleEndian, false)),
            };
            found.insert((filled.0, entry.r_offset(LittleEndian)), relocation);
        }
    }
    Some(found)
}

const fn is_pc_relative(kind: u32) -> bool {
    matches!(
        kind,
        R_X86_64_PC8
            | R_X86_64_PC16
            | R_X86_64_PC32
            | R_X86_64_PC64
            | R_X86_64_PLT32
            | R_X86_64_GOTPCREL
            | R_X86_64_GOTPCRELX
            | R_X86_64_REX_GOTPCRELX
            | R_X86_64_GOTTPOFF
    )
}

fn named(name: &[u8], addend: i64) -> String {
    let name = readable(name);
    match addend {
        0 => name,
        1.. => format!("{name}+{addend:#x}"),
        ..0 => format!("{name}-{:#x}", addend.unsigned_abs()),
    }
}

/// Names for an instruction's operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RelocatedOperands {
    displacement: Option<String>,
    immediate: Option<String>,
}

impl SymbolResolver for RelocatedOperands {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let memory = instruction_operand.is_some_and(|n| instruction.op_kind(n) == OpKind::Memory);
        let name = if memory { self.displacement.as_deref() } else { self.immediate.as_deref() };
        name.map(|name| SymbolResult::with_str(address, name))
    }
}
