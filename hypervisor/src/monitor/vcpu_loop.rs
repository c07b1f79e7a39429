//! The loop itself, and its accounting of time.

use std::time::Duration;

use super::control::Orders;
use super::observe::{Observer, Seen};
use super::runner::{Handled, Next, Runner};
use super::waker::Waker;
use crate::engine::{Cpu, Exit};
use crate::ledger::Ledger;
use crate::machine::kick::Kick;

/// An exit that was handled and whose cost is not yet known.
struct Open {
    handled: Handled,
    left: u64,
    place: u64,
    waited: u64,
}

/// Runs a virtual CPU until its domain's life is over, or `orders` say stop. Besides the ledger, `observer` is notified
/// of each exit.
pub fn run<O: Observer>(
    cpu: &mut dyn Cpu,
    runner: &mut dyn Runner,
    waker: &Waker,
    orders: &mut Orders,
    observer: &mut O,
) {
    let clock = orders.clock();
    orders.began = clock.now();
    let mut armed = None;
    let mut open: Option<Open> = None;
    runner.begin(cpu);
    loop {
        if orders.has_any() {
            let before = clock.now();
            if orders.says_pause() {
                stand_still(cpu, runner, waker, orders);
                armed = None;
            }
            if orders.says_save() {
                save(cpu, runner, waker, orders);
                armed = None;
            }
            if orders.says_stop() {
                break;
            }
            obey(runner, orders);
            do_not_charge(&mut open, clock.now().saturating_sub(before));
        }
        match runner.prepare() {
            Next::End => break,
            Next::Wait(until) => {
                let before = clock.now();
                orders.guest_waits();
                let until = earliest(until, orders.due());
                // A kick that came too late for the last exit. The waker remembers it, too, and an engine may insist on
                // its being answered for as long as it is not.
                if cpu.take_kick() {
                    armed = None;
                }
                waker.wait(until.map(|time| Duration::from_nanos(time.saturating_sub(clock.now()))));
                // The engine's own timer may have fired. What it was for is looked for now, so it must not end the next
                // entry.
                if cpu.take_kick() {
                    armed = None;
                }
                runner.woken();
                do_not_charge(&mut open, clock.now().saturating_sub(before));
            }
            Next::Run(until) => {
                let until = earliest(until, orders.due());
                let now = clock.now();
                if until != armed {
                    // A deadline that has passed must still reach the guest: 0 would disarm.
                    waker.arm(until.map_or(0, |time| time.saturating_sub(now).max(1)));
                    armed = until;
                }
                if !waker.enter_guest() {
                    runner.woken();
                    continue;
                }
                settle(runner.ledger(), observer, open.take(), now);
                runner.about_to_run(now);
                let exit = runner.enter(cpu);
                waker.leave_guest();
                let left = clock.now();
                // A kick that the guest left for, or one that came when it was leaving anyway.
                if exit == Exit::Kick || cpu.take_kick() {
                    // The deadline may have been what kicked: it must be armed again if it stands.
                    armed = None;
                    waker.hear();
                    runner.woken();
                }
                let place = if O::WANTS_PLACE { runner.place(exit) } else { 0 };
                open = Some(Open { handled: runner.handle(exit), left, place, waited: 0 });
            }
        }
    }
    settle(runner.ledger(), observer, open.take(), clock.now());
}

/// Does what takes no decision of the loop: shows the guest, and does the postponed work when it is time.
fn obey(runner: &mut dyn Runner, orders: &mut Orders) {
    if orders.wants_a_look() {
        let witness = runner.witness();
        orders.show(runner.ledger(), witness);
    }
    orders.do_postponed();
}

/// Keeps the guest out of the processor until it is to go on or to end.
fn stand_still(cpu: &mut dyn Cpu, runner: &mut dyn Runner, waker: &Waker, orders: &mut Orders) {
    orders.stands(true);
    while orders.says_pause() && !orders.says_stop() {
        if orders.says_save() {
            save(cpu, runner, waker, orders);
        }
        obey(runner, orders);
        let now = orders.clock().now();
        waker.wait(orders.due().map(|time| Duration::from_nanos(time.saturating_sub(now))));
    }
    orders.stands(false);
    // What the kicks of the meantime were about is looked for now.
    cpu.take_kick();
    runner.woken();
}

/// Has the domain saved, as far as it is this virtual CPU's to do.
fn save(cpu: &mut dyn Cpu, runner: &mut dyn Runner, waker: &Waker, orders: &Orders) {
    runner.save(cpu);
    orders.save_together(|| waker.wait(None));
    cpu.take_kick();
    runner.woken();
}

/// The time between an exit and the next entry that the host did not work for the guest.
fn do_not_charge(open: &mut Option<Open>, ns: u64) {
    if let Some(open) = open {
        open.waited += ns;
    }
}

fn earliest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// Tells of an exit that has been handled, now that the guest is about to run again.
fn settle(ledger: &mut Ledger, observer: &mut impl Observer, open: Option<Open>, now: u64) {
    let Some(Open { handled, left, place, waited }) = open else { return };
    let worked = now.saturating_sub(left).saturating_sub(waited);
    let seen = Seen { handled, left, entered: now, worked, place };
    ledger.see(&seen);
    observer.see(&seen);
}

#[cfg(test)]
mod tests;
