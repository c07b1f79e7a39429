//! What the kernel was told to do: its command line, and lines typed at the shell.

use core::str::FromStr;

/// What a boot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Someone wants to use it.
    Shell,
    /// Run this workload, or `all` of them, print the result, power off.
    Bench(&'a str),
    /// Run this system test and power off.
    Test(&'a str),
    /// Serve the network until somebody ends it, and power off.
    Serve,
}

impl<'a> Purpose<'a> {
    /// Reads a command line; the first word that names a purpose counts, unknown words do not.
    pub fn from_cmdline(cmdline: &'a str) -> Self {
        cmdline
            .split_ascii_whitespace()
            .find_map(|word| match word.split_once('=') {
                Some(("bench", name)) => Some(Self::Bench(name)),
                Some(("test", name)) => Some(Self::Test(name)),
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

/// What is to be done to a disk's sectors: from the first, so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sectors {
    /// Read one.
    Read(u64),
    /// Fill one with its number.
    Write(u64),
    /// Have all that was written put on stable storage.
    Flush,
    /// Give them back.
    Discard(u64, u32),
    /// Make them zeroes.
    Zero(u64, u32),
}

impl Sectors {
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let what = words.next()?;
        let mut first = || words.next()?.parse().ok();
        match what {
            "read" => first().map(Self::Read),
            "write" => first().map(Self::Write),
            "flush" => Some(Self::Flush),
            "discard" => Some(Self::Discard(first()?, optional(words.next(), 1)?)),
            "zero" => Some(Self::Zero(first()?, optional(words.next(), 1)?)),
            _ => None,
        }
    }
}

/// A number that may be left out; none if it is something else.
fn optional<T: FromStr>(word: Option<&str>, otherwise: T) -> Option<T> {
    word.map_or(Some(otherwise), |word| word.parse().ok())
}

/// A line typed at the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Nothing was typed.
    Empty,
    /// List the commands.
    Help,
    /// How memory is used.
    Mem,
    /// How long the kernel has been up.
    Uptime,
    /// Run a workload or `all`; without a name, list them.
    Bench(Option<&'a str>),
    /// Draw so many random bytes.
    Rng(usize),
    /// What disk there is.
    Disk,
    /// Do something to sectors of the disk.
    Sectors(Sectors),
    /// What this console is.
    Console,
    /// What is in a directory of the disk.
    List(&'a str),
    /// What is in a file of the disk.
    Print(&'a str),
    /// Serve the network until a key is pressed.
    Serve,
    /// Ask this station for so many echoes.
    Ping(&'a str, u16),
    /// Fetch a page from this web server.
    Fetch(&'a str),
    /// Call this port of the host and say this word, or serve callers.
    Vsock(Option<(u32, &'a str)>),
    /// Panic.
    Panic,
    /// Power off.
    Halt,
    /// Start again.
    Reboot,
    /// This one, but not as it is used.
    Misused(&'static str),
    /// None of these.
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    /// Every command as `help` shows it.
    pub const HELP: &'static [(&'static str, &'static str)] = &[
        ("help", "this list"),
        ("mem", "how memory is used"),
        ("bench [NAME|all]", "run a workload; without a name, list them"),
        ("rng [BYTES]", "random bytes from the entropy device"),
        ("disk", "the size and features of the disk"),
        ("disk read N", "sector N of it; also: write N, flush, discard N COUNT, zero N COUNT"),
        ("console", "what this console is, and how large"),
        ("ls [PATH]", "list a directory of the disk (ext2, ext3 or ext4)"),
        ("cat PATH", "print a file of the disk"),
        ("serve", "serve HTTP, a TCP sink and a source, until Ctrl-C"),
        ("ping ADDRESS [COUNT]", "ask another station for echoes"),
        ("fetch ADDRESS[:PORT]", "fetch a page from a web server"),
        ("vsock", "echo what callers from the host say to port 7, until Ctrl-C"),
        ("vsock PORT WORD", "call a port of the host, and show its answer"),
        ("uptime", "how long the kernel has been up"),
        ("halt", "power off (also Ctrl-D)"),
        ("reboot", "start again"),
        ("panic", "panic"),
    ];

    /// Reads one line.
    pub fn parse(line: &'a str) -> Self {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            None => Self::Empty,
            Some("help") => Self::Help,
            Some("mem") => Self::Mem,
            Some("uptime") => Self::Uptime,
            Some("bench") => Self::Bench(words.next()),
            Some("rng") => optional(words.next(), 16).map_or(Self::Misused("rng"), Self::Rng),
            Some("disk") if words.clone().next().is_none() => Self::Disk,
            Some("disk") => Sectors::parse(words).map_or(Self::Misused("disk"), Self::Sectors),
            Some("console") => Self::Console,
            Some("ls") => Self::List(words.next().unwrap_or("/")),
            Some("cat") => Self::Print(words.next().unwrap_or("/")),
            Some("serve") => Self::Serve,
            Some("ping") => {
                let target = words.next().unwrap_or_default();
                optional(words.next(), 4).map_or(Self::Misused("ping"), |count| Self::Ping(target, count))
            }
            Some("fetch") => Self::Fetch(words.next().unwrap_or_default()),
            Some("vsock") => {
                let Some(port) = words.next() else { return Self::Vsock(None) };
                let call = |port| Self::Vsock(Some((port, words.next().unwrap_or_default())));
                port.parse().map_or(Self::Misused("vsock"), call)
            }
            Some("panic") => Self::Panic,
            Some("halt") => Self::Halt,
            Some("reboot") => Self::Reboot,
            Some(other) => Self::Unknown(other),
        }
    }
}

/// Registers of a virtio device, as a command line names them: `virtio_mmio.device=SIZE@ADDRESS:IRQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Physical address of the registers, page-aligned.
    pub address: u64,
    /// Request line of the interrupt controllers: 3 to 15.
    pub irq: u8,
}

/// The devices that a command line names, in order; what cannot be read is left out.
#[derive(Clone, Debug)]
pub struct MmioDevices;

impl MmioDevices {
    /// Those of `cmdline`.
    pub fn of(cmdline: &str) -> impl Iterator<Item = MmioDevice> {
        cmdline.split_ascii_whitespace().filter_map(|word| {
            let (_size, place) = word.strip_prefix("virtio_mmio.device=")?.split_once('@')?;
            let mut parts = place.split(':');
            let address = parts.next()?.strip_prefix("0x")?;
            let address = u64::from_str_radix(address, 16).ok()?;
            let irq = parts.next()?.parse().ok()?;
            // Lines 0 to 2 are the timer's, the keyboard's, and the second controller's.
            let right = address.is_multiple_of(4096) && address < 1 << 40 && (3..16).contains(&irq);
            right.then_some(MmioDevice { address, irq })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_where_the_command_line_says() {
        let line = "bench=x virtio_mmio.device=4K@0xd0000000:5 y virtio_mmio.device=4K@0xd0001000:9:3 \
                    virtio_mmio.device=4K@d0000000:5 virtio_mmio.device=4K@0xd0000001:5 virtio_mmio.device= \
                    virtio_mmio.device=4K@0xd0000000:2 virtio_mmio.device=4K@0xd0000000 virtio_mmio.device=4K@0x1:5";
        let at = |address, irq| MmioDevice { address, irq };
        assert!(MmioDevices::of(line).eq([at(0xd000_0000, 5), at(0xd000_1000, 9)]));
    }

    #[test]
    fn the_command_line_names_one_purpose() {
        assert_eq!(Purpose::from_cmdline(""), Purpose::Shell);
        assert_eq!(Purpose::from_cmdline("quiet root=/dev/vda"), Purpose::Shell);
        assert_eq!(Purpose::from_cmdline("quiet bench=map-512 test=spin"), Purpose::Bench("map-512"));
        assert_eq!(Purpose::from_cmdline("test=panic"), Purpose::Test("panic"));
        assert_eq!(Purpose::from_cmdline("bench="), Purpose::Bench(""));
        assert_eq!(Purpose::from_cmdline("ip=dhcp serve bench=x"), Purpose::Serve);
        assert_eq!(Purpose::from_cmdline("serve=x server"), Purpose::Shell);
    }

    #[test]
    fn every_command_in_the_help_is_understood() {
        for (usage, _) in Command::HELP {
            let name = usage.split(' ').next().unwrap();
            assert!(!matches!(Command::parse(name), Command::Unknown(_) | Command::Empty), "{name}");
        }
    }

    #[test]
    fn numbers_have_a_default() {
        assert_eq!(number("test=x blocks=7 seed=q", "blocks", 1), 7);
        assert_eq!(number("test=x blocks=7 seed=q", "seed", 3), 3);
        assert_eq!(number("subblocks=7", "blocks", 2), 2);
        assert_eq!((text("ip=dhcp x", "ip"), text("zip=1", "ip")), (Some("dhcp"), None));
    }

    #[test]
    fn words_are_separated_by_blanks() {
        assert_eq!(Command::parse("  "), Command::Empty);
        assert_eq!(Command::parse(" bench \t all "), Command::Bench(Some("all")));
        assert_eq!(Command::parse("bench"), Command::Bench(None));
        assert_eq!(Command::parse("helpme"), Command::Unknown("helpme"));
        assert_eq!(Command::parse("disk"), Command::Disk);
        assert_eq!(Command::parse("rng"), Command::Rng(16));
        assert_eq!(Command::parse("vsock"), Command::Vsock(None));
        assert_eq!(Command::parse("vsock 7 word"), Command::Vsock(Some((7, "word"))));
        assert_eq!(Command::parse("ping 10.0.0.1"), Command::Ping("10.0.0.1", 4));
        assert_eq!(Command::parse("disk read 7"), Command::Sectors(Sectors::Read(7)));
        assert_eq!(Command::parse("disk zero 7 9"), Command::Sectors(Sectors::Zero(7, 9)));
        assert_eq!(Command::parse("disk discard 7"), Command::Sectors(Sectors::Discard(7, 1)));
    }

    #[test]
    fn what_is_no_number_is_not_taken_for_one_left_out() {
        let wrong =
            ["rng x", "rng -1", "disk read", "disk raed 7", "disk zero 7 x", "ping 10.0.0.1 x", "vsock x"];
        for line in wrong {
            let Command::Misused(name) = Command::parse(line) else { panic!("{line}") };
            assert!(line.starts_with(name));
            assert!(Command::HELP.iter().any(|(usage, _)| usage.split(' ').next() == Some(name)), "{name}");
        }
    }
}
