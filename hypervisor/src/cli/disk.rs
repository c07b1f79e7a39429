//! `--disk`: a path, and options after commas.

use std::path::PathBuf;

use crate::virtio::MAX_QUEUES;
use crate::virtio::block::{Format, Options};

/// Parses `PATH[,readonly][,format=raw|qcow2][,queues=N][,direct=on|off][,id=TEXT]`. A comma in the path is doubled.
pub(super) fn parse(text: &str) -> Result<Options, String> {
    let (path, rest) = split_path(text);
    if path.is_empty() {
        return Err("it begins with a path: PATH[,readonly][,format=raw|qcow2]...".to_owned());
    }
    let path = PathBuf::from(path);
    let mut options = Options { path, format: None, readonly: false, direct: false, queues: 1, id: None };
    for option in rest.split(',').filter(|_| !rest.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, value) {
            ("readonly" | "ro", "" | "on") => options.readonly = true,
            ("readonly" | "ro", "off") => options.readonly = false,
            ("direct", "" | "on") => options.direct = true,
            ("direct", "off") => options.direct = false,
            ("format", "raw") => options.format = Some(Format::Raw),
            ("format", "qcow2") => options.format = Some(Format::Qcow2),
            ("queues", number) => {
                let count =
                    number.parse().ok().filter(|count| (1..=MAX_QUEUES).contains(&usize::from(*count)));
                options.queues = count
                    .ok_or_else(|| format!("queues={number}: a number from 1 to {MAX_QUEUES} is needed"))?;
            }
            ("id", id) if !id.is_empty() => options.id = Some(id.to_owned()),
            _ => {
                return Err(format!(
                    "{option:?} is none of readonly, format=raw, format=qcow2, queues=N, direct=on|off, id=TEXT"
                ));
            }
        }
    }
    Ok(options)
}

/// The path, its doubled commas made single, and what comes after the comma that ends it.
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

    #[test]
    fn what_is_understood() {
        let plain = parse("a/b.img").unwrap();
        assert_eq!(
            (plain.path.to_str(), plain.readonly, plain.format, plain.queues),
            (Some("a/b.img"), false, None, 1)
        );
        let all = parse("x,,y,readonly,format=qcow2,queues=4,direct=on,id=root").unwrap();
        let expected = Options {
            path: "x,y".into(),
            format: Some(Format::Qcow2),
            readonly: true,
            direct: true,
            queues: 4,
            id: Some("root".to_owned()),
        };
        assert_eq!(all, expected);
        assert!(!parse("d,readonly,readonly=off").unwrap().readonly);
        assert_eq!(parse("d,,").unwrap().path.to_str(), Some("d,"));
    }

    #[test]
    fn what_is_not() {
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
