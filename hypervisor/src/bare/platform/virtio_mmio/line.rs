//! The interrupt of one device: its status register, and the edges of its line.
//!
//! The interrupt controllers are edge-triggered, and the lines are sampled only on the vCPU's thread. A device's thread
//! may raise the line again right after the driver's acknowledgement let it fall. A sample of the level alone would
//! miss that edge, and because the line then stays high no interrupt would ever come again. So the rise is recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::machine::kick::Kick;
use crate::virtio::Interrupt;

const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGED: u32 = 1 << 1;
/// Not in the register: the line rose since the last sample.
const ROSE: u32 = 1 << 31;

/// What an interrupt line did since the last sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is low, and may have been high meanwhile.
    #[default]
    Low,
    /// It is high, and has been since.
    High,
    /// It is high after a rise, and may have been high before.
    Risen,
}

/// A device's interrupt line. The device's threads set causes, the driver clears them.
pub(super) struct Line {
    status: AtomicU32,
    kick: Arc<dyn Kick>,
}

impl Line {
    /// A low line; `kick` makes the vCPU sample it.
    pub(super) fn new(kick: Arc<dyn Kick>) -> Self {
        Self { status: AtomicU32::new(0), kick }
    }

    fn raise(&self, cause: u32) {
        // Until the driver acknowledges a cause, the interrupt for it is pending or being handled.
        let news = |status| (status & cause == 0).then_some(status | cause | ROSE);
        if self.status.fetch_update(Ordering::AcqRel, Ordering::Acquire, news).is_ok() {
            self.kick.kick();
        }
    }

    /// The interrupt status register.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire) & !ROSE
    }
    /// The driver has handled these causes.
    pub(super) fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes | ROSE, Ordering::AcqRel);
    }
    /// A reset: the line falls.
    pub(super) fn clear(&self) {
        self.status.store(0, Ordering::Release);
    }

    /// What the line did since the last call.
    pub(super) fn sample(&self) -> Level {
        let mut seen = self.status.load(Ordering::Acquire);
        if seen & ROSE != 0 {
            seen = self.status.fetch_and(!ROSE, Ordering::AcqRel);
        }
        match (seen & !ROSE, seen & ROSE) {
            (0, _) => Level::Low,
            (_, 0) => Level::High,
            _ => Level::Risen,
        }
    }
}

impl Interrupt for Line {
    fn queue(&self, _: u16) {
        self.raise(USED_BUFFER);
    }
    fn config(&self) {
        self.raise(CONFIG_CHANGED);
    }
}

#[cfg(test)]
mod tests {
    use crate::bare::platform::virtio_mmio::line::*;

    struct NoKick;

    impl Kick for NoKick {
        fn kick(&self) {}
        fn arm(&self, _: u64) {}
    }

    #[test]
    fn a_rise_right_after_an_acknowledgement_is_seen() {
        let line = Line::new(Arc::new(NoKick));
        assert_eq!(line.sample(), Level::Low);
        line.queue(0);
        line.queue(1);
        assert_eq!((line.status(), line.sample(), line.sample()), (1, Level::Risen, Level::High));
        line.acknowledge(1);
        line.queue(0);
        assert_eq!((line.sample(), line.sample()), (Level::Risen, Level::High));
        line.config();
        assert_eq!((line.status(), line.sample()), (3, Level::Risen), "another cause is another edge");
        line.acknowledge(u32::MAX);
        assert_eq!((line.status(), line.sample()), (0, Level::Low));
        line.queue(0);
        line.acknowledge(1);
        assert_eq!(line.sample(), Level::Low, "gone before anybody looked");
        line.config();
        line.clear();
        assert_eq!((line.status(), line.sample()), (0, Level::Low));
    }
}
