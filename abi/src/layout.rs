//! Compile-time checks of layouts.
//!
//! The size of each structure of the hypercall interface and the offsets of its fields are written as numbers beside
//! its definition; a definition that differs from them does not compile. Nothing else belongs here.

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
