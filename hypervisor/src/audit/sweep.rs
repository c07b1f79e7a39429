//! The linear sweep: decodes code piece by piece, and collects the findings.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, Formatter, Instruction, NasmFormatter};

use super::advice::instead;
use super::code::Piece;
use super::declarations::Declared;
use super::regions::Skipped;
use super::relocation::Relocations;
use super::report::{Audit, ClassSummary, Coverage, Finding, LISTED, Subject};
use crate::machine::memory::PAGE_SIZE;
use crate::x86::decode::decoder;
use crate::x86::sensitive::Class;

/// Counts for one class.
#[derive(Debug, Default)]
struct Count {
    all: u64,
    uncertain: u64,
    deliberate: u64,
    /// By section and address; all code without a symbol counts as one.
    functions: BTreeSet<Option<(usize, u64)>>,
}

/// A sweep in progress.
pub(super) struct Sweep<'a> {
    /// The page whose contents the hypervisor replaces: instructions in it do not count.
    hypercall_page: Option<u64>,
    declared: Declared,
    relocations: &'a Relocations<'a>,
    counts: BTreeMap<Class, Count>,
    findings: Vec<Finding>,
    coverage: Coverage,
    formatter: NasmFormatter,
}

impl<'a> Sweep<'a> {
    pub fn new(hypercall_page: Option<u64>, declared: Declared, relocations: &'a Relocations<'a>) -> Self {
        Self {
            hypercall_page,
            declared,
            relocations,
            counts: BTreeMap::new(),
            findings: Vec::new(),
            coverage: Coverage::default(),
            formatter: NasmFormatter::new(),
        }
    }

    /// Sweeps one piece of code.
    pub fn piece(&mut self, piece: &Piece<'_>) {
        self.cover(piece);
        let mut decoder = decoder(piece.code, piece.start);
        let mut certain = piece.symbol.is_some();
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            let at = decoder.position();
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                certain = false;
                self.coverage.undecodable_bytes += 1;
                decoder.set_ip(piece.start + at as u64 + 1);
                if decoder.set_position(at + 1).is_err() {
                    break;
                }
                continue;
            }
            self.coverage.instructions += 1;
            if let Some(class) = Class::of(&instruction)
                && !self.is_replaced(instruction.ip())
            {
                let text = self.operation(piece, &decoder, &instruction);
                self.found(piece, &instruction, text, class, certain);
            }
        }
    }

    fn cover(&mut self, piece: &Piece<'_>) {
        let len = piece.code.len() as u64;
        self.coverage.code_bytes += len;
        if piece.symbol.is_some() {
            self.coverage.named_bytes += len;
            self.coverage.functions += 1;
        }
    }

    fn is_replaced(&self, address: u64) -> bool {
        self.hypercall_page
            .and_then(|page| address.checked_sub(page))
            .is_some_and(|offset| offset < PAGE_SIZE)
    }

    /// The instruction as text, with symbols in place of operands that relocations fill in.
    fn operation(&mut self, piece: &Piece<'_>, decoder: &Decoder<'_>, instruction: &Instruction) -> String {
        let mut text = String::new();
        let offsets = decoder.get_constant_offsets(instruction);
        let operands = piece.section.and_then(|s| self.relocations.operands(s.index, instruction, offsets));
        match operands {
            Some(operands) => {
                NasmFormatter::with_options(Some(Box::new(operands)), None).format(instruction, &mut text);
            }
            None => self.formatter.format(instruction, &mut text),
        }
        text
    }

    fn found(
        &mut self,
        piece: &Piece<'_>,
        instruction: &Instruction,
        text: String,
        class: Class,
        certain: bool,
    ) {
        let deliberate = self.declared.reason(piece.section, instruction.ip());
        let count = self.counts.entry(class).or_default();
        count.all += 1;
        count.deliberate += u64::from(deliberate.is_some());
        count.uncertain += u64::from(!certain);
        let section = piece.section.map_or(0, |s| s.index);
        count.functions.insert(piece.symbol.map(|s| (section, s.value)));
        if self.findings.len() == LISTED {
            return;
        }
        self.findings.push(Finding {
            address: instruction.ip(),
            section: piece.section.map(|s| String::from_utf8_lossy(s.name).into_owned()),
            function: piece.symbol.map(|s| s.readable()),
            offset: instruction.ip() - piece.symbol.map_or(piece.start, |s| s.value),
            line: None,
            instruction: text,
            class,
            effect: class.effect(),
            certain,
            deliberate: deliberate.map(str::to_owned),
        });
    }

    /// The report, in order.
    pub fn finish(mut self, subject: Subject, skipped: Vec<Skipped>) -> Audit {
        // In an object file the sections stay in the file's order.
        if subject != Subject::Object {
            self.findings.sort_by_key(|f| f.address);
        }
        let summary = |(class, count): (&Class, &Count)| ClassSummary {
            class: *class,
            effect: class.effect(),
            name: class.name(),
            instead: instead(*class),
            count: count.all,
            uncertain: count.uncertain,
            deliberate: count.deliberate,
            functions: count.functions.len() as u64,
        };
        let mut classes: Vec<ClassSummary> = self.counts.iter().map(summary).collect();
        classes.sort_by_key(|c| (c.effect, Reverse(c.count)));
        let total = classes.iter().map(|c| c.count).sum();
        Audit { subject, classes, findings: self.findings, total, coverage: self.coverage, skipped }
    }
}
