//! The 8254 timer: channel 0 for ticks (IRQ 0), channel 2 behind port 0x61 for calibration.
//!
//! A channel is a reload value and the time when it was loaded; counts and outputs are computed when they are read.
//! Binary counting only. Channel 1, which drove memory refresh, counts and has no output. After Intel's 8254 data
//! sheet.
//!
//! **Missed ticks.** In a periodic mode channel 0 raises one interrupt for each period. Ticks that the guest did not
//! take in time stay pending, [`Pit::MAX_PENDING_TICKS`] at most, and are raised one after another: a kernel that
//! counts ticks has the right time after a stall of its host, and one that was stopped for minutes is not flooded.

/// The 8254's clock in a PC, in Hz.
const CLOCK_HZ: u128 = 1_193_182;
const NS_PER_S: u128 = 1_000_000_000;

const fn to_clocks(ns: u64) -> u64 {
    // The quotient is smaller than `ns` by three orders of magnitude.
    (ns as u128 * CLOCK_HZ / NS_PER_S) as u64
}

/// The first moment at which [`to_clocks`] gives `clocks`.
fn to_ns(clocks: u64) -> u64 {
    u64::try_from((u128::from(clocks) * NS_PER_S).div_ceil(CLOCK_HZ)).unwrap_or(u64::MAX)
}

/// Which bytes of a count a port access takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Bytes {
    Low,
    High,
    #[default]
    Both,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    mode: u8,
    bytes: Bytes,
    control: u8,
    /// 1..=65536.
    reload: u64,
    /// Clock at which the count began; `None` while none is loaded.
    since: Option<u64>,
    /// Clocks counted when the gate fell.
    held: Option<u64>,
    gate: bool,
    low_written: Option<u8>,
    reads_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Default for Channel {
    fn default() -> Self {
        Self {
            mode: 3,
            bytes: Bytes::Both,
            control: 0x36,
            reload: 0x1_0000,
            since: None,
            held: None,
            gate: true,
            low_written: None,
            reads_high: false,
            latched_count: None,
            latched_status: None,
        }
    }
}

impl Channel {
    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Clocks since the count was loaded, without those while the gate was low.
    fn elapsed(&self, clock: u64) -> Option<u64> {
        self.held.or_else(|| self.since.map(|since| clock.saturating_sub(since)))
    }

    /// How many times the channel has run out by `clock`.
    fn runs(&self, clock: u64) -> u64 {
        let runs = self.elapsed(clock).map_or(0, |elapsed| elapsed / self.reload);
        if self.is_periodic() { runs } else { runs.min(1) }
    }

    /// The clock at which it runs out next.
    fn next_run(&self, clock: u64) -> Option<u64> {
        if self.held.is_some() {
            return None;
        }
        let runs = self.runs(clock);
        let ends = self.is_periodic() || runs == 0;
        if ends { self.since?.checked_add((runs + 1).checked_mul(self.reload)?) } else { None }
    }

    fn count(&self, clock: u64) -> u16 {
        let Some(elapsed) = self.elapsed(clock) else { return 0 };
        let left = match self.mode {
            2 => self.reload - elapsed % self.reload,
            // Counts by two, twice a period.
            3 => self.reload - (elapsed * 2) % self.reload,
            _ => self.reload.wrapping_sub(elapsed),
        };
        // 65536 reads as 0, and a one-shot goes on below 0, modulo 2^16.
        left as u16
    }

