//! Why provisioning failed, and whether trying again can help.

use std::fmt;
use std::time::Duration;

/// What kind of failure it is: what to do follows from it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody else holds the state's lock. Wait.
    Locked,
    /// The state changed after the plan was made. Plan again.
    StalePlan,
    /// The network, a rate limit, a provider that is down. Try again later.
    Transient,
    /// It took longer than it may and was ended. Try again later.
    Timeout,
    /// The site gives no more. Ask for quota, or go elsewhere.
    Quota,
    /// The credentials are wrong or may not.
    Denied,
    /// The plan would do what was not asked, or costs too much.
    Gate,
    /// Terraform is not there.
    Missing,
    /// Anything else: the configuration, a provisioner, a bug. Trying again a few times is all
    /// that can be done.
    Other,
}

impl Class {
    /// Whether the same thing may work later without anybody doing anything.
    #[must_use]
    pub fn may_pass(self) -> bool {
        use Class::{Locked, Other, StalePlan, Timeout, Transient};
        matches!(self, Locked | StalePlan | Transient | Timeout | Other)
    }

    /// What Terraform's message means. Providers word the same thing in many ways, so this looks
    /// for words that they share.
    #[must_use]
    pub fn of_message(text: &str) -> Class {
        const WORDS: [(Class, &[&str]); 5] = [
            (
                Class::StalePlan,
                &["saved plan is stale", "saved plan does not match"],
            ),
            (
                Class::Locked,
                &["error acquiring the state lock", "state is already locked"],
            ),
            (
                Class::Quota,
                &[
                    "quota",
                    "limitexceeded",
                    "limit exceeded",
                    "insufficientinstancecapacity",
                    "insufficient capacity",
                ],
            ),
            (
                Class::Denied,
                &[
                    "unauthorized",
                    "accessdenied",
                    "access denied",
                    "forbidden",
                    "no valid credential",
                    "invalid credentials",
                    "requires auth",
                ],
            ),
            (
                Class::Transient,
                &[
                    "timeout",
                    "timed out",
                    "connection refused",
                    "connection reset",
                    "no such host",
                    "throttl",
                    "too many requests",
                    "rate exceeded",
                    "service unavailable",
                    "bad gateway",
                    "tls handshake",
                    "unexpected eof",
                ],
            ),
        ];
        let text = text.to_lowercase();
        WORDS
            .iter()
            .find(|(_, words)| words.iter().any(|w| text.contains(w)))
            .map_or(Class::Other, |(class, _)| *class)
    }
}

/// A failure: what to do, and what to read.
#[derive(Clone, Debug)]
pub struct Failed {
    /// What kind.
    pub class: Class,
    /// What was asked, what happened, what to do.
    pub text: String,
}

impl Failed {
    /// A failure of this class.
    #[must_use]
    pub fn new(class: Class, text: impl Into<String>) -> Failed {
        Failed {
            class,
            text: text.into(),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failed {}

impl From<node::Error> for Failed {
    fn from(e: node::Error) -> Failed {
        Failed::new(Class::Other, e.to_string())
    }
}

/// How long to wait before the next try, and when to stop trying.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer than this.
    pub longest: Duration,
    /// After so many failures in a row the site is quarantined.
    pub tries: u32,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff {
            first: Duration::from_secs(5),
            longest: Duration::from_secs(300),
            tries: 6,
        }
    }
}

impl Backoff {
    /// The wait after `failures` in a row, doubling; `None` when it is enough.
    #[must_use]
    pub fn after(&self, failures: u32) -> Option<Duration> {
        let doubled = self
            .first
            .checked_mul(1 << failures.saturating_sub(1).min(30));
        (failures < self.tries).then(|| doubled.unwrap_or(self.longest).min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        for (text, class) in [
            ("Error: Saved plan is stale", Class::StalePlan),
            ("Error acquiring the state lock: HTTP 423", Class::Locked),
            (
                "VcpuLimitExceeded: you have requested more vCPU",
                Class::Quota,
            ),
            ("AccessDenied: not authorized to perform", Class::Denied),
            (
                "dial tcp 10.0.0.1:443: connect: connection refused",
                Class::Transient,
            ),
            ("Invalid index", Class::Other),
        ] {
            assert_eq!(Class::of_message(text), class, "{text}");
        }
        assert!(Class::Transient.may_pass() && !Class::Quota.may_pass());
    }

    #[test]
    fn waits_double_up_to_the_longest_and_then_it_is_enough() {
        let b = Backoff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(3),
            tries: 4,
        };
        let waits: Vec<_> = (1..=4).map(|n| b.after(n).map(|d| d.as_secs())).collect();
        assert_eq!(waits, [Some(1), Some(2), Some(3), None]);
    }
}
