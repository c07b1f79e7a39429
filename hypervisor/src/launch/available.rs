//! How much memory the host can still give, asked before much of it is written.
//!
//! The builder writes 16 bytes for each page of a guest's memory (the list of frames and the machine-to-physical
//! table), and the files that the guest is given. Nothing refuses those pages when there are too many: without this
//! check the out-of-memory killer would act, and it might choose another program.
//!
//! Limits of control groups count as well: this process's own group and all above it, version 1 or 2. What may not be
//! done here: refusing memory that is not written before the guest starts. A guest may be given more than the host has.

use std::fs;
use std::path::{Path, PathBuf};

use crate::text::{printable, units};

/// Up to this many bytes the host is not asked: writing them takes more than 50 times as long as asking.
pub const UNASKED: u64 = 8 << 20;

/// The host has too little memory for what is written before the guest starts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a guest with --mem of {} needs {} before it starts, and {limit} leaves {}, an eighth of which is kept free; {}, or free \
     memory",
    units::bytes(*mem), units::bytes(*needed), units::bytes(*available), advice(*largest)
)]
pub struct TooLittle {
    /// Bytes of guest memory that were asked for.
    pub mem: u64,
    /// Bytes that are written before the guest starts.
    pub needed: u64,
    /// Bytes that can be had.
    pub available: u64,
    /// What limits them.
    pub limit: String,
    /// The largest guest that would do, in bytes; 0 if none would.
    pub largest: u64,
}

fn advice(largest: u64) -> String {
    match largest >> 20 {
        0 => "give it smaller files".to_owned(),
        mib => format!("lower --mem to {mib}M"),
    }
}

/// Checks that the host has room for what is written before a guest of `mem` bytes starts: `fixed` bytes whatever its
/// size, and `growing` bytes that grow with it.
pub fn check(mem: u64, fixed: u64, growing: u64) -> Result<(), TooLittle> {
    let needed = fixed.saturating_add(growing);
    if needed <= UNASKED {
        return Ok(());
    }
    check_in(Path::new("/"), mem, fixed, growing)
}

fn check_in(root: &Path, mem: u64, fixed: u64, growing: u64) -> Result<(), TooLittle> {
    let needed = fixed.saturating_add(growing);
    // A host that does not tell is not an obstacle.
    let Some((available, limit)) = available(root) else { return Ok(()) };
    let usable = available - available / 8;
    if needed <= usable {
        return Ok(());
    }
    let left = u128::from(usable.saturating_sub(fixed));
    let largest = u128::from(mem) * left / u128::from(growing.max(1));
    let largest = u64::try_from(largest).unwrap_or(u64::MAX).min(mem) >> 20 << 20;
    Err(TooLittle { mem, needed, available, limit, largest })
}

/// The least of what the host and this process's control groups have left, and which of them that is.
fn available(root: &Path) -> Option<(u64, String)> {
    let host = field(&read(root, "proc/meminfo")?, "MemAvailable:").map(|kib| kib.saturating_mul(1024));
    let host = host.map(|bytes| (bytes, "the host".to_owned()));
    groups(root).into_iter().chain(host).min_by_key(|(bytes, _)| *bytes)
}

/// The memory that the host has in all, in bytes, if it tells.
pub fn total() -> Option<u64> {
    field(&read(Path::new("/"), "proc/meminfo")?, "MemTotal:").map(|kib| kib.saturating_mul(1024))
}

/// What each control group above this process has left.
fn groups(root: &Path) -> Vec<(u64, String)> {
    let (Some(mine), Some(mounts)) = (read(root, "proc/self/cgroup"), read(root, "proc/self/mountinfo"))
    else {
        return Vec::new();
    };
    let mut left = Vec::new();
    // cgroups(7): "hierarchy:controllers:path"; version 2 is hierarchy 0, without controllers.
    for line in mine.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let kind = match controllers {
            "" => &V2,
            list if list.split(',').any(|controller| controller == "memory") => &V1,
            _ => continue,
        };
        let Some((mount, inside)) = mounted(&mounts, kind, path) else { continue };
        let mut group = inside.as_path();
        loop {
            let dir = root.join(mount.trim_start_matches('/')).join(group);
            if let Some(bytes) = kind.left(&dir) {
                left.push((bytes, format!("the memory limit of control group /{}", printable::path(group))));
            }
            let Some(parent) = group.parent() else { break };
            group = parent;
        }
    }
    left
}

