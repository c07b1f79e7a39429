//! The parts of Markdown that the checks need: fences, headings, links.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A page, with its path from the folder of the workspace.
pub(crate) struct Page {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A block between fences.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fence<'a> {
    /// The number of the line with the opening fence, from 1.
    pub(crate) line: usize,
    /// The line before it, if there is one.
    pub(crate) before: &'a str,
    /// The info string after the opening fence.
    pub(crate) tag: &'a str,
    pub(crate) body: Vec<&'a str>,
}

/// README.md and the other pages of the top level, and all of docs/, sorted.
///
/// # Errors
/// When a folder or page cannot be read.
pub(crate) fn pages(root: &Path) -> io::Result<Vec<Page>> {
    let mut paths = markdown_in(root)?;
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        paths.extend(markdown_in(&folder)?);
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    paths.sort();
    let page = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        Ok(Page { path: path.strip_prefix(root).unwrap_or(&path).to_owned(), text })
    };
    paths.into_iter().map(page).collect()
}

fn markdown_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// All fenced blocks of a page.
pub(crate) fn fences(text: &str) -> Vec<Fence<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut fences = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        if let Some(tag) = lines[at].strip_prefix("```") {
            let length = lines[at + 1..].iter().take_while(|line| !line.starts_with("```")).count();
            let before = at.checked_sub(1).map_or("", |before| lines[before]);
            let body = lines[at + 1..at + 1 + length].to_vec();
            fences.push(Fence { line: at + 1, before, tag: tag.trim(), body });
            at += 1 + length;
        }
        at += 1;
    }
    fences
}

/// A page's prose: lines in fences and text in backquotes are blank.
fn prose(text: &str) -> String {
    let mut in_fence = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence {
            let outside = line.split('`').enumerate().filter(|(index, _)| index % 2 == 0);
            prose.extend(outside.map(|(_, part)| part));
        }
        prose.push('\n');
    }
    prose
}

/// The targets of a page's links and pictures, each with its line.
pub(crate) fn links(text: &str) -> Vec<(usize, String)> {
    let prose = prose(text);
    let mut links = Vec::new();
    for (index, line) in prose.lines().enumerate() {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        links.extend(targets.map(|(target, _)| (index + 1, target.to_owned())));
    }
    links
}

/// The texts in backquotes, each with its line; fences are left out.
pub(crate) fn code_spans(text: &str) -> Vec<(usize, &str)> {
    let mut in_fence = false;
    let mut spans = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence {
            spans.extend(line.split('`').skip(1).step_by(2).map(|span| (index + 1, span)));
        }
    }
    spans
}

/// The anchors of a page's headings, as forges and mdBook generate them.
pub(crate) fn anchors(text: &str) -> Vec<String> {
    let mut in_fence = false;
    let mut anchors = Vec::new();
    for line in text.lines() {
        in_fence ^= line.starts_with("```");
        if let Some(heading) = line.trim_start_matches('#').strip_prefix(' ')
            && line.starts_with('#')
            && !in_fence
        {
            let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            anchors.push(kept.collect::<String>().to_lowercase().replace(' ', "-"));
        }
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A page, `code` and all\n\nSee [x](a.md#b) and `[y](no.md)`.\n<!-- m -->\n```rust\n\
                        # [z](no.md)\n```\n## End\n![p](p.svg)\n";

    #[test]
    fn fences_have_tag_body_and_what_is_before() {
        let fence = Fence { line: 5, before: "<!-- m -->", tag: "rust", body: vec!["# [z](no.md)"] };
        assert_eq!(fences(PAGE), [fence]);
    }

    #[test]
    fn links_and_anchors_are_those_of_prose() {
        assert_eq!(links(PAGE), [(3, "a.md#b".to_owned()), (9, "p.svg".to_owned())]);
        assert_eq!(code_spans(PAGE), [(1, "code"), (3, "[y](no.md)")]);
        assert_eq!(anchors(PAGE), ["a-page-code-and-all", "end"]);
    }
}
