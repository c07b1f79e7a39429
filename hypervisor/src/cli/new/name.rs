//! Names that cargo takes for a package and its program.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::text::printable;

/// Crates that a kernel of the same name would hide.
const TAKEN: [&str; 6] = ["alloc", "core", "std", "test", "paravane_abi", "paravane_guest"];
/// Words that `use` and `mod` could not name (Rust reference, "Keywords").
const KEYWORDS: [&str; 51] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop",
    "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static",
    "struct", "super", "trait", "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual",
    "where", "while", "yield",
];

/// The name of the kernel in a folder.
pub(super) fn of(folder: &Path) -> anyhow::Result<&str> {
    let shown = || printable::path(folder).to_string();
    let name = folder.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} does not end with a name for the kernel", shown()))?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ensure!(
        name.chars().all(good) && name.starts_with(|c: char| c.is_ascii_alphabetic()),
        "{:?} is no name for a package: it begins with a letter and has letters, digits, `-` and `_` only",
        name
    );
    let krate = name.replace('-', "_");
    ensure!(
        !KEYWORDS.contains(&krate.as_str()) && !TAKEN.contains(&krate.as_str()),
        "a kernel cannot be called `{name}`: Rust uses the word itself, choose another"
    );
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_would_refuse_is_refused_first() {
        for good in ["k", "my-kernel", "a/b/My_kernel2", "k/"] {
            assert!(of(Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["", "/", "..", "2k", "-k", "ker nel", "kern\u{e9}l", "test", "fn", "core", "paravane-abi"]
        {
            assert!(of(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
