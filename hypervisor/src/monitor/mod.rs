//! The loop that runs a virtual CPU: enter, exit, account, handle, resume.
//!
//! * [`vcpu_loop`] turns the loop until the guest's life is over. What an exit means is decided by a [`Runner`], of
//!   which a domain has one for each virtual CPU; the loop knows no technique, and no technique knows the loop.
//! * [`control`] is the only way to tell a running domain something from outside.
//! * [`inspect`] is what a debugger may ask of a virtual CPU that stands still.
//! * [`observe`] is the interface of what is notified of each exit.
//! * [`seen`] is what the virtual CPUs that run have seen of changed page tables, and how one waits for another.
//! * [`waker`] makes a virtual CPU leave the guest, or ends its wait.
//!
//! Threads: the loop and all that it calls run on the virtual CPU's own thread. [`Control`] and the kick of a waker may
//! be used from any thread and from a signal handler. Time is accounted for here and nowhere else.
//!
//! What may not be done here: deciding what an exit means, knowing a kind of domain, or anything between an exit and
//! the next entry that allocates, logs or waits for a lock, unless a command asked for it.

pub mod control;
pub mod inspect;
pub mod observe;
pub mod runner;
pub mod seen;
pub mod vcpu_loop;
pub(crate) mod waker;

pub use control::{Command, Control};
pub use runner::{Handled, Next, Runner};
