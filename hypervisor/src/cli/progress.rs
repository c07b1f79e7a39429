//! One line of progress on a terminal; nothing anywhere else.
//!
//! A progress-bar crate would do more, and needs floating-point powers for it: loading libm for them cost every
//! start of the program, `run` included, 70 us of the guest's way to its first byte.

use std::io::{self, IsTerminal, Write};

/// The line. Dropping it removes it.
#[derive(Debug)]
pub(super) struct ProgressLine<W: Write> {
    /// The terminal, if standard error is one.
    to: Option<W>,
}

impl ProgressLine<io::Stderr> {
    /// A line on standard error, if that is a terminal.
    pub(super) fn stderr() -> Self {
        let to = io::stderr();
        Self { to: to.is_terminal().then_some(to) }
    }
}

impl<W: Write> ProgressLine<W> {
    /// Shows what is being done now, and how much has been done.
    pub(super) fn show(&mut self, done: usize, total: usize, what: &str) {
        if let Some(to) = &mut self.to {
            // Progress that cannot be shown does not end the run.
            let _ = write!(to, "\r\x1b[K[{}/{total}] {what}", done + 1).and_then(|()| to.flush());
        }
    }
}

impl<W: Write> Drop for ProgressLine<W> {
    fn drop(&mut self) {
        if let Some(to) = &mut self.to {
            let _ = to.write_all(b"\r\x1b[K").and_then(|()| to.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_replaces_itself_and_leaves_nothing() {
        let mut shown = Vec::new();
        let mut line = ProgressLine { to: Some(&mut shown) };
        line.show(0, 2, "a");
        line.show(1, 2, "b");
        drop(line);
        assert_eq!(shown, b"\r\x1b[K[1/2] a\r\x1b[K[2/2] b\r\x1b[K");
    }
}
