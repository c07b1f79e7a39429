//! Minimal kernels: an ELF file around a few bytes of code, for guests that no compiler would produce.

use paravane_abi::elfnote;

/// The virtual address of pseudo-physical address 0 in each of these kernels.
pub const VIRT_BASE: u64 = 0x4000_0000;
/// The address of a paravirtual kernel's hypercall page, which the code follows.
pub const HYPERCALL_PAGE: u64 = VIRT_BASE + 0x10_0000;
/// The address of the first instruction.
pub const ENTRY: u64 = HYPERCALL_PAGE + 0x1000;
/// The size of the readable, writable and executable memory from [`HYPERCALL_PAGE`] on, in bytes.
pub const SIZE: u64 = 0x1_0000;

/// The interface that a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Xen's PV interface.
    Pv,
    /// A bare PC.
    Bare,
}

/// A kernel of only `code`, which is entered at its first byte.
///
/// # Panics
/// If the code does not fit.
pub fn kernel(kind: Kind, code: &[u8]) -> Vec<u8> {
    kernel_at(kind, VIRT_BASE, HYPERCALL_PAGE - VIRT_BASE, code)
}

/// The same, linked at another address: the hypercall page at `virt_base + load`, and `code` one page after it.
///
/// # Panics
/// If the code does not fit.
pub fn kernel_at(kind: Kind, virt_base: u64, load: u64, code: &[u8]) -> Vec<u8> {
    assert!(code.len() as u64 <= SIZE - 0x1000, "broken test: {} bytes of code", code.len());
    let notes = match kind {
        Kind::Pv => pv_notes(virt_base, virt_base + load),
        Kind::Bare => {
            [note("Paravane", 1, &1u32.to_le_bytes()), note("Paravane", 2, &le(virt_base))].concat()
        }
    };
    let text = [&[0xcc; 0x1000], code].concat();
    let headers = 64 + 2 * 56;
    let (notes_at, text_at) = (headers, headers + notes.len() as u64);
    let mut file = header(virt_base + load + 0x1000);
    file.extend(segment(1, text_at, virt_base + load, text.len() as u64, SIZE));
    file.extend(segment(4, notes_at, 0, notes.len() as u64, notes.len() as u64));
    file.extend(notes);
    file.extend(text);
    file
}

/// The same file with a symbol for each function: its address and its size.
pub fn with_functions(mut file: Vec<u8>, functions: &[(u64, u64)]) -> Vec<u8> {
    // STB_GLOBAL and STT_FUNC, in some section (gABI, "Symbol Table").
    let symbol =
        |(address, size): &(u64, u64)| [&[0, 0, 0, 0, 0x12, 0, 1, 0][..], &le(*address), &le(*size)].concat();
    let symbols = [vec![0; 24], functions.iter().flat_map(symbol).collect()].concat();
    let symbols_at = file.len() as u64;
    file.extend(&symbols);
    // Kind, offset, size, the section of its names, the size of an entry.
    let section = |kind: u32, at: u64, size: u64, link: u32, entry: u64| {
        let head = [[0, kind].map(u32::to_le_bytes).concat(), [0, 0, at, size].map(le).concat()].concat();
        [head, [link, 1].map(u32::to_le_bytes).concat(), [8, entry].map(le).concat()].concat()
    };
    let names_at = file.len() as u64;
    file.push(0);
    let sections_at = file.len() as u64;
    file.extend(section(0, 0, 0, 0, 0));
    file.extend(section(2, symbols_at, symbols.len() as u64, 2, 24));
    file.extend(section(3, names_at, 1, 0, 0));
    file[40..48].copy_from_slice(&le(sections_at));
    file[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    file
}

fn pv_notes(virt_base: u64, hypercall_page: u64) -> Vec<u8> {
    let text = |kind, value: &str| note("Xen", kind, format!("{value}\0").as_bytes());
    let number = |kind, value| note("Xen", kind, &le(value));
    [
        text(elfnote::XEN_ELFNOTE_XEN_VERSION, "xen-3.0"),
        text(elfnote::XEN_ELFNOTE_LOADER, "generic"),
        number(elfnote::XEN_ELFNOTE_VIRT_BASE, virt_base),
        number(elfnote::XEN_ELFNOTE_PADDR_OFFSET, virt_base),
        number(elfnote::XEN_ELFNOTE_HYPERCALL_PAGE, hypercall_page),
    ]
    .concat()
}

const fn le(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

/// An ELF note, padded to 4 bytes (gABI, "Note Section").
fn note(owner: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let pad = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let sizes = [owner.len() as u32 + 1, value.len() as u32, kind].map(u32::to_le_bytes);
    [sizes.concat(), pad([owner.as_bytes(), &[0]].concat()), pad(value.to_vec())].concat()
}

/// The ELF header of a static x86-64 executable with two program headers (gABI, "ELF Header").
fn header(entry: u64) -> Vec<u8> {
    let ident = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let halves = |halves: &[u16]| halves.iter().flat_map(|h| h.to_le_bytes()).collect::<Vec<u8>>();
    [
        ident.to_vec(),
        halves(&[2, 62]),
        1u32.to_le_bytes().to_vec(),
        [entry, 64, 0].map(le).concat(),
        0u32.to_le_bytes().to_vec(),
        halves(&[64, 56, 2, 64, 0, 0]),
    ]
    .concat()
}

/// A program header of a segment that may be read, written and executed.
fn segment(kind: u32, offset: u64, address: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
    let head = [kind, 7].map(u32::to_le_bytes).concat();
    [head, [offset, address, address, in_file, in_memory, 4].map(le).concat()].concat()
}
