//! Boots an image on every engine that the tests use (see [`crate::machine`]).

use std::borrow::Cow;
use std::fmt::{self, Debug, Display};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use paravane::compare;
use paravane::gdb::Debugger;
use paravane::launch::{Config, EngineChoice, OnPeek, Report, RunError, TransportChoice, run};
use paravane::ledger::Region;
use paravane::machine::console::{CaptureSink, ConsoleInput};
use paravane::machine::end::DomainEnd;
use paravane::monitor::{Command, Control};
use paravane::technique::Technique;
use paravane::virtio::Device;

use crate::machine::{engines, engines_for, transport_for};
use crate::verdict::broken_product;

/// Ends a guest that hangs. Longer than any test guest takes on a slow and busy host.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The number of bytes of console output that a failed test shows.
const SHOWN: usize = 2000;

/// The outcome of a guest.
pub struct Outcome {
    /// The engine that ran it.
    pub engine: &'static str,
    /// The guest's name.
    pub name: String,
    /// How it ended.
    pub end: DomainEnd,
    /// Its console output.
    pub text: String,
    /// The report of the run.
    pub report: Report,
}

/// A guest to boot.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// Its image.
    pub image: Cow<'static, [u8]>,
    /// How it is virtualized, if not as its image wants.
    pub technique: Option<&'static Technique>,
    /// Its command line.
    pub cmdline: &'a str,
    /// Its memory in bytes.
    pub mem_bytes: u64,
    /// Its initial RAM disk.
    pub initrd: Option<&'static [u8]>,
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// Makes its virtio devices, once for each boot.
    pub devices: fn() -> Vec<Box<dyn Device>>,
    /// Console input, available before the guest starts.
    pub input: &'a [u8],
    /// The time after which a guest is ended that does not end by itself.
    pub deadline: Duration,
}

impl Guest<'static> {
    /// `image` with 32 MiB of memory, without command line, devices and input.
    pub fn new(image: impl Into<Cow<'static, [u8]>>) -> Self {
        let image = image.into();
        Self {
            name: "guest",
            image,
            technique: None,
            cmdline: "",
            mem_bytes: 32 << 20,
            initrd: None,
            vcpus: 1,
            devices: Vec::new,
            input: &[],
            deadline: PATIENCE,
        }
    }
}

