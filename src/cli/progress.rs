//! Progress on a terminal: on standard error, and not at all where nobody looks.

use super::Out;
use super::out::{bytes, duration};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(120);

/// A line that changes while long work goes on.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A spinner with words.
    #[must_use]
    pub fn words(out: &Out) -> Progress {
        let bar = if out.is_watched() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        bar.enable_steady_tick(TURN);
        Progress { bar }
    }

    /// A bar of bytes. Rate and ETA come with each [`Progress::at`], from whoever measures them.
    #[must_use]
    pub fn bytes(out: &Out) -> Progress {
        let bar = if out.is_watched() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {percent:>3}%  {msg}") {
            bar.set_style(style.progress_chars("━━╌"));
        }
        Progress { bar }
    }

    /// Whether there is a terminal to show it on.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Change the words.
    pub fn say(&self, words: String) {
        self.bar.set_message(words);
    }

    /// Where the work stands: `done` of `total` bytes, at `rate` bytes a second.
    pub fn at(&self, what: &str, done: u64, total: u64, rate: u64) {
        self.bar.set_prefix(what.to_owned());
        self.bar.set_length(total.max(1));
        self.bar.set_position(done.min(total));
        let mut words = format!("{} of {}", bytes(done), bytes(total));
        if let Some(left) = total.saturating_sub(done).checked_div(rate) {
            words = format!(
                "{words}, {}/s, {} left",
                bytes(rate),
                duration(Duration::from_secs(left))
            );
        }
        self.bar.set_message(words);
    }

    /// Take the line away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
