//! What a domain may do with nodes, and with which error it fails.
//!
//! Source: docs/misc/xenstore.txt. A node that is missing is ENOENT to those only who may look into the nearest node
//! above it that exists; to others it is EACCES, as is a node that they may not use.

use std::sync::Arc;

use paravane_abi::domid::DomId;
use paravane_abi::errno::Errno;
use paravane_abi::xenstore::XENSTORE_PAYLOAD_MAX;

use super::node::{Change, Node, View};
use super::path::Path;
use super::perms::{Access, Perms};

/// A view of the tree, for a domain.
pub struct Client<'a, 'b> {
    /// What it sees.
    pub view: &'a mut View<'b>,
    /// Who it is: a domain without privileges.
    pub domain: DomId,
    /// Takes the changes that watches are to be notified of.
    pub changes: &'a mut Vec<Change>,
}

/// What there is above a node that is missing.
struct Above {
    /// The nearest path above that names a node; the root where none does.
    path: Path,
    /// That node.
    node: Option<Arc<Node>>,
    /// The paths below it that name none, the longest last.
    missing: Vec<Path>,
}

impl Client<'_, '_> {
    /// The node, if the domain may use it so.
    fn node(&mut self, path: &Path, wanted: Access) -> Result<Arc<Node>, Errno> {
        match self.view.get(path)? {
            Some(node) if node.perms.of(self.domain).allows(wanted) => Ok(node),
            Some(_) => Err(Errno::EACCES),
            None => Err(self.missing(path, wanted)?),
        }
    }

    /// What there is above a node that is missing.
    fn above(&mut self, path: &Path) -> Result<Above, Errno> {
        let mut missing = vec![path.clone()];
        let mut at = path.clone();
        while let Some((parent, _)) = at.split() {
            if let Some(node) = self.view.get(&parent)? {
                missing.reverse();
                return Ok(Above { path: parent, node: Some(node), missing });
            }
            missing.push(parent.clone());
            at = parent;
        }
        Ok(Above { path: at, node: None, missing })
    }

    fn missing(&mut self, path: &Path, wanted: Access) -> Result<Errno, Errno> {
        let above = self.above(path)?.node;
        let may = above.is_some_and(|node| node.perms.of(self.domain).allows(wanted));
        Ok(if may { Errno::ENOENT } else { Errno::EACCES })
    }

    fn changed(&mut self, path: Path, exact: bool) {
        self.changes.push(Change { path, exact });
    }

    /// A node's value.
    pub fn read(&mut self, path: &Path) -> Result<Vec<u8>, Errno> {
        Ok(self.node(path, Access::READ)?.value.clone())
    }

    /// The names of its children, each with a zero byte after it.
    ///
    /// # Errors
    /// E2BIG when they do not fit into one message.
    pub fn directory(&mut self, path: &Path) -> Result<Vec<u8>, Errno> {
        let node = self.node(path, Access::READ)?;
        let names = names(&node);
        if names.len() > XENSTORE_PAYLOAD_MAX { Err(Errno::E2BIG) } else { Ok(names) }
    }

    /// The same from byte `offset` on, as much as fits: generation, zero, whole names; one more zero at the end.
    pub fn directory_part(&mut self, path: &Path, offset: usize) -> Result<Vec<u8>, Errno> {
        let node = self.node(path, Access::READ)?;
        let all = names(&node);
        let rest = all.get(offset..).ok_or(Errno::EINVAL)?;
        let mut part = format!("{}\0", node.generation).into_bytes();
        let room = XENSTORE_PAYLOAD_MAX - part.len() - 1;
        let fits = rest.get(..room.min(rest.len())).unwrap_or_default();
        let whole = fits.iter().rposition(|&byte| byte == 0).map_or(0, |last| last + 1);
        part.extend_from_slice(fits.get(..whole).unwrap_or_default());
        if whole == rest.len() {
            part.push(0);
        }
        Ok(part)
    }

