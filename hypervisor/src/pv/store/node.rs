//! The tree, and transactions over it.
//!
//! A node knows its children's names, so making or removing one changes the node above, too. A transaction keeps what
//! it changed, and of all that it looked at the generation that it saw; it is committed if none of those has changed
//! since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use paravane_abi::domid::DomId;
use paravane_abi::errno::Errno;

use super::path::Path;
use super::perms::Perms;

/// Nodes that a guest may own: xenstored's default limit.
pub const MAX_OWNED: usize = 1000;
/// Bytes that a node may have, with its children's names: xenstored's default limit.
pub const MAX_NODE_BYTES: usize = 2048;
/// Bytes of all nodes together.
const MAX_BYTES: usize = 2 << 20;
/// Nodes that a transaction may look at: xenstored's default limit.
const MAX_SEEN: usize = 1024;
/// Bytes of all that one transaction keeps.
const MAX_KEPT: usize = 256 << 10;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its value: any bytes.
    pub value: Vec<u8>,
    /// Who may do what with it.
    pub perms: Perms,
    /// The names of the nodes right below it.
    pub children: BTreeSet<Box<str>>,
    /// Differs after each change of this node.
    pub generation: u64,
}

impl Node {
    /// A node without value or children.
    pub fn new(perms: Perms) -> Self {
        Self { value: Vec::new(), perms, children: BTreeSet::new(), generation: 0 }
    }

    /// Bytes that count against [`MAX_NODE_BYTES`]: a record's head, permissions, value and names.
    pub fn bytes(&self) -> usize {
        let names: usize = self.children.iter().map(|name| name.len() + 1).sum();
        24 + 8 * (1 + self.perms.listed.len()) + self.value.len() + names
    }
}

/// Bytes that a node takes, its path included.
fn taken(path: &Path, node: &Node) -> usize {
    path.as_str().len() + node.bytes()
}

/// All nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<Path, Arc<Node>>,
    /// Whose nodes are limited.
    guest: DomId,
    /// How many those are.
    owned: usize,
    bytes: usize,
    generation: u64,
}

impl Tree {
    /// Nothing yet, not even a root.
    pub fn new(guest: DomId) -> Self {
        Self { nodes: BTreeMap::new(), guest, owned: 0, bytes: 0, generation: 0 }
    }

    fn generation_of(&self, path: &Path) -> u64 {
        self.nodes.get(path).map_or(0, |node| node.generation)
    }

    /// How many nodes there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Panics unless every node is named by the one above it, every name is a node's, and the sums are right.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for (path, node) in &self.nodes {
            let named = path.split().is_none_or(|(above, name)| self.nodes[&above].children.contains(name));
            assert!(named, "{path} hangs in the air");
            for name in &node.children {
                assert!(self.nodes.contains_key(&path.child(name)), "{path} has no {name}");
            }
        }
        let owned = self.nodes.values().filter(|node| node.perms.owner == self.guest).count();
        let bytes = self.nodes.iter().map(|(path, node)| taken(path, node)).sum::<usize>();
        assert_eq!((self.owned, self.bytes), (owned, bytes));
        assert!(owned <= MAX_OWNED);
    }

    /// Puts a node in place of what was there, whatever the limits say.
    pub(super) fn put(&mut self, path: Path, mut node: Node) {
        self.remove(&path);
        self.generation += 1;
        node.generation = self.generation;
        self.bytes += taken(&path, &node);
        self.owned += usize::from(node.perms.owner == self.guest);
        self.nodes.insert(path, Arc::new(node));
    }

    /// Tells a node, if it is there, of a child.
    pub(super) fn adopt(&mut self, parent: &Path, name: &str) {
        if let Some(node) = self.nodes.get(parent) {
            let mut node = Node::clone(node);
            node.children.insert(name.into());
            self.put(parent.clone(), node);
        }
    }

    /// All nodes, those above before those below.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.iter().map(|(path, node)| (path, &**node))
    }

    /// Has these nodes and no others. `None`, and half done, if they are not a tree within the limits of one.
    pub(super) fn replant(&mut self, mut nodes: Vec<(Path, Node)>) -> Option<()> {
        nodes.sort_by(|(a, _), (b, _)| a.cmp(b));
        *self = Self::new(self.guest);
        for (path, node) in nodes {
            if self.nodes.contains_key(&path) || self.bytes > MAX_BYTES || node.bytes() > MAX_NODE_BYTES {
                return None;
            }
            match path.split() {
                Some((parent, name)) => {
                    self.nodes.contains_key(&parent).then(|| self.adopt(&parent, name))?;
                    self.nodes.get(&parent).filter(|node| node.bytes() <= MAX_NODE_BYTES)?;
                }
                None if !self.nodes.is_empty() => return None,
                None => {}
            }
            self.put(path, node);
        }
        (self.owned <= MAX_OWNED && self.nodes.contains_key(&Path::root())).then_some(())
    }

    fn remove(&mut self, path: &Path) {
        if let Some(node) = self.nodes.remove(path) {
            self.bytes -= taken(path, &node);
            self.owned -= usize::from(node.perms.owner == self.guest);
        }
    }
}

/// A transaction that has not ended.
#[derive(Debug, Default)]
pub struct Transaction {
    /// What was looked at, and the generation that it had; 0 for what was not there.
    seen: BTreeMap<Path, u64>,
    /// What was changed: `None` for what was removed.
    changed: BTreeMap<Path, Option<Arc<Node>>>,
    /// Bytes of both.
    kept: usize,
    /// Nodes of the guest's that were made, less those that were removed.
    made: isize,
    /// What to tell watches once it is committed.
    changes: Vec<Change>,
    told: BTreeSet<Change>,
}

