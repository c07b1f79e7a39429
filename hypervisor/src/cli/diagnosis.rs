//! What the host does and why, line by line on standard error: `run -v` and `run --log LEVEL`.
//!
//! The program says it through the macros of the crate `tracing`, which cost a look at one word while nobody has asked.
//! Lines go the way of all others to the user (`host::notice`): a terminal that nobody reads holds up no end.
//!
//! What may not be done here: deciding what is worth saying. The place that knows says it, at a level that fits:
//! `info` once for a run, `debug` for what its kernel's author may want to know, `trace` for all else.

use std::fmt::{Debug, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter};

use crate::host::notice::notice;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Verbosity {
    /// What is wrong
    Warn,
    /// What runs the guest and why, and how it ended
    Info,
    /// Steps of the start, refused hypercalls, exceptions of the kernel
    Debug,
    /// Everything, of libraries too
    Trace,
}

impl Verbosity {
    /// What so many `-v` mean; `None` without one.
    pub(super) const fn of_flags(count: u8) -> Option<Self> {
        match count {
            0 => None,
            1 => Some(Self::Info),
            2 => Some(Self::Debug),
            _ => Some(Self::Trace),
        }
    }

    const fn level(self) -> Level {
        match self {
            Self::Warn => Level::WARN,
            Self::Info => Level::INFO,
            Self::Debug => Level::DEBUG,
            Self::Trace => Level::TRACE,
        }
    }
}

/// From now on it is said what the host does.
pub(super) fn begin(verbosity: Verbosity) {
    // Only a program that calls this twice has one already.
    let _ = tracing::subscriber::set_global_default(Lines(verbosity.level()));
}

/// Writes each event as a line.
struct Lines(Level);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.0
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.0))
    }

    fn event(&self, event: &Event<'_>) {
        notice(line(event));
    }

    // Spans are not used: all of them are the same one.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn line(event: &Event<'_>) -> String {
    let metadata = event.metadata();
    let target = metadata.target();
    // Of ours the room is enough.
    let place = target.strip_prefix("paravane::").unwrap_or(target);
    let level = metadata.level().as_str().to_ascii_lowercase();
    let mut text = Text { line: format!("{level}: {place}: "), fields: String::new() };
    event.record(&mut text);
    text.line + &text.fields
}

struct Text {
    line: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // A String takes everything.
        let _ = match field.name() {
            "message" => write!(self.line, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps the lines.
    struct Kept(Lines, Arc<Mutex<Vec<String>>>);

    impl Subscriber for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            self.0.enabled(metadata)
        }
        fn event(&self, event: &Event<'_>) {
            self.1.lock().unwrap().push(line(event));
        }
        fn new_span(&self, span: &Attributes<'_>) -> Id {
            self.0.new_span(span)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn an_event_is_a_line_with_its_place_and_fields() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let verbosity = Verbosity::of_flags(2).unwrap();
        let kept = Kept(Lines(verbosity.level()), lines.clone());
        tracing::subscriber::with_default(kept, || {
            tracing::debug!(errno = "EBUSY", frames = 3, "refused: {}", 7);
            tracing::trace!("not this");
            let _span = tracing::error_span!("nor this").entered();
            tracing::info!(target: "imago", "another's");
        });
        let lines = lines.lock().unwrap();
        let [ours, others] = lines.as_slice() else { panic!("{lines:?}") };
        assert_eq!(ours, "debug: cli::diagnosis::tests: refused: 7 errno=EBUSY frames=3");
        assert_eq!(others, "info: imago: another's");
    }

    #[test]
    fn more_flags_say_more() {
        let levels = [0, 1, 2, 3, 255].map(|count| Verbosity::of_flags(count).map(Verbosity::level));
        let (info, debug, trace) = (Some(Level::INFO), Some(Level::DEBUG), Some(Level::TRACE));
        assert_eq!(levels, [None, info, debug, trace, trace]);
    }
}
