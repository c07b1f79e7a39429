//! A hypercall page that one engine wrote, made to work on another.
//!
//! The guest may be anywhere in the page, and so may what it goes on with after an interrupt: the frame that says so is
//! on one of its stacks, or wherever it keeps its threads. So no instruction moves. Only the one that enters the host
//! is replaced: in its place if the new one fits, otherwise by a jump behind the stub's end and back. SYSCALL works on
//! every engine, if not as fast, so that it stays; and it is what a stub gets that has been adapted before and would
//! need another jump. So a guest can change engines as often as it likes.
//!
//! The `iret` of KVM's fast paths leaves by a jump to an address, in two instructions. It is replaced by what leads on
//! from both, and no engine's page is adapted to it: a return by any other form is as right, if not as fast.
//!
//! Stubs are 32 bytes: what they push, `mov eax, number`, the instruction that enters the host, what they pop, `ret`,
//! and INT3. Both engines' forms are in `engine::kvm::transport` and `engine::process::stub`; this file knows the
//! instructions and not the engines.

use paravane_abi::hypercall::IRET;

/// Bytes of a stub.
pub const STUB: usize = 32;

/// How a stub enters the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// `out imm8, al`.
    Port(u8),
    /// `syscall`, which clobbers rcx and r11.
    Syscall,
    /// `call [rip + disp32]`, to the address in the stub's last eight bytes.
    Call([u8; 8]),
    /// `mov rcx, imm64` and `jmp rcx`: only of `iret`, which does not come back, and only to be replaced.
    Leap([u8; 8]),
}

const INT3: u8 = 0xcc;
const NOP: u8 = 0x90;
const JUMP: u8 = 0xeb;
/// Where the address of [`Entry::Call`] lies.
const LITERAL: usize = 24;
/// Bytes of the first instruction of [`Entry::Leap`], and of the second one.
const LEAP: [usize; 2] = [10, 2];
const PUSH_RCX_R11: [u8; 3] = [0x51, 0x41, 0x53];
const POP_R11_RCX: [u8; 3] = [0x41, 0x5b, 0x59];

impl Entry {
    const fn length(self) -> usize {
        match self {
            Self::Port(_) | Self::Syscall => 2,
            Self::Call(_) => 6,
            Self::Leap(_) => LEAP[0] + LEAP[1],
        }
    }

    /// The instruction, at this place of the stub.
    fn write(self, stub: &mut [u8; STUB], at: usize) -> Option<()> {
        match self {
            Self::Port(port) => put(stub, at, &[0xe6, port]),
            Self::Syscall => put(stub, at, &[0x0f, 0x05]),
            Self::Call(address) => {
                let distance = u8::try_from(LITERAL.checked_sub(at + self.length())?).ok()?;
                put(stub, at, &[0xff, 0x15, distance, 0, 0, 0])?;
                put(stub, LITERAL, &address)
            }
            Self::Leap(_) => None,
        }
    }

    /// The instruction at this place.
    fn read(stub: &[u8; STUB], at: usize) -> Option<Self> {
        match *stub.get(at..)? {
            [0xe6, port, ..] => Some(Self::Port(port)),
            [0x0f, 0x05, ..] => Some(Self::Syscall),
            [0xff, 0x15, distance, 0, 0, 0, ..] => {
                let to = at + 6 + usize::from(distance);
                let address = stub.get(to..)?.first_chunk::<8>().filter(|_| to == LITERAL)?;
                Some(Self::Call(*address))
            }
            [0x48, 0xb9, a, b, c, d, e, f, g, h, 0xff, 0xe1, ..] => {
                Some(Self::Leap([a, b, c, d, e, f, g, h]))
            }
            _ => None,
        }
    }
}

/// A stub, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stub {
    entry: Entry,
    at: usize,
    /// Whether rcx and r11 are on the stack around it.
    keeps: bool,
    /// Whether a jump leads there.
    jumped: bool,
    /// Where nothing is from on.
    end: usize,
}

