//! Kernels with pages below those that Linux lets an unprivileged process map.

use paravane_abi::pte;

use super::*;
use crate::engine::Exit;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::testing::engine::{DATA, TABLE, TEXT, code, gp};

/// A page where nobody must ask, in the chunk that begins at address 0.
const CODE_VA: u64 = 0x10_0000;
const READ_WRITE_EXECUTE: u64 = TEXT | pte::RW | pte::DIRTY;

fn world_from(lowest: Lowest) -> Option<World> {
    if let Err(missing) = probe() {
        skip("process", missing);
        return None;
    }
    let make = |memory: &MachineMemory, layout: &HypervisorLayout| {
        ProcessMachine::with_lowest(memory, layout, lowest, 1).map(|e| Box::new(e) as Box<dyn Machine>)
    };
    Some(World::new(Backing::Memfd, make).unwrap())
}

/// A world with linear addresses 0 to 0x110000 mapped to frames in a row, as a kernel with VIRT_BASE 0 begins.
fn world_from_zero(lowest: Lowest) -> Option<World> {
    let mut w = world_from(lowest)?;
    for page in 0..0x110 {
        let frame = w.frame();
        w.map(page * PAGE_SIZE, frame, READ_WRITE_EXECUTE);
    }
    Some(w)
}

/// Puts code at `va` and rip before it.
fn load_at(w: &mut World, va: u64, code: &[u8]) {
    let page = w.mfn_of(va).maddr();
    w.memory.write(Maddr(page.0 + va % PAGE_SIZE), code).unwrap();
    w.regs.rip = va;
}

/// The process was ended by its own mapper, which tried to map neighbours down to page 0.
#[test]
fn a_kernel_with_virt_base_0_runs_above_the_low_pages() {
    let Some(mut w) = world_from_zero(Lowest::ASSUMED) else { return };
    load_at(&mut w, CODE_VA, &code!("mov [rsp - 8], rsp", "cli"));
    w.regs.rsp = CODE_VA + 0x8000;
    assert_eq!(w.run(), gp(0));
    // What is changed of the low pages while it runs is not mapped either.
    for page in 0..16 {
        let frame = w.frame();
        w.map(page * PAGE_SIZE, frame, DATA);
    }
    load_at(&mut w, CODE_VA + 0x1000, &code!("mov [rsp - 8], rsp", "cli"));
    assert_eq!(w.run(), gp(0));
    assert_eq!(w.peek(CODE_VA + 0x8000 - 8), CODE_VA + 0x8000);
}

#[test]
fn a_large_page_at_address_0_serves_above_the_low_pages() {
    let Some(mut w) = world_from(Lowest::ASSUMED) else { return };
    while !w.frame().0.is_multiple_of(512) {}
    let base = w.frame().0 - 1;
    for _ in 0..510 {
        w.frame();
    }
    let entry = w.entry(0, 2);
    w.write(entry, 2, pte::make(base, TABLE | pte::PSE | pte::DIRTY));
    let at = |va: u64| Maddr(Mfn(base).maddr().0 + va);
    w.memory.write(at(CODE_VA), &code!("mov [rax], rax", "cli")).unwrap();
    (w.regs.rip, w.regs.rax) = (CODE_VA, CODE_VA + 0x5008);
    assert_eq!(w.run(), gp(0));
    assert_eq!(w.memory.load_u64(at(CODE_VA + 0x5008)), Ok(CODE_VA + 0x5008));
}

/// A guest that uses a page which cannot be mapped dies alone, and its message names the remedy.
#[test]
fn a_page_that_cannot_be_had_is_told_with_what_to_do() {
    let Some(mut w) = world_from_zero(Lowest::ASSUMED) else { return };
    let lowest = lowest::unprivileged();
    if lowest == 0 {
        return skip("mmap-min-addr", "every process may map page 0 here");
    }
    load_at(&mut w, CODE_VA, &code!("mov rax, [rax]", "cli"));
    // The first that can be had is one that the host was asked about, where its limit is lower than usual.
    w.regs.rax = lowest;
    assert_eq!(w.run(), gp(0));
    (w.regs.rip, w.regs.rax) = (CODE_VA, lowest - PAGE_SIZE);
    let Exit::Dead(why) = w.run() else { panic!("the page was there") };
    assert!(why.contains("vm.mmap_min_addr") && why.contains("link it higher"), "{why}");
}

/// Where root runs it, page 0 is as good as any; the guest thread has no capability all the same.
#[test]
fn root_s_guests_have_page_0() {
    let lowest = Lowest::for_guest(0);
    if lowest.address != 0 {
        return skip("mmap-min-addr", format_args!("a process may map from {:#x} up here", lowest.address));
    }
    let Some(mut w) = world_from_zero(lowest) else { return };
    load_at(&mut w, 0, &code!("mov rbx, [rax]", "cli"));
    w.poke(0x100, 77);
    w.regs.rax = 0x100;
    assert_eq!((w.run(), w.regs.rbx), (gp(0), 77));
    for pid in w.cpu.processes() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let task = task.unwrap().file_name().into_string().unwrap();
            let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap();
            let capabilities = status.lines().find(|line| line.starts_with("CapEff:")).unwrap();
            let is_mapper = task == pid.to_string();
            let expected =
                if is_mapper && lowest.privileged { "0000000000020000" } else { "0000000000000000" };
            assert!(capabilities.ends_with(expected), "{task}: {capabilities}");
        }
    }
}
