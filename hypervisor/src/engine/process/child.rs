//! A guest process: its birth, its hand-overs and its death.
//!
//! It begins as an exec of the stub from a memfd, so that nothing of the monitor is ever in it: no memory, no
//! environment, no descriptors but the three that its script uses and closes. What may not be done here:
//! knowing what a hand-over means.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use super::area::{Area, CODE, board, room};
use super::filter::MEMORY_FD;
use super::script::{self, AREA_FD, SOCKET_FD, Terms};
use super::stub::{self, KIND_READY};
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
    pub fn new() -> Result<Self, SpawnError> {
        const MFD_EXEC: u32 = 0x10;
        const CLOEXEC: u32 = libc::MFD_CLOEXEC;
        // MFD_EXEC came with Linux 6.3, together with the setting that makes it necessary.
        let fd = sys::memfd(c"paravane-guest", CLOEXEC | MFD_EXEC, 0)
            .or_else(|_| sys::memfd(c"paravane-guest", CLOEXEC, 0))
            .map_err(host("create a memfd"))?;
        let file = std::fs::File::from(fd);
        std::os::unix::fs::FileExt::write_all_at(&file, &elf(stub::code()), 0)
            .map_err(host("write the stub"))?;
        Ok(Self(file.into()))
    }
}

/// A static ELF executable of one page of code at [`CODE`] (System V gABI, chapters 4 and 5).
fn elf(code: &[u8]) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut file = Vec::with_capacity(2 * PAGE);
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, x86-64, version 1; entry; program headers at 64; no sections; two headers of 56 bytes.
    put(&[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&CODE.to_le_bytes());
    put(&64u64.to_le_bytes());
    put(&[0; 12]);
    put(&[64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    let mut header = |kind: u32, flags: u32, words: [u64; 6]| {
        put(&kind.to_le_bytes());
        put(&flags.to_le_bytes());
        words.iter().for_each(|w| put(&w.to_le_bytes()));
    };
    const PAGE64: u64 = PAGE as u64;
    let (readable, executable) = (4, 1);
    header(libc::PT_LOAD, readable | executable, [PAGE64, CODE, CODE, PAGE64, PAGE64, PAGE64]);
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
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
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
        let pid =
            libc::clone(launch, stack.as_mut_ptr_range().end.cast(), flags, args.cast(), &raw mut pidfd);
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        if pid < 0 { Err(error) } else { Ok(pid) }
    };
    let pid = pid.map_err(host("clone"))?;
    // SAFETY: CLONE_PIDFD stored a descriptor that is ours alone.
    Ok((pid.unsigned_abs(), unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// A guest process that is stopped at a hand-over, or running between two.
#[derive(Debug)]
pub(super) struct Child {
    area: Area,
    pid: u32,
    pidfd: OwnedFd,
    listener: OwnedFd,
    /// The notification to answer; `None` while it runs.
    stopped: Option<u64>,
    /// Before 6.11 a listener does not tell that the last caller is gone: the pidfd must be watched as well.
    watch: bool,
    ended: Option<Ended>,
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

impl Child {
    /// Makes a guest process and waits until it has nothing left but what a guest may use.
    pub fn spawn(image: &Image, memory: BorrowedFd<'_>, terms: Terms) -> Result<Self, SpawnError> {
        let area = Area::new().map_err(host("map shared memory"))?;
        script::write(&area, terms);
        let (ours, theirs) = UnixStream::pair().map_err(host("make a socket pair"))?;
        let mut launch = Launch {
            image: image.0.as_raw_fd(),
            area: area.fd().as_raw_fd(),
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
        let Some(listener) = sys::receive_fd(&ours).map_err(host("receive the listener"))? else {
            return Err(why_not(&area, terms, pidfd.as_fd()));
        };
        sys::hand_over_synchronously(listener.as_fd());
        let watch = sys::kernel_version() < (6, 11);
        let mut child = Self { area, pid, pidfd, listener, stopped: None, watch, ended: None };
        match child.wait() {
            Some(HandOver { kind: KIND_READY, .. }) => {
                child.area.set_board(board::DISPATCH, DISPATCH_BLOCK);
                Ok(child)
            }
            _ => Err(child.ended.map_or_else(
                || why_not(&child.area, terms, child.pidfd.as_fd()),
                |ended| explain(&child.area, terms, ended),
            )),
        }
    }

    pub fn area(&self) -> &Area {
        &self.area
    }
    pub fn pid(&self) -> u32 {
        self.pid
    }
    pub fn pidfd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
    /// Lets the guest thread go on; the hand-over that stopped it is answered.
    pub fn resume(&mut self) {
        if let Some(id) = self.stopped.take() {
            sys::answer(self.listener.as_fd(), id);
        }
    }
    /// The same, after the mapper has carried out the batch on the board, which ends with the answer.
    pub fn resume_after_batch(&mut self) {
        if let Some(id) = self.stopped.take() {
            self.area.set_board(board::ANSWER, id);
            self.area.publish();
            sys::futex_wake(self.area.batch());
        }
    }
    /// Waits for the next hand-over; `None` when the process ended.
    pub fn wait(&mut self) -> Option<HandOver> {
        loop {
            if self.watch {
                sys::wait_readable(self.listener.as_fd(), self.pidfd.as_fd());
                if self.has_ended() {
                    return None;
                }
            }
            match sys::receive(self.listener.as_fd()) {
                Received::Call { id, args: [kind, siginfo, ucontext, fs_base, gs_base, _] } => {
                    self.stopped = Some(id);
                    return Some(HandOver { kind, siginfo, ucontext, fs_base, gs_base });
                }
                Received::Nothing => {}
                Received::Gone if self.has_ended() => return None,
                Received::Gone => std::thread::yield_now(),
            }
        }
    }
    fn has_ended(&mut self) -> bool {
        self.ended = self.ended.or_else(|| sys::reap(self.pidfd.as_fd(), false));
        self.ended.is_some()
    }
    /// How the process ended, once [`Child::wait`] said that it did.
    pub fn ended(&self) -> Option<Ended> {
        self.ended
    }
    /// Ends the process if it has not ended.
    pub fn end(&mut self) {
        if self.ended.is_none() {
            sys::signal(self.pidfd.as_raw_fd(), libc::SIGKILL);
            self.ended = sys::reap(self.pidfd.as_fd(), true);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

fn why_not(area: &Area, terms: Terms, pidfd: BorrowedFd<'_>) -> SpawnError {
    // It has closed its socket, and so has ended or is about to: the status of an exit under way stands.
    sys::signal(pidfd.as_raw_fd(), libc::SIGKILL);
    explain(area, terms, sys::reap(pidfd, true).unwrap_or(Ended::Unknown))
}

fn explain(area: &Area, terms: Terms, ended: Ended) -> SpawnError {
    match ended {
        Ended::Status(errno) => SpawnError::SetUp {
            step: script::name_of(area, terms, area.room(room::FAILED_AT)),
            error: io::Error::from_raw_os_error(errno),
        },
        Ended::Signal(signal) => SpawnError::Killed(format!("signal {signal}")),
        Ended::Unknown => SpawnError::Killed("its status was taken by someone else".into()),
    }
}