    fn output(&self, clock: u64) -> bool {
        let Some(elapsed) = self.elapsed(clock) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => elapsed >= self.reload,
            2 => elapsed % self.reload != self.reload - 1,
            3 => elapsed % self.reload < self.reload.div_ceil(2),
            _ => elapsed != self.reload,
        }
    }

    fn set_control(&mut self, value: u8) {
        let mode = value >> 1 & 7;
        *self = Self {
            // Bit 2 is ignored where bit 1 is set: 6 and 7 are 2 and 3.
            mode: if mode > 5 { mode - 4 } else { mode },
            bytes: match value >> 4 & 3 {
                1 => Bytes::Low,
                2 => Bytes::High,
                _ => Bytes::Both,
            },
            control: value & 0x3f,
            gate: self.gate,
            ..Self::default()
        };
    }

    /// Takes a byte of a new count; returns whether that completed it.
    fn write(&mut self, value: u8, clock: u64) -> bool {
        let count = match (self.bytes, self.low_written.take()) {
            (Bytes::Low, _) => u16::from(value),
            (Bytes::High, _) => u16::from(value) << 8,
            (Bytes::Both, None) => {
                self.low_written = Some(value);
                return false;
            }
            (Bytes::Both, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.reload = if count == 0 { 0x1_0000 } else { count.into() };
        self.since = Some(clock);
        self.held = (!self.gate).then_some(0);
        true
    }

    fn read(&mut self, clock: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(clock)).to_le_bytes();
        let reads_high = match self.bytes {
            Bytes::Low => false,
            Bytes::High => true,
            Bytes::Both => {
                self.reads_high = !self.reads_high;
                !self.reads_high
            }
        };
        if !self.reads_high {
            self.latched_count = None;
        }
        if reads_high { high } else { low }
    }

    fn latch_count(&mut self, clock: u64) {
        let count = self.count(clock);
        self.latched_count.get_or_insert(count);
    }

    fn latch_status(&mut self, clock: u64) {
        let null_count = if self.since.is_none() { 0x40 } else { 0 };
        let status = u8::from(self.output(clock)) << 7 | null_count | self.control;
        self.latched_status.get_or_insert(status);
    }

    /// A low gate stops the count; a rising one resumes it (modes 0 and 4) or restarts it.
    fn set_gate(&mut self, high: bool, clock: u64) {
        if high == self.gate {
            return;
        }
        self.gate = high;
        if !high {
            self.held = self.elapsed(clock);
            return;
        }
        let Some(held) = self.held.take() else { return };
        let counted = if matches!(self.mode, 0 | 4) { held } else { 0 };
        self.since = Some(clock.saturating_sub(counted));
    }
}

/// The timer.
#[derive(Debug)]
pub(super) struct Pit {
    channels: [Channel; 3],
    /// Bit 1 of port 0x61: reads back, but makes no sound.
    speaker: bool,
    /// How many runs of channel 0 since its load have become ticks.
    seen: u64,
    pending_ticks: u64,
    clock: u64,
}

impl Default for Pit {
    fn default() -> Self {
        let mut channels = [Channel::default(); 3];
        channels[2].gate = false;
        Self { channels, speaker: false, seen: 0, pending_ticks: 0, clock: 0 }
    }
}

impl Pit {
    /// How many ticks stay pending.
    pub(super) const MAX_PENDING_TICKS: u64 = 1000;

    pub(super) fn control(&mut self, value: u8, now_ns: u64) {
        let clock = to_clocks(now_ns);
        let select = value >> 6;
        if select == 3 {
            for (bit, channel) in (1..).zip(&mut self.channels) {
                if value >> bit & 1 == 0 {
                    continue;
                }
                if value & 0x20 == 0 {
                    channel.latch_count(clock);
                }
                if value & 0x10 == 0 {
                    channel.latch_status(clock);
                }
            }
            return;
        }
        let Some(channel) = self.channels.get_mut(usize::from(select)) else { return };
        if value & 0x30 == 0 {
            channel.latch_count(clock);
            return;
        }
        channel.set_control(value);
        if select == 0 {
            (self.seen, self.pending_ticks) = (0, 0);
        }
    }

    pub(super) fn write(&mut self, number: usize, value: u8, now_ns: u64) {
        let clock = to_clocks(now_ns);
        if let Some(channel) = self.channels.get_mut(number)
            && channel.write(value, clock)
            && number == 0
        {
            (self.seen, self.pending_ticks) = (0, 0);
        }
    }

    pub(super) fn read(&mut self, number: usize, now_ns: u64) -> u8 {
        self.channels.get_mut(number).map_or(0xff, |channel| channel.read(to_clocks(now_ns)))
    }

    /// Port 0x61: gate and output of channel 2; bit 4 toggles as memory refresh once did.
    pub(super) fn read_speaker(&self, now_ns: u64) -> u8 {
        let [_, _, channel] = &self.channels;
        let refresh = (now_ns / 15_085) & 1 == 1;
        u8::from(channel.gate)
            | u8::from(self.speaker) << 1
            | u8::from(refresh) << 4
            | u8::from(channel.output(to_clocks(now_ns))) << 5
    }

    pub(super) fn write_speaker(&mut self, value: u8, now_ns: u64) {
        self.speaker = value & 2 != 0;
        let [_, _, channel] = &mut self.channels;
        channel.set_gate(value & 1 != 0, to_clocks(now_ns));
    }

    /// Turns the runs of channel 0 until `now_ns` into pending ticks.
    pub(super) fn advance(&mut self, now_ns: u64) {
        self.clock = to_clocks(now_ns);
        let runs = self.channels[0].runs(self.clock);
        self.pending_ticks =
            (self.pending_ticks + runs.saturating_sub(self.seen)).min(Self::MAX_PENDING_TICKS);
        self.seen = self.seen.max(runs);
    }

