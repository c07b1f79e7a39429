//! Reading and changing nodes, and what is refused.

use super::*;

#[test]
fn the_domains_own_keys_are_there_and_read_only() {
    let mut b = Bench::new();
    for (key, value) in [
        ("domid", "1"),
        ("name", "guest"),
        ("memory/target", "65536"),
        ("memory/static-max", "65536"),
        ("store/port", "1"),
        ("console/ring-ref", "4"),
        ("control/platform-feature-xs_reset_watches", "1"),
    ] {
        assert_eq!(b.ask(XS_READ, &format!("{key}\0")), Ok(value.into()), "{key}");
        assert_eq!(b.ask(XS_READ, &format!("/local/domain/1/{key}\0")), Ok(value.into()), "{key}");
        assert_eq!(b.ask(XS_WRITE, &format!("{key}\0other")), fails("EACCES"), "{key}");
        assert_eq!(b.ask(XS_RM, &format!("{key}\0")), fails("EACCES"), "{key}");
    }
    let vm = b.ask(XS_READ, "vm\0").unwrap();
    assert_eq!(b.ask(XS_READ, &format!("{vm}/name\0")), Ok("guest".into()));
    assert_eq!(b.ask(XS_DIRECTORY, "memory\0"), Ok("static-max\0target\0".into()));
    assert_eq!(b.ask(XS_GET_PERMS, "memory/target\0"), Ok("n0\0r1\0".into()));
}

#[test]
fn what_is_missing_and_what_is_hidden() {
    let mut b = Bench::new();
    assert_eq!(b.ask(XS_READ, "device/vbd\0"), fails("ENOENT"));
    assert_eq!(b.ask(XS_DIRECTORY, "device/vbd/51712\0"), fails("ENOENT"));
    assert_eq!(b.ask(XS_DIRECTORY, "device\0"), Ok(String::new()));
    // Others' nodes are not even known not to exist.
    for path in ["/", "/local/domain", "/local/domain/0/backend", "/tool"] {
        assert_eq!(b.ask(XS_READ, &format!("{path}\0")), fails("EACCES"), "{path}");
        assert_eq!(b.ask(XS_WRITE, &format!("{path}\0x")), fails("EACCES"), "{path}");
    }
    assert_eq!(b.ask(XS_WRITE, "memory/new\0x"), fails("EACCES"));
}

#[test]
fn nodes_are_written_made_and_removed() {
    let mut b = Bench::new();
    assert_eq!(b.ask(XS_WRITE, "data/a/b\0value"), done());
    assert_eq!(b.ask(XS_READ, "data/a/b\0"), Ok("value".into()));
    assert_eq!(b.ask(XS_READ, "data/a\0"), Ok(String::new()));
    assert_eq!(b.ask(XS_WRITE, "data/a/b\0"), done());
    assert_eq!(b.ask(XS_READ, "data/a/b\0"), Ok(String::new()));
    assert_eq!(b.ask(XS_WRITE, "data/a/b\0zero\0within"), done());
    assert_eq!(b.ask(XS_READ, "data/a/b\0"), Ok("zero\0within".into()));
    assert_eq!(b.ask(XS_MKDIR, "data/a/b\0"), done());
    assert_eq!(b.ask(XS_READ, "data/a/b\0"), Ok("zero\0within".into()), "a node that exists is left alone");
    assert_eq!(b.ask(XS_MKDIR, "data/c\0"), done());
    assert_eq!(b.ask(XS_DIRECTORY, "data\0"), Ok("a\0c\0".into()));
    assert_eq!(b.ask(XS_GET_PERMS, "data/a/b\0"), Ok("n1\0".into()));
    assert_eq!(b.ask(XS_RM, "data/a\0"), done());
    assert_eq!(b.ask(XS_READ, "data/a/b\0"), fails("ENOENT"));
    assert_eq!(b.ask(XS_DIRECTORY, "data\0"), Ok("c\0".into()));
    assert_eq!(b.ask(XS_RM, "data/a\0"), done(), "removed is removed");
    assert_eq!(b.ask(XS_RM, "data/a/b\0"), fails("ENOENT"), "unless nothing is above it");
    assert_eq!(b.ask(XS_RM, "/\0"), fails("EINVAL"));
}

#[test]
fn permissions_are_the_owners_to_change() {
    let mut b = Bench::new();
    b.ask(XS_WRITE, "data/a\0").unwrap();
    assert_eq!(b.ask(XS_SET_PERMS, "data/a\0n1\0r0\0b5\0"), done());
    assert_eq!(b.ask(XS_GET_PERMS, "data/a\0"), Ok("n1\0r0\0b5\0".into()));
    assert_eq!(b.ask(XS_WRITE, "data/a/b\0"), done());
    assert_eq!(b.ask(XS_GET_PERMS, "data/a/b\0"), Ok("n1\0r0\0b5\0".into()), "from the node above");
    assert_eq!(b.ask(XS_SET_PERMS, "data/a\0n0\0"), fails("EPERM"));
    assert_eq!(b.ask(XS_SET_PERMS, "memory/target\0n1\0"), fails("EACCES"));
    for bad in ["data/a\0", "data/a\0x1\0", "data/a\0n\0", "data/a\0n1", "data/a\0n99999\0", "data/a\0n+1\0"]
    {
        assert_eq!(b.ask(XS_SET_PERMS, bad), fails("EINVAL"), "{bad:?}");
    }
    assert_eq!(b.ask(XS_SET_PERMS, "data/a\0n1\0r2\0r3\0r4\0r5\0r6\0"), fails("ENOSPC"));
}