/// A change that watches are notified of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Which node.
    pub path: Path,
    /// Only watches of this very node are notified: it was removed with a node above it, whose watches are notified of
    /// that.
    pub exact: bool,
}

/// The tree as a request sees it: as it is, or through a transaction.
pub struct View<'a> {
    tree: &'a mut Tree,
    transaction: Option<&'a mut Transaction>,
    /// Nodes that were looked at: what the request cost.
    pub cost: u64,
}

impl<'a> View<'a> {
    /// The tree, through a transaction if there is one.
    pub fn new(tree: &'a mut Tree, transaction: Option<&'a mut Transaction>) -> Self {
        Self { tree, transaction, cost: 0 }
    }

    /// A node, if it is there.
    ///
    /// # Errors
    /// ENOSPC when the transaction has looked at too much already.
    pub fn get(&mut self, path: &Path) -> Result<Option<Arc<Node>>, Errno> {
        self.cost += 1;
        let current = || self.tree.nodes.get(path).cloned();
        let Some(transaction) = &mut self.transaction else { return Ok(current()) };
        if let Some(changed) = transaction.changed.get(path) {
            return Ok(changed.clone());
        }
        if !transaction.seen.contains_key(path) {
            let kept = transaction.kept + path.as_str().len();
            if transaction.seen.len() >= MAX_SEEN || kept > MAX_KEPT {
                return Err(Errno::ENOSPC);
            }
            transaction.kept = kept;
            transaction.seen.insert(path.clone(), self.tree.generation_of(path));
        }
        Ok(current())
    }

    /// Makes sure that `new` more nodes of the guest's, with `bytes` more bytes, are within the limits.
    ///
    /// # Errors
    /// ENOSPC when they are not.
    pub fn make_room(&self, new: usize, bytes: usize) -> Result<(), Errno> {
        let (made, kept) = self.transaction.as_ref().map_or((0, 0), |t| (t.made, t.kept));
        let owned = self.tree.owned.saturating_add_signed(made).saturating_add(new);
        let all = self.tree.bytes.saturating_add(kept).saturating_add(bytes);
        let in_transaction = self.transaction.is_some() && kept.saturating_add(bytes) > MAX_KEPT;
        if owned > MAX_OWNED || all > MAX_BYTES || in_transaction { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Puts a node in place of what was there.
    ///
    /// # Errors
    /// ENOSPC when it is too large.
    pub fn put(&mut self, path: Path, node: Node) -> Result<(), Errno> {
        if node.bytes() > MAX_NODE_BYTES {
            return Err(Errno::ENOSPC);
        }
        let before = self.get(&path)?;
        let guest = self.tree.guest;
        let Some(transaction) = &mut self.transaction else {
            self.tree.put(path, node);
            return Ok(());
        };
        let owned = |node: &Node| isize::from(node.perms.owner == guest);
        transaction.made += owned(&node) - before.as_deref().map_or(0, owned);
        transaction.keep(path, Some(node));
        Ok(())
    }

    /// Removes a node. The caller removes its children, and its name in the node above.
    ///
    /// # Errors
    /// ENOSPC as [`View::get`].
    pub fn remove(&mut self, path: &Path) -> Result<(), Errno> {
        let before = self.get(path)?;
        let guest = self.tree.guest;
        let Some(transaction) = &mut self.transaction else {
            self.tree.remove(path);
            return Ok(());
        };
        transaction.made -= before.map_or(0, |node| isize::from(node.perms.owner == guest));
        transaction.keep(path.clone(), None);
        Ok(())
    }
}

impl Transaction {
    /// One that cannot be committed: its client makes it again.
    pub fn lost() -> Self {
        Self { seen: BTreeMap::from([(Path::root(), u64::MAX)]), ..Self::default() }
    }

    fn keep(&mut self, path: Path, node: Option<Node>) {
        self.kept += node.as_ref().map_or(0, |node| taken(&path, node));
        if let Some(Some(replaced)) = self.changed.get(&path) {
            self.kept = self.kept.saturating_sub(taken(&path, replaced));
        }
        self.changed.insert(path, node.map(Arc::new));
    }

    /// Keeps what watches are to be notified of, for the commit. What was noted already is not reported twice.
    pub fn note(&mut self, changes: Vec<Change>) {
        for change in changes {
            if self.told.insert(change.clone()) {
                self.changes.push(change);
            }
        }
    }

    /// How many nodes committing it looks at.
    pub fn cost(&self) -> u64 {
        (self.seen.len() + self.changed.len()) as u64
    }

    /// Makes its changes those of the tree; returns what to tell watches.
    ///
    /// # Errors
    /// EAGAIN when anything that it looked at has changed since, ENOSPC when others have used up the room meanwhile.
    pub fn commit(self, tree: &mut Tree) -> Result<Vec<Change>, Errno> {
        if self.seen.iter().any(|(path, generation)| tree.generation_of(path) != *generation) {
            return Err(Errno::EAGAIN);
        }
        let view = View::new(tree, None);
        view.make_room(
            usize::try_from(self.made).unwrap_or(0),
            if self.changed.is_empty() { 0 } else { self.kept },
        )?;
        for (path, node) in self.changed {
            match node {
                Some(node) => tree.put(path, Arc::unwrap_or_clone(node)),
                None => tree.remove(&path),
            }
        }
        Ok(self.changes)
    }
}
