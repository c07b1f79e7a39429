//! Which room of the hypervisor may use which, checked against its source.
//!
//! A room is a module of the crate root. [`rooms`] is the table of intended ties, [`graph`] reads the actual ones, and
//! [`faults`] compares the two. Only `use` lines and paths are checked: a type that comes through a third room is not
//! seen.

mod graph;
mod layout;
mod paths;
mod picture;
mod rooms;
pub(crate) mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use self::graph::{Graph, Tie, circles};
use self::rooms::Table;
use crate::checks::Run;
use crate::command::Outcome;
use crate::generated;

/// The check: the table against the source, and the pages that show it.
pub(crate) fn check(with: &Run) -> Outcome {
    let graph = read(&with.root)?;
    let faults = faults(&graph, &rooms::TABLE);
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        return Err(format!("{} faults; xtask/src/architecture/rooms.rs says what is allowed", faults.len()));
    }
    let exceptions = rooms::TABLE.exceptions.len();
    println!(
        "architecture: {} rooms, {} ties, {exceptions} exceptions",
        graph.rooms.len(),
        count_of_ties(&graph)
    );
    draw(with, &graph)
}

/// The sum, over all rooms, of the number of rooms that each uses.
fn count_of_ties(graph: &Graph) -> usize {
    by_room(graph, &graph.ties.iter().collect::<Vec<_>>()).values().map(BTreeSet::len).sum()
}

/// Checks that the picture and the table in the book match the source.
fn draw(with: &Run, graph: &Graph) -> Outcome {
    let table = &rooms::TABLE;
    let uses = by_room(graph, &split(graph, table).1);
    generated::whole(with, "docs/architecture.svg", &picture::svg(&uses, table), "architecture")?;
    generated::part(with, "docs/architecture.md", &picture::markdown(&uses, table), "architecture")
}

fn read(root: &Path) -> Result<Graph, String> {
    let src = root.join("hypervisor/src");
    Graph::read(&src).map_err(|error| format!("cannot read {}: {error}", src.display()))
}

/// Whether `module` is `prefix` or inside it.
fn is_within(module: &str, prefix: &str) -> bool {
    module.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Separates the ties that are exceptions from the others.
fn split<'a>(graph: &'a Graph, table: &Table) -> (Vec<&'a Tie>, Vec<&'a Tie>) {
    let is_exception =
        |tie: &&Tie| table.exceptions.iter().any(|(from, to)| tie.from == *from && is_within(&tie.to, to));
    graph.ties.iter().partition(is_exception)
}

/// Which room uses which.
fn by_room<'a>(graph: &'a Graph, ties: &[&'a Tie]) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut uses: BTreeMap<&str, BTreeSet<&str>> =
        graph.rooms.iter().map(|room| (room.as_str(), BTreeSet::new())).collect();
    for tie in ties {
        uses.entry(&tie.from).or_default().insert(tie.room());
    }
    uses
}

/// All differences between the source and the table, a line each.
fn faults(graph: &Graph, table: &Table) -> Vec<String> {
    let (exceptions, ties) = split(graph, table);
    let uses = by_room(graph, &ties);
    let circles = circles(&uses);
    let circles = circles.iter().map(|circle| format!("a circle of rooms: {}", circle.join(", ")));
    let mut faults = graph.unknown.clone();
    faults.extend(rows(graph, table));
    faults.extend(not_allowed(&ties, table));
    faults.extend(contradictions(&ties, table));
    faults.extend(not_needed(&ties, &exceptions, table));
    faults.extend(circles);
    faults.extend(unsafe_code(graph, table));
    faults
}

/// Rooms without a row, and rows without a room.
fn rows(graph: &Graph, table: &Table) -> Vec<String> {
    let rows: BTreeSet<&str> = table.rooms.iter().map(|room| room.name).collect();
    let rooms: BTreeSet<&str> = graph.rooms.iter().map(String::as_str).collect();
    let without_row =
        rooms.difference(&rows).map(|room| format!("{room}: this room has no row in the table"));
    let gone = rows
        .difference(&rooms)
        .map(|row| format!("{row}: the table has a row for a room that does not exist"));
    without_row.chain(gone).collect()
}

fn not_allowed(ties: &[&Tie], table: &Table) -> Vec<String> {
    let is_allowed = |tie: &Tie| {
        let row = table.rooms.iter().find(|room| room.name == tie.from);
        row.is_some_and(|room| room.may_use.split_whitespace().any(|prefix| is_within(&tie.to, prefix)))
    };
    let not_allowed = ties.iter().filter(|tie| !is_allowed(tie));
    not_allowed.map(|tie| format!("{}: {} may not use {}", tie.place, tie.from, tie.to)).collect()
}

/// Ties that no row may allow.
fn contradictions(ties: &[&Tie], table: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    for principle in table.principles {
        let is_against = |tie: &&&Tie| {
            principle.from.contains(&tie.from.as_str())
                && principle.never.iter().any(|never| is_within(&tie.to, never))
        };
        let against = ties.iter().filter(is_against);
        let why = principle.why;
        faults.extend(against.map(|tie| format!("{}: {} uses {}, but {why}", tie.place, tie.from, tie.to)));
    }
    faults
}

/// Rows and exceptions that allow more than the source uses, because the table is also a description.
fn not_needed(ties: &[&Tie], exceptions: &[&Tie], table: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    for room in table.rooms {
        let is_used =
            |prefix: &str| ties.iter().any(|tie| tie.from == room.name && is_within(&tie.to, prefix));
        let unused = room.may_use.split_whitespace().filter(|prefix| !is_used(prefix));
        let name = room.name;
        faults.extend(
            unused.map(|prefix| format!("{name}: the table allows it to use {prefix}, which it does not")),
        );
    }
    for (from, to) in table.exceptions {
        if !exceptions.iter().any(|tie| tie.from == *from && is_within(&tie.to, to)) {
            faults.push(format!("{from}: the exception for {to} is no longer needed: remove it"));
        }
    }
    faults
}

/// Checks that rooms with `unsafe` are those of the table, and that all others forbid it.
fn unsafe_code(graph: &Graph, table: &Table) -> Vec<String> {
    let mut faults = Vec::new();
    for room in &graph.rooms {
        let is_meant = table.rooms.iter().any(|row| row.name == room && row.has_unsafe);
        match (is_meant, graph.with_unsafe.contains(room), graph.forbid_unsafe.contains(room)) {
            (false, true, _) => faults.push(format!("{room}: no unsafe code is meant to be in this room")),
            (false, false, false) => {
                faults.push(format!("{room}: its first file lacks #![forbid(unsafe_code)]"))
            }
            (true, false, _) => {
                faults.push(format!("{room}: the table allows unsafe code, which it does not have"))
            }
            _ => {}
        }
    }
    faults
}
