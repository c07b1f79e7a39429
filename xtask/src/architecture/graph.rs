//! Which modules use which, read from the source of a crate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use super::paths::{Named, paths};
use super::source::{code_only, has_word, rust_files, without_tests};

/// A module's path from the root of the crate; the root's own is empty.
type Module = Vec<String>;

/// One line that ties a room to a module of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tie {
    pub(crate) from: String,
    /// The module of the other room, as `room::module::...`, without the item.
    pub(crate) to: String,
    /// `file:line`, from the folder of the crate's source.
    pub(crate) place: String,
}

impl Tie {
    /// The room that is used.
    pub(crate) fn room(&self) -> &str {
        room_of(&self.to)
    }
}

/// The room that a module is in.
pub(crate) fn room_of(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// A crate's modules and ties.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// The crate root's modules. Those for tests only, and `testing`, are left out.
    pub(crate) rooms: BTreeSet<String>,
    pub(crate) ties: Vec<Tie>,
    /// Rooms with the keyword `unsafe`, also in test code.
    pub(crate) with_unsafe: BTreeSet<String>,
    /// Rooms whose first file forbids it.
    pub(crate) forbid_unsafe: BTreeSet<String>,
    /// Paths that could not be resolved: they lead into the crate root, but name no module.
    pub(crate) unknown: Vec<String>,
}

/// A file of the crate, without comments and literals.
struct Source {
    file: String,
    code: String,
}

impl Graph {
    /// Reads a crate's folder `src`. Its binary's `main.rs` is another crate.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(crate) fn read(src: &Path) -> io::Result<Graph> {
        let mut all = BTreeMap::new();
        for path in rust_files(src)? {
            let file = path.strip_prefix(src).unwrap_or(&path);
            if file == Path::new("main.rs") {
                continue;
            }
            let code = code_only(&fs::read_to_string(&path)?);
            all.insert(module_of(file), Source { file: file.display().to_string(), code });
        }
        Ok(Graph::of(&all))
    }

    fn of(all: &BTreeMap<Module, Source>) -> Graph {
        let mut graph = Graph::default();
        let mut product: BTreeMap<&Module, String> = BTreeMap::new();
        let mut tests = BTreeSet::new();
        for (module, source) in all {
            let (code, test_modules) = without_tests(&source.code);
            tests.extend(test_modules.into_iter().map(|name| [&module[..], &[name]].concat()));
            product.insert(module, code);
        }
        let is_product = |module: &Module| {
            let of_tests = (1..=module.len()).any(|length| tests.contains(&module[..length]));
            !of_tests && module.first().is_none_or(|room| room != "testing")
        };
        for (module, source) in all {
            let Some(room) = module.first() else { continue };
            if has_word(&source.code, "unsafe") {
                graph.with_unsafe.insert(room.clone());
            }
            if module.len() == 1 && source.code.contains("#![forbid(unsafe_code)]") {
                graph.forbid_unsafe.insert(room.clone());
            }
            if is_product(module) {
                graph.rooms.insert(room.clone());
                let names = paths(&product[module]);
                graph.add(all, module, &source.file, names);
            }
        }
        graph.ties.sort();
        graph.ties.dedup();
        graph
    }

    fn add(&mut self, all: &BTreeMap<Module, Source>, module: &Module, file: &str, names: Vec<Named>) {
        for Named { path, line } in names {
            let Some(path) = absolute(all, module, &path) else { continue };
            let place = format!("{file}:{line}");
            let known =
                (0..=path.len()).rev().map(|length| &path[..length]).find(|path| all.contains_key(*path));
            match known {
                Some([]) | None if !path.is_empty() => {
                    self.unknown.push(format!("{place}: crate::{} is in no room", path.join("::")));
                }
                Some(to) if !to.is_empty() && to[0] != module[0] => {
                    let (from, to) = (module[0].clone(), to.join("::"));
                    self.ties.push(Tie { from, to, place });
                }
                _ => {}
            }
        }
    }
}

/// A path from the crate root; `None` if it leads to another crate.
fn absolute(all: &BTreeMap<Module, Source>, module: &Module, path: &[String]) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([&module[..], rest].concat()),
        "super" => {
            let ups = path.iter().take_while(|word| *word == "super").count();
            // A module inside the file of its parent is unknown here, and resolves to that file.
            Some([&module[..module.len().saturating_sub(ups)], &path[ups..]].concat())
        }
        _ => {
            let child = [&module[..], std::slice::from_ref(first)].concat();
            all.contains_key(&child).then(|| [&module[..], path].concat())
        }
    }
}

fn module_of(file: &Path) -> Module {
    let words = file.with_extension("");
    let mut module: Module = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    module
}

/// For each node, all nodes that can be reached from it by at least one tie.
pub(crate) fn reach<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut all = uses.clone();
    loop {
        let before: usize = all.values().map(BTreeSet::len).sum();
        for node in uses.keys() {
            let further = all[node].iter().filter_map(|next| all.get(next)).flatten().copied();
            let further: BTreeSet<&str> = further.collect();
            all.entry(node).or_default().extend(further);
        }
        if all.values().map(BTreeSet::len).sum::<usize>() == before {
            return all;
        }
    }
}

/// Circles: sets of rooms, each of which reaches all of them.
pub(crate) fn circles<'a>(uses: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<Vec<&'a str>> {
    let reach = reach(uses);
    let leads_to = |from: &str, to: &str| reach.get(from).is_some_and(|set| set.contains(to));
    let mut circles: Vec<Vec<&str>> = Vec::new();
    for room in uses.keys().filter(|room| leads_to(room, room)) {
        match circles.iter_mut().find(|circle| leads_to(circle[0], room) && leads_to(room, circle[0])) {
            Some(circle) => circle.push(room),
            None => circles.push(vec![room]),
        }
    }
    circles
}
