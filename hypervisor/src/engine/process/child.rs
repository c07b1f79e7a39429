//! A guest process: its birth, its hand-overs and its death.
//!
//! It begins as an exec of the stub from a memfd, so that nothing of the monitor is ever in it: no memory, no
//! environment, no descriptors but the three that its script uses and closes. What may not be done here:
//! knowing what a hand-over means.

use std::io;
use std::io::{Read, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::area::{Area, CODE, Lane, STRIDE, board, room};
use super::filter::MEMORY_FD;
use super::script::{self, AREA_FD, SOCKET_FD, Terms};
use super::stub::{self, KIND_DONE, KIND_READY};
use super::sys::{self, Ended, Received};
use crate::host::limit::Advice;

/// Why a guest process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The host refused something that the monitor itself needs.
    #[error("cannot {what} for a guest process: {error}{}", Advice::of_processes(error))]
    Host {
        /// What was refused.
        what: &'static str,
        /// The host's reason.
        error: io::Error,
    },
    /// The stub could not be executed.
    #[error("cannot execute the guest process's stub from a memfd: {0}{advice}", advice = why_no_exec(.0))]
    Exec(io::Error),
    /// The process could not restrict itself, and so ended before any guest code ran.
    #[error(
        "a guest process could not {step}: {error}; the sandbox that this program runs in (a container's seccomp \
         profile, a security module, a limit) must allow it"
    )]
    SetUp {
        /// What it was doing.
        step: &'static str,
        /// The host's reason.
        error: io::Error,
    },
    /// The process vanished.
    #[error("a guest process was killed while it was being set up ({0})")]
    Killed(String),
}

/// What to do about a stub that was not executed.
fn why_no_exec(error: &io::Error) -> String {
    let limit = Advice::of_processes(error);
    if limit.is_some() {
        return limit.to_string();
    }
    "; allow it (sysctl vm.memfd_noexec below 2, no security policy against it)".to_owned()
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> SpawnError {
    move |error| SpawnError::Host { what, error }
}

/// SYSCALL_DISPATCH_FILTER_BLOCK.
const DISPATCH_BLOCK: u64 = 1;

/// The executable that guest processes are: the stub and an ELF header around it.
#[derive(Debug)]
pub(super) struct Image(OwnedFd);

impl Image {
    /// For processes with this many lanes.
    pub fn new(lanes: u8) -> Result<Self, SpawnError> {
        const MFD_EXEC: u32 = 0x10;
        const CLOEXEC: u32 = libc::MFD_CLOEXEC;
        // MFD_EXEC came with Linux 6.3, together with the setting that makes it necessary.
        let fd = sys::memfd(c"paravane-guest", CLOEXEC | MFD_EXEC, 0)
            .or_else(|_| sys::memfd(c"paravane-guest", CLOEXEC, 0))
            .map_err(host("create a memfd"))?;
        let file = std::fs::File::from(fd);
        std::os::unix::fs::FileExt::write_all_at(&file, &elf(stub::code(), lanes), 0)
            .map_err(host("write the stub"))?;
        Ok(Self(file.into()))
    }
}

/// A static ELF executable of one page of code at [`CODE`], and at the places of the other lanes (System V gABI,
/// chapters 4 and 5).
fn elf(code: &[u8], lanes: u8) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut file = Vec::with_capacity(2 * PAGE);
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, x86-64, version 1; entry; program headers at 64; no sections; headers of 56 bytes, one for each copy of
    // the code and one for the stack.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&CODE.to_le_bytes());
    put(&64u64.to_le_bytes());
    put(&[0; 12]);
    put(&[64, 0, 56, 0, lanes + 1, 0, 64, 0, 0, 0, 0, 0]);
    let mut header = |kind: u32, flags: u32, words: [u64; 6]| {
        put(&kind.to_le_bytes());
        put(&flags.to_le_bytes());
        words.iter().for_each(|w| put(&w.to_le_bytes()));
    };
    const PAGE64: u64 = PAGE as u64;
    let (readable, executable) = (4, 1);
    for at in (0..u64::from(lanes)).map(|lane| CODE + lane * STRIDE) {
        header(libc::PT_LOAD, readable | executable, [PAGE64, at, at, PAGE64, PAGE64, PAGE64]);
    }
    // A stack that is not executable: without this, old kernels make every readable mapping so.
    header(libc::PT_GNU_STACK, readable | 2, [0, 0, 0, 0, 0, 16]);
    file.resize(PAGE, 0);
    file.extend_from_slice(code);
    file.resize(2 * PAGE, 0xcc);
    file
}

