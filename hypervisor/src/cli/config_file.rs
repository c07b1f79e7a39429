//! The file of `run --config`: the same options as on the command line, in TOML.
//!
//! A file becomes arguments that stand before those of the command line, so that clap checks both alike: of a value
//! that is given twice the command line's wins, options that may be repeated add up, and what excludes each other does
//! so across both. The names are those of the command line, taken from it: there is no second list of options that
//! could differ.
//!
//! What may not be done here: knowing what an option means.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::text::printable;

/// A file of options cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigFileError {
    /// It cannot be read.
    #[error("cannot read the options in {}: {error}", printable::path(path))]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// It is no file of options.
    #[error("{}:{line}: {what}", printable::path(path))]
    Mistake {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there, and what to do.
        what: String,
    },
}

/// The key of what has no option's name: the kernel.
const IMAGE: &str = "image";
/// The longest file: far more than the options that there are.
const LONGEST: u64 = 1 << 20;

/// The arguments that a file stands for. `command` is the one that they are for; `image` says whether the file's image
/// is wanted, which it is not if the command line names one.
pub(super) fn arguments(
    path: &Path,
    command: &Command,
    image: bool,
) -> Result<Vec<OsString>, ConfigFileError> {
    let text = read(path).map_err(|error| ConfigFileError::Read { path: path.to_owned(), error })?;
    parse(&text, command, image).map_err(|Mistake { at, what }| ConfigFileError::Mistake {
        path: path.to_owned(),
        line: line_of(&text, at),
        what,
    })
}

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    if std::fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)? as u64 > LONGEST {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

/// Something that the file should not say, and where.
struct Mistake {
    at: usize,
    what: String,
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn parse(text: &str, command: &Command, image: bool) -> Result<Vec<OsString>, Mistake> {
    let table = DeTable::parse(text).map_err(|error| Mistake {
        at: error.span().map_or(0, |span| span.start),
        what: printable::lines(error.message()).to_string(),
    })?;
    let mut options = Vec::new();
    let mut kernel = None;
    // In the file's order, which is that of the devices.
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let name: &str = key.get_ref();
        if name == IMAGE {
            kernel = Some(text_of(name, value)?);
            continue;
        }
        let option = option(command, name)
            .ok_or_else(|| Mistake { at: key.span().start, what: unknown(name, command) })?;
        add(&mut options, option, name, value)?;
    }
    options.extend(kernel.filter(|_| image).map(operand));
    Ok(options)
}

/// A path as an argument that is no option, whatever it begins with.
fn operand(path: String) -> OsString {
    if path.starts_with('-') { format!("./{path}").into() } else { path.into() }
}

/// The option of that name which a file may have.
fn option<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let is_called = |arg: &Arg| {
        arg.get_long() == Some(name) || arg.get_visible_aliases().unwrap_or_default().contains(&name)
    };
    command.get_arguments().find(|arg| is_called(arg) && is_allowed(arg))
}

/// Options that ask for words instead of a run, and those that nobody is told of, are for the command line.
fn is_allowed(arg: &Arg) -> bool {
    let shows = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    !shows && !arg.is_hide_set() && arg.get_long() != Some("config")
}

fn add(
    to: &mut Vec<OsString>,
    option: &Arg,
    name: &str,
    value: &Spanned<DeValue<'_>>,
) -> Result<(), Mistake> {
    let at = value.span().start;
    match (option.get_action(), value.get_ref()) {
        (ArgAction::SetTrue, DeValue::Boolean(wanted)) => {
            if *wanted {
                to.push(format!("--{name}").into());
            }
        }
        (ArgAction::SetTrue, _) => {
            return Err(Mistake { at, what: format!("`{name}` is true or false") });
        }
        (ArgAction::Append, DeValue::Array(values)) => {
            for value in values {
                to.push(format!("--{name}={}", text_of(name, value)?).into());
            }
        }
        _ => to.push(format!("--{name}={}", text_of(name, value)?).into()),
    }
    Ok(())
}

/// A value as it would stand on the command line.
fn text_of(name: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Mistake> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        // In whatever base it is written: the command line has decimal numbers.
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(number.to_string()),
            Err(error) => Err(Mistake { at: value.span().start, what: format!("`{name}`: {error}") }),
        },
        _ => Err(Mistake {
            at: value.span().start,
            what: format!("`{name}` is a text in quotes, as after --{name} on the command line"),
        }),
    }
}

fn unknown(name: &str, command: &Command) -> String {
    let names = command.get_arguments().filter(|arg| is_allowed(arg)).filter_map(Arg::get_long);
    let mut names: Vec<&str> = names.chain([IMAGE]).collect();
    names.sort_unstable();
    let bare = name.trim_start_matches('-');
    let advice = if names.contains(&bare) {
        format!("write it without dashes: {bare}")
    } else {
        format!("there are: {}", names.join(", "))
    };
    format!("there is no option `{}`; {advice}", printable::printable(name))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn of(text: &str) -> Result<Vec<String>, (usize, String)> {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        let words = parse(text, run, true).map_err(|mistake| (line_of(text, mistake.at), mistake.what))?;
        Ok(words.into_iter().map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn a_file_becomes_the_arguments_that_it_stands_for() {
        let text = "# a server\nimage = \"-k.elf\"\nmem = \"256M\"\ncmdline = \"serve 'a b'\"\n\
                    rng = true\nstats = false\ndisk = [\"b.img\", \"a.img,readonly\"]\nbusy-poll = 0\nnet = \"user\"\n";
        let words = of(text).unwrap();
        assert_eq!(
            words,
            [
                "--mem=256M",
                "--cmdline=serve 'a b'",
                "--rng",
                "--disk=b.img",
                "--disk=a.img,readonly",
                "--busy-poll=0",
                "--net=user",
                "./-k.elf"
            ]
        );
        assert_eq!(of("").unwrap(), [""; 0]);
        assert_eq!(of("smp = 2\nmem = 0x40_0000").unwrap(), ["--smp=2", "--mem=4194304"]);
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, line, what) in [
            ("mem = \"1M\"\n\nmme = 3", 3, "no option `mme`; there are: "),
            ("--mem = 3", 1, "without dashes: mem"),
            ("config = \"b\"", 1, "no option `config`"),
            ("help = true", 1, "no option `help`"),
            ("rng = 1", 1, "true or false"),
            ("mem = 1.5", 1, "a text in quotes"),
            ("mem = 9223372036854775808", 1, "number too large"),
            ("mem = [1, 2]", 1, "a text in quotes"),
            ("\n[run]\nmem = 1", 2, "no option `run`"),
            ("mem = ", 1, ""),
            ("mem = 1\nmem = 2", 2, ""),
        ] {
            let (at, said) = of(text).expect_err(text);
            assert!(at == line && said.contains(what), "{text}: {at}: {said}");
        }
    }
}
