//! Signals.

use super::super::abi::{Answer, Errno};
use super::super::signals::{self, Action, RETURNED};
use super::super::table::Process;
use super::{Call, Outcome};

/// Bytes of a set of signals.
const SET_BYTES: u64 = 8;

impl Call<'_> {
    pub(super) fn action(&mut self) -> Answer {
        let [number, new, old, size, ..] = self.arguments;
        let number = u8::try_from(number).map_err(|_| Errno::Inval)?;
        if size != SET_BYTES {
            return Err(Errno::Inval);
        }
        if old != 0 {
            let before = self.process(|process| Ok(process.signals.action(number)))?;
            self.copy_to(old, &before.to_bytes())?;
        }
        if new != 0 {
            let mut bytes = [0; Action::BYTES];
            self.copy_from(new, &mut bytes)?;
            self.process(|process| process.signals.set_action(number, Action::from_bytes(&bytes)))?;
        }
        Ok(0)
    }

    pub(super) fn block_signals(&mut self) -> Answer {
        let [how, new, old, size, ..] = self.arguments;
        if size != SET_BYTES {
            return Err(Errno::Inval);
        }
        let before = self.process(|process| Ok(process.signals.blocked))?;
        if old != 0 {
            self.copy_to(old, &before.to_le_bytes())?;
        }
        if new != 0 {
            let set = self.word_from(new)?;
            // SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK.
            let after = match how {
                0 => before | set,
                1 => before & !set,
                2 => set,
                _ => return Err(Errno::Inval),
            };
            self.process(|process| {
                process.signals.block(after);
                Ok(())
            })?;
        }
        Ok(0)
    }

    /// Ends a handler. What is read may be anything: it is a program's own registers, of which none can harm. Flags
    /// that are not a program's are not loaded, and a RIP that no code can be at is an exception of the program.
    pub(super) fn return_from_signal(&mut self) -> Outcome {
        let restored = self.process(|process| Ok(process.context.registers.rsp)).and_then(|at| {
            let mut bytes = [0; RETURNED];
            self.copy_from(at, &mut bytes)?;
            let vectors_at = self.process(|process| {
                let (mask, vectors_at) = signals::end(&mut process.context, &bytes);
                process.signals.block(mask);
                Ok(vectors_at)
            })?;
            let mut vectors = [0; 512];
            self.copy_from(vectors_at, &mut vectors)?;
            self.process(|process| {
                process.context.vectors.set_legacy(&vectors);
                Ok(())
            })
        });
        match restored {
            Ok(()) => Outcome::Replaced,
            Err(_) => {
                // As under Linux: a frame that is not there ends the process.
                let Some(Process { .. }) = self.table.get(self.pid) else { return Outcome::Ended };
                let status = super::super::abi::killed(super::super::abi::signal::SEGV);
                self.table.end(self.memory, self.pid, status);
                Outcome::Ended
            }
        }
    }
}
