//! The program: it turns arguments into a `Config`, and a report into text and an exit status.
//!
//! A command's result goes to standard output; messages about the command itself go to standard error. `signals` and
//! `ending` run in signal handlers and are signal-safe; everything else runs on the main thread, and `input` on a
//! thread of its own.
//!
//! What may not be done here: deciding what an action of a guest means.

mod audit;
mod compare;
mod config_file;
pub(crate) mod device;
mod diagnosis;
mod doctor;
mod ending;
mod engine_options;
mod events;
mod fidelity;
mod gdb;
mod input;
mod input_file;
mod lost_device;
mod manual;
mod new;
mod oom;
mod output;
mod paths;
mod progress;
mod registers;
mod run;
mod runner;
mod signals;
mod size;
mod stats;
mod stats_file;
mod status;
mod terminal;
mod trace;
mod trace_file;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::host::notice::notice;
use crate::text::printable;
use crate::trace::filter::NoSuchCause;

pub use stats::Origin;

use config_file::ConfigFileError;

/// A paravirtualizing hypervisor in the manner of Xen, on KVM or without it.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  paravane run              boot the built-in guest to its shell (Ctrl-A x leaves)
  paravane new my-kernel    a kernel of your own, and `cargo run` boots it
  paravane compare          what each way of virtualizing a kernel costs, measured here and now
  paravane audit KERNEL     what in a kernel's code has to be replaced by hypercalls, and by which
  paravane trace FILE       every exit of a run that was traced (paravane run --trace FILE)
  paravane doctor           what this machine offers, and what to change

`paravane help COMMAND` tells the rest, exit statuses included.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a guest, its console on this terminal
    Run(Box<run::RunArgs>),
    /// Write a complete project of a kernel: `cargo run` boots it, `cargo test` boots its tests
    New(new::NewArgs),
    /// What cargo runs instead of a kernel's programs: boot a kernel, or each test of a test image
    Runner(runner::RunnerArgs),
    /// Measure workloads by every technique, and compare
    Compare(compare::CompareArgs),
    /// Find what in a kernel's code needs a trap, or goes wrong, when it runs deprivileged
    Audit(audit::AuditArgs),
    /// Show the exits that `run --trace` wrote: by cause, device and guest function, or one by one
    Trace(trace::TraceArgs),
    /// Say what this machine offers for running guests
    Doctor(doctor::DoctorArgs),
    /// Print what completes this program's arguments in a shell
    Completions(manual::CompletionsArgs),
    /// Print a manual page, or write them all to a directory
    Man(manual::ManArgs),
}

/// The program: parses its arguments, does as they say.
pub fn main(origin: Origin) -> ExitCode {
    let command = match parse() {
        Ok(command) => command,
        Err(error) => return failed(&error.into()),
    };
    signals::survive_file_limits();
    if !matches!(command, Command::Run(_)) {
        signals::default_sigpipe();
    }
    let result = match &command {
        Command::Run(args) => run::run(args, &origin),
        Command::New(args) => new::run(args),
        Command::Runner(args) => runner::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Audit(args) => audit::run(args),
        Command::Trace(args) => trace::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    notice(message(error));
    ExitCode::from(status_of(error))
}

/// The exit status of a program that ends by this error.
fn status_of(error: &anyhow::Error) -> u8 {
    // What can be seen from the arguments alone is as wrong as a word that clap does not know.
    let usage = error.is::<device::TooMany>()
        || error.is::<paths::Clash>()
        || error.is::<NoSuchCause>()
        || matches!(error.downcast_ref(), Some(ConfigFileError::Mistake { .. }));
    if usage { status::USAGE } else { status::HOST_ERROR }
}

/// What the program is to do: what its arguments say, and a file that they name.
fn parse() -> Result<Command, ConfigFileError> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let mut command = parsed(&words).unwrap_or_else(|error| misused(&error));
    if let Command::Runner(args) = &command
        && let Some(run) = args.as_run()
    {
        words = run;
        command = parsed(&words).unwrap_or_else(|error| misused(&error));
    }
    let Command::Run(args) = &command else { return Ok(command) };
    let Some(path) = args.config() else { return Ok(command) };
    let cli = Cli::command();
    let Some(run) = cli.find_subcommand("run") else { return Ok(command) };
    let from_file = config_file::arguments(path, run, !args.names_a_kernel())?;
    // Right after the command: of a value given twice, what is typed comes later and wins.
    let place = after_run(&words);
    words.splice(place..place, from_file);
    Ok(parsed(&words).unwrap_or_else(|error| {
        notice(format_args!(
            "with the options of {} before those of the command line:",
            printable::path(path)
        ));
        misused(&error)
    }))
}

