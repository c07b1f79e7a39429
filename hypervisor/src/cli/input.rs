//! From the keyboard to the guest: the reading thread, and the escape key that it looks for.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::ending::{self, Asker};
use crate::host::limit::Advice;
use crate::host::notice;
use crate::host::notice::notice;
use crate::host::threads;
use crate::machine::console::ConsoleInput;
use crate::monitor::{Command, Control};

const ESCAPE: u8 = 0x01;

/// Shown for Ctrl-A h.
const HELP: &str = "\r
paravane: Ctrl-A x       leave: end the guest\r
          Ctrl-A s       print statistics of the run so far, and what each vCPU is doing\r
          Ctrl-A p       pause the guest, or let it go on\r
          Ctrl-A w       save the guest to the file of --snapshot-to\r
          Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
          Ctrl-A h       this help\r
";

/// Shown for Ctrl-A w where there is no file.
const NOT_SAVED: &str = "\r\nparavane: the guest is not saved: start it with --snapshot-to FILE\r\n";

/// What a typed byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed {
    Byte(u8),
    Nothing,
    Leave,
    Statistics,
    Pause,
    Save,
    Help,
}

/// Tells what is meant for us from what is meant for the guest.
#[derive(Debug, Default)]
struct Escapes {
    armed: bool,
}

impl Escapes {
    fn feed(&mut self, byte: u8) -> Typed {
        if !std::mem::take(&mut self.armed) {
            self.armed = byte == ESCAPE;
            return if self.armed { Typed::Nothing } else { Typed::Byte(byte) };
        }
        match byte {
            ESCAPE | b'a' => Typed::Byte(ESCAPE),
            b'x' | b'X' => Typed::Leave,
            b's' | b'S' => Typed::Statistics,
            b'p' | b'P' => Typed::Pause,
            b'w' | b'W' => Typed::Save,
            b'h' | b'H' | b'?' => Typed::Help,
            _ => Typed::Nothing,
        }
    }
}

/// Whose input standard input is: it cannot be two consoles'.
pub(super) enum Destination {
    /// That of the console that every guest has.
    Console(ConsoleInput),
    /// That of a device on standard input and output.
    Device(UnixStream),
}

/// The thread that reads standard input for a guest.
pub(super) struct Reader {
    /// Where typed bytes go.
    pub(super) to: Destination,
    /// What tells the domain that they came, and what the user asks for.
    pub(super) control: Control,
    /// Set when the user leaves.
    pub(super) left: Arc<AtomicBool>,
    /// Whether Ctrl-A is ours; only so on a terminal, a pipe may carry any byte.
    pub(super) escapes: bool,
    /// Called when the user leaves, to see to it that the run ends.
    pub(super) insist: fn(),
    /// Whether there is a file that the domain can be saved to.
    pub(super) saves: bool,
}

/// What reads standard input once it is started, which happens once; clones share it.
#[derive(Clone)]
pub(super) struct Keyboard(Arc<Starting>);

struct Starting {
    started: AtomicBool,
    parts: Mutex<Option<(Destination, Control, Arc<AtomicBool>)>>,
    escapes: bool,
    saves: AtomicBool,
}

impl std::fmt::Debug for Keyboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyboard").field("started", &self.0.started).finish_non_exhaustive()
    }
}

impl Keyboard {
    /// With the fields of [`Reader`].
    pub(super) fn new(to: Destination, control: Control, left: Arc<AtomicBool>, escapes: bool) -> Self {
        let parts = Mutex::new(Some((to, control, left)));
        let saves = AtomicBool::new(false);
        Self(Arc::new(Starting { started: AtomicBool::new(false), parts, escapes, saves }))
    }

    /// The same, where there is a file that the domain can be saved to.
    pub(super) fn saving(self, saves: bool) -> Self {
        self.0.saves.store(saves, Ordering::Relaxed);
        self
    }

    /// Whether [`Keyboard::start`] was called.
    pub(super) fn has_started(&self) -> bool {
        self.0.started.load(Ordering::Relaxed)
    }

    /// Starts the thread, if that was not done before. The guest must be about to run at least.
    pub(super) fn start(&self) {
        self.0.started.store(true, Ordering::Relaxed);
        let parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((to, control, left)) = parts else { return };
        let (escapes, insist) = (self.0.escapes, || ending::ask(Asker::Keyboard));
        let saves = self.0.saves.load(Ordering::Relaxed);
        if let Err(error) = (Reader { to, control, left, escapes, insist, saves }).spawn() {
            let advice = Advice::of_processes(&error);
            notice(format_args!("the guest has no console input: {error}{advice}"));
        }
    }
}

impl Reader {
    /// Starts reading. The thread ends with its input; the process does not wait for it.
    pub(super) fn spawn(self) -> io::Result<()> {
        let source = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
        threads::spawn("console input", move || self.run(source))?;
        Ok(())
    }

