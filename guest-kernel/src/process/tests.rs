//! The logic of processes on a machine that checks every rule of a paravirtual one.

use std::vec::Vec;

use paravane_guest::user::UserContext;
use proptest::prelude::*;

use super::abi::{Errno, signal};
use super::archive::Archive;
use super::areas::{Area, Areas, Backing, END, Rights, START, ZEROES};
use super::files::{File, Files, Numbers};
use super::pipe::{ALWAYS, ATOMIC, CAPACITY, Flow, Pipe};
use super::signals::{self, Action, Delivery, Signals};
use super::space::{Fault, Space, Use};
use crate::memory::Memory;
use crate::memory::frames::{Frame, FrameAllocator, PAGE_SIZE};
use crate::memory::paging::tests::Machine;
use crate::memory::paging::{AddressSpace, Mmu, Stale};
use crate::memory::shares::Shares;

const FRAMES: u64 = 1024;
const DATA: Rights = Rights { read: true, write: true, execute: false };
const CODE: Rights = Rights { read: true, write: false, execute: true };
const AT: u64 = START + 0x40_0000;

fn memory() -> Memory<Machine> {
    let mut frames = FrameAllocator::new(Vec::leak(vec![0; FRAMES as usize / 64]));
    frames.add(Frame(1)..Frame(FRAMES));
    let mut mmu = Machine::default();
    mmu.clear(Frame(0));
    let mut shares = Shares::new();
    shares.prepare(FRAMES);
    Memory { mmu, frames, space: AddressSpace::adopt_boot(Frame(0)), shares, total_frames: FRAMES }
}

fn area(start: u64, pages: u64, rights: Rights) -> Area {
    Area { start, end: start + pages * PAGE_SIZE, rights, backing: ZEROES, grows: false }
}

/// A space with pages to write to at `AT`, which the processor may use.
fn space(memory: &mut Memory<Machine>, pages: u64) -> Space {
    let mut space = Space::new(memory, false).unwrap();
    space.add(area(AT, pages, DATA)).unwrap();
    space.make_live(memory);
    memory.mmu.flush(Stale::Nothing);
    space
}

fn word(space: &mut Space, memory: &mut Memory<Machine>, va: u64) -> Result<u8, Fault> {
    let mut byte = [0];
    space.copy_from(memory, va, &mut byte).map(|()| byte[0])
}

#[test]
fn a_fork_shares_until_one_writes() {
    let mut memory = memory();
    let free = memory.frames.free_frames();
    let mut parent = space(&mut memory, 4);
    parent.copy_to(&mut memory, AT + 4090, &[7; 12]).unwrap();
    let before = memory.frames.free_frames();
    let mut child = parent.fork(&mut memory).unwrap();
    child.make_live(&mut memory);
    memory.mmu.flush(Stale::Nothing);
    assert_eq!(before - memory.frames.free_frames(), 4, "tables only");
    child.copy_to(&mut memory, AT + 4090, &[8]).unwrap();
    assert_eq!(before - memory.frames.free_frames(), 5, "and the page that was written to");
    assert_eq!(word(&mut parent, &mut memory, AT + 4090), Ok(7));
    assert_eq!(word(&mut child, &mut memory, AT + 4090), Ok(8));
    assert_eq!(word(&mut child, &mut memory, AT + 4097), Ok(7));
    parent.copy_to(&mut memory, AT + 4090, &[9]).unwrap();
    assert_eq!(before - memory.frames.free_frames(), 5, "the last owner writes where it is");
    assert_eq!(word(&mut child, &mut memory, AT + 4090), Ok(8));
    parent.destroy(&mut memory);
    assert_eq!(word(&mut child, &mut memory, AT + 4097), Ok(7));
    child.destroy(&mut memory);
    assert_eq!(memory.frames.free_frames(), free, "every frame came back, once");
}

