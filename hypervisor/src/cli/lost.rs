//! A device that turns out not to be had when the guest may already be running.
//!
//! What is behind a device may take longer to fail than a guest takes to start, and nobody waits for it. When it does
//! fail the run ends as one that could not be started, with the reason.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::machine::kick::Kick;

/// Shared by whoever finds out and by the run.
#[derive(Clone, Default)]
pub(super) struct LostDevice {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    why: Option<String>,
    /// Whom to kick, once there is somebody.
    kicker: Option<Arc<dyn Kick>>,
}

impl LostDevice {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest is about to run. Who has reported a loss by now has set what ends the run before it looked for
    /// somebody to kick: under the same lock, so that the run sees it.
    pub(super) fn on_ready(&self, kicker: Arc<dyn Kick>) {
        self.lock().kicker = Some(kicker);
    }

    /// What ends the run by `stop`, for a reason; `insist` sees to it that it ends.
    pub(super) fn reporter(
        &self,
        stop: Arc<AtomicBool>,
        insist: impl Fn() + Send + Sync + 'static,
    ) -> Arc<dyn Fn(String) + Send + Sync> {
        let lost = self.clone();
        Arc::new(move |why| {
            let mut state = lost.lock();
            state.why.get_or_insert(why);
            stop.store(true, Ordering::Release);
            if let Some(kicker) = &state.kicker {
                kicker.kick();
            }
            insist();
        })
    }

    /// The first reason, if there was one.
    pub(super) fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Debug, Default)]
    struct Kicks(AtomicUsize);

    impl Kick for Kicks {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn arm(&self, _: u64) {}
    }

    #[test]
    fn the_first_reason_ends_the_run_whenever_it_comes() {
        for ready_first in [true, false] {
            let (lost, stop, kicks) = (LostDevice::default(), Arc::default(), Arc::new(Kicks::default()));
            let report = lost.reporter(Arc::clone(&stop), || ());
            if ready_first {
                lost.on_ready(kicks.clone());
            }
            assert_eq!(lost.why(), None);
            report("one".to_owned());
            report("two".to_owned());
            assert_eq!((lost.why().as_deref(), stop.load(Ordering::SeqCst)), (Some("one"), true));
            assert_eq!(kicks.0.load(Ordering::SeqCst), if ready_first { 2 } else { 0 });
        }
    }
}
