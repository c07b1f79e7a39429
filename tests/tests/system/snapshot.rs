//! Saving and restoring guests, from each engine to each.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use paravane::engine::NoCpu;
use paravane::launch::{Config, EngineChoice, Report, RunError, Saved, SnapshotTo, run};
use paravane::machine::console::{ConsoleInput, ConsoleSink};
use paravane::machine::end::DomainEnd;
use paravane::monitor::{Command, Control};
use paravane::snapshot::Snapshot;
use paravane_tests::boot::Guest;
use paravane_tests::guests::SNAPSHOT;
use paravane_tests::machine::engines;
use paravane_tests::verdict::{broken_product, skip};

/// Bytes of a guest's output, as they come.
struct ToChannel(Sender<Vec<u8>>);

impl ConsoleSink for ToChannel {
    fn write(&mut self, bytes: &[u8]) {
        // A test that has failed does not listen any more.
        let _ = self.0.send(bytes.to_vec());
    }
}

/// A file that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("paravane-system-{}-{name}.snap", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A guest that runs on a thread of its own.
struct Running {
    output: Receiver<Vec<u8>>,
    said: String,
    input: ConsoleInput,
    control: Control,
    saved: Receiver<Result<Saved, String>>,
    ended: std::thread::JoinHandle<Result<Report, RunError>>,
}

/// What a guest is started from.
enum Source<'a> {
    Image { vcpus: u32 },
    File(&'a Scratch),
}

impl Running {
    /// Starts it; what it is saved to is `to`.
    fn start(from: &Source<'_>, engine: EngineChoice, to: &Scratch) -> Self {
        let (sender, output) = channel();
        let (tell, saved) = channel();
        let (input, control) = (ConsoleInput::default(), Control::default());
        let (vcpus, restore) = match from {
            Source::Image { vcpus } => (*vcpus, None),
            Source::File(file) => (1, Some(Snapshot::open(&file.0).unwrap())),
        };
        let cmdline = format!("vcpus={vcpus}");
        let guest = Guest { name: "snapshot", cmdline: &cmdline, vcpus, ..Guest::new(SNAPSHOT) };
        let config = Config {
            sink: Box::new(ToChannel(sender)),
            input: input.clone(),
            control: control.clone(),
            restore,
            snapshot_to: Some(SnapshotTo {
                path: to.0.clone(),
                tell: Box::new(move |outcome| drop(tell.send(outcome))),
            }),
            ..guest.config(engine)
        };
        let ended = std::thread::spawn(move || run(config));
        Self { output, said: String::new(), input, control, saved, ended }
    }

    /// Types something.
    fn type_in(&self, text: &str) {
        self.input.push(text.as_bytes());
        self.control.kick();
    }

    /// Waits until it has said something.
    #[track_caller]
    fn hear(&mut self, what: &str) {
        while !self.said.contains(what) {
            match self.output.recv() {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => {
                    broken_product(format_args!("{what:?} was expected, and the guest said {:?}", self.said))
                }
            }
        }
    }

    fn save(&self) {
        self.control.send(Command::Save);
        match self.saved.recv() {
            Ok(Ok(_)) => {}
            other => broken_product(format_args!("the guest was not saved: {other:?}")),
        }
    }

    /// Has it end, which it does of its own will.
    #[track_caller]
    fn quit(self) -> String {
        self.type_in("q");
        let report = self.ended.join().unwrap();
        match report {
            Ok(report) if report.end == DomainEnd::PowerOff => self.said,
            other => {
                broken_product(format_args!("{:?}, after {:?}", other.map(|report| report.end), self.said))
            }
        }
    }
}

/// Whether the engine has so many vCPUs.
fn has(engine: EngineChoice, vcpus: u32) -> bool {
    let guest = Guest { vcpus, ..Guest::new(paravane_tests::guests::HELLO) };
    match guest.boot_on(engine) {
        Err(RunError::Cpu(NoCpu::Absent { .. })) if vcpus > 1 => {
            skip("several-vcpus", format_args!("the {} engine has one vCPU", engine.name()));
            false
        }
        _ => true,
    }
}

/// Saved on one engine it goes on there, and from the file on each engine: memory, registers, timers, events, console.
fn from_each_engine_to_each(vcpus: u32, name: &str) {
    let able: Vec<_> = engines().iter().copied().filter(|engine| has(*engine, vcpus)).collect();
    for &engine in &able {
        let [file, again] =
            ["first", "again"].map(|which| Scratch::new(&format!("{name}-{which}-{}", engine.name())));
        let mut first = Running::start(&Source::Image { vcpus }, engine, &file);
        first.hear(&format!("ready: true, {vcpus} vCPUs"));
        first.type_in("at");
        first.hear("ticked, byte 2, wrong 0");
        first.save();
        first.type_in("bt");
        first.hear("b is byte 3");
        first.hear("ticked, byte 4, wrong 0");
        first.quit();
        for &to in &able {
            // Two of them at a time, which do not touch each other.
            let mut two = ["x", "y"].map(|typed| (typed, Running::start(&Source::File(&file), to, &again)));
            for (typed, guest) in &mut two {
                guest.type_in(typed);
                guest.hear(&format!("{typed} is byte 3"));
            }
            for (_, guest) in &mut two {
                guest.type_in("t");
                guest.hear("ticked, byte 4, wrong 0");
            }
            let [(_, one), (_, other)] = two;
            // And once more, by way of a file that a restored guest was saved to.
            one.save();
            one.quit();
            let said = other.quit();
            assert!(!said.contains("ready"), "it goes on, and does not begin: {said}");
            let mut third = Running::start(&Source::File(&again), engine, &again);
            third.type_in("zt");
            third.hear("z is byte 5");
            third.hear("ticked, byte 6, wrong 0");
            third.quit();
        }
    }
}

#[test]
fn a_guest_goes_on_from_each_engine_on_each() {
    from_each_engine_to_each(1, "one");
}

#[test]
fn a_guest_of_several_vcpus_goes_on() {
    from_each_engine_to_each(3, "several");
}

/// Returns to programs go by the page's `iret`, which an engine may have a form of its own of.
#[test]
fn a_guest_with_a_program_goes_on_from_each_engine_on_each() {
    for &engine in engines() {
        for &to in engines() {
            let file = |n: u32| Scratch::new(&format!("program-{n}-{}-{}", engine.name(), to.name()));
            let files = [0, 1, 2].map(file);
            let mut guest = Running::start(&Source::Image { vcpus: 1 }, engine, &files[0]);
            guest.hear("ready");
            guest.type_in("u");
            guest.hear("100 calls, byte 1");
            guest.save();
            guest.quit();
            // There, and back again.
            for (n, on) in [(1, to), (2, engine)] {
                let mut guest = Running::start(&Source::File(&files[n - 1]), on, &files[n]);
                guest.type_in("u");
                guest.hear(&format!("{}00 calls, byte {}", n + 1, n + 1));
                guest.save();
                guest.quit();
            }
        }
    }
}

/// A guest that stands still is saved as it stands.
#[test]
fn a_paused_guest_is_saved() {
    for &engine in engines() {
        let file = Scratch::new(&format!("paused-{}", engine.name()));
        let mut guest = Running::start(&Source::Image { vcpus: 1 }, engine, &file);
        guest.hear("ready");
        guest.control.send(Command::Pause);
        guest.save();
        guest.control.send(Command::Resume);
        guest.type_in("a");
        guest.hear("a is byte 1");
        guest.quit();
        let mut restored = Running::start(&Source::File(&file), engine, &file);
        restored.type_in("b");
        restored.hear("b is byte 1");
        restored.quit();
    }
}
