//! How many exits there were of each kind, and what they took: the form of `perf kvm stat`.
//!
//! What may not be done here: holding anything that grows with the number of exits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde::ser::SerializeMap;

use super::Exit;
use super::format::{CauseName, Header};
use super::places::Places;
use crate::image::symbol_map::SymbolId;
use crate::ledger::{StatLine, Tally, stat_table};
use crate::text::printable::printable;

/// What exits can be counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Their cause.
    Cause,
    /// Their cause's kind.
    Group,
    /// The hypercall, of those that are one.
    Hypercall,
    /// The device, of those that are an access to one.
    Device,
    /// The vCPU.
    Vcpu,
    /// The function of the guest that it was left in.
    Symbol,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Cause, Self::Group, Self::Hypercall, Self::Device, Self::Vcpu, Self::Symbol];

    /// What the command line and exports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cause => "cause",
            Self::Group => "group",
            Self::Hypercall => "hypercall",
            Self::Device => "device",
            Self::Vcpu => "vcpu",
            Self::Symbol => "symbol",
        }
    }

    const fn heading(self) -> &'static str {
        match self {
            Self::Cause => "Exit",
            Self::Group => "Kind of exit",
            Self::Hypercall => "Hypercall",
            Self::Device => "Device",
            Self::Vcpu => "vCPU",
            Self::Symbol => "Guest code",
        }
    }
}

/// How many addresses without a symbol are told apart.
const MOST_ADDRESSES: usize = 1 << 16;

/// Where exits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Spot {
    Symbol(SymbolId),
    Address(u64),
    /// Addresses beyond the first [`MOST_ADDRESSES`].
    Elsewhere,
}

/// Adds up exits.
#[derive(Debug)]
pub struct Summary<'a> {
    header: &'a Header,
    places: &'a Places,
    causes: Vec<Tally>,
    vcpus: BTreeMap<u32, Tally>,
    spots: HashMap<Spot, Tally>,
    addresses: usize,
    all: Tally,
    waited_ns: u64,
    /// When the guest was left first, and entered last.
    span: Option<(u64, u64)>,
}

/// Exits that have something in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What, fit for a terminal.
    pub name: String,
    /// How many, and what they took.
    pub tally: Tally,
}

impl<'a> Summary<'a> {
    /// Of nothing yet.
    pub fn new(header: &'a Header, places: &'a Places) -> Self {
        Self {
            header,
            places,
            causes: vec![Tally::default(); header.causes.len()],
            vcpus: BTreeMap::new(),
            spots: HashMap::new(),
            addresses: 0,
            all: Tally::default(),
            waited_ns: 0,
            span: None,
        }
    }

    /// Adds an exit.
    pub fn add(&mut self, exit: &Exit) {
        if let Some(tally) = self.causes.get_mut(usize::from(exit.cause)) {
            tally.add(exit.worked);
        }
        self.vcpus.entry(exit.vcpu).or_default().add(exit.worked);
        let spot = self.spot(exit.place);
        self.spots.entry(spot).or_default().add(exit.worked);
        self.all.add(exit.worked);
        self.waited_ns = self.waited_ns.saturating_add(exit.waited);
        let (first, last) = self.span.unwrap_or((exit.left, 0));
        self.span = Some((first.min(exit.left), last.max(exit.entered())));
    }

    fn spot(&mut self, place: u64) -> Spot {
        let spot = self.places.symbol(place).map_or(Spot::Address(place), Spot::Symbol);
        if matches!(spot, Spot::Address(_)) && !self.spots.contains_key(&spot) {
            if self.addresses >= MOST_ADDRESSES {
                return Spot::Elsewhere;
            }
            self.addresses += 1;
        }
        spot
    }

    /// How many exits were added, and what they took.
    pub fn all(&self) -> &Tally {
        &self.all
    }

    /// From the first exit to the last entry, in nanoseconds.
    pub fn span_ns(&self) -> u64 {
        self.span.map_or(0, |(first, last)| last.saturating_sub(first))
    }

    /// For how long the guest waited, in nanoseconds.
    pub fn waited_ns(&self) -> u64 {
        self.waited_ns
    }

    /// The exits by something, what took longest first.
    pub fn rows(&self, by: By) -> Vec<Row> {
        let mut rows: Vec<Row> = match by {
            By::Cause => self.by_cause(|cause| Some(&cause.name)),
            By::Group => self.by_cause(|cause| Some(&cause.group)),
            By::Hypercall => self.by_cause(|cause| cause.name.strip_prefix("hypercall ")),
            By::Device => self.by_cause(|cause| cause.device.as_deref()),
            By::Vcpu => {
                let row = |(vcpu, tally): (&u32, &Tally)| Row { name: vcpu.to_string(), tally: *tally };
                self.vcpus.iter().map(row).collect()
            }
            By::Symbol => {
                let row = |(spot, tally): (&Spot, &Tally)| Row { name: self.spot_name(*spot), tally: *tally };
                self.spots.iter().map(row).collect()
            }
        };
        // By name in the end, so that the order is always the same.
        rows.sort_by(|a, b| {
            let key = |row: &Row| Reverse((row.tally.ns, row.tally.count));
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        });
        rows
    }

    fn by_cause(&self, name: impl Fn(&CauseName) -> Option<&str>) -> Vec<Row> {
        let mut sums: BTreeMap<&str, Tally> = BTreeMap::new();
        for (cause, tally) in
            self.header.causes.iter().zip(&self.causes).filter(|(_, tally)| tally.count != 0)
        {
            if let Some(name) = name(cause) {
                sums.entry(name).or_default().merge(tally);
            }
        }
        sums.into_iter().map(|(name, tally)| Row { name: printable(name).to_string(), tally }).collect()
    }

    fn spot_name(&self, spot: Spot) -> String {
        match spot {
            Spot::Symbol(id) => self.places.name(id).to_owned(),
            Spot::Address(address) => format!("{address:#x}"),
            Spot::Elsewhere => "elsewhere".to_owned(),
        }
    }

    /// A table, of which at most `most` lines are shown; nothing if there is nothing to count.
    pub fn table(&self, by: By, most: usize) -> Option<String> {
        let rows = self.rows(by);
        let lines: Vec<StatLine<'_>> = rows.iter().map(|row| StatLine::new(&row.name, &row.tally)).collect();
        let hidden = lines.len().saturating_sub(most);
        let mut table = stat_table(by.heading(), &lines, most);
        if hidden != 0 {
            table += &format!("{hidden} more: --all shows them.\n");
        }
        (!lines.is_empty()).then_some(table)
    }
}

impl Serialize for Row {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { name, tally } = self;
        let mut map = serializer.serialize_map(Some(7))?;
        map.serialize_entry("name", name)?;
        map.serialize_entry("count", &tally.count)?;
        map.serialize_entry("ns", &tally.ns)?;
        map.serialize_entry("min_ns", &tally.min_ns)?;
        map.serialize_entry("max_ns", &tally.max_ns)?;
        map.serialize_entry("avg_ns", &tally.mean_ns())?;
        map.serialize_entry("error_percent", &tally.error_percent())?;
        map.end()
    }
}

impl Serialize for Summary<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(By::ALL.len()))?;
        for by in By::ALL {
            map.serialize_entry(by.name(), &self.rows(by))?;
        }
        map.end()
    }
}
