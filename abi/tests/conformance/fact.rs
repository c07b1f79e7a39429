//! A fact is a number that this crate claims, and the C expression that Xen's headers have for it.

/// One number to compare.
pub struct Fact {
    /// Where the number is claimed, for messages.
    pub claim: String,
    /// The number claimed.
    pub value: i128,
    /// The C expression for it.
    pub c: String,
}

impl Fact {
    pub fn new(claim: String, value: impl TryInto<i128>, c: String) -> Self {
        let Ok(value) = value.try_into() else { panic!("{claim} does not fit 128 bits") };
        Self { claim, value, c }
    }
}

/// The first of two names: what differs in C, or else what is the same.
macro_rules! c_name {
    ($same:ident) => {
        stringify!($same)
    };
    ($same:ident, $c:literal) => {
        $c
    };
}

/// `module { NAME, OTHER = "c_name" }`: a function that lists the constants as facts.
macro_rules! constants {
    ($($module:ident { $($name:ident $(= $c:literal)?),+ $(,)? })+) => {
        pub fn facts() -> Vec<Fact> {
            vec![$($(Fact::new(
                format!("{}::{}", stringify!($module), stringify!($name)),
                paravane_abi::$module::$name,
                $crate::fact::c_name!($name $(, $c)?).to_owned(),
            )),+),+]
        }
    };
}

/// `module { Name = "struct name" { field, kind = "type" } }`: a function that lists sizes and offsets as facts.
macro_rules! structures {
    ($($module:ident { $($name:ident = $c:literal { $($field:ident $(= $cf:literal)?),+ $(,)? })+ })+) => {
        pub fn facts() -> Vec<Fact> {
            use paravane_abi as abi;
            let mut facts = Vec::new();
            $($(
                let name = format!("{}::{}", stringify!($module), stringify!($name));
                facts.push(Fact::new(
                    format!("size of {name}"),
                    size_of::<abi::$module::$name>(),
                    format!("sizeof({})", $c),
                ));
                $(
                    let field = $crate::fact::c_name!($field $(, $cf)?);
                    facts.push(Fact::new(
                        format!("offset of {name}::{}", stringify!($field)),
                        std::mem::offset_of!(abi::$module::$name, $field),
                        format!("offsetof({}, {field})", $c),
                    ));
                    facts.push(Fact::new(
                        format!("size of {name}::{}", stringify!($field)),
                        $crate::fact::size_of_field(|s: &abi::$module::$name| &s.$field),
                        format!("sizeof((({} *)0)->{field})", $c),
                    ));
                )+
            )+)+
            facts
        }
    };
}

/// The size of what a closure borrows from a structure: how a field's size is had without an instance.
pub const fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

pub(crate) use {c_name, constants, structures};
