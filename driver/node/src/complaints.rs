//! Warnings about strangers: the first at once, the rest as a number, so that whoever connects and talks
//! nonsense in a loop does not fill the log.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// From one warning to the next.
const EVERY: Duration = Duration::from_secs(10);

/// The warnings of one listener.
#[derive(Default)]
pub(crate) struct Complaints(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<Instant>,
    untold: u64,
}

impl Complaints {
    /// Warn, unless it was done a moment ago: then count.
    pub fn warn(&self, what: impl Display) {
        if let Some(untold) = self.due(Instant::now()) {
            match untold {
                0 => tracing::warn!("{what}"),
                n => tracing::warn!("{what} (and {n} more since the last warning)"),
            }
        }
    }

    /// Whether to say it now, and how many were not said before.
    fn due(&self, now: Instant) -> Option<u64> {
        // Two numbers: a panic cannot have left them in disorder.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|at| now < at + EVERY) {
            state.untold += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_the_rest_counted() {
        let complaints = Complaints::default();
        let began = Instant::now();
        assert_eq!(complaints.due(began), Some(0));
        for i in 1..5 {
            assert_eq!(complaints.due(began + EVERY / 5 * i), None);
        }
        assert_eq!(complaints.due(began + EVERY), Some(4));
        assert_eq!(complaints.due(began + EVERY * 2), Some(0));
    }
}