/// The files of one version of control groups.
struct Version {
    filesystem: &'static str,
    /// In the mount's options, if it is not of all controllers.
    controller: Option<&'static str>,
    limit: &'static str,
    used: &'static str,
    /// In memory.stat: pages of files, which are given up before the limit bites.
    files: [&'static str; 2],
}

const V2: Version = Version {
    filesystem: "cgroup2",
    controller: None,
    limit: "memory.max",
    used: "memory.current",
    files: ["inactive_file", "active_file"],
};
const V1: Version = Version {
    filesystem: "cgroup",
    controller: Some("memory"),
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: ["total_inactive_file", "total_active_file"],
};

impl Version {
    /// What a group has left; `None` if it has no limit.
    fn left(&self, dir: &Path) -> Option<u64> {
        // "max" is not a number: it means no limit.
        let number = |name| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
        let (limit, used) = (number(self.limit)?, number(self.used)?);
        let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
        let files: u64 = self.files.iter().filter_map(|name| field(&stat, name)).sum();
        Some(limit.saturating_sub(used.saturating_sub(files)))
    }
}

/// Where a hierarchy is mounted, and where in it the group `path` is (proc(5), mountinfo).
fn mounted(mounts: &str, kind: &Version, path: &str) -> Option<(String, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut source = source.split(' ');
        if source.next() != Some(kind.filesystem) {
            return None;
        }
        let options = source.nth(1).unwrap_or_default();
        if kind.controller.is_some_and(|c| !options.split(',').any(|option| option == c)) {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (top, at) = (fields.next()?, fields.next()?);
        // A container sees its own group as the root of the mount.
        let inside = Path::new(path).strip_prefix(top).unwrap_or(Path::new(""));
        Some((at.to_owned(), inside.to_owned()))
    })
}

fn read(root: &Path, name: &str) -> Option<String> {
    fs::read_to_string(root.join(name)).ok()
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().map(str::split_whitespace);
    words.find_map(|mut line| (line.next() == Some(name)).then(|| line.next()?.parse().ok()).flatten())
}

#[cfg(test)]
mod tests {
    use crate::launch::available::*;

    const GIB: u64 = 1 << 30;

    /// A host with 4 GiB available and these files besides.
    fn host(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("paravane-available-{}-{name}", std::process::id()));
        for (path, text) in
            [("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  4194304 kB\n")].iter().chain(files)
        {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn available_on(name: &str, files: &[(&str, &str)]) -> (u64, String) {
        let root = host(name, files);
        let found = available(&root).unwrap();
        fs::remove_dir_all(root).unwrap();
        found
    }

    #[test]
    fn a_host_without_groups_has_what_it_says() {
        assert_eq!(available_on("plain", &[]), (4 * GIB, "the host".to_owned()));
    }

    #[test]
    fn the_tightest_group_above_counts() {
        let (bytes, limit) = available_on(
            "v2",
            &[
                ("proc/self/cgroup", "0::/outer/inner\n"),
                ("proc/self/mountinfo", "30 2 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"),
                ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
                ("sys/fs/cgroup/outer/inner/memory.current", "5\n"),
                ("sys/fs/cgroup/outer/memory.max", "1073741824\n"),
                ("sys/fs/cgroup/outer/memory.current", "805306368\n"),
                ("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 268435456\nactive_file 0\n"),
            ],
        );
        assert_eq!(bytes, GIB / 2, "pages of files are given up");
        assert!(limit.ends_with("group /outer"), "{limit}");
    }

    /// As a container sees its own group: the mount's root is the group.
    #[test]
    fn version_1_in_a_container() {
        let (bytes, _) = available_on(
            "v1",
            &[
                ("proc/self/cgroup", "9:cpu:/docker/x\n4:memory:/docker/x\n"),
                ("proc/self/mountinfo", "31 2 0:27 /docker/x /mem ro - cgroup cgroup rw,memory\n"),
                ("mem/memory.limit_in_bytes", "2147483648\n"),
                ("mem/memory.usage_in_bytes", "1073741824\n"),
            ],
        );
        assert_eq!(bytes, GIB);
    }

    #[test]
    fn a_guest_that_is_too_large_is_told_the_largest() {
        let root = host("large", &[]);
        let at = |mem: u64| check_in(&root, mem, GIB, mem / 256);
        assert_eq!(at(512 * GIB), Ok(()));
        let error = at(1024 * GIB).unwrap_err();
        assert_eq!((error.needed, error.available, error.largest), (5 * GIB, 4 * GIB, 640 * GIB));
        assert_eq!(at(error.largest), Ok(()), "what is advised works");
        let text = error.to_string();
        assert!(text.contains("--mem of 1 TiB") && text.contains("lower --mem to 655360M"), "{text}");
        let files = check_in(&root, GIB, 6 * GIB, 1).unwrap_err().to_string();
        assert!(files.contains("give it smaller files"), "{files}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn garbage_is_no_limit() {
        let files = [
            ("proc/self/cgroup", "x\n0::\n::::\n0::../../..\n"),
            ("proc/self/mountinfo", "x\n - cgroup2 a b\n30 2 0:26 / /sys/fs/cgroup rw - cgroup2 c rw\n"),
            ("sys/fs/cgroup/memory.max", "-1\n"),
        ];
        assert_eq!(available_on("garbage", &files).0, 4 * GIB);
    }
}
