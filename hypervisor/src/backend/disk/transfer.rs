//! A job as a series of io_uring operations: the next operation, and the meaning of results.

use std::io;

use io_uring::{opcode, squeue, types};

use super::buffers::{Aligned, MOST_BUFFERS, PIECE, advance, copy_from, copy_to, for_call};
use super::direct::Alignment;
use super::jobs::{Job, Op};
use super::raw::{PUNCH, RawImage, ZERO, is_unsupported};

/// Buffers of zeroes that one call writes: 1 MiB, so that a request for 32 MiB does not delay others.
const ZEROES: usize = (1 << 20) / PIECE;
/// How often in a row the kernel may answer EINTR or EAGAIN.
const PATIENCE: u8 = 100;

/// A job and its progress.
pub(super) struct Transfer {
    pub job: Job,
    /// Buffers before this one are done.
    first: usize,
    /// Buffers at most for one call.
    most: usize,
    /// Whether the kernel rejects the job's buffers as unaligned.
    bounces: bool,
    /// The aligned buffer that is used instead.
    pub bounce: Option<Aligned>,
    /// The change has still to be put on stable storage.
    sync_after: bool,
    /// The kernel is doing that.
    syncing: bool,
    patience: u8,
}

impl Transfer {
    /// A job that has not begun. `alignment`: the alignment that the kernel requires of buffers.
    pub fn new(job: Job, alignment: Option<Alignment>) -> Self {
        let bounces = alignment.is_some_and(|a| !a.fits(&job.buffers, 0));
        let sync_after = job.sync && matches!(job.op, Op::Discard | Op::Zero { .. });
        let most = MOST_BUFFERS;
        Self { job, first: 0, most, bounces, bounce: None, sync_after, syncing: false, patience: PATIENCE }
    }

    /// Whether it has to wait for an aligned buffer.
    pub fn wants_bounce(&self) -> bool {
        self.bounces && self.bounce.is_none()
    }

    /// The next operation.
    pub fn entry(&mut self, fd: types::Fd) -> squeue::Entry {
        let Job { op, offset, len, sync, .. } = self.job;
        let dsync = if sync { libc::RWF_DSYNC } else { 0 };
        let left = self.job.buffers.get(self.first..).unwrap_or_default();
        let fallocate = |mode| opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build();
        let (buffers, count) = for_call(left, self.most);
        match (op, &mut self.bounce) {
            _ if self.syncing => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Op::Read, None) => opcode::Readv::new(fd, buffers, count).offset(offset).build(),
            (Op::Read, Some(bounce)) => {
                let (to, len) = (bounce.as_mut_ptr(), piece(len));
                opcode::Read::new(fd, to, len).offset(offset).build()
            }
            (Op::Write, None) => {
                opcode::Writev::new(fd, buffers, count).offset(offset).rw_flags(dsync).build()
            }
            (Op::Write, Some(bounce)) => {
                // SAFETY: guest memory, which the ring's owner keeps mapped.
                unsafe { copy_from(left, bounce) };
                let (from, len) = (bounce.as_ptr(), piece(len));
                opcode::Write::new(fd, from, len).offset(offset).rw_flags(dsync).build()
            }
            (Op::Flush, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            (Op::Discard | Op::Zero { unmap: true }, _) => fallocate(PUNCH),
            (Op::Zero { unmap: false }, _) => fallocate(ZERO),
        }
    }

    /// Handles the kernel's result. Returns the job's result, or `None` if another operation is needed.
    pub fn answered(&mut self, answer: i32, image: &RawImage) -> Option<io::Result<()>> {
        let done = match usize::try_from(answer) {
            Ok(done) => done,
            Err(_) => return self.failed(io::Error::from_raw_os_error(answer.wrapping_neg()), image),
        };
        self.patience = PATIENCE;
        if !self.syncing && matches!(self.job.op, Op::Read | Op::Write) {
            if done == 0 {
                return Some(self.at_end(image));
            }
            if self.moved(done) > 0 {
                return None;
            }
        }
        self.syncing = std::mem::take(&mut self.sync_after);
        (!self.syncing).then_some(Ok(()))
    }

    /// Handles a result of 0 bytes.
    fn at_end(&self, image: &RawImage) -> io::Result<()> {
        if self.job.op == Op::Write {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let left = self.job.buffers.get(self.first..).unwrap_or_default();
        // SAFETY: guest memory, which the ring's owner keeps mapped.
        unsafe { image.read_past_end(left, self.job.offset) }
    }

    /// Notes that `done` bytes were read or written; returns how many buffers are left.
    fn moved(&mut self, done: usize) -> usize {
        let Job { op, offset, len, buffers, .. } = &mut self.job;
        let left = buffers.get_mut(self.first..).unwrap_or_default();
        if let (Op::Read, Some(bounce)) = (*op, &self.bounce) {
            // SAFETY: guest memory, which the ring's owner keeps mapped.
            unsafe { copy_to(left, bounce.get(..done).unwrap_or_default()) };
        }
        let left = advance(left, done).len();
        (*offset, *len) = (offset.saturating_add(done as u64), len.saturating_sub(done as u64));
        self.first = buffers.len().saturating_sub(left);
        left
    }

    fn failed(&mut self, error: io::Error, image: &RawImage) -> Option<io::Result<()>> {
        let not_now = matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
        match self.job.op {
            _ if not_now && self.patience > 0 => {
                self.patience -= 1;
                None
            }
            _ if self.syncing => Some(Err(error)),
            // A discard is only a hint.
            Op::Discard if is_unsupported(&error) => Some(Ok(())),
            Op::Zero { .. } if is_unsupported(&error) => {
                (self.job.op, self.job.sync) = (Op::Write, false);
                (self.job.buffers, self.most) = (image.zeroes(self.job.len), ZEROES);
                None
            }
            _ => Some(Err(error)),
        }
    }
}

/// Bytes of one transfer through an aligned buffer.
fn piece(len: u64) -> u32 {
    len.min(PIECE as u64) as u32
}

#[cfg(test)]
mod tests {
    use crate::backend::disk::buffers::{Buffers, total};
    use crate::backend::disk::file::Locked;
    use crate::backend::disk::transfer::*;

