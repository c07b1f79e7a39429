//! Lists that are decoded no longer than they can be.
//!
//! An element of one byte in a file may take many times as much in memory. So it is too late to count a list once it
//! has been decoded. For fields: `#[serde(deserialize_with = "at_most::<N, _, _>")]`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A list of `N` elements at most.
///
/// # Errors
/// When there are more, or one cannot be decoded.
pub fn at_most<'de, const N: usize, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(AtMost::<N, T>(PhantomData))
}

struct AtMost<const N: usize, T>(PhantomData<T>);

impl<'de, const N: usize, T: Deserialize<'de>> Visitor<'de> for AtMost<N, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {N} elements at most")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        // Room for what comes, and not for what is said to come.
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() == N {
                return Err(A::Error::custom("a list is longer than it can be"));
            }
            list.push(element);
        }
        Ok(list)
    }
}
