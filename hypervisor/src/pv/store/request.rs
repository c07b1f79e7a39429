//! What each request does, and what its reply is.

use std::collections::BTreeMap;

use paravane_abi::domid::DOMID_SELF;
use paravane_abi::errno::Errno;
use paravane_abi::xenstore::*;

use super::keys::About;
use super::node::{Change, Transaction, Tree, View};
use super::ops::Client;
use super::path::Path;
use super::perms::Perms;
use super::watch::{Watches, event};
use super::wire;
use super::wire::Request;

/// Transactions that a domain may have at a time: xenstored's default limit.
pub(super) const MAX_TRANSACTIONS: usize = 10;
/// What most requests are answered.
const OK: &[u8] = b"OK\0";

/// All that requests act on.
#[derive(Debug)]
pub struct Store {
    about: About,
    tree: Tree,
    transactions: BTreeMap<u32, Transaction>,
    next_transaction: u32,
    /// The domain's watches.
    pub watches: Watches,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// The reply's payload, or the error that it names.
    pub reply: Result<Vec<u8>, Errno>,
    /// An event that follows at once: the first of a new watch.
    pub first_event: Option<Vec<u8>>,
    /// The changes that watches are to be notified of.
    pub changes: Vec<Change>,
    /// How many nodes were looked at.
    pub cost: u64,
}

impl Store {
    /// The store of a domain that has asked for nothing yet.
    pub fn new(about: About) -> Self {
        let tree = about.tree();
        Self { about, tree, transactions: BTreeMap::new(), next_transaction: 1, watches: Watches::default() }
    }

    /// The nodes.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }
    pub(super) fn tree_mut(&mut self) -> &mut Tree {
        &mut self.tree
    }
    /// The numbers of the transactions that are open.
    pub(super) fn transactions(&self) -> impl Iterator<Item = u32> {
        self.transactions.keys().copied()
    }
    pub(super) fn next_transaction(&self) -> u32 {
        self.next_transaction
    }
    /// Has transactions of these numbers, none of which can be committed. `None` if there are too many.
    pub(super) fn restore_transactions(&mut self, numbers: &[u32], next: u32) -> Option<()> {
        if numbers.len() > MAX_TRANSACTIONS || numbers.contains(&0) {
            return None;
        }
        self.transactions = numbers.iter().map(|number| (*number, Transaction::lost())).collect();
        self.next_transaction = next;
        Some(())
    }
    /// Has a watch that there was before; its first event has been sent.
    pub(super) fn watch_again(&mut self, name: &[u8], token: &[u8]) -> Option<()> {
        self.watches.add(name, token, &self.about.home()).ok()
    }

    /// How many nodes there are.
    #[cfg(test)]
    pub(super) fn nodes(&self) -> usize {
        self.tree.len()
    }

