//! A debugger's requests, on a processor that knows five instructions.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::thread;

use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResume, MultiThreadSingleStep};
use gdbstub::target::ext::breakpoints::{HwWatchpoint, SwBreakpoint};
use proptest::prelude::*;

use super::*;
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::engine::{Cpu, Exit};
use crate::gdb::Debugged;
use crate::ledger::{Cause, Ledger};
use crate::machine::kick::Kick;
use crate::machine::memory::{Backing, MachineMemory, Maddr, PAGE_SIZE};
use crate::machine::time::Clock;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::monitor::control::Orders;
use crate::monitor::inspect::{Inspect, Question, Unwritable};
use crate::monitor::observe::Unobserved;
use crate::monitor::waker::Waker;
use crate::monitor::{Handled, Next, Runner, vcpu_loop};
use crate::x86::exception::{Fault, vector};
use crate::x86::registers::{Regs, SystemRegisters};
use crate::x86::rflags::{FIXED, TF};

const NOP: u8 = 0x90;
const INT3: u8 = 0xcc;
const PUSHF: u8 = 0x9c;
const POPF: u8 = 0x9d;
/// Traps, and is emulated.
const HLT: u8 = 0xf4;
/// A #DB, as a breakpoint in a debug register makes one.
const INT1: u8 = 0xf1;
/// To itself.
const LOOP: [u8; 2] = [0xeb, 0xfe];
/// Where the code is, and the stack's top.
const CODE: u64 = 0x1000;
const STACK: u64 = 0x3000;
const FRAMES: u64 = 4;
/// What a guest that has begun has in RAX.
const BEGUN: u64 = 0xbe;
/// A frame that nobody may write.
const TABLE: u64 = 3;

/// A guest whose linear addresses are its memory's.
struct Toy {
    regs: Regs,
    memory: MachineMemory,
    ledger: Ledger,
    /// The exits that it was to handle.
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Toy {
    fn byte(&self, at: u64) -> u8 {
        self.memory.read_obj(Maddr(at)).unwrap_or(0)
    }

    /// Executes an instruction; an exception that it raises.
    fn execute(&mut self) -> Option<u8> {
        let stepping = self.regs.rflags & TF != 0;
        match self.byte(self.regs.rip) {
            NOP => self.regs.rip += 1,
            INT3 => {
                self.regs.rip += 1;
                return Some(vector::BREAKPOINT);
            }
            PUSHF => {
                self.regs.rsp -= 8;
                self.memory.write_obj(Maddr(self.regs.rsp), &self.regs.rflags).unwrap();
                self.regs.rip += 1;
            }
            POPF => {
                self.regs.rflags = self.memory.read_obj(Maddr(self.regs.rsp)).unwrap();
                self.regs.rsp += 8;
                self.regs.rip += 1;
            }
            HLT => return Some(vector::PROTECTION),
            INT1 => {
                self.regs.rip += 1;
                return Some(vector::DEBUG);
            }
            0xeb => {}
            _ => return Some(vector::UNDEFINED),
        }
        stepping.then_some(vector::DEBUG)
    }
}

impl Runner for Toy {
    fn regs(&self) -> &Regs {
        &self.regs
    }
    fn memory(&self) -> &MachineMemory {
        &self.memory
    }
    fn begin(&mut self, _: &mut dyn Cpu) {
        self.regs.rax = BEGUN;
    }
    fn enter(&mut self, _: &mut dyn Cpu) -> Exit {
        for _ in 0..64 {
            if let Some(vector) = self.execute() {
                return Exit::Fault(Fault { vector, error_code: 0, address: 0 });
            }
        }
        Exit::Kick
    }
    fn handle(&mut self, exit: Exit) -> Handled {
        let Exit::Fault(fault) = exit else { return Cause::Kick.into() };
        assert!(self.regs.rflags & TF == 0 || fault.vector == vector::DEBUG, "whose is it?");
        self.seen.lock().unwrap().push(fault.vector);
        if fault.vector == vector::PROTECTION {
            self.regs.rip += 1;
        }
        Cause::GuestFault { vector: fault.vector }.into()
    }
    fn prepare(&mut self) -> Next {
        Next::Run(None)
    }
    fn about_to_run(&mut self, _: u64) {}
    fn woken(&mut self) {}
    fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }
    fn inspect(&mut self) -> Option<&mut dyn Inspect> {
        Some(self)
    }
}

