//! `--net user`: access to the host's network without privileges, by passt.
//!
//! passt is a child process at one end of a socket pair. It exits when the other end is closed, however this process
//! ends. It gives the guest an address by DHCP, and forwards the guest's connections through sockets of its own.
//!
//! A thread waits for passt to exit, so that this is reported at once and not when the guest next sends a frame, and
//! so that it does not stay a zombie. passt takes longer to start than a guest, which does not wait for it. If passt
//! fails before it has sent a frame, the guest never had a network, and its start has failed ([`Lost`]). If it ends
//! later, the link is down.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::backend::{Backend, Received, Sent, Watch};
use super::header::Header;
use super::scatter_list::ScatterList;
use super::stream::Framed;
use crate::host::notice::notice;
use crate::host::threads;

/// The MTU that DHCP announces: every driver has buffers for such frames.
const MTU: &str = "1500";
/// How long passt has to exit by itself when it is no longer needed.
const GRACE: Duration = Duration::from_millis(100);
/// Bytes of passt's standard error that are kept, from the end: the last line is the reason why it failed.
const COMPLAINTS: usize = 4096;

/// Called at most once, on another thread, when a guest's network has failed to start; with the reason.
pub type Lost = Arc<dyn Fn(String) + Send + Sync>;

/// passt cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// It is not installed.
    #[error(
        "`--net user` needs the program passt, which is not installed: install it (`apt install passt`, `dnf \
         install passt`), or use `--net tap=NAME`"
    )]
    NotInstalled,
    /// It cannot be started.
    #[error("cannot start passt: {0}")]
    Start(#[from] io::Error),
}

/// Ports of the host that are forwarded to the guest, in passt's notation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// TCP.
    pub tcp: Option<String>,
    /// UDP.
    pub udp: Option<String>,
}

/// A running passt.
#[derive(Debug)]
pub struct User {
    frames: Framed,
    passt: Passt,
}

/// The process, shared with the thread that waits for it to exit.
#[derive(Debug)]
struct Passt {
    shared: Arc<Shared>,
    /// Disconnected when the process has exited and that has been reported.
    gone: Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    child: Mutex<Child>,
    /// It is no longer needed: its exit is not reported.
    dismissed: AtomicBool,
    /// It has sent a frame.
    worked: AtomicBool,
}

impl User {
    /// Starts passt. `lost` is called if it fails before it has sent a frame.
    ///
    /// # Errors
    /// When passt is not installed, or the host has no process, thread or descriptor left for it.
    pub fn start(ports: &Ports, lost: Lost) -> Result<Self, UserError> {
        Self::start_program("passt", ports, lost)
    }

    fn start_program(program: &str, ports: &Ports, lost: Lost) -> Result<Self, UserError> {
        let (ours, theirs) = UnixStream::pair()?;
        let frames = Framed::connected(ours)?;
        let theirs = OwnedFd::from(theirs);
        // SAFETY: `theirs` is open and owned here; this only lets a child inherit it.
        if unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut command = Command::new(program);
        command.args(["--foreground", "--quiet", "--mtu", MTU, "--fd", &theirs.as_raw_fd().to_string()]);
        for (option, list) in [("--tcp-ports", &ports.tcp), ("--udp-ports", &ports.udp)] {
            command.args([option, list.as_deref().unwrap_or("none")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // In a process group of its own: Ctrl-C at the terminal must not end passt, which would look like a failure.
        command.process_group(0);
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UserError::NotInstalled,
            io::ErrorKind::PermissionDenied if is_nowhere(program) => UserError::NotInstalled,
            _ => UserError::Start(error),
        })?;
        Ok(Self { frames, passt: Passt::watched(child, lost)? })
    }
}

/// Whether no directory of PATH has the program. execvp(3) fails with EACCES instead of ENOENT if one of the
/// directories cannot be searched.
fn is_nowhere(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    !program.contains('/') && !std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

impl Drop for User {
    /// passt's exit is not reported from now on; but if it has already exited, that still is.
    fn drop(&mut self) {
        if self.frames.is_up() {
            self.passt.shared.dismissed.store(true, Ordering::Release);
        }
    }
}

impl Passt {
    fn watched(mut child: Child, lost: Lost) -> io::Result<Self> {
        let complaints = child.stderr.take();
        let (dismissed, worked) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { child: Mutex::new(child), dismissed, worked });
        let (going, gone) = sync_channel(0);
        let passt = Self { shared: Arc::clone(&shared), gone };
        // If there is no thread, dropping `passt` ends the process.
        threads::spawn("passt", move || shared.attend(complaints, &lost, &going))?;
        Ok(passt)
    }
}

impl Drop for Passt {
    /// The socket is closed by now, at which passt exits; it is killed if it does not.
    fn drop(&mut self) {
        let _ = self.gone.recv_timeout(GRACE);
        let mut child = self.shared.child();
        // Both do nothing if the process has been reaped.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Shared {
    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's work: waits for the process to exit, and reports why. Dropping `_going` shows that this is done.
    fn attend(&self, complaints: Option<ChildStderr>, lost: &Lost, _going: &SyncSender<()>) {
        let said = complaints.map(last_of).unwrap_or_default();
        let id = self.child().id();
        // SAFETY: all zeroes are a siginfo_t, and it is live. The process is not reaped here, so that its number is not
        // reused before `kill` or `wait` is called under the lock.
        let waited = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, id, &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        let status = if waited == 0 { self.child().wait().ok() } else { None };
        if self.dismissed.load(Ordering::Acquire) {
            return;
        }
        let why = reason(&said, status);
        let gave_up = status.and_then(|status| status.code()).is_some_and(|code| code != 0);
        if gave_up && !self.worked.load(Ordering::Acquire) {
            lost(format!("the guest has no network: passt gave up: {why}"));
        } else {
            notice(format_args!("passt has ended, the guest's network is down: {why}"));
        }
    }
}

/// Reads a stream to its end, and returns the last [`COMPLAINTS`] bytes.
fn last_of(mut stream: impl Read) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return String::from_utf8_lossy(&text).into_owned(),
            Ok(count) => {
                text.extend_from_slice(buffer.get(..count).unwrap_or_default());
                text.drain(..text.len().saturating_sub(COMPLAINTS));
            }
        }
    }
}

