//! The kernel's file, for a gdb that was started without one: it asks which file runs and reads it from here, with the
//! symbols that are in it. Nothing else can be read.

use gdbstub::common::Pid;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::exec_file::ExecFile;
use gdbstub::target::ext::host_io::{
    FsKind, HostIo, HostIoClose, HostIoCloseOps, HostIoErrno, HostIoError, HostIoFstat, HostIoFstatOps,
    HostIoOpen, HostIoOpenFlags, HostIoOpenMode, HostIoOpenOps, HostIoPread, HostIoPreadOps, HostIoResult,
    HostIoSetfs, HostIoSetfsOps, HostIoStat,
};

use super::target::Guest;

/// What the file is called here.
const NAME: &[u8] = b"/kernel";
/// Its descriptor.
const KERNEL: u32 = 3;

fn is_kernels<T>(fd: u32, value: T) -> HostIoResult<T, Guest> {
    if fd == KERNEL { Ok(value) } else { Err(HostIoError::Errno(HostIoErrno::EBADF)) }
}

/// Copies from `offset` on; how many bytes.
fn copy(from: &[u8], offset: u64, length: usize, to: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|offset| from.get(offset..)).unwrap_or_default();
    let count = rest.len().min(length).min(to.len());
    if let (Some(to), Some(from)) = (to.get_mut(..count), rest.get(..count)) {
        to.copy_from_slice(from);
    }
    count
}

impl ExecFile for Guest {
    fn get_exec_file(
        &self,
        _: Option<Pid>,
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        Ok(copy(NAME, offset, length, buf))
    }
}

impl HostIo for Guest {
    fn support_open(&mut self) -> Option<HostIoOpenOps<'_, Self>> {
        Some(self)
    }

    fn support_close(&mut self) -> Option<HostIoCloseOps<'_, Self>> {
        Some(self)
    }

    fn support_pread(&mut self) -> Option<HostIoPreadOps<'_, Self>> {
        Some(self)
    }

    fn support_fstat(&mut self) -> Option<HostIoFstatOps<'_, Self>> {
        Some(self)
    }

    fn support_setfs(&mut self) -> Option<HostIoSetfsOps<'_, Self>> {
        Some(self)
    }
}

impl HostIoOpen for Guest {
    fn open(&mut self, name: &[u8], flags: HostIoOpenFlags, _: HostIoOpenMode) -> HostIoResult<u32, Self> {
        let writes = HostIoOpenFlags::O_WRONLY | HostIoOpenFlags::O_RDWR | HostIoOpenFlags::O_TRUNC;
        match name {
            NAME if flags.intersects(writes) => Err(HostIoError::Errno(HostIoErrno::EROFS)),
            NAME => Ok(KERNEL),
            _ => Err(HostIoError::Errno(HostIoErrno::ENOENT)),
        }
    }
}

impl HostIoClose for Guest {
    fn close(&mut self, fd: u32) -> HostIoResult<(), Self> {
        is_kernels(fd, ())
    }
}

impl HostIoPread for Guest {
    fn pread(&mut self, fd: u32, count: usize, offset: u64, buf: &mut [u8]) -> HostIoResult<usize, Self> {
        is_kernels(fd, copy(&self.image, offset, count, buf))
    }
}

impl HostIoFstat for Guest {
    fn fstat(&mut self, fd: u32) -> HostIoResult<HostIoStat, Self> {
        let size = self.image.len() as u64;
        let mode = HostIoOpenMode::S_IFREG | HostIoOpenMode::S_IRUSR;
        is_kernels(
            fd,
            HostIoStat {
                st_dev: 0,
                st_ino: 0,
                st_mode: mode,
                st_nlink: 1,
                st_uid: 0,
                st_gid: 0,
                st_rdev: 0,
                st_size: size,
                st_blksize: 512,
                st_blocks: size.div_ceil(512),
                st_atime: 0,
                st_mtime: 0,
                st_ctime: 0,
            },
        )
    }
}

/// There is one file system.
impl HostIoSetfs for Guest {
    fn setfs(&mut self, _: FsKind) -> HostIoResult<(), Self> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_what_there_is_of_it() {
        let mut to = [0; 4];
        assert_eq!(copy(NAME, 0, 100, &mut to), 4);
        assert_eq!(&to, b"/ker");
        assert_eq!(copy(NAME, 5, 100, &mut to), 2);
        assert_eq!(copy(NAME, 7, 1, &mut to), 0);
        assert_eq!(copy(NAME, u64::MAX, 1, &mut to), 0);
        assert_eq!(copy(NAME, 0, 2, &mut to), 2);
    }
}
