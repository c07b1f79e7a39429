//! Features that a Xen image asks for, as its notes spell them (Xen public header `features.h`).
//!
//! Only what is asked for: the version hypercall says whether a feature is offered.

use paravane_abi::features::{feature_bit, feature_name};

/// An image cannot run without a feature that no version of the interface knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it requires the feature \"{0}\", which Xen's public headers do not define")]
pub struct UnknownFeature(pub String);

/// What an image says of features, as masks over the bits of submap 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The image can make use of these.
    pub supported: u32,
    /// The image cannot run without these.
    pub required: u32,
}

impl Features {
    /// Parses a FEATURES string: names separated by `|`, a required one marked by `!`.
    ///
    /// Names that nobody knows are ignored unless they are required: the image is newer than we are.
    pub fn parse(list: &str) -> Result<Self, UnknownFeature> {
        let mut features = Self::default();
        for item in list.split('|').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, required) = item.strip_prefix('!').map_or((item, false), |name| (name, true));
            match feature_bit(name) {
                Some(bit) => {
                    features.supported |= 1 << bit;
                    features.required |= u32::from(required) << bit;
                }
                None if required => return Err(UnknownFeature(name.to_owned())),
                None => {}
            }
        }
        Ok(features)
    }

    /// The name of the first required feature that `offered` lacks.
    pub fn missing_from(self, offered: u32) -> Option<&'static str> {
        let missing = self.required & !offered;
        feature_name(missing.trailing_zeros())
    }
}

#[cfg(test)]
mod tests {
    use crate::image::features::*;

    #[test]
    fn the_string_that_linux_carries() {
        let f = Features::parse("!writable_page_tables|pae_pgdir_above_4gb").unwrap();
        assert_eq!(f, Features { supported: 0b1_0001, required: 1 });
        assert_eq!(f.missing_from(0b1), None);
        assert_eq!(f.missing_from(0b1_0000), Some("writable_page_tables"));
    }

    #[test]
    fn unknown_names_matter_only_when_required() {
        assert_eq!(Features::parse("from_the_future||").unwrap(), Features::default());
        assert_eq!(Features::parse("!from_the_future"), Err(UnknownFeature("from_the_future".into())));
        assert!(Features::parse("!").is_err(), "an empty name is not a feature");
    }
}
