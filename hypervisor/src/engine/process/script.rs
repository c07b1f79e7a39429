//! What a fresh guest process does to itself before it may run guest code, as data.
//!
//! The process starts as an exec of the stub alone (without memory, environment or threads of the monitor), maps its
//! board and interprets the steps below. They are written in the order in which they are safe: privileges
//! go before the second thread exists, host mappings before a guest thread can run, and each thread's
//! filter comes last. Nothing here runs in the monitor; it only writes.
//!
//! Where there are several lanes the first thread makes the mapper of the second, that one the mapper of the third,
//! and so on, each before it installs its own listener: a thread has the filters of the one that made it. The limits
//! come last, once the monitor has seen every lane: they forbid threads.

use super::area::{
    Area, BOARD_FILE_OFFSET, BOARD_SIZE, CODE_SIZE, Lane, M2P_VA, MAX_LANES, ROOM_SIZE, STEP, STRIDE,
    TASK_END, board, room,
};
use super::filter::{self, LISTENER_FD, MEMORY_FD};
use super::stub::{self, KICK_SIGNAL, Place, STEP_JUMP};
use crate::host::host_cpuid::ARCH_SET_CPUID;

/// The memfd of room and board in the fresh process.
pub(super) const AREA_FD: i32 = 3;
/// Its end of the socket that brings the listener to the monitor.
pub(super) const SOCKET_FD: i32 = 5;

/// Where the machine-to-physical table is in machine memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct M2p {
    pub offset: u64,
    pub len: u64,
}

impl M2p {
    /// Whether a guest process has the table at `va`.
    pub fn contains(self, va: u64) -> bool {
        va.checked_sub(M2P_VA).is_some_and(|offset| offset < self.len)
    }
}

/// What a guest process is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub m2p: M2p,
    /// CPUID traps, and the monitor answers it.
    pub cpuid_traps: bool,
    /// The mapper keeps the capability that mapping the lowest pages takes.
    pub low_pages: bool,
    /// The limit on the size of core dumps that a process may still set: 1, or 0 where that is the hard limit.
    pub core_limit: u64,
    /// How many virtual CPUs there are.
    pub lanes: u8,
    /// The CPUs that their threads share with the monitor's, by lane. A machine with one virtual CPU needs none: all
    /// that it makes is where the thread is that made it.
    pub cpus: [u16; MAX_LANES as usize],
}

/// One step of a script and what to call it when it fails.
#[derive(Clone, Copy, Debug)]
struct Step {
    name: &'static str,
    words: [u64; 7],
}

/// Writes structures to the board and tells their addresses.
struct Data<'a> {
    lane: Lane,
    area: &'a Area,
    at: u64,
}

impl Data<'_> {
    fn put(&mut self, words: &[u64]) -> u64 {
        let va = self.lane.board_va(self.at);
        for word in words {
            self.area.set_board(self.at, *word);
            self.at += 8;
        }
        debug_assert!(self.at <= board::SCRIPT);
        va
    }
    /// A `sock_fprog` for `seccomp`.
    fn filter(&mut self, program: &[u64]) -> u64 {
        let code = self.put(program);
        self.put(&[program.len() as u64, code])
    }
}

fn step(name: &'static str, nr: i64, args: &[u64]) -> Step {
    let mut words = [0; 7];
    for (to, from) in words.iter_mut().zip([nr as u64].iter().chain(args)) {
        *to = *from;
    }
    Step { name, words }
}

fn jump(lane: Lane, place: Place) -> Step {
    Step { name: "jump", words: [STEP_JUMP, stub::address_in(lane, place), 0, 0, 0, 0, 0] }
}

/// Makes a thread, which begins with the script at `va`.
fn thread(name: &'static str, va: u64) -> Step {
    const FLAGS: i32 =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
    step(name, libc::SYS_clone, &[FLAGS as u64, 0, 0, 0, 0, va])
}

const FIXED: u64 = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
const READ: u64 = libc::PROT_READ as u64;
const ALL_FDS: u64 = u32::MAX as u64;

/// The signals that code at CPL 3 can cause, and the kick.
pub(super) const SIGNALS: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS, KICK_SIGNAL];

/// SA_RESTORER, which the kernel demands and libc hides; the stub never returns through it.
const SA_RESTORER: u64 = 0x0400_0000;

/// The capability that lets a process map below vm.mmap_min_addr.
const CAP_SYS_RAWIO: u64 = 1 << 17;

