//! What `--stats` prints and `--stats-json` writes about one run.

use std::fmt;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::registers::Registers;
use super::status::{self, Interruption};
use crate::autopsy::Autopsy;
use crate::launch::{HostMemory, Report};
use crate::ledger::{HardwareExit, HardwareExits, Ledger, Region, WorkRow, exit_table, nanos};
use crate::text::printable::printable;
use crate::virtio::DeviceStops;

/// Where a run's clock starts.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// When `main` was entered.
    main: Instant,
    /// CPU time that the process had used by then, in nanoseconds.
    cpu_before_main_ns: u64,
}

impl Origin {
    /// Now: to be called first in `main`.
    ///
    /// The kernel dates a process's start to a clock tick only (10 ms), which is longer than all of our
    /// start-up; the CPU time used so far is the finest thing known about what came before.
    pub fn here() -> Self {
        let main = Instant::now();
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is room for one timespec.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let cpu_before_main_ns = seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0);
        Self { main, cpu_before_main_ns }
    }

    /// When the program began.
    pub(super) fn main(&self) -> Instant {
        self.main
    }

    /// What is left of a time that began here.
    pub(super) fn what_is_left_of(&self, time: Duration) -> Duration {
        time.saturating_sub(self.main.elapsed())
    }
}

/// The statistics of one run.
#[derive(Debug, Serialize)]
pub(super) struct Statistics<'a> {
    schema: u32,
    image: &'a str,
    end: String,
    /// Where it was, unless it ended of its own will.
    registers: Option<Registers<'a>>,
    /// Why it ended there, if it did not end of its own will.
    #[serde(skip_serializing_if = "Option::is_none")]
    autopsy: Option<&'a Autopsy>,
    engine: Engine<'a>,
    startup: Startup<'a>,
    /// Bytes of the host's memory as the guest ended.
    memory: Option<HostMemory>,
    run_ns: u64,
    whole: Region,
    /// The exits of the whole run by the processor's names, where the guest's kernel ran at CPL 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    hardware: Option<HardwareExits>,
    /// What the guest bracketed with marks.
    region: Option<Region>,
    /// Each device's name, how often it stopped for what its driver did, and why it did last.
    devices: &'a [DeviceStops],
    /// Name and value, as the host's kernel has them.
    kernel_statistics: &'a [(String, u64)],
}

#[derive(Debug, Serialize)]
struct Engine<'a> {
    name: &'a str,
    transport: &'a str,
    detail: &'a str,
}

#[derive(Debug, Serialize)]
struct Startup<'a> {
    cpu_before_main_ns: u64,
    main_to_first_output_ns: Option<u64>,
    /// Name and duration of the monitor's steps, in order.
    steps: &'a [(&'static str, u64)],
}

impl<'a> Statistics<'a> {
    /// Of a run that ended so, perhaps interrupted by somebody.
    pub(super) fn new(
        image: &'a str,
        (report, by): (&'a Report, Interruption),
        origin: &Origin,
        first: Option<Instant>,
    ) -> Self {
        let main_to_first_output_ns = first.map(|t| {
            let waited = t.saturating_duration_since(origin.main);
            u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX)
        });
        let whole = report.ledger.whole(report.run_ns);
        Self {
            schema: 1,
            image,
            end: status::describe(&report.end, by),
            registers: report.last.as_ref().map(Registers),
            autopsy: report.autopsy.as_ref(),
            engine: Engine {
                name: report.engine.name,
                transport: report.engine.transport,
                detail: &report.engine.detail,
            },
            startup: Startup {
                cpu_before_main_ns: origin.cpu_before_main_ns,
                main_to_first_output_ns,
                steps: &report.startup,
            },
            memory: report.memory,
            run_ns: report.run_ns,
            hardware: report.engine.hardware.map(|by| HardwareExits::of(&whole, by)),
            whole,
            region: report.ledger.region(),
            devices: &report.devices,
            kernel_statistics: &report.kernel_statistics,
        }
    }

    pub(super) fn write_json(&self, mut to: impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut to, self)?;
        to.write_all(b"\n")
    }
}

