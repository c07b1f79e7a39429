//! `paravane man` and `paravane completions`: the command line's own description, for man(1) and for shells.
//!
//! Both are made from what clap parses by, so that they cannot say anything else.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use crate::text::printable;

const COMPLETIONS: &str = "\
Examples:
  paravane completions bash > /etc/bash_completion.d/paravane
  paravane completions zsh > ~/.zfunc/_paravane
  paravane completions fish > ~/.config/fish/completions/paravane.fish";

const MAN: &str = "\
Examples:
  paravane man run | man -l -              read the page of `run`
  paravane man --all /usr/local/share/man/man1";

/// Arguments of `paravane completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS)]
pub(super) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `paravane man`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN)]
pub(super) struct ManArgs {
    /// The page of which command [default: the program's own]
    command: Option<String>,
    /// Write every page to this directory, which is made if it does not exist
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    all: Option<PathBuf>,
}

/// There is no such page.
#[derive(Debug, thiserror::Error)]
#[error("there is no command `{}`, so it has no page; there are: {}", printable::printable(asked), known.join(", "))]
struct NoSuchCommand {
    asked: String,
    known: Vec<String>,
}

/// Prints what a shell needs; the exit status of the process.
pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "paravane", &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Prints a page or writes all; the exit status of the process.
pub(super) fn man(args: &ManArgs) -> anyhow::Result<u8> {
    let pages = pages();
    if let Some(directory) = &args.all {
        write_all(&pages, directory)
            .with_context(|| format!("cannot write manual pages to {}", printable::path(directory)))?;
        return Ok(0);
    }
    let wanted = args.command.as_ref().map_or("paravane".to_owned(), |name| format!("paravane-{name}"));
    let page = pages.iter().find(|page| page.name == wanted).ok_or_else(|| NoSuchCommand {
        asked: args.command.clone().unwrap_or_default(),
        known: pages
            .iter()
            .filter_map(|page| page.name.strip_prefix("paravane-"))
            .map(str::to_owned)
            .collect(),
    })?;
    super::print(&page.text)?;
    Ok(0)
}

struct Page {
    name: String,
    text: String,
}

/// The program's page and one for each of its commands.
fn pages() -> Vec<Page> {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    std::iter::once(&cli).chain(cli.get_subcommands()).map(page).collect()
}

/// The page of a command that is built: which has its full name for display.
fn page(command: &Command) -> Page {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut text = Vec::new();
    // Only a writer that fails makes this fail, and this one does not.
    let _ = Man::new(command.clone()).title(name.as_str()).manual("Paravane").render(&mut text);
    Page { name, text: String::from_utf8_lossy(&text).into_owned() }
}

fn write_all(pages: &[Page], directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for page in pages {
        std::fs::write(directory.join(format!("{}.1", page.name)), &page.text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_names_its_options() {
        let pages = pages();
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        for command in Cli::command().get_subcommands() {
            let name = format!("paravane-{}", command.get_name());
            assert!(names.contains(&name.as_str()), "{name} of {names:?}");
        }
        let run = pages.iter().find(|page| page.name == "paravane-run").unwrap();
        // roff escapes dashes.
        for part in [".TH paravane-run 1", "\\-\\-stats\\-json", "Exit status"] {
            assert!(run.text.contains(part), "{part}");
        }
    }
}
