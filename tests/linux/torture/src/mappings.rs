//! Mappings that are protected, moved, resized and discarded.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use libc::{MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, c_int, c_void};

use crate::random::{Random, compare};
use crate::sys::{self, Mapping, PAGE};
use crate::{Outcome, spoils};

/// The number of pages of the mapping.
const PAGES: usize = 32;

/// The address of the page that may fault, and the number of its faults.
static GUARDED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// Protects, resizes and discards a mapping of known content.
pub fn run(random: &mut Random) -> Outcome {
    let mut memory = Mapping::new(PAGES, MAP_PRIVATE)?;
    random.fill(memory.bytes());
    let mut expected = memory.bytes().to_vec();
    for _ in 0..4 {
        protect(&mut memory, random)?;
        move_about(&mut memory, &mut expected, random)?;
        discard(&mut memory, &mut expected, random)?;
    }
    shared(random)?;
    if spoils("mappings") {
        memory.bytes()[PAGE] ^= 1;
    }
    compare("a mapping", memory.bytes(), &expected)
}

/// A store to a page that may not be written, and a load from one that may not be read, must fault, once each.
fn protect(memory: &mut Mapping, random: &mut Random) -> Outcome {
    let page = random.below(PAGES as u64) as usize;
    let at = memory.address(page * PAGE + random.below(PAGE as u64) as usize);
    sys::handle(libc::SIGSEGV, on_fault)?;
    for (prot, write) in [(PROT_READ, true), (PROT_NONE, false)] {
        // SAFETY: only this thread has the mapping, and the access is allowed now.
        let byte = unsafe { at.read_volatile() };
        memory.protect(page, 1, prot)?;
        GUARDED.store(memory.address(page * PAGE), Ordering::Relaxed);
        FAULTS.store(0, Ordering::Relaxed);
        // SAFETY: the page is mapped; the access faults and is repeated once the handler has allowed it.
        unsafe {
            if write {
                at.write_volatile(byte);
            } else {
                at.read_volatile();
            }
        }
        let faults = FAULTS.load(Ordering::Relaxed);
        GUARDED.store(std::ptr::null_mut(), Ordering::Relaxed);
        memory.protect(page, 1, PROT_READ | PROT_WRITE)?;
        if faults != 1 {
            return Err(format!("an access that is not allowed made {faults} faults"));
        }
    }
    Ok(())
}

/// The SIGSEGV handler: allows access to the guarded page; any other fault ends the process.
extern "C" fn on_fault(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` of a fault, which has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let page = GUARDED.load(Ordering::Relaxed);
    let guarded = !page.is_null() && address & !(PAGE - 1) == page as usize;
    // SAFETY: the page is a mapping of this process's; `_exit` may be called anywhere.
    unsafe {
        if !guarded || libc::mprotect(page.cast(), PAGE, PROT_READ | PROT_WRITE) != 0 {
            libc::_exit(9);
        }
    }
    FAULTS.fetch_add(1, Ordering::Relaxed);
}

/// Grows, shrinks and moves the mapping.
fn move_about(memory: &mut Mapping, expected: &mut [u8], random: &mut Random) -> Outcome {
    let more = random.below(64) as usize + 1;
    memory.resize(PAGES + more)?;
    compare("a grown mapping", &memory.bytes()[..PAGES * PAGE], expected)?;
    let new = &mut memory.bytes()[PAGES * PAGE..];
    compare("new pages", new, &vec![0; new.len()])?;
    new.fill(0xee);
    memory.resize(PAGES)?;
    memory.move_to(Mapping::new(PAGES, MAP_PRIVATE)?)?;
    let at = random.below(expected.len() as u64) as usize;
    (memory.bytes()[at], expected[at]) = (0x77, 0x77);
    compare("a moved mapping", memory.bytes(), expected)
}

/// Discards pages: they read as zeroes afterwards.
fn discard(memory: &mut Mapping, expected: &mut [u8], random: &mut Random) -> Outcome {
    let first = random.below(PAGES as u64 - 4) as usize;
    memory.discard(first, 3)?;
    let range = first * PAGE..(first + 3) * PAGE;
    expected[range.clone()].fill(0);
    compare("discarded pages", &memory.bytes()[range.clone()], &expected[range.clone()])?;
    random.fill(&mut memory.bytes()[range.clone()]);
    expected[range.clone()].copy_from_slice(&memory.bytes()[range]);
    Ok(())
}

/// The parent reads what a child writes to shared memory.
fn shared(random: &mut Random) -> Outcome {
    let mut memory = Mapping::new(4, MAP_SHARED)?;
    let seed = random.next();
    let child = sys::fork(|| {
        Random::new(seed).fill(memory.bytes());
        0
    })?;
    if sys::wait(child)? != 0 {
        return Err("a child failed".into());
    }
    compare("shared memory", memory.bytes(), &Random::new(seed).bytes(4 * PAGE))
}