/// PR_SET_SYSCALL_USER_DISPATCH (Linux 5.11). It traps calls before any seccomp filter sees them: a container's
/// filter that kills for some numbers cannot kill the guest for its choice, and the numbers that Linux exempts
/// from seccomp (uretprobe, uprobe) are caught as well.
const SET_SYSCALL_USER_DISPATCH: u64 = 59;

/// Limits that make sure of what the filters already forbid.
const LIMITS: [u64; 4] = [
    libc::RLIMIT_FSIZE as u64,
    libc::RLIMIT_NOFILE as u64,
    libc::RLIMIT_NPROC as u64,
    libc::RLIMIT_MEMLOCK as u64,
];

/// The leader's way: it sets everything up, makes the guest thread and becomes the mapper of the first lane.
fn leader_steps(data: &mut Data<'_>, terms: Terms) -> Vec<Step> {
    let Terms { m2p, cpuid_traps, low_pages, core_limit, .. } = terms;
    let lane = data.lane;
    let no_new_privs = libc::PR_SET_NO_NEW_PRIVS as u64;
    let capabilities = capabilities(data, if low_pages { CAP_SYS_RAWIO } else { 0 });
    let name = data.put(&[u64::from_le_bytes(*b"paravane"), u64::from_le_bytes(*b"-guest\0\0")]);
    let prctl = libc::SYS_prctl;
    // All threads, so that a switch between any two of the threads that take turns changes nothing.
    let cpuid = step("have CPUID trap", libc::SYS_arch_prctl, &[ARCH_SET_CPUID, 0]);
    let mut steps = if cpuid_traps { vec![cpuid] } else { vec![] };
    steps.extend([
        map_room(lane),
        step("drop inherited descriptors", libc::SYS_close_range, &[0, 2]),
        step("drop inherited descriptors", libc::SYS_close_range, &[SOCKET_FD as u64 + 1, ALL_FDS]),
        step("leave the session", libc::SYS_setsid, &[]),
        step("take a name", prctl, &[libc::PR_SET_NAME as u64, name]),
        step("renounce new privileges", prctl, &[no_new_privs, 1]),
        step("drop capabilities", libc::SYS_capset, &[capabilities.0, capabilities.1]),
        step("bind its life to ours", prctl, &[libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64]),
    ]);
    let flags = (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART) as u64;
    let handler = stub::address(if lane.is_alone() { Place::Signal } else { Place::SignalOfLanes });
    let action = data.put(&[handler, flags | SA_RESTORER, lane.start() + CODE_SIZE - 8, 0]);
    for signal in SIGNALS {
        steps.push(step("set its signal handlers", libc::SYS_rt_sigaction, &[signal as u64, action, 0, 8]));
    }
    let (board_end, next) = (lane.board_va(BOARD_SIZE), lane.start() + STRIDE);
    steps.push(drop_memory(0, lane.start()));
    steps.push(drop_memory(lane.start() + CODE_SIZE, lane.room_va(0)));
    steps.push(drop_memory(lane.room_va(ROOM_SIZE), lane.board_va(0)));
    if lane.is_alone() {
        steps.push(drop_memory(board_end, TASK_END));
    } else {
        // The others' code lies between.
        steps.push(drop_memory(board_end, next));
        steps.push(drop_memory(lane.start() + lane.count() * STRIDE, TASK_END));
    }
    steps.push(step(
        "map the machine-to-physical table",
        libc::SYS_mmap,
        &[M2P_VA, m2p.len, READ, FIXED, MEMORY_FD, m2p.offset],
    ));
    steps.extend(listener_steps(data, terms));
    let last = if lane.is_alone() {
        steps.push(step("close its socket", libc::SYS_close, &[SOCKET_FD as u64]));
        steps.push(thread("start its guest thread", lane.board_va(board::GUEST_SCRIPT)));
        Place::Mapper
    } else {
        let told = lane.room_va(room::FAILED_AT);
        steps.push(thread("start its guest thread", lane.board_va(board::GUEST_SCRIPT)));
        steps.push(step("wait for its other threads", libc::SYS_read, &[SOCKET_FD as u64, told, 1]));
        Place::Errands
    };
    let zero = data.put(&[0, 0]);
    for resource in LIMITS {
        steps.push(step("lower its limits", libc::SYS_setrlimit, &[resource, zero]));
    }
    steps.extend(no_core_dumps(data, core_limit));
    if !lane.is_alone() {
        steps.push(step("close its socket", libc::SYS_close, &[SOCKET_FD as u64]));
    }
    steps.push(mapper_filter(data));
    steps.push(jump(lane, last));
    steps
}