/// Where the arguments of `run` begin. The first word is the program's own name, which may be "run" as well.
fn after_run(words: &[OsString]) -> usize {
    words.iter().skip(1).position(|word| word == "run").map_or(words.len(), |at| at + 2)
}

/// The command that these words are, the program's name the first of them.
fn parsed(words: &[OsString]) -> Result<Command, clap::Error> {
    match words.get(1..).and_then(run_alone) {
        Some(args) => Ok(Command::Run(Box::new(args))),
        None => Cli::try_parse_from(words).map(|cli| cli.command),
    }
}

/// The arguments of `run`, if these words are that and nothing is wrong with them.
///
/// clap describes every option of every command to itself before it parses any, while a user waits for the guest's
/// first byte. What this refuses, the whole command line explains.
fn run_alone(words: &[OsString]) -> Option<run::RunArgs> {
    const NAME: &str = "run";
    words.first().filter(|name| *name == NAME)?;
    let command = run::RunArgs::augment_args(clap::Command::new(NAME));
    let mut matches = command.try_get_matches_from(words).ok()?;
    run::RunArgs::from_arg_matches_mut(&mut matches).ok()
}

/// Ends the program as clap does. Arguments that would drive a terminal are escaped, and the message then has no
/// colours.
fn misused(error: &clap::Error) -> ! {
    let escaped = |argument: &String| printable::printable(argument).to_string() != *argument;
    if !std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).any(|a| escaped(&a)) {
        error.exit();
    }
    eprint!("{}", printable::lines(&error.render().to_string()));
    std::process::exit(error.exit_code());
}

/// An error with its causes on one line, for people. A cause that the message before it repeats is not repeated
/// once more.
fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    printable::lines(&text).to_string()
}

