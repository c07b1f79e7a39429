//! Names that strangers chose, made fit for a terminal.
//!
//! File names, symbols and source paths come from outside. Printed as they are, their control characters drive
//! the reader's terminal, and their bidirectional and invisible characters show another name than the real one
//! (Unicode Technical Report 36, section 2.6; "Trojan Source"). Whatever prints such a name for people uses this
//! module. JSON does not need it: its writer escapes control characters, and programs read the name itself.

use std::fmt::{self, Display, Write};
use std::path::Path;

/// Displays a name with everything escaped that a reader would not see as a character of the name.
///
/// Letters, digits, punctuation and symbols of every script stay as they are. A byte that is not UTF-8 shows
/// as U+FFFD.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(&'a str);

/// The name, fit for a terminal.
pub const fn printable(name: &str) -> Printable<'_> {
    Printable(name)
}

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| if misleads(c) { write_escaped(f, c) } else { f.write_char(c) })
    }
}

/// Displays a path, fit for a terminal.
#[derive(Clone, Copy, Debug)]
pub struct PrintablePath<'a>(&'a Path);

/// The path, fit for a terminal. Use it wherever [`Path::display`] would be printed for people.
pub fn path<P: AsRef<Path> + ?Sized>(path: &P) -> PrintablePath<'_> {
    PrintablePath(path.as_ref())
}

impl Display for PrintablePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.0.to_string_lossy()).fmt(f)
    }
}

/// Displays a message that may have several lines, fit for a terminal.
#[derive(Clone, Copy, Debug)]
pub struct PrintableLines<'a>(&'a str);

/// The message, fit for a terminal. Names in it that came from outside went through [`printable`] or [`path`]
/// before: otherwise they could add lines of their own.
pub const fn lines(message: &str) -> PrintableLines<'_> {
    PrintableLines(message)
}

impl Display for PrintableLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keep = |c| !misleads(c) || c == '\n';
        self.0.chars().try_for_each(|c| if keep(c) { f.write_char(c) } else { write_escaped(f, c) })
    }
}

fn write_escaped(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    write!(f, "{}", c.escape_unicode())
}

/// Whether a character moves the cursor, reorders its neighbours or cannot be seen.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use crate::text::printable::*;

    #[test]
    fn control_and_bidirectional_characters_are_escaped() {
        assert_eq!(printable("a\x1b[2Jb\nc").to_string(), r"a\u{1b}[2Jb\u{a}c");
        assert_eq!(printable("kernel\u{202e}fle.exe").to_string(), r"kernel\u{202e}fle.exe");
        assert_eq!(printable("a\u{200b}b\u{9b}").to_string(), r"a\u{200b}b\u{9b}");
    }

    #[test]
    fn names_of_every_script_stay_readable() {
        for name in ["disk.img", "core::fmt::Write", "große Scheibe", "ядро", "内核", "a\\b c"] {
            assert_eq!(printable(name).to_string(), name);
        }
    }

    #[test]
    fn messages_keep_their_lines() {
        assert_eq!(lines("a\nb\rc\x1b").to_string(), "a\nb\\u{d}c\\u{1b}");
    }

    #[test]
    fn paths_that_are_not_utf8_are_shown() {
        assert_eq!(path(OsStr::from_bytes(b"/a\xff\x07")).to_string(), "/a\u{fffd}\\u{7}");
    }
}
