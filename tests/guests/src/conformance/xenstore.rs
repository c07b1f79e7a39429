//! The xenstore: messages written in pieces, and replies that are the same as those of Xen's own store.

use core::sync::atomic::{AtomicU32, Ordering, fence};

use paravane_guest::abi::xenstore::{
    XENSTORE_RING_SIZE, XS_DIRECTORY, XS_ERROR, XS_GET_DOMAIN_PATH, XS_GET_PERMS, XS_MKDIR, XS_READ, XS_RM,
    XS_TRANSACTION_END, XS_TRANSACTION_START, XS_UNWATCH, XS_WATCH, XS_WATCH_EVENT, XS_WRITE,
    XenstoreDomainInterface, XsdSockmsg,
};
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::sched::yield_now;
use paravane_guest::memory::Mfn;

use super::Bench;

/// The number of tries before the store counts as dead; far more than a working one needs.
const TURNS: usize = 1_000_000;
/// Longer than any payload in these checks.
const PAYLOAD: usize = 256;

/// A message from the store; longer payloads are cut off.
struct Message {
    kind: u32,
    payload: [u8; PAYLOAD],
    len: usize,
}

impl Message {
    fn text(&self) -> &str {
        let payload = self.payload.get(..self.len).unwrap_or_default();
        str::from_utf8(payload).unwrap_or("not text")
    }
}

/// The ring, which the store may write to at any time.
struct Store {
    ring: *mut XenstoreDomainInterface,
    port: Port,
    /// The last event, if one came before a reply.
    event: Option<Message>,
}

impl Store {
    fn index(&self, field: *mut u32) -> &AtomicU32 {
        // SAFETY: the page's indices are always mapped, aligned, and only accessed as atomics.
        unsafe { AtomicU32::from_ptr(field) }
    }

    fn indices(&self) -> [&AtomicU32; 4] {
        // SAFETY: the page is mapped; no reference is made.
        let fields = unsafe {
            let ring = self.ring;
            [
                &raw mut (*ring).req_prod,
                &raw mut (*ring).req_cons,
                &raw mut (*ring).rsp_prod,
                &raw mut (*ring).rsp_cons,
            ]
        };
        fields.map(|field| self.index(field))
    }

    fn notify(&self) {
        // The port belongs to the ring and is valid while the domain lives.
        let _ = event::send(self.port);
    }

    /// Waits until a condition holds; false if it never does.
    fn until(&self, mut holds: impl FnMut(&Self) -> bool) -> bool {
        (0..TURNS).any(|_| {
            let now = holds(self);
            if !now {
                yield_now();
            }
            now
        })
    }

    /// Puts bytes into the ring, which must have room for them, and waits for the store to take them.
    fn put(&self, bytes: &[u8]) -> bool {
        let [prod, cons, ..] = self.indices();
        let start = prod.load(Ordering::Relaxed);
        for (n, byte) in (0..).zip(bytes) {
            let at = start.wrapping_add(n) as usize % XENSTORE_RING_SIZE;
            // SAFETY: the page is mapped, and the index is within the ring.
            unsafe { (&raw mut (*self.ring).req).cast::<u8>().add(at).write_volatile(*byte) };
        }
        let end = start.wrapping_add(bytes.len() as u32);
        prod.store(end, Ordering::Release);
        self.notify();
        self.until(|_| cons.load(Ordering::Acquire) == end)
    }

    fn take(&self, into: &mut [u8]) -> bool {
        let [_, _, prod, cons] = self.indices();
        for byte in into {
            let at = cons.load(Ordering::Relaxed);
            if !self.until(|_| prod.load(Ordering::Acquire) != at) {
                return false;
            }
            let place = at as usize % XENSTORE_RING_SIZE;
            // SAFETY: the page is mapped, and the index is within the ring.
            *byte = unsafe { (&raw const (*self.ring).rsp).cast::<u8>().add(place).read_volatile() };
            fence(Ordering::Release);
            cons.store(at.wrapping_add(1), Ordering::Release);
        }
        true
    }

