//! What the store has to remember beyond a restore.
//!
//! Transactions are not: each of them fails when it is to be committed, as if another client had been faster, and its
//! client makes it again. What is read is checked as if clients had asked for it: names, permissions and limits.

use serde::{Deserialize, Serialize};

use super::node::{Change, Node};
use super::path::Path;
use super::perms::{Access, MAX_ENTRIES, Perms};
use super::request::MAX_TRANSACTIONS;
use super::watch::MAX_WATCHES;
use super::{BACKLOG, Server};
use crate::pv::state::at_most;

/// The longest reply, and some.
const LONGEST_MESSAGE: usize = 8 << 10;
/// Nodes, the host's among them: more than the guest's limit and what the host makes for it.
const MOST_NODES: usize = 4 << 10;
/// Changes that wait to be told: more than the tree has nodes.
const MOST_CHANGES: usize = 4 << 10;

/// The state of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreState {
    #[serde(deserialize_with = "at_most::<MOST_NODES, _, _>")]
    nodes: Vec<NodeState>,
    /// Name and token.
    #[serde(deserialize_with = "at_most::<MAX_WATCHES, _, _>")]
    watches: Vec<(Vec<u8>, Vec<u8>)>,
    #[serde(deserialize_with = "at_most::<MAX_TRANSACTIONS, _, _>")]
    transactions: Vec<u32>,
    next_transaction: u32,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Paths, and whether exactly those.
    #[serde(deserialize_with = "at_most::<MOST_CHANGES, _, _>")]
    changes: Vec<(String, bool)>,
    told: u64,
    broken: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NodeState {
    path: String,
    value: Vec<u8>,
    owner: u16,
    others: (bool, bool),
    #[serde(deserialize_with = "at_most::<MAX_ENTRIES, _, _>")]
    listed: Vec<(u16, (bool, bool))>,
}

impl NodeState {
    fn of(path: &Path, node: &Node) -> Self {
        let rights = |access: Access| (access.read, access.write);
        Self {
            path: path.as_str().to_owned(),
            value: node.value.clone(),
            owner: node.perms.owner,
            others: rights(node.perms.others),
            listed: node.perms.listed.iter().map(|(who, access)| (*who, rights(*access))).collect(),
        }
    }

    fn restored(&self) -> Option<(Path, Node)> {
        let access = |(read, write)| Access { read, write };
        let listed = self.listed.iter().map(|(who, rights)| (*who, access(*rights))).collect();
        let perms = Perms { owner: self.owner, others: access(self.others), listed };
        let node = Node { value: self.value.clone(), ..Node::new(perms.checked()?) };
        Some((absolute(&self.path)?, node))
    }
}

fn absolute(path: &str) -> Option<Path> {
    path.starts_with('/').then(|| Path::parse(path.as_bytes(), &Path::root()).ok()).flatten()
}

impl Server {
    /// What is to be remembered.
    pub fn state(&self) -> StoreState {
        let store = &self.store;
        StoreState {
            nodes: store.tree().iter().map(|(path, node)| NodeState::of(path, node)).collect(),
            watches: store.watches.iter().map(|(name, token)| (name.to_vec(), token.to_vec())).collect(),
            transactions: store.transactions().collect(),
            next_transaction: store.next_transaction(),
            incoming: self.incoming.bytes().to_vec(),
            outgoing: self.outgoing.iter().copied().collect(),
            changes: self.changes.iter().map(|c| (c.path.as_str().to_owned(), c.exact)).collect(),
            told: self.told as u64,
            broken: self.broken,
        }
    }

