//! Time.

use super::super::abi::{Answer, CLOCK_MONOTONIC_COARSE, Errno};
use super::super::table::Wait;
use super::{Call, Outcome};
use crate::machine::{Current, Machine};

const SECOND: u64 = 1_000_000_000;

impl Call<'_> {
    pub(super) fn sleep(&mut self) -> Outcome {
        match self.deadline() {
            Ok(deadline) if Current::clock() >= deadline => Ok(0).into(),
            Ok(deadline) => Outcome::Wait(Wait::Until(deadline)),
            Err(errno) => errno.into(),
        }
    }

    /// When the sleep ends: what was asked for, from the first time that the call was made.
    fn deadline(&mut self) -> Result<u64, Errno> {
        if let Some(deadline) = self.process(|process| Ok(process.sleeps_until))? {
            return Ok(deadline);
        }
        let [time, ..] = self.arguments;
        let (seconds, nanoseconds) = (self.word_from(time)?, self.word_from(time.saturating_add(8))?);
        if nanoseconds >= SECOND || seconds > i64::MAX as u64 {
            return Err(Errno::Inval);
        }
        let wait = seconds.saturating_mul(SECOND).saturating_add(nanoseconds);
        let deadline = Current::clock().saturating_add(wait);
        self.process(|process| {
            process.sleeps_until = Some(deadline);
            Ok(deadline)
        })
    }

    pub(super) fn clock(&mut self) -> Answer {
        let [which, into, ..] = self.arguments;
        if which > CLOCK_MONOTONIC_COARSE {
            return Err(Errno::Inval);
        }
        let now = Current::clock();
        let [seconds, nanoseconds] = [now / SECOND, now % SECOND].map(u64::to_le_bytes);
        self.copy_to(into, [seconds, nanoseconds].as_flattened()).map(|()| 0)
    }
}