impl Guest<'_> {
    /// Boots it once on each engine that its technique can use.
    ///
    /// # Panics
    /// If an engine that this machine has cannot boot it.
    pub fn boot(&self) -> Vec<Outcome> {
        let boot = |&engine| match self.boot_on(engine) {
            Ok(outcome) => outcome,
            Err(error) => broken_product(format_args!("{} does not start on {engine:?}: {error}", self.name)),
        };
        let engines = self.technique.map_or_else(|| engines().to_vec(), engines_for);
        engines.iter().map(boot).collect()
    }

    /// What it is started with, on this engine: with a console that nobody reads or types at.
    pub fn config(&self, engine: EngineChoice) -> Config {
        Config {
            image: self.image.clone(),
            image_name: self.name.to_owned(),
            mem_bytes: self.mem_bytes,
            vcpus: self.vcpus,
            cmdline: self.cmdline.to_owned(),
            initrd: self.initrd.map(<[u8]>::to_vec),
            devices: (self.devices)(),
            technique: self.technique,
            engine,
            transport: transport_for(self.technique, engine),
            sink: Box::new(CaptureSink::default()),
            input: ConsoleInput::default(),
            on_ready: None,
            once_running: None,
            control: Control::default(),
            deadline: Some(self.deadline),
            on_peek: None,
            count_memory: false,
            // As `paravane compare` starts its workloads. Without this, port 0x80 has no special meaning.
            marks: ["bench=", "run="].iter().any(|purpose| self.cmdline.contains(purpose)),
            on_stop: None,
            on_pause: None,
            gdb: None,
            trace: None,
            snapshot_to: None,
            restore: None,
        }
    }

    /// Boots it once.
    ///
    /// # Errors
    /// If it cannot be started.
    ///
    /// # Panics
    /// If it ran on another engine or transport than the one that was asked for.
    pub fn boot_on(&self, engine: EngineChoice) -> Result<Outcome, RunError> {
        self.run_on(engine, Control::default(), None, None)
    }

    /// Boots it once, and looks at what its vCPUs are doing until one of the looks satisfies `enough`, and the guest is
    /// stopped. Returns the last look, in the words of the program.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn look_on(&self, engine: EngineChoice, enough: fn(&str) -> bool) -> Result<String, RunError> {
        let (control, (seen, looks)) = (Control::default(), mpsc::channel());
        let asks = control.clone();
        let watcher = thread::spawn(move || {
            let mut last = String::new();
            asks.send(Command::Peek);
            // The guest runs on while this thread wakes. When it has ended, there is nobody to wait for.
            while let Ok(look) = looks.recv() {
                last = look;
                asks.send(if enough(&last) { Command::Stop } else { Command::Peek });
            }
            last
        });
        let on_peek: OnPeek = Box::new(move |_, _, autopsy| drop(seen.send(autopsy.to_string())));
        self.run_on(engine, control, Some(on_peek), None)?;
        Ok(watcher.join().unwrap_or_else(|_| broken_product("the watcher panicked")))
    }

    /// Boots it once for the debugger, which it waits for.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn debug_on(&self, engine: EngineChoice, debugger: Debugger) -> Result<Outcome, RunError> {
        self.run_on(engine, Control::default(), None, Some(debugger))
    }

    fn run_on(
        &self,
        engine: EngineChoice,
        control: Control,
        on_peek: Option<OnPeek>,
        gdb: Option<Debugger>,
    ) -> Result<Outcome, RunError> {
        let sink = CaptureSink::default();
        let input = ConsoleInput::default();
        input.push(self.input);
        let transport = transport_for(self.technique, engine);
        let report = run(Config {
            sink: Box::new(sink.clone()),
            input,
            control,
            on_peek,
            gdb,
            ..self.config(engine)
        })?;
        let ran = report.engine.name;
        let way = report.engine.transport;
        let as_asked = [EngineChoice::Auto.name(), ran].contains(&engine.name())
            && match transport {
                TransportChoice::Auto => true,
                TransportChoice::Pio => way == "pio",
                TransportChoice::Vmcall => way == "vmcall",
            };
        if !as_asked {
            let name = self.name;
            broken_product(format_args!("{name} was to run on {engine:?} by {transport:?}: {ran} by {way}"));
        }
        let name = format!("{} {}", self.name, self.cmdline).trim_end().to_owned();
        Ok(Outcome { engine: ran, name, end: report.end.clone(), text: sink.text(), report })
    }
}

impl Outcome {
    /// Checks how the guest ended.
    #[track_caller]
    pub fn must_end(&self, end: &DomainEnd) -> &Self {
        self.must(self.end == *end, format_args!("should have ended with {end:?}"))
    }

    /// Checks that the guest printed this.
    #[track_caller]
    pub fn must_print(&self, part: &str) -> &Self {
        self.must(self.text.contains(part), format_args!("should have printed {part:?}"))
    }

    /// Checks a condition; `what` completes "the guest ...".
    #[track_caller]
    pub fn must(&self, holds: bool, what: impl Display) -> &Self {
        if !holds {
            broken_product(format_args!("the guest {what}\n{self}"));
        }
        self
    }

    /// Checks that the hypervisor ended the guest, and returns its reason.
    #[track_caller]
    pub fn must_be_killed(&self) -> &str {
        match &self.end {
            DomainEnd::Killed(why) => why,
            _ => broken_product(format_args!("the guest should have been killed\n{self}")),
        }
    }

    /// The guest's line about its workload, which must report success.
    #[track_caller]
    pub fn must_have_done(&self, workload: &str) -> (compare::Outcome, Region) {
        self.must_end(&DomainEnd::PowerOff);
        let said = match compare::Outcome::parse(&self.text, workload) {
            Ok(said) => said,
            Err(error) => broken_product(format_args!("{error}\n{self}")),
        };
        self.must(said.ok, "found its own results wrong");
        match self.report.ledger.region() {
            Some(region) => (said, region),
            None => broken_product(format_args!("nothing was measured between the marks\n{self}")),
        }
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.text.char_indices().nth_back(SHOWN).map_or(0, |(at, _)| at);
        let tail = self.text.get(start..).unwrap_or_default();
        let (name, engine, end) = (&self.name, self.engine, &self.end);
        write!(f, "guest: {name}\nengine: {engine}\nend: {end:?}\nconsole, its end:\n{tail}")
    }
}

impl Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}