#[test]
fn no_pointer_leads_to_what_is_not_the_processes() {
    let mut memory = memory();
    let mut space = space(&mut memory, 1);
    space.add(area(AT + 2 * PAGE_SIZE, 1, CODE)).unwrap();
    for wild in [0, 0x4000_0000, AT - 1, AT + PAGE_SIZE - 3, START - 8, END, 1 << 47, u64::MAX - 2, u64::MAX]
    {
        assert_eq!(space.copy_from(&mut memory, wild, &mut [0; 8]), Err(Fault::NotPermitted), "{wild:#x}");
        assert_eq!(space.copy_to(&mut memory, wild, &[0; 8]), Err(Fault::NotPermitted), "{wild:#x}");
    }
    let code = AT + 2 * PAGE_SIZE;
    assert_eq!(word(&mut space, &mut memory, code), Ok(0));
    assert_eq!(space.copy_to(&mut memory, code, &[1]), Err(Fault::NotPermitted), "code is not written to");
    assert_eq!(space.fault(&mut memory, AT, Use::Execute), Err(Fault::NotPermitted), "data is not executed");
}

#[test]
fn a_page_begins_with_its_part_of_the_file() {
    let mut memory = memory();
    let mut space = Space::new(&mut memory, false).unwrap();
    let bytes: &'static [u8] = Vec::leak((0..5000).map(|i| (i % 251) as u8 + 1).collect());
    let backing = Backing { bytes, at: AT + 100 };
    space.add(Area { backing, ..area(AT, 3, CODE) }).unwrap();
    let mut all = vec![0; 3 * PAGE_SIZE as usize];
    space.copy_from(&mut memory, AT, &mut all).unwrap();
    assert_eq!((&all[..100], &all[100..5100]), (&[0; 100][..], bytes));
    assert!(all[5100..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_is_unmapped_is_free_and_gone() {
    let mut memory = memory();
    let mut space = space(&mut memory, 8);
    space.copy_to(&mut memory, AT, &[1; 8 * PAGE_SIZE as usize]).unwrap();
    let free = memory.frames.free_frames();
    space.unmap(&mut memory, AT + PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
    assert_eq!(memory.frames.free_frames(), free + 2);
    assert_eq!(word(&mut space, &mut memory, AT + PAGE_SIZE), Err(Fault::NotPermitted));
    assert_eq!(word(&mut space, &mut memory, AT + 3 * PAGE_SIZE), Ok(1));
    space.protect(&mut memory, AT, PAGE_SIZE, CODE).unwrap();
    assert_eq!(space.copy_to(&mut memory, AT, &[2]), Err(Fault::NotPermitted));
    space.protect(&mut memory, AT, PAGE_SIZE, DATA).unwrap();
    space.copy_to(&mut memory, AT, &[2]).unwrap();
    assert_eq!(space.protect(&mut memory, AT, 2 * PAGE_SIZE, CODE), Err(Errno::NoMem), "there is a hole");
}

#[test]
fn memory_that_runs_out_is_an_error_of_who_asks() {
    let mut memory = memory();
    let mut hog = space(&mut memory, FRAMES);
    let ended =
        (0..FRAMES).map(|page| hog.copy_to(&mut memory, AT + page * PAGE_SIZE, &[1])).find(Result::is_err);
    assert_eq!(ended, Some(Err(Fault::OutOfMemory)));
    assert!(memory.frames.free_frames() >= super::space::RESERVE - 1, "the reserve is left");
    assert!(hog.fork(&mut memory).is_err());
    assert!(Space::new(&mut memory, true).unwrap().fork(&mut memory).is_err());
}

#[test]
fn a_stack_grows_to_its_limit_and_not_into_its_neighbour() {
    let mut areas = Areas::default();
    let top = START + (64 << 20);
    areas.insert(Area { grows: true, ..area(top - PAGE_SIZE, 1, DATA) }).unwrap();
    areas.insert(area(top - 64 * PAGE_SIZE, 1, DATA)).unwrap();
    assert_eq!(areas.reach(top - 10 * PAGE_SIZE).map(|area| area.start), Some(top - 10 * PAGE_SIZE));
    assert_eq!(areas.reach(top - 63 * PAGE_SIZE), None, "a page stays free");
    assert_eq!(areas.reach(top - 62 * PAGE_SIZE).map(|area| area.start), Some(top - 62 * PAGE_SIZE));
    assert_eq!(areas.reach(top), None);
}

proptest! {
    /// Areas against a list of what each page permits.
    #[test]
    fn areas_are_what_was_done_to_their_pages(
        steps in prop::collection::vec((0_u8..3, 0_u64..32, 1_u64..8, any::<bool>()), 1..60),
    ) {
        let mut areas = Areas::default();
        let mut pages = [None; 40];
        let va = |page: u64| START + page * PAGE_SIZE;
        for (what, first, count, write) in steps {
            let range = first as usize..(first + count) as usize;
            let rights = Rights { read: true, write, execute: false };
            let (start, end) = (va(first), va(first + count));
            match what {
                0 => {
                    let free = pages[range.clone()].iter().all(Option::is_none);
                    let added = areas.insert(Area { start, end, rights, backing: ZEROES, grows: false });
                    prop_assert_eq!(added.is_ok(), free);
                    if free {
                        pages[range].fill(Some(rights));
                    }
                }
                1 => {
                    prop_assert!(areas.remove(start, end).is_ok());
                    pages[range].fill(None);
                }
                _ => {
                    let full = pages[range.clone()].iter().all(Option::is_some);
                    prop_assert_eq!(areas.protect(start, end, rights).is_ok(), full);
                    if full {
                        pages[range].fill(Some(rights));
                    }
                }
            }
            for (page, rights) in pages.iter().enumerate() {
                prop_assert_eq!(areas.reach(va(page as u64)).map(|area| area.rights), *rights, "page {}", page);
            }
            if let Some(at) = areas.find(0, 3 * PAGE_SIZE) {
                prop_assert!((0..3).all(|page| areas.reach(at + page * PAGE_SIZE).is_none()));
            }
        }
    }

    /// Any archive can be looked into.
    #[test]
    fn any_archive_can_be_searched(bytes in prop::collection::vec(any::<u8>(), 0..400), cpio in any::<bool>()) {
        let mut bytes = bytes;
        if cpio && bytes.len() > 110 {
            bytes[..6].copy_from_slice(b"070701");
            bytes[6..110].iter_mut().for_each(|byte| *byte = b"0123456789abcdef"[usize::from(*byte) % 16]);
            bytes[6 + 6 * 8..6 + 6 * 8 + 6].fill(b'0');
            bytes[6 + 11 * 8..6 + 11 * 8 + 6].fill(b'0');
        }
        let archive = Archive::new(Vec::leak(bytes));
        prop_assert!(archive.files().count() < 100);
        let _ = archive.find(b"/bin/sh");
    }

    /// What goes into a pipe comes out, in order, whatever the sizes.
    #[test]
    fn a_pipe_keeps_the_order(steps in prop::collection::vec((any::<bool>(), 1_usize..9000), 1..80)) {
        let mut pipe = Pipe::new().unwrap();
        let (mut sent, mut got) = (0_usize, 0_usize);
        for (write, len) in steps {
            if write {
                let bytes: Vec<u8> = (sent..sent + len).map(|i| i as u8).collect();
                match pipe.write(&bytes) {
                    Flow::Moved(count) => {
                        prop_assert!(count == len || len > ATOMIC);
                        sent += count;
                    }
                    other => prop_assert_eq!(other, Flow::Wait),
                }
            } else {
                let mut bytes = vec![0; len];
                match pipe.look(&mut bytes) {
                    Flow::Moved(count) => {
                        prop_assert!(bytes[..count].iter().enumerate().all(|(i, byte)| *byte == (got + i) as u8));
                        let taken = count.div_ceil(2);
                        pipe.take(taken);
                        got += taken;
                    }
                    other => prop_assert_eq!((other, sent - got), (Flow::Wait, 0)),
                }
            }
            prop_assert!(sent - got <= CAPACITY);
        }
    }
}

/// The header of a cpio archive's file, and the file.
fn cpio(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut numbers = [0; 13];
    (numbers[6], numbers[11]) = (bytes.len(), name.len() + 1);
    let header: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
    let mut all = format!("070701{header}{name}\0").into_bytes();
    all.resize(all.len().next_multiple_of(4), 0);
    all.extend(bytes);
    all.resize(all.len().next_multiple_of(4), 0);
    all
}

#[test]
fn files_of_an_archive_are_found_by_their_paths() {
    let bytes = [cpio("bin/sh", b"shell"), cpio("./etc/motd", b"hello"), cpio("TRAILER!!!", b"")].concat();
    let archive = Archive::new(Vec::leak(bytes));
    assert_eq!(archive.find(b"/bin/sh"), Some(&b"shell"[..]));
    assert_eq!(archive.find(b"etc/motd"), Some(&b"hello"[..]));
    assert_eq!((archive.find(b"/etc"), archive.find(b"TRAILER!!!")), (None, None));
    let program = Archive::new(b"\x7fELF");
    assert!(program.find(b"/bin/anything").is_some() && program.find(b"/etc/motd").is_none());
}

#[test]
fn the_last_end_that_closes_ends_a_pipe() {
    let (mut files, mut parent) = (Files::new(1), Numbers::default());
    files.open(&mut parent, File::Console).unwrap();
    assert_eq!(files.pipe(&mut parent), Ok([1, 2]));
    let mut child = files.inherit(&parent);
    assert_eq!(files.write_pipe(0, b"x"), Flow::Moved(1));
    assert_eq!(files.close(&mut parent, 2), Ok(false), "the child has it, too");
    assert_eq!(files.look_into_pipe(0, &mut [0; 4]), Flow::Moved(1));
    assert_eq!(files.look_into_pipe(0, &mut [0; 4]), Flow::Moved(1), "it is still there");
    files.take_from_pipe(0, 1);
    assert_eq!(files.look_into_pipe(0, &mut [0; 4]), Flow::Wait);
    assert!(files.close_all(&mut child));
    assert_eq!(files.look_into_pipe(0, &mut [0; 4]), Flow::Moved(0));
    assert_eq!(files.close(&mut parent, 1), Ok(true));
    assert_eq!(files.close(&mut parent, 1), Err(Errno::BadF));
    assert_eq!(files.pair(&mut parent), Ok([1, 2]), "numbers and pipes are used again");
    assert_eq!(files.duplicate(&mut parent, 1, 99), Err(Errno::BadF));
}

#[test]
fn a_handler_returns_to_what_it_interrupted() {
    let mut context = UserContext::new(0x1234, 0x8000);
    let r = &mut context.registers;
    [r.rax, r.rbx, r.rcx, r.r11, r.r15, r.rflags] = [1, 2, 3, 4, 5, 0x246];
    let before = context.clone();
    let action = Action { handler: 0x5000, flags: 0x0400_0004, restorer: 0x6000, mask: 2 };
    let frame = signals::begin(&mut context, signal::SEGV, &action, 0x40, 0xbad);
    assert_eq!((context.registers.rip, context.registers.rdi), (0x5000, 11));
    assert_eq!(context.registers.rsp % 16, 8, "as after a call");
    assert_eq!(frame.bytes[..8], 0x6000_u64.to_le_bytes());
    assert!(frame.vectors_at + 512 <= 0x8000 - 128, "the red zone stays");
    let mut returned = [0; signals::RETURNED];
    returned.copy_from_slice(&frame.bytes[8..8 + signals::RETURNED]);
    let (mask, vectors_at) = signals::end(&mut context, &returned);
    assert_eq!((mask, vectors_at, context.registers), (0x40, frame.vectors_at, before.registers));
}

#[test]
fn signals_wait_are_ignored_or_end_the_process() {
    let mut signals = Signals::default();
    signals.raise(signal::CHLD);
    assert!(!signals.is_ready(), "ignored by default");
    signals.block(u64::MAX);
    signals.raise(signal::INT);
    signals.raise(signal::KILL);
    assert_eq!(signals.take(), Some(Delivery::End(signal::KILL)), "it cannot be blocked");
    assert_eq!(signals.take(), None);
    signals.block(0);
    let action = Action { handler: 0x5000, ..Action::default() };
    assert_eq!(signals.set_action(signal::KILL, action), Err(Errno::Inval));
    signals.set_action(signal::INT, action).unwrap();
    assert_eq!(signals.take(), Some(Delivery::Handle(signal::INT, action)));
    assert_eq!(signals.force(signal::SEGV), Delivery::End(signal::SEGV));
    signals.set_action(signal::SEGV, action).unwrap();
    signals.block(u64::MAX);
    assert_eq!(signals.force(signal::SEGV), Delivery::End(signal::SEGV), "blocked, and cannot wait");
    for number in [0, 65, 255] {
        signals.raise(number);
        assert_eq!(signals.set_action(number, action), Err(Errno::Inval));
    }
}

#[test]
fn a_pipe_says_when_it_needs_memory() {
    let mut pipe = Pipe::new().unwrap();
    assert!(pipe.grows(ALWAYS + 1) && !pipe.grows(ALWAYS));
    assert_eq!(pipe.write(&[0; 100]), Flow::Moved(100));
    assert!(!pipe.grows(28) && pipe.grows(29), "it has grown to a power of two");
    assert_eq!(pipe.write(&[0; CAPACITY]), Flow::Moved(CAPACITY - 100));
    pipe.take(CAPACITY);
    assert!(!pipe.grows(2 * CAPACITY), "it never holds more than that");
}

#[test]
fn a_signal_that_is_ignored_is_pending_no_longer() {
    let handler = Action { handler: 0x5000, ..Action::default() };
    let ignored = Action { handler: 1, ..Action::default() };
    let waiting = |number: u8| {
        let mut signals = Signals::default();
        signals.set_action(number, handler).unwrap();
        signals.block(u64::MAX);
        signals.raise(number);
        signals
    };
    let unblocked = |mut signals: Signals| {
        signals.block(0);
        signals.take()
    };
    assert_eq!(unblocked(waiting(signal::INT)), Some(Delivery::Handle(signal::INT, handler)));
    let mut signals = waiting(signal::INT);
    signals.set_action(signal::INT, ignored).unwrap();
    assert_eq!(unblocked(signals), None);
    let mut signals = waiting(signal::CHLD);
    signals.set_action(signal::CHLD, Action::default()).unwrap();
    assert_eq!(unblocked(signals), None, "ignored by default");
    let mut signals = waiting(signal::CHLD);
    signals.reset();
    assert_eq!(unblocked(signals), None, "after execve");
    let mut signals = waiting(signal::INT);
    signals.reset();
    assert_eq!(unblocked(signals), Some(Delivery::End(signal::INT)), "one that is not ignored stays");
}

#[test]
fn some_pipes_and_files_are_kept_for_the_first_process() {
    let (mut files, mut first) = (Files::new(1), Numbers::of_first());
    let taken = (0..128).take_while(|_| files.pipe(&mut Numbers::default()).is_ok()).count();
    assert!(taken >= 32, "{taken}");
    assert_eq!(files.pipe(&mut Numbers::default()), Err(Errno::NFile));
    assert_eq!(files.open(&mut Numbers::default(), File::Null), Err(Errno::NFile));
    assert_eq!(files.pipe(&mut first), Ok([0, 1]));
    let mut child = files.inherit(&first);
    assert_eq!(files.pipe(&mut child), Err(Errno::NFile), "a child is not the first one");
    assert_eq!(files.duplicate(&mut child, 0, 5), Ok((5, false)), "what is open has a place");
}