    fn receive(&self) -> Option<Message> {
        let mut words = [[0u8; 4]; 4];
        if !self.take(words.as_flattened_mut()) {
            return None;
        }
        let [kind, _, _, len] = words.map(u32::from_ne_bytes);
        let len = len as usize;
        let mut message = Message { kind, payload: [0; PAYLOAD], len: len.min(PAYLOAD) };
        self.take(&mut message.payload[..len.min(PAYLOAD)]).then_some(())?;
        (PAYLOAD..len).all(|_| self.take(&mut [0])).then_some(())?;
        self.notify();
        Some(message)
    }

    /// Sends a request, header and payload separately, and waits for its reply.
    fn ask(&mut self, kind: u32, tx_id: u32, payload: &str) -> Option<Message> {
        let head = XsdSockmsg { kind, req_id: 7, tx_id, len: payload.len() as u32 };
        let words = [head.kind, head.req_id, head.tx_id, head.len].map(u32::to_ne_bytes);
        if !self.put(words.as_flattened()) || !self.put(payload.as_bytes()) {
            return None;
        }
        loop {
            let message = self.receive()?;
            if message.kind != XS_WATCH_EVENT {
                return Some(message);
            }
            self.event = Some(message);
        }
    }

    /// The next event.
    fn event(&mut self) -> Option<Message> {
        self.event.take().or_else(|| self.receive())
    }
}

pub(super) fn run(bench: &mut Bench) {
    let (info, memory) = (bench.boot.start_info(), bench.boot.memory());
    // Xen's first domain may run before its store does, and has more rights than others.
    if bench.privileged {
        return;
    }
    let Some(pfn) = memory.pfn(Mfn(info.store_mfn)) else { return bench.suite.holds("ring", false) };
    let ring = memory.va(pfn) as *mut XenstoreDomainInterface;
    let mut store = Store { ring, port: Port(info.store_evtchn), event: None };
    nodes(bench, &mut store);
    watches(bench, &mut store);
    transactions(bench, &mut store);
}

/// Checks the reply to a request: its payload, or the name of its error.
fn check(
    bench: &mut Bench,
    store: &mut Store,
    name: &str,
    request: (u32, u32, &str),
    want: Result<&str, &str>,
) {
    let (kind, tx_id, payload) = request;
    let reply = store.ask(kind, tx_id, payload);
    let got = match &reply {
        Some(reply) if reply.kind == kind => Ok(reply.text()),
        Some(reply) if reply.kind == XS_ERROR => Err(reply.text()),
        _ => Err("no reply"),
    };
    bench.suite.equal(name, got, want);
}

const OK: Result<&str, &str> = Ok("OK\0");

