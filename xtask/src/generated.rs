//! Files, and parts of files, that are generated from others: a check compares them, or writes them on demand.

use std::fs;
use std::path::Path;

use crate::checks::Run;
use crate::command::Outcome;

/// After the part of a page that is generated; before it stands a comment that names the check.
const END: &str = "<!-- end of what is generated -->\n";

/// Checks that `file` has the contents `expected`; the error says how to generate it.
pub(crate) fn whole(with: &Run, file: &str, expected: &str, check: &str) -> Outcome {
    let path = with.root.join(file);
    if fs::read_to_string(&path).is_ok_and(|text| text == expected) {
        return Ok(());
    }
    if !with.write {
        return Err(format!("{file} is not up to date: cargo xtask {check} --write"));
    }
    println!("writing {file}");
    fs::write(&path, expected).map_err(|error| cannot("write", &path, &error))
}

/// The same for the part of a page between the two comments that mark it as generated.
pub(crate) fn part(with: &Run, file: &str, expected: &str, check: &str) -> Outcome {
    let path = with.root.join(file);
    let text = fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))?;
    let begin = format!("<!-- generated: cargo xtask {check} -->\n");
    let before = text.split_once(&begin).map(|(before, _)| before);
    let after = text.split_once(END).map(|(_, after)| after);
    let (Some(before), Some(after)) = (before, after) else {
        return Err(format!("{file} lacks the lines {begin}and {END}"));
    };
    whole(with, file, &format!("{before}{begin}\n{expected}\n{END}{after}"), check)
}

/// The message for an error of a file.
pub(crate) fn cannot(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}
