//! Watches: the event that comes at once, those that follow, and their names.

use super::*;

#[test]
fn a_watch_fires_when_it_is_set_and_after_its_reply() {
    let mut b = Bench::new();
    let messages = b.exchange(XS_WATCH, 0, b"memory/target\0token\0");
    let reply = Message { kind: XS_WATCH, req_id: 42, payload: b"OK\0".to_vec() };
    let event = Message { kind: XS_WATCH_EVENT, req_id: 0, payload: b"memory/target\0token\0".to_vec() };
    assert_eq!(messages, [reply, event]);
    // Whether there is such a node does not matter.
    assert_eq!(b.events(XS_WATCH, 0, "device/none\0t\0"), ["device/none\0t\0"]);
    assert_eq!(b.events(XS_WATCH, 0, "@releaseDomain\0t\0"), ["@releaseDomain\0t\0"]);
}

#[test]
fn a_watch_hears_of_its_node_and_of_all_below() {
    let mut b = Bench::new();
    b.ask(XS_WATCH, "data/a\0rel\0").unwrap();
    b.ask(XS_WATCH, "/local/domain/1/data\0abs\0").unwrap();
    b.ask(XS_WATCH, "/\0root\0").unwrap();
    let event = |path: &str, token: &str| format!("{path}\0{token}\0");
    let whole = |path: &str| event(&format!("/local/domain/1/{path}"), "root");
    let abs = |path: &str| event(&format!("/local/domain/1/{path}"), "abs");
    let all = |path: &str| vec![event(path, "rel"), abs(path), whole(path)];
    assert_eq!(b.events(XS_WRITE, 0, "data/a\x001"), all("data/a"));
    assert_eq!(b.events(XS_WRITE, 0, "data/a/b\x001"), all("data/a/b"));
    assert_eq!(b.events(XS_WRITE, 0, "data/ab\x001"), [abs("data/ab"), whole("data/ab")]);
    assert_eq!(b.events(XS_WRITE, 0, "error\x001"), [whole("error")]);
    assert_eq!(b.events(XS_SET_PERMS, 0, "data/a\0n1\0"), all("data/a"));
    assert_eq!(b.events(XS_MKDIR, 0, "data/a\0"), Vec::<String>::new(), "it was there");
    assert_eq!(b.events(XS_READ, 0, "data/a\0"), Vec::<String>::new());
    assert_eq!(b.events(XS_WRITE, 0, "memory/target\x001"), Vec::<String>::new(), "refused");
}

#[test]
fn who_watches_what_is_removed_with_a_node_above_hears_of_it() {
    let mut b = Bench::new();
    b.ask(XS_WRITE, "data/a/b/c\0").unwrap();
    b.ask(XS_WATCH, "data\0above\0").unwrap();
    b.ask(XS_WATCH, "data/a/b\0below\0").unwrap();
    assert_eq!(b.events(XS_RM, 0, "data/a\0"), ["data/a\0above\0", "data/a/b\0below\0"]);
}

#[test]
fn a_watch_is_set_once_and_removed_by_name_and_token() {
    let mut b = Bench::new();
    b.ask(XS_WATCH, "data\0one\0").unwrap();
    assert_eq!(b.ask(XS_WATCH, "data\0one\0"), fails("EEXIST"));
    assert_eq!(b.ask(XS_WATCH, "data\0two\0"), done());
    assert_eq!(b.ask(XS_UNWATCH, "data\0three\0"), fails("ENOENT"));
    assert_eq!(b.ask(XS_UNWATCH, "data\0one\0"), done());
    assert_eq!(b.events(XS_WRITE, 0, "data\0"), ["data\0two\0"]);
    assert_eq!(b.ask(XS_RESET_WATCHES, "\0"), done());
    assert_eq!(b.events(XS_WRITE, 0, "data\0"), Vec::<String>::new());
    for bad in ["data\0", "data\0token", "data\0a\0b\0", "da ta\0t\0", "\0t\0", ""] {
        assert_eq!(b.ask(XS_WATCH, bad), fails("EINVAL"), "{bad:?}");
    }
}

#[test]
fn watches_are_limited() {
    let mut b = Bench::new();
    for n in 0..128 {
        assert_eq!(b.ask(XS_WATCH, &format!("data\0{n}\0")), done());
    }
    assert_eq!(b.ask(XS_WATCH, "data\x00128\0"), fails("E2BIG"));
    assert_eq!(b.events(XS_WRITE, 0, "data\0").len(), 128);
}

#[test]
fn an_event_that_fits_no_message_is_not_told() {
    let mut b = Bench::new();
    let token = "t".repeat(4000);
    assert_eq!(b.events(XS_WATCH, 0, &format!("data\0{token}\0")), [format!("data\0{token}\0")]);
    let deep = format!("data/{}", "n".repeat(100));
    assert_eq!(b.events(XS_WRITE, 0, &format!("{deep}\0")), Vec::<String>::new());
    assert_eq!(b.events(XS_WRITE, 0, "data/n\0"), [format!("data/n\0{token}\0")]);
}
