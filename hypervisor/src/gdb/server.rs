//! The thread that answers gdb, for as long as the domain lives.
//!
//! One gdb at a time; another may come when it has gone. A connection that breaks, or that says what is no packet, is a
//! gdb that has gone: the guest's code is put right, and the guest goes on.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;

use super::address::Address;
use super::connection::{Listener, Output, Stream};
use super::hardware::{Kind, Watched};
use super::session::{Session, Stop, Why};
use super::target::{Guest, tid};
use crate::backend::unix::listen_hint;
use crate::host::limit::Advice;
use crate::host::notice::notice;
use crate::host::{poll, threads};
use crate::machine::end::DomainEnd;
use crate::monitor::{Command, Control};

/// gdb cannot be waited for.
#[derive(Debug, thiserror::Error)]
#[error("cannot wait for gdb at {address}: {error}{}", listen_hint(.error))]
pub struct ListenError {
    address: Address,
    error: io::Error,
}

/// Waits for gdb, and then is its thread.
pub struct Debugger {
    listener: Listener,
    address: Address,
    on_kill: OnKill,
}

/// Called when gdb's user wants the guest to end, before it is told to.
pub type OnKill = Box<dyn FnMut() + Send>;

/// The thread that answers.
pub struct Answering {
    session: Arc<Session>,
    thread: JoinHandle<()>,
}

/// Room for a packet, whole: `x` and `m` answer as much at once.
const PACKET: usize = 16 * 1024;

impl Debugger {
    /// Begins to listen: gdb can connect from now on, and is answered later.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn listen(address: &Address, on_kill: OnKill) -> Result<Self, ListenError> {
        let failed = |error| ListenError { address: address.clone(), error };
        let listener = Listener::bind(address).map_err(failed)?;
        let address = listener.address().map_err(failed)?;
        Ok(Self { listener, address, on_kill })
    }

    /// Where gdb connects to.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Starts the thread that answers. `image` is the kernel's file.
    ///
    /// # Errors
    /// When the host has no room for it.
    pub fn begin(self, session: Arc<Session>, control: Control, image: Arc<[u8]>) -> io::Result<Answering> {
        let shared = Arc::clone(&session);
        let thread = threads::spawn("gdb", move || {
            let Self { listener, on_kill, .. } = self;
            let mut server = Server { listener, session: shared, control, image, on_kill };
            if let Err(error) = server.run() {
                notice(format_args!("gdb is no longer waited for: {error}{}", Advice::of_files(&error)));
                server.session.detach();
            }
        })?;
        Ok(Answering { session, thread })
    }
}

impl Answering {
    /// What it shares with the virtual CPUs.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The domain has ended: gdb is told, and the thread ends.
    pub fn finish(self, end: &DomainEnd) {
        self.session.finish(end);
        // It has panicked, or has not: the domain is over.
        let _ = self.thread.join();
    }
}

struct Server {
    listener: Listener,
    session: Arc<Session>,
    control: Control,
    image: Arc<[u8]>,
    on_kill: OnKill,
}

/// What came first.
enum Event {
    Byte(u8),
    Stands(Stop),
    Ended(DomainEnd),
    Closed,
}

/// Bytes from gdb, and what else there is to wait for.
struct Input<'a> {
    from: Stream,
    buffer: Box<[u8; 4096]>,
    at: usize,
    end: usize,
    session: &'a Session,
}

/// Why a conversation ended.
enum Parting {
    /// gdb has gone, and the guest is to go on.
    Gone,
    /// The guest is to end.
    Kill,
    /// The guest has ended.
    Ended,
}

impl Server {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let ready = wait(&[self.listener.as_raw_fd(), self.session.bell.as_raw_fd()])?;
            if self.session.end().is_some() {
                return Ok(());
            }
            if !ready {
                // The domain stands: nobody asks yet.
                let _ = self.session.bell.read();
                continue;
            }
            let stream = match self.listener.accept() {
                // Whoever wanted to connect has thought better of it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                stream => stream?,
            };
            match converse(&self.session, &self.image, stream)? {
                Parting::Ended => return Ok(()),
                Parting::Kill => {
                    (self.on_kill)();
                    self.control.send(Command::Stop);
                }
                Parting::Gone => {
                    let guest = Guest::new(Arc::clone(&self.session), Arc::clone(&self.image));
                    self.session.stand_still();
                    if guest.clean().is_ok() {
                        self.session.detach();
                        notice("gdb has gone; the guest goes on");
                    }
                }
            }
        }
    }
}