fn nodes(bench: &mut Bench, store: &mut Store) {
    let domid = store.ask(XS_READ, 0, "domid\0");
    let number = domid.as_ref().map_or("", Message::text);
    bench.suite.holds("domid", !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    let path = store.ask(XS_GET_DOMAIN_PATH, 0, "1\0");
    bench.suite.equal("domain-path", path.as_ref().map(Message::text), Some("/local/domain/1\0"));
    let target = store.ask(XS_READ, 0, "memory/target\0");
    bench.suite.holds("target", target.is_some_and(|target| target.kind == XS_READ));
    let mut expect = |name, request, want| check(bench, store, name, request, want);
    expect("missing", (XS_READ, 0, "device/none\0"), Err("ENOENT\0"));
    expect("no-name", (XS_READ, 0, "\0"), Err("EINVAL\0"));
    expect("bad-name", (XS_READ, 0, "data//a\0"), Err("EINVAL\0"));
    expect("no-zero", (XS_READ, 0, "data"), Err("EINVAL\0"));
    expect("read-only", (XS_WRITE, 0, "memory/target\x001"), Err("EACCES\0"));
    expect("others", (XS_WRITE, 0, "/local/domain/0/name\x001"), Err("EACCES\0"));
    expect("unknown", (99, 0, "a\0"), Err("ENOSYS\0"));
    expect("write", (XS_WRITE, 0, "data/paravane/a\0value"), OK);
    expect("read", (XS_READ, 0, "data/paravane/a\0"), Ok("value"));
    expect("mkdir-there", (XS_MKDIR, 0, "data/paravane/a\0"), OK);
    expect("directory", (XS_DIRECTORY, 0, "data/paravane\0"), Ok("a\0"));
    expect("rm", (XS_RM, 0, "data/paravane\0"), OK);
    expect("rm-again", (XS_RM, 0, "data/paravane\0"), OK);
    expect("gone", (XS_READ, 0, "data/paravane/a\0"), Err("ENOENT\0"));
    let perms = store.ask(XS_GET_PERMS, 0, "memory/target\0");
    bench.suite.holds("perms", perms.is_some_and(|perms| perms.text().starts_with("n0\0r")));
    // Many more bytes than the rings hold.
    let alive = (0..200).all(|_| store.ask(XS_READ, 0, "domid\0").is_some_and(|reply| reply.kind == XS_READ));
    bench.suite.holds("rings-wrap", alive);
}

fn watches(bench: &mut Bench, store: &mut Store) {
    let told = |bench: &mut Bench, store: &mut Store, name, want| {
        let event = store.event();
        bench.suite.equal(name, event.as_ref().map(Message::text), Some(want));
    };
    check(bench, store, "watch", (XS_WATCH, 0, "data/watched\0token\0"), OK);
    told(bench, store, "fires-at-once", "data/watched\0token\0");
    check(bench, store, "watch-again", (XS_WATCH, 0, "data/watched\0token\0"), Err("EEXIST\0"));
    check(bench, store, "write-below", (XS_WRITE, 0, "data/watched/a\x001"), OK);
    told(bench, store, "fires", "data/watched/a\0token\0");
    check(bench, store, "unwatch", (XS_UNWATCH, 0, "data/watched\0token\0"), OK);
    check(bench, store, "unwatch-again", (XS_UNWATCH, 0, "data/watched\0token\0"), Err("ENOENT\0"));
    check(bench, store, "rm-watched", (XS_RM, 0, "data/watched\0"), OK);
}

fn transactions(bench: &mut Bench, store: &mut Store) {
    let begin = |store: &mut Store| {
        let reply = store.ask(XS_TRANSACTION_START, 0, "\0");
        reply.and_then(|reply| reply.text().trim_end_matches('\0').parse().ok()).unwrap_or(0)
    };
    check(bench, store, "none", (XS_READ, 0xdead_beef, "domid\0"), Err("ENOENT\0"));
    let tx: u32 = begin(store);
    check(bench, store, "tx-write", (XS_WRITE, tx, "data/tx\0new"), OK);
    check(bench, store, "tx-read", (XS_READ, tx, "data/tx\0"), Ok("new"));
    check(bench, store, "not-outside", (XS_READ, 0, "data/tx\0"), Err("ENOENT\0"));
    check(bench, store, "commit", (XS_TRANSACTION_END, tx, "T\0"), OK);
    check(bench, store, "outside", (XS_READ, 0, "data/tx\0"), Ok("new"));
    let tx: u32 = begin(store);
    check(bench, store, "tx-read-again", (XS_READ, tx, "data/tx\0"), Ok("new"));
    check(bench, store, "meanwhile", (XS_WRITE, 0, "data/tx\0other"), OK);
    check(bench, store, "tx-write-again", (XS_WRITE, tx, "data/tx\0mine"), OK);
    check(bench, store, "conflict", (XS_TRANSACTION_END, tx, "T\0"), Err("EAGAIN\0"));
    check(bench, store, "unchanged", (XS_READ, 0, "data/tx\0"), Ok("other"));
    check(bench, store, "rm-tx", (XS_RM, 0, "data/tx\0"), OK);
}
