//! Names of nodes: which are well formed, and how they lie below one another.

use std::sync::Arc;

use paravane_abi::errno::Errno;
use paravane_abi::xenstore::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX};

/// An absolute path: `/`, or names that each follow a slash. Cheap to clone.
///
/// The order is that of the text, so a node comes before everything below it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Arc<str>);

impl Path {
    /// The root.
    pub fn root() -> Self {
        Self(Arc::from("/"))
    }

    /// A path that the hypervisor itself chose, known to be well formed.
    pub(super) fn known(text: &str) -> Self {
        debug_assert!(is_well_formed(text), "{text}");
        Self(Arc::from(text))
    }

    /// What a client named; a path without a leading slash begins at `home`.
    ///
    /// # Errors
    /// EINVAL for what is not a path: an empty name, a character that names may not have, or too many of them.
    pub fn parse(text: &[u8], home: &Self) -> Result<Self, Errno> {
        let text = str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let (whole, limit) = if text.starts_with('/') {
            (text.to_owned(), XENSTORE_ABS_PATH_MAX)
        } else {
            (format!("{home}/{text}"), XENSTORE_REL_PATH_MAX)
        };
        if text.len() > limit || !is_well_formed(&whole) {
            return Err(Errno::EINVAL);
        }
        Ok(Self(Arc::from(whole)))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The node above, and this node's name in it; `None` for the root.
    pub fn split(&self) -> Option<(Self, &str)> {
        let (parent, name) = self.0.rsplit_once('/').filter(|(_, name)| !name.is_empty())?;
        Some((if parent.is_empty() { Self::root() } else { Self(Arc::from(parent)) }, name))
    }

    /// The node of this name below this one.
    pub fn child(&self, name: &str) -> Self {
        let above = if &*self.0 == "/" { "" } else { &*self.0 };
        Self(Arc::from(format!("{above}/{name}")))
    }

    /// What comes after `ancestor` and its slash; empty for the same node, `None` for one that is not below it.
    pub fn below(&self, ancestor: &Self) -> Option<&str> {
        if &*ancestor.0 == "/" {
            return self.0.strip_prefix('/');
        }
        let rest = self.0.strip_prefix(&*ancestor.0)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this is an absolute path of characters that names may have (docs/misc/xenstore.txt, "KEY PATHS").
fn is_well_formed(path: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '/' | '_' | '@');
    let names = match path.strip_prefix('/') {
        Some("") => return true,
        Some(names) => names,
        None => return false,
    };
    path.len() <= XENSTORE_ABS_PATH_MAX
        && path.chars().all(allowed)
        && names.split('/').all(|name| !name.is_empty())
}
