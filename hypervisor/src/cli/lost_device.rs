//! A device that fails to come up when the guest may already be running.
//!
//! A back end may take longer to fail than a guest takes to start, and the start does not wait for it. When it fails,
//! the run ends like one that could not be started, with the reason.

use std::sync::{Arc, OnceLock};

use crate::monitor::{Command, Control};

/// Shared by whoever finds out and by the run.
#[derive(Clone, Default)]
pub(super) struct LostDevice(Arc<OnceLock<String>>);

impl LostDevice {
    /// What ends the run by `control`, for a reason; `insist` sees to it that it ends.
    pub(super) fn reporter(
        &self,
        control: Control,
        insist: impl Fn() + Send + Sync + 'static,
    ) -> Arc<dyn Fn(String) + Send + Sync> {
        let lost = self.clone();
        Arc::new(move |why| {
            lost.0.get_or_init(|| why);
            control.send(Command::Stop);
            insist();
        })
    }

    /// The first reason, if there was one.
    pub(super) fn why(&self) -> Option<String> {
        self.0.get().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::engine::CountKicks;

    #[test]
    fn the_first_reason_ends_the_run_whenever_it_comes() {
        for ready_first in [true, false] {
            let (lost, control, kicks) =
                (LostDevice::default(), Control::default(), Arc::new(CountKicks::default()));
            let report = lost.reporter(control.clone(), || ());
            if ready_first {
                control.attach([kicks.clone() as Arc<dyn crate::machine::kick::Kick>]);
            }
            assert_eq!(lost.why(), None);
            report("one".to_owned());
            report("two".to_owned());
            assert_eq!((lost.why().as_deref(), control.is_stopping()), (Some("one"), true));
            assert_eq!(kicks.count(), if ready_first { 2 } else { 0 });
        }
    }
}
