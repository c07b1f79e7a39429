use super::*;

fn with(bytes: &[u8]) -> ByteQueue {
    let queue = ByteQueue::new();
    bytes.iter().for_each(|byte| queue.push(*byte));
    queue
}

fn rest(queue: &ByteQueue) -> Vec<u8> {
    std::iter::from_fn(|| queue.pop()).collect()
}

#[test]
fn bytes_are_read_in_order_and_once() {
    let queue = with(b"abc");
    assert_eq!(rest(&queue), b"abc");
    assert!(queue.is_empty());
    assert_eq!(queue.pop(), None);
}

#[test]
fn a_full_queue_drops_new_bytes_and_keeps_old_ones() {
    let queue = with(&[b'x'; CAPACITY]);
    assert_eq!(queue.room(), 0);
    queue.push(b'y');
    assert_eq!(queue.pushed(), CAPACITY);
    assert_eq!(rest(&queue), [b'x'; CAPACITY]);
    queue.push(b'z');
    assert_eq!(rest(&queue), b"z", "indices wrap around the array");
}

#[test]
fn an_interrupt_character_discards_what_was_typed_before_it() {
    let queue = with(b"ab\x03c\x03d");
    assert!(queue.pop_through(3));
    assert_eq!(rest(&queue), b"d");
    let queue = with(b"ab");
    assert!(!queue.pop_through(3));
    assert_eq!(rest(&queue), b"ab", "nothing is taken");
}
