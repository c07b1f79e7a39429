//! The kernel's command line: words separated by blanks, some of the form `key=value`.
#![forbid(unsafe_code)]

/// A command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmdline<'a>(&'a str);

impl<'a> Cmdline<'a> {
    /// The text before the first zero byte, up to the first byte that is not UTF-8.
    pub fn new(bytes: &'a [u8]) -> Self {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        match core::str::from_utf8(bytes) {
            Ok(text) => Self(text),
            Err(error) => Self(core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()),
        }
    }

    /// The whole text.
    pub fn text(&self) -> &'a str {
        self.0
    }

    /// The words.
    pub fn words(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.split_ascii_whitespace()
    }

    /// The value of the last `key=value`.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.words().filter_map(|w| w.strip_prefix(key)?.strip_prefix('=')).last()
    }

    /// Whether `word` is one of the words.
    pub fn has(&self, word: &str) -> bool {
        self.words().any(|w| w == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_values() {
        let line = Cmdline::new(b" bench=map-512  quiet bench=x=y\0junk");
        assert_eq!(line.get("bench"), Some("x=y"), "the last one counts");
        assert_eq!(line.get("benc"), None);
        assert_eq!(line.get("quiet"), None);
        assert!(line.has("quiet") && !line.has("junk"));
    }

    #[test]
    fn what_is_not_text_ends_it() {
        assert_eq!(Cmdline::new(b"a=1 \xff b=2").text(), "a=1 ");
        assert_eq!(Cmdline::new(b"").words().count(), 0);
        assert_eq!(Cmdline::new(&[b'a'; 4]).text(), "aaaa", "a missing zero is no overrun");
    }
}
