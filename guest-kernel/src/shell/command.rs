//! Commands, as lines typed at the shell name them.

use core::str::FromStr;

#[cfg(test)]
mod tests;

/// A request for sectors of the disk: the first sector, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sectors {
    /// Read one.
    Read(u64),
    /// Fill one with its number.
    Write(u64),
    /// Put everything written on stable storage.
    Flush,
    /// Discard sectors.
    Discard(u64, u32),
    /// Write zeroes to sectors.
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

/// A number that may be left out; `None` if the word is not a number.
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
    /// Print so many random bytes.
    Rng(usize),
    /// Describe the disk.
    Disk,
    /// Make a request for sectors of the disk.
    Sectors(Sectors),
    /// Describe the console.
    Console,
    /// List a directory of the disk.
    List(&'a str),
    /// Print a file of the disk.
    Print(&'a str),
    /// Run a program: its name and arguments.
    Run(&'a str),
    /// Serve the network until Ctrl-C.
    Serve,
    /// Ping this address so many times.
    Ping(&'a str, u16),
    /// Fetch a page from this web server.
    Fetch(&'a str),
    /// Connect to this port of the host and send this word; `None`: serve connections from the host.
    Vsock(Option<(u32, &'a str)>),
    /// Panic.
    Panic,
    /// Power off.
    Halt,
    /// Start again.
    Reboot,
    /// A known command with wrong arguments.
    Misused(&'static str),
    /// An unknown command.
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
        ("run PROGRAM [ARG...]", "run a program of the initial RAM disk"),
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
            Some("run") => Self::Run(line.trim_ascii_start().strip_prefix("run").unwrap_or_default()),
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
