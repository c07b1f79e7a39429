//! Rust source as far as ties between modules need it: without comments, contents of literals, and test code.
//!
//! This does not parse the whole language: it knows comments, literals and balanced brackets, and relies on rustfmt's
//! style.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// All Rust files in a folder and the folders in it.
///
/// # Errors
/// When a folder cannot be read.
pub(crate) fn rust_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The source, with spaces in place of comments and the contents of literals. Line breaks stay, so that lines keep
/// their numbers.
pub(crate) fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => end_of_line(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => end_of_block_comment(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'r' if !follows_identifier(bytes, at) => end_of_raw_string(bytes, at),
            b'\'' => end_of_char(source, at),
            _ => at + 1,
        };
        if end > at + 1 {
            code[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
        at = end;
    }
    String::from_utf8_lossy(&code).into_owned()
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

/// Block comments nest.
fn end_of_block_comment(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(bytes.len())
}

fn end_of_string(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (end + 1).min(bytes.len())
}

/// `r"..."` and `r#"..."#`; `at + 1` for any other word that begins with r.
fn end_of_raw_string(bytes: &[u8], at: usize) -> usize {
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    let inside = at + 1 + hashes + 1;
    if bytes.get(inside - 1) != Some(&b'"') {
        return at + 1;
    }
    let closing = [&b"\""[..], &vec![b'#'; hashes]].concat();
    let found = bytes[inside..].windows(closing.len()).position(|window| window == closing);
    found.map_or(bytes.len(), |length| inside + length + closing.len())
}

/// A `b` or `c` before an `r` belongs to the literal.
fn follows_identifier(bytes: &[u8], at: usize) -> bool {
    let before = bytes[..at].strip_suffix(b"b").or(bytes[..at].strip_suffix(b"c")).unwrap_or(&bytes[..at]);
    before.last().is_some_and(|byte| is_word(*byte))
}

/// The end of a character literal, or of the quote of a lifetime.
fn end_of_char(source: &str, at: usize) -> usize {
    let mut rest = source[at + 1..].char_indices();
    match rest.next() {
        Some((_, '\\')) => {
            // The escaped character may be a quote itself.
            let closing = source[at + 3..].find('\'');
            closing.map_or(source.len(), |length| at + 3 + length + 1)
        }
        Some(_) => match rest.next() {
            Some((length, '\'')) => at + 1 + length + 1,
            _ => at + 1,
        },
        None => at + 1,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// `code` (of [`code_only`]) without the items that only tests are built with, and the names of the modules among them
/// that are files of their own.
pub(crate) fn without_tests(code: &str) -> (String, Vec<String>) {
    let mut kept = code.as_bytes().to_vec();
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("#[cfg(") {
        let attribute = balanced(code, at + 1);
        if !is_test(&code[at + "#[cfg(".len()..attribute]) {
            continue;
        }
        let item = after_attributes(code, attribute);
        let end = end_of_item(code, item);
        modules.extend(declared_module(&code[item..end]).map(str::to_owned));
        kept[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    (String::from_utf8_lossy(&kept).into_owned(), modules)
}

/// The name in `mod name;`.
fn declared_module(item: &str) -> Option<&str> {
    let name = item.strip_suffix(';')?.split("mod ").nth(1)?.trim();
    name.bytes().all(is_word).then_some(name)
}

/// Whether a predicate holds in tests only: `test`, or `all(...)` with it.
fn is_test(predicate: &str) -> bool {
    let inside = predicate.strip_prefix("all(").unwrap_or(predicate);
    inside.split([',', ')']).next().is_some_and(|first| first.trim() == "test")
}

/// The index after the bracket that closes the one at `at`.
fn balanced(code: &str, at: usize) -> usize {
    let mut depth = 0;
    for (offset, c) in code[at..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + offset + c.len_utf8();
        }
    }
    code.len()
}

fn after_attributes(code: &str, mut at: usize) -> usize {
    loop {
        at += code[at..].len() - code[at..].trim_start().len();
        if !code[at..].starts_with("#[") {
            return at;
        }
        at = balanced(code, at + 1);
    }
}

/// The end of the item that begins at `at`: an item of a module, a field, or an arm.
fn end_of_item(code: &str, at: usize) -> usize {
    let ends_with_braces = ["fn", "mod", "impl", "struct", "enum", "trait", "union", "macro_rules", "extern"];
    let ends_with_semicolon = ["use", "const", "static", "type", "let"];
    let qualifiers = ["pub", "unsafe", "async", "crate", "super", "in"];
    let words =
        code[at..].split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let mut words = words.skip_while(|word| qualifiers.contains(word));
    let first = words.next().unwrap_or_default();
    let is_function = first == "fn" || words.next() == Some("fn");
    let braces_end = is_function || ends_with_braces.contains(&first);
    let only_semicolon_ends = !is_function && ends_with_semicolon.contains(&first);
    let mut here = at;
    while let Some(c) = code[here..].chars().next() {
        match c {
            ';' => return here + 1,
            ',' if !braces_end && !only_semicolon_ends => return here + 1,
            '}' | ')' | ']' => return here,
            '{' if !only_semicolon_ends => return balanced(code, here),
            '{' | '(' | '[' => here = balanced(code, here),
            _ => here += c.len_utf8(),
        }
    }
    here
}

/// Whether `code` contains the keyword.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    words(code, word).next().is_some()
}

/// The indices at which `word` is a whole word.
pub(crate) fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        let after = bytes.get(at + word.len());
        !before.is_some_and(|byte| is_word(*byte)) && !after.is_some_and(|byte| is_word(*byte))
    })
}
