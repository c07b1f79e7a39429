//! Where a new kernel's SDK comes from.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::text::printable;

/// The source tree that this program was built from, unless it was built from a package.
const OURS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What is there in a source tree.
const MARK: &str = "guest-sdk/build-support/Cargo.toml";

/// The version that templates name.
pub(super) const VERSION: &str = "0.1";

/// Where the SDK is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sdk {
    /// In a copy of the source, at an absolute path.
    Source(PathBuf),
    /// In the package registry.
    Registry,
}

impl Sdk {
    /// The one that was asked for, or the one that this program was built with.
    pub(super) fn find(wanted: Option<&Path>) -> anyhow::Result<Self> {
        let Some(wanted) = wanted else {
            let ours = Path::new(OURS).canonicalize().ok().filter(|ours| is_source(ours));
            return Ok(ours.map_or(Self::Registry, Self::Source));
        };
        let shown = printable::path(wanted);
        let folder = wanted.canonicalize().with_context(|| format!("cannot use the SDK in {shown}"))?;
        ensure!(is_source(&folder), "{shown} is no copy of Paravane's source: it has no {MARK}");
        Ok(Self::Source(folder))
    }

    /// A line of a manifest, with this SDK.
    pub(super) fn dependency(&self, line: &str) -> String {
        let (Self::Source(root), Some((name, _))) = (self, line.split_once(" = ")) else {
            return line.to_owned();
        };
        let folder = match name {
            "paravane-guest-sdk" => "guest-sdk",
            "paravane-guest-build" => "guest-sdk/build-support",
            _ => return line.to_owned(),
        };
        let path = format!("path = {}", quoted(&root.join(folder)));
        let version = format!("version = \"{VERSION}\"");
        if line.contains(&version) { line.replace(&version, &path) } else { format!("{name} = {{ {path} }}") }
    }
}

/// A path as a string of TOML, whose escapes include JSON's.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

fn is_source(folder: &Path) -> bool {
    folder.join(MARK).is_file() && folder.to_str().is_some()
}

impl fmt::Display for Sdk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(folder) => write!(f, "in {}", printable::path(folder)),
            Self::Registry => write!(f, "{VERSION} of the package registry"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_takes_the_versions_place() {
        let sdk = Sdk::Source("/a \"b\"".into());
        let plain = sdk.dependency("paravane-guest-build = \"0.1\"");
        assert_eq!(plain, r#"paravane-guest-build = { path = "/a \"b\"/guest-sdk/build-support" }"#);
        let with = sdk.dependency(r#"paravane-guest-sdk = { version = "0.1", features = ["virtio"] }"#);
        assert_eq!(with, r#"paravane-guest-sdk = { path = "/a \"b\"/guest-sdk", features = ["virtio"] }"#);
        for line in
            ["[dependencies]", "linked_list_allocator = { version = \"0.1\" }", "name = \"my-kernel\""]
        {
            assert_eq!(sdk.dependency(line), line);
            assert_eq!(Sdk::Registry.dependency(line), line);
        }
    }

    #[test]
    fn templates_name_this_version() {
        assert!(env!("CARGO_PKG_VERSION").starts_with(&format!("{VERSION}.")));
    }

    #[test]
    fn a_folder_without_an_sdk_is_refused() {
        assert!(Sdk::find(Some(Path::new("/"))).is_err());
        assert!(Sdk::find(Some(Path::new("/nowhere"))).is_err());
        assert!(matches!(Sdk::find(None), Ok(Sdk::Source(_))), "the tests are built from the source");
    }
}