impl Stub {
    /// Reads the stub of a call; `None` if it is none.
    fn read(stub: &[u8; STUB], number: u32) -> Option<Self> {
        let is_iret = u64::from(number) == IRET;
        let mut at = 0;
        let mut keeps = is_iret;
        if starts(stub, at, &PUSH_RCX_R11) {
            (at, keeps) = (3, true);
        }
        if is_iret {
            at = starts(stub, at, &[0x50]).then_some(at + 1)?;
        }
        let [a, b, c, d] = number.to_le_bytes();
        at = starts(stub, at, &[0xb8, a, b, c, d]).then_some(at + 5)?;
        // What earlier adaptions put there. Forwards, so that there is an end.
        let mut jumped = false;
        while let [JUMP, distance @ 0..0x80, ..] = *stub.get(at..)? {
            (at, jumped) = (at + 2 + usize::from(distance), true);
            if starts(stub, at, &PUSH_RCX_R11) {
                (at, keeps) = (at + 3, true);
            }
        }
        let entry = Entry::read(stub, at).filter(|entry| is_iret || !matches!(entry, Entry::Leap(_)))?;
        let room = if matches!(entry, Entry::Call(_)) { LITERAL } else { STUB };
        let code = stub.get(..room)?.iter().rposition(|byte| *byte != INT3)? + 1;
        Some(Self { entry, at, keeps, jumped, end: code.max(at + entry.length()) })
    }
}

fn starts(stub: &[u8; STUB], at: usize, with: &[u8]) -> bool {
    stub.get(at..).is_some_and(|rest| rest.starts_with(with))
}

fn put(stub: &mut [u8; STUB], at: usize, bytes: &[u8]) -> Option<()> {
    stub.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
    Some(())
}

/// A stub of the page did not take the new engine's call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// The stub `number` of a guest's page for an engine whose own stub is `new`. One that is no stub stays as it is: the
/// guest has put something else there.
pub fn adapt(old: &[u8; STUB], new: &[u8; STUB], number: u32) -> Result<[u8; STUB], NoRoom> {
    let (Some(found), Some(wanted)) = (Stub::read(old, number), Stub::read(new, number)) else {
        return Ok(*old);
    };
    if found.entry == wanted.entry || found.entry == Entry::Syscall {
        return Ok(*old);
    }
    let needs_jump = wanted.entry.length() > found.entry.length();
    let entry = if found.jumped && needs_jump { Entry::Syscall } else { wanted.entry };
    // Not every entry can be made: where a leap was, there is no room for a jump to a call.
    let or_syscall = || replace(old, found, Entry::Syscall).filter(|_| entry != Entry::Syscall);
    replace(old, found, entry).or_else(or_syscall).ok_or(NoRoom)
}

/// The same for a leap at this place: who is between its two instructions goes on as well.
fn replace_leap(old: &[u8; STUB], at: usize, entry: Entry) -> Option<[u8; STUB]> {
    let mut stub = *old;
    let second = at + LEAP[0];
    put(&mut stub, at, &[NOP; LEAP[0] + LEAP[1]])?;
    if matches!(entry, Entry::Call(_)) {
        entry.write(&mut stub, at)?;
        let back = -i8::try_from(LEAP[0] + 2).ok()?;
        put(&mut stub, second, &[JUMP, back.cast_unsigned()])?;
    } else {
        put(&mut stub, at, &[JUMP, u8::try_from(LEAP[0] - 2).ok()?])?;
        entry.write(&mut stub, second)?;
    }
    Some(stub)
}

