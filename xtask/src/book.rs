//! The book: its table of contents has every page, no link is dead, every file that a page names exists, and mdBook
//! builds it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::checks::Run;
use crate::command::{Outcome, cargo, program, run};
use crate::generated::cannot;
use crate::markdown::{Page, anchors, code_spans, links, pages};

/// The version that builds the book.
const MDBOOK: &str = "0.5.4";
/// The folder in which cargo installs mdBook, which the package managers of most machines lack.
const TOOLS: &str = "target/tools";
const SUMMARY: &str = "docs/SUMMARY.md";

/// The check: table of contents, links, and the build.
pub(crate) fn check(with: &Run) -> Outcome {
    let pages = pages(&with.root).map_err(|error| cannot("read", &with.root.join("docs"), &error))?;
    let faults = faults(&pages, &with.root);
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        return Err(format!("{} faults in the documentation", faults.len()));
    }
    let mdbook = installed(with)?;
    run(program(&with.root, mdbook).arg("build"))
}

/// Pages that the table of contents lacks, dead links, and names of files that do not exist.
fn faults(pages: &[Page], root: &Path) -> Vec<String> {
    let by_path: BTreeMap<&Path, &Page> = pages.iter().map(|page| (page.path.as_path(), page)).collect();
    let summary = by_path.get(Path::new(SUMMARY)).map_or("", |page| page.text.as_str());
    let listed: Vec<PathBuf> =
        links(summary).iter().map(|(_, target)| Path::new("docs").join(target)).collect();
    let mut faults = Vec::new();
    for page in pages {
        let is_in_book = page.path.starts_with("docs") && page.path != Path::new(SUMMARY);
        if is_in_book && !listed.contains(&page.path) {
            faults.push(format!("{}: not in {SUMMARY}", page.path.display()));
        }
        for (line, target) in links(&page.text) {
            if let Err(why) = follow(page, &target, &by_path, root) {
                faults.push(format!("{}:{line}: {target} {why}", page.path.display()));
            }
        }
        let spans = code_spans(&page.text).into_iter();
        faults.extend(
            spans
                .filter(|(_, span)| is_gone(span, root))
                .map(|(line, span)| format!("{}:{line}: there is no file {span}", page.path.display())),
        );
    }
    faults
}

/// Whether a span names a file or folder of the source that does not exist. Pages give paths from the folder of the
/// workspace, or from that of the hypervisor's source, and may name an item behind `::`.
fn is_gone(span: &str, root: &Path) -> bool {
    const SOURCE: [&str; 7] =
        ["abi/", "docs/", "guest-kernel/", "guest-sdk/", "hypervisor/", "tests/", "xtask/"];
    let path = span.split("::").next().unwrap_or(span);
    let is_path = path.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let is_source = SOURCE.iter().any(|folder| path.starts_with(folder));
    // `X/tests.rs` stands for any module.
    let is_file = path.contains('/') && path.ends_with(".rs") && !path.starts_with("X/");
    let is_in_room = path
        .split_once('/')
        .is_some_and(|(room, _)| !room.is_empty() && root.join("hypervisor/src").join(room).is_dir());
    let exists = |folder: &str| root.join(folder).join(path).exists();
    is_path && (is_source || is_file || is_in_room) && !exists("") && !exists("hypervisor/src")
}

/// Checks a link to a file of this repository. Links that lead out of it are not checked.
fn follow(
    page: &Page,
    target: &str,
    pages: &BTreeMap<&Path, &Page>,
    root: &Path,
) -> Result<(), &'static str> {
    if target.contains("://") {
        return Ok(());
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let here = page.path.parent().unwrap_or(Path::new(""));
    let path = if file.is_empty() { page.path.clone() } else { normal(&here.join(file)) };
    if page.path.starts_with("docs") && !path.starts_with("docs") {
        return Err("leads out of the book");
    }
    if let Some(to) = pages.get(path.as_path()) {
        let is_there = anchor.is_empty() || anchors(&to.text).iter().any(|heading| heading == anchor);
        return if is_there { Ok(()) } else { Err("names no heading of that page") };
    }
    let is_in_book = page.path.starts_with("docs");
    let path = root.join(path);
    // A forge can show a folder, the book cannot.
    if path.is_file() || (path.is_dir() && !is_in_book) { Ok(()) } else { Err("is not there") }
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = normal.pop(),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

/// mdBook, compiled and kept in the target folder the first time: without optimization and its server and search, which
/// takes a third of the time.
fn installed(with: &Run) -> Result<PathBuf, String> {
    let mdbook = with.root.join(TOOLS).join("bin/mdbook");
    let version = Command::new(&mdbook).arg("--version").output().map(|output| output.stdout);
    if version.is_ok_and(|version| version.ends_with(format!(" v{MDBOOK}\n").as_bytes())) {
        return Ok(mdbook);
    }
    let mut command = cargo(&with.root);
    command.args(["install", "mdbook", "--version", MDBOOK, "--locked", "--no-default-features", "--debug"]);
    command.args(["--force", "--quiet", "--root", TOOLS]).env("CARGO_PROFILE_DEV_DEBUG", "0");
    run(&mut command)?;
    Ok(mdbook)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over the documentation as it is.
    #[test]
    fn every_page_is_in_the_book_and_no_link_is_dead() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let faults = faults(&pages(root).unwrap(), root);
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    #[test]
    fn dead_links_and_missing_pages_are_found() {
        let page = |path: &str, text: &str| Page { path: path.into(), text: text.to_owned() };
        let pages = [
            page(
                "README.md",
                "[a](docs/a.md#one) [b](docs/b.md) [c](https://example.org/) [d](docs/a.md#two)",
            ),
            page("docs/SUMMARY.md", "[a](a.md)"),
            page("docs/a.md", "# One\n[here](#one) [out](../README.md) [none](none.md)"),
            page(
                "docs/sub/c.md",
                "[up](../a.md), `hypervisor/src/gone.rs`, `engine/gone.rs::f`, `X/a.rs`, `a/b`, `fn`, `/init`",
            ),
        ];
        let expected = [
            "README.md:1: docs/b.md is not there",
            "README.md:1: docs/a.md#two names no heading of that page",
            "docs/a.md:2: ../README.md leads out of the book",
            "docs/a.md:2: none.md is not there",
            "docs/sub/c.md: not in docs/SUMMARY.md",
            "docs/sub/c.md:1: there is no file hypervisor/src/gone.rs",
            "docs/sub/c.md:1: there is no file engine/gone.rs::f",
        ];
        assert_eq!(faults(&pages, Path::new("/nowhere")), expected);
    }
}