#[test]
fn names_that_are_none() {
    let mut b = Bench::new();
    let long = format!("/{}\0", "a".repeat(XENSTORE_ABS_PATH_MAX));
    let relative = format!("{}\0", "a".repeat(XENSTORE_REL_PATH_MAX + 1));
    for bad in
        ["\0", "", "data", "data/\0", "data//a\0", "da ta\0", "data\0data\0", "/local/\0", &long, &relative]
    {
        assert_eq!(b.ask(XS_READ, bad), fails("EINVAL"), "{bad:?}");
        assert_eq!(b.ask(XS_MKDIR, bad), fails("EINVAL"), "{bad:?}");
    }
    assert_eq!(b.ask(XS_READ, "data\u{e9}\0"), fails("EINVAL"));
    let not_text = b.exchange(XS_READ, 0, b"\xff\xfe\0").remove(0);
    assert_eq!((not_text.kind, not_text.payload), (XS_ERROR, b"EINVAL\0".to_vec()));
}

#[test]
fn the_guests_nodes_are_limited() {
    let mut b = Bench::new();
    assert_eq!(b.ask(XS_WRITE, &format!("data/a\0{}", "x".repeat(3000))), fails("ENOSPC"), "one value");
    assert_eq!(b.ask(XS_READ, "data/a\0"), fails("ENOENT"), "nothing is left of it");
    let mut made = 0;
    let refused = loop {
        match b.ask(XS_MKDIR, &format!("data/{}/{}\0", made % 20, made)) {
            Ok(_) => made += 1,
            Err(errno) => break errno,
        }
        assert!(made < 2000);
    };
    assert_eq!(refused, "ENOSPC");
    let nodes = b.server.store.nodes();
    assert_eq!(b.ask(XS_MKDIR, "data/x/y/z\0"), fails("ENOSPC"));
    assert_eq!(b.server.store.nodes(), nodes, "a path is made whole or not at all");
    assert_eq!(b.ask(XS_RM, "data/0\0"), done());
    assert_eq!(b.ask(XS_MKDIR, "data/x/y/z\0"), done(), "what was removed is room again");
}

#[test]
fn a_list_of_children_that_is_read_in_parts() {
    let mut b = Bench::new();
    for n in 0..40 {
        b.ask(XS_MKDIR, &format!("data/{n:030}\0")).unwrap();
    }
    let first = b.ask(XS_DIRECTORY_PART, "data\x000\0").unwrap();
    let (generation, names) = first.split_once('\0').unwrap();
    assert!(names.ends_with("\0\0"), "all of it fits");
    assert_eq!(format!("{}\0", b.ask(XS_DIRECTORY, "data\0").unwrap()), names);
    let rest = b.ask(XS_DIRECTORY_PART, "data\x0031\0").unwrap();
    assert_eq!(rest, format!("{generation}\0{}", &names[31..]));
    assert_eq!(b.ask(XS_DIRECTORY_PART, "data\x0099999\0"), fails("EINVAL"));
    b.ask(XS_MKDIR, "data/more\0").unwrap();
    assert!(!b.ask(XS_DIRECTORY_PART, "data\x000\0").unwrap().starts_with(&format!("{generation}\0")));
}

#[test]
fn domains_and_what_is_for_privileged_ones() {
    let mut b = Bench::new();
    assert_eq!(b.ask(XS_GET_DOMAIN_PATH, "1\0"), Ok("/local/domain/1\0".into()));
    assert_eq!(b.ask(XS_GET_DOMAIN_PATH, "77\0"), Ok("/local/domain/77\0".into()));
    assert_eq!(b.ask(XS_GET_DOMAIN_PATH, "x\0"), fails("EINVAL"));
    for (domain, there) in [("0", "T\0"), ("1", "T\0"), ("32752", "T\0"), ("2", "F\0")] {
        assert_eq!(b.ask(XS_IS_DOMAIN_INTRODUCED, &format!("{domain}\0")), Ok(there.into()));
    }
    for kind in [XS_CONTROL, XS_INTRODUCE, XS_RELEASE, XS_RESUME, XS_SET_TARGET] {
        assert_eq!(b.ask(kind, "1\x002\x003\0"), fails("EACCES"));
    }
    for kind in [XS_WATCH_EVENT, XS_ERROR, 20, 23, XS_INVALID, u32::MAX] {
        let reply = b.exchange(kind, 0, b"a\0").remove(0);
        assert_eq!((reply.kind, reply.req_id, &*reply.payload), (XS_ERROR, 42, &b"ENOSYS\0"[..]));
    }
}
