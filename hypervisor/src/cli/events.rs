//! `run --events`: what becomes of a run, for the program that supervises it, one JSON object a line.
//!
//! A line is written when its event happens. Nothing here is on the exit path, and a supervisor that went away or does
//! not read is no reason to end the guest or to hold it up: a line for which there is no room is dropped, and the next
//! one that is written says how many were. Where a long line finds room for its beginning only, the rest of it goes
//! before the next line, so that lines are whole.
//!
//! What may not be done here: deciding anything by an event, or waiting for a reader.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use serde::Serialize;

use crate::host::limit::Advice;
use crate::host::notice::{self, notice};
use crate::machine::console::ConsoleSink;
use crate::text::printable;

/// Where events go: what `--events` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EventsTo {
    /// A descriptor that the program was started with.
    Descriptor(libc::c_int),
    /// A file, to whose end they are appended.
    File(PathBuf),
}

impl FromStr for EventsTo {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| Self::File(text.into()), Self::Descriptor))
    }
}

/// Events cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum EventsError {
    /// The file cannot be opened.
    #[error("cannot write events to {}: {error}{}", printable::path(path), Advice::of_files(error))]
    File {
        /// Which file.
        path: PathBuf,
        /// What the host says.
        error: io::Error,
    },
    /// There is no such descriptor.
    #[error(
        "cannot write events to descriptor {number}: {error}; open it for this program, as a shell does by \
         {number}>FILE, or name a file"
    )]
    Descriptor {
        /// Which one.
        number: libc::c_int,
        /// What the host says.
        error: io::Error,
    },
}

/// What happens to a run.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Event<'a> {
    /// The program has begun to start a guest.
    Starting {
        /// Its process.
        pid: u32,
        /// What the kernel is called.
        image: &'a str,
        /// Guest memory in bytes.
        memory: u64,
    },
    /// The guest is about to execute its first instruction.
    Started {
        /// What runs it: "kvm", "process" or "interpreter".
        engine: &'a str,
        /// How it is virtualized.
        technique: &'a str,
    },
    /// The guest's first output has been written.
    FirstOutput,
    /// A device was stopped for what its driver did.
    Device {
        /// Which one.
        device: &'a str,
        /// Why, in words.
        problem: String,
    },
    /// The guest stands still.
    Paused,
    /// It goes on.
    Resumed,
    /// The guest was to be saved.
    Saved {
        /// To which file.
        file: &'a str,
        /// Why it was not, in words.
        #[serde(skip_serializing_if = "Option::is_none")]
        problem: Option<&'a str>,
    },
    /// The run is over.
    Ended {
        /// The exit status of the program.
        status: u8,
        /// Why, in words.
        reason: String,
    },
}

/// A line: an event, and when.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event<'a>,
    /// Nanoseconds since the program began.
    ns: u128,
    /// Milliseconds since 1970.
    unix_ms: u128,
    /// How many lines before this one were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
}

/// Where a run's events are written; clones write to the same place.
#[derive(Clone)]
pub(super) struct Events(Arc<Shared>);

struct Shared {
    out: Mutex<Out>,
    began: Instant,
}

/// Where lines go, and what did not go there.
struct Out {
    /// `None` once nobody reads them.
    file: Option<File>,
    /// The end of a line whose beginning has been written.
    rest: Vec<u8>,
    /// How many lines were dropped since the last one that was written.
    lost: u64,
}

impl Events {
    /// Opens what was named. Times count from `began`.
    pub(super) fn open(to: &EventsTo, began: Instant) -> Result<Self, EventsError> {
        let file = match to {
            EventsTo::Descriptor(number) => {
                duplicate(*number).map_err(|error| EventsError::Descriptor { number: *number, error })?
            }
            EventsTo::File(path) => File::options()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|error| EventsError::File { path: path.clone(), error })?,
        };
        Ok(Self(Arc::new(Shared {
            out: Mutex::new(Out { file: Some(file), rest: Vec::new(), lost: 0 }),
            began,
        })))
    }

    /// Writes an event, if there is room for it.
    pub(super) fn tell(&self, event: &Event<'_>) {
        let ns = self.0.began.elapsed().as_nanos();
        let unix_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis());
        let told = {
            let mut out = self.0.out.lock().unwrap_or_else(PoisonError::into_inner);
            let lost = Some(out.lost).filter(|lost| *lost != 0);
            out.tell(&Line { event, ns, unix_ms, lost })
        };
        // Without the lock: this one waits for a reader.
        if let Err(error) = told {
            notice(format_args!("events are no longer written: {error}{}", Advice::of_writes(&error)));
        }
    }
}

