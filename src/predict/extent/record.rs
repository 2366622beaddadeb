//! Habits as bytes: what a process that ends leaves for the next.
//!
//! ```text
//! version  1
//! windows, of them unseen                       u32 each
//! for each state: seen, followed                f64 each
//! written extents                               u32
//! for each: extent u64, state u8, windows with a write, last, two gaps   u32 each
//! ```

use super::{Habits, STATES, Trail};

const VERSION: u8 = 1;

/// Reads from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// A count of something, which is neither negative nor no number.
    fn count(&mut self) -> Option<f64> {
        let count = self.take().map(f64::from_le_bytes)?;
        (count.is_finite() && count >= 0.0).then_some(count)
    }
}

impl Habits {
    /// All that is known.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let mut put = |part: &[u8]| bytes.extend_from_slice(part);
        put(&self.window.to_le_bytes());
        put(&self.unseen.to_le_bytes());
        for (seen, followed) in self.seen.iter().zip(&self.followed) {
            put(&seen.to_le_bytes());
            put(&followed.to_le_bytes());
        }
        let mut trails: Vec<(&u64, &Trail)> = self.trails.iter().collect();
        trails.sort_unstable_by_key(|(extent, _)| **extent);
        put(&(trails.len() as u32).to_le_bytes());
        for (extent, trail) in trails {
            put(&extent.to_le_bytes());
            put(&[trail.state]);
            for number in [trail.written, trail.last, trail.gaps[0], trail.gaps[1]] {
                put(&number.to_le_bytes());
            }
        }
        bytes
    }

    /// What [`Habits::to_bytes`] wrote; nothing if it is of another version or makes no sense.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Habits> {
        let mut from = Reader(bytes);
        if from.take::<1>()? != [VERSION] {
            return None;
        }
        let mut habits = Habits {
            window: from.u32()?,
            unseen: from.u32()?,
            ..Habits::default()
        };
        for state in 0..STATES {
            habits.seen[state] = from.count()?;
            habits.followed[state] = from.count()?;
        }
        for _ in 0..from.u32()? {
            let extent = from.u64()?;
            let [state] = from.take()?;
            let trail = Trail {
                state,
                written: from.u32()?,
                last: from.u32()?,
                gaps: [from.u32()?, from.u32()?],
            };
            let is_possible = usize::from(state) < STATES && trail.last <= habits.window;
            if !is_possible || habits.trails.insert(extent, trail).is_some() {
                return None;
            }
        }
        let is_whole = from.0.is_empty() && habits.unseen <= habits.window;
        is_whole.then_some(habits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some() -> Habits {
        let mut habits = Habits::default();
        for window in 0..40u64 {
            habits.close_window([window % 7, 100 + window % 3]);
        }
        habits.pass_unseen(5);
        habits
    }

    #[test]
    fn what_is_read_again_orders_and_foretells_as_before() {
        let mut before = some();
        let mut after = Habits::from_bytes(&before.to_bytes()).unwrap();
        for window in 40..60 {
            assert_eq!(
                after.coldest_first(200, 4096),
                before.coldest_first(200, 4096)
            );
            // a sum in no order
            let off = after.expected_writes() - before.expected_writes();
            assert!(off.abs() < 1e-9, "{off}");
            before.close_window([window % 7]);
            after.close_window([window % 7]);
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_believed() {
        let whole = some().to_bytes();
        for cut in 0..whole.len() {
            assert!(Habits::from_bytes(&whole[..cut]).is_none(), "cut at {cut}");
        }
        let other = [&[VERSION + 1], &whole[1..]].concat();
        assert!(Habits::from_bytes(&other).is_none());
        assert!(Habits::from_bytes(&[&whole[..], &[0]].concat()).is_none());
    }

    proptest! {
        /// Whatever is read does not end the process later.
        #[test]
        fn any_bytes_are_refused_or_lived_with(
            at in 0usize..2000, value in any::<u8>(), windows in 1u64..20,
        ) {
            let mut bytes = some().to_bytes();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Some(mut habits) = Habits::from_bytes(&bytes) {
                for window in 0..windows {
                    habits.close_window([window]);
                    habits.pass_unseen(1);
                }
                prop_assert_eq!(habits.coldest_first(50, 4096).len(), 50);
            }
        }
    }
}
