//! A trace in Chrome's Trace Event Format, which `ui.perfetto.dev`, `chrome://tracing` and others show.
//!
//! The JSON object form: `traceEvents` has a complete event (`"ph": "X"`) for each exit, from when the guest was left
//! to when it was entered again, on a thread for each vCPU; gaps are the guest's own time. A wait is an event inside of
//! its exit's. Marks and lost exits are instant events (`"ph": "i"`), names are metadata events (`"ph": "M"`). Times
//! are microseconds, with three decimals.

use std::io::{self, Write};

use serde::Serialize;

use super::Exit;
use super::format::Header;
use super::places::Places;
use super::reader::Entry;
use super::timeline::cause;

/// All vCPUs are threads of one process.
const PROCESS: u32 = 1;

/// Writes the events.
#[derive(Debug)]
pub struct Chrome<'a, W> {
    out: W,
    header: &'a Header,
    places: &'a Places,
    /// The vCPUs that have a name.
    named: Vec<u32>,
}

/// An event, in the format's own names.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cat: &'a str,
    ph: &'a str,
    ts: Micros,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<Micros>,
    pid: u32,
    tid: u32,
    /// The scope of an instant event: its thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<serde_json::Value>,
}

/// Nanoseconds, written as microseconds.
#[derive(Clone, Copy)]
struct Micros(u64);

impl Serialize for Micros {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Exact for 104 days; then the last digit is not.
        serializer.serialize_f64(self.0 as f64 / 1e3)
    }
}

impl<'a, W: Write> Chrome<'a, W> {
    /// Begins the file.
    ///
    /// # Errors
    /// When `out` does not take it, here and below.
    pub fn begin(mut out: W, header: &'a Header, places: &'a Places) -> io::Result<Self> {
        let about = serde_json::json!({
            "program": format!("paravane {}", header.program),
            "image": header.image.name,
            "technique": header.technique,
            "engine": header.engine,
            "began_unix_ns": header.began,
        });
        write!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{about},\"traceEvents\":[")?;
        let mut chrome = Self { out, header, places, named: Vec::new() };
        let name = format!("{} ({})", header.image.name, header.technique);
        let args = Some(serde_json::json!({ "name": name }));
        chrome.event(&Event { args, ..blank("process_name", "M", 0) }, true)?;
        Ok(chrome)
    }

    /// Adds an exit, or says that there were more.
    pub fn add(&mut self, entry: &Entry) -> io::Result<()> {
        match entry {
            Entry::Exit(exit) => self.exit(exit),
            Entry::Lost { vcpu, after, count } => {
                let name = format!("{count} exits are not in the file");
                self.name_thread(*vcpu)?;
                let event = Event { ts: Micros(*after), s: Some("t"), ..blank(&name, "i", *vcpu) };
                self.event(&event, false)
            }
        }
    }

    /// Ends the file.
    pub fn end(mut self) -> io::Result<()> {
        writeln!(self.out, "\n]}}")?;
        self.out.flush()
    }

    fn exit(&mut self, exit: &Exit) -> io::Result<()> {
        self.name_thread(exit.vcpu)?;
        let (header, places) = (self.header, self.places);
        let group = header.causes.get(usize::from(exit.cause)).map_or("", |cause| &cause.group);
        let ns = exit.worked.saturating_add(exit.waited);
        let place = places.named(exit.place).to_string();
        let mut args = serde_json::json!({ "worked_ns": exit.worked, "place": place });
        if let (Some(args), true) = (args.as_object_mut(), exit.waited != 0) {
            args.insert("waited_ns".to_owned(), exit.waited.into());
        }
        let whole = Event {
            cat: group,
            ts: Micros(exit.left),
            dur: Some(Micros(ns)),
            args: Some(args),
            ..blank(cause(header, exit), "X", exit.vcpu)
        };
        self.event(&whole, false)?;
        if exit.waited != 0 {
            // What the exit meant is done first, so that the wait is the rest.
            let (ts, dur) = (Micros(exit.left.saturating_add(exit.worked)), Some(Micros(exit.waited)));
            self.event(&Event { cat: "wait", ts, dur, ..blank("wait", "X", exit.vcpu) }, false)?;
        }
        if let Some(mark) = exit.mark {
            let name = format!("mark {mark}");
            let ts = Micros(exit.left);
            self.event(&Event { cat: "mark", ts, s: Some("t"), ..blank(&name, "i", exit.vcpu) }, false)?;
        }
        Ok(())
    }

    /// Names the thread of a vCPU, once.
    fn name_thread(&mut self, vcpu: u32) -> io::Result<()> {
        if self.named.contains(&vcpu) {
            return Ok(());
        }
        self.named.push(vcpu);
        let args = Some(serde_json::json!({ "name": format!("vCPU {vcpu}") }));
        self.event(&Event { args, ..blank("thread_name", "M", vcpu) }, false)
    }

    fn event(&mut self, event: &Event<'_>, first: bool) -> io::Result<()> {
        self.out.write_all(if first { b"\n" } else { b",\n" })?;
        Ok(serde_json::to_writer(&mut self.out, event)?)
    }
}

fn blank<'a>(name: &'a str, ph: &'a str, tid: u32) -> Event<'a> {
    Event { name, cat: "", ph, ts: Micros(0), dur: None, pid: PROCESS, tid, s: None, args: None }
}