impl Inspect for Toy {
    fn regs_mut(&mut self) -> &mut Regs {
        &mut self.regs
    }
    fn system(&self) -> SystemRegisters {
        SystemRegisters::default()
    }
    fn translate(&self, va: u64) -> Option<Maddr> {
        (va < FRAMES * PAGE_SIZE).then_some(Maddr(va))
    }
    fn write(&mut self, at: Maddr, bytes: &[u8]) -> Result<(), Unwritable> {
        if at.mfn().0 == TABLE { Err(Unwritable::Table) } else { Ok(self.memory.write(at, bytes)?) }
    }
    fn bad_end(&self) -> Option<String> {
        None
    }
    fn answer(&self, _: Question) -> String {
        "plays".to_owned()
    }
}

/// The engine's part, which has nothing to do.
struct NoCpu;

impl Kick for NoCpu {
    fn kick(&self) {}
    fn arm(&self, _: u64) {}
}

impl Cpu for NoCpu {
    fn catch_up(&mut self, _: &mut VcpuSpace, _: &TableLog, _: &MachineMemory) -> Result<(), &'static str> {
        Ok(())
    }
    fn enter(&mut self, _: &mut Regs, _: &VcpuSpace, _: &MachineMemory) -> Exit {
        Exit::Kick
    }
    fn save(&mut self) -> Result<VectorState, BadState> {
        Ok(VectorState::reset())
    }
    fn load(&mut self, _: &VectorState) -> Result<(), BadState> {
        Ok(())
    }
    fn debug(&mut self, breakpoints: &Breakpoints) -> Result<(), NoBreakpoints> {
        if breakpoints.addresses.contains(&STACK) { Err(NoBreakpoints::Absent("the toy")) } else { Ok(()) }
    }
    fn take_debug_status(&mut self) -> u64 {
        1
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(Self)
    }
}

/// A toy in its loop, on a thread of its own.
struct Running {
    session: Arc<Session>,
    control: Control,
    guest: Guest,
    seen: Arc<Mutex<Vec<u8>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    fn new(code: &[u8]) -> Self {
        let waker = Arc::new(Waker::new(Arc::new(NoCpu)).unwrap());
        let session = Session::new([waker.clone() as Arc<dyn Kick>]).unwrap();
        let control = Control::default();
        control.attach([waker.clone() as Arc<dyn Kick>]);
        let memory = MachineMemory::new(0, FRAMES, Backing::Anonymous).unwrap();
        memory.write(Maddr(CODE), code).unwrap();
        let regs = Regs { rip: CODE, rsp: STACK, rflags: FIXED, ..Regs::default() };
        let seen = Arc::new(Mutex::default());
        let mut toy = Toy { regs, memory, ledger: Ledger::new(), seen: Arc::clone(&seen) };
        let guest = Guest::new(Arc::clone(&session), b"the kernel".as_slice().into());
        let mut orders = Orders::new(control.clone(), Clock::new(1_000_000, 0));
        let shared = Arc::clone(&session);
        let thread = thread::spawn(move || {
            let mut debugged = Debugged::new(&mut toy as &mut (dyn Runner + Send), Arc::clone(&shared), 0);
            vcpu_loop::run(&mut NoCpu, &mut debugged, &waker, &mut orders, &mut Unobserved);
            shared.finish(&DomainEnd::Interrupted);
        });
        session.stand_still();
        Self { session, control, guest, seen, thread: Some(thread) }
    }

    fn go(&mut self, step: bool) -> Stop {
        self.guest.clear_resume_actions().unwrap();
        if step {
            self.guest.set_resume_action_step(tid(0), None).unwrap();
        }
        self.guest.resume().unwrap();
        loop {
            if let Some(stop) = self.session.standing() {
                return stop;
            }
            wait(&[self.session.bell.as_raw_fd()]).unwrap();
            let _ = self.session.bell.read();
        }
    }

    fn regs(&self) -> Regs {
        self.guest.ask(0, |standing| *standing.runner.regs()).unwrap()
    }

    /// What is in memory, INT3s of ours and all.
    fn memory(&self, va: u64) -> u8 {
        self.guest.ask(0, move |standing| standing.runner.memory().read_obj(Maddr(va)).unwrap()).unwrap()
    }