impl fmt::Display for Statistics<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Engine { name, transport, detail } = &self.engine;
        writeln!(f, "\n{}: {}", printable(self.image), printable(&self.end))?;
        writeln!(f, "engine {name}, transport {transport}: {detail}\n")?;
        self.fmt_startup(f)?;
        if let Some(registers) = &self.registers {
            write!(f, "{registers}")?;
        }
        self.fmt_memory(f)?;
        writeln!(f, "\nExits of the whole run, {}", nanos(self.whole.ns))?;
        write!(f, "{}", exit_table(&self.whole))?;
        fmt_amounts(f, &self.whole)?;
        if let Some(region) = &self.region {
            writeln!(f, "\nExits between the guest's marks, {}", nanos(region.ns))?;
            write!(f, "{}", exit_table(region))?;
            fmt_amounts(f, region)?;
        }
        self.fmt_hardware(f)?;
        self.fmt_devices(f)?;
        let counted: Vec<_> = self.kernel_statistics.iter().filter(|(_, n)| *n != 0).collect();
        if !counted.is_empty() {
            writeln!(f, "\nCounted by the host's kernel (exits that never reached us included)")?;
            for (name, value) in counted {
                writeln!(f, "{value:>14}  {name}")?;
            }
        }
        Ok(())
    }
}

impl Statistics<'_> {
    fn fmt_startup(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Startup { cpu_before_main_ns, main_to_first_output_ns, steps } = &self.startup;
        writeln!(f, "Start-up")?;
        writeln!(f, "{:>14}  before main: CPU time of exec and linking", nanos(*cpu_before_main_ns))?;
        for (name, ns) in *steps {
            writeln!(f, "{:>14}  {name}", nanos(*ns))?;
        }
        match main_to_first_output_ns {
            Some(ns) => writeln!(f, "{:>14}  from main to the guest's first output", nanos(*ns)),
            None => writeln!(f, "{:>14}  the guest printed nothing", ""),
        }
    }

    fn fmt_hardware(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(HardwareExits { extension, translation, exits }) = &self.hardware else { return Ok(()) };
        let paging = translation.map_or_else(String::new, |kind| format!(", {kind} paging"));
        writeln!(f, "\nThe same by {extension}'s names{paging}")?;
        exits.iter().try_for_each(|HardwareExit { name, count }| writeln!(f, "{count:>14}  {name}"))
    }

    fn fmt_devices(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stopped: Vec<_> = self.devices.iter().filter(|d| d.stops != 0).collect();
        if !stopped.is_empty() {
            writeln!(f, "\nDevices stopped for what their drivers did")?;
        }
        for DeviceStops { device, stops, last, .. } in stopped {
            let last = last.as_deref().unwrap_or_default();
            writeln!(f, "{stops:>14}  {device}, last for: {last}")?;
        }
        Ok(())
    }

    fn fmt_memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(HostMemory { guest, beyond_guest, program }) = self.memory else { return Ok(()) };
        writeln!(f, "\nThe host's memory as the guest ended")?;
        writeln!(f, "{}  of the guest's own, all that was touched", mib(guest))?;
        writeln!(
            f,
            "{}  beyond the guest's, of which {} program and libraries",
            mib(beyond_guest),
            mib(program).trim_start()
        )
    }
}

