//! The tables of an image: read, checked to be inside the file, and counted.
//!
//! What may not be done here: recursion; a write; a loop or an allocation whose size the file sets without a limit.

#![forbid(unsafe_code)]

use super::fault::Fault;
use super::header::Header;
use super::reader::Reader;
use super::refcounts::Counts;

/// Bits of an entry: the offset, "not shared", "compressed", "reads as zeroes".
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// References from L1 tables to L2 tables at most: those of 1000 L1 tables for 4 TiB in clusters of 64 KiB.
const MOST_TABLES: usize = 1 << 23;

/// An L2 table and the references to it.
pub(super) struct Table {
    offset: u64,
    /// The number of references.
    users: u32,
    /// Its index in the active L1 table, if it is there.
    active: Option<u64>,
    /// That entry marks it as not shared.
    own: bool,
}

/// An image that is being checked.
pub(super) struct Tables<'a> {
    pub reader: &'a Reader,
    pub header: &'a Header,
    /// Set for an image that will be written to.
    counts: Option<Counts>,
    tables: Vec<Table>,
}

impl<'a> Tables<'a> {
    pub fn new(reader: &'a Reader, header: &'a Header) -> Self {
        Self { reader, header, counts: None, tables: Vec::new() }
    }

    /// Loads the refcounts, and enters the header and the refcounts themselves.
    pub fn refcounts(&mut self) -> Result<(), Fault> {
        let (reader, header) = (self.reader, self.header);
        let mut counts = Counts::new(reader.len(), header.cluster_bits)?;
        let (cluster, (table, bytes)) = (header.cluster(), header.reftable);
        let what = "the refcount table";
        self.begins(what, table)?;
        let mut block = vec![0; usize::try_from(cluster).unwrap_or(0)];
        let per_block = (cluster * 8) >> header.refcount_order;
        let mut blocks = Vec::new();
        reader.entries(what, table, bytes / 8, |number, value| {
            if value & !OFFSET & !(0xff << 56) != 0 {
                return Err(Fault::Reserved { table: what, value });
            }
            self.begins(REFBLOCK, value)?;
            reader.read(REFBLOCK, value, &mut block)?;
            counts.load(number.saturating_mul(per_block), &block, header.refcount_order)?;
            blocks.push(value);
            Ok(())
        })?;
        counts.table("the header", 0, cluster)?;
        counts.table(what, table, bytes)?;
        blocks.iter().try_for_each(|&block| counts.table(REFBLOCK, block, cluster))?;
        self.counts = Some(counts);
        Ok(())
    }

    /// Fails if `offset` is not a cluster boundary.
    pub fn begins(&self, what: &'static str, offset: u64) -> Result<(), Fault> {
        if self.header.is_aligned(offset) { Ok(()) } else { Err(Fault::Unaligned { what, offset }) }
    }

    /// Enters a table of `bytes` bytes.
    pub fn table(&mut self, what: &'static str, offset: u64, bytes: u64) -> Result<(), Fault> {
        if bytes == 0 {
            return Ok(());
        }
        self.begins(what, offset)?;
        self.reader.inside(what, offset, bytes)?;
        self.counts.as_mut().map_or(Ok(()), |counts| counts.table(what, offset, bytes))
    }

    /// Enters an L1 table, and remembers its L2 tables.
    pub fn l1(&mut self, what: &'static str, offset: u64, entries: u64, active: bool) -> Result<(), Fault> {
        self.table(what, offset, entries.saturating_mul(8))?;
        let (reader, mut tables) = (self.reader, std::mem::take(&mut self.tables));
        let result = reader.entries(what, offset, entries, |number, value| {
            if value & !OFFSET & !COPIED != 0 {
                return Err(Fault::Reserved { table: what, value });
            }
            let offset = value & OFFSET;
            if offset == 0 {
                return Ok(());
            }
            self.begins(L2_TABLE, offset)?;
            reader.inside(L2_TABLE, offset, self.header.cluster())?;
            if tables.len() >= MOST_TABLES || tables.try_reserve(1).is_err() {
                return Err(Fault::TooLarge("there are too many L2 tables"));
            }
            let own = active && value & COPIED != 0;
            tables.push(Table { offset, users: 1, active: active.then_some(number), own });
            Ok(())
        });
        self.tables = tables;
        result
    }

