//! Many deadlines over the machine's one timer.
//!
//! It knows neither clock nor hardware: the caller passes the time and arms the timer for the next deadline.
#![forbid(unsafe_code)]

/// Names a pending timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerId(u64);

/// Every slot of the queue is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

#[derive(Clone, Copy, Debug)]
struct Pending<T> {
    deadline: u64,
    id: TimerId,
    token: T,
}

/// Up to `N` pending deadlines in nanoseconds, each with a token of the caller's choice.
///
/// Kept sorted, latest first, so that the next one to expire is the last of the array. For the few dozen timers of a
/// small kernel, moving array elements is faster than a tree.
#[derive(Debug)]
pub struct TimerQueue<T, const N: usize> {
    pending: [Option<Pending<T>>; N],
    len: usize,
    next_id: u64,
}

impl<T: Copy, const N: usize> Default for TimerQueue<T, N> {
    fn default() -> Self {
        Self { pending: [None; N], len: 0, next_id: 0 }
    }
}

impl<T: Copy, const N: usize> TimerQueue<T, N> {
    /// Adds a deadline. Equal deadlines expire in the order in which they were added.
    ///
    /// # Errors
    /// When `N` timers are pending.
    pub fn add(&mut self, deadline: u64, token: T) -> Result<TimerId, QueueFull> {
        if self.len == N {
            return Err(QueueFull);
        }
        let id = TimerId(self.next_id);
        self.next_id += 1;
        let at = self.pending[..self.len].iter().flatten().take_while(|p| p.deadline > deadline).count();
        self.pending[self.len] = Some(Pending { deadline, id, token });
        self.len += 1;
        self.pending[at..self.len].rotate_right(1);
        Ok(id)
    }

    /// Removes a timer; false when it has expired or was cancelled before.
    pub fn cancel(&mut self, id: TimerId) -> bool {
        let Some(at) = self.pending[..self.len].iter().flatten().position(|p| p.id == id) else {
            return false;
        };
        self.pending[at..self.len].rotate_left(1);
        self.len -= 1;
        true
    }

    /// The earliest deadline, for which the machine's timer is to be armed.
    pub fn next_deadline(&self) -> Option<u64> {
        self.earliest().map(|p| p.deadline)
    }

    /// Takes one timer whose deadline is not after `now`; call until it returns `None`.
    pub fn expire(&mut self, now: u64) -> Option<T> {
        let earliest = self.earliest().filter(|p| p.deadline <= now)?;
        self.len -= 1;
        Some(earliest.token)
    }

    fn earliest(&self) -> Option<Pending<T>> {
        self.len.checked_sub(1).and_then(|last| self.pending[last])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain<const N: usize>(queue: &mut TimerQueue<char, N>, now: u64) -> String {
        std::iter::from_fn(|| queue.expire(now)).collect()
    }

    #[test]
    fn deadlines_expire_in_order_and_not_early() {
        let mut queue = TimerQueue::<char, 8>::default();
        for (deadline, token) in [(30, 'c'), (10, 'a'), (20, 'b'), (40, 'd')] {
            queue.add(deadline, token).unwrap();
        }
        assert_eq!(queue.next_deadline(), Some(10));
        assert_eq!(drain(&mut queue, 9), "");
        assert_eq!(drain(&mut queue, 20), "ab");
        assert_eq!(queue.next_deadline(), Some(30));
        assert_eq!(drain(&mut queue, u64::MAX), "cd");
        assert_eq!(queue.next_deadline(), None);
    }

    #[test]
    fn equal_deadlines_keep_their_order() {
        let mut queue = TimerQueue::<char, 4>::default();
        for token in ['x', 'y', 'z'] {
            queue.add(5, token).unwrap();
        }
        assert_eq!(drain(&mut queue, 5), "xyz");
    }

    #[test]
    fn a_cancelled_timer_never_expires() {
        let mut queue = TimerQueue::<char, 4>::default();
        let a = queue.add(1, 'a').unwrap();
        let b = queue.add(2, 'b').unwrap();
        queue.add(3, 'c').unwrap();
        assert!(queue.cancel(b));
        assert!(!queue.cancel(b));
        assert_eq!(drain(&mut queue, 9), "ac");
        assert!(!queue.cancel(a));
    }

    #[test]
    fn a_full_queue_says_so_and_recovers() {
        let mut queue = TimerQueue::<char, 2>::default();
        queue.add(2, 'b').unwrap();
        queue.add(1, 'a').unwrap();
        assert_eq!(queue.add(0, 'x'), Err(QueueFull));
        assert_eq!(queue.expire(1), Some('a'));
        queue.add(0, 'y').unwrap();
        assert_eq!(drain(&mut queue, 9), "yb");
    }
}