/// Why passt has exited, in one line: the signal that killed it, its last message, or its exit status.
fn reason(said: &str, status: Option<ExitStatus>) -> String {
    let killed = status.is_some_and(|status| status.signal().is_some());
    // If it was killed, its last message was about something else.
    let last = said.lines().rfind(|line| !killed && !line.contains("syslog") && !line.trim().is_empty());
    match (last, status) {
        (Some(line), _) => {
            line.trim().chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>()
        }
        (None, Some(status)) => format!("it did not say why ({status})"),
        (None, None) => "it did not say why".to_owned(),
    }
}

impl Backend for User {
    fn is_up(&self) -> bool {
        self.frames.is_up()
    }
    fn watch(&self, receive: bool) -> Option<Watch> {
        self.frames.watch(receive)
    }
    fn ready(&mut self, revents: libc::c_short) {
        self.frames.ready(revents);
    }
    fn send(&mut self, header: &Header, frame: &mut ScatterList<'_>) -> Sent {
        self.frames.send(header, frame)
    }
    fn flush(&mut self) {
        self.frames.flush();
    }
    fn receive(&mut self, into: &mut ScatterList<'_>) -> Received {
        let received = self.frames.receive(into);
        if matches!(received, Received::Frame(_)) && !self.passt.shared.worked.load(Ordering::Relaxed) {
            self.passt.shared.worked.store(true, Ordering::Release);
        }
        received
    }
}

#[cfg(test)]
mod tests {

    use vm_memory::VolatileSlice;

    use crate::backend::net::header::HEADER_LEN;
    use crate::backend::net::user::*;
    use crate::testing::skip::skip;

    /// Polls the back end's descriptors, and passes the result on to it.
    fn wait(user: &mut User) {
        let watch = user.watch(true).unwrap();
        let mut fd = libc::pollfd { fd: watch.fd, events: watch.events, revents: 0 };
        // SAFETY: the pollfd is live.
        assert_eq!(unsafe { libc::poll(&mut fd, 1, -1) }, 1);
        user.ready(fd.revents);
    }