fn replace(old: &[u8; STUB], found: Stub, entry: Entry) -> Option<[u8; STUB]> {
    if matches!(found.entry, Entry::Leap(_)) {
        return replace_leap(old, found.at, entry);
    }
    let mut stub = *old;
    if matches!(found.entry, Entry::Call(_)) {
        put(&mut stub, LITERAL, &[INT3; STUB - LITERAL])?;
    }
    let (at, length) = (found.at, found.entry.length());
    let around = entry == Entry::Syscall && !found.keeps;
    if entry.length() <= length && !around {
        put(&mut stub, at, &[NOP; 6][..length])?;
        entry.write(&mut stub, at)?;
        return Some(stub);
    }
    // From the end of the jump there to where it leads, and back to what followed the old instruction.
    let there = found.end;
    put(&mut stub, at, &[NOP; 6][..length])?;
    put(&mut stub, at, &[JUMP, u8::try_from(there.checked_sub(at + 2)?).ok()?])?;
    let mut next = there;
    if around {
        put(&mut stub, next, &PUSH_RCX_R11)?;
        next += 3;
    }
    entry.write(&mut stub, next)?;
    next += entry.length();
    if around {
        put(&mut stub, next, &POP_R11_RCX)?;
        next += 3;
    }
    let back = i8::try_from((at + length).cast_signed() - (next + 2).cast_signed()).ok()?;
    put(&mut stub, next, &[JUMP, back.cast_unsigned()])?;
    let room = if matches!(entry, Entry::Call(_)) { LITERAL } else { STUB };
    (next + 2 <= room).then_some(stub)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub(parts: &[&[u8]], literal: bool) -> [u8; STUB] {
        let mut stub = [INT3; STUB];
        let code: Vec<u8> = parts.concat();
        stub[..code.len()].copy_from_slice(&code);
        if literal {
            stub[LITERAL..].copy_from_slice(&0x7fff_1234_5000_u64.to_le_bytes());
        }
        stub
    }

    /// The forms of a call's stub: by port, by SYSCALL, by a call; of `iret` also by a leap.
    fn forms(number: u8) -> Vec<[u8; STUB]> {
        let load: &[u8] = &[0xb8, number, 0, 0, 0];
        if u64::from(number) == IRET {
            let push: &[u8] = &[0x51, 0x41, 0x53, 0x50];
            let leap = [0x48, 0xb9, 0x5a, 0xf0, 0xff, 0xff, 0x7f, 0x82, 0xff, 0xff, 0xff, 0xe1];
            vec![
                stub(&[push, load, &[0xe6, 0x7e]], false),
                stub(&[push, load, &[0x0f, 0x05]], false),
                stub(&[push, load, &[0xff, 0x15, 9, 0, 0, 0, 0xc3]], true),
                stub(&[push, load, &leap], false),
            ]
        } else {
            vec![
                stub(&[load, &[0xe6, 0x7e, 0xc3]], false),
                stub(&[&PUSH_RCX_R11, load, &[0x0f, 0x05], &POP_R11_RCX, &[0xc3]], false),
                stub(&[load, &[0xff, 0x15, 13, 0, 0, 0, 0xc3]], true),
            ]
        }
    }

    /// Runs a stub from `rip` on; what was entered (its own form's index), and what was on the stack then and at the
    /// end. Stops at `ret`, or at an `iret`'s entry.
    fn run(
        stub: &[u8; STUB],
        mut rip: usize,
        mut stack: Vec<&'static str>,
    ) -> (Option<usize>, Vec<&'static str>) {
        let mut entered = None;
        loop {
            match stub[rip..] {
                [0x51, ..] => {
                    stack.push("rcx");
                    rip += 1;
                }
                [0x41, 0x53, ..] => {
                    stack.push("r11");
                    rip += 2;
                }
                [0x50, ..] => {
                    stack.push("rax");
                    rip += 1;
                }
                [0xb8, ..] => rip += 5,
                [NOP, ..] => rip += 1,
                [JUMP, distance, ..] => {
                    rip = (rip + 2).checked_add_signed(isize::from(distance.cast_signed())).unwrap();
                }
                [0xe6, ..] => (entered, rip) = (Some(0), rip + 2),
                [0x0f, 0x05, ..] => {
                    assert!(stack.contains(&"rcx") && stack.contains(&"r11"), "they are clobbered");
                    (entered, rip) = (Some(1), rip + 2);
                }
                [0xff, 0x15, distance, 0, 0, 0, ..] => {
                    assert_eq!(rip + 6 + usize::from(distance), LITERAL);
                    (entered, rip) = (Some(2), rip + 6);
                }
                [0x41, 0x5b, ..] => {
                    assert_eq!(stack.pop(), Some("r11"));
                    rip += 2;
                }
                [0x59, ..] => {
                    assert_eq!(stack.pop(), Some("rcx"));
                    rip += 1;
                }
                [0xc3, ..] => return (entered, stack),
                [INT3, ..] if entered.is_some() => return (entered, stack),
                _ => panic!("{rip}: {stub:02x?}"),
            }
            if entered.is_some() && stack.contains(&"rax") {
                return (entered, stack);
            }
        }
    }

    /// From one engine to the next, and so on: whoever was left in a stub by any of them goes on in all later ones.
    #[test]
    fn whoever_is_in_a_stub_goes_on_in_every_form() {
        const SYSCALL: usize = 1;
        for (first, hops) in (0..4).flat_map(|first| (0..729).map(move |hops| (first, hops))) {
            for number in [1, IRET as u8] {
                let is_iret = u64::from(number) == IRET;
                let forms = forms(number);
                let Some(mut stub) = forms.get(first).copied() else { continue };
                let mut left: Vec<(usize, Vec<&'static str>)> = Vec::new();
                let pushed = || vec!["rcx", "r11", "rax"];
                if first == 3 {
                    left.extend([(9, pushed()), (19, pushed())]);
                }
                for to in (0..6).map(|hop| hops / 3usize.pow(hop) % 3) {
                    stub = adapt(&stub, &forms[to], number.into()).unwrap();
                    let (entered, stack) = run(&stub, 0, vec![]);
                    assert!(entered == Some(to) || entered == Some(SYSCALL), "{first}, {hops}: {to}");
                    if is_iret {
                        for (at, stack) in &left {
                            let (entered, stack) = run(&stub, *at, stack.clone());
                            assert!(
                                entered == Some(to) || entered == Some(SYSCALL),
                                "{hops}: {to} from {at}"
                            );
                            assert_eq!(stack, pushed());
                        }
                        left.push((Stub::read(&stub, number.into()).unwrap().at, pushed()));
                        continue;
                    }
                    assert_eq!(stack, [""; 0]);
                    for (at, stack) in &left {
                        assert_eq!(
                            run(&stub, *at, stack.clone()).1,
                            [""; 0],
                            "{first}, {hops}: {to} from {at}"
                        );
                    }
                    // One that is to make its call again, and one that has made it.
                    let found = Stub::read(&stub, number.into()).unwrap();
                    let stack = if found.keeps { vec!["rcx", "r11"] } else { vec![] };
                    left.push((found.at, stack.clone()));
                    left.push((found.at + found.entry.length(), stack));
                }
            }
        }
    }

    #[test]
    fn a_leap_is_replaced_and_not_made() {
        let forms = forms(IRET as u8);
        for (to, entered) in [(0, 0), (1, 1), (2, 2)] {
            let adapted = adapt(&forms[3], &forms[to], IRET as u32).unwrap();
            assert_eq!(run(&adapted, 0, vec![]).0, Some(entered), "{adapted:02x?}");
        }
        assert_eq!(adapt(&forms[0], &forms[3], IRET as u32), Ok(forms[1]), "SYSCALL is right everywhere");
    }

    #[test]
    fn what_is_no_stub_stays() {
        let new = forms(1)[0];
        for other in [[0; STUB], [INT3; STUB], [JUMP; STUB], [0xff; STUB]] {
            assert_eq!(adapt(&other, &new, 1), Ok(other));
        }
        assert_eq!(adapt(&forms(2)[1], &new, 1), Ok(forms(2)[1]), "another number's");
    }

    proptest::proptest! {
        #[test]
        fn any_page_is_adapted_or_left(bytes: [u8; STUB], number in 0u32..128, form in 0usize..3, pushes: bool) {
            let mut old = bytes;
            if pushes {
                old[..3].copy_from_slice(&PUSH_RCX_R11);
                old[3..8].copy_from_slice(&[0xb8, number as u8, 0, 0, 0]);
            } else {
                old[..5].copy_from_slice(&[0xb8, number as u8, 0, 0, 0]);
            }
            let _ = adapt(&old, &forms(number as u8)[form], number);
        }
    }
}
