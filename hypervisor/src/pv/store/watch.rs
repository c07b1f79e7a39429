//! Watches: what a domain wants to be notified of, and the messages for it.
//!
//! Whoever changes a node may read it (a node that the host lets a guest write is its own), so an event tells a guest
//! nothing that it could not read.

use paravane_abi::errno::Errno;
use paravane_abi::xenstore::{XENSTORE_PAYLOAD_MAX, XENSTORE_REL_PATH_MAX};

use super::node::Change;
use super::path::Path;

/// Watches that a domain may have: xenstored's default limit.
pub(super) const MAX_WATCHES: usize = 128;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Watched {
    /// A node and all below it.
    Node(Path),
    /// `@introduceDomain` or `@releaseDomain`: no domain comes or goes here.
    Domains,
}

#[derive(Debug)]
struct Watch {
    watched: Watched,
    /// As the guest named it, which is how events name it.
    name: Vec<u8>,
    token: Vec<u8>,
}

/// The watches of a domain, in the order in which they were set.
#[derive(Debug, Default)]
pub struct Watches(Vec<Watch>);

impl Watches {
    /// All of them, in order: name and token.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|watch| (&*watch.name, &*watch.token))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Sets one.
    ///
    /// # Errors
    /// EINVAL for what can be no node, EEXIST when it is set already, E2BIG when there are too many.
    pub fn add(&mut self, name: &[u8], token: &[u8], home: &Path) -> Result<(), Errno> {
        let watched = match name {
            [b'@', ..] if name.len() <= XENSTORE_REL_PATH_MAX => Watched::Domains,
            _ => Watched::Node(Path::parse(name, home)?),
        };
        if self.0.iter().any(|watch| watch.is(name, token)) {
            return Err(Errno::EEXIST);
        }
        if self.0.len() >= MAX_WATCHES {
            return Err(Errno::E2BIG);
        }
        self.0.push(Watch { watched, name: name.to_vec(), token: token.to_vec() });
        Ok(())
    }

    /// Removes one.
    ///
    /// # Errors
    /// ENOENT when it is not set.
    pub fn remove(&mut self, name: &[u8], token: &[u8]) -> Result<(), Errno> {
        let at = self.0.iter().position(|watch| watch.is(name, token)).ok_or(Errno::ENOENT)?;
        self.0.remove(at);
        Ok(())
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The payload of the message about `change` for watch number `index`, if it watches that.
    pub fn event(&self, index: usize, change: &Change) -> Option<Vec<u8>> {
        let watch = self.0.get(index)?;
        let Watched::Node(watched) = &watch.watched else { return None };
        let below = change.path.below(watched)?;
        if below.is_empty() {
            return event(&watch.name, &watch.token);
        }
        if change.exact {
            return None;
        }
        let slash: &[u8] = if watch.name == b"/" { b"" } else { b"/" };
        event(&[&watch.name, slash, below.as_bytes()].concat(), &watch.token)
    }
}

impl Watch {
    fn is(&self, name: &[u8], token: &[u8]) -> bool {
        self.name == name && self.token == token
    }
}

/// The payload of an event; `None` when it would be too long for a message, and cannot be told.
pub fn event(path: &[u8], token: &[u8]) -> Option<Vec<u8>> {
    let payload = [path, &[0], token, &[0]].concat();
    (payload.len() <= XENSTORE_PAYLOAD_MAX).then_some(payload)
}
