//! `docs/advisories.md` against the source: every test that it names exists and is run, every advisory that the source
//! names has a row, and the index by number is that of the rows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::architecture::source::{code_only, rust_files, words};
use crate::checks::Run;
use crate::command::Outcome;
use crate::generated::{self, cannot};

const PAGE: &str = "docs/advisories.md";
/// The folders with tests that the page may name.
const FOLDERS: [&str; 3] = ["hypervisor/src", "hypervisor/tests", "tests"];

/// The check.
pub(crate) fn check(with: &Run) -> Outcome {
    let path = with.root.join(PAGE);
    let page = fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))?;
    let sources = Sources::read(&with.root).map_err(|error| format!("cannot read the source: {error}"))?;
    let faults = faults(&page, &sources);
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        return Err(format!("{} faults in {PAGE}", faults.len()));
    }
    generated::part(with, PAGE, &index(&page, &sources), "advisories")
}

/// The names that the page may use.
#[derive(Default)]
struct Sources {
    /// Each function, with its file.
    functions: BTreeMap<String, String>,
    /// Functions that are tests, or cases of a harness, which other code names.
    run: BTreeSet<String>,
    /// Numbers of advisories that comments and messages name.
    named: BTreeSet<u32>,
}

impl Sources {
    fn read(root: &Path) -> io::Result<Sources> {
        let mut files = Vec::new();
        for folder in FOLDERS {
            files.extend(rust_files(&root.join(folder))?);
        }
        let read = |path: PathBuf| {
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            Ok((name, fs::read_to_string(&path)?))
        };
        let files: Vec<(String, String)> = files.into_iter().map(read).collect::<io::Result<_>>()?;
        Ok(Sources::of(&files))
    }

    fn of(files: &[(String, String)]) -> Sources {
        let mut sources = Sources::default();
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for (file, text) in files {
            sources.named.extend(numbers(text));
            let code = code_only(text);
            for at in words(&code, "fn") {
                let name = word(&code[at + "fn".len()..]);
                // Attributes stand right before the function; a function before it would end in a brace.
                let before = code[..at].rsplit(['}', ';']).next().unwrap_or_default();
                if before.contains("#[test]") {
                    sources.run.insert(name.to_owned());
                }
                sources.functions.entry(name.to_owned()).or_insert_with(|| file.clone());
            }
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            for name in code.split(|c| !is_word(c)).filter(|name| !name.is_empty()) {
                *count.entry(name.to_owned()).or_default() += 1;
            }
        }
        sources.run.extend(count.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name));
        sources
    }
}

/// The first word in the rest of a line.
fn word(rest: &str) -> &str {
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    &rest[..end]
}

/// The numbers in `XSA-N`.
fn numbers(text: &str) -> Vec<u32> {
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    text.split("XSA-").skip(1).filter_map(digits).collect()
}

/// A row of the page's tables: advisories, and the tests that try them.
struct Row<'a> {
    advisories: Vec<u32>,
    tests: Vec<&'a str>,
}

/// The rows with advisories or tests: their first cell names the former or `none`, their last the latter.
fn rows(page: &str) -> Vec<Row<'_>> {
    let lines = page.lines().filter(|line| line.starts_with("| XSA-") || line.starts_with("| none"));
    lines.filter_map(row).collect()
}

/// A row of four cells; those of the index have three.
fn row(line: &str) -> Option<Row<'_>> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
    let [advisories, _, _, tests] = cells[..] else { return None };
    Some(Row { advisories: numbers(advisories), tests: tests.split('`').skip(1).step_by(2).collect() })
}

fn faults(page: &str, sources: &Sources) -> Vec<String> {
    let rows = rows(page);
    let mut faults = Vec::new();
    for row in &rows {
        if row.tests.is_empty() {
            faults.push(format!("the row of {:?} names no test", row.advisories));
        }
        for test in &row.tests {
            if !sources.functions.contains_key(*test) {
                faults.push(format!("{test} is not a function of the tests"));
            } else if !sources.run.contains(*test) {
                faults.push(format!("{test} is not a test, and nothing calls it"));
            }
        }
    }
    let listed: BTreeSet<&str> = rows.iter().flat_map(|row| row.tests.iter().copied()).collect();
    let tests = sources.functions.keys().filter(|name| advisory(name).is_some());
    faults.extend(
        tests.filter(|test| !listed.contains(test.as_str())).map(|test| format!("{test} is in no row")),
    );
    let on_page: BTreeSet<u32> = numbers(page).into_iter().collect();
    faults.extend(sources.named.difference(&on_page).map(|number| format!("XSA-{number} is in no row")));
    faults
}

/// The number in a test's name, `xsa_N_...`.
fn advisory(test: &str) -> Option<u32> {
    test.strip_prefix("xsa_")?.split('_').next()?.parse().ok()
}

/// Each advisory with its tests, and each test's file.
fn index(page: &str, sources: &Sources) -> String {
    let mut tests: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for row in rows(page) {
        for number in &row.advisories {
            // A row of several advisories has tests that are named for one of them.
            let others = row.tests.iter().filter(|test| advisory(test).is_none_or(|other| other == *number));
            tests.entry(*number).or_default().extend(others);
        }
    }
    let mut text = String::from("| Advisory | Test | File |\n| --- | --- | --- |\n");
    for (number, tests) in tests {
        for test in tests {
            let file = sources.functions.get(test).map_or("", String::as_str);
            text += &format!("| XSA-{number} | `{test}` | `{file}` |\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Sources {
        Sources::of(&[("a.rs".to_owned(), text.to_owned())])
    }

    const SOURCE: &str = "/// XSA-1 and XSA-2.\n#[test]\nfn xsa_1_is_tried() {}\nfn case() {}\nfn run() { case(); }\n\
                          fn nobody_calls_this() {}\n#[test]\nfn xsa_3_has_no_row() {}\n";

    #[test]
    fn rows_name_tests_that_are_run() {
        let page = |tests: &str| format!("| XSA-1, XSA-2 | a | b | {tests} |\n| none | a | b | `case` |\n");
        let expected = ["xsa_3_has_no_row is in no row"];
        assert_eq!(faults(&page("`xsa_1_is_tried`, `case`"), &of(SOURCE)), expected);
        assert_eq!(faults(&page(""), &of(SOURCE)).len(), 3);
        assert_eq!(faults(&page("`xsa_1_is_tried`, `nobody_calls_this`"), &of(SOURCE)).len(), 2);
        assert_eq!(faults(&page("`xsa_1_is_tried`, `gone`"), &of(SOURCE)).len(), 2);
        let more = of(&format!("{SOURCE}// XSA-4"));
        assert_eq!(faults(&page("`xsa_1_is_tried`, `xsa_3_has_no_row`"), &more), ["XSA-4 is in no row"]);
    }

    #[test]
    fn the_index_is_by_number() {
        let page = "| XSA-20, XSA-1 | a | b | `xsa_1_is_tried`, `case` |\n";
        let rows = "| XSA-1 | `case` | `a.rs` |\n| XSA-1 | `xsa_1_is_tried` | `a.rs` |\n| XSA-20 | `case` | `a.rs` |\n";
        assert!(index(page, &of(SOURCE)).ends_with(rows), "{}", index(page, &of(SOURCE)));
        // The generated index is not read as rows.
        assert_eq!(super::rows(rows).len(), 0);
    }
}