/// The way of the mapper of a later lane, which has what the leader set up.
fn mapper_steps(data: &mut Data<'_>, terms: Terms) -> Vec<Step> {
    let lane = data.lane;
    let mut steps = listener_steps(data, terms);
    steps.push(step("close its socket", libc::SYS_close, &[SOCKET_FD as u64]));
    steps.push(thread("start its guest thread", lane.board_va(board::GUEST_SCRIPT)));
    steps.push(mapper_filter(data));
    steps.push(jump(lane, Place::Errands));
    steps
}

/// What a later lane's mapper does first: it comes by its board, on which the rest is written.
fn first_steps(lane: Lane) -> [Step; FIRST_STEPS as usize] {
    let script = [STEP_JUMP, stub::address(Place::Script), lane.board_va(board::SCRIPT), 0, 0, 0, 0];
    let (board, offset) = (lane.board_va(0), lane.file_offset() + BOARD_FILE_OFFSET);
    [
        drop_memory(lane.start() + CODE_SIZE, lane.start() + STRIDE),
        map_room(lane),
        step("map its board", libc::SYS_mmap, &[board, BOARD_SIZE, READ, FIXED, AREA_FD as u64, offset]),
        Step { name: "jump", words: script },
    ]
}

/// How many those are.
const FIRST_STEPS: u64 = 4;

/// Where on the first board a later lane's first steps are: where its batches will be.
fn first_steps_at(lane: Lane) -> u64 {
    board::STEPS + lane.index() as u64 * FIRST_STEPS * STEP
}

fn map_room(lane: Lane) -> Step {
    let rights = READ | libc::PROT_WRITE as u64;
    let args = [lane.room_va(0), ROOM_SIZE, rights, FIXED, AREA_FD as u64, lane.file_offset()];
    step("map its room", libc::SYS_mmap, &args)
}

fn drop_memory(from: u64, to: u64) -> Step {
    step("drop the memory it began with", libc::SYS_munmap, &[from, to - from])
}

fn mapper_filter(data: &mut Data<'_>) -> Step {
    let own = data.filter(&filter::mapper(data.lane));
    let set_filter = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    step("install the mapper's filter", libc::SYS_seccomp, &[set_filter, 0, own])
}

/// A lane's listener, after the thread that has the next one's is made.
fn listener_steps(data: &mut Data<'_>, terms: Terms) -> Vec<Step> {
    let lane = data.lane;
    let mut steps = Vec::new();
    if let Some(cpu) = terms.cpus.get(lane.index()).filter(|_| !lane.is_alone()) {
        let mut set = vec![0; usize::from(*cpu) / 64];
        set.push(1 << (*cpu % 64));
        let at = data.put(&set);
        let args = [0, set.len() as u64 * 8, at];
        steps.push(step("stay on its CPU", libc::SYS_sched_setaffinity, &args));
    }
    if let Some(next) = lane.next() {
        let first = Lane::first(terms.lanes).board_va(first_steps_at(next));
        steps.push(thread("start another mapper", first));
    }
    let set_filter = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let listener = data.filter(&filter::listener(lane));
    let message = listener_message(data);
    steps.extend([
        step("install a seccomp listener", libc::SYS_seccomp, &[set_filter, listen, listener]),
        step(
            "send the seccomp listener",
            libc::SYS_sendmsg,
            &[SOCKET_FD as u64, message, libc::MSG_NOSIGNAL as u64],
        ),
        step("close its area", libc::SYS_close, &[AREA_FD as u64]),
    ]);
    steps
}

/// Header and data of `capset`: these capabilities, effective and permitted, and no others.
fn capabilities(data: &mut Data<'_>, set: u64) -> (u64, u64) {
    const LINUX_CAPABILITY_VERSION_3: u64 = 0x2008_0522;
    (data.put(&[LINUX_CAPABILITY_VERSION_3]), data.put(&[set | set << 32, 0, 0]))
}

/// No core dumps, of which a guest could make as many as it likes. A program that takes them by a pipe gets them
/// whatever the limit, but for a limit of exactly 1 (Linux, fs/coredump.c), which for a file is as good as 0. Whoever
/// may not have 1 becomes undumpable, at the price that an unprivileged user cannot look into /proc for the process's
/// memory.
fn no_core_dumps(data: &mut Data<'_>, core_limit: u64) -> Vec<Step> {
    let limit = data.put(&[core_limit, core_limit]);
    let set = step("lower its limits", libc::SYS_setrlimit, &[libc::RLIMIT_CORE as u64, limit]);
    let undumpable = step("become undumpable", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 0]);
    if core_limit == 0 { vec![set, undumpable] } else { vec![set] }
}

