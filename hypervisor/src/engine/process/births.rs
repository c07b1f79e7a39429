//! Making guest processes.
//!
//! A process dies with the thread that made it. The only virtual CPU makes its own. Where there are several, each runs
//! on a thread of its own and one may end before the others, so a thread that does nothing else makes the processes of
//! all; it ends with the machine. What may not be done here: deciding when a process is needed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::child::{Child, Image, SpawnError};
use super::script::Terms;
use crate::host::threads;

/// What a process is made of.
#[derive(Debug)]
pub(super) struct Makings {
    pub image: Image,
    /// Machine memory.
    pub memory: OwnedFd,
    pub terms: Terms,
}

impl Makings {
    fn make(&self) -> Result<Child, SpawnError> {
        Child::spawn(&self.image, self.memory.as_fd(), self.terms)
    }
}

/// Who makes processes.
#[derive(Debug)]
pub(super) enum Births {
    /// The calling thread.
    Here(Makings),
    /// A thread that is asked for each.
    There {
        /// Asks for one.
        orders: Sender<()>,
        /// Has it.
        children: Receiver<Result<Child, SpawnError>>,
    },
}

impl Births {
    /// With a thread of its own if there are several virtual CPUs.
    ///
    /// # Errors
    /// When the host cannot start it.
    pub fn new(makings: Makings) -> io::Result<Self> {
        if makings.terms.lanes == 1 {
            return Ok(Self::Here(makings));
        }
        let (orders, ordered) = channel::<()>();
        let (made, children) = channel();
        let makings = Arc::new(makings);
        threads::spawn(
            "births",
            move || {
                while ordered.recv().is_ok() && made.send(makings.make()).is_ok() {}
            },
        )?;
        Ok(Self::There { orders, children })
    }

    /// Another process.
    pub fn make(&self) -> Result<Child, SpawnError> {
        let gone = || SpawnError::Killed("the thread that makes processes is gone".to_owned());
        match self {
            Self::Here(makings) => makings.make(),
            Self::There { orders, children } => {
                orders.send(()).map_err(|_| gone())?;
                children.recv().map_err(|_| gone())?
            }
        }
    }
}
