//! The time from the start of the program to the guest's first console byte, measured from outside.
//!
//! A round starts each subject once, by turns, with a pipe as its standard output, and measures from before the process
//! is created to the first byte in the pipe. The subjects beside `paravane` on each engine: `/bin/true` until it has
//! ended, which shows the cost of any process, and a process that makes the smallest KVM machine ([`support::floor`])
//! and prints a byte after its first exit. Further rounds take the breakdown from `--stats-json`.

mod support;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use paravane::compare::HostFacts;
use paravane::ledger::nanos_f64;
use serde_json::{Value, json};
use support::floor::Floor;
use support::{Options, least, median};

/// As the only argument: this process makes the smallest KVM machine.
const BE_THE_FLOOR: &str = "--be-the-floor";

/// A program whose first byte is timed.
struct Subject {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<&'static str>,
    /// Whether its end is timed instead, because it prints nothing.
    silent: bool,
    ns: Vec<f64>,
    /// Why there is no result.
    skipped: Option<String>,
}

impl Subject {
    fn new(name: &'static str, program: impl Into<PathBuf>, arguments: &[&'static str]) -> Self {
        let arguments = arguments.to_vec();
        Self { name, program: program.into(), arguments, silent: false, ns: vec![], skipped: None }
    }

    fn start(&self, more: &[&Path]) -> Result<Child, String> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|e| format!("{}: {e}", self.program.display()))
    }

    fn measure(&mut self) {
        if self.skipped.is_some() {
            return;
        }
        let start = Instant::now();
        let outcome = self.start(&[]).and_then(|child| self.first_byte(child, start));
        match outcome {
            Ok(ns) => self.ns.push(ns),
            Err(why) => self.skipped = Some(why),
        }
    }

    fn first_byte(&self, mut child: Child, start: Instant) -> Result<f64, String> {
        let got = child.stdout.as_mut().map_or(0, |pipe| pipe.read(&mut [0]).unwrap_or(0));
        let ns = start.elapsed().as_nanos() as f64;
        end(&child);
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        match got {
            0 if !self.silent => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            _ => Ok(ns),
        }
    }

    fn print(&self) {
        match &self.skipped {
            Some(why) => println!("{:<36}  SKIP: {why}", self.name),
            None => print_line(self.name, &self.ns),
        }
    }

    fn json(&self) -> Value {
        json!({ "name": self.name, "ns": self.ns, "skipped": self.skipped })
    }
}

/// Asks a guest's process to end; it may have ended already.
fn end(child: &Child) {
    if let Ok(pid) = libc::pid_t::try_from(child.id()) {
        // SAFETY: no pointers; the child has not been waited for, so that the process ID is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

fn print_line(name: &str, ns: &[f64]) {
    println!("{name:<36} {:>9} {:>9}", nanos_f64(least(ns).round()), nanos_f64(median(ns).round()));
}

/// The steps of start-up by the program's own clock: names, and nanoseconds by round.
fn steps(subject: &Subject, rounds: usize) -> Result<Vec<(String, Vec<f64>)>, String> {
    let file = std::env::temp_dir().join(format!("paravane-startup-{}.json", std::process::id()));
    let mut all: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..rounds {
        let child = subject.start(&[Path::new("--stats-json"), &file])?;
        subject.first_byte(child, Instant::now())?;
        let text = std::fs::read(&file).map_err(|e| e.to_string())?;
        let json: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        let startup = &json["startup"];
        let whole = [
            ("before main: CPU time of exec and linking".to_owned(), &startup["cpu_before_main_ns"]),
            ("main to the first byte".to_owned(), &startup["main_to_first_output_ns"]),
        ];
        let steps = startup["steps"].as_array().into_iter().flatten();
        let steps = steps.map(|step| (step[0].as_str().unwrap_or("?").to_owned(), &step[1]));
        for (name, ns) in steps.chain(whole) {
            let ns = ns.as_f64().unwrap_or(f64::NAN);
            match all.iter_mut().find(|(known, _)| *known == name) {
                Some((_, series)) => series.push(ns),
                None => all.push((name, vec![ns])),
            }
        }
    }
    // The file is in the directory for temporary files and may stay there if this fails.
    let _ = std::fs::remove_file(&file);
    Ok(all)
}

fn be_the_floor() {
    match Floor::new().and_then(|mut floor| floor.run()) {
        Ok(()) => println!("x"),
        Err(why) => eprintln!("{why}"),
    }
}

fn subjects() -> Result<Vec<Subject>, std::io::Error> {
    let paravane = env!("CARGO_BIN_EXE_paravane");
    let nothing = Subject { silent: true, ..Subject::new("/bin/true, until it is gone", "/bin/true", &[]) };
    Ok(vec![
        nothing,
        Subject::new("the least KVM machine", std::env::current_exe()?, &[BE_THE_FLOOR]),
        Subject::new("paravane run --engine kvm", paravane, &["run", "--engine", "kvm"]),
        Subject::new("paravane run --engine process", paravane, &["run", "--engine", "process"]),
    ])
}

fn main() -> Result<(), std::io::Error> {
    if std::env::args().nth(1).as_deref() == Some(BE_THE_FLOOR) {
        be_the_floor();
        return Ok(());
    }
    let options = Options::parse("startup", 50);
    let mut subjects = subjects()?;
    for _ in 0..options.rounds {
        subjects.iter_mut().for_each(Subject::measure);
    }
    let guests = subjects.iter().filter(|subject| subject.name.starts_with("paravane"));
    let breakdowns: Vec<_> = guests
        .filter(|guest| guest.skipped.is_none())
        .map(|guest| (guest.name, steps(guest, options.rounds)))
        .collect();
    if options.json {
        let breakdown: serde_json::Map<_, _> =
            breakdowns.into_iter().map(|(name, steps)| (name.to_owned(), json!(steps.ok()))).collect();
        let subjects: Vec<Value> = subjects.iter().map(Subject::json).collect();
        let host = HostFacts::gather();
        println!("{:#}", json!({ "host": host, "first_byte": subjects, "breakdown": breakdown }));
        return Ok(());
    }
    println!("From before the process is made to its first byte; {} rounds\n", options.rounds);
    println!("{:<36} {:>9} {:>9}", "", "least", "median");
    subjects.iter().for_each(Subject::print);
    for (name, steps) in breakdowns {
        println!("\n{name}, by its own clock");
        match steps {
            Ok(steps) => steps.iter().for_each(|(step, ns)| print_line(&format!("  {step}"), ns)),
            Err(why) => println!("  SKIP: {why}"),
        }
    }
    Ok(())
}
