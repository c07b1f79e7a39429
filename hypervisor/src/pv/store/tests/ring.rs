//! The ring: messages in pieces, full rings, wrapped indices, and lies.

use super::*;

const REQ_PROD: usize = offset_of!(XenstoreDomainInterface, req_prod);
const REQ_CONS: usize = offset_of!(XenstoreDomainInterface, req_cons);
const RSP_PROD: usize = offset_of!(XenstoreDomainInterface, rsp_prod);
const RSP_CONS: usize = offset_of!(XenstoreDomainInterface, rsp_cons);
const ERROR: usize = offset_of!(XenstoreDomainInterface, error);

#[test]
fn bytes_are_taken_as_they_come() {
    let mut b = Bench::new();
    let bytes = message(XS_READ, 0, b"domid\0");
    // Linux: head, notification, payload, and none for that if the ring was not empty.
    for piece in [&bytes[..7], &bytes[7..16], &bytes[16..18], &bytes[18..]] {
        assert_eq!(b.put(piece), piece.len());
        assert!(b.notify(), "the guest is notified of the room");
        assert_eq!(b.index(REQ_CONS), b.index(REQ_PROD));
    }
    b.take(usize::MAX);
    assert_eq!(b.messages(), [Message { kind: XS_READ, req_id: 42, payload: b"1".to_vec() }]);
    assert!(!b.notify(), "nothing to say");
}

#[test]
fn requests_one_after_the_other_in_one_ring() {
    let mut b = Bench::new();
    for _ in 0..3 {
        b.put(&message(XS_READ, 0, b"name\0"));
    }
    assert!(b.notify());
    b.take(usize::MAX);
    assert_eq!(b.messages().len(), 3);
}

#[test]
fn a_message_larger_than_the_ring_and_indices_that_wrap() {
    let mut b = Bench::new();
    for field in [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS] {
        b.set(field, u32::MAX - 100);
    }
    let value = "0123456789".repeat(180);
    assert_eq!(b.ask(XS_WRITE, &format!("data/big\0{value}")), done());
    assert_eq!(b.ask(XS_READ, "data/big\0"), Ok(value));
    assert!(b.index(REQ_PROD) < 4096 && b.index(RSP_PROD) < 4096);
}

#[test]
fn replies_wait_for_a_guest_that_does_not_read() {
    let mut b = Bench::new();
    let value = "v".repeat(1900);
    b.ask(XS_WRITE, &format!("data\0{value}")).unwrap();
    let mut asked = 0;
    let request = message(XS_READ, 0, b"data\0");
    while b.put(&request) == request.len() {
        asked += 1;
        b.notify();
        assert!(asked < 1000, "the store takes requests without end");
    }
    assert!(b.server.outgoing.len() < BACKLOG + 4096 + 16, "{}", b.server.outgoing.len());
    // The last request lies in the ring in part: it is left out.
    let mut replies = 0;
    loop {
        let taken = b.take(100);
        let moved = b.notify();
        replies += b.messages().iter().filter(|m| m.payload == value.as_bytes()).count();
        if taken == 0 && !moved {
            break;
        }
    }
    assert_eq!(replies, asked);
}

#[test]
fn an_index_outside_the_ring_ends_the_conversation() {
    for field in [REQ_PROD, RSP_PROD] {
        let mut b = Bench::new();
        b.put(&message(XS_READ, 0, b"domid\0"));
        b.set(field, 0x8000_0000);
        b.notify();
        assert_eq!(b.index(ERROR), XENSTORE_ERROR_RINGIDX);
        b.set(field, 0);
        b.put(&message(XS_READ, 0, b"domid\0"));
        assert!(!b.notify());
    }
}

#[test]
fn a_message_that_is_too_long_ends_the_conversation() {
    let mut b = Bench::new();
    let head = XsdSockmsg { kind: XS_READ, len: XENSTORE_PAYLOAD_MAX as u32 + 1, ..Default::default() };
    b.put(head.as_bytes());
    assert!(b.notify());
    assert_eq!(b.index(ERROR), XENSTORE_ERROR_PROTO);
    b.put(&[0; 100]);
    assert!(!b.notify());
    assert_eq!(b.index(REQ_CONS), 16);
}