    /// Panics unless the tree is whole.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.tree.check();
    }

    /// Does what a request asks for.
    pub fn handle(&mut self, request: &Request) -> Answered {
        let mut answered = Answered { reply: Ok(OK.to_vec()), first_event: None, changes: vec![], cost: 1 };
        match self.perform(request, &mut answered) {
            Ok(reply) => answered.reply = Ok(reply),
            Err(errno) => {
                answered = Answered { reply: Err(errno), first_event: None, changes: vec![], ..answered }
            }
        }
        answered
    }

    fn perform(&mut self, request: &Request, answered: &mut Answered) -> Result<Vec<u8>, Errno> {
        let Request { head, payload } = request;
        if head.tx_id != 0 && !self.transactions.contains_key(&head.tx_id) {
            return Err(Errno::ENOENT);
        }
        match head.kind {
            XS_TRANSACTION_START => self.begin(head.tx_id),
            XS_TRANSACTION_END => self.end(head.tx_id, payload, answered),
            XS_WATCH => self.watch(payload, answered),
            XS_UNWATCH => {
                let [name, token] = wire::exactly(payload)?;
                self.watches.remove(name, token)?;
                Ok(OK.to_vec())
            }
            XS_RESET_WATCHES => {
                self.watches.clear();
                self.transactions.clear();
                Ok(OK.to_vec())
            }
            XS_GET_DOMAIN_PATH => {
                let number: u16 = domain_number(payload)?;
                Ok(format!("/local/domain/{number}\0").into_bytes())
            }
            XS_IS_DOMAIN_INTRODUCED => {
                let there = [0, self.about.domain, DOMID_SELF].contains(&domain_number(payload)?);
                Ok(if there { b"T\0" } else { b"F\0" }.to_vec())
            }
            // For domains with privileges.
            XS_CONTROL | XS_INTRODUCE | XS_RELEASE | XS_RESUME | XS_SET_TARGET => Err(Errno::EACCES),
            _ => self.on_node(request, answered),
        }
    }

    /// The requests that name a node first.
    fn on_node(
        &mut self,
        Request { head, payload }: &Request,
        answered: &mut Answered,
    ) -> Result<Vec<u8>, Errno> {
        let home = self.about.home();
        let path = |name| Path::parse(name, &home);
        let mut transaction = self.transactions.get_mut(&head.tx_id);
        let in_transaction = transaction.is_some();
        let mut changes = vec![];
        let mut view = View::new(&mut self.tree, transaction.as_deref_mut());
        let mut client = Client { view: &mut view, domain: self.about.domain, changes: &mut changes };
        let only = |payload| wire::exactly(payload).and_then(|[name]| path(name));
        let ok = |()| OK.to_vec();
        let reply = match head.kind {
            XS_READ => only(payload).and_then(|path| client.read(&path)),
            XS_DIRECTORY => only(payload).and_then(|path| client.directory(&path)),
            XS_DIRECTORY_PART => wire::exactly(payload).and_then(|[name, offset]| {
                let offset = wire::number(offset).ok_or(Errno::EINVAL)?;
                client.directory_part(&path(name)?, offset)
            }),
            XS_GET_PERMS => only(payload).and_then(|path| client.get_perms(&path)),
            XS_SET_PERMS => wire::strings(payload).and_then(|mut strings| {
                let path = path(strings.next().unwrap_or_default())?;
                client.set_perms(&path, Perms::parse(strings)?).map(ok)
            }),
            XS_WRITE => wire::string_and_rest(payload)
                .and_then(|(name, value)| client.write(&path(name)?, value).map(ok)),
            XS_MKDIR => only(payload).and_then(|path| client.mkdir(&path).map(ok)),
            XS_RM => only(payload).and_then(|path| client.rm(&path).map(ok)),
            _ => Err(Errno::ENOSYS),
        };
        answered.cost += view.cost;
        match transaction.filter(|_| in_transaction) {
            Some(transaction) => transaction.note(changes),
            None => answered.changes = changes,
        }
        reply
    }

    fn begin(&mut self, within: u32) -> Result<Vec<u8>, Errno> {
        if within != 0 {
            return Err(Errno::EBUSY);
        }
        if self.transactions.len() >= MAX_TRANSACTIONS {
            return Err(Errno::ENOSPC);
        }
        // Ten at most are in use: a free number other than 0 is near.
        while self.next_transaction == 0 || self.transactions.contains_key(&self.next_transaction) {
            self.next_transaction = self.next_transaction.wrapping_add(1);
        }
        let number = self.next_transaction;
        self.next_transaction = number.wrapping_add(1);
        self.transactions.insert(number, Transaction::default());
        Ok(format!("{number}\0").into_bytes())
    }

    fn end(&mut self, number: u32, payload: &[u8], answered: &mut Answered) -> Result<Vec<u8>, Errno> {
        let commit = match wire::exactly(payload)? {
            [b"T"] => true,
            [b"F"] => false,
            _ => return Err(Errno::EINVAL),
        };
        let transaction = self.transactions.remove(&number).ok_or(Errno::ENOENT)?;
        answered.cost += transaction.cost();
        if commit {
            answered.changes = transaction.commit(&mut self.tree)?;
        }
        Ok(OK.to_vec())
    }

    fn watch(&mut self, payload: &[u8], answered: &mut Answered) -> Result<Vec<u8>, Errno> {
        let [name, token] = wire::exactly(payload)?;
        self.watches.add(name, token, &self.about.home())?;
        // One comes at once, so that nobody needs to look before and lose what changes meanwhile.
        answered.first_event = event(name, token);
        Ok(OK.to_vec())
    }
}

fn domain_number(payload: &[u8]) -> Result<u16, Errno> {
    let [number] = wire::exactly(payload)?;
    wire::number(number).ok_or(Errno::EINVAL)
}
