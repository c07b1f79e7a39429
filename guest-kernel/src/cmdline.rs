//! The kernel's command line: words separated by blanks, `key=value` or alone.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

/// The task that a boot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Run the shell.
    Shell,
    /// Run this workload, or `all` of them, print the results, power off.
    Bench(&'a str),
    /// Run this system test and power off.
    Test(&'a str),
    /// Run this program, whose name and arguments are separated by commas, and power off.
    Program(&'a str),
    /// Serve the network until Ctrl-C, and power off.
    Serve,
}

impl<'a> Purpose<'a> {
    /// Reads a command line. The first word that names a purpose counts; other words are ignored.
    pub fn from_cmdline(cmdline: &'a str) -> Self {
        cmdline
            .split_ascii_whitespace()
            .find_map(|word| match word.split_once('=') {
                Some(("bench", name)) => Some(Self::Bench(name)),
                Some(("test", name)) => Some(Self::Test(name)),
                Some(("run", words)) => Some(Self::Program(words)),
                None if word == "serve" => Some(Self::Serve),
                _ => None,
            })
            .unwrap_or(Self::Shell)
    }
}

/// The number that a command line gives for `key`, as in `key=12`, or `otherwise`.
pub fn number(cmdline: &str, key: &str, otherwise: u64) -> u64 {
    text(cmdline, key).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// The text that a command line gives for `key`, as in `key=text`.
pub fn text<'a>(cmdline: &'a str, key: &str) -> Option<&'a str> {
    cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// Registers of a virtio device, as a command line names them: `virtio_mmio.device=SIZE@ADDRESS:IRQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Physical address of the registers, page-aligned.
    pub address: u64,
    /// Interrupt request line: 3 to 15.
    pub irq: u8,
}

/// The devices that a command line names, in order; words that cannot be parsed are left out.
#[derive(Clone, Debug)]
pub struct MmioDevices;

impl MmioDevices {
    /// The devices of `cmdline`.
    pub fn of(cmdline: &str) -> impl Iterator<Item = MmioDevice> {
        cmdline.split_ascii_whitespace().filter_map(|word| {
            let (_size, place) = word.strip_prefix("virtio_mmio.device=")?.split_once('@')?;
            let mut parts = place.split(':');
            let address = parts.next()?.strip_prefix("0x")?;
            let address = u64::from_str_radix(address, 16).ok()?;
            let irq = parts.next()?.parse().ok()?;
            // Lines 0 to 2 belong to the timer, the keyboard and the second controller.
            let right = address.is_multiple_of(4096) && address < 1 << 40 && (3..16).contains(&irq);
            right.then_some(MmioDevice { address, irq })
        })
    }
}
