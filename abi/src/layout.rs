//! Compile-time proof of layouts.
//!
//! A structure that crosses the hypercall boundary has its size and the offset of each field written out as numbers beside
//! its definition; a definition that drifts from them does not compile. Nothing else belongs here.

/// Fails the build unless a structure has exactly the given size in bytes and byte offsets of fields.
macro_rules! layout {
    ($ty:ty: $size:literal { $($field:ident @ $offset:literal),+ $(,)? }) => {
        const _: () = {
            assert!(core::mem::size_of::<$ty>() == $size);
            $(assert!(core::mem::offset_of!($ty, $field) == $offset);)+
        };
    };
}

/// Implements `Default` as all zeroes, for a structure with arrays too long for the derive.
macro_rules! default_is_zeroed {
    ($($ty:ty),+ $(,)?) => {
        $(impl Default for $ty {
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        })+
    };
}
