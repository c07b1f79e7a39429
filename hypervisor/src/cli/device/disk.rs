//! `--disk`: how it is parsed, and how the disk is opened.

use std::str::FromStr;

use crate::backend::disk::{Disk, Format, Options};
use crate::virtio::MAX_QUEUES;
use crate::virtio::block::{BadQueueCount, Block};

/// A `--disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    /// The disk's file, and how to open it.
    pub disk: Options,
    /// `queues=N`: 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// `id=TEXT`: the identity that the guest reads; by default the file's name.
    pub id: Option<String>,
}

/// A `--disk` that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DiskOptionError(String);

/// A disk that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its file or image.
    #[error(transparent)]
    Disk(#[from] crate::backend::disk::OpenError),
    /// Its number of queues.
    #[error(transparent)]
    Queues(#[from] BadQueueCount),
}

impl FromStr for DiskOption {
    type Err = DiskOptionError;

    /// Reads `PATH[,readonly][,format=raw|qcow2][,queues=N][,direct=on|off][,id=TEXT]`. A comma in the path is doubled.
    fn from_str(text: &str) -> Result<Self, DiskOptionError> {
        let (path, rest) = split_path(text);
        if path.is_empty() {
            return Err(DiskOptionError(
                "the path is missing: PATH[,readonly][,format=raw|qcow2]...".to_owned(),
            ));
        }
        let disk = Options { path: path.into(), format: None, readonly: false, direct: false };
        let mut parsed = Self { disk, queues: 1, id: None };
        for option in rest.split(',').filter(|_| !rest.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match (key, value) {
                ("readonly" | "ro", "" | "on") => parsed.disk.readonly = true,
                ("readonly" | "ro", "off") => parsed.disk.readonly = false,
                ("direct", "" | "on") => parsed.disk.direct = true,
                ("direct", "off") => parsed.disk.direct = false,
                ("format", "raw") => parsed.disk.format = Some(Format::Raw),
                ("format", "qcow2") => parsed.disk.format = Some(Format::Qcow2),
                ("queues", number) => {
                    let count =
                        number.parse().ok().filter(|count| (1..=MAX_QUEUES).contains(&usize::from(*count)));
                    parsed.queues = count.ok_or_else(|| {
                        DiskOptionError(format!("queues={number}: give a number from 1 to {MAX_QUEUES}"))
                    })?;
                }
                ("id", id) if !id.is_empty() => parsed.id = Some(id.to_owned()),
                _ => {
                    return Err(DiskOptionError(format!(
                        "unknown option {option:?}; use readonly, format=raw|qcow2, queues=N, direct=on|off or id=TEXT"
                    )));
                }
            }
        }
        Ok(parsed)
    }
}

impl DiskOption {
    /// Opens the disk and locks it.
    ///
    /// # Errors
    /// When it cannot be used; the message says what to do.
    pub fn open(&self) -> Result<Block, OpenError> {
        Ok(Block::new(Disk::open(&self.disk)?, self.queues, self.id.as_deref())?)
    }
}

/// Splits off the path, which ends at a single comma: returns it with doubled commas made single, and the rest.
fn split_path(text: &str) -> (String, &str) {
    let (mut path, mut rest) = (String::new(), text);
    while let Some((part, after)) = rest.split_once(',') {
        path.push_str(part);
        let Some(more) = after.strip_prefix(',') else { return (path, after) };
        path.push(',');
        rest = more;
    }
    path.push_str(rest);
    (path, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DiskOption, DiskOptionError> {
        text.parse()
    }

    #[test]
    fn options_are_parsed() {
        let plain = parse("a/b.img").unwrap();
        assert_eq!(
            (plain.disk.path.to_str(), plain.disk.readonly, plain.disk.format, plain.queues),
            (Some("a/b.img"), false, None, 1)
        );
        let all = parse("x,,y,readonly,format=qcow2,queues=4,direct=on,id=root").unwrap();
        let disk = Options { path: "x,y".into(), format: Some(Format::Qcow2), readonly: true, direct: true };
        let expected = DiskOption { disk, queues: 4, id: Some("root".to_owned()) };
        assert_eq!(all, expected);
        assert!(!parse("d,readonly,readonly=off").unwrap().disk.readonly);
        assert_eq!(parse("d,,").unwrap().disk.path.to_str(), Some("d,"));
    }

    #[test]
    fn mistakes_are_refused() {
        for text in [
            "",
            ",readonly",
            "d,read-only",
            "d,format=vmdk",
            "d,queues=",
            "d,queues=-1",
            "d,queues=0",
            "d,queues=17",
            "d,id=",
            "d,readonly,,x",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
