//! `docs/architecture.svg`, and the table in `docs/architecture.md`: what the source says, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::layout::{Layers, Place, layers};
use super::rooms::{Room, Table};

const BOX_WIDTH: usize = 164;
const BOX_HEIGHT: usize = 56;
/// Between neighbours, and between layers.
const GAP: usize = 18;
const LAYER_GAP: usize = 54;
/// The width of a line that passes a layer.
const LINE_WIDTH: usize = 6;
const MARGIN: usize = 16;
/// The number of characters of small text that fit into a line of a box.
const COLUMNS: usize = 27;

type Uses<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// The rooms in layers, with a line from each to those right below that it uses.
pub(crate) fn svg(uses: &Uses, table: &Table) -> String {
    let layers = layers(uses);
    let width = layers.iter().map(|layer| width_of(layer)).max().unwrap_or(0) + 2 * MARGIN;
    let height = layers.len() * (BOX_HEIGHT + LAYER_GAP) - LAYER_GAP + 2 * MARGIN;
    let left = lefts(&layers, width);
    let mut lines = String::new();
    let mut boxes = String::new();
    for (depth, layer) in layers.iter().enumerate() {
        let top = MARGIN + depth * (BOX_HEIGHT + LAYER_GAP);
        for (at, place) in layer.iter().enumerate() {
            let from = left[depth][at] + width_of_place(place) / 2;
            match place.room {
                Some(room) => boxes += &room_box(room, table, left[depth][at], top),
                None => _ = writeln!(lines, r#"<path d="M{from} {top}v{BOX_HEIGHT}"/>"#),
            }
            for to in &place.below {
                let to = left[depth + 1][*to] + width_of_place(&layers[depth + 1][*to]) / 2;
                let (upper, lower) = (top + BOX_HEIGHT, top + BOX_HEIGHT + LAYER_GAP);
                let bend = upper + LAYER_GAP / 2;
                _ = writeln!(lines, r#"<path d="M{from} {upper}C{from} {bend} {to} {bend} {to} {lower}"/>"#);
            }
        }
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">
<desc>Written by: cargo xtask architecture --write</desc>
<rect width="{width}" height="{height}" fill="#fff"/>
<g fill="none" stroke="#8a94a6" stroke-width="1.4">
{lines}</g>
<g text-anchor="middle">
{boxes}</g>
</svg>
"##
    )
}

fn room_box(room: &str, table: &Table, left: usize, top: usize) -> String {
    let row = table.rooms.iter().find(|row| row.name == room);
    let fill = if row.is_some_and(|row| row.has_unsafe) { "#fde8d7" } else { "#e8f0fb" };
    let middle = left + BOX_WIDTH / 2;
    let mut text = format!(
        "<rect x=\"{left}\" y=\"{top}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"6\" fill=\"{fill}\" \
         stroke=\"#44546a\"/>\n<text x=\"{middle}\" y=\"{}\" font-size=\"14\" font-weight=\"bold\">{room}</text>\n",
        top + 18
    );
    let lines = wrapped(row.map_or("", |row| row.what));
    for (index, line) in lines.iter().enumerate() {
        let y = top + 33 + index * 13;
        _ = writeln!(
            text,
            r##"<text x="{middle}" y="{y}" font-size="11" fill="#333">{}</text>"##,
            escaped(line)
        );
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Lines of at most [`COLUMNS`].
pub(crate) fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= COLUMNS => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn width_of_place(place: &Place) -> usize {
    if place.room.is_some() { BOX_WIDTH } else { LINE_WIDTH }
}

fn width_of(layer: &[Place]) -> usize {
    let places: usize = layer.iter().map(width_of_place).sum();
    places + GAP * layer.len().saturating_sub(1)
}

/// The left edge of each place; every layer is in the middle.
fn lefts(layers: &Layers, width: usize) -> Vec<Vec<usize>> {
    let lefts = |layer: &Vec<Place>| {
        let mut left = (width - width_of(layer)) / 2;
        let edge = |place| {
            let here = left;
            left += width_of_place(place) + GAP;
            here
        };
        layer.iter().map(edge).collect()
    };
    layers.iter().map(lefts).collect()
}

/// Rooms, what is in them and what they use; then the principles.
pub(crate) fn markdown(uses: &Uses, table: &Table) -> String {
    let mut text = String::from("| Room | What is in it | `unsafe` | Uses |\n| --- | --- | --- | --- |\n");
    let row = |room: &&Room| {
        let used = uses.get(room.name).into_iter().flatten().map(|to| format!("`{to}`"));
        let used = used.collect::<Vec<_>>().join(" ");
        let has_unsafe = if room.has_unsafe { "yes" } else { "forbidden" };
        format!("| `{}` | {} | {has_unsafe} | {used} |\n", room.name, room.what)
    };
    text.extend(table.rooms.iter().map(|room| row(&room)));
    text += "\nWhat no tie may contradict, whatever the table says:\n\n";
    text += "| Room | Never uses | Why |\n| --- | --- | --- |\n";
    let names = |all: &[&str]| all.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    text.extend(table.principles.iter().map(|principle| {
        format!("| {} | {} | {} |\n", names(principle.from), names(principle.never), principle.why)
    }));
    text
}
