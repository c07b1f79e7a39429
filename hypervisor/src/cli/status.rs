//! What `paravane` tells its parent: one exit status for each way in which a run can end.

use crate::machine::end::DomainEnd;

/// The host's side failed: no usable engine, an unreadable image, lost console output.
pub(super) const HOST_ERROR: u8 = 1;
/// The command line makes no sense; the number that clap uses.
pub(super) const USAGE: u8 = 2;
/// The guest reported a crash or panic of its own, or its watchdog ran out.
pub(super) const GUEST_CRASH: u8 = 3;
/// The hypervisor ended the guest because it broke a rule.
pub(super) const KILLED: u8 = 4;
/// The guest asked to be rebooted.
pub(super) const REBOOT: u8 = 5;
/// The guest asked to be suspended.
pub(super) const SUSPEND: u8 = 6;
/// Of two recorded comparisons the second is worse beyond noise.
pub(super) const WORSE: u8 = 8;
/// The time of `--timeout` was up; the number that timeout(1) uses.
pub(super) const TIMEOUT: u8 = 124;
/// Added to the number of the signal that ended the run, as shells do.
pub(super) const SIGNAL_BASE: u8 = 128;

/// The section of `--help` that documents all this.
pub(super) const HELP: &str = "\
Exit status:
  0      the guest powered itself off, or you left it with Ctrl-A x or by gdb's kill
  1      the host failed: no usable engine, an unreadable image, no network, lost output
  2      the command line makes no sense
  3      the guest crashed: it said so, or its watchdog ran out
  4      the hypervisor killed the guest, which broke a rule
  5      the guest asked to be rebooted (it is not started again)
  6      the guest asked to be suspended
  101    paravane itself failed: a bug, please report it
  124    the time given by --timeout was up, wherever the run was
  128+N  signal N ended the run in order (130 for SIGINT, 143 for SIGTERM); a second one ends it at once

What does not end in order within 5 seconds ends hard, with the same status and a message.";

/// Who ended a domain that did not end itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interruption {
    /// The signal that did, if any.
    pub(super) signal: Option<u8>,
    /// Whether the user left with Ctrl-A x.
    pub(super) left: bool,
    /// Whether the user of a debugger ended it.
    pub(super) killed: bool,
    /// Whether a device could not be used after all.
    pub(super) lost: bool,
}

/// The exit status for a domain's end.
pub(super) fn of(end: &DomainEnd, by: Interruption) -> u8 {
    match (end, by) {
        (DomainEnd::PowerOff, _) => 0,
        (DomainEnd::Reboot, _) => REBOOT,
        (DomainEnd::Suspend, _) => SUSPEND,
        (DomainEnd::GuestCrash | DomainEnd::Watchdog, _) => GUEST_CRASH,
        (DomainEnd::Killed(_), _) => KILLED,
        (DomainEnd::Interrupted, Interruption { signal: Some(n), .. }) => SIGNAL_BASE.saturating_add(n),
        (DomainEnd::Interrupted, Interruption { left: true, .. } | Interruption { killed: true, .. }) => 0,
        (DomainEnd::Interrupted, Interruption { lost: true, .. }) => HOST_ERROR,
        (DomainEnd::Interrupted, _) => TIMEOUT,
    }
}

/// One line about a domain's end, for people: the same wherever it is said.
pub(super) fn describe(end: &DomainEnd, by: Interruption) -> String {
    match (end, by) {
        (DomainEnd::Interrupted, Interruption { signal: Some(n), .. }) => {
            format!("interrupted by signal {n}")
        }
        (DomainEnd::Interrupted, Interruption { left: true, .. }) => "left with Ctrl-A x".to_owned(),
        (DomainEnd::Interrupted, Interruption { killed: true, .. }) => "ended by gdb".to_owned(),
        (DomainEnd::Interrupted, Interruption { lost: true, .. }) => {
            "ended because a device was lost".to_owned()
        }
        (DomainEnd::Interrupted, _) => "timed out".to_owned(),
        (other, _) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_end_is_told_apart() {
        let ends = [
            DomainEnd::PowerOff,
            DomainEnd::Reboot,
            DomainEnd::Suspend,
            DomainEnd::GuestCrash,
            DomainEnd::Killed(String::new()),
            DomainEnd::Interrupted,
        ];
        let codes: HashSet<u8> = ends.iter().map(|e| of(e, Interruption::default())).collect();
        assert_eq!(codes.len(), ends.len());
        assert!(!codes.contains(&USAGE), "it is clap's");
    }

    #[test]
    fn who_interrupted_matters() {
        let by = |signal, left| {
            of(&DomainEnd::Interrupted, Interruption { signal, left, ..Interruption::default() })
        };
        assert_eq!((by(Some(15), false), by(Some(2), true), by(None, true)), (143, 130, 0));
        assert_eq!(by(None, false), TIMEOUT);
        let signalled = Interruption { signal: Some(2), lost: true, ..Interruption::default() };
        let lost = Interruption { lost: true, ..Interruption::default() };
        assert_eq!(of(&DomainEnd::Interrupted, lost), HOST_ERROR);
        assert_eq!(of(&DomainEnd::PowerOff, lost), 0, "it did not need it");
        assert_eq!(of(&DomainEnd::PowerOff, signalled), 0, "a guest that made it is not blamed");
    }
}
