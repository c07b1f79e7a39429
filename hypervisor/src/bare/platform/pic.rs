//! The pair of 8259A interrupt controllers, the second on line 2 of the first.
//!
//! Edge-triggered lines, priorities with rotation, specific, non-specific and automatic end of interrupt,
//! special mask mode, polling and spurious interrupts, after Intel's 8259A data sheet. Not implemented: level
//! triggering and special fully nested mode, which no PC kernel sets.

const CASCADE: u8 = 2;

/// One chip.
#[derive(Clone, Copy, Debug)]
struct Chip {
    /// Requests latched by a rising edge and not yet acknowledged.
    requests: u8,
    in_service: u8,
    mask: u8,
    /// Levels of the lines, to see edges.
    lines: u8,
    vector_base: u8,
    /// The line of lowest priority; the one after it has the highest.
    lowest: u8,
    /// The initialisation word that comes next: 2, 3 or 4; 0 when done.
    expects: u8,
    expects_word_3: bool,
    expects_word_4: bool,
    auto_eoi: bool,
    rotates_on_auto_eoi: bool,
    reads_in_service: bool,
    special_mask: bool,
    polled: bool,
}

impl Default for Chip {
    /// Everything masked until a kernel has initialised it.
    fn default() -> Self {
        Self {
            requests: 0,
            in_service: 0,
            mask: 0xff,
            lines: 0,
            vector_base: 0,
            lowest: 7,
            expects: 0,
            expects_word_3: false,
            expects_word_4: false,
            auto_eoi: false,
            rotates_on_auto_eoi: false,
            reads_in_service: false,
            special_mask: false,
            polled: false,
        }
    }
}

impl Chip {
    /// The lines of `set`, that of the highest priority first.
    fn by_priority(&self, set: u8) -> impl Iterator<Item = u8> + use<> {
        let lowest = self.lowest;
        (1..=8u8).map(move |i| lowest.wrapping_add(i) & 7).filter(move |line| set & 1 << line != 0)
    }

    /// The line that requests the CPU: unmasked, and of higher priority than any in service.
    /// The `cascaded` lines request it in addition to the latched ones.
    fn wants(&self, cascaded: u8) -> Option<u8> {
        let blocking = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        let asking = (self.requests | cascaded) & !self.mask;
        let first = self.by_priority(asking | blocking).next()?;
        (blocking & 1 << first == 0).then_some(first)
    }

    fn acknowledge(&mut self, line: u8) {
        self.requests &= !(1 << line);
        if !self.auto_eoi {
            self.in_service |= 1 << line;
        } else if self.rotates_on_auto_eoi {
            self.lowest = line;
        }
    }

    /// The command port: first initialisation word, or operation word 2 or 3.
    fn command(&mut self, value: u8) {
        match value & 0x18 {
            0x08 => self.operation_word_3(value),
            0x00 => self.operation_word_2(value),
            _ => {
                *self = Self {
                    mask: 0,
                    lines: self.lines,
                    vector_base: self.vector_base,
                    expects: 2,
                    expects_word_3: value & 2 == 0,
                    expects_word_4: value & 1 != 0,
                    ..Self::default()
                };
            }
        }
    }

    /// End of interrupt and rotation.
    fn operation_word_2(&mut self, value: u8) {
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        let named = value & 7;
        if !eoi {
            match (rotate, specific) {
                (true, true) => self.lowest = named,
                (rotate, false) => self.rotates_on_auto_eoi = rotate,
                (false, true) => {}
            }
            return;
        }
        let highest = self.by_priority(self.in_service).next();
        let ended = if specific { Some(named) } else { highest };
        let Some(line) = ended else { return };
        self.in_service &= !(1 << line);
        if rotate {
            self.lowest = line;
        }
    }

    fn operation_word_3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x02 != 0 {
            self.reads_in_service = value & 1 != 0;
        }
        self.polled = value & 0x04 != 0;
    }

    /// The data port: initialisation words 2 to 4, or the mask.
    fn data(&mut self, value: u8) {
        match self.expects {
            0 => self.mask = value,
            2 => self.vector_base = value & 0xf8,
            // The cascade is wired as in every PC; word 3 has no effect.
            3 => {}
            _ => self.auto_eoi = value & 2 != 0,
        }
        self.expects = match self.expects {
            2 if self.expects_word_3 => 3,
            2 | 3 if self.expects_word_4 => 4,
            _ => 0,
        };
    }
}

/// Both chips.
#[derive(Debug, Default)]
pub(super) struct Pic {
    first: Chip,
    second: Chip,
}

impl Pic {
    /// The chip that `line` (0..=15) goes to, and which of its lines that is.
    fn chip(&mut self, line: u8) -> (&mut Chip, u8) {
        if line < 8 { (&mut self.first, 1 << line) } else { (&mut self.second, 1 << (line & 7)) }
    }

    /// Sets the level of a line. A rising edge is latched. If the line falls before the request is acknowledged, the
    /// request is lost; the interrupt is spurious if the CPU was signalled already.
    pub(super) fn set_line(&mut self, line: u8, high: bool) {
        let (chip, bit) = self.chip(line);
        let rises = high && chip.lines & bit == 0;
        if high {
            chip.lines |= bit;
        } else {
            chip.lines &= !bit;
            chip.requests &= !bit;
        }
        if rises {
            chip.requests |= bit;
        }
    }

    /// A rising edge on a line that is high most of the time.
    pub(super) fn pulse(&mut self, line: u8) {
        let (chip, bit) = self.chip(line);
        chip.requests |= bit;
    }

