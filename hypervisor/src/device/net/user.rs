//! `--net user`: the host's own network for a guest, without privileges, by passt.
//!
//! passt runs as our child on one end of a socket pair, and ends when the other is closed, however we end. It
//! gives the guest an address by DHCP, and passes its connections on as sockets of its own.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};

use super::backend::{Backend, Received, Sent, Watch};
use super::header::Header;
use super::pieces::Pieces;
use super::stream::Framed;

/// What the guest is told by DHCP: frames fit in every driver's buffers.
const MTU: &str = "1500";
/// How long passt has to end by itself when it is no longer needed, in steps of 1 ms.
const GRACE_MS: u32 = 100;

/// passt cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// It is not there.
    #[error(
        "`--net user` needs the program passt, which is not installed: install it (`apt install passt`, `dnf \
         install passt`), or use `--net tap=NAME`"
    )]
    NotInstalled,
    /// It cannot be started.
    #[error("cannot start passt: {0}")]
    Start(#[from] io::Error),
}

/// Ports of the host that are passed on to the guest, in passt's notation.
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
    /// Gone first when this is dropped.
    frames: Option<Framed>,
    passt: Child,
    complaints: Option<ChildStderr>,
}

impl User {
    /// Starts passt.
    pub fn start(ports: &Ports) -> Result<Self, UserError> {
        Self::start_program("passt", ports)
    }

    fn start_program(program: &str, ports: &Ports) -> Result<Self, UserError> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        // SAFETY: `theirs` is an open descriptor of ours; this only lets a child inherit it.
        if unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut command = Command::new(program);
        command.args(["--foreground", "--quiet", "--mtu", MTU, "--fd", &theirs.as_raw_fd().to_string()]);
        for (option, list) in [("--tcp-ports", &ports.tcp), ("--udp-ports", &ports.udp)] {
            command.args([option, list.as_deref().unwrap_or("none")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut passt = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UserError::NotInstalled,
            _ => UserError::Start(error),
        })?;
        let complaints = passt.stderr.take();
        Ok(Self { frames: Some(Framed::connected(ours)?), passt, complaints })
    }

    /// Says why passt is gone, once.
    fn report(&mut self) {
        if self.is_up() {
            return;
        }
        let Some(complaints) = self.complaints.take() else { return };
        self.end();
        let mut text = String::new();
        // What is not text is not worth showing, and 4 KiB are enough of it.
        let _ = complaints.take(4096).read_to_string(&mut text);
        let last = text.lines().rfind(|line| !line.contains("syslog") && !line.trim().is_empty());
        eprint!(
            "paravane: passt has ended, the guest's network is down: {}\r\n",
            last.unwrap_or("it did not say why")
        );
    }

    /// Waits for passt, which ends when its socket is closed; kills it if it does not.
    fn end(&mut self) {
        for _ in 0..GRACE_MS {
            if !matches!(self.passt.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let _ = self.passt.kill();
        let _ = self.passt.wait();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.frames = None;
        self.end();
    }
}

impl Backend for User {
    fn is_up(&self) -> bool {
        self.frames.as_ref().is_some_and(Framed::is_up)
    }
    fn watch(&self, receive: bool) -> Option<Watch> {
        self.frames.as_ref()?.watch(receive)
    }
    fn ready(&mut self, revents: libc::c_short) {
        if let Some(frames) = &mut self.frames {
            frames.ready(revents);
        }
        self.report();
    }
    fn send(&mut self, header: &Header, frame: &mut Pieces<'_>) -> Sent {
        self.frames.as_mut().map_or(Sent::Done, |frames| frames.send(header, frame))
    }
    fn flush(&mut self) {
        if let Some(frames) = &mut self.frames {
            frames.flush();
        }
        self.report();
    }
    fn receive(&mut self, into: &mut Pieces<'_>) -> Received {
        let received = self.frames.as_mut().map_or(Received::Nothing, |frames| frames.receive(into));
        if received == Received::Nothing {
            self.report();
        }
        received
    }
    fn has_frames(&self) -> bool {
        self.frames.as_ref().is_some_and(Framed::has_frames)
    }
}

#[cfg(test)]
mod tests {

    use vm_memory::VolatileSlice;

    use super::super::header::HEADER_LEN;
    use super::*;
    use crate::skip::skip;

    /// Waits for what the back end waits for, and tells it.
    fn wait(user: &mut User) {
        let watch = user.watch(true).unwrap();
        let mut fd = libc::pollfd { fd: watch.fd, events: watch.events, revents: 0 };
        // SAFETY: one live pollfd.
        assert_eq!(unsafe { libc::poll(&mut fd, 1, -1) }, 1);
        user.ready(fd.revents);
    }

    #[test]
    fn without_passt_it_says_what_to_install() {
        let error = User::start_program("paravane-no-such-program", &Ports::default()).unwrap_err();
        assert!(error.to_string().contains("apt install passt"), "{error}");
    }

    #[test]
    fn a_passt_that_ends_is_a_link_that_is_down() {
        // A program that takes any arguments and ends.
        let mut user = User::start_program("false", &Ports::default()).unwrap();
        assert!(user.is_up());
        wait(&mut user);
        assert!(!user.is_up() && user.watch(true).is_none());
        assert!(user.passt.try_wait().unwrap().is_some(), "no zombie is left");
    }

    #[test]
    fn passt_answers_for_the_network() {
        let mut user = match User::start(&Ports::default()) {
            Ok(user) => user,
            Err(why) => return skip("passt", why),
        };
        // Who has 192.0.2.99? passt has every address but the guest's own.
        let guest = [2, 0, 0, 0, 0, 1];
        let question = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &guest, &[0; 4], &[0; 6], &[192, 0, 2, 99]].concat();
        let mut frame = [&[0xff; 6][..], &guest, &[8, 6], &question].concat();
        frame.resize(60, 0);
        let mut pieces = Pieces::default();
        pieces.push(&VolatileSlice::from(&mut frame[..])).unwrap();
        assert_eq!(user.send(&Header::default(), &mut pieces), Sent::Done);
        user.flush();
        loop {
            let mut memory = [0; 1526];
            let mut pieces = Pieces::default();
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
                // A network that it cannot use is none of ours.
                Received::Nothing => return skip("passt", "it has ended; its reason is above"),
                _ => {}
            }
        }
    }
}
