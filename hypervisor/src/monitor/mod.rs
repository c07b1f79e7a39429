//! The loop that runs a domain: enter, exit, account, handle, resume.
//!
//! [`vcpu_loop`] turns the loop until the domain's
//! life is over. What an exit means is decided in `pv` and `bare`, each a function of the domain and the
//! exit; the loop knows neither, and neither knows the engine. Time is accounted here and nowhere else. A vCPU that
//! blocks waits in `waker`, which is also how device workers, timers and the terminal reach it.

pub mod vcpu_loop;
pub(crate) mod waker;
