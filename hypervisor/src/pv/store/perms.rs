//! Who may read and write a node.

use paravane_abi::domid::DomId;
use paravane_abi::errno::Errno;

/// Entries that the permissions of a node may have: xenstored's default limit.
pub(super) const MAX_ENTRIES: usize = 5;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Read its value, its permissions and the names of its children.
    pub read: bool,
    /// Change its value, make and remove children, remove it.
    pub write: bool,
}

impl Access {
    /// Nothing.
    pub const NONE: Self = Self { read: false, write: false };
    /// Reading.
    pub const READ: Self = Self { read: true, write: false };
    /// Writing.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Both.
    pub const BOTH: Self = Self { read: true, write: true };

    /// Whether all of `wanted` is allowed.
    pub const fn allows(self, wanted: Self) -> bool {
        (self.read || !wanted.read) && (self.write || !wanted.write)
    }

    const fn letter(self) -> char {
        match self {
            Self::NONE => 'n',
            Self::READ => 'r',
            Self::WRITE => 'w',
            Self::BOTH => 'b',
        }
    }
}

/// The permissions of a node: its owner, who may do everything, what others may, and exceptions to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Perms {
    /// The owner.
    pub owner: DomId,
    /// What domains may that are not listed.
    pub others: Access,
    /// Domains with rights of their own.
    pub listed: Vec<(DomId, Access)>,
}

impl Perms {
    /// What `domain` may do.
    pub fn of(&self, domain: DomId) -> Access {
        if domain == self.owner {
            return Access::BOTH;
        }
        let listed = self.listed.iter().find(|(who, _)| *who == domain);
        listed.map_or(self.others, |(_, access)| *access)
    }

    /// Reads entries as they are written on the wire, the owner's first: a letter and a domain's number.
    ///
    /// # Errors
    /// EINVAL for none or anything else, ENOSPC for too many.
    pub fn parse<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Result<Self, Errno> {
        let mut parsed = Vec::new();
        for entry in entries {
            if parsed.len() == MAX_ENTRIES {
                return Err(Errno::ENOSPC);
            }
            parsed.push(parse_entry(entry).ok_or(Errno::EINVAL)?);
        }
        let ((owner, others), listed) = parsed.split_first().ok_or(Errno::EINVAL)?;
        Ok(Self { owner: *owner, others: *others, listed: listed.to_vec() })
    }

    /// The same permissions, if there are no more entries than they may have.
    pub fn checked(self) -> Option<Self> {
        Some(self).filter(|perms| perms.listed.len() < MAX_ENTRIES)
    }

    /// The same, for the wire: each entry ends with a zero byte.
    pub fn to_wire(&self) -> Vec<u8> {
        let first = [(self.owner, self.others)];
        let entries = first.iter().chain(&self.listed);
        entries.map(|(who, access)| format!("{}{who}\0", access.letter())).collect::<String>().into_bytes()
    }
}

fn parse_entry(entry: &[u8]) -> Option<(DomId, Access)> {
    let (letter, number) = entry.split_first()?;
    let access = match letter {
        b'n' => Access::NONE,
        b'r' => Access::READ,
        b'w' => Access::WRITE,
        b'b' => Access::BOTH,
        _ => return None,
    };
    Some((super::wire::number(number)?, access))
}
