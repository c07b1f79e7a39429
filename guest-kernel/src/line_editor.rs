//! The line editor: takes typed bytes, says what to echo and when a line is complete.
#![forbid(unsafe_code)]

/// The longest line that can be typed.
pub const CAPACITY: usize = 120;

/// The effect of a typed byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed<'a> {
    /// Show these bytes and go on.
    Echo(&'a [u8]),
    /// The byte has no effect.
    Ignored,
    /// The line is complete.
    Line(&'a str),
    /// The line was discarded (Ctrl-C).
    Cancelled,
    /// The end of all input (Ctrl-D on an empty line).
    End,
}

/// Collects the bytes of one line.
#[derive(Debug)]
pub struct LineEditor {
    text: [u8; CAPACITY],
    len: usize,
}

impl Default for LineEditor {
    fn default() -> Self {
        Self { text: [0; CAPACITY], len: 0 }
    }
}

impl LineEditor {
    /// Takes one byte. Printable ASCII is kept while there is room; other bytes are control characters or have no
    /// effect.
    pub fn feed(&mut self, byte: u8) -> Typed<'_> {
        const INTERRUPT: u8 = 0x03;
        const END: u8 = 0x04;
        const BACKSPACE: u8 = 0x08;
        const DELETE: u8 = 0x7f;
        match byte {
            b'\r' | b'\n' => {
                let len = core::mem::take(&mut self.len);
                Typed::Line(core::str::from_utf8(&self.text[..len]).unwrap_or_default())
            }
            INTERRUPT => {
                self.len = 0;
                Typed::Cancelled
            }
            END if self.len == 0 => Typed::End,
            BACKSPACE | DELETE if self.len > 0 => {
                self.len -= 1;
                Typed::Echo(b"\x08 \x08")
            }
            b' '..=b'~' if self.len < CAPACITY => {
                self.text[self.len] = byte;
                self.len += 1;
                Typed::Echo(&self.text[self.len - 1..self.len])
            }
            _ => Typed::Ignored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bytes: &[u8]) -> Option<String> {
        let mut editor = LineEditor::default();
        bytes.iter().find_map(|&b| match editor.feed(b) {
            Typed::Line(line) => Some(line.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn a_line_ends_with_either_terminator() {
        assert_eq!(line(b"mem\r").as_deref(), Some("mem"));
        assert_eq!(line(b"mem\n").as_deref(), Some("mem"));
        assert_eq!(line(b"mem"), None);
    }

    #[test]
    fn mistakes_can_be_rubbed_out() {
        assert_eq!(line(b"\x7fmex\x7fm\n").as_deref(), Some("mem"));
        assert_eq!(line(b"me\x08\x08\x08halt\n").as_deref(), Some("halt"));
        let mut editor = LineEditor::default();
        assert_eq!(editor.feed(0x7f), Typed::Ignored, "nothing to rub out");
    }

    #[test]
    fn control_characters_mean_what_they_do_on_a_terminal() {
        let mut editor = LineEditor::default();
        assert_eq!(editor.feed(4), Typed::End);
        assert_eq!(editor.feed(b'a'), Typed::Echo(b"a"));
        assert_eq!(editor.feed(4), Typed::Ignored);
        assert_eq!(editor.feed(3), Typed::Cancelled);
        assert_eq!(editor.feed(b'\n'), Typed::Line(""));
        assert_eq!(editor.feed(0x1b), Typed::Ignored);
        assert_eq!(editor.feed(0xff), Typed::Ignored);
    }

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let mut editor = LineEditor::default();
        for _ in 0..CAPACITY {
            assert_eq!(editor.feed(b'x'), Typed::Echo(b"x"));
        }
        assert_eq!(editor.feed(b'y'), Typed::Ignored);
        assert_eq!(editor.feed(b'\n'), Typed::Line("x".repeat(CAPACITY).as_str()));
    }
}