/// Mebibytes, as a column.
fn mib(bytes: u64) -> String {
    format!("{:>10.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// What Ctrl-A s prints while the guest runs.
pub(super) fn so_far(ledger: &Ledger, ns: u64) -> String {
    let whole = ledger.whole(ns);
    let mut out = format!("\nExits so far, {}\n{}", nanos(ns), exit_table(&whole));
    // Writing to a String cannot fail.
    let _ = fmt_amounts(&mut out, &whole);
    out
}

/// The sizes of batches, and work that is no exit.
fn fmt_amounts(f: &mut impl fmt::Write, region: &Region) -> fmt::Result {
    for b in &region.batches {
        writeln!(
            f,
            "{}: {:.1} on average, median {}, largest {} ({} in all)",
            b.kind,
            b.mean(),
            b.median,
            b.max,
            b.batches
        )?;
    }
    for WorkRow { kind, count } in &region.work {
        writeln!(f, "{count:>14}  {kind}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineInfo;
    use crate::launch::LastState;
    use crate::ledger::{BatchKind, Cause, MARK_BEGIN, MARK_END};
    use crate::machine::end::DomainEnd;
    use crate::x86::registers::Regs;
    use crate::x86::virtualization::{Extension, Hardware, Translation};

    fn report() -> Report {
        let mut ledger = Ledger::new();
        ledger.record(Cause::Kick, 700);
        ledger.mark(MARK_BEGIN, 0);
        ledger.record(Cause::Hypercall(13), 5_000);
        ledger.batch(BatchKind::Multicall, 12);
        ledger.mark(MARK_END, 90_000);
        Report {
            end: DomainEnd::PowerOff,
            ledger,
            startup: vec![("memory", 20_000), ("engine", 400_000)],
            engine: EngineInfo {
                name: "kvm",
                transport: "pio",
                detail: "software KVM".to_owned(),
                ..EngineInfo::default()
            },
            memory: Some(HostMemory { guest: 1 << 20, beyond_guest: 5 << 20, program: 3 << 19 }),
            devices: vec![
                DeviceStops { device: "rng 0".to_owned(), stops: 0, last: None, untold: 0 },
                DeviceStops {
                    device: "disk 0 (root.img)".to_owned(),
                    stops: 7,
                    last: Some("queue 1: an indirect table of 8 bytes".to_owned()),
                    untold: 2,
                },
            ],
            kernel_statistics: vec![("exits".to_owned(), 9), ("halts".to_owned(), 0)],
            last: Some(LastState { regs: Regs { rax: 7, ..Regs::default() }, place: None }),
            run_ns: 1_000_000,
            first_output_ns: None,
            autopsy: None,
            trace: None,
        }
    }

    #[test]
    fn the_text_has_all_of_it() {
        let (report, origin) = (report(), Origin::here());
        let text = Statistics::new("guest", (&report, Interruption::default()), &origin, None).to_string();
        for part in [
            "guest: the guest powered off",
            "engine kvm, transport pio: software KVM",
            "400 us  engine",
            "the guest printed nothing",
            "Registers at the end, in code without a symbol\n",
            "5.00 MiB  beyond the guest's, of which 1.50 MiB program",
            "whole run, 1.00 ms",
            "hypercall multicall",
            "calls per multicall: 12.0 on average, median 12, largest 12 (1 in all)",
            "guest's marks, 90.0 us",
            "7  disk 0 (root.img), last for: queue 1: an indirect table of 8 bytes",
            "9  exits",
        ] {
            assert!(text.contains(part), "{part:?} missing in:\n{text}");
        }
        for absent in ["halts", "rng"] {
            assert!(!text.contains(absent), "{absent}: what never happened is not listed");
        }
    }

    #[test]
    fn exits_of_a_kernel_at_cpl_0_have_the_processors_names() {
        let (mut report, origin) = (report(), Origin::here());
        let hardware = Hardware { extension: Extension::Svm, translation: Some(Translation::Shadow) };
        report.engine.hardware = Some(hardware);
        let statistics = Statistics::new("guest", (&report, Interruption::default()), &origin, None);
        let text = statistics.to_string();
        assert!(
            text.contains("\nThe same by SVM's names, shadow paging\n             1  VMEXIT_INTR\n"),
            "{text}"
        );
        let json = serde_json::to_value(statistics).unwrap();
        assert_eq!(json["hardware"]["exits"][0], serde_json::json!({ "name": "VMEXIT_INTR", "count": 1 }));
    }

    #[test]
    fn a_run_that_goes_on_can_be_looked_at() {
        let text = so_far(&report().ledger, 2_000_000);
        for part in ["Exits so far, 2.00 ms", "kick", "calls per multicall: 12.0"] {
            assert!(text.contains(part), "{part:?} missing in:\n{text}");
        }
    }

    #[test]
    fn the_json_has_the_same() {
        let (report, origin) = (report(), Origin::here());
        let mut bytes = Vec::new();
        Statistics::new("guest", (&report, Interruption::default()), &origin, Some(origin.main))
            .write_json(&mut bytes)
            .unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["startup"]["main_to_first_output_ns"], 0);
        assert_eq!(json["memory"]["beyond_guest"], 5 << 20);
        assert_eq!(json["startup"]["steps"][1], serde_json::json!(["engine", 400_000]));
        assert_eq!(json["whole"]["exits"].as_array().unwrap().len(), 2);
        assert_eq!(json["region"]["exits"][0]["cause"], "hypercall multicall");
        assert_eq!(json["registers"]["rax"], "0x7");
        assert_eq!(json["engine"]["transport"], "pio");
        let stopped = serde_json::json!({
            "device": "disk 0 (root.img)", "stops": 7, "last": "queue 1: an indirect table of 8 bytes"
        });
        assert_eq!((&json["devices"][0]["last"], &json["devices"][1]), (&serde_json::Value::Null, &stopped));
        assert_eq!(json["kernel_statistics"][1], serde_json::json!(["halts", 0]));
    }
}
