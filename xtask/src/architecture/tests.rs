use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::graph::{Graph, circles};
use super::paths::paths;
use super::picture::wrapped;
use super::rooms::{Principle, Room, TABLE, Table};
use super::source::{code_only, without_tests};
use super::{faults, read};

fn named(code: &str) -> Vec<String> {
    let mut all: Vec<String> = paths(code).into_iter().map(|named| named.path.join("::")).collect();
    all.sort();
    all
}

/// The rule of the house, over the source as it is.
#[test]
fn rooms_use_what_the_table_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let faults = faults(&read(root).unwrap(), &TABLE);
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// A box has room for two lines.
#[test]
fn what_is_in_a_room_fits_into_its_box() {
    for room in TABLE.rooms {
        assert!(wrapped(room.what).len() <= 2, "{}", room.name);
    }
}

#[test]
fn comments_and_literals_name_nothing() {
    let source = r####"
        //! use crate::a;
        /* use crate::b; /* nested */ use crate::c; */
        let s = "use crate::d; \" use crate::e;";
        let r = r#"use crate::f; " use crate::g;"#;
        let b = br"use crate::h;\";
        let c = ['"', '\'', '\\', '{'];
        fn f<'a>(x: &'a str) -> &'a str { crate::real::call("}", x) }
    "####;
    let code = code_only(source);
    assert_eq!(named(&code), ["crate::real::call"]);
    assert_eq!(code.lines().count(), source.lines().count());
}

#[test]
fn test_code_names_nothing() {
    let code = "
        #[cfg(test)]
        mod fixtures;
        #[cfg(test)]
        pub(crate) mod testing;
        #[cfg(test)]
        use crate::a::{B, c::D};
        #[cfg(test)]
        #[allow(dead_code)]
        fn f<A, B>() -> crate::e::F { crate::g::h() }
        #[cfg(all(test, guest))]
        mod tests { use crate::i; mod inner { use crate::j; } }
        struct S { #[cfg(test)] x: crate::k::L, y: crate::real::One }
        #[cfg(test)]
        const C: crate::m::N = crate::m::N { a: 1 };
        #[cfg(test)]
        unsafe impl crate::o::P for Q {}
        #[cfg(not(test))]
        use crate::real::Two;
    ";
    let (product, modules) = without_tests(code);
    assert_eq!(named(&product), ["crate::real::One", "crate::real::Two"]);
    assert_eq!(modules, ["fixtures", "testing"]);
}

#[test]
fn use_trees_and_paths_in_full() {
    let code = "
        pub use crate::a::{self, B as C, d::{E, f::*}};
        use super::super::g;
        use std::fmt;
        fn x(self: &Self) -> impl Y + use<'_> { self::z::w(crate::v::u as usize) }
    ";
    let expected = [
        "crate::a",
        "crate::a::B",
        "crate::a::d::E",
        "crate::a::d::f",
        "crate::v::u",
        "self::z::w",
        "std::fmt",
        "super::super::g",
    ];
    assert_eq!(named(code), expected);
}

#[test]
fn circles_are_found() {
    let uses = |ties: &[(&'static str, &'static str)]| {
        let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (from, to) in ties {
            uses.entry(from).or_default().insert(to);
            uses.entry(to).or_default();
        }
        uses
    };
    assert_eq!(circles(&uses(&[("a", "b"), ("b", "c"), ("a", "c")])), Vec::<Vec<&str>>::new());
    let two = uses(&[("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e"), ("e", "d"), ("f", "a")]);
    assert_eq!(circles(&two), [vec!["a", "b", "c"], vec!["d", "e"]]);
}

/// A crate in a folder of its own.
struct Written(std::path::PathBuf);

impl Written {
    fn new(name: &str, files: &[(&str, &str)]) -> Written {
        let folder = std::env::temp_dir().join(format!("paravane-xtask-{}-{name}", std::process::id()));
        for (file, text) in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Written(folder)
    }

    fn faults(&self, table: &Table) -> Vec<String> {
        faults(&Graph::read(&self.0).unwrap(), table)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const fn room(name: &'static str, may_use: &'static str, has_unsafe: bool) -> Room {
    Room { name, what: "", may_use, has_unsafe }
}

const PRINCIPLE: Principle =
    Principle { from: &["engine"], never: &["domain"], why: "engines know no domain" };

#[test]
fn every_kind_of_fault_is_told_with_its_place() {
    let files = [
        ("lib.rs", "mod domain; mod engine; mod mmu;"),
        ("main.rs", "use paravane::cli;"),
        ("domain.rs", "#![forbid(unsafe_code)]\nuse crate::engine::Engine;\n"),
        ("engine/mod.rs", "mod kvm;\n#[cfg(test)]\nmod tests;\npub struct Engine;\n"),
        ("engine/kvm.rs", "use super::Engine;\n\nuse super::super::mmu::log::Log;\nuse crate::Lost;\n"),
        ("engine/tests.rs", "use crate::domain::Domain;\nunsafe fn f() {}\n"),
        ("mmu/mod.rs", "pub mod log;\nuse log::Log;\n"),
        ("mmu/log.rs", "pub struct Log(crate::domain::Domain);\n"),
    ];
    let written = Written::new("faults", &files);
    const ROOMS: &[Room] = &[
        room("domain", "engine", false),
        room("engine", "mmu::space", false),
        room("mmu", "domain", true),
        room("gone", "", false),
    ];
    let table = Table { rooms: ROOMS, principles: &[PRINCIPLE], exceptions: &[("mmu", "engine")] };
    let expected = [
        "engine/kvm.rs:4: crate::Lost is in no room",
        "gone: the table has a row for a room that does not exist",
        "engine/kvm.rs:3: engine may not use mmu::log",
        "engine: the table allows it to use mmu::space, which it does not",
        "mmu: the exception for engine is no longer needed: remove it",
        "a circle of rooms: domain, engine, mmu",
        "engine: no unsafe code is meant to be in this room",
        "mmu: the table allows unsafe code, which it does not have",
    ];
    assert_eq!(written.faults(&table), expected);
}

#[test]
fn an_exception_opens_a_circle_and_no_row_allows_a_contradiction() {
    let files = [
        ("lib.rs", "mod domain; mod engine;"),
        ("domain.rs", "#![forbid(unsafe_code)]\nuse crate::engine::Engine;\n"),
        ("engine.rs", "use crate::domain::Domain;\n"),
    ];
    let written = Written::new("exceptions", &files);
    const ALLOWED: &[Room] = &[room("domain", "engine", false), room("engine", "domain", false)];
    let strict = Table { rooms: ALLOWED, principles: &[PRINCIPLE], exceptions: &[] };
    let expected = [
        "engine.rs:1: engine uses domain, but engines know no domain",
        "a circle of rooms: domain, engine",
        "engine: its first file lacks #![forbid(unsafe_code)]",
    ];
    assert_eq!(written.faults(&strict), expected);
    const NOT: &[Room] = &[room("domain", "engine", false), room("engine", "", false)];
    let excepted = Table { rooms: NOT, principles: &[PRINCIPLE], exceptions: &[("engine", "domain")] };
    assert_eq!(written.faults(&excepted), ["engine: its first file lacks #![forbid(unsafe_code)]"]);
}