    /// Enters the remembered L2 tables, and returns each once, in the order of the file. All of them are entered before
    /// any data, so that data in a table's cluster is found.
    pub fn l2_tables(&mut self) -> Result<Vec<Table>, Fault> {
        let mut tables = std::mem::take(&mut self.tables);
        tables.sort_unstable_by_key(|table| table.offset);
        tables.dedup_by(|other, first| {
            let same = other.offset == first.offset;
            if same {
                first.users += other.users;
                first.active = first.active.or(other.active);
                first.own |= other.own;
            }
            same
        });
        if let Some(counts) = &mut self.counts {
            tables.iter().try_for_each(|t| counts.shared_table(L2_TABLE, t.offset, t.users, t.own))?;
        }
        Ok(tables)
    }

    /// Enters the data that an L2 table refers to.
    pub fn data(&mut self, table: &Table) -> Result<(), Fault> {
        let (reader, header, counts) = (self.reader, self.header, &mut self.counts);
        let per_table = header.cluster() / 8;
        reader.entries(L2_TABLE, table.offset, per_table, |number, value| {
            let entry = Entry::of(value, header)?;
            if header.data_file {
                let guest = table.active.unwrap_or(0).saturating_mul(per_table).saturating_add(number);
                return entry.is_at(guest << header.cluster_bits);
            }
            let Entry::At { offset, clusters, copied } = entry else { return Ok(()) };
            for n in 0..clusters {
                let offset = offset.saturating_add(n << header.cluster_bits);
                reader.inside(DATA, offset & !(header.cluster() - 1), 1)?;
                if let Some(counts) = counts.as_mut() {
                    counts.data(DATA, offset, table.users, copied && table.active.is_some())?;
                }
            }
            Ok(())
        })
    }
}

const REFBLOCK: &str = "a refcount block";
const L2_TABLE: &str = "an L2 table";
const DATA: &str = "a guest's data";

/// An entry of an L2 table.
enum Entry {
    /// It refers to no cluster.
    Nothing,
    /// It refers to clusters from the one of `offset` on.
    At { offset: u64, clusters: u64, copied: bool },
}

impl Entry {
    fn of(value: u64, header: &Header) -> Result<Self, Fault> {
        let reserved = || Err(Fault::Reserved { table: L2_TABLE, value });
        if value & COMPRESSED != 0 {
            // An offset of `bits` bits; the bits above are the number of further sectors.
            let bits = 70 - header.cluster_bits;
            let descriptor = value & !COMPRESSED & !COPIED;
            let offset = descriptor & ((1 << bits) - 1);
            if value & COPIED != 0 || offset >> 56 != 0 || header.data_file {
                return reserved();
            }
            let last = (offset | 511).saturating_add((descriptor >> bits) * 512);
            let clusters = (last >> header.cluster_bits) - (offset >> header.cluster_bits) + 1;
            return Ok(Self::At { offset, clusters, copied: false });
        }
        let (offset, copied) = (value & OFFSET, value & COPIED != 0);
        let zero = if header.version == 3 { ZERO } else { 0 };
        if value & !OFFSET & !COPIED & !zero != 0 || offset == 0 && copied && !header.data_file {
            return reserved();
        }
        if !header.is_aligned(offset) {
            return Err(Fault::Unaligned { what: DATA, offset });
        }
        Ok(if offset == 0 && !copied { Self::Nothing } else { Self::At { offset, clusters: 1, copied } })
    }

    /// Fails if it refers to a cluster of a data file at another offset than `guest`.
    fn is_at(&self, guest: u64) -> Result<(), Fault> {
        match *self {
            Self::At { offset, .. } if offset != guest => Err(Fault::Displaced { guest, offset }),
            _ => Ok(()),
        }
    }
}
