//! The guest's linear memory, as a debugger reads and writes it: by the guest's own tables, whatever their rights, and
//! without the INT3s that are in it.

use super::breakpoints::{Breakpoints, Change};
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::monitor::Runner;
use crate::monitor::inspect::{Inspect, Unwritable};

/// Calls `f` with each piece of `[va, va + len)` that lies in one page, and where it begins.
fn pieces(va: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0usize;
    std::iter::from_fn(move || {
        let at = va.checked_add(done as u64)?;
        let in_page = usize::try_from(PAGE_SIZE - at % PAGE_SIZE).unwrap_or(1);
        let part = in_page.min(len.checked_sub(done)?);
        let piece = (at, done, part);
        done += part;
        (part != 0).then_some(piece)
    })
}

/// What is at `va`; fewer bytes than `len` where not all of it is mapped.
pub(super) fn read(runner: &mut dyn Runner, breakpoints: &Breakpoints, va: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut got = 0;
    for (at, from, part) in pieces(va, len) {
        let Some(maddr) = translate(runner, at) else { break };
        let Some(piece) = bytes.get_mut(from..from + part) else { break };
        if runner.memory().read(maddr, piece).is_err() {
            break;
        }
        breakpoints.hide(maddr, piece);
        got = from + part;
    }
    bytes.truncate(got);
    bytes
}

/// Memory could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WriteError {
    /// Nothing is mapped there.
    #[error("no memory is mapped at {0:#x}")]
    NotMapped(u64),
    /// Nobody may write there.
    #[error("{0}")]
    Unwritable(#[from] Unwritable),
    /// The technique has no place for a debugger.
    #[error("this guest cannot be debugged")]
    NotHere,
    /// There are too many breakpoints.
    #[error("there are too many breakpoints")]
    TooMany,
}

/// Writes `bytes` at `va`. What was written before an error stays.
pub(super) fn write(
    runner: &mut dyn Runner,
    breakpoints: &mut Breakpoints,
    va: u64,
    bytes: &[u8],
) -> Result<(), WriteError> {
    for (at, from, part) in pieces(va, bytes.len()) {
        let maddr = translate(runner, at).ok_or(WriteError::NotMapped(at))?;
        let mut piece = bytes.get(from..from + part).unwrap_or_default().to_vec();
        breakpoints.keep(maddr, &mut piece);
        inspected(runner)?.write(maddr, &piece)?;
    }
    Ok(())
}

/// Puts an INT3 at `va`.
pub(super) fn plant(
    runner: &mut dyn Runner,
    breakpoints: &mut Breakpoints,
    va: u64,
) -> Result<(), WriteError> {
    let at = translate(runner, va).ok_or(WriteError::NotMapped(va))?;
    let now = byte(runner, at).ok_or(WriteError::NotMapped(va))?;
    match breakpoints.add(va, at, now).ok_or(WriteError::TooMany)? {
        Change::Nothing => Ok(()),
        Change::Write(at, byte) => {
            let written = inspected(runner)?.write(at, &[byte]);
            if written.is_err() {
                breakpoints.remove(va, |_| None);
            }
            Ok(written?)
        }
    }
}

/// Takes it out again; whether there was one.
pub(super) fn take_out(
    runner: &mut dyn Runner,
    breakpoints: &mut Breakpoints,
    va: u64,
) -> Result<bool, WriteError> {
    match breakpoints.remove(va, |at| byte(runner, at)) {
        None => Ok(false),
        Some(Change::Nothing) => Ok(true),
        Some(Change::Write(at, byte)) => {
            inspected(runner)?.write(at, &[byte])?;
            Ok(true)
        }
    }
}

fn inspected(runner: &mut dyn Runner) -> Result<&mut dyn Inspect, WriteError> {
    runner.inspect().ok_or(WriteError::NotHere)
}

pub(super) fn translate(runner: &mut dyn Runner, va: u64) -> Option<Maddr> {
    runner.inspect()?.translate(va)
}

fn byte(runner: &dyn Runner, at: Maddr) -> Option<u8> {
    runner.memory().read_obj(at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_pages() {
        assert_eq!(pieces(0xff0, 0x20).collect::<Vec<_>>(), [(0xff0, 0, 0x10), (0x1000, 0x10, 0x10)]);
        assert_eq!(pieces(0x10, 0).count(), 0);
        assert_eq!(pieces(u64::MAX, 9).count(), 1, "the address space ends");
    }
}
