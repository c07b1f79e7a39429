//! A tiny ELF writer, so that tests can make images with any one thing wrong.

use crate::image::notes::BARE_PROTOCOL;

/// A program header in the making.
#[derive(Clone, Debug)]
pub struct Phdr {
    pub kind: u32,
    pub flags: u32,
    pub vaddr: u64,
    pub paddr: u64,
    pub data: Vec<u8>,
    pub memsz: u64,
}

/// A symbol in the making.
#[derive(Clone, Debug)]
pub struct Symbol {
    pub name: &'static str,
    pub value: u64,
    pub size: u64,
    /// STT_*.
    pub kind: u8,
}

/// An ELF file in the making; its defaults are those of a correct image.
#[derive(Clone, Debug)]
pub struct Elf {
    pub kind: u16,
    pub machine: u16,
    pub entry: u64,
    pub phdrs: Vec<Phdr>,
    pub symbols: Vec<Symbol>,
    /// Other sections: name, type, contents.
    pub sections: Vec<(&'static str, u32, Vec<u8>)>,
    /// Which of the sections hold code, and at what address.
    pub code_sections: Vec<(&'static str, u64)>,
}

/// One ELF note, padded to 4 bytes.
pub fn note(owner: &str, kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [owner.len() as u32 + 1, desc.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    out.extend(owner.bytes().chain([0]));
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(desc);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// A Xen note that holds a number.
pub fn xen_number(kind: u32, value: u64) -> Vec<u8> {
    note("Xen", kind, &value.to_le_bytes())
}

/// A Xen note that holds a string.
pub fn xen_text(kind: u32, value: &str) -> Vec<u8> {
    note("Xen", kind, format!("{value}\0").as_bytes())
}

/// Bytes to recognise a segment by.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8 | 1).collect()
}

impl Elf {
    /// A file with a text segment (three pages, the hypercall page in the middle) and data with bss.
    fn with_segments(va: u64, pa: u64) -> Self {
        let load = |flags, offset, data: Vec<u8>, memsz| Phdr {
            kind: object::elf::PT_LOAD,
            flags,
            vaddr: va + offset,
            paddr: pa + offset,
            data,
            memsz,
        };
        let phdrs = vec![load(5, 0, pattern(0x3000), 0x3000), load(6, 0x3000, pattern(0x123), 0x2800)];
        Self {
            kind: 2,
            machine: 62,
            entry: va,
            phdrs,
            symbols: Vec::new(),
            sections: Vec::new(),
            code_sections: Vec::new(),
        }
    }

    /// A paravirtual image linked at `virt_base + load`, with `p_paddr` as PADDR_OFFSET tells.
    pub fn pv(virt_base: u64, paddr_offset: u64, load: u64, more: &[Vec<u8>]) -> Self {
        let va = virt_base.wrapping_add(load);
        let notes = [
            xen_text(6, "test"),
            xen_text(5, "xen-3.0"),
            xen_text(8, "generic"),
            xen_number(3, virt_base),
            xen_number(4, paddr_offset),
            xen_number(2, va + 0x1000),
        ];
        let mut elf = Self::with_segments(va, paddr_offset + load);
        elf.add_notes(&[notes.concat(), more.concat()].concat());
        elf
    }

    /// An image of a bare kernel.
    pub fn bare(virt_base: u64, load: u64) -> Self {
        let mut elf = Self::with_segments(virt_base + load, virt_base + load);
        elf.add_notes(&note("Paravane", 1, &BARE_PROTOCOL.to_le_bytes()));
        elf.add_notes(&note("Paravane", 2, &virt_base.to_le_bytes()));
        elf
    }

    /// A file without notes.
    pub fn plain() -> Self {
        Self::with_segments(0x40_0000, 0x40_0000)
    }

    /// Adds a note segment.
    pub fn add_notes(&mut self, data: &[u8]) {
        self.phdrs.push(Phdr {
            kind: object::elf::PT_NOTE,
            flags: 4,
            vaddr: 0,
            paddr: 0,
            memsz: data.len() as u64,
            data: data.to_vec(),
        });
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; 64 + 56 * self.phdrs.len()];
        let mut headers = Vec::new();
        for p in &self.phdrs {
            headers.extend(p.kind.to_le_bytes());
            headers.extend(p.flags.to_le_bytes());
            let file = p.data.len() as u64;
            for word in [out.len() as u64, p.vaddr, p.paddr, file, p.memsz, 4] {
                headers.extend(word.to_le_bytes());
            }
            out.extend(&p.data);
        }
        let (shoff, shnum) = self.write_sections(&mut out);
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        header.extend(self.kind.to_le_bytes());
        header.extend(self.machine.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        for word in [self.entry, 64, shoff] {
            header.extend(word.to_le_bytes());
        }
        header.extend(0u32.to_le_bytes());
        for half in [64, 56, self.phdrs.len() as u16, 64, shnum, shnum.saturating_sub(1)] {
            header.extend(half.to_le_bytes());
        }
        header.extend(headers);
        out[..header.len()].copy_from_slice(&header);
        out
    }

    /// Sections: null, the others, symbols and their strings, section names last.
    fn write_sections(&self, out: &mut Vec<u8>) -> (u64, u16) {
        if self.symbols.is_empty() && self.sections.is_empty() {
            return (0, 0);
        }
        let (mut names, mut table) = (vec![0u8], vec![[0u64; 8]]);
        let mut section = |out: &mut Vec<u8>, name: &str, kind: u32, link: u64, data: &[u8]| {
            let name_at = names.len() as u64;
            names.extend(name.bytes().chain([0]));
            let entry = if kind == object::elf::SHT_SYMTAB { 24 } else { 0 };
            let at = if name == ".shstrtab" { 0 } else { out.len() as u64 };
            let code = self.code_sections.iter().find(|(code, _)| *code == name);
            let (flags, address) = code.map_or((0, 0), |(_, va)| (object::elf::SHF_EXECINSTR.into(), *va));
            table.push([
                name_at | u64::from(kind) << 32,
                flags,
                address,
                at,
                data.len() as u64,
                link,
                4,
                entry,
            ]);
            out.extend(data);
        };
        for (name, kind, data) in &self.sections {
            section(out, name, *kind, 0, data);
        }
        let (mut symbols, mut strings) = (vec![0; 24], vec![0u8]);
        for s in &self.symbols {
            symbols.extend((strings.len() as u32).to_le_bytes());
            symbols.extend([s.kind, 0, 1, 0]);
            symbols.extend(s.value.to_le_bytes());
            symbols.extend(s.size.to_le_bytes());
            strings.extend(s.name.bytes().chain([0]));
        }
        let strtab = self.sections.len() as u64 + 2;
        section(out, ".symtab", object::elf::SHT_SYMTAB, strtab, &symbols);
        section(out, ".strtab", object::elf::SHT_STRTAB, 0, &strings);
        section(out, ".shstrtab", object::elf::SHT_STRTAB, 0, &[]);
        if let Some(last) = table.last_mut() {
            (last[3], last[4]) = (out.len() as u64, names.len() as u64);
        }
        out.extend(&names);
        let shoff = out.len() as u64;
        out.extend(table.iter().flatten().flat_map(|word| word.to_le_bytes()));
        (shoff, table.len() as u16)
    }
}