impl Out {
    /// Writes a line or drops it. After an error nothing more is written.
    fn tell(&mut self, line: &Line<'_>) -> io::Result<()> {
        let Ok(mut line) = serde_json::to_vec(line) else { return Ok(()) };
        line.push(b'\n');
        let Some(file) = self.file.take() else { return Ok(()) };
        if notice::is_deserted(file.as_fd()) {
            return Ok(());
        }
        let written = notice::write_now(file.as_fd(), &self.rest)?;
        self.rest.drain(..written);
        if self.rest.is_empty() {
            let written = notice::write_now(file.as_fd(), &line)?;
            self.lost = if written == 0 { self.lost + 1 } else { 0 };
            self.rest.extend(line.get(written..).filter(|_| written != 0).unwrap_or_default());
        } else {
            self.lost += 1;
        }
        self.file = Some(file);
        Ok(())
    }
}

/// A descriptor of our own for what `number` is.
fn duplicate(number: libc::c_int) -> io::Result<File> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number and touches no memory; any number may be asked for.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above made this descriptor, and nobody else has it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(copy) }))
}

/// A console's output, the first of which is an event.
pub(super) struct Announced<S> {
    sink: S,
    events: Option<Events>,
}

impl<S> Announced<S> {
    /// Tells `events` of the first output to `sink`.
    pub(super) fn new(sink: S, events: Option<Events>) -> Self {
        Self { sink, events }
    }
}

impl<S: ConsoleSink> ConsoleSink for Announced<S> {
    fn write(&mut self, bytes: &[u8]) {
        self.sink.write(bytes);
        if !bytes.is_empty()
            && let Some(events) = self.events.take()
        {
            events.tell(&Event::FirstOutput);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_number_is_a_descriptor_and_anything_else_a_file() {
        assert_eq!("3".parse(), Ok(EventsTo::Descriptor(3)));
        assert_eq!("./3".parse(), Ok(EventsTo::File("./3".into())));
        assert_eq!("3a".parse(), Ok(EventsTo::File("3a".into())));
        let error = Events::open(&EventsTo::Descriptor(1 << 20), Instant::now()).map(drop).unwrap_err();
        assert!(error.to_string().starts_with("cannot write events to descriptor 1048576: "), "{error}");
    }

    #[test]
    fn a_line_is_an_object_and_a_reader_that_left_is_no_error() {
        let (reader, writer) = io::pipe().unwrap();
        let events = Events::open(&EventsTo::Descriptor(writer.as_raw_fd()), Instant::now()).unwrap();
        drop(writer);
        struct Nowhere;
        impl ConsoleSink for Nowhere {
            fn write(&mut self, _: &[u8]) {}
        }
        let mut sink = Announced::new(Nowhere, Some(events.clone()));
        for bytes in [&b""[..], b"a", b"b"] {
            sink.write(bytes);
        }
        events.tell(&Event::Ended { status: 3, reason: "the guest \"crashed\"\n".to_owned() });
        let mut reader = BufReader::new(reader);
        let mut next = || {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            serde_json::from_str::<serde_json::Value>(&line).unwrap()
        };
        assert_eq!(next()["event"], "first-output");
        let end = next();
        assert_eq!((&end["event"], &end["status"]), (&"ended".into(), &3.into()));
        assert_eq!(end["reason"], "the guest \"crashed\"\n");
        assert!(end["ns"].as_u64().is_some_and(|ns| ns > 0) && end["unix_ms"].is_u64());
        drop(reader);
        events.tell(&Event::Paused);
        assert!(events.0.out.lock().unwrap().file.is_none());
        events.tell(&Event::Resumed);
        io::stderr().flush().unwrap();
    }
    /// A supervisor that does not read holds nothing up, and learns what it has missed.
    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let events = Events::open(&EventsTo::Descriptor(writer.as_raw_fd()), Instant::now()).unwrap();
        let mut filled = 0;
        while notice::has_room(writer.as_fd(), 0) {
            writer.write_all(&[b' '; notice::AT_ONCE]).unwrap();
            filled += notice::AT_ONCE;
        }
        events.tell(&Event::Paused);
        events.tell(&Event::Resumed);
        reader.read_exact(&mut vec![0; filled]).unwrap();
        events.tell(&Event::Paused);
        // Longer than the pipe is.
        let long = "x".repeat(2 * filled);
        events.tell(&Event::Ended { status: 1, reason: long.clone() });
        events.tell(&Event::Resumed);
        let mut reader = BufReader::new(reader);
        let mut next = |wanted: usize| {
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let piece = reader.fill_buf().unwrap();
                let end = piece.iter().position(|byte| *byte == b'\n').map_or(piece.len(), |at| at + 1);
                line.extend(&piece[..end]);
                reader.consume(end);
                if wanted != 0 && line.len() >= wanted {
                    // What did not fit goes before the next line.
                    events.tell(&Event::Resumed);
                }
            }
            serde_json::from_slice::<serde_json::Value>(&line).unwrap()
        };
        let first = next(0);
        assert_eq!((&first["event"], &first["lost"]), (&"paused".into(), &2.into()));
        let second = next(1);
        assert_eq!((&second["event"], second.get("lost")), (&"ended".into(), None));
        assert_eq!(second["reason"], long);
        let third = next(0);
        assert_eq!(third["event"], "resumed");
        assert!(third["lost"].as_u64().is_some_and(|lost| lost >= 1), "{third}");
    }
}
