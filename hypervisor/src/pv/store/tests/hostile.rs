//! A hostile guest: whatever it writes into the page, the store stays bounded and continues to answer.

use proptest::prelude::*;

use super::*;
use crate::testing::virtio::cases;

/// What a hostile guest does.
#[derive(Clone, Debug)]
enum Act {
    Request { kind: u32, tx_id: u32, payload: Vec<u8> },
    Bytes(Vec<u8>),
    Index { field: usize, value: u32 },
    Read(usize),
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "(data|attr|error)(/[ab]){0,4}",
        1 => "(memory/target|/|/local/domain/1|@releaseDomain|)",
        1 => "[ -~]{0,20}",
    ]
}

fn request() -> impl Strategy<Value = Act> {
    let payload = prop_oneof![
        6 => name().prop_map(|name| format!("{name}\0").into_bytes()),
        3 => (name(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(name, rest)| [name.as_bytes(), &[0], &rest].concat()),
        2 => (name(), "[a-z]{0,3}").prop_map(|(name, token)| format!("{name}\0{token}\0").into_bytes()),
        1 => prop::sample::select(vec![b"T\0".to_vec(), b"F\0".to_vec(), b"\0".to_vec(), vec![]]),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ];
    (0u32..25, prop_oneof![3 => Just(0), 1 => 0u32..6], payload)
        .prop_map(|(kind, tx_id, payload)| Act::Request { kind, tx_id, payload })
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        400 => request(),
        60 => (0usize..2000).prop_map(Act::Read),
        2 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Act::Bytes),
        1 => (2048usize..2076, any::<u32>()).prop_map(|(field, value)| Act::Index { field, value }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(128), failure_persistence: None, ..ProptestConfig::default() })]

    /// Turns end, what waits stays small, and nodes and their names agree.
    #[test]
    fn the_store_stays_bounded_and_whole(acts in prop::collection::vec(act(), 1..200)) {
        let mut b = Bench::new();
        for act in acts {
            match act {
                Act::Request { kind, tx_id, payload } => drop(b.put_lossy(&message(kind, tx_id, &payload))),
                Act::Bytes(bytes) => drop(b.put_lossy(&bytes)),
                Act::Index { field, value } => b.set(field, value),
                Act::Read(limit) => drop(b.take(limit.min(XENSTORE_RING_SIZE))),
            }
            let mut turns = 0;
            while b.server.turn(&b.memory).unwrap().more {
                turns += 1;
                prop_assert!(turns < 100_000);
            }
            prop_assert!(b.server.outgoing.len() < BACKLOG + 4096 + 16);
            b.inbox.clear();
        }
        b.server.store.check();
    }
}

impl Bench {
    /// Puts what fits, whatever the indices say.
    fn put_lossy(&mut self, bytes: &[u8]) -> usize {
        let prod = self.index(offset_of!(XenstoreDomainInterface, req_prod));
        let cons = self.index(offset_of!(XenstoreDomainInterface, req_cons));
        if prod.wrapping_sub(cons) as usize > XENSTORE_RING_SIZE { 0 } else { self.put(bytes) }
    }
}
