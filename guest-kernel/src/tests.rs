//! The crate's own rules, checked over its source.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the crate's map, from top to bottom.
const ORDER: [&str; 23] = [
    "boot",
    "fidelity",
    "shell",
    "workload",
    "selftest",
    "process",
    "network",
    "vsock",
    "files",
    "exception",
    "time",
    "console",
    "device",
    "kernel",
    "machine",
    "memory",
    "interrupts",
    "cmdline",
    "line_editor",
    "timers",
    "rate",
    "pattern",
    "single",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file below `dir` that is not a test, with its path.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.strip_prefix(source()).unwrap().iter().next().unwrap();
    first.to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The top-level modules that a text names by `crate::`, comments aside.
fn uses(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    code.split("crate::").skip(1).flat_map(first_names).collect()
}

/// The first name of each path in what follows a `crate::`: one path, or a group of paths.
fn first_names(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else { return vec![first_name(rest)] };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            ',' | '}' if depth == 0 => {
                names.push(first_name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

fn first_name(path: &str) -> String {
    let name: String = path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    match name.as_str() {
        "print" | "println" => "console".to_owned(),
        _ => name,
    }
}

#[test]
fn modules_use_only_modules_below_them() {
    let mut paths = Vec::new();
    files(&source(), &mut paths);
    let place = |module: &str| ORDER.iter().position(|name| *name == module);
    let mut ties = 0;
    for path in paths.iter().filter(|path| !["lib", "main", "bin"].contains(&module_of(path).as_str())) {
        let module = module_of(path);
        let above = place(&module).unwrap_or_else(|| panic!("{module} is not in the map"));
        for used in uses(&fs::read_to_string(path).unwrap()) {
            let below = place(&used)
                .unwrap_or_else(|| panic!("{} uses {used}, which is not in the map", path.display()));
            assert!(above <= below, "{} uses {used}, which is above {module} in the map", path.display());
            ties += usize::from(above != below);
        }
    }
    assert!(ties > 50, "only {ties} uses were found");
}

#[test]
fn the_use_of_a_module_is_found_in_every_form() {
    let text =
        "// crate::comment\nuse crate::{a, b::{c, d},\n e};\nlet x = crate::f::g(crate::h);\nuse crate::i;";
    let expected = ["a", "b", "e", "f", "h", "i"];
    assert!(uses(text).iter().eq(expected), "{:?}", uses(text));
}