    fn run(self, mut source: impl Read) {
        let mut escapes = Escapes::default();
        let mut buffer = [0u8; 1024];
        loop {
            let n = match source.read(&mut buffer) {
                // End of input does not end the guest: it may have work left.
                Ok(0) => return,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let typed = buffer.get(..n).unwrap_or_default();
            if self.escapes {
                let for_guest: Vec<u8> = typed.iter().filter_map(|b| self.act(escapes.feed(*b))).collect();
                self.deliver(&for_guest);
            } else {
                self.deliver(typed);
                // Back-pressure: what is piped in waits in the pipe, not in our memory.
                if let Destination::Console(input) = &self.to {
                    input.wait_until_empty();
                }
            }
        }
    }

    fn deliver(&self, bytes: &[u8]) {
        match &self.to {
            Destination::Console(input) if !bytes.is_empty() => {
                input.push(bytes);
                self.control.kick();
            }
            Destination::Console(_) => {}
            Destination::Device(keys) => self.send(keys, bytes),
        }
    }

    /// Keys for which there is no room are lost, as a terminal's are, for the escape key must be seen behind them; a
    /// pipe waits.
    fn send(&self, keys: &UnixStream, mut bytes: &[u8]) {
        let flags = libc::MSG_NOSIGNAL | if self.escapes { libc::MSG_DONTWAIT } else { 0 };
        while !bytes.is_empty() {
            // SAFETY: `bytes` is live and as long as it says.
            let sent = unsafe { libc::send(keys.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
            match usize::try_from(sent) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(_) if io::Error::last_os_error().kind() == ErrorKind::Interrupted => {}
                // No room, or the device is gone.
                Err(_) => return,
            }
        }
    }

    fn act(&self, typed: Typed) -> Option<u8> {
        match typed {
            Typed::Byte(byte) => return Some(byte),
            Typed::Nothing => {}
            Typed::Leave => {
                self.left.store(true, Ordering::Release);
                self.control.send(Command::Stop);
                (self.insist)();
            }
            Typed::Statistics => self.control.send(Command::Peek),
            Typed::Pause => self.control.toggle_pause(),
            Typed::Save if self.saves => self.control.send(Command::Save),
            Typed::Save => notice::text(NOT_SAVED),
            Typed::Help => notice::text(HELP),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::engine::CountKicks;

    fn reader(to: Destination, escapes: bool) -> (Reader, Arc<CountKicks>) {
        let (control, kicks) = (Control::default(), Arc::new(CountKicks::default()));
        control.attach([kicks.clone() as Arc<dyn crate::machine::kick::Kick>]);
        (Reader { to, control, left: Arc::default(), escapes, insist: || (), saves: true }, kicks)
    }

    /// What reaches the guest, the channel, whether the user left, and how many kicks there were.
    fn type_in(text: &[u8]) -> (Vec<u8>, Control, bool, u64) {
        let input = ConsoleInput::default();
        let (reader, kicks) = reader(Destination::Console(input.clone()), true);
        let (control, left) = (reader.control.clone(), Arc::clone(&reader.left));
        reader.run(text);
        let got = std::iter::from_fn(|| input.pop()).collect();
        (got, control, left.load(Ordering::Relaxed), kicks.count())
    }

    #[test]
    fn ordinary_keys_reach_the_guest() {
        let (got, control, left, kicks) = type_in(b"ls\r\x03\x04");
        assert_eq!((got.as_slice(), left, kicks), (&b"ls\r\x03\x04"[..], false, 1));
        assert!(!control.is_stopping());
    }

    #[test]
    fn the_escape_key_is_ours_unless_doubled() {
        let (got, control, left, kicks) = type_in(b"a\x01\x01b\x01zc\x01s");
        assert_eq!(got, b"a\x01bc");
        assert!(!control.is_stopping() && !left);
        assert_eq!(kicks, 2, "for the statistics and for what was typed");
        let (got, control, _, kicks) = type_in(b"a\x01w");
        assert_eq!((got.as_slice(), kicks), (&b"a"[..], 2));
        assert!(!control.is_stopping());
    }

    #[test]
    fn leaving_stops_and_kicks() {
        let (got, control, left, kicks) = type_in(b"\x01x");
        assert!(got.is_empty() && control.is_stopping() && left);
        assert_eq!(kicks, 1);
    }

    #[test]
    fn a_device_s_keys_do_not_hold_up_the_escape_key() {
        let (keys, device) = UnixStream::pair().unwrap();
        let (reader, _) = reader(Destination::Device(keys), true);
        let left = Arc::clone(&reader.left);
        // Far more than a socket holds, and nobody reads.
        let typed = [vec![b'k'; 4 << 20], b"\x01x".to_vec()].concat();
        reader.run(&typed[..]);
        assert!(left.load(Ordering::Relaxed));
        let mut got = Vec::new();
        (&device).read_to_end(&mut got).unwrap();
        assert!(!got.is_empty() && got.len() < typed.len() && got.iter().all(|&b| b == b'k'));
    }

    #[test]
    fn a_pipe_waits_for_a_device_and_its_end_is_told() {
        let (keys, device) = UnixStream::pair().unwrap();
        let (reader, _) = reader(Destination::Device(keys), false);
        let typed = vec![1; 4 << 20];
        let piped = typed.clone();
        let thread = std::thread::spawn(move || reader.run(&piped[..]));
        let mut got = Vec::new();
        (&device).read_to_end(&mut got).unwrap();
        assert!(got == typed);
        thread.join().unwrap();
    }
}
