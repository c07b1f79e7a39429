//! Random kernels: hypercalls and instructions with arguments that are nearly right.
//!
//! A seed determines a kernel. It is a sequence of steps, each of which sets registers and makes one hypercall or
//! executes one instruction. After an exception, the handlers go on with the next step. Steps may damage the kernel
//! itself, overwrite it for example; this is intended.

pub mod bare;
mod code;
pub mod digest;
pub mod servings;
mod steps;
mod values;

use std::ops::Range;

use paravane::machine::layout::HypervisorLayout;
use paravane_abi::addr;

use self::code::{handler, power_off, prologue, setup_table, trap_table};
use crate::images::{ENTRY, Kind, SIZE, VIRT_BASE, kernel};
use crate::random::SplitMix64;

/// The number of steps in a kernel.
pub const STEPS: u64 = 256;
const STEP_BYTES: usize = 128;

/// Offsets from [`ENTRY`]: handlers, the first step, then memory that arguments point to.
const PLAIN: u64 = 0x200;
const WITH_ERROR: u64 = 0x280;
const FAILSAFE: u64 = 0x300;
const FIRST: u64 = 0x380;
/// The elements of grant operations, the entries of the grant table, and the address at which the table is mapped.
const ELEMENTS: u64 = 0xa000;
const ELEMENTS_EACH: u64 = 4;
const ELEMENT_BYTES: u64 = 40;
const GRANT_OPS: u64 = 12;
const GRANTS: u64 = 0xaa00;
const GRANT_ENTRIES: u64 = 32;
const GRANT_TABLE: u64 = VIRT_BASE + 80 * addr::PAGE_SIZE;
const SETUP: u64 = 0xab80;
const TRAPS: u64 = 0xb000;
const NEXT: u64 = 0xb800;
const ROOT: u64 = 0xb900;
const DATA: u64 = 0xc000;
const DATA_BYTES: u64 = 0x2000;
const STACK: u64 = SIZE - 0x1000;

const _: () = assert!(FIRST + (STEPS + 1) * STEP_BYTES as u64 <= ELEMENTS);
const _: () = assert!(ELEMENTS + GRANT_OPS * ELEMENTS_EACH * ELEMENT_BYTES <= GRANTS);
const _: () =
    assert!(GRANTS + GRANT_ENTRIES * 8 <= SETUP && SETUP + 0x80 <= TRAPS && DATA + DATA_BYTES < STACK);

/// The memory size of a random kernel, in bytes.
pub const MEMORY: u64 = 8 << 20;
const PAGES: u64 = MEMORY / addr::PAGE_SIZE;

/// The kernel for a seed.
pub fn soup(seed: u64) -> Vec<u8> {
    let layout = HypervisorLayout::new(PAGES, 0);
    let (frame_base, shared) = (layout.hypervisor_frames(), layout.shared());
    let mut cook = Cook { random: SplitMix64::new(seed), frame_base, shared };
    let mut code = Vec::new();
    put(&mut code, 0, &prologue(frame_base, layout.grants.start));
    put(&mut code, PLAIN, &handler(0));
    put(&mut code, WITH_ERROR, &handler(1));
    put(&mut code, FAILSAFE, &handler(4));
    for n in 0..STEPS {
        let step = cook.step(ENTRY + FIRST + (n + 1) * STEP_BYTES as u64);
        put(&mut code, FIRST + n * STEP_BYTES as u64, &step);
    }
    put(&mut code, FIRST + STEPS * STEP_BYTES as u64, &power_off());
    let elements: Vec<u8> =
        (0..GRANT_OPS * ELEMENTS_EACH).flat_map(|n| cook.element(n / ELEMENTS_EACH)).collect();
    put(&mut code, ELEMENTS, &elements);
    put(&mut code, GRANTS, &cook.grants());
    put(&mut code, SETUP, &setup_table());
    put(&mut code, TRAPS, &trap_table());
    let words: Vec<u8> = (0..DATA_BYTES / 8).flat_map(|_| cook.value().to_le_bytes()).collect();
    put(&mut code, DATA, &words);
    kernel(Kind::Pv, &code)
}

/// Puts bytes at an offset and fills the gap before it with NOPs.
fn put(code: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let at = at as usize;
    assert!(code.len() <= at, "broken test: the parts of the kernel overlap at {at:#x}");
    code.resize(at, 0x90);
    code.extend_from_slice(bytes);
}

/// Makes all random choices.
struct Cook {
    random: SplitMix64,
    frame_base: u64,
    /// Frames of the hypervisor's that the kernel may map.
    shared: Range<u64>,
}