/// A `msghdr` that carries the listener, and in its one byte whose it is.
fn listener_message(data: &mut Data<'_>) -> u64 {
    const HEADER_LEN: u64 = 20;
    let rights = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
    let control = data.put(&[HEADER_LEN, rights, LISTENER_FD]);
    let lane = data.put(&[data.lane.index() as u64]);
    let iov = data.put(&[lane, 1]);
    data.put(&[0, 0, iov, 1, control, 24, 0])
}

/// The guest thread's way: a signal stack, no descriptors, no blocked signals, and no system calls.
fn guest_steps(data: &mut Data<'_>, terms: Terms) -> Vec<Step> {
    let mut steps = Vec::new();
    if terms.low_pages {
        let (header, none) = capabilities(data, 0);
        steps.push(step("drop the guest thread's capabilities", libc::SYS_capset, &[header, none]));
    }
    let lane = data.lane;
    let stack = data.put(&[lane.room_va(room::STACK), 0, ROOM_SIZE - room::STACK]);
    let none = data.put(&[0]);
    let filter = data.filter(&filter::guest(lane));
    let handed_over = stub::address_in(lane, Place::HandedOver);
    steps.extend([
        step("set its signal stack", libc::SYS_sigaltstack, &[stack, 0]),
        step("drop the guest thread's descriptors", libc::SYS_close_range, &[0, ALL_FDS]),
        step("unblock signals", libc::SYS_rt_sigprocmask, &[libc::SIG_SETMASK as u64, none, 0, 8]),
        step(
            "have system calls dispatched to it",
            libc::SYS_prctl,
            &[SET_SYSCALL_USER_DISPATCH, 1, handed_over, 1, lane.board_va(board::DISPATCH)],
        ),
        step(
            "install the guest's filter",
            libc::SYS_seccomp,
            &[u64::from(libc::SECCOMP_SET_MODE_FILTER), 0, filter],
        ),
        jump(lane, Place::Ready),
    ]);
    steps
}

/// Writes all scripts to the boards of a process that is about to start.
pub(super) fn write(areas: &[Area], terms: Terms) {
    visit(areas, terms, |area, _, at, step| {
        for (i, word) in (0u64..).zip(step.words) {
            area.set_board(at + i * 8, word);
        }
    });
}

/// What the step at `va`, an address in the guest process, was to do.
pub(super) fn name_of(areas: &[Area], terms: Terms, va: u64) -> &'static str {
    let mut name = "start";
    visit(areas, terms, |_, lane, at, step| {
        if lane.board_va(at) == va {
            name = step.name;
        }
    });
    name
}

fn visit(areas: &[Area], terms: Terms, mut f: impl FnMut(&Area, Lane, u64, &Step)) {
    let Some(first_area) = areas.first() else { return };
    let mut steps_at = |area: &Area, lane: Lane, base: u64, steps: &[Step]| {
        for (i, step) in (0u64..).zip(steps) {
            f(area, lane, base + i * STEP, step);
        }
    };
    for (lane, area) in Lane::all(terms.lanes).into_iter().zip(areas) {
        let mut data = Data { lane, area, at: board::DATA };
        let own = if lane.is_first() { leader_steps } else { mapper_steps };
        steps_at(area, lane, board::SCRIPT, &own(&mut data, terms));
        steps_at(area, lane, board::GUEST_SCRIPT, &guest_steps(&mut data, terms));
        if !lane.is_first() {
            steps_at(first_area, Lane::first(terms.lanes), first_steps_at(lane), &first_steps(lane));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_fit_the_board() {
        let area = Area::new().unwrap();
        for lanes in [1, 2, MAX_LANES] {
            let terms = Terms {
                m2p: M2p { offset: 0, len: 4096 },
                cpuid_traps: true,
                low_pages: true,
                core_limit: 0,
                lanes,
                cpus: [1023; MAX_LANES as usize],
            };
            for lane in Lane::all(lanes) {
                let mut data = Data { lane, area: &area, at: board::DATA };
                let own = if lane.is_first() { leader_steps } else { mapper_steps };
                let own = own(&mut data, terms);
                let guest = guest_steps(&mut data, terms);
                assert!(data.at <= board::SCRIPT, "{:#x}", data.at);
                assert!(board::SCRIPT + own.len() as u64 * STEP <= board::GUEST_SCRIPT);
                assert!(board::GUEST_SCRIPT + guest.len() as u64 * STEP <= board::STEPS);
                assert!(first_steps_at(lane) + FIRST_STEPS * STEP <= BOARD_SIZE);
            }
        }
    }
}
