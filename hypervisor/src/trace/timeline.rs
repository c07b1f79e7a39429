//! One line for each exit, in order.

use std::io::{self, Write};

use serde::Serialize;

use super::Exit;
use super::format::Header;
use super::places::Places;
use super::reader::Entry;
use crate::text::printable::printable;

/// Writes lines, for people or as JSON.
#[derive(Debug)]
pub struct Timeline<'a, W> {
    out: W,
    header: &'a Header,
    places: &'a Places,
    json: bool,
    /// When the guest was entered last.
    entered: Option<u64>,
}

/// A line as JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Exit {
        ns: u64,
        vcpu: u32,
        cause: &'a str,
        worked_ns: u64,
        waited_ns: u64,
        place: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        symbol: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        mark: Option<u8>,
    },
    Lost {
        ns: u64,
        vcpu: u32,
        lost: u64,
    },
}

impl<'a, W: Write> Timeline<'a, W> {
    /// Begins with the heading, unless lines are JSON.
    ///
    /// # Errors
    /// When `out` does not take it, here and below.
    pub fn begin(mut out: W, header: &'a Header, places: &'a Places, json: bool) -> io::Result<Self> {
        if !json {
            let [seconds, ran, worked, waited] = ["Seconds", "Guest ran", "Worked", "Waited"];
            let [vcpu, exit, code] = ["vCPU", "Exit", "Guest code"];
            writeln!(out, "{seconds:>12} {ran:>13} {vcpu:>5} {worked:>11} {waited:>12}  {exit:<24} {code}")?;
        }
        Ok(Self { out, header, places, json, entered: None })
    }

    /// Writes a line.
    pub fn add(&mut self, entry: &Entry) -> io::Result<()> {
        match entry {
            Entry::Exit(exit) if self.json => self.json(exit),
            Entry::Exit(exit) => self.text(exit),
            &Entry::Lost { vcpu, after, count } if self.json => {
                self.json_line(&Line::Lost { ns: after, vcpu, lost: count })
            }
            Entry::Lost { count, .. } => {
                // What came before is no measure for what comes next.
                self.entered = None;
                writeln!(self.out, "{:>12}  {count} exits are not in the file", "...")
            }
        }
    }

    /// Passes over an exit that gets no line. That the guest ran until then is not said of the next.
    pub fn pass(&mut self, exit: &Exit) {
        self.entered = Some(exit.entered());
    }

    /// Everything has been added.
    pub fn end(mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn text(&mut self, exit: &Exit) -> io::Result<()> {
        let ran = self.entered.map_or(String::new(), |entered| micros(exit.left.saturating_sub(entered)));
        self.entered = Some(exit.entered());
        let waited = if exit.waited == 0 { "-".to_owned() } else { micros(exit.waited) };
        let mut cause = printable(cause(self.header, exit)).to_string();
        if let Some(mark) = exit.mark {
            cause = format!("{cause} {mark}");
        }
        let (seconds, rest) = (exit.left / 1_000_000_000, exit.left % 1_000_000_000);
        let (worked, place) = (micros(exit.worked), self.places.named(exit.place));
        let vcpu = exit.vcpu;
        writeln!(
            self.out,
            "{seconds:>2}.{rest:09} {ran:>13} {vcpu:>5} {worked:>11} {waited:>12}  {cause:<24} {place}"
        )
    }

    fn json(&mut self, exit: &Exit) -> io::Result<()> {
        let symbol = self.places.named(exit.place).symbol;
        let line = Line::Exit {
            ns: exit.left,
            vcpu: exit.vcpu,
            cause: cause(self.header, exit),
            worked_ns: exit.worked,
            waited_ns: exit.waited,
            place: format!("{:#x}", exit.place),
            symbol: symbol.map(|(name, _)| name),
            offset: symbol.map(|(_, offset)| offset),
            mark: exit.mark,
        };
        self.json_line(&line)
    }

    fn json_line(&mut self, line: &Line<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        writeln!(self.out)
    }
}

pub(super) fn cause<'a>(header: &'a Header, exit: &Exit) -> &'a str {
    header.causes.get(usize::from(exit.cause)).map_or("", |cause| &cause.name)
}

fn micros(ns: u64) -> String {
    format!("{}.{:03}us", ns / 1000, ns % 1000)
}
