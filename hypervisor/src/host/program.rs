//! Runs a program of ours on this host, for as long as it is allowed to, and collects what it prints.
//!
//! The program is in memory. It is executed from a memfd, or, where the host forbids that, from a file among the
//! temporary ones, which is removed again. It becomes the first of a process group, so that its children end with it.
//! Any thread may use this; it is not async-signal-safe. What may not be done here: running what a guest has made.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::poll::poll;

/// The most of a program's output that is kept.
const MAX_OUTPUT: usize = 64 << 10;

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Neither way to execute it is allowed.
    #[error("this host executes programs neither from memory ({memory}) nor from {} ({file})", directory.display())]
    Forbidden {
        /// What came of the memfd.
        memory: io::Error,
        /// What came of the file.
        file: io::Error,
        /// Where it was.
        directory: PathBuf,
    },
    /// It took too long.
    #[error("it did not end within {0:?}")]
    Late(Duration),
    /// Its output cannot be read.
    #[error("its output cannot be read: {0}")]
    Output(#[source] io::Error),
}

/// Runs the program in `elf` with these arguments, of which the first is its name; what it printed.
///
/// # Errors
/// When the host does not execute it, or it does not end in time. Its exit code does not matter.
pub fn run(elf: &[u8], arguments: &[&str], limit: Duration) -> Result<String, ProgramError> {
    let mut child = start(elf, arguments)?;
    let deadline = Instant::now() + limit;
    let output = child.stdout.take().map_or_else(|| Ok(Vec::new()), |pipe| read(pipe, deadline));
    // Without its own end of the output the program may live on: all of its group ends here, whatever came of it.
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(ProgramError::Late(limit)),
        Err(error) => Err(ProgramError::Output(error)),
        Ok(output) => Ok(String::from_utf8_lossy(&output).into_owned()),
    };
    end(&mut child);
    output
}

/// Starts it from a memfd, or else from a file.
fn start(elf: &[u8], arguments: &[&str]) -> Result<Child, ProgramError> {
    let from_memory = memfd(elf).and_then(|file| {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        spawn(&path, arguments)
    });
    from_memory.or_else(|memory| {
        let directory = std::env::temp_dir();
        from_file(elf, arguments, &directory).map_err(|file| ProgramError::Forbidden {
            memory,
            file,
            directory,
        })
    })
}

fn from_file(elf: &[u8], arguments: &[&str], directory: &Path) -> io::Result<Child> {
    let path = directory.join(format!("paravane-program-{}", std::process::id()));
    // A file that is open for writing is not executed: it is closed before.
    File::options().write(true).create_new(true).mode(0o700).open(&path)?.write_all(elf)?;
    let child = spawn(&path, arguments);
    std::fs::remove_file(&path)?;
    child
}

/// Returns when the program runs, or is known not to.
fn spawn(path: &Path, arguments: &[&str]) -> io::Result<Child> {
    let (name, others) = arguments.split_first().unwrap_or((&"", &[]));
    let mut command = Command::new(path);
    command.arg0(name).args(others).env_clear().process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn()
}

/// A memfd with these bytes, which may be executed: Linux from 6.3 on wants that said, and before does not know it.
fn memfd(bytes: &[u8]) -> io::Result<File> {
    let made = |flags| {
        // SAFETY: the name is a string that ends with a zero.
        let fd = unsafe { libc::memfd_create(c"paravane-program".as_ptr(), flags) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
    };
    let fd = made(libc::MFD_CLOEXEC | libc::MFD_EXEC).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => made(libc::MFD_CLOEXEC),
        _ => Err(error),
    })?;
    // SAFETY: the descriptor was just made, and belongs to nobody else.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(bytes)?;
    Ok(file)
}

/// Reads to the end, up to the deadline or the most that is kept.
fn read(mut pipe: impl Read + AsRawFd, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let mut part = [0; 4096];
    while output.len() < MAX_OUTPUT {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Rounded up: what is less than a millisecond would be no wait at all.
        let left = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
        let mut polled = [libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        if poll(&mut polled, left)? == 0 {
            continue;
        }
        match pipe.read(&mut part)? {
            0 => break,
            count => output.extend(part.iter().take(count)),
        }
    }
    Ok(output)
}

/// Ends the program, if it has not ended, and what it has started.
fn end(child: &mut Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: a signal to a group whose first process is our child, which nobody has waited for yet.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
    // It has ended, or been killed: there is nothing else to learn.
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::builtin::PROGRAMS;

    fn run_here(arguments: &[&str], limit: Duration) -> Option<Result<String, ProgramError>> {
        match run(PROGRAMS, arguments, limit) {
            Err(error @ ProgramError::Forbidden { .. }) => {
                println!("SKIP {error}");
                None
            }
            other => Some(other),
        }
    }

    #[test]
    fn a_program_says_what_it_was_asked_to() {
        let Some(said) = run_here(&["echo", "one", "two"], Duration::from_secs(60)) else { return };
        assert_eq!(said.unwrap(), "one two\n");
    }

    #[test]
    fn a_program_from_a_file_does_the_same_and_leaves_nothing() {
        let directory = std::env::temp_dir().join(format!("paravane-of-a-test-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let child = from_file(PROGRAMS, &["echo", "three"], &directory);
        std::fs::remove_dir(&directory).unwrap();
        let Ok(mut child) = child else { return println!("SKIP temporary files are not executed here") };
        let said = read(child.stdout.take().unwrap(), Instant::now() + Duration::from_secs(60)).unwrap();
        end(&mut child);
        assert_eq!(said, b"three\n");
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_with_its_children() {
        let line = ["sh", "-c", "/proc/self/exe loop | /proc/self/exe loop"];
        let Some(late) = run_here(&line, Duration::from_millis(1)) else { return };
        assert!(matches!(late, Err(ProgramError::Late(_))), "{late:?}");
    }
}