    fn read(&mut self, va: u64) -> Option<u8> {
        let mut byte = [0];
        self.guest.read_addrs(va, &mut byte, tid(0)).ok().map(|_| byte[0])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

#[test]
fn a_breakpoint_is_met_and_nobody_sees_it() {
    let mut toy = Running::new(&[NOP, NOP, HLT, LOOP[0], LOOP[1]]);
    assert_eq!(toy.regs().rax, BEGUN, "what the loop tells a runner reaches it");
    assert!(toy.guest.add_sw_breakpoint(CODE + 1, 1).is_ok_and(|done| done));
    assert_eq!((toy.memory(CODE + 1), toy.read(CODE + 1)), (INT3, Some(NOP)));
    assert_eq!(toy.go(false), Stop { vcpu: 0, why: Why::Breakpoint });
    assert_eq!(toy.regs().rip, CODE + 1);
    // As gdb goes on from a breakpoint.
    assert!(toy.guest.remove_sw_breakpoint(CODE + 1, 1).is_ok_and(|done| done));
    assert_eq!(toy.go(true), Stop { vcpu: 0, why: Why::Stepped });
    assert_eq!((toy.regs().rip, toy.memory(CODE + 1)), (CODE + 2, NOP));
    assert!(toy.seen.lock().unwrap().is_empty(), "the guest had no part in it");
    assert!(toy.guest.remove_sw_breakpoint(CODE + 1, 1).is_ok_and(|done| !done));
    assert!(toy.guest.add_sw_breakpoint(TABLE * PAGE_SIZE, 1).is_err(), "it was validated");
    assert!(toy.guest.add_sw_breakpoint(FRAMES * PAGE_SIZE, 1).is_err(), "nothing is there");
}

#[test]
fn an_int3_of_the_guests_own_is_its_own() {
    let mut toy = Running::new(&[INT3, HLT, NOP, LOOP[0], LOOP[1]]);
    toy.guest.add_sw_breakpoint(CODE + 2, 1).unwrap_or_default();
    assert_eq!(toy.go(false).why, Why::Breakpoint);
    assert_eq!(*toy.seen.lock().unwrap(), [vector::BREAKPOINT, vector::PROTECTION]);
}

/// Before TF was cleared ahead of what handles an exit, an emulated instruction raised the guest's #DB.
#[test]
fn the_guest_does_not_see_a_step() {
    let mut toy = Running::new(&[PUSHF, POPF, HLT, NOP, LOOP[0], LOOP[1]]);
    assert_eq!((toy.go(true).why, toy.regs().rip, toy.regs().rflags & TF), (Why::Stepped, CODE + 1, 0));
    assert_eq!(toy.read(STACK - 7), Some(0), "TF, as it was pushed");
    toy.go(true);
    assert_eq!((toy.regs().rip, toy.regs().rflags), (CODE + 2, FIXED));
    assert!(toy.seen.lock().unwrap().is_empty());
    toy.go(true);
    assert_eq!((toy.regs().rip, toy.seen.lock().unwrap().as_slice()), (CODE + 3, &[vector::PROTECTION][..]));
}

/// A debugger in the guest gets its own traps, with a step around them and without.
#[test]
fn a_guest_that_steps_itself_has_its_traps() {
    let mut toy = Running::new(&[POPF, NOP, NOP, LOOP[0], LOOP[1]]);
    let flags = (FIXED | TF).to_le_bytes();
    assert!(toy.guest.write_addrs(TABLE * PAGE_SIZE, &flags, tid(0)).is_err(), "a table is there");
    toy.guest.ask(0, |standing| standing.runner.inspect().unwrap().regs_mut().rsp = STACK - 8).unwrap();
    toy.guest.write_addrs(STACK - 8, &flags, tid(0)).unwrap_or_default();
    toy.go(true);
    assert_eq!((toy.regs().rip, toy.regs().rflags & TF), (CODE + 1, TF), "what it loads is its own");
    assert!(toy.seen.lock().unwrap().is_empty(), "POPF itself is not trapped");
    toy.go(true);
    assert_eq!((toy.regs().rip, toy.seen.lock().unwrap().as_slice()), (CODE + 2, &[vector::DEBUG][..]));
}

/// A #DB is the debugger's if it has put something into debug registers, and the guest's otherwise.
#[test]
fn a_debug_register_is_met() {
    let mut toy = Running::new(&[INT1, NOP, INT1, LOOP[0], LOOP[1]]);
    assert!(
        toy.guest.add_hw_watchpoint(STACK, 8, WatchKind::Write).is_ok_and(|done| !done),
        "it has none there"
    );
    assert!(toy.session.hardware().is_none());
    toy.guest.add_sw_breakpoint(CODE + 1, 1).unwrap_or_default();
    assert_eq!(toy.go(false).why, Why::Breakpoint);
    assert_eq!(*toy.seen.lock().unwrap(), [vector::DEBUG], "its own");
    assert!(toy.guest.add_hw_watchpoint(CODE, 8, WatchKind::Write).is_ok_and(|done| done));
    assert!(toy.guest.add_hw_watchpoint(CODE, 8, WatchKind::Read).is_ok_and(|done| !done));
    assert!(toy.guest.remove_sw_breakpoint(CODE + 1, 1).is_ok_and(|done| done));
    assert_eq!(toy.go(false).why, Why::Watched(Watched { address: CODE, len: 8, kind: Kind::Write }));
    assert_eq!((toy.regs().rip, toy.seen.lock().unwrap().len()), (CODE + 3, 1));
    toy.guest.clean().unwrap();
    assert!(toy.session.hardware().is_none());
}

/// Writes what gdb would, and reads what comes, until the other side has closed.
fn talk(running: &Running, bytes: &[u8]) -> Vec<u8> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, image) = (Arc::clone(&running.session), Arc::clone(&running.guest.image));
    let server = thread::spawn(move || {
        converse(&session, &image, Stream::Unix(theirs)).unwrap();
    });
    let mut reader = ours.try_clone().unwrap();
    let answers = thread::spawn(move || {
        let mut answers = Vec::new();
        let _ = reader.read_to_end(&mut answers);
        answers
    });
    // It may have closed already, and then reads nothing.
    let _ = (&ours).write_all(bytes);
    let _ = ours.shutdown(std::net::Shutdown::Write);
    server.join().unwrap();
    answers.join().unwrap()
}