    /// Remembers; `None` if no store could have come to hold that.
    pub fn restore(&mut self, state: &StoreState) -> Option<()> {
        let nodes = state.nodes.iter().map(NodeState::restored).collect::<Option<Vec<_>>>()?;
        self.store.tree_mut().replant(nodes)?;
        self.store.restore_transactions(&state.transactions, state.next_transaction)?;
        for (name, token) in &state.watches {
            self.store.watch_again(name, token)?;
        }
        self.incoming.restore(&state.incoming)?;
        if state.outgoing.len() > BACKLOG + LONGEST_MESSAGE || state.changes.len() > MOST_CHANGES {
            return None;
        }
        self.outgoing = state.outgoing.iter().copied().collect();
        let change = |(path, exact): &(String, bool)| Some(Change { path: absolute(path)?, exact: *exact });
        self.changes = state.changes.iter().map(change).collect::<Option<_>>()?;
        self.told = usize::try_from(state.told).ok().filter(|told| *told <= self.store.watches.len())?;
        self.broken = state.broken;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use paravane_abi::xenstore::{XS_READ, XS_TRANSACTION_END, XS_TRANSACTION_START, XS_WATCH, XS_WRITE};

    use crate::pv::store::tests::Bench;

    fn begin(bench: &mut Bench) -> u32 {
        let number = bench.ask(XS_TRANSACTION_START, "\0").unwrap();
        number.trim_end_matches('\0').parse().unwrap()
    }

    #[test]
    fn a_store_goes_on_where_it_was() {
        let mut bench = Bench::new();
        bench.ask(XS_WRITE, "data/a\0one").unwrap();
        bench.events(XS_WATCH, 0, "data\0token\0");
        let transaction = begin(&mut bench);
        let state = bench.server.state();
        let mut other = Bench::new();
        other.server.restore(&state).unwrap();
        assert_eq!(other.server.state(), state);
        other.server.store.check();
        assert_eq!(other.ask(XS_READ, "data/a\0"), Ok("one".into()));
        assert_eq!(
            other.ask_in(transaction, XS_TRANSACTION_END, "T\0"),
            Err("EAGAIN".into()),
            "to be made again"
        );
        let next = begin(&mut other);
        assert_ne!(next, transaction);
        assert!(other.ask_in(next, XS_TRANSACTION_END, "T\0").is_ok());
        assert_eq!(other.events(XS_WRITE, 0, "data/b\0two"), ["data/b\0token\0"]);
    }

    #[test]
    fn what_no_store_could_hold_is_refused() {
        let mut bench = Bench::new();
        bench.ask(XS_WRITE, "data/a\0one").unwrap();
        let good = bench.server.state();
        let refused = |change: &dyn Fn(&mut StoreState)| {
            let mut bad = good.clone();
            change(&mut bad);
            Bench::new().server.restore(&bad).is_none()
        };
        assert!(!refused(&|_| ()));
        assert!(refused(&|s| s.nodes[0].path = "/no/parent".into()));
        assert!(refused(&|s| s.nodes.push(NodeState { path: "relative".into(), ..s.nodes[0].clone() })));
        assert!(refused(&|s| s.nodes.retain(|node| node.path != "/")));
        assert!(refused(&|s| s.nodes[0].value = vec![0; 1 << 20]));
        assert!(refused(&|s| s.nodes[0].listed = vec![(1, (true, true)); 100]));
        assert!(refused(&|s| s.transactions = (0..100).collect()));
        assert!(refused(
            &|s| s.watches = (0..1000u32).map(|n| (b"/x".to_vec(), n.to_le_bytes().to_vec())).collect()
        ));
        assert!(refused(&|s| s.incoming = vec![0xff; 16]));
        assert!(refused(&|s| s.incoming = vec![0; 1 << 20]));
        assert!(refused(&|s| s.outgoing = vec![0; 1 << 20]));
        assert!(refused(&|s| s.changes = vec![("x".into(), true)]));
        assert!(refused(&|s| s.told = 1));
    }

    proptest! {
        #[test]
        fn any_nodes_are_whole_or_refused(
            paths in prop::collection::vec("(/[a-c]){0,3}", 0..12),
            owner in 0u16..3,
        ) {
            let mut bench = Bench::new();
            let mut state = bench.server.state();
            let node = |path| NodeState { path, value: vec![1], owner, others: (true, false), listed: vec![] };
            state.nodes.extend(paths.into_iter().map(node));
            if bench.server.restore(&state).is_some() {
                bench.server.store.check();
            }
        }
    }
}