    pub(super) fn has_pending_tick(&self) -> bool {
        self.pending_ticks > 0
    }

    pub(super) fn take_tick(&mut self) {
        self.pending_ticks = self.pending_ticks.saturating_sub(1);
    }

    /// When channel 0 runs out next, as computed by the last [`Pit::advance`].
    pub(super) fn next_tick(&self) -> Option<u64> {
        self.channels[0].next_run(self.clock).map(to_ns)
    }
}

#[cfg(test)]
mod tests {
    use crate::bare::platform::pit::*;

    /// Nanoseconds at which `clocks` clocks have gone by.
    fn at(clocks: u64) -> u64 {
        to_ns(clocks)
    }

    fn load(pit: &mut Pit, channel: u8, mode: u8, count: u16, now: u64) {
        pit.control(channel << 6 | 0x30 | mode << 1, now);
        for byte in count.to_le_bytes() {
            pit.write(channel.into(), byte, now);
        }
    }

    fn count(pit: &mut Pit, channel: u8, now: u64) -> u16 {
        pit.control(channel << 6, now);
        // Latched: the moment of the reads does not matter.
        u16::from_le_bytes([pit.read(channel.into(), now + 99_999), pit.read(channel.into(), now + 99_999)])
    }

    #[test]
    fn clocks_and_nanoseconds_agree() {
        for clocks in [0, 1, 2, 1193, 65536, 1 << 40] {
            assert_eq!(to_clocks(to_ns(clocks)), clocks);
            assert!(clocks == 0 || to_clocks(to_ns(clocks) - 1) < clocks);
        }
        assert_eq!(to_clocks(1_000_000_000), 1_193_182);
    }

    #[test]
    fn counts_of_each_mode() {
        for (mode, after, expected) in
            [(0, 10, 990), (0, 1010, 65526), (2, 10, 990), (2, 1010, 990), (3, 10, 980), (3, 510, 980)]
        {
            let mut pit = Pit::default();
            load(&mut pit, 0, mode, 1000, 0);
            assert_eq!(count(&mut pit, 0, at(after)), expected, "mode {mode} after {after}");
        }
        let mut pit = Pit::default();
        load(&mut pit, 0, 2, 0, 0);
        assert_eq!((count(&mut pit, 0, 0), count(&mut pit, 0, at(1))), (0, 65535), "0 is 65536");
    }

    #[test]
    fn one_shot_fires_once_and_periodic_each_period() {
        let mut pit = Pit::default();
        load(&mut pit, 0, 0, 100, 0);
        assert_eq!(pit.next_tick(), Some(at(100)));
        pit.advance(at(1000));
        assert_eq!((pit.pending_ticks, pit.next_tick()), (1, None));
        load(&mut pit, 0, 2, 100, at(1000));
        assert!(!pit.has_pending_tick(), "a new count forgets the old one's ticks");
        pit.advance(at(1250));
        assert_eq!((pit.pending_ticks, pit.next_tick()), (2, Some(at(1300))));
        pit.advance(at(1250));
        assert_eq!(pit.pending_ticks, 2);
        pit.advance(at(10_000_000));
        assert_eq!(pit.pending_ticks, Pit::MAX_PENDING_TICKS);
    }

    #[test]
    fn calibration_through_port_0x61() {
        let mut pit = Pit::default();
        assert_eq!(pit.read_speaker(0) & 0x21, 0x20);
        pit.write_speaker(1, 0);
        load(&mut pit, 2, 0, 1193, 0);
        assert_eq!(pit.read_speaker(at(1192)) & 0x21, 0x01);
        assert_eq!(pit.read_speaker(at(1193)) & 0x21, 0x21);
        // The gate holds the count.
        load(&mut pit, 2, 0, 100, 0);
        pit.write_speaker(0, at(40));
        assert_eq!(count(&mut pit, 2, at(1000)), 60);
        pit.write_speaker(1, at(1000));
        assert_eq!(count(&mut pit, 2, at(1010)), 50);
    }

    #[test]
    fn status_and_single_bytes() {
        let mut pit = Pit::default();
        load(&mut pit, 0, 2, 500, 0);
        pit.control(0xe2, at(1));
        assert_eq!(pit.read(0, at(1)), 0x80 | 0x34);
        pit.control(0x14, 0);
        pit.write(0, 200, 0);
        assert_eq!(pit.read(0, at(5)), 195);
        assert_eq!(pit.read(0, at(6)), 194);
    }
}