fn packet(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

#[test]
fn a_connection_that_breaks_leaves_no_int3() {
    let running = Running::new(&[NOP, NOP, LOOP[0], LOOP[1]]);
    let said = talk(&running, &packet(b"Z0,1001,1"));
    assert!(said.ends_with(b"$OK#9a"), "{}", String::from_utf8_lossy(&said));
    running.session.stand_still();
    assert_eq!(running.memory(CODE + 1), INT3);
    running.guest.clean().unwrap();
    assert_eq!(running.memory(CODE + 1), NOP);
}

/// Ctrl-C ends what runs, and what has ended can be looked at.
#[test]
fn ctrl_c_is_a_stop() {
    let running = Running::new(&LOOP);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, image) = (Arc::clone(&running.session), Arc::clone(&running.guest.image));
    let server = thread::spawn(move || drop(converse(&session, &image, Stream::Unix(theirs))));
    let ask = |bytes: &[u8], awaited: &str| {
        (&ours).write_all(bytes).unwrap();
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains(awaited) {
            let mut part = [0; 512];
            let count = (&ours).read(&mut part).unwrap();
            assert_ne!(count, 0, "{}", String::from_utf8_lossy(&said));
            said.extend_from_slice(&part[..count]);
        }
    };
    ask(&packet(b"qSupported:multiprocess+;swbreak+"), "PacketSize");
    ask(&[packet(b"vCont;c").as_slice(), &[3]].concat(), "T02thread");
    assert_eq!(running.regs().rip, CODE);
    ask(&packet(b"m1000,2"), "ebfe");
    drop(ours);
    server.join().unwrap();
}

const COMMANDS: &[&[u8]] = &[
    b"",
    b"?",
    b"g",
    b"G",
    b"p",
    b"P",
    b"m",
    b"M",
    b"X",
    b"x",
    b"c",
    b"s",
    b"C",
    b"S",
    b"D",
    b"k",
    b"H",
    b"T",
    b"Z0,",
    b"Z1,",
    b"Z2,",
    b"z0,",
    b"vCont;",
    b"vCont;s:",
    b"vCont;r",
    b"vCont?",
    b"vKill;",
    b"vFile:open:",
    b"vFile:pread:3,",
    b"vFile:fstat:",
    b"vFile:close:",
    b"vFile:setfs:",
    b"qSupported:",
    b"qXfer:features:read:target.xml:",
    b"qXfer:exec-file:read:",
    b"qRcmd,",
    b"qThreadExtraInfo,",
    b"qfThreadInfo",
    b"qsThreadInfo",
    b"qC",
    b"qAttached",
    b"QStartNoAckMode",
    b"!",
    b"R",
    b"t",
    b"bc",
    b"bs",
    b"vRun;",
    b"vAttach;",
    b"qRegisterInfo",
    b"\x03",
];

fn request() -> impl Strategy<Value = Vec<u8>> {
    let digits = prop::collection::vec(prop::sample::select(b"0123456789abcdefpx,:;.-}*#".to_vec()), 0..40);
    let body = prop_oneof![prop::collection::vec(any::<u8>(), 0..60), digits];
    let framed = (prop::sample::select(COMMANDS), body)
        .prop_map(|(command, body)| packet(&[command, body.as_slice()].concat()));
    let noise = prop::collection::vec(any::<u8>(), 0..80);
    prop_oneof![4 => framed, 1 => noise, 1 => Just(b"+".to_vec()), 1 => Just(vec![3])]
}

proptest! {
    /// Whatever bytes come, the host goes on, and so does the guest.
    #[test]
    fn any_bytes_are_survived(requests in prop::collection::vec(request(), 1..12)) {
        let running = Running::new(&[NOP, PUSHF, POPF, LOOP[0], LOOP[1]]);
        talk(&running, &requests.concat());
        running.session.stand_still();
        running.guest.clean().unwrap();
        prop_assert_eq!(running.session.with_breakpoints(|breakpoints| breakpoints.addresses().len()), 0);
    }
}