/// Prints a command's result.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_told_once() {
        let refused = || std::io::Error::from_raw_os_error(libc::EMFILE);
        let told = crate::launch::RunError::Eventfd(refused());
        let told = message(&anyhow::Error::new(told).context("cannot start"));
        assert_eq!(told.matches("Too many open files").count(), 1, "{told}");
        let repeated = super::device::console::OpenError::from(refused());
        let told = message(&anyhow::Error::new(repeated).context("cannot start"));
        assert_eq!(told.matches("Too many open files").count(), 1, "{told}");
        let told = message(&anyhow::Error::new(refused()).context("cannot\x1b[2J read"));
        assert!(told.starts_with(r"cannot\u{1b}[2J read: Too many open files"), "{told}");
    }

    #[test]
    fn usual_invocations_parse() {
        for line in [
            "paravane run",
            "paravane run --bare --mem 1G --stats --timeout 10s",
            "paravane run kernel.elf -m 32 --cmdline=-quiet --initrd f --engine process --transport pio",
            "paravane compare --workload map-512 null-call --repeat 5 --json --engine kvm",
            "paravane run --technique trap",
            "paravane run kernel.elf --technique pv",
            "paravane compare --technique pv,trap --baseline pv",
            "paravane compare --engine kvm,process",
            "paravane compare --engine all --repeat 3",
            "paravane run --rng --disk a.img --disk b.qcow2,readonly,queues=2",
            "paravane run --console stdio --cmdline console=virtio",
            "paravane run --console unix=/run/c,server --console pty",
            "paravane run --busy-poll 0",
            "paravane run -vv --mem 64M",
            "paravane run --log debug",
            "paravane compare --busy-poll 50",
            "paravane compare --list",
            "paravane compare --repeat 10 --warm-up 0 --seed 7",
            "paravane compare a.json b.json --tolerance 5 --json",
            "paravane compare --html report.html",
            "paravane compare a.json --html report.html",
            "paravane new my-kernel",
            "paravane new a/my-kernel --minimal --sdk ..",
            "paravane new my-kernel --user",
            "paravane runner kernel --mem 1G",
            "paravane runner --rng -- tests filter --exact",
            "paravane audit",
            "paravane audit --bare --json",
            "paravane audit kernel.elf --deny mixed,silent --allow flags identify --all",
            "paravane doctor",
            "paravane doctor --json",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    /// Parsed alone, `run` is what it is among the other commands, and what it refuses gets their answer.
    #[test]
    fn run_is_parsed_the_same_alone() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let alone = |line: &str| run_alone(words(line).get(1..)?);
        for line in [
            "paravane run",
            "paravane run --bare --mem 1G --smp 1 --stats --timeout 10s",
            "paravane run kernel.elf -m 32 -m 64 --cmdline=-quiet --initrd f --engine process --transport pio",
            "paravane run --rng --disk a.img --disk b.qcow2,readonly,queues=2 --busy-poll 0",
            "paravane run -- --help",
        ] {
            let Ok(Command::Run(whole)) = Cli::try_parse_from(words(line)).map(|cli| cli.command) else {
                panic!("{line}");
            };
            assert_eq!(format!("{:?}", alone(line)), format!("{:?}", Some(whole)), "{line}");
        }
        for line in [
            "paravane run --help",
            "paravane run -V",
            "paravane run --mem 1.5G",
            "paravane doctor",
            "paravane",
        ] {
            assert!(alone(line).is_none(), "{line}");
            assert_eq!(
                parsed(&words(line)).map_err(|error| error.to_string()).is_err(),
                Cli::try_parse_from(words(line)).is_err()
            );
        }
        let told = |error: clap::Error| error.to_string();
        let line = words("paravane run --engine xen");
        assert_eq!(parsed(&line).map_err(told).err(), Cli::try_parse_from(&line).map_err(told).err());
    }

    #[test]
    fn a_program_called_run_finds_where_its_options_go() {
        for (line, place) in
            [("paravane run --rng", 2), ("run run --rng run", 2), ("./run run", 2), ("run", 1)]
        {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(after_run(&words), place, "{line}");
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for line in [
            "paravane run --bare kernel.elf",
            "paravane run --bare --technique pv",
            "paravane run -v --log debug",
            "paravane run --log much",
            "paravane run --technique magic",
            "paravane compare --baseline magic",
            "paravane run --mem 1.5G",
            "paravane run --timeout 0",
            "paravane run --engine xen",
            "paravane run --disk a.img,format=vmdk",
            "paravane run --console tty",
            "paravane run --console file",
            "paravane run --console pty,server",
            "paravane compare --workload fork-bomb",
            "paravane run --busy-poll 2000000",
            "paravane compare --repeat 0",
            "paravane compare a.json b.json --repeat 3",
            "paravane compare a.json b.json c.json",
            "paravane compare --list --html report.html",
            "paravane compare --tolerance 5",
            "paravane compare a.json b.json --tolerance NaN",
            "paravane new",
            "paravane new k --minimal --virtio",
            "paravane new k --user --virtio",
            "paravane runner",
            "paravane audit --bare kernel.elf",
            "paravane audit --deny everything",
            "paravane audit --allow silent",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