/// What the short-lived state between clone and exec needs; it shares our memory and must only make calls.
struct Launch {
    image: RawFd,
    area: RawFd,
    memory: RawFd,
    socket: RawFd,
    parent: libc::pid_t,
    error: i32,
}

extern "C" fn launch(arg: *mut libc::c_void) -> i32 {
    // SAFETY: `arg` is the `Launch` on the stack of the parent, which sleeps until we exec or exit.
    let launch = unsafe { &mut *arg.cast::<Launch>() };
    let empty: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: calls on our own descriptors and plain values; `empty` ends with the null it begins with.
    unsafe {
        // The parent may have died already; then nobody would tell us.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != launch.parent {
            return 1;
        }
        let moved = [launch.area, launch.memory, launch.socket, launch.image]
            .map(|fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 16));
        let [area, memory, socket, image] = moved;
        let ready = moved.iter().all(|fd| *fd >= 0)
            && libc::dup2(area, AREA_FD) >= 0
            && libc::dup2(memory, MEMORY_FD as RawFd) >= 0
            && libc::dup2(socket, SOCKET_FD) >= 0;
        if ready {
            libc::syscall(
                libc::SYS_execveat,
                image,
                c"".as_ptr(),
                empty.as_ptr(),
                empty.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        // fcntl(2) says EINVAL where the limit of open files allows no number as high as the one asked for.
        let limited = moved.contains(&-1) && *libc::__errno_location() == libc::EINVAL;
        launch.error = if limited { libc::EMFILE } else { *libc::__errno_location() };
    }
    1
}

