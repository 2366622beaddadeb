//! How a replica stands, written by its task and read by reports.

use crate::replication::News;
use block::Epoch;
use proto::v1;
use replica::{Event, Increment};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Increments remembered for a replica's report.
const INCREMENTS_KEPT: usize = 32;

/// Shared between a replica's task and those who ask.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    inner: Arc<Mutex<Inner>>,
    /// Told when the state is another one.
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    state: v1::ReplicaState,
    epoch: Epoch,
    seed: Option<v1::SeedProgress>,
    increments: VecDeque<v1::Increment>,
    trouble: String,
    /// Its node has said something.
    heard: bool,
    /// When what the replica has was the present.
    as_of: Option<Instant>,
}

/// A duration as reports carry it.
pub(super) fn micros(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

impl Inner {
    fn committed(&mut self, increment: &Increment) {
        self.state = v1::ReplicaState::Consistent;
        self.epoch = increment.epoch;
        self.as_of = Instant::now().checked_sub(increment.elapsed);
        self.trouble.clear();
        if self.increments.len() == INCREMENTS_KEPT {
            self.increments.pop_front();
        }
        self.increments.push_back(v1::Increment {
            epoch: increment.epoch.0,
            dirty_bytes: increment.dirty,
            sent_bytes: increment.sent,
            micros: micros(increment.elapsed),
        });
    }
}

impl ReplicaStatus {
    /// A replica of which nothing is known yet.
    pub(super) fn new(changed: Arc<Notify>) -> ReplicaStatus {
        ReplicaStatus {
            inner: Arc::default(),
            changed,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Plain values: a panic elsewhere cannot have left them half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take what the replica's task has to say.
    pub(super) fn take(&self, news: &News) {
        let mut inner = self.inner();
        let before = inner.state;
        inner.heard |= !matches!(news, News::Away(_));
        match news {
            News::Event(Event::Seeding(p)) => {
                inner.state = v1::ReplicaState::Seeding;
                inner.seed = Some(v1::SeedProgress {
                    bytes_total: p.total,
                    bytes_done: p.done,
                    bytes_sent: p.sent,
                    micros: micros(p.elapsed),
                });
            }
            News::Event(Event::Increment(..)) => {
                let known = inner.state;
                if matches!(
                    known,
                    v1::ReplicaState::Seeding | v1::ReplicaState::Unspecified
                ) {
                    inner.state = v1::ReplicaState::CatchingUp;
                }
            }
            News::Seeded(seeding) => {
                inner.state = v1::ReplicaState::CatchingUp;
                let total = inner.seed.map_or(seeding.total, |s| s.bytes_total);
                inner.seed = Some(v1::SeedProgress {
                    bytes_total: total,
                    bytes_done: total,
                    bytes_sent: seeding.sent,
                    micros: micros(seeding.elapsed),
                });
            }
            News::Committed(increment) => inner.committed(increment),
            News::Failed(why) | News::Away(why) => {
                tracing::warn!("replica: {why}");
                inner.trouble.clone_from(why);
            }
        }
        if inner.state != before {
            self.changed.notify_one();
        }
    }

    /// Whether its node has answered.
    pub(super) fn has_heard(&self) -> bool {
        self.inner().heard
    }

    pub(super) fn mirroring(&self) {
        self.inner().state = v1::ReplicaState::Mirroring;
    }

    pub(super) fn trouble(&self, what: String) {
        self.inner().trouble = what;
    }

    /// As the controller wants it.
    #[must_use]
    pub fn report(&self, node: &str, lag_bytes: u64) -> v1::ReplicaReport {
        let inner = self.inner();
        let lag = inner.as_of.map_or(0, |t| t.elapsed().as_millis());
        v1::ReplicaReport {
            node: node.to_owned(),
            state: inner.state.into(),
            epoch: inner.epoch.0,
            lag_bytes,
            lag_ms: u64::try_from(lag).unwrap_or(u64::MAX),
            seed: inner.seed,
            increments: inner.increments.iter().copied().collect(),
            trouble: inner.trouble.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    /// Whoever waits for news of a replica is woken when its state is another one, and not by each increment.
    #[test]
    fn a_replica_whose_state_changes_rings() {
        let changed = Arc::new(Notify::new());
        let status = ReplicaStatus::new(Arc::clone(&changed));
        let rings = || {
            let mut told = pin!(changed.notified());
            let once = &mut Context::from_waker(Waker::noop());
            matches!(told.as_mut().poll(once), Poll::Ready(()))
        };
        let committed = |epoch| {
            status.take(&News::Committed(Increment {
                epoch: Epoch(epoch),
                dirty: 4096,
                sent: 100,
                elapsed: Duration::from_millis(1),
            }));
        };
        assert!(!rings());
        committed(1);
        assert!(rings(), "it is consistent now");
        committed(2);
        assert!(!rings(), "and was before");
    }
}
