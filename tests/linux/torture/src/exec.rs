//! Starting programs: arguments, environment and the program's image arrive intact.

use std::process::{Command, ExitCode, Stdio};

use crate::random::{Random, SUM, checksum};
use crate::{Outcome, spoils};

/// The first argument of a program that prints the checksum of its arguments and environment.
const CHILD: &str = "--sum";
/// A variable in its environment.
const VARIABLE: &str = "TORTURE_TEXT";

/// Starts this program again with long arguments, and checks the checksum that it prints.
pub fn run(random: &mut Random) -> Outcome {
    let text = |random: &mut Random, len: u64| -> String {
        (0..random.below(len)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
    };
    let arguments: Vec<String> = (0..8).map(|_| text(random, 2000)).collect();
    let variable = text(random, 20_000);
    let mut expected = sum(&arguments, &variable);
    if spoils("exec") {
        expected ^= 1;
    }
    let program = std::env::current_exe().map_err(|e| format!("current_exe: {e}"))?;
    let output = Command::new(program)
        .arg(CHILD)
        .args(&arguments)
        .env(VARIABLE, &variable)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("exec: {e}"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || printed.trim() != format!("{expected:016x}") {
        return Err(format!(
            "a program printed {:?} instead of {expected:016x}, {}",
            printed.trim(),
            output.status
        ));
    }
    Ok(())
}

fn sum(arguments: &[String], variable: &str) -> u64 {
    arguments.iter().fold(checksum(SUM, variable.as_bytes()), |sum, text| checksum(sum, text.as_bytes()))
}

/// The main function of the program that [`run`] starts; `None` if this is not that program.
pub fn as_child(arguments: &[String]) -> Option<ExitCode> {
    let (CHILD, arguments) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest))? else {
        return None;
    };
    println!("{:016x}", sum(arguments, &std::env::var(VARIABLE).unwrap_or_default()));
    Some(ExitCode::SUCCESS)
}
