//! Copy on write: no other process sees what a process writes after a fork.

use crate::random::{Random, compare};
use crate::sys::{self, Mapping};
use crate::{Outcome, spoils};

/// The number of pages that processes share until one writes.
const PAGES: usize = 48;
/// The number of processes that write at the same time.
const CHILDREN: u64 = 3;

/// Forks processes that overwrite some pages of a mapping, and checks their copies and the parent's.
pub fn run(random: &mut Random) -> Outcome {
    let mut memory = Mapping::new(PAGES, libc::MAP_PRIVATE)?;
    let seed = random.next();
    Random::new(seed).fill(memory.bytes());
    let expected = memory.bytes().to_vec();
    let mut children = Vec::new();
    for child in 0..CHILDREN {
        let mut random = Random::new(seed ^ (child + 1));
        children.push(sys::fork(|| i32::from(overwrite(&mut memory, &expected, &mut random).is_err()))?);
    }
    // The parent writes, too, while its children read.
    let page = random.below(PAGES as u64) as usize * sys::PAGE;
    memory.bytes()[page..page + sys::PAGE].fill(0x5a);
    for child in children {
        if sys::wait(child)? != 0 {
            return Err("a child saw what it had not written".into());
        }
    }
    let mut expected = expected;
    expected[page..page + sys::PAGE].fill(0x5a);
    if spoils("copies") {
        memory.bytes()[sys::PAGE * PAGES - 1] ^= 1;
    }
    compare("the parent's memory", memory.bytes(), &expected)
}

fn overwrite(memory: &mut Mapping, before: &[u8], random: &mut Random) -> Outcome {
    let mut expected = before.to_vec();
    compare("the child's memory", memory.bytes(), &expected)?;
    for _ in 0..PAGES / 2 {
        let at = random.below(expected.len() as u64) as usize;
        let byte = (random.next() & 0xff) as u8;
        memory.bytes()[at] = byte;
        expected[at] = byte;
    }
    compare("the child's memory, written", memory.bytes(), &expected)
}
