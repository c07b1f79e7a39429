//! Walks the tables of a built bare domain and checks every promise of the boot protocol.

use paravane_abi::addr::table_index;
use paravane_abi::hvm_start::{HvmMemmapTableEntry, HvmModlistEntry, HvmStartInfo};
use paravane_abi::pte;
use zerocopy::{FromBytes, IntoBytes};

use super::pv::{Built, config, try_build};
use crate::build::BuildError;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::testing::elf::{Elf, pattern};

const MIB: u64 = 1 << 20;
const BASE: u64 = 0x4000_0000;

/// Reads what the guest calls physical memory.
fn read_pa<T: FromBytes + IntoBytes>(built: &Built, pa: u64) -> T {
    built.memory.read_obj(Maddr(built.memory.guest_base().maddr().0 + pa)).unwrap()
}

/// The physical page behind `va`, by the guest's own tables.
fn walk(built: &Built, va: u64) -> Option<u64> {
    let mut table = built.domain.cr3;
    for level in [4, 3, 2, 1] {
        let entry: u64 = read_pa(built, table + 8 * table_index(va, level) as u64);
        if entry & pte::PRESENT == 0 {
            return None;
        }
        assert_ne!(entry & pte::RW, 0);
        assert_eq!(entry & (pte::USER | pte::PSE | pte::NX), 0, "a supervisor's 4-KiB page");
        table = entry & pte::ADDR_MASK;
    }
    Some(table)
}

#[test]
fn the_boot_protocol() {
    for base in [BASE, 0, 0xffff_ffff_8000_0000] {
        let elf = Elf::bare(base, 0x10_0000);
        let built = try_build(&elf.bytes(), 32 * MIB, &config(None)).unwrap();
        let d = &built.domain;
        assert_eq!((d.entry_rip, d.virt_base), (base + 0x10_0000, base));
        assert_eq!(d.mapped_bytes % (4 * MIB), 0);
        for pa in (0..d.mapped_bytes).step_by(PAGE_SIZE as usize) {
            assert_eq!(walk(&built, base + pa), Some(pa));
        }
        assert_eq!(walk(&built, base + d.mapped_bytes), None);
        let code: [u8; 0x3000] = read_pa(&built, 0x10_0000);
        assert_eq!(code[..], pattern(0x3000), "no hypercall page is written into a bare kernel");

        let stack = d.pieces.last().unwrap();
        assert_eq!((stack.name, stack.pfns.end - stack.pfns.start), ("boot stack", 4));
        assert_eq!(d.rsp, base + stack.pfns.end * PAGE_SIZE);
        assert!(stack.pfns.end * PAGE_SIZE + 512 * 1024 <= d.mapped_bytes, "spare room");
        assert_eq!(built.memory.mfn_to_pfn(d.root), Some(d.cr3 / PAGE_SIZE));
    }
}

#[test]
fn the_start_info() {
    let initrd = pattern(0x1803);
    let built = try_build(&Elf::bare(BASE, 0).bytes(), 32 * MIB, &config(Some(&initrd))).unwrap();
    let info: HvmStartInfo = read_pa(&built, built.domain.rsi);
    assert_eq!((info.magic, info.version, info.flags), (0x336e_c578, 1, 0));
    let cmdline: [u8; 22] = read_pa(&built, info.cmdline_paddr);
    assert_eq!(&cmdline, b"bench=null-call quiet\0");
    assert_eq!((info.nr_modules, info.memmap_entries), (1, 1));
    let module: HvmModlistEntry = read_pa(&built, info.modlist_paddr);
    assert_eq!(module.size, 0x1803);
    let bytes: [u8; 0x1803] = read_pa(&built, module.paddr);
    assert_eq!(bytes[..], initrd);
    let ram: HvmMemmapTableEntry = read_pa(&built, info.memmap_paddr);
    assert_eq!((ram.addr, ram.size, ram.kind), (0, 32 * MIB, 1));
    assert!(walk(&built, BASE + info.memmap_paddr).is_some());

    let without = try_build(&Elf::bare(BASE, 0).bytes(), 32 * MIB, &config(None)).unwrap();
    let info: HvmStartInfo = read_pa(&without, without.domain.rsi);
    assert_eq!((info.nr_modules, info.modlist_paddr), (0, 0));
}

#[test]
fn too_little_memory() {
    let err = try_build(&Elf::bare(BASE, 0).bytes(), MIB, &config(None)).map(|_| ()).unwrap_err();
    assert_eq!(err, BuildError::TooLittleMemory { given: MIB, needed: 4 * MIB });
}