    /// Makes a node, and those above it that are missing, with the permissions of the one that exists.
    fn make(&mut self, path: &Path, value: &[u8]) -> Result<(), Errno> {
        let Above { path: parent, node: above, missing } = self.above(path)?;
        let above = above.ok_or(Errno::EACCES)?;
        if !above.perms.of(self.domain).allows(Access::WRITE) {
            return Err(Errno::EACCES);
        }
        let perms = Perms { owner: self.domain, ..above.perms.clone() };
        let names: Vec<Box<str>> =
            missing.iter().filter_map(|p| p.split().map(|(_, name)| name.into())).collect();
        let mut nodes = Vec::new();
        let mut above = Node::clone(&above);
        let mut at = parent;
        for (path, name) in missing.iter().zip(names) {
            above.children.insert(name);
            nodes.push((std::mem::replace(&mut at, path.clone()), above));
            above = Node::new(perms.clone());
        }
        above.value = value.to_vec();
        nodes.push((at, above));
        self.put_all(nodes, missing.len())?;
        self.changed(path.clone(), false);
        Ok(())
    }

    /// Puts all of these nodes, `new` of which were not there, or none.
    fn put_all(&mut self, nodes: Vec<(Path, Node)>, new: usize) -> Result<(), Errno> {
        let mut bytes = 0;
        for (path, node) in &nodes {
            if node.bytes() > super::node::MAX_NODE_BYTES {
                return Err(Errno::ENOSPC);
            }
            bytes += path.as_str().len() + node.bytes();
        }
        self.view.make_room(new, bytes)?;
        nodes.into_iter().try_for_each(|(path, node)| self.view.put(path, node))
    }

    /// Sets a node's value; makes the node if it is missing.
    pub fn write(&mut self, path: &Path, value: &[u8]) -> Result<(), Errno> {
        match self.node(path, Access::WRITE) {
            Ok(node) => {
                let node = Node { value: value.to_vec(), ..Node::clone(&node) };
                self.put_all(vec![(path.clone(), node)], 0)?;
                self.changed(path.clone(), false);
                Ok(())
            }
            Err(Errno::ENOENT) => self.make(path, value),
            Err(errno) => Err(errno),
        }
    }

    /// Makes a node without a value, unless it exists.
    pub fn mkdir(&mut self, path: &Path) -> Result<(), Errno> {
        match self.node(path, Access::WRITE) {
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => self.make(path, &[]),
            Err(errno) => Err(errno),
        }
    }

    /// Removes a node and all below it. One that is missing counts as removed if the node above it is there.
    pub fn rm(&mut self, path: &Path) -> Result<(), Errno> {
        let (parent, name) = path.split().ok_or(Errno::EINVAL)?;
        let node = match self.node(path, Access::WRITE) {
            Err(Errno::ENOENT) if self.view.get(&parent)?.is_some() => return Ok(()),
            other => other?,
        };
        // What is to go is collected first: a view that runs out of room must not have lost a part.
        let mut below = vec![(path.clone(), node)];
        let mut next = 0;
        while let Some((at, node)) = below.get(next).cloned() {
            next += 1;
            for name in &node.children {
                let child = at.child(name);
                if let Some(node) = self.view.get(&child)? {
                    below.push((child, node));
                }
            }
        }
        if let Some(above) = self.view.get(&parent)? {
            let mut above = Node::clone(&above);
            above.children.remove(name);
            self.view.put(parent, above)?;
        }
        for (gone, _) in below {
            self.view.remove(&gone)?;
            let exact = gone != *path;
            self.changed(gone, exact);
        }
        Ok(())
    }

    /// A node's permissions.
    pub fn get_perms(&mut self, path: &Path) -> Result<Vec<u8>, Errno> {
        Ok(self.node(path, Access::READ)?.perms.to_wire())
    }

    /// Sets a node's permissions.
    ///
    /// # Errors
    /// EACCES unless the domain owns the node, EPERM when it would give it away.
    pub fn set_perms(&mut self, path: &Path, perms: Perms) -> Result<(), Errno> {
        let node = self.node(path, Access::BOTH)?;
        if node.perms.owner != self.domain {
            return Err(Errno::EACCES);
        }
        if perms.owner != self.domain {
            return Err(Errno::EPERM);
        }
        self.put_all(vec![(path.clone(), Node { perms, ..Node::clone(&node) })], 0)?;
        self.changed(path.clone(), false);
        Ok(())
    }
}

fn names(node: &Node) -> Vec<u8> {
    node.children.iter().flat_map(|name| name.bytes().chain([0])).collect()
}
