//! Listings in the documentation are parts of files that are built: each names its file in a comment before its fence,
//!
//! ```text
//! <!-- listing: FILE -->  or  <!-- listing: FILE#ANCHOR -->
//! ```
//!
//! and has the same lines, without their common indentation. An anchor is what stands between `ANCHOR: name` and
//! `ANCHOR_END: name`, mdBook's own words. The files are those of projects that `paravane new` writes, and are built and
//! booted as such: see `projects`.

use std::fs;
use std::path::Path;

use crate::checks::Run;
use crate::command::Outcome;
use crate::generated::cannot;
use crate::markdown::{Fence, Page, fences, pages};
use crate::projects;

/// The languages of listings that are built.
const BUILT: [&str; 2] = ["rust", "toml"];
/// The tags of listings that are not built.
const NOT_BUILT: [&str; 3] = ["console", "text", "json"];

/// The check: pages against files, and the files built and booted.
pub(crate) fn check(with: &Run) -> Outcome {
    let pages = pages(&with.root).map_err(|error| cannot("read", &with.root.join("docs"), &error))?;
    for page in &pages {
        let faults = compare(page, &with.root);
        if with.write {
            write(page, &with.root)?;
        } else if let Some(fault) = faults.first() {
            return Err(fault.clone());
        }
    }
    projects::check(with)
}

/// The faults in a page's listings.
fn compare(page: &Page, root: &Path) -> Vec<String> {
    let mut faults = Vec::new();
    for fence in fences(&page.text) {
        let place = format!("{}:{}", page.path.display(), fence.line);
        match source(&fence) {
            Some(source) => match excerpt(root, source) {
                Ok(lines) if lines == fence.body => {}
                Ok(_) => faults.push(format!("{place}: not what {source} has: cargo xtask listings --write")),
                Err(why) => faults.push(format!("{place}: {why}")),
            },
            None if BUILT.iter().any(|language| fence.tag.starts_with(language)) => {
                faults
                    .push(format!("{place}: a listing without `<!-- listing: FILE -->` on the line before"));
            }
            None if !NOT_BUILT.contains(&fence.tag) => {
                faults.push(format!("{place}: tagged {:?}, not one of {}", fence.tag, NOT_BUILT.join(", ")));
            }
            None => {}
        }
    }
    faults
}

/// The file, and the anchor in it, that a listing names.
fn source<'a>(fence: &Fence<'a>) -> Option<&'a str> {
    fence.before.strip_prefix("<!-- listing: ")?.strip_suffix(" -->")
}

/// The lines that a listing must have.
fn excerpt(root: &Path, source: &str) -> Result<Vec<String>, String> {
    let (file, anchor) = source.split_once('#').unwrap_or((source, ""));
    let path = root.join(file);
    let text = fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))?;
    let lines: Vec<&str> = text.lines().collect();
    if anchor.is_empty() {
        return Ok(lines.into_iter().map(str::to_owned).collect());
    }
    let position = |mark: String| lines.iter().position(|line| line.trim_end().ends_with(&mark));
    let begin = position(format!(" ANCHOR: {anchor}"));
    let end = position(format!(" ANCHOR_END: {anchor}"));
    let (Some(begin), Some(end)) = (begin, end) else {
        return Err(format!("{file} has no ANCHOR: {anchor} with its ANCHOR_END"));
    };
    let lines = lines.get(begin + 1..end).unwrap_or_default();
    let indentation = |line: &&&str| line.len() - line.trim_start().len();
    let common = lines.iter().filter(|line| !line.trim().is_empty()).map(|line| indentation(&line)).min();
    Ok(lines.iter().map(|line| line.get(common.unwrap_or(0)..).unwrap_or_default().to_owned()).collect())
}

/// Writes the page again with the lines that its listings must have.
fn write(page: &Page, root: &Path) -> Outcome {
    let mut lines: Vec<String> = page.text.lines().map(str::to_owned).collect();
    for fence in fences(&page.text).iter().rev() {
        if let Some(source) = source(fence) {
            lines.splice(fence.line..fence.line + fence.body.len(), excerpt(root, source)?);
        }
    }
    let text = lines.join("\n") + "\n";
    let path = root.join(&page.path);
    if text == page.text {
        return Ok(());
    }
    println!("writing {}", page.path.display());
    fs::write(&path, text).map_err(|error| cannot("write", &path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over the documentation as it is.
    #[test]
    fn listings_are_what_is_built() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let faults: Vec<String> = pages(root).unwrap().iter().flat_map(|page| compare(page, root)).collect();
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    #[test]
    fn a_listing_without_a_file_or_tag_is_a_fault() {
        let folder = std::env::temp_dir().join(format!("paravane-listings-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("a.rs"),
            "fn f() {\n    // ANCHOR: x\n    g();\n\n    h();\n    // ANCHOR_END: x\n}\n",
        )
        .unwrap();
        let faults = |text: &str| {
            let page = Page { path: "page.md".into(), text: text.to_owned() };
            compare(&page, &folder)
        };
        let good = "<!-- listing: a.rs#x -->\n```rust\ng();\n\nh();\n```\n```console\n$ x\n```\n";
        assert_eq!(faults(good), Vec::<String>::new());
        assert_eq!(faults(&good.replace("g();", "f();")).len(), 1);
        assert_eq!(faults(&good.replace("#x", "#y")).len(), 1);
        assert_eq!(faults(&good.replace("a.rs", "b.rs")).len(), 1);
        assert_eq!(faults(&good.replace("<!--", "<-")).len(), 1);
        assert_eq!(faults(&good.replace("console", "")).len(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
