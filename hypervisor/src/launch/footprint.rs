//! How much of the host's memory a domain took, counted page by page.
//!
//! What is resident is read from `/proc/PID/smaps`, of our own process and of those that the engine runs the
//! guest in, except for machine memory: how much of that exists is asked of `mincore`, because a page of a
//! memfd exists whether or not a process has it mapped. Slow (a millisecond or so): only on demand, once the
//! guest has ended.

use crate::engine::Cpu;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MEMFD_NAME, MachineMemory, Mfn, PAGE_SIZE};

/// Bytes of the host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HostMemory {
    /// The guest's frames that were ever touched, by whomever.
    pub guest: u64,
    /// Everything else: machine memory's other frames, the hypervisor's process and the guest's processes.
    pub beyond_guest: u64,
    /// How much of the latter is program and libraries: pages of files, which the host's page cache has anyway.
    pub program: u64,
}

impl HostMemory {
    /// Counts; `None` where the host does not tell.
    pub fn count(memory: &MachineMemory, layout: &HypervisorLayout, cpu: &dyn Cpu) -> Option<Self> {
        let pages = |from: Mfn, to: Mfn| Some(memory.existing_frames(from..to)? * PAGE_SIZE);
        let guest = pages(memory.guest_base(), Mfn(layout.total))?;
        let hypervisor = pages(Mfn(0), memory.guest_base())?;
        let mut all = Resident::of("self")?;
        if memory.backing() == Backing::Anonymous {
            // Nothing tells its pages from our others but that it is known how many they are.
            all.other = all.other.saturating_sub(guest + hypervisor);
        }
        for process in cpu.processes() {
            let resident = Resident::of(&process.to_string())?;
            all.other += resident.other;
            all.program += resident.program;
        }
        Some(Self { guest, beyond_guest: hypervisor + all.other + all.program, program: all.program })
    }
}

/// What one process has of the host's memory, a memfd of machine memory excepted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resident {
    /// Unmodified pages of files.
    program: u64,
    /// Everything else.
    other: u64,
}

impl Resident {
    fn of(process: &str) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{process}/smaps")).ok()?)
    }

    /// Adds up mappings; the format is Linux's `Documentation/filesystems/proc.rst`.
    fn parse(smaps: &str) -> Option<Self> {
        let mut sum = Self::default();
        let (mut machine_memory, mut of_file) = (false, false);
        for line in smaps.lines() {
            let (key, rest) = line.split_once(' ')?;
            match key.strip_suffix(':') {
                // A mapping's first line: its range, rights, offset, device, inode and perhaps its name.
                None => {
                    let name = rest.split_whitespace().nth(4).unwrap_or_default();
                    machine_memory = name.strip_prefix("/memfd:") == Some(MEMFD_NAME);
                    of_file = name.starts_with('/') && !name.starts_with("/memfd:");
                }
                Some(_) if machine_memory => {}
                Some("Rss") => *(if of_file { &mut sum.program } else { &mut sum.other }) += kib(rest)?,
                Some("Anonymous") if of_file => {
                    let modified = kib(rest)?;
                    sum.program = sum.program.checked_sub(modified)?;
                    sum.other += modified;
                }
                Some(_) => {}
            }
        }
        Some(sum)
    }
}

fn kib(value: &str) -> Option<u64> {
    value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use crate::launch::footprint::*;

    #[test]
    fn mappings_are_added_up_by_kind() {
        let text = "\
5576-5577 r-xp 00002000 fe:00 247282                     /usr/bin/paravane
Size:                 24 kB
Rss:                  24 kB
Anonymous:             4 kB
VmFlags: rd ex mr mw me
7f00-7f01 rw-s 00000000 00:01 1034                       /memfd:paravane-memory (deleted)
Rss:                9000 kB
Anonymous:             0 kB
7f02-7f03 rw-s 00000000 00:01 1035                       /memfd:paravane-area (deleted)
Rss:                  16 kB
Anonymous:             0 kB
7f04-7f05 rw-p 00000000 00:00 0
Rss:                   8 kB
Anonymous:             8 kB
";
        assert_eq!(Resident::parse(text), Some(Resident { program: 20 << 10, other: (4 + 16 + 8) << 10 }));
        assert_eq!(Resident::parse("Rss: many kB\n"), None);
        assert_eq!(Resident::parse(""), Some(Resident::default()));
    }

    #[test]
    fn this_process_has_a_program() {
        let Some(own) = Resident::of("self") else {
            return crate::testing::skip::skip("smaps", "this host has no /proc/self/smaps");
        };
        assert!(own.program > 0 && own.other > 0, "{own:?}");
    }
}