    /// A callback for a failed start, and the channel to which it sends the reason.
    fn told() -> (Lost, Receiver<String>) {
        let (tell, told) = std::sync::mpsc::channel();
        (Arc::new(move |why| _ = tell.send(why)), told)
    }
    fn path_of(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("paravane-passt-{}-{name}", std::process::id()))
    }
    /// Makes a FIFO, for which a script can wait.
    fn go_of(name: &str) -> std::path::PathBuf {
        let path = path_of(&format!("{name}.go"));
        let c_path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the path ends with NUL.
        unsafe { libc::mkfifo(c_path.as_ptr(), 0o600) };
        path
    }
    /// Writes a shell script that stands in for passt.
    fn script(name: &str, text: &str) -> std::path::PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = path_of(name);
        let _ = std::fs::remove_file(&path);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&path);
        std::io::Write::write_all(&mut file.unwrap(), format!("#!/bin/sh\n{text}\n").as_bytes()).unwrap();
        path
    }
    fn start_script(name: &str, text: &str, lost: Lost) -> User {
        let path = script(name, text);
        loop {
            match User::start_program(path.to_str().unwrap(), &Ports::default(), lost.clone()) {
                // Another test's child may hold the script open for writing until it executes something.
                Err(UserError::Start(error)) if error.raw_os_error() == Some(libc::ETXTBSY) => {}
                user => return user.unwrap(),
            }
        }
    }

    #[test]
    fn without_passt_the_message_says_what_to_install() {
        let error = User::start_program("paravane-no-such-program", &Ports::default(), told().0).unwrap_err();
        assert!(error.to_string().contains("apt install passt"), "{error}");
    }

    #[test]
    fn a_passt_that_gives_up_at_once_is_reported_with_its_reason() {
        let (lost, told) = told();
        let text = "echo 'Failed to send 3 bytes to syslog' >&2; echo 'no such port' >&2; echo >&2; exit 1";
        let mut user = start_script("gives-up", text, lost);
        assert_eq!(told.recv().unwrap(), "the guest has no network: passt gave up: no such port");
        wait(&mut user);
        assert!(!user.is_up() && user.watch(true).is_none());
        let id = user.passt.shared.child().id();
        // SAFETY: signal 0 is not sent. If the number has been reused, it belongs to a process that is not a child of
        // this one.
        let reaped = unsafe { libc::waitid(libc::P_PID, id, std::ptr::null_mut(), libc::WEXITED) } < 0;
        assert!(reaped, "no zombie is left");
    }

    #[test]
    fn when_passt_ends_later_or_is_killed_the_link_is_down() {
        for (name, text, worked) in [("worked", "exit 1", true), ("killed", "kill -9 $$", false)] {
            let (lost, told) = told();
            let go = go_of(name);
            let user = start_script(name, &format!("read go <$0.go; {text}"), lost);
            user.passt.shared.worked.store(worked, Ordering::Release);
            std::fs::write(&go, "\n").unwrap();
            assert!(user.passt.gone.recv().is_err());
            std::fs::remove_file(go).unwrap();
            assert!(told.try_recv().is_err(), "{name}");
        }
    }

    #[test]
    fn a_passt_that_does_not_end_is_killed_silently() {
        let (lost, told) = told();
        let user = start_script("stays", "exec sleep 1000", lost);
        let id = user.passt.shared.child().id();
        drop(user);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
        assert!(told.try_recv().is_err());
    }

    /// The terminal sends signals to the program only, which ends passt itself.
    #[test]
    fn signals_of_the_terminal_do_not_reach_passt() {
        let user = start_script("group", "exec sleep 1000", told().0);
        let id = libc::pid_t::try_from(user.passt.shared.child().id()).unwrap();
        // SAFETY: the call takes no pointer; the child is not reaped before it, so that the number is its own.
        assert_eq!(unsafe { libc::getpgid(id) }, id);
    }

    #[test]
    fn a_reason_is_one_line() {
        assert_eq!(reason("one\n two\x1b[1m\n\nFailed to send 1 bytes to syslog\n", None), "two?[1m");
        assert_eq!(reason("", None), "it did not say why");
        let killed = reason("Changing to nobody...\n", Some(ExitStatus::from_raw(libc::SIGKILL)));
        assert!(killed.contains("SIGKILL") && !killed.contains("nobody"), "{killed}");
        assert_eq!(last_of(&[&b"x".repeat(5000)[..], b"end"].concat()[..]).len(), COMPLAINTS);
    }

    #[test]
    fn passt_answers_for_the_network() {
        let mut user = match User::start(&Ports::default(), told().0) {
            Ok(user) => user,
            Err(why) => return skip("passt", why),
        };
        // Who has 192.0.2.99? passt has every address but the guest's own.
        let guest = [2, 0, 0, 0, 0, 1];
        let question = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &guest, &[0; 4], &[0; 6], &[192, 0, 2, 99]].concat();
        let mut frame = [&[0xff; 6][..], &guest, &[8, 6], &question].concat();
        frame.resize(60, 0);
        let mut pieces = ScatterList::default();
        pieces.push(&VolatileSlice::from(&mut frame[..])).unwrap();
        assert_eq!(user.send(&Header::default(), &mut pieces), Sent::Done);
        user.flush();
        loop {
            let mut memory = [0; 1526];
            let mut pieces = ScatterList::default();
            pieces.push(&VolatileSlice::from(&mut memory[..])).unwrap();
            let received = user.receive(&mut pieces);
            drop(pieces);
            let frame = &memory[HEADER_LEN..];
            match received {
                Received::Frame(_) if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] => {
                    assert_eq!((&frame[..6], &frame[28..32]), (&guest[..], &[192, 0, 2, 99][..]));
                    break;
                }
                Received::Nothing if user.is_up() => wait(&mut user),
                // passt cannot use this machine's network: there is nothing to test.
                Received::Nothing => return skip("passt", "it has ended; it finds no network here"),
                _ => {}
            }
        }
    }
}
