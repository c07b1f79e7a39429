//! Transactions: isolation, conflicts, limits.

use super::*;

fn begin(b: &mut Bench) -> u32 {
    let number = b.ask(XS_TRANSACTION_START, "\0").unwrap();
    number.trim_end_matches('\0').parse().unwrap()
}

fn commit(b: &mut Bench, tx: u32) -> Result<String, String> {
    b.ask_in(tx, XS_TRANSACTION_END, "T\0")
}

#[test]
fn changes_are_seen_within_and_outside_after_the_commit() {
    let mut b = Bench::new();
    b.ask(XS_WATCH, "data\0w\0").unwrap();
    b.ask(XS_WRITE, "data/gone\0").unwrap();
    let tx = begin(&mut b);
    assert_ne!(tx, 0);
    assert_eq!(b.events(XS_WRITE, tx, "data/a\0new"), Vec::<String>::new());
    assert_eq!(b.events(XS_RM, tx, "data/gone\0"), Vec::<String>::new());
    assert_eq!(b.ask_in(tx, XS_READ, "data/a\0"), Ok("new".into()));
    assert_eq!(b.ask_in(tx, XS_DIRECTORY, "data\0"), Ok("a\0".into()));
    assert_eq!(b.ask(XS_READ, "data/a\0"), fails("ENOENT"));
    assert_eq!(b.ask(XS_DIRECTORY, "data\0"), Ok("gone\0".into()));
    assert_eq!(b.events(XS_TRANSACTION_END, tx, "T\0"), ["data/a\0w\0", "data/gone\0w\0"]);
    assert_eq!(b.ask(XS_READ, "data/a\0"), Ok("new".into()));
    assert_eq!(b.ask(XS_DIRECTORY, "data\0"), Ok("a\0".into()));
    assert_eq!(commit(&mut b, tx), fails("ENOENT"), "it has ended");
}

#[test]
fn an_abandoned_one_leaves_nothing() {
    let mut b = Bench::new();
    b.ask(XS_WATCH, "data\0w\0").unwrap();
    let tx = begin(&mut b);
    b.ask_in(tx, XS_WRITE, "data/a\0new").unwrap();
    assert_eq!(b.events(XS_TRANSACTION_END, tx, "F\0"), Vec::<String>::new());
    assert_eq!(b.ask(XS_READ, "data/a\0"), fails("ENOENT"));
}

#[test]
fn a_conflict_is_eagain_and_changes_nothing() {
    for (within, outside) in [
        (XS_READ, "data/a\0"),
        (XS_DIRECTORY, "data\0"),
        (XS_WRITE, "data/a\0mine"),
        (XS_RM, "data/a\0"),
        (XS_MKDIR, "data/b\0"),
    ] {
        let mut b = Bench::new();
        b.ask(XS_WRITE, "data/a\0old").unwrap();
        let tx = begin(&mut b);
        b.ask_in(tx, XS_WRITE, "error\0mine").unwrap();
        b.ask_in(tx, within, outside).unwrap();
        b.ask(XS_WRITE, "data/b\0theirs").unwrap();
        b.ask(XS_WRITE, "data/a\0theirs").unwrap();
        assert_eq!(commit(&mut b, tx), fails("EAGAIN"), "{within}");
        assert_eq!(b.ask(XS_READ, "data/a\0"), Ok("theirs".into()));
        assert_eq!(b.ask(XS_READ, "error\0"), Ok(String::new()));
    }
}

#[test]
fn what_it_did_not_look_at_is_no_conflict() {
    let mut b = Bench::new();
    b.ask(XS_WRITE, "data/a/x\0old").unwrap();
    let (one, two) = (begin(&mut b), begin(&mut b));
    b.ask_in(one, XS_WRITE, "data/a/x\0new").unwrap();
    b.ask_in(two, XS_WRITE, "error\0new").unwrap();
    b.ask(XS_WRITE, "data/b\0theirs").unwrap();
    assert_eq!(commit(&mut b, one), done());
    assert_eq!(commit(&mut b, two), done());
    assert_eq!(b.ask(XS_READ, "data/a/x\0"), Ok("new".into()));
}

#[test]
fn those_that_are_none() {
    let mut b = Bench::new();
    assert_eq!(b.ask_in(99, XS_READ, "domid\0"), fails("ENOENT"));
    assert_eq!(b.ask(XS_TRANSACTION_END, "T\0"), fails("ENOENT"));
    let tx = begin(&mut b);
    assert_eq!(b.ask_in(tx, XS_TRANSACTION_START, "\0"), fails("EBUSY"));
    assert_eq!(b.ask_in(tx, XS_TRANSACTION_END, "X\0"), fails("EINVAL"));
    assert_eq!(commit(&mut b, tx), done());
    let tx = begin(&mut b);
    b.ask(XS_RESET_WATCHES, "\0").unwrap();
    assert_eq!(commit(&mut b, tx), fails("ENOENT"));
}

#[test]
fn transactions_are_limited() {
    let mut b = Bench::new();
    let open: Vec<u32> = (0..10).map(|_| begin(&mut b)).collect();
    assert_eq!(b.ask(XS_TRANSACTION_START, "\0"), fails("ENOSPC"));
    b.ask_in(open[1], XS_DIRECTORY, "data\0").unwrap();
    let mut written = 0;
    let refused = loop {
        match b.ask_in(open[0], XS_WRITE, &format!("data/{}/{written}\0{}", written % 20, "x".repeat(1000))) {
            Ok(_) => written += 1,
            Err(errno) => break errno,
        }
        assert!(written < 1000);
    };
    assert_eq!(refused, "ENOSPC");
    assert_eq!(commit(&mut b, open[0]), done(), "what it has done before stays good");
    for _ in 0..2000 {
        assert_eq!(b.ask_in(open[1], XS_WRITE, "data/same\0value"), done(), "a node is kept once");
    }
    assert_eq!(commit(&mut b, open[1]), fails("EAGAIN"), "the other has made nodes in what it had listed");
}

#[test]
fn a_commit_counts_what_others_have_made_meanwhile() {
    let mut b = Bench::new();
    b.ask(XS_MKDIR, "data/tx\0").unwrap();
    let tx = begin(&mut b);
    for n in 0..100 {
        b.ask_in(tx, XS_MKDIR, &format!("data/tx/{n}\0")).unwrap();
    }
    let mut n = 0;
    while b.ask(XS_MKDIR, &format!("attr/{}/{n}\0", n % 20)).is_ok() {
        n += 1;
    }
    assert_eq!(commit(&mut b, tx), fails("ENOSPC"));
    assert_eq!(b.ask(XS_DIRECTORY, "data/tx\0"), Ok(String::new()));
}
