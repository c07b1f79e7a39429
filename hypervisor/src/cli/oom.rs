//! Whom the out-of-memory killer takes first: the guest, rather than a program that has nothing to do with it.
//!
//! A guest's pages are counted for whoever maps them, if anybody does: pages of the process engine's memfd that were
//! written through its descriptor count for nobody. So this process, whose end frees all of them, stands in front of
//! others as if it used half of the host's memory more (proc(5), oom_score_adj). Guest processes inherit it: it is to
//! be called before there are any, and costs four system calls, less than 2 us.

use std::fs::File;
use std::io::{Read, Write};

/// In thousandths of the host's memory.
const BEFORE_OTHERS: i32 = 500;

/// Raises this process's score; a score that is higher already stays. Best effort: nothing depends on it.
pub(super) fn stand_before_others() {
    let Ok(mut file) = File::options().read(true).write(true).open("/proc/self/oom_score_adj") else {
        return;
    };
    let mut text = [0; 8];
    let len = file.read(&mut text).unwrap_or(0);
    let score = text.get(..len).and_then(|text| std::str::from_utf8(text).ok()?.trim().parse::<i32>().ok());
    if score.is_some_and(|score| score < BEFORE_OTHERS) {
        let _ = write!(file, "{BEFORE_OTHERS}");
    }
}
