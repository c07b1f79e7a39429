//! The processes that run the checks at the same time.

use std::time::Instant;

use crate::random::Random;
use crate::sys::{self, Mapping};
use crate::{Check, Outcome};

/// The number of bytes for a process's failure message.
const WORDS: usize = 512;

/// Runs the checks in `processes` processes until the time is up, each at least once. Returns how often each ran.
pub fn run(checks: &[Check], processes: u64, until: Instant) -> Result<Vec<u64>, String> {
    let mut team = Vec::new();
    for member in 0..processes {
        let mut told = Mapping::new(1, libc::MAP_SHARED)?;
        let pid = sys::fork(|| match work(checks, member, until) {
            Ok(counts) => {
                for (slot, count) in told.bytes().chunks_mut(8).zip(counts) {
                    slot.copy_from_slice(&count.to_le_bytes());
                }
                0
            }
            Err(what) => {
                let words = &what.as_bytes()[..what.len().min(WORDS)];
                told.bytes()[..words.len()].copy_from_slice(words);
                1
            }
        })?;
        team.push((pid, told));
    }
    let mut sums = vec![0; checks.len()];
    let mut wrong = Vec::new();
    for (pid, mut told) in team {
        let bytes = match sys::wait(pid) {
            Ok(0) => told.bytes(),
            Ok(_) => {
                wrong.push(String::from_utf8_lossy(&told.bytes()[..WORDS]).trim_end_matches('\0').to_owned());
                continue;
            }
            Err(what) => {
                wrong.push(what);
                continue;
            }
        };
        for (sum, count) in sums.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *sum += u64::from_le_bytes(*count);
        }
    }
    if wrong.is_empty() { Ok(sums) } else { Err(wrong.join("; ")) }
}

fn work(checks: &[Check], member: u64, until: Instant) -> Result<Vec<u64>, String> {
    let mut random = Random::new(member + 1);
    let mut counts = vec![0; checks.len()];
    let mut perform = |index: usize, random: &mut Random| -> Outcome {
        let check = &checks[index];
        (check.run)(random).map_err(|what| format!("{}: {what}", check.name))?;
        counts[index] += 1;
        Ok(())
    };
    for index in 0..checks.len() {
        perform((index + member as usize) % checks.len(), &mut random)?;
    }
    while Instant::now() < until {
        let index = random.below(checks.len() as u64) as usize;
        perform(index, &mut random)?;
    }
    Ok(counts)
}
