//! What the kernel was told to do: its command line, and lines typed at the shell.

/// What a boot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Someone wants to use it.
    Shell,
    /// Run this workload, or `all` of them, print the result, power off.
    Bench(&'a str),
    /// Run this system test and power off.
    Test(&'a str),
}

impl<'a> Purpose<'a> {
    /// Reads a command line; the first word that names a purpose counts, unknown words do not.
    pub fn from_cmdline(cmdline: &'a str) -> Self {
        cmdline
            .split_ascii_whitespace()
            .find_map(|word| match word.split_once('=')? {
                ("bench", name) => Some(Self::Bench(name)),
                ("test", name) => Some(Self::Test(name)),
                _ => None,
            })
            .unwrap_or(Self::Shell)
    }
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
    /// Panic.
    Panic,
    /// Power off.
    Halt,
    /// Start again.
    Reboot,
    /// None of these.
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    /// Every command as `help` shows it.
    pub const HELP: &'static [(&'static str, &'static str)] = &[
        ("help", "this list"),
        ("mem", "how memory is used"),
        ("bench [NAME|all]", "run a workload; without a name, list them"),
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
            Some("panic") => Self::Panic,
            Some("halt") => Self::Halt,
            Some("reboot") => Self::Reboot,
            Some(other) => Self::Unknown(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_one_purpose() {
        assert_eq!(Purpose::from_cmdline(""), Purpose::Shell);
        assert_eq!(Purpose::from_cmdline("quiet root=/dev/vda"), Purpose::Shell);
        assert_eq!(Purpose::from_cmdline("quiet bench=map-512 test=spin"), Purpose::Bench("map-512"));
        assert_eq!(Purpose::from_cmdline("test=panic"), Purpose::Test("panic"));
        assert_eq!(Purpose::from_cmdline("bench="), Purpose::Bench(""));
    }

    #[test]
    fn every_command_in_the_help_is_understood() {
        for (usage, _) in Command::HELP {
            let name = usage.split(' ').next().unwrap();
            assert!(!matches!(Command::parse(name), Command::Unknown(_) | Command::Empty), "{name}");
        }
    }

    #[test]
    fn words_are_separated_by_blanks() {
        assert_eq!(Command::parse("  "), Command::Empty);
        assert_eq!(Command::parse(" bench \t all "), Command::Bench(Some("all")));
        assert_eq!(Command::parse("bench"), Command::Bench(None));
        assert_eq!(Command::parse("helpme"), Command::Unknown("helpme"));
    }
}