/// Runs [`launch`] on a stack of its own while this thread sleeps; returns the new process's pidfd.
fn clone_and_exec(launch_args: &mut Launch) -> Result<(u32, OwnedFd), SpawnError> {
    const STACK: usize = 32 << 10;
    // Not zeroed: most of its pages are never touched.
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let args: *mut Launch = launch_args;
    // SAFETY: all signals are blocked, so that no signal handler of this program runs on the borrowed address space;
    // the stack is owned here until the call returns, which CLONE_VFORK delays until the child has left it;
    // `launch` only makes system calls and writes its own argument.
    let pid = unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let pid = libc::clone(
            launch,
            stack.spare_capacity_mut().as_mut_ptr_range().end.cast(),
            flags,
            args.cast(),
            &raw mut pidfd,
        );
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if pid < 0 { Err(error) } else { Ok(pid) }
    };
    let pid = pid.map_err(host("clone"))?;
    // SAFETY: CLONE_PIDFD stored a descriptor that is ours alone.
    Ok((pid.unsigned_abs(), unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// A guest process. Each of its guest threads is stopped at a hand-over, or running between two.
///
/// It is reaped when it is dropped, not before: until then its number is its own, and whoever has a share of it can
/// signal its threads.
#[derive(Debug)]
pub(super) struct Child {
    pid: u32,
    pidfd: OwnedFd,
    /// What each virtual CPU has of it.
    threads: Vec<Threads>,
    /// Whether the listener does not tell of the process's end (before Linux 6.11).
    watch: bool,
}

/// The guest thread and the mapper of one lane. Used by that lane's virtual CPU only, and by who made the process.
#[derive(Debug)]
pub(super) struct Threads {
    area: Area,
    listener: OwnedFd,
    /// The guest thread's number.
    guest: u32,
    /// The hand-over at which the guest thread is stopped, or 0.
    stopped: AtomicU64,
    /// The same of the mapper, where there are several.
    idle: AtomicU64,
}

/// A hand-over, as the guest's process tells it: nothing of it is to be believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandOver {
    pub kind: u64,
    pub siginfo: u64,
    pub ucontext: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

/// A hand-over as Linux tells it, which is true, and as the process does.
struct Call {
    id: u64,
    thread: u32,
    handed_over: HandOver,
}

impl Child {
    /// Makes a guest process and waits until it has nothing left but what a guest may use.
    pub fn spawn(image: &Image, memory: BorrowedFd<'_>, terms: Terms) -> Result<Self, SpawnError> {
        let lanes = Lane::all(terms.lanes);
        let mut areas = Area::for_lanes(&lanes).map_err(host("map shared memory"))?;
        script::write(&areas, terms);
        let (ours, theirs) = UnixStream::pair().map_err(host("make a socket pair"))?;
        let mut launch = Launch {
            image: image.0.as_raw_fd(),
            area: areas.first().map_or(-1, |area| area.fd().as_raw_fd()),
            memory: memory.as_raw_fd(),
            socket: theirs.as_raw_fd(),
            // SAFETY: has no precondition.
            parent: unsafe { libc::getpid() },
            error: 0,
        };
        let (pid, pidfd) = clone_and_exec(&mut launch)?;
        drop(theirs);
        if launch.error != 0 {
            sys::reap(pidfd.as_fd(), true);
            return Err(SpawnError::Exec(io::Error::from_raw_os_error(launch.error)));
        }
        let Some(listeners) = receive_listeners(&ours, lanes.len())? else {
            return Err(why_not(&areas, terms, pidfd.as_fd()));
        };
        let watch = sys::kernel_version() < (6, 11);
        let (stopped, idle) = (|| AtomicU64::new(0), || AtomicU64::new(0));
        let threads = areas.drain(..).zip(listeners).map(|(area, listener)| {
            sys::hand_over_synchronously(listener.as_fd());
            Threads { area, listener, guest: 0, stopped: stopped(), idle: idle() }
        });
        let mut child = Self { pid, pidfd, threads: threads.collect(), watch };
        match child.get_ready(&lanes, ours) {
            true => Ok(child),
            false => Err(child.why_not(terms)),
        }
    }

    /// Waits until every thread has only what a guest may use; `false` if it ended before.
    fn get_ready(&mut self, lanes: &[Lane], mut socket: UnixStream) -> bool {
        for lane in lanes {
            // The first lane's mapper is told to go on when all the others are there.
            let later_mapper = u32::from(!lane.is_first());
            if !(0..=later_mapper).all(|_| self.one_is_ready(*lane)) {
                return false;
            }
        }
        match lanes {
            // What is left to do then is what makes further threads impossible.
            [first, _, ..] => {
                let told = socket.write_all(&[1]).is_ok() && socket.read(&mut [0]).is_ok_and(|len| len == 0);
                told && self.one_is_ready(*first)
            }
            _ => true,
        }
    }

    /// Waits for the first hand-over of a lane's guest thread or mapper, whichever it is.
    fn one_is_ready(&mut self, lane: Lane) -> bool {
        let (received, threads) = (self.receive(lane), self.threads.get_mut(lane.index()));
        let (Some(Call { id, thread, handed_over }), Some(threads)) = (received, threads) else {
            return false;
        };
        match handed_over.kind {
            KIND_READY => {
                *threads.stopped.get_mut() = id;
                threads.guest = thread;
                threads.area.set_board(board::DISPATCH, DISPATCH_BLOCK);
                true
            }
            KIND_DONE => {
                *threads.idle.get_mut() = id;
                true
            }
            _ => false,
        }
    }

    fn of(&self, lane: Lane) -> Option<&Threads> {
        self.threads.get(lane.index())
    }
    /// The monitor's view of a lane's room and board.
    pub fn area(&self, lane: Lane) -> Option<&Area> {
        self.of(lane).map(|threads| &threads.area)
    }
    /// The board on which batches are written.
    pub fn batches(&self) -> Option<&Area> {
        self.threads.first().map(|threads| &threads.area)
    }
    pub fn pid(&self) -> u32 {
        self.pid
    }
    /// The number of a lane's guest thread.
    pub fn guest_thread(&self, lane: Lane) -> u32 {
        self.of(lane).map_or(0, |threads| threads.guest)
    }
    /// Lets the guest thread go on; the hand-over that stopped it is answered. `false` if it cannot: it is gone.
    pub fn resume(&self, lane: Lane) -> bool {
        let Some(threads) = self.of(lane) else { return false };
        let id = threads.stopped.swap(0, Relaxed);
        id != 0 && sys::answer(threads.listener.as_fd(), id)
    }
    /// The same for a process with one lane, after the mapper has carried out the batch on the board, which ends with
    /// the answer.
    pub fn resume_after_batch(&self, lane: Lane) -> bool {
        let Some(threads) = self.of(lane) else { return false };
        threads.area.set_board(board::ANSWER, threads.stopped.swap(0, Relaxed));
        threads.area.publish();
        sys::futex_wake(threads.area.batch());
        true
    }
    /// Has a lane's mapper carry out the batch, and waits until it has. `false` if the process ended: all of its
    /// threads have then, so that its mappings are gone as well.
    pub fn carry_out(&self, lane: Lane) -> bool {
        let Some(threads) = self.of(lane) else { return false };
        let id = threads.idle.swap(0, Relaxed);
        let done = id != 0 && sys::answer(threads.listener.as_fd(), id) && self.errand_done(lane);
        if !done {
            self.end();
        }
        done
    }
    /// Waits until a lane's mapper is idle. Its guest thread is stopped meanwhile.
    fn errand_done(&self, lane: Lane) -> bool {
        let (Some(threads), Some(call)) = (self.of(lane), self.receive(lane)) else { return false };
        threads.idle.store(call.id, Relaxed);
        call.thread != threads.guest
    }
    /// Waits for the next hand-over of a lane's guest thread; `None` when the process ended. Its mapper is idle
    /// meanwhile, or answers.
    pub fn wait(&self, lane: Lane) -> Option<HandOver> {
        let (threads, call) = (self.of(lane)?, self.receive(lane)?);
        threads.stopped.store(call.id, Relaxed);
        Some(call.handed_over)
    }
    /// Waits for a hand-over of either thread of a lane.
    fn receive(&self, lane: Lane) -> Option<Call> {
        let listener = self.of(lane)?.listener.as_fd();
        loop {
            if self.watch {
                sys::wait_readable(listener, self.pidfd.as_fd());
                if self.ended().is_some() {
                    return None;
                }
            }
            match sys::receive(listener) {
                Received::Call { id, thread, args: [kind, siginfo, ucontext, fs_base, gs_base, _] } => {
                    let handed_over = HandOver { kind, siginfo, ucontext, fs_base, gs_base };
                    return Some(Call { id, thread, handed_over });
                }
                Received::Nothing => {}
                Received::Gone if self.ended().is_some() => return None,
                Received::Gone => std::thread::yield_now(),
            }
        }
    }
    /// How the process ended, once it has.
    pub fn ended(&self) -> Option<Ended> {
        sys::peek(self.pidfd.as_fd(), false)
    }
    /// Ends the process if it has not ended, and waits until it has.
    pub fn end(&self) {
        if self.ended().is_none() {
            sys::signal(self.pidfd.as_raw_fd(), libc::SIGKILL);
            sys::peek(self.pidfd.as_fd(), true);
        }
    }
    /// Why it ended while it was set up.
    fn why_not(mut self, terms: Terms) -> SpawnError {
        let areas: Vec<Area> = self.threads.drain(..).map(|threads| threads.area).collect();
        match self.ended() {
            Some(ended) => explain(&areas, terms, ended),
            None => why_not(&areas, terms, self.pidfd.as_fd()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
        sys::reap(self.pidfd.as_fd(), true);
    }
}

/// The listener of each lane, in order; `None` if the process ended before it sent them all.
fn receive_listeners(socket: &UnixStream, lanes: usize) -> Result<Option<Vec<OwnedFd>>, SpawnError> {
    let mut listeners: Vec<Option<OwnedFd>> = (0..lanes).map(|_| None).collect();
    for _ in 0..lanes {
        let Some((lane, listener)) = sys::receive_fd(socket).map_err(host("receive the listener"))? else {
            return Ok(None);
        };
        if let Some(slot) = listeners.get_mut(usize::from(lane)) {
            *slot = Some(listener);
        }
    }
    Ok(listeners.into_iter().collect())
}

fn why_not(areas: &[Area], terms: Terms, pidfd: BorrowedFd<'_>) -> SpawnError {
    // It has closed its socket, and so has ended or is about to: the status of an exit under way stands.
    sys::signal(pidfd.as_raw_fd(), libc::SIGKILL);
    explain(areas, terms, sys::peek(pidfd, true).unwrap_or(Ended::Unknown))
}

fn explain(areas: &[Area], terms: Terms, ended: Ended) -> SpawnError {
    // Whoever fails, the first lane's code interprets the scripts.
    let failed_at = areas.first().map_or(0, |area| area.room(room::FAILED_AT));
    match ended {
        Ended::Status(errno) => SpawnError::SetUp {
            step: script::name_of(areas, terms, failed_at),
            error: io::Error::from_raw_os_error(errno),
        },
        Ended::Signal(signal) => SpawnError::Killed(format!("signal {signal}")),
        Ended::Unknown => SpawnError::Killed("its status was taken by someone else".into()),
    }
}
