//! The positions of the rooms in the picture: in layers, each room above those that it uses.
//!
//! The usual three steps of Sugiyama's method: layers, an order in each that crosses few lines, and coordinates. A line
//! that passes a layer has a place of its own there, so that it goes through no box.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::reach;

/// A place in a layer, for a room or a line that passes.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    /// `None` for a line that passes.
    pub(crate) room: Option<&'a str>,
    /// The places in the layer below that a line leads to, as indices.
    pub(crate) below: Vec<usize>,
}

/// Layers from the top down; in each, places from left to right.
pub(crate) type Layers<'a> = Vec<Vec<Place<'a>>>;

type Uses<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// How often each layer is put in order by its neighbours: more changed nothing when it was tried.
const SWEEPS: usize = 12;

/// Lays out rooms without circles. Only lines that do not follow from others are in it.
pub(crate) fn layers<'a>(uses: &Uses<'a>) -> Layers<'a> {
    let uses = reduced(uses);
    let mut layers = places(&uses, &depths(&uses));
    for sweep in 0..SWEEPS {
        if sweep % 2 == 0 {
            (1..layers.len()).for_each(|index| order_by_above(&mut layers, index));
        } else {
            (0..layers.len() - 1).rev().for_each(|index| order_by_below(&mut layers, index));
        }
    }
    layers
}

/// Leaves out ties that follow from others.
fn reduced<'a>(uses: &Uses<'a>) -> Uses<'a> {
    let reach = reach(uses);
    let direct = |set: &BTreeSet<&'a str>| {
        let follows = |to: &str| set.iter().any(|other| reach.get(other).is_some_and(|far| far.contains(to)));
        set.iter().copied().filter(|to| !follows(to)).collect()
    };
    uses.iter().map(|(room, set)| (*room, direct(set))).collect()
}

/// The layer of each room, from the top: directly below the rooms that use it. Rooms that use nothing are at the
/// bottom.
fn depths<'a>(uses: &Uses<'a>) -> BTreeMap<&'a str, usize> {
    let mut depths: BTreeMap<&str, usize> = uses.keys().map(|room| (*room, 0)).collect();
    // As many rounds as the longest way can have ties.
    for _ in 0..uses.len() {
        for (room, set) in uses {
            for to in set {
                let least = depths[room] + 1;
                let depth = depths.entry(to).or_default();
                *depth = least.max(*depth);
            }
        }
    }
    let bottom = depths.values().copied().max().unwrap_or(0);
    for (room, set) in uses {
        if set.is_empty() {
            depths.insert(room, bottom);
        }
    }
    depths
}

fn places<'a>(uses: &Uses<'a>, depths: &BTreeMap<&'a str, usize>) -> Layers<'a> {
    let count = depths.values().max().map_or(0, |bottom| bottom + 1);
    let mut layers: Layers = vec![Vec::new(); count];
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    for (room, depth) in depths {
        index.insert(room, layers[*depth].len());
        layers[*depth].push(Place { room: Some(room), below: Vec::new() });
    }
    for (room, set) in uses {
        for to in set {
            let mut here = index[room];
            for depth in depths[room]..depths[to] {
                let next = if depth + 1 == depths[to] {
                    index[to]
                } else {
                    layers[depth + 1].push(Place { room: None, below: Vec::new() });
                    layers[depth + 1].len() - 1
                };
                layers[depth][here].below.push(next);
                here = next;
            }
        }
    }
    layers
}

/// Orders a layer by where the lines from above come from.
fn order_by_above(layers: &mut Layers, index: usize) {
    let mut sums = vec![(0, 0); layers[index].len()];
    for (at, place) in layers[index - 1].iter().enumerate() {
        for to in &place.below {
            sums[*to].0 += at;
            sums[*to].1 += 1;
        }
    }
    let keys = sums.iter().enumerate().map(|(at, (sum, count))| key(*sum, *count, at)).collect();
    put_in_order(layers, index, keys);
}

/// Orders a layer by where its lines lead.
fn order_by_below(layers: &mut Layers, index: usize) {
    let keys = layers[index].iter().enumerate();
    let keys = keys.map(|(at, place)| key(place.below.iter().sum(), place.below.len(), at)).collect();
    put_in_order(layers, index, keys);
}

/// The mean, in thousandths; a place without lines stays about where it is.
fn key(sum: usize, count: usize, at: usize) -> usize {
    (sum * 1000).checked_div(count).unwrap_or(at * 1000)
}

fn put_in_order(layers: &mut Layers, index: usize, keys: Vec<usize>) {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by_key(|at| keys[*at]);
    let mut now_at = vec![0; order.len()];
    for (now, before) in order.iter().enumerate() {
        now_at[*before] = now;
    }
    layers[index] = order.iter().map(|before| layers[index][*before].clone()).collect();
    if let Some(above) = index.checked_sub(1) {
        for to in layers[above].iter_mut().flat_map(|place| &mut place.below) {
            *to = now_at[*to];
        }
    }
}