    fn image() -> RawImage {
        RawImage::new(Locked(std::fs::File::open("/dev/null").unwrap()), false).unwrap()
    }

    /// A job with two buffers of 1000 and 2000 bytes, which are never passed to the kernel.
    fn transfer(op: Op, sync: bool) -> Transfer {
        let piece =
            |at: usize, len| libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: len };
        let buffers = match op {
            Op::Read | Op::Write => vec![piece(0x1000, 1000), piece(0x9000, 2000)],
            _ => Vec::new(),
        };
        Transfer::new(Job { op, offset: 512, len: 3000, sync, buffers: Buffers(buffers) }, None)
    }

    /// The next io_uring operation of the transfer, by its number (linux/io_uring.h, `io_uring_op`).
    fn asked(transfer: &mut Transfer) -> String {
        let entry = format!("{:?}", transfer.entry(types::Fd(0)));
        entry.split("op_code: ").nth(1).unwrap().split(',').next().unwrap().to_owned()
    }
    const READV: &str = "1";
    const WRITEV: &str = "2";
    const FSYNC: &str = "3";
    const FALLOCATE: &str = "17";

    #[test]
    fn short_transfers_are_continued() {
        let mut t = transfer(Op::Read, false);
        assert_eq!(asked(&mut t), READV);
        for (part, at, left) in [(999, 1511, 2001), (1, 1512, 2000), (1500, 3012, 500)] {
            assert!(t.answered(part, &image()).is_none());
            assert_eq!((t.job.offset, t.job.len, total(&t.job.buffers[t.first..])), (at, left, left));
            assert_eq!(asked(&mut t), READV);
        }
        assert!(matches!(t.answered(500, &image()), Some(Ok(()))));
        let end = transfer(Op::Read, false).answered(0, &image());
        assert!(end.is_some_and(|e| e.is_err_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)));
    }

    #[test]
    fn retries_are_limited() {
        for error in [libc::EINTR, libc::EAGAIN] {
            let mut t = transfer(Op::Write, false);
            for _ in 0..3 {
                for _ in 0..PATIENCE {
                    assert!(t.answered(-error, &image()).is_none());
                    assert_eq!(asked(&mut t), WRITEV);
                }
                // Progress resets the number of retries.
                assert!(t.answered(100, &image()).is_none());
            }
            for _ in 0..PATIENCE {
                assert!(t.answered(-error, &image()).is_none());
            }
            assert!(matches!(t.answered(-error, &image()), Some(Err(_))));
        }
        assert!(matches!(transfer(Op::Flush, false).answered(-libc::EIO, &image()), Some(Err(_))));
    }

    /// For a driver without flushes, discards and zeroes are on stable storage when they complete, too.
    #[test]
    fn ranges_are_synced_for_a_driver_without_flushes() {
        for op in [Op::Discard, Op::Zero { unmap: true }, Op::Zero { unmap: false }] {
            let mut t = transfer(op, false);
            assert_eq!(asked(&mut t), FALLOCATE);
            assert!(matches!(t.answered(0, &image()), Some(Ok(()))));
            let mut t = transfer(op, true);
            assert!(t.answered(0, &image()).is_none());
            assert_eq!(asked(&mut t), FSYNC);
            assert!(matches!(t.answered(0, &image()), Some(Ok(()))));
            let mut t = transfer(op, true);
            assert!(t.answered(0, &image()).is_none());
            assert!(matches!(t.answered(-libc::EIO, &image()), Some(Err(_))));
        }
    }

    /// If the file system cannot zero a range, zeroes are written, at most 1 MiB at a time, and synced at the end.
    #[test]
    fn zeroes_are_written_in_pieces() {
        for sync in [false, true] {
            let mut t = transfer(Op::Zero { unmap: true }, sync);
            t.job.len = 3 << 20;
            assert!(t.answered(-libc::EOPNOTSUPP, &image()).is_none());
            for left in (1..=3u64).rev() {
                assert_eq!((asked(&mut t).as_str(), t.job.len), (WRITEV, left << 20));
                let (_, count) = for_call(&t.job.buffers[t.first..], t.most);
                assert_eq!(total(&t.job.buffers[t.first..][..count as usize]), 1 << 20);
                let ended = t.answered(1 << 20, &image());
                assert_eq!(ended.is_none(), left > 1 || sync);
            }
            assert!(!sync || asked(&mut t) == FSYNC);
        }
        assert!(matches!(transfer(Op::Discard, false).answered(-libc::EOPNOTSUPP, &image()), Some(Ok(()))));
        assert!(matches!(
            transfer(Op::Zero { unmap: true }, false).answered(-libc::EIO, &image()),
            Some(Err(_))
        ));
    }
}
