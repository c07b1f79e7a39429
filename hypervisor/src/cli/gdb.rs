//! `run --gdb`: where gdb is waited for, and what the user is told of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::gdb::{Address, Debugger};
use crate::text::printable;

/// The debugger of a run, and whether its user has ended the run.
#[derive(Default)]
pub(super) struct Gdb {
    killed: Arc<AtomicBool>,
}

impl Gdb {
    /// Listens, if it is asked for.
    pub(super) fn listen(&self, address: Option<&Address>) -> anyhow::Result<Option<Debugger>> {
        let Some(address) = address else { return Ok(None) };
        let killed = Arc::clone(&self.killed);
        Ok(Some(Debugger::listen(address, Box::new(move || killed.store(true, Ordering::Release)))?))
    }

    /// Whether gdb's user wanted the end.
    pub(super) fn killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }
}

/// The command that connects gdb to the guest. gdb gets the kernel's file from here, unless it is told where it is.
pub(super) fn how_to_connect(image: Option<&Path>, debugger: &Debugger) -> String {
    let kernel = image.map(|path| format!(" {}", printable::path(path))).unwrap_or_default();
    format!("the guest waits for gdb: gdb{kernel} -ex \"target remote {}\"", debugger.address())
}
