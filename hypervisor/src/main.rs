//! The `paravane` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    paravane::cli::main(paravane::cli::Origin::here())
}
