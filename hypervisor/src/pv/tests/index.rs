//! The index of advisories in the book against the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../../../../docs/advisories.md");

/// The contents of all Rust files of the hypervisor and of the whole-system tests.
fn sources() -> String {
    let hypervisor = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> =
        vec![hypervisor.join("src"), hypervisor.join("tests"), hypervisor.join("../tests")];
    let mut all = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                all += &fs::read_to_string(path).unwrap();
            }
        }
    }
    all
}

/// What comes after each `before`, as far as it is made of such characters.
fn each(text: &str, before: &str, belongs: fn(char) -> bool) -> BTreeSet<String> {
    let word = |rest: &str| rest.split(|c| !belongs(c)).next().unwrap_or_default().to_owned();
    text.split(before).skip(1).map(word).filter(|word| !word.is_empty()).collect()
}

/// The last cell of each row with a test names tests; every one of them is there. Every advisory that the sources
/// name, in words or as a test, has its row.
#[test]
fn the_index_of_advisories_is_true() {
    let sources = sources();
    let functions = each(&sources, "fn ", |c| c.is_ascii_alphanumeric() || c == '_');
    let rows = PAGE.lines().filter(|line| line.starts_with("| XSA-") || line.starts_with("| none"));
    let mut named = BTreeSet::new();
    for row in rows {
        let cell = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
        let tests: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "a row without a test: {row}");
        for test in tests {
            assert!(functions.contains(test), "docs/advisories.md names {test}, which is no function");
            named.insert(test);
        }
    }
    assert!(named.len() > 40, "the rows were not found");
    let is_xsa = |name: &&String| {
        name.strip_prefix("xsa_").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    for test in functions.iter().filter(is_xsa) {
        assert!(named.contains(test.as_str()), "docs/advisories.md lacks the test {test}");
    }
    let digits = |text: &str| each(text, "XSA-", |c| c.is_ascii_digit());
    let missing: Vec<_> = digits(&sources).difference(&digits(PAGE)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new(), "advisories that docs/advisories.md lacks");
}