/// Answers one gdb until it has gone or the guest has ended. The guest stands when this begins.
fn converse(session: &Arc<Session>, image: &Arc<[u8]>, stream: Stream) -> io::Result<Parting> {
    session.stand_still();
    let mut input = Input::new(stream.try_clone()?, session);
    let mut guest = Guest::new(Arc::clone(session), Arc::clone(image));
    let stub = GdbStub::builder(Output::new(stream)).packet_buffer_size(PACKET).build();
    let Ok(stub) = stub else { return Ok(Parting::Gone) };
    let Ok(mut machine) = stub.run_state_machine(&mut guest) else { return Ok(Parting::Gone) };
    loop {
        let next = match machine {
            GdbStubStateMachine::Idle(idle) => match input.next(false)? {
                Event::Byte(byte) => idle.incoming_data(&mut guest, byte),
                Event::Closed => return Ok(Parting::Gone),
                Event::Stands(_) => Ok(idle.into()),
                Event::Ended(_) => return Ok(Parting::Ended),
            },
            GdbStubStateMachine::Running(running) => match input.next(true)? {
                Event::Byte(byte) => running.incoming_data(&mut guest, byte),
                Event::Closed => return Ok(Parting::Gone),
                Event::Stands(stop) => running.report_stop(&mut guest, reason(&stop)),
                Event::Ended(end) => running.report_stop(&mut guest, ended(&end)),
            },
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                session.stop(0, Why::Interrupted);
                interrupt.interrupt_handled(&mut guest, None::<MultiThreadStopReason<u64>>)
            }
            GdbStubStateMachine::Disconnected(mut end) => {
                return Ok(match end.get_reason() {
                    DisconnectReason::Kill => {
                        // What vKill is answered with; gdbstub leaves that out. Who sent `k` is gone already.
                        let _ =
                            end.borrow_conn().write_all(b"$OK#9a").and_then(|()| end.borrow_conn().flush());
                        Parting::Kill
                    }
                    DisconnectReason::Disconnect => Parting::Gone,
                    DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_) => {
                        Parting::Ended
                    }
                });
            }
        };
        match next {
            Ok(next) => machine = next,
            Err(_) if session.end().is_some() => return Ok(Parting::Ended),
            Err(error) => {
                notice(format_args!("gdb's connection is given up: {error}"));
                return Ok(Parting::Gone);
            }
        }
    }
}

/// Why the domain stands, in gdb's terms.
fn reason(stop: &Stop) -> MultiThreadStopReason<u64> {
    let tid = tid(stop.vcpu);
    let signal = |signal| MultiThreadStopReason::SignalWithThread { tid, signal };
    match stop.why {
        Why::Attached | Why::Stepped => signal(Signal::SIGTRAP),
        Why::Interrupted => signal(Signal::SIGINT),
        Why::Breakpoint => MultiThreadStopReason::SwBreak(tid),
        Why::Watched(Watched { kind: Kind::Execute, .. }) => MultiThreadStopReason::HwBreak(tid),
        Why::Watched(Watched { kind, address, .. }) => {
            let kind = if kind == Kind::Write { WatchKind::Write } else { WatchKind::ReadWrite };
            MultiThreadStopReason::Watch { tid, kind, addr: address }
        }
        Why::Ends(_) => signal(Signal::SIGABRT),
    }
}

/// How it ended.
fn ended(end: &DomainEnd) -> MultiThreadStopReason<u64> {
    match end {
        DomainEnd::PowerOff | DomainEnd::Reboot | DomainEnd::Suspend => MultiThreadStopReason::Exited(0),
        DomainEnd::GuestCrash | DomainEnd::Watchdog | DomainEnd::Killed(_) => {
            MultiThreadStopReason::Terminated(Signal::SIGABRT)
        }
        DomainEnd::Interrupted => MultiThreadStopReason::Terminated(Signal::SIGTERM),
    }
}

/// Waits until one can be read; whether it is the first.
fn wait(fds: &[RawFd]) -> io::Result<bool> {
    let mut polled: Vec<_> =
        fds.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    poll::poll(&mut polled, -1)?;
    Ok(polled.first().is_some_and(|first| first.revents != 0))
}

impl<'a> Input<'a> {
    fn new(from: Stream, session: &'a Session) -> Self {
        Self { from, buffer: Box::new([0; 4096]), at: 0, end: 0, session }
    }

    /// The next thing to deal with. That the domain stands is one only where the guest `runs`.
    fn next(&mut self, runs: bool) -> io::Result<Event> {
        loop {
            if let Some(end) = self.session.end() {
                return Ok(Event::Ended(end));
            }
            if let Some(stop) = self.session.standing().filter(|_| runs) {
                if let Why::Ends(why) = &stop.why {
                    notice(format_args!(
                        "the guest is about to end: {why}; gdb may look at it before it does"
                    ));
                }
                return Ok(Event::Stands(stop));
            }
            if let Some(byte) = self.buffer.get(..self.end).and_then(|bytes| bytes.get(self.at)) {
                self.at += 1;
                return Ok(Event::Byte(*byte));
            }
            let bell = self.session.bell.as_raw_fd();
            if !wait(&[self.from.as_raw_fd(), bell])? {
                let _ = self.session.bell.read();
                continue;
            }
            (self.at, self.end) = (0, 0);
            match self.from.read(&mut *self.buffer) {
                Ok(0) => return Ok(Event::Closed),
                Ok(count) => self.end = count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(Event::Closed),
            }
        }
    }
}

#[cfg(test)]
mod tests;
