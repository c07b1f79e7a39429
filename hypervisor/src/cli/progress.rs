//! One line of progress on a terminal; nothing anywhere else.
//!
//! A progress-bar crate would do more, and needs floating-point powers for it: loading libm for them cost every
//! start of the program, `run` included, 70 us of the guest's way to its first byte.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// The line. Dropping it removes it.
#[derive(Debug)]
pub(super) struct ProgressLine<W: Write> {
    /// The terminal, if standard error is one.
    to: Option<W>,
    since: Instant,
}

impl ProgressLine<io::Stderr> {
    /// A line on standard error, if that is a terminal.
    pub(super) fn stderr() -> Self {
        let to = io::stderr();
        Self { to: to.is_terminal().then_some(to), since: Instant::now() }
    }
}

impl<W: Write> ProgressLine<W> {
    /// Shows what is being done now, and how much has been done.
    pub(super) fn show(&mut self, done: usize, total: usize, what: &str) {
        let left = left(self.since.elapsed(), done, total);
        if let Some(to) = &mut self.to {
            // Progress that cannot be shown does not end the run.
            let _ = write!(to, "\r\x1b[K[{}/{total}{left}] {what}", done + 1).and_then(|()| to.flush());
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

/// How long the rest takes at the pace so far; nothing while too little is done to say, or little is left.
fn left(elapsed: Duration, done: usize, total: usize) -> String {
    let rest = elapsed.as_secs_f64() * total.saturating_sub(done) as f64 / done.max(1) as f64;
    match rest {
        _ if done < 5 || rest < 10.0 => String::new(),
        rest if rest < 100.0 => format!(", {rest:.0} s left"),
        rest => format!(", {:.0} min left", rest / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_once_it_is_known() {
        let left = |seconds, done| left(Duration::from_secs(seconds), done, 100);
        assert_eq!([left(1000, 4), left(9, 50), left(100, 99)], ["", "", ""]);
        assert_eq!([left(20, 25), left(600, 50)], [", 60 s left", ", 10 min left"]);
    }

    #[test]
    fn the_line_replaces_itself_and_leaves_nothing() {
        let mut shown = Vec::new();
        let mut line = ProgressLine { to: Some(&mut shown), since: Instant::now() };
        line.show(0, 2, "a");
        line.show(1, 2, "b");
        drop(line);
        assert_eq!(shown, b"\r\x1b[K[1/2] a\r\x1b[K[2/2] b\r\x1b[K");
    }
}
