//! `cargo xtask CHECK...`: the checks that a change must pass, each on its own or all as CI runs them.
//!
//! `.ci/run` installs packages and calls `cargo xtask ci`; nothing else knows the list of checks ([`checks::ALL`]).
//! Progress goes to standard error, so that standard output only has the output of the checks.

mod advisories;
mod architecture;
mod book;
mod checks;
mod command;
mod editor;
mod generated;
mod listings;
mod markdown;
mod package;
mod projects;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use checks::{ALL, Check, Run};

const HELP: &str = "\
Runs the checks that a change to Paravane must pass.

usage: cargo xtask CHECK...     run these checks, in this order
       cargo xtask ci           run all of them, as CI does: what CI needs may not be skipped
       cargo xtask --list       name the checks, and what each does
       cargo xtask editor       check host and guest code, with cargo's messages as JSON, for rust-analyzer
       cargo xtask CHECK... --write    write what they would compare (advisories, architecture, listings)

examples:
       cargo xtask fmt clippy guest-lints      before each commit
       cargo xtask test                        the same as cargo test --locked
       cargo xtask architecture --write        after a change to rooms.rs, or to what the rooms use
       cargo xtask book && xdg-open target/book/index.html

Exit status: 0 if all passed, 1 if one failed (those after it are not run), 2 for a usage error.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let write = arguments.iter().any(|argument| argument == "--write");
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--write").collect();
    match words[..] {
        [] | ["-h" | "--help" | "help"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        ["--list"] => {
            for check in ALL {
                println!("{:<14} {}", check.name, check.what);
            }
            ExitCode::SUCCESS
        }
        ["editor"] => verdict(editor::check(&root())),
        ["ci"] => run(&ALL.iter().collect::<Vec<_>>(), Run { root: root(), write, is_ci: true }),
        _ => match chosen(&words) {
            Ok(checks) => run(&checks, Run { root: root(), write, is_ci: false }),
            Err(unknown) => {
                eprintln!("xtask: there is no check called {unknown}; cargo xtask --list names them");
                ExitCode::from(2)
            }
        },
    }
}

/// The folder of the workspace, whatever the working directory is.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn chosen<'a>(words: &[&'a str]) -> Result<Vec<&'static Check>, &'a str> {
    words.iter().map(|word| ALL.iter().find(|check| check.name == *word).ok_or(*word)).collect()
}

fn run(checks: &[&Check], with: Run) -> ExitCode {
    let mut took = Vec::new();
    for check in checks {
        eprintln!("\n== {}: {}", check.name, check.what);
        let began = Instant::now();
        let outcome = (check.run)(&with);
        took.push(format!("{} {} s", check.name, began.elapsed().as_secs()));
        if let Err(why) = outcome {
            eprintln!("xtask: {} failed: {why}", check.name);
            return ExitCode::FAILURE;
        }
    }
    eprintln!("\nxtask: all passed: {}", took.join(", "));
    ExitCode::SUCCESS
}

fn verdict(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}