    /// Whether `line` has a pending request or is in service.
    pub(super) fn is_requested_or_served(&self, line: u8) -> bool {
        let chip = if line < 8 { &self.first } else { &self.second };
        (chip.requests | chip.in_service) & 1 << (line & 7) != 0
    }

    /// Whether `line` of the first chip is masked.
    pub(super) fn is_masked(&self, line: u8) -> bool {
        self.first.mask & 1 << (line & 7) != 0
    }

    fn cascaded(&self) -> u8 {
        if self.second.wants(0).is_some() { 1 << CASCADE } else { 0 }
    }

    /// Whether the CPU's interrupt line is high.
    pub(super) fn wants_cpu(&self) -> bool {
        self.first.wants(self.cascaded()).is_some()
    }

    /// Interrupt acknowledge: returns the vector of the request that is now in service. If the request is gone, that is
    /// line 7's, a spurious interrupt.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let Some(line) = self.first.wants(self.cascaded()) else { return self.first.vector_base + 7 };
        self.first.acknowledge(line);
        if line != CASCADE {
            return self.first.vector_base + line;
        }
        let Some(line) = self.second.wants(0) else { return self.second.vector_base + 7 };
        self.second.acknowledge(line);
        self.second.vector_base + line
    }

    pub(super) fn read(&mut self, port: u16) -> u8 {
        let cascaded = if port & 0x80 == 0 { self.cascaded() } else { 0 };
        let chip = if port & 0x80 == 0 { &mut self.first } else { &mut self.second };
        if std::mem::take(&mut chip.polled) {
            let Some(line) = chip.wants(cascaded) else { return 0 };
            chip.acknowledge(line);
            return 0x80 | line;
        }
        match (port & 1, chip.reads_in_service) {
            (1, _) => chip.mask,
            (_, true) => chip.in_service,
            (_, false) => chip.requests | cascaded,
        }
    }

    pub(super) fn write(&mut self, port: u16, value: u8) {
        let chip = if port & 0x80 == 0 { &mut self.first } else { &mut self.second };
        if port & 1 == 0 { chip.command(value) } else { chip.data(value) }
    }
}

#[cfg(test)]
mod tests {
    use crate::bare::platform::pic::*;

    fn initialised(word_4: u8) -> Pic {
        let mut pic = Pic::default();
        for (port, base) in [(0x20, 32), (0xa0, 40)] {
            for (offset, value) in [(0, 0x11), (1, base), (1, 0), (1, word_4), (1, 0)] {
                pic.write(port + offset, value);
            }
        }
        pic
    }

    #[test]
    fn nothing_before_initialisation() {
        let mut pic = Pic::default();
        pic.pulse(0);
        assert!(!pic.wants_cpu());
        assert_eq!(pic.read(0x21), 0xff);
    }

    #[test]
    fn priorities_nest() {
        let mut pic = initialised(1);
        pic.pulse(4);
        assert_eq!(pic.acknowledge(), 36);
        pic.pulse(5);
        assert!(!pic.wants_cpu(), "lower than the one in service");
        pic.pulse(0);
        assert_eq!(pic.acknowledge(), 32);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0b1_0001);
        pic.write(0x20, 0x20);
        assert_eq!(pic.read(0x20), 0b1_0000, "a non-specific EOI ends the highest");
        pic.write(0x20, 0x64);
        assert_eq!(pic.read(0x20), 0);
        assert_eq!(pic.acknowledge(), 37);
    }

    #[test]
    fn the_second_chip_needs_both_ends() {
        let mut pic = initialised(1);
        pic.pulse(12);
        assert_eq!(pic.read(0x20), 1 << CASCADE);
        assert_eq!(pic.acknowledge(), 44);
        pic.pulse(13);
        assert!(!pic.wants_cpu());
        pic.write(0x20, 0x62);
        assert!(!pic.wants_cpu(), "its own chip still serves 12");
        pic.write(0xa0, 0x20);
        assert_eq!(pic.acknowledge(), 45);
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x20);
        pic.write(0x21, 1 << CASCADE);
        pic.pulse(14);
        assert!(!pic.wants_cpu());
    }

    #[test]
    fn lost_edges_are_spurious() {
        let mut pic = initialised(1);
        pic.set_line(4, true);
        assert!(pic.wants_cpu());
        pic.set_line(4, false);
        assert!(!pic.wants_cpu());
        assert_eq!(pic.acknowledge(), 39);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0, "nothing is in service");
        pic.set_line(4, true);
        pic.acknowledge();
        pic.write(0x20, 0x20);
        pic.set_line(4, true);
        assert!(!pic.wants_cpu(), "no new edge");
    }

    #[test]
    fn automatic_end_rotation_and_special_mask() {
        let mut pic = initialised(3);
        pic.pulse(3);
        assert_eq!(pic.acknowledge(), 35);
        pic.pulse(6);
        assert_eq!(pic.acknowledge(), 38, "ended by itself");

        let mut pic = initialised(1);
        pic.write(0x20, 0xc3);
        pic.pulse(3);
        pic.pulse(4);
        assert_eq!(pic.acknowledge(), 36, "3 is the lowest now");

        let mut pic = initialised(1);
        pic.pulse(1);
        pic.acknowledge();
        pic.write(0x21, 1 << 1);
        pic.pulse(5);
        assert!(!pic.wants_cpu());
        pic.write(0x20, 0x68);
        assert!(pic.wants_cpu(), "masked lines in service do not block");
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0x85);
        assert_eq!(pic.read(0x21), 1 << 1);
    }
}
